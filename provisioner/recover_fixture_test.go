// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"slices"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"ceph.com/rbd-provisioner/provisioner/journal"
)

// journalFixture is what a Provisioner needs to keep a journal.
type journalFixture struct {
	// clusterUID and identity go into the next Provisioner that restart makes;
	// an empty identity changes nothing.
	clusterUID, identity string
	// volumes is the cache.
	volumes  cache.Indexer
	outcomes *outcomes
}

type outcomes struct {
	mu     sync.Mutex // guards what follows
	list   []Outcome
	purged map[string]int // by whom
}

func newJournalFixture() journalFixture {
	return journalFixture{
		clusterUID: testCluster,
		volumes:    cache.NewIndexer(cache.MetaNamespaceKeyFunc, VolumeIndexers()),
		outcomes:   &outcomes{purged: map[string]int{}},
	}
}

func (j journalFixture) config(c Config) Config {
	c.ClusterUID = j.clusterUID
	if j.identity != "" {
		c.Identity = j.identity
	}
	c.VolumeLister = corelisters.NewPersistentVolumeLister(j.volumes)
	c.VolumeIndex = j.volumes
	c.Recovered = func(o Outcome) {
		j.outcomes.mu.Lock()
		defer j.outcomes.mu.Unlock()
		j.outcomes.list = append(j.outcomes.list, o)
	}
	c.Purged = func(by string) {
		j.outcomes.mu.Lock()
		defer j.outcomes.mu.Unlock()
		j.outcomes.purged[by]++
	}
	return c
}

// purged returns how many images were removed from the trash, and purgedBy by
// whom.
func (j journalFixture) purged() int {
	j.outcomes.mu.Lock()
	defer j.outcomes.mu.Unlock()
	return j.outcomes.purged[ByManager] + j.outcomes.purged[ByProvisioner]
}

func (j journalFixture) purgedBy(by string) int {
	j.outcomes.mu.Lock()
	defer j.outcomes.mu.Unlock()
	return j.outcomes.purged[by]
}

// counted returns the outcomes since the last call.
func (j journalFixture) counted() []Outcome {
	j.outcomes.mu.Lock()
	defer j.outcomes.mu.Unlock()
	list := j.outcomes.list
	j.outcomes.list = nil
	return list
}

// save stores a volume as the library does, in the API but not in the cache.
func (f *fixture) save(t *testing.T, pv *corev1.PersistentVolume) *corev1.PersistentVolume {
	t.Helper()
	pv = pv.DeepCopy()
	metav1.SetMetaDataAnnotation(&pv.ObjectMeta, annProvisionedBy, DefaultName)
	if _, err := f.client.CoreV1().PersistentVolumes().Create(t.Context(), pv, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return pv
}

// intents returns the images of the intents in the pool, of whatever journal.
func (f *fixture) intents() []string {
	var images []string
	for _, notes := range f.ceph.Notes(testPool) {
		for image := range notes {
			images = append(images, image)
		}
	}
	slices.Sort(images)
	return images
}

func (f *fixture) checkIntents(t *testing.T, want ...string) {
	t.Helper()
	checkSame(t, "the intents", want, f.intents())
}

// testIntent is that for the claim that options makes.
func testIntent() journal.Intent {
	return journal.Intent{
		Image: testImage, Namespace: "apps", Claim: "data", ClaimUID: "1234", Volume: "pvc-1234", SizeBytes: 1 << 30,
	}
}

// note writes an intent down as an earlier process did.
func (f *fixture) note(t *testing.T, in journal.Intent) {
	t.Helper()
	pool, err := f.config.Access.Open(t.Context(), f.location(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := f.journal.Write(t.Context(), pool, in); err != nil {
		t.Fatal(err)
	}
}
