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
)

func init() {
	roles["adopts"] = childAdoptsListener

	roles["knows"] = childTellsItsPeer
	roles["heir"] = childInheritsAnEnd
}

// ---------------------------------------------------------------------------
// Descriptors

func TestConnDescriptorsAreCloseOnExec(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		before := descriptors()
		l := listen(t, addr)
		connect(t, l)
		dial(t, addr)
		pair(t)
		f, err := l.File()
		kept(t, f, err)
		adopted, err := ipc.FileListener(f)
		kept(t, adopted, err)
		if n := areCloseOnExec(t, before); n < 8 {
			t.Fatalf("only %d new descriptors", n)
		}
	})
}

// childLooksForDescriptors fails if it has one of its parent's.
func childLooksForDescriptors(_ *parent, args []string) error {
	for _, arg := range args {
		fd, err := strconv.Atoi(strings.Fields(arg)[0])
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if syscall.Fstat(fd, &st) == nil && fmt.Sprintf("%d %d %d", fd, st.Dev, st.Ino) == arg {
			return fmt.Errorf("inherited descriptor %d", fd)
		}
	}
	return nil
}

func TestConnThatWasDroppedIsCollected(t *testing.T) {
	areCollected(t, func() {
		a, b, err := ipc.Pair()
		must(t, err)
		must(t, a.SetReadDeadline(time.Now().Add(time.Hour))) // one that joined the poller, one that did not
		_, _ = a, b
	})
}

func TestListenersThatAreDroppedAreCollected(t *testing.T) {
	dir := t.TempDir() // what they leave there is stale
	n := 0
	areCollected(t, func() {
		n++
		_, err := ipc.Listen(ipc.Path(fmt.Sprint(dir, "/", n)))
		must(t, err)
	})
	for i := range n {
		must(t, listen(t, ipc.Path(fmt.Sprint(dir, "/", i+1))).Close())
	}
	if names := namesIn(t, dir); len(names) > 0 {
		t.Errorf("%s are left", names)
	}
}

// A peer need not send a whole frame.
func TestMsgConnCloseClosesTheFilesOfHalfAFrame(t *testing.T) {
	overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
		for range 3 {
			r, w := pipe(t)
			f, err := w.File()
			must(t, err)
			raw, err := f.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) {
				_, err = stream.WriteMsg([]byte{0, 0}, syscall.UnixRights(int(fd)))
			}))
			must(t, err)
			must(t, errors.Join(f.Close(), w.Close()))
			must(t, c.SetReadDeadline(time.Now().Add(brief)))
			_, err = c.RecvFiles(1)
			timedOut(t, err)
			must(t, c.Close())
			expectEOF(t, r) // nobody has the other end
			must(t, r.Close())
			c, stream = frameEnds(t)
		}
		must(t, errors.Join(c.Close(), stream.Close()))
	})
}

func TestConnSyscallConnReachesTheDescriptor(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client, server := connect(t, l)
		option := func(c syscall.Conn, opt int) (value int) {
			t.Helper()
			raw, err := c.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) {
				value, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, opt)
			}))
			must(t, err)
			return value
		}
		for _, c := range []syscall.Conn{l, client, server} {
			if typ := option(c, syscall.SO_TYPE); typ != syscall.SOCK_STREAM {
				t.Errorf("socket type is %d", typ)
			}
		}

		raw, err := client.SyscallConn()
		must(t, err)
		var text string
		reading := begin(func() error {
			buf := make([]byte, 10)
			return raw.Read(func(fd uintptr) bool {
				n, err := syscall.Read(int(fd), buf)
				text = string(buf[:max(n, 0)])
				return err != syscall.EAGAIN
			})
		})
		send(t, server, "raw")
		must(t, <-reading)
		if text != "raw" {
			t.Errorf("read %q", text)
		}
		must(t, raw.Write(func(fd uintptr) bool {
			_, err = syscall.Write(int(fd), []byte("wild"))
			return true
		}))
		must(t, err)
		expect(t, server, "wild")

		must(t, client.SetReadDeadline(time.Now().Add(brief)))
		timedOut(t, raw.Read(func(uintptr) bool { return false }))
		must(t, client.SetReadDeadline(time.Time{}))
		reading = begin(func() error { return raw.Read(func(uintptr) bool { return false }) })
		must(t, client.Close())
		matches(t, <-reading, net.ErrClosed)
	})
}

func TestConnBufferSizes(t *testing.T) {
	story(t)
	a, _ := pair(t)
	const size = 100_000
	must(t, a.SetWriteBuffer(size))
	must(t, a.SetReadBuffer(size))
	raw, err := a.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
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
	story(t)
	a, b := pair(t)
	option := func(c *ipc.Conn, opt int) (n int) {
		raw, err := c.SyscallConn()
		must(t, err)
		var e error
		must(t, raw.Control(func(fd uintptr) { n, e = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, opt) }))
		must(t, e)
		return n
	}
	for opt, set := range map[int]func(c *ipc.Conn, n int) error{
		syscall.SO_SNDBUF: (*ipc.Conn).SetWriteBuffer,
		syscall.SO_RCVBUF: (*ipc.Conn).SetReadBuffer,
	} {
		must(t, set(b, 4096))
		floor := option(b, opt)
		for _, n := range []int{0, 1, 4095} {
			must(t, set(a, n))
			if got := option(a, opt); got != floor {
				t.Errorf("option %d is %d for %d, and %d for 4096", opt, got, n, floor)
			}
		}
	}
	send(t, a, "more than a byte goes at once")
	expect(t, b, "more than a byte goes at once")
}

func TestConnHalfCloseAfterThePeersClose(t *testing.T) {
	for name, first := range map[string]func(*ipc.Conn) error{
		"CloseRead":  (*ipc.Conn).CloseRead,
		"CloseWrite": (*ipc.Conn).CloseWrite,
	} {
		t.Run(name, func(t *testing.T) {
			overEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
				send(t, b, "unread")
				must(t, b.Close())
				must(t, errors.Join(a.SetReadBuffer(8<<10), a.SetWriteBuffer(8<<10)))
				must(t, first(a))
				must(t, a.CloseRead())
				expectEOF(t, a)
				must(t, a.CloseWrite())
				must(t, a.CloseWrite()) // it is done already
				must(t, errors.Join(a.SetReadBuffer(8<<10), a.SetWriteBuffer(8<<10)))
				_, err := a.Write([]byte("x"))
				matches(t, err, syscall.EPIPE)
				must(t, a.Close())
				matches(t, a.CloseRead(), net.ErrClosed)
				matches(t, a.CloseWrite(), net.ErrClosed)
			})
		})
	}
}

func TestConnHalfCloseTwice(t *testing.T) {
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		must(t, errors.Join(b.CloseWrite(), a.CloseRead(), a.CloseRead()))
		expectEOF(t, a)
		must(t, errors.Join(b.CloseRead(), a.CloseWrite(), a.CloseWrite()))
		expectEOF(t, b)
	})
}

func TestConnCloseReadIsTheEndOfReading(t *testing.T) {
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		flooding := flood(a)
		expect(t, b, string(make([]byte, 100)))
		must(t, b.CloseRead())
		for range 200 { // whatever the peer goes on to send
			expectEOF(t, b)
			if n, err := b.ReadBuffers([][]byte{make([]byte, 10)}); n != 0 || err != io.EOF {
				t.Fatalf("read %d, %v; want io.EOF itself", n, err)
			}
			runtime.Gosched()
		}
		send(t, b, "the other way")
		expect(t, a, "the other way")
		must(t, a.Close()) // not every system tells it that nobody reads
		if err := <-flooding; !errors.Is(err, net.ErrClosed) {
			matches(t, err, syscall.EPIPE)
		}
	})
}

func TestConnFileIsADuplicate(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client, server := connect(t, l)
		f, err := client.File()
		must(t, err)
		talk(t, client, server) // the original still waits and wakes
		must(t, client.SetReadDeadline(time.Now().Add(brief)))
		_, err = client.Read(make([]byte, 1))
		timedOut(t, err)
		must(t, client.Close())

		adopted, err := ipc.FileConn(f)
		must(t, err)
		defer adopted.Close()
		must(t, f.Close())
		talk(t, adopted, server)
		// Of a long path the kernel knows a temporary name.
		if want := addrOfSocket(l); len(want) <= 103 && adopted.RemoteAddr().String() != want {
			t.Errorf("the address is %v, want %v", adopted.RemoteAddr(), want)
		}
		isProcess(t, peerOf(t, adopted), os.Getpid())
		reading := beginRead(adopted)
		awaitParked(t, "(*Conn).Read", 1)
		must(t, adopted.Close())
		matches(t, <-reading, net.ErrClosed)
		expectEOF(t, server) // not before the last duplicate was closed
	})
}

func TestFileConnAdoptsForeignSockets(t *testing.T) {
	story(t)
	a, b := adoptPair(t, syscall.SOCK_STREAM, ipc.FileConn)
	talk(t, a, b)
	must(t, a.SetReadDeadline(time.Now().Add(brief)))
	_, err := a.Read(make([]byte, 1))
	timedOut(t, err)
}

func TestFileConnRefusesWhatIsNoConnection(t *testing.T) {
	story(t)
	dir := tempDir(t)
	socket := func(typ int) *os.File {
		fd, err := syscall.Socket(syscall.AF_UNIX, typ, 0)
		must(t, err)
		return os.NewFile(uintptr(fd), "socket")
	}
	l := listen(t, ipc.Path(dir+"/socket"))
	listening, err := l.File()
	must(t, err)
	c, _ := pair(t)
	connected, err := c.File()
	must(t, err)
	file, err := os.Create(dir + "/file")
	must(t, err)
	r, w, err := os.Pipe()
	must(t, err)
	must(t, os.Remove(dir+"/file"))
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
		must(t, f.Close())
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
	story(t)
	path := sockPath(t)
	l := listen(t, ipc.Path(path))
	adopted := adopt(t, l)
	if adopted.Addr() != l.Addr() {
		t.Errorf("the address is %v", adopted.Addr())
	}
	serves(t, adopted, ipc.Path(path))
	serves(t, l, ipc.Path(path))
	accepting := begin(func() error { _, err := adopted.Accept(); return err })
	awaitParked(t, "(*Listener).AcceptConn", 1)
	must(t, adopted.Close())
	matches(t, <-accepting, net.ErrClosed)
	matches(t, adopted.Close(), net.ErrClosed)
	serves(t, l, ipc.Path(path))
}

func TestListenerIsHandedToAChild(t *testing.T) {
	story(t)
	path := sockPath(t)
	l := listenWith(t, ipc.ListenConfig{KeepName: true}, ipc.Path(path))
	f, err := l.File()
	must(t, err)
	c := startChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "adopts")
	must(t, f.Close())
	must(t, l.Close()) // the child's is left
	c.mustSay("adopted " + path)
	client := dial(t, ipc.Path(path))
	expect(t, client, "from the heir")
	c.end()
	must(t, os.Remove(path))
}

func childAdoptsListener(p *parent, _ []string) error {
	f := os.NewFile(3, "listener")
	l, err := ipc.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	p.say("adopted %s", l.Addr())
	c := sure(l.Accept())
	_, err = io.WriteString(c, "from the heir")
	return errors.Join(err, c.Close(), l.Close())
}

// ---------------------------------------------------------------------------
// Other programs

func TestConnSpeaksWithForeignPrograms(t *testing.T) {
	story(t)
	path := openDir(t) + "/socket"

	l := listen(t, ipc.Path(path))
	foreign, err := net.Dial("unix", path)
	must(t, err)
	defer foreign.Close()
	server := accept(t, l)
	talk(t, foreign, server)
	must(t, foreign.(*net.UnixConn).CloseWrite())
	expectEOF(t, server)
	must(t, server.Close())
	must(t, l.Close())

	serveForeign(t, path)
	client := dial(t, ipc.Path(path))
	got, err := io.ReadAll(client)
	if !bytes.Equal(got, []byte("foreign")) || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestConnTellsTheClientsOwnAddress(t *testing.T) {
	story(t)
	dir := openDir(t)
	l := listen(t, ipc.Path(dir+"/socket"))
	foreign, err := net.DialUnix("unix",
		&net.UnixAddr{Name: dir + "/client", Net: "unix"}, &net.UnixAddr{Name: dir + "/socket", Net: "unix"})
	must(t, err)
	defer os.Remove(dir + "/client")
	defer foreign.Close()
	if got := accept(t, l).RemoteAddr(); got != ipc.Path(dir+"/client") {
		t.Errorf("the client's address is %v", got)
	}
}

// ---------------------------------------------------------------------------
// Peers

// childTellsItsPeer connects to the server and tells who that is.
func childTellsItsPeer(p *parent, args []string) error {
	addr := sure(ipc.ParseAddr(args[0]))
	c := sure(ipc.Dialer{Access: ipc.Everyone}.Dial(addr))
	peer := sure(c.Peer())
	p.say("%v", peer)
	p.hear()
	return c.Close()
}

func TestPeerOfAnotherUser(t *testing.T) {
	overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
		stranger := startStranger(t, "knows", addr.String())
		server := accept(t, l)
		p := peerOf(t, server)
		if uid, ok := p.UID(); uid != nobody || !ok {
			t.Errorf("UID is %d, %v", uid, ok)
		}
		if gid, ok := p.GID(); ok && gid != nobody {
			t.Errorf("GID is %d", gid)
		}
		if id := p.UserID(); id != strconv.Itoa(nobody) {
			t.Errorf("UserID is %q", id)
		}
		if groups := p.Groups(); len(groups) > 0 && !slices.Equal(groups, []int{nobody}) {
			t.Errorf("groups are %v", groups)
		}
		if pid, ok := p.PID(); ok && pid != stranger.pid() {
			t.Errorf("PID is %d, want %d", pid, stranger.pid())
		}
		if !strings.Contains(p.String(), "uid "+strconv.Itoa(nobody)) {
			t.Errorf("%q does not tell the user", p)
		}

		said := stranger.hear() // and of the other end, us
		if !strings.Contains(said, "uid 0") || pidsAreTold && !strings.Contains(said, "pid "+strconv.Itoa(os.Getpid())) {
			t.Errorf("the stranger's peer is %q", said)
		}
		stranger.end()
	})
}

// TestPeerIsWhoMadeTheSocket whatever process has it: a Pair given to a child is
// still that of its maker.
func TestPeerIsWhoMadeTheSocket(t *testing.T) {
	story(t)
	a, b := pair(t)
	f, err := b.File()
	must(t, err)
	c := startChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "heir")
	must(t, errors.Join(f.Close(), b.Close()))
	c.mustSay(strconv.FormatBool(pidsAreTold))
	expect(t, a, "from the heir")
	if runtime.GOOS != "darwin" && runtime.GOOS != "ios" { // where it is who used the end last, as long as it is open
		isProcess(t, peerOf(t, a), os.Getpid()) // and not the child
	}
	c.end()
	expectEOF(t, a)
}

// childInheritsAnEnd says whether its peer is its parent.
func childInheritsAnEnd(p *parent, _ []string) error {
	f := os.NewFile(3, "end")
	c, err := ipc.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	peer := sure(c.Peer())
	pid, _ := peer.PID()
	p.say("%v", pid == os.Getppid())
	_, err = c.Write([]byte("from the heir"))
	return errors.Join(err, c.Close())
}

// ---------------------------------------------------------------------------
// Shared memory

// A process that is stopped keeps nobody from heeding a deadline, and loses nothing.
func TestSharedConnPeerIsStopped(t *testing.T) {
	story(t)
	addr := pathAddr(t)
	server := startChild(t, "shared serve", addr.String())
	server.mustSay("serving")
	c, err := ipc.DialShared(addr)
	kept(t, c, err)
	talkToEcho(t, c)
	must(t, syscall.Kill(server.pid(), syscall.SIGSTOP))
	must(t, c.SetDeadline(time.Now().Add(brief)))
	written := 0
	for err = nil; err == nil; {
		var n int
		n, err = c.Write(make([]byte, 10000))
		written += n
	}
	timedOut(t, err)
	must(t, c.SetDeadline(time.Now().Add(brief)))
	got := 0 // what it sent before it was stopped
	for err = nil; err == nil; {
		var n int
		n, err = c.Read(make([]byte, 10000))
		got += n
	}
	timedOut(t, err)
	must(t, c.SetDeadline(time.Time{}))
	must(t, syscall.Kill(server.pid(), syscall.SIGCONT))
	_, err = io.ReadFull(c, make([]byte, written-got))
	must(t, err)
	talkToEcho(t, c)
	must(t, c.Close())
	server.end()
}

// A peer that leaves with files unread resets the socket.
func TestSharedRecvFilesAfterAPeerThatLeftSomeIsTheEnd(t *testing.T) {
	overEachSetUp(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		f, err := os.Open(os.DevNull)
		kept(t, f, err)
		must(t, a.SendFiles(f))
		must(t, b.Close())
		if _, err := a.RecvFiles(1); err != io.EOF {
			t.Errorf("RecvFiles: %v", err)
		}
	})
}
