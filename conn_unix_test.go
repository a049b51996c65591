//go:build unix

// Connections as Unix has them: descriptors, adopted sockets, other programs.
package ipc_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

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

func TestFileMsgConnAdoptsForeignSockets(t *testing.T) {
	kit.NeedsLinux(t, "not every other system has sockets of this kind")
	kit.Story(t)
	a, b := kit.AdoptPair(t, syscall.SOCK_SEQPACKET, ipc.FileMsgConn)
	kit.MsgTalk(t, a, b)
	kit.Must(t, a.SetReadDeadline(time.Now().Add(kit.Brief)))
	_, err := a.Recv(make([]byte, 1))
	kit.TimedOut(t, err)
	kit.IsProcess(t, kit.PeerOf(t, a), os.Getpid())
	kit.Must(t, b.Close())
	kit.Must(t, a.SetReadDeadline(time.Time{}))
	kit.ExpectMsgEOF(t, a)
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

func TestFileConnRefusesForeignDescriptors(t *testing.T) {
	kit.Story(t)
	file := func(fd int, err error) *os.File {
		t.Helper()
		kit.Must(t, err)
		f := os.NewFile(uintptr(fd), "foreign")
		t.Cleanup(func() { f.Close() })
		return f
	}
	pairOf := func(typ int) *os.File {
		t.Helper()
		fds, err := syscall.Socketpair(syscall.AF_UNIX, typ, 0)
		kit.Must(t, err)
		file(fds[1], nil) // stays open
		return file(fds[0], nil)
	}
	foreign := map[string]*os.File{
		"a datagram socket":             file(syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)),
		"a connected datagram socket":   pairOf(syscall.SOCK_DGRAM),
		"an unconnected stream socket":  file(syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)),
		"a TCP socket":                  file(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)),
		"a file":                        kit.TextFile(t, "x"),
		"a folder":                      file(syscall.Open(os.TempDir(), syscall.O_RDONLY, 0)),
		"a device":                      file(syscall.Open("/dev/null", syscall.O_RDWR, 0)),
		"a stream socket (of messages)": pairOf(syscall.SOCK_STREAM),
	}
	var p [2]int
	kit.Must(t, syscall.Pipe(p[:]))
	foreign["a pipe"], foreign["its other end"] = file(p[0], nil), file(p[1], nil)
	sys, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	foreign["a listening socket"] = file(sys, err)
	path := kit.OpenDir(t) + "/socket"
	kit.Must(t, syscall.Bind(sys, &syscall.SockaddrUnix{Name: path}))
	defer os.Remove(path)
	kit.Must(t, syscall.Listen(sys, 1))
	if !kit.FramedHere {
		foreign["a message socket (of bytes)"] = pairOf(syscall.SOCK_SEQPACKET)
		foreign["an unconnected message socket"] = file(syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET, 0))
	}
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil { // if there is a loopback
		defer l.Close()
		if c, err := net.DialTimeout("tcp", l.Addr().String(), kit.Soon); err == nil { // and it leads somewhere
			defer c.Close()
			f, err := c.(*net.TCPConn).File()
			kit.Must(t, err)
			defer f.Close()
			foreign["a TCP connection"] = f
		}
	}

	for what, f := range foreign {
		before, mode := kit.OpenDescriptors(), sharedModeIsNonblocking(t, f)
		refused := func(by string, err error) {
			t.Helper()
			if err == nil {
				t.Fatalf("%s adopts %s", by, what)
			}
			kit.IsOpError(t, err, "file")
			if len(err.Error()) < len("file unix: x") || strings.Contains(err.Error(), "%!") {
				t.Errorf("%s, %s: %v explains nothing", by, what, err)
			}
		}
		if !strings.HasSuffix(what, "(of messages)") {
			_, err := ipc.FileConn(f)
			refused("FileConn", err)
		}
		if !strings.HasSuffix(what, "(of bytes)") && !(kit.FramedHere && strings.HasSuffix(what, "(of messages)")) {
			_, err := ipc.FileMsgConn(f)
			refused("FileMsgConn", err)
		}
		if _, err := f.Stat(); err != nil {
			t.Errorf("%s is gone: %v", what, err)
		}
		if sharedModeIsNonblocking(t, f) != mode {
			t.Errorf("the mode of %s was changed", what)
		}
		if err := kit.NoMoreDescriptors(before); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	closed := kit.TextFile(t, "x")
	kit.Must(t, closed.Close())
	for _, f := range []*os.File{nil, closed} {
		if _, err := ipc.FileMsgConn(f); err == nil {
			t.Errorf("FileMsgConn adopts %v", f)
		}
	}
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
// What is known of Linux alone

// threads is how many the kernel has of this process.
func threads(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	kit.Must(t, err)
	_, rest, _ := strings.Cut(string(status), "\nThreads:")
	n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]))
	kit.Must(t, err)
	return n
}

func TestConnWaitHoldsNoThread(t *testing.T) {
	kit.NeedsLinux(t, "elsewhere /proc does not tell the threads")
	kit.Story(t)
	const each = 100
	before := threads(t)
	var waiting []<-chan error
	var ends []io.Closer
	for range each {
		a, b := kit.Pair(t)
		l := kit.Listen(t, ipc.Addr{})
		ends = append(ends, a, b, l)
		waiting = append(waiting,
			kit.BeginRead(a),
			kit.BeginRead(b),
			kit.Begin(func() error { _, err := l.Accept(); return err }))
	}
	kit.AwaitParked(t, "(*Conn).Read", 2*each)
	kit.AwaitParked(t, "(*Listener).AcceptConn", each)
	if now := threads(t); now > before+each { // a few are made to make the ends
		t.Errorf("%d waits made %d threads of %d", 3*each, now, before)
	}
	for _, end := range ends {
		kit.Must(t, end.Close())
	}
	for _, done := range waiting {
		if err := <-done; err != io.EOF {
			kit.Matches(t, err, net.ErrClosed)
		}
	}
}

func TestConnPeerThatLeavesDataUnreadResets(t *testing.T) {
	kit.NeedsLinux(t, "which other systems reset a connection is not known")
	kit.Story(t)
	a, b := kit.Pair(t)
	kit.Send(t, a, "never read")
	kit.Must(t, b.Close())
	_, err := a.Read(make([]byte, 1))
	kit.IsErrno(t, err, "read", "read", syscall.ECONNRESET)
	kit.ExpectEOF(t, a) // once told, it is the end as any other
}

func TestConnCloseReadEndsTheWritesOfThePeer(t *testing.T) {
	kit.NeedsLinux(t, "not every other system tells a writer that nobody reads")
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		a, b := kit.Connect(t, kit.Listen(t, addr))
		writing := kit.Begin(func() error { _, err := a.Write(make([]byte, kit.TooMuch)); return err })
		kit.AwaitParked(t, "(*Conn).Write", 1)
		kit.Must(t, b.CloseRead())
		kit.Matches(t, <-writing, syscall.EPIPE)
		kit.ExpectEOF(t, b)
		kit.Send(t, b, "the other way")
		kit.Expect(t, a, "the other way")
	})
}

// On a 32-bit system the position of what is left, and the most that one call takes, are
// more than an int together.
func TestConnWritesMoreThanOneCallTakes(t *testing.T) {
	kit.NeedsLinux(t, "the buffers of other systems are small, and a GiB takes long")
	if kit.UnderRace() {
		t.Skip("the race detector needs four times the memory")
	}
	const length = 1<<30 + 1<<20
	p := make([]byte, length) // never written to, so it takes no memory
	writes := func(w io.Writer, r io.Reader) {
		t.Helper()
		writing := kit.Begin(func() error {
			n, err := w.Write(p)
			if n != len(p) {
				return fmt.Errorf("Write writes %d bytes: %w", n, err)
			}
			return err
		})
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.LimitReader(r, length)}, make([]byte, 1<<20))
		if n != length || err != nil {
			t.Fatal(n, err)
		}
		kit.Must(t, <-writing)
	}
	t.Run("Conn", func(t *testing.T) {
		kit.Story(t)
		a, b := kit.Pair(t)
		writes(a, b)
	})
	t.Run("Pipe", func(t *testing.T) {
		kit.Story(t)
		r, w := kit.Pipe(t)
		writes(w, r)
	})
}

func TestConnSetBufferOfMoreThanAnIntIsTheLargest(t *testing.T) {
	kit.NeedsLinux(t, "other systems refuse a size that is too large")
	kit.Story(t)
	a, _ := kit.Pair(t)
	size := func(opt int) (n int) {
		raw, err := a.SyscallConn()
		kit.Must(t, err)
		kit.Must(t, raw.Control(func(fd uintptr) { n, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, opt) }))
		kit.Must(t, err)
		return n
	}
	for opt, set := range map[int]func(int) error{
		syscall.SO_RCVBUF: a.SetReadBuffer,
		syscall.SO_SNDBUF: a.SetWriteBuffer,
	} {
		kit.Must(t, set(math.MaxInt32))
		largest := size(opt)
		kit.Must(t, set(math.MaxInt-math.MaxUint32%math.MaxInt)) // its lower half is 0
		if n := size(opt); n != largest {
			t.Errorf("the buffer has %d bytes, at most it can have %d", n, largest)
		}
	}
}
