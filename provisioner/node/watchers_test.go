// SPDX-License-Identifier: Apache-2.0

package node

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"ceph.com/rbd-provisioner/provisioner/krbd"
)

const otherClient = "10.0.0.5:0/123"

// Whoever has the image keeps it until it lets go. Those who only read wait for a writer,
// too; writers that share a block volume do not.
func TestWatchedImage(t *testing.T) {
	for _, capability := range []*csi.VolumeCapability{
		fileSystem(ext4, writer), fileSystem(ext4, singleWriter), block(writer),
	} {
		w := newWorld(t)
		w.image.fsType, w.capability = ext4, capability
		stop := w.cluster.Watch(testPool, testImage, otherClient)
		w.refused(w.stage(t.Context()), codes.FailedPrecondition, "rbd/"+testImage, "in use by the client at "+otherClient, "node-1",
			"within a minute, nothing needs to be done", "from all its images: ceph osd blocklist add "+otherClient)
		w.clean()
		stop()
		w.must(w.stage(t.Context()))
		if w.node.requests[0].ReadOnly {
			t.Errorf("%v: mapped read-only", capability)
		}
	}
	// Neither readers nor volumes with many writers mind.
	for _, capability := range []*csi.VolumeCapability{fileSystem(ext4, readers), block(readers), block(writers)} {
		w := newWorld(t)
		w.image.fsType, w.capability = ext4, capability
		w.cluster.Watch(testPool, testImage, otherClient)
		w.must(w.stage(t.Context()))
		w.must(w.stage(t.Context()))
		if got, want := w.node.requests[0].ReadOnly, capability.GetAccessMode().GetMode() == readers; got != want {
			t.Errorf("%v: mapped read-only: got %t, want %t", capability, got, want)
		}
	}
}

// Two nodes look at the same moment, see nobody, and map: each sees the other then, and
// lets go.
func TestTwoNodesAtOnce(t *testing.T) {
	for name, capability := range map[string]*csi.VolumeCapability{"file system": fileSystem(ext4, writer), "block": block(writer)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.capability = capability
			register := w.node.watch
			var stop func()
			w.node.watch = func(pool, image, address string) func() {
				stop = register(pool, image, otherClient)
				return register(pool, image, address)
			}
			err := w.stage(t.Context())
			w.refused(err, codes.FailedPrecondition, "in use by the client at "+otherClient, "ceph osd blocklist add "+otherClient)
			if strings.Contains(err.Error(), nodeClient) {
				t.Errorf("%v names this node's own client", err)
			}
			w.clean()
			if w.image.made > 0 {
				t.Error("made a file system")
			}
			stop()
			w.node.watch = register
			w.must(w.stage(t.Context()))
		})
	}
}

// The watch of a new device may come late, or never.
func TestOwnWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		register := w.node.watch
		w.node.watch = func(pool, image, address string) func() {
			time.AfterFunc(time.Second, func() { register(pool, image, "v1:"+address) })
			return func() {}
		}
		began := time.Now()
		w.must(w.stage(t.Context()))
		if took := time.Since(began); took < time.Second || took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.node.watch = func(string, string, string) func() { return func() {} }
		began := time.Now()
		w.refused(w.stage(t.Context()), codes.FailedPrecondition, "rbd status rbd/"+testImage, "node-1", "/dev/rbd0", nodeClient)
		if took := time.Since(began); took < ownWatchTimeout || took > 2*ownWatchTimeout {
			t.Errorf("it took %v", took)
		}
		w.clean()
	})
}

// A plugin died after it had mapped an image. When the next one comes, the device's watch
// may have been lost.
func TestDeviceThatIsThere(t *testing.T) {
	for name, test := range map[string]struct {
		meanwhile func(*world)
		says      []string // nothing: it is staged
		maps      int
	}{
		"as it was":                   {meanwhile: func(*world) {}, maps: 1},
		"the watch is lost":           {meanwhile: func(w *world) { w.node.watches[0]() }, maps: 2},
		"another node has it":         {meanwhile: func(w *world) { w.node.watches[0](); w.cluster.Watch(testPool, testImage, otherClient) }, says: []string{otherClient}, maps: 1},
		"another node has it, too":    {meanwhile: func(w *world) { w.cluster.Watch(testPool, testImage, otherClient) }, says: []string{otherClient}, maps: 1},
		"a former watch of this node": {meanwhile: func(w *world) { w.cluster.Watch(testPool, testImage, nodeClient) }, maps: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.node.killAt, w.node.killAfter = 1, true
				if err := w.stage(t.Context()); err == nil {
					t.Fatal("want an error")
				}
				w.start()
				test.meanwhile(w)
				err := w.stage(t.Context())
				if test.says == nil {
					w.must(err)
				} else {
					w.refused(err, codes.FailedPrecondition, test.says...)
					w.clean()
				}
				if got := len(w.node.requests); got != test.maps {
					t.Errorf("mapped %d times, want %d", got, test.maps)
				}
			})
		})
	}
	// What is mounted is in use, whoever else has the image: nothing is taken from a Pod.
	w := newWorld(t)
	w.must(w.stage(t.Context()))
	w.cluster.Watch(testPool, testImage, otherClient)
	w.start()
	w.must(w.stage(t.Context()))
}

// This node's own client keeps a watch that it failed to end. Shutting it out would take
// all other images from this node.
func TestOwnFormerWatch(t *testing.T) {
	w := newWorld(t)
	w.node.devices[3] = krbd.Device{ID: 3, FSID: w.cluster.FSID(), Pool: testPool, Image: "another", ClientAddr: nodeClient, Ours: true, Minor: 48}
	stop := w.cluster.Watch(testPool, testImage, nodeClient)
	err := w.stage(t.Context())
	w.refused(err, codes.FailedPrecondition, "by this node (node-1) itself", nodeClient, "within 30 s")
	if strings.Contains(err.Error(), "blocklist") {
		t.Errorf("%v would cut this node off", err)
	}
	w.cluster.Watch(testPool, testImage, otherClient)
	if err := w.stage(t.Context()); !strings.HasSuffix(err.Error(), "ceph osd blocklist add "+otherClient) {
		t.Errorf("got %v", err)
	}
	stop()
}

func TestSameClient(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"10.77.0.2:0/4711", "10.77.0.2:0/4711", true},
		{"10.77.0.2:0/4711", "v1:10.77.0.2:0/4711", true},
		{"v2:10.77.0.2:0/4711", "10.77.0.2:6800/4711", true},
		{"[2001:db8::2]:0/4711", "[2001:0db8::0002]:0/4711", true},
		{"[::ffff:10.77.0.2]:0/4711", "10.77.0.2:0/4711", true},
		{"10.77.0.2:0/4711", "10.77.0.2:0/4712", false},
		{"10.77.0.2:0/4711", "10.77.0.3:0/4711", false},
		{"", "", false},
		{"-", "10.77.0.3:0/4711", false},
	} {
		if got := sameClient(test.a, test.b); got != test.want {
			t.Errorf("%q, %q: got %t", test.a, test.b, got)
		}
	}
}

// What an administrator, or kubelet's in-tree plugin, has mapped is not ours.
func TestForeignDevice(t *testing.T) {
	foreign := func(w *world) krbd.Device {
		return krbd.Device{ID: 0, FSID: w.cluster.FSID(), Pool: testPool, Image: testImage, Major: 252, ClientAddr: otherClient}
	}
	for _, capability := range []*csi.VolumeCapability{fileSystem(ext4, writer), fileSystem(ext4, readers), block(writers)} {
		w := newWorld(t)
		w.capability, w.image.fsType = capability, ext4
		w.node.devices[0] = foreign(w)
		w.refused(w.stage(t.Context()), codes.FailedPrecondition, "rbd/"+testImage, "node-1", "another program", "rbd unmap /dev/rbd0")
		w.refused(w.publish(t.Context()), codes.FailedPrecondition, "must be staged first")
		w.must(w.unstage(t.Context()))
		if len(w.node.did) > 0 {
			t.Errorf("did %q", w.node.did)
		}
		delete(w.node.devices, 0)
		w.must(w.stage(t.Context()))
		w.must(w.publish(t.Context()))
		// Mapped by another program after us, it disturbs nobody who has it already.
		second := foreign(w)
		second.ID, second.Minor = 1, 16
		w.node.devices[1] = second
		w.must(w.stage(t.Context()))
		w.must(w.unpublish(t.Context()))
		w.must(w.unstage(t.Context()))
		if devices, _ := w.node.Devices(); len(devices) != 1 || devices[0].Ours {
			t.Errorf("got %+v", devices)
		}
	}
}

// A device was unmapped by force, and the next one gets its number: what is mounted on the
// staging path is still the dead one's file system.
func TestSameNumberAgain(t *testing.T) {
	w := newWorld(t)
	w.must(w.stage(t.Context()))
	w.must(w.publish(t.Context()))
	w.node.loseDevices()
	w.refused(w.stage(t.Context()), codes.FailedPrecondition, "another device's file system", w.target, "delete the Pods")
	w.must(w.unpublish(t.Context()))
	w.node.did = nil
	w.must(w.stage(t.Context()))
	if want := []string{"unmount", "map", "mount", "grow"}; !slices.Equal(w.node.did, want) {
		t.Errorf("did %q, want %q", w.node.did, want)
	}
}
