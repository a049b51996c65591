//go:build unix || windows

// Connections, and what other ends have in common with them.
package ipc_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

// ---------------------------------------------------------------------------
// Conversations

// converse is one side of the exchange: two messages each way, the first ends
// with a newline, the second with NUL, read and written at the same time.
func converse(c *ipc.Conn, say, want [2]string) error {
	writing := kit.Begin(func() error {
		for _, line := range say {
			if _, err := io.WriteString(c, line); err != nil {
				return err
			}
		}
		return nil
	})
	r := bufio.NewReader(c)
	var failed error
	for i, end := range []byte{'\n', 0} {
		if got, err := r.ReadString(end); failed == nil && (err != nil || got != want[i]) {
			failed = fmt.Errorf("heard %q, %v; want %q", got, err, want[i])
		}
	}
	if err := <-writing; failed == nil {
		failed = err
	}
	return failed
}

func TestConnsOfManyClientsAtOnce(t *testing.T) {
	const clients = 80
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		fromServer := [2]string{"Hello from server!\n", "The server bids you farewell.\x00"}
		fromClient := [2]string{"Hello from client!\n", "The client takes its leave.\x00"}
		pid := os.Getpid()
		known := func(c *ipc.Conn) error {
			p, err := c.Peer()
			if got, ok := p.PID(); ok && got != pid {
				return fmt.Errorf("the peer is %v", p)
			}
			return err
		}

		var all sync.WaitGroup
		all.Go(func() {
			for range clients {
				conn, err := l.AcceptConn()
				if err != nil {
					t.Error(err)
					return
				}
				all.Go(func() {
					defer conn.Close()
					if err := errors.Join(known(conn), converse(conn, fromServer, fromClient)); err != nil {
						t.Error("server:", err)
					}
				})
			}
		})
		for range clients {
			all.Go(func() {
				conn, err := ipc.Dial(addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				if err := errors.Join(known(conn), converse(conn, fromClient, fromServer)); err != nil {
					t.Error("client:", err)
				}
			})
		}
		all.Wait()
		kit.Must(t, l.Close())
		_, err := ipc.Dial(addr)
		kit.Matches(t, err, ipc.ErrNoListener)
	})
}

func TestPairIsConnected(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	kit.Talk(t, a, b)
	kit.Talk(t, b, a)
	kit.Must(t, a.Close())
	kit.ExpectEOF(t, b)
}

func TestConnCarriesMuchBothWaysAtOnce(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	const size = 4 << 20
	data := kit.Pattern(size)
	mirror := bytes.Clone(data)
	slices.Reverse(mirror)
	var done []<-chan error
	for _, way := range []struct {
		from, to *ipc.Conn
		data     []byte
	}{{a, b, data}, {b, a, mirror}} {
		done = append(done,
			kit.Begin(func() error {
				n, err := way.from.Write(way.data)
				if err == nil && n != size {
					err = fmt.Errorf("wrote %d of %d", n, size)
				}
				return err
			}),
			kit.Begin(func() error {
				got := make([]byte, size)
				_, err := io.ReadFull(way.to, got)
				if err == nil && !bytes.Equal(got, way.data) {
					err = errors.New("the bytes were changed on their way")
				}
				return err
			}))
	}
	for _, d := range done {
		kit.Must(t, <-d)
	}
}

func TestConnKeepsWhatWasWrittenBeforeClose(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		for range 20 {
			client, server := kit.Connect(t, l)
			for _, way := range [][2]*ipc.Conn{{client, server}, {server, client}} {
				text := strings.Repeat("last words ", 100)
				kit.Send(t, way[0], text)
				if way[0] == server {
					kit.Must(t, server.Close())
				}
				kit.Expect(t, way[1], text)
			}
			kit.ExpectEOF(t, client)
			kit.ExpectEOF(t, client) // and so it stays
		}
		client, server := kit.Connect(t, l)
		kit.Send(t, client, "sent and gone")
		kit.Must(t, client.Close())
		kit.Must(t, l.Close())
		kit.Expect(t, server, "sent and gone")
		kit.ExpectEOF(t, server)
	})
}

func TestListenerHearsAClientThatLeftBeforeAccept(t *testing.T) {
	kit.OverEachServer(t, func(t *testing.T, _ ipc.Addr, s kit.Server) {
		early, err := s.Dial()
		kit.Kept(t, early, err)
		kit.Send(t, early, "could")
		kit.Send(t, early, " not wait")
		kit.Must(t, early.Close())
		there, err := s.Accept()
		kit.Kept(t, there, err)
		kit.Expect(t, there, "could")
		kit.Expect(t, there, " not wait")
		kit.ExpectEOF(t, there)
		client, there := s.Connect(t)
		kit.Talk(t, client, there)
	})
}

func TestListenerSurvivesClientsThatComeAndGo(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenWith(t, ipc.ListenConfig{Backlog: 20}, addr)
		for range 10 {
			kit.Must(t, kit.Dial(t, addr).Close())
		}
		client := kit.Dial(t, addr)
		kit.Send(t, client, "here to stay")
		for { // those that left may or may not be seen
			server := kit.Accept(t, l)
			first := make([]byte, 4)
			if _, err := io.ReadFull(server, first); err == io.EOF {
				kit.Must(t, server.Close())
				continue
			}
			kit.Expect(t, server, " to stay")
			break
		}
	})
}

func TestConnWriteToAPeerThatIsGone(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b kit.End) {
		kit.Must(t, b.Close())
		var err error
		kit.Eventually(t, "a write fails", func() bool {
			_, err = a.Write([]byte("anybody?"))
			return err != nil
		})
		kit.Matches(t, err, syscall.EPIPE)
		kit.IsWriteError(t, err, a)
		if oe := (*net.OpError)(nil); errors.As(err, &oe) && oe.Timeout() {
			t.Errorf("%#v looks like a deadline", err)
		}
		_, err = a.Write([]byte("nobody"))
		kit.Matches(t, err, syscall.EPIPE)
		if c, ok := a.(*ipc.Conn); ok {
			_, err = c.WriteBuffers(&net.Buffers{[]byte("any"), []byte("body?")})
			kit.Matches(t, err, syscall.EPIPE)
		}
		kit.ExpectEOF(t, a)
	})
}

func TestConnPeerThatLeavesEndsWritesThatWait(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b kit.End) {
		writing := beginWrite(a)
		awaitWrites(t, a, 1)
		kit.Must(t, b.Close())
		kit.Matches(t, <-writing, syscall.EPIPE)
	})
}

func TestConnPeerThatLeavesEndsReadsThatWait(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b kit.End) {
		reading := kit.BeginRead(a)
		kit.AwaitReads(t, a, 1)
		kit.Must(t, b.Close())
		if err := <-reading; err != io.EOF {
			t.Errorf("read: %v, want io.EOF itself", err)
		}
	})
}

func TestConnReadAndWriteOfNothing(t *testing.T) {
	nothing := func(t *testing.T, a, b kit.End) {
		for _, p := range [][]byte{nil, {}} {
			if n, err := a.Write(p); n != 0 || err != nil {
				t.Errorf("write of nothing: %d, %v", n, err)
			}
			if n, err := a.Read(p); n != 0 || err != nil {
				t.Errorf("read of nothing: %d, %v", n, err)
			}
		}
		if c, ok := a.(*ipc.Conn); ok {
			bufs := net.Buffers{nil, {}}
			if n, err := c.WriteBuffers(&bufs); n != 0 || err != nil || len(bufs) != 0 {
				t.Errorf("write of no buffers: %d, %v, %d left", n, err, len(bufs))
			}
			if n, err := c.ReadBuffers([][]byte{nil, {}}); n != 0 || err != nil {
				t.Errorf("read of no buffers: %d, %v", n, err)
			}
		}
		kit.Send(t, a, "something")
		kit.Expect(t, b, "something") // and nothing before it, no end of the stream either
	}
	kit.OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) { nothing(t, a, b) })
	t.Run("Pipe", func(t *testing.T) {
		kit.Story(t)
		a, b := pipePair(t)
		nothing(t, a, b)
	})
}

func TestConnWritesAreNotMingled(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	const writers, records, size = 6, 8, 300_000 // larger than any socket buffer
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			record := bytes.Repeat([]byte{byte(w)}, size)
			for i := range records {
				var err error
				if i%2 == 0 {
					_, err = a.Write(record)
				} else {
					_, err = a.WriteBuffers(&net.Buffers{record[:size/3], record[size/3:]})
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	record := make([]byte, size)
	for range writers * records {
		if _, err := io.ReadFull(b, record); err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(record, record[:1]); n != size {
			t.Fatalf("%d bytes of another write among those of writer %d", size-n, record[0])
		}
	}
	writing.Wait()
}

func TestConnConcurrentReadsShareTheStream(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	const size = 1 << 20
	var sum, count atomic.Int64
	var reading sync.WaitGroup
	for range 4 {
		reading.Go(func() {
			for buf := make([]byte, 1000); ; {
				n, err := b.Read(buf)
				count.Add(int64(n))
				for _, x := range buf[:n] {
					sum.Add(int64(x))
				}
				if err != nil {
					if err != io.EOF {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	data, want := kit.Pattern(size), int64(0)
	for _, x := range data {
		want += int64(x)
	}
	kit.Send(t, a, string(data))
	kit.Must(t, a.Close())
	reading.Wait()
	if count.Load() != size || sum.Load() != want {
		t.Errorf("%d bytes of sum %d arrive, want %d of sum %d", count.Load(), sum.Load(), size, want)
	}
}

func TestWriteBuffersTakesWhatItWrote(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	const size, pieces = 3_000_000, 3000 // more pieces than one system call takes
	data := kit.Pattern(size)
	var bufs net.Buffers
	for rest := data; len(rest) > 0; {
		n := min(size/pieces, len(rest))
		bufs = append(bufs, nil, rest[:n])
		rest = rest[n:]
	}
	bufs = append(bufs, nil)
	writing := kit.Begin(func() error {
		n, err := a.WriteBuffers(&bufs)
		if err == nil && (n != size || len(bufs) != 0) {
			err = fmt.Errorf("wrote %d of %d, %d buffers left", n, size, len(bufs))
		}
		return err
	})
	got := make([]byte, size)
	_, err := io.ReadFull(b, got)
	kit.Must(t, err)
	kit.Must(t, <-writing)
	if !bytes.Equal(got, data) {
		t.Error("the bytes were changed on their way")
	}
}

func TestWriteBuffersThatFailsLeavesTheRest(t *testing.T) {
	kit.Story(t)
	a, _ := kit.Pair(t)
	const size = 8 << 20
	data := kit.Pattern(size)
	bufs := net.Buffers{data[:size/4], data[size/4 : size/2], data[size/2:]}
	kit.Must(t, a.SetWriteDeadline(time.Now().Add(kit.Brief)))
	n, err := a.WriteBuffers(&bufs)
	kit.TimedOut(t, err)
	if left := bytes.Join(bufs, nil); !bytes.Equal(left, data[n:]) {
		t.Errorf("%d bytes written, %d left of %d", n, len(left), size)
	}
}

func TestReadBuffersFillsInTurn(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	one, two, three := make([]byte, 4), make([]byte, 3), make([]byte, 100)
	reading := kit.Begin(func() error { // waits for the first byte, and not for full buffers
		n, err := b.ReadBuffers([][]byte{nil, one})
		if err == nil && (n != 1 || one[0] != '!') {
			err = fmt.Errorf("read %d %q", n, one)
		}
		return err
	})
	kit.Send(t, a, "!")
	kit.Must(t, <-reading)

	kit.Send(t, a, "onetwothree")
	var got []byte
	for len(got) < len("onetwothree") {
		n, err := b.ReadBuffers([][]byte{one, {}, two, three})
		kit.Must(t, err)
		if n < 1 {
			t.Fatal("read nothing, without an error")
		}
		got = append(got, slices.Concat(one, two, three)[:n]...)
	}
	if string(got) != "onetwothree" {
		t.Errorf("read %q", got)
	}
	kit.Must(t, a.Close())
	if n, err := b.ReadBuffers([][]byte{one, two}); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v; want io.EOF", n, err)
	}
}

func TestCopyBothWays(t *testing.T) {
	kit.Story(t)
	const size = 3 << 20
	data := kit.Pattern(size)
	a, b := kit.Pair(t)
	c, d := kit.Pair(t)
	relaying := kit.Begin(func() error { // from one connection to another
		n, err := io.Copy(c, b)
		if err == nil && n != size {
			err = fmt.Errorf("relayed %d of %d", n, size)
		}
		return errors.Join(err, c.Close())
	})
	sending := kit.Begin(func() error {
		n, err := io.Copy(a, bytes.NewReader(data))
		if err == nil && n != size {
			err = fmt.Errorf("sent %d of %d", n, size)
		}
		return errors.Join(err, a.Close())
	})
	var got bytes.Buffer
	if n, err := io.Copy(&got, d); n != size || err != nil {
		t.Errorf("received %d, %v", n, err)
	}
	kit.Must(t, <-sending)
	kit.Must(t, <-relaying)
	if !bytes.Equal(got.Bytes(), data) {
		t.Error("the bytes were changed on their way")
	}
}

func TestConnHalfClose(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		client, server := kit.Connect(t, l)
		kit.Send(t, client, "question")
		if err := client.CloseWrite(); runtime.GOOS == "windows" {
			kit.Matches(t, err, errors.ErrUnsupported)
			kit.Matches(t, client.CloseRead(), errors.ErrUnsupported)
			kit.Expect(t, server, "question")
			kit.Talk(t, client, server)
			return
		} else {
			kit.Must(t, err)
		}
		kit.Expect(t, server, "question")
		kit.ExpectEOF(t, server)
		_, err := client.Write([]byte("more"))
		kit.Matches(t, err, syscall.EPIPE)
		kit.Send(t, server, "answer")
		kit.Expect(t, client, "answer")

		kit.Must(t, client.CloseRead())
		kit.ExpectEOF(t, client)
		kit.Must(t, client.Close())
	})
}

// ---------------------------------------------------------------------------
// Closing connections

func TestConnCloseEndsReadsAndWritesThatWait(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b kit.End) {
		var waiting []<-chan error
		for range 2 { // the second queues behind the first
			waiting = append(waiting, kit.BeginRead(a))
		}
		kit.AwaitReads(t, a, 2)
		for n := range 2 {
			waiting = append(waiting, beginWrite(a))
			awaitWrites(t, a, n+1)
		}
		kit.Must(t, a.Close())
		for _, done := range waiting {
			kit.Matches(t, <-done, net.ErrClosed)
		}
		if _, ok := b.(kit.Messenger); ok {
			return
		}
		n, err := io.Copy(io.Discard, b)
		if err != nil || n == 0 && runtime.GOOS != "windows" { // where what was not read is taken back
			t.Errorf("of what was written %d bytes are left, %v", n, err)
		}
	})
}

func TestConnNothingWorksAfterClose(t *testing.T) {
	kit.Story(t)
	c, peer := kit.Pair(t)
	kit.Send(t, peer, "unread")
	raw, err := c.SyscallConn()
	kit.Must(t, err)
	kit.Must(t, c.Close())
	kit.SaysClosed(t, map[string]func() error{
		"Close":            c.Close,
		"Read":             func() error { _, err := c.Read(make([]byte, 1)); return err },
		"Write":            func() error { _, err := c.Write(make([]byte, 1)); return err },
		"ReadBuffers":      func() error { _, err := c.ReadBuffers([][]byte{make([]byte, 1)}); return err },
		"WriteBuffers":     func() error { _, err := c.WriteBuffers(&net.Buffers{make([]byte, 1)}); return err },
		"WriteTo":          func() error { _, err := c.WriteTo(io.Discard); return err },
		"ReadFrom":         func() error { _, err := c.ReadFrom(strings.NewReader("x")); return err },
		"SetDeadline":      func() error { return c.SetDeadline(time.Time{}) },
		"SetReadDeadline":  func() error { return c.SetReadDeadline(time.Now()) },
		"SetWriteDeadline": func() error { return c.SetWriteDeadline(time.Now()) },
		"Peer":             func() error { _, err := c.Peer(); return err },
		"File":             func() error { _, err := c.File(); return err },
		"Control":          func() error { return raw.Control(func(uintptr) { t.Error("the descriptor is gone") }) },
	})
}

func TestConnCloseSucceedsOnce(t *testing.T) {
	for kind, open := range map[string]func(t *testing.T) io.ReadCloser{
		"Conn":       func(t *testing.T) io.ReadCloser { c, _ := kit.Pair(t); return c },
		"MsgConn":    func(t *testing.T) io.ReadCloser { c, _ := kit.MsgPair(t); return kit.MsgEnd{MsgConn: c} },
		"PipeReader": func(t *testing.T) io.ReadCloser { r, _ := kit.Pipe(t); return r },
	} {
		t.Run(kind, func(t *testing.T) {
			kit.Story(t)
			for range 100 {
				c := open(t)
				reading := kit.BeginRead(c)
				oneCloseSucceeds(t, c)
				kit.Matches(t, <-reading, net.ErrClosed)
			}
		})
	}
}

func TestConnCloseWhileEverythingIsUnderWay(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	for range 50 {
		c, peer := kit.Pair(t)
		raw, err := c.SyscallConn()
		kit.Must(t, err)
		ended := kit.UntilClosed(t,
			func() error { _, err := c.Read(make([]byte, 10)); return err },
			func() error { _, err := c.Write(make([]byte, 1000)); return err },
			func() error { return c.SetReadDeadline(time.Now().Add(time.Hour)) },
			func() error { return c.SetDeadline(time.Time{}) },
			func() error { _, err := c.Peer(); return err },
			func() error { return raw.Control(func(uintptr) {}) },
			func() error { _, err := c.WriteBuffers(&net.Buffers{make([]byte, 10)}); return err },
		)
		kit.Send(t, peer, "some news")
		kit.Expect(t, peer, string(make([]byte, 2000)))
		kit.Must(t, c.Close())
		ended()
		peer.Close()
	}
}

// ---------------------------------------------------------------------------
// Deadlines

func TestConnDeadlineInThePastFailsAtOnce(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b kit.End) {
		kit.Send(t, b, "kept") // even though there is something to read
		kit.Must(t, a.SetDeadline(time.Now().Add(-time.Hour)))
		for range 3 {
			n, err := a.Read(make([]byte, 10))
			kit.TimedOut(t, err)
			isReadError(t, err, a)
			if n != 0 {
				t.Errorf("read %d bytes with the error", n)
			}
			n, err = a.Write([]byte("unsaid"))
			kit.TimedOut(t, err)
			kit.IsWriteError(t, err, a)
			if n != 0 {
				t.Errorf("wrote %d bytes with the error", n)
			}
		}
		kit.Must(t, a.SetDeadline(time.Time{}))
		kit.Expect(t, a, "kept")
		kit.Talk(t, a, b)
	})
}

func TestConnDeadlineIsNotEarly(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b kit.End) {
		for range 3 {
			begun := time.Now()
			kit.Must(t, a.SetReadDeadline(begun.Add(kit.Brief)))
			_, err := a.Read(make([]byte, 1))
			kit.TimedOut(t, err)
			if waited := time.Since(begun); waited < kit.Brief {
				t.Errorf("read gave up after %v, before %v", waited, kit.Brief)
			}
		}
		kit.Must(t, a.SetReadDeadline(time.Now().Add(time.Hour)))
		kit.Talk(t, a, b)

		begun := time.Now()
		kit.Must(t, a.SetWriteDeadline(begun.Add(kit.Brief)))
		n, err := kit.WriteMuch(a)
		kit.TimedOut(t, err)
		if waited := time.Since(begun); waited < kit.Brief {
			t.Errorf("write gave up after %v, before %v", waited, kit.Brief)
		}
		if _, ok := a.(kit.Messenger); !ok && runtime.GOOS != "windows" { // where what was not read is taken back
			kit.Must(t, a.Close())
			if got, err := io.Copy(io.Discard, b); got != int64(n) || err != nil {
				t.Errorf("%d bytes were written it says, %d arrive, %v", n, got, err)
			}
		}
	})
}

func TestConnDeadlineEndsWhatWaitsAlready(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, _ kit.End) {
		reading, writing := kit.BeginRead(a), beginWrite(a)
		kit.AwaitReads(t, a, 1)
		awaitWrites(t, a, 1)
		kit.Must(t, a.SetReadDeadline(time.Now().Add(-time.Second)))
		kit.TimedOut(t, <-reading)
		select {
		case err := <-writing:
			t.Fatalf("the read deadline ends a write: %v", err)
		default:
		}
		kit.Must(t, a.SetWriteDeadline(time.Now().Add(kit.Brief)))
		kit.TimedOut(t, <-writing)
	})
}

func TestConnDeadlineThatIsClearedIsNone(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	kit.Must(t, a.SetReadDeadline(time.Now().Add(kit.Brief)))
	reading := kit.Begin(func() error {
		_, err := io.ReadFull(a, make([]byte, 4))
		return err
	})
	kit.Must(t, a.SetReadDeadline(time.Time{}))
	_, err := b.Read(nil)
	kit.Must(t, err)
	kit.Must(t, b.SetReadDeadline(time.Now().Add(2*kit.Brief))) // outlasts the deadline that was
	_, err = b.Read(make([]byte, 1))
	kit.TimedOut(t, err)
	kit.Send(t, b, "here")
	if err := <-reading; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	} else if err != nil {
		// The machine slept between setting and clearing it: nothing is proven.
		t.Log("the deadline passed before it could be cleared")
	}
}

func TestConnReadAndWriteDeadlinesAreApart(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	past := time.Now().Add(-time.Hour)
	kit.Must(t, a.SetReadDeadline(past))
	kit.Send(t, a, "written")
	kit.Expect(t, b, "written")
	kit.Must(t, a.SetReadDeadline(time.Time{}))
	kit.Must(t, a.SetWriteDeadline(past))
	kit.Send(t, b, "read")
	kit.Expect(t, a, "read")
	_, err := a.Write([]byte("late"))
	kit.TimedOut(t, err)
}

func TestConnReadThatTimesOutLosesNothing(t *testing.T) {
	kit.Together(t)
	kit.OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) { losesNothingToDeadlines(t, b, a) })
	t.Run("Pipe", func(t *testing.T) {
		kit.Story(t)
		r, w := kit.Pipe(t)
		losesNothingToDeadlines(t, r, w)
	})
}

// losesNothingToDeadlines reads what is written at the other end, with deadlines
// that pass all the time.
func losesNothingToDeadlines(t *testing.T, r interface {
	io.Reader
	SetReadDeadline(time.Time) error
}, w io.WriteCloser) {
	const records = 3000
	writing := kit.Trickle(records, w, func(i int) error {
		_, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(i)))
		return err
	})
	var got []byte
	buf := make([]byte, 20)
	kit.InAHurry(t, r, func() error {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		return err
	})
	kit.Must(t, <-writing)
	if len(got) != 8*records {
		t.Fatalf("%d bytes of %d arrive", len(got), 8*records)
	}
	for i := range records {
		if x := binary.BigEndian.Uint64(got[8*i:]); x != uint64(i) {
			t.Fatalf("record %d is %d", i, x)
		}
	}
}

// ---------------------------------------------------------------------------
// Costs

func TestConnLeavesNothingAfterManyRounds(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		kit.LeavesNothing(t, 1000, func() {
			l, err := ipc.Listen(addr)
			kit.Must(t, err)
			client, err := ipc.Dial(addr)
			kit.Must(t, err)
			server, err := l.AcceptConn()
			kit.Must(t, err)
			reading := kit.Begin(func() error { _, err := io.ReadFull(server, make([]byte, 4)); return err })
			kit.Send(t, client, "ping")
			kit.Must(t, <-reading)
			_, err = ipc.Listen(addr) // one that fails
			kit.Matches(t, err, ipc.ErrAddrInUse)
			kit.Must(t, client.SetDeadline(time.Now().Add(time.Hour)))
			_, err = ipc.Dialer{Check: func(ipc.Peer) error { return io.EOF }}.Dial(addr)
			kit.Matches(t, err, ipc.ErrUntrusted)
			kit.Must(t, client.Close())
			kit.ExpectEOF(t, server)
			kit.Must(t, server.Close())
			kit.Must(t, l.Close())
			_, err = ipc.Dial(addr)
			kit.Matches(t, err, ipc.ErrNoListener)
		})
	})
}

func TestConnReadAndWriteAllocateNothing(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b kit.End) {
		out, in := make([]byte, 64), make([]byte, 64)
		exchange := func(from kit.End) error {
			if _, err := a.Write(out); err != nil {
				return err
			}
			_, err := io.ReadFull(from, in)
			return err
		}
		kit.AllocatesNothing(t, "a write and a read that do not wait", func() error { return exchange(b) })
		echoing := kit.Begin(func() error {
			buf := make([]byte, 64)
			for {
				n, err := b.Read(buf)
				if err != nil {
					return err
				}
				if _, err := b.Write(buf[:n]); err != nil {
					return err
				}
			}
		})
		roundTrip := func() error { return exchange(a) } // here reads wait
		kit.AllocatesNothing(t, "a round trip", roundTrip)
		kit.Must(t, a.SetDeadline(time.Now().Add(time.Hour)))
		kit.Must(t, b.SetDeadline(time.Now().Add(time.Hour)))
		kit.AllocatesNothing(t, "a round trip with deadlines", roundTrip)
		a.SetSpin(time.Nanosecond)
		b.SetSpin(time.Nanosecond)
		// The spin for the first of two answers fails, and the read parks. The second answer
		// is there, so that the next read spins again.
		kit.AllocatesNothing(t, "two answers, and spins that fail", func() error {
			if _, err := a.Write(out); err != nil {
				return err
			}
			if err := exchange(a); err != nil {
				return err
			}
			_, err := io.ReadFull(a, in)
			return err
		})
		kit.Must(t, a.Close())
		if err := <-echoing; err != io.EOF {
			t.Error(err)
		}
	})
}

func TestConnBuffersAllocateNothing(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	one, two := make([]byte, 32), make([]byte, 32)
	in := [][]byte{one, two}
	backing := make([][]byte, 2)
	bufs := new(net.Buffers)
	kit.AllocatesNothing(t, "WriteBuffers and ReadBuffers", func() error {
		backing[0], backing[1] = one, two
		*bufs = backing
		_, err := a.WriteBuffers(bufs)
		for got := int64(0); err == nil && got < 64; {
			var n int64
			n, err = b.ReadBuffers(in)
			got += n
		}
		return err
	})
}

// ---------------------------------------------------------------------------
// HTTP

func TestListenerServesHTTP(t *testing.T) {
	kit.Together(t)
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		mux := http.NewServeMux()
		mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "hello from %s", r.Context().Value(http.LocalAddrContextKey))
		})
		mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
		server := &http.Server{Handler: mux, ReadTimeout: kit.Patience, WriteTimeout: kit.Patience, IdleTimeout: kit.Patience}
		serving := kit.Begin(func() error { return server.Serve(l) })

		transport := &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return ipc.Dialer{}.DialContext(ctx, addr)
			},
		}
		client := &http.Client{Transport: transport, Timeout: kit.Patience}
		get := func(do func() (*http.Response, error)) (string, error) {
			resp, err := do()
			if err != nil {
				return "", err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			return string(body), err
		}

		var busy sync.WaitGroup
		for range 8 {
			busy.Go(func() {
				for range 5 {
					body, err := get(func() (*http.Response, error) { return client.Get("http://server/hello") })
					if want := "hello from " + addr.String(); err != nil || body != want {
						t.Errorf("%q, %v; want %q", body, err, want)
					}
				}
				big := string(kit.Pattern(1 << 20))
				body, err := get(func() (*http.Response, error) {
					return client.Post("http://server/echo", "application/octet-stream", strings.NewReader(big))
				})
				if err != nil || body != big {
					t.Errorf("%d bytes come back of %d, %v", len(body), len(big), err)
				}
			})
		}
		busy.Wait()
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), kit.Soon)
		defer cancel()
		kit.Must(t, server.Shutdown(ctx))
		kit.Matches(t, <-serving, http.ErrServerClosed)
	})
}

// ---------------------------------------------------------------------------
// Zero values

// TestConnListenerAndPipeZeroValuesFail calls every method of the zero value of every type that stands for
// something open. Each returns an error that matches EINVAL, as in package net.
func TestConnListenerAndPipeZeroValuesFail(t *testing.T) {
	for _, zero := range []any{
		new(ipc.Conn), new(ipc.MsgConn), new(ipc.Listener), new(ipc.MsgListener), new(ipc.PipeReader), new(ipc.PipeWriter),
		new(ipc.SharedConn), new(ipc.SharedListener),
	} {
		everyMethodFails(t, zero)
	}
}

// everyMethodFails calls each method of the zero value with arguments that are valid
// where a method could look at them, and checks the results.
func everyMethodFails(t *testing.T, zero any) {
	v := reflect.ValueOf(zero)
	if v.NumMethod() < 5 {
		t.Fatalf("%T has %d methods", zero, v.NumMethod())
	}
	for i := range v.NumMethod() {
		t.Run(v.Type().Elem().Name()+"/"+v.Type().Method(i).Name, func(t *testing.T) {
			callZero(t, reflect.New(v.Type().Elem()).Method(i)) // a value that nobody has closed
		})
	}
}

func callZero(t *testing.T, method reflect.Value) {
	source := strings.NewReader("x")
	var in []reflect.Value
	for i := range method.Type().NumIn() {
		in = append(in, argument(method.Type().In(i), source))
	}
	call := method.Call
	if method.Type().IsVariadic() {
		call = method.CallSlice
	}
	for _, result := range call(in) {
		switch result.Type() {
		case reflect.TypeFor[error]():
			err, _ := result.Interface().(error)
			var op *net.OpError
			if !errors.Is(err, syscall.EINVAL) || !errors.As(err, &op) {
				t.Errorf("the error is %v", err)
			}
		case reflect.TypeFor[net.Addr]():
			if result.Interface() != ipc.Addr(ipc.Addr{}) {
				t.Errorf("the address is %v", result)
			}
		case reflect.TypeFor[iter.Seq2[*ipc.Conn, error]]():
			onlyEINVAL(t, result.Interface().(iter.Seq2[*ipc.Conn, error]))
		case reflect.TypeFor[iter.Seq2[*ipc.MsgConn, error]]():
			onlyEINVAL(t, result.Interface().(iter.Seq2[*ipc.MsgConn, error]))
		case reflect.TypeFor[iter.Seq2[*ipc.SharedConn, error]]():
			onlyEINVAL(t, result.Interface().(iter.Seq2[*ipc.SharedConn, error]))
		case reflect.TypeFor[bool](): // Native
		case reflect.TypeFor[[]byte](): // of RecvAppend the slice that it was given
			if got := string(result.Bytes()); got != "x" && got != "" {
				t.Errorf("the slice is now %q", result.Bytes())
			}
		default:
			if result.Kind() != reflect.Func && !result.IsZero() {
				t.Errorf("a result is %v", result)
			}
		}
	}
	if source.Len() == 0 {
		t.Error("what cannot be written was read")
	}
}

// argument returns a valid argument, and the zero value where that is one.
func argument(typ reflect.Type, source io.Reader) reflect.Value {
	switch typ {
	case reflect.TypeFor[context.Context]():
		return reflect.ValueOf(context.Background())
	case reflect.TypeFor[io.Reader]():
		return reflect.ValueOf(source)
	case reflect.TypeFor[io.Writer]():
		return reflect.ValueOf(io.Discard)
	case reflect.TypeFor[*net.Buffers]():
		return reflect.ValueOf(&net.Buffers{[]byte("x")})
	case reflect.TypeFor[[]byte]():
		return reflect.ValueOf([]byte("x"))
	}
	return reflect.Zero(typ)
}

// onlyEINVAL checks that the iterator hands one error out and ends.
func onlyEINVAL[C any](t *testing.T, clients iter.Seq2[C, error]) {
	n := 0
	for _, err := range clients {
		if n++; !errors.Is(err, syscall.EINVAL) || n > 1 {
			t.Fatalf("error %d is %v", n, err)
		}
	}
	if n != 1 {
		t.Errorf("the iterator handed out %d errors", n)
	}
}

// TestInheritZeroValueFails hands on what is not open.
func TestInheritZeroValueFails(t *testing.T) {
	for _, end := range []ipc.Inheritable{
		new(ipc.Conn), new(ipc.MsgConn), new(ipc.Listener), new(ipc.MsgListener), new(ipc.PipeReader), new(ipc.PipeWriter),
		(*ipc.Conn)(nil), (*ipc.MsgConn)(nil), (*ipc.Listener)(nil), (*ipc.MsgListener)(nil), (*ipc.PipeReader)(nil), (*ipc.PipeWriter)(nil),
		new(ipc.SharedConn), new(ipc.SharedListener), (*ipc.SharedConn)(nil), (*ipc.SharedListener)(nil),
		nil,
	} {
		cmd := exec.Command("true")
		if err := ipc.Inherit(cmd, "end", end); !errors.Is(err, syscall.EINVAL) || cmd.Env != nil || cmd.ExtraFiles != nil {
			t.Errorf("%T: %v", end, err)
		}
	}
}

// TestCopyOfZeroValues copies from and to what is not open, by the way of io.Copy.
func TestCopyOfZeroValues(t *testing.T) {
	a, b, err := ipc.Pair()
	kit.Must(t, err)
	defer a.Close()
	defer b.Close()
	if _, err := a.ReadFrom(new(ipc.Conn)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("from a Conn: %v", err)
	}
	if _, err := a.ReadFrom(new(ipc.PipeReader)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("from a PipeReader: %v", err)
	}
	_, err = b.Write([]byte("x"))
	kit.Must(t, err)
	if _, err := a.WriteTo(new(ipc.PipeWriter)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("to a PipeWriter: %v", err)
	}
}

// TestInheritedErrorsNameNetwork asks for ends that nobody gave: the errors say the
// network of such an end.
func TestInheritedErrorsNameNetwork(t *testing.T) {
	_, ofConn := ipc.InheritedConn("none")
	_, ofMsgConn := ipc.InheritedMsgConn("none")
	_, ofListener := ipc.InheritedListener("none")
	_, ofMsgListener := ipc.InheritedMsgListener("none")
	_, ofReader := ipc.InheritedReader("none")
	_, ofWriter := ipc.InheritedWriter("none")
	network := ipc.Addr{}.Network()
	for i, err := range []error{ofConn, ofMsgConn, ofListener, ofMsgListener, ipc.Inherit(exec.Command("true"), "end", new(ipc.Conn))} {
		if op := new(net.OpError); !errors.As(err, &op) || op.Net != network {
			t.Errorf("%d: %v", i, err)
		}
	}
	for i, err := range []error{ofReader, ofWriter, ipc.Inherit(exec.Command("true"), "end", new(ipc.PipeWriter))} {
		if op := new(net.OpError); !errors.As(err, &op) || op.Net != "pipe" {
			t.Errorf("pipe %d: %v", i, err)
		}
	}
}

// ---------------------------------------------------------------------------
// Words of this file

// pipePair returns two ends that are connected by two pipes.
func pipePair(t *testing.T) (a, b kit.PipeEnd) {
	t.Helper()
	r, w := kit.Pipe(t)
	s, v := kit.Pipe(t)
	return kit.PipeEnd{PipeReader: r, PipeWriter: v}, kit.PipeEnd{PipeReader: s, PipeWriter: w}
}

// overEachEnd tells a story over ends of every kind, however they are made.
func overEachEnd(t *testing.T, tell func(t *testing.T, a, b kit.End)) {
	t.Run("Conn", func(t *testing.T) {
		kit.OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) { tell(t, a, b) })
	})
	t.Run("Recv", func(t *testing.T) {
		kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) { tell(t, kit.MsgEnd{MsgConn: a}, kit.MsgEnd{MsgConn: b}) })
	})
	t.Run("RecvAppend", func(t *testing.T) {
		kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
			tell(t, kit.AppendEndOf(a), kit.AppendEndOf(b))
		})
	})
	t.Run("Pipe", func(t *testing.T) {
		kit.Story(t)
		a, b := pipePair(t)
		tell(t, a, b)
	})
}

// awaitWrites returns when n writes of the end wait.
func awaitWrites(t *testing.T, e kit.End, n int) {
	t.Helper()
	_, write := kit.Methods(e)
	kit.AwaitParked(t, write, n)
}

// isReadError fails the test unless err is the *net.OpError of a read of the end.
func isReadError(t *testing.T, err error, e kit.End) {
	t.Helper()
	kit.IsErrorOf(t, err, e, "read", "recv")
}

// beginWrite writes more than fits in a goroutine.
func beginWrite(w io.Writer) <-chan error {
	return kit.Begin(func() error { _, err := kit.WriteMuch(w); return err })
}

// What is no open file, from the zero value on, is said to be so, and nothing panics.
func TestFilesThatWereNeverOpenedAreRefused(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	for _, f := range []*os.File{nil, {}} {
		for what, call := range map[string]func() error{
			"FileConn":    func() error { _, err := ipc.FileConn(f); return err },
			"FileMsgConn": func() error { _, err := ipc.FileMsgConn(f); return err },
			"FileReader":  func() error { _, err := ipc.FileReader(f); return err },
			"FileWriter":  func() error { _, err := ipc.FileWriter(f); return err },
			"FileMemory":  func() error { _, err := ipc.FileMemory(f, 1); return err },
			"SendFiles":   func() error { return a.SendFiles(f) },
		} {
			if err := call(); err == nil || !strings.Contains(err.Error(), "is nil, it must be open") {
				if runtime.GOOS == "windows" && errors.Is(err, errors.ErrUnsupported) {
					continue
				}
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	kit.Send(t, a, "nothing was sent")
	kit.Expect(t, b, "nothing was sent")
}

// A command that was started cannot be given an end any more.
func TestInheritByACommandThatWasStarted(t *testing.T) {
	kit.Story(t)
	a, _ := kit.Pair(t)
	self, err := os.FindProcess(os.Getpid())
	kit.Must(t, err)
	defer self.Release() // on Linux it has a descriptor
	cmd := &exec.Cmd{Env: []string{}, Process: self}
	if err := ipc.Inherit(cmd, "end", a); err == nil || !strings.Contains(err.Error(), "it must be one that was not started yet") {
		t.Errorf("Inherit: %v", err)
	}
	if len(cmd.Env) > 0 || len(cmd.ExtraFiles) > 0 {
		t.Error("the command was changed")
	}
}

// A Check that panics leaves nobody connected.
func TestCheckThatPanicsLeavesNothingOpen(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		panics := func(ipc.Peer) error { panic("on purpose") }
		survive := func(call func()) {
			defer func() {
				if recover() == nil {
					t.Error("it did not panic")
				}
			}()
			call()
		}
		l := kit.ListenWith(t, ipc.ListenConfig{Check: panics}, addr)
		c := kit.Dial(t, addr)
		survive(func() { l.AcceptConn() })
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the client reads %v", err)
		}
		kit.Must(t, l.SetAccess(ipc.OwnerOnly, nil))
		survive(func() { ipc.Dialer{Check: panics}.Dial(addr) })
		if runtime.GOOS != "windows" { // there a client that left is not accepted
			s := kit.Accept(t, l)
			if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the server reads %v", err)
			}
		}
		kit.Must(t, l.Close())
		kit.Matches(t, l.SetAccess(ipc.Everyone, nil), net.ErrClosed)
	})
}

func TestDialWithoutAContextSaysSo(t *testing.T) {
	kit.Story(t)
	defer func() {
		if said := recover(); said != "nil context" {
			t.Errorf("it panics with %v", said)
		}
	}()
	var none context.Context
	ipc.Dialer{}.DialContext(none, ipc.Name(kit.Unique()))
}
