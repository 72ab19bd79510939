// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// run runs f, which blocks and cannot be cancelled, like a call of librados or librbd, and
// waits for it until ctx ends. f owns what it works on and gives it back itself, however late
// it returns. A caller that gave up gets an error that wraps ErrTimeout and the context's.
func run(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	// The owner of this goroutine is the Connector: f counts as a running call of a
	// connection, and Close waits for those.
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return &interrupted{rbd.ErrTimeout, context.Cause(ctx)}
	}
}

// attempt is what operate knows of a kind of call.
type attempt struct {
	// call is what the log names it, key the log's key for what it is about.
	call, key string
	// text is the error's, a format for what it is about and the pool.
	text string
	// notFound is what ENOENT means; nil for success.
	notFound error
	// locks says that the call holds an image's name until it returns.
	locks bool
}

func onImage(verb string) attempt {
	return attempt{verb, "image", verb + " image %q in pool %q", rbd.ErrImageNotFound, true}
}

// onID is for an image named by its ID, in the trash or not. The call holds the ID as a
// name; holding up an image that really has that name does no harm.
func onID(verb string) attempt {
	return attempt{verb, "id", verb + " the image with the ID %q in pool %q", rbd.ErrImageNotFound, true}
}

func onTrashed(verb string) attempt {
	return attempt{verb + " trashed", "id", verb + " image %q in the trash of pool %q", rbd.ErrImageNotFound, true}
}

// onNotes is for one operation of one OSD, which puts these in a row itself.
func onNotes(verb string, notFound error) attempt {
	return attempt{verb + " notes", "object", verb + " notes %q in pool %q", notFound, false}
}

// attempts has all calls but HandOverTrashed.
var attempts = map[string]attempt{
	rbd.OpCreateImage: onImage("create"),
	rbd.OpImage:       onImage("describe"),
	rbd.OpSetMetadata: onImage("set metadata of"),
	rbd.OpGrowImage:   onImage("grow"),
	rbd.OpRemoveImage: onImage("remove"),
	rbd.OpWritten:     onImage("look into"),
	// It holds no image's name: an image that has one of these names now is another image.
	rbd.OpFinishRemovals: {call: "finish removals", text: "finish interrupted removals in pool %[2]q"},

	rbd.OpTrashImage:    onImage("move to the trash"),
	rbd.OpTrashed:       onTrashed("look up"),
	rbd.OpRemoveTrashed: onTrashed("remove"),
	rbd.OpShrinkTrashed: onTrashed("shrink"),

	rbd.OpSnapshotImage:  onID("make a snapshot of"),
	rbd.OpCloneImage:     onImage("clone"),
	rbd.OpRemoveSnapshot: onID("remove a snapshot of"),
	rbd.OpHasClone:       onID("list the clones of"),
	rbd.OpSnapshots:      onID("list the snapshots of"),
	rbd.OpCloneDepth:     onImage("look for the parents of"),
	rbd.OpFlattenImage:   onImage("flatten"),

	rbd.OpNotes: onNotes("read", nil),
	// Only the pool can be missing: the call makes a missing object.
	rbd.OpSetNotes:    onNotes("set", rbd.ErrPoolNotFound),
	rbd.OpRemoveNotes: onNotes("remove", nil),
}

// flattening begins the names that FlattenImage holds. No image has such a name, so other
// calls about the image do not wait.
const flattening = "\x00flattening "

// operate makes a call to a pool, for rbd.Around. It holds the image's name and a share in
// the pool until the call returns, not until the caller gives up. The error says what was
// attempted.
func (p *pool) operate(ctx context.Context, op rbd.Op, call func(context.Context) error) error {
	if op.Name == rbd.OpHandOverTrashed {
		return call(ctx) // it does all this in its own way
	}
	a := attempts[op.Name]
	if err := p.try(ctx, a, op, call); err != nil {
		return fmt.Errorf(a.text+": %w", op.Image, p.name, err)
	}
	return nil
}

func (p *pool) try(ctx context.Context, a attempt, op rbd.Op, call func(context.Context) error) error {
	name := op.Image
	if op.Name == rbd.OpFinishRemovals {
		name = trashObject
	}
	if err := checkName(name); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return &interrupted{rbd.ErrTimeout, context.Cause(ctx)}
	}
	// The wait for the name is bounded, too.
	ctx, cancel := context.WithTimeout(ctx, p.connector.cfg.Timeout+grace)
	defer cancel()
	unlock, notes := func() {}, name
	if a.locks {
		lock := imageName{p.link.conn.fsid(), p.number, name}
		if op.Name == rbd.OpFlattenImage {
			lock.image = flattening + name
		}
		var err error
		if unlock, err = p.connector.names.lock(ctx, lock); err != nil {
			return fmt.Errorf("%w: %w", rbd.ErrImageBusy, err)
		}
		notes = ""
	}
	counted, err := p.await(ctx, notes)
	if err != nil {
		unlock()
		return err
	}
	start := time.Now()
	err = run(ctx, func() error {
		defer unlock()
		err := translate(call(ctx), a.notFound)
		counted.end(err)
		a.log(ctx, op, p.name, time.Since(start), err)
		return err
	})
	counted.abandon() // unless it has ended
	return err
}

func (a attempt) log(ctx context.Context, op rbd.Op, pool string, took time.Duration, err error) {
	log, message := klog.FromContext(ctx), "Called librbd"
	switch a.key {
	case "image":
		log = log.WithValues("image", op.Image)
	case "id":
		log = log.WithValues("id", op.Image)
	case "object":
		log, message = log.WithValues("object", op.Image), "Called librados"
	}
	log.V(4).Info(message, "call", a.call, "pool", pool, "duration", took, "err", err)
}

// await counts a call in, once that can be.
func (p *pool) await(ctx context.Context, notes string) (*running, error) {
	for {
		counted, earlier, err := p.begin(notes)
		if earlier == nil {
			return counted, err
		}
		select {
		case <-earlier:
		case <-ctx.Done():
			return nil, &interrupted{errUnanswered, context.Cause(ctx)}
		}
	}
}

// checkName refuses what a C function would read as another name.
func checkName(name string) error {
	if name == "" {
		return fmt.Errorf("an empty name is %w", rbd.ErrNotSupported)
	}
	return checkText(name)
}

// checkText refuses text that a C function would cut short.
func checkText(text string) error {
	if strings.ContainsRune(text, 0) {
		return fmt.Errorf("a zero byte is %w", rbd.ErrNotSupported)
	}
	return nil
}
