// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// everyCall makes each call about an image of a pool once.
func everyCall(ctx context.Context, p rbd.Pool, image string) map[string]error {
	errs := map[string]error{
		"create": p.CreateImage(ctx, image, rbd.ImageSpec{SizeBytes: 1 << 20}),
	}
	_, errs["describe"] = p.Image(ctx, image)
	errs["set metadata of"] = p.SetMetadata(ctx, image, map[string]string{"a": "b"})
	errs["grow"] = p.GrowImage(ctx, image, 2<<20)
	errs["remove"] = p.RemoveImage(ctx, image)
	return errs
}

// testPermissions checks that a user whose caps name another pool is refused each call.
func (s suite) testPermissions(t *testing.T) {
	t.Parallel()
	admin := s.open(t, s.Admin, s.OtherPool)
	create(t, admin, "forbidden", rbd.ImageSpec{SizeBytes: 1 << 20})
	s.wantDenied(t, s.open(t, s.Restricted, s.OtherPool), "forbidden", "not-there")
	describe(t, admin, "forbidden")
}

// testNoCaps checks that a user without any caps for OSDs is refused each call or, if
// Silent, gets no answer, which stops no other user of the same connector.
func (s suite) testNoCaps(t *testing.T) {
	t.Parallel()
	c := s.NewConnector(t)
	if !s.Silent {
		s.wantDenied(t, openPool(t, s.connect(t, c, s.NoCaps), s.Pool), "no-caps")
		return
	}
	cluster := s.connect(t, c, s.NoCaps)
	begun := make(chan struct{})
	ended := make(chan error)
	go func() {
		close(begun)
		_, err := cluster.OpenPool(t.Context(), s.Pool)
		ended <- err
	}()
	<-begun
	p := openPool(t, s.connect(t, c, s.Admin), s.Pool)
	create(t, p, "beside-no-caps", rbd.ImageSpec{SizeBytes: 1 << 20})
	err := <-ended
	wantError(t, err, rbd.ErrNoOSD, `open pool "`+s.Pool+`": `, s.NoCaps.Key)
	wantError(t, err, rbd.ErrTimeout, `open pool "`+s.Pool+`": `)
}

// wantDenied makes every call, and checks that each is refused.
func (s suite) wantDenied(t *testing.T, p rbd.Pool, images ...string) {
	t.Helper()
	for _, image := range images {
		for call, err := range everyCall(t.Context(), p, image) {
			wantError(t, err, rbd.ErrPermissionDenied, fmt.Sprintf("%s image %q in pool ", call, image))
		}
		for call, err := range everyNotesCall(t.Context(), p, image) {
			wantError(t, err, rbd.ErrPermissionDenied, fmt.Sprintf("%s notes %q in pool ", call, image))
		}
	}
	wantError(t, p.TrashImage(t.Context(), "any", 0), rbd.ErrPermissionDenied, `move to the trash image "any" in pool `)
	_, err := p.Trashed(t.Context(), "4711")
	wantError(t, err, rbd.ErrPermissionDenied, `look up image "4711" in the trash of pool `)
	wantError(t, p.RemoveTrashed(t.Context(), "4711"), rbd.ErrPermissionDenied, `remove image "4711" in the trash of pool `)
	_, err = p.ShrinkTrashed(t.Context(), "4711", 1)
	wantError(t, err, rbd.ErrPermissionDenied, `shrink image "4711" in the trash of pool `)
}

func (s suite) testFull(t *testing.T) {
	t.Parallel()
	// A full pool that refused removals would stay full, also if it was never used for any.
	used, fresh := "full-used", "full-fresh"
	pools := map[string]rbd.Pool{}
	for _, pool := range []string{used, fresh} {
		s.AddPool(t, pool)
		pools[pool] = s.open(t, s.Admin, pool)
		create(t, pools[pool], "before", rbd.ImageSpec{SizeBytes: 1 << 20})
		create(t, pools[pool], "before-too", rbd.ImageSpec{SizeBytes: 1 << 20})
	}
	create(t, pools[used], "gone", rbd.ImageSpec{SizeBytes: 1 << 20})
	remove(t, pools[used], "gone")
	for pool := range pools {
		s.SetFull(t, pool, true)
	}
	for pool, p := range pools {
		in := ` in pool "` + pool + `": `
		for range 2 { // The first attempt leaves nothing behind.
			wantError(t, p.CreateImage(t.Context(), "after", rbd.ImageSpec{SizeBytes: 1 << 20}), rbd.ErrPoolFull, `create image "after"`+in)
			_, err := p.Image(t.Context(), "after")
			wantError(t, err, rbd.ErrImageNotFound, `describe image "after"`+in)
		}
		// Ceph may allow calls that take no room.
		if err := p.SetMetadata(t.Context(), "before", map[string]string{"a": "b"}); err != nil {
			wantError(t, err, rbd.ErrPoolFull, `set metadata of image "before"`+in)
		}
		if err := p.GrowImage(t.Context(), "before", 2<<20); err != nil {
			wantError(t, err, rbd.ErrPoolFull, `grow image "before"`+in)
		}
		describe(t, p, "before")
	}
	for pool, p := range pools {
		remove(t, p, "before")
		s.SetFull(t, pool, false)
		create(t, p, "after", rbd.ImageSpec{SizeBytes: 1 << 20})
		remove(t, p, "after")
	}
}

// testContext checks that the end of a context ends a call, and that the error says so.
func (s suite) testContext(t *testing.T) {
	t.Parallel()
	c := s.NewConnector(t)
	cluster := s.connect(t, c, s.Admin)
	p := openPool(t, cluster, s.Pool)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()

	_, err := c.Connect(ctx, s.Admin)
	wantError(t, err, rbd.ErrUnreachable, connectAttempt)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error does not wrap context.Canceled: %v", err)
	}
	_, err = cluster.OpenPool(ctx, s.Pool)
	wantInterrupted(t, err, context.Canceled, "open pool ")
	for call, err := range everyCall(ctx, p, "cancelled") {
		wantInterrupted(t, err, context.Canceled, call+" image ")
	}
	// A call whose context had ended before did nothing.
	_, err = p.Image(t.Context(), "cancelled")
	wantError(t, err, rbd.ErrImageNotFound, `describe image "cancelled"`)
}

// wantInterrupted checks the error of a call whose context ended first, because of cause.
func wantInterrupted(t *testing.T, err, cause error, attempt string) {
	t.Helper()
	wantError(t, err, rbd.ErrTimeout, attempt)
	if !errors.Is(err, cause) {
		t.Errorf("the error does not wrap %q: %v", cause, err)
	}
}

// testDeadline stops the OSDs: calls end at their deadlines, the images' names stay locked,
// and calls succeed again once the OSDs are back.
func (s suite) testDeadline(t *testing.T) {
	c := s.NewConnector(t)
	cluster := s.connect(t, c, s.Admin)
	p := openPool(t, cluster, s.Pool)
	for _, name := range []string{"paused-remove", "paused-metadata", "paused-grow", "paused-image", "paused-closed"} {
		create(t, p, name, rbd.ImageSpec{SizeBytes: 1 << 20})
	}
	other := openPool(t, s.connect(t, c, s.Restricted), s.Pool)
	closing, err := cluster.OpenPool(t.Context(), s.Pool)
	if err != nil {
		t.Fatal(err)
	}

	resume := s.Pause(t)
	defer resume() // harmless if it was called already
	// The slack is for a busy machine.
	const deadline, slack = 300 * time.Millisecond, 2 * time.Second
	timed := func(attempt string, call func(context.Context) error) {
		t.Helper()
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		wantInterrupted(t, call(ctx), context.DeadlineExceeded, attempt)
		if took := time.Since(begin); took < deadline || took > deadline+slack {
			t.Errorf("%s: the call took %s, want %s", attempt, took, deadline)
		}
	}
	calls := map[string]func(context.Context) error{
		`create image "paused-create"`: func(ctx context.Context) error {
			return p.CreateImage(ctx, "paused-create", rbd.ImageSpec{SizeBytes: 1 << 20})
		},
		`remove image "paused-remove"`: func(ctx context.Context) error { return p.RemoveImage(ctx, "paused-remove") },
		`set metadata of image "paused-metadata"`: func(ctx context.Context) error {
			return p.SetMetadata(ctx, "paused-metadata", map[string]string{"a": "b"})
		},
		`grow image "paused-grow"`:       func(ctx context.Context) error { return p.GrowImage(ctx, "paused-grow", 2<<20) },
		`describe image "paused-image"`:  func(ctx context.Context) error { _, err := p.Image(ctx, "paused-image"); return err },
		`describe image "paused-closed"`: func(ctx context.Context) error { _, err := closing.Image(ctx, "paused-closed"); return err },
	}
	for attempt, call := range calls {
		timed(attempt, call)
	}
	// The calls hold the names against other connections, too.
	timed(`remove image "paused-create" in pool "`+s.Pool+`": an earlier call on it has not ended`, func(ctx context.Context) error {
		return other.RemoveImage(ctx, "paused-create")
	})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(deadline, cancel)
	_, err = other.Image(ctx, "paused-remove")
	wantInterrupted(t, err, context.Canceled, `describe image "paused-remove"`)
	// A pool can be closed while librbd works on it.
	closing.Close()
	resume()

	for _, name := range []string{"paused-create", "paused-remove"} {
		// The earlier call may have taken effect, or half of it, or not.
		err := p.CreateImage(t.Context(), name, rbd.ImageSpec{SizeBytes: 1 << 20})
		if err != nil {
			wantError(t, err, rbd.ErrImageExists, `create image "`+name)
		}
		if err := p.RemoveImage(t.Context(), name); err != nil {
			wantError(t, err, rbd.ErrImageNotFound, `remove image "`+name)
		}
		create(t, p, name, rbd.ImageSpec{SizeBytes: 1 << 20})
	}
	for _, name := range []string{"paused-metadata", "paused-image", "paused-closed"} {
		describe(t, p, name)
	}
	if err := p.GrowImage(t.Context(), "paused-grow", 2<<20); err != nil {
		t.Error(err)
	}
	if got := describe(t, p, "paused-grow").SizeBytes; got != 2<<20 {
		t.Errorf("the image has %d bytes", got)
	}
	if err := p.SetMetadata(t.Context(), "paused-metadata", map[string]string{"c": "d"}); err != nil {
		t.Error(err)
	}
}
