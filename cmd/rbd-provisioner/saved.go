// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	utilcache "k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/tools/cache"
)

// savedFor is for how long it is believed that a volume was saved which the informer
// has not seen. After that, its claim would be provisioned again, which finds all of
// it there.
const savedFor = time.Minute

// GetStore is how the library gets at volumes.
func (v ownVolumes) GetStore() cache.Store {
	return savedVolumes{v.SharedIndexInformer.GetStore(), utilcache.NewExpiring()}
}

// savedVolumes is the informer's store for the library, which adds to it each volume
// that it has saved, as it was before that. In the informer's own store this would
// replace what the informer has seen since. A volume whose claim was deleted at once
// is released by then; it would look as if it was not, and stay for ever with its
// image.
type savedVolumes struct {
	cache.Store
	// saved has those that were added, by name, until the informer has them.
	saved *utilcache.Expiring
}

// Add implements cache.Store.
func (s savedVolumes) Add(obj any) error {
	key, err := cache.MetaNamespaceKeyFunc(obj)
	if err != nil {
		return err
	}
	s.saved.Set(key, obj, savedFor)
	return nil
}

// GetByKey implements cache.Store.
func (s savedVolumes) GetByKey(key string) (item any, exists bool, err error) {
	if item, exists, err = s.Store.GetByKey(key); exists || err != nil {
		s.saved.Delete(key)
		return item, exists, err
	}
	item, exists = s.saved.Get(key)
	return item, exists, nil
}
