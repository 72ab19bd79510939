// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"fmt"
	"slices"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Call names a method that a FakeFault hits.
type Call string

// The calls. Those to a pool have the names that rbd.Op has.
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
	CallHandOverTrashed Call = rbd.OpHandOverTrashed

	CallSnapshotImage  Call = rbd.OpSnapshotImage
	CallCloneImage     Call = rbd.OpCloneImage
	CallRemoveSnapshot Call = rbd.OpRemoveSnapshot
	CallHasClone       Call = rbd.OpHasClone
	CallSnapshots      Call = rbd.OpSnapshots
	CallCloneDepth     Call = rbd.OpCloneDepth
	CallFlattenImage   Call = rbd.OpFlattenImage
)

// halfWay are the calls that a client can die in the middle of.
var halfWay = [...]Call{CallCreateImage, CallCloneImage, CallRemoveImage, CallTrashImage, CallRemoveTrashed}

// FakeFault makes one call go wrong. Its zero fields change nothing.
type FakeFault struct {
	Call Call
	// Image is the name that the call must be about, of an image, the ID of one
	// in the trash, or the object of notes; empty means any.
	Image string
	// Before runs in the call, before it takes effect and in its own
	// goroutine: while it blocks, the caller may give up, and the call takes
	// effect later, as with librbd. It may use the Cluster.
	Before func()
	// Err is what the call returns, once it is over. With TakesEffect it did
	// what it was asked for nevertheless: its answer was lost.
	Err         error
	TakesEffect bool
	// HalfWay makes a CreateImage or a CloneImage that does not take effect leave
	// remains of the image, a RemoveImage leave it in the trash, a TrashImage leave it
	// without a name and not yet in the trash, and a RemoveTrashed leave its entry in
	// the trash, as a client does that dies. Other calls have no such state: Fake
	// panics.
	HalfWay bool
	// Times is how many calls it hits; 0 means one.
	Times int
}

// Fake makes the next call that f is about go wrong. Faults of the same call
// hit in the order in which they were given.
func (c *Cluster) Fake(f FakeFault) {
	if f.HalfWay && !slices.Contains(halfWay[:], f.Call) {
		panic(fmt.Sprintf("rbdtest: %s is done or not: the test has nothing to leave half-way", f.Call))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f.Times = max(f.Times, 1)
	c.faults = append(c.faults, &f)
}

// ClearFaults takes back what Fake was given and what has hit no call.
func (c *Cluster) ClearFaults() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = nil
}

// fault takes the fault that hits a call, and returns an empty one when there
// is none.
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
