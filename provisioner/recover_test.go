// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

func (f *fixture) location(t *testing.T) volume.Location {
	t.Helper()
	l, err := storageclass.ParseLocation(f.options.StorageClass.Parameters)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// recoverAll runs rounds until nothing is left to do, at most for an hour, and
// returns how many it took.
func (f *fixture) recoverAll(t *testing.T) int {
	t.Helper()
	r := f.newRecovery()
	for n := 1; n <= 12; n++ {
		if f.round(t, r) {
			return n
		}
		time.Sleep(recoverEvery)
	}
	t.Errorf("recovery is not done after an hour; the log:\n%s", strings.Join(f.logged(), "\n"))
	return 0
}

func (f *fixture) round(t *testing.T, r *recovery) bool {
	t.Helper()
	done := r.round(f.withLog(t.Context()))
	f.checkAfter(t, nil)
	return done
}

// crashes are the moments at which a process dies that makes the image.
func crashes() map[string]func(*testing.T, *fixture) {
	at := func(fault rbdtest.FakeFault) func(*testing.T, *fixture) {
		return func(t *testing.T, f *fixture) {
			fault.Err = errors.New("killed")
			f.ceph.Fake(fault)
			if _, _, err := f.provision(t.Context(), t); err == nil {
				t.Fatal("it made a volume")
			}
		}
	}
	return map[string]func(*testing.T, *fixture){
		"before the intent":  at(rbdtest.FakeFault{Call: rbdtest.CallSetNotes}),
		"after the intent":   at(rbdtest.FakeFault{Call: rbdtest.CallSetNotes, TakesEffect: true}),
		"before the image":   at(rbdtest.FakeFault{Call: rbdtest.CallCreateImage}),
		"in the image":       at(rbdtest.FakeFault{Call: rbdtest.CallCreateImage, HalfWay: true}),
		"after the image":    at(rbdtest.FakeFault{Call: rbdtest.CallCreateImage, TakesEffect: true}),
		"before the mark":    at(rbdtest.FakeFault{Call: rbdtest.CallSetMetadata}),
		"after the mark":     at(rbdtest.FakeFault{Call: rbdtest.CallSetMetadata, TakesEffect: true}),
		"before it is saved": func(t *testing.T, f *fixture) { f.mustProvision(t) },
	}
}

// TestRecover kills a process at each moment; nothing runs while the claim stops
// wanting its volume.
func TestRecover(t *testing.T) {
	for crash, kill := range crashes() {
		for state, change := range unwanted() {
			t.Run(crash+"/"+state, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t)
					kill(t, f)
					change(t, f)
					f.restart(t, false)
					f.recoverAll(t)
					f.checkNothing(t)
					f.checkIntents(t)
				})
			})
		}
	}
}

// TestRecoverAlive: the claim still wants its volume, which the library makes.
func TestRecoverAlive(t *testing.T) {
	for crash, kill := range crashes() {
		t.Run(crash, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				kill(t, f)
				noted := f.intents()
				f.restart(t, false)
				r := f.newRecovery()
				for range 3 {
					if done := f.round(t, r); done != (len(noted) == 0) {
						t.Errorf("the round was the last one: %v", done)
					}
					time.Sleep(recoverEvery)
				}
				f.checkIntents(t, noted...)
				checkSame(t, "the volume", f.wantVolume(), f.mustProvision(t))
				f.checkMade(t)
				f.checkIntents(t, testImage)
				// Whose volume is not saved yet.
				f.dropLive(t)
				f.recoverAll(t)
				f.checkMade(t)
				checkSame(t, "the outcomes", nil, f.journals.counted())
			})
		})
	}
}

// TestRecoverSaved: the volume was saved, and the intent not cleared.
func TestRecoverSaved(t *testing.T) {
	for state, change := range unwanted() {
		t.Run(state, func(t *testing.T) {
			f := newFixture(t)
			f.save(t, f.mustProvision(t))
			change(t, f)
			f.restart(t, false)
			checkSame(t, "the rounds", 1, f.recoverAll(t))
			f.checkMade(t)
			f.checkIntents(t)
		})
	}
	for name, change := range map[string]func(*corev1.PersistentVolume){
		"by hand, under another name": func(*corev1.PersistentVolume) {},
		"by hand, for a CSI driver":   asCSI,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			pv := f.mustProvision(t)
			pv.Name = "by-hand"
			change(pv)
			f.cacheVolume(t, pv)
			f.dropLive(t)
			f.restart(t, false)
			f.recoverAll(t)
			f.checkMade(t)
			f.checkIntents(t)
		})
	}
	t.Run("in another cluster", func(t *testing.T) {
		f := newFixture(t)
		pv := f.mustProvision(t)
		pv.Annotations[volume.AnnClusterFSID] = f.other.FSID()
		f.save(t, pv)
		f.dropLive(t)
		f.restart(t, false)
		f.recoverAll(t)
		f.checkNothing(t)
		f.checkIntents(t)
	})
}

// TestRecoverLeavesAlone is about images that recovery must not remove.
func TestRecoverLeavesAlone(t *testing.T) {
	for _, test := range []struct {
		name     string
		size     uint64
		metadata map[string]string
		change   func(*fixture)
		want     Outcome
	}{
		{"another volume's", 1 << 30, map[string]string{metaVolume: "pvc-other"}, nil, OutcomeForeign},
		{"another cluster's", 1 << 30, marksWith(map[string]string{volume.MetaCluster: "cluster-2"}), nil, OutcomeForeign},
		{"another identity's", 1 << 30, map[string]string{metaVolume: "pvc-1234", metaIdentity: "there"}, nil, OutcomeForeign},
		{"one of another size, without marks", 2 << 30, nil, nil, OutcomeForeign},
		{"one of another size, with all marks", 2 << 30, testMarks(), nil, OutcomeForeign},
		{"one of other features", 1 << 30, nil, func(f *fixture) {
			f.connector.show = func(i *rbd.Image) { i.Features = append(i.Features, "object-map") }
		}, OutcomeForeign},
		{"one with data", 1 << 30, testMarks(), func(f *fixture) { f.ceph.Write(testPool, testImage) }, OutcomeForeign},
		{"one in use", 1 << 30, testMarks(), func(f *fixture) { f.ceph.Watch(testPool, testImage, "10.0.1.1:0/1") }, OutcomeKept},
		{"one in use, without marks", 1 << 30, nil, func(f *fixture) { f.ceph.Watch(testPool, testImage, "10.0.1.1:0/1") }, OutcomeKept},
		{"one with a snapshot", 1 << 30, testMarks(), func(f *fixture) { f.ceph.AddSnapshot(testPool, testImage, "monday") }, OutcomeKept},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t)
			f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: test.size}, test.metadata)
			f.note(t, testIntent())
			if test.change != nil {
				test.change(f)
			}
			f.dropLive(t)
			before, _ := f.ceph.Image(testPool, testImage)
			done := f.round(t, f.newRecovery())
			after, _ := f.ceph.Image(testPool, testImage)
			checkSame(t, "the image", before, after)
			checkSame(t, "the outcomes", []Outcome{test.want}, f.journals.counted())
			checkSame(t, "that it is done", test.want == OutcomeForeign, done)
			if done {
				f.checkIntents(t)
			} else {
				f.checkIntents(t, testImage)
			}
		})
	}
}

// TestRecoverAfterUse: a client that died is a watcher for a while.
func TestRecoverAfterUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.mustProvision(t)
		stop := f.ceph.Watch(testPool, testImage, "10.0.1.1:0/1")
		time.AfterFunc(30*time.Second, stop)
		f.dropLive(t)
		f.restart(t, false)
		checkSame(t, "the rounds", 2, f.recoverAll(t))
		f.checkNothing(t)
		f.checkIntents(t)
		checkSame(t, "the outcomes", []Outcome{OutcomeKept, OutcomeRemoved}, f.journals.counted())
	})
}

// TestRecoverOthers: other Kubernetes clusters and identities that share the pool
// have journals of their own.
func TestRecoverOthers(t *testing.T) {
	for name, change := range map[string]func(*journalFixture){
		"another cluster":  func(j *journalFixture) { j.clusterUID = "cluster-2" },
		"another identity": func(j *journalFixture) { j.identity = "there" },
		"no journal":       func(j *journalFixture) { j.clusterUID = "" },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.mustProvision(t)
			f.dropLive(t)
			here := f.journals
			change(&f.journals)
			f.restart(t, false)
			if f.hasJournal() {
				f.recoverAll(t)
			}
			f.checkMade(t)
			f.checkIntents(t, testImage)

			f.journals = here
			f.restart(t, false)
			f.recoverAll(t)
			f.checkNothing(t)
			f.checkIntents(t)
		})
	}
}

// TestRecoverLate: a process that was stopped, or an OSD, goes on after recovery
// looked.
func TestRecoverLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		crashes()["after the intent"](t, f)
		f.dropLive(t)
		f.restart(t, false)
		r := f.newRecovery()
		for range 3 { // Soon after one another.
			if f.round(t, r) {
				t.Error("the intent is not waited with")
			}
			f.checkIntents(t, testImage)
			time.Sleep(absentFor / 4)
		}
		f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, nil)
		if !f.round(t, r) {
			t.Error("the image is not removed")
		}
		f.checkNothing(t)
		f.checkIntents(t)
	})
}
