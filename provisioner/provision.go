// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Provision makes an image for a claim and returns its PersistentVolume, which the
// library saves. Calling it again for the same claim finds the same image. See state for
// the state that it returns beside an error.
func (p *Provisioner) Provision(ctx context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	ctx, end, err := p.begin(ctx)
	if err != nil {
		return nil, controller.ProvisioningNoChange, err
	}
	defer end()
	logger := klog.FromContext(ctx).WithValues("PVC", klog.KObj(options.PVC), "PV", options.PVName, "StorageClass", options.StorageClass.Name)
	ctx = klog.NewContext(ctx, logger)

	pv, changed, err := p.provision(ctx, options)
	if err == nil && !p.config.Lease.Held() {
		pv, err = nil, lease.ErrNotLeading // only the leader may save the volume
	}
	return pv, state(err, changed), err
}

// state says what an error of Provision means to the library. changed says that there
// may be an image that was made for the claim:
//
//	the error                         changed   state
//	none                              any       Finished
//	a different image has the name    any       NoChange
//	any other                         no        NoChange
//	any other                         yes       Background
//
// NoChange has the library keep what it knew: this call changed nothing, but an earlier
// one may have. After Background, it calls Provision again, even when the claim is gone
// by then, and Provision finds the image by its fixed name. A call too many costs
// nothing; one too few leaks an image. Finished never comes with an error, since it makes
// the library forget; neither does Reschedule: any node can reach an image.
//
// changed comes from access.Pool.Changed. Only provision knows two more cases, and adds
// them: that the volume was made and may not be saved; and that the claim no longer wants
// its volume, so that the library asks until it is certain whether there is an image,
// even where no pool could be opened.
func state(err error, changed bool) controller.ProvisioningState {
	switch {
	case err == nil:
		return controller.ProvisioningFinished
	case changed && !errors.Is(err, image.ErrConflict):
		return controller.ProvisioningInBackground
	default:
		return controller.ProvisioningNoChange
	}
}

// provision makes the image and returns the volume, or nil and an error. Beside that,
// changed says that there may be an image for the claim, of this call or an earlier one.
func (p *Provisioner) provision(ctx context.Context, options controller.ProvisionOptions) (pv *corev1.PersistentVolume, changed bool, err error) {
	ask, err := p.newRequest(ctx, options)
	if err != nil {
		return nil, false, err
	}
	wanted, err := p.stillWanted(ctx, options)
	if err != nil {
		return nil, false, err
	}
	events := ask.advice
	if wanted && ask.unfit != nil {
		return nil, false, ask.unfit
	}
	if wanted && ask.params.UserSecret.Name != "" {
		ofSecret, err := p.checkUserSecret(ctx, options.PVC, ask)
		if err != nil {
			return nil, false, err
		}
		events = append(events, ofSecret...)
	}
	from := p.cloneSource(ctx, options.PVC, ask, wanted)

	pool, err := p.config.Access.Open(ctx, ask.params.Location)
	if err != nil && from != nil && from.Err != nil {
		return nil, false, from.Err
	}
	if err != nil {
		// An earlier attempt may have made the image of a claim that no longer wants
		// it: ask until that is certain.
		return nil, !wanted, err
	}
	defer pool.Close()
	if err := p.checkMonitors(options.PVC, ask, pool); err != nil {
		return nil, !wanted, err
	}

	ask.want.Image.PoolID, ask.want.Source = pool.ID, from
	made, err := p.makeImage(ctx, pool, ask.want, wanted)
	if err != nil {
		return nil, !wanted || made.Flatten || pool.Changed(), access.Explain(err, pool.Location)
	}
	p.config.Sized(options.PVC, ask.sizeBytes)
	for _, e := range events { // here they are sent once, not at every attempt
		p.config.Events.Event(options.PVC, e.Type, e.Reason, e.Text)
	}
	return p.newVolume(options, ask, pool, made.Source), true, nil
}

// checkMonitors returns an error when nodes could not map the image, and reports
// monitors that nodes could not use.
func (p *Provisioner) checkMonitors(claim *corev1.PersistentVolumeClaim, r request, pool *access.Pool) error {
	if speak := r.params.MapOptions.Protocol(); len(pool.Monitors.Kernel(speak)) == 0 {
		number, port := 1, 6789
		if speak == volume.ProtocolV2 {
			number, port = 2, 3300
		}
		return fmt.Errorf("no remaining monitor speaks message protocol %d (port %d), the only one that nodes map images of this StorageClass with",
			number, port)
	}
	for _, unresolved := range pool.Monitors.Unresolved {
		p.config.Events.Event(claim, corev1.EventTypeWarning, "MonitorUnresolved", unresolved.Error())
	}
	return nil
}

// makeImage makes the image. For a claim that no longer wants its volume, it only finds
// the image that an earlier attempt may have made, and tells the library to forget the
// claim if there is none. The image that it finds still gets a volume: Kubernetes releases
// that and treats it by its reclaim policy, as if the claim had been deleted a moment
// later. A clone that must be flattened before use is an error.
func (p *Provisioner) makeImage(ctx context.Context, pool *access.Pool, want image.Wanted, wanted bool) (made image.Made, err error) {
	end := p.config.Journal.Begin(pool.ID, want.Intent())
	defer func() { end(err) }()
	maker := image.Maker{Pool: pool, Journal: p.config.Journal, MaxCloneDepth: p.config.MaxCloneDepth}
	if wanted {
		made, err = maker.Make(ctx, want)
		if err == nil && made.Flatten {
			err = p.config.Flattener.Request(want.Image, pool.Location, made.Parent)
		}
		return made, err
	}
	made, found, err := maker.Find(ctx, want)
	if err != nil {
		return made, err
	}
	if !found {
		return made, &controller.IgnoredError{Reason: "the claim does not want a volume any more"}
	}
	klog.FromContext(ctx).Info("The claim is gone, but its image was made: saving a volume, which Kubernetes then releases", "image", want.Image.Name)
	return made, nil
}
