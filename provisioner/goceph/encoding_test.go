// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// TestEncodeEntries compares with Ceph's own encoding.
func TestEncodeEntries(t *testing.T) {
	for name, test := range map[string]struct {
		entries map[string]string
		want    string
	}{
		"none":                  {nil, "\x00\x00\x00\x00"},
		"in the order of a map": {map[string]string{"b": "", "a": "one"}, "\x02\x00\x00\x00\x01\x00\x00\x00a\x03\x00\x00\x00one\x01\x00\x00\x00b\x00\x00\x00\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, string(encodeEntries(test.entries))); diff != "" {
				t.Errorf("the encoding differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeText(t *testing.T) {
	for name, test := range map[string]struct {
		b, text, rest string
		ok            bool
	}{
		"nothing":          {b: ""},
		"half a length":    {b: "\x01\x00"},
		"too short":        {b: "\x02\x00\x00\x00a"},
		"a length of 4 GB": {b: "\xff\xff\xff\xffa"},
		"an empty text":    {b: "\x00\x00\x00\x00", ok: true},
		"more behind it":   {b: "\x02\x00\x00\x00abc", text: "ab", rest: "c", ok: true},
	} {
		t.Run(name, func(t *testing.T) {
			text, rest, ok := decodeText([]byte(test.b))
			if text != test.text || string(rest) != test.rest || ok != test.ok {
				t.Errorf("got %q, %q, %t", text, rest, ok)
			}
		})
	}
}

func TestParseTrashEntry(t *testing.T) {
	entry := func(version, source byte, name string) []byte {
		text := append([]byte{1, version, 99, 0, 0, 0, source, byte(len(name)), 0, 0, 0}, name...)
		text = append(text, 0, 1, 0, 0, 5, 0, 0, 0) // since when
		return append(text, make([]byte, 8)...)     // until when
	}
	since := time.Unix(256, 5)
	for _, test := range []struct {
		what  string
		entry []byte
		want  trashEntry
		ok    bool
	}{
		{"being removed", append(entry(1, 3, "image"), 2, 99), trashEntry{rbd.Trashed{Name: "image", Since: since}, 3}, true},
		{"put there by somebody", append(entry(1, 0, "image"), 0), trashEntry{rbd.Trashed{Name: "image", Since: since}, 0}, true},
		{"on its way there", append(entry(1, 0, "image"), 1), trashEntry{rbd.Trashed{Name: "image", Since: since, Moving: true}, 0}, true},
		{"of a version without a state", entry(1, 0, "image"), trashEntry{rbd.Trashed{Name: "image", Since: since}, 0}, true},
		{"of a version that we can't read", entry(2, 3, "image"), trashEntry{}, false},
		{"cut off in the header", entry(1, 3, "image")[:10], trashEntry{}, false},
		{"cut off in the name", entry(1, 3, "image")[:13], trashEntry{}, false},
		{"cut off in the times", entry(1, 3, "image")[:20], trashEntry{}, false},
		{"of a length beyond its end", append(entry(1, 3, "")[:7], 255, 255, 255, 255, 'a'), trashEntry{}, false},
		{"empty", nil, trashEntry{}, false},
	} {
		got, ok := parseTrashEntry(test.entry)
		if got != test.want || ok != test.ok {
			t.Errorf("%s: got %+v, %v, want %+v, %v", test.what, got, ok, test.want, test.ok)
		}
	}
}
