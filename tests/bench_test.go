//go:build unix || windows

package tests

import (
	"errors"
	"io"
	"maps"
	"net"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

// The plain benchmarks, for go test -bench and benchstat. Times are never
// asserted, but a benchmark fails if what it measures allocates, so that a short
// run sees to that too:
//
//	go test -run '^$' -bench 'Pair|Operations' -benchtime 2000x ./tests
//
// The comparison with package net is in the folder tests.

// steadily measures op, which may allocate only until it is warm.
func steadily(b *testing.B, op func() error) {
	if kit.UnderRace() {
		b.Skip("the race detector allocates")
	}
	for range 200 {
		if err := op(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := op(); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if n := allocations(b, op); n > 1 {
		b.Errorf("%d allocations in 100 operations, in each of several rounds", n)
	}
}

// allocations returns how many objects 100 operations allocate. What the runtime
// makes for itself counts too, a thread above all, and comes whenever it likes; what
// an operation allocates comes in every round. So the best of several rounds tells.
func allocations(b *testing.B, op func() error) uint64 {
	least := ^uint64(0)
	for range 10 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 100 {
			if err := op(); err != nil {
				b.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
	}
	return least
}

// BenchmarkPair is a round trip within one process.
func BenchmarkPair(b *testing.B) {
	for _, size := range []int{64, 4 << 10, 64 << 10} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			l := open(b, links["Conn"])
			go l.there.echo(l.back, size)
			b.SetBytes(int64(2 * size))
			p := make([]byte, size)
			steadily(b, func() error { return l.there.exchange(l.back, p) })
		})
	}
}

// BenchmarkOperations measures every way to send and to receive: where neither
// has to wait, where the receiver parks, and where the sender does.
func BenchmarkOperations(b *testing.B) {
	for _, name := range slices.Sorted(maps.Keys(links)) {
		dial := links[name]
		b.Run(name+"/ready", func(b *testing.B) {
			l := open(b, dial)
			p := make([]byte, 64)
			steadily(b, func() error { return l.there.exchange(l.there, p) })
		})
		b.Run(name+"/receiver_parks", func(b *testing.B) {
			l := open(b, dial)
			l.setSpin(-1)
			go l.there.echo(l.back, 64)
			p := make([]byte, 64)
			steadily(b, func() error { return l.there.exchange(l.back, p) })
		})
		b.Run(name+"/sender_parks", func(b *testing.B) {
			l := open(b, dial)
			l.setSpin(-1)
			const size, sends = 64 << 10, 16 // together more than what a connection holds
			go func() {
				for p := make([]byte, size); l.there.recv(p) == nil; {
				}
			}()
			b.SetBytes(size * sends)
			p := make([]byte, size)
			steadily(b, func() error {
				for range sends {
					if err := l.there.send(p); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
}

// A wire is one direction of a connection. Both functions deal with all of p.
type wire struct {
	send func(p []byte) error
	recv func(p []byte) error
}

// exchange sends p and receives as much over the other wire.
func (out wire) exchange(in wire, p []byte) error {
	if err := out.send(p); err != nil {
		return err
	}
	return in.recv(p)
}

// echo sends back what it receives until the connection ends.
func (in wire) echo(out wire, size int) {
	for p := make([]byte, size); in.recv(p) == nil && out.send(p) == nil; {
	}
}

// A link is the two wires of a connection and the ends that they have.
type link struct {
	there, back wire
	ends        []linkEnd
}

type linkEnd interface {
	io.Closer
	SetSpin(time.Duration)
}

func open(b *testing.B, dial func() (link, error)) link {
	l, err := dial()
	b.Cleanup(func() {
		for _, end := range l.ends {
			end.Close()
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	return l
}

func (l link) setSpin(d time.Duration) {
	for _, end := range l.ends {
		end.SetSpin(d)
	}
}

var links = map[string]func() (link, error){
	"Conn": func() (link, error) {
		x, y, err := ipc.Pair()
		if err != nil {
			return link{}, err
		}
		return link{stream(x, y), stream(y, x), []linkEnd{x, y}}, nil
	},
	"Buffers": func() (link, error) {
		x, y, err := ipc.Pair()
		if err != nil {
			return link{}, err
		}
		return link{vectors(x, y), vectors(y, x), []linkEnd{x, y}}, nil
	},
	"MsgConn": func() (link, error) {
		x, y, err := ipc.MsgPair()
		if err != nil {
			return link{}, err
		}
		return link{messages(x, y), messages(y, x), []linkEnd{x, y}}, nil
	},
	"RecvAppend": func() (link, error) {
		x, y, err := ipc.MsgPair()
		if err != nil {
			return link{}, err
		}
		return link{appended(x, y), appended(y, x), []linkEnd{x, y}}, nil
	},
	"Pipe": func() (link, error) {
		r, w, err := ipc.Pipe()
		if err != nil {
			return link{}, err
		}
		s, v, err := ipc.Pipe()
		if err != nil {
			return link{ends: []linkEnd{r, w}}, err
		}
		return link{stream(w, r), stream(v, s), []linkEnd{r, w, s, v}}, nil
	},
}

func stream(w io.Writer, r io.Reader) wire {
	return wire{
		send: func(p []byte) error { _, err := w.Write(p); return err },
		recv: func(p []byte) error { _, err := io.ReadFull(r, p); return err },
	}
}

func vectors(w, r *ipc.Conn) wire {
	bufs, out, in := new(net.Buffers), make([][]byte, 2), make([][]byte, 2)
	return wire{
		send: func(p []byte) error {
			out[0], out[1] = p[:len(p)/2], p[len(p)/2:]
			*bufs = out
			_, err := w.WriteBuffers(bufs)
			return err
		},
		recv: func(p []byte) error {
			for len(p) > 0 {
				in[0], in[1] = p[:len(p)/2], p[len(p)/2:]
				n, err := r.ReadBuffers(in)
				if err != nil {
					return err
				}
				p = p[n:]
			}
			return nil
		},
	}
}

func messages(w, r *ipc.MsgConn) wire {
	return wire{
		send: w.Send,
		recv: func(p []byte) error { n, err := r.Recv(p); return whole(n, p, err) },
	}
}

func appended(w, r *ipc.MsgConn) wire {
	return wire{
		send: w.Send,
		recv: func(p []byte) error { q, err := r.RecvAppend(p[:0]); return whole(len(q), p, err) },
	}
}

func whole(n int, p []byte, err error) error {
	if err == nil && n != len(p) {
		err = errors.New("a message of another length")
	}
	return err
}
