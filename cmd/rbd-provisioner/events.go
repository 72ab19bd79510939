// SPDX-License-Identifier: Apache-2.0

package main

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// reasonProvisioning is that of the event with which the library tells a claim that
// its volume is being made.
const reasonProvisioning = "Provisioning"

// quietClient is a client for the library that drops the events of
// reasonProvisioning. They would be one more request, beside five or so, for each
// claim, and say nothing new: kube-controller-manager has told the claim that it waits
// for this provisioner, and ProvisioningSucceeded or ProvisioningFailed will tell what
// became of it. The library makes its recorder from its client, and has no setting for
// this.
type quietClient struct{ kubernetes.Interface }

// CoreV1 implements kubernetes.Interface.
func (c quietClient) CoreV1() corev1client.CoreV1Interface {
	return quietCore{c.Interface.CoreV1()}
}

type quietCore struct{ corev1client.CoreV1Interface }

// Events implements corev1client.CoreV1Interface.
func (c quietCore) Events(namespace string) corev1client.EventInterface {
	return quietEvents{c.CoreV1Interface.Events(namespace)}
}

// quietEvents has the two methods that a recorder calls: one for an event that is
// new, one for an event that repeats.
type quietEvents struct{ corev1client.EventInterface }

// CreateWithEventNamespace implements corev1client.EventExpansion.
func (e quietEvents) CreateWithEventNamespace(event *corev1.Event) (*corev1.Event, error) {
	if event.Reason == reasonProvisioning {
		return event, nil
	}
	return e.EventInterface.CreateWithEventNamespace(event) //nolint:staticcheck // the recorder's choice
}

// PatchWithEventNamespace implements corev1client.EventExpansion.
func (e quietEvents) PatchWithEventNamespace(event *corev1.Event, patch []byte) (*corev1.Event, error) {
	if event.Reason == reasonProvisioning {
		return event, nil
	}
	return e.EventInterface.PatchWithEventNamespace(event, patch) //nolint:staticcheck // the recorder's choice
}
