// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseHeader(t *testing.T) {
	number := func(n byte) []byte { return []byte{n, 0, 0, 0, 0, 0, 0, 0} }
	plain := map[string][]byte{
		"size": number(9), "features": number(featureLayering), "order": {22}, "object_prefix": []byte("p"),
		"snap_seq": number(0), "create_timestamp": number(1), "access_timestamp": number(1), "modify_timestamp": number(1),
		"metadata_a": []byte("1"), "metadata_b": nil,
	}
	entries := map[string]string{"a": "1", "b": ""}
	without := func(key string) map[string][]byte {
		omap := maps.Clone(plain)
		delete(omap, key)
		return omap
	}
	with := func(keys map[string][]byte) map[string][]byte {
		omap := maps.Clone(plain)
		maps.Copy(omap, keys)
		return omap
	}
	for _, test := range []struct {
		what string
		omap map[string][]byte
		want header
		ok   bool
	}{
		{"as this program makes it", plain, header{sizeBytes: 9, metadata: entries}, true},
		{"with a data pool", with(map[string][]byte{"features": number(featureLayering | featureDataPool), "data_pool_id": number(7)}),
			header{sizeBytes: 9, dataPool: 7, hasDataPool: true, metadata: entries}, true},
		{"a data pool without the feature", with(map[string][]byte{"data_pool_id": number(7)}), header{}, false},
		{"the feature without a data pool", with(map[string][]byte{"features": number(featureLayering | featureDataPool)}), header{}, false},
		{"a snapshot", with(map[string][]byte{"snapshot_0000000000000004": nil}), header{}, false},
		{"a parent", with(map[string][]byte{"parent": nil}), header{}, false},
		{"a key of a newer Ceph", with(map[string][]byte{"news": nil}), header{}, false},
		{"another feature", with(map[string][]byte{"features": number(featureLayering | 4)}), header{}, false},
		{"no feature", with(map[string][]byte{"features": number(0)}), header{}, false},
		{"a size cut off", with(map[string][]byte{"size": number(9)[:7]}), header{}, false},
		{"features that go on", with(map[string][]byte{"features": append(number(1), 0)}), header{}, false},
		{"a zero byte in metadata", with(map[string][]byte{"metadata_c": {0}}), header{}, false},
		{"metadata without a key", with(map[string][]byte{"metadata_": nil}), header{}, false},
		{"no size", without("size"), header{}, false},
		{"no features", without("features"), header{}, false},
		{"no order", without("order"), header{}, false},
		{"no prefix", without("object_prefix"), header{}, false},
		{"empty", nil, header{}, false},
	} {
		got, ok := parseHeader(test.omap)
		if ok != test.ok {
			t.Errorf("%s: got %t, want %t", test.what, ok, test.ok)
		}
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(header{})); ok && diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.what, diff)
		}
	}
}
