// SPDX-License-Identifier: Apache-2.0

// Package storageclass turns a StorageClass's parameters into validated values. It is
// pure: it resolves no names and reads no secrets.
package storageclass

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// csiFSType is what classes of CSI drivers and Kubernetes' own storage tests call fsType.
const csiFSType = "csi.storage.k8s.io/fstype"

// Keys returns all parameters, as the documentation spells and orders them. A StorageClass
// may write them in any case.
func Keys() []string {
	return []string{
		"monitors", "pool", "dataPool",
		"adminId", "adminSecretName", "adminSecretNamespace",
		"userId", "userSecretName", "userSecretNamespace", "keyring",
		"fsType", csiFSType, "imageFormat", "imageFeatures", "trashRetention",
		"volumeSource", "mapOptions",
	}
}

// Source is who mounts the volumes of a class on nodes.
type Source string

// The sources.
const (
	SourceAuto   Source = ""    // whichever serves: the provisioner decides for each volume
	SourceInTree Source = "rbd" // kubelet's own rbd plugin, up to Kubernetes 1.30
	SourceCSI    Source = "csi" // our node plugin
)

// Params is what a StorageClass asks for.
type Params struct {
	// Location is where images are, and who makes and deletes them.
	Location volume.Location
	// User maps images on nodes. An empty namespace in UserSecret means the claim's. An
	// empty name means that the key is in the file Keyring on the nodes, which only
	// kubelet's own rbd plugin can read. An empty Keyring is that plugin's default.
	User       string
	UserSecret volume.SecretRef
	Keyring    string
	// FSType is empty for ext4, which kubelet and the node plugin then take.
	FSType string
	// TrashRetention is how long the trash keeps the images of deleted volumes.
	TrashRetention time.Duration
	Source         Source
	// MapOptions are for volumes that our node plugin mounts: see CheckSource.
	MapOptions volume.MapOptions
}

// Parse validates parameters. The error is Faults, in an order that does not change.
func Parse(parameters map[string]string) (Params, error) {
	r := newReader(parameters)
	p := Params{Location: r.location()}
	p.User = r.user("userId", p.Location.User)
	p.UserSecret, p.Keyring = r.userKey()
	p.FSType = r.fsType()
	p.TrashRetention = r.trashRetention()
	p.Source, p.MapOptions = r.source(), r.mapOptions()
	r.speaks(p.Location.Monitors, p.MapOptions.Protocol())
	if p.Source != SourceAuto {
		r.faults = append(r.faults, p.CheckSource(p.Source)...)
	}
	r.imageFormat()
	r.imageFeatures()
	r.unknown()
	if len(r.faults) > 0 {
		return Params{}, r.faults
	}
	return p, nil
}

// CheckSource returns what p asks for and volumes with that source, which is not SourceAuto,
// can't have.
func (p Params) CheckSource(source Source) Faults {
	var faults Faults
	if source == SourceCSI && p.UserSecret.Name == "" {
		faults = append(faults, errors.New(`parameter "userSecretName" is missing: the node plugin takes the user's key from a secret, `+
			"not from a keyring on the nodes: name the secret with that key"))
	}
	if source == SourceCSI && p.FSType != "" && !volume.IsFileSystem(p.FSType) {
		faults = append(faults, fmt.Errorf(`parameter "fsType": the node plugin can't mount %q: use one of %s, or leave it out for ext4`,
			p.FSType, strings.Join(volume.FileSystems(), ", ")))
	}
	if source == SourceInTree && p.MapOptions.String() != "" {
		faults = append(faults, errors.New(`parameter "mapOptions" is for volumes of the node plugin, not for in-tree ones: leave it out, `+
			`or install the node plugin (kubectl apply -f deploy/node/) and give "volumeSource" as csi`))
	}
	return faults
}

// ParseLocation reads only what the deletion of an image needs, so that a fault in
// another parameter does not block it. Its errors are like those of Parse.
func ParseLocation(parameters map[string]string) (volume.Location, error) {
	r := newReader(parameters)
	delete(r.values, "datapool")
	l := r.location()
	if len(r.faults) > 0 {
		return volume.Location{}, r.faults
	}
	return l, nil
}

// Faults are all faults in a StorageClass's parameters, at least one.
type Faults []error

// Error returns all faults in one line, because it becomes an event.
func (f Faults) Error() string {
	return strings.ReplaceAll(errors.Join(f...).Error(), "\n", "; ")
}

// Unwrap returns the single faults.
func (f Faults) Unwrap() []error { return f }

// reader reads parameters one by one and collects their faults.
type reader struct {
	// values are trimmed, and spelled are the keys as the StorageClass spells them; both
	// by key in lower case.
	values, spelled map[string]string
	faults          Faults
}

func newReader(parameters map[string]string) *reader {
	r := &reader{values: map[string]string{}, spelled: map[string]string{}}
	for _, key := range slices.Sorted(maps.Keys(parameters)) {
		lower, value := strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(parameters[key])
		if lower == csiFSType {
			lower = "fstype"
		}
		if first, twice := r.spelled[lower]; twice && value != r.values[lower] {
			r.fault("parameters %q and %q are the same one: keep one of them", first, key)
			continue
		}
		r.spelled[lower], r.values[lower] = key, value
	}
	return r
}

func (r *reader) fault(format string, args ...any) {
	r.faults = append(r.faults, fmt.Errorf(format, args...))
}

// get returns a parameter; one with an empty value counts as missing.
func (r *reader) get(key, byDefault string) string {
	return cmp.Or(r.values[strings.ToLower(key)], byDefault)
}

// must is get for a parameter that has no default; it returns "" if that is missing.
func (r *reader) must(key, remedy string) string {
	value := r.get(key, "")
	if value == "" {
		r.fault("parameter %q is missing: %s", key, remedy)
	}
	return value
}

func (r *reader) location() volume.Location {
	l := volume.Location{
		Monitors: r.monitors(),
		Pool:     r.pool("pool", "rbd"),
		DataPool: r.pool("dataPool", ""),
		User:     r.user("adminId", "admin"),
		Secret:   r.secret("adminSecretName", "adminSecretNamespace", "default"),
	}
	if l.DataPool == l.Pool {
		l.DataPool = ""
	}
	return l
}

func (r *reader) monitors() []volume.Monitor {
	const key, remedy = "monitors", "list the Ceph monitors, as in 10.0.0.1:6789,10.0.0.2:6789"
	value := r.must(key, remedy)
	if value == "" {
		return nil
	}
	monitors, err := volume.ParseMonitors(value)
	switch {
	case err != nil:
		r.fault("parameter %q: %w", key, err)
	case len(monitors) == 0:
		r.fault("parameter %q names no monitor: %s", key, remedy)
	}
	return monitors
}

// speaks checks that nodes can reach one of the monitors at least.
func (r *reader) speaks(monitors []volume.Monitor, protocol volume.Protocol) {
	speaks := func(m volume.Monitor) bool {
		_, ok := m.KernelAddress(protocol)
		return ok
	}
	switch {
	case len(monitors) == 0 || slices.ContainsFunc(monitors, speaks): // without any, there is a fault already
	case protocol == volume.ProtocolV2:
		r.fault(`parameter "monitors": none speaks message protocol 2, which "ms_mode" in "mapOptions" asks for: ` +
			"add the monitors with port 3300")
	default:
		r.fault(`parameter "monitors": none speaks message protocol 1, which nodes map images with: ` +
			`add the monitors with port 6789, or, with the node plugin, give "mapOptions" as ms_mode=prefer-crc`)
	}
}

func (r *reader) source() Source {
	switch source := Source(r.get("volumeSource", "")); source {
	case SourceAuto, SourceInTree, SourceCSI:
		return source
	default:
		r.fault(`parameter "volumeSource": %q is not supported: use csi for the node plugin, rbd for in-tree volumes, or leave it out`, source)
		return SourceAuto
	}
}

func (r *reader) mapOptions() volume.MapOptions {
	options, err := volume.ParseMapOptions(r.get("mapOptions", ""))
	if err != nil {
		r.fault(`parameter "mapOptions": %w`, err)
	}
	return options
}

func (r *reader) pool(key, byDefault string) string {
	pool := r.get(key, byDefault)
	switch {
	case strings.Contains(pool, "/"):
		r.fault("parameter %q: %q has a slash: RADOS namespaces are not supported", key, pool)
	case strings.ContainsAny(pool, "@ \t\r\n"):
		r.fault("parameter %q: %q is not a pool name: it has a blank or an @", key, pool)
	case !volume.IsName(pool):
		r.fault("parameter %q: %q is not a pool name: it has a character that can't be printed", key, pool)
	case strings.Contains(pool, "-image-"):
		r.fault(`parameter %q: kubelet can't mount images of pool %q, since its name has "-image-" in it`, key, pool)
	}
	return pool
}

func (r *reader) user(key, byDefault string) string {
	user := r.get(key, byDefault)
	if bare, prefixed := strings.CutPrefix(user, "client."); prefixed {
		r.fault(`parameter %q: write %q without "client.", as %q`, key, user, bare)
	} else if strings.ContainsAny(user, " \t\r\n,=") || !volume.IsName(user) {
		r.fault("parameter %q: %q is not the name of a Ceph user", key, user)
	}
	return user
}

func (r *reader) secret(nameKey, namespaceKey, defaultNamespace string) volume.SecretRef {
	name := r.must(nameKey, "name the secret that holds the Ceph key")
	if name != "" && len(validation.IsDNS1123Subdomain(name)) > 0 {
		r.fault("parameter %q: %q is not the name of a secret", nameKey, name)
	}
	namespace := r.get(namespaceKey, defaultNamespace)
	if namespace != "" && len(validation.IsDNS1123Label(namespace)) > 0 {
		r.fault("parameter %q: %q is not the name of a namespace", namespaceKey, namespace)
	}
	return volume.SecretRef{Namespace: namespace, Name: name}
}

// userKey returns where nodes find the user's key. kubelet uses no keyring beside a secret.
func (r *reader) userKey() (secret volume.SecretRef, keyring string) {
	if r.get("userSecretName", "") != "" {
		return r.secret("userSecretName", "userSecretNamespace", ""), ""
	}
	if r.get("userSecretNamespace", "") != "" {
		r.fault(`parameter "userSecretNamespace" is given without "userSecretName": name the secret, or leave out both for a keyring on the nodes`)
	}
	keyring = r.get("keyring", "")
	// Ceph takes a list of paths here, divided by these characters.
	if keyring != "" && (!path.IsAbs(keyring) || strings.ContainsAny(keyring, ",;= ") || !volume.IsName(keyring)) {
		r.fault(`parameter "keyring": %q is not the path of a file on the nodes, as in /etc/ceph/keyring`, keyring)
	}
	return volume.SecretRef{}, keyring
}

// fsType allows only what can end a program's name: for in-tree volumes, kubelet runs
// mkfs.FSTYPE on the node. CheckSource knows what the node plugin takes.
func (r *reader) fsType() string {
	fsType := r.get("fsType", "")
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
	if strings.Trim(fsType, allowed) != "" {
		r.fault("parameter %q: %q is not a file system type: use for example ext4 or xfs", r.spelled["fstype"], fsType)
	}
	return fsType
}

func (r *reader) trashRetention() time.Duration {
	retention, err := volume.ParseRetention(r.get("trashRetention", "0"))
	if err != nil {
		r.fault(`parameter "trashRetention": %w`, err)
	}
	return retention
}

func (r *reader) imageFormat() {
	switch format := r.get("imageFormat", "2"); format {
	case "2":
	case "1":
		r.fault(`parameter "imageFormat": Ceph no longer creates images of format 1: use 2, or leave it out`)
	default:
		r.fault(`parameter "imageFormat": %q is not an image format: use 2, or leave it out`, format)
	}
}

func (r *reader) imageFeatures() {
	for feature := range strings.SplitSeq(r.get("imageFeatures", ""), ",") {
		if feature = strings.TrimSpace(feature); feature != "layering" && feature != "" {
			r.fault(`parameter "imageFeatures": %q is not supported: use layering, or leave it out`, feature)
		}
	}
}

func (r *reader) unknown() {
	others := maps.Clone(r.spelled)
	for _, key := range Keys() {
		delete(others, strings.ToLower(key))
	}
	var unknown []string
	for _, key := range others {
		unknown = append(unknown, fmt.Sprintf("%q", key))
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		r.fault("unknown parameter %s: known are %s", strings.Join(unknown, ", "), strings.Join(Keys(), ", "))
	}
}
