// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"errors"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// ErrKilled is the error of the call in which FakeCrash kills a process.
var ErrKilled = errors.New("killed")

// FakeCrash kills the process that makes the next call that f is about. The test has to start
// another one, and to call ClearFaults.
func (c *Cluster) FakeCrash(f FakeFault) {
	f.Err = ErrKilled
	c.Fake(f)
	// A process that is dead cleans nothing up.
	if f.Call == CallCloneImage || f.Call == CallSnapshotImage {
		c.Fake(FakeFault{Call: CallRemoveSnapshot, Err: ErrKilled})
	}
}

// CreateCrashes returns the moments at which a process can be killed that makes an image.
func CreateCrashes() map[string]FakeFault {
	return map[string]FakeFault{
		"before the intent": {Call: CallSetNotes},
		"after the intent":  {Call: CallSetNotes, TakesEffect: true},
		"before the image":  {Call: CallCreateImage},
		"in the image":      {Call: CallCreateImage, HalfWay: true},
		"after the image":   {Call: CallCreateImage, TakesEffect: true},
		"before the mark":   {Call: CallSetMetadata},
		"after the mark":    {Call: CallSetMetadata, TakesEffect: true},
	}
}

// CloneCrashes returns the moments at which a process can be killed that clones an image, if
// the clone is to be larger than its source.
func CloneCrashes(source, clone string) map[string]FakeFault {
	return map[string]FakeFault{
		"before the intent":            {Call: CallSetNotes},
		"after the intent":             {Call: CallSetNotes, TakesEffect: true},
		"before the snapshot":          {Call: CallSnapshotImage},
		"after the snapshot":           {Call: CallSnapshotImage, TakesEffect: true},
		"before the clone":             {Call: CallCloneImage},
		"in the clone":                 {Call: CallCloneImage, HalfWay: true},
		"after the clone":              {Call: CallCloneImage, TakesEffect: true},
		"before the snapshot's end":    {Call: CallRemoveSnapshot},
		"after the snapshot's end":     {Call: CallRemoveSnapshot, TakesEffect: true},
		"before it grows":              {Call: CallGrowImage},
		"after it has grown":           {Call: CallGrowImage, TakesEffect: true},
		"before the mark":              {Call: CallSetMetadata},
		"after the mark":               {Call: CallSetMetadata, TakesEffect: true},
		"before the source is seen":    {Call: CallImage, Image: source},
		"before it is known to be new": {Call: CallImage, Image: clone},
		"before the journal is read":   {Call: CallNotes},
	}
}

// FakeImages passes whatever Image returns to change from now on, so that images look like
// some that a Cluster never has; nil changes nothing. change may use the Cluster.
func (c *Cluster) FakeImages(change func(*rbd.Image)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.show = change
}

func (c *Cluster) shown() func(*rbd.Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.show
}
