package main

import (
	"bytes"
	"os"
	"testing"
)

func TestPictureShowsTheTableOfTheREADME(t *testing.T) {
	readme, err := os.Open("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	defer readme.Close()
	bars, err := readTable(readme)
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
