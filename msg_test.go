//go:build unix || windows

// Connections of messages.
package ipc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["message"] = childMessages
	kit.Roles["servemsg"] = childServesMessages
}

// childMessages is kit.ChildConnects by messages.
func childMessages(p *kit.Parent, args []string) error {
	kit.FrameMessages(kit.FramedHere || slices.Contains(args, "framed"))
	return kit.ChildGreets(p, args, func(d ipc.Dialer, addr ipc.Addr) (kit.End, error) {
		c, err := d.DialMsg(context.Background(), addr)
		return kit.MsgEnd{MsgConn: c}, err
	})
}

// childServesMessages echoes the messages of each client, until it is told to end.
func childServesMessages(p *kit.Parent, args []string) error {
	addr := kit.Sure(ipc.ParseAddr(args[0]))
	kit.FrameMessages(kit.FramedHere || slices.Contains(args, "framed"))
	l := kit.Sure(ipc.ListenMsg(addr))
	go func() {
		for c := range l.Conns() {
			go echoEach(c)
		}
	}()
	p.Say("serving")
	p.Hear()
	return l.Close()
}

func echoEach(c *ipc.MsgConn) error {
	defer c.Close()
	var buf []byte
	for {
		p, err := c.RecvAppend(buf[:0])
		if err == nil {
			err = c.Send(p)
		}
		if err != nil {
			return err
		}
		buf = p
	}
}

// ---------------------------------------------------------------------------
// Boundaries

func TestMsgConnKeepsBoundaries(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		for range 2 {
			kit.SendMsg(t, a, "first")
			kit.SendMsg(t, a, "the second")
			kit.ExpectMsg(t, b, "first")
			kit.ExpectMsg(t, b, "the second")
			a, b = b, a
		}
		kit.SendMsg(t, a, "third")
		kit.SendMsg(t, a, "fourth")
		p, err := b.RecvAppend(nil)
		if string(p) != "third" || err != nil {
			t.Errorf("received %q, %v", p, err)
		}
		p, err = b.RecvAppend(p)
		if string(p) != "thirdfourth" || err != nil {
			t.Errorf("received %q, %v", p, err)
		}
	})
}

func TestMsgConnEmptyMessagesAreNotTheEnd(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		kit.NeedsEmpty(t)
		for _, text := range []string{"", "one", "", "", "", "two", ""} {
			kit.SendMsg(t, a, text)
		}
		kit.ExpectMsg(t, b, "")
		kit.ExpectMsg(t, b, "one")
		if n, err := b.Recv(nil); n != 0 || err != nil {
			t.Errorf("received %d, %v into nothing", n, err)
		}
		if p, err := b.RecvAppend(nil); len(p) != 0 || err != nil {
			t.Errorf("received %q, %v", p, err)
		}
		if p, err := b.RecvAppend([]byte("kept")); string(p) != "kept" || err != nil {
			t.Errorf("received %q, %v", p, err)
		}
		kit.ExpectMsg(t, b, "two")
		kit.ExpectMsg(t, b, "")
		kit.MsgTalk(t, b, a)
		kit.Must(t, a.Close())
		kit.ExpectMsgEOF(t, b)
	})
}

func TestMsgConnEmptyMessageBeforeCloseIsReceived(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		kit.NeedsEmpty(t)
		kit.SendMsg(t, a, "last but two")
		kit.SendMsg(t, a, "")
		kit.SendMsg(t, a, "")
		kit.Must(t, a.Close())
		kit.ExpectMsg(t, b, "last but two")
		kit.ExpectMsg(t, b, "")
		if p, err := b.RecvAppend(nil); len(p) != 0 || err != nil {
			t.Errorf("received %q, %v", p, err)
		}
		for range 3 {
			kit.ExpectMsgEOF(t, b)
		}
	})
}

func TestMsgConnEmptyMessageWakesTheReceiver(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		kit.NeedsEmpty(t)
		for range 50 {
			a, b := kit.MsgPair(t)
			receiving := kit.Begin(func() error { _, err := b.Recv(make([]byte, 10)); return err })
			kit.Must(t, a.Send(nil))
			kit.Must(t, <-receiving)
			receiving = kit.Begin(func() error { _, err := b.RecvAppend(nil); return err })
			kit.Must(t, a.Send([]byte{}))
			kit.Must(t, <-receiving)
			receiving = kit.Begin(func() error { _, err := b.Recv(make([]byte, 10)); return err })
			kit.Must(t, a.Close())
			if err := <-receiving; err != io.EOF {
				t.Fatalf("%v at the end", err)
			}
			kit.Must(t, b.Close())
		}
	})
}

func TestMsgConnRecvCutsAMessageTooLongForItsBuffer(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		limit := allow(t, a, b, 5000)
		for _, length := range []int{11, 100, limit} {
			long := kit.Pattern(length)
			sending := kit.Begin(func() error { return errors.Join(a.Send(long), a.Send(long[:10]), a.Send([]byte("next"))) })
			room := bytes.Repeat([]byte{'x'}, 20)
			n, err := b.Recv(room[:10])
			kit.Matches(t, err, ipc.ErrMsgTooLong)
			kit.IsOpError(t, err, "recv")
			if n != 10 || !bytes.Equal(room[:10], long[:10]) {
				t.Errorf("received %d bytes, %q", n, room[:10])
			}
			if !bytes.Equal(room[10:], bytes.Repeat([]byte{'x'}, 10)) {
				t.Error("more than the buffer was written")
			}
			if n, err := b.Recv(room[:10]); n != 10 || err != nil { // this one fits to the byte
				t.Errorf("received %d, %v", n, err)
			}
			kit.ExpectMsg(t, b, "next")
			kit.Must(t, <-sending)
		}
		kit.MsgTalk(t, a, b)
	})
}

func TestMsgConnRecvIntoNothingDrops(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		for _, text := range []string{"x", "longer"} {
			for _, room := range [][]byte{nil, {}} {
				kit.SendMsg(t, a, text)
				n, err := b.Recv(room)
				kit.Matches(t, err, ipc.ErrMsgTooLong)
				if n != 0 {
					t.Errorf("received %d bytes into nothing", n)
				}
			}
		}
		kit.SendMsg(t, a, "next")
		kit.ExpectMsg(t, b, "next")
	})
}

func TestMsgConnRecvAppendGrowsAndKeepsWhatIsThere(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		limit := allow(t, a, b, 7000)
		for _, length := range []int{1, 3, 100, limit - limit/3, limit} {
			sending := kit.Begin(func() error { return a.Send(kit.Pattern(length)) })
			p, err := b.RecvAppend([]byte("prefix"))
			if err != nil || !bytes.Equal(p, append([]byte("prefix"), kit.Pattern(length)...)) {
				t.Fatalf("received %d bytes for %d, %v", len(p), length, err)
			}
			kit.Must(t, <-sending)
		}

		// What is beyond the length is the receiver's to use, no more of it than
		// the message needs.
		room := make([]byte, 6, 1<<20)
		copy(room, "prefix")
		kit.SendMsg(t, a, "message")
		p, err := b.RecvAppend(room)
		if string(p) != "prefixmessage" || err != nil {
			t.Errorf("received %q, %v", p, err)
		}
		if &p[0] != &room[0] {
			t.Error("it moved although there was room")
		}
	})
}

func TestMsgConnRecvAppendThatFailsReturnsWhatItGot(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		unchanged := func(what string, target error) {
			t.Helper()
			for _, dst := range [][]byte{nil, []byte("prefix"), make([]byte, 3, 100)} {
				p, err := b.RecvAppend(dst)
				kit.Matches(t, err, target)
				if len(p) != len(dst) || cap(p) != cap(dst) || len(p) > 0 && &p[0] != &dst[0] {
					t.Errorf("%s: returned %q of %d for %q of %d", what, p, cap(p), dst, cap(dst))
				}
			}
		}
		kit.Must(t, b.SetReadDeadline(time.Now().Add(-time.Second)))
		unchanged("deadline", os.ErrDeadlineExceeded)
		kit.Must(t, b.SetReadDeadline(time.Time{}))
		kit.Must(t, a.Close())
		unchanged("end", io.EOF)
		kit.Must(t, b.Close())
		unchanged("closed", net.ErrClosed)
	})
}

// ---------------------------------------------------------------------------
// Sizes

// allow makes room for messages of n bytes from a to b, and returns what length
// there is room for: NetBSD has as little as 4 KiB.
func allow(t *testing.T, a, b *ipc.MsgConn, n int) int {
	t.Helper()
	switch {
	case !a.Native() || runtime.GOOS == "linux" || runtime.GOOS == "android" || runtime.GOOS == "windows":
		return n // Linux: up to 200 KiB
	case errors.Join(a.SetWriteBuffer(2*n), b.SetReadBuffer(2*n)) == nil:
		return n
	}
	return 2000
}

func TestMsgConnManySizes(t *testing.T) {
	sizes := []int{200_000}
	for n := 1; n < 200_000; n *= 2 {
		sizes = append(sizes, n, n+1, 2*n-1)
	}
	for n := 1; n < 64; n++ {
		sizes = append(sizes, n)
	}
	kit.OverEachFraming(t, func(t *testing.T) {
		a, b := kit.MsgPair(t)
		limit := allow(t, a, b, 200_000)
		for i, n := range sizes {
			if n > limit {
				continue
			}
			message := kit.Pattern(n)
			sending := kit.Begin(func() error { return a.Send(message) })
			var got []byte
			var err error
			if i%2 == 0 {
				got, err = b.RecvAppend(nil)
			} else {
				got = make([]byte, n)
				_, err = b.Recv(got)
			}
			kit.Must(t, errors.Join(err, <-sending))
			if !bytes.Equal(got, message) {
				t.Fatalf("%d bytes arrive as %d others", n, len(got))
			}
		}
		kit.Must(t, a.Close())
		kit.ExpectMsgEOF(t, b)
	})
}

func TestMsgConnSendTooLong(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		a, b := kit.MsgPair(t)
		if a.Native() && runtime.GOOS == "windows" {
			t.Skip("a pipe takes messages of any length")
		}
		err := a.Send(make([]byte, 64<<20))
		kit.Matches(t, err, ipc.ErrMsgTooLong)
		kit.IsOpError(t, err, "send")
		kit.MsgTalk(t, a, b) // nothing of it is in the way
		if !a.Native() {
			kit.Matches(t, a.Send(make([]byte, ipc.FrameMax+1)), ipc.ErrMsgTooLong)
			sending := kit.Begin(func() error { return a.Send(make([]byte, ipc.FrameMax)) })
			p, err := b.RecvAppend(nil)
			kit.Must(t, errors.Join(err, <-sending))
			if len(p) != ipc.FrameMax {
				t.Errorf("received %d bytes", len(p))
			}
			kit.MsgTalk(t, a, b)
			return
		}

		n := 512 // no system takes less
		for err == nil || n == 512 {
			n *= 2
			if err = a.Send(kit.Pattern(n)); err != nil {
				break
			}
			if p, err := b.RecvAppend(nil); len(p) != n || err != nil {
				t.Fatalf("received %d bytes of %d, %v", len(p), n, err)
			}
		}
		kit.Matches(t, err, ipc.ErrMsgTooLong)
		if err := errors.Join(a.SetWriteBuffer(2*n), b.SetReadBuffer(2*n)); err != nil && runtime.GOOS != "linux" {
			t.Logf("the system has no larger buffers: %v", err)
			return
		}
		kit.Must(t, a.Send(kit.Pattern(n)))
		if p, err := b.RecvAppend(nil); !bytes.Equal(p, kit.Pattern(n)) || err != nil {
			t.Errorf("received %d bytes of %d, %v", len(p), n, err)
		}
		kit.MsgTalk(t, a, b)
	})
}

func TestMsgConnMaxMessageIsTheLongest(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		a, b := kit.MsgPair(t)
		exact := func() {
			t.Helper()
			n := a.MaxMessage()
			if a.Native() && runtime.GOOS == "windows" {
				if n != 1<<30 {
					t.Errorf("MaxMessage is %d", n)
				}
				return // too much to try
			}
			message := kit.Pattern(n + 1)
			sending := kit.Begin(func() error {
				err := a.Send(message[:n])
				if err != nil {
					a.Close() // or the receiver waits
				}
				return err
			})
			got, err := b.RecvAppend(nil)
			kit.Must(t, errors.Join(err, <-sending))
			if !bytes.Equal(got, message[:n]) {
				t.Errorf("%d bytes arrive as %d others", n, len(got))
			}
			err = a.Send(message)
			kit.Matches(t, err, ipc.ErrMsgTooLong)
			kit.IsOpError(t, err, "send")
			kit.MsgTalk(t, a, b)
		}
		exact()
		for _, size := range []int{1, 10_000, 100_000} {
			if errors.Join(a.SetWriteBuffer(size), b.SetReadBuffer(size)) == nil {
				if n := a.MaxMessage(); n < size-100 || n < 4000 {
					t.Errorf("MaxMessage is %d with a buffer of %d", n, size)
				}
				exact()
			}
		}

		// What is in the queue does not count.
		n := a.MaxMessage()
		if runtime.GOOS != "windows" { // where a Send may wait for its receiver
			kit.Must(t, a.Send([]byte("in the queue")))
		}
		if m := a.MaxMessage(); m != n {
			t.Errorf("MaxMessage was %d and is %d", n, m)
		}
		kit.Must(t, a.Close())
		if n := a.MaxMessage(); n != 0 {
			t.Errorf("MaxMessage of a closed connection is %d", n)
		}
	})
}

// ---------------------------------------------------------------------------
// Deadlines

func TestMsgConnRecvThatTimesOutLosesNothing(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		a, b := kit.MsgPair(t)
		const messages = 3000
		sending := kit.Trickle(messages, a, func(i int) error { return a.Send(numbered(i, i%100)) })
		want, turn := 0, 0
		kit.InAHurry(t, b, func() error {
			p := make([]byte, 200)
			n, err := 0, error(nil)
			if turn++; turn%2 == 0 {
				n, err = b.Recv(p)
				p = p[:n]
			} else {
				p, err = b.RecvAppend(p[:0])
			}
			if err != nil {
				return err
			}
			i, err := numberOf(p)
			kit.Must(t, err)
			if i != want {
				t.Fatalf("message %d arrives when %d is due", i, want)
			}
			want++
			return nil
		})
		kit.Must(t, <-sending)
		if want != messages {
			t.Fatalf("%d messages of %d arrive", want, messages)
		}
	})
}

func TestMsgConnSendThatTimesOutSendsAllOrNothing(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		a, b := kit.MsgPair(t)
		const length = 2000
		sent, timeouts, cutOff := 0, 0, false
		for timeouts < 5 && !cutOff {
			kit.Must(t, a.SetWriteDeadline(time.Now().Add(5*time.Millisecond)))
			switch err := a.Send(numbered(sent, length)); {
			case err == nil:
				sent++
			case timeouts > 0 && errors.Is(err, syscall.EPIPE) && kit.MayCutOff(a):
				cutOff = true // the peer has a part of a message, so none can follow
			default:
				kit.TimedOut(t, err)
				timeouts++
			}
		}
		kit.Must(t, a.SetWriteDeadline(time.Time{}))
		sending := kit.Begin(func() error {
			if !cutOff {
				if err := a.Send([]byte("after all")); err != nil {
					return err
				}
			}
			return a.Close()
		})
		for want := range sent {
			p, err := b.RecvAppend(nil)
			kit.Must(t, err)
			i, err := numberOf(p)
			kit.Must(t, err)
			if i != want {
				t.Fatalf("message %d arrives when %d is due", i, want)
			}
		}
		if cutOff {
			if _, err := b.RecvAppend(nil); err != io.EOF { // where the pipe took the part back
				kit.Matches(t, err, io.ErrUnexpectedEOF)
			}
		} else {
			kit.ExpectMsg(t, b, "after all")
			kit.ExpectMsgEOF(t, b)
		}
		kit.Must(t, <-sending)
	})
}

// ---------------------------------------------------------------------------
// Many at once

func TestMsgConnMessagesArriveOnceAndWhole(t *testing.T) {
	const senders, receivers, each = 8, 4, 200
	kit.OverEachFraming(t, func(t *testing.T) {
		a, b := kit.MsgPair(t)
		limit := allow(t, a, b, 6000)
		last := make([][senders]int, receivers) // of each sender, as each receiver saw it
		put := func(n int) error { return a.Send(numbered(n, n*7919%limit)) }
		kit.EverythingArrivesOnce(t, a, senders*each, senders, put, receivers, func(r, turn int) (int, error) {
			p := make([]byte, 6000)
			n, err := 0, error(nil)
			if turn%2 == 0 {
				n, err = b.Recv(p)
				p = p[:n]
			} else {
				p, err = b.RecvAppend(nil)
			}
			if err != nil {
				return 0, err
			}
			i, err := numberOf(p)
			if err != nil {
				return 0, err
			}
			if was := last[r][i/each]; was > i%each {
				t.Errorf("message %d of sender %d is behind %d", i%each, i/each, was)
			}
			last[r][i/each] = i % each
			return i, nil
		})
	})
}

func TestMsgConnBothWaysAtOnce(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		const messages = 300
		var all sync.WaitGroup
		for _, c := range []*ipc.MsgConn{a, b} {
			all.Go(func() {
				for i := range messages {
					if err := c.Send(numbered(i, 1500)); err != nil {
						t.Error(err)
						return
					}
				}
			})
			all.Go(func() {
				for want := range messages {
					p, err := c.RecvAppend(nil)
					if err == nil {
						var i int
						if i, err = numberOf(p); i != want {
							err = fmt.Errorf("message %d arrives when %d is due, %w", i, want, err)
						}
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
	})
}

// ---------------------------------------------------------------------------
// Closing

func TestMsgConnKeepsWhatWasSentBeforeClose(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		kit.SendMsg(t, a, "one")
		kit.SendMsg(t, a, "two")
		kit.Must(t, a.Close())
		kit.ExpectMsg(t, b, "one")
		p, err := b.RecvAppend(nil)
		if string(p) != "two" || err != nil {
			t.Errorf("received %q, %v", p, err)
		}
		kit.ExpectMsgEOF(t, b)
		kit.ExpectMsgEOF(t, b)
	})
}

func TestMsgConnCloseEndsEveryWayToReceive(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, _ *ipc.MsgConn) {
		waiting := []<-chan error{kit.BeginRead(kit.MsgEnd{MsgConn: a}), kit.BeginRead(kit.AppendEndOf(a))} // one queues behind the other
		kit.AwaitReads(t, kit.MsgEnd{MsgConn: a}, 1)
		kit.AwaitReads(t, kit.AppendEndOf(a), 1)
		kit.Must(t, a.Close())
		for _, done := range waiting {
			kit.Matches(t, <-done, net.ErrClosed)
		}
	})
}

func TestMsgConnNothingWorksAfterClose(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		kit.SendMsg(t, b, "unread")
		kit.Must(t, a.Close())
		kit.SaysClosed(t, map[string]func() error{
			"Close":       a.Close,
			"Send":        func() error { return a.Send([]byte("x")) },
			"Recv":        func() error { _, err := a.Recv(make([]byte, 10)); return err },
			"RecvAppend":  func() error { _, err := a.RecvAppend(nil); return err },
			"SetDeadline": func() error { return a.SetDeadline(time.Time{}) },
			"Peer":        func() error { _, err := a.Peer(); return err },
			"File":        func() error { _, err := a.File(); return err },
		})
	})
}

func TestMsgConnCloseWhileMessagesAreUnderWay(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		for range 30 {
			a, b := kit.MsgPair(t)
			ended := kit.UntilClosed(t,
				func() error { return a.Send(make([]byte, 100)) },
				func() error { return a.Send(make([]byte, 1000)) },
				func() error { _, err := a.Recv(make([]byte, 200)); return err },
				func() error { _, err := a.RecvAppend(nil); return err },
				func() error { return a.SetDeadline(time.Now().Add(time.Hour)) },
				func() error { return a.SetDeadline(time.Time{}) },
				func() error { _, err := a.Peer(); return err },
			)
			for range 20 {
				kit.SendMsg(t, b, "some news")
				_, err := b.RecvAppend(nil)
				kit.Must(t, err)
			}
			kit.Must(t, a.Close())
			ended()
			kit.Must(t, b.Close())
		}
	})
}

// ---------------------------------------------------------------------------
// Servers

func TestMsgConnNativeTellsWhoKeepsTheBoundaries(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		native := !strings.HasSuffix(t.Name(), "/Framed")
		a, b := kit.MsgPair(t)
		client, server := kit.MsgConnect(t, kit.ListenMsg(t, ipc.Addr{}))
		for _, c := range []*ipc.MsgConn{a, b, client, server} {
			if c.Native() != native {
				t.Errorf("Native is %v", c.Native())
			}
		}
	})
}

func TestMsgListenerWithManyClients(t *testing.T) {
	kit.OverEachMsgAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenMsg(t, addr)
		var all sync.WaitGroup
		all.Go(func() {
			for c, err := range l.Conns() {
				if err != nil {
					t.Error(err)
					return
				}
				all.Go(func() {
					if err := echoEach(c); err != io.EOF {
						t.Error(err)
					}
				})
			}
		})
		var clients sync.WaitGroup
		for i := range 30 {
			clients.Go(func() {
				c, err := ipc.DialMsg(addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				for j := range 10 {
					message := numbered(i*100+j, 50*j)
					if err := c.Send(message); err != nil {
						t.Error(err)
						return
					}
					if p, err := c.RecvAppend(nil); err != nil || !bytes.Equal(p, message) {
						t.Errorf("%d bytes come back of %d, %v", len(p), len(message), err)
						return
					}
				}
			})
		}
		clients.Wait()
		kit.Must(t, l.Close())
		all.Wait()
		_, err := ipc.DialMsg(addr)
		kit.Matches(t, err, ipc.ErrNoListener)
		kit.IsOpError(t, err, "dial")
	})
}

// kindsApart reports whether a server for streams and one for messages have
// nothing to do with each other at the address: the abstract names of Linux are
// of one kind of socket each.
func kindsApart(addr ipc.Addr, native bool) bool {
	linux := runtime.GOOS == "linux" || runtime.GOOS == "android"
	return linux && native && strings.HasPrefix(addr.String(), "@")
}

func TestMsgListenerAndListenerExcludeEachOther(t *testing.T) {
	kit.OverEachMsgAddr(t, func(t *testing.T, addr ipc.Addr) {
		works := func(l *ipc.MsgListener) {
			t.Helper()
			client, server := kit.MsgConnect(t, l)
			kit.MsgTalk(t, client, server)
			kit.Must(t, errors.Join(client.Close(), server.Close())) // a pipe is in use as long as they are
		}
		l := kit.ListenMsg(t, addr)
		_, err := ipc.ListenMsg(addr)
		kit.Matches(t, err, ipc.ErrAddrInUse)
		works(l)
		a, _ := kit.MsgPair(t)
		if kindsApart(addr, a.Native()) {
			kit.Serves(t, kit.Listen(t, addr), addr)
			works(l)
			return
		}
		_, err = ipc.Listen(addr)
		kit.Matches(t, err, ipc.ErrAddrInUse)
		works(l)
		kit.Must(t, l.Close())

		other := kit.Listen(t, addr)
		_, err = ipc.ListenMsg(addr)
		kit.Matches(t, err, ipc.ErrAddrInUse)
		kit.Serves(t, other, addr)
		kit.Must(t, other.Close())
		works(kit.ListenMsg(t, addr))
	})
}

func TestListenMsgAtAKilledServersAddress(t *testing.T) {
	kit.OverEachMsgAddr(t, func(t *testing.T, addr ipc.Addr) {
		a, _ := kit.MsgPair(t)
		c := kit.StartChild(t, "servemsg", addr.String(), kit.AsFramed(a))
		c.MustSay("serving")
		client := kit.DialMsg(t, addr)
		kit.SendMsg(t, client, "echo")
		kit.ExpectMsg(t, client, "echo")
		kit.IsProcess(t, kit.PeerOf(t, client), c.PID())
		_, err := ipc.ListenMsg(addr)
		kit.Matches(t, err, ipc.ErrAddrInUse)
		c.Kill()
		kit.ExpectMsgEOF(t, client)
		var l *ipc.MsgListener
		kit.Eventually(t, "the address is free", func() bool { // a moment may pass until the system has cleared away
			l, err = ipc.ListenMsg(addr)
			return err == nil
		})
		defer l.Close()
		client, server := kit.MsgConnect(t, l)
		kit.MsgTalk(t, client, server)
	})
}

func TestMsgConnWithAChild(t *testing.T) {
	kit.OverEachMsgAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenMsg(t, addr)
		a, _ := kit.MsgPair(t)
		c := kit.StartChild(t, "message", addr.String(), kit.AsFramed(a))
		server := kit.AcceptMsg(t, l)
		kit.IsProcess(t, kit.PeerOf(t, server), c.PID())
		kit.ExpectMsg(t, server, "hello from a child")
		kit.SendMsg(t, server, "welcome")
		c.MustSay("welcome")
		c.End()
		kit.ExpectMsgEOF(t, server)
	})
}

func TestMsgListenerCheckCanRefuse(t *testing.T) {
	kit.OverEachMsgAddr(t, func(t *testing.T, addr ipc.Addr) {
		refuse := true
		l := kit.ListenMsgWith(t, ipc.ListenConfig{Check: func(p ipc.Peer) error {
			kit.IsProcess(t, p, os.Getpid())
			if refuse {
				refuse = false
				return errors.New("not you")
			}
			return nil
		}}, addr)
		accepted := kit.Later(t, l.Accept)
		refused := kit.DialMsg(t, addr)
		if _, err := refused.Recv(make([]byte, 10)); err == nil {
			t.Error("a client that was refused receives something")
		}
		welcome := kit.DialMsg(t, addr) // only now: Windows need not ask who they are in their order
		kit.MsgTalk(t, welcome, accepted())

		_, err := ipc.Dialer{Check: func(ipc.Peer) error { return errors.New("nor you") }}.DialMsg(context.Background(), addr)
		kit.Matches(t, err, ipc.ErrUntrusted)
	})
}

func TestDialMsgEndsAsDialDoes(t *testing.T) {
	kit.OverEachMsgAddr(t, func(t *testing.T, addr ipc.Addr) {
		_, err := ipc.DialMsg(addr)
		kit.Matches(t, err, ipc.ErrNoListener)
		begun := time.Now()
		_, err = ipc.Dialer{Wait: true, Timeout: kit.Brief}.DialMsg(context.Background(), addr)
		kit.TimedOut(t, err)
		if waited := time.Since(begun); waited < kit.Brief {
			t.Errorf("it gave up after %v", waited)
		}
		ctx, cancel := context.WithCancel(context.Background())
		dialing := kit.Begin(func() error { _, err := ipc.Dialer{Wait: true}.DialMsg(ctx, addr); return err })
		cancel()
		kit.Matches(t, <-dialing, context.Canceled)

		dialed := kit.Later(t, func() (*ipc.MsgConn, error) {
			return ipc.Dialer{Wait: true}.DialMsg(context.Background(), addr)
		})
		server := kit.AcceptMsg(t, kit.ListenMsg(t, addr))
		kit.MsgTalk(t, dialed(), server)
	})
}

// ---------------------------------------------------------------------------
// Streams and messages by mistake

func TestDialMsgAndListenDoNotMix(t *testing.T) {
	kit.OverEachMsgAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenMsg(t, addr)
		native := !strings.Contains(t.Name(), "/Framed/")
		d := ipc.Dialer{Wait: !kindsApart(addr, native), Timeout: kit.Soon}
		// refused checks why there is no connection of the wrong kind. It fails at
		// once: nobody waits for a server that is there.
		refused := func(err error) {
			t.Helper()
			kit.IsOpError(t, err, "dial")
			if got := errors.Is(err, ipc.ErrNoListener); got != kindsApart(addr, native) {
				t.Errorf("%v: is there a listener?", err)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%v: waited for a listener that is there", err)
			}
		}
		made := func(c io.Closer) { // on some systems it is, and does no harm
			t.Helper()
			if native && runtime.GOOS != "windows" {
				t.Error("a connection of the wrong kind is made")
			}
			kit.Must(t, c.Close())
		}

		if c, err := d.Dial(addr); err != nil {
			refused(err)
		} else {
			server := kit.AcceptMsg(t, l)
			kit.Send(t, c, "GET / HTTP/1.1\r\n\r\n")
			if p, err := server.RecvAppend(nil); err == nil && !native {
				t.Errorf("bytes are received as the message %q", p)
			}
			kit.Must(t, server.Close())
			made(c)
		}
		client, server := kit.MsgConnect(t, l)
		kit.MsgTalk(t, client, server)
		kit.Must(t, errors.Join(client.Close(), server.Close(), l.Close()))

		other := kit.Listen(t, addr)
		if c, err := d.DialMsg(context.Background(), addr); err != nil {
			refused(err)
		} else {
			server := kit.Accept(t, other)
			kit.SendMsg(t, c, "hello")
			if n, err := server.Read(make([]byte, 20)); n == 0 || err != nil {
				t.Errorf("read %d, %v", n, err)
			}
			kit.Must(t, server.Close())
			made(c)
		}
		kit.Serves(t, other, addr)
	})
}

// ---------------------------------------------------------------------------
// Messages of other programs

// foreignMsg is a connection of package net that carries messages.
func foreignMsg(t *testing.T, c net.Conn, err error) net.Conn {
	t.Helper()
	kit.Must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// msgTalkForeign proves that boundaries hold between c and a foreign end, which
// like most programs writes and reads each message in one call.
func msgTalkForeign(t *testing.T, c *ipc.MsgConn, foreign net.Conn) {
	t.Helper()
	for _, text := range []string{"one", "the second"} {
		if n, err := foreign.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
		kit.SendMsg(t, c, text)
	}
	buf := make([]byte, 100)
	for _, text := range []string{"one", "the second"} {
		kit.ExpectMsg(t, c, text)
		if n, err := foreign.Read(buf); string(buf[:n]) != text || err != nil {
			t.Fatalf("the foreign end reads %q, %v; want %q", buf[:n], err, text)
		}
	}
}

func TestMsgConnForeignClientAndServer(t *testing.T) {
	kit.NeedsLinux(t, "package net and MsgConn use the same sockets there")
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenMsg(t, addr)
		c, err := net.Dial("unixpacket", addr.String())
		foreign := foreignMsg(t, c, err)
		server := kit.AcceptMsg(t, l)
		msgTalkForeign(t, server, foreign)
		kit.Must(t, foreign.Close())
		kit.ExpectMsgEOF(t, server)
		kit.Must(t, server.Close())
		kit.Must(t, l.Close())

		other, err := net.Listen("unixpacket", addr.String())
		kit.Must(t, err)
		defer other.Close()
		client := kit.DialMsg(t, addr)
		c, err = other.Accept()
		foreign = foreignMsg(t, c, err)
		msgTalkForeign(t, client, foreign)
		kit.Must(t, client.Close())
		if n, err := foreign.Read(make([]byte, 10)); n != 0 || err != io.EOF {
			t.Errorf("the foreign end reads %d, %v", n, err)
		}

		_, err = ipc.ListenMsg(addr)
		kit.Matches(t, err, ipc.ErrAddrInUse)
	})
}

// TestMsgConnReceivesForeignEmptyMessages has them sent before the server's end was
// accepted: nothing on this side was prepared for them.
func TestMsgConnReceivesForeignEmptyMessages(t *testing.T) {
	kit.NeedsLinux(t, "package net and MsgConn use the same sockets there")
	kit.Story(t)
	addr := kit.NameAddr(t)
	l := kit.ListenMsg(t, addr)
	c, err := net.Dial("unixpacket", addr.String())
	foreign := foreignMsg(t, c, err)
	for _, text := range []string{"", "one", "", ""} {
		_, err := foreign.Write([]byte(text)) // also calls write(2) for nothing
		kit.Must(t, err)
	}
	kit.Must(t, foreign.Close())
	server := kit.AcceptMsg(t, l)
	for _, text := range []string{"", "one", "", ""} {
		kit.ExpectMsg(t, server, text)
	}
	kit.ExpectMsgEOF(t, server)
}

func TestMsgConnFileIsADuplicate(t *testing.T) {
	kit.OverEachMsgAddr(t, func(t *testing.T, addr ipc.Addr) {
		client, server := kit.MsgConnect(t, kit.ListenMsg(t, addr))
		f, err := client.File()
		kit.Must(t, err)
		kit.Must(t, client.Close())
		adopted, err := ipc.FileMsgConn(f)
		kit.Must(t, err)
		defer adopted.Close()
		kit.Must(t, f.Close())
		kit.MsgTalk(t, adopted, server)
		linux := runtime.GOOS == "linux" || runtime.GOOS == "android" // others may tell a name that the package made
		if linux && adopted.RemoteAddr() != addr {
			t.Errorf("the address is %v, want %v", adopted.RemoteAddr(), addr)
		}
		kit.Must(t, adopted.Close())
		kit.ExpectMsgEOF(t, server) // not before the last duplicate was closed
	})
}

// ---------------------------------------------------------------------------
// What frames look like, and what is done about those that look otherwise

// frameEnds returns an end for messages in frames, and the stream at its other
// end.
func frameEnds(t *testing.T) (c *ipc.MsgConn, stream *ipc.Conn) {
	t.Helper()
	l := kit.ListenMsg(t, ipc.Addr{})
	stream = kit.Dial(t, l.Addr())
	c = kit.AcceptMsg(t, l)
	kit.Must(t, l.Close())
	return c, stream
}

// overFrames tells a story of a peer that need not follow the rules.
func overFrames(t *testing.T, tell func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn)) {
	kit.Framed(t)
	kit.Story(t)
	c, stream := frameEnds(t)
	tell(t, c, stream)
}

func TestMsgConnFrameIsLengthAndMessage(t *testing.T) {
	overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
		kit.SendMsg(t, c, "hello")
		kit.SendMsg(t, c, "")
		kit.Expect(t, stream, "\x00\x00\x00\x05hello\x00\x00\x00\x00")
		sending := kit.Begin(func() error { return c.Send(kit.Pattern(0x010203)) })
		kit.Expect(t, stream, "\x00\x01\x02\x03"+string(kit.Pattern(0x010203)))
		kit.Must(t, <-sending)

		kit.Send(t, stream, "\x00\x00\x00\x03one\x00\x00\x00\x00\x00\x00\x00\x03two\x00\x00\x01\x00")
		kit.ExpectMsg(t, c, "one")
		kit.ExpectMsg(t, c, "")
		kit.ExpectMsg(t, c, "two")
		kit.Send(t, stream, string(kit.Pattern(256)))
		p, err := c.RecvAppend(nil)
		if !bytes.Equal(p, kit.Pattern(256)) || err != nil {
			t.Errorf("received %d bytes, %v", len(p), err)
		}
	})
}

func TestMsgConnFrameInPiecesIsPutTogether(t *testing.T) {
	overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
		const wire = "\x00\x00\x00\x0ahelloworld"
		late := func() { kit.Must(t, c.SetReadDeadline(time.Now().Add(2*time.Millisecond))) }
		// attempts receive with too little time, each in its own way, and must
		// lose nothing.
		attempts := []func() (int, error){
			func() (int, error) { return c.Recv(make([]byte, 20)) },
			func() (int, error) { p, err := c.RecvAppend(nil); return len(p), err },
			func() (int, error) { return c.Recv(make([]byte, 10)) },
			func() (int, error) { p, err := c.RecvAppend(make([]byte, 0, 4)); return len(p), err },
		}
		for first := range attempts {
			for i := range len(wire) {
				late()
				n, err := attempts[(first+i)%len(attempts)]()
				kit.TimedOut(t, err)
				if n != 0 {
					t.Errorf("received %d bytes with the error", n)
				}
				kit.Send(t, stream, wire[i:i+1])
			}
			kit.Must(t, c.SetReadDeadline(time.Time{}))
			kit.ExpectMsg(t, c, "helloworld")
		}

		// A receive with a small buffer after one that got further.
		kit.Send(t, stream, wire[:12])
		late()
		_, err := c.RecvAppend(nil)
		kit.TimedOut(t, err)
		kit.Must(t, c.SetReadDeadline(time.Time{}))
		small := make([]byte, 3)
		n, err := c.Recv(small)
		kit.Matches(t, err, ipc.ErrMsgTooLong)
		if n != 3 || string(small) != "hel" {
			t.Errorf("received %q", small[:n])
		}
		kit.Send(t, stream, wire[12:]+wire)
		kit.ExpectMsg(t, c, "helloworld")
	})
}

func TestMsgConnPeerLeavesWithinAFrame(t *testing.T) {
	const wire = "\x00\x00\x00\x0ahelloworld"
	receives := map[string]func(c *ipc.MsgConn) error{
		"Recv":       func(c *ipc.MsgConn) error { _, err := c.Recv(make([]byte, 20)); return err },
		"RecvAppend": func(c *ipc.MsgConn) error { _, err := c.RecvAppend(nil); return err },
	}
	for what, receive := range receives {
		t.Run(what, func(t *testing.T) {
			kit.Framed(t)
			kit.Story(t)
			for cut := 1; cut < len(wire); cut++ {
				c, stream := frameEnds(t)
				kit.Send(t, stream, "\x00\x00\x00\x05whole"+wire[:cut])
				kit.Must(t, stream.Close())
				kit.ExpectMsg(t, c, "whole")
				for range 2 {
					err := receive(c)
					kit.Matches(t, err, io.ErrUnexpectedEOF)
					kit.IsOpError(t, err, "recv")
					if errors.Is(err, io.EOF) {
						t.Errorf("%v looks like the end", err)
					}
				}
				kit.Must(t, c.Close())
			}
		})
	}
	t.Run("InWhatIsDropped", func(t *testing.T) {
		overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
			kit.Send(t, stream, wire[:8])
			kit.Must(t, stream.Close())
			_, err := c.Recv(make([]byte, 2))
			kit.Matches(t, err, ipc.ErrMsgTooLong)
			kit.Matches(t, receives["Recv"](c), io.ErrUnexpectedEOF)
			kit.Matches(t, receives["RecvAppend"](c), io.ErrUnexpectedEOF)
		})
	})
}

// allocated returns how much memory do allocates.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestMsgConnLengthOfAFrameIsNotBelieved(t *testing.T) {
	const little = 1 << 20
	for _, length := range []string{"\xff\xff\xff\xff", "\x80\x00\x00\x00", "\x7f\xff\xff\xff", "\x01\x00\x00\x01", "HTTP"} {
		t.Run(fmt.Sprintf("%x", length), func(t *testing.T) {
			overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
				kit.Send(t, stream, length+"and so on")
				if n := allocated(func() {
					for range 2 {
						_, err := c.RecvAppend(nil)
						kit.IsOpError(t, err, "recv")
						n, err := c.Recv(make([]byte, 10))
						kit.IsOpError(t, err, "recv")
						if n != 0 {
							t.Errorf("received %d bytes", n)
						}
						// A receiver that goes on after a message that is too
						// long must not go on for ever.
						if errors.Is(err, ipc.ErrMsgTooLong) || errors.Is(err, io.EOF) {
							t.Errorf("%v looks as if one could go on", err)
						}
					}
				}); n > little {
					t.Errorf("%d bytes are allocated", n)
				}
				kit.SendMsg(t, c, "the other way") // which is none the worse
				kit.Expect(t, stream, "\x00\x00\x00\x0dthe other way")
			})
		})
	}
	t.Run("promised", func(t *testing.T) {
		overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
			kit.Send(t, stream, "\x01\x00\x00\x00only this")
			if n := allocated(func() {
				for range 10 {
					kit.Must(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
					_, err := c.RecvAppend(nil)
					kit.TimedOut(t, err)
				}
				kit.Must(t, stream.Close())
				kit.Must(t, c.SetReadDeadline(time.Time{}))
				_, err := c.RecvAppend(nil)
				kit.Matches(t, err, io.ErrUnexpectedEOF)
			}); n > little {
				t.Errorf("%d bytes are allocated for 9", n)
			}
		})
	})
}

func TestMsgConnSendCutInTheMiddlePoisonsTheConnection(t *testing.T) {
	overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
		kit.SendMsg(t, c, "whole")
		message := kit.Pattern(kit.TooMuch)
		sending := kit.Begin(func() error { return c.Send(message) })
		kit.Expect(t, stream, "\x00\x00\x00\x05whole"+"\x01\x00\x00\x00") // a part is with the peer
		kit.Must(t, c.SetWriteDeadline(time.Now().Add(kit.Brief)))
		kit.TimedOut(t, <-sending)
		kit.Must(t, c.SetWriteDeadline(time.Time{}))
		if runtime.GOOS == "windows" { // no half close
			kit.Matches(t, c.Send([]byte("must not be taken for the rest")), syscall.EPIPE)
			c.Close()
			return
		}
		got, err := io.ReadAll(stream) // ends though c is open: the peer does not wait for the rest
		kit.Must(t, err)
		if !bytes.HasPrefix(message, got) {
			t.Errorf("%d bytes arrive, not those that were sent", len(got))
		}
		for _, p := range [][]byte{[]byte("must not be taken for the rest"), nil} {
			err := c.Send(p)
			kit.Matches(t, err, syscall.EPIPE)
			kit.IsOpError(t, err, "send")
		}
		kit.Matches(t, c.SendFiles(kit.TextFile(t, "x")), syscall.EPIPE)
		kit.Send(t, stream, "\x00\x00\x00\x0dthe other way") // which is none the worse
		kit.ExpectMsg(t, c, "the other way")
		kit.Must(t, c.Close())
		kit.Matches(t, c.Send([]byte("x")), net.ErrClosed)
	})
}

func TestMsgConnCloseWithinAFrameEndsEverySend(t *testing.T) {
	overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
		sending := []<-chan error{kit.Begin(func() error { return c.Send(kit.Pattern(kit.TooMuch)) })}
		kit.Expect(t, stream, "\x01\x00\x00\x00") // a part is with the peer
		for range 3 {
			sending = append(sending, kit.Begin(func() error { return c.Send([]byte("queues behind it")) }))
		}
		kit.AwaitParked(t, "(*MsgConn).Send", 4)
		kit.Must(t, c.Close())
		for _, done := range sending {
			kit.Matches(t, <-done, net.ErrClosed)
		}
	})
}

// FuzzFrames lets a peer send any bytes at all to an end that receives messages
// in frames. What is received is what a reading of the bytes at one's leisure
// gives, however they are cut into pieces and whatever the receives are like.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x05hello\x00\x00\x00\x00\x00\x00\x00\x01x"), []byte{0, 1, 2, 3})
	f.Add([]byte("\x00\x00\x00\x05hel"), []byte{4})
	f.Add([]byte("\x00\x00\x00"), []byte{1})
	f.Add([]byte("\xff\xff\xff\xffhello"), []byte{7})
	f.Add([]byte("\x01\x00\x00\x00hello"), []byte{7, 0})
	f.Add([]byte("\x01\x00\x00\x01hello"), []byte{6})
	f.Add([]byte("\x00\x00\x00\x0ahelloworld\x00\x00\x00\x02ok"), []byte{0x10, 0x21, 0x32, 0x43, 0x54})
	f.Add([]byte("\x00\x00\x00\x01\x00\x00\x00\x00\x02ab"), []byte{3, 0x3f, 3, 4})
	f.Add([]byte("\x00\x00\x00\x05hel"), []byte{0, 3})
	f.Add([]byte{}, []byte{0})
	f.Fuzz(func(t *testing.T, wire, script []byte) {
		if len(wire) > 8000 || len(script) == 0 { // fits the queue of any system
			return
		}
		before := kit.FrameMessages(true)
		defer kit.FrameMessages(before)
		l, err := ipc.ListenMsg(ipc.Addr{})
		kit.Must(t, err)
		defer l.Close()
		stream, err := ipc.Dial(l.Addr().(ipc.Addr))
		kit.Must(t, err)
		defer stream.Close()
		c, err := l.Accept()
		kit.Must(t, err)
		defer c.Close()

		rest, within := wire, false // what is not yet received, and whether that begins within a message
		sent, late := 0, true
		more := func(n int) { // sends another piece, and the end with the last
			p := wire[sent:min(len(wire), sent+n)]
			sent += len(p)
			_, err := stream.Write(p)
			kit.Must(t, err)
			if sent == len(wire) {
				kit.Must(t, stream.Close())
				late = false
			}
		}
		asked := false // for files: RecvFiles fails and takes nothing
		for turn := 0; ; turn++ {
			order := script[turn%len(script)]
			forFiles := order&3 == 3 && !asked && runtime.GOOS != "windows"
			asked = false
			if late {
				kit.Must(t, c.SetReadDeadline(time.Now().Add(time.Millisecond*time.Duration(order>>7))))
			} else {
				kit.Must(t, c.SetReadDeadline(time.Time{}))
			}
			var got []byte
			room := -1
			switch {
			case forFiles:
				var files []*os.File
				if files, err = c.RecvFiles(1); len(files) != 0 {
					t.Fatal("bytes become files")
				}
			case order&1 == 0:
				room = int(order >> 2 & 15)
				got = make([]byte, room)
				n := 0
				n, err = c.Recv(got)
				got = got[:n]
			default:
				prefix := make([]byte, order>>2&7, 16)
				got, err = c.RecvAppend(prefix)
				if len(got) < len(prefix) || err != nil && len(got) != len(prefix) {
					t.Fatalf("appended to %d bytes gives %d", len(prefix), len(got))
				}
				got = got[len(prefix):]
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() && late {
				if len(got) != 0 {
					t.Fatalf("%q comes with %v", got, err)
				}
				more(max(1+int(order>>1&3), len(wire)/64)) // or it would take long
				continue
			}

			var want []byte
			var wantErr error
			switch {
			case len(rest) == 0 && !within:
				wantErr = io.EOF
			case forFiles && len(rest) == 0:
				wantErr = io.ErrUnexpectedEOF
			case forFiles:
				if !errors.Is(err, ipc.ErrNoFiles) {
					t.Fatalf("turn %d: asked for files where %q is: %v", turn, rest, err)
				}
				asked = true
				continue
			case len(rest) < 4:
				wantErr = io.ErrUnexpectedEOF
			default:
				size := binary.BigEndian.Uint32(rest)
				switch body := rest[4:]; {
				case size > uint32(ipc.FrameMax):
					if err == nil || errors.Is(err, io.EOF) || len(got) != 0 {
						t.Fatalf("a length of %d gives %q, %v", size, got, err)
					}
					return
				case room >= 0 && int(size) > room && len(body) >= room:
					want, wantErr = body[:room], ipc.ErrMsgTooLong
				case len(body) < int(size):
					wantErr = io.ErrUnexpectedEOF
				default:
					want = body[:size]
				}
				within = len(rest)-4 < int(size)
				rest = rest[min(len(rest), 4+int(size)):]
			}
			if !bytes.Equal(got, want) || !errors.Is(err, wantErr) || wantErr == nil && err != nil {
				t.Fatalf("turn %d: received %q, %v; want %q, %v", turn, got, err, want, wantErr)
			}
			if wantErr == io.EOF || wantErr == io.ErrUnexpectedEOF {
				return
			}
		}
	})
}

// ---------------------------------------------------------------------------
// Words of this file

// numbered returns a message of at least 8 bytes that tells which one it is, and
// whether it is whole.
func numbered(i, length int) []byte {
	p := kit.Pattern(max(8, length))
	binary.BigEndian.PutUint32(p, uint32(i))
	binary.BigEndian.PutUint32(p[4:], uint32(len(p)))
	return p
}

// numberOf returns the number of a message that is whole.
func numberOf(p []byte) (int, error) {
	if len(p) < 8 || int(binary.BigEndian.Uint32(p[4:])) != len(p) {
		return 0, fmt.Errorf("a message of %d bytes is torn: %q", len(p), p[:min(len(p), 16)])
	}
	i := int(binary.BigEndian.Uint32(p))
	if !bytes.Equal(p, numbered(i, len(p))) {
		return 0, fmt.Errorf("message %d of %d bytes is garbled", i, len(p))
	}
	return i, nil
}
