// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for _, test := range []struct {
		name   string
		values []float64
		p      float64
		want   float64
	}{
		{"the median", values, 50, 3},
		{"the median of an even number", values[:4], 50, 3},
		{"one value", []float64{7}, 99, 7},
		{"p95 of a few is the largest", values, 95, 5},
		{"p20 is the first of five", values, 20, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := percentile(test.values, test.p); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
	if got := percentile(nil, 50); !math.IsNaN(got) {
		t.Errorf("of nothing: got %v, want NaN", got)
	}
}

func TestParseCPU(t *testing.T) {
	got, err := parseCPU([]byte("7 (a) b) S 1 7 7 0 -1 4194560 100 200 0 0 11 22 33 44 20 0 8 0 100"))
	if want := 1100 * time.Millisecond; err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := parseCPU([]byte("7 (a) S 1")); err == nil {
		t.Error("a line that is cut off is taken")
	}
}

// TestCompare: contenders are compared round by round, so a round in which all were slow
// counts as any other.
func TestCompare(t *testing.T) {
	f := figure{Rounds: map[string][]float64{this: {8, 2, 6}, ceiling: {10, 4, 8}}}
	for _, test := range []struct {
		must  must
		value float64
		text  string
	}{
		{must{than: ceiling}, 0.75, "0.75 × ceiling"},
		{must{than: ceiling, plus: true}, -2, "ceiling -2.00"},
	} {
		if value, text, err := f.compare(test.must); err != nil || value != test.value || text != test.text {
			t.Errorf("got %v, %q, %v, want %v, %q", value, text, err, test.value, test.text)
		}
	}
	if _, _, err := f.compare(must{than: baseline}); err == nil {
		t.Error("a contender that is missing is no error")
	}
}

// TestEvaluateRefusesHoles removes one sample after the other from a report.
func TestEvaluateRefusesHoles(t *testing.T) {
	whole := func() *report {
		r := &report{
			Options: &options{Contenders: allContenders, Rounds: 1, Bursts: []int{3}, BaselineBurst: 2, Volumes: 10, Sizes: 1, Large: "1Ti"},
			Sizes:   []sizePair{{SmallMs: 10, LargeMs: 11}},
			Idle:    &idle{CPUPerMinute: 0.1, RenewalsPerMinute: 75},
		}
		for _, s := range []session{{Contender: ceiling}, {Contender: baseline}, {Contender: this}, {Contender: ceiling, Volumes: 10}, {Contender: this, Volumes: 10}} {
			n := 3
			if s.Contender == baseline {
				n = 2
			}
			s.StartSeconds, s.PeakRSSBytes = 1, 1<<20
			s.Singles = []single{{SavedMs: 1, BoundMs: 2, GoneMs: 3}}
			s.Bursts = []burst{{Claims: n, SavedSeconds: 1, BoundSeconds: 2, GoneSeconds: 3, CPUSeconds: 1, Requests: 9}}
			r.Sessions = append(r.Sessions, s)
		}
		return r
	}
	if err := whole().evaluate(); err != nil {
		t.Fatalf("nothing is missing: %v", err)
	}
	for _, test := range []struct {
		name   string
		remove func(*report)
	}{
		{"a session of this", func(r *report) { r.Sessions = append(r.Sessions[:2], r.Sessions[3:]...) }},
		{"a session of the baseline", func(r *report) { r.Sessions = append(r.Sessions[:1], r.Sessions[2:]...) }},
		{"the single claims of the ceiling", func(r *report) { r.Sessions[0].Singles = nil }},
		{"the burst in the populated cluster", func(r *report) { r.Sessions[4].Bursts = nil }},
		{"a rate", func(r *report) { r.Sessions[2].Bursts[0].SavedSeconds = 0 }},
		{"the memory", func(r *report) { r.Sessions[4].PeakRSSBytes = 0 }},
		{"the sizes", func(r *report) { r.Sizes = nil }},
		{"the idle minute", func(r *report) { r.Idle = nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := whole()
			test.remove(r)
			if err := r.evaluate(); err == nil {
				t.Errorf("no error without it:\n%s", plainTable(r.Rows))
			}
		})
	}
}

func TestUpdateDocs(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "docs", "performance.md")
	plot := filepath.Join(root, "plot.svg")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	write(plot, "<svg/>")
	write(path, "before\n"+docsBegin+" -->\nold\n"+docsEnd+"\nafter\n")
	for range 2 {
		if err := updateDocs(root, "new\n", plot); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if want := "before\n" + docsBegin + " -->\n\nnew\n\n" + docsEnd + "\nafter\n"; err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	write(path, "no place for it")
	if err := updateDocs(root, "new", plot); err == nil || !strings.Contains(err.Error(), "has no lines") {
		t.Errorf("got %v, want an error about the missing lines", err)
	}
}

func TestParseOptions(t *testing.T) {
	o, err := parseOptions([]string{"-bursts=1,1000", "-contenders=this,ceiling"})
	if err != nil || o.top() != 1000 || len(o.Contenders) != 2 {
		t.Errorf("got %+v, %v", o, err)
	}
	for _, bad := range []string{"-bursts=", "-bursts=3,2", "-bursts=0", "-contenders=ceiling", "-contenders=this,other", "-rounds=0", "-idle=0"} {
		if _, err := parseOptions([]string{bad}); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
