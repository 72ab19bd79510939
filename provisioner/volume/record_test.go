// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

func full() volume.Record {
	return volume.Record{
		Identity: "ceph.com/rbd", FSID: "1f0c4b3e-0000-4000-8000-000000000001",
		Monitors: []string{"10.0.0.1:6789", "[2001:db8::1]:6789"},
		Pool:     "kube", Image: "kubernetes-dynamic-pvc-1",
		User: "kube", UserSecret: volume.SecretRef{Namespace: "apps", Name: "ceph-user"},
		FSType: "xfs",
		Admin:  "admin", AdminSecret: volume.SecretRef{Namespace: "kube-system", Name: "ceph-admin"},
	}
}

func TestRoundTrip(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*volume.Record)
	}{
		{"everything said", func(*volume.Record) {}},
		{"block volume, the user's secret beside the Pod", func(r *volume.Record) { r.FSType, r.UserSecret.Namespace = "", "" }},
		{"as the retired provisioner wrote it", func(r *volume.Record) { r.FSID, r.Admin, r.AdminSecret = "", "", volume.SecretRef{} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := full()
			test.change(&want)
			// What is there before is replaced, what is somebody else's stays.
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

// The annotations are a promise to older and newer versions of this program.
func TestWriteIsStable(t *testing.T) {
	pv := new(corev1.PersistentVolume)
	full().Write(pv)
	want := map[string]string{
		"rbdProvisionerIdentity":                                     "ceph.com/rbd",
		"rbd.ceph.com/cluster-fsid":                                  "1f0c4b3e-0000-4000-8000-000000000001",
		"rbd.ceph.com/provisioner-deletion-user":                     "admin",
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
	for _, missing := range []string{"image", "pool", "monitors"} {
		r := full()
		switch missing {
		case "image":
			r.Image = ""
		case "pool":
			r.Pool = ""
		case "monitors":
			r.Monitors = nil
		}
		pv := new(corev1.PersistentVolume)
		r.Write(pv)
		if got, err := volume.Read(pv); err == nil {
			t.Errorf("no %s: got %+v, want an error", missing, got)
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

func FuzzReadAnnotations(f *testing.F) {
	f.Add("admin", "secret", "ns", "10.0.0.1:6789")
	f.Add("", "", "", "\x00")
	f.Fuzz(func(t *testing.T, user, secret, namespace, monitor string) {
		r := full()
		r.Admin, r.AdminSecret, r.Monitors = user, volume.SecretRef{Namespace: namespace, Name: secret}, []string{monitor}
		pv := new(corev1.PersistentVolume)
		r.Write(pv)
		got, err := volume.Read(pv)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, got); diff != "" {
			t.Errorf("record (-written +read):\n%s", diff)
		}
		if l, err := got.Location(); err == nil && l.Pool != r.Pool {
			t.Errorf("location %+v is not that of %+v", l, r)
		}
	})
}
