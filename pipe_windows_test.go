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
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["inherits"] = childInherits
	kit.Roles["shared"] = childIsShared
	kit.Roles["waits"] = func(p *kit.Parent, _ []string) error { p.Say("here"); p.Hear(); return nil }
}

// ---------------------------------------------------------------------------
// Addresses

func TestPipePathsHaveManySpellings(t *testing.T) {
	kit.Story(t)
	name := "Dir\\" + kit.Unique()
	l := kit.Listen(t, ipc.Name(name))
	for _, addr := range []ipc.Addr{
		ipc.Name(name),
		ipc.Name(strings.ToUpper(name)),
		ipc.Name(strings.ReplaceAll(name, `\`, "/")),
		ipc.Path(`\\.\pipe\` + name),
		ipc.Path(`\\.\PIPE\` + name),
		ipc.Path(`\\?\pipe\` + name),
		ipc.Path(`//./pipe/` + name),
	} {
		kit.Serves(t, l, addr)
		_, err := ipc.Listen(addr)
		kit.Matches(t, err, ipc.ErrAddrInUse)
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
	kit.Matches(t, err, errors.ErrUnsupported)
	if !strings.Contains(err.Error(), `\\.\pipe\`) {
		t.Errorf("%q does not say what to write", err)
	}
}

func TestPipeOfAnotherMachineCannotBeServed(t *testing.T) {
	_, err := ipc.Listen(ipc.Path(`\\server\pipe\x`))
	kit.Matches(t, err, errors.ErrUnsupported)
}

func TestPipePathsMayHave256Characters(t *testing.T) {
	kit.Story(t)
	name := kit.Unique()
	name += strings.Repeat("ü", 256-len(`\\.\pipe\`)-len(name))
	l := kit.Listen(t, ipc.Name(name))
	kit.Serves(t, l, ipc.Name(name))
	_, err := ipc.Listen(ipc.Name(name + "ü"))
	kit.Matches(t, err, ipc.ErrNameTooLong)
}

// ---------------------------------------------------------------------------
// Bursts and races

func TestPipeListenerBurstOfClientsGetsThrough(t *testing.T) {
	kit.Story(t)
	const clients = 200
	l := kit.Listen(t, kit.NameAddr(t))
	served := kit.Begin(func() error {
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
			c, err := ipc.Dialer{Timeout: kit.Soon}.Dial(l.Addr().(ipc.Addr))
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
		kit.Must(t, <-served)
	}
}

func TestPipeListenerClientsThatVanishNeverSurface(t *testing.T) {
	for _, d := range []ipc.Direction{ipc.Duplex, ipc.ClientToServer, ipc.ServerToClient} {
		t.Run(d.String(), func(t *testing.T) {
			kit.Story(t)
			l, path := kit.ListenPipe(t, ipc.PipeConfig{Direction: d, Backlog: 2})
			for round := range 20 {
				// As many as have room, all gone before Accept.
				for range 2 {
					kit.Must(t, kit.DialPipe(t, path, ipc.PipeDialer{Direction: d}).Close())
				}
				server := kit.Begin(func() error {
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
				client := kit.DialPipe(t, path, ipc.PipeDialer{Direction: d})
				if d == ipc.ServerToClient {
					kit.Expect(t, client, "for you")
				} else {
					kit.Send(t, client, "from me")
				}
				if err := <-server; err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				kit.Must(t, client.Close())
			}
		})
	}
}

func TestPipeListenerHearsAClientThatWroteAndLeft(t *testing.T) {
	kit.Story(t)
	l, path := kit.ListenPipe(t, ipc.PipeConfig{Messages: true})
	for _, words := range [][]string{{"last words"}, {""}, {"", "one", ""}} {
		client := kit.DialPipe(t, path, ipc.PipeDialer{Messages: true})
		for _, w := range words {
			kit.Must(t, client.WriteMessage([]byte(w)))
		}
		kit.Must(t, client.Close())
		server := kit.AcceptPipe(t, l)
		for _, w := range words {
			kit.ExpectMessage(t, server, w)
		}
		if n, more, err := server.ReadMessage(make([]byte, 9)); n != 0 || more || err != io.EOF {
			t.Fatalf("%d, %v, %v after the last message, want io.EOF", n, more, err)
		}
	}
}

var rounds = flag.Int("ipc.rounds", 5000, "how often Close races with Dial")

func TestPipeListenerCloseRacesWithDial(t *testing.T) {
	kit.Story(t)
	n := *rounds
	if testing.Short() {
		n = min(n, 200)
	}
	before := allHandles()
	end := time.Now().Add(kit.Patience * 3 / 4) // a slow machine makes fewer rounds
	for round := range n {
		if time.Now().After(end) {
			t.Logf("%d rounds", round)
			break
		}
		addr := kit.NameAddr(t)
		l := kit.Listen(t, addr)
		accepted := kit.Begin(func() error {
			c, err := l.AcceptConn()
			if err == nil {
				c.Close()
				_, err = l.AcceptConn()
			}
			return err
		})
		ctx, cancel := context.WithCancel(kit.Background())
		dialed := kit.Begin(func() error {
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
		kit.Must(t, l.Close())
		kit.Matches(t, <-accepted, net.ErrClosed)
		cancel()
		if err := <-dialed; err != nil && !errors.Is(err, ipc.ErrNoListener) && !errors.Is(err, context.Canceled) && !errors.Is(err, ipc.ErrUntrusted) {
			t.Fatal(err)
		}
	}
	// Handles of threads of the runtime come and go; a leak shows many times.
	kit.Eventually(t, "no handles are left", func() bool { return allHandles() < before+200 })
}

func TestPipeListenerCloseEndsAcceptsAndAllOperations(t *testing.T) {
	kit.Story(t)
	for range 20 {
		l := kit.Listen(t, kit.NameAddr(t))
		var ends [8]<-chan error
		for i := range ends {
			ends[i] = kit.Begin(func() error { _, err := l.Accept(); return err })
		}
		kit.AwaitParked(t, "(*Listener).AcceptConn", len(ends))
		kit.Must(t, l.Close())
		for _, end := range ends {
			kit.Matches(t, <-end, net.ErrClosed)
		}
		kit.Matches(t, l.Close(), net.ErrClosed)
		kit.Matches(t, l.SetDeadline(time.Time{}), net.ErrClosed)
		runtime.GC() // the kernel writes nowhere any more
	}
}

func TestPipeListenerNameIsNeverFree(t *testing.T) {
	for _, limit := range []int{0, 1, 2} {
		t.Run(fmt.Sprint("MaxInstances ", limit), func(t *testing.T) {
			kit.Story(t)
			l, path := kit.ListenPipe(t, ipc.PipeConfig{MaxInstances: limit, Backlog: 1})
			var attempts atomic.Int64
			squatterEnds := kit.Repeatedly(func() error {
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
				client := kit.DialPipe(t, path, ipc.PipeDialer{})
				server := kit.AcceptPipe(t, l)
				first, second := server, client
				if round%2 == 0 {
					first, second = client, server
				}
				kit.Must(t, first.Close())
				kit.Must(t, second.Close())
			}
			kit.Must(t, squatterEnds())
		})
	}
}

func TestPipeListenerNameThatIsTakenAndLeftIsInUseOrFree(t *testing.T) {
	kit.Story(t)
	addr := kit.NameAddr(t)
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
	kit.Story(t)
	addr := kit.NameAddr(t)
	func() {
		_, err := ipc.Listen(addr)
		kit.Must(t, err)
	}()
	kit.Eventually(t, "the name is free", func() bool {
		runtime.GC()
		l, err := ipc.Listen(addr)
		if err == nil {
			l.Close()
		}
		return err == nil
	})
}

func TestPipeConnThatWasDroppedIsClosed(t *testing.T) {
	kit.Story(t)
	for _, used := range []bool{false, true} {
		a, b, err := ipc.Pair()
		kit.Must(t, err)
		if used {
			kit.Send(t, a, "x")
			kit.Expect(t, b, "x")
		}
		a = nil
		eof := kit.BeginRead(b)
		kit.Eventually(t, "the other end reads io.EOF", func() bool {
			runtime.GC()
			select {
			case err := <-eof:
				return err == io.EOF
			default:
				return false
			}
		})
		kit.Must(t, b.Close())
	}
}

// ---------------------------------------------------------------------------
// Options of a pipe

func TestPipeConfigMaxInstancesMakesClientsWait(t *testing.T) {
	for _, limit := range []int{1, 3} {
		t.Run(strconv.Itoa(limit), func(t *testing.T) {
			kit.Story(t)
			l, path := kit.ListenPipe(t, ipc.PipeConfig{MaxInstances: limit})
			for range 5 {
				var clients, servers []*ipc.PipeConn
				for range limit {
					clients = append(clients, kit.DialPipe(t, path, ipc.PipeDialer{}))
					servers = append(servers, kit.AcceptPipe(t, l))
				}
				_, err := kit.TryDial(path, ipc.PipeDialer{})
				kit.TimedOut(t, err)
				kit.Must(t, l.SetDeadline(time.Now().Add(kit.Brief)))
				_, err = l.Accept()
				kit.TimedOut(t, err)
				kit.Must(t, l.SetDeadline(time.Time{}))

				// Accept waits for the place that a Close gives back.
				next := kit.Begin(func() error {
					c, err := l.AcceptPipe()
					if err != nil {
						return err
					}
					defer c.Close()
					_, err = io.WriteString(c, "you are next")
					return err
				})
				kit.AwaitParked(t, "(*PipeListener).AcceptPipe", 1)
				kit.Send(t, servers[0], "goodbye")
				kit.Must(t, servers[0].Close())
				client := kit.DialPipe(t, path, ipc.PipeDialer{})
				kit.Must(t, <-next)
				kit.Expect(t, client, "you are next")
				kit.ExpectEOF(t, client)

				// Close did not wait, and discarded nothing.
				kit.Expect(t, clients[0], "goodbye")
				kit.ExpectEOF(t, clients[0])
				for i := range clients {
					kit.Must(t, clients[i].Close())
					servers[i].Close()
				}
				kit.Must(t, client.Close())
			}
		})
	}
}

func TestPipeConnsOutliveTheListenerOfALimitedPipe(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{MaxInstances: 1})
	kit.Talk(t, client, server)
	kit.Must(t, server.Close())
	kit.ExpectEOF(t, client)
}

func TestPipeConfigDirections(t *testing.T) {
	for _, messages := range []bool{false, true} {
		for _, d := range []ipc.Direction{ipc.Duplex, ipc.ClientToServer, ipc.ServerToClient} {
			t.Run(fmt.Sprintf("%v messages %v", d, messages), func(t *testing.T) {
				kit.Story(t)
				client, server := kit.ConnectPipe(t, ipc.PipeConfig{Direction: d, Messages: messages})
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
				kit.Must(t, client.Close())
				kit.Must(t, server.Close())
			})
		}
	}
}

// carries checks whether data goes from w to r, and that it is refused where it
// cannot.
func carries(t *testing.T, w, r *ipc.PipeConn, can bool) {
	t.Helper()
	if can {
		kit.Send(t, w, "data")
		kit.Expect(t, r, "data")
		return
	}
	_, err := w.Write([]byte("data"))
	kit.Matches(t, err, errors.ErrUnsupported)
	_, err = r.Read(make([]byte, 4))
	kit.Matches(t, err, errors.ErrUnsupported)
	_, _, err = r.PeekMessage(nil)
	kit.Matches(t, err, errors.ErrUnsupported)
	kit.Must(t, w.Flush(kit.Background())) // has nothing to do
}

func TestDialPipeInTheWrongDirectionIsRefused(t *testing.T) {
	kit.OnWine(t, "looks at generic rights alone, which would include the one to make instances")
	kit.Story(t)
	for _, d := range []ipc.Direction{ipc.ClientToServer, ipc.ServerToClient} {
		_, path := kit.ListenPipe(t, ipc.PipeConfig{Direction: d})
		for _, wrong := range []ipc.Direction{ipc.Duplex, ipc.ClientToServer, ipc.ServerToClient} {
			if wrong == d {
				continue
			}
			_, err := ipc.DialPipe(kit.Background(), path, ipc.PipeDialer{Direction: wrong})
			kit.Matches(t, err, os.ErrPermission)
		}
	}
}

func TestPipeConfigByteStreamRefusesMessages(t *testing.T) {
	kit.Story(t)
	l, path := kit.ListenPipe(t, byteType)
	if c, err := ipc.DialPipe(kit.Background(), path, ipc.PipeDialer{Messages: true}); err == nil {
		c.Close()
		t.Error("a pipe of bytes was opened for messages")
	}
	client, server := kit.DialPipe(t, path, ipc.PipeDialer{}), kit.AcceptPipe(t, l)
	_, _, err := server.ReadMessage(make([]byte, 9))
	kit.Matches(t, err, errors.ErrUnsupported)
	kit.Matches(t, client.WriteMessage([]byte("x")), errors.ErrUnsupported)
	_, err = client.Transact(kit.Background(), []byte("x"), make([]byte, 9))
	kit.Matches(t, err, errors.ErrUnsupported)
}

func TestPipeConfigBuffersAndDefaultWait(t *testing.T) {
	kit.Story(t)
	const wait = 100 * time.Millisecond
	l, path := kit.ListenPipe(t, ipc.PipeConfig{ReadBuffer: 12 << 10, WriteBuffer: 20 << 10, DefaultWait: wait, MaxInstances: 1})
	client, server := kit.DialPipe(t, path, ipc.PipeDialer{}), kit.AcceptPipe(t, l)
	kit.Control(t, server, func(h uintptr) {
		var flags, out, in, limit uint32
		r, _, err := kit.GetNamedPipeInfo.Call(h, uintptr(unsafe.Pointer(&flags)), uintptr(unsafe.Pointer(&out)),
			uintptr(unsafe.Pointer(&in)), uintptr(unsafe.Pointer(&limit)))
		if r == 0 {
			t.Fatal(err)
		}
		if in != 12<<10 || out != 20<<10 {
			t.Errorf("the buffers are %d and %d bytes", in, out)
		}
	})
	// A write that fits the buffer does not wait for its reader.
	kit.Must(t, client.SetWriteDeadline(time.Now().Add(kit.Soon)))
	kit.Send(t, client, string(kit.Pattern(12<<10)))

	p, err := syscall.UTF16PtrFromString(path)
	kit.Must(t, err)
	const useDefault, semTimeout = 0, syscall.Errno(121)
	start := time.Now()
	r, _, err := kit.WaitNamedPipe.Call(uintptr(unsafe.Pointer(p)), useDefault)
	if waited := time.Since(start); r != 0 || err != semTimeout || waited < wait/2 {
		t.Errorf("WaitNamedPipe: %d, %v, after %v", r, err, waited)
	}
}

func TestPipeConfigInheritableAndWriteThroughReachTheHandle(t *testing.T) {
	kit.Story(t)
	for _, on := range []bool{false, true} {
		l, path := kit.ListenPipe(t, ipc.PipeConfig{Inheritable: on, WriteThrough: on, AcceptRemote: on, DefaultWait: -1})
		client := kit.DialPipe(t, path, ipc.PipeDialer{})
		server := kit.AcceptPipe(t, l)
		kit.Talk(t, client, server)
		for _, c := range []syscall.Conn{l, server} {
			kit.Control(t, c, func(h uintptr) {
				var flags uint32
				r, _, err := kit.GetHandleInformation.Call(h, uintptr(unsafe.Pointer(&flags)))
				if r == 0 {
					t.Fatal(err)
				}
				if (flags&syscall.HANDLE_FLAG_INHERIT != 0) != on {
					t.Errorf("Inheritable %v: flags %#x", on, flags)
				}
				const fileModeInformation, fileWriteThrough = 16, 2
				var status [2]uintptr
				var mode uint32
				kit.NtQueryInformation.Call(h, uintptr(unsafe.Pointer(&status)), uintptr(unsafe.Pointer(&mode)), 4, fileModeInformation)
				if (mode&fileWriteThrough != 0) != on {
					t.Errorf("WriteThrough %v: mode %#x", on, mode)
				}
			})
		}
		kit.Control(t, client, func(h uintptr) {
			var flags uint32
			kit.GetHandleInformation.Call(h, uintptr(unsafe.Pointer(&flags)))
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
		if l, err := ipc.ListenPipe(kit.PipePath(), c); err == nil {
			l.Close()
			t.Errorf("%+v was taken", c)
		}
	}
	_, err := ipc.DialPipe(kit.Background(), kit.PipePath(), ipc.PipeDialer{Direction: 3})
	if err == nil || errors.Is(err, ipc.ErrNoListener) {
		t.Errorf("direction 3: %v", err)
	}
	_, err = ipc.DialPipe(kit.Background(), kit.PipePath(), ipc.PipeDialer{Impersonation: 4})
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
	kit.Story(t)
	l, path := kit.ListenPipe(t, ipc.PipeConfig{Check: func(p ipc.Peer) error {
		if pid, ok := p.PID(); !ok || pid != os.Getpid() {
			return errors.New("a stranger")
		}
		return nil
	}})
	var listener net.Listener = l
	if a := listener.Addr(); a.Network() != "pipe" || a.String() != path {
		t.Errorf("listens at %v %v", a.Network(), a)
	}
	client := kit.DialPipe(t, path, ipc.PipeDialer{Wait: true, Check: func(ipc.Peer) error { return nil }})
	conn, err := listener.Accept()
	kit.Must(t, err)
	server := conn.(*ipc.PipeConn)
	kit.Talk(t, client, server)
	kit.Must(t, server.Close())
	kit.Must(t, client.Close())
	kit.Must(t, l.Close())
	for range l.Conns() {
		t.Error("a client after Close")
	}
	_, err = ipc.DialPipe(kit.Background(), path, ipc.PipeDialer{Timeout: kit.Soon})
	kit.Matches(t, err, ipc.ErrNoListener, syscall.ERROR_FILE_NOT_FOUND)
	var oe *net.OpError
	var se *os.SyscallError
	if !errors.As(err, &oe) || !errors.As(err, &se) || oe.Addr.String() != path || se.Syscall != "CreateFile" {
		t.Errorf("the error is %#v", err)
	}
}

// ---------------------------------------------------------------------------
// Messages

func TestPipeMessagesKeepTheirBoundaries(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{Messages: true})
	for _, ends := range [][2]*ipc.PipeConn{{client, server}, {server, client}} {
		from, to := ends[0], ends[1]
		for _, m := range []string{"one", "", "two", "", ""} {
			kit.Must(t, from.WriteMessage([]byte(m)))
		}
		for _, m := range []string{"one", "", "two", "", ""} {
			kit.ExpectMessage(t, to, m)
		}
		// One that comes while ReadMessage waits.
		for _, m := range []string{"late", ""} {
			got := kit.Begin(func() error {
				p := make([]byte, 9)
				n, more, err := to.ReadMessage(p)
				if err == nil && (more || string(p[:n]) != m) {
					err = fmt.Errorf("got %q, %v", p[:n], more)
				}
				return err
			})
			kit.AwaitParked(t, "(*PipeConn).ReadMessage", 1)
			kit.Must(t, from.WriteMessage([]byte(m)))
			kit.Must(t, <-got)
		}
	}
	_, _, err := server.ReadMessage(nil)
	if err == nil || errors.Is(err, io.EOF) {
		t.Errorf("ReadMessage without a buffer: %v", err)
	}
}

func TestPipeMessageThatIsLongComesInParts(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{Messages: true})
	long := string(kit.Pattern(300 << 10)) // longer than the buffers of the pipe
	sent := kit.Begin(func() error { return client.WriteMessage([]byte(long)) })
	var got []byte
	p := make([]byte, 1000)
	for more := true; more; {
		var n int
		var err error
		n, more, err = server.ReadMessage(p)
		kit.Must(t, err)
		got = append(got, p[:n]...)
	}
	kit.Must(t, <-sent)
	if string(got) != long {
		t.Errorf("%d bytes came, or others than were sent", len(got))
	}
}

func TestPipeMessagesAreReadAsAStreamWhenAskedTo(t *testing.T) {
	kit.Story(t)
	l, path := kit.ListenPipe(t, ipc.PipeConfig{Messages: true})
	client, server := kit.DialPipe(t, path, ipc.PipeDialer{}), kit.AcceptPipe(t, l)
	for _, m := range []string{"", "one ", "", "two"} {
		kit.Must(t, server.WriteMessage([]byte(m)))
	}
	kit.Expect(t, client, "one two")
	kit.Send(t, client, "three ")
	kit.Send(t, client, "four")
	kit.Expect(t, server, "three four")
	// An empty message is not the end of the stream.
	read := kit.Begin(func() error {
		p := make([]byte, 4)
		_, err := io.ReadFull(server, p)
		return err
	})
	dup, err := client.File()
	kit.Must(t, err)
	defer dup.Close()
	_, err = dup.Write(nil)
	kit.Must(t, err)
	kit.Send(t, client, "more")
	kit.Must(t, <-read)
}

func TestMsgConnOverPipes(t *testing.T) {
	kit.Story(t)
	a, b, err := ipc.MsgPair()
	kit.Must(t, err)
	defer a.Close()
	defer b.Close()
	for range 2 {
		kit.Must(t, a.Send([]byte("hello")))
		kit.Must(t, a.Send(nil))
		kit.Must(t, a.Send(kit.Pattern(1000)))
		kit.Must(t, a.Send([]byte("there")))
		p := make([]byte, 100)
		if n, err := b.Recv(p); err != nil || string(p[:n]) != "hello" {
			t.Errorf("%q, %v", p[:n], err)
		}
		if n, err := b.Recv(p); err != nil || n != 0 {
			t.Errorf("%q, %v, want an empty message", p[:n], err)
		}
		n, err := b.Recv(p)
		kit.Matches(t, err, ipc.ErrMsgTooLong)
		if n != len(p) || string(p) != string(kit.Pattern(1000)[:100]) {
			t.Errorf("%d bytes of the long message", n)
		}
		if n, err := b.Recv(p); err != nil || string(p[:n]) != "there" {
			t.Errorf("%q, %v", p[:n], err)
		}
		a, b = b, a
	}
	for _, m := range []string{"x", "", string(kit.Pattern(100000)), "end"} {
		sent := kit.Begin(func() error { return a.Send([]byte(m)) })
		p, err := b.RecvAppend([]byte("> "))
		if err != nil || string(p) != "> "+m {
			t.Fatalf("%d bytes, %v", len(p), err)
		}
		kit.Must(t, <-sent)
	}
	kit.Must(t, a.Send([]byte("x")))
	_, err = b.Recv(nil)
	kit.Matches(t, err, ipc.ErrMsgTooLong)
	kit.Must(t, a.Send(nil))
	_, err = b.Recv(nil)
	kit.Must(t, err)
	kit.Must(t, a.Send(nil))
	kit.Must(t, a.Close())
	if n, err := b.Recv(nil); n != 0 || err != nil {
		t.Errorf("the last, empty message: %d, %v", n, err)
	}
	if n, err := b.Recv(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v, want io.EOF", n, err)
	}
	kit.Matches(t, b.Send([]byte("x")), syscall.EPIPE)
}

func TestPipeMessagesAllocateNothing(t *testing.T) {
	kit.Story(t)
	a, b := kit.MsgPair(t)
	p, q := make([]byte, 64), make([]byte, 64)
	kit.AllocatesNothing(t, "a message and an empty one back", func() error {
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
	kit.Story(t)
	a, b := kit.MsgPair(t)
	const long = 32 << 20
	message, p := make([]byte, long), make([]byte, 1<<10)
	for _, first := range []string{"the message", "the receiver"} { // is there first
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		send := func() error { return a.Send(message) }
		receive := func() error { _, err := b.Recv(p); return err }
		var sent, received <-chan error
		if first == "the message" {
			sent = kit.Begin(send)
			kit.AwaitParked(t, "(*MsgConn).Send", 1)
			received = kit.Begin(receive)
		} else {
			received = kit.Begin(receive)
			kit.AwaitParked(t, "(*MsgConn).Recv", 1)
			sent = kit.Begin(send)
		}
		kit.Matches(t, <-received, ipc.ErrMsgTooLong)
		kit.Must(t, <-sent)
		runtime.ReadMemStats(&after)
		if made := after.TotalAlloc - before.TotalAlloc; made > long/4 {
			t.Errorf("%s is there first: %d bytes were made", first, made)
		}
	}
}

func TestPipeConnPeekMessage(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{Messages: true})
	if n, size, err := server.PeekMessage(make([]byte, 9)); n != 0 || size != 0 || err != nil {
		t.Errorf("nothing there: %d, %d, %v", n, size, err)
	}
	kit.Must(t, client.WriteMessage([]byte("a message")))
	kit.Must(t, client.WriteMessage([]byte("another")))
	p := make([]byte, 4)
	for range 2 {
		if n, size, err := server.PeekMessage(p); n != 4 || size != 9 || err != nil || string(p) != "a me" {
			t.Errorf("%q, %d, %v", p[:n], size, err)
		}
	}
	if n, size, err := server.PeekMessage(nil); n != 0 || size != 9 || err != nil {
		t.Errorf("without a buffer: %d, %d, %v", n, size, err)
	}
	kit.ExpectMessage(t, server, "a message")
	kit.ExpectMessage(t, server, "another")
	kit.Must(t, client.Close())
	_, _, err := server.PeekMessage(p)
	if err != io.EOF {
		t.Errorf("%v after the end, want io.EOF", err)
	}

	client, server = kit.ConnectPipe(t, byteType)
	kit.Send(t, client, "one")
	kit.Send(t, client, "two")
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
	for _, spin := range []time.Duration{-1, asItIs, kit.Patience} {
		t.Run(spin.String(), func(t *testing.T) { kit.Story(t); tell(t, spin) })
	}
}

func TestPipeStreamsAreTheSameHoweverReadsWait(t *testing.T) {
	overEachWait(t, func(t *testing.T, spin time.Duration) {
		a, b := kit.Pair(t)
		limitSpin(spin, a, b)
		echoed := kit.Begin(func() error { _, err := io.Copy(b, b); return err })
		sent := kit.Begin(func() error { _, err := a.Write(kit.Pattern(1 << 20)); return err })
		kit.Expect(t, a, string(kit.Pattern(1<<20)))
		kit.Must(t, <-sent)

		kit.Must(t, a.SetReadDeadline(time.Now().Add(kit.Brief)))
		_, err := a.Read(make([]byte, 1))
		kit.TimedOut(t, err)
		kit.Must(t, a.SetReadDeadline(time.Time{}))
		read := kit.BeginRead(a)
		kit.AwaitParked(t, "(*Conn).Read", 2)
		kit.Must(t, a.SetReadDeadline(time.Now()))
		kit.TimedOut(t, <-read)
		kit.Must(t, a.SetReadDeadline(time.Time{}))
		read = kit.BeginRead(a)
		kit.AwaitParked(t, "(*Conn).Read", 2)
		kit.Must(t, a.Close())
		kit.Matches(t, <-read, net.ErrClosed)
		kit.Must(t, <-echoed)
	})
}

func TestPipeMessagesAreTheSameHoweverReadsWait(t *testing.T) {
	overEachWait(t, func(t *testing.T, spin time.Duration) {
		a, b, err := ipc.MsgPair()
		kit.Must(t, err)
		defer a.Close()
		defer b.Close()
		for _, end := range []*ipc.MsgConn{a, b} {
			limitSpin(spin, end)
			kit.Must(t, end.SetReadDeadline(time.Now().Add(kit.Brief)))
			_, err = end.Recv(nil)
			kit.TimedOut(t, err)
			kit.Must(t, end.SetReadDeadline(time.Time{}))
		}
		p := make([]byte, 9)
		for _, m := range []string{"one", "", "two"} {
			received := kit.Begin(func() error {
				n, err := b.Recv(p)
				if err == nil && string(p[:n]) != m {
					err = fmt.Errorf("%q, want %q", p[:n], m)
				}
				return err
			})
			kit.AwaitParked(t, "(*MsgConn).Recv", 1)
			kit.Must(t, a.Send([]byte(m)))
			kit.Must(t, <-received)
		}
		kit.Must(t, a.Send([]byte("a long message")))
		_, err = b.Recv(p)
		kit.Matches(t, err, ipc.ErrMsgTooLong)
		kit.Must(t, a.Send(nil)) // is there still when its sender is gone
		kit.Must(t, a.Close())
		if n, err := b.Recv(p); n != 0 || err != nil {
			t.Errorf("the last, empty message: %d, %v", n, err)
		}
		if _, err := b.Recv(p); err != io.EOF {
			t.Errorf("%v, want io.EOF", err)
		}
	})
}

func TestPipeConnDeadlineDoesNotTearAMessage(t *testing.T) {
	kit.Story(t)
	const rounds = 300
	a, b := kit.MsgPair(t)
	sent := kit.Begin(func() error {
		for i := range rounds {
			if err := a.Send(kit.Pattern(1000 * (1 + i%50))); err != nil {
				return err
			}
		}
		return a.Close()
	})
	timeouts, short := 0, make([]byte, 700)
	for i := 0; ; {
		kit.Must(t, b.SetReadDeadline(time.Now().Add(time.Duration(timeouts%9)*20*time.Microsecond)))
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
		kit.Must(t, err)
		want := 1000 * (1 + i%50)
		if i%2 != 0 {
			want, msg = len(short), short
		}
		if n != want || !bytes.Equal(msg, kit.Pattern(want)) {
			t.Fatalf("message %d arrives with %d bytes, want %d", i, n, want)
		}
		i++
	}
	kit.Must(t, <-sent)
	if timeouts == 0 {
		t.Error("no receive timed out: nothing was tested")
	}
}

func TestPipeConnWaitsHoldFewThreads(t *testing.T) {
	kit.Story(t)
	const many, few = 200, 100
	before := threads()
	var busy sync.WaitGroup
	var ends [many]*ipc.Conn
	for i := range ends {
		a, b := kit.Pair(t)
		ends[i] = b
		busy.Go(func() {
			got := make([]byte, 300<<10)
			if _, err := io.ReadFull(a, got); err != nil || string(got) != string(kit.Pattern(len(got))) {
				t.Errorf("read %v", err)
			}
		})
	}
	kit.AwaitParked(t, "(*Conn).Read", many)
	if n := threads() - before; n > few {
		t.Errorf("%d reads that wait take %d threads", many, n)
	}
	for _, b := range ends {
		kit.Send(t, b, string(kit.Pattern(300<<10)))
	}
	busy.Wait()

	before = threads()
	for i := range ends {
		busy.Go(func() {
			if _, err := ends[i].Write(make([]byte, 300<<10)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a write that waits ends with %v", err)
			}
		})
		if i%20 == 19 { // all at once, each would take a thread while it begins
			kit.AwaitParked(t, "(*Conn).Write", i+1)
		}
	}
	kit.AwaitParked(t, "(*Conn).Write", many)
	if n := threads() - before; n > few && !kit.UnderRace() {
		t.Errorf("%d writes that wait take %d threads", many, n)
	}
	for _, b := range ends {
		kit.Must(t, b.Close())
	}
	busy.Wait()
}

// ---------------------------------------------------------------------------
// Transact, Flush, Disconnect

func TestPipeConnTransactCarriesQuestionAndAnswer(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{Messages: true})
	reply := make([]byte, 8)
	for _, c := range []struct {
		answer string
		err    error
	}{{"fine", nil}, {"12345678", nil}, {"123456789", ipc.ErrMsgTooLong}, {"", nil}, {"again", nil}} {
		answered := kit.Begin(func() error {
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
		n, err := client.Transact(kit.Background(), []byte("question"), reply)
		if c.err != nil {
			kit.Matches(t, err, c.err)
		} else {
			kit.Must(t, err)
		}
		if want := c.answer[:min(len(c.answer), len(reply))]; string(reply[:n]) != want {
			t.Errorf("the reply is %q, want %q", reply[:n], want)
		}
		kit.Must(t, <-answered)
	}

	// Nobody answers.
	ctx, cancel := context.WithCancel(kit.Background())
	done := kit.Begin(func() error { _, err := client.Transact(ctx, []byte("question"), reply); return err })
	kit.AwaitParked(t, "(*PipeConn).Transact", 1)
	cancel()
	kit.Matches(t, <-done, context.Canceled)
	ctx, cancel = context.WithTimeout(kit.Background(), kit.Brief)
	defer cancel()
	_, err := client.Transact(ctx, []byte("question"), reply)
	kit.TimedOut(t, err)
	done = kit.Begin(func() error { _, err := client.Transact(kit.Background(), []byte("question"), reply); return err })
	kit.AwaitParked(t, "(*PipeConn).Transact", 1)
	kit.Must(t, client.Close())
	kit.Matches(t, <-done, net.ErrClosed)

	client, server = kit.ConnectPipe(t, ipc.PipeConfig{Messages: true})
	kit.Must(t, server.Close())
	_, err = client.Transact(kit.Background(), []byte("question"), reply)
	kit.Matches(t, err, syscall.EPIPE)
}

func TestPipeConnFlushWaitsForTheReader(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{})
	kit.Must(t, client.Flush(kit.Background())) // nothing was written
	kit.Send(t, client, "unread")
	flushed := kit.Begin(func() error { return client.Flush(kit.Background()) })
	kit.AwaitParked(t, "(*PipeConn).Flush", 1)
	select {
	case err := <-flushed:
		t.Fatalf("Flush returns %v before anything was read", err)
	default:
	}
	kit.Expect(t, server, "unread")
	kit.Must(t, <-flushed)

	kit.Send(t, client, "lost")
	flushed = kit.Begin(func() error { return client.Flush(kit.Background()) })
	kit.AwaitParked(t, "(*PipeConn).Flush", 1)
	kit.Must(t, server.Close())
	kit.Must(t, <-flushed)
	kit.Must(t, client.Flush(kit.Background()))
}

func TestPipeConnFlushCanBeCancelled(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{})
	kit.Send(t, client, "unread")
	// A read that waits is not disturbed.
	read := kit.Begin(func() error {
		p := make([]byte, 4)
		_, err := io.ReadFull(client, p)
		if err == nil && string(p) != "news" {
			err = fmt.Errorf("read %q", p)
		}
		return err
	})
	kit.AwaitParked(t, "(*Conn).Read", 1)
	for range 5 {
		ctx, cancel := context.WithCancel(kit.Background())
		flushed := kit.Begin(func() error { return client.Flush(ctx) })
		kit.AwaitParked(t, "(*PipeConn).Flush", 1)
		cancel()
		kit.Matches(t, <-flushed, context.Canceled)
		kit.Matches(t, client.Flush(ctx), context.Canceled)
	}
	ctx, cancel := context.WithTimeout(kit.Background(), kit.Brief)
	defer cancel()
	kit.TimedOut(t, client.Flush(ctx))
	kit.Send(t, server, "news")
	kit.Must(t, <-read)

	flushed := kit.Begin(func() error { return client.Flush(kit.Background()) })
	kit.AwaitParked(t, "(*PipeConn).Flush", 1)
	kit.Must(t, client.Close())
	kit.Matches(t, <-flushed, net.ErrClosed)
	kit.Matches(t, client.Flush(kit.Background()), net.ErrClosed)
	kit.Expect(t, server, "unread")
	kit.ExpectEOF(t, server)
}

func TestPipeConnDisconnectThrowsTheClientOut(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{})
	kit.Matches(t, client.Disconnect(), errors.ErrUnsupported)
	kit.Send(t, server, "unread")
	read := kit.BeginRead(server)
	kit.AwaitParked(t, "(*Conn).Read", 1)
	kit.Must(t, server.Disconnect())
	if err := <-read; err != io.EOF {
		t.Errorf("the server's read that waited: %v, want io.EOF", err)
	}
	kit.ExpectEOF(t, client)
	kit.ExpectEOF(t, server)
	_, err := client.Write([]byte("x"))
	kit.Matches(t, err, syscall.EPIPE)
	_, err = server.Write([]byte("x"))
	kit.Matches(t, err, syscall.EPIPE)
	kit.Must(t, server.Close())
	kit.Matches(t, server.Disconnect(), net.ErrClosed)
}

// ---------------------------------------------------------------------------
// Handles

func TestFileConnIsAnotherHandleOfTheSameEnd(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	f, err := a.File()
	kit.Must(t, err)
	c, err := ipc.FileConn(f)
	kit.Must(t, err)
	kit.Must(t, f.Close())
	kit.Talk(t, c, b)
	kit.Talk(t, a, b)
	// Close of the duplicate ends its own reads and not those of a.
	read := kit.Begin(func() error {
		p := make([]byte, 4)
		_, err := io.ReadFull(a, p)
		return err
	})
	kit.AwaitParked(t, "(*Conn).Read", 1)
	kit.Must(t, c.Close())
	kit.Send(t, b, "done")
	kit.Must(t, <-read)
}

func TestFileConnRefusesHandlesThatAreNoConns(t *testing.T) {
	kit.Story(t)
	r, w, err := os.Pipe() // not overlapped
	kit.Must(t, err)
	defer r.Close()
	defer w.Close()
	nul, err := os.Open(os.DevNull)
	kit.Must(t, err)
	defer nul.Close()
	for _, f := range []*os.File{r, w, nul} {
		_, err := ipc.FileConn(f)
		kit.Matches(t, err, errors.ErrUnsupported)
	}
	client, _ := kit.ConnectPipe(t, ipc.PipeConfig{Direction: ipc.ClientToServer})
	f, err := client.File()
	kit.Must(t, err)
	defer f.Close()
	_, err = ipc.FileConn(f)
	kit.Matches(t, err, errors.ErrUnsupported)
	_, err = ipc.FileReader(f)
	kit.Matches(t, err, errors.ErrUnsupported)
	wr, err := ipc.FileWriter(f)
	kit.Must(t, err)
	kit.Must(t, wr.Close())
}

func TestConnSyscallConnNeverWaits(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	raw, err := a.SyscallConn()
	kit.Must(t, err)
	called := 0
	for _, call := range []func(func(uintptr) bool) error{raw.Read, raw.Write} {
		kit.Must(t, call(func(uintptr) bool { called++; return true }))
		kit.Matches(t, call(func(uintptr) bool { called++; return false }), errors.ErrUnsupported)
	}
	if called != 4 {
		t.Errorf("called %d times", called)
	}
	kit.Talk(t, a, b)
	kit.Must(t, a.Close())
	kit.Matches(t, raw.Control(func(uintptr) { t.Error("called") }), net.ErrClosed)
}

func TestInheritedHandleWorksInTheChild(t *testing.T) {
	kit.Story(t)
	mine, theirs := kit.Pair(t)
	program, err := os.Executable()
	kit.Must(t, err)
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), kit.ChildRole+"=inherits")
	cmd.Stdin, err = os.Open(os.DevNull)
	kit.Must(t, err)
	defer cmd.Stdin.(*os.File).Close()
	cmd.Stderr = os.Stderr
	kit.Must(t, ipc.Inherit(cmd, "line", theirs))
	kit.Must(t, cmd.Start())
	kit.Must(t, theirs.Close())
	defer cmd.Process.Kill()
	kit.Send(t, mine, "echo")
	kit.Expect(t, mine, "echo")
	kit.IsProcess(t, kit.PeerOf(t, mine), os.Getpid()) // who opened it
	kit.Must(t, mine.Close())
	kit.Must(t, cmd.Wait())

	used, other := kit.Pair(t)
	kit.Talk(t, used, other)
	kit.Matches(t, ipc.Inherit(exec.Command(program), "line", used), errors.ErrUnsupported)
}

// childInherits echoes over the inherited connection, with a deadline: only a
// handle that belongs to this process's completion port has one.
func childInherits(*kit.Parent, []string) error {
	c := kit.Sure(ipc.InheritedConn("line"))
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(kit.Patience)); err != nil {
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
	kit.Story(t)
	c := kit.StartChild(t, "shared")
	c.MustSay("ready")
	const dupHandle = 0x40 // PROCESS_DUP_HANDLE
	process, err := syscall.OpenProcess(dupHandle, false, uint32(c.PID()))
	kit.Must(t, err)
	defer syscall.CloseHandle(process)
	r, w, err := os.Pipe()
	kit.Must(t, err)
	defer r.Close()
	var there syscall.Handle
	kit.Control(t, w, func(h uintptr) { there, err = ipc.ShareHandle(syscall.Handle(h), process) })
	kit.Must(t, err)
	kit.Must(t, w.Close())
	c.Say(strconv.FormatUint(uint64(there), 10))
	kit.Expect(t, r, "hello from a child")
	c.End()
	_, err = ipc.ShareHandle(0, process)
	var oe *net.OpError
	if !errors.As(err, &oe) {
		t.Errorf("no handle: %v", err)
	}
}

func childIsShared(p *kit.Parent, _ []string) error {
	p.Say("ready")
	h := kit.Sure(strconv.ParseUint(p.Hear(), 10, 64))
	f := os.NewFile(uintptr(h), "shared")
	defer f.Close()
	_, err := io.WriteString(f, "hello from a child")
	return err
}

func TestUserAddrHasTheSID(t *testing.T) {
	kit.Story(t)
	addr, err := ipc.UserAddr("agent")
	if want := ipc.Name(`ipc\` + kit.Me(t) + `\agent`); addr != want || err != nil {
		t.Errorf("it is %v, %v; want %v", addr, err, want)
	}
}

// ---------------------------------------------------------------------------
// What ends a wait, and what a wait that ended early leaves behind

// stuckWrite waits in a write that nobody reads.
func stuckWrite(t *testing.T, c *ipc.PipeConn) <-chan error {
	t.Helper()
	done := kit.Begin(func() error { _, err := c.Write(make([]byte, 1<<20)); return err })
	kit.AwaitParked(t, "(*Conn).Write", 1)
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
			done := kit.BeginRead(c)
			kit.AwaitParked(t, "(*Conn).Read", 1)
			return done
		}, func(c *ipc.PipeConn, ctx context.Context) error {
			_, err := c.Transact(ctx, question, make([]byte, 9))
			return err
		}},
		{"Flush during Flush", func(t *testing.T, c *ipc.PipeConn) <-chan error {
			kit.Send(t, c, "unread")
			done := kit.Begin(func() error { return c.Flush(kit.Background()) })
			kit.AwaitParked(t, "(*PipeConn).Flush", 1)
			return done
		}, func(c *ipc.PipeConn, ctx context.Context) error { return c.Flush(ctx) }},
		{"Write during Flush", func(t *testing.T, c *ipc.PipeConn) <-chan error {
			kit.Send(t, c, "unread")
			done := kit.Begin(func() error { return c.Flush(kit.Background()) })
			kit.AwaitParked(t, "(*PipeConn).Flush", 1)
			return done
		}, func(c *ipc.PipeConn, _ context.Context) error { return nil }},
		{"Write during Transact", func(t *testing.T, c *ipc.PipeConn) <-chan error {
			done := kit.Begin(func() error { _, err := c.Transact(kit.Background(), question, make([]byte, 9)); return err })
			kit.AwaitParked(t, "(*PipeConn).Transact", 1)
			return done
		}, func(c *ipc.PipeConn, _ context.Context) error { return nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			kit.Story(t)
			client, _ := kit.ConnectPipe(t, ipc.PipeConfig{Messages: true})
			first := test.first(t, client)
			for range 3 {
				ctx, cancel := context.WithTimeout(kit.Background(), kit.Brief)
				if err := test.then(client, ctx); err != nil {
					kit.TimedOut(t, err)
				}
				cancel()
			}
			ctx, cancel := context.WithCancel(kit.Background())
			time.AfterFunc(kit.Brief, cancel)
			if err := test.then(client, ctx); err != nil {
				kit.Matches(t, err, context.Canceled)
			}
			cancel()
			if test.name == "Transact during Read" {
				kit.Must(t, client.Close())
				kit.Matches(t, <-first, net.ErrClosed)
				return
			}
			// A deadline that comes while it waits, which is for writing. It ends
			// what is under way as well.
			second := kit.Begin(func() error { _, err := client.Write(make([]byte, 1)); return err })
			kit.AwaitParked(t, "(*Conn).Write", 1)
			kit.Must(t, client.SetWriteDeadline(time.Now().Add(kit.Brief)))
			timedOutOrTorn(t, <-second) // the first may have ended before its time has come
			kit.TimedOut(t, <-first)
		})
	}
}

// A deadline that is set before counts as well.
func TestPipeConnFlushAndTransactEndAtTheDeadline(t *testing.T) {
	kit.Story(t)
	client, _ := kit.ConnectPipe(t, ipc.PipeConfig{Messages: true})
	kit.Send(t, client, "unread")
	for _, set := range []func(time.Time) error{client.SetWriteDeadline, client.SetDeadline} {
		kit.Must(t, set(time.Now().Add(kit.Brief)))
		kit.TimedOut(t, client.Flush(kit.Background()))
		kit.TimedOut(t, client.Flush(kit.Background()))
	}
	kit.Must(t, client.SetDeadline(time.Time{}))
	for _, set := range []func(time.Time) error{client.SetWriteDeadline, client.SetReadDeadline} {
		kit.Must(t, set(time.Now().Add(kit.Brief)))
		_, err := client.Transact(kit.Background(), []byte("question"), make([]byte, 9))
		kit.TimedOut(t, err)
		kit.Must(t, set(time.Time{}))
	}
}

// ---------------------------------------------------------------------------
// What is withdrawn

func TestMsgConnSendThatTimesOutLeavesNoPartOfAMessage(t *testing.T) {
	kit.Story(t)
	big := kit.Pattern(1 << 20)
	for round := range 12 {
		a, b := kit.MsgPair(t)
		received := make(chan []byte, 100)
		receiving := kit.Begin(func() error {
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
			kit.Must(t, a.SetWriteDeadline(time.Now().Add(time.Duration(round)*50*time.Microsecond)))
			if err := a.Send(big); err != nil {
				timedOutOrTorn(t, err)
			}
			kit.Must(t, a.SetWriteDeadline(time.Time{}))
			if err := a.Send([]byte("next")); err != nil {
				kit.Matches(t, err, syscall.EPIPE) // a part of the one before may have been read
				break
			}
		}
		kit.Must(t, a.Close())
		if err := <-receiving; err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("round %d: %v", round, err)
		}
		close(received)
		for msg := range received {
			if string(msg) != "next" && !bytes.Equal(msg, big) && !bytes.Equal(msg, big[:100]) {
				t.Fatalf("round %d: a message of %d bytes, %.20q ... %q", round, len(msg), msg, msg[max(len(msg)-20, 0):])
			}
		}
		kit.Must(t, b.Close())
	}
}

func timedOutOrTorn(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, syscall.EPIPE) {
		kit.TimedOut(t, err)
	}
}

func TestPipeMessageThatWasReadInPartIsTheLast(t *testing.T) {
	for what, messages := range map[string]bool{"Messages": true, "Stream": false} { // what the client reads
		t.Run(what, func(t *testing.T) {
			kit.Story(t)
			l, path := kit.ListenPipe(t, ipc.PipeConfig{Messages: true})
			client := kit.DialPipe(t, path, ipc.PipeDialer{Messages: messages})
			server := kit.AcceptPipe(t, l)
			sending := kit.Begin(func() error { _, err := client.Write(kit.Pattern(1 << 20)); return err })
			n, more, err := server.ReadMessage(make([]byte, 512))
			if n != 512 || !more || err != nil {
				t.Fatalf("%d, %v, %v", n, more, err)
			}
			kit.Must(t, client.SetWriteDeadline(time.Now().Add(kit.Brief)))
			kit.TimedOut(t, <-sending)
			kit.Must(t, client.SetWriteDeadline(time.Time{}))
			for range 2 {
				if messages {
					kit.Matches(t, client.WriteMessage([]byte("next")), syscall.EPIPE)
				}
				_, err = client.Write([]byte("next"))
				kit.Matches(t, err, syscall.EPIPE)
				kit.Matches(t, client.SendFiles(kit.TextFile(t, "next")), syscall.EPIPE)
			}
			kit.Send(t, server, "the other way") // goes on
			kit.Expect(t, client, "the other way")
			kit.Must(t, client.Close())
			if n, _, err := server.ReadMessage(make([]byte, 512)); n != 0 || err != io.EOF {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
}

// cancelAll cancels everything that is under way on the handle, as anybody can who has it.
func cancelAll(t *testing.T, c syscall.Conn) {
	t.Helper()
	kit.Control(t, c, func(h uintptr) {
		if err := syscall.CancelIoEx(syscall.Handle(h), nil); err != nil && err != syscall.ERROR_NOT_FOUND {
			t.Error(err)
		}
	})
}

// A write can be withdrawn by somebody else who has the handle.
func TestPipeMessageThatOthersWithdrewIsTheLast(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{Messages: true})
	sending := kit.Begin(func() error { return client.WriteMessage(kit.Pattern(1 << 20)) })
	n, more, err := server.ReadMessage(make([]byte, 512))
	if n != 512 || !more || err != nil {
		t.Fatalf("%d, %v, %v", n, more, err)
	}
	cancelAll(t, client)
	kit.Matches(t, <-sending, syscall.ERROR_OPERATION_ABORTED)
	kit.Matches(t, client.WriteMessage([]byte("next")), syscall.EPIPE)
	kit.Must(t, client.Close())
	if n, _, err := server.ReadMessage(make([]byte, 512)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

// What somebody else cancels who has the handle goes on.
func TestPipeConnReadAndFlushGoOnWhenOthersCancelThem(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{Messages: true})
	reading := kit.Begin(func() error {
		p := make([]byte, 10)
		n, _, err := client.ReadMessage(p)
		if string(p[:n]) != "answer" {
			t.Errorf("%q", p[:n])
		}
		return err
	})
	kit.Send(t, client, "unread")
	flushed := kit.Begin(func() error { return client.Flush(kit.Background()) })
	kit.AwaitParked(t, "(*PipeConn).ReadMessage", 1)
	kit.AwaitParked(t, "(*PipeConn).Flush", 1)
	for range 3 {
		cancelAll(t, client)
		time.Sleep(kit.Brief) // they could end
	}
	select {
	case err := <-reading:
		t.Fatal(err)
	case err := <-flushed:
		t.Fatal(err)
	default:
	}
	kit.ExpectMessage(t, server, "unread")
	kit.Must(t, <-flushed)
	kit.Send(t, server, "answer")
	kit.Must(t, <-reading)
}

// While Transact waits for one direction, the other is free.
func TestPipeConnTransactHoldsNothingWhileItWaits(t *testing.T) {
	for name, isIn := range map[string]func(t *testing.T, client, server *ipc.PipeConn) (ends func()){
		"Read": func(t *testing.T, client, server *ipc.PipeConn) func() {
			reading := kit.BeginRead(client)
			kit.AwaitParked(t, "(*Conn).Read", 1)
			return func() {
				kit.Send(t, client, "ask") // what the read waits for
				kit.ExpectMessage(t, server, "ask")
				kit.Send(t, server, "x")
				kit.Must(t, <-reading)
			}
		},
		"Write": func(t *testing.T, client, server *ipc.PipeConn) func() {
			writing := stuckWrite(t, client)
			return func() {
				kit.Send(t, server, "x") // what the peer waits for before it reads
				kit.Expect(t, client, "x")
				n, more, err := server.ReadMessage(make([]byte, 1<<20))
				if n != 1<<20 || more || err != nil {
					t.Errorf("%d, %t, %v", n, more, err)
				}
				kit.Must(t, <-writing)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			kit.Story(t)
			client, server := kit.ConnectPipe(t, ipc.PipeConfig{Messages: true})
			ends := isIn(t, client, server)
			reply := make([]byte, 10)
			answered := kit.Begin(func() error {
				n, err := client.Transact(kit.Background(), []byte("question"), reply)
				reply = reply[:n]
				return err
			})
			kit.AwaitParked(t, "(*PipeConn).Transact", 1)
			ends()
			kit.ExpectMessage(t, server, "question")
			kit.Must(t, server.WriteMessage([]byte("answer")))
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
			kit.Story(t)
			a, b := kit.Pair(t)
			raw, err := a.SyscallConn()
			kit.Must(t, err)
			kit.Must(t, within(raw, func(h uintptr) {
				kit.Must(t, a.SetDeadline(time.Now().Add(time.Hour)))
				kit.Must(t, a.Close())
				if kind, err := syscall.GetFileType(syscall.Handle(h)); kind != syscall.FILE_TYPE_PIPE || err != nil {
					t.Errorf("the handle is gone: %d, %v", kind, err)
				}
			}))
			if _, err := b.Read(make([]byte, 1)); err != io.EOF {
				t.Error(err)
			}
			kit.Matches(t, raw.Control(func(uintptr) {}), net.ErrClosed)
		})
	}
}

// Where nothing can have been read of it, a message that is withdrawn is no loss.
func TestPipeMessageThatWasNotReadMayBeFollowed(t *testing.T) {
	kit.Story(t)
	a, b := kit.MsgPair(t)
	sent := 0
	for {
		kit.Must(t, a.SetWriteDeadline(time.Now().Add(kit.Brief)))
		err := a.Send(kit.Pattern(4000))
		if err != nil {
			kit.TimedOut(t, err)
			break
		}
		sent++
	}
	kit.Must(t, a.SetWriteDeadline(time.Time{}))
	for range sent {
		msg, err := b.RecvAppend(nil)
		if kit.Must(t, err); !bytes.Equal(msg, kit.Pattern(4000)) {
			t.Fatalf("%d bytes", len(msg))
		}
	}
	kit.Must(t, a.Send([]byte("next")))
	kit.Hear(t, b, "next")
}

// A record that does not fit into the pipe is there to be seen while its write pends,
// and may be withdrawn at any moment.
func TestSendFilesThatTimesOutLeavesWhatFollows(t *testing.T) {
	for _, messages := range []bool{false, true} {
		t.Run(map[bool]string{false: "Stream", true: "Messages"}[messages], func(t *testing.T) {
			kit.Story(t)
			ofMessages := messages || kit.IsWine() // see byteType
			f := kit.TextFile(t, "x")
			var files [10]*os.File // 76 bytes
			for i := range files {
				files[i] = f
			}
			for round := range 40 {
				client, server := kit.ConnectPipe(t, ipc.PipeConfig{Messages: messages, ReadBuffer: 64, WriteBuffer: 64})
				receiving := kit.Begin(func() error {
					got, err := server.RecvFiles(len(files))
					for _, f := range got {
						f.Close()
					}
					return err
				})
				kit.Must(t, client.SetWriteDeadline(time.Now().Add(time.Duration(round)*200*time.Microsecond)))
				err := client.SendFiles(files[:]...)
				kit.Must(t, client.SetWriteDeadline(time.Time{}))
				data := kit.Pattern(5000)
				withdrawn := err != nil
				writing := kit.Begin(func() error {
					_, err := client.Write(data)
					if withdrawn && ofMessages && errors.Is(err, syscall.EPIPE) { // a part of the record was read
						client.Close()
						data = nil
						return nil
					}
					return err
				})
				if !withdrawn {
					kit.Must(t, <-receiving)
				} else {
					kit.TimedOut(t, err)
					if err := <-receiving; !errors.Is(err, ipc.ErrNoFiles) && err != io.EOF {
						t.Fatalf("round %d: %v", round, err)
					}
				}
				got := make([]byte, 5000)
				n, err := io.ReadFull(server, got)
				kit.Must(t, <-writing)
				if !bytes.Equal(got[:n], data) {
					t.Fatalf("round %d: what follows is %d bytes, %.20q, %v", round, n, got, err)
				}
				client.Close()
				kit.Must(t, server.Close())
			}
		})
	}
}

// ---------------------------------------------------------------------------
// Listeners

func TestListenerControlMayUseTheListener(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, kit.NameAddr(t))
	raw, err := l.SyscallConn()
	kit.Must(t, err)
	kit.Must(t, raw.Control(func(uintptr) {
		kit.Must(t, l.SetDeadline(time.Now().Add(kit.Soon)))
		kit.Must(t, raw.Control(func(h uintptr) {
			kind, err := syscall.GetFileType(syscall.Handle(h))
			if kit.Must(t, err); kind != syscall.FILE_TYPE_PIPE {
				t.Errorf("type %d", kind)
			}
		}))
		kit.Serves(t, l, l.Addr().(ipc.Addr))
		kit.Must(t, l.Close())
	}))
	kit.Matches(t, raw.Control(func(uintptr) { t.Error("it is closed") }), net.ErrClosed)
}

func TestPipeListenerClientsThatLeftMakeRoomWithoutAccept(t *testing.T) {
	for _, d := range []ipc.Direction{ipc.Duplex, ipc.ClientToServer, ipc.ServerToClient} {
		t.Run(d.String(), func(t *testing.T) {
			kit.Story(t)
			l, path := kit.ListenPipe(t, ipc.PipeConfig{Direction: d, Backlog: 2})
			for range 3 {
				one, two := kit.DialPipe(t, path, ipc.PipeDialer{Direction: d}), kit.DialPipe(t, path, ipc.PipeDialer{Direction: d})
				_, err := kit.TryDial(path, ipc.PipeDialer{Direction: d})
				kit.TimedOut(t, err) // there is no room now, and the listener has seen that
				kit.Must(t, errors.Join(one.Close(), two.Close()))
			}
			kit.Must(t, l.Close())
		})
	}
}

func TestListenerAcceptsHoldNoThread(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, kit.NameAddr(t))
	before := threads()
	done := make(chan error)
	const many = 50
	for range many {
		go func() { _, err := l.Accept(); done <- err }()
	}
	kit.AwaitParked(t, "(*Listener).AcceptConn", many)
	if n := threads() - before; n > many/2 {
		t.Errorf("%d accepts take %d threads", many, n)
	}
	kit.Must(t, l.SetDeadline(time.Now().Add(kit.Brief)))
	for range many {
		kit.TimedOut(t, <-done)
	}
}

// ---------------------------------------------------------------------------
// Other handles of the same end

// What another handle of the end has under way is not cancelled by Flush and Close.
func TestPipeConnCloseLeavesOtherHandlesAlone(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, byteType)
	event, _, err := kit.CreateEvent.Call(0, 1, 0, 0)
	if event == 0 {
		t.Fatal(err)
	}
	defer syscall.CloseHandle(syscall.Handle(event))
	h := kit.HandleOf(t, client)
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
	kit.Send(t, client, "unread")
	ctx, cancel := context.WithTimeout(kit.Background(), kit.Brief)
	defer cancel()
	kit.TimedOut(t, client.Flush(ctx))
	flushed := kit.Begin(func() error { return client.Flush(kit.Background()) })
	kit.AwaitParked(t, "(*PipeConn).Flush", 1)
	kit.Must(t, client.Close())
	kit.Matches(t, <-flushed, net.ErrClosed)
	kit.Send(t, server, "x")
	if s, err := syscall.WaitForSingleObject(syscall.Handle(event), uint32(kit.Soon/time.Millisecond)); s != 0 {
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
	nilFails(t, (*ipc.PipeListener)(nil))
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

// ---------------------------------------------------------------------------
// Words of this file

// Wine makes a pipe one of message type if it is to reject clients of other
// machines: see NtCreateNamedPipeFile there. byteType makes one of bytes.
var byteType = ipc.PipeConfig{AcceptRemote: kit.IsWine()}

// allHandles counts the handles of this process.
func allHandles() int {
	return kit.CountHandles(func(h uintptr) (open, accepted bool) {
		var flags uint32
		r, _, _ := kit.GetHandleInformation.Call(h, uintptr(unsafe.Pointer(&flags)))
		return r != 0, r != 0
	})
}

// limitSpin bounds the waits of the ends unless they are to stay as they are.
func limitSpin(spin time.Duration, ends ...interface{ SetSpin(time.Duration) }) {
	for _, end := range ends {
		if spin != asItIs {
			end.SetSpin(spin)
		}
	}
}

// threads is how many threads the program has had.
func threads() int { return pprof.Lookup("threadcreate").Count() }
