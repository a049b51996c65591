//go:build windows

package ipc

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzRecord reads records of any content. It opens nothing and closes nothing.
func FuzzRecord(f *testing.F) {
	r := record{pid: 1, id: [16]byte{1, 2, 3}, files: []uint32{4, 8}}
	f.Add(r.bytes())
	f.Add(append(r.bytes(), "data"...))
	f.Add(r.bytes()[:recordHead])
	f.Add([]byte(recordMark))
	f.Add([]byte{})
	f.Add(bytes.Replace(r.bytes(), []byte{recordVersion, 0, 0, 0}, []byte{1, 0, 0, 0}, 1))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, size, err := parseRecord(p)
		switch {
		case err != nil:
			if r != nil || size != 0 || !errors.Is(err, errors.ErrUnsupported) {
				t.Fatalf("%v, %d, %v", r, size, err)
			}
		case r == nil:
			if size != 0 {
				t.Fatalf("nothing is %d bytes long", size)
			}
		default:
			if n := len(r.files); n < 1 || n > maxFiles || size > recordMax {
				t.Fatalf("%d files in %d bytes", n, size)
			}
			if !bytes.Equal(r.bytes(), p[:size]) {
				t.Fatalf("%q is written %q", p[:size], r.bytes())
			}
		}
	})
}

func TestTokensAreHandles(t *testing.T) {
	for text, want := range map[string]token{
		"4":               {handle: 4},
		"4294967292":      {handle: 4294967292},
		"4:remote":        {handle: 4, remote: true},
		"4:pair":          {handle: 4, pair: true},
		"4:remote:pair":   {handle: 4, remote: true, pair: true},
		"4:pair:remote":   {},
		"4:pair:pair":     {},
		"8:1":             {handle: 8, backlog: 1},
		"8:254:remote":    {handle: 8, backlog: 254, remote: true},
		"":                {},
		"0":               {},
		"0:4":             {},
		"-4":              {},
		"+4":              {},
		"04":              {},
		"0x4":             {},
		" 4":              {},
		"4 ":              {},
		"4294967296":      {},
		"4:":              {},
		"4:0":             {},
		"4:01":            {},
		"4:255":           {},
		"4:256":           {},
		"4:-1":            {},
		"4:1:1":           {},
		"4:remote:1":      {},
		"4:remote:":       {},
		"4::remote":       {},
		"4:Remote":        {},
		":4":              {},
		":remote":         {},
		"remote":          {},
		"4:1:remote:":     {},
		"4:remote:remote": {},
	} {
		if got := parseToken(text); got != want || validToken(text) != (want != token{}) {
			t.Errorf("%q is %+v", text, got)
		}
	}
}
