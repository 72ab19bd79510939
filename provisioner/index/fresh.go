// SPDX-License-Identifier: Apache-2.0

package index

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apimachinery/pkg/util/wait"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	// freshFor is how long after showing a volume's release the cache counts as knowing
	// all volumes that name the same image. It surely knows what was in the API before
	// the release, because it receives all volumes in the order of their changes. A call
	// to Ceph takes less time, so that one request is enough for an attempt.
	freshFor = 20 * time.Second
	// cachePoll is how often CatchUp checks the cache, which takes some milliseconds to
	// catch up.
	cachePoll = 10 * time.Millisecond
	// catchUpTimeout bounds CatchUp's request and wait together.
	catchUpTimeout = 10 * time.Second
)

// Freshness knows whether the cache has all volumes that are in the API. It is safe for
// concurrent use.
type Freshness struct {
	volumes Volumes
	client  corev1client.PersistentVolumesGetter
	// released has the versions of volumes that the cache lately showed as released.
	released *utilcache.Expiring
}

// NewFreshness returns the Freshness of a cache. The client writes volumes.
func NewFreshness(volumes Volumes, client corev1client.PersistentVolumesGetter) *Freshness {
	return &Freshness{volumes, client, utilcache.NewExpiring()}
}

// Seen records that the cache shows pv: call it for every volume. before is what the cache
// showed until now; nil for none.
func (f *Freshness) Seen(before, pv *corev1.PersistentVolume) {
	// The same version again, as in a resync, is no news from the API server.
	if Goes(pv) && (before == nil || before.ResourceVersion != pv.ResourceVersion) {
		f.released.Set(versionOf(pv), true, freshFor)
	}
}

// CatchUp returns once the cache has all volumes that were in the API when it was called, and
// reports whether it had to wait for that. If the cache showed the release of pv a moment ago,
// it has them. Otherwise CatchUp changes pv itself: once the cache shows this change, it has
// seen all earlier ones. That costs one request, however many volumes there are.
func (f *Freshness) CatchUp(ctx context.Context, pv *corev1.PersistentVolume) (waited bool, err error) {
	if _, fresh := f.released.Get(versionOf(pv)); fresh {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	begun := time.Now().UTC().Format(time.RFC3339Nano)
	patch := fmt.Appendf(nil, `{"metadata":{"uid":%q,"annotations":{%q:%q}}}`, pv.UID, volume.AnnDeletionBegun, begun)
	_, err = f.client.PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return true, fmt.Errorf("note in the volume that its image is about to be removed: %w", err)
	}
	err = wait.PollUntilContextCancel(ctx, cachePoll, true, func(context.Context) (bool, error) {
		obj, found, err := f.volumes.Cache.GetByKey(pv.Name)
		cached, ok := obj.(*corev1.PersistentVolume)
		return found && ok && cached.Annotations[volume.AnnDeletionBegun] == begun, err
	})
	if err != nil {
		return true, fmt.Errorf("the provisioner's cache lags behind the API server, and may lack another volume that names the same image: "+
			"will retry: %w", err)
	}
	return true, nil
}

// versionOf identifies one version of one volume.
func versionOf(pv *corev1.PersistentVolume) string { return string(pv.UID) + "/" + pv.ResourceVersion }
