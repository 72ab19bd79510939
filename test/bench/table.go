// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// row is one line of the table. Every cell has text.
type row struct {
	Figure   string `json:"figure"`
	Ceiling  string `json:"ceiling"`
	Baseline string `json:"baseline"`
	This     string `json:"this"`
	Measured string `json:"measured"`
	Must     string `json:"must"`
	Met      string `json:"met"`
}

// notMeasured is for cells where there is nothing to measure, or whose contender was left
// out on request. A failed measurement never gets here.
const notMeasured = "–"

func (r row) cells() []string {
	return []string{r.Figure, r.Ceiling, r.Baseline, r.This, r.Measured, r.Must, r.Met}
}

var heading = []string{"figure", "ceiling", "baseline", "this", "measured", "must", "met"}

// table collects rows and figures; the first error is kept.
type table struct {
	*report
	err error
}

// must is a requirement: a ratio or a difference to another contender, or an own limit.
type must struct {
	// than is the other contender; empty for a limit on the contender's own value.
	than  string
	limit float64
	// least says that the limit is the smallest allowed value, not the largest.
	least bool
	// plus says that the limit is a difference to the other contender, not a ratio.
	plus bool
	unit string
}

func (m must) String() string {
	text := "at most "
	if m.least {
		text = "at least "
	}
	switch {
	case m.plus:
		return text + m.than + " + " + number(m.limit)
	case m.than != "":
		return text + number(m.limit) + " × " + m.than
	default:
		return text + number(m.limit) + " " + m.unit
	}
}

func (m must) met(value float64) string {
	if m.least && value >= m.limit || !m.least && value <= m.limit {
		return "yes"
	}
	return "no"
}

// evaluate makes figures and table from the samples.
func (r *report) evaluate() error {
	r.Figures, r.Rows = nil, nil
	t := &table{report: r}
	for _, volumes := range []int{0, r.Options.Volumes} {
		t.bursts(volumes)
		t.singles(volumes)
		t.costs(volumes)
	}
	t.only()
	for _, f := range r.Figures {
		for contender, value := range f.Medians {
			if math.IsNaN(value) || math.IsInf(value, 0) || value <= 0 {
				t.fail(fmt.Errorf("%s of %s is %v", f.Name, contender, value))
			}
		}
	}
	for _, row := range r.Rows {
		if slices.Contains(row.cells(), "") {
			t.fail(fmt.Errorf("row %q has an empty cell", row.Figure))
		}
	}
	return t.err
}

func (t *table) fail(err error) { t.err = errors.Join(t.err, err) }

// among says how many volumes are in the cluster, for a figure's name.
func among(name string, volumes int) string {
	if volumes == 0 {
		return name
	}
	return fmt.Sprintf("%s, %d volumes", name, volumes)
}

func (t *table) bursts(volumes int) {
	sizes := t.Options.Bursts
	if volumes > 0 {
		sizes = []int{t.Options.top()}
	}
	for _, n := range sizes {
		name := func(what string) string { return among(fmt.Sprintf("burst of %d, %s", n, what), volumes) }
		var saved, bound, gone []must
		if n == t.Options.top() && volumes == 0 {
			saved = []must{{than: ceiling, limit: 0.6, least: true}, {than: baseline, limit: 20, least: true}}
			bound = []must{{than: ceiling, limit: 0.8, least: true}, {than: baseline, limit: 20, least: true}}
			gone = []must{{than: ceiling, limit: 0.6, least: true}}
		}
		plot := n == t.Options.top()
		t.add(t.burstFigure(name("PV saved"), "claims/s", volumes, n, func(b burst) float64 { return b.rate(b.SavedSeconds) }), plot, saved...)
		t.add(t.burstFigure(name("Bound"), "claims/s", volumes, n, func(b burst) float64 { return b.rate(b.BoundSeconds) }), plot, bound...)
		t.add(t.burstFigure(name("deleted"), "volumes/s", volumes, n, func(b burst) float64 { return b.rate(b.GoneSeconds) }), plot, gone...)
	}
}

func (t *table) singles(volumes int) {
	for _, what := range []struct {
		name string
		pick func(single) float64
	}{
		{"one claim, PV saved", func(s single) float64 { return s.SavedMs }},
		{"one claim, Bound", func(s single) float64 { return s.BoundMs }},
		{"one volume deleted", func(s single) float64 { return s.GoneMs }},
	} {
		for _, p := range []float64{50, 95, 99} {
			var musts []must
			if p == 50 && what.name == "one claim, PV saved" && volumes == 0 {
				musts = []must{{than: ceiling, limit: 2.2}, {than: baseline, limit: 1. / 3}}
			}
			t.add(t.singleFigure(among(fmt.Sprintf("%s, p%.0f", what.name, p), volumes), volumes, p, what.pick), p == 50, musts...)
		}
	}
}

func (t *table) costs(volumes int) {
	n := t.Options.top()
	var cpu, requests, memory []must
	if volumes == 0 {
		cpu = []must{{than: baseline, limit: 0.15}}
		requests = []must{{than: ceiling, limit: 0.5, plus: true}}
	} else {
		memory = []must{{limit: 200, unit: "MiB"}}
	}
	t.add(t.burstFigure(among("CPU, claim made and deleted", volumes), "ms", volumes, n, func(b burst) float64 {
		return 1000 * b.CPUSeconds / float64(b.Claims)
	}), true, cpu...)
	t.add(t.burstFigure(among("API requests, claim made and deleted", volumes), "", volumes, n, func(b burst) float64 {
		return b.Requests / float64(b.Claims)
	}), true, requests...)
	t.add(t.newFigure(among("peak memory", volumes), "MiB", volumes, func(s session) (float64, bool) {
		return float64(s.PeakRSSBytes) / (1 << 20), true
	}), true, memory...)
}

// only are the rows about this provisioner alone.
func (t *table) only() {
	volumes := t.Options.Volumes
	peak := func(volumes int) float64 {
		return t.newFigure("", "", volumes, func(s session) (float64, bool) {
			return float64(s.PeakRSSBytes) / (1 << 20), true
		}).Medians[this]
	}
	growth := (peak(volumes) - peak(0)) / float64(volumes) * 1000
	t.row(row{Figure: "peak memory, growth per 1,000 volumes", This: measured(growth, "MiB"), Must: "stated", Met: "yes"})
	start := t.newFigure(among("start to first claim served", volumes), "s", volumes, func(s session) (float64, bool) { return s.StartSeconds, true })
	t.add(start, false, must{limit: 5, unit: "s"})

	var smalls, larges, ratios []float64
	for _, pair := range t.Sizes {
		smalls, larges = append(smalls, pair.SmallMs), append(larges, pair.LargeMs)
		ratios = append(ratios, pair.LargeMs/pair.SmallMs)
	}
	if len(t.Sizes) != t.Options.Sizes || t.Idle == nil {
		t.fail(errors.New("volumes of two sizes, or idling, were not measured"))
		return
	}
	size := must{than: small, limit: 1.2}
	t.row(row{
		Figure: fmt.Sprintf("one volume deleted, %s and %s, p50", small, t.Options.Large),
		This:   measured(median(smalls), "ms") + ", " + measured(median(larges), "ms"), Measured: number(median(ratios)) + " × " + small,
		Must: size.String(), Met: size.met(median(ratios)),
	})
	for _, line := range []struct {
		what, text string
		must       must
	}{
		{"API requests per minute", number(t.Idle.RequestsPerMinute), must{limit: 10, unit: "requests"}},
		{"CPU per minute", measured(t.Idle.CPUPerMinute, "s"), must{limit: 0.6, unit: "s"}},
	} {
		value := t.Idle.RequestsPerMinute
		if line.must.unit == "s" {
			value = t.Idle.CPUPerMinute
		}
		t.row(row{Figure: among("idle, "+line.what, volumes), This: line.text, Must: "near none: " + line.must.String(), Met: line.must.met(value)})
	}
	t.row(row{Figure: among("idle, renewals of the lease per minute", volumes), This: number(t.Idle.RenewalsPerMinute), Must: "stated", Met: "yes"})
}

// add makes a figure part of the report, with a row for each requirement, or one row
// without any.
func (t *table) add(f figure, plot bool, musts ...must) {
	f.Plot = plot
	t.Figures = append(t.Figures, f)
	line := row{Figure: f.Name, Ceiling: f.cell(ceiling), Baseline: f.cell(baseline), This: f.cell(this)}
	if len(f.Rounds[this]) != t.Options.Rounds {
		t.fail(fmt.Errorf("%s: %d rounds, want %d", f.Name, len(f.Rounds[this]), t.Options.Rounds))
		return
	}
	if len(musts) == 0 {
		t.row(line)
	}
	for _, m := range musts {
		line.Must = m.String()
		value, text := f.Medians[this], measured(f.Medians[this], f.Unit)
		if m.than != "" {
			if !contains(t.Options.Contenders, m.than) {
				line.Measured, line.Met = m.than+" left out", "not measured"
				t.row(line)
				continue
			}
			var err error
			if value, text, err = f.compare(m); err != nil {
				t.fail(err)
				return
			}
		}
		line.Measured, line.Met = text, m.met(value)
		t.row(line)
	}
}

// row adds a line; empty cells have nothing to say.
func (t *table) row(r row) {
	for _, cell := range []*string{&r.Ceiling, &r.Baseline, &r.This, &r.Measured, &r.Must, &r.Met} {
		if *cell == "" {
			*cell = notMeasured
		}
	}
	t.Rows = append(t.Rows, r)
}

func (f figure) cell(contender string) string {
	value, ok := f.Medians[contender]
	if !ok {
		return ""
	}
	return measured(value, f.Unit)
}

func measured(value float64, unit string) string {
	return strings.TrimSuffix(number(value)+" "+unit, " ")
}

// number shows three digits.
func number(value float64) string {
	switch size := math.Abs(value); {
	case size >= 100:
		return fmt.Sprintf("%.0f", value)
	case size >= 10:
		return fmt.Sprintf("%.1f", value)
	default:
		return fmt.Sprintf("%.2f", value)
	}
}
