// SPDX-License-Identifier: Apache-2.0

package node

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What a user sees if the nodes could not map a volume: on the claim if the provisioner
// can know it, otherwise on the Pod, from kubelet. The part of the text
// that a user would search for is in the documentation, word for word.
func TestMistakes(t *testing.T) {
	t.Parallel()
	documentation, err := os.ReadFile(filepath.Join(root, "docs", "troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, on, want string
		change         func(*storagev1.StorageClass)
		secret         map[string][]byte
	}{
		{
			name: "a secret with two entries", on: "data", want: "must hold exactly one entry",
			// Where the provisioner may read it.
			change: func(class *storagev1.StorageClass) { class.Parameters["userSecretNamespace"] = namespace },
			secret: map[string][]byte{"another": []byte("AAAA")},
		},
		{
			name: "monitors with v2 addresses only", on: "data", want: "none speaks message protocol 1",
			change: func(class *storagev1.StorageClass) { class.Parameters["monitors"] = "v2:" + rig.Ceph.MonitorV2 },
		},
		{
			// Well-formed, but no user's.
			name: "the key of somebody else", on: "pod", want: "fail to check rbd image status",
			secret: map[string][]byte{"key": []byte("AQD0NvBmAAAAABAAPq0Pm2IoBGzJhgKkm4VwSw==")},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(string(documentation), "`"+test.want) {
				t.Errorf("docs/troubleshooting.md does not have %q", test.want)
			}
			f := newFixture(t, test.change)
			secrets := rig.Kube.Client.CoreV1().Secrets(f.userSecretNamespace)
			if test.secret != nil {
				secret, err := secrets.Get(t.Context(), f.name+"-user", metav1.GetOptions{})
				f.must(err)
				maps.Copy(secret.Data, test.secret)
				_, err = secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
				f.must(err)
			}
			f.create("data", nil)
			if test.on == "data" {
				f.event("data", test.want)
				return
			}
			f.bound("data")
			f.start(f.newPodWith("pod", "data", "echo written >/data/file", filesystem))
			f.event("pod", test.want)
			t.Log(f.events(t.Context(), "pod"))

			// Once it is corrected, it works without a new Pod.
			key, err := rig.Ceph.Key(t.Context(), f.name+"-user")
			f.must(err)
			patch := `{"stringData":{"key":"` + key + `"}}`
			_, err = secrets.Patch(t.Context(), f.name+"-user",
				types.MergePatchType, []byte(patch), metav1.PatchOptions{})
			f.must(err)
			f.succeeded("pod")
		})
	}
}
