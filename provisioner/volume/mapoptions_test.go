// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"strings"
	"testing"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

func TestParseMapOptions(t *testing.T) {
	for _, test := range []struct {
		name, text, want string
		protocol         volume.Protocol
		wantErr          string
	}{
		{"none", "", "", volume.ProtocolV1, ""},
		{"several", " queue_depth=64, notrim ,,alloc_size=65536", "queue_depth=64,notrim,alloc_size=65536", volume.ProtocolV1, ""},
		{"version 2", "ms_mode=prefer-crc", "ms_mode=prefer-crc", volume.ProtocolV2, ""},
		{"version 1 by name", "ms_mode=legacy", "ms_mode=legacy", volume.ProtocolV1, ""},
		{"an unknown one", "turbo", "", "", `"turbo" is no option that is known here: known are abort_on_full, `},
		{"a key", "secret=abc", "", "", `"secret" can't be given here: keys come from the secret of userSecretName`},
		{"a wrong mode", "ms_mode=fast", "", "", `"ms_mode" must be one of legacy, crc, secure, prefer-crc, prefer-secure`},
		{"no number", "queue_depth=many", "", "", `"queue_depth" must be a number from 1 to 65536`},
		{"no power of two", "alloc_size=1000", "", "", `"alloc_size" must be a number from 512 to 67108864, a power of two`},
		{"a value too much", "notrim=1", "", "", `"notrim" takes no value`},
		{"a value too few", "queue_depth", "", "", `"queue_depth" must be a number`},
		{"twice", "notrim,notrim", "", "", `"notrim" is given twice`},
		{"several faults", "ro,turbo", "", "", `"ro" can't be given here: the claim's access mode decides; "turbo" is no option`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := volume.ParseMapOptions(test.text)
			if test.wantErr != "" {
				if err == nil || !strings.HasPrefix(err.Error(), test.wantErr) {
					t.Errorf("got the error %v, want %q", err, test.wantErr)
				}
				return
			}
			if err != nil || got.String() != test.want || got.Protocol() != test.protocol {
				t.Errorf("got %q, protocol %s, %v, want %q, %s", got, got.Protocol(), err, test.want, test.protocol)
			}
		})
	}
}

// FuzzParseMapOptions checks that what was read is safe to write into a line for sysfs,
// and reads as itself.
func FuzzParseMapOptions(f *testing.F) {
	for _, seed := range []string{"", "ms_mode=secure", "queue_depth=1,notrim", "alloc_size=512", "a=b", "secret=x,ro", "notrim\n", "ms_mode=crc key=x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		options, err := volume.ParseMapOptions(text)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has more than one line: %q", err)
			}
			return
		}
		got := options.String()
		if strings.ContainsAny(got, " \t\n\x00") || strings.Contains(got, "secret") || strings.Contains(got, "key=") {
			t.Errorf("%q was read as %q", text, got)
		}
		if again, err := volume.ParseMapOptions(got); err != nil || again != options {
			t.Errorf("%q was read as %q, and that as %q, %v", text, got, again, err)
		}
	})
}
