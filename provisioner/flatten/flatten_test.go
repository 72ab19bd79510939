// SPDX-License-Identifier: Apache-2.0

package flatten_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/flatten"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

const source = "source"

// world is a running Queue, and a cluster whose pools have an image named source.
type world struct {
	*flatten.Queue
	ceph      *rbdtest.Cluster
	client    *fake.Clientset
	access    *access.Access
	leaseLost atomic.Bool
	// stop ends the Queue.
	stop func()

	mu        sync.Mutex // guards the fields below
	logs      []string
	flattened []string // pool and parent of each
	running   map[string]int
	most      map[string]int // at the same time
}

// inWorld calls test in a bubble in which a Queue runs.
func inWorld(t *testing.T, test func(t *testing.T, w *world), pools ...string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{ceph: rbdtest.NewCluster("10.0.0.1:6789"), running: map[string]int{}, most: map[string]int{}, stop: func() {}}
		key := w.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}).Key
		w.client = fake.NewClientset(secret("admin", key))
		var err error
		w.access, err = access.New(access.Config{
			Secrets: w.client.CoreV1(), Connector: w.ceph, Lease: lease.New(func() bool { return !w.leaseLost.Load() }),
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, pool := range append(pools, "rbd") {
			w.ceph.AddPool(pool)
			w.inPool(t, pool, func(open *access.Pool) error {
				return open.CreateImage(t.Context(), source, rbd.ImageSpec{SizeBytes: 1 << 30})
			})
			w.ceph.Fill(pool, source, "what the source has")
		}
		w.restart(t)
		defer func() {
			w.stop()
			if n := w.ceph.Open(); n != 0 {
				t.Errorf("%d connections and pools were not closed", n)
			}
		}()
		test(t, w)
	})
}

// restart replaces the Queue, as a new process does.
func (w *world) restart(t *testing.T) {
	t.Helper()
	w.stop()
	queue, err := flatten.New(flatten.Config{Access: w.access, Cluster: "cluster-1", Flattened: func(pool volume.PoolID, parent string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.flattened = append(w.flattened, pool.Pool+"/"+parent)
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.Queue = queue
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), funcr.New(func(_, line string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.logs = append(w.logs, line)
	}, funcr.Options{})))
	var run sync.WaitGroup
	run.Go(func() { queue.Run(ctx) })
	w.stop = func() { cancel(); run.Wait() }
}

func location(pool string) volume.Location {
	return volume.Location{
		Monitors: []volume.Monitor{{Host: "10.0.0.1"}}, Pool: pool, User: "admin",
		Secret: volume.SecretRef{Namespace: "kube-system", Name: "admin"},
	}
}

// inPool calls do, which must not fail, with an open pool.
func (w *world) inPool(t *testing.T, pool string, do func(pool *access.Pool) error) {
	t.Helper()
	open, err := w.access.Open(t.Context(), location(pool))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := do(open); err != nil {
		t.Fatal(err)
	}
}

// request asks for a clone to be flattened, as an attempt for its claim does.
func (w *world) request(pool, name string) error {
	parent, _ := w.ceph.Image(pool, source)
	return w.Request(volume.PoolID{FSID: w.ceph.FSID(), Pool: pool}.Image(name), location(pool), parent.ID)
}

// clone makes a clone and asks for it to be flattened.
func (w *world) clone(t *testing.T, pool, name string) {
	t.Helper()
	w.ceph.Clone(pool, source, name)
	if err := w.request(pool, name); !errors.Is(err, flatten.ErrFlattening) || err.Error() != flatten.ErrFlattening.Error() {
		t.Errorf("got %v", err)
	}
}

// takesAnHour makes flattening a clone take an hour, and counts it meanwhile.
func (w *world) takesAnHour(pool, name string) {
	count := func(by int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, where := range []string{pool, ""} {
			w.running[where] += by
			w.most[where] = max(w.most[where], w.running[where])
		}
	}
	w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallFlattenImage, Image: "flattening " + name, Before: func() {
		count(1)
		time.Sleep(time.Hour) // of the bubble's clock
		count(-1)
	}})
}

// pass lets time pass.
func (w *world) pass(length time.Duration) {
	time.Sleep(length) // of the bubble's clock
	synctest.Wait()
}

func checkSame[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// checkFlattened checks whether a clone depends on no other image, and has its data.
func (w *world) checkFlattened(t *testing.T, pool, name string, want bool) {
	t.Helper()
	image, _ := w.ceph.Image(pool, name)
	checkSame(t, name+" was flattened", want, image.Parent == "")
	checkSame(t, "what "+name+" has", "what the source has", w.ceph.Data(pool, name))
}

func (w *world) countLog(text string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, line := range w.logs {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (w *world) checkTold(t *testing.T, want ...string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	checkSame(t, "what was told of", want, w.flattened)
}

// checkMost checks how many clones of a pool, or of all, were flattened at the same time.
func (w *world) checkMost(t *testing.T, pool string, want int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	checkSame(t, "the most at the same time", want, w.most[pool])
}

func TestNew(t *testing.T) {
	if _, err := flatten.New(flatten.Config{}); err == nil {
		t.Error("it needs nothing")
	}
}

// TestFlatten: a clone is flattened once, however often that is requested, also after a
// restart.
func TestFlatten(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		inWorld(t, func(t *testing.T, w *world) {
			if restarted {
				w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallImage, Err: errors.New("killed")})
			}
			w.clone(t, "rbd", "clone")
			checkSame(t, "the clones to flatten", 1, w.Count())
			if restarted {
				w.pass(0)
				w.restart(t)
				checkSame(t, "the clones to flatten", 0, w.Count())
				_ = w.request("rbd", "clone") // its result is checked above
			}
			_ = w.request("rbd", "clone")
			w.pass(time.Minute)
			checkSame(t, "the clones to flatten", 0, w.Count())
			w.checkFlattened(t, "rbd", "clone", true)
			parent, _ := w.ceph.Image("rbd", source)
			w.checkTold(t, "rbd/"+parent.ID)
			checkSame(t, "the log of it", 1, w.countLog("Clone flattened"))
		})
	}
}

// TestFlattenGone: a claim and its clone go before the clone is flattened, or meanwhile.
func TestFlattenGone(t *testing.T) {
	for name, after := range map[string]time.Duration{"before it begins": 0, "once it has begun": time.Minute} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				if after > 0 {
					w.takesAnHour("rbd", "clone")
				} else {
					w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallOpenPool, Err: rbd.ErrUnreachable})
				}
				w.clone(t, "rbd", "clone")
				w.pass(after)
				w.inPool(t, "rbd", func(pool *access.Pool) error { return pool.RemoveImage(t.Context(), "clone") })
				w.pass(2 * time.Hour) // until the call has ended
				checkSame(t, "the clones to flatten", 0, w.Count())
				w.checkTold(t)
			})
		})
	}
}

// TestFlattenFails: the claim gets the failure, and the clone is tried again without a
// second line in the log.
func TestFlattenFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallFlattenImage, Err: rbd.ErrPoolFull, Times: 5})
		w.clone(t, "rbd", "clone")
		w.pass(10 * time.Second)
		err := w.request("rbd", "clone")
		const want = `flatten image "clone" in pool "rbd": pool is full or over its quota`
		if !errors.Is(err, flatten.ErrFlattening) || !errors.Is(err, rbd.ErrPoolFull) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		w.checkFlattened(t, "rbd", "clone", false)
		w.pass(work.RetryCap)
		w.checkFlattened(t, "rbd", "clone", true)
		checkSame(t, "the log of it", 1, w.countLog("Flattening a clone"))
	})
}

// TestFlattenFailsAlone: a clone that can't be flattened does not delay others, nor do they
// delay its retries.
func TestFlattenFailsAlone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallFlattenImage, Image: "flattening bad", Err: rbd.ErrPoolFull, Times: 10})
		w.clone(t, "rbd", "bad")
		w.clone(t, "rbd", "a")
		w.pass(2 * time.Minute)
		w.checkFlattened(t, "rbd", "a", true)
		w.clone(t, "rbd", "b")
		w.pass(time.Second)
		w.checkFlattened(t, "rbd", "b", true)
		w.checkFlattened(t, "rbd", "bad", false)
		checkSame(t, "the clones to flatten", 1, w.Count())
		w.pass(time.Hour)
		w.checkFlattened(t, "rbd", "bad", true)
	})
}

// TestFlattenOneAtATime: the clones of one pool come one after the other, in the order of
// the requests, however long one takes.
func TestFlattenOneAtATime(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i, name := range []string{"a", "b", "c", "d"} {
			w.takesAnHour("rbd", name)
			w.clone(t, "rbd", name)
			checkSame(t, "the clones to flatten", i+1, w.Count())
		}
		w.pass(150 * time.Minute)
		for name, done := range map[string]bool{"a": true, "b": true, "c": false, "d": false} {
			w.checkFlattened(t, "rbd", name, done)
		}
		w.pass(3 * time.Hour)
		checkSame(t, "the clones to flatten", 0, w.Count())
		w.checkMost(t, "rbd", 1)
		checkSame(t, "the log of each", 4, w.countLog("Flattening a clone"))
	})
}

// TestFlattenRetriesInTurn: a clone that failed comes before those of later requests, but
// not while another one is being flattened.
func TestFlattenRetriesInTurn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallFlattenImage, Image: "flattening a", Err: rbd.ErrPoolFull})
		for _, name := range []string{"a", "b", "c"} {
			w.takesAnHour("rbd", name)
			w.clone(t, "rbd", name)
		}
		for hours, done := range []map[string]bool{{"a": false, "b": false, "c": false}, {"b": true, "a": false}, {"a": true, "c": false}, {"c": true}} {
			w.pass(time.Duration(min(hours, 1))*time.Hour + time.Minute)
			for name, want := range done {
				w.checkFlattened(t, "rbd", name, want)
			}
		}
		w.checkMost(t, "rbd", 1)
	})
}

// TestFlattenInManyPools: large clones in some pools delay those in others by no more than
// the time of a call.
func TestFlattenInManyPools(t *testing.T) {
	var pools []string
	for i := range 9 {
		pools = append(pools, fmt.Sprint("pool-", i))
	}
	inWorld(t, func(t *testing.T, w *world) {
		for _, pool := range pools {
			name := "of-" + pool
			w.takesAnHour(pool, name)
			w.clone(t, pool, name)
		}
		w.clone(t, "rbd", "small")
		w.pass(10 * time.Minute)
		w.checkFlattened(t, "rbd", "small", true)
		w.checkMost(t, "", len(pools))
		w.pass(2 * time.Hour)
		checkSame(t, "the clones to flatten", 0, w.Count())
	}, pools...)
}

// TestFlattenOfAnotherCluster: a clone that was handed to another Kubernetes cluster while
// it waited is left alone.
func TestFlattenOfAnotherCluster(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ceph.Clone("rbd", source, "clone")
		w.inPool(t, "rbd", func(pool *access.Pool) error {
			return pool.SetMetadata(t.Context(), "clone", map[string]string{volume.MetaCluster: "cluster-2"})
		})
		_ = w.request("rbd", "clone")
		w.pass(time.Minute)
		w.checkFlattened(t, "rbd", "clone", false)
		if err := w.request("rbd", "clone"); !errors.Is(err, flatten.ErrFlattening) || !strings.Contains(err.Error(), "another Kubernetes cluster") {
			t.Errorf("got %v", err)
		}
	})
}

// TestFlattenMayNot: a pool whose monitors belong to another Ceph cluster by now is left
// alone; and a replica that may not lead leaves every pool alone.
func TestFlattenMayNot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ceph.Clone("rbd", source, "clone")
		image := volume.PoolID{FSID: "another", Pool: "rbd"}.Image("clone")
		_ = w.Request(image, location("rbd"), "12ab")
		w.pass(time.Minute)
		w.checkFlattened(t, "rbd", "clone", false)
		if err := w.Request(image, location("rbd"), "12ab"); !errors.Is(err, access.ErrOtherCluster) {
			t.Errorf("got %v", err)
		}

		w.leaseLost.Store(true)
		_ = w.request("rbd", "clone")
		w.pass(time.Minute)
		w.checkFlattened(t, "rbd", "clone", false)
		if err := w.request("rbd", "clone"); !errors.Is(err, lease.ErrNotLeading) {
			t.Errorf("got %v", err)
		}
	})
}
