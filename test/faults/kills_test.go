// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"ceph.com/rbd-provisioner/test/cluster"
)

// The provisioner is killed again and again, while many claims get their volumes, and
// while these are deleted.
func TestKilled(t *testing.T) {
	t.Parallel()
	s := newStorm(t, settings.claims, settings.kills)
	s.create(settings.claims, settings.kills, false)
	s.remove(settings.kills)
	s.report()
}

// Claims are deleted while their images are being made, and while no provisioner runs
// that could notice.
func TestKilledWhileClaimsGo(t *testing.T) {
	t.Parallel()
	s := newStorm(t, settings.claims, settings.kills)
	s.create(settings.claims, settings.kills, true)
	s.report()
}

// storm kills a provisioner.
type storm struct {
	*fixture
	random *rand.Rand
	claims []*corev1.PersistentVolumeClaim
	// fill makes claims PREFIX-0, PREFIX-1 …
	fill func(prefix string, count int) []*corev1.PersistentVolumeClaim

	made, kills int
	// early are the names of claims that were deleted while they waited, by their images.
	early map[string]string
	// leaked are images that no volume names, when all should be settled.
	leaked   int
	killed   time.Time     // the last time, until the next volume came or went
	longest  time.Duration // from a kill to the next volume that came or went
	settling time.Duration // the longest from a phase's last kill until all was settled
}

func newStorm(t *testing.T, claims, kills int, more ...string) *storm {
	t.Helper()
	if claims < 2*kills {
		t.Fatalf("%d claims are too few for %d kills", claims, kills)
	}
	flags := shortLease
	if settings.asUsersHaveIt {
		flags = nil
	}
	s := &storm{fixture: newFixture(t, slices.Concat(flags, more)...), random: random(t), early: map[string]string{}}
	s.fill = s.fixture.claims
	return s
}

// create makes claims: half of them at once, the others before the kills. If early is
// set, it deletes some of them while they wait for their volumes.
func (s *storm) create(claims, kills int, early bool) {
	s.Helper()
	each := claims / 2 / kills
	s.claims = s.fill("first", claims-each*kills)
	s.made = claims
	var last time.Time
	for i := range kills {
		// Drawn in this order in any case, so that a seed repeats them.
		after, pause, gone := 1+s.random.IntN(each), s.pause(), 1+s.random.IntN(each)
		seen := s.watch()
		more := s.fill(fmt.Sprintf("more-%d", i), each)
		if early && gone > 1 {
			s.deleteEarly(more[:gone/2]...)
			more = more[gone/2:]
			after = min(after, len(more))
		}
		s.kill(seen, watch.Added, after, pause)
		last = s.killed
		if early {
			s.deleteEarly(more[0])
			more = more[1:]
		}
		s.claims = append(s.claims, more...)
		s.must(s.p.Start(s.ctx()))
	}
	s.settle(last)
}

// deleteEarly deletes claims that may not have a volume yet.
func (s *storm) deleteEarly(claims ...*corev1.PersistentVolumeClaim) {
	s.Helper()
	s.delete(claims...)
	for _, claim := range claims {
		s.early[imagePrefix+string(claim.UID)] = claim.Name
	}
}

// remove deletes the claims: half of them at once, the others before the kills.
func (s *storm) remove(kills int) {
	s.Helper()
	each := len(s.claims) / 2 / kills
	var last time.Time
	for i := range kills {
		after, pause := 1+s.random.IntN(each), s.pause()
		seen := s.watch()
		now := s.claims[:each]
		if i == 0 {
			now = s.claims[:len(s.claims)-each*(kills-1)]
		}
		s.delete(now...)
		s.claims = s.claims[len(now):]
		s.kill(seen, watch.Deleted, after, pause)
		last = s.killed
		s.must(s.p.Start(s.ctx()))
	}
	s.settle(last)
}

// pause returns a random time, short compared with the time that one volume takes.
func (s *storm) pause() time.Duration { return time.Duration(s.random.IntN(40)) * time.Millisecond }

// watch reports the volumes that come and go from now on. The API server ends a watch that
// is not read for long, as while claims are deleted; this one is then begun anew.
func (s *storm) watch() watch.Interface {
	s.Helper()
	client := s.kube.Client.CoreV1().PersistentVolumes()
	now, err := client.List(s.ctx(), metav1.ListOptions{})
	s.must(err)
	seen, err := watchtools.NewRetryWatcherWithContext(s.ctx(), now.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: client.Watch,
	})
	s.must(err)
	return seen
}

// kill waits until that many volumes have come or gone, and a moment longer, and then
// kills the provisioner.
func (s *storm) kill(seen watch.Interface, kind watch.EventType, count int, pause time.Duration) {
	s.Helper()
	defer seen.Stop()
	limit := time.After(patience)
	for count > 0 {
		select {
		case event, ok := <-seen.ResultChan():
			if !ok {
				s.Fatal("the watch of volumes ended")
			}
			if event.Type != kind {
				continue
			}
			s.recovered()
			count--
		case <-s.p.Done():
			s.Fatalf("the provisioner ended by itself, with status %d", s.p.ExitCode())
		case <-limit:
			s.Fatalf("after a kill, %d more volumes were to be %s; %v", count, kind, s.whole(s.ctx()))
		}
	}
	<-time.After(pause)
	s.p.Kill()
	s.kills++
	s.killed = time.Now()
}

// recovered notes that the first volume after a kill came or went.
func (s *storm) recovered() {
	if !s.killed.IsZero() {
		s.longest = max(s.longest, time.Since(s.killed))
		s.killed = time.Time{}
	}
}

// settle waits until all is settled after the last kill.
func (s *storm) settle(last time.Time) {
	s.Helper()
	s.killed = time.Time{}
	if err := cluster.Eventually(s.ctx(), patience, s.whole); err != nil {
		// Counted, because the figures of a failed run are wanted, too.
		s.Error(err)
		leaks := s.leaks()
		s.leaked += len(leaks)
		for _, image := range leaks {
			s.Errorf("leaked %s, of claim %q if that was deleted early", image, s.early[image])
		}
		return
	}
	s.settling = max(s.settling, time.Since(last))
}

// leaks lists the images that no volume names.
func (s *storm) leaks() []string {
	s.Helper()
	var known []string
	volumes, err := s.kube.Client.CoreV1().PersistentVolumes().List(s.ctx(), metav1.ListOptions{})
	s.must(err)
	for _, pv := range volumes.Items {
		if pv.Spec.RBD != nil {
			known = append(known, pv.Spec.RBD.RBDImage)
		}
	}
	for _, kept := range s.kept {
		known = append(known, kept.image)
	}
	images, err := s.ceph.Images(s.ctx(), s.name)
	s.must(err)
	trash, err := s.ceph.Trash(s.ctx(), s.name)
	s.must(err)
	return slices.DeleteFunc(append(images, trash...), func(image string) bool { return slices.Contains(known, image) })
}

// report prints the figures of a run.
func (s *storm) report() {
	s.Helper()
	line := fmt.Sprintf("%s: kills survived %d, claims made %d, of them deleted while they waited %d, images leaked %d, "+
		"longest from a kill to the next volume %.1f s, longest from the last kill until all was settled %.1f s, FAULTS_SEED=%d",
		s.Name(), s.kills, s.made, len(s.early), s.leaked, s.longest.Seconds(), s.settling.Seconds(), settings.seed)
	s.Log(line)
	if path := os.Getenv("FAULTS_FIGURES"); path != "" {
		file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		s.must(err)
		_, err = fmt.Fprintln(file, line)
		s.must(errors.Join(err, file.Close()))
	}
}
