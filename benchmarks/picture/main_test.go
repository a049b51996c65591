package main

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestPictureShowsTheRatiosOfTheTable(t *testing.T) {
	const table = `text
| | ipc | net | to net | from, to | to the limit |
|---|---|---|---|---|---|
| first | 1 µs | 2 µs | **0.50** | 0.4, 0.6 | 2.00 |
| without a ratio | 1 µs | 1 µs |  |  |  |
| second | 3 µs | 2 µs | **1.50** | 1.4, 1.6 |  |

| another | ratio |
|---|---|
| third | 9.00 |
`
	bars, err := readTable(strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	if len(bars) != 2 || bars[0] != (bar{"first", 0.5, 0.25}) || bars[1] != (bar{"second", 1.5, 0}) {
		t.Fatalf("read %v", bars)
	}
	var drawn bytes.Buffer
	if err := drawBars(&drawn, bars); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"<svg", "first", "second", "0.50", "1.50", ">|<"} {
		if !strings.Contains(drawn.String(), text) {
			t.Errorf("the picture has no %q", text)
		}
	}
}

// The README has no table while that is measured anew. When it has one, ratios.svg is of it.
func TestPictureShowsTheTableOfTheREADME(t *testing.T) {
	readme, err := os.Open("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	defer readme.Close()
	bars, err := readTable(readme)
	if errors.Is(err, errNoTable) {
		t.Skip("README.md has no table")
	}
	if err != nil {
		t.Fatal(err)
	}
	var drawn bytes.Buffer
	if err := drawBars(&drawn, bars); err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile("../ratios.svg")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(drawn.Bytes(), kept) {
		t.Error("ratios.svg is of another table; in benchmarks: go run ./picture <../README.md >ratios.svg")
	}
}
