// SPDX-License-Identifier: Apache-2.0

package orphan_test

import (
	"errors"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner/orphan"
	"ceph.com/rbd-provisioner/provisioner/pools"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Package pools calls Orphans.
var _ pools.Visitor = (*orphan.Orphans)(nil)

// crashes are the moments at which a process dies that makes the image.
func crashes() map[string]func(*testing.T, *world) {
	kills := map[string]func(*testing.T, *world){
		"before it is saved": func(t *testing.T, w *world) { w.mustMake(t) },
	}
	for name, fault := range rbdtest.CreateCrashes() {
		kills[name] = func(t *testing.T, w *world) {
			w.ceph.FakeCrash(fault)
			if err := w.make(t, w.wanted()); err == nil {
				t.Fatal("it made the image")
			}
		}
	}
	return kills
}

// TestRemoves kills a process at each moment. The claim stops wanting its volume before the
// next process starts.
func TestRemoves(t *testing.T) {
	for crash, kill := range crashes() {
		for state, change := range unwanted() {
			t.Run(crash+"/"+state, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					kill(t, w)
					change(t, w)
					w.restart(t)
					w.visitAll(t)
					w.checkNothing(t)
					w.checkIntents(t)
				})
			})
		}
	}
}

// TestRemovesAfterItDied also kills the process that removes the image.
func TestRemovesAfterItDied(t *testing.T) {
	for name, fault := range map[string]rbdtest.FakeFault{
		"before it looks":       {Call: rbdtest.CallImage},
		"before it is removed":  {Call: rbdtest.CallRemoveImage},
		"while it is removed":   {Call: rbdtest.CallRemoveImage, HalfWay: true},
		"after it is removed":   {Call: rbdtest.CallRemoveImage, TakesEffect: true},
		"before the end":        {Call: rbdtest.CallFinishRemovals},
		"before it is cleared":  {Call: rbdtest.CallRemoveNotes},
		"after it is cleared":   {Call: rbdtest.CallRemoveNotes, TakesEffect: true},
		"before data is looked": {Call: rbdtest.CallWritten},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.mustMake(t)
				w.dropClaim(t)
				w.restart(t)
				w.ceph.FakeCrash(fault)
				if err := w.visit(t); !errors.Is(err, pools.ErrLeft) {
					t.Errorf("got %v, want %v", err, pools.ErrLeft)
				}
				w.restart(t)
				w.visitAll(t)
				w.checkNothing(t)
				w.checkIntents(t)
			})
		})
	}
}

// TestWaits: the claim still wants its volume, so the library makes it.
func TestWaits(t *testing.T) {
	for crash, kill := range crashes() {
		t.Run(crash, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				kill(t, w)
				noted := w.intents()
				w.restart(t)
				for range 3 {
					if err := w.visit(t); (err == nil) != (len(noted) == 0) || err != nil && !errors.Is(err, pools.ErrLeft) {
						t.Errorf("got %v with the intents %q", err, noted)
					}
					time.Sleep(5 * time.Minute) // of the bubble's clock
				}
				w.checkIntents(t, noted...)
				w.mustMake(t)
				w.checkMade(t)
				w.checkIntents(t, testImage)
				// The volume is not saved yet.
				w.dropClaim(t)
				w.visitAll(t)
				w.checkMade(t)
				w.checkIntents(t, testImage)
				checkSame(t, "the outcomes", nil, w.counted())
			})
		})
	}
}

// TestBound: the claim is bound to the volume that the image was made for, but the API
// server does not show that volume.
func TestBound(t *testing.T) {
	w := newWorld(t)
	w.mustMake(t)
	w.putClaim(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = testVolume })
	w.restart(t)
	if err := w.visit(t); !errors.Is(err, pools.ErrLeft) {
		t.Errorf("got %v, want %v", err, pools.ErrLeft)
	}
	w.checkMade(t)
	w.checkIntents(t, testImage)
}

// TestSaved: the volume was saved, but its intent was not cleared.
func TestSaved(t *testing.T) {
	for state, change := range unwanted() {
		t.Run(state, func(t *testing.T) {
			w := newWorld(t)
			w.mustMake(t)
			w.save(t, asItIs)
			change(t, w)
			w.restart(t)
			checkSame(t, "the visits", 1, w.visitAll(t))
			w.checkMade(t)
			w.checkIntents(t)
		})
	}
	for name, change := range map[string]func(*corev1.PersistentVolume){
		"by hand": func(*corev1.PersistentVolume) {},
		"by hand, for a CSI driver": func(pv *corev1.PersistentVolume) {
			pv.Annotations = nil
			pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: "rbd.csi.ceph.com", VolumeHandle: testImage,
				VolumeAttributes: map[string]string{"pool": testPool, "clusterID": "c", "staticVolume": "true"},
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mustMake(t)
			w.show(t, func(pv *corev1.PersistentVolume) { pv.Name = "by-hand"; change(pv) })
			w.dropClaim(t)
			w.restart(t)
			w.visitAll(t)
			w.checkMade(t)
			w.checkIntents(t)
		})
	}
}

// TestNotSaved shows volumes that are not of the image.
func TestNotSaved(t *testing.T) {
	for name, put := range map[string]func(*testing.T, *world){
		"in another Ceph cluster": func(t *testing.T, w *world) {
			w.save(t, func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnClusterFSID] = "other" })
		},
		"in another pool": func(t *testing.T, w *world) {
			w.save(t, func(pv *corev1.PersistentVolume) { pv.Spec.RBD.RBDPool = "other" })
		},
		// It was deleted, but the cache does not know that yet.
		"in the cache's memory": func(t *testing.T, w *world) { w.show(t, asItIs) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mustMake(t)
			put(t, w)
			w.dropClaim(t)
			w.restart(t)
			w.visitAll(t)
			w.checkNothing(t)
			w.checkIntents(t)
		})
	}
}

func marksWith(w *world, entries map[string]string) map[string]string {
	marks := w.wanted().Owner.Marks()
	maps.Copy(marks, entries)
	return marks
}

// TestLeavesAlone shows images that must not be removed.
func TestLeavesAlone(t *testing.T) {
	marks := func(w *world) map[string]string { return w.wanted().Owner.Marks() }
	without := func(*world) map[string]string { return nil }
	with := func(key, value string) func(*world) map[string]string {
		return func(w *world) map[string]string { return marksWith(w, map[string]string{key: value}) }
	}
	for _, test := range []struct {
		name     string
		size     uint64
		metadata func(*world) map[string]string
		change   func(*world)
		want     orphan.Outcome
	}{
		{"another volume's", gib, func(*world) map[string]string { return map[string]string{volume.MetaVolume: "pvc-other"} }, nil, orphan.OutcomeForeign},
		{"another cluster's", gib, with(volume.MetaCluster, "cluster-2"), nil, orphan.OutcomeForeign},
		{"another identity's", gib, with(volume.MetaIdentity, "there"), nil, orphan.OutcomeForeign},
		{"one of another size, without marks", 2 * gib, without, nil, orphan.OutcomeForeign},
		{"one of another size, with all marks", 2 * gib, marks, nil, orphan.OutcomeForeign},
		{"one of other features", gib, without, func(w *world) {
			w.ceph.FakeImages(func(i *rbd.Image) { i.Features = append(i.Features, "object-map") })
		}, orphan.OutcomeForeign},
		{"one with data", gib, marks, func(w *world) { w.ceph.Write(testPool, testImage) }, orphan.OutcomeForeign},
		{"one with data, without marks", gib, without, func(w *world) { w.ceph.Write(testPool, testImage) }, orphan.OutcomeForeign},
		{"one in use", gib, marks, func(w *world) { w.ceph.Watch(testPool, testImage, "10.0.1.1:0/1") }, orphan.OutcomeKept},
		{"one in use, without marks", gib, without, func(w *world) { w.ceph.Watch(testPool, testImage, "10.0.1.1:0/1") }, orphan.OutcomeKept},
		{"one with a snapshot", gib, marks, func(w *world) { w.ceph.AddSnapshot(testPool, testImage, "monday") }, orphan.OutcomeKept},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.seed(t, testImage, test.size, test.metadata(w))
			w.note(t, testIntent())
			if test.change != nil {
				test.change(w)
			}
			w.dropClaim(t)
			before, _ := w.ceph.Image(testPool, testImage)
			for range 3 {
				err := w.visit(t)
				checkSame(t, "that it is done", test.want == orphan.OutcomeForeign, err == nil)
				if err != nil && !errors.Is(err, pools.ErrLeft) {
					t.Errorf("got %v, want %v", err, pools.ErrLeft)
				}
			}
			after, _ := w.ceph.Image(testPool, testImage)
			checkSame(t, "the image", before, after)
			// It is counted once, however often it was looked at.
			checkSame(t, "the outcomes", []orphan.Outcome{test.want}, w.counted())
			if test.want == orphan.OutcomeForeign {
				w.checkIntents(t)
			} else {
				w.checkIntents(t, testImage)
			}
		})
	}
}

// TestAfterUse: a client that died still watches its image for a while.
func TestAfterUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.mustMake(t)
		stop := w.ceph.Watch(testPool, testImage, "10.0.1.1:0/1")
		time.AfterFunc(30*time.Second, stop)
		w.dropClaim(t)
		w.restart(t)
		checkSame(t, "the visits", 2, w.visitAll(t))
		w.checkNothing(t)
		w.checkIntents(t)
		checkSame(t, "the outcomes", []orphan.Outcome{orphan.OutcomeKept, orphan.OutcomeRemoved}, w.counted())
	})
}

// TestOthers: other Kubernetes clusters and identities that share the pool have
// journals of their own.
func TestOthers(t *testing.T) {
	for name, change := range map[string]func(*world){
		"another cluster":  func(w *world) { w.cluster = "cluster-2" },
		"another identity": func(w *world) { w.identity = "there" },
		"no journal":       func(w *world) { w.cluster = "" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mustMake(t)
			w.dropClaim(t)
			change(w)
			w.restart(t)
			checkSame(t, "the visits", 1, w.visitAll(t))
			w.checkIntents(t, testImage)

			w.cluster, w.identity = testCluster, testIdentity
			w.checkMade(t)
			w.restart(t)
			w.visitAll(t)
			w.checkNothing(t)
			w.checkIntents(t)
		})
	}
}

// TestLate: the call of a process that was halted, or one that an OSD held up, takes effect
// after a visit.
func TestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		crashes()["after the intent"](t, w)
		w.dropClaim(t)
		w.restart(t)
		for range 3 { // within a minute
			if err := w.visit(t); !errors.Is(err, pools.ErrLeft) {
				t.Errorf("got %v, want %v", err, pools.ErrLeft)
			}
			w.checkIntents(t, testImage)
			time.Sleep(absentFor / 4) // of the bubble's clock
		}
		w.seed(t, testImage, gib, nil)
		if err := w.visit(t); err != nil {
			t.Errorf("the image is not removed: %v", err)
		}
		w.checkNothing(t)
		w.checkIntents(t)
	})
}

// TestAbsentAtAStretch: the minute begins anew if the image appears meanwhile.
func TestAbsentAtAStretch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.note(t, testIntent())
		w.dropClaim(t)
		left := func() {
			t.Helper()
			if err := w.visit(t); !errors.Is(err, pools.ErrLeft) {
				t.Errorf("got %v, want %v", err, pools.ErrLeft)
			}
			time.Sleep(absentFor / 2) // of the bubble's clock
		}
		left()
		w.seed(t, testImage, gib, nil)
		stop := w.ceph.Watch(testPool, testImage, "10.0.1.1:0/1")
		left()
		stop()
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveImage, Err: errors.New("lost"), TakesEffect: true})
		left()
		left()
		left()
		if err := w.visit(t); err != nil {
			t.Errorf("got %v", err)
		}
		w.checkIntents(t)
	})
}
