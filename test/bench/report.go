// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"ceph.com/rbd-provisioner/test/cluster"
)

// report has all results, as written to report.json.
type report struct {
	Begin   time.Time `json:"begin"`
	Seconds float64   `json:"seconds"`
	// Setting describes the machine and the versions.
	Setting setting  `json:"setting"`
	Options *options `json:"options"`

	// Sessions, Sizes and Idle are the raw samples.
	Sessions []session  `json:"sessions"`
	Sizes    []sizePair `json:"sizes"`
	Idle     *idle      `json:"idle"`

	// Figures are medians over the rounds, by contender; Rows is the table.
	Figures []figure `json:"figures"`
	Rows    []row    `json:"rows"`
}

type setting struct {
	Cores      int    `json:"cores"`
	Go         string `json:"go"`
	Kubernetes string `json:"kubernetes"`
	Ceph       string `json:"ceph"`
	Revision   string `json:"revision"`
}

// session is one process of one contender.
type session struct {
	Contender string `json:"contender"`
	Round     int    `json:"round"`
	// Volumes is the number of other volumes in the cluster.
	Volumes int `json:"volumes"`
	// StartSeconds is from the start of the process until a waiting claim had its volume.
	StartSeconds float64  `json:"startSeconds"`
	Singles      []single `json:"singles"`
	Bursts       []burst  `json:"bursts"`
	PeakRSSBytes int64    `json:"peakRSSBytes"`
}

// single is one claim on an idle system: from its creation until its volume was
// saved, until it was bound, and from its deletion until the volume was gone.
type single struct {
	SavedMs float64 `json:"savedMs"`
	BoundMs float64 `json:"boundMs"`
	GoneMs  float64 `json:"goneMs"`
}

// burst are claims made at once, and deleted at once. CPU and requests are those of the
// process for both.
type burst struct {
	Claims       int     `json:"claims"`
	SavedSeconds float64 `json:"savedSeconds"`
	BoundSeconds float64 `json:"boundSeconds"`
	GoneSeconds  float64 `json:"goneSeconds"`
	CPUSeconds   float64 `json:"cpuSeconds"`
	// Requests leaves out renewals of the lease: time causes them, not claims.
	Requests float64 `json:"requests"`
	// Kinds are all requests by method and status.
	Kinds map[string]float64 `json:"kinds"`
}

func (b burst) rate(seconds float64) float64 { return float64(b.Claims) / seconds }

// sizePair is the deletion of a small and of a large volume.
type sizePair struct {
	SmallMs float64 `json:"smallMs"`
	LargeMs float64 `json:"largeMs"`
}

// idle is the provisioner with nothing to do in the populated cluster.
type idle struct {
	Seconds           float64 `json:"seconds"`
	CPUPerMinute      float64 `json:"cpuSecondsPerMinute"`
	RequestsPerMinute float64 `json:"requestsPerMinute"`
	RenewalsPerMinute float64 `json:"leaseRenewalsPerMinute"`
	PeakRSSBytes      int64   `json:"peakRSSBytes"`
	// Kinds are all requests, in Seconds, by method and status.
	Kinds map[string]float64 `json:"kinds"`
}

func newReport(ctx context.Context, o *options, rig *cluster.Cluster) (*report, error) {
	version, err := rig.Ceph.Run(ctx, "ceph", "--version")
	if err != nil {
		return nil, err
	}
	// "ceph version 16.2.15 (…) pacific (stable)"
	if words := strings.Fields(version); len(words) > 2 {
		version = words[2]
	}
	revision := "unknown" // not in a checkout
	cmd := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty")
	cmd.Dir = o.Root
	if out, err := cmd.Output(); err == nil {
		revision = strings.TrimSpace(string(out))
	}
	return &report{
		Begin: time.Now().UTC().Truncate(time.Second), Options: o,
		Setting: setting{
			Cores: runtime.NumCPU(), Go: runtime.Version(), Kubernetes: rig.Kube.Version,
			Ceph: version, Revision: revision,
		},
	}, nil
}

// figure is one measured quantity.
type figure struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	// Plot says that the plot shows it.
	Plot bool `json:"plot"`
	// Rounds has one value for each round, and Medians their median, by
	// contender.
	Rounds  map[string][]float64 `json:"rounds"`
	Medians map[string]float64   `json:"medians"`
}

// newFigure takes one value from each session for which pick has one.
func (r *report) newFigure(name, unit string, volumes int, pick func(session) (float64, bool)) figure {
	f := figure{Name: name, Unit: unit, Rounds: map[string][]float64{}, Medians: map[string]float64{}}
	for _, contender := range r.Options.Contenders {
		for _, s := range r.of(contender, volumes) {
			if value, ok := pick(s); ok {
				f.Rounds[contender] = append(f.Rounds[contender], value)
			}
		}
		if len(f.Rounds[contender]) > 0 {
			f.Medians[contender] = median(f.Rounds[contender])
		}
	}
	return f
}

// of returns the sessions of a contender, by round.
func (r *report) of(contender string, volumes int) []session {
	var list []session
	for _, s := range r.Sessions {
		if s.Contender == contender && s.Volumes == volumes {
			list = append(list, s)
		}
	}
	return list
}

// compare returns the ratio or difference of this contender to the one that m names, and how
// to show it. It is the median of what each round has, since two processes of one round ran
// under the same conditions.
func (f figure) compare(m must) (value float64, text string, err error) {
	ours, theirs := f.Rounds[this], f.Rounds[m.than]
	if len(ours) == 0 || len(ours) != len(theirs) {
		return 0, "", fmt.Errorf("%s: %d rounds of %s, %d of %s", f.Name, len(ours), this, len(theirs), m.than)
	}
	var values []float64
	for i := range ours {
		if m.plus {
			values = append(values, ours[i]-theirs[i])
		} else {
			values = append(values, ours[i]/theirs[i])
		}
	}
	value = median(values)
	if m.plus {
		return value, fmt.Sprintf("%s %+.2f", m.than, value), nil
	}
	return value, number(value) + " × " + m.than, nil
}

func median(values []float64) float64 { return percentile(values, 50) }

// percentile is the smallest value that p percent of the values do not exceed (the
// nearest rank). For the median of an even number of values, it is the mean of the middle
// two.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if p == 50 && n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[max(int(math.Ceil(p/100*float64(n))), 1)-1]
}

// singleFigure is a percentile of single claims. It is also taken per round, since the
// percentile over all rounds would hide a slow round.
func (r *report) singleFigure(name string, volumes int, p float64, pick func(single) float64) figure {
	f := r.newFigure(name, "ms", volumes, func(s session) (float64, bool) {
		return percentile(picked(s.Singles, pick), p), len(s.Singles) > 0
	})
	// With few claims, a high percentile is just the slowest one: all rounds together say
	// more.
	for contender := range f.Medians {
		var all []float64
		for _, s := range r.of(contender, volumes) {
			all = append(all, picked(s.Singles, pick)...)
		}
		f.Medians[contender] = percentile(all, p)
	}
	return f
}

func picked(singles []single, pick func(single) float64) []float64 {
	var values []float64
	for _, s := range singles {
		values = append(values, pick(s))
	}
	return values
}

// burstFigure is about bursts of n claims; the baseline's stands for any n but 1.
func (r *report) burstFigure(name, unit string, volumes, n int, pick func(burst) float64) figure {
	return r.newFigure(name, unit, volumes, func(s session) (float64, bool) {
		want := n
		if s.Contender == baseline && n != 1 {
			want = r.Options.BaselineBurst
		}
		for _, b := range s.Bursts {
			if b.Claims == want {
				return pick(b), true
			}
		}
		return 0, false
	})
}
