// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// The files of a run.
const (
	reportFile   = "report.json"
	textFile     = "table.txt"
	markdownFile = "table.md"
	plotFile     = "performance.svg"
)

// The last table is between these lines of docs/performance.md.
const (
	docsBegin = "<!-- Written by make bench, from here"
	docsEnd   = "<!-- to here. -->"
)

// publish writes the report, and what is made from it. The report comes first, so that no
// result is lost.
func publish(ctx context.Context, o *options, r *report, out io.Writer) error {
	evaluated := r.evaluate()
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := func(name string) string { return filepath.Join(o.Out, name) }
	if err := os.WriteFile(path(reportFile), append(text, '\n'), 0o644); err != nil {
		return err
	}
	if evaluated != nil {
		return evaluated
	}
	plain, markdown := r.intro()+"\n"+plainTable(r.Rows), r.intro()+"\n"+markdownTable(r.Rows)
	if err := errors.Join(
		os.WriteFile(path(textFile), []byte(plain), 0o644),
		os.WriteFile(path(markdownFile), []byte(markdown), 0o644),
		drawPlot(ctx, o.Root, path(reportFile), path(plotFile)),
	); err != nil {
		return err
	}
	if o.Docs {
		if err := updateDocs(o.Root, "![Medians of the contenders]("+plotFile+")\n\n"+markdown, path(plotFile)); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(out, "\n%s\nWritten to %s: %s, %s, %s, %s\n", plain, o.Out, reportFile, textFile, markdownFile, plotFile)
	return err
}

// intro says what was measured on what, and which settings differ from a user's.
func (r *report) intro() string {
	return fmt.Sprintf(`%s, revision %s: %d cores, Kubernetes %s, Ceph %s, %s; %d rounds in %.0f minutes.
kube-controller-manager has --kube-api-qps=%d and --kube-api-burst=%d (its defaults, 20 and 30,
bind some four claims a second). The baseline's bursts are of %d claims, its single claims %d a round.
`, r.Begin.Format("2 January 2006"), r.Setting.Revision, r.Setting.Cores, r.Setting.Kubernetes, r.Setting.Ceph, r.Setting.Go,
		r.Options.Rounds, r.Seconds/60, r.Options.ControllerQPS, 2*r.Options.ControllerQPS,
		r.Options.BaselineBurst, r.Options.BaselineSingles)
}

// plainTable aligns columns by blanks.
func plainTable(rows []row) string {
	widths := make([]int, len(heading))
	lines := [][]string{heading}
	for _, r := range rows {
		lines = append(lines, r.cells())
	}
	for _, cells := range lines {
		for i, cell := range cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, cells := range lines {
		var line strings.Builder
		for i, cell := range cells {
			line.WriteString(cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

func markdownTable(rows []row) string {
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(heading)
	line(strings.Split(strings.TrimSuffix(strings.Repeat("---,", len(heading)), ","), ","))
	for _, r := range rows {
		line(r.cells())
	}
	return b.String()
}

// drawPlot runs the program that draws. It is a module of its own, so that its
// dependencies are not the provisioner's.
func drawPlot(ctx context.Context, root, from, to string) error {
	from, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	if to, err = filepath.Abs(to); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "run", ".", from, to)
	cmd.Dir = filepath.Join(root, "test", "bench", "plot")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("draw the plot: %w: %s", err, out)
	}
	return nil
}

// updateDocs replaces the table and the plot in docs/.
func updateDocs(root, markdown, plot string) error {
	path := filepath.Join(root, "docs", "performance.md")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, begun := strings.Cut(string(text), docsBegin)
	first, rest, _ := strings.Cut(rest, "\n")
	_, after, ended := strings.Cut(rest, docsEnd)
	if !begun || !ended {
		return fmt.Errorf("%s has no lines %q and %q", path, docsBegin, docsEnd)
	}
	picture, err := os.ReadFile(plot)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(path, []byte(before+docsBegin+first+"\n\n"+markdown+"\n"+docsEnd+after), 0o644),
		os.WriteFile(filepath.Join(root, "docs", plotFile), picture, 0o644),
	)
}
