// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestBench runs the whole benchmark in its shortest form. It checks that nothing is
// missing, and no times.
func TestBench(t *testing.T) {
	o := &options{
		Root: filepath.Join("..", ".."), Out: t.TempDir(),
		Contenders: allContenders, Rounds: 1, Bursts: []int{1, 3}, BaselineBurst: 2, Singles: 2, BaselineSingles: 1,
		Volumes: 20, Sizes: 1, Large: "2Gi", Idle: time.Second, ControllerQPS: 200,
		Settling: 10 * time.Second,
	}
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), o, &out); err != nil {
		// Last, because people look there.
		t.Fatalf("%s\n%v", out.String(), err)
	}
	read := func(name string) []byte {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(o.Out, name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}

	var r report
	if err := json.Unmarshal(read(reportFile), &r); err != nil {
		t.Fatalf("%s: %v", reportFile, err)
	}
	// Two bursts of each contender but the baseline, and one in the populated
	// cluster.
	if got, want := len(r.Sessions), 5; got != want {
		t.Errorf("%d sessions, want %d", got, want)
	}
	checkRows(t, r.Rows)
	for _, name := range []string{textFile, markdownFile} {
		text := string(read(name))
		for _, row := range r.Rows {
			if !strings.Contains(text, row.Figure) {
				t.Errorf("%s lacks the row %q", name, row.Figure)
			}
		}
		if !strings.Contains(text, "--kube-api-qps=200") {
			t.Errorf("%s does not say what was raised:\n%s", name, text)
		}
	}
	if !strings.Contains(out.String(), string(read(textFile))) {
		t.Errorf("the table is not printed:\n%s", out.String())
	}
	checkSVG(t, read(plotFile))
}

// checkRows checks that the table has a figure in each row, and every row with a
// requirement.
func checkRows(t *testing.T, rows []row) {
	t.Helper()
	required := []string{
		"burst of 3, Bound: at least 0.80 × ceiling",
		"burst of 3, Bound: at least 20.0 × baseline",
		"burst of 3, PV saved: at least 0.60 × ceiling",
		"burst of 3, PV saved: at least 20.0 × baseline",
		"burst of 3, deleted: at least 0.60 × ceiling",
		"one claim, PV saved, p50: at most 2.20 × ceiling",
		"one claim, PV saved, p50: at most 0.33 × baseline",
		"one volume deleted, 1Gi and 2Gi, p50: at most 1.20 × 1Gi",
		"CPU, claim made and deleted: at most 0.15 × baseline",
		"API requests, claim made and deleted: at most ceiling + 0.50",
		"peak memory, 20 volumes: at most 200 MiB",
		"peak memory, growth per 1,000 volumes: stated",
		"start to first claim served, 20 volumes: at most 5.00 s",
		"idle, API requests per minute, 20 volumes: near none: at most 10.0 requests",
		"idle, CPU per minute, 20 volumes: near none: at most 0.60 s",
	}
	var got []string
	for _, row := range rows {
		if row.This == notMeasured || row.Met == "not measured" {
			t.Errorf("row %q has no figure: %v", row.Figure, row)
		}
		if row.Must != notMeasured {
			got = append(got, row.Figure+": "+row.Must)
			if row.Met == notMeasured {
				t.Errorf("row %q does not say whether it is met", row.Figure)
			}
		}
	}
	for _, want := range required {
		if !slices.Contains(got, want) {
			t.Errorf("no row %q", want)
		}
	}
	if t.Failed() {
		t.Logf("rows:\n%s", plainTable(rows))
	}
}

// checkSVG checks that a picture is well-formed and shows each contender.
func checkSVG(t *testing.T, picture []byte) {
	t.Helper()
	decoder := xml.NewDecoder(bytes.NewReader(picture))
	root, text := "", ""
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", plotFile, err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if root == "" {
				root = token.Name.Local
			}
		case xml.CharData:
			text += string(token)
		}
	}
	if root != "svg" {
		t.Errorf("%s is a %q", plotFile, root)
	}
	for _, name := range allContenders {
		if !strings.Contains(text, name) {
			t.Errorf("%s does not show %q", plotFile, name)
		}
	}
}
