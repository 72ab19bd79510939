// SPDX-License-Identifier: Apache-2.0

// Package volume knows what a PersistentVolume says about its image: in its source, which is
// in-tree rbd or CSI, and in annotations that let a deletion do without the StorageClass. It
// is pure.
package volume

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The annotations of a PersistentVolume that this package reads and writes.
const (
	// AnnProvisionedBy names the volume's provisioner, as its StorageClass does.
	// Kubernetes' libraries set it.
	AnnProvisionedBy = "pv.kubernetes.io/provisioned-by"
	// AnnIdentity is the provisioner's identity; the retired rbd-provisioner set it too.
	AnnIdentity = "rbdProvisionerIdentity"
	// AnnDeletionSecretName and AnnDeletionSecretNamespace name the secret with the key
	// of the user that deletes the image. external-provisioner uses them too.
	AnnDeletionSecretName      = "volume.kubernetes.io/provisioner-deletion-secret-name"
	AnnDeletionSecretNamespace = "volume.kubernetes.io/provisioner-deletion-secret-namespace"
	// AnnDeletionUser is the Ceph user that deletes the image, without "client.".
	AnnDeletionUser = "rbd.ceph.com/provisioner-deletion-user"
	// AnnClusterFSID is the Ceph cluster's identity. It tells monitors that moved from
	// those of another cluster.
	AnnClusterFSID = "rbd.ceph.com/cluster-fsid"
	// AnnTrashRetention is how long the pool's trash keeps the image of the deleted
	// volume, as in "24h"; 0 without it.
	AnnTrashRetention = "rbd.ceph.com/trash-retention"
	// AnnKubernetesCluster repeats MetaCluster, so that the image need not be read. It
	// proves nothing: copies of the volume have it too.
	AnnKubernetesCluster = "rbd.ceph.com/kubernetes-cluster"
	// AnnFormerCluster is set by an administrator who moves a volume for good, to the
	// image's MetaCluster. This volume then takes the image over, and the provisioner
	// removes the annotation.
	AnnFormerCluster = "rbd.ceph.com/former-cluster"
	// AnnDeletionBegun is when a late deletion began: see Freshness in package index.
	AnnDeletionBegun = "rbd.ceph.com/deletion-begun"
	// AnnFileSystemSize is the size of a clone's file system, as a quantity, if the clone
	// is larger than its source. It is removed once the claim has that size.
	AnnFileSystemSize = "rbd.ceph.com/file-system-size"
)

// ErrNoRBDSource means that a PersistentVolume has neither an in-tree rbd source nor a CSI
// source of our node plugin.
var ErrNoRBDSource = errors.New("the volume has no rbd source, and no CSI source of " + CSIDriver + ", so its image is not known")

// SecretRef names a Secret.
type SecretRef corev1.SecretReference

// String returns "namespace/name", as logs and events show it.
func (r SecretRef) String() string { return r.Namespace + "/" + r.Name }

// Location says where a pool is and which user opens it.
type Location struct {
	Monitors []Monitor
	Pool     string
	User     string    // without "client."
	Secret   SecretRef // which holds the user's key
	// DataPool has the images' data; empty if that is Pool or unknown.
	DataPool string
}

// Record is what a PersistentVolume remembers about its image.
type Record struct {
	// Identity is that of the provisioner that made the image. Cluster is the Kubernetes
	// cluster in the image's owner metadata, if it is known.
	Identity, Cluster string
	// FSID is the Ceph cluster's identity, a UUID. Volumes of the retired provisioner
	// have neither Cluster, FSID nor Admin.
	FSID string
	// CSI says that our node plugin mounts the volume, and not kubelet's own rbd plugin.
	CSI bool
	// Monitors are endpoints of message protocol 1, as "IP:port"; with CSI any that
	// ParseMonitors reads.
	Monitors []string
	Pool     string
	Image    string
	// User maps the image on nodes, with the key in UserSecret. An empty namespace there
	// means the Pod's, which CSI does not know. Without a name, kubelet's own plugin reads the
	// key from the file Keyring on the node, for which the API server has a default.
	User       string
	UserSecret SecretRef
	Keyring    string
	// MapOptions are as in AttrMapOptions; only with CSI.
	MapOptions string
	// FSType is empty for the default, ext4, and for block volumes.
	FSType string
	// Admin deletes the image, with the key in AdminSecret.
	Admin       string
	AdminSecret SecretRef
	// TrashRetention is as in AnnTrashRetention, and never negative.
	TrashRetention time.Duration
}

// PoolID returns the key of the image's pool; its FSID is empty if r's is.
func (r Record) PoolID() PoolID { return PoolID{r.FSID, r.Pool} }

// Write puts r into pv: its source and its annotations. Read returns r again from it.
func (r Record) Write(pv *corev1.PersistentVolume) {
	pv.Spec.PersistentVolumeSource = r.inTree()
	if r.CSI {
		pv.Spec.PersistentVolumeSource = r.csi()
	}
	retention := ""
	if r.TrashRetention > 0 {
		retention = r.TrashRetention.String()
	}
	for key, value := range map[string]string{
		AnnIdentity:                r.Identity,
		AnnKubernetesCluster:       r.Cluster,
		AnnClusterFSID:             r.FSID,
		AnnDeletionUser:            r.Admin,
		AnnDeletionSecretName:      r.AdminSecret.Name,
		AnnDeletionSecretNamespace: r.AdminSecret.Namespace,
		AnnTrashRetention:          retention,
	} {
		if value == "" {
			delete(pv.Annotations, key)
			continue
		}
		metav1.SetMetaDataAnnotation(&pv.ObjectMeta, key, value)
	}
}

// inTree returns the source for kubelet's own rbd plugin.
func (r Record) inTree() corev1.PersistentVolumeSource {
	return corev1.PersistentVolumeSource{RBD: &corev1.RBDPersistentVolumeSource{
		CephMonitors: slices.Clone(r.Monitors),
		RBDPool:      r.Pool,
		RBDImage:     r.Image,
		RadosUser:    r.User,
		FSType:       r.FSType,
		Keyring:      r.Keyring,
		SecretRef:    r.userSecret(),
	}}
}

// userSecret returns nil if there is none.
func (r Record) userSecret() *corev1.SecretReference {
	if r.UserSecret.Name == "" {
		return nil
	}
	return (*corev1.SecretReference)(&r.UserSecret)
}

// IsName reports whether text can be a name in Ceph: all its characters are printable.
// librados would cut a name at a NUL and so reach another pool or image.
func IsName(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}

// ParseRetention reads how long the trash keeps an image, as in "24h".
func ParseRetention(text string) (time.Duration, error) {
	retention, err := time.ParseDuration(text)
	if err != nil || retention < 0 || retention%time.Second != 0 {
		return 0, fmt.Errorf("%q is not a duration: write hours, minutes and seconds, as in 24h or 1h30m", text)
	}
	return retention, nil
}

// Read returns what pv remembers. The error is ErrNoRBDSource, or says what is missing or
// invalid in the source or the annotations.
func Read(pv *corev1.PersistentVolume) (Record, error) {
	r, err := readSource(pv)
	if err != nil {
		return Record{}, err
	}
	r.Identity, r.Cluster = pv.Annotations[AnnIdentity], pv.Annotations[AnnKubernetesCluster]
	r.FSID = pv.Annotations[AnnClusterFSID]
	r.Admin = pv.Annotations[AnnDeletionUser]
	r.AdminSecret = SecretRef{Namespace: pv.Annotations[AnnDeletionSecretNamespace], Name: pv.Annotations[AnnDeletionSecretName]}
	if !IsName(r.Pool) || !IsName(r.Image) || !IsName(r.Admin) {
		return Record{}, errors.New("the volume's pool, image or deletion user has a character that can't be printed")
	}
	if r.TrashRetention, err = ParseRetention(cmp.Or(pv.Annotations[AnnTrashRetention], "0")); err != nil {
		return Record{}, fmt.Errorf("the volume's annotation %s: %w", AnnTrashRetention, err)
	}
	return r, nil
}

// HasSource reports whether a volume has a source that Read knows.
func HasSource(pv *corev1.PersistentVolume) bool { return pv.Spec.RBD != nil || isCSI(pv) }

// readSource returns what the source of pv says.
func readSource(pv *corev1.PersistentVolume) (Record, error) {
	if isCSI(pv) {
		return readCSI(pv.Spec.CSI)
	}
	source := pv.Spec.RBD
	if source == nil {
		return Record{}, ErrNoRBDSource
	}
	if source.RBDImage == "" || source.RBDPool == "" || len(source.CephMonitors) == 0 {
		return Record{}, errors.New("the volume's rbd source names no monitors, pool or image")
	}
	return Record{
		Monitors:   slices.Clone(source.CephMonitors),
		Pool:       source.RBDPool,
		Image:      source.RBDImage,
		User:       source.RadosUser,
		UserSecret: toSecretRef(source.SecretRef),
		Keyring:    source.Keyring,
		FSType:     source.FSType,
	}, nil
}

// toSecretRef returns the zero value for nil.
func toSecretRef(ref *corev1.SecretReference) SecretRef {
	if ref == nil {
		return SecretRef{}
	}
	return SecretRef(*ref)
}

// Complete reports whether r names the user that deletes the image, and its secret.
func (r Record) Complete() bool {
	return r.Admin != "" && r.AdminSecret.Name != "" && r.AdminSecret.Namespace != ""
}

// Location returns where the image is and which user deletes it. The error names invalid
// monitors.
func (r Record) Location() (Location, error) {
	monitors, err := ParseMonitors(strings.Join(r.Monitors, ","))
	if err != nil {
		return Location{}, fmt.Errorf("the volume's source: %w", err)
	}
	return Location{Monitors: monitors, Pool: r.Pool, User: r.Admin, Secret: r.AdminSecret}, nil
}
