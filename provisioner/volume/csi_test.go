// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"strings"
	"testing"
)

func TestCSIHandle(t *testing.T) {
	const fsid = "1f0f9e7c-5995-4347-9d08-0d23a1890d59"
	long, longer := strings.Repeat("p", 80), strings.Repeat("i", 120)
	seen := map[string]bool{}
	for _, test := range []struct{ name, fsid, pool, image, want string }{
		{"as usual", fsid, "rbd", "kubernetes-dynamic-pvc-1", fsid + "/rbd/kubernetes-dynamic-pvc-1"},
		{"another cluster", "f", "rbd", "kubernetes-dynamic-pvc-1", "f/rbd/kubernetes-dynamic-pvc-1"},
		{"a long pool", fsid, long, "image", fsid + "/d9eacbd2dfb59d5f/image"},
		{"another long pool", fsid, long + "p", "image", ""},
		{"a long image", fsid, "rbd", longer, ""},
		{"a long image in another pool", fsid, "other", longer, ""},
		{"both long", fsid, long, longer, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := CSIHandle(test.fsid, test.pool, test.image)
			if len(got) > maxHandle || test.want != "" && len(test.pool) < 80 && got != test.want || seen[got] {
				t.Errorf("got %q (%d bytes), want %q, at most %d bytes, and another one than the others'", got, len(got), test.want, maxHandle)
			}
			seen[got] = true
		})
	}
}
