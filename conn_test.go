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
)

// ---------------------------------------------------------------------------
// Conversations

// converse is one side of the exchange: two messages each way, the first ends
// with a newline, the second with NUL, read and written at the same time.
func converse(c *ipc.Conn, say, want [2]string) error {
	writing := begin(func() error {
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
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
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
		must(t, l.Close())
		_, err := ipc.Dial(addr)
		matches(t, err, ipc.ErrNoListener)
	})
}

func TestPairIsConnected(t *testing.T) {
	story(t)
	a, b := pair(t)
	talk(t, a, b)
	talk(t, b, a)
	must(t, a.Close())
	expectEOF(t, b)
}

func TestConnCarriesMuchBothWaysAtOnce(t *testing.T) {
	story(t)
	a, b := pair(t)
	const size = 4 << 20
	data := pattern(size)
	mirror := bytes.Clone(data)
	slices.Reverse(mirror)
	var done []<-chan error
	for _, way := range []struct {
		from, to *ipc.Conn
		data     []byte
	}{{a, b, data}, {b, a, mirror}} {
		done = append(done,
			begin(func() error {
				n, err := way.from.Write(way.data)
				if err == nil && n != size {
					err = fmt.Errorf("wrote %d of %d", n, size)
				}
				return err
			}),
			begin(func() error {
				got := make([]byte, size)
				_, err := io.ReadFull(way.to, got)
				if err == nil && !bytes.Equal(got, way.data) {
					err = errors.New("the bytes were changed on their way")
				}
				return err
			}))
	}
	for _, d := range done {
		must(t, <-d)
	}
}

func TestConnKeepsWhatWasWrittenBeforeClose(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		for range 20 {
			client, server := connect(t, l)
			for _, way := range [][2]*ipc.Conn{{client, server}, {server, client}} {
				text := strings.Repeat("last words ", 100)
				send(t, way[0], text)
				if way[0] == server {
					must(t, server.Close())
				}
				expect(t, way[1], text)
			}
			expectEOF(t, client)
			expectEOF(t, client) // and so it stays
		}
		client, server := connect(t, l)
		send(t, client, "sent and gone")
		must(t, client.Close())
		must(t, l.Close())
		expect(t, server, "sent and gone")
		expectEOF(t, server)
	})
}

func TestListenerHearsAClientThatLeftBeforeAccept(t *testing.T) {
	overEachServer(t, func(t *testing.T, _ ipc.Addr, s server) {
		early, err := s.dial()
		kept(t, early, err)
		send(t, early, "could")
		send(t, early, " not wait")
		must(t, early.Close())
		there, err := s.accept()
		kept(t, there, err)
		expect(t, there, "could")
		expect(t, there, " not wait")
		expectEOF(t, there)
		client, there := s.connect(t)
		talk(t, client, there)
	})
}

func TestListenerSurvivesClientsThatComeAndGo(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Backlog: 20}, addr)
		for range 10 {
			must(t, dial(t, addr).Close())
		}
		client := dial(t, addr)
		send(t, client, "here to stay")
		for { // those that left may or may not be seen
			server := accept(t, l)
			first := make([]byte, 4)
			if _, err := io.ReadFull(server, first); err == io.EOF {
				must(t, server.Close())
				continue
			}
			expect(t, server, " to stay")
			break
		}
	})
}

func TestConnWriteToAPeerThatIsGone(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		must(t, b.Close())
		var err error
		eventually(t, "a write fails", func() bool {
			_, err = a.Write([]byte("anybody?"))
			return err != nil
		})
		matches(t, err, syscall.EPIPE)
		isWriteError(t, err, a)
		if oe := (*net.OpError)(nil); errors.As(err, &oe) && oe.Timeout() {
			t.Errorf("%#v looks like a deadline", err)
		}
		_, err = a.Write([]byte("nobody"))
		matches(t, err, syscall.EPIPE)
		if c, ok := a.(*ipc.Conn); ok {
			_, err = c.WriteBuffers(&net.Buffers{[]byte("any"), []byte("body?")})
			matches(t, err, syscall.EPIPE)
		}
		expectEOF(t, a)
	})
}

func TestConnPeerThatLeavesEndsWritesThatWait(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		writing := beginWrite(a)
		awaitWrites(t, a, 1)
		must(t, b.Close())
		matches(t, <-writing, syscall.EPIPE)
	})
}

func TestConnPeerThatLeavesEndsReadsThatWait(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		reading := beginRead(a)
		awaitReads(t, a, 1)
		must(t, b.Close())
		if err := <-reading; err != io.EOF {
			t.Errorf("read: %v, want io.EOF itself", err)
		}
	})
}

func TestConnReadAndWriteOfNothing(t *testing.T) {
	nothing := func(t *testing.T, a, b end) {
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
		send(t, a, "something")
		expect(t, b, "something") // and nothing before it, no end of the stream either
	}
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) { nothing(t, a, b) })
	t.Run("Pipe", func(t *testing.T) {
		story(t)
		a, b := pipePair(t)
		nothing(t, a, b)
	})
}

func TestConnWritesAreNotMingled(t *testing.T) {
	story(t)
	a, b := pair(t)
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
	story(t)
	a, b := pair(t)
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
	data, want := pattern(size), int64(0)
	for _, x := range data {
		want += int64(x)
	}
	send(t, a, string(data))
	must(t, a.Close())
	reading.Wait()
	if count.Load() != size || sum.Load() != want {
		t.Errorf("%d bytes of sum %d arrive, want %d of sum %d", count.Load(), sum.Load(), size, want)
	}
}

func TestWriteBuffersTakesWhatItWrote(t *testing.T) {
	story(t)
	a, b := pair(t)
	const size, pieces = 3_000_000, 3000 // more pieces than one system call takes
	data := pattern(size)
	var bufs net.Buffers
	for rest := data; len(rest) > 0; {
		n := min(size/pieces, len(rest))
		bufs = append(bufs, nil, rest[:n])
		rest = rest[n:]
	}
	bufs = append(bufs, nil)
	writing := begin(func() error {
		n, err := a.WriteBuffers(&bufs)
		if err == nil && (n != size || len(bufs) != 0) {
			err = fmt.Errorf("wrote %d of %d, %d buffers left", n, size, len(bufs))
		}
		return err
	})
	got := make([]byte, size)
	_, err := io.ReadFull(b, got)
	must(t, err)
	must(t, <-writing)
	if !bytes.Equal(got, data) {
		t.Error("the bytes were changed on their way")
	}
}

func TestWriteBuffersThatFailsLeavesTheRest(t *testing.T) {
	story(t)
	a, _ := pair(t)
	const size = 8 << 20
	data := pattern(size)
	bufs := net.Buffers{data[:size/4], data[size/4 : size/2], data[size/2:]}
	must(t, a.SetWriteDeadline(time.Now().Add(brief)))
	n, err := a.WriteBuffers(&bufs)
	timedOut(t, err)
	if left := bytes.Join(bufs, nil); !bytes.Equal(left, data[n:]) {
		t.Errorf("%d bytes written, %d left of %d", n, len(left), size)
	}
}

func TestReadBuffersFillsInTurn(t *testing.T) {
	story(t)
	a, b := pair(t)
	one, two, three := make([]byte, 4), make([]byte, 3), make([]byte, 100)
	reading := begin(func() error { // waits for the first byte, and not for full buffers
		n, err := b.ReadBuffers([][]byte{nil, one})
		if err == nil && (n != 1 || one[0] != '!') {
			err = fmt.Errorf("read %d %q", n, one)
		}
		return err
	})
	send(t, a, "!")
	must(t, <-reading)

	send(t, a, "onetwothree")
	var got []byte
	for len(got) < len("onetwothree") {
		n, err := b.ReadBuffers([][]byte{one, {}, two, three})
		must(t, err)
		if n < 1 {
			t.Fatal("read nothing, without an error")
		}
		got = append(got, slices.Concat(one, two, three)[:n]...)
	}
	if string(got) != "onetwothree" {
		t.Errorf("read %q", got)
	}
	must(t, a.Close())
	if n, err := b.ReadBuffers([][]byte{one, two}); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v; want io.EOF", n, err)
	}
}

func TestCopyBothWays(t *testing.T) {
	story(t)
	const size = 3 << 20
	data := pattern(size)
	a, b := pair(t)
	c, d := pair(t)
	relaying := begin(func() error { // from one connection to another
		n, err := io.Copy(c, b)
		if err == nil && n != size {
			err = fmt.Errorf("relayed %d of %d", n, size)
		}
		return errors.Join(err, c.Close())
	})
	sending := begin(func() error {
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
	must(t, <-sending)
	must(t, <-relaying)
	if !bytes.Equal(got.Bytes(), data) {
		t.Error("the bytes were changed on their way")
	}
}

func TestConnHalfClose(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client, server := connect(t, l)
		send(t, client, "question")
		if err := client.CloseWrite(); runtime.GOOS == "windows" {
			matches(t, err, errors.ErrUnsupported)
			matches(t, client.CloseRead(), errors.ErrUnsupported)
			expect(t, server, "question")
			talk(t, client, server)
			return
		} else {
			must(t, err)
		}
		expect(t, server, "question")
		expectEOF(t, server)
		_, err := client.Write([]byte("more"))
		matches(t, err, syscall.EPIPE)
		send(t, server, "answer")
		expect(t, client, "answer")

		must(t, client.CloseRead())
		expectEOF(t, client)
		must(t, client.Close())
	})
}

// ---------------------------------------------------------------------------
// Closing connections

func TestConnCloseEndsReadsAndWritesThatWait(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		var waiting []<-chan error
		for range 2 { // the second queues behind the first
			waiting = append(waiting, beginRead(a))
		}
		awaitReads(t, a, 2)
		for n := range 2 {
			waiting = append(waiting, beginWrite(a))
			awaitWrites(t, a, n+1)
		}
		must(t, a.Close())
		for _, done := range waiting {
			matches(t, <-done, net.ErrClosed)
		}
		if _, ok := b.(messenger); ok {
			return
		}
		n, err := io.Copy(io.Discard, b)
		if err != nil || n == 0 && runtime.GOOS != "windows" { // where what was not read is taken back
			t.Errorf("of what was written %d bytes are left, %v", n, err)
		}
	})
}

func TestConnNothingWorksAfterClose(t *testing.T) {
	story(t)
	c, peer := pair(t)
	send(t, peer, "unread")
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, c.Close())
	saysClosed(t, map[string]func() error{
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
		"Conn":       func(t *testing.T) io.ReadCloser { c, _ := pair(t); return c },
		"MsgConn":    func(t *testing.T) io.ReadCloser { c, _ := msgPair(t); return msgEnd{c} },
		"PipeReader": func(t *testing.T) io.ReadCloser { r, _ := pipe(t); return r },
	} {
		t.Run(kind, func(t *testing.T) {
			story(t)
			for range 100 {
				c := open(t)
				reading := beginRead(c)
				oneCloseSucceeds(t, c)
				matches(t, <-reading, net.ErrClosed)
			}
		})
	}
}

func TestConnCloseWhileEverythingIsUnderWay(t *testing.T) {
	together(t)
	story(t)
	for range 50 {
		c, peer := pair(t)
		raw, err := c.SyscallConn()
		must(t, err)
		ended := untilClosed(t,
			func() error { _, err := c.Read(make([]byte, 10)); return err },
			func() error { _, err := c.Write(make([]byte, 1000)); return err },
			func() error { return c.SetReadDeadline(time.Now().Add(time.Hour)) },
			func() error { return c.SetDeadline(time.Time{}) },
			func() error { _, err := c.Peer(); return err },
			func() error { return raw.Control(func(uintptr) {}) },
			func() error { _, err := c.WriteBuffers(&net.Buffers{make([]byte, 10)}); return err },
		)
		send(t, peer, "some news")
		expect(t, peer, string(make([]byte, 2000)))
		must(t, c.Close())
		ended()
		peer.Close()
	}
}

// ---------------------------------------------------------------------------
// Deadlines

func TestConnDeadlineInThePastFailsAtOnce(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		send(t, b, "kept") // even though there is something to read
		must(t, a.SetDeadline(time.Now().Add(-time.Hour)))
		for range 3 {
			n, err := a.Read(make([]byte, 10))
			timedOut(t, err)
			isReadError(t, err, a)
			if n != 0 {
				t.Errorf("read %d bytes with the error", n)
			}
			n, err = a.Write([]byte("unsaid"))
			timedOut(t, err)
			isWriteError(t, err, a)
			if n != 0 {
				t.Errorf("wrote %d bytes with the error", n)
			}
		}
		must(t, a.SetDeadline(time.Time{}))
		expect(t, a, "kept")
		talk(t, a, b)
	})
}

func TestConnDeadlineIsNotEarly(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		for range 3 {
			begun := time.Now()
			must(t, a.SetReadDeadline(begun.Add(brief)))
			_, err := a.Read(make([]byte, 1))
			timedOut(t, err)
			if waited := time.Since(begun); waited < brief {
				t.Errorf("read gave up after %v, before %v", waited, brief)
			}
		}
		must(t, a.SetReadDeadline(time.Now().Add(time.Hour)))
		talk(t, a, b)

		begun := time.Now()
		must(t, a.SetWriteDeadline(begun.Add(brief)))
		n, err := writeMuch(a)
		timedOut(t, err)
		if waited := time.Since(begun); waited < brief {
			t.Errorf("write gave up after %v, before %v", waited, brief)
		}
		if _, ok := a.(messenger); !ok && runtime.GOOS != "windows" { // where what was not read is taken back
			must(t, a.Close())
			if got, err := io.Copy(io.Discard, b); got != int64(n) || err != nil {
				t.Errorf("%d bytes were written it says, %d arrive, %v", n, got, err)
			}
		}
	})
}

func TestConnDeadlineEndsWhatWaitsAlready(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, _ end) {
		reading, writing := beginRead(a), beginWrite(a)
		awaitReads(t, a, 1)
		awaitWrites(t, a, 1)
		must(t, a.SetReadDeadline(time.Now().Add(-time.Second)))
		timedOut(t, <-reading)
		select {
		case err := <-writing:
			t.Fatalf("the read deadline ends a write: %v", err)
		default:
		}
		must(t, a.SetWriteDeadline(time.Now().Add(brief)))
		timedOut(t, <-writing)
	})
}

func TestConnDeadlineThatIsClearedIsNone(t *testing.T) {
	story(t)
	a, b := pair(t)
	must(t, a.SetReadDeadline(time.Now().Add(brief)))
	reading := begin(func() error {
		_, err := io.ReadFull(a, make([]byte, 4))
		return err
	})
	must(t, a.SetReadDeadline(time.Time{}))
	_, err := b.Read(nil)
	must(t, err)
	must(t, b.SetReadDeadline(time.Now().Add(2*brief))) // outlasts the deadline that was
	_, err = b.Read(make([]byte, 1))
	timedOut(t, err)
	send(t, b, "here")
	if err := <-reading; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	} else if err != nil {
		// The machine slept between setting and clearing it: nothing is proven.
		t.Log("the deadline passed before it could be cleared")
	}
}

func TestConnReadAndWriteDeadlinesAreApart(t *testing.T) {
	story(t)
	a, b := pair(t)
	past := time.Now().Add(-time.Hour)
	must(t, a.SetReadDeadline(past))
	send(t, a, "written")
	expect(t, b, "written")
	must(t, a.SetReadDeadline(time.Time{}))
	must(t, a.SetWriteDeadline(past))
	send(t, b, "read")
	expect(t, a, "read")
	_, err := a.Write([]byte("late"))
	timedOut(t, err)
}

func TestConnReadThatTimesOutLosesNothing(t *testing.T) {
	together(t)
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) { losesNothingToDeadlines(t, b, a) })
	t.Run("Pipe", func(t *testing.T) {
		story(t)
		r, w := pipe(t)
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
	writing := trickle(records, w, func(i int) error {
		_, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(i)))
		return err
	})
	var got []byte
	buf := make([]byte, 20)
	inAHurry(t, r, func() error {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		return err
	})
	must(t, <-writing)
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
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		leavesNothing(t, 1000, func() {
			l, err := ipc.Listen(addr)
			must(t, err)
			client, err := ipc.Dial(addr)
			must(t, err)
			server, err := l.AcceptConn()
			must(t, err)
			reading := begin(func() error { _, err := io.ReadFull(server, make([]byte, 4)); return err })
			send(t, client, "ping")
			must(t, <-reading)
			_, err = ipc.Listen(addr) // one that fails
			matches(t, err, ipc.ErrAddrInUse)
			must(t, client.SetDeadline(time.Now().Add(time.Hour)))
			_, err = ipc.Dialer{Check: func(ipc.Peer) error { return io.EOF }}.Dial(addr)
			matches(t, err, ipc.ErrUntrusted)
			must(t, client.Close())
			expectEOF(t, server)
			must(t, server.Close())
			must(t, l.Close())
			_, err = ipc.Dial(addr)
			matches(t, err, ipc.ErrNoListener)
		})
	})
}

func TestConnReadAndWriteAllocateNothing(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		out, in := make([]byte, 64), make([]byte, 64)
		exchange := func(from end) error {
			if _, err := a.Write(out); err != nil {
				return err
			}
			_, err := io.ReadFull(from, in)
			return err
		}
		allocatesNothing(t, "a write and a read that do not wait", func() error { return exchange(b) })
		echoing := begin(func() error {
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
		allocatesNothing(t, "a round trip", roundTrip)
		must(t, a.SetDeadline(time.Now().Add(time.Hour)))
		must(t, b.SetDeadline(time.Now().Add(time.Hour)))
		allocatesNothing(t, "a round trip with deadlines", roundTrip)
		a.SetSpin(time.Nanosecond)
		b.SetSpin(time.Nanosecond)
		// Of two answers the first is waited for in vain before the read parks, and the
		// second is there, so that the next read tries again.
		allocatesNothing(t, "two answers, and waits in vain", func() error {
			if _, err := a.Write(out); err != nil {
				return err
			}
			if err := exchange(a); err != nil {
				return err
			}
			_, err := io.ReadFull(a, in)
			return err
		})
		must(t, a.Close())
		if err := <-echoing; err != io.EOF {
			t.Error(err)
		}
	})
}

func TestConnBuffersAllocateNothing(t *testing.T) {
	story(t)
	a, b := pair(t)
	one, two := make([]byte, 32), make([]byte, 32)
	in := [][]byte{one, two}
	backing := make([][]byte, 2)
	bufs := new(net.Buffers)
	allocatesNothing(t, "WriteBuffers and ReadBuffers", func() error {
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
	together(t)
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		mux := http.NewServeMux()
		mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "hello from %s", r.Context().Value(http.LocalAddrContextKey))
		})
		mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
		server := &http.Server{Handler: mux, ReadTimeout: patience, WriteTimeout: patience, IdleTimeout: patience}
		serving := begin(func() error { return server.Serve(l) })

		transport := &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return ipc.Dialer{}.DialContext(ctx, addr)
			},
		}
		client := &http.Client{Transport: transport, Timeout: patience}
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
				big := string(pattern(1 << 20))
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
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		must(t, server.Shutdown(ctx))
		matches(t, <-serving, http.ErrServerClosed)
	})
}

// ---------------------------------------------------------------------------
// Zero values

// TestZeroValueFails calls every method of the zero value of every type that stands for
// something open. Each returns an error that matches EINVAL, as in package net.
func TestZeroValueFails(t *testing.T) {
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
	must(t, err)
	defer a.Close()
	defer b.Close()
	if _, err := a.ReadFrom(new(ipc.Conn)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("from a Conn: %v", err)
	}
	if _, err := a.ReadFrom(new(ipc.PipeReader)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("from a PipeReader: %v", err)
	}
	_, err = b.Write([]byte("x"))
	must(t, err)
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
