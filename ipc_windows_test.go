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
	"runtime"
	"runtime/pprof"
	"slices"
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

// The tests of what only Windows has. They are written to run on Windows and
// under Wine; what Wine does not do is skipped there, with the reason.

func init() {
	countDescriptors = fileHandles
	roles["inherits"] = childInherits
	roles["shared"] = childIsShared
	roles["waits"] = func(p *parent, _ []string) error { p.say("here"); p.hear(); return nil }
}

var (
	kernel32 = syscall.NewLazyDLL("kernel32.dll")
	advapi32 = syscall.NewLazyDLL("advapi32.dll")
	ntdll    = syscall.NewLazyDLL("ntdll.dll")

	createEvent          = kernel32.NewProc("CreateEventW")
	getProcessID         = kernel32.NewProc("GetProcessId")
	getNamedPipeInfo     = kernel32.NewProc("GetNamedPipeInfo")
	getHandleInformation = kernel32.NewProc("GetHandleInformation")
	waitNamedPipe        = kernel32.NewProc("WaitNamedPipeW")
	openThreadToken      = advapi32.NewProc("OpenThreadToken")
	ntQueryObject        = ntdll.NewProc("NtQueryObject")
	ntQueryInformation   = ntdll.NewProc("NtQueryInformationFile")
)

const thisProcess = ^syscall.Handle(0)

// onWine skips the test on Wine. These need Windows:
//
//   - TestClientThatHidesIsNotItsOwner, TestServerMayOnlyDoWhatTheClientAllows: Wine
//     impersonates at any level.
//   - TestSecurityIsEnforced: Wine lets everybody open a pipe.
//   - TestDialInTheWrongDirectionIsRefused: Wine looks at generic rights alone.
//   - TestPipeOfAnotherMachineIsNotTrusted: Wine has no pipes of other machines.
//
// Nor is seen there, for Wine takes every client for the user of the server: files
// from a client with other rights, dynamic tracking, AppContainers, restricted
// tokens and integrity levels. What a process allows is enforced, so tests lock
// processes instead.
func onWine(t *testing.T, reason string) {
	t.Helper()
	if isWine() {
		t.Skip("Wine " + reason)
	}
}

// Wine makes a pipe one of message type if it is to reject clients of other
// machines: see NtCreateNamedPipeFile there. byteType makes one of bytes.
var byteType = ipc.PipeConfig{AcceptRemote: isWine()}

func isWine() bool { return ntdll.NewProc("wine_get_version").Find() == nil }

// countHandles counts the handles of this process that look accepts. Wine does not tell
// their number, but handles are small numbers, and free ones are used again, so there is
// no handle far beyond the others.
func countHandles(look func(h uintptr) (open, accepted bool)) (n int) {
	const far = 256
	for h, free := uintptr(4), 0; free < far; h += 4 {
		open, accepted := look(h)
		if free++; open {
			free = 0
		}
		if accepted {
			n++
		}
	}
	return n
}

func allHandles() int {
	return countHandles(func(h uintptr) (open, accepted bool) {
		var flags uint32
		r, _, _ := getHandleInformation.Call(h, uintptr(unsafe.Pointer(&flags)))
		return r != 0, r != 0
	})
}

// fileHandles counts the handles of files and pipes. Others come and go with the
// runtime's threads.
func fileHandles() int { return handlesOf("File") }

// handlesOf counts the handles of objects of these types.
func handlesOf(types ...string) int {
	return countHandles(func(h uintptr) (open, accepted bool) {
		var info struct {
			length, capacity uint16
			name             *uint16
			rest             [1024]byte
		}
		const objectTypeInformation = 2
		status, _, _ := ntQueryObject.Call(h, objectTypeInformation, uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), 0)
		if int32(status) < 0 {
			return false, false
		}
		return true, slices.Contains(types, syscall.UTF16ToString(unsafe.Slice(info.name, info.length/2)))
	})
}

func pipePath() string { return `\\.\pipe\` + unique() }

func listenPipe(t *testing.T, c ipc.PipeConfig) (*ipc.PipeListener, string) {
	t.Helper()
	path := pipePath()
	l, err := ipc.ListenPipe(path, c)
	return kept(t, l, err), path
}

func dialPipe(t *testing.T, path string, d ipc.PipeDialer) *ipc.PipeConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	c, err := ipc.DialPipe(ctx, path, d)
	return kept(t, c, err)
}

func acceptPipe(t *testing.T, l *ipc.PipeListener) *ipc.PipeConn {
	t.Helper()
	c, err := l.AcceptPipe()
	return kept(t, c, err)
}

// connectPipe returns both ends of a new connection to a new pipe.
func connectPipe(t *testing.T, c ipc.PipeConfig) (client, server *ipc.PipeConn) {
	t.Helper()
	l, path := listenPipe(t, c)
	client = dialPipe(t, path, ipc.PipeDialer{Direction: c.Direction, Messages: c.Messages})
	server = acceptPipe(t, l)
	must(t, l.Close())
	return client, server
}

// tryDial attempts once, or a little longer, to open the pipe.
func tryDial(path string, d ipc.PipeDialer) (*ipc.PipeConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), brief)
	defer cancel()
	return ipc.DialPipe(ctx, path, d)
}

func background() context.Context { return context.Background() }

// control runs f with the handle.
func control(t *testing.T, c syscall.Conn, f func(h uintptr)) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(f))
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

func TestPathsThatAreNoPipes(t *testing.T) {
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

func TestBurstOfClientsGetsThrough(t *testing.T) {
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

func TestClientsThatVanishNeverSurface(t *testing.T) {
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

func TestClientThatWroteAndLeftIsHeard(t *testing.T) {
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

func TestCloseRacesWithDial(t *testing.T) {
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

func TestCloseEndsEightAcceptsAndAllOperations(t *testing.T) {
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

func TestNameIsNeverFree(t *testing.T) {
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

func TestNameThatIsTakenAndLeftIsInUseOrFree(t *testing.T) {
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

func TestDroppedPipeListenerIsClosed(t *testing.T) {
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

func TestDroppedPipeConnIsClosed(t *testing.T) {
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

func TestMaxInstancesMakesClientsWait(t *testing.T) {
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

func TestConnectionsOutliveTheListenerOfALimitedPipe(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{MaxInstances: 1})
	talk(t, client, server)
	must(t, server.Close())
	expectEOF(t, client)
}

func TestDirections(t *testing.T) {
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

func TestDialInTheWrongDirectionIsRefused(t *testing.T) {
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

func TestMessagesOfAByteStreamAreRefused(t *testing.T) {
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

func TestBuffersAndDefaultWait(t *testing.T) {
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

func TestInheritableAndWriteThroughReachTheHandle(t *testing.T) {
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

func TestBadPipeOptionsAreRefused(t *testing.T) {
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

func TestPipesAreNetListeners(t *testing.T) {
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

func expectMessage(t *testing.T, c *ipc.PipeConn, want string) {
	t.Helper()
	p := make([]byte, len(want)+1)
	n, more, err := c.ReadMessage(p)
	if err != nil || more || string(p[:n]) != want {
		t.Fatalf("message %.40q, %v, %v; want %.40q", p[:n], more, err, want)
	}
}

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

func TestLongPipeMessageComesInParts(t *testing.T) {
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

func TestMessagesAreReadAsAStreamWhenAskedTo(t *testing.T) {
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

func TestPeekMessage(t *testing.T) {
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

// limitSpin bounds the waits of the ends unless they are to stay as they are.
func limitSpin(spin time.Duration, ends ...interface{ SetSpin(time.Duration) }) {
	for _, end := range ends {
		if spin != asItIs {
			end.SetSpin(spin)
		}
	}
}

// overEachWait tells a story over ends that park at once, that wait as they do by
// default, and that wait long before they park.
func overEachWait(t *testing.T, tell func(t *testing.T, spin time.Duration)) {
	for _, spin := range []time.Duration{-1, asItIs, patience} {
		t.Run(spin.String(), func(t *testing.T) { story(t); tell(t, spin) })
	}
}

func TestStreamsAreTheSameHoweverReadsWait(t *testing.T) {
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

func TestMessagesAreTheSameHoweverReadsWait(t *testing.T) {
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

// threads is how many threads the program has had.
func threads() int { return pprof.Lookup("threadcreate").Count() }

func TestDeadlineDoesNotTearAMessage(t *testing.T) {
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

func TestManyWaitsHoldFewThreads(t *testing.T) {
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

func TestDisconnectThrowsTheClientOut(t *testing.T) {
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
// Who is there

// threadUser returns the user that the thread impersonates, or "".
func threadUser() (string, error) {
	const thisThread, noToken = ^uintptr(1), syscall.Errno(1008)
	var token syscall.Token
	r, _, err := openThreadToken.Call(thisThread, syscall.TOKEN_QUERY, 1, uintptr(unsafe.Pointer(&token)))
	switch {
	case r == 0 && err == noToken:
		return "", nil
	case r == 0:
		return "", err
	}
	defer token.Close()
	user, err := token.GetTokenUser()
	if err != nil {
		return "", err
	}
	return user.User.Sid.String()
}

// nobodyImpersonates fails the test if a thread does.
func nobodyImpersonates(t *testing.T) {
	t.Helper()
	var busy sync.WaitGroup
	ready := make(chan struct{})
	for range 50 { // more than there are idle threads
		busy.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			<-ready
			if user, err := threadUser(); user != "" || err != nil {
				t.Errorf("a thread acts as %q, %v", user, err)
			}
		})
	}
	close(ready)
	busy.Wait()
}

func TestImpersonateActsAsTheClientAndRevertsAlways(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{})
	talk(t, client, server)
	never := func() error { t.Error("runs"); return nil }
	matches(t, client.Impersonate(never), errors.ErrUnsupported)

	must(t, server.Impersonate(func() error {
		user, err := threadUser()
		if err == nil && user != me(t) {
			err = fmt.Errorf("the thread acts as %q", user)
		}
		return err
	}))
	nobodyImpersonates(t)

	failure := errors.New("f's own error")
	if err := server.Impersonate(func() error { return failure }); err != failure {
		t.Errorf("f fails, and the error is %v", err)
	}
	nobodyImpersonates(t)

	func() {
		defer func() {
			if p := recover(); p != "f panics" {
				t.Errorf("the panic is %v", p)
			}
		}()
		server.Impersonate(func() error { panic("f panics") })
	}()
	nobodyImpersonates(t)

	left := make(chan bool)
	go func() {
		returned := false
		defer func() { left <- returned }()
		server.Impersonate(func() error { runtime.Goexit(); return nil })
		returned = true
	}()
	if <-left {
		t.Error("Goexit in f did not end the caller's goroutine")
	}
	nobodyImpersonates(t)

	must(t, server.Close())
	matches(t, server.Impersonate(never), net.ErrClosed)
}

func TestClientsIdentityAtEveryLevel(t *testing.T) {
	story(t)
	l := listen(t, nameAddr(t))
	for _, level := range []ipc.ImpersonationLevel{ipc.Identification, ipc.Anonymous, ipc.Impersonation, ipc.Delegation} {
		client, err := ipc.Dialer{Timeout: soon, Sys: &ipc.SysDialer{Impersonation: level}}.Dial(l.Addr().(ipc.Addr))
		must(t, err)
		server := accept(t, l)
		p, err := server.Peer() // before anything was read
		must(t, err)
		if p.UserID() != me(t) && !(level == ipc.Anonymous && p.UserID() == "") { // Wine tells it all the same
			t.Errorf("%v: the user is %q, want %q", level, p.UserID(), me(t))
		}
		talk(t, client, server)
		must(t, client.Close())
		must(t, server.Close())
	}
	nobodyImpersonates(t)
}

func TestServerMayOnlyDoWhatTheClientAllows(t *testing.T) {
	onWine(t, "impersonates at any level")
	story(t)
	l, path := listenPipe(t, ipc.PipeConfig{})
	for level, want := range map[ipc.ImpersonationLevel]uint32{ipc.Identification: 1, ipc.Impersonation: 2} {
		client := dialPipe(t, path, ipc.PipeDialer{Impersonation: level})
		server := acceptPipe(t, l)
		talk(t, client, server)
		must(t, server.Impersonate(func() error {
			const thisThread, tokenImpersonationLevel = ^uintptr(1), 9
			var token syscall.Token
			if r, _, err := openThreadToken.Call(thisThread, syscall.TOKEN_QUERY, 1, uintptr(unsafe.Pointer(&token))); r == 0 {
				return err
			}
			defer token.Close()
			var got, size uint32
			err := syscall.GetTokenInformation(token, tokenImpersonationLevel, (*byte)(unsafe.Pointer(&got)), 4, &size)
			if err == nil && got != want {
				err = fmt.Errorf("%v: level %d, want %d", level, got, want)
			}
			return err
		}))
		must(t, client.Close())
		must(t, server.Close())
	}
}

func TestProcessAndSessionOfBothEnds(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{})
	for _, c := range []*ipc.PipeConn{client, server} {
		for _, ask := range []func() (uint32, error){c.ClientProcessID, c.ServerProcessID} {
			if pid, err := ask(); err != nil || int(pid) != os.Getpid() {
				t.Errorf("process %d, %v", pid, err)
			}
		}
		p, err := c.Peer()
		must(t, err)
		session, known := p.SessionID()
		if !known {
			t.Error("no session")
		}
		for _, ask := range []func() (uint32, error){c.ClientSessionID, c.ServerSessionID} {
			if id, err := ask(); err != nil || id != session {
				t.Errorf("session %d, %v, want %d", id, err, session)
			}
		}
	}
}

func TestPeerProcessStaysThatProcess(t *testing.T) {
	story(t)
	l := listen(t, nameAddr(t))
	c := startChild(t, "connect", l.Addr().String())
	server := accept(t, l)
	process, err := server.PeerProcess(syscall.SYNCHRONIZE)
	must(t, err)
	defer syscall.CloseHandle(process)
	if pid, _, _ := getProcessID.Call(uintptr(process)); int(pid) != c.pid() {
		t.Errorf("process %d, want %d", pid, c.pid())
	}
	c.kill()
	if event, err := syscall.WaitForSingleObject(process, syscall.INFINITE); event != syscall.WAIT_OBJECT_0 || err != nil {
		t.Errorf("waiting for its end: %d, %v", event, err)
	}
	must(t, server.Close())
	_, err = server.PeerProcess(0)
	matches(t, err, net.ErrClosed)
}

// ---------------------------------------------------------------------------
// Security

func TestPresetsAllowNoMoreThanTheySay(t *testing.T) {
	story(t)
	for _, access := range []ipc.Access{ipc.OwnerOnly, ipc.Everyone} {
		l, path := listenPipe(t, ipc.PipeConfig{Access: access})
		client, server := dialPipe(t, path, ipc.PipeDialer{}), acceptPipe(t, l)
		for _, read := range []func() (*ipc.SecurityDescriptor, error){l.SecurityDescriptor, client.SecurityDescriptor, server.SecurityDescriptor} {
			sd, err := read()
			must(t, err)
			if sd.Owner() != me(t) {
				t.Errorf("%v: the owner is %q", access, sd.Owner())
			}
			if !strings.Contains(sd.String(), "D:P") {
				t.Errorf("%v: %v is not protected", access, sd)
			}
			entries, ok := sd.DACL()
			if !ok {
				t.Fatalf("%v: no DACL", access)
			}
			allowed := map[string]uint32{}
			for _, e := range entries {
				if e.Deny {
					t.Errorf("%v: denies %v", access, e)
				}
				allowed[e.SID] |= e.Mask
			}
			const create = 0x4 // FILE_CREATE_PIPE_INSTANCE
			for sid, mask := range allowed {
				switch {
				case sid == me(t):
					if mask&ipc.ServerRights != ipc.ServerRights {
						t.Errorf("%v: this user has %#x", access, mask)
					}
				case mask&create != 0 || mask&^ipc.ClientRights != 0:
					t.Errorf("%v: %s has %#x", access, sid, mask)
				case sid == "S-1-5-18" || sid == "S-1-5-32-544":
				case sid == "S-1-1-0" && access == ipc.Everyone:
				default:
					t.Errorf("%v: %s is allowed", access, sid)
				}
			}
			if _, all := allowed["S-1-1-0"]; all != (access == ipc.Everyone) {
				t.Errorf("%v: %v", access, sd)
			}
		}
		talk(t, client, server)
	}
}

func TestSecurityDescriptorsAreReadAndWritten(t *testing.T) {
	story(t)
	const text = "O:SYG:BAD:P(D;;0x2;;;AN)(A;;0x12019f;;;WD)(A;;FA;;;S-1-5-21-1-2-3-1001)"
	sd, err := ipc.ParseSDDL(text)
	must(t, err)
	if sd.Owner() != "S-1-5-18" || sd.Group() != "S-1-5-32-544" {
		t.Errorf("owner %q, group %q", sd.Owner(), sd.Group())
	}
	entries, ok := sd.DACL()
	want := []ipc.AccessEntry{{"S-1-5-7", 0x2, true}, {"S-1-1-0", 0x12019f, false}, {"S-1-5-21-1-2-3-1001", 0x1f01ff, false}}
	if !ok || fmt.Sprint(entries) != fmt.Sprint(want) {
		t.Errorf("the DACL is %v, %v", entries, ok)
	}
	again, err := ipc.ParseSDDL(sd.String())
	must(t, err)
	if again.String() != sd.String() {
		t.Errorf("%q is read as %q", sd, again)
	}
	for _, text := range []string{"", "O:SY", "D:NO_ACCESS_CONTROL"} {
		sd, err := ipc.ParseSDDL(text)
		if err != nil {
			continue // some systems do not take all of them
		}
		if entries, ok := sd.DACL(); ok && len(entries) > 0 {
			t.Errorf("%q has entries %v", text, entries)
		}
	}
	_, err = ipc.ParseSDDL("nonsense")
	var oe *net.OpError
	if !errors.As(err, &oe) {
		t.Errorf("nonsense: %#v", err)
	}

	built, err := ipc.NewSecurityDescriptor(
		ipc.AccessEntry{SID: me(t), Mask: ipc.ServerRights},
		ipc.AccessEntry{SID: "S-1-5-7", Mask: ipc.ClientRights, Deny: true})
	must(t, err)
	l, path := listenPipe(t, ipc.PipeConfig{Security: built})
	client, server := dialPipe(t, path, ipc.PipeDialer{}), acceptPipe(t, l)
	talk(t, client, server)
	back, err := client.SecurityDescriptor()
	must(t, err)
	got, _ := back.DACL()
	made, _ := built.DACL()
	if back.Owner() != me(t) || fmt.Sprint(got) != fmt.Sprint(made) {
		t.Errorf("%v was set, and %v read back", built, back)
	}
	listening := listenWith(t, ipc.ListenConfig{Sys: &ipc.SysListenConfig{Security: built, ReadBuffer: 1 << 10, WriteBuffer: 2 << 10}}, nameAddr(t))
	serves(t, listening, listening.Addr().(ipc.Addr))
}

func TestSecurityIsEnforced(t *testing.T) {
	onWine(t, "does not enforce security descriptors")
	story(t)
	sd, err := ipc.NewSecurityDescriptor(
		ipc.AccessEntry{SID: me(t), Mask: 0x1, Deny: true}, // FILE_READ_DATA, which the listener opened already
		ipc.AccessEntry{SID: me(t), Mask: ipc.ServerRights})
	must(t, err)
	if l, err := ipc.ListenPipe(pipePath(), ipc.PipeConfig{Security: sd}); err == nil {
		l.Close()
		t.Error("more instances were made than the descriptor allows")
	} else {
		matches(t, err, os.ErrPermission)
	}
}

func TestServerOfAnotherUserIsNotTrusted(t *testing.T) {
	story(t)
	sd, err := ipc.ParseSDDL("O:S-1-5-21-1-2-3-1001D:P(A;;FA;;;WD)")
	must(t, err)
	path := pipePath()
	l, err := ipc.ListenPipe(path, ipc.PipeConfig{Security: sd})
	if err != nil {
		t.Skipf("this user cannot make a pipe that another owns: %v", err)
	}
	defer l.Close()
	for _, addr := range []ipc.Addr{ipc.Path(path), ipc.Name(strings.TrimPrefix(path, `\\.\pipe\`))} {
		_, err = ipc.Dialer{Timeout: soon}.Dial(addr)
		matches(t, err, ipc.ErrUntrusted)
	}
	_, err = ipc.DialPipe(background(), path, ipc.PipeDialer{})
	matches(t, err, ipc.ErrUntrusted)
	accepted := begin(func() error {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		return err
	})
	c, err := ipc.Dialer{Timeout: soon, Access: ipc.Everyone}.Dial(ipc.Path(path))
	must(t, err)
	must(t, c.Close())
	l.Close()
	<-accepted
}

func TestPipeOfAnotherMachineIsNotTrusted(t *testing.T) {
	onWine(t, "has no pipes of other machines")
	story(t)
	l, path := listenPipe(t, ipc.PipeConfig{AcceptRemote: true})
	defer l.Close()
	_, err := ipc.Dialer{Timeout: soon}.Dial(ipc.Path(`\\localhost` + path[3:]))
	matches(t, err, ipc.ErrUntrusted)
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

func TestHandlesThatAreNoConnsAreRefused(t *testing.T) {
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

func TestSyscallConnNeverWaits(t *testing.T) {
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
