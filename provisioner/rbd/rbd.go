// SPDX-License-Identifier: Apache-2.0

// Package rbd says what this program asks of a Ceph cluster: interfaces, values and
// errors. It is the seam between the Kubernetes side and librbd, and knows neither.
//
// Package goceph implements it with librados and librbd, package rbdtest in memory; the
// conformance suite of rbdtest holds both to the contract in these comments.
package rbd

import (
	"context"
	"strings"
)

// Credentials say which cluster to connect to, and as whom.
type Credentials struct {
	// Monitors are addresses as librados takes them: "IP", "IP:port",
	// "v1:IP:port" or "v2:IP:port", IPv6 in brackets. No host names: one that
	// does not resolve would fail the whole list.
	Monitors []string
	// User is the Ceph user without "client.".
	User string
	Key  Key
}

// MonHost returns the monitors as a value of librados's option mon_host.
func (c Credentials) MonHost() string { return strings.Join(c.Monitors, ",") }

// Connector makes connections. It is safe for concurrent use.
type Connector interface {
	// Connect returns a connection to the cluster. Equal Credentials, with monitors in
	// the same order, share a connection, which closes after some time without users; so
	// connecting for each operation is cheap. The caller must Close the Cluster.
	//
	// Errors: ErrUnreachable, ErrPermissionDenied (wrong key or unknown user),
	// ErrInvalidKey, ErrKeyType. While one of several monitors does not answer, librados can't tell a
	// wrong key from that, and gives ErrUnreachable.
	Connect(ctx context.Context, c Credentials) (Cluster, error)
}

// Cluster is one holder's share in a connection. It is safe for concurrent use.
type Cluster interface {
	// FSID returns the cluster's identity, a UUID. It never changes.
	FSID() string
	// Version asks a monitor for the version of Ceph that it runs, as "16.2.15".
	//
	// Errors: ErrPermissionDenied, ErrTimeout, ErrConnectionLost.
	Version(ctx context.Context) (string, error)
	// OpenPool opens a pool. The Pool holds its own share in the connection and outlives
	// the Cluster. Only its calls show what the user may do there.
	//
	// Errors: ErrPoolNotFound, ErrPermissionDenied, ErrTimeout, ErrNoOSD, ErrConnectionLost.
	OpenPool(ctx context.Context, name string) (Pool, error)
	// Close gives the share back. It does not block; calling it twice is harmless.
	Close()
}

// Pool is an open pool. It is safe for concurrent use.
//
// Calls for the same name, or the same ID, of an image in a pool run one after the other,
// whichever connections of one Connector they use: a call that outlived its deadline keeps
// the name until librbd returns, and others wait for it within their own deadline. All
// calls about images may return ErrTimeout (with or without ErrImageBusy),
// ErrConnectionLost or ErrPermissionDenied.
type Pool interface {
	Images
	Trash
	Clones
	Notes
	// Close gives the pool back once running calls have ended. It does not block; calling
	// it twice is harmless.
	Close()
}

// Images are the calls that a claim and its volume need.
type Images interface {
	// CreateImage makes an empty image of format 2 with the feature layering and no other
	// (except data-pool if DataPool is set). It sets no metadata.
	//
	// Errors: ErrImageExists, also if leftovers of an image that was half made or half
	// removed hold the name; Image does not find these, and RemoveImage clears them.
	// ErrPoolNotFound for the data pool or the pool, ErrPermissionDenied also if the user
	// may not read the data pool, ErrPoolFull, ErrNotSupported. The first image of a pool
	// can take some seconds.
	CreateImage(ctx context.Context, name string, spec ImageSpec) error
	// Image describes an image without changing it or watching it.
	//
	// Errors: ErrImageNotFound, also for leftovers of an image, and for an image whose
	// interrupted removal left it in the trash, where it takes up room: only RemoveImage
	// tells whether anything is left to remove.
	Image(ctx context.Context, name string) (Image, error)
	// SetMetadata adds entries to an image's metadata and replaces those with the same
	// key; others stay.
	//
	// Errors: ErrImageNotFound, ErrPoolFull.
	SetMetadata(ctx context.Context, name string, entries map[string]string) error
	// GrowImage gives an image at least that size. A larger image stays as it is, which is no
	// error: no call makes an image smaller. Clients may have the image open or mapped, and
	// see its new size. Growing takes no room, so a pool over its quota need not prevent it.
	//
	// Errors: ErrImageNotFound, ErrImageHeld, ErrPoolFull.
	GrowImage(ctx context.Context, name string, sizeBytes uint64) error
	// RemoveImage removes an image and its data, or the leftovers of one, or what an
	// interrupted RemoveImage of that name left in the trash. It is safe to repeat after
	// any error. It takes time in proportion to the image's size, even if nothing was
	// written: there is no object map to consult.
	//
	// Errors: ErrImageNotFound or none if there was no image, or only leftovers of one;
	// in both cases nothing is left. ErrImageInUse if a client watches it,
	// ErrImageHasSnapshots, ErrImageHeld; in these cases it stays. A full pool does not
	// prevent it.
	RemoveImage(ctx context.Context, name string) error
	// FinishRemovals removes what interrupted RemoveImage calls for these names left in
	// the trash. An image that has such a name by now stays, and so does what others have
	// put into the trash. Having nothing to do is no error.
	FinishRemovals(ctx context.Context, names ...string) error
	// Written reports whether anything was written into an image. It looks at the first
	// 1024 objects: file systems and partition tables begin there, but the beginning of a
	// clone need not be written to. What a clone shares with its parent does not count.
	// Written changes nothing.
	//
	// Errors: ErrImageNotFound.
	Written(ctx context.Context, name string) (bool, error)
}

// Notes are what a program keeps in a pool beside the images: objects, each of which
// holds keys with small values. "profile rbd" allows them, and no list of images shows
// them. A call that changes notes does all of it or nothing. Calls do not wait for one
// another: of two that set the same key, either may win. All may return ErrTimeout,
// ErrConnectionLost, ErrPermissionDenied or, in an erasure-coded pool, ErrErasureCoded.
type Notes interface {
	// Notes returns the notes of an object that have one of the keys, or all of them if
	// no key is given. A missing object has none, which is no error; nor is a pool that
	// was removed since it was opened.
	Notes(ctx context.Context, object string, keys ...string) (map[string][]byte, error)
	// SetNotes adds notes and replaces those with the same key; others stay. It makes a
	// missing object. A key is not empty and has no zero byte; a value is any bytes. The
	// caller does not change the map or the values later.
	//
	// Errors: ErrPoolNotFound. A full pool does not prevent it: deletions need notes.
	SetNotes(ctx context.Context, object string, notes map[string][]byte) error
	// RemoveNotes removes notes. A missing note, or even a missing object, is no error.
	// The object stays.
	//
	// Errors: ErrPoolFull.
	RemoveNotes(ctx context.Context, object string, keys ...string) error
}

// ImageSpec describes an image to be made.
type ImageSpec struct {
	// SizeBytes is the size of the image; it may be any number of bytes.
	SizeBytes uint64
	// DataPool is the pool for the image's data, if that differs from the pool of its
	// header: an erasure-coded pool. Empty for none; the pool itself counts as none.
	DataPool string
}

// Image is what a cluster says about an image.
type Image struct {
	// ID names the image inside its pool for as long as it lives, even when it is renamed
	// or in the trash.
	ID        string
	SizeBytes uint64
	// Features are the sorted names that "rbd info" prints; "feature-N" for a bit N that
	// has no name here.
	Features []string
	// DataPool is the name of the data pool, or empty.
	DataPool string
	// Metadata are all entries of the image's metadata; never nil.
	Metadata map[string]string
	// Watchers are the sorted addresses of the clients that have the image open or mapped.
	Watchers []string
	// Snapshots are the sorted names of its snapshots, without those that Kept counts.
	Snapshots []string
	// Kept is how many more there are that are not people's: those of groups, those of mirroring,
	// which TrashImage ends, and removed ones, which Ceph keeps until the last clone that depends
	// on them goes; they prevent RemoveTrashed, but not TrashImage.
	Kept int
	// Held are the commands that end what else keeps the image from being removed: that it is
	// in a group, has a group's snapshots, or is mirrored without being the primary.
	Held []string
	// Parent is the ID of the image that this one is a clone of; empty for an image that
	// was made empty, and for a flattened clone. It is in the same pool, unless another
	// program made the clone.
	Parent string
}

// Names in Image.Features. Ceph gives operations to a clone, and to an image that has clones
// or is in a group; Linux maps such images since 4.16.
const (
	FeatureLayering   = "layering"
	FeatureDataPool   = "data-pool"
	FeatureOperations = "operations"
	FeatureStriping   = "striping"
)
