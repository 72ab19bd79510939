// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/test/cluster"
)

// restricted is a provisioner with its own name that lacks one right.
type restricted struct {
	*fixture
	// ns is the namespace of its account, secrets and lease.
	ns, provisionerName string
	class               *storagev1.StorageClass
	process             *cluster.Provisioner
}

// shortLease makes a lease that can't be renewed show soon.
var shortLease = []string{
	"-leader-election-lease-duration=3s", "-leader-election-renew-deadline=2s", "-leader-election-retry-period=500ms",
}

// without has, for each right, a function that returns when its absence has the effect
// that it must have.
var without = map[string]struct {
	fails func(*restricted)
	env   string
	args  []string
}{
	// By default, client-go lets the API server stream its lists where possible, which
	// needs only watch.
	"list persistentvolumes":              {fails: neverReady("persistentvolumes"), env: noStreaming},
	"list persistentvolumeclaims":         {fails: neverReady("persistentvolumeclaims"), env: noStreaming},
	"list storageclasses.storage.k8s.io":  {fails: neverReady("storageclasses"), env: noStreaming},
	"watch persistentvolumes":             {fails: readsAllAgain("PersistentVolume")},
	"watch persistentvolumeclaims":        {fails: readsAllAgain("PersistentVolumeClaim")},
	"watch storageclasses.storage.k8s.io": {fails: readsAllAgain("StorageClass")},
	"create persistentvolumes": {fails: func(r *restricted) {
		claim := r.claim(r.ns, r.class, nil)
		r.refused(`cannot create resource "persistentvolumes"`)
		r.pending(claim)
		if i := r.fixture.image(r.name, "kubernetes-dynamic-pvc-"+string(claim.UID)); i.Size != 1<<30 {
			r.Errorf("the image is %+v", i)
		}
	}},
	"delete persistentvolumes": {fails: func(r *restricted) {
		pv := r.released()
		r.refused(`cannot delete resource "persistentvolumes"`)
		r.stays(pv, func(live *corev1.PersistentVolume) bool { return live.DeletionTimestamp == nil })
	}},
	"patch persistentvolumes": {fails: func(r *restricted) {
		pv := r.released()
		r.refused(`cannot patch resource "persistentvolumes"`)
		r.stays(pv, func(live *corev1.PersistentVolume) bool {
			return live.DeletionTimestamp != nil && len(live.Finalizers) > 0
		})
	}},
	"get persistentvolumeclaims": {fails: func(r *restricted) {
		source := r.claim(r.ns+"-source", r.class, nil)
		pv := r.bound(source) // by the cache
		r.Cleanup(func() {
			ctx := context.WithoutCancel(r.Context())
			claims := rig.Kube.Client.CoreV1().PersistentVolumeClaims(r.fixture.name)
			if err := errors.Join(claims.Delete(ctx, source.Name, metav1.DeleteOptions{}), r.goneBy(ctx, pv)); err != nil && !r.Failed() {
				r.Error(err)
			}
		})
		clone := r.claim(r.ns, r.class, from(source.Name))
		r.event(clone, `persistentvolumeclaims "`+source.Name+`" is forbidden`)
		r.pending(clone)
	}},
	`get csidrivers.storage.k8s.io "rbd.ceph.com"`: {fails: withoutPlugin},
	`get namespaces "kube-system"`:                 {fails: withoutIdentity},
	"create events": {fails: func(r *restricted) {
		claim := r.claim(r.ns, r.class, nil)
		r.bound(claim)
		r.refused(`cannot create resource "events"`)
		if counts := r.counts(r.Context(), claim); len(counts) > 0 {
			r.Errorf("it sent events: %v", counts)
		}
	}},
	"patch events": {fails: func(r *restricted) {
		bad := r.claim(r.ns+"-bad", r.class, selecting)
		r.event(bad, "the claim has a selector")
		r.refused(`cannot patch resource "events"`)
		if counts := r.counts(r.Context(), bad); len(counts) == 0 || slices.Max(counts) > 1 {
			r.Errorf("events were counted up to %v", counts)
		}
	}},
	"patch persistentvolumeclaims/status": {fails: func(r *restricted) {
		r.refused(`"Volumes do not grow, also where their class has allowVolumeExpansion: apply rbac/resize-*.yaml`)
		r.allowExpansion(r.class)
		claim := r.claim(r.ns, r.class, block)
		r.bound(claim)
		r.ask(claim, "2Gi")
		// All else works, and later requests do, too.
		r.served(r.claim(r.ns+"-later", r.class, nil))
		if events := r.events(r.Context(), claim.UID); strings.Contains(events, "external-resizer") {
			r.Errorf("it tries all the same: %s", events)
		}
		r.grant(r.ns, r.named(installed(r.T)), r.named(installed(r.T)))
		r.grown(claim, "2Gi")
	}},
	"list volumeattachments.storage.k8s.io":         {fails: notAttaching},
	"watch volumeattachments.storage.k8s.io":        {fails: notAttaching},
	"patch volumeattachments/status.storage.k8s.io": {fails: notAttaching},
	"get secrets": {fails: func(r *restricted) {
		claim := r.claim(r.ns, r.class, nil)
		r.event(claim, "reading the secret is not allowed")
		r.pending(claim)
	}},
	"create leases.coordination.k8s.io": {fails: func(r *restricted) {
		r.refused(`cannot create resource "leases"`)
		r.notLeading()
	}},
	`get leases.coordination.k8s.io "ceph.com-rbd"`: {fails: func(r *restricted) {
		r.refused(`cannot get resource "leases"`)
		r.notLeading()
	}},
	`update leases.coordination.k8s.io "ceph.com-rbd"`: {args: shortLease, fails: func(r *restricted) {
		select {
		case <-r.process.Done():
		case <-time.After(patience):
			r.Fatal("it goes on without renewing its lease")
		}
		if code := r.process.ExitCode(); code != 1 {
			r.Errorf("it ended with %d, want 1", code)
		}
	}},
}

// noStreaming makes client-go fill its caches with plain lists.
const noStreaming = "KUBE_FEATURE_WatchListClient=false"

// No right is superfluous: without each single one something fails, and with it all is
// well. Each case is a process of its own, with an account of its own.
func TestNoRightIsIdle(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	all := installed(t)
	for name := range without {
		if !slices.ContainsFunc(all, func(r right) bool { return r.String() == name }) {
			t.Errorf("rbac/ does not grant %q", name)
		}
	}
	t.Run("with all rights", func(t *testing.T) {
		t.Parallel()
		r := newRestricted(t, f, "all", all, right{}, nil, nil)
		claim := r.claim(r.ns, r.class, nil)
		r.served(claim)
		// readsAllAgain wants more.
		for _, kind := range []string{"PersistentVolume", "PersistentVolumeClaim", "StorageClass"} {
			if n := r.lists(kind); n != 1 {
				r.Errorf("the cache of %s was filled %d times, want once", kind, n)
			}
		}
		r.event(claim, "ProvisioningSucceeded")
		// It would be here by now.
		if events := r.events(t.Context(), claim.UID); strings.Contains(events, " Provisioning ") {
			r.Errorf("the library's event was sent: %s", events)
		}
	})
	for i, lacking := range all {
		t.Run("without "+lacking.String(), func(t *testing.T) {
			t.Parallel()
			test, known := without[lacking.String()]
			if !known {
				t.Fatal("nobody knows what fails without this right: add it to the table of this test, or remove it from rbac/")
			}
			var env []string
			if test.env != "" {
				env = append(env, test.env)
			}
			r := newRestricted(t, f, fmt.Sprint(i), all, lacking, env, test.args)
			test.fails(r)
			if t.Failed() {
				return
			}
			r.heal(all)
		})
	}
}

// newRestricted starts a provisioner with all rights but one.
func newRestricted(t *testing.T, parent *fixture, suffix string, all []right, lacking right, env, args []string) *restricted {
	t.Helper()
	f := parent.in(t)
	r := &restricted{fixture: f, ns: f.name + "-" + suffix}
	r.provisionerName = "example.com/" + r.ns
	ctx := t.Context()
	_, err := rig.Kube.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: r.ns}}, metav1.CreateOptions{})
	f.must(err)
	_, err = rig.Kube.Client.CoreV1().ServiceAccounts(r.ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
	f.must(err)
	f.secret(r.ns, "admin", corev1.SecretTypeOpaque, f.adminKey)
	f.secret(r.ns, "user", "kubernetes.io/rbd", f.userKey)
	f.grant(r.ns, r.named(slices.DeleteFunc(slices.Clone(all), func(r right) bool { return r == lacking })), r.named(all))
	r.class = f.class(suffix, func(c *storagev1.StorageClass) {
		c.Provisioner = r.provisionerName
		c.Parameters = f.parameters(map[string]string{
			"adminSecretName": "admin", "adminSecretNamespace": r.ns, "userSecretNamespace": r.ns,
		})
	})
	r.process, err = rig.StartProvisioner(ctx, cluster.ProvisionerConfig{
		Binary: binary, Namespace: r.ns, ServiceAccount: account, NoWait: true,
		Env:  append([]string{"PROVISIONER_NAME=" + r.provisionerName}, env...),
		Args: append([]string{"-v=10", "-command-timeout=5"}, args...),
	})
	f.must(err)
	t.Cleanup(func() {
		select {
		case <-r.process.Done():
		default:
			r.process.Kill()
		}
		ctx := context.WithoutCancel(ctx)
		// The rig is removed anyway: this only keeps it small.
		if err := errors.Join(
			rig.Kube.Client.CoreV1().Namespaces().Delete(ctx, r.ns, metav1.DeleteOptions{}),
			rig.Kube.Client.RbacV1().ClusterRoleBindings().Delete(ctx, r.ns, metav1.DeleteOptions{}),
			rig.Kube.Client.RbacV1().ClusterRoles().Delete(ctx, r.ns, metav1.DeleteOptions{}),
		); err != nil {
			t.Error(err)
		}
	})
	return r
}

// named returns the rights for the lease that this provisioner has.
func (r *restricted) named(all []right) []right {
	all = slices.Clone(all)
	for i := range all {
		if all[i].resource == "leases" && all[i].name != "" {
			all[i].name = strings.ReplaceAll(r.provisionerName, "/", "-")
		}
	}
	return all
}

// heal adds the missing right, after which a claim is served.
func (r *restricted) heal(all []right) {
	r.Helper()
	r.grant(r.ns, r.named(all), r.named(all))
	select {
	case <-r.process.Done():
		r.must(r.process.Start(r.Context()))
	default:
	}
	claims := rig.Kube.Client.CoreV1().PersistentVolumeClaims(r.fixture.name)
	claim, err := claims.Get(r.Context(), r.ns, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		claim, err = r.claim(r.ns, r.class, nil), nil
	}
	r.must(err)
	if claim.DeletionTimestamp == nil {
		r.served(claim)
	}
}

// served waits until a claim has its volume and, when the claim is deleted, until the
// volume is gone.
func (r *restricted) served(claim *corev1.PersistentVolumeClaim) {
	r.Helper()
	pv := r.bound(claim)
	r.delete(claim)
	r.gone(pv)
}

// released makes a volume and deletes its claim.
func (r *restricted) released() *corev1.PersistentVolume {
	r.Helper()
	claim := r.claim(r.ns+"-first", r.class, nil)
	pv := r.bound(claim)
	r.delete(claim)
	r.Cleanup(func() {
		// The right is back by now.
		if !r.Failed() {
			if err := r.goneBy(context.WithoutCancel(r.Context()), pv); err != nil {
				r.Error(err)
			}
		}
	})
	return pv
}

// stays checks what has become of a volume whose deletion must fail.
func (r *restricted) stays(pv *corev1.PersistentVolume, as func(*corev1.PersistentVolume) bool) {
	r.Helper()
	r.eventually(func(ctx context.Context) error {
		live, err := rig.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
		if err == nil && !as(live) {
			err = fmt.Errorf("the volume is %s, deleted at %v, with the finalizers %v", live.Status.Phase, live.DeletionTimestamp, live.Finalizers)
		}
		return err
	})
}

// refused waits until a request was refused, not counting the permission checks at the
// start.
func (r *restricted) refused(text string) {
	r.Helper()
	r.eventually(func(context.Context) error {
		if !strings.Contains(strings.ReplaceAll(log(r.T, r.process), `\`, ""), text) {
			return fmt.Errorf("the log does not have %q", text)
		}
		return nil
	})
}

// notLeading checks that nothing is done for a claim.
func (r *restricted) notLeading() {
	r.Helper()
	claim := r.claim(r.ns, r.class, nil)
	// Kubernetes' own controller says that the claim was handed to us.
	r.event(claim, "Waiting for a volume to be created")
	r.pending(claim)
	if strings.Contains(log(r.T, r.process), `"Leading"`) {
		r.Error("it leads")
	}
}

// lists returns how often the cache of a kind was filled with everything.
func (r *restricted) lists(kind string) int {
	return strings.Count(log(r.T, r.process), `"Caches populated" type="*v1.`+kind+`"`)
}

func readsAllAgain(kind string) func(*restricted) {
	return func(r *restricted) {
		r.Helper()
		r.eventually(func(context.Context) error {
			if n := r.lists(kind); n < 3 {
				return fmt.Errorf("the cache of %s was filled %d times", kind, n)
			}
			return nil
		})
	}
}

// notAttaching waits until a provisioner says that it attaches nothing, and checks that it does
// all else. Other provisioners of the rig attach meanwhile. When the right comes, so does this one.
func notAttaching(r *restricted) {
	r.Helper()
	const attaching = `"Starting CSI attacher"`
	r.refused(`"Volumes of the node plugin are not attached, so Pods that use them wait: apply rbac/clusterrole.yaml"`)
	r.served(r.claim(r.ns+"-first", r.class, nil))
	if text := log(r.T, r.process); strings.Contains(text, attaching) || strings.Contains(text, `cannot list resource "volumeattachments"`) {
		r.Error("it tries all the same")
	}
	r.grant(r.ns, r.named(installed(r.T)), r.named(installed(r.T)))
	r.refused(attaching)
}

func neverReady(resource string) func(*restricted) {
	return func(r *restricted) {
		r.Helper()
		r.eventually(func(context.Context) error {
			if n := strings.Count(strings.ReplaceAll(log(r.T, r.process), `\`, ""), `cannot list resource "`+resource+`"`); n < 2 {
				return fmt.Errorf("%d lists were refused, want 2", n)
			}
			return nil
		})
		if _, err := get(r.Context(), r.process.URL+"/readyz"); err == nil || !strings.Contains(err.Error(), "not filled yet") {
			r.Errorf("/readyz: got %v, want that caches are not filled", err)
		}
		r.notLeading()
	}
}

// counts returns the counts of the events that this provisioner sent about a claim.
func (r *restricted) counts(ctx context.Context, claim *corev1.PersistentVolumeClaim) []int32 {
	r.Helper()
	list, err := rig.Kube.Client.CoreV1().Events(claim.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "involvedObject.uid=" + string(claim.UID),
	})
	r.must(err)
	var counts []int32
	for _, e := range list.Items {
		if strings.HasPrefix(e.Source.Component, r.provisionerName) {
			counts = append(counts, e.Count)
		}
	}
	return counts
}

func selecting(c *corev1.PersistentVolumeClaim) {
	c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
}
