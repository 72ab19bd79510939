// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// sizes deletes volumes of both sizes, each pair in its own pool, which is removed
// afterwards. Their class keeps deleted images in the trash: otherwise the
// removal of each large one would take half a minute.
func (b *bench) sizes(ctx context.Context) error {
	defer b.watch.forget()
	c := b.contender(this)
	p, err := b.start(ctx, c)
	if err != nil {
		return err
	}
	for i := range b.Sizes {
		name := fmt.Sprintf("bench-size-%d", i+1)
		if err := b.addClass(ctx, name, c.provisioner, name, map[string]string{"trashRetention": "24h"}); err != nil {
			return err
		}
		// The first of a new pool pays for the connection.
		warm, err := b.create(ctx, name, 1, small)
		if err != nil {
			return err
		}
		if _, err := b.remove(ctx, warm); err != nil {
			return err
		}
		var pair sizePair
		for _, size := range []struct {
			text string
			ms   *float64
		}{{small, &pair.SmallMs}, {b.Large, &pair.LargeMs}} {
			claim, err := b.create(ctx, name, 1, size.text)
			if err != nil {
				return err
			}
			if _, err := b.watch.wait(ctx, "the claim is bound", b.watch.bound, claim.uids); err != nil {
				return err
			}
			if _, err := p.settled(ctx); err != nil {
				return err
			}
			gone, err := b.remove(ctx, claim)
			if err != nil {
				return err
			}
			*size.ms = milliseconds(gone)
		}
		b.say(fmt.Sprintf("volume deleted: %s in %.0f ms, %s in %.0f ms", small, pair.SmallMs, b.Large, pair.LargeMs))
		b.report.Sizes = append(b.report.Sizes, pair)
		if err := b.removeClass(ctx, name, name); err != nil {
			return err
		}
	}
	_, err = p.stop()
	return err
}

// populate puts volumes and claims into the API that are copies of one of the
// contender's. Only their images do not exist.
func (b *bench) populate(ctx context.Context, c *contender) error {
	defer b.watch.forget()
	p, err := b.start(ctx, c)
	if err != nil {
		return err
	}
	made, err := b.create(ctx, c.class(), 1, small)
	if err != nil {
		return err
	}
	if _, err := b.watch.wait(ctx, "the claim is bound", b.watch.bound, made.uids); err != nil {
		return err
	}
	config := b.rig.Kube.RESTConfig()
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf
	config.WarningHandlerWithContext = rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	claim, err := client.CoreV1().PersistentVolumeClaims(claimNamespace).Get(ctx, made.names[0], metav1.GetOptions{})
	if err != nil {
		return err
	}
	volume, err := client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if _, err := b.remove(ctx, made); err != nil {
		return err
	}
	if _, err := p.stop(); err != nil {
		return err
	}
	// If a volume came a moment after its claim, the controller manager would count the
	// claim as lost. When it is started afterwards, it finds all in order and has nothing
	// to do.
	manager := b.rig.Kube.ControllerManager
	if err := manager.Stop(); err != nil {
		return err
	}
	begin := time.Now()
	if err := parallel(b.Volumes, func(i int) error {
		return addCopy(ctx, client, claim, volume, fmt.Sprintf("volume-%06d", i+1))
	}); err != nil {
		return err
	}
	b.say(fmt.Sprintf("%d volumes and claims put into the API in %.0f s", b.Volumes, time.Since(begin).Seconds()))
	if err := manager.Start(ctx); err != nil {
		return err
	}
	return b.checkCopies(ctx, client)
}

// addCopy makes a copy of a bound claim and its volume.
func addCopy(ctx context.Context, client kubernetes.Interface, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume, name string) error {
	claim, volume = claim.DeepCopy(), volume.DeepCopy()
	old := string(claim.UID)
	claim.ObjectMeta = fresh(claim.ObjectMeta, name)
	// The volume's name follows from the claim's UID, which the API server has not chosen
	// yet.
	claim.Spec.VolumeName = "pvc-" + name
	claims := client.CoreV1().PersistentVolumeClaims(claimNamespace)
	live, err := claims.Create(ctx, claim, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	live.Status = claim.Status
	if _, err := claims.UpdateStatus(ctx, live, metav1.UpdateOptions{}); err != nil {
		return err
	}

	volume.ObjectMeta = fresh(volume.ObjectMeta, claim.Spec.VolumeName)
	volume.Spec.ClaimRef.Name = live.Name
	volume.Spec.ClaimRef.UID = live.UID
	volume.Spec.ClaimRef.ResourceVersion = live.ResourceVersion
	volume.Spec.RBD.RBDImage = strings.ReplaceAll(volume.Spec.RBD.RBDImage, old, string(live.UID))
	status := volume.Status
	volumes := client.CoreV1().PersistentVolumes()
	liveVolume, err := volumes.Create(ctx, volume, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	liveVolume.Status = status
	_, err = volumes.UpdateStatus(ctx, liveVolume, metav1.UpdateOptions{})
	return err
}

// fresh leaves out what the API server writes; it makes managed fields anew.
func fresh(meta metav1.ObjectMeta, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: meta.Namespace, Name: name,
		Labels: meta.Labels, Annotations: meta.Annotations, Finalizers: meta.Finalizers,
	}
}

// checkCopies checks that the controller manager accepts all of them.
func (b *bench) checkCopies(ctx context.Context, client kubernetes.Interface) error {
	// A claim that is made and bound after them shows that it has seen them all.
	c := b.contender(this)
	p, err := b.start(ctx, c)
	if err != nil {
		return err
	}
	made, err := b.create(ctx, c.class(), 1, small)
	if err != nil {
		return err
	}
	if _, err := b.remove(ctx, made); err != nil {
		return err
	}
	if _, err := p.settled(ctx); err != nil {
		return err
	}
	if _, err := p.stop(); err != nil {
		return err
	}
	claims, err := client.CoreV1().PersistentVolumeClaims(claimNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	bound := map[types.UID]bool{}
	for _, claim := range claims.Items {
		bound[claim.UID] = claim.Status.Phase == corev1.ClaimBound
	}
	volumes, err := client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	content := 0
	for _, volume := range volumes.Items {
		if volume.Status.Phase == corev1.VolumeBound && bound[volume.Spec.ClaimRef.UID] {
			content++
		}
	}
	if content != b.Volumes || len(claims.Items) != b.Volumes {
		return fmt.Errorf("%d of %d claims and volumes are bound, want %d", content, len(claims.Items), b.Volumes)
	}
	return nil
}

// idle watches the provisioner while it has nothing to do in the populated cluster.
func (b *bench) idle(ctx context.Context, c *contender) error {
	p, err := b.start(ctx, c)
	if err != nil {
		return err
	}
	before, err := p.settled(ctx)
	if err != nil {
		return err
	}
	b.say(fmt.Sprintf("Doing nothing for %s", b.Idle))
	begin := time.Now()
	if err := pause(ctx, b.Idle); err != nil {
		return err
	}
	after, err := p.usage(ctx)
	if err != nil {
		return err
	}
	used, minutes := after.since(before), time.Since(begin).Minutes()
	b.report.Idle = &idle{
		Seconds:           60 * minutes,
		CPUPerMinute:      used.cpu.Seconds() / minutes,
		RequestsPerMinute: (used.requests - used.leases) / minutes,
		RenewalsPerMinute: used.leases / minutes,
		Kinds:             used.kinds,
	}
	if used.leases == 0 {
		return errors.New("no renewal of the lease was counted: is it still a PUT?")
	}
	if b.report.Idle.PeakRSSBytes, err = p.stop(); err != nil {
		return err
	}
	return nil
}
