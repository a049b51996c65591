// Command picture draws the ratios of each table that its parent folder's program
// prints, as an SVG on standard output. It finds the tables in any Markdown:
//
//	go run ./picture <../README.md >ratios.svg
package main

import (
	"bufio"
	"errors"
	"fmt"
	"image/color"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

func main() {
	tables, err := readTables(os.Stdin)
	if err == nil {
		err = drawTables(os.Stdout, tables)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A table has a title, which is in its corner, and the rows that have a ratio.
type table struct {
	title string
	bars  []bar
}

// A bar is a row of a table. limit is the ratio that the program in C has, or 0 if the
// row does not tell.
type bar struct {
	name         string
	ratio, limit float64
}

var errNoTable = errors.New("no table with the columns ipc, net and to net")

// readTables returns the tables that have columns ipc, net, and to net. More may be in a
// column after the ratio, behind a comma.
func readTables(r io.Reader) (tables []table, err error) {
	ratio, limit := -1, -1 // of the table that has begun
	for lines := bufio.NewScanner(r); lines.Scan(); {
		cells := strings.Split(lines.Text(), "|")
		for i := range cells {
			first, _, _ := strings.Cut(cells[i], ", ")
			if i > 1 { // a name keeps its commas
				cells[i] = first
			}
			cells[i] = strings.Trim(cells[i], " *")
		}
		switch {
		case slices.Contains(cells, "ipc") && slices.Contains(cells, "net"):
			ratio, limit = slices.Index(cells, "to net"), slices.Index(cells, "to the limit")
			if ratio >= 0 {
				tables = append(tables, table{title: cells[1]})
			}
		case ratio < 0 || len(cells) <= ratio: // no table, or the end of one
			ratio = -1
		case cells[ratio] != "" && strings.Trim(cells[ratio], "-:") != "":
			b := bar{name: cells[1]}
			if b.ratio, err = strconv.ParseFloat(cells[ratio], 64); err != nil {
				return nil, err
			}
			if limit >= 0 && limit < len(cells) && cells[limit] != "" {
				toLimit, err := strconv.ParseFloat(cells[limit], 64)
				if err != nil {
					return nil, err
				}
				b.limit = b.ratio / toLimit
			}
			last := &tables[len(tables)-1]
			last.bars = append(last.bars, b)
		}
	}
	tables = slices.DeleteFunc(tables, func(t table) bool { return len(t.bars) == 0 })
	if len(tables) == 0 {
		return nil, errNoTable
	}
	return tables, nil
}

var (
	ink   = color.Gray{0x20}
	paper = color.White // so that the picture can be read on a dark page too
	less  = color.RGBA{0x2a, 0x7f, 0x9e, 0xff}
	more  = color.RGBA{0xc8, 0x6a, 0x32, 0xff}
)

const heading = "ipc against package net: time or cost, net = 1, shorter is better; | is a program in C"

// drawTables draws the tables, one below the other.
func drawTables(w io.Writer, tables []table) error {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	plotter.DefaultFont = plot.DefaultFont
	height := func(t table) vg.Length { return vg.Points(float64(60 + 18*len(t.bars))) }
	var total vg.Length
	var plots []*plot.Plot
	widest := 0.0
	for _, t := range tables {
		p, err := drawBars(t.bars)
		if err != nil {
			return err
		}
		plots, total, widest = append(plots, p), total+height(t), max(widest, p.X.Max)
	}
	canvas := vgsvg.New(vg.Points(640), total)
	whole := draw.New(canvas)
	whole.SetColor(paper)
	whole.Fill(whole.Rectangle.Path())
	const margin = 6
	top := total
	for i, t := range tables {
		p := plots[i]
		p.X.Max = widest // one scale for all
		if p.Title.Text = t.title; i == 0 {
			p.Title.Text = strings.TrimSpace(heading + "\n" + t.title)
		}
		bottom := top - height(t)
		p.Draw(draw.Crop(whole, margin, -margin, bottom+margin, top-margin-total))
		top = bottom
	}
	var picture strings.Builder
	if _, err := canvas.WriteTo(&picture); err != nil {
		return err
	}
	svg := strings.ReplaceAll(picture.String(), style, "") // once is enough
	// Where that font is not installed, one with the same widths or a similar one is.
	svg = strings.Replace(svg, "<svg ", `<svg font-family="Liberation Sans,Arial,Helvetica,sans-serif" `, 1)
	_, err := io.WriteString(w, svg)
	return err
}

func drawBars(bars []bar) (*plot.Plot, error) {
	p := plot.New()
	p.BackgroundColor = nil // see paper
	p.X.Min = 0
	p.X.Tick.Marker = plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: 0.5, Label: "0.5"}, {Value: 1, Label: "net"}}

	names := make([]string, len(bars))
	values := [2]plotter.Values{make(plotter.Values, len(bars)), make(plotter.Values, len(bars))}
	var labels plotter.XYLabels
	var limits plotter.XYLabels
	for i, b := range bars {
		at := len(bars) - 1 - i // the first row is at the top
		names[at] = b.name
		kind := 0
		if b.ratio > 1 {
			kind = 1
		}
		values[kind][at] = b.ratio
		labels.XYs = append(labels.XYs, plotter.XY{X: b.ratio, Y: float64(at)})
		labels.Labels = append(labels.Labels, strconv.FormatFloat(b.ratio, 'f', 2, 64))
		if b.limit > 0 {
			limits.XYs = append(limits.XYs, plotter.XY{X: b.limit, Y: float64(at)})
			limits.Labels = append(limits.Labels, "|")
		}
	}
	for i, fill := range []color.Color{less, more} {
		chart, err := plotter.NewBarChart(values[i], vg.Points(11))
		if err != nil {
			return nil, err
		}
		chart.Horizontal, chart.Color, chart.LineStyle.Width = true, fill, 0
		p.Add(chart)
	}
	figures, err := plotter.NewLabels(labels)
	if err != nil {
		return nil, err
	}
	figures.Offset = vg.Point{X: vg.Points(4), Y: -vg.Points(4)}
	one, err := plotter.NewLine(plotter.XYs{{X: 1, Y: -0.6}, {X: 1, Y: float64(len(bars)) - 0.4}})
	if err != nil {
		return nil, err
	}
	one.Color, one.Dashes = ink, []vg.Length{vg.Points(3), vg.Points(3)}
	p.Add(one, figures)
	if len(limits.XYs) > 0 {
		marks, err := plotter.NewLabels(limits)
		if err != nil {
			return nil, err
		}
		marks.Offset = vg.Point{Y: -vg.Points(4)}
		p.Add(marks)
	}
	p.NominalY(names...)
	p.X.Max *= 1.1              // room for the last figure
	p.Y.Padding = vg.Points(24) // and for names in a wider font

	return p, nil
}

// style is what the library says of every text.
const style = "font-family:Liberation Sans;font-variant:normal;font-weight:normal;font-style:normal;"
