// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"ceph.com/rbd-provisioner/test/cluster"
)

// bound waits until a claim is bound and returns its volume.
func (f *fixture) bound(claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	f.Helper()
	var pv *corev1.PersistentVolume
	f.eventually(func(ctx context.Context) error {
		live, err := f.kube.Client.CoreV1().PersistentVolumeClaims(f.namespaceOf(claim)).Get(ctx, claim.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if live.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("claim %s is %s; %s", live.Name, live.Status.Phase, f.events(ctx, live.UID))
		}
		pv, err = f.kube.Client.CoreV1().PersistentVolumes().Get(ctx, live.Spec.VolumeName, metav1.GetOptions{})
		return err
	})
	return pv
}

// released waits until the claim of a volume is gone.
func (f *fixture) released(pv *corev1.PersistentVolume) {
	f.Helper()
	f.eventually(func(ctx context.Context) error {
		live, err := f.kube.Client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
		if err == nil && live.Status.Phase != corev1.VolumeReleased {
			err = fmt.Errorf("volume %s is %s, want it to be released", pv.Name, live.Status.Phase)
		}
		return err
	})
}

// gone waits until a volume does not exist any more.
func (f *fixture) gone(pv *corev1.PersistentVolume) {
	f.Helper()
	f.eventually(func(ctx context.Context) error {
		live, err := f.kube.Client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
		if err == nil {
			return fmt.Errorf("volume %s is %s; %s", live.Name, live.Status.Phase, f.events(ctx, live.UID))
		}
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// purged waits until the image of a deleted volume has left the trash. Ceph must answer.
func (f *fixture) purged(pv *corev1.PersistentVolume) {
	f.Helper()
	f.eventually(func(ctx context.Context) error {
		trash, err := f.ceph.Trash(ctx, f.name)
		if err == nil && slices.Contains(trash, pv.Spec.RBD.RBDImage) {
			err = fmt.Errorf("image %s is in the trash", pv.Spec.RBD.RBDImage)
		}
		return err
	})
}

// event waits for an event about an object that has one of the texts and came at least
// times times.
func (f *fixture) event(object metav1.Object, times int32, texts ...string) {
	f.Helper()
	f.eventually(func(ctx context.Context) error {
		events, err := f.eventsOf(ctx, object.GetUID())
		if err != nil {
			return err
		}
		for _, e := range events {
			for _, text := range texts {
				if strings.Contains(e.Message, text) && e.Count >= times {
					return nil
				}
			}
		}
		return fmt.Errorf("%s: no event says one of %q %d times: %s", object.GetName(), texts, times, f.events(ctx, object.GetUID()))
	})
}

func (f *fixture) eventsOf(ctx context.Context, uid any) ([]corev1.Event, error) {
	list, err := f.kube.Client.CoreV1().Events("").List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("involvedObject.uid", fmt.Sprint(uid)).String(),
	})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// events returns the events about an object as text.
func (f *fixture) events(ctx context.Context, uid any) string {
	events, err := f.eventsOf(ctx, uid)
	if err != nil {
		return err.Error()
	}
	text := "events:"
	for _, e := range events {
		text += fmt.Sprintf("\n  %s %s (%s, %d times): %s", e.Type, e.Reason, e.Source.Component, e.Count, e.Message)
	}
	return text
}

// logged waits until the provisioner's log has a line with all of the texts.
func (f *fixture) logged(p *cluster.Provisioner, texts ...string) (line string) {
	f.Helper()
	f.eventually(func(context.Context) error {
		log, err := os.ReadFile(p.Log)
		if err != nil {
			return err
		}
	lines:
		for l := range strings.Lines(string(log)) {
			for _, text := range texts {
				if !strings.Contains(l, text) {
					continue lines
				}
			}
			line = l
			return nil
		}
		return fmt.Errorf("the log of %s has no line with %q", p.Name, texts)
	})
	return line
}

// rados and rbd run a command on the fixture's pool.
func (f *fixture) rados(args ...string) string { return f.run("rados", args...) }
func (f *fixture) rbd(args ...string) string   { return f.run("rbd", args...) }

func (f *fixture) run(command string, args ...string) string {
	f.Helper()
	out, err := f.ceph.Run(f.ctx(), command, append([]string{"--pool", f.name}, args...)...)
	f.must(err)
	return out
}

// imageID returns the ID that is in the names of an image's objects.
func (f *fixture) imageID(image string) string {
	f.Helper()
	var info struct {
		ID string `json:"id"`
	}
	f.must(json.Unmarshal([]byte(f.rbd("info", "--format", "json", image)), &info))
	return info.ID
}

func (f *fixture) eventually(condition func(context.Context) error) {
	f.Helper()
	f.must(cluster.Eventually(f.ctx(), patience, condition))
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// ctx outlives the checks at the test's end.
func (f *fixture) ctx() context.Context { return context.WithoutCancel(f.Context()) }
