// What is true of Linux alone: abstract names, threads, and how the kernel says
// that a backlog is full.
package ipc_test

import (
	"bufio"
	"encoding/json"
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
	"unsafe"

	"github.com/interprocess-go/ipc"
)

func init() {
	badAddrs = append(badAddrs, badAddr{
		ipc.Name(strings.Repeat("n", 108)), ipc.ErrNameTooLong, []string{"abstract", "108 bytes", "limit is 107"},
	}, badAddr{ipc.Name(strings.Repeat("\x00", 108)), ipc.ErrNameTooLong, []string{"108 bytes"}})
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

// paddedName returns a name that is filled up with NUL bytes, as programs give it that
// bind with the size of a whole sockaddr_un.
func paddedName(name string) ipc.Addr { return ipc.Name(name + strings.Repeat("\x00", 107-len(name))) }

// abstract returns the socket address of a name as the kernel has it. Package syscall
// takes an '@' for the first NUL.
func abstract(name string) syscall.Sockaddr { return &syscall.SockaddrUnix{Name: "@" + name} }

// TestNamesMayHoldNUL has servers and clients of such names, also of other programs,
// and ends that tell the very name.
func TestNamesMayHoldNUL(t *testing.T) {
	for what, name := range map[string]string{
		"AtTheEnd": unique() + "\x00",
		"Inside":   unique() + "\x00a\x00\x00b",
		"First":    "\x00" + unique(),
		"Padded":   unique() + strings.Repeat("\x00", 107)[:107-len(unique())-2],
		"Digits":   unique() + `\0` + "\x00" + `0\\` + "\x000",
	} {
		t.Run(what, func(t *testing.T) {
			story(t)
			addr, self := ipc.Name(name), unique()+"\x00\x00"
			if text := addr.String(); strings.ContainsRune(text, 0) || strings.Contains(text, "\n") {
				t.Errorf("%q is not to be printed", text)
			}
			if back, err := ipc.ParseAddr(addr.String()); back != addr || err != nil {
				t.Errorf("%q is read as %#v, %v", addr, back, err)
			}
			data, err := json.Marshal(addr)
			must(t, err)
			var back ipc.Addr
			if err := json.Unmarshal(data, &back); back != addr || err != nil {
				t.Errorf("JSON %s is read as %#v, %v", data, back, err)
			}

			l := listen(t, addr)
			if got := adopt(t, l).Addr(); got != addr {
				t.Errorf("the listener is bound to %v, want %v", got, addr)
			}
			serves(t, l, addr)
			_, err = ipc.Listen(addr)
			matches(t, err, ipc.ErrAddrInUse)
			shorter, err := ipc.Dialer{Access: ipc.Everyone}.Dial(ipc.Name(strings.TrimRight(name, "\x00") + "x"))
			matches(t, err, ipc.ErrNoListener)
			if shorter != nil {
				t.Error("another name leads there")
			}

			sys, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			must(t, err)
			foreign := os.NewFile(uintptr(sys), "foreign")
			defer foreign.Close()
			must(t, syscall.Bind(sys, abstract(self)))
			must(t, syscall.Connect(sys, abstract(name)))
			server := accept(t, l)
			if got := server.RemoteAddr(); got != ipc.Name(self) {
				t.Errorf("the client's address is %v, want %v", got, ipc.Name(self))
			}
			client, err := ipc.FileConn(foreign)
			kept(t, client, err)
			if client.LocalAddr() != ipc.Name(self) || client.RemoteAddr() != addr {
				t.Errorf("the adopted client is between %v and %v", client.LocalAddr(), client.RemoteAddr())
			}
			talk(t, client, server)
		})
	}
}

func TestTextOfNUL(t *testing.T) {
	story(t)
	for name, text := range map[string]string{
		"a\x00":        `@a\0`,
		"\x00":         `@\0`,
		"a\x00\x00b":   `@a\0\0b`,
		"a\x000":       `@a\00`,
		"\\\x00":       `@\\\0`,
		"\\\\\x00":     `@\\\\\0`,
		`a\0`:          `@a\\0`,
		`a\\0`:         `@a\\\\0`,
		`a\b\`:         `@a\b\`,
		`a\\`:          `@a\\`,
		`0`:            `@0`,
		`a\b0`:         `@a\b0`,
		`a\` + "\x000": `@a\\\00`,
	} {
		if got := ipc.Name(name).String(); got != text {
			t.Errorf("%q is written %s, want %s", name, got, text)
		}
		if got, err := ipc.ParseAddr(text); got != ipc.Name(name) || err != nil {
			t.Errorf("%s is read %q, %v; want %q", text, got, err, name)
		}
	}
}

// TestPathOfAnAtSignIsNoName has a client that is bound to the file @x, and one that
// is bound to the abstract name x: package net says the same of both.
func TestPathOfAnAtSignIsNoName(t *testing.T) {
	story(t)
	t.Chdir(openDir(t))
	addr := nameAddr(t)
	l := listen(t, addr)
	sys, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	client := os.NewFile(uintptr(sys), "client")
	defer client.Close()
	bindToPath(t, sys, "@x")
	defer os.Remove("@x")
	must(t, syscall.Connect(sys, abstract(strings.TrimPrefix(addr.String(), "@"))))
	server := accept(t, l)
	if got := server.RemoteAddr(); got != ipc.Path("@x") {
		t.Errorf("the client's address is %#v, want %v", got, ipc.Path("@x"))
	}
	adopted, err := ipc.FileConn(client)
	kept(t, adopted, err)
	if got := adopted.LocalAddr(); got != ipc.Path("@x") {
		t.Errorf("the client's own address is %#v, want %v", got, ipc.Path("@x"))
	}
	talk(t, adopted, server)
}

// bindToPath binds the socket to a file at the path as it stands, which package
// syscall does not do if it begins with '@'.
func bindToPath(t *testing.T, sys int, path string) {
	t.Helper()
	raw := syscall.RawSockaddrUnix{Family: syscall.AF_UNIX}
	for i := range len(path) {
		raw.Path[i] = int8(path[i])
	}
	bind, ok := map[string]uintptr{ // asm/unistd.h; package syscall has none on 386
		"amd64": 49, "386": 361, "arm": 282, "arm64": 200, "riscv64": 200, "loong64": 200, "s390x": 361,
		"ppc64": 327, "ppc64le": 327, "mips": 4169, "mipsle": 4169, "mips64": 5048, "mips64le": 5048,
	}[runtime.GOARCH]
	if !ok {
		t.Skip("the number of bind(2) is not known")
	}
	_, _, errno := syscall.Syscall(bind, uintptr(sys), uintptr(unsafe.Pointer(&raw)), uintptr(2+len(path)+1))
	if errno != 0 {
		t.Fatal(errno)
	}
}

// runNode runs a program of Node.js, which prints lines; the test is skipped where
// that is not installed.
func runNode(t *testing.T, program string, args ...string) *bufio.Scanner {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("Node.js is not installed: ", err)
	}
	cmd := exec.Command(node, append([]string{"-e", program}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return bufio.NewScanner(out)
}

func nextLine(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	if !lines.Scan() {
		t.Fatal("Node.js says no more: ", lines.Err())
	}
	return lines.Text()
}

// TestNodeReachesAbstractNames serves a client of Node.js. Up to version 20 it pads
// the name, later ones do not; so both names are served.
func TestNodeReachesAbstractNames(t *testing.T) {
	story(t)
	name := unique()
	padded, plain := listen(t, paddedName(name)), listen(t, ipc.Name(name))
	reached := make(chan string, 2)
	for what, l := range map[string]*ipc.Listener{"padded": padded, "plain": plain} {
		serveEach(l, func(c *ipc.Conn) error {
			reached <- what
			_, err := io.WriteString(c, "hello Node\n")
			return errors.Join(err, c.Close())
		})
	}
	lines := runNode(t, `
		const c = require('net').connect('\0' + process.argv[1])
		c.on('data', d => process.stdout.write(d))`, name)
	if got := nextLine(t, lines); got != "hello Node" {
		t.Errorf("Node.js reads %q", got)
	}
	t.Log("Node.js dials the name ", <-reached)
}

func TestNodeServesAbstractNames(t *testing.T) {
	story(t)
	name := unique()
	lines := runNode(t, `
		const s = require('net').createServer(c => c.end('hello Go\n'))
		s.listen('\0' + process.argv[1], () => console.log('listening'))`, name)
	if got := nextLine(t, lines); got != "listening" {
		t.Fatalf("Node.js says %q", got)
	}
	c, err := ipc.Dial(paddedName(name))
	if errors.Is(err, ipc.ErrNoListener) { // a later version than 20
		c, err = ipc.Dial(ipc.Name(name))
	}
	kept(t, c, err)
	expect(t, c, "hello Go\n")
	expectEOF(t, c)
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
