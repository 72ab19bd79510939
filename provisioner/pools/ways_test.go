// SPDX-License-Identifier: Apache-2.0

package pools_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/pools"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// TestNew leaves out what New needs.
func TestNew(t *testing.T) {
	if _, err := pools.New(pools.Config{Name: testName}); err == nil {
		t.Error("it needs nothing")
	}
}

// TestWhichPools shows which classes and volumes name a pool of ours.
func TestWhichPools(t *testing.T) {
	class := func(change func(*storagev1.StorageClass)) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.putClass(t, "fast", change) }
	}
	pv := func(change func(*corev1.PersistentVolume, *volume.Record)) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.putVolume(t, "pvc-1", change) }
	}
	other := func(t *testing.T, w *world) {
		w.putClass(t, "other", func(c *storagev1.StorageClass) {
			c.Parameters["monitors"], c.Parameters["adminSecretName"] = "10.0.1.1", "other"
		})
	}
	for _, test := range []struct {
		name string
		put  []func(*testing.T, *world)
		// ours and others say which cluster's pool is visited.
		ours, others bool
	}{
		{"nothing", nil, false, false},
		{"a class", []func(*testing.T, *world){class(asItIs)}, true, false},
		{"a class that is wrong", []func(*testing.T, *world){class(with("monitors", ""))}, false, false},
		{"another provisioner's class", []func(*testing.T, *world){class(func(c *storagev1.StorageClass) { c.Provisioner = "example.com/other" })}, false, false},
		{"a volume", []func(*testing.T, *world){pv(func(*corev1.PersistentVolume, *volume.Record) {})}, true, false},
		{"a volume that does not say its cluster", []func(*testing.T, *world){pv(func(_ *corev1.PersistentVolume, r *volume.Record) { r.FSID = "" })}, true, false},
		{"a volume that says another cluster", []func(*testing.T, *world){pv(func(_ *corev1.PersistentVolume, r *volume.Record) { r.FSID = "another" })}, true, false},
		{"another identity's volume", []func(*testing.T, *world){pv(func(_ *corev1.PersistentVolume, r *volume.Record) { r.Identity = "there" })}, false, false},
		{"another provisioner's volume", []func(*testing.T, *world){pv(func(pv *corev1.PersistentVolume, _ *volume.Record) {
			pv.Annotations[volume.AnnProvisionedBy] = "example.com/other"
		})}, false, false},
		{"a volume that does not say who deletes it", []func(*testing.T, *world){pv(func(_ *corev1.PersistentVolume, r *volume.Record) { r.Admin = "" })}, false, false},
		{"class and volume", []func(*testing.T, *world){class(asItIs), pv(func(*corev1.PersistentVolume, *volume.Record) {})}, true, false},
		{"two clusters with a pool of one name", []func(*testing.T, *world){class(asItIs), other}, true, true},
		{"another cluster's class and our volume, which says that it is there", []func(*testing.T, *world){
			pv(func(_ *corev1.PersistentVolume, r *volume.Record) { r.FSID = "another" }), other,
		}, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				visitors := []*FakeVisitor{newVisitor(nil), newVisitor(nil)}
				w := newWorld(t, visitors[0], visitors[1])
				for _, put := range test.put {
					put(t, w)
				}
				var want []volume.PoolID
				if test.ours {
					want = append(want, w.pool())
				}
				if test.others {
					want = append(want, volume.PoolID{FSID: w.other.FSID(), Pool: testPool})
				}
				w.run(t)
				pass(time.Hour)
				for _, v := range visitors {
					v.check(t, want...) // once each
				}
				w.checkFaults(t, 0)
			})
		})
	}
}

// TestNewPool: a pool that a class names later is visited some minutes after that, once.
func TestNewPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisitor(nil)
		w := newWorld(t, v)
		w.putClass(t, "fast", asItIs)
		w.ceph.AddPool("second")
		w.run(t)
		pass(time.Minute)
		v.check(t, w.pool())
		w.putClass(t, "second", with("pool", "second"))
		pass(5 * time.Minute)
		v.check(t, volume.PoolID{FSID: w.ceph.FSID(), Pool: "second"})
		pass(time.Hour)
		v.check(t)
	})
}

// TestAgainInNewPool: Again has an unknown pool looked for at once.
func TestAgainInNewPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisitor(nil)
		w := newWorld(t, v)
		w.run(t)
		pass(time.Minute)
		w.putClass(t, "fast", asItIs)
		w.Again(w.pool())
		pass(6 * time.Second)
		v.check(t, w.pool())
		pass(time.Hour)
		v.check(t)
	})
}

// TestAgainInOtherCluster: Again notices that a route leads to another cluster by now.
func TestAgainInOtherCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisitor(nil)
		w := newWorld(t, v)
		w.putClass(t, "fast", asItIs)
		w.run(t)
		pass(time.Minute)
		v.check(t, w.pool())
		moved := rbdtest.NewCluster("10.0.0.1:6789")
		moved.AddPool(testPool)
		w.putKey(t, "admin", moved.AddUser("admin", rbdtest.Caps{AllPools: true}).Key)
		w.connector.Connector = moved
		there := volume.PoolID{FSID: moved.FSID(), Pool: testPool}
		w.Again(there)
		pass(6 * time.Second)
		v.check(t, there)
		pass(time.Hour)
		v.check(t)
	})
}

// TestNamedLater calls Again for a pool that nothing names: it is visited once a class does.
func TestNamedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisitor(nil)
		w := newWorld(t, v)
		w.run(t)
		w.Again(w.pool())
		pass(time.Hour)
		v.check(t)
		w.putClass(t, "fast", asItIs)
		pass(6 * time.Minute)
		v.check(t, w.pool())
	})
}

// TestOtherRoute: where one route to a pool fails, another one is tried.
func TestOtherRoute(t *testing.T) {
	for name, fail := range map[string]func(*testing.T, *world){
		"the secret is gone": func(t *testing.T, w *world) { w.dropKey(t, "second") },
		"the key is wrong":   func(t *testing.T, w *world) { w.putKey(t, "second", rbdtest.NewKey()) },
		"the caps are missing": func(t *testing.T, w *world) {
			w.putKey(t, "second", w.ceph.AddUser("second", rbdtest.Caps{}).Key)
		},
		"the monitors are gone": func(t *testing.T, w *world) {
			w.putClass(t, "second", func(c *storagev1.StorageClass) { c.Parameters["monitors"] = "10.0.9.9" })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var last error // of a visit
				v := newVisitor(func(ctx context.Context, pool *access.Pool, n int) error {
					last = readNotes(ctx, pool, n)
					return last
				})
				w := newWorld(t, v)
				w.putKey(t, "second", w.ceph.AddUser("second", rbdtest.Caps{AllPools: true}).Key)
				w.putClass(t, "second", func(c *storagev1.StorageClass) {
					c.Parameters["adminId"], c.Parameters["adminSecretName"] = "second", "second"
				})
				fail(t, w)
				w.putClass(t, "fast", asItIs)
				w.run(t)
				pass(10 * time.Second)
				v.mu.Lock()
				visits := len(v.visits)
				v.mu.Unlock()
				if visits == 0 {
					t.Error("the pool was not visited")
				}
				pass(time.Hour) // the route that fails is not in the way
				w.checkDone(t, v)
				// Both routes are known by now, so no visit has to be retried.
				for range 10 {
					last = errors.New("none")
					w.Again(w.pool())
					pass(5500 * time.Millisecond)
					if last != nil {
						t.Errorf("got %v", last)
					}
					pass(time.Minute)
				}
			})
		})
	}
}
