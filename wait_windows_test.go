package ipc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// What ends a wait, and what a wait that ended early leaves behind.

// stuckWrite waits in a write that nobody reads.
func stuckWrite(t *testing.T, c *ipc.PipeConn) <-chan error {
	t.Helper()
	done := begin(func() error { _, err := c.Write(make([]byte, 1<<20)); return err })
	awaitParked(t, "(*Conn).Write", 1)
	return done
}

// Each wait here is one for another operation of the same end, which nothing ends
// but Close. Its own deadline or context must end it.
func TestLimitsEndWaitsForOtherOperations(t *testing.T) {
	question := []byte("question")
	for _, test := range []struct {
		name  string
		first func(t *testing.T, c *ipc.PipeConn) <-chan error
		then  func(c *ipc.PipeConn, ctx context.Context) error
	}{
		{"Flush during Write", stuckWrite, func(c *ipc.PipeConn, ctx context.Context) error { return c.Flush(ctx) }},
		{"Transact during Write", stuckWrite, func(c *ipc.PipeConn, ctx context.Context) error {
			_, err := c.Transact(ctx, question, make([]byte, 9))
			return err
		}},
		{"Transact during Read", func(t *testing.T, c *ipc.PipeConn) <-chan error {
			done := beginRead(c)
			awaitParked(t, "(*Conn).Read", 1)
			return done
		}, func(c *ipc.PipeConn, ctx context.Context) error {
			_, err := c.Transact(ctx, question, make([]byte, 9))
			return err
		}},
		{"Flush during Flush", func(t *testing.T, c *ipc.PipeConn) <-chan error {
			send(t, c, "unread")
			done := begin(func() error { return c.Flush(background()) })
			awaitParked(t, "(*PipeConn).Flush", 1)
			return done
		}, func(c *ipc.PipeConn, ctx context.Context) error { return c.Flush(ctx) }},
		{"Write during Flush", func(t *testing.T, c *ipc.PipeConn) <-chan error {
			send(t, c, "unread")
			done := begin(func() error { return c.Flush(background()) })
			awaitParked(t, "(*PipeConn).Flush", 1)
			return done
		}, func(c *ipc.PipeConn, _ context.Context) error { return nil }},
		{"Write during Transact", func(t *testing.T, c *ipc.PipeConn) <-chan error {
			done := begin(func() error { _, err := c.Transact(background(), question, make([]byte, 9)); return err })
			awaitParked(t, "(*PipeConn).Transact", 1)
			return done
		}, func(c *ipc.PipeConn, _ context.Context) error { return nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			story(t)
			client, _ := connectPipe(t, ipc.PipeConfig{Messages: true})
			first := test.first(t, client)
			for range 3 {
				ctx, cancel := context.WithTimeout(background(), brief)
				if err := test.then(client, ctx); err != nil {
					timedOut(t, err)
				}
				cancel()
			}
			ctx, cancel := context.WithCancel(background())
			time.AfterFunc(brief, cancel)
			if err := test.then(client, ctx); err != nil {
				matches(t, err, context.Canceled)
			}
			cancel()
			if test.name == "Transact during Read" {
				must(t, client.Close())
				matches(t, <-first, net.ErrClosed)
				return
			}
			// A deadline that comes while it waits, which is for writing. It ends
			// what is under way as well.
			second := begin(func() error { _, err := client.Write(make([]byte, 1)); return err })
			awaitParked(t, "(*Conn).Write", 1)
			must(t, client.SetWriteDeadline(time.Now().Add(brief)))
			timedOut(t, <-second)
			timedOut(t, <-first)
		})
	}
}

// A deadline that is set before counts as well.
func TestFlushAndTransactEndAtTheDeadline(t *testing.T) {
	story(t)
	client, _ := connectPipe(t, ipc.PipeConfig{Messages: true})
	send(t, client, "unread")
	for _, set := range []func(time.Time) error{client.SetWriteDeadline, client.SetDeadline} {
		must(t, set(time.Now().Add(brief)))
		timedOut(t, client.Flush(background()))
		timedOut(t, client.Flush(background()))
	}
	must(t, client.SetDeadline(time.Time{}))
	for _, set := range []func(time.Time) error{client.SetWriteDeadline, client.SetReadDeadline} {
		must(t, set(time.Now().Add(brief)))
		_, err := client.Transact(background(), []byte("question"), make([]byte, 9))
		timedOut(t, err)
		must(t, set(time.Time{}))
	}
}

// ---------------------------------------------------------------------------
// What is withdrawn

func TestSendThatTimesOutLeavesNoPartOfAMessage(t *testing.T) {
	story(t)
	big := pattern(1 << 20)
	for round := range 12 {
		a, b := msgPair(t)
		received := make(chan []byte, 100)
		receiving := begin(func() error {
			small := make([]byte, 100)
			for i := 0; ; i++ {
				var msg []byte
				var err error
				if (i+round)%2 == 0 {
					msg, err = b.RecvAppend(nil)
				} else {
					var n int
					n, err = b.Recv(small)
					msg = small[:n]
				}
				if err != nil && !errors.Is(err, ipc.ErrMsgTooLong) {
					return err
				}
				received <- bytes.Clone(msg)
			}
		})
		for range 20 {
			must(t, a.SetWriteDeadline(time.Now().Add(time.Duration(round)*50*time.Microsecond)))
			if err := a.Send(big); err != nil {
				timedOutOrTorn(t, err)
			}
			must(t, a.SetWriteDeadline(time.Time{}))
			if err := a.Send([]byte("next")); err != nil {
				matches(t, err, syscall.EPIPE) // a part of the one before may have been read
				break
			}
		}
		must(t, a.Close())
		if err := <-receiving; err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("round %d: %v", round, err)
		}
		close(received)
		for msg := range received {
			if string(msg) != "next" && !bytes.Equal(msg, big) && !bytes.Equal(msg, big[:100]) {
				t.Fatalf("round %d: a message of %d bytes, %.20q ... %q", round, len(msg), msg, msg[max(len(msg)-20, 0):])
			}
		}
		must(t, b.Close())
	}
}

func timedOutOrTorn(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, syscall.EPIPE) {
		timedOut(t, err)
	}
}

func TestMessageThatWasReadInPartIsTheLast(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{Messages: true})
	sending := begin(func() error { return client.WriteMessage(pattern(1 << 20)) })
	n, more, err := server.ReadMessage(make([]byte, 512))
	if n != 512 || !more || err != nil {
		t.Fatalf("%d, %v, %v", n, more, err)
	}
	must(t, client.SetWriteDeadline(time.Now().Add(brief)))
	timedOut(t, <-sending)
	must(t, client.SetWriteDeadline(time.Time{}))
	for range 2 {
		matches(t, client.WriteMessage([]byte("next")), syscall.EPIPE)
		_, err = client.Write([]byte("next"))
		matches(t, err, syscall.EPIPE)
		matches(t, client.SendFiles(textFile(t, "next")), syscall.EPIPE)
	}
	send(t, server, "the other way") // goes on
	expectMessage(t, client, "the other way")
	must(t, client.Close())
	if n, _, err := server.ReadMessage(make([]byte, 512)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

// cancelAll cancels everything that is under way on the handle, as anybody can who has it.
func cancelAll(t *testing.T, c syscall.Conn) {
	t.Helper()
	control(t, c, func(h uintptr) {
		if err := syscall.CancelIoEx(syscall.Handle(h), nil); err != nil && err != syscall.ERROR_NOT_FOUND {
			t.Error(err)
		}
	})
}

// A write can be withdrawn by somebody else who has the handle.
func TestMessageThatOthersWithdrewIsTheLast(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{Messages: true})
	sending := begin(func() error { return client.WriteMessage(pattern(1 << 20)) })
	n, more, err := server.ReadMessage(make([]byte, 512))
	if n != 512 || !more || err != nil {
		t.Fatalf("%d, %v, %v", n, more, err)
	}
	cancelAll(t, client)
	matches(t, <-sending, syscall.ERROR_OPERATION_ABORTED)
	matches(t, client.WriteMessage([]byte("next")), syscall.EPIPE)
	must(t, client.Close())
	if n, _, err := server.ReadMessage(make([]byte, 512)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

// What somebody else cancels who has the handle goes on.
func TestReadAndFlushGoOnWhenOthersCancelThem(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{Messages: true})
	reading := begin(func() error {
		p := make([]byte, 10)
		n, _, err := client.ReadMessage(p)
		if string(p[:n]) != "answer" {
			t.Errorf("%q", p[:n])
		}
		return err
	})
	send(t, client, "unread")
	flushed := begin(func() error { return client.Flush(background()) })
	awaitParked(t, "(*PipeConn).ReadMessage", 1)
	awaitParked(t, "(*PipeConn).Flush", 1)
	for range 3 {
		cancelAll(t, client)
		time.Sleep(brief) // they could end
	}
	select {
	case err := <-reading:
		t.Fatal(err)
	case err := <-flushed:
		t.Fatal(err)
	default:
	}
	expectMessage(t, server, "unread")
	must(t, <-flushed)
	send(t, server, "answer")
	must(t, <-reading)
}

// While Transact waits for one direction, the other is free.
func TestTransactHoldsNothingWhileItWaits(t *testing.T) {
	for name, isIn := range map[string]func(t *testing.T, client, server *ipc.PipeConn) (ends func()){
		"Read": func(t *testing.T, client, server *ipc.PipeConn) func() {
			reading := beginRead(client)
			awaitParked(t, "(*Conn).Read", 1)
			return func() {
				send(t, client, "ask") // what the read waits for
				expectMessage(t, server, "ask")
				send(t, server, "x")
				must(t, <-reading)
			}
		},
		"Write": func(t *testing.T, client, server *ipc.PipeConn) func() {
			writing := stuckWrite(t, client)
			return func() {
				send(t, server, "x") // what the peer waits for before it reads
				expect(t, client, "x")
				n, more, err := server.ReadMessage(make([]byte, 1<<20))
				if n != 1<<20 || more || err != nil {
					t.Errorf("%d, %t, %v", n, more, err)
				}
				must(t, <-writing)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			story(t)
			client, server := connectPipe(t, ipc.PipeConfig{Messages: true})
			ends := isIn(t, client, server)
			reply := make([]byte, 10)
			answered := begin(func() error {
				n, err := client.Transact(background(), []byte("question"), reply)
				reply = reply[:n]
				return err
			})
			awaitParked(t, "(*PipeConn).Transact", 1)
			ends()
			expectMessage(t, server, "question")
			must(t, server.WriteMessage([]byte("answer")))
			if err := <-answered; string(reply) != "answer" || err != nil {
				t.Errorf("%q, %v", reply, err)
			}
		})
	}
}

// Close does not wait for the call that it is made in.
func TestCloseWithinACall(t *testing.T) {
	for name, within := range map[string]func(raw syscall.RawConn, f func(uintptr)) error{
		"Control": syscall.RawConn.Control,
		"Read": func(raw syscall.RawConn, f func(uintptr)) error {
			return raw.Read(func(h uintptr) bool { f(h); return true })
		},
		"Write": func(raw syscall.RawConn, f func(uintptr)) error {
			return raw.Write(func(h uintptr) bool { f(h); return true })
		},
	} {
		t.Run(name, func(t *testing.T) {
			story(t)
			a, b := pair(t)
			raw, err := a.SyscallConn()
			must(t, err)
			must(t, within(raw, func(h uintptr) {
				must(t, a.SetDeadline(time.Now().Add(time.Hour)))
				must(t, a.Close())
				if kind, err := syscall.GetFileType(syscall.Handle(h)); kind != syscall.FILE_TYPE_PIPE || err != nil {
					t.Errorf("the handle is gone: %d, %v", kind, err)
				}
			}))
			if _, err := b.Read(make([]byte, 1)); err != io.EOF {
				t.Error(err)
			}
			matches(t, raw.Control(func(uintptr) {}), net.ErrClosed)
		})
	}
}

// Where nothing can have been read of it, a message that is withdrawn is no loss.
func TestMessageThatWasNotReadMayBeFollowed(t *testing.T) {
	story(t)
	a, b := msgPair(t)
	sent := 0
	for {
		must(t, a.SetWriteDeadline(time.Now().Add(brief)))
		err := a.Send(pattern(4000))
		if err != nil {
			timedOut(t, err)
			break
		}
		sent++
	}
	must(t, a.SetWriteDeadline(time.Time{}))
	for range sent {
		msg, err := b.RecvAppend(nil)
		if must(t, err); !bytes.Equal(msg, pattern(4000)) {
			t.Fatalf("%d bytes", len(msg))
		}
	}
	must(t, a.Send([]byte("next")))
	hear(t, b, "next")
}

// A record that does not fit into the pipe is there to be seen while its write pends,
// and may be withdrawn at any moment.
func TestSendFilesThatTimesOutLeavesWhatFollows(t *testing.T) {
	for _, messages := range []bool{false, true} {
		t.Run(map[bool]string{false: "Stream", true: "Messages"}[messages], func(t *testing.T) {
			story(t)
			f := textFile(t, "x")
			var files [10]*os.File // 76 bytes
			for i := range files {
				files[i] = f
			}
			for round := range 40 {
				client, server := connectPipe(t, ipc.PipeConfig{Messages: messages, ReadBuffer: 64, WriteBuffer: 64})
				receiving := begin(func() error {
					got, err := server.RecvFiles(len(files))
					for _, f := range got {
						f.Close()
					}
					return err
				})
				must(t, client.SetWriteDeadline(time.Now().Add(time.Duration(round)*200*time.Microsecond)))
				err := client.SendFiles(files[:]...)
				must(t, client.SetWriteDeadline(time.Time{}))
				data := pattern(5000)
				withdrawn := err != nil
				writing := begin(func() error {
					_, err := client.Write(data)
					if withdrawn && messages && errors.Is(err, syscall.EPIPE) { // a part of the record was read
						client.Close()
						data = nil
						return nil
					}
					return err
				})
				if !withdrawn {
					must(t, <-receiving)
				} else {
					timedOut(t, err)
					if err := <-receiving; !errors.Is(err, ipc.ErrNoFiles) && err != io.EOF {
						t.Fatalf("round %d: %v", round, err)
					}
				}
				got := make([]byte, 5000)
				n, err := io.ReadFull(server, got)
				must(t, <-writing)
				if !bytes.Equal(got[:n], data) {
					t.Fatalf("round %d: what follows is %d bytes, %.20q, %v", round, n, got, err)
				}
				client.Close()
				must(t, server.Close())
			}
		})
	}
}

// ---------------------------------------------------------------------------
// Listeners

func TestListenerControlMayUseTheListener(t *testing.T) {
	story(t)
	l := listen(t, nameAddr(t))
	raw, err := l.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(uintptr) {
		must(t, l.SetDeadline(time.Now().Add(soon)))
		must(t, raw.Control(func(h uintptr) {
			kind, err := syscall.GetFileType(syscall.Handle(h))
			if must(t, err); kind != syscall.FILE_TYPE_PIPE {
				t.Errorf("type %d", kind)
			}
		}))
		serves(t, l, l.Addr().(ipc.Addr))
		must(t, l.Close())
	}))
	matches(t, raw.Control(func(uintptr) { t.Error("it is closed") }), net.ErrClosed)
}

func TestClientsThatLeftMakeRoomWithoutAccept(t *testing.T) {
	for _, d := range []ipc.Direction{ipc.Duplex, ipc.ClientToServer, ipc.ServerToClient} {
		t.Run(d.String(), func(t *testing.T) {
			story(t)
			l, path := listenPipe(t, ipc.PipeConfig{Direction: d, Backlog: 2})
			for range 3 {
				one, two := dialPipe(t, path, ipc.PipeDialer{Direction: d}), dialPipe(t, path, ipc.PipeDialer{Direction: d})
				_, err := tryDial(path, ipc.PipeDialer{Direction: d})
				timedOut(t, err) // there is no room now, and the listener has seen that
				must(t, errors.Join(one.Close(), two.Close()))
			}
			must(t, l.Close())
		})
	}
}

func TestAcceptsHoldNoThread(t *testing.T) {
	story(t)
	l := listen(t, nameAddr(t))
	before := threads()
	done := make(chan error)
	const many = 50
	for range many {
		go func() { _, err := l.Accept(); done <- err }()
	}
	awaitParked(t, "(*Listener).AcceptConn", many)
	if n := threads() - before; n > many/2 {
		t.Errorf("%d accepts take %d threads", many, n)
	}
	must(t, l.SetDeadline(time.Now().Add(brief)))
	for range many {
		timedOut(t, <-done)
	}
}

// ---------------------------------------------------------------------------
// Other handles of the same end

// What another handle of the end has under way is not cancelled by Flush and Close.
func TestCloseLeavesOtherHandlesAlone(t *testing.T) {
	story(t)
	client, server := connectPipe(t, byteType)
	event, _, err := createEvent.Call(0, 1, 0, 0)
	if event == 0 {
		t.Fatal(err)
	}
	defer syscall.CloseHandle(syscall.Handle(event))
	h := handleOf(t, client)
	defer syscall.CloseHandle(h)
	read := &struct {
		overlapped syscall.Overlapped
		room       [1]byte
	}{}
	inHeap.Store(read)
	read.overlapped.HEvent = syscall.Handle(event)
	var n uint32
	if err := syscall.ReadFile(h, read.room[:], &n, &read.overlapped); err != syscall.ERROR_IO_PENDING {
		t.Fatal(err)
	}
	send(t, client, "unread")
	ctx, cancel := context.WithTimeout(background(), brief)
	defer cancel()
	timedOut(t, client.Flush(ctx))
	flushed := begin(func() error { return client.Flush(background()) })
	awaitParked(t, "(*PipeConn).Flush", 1)
	must(t, client.Close())
	matches(t, <-flushed, net.ErrClosed)
	send(t, server, "x")
	if s, err := syscall.WaitForSingleObject(syscall.Handle(event), uint32(soon/time.Millisecond)); s != 0 {
		t.Fatal(s, err)
	}
	const statusSuccess = 0
	status := atomic.LoadUintptr(&read.overlapped.Internal)
	if status != statusSuccess || read.room[0] != 'x' {
		t.Errorf("the read ends with %#x, %q", status, read.room)
	}
}

// inHeap keeps what is stored there in the heap. A goroutine's stack may move, and the
// system would write to where it was.
var inHeap atomic.Value
