// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	backoffStart = time.Second
	backoffCap   = time.Minute
	other        = "other.example.com"
)

var resource = storagev1.SchemeGroupVersion.WithResource("volumeattachments").GroupResource()

// fixture is a Loop in a synctest bubble, which ends only when every goroutine in it has: so
// each test shows that none is left.
type fixture struct {
	*testing.T
	client *fake.Clientset
	guard  *lease.Guard
	log    ktesting.Underlier
	// lost says that the lease is not held.
	lost atomic.Bool
	stop func()
}

// start runs a Loop. prepare, which may be nil, changes the API server before.
func start(t *testing.T, prepare func(*fixture), objects ...runtime.Object) *fixture {
	t.Helper()
	logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(2)))
	ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), logger))
	f := &fixture{T: t, client: fake.NewClientset(objects...), log: logger.GetSink().(ktesting.Underlier)}
	f.guard = lease.New(func() bool { return !f.lost.Load() })
	if prepare != nil {
		prepare(f)
	}
	common := informers.NewSharedInformerFactory(f.client, 0)
	loop, err := New(Config{
		Client: f.client, Volumes: common.Core().V1().PersistentVolumes(), ResyncPeriod: 15 * time.Minute, Workers: 2,
		BackoffStart: backoffStart, BackoffCap: backoffCap, Lease: f.guard,
	})
	if err != nil {
		t.Fatal(err)
	}
	common.Core().V1().PersistentVolumes().Informer()
	common.StartWithContext(ctx)
	if err := common.WaitForCacheSyncWithContext(ctx).AsError(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		loop.Run(ctx)
	}()
	f.stop = func() {
		cancel()
		<-ended
		common.Shutdown()
	}
	t.Cleanup(f.stop)
	time.Sleep(backoffStart / 2) // the cache needs a moment; a retry comes later
	synctest.Wait()
	return f
}

func attachment(name, driver string) *storagev1.VolumeAttachment {
	return &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{"example.com/kept"}},
		Spec: storagev1.VolumeAttachmentSpec{
			Attacher: driver, NodeName: "node-1",
			Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: ptr.To("pvc-" + name)},
		},
	}
}

// attached returns the names of the VolumeAttachments that are attached.
func (f *fixture) attached() []string {
	f.Helper()
	synctest.Wait()
	list, err := f.client.StorageV1().VolumeAttachments().List(f.Context(), metav1.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	var names []string
	for _, a := range list.Items {
		if a.Status.Attached {
			names = append(names, a.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (f *fixture) want(names ...string) {
	f.Helper()
	if diff := cmp.Diff(names, f.attached()); diff != "" {
		f.Errorf("attached (-want +got):\n%s", diff)
	}
}

// patches returns the names of the objects that were patched, and checks how.
func (f *fixture) patches() []string {
	f.Helper()
	var names []string
	for _, action := range f.client.Actions() {
		if patch, ok := action.(clienttesting.PatchAction); ok {
			if got := fmt.Sprintf("%s/%s %s", action.GetResource().Resource, action.GetSubresource(), patch.GetPatch()); got != `volumeattachments/status {"status":{"attached":true}}` {
				f.Errorf("patched %s", got)
			}
			names = append(names, patch.GetName())
		}
	}
	return names
}

// errors returns what was logged as an error.
func (f *fixture) errors() []string {
	var lines []string
	for _, line := range f.log.GetBuffer().Data() {
		if line.Type == ktesting.LogError {
			lines = append(lines, fmt.Sprint(line.Message, ": ", line.Err))
		}
	}
	return lines
}

// A volume is attached at once, whether its VolumeAttachment was there before or comes later,
// with one small patch. All else stays as it is.
func TestAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := attachment("done", volume.CSIDriver)
		done.Status.Attached = true
		f := start(t, nil, attachment("early", volume.CSIDriver), attachment("theirs", other), done,
			&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-early", Finalizers: []string{"external-attacher/rbd-ceph-com"}}})
		f.want("done", "early")
		for _, a := range []*storagev1.VolumeAttachment{attachment("late", volume.CSIDriver), attachment("theirs-too", other)} {
			if _, err := f.client.StorageV1().VolumeAttachments().Create(t.Context(), a, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		f.want("done", "early", "late")

		time.Sleep(time.Hour) // also at each resync
		if diff := cmp.Diff([]string{"early", "late"}, f.patches()); diff != "" {
			t.Errorf("patched (-want +got):\n%s", diff)
		}
		for _, name := range []string{"early", "theirs"} {
			got, err := f.client.StorageV1().VolumeAttachments().Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			want := attachment(name, got.Spec.Attacher)
			want.Status.Attached = name == "early"
			want.ResourceVersion, want.ManagedFields = got.ResourceVersion, got.ManagedFields
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		if lines := f.errors(); len(lines) > 0 {
			t.Errorf("logged: %v", lines)
		}
	})
}

// Nothing keeps a VolumeAttachment that is deleted, and the next one of that name is
// attached as the first was: kube-controller-manager gives the same volume and node the same name.
func TestDetach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, nil, attachment("a", volume.CSIDriver))
		f.want("a")
		attachments := f.client.StorageV1().VolumeAttachments()
		if err := attachments.Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		f.want()
		if _, err := attachments.Create(t.Context(), attachment("a", volume.CSIDriver), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		f.want("a")
	})
}

// patchesFail makes patches fail while err returns one.
func patchesFail(err func() error) func(*fixture) {
	return func(f *fixture) {
		f.client.PrependReactor("patch", resource.Resource, func(clienttesting.Action) (bool, runtime.Object, error) {
			err := err()
			return err != nil, nil, err
		})
	}
}

// What fails is tried again after a second, later after a minute, for ever.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var tries []float64 // in seconds
		f := start(t, patchesFail(func() error {
			tries = append(tries, math.Round(time.Since(begin).Seconds()))
			if len(tries) > 10 {
				return nil
			}
			return errors.New("no luck")
		}), attachment("a", volume.CSIDriver))
		time.Sleep(10 * time.Minute)
		f.want("a")
		want := []float64{0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303}
		if diff := cmp.Diff(want, tries); diff != "" {
			t.Errorf("tries (-want +got):\n%s", diff)
		}
	})
}

// A VolumeAttachment that was deleted before the patch is no error.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		f := start(t, patchesFail(func() error {
			tries.Add(1)
			return apierrors.NewNotFound(resource, "a")
		}), attachment("a", volume.CSIDriver))
		time.Sleep(time.Minute)
		if lines := f.errors(); len(lines) > 0 || tries.Load() != 1 {
			t.Errorf("%d tries; logged: %v", tries.Load(), lines)
		}
	})
}

// A replica that may have lost its lease writes nothing, nor does one that was drained. If it
// still has the lease after all, it goes on.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, func(f *fixture) { f.lost.Store(true) }, attachment("a", volume.CSIDriver))
		time.Sleep(time.Hour)
		f.want()
		f.lost.Store(false)
		time.Sleep(backoffCap)
		f.want("a")

		if err := f.guard.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := f.client.StorageV1().VolumeAttachments().Create(t.Context(), attachment("b", volume.CSIDriver), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		f.want("a")
		f.stop()
		if diff := cmp.Diff([]string{"a"}, f.patches()); diff != "" {
			t.Errorf("patched (-want +got):\n%s", diff)
		}
	})
}

// A patch in flight ends by its deadline, and Run waits for it: the lease is given back only
// after the last write.
func TestStopWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		f := start(t, patchesFail(func() error { <-answer; return nil }), attachment("a", volume.CSIDriver))
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			f.stop()
		}()
		time.Sleep(time.Hour)
		select {
		case <-stopped:
			t.Error("Run returned before its request was over")
		default:
		}
		close(answer)
		<-stopped
		f.want("a")
	})
}

// A right that is taken away later is one line in the log, and the loop goes on when it is back.
func TestForbidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var allowed atomic.Bool
		var tries atomic.Int64
		deny := func(clienttesting.Action) (bool, runtime.Object, error) {
			tries.Add(1)
			return !allowed.Load(), nil, apierrors.NewForbidden(resource, "", errors.New("no rights"))
		}
		f := start(t, func(f *fixture) {
			f.client.PrependReactor("list", resource.Resource, deny)
		}, attachment("a", volume.CSIDriver))
		time.Sleep(time.Hour)
		lines := f.errors()
		if tries.Load() < 60 || len(lines) != 1 || !strings.Contains(lines[0], "apply rbac/clusterrole.yaml") {
			t.Errorf("%d tries; logged: %v", tries.Load(), lines)
		}
		allowed.Store(true)
		time.Sleep(time.Minute)
		f.want("a")
	})
}

// A loop that ends before its cache is full leaves nothing behind, and complains about nothing.
func TestStopBeforeTheFirstList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, func(f *fixture) {
			f.client.PrependReactor("list", resource.Resource, func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, apierrors.NewForbidden(resource, "", errors.New("no rights"))
			})
		})
		f.stop()
		if lines := f.errors(); len(lines) != 1 {
			t.Errorf("logged: %v", lines)
		}
	})
}

func TestTrim(t *testing.T) {
	managed := []metav1.ManagedFieldsEntry{{Manager: "kube-controller-manager"}}
	ours, theirs := attachment("a", volume.CSIDriver), attachment("b", other)
	ours.ManagedFields, theirs.ManagedFields = managed, managed
	ours.ResourceVersion, theirs.ResourceVersion = "1", "2"
	wantOurs := attachment("a", volume.CSIDriver)
	wantOurs.ResourceVersion = "1"
	for _, test := range []struct{ obj, want any }{
		{ours, wantOurs},
		{theirs, &storagev1.VolumeAttachment{
			ObjectMeta: metav1.ObjectMeta{Name: "b", ResourceVersion: "2"}, Spec: storagev1.VolumeAttachmentSpec{Attacher: other},
		}},
		{"a tombstone", "a tombstone"},
	} {
		for range 2 { // again changes nothing
			got, err := trim(test.obj)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
	}
}

func TestNew(t *testing.T) {
	client := fake.NewClientset()
	whole := func() Config {
		return Config{
			Client: client, Volumes: informers.NewSharedInformerFactory(client, 0).Core().V1().PersistentVolumes(),
			ResyncPeriod: time.Minute, Workers: 1, BackoffStart: 1, BackoffCap: 1, Lease: lease.New(nil),
		}
	}
	if _, err := New(whole()); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"Client":       func(c *Config) { c.Client = nil },
		"Volumes":      func(c *Config) { c.Volumes = nil },
		"ResyncPeriod": func(c *Config) { c.ResyncPeriod = 0 },
		"Workers":      func(c *Config) { c.Workers = 0 },
		"BackoffStart": func(c *Config) { c.BackoffStart = 0 },
		"BackoffCap":   func(c *Config) { c.BackoffCap = 0 },
		"Lease":        func(c *Config) { c.Lease = nil },
	} {
		c := whole()
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: got error %v", name, err)
		}
	}
}
