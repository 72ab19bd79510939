// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// silence is how long a call waits in vain, as with librados.
const silence = 15 * time.Second

// FakeSilence has monitors that do not answer for as long as librados waits. The cluster
// in memory would report that at once.
type FakeSilence struct {
	rbd.Connector
	silent   atomic.Bool
	monitor  string
	connects atomic.Int32
}

func (f *FakeSilence) Connect(ctx context.Context, creds rbd.Credentials) (rbd.Cluster, error) {
	if creds.MonHost() == f.monitor {
		f.connects.Add(1)
		if f.silent.Load() {
			time.Sleep(silence)
			return nil, fmt.Errorf("connect to monitors %q: %w", creds.MonHost(), rbd.ErrUnreachable)
		}
	}
	cluster, err := f.Connector.Connect(ctx, creds)
	return FakeSilentOSDs{cluster}, err
}

// gated is an Access to the clusters "10.0.0.1" and "10.0.0.2", which have the pools "a"
// and "b".
type gated struct {
	*access.Access
	t         *testing.T
	client    *fake.Clientset
	one, two  *rbdtest.Cluster
	connector *FakeSilence // of the first one
	leaseLost atomic.Bool
	observed  []string // the calls that Config.Observe got
}

func newGated(t *testing.T, workers int) *gated {
	t.Helper()
	g := &gated{t: t, one: rbdtest.NewCluster("10.0.0.1:6789"), two: rbdtest.NewCluster("10.0.0.2:6789")}
	g.connector = &FakeSilence{Connector: rbdtest.NewConnector(g.one, g.two), monitor: "10.0.0.1"}
	client := fake.NewClientset()
	g.client = client
	for name, c := range map[string]*rbdtest.Cluster{"10.0.0.1": g.one, "10.0.0.2": g.two} {
		c.AddPool("a")
		c.AddPool("b")
		key := c.AddUser("admin", rbdtest.Caps{AllPools: true}).Key.Reveal()
		_, err := client.CoreV1().Secrets("ns").Create(t.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
			Data:       map[string][]byte{"key": []byte(key)},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	var mu sync.Mutex // guards g.observed
	g.Access, err = access.New(access.Config{
		Secrets: client.CoreV1(), Connector: g.connector, Workers: workers,
		Lease: lease.New(func() bool { return !g.leaseLost.Load() }),
		Observe: func(op string, d time.Duration, err error) {
			mu.Lock()
			defer mu.Unlock()
			g.observed = append(g.observed, fmt.Sprintf("%s %v %v", op, d, errors.Is(err, rbd.ErrTimeout)))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// addUser makes a user of the first cluster, whose secret has the user's name, or replaces
// its key and caps.
func (g *gated) addUser(name string, caps rbdtest.Caps) {
	g.t.Helper()
	key := g.one.AddUser(name, caps).Key.Reveal()
	secrets := g.client.CoreV1().Secrets("ns")
	made := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Data: map[string][]byte{"key": []byte(key)}}
	_, err := secrets.Create(g.t.Context(), made, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = secrets.Update(g.t.Context(), made, metav1.UpdateOptions{})
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

func at(host, pool string) volume.Location {
	return volume.Location{
		Monitors: []volume.Monitor{{Host: host}}, Pool: pool, User: "admin",
		Secret: volume.SecretRef{Namespace: "ns", Name: host},
	}
}

// create opens a pool and makes an image, as the provisioner does for a claim.
func (g *gated) create(ctx context.Context, l volume.Location, image string) error {
	pool, err := g.Open(ctx, l)
	if err != nil {
		return err
	}
	defer pool.Close()
	return pool.CreateImage(ctx, image, rbd.ImageSpec{SizeBytes: 1})
}

// took runs f and returns its error and how long it took.
func took(f func() error) (time.Duration, error) {
	begin := time.Now()
	err := f()
	return time.Since(begin), err
}

// While one operation tries, others fail at once, with an error text that does not vary.
func TestOneTriesWhereNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, 100)
		ctx, l := t.Context(), at("10.0.0.1", "a")
		g.connector.silent.Store(true)
		if err := g.create(ctx, l, "first"); !errors.Is(err, rbd.ErrUnreachable) {
			t.Fatalf("got %v", err)
		}

		var ended sync.WaitGroup
		tried, refused := new(atomic.Int32), new(atomic.Int32)
		texts := new(sync.Map)
		for i := range 250 {
			ended.Go(func() {
				d, err := took(func() error { return g.create(ctx, l, fmt.Sprint(i)) })
				switch {
				case !errors.Is(err, rbd.ErrUnreachable):
					t.Errorf("got %v, want %v", err, rbd.ErrUnreachable)
				case d == silence:
					tried.Add(1)
				case d == 0:
					refused.Add(1)
					texts.Store(err.Error(), true)
				default:
					t.Errorf("it took %v", d)
				}
			})
		}
		ended.Wait()
		if tried.Load() != 1 || refused.Load() != 249 {
			t.Errorf("%d tried and %d were refused, want 1 and 249", tried.Load(), refused.Load())
		}
		const want = `pool "a", monitors "10.0.0.1", user "admin": no answer lately (no monitor answered): only one attempt at a time is made, ` +
			`and this one waits its turn: check the monitors' addresses in the StorageClass, that Ceph is up and, if it is, the key`
		texts.Range(func(text, _ any) bool {
			if text != want {
				t.Errorf("got %q, want %q", text, want)
			}
			return true
		})

		// The first answer lets all through.
		g.connector.silent.Store(false)
		if err := g.create(ctx, l, "again"); err != nil {
			t.Fatal(err)
		}
		for i := range 250 {
			ended.Go(func() {
				if err := g.create(ctx, l, fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			})
		}
		ended.Wait()
	})
}

// A call whose failure says nothing about the cluster does not stop others.
func TestWhatCountsAsSilence(t *testing.T) {
	for _, test := range []struct {
		name string
		// work makes a call that gets no answer in time.
		work func(context.Context, *access.Pool) error
		want bool // others are refused
	}{
		{"making an image", func(ctx context.Context, p *access.Pool) error {
			return p.CreateImage(ctx, "x", rbd.ImageSpec{SizeBytes: 1})
		}, true},
		{"looking at one", func(ctx context.Context, p *access.Pool) error {
			_, err := p.Image(ctx, "x")
			return err
		}, true},
		{"writing whose it is", func(ctx context.Context, p *access.Pool) error {
			return p.SetMetadata(ctx, "x", map[string]string{"a": "b"})
		}, true},
		{"removing one, which may take long", func(ctx context.Context, p *access.Pool) error {
			return p.RemoveImage(ctx, "x")
		}, false},
		{"going on with that, which may take long, too", func(ctx context.Context, p *access.Pool) error {
			return p.FinishRemovals(ctx, "x")
		}, false},
		{"removing one from the trash", func(ctx context.Context, p *access.Pool) error {
			return p.RemoveTrashed(ctx, "x")
		}, false},
		{"flattening one", func(ctx context.Context, p *access.Pool) error {
			return p.FlattenImage(ctx, "x")
		}, false},
		{"asking the manager, which may be down alone", func(ctx context.Context, p *access.Pool) error {
			return p.HandOverTrashed(ctx, "x")
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGated(t, 100)
				ctx, l := t.Context(), at("10.0.0.1", "a")
				pool, err := g.Open(ctx, l)
				if err != nil {
					t.Fatal(err)
				}
				release := g.hold()
				if err := test.work(ctx, pool); !errors.Is(err, rbd.ErrTimeout) {
					t.Fatalf("got %v, want %v", err, rbd.ErrTimeout)
				}
				pool.Close()

				probe, err := g.Open(ctx, l)
				if err != nil {
					t.Fatalf("the first one may try: %v", err)
				}
				defer probe.Close()
				_, err = g.OpenForVolume(ctx, l)
				if refused := errors.Is(err, rbd.ErrTimeout); refused != test.want || !test.want && err != nil {
					t.Errorf("the second one: got %v", err)
				}
				// Another pool of the cluster may work.
				other, err := g.Open(ctx, at("10.0.0.1", "b"))
				if err != nil {
					t.Fatalf("another pool: %v", err)
				}
				other.Close()
				release()
				synctest.Wait()
			})
		})
	}
}

// hold lets calls on images wait until somebody calls release.
func (g *gated) hold() (release func()) {
	held := make(chan struct{})
	for _, call := range []rbdtest.Call{
		rbdtest.CallCreateImage, rbdtest.CallImage, rbdtest.CallSetMetadata, rbdtest.CallRemoveImage,
		rbdtest.CallFinishRemovals, rbdtest.CallRemoveTrashed, rbdtest.CallFlattenImage, rbdtest.CallHandOverTrashed,
	} {
		g.one.Fake(rbdtest.FakeFault{Call: call, Before: func() { <-held }, Times: 1000})
	}
	return func() { close(held) }
}

// One image that hangs does not stop work on others.
func TestOneSlowImageStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, 100)
		ctx, l := t.Context(), at("10.0.0.1", "a")
		held := make(chan struct{})
		g.one.Fake(rbdtest.FakeFault{Call: rbdtest.CallCreateImage, Image: "slow", Before: func() { <-held }})
		ended := make(chan error)
		go func() { ended <- g.create(ctx, l, "slow") }()
		synctest.Wait()
		time.Sleep(time.Second)
		if err := g.create(ctx, l, "quick"); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, rbd.ErrTimeout) {
			t.Errorf("got %v, want %v", err, rbd.ErrTimeout)
		}
		for range 2 {
			pool, err := g.Open(ctx, l)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
		}
		close(held)
		synctest.Wait()
	})
}

// At most half of the workers try routes that do not answer, however many there are.
func TestAttemptsHaveALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, 4)
		ctx := t.Context()
		g.connector.silent.Store(true)
		location := func(i int) volume.Location { return at("10.0.0.1", fmt.Sprint("pool-", i)) }
		for i := range 4 {
			if err := g.create(ctx, location(i), "x"); !errors.Is(err, rbd.ErrUnreachable) {
				t.Fatal(err)
			}
		}
		before := g.connector.connects.Load()
		var ended sync.WaitGroup
		for i := range 4 {
			ended.Go(func() { _ = g.create(ctx, location(i), "x") })
		}
		ended.Wait()
		if tried := g.connector.connects.Load() - before; tried != 2 {
			t.Errorf("%d tried, want half of the workers", tried)
		}
	})
}

// The gate remembers an outage on a route for as long as an operation is inside.
func TestSilenceIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, 4)
		ctx, l := t.Context(), at("10.0.0.1", "a")
		pool := g.mustOpen(t)
		g.one.Fake(rbdtest.FakeFault{Call: rbdtest.CallCreateImage, Err: rbd.ErrTimeout})
		_ = pool.CreateImage(ctx, "x", rbd.ImageSpec{SizeBytes: 1})
		time.Sleep(time.Hour)
		probe, err := g.Open(ctx, l)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Open(ctx, l); !errors.Is(err, rbd.ErrTimeout) {
			t.Errorf("got %v beside a probe, want ErrTimeout", err)
		}
		probe.Close()
	})
}

// The gate forgets an outage that nobody asked about for a while.
func TestSilenceIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, 4)
		ctx, l := t.Context(), at("10.0.0.1", "a")
		g.connector.silent.Store(true)
		_ = g.create(ctx, l, "x")
		time.Sleep(time.Hour)
		g.connector.silent.Store(false)
		for range 2 {
			pool, err := g.Open(ctx, l)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
		}
	})
}
