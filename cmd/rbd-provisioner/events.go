// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"
)

// The reasons of the library's events that are looked at.
const (
	reasonProvisioning = "Provisioning"
	reasonSucceeded    = "ProvisioningSucceeded"
)

// beginningDelay is after which time a claim is told that its volume is being made.
const beginningDelay = time.Second

// briefClient is a client for the library, which tells each claim that its volume is
// being made, and a moment later that it was. In a burst that is a third of all
// requests, and they are answered one after the other. Here the first is sent only
// when it takes beginningDelay, or does not succeed.
type briefClient struct {
	kubernetes.Interface
	logger klog.Logger
	// sending is held by who sends what was held: a server that is slow gets one at
	// a time.
	sending sync.Mutex

	mu sync.Mutex // guards held
	// held has the events that wait, by the claim's UID.
	held map[types.UID]*heldEvent
}

type heldEvent struct {
	event *corev1.Event
	timer *time.Timer
}

// newBriefClient returns client with events held back. What fails when they are sent
// later is written to logger.
func newBriefClient(client kubernetes.Interface, logger klog.Logger) *briefClient {
	return &briefClient{Interface: client, logger: logger, held: map[types.UID]*heldEvent{}}
}

// CoreV1 implements kubernetes.Interface.
func (c *briefClient) CoreV1() corev1client.CoreV1Interface {
	return briefCore{c.Interface.CoreV1(), c}
}

type briefCore struct {
	corev1client.CoreV1Interface
	client *briefClient
}

// Events implements CoreV1Interface.
func (c briefCore) Events(namespace string) corev1client.EventInterface {
	return briefEvents{c.CoreV1Interface.Events(namespace), c.client}
}

type briefEvents struct {
	corev1client.EventInterface
	client *briefClient
}

// CreateWithEventNamespace implements EventExpansion; a recorder calls it.
func (e briefEvents) CreateWithEventNamespace(event *corev1.Event) (*corev1.Event, error) {
	return e.client.create(event, e.EventInterface.CreateWithEventNamespace) //nolint:staticcheck // as said
}

// CreateWithEventNamespaceWithContext implements EventExpansion.
func (e briefEvents) CreateWithEventNamespaceWithContext(ctx context.Context, event *corev1.Event) (*corev1.Event, error) {
	return e.client.create(event, func(event *corev1.Event) (*corev1.Event, error) {
		return e.EventInterface.CreateWithEventNamespaceWithContext(context.WithoutCancel(ctx), event)
	})
}

// create sends an event, or holds it, or sends the one that was held before it. What
// was held is not tried again, unlike what a recorder sends.
func (c *briefClient) create(event *corev1.Event, send func(*corev1.Event) (*corev1.Event, error)) (*corev1.Event, error) {
	later := func(event *corev1.Event) {
		c.sending.Lock()
		defer c.sending.Unlock()
		_, err := send(event)
		switch {
		case err == nil:
		case apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
			// Nobody is left to read it.
		default:
			c.logger.Info("An event could not be sent", "reason", event.Reason,
				"PVC", klog.KRef(event.InvolvedObject.Namespace, event.InvolvedObject.Name), "err", err)
		}
	}
	if event.Reason == reasonProvisioning {
		c.hold(event.DeepCopy(), later)
		return event, nil
	}
	if before := c.take(event.InvolvedObject.UID, nil); before != nil && event.Reason != reasonSucceeded {
		later(before)
	}
	return send(event)
}

// saved drops what is held for the claim of a volume. The event of its success comes
// when the recorder gets to it, which in a burst takes longer than the volume.
func (c *briefClient) saved(pv *corev1.PersistentVolume) {
	if claim := pv.Spec.ClaimRef; claim != nil {
		c.take(claim.UID, nil)
	}
}

// hold has an event sent after beginningDelay, unless it is taken before.
func (c *briefClient) hold(event *corev1.Event, send func(*corev1.Event)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	uid := event.InvolvedObject.UID
	if old := c.held[uid]; old != nil {
		old.timer.Stop() // this one says the same
	}
	h := &heldEvent{event: event}
	h.timer = time.AfterFunc(beginningDelay, func() {
		if event := c.take(uid, h); event != nil {
			send(event)
		}
	})
	c.held[uid] = h
}

// take returns the event that is held for a claim, and holds it no longer; nil if
// there is none or, where only is not nil, another.
func (c *briefClient) take(uid types.UID, only *heldEvent) *corev1.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.held[uid]
	if h == nil || only != nil && h != only {
		return nil
	}
	h.timer.Stop()
	delete(c.held, uid)
	return h.event
}
