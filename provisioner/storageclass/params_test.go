// SPDX-License-Identifier: Apache-2.0

package storageclass_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/yaml"

	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// required returns the parameters that a class must have, and the user's secret, which
// nearly all have.
func required() map[string]string {
	return map[string]string{
		"monitors":        "10.0.0.1:6789",
		"adminSecretName": "ceph-admin",
		"userSecretName":  "ceph-user",
	}
}

func with(more map[string]string) map[string]string {
	m := required()
	maps.Copy(m, more)
	return m
}

func defaults() storageclass.Params {
	return storageclass.Params{
		Location: volume.Location{
			Monitors: []volume.Monitor{{Host: "10.0.0.1", Port: 6789}},
			Pool:     "rbd",
			User:     "admin",
			Secret:   volume.SecretRef{Namespace: "default", Name: "ceph-admin"},
		},
		User:       "admin",
		UserSecret: volume.SecretRef{Name: "ceph-user"},
	}
}

func TestParse(t *testing.T) {
	for _, test := range []struct {
		name       string
		parameters map[string]string
		want       func(*storageclass.Params)
	}{
		{"the required ones alone: the documented defaults", required(), func(*storageclass.Params) {}},
		{
			"all of them",
			map[string]string{
				"monitors": "[2001:db8::1]:6789;v2:10.0.0.2:3300 mon.ceph.svc", "pool": "kube", "dataPool": "kube-data",
				"adminId": "boss", "adminSecretName": "a", "adminSecretNamespace": "kube-system",
				"userId": "kube", "userSecretName": "u", "userSecretNamespace": "apps",
				"fsType": "xfs", "imageFormat": "2", "imageFeatures": "layering", "trashRetention": "1h30m",
			},
			func(p *storageclass.Params) {
				*p = storageclass.Params{
					Location: volume.Location{
						Monitors: []volume.Monitor{
							{Host: "2001:db8::1", Port: 6789},
							{Protocol: volume.ProtocolV2, Host: "10.0.0.2", Port: 3300},
							{Host: "mon.ceph.svc"},
						},
						Pool: "kube", DataPool: "kube-data",
						User: "boss", Secret: volume.SecretRef{Namespace: "kube-system", Name: "a"},
					},
					User: "kube", UserSecret: volume.SecretRef{Namespace: "apps", Name: "u"},
					FSType: "xfs", TrashRetention: 90 * time.Minute,
				}
			},
		},
		{
			"keys in any case, values with blanks around them",
			map[string]string{"MONITORS": " 10.0.0.1:6789\n", "adminsecretname": "ceph-admin ", "UserSecretName": "\tceph-user"},
			func(*storageclass.Params) {},
		},
		{"the user is the admin where none is named", with(map[string]string{"adminId": "boss"}),
			func(p *storageclass.Params) { p.Location.User, p.User = "boss", "boss" }},
		{"a data pool that is the pool is none", with(map[string]string{"dataPool": "rbd"}), func(*storageclass.Params) {}},
		{"a blank value counts as none given", with(map[string]string{"pool": " ", "userSecretNamespace": "", "imageFormat": ""}),
			func(*storageclass.Params) {}},
		{"the file system as classes of CSI drivers name it", with(map[string]string{"csi.storage.k8s.io/fstype": "xfs"}),
			func(p *storageclass.Params) { p.FSType = "xfs" }},
		{"no user's secret: a keyring on the nodes", with(map[string]string{"userSecretName": ""}),
			func(p *storageclass.Params) { p.UserSecret.Name = "" }},
		{"a keyring on the nodes", with(map[string]string{"userSecretName": "", "keyring": "/etc/kube/ceph.keyring"}),
			func(p *storageclass.Params) { p.UserSecret.Name, p.Keyring = "", "/etc/kube/ceph.keyring" }},
		{"the user's secret goes before a keyring, whatever that is", with(map[string]string{"keyring": "none"}),
			func(*storageclass.Params) {}},
		{"the file system under both names", with(map[string]string{"fsType": "xfs", "CSI.storage.k8s.io/fsType": "xfs "}),
			func(p *storageclass.Params) { p.FSType = "xfs" }},
		{"the in-tree source", with(map[string]string{"volumeSource": " rbd "}),
			func(p *storageclass.Params) { p.Source = storageclass.SourceInTree }},
		{"the node plugin, with options", with(map[string]string{"volumeSource": "csi", "mapOptions": " queue_depth=64, notrim"}),
			func(p *storageclass.Params) {
				p.Source, p.MapOptions = storageclass.SourceCSI, mapOptions(t, "queue_depth=64,notrim")
			}},
		{"options where the source is chosen later", with(map[string]string{"mapOptions": "ms_mode=legacy"}),
			func(p *storageclass.Params) { p.MapOptions = mapOptions(t, "ms_mode=legacy") }},
		{
			"monitors of message protocol 2 alone, which the options ask for",
			with(map[string]string{"monitors": "10.0.0.1:3300", "mapOptions": "ms_mode=secure"}),
			func(p *storageclass.Params) {
				p.Location.Monitors[0].Port, p.MapOptions = 3300, mapOptions(t, "ms_mode=secure")
			},
		},
		{"layering more than once", with(map[string]string{"imageFeatures": "layering, layering,"}),
			func(*storageclass.Params) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := storageclass.Parse(test.parameters)
			if err != nil {
				t.Fatal(err)
			}
			want := defaults()
			test.want(&want)
			if diff := cmp.Diff(want, got, compareOptions); diff != "" {
				t.Errorf("params (-want +got):\n%s", diff)
			}
		})
	}
}

func mapOptions(t *testing.T, text string) volume.MapOptions {
	t.Helper()
	options, err := volume.ParseMapOptions(text)
	if err != nil {
		t.Fatal(err)
	}
	return options
}

// What a class asks for may fit one source only: where it names none, that shows once one
// is chosen.
func TestCheckSource(t *testing.T) {
	keyring := with(map[string]string{"userSecretName": "", "keyring": "/etc/ceph/keyring"})
	options := with(map[string]string{"mapOptions": "queue_depth=64"})
	for _, test := range []struct {
		name        string
		parameters  map[string]string
		inTree, csi string // in the error; empty for none
	}{
		{"what both can have", required(), "", ""},
		{"a keyring on the nodes", keyring, "", `parameter "userSecretName" is missing`},
		{"a file system that the node plugin has no tools for", with(map[string]string{"fsType": "btrfs"}), "", `parameter "fsType": the node plugin can't mount "btrfs"`},
		{"a file system in capitals", with(map[string]string{"fsType": "XFS"}), "", ""},
		{"map options", options, `parameter "mapOptions" is for volumes of the node plugin`, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			for source, want := range map[storageclass.Source]string{storageclass.SourceInTree: test.inTree, storageclass.SourceCSI: test.csi} {
				params, err := storageclass.Parse(test.parameters)
				if err != nil {
					t.Fatal(err)
				}
				chosen := params.CheckSource(source)
				if (len(chosen) > 0) != (want != "") || len(chosen) > 0 && !strings.Contains(chosen.Error(), want) {
					t.Errorf("%s: got %v, want %q", source, chosen, want)
				}
				// The same where the class itself names the source.
				asked := maps.Clone(test.parameters)
				asked["volumeSource"] = string(source)
				_, err = storageclass.Parse(asked)
				if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("a class with %s: got %v, want %q", source, err, want)
				}
			}
		})
	}
}

// Each file in testdata/bad is a StorageClass that is wrong in one way. Its annotation
// want-error is the message that users see. The end-to-end tests apply the same files to a
// real cluster.
func TestParseBad(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 15 {
		t.Fatalf("found %d files in testdata/bad, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var class storagev1.StorageClass
			if err := yaml.UnmarshalStrict(data, &class); err != nil {
				t.Fatal(err)
			}
			params, err := storageclass.Parse(class.Parameters)
			if err == nil {
				t.Fatalf("got %+v, want an error", params)
			}
			if diff := cmp.Diff(class.Annotations["want-error"], err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseLocation(t *testing.T) {
	// Parameters that a deletion does not need may be wrong.
	parameters := map[string]string{
		"monitors": "10.0.0.1", "adminSecretName": "a", "adminId": "boss", "pool": "kube",
		"imageFormat": "1", "imageFeatures": "all", "userId": "client.x", "frobnicate": "yes",
		"volumeSource": "cloud", "mapOptions": "ms_mode=fast",
	}
	got, err := storageclass.ParseLocation(parameters)
	if err != nil {
		t.Fatal(err)
	}
	want := volume.Location{
		Monitors: []volume.Monitor{{Host: "10.0.0.1"}}, Pool: "kube", User: "boss",
		Secret: volume.SecretRef{Namespace: "default", Name: "a"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("location (-want +got):\n%s", diff)
	}
	parameters["monitors"] = "v2:10.0.0.1"
	if _, err := storageclass.ParseLocation(parameters); err != nil {
		t.Errorf("monitors that only librados speaks to: %v", err)
	}
	if _, err := storageclass.ParseLocation(map[string]string{"adminSecretName": "a"}); err == nil {
		t.Error("no monitors: got no error")
	}
}

// Administrators copy from the README's table of parameters, so it must have all of them, and all options.
func TestReadmeNamesEveryParameter(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range storageclass.Keys() {
		if !strings.Contains(string(readme), "| `"+key+"` |") {
			t.Errorf("README.md has no row for parameter %s", key)
		}
	}
	if known := "`" + strings.Join(volume.MapOptionNames(), "`, `") + "`"; !strings.Contains(strings.Join(strings.Fields(string(readme)), " "), known) {
		t.Errorf("README.md does not list the options of mapOptions: %s", known)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("monitors", "10.0.0.1:6789", "adminSecretName", "a")
	f.Add("Pool", "rbd/ns", "pool", "-image-")
	f.Add("imageFeatures", ",layering,,", "fsType", "ext4\x00")
	f.Add("pool", "rbd\x00other", "adminId", "a\x00b")
	f.Add("dataPool", "a\u200bb", "userId", "a\vb")
	f.Add("fsType", "xfs", "csi.storage.k8s.io/fstype", "xfs")
	f.Add("fsType", "ext4\u212a", "monitors", "\u212a8s")
	f.Add("mon\u0130tors", "10.0.0.2", "adminSecretNamespace", "a/b")
	f.Add("userSecretName", "../x", "pool", "\xff")
	f.Add("userSecretName", "", "keyring", "/a\u00a0b")
	f.Add("userSecretName", "", "keyring", "/a /b")
	f.Add("userSecretName", "", "userSecretNamespace", "apps")
	f.Add("volumeSource", "csi", "mapOptions", "ms_mode=prefer-crc, queue_depth=64")
	f.Add("monitors", "v2:10.0.0.1", "mapOptions", "ms_mode=secure")
	f.Add("volumeSource", "csi", "userSecretName", "")
	f.Add("volumeSource", "csi", "fsType", "btrfs")
	f.Add("pool", "a\u0085b", "userId", "a\u2028b")
	f.Add("pool", "a,b", "userId", "a,key=b")
	f.Add("VolumeSource", "c\x00si", "mapOptions", "crc\n,nocrc")
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 string) {
		parameters := required()
		parameters[key1], parameters[key2] = value1, value2
		params, err := storageclass.Parse(parameters)
		location, locationErr := storageclass.ParseLocation(parameters)
		for _, err := range []error{err, locationErr} {
			if err != nil && strings.ContainsAny(err.Error(), "\n\r\x00") {
				t.Errorf("the error has more than one line, so it does not fit an event: %q", err)
			}
		}
		if locationErr == nil {
			checkNames(t, map[string]string{"pool": location.Pool, "adminId": location.User})
		}
		if err != nil {
			return
		}
		if len(params.Location.Monitors) == 0 || params.Location.Pool == "" || params.Location.User == "" || params.User == "" ||
			params.Location.Secret.Name == "" || params.Location.Secret.Namespace == "" ||
			params.UserSecret.Name == "" && params.UserSecret.Namespace != "" || params.UserSecret.Name != "" && params.Keyring != "" {
			t.Errorf("accepted, but incomplete: %+v", params)
		}
		if params.Source != storageclass.SourceAuto && len(params.CheckSource(params.Source)) > 0 ||
			!slices.ContainsFunc(params.Location.Monitors, func(m volume.Monitor) bool {
				_, ok := m.KernelAddress(params.MapOptions.Protocol())
				return ok
			}) {
			t.Errorf("accepted, but no node could map an image: %+v", params)
		}
		checkNames(t, map[string]string{
			"pool": params.Location.Pool, "dataPool": params.Location.DataPool, "adminId": params.Location.User,
			"userId": params.User, "fsType": params.FSType, "keyring": params.Keyring,
			"adminSecretName": params.Location.Secret.Name, "adminSecretNamespace": params.Location.Secret.Namespace,
			"userSecretName": params.UserSecret.Name, "userSecretNamespace": params.UserSecret.Namespace,
			"mapOptions": params.MapOptions.String(),
		})
		// A class that can make volumes can also delete them.
		want := params.Location
		want.DataPool = ""
		if locationErr != nil || !cmp.Equal(want, location) {
			t.Errorf("made at %+v, deleted at %+v, %v", want, location, locationErr)
		}
		// Parameters that Parse accepts stay the same when they are written and read again.
		if again, err := storageclass.Parse(written(params)); err != nil || !cmp.Equal(params, again, compareMonitors, compareOptions) {
			t.Errorf("%+v was read again as %+v, %v", params, again, err)
		}
	})
}

// checkNames checks that no value has a character that would end or divide a name in Ceph,
// in a mount's options or on a command line.
func checkNames(t *testing.T, values map[string]string) {
	t.Helper()
	for key, value := range values {
		// Linux's rbd driver splits what it is told at any of these, and options at commas.
		splits := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
		if strings.ContainsFunc(value, splits) || !utf8.ValidString(value) || strings.HasSuffix(key, "Id") && strings.Contains(value, ",") {
			t.Errorf("%s: %q was accepted", key, value)
		}
		if strings.HasSuffix(strings.ToLower(key), "pool") && strings.ContainsAny(value, "/@") {
			t.Errorf("%s: %q was accepted", key, value)
		}
		if key == "fsType" && strings.ContainsFunc(value, func(r rune) bool { return r > unicode.MaxASCII }) {
			t.Errorf("%s: %q was accepted", key, value)
		}
	}
}

// compareMonitors treats monitors as equal if they are written alike: after "v1:", port
// 6789 is the default.
var compareMonitors = cmp.Comparer(func(a, b volume.Monitor) bool { return a.String() == b.String() })

var compareOptions = cmp.Comparer(func(a, b volume.MapOptions) bool { return a == b })

// written returns the parameters of a class that asks for p.
func written(p storageclass.Params) map[string]string {
	var monitors []string
	for _, m := range p.Location.Monitors {
		monitors = append(monitors, m.String())
	}
	return map[string]string{
		"monitors": strings.Join(monitors, ","), "pool": p.Location.Pool, "dataPool": p.Location.DataPool,
		"adminId": p.Location.User, "adminSecretName": p.Location.Secret.Name, "adminSecretNamespace": p.Location.Secret.Namespace,
		"userId": p.User, "userSecretName": p.UserSecret.Name, "userSecretNamespace": p.UserSecret.Namespace,
		"keyring": p.Keyring, "fsType": p.FSType, "trashRetention": p.TrashRetention.String(),
		"volumeSource": string(p.Source), "mapOptions": p.MapOptions.String(),
	}
}
