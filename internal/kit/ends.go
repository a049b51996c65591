//go:build unix || windows

package kit

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// An End is one of two that are connected: what is written to one is read from
// the other.
type End interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	SetSpin(time.Duration)
}

// A MsgEnd is a MsgConn as an end: each write sends a message, each read receives
// one. An AppendEnd receives it by RecvAppend.
type (
	MsgEnd    struct{ *ipc.MsgConn }
	AppendEnd struct{ MsgEnd }
)

// AppendEndOf returns the connection as an AppendEnd.
func AppendEndOf(c *ipc.MsgConn) AppendEnd { return AppendEnd{MsgEnd{c}} }

// A Messenger is an end of messages.
type Messenger interface {
	Recv(p []byte) (int, error)
	RecvAppend(dst []byte) ([]byte, error)
}

// Read receives a message by Recv.
func (e MsgEnd) Read(p []byte) (int, error) { return e.Recv(p) }

// Write sends a message.
func (e MsgEnd) Write(p []byte) (int, error) {
	if err := e.Send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Read receives a message by RecvAppend.
func (e AppendEnd) Read(p []byte) (int, error) {
	q, err := e.RecvAppend(p[:0])
	return copy(p, q), err
}

// A PipeEnd is made of two pipes, one for each direction.
type PipeEnd struct {
	*ipc.PipeReader
	*ipc.PipeWriter
}

// Close closes the ends of both pipes.
func (e PipeEnd) Close() error { return errors.Join(e.PipeReader.Close(), e.PipeWriter.Close()) }

// SetDeadline sets the deadlines of both pipes.
func (e PipeEnd) SetDeadline(t time.Time) error {
	return errors.Join(e.SetReadDeadline(t), e.SetWriteDeadline(t))
}

// SetSpin bounds the waits of both pipes.
func (e PipeEnd) SetSpin(d time.Duration) {
	e.PipeReader.SetSpin(d)
	e.PipeWriter.SetSpin(d)
}

// OverEachConn tells a story over connections however they are made.
func OverEachConn(t *testing.T, tell func(t *testing.T, a, b *ipc.Conn)) {
	OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		a, b := Connect(t, Listen(t, addr))
		tell(t, a, b)
	})
	t.Run("Pair", func(t *testing.T) {
		Story(t)
		a, b := Pair(t)
		tell(t, a, b)
	})
}

// Methods returns the methods by which the end is read from and written to, as in
// a stack trace.
func Methods(e End) (read, write string) {
	switch e.(type) {
	case MsgEnd:
		return "(*MsgConn).Recv", "(*MsgConn).Send"
	case AppendEnd:
		return "(*MsgConn).RecvAppend", "(*MsgConn).Send"
	case PipeEnd:
		return "(*PipeReader).Read", "(*PipeWriter).Write"
	}
	return "(*Conn).Read", "(*Conn).Write"
}

// AwaitReads returns when n reads of the end wait.
func AwaitReads(t *testing.T, e End, n int) {
	t.Helper()
	read, _ := Methods(e)
	AwaitParked(t, read, n)
}

// IsWriteError fails the test unless err is the *net.OpError of a write of the end.
func IsWriteError(t *testing.T, err error, e End) {
	t.Helper()
	IsErrorOf(t, err, e, "write", "send")
}

// IsErrorOf fails the test unless err is the *net.OpError of op, or of msgOp for an end of messages.
func IsErrorOf(t *testing.T, err error, e End, op, msgOp string) {
	t.Helper()
	switch e.(type) {
	case PipeEnd:
		IsPipeError(t, err, op)
		return
	case Messenger:
		op = msgOp
	}
	IsOpError(t, err, op)
	to := e.(interface{ RemoteAddr() net.Addr }).RemoteAddr()
	if oe := (*net.OpError)(nil); errors.As(err, &oe) && oe.Addr != nil && oe.Addr != to {
		t.Fatalf("%#v does not say whose it is", err)
	}
}

// WriteMuch writes more than fits, and returns how much of it was written.
func WriteMuch(w io.Writer) (written int, err error) {
	p := make([]byte, TooMuch)
	if _, ok := w.(Messenger); ok {
		p = p[:2000] // goes into the queue of any system
	}
	for err == nil {
		var n int
		n, err = w.Write(p)
		written += n
	}
	return written, err
}

// A Server is a Listener or a MsgListener.
type Server struct {
	Listener
	Waits        string // the method that waits for a client, as in a stack trace
	Dial, Accept func() (KnownEnd, error)
}

// A Listener is what Listener and MsgListener of package ipc have in common.
type Listener interface {
	Addr() net.Addr
	Close() error
	SetDeadline(time.Time) error
}

// A KnownEnd is one of a connection, and tells between whom.
type KnownEnd interface {
	End
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
	Peer() (ipc.Peer, error)
}

// Connect returns both ends of a new connection to the server.
func (s Server) Connect(t *testing.T) (client, there KnownEnd) {
	t.Helper()
	client, err := s.Dial()
	Kept(t, client, err)
	there, err = s.Accept()
	return client, Kept(t, there, err)
}

// OverEachServer tells a story over servers of either kind.
func OverEachServer(t *testing.T, tell func(t *testing.T, addr ipc.Addr, s Server)) {
	t.Run("Listener", func(t *testing.T) {
		OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := Listen(t, addr)
			tell(t, addr, Server{l, "(*Listener).AcceptConn",
				func() (KnownEnd, error) { return ipc.Dial(addr) },
				func() (KnownEnd, error) { return l.AcceptConn() }})
		})
	})
	t.Run("MsgListener", func(t *testing.T) {
		OverEachMsgAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := ListenMsg(t, addr)
			tell(t, addr, Server{l, "(*MsgListener).Accept",
				func() (KnownEnd, error) { c, err := ipc.DialMsg(addr); return MsgEnd{c}, err },
				func() (KnownEnd, error) { c, err := l.Accept(); return MsgEnd{c}, err }})
		})
	})
}
