// Pipes as Windows has them.
package ipc_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/interprocess-go/ipc"
)

func init() {
	roles["inherits"] = childInherits
	roles["shared"] = childIsShared
	roles["waits"] = func(p *parent, _ []string) error { p.say("here"); p.hear(); return nil }
}

// ---------------------------------------------------------------------------
// Addresses

func TestPipePathsHaveManySpellings(t *testing.T) {
	story(t)
	name := "Dir\\" + unique()
	l := listen(t, ipc.Name(name))
	for _, addr := range []ipc.Addr{
		ipc.Name(name),
		ipc.Name(strings.ToUpper(name)),
		ipc.Name(strings.ReplaceAll(name, `\`, "/")),
		ipc.Path(`\\.\pipe\` + name),
		ipc.Path(`\\.\PIPE\` + name),
		ipc.Path(`\\?\pipe\` + name),
		ipc.Path(`//./pipe/` + name),
	} {
		serves(t, l, addr)
		_, err := ipc.Listen(addr)
		matches(t, err, ipc.ErrAddrInUse)
	}
}

func TestListenPipeRefusesPathsThatAreNoPipes(t *testing.T) {
	for _, path := range []string{
		`C:\socket`, `socket`, `\socket`, `/tmp/socket`, `\\.\pipe`, `\\.\pipe\`, `\\.\pipes\x`, `\\.\mailslot\x`,
		`\\\pipe\x`, `\\.pipe\x`, `\\.\pipe\x\`, `\\.\pipe\\x`, `\\.\pipe\..\C:\x`, `\\.\pipe\a\..\b`, `\\.\pipe\.`,
		`\\.\pipe\a.`, `\\.\pipe\a `, `\\.\pipe\a.\b`, "\\\\.\\pipe\\\xff",
	} {
		if l, err := ipc.Listen(ipc.Path(path)); err == nil {
			l.Close()
			t.Errorf("Listen takes %q", path)
		}
		if c, err := ipc.Dial(ipc.Path(path)); err == nil {
			c.Close()
			t.Errorf("Dial takes %q", path)
		} else if errors.Is(err, ipc.ErrNoListener) {
			t.Errorf("%q was looked up", path)
		}
	}
	_, err := ipc.Dial(ipc.Path(`C:\socket`))
	matches(t, err, errors.ErrUnsupported)
	if !strings.Contains(err.Error(), `\\.\pipe\`) {
		t.Errorf("%q does not say what to write", err)
	}
}

func TestPipeOfAnotherMachineCannotBeServed(t *testing.T) {
	_, err := ipc.Listen(ipc.Path(`\\server\pipe\x`))
	matches(t, err, errors.ErrUnsupported)
}

func TestPipePathsMayHave256Characters(t *testing.T) {
	story(t)
	name := unique()
	name += strings.Repeat("ü", 256-len(`\\.\pipe\`)-len(name))
	l := listen(t, ipc.Name(name))
	serves(t, l, ipc.Name(name))
	_, err := ipc.Listen(ipc.Name(name + "ü"))
	matches(t, err, ipc.ErrNameTooLong)
}

// ---------------------------------------------------------------------------
// Bursts and races

func TestPipeListenerBurstOfClientsGetsThrough(t *testing.T) {
	story(t)
	const clients = 200
	l := listen(t, nameAddr(t))
	served := begin(func() error {
		for range clients {
			c, err := l.AcceptConn()
			if err != nil {
				return err
			}
			time.Sleep(time.Millisecond) // is slow, whatever the machine
			if _, err := io.Copy(c, c); err != nil {
				return err
			}
			c.Close()
		}
		return nil
	})
	var busy sync.WaitGroup
	for i := range clients {
		busy.Go(func() {
			c, err := ipc.Dialer{Timeout: soon}.Dial(l.Addr().(ipc.Addr))
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			defer c.Close()
			word := "client " + strconv.Itoa(i)
			echo := make([]byte, len(word))
			if _, err := io.WriteString(c, word); err != nil {
				t.Error(err)
			} else if _, err := io.ReadFull(c, echo); err != nil || string(echo) != word {
				t.Errorf("%q comes back as %q, %v", word, echo, err)
			}
		})
	}
	busy.Wait()
	if !t.Failed() {
		must(t, <-served)
	}
}

func TestPipeListenerClientsThatVanishNeverSurface(t *testing.T) {
	for _, d := range []ipc.Direction{ipc.Duplex, ipc.ClientToServer, ipc.ServerToClient} {
		t.Run(d.String(), func(t *testing.T) {
			story(t)
			l, path := listenPipe(t, ipc.PipeConfig{Direction: d, Backlog: 2})
			for round := range 20 {
				// As many as have room, all gone before Accept.
				for range 2 {
					must(t, dialPipe(t, path, ipc.PipeDialer{Direction: d}).Close())
				}
				server := begin(func() error {
					c, err := l.AcceptPipe()
					if err != nil {
						return err
					}
					defer c.Close()
					if d == ipc.ServerToClient {
						_, err = io.WriteString(c, "for you")
					} else {
						p := make([]byte, 7)
						_, err = io.ReadFull(c, p)
					}
					return err
				})
				client := dialPipe(t, path, ipc.PipeDialer{Direction: d})
				if d == ipc.ServerToClient {
					expect(t, client, "for you")
				} else {
					send(t, client, "from me")
				}
				if err := <-server; err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				must(t, client.Close())
			}
		})
	}
}

func TestPipeListenerHearsAClientThatWroteAndLeft(t *testing.T) {
	story(t)
	l, path := listenPipe(t, ipc.PipeConfig{Messages: true})
	for _, words := range [][]string{{"last words"}, {""}, {"", "one", ""}} {
		client := dialPipe(t, path, ipc.PipeDialer{Messages: true})
		for _, w := range words {
			must(t, client.WriteMessage([]byte(w)))
		}
		must(t, client.Close())
		server := acceptPipe(t, l)
		for _, w := range words {
			expectMessage(t, server, w)
		}
		if n, more, err := server.ReadMessage(make([]byte, 9)); n != 0 || more || err != io.EOF {
			t.Fatalf("%d, %v, %v after the last message, want io.EOF", n, more, err)
		}
	}
}

var rounds = flag.Int("ipc.rounds", 5000, "how often Close races with Dial")

func TestPipeListenerCloseRacesWithDial(t *testing.T) {
	story(t)
	n := *rounds
	if testing.Short() {
		n = min(n, 200)
	}
	before := allHandles()
	end := time.Now().Add(patience * 3 / 4) // a slow machine makes fewer rounds
	for round := range n {
		if time.Now().After(end) {
			t.Logf("%d rounds", round)
			break
		}
		addr := nameAddr(t)
		l := listen(t, addr)
		accepted := begin(func() error {
			c, err := l.AcceptConn()
			if err == nil {
				c.Close()
				_, err = l.AcceptConn()
			}
			return err
		})
		ctx, cancel := context.WithCancel(background())
		dialed := begin(func() error {
			c, err := ipc.Dialer{}.DialContext(ctx, addr)
			if err == nil {
				io.WriteString(c, "x")
				c.Close()
			}
			return err
		})
		if round%2 == 1 {
			runtime.Gosched()
		}
		must(t, l.Close())
		matches(t, <-accepted, net.ErrClosed)
		cancel()
		if err := <-dialed; err != nil && !errors.Is(err, ipc.ErrNoListener) && !errors.Is(err, context.Canceled) && !errors.Is(err, ipc.ErrUntrusted) {
			t.Fatal(err)
		}
	}
	// Handles of threads of the runtime come and go; a leak shows many times.
	eventually(t, "no handles are left", func() bool { return allHandles() < before+200 })
}

func TestPipeListenerCloseEndsAcceptsAndAllOperations(t *testing.T) {
	story(t)
	for range 20 {
		l := listen(t, nameAddr(t))
		var ends [8]<-chan error
		for i := range ends {
			ends[i] = begin(func() error { _, err := l.Accept(); return err })
		}
		awaitParked(t, "(*Listener).AcceptConn", len(ends))
		must(t, l.Close())
		for _, end := range ends {
			matches(t, <-end, net.ErrClosed)
		}
		matches(t, l.Close(), net.ErrClosed)
		matches(t, l.SetDeadline(time.Time{}), net.ErrClosed)
		runtime.GC() // the kernel writes nowhere any more
	}
}

func TestPipeListenerNameIsNeverFree(t *testing.T) {
	for _, limit := range []int{0, 1, 2} {
		t.Run(fmt.Sprint("MaxInstances ", limit), func(t *testing.T) {
			story(t)
			l, path := listenPipe(t, ipc.PipeConfig{MaxInstances: limit, Backlog: 1})
			var attempts atomic.Int64
			squatterEnds := repeatedly(func() error {
				s, err := ipc.Listen(ipc.Path(path))
				if err == nil {
					s.Close()
					return errors.New("the name was free")
				} else if !errors.Is(err, ipc.ErrAddrInUse) {
					return err
				}
				attempts.Add(1)
				return nil
			})
			for round := 0; round < 100 || attempts.Load() < 100; round++ {
				client := dialPipe(t, path, ipc.PipeDialer{})
				server := acceptPipe(t, l)
				first, second := server, client
				if round%2 == 0 {
					first, second = client, server
				}
				must(t, first.Close())
				must(t, second.Close())
			}
			must(t, squatterEnds())
		})
	}
}

func TestPipeListenerNameThatIsTakenAndLeftIsInUseOrFree(t *testing.T) {
	story(t)
	addr := nameAddr(t)
	var busy sync.WaitGroup
	for range 3 {
		busy.Go(func() {
			for range 100 {
				l, err := ipc.Listen(addr)
				if err == nil {
					err = l.Close()
				}
				if err != nil && !errors.Is(err, ipc.ErrAddrInUse) {
					t.Error(err)
					return
				}
			}
		})
	}
	busy.Wait()
}

func TestPipeListenerThatWasDroppedIsClosed(t *testing.T) {
	story(t)
	addr := nameAddr(t)
	func() {
		_, err := ipc.Listen(addr)
		must(t, err)
	}()
	eventually(t, "the name is free", func() bool {
		runtime.GC()
		l, err := ipc.Listen(addr)
		if err == nil {
			l.Close()
		}
		return err == nil
	})
}

func TestPipeConnThatWasDroppedIsClosed(t *testing.T) {
	story(t)
	for _, used := range []bool{false, true} {
		a, b, err := ipc.Pair()
		must(t, err)
		if used {
			send(t, a, "x")
			expect(t, b, "x")
		}
		a = nil
		eof := beginRead(b)
		eventually(t, "the other end reads io.EOF", func() bool {
			runtime.GC()
			select {
			case err := <-eof:
				return err == io.EOF
			default:
				return false
			}
		})
		must(t, b.Close())
	}
}

// ---------------------------------------------------------------------------
// Options of a pipe

func TestPipeConfigMaxInstancesMakesClientsWait(t *testing.T) {
	for _, limit := range []int{1, 3} {
		t.Run(strconv.Itoa(limit), func(t *testing.T) {
			story(t)
			l, path := listenPipe(t, ipc.PipeConfig{MaxInstances: limit})
			for range 5 {
				var clients, servers []*ipc.PipeConn
				for range limit {
					clients = append(clients, dialPipe(t, path, ipc.PipeDialer{}))
					servers = append(servers, acceptPipe(t, l))
				}
				_, err := tryDial(path, ipc.PipeDialer{})
				timedOut(t, err)
				must(t, l.SetDeadline(time.Now().Add(brief)))
				_, err = l.Accept()
				timedOut(t, err)
				must(t, l.SetDeadline(time.Time{}))

				// Accept waits for the place that a Close gives back.
				next := begin(func() error {
					c, err := l.AcceptPipe()
					if err != nil {
						return err
					}
					defer c.Close()
					_, err = io.WriteString(c, "you are next")
					return err
				})
				awaitParked(t, "(*PipeListener).AcceptPipe", 1)
				send(t, servers[0], "goodbye")
				must(t, servers[0].Close())
				client := dialPipe(t, path, ipc.PipeDialer{})
				must(t, <-next)
				expect(t, client, "you are next")
				expectEOF(t, client)

				// Close did not wait, and discarded nothing.
				expect(t, clients[0], "goodbye")
				expectEOF(t, clients[0])
				for i := range clients {
					must(t, clients[i].Close())
					servers[i].Close()
				}
				must(t, client.Close())
			}
		})
	}
}

func TestPipeConnsOutliveTheListenerOfALimitedPipe(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{MaxInstances: 1})
	talk(t, client, server)
	must(t, server.Close())
	expectEOF(t, client)
}

func TestPipeConfigDirections(t *testing.T) {
	for _, messages := range []bool{false, true} {
		for _, d := range []ipc.Direction{ipc.Duplex, ipc.ClientToServer, ipc.ServerToClient} {
			t.Run(fmt.Sprintf("%v messages %v", d, messages), func(t *testing.T) {
				story(t)
				client, server := connectPipe(t, ipc.PipeConfig{Direction: d, Messages: messages})
				carries(t, client, server, d != ipc.ServerToClient)
				carries(t, server, client, d != ipc.ClientToServer)
				if _, err := client.Peer(); err != nil {
					t.Error(err)
				}
				if _, err := server.Peer(); err != nil {
					t.Error(err)
				}
				for _, end := range []*ipc.PipeConn{client, server} {
					if sd, err := end.SecurityDescriptor(); err != nil || sd.Owner() == "" {
						t.Errorf("security descriptor %v, %v", sd, err)
					}
				}
				must(t, client.Close())
				must(t, server.Close())
			})
		}
	}
}

// carries checks whether data goes from w to r, and that it is refused where it
// cannot.
func carries(t *testing.T, w, r *ipc.PipeConn, can bool) {
	t.Helper()
	if can {
		send(t, w, "data")
		expect(t, r, "data")
		return
	}
	_, err := w.Write([]byte("data"))
	matches(t, err, errors.ErrUnsupported)
	_, err = r.Read(make([]byte, 4))
	matches(t, err, errors.ErrUnsupported)
	_, _, err = r.PeekMessage(nil)
	matches(t, err, errors.ErrUnsupported)
	must(t, w.Flush(background())) // has nothing to do
}

func TestDialPipeInTheWrongDirectionIsRefused(t *testing.T) {
	onWine(t, "looks at generic rights alone, which would include the one to make instances")
	story(t)
	for _, d := range []ipc.Direction{ipc.ClientToServer, ipc.ServerToClient} {
		_, path := listenPipe(t, ipc.PipeConfig{Direction: d})
		for _, wrong := range []ipc.Direction{ipc.Duplex, ipc.ClientToServer, ipc.ServerToClient} {
			if wrong == d {
				continue
			}
			_, err := ipc.DialPipe(background(), path, ipc.PipeDialer{Direction: wrong})
			matches(t, err, os.ErrPermission)
		}
	}
}

func TestPipeConfigByteStreamRefusesMessages(t *testing.T) {
	story(t)
	l, path := listenPipe(t, byteType)
	if c, err := ipc.DialPipe(background(), path, ipc.PipeDialer{Messages: true}); err == nil {
		c.Close()
		t.Error("a pipe of bytes was opened for messages")
	}
	client, server := dialPipe(t, path, ipc.PipeDialer{}), acceptPipe(t, l)
	_, _, err := server.ReadMessage(make([]byte, 9))
	matches(t, err, errors.ErrUnsupported)
	matches(t, client.WriteMessage([]byte("x")), errors.ErrUnsupported)
	_, err = client.Transact(background(), []byte("x"), make([]byte, 9))
	matches(t, err, errors.ErrUnsupported)
}

func TestPipeConfigBuffersAndDefaultWait(t *testing.T) {
	story(t)
	const wait = 100 * time.Millisecond
	l, path := listenPipe(t, ipc.PipeConfig{ReadBuffer: 12 << 10, WriteBuffer: 20 << 10, DefaultWait: wait, MaxInstances: 1})
	client, server := dialPipe(t, path, ipc.PipeDialer{}), acceptPipe(t, l)
	control(t, server, func(h uintptr) {
		var flags, out, in, limit uint32
		r, _, err := getNamedPipeInfo.Call(h, uintptr(unsafe.Pointer(&flags)), uintptr(unsafe.Pointer(&out)),
			uintptr(unsafe.Pointer(&in)), uintptr(unsafe.Pointer(&limit)))
		if r == 0 {
			t.Fatal(err)
		}
		if in != 12<<10 || out != 20<<10 {
			t.Errorf("the buffers are %d and %d bytes", in, out)
		}
	})
	// A write that fits the buffer does not wait for its reader.
	must(t, client.SetWriteDeadline(time.Now().Add(soon)))
	send(t, client, string(pattern(12<<10)))

	p, err := syscall.UTF16PtrFromString(path)
	must(t, err)
	const useDefault, semTimeout = 0, syscall.Errno(121)
	start := time.Now()
	r, _, err := waitNamedPipe.Call(uintptr(unsafe.Pointer(p)), useDefault)
	if waited := time.Since(start); r != 0 || err != semTimeout || waited < wait/2 {
		t.Errorf("WaitNamedPipe: %d, %v, after %v", r, err, waited)
	}
}

func TestPipeConfigInheritableAndWriteThroughReachTheHandle(t *testing.T) {
	story(t)
	for _, on := range []bool{false, true} {
		l, path := listenPipe(t, ipc.PipeConfig{Inheritable: on, WriteThrough: on, AcceptRemote: on, DefaultWait: -1})
		client := dialPipe(t, path, ipc.PipeDialer{})
		server := acceptPipe(t, l)
		talk(t, client, server)
		for _, c := range []syscall.Conn{l, server} {
			control(t, c, func(h uintptr) {
				var flags uint32
				r, _, err := getHandleInformation.Call(h, uintptr(unsafe.Pointer(&flags)))
				if r == 0 {
					t.Fatal(err)
				}
				if (flags&syscall.HANDLE_FLAG_INHERIT != 0) != on {
					t.Errorf("Inheritable %v: flags %#x", on, flags)
				}
				const fileModeInformation, fileWriteThrough = 16, 2
				var status [2]uintptr
				var mode uint32
				ntQueryInformation.Call(h, uintptr(unsafe.Pointer(&status)), uintptr(unsafe.Pointer(&mode)), 4, fileModeInformation)
				if (mode&fileWriteThrough != 0) != on {
					t.Errorf("WriteThrough %v: mode %#x", on, mode)
				}
			})
		}
		control(t, client, func(h uintptr) {
			var flags uint32
			getHandleInformation.Call(h, uintptr(unsafe.Pointer(&flags)))
			if flags&syscall.HANDLE_FLAG_INHERIT != 0 {
				t.Error("the client's handle is inheritable")
			}
		})
	}
}

func TestPipeConfigThatIsBadIsRefused(t *testing.T) {
	for _, c := range []ipc.PipeConfig{
		{Direction: 3}, {Access: 2}, {Backlog: -1}, {MaxInstances: -1}, {MaxInstances: 255}, {ReadBuffer: -1}, {WriteBuffer: -1},
	} {
		if l, err := ipc.ListenPipe(pipePath(), c); err == nil {
			l.Close()
			t.Errorf("%+v was taken", c)
		}
	}
	_, err := ipc.DialPipe(background(), pipePath(), ipc.PipeDialer{Direction: 3})
	if err == nil || errors.Is(err, ipc.ErrNoListener) {
		t.Errorf("direction 3: %v", err)
	}
	_, err = ipc.DialPipe(background(), pipePath(), ipc.PipeDialer{Impersonation: 4})
	if err == nil || errors.Is(err, ipc.ErrNoListener) {
		t.Errorf("impersonation level 4: %v", err)
	}
	for _, s := range []fmt.Stringer{ipc.Direction(3), ipc.ImpersonationLevel(4)} {
		if !strings.Contains(s.String(), "(") {
			t.Errorf("%v has a name", s)
		}
	}
}

func TestPipeListenerIsANetListener(t *testing.T) {
	story(t)
	l, path := listenPipe(t, ipc.PipeConfig{Check: func(p ipc.Peer) error {
		if pid, ok := p.PID(); !ok || pid != os.Getpid() {
			return errors.New("a stranger")
		}
		return nil
	}})
	var listener net.Listener = l
	if a := listener.Addr(); a.Network() != "pipe" || a.String() != path {
		t.Errorf("listens at %v %v", a.Network(), a)
	}
	client := dialPipe(t, path, ipc.PipeDialer{Wait: true, Check: func(ipc.Peer) error { return nil }})
	conn, err := listener.Accept()
	must(t, err)
	server := conn.(*ipc.PipeConn)
	talk(t, client, server)
	must(t, server.Close())
	must(t, client.Close())
	must(t, l.Close())
	for range l.Conns() {
		t.Error("a client after Close")
	}
	_, err = tryDial(path, ipc.PipeDialer{})
	matches(t, err, ipc.ErrNoListener, syscall.ERROR_FILE_NOT_FOUND)
	var oe *net.OpError
	var se *os.SyscallError
	if !errors.As(err, &oe) || !errors.As(err, &se) || oe.Addr.String() != path || se.Syscall != "CreateFile" {
		t.Errorf("the error is %#v", err)
	}
}

// ---------------------------------------------------------------------------
// Messages

func TestPipeMessagesKeepTheirBoundaries(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{Messages: true})
	for _, ends := range [][2]*ipc.PipeConn{{client, server}, {server, client}} {
		from, to := ends[0], ends[1]
		for _, m := range []string{"one", "", "two", "", ""} {
			must(t, from.WriteMessage([]byte(m)))
		}
		for _, m := range []string{"one", "", "two", "", ""} {
			expectMessage(t, to, m)
		}
		// One that comes while ReadMessage waits.
		for _, m := range []string{"late", ""} {
			got := begin(func() error {
				p := make([]byte, 9)
				n, more, err := to.ReadMessage(p)
				if err == nil && (more || string(p[:n]) != m) {
					err = fmt.Errorf("got %q, %v", p[:n], more)
				}
				return err
			})
			awaitParked(t, "(*PipeConn).ReadMessage", 1)
			must(t, from.WriteMessage([]byte(m)))
			must(t, <-got)
		}
	}
	_, _, err := server.ReadMessage(nil)
	if err == nil || errors.Is(err, io.EOF) {
		t.Errorf("ReadMessage without a buffer: %v", err)
	}
}

func TestPipeMessageThatIsLongComesInParts(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{Messages: true})
	long := string(pattern(300 << 10)) // longer than the buffers of the pipe
	sent := begin(func() error { return client.WriteMessage([]byte(long)) })
	var got []byte
	p := make([]byte, 1000)
	for more := true; more; {
		var n int
		var err error
		n, more, err = server.ReadMessage(p)
		must(t, err)
		got = append(got, p[:n]...)
	}
	must(t, <-sent)
	if string(got) != long {
		t.Errorf("%d bytes came, or others than were sent", len(got))
	}
}

func TestPipeMessagesAreReadAsAStreamWhenAskedTo(t *testing.T) {
	story(t)
	l, path := listenPipe(t, ipc.PipeConfig{Messages: true})
	client, server := dialPipe(t, path, ipc.PipeDialer{}), acceptPipe(t, l)
	for _, m := range []string{"", "one ", "", "two"} {
		must(t, server.WriteMessage([]byte(m)))
	}
	expect(t, client, "one two")
	send(t, client, "three ")
	send(t, client, "four")
	expect(t, server, "three four")
	// An empty message is not the end of the stream.
	read := begin(func() error {
		p := make([]byte, 4)
		_, err := io.ReadFull(server, p)
		return err
	})
	dup, err := client.File()
	must(t, err)
	defer dup.Close()
	_, err = dup.Write(nil)
	must(t, err)
	send(t, client, "more")
	must(t, <-read)
}

func TestMsgConnOverPipes(t *testing.T) {
	story(t)
	a, b, err := ipc.MsgPair()
	must(t, err)
	defer a.Close()
	defer b.Close()
	for range 2 {
		must(t, a.Send([]byte("hello")))
		must(t, a.Send(nil))
		must(t, a.Send(pattern(1000)))
		must(t, a.Send([]byte("there")))
		p := make([]byte, 100)
		if n, err := b.Recv(p); err != nil || string(p[:n]) != "hello" {
			t.Errorf("%q, %v", p[:n], err)
		}
		if n, err := b.Recv(p); err != nil || n != 0 {
			t.Errorf("%q, %v, want an empty message", p[:n], err)
		}
		n, err := b.Recv(p)
		matches(t, err, ipc.ErrMsgTooLong)
		if n != len(p) || string(p) != string(pattern(1000)[:100]) {
			t.Errorf("%d bytes of the long message", n)
		}
		if n, err := b.Recv(p); err != nil || string(p[:n]) != "there" {
			t.Errorf("%q, %v", p[:n], err)
		}
		a, b = b, a
	}
	for _, m := range []string{"x", "", string(pattern(100000)), "end"} {
		sent := begin(func() error { return a.Send([]byte(m)) })
		p, err := b.RecvAppend([]byte("> "))
		if err != nil || string(p) != "> "+m {
			t.Fatalf("%d bytes, %v", len(p), err)
		}
		must(t, <-sent)
	}
	must(t, a.Send([]byte("x")))
	_, err = b.Recv(nil)
	matches(t, err, ipc.ErrMsgTooLong)
	must(t, a.Send(nil))
	_, err = b.Recv(nil)
	must(t, err)
	must(t, a.Send(nil))
	must(t, a.Close())
	if n, err := b.Recv(nil); n != 0 || err != nil {
		t.Errorf("the last, empty message: %d, %v", n, err)
	}
	if n, err := b.Recv(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v, want io.EOF", n, err)
	}
	matches(t, b.Send([]byte("x")), syscall.EPIPE)
}

func TestPipeMessagesAllocateNothing(t *testing.T) {
	story(t)
	a, b := msgPair(t)
	p, q := make([]byte, 64), make([]byte, 64)
	allocatesNothing(t, "a message and an empty one back", func() error {
		if err := a.Send(p); err != nil {
			return err
		}
		if _, err := b.Recv(q); err != nil {
			return err
		}
		if err := b.Send(nil); err != nil {
			return err
		}
		_, err := a.RecvAppend(q[:0])
		return err
	})
}

// A message that is too long costs its receiver no memory, however long its sender says it is.
func TestMsgConnRecvMakesNoRoom(t *testing.T) {
	story(t)
	a, b := msgPair(t)
	const long = 32 << 20
	message, p := make([]byte, long), make([]byte, 1<<10)
	for _, first := range []string{"the message", "the receiver"} { // is there first
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		send := func() error { return a.Send(message) }
		receive := func() error { _, err := b.Recv(p); return err }
		var sent, received <-chan error
		if first == "the message" {
			sent = begin(send)
			awaitParked(t, "(*MsgConn).Send", 1)
			received = begin(receive)
		} else {
			received = begin(receive)
			awaitParked(t, "(*MsgConn).Recv", 1)
			sent = begin(send)
		}
		matches(t, <-received, ipc.ErrMsgTooLong)
		must(t, <-sent)
		runtime.ReadMemStats(&after)
		if made := after.TotalAlloc - before.TotalAlloc; made > long/4 {
			t.Errorf("%s is there first: %d bytes were made", first, made)
		}
	}
}

func TestPipeConnPeekMessage(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{Messages: true})
	if n, size, err := server.PeekMessage(make([]byte, 9)); n != 0 || size != 0 || err != nil {
		t.Errorf("nothing there: %d, %d, %v", n, size, err)
	}
	must(t, client.WriteMessage([]byte("a message")))
	must(t, client.WriteMessage([]byte("another")))
	p := make([]byte, 4)
	for range 2 {
		if n, size, err := server.PeekMessage(p); n != 4 || size != 9 || err != nil || string(p) != "a me" {
			t.Errorf("%q, %d, %v", p[:n], size, err)
		}
	}
	if n, size, err := server.PeekMessage(nil); n != 0 || size != 9 || err != nil {
		t.Errorf("without a buffer: %d, %d, %v", n, size, err)
	}
	expectMessage(t, server, "a message")
	expectMessage(t, server, "another")
	must(t, client.Close())
	_, _, err := server.PeekMessage(p)
	if err != io.EOF {
		t.Errorf("%v after the end, want io.EOF", err)
	}

	client, server = connectPipe(t, byteType)
	send(t, client, "one")
	send(t, client, "two")
	if n, size, err := server.PeekMessage(p); n != 4 || size != 6 || err != nil || string(p) != "onet" {
		t.Errorf("of a stream: %q, %d, %v", p[:n], size, err)
	}
}

// ---------------------------------------------------------------------------
// The two ways to wait

const asItIs time.Duration = 0

// overEachWait tells a story over ends that park at once, that wait as they do by
// default, and that wait long before they park.
func overEachWait(t *testing.T, tell func(t *testing.T, spin time.Duration)) {
	for _, spin := range []time.Duration{-1, asItIs, patience} {
		t.Run(spin.String(), func(t *testing.T) { story(t); tell(t, spin) })
	}
}

func TestPipeStreamsAreTheSameHoweverReadsWait(t *testing.T) {
	overEachWait(t, func(t *testing.T, spin time.Duration) {
		a, b := pair(t)
		limitSpin(spin, a, b)
		echoed := begin(func() error { _, err := io.Copy(b, b); return err })
		sent := begin(func() error { _, err := a.Write(pattern(1 << 20)); return err })
		expect(t, a, string(pattern(1<<20)))
		must(t, <-sent)

		must(t, a.SetReadDeadline(time.Now().Add(brief)))
		_, err := a.Read(make([]byte, 1))
		timedOut(t, err)
		must(t, a.SetReadDeadline(time.Time{}))
		read := beginRead(a)
		awaitParked(t, "(*Conn).Read", 2)
		must(t, a.SetReadDeadline(time.Now()))
		timedOut(t, <-read)
		must(t, a.SetReadDeadline(time.Time{}))
		read = beginRead(a)
		awaitParked(t, "(*Conn).Read", 2)
		must(t, a.Close())
		matches(t, <-read, net.ErrClosed)
		must(t, <-echoed)
	})
}

func TestPipeMessagesAreTheSameHoweverReadsWait(t *testing.T) {
	overEachWait(t, func(t *testing.T, spin time.Duration) {
		a, b, err := ipc.MsgPair()
		must(t, err)
		defer a.Close()
		defer b.Close()
		for _, end := range []*ipc.MsgConn{a, b} {
			limitSpin(spin, end)
			must(t, end.SetReadDeadline(time.Now().Add(brief)))
			_, err = end.Recv(nil)
			timedOut(t, err)
			must(t, end.SetReadDeadline(time.Time{}))
		}
		p := make([]byte, 9)
		for _, m := range []string{"one", "", "two"} {
			received := begin(func() error {
				n, err := b.Recv(p)
				if err == nil && string(p[:n]) != m {
					err = fmt.Errorf("%q, want %q", p[:n], m)
				}
				return err
			})
			awaitParked(t, "(*MsgConn).Recv", 1)
			must(t, a.Send([]byte(m)))
			must(t, <-received)
		}
		must(t, a.Send([]byte("a long message")))
		_, err = b.Recv(p)
		matches(t, err, ipc.ErrMsgTooLong)
		must(t, a.Send(nil)) // is there still when its sender is gone
		must(t, a.Close())
		if n, err := b.Recv(p); n != 0 || err != nil {
			t.Errorf("the last, empty message: %d, %v", n, err)
		}
		if _, err := b.Recv(p); err != io.EOF {
			t.Errorf("%v, want io.EOF", err)
		}
	})
}

func TestPipeConnDeadlineDoesNotTearAMessage(t *testing.T) {
	story(t)
	const rounds = 300
	a, b := msgPair(t)
	sent := begin(func() error {
		for i := range rounds {
			if err := a.Send(pattern(1000 * (1 + i%50))); err != nil {
				return err
			}
		}
		return a.Close()
	})
	timeouts, short := 0, make([]byte, 700)
	for i := 0; ; {
		must(t, b.SetReadDeadline(time.Now().Add(time.Duration(timeouts%9)*20*time.Microsecond)))
		var n int
		var msg []byte
		var err error
		if i%2 == 0 {
			msg, err = b.RecvAppend(nil)
			n = len(msg)
		} else if n, err = b.Recv(short); errors.Is(err, ipc.ErrMsgTooLong) {
			err = nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			timeouts++
			continue
		}
		if err == io.EOF && i == rounds {
			break
		}
		must(t, err)
		want := 1000 * (1 + i%50)
		if i%2 != 0 {
			want, msg = len(short), short
		}
		if n != want || !bytes.Equal(msg, pattern(want)) {
			t.Fatalf("message %d arrives with %d bytes, want %d", i, n, want)
		}
		i++
	}
	must(t, <-sent)
	if timeouts == 0 {
		t.Error("no receive timed out: nothing was tested")
	}
}

func TestPipeConnWaitsHoldFewThreads(t *testing.T) {
	story(t)
	const many, few = 200, 100
	before := threads()
	var busy sync.WaitGroup
	var ends [many]*ipc.Conn
	for i := range ends {
		a, b := pair(t)
		ends[i] = b
		busy.Go(func() {
			got := make([]byte, 300<<10)
			if _, err := io.ReadFull(a, got); err != nil || string(got) != string(pattern(len(got))) {
				t.Errorf("read %v", err)
			}
		})
	}
	awaitParked(t, "(*Conn).Read", many)
	if n := threads() - before; n > few {
		t.Errorf("%d reads that wait take %d threads", many, n)
	}
	for _, b := range ends {
		send(t, b, string(pattern(300<<10)))
	}
	busy.Wait()

	before = threads()
	for i := range ends {
		busy.Go(func() {
			if _, err := ends[i].Write(make([]byte, 300<<10)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a write that waits ends with %v", err)
			}
		})
	}
	awaitParked(t, "(*Conn).Write", many)
	if n := threads() - before; n > few && !underRace() {
		t.Errorf("%d writes that wait take %d threads", many, n)
	}
	for _, b := range ends {
		must(t, b.Close())
	}
	busy.Wait()
}

// ---------------------------------------------------------------------------
// Transact, Flush, Disconnect

func TestTransact(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{Messages: true})
	reply := make([]byte, 8)
	for _, c := range []struct {
		answer string
		err    error
	}{{"fine", nil}, {"12345678", nil}, {"123456789", ipc.ErrMsgTooLong}, {"", nil}, {"again", nil}} {
		answered := begin(func() error {
			p := make([]byte, 9)
			n, _, err := server.ReadMessage(p)
			if err == nil && string(p[:n]) != "question" {
				err = fmt.Errorf("the question is %q", p[:n])
			}
			if err == nil {
				err = server.WriteMessage([]byte(c.answer))
			}
			return err
		})
		n, err := client.Transact(background(), []byte("question"), reply)
		if c.err != nil {
			matches(t, err, c.err)
		} else {
			must(t, err)
		}
		if want := c.answer[:min(len(c.answer), len(reply))]; string(reply[:n]) != want {
			t.Errorf("the reply is %q, want %q", reply[:n], want)
		}
		must(t, <-answered)
	}

	// Nobody answers.
	ctx, cancel := context.WithCancel(background())
	done := begin(func() error { _, err := client.Transact(ctx, []byte("question"), reply); return err })
	awaitParked(t, "(*PipeConn).Transact", 1)
	cancel()
	matches(t, <-done, context.Canceled)
	ctx, cancel = context.WithTimeout(background(), brief)
	defer cancel()
	_, err := client.Transact(ctx, []byte("question"), reply)
	timedOut(t, err)
	done = begin(func() error { _, err := client.Transact(background(), []byte("question"), reply); return err })
	awaitParked(t, "(*PipeConn).Transact", 1)
	must(t, client.Close())
	matches(t, <-done, net.ErrClosed)

	client, server = connectPipe(t, ipc.PipeConfig{Messages: true})
	must(t, server.Close())
	_, err = client.Transact(background(), []byte("question"), reply)
	matches(t, err, syscall.EPIPE)
}

func TestFlushWaitsForTheReader(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{})
	must(t, client.Flush(background())) // nothing was written
	send(t, client, "unread")
	flushed := begin(func() error { return client.Flush(background()) })
	awaitParked(t, "(*PipeConn).Flush", 1)
	select {
	case err := <-flushed:
		t.Fatalf("Flush returns %v before anything was read", err)
	default:
	}
	expect(t, server, "unread")
	must(t, <-flushed)

	send(t, client, "lost")
	flushed = begin(func() error { return client.Flush(background()) })
	awaitParked(t, "(*PipeConn).Flush", 1)
	must(t, server.Close())
	must(t, <-flushed)
	must(t, client.Flush(background()))
}

func TestFlushCanBeCancelled(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{})
	send(t, client, "unread")
	// A read that waits is not disturbed.
	read := begin(func() error {
		p := make([]byte, 4)
		_, err := io.ReadFull(client, p)
		if err == nil && string(p) != "news" {
			err = fmt.Errorf("read %q", p)
		}
		return err
	})
	awaitParked(t, "(*Conn).Read", 1)
	for range 5 {
		ctx, cancel := context.WithCancel(background())
		flushed := begin(func() error { return client.Flush(ctx) })
		awaitParked(t, "(*PipeConn).Flush", 1)
		cancel()
		matches(t, <-flushed, context.Canceled)
		matches(t, client.Flush(ctx), context.Canceled)
	}
	ctx, cancel := context.WithTimeout(background(), brief)
	defer cancel()
	timedOut(t, client.Flush(ctx))
	send(t, server, "news")
	must(t, <-read)

	flushed := begin(func() error { return client.Flush(background()) })
	awaitParked(t, "(*PipeConn).Flush", 1)
	must(t, client.Close())
	matches(t, <-flushed, net.ErrClosed)
	matches(t, client.Flush(background()), net.ErrClosed)
	expect(t, server, "unread")
	expectEOF(t, server)
}

func TestPipeConnDisconnectThrowsTheClientOut(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{})
	matches(t, client.Disconnect(), errors.ErrUnsupported)
	send(t, server, "unread")
	read := beginRead(server)
	awaitParked(t, "(*Conn).Read", 1)
	must(t, server.Disconnect())
	if err := <-read; err != io.EOF {
		t.Errorf("the server's read that waited: %v, want io.EOF", err)
	}
	expectEOF(t, client)
	expectEOF(t, server)
	_, err := client.Write([]byte("x"))
	matches(t, err, syscall.EPIPE)
	_, err = server.Write([]byte("x"))
	matches(t, err, syscall.EPIPE)
	must(t, server.Close())
	matches(t, server.Disconnect(), net.ErrClosed)
}

// ---------------------------------------------------------------------------
// Handles

func TestFileConnIsAnotherHandleOfTheSameEnd(t *testing.T) {
	story(t)
	a, b := pair(t)
	f, err := a.File()
	must(t, err)
	c, err := ipc.FileConn(f)
	must(t, err)
	must(t, f.Close())
	talk(t, c, b)
	talk(t, a, b)
	// Close of the duplicate ends its own reads and not those of a.
	read := begin(func() error {
		p := make([]byte, 4)
		_, err := io.ReadFull(a, p)
		return err
	})
	awaitParked(t, "(*Conn).Read", 1)
	must(t, c.Close())
	send(t, b, "done")
	must(t, <-read)
}

func TestFileConnRefusesHandlesThatAreNoConns(t *testing.T) {
	story(t)
	r, w, err := os.Pipe() // not overlapped
	must(t, err)
	defer r.Close()
	defer w.Close()
	nul, err := os.Open(os.DevNull)
	must(t, err)
	defer nul.Close()
	for _, f := range []*os.File{r, w, nul} {
		_, err := ipc.FileConn(f)
		matches(t, err, errors.ErrUnsupported)
	}
	client, _ := connectPipe(t, ipc.PipeConfig{Direction: ipc.ClientToServer})
	f, err := client.File()
	must(t, err)
	defer f.Close()
	_, err = ipc.FileConn(f)
	matches(t, err, errors.ErrUnsupported)
	_, err = ipc.FileReader(f)
	matches(t, err, errors.ErrUnsupported)
	wr, err := ipc.FileWriter(f)
	must(t, err)
	must(t, wr.Close())
}

func TestConnSyscallConnNeverWaits(t *testing.T) {
	story(t)
	a, b := pair(t)
	raw, err := a.SyscallConn()
	must(t, err)
	called := 0
	for _, call := range []func(func(uintptr) bool) error{raw.Read, raw.Write} {
		must(t, call(func(uintptr) bool { called++; return true }))
		matches(t, call(func(uintptr) bool { called++; return false }), errors.ErrUnsupported)
	}
	if called != 4 {
		t.Errorf("called %d times", called)
	}
	talk(t, a, b)
	must(t, a.Close())
	matches(t, raw.Control(func(uintptr) { t.Error("called") }), net.ErrClosed)
}

func TestInheritedHandleWorksInTheChild(t *testing.T) {
	story(t)
	mine, theirs := pair(t)
	program, err := os.Executable()
	must(t, err)
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), childRole+"=inherits")
	cmd.Stdin, err = os.Open(os.DevNull)
	must(t, err)
	defer cmd.Stdin.(*os.File).Close()
	cmd.Stderr = os.Stderr
	must(t, ipc.Inherit(cmd, "line", theirs))
	must(t, cmd.Start())
	must(t, theirs.Close())
	defer cmd.Process.Kill()
	send(t, mine, "echo")
	expect(t, mine, "echo")
	isProcess(t, peerOf(t, mine), os.Getpid()) // who opened it
	must(t, mine.Close())
	must(t, cmd.Wait())

	used, other := pair(t)
	talk(t, used, other)
	matches(t, ipc.Inherit(exec.Command(program), "line", used), errors.ErrUnsupported)
}

// childInherits echoes over the inherited connection, with a deadline: only a
// handle that belongs to this process's completion port has one.
func childInherits(*parent, []string) error {
	c := sure(ipc.InheritedConn("line"))
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if p, err := c.Peer(); err != nil {
		return err
	} else if pid, ok := p.PID(); !ok || pid != os.Getppid() {
		return fmt.Errorf("the peer is %v, and not the parent %d", p, os.Getppid())
	}
	_, err := io.Copy(c, c)
	return err
}

func TestShareHandleGivesAHandleToAProcess(t *testing.T) {
	story(t)
	c := startChild(t, "shared")
	c.mustSay("ready")
	const dupHandle = 0x40 // PROCESS_DUP_HANDLE
	process, err := syscall.OpenProcess(dupHandle, false, uint32(c.pid()))
	must(t, err)
	defer syscall.CloseHandle(process)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	var there syscall.Handle
	control(t, w, func(h uintptr) { there, err = ipc.ShareHandle(syscall.Handle(h), process) })
	must(t, err)
	must(t, w.Close())
	c.say(strconv.FormatUint(uint64(there), 10))
	expect(t, r, "hello from a child")
	c.end()
	_, err = ipc.ShareHandle(0, process)
	var oe *net.OpError
	if !errors.As(err, &oe) {
		t.Errorf("no handle: %v", err)
	}
}

func childIsShared(p *parent, _ []string) error {
	p.say("ready")
	h := sure(strconv.ParseUint(p.hear(), 10, 64))
	f := os.NewFile(uintptr(h), "shared")
	defer f.Close()
	_, err := io.WriteString(f, "hello from a child")
	return err
}

func TestUserAddrHasTheSID(t *testing.T) {
	story(t)
	addr, err := ipc.UserAddr("agent")
	if want := ipc.Name(`ipc\` + me(t) + `\agent`); addr != want || err != nil {
		t.Errorf("it is %v, %v; want %v", addr, err, want)
	}
}

// ---------------------------------------------------------------------------
// What ends a wait, and what a wait that ended early leaves behind

// stuckWrite waits in a write that nobody reads.
func stuckWrite(t *testing.T, c *ipc.PipeConn) <-chan error {
	t.Helper()
	done := begin(func() error { _, err := c.Write(make([]byte, 1<<20)); return err })
	awaitParked(t, "(*Conn).Write", 1)
	return done
}

// Each wait here is one for another operation of the same end, which nothing ends
// but Close. Its own deadline or context must end it.
func TestPipeConnLimitsEndWaitsForOtherOperations(t *testing.T) {
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
			timedOutOrTorn(t, <-second) // the first may have ended before its time has come
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

func TestMsgConnSendThatTimesOutLeavesNoPartOfAMessage(t *testing.T) {
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

func TestPipeMessageThatWasReadInPartIsTheLast(t *testing.T) {
	for what, messages := range map[string]bool{"Messages": true, "Stream": false} { // what the client reads
		t.Run(what, func(t *testing.T) {
			story(t)
			l, path := listenPipe(t, ipc.PipeConfig{Messages: true})
			client := dialPipe(t, path, ipc.PipeDialer{Messages: messages})
			server := acceptPipe(t, l)
			sending := begin(func() error { _, err := client.Write(pattern(1 << 20)); return err })
			n, more, err := server.ReadMessage(make([]byte, 512))
			if n != 512 || !more || err != nil {
				t.Fatalf("%d, %v, %v", n, more, err)
			}
			must(t, client.SetWriteDeadline(time.Now().Add(brief)))
			timedOut(t, <-sending)
			must(t, client.SetWriteDeadline(time.Time{}))
			for range 2 {
				if messages {
					matches(t, client.WriteMessage([]byte("next")), syscall.EPIPE)
				}
				_, err = client.Write([]byte("next"))
				matches(t, err, syscall.EPIPE)
				matches(t, client.SendFiles(textFile(t, "next")), syscall.EPIPE)
			}
			send(t, server, "the other way") // goes on
			expect(t, client, "the other way")
			must(t, client.Close())
			if n, _, err := server.ReadMessage(make([]byte, 512)); n != 0 || err != io.EOF {
				t.Errorf("%d, %v", n, err)
			}
		})
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
func TestPipeMessageThatOthersWithdrewIsTheLast(t *testing.T) {
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
func TestPipeReadAndFlushGoOnWhenOthersCancelThem(t *testing.T) {
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
func TestPipeTransactHoldsNothingWhileItWaits(t *testing.T) {
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
func TestConnCloseWithinACall(t *testing.T) {
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
func TestPipeMessageThatWasNotReadMayBeFollowed(t *testing.T) {
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
			ofMessages := messages || isWine() // see byteType
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
					if withdrawn && ofMessages && errors.Is(err, syscall.EPIPE) { // a part of the record was read
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

func TestPipeListenerClientsThatLeftMakeRoomWithoutAccept(t *testing.T) {
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

func TestListenerAcceptsHoldNoThread(t *testing.T) {
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
func TestPipeConnCloseLeavesOtherHandlesAlone(t *testing.T) {
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

// ---------------------------------------------------------------------------
// Zero values and types

func TestPipeZeroValueFails(t *testing.T) {
	everyMethodFails(t, new(ipc.PipeConn))
	everyMethodFails(t, new(ipc.PipeListener))
}

// TestPipeConnIsConn checks that a PipeConn has all methods of a Conn.
func TestPipeConnIsConn(t *testing.T) {
	conn, pipe := reflect.TypeFor[*ipc.Conn](), reflect.TypeFor[*ipc.PipeConn]()
	for i := range conn.NumMethod() {
		name := conn.Method(i).Name
		if _, ok := pipe.MethodByName(name); !ok && name != "Share" { // which takes a Conn over
			t.Errorf("%s is missing", name)
		}
	}
	for i := range pipe.Elem().NumField() {
		if pipe.Elem().Field(i).IsExported() {
			t.Errorf("the field %s can be changed", pipe.Elem().Field(i).Name)
		}
	}
	var _ net.Conn = (*ipc.PipeConn)(nil)
	var _ ipc.Inheritable = (*ipc.PipeConn)(nil)
}

// TestPipeDialerLimitsEnd waits for a pipe that nobody makes.
func TestPipeDialerLimitsEnd(t *testing.T) {
	path := `\\.\pipe\` + t.Name()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer time.AfterFunc(10*time.Second, cancel).Stop() // if nothing else ends the dials
	for _, d := range []ipc.PipeDialer{
		{Wait: true, Timeout: time.Millisecond},
		{Wait: true, Deadline: time.Now().Add(time.Millisecond)},
		{Deadline: time.Unix(1, 0)},
	} {
		if _, err := ipc.DialPipe(ctx, path, d); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%+v: %v", d, err)
		}
	}
}
