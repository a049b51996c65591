//go:build unix || windows

package ipc

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"os"
	"testing"
)

// A scriptedSource gives out messages in parts, fails in between, and ends, as it is
// told. It is a messageSource, and the model of what a messageReader should make of it.
type scriptedSource struct {
	t     *testing.T
	next  func(n int) int // a number below n
	left  [][]byte        // messages to come; of the first one what was not given yet
	drops bool            // it drops what does not fit, as a kernel does that keeps messages apart
	fails bool            // the next call fails, as a deadline makes it
}

var errScripted = os.ErrDeadlineExceeded

func (s *scriptedSource) interrupts() bool {
	fails := s.fails
	s.fails = s.next(4) == 0
	return fails
}

func (s *scriptedSource) nextPart(p []byte) (n int, ends bool, err error) {
	if len(p) == 0 {
		s.t.Fatal("a part is to be received into nothing")
	}
	if s.interrupts() {
		return 0, false, errScripted
	}
	if len(s.left) == 0 {
		return 0, false, io.EOF
	}
	m := s.left[0]
	if s.drops {
		s.left = s.left[1:]
		if n = copy(p, m); n < len(m) {
			err = ErrMsgTooLong
		}
		return n, true, err
	}
	n = min(len(p), len(m))
	if n > 1 {
		n = 1 + s.next(n)
	}
	copy(p, m[:n])
	s.left[0] = m[n:]
	if n == len(m) {
		s.left = s.left[1:]
		return n, true, nil
	}
	return n, false, nil
}

func (s *scriptedSource) nextRoom(have int, spare []byte) (int, error) {
	switch {
	case s.interrupts():
		return 0, errScripted
	case len(s.left) == 0 && s.drops:
		return 0, nil
	case len(s.left) == 0:
		return 0, io.EOF
	case s.drops:
		return len(s.left[0]), nil
	}
	return s.next(20), nil
}

// FuzzMessageReader receives scripted messages by any calls, in any order, and
// compares what comes with the messages.
func FuzzMessageReader(f *testing.F) {
	for seed := range int64(50) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed int64) {
		for range 20 {
			seed++
			receivesAsSent(t, rand.New(rand.NewSource(seed)).Intn)
		}
	})
}

func receivesAsSent(t *testing.T, next func(n int) int) {
	src := &scriptedSource{t: t, next: next, drops: next(2) == 0}
	var want [][]byte
	for i := range next(8) {
		m := bytes.Repeat([]byte{'a' + byte(i)}, next(30))
		want = append(want, m)
		src.left = append(src.left, m)
	}
	var r messageReader
	if len(want) > 0 && next(3) == 0 { // one that was received too early
		r.keep(want[0], true)
		src.left = src.left[1:]
	}
	for {
		p := make([]byte, next(35))
		var got []byte
		var err error
		if next(2) == 0 {
			var n int
			n, err = r.recv(src, p)
			got = p[:n]
			if n > len(p) {
				t.Fatalf("%d bytes in room of %d", n, len(p))
			}
		} else {
			dst := []byte("dst")[:3:3]
			got, err = r.recvAppend(src, dst)
			if !bytes.HasPrefix(got, dst) {
				t.Fatalf("%q does not begin with what was there", got)
			}
			if got = got[3:]; err != nil && len(got) > 0 {
				t.Fatalf("%q comes with %v", got, err)
			}
			p = nil
		}
		switch {
		case errors.Is(err, errScripted):
			continue // nothing is lost
		case len(want) == 0:
			if err != io.EOF || len(got) > 0 {
				t.Fatalf("after the last message %q comes, %v", got, err)
			}
			return
		case err == ErrMsgTooLong:
			if p == nil || len(want[0]) <= len(p) || !bytes.Equal(got, want[0][:len(p)]) {
				t.Fatalf("%q of %q in room of %d is too long", got, want[0], len(p))
			}
		case err != nil:
			t.Fatalf("%v in the place of %q", err, want[0])
		case !bytes.Equal(got, want[0]):
			t.Fatalf("%q comes in the place of %q", got, want[0])
		}
		want = want[1:]
	}
}

// TestEndWithinAMessageIsUnexpected has the source end in the middle of a message,
// wherever its reader stands.
func TestEndWithinAMessageIsUnexpected(t *testing.T) {
	for _, first := range []func(r *messageReader, src *halfSource) error{
		func(r *messageReader, src *halfSource) error { _, err := r.recv(src, make([]byte, 10)); return err },
		func(r *messageReader, src *halfSource) error { _, err := r.recvAppend(src, nil); return err },
		func(r *messageReader, src *halfSource) error { // the rest is to be skipped
			if _, err := r.recv(src, make([]byte, 1)); err != ErrMsgTooLong {
				return err
			}
			_, err := r.recv(src, make([]byte, 10))
			return err
		},
	} {
		var r messageReader
		src := &halfSource{left: []byte("half")}
		if err := first(&r, src); err != io.ErrUnexpectedEOF {
			t.Errorf("the end within a message is %v", err)
		}
		if _, err := r.recv(src, make([]byte, 10)); err != io.ErrUnexpectedEOF {
			t.Errorf("then %v", err)
		}
	}
}

// A halfSource has a part of a message, a byte at a time, and then ends.
type halfSource struct{ left []byte }

func (s *halfSource) nextPart(p []byte) (int, bool, error) {
	if len(s.left) == 0 {
		return 0, false, io.EOF
	}
	p[0], s.left = s.left[0], s.left[1:]
	return 1, false, nil
}

func (s *halfSource) nextRoom(int, []byte) (int, error) { return 4, nil }
