// SPDX-License-Identifier: Apache-2.0

// Command ceiling is the fastest provisioner that this library allows: it has the
// settings of cmd/rbd-provisioner, but makes and removes nothing.
package main

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/test/bench/contender"
)

// The defaults of cmd/rbd-provisioner.
const (
	workers = 100
	qps     = 500
	burst   = 1000
	resync  = 15 * time.Minute
)

func main() {
	contender.Main(func(config *rest.Config) {
		config.QPS, config.Burst = qps, burst
		config.ContentType = runtime.ContentTypeProtobuf
		config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
		config.WarningHandlerWithContext = rest.NoWarnings{}
	}, work)
}

func work(ctx context.Context, client kubernetes.Interface, name string) error {
	factory := informers.NewSharedInformerFactoryWithOptions(client, resync, informers.WithTransform(dropManagedFields))
	loop := libcontroller.NewProvisionController(klog.FromContext(ctx), client, name, nothing{},
		libcontroller.LeaderElection(false),
		libcontroller.ClaimsInformer(factory.Core().V1().PersistentVolumeClaims().Informer()),
		libcontroller.VolumesInformer(factory.Core().V1().PersistentVolumes().Informer()),
		libcontroller.ClassesInformer(factory.Storage().V1().StorageClasses().Informer()),
		libcontroller.Threadiness(workers),
		libcontroller.FailedProvisionThreshold(0),
		libcontroller.FailedDeleteThreshold(0),
		libcontroller.RateLimiter(newBackoff()),
		libcontroller.CreateProvisionedPVLimiter(newBackoff()),
		libcontroller.AddFinalizer(true),
	)
	factory.StartWithContext(ctx)
	loop.Run(ctx)
	return errors.New("the control loop returned")
}

func newBackoff() workqueue.RateLimiter { //nolint:staticcheck // the library takes no typed one
	return workqueue.NewItemExponentialFailureRateLimiter(time.Second, time.Minute) //nolint:staticcheck // as above
}

func dropManagedFields(obj any) (any, error) {
	if accessor, err := meta.Accessor(obj); err == nil {
		accessor.SetManagedFields(nil)
	}
	return obj, nil // a tombstone has none
}

// nothing is a provisioner without storage.
type nothing struct{}

// Provision returns a volume whose image does not exist.
func (nothing) Provision(_ context.Context, o libcontroller.ProvisionOptions) (*corev1.PersistentVolume, libcontroller.ProvisioningState, error) {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *o.StorageClass.ReclaimPolicy,
			AccessModes:                   o.PVC.Spec.AccessModes,
			VolumeMode:                    o.PVC.Spec.VolumeMode,
			Capacity:                      o.PVC.Spec.Resources.Requests,
			PersistentVolumeSource: corev1.PersistentVolumeSource{RBD: &corev1.RBDPersistentVolumeSource{
				CephMonitors: []string{"192.0.2.11:6789"}, RBDPool: "none", RBDImage: o.PVName,
			}},
		},
	}, libcontroller.ProvisioningFinished, nil
}

// Delete has nothing to remove.
func (nothing) Delete(context.Context, *corev1.PersistentVolume) error { return nil }
