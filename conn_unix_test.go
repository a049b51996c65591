//go:build unix

// Descriptors, adopted sockets and other programs, on every Unix.
package ipc_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["adopts"] = childAdoptsListener

	kit.Roles["knows"] = childTellsItsPeer
	kit.Roles["heir"] = childInheritsAnEnd
}

// ---------------------------------------------------------------------------
// Descriptors

func TestConnDescriptorsAreCloseOnExec(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		before := kit.Descriptors()
		l := kit.Listen(t, addr)
		kit.Connect(t, l)
		kit.Dial(t, addr)
		kit.Pair(t)
		f, err := l.File()
		kit.Kept(t, f, err)
		adopted, err := ipc.FileListener(f)
		kit.Kept(t, adopted, err)
		if n := kit.AreCloseOnExec(t, before); n < 8 {
			t.Fatalf("only %d new descriptors", n)
		}
	})
}

func TestConnThatWasDroppedIsCollected(t *testing.T) {
	kit.AreCollected(t, func() {
		a, b, err := ipc.Pair()
		kit.Must(t, err)
		kit.Must(t, a.SetReadDeadline(time.Now().Add(time.Hour))) // one that joined the poller, one that did not
		_, _ = a, b
	})
}

func TestListenersThatAreDroppedAreCollected(t *testing.T) {
	dir := t.TempDir() // what they leave there is stale
	n := 0
	kit.AreCollected(t, func() {
		n++
		_, err := ipc.Listen(ipc.Path(fmt.Sprint(dir, "/", n)))
		kit.Must(t, err)
	})
	for i := range n {
		kit.Must(t, kit.Listen(t, ipc.Path(fmt.Sprint(dir, "/", i+1))).Close())
	}
	if names := kit.NamesIn(t, dir); len(names) > 0 {
		t.Errorf("%s are left", names)
	}
}

// A peer need not send a whole frame.
func TestMsgConnCloseClosesTheFilesOfHalfAFrame(t *testing.T) {
	overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
		for range 3 {
			r, w := kit.Pipe(t)
			f, err := w.File()
			kit.Must(t, err)
			raw, err := f.SyscallConn()
			kit.Must(t, err)
			kit.Must(t, raw.Control(func(fd uintptr) {
				_, err = stream.WriteMsg([]byte{0, 0}, syscall.UnixRights(int(fd)))
			}))
			kit.Must(t, err)
			kit.Must(t, errors.Join(f.Close(), w.Close()))
			kit.Must(t, c.SetReadDeadline(time.Now().Add(kit.Brief)))
			_, err = c.RecvFiles(1)
			kit.TimedOut(t, err)
			kit.Must(t, c.Close())
			kit.ExpectEOF(t, r) // nobody has the other end
			kit.Must(t, r.Close())
			c, stream = frameEnds(t)
		}
		kit.Must(t, errors.Join(c.Close(), stream.Close()))
	})
}

func TestConnSyscallConnReachesTheDescriptor(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		client, server := kit.Connect(t, l)
		option := func(c syscall.Conn, opt int) (value int) {
			t.Helper()
			raw, err := c.SyscallConn()
			kit.Must(t, err)
			kit.Must(t, raw.Control(func(fd uintptr) {
				value, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, opt)
			}))
			kit.Must(t, err)
			return value
		}
		for _, c := range []syscall.Conn{l, client, server} {
			if typ := option(c, syscall.SO_TYPE); typ != syscall.SOCK_STREAM {
				t.Errorf("socket type is %d", typ)
			}
		}

		raw, err := client.SyscallConn()
		kit.Must(t, err)
		var text string
		reading := kit.Begin(func() error {
			buf := make([]byte, 10)
			return raw.Read(func(fd uintptr) bool {
				n, err := syscall.Read(int(fd), buf)
				text = string(buf[:max(n, 0)])
				return err != syscall.EAGAIN
			})
		})
		kit.Send(t, server, "raw")
		kit.Must(t, <-reading)
		if text != "raw" {
			t.Errorf("read %q", text)
		}
		kit.Must(t, raw.Write(func(fd uintptr) bool {
			_, err = syscall.Write(int(fd), []byte("wild"))
			return true
		}))
		kit.Must(t, err)
		kit.Expect(t, server, "wild")

		kit.Must(t, client.SetReadDeadline(time.Now().Add(kit.Brief)))
		kit.TimedOut(t, raw.Read(func(uintptr) bool { return false }))
		kit.Must(t, client.SetReadDeadline(time.Time{}))
		reading = kit.Begin(func() error { return raw.Read(func(uintptr) bool { return false }) })
		kit.Must(t, client.Close())
		kit.Matches(t, <-reading, net.ErrClosed)
	})
}

func TestConnBufferSizes(t *testing.T) {
	kit.Story(t)
	a, _ := kit.Pair(t)
	const size = 100_000
	kit.Must(t, a.SetWriteBuffer(size))
	kit.Must(t, a.SetReadBuffer(size))
	raw, err := a.SyscallConn()
	kit.Must(t, err)
	kit.Must(t, raw.Control(func(fd uintptr) {
		for _, opt := range []int{syscall.SO_SNDBUF, syscall.SO_RCVBUF} {
			if n, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, opt); n < size || err != nil {
				t.Errorf("option %d is %d, %v", opt, n, err)
			}
		}
	}))
	if a.SetWriteBuffer(-1) == nil || a.SetReadBuffer(-1) == nil {
		t.Error("a negative size is accepted")
	}
}

func TestConnBufferSizesHaveAFloor(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	option := func(c *ipc.Conn, opt int) (n int) {
		raw, err := c.SyscallConn()
		kit.Must(t, err)
		var e error
		kit.Must(t, raw.Control(func(fd uintptr) { n, e = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, opt) }))
		kit.Must(t, e)
		return n
	}
	for opt, set := range map[int]func(c *ipc.Conn, n int) error{
		syscall.SO_SNDBUF: (*ipc.Conn).SetWriteBuffer,
		syscall.SO_RCVBUF: (*ipc.Conn).SetReadBuffer,
	} {
		kit.Must(t, set(b, 4096))
		floor := option(b, opt)
		for _, n := range []int{0, 1, 4095} {
			kit.Must(t, set(a, n))
			if got := option(a, opt); got != floor {
				t.Errorf("option %d is %d for %d, and %d for 4096", opt, got, n, floor)
			}
		}
	}
	kit.Send(t, a, "more than a byte goes at once")
	kit.Expect(t, b, "more than a byte goes at once")
}

func TestConnHalfCloseAfterThePeersClose(t *testing.T) {
	for name, first := range map[string]func(*ipc.Conn) error{
		"CloseRead":  (*ipc.Conn).CloseRead,
		"CloseWrite": (*ipc.Conn).CloseWrite,
	} {
		t.Run(name, func(t *testing.T) {
			kit.OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
				kit.Send(t, b, "unread")
				kit.Must(t, b.Close())
				kit.Must(t, errors.Join(a.SetReadBuffer(8<<10), a.SetWriteBuffer(8<<10)))
				kit.Must(t, first(a))
				kit.Must(t, a.CloseRead())
				kit.ExpectEOF(t, a)
				kit.Must(t, a.CloseWrite())
				kit.Must(t, a.CloseWrite()) // it is done already
				kit.Must(t, errors.Join(a.SetReadBuffer(8<<10), a.SetWriteBuffer(8<<10)))
				_, err := a.Write([]byte("x"))
				kit.Matches(t, err, syscall.EPIPE)
				kit.Must(t, a.Close())
				kit.Matches(t, a.CloseRead(), net.ErrClosed)
				kit.Matches(t, a.CloseWrite(), net.ErrClosed)
			})
		})
	}
}

func TestConnHalfCloseTwice(t *testing.T) {
	kit.OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		kit.Must(t, errors.Join(b.CloseWrite(), a.CloseRead(), a.CloseRead()))
		kit.ExpectEOF(t, a)
		kit.Must(t, errors.Join(b.CloseRead(), a.CloseWrite(), a.CloseWrite()))
		kit.ExpectEOF(t, b)
	})
}

func TestConnCloseReadIsTheEndOfReading(t *testing.T) {
	kit.OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		flooding := flood(a)
		kit.Expect(t, b, string(make([]byte, 100)))
		kit.Must(t, b.CloseRead())
		for range 200 { // whatever the peer goes on to send
			kit.ExpectEOF(t, b)
			if n, err := b.ReadBuffers([][]byte{make([]byte, 10)}); n != 0 || err != io.EOF {
				t.Fatalf("read %d, %v; want io.EOF itself", n, err)
			}
			runtime.Gosched()
		}
		kit.Send(t, b, "the other way")
		kit.Expect(t, a, "the other way")
		kit.Must(t, a.Close()) // not every system tells it that nobody reads
		if err := <-flooding; !errors.Is(err, net.ErrClosed) {
			kit.Matches(t, err, syscall.EPIPE)
		}
	})
}

func TestConnFileIsADuplicate(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		client, server := kit.Connect(t, l)
		f, err := client.File()
		kit.Must(t, err)
		kit.Talk(t, client, server) // the original still waits and wakes
		kit.Must(t, client.SetReadDeadline(time.Now().Add(kit.Brief)))
		_, err = client.Read(make([]byte, 1))
		kit.TimedOut(t, err)
		kit.Must(t, client.Close())

		adopted, err := ipc.FileConn(f)
		kit.Must(t, err)
		defer adopted.Close()
		kit.Must(t, f.Close())
		kit.Talk(t, adopted, server)
		// Of a long path the kernel knows a temporary name.
		if want := kit.AddrOfSocket(l); len(want) <= 103 && adopted.RemoteAddr().String() != want {
			t.Errorf("the address is %v, want %v", adopted.RemoteAddr(), want)
		}
		kit.IsProcess(t, kit.PeerOf(t, adopted), os.Getpid())
		reading := kit.BeginRead(adopted)
		kit.AwaitParked(t, "(*Conn).Read", 1)
		kit.Must(t, adopted.Close())
		kit.Matches(t, <-reading, net.ErrClosed)
		kit.ExpectEOF(t, server) // not before the last duplicate was closed
	})
}

func TestFileConnAdoptsForeignSockets(t *testing.T) {
	kit.Story(t)
	a, b := kit.AdoptPair(t, syscall.SOCK_STREAM, ipc.FileConn)
	kit.Talk(t, a, b)
	kit.Must(t, a.SetReadDeadline(time.Now().Add(kit.Brief)))
	_, err := a.Read(make([]byte, 1))
	kit.TimedOut(t, err)
}

func TestFileConnRefusesWhatIsNoConnection(t *testing.T) {
	kit.Story(t)
	dir := kit.TempDir(t)
	socket := func(typ int) *os.File {
		fd, err := syscall.Socket(syscall.AF_UNIX, typ, 0)
		kit.Must(t, err)
		return os.NewFile(uintptr(fd), "socket")
	}
	l := kit.Listen(t, ipc.Path(dir+"/socket"))
	listening, err := l.File()
	kit.Must(t, err)
	c, _ := kit.Pair(t)
	connected, err := c.File()
	kit.Must(t, err)
	file, err := os.Create(dir + "/file")
	kit.Must(t, err)
	r, w, err := os.Pipe()
	kit.Must(t, err)
	kit.Must(t, os.Remove(dir+"/file"))
	datagram, unconnected := socket(syscall.SOCK_DGRAM), socket(syscall.SOCK_STREAM)

	for what, f := range map[string]*os.File{
		"a file": file, "a pipe": r, "the other end": w, "a datagram socket": datagram,
		"an unconnected socket": unconnected, "a listening socket": listening,
	} {
		if c, err := ipc.FileConn(f); err == nil {
			t.Errorf("FileConn adopts %s", what)
			c.Close()
		} else if oe := (*net.OpError)(nil); !errors.As(err, &oe) || oe.Op != "file" {
			t.Errorf("%s: %#v is not a *net.OpError", what, err)
		}
		if what != "a listening socket" {
			if l, err := ipc.FileListener(f); err == nil {
				t.Errorf("FileListener adopts %s", what)
				l.Close()
			}
		}
	}
	if l, err := ipc.FileListener(connected); err == nil {
		t.Error("FileListener adopts a connection")
		l.Close()
	}
	for _, f := range []*os.File{file, r, w, datagram, unconnected, listening, connected} {
		if _, err := f.Stat(); err != nil {
			t.Errorf("the caller's file is gone: %v", err)
		}
		kit.Must(t, f.Close())
		for what, adopt := range map[string]func(f *os.File) error{
			"FileConn":     func(f *os.File) error { _, err := ipc.FileConn(f); return err },
			"FileMsgConn":  func(f *os.File) error { _, err := ipc.FileMsgConn(f); return err },
			"FileListener": func(f *os.File) error { _, err := ipc.FileListener(f); return err },
			"FileReader":   func(f *os.File) error { _, err := ipc.FileReader(f); return err },
			"FileWriter":   func(f *os.File) error { _, err := ipc.FileWriter(f); return err },
		} {
			if err := adopt(f); !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s says %v of a closed file", what, err)
			}
		}
	}
	if _, err := ipc.FileConn(nil); err == nil {
		t.Error("FileConn adopts nil")
	}
}

func TestFileListenerNeverUnlinks(t *testing.T) {
	kit.Story(t)
	path := kit.SockPath(t)
	l := kit.Listen(t, ipc.Path(path))
	adopted := kit.Adopt(t, l)
	if adopted.Addr() != l.Addr() {
		t.Errorf("the address is %v", adopted.Addr())
	}
	kit.Serves(t, adopted, ipc.Path(path))
	kit.Serves(t, l, ipc.Path(path))
	accepting := kit.Begin(func() error { _, err := adopted.Accept(); return err })
	kit.AwaitParked(t, "(*Listener).AcceptConn", 1)
	kit.Must(t, adopted.Close())
	kit.Matches(t, <-accepting, net.ErrClosed)
	kit.Matches(t, adopted.Close(), net.ErrClosed)
	kit.Serves(t, l, ipc.Path(path))
}

func TestListenerIsHandedToAChild(t *testing.T) {
	kit.Story(t)
	path := kit.SockPath(t)
	l := kit.ListenWith(t, ipc.ListenConfig{KeepName: true}, ipc.Path(path))
	f, err := l.File()
	kit.Must(t, err)
	c := kit.StartChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "adopts")
	kit.Must(t, f.Close())
	kit.Must(t, l.Close()) // the child's is left
	c.MustSay("adopted " + path)
	client := kit.Dial(t, ipc.Path(path))
	kit.Expect(t, client, "from the heir")
	c.End()
	kit.Must(t, os.Remove(path))
}

func childAdoptsListener(p *kit.Parent, _ []string) error {
	f := os.NewFile(3, "listener")
	l, err := ipc.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	p.Say("adopted %s", l.Addr())
	c := kit.Sure(l.Accept())
	_, err = io.WriteString(c, "from the heir")
	return errors.Join(err, c.Close(), l.Close())
}

// ---------------------------------------------------------------------------
// Other programs

func TestConnSpeaksWithForeignPrograms(t *testing.T) {
	kit.Story(t)
	path := kit.OpenDir(t) + "/socket"

	l := kit.Listen(t, ipc.Path(path))
	foreign, err := net.Dial("unix", path)
	kit.Must(t, err)
	defer foreign.Close()
	server := kit.Accept(t, l)
	kit.Talk(t, foreign, server)
	kit.Must(t, foreign.(*net.UnixConn).CloseWrite())
	kit.ExpectEOF(t, server)
	kit.Must(t, server.Close())
	kit.Must(t, l.Close())

	kit.ServeForeign(t, path)
	client := kit.Dial(t, ipc.Path(path))
	got, err := io.ReadAll(client)
	if !bytes.Equal(got, []byte("foreign")) || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestConnTellsTheClientsOwnAddress(t *testing.T) {
	kit.Story(t)
	dir := kit.OpenDir(t)
	l := kit.Listen(t, ipc.Path(dir+"/socket"))
	foreign, err := net.DialUnix("unix",
		&net.UnixAddr{Name: dir + "/client", Net: "unix"}, &net.UnixAddr{Name: dir + "/socket", Net: "unix"})
	kit.Must(t, err)
	defer os.Remove(dir + "/client")
	defer foreign.Close()
	if got := kit.Accept(t, l).RemoteAddr(); got != ipc.Path(dir+"/client") {
		t.Errorf("the client's address is %v", got)
	}
}

// ---------------------------------------------------------------------------
// Peers

// childTellsItsPeer connects to the server and tells who that is.
func childTellsItsPeer(p *kit.Parent, args []string) error {
	addr := kit.Sure(ipc.ParseAddr(args[0]))
	c := kit.Sure(ipc.Dialer{Access: ipc.Everyone}.Dial(addr))
	peer := kit.Sure(c.Peer())
	p.Say("%v", peer)
	p.Hear()
	return c.Close()
}

func TestPeerOfAnotherUser(t *testing.T) {
	kit.OverEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
		stranger := kit.StartStranger(t, "knows", addr.String())
		server := kit.Accept(t, l)
		p := kit.PeerOf(t, server)
		if uid, ok := p.UID(); uid != kit.Nobody || !ok {
			t.Errorf("UID is %d, %v", uid, ok)
		}
		if gid, ok := p.GID(); ok && gid != kit.Nobody {
			t.Errorf("GID is %d", gid)
		}
		if id := p.UserID(); id != strconv.Itoa(kit.Nobody) {
			t.Errorf("UserID is %q", id)
		}
		if groups := p.Groups(); len(groups) > 0 && !slices.Equal(groups, []int{kit.Nobody}) {
			t.Errorf("groups are %v", groups)
		}
		if pid, ok := p.PID(); ok && pid != stranger.PID() {
			t.Errorf("PID is %d, want %d", pid, stranger.PID())
		}
		if !strings.Contains(p.String(), "uid "+strconv.Itoa(kit.Nobody)) {
			t.Errorf("%q does not tell the user", p)
		}

		said := stranger.Hear() // and of the other end, us
		if !strings.Contains(said, "uid 0") || kit.PidsAreTold && !strings.Contains(said, "pid "+strconv.Itoa(os.Getpid())) {
			t.Errorf("the stranger's peer is %q", said)
		}
		stranger.End()
	})
}

// TestPeerIsWhoMadeTheSocket whatever process has it: a Pair given to a child is
// still that of its maker.
func TestPeerIsWhoMadeTheSocket(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	f, err := b.File()
	kit.Must(t, err)
	c := kit.StartChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "heir")
	kit.Must(t, errors.Join(f.Close(), b.Close()))
	c.MustSay(strconv.FormatBool(kit.PidsAreTold))
	kit.Expect(t, a, "from the heir")
	if runtime.GOOS != "darwin" && runtime.GOOS != "ios" { // where it is who used the end last, as long as it is open
		kit.IsProcess(t, kit.PeerOf(t, a), os.Getpid()) // and not the child
	}
	c.End()
	kit.ExpectEOF(t, a)
}

// childInheritsAnEnd says whether its peer is its parent.
func childInheritsAnEnd(p *kit.Parent, _ []string) error {
	f := os.NewFile(3, "end")
	c, err := ipc.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	peer := kit.Sure(c.Peer())
	pid, _ := peer.PID()
	p.Say("%v", pid == os.Getppid())
	_, err = c.Write([]byte("from the heir"))
	return errors.Join(err, c.Close())
}

// ---------------------------------------------------------------------------
// Shared memory

// A process that is stopped keeps nobody from heeding a deadline, and loses nothing.
func TestSharedConnPeerIsStopped(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	server := kit.StartChild(t, "shared serve", addr.String())
	server.MustSay("serving")
	c, err := ipc.DialShared(addr)
	kit.Kept(t, c, err)
	kit.TalkToEcho(t, c)
	kit.Must(t, syscall.Kill(server.PID(), syscall.SIGSTOP))
	kit.Must(t, c.SetDeadline(time.Now().Add(kit.Brief)))
	written := 0
	for err = nil; err == nil; {
		var n int
		n, err = c.Write(make([]byte, 10000))
		written += n
	}
	kit.TimedOut(t, err)
	kit.Must(t, c.SetDeadline(time.Now().Add(kit.Brief)))
	got := 0 // what it sent before it was stopped
	for err = nil; err == nil; {
		var n int
		n, err = c.Read(make([]byte, 10000))
		got += n
	}
	kit.TimedOut(t, err)
	kit.Must(t, c.SetDeadline(time.Time{}))
	kit.Must(t, syscall.Kill(server.PID(), syscall.SIGCONT))
	_, err = io.ReadFull(c, make([]byte, written-got))
	kit.Must(t, err)
	kit.TalkToEcho(t, c)
	kit.Must(t, c.Close())
	server.End()
}

// A peer that leaves with files unread resets the socket.
func TestSharedRecvFilesAfterAPeerThatLeftSomeIsTheEnd(t *testing.T) {
	overEachSetUp(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		f, err := os.Open(os.DevNull)
		kit.Kept(t, f, err)
		kit.Must(t, a.SendFiles(f))
		kit.Must(t, b.Close())
		if _, err := a.RecvFiles(1); err != io.EOF {
			t.Errorf("RecvFiles: %v", err)
		}
	})
}
