// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

func full() volume.Record {
	return volume.Record{
		Identity: "ceph.com/rbd", Cluster: "7a1e9c52-0000-4000-8000-000000000002", FSID: "1f0c4b3e-0000-4000-8000-000000000001",
		Monitors: []string{"10.0.0.1:6789", "[2001:db8::1]:6789"},
		Pool:     "kube", Image: "kubernetes-dynamic-pvc-1",
		User: "kube", UserSecret: volume.SecretRef{Namespace: "apps", Name: "ceph-user"},
		FSType: "xfs",
		Admin:  "admin", AdminSecret: volume.SecretRef{Namespace: "kube-system", Name: "ceph-admin"},
		TrashRetention: 36 * time.Hour,
	}
}

// mounted is full for our node plugin.
func mounted() volume.Record {
	r := full()
	r.CSI, r.Monitors, r.MapOptions = true, []string{"mon.ceph.svc", "v2:[2001:db8::1]:3300"}, "ms_mode=prefer-crc,queue_depth=64"
	return r
}

func TestRoundTrip(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*volume.Record)
	}{
		{"everything said", func(*volume.Record) {}},
		{"block volume, the user's secret beside the Pod", func(r *volume.Record) { r.FSType, r.UserSecret.Namespace = "", "" }},
		{"a keyring on the node", func(r *volume.Record) { r.UserSecret, r.Keyring = volume.SecretRef{}, "/etc/kube/ceph.keyring" }},
		{"kubelet's own keyring", func(r *volume.Record) { r.UserSecret = volume.SecretRef{} }},
		{"for the node plugin", func(r *volume.Record) { *r = mounted() }},
		{"a block volume for the node plugin, without options", func(r *volume.Record) { *r = mounted(); r.FSType, r.MapOptions = "", "" }},
		{"as the retired provisioner wrote it", func(r *volume.Record) {
			r.Cluster, r.FSID, r.Admin, r.AdminSecret, r.TrashRetention = "", "", "", volume.SecretRef{}, 0
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := full()
			test.change(&want)
			// Write replaces our earlier annotations and leaves those of others.
			pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
				"other": "stays", volume.AnnClusterFSID: "old", volume.AnnDeletionUser: "old",
			}}}
			want.Write(pv)
			got, err := volume.Read(pv)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("record (-written +read):\n%s", diff)
			}
			if pv.Annotations["other"] != "stays" {
				t.Error("an annotation of somebody else was lost")
			}
		})
	}
}

// Nodes, and other versions of this program, read these.
func TestWriteCSI(t *testing.T) {
	pv := new(corev1.PersistentVolume)
	mounted().Write(pv)
	want := corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
		Driver: "rbd.ceph.com", VolumeHandle: "1f0c4b3e-0000-4000-8000-000000000001/kube/kubernetes-dynamic-pvc-1", FSType: "xfs",
		VolumeAttributes: map[string]string{
			"monitors": "mon.ceph.svc,v2:[2001:db8::1]:3300", "pool": "kube", "image": "kubernetes-dynamic-pvc-1", "user": "kube",
			"mapOptions": "ms_mode=prefer-crc,queue_depth=64",
		},
		NodeStageSecretRef: &corev1.SecretReference{Namespace: "apps", Name: "ceph-user"},
	}}
	if diff := cmp.Diff(want, pv.Spec.PersistentVolumeSource); diff != "" {
		t.Errorf("source (-want +got):\n%s", diff)
	}
}

// Older and newer versions of this program read these annotations.
func TestWriteIsStable(t *testing.T) {
	pv := new(corev1.PersistentVolume)
	full().Write(pv)
	want := map[string]string{
		"rbdProvisionerIdentity":                                     "ceph.com/rbd",
		"rbd.ceph.com/kubernetes-cluster":                            "7a1e9c52-0000-4000-8000-000000000002",
		"rbd.ceph.com/cluster-fsid":                                  "1f0c4b3e-0000-4000-8000-000000000001",
		"rbd.ceph.com/provisioner-deletion-user":                     "admin",
		"rbd.ceph.com/trash-retention":                               "36h0m0s",
		"volume.kubernetes.io/provisioner-deletion-secret-name":      "ceph-admin",
		"volume.kubernetes.io/provisioner-deletion-secret-namespace": "kube-system",
	}
	if diff := cmp.Diff(want, pv.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
}

func TestReadRefuses(t *testing.T) {
	nfs := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
		NFS: &corev1.NFSVolumeSource{Server: "nfs", Path: "/"},
	}}}
	if _, err := volume.Read(nfs); !errors.Is(err, volume.ErrNoRBDSource) {
		t.Errorf("a volume of NFS: got %v, want %v", err, volume.ErrNoRBDSource)
	}
	theirs := new(corev1.PersistentVolume)
	mounted().Write(theirs)
	theirs.Spec.CSI.Driver = "rbd.csi.ceph.com"
	if _, err := volume.Read(theirs); !errors.Is(err, volume.ErrNoRBDSource) {
		t.Errorf("a volume of another CSI driver: got %v, want %v", err, volume.ErrNoRBDSource)
	}
	for missing, remove := range map[string]func(*volume.Record){
		"image":    func(r *volume.Record) { r.Image = "" },
		"pool":     func(r *volume.Record) { r.Pool = "" },
		"monitors": func(r *volume.Record) { r.Monitors = nil },
	} {
		for _, r := range []volume.Record{full(), mounted()} {
			remove(&r)
			pv := new(corev1.PersistentVolume)
			r.Write(pv)
			if got, err := volume.Read(pv); err == nil || errors.Is(err, volume.ErrNoRBDSource) {
				t.Errorf("no %s, CSI %v: got %+v, %v, want another error", missing, r.CSI, got, err)
			}
		}
	}
}

// librados ends a name at a NUL: a volume that names "rbd\x00" must not reach the pool
// "rbd".
func TestReadRefusesWhatIsNoName(t *testing.T) {
	for name, change := range map[string]func(*volume.Record){
		"pool":          func(r *volume.Record) { r.Pool = "rbd\x00other" },
		"image":         func(r *volume.Record) { r.Image = "image\n" },
		"deletion user": func(r *volume.Record) { r.Admin = "admin\x00" },
	} {
		r := full()
		change(&r)
		pv := new(corev1.PersistentVolume)
		r.Write(pv)
		if got, err := volume.Read(pv); err == nil || !strings.Contains(err.Error(), "can't be printed") {
			t.Errorf("%s: got %+v, %v, want an error", name, got, err)
		}
	}
}

func TestComplete(t *testing.T) {
	if !full().Complete() {
		t.Error("a record that says everything is not complete")
	}
	for name, change := range map[string]func(*volume.Record){
		"no user":      func(r *volume.Record) { r.Admin = "" },
		"no secret":    func(r *volume.Record) { r.AdminSecret.Name = "" },
		"no namespace": func(r *volume.Record) { r.AdminSecret.Namespace = "" },
	} {
		r := full()
		change(&r)
		if r.Complete() {
			t.Errorf("%s: complete all the same", name)
		}
	}
}

func TestLocation(t *testing.T) {
	got, err := full().Location()
	if err != nil {
		t.Fatal(err)
	}
	want := volume.Location{
		Monitors: []volume.Monitor{{Host: "10.0.0.1", Port: 6789}, {Host: "2001:db8::1", Port: 6789}},
		Pool:     "kube", User: "admin", Secret: volume.SecretRef{Namespace: "kube-system", Name: "ceph-admin"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("location (-want +got):\n%s", diff)
	}
	r := full()
	r.Monitors = []string{"???"}
	if _, err := r.Location(); err == nil || !strings.Contains(err.Error(), `"???"`) {
		t.Errorf("a monitor that is none: got %v, want an error that names it", err)
	}
}

// A person or a program may write any text into a volume. Read returns it as it was
// written, or refuses it.
func FuzzRecord(f *testing.F) {
	for _, csi := range []bool{false, true} {
		f.Add(csi, "admin", "secret", "ns", "10.0.0.1:6789", "rbd", "image", "user", "fsid", "queue_depth=64")
		f.Add(csi, "", "", "", "\x00", "rbd", "image", "", "", "")
		f.Add(csi, "admin", "s", "ns", "10.0.0.1", "rbd\x00other", "image", "user", "", "")
		f.Add(csi, "admin", "s", "ns", "10.0.0.1", "rbd", "image\nother", "user", "", "ms_mode=")
		f.Add(csi, "admin\x00", "s", "ns", "10.0.0.1,10.0.0.2", "rbd", "image", "user", "", "\x00")
		f.Add(csi, "\xff", "s", "ns", " ", "", "", "", "", "")
	}
	f.Add(true, "admin", "s", "ns", "", "rbd", "image", "user", "", "")
	f.Add(true, "admin", "s", "ns", "mon", "a/b", "c", "user", "1f0c4b3e-0000-4000-8000-000000000001/a", "")
	f.Fuzz(func(t *testing.T, csi bool, admin, secret, namespace, monitor, pool, image, user, fsid, options string) {
		r := full()
		if r.CSI = csi; csi {
			r.MapOptions = options
		}
		r.Admin, r.AdminSecret, r.Monitors = admin, volume.SecretRef{Namespace: namespace, Name: secret}, []string{monitor}
		r.Pool, r.Image, r.User, r.FSID = pool, image, user, fsid
		pv := new(corev1.PersistentVolume)
		r.Write(pv)
		got, err := volume.Read(pv)
		if csi {
			if handle := pv.Spec.CSI.VolumeHandle; len(fsid) <= 36 && len(handle) > 128 {
				t.Errorf("the handle %q has %d bytes", handle, len(handle))
			}
			// The attribute is one text.
			r.Monitors = strings.Split(monitor, ",")
		}
		if err != nil {
			if (monitor != "" || !csi) && pool != "" && image != "" && volume.IsName(pool) && volume.IsName(image) && volume.IsName(admin) {
				t.Error(err)
			}
			return
		}
		if diff := cmp.Diff(r, got); diff != "" {
			t.Errorf("record (-written +read):\n%s", diff)
		}
		if keys := volume.ImageKeys(pv); len(keys) != 1 || keys[0] != volume.ImageKey(pool, image) {
			t.Errorf("the volume stands for the images %q", keys)
		}
		if got.Complete() != (admin != "" && secret != "" && namespace != "") {
			t.Errorf("complete: %v, of %+v", got.Complete(), got)
		}
		for _, name := range []string{got.Pool, got.Image, got.Admin} {
			if strings.ContainsAny(name, "\x00\r\n") {
				t.Errorf("%q was accepted as a name", name)
			}
		}
		location, err := got.Location()
		if err != nil {
			return
		}
		if location.Pool != pool || location.User != admin || location.Secret != r.AdminSecret {
			t.Errorf("location %+v is not that of %+v", location, r)
		}
	})
}
