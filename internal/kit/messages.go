//go:build unix || windows

package kit

import (
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	_ "unsafe" // for go:linkname

	"github.com/interprocess-go/ipc"
)

// framesMessages is the variable of that name of package ipc. It is not exported there, for only tests have a use for
// it. What the tests of package ipc export is not there for the tests of another folder. So the linker gives the
// variable to the kit.
//
//go:linkname framesMessages github.com/interprocess-go/ipc.framesMessages
var framesMessages bool

// FramedHere is whether this system keeps no boundaries of messages.
var FramedHere = framesMessages

// FrameMessages decides how the message connections made from now on keep their boundaries, and returns how they did
// before. The tests tell every story about messages over frames too, whatever the system.
func FrameMessages(on bool) (before bool) {
	before, framesMessages = framesMessages, on
	return before
}

// Framed makes the messages of the test travel in frames.
func Framed(t *testing.T) {
	before := FrameMessages(true)
	t.Cleanup(func() { FrameMessages(before) })
}

// OverEachFraming tells a story of messages as the system carries them, where it
// does, and of messages in frames.
func OverEachFraming(t *testing.T, tell func(t *testing.T)) {
	if !FramedHere {
		t.Run("Native", func(t *testing.T) { Story(t); tell(t) })
	}
	t.Run("Framed", func(t *testing.T) { Framed(t); Story(t); tell(t) })
}

// OverEachMsgAddr tells the story over a path and over a name.
func OverEachMsgAddr(t *testing.T, tell func(t *testing.T, addr ipc.Addr)) {
	OverEachFraming(t, func(t *testing.T) {
		OverEachAddr(t, tell)
	})
}

// OverEachMsgConn tells the story over connections however they are made.
func OverEachMsgConn(t *testing.T, tell func(t *testing.T, a, b *ipc.MsgConn)) {
	OverEachFraming(t, func(t *testing.T) {
		OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			a, b := MsgConnect(t, ListenMsg(t, addr))
			tell(t, a, b)
		})
		t.Run("Pair", func(t *testing.T) {
			Story(t)
			a, b := MsgPair(t)
			tell(t, a, b)
		})
	})
}

// ListenMsg returns a listener for messages at the address.
func ListenMsg(t *testing.T, addr ipc.Addr) *ipc.MsgListener {
	t.Helper()
	return ListenMsgWith(t, ipc.ListenConfig{}, addr)
}

// ListenMsgWith is ListenMsg with a configuration.
func ListenMsgWith(t *testing.T, lc ipc.ListenConfig, addr ipc.Addr) *ipc.MsgListener {
	t.Helper()
	l, err := lc.ListenMsg(addr)
	return Kept(t, l, err)
}

// DialMsg returns a connection to the address.
func DialMsg(t *testing.T, addr net.Addr) *ipc.MsgConn {
	t.Helper()
	c, err := ipc.DialMsg(addr.(ipc.Addr))
	return Kept(t, c, err)
}

// AcceptMsg returns the next connection to the listener.
func AcceptMsg(t *testing.T, l *ipc.MsgListener) *ipc.MsgConn {
	t.Helper()
	c, err := l.Accept()
	return Kept(t, c, err)
}

// MsgConnect returns both ends of a new connection to the listener.
func MsgConnect(t *testing.T, l *ipc.MsgListener) (client, server *ipc.MsgConn) {
	t.Helper()
	return DialMsg(t, l.Addr()), AcceptMsg(t, l)
}

// MsgPair returns two ends that are connected.
func MsgPair(t *testing.T) (a, b *ipc.MsgConn) {
	t.Helper()
	a, b, err := ipc.MsgPair()
	return Kept(t, a, err), Kept(t, b, err)
}

// SendMsg sends the text as a message.
func SendMsg(t *testing.T, c *ipc.MsgConn, text string) {
	t.Helper()
	Must(t, c.Send([]byte(text)))
}

// ExpectMsg receives a message, which must be the text.
func ExpectMsg(t *testing.T, c *ipc.MsgConn, text string) {
	t.Helper()
	Expect(t, MsgEnd{c}, text)
}

// ExpectMsgEOF fails the test unless every call says io.EOF.
func ExpectMsgEOF(t *testing.T, c Messenger) {
	t.Helper()
	if n, err := c.Recv(make([]byte, 16)); n != 0 || err != io.EOF {
		t.Fatalf("received %d, %v; want io.EOF itself", n, err)
	}
	if p, err := c.RecvAppend([]byte("kept")); string(p) != "kept" || err != io.EOF {
		t.Fatalf("received %q, %v; want io.EOF itself", p, err)
	}
	if n, err := c.Recv(nil); n != 0 || err != io.EOF {
		t.Fatalf("received %d, %v into nothing; want io.EOF itself", n, err)
	}
}

// MsgTalk proves that two ends are connected to each other.
func MsgTalk(t *testing.T, a, b *ipc.MsgConn) {
	t.Helper()
	Talk(t, MsgEnd{a}, MsgEnd{b})
}

// NeedsEmpty skips the test where no empty message can be sent, once it has seen
// that the package says so.
func NeedsEmpty(t *testing.T) {
	t.Helper()
	a, b := MsgPair(t)
	err := a.Send(nil)
	cannot := runtime.GOOS == "freebsd" || runtime.GOOS == "openbsd" || runtime.GOOS == "dragonfly"
	if errors.Is(err, errors.ErrUnsupported) && cannot && a.Native() {
		IsOpError(t, err, "send")
		Matches(t, a.Send([]byte{}), errors.ErrUnsupported)
		MsgTalk(t, a, b)
		t.Skip("this system cannot send an empty message")
	}
	Must(t, err)
}

// EverythingArrivesOnce puts numbered things into an end, by many senders of which
// each puts its share in order, and has many receivers take them from the other end
// until the first is closed. A receiver is told which one it is, and its turn.
func EverythingArrivesOnce(t *testing.T, w io.Closer, things, senders int, put func(n int) error, receivers int, take func(r, turn int) (int, error)) {
	t.Helper()
	var sending, receiving sync.WaitGroup
	for s := range senders {
		sending.Go(func() {
			for n := s * things / senders; n < (s+1)*things/senders; n++ {
				if err := put(n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var mu sync.Mutex
	seen := map[int]int{}
	for r := range receivers {
		receiving.Go(func() {
			for turn := r; ; turn++ {
				n, err := take(r, turn)
				if err == io.EOF {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[n]++
				mu.Unlock()
			}
		})
	}
	sending.Wait()
	Must(t, w.Close())
	receiving.Wait()
	for n := range things {
		if seen[n] != 1 {
			t.Errorf("number %d arrives %d times", n, seen[n])
		}
	}
	if len(seen) != things {
		t.Errorf("%d things arrive of %d", len(seen), things)
	}
}

// AsFramed is the argument for a child that is to do as this process does.
func AsFramed(c interface{ Native() bool }) string {
	if c.Native() {
		return "native"
	}
	return "framed"
}

// MayCutOff reports whether a Send that ends early may leave the peer with a part of
// a message, so that none can follow: in frames, and in the records of FreeBSD 15.
func MayCutOff(c *ipc.MsgConn) bool { return !c.Native() || runtime.GOOS == "freebsd" }
