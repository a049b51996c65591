// What is true of Linux alone: abstract names, threads, and how the kernel says
// that a backlog is full.
package ipc_test

import (
	"errors"
	"fmt"
	"io"
	"math"
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
	badAddrs = append(badAddrs, badAddr{
		ipc.Name(strings.Repeat("n", 108)), ipc.ErrNameTooLong, []string{"abstract", "108 bytes", "limit is 107"},
	})
	roles["blocked"] = childReadsAnEndThatBlocks
	roles["groups"] = childTellsItsGroups
}

// ---------------------------------------------------------------------------
// Abstract names

func TestNameIsTheAbstractSocketOfExactlyThatName(t *testing.T) {
	for what, name := range map[string]string{
		"Plain":   unique(),
		"Slashes": "/a/../" + unique() + "/",
		"AtSign":  "@" + unique(),
		"Longest": (unique() + strings.Repeat("n", 107))[:107],
		"Unicode": unique() + "ü",
	} {
		t.Run(what, func(t *testing.T) {
			story(t)
			l := listen(t, ipc.Name(name))
			table, err := os.ReadFile("/proc/net/unix")
			must(t, err)
			if !slices.ContainsFunc(strings.Split(string(table), "\n"), func(line string) bool {
				return strings.HasSuffix(line, " @"+name)
			}) {
				t.Errorf("/proc/net/unix does not have @%s", name)
			}

			foreign, err := net.Dial("unix", "@"+name)
			must(t, err)
			defer foreign.Close()
			talk(t, foreign, accept(t, l))
			must(t, l.Close())

			other, err := net.Listen("unix", "@"+name)
			must(t, err)
			defer other.Close()
			client := dial(t, ipc.Name(name))
			if client.RemoteAddr() != ipc.Name(name) {
				t.Errorf("the address is %v", client.RemoteAddr())
			}
			server, err := other.Accept()
			must(t, err)
			defer server.Close()
			talk(t, client, server)
		})
	}
}

func TestLiveNameIsKeptUnderEveryPolicy(t *testing.T) {
	story(t)
	addr := nameAddr(t)
	l := listen(t, addr)
	for _, policy := range policies {
		_, err := ipc.ListenConfig{Takeover: policy}.Listen(addr)
		isErrno(t, err, "listen", "bind", syscall.EADDRINUSE)
		matches(t, err, ipc.ErrAddrInUse)
	}
	serves(t, l, addr)
}

func TestNameHasNoFileToConfigure(t *testing.T) {
	story(t)
	for _, sys := range []ipc.SysListenConfig{{Mode: 0o600}, {UID: 1}, {GID: 1}} {
		_, err := ipc.ListenConfig{Sys: &sys}.Listen(nameAddr(t))
		if err == nil || !strings.Contains(err.Error(), "abstract") {
			t.Errorf("%+v: %v", sys, err)
		}
	}
	must(t, listenWith(t, ipc.ListenConfig{KeepName: true, Sys: &ipc.SysListenConfig{}}, nameAddr(t)).Close())
}

func TestAdoptedEndsKnowAbstractNames(t *testing.T) {
	story(t)
	addr := nameAddr(t)
	l := listen(t, addr)
	adopted := adopt(t, l)
	if adopted.Addr() != addr {
		t.Errorf("the listener's address is %v, want %v", adopted.Addr(), addr)
	}

	self := unique()
	foreign, err := net.DialUnix("unix",
		&net.UnixAddr{Name: "@" + self, Net: "unix"}, &net.UnixAddr{Name: addr.String(), Net: "unix"})
	must(t, err)
	defer foreign.Close()
	if got := accept(t, adopted).RemoteAddr(); got != ipc.Name(self) {
		t.Errorf("the client's address is %v, want @%s", got, self)
	}
}

// No permission guards the name, and what the socket was made for is not known.
func TestAdoptedNameServesItsUserUntilToldOtherwise(t *testing.T) {
	needsRoot(t)
	story(t)
	addr := nameAddr(t)
	heir := adopt(t, listenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr))
	done := welcomeAll(heir)
	strangerHears := func(said string) {
		t.Helper()
		stranger := startStranger(t, "connect", addr.String())
		stranger.mustSay(said)
		stranger.end()
	}
	strangerHears("turned away")
	expect(t, dial(t, addr), "welcome")
	must(t, heir.SetAccess(ipc.Everyone, nil))
	strangerHears("welcome")
	must(t, heir.Close())
	must(t, <-done)
}

// ---------------------------------------------------------------------------
// Folders

func TestChangesOfAFolderTakeTurns(t *testing.T) {
	story(t)
	dir := tempDir(t)
	folder, err := os.Open(dir)
	must(t, err)
	defer folder.Close()
	whileTaken := func(change func() error, unchanged func() bool) {
		t.Helper()
		must(t, syscall.Flock(int(folder.Fd()), syscall.LOCK_EX))
		changing := begin(change)
		awaitParked(t, "takeGuard", 1)
		if !unchanged() {
			t.Error("a change does not wait for its turn")
		}
		must(t, syscall.Flock(int(folder.Fd()), syscall.LOCK_UN))
		must(t, <-changing)
	}
	var l *ipc.Listener
	exists := func() bool { _, err := os.Lstat(dir + "/socket"); return err == nil }
	whileTaken(func() (err error) {
		l, err = ipc.Listen(ipc.Path(dir + "/socket"))
		return err
	}, func() bool { return !exists() })
	modeOf(t, dir+"/socket")
	whileTaken(func() error { return l.Close() }, exists)
	isGone(t, dir+"/socket")
}

// Who may read a folder can keep its guard, and must gain nothing by it.
func TestNobodyKeepsAServerFromStartingOrEnding(t *testing.T) {
	story(t)
	dir := tempDir(t)
	l := listen(t, ipc.Path(dir+"/ending"))
	folder, err := os.Open(dir)
	must(t, err)
	defer folder.Close()
	must(t, syscall.Flock(int(folder.Fd()), syscall.LOCK_EX))
	ending := begin(l.Close)
	serves(t, listen(t, ipc.Path(dir+"/starting")), ipc.Path(dir+"/starting"))
	must(t, <-ending)
	isGone(t, dir+"/ending")
	isGone(t, dir+"/ending.lock")
	must(t, syscall.Flock(int(folder.Fd()), syscall.LOCK_UN))
}

// ---------------------------------------------------------------------------
// Full backlogs

func TestForeignServerWithAFullBacklogIsRespected(t *testing.T) {
	story(t)
	path := openDir(t) + "/socket"
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	defer syscall.Close(fd)
	must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
	defer os.Remove(path)
	must(t, syscall.Listen(fd, 0))
	for {
		c, err := net.Dial("unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		must(t, err)
		defer c.Close()
	}
	isRespected(t, path)
}

func TestBacklogIsThatOfListen(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for _, backlog := range []int{1, 5} {
			l := listenWith(t, ipc.ListenConfig{Backlog: backlog}, addr)
			waiting := fill(t, addr)
			if n := len(waiting); n != backlog+1 { // unix(7) lets one more in
				t.Errorf("%d clients wait in a backlog of %d", n, backlog)
			}
			must(t, l.Close())
			for _, c := range waiting {
				must(t, c.Close())
			}
		}
	})
}

// ---------------------------------------------------------------------------
// Threads, resets, groups

func threads(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "\nThreads:")
	n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]))
	must(t, err)
	return n
}

func TestWaitingHoldsNoThread(t *testing.T) {
	story(t)
	const each = 100
	before := threads(t)
	var waiting []<-chan error
	var ends []io.Closer
	for range each {
		a, b := pair(t)
		l := listen(t, ipc.Addr{})
		ends = append(ends, a, b, l)
		waiting = append(waiting,
			beginRead(a),
			beginRead(b),
			begin(func() error { _, err := l.Accept(); return err }))
	}
	awaitParked(t, "(*Conn).Read", 2*each)
	awaitParked(t, "(*Listener).AcceptConn", each)
	if now := threads(t); now > before+each { // a few are made to make the ends
		t.Errorf("%d waits made %d threads of %d", 3*each, now, before)
	}
	for _, end := range ends {
		must(t, end.Close())
	}
	for _, done := range waiting {
		if err := <-done; err != io.EOF {
			matches(t, err, net.ErrClosed)
		}
	}
}

func TestPeerThatLeavesDataUnreadResets(t *testing.T) {
	story(t)
	a, b := pair(t)
	send(t, a, "never read")
	must(t, b.Close())
	_, err := a.Read(make([]byte, 1))
	isErrno(t, err, "read", "read", syscall.ECONNRESET)
	expectEOF(t, a) // once told, it is the end as any other
}

func TestPeersGroups(t *testing.T) {
	story(t)
	needsRoot(t)
	l := listen(t, ipc.Addr{})
	c := startChildWith(t, exec.Cmd{}, "groups", l.Addr().String())
	server := accept(t, l)
	p := peerOf(t, server)
	if p.Groups() == nil {
		t.Skip("this kernel does not tell the groups of a peer")
	}
	want := childGroups()
	if got := p.Groups(); !slices.Equal(got, want) {
		t.Errorf("%d groups %v, want %d %v", len(got), got, len(want), want)
	}
	p.Groups()[0] = 1 // is the caller's to change
	if got := p.Groups(); !slices.Equal(got, want) {
		t.Errorf("the groups became %v", got)
	}
	c.mustSay("done")
	c.end()
}

// childGroups are more than one asks for at first.
func childGroups() (groups []int) {
	for i := range 100 {
		groups = append(groups, 1000+i)
	}
	return groups
}

func childTellsItsGroups(p *parent, args []string) error {
	if err := syscall.Setgroups(childGroups()); err != nil {
		return err
	}
	addr := sure(ipc.ParseAddr(args[0]))
	c := sure(ipc.Dial(addr))
	p.say("done")
	p.hear()
	return c.Close()
}

// ---------------------------------------------------------------------------
// Half close

func TestCloseReadEndsTheWritesOfThePeer(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		a, b := connect(t, listen(t, addr))
		writing := begin(func() error { _, err := a.Write(make([]byte, tooMuch)); return err })
		awaitParked(t, "(*Conn).Write", 1)
		must(t, b.CloseRead())
		matches(t, <-writing, syscall.EPIPE)
		expectEOF(t, b)
		send(t, b, "the other way")
		expect(t, a, "the other way")
	})
}

// ---------------------------------------------------------------------------
// Users and /proc

func TestEndThatAnotherMakesBlockStopsNobodyElse(t *testing.T) {
	story(t)
	startChild(t, "blocked").end()
}

// childReadsAnEndThatBlocks has what is a process of its own, so that it can hang.
func childReadsAnEndThatBlocks(*parent, []string) error {
	r, w, err := ipc.Pipe()
	if err != nil {
		return err
	}
	f, err := r.File()
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = syscall.SetNonblock(int(fd), false) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	reading := beginRead(r)
	for !strings.Contains(stacks(), "(*PipeReader).Read(") { // which stops the world
		runtime.Gosched()
	}
	runtime.GC()
	if _, err := w.Write([]byte{1}); err != nil {
		return err
	}
	return errors.Join(<-reading, r.Close(), w.Close())
}

func TestBufferOfMoreThanAnIntIsTheLargest(t *testing.T) {
	story(t)
	a, _ := pair(t)
	size := func(opt int) (n int) {
		raw, err := a.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) { n, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, opt) }))
		must(t, err)
		return n
	}
	for opt, set := range map[int]func(int) error{
		syscall.SO_RCVBUF: a.SetReadBuffer,
		syscall.SO_SNDBUF: a.SetWriteBuffer,
	} {
		must(t, set(math.MaxInt32))
		largest := size(opt)
		must(t, set(math.MaxInt-math.MaxUint32%math.MaxInt)) // its lower half is 0
		if n := size(opt); n != largest {
			t.Errorf("the buffer has %d bytes, at most it can have %d", n, largest)
		}
	}
}

func TestUmaskIsNotTouched(t *testing.T) {
	story(t)
	addr := pathAddr(t)
	umask := func() string {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return err.Error()
		}
		_, rest, _ := strings.Cut(string(status), "\nUmask:")
		return strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0])
	}
	want := umask()
	watchEnds := repeatedly(func() error {
		if now := umask(); now != want {
			return fmt.Errorf("the umask became %s", now)
		}
		return nil
	})
	for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); {
		l, err := ipc.Listen(addr)
		must(t, err)
		must(t, l.Close())
	}
	must(t, watchEnds())
}
