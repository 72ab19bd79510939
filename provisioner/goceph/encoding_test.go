// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEncodeEntries compares with what Ceph's own encoding makes.
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
