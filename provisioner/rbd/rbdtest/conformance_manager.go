// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"errors"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

func (s suite) testHandOverTrashed(t *testing.T) {
	t.Parallel()
	const pool = "trash-manager"
	s.AddPool(t, pool)
	p := s.open(t, s.Manager, pool)
	inTrash := func(t *testing.T, name string) (id, attempt string) {
		t.Helper()
		id = trash(t, p, name)
		return id, `hand over image "` + id + `" in the trash of pool "` + pool + `": `
	}
	// until runs the manager until f returns the wanted error.
	until := func(t *testing.T, want error, f func() error) {
		t.Helper()
		often, limit := time.NewTicker(50*time.Millisecond), time.Now().Add(time.Minute)
		defer often.Stop()
		for ; ; <-often.C {
			if s.RunManager != nil {
				s.RunManager()
			}
			err := f()
			if errors.Is(err, want) {
				return
			}
			if err != nil || time.Now().After(limit) {
				t.Fatalf("got %v, want %v", err, want)
			}
		}
	}

	t.Run("removed", func(t *testing.T) {
		create(t, p, "handed", rbd.ImageSpec{SizeBytes: 1 << 30})
		id, _ := inTrash(t, "handed")
		for range 2 { // twice is harmless
			if err := p.HandOverTrashed(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		until(t, rbd.ErrImageNotFound, func() error {
			_, err := p.Trashed(t.Context(), id)
			return err
		})
	})
	t.Run("not there", func(t *testing.T) {
		wantError(t, p.HandOverTrashed(t.Context(), "abcdef"), rbd.ErrImageNotFound,
			`hand over image "abcdef" in the trash of pool "`+pool+`": `)
	})
	t.Run("denied", func(t *testing.T) {
		p := s.open(t, s.Restricted, s.Pool)
		create(t, p, "denied", rbd.ImageSpec{SizeBytes: 1 << 20})
		id := trash(t, p, "denied")
		for range 2 {
			wantError(t, p.HandOverTrashed(t.Context(), id), rbd.ErrPermissionDenied,
				`hand over image "`+id+`" in the trash of pool "`+s.Pool+`": `)
			// No other call is denied.
			if _, err := p.Trashed(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
	})
	for name, begin := range map[string]func(t *testing.T, image string) error{
		"watched": func(t *testing.T, image string) error {
			s.Watch(t, pool, image)
			return rbd.ErrImageInUse
		},
		"with a snapshot": func(t *testing.T, image string) error {
			s.Snapshot(t, pool, image, "s")
			return rbd.ErrImageHasSnapshots
		},
	} {
		t.Run(name, func(t *testing.T) {
			create(t, p, name, rbd.ImageSpec{SizeBytes: 1 << 20})
			want := begin(t, name)
			id, attempt := inTrash(t, name)
			if err := p.HandOverTrashed(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			until(t, rbd.ErrManagerFailed, func() error {
				err := p.HandOverTrashed(t.Context(), id)
				if err != nil {
					wantError(t, err, rbd.ErrManagerFailed, attempt)
				}
				return err
			})
			if err := p.RemoveTrashed(t.Context(), id); !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
			// The manager does not remember the failure.
			if err := p.HandOverTrashed(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
}
