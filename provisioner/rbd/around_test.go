// SPDX-License-Identifier: Apache-2.0

package rbd_test

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// aroundOps has the Op of each method of a Pool, for a call about the image "this".
var aroundOps = map[string]rbd.Op{
	"CreateImage":    {Name: rbd.OpCreateImage, Image: "this", Changes: true},
	"Image":          {Name: rbd.OpImage, Image: "this"},
	"SetMetadata":    {Name: rbd.OpSetMetadata, Image: "this", Changes: true},
	"GrowImage":      {Name: rbd.OpGrowImage, Image: "this", Changes: true},
	"RemoveImage":    {Name: rbd.OpRemoveImage, Image: "this", Changes: true, Slow: true},
	"FinishRemovals": {Name: rbd.OpFinishRemovals, Changes: true, Slow: true},
	"Written":        {Name: rbd.OpWritten, Image: "this"},

	"TrashImage":      {Name: rbd.OpTrashImage, Image: "this", Changes: true},
	"Trashed":         {Name: rbd.OpTrashed, Image: "this"},
	"RemoveTrashed":   {Name: rbd.OpRemoveTrashed, Image: "this", Changes: true, Slow: true},
	"ShrinkTrashed":   {Name: rbd.OpShrinkTrashed, Image: "this", Changes: true, Slow: true},
	"HandOverTrashed": {Name: rbd.OpHandOverTrashed, Image: "this", Changes: true},

	"SnapshotImage":  {Name: rbd.OpSnapshotImage, Image: "this", Changes: true},
	"CloneImage":     {Name: rbd.OpCloneImage, Image: "this", Changes: true},
	"RemoveSnapshot": {Name: rbd.OpRemoveSnapshot, Image: "this", Changes: true},
	"HasClone":       {Name: rbd.OpHasClone, Image: "this"},
	"Snapshots":      {Name: rbd.OpSnapshots, Image: "this"},
	"CloneDepth":     {Name: rbd.OpCloneDepth, Image: "this"},
	"FlattenImage":   {Name: rbd.OpFlattenImage, Image: "this", Changes: true, Slow: true},

	"Notes":       {Name: rbd.OpNotes, Image: "this"},
	"SetNotes":    {Name: rbd.OpSetNotes, Image: "this", Changes: true},
	"RemoveNotes": {Name: rbd.OpRemoveNotes, Image: "this", Changes: true},
}

// TestAround calls every method of a Pool, so a new method needs a row above.
func TestAround(t *testing.T) {
	type key struct{}
	refused := errors.New("refused")
	for method := range reflect.TypeFor[rbd.Pool]().Methods() {
		if method.Name == "Close" {
			continue // Close is no call
		}
		t.Run(method.Name, func(t *testing.T) {
			want, known := aroundOps[method.Name]
			if !known {
				t.Fatal("aroundOps lacks this method")
			}
			if want.Name != method.Name {
				t.Errorf("the row is about %s", want.Name)
			}
			// The inner pool shows which of its methods is called; there is no pool in it
			// to answer.
			var outer, inner []rbd.Op
			pool := rbd.Around(nil, func(ctx context.Context, op rbd.Op, _ func(context.Context) error) error {
				if ctx.Value(key{}) == nil {
					t.Error("the context is not the one that was handed in")
				}
				inner = append(inner, op)
				return refused
			})
			pool = rbd.Around(pool, func(ctx context.Context, op rbd.Op, call func(context.Context) error) error {
				outer = append(outer, op)
				return call(context.WithValue(ctx, key{}, true))
			})
			checkRefused(t, callAbout(t, pool, method, "this"), refused)
			if diff := cmp.Diff([][]rbd.Op{{want}, {want}}, [][]rbd.Op{outer, inner}); diff != "" {
				t.Errorf("the calls (-want +got):\n%s", diff)
			}
		})
	}
}

// answering is a pool that describes every image, once it may.
type answering struct {
	rbd.Pool
	may chan struct{}
}

func (a answering) Image(context.Context, string) (rbd.Image, error) {
	<-a.may
	return rbd.Image{ID: "1"}, nil
}

// TestAroundThatReturnsEarly checks that the answer of a call that outlives its caller goes
// nowhere.
func TestAroundThatReturnsEarly(t *testing.T) {
	refused := errors.New("refused")
	a := answering{may: make(chan struct{})}
	done := make(chan error)
	pool := rbd.Around(a, func(ctx context.Context, _ rbd.Op, call func(context.Context) error) error {
		go func() { done <- call(ctx) }()
		return refused
	})
	image, err := pool.Image(t.Context(), "this")
	close(a.may)
	if !errors.Is(err, refused) || image.ID != "" {
		t.Errorf("got %+v, %v, want only the error", image, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// callAbout calls a method with the image's name as the first argument after the context,
// and zero values for the others.
func callAbout(t *testing.T, pool rbd.Pool, method reflect.Method, image string) []reflect.Value {
	t.Helper()
	args := []reflect.Value{reflect.ValueOf(t.Context())}
	for i := 1; i < method.Type.NumIn(); i++ {
		if method.Type.IsVariadic() && i == method.Type.NumIn()-1 {
			break
		}
		arg := reflect.New(method.Type.In(i)).Elem()
		if i == 1 {
			arg.SetString(image)
		}
		args = append(args, arg)
	}
	return reflect.ValueOf(pool).MethodByName(method.Name).Call(args)
}

// checkRefused checks that a call has returned the error and zero values.
func checkRefused(t *testing.T, results []reflect.Value, want error) {
	t.Helper()
	last := len(results) - 1
	if err, _ := results[last].Interface().(error); !errors.Is(err, want) {
		t.Errorf("got the error %v, want %v", err, want)
	}
	for _, result := range results[:last] {
		if !result.IsZero() {
			t.Errorf("got %v beside the error", result)
		}
	}
}
