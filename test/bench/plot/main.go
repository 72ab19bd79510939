// SPDX-License-Identifier: Apache-2.0

// Command plot draws what the benchmark measured: plot REPORT.json OUT.svg.
//
// It is a module of its own, because no other program here needs its dependencies.
package main

import (
	"encoding/json"
	"fmt"
	"image/color"
	"os"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// columns is how many panels are side by side.
const columns = 3

// colours are those of the contenders; colour-blind people can tell them apart, too
// (Okabe and Ito).
var colours = map[string]color.Color{
	"ceiling":  color.RGBA{R: 153, G: 153, B: 153, A: 255},
	"baseline": color.RGBA{R: 230, G: 159, A: 255},
	"this":     color.RGBA{G: 114, B: 178, A: 255},
}

// report has the parts of the benchmark's report that are drawn.
type report struct {
	Options struct {
		Contenders []string `json:"contenders"`
	} `json:"options"`
	Figures []figure `json:"figures"`
}

type figure struct {
	Name    string             `json:"name"`
	Unit    string             `json:"unit"`
	Plot    bool               `json:"plot"`
	Medians map[string]float64 `json:"medians"`
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: plot REPORT.json OUT.svg")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	figures := slices.DeleteFunc(r.Figures, func(f figure) bool { return !f.Plot })
	if len(figures) == 0 {
		return fmt.Errorf("%s has nothing to draw", from)
	}
	rows := (len(figures) + columns - 1) / columns
	panels := make([][]*plot.Plot, rows)
	for i := range panels {
		panels[i] = make([]*plot.Plot, columns)
	}
	for i, f := range figures {
		if panels[i/columns][i%columns], err = panel(f, r.Options.Contenders); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	canvas := vgsvg.New(columns*8*vg.Centimeter, vg.Length(rows)*5*vg.Centimeter)
	// Some viewers show a picture without a background on black.
	canvas.SetColor(color.White)
	canvas.Fill(vg.Rectangle{Max: vg.Point{X: columns * 8 * vg.Centimeter, Y: vg.Length(rows) * 5 * vg.Centimeter}}.Path())
	tiles := draw.Tiles{Rows: rows, Cols: columns, PadX: 4 * vg.Millimeter, PadY: 4 * vg.Millimeter, PadTop: vg.Millimeter * 2, PadBottom: vg.Millimeter * 2, PadLeft: vg.Millimeter * 2, PadRight: vg.Millimeter * 2}
	for i, line := range plot.Align(panels, tiles, draw.New(canvas)) {
		for j, tile := range line {
			if panels[i][j] != nil {
				panels[i][j].Draw(tile)
			}
		}
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(out)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	return err
}

// panel shows one figure, a bar for each contender that has it, with its value.
func panel(f figure, contenders []string) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = f.Name
	p.Title.TextStyle.Font.Size = 9
	p.Y.Label.Text = f.Unit
	p.Y.Min = 0
	var names []string
	var labels plotter.XYLabels
	for _, name := range contenders {
		value, ok := f.Medians[name]
		if !ok {
			continue
		}
		bar, err := plotter.NewBarChart(plotter.Values{value}, 14*vg.Millimeter)
		if err != nil {
			return nil, err
		}
		bar.Color = colours[name]
		bar.LineStyle.Width = 0
		bar.XMin = float64(len(names))
		p.Add(bar)
		labels.XYs = append(labels.XYs, plotter.XY{X: bar.XMin, Y: value})
		labels.Labels = append(labels.Labels, fmt.Sprintf("%.3g", value))
		names = append(names, name)
		// Room for the value above the bar.
		p.Y.Max = max(p.Y.Max, value*1.15)
	}
	values, err := plotter.NewLabels(labels)
	if err != nil {
		return nil, err
	}
	for i := range values.TextStyle {
		values.TextStyle[i].XAlign = draw.XCenter
		values.TextStyle[i].Font.Size = 8
	}
	p.Add(values)
	p.NominalX(names...)
	// Half a bar on each side.
	p.X.Min, p.X.Max = -0.5, float64(len(names))-0.5
	return p, nil
}
