// SPDX-License-Identifier: Apache-2.0

package goceph

import "testing"

func TestTrashed(t *testing.T) {
	entry := func(version, source byte, name string) []byte {
		text := append([]byte{1, version, 99, 0, 0, 0, source, byte(len(name)), 0, 0, 0}, name...)
		return append(text, make([]byte, 20)...) // times and state
	}
	for _, test := range []struct {
		what     string
		entry    []byte
		name     string
		removing bool
	}{
		{"being removed", entry(1, 3, "image"), "image", true},
		{"put there by somebody", entry(1, 0, "image"), "image", false},
		{"of a version that we can't read", entry(2, 3, "image"), "", false},
		{"cut off in the header", entry(1, 3, "image")[:10], "", false},
		{"cut off in the name", entry(1, 3, "image")[:13], "", false},
		{"of a length beyond its end", append(entry(1, 3, "")[:7], 255, 255, 255, 255, 'a'), "", false},
		{"empty", nil, "", false},
	} {
		name, removing := trashed(test.entry)
		if name != test.name || removing != test.removing {
			t.Errorf("%s: got %q, %v, want %q, %v", test.what, name, removing, test.name, test.removing)
		}
	}
}
