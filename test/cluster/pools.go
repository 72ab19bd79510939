// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// CreateUser makes client.ID with the given caps, as in CreateUser(ctx, "kube", "mon",
// "profile rbd", "osd", "profile rbd pool=rbd"), and returns its key. An existing user
// gets these caps and keeps its key.
func (ceph *Ceph) CreateUser(ctx context.Context, id string, caps ...string) (key string, err error) {
	user := map[string]any{"entity": "client." + id, "caps": caps}
	// One command for a new user, because each one starts Python.
	out, err := ceph.monitor(ctx, "auth get-or-create-key", user)
	if err == nil {
		return strings.TrimSpace(out), nil
	}
	// It refuses an existing user with other caps.
	if _, err := ceph.monitor(ctx, "auth caps", user); err != nil {
		return "", err
	}
	return ceph.Key(ctx, id)
}

// DeleteUser removes client.ID. It is no error if there is none.
func (ceph *Ceph) DeleteUser(ctx context.Context, id string) error {
	_, err := ceph.monitor(ctx, "auth rm", map[string]any{"entity": "client." + id})
	return err
}

// Key is the key of client.ID.
func (ceph *Ceph) Key(ctx context.Context, id string) (string, error) {
	out, err := ceph.monitor(ctx, "auth get-key", map[string]any{"entity": "client." + id})
	return strings.TrimSpace(out), err
}

// CreatePool makes a replicated pool and initialises it for images. It is no error if the
// pool exists.
func (ceph *Ceph) CreatePool(ctx context.Context, name string) error {
	if _, err := ceph.monitor(ctx, "osd pool create", map[string]any{"pool": name}); err != nil {
		return err
	}
	_, err := ceph.Run(ctx, "rbd", "pool", "init", name)
	return err
}

// CreateErasurePool makes an erasure-coded pool that can hold the data of images (rbd
// create --data-pool). It is no error if the pool exists.
//
// Ceph's smallest code has two data chunks and one coding chunk, each on an OSD of its
// own. So the first call starts three more OSDs. They are outside the tree from which the
// other pools take theirs, so a pause of Ceph.OSD still stops those pools.
func (ceph *Ceph) CreateErasurePool(ctx context.Context, name string) error {
	ceph.erasure.Do(func() { ceph.erasureErr = ceph.startErasureOSDs(ctx) })
	if ceph.erasureErr != nil {
		return fmt.Errorf("start OSDs for erasure-coded pools: %w", ceph.erasureErr)
	}
	for _, command := range [][]string{
		{"osd", "pool", "create", name, "8", "8", "erasure", "rig"},
		{"osd", "pool", "set", name, "allow_ec_overwrites", "true"},
		{"osd", "pool", "application", "enable", name, "rbd"},
	} {
		if _, err := ceph.Run(ctx, "ceph", command...); err != nil {
			return err
		}
	}
	return nil
}

func (ceph *Ceph) startErasureOSDs(ctx context.Context) error {
	errs := make([]error, 3)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = ceph.startOSD(ctx, i+1, "root=erasure", "host=erasure-rig") })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err := ceph.Run(ctx, "ceph", "osd", "erasure-code-profile", "set", "rig",
		"k=2", "m=1", "crush-root=erasure", "crush-failure-domain=osd")
	return err
}

// DeletePool removes a pool with all its content.
func (ceph *Ceph) DeletePool(ctx context.Context, name string) error {
	_, err := ceph.monitor(ctx, "osd pool delete", map[string]any{
		"pool": name, "pool2": name, "yes_i_really_really_mean_it": true,
	})
	return err
}

// Images lists the names of a pool's images, sorted as rbd does. Images in the
// trash are not among them.
func (ceph *Ceph) Images(ctx context.Context, pool string) ([]string, error) {
	var names []string
	err := ceph.JSON(ctx, &names, "rbd", "ls", "--pool", pool)
	return names, err
}

// Trash lists the names that the images in a pool's trash had.
func (ceph *Ceph) Trash(ctx context.Context, pool string) ([]string, error) {
	var images []struct {
		Name string `json:"name"`
	}
	if err := ceph.JSON(ctx, &images, "rbd", "trash", "ls", "--all", "--pool", pool); err != nil {
		return nil, err
	}
	var names []string
	for _, image := range images {
		names = append(names, image.Name)
	}
	return names, nil
}
