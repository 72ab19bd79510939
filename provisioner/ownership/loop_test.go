// SPDX-License-Identifier: Apache-2.0

package ownership_test

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/ownership"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	here     = "uid-here"
	there    = "uid-there"
	testName = "ceph.com/rbd"
	pool     = "rbd"
	image    = "kubernetes-dynamic-pvc-1234"
	monitor  = "10.0.0.1:6789"
	patience = 10 * time.Second
)

// fixture is a Loop with the Kubernetes and the Ceph cluster around it, and a volume
// that is bound and whose image exists.
type fixture struct {
	*testing.T
	ceph    *rbdtest.Cluster
	client  *fake.Clientset
	factory informers.SharedInformerFactory
	events  *record.FakeRecorder
	guard   *lease.Guard
	leading atomic.Bool
	loop    *ownership.Loop
}

// newFixture makes the world with an image of those marks; change changes the volume.
func newFixture(t *testing.T, marks map[string]string, change func(*corev1.PersistentVolume)) *fixture {
	t.Helper()
	f := &fixture{T: t, ceph: rbdtest.NewCluster(monitor), events: record.NewFakeRecorder(10)}
	f.leading.Store(true)
	f.guard = lease.New(f.leading.Load)
	f.ceph.AddPool(pool)
	admin := f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true})
	f.inPool(func(p rbd.Pool) error {
		err := p.CreateImage(t.Context(), image, rbd.ImageSpec{SizeBytes: 1 << 30})
		if err == nil && len(marks) > 0 {
			err = p.SetMetadata(t.Context(), image, marks)
		}
		return err
	})
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", UID: "uid", Annotations: map[string]string{
		volume.AnnProvisionedBy: testName,
	}}}
	volume.Record{
		Identity: testName, FSID: f.ceph.FSID(), Monitors: []string{monitor}, Pool: pool, Image: image,
		Admin: "admin", AdminSecret: volume.SecretRef{Namespace: "kube-system", Name: "admin"},
	}.Write(pv)
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "apps", Name: "data"}
	pv.Status.Phase = corev1.VolumeBound
	if change != nil {
		change(pv)
	}
	f.client = fake.NewClientset([]runtime.Object{pv, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "admin"},
		Data:       map[string][]byte{access.KeyEntry: []byte(admin.Key.Reveal())},
	}}...)
	f.factory = informers.NewSharedInformerFactory(f.client, 0)
	open, err := access.New(access.Config{Secrets: f.client.CoreV1(), Connector: rbdtest.NewConnector(f.ceph), Lease: f.guard})
	f.must(err)
	f.loop, err = ownership.NewLoop(ownership.Config{
		Keeper:  ownership.Keeper{Identity: testName, Cluster: here},
		Volumes: access.Volumes{Access: open, Classes: f.factory.Storage().V1().StorageClasses().Lister(), Provisioner: testName},
		Client:  f.client.CoreV1(),
		Cache:   f.factory.Core().V1().PersistentVolumes(),
		Events:  f.events,
		Lease:   f.guard,
	})
	f.must(err)
	f.factory.Core().V1().PersistentVolumes().Informer()
	f.factory.StartWithContext(t.Context())
	f.factory.WaitForCacheSync(t.Context().Done())
	return f
}

// run runs the loop until the test ends.
func (f *fixture) run() {
	ctx, cancel := context.WithCancel(f.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); f.loop.Run(ctx) }()
	f.Cleanup(func() {
		cancel()
		<-ended
	})
}

func (f *fixture) inPool(work func(rbd.Pool) error) {
	f.Helper()
	cluster, err := f.ceph.Connect(f.Context(), f.ceph.AddUser("somebody", rbdtest.Caps{AllPools: true}))
	f.must(err)
	defer cluster.Close()
	p, err := cluster.OpenPool(f.Context(), pool)
	f.must(err)
	defer p.Close()
	f.must(work(p))
}

func (f *fixture) marks() map[string]string {
	i, _ := f.ceph.Image(pool, image)
	return i.Metadata
}

func (f *fixture) volume() *corev1.PersistentVolume {
	f.Helper()
	pv, err := f.client.CoreV1().PersistentVolumes().Get(f.Context(), "pv", metav1.GetOptions{})
	f.must(err)
	return pv
}

func (f *fixture) eventually(what string, condition func() bool) {
	f.Helper()
	err := wait.PollUntilContextTimeout(f.Context(), 10*time.Millisecond, patience, true, func(context.Context) (bool, error) {
		return condition(), nil
	})
	if err != nil {
		f.Fatalf("%s: %v", what, err)
	}
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) change(change func(*corev1.PersistentVolume)) {
	f.Helper()
	pv := f.volume()
	change(pv)
	_, err := f.client.CoreV1().PersistentVolumes().Update(f.Context(), pv, metav1.UpdateOptions{})
	f.must(err)
}

func full(cluster string) map[string]string {
	return volume.Owner{Volume: "pv", Identity: testName, Cluster: cluster}.Marks()
}

// Images of bound volumes that belong to nobody, or to this cluster, or are handed over,
// are this cluster's in the end, and their volumes say so.
func TestOwn(t *testing.T) {
	for _, test := range []struct {
		name   string
		marks  map[string]string
		change func(*corev1.PersistentVolume)
		want   map[string]string
		event  string
	}{
		{"the retired provisioner's", nil, nil, map[string]string{volume.MetaCluster: here}, ""},
		{"an earlier version's", full(""), nil, full(here), ""},
		{"one that is marked, its volume not", full(here), nil, full(here), ""},
		{"one that was handed over", full(there), func(pv *corev1.PersistentVolume) {
			pv.Annotations[volume.AnnKubernetesCluster], pv.Annotations[volume.AnnFormerCluster] = there, there
		}, withClaim(full(here)), `Normal ImageTakenOver image "` + image + `" in pool "rbd" belonged to the Kubernetes cluster whose ` +
			`namespace kube-system has the UID "uid-there"`},
		{"one of another name that was handed over", volume.Owner{Volume: "old", Identity: "old", Cluster: there}.Marks(), func(pv *corev1.PersistentVolume) {
			pv.Annotations[volume.AnnFormerCluster] = there
		}, withClaim(full(here)), "Normal ImageTakenOver"},
		{"one of this cluster under another name", volume.Owner{Volume: "old", Identity: testName, Cluster: here}.Marks(), func(pv *corev1.PersistentVolume) {
			pv.Annotations[volume.AnnKubernetesCluster], pv.Annotations[volume.AnnFormerCluster] = here, here
		}, withClaim(full(here)), "Normal ImageTakenOver"},
		{"one that was handed over before", full(here), func(pv *corev1.PersistentVolume) {
			pv.Annotations[volume.AnnKubernetesCluster], pv.Annotations[volume.AnnFormerCluster] = here, there
		}, full(here), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, test.marks, test.change)
			f.run()
			f.eventually("the volume says that its image is marked", func() bool {
				pv := f.volume()
				_, former := pv.Annotations[volume.AnnFormerCluster]
				return pv.Annotations[volume.AnnKubernetesCluster] == here && !former
			})
			if diff := gocmp.Diff(test.want, f.marks()); diff != "" {
				t.Errorf("marks (-want +got):\n%s", diff)
			}
			event := ""
			select {
			case event = <-f.events.Events:
			default:
			}
			if (event == "") != (test.event == "") || !strings.Contains(event, test.event) {
				t.Errorf("got the event %q, want %q", event, test.event)
			}
		})
	}
}

func withClaim(marks map[string]string) map[string]string {
	marks[volume.MetaClaim], marks[volume.MetaClaimNamespace] = "data", "apps"
	return marks
}

// Images of others stay as they are, whatever a copy of the volume says; people are told
// once, and the hand-over is taken up when somebody writes it down.
func TestForeign(t *testing.T) {
	for _, test := range []struct {
		name   string
		marks  map[string]string
		change func(*corev1.PersistentVolume)
		event  string
	}{
		{"another cluster's", full(there), nil, `has the UID "uid-there": it is left alone; if it is to be this volume's from now on, ` +
			`run: kubectl annotate --overwrite pv pv rbd.ceph.com/former-cluster=uid-there`},
		{"another cluster's, handed over by a third", full(there), func(pv *corev1.PersistentVolume) {
			pv.Annotations[volume.AnnFormerCluster] = "uid-third"
		}, `has the UID "uid-there"`},
		{"another volume's", volume.Owner{Volume: "other", Identity: testName, Cluster: here}.Marks(), nil, `pv/name is "other": it is left alone; ` +
			`if it is to be this volume's from now on, run: kubectl annotate --overwrite pv pv rbd.ceph.com/former-cluster=uid-here`},
		{"another volume's that no cluster has marked", volume.Owner{Volume: "other", Identity: testName}.Marks(), nil, "former-cluster=uid-here"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, test.marks, test.change)
			before := maps.Clone(f.marks())
			f.run()
			f.eventually("an event", func() bool { return len(f.events.Events) > 0 })
			if event := <-f.events.Events; !strings.HasPrefix(event, "Warning ImageNotOwned ") || !strings.Contains(event, test.event) {
				t.Errorf("got the event %q, want %q", event, test.event)
			}
			if diff := gocmp.Diff(before, f.marks()); diff != "" {
				t.Errorf("marks (-before +after):\n%s", diff)
			}
			f.change(func(pv *corev1.PersistentVolume) { pv.Labels = map[string]string{"any": "change"} })
			f.change(func(pv *corev1.PersistentVolume) {
				pv.Annotations[volume.AnnFormerCluster] = cmp.Or(before[volume.MetaCluster], here)
			})
			f.eventually("the image is taken over", func() bool { return f.volume().Annotations[volume.AnnFormerCluster] == "" })
			if diff := gocmp.Diff(withClaim(full(here)), f.marks()); diff != "" {
				t.Errorf("marks (-want +got):\n%s", diff)
			}
			if event := <-f.events.Events; !strings.HasPrefix(event, "Normal ImageTakenOver ") {
				t.Errorf("got the event %q before it was taken over", event)
			}
		})
	}
}

// Volumes that are not ours, not bound or settled are not looked at; nor is anything
// changed by a replica that may not lead any more.
func TestLeftAlone(t *testing.T) {
	for name, change := range map[string]func(*corev1.PersistentVolume){
		"released": func(pv *corev1.PersistentVolume) { pv.Status.Phase = corev1.VolumeReleased },
		"deleted": func(pv *corev1.PersistentVolume) {
			pv.DeletionTimestamp, pv.Finalizers = new(metav1.Now()), []string{"example.com/stays"}
		},
		"another provisioner's": func(pv *corev1.PersistentVolume) {
			pv.Annotations[volume.AnnProvisionedBy] = "example.com/other"
		},
		"another identity's": func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnIdentity] = "other" },
		"settled":            func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnKubernetesCluster] = here },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil, change)
			f.checkAlone()
		})
	}
	t.Run("by one that leads no more", func(t *testing.T) {
		f := newFixture(t, full(there), func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnFormerCluster] = there })
		before, annotations := maps.Clone(f.marks()), f.volume().Annotations
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallImage, Before: func() { f.leading.Store(false) }})
		f.run()
		f.eventually("the image is looked at", func() bool { return !f.leading.Load() && f.ceph.Open() == 0 })
		f.checkSame(before, annotations)
		f.leading.Store(true)
		f.eventually("the image is taken over", func() bool { return f.volume().Annotations[volume.AnnFormerCluster] == "" })
	})
}

// TestStop: what has begun is finished before the lease is given back, and nothing
// begins any more.
func TestStop(t *testing.T) {
	f := newFixture(t, nil, nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallSetMetadata, Before: func() { close(entered); <-leave }})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); f.loop.Run(ctx) }()
	<-entered
	cancel()
	over, end := context.WithCancel(t.Context())
	end()
	if err := f.guard.Drain(over); !errors.Is(err, context.Canceled) {
		t.Errorf("while an image is marked: %v", err)
	}
	close(leave)
	f.must(f.guard.Drain(t.Context()))
	<-ended
	if f.marks()[volume.MetaCluster] != here || f.volume().Annotations[volume.AnnKubernetesCluster] != here {
		t.Errorf("what had begun was not finished: the image has %v, the volume %v", f.marks(), f.volume().Annotations)
	}
}

// checkAlone checks that the loop leaves image and volume as they are. It has passed the
// volume over once it is through with another one, which is told it later.
func (f *fixture) checkAlone() {
	f.Helper()
	const second = "kubernetes-dynamic-pvc-5678"
	before, annotations := maps.Clone(f.marks()), f.volume().Annotations
	f.inPool(func(p rbd.Pool) error { return p.CreateImage(f.Context(), second, rbd.ImageSpec{SizeBytes: 1 << 30}) })
	f.run()
	after := f.volume()
	after.ObjectMeta = metav1.ObjectMeta{Name: "pv-after", UID: "uid-after", Annotations: maps.Clone(annotations)}
	after.Annotations[volume.AnnProvisionedBy], after.Annotations[volume.AnnIdentity] = testName, testName
	delete(after.Annotations, volume.AnnKubernetesCluster)
	after.Spec.RBD.RBDImage, after.Status.Phase = second, corev1.VolumeBound
	_, err := f.client.CoreV1().PersistentVolumes().Create(f.Context(), after, metav1.CreateOptions{})
	f.must(err)
	f.eventually("the other volume is settled", func() bool {
		i, _ := f.ceph.Image(pool, second)
		return i.Metadata[volume.MetaCluster] == here
	})
	f.checkSame(before, annotations)
}

func (f *fixture) checkSame(marks, annotations map[string]string) {
	f.Helper()
	if diff := gocmp.Diff(marks, f.marks()); diff != "" {
		f.Errorf("marks (-before +after):\n%s", diff)
	}
	if diff := gocmp.Diff(annotations, f.volume().Annotations); diff != "" {
		f.Errorf("annotations (-before +after):\n%s", diff)
	}
}

// A volume whose image is not there is told so once, and gone on with when it is.
func TestMissing(t *testing.T) {
	f := newFixture(t, nil, func(pv *corev1.PersistentVolume) { pv.Spec.RBD.RBDImage = "later" })
	f.run()
	f.eventually("an event", func() bool { return len(f.events.Events) > 0 })
	if event := <-f.events.Events; !strings.HasPrefix(event, `Warning ImageNotFound image "later" is not in pool "rbd"`) {
		t.Errorf("got the event %q", event)
	}
	f.inPool(func(p rbd.Pool) error { return p.CreateImage(t.Context(), "later", rbd.ImageSpec{SizeBytes: 1 << 30}) })
	f.eventually("the image is marked", func() bool { return f.volume().Annotations[volume.AnnKubernetesCluster] == here })
	if n := len(f.events.Events); n != 0 {
		t.Errorf("got %d more events", n)
	}
}
