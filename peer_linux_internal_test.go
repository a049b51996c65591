//go:build linux

package ipc

import (
	"errors"
	"testing"
)

func TestFullMapGivesEveryIDAMapping(t *testing.T) {
	for _, c := range []struct {
		text string
		full bool
	}{
		{"         0          0 4294967295\n", true},
		{"0 0 4294967295", true},
		{"0 1000 1\n1 0 1000\n1001 1001 4294966294\n", true}, // two ids change places
		{"", false}, // not written yet
		{"0 0 4294967294\n", false},
		{"0 100000 65536\n", false},
		{"0 1000 1\n", false},
		{"0 0\n", false},
		{"0 0 many\n", false},
		{"0 0 -1\n", false},
		{"0 0 4294967295 1\n", false},
		{"0 0 4294967296\n", false},
	} {
		if got := isFullMap(c.text); got != c.full {
			t.Errorf("%q is full: %v", c.text, got)
		}
	}
}

func TestOverflowIDIsThatOfTheKernel(t *testing.T) {
	for _, c := range []struct {
		text string
		err  error
		id   uint32
	}{
		{"65534\n", nil, 65534}, {"60000\n", nil, 60000}, {"", nil, 65534}, {"none\n", nil, 65534},
		{"60000\n", errors.New("not read"), 65534},
	} {
		if got := overflowID(c.text, c.err); got != c.id {
			t.Errorf("%q, %v is %d, want %d", c.text, c.err, got, c.id)
		}
	}
}
