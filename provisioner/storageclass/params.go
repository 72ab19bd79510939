// SPDX-License-Identifier: Apache-2.0

// Package storageclass turns a StorageClass's parameters into validated values. It is
// pure: it resolves no names and reads no secrets.
package storageclass

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// The parameters, as the documentation spells them. A StorageClass may write them in any
// case.
const (
	KeyMonitors             = "monitors"
	KeyPool                 = "pool"
	KeyDataPool             = "dataPool"
	KeyAdminID              = "adminId"
	KeyAdminSecretName      = "adminSecretName"
	KeyAdminSecretNamespace = "adminSecretNamespace"
	KeyUserID               = "userId"
	KeyUserSecretName       = "userSecretName"
	KeyUserSecretNamespace  = "userSecretNamespace"
	KeyFSType               = "fsType"
	KeyImageFormat          = "imageFormat"
	KeyImageFeatures        = "imageFeatures"
	KeyTrashRetention       = "trashRetention"
)

// The defaults of missing parameters.
const (
	DefaultPool                 = "rbd"
	DefaultAdminID              = "admin"
	DefaultAdminSecretNamespace = "default"
)

// Keys returns all parameters, in the order of the documentation.
func Keys() []string {
	return []string{
		KeyMonitors, KeyPool, KeyDataPool,
		KeyAdminID, KeyAdminSecretName, KeyAdminSecretNamespace,
		KeyUserID, KeyUserSecretName, KeyUserSecretNamespace,
		KeyFSType, KeyImageFormat, KeyImageFeatures, KeyTrashRetention,
	}
}

// Params is what a StorageClass asks for.
type Params struct {
	Monitors []volume.Monitor
	Pool     string
	// DataPool is empty if data goes to Pool.
	DataPool string
	// Admin makes and deletes images.
	Admin       string
	AdminSecret volume.SecretRef
	// User maps images on nodes. An empty namespace in UserSecret means the claim's.
	User       string
	UserSecret volume.SecretRef
	// FSType is empty for kubelet's default.
	FSType string
	// TrashRetention is how long the trash keeps the images of deleted volumes.
	TrashRetention time.Duration
}

// Location returns where the class's images are and which user makes them.
func (p Params) Location() volume.Location {
	return volume.Location{
		Monitors: p.Monitors,
		Pool:     p.Pool,
		DataPool: p.DataPool,
		User:     p.Admin,
		Secret:   p.AdminSecret,
	}
}

// Parse validates parameters. The error is Faults: all faults in one line, each with its
// remedy, in an order that does not change.
func Parse(parameters map[string]string) (Params, error) {
	r := newReader(parameters)
	p := Params{
		Monitors: r.monitors(),
		Pool:     r.pool(KeyPool, DefaultPool),
		DataPool: r.pool(KeyDataPool, ""),
		Admin:    r.user(KeyAdminID, DefaultAdminID),
	}
	if p.DataPool == p.Pool {
		p.DataPool = ""
	}
	p.AdminSecret.Name = r.secretName(KeyAdminSecretName)
	p.AdminSecret.Namespace = r.namespace(KeyAdminSecretNamespace, DefaultAdminSecretNamespace)
	p.User = r.user(KeyUserID, p.Admin)
	p.UserSecret.Name = r.secretName(KeyUserSecretName)
	p.UserSecret.Namespace = r.namespace(KeyUserSecretNamespace, "")
	p.FSType = r.fsType()
	p.TrashRetention = r.trashRetention()
	r.imageFormat()
	r.imageFeatures()
	r.unknown()
	if len(r.faults) > 0 {
		return Params{}, r.faults
	}
	return p, nil
}

// ParseLocation reads only what the deletion of an image needs, so that a fault in
// another parameter does not block it. Its errors are like those of Parse.
func ParseLocation(parameters map[string]string) (volume.Location, error) {
	r := newReader(parameters)
	l := volume.Location{
		Monitors: r.monitors(),
		Pool:     r.pool(KeyPool, DefaultPool),
		User:     r.user(KeyAdminID, DefaultAdminID),
	}
	l.Secret.Name = r.secretName(KeyAdminSecretName)
	l.Secret.Namespace = r.namespace(KeyAdminSecretNamespace, DefaultAdminSecretNamespace)
	if len(r.faults) > 0 {
		return volume.Location{}, r.faults
	}
	return l, nil
}

// Faults are all faults in a StorageClass's parameters.
type Faults []error

// Error returns all faults in one line, because it becomes an event.
func (f Faults) Error() string {
	texts := make([]string, len(f))
	for i, err := range f {
		texts[i] = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns the single faults.
func (f Faults) Unwrap() []error { return f }

// reader reads parameters one by one and collects their faults.
type reader struct {
	// values are trimmed, by key in lower case. A parameter with an empty value is not
	// in it, as if it were missing.
	values map[string]string
	// spelled has each key as the StorageClass spells it, by key in lower case.
	spelled map[string]string
	faults  Faults
}

func newReader(parameters map[string]string) *reader {
	r := &reader{values: map[string]string{}, spelled: map[string]string{}}
	for _, key := range slices.Sorted(maps.Keys(parameters)) {
		lower := strings.ToLower(strings.TrimSpace(key))
		if first, twice := r.spelled[lower]; twice {
			r.fault("parameters %q and %q are the same one: keep one of them", first, key)
			continue
		}
		r.spelled[lower] = key
		if value := strings.TrimSpace(parameters[key]); value != "" {
			r.values[lower] = value
		}
	}
	return r
}

func (r *reader) fault(format string, args ...any) {
	r.faults = append(r.faults, fmt.Errorf(format, args...))
}

func (r *reader) get(key, byDefault string) string {
	if value, given := r.values[strings.ToLower(key)]; given {
		return value
	}
	return byDefault
}

// must is get for a parameter that has no default.
func (r *reader) must(key, remedy string) (string, bool) {
	value := r.get(key, "")
	if value == "" {
		r.fault("parameter %q is missing: %s", key, remedy)
	}
	return value, value != ""
}

func (r *reader) monitors() []volume.Monitor {
	const remedy = "list the Ceph monitors, as in 10.0.0.1:6789,10.0.0.2:6789"
	value, given := r.must(KeyMonitors, remedy)
	if !given {
		return nil
	}
	monitors, err := volume.ParseMonitors(value)
	switch {
	case err != nil:
		r.fault("parameter %q: %w", KeyMonitors, err)
	case len(monitors) == 0:
		r.fault("parameter %q names no monitor: %s", KeyMonitors, remedy)
	case !slices.ContainsFunc(monitors, speaksV1):
		r.fault("parameter %q: none speaks message protocol 1, the only one that nodes map images with: "+
			"add the monitors with port 6789", KeyMonitors)
	}
	return monitors
}

func speaksV1(m volume.Monitor) bool {
	_, ok := m.KernelAddress()
	return ok
}

func (r *reader) pool(key, byDefault string) string {
	pool := r.get(key, byDefault)
	switch {
	case strings.Contains(pool, "/"):
		r.fault("parameter %q: %q has a slash: RADOS namespaces are not supported by kubelet", key, pool)
	case strings.ContainsAny(pool, "@ \t\r\n"):
		r.fault("parameter %q: %q is no pool name: it has a blank or an @", key, pool)
	case !volume.IsName(pool):
		r.fault("parameter %q: %q is no pool name: it has a character that can't be printed", key, pool)
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
		r.fault("parameter %q: %q is no name of a Ceph user", key, user)
	}
	return user
}

func (r *reader) secretName(key string) string {
	name, given := r.must(key, "name the secret that holds the Ceph key")
	if given {
		if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
			r.fault("parameter %q: %q is no name of a secret", key, name)
		}
	}
	return name
}

func (r *reader) namespace(key, byDefault string) string {
	name := r.get(key, byDefault)
	if name != "" && len(validation.IsDNS1123Label(name)) > 0 {
		r.fault("parameter %q: %q is no name of a namespace", key, name)
	}
	return name
}

// fsType allows only what can end a program's name: kubelet runs mkfs.FSTYPE on the node.
func (r *reader) fsType() string {
	fsType := r.get(KeyFSType, "")
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
	if strings.Trim(fsType, allowed) != "" {
		r.fault("parameter %q: %q is no file system type: use for example ext4 or xfs", KeyFSType, fsType)
	}
	return fsType
}

func (r *reader) trashRetention() time.Duration {
	retention, err := volume.ParseRetention(r.get(KeyTrashRetention, "0"))
	if err != nil {
		r.fault("parameter %q: %w", KeyTrashRetention, err)
	}
	return retention
}

func (r *reader) imageFormat() {
	switch format := r.get(KeyImageFormat, "2"); format {
	case "2":
	case "1":
		r.fault("parameter %q: Ceph no longer creates images of format 1: use 2, or leave it out", KeyImageFormat)
	default:
		r.fault("parameter %q: %q is no image format: use 2, or leave it out", KeyImageFormat, format)
	}
}

func (r *reader) imageFeatures() {
	for feature := range strings.SplitSeq(r.get(KeyImageFeatures, "layering"), ",") {
		if feature = strings.TrimSpace(feature); feature != "layering" && feature != "" {
			r.fault("parameter %q: %q is not supported: use layering, or leave it out", KeyImageFeatures, feature)
		}
	}
}

func (r *reader) unknown() {
	known := Keys()
	isKnown := func(lower string) bool {
		return slices.ContainsFunc(known, func(key string) bool { return strings.ToLower(key) == lower })
	}
	var unknown []string
	for lower, spelled := range r.spelled {
		if !isKnown(lower) {
			unknown = append(unknown, fmt.Sprintf("%q", spelled))
		}
	}
	if len(unknown) == 0 {
		return
	}
	slices.Sort(unknown)
	r.faults = append(r.faults, errors.New("unknown parameter "+strings.Join(unknown, ", ")+
		": known are "+strings.Join(known, ", ")))
}
