package main

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestPictureShowsTheRatiosOfTheTable(t *testing.T) {
	const text = `text
| | ipc | net | to net | from, to | to the limit |
|---|---|---|---|---|---|
| first | 1 µs | 2 µs | **0.50** | 0.4, 0.6 | 2.00 |
| without a ratio | 1 µs | 1 µs |  |  |  |
| second | 3 µs | 2 µs | **1.50** | 1.4, 1.6 |  |

| another | ratio |
|---|---|
| third | 9.00 |

| elsewhere | ipc | net | to net, from to |
|---|---|---|---|
| fourth, apart | 1 µs | 4 µs | **0.25**, 0.2 to 0.3 |
`
	tables, err := readTables(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []table{
		{"", []bar{{"first", 0.5, 0.25}, {"second", 1.5, 0}}},
		{"elsewhere", []bar{{"fourth, apart", 0.25, 0}}},
	}
	if !reflect.DeepEqual(tables, want) {
		t.Fatalf("read %v, want %v", tables, want)
	}
	var drawn bytes.Buffer
	if err := drawTables(&drawn, tables); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"<svg", "first", "second", "0.50", "1.50", ">|<", "elsewhere", "fourth, apart", "0.25"} {
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
	tables, err := readTables(readme)
	if errors.Is(err, errNoTable) {
		t.Skip("README.md has no table")
	}
	if err != nil {
		t.Fatal(err)
	}
	var drawn bytes.Buffer
	if err := drawTables(&drawn, tables); err != nil {
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
