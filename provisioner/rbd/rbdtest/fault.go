// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"fmt"
	"slices"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Call names a method that a FakeFault hits.
type Call string

// The calls. Calls to a pool have the names that rbd.Op has.
const (
	CallConnect     Call = "Connect"
	CallOpenPool    Call = "OpenPool"
	CallCreateImage Call = rbd.OpCreateImage
	CallImage       Call = rbd.OpImage
	CallSetMetadata Call = rbd.OpSetMetadata
	CallGrowImage   Call = rbd.OpGrowImage
	CallRemoveImage Call = rbd.OpRemoveImage
	CallWritten     Call = rbd.OpWritten
	CallNotes       Call = rbd.OpNotes
	CallSetNotes    Call = rbd.OpSetNotes
	CallRemoveNotes Call = rbd.OpRemoveNotes

	CallFinishRemovals  Call = rbd.OpFinishRemovals
	CallTrashImage      Call = rbd.OpTrashImage
	CallTrashed         Call = rbd.OpTrashed
	CallRemoveTrashed   Call = rbd.OpRemoveTrashed
	CallShrinkTrashed   Call = rbd.OpShrinkTrashed
	CallHandOverTrashed Call = rbd.OpHandOverTrashed

	CallSnapshotImage  Call = rbd.OpSnapshotImage
	CallCloneImage     Call = rbd.OpCloneImage
	CallRemoveSnapshot Call = rbd.OpRemoveSnapshot
	CallHasClone       Call = rbd.OpHasClone
	CallSnapshots      Call = rbd.OpSnapshots
	CallCloneDepth     Call = rbd.OpCloneDepth
	CallFlattenImage   Call = rbd.OpFlattenImage
)

// halfWay are the calls that leave something if a client dies in the middle of them.
var halfWay = [...]Call{CallCreateImage, CallCloneImage, CallRemoveImage, CallTrashImage, CallRemoveTrashed}

// FakeFault makes one call fail. Its zero fields change nothing.
type FakeFault struct {
	Call Call
	// Image is the image's name, its ID if it is in the trash, or the object of the notes
	// that the call must be about; empty means any.
	Image string
	// Before runs before the call takes effect, in the call's goroutine: while it blocks,
	// the caller may give up, and the call takes effect later, as with librbd. It may use
	// the Cluster.
	Before func()
	// Err is what the call returns. With TakesEffect, the call takes effect all the same,
	// as if its answer were lost.
	Err         error
	TakesEffect bool
	// HalfWay makes a call stop half-way, as if the client died: CreateImage and CloneImage
	// leave remains of the image, RemoveImage leaves it in the trash, TrashImage leaves it
	// without a name and not yet in the trash, and RemoveTrashed leaves its entry in the
	// trash. Other calls have no such state: Fake panics.
	HalfWay bool
	// Times is how many calls the fault hits; 0 means one.
	Times int
}

// Fake makes the next call that f is about fail. Faults of the same call hit in the order
// of the calls to Fake.
func (c *Cluster) Fake(f FakeFault) {
	if f.HalfWay && !slices.Contains(halfWay[:], f.Call) {
		panic(fmt.Sprintf("rbdtest: %s is done or not: the test has nothing to leave half-way", f.Call))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f.Times = max(f.Times, 1)
	c.faults = append(c.faults, &f)
}

// ClearFaults drops the faults that have hit no call yet.
func (c *Cluster) ClearFaults() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = nil
}

// fault takes the fault that hits a call, and returns an empty one if there is none.
func (c *Cluster) fault(call Call, image string) FakeFault {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.faults, func(f *FakeFault) bool {
		return f.Call == call && (f.Image == "" || f.Image == image)
	})
	if at < 0 {
		return FakeFault{}
	}
	f := c.faults[at]
	if f.Times--; f.Times == 0 {
		c.faults = slices.Delete(c.faults, at, at+1)
	}
	return *f
}

func (f FakeFault) before() {
	if f.Before != nil {
		f.Before()
	}
}
