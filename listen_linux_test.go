// What is true of listeners on Linux alone: abstract names, full backlogs, attacks by another user, sandboxes, cleaners of
// temporary folders, and working directories without a name.
package ipc_test

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.BadAddrs = append(kit.BadAddrs, kit.BadAddr{
		Addr: ipc.Name(strings.Repeat("n", 108)), Is: ipc.ErrNameTooLong, Words: []string{"abstract", "108 bytes", "limit is 107"},
	}, kit.BadAddr{Addr: ipc.Name(strings.Repeat("\x00", 108)), Is: ipc.ErrNameTooLong, Words: []string{"108 bytes"}})

	kit.Roles["swap"] = childSwapsFolders
	kit.Roles["plant"] = childPlantsSocket
	kit.Roles["noflock"] = childListensWithoutFlock
	kit.Roles["noflock heir"] = childInheritsWithoutFlock
	kit.Roles["nolink"] = childListensWithoutLink
	kit.Roles["deep"] = childListensDeep
	kit.Roles["outside"] = childListensOutside
}

// ---------------------------------------------------------------------------
// Abstract names

func TestNameIsTheAbstractSocketOfExactlyThatName(t *testing.T) {
	for what, name := range map[string]string{
		"Plain":   kit.Unique(),
		"Slashes": "/a/../" + kit.Unique() + "/",
		"AtSign":  "@" + kit.Unique(),
		"Longest": (kit.Unique() + strings.Repeat("n", 107))[:107],
		"Unicode": kit.Unique() + "ü",
	} {
		t.Run(what, func(t *testing.T) {
			kit.Story(t)
			l := kit.Listen(t, ipc.Name(name))
			table, err := os.ReadFile("/proc/net/unix")
			kit.Must(t, err)
			if !slices.ContainsFunc(strings.Split(string(table), "\n"), func(line string) bool {
				return strings.HasSuffix(line, " @"+name)
			}) {
				t.Errorf("/proc/net/unix does not have @%s", name)
			}

			foreign, err := net.Dial("unix", "@"+name)
			kit.Must(t, err)
			defer foreign.Close()
			kit.Talk(t, foreign, kit.Accept(t, l))
			kit.Must(t, l.Close())

			other, err := net.Listen("unix", "@"+name)
			kit.Must(t, err)
			defer other.Close()
			client := kit.Dial(t, ipc.Name(name))
			if client.RemoteAddr() != ipc.Name(name) {
				t.Errorf("the address is %v", client.RemoteAddr())
			}
			server, err := other.Accept()
			kit.Must(t, err)
			defer server.Close()
			kit.Talk(t, client, server)
		})
	}
}

func TestListenKeepsALiveNameUnderEveryPolicy(t *testing.T) {
	kit.Story(t)
	addr := kit.NameAddr(t)
	l := kit.Listen(t, addr)
	for _, policy := range kit.Policies {
		_, err := ipc.ListenConfig{Takeover: policy}.Listen(addr)
		kit.IsErrno(t, err, "listen", "bind", syscall.EADDRINUSE)
		kit.Matches(t, err, ipc.ErrAddrInUse)
	}
	kit.Serves(t, l, addr)
}

func TestNameHasNoFileToConfigure(t *testing.T) {
	kit.Story(t)
	for _, sys := range []ipc.SysListenConfig{{Mode: 0o600}, {UID: 1}, {GID: 1}} {
		_, err := ipc.ListenConfig{Sys: &sys}.Listen(kit.NameAddr(t))
		if err == nil || !strings.Contains(err.Error(), "abstract") {
			t.Errorf("%+v: %v", sys, err)
		}
	}
	kit.Must(t, kit.ListenWith(t, ipc.ListenConfig{KeepName: true, Sys: &ipc.SysListenConfig{}}, kit.NameAddr(t)).Close())
}

func TestFileConnKnowsAbstractNames(t *testing.T) {
	kit.Story(t)
	addr := kit.NameAddr(t)
	l := kit.Listen(t, addr)
	adopted := kit.Adopt(t, l)
	if adopted.Addr() != addr {
		t.Errorf("the listener's address is %v, want %v", adopted.Addr(), addr)
	}

	self := kit.Unique()
	foreign, err := net.DialUnix("unix",
		&net.UnixAddr{Name: "@" + self, Net: "unix"}, &net.UnixAddr{Name: addr.String(), Net: "unix"})
	kit.Must(t, err)
	defer foreign.Close()
	if got := kit.Accept(t, adopted).RemoteAddr(); got != ipc.Name(self) {
		t.Errorf("the client's address is %v, want @%s", got, self)
	}
}

// paddedName returns a name that is filled up with NUL bytes, as programs give it that
// bind with the size of a whole sockaddr_un.
func paddedName(name string) ipc.Addr { return ipc.Name(name + strings.Repeat("\x00", 107-len(name))) }

// abstract returns the socket address of a name as the kernel has it. Package syscall
// takes an '@' for the first NUL.
func abstract(name string) syscall.Sockaddr { return &syscall.SockaddrUnix{Name: "@" + name} }

// TestNameMayHoldNUL has servers and clients of such names, also of other programs,
// and ends that tell the very name.
func TestNameMayHoldNUL(t *testing.T) {
	for what, name := range map[string]string{
		"AtTheEnd": kit.Unique() + "\x00",
		"Inside":   kit.Unique() + "\x00a\x00\x00b",
		"First":    "\x00" + kit.Unique(),
		"Padded":   kit.Unique() + strings.Repeat("\x00", 107)[:107-len(kit.Unique())-2],
		"Digits":   kit.Unique() + `\0` + "\x00" + `0\\` + "\x000",
	} {
		t.Run(what, func(t *testing.T) {
			kit.Story(t)
			addr, self := ipc.Name(name), kit.Unique()+"\x00\x00"
			if text := addr.String(); strings.ContainsRune(text, 0) || strings.Contains(text, "\n") {
				t.Errorf("%q is not to be printed", text)
			}
			if back, err := ipc.ParseAddr(addr.String()); back != addr || err != nil {
				t.Errorf("%q is read as %#v, %v", addr, back, err)
			}
			data, err := json.Marshal(addr)
			kit.Must(t, err)
			var back ipc.Addr
			if err := json.Unmarshal(data, &back); back != addr || err != nil {
				t.Errorf("JSON %s is read as %#v, %v", data, back, err)
			}

			l := kit.Listen(t, addr)
			if got := kit.Adopt(t, l).Addr(); got != addr {
				t.Errorf("the listener is bound to %v, want %v", got, addr)
			}
			kit.Serves(t, l, addr)
			_, err = ipc.Listen(addr)
			kit.Matches(t, err, ipc.ErrAddrInUse)
			shorter, err := ipc.Dialer{Access: ipc.Everyone}.Dial(ipc.Name(strings.TrimRight(name, "\x00") + "x"))
			kit.Matches(t, err, ipc.ErrNoListener)
			if shorter != nil {
				t.Error("another name leads there")
			}

			sys, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			kit.Must(t, err)
			foreign := os.NewFile(uintptr(sys), "foreign")
			defer foreign.Close()
			kit.Must(t, syscall.Bind(sys, abstract(self)))
			kit.Must(t, syscall.Connect(sys, abstract(name)))
			server := kit.Accept(t, l)
			if got := server.RemoteAddr(); got != ipc.Name(self) {
				t.Errorf("the client's address is %v, want %v", got, ipc.Name(self))
			}
			client, err := ipc.FileConn(foreign)
			kit.Kept(t, client, err)
			if client.LocalAddr() != ipc.Name(self) || client.RemoteAddr() != addr {
				t.Errorf("the adopted client is between %v and %v", client.LocalAddr(), client.RemoteAddr())
			}
			kit.Talk(t, client, server)
		})
	}
}

func TestAddrTextOfNUL(t *testing.T) {
	kit.Story(t)
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
	kit.Story(t)
	t.Chdir(kit.OpenDir(t))
	addr := kit.NameAddr(t)
	l := kit.Listen(t, addr)
	sys, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	kit.Must(t, err)
	client := os.NewFile(uintptr(sys), "client")
	defer client.Close()
	bindToPath(t, sys, "@x")
	defer os.Remove("@x")
	kit.Must(t, syscall.Connect(sys, abstract(strings.TrimPrefix(addr.String(), "@"))))
	server := kit.Accept(t, l)
	if got := server.RemoteAddr(); got != ipc.Path("@x") {
		t.Errorf("the client's address is %#v, want %v", got, ipc.Path("@x"))
	}
	adopted, err := ipc.FileConn(client)
	kit.Kept(t, adopted, err)
	if got := adopted.LocalAddr(); got != ipc.Path("@x") {
		t.Errorf("the client's own address is %#v, want %v", got, ipc.Path("@x"))
	}
	kit.Talk(t, adopted, server)
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
	kit.Must(t, err)
	kit.Must(t, cmd.Start())
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

// TestNameIsReachedByNode serves a client of Node.js. Up to version 20 it pads
// the name, later ones do not; so both names are served.
func TestNameIsReachedByNode(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	name := kit.Unique()
	padded, plain := kit.Listen(t, paddedName(name)), kit.Listen(t, ipc.Name(name))
	reached := make(chan string, 2)
	for what, l := range map[string]*ipc.Listener{"padded": padded, "plain": plain} {
		kit.ServeEach(l, func(c *ipc.Conn) error {
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

func TestNameIsServedByNode(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	name := kit.Unique()
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
	kit.Kept(t, c, err)
	kit.Expect(t, c, "hello Go\n")
	kit.ExpectEOF(t, c)
}

// No permission guards the name, and what the socket was made for is not known.
func TestFileListenerServesItsUserUntilToldOtherwise(t *testing.T) {
	kit.NeedsRoot(t)
	kit.Story(t)
	addr := kit.NameAddr(t)
	heir := kit.Adopt(t, kit.ListenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr))
	done := kit.WelcomeAll(heir)
	strangerHears := func(said string) {
		t.Helper()
		stranger := kit.StartStranger(t, "connect", addr.String())
		stranger.MustSay(said)
		stranger.End()
	}
	strangerHears("turned away")
	kit.Expect(t, kit.Dial(t, addr), "welcome")
	kit.Must(t, heir.SetAccess(ipc.Everyone, nil))
	strangerHears("welcome")
	kit.Must(t, heir.Close())
	kit.Must(t, <-done)
}

// ---------------------------------------------------------------------------
// Folders

func TestListenChangesOfAFolderTakeTurns(t *testing.T) {
	kit.Story(t)
	dir := kit.TempDir(t)
	folder, err := os.Open(dir)
	kit.Must(t, err)
	defer folder.Close()
	whileTaken := func(change func() error, unchanged func() bool) {
		t.Helper()
		kit.Must(t, syscall.Flock(int(folder.Fd()), syscall.LOCK_EX))
		changing := kit.Begin(change)
		kit.AwaitParked(t, "takeGuard", 1)
		if !unchanged() {
			t.Error("a change does not wait for its turn")
		}
		kit.Must(t, syscall.Flock(int(folder.Fd()), syscall.LOCK_UN))
		kit.Must(t, <-changing)
	}
	var l *ipc.Listener
	exists := func() bool { _, err := os.Lstat(dir + "/socket"); return err == nil }
	whileTaken(func() (err error) {
		l, err = ipc.Listen(ipc.Path(dir + "/socket"))
		return err
	}, func() bool { return !exists() })
	kit.ModeOf(t, dir+"/socket")
	whileTaken(func() error { return l.Close() }, exists)
	kit.IsGone(t, dir+"/socket")
}

// Who may read a folder can keep its guard, and must gain nothing by it.
func TestListenIsKeptFromStartingOrEndingByNobody(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	dir := kit.TempDir(t)
	l := kit.Listen(t, ipc.Path(dir+"/ending"))
	folder, err := os.Open(dir)
	kit.Must(t, err)
	defer folder.Close()
	kit.Must(t, syscall.Flock(int(folder.Fd()), syscall.LOCK_EX))
	ending := kit.Begin(l.Close)
	kit.Serves(t, kit.Listen(t, ipc.Path(dir+"/starting")), ipc.Path(dir+"/starting"))
	kit.Must(t, <-ending)
	kit.IsGone(t, dir+"/ending")
	kit.IsGone(t, dir+"/ending.lock")
	kit.Must(t, syscall.Flock(int(folder.Fd()), syscall.LOCK_UN))
}

// ---------------------------------------------------------------------------
// Full backlogs

func TestListenRespectsAForeignServerWithAFullBacklog(t *testing.T) {
	kit.Story(t)
	path := kit.OpenDir(t) + "/socket"
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	kit.Must(t, err)
	defer syscall.Close(fd)
	kit.Must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
	defer os.Remove(path)
	kit.Must(t, syscall.Listen(fd, 0))
	for {
		c, err := net.Dial("unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		kit.Must(t, err)
		defer c.Close()
	}
	isRespected(t, path)
}

// TestListenMsgRespectsAForeignServer has a socket file in the way that a stream
// cannot even be dialed to.
func TestListenMsgRespectsAForeignServer(t *testing.T) {
	kit.Story(t)
	path := kit.OpenDir(t) + "/socket"
	foreign, err := net.Listen("unixpacket", path)
	kit.Must(t, err)
	defer foreign.Close()
	for _, policy := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever} {
		lc := ipc.ListenConfig{Takeover: policy}
		_, err := lc.ListenMsg(ipc.Path(path))
		kit.Matches(t, err, ipc.ErrAddrInUse)
		_, err = lc.Listen(ipc.Path(path))
		kit.Matches(t, err, ipc.ErrAddrInUse)
	}
	c, err := net.Dial("unixpacket", path)
	foreignMsg(t, c, err)

	foreign.(*net.UnixListener).SetUnlinkOnClose(false)
	kit.Must(t, foreign.Close())
	l := kit.ListenMsg(t, ipc.Path(path)) // now it is stale
	client, server := kit.MsgConnect(t, l)
	kit.MsgTalk(t, client, server)
	kit.Must(t, l.Close())
}

func TestListenConfigBacklogIsThatOfListen(t *testing.T) {
	kit.Together(t)
	for _, backlog := range []int{1, 5} {
		// Each listens somewhere else: the child that another test starts has what is open until it runs its program,
		// so a name can be in use for a moment after Close.
		kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := kit.ListenWith(t, ipc.ListenConfig{Backlog: backlog}, addr)
			waiting := kit.Fill(t, addr)
			if n := len(waiting); n != backlog+1 { // unix(7) lets one more in
				t.Errorf("%d clients wait in a backlog of %d", n, backlog)
			}
			kit.Must(t, l.Close())
			for _, c := range waiting {
				kit.Must(t, c.Close())
			}
		})
	}
}

func TestListenDoesNotTouchTheUmask(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	umask := func() string {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return err.Error()
		}
		_, rest, _ := strings.Cut(string(status), "\nUmask:")
		return strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0])
	}
	want := umask()
	watchEnds := kit.Repeatedly(func() error {
		if now := umask(); now != want {
			return fmt.Errorf("the umask became %s", now)
		}
		return nil
	})
	for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); {
		l, err := ipc.Listen(addr)
		kit.Must(t, err)
		kit.Must(t, l.Close())
	}
	kit.Must(t, watchEnds())
}

// ---------------------------------------------------------------------------
// Attacks

// Another user owns the parent of the folder that root listens in, and makes the path lead
// to a folder of root's and back, all the time. He must not make root touch what is there.
func TestListenFolderSwappedByParentsOwner(t *testing.T) {
	kit.Together(t)
	kit.NeedsRoot(t)
	targets := map[string]func(t *testing.T, path string){
		"Socket": func(t *testing.T, path string) {
			kit.ServeForeign(t, path)
			kit.Must(t, os.Chmod(path, 0o777))
		},
		"File":  func(t *testing.T, path string) { kit.Must(t, os.WriteFile(path, nil, 0o640)) },
		"Stale": makeStaleForGood,
	}
	for target, make := range targets {
		for _, policy := range kit.Policies {
			if target == "Stale" && policy != ipc.TakeoverNever || target == "Socket" && policy == ipc.TakeoverAlways {
				continue // the user asked for it, wherever the path leads
			}
			t.Run(target+policy.String(), func(t *testing.T) {
				kit.Story(t)
				dir := kit.OpenDir(t)
				kit.Must(t, os.Chmod(dir, 0o755))
				for _, name := range []string{"/victim", "/attacker", "/attacker/folder"} {
					kit.Must(t, os.Mkdir(dir+name, 0o755))
				}
				kit.Must(t, os.Symlink(dir+"/victim", dir+"/attacker/link"))
				kit.Must(t, os.Chown(dir+"/attacker", kit.Nobody, kit.Nobody))
				make(t, dir+"/victim/socket")
				before := stat(t, dir+"/victim/socket")

				attacker := kit.StartStranger(t, "swap", dir+"/attacker")
				attacker.MustSay("swapping")
				lc := ipc.ListenConfig{Takeover: policy, Access: ipc.Everyone, Sys: &ipc.SysListenConfig{UID: kit.Nobody}}
				listened := 0
				for end := time.Now().Add(attackTime); listened == 0 || time.Now().Before(end); {
					l, err := lc.Listen(ipc.Path(dir + "/attacker/folder/socket"))
					if err == nil {
						listened++
						kit.Must(t, l.Close())
					}
					after := stat(t, dir+"/victim/socket")
					if after.Ino != before.Ino || after.Mode != before.Mode || after.Uid != before.Uid || after.Gid != before.Gid {
						t.Fatalf("after %d listeners %+v became %+v", listened, before, after)
					}
				}
				attacker.End()
				if names := kit.NamesIn(t, dir+"/victim"); !slices.Equal(names, []string{"socket"}) {
					t.Errorf("the victim's folder has %s", names)
				}
				if names := kit.NamesIn(t, dir+"/attacker/folder"); len(names) != 0 {
					t.Errorf("left behind: %s", names)
				}
				kit.Must(t, os.Remove(dir+"/attacker/link"))
				os.Remove(dir + "/victim/socket")
			})
		}
	}
}

// Another user may write to the folder itself, and puts a socket of his own in the place of
// the one that root has just bound. Root must not give it a new owner or mode.
func TestListenSocketReplacedAsItIsMade(t *testing.T) {
	kit.Together(t)
	kit.NeedsRoot(t)
	kit.Story(t)
	dir := kit.OpenDir(t)
	attacker := kit.StartStranger(t, "plant", dir)
	attacker.MustSay("planting")
	lc := ipc.ListenConfig{Takeover: ipc.TakeoverNever, Access: ipc.Everyone, Sys: &ipc.SysListenConfig{UID: kit.Nobody - 1}}
	listened := 0
	for end := time.Now().Add(attackTime); listened == 0 || time.Now().Before(end); {
		if l, err := lc.Listen(ipc.Path(dir + "/socket")); err == nil {
			listened++
			kit.Must(t, l.Close())
		}
	}
	attacker.End()
	os.Remove(dir + "/decoy")
	os.Remove(dir + "/socket")
}

// childPlantsSocket puts a socket of its own in the place of "socket" and takes it away
// again, and fails if that ever has another owner or mode.
func childPlantsSocket(p *kit.Parent, args []string) error {
	decoy, socket := args[0]+"/decoy", args[0]+"/socket"
	end := kit.Repeatedly(func() error {
		sys, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(sys)
		if err := syscall.Bind(sys, &syscall.SockaddrUnix{Name: decoy}); err != nil {
			return err
		}
		const oPath = 0x200000 // asm-generic/fcntl.h
		file, err := syscall.Open(decoy, oPath|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(file)
		var before, after syscall.Stat_t
		if err := syscall.Fstat(file, &before); err != nil {
			return err
		}
		for range 1000 {
			if _, err := os.Lstat(socket); err != nil {
				continue // nothing to replace
			}
			os.Rename(decoy, socket)
			if os.Rename(socket, decoy) != nil {
				break // it was removed with what it replaced, which is its owner's risk
			}
		}
		os.Remove(decoy)
		if err := syscall.Fstat(file, &after); err != nil || after.Uid != before.Uid || after.Mode != before.Mode {
			return fmt.Errorf("%+v became %+v, %v", before, after, err)
		}
		return nil
	})
	p.Say("planting")
	p.Hear()
	return end()
}

// attackTime is how long an attack goes on that is won or lost by luck.
const attackTime = time.Second

// Mkfifo is led astray in the same way.
func TestMkfifoFolderSwappedByParentsOwner(t *testing.T) {
	kit.Together(t)
	kit.NeedsRoot(t)
	kit.Story(t)
	dir := kit.OpenDir(t)
	kit.Must(t, os.Chmod(dir, 0o755))
	for _, name := range []string{"/victim", "/attacker", "/attacker/folder"} {
		kit.Must(t, os.Mkdir(dir+name, 0o755))
	}
	kit.Must(t, os.Symlink(dir+"/victim", dir+"/attacker/link"))
	kit.Must(t, os.Chown(dir+"/attacker", kit.Nobody, kit.Nobody))
	kit.Must(t, ipc.Mkfifo(dir+"/victim/fifo", 0o600))
	attacker := kit.StartStranger(t, "swap", dir+"/attacker")
	attacker.MustSay("swapping")
	made := 0
	for end := time.Now().Add(attackTime); made == 0 || time.Now().Before(end); {
		if ipc.Mkfifo(dir+"/attacker/folder/fifo", 0o666) == nil {
			made++
		}
		if st := stat(t, dir+"/victim/fifo"); st.Mode&0o777 != 0o600 {
			t.Fatalf("after %d FIFOs the victim's has mode %o", made, st.Mode)
		}
		for _, name := range []string{"/attacker/folder/fifo", "/attacker/other/fifo"} {
			// Where the path leads to the victim's now, os.Remove would do what Mkfifo must not.
			if st, err := os.Lstat(dir + filepath.Dir(name)); err == nil && st.IsDir() {
				removeIn(t, dir+filepath.Dir(name), "fifo")
			}
		}
	}
	attacker.End()
	for _, name := range []string{"/attacker/folder/fifo", "/attacker/link", "/victim/fifo"} {
		os.Remove(dir + name)
	}
}

// removeIn removes the file in the folder, if the path leads to a folder itself.
func removeIn(t *testing.T, dir, name string) {
	t.Helper()
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err == nil {
		syscall.Unlinkat(fd, name)
		kit.Must(t, syscall.Close(fd))
	}
}

func stat(t *testing.T, path string) (st syscall.Stat_t) {
	t.Helper()
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func makeStaleForGood(t *testing.T, path string) {
	kit.MakeStale(t, path)
	kit.Must(t, os.Chmod(path, 0o700))
}

// childSwapsFolders has "folder" lead to the folder and to where "link" leads, in turn.
func childSwapsFolders(p *kit.Parent, args []string) error {
	folder, link, other := args[0]+"/folder", args[0]+"/link", args[0]+"/other"
	end := kit.Repeatedly(func() error {
		return errors.Join(
			os.Rename(folder, other), os.Rename(link, folder),
			os.Rename(folder, link), os.Rename(other, folder))
	})
	p.Say("swapping")
	p.Hear()
	return end()
}

// Where another user can make the path lead elsewhere, the socket is not bound by it.
func TestListenBindsByPathOnlyWhereItIsSettled(t *testing.T) {
	kit.NeedsRoot(t)
	for name, c := range map[string]struct {
		prepare func(t *testing.T, dir string)
		settled bool
	}{
		"OwnFolders":  {func(t *testing.T, dir string) {}, true},
		"OtherOwner":  {func(t *testing.T, dir string) { kit.Must(t, os.Chown(dir+"/a", kit.Nobody, kit.Nobody)) }, false},
		"GroupWrites": {func(t *testing.T, dir string) { kit.Must(t, os.Chmod(dir+"/a", 0o770)) }, false},
		"EveryoneIn":  {func(t *testing.T, dir string) { kit.Must(t, os.Chmod(dir+"/a", 0o777)) }, false},
		"Sticky":      {func(t *testing.T, dir string) { kit.Must(t, os.Chmod(dir+"/a", 0o777|fs.ModeSticky)) }, true},
		"StickyOfOther": {func(t *testing.T, dir string) {
			kit.Must(t, os.Chmod(dir+"/a", 0o777|fs.ModeSticky))
			kit.Must(t, os.Chown(dir+"/a/b", kit.Nobody, kit.Nobody))
		}, false},
		"OpenFolder": {func(t *testing.T, dir string) { kit.Must(t, os.Chmod(dir+"/a/b", 0o777)) }, true},
		"Link": {func(t *testing.T, dir string) {
			kit.Must(t, os.Rename(dir+"/a", dir+"/c"))
			kit.Must(t, os.Symlink("../"+filepath.Base(dir)+"/c", dir+"/a"))
		}, true},
		"LinkThroughOther": {func(t *testing.T, dir string) {
			kit.Must(t, os.Mkdir(dir+"/other", 0o755))
			kit.Must(t, os.Rename(dir+"/a", dir+"/other/a"))
			kit.Must(t, os.Chown(dir+"/other", kit.Nobody, kit.Nobody))
			kit.Must(t, os.Symlink(dir+"/other/a", dir+"/a"))
		}, false},
		"LinkIntoItself": {func(t *testing.T, dir string) {
			kit.Must(t, os.Symlink(dir+"/a/b/x/../../b", dir+"/a/b/x"))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			kit.Story(t)
			dir := t.TempDir()
			kit.Must(t, os.MkdirAll(dir+"/a/b", 0o755))
			c.prepare(t, dir)
			path := dir + "/a/b/socket"
			l := kit.Listen(t, ipc.Path(path))
			if bound := isInTable(t, path); bound != c.settled {
				t.Errorf("bound by its path: %t, want %t", bound, c.settled)
			}
			// What is not bound by its path has the sticky bit instead.
			if sticky := stat(t, path).Mode&syscall.S_ISVTX != 0; sticky == c.settled {
				t.Errorf("protected from cleaners: %t", sticky)
			}
			kit.Serves(t, l, ipc.Path(path))
			kit.Must(t, l.Close())
			kit.IsGone(t, path)
			kit.IsGone(t, path+".lock")
		})
	}
}

// isInTable reports whether a socket is bound to exactly that path.
func isInTable(t *testing.T, path string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/net/unix")
	kit.Must(t, err)
	return slices.ContainsFunc(strings.Split(string(table), "\n"), func(line string) bool {
		return strings.HasSuffix(line, " "+path)
	})
}

// ---------------------------------------------------------------------------
// Cleaners

// systemd-tmpfiles(8) goes by /proc/net/unix, and by the sticky bit.
func TestListenFreePathIsBoundByItsName(t *testing.T) {
	for _, policy := range kit.Policies {
		t.Run(policy.String(), func(t *testing.T) {
			kit.Story(t)
			dir := kit.OpenDir(t)
			kit.Must(t, os.Chmod(dir, 0o755))
			path := dir + "/socket"
			l := kit.ListenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path(path))
			if !isInTable(t, path) {
				t.Error("the kernel does not know the socket by its path")
			}
			if adopted := kit.Adopt(t, l); adopted.Addr() != ipc.Path(path) {
				t.Errorf("FileListener has %v", adopted.Addr())
			}
			if st := stat(t, path+".lock"); st.Mode&syscall.S_ISVTX == 0 {
				t.Errorf("the lock has mode %o", st.Mode)
			}
			kit.Must(t, l.Close())

			if policy != ipc.TakeoverNever {
				kit.MakeStale(t, path)
				l = kit.ListenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path(path))
				if !isInTable(t, path) && stat(t, path).Mode&syscall.S_ISVTX == 0 {
					t.Error("nothing protects the socket that replaces a stale one")
				}
				kit.Must(t, l.Close())
			}
			t.Chdir(dir)
			l = kit.ListenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path("socket"))
			if !isInTable(t, path) {
				t.Error("the kernel does not know the socket of a relative path by its path")
			}
			kit.Must(t, l.Close())
		})
	}
}

func TestListenCleanersSpareLiveSockets(t *testing.T) {
	cleaner, err := exec.LookPath("systemd-tmpfiles")
	if err != nil {
		t.Skip("there is no systemd-tmpfiles")
	}
	kit.NeedsRoot(t)
	kit.Story(t)
	dir := kit.OpenDir(t)
	kit.Must(t, os.Chmod(dir, 0o755))
	long := dir + "/" + strings.Repeat("l", 120)
	kit.Must(t, os.Mkdir(long, 0o755))
	config := filepath.Join(t.TempDir(), "clean.conf")
	kit.Must(t, os.WriteFile(config, []byte("e "+dir+" - - - 0\n"), 0o600))

	for _, path := range []string{"/free", "/stale", "/always", "/" + filepath.Base(long) + "/socket", "/" + strings.Repeat("b", 200)} {
		lc := ipc.ListenConfig{}
		if path == "/stale" {
			kit.MakeStale(t, dir+path)
		}
		if path == "/always" {
			l := kit.Listen(t, ipc.Path(dir+path))
			defer l.Close()
			lc.Takeover = ipc.TakeoverAlways
		}
		kit.ListenWith(t, lc, ipc.Path(dir+path))
	}
	kit.MakeStale(t, dir+"/dead") // which shows that the cleaner is at work
	before := append(kit.NamesIn(t, dir), kit.NamesIn(t, long)...)
	if out, err := exec.Command(cleaner, "--clean", config).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	after := append(kit.NamesIn(t, dir), kit.NamesIn(t, long)...)
	if os.Remove(dir+"/dead") == nil {
		t.Skip("this systemd-tmpfiles removes no socket")
	}
	before = slices.DeleteFunc(before, func(name string) bool { return name == "dead" })
	if !slices.Equal(before, after) {
		t.Errorf("of %s the cleaner leaves %s", before, after)
	}
}

// ---------------------------------------------------------------------------
// Sandboxes and file systems without a call

// refuse has the kernel answer a call of this process with the error from now on, as a
// sandbox or a file system does: seccomp(2).
func refuse(call uintptr, errno syscall.Errno) error {
	trap := map[string]uintptr{
		"amd64": 317, "386": 354, "arm": 383, "arm64": 277, "riscv64": 277, "loong64": 277, "ppc64le": 358, "s390x": 348,
	}[runtime.GOARCH]
	if trap == 0 {
		return errNoSeccomp
	}
	type filter struct { // struct sock_filter of linux/filter.h
		code   uint16
		jt, jf uint8
		k      uint32
	}
	program := []filter{
		{code: 0x20},                                // BPF_LD|BPF_W|BPF_ABS: the number of the call
		{code: 0x15, jf: 1, k: uint32(call)},        // BPF_JMP|BPF_JEQ|BPF_K
		{code: 0x06, k: 0x00050000 | uint32(errno)}, // BPF_RET: SECCOMP_RET_ERRNO
		{code: 0x06, k: 0x7fff0000},                 // SECCOMP_RET_ALLOW
	}
	prog := struct { // struct sock_fprog
		n      uint16
		filter *filter
	}{uint16(len(program)), &program[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const setNoNewPrivs, setModeFilter, flagTSync = 38, 1, 1
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, setNoNewPrivs, 1, 0, 0, 0, 0); errno != 0 {
		return errNoSeccomp
	}
	if r, _, errno := syscall.RawSyscall(trap, setModeFilter, flagTSync, uintptr(unsafe.Pointer(&prog))); r != 0 || errno != 0 {
		return errNoSeccomp
	}
	return nil
}

var errNoSeccomp = errors.New("this system has no seccomp")

// inSandbox tells a story in a child, which skips the test if there is no sandbox.
func inSandbox(t *testing.T, role string, args ...string) {
	t.Helper()
	kit.Story(t)
	c := kit.StartChild(t, role, args...)
	switch said := c.Hear(); said {
	case "done":
	case errNoSeccomp.Error():
		t.Skip(said)
	default:
		t.Error(said)
	}
	c.End()
}

func TestListenWithoutFlock(t *testing.T) {
	for _, errno := range []syscall.Errno{
		syscall.ENOLCK, syscall.ENOSYS, syscall.EOPNOTSUPP, syscall.EINVAL, syscall.EPERM, syscall.EACCES, syscall.EIO,
	} {
		t.Run(errno.Error(), func(t *testing.T) { inSandbox(t, "noflock", kit.OpenDir(t), strconv.Itoa(int(errno))) })
	}
}

// childListensWithoutFlock tells the life of listeners where flock(2) fails.
func childListensWithoutFlock(p *kit.Parent, args []string) error {
	path := args[0] + "/socket"
	errno := syscall.Errno(kit.Sure(strconv.Atoi(args[1])))
	err := refuse(syscall.SYS_FLOCK, errno)
	for _, policy := range kit.Policies {
		if err == nil {
			err = listensWithoutFlock(policy, path, errno)
		}
	}
	if err != nil {
		p.Say("%v", err)
		return nil
	}
	p.Say("done")
	return nil
}

func listensWithoutFlock(policy ipc.Takeover, path string, errno syscall.Errno) error {
	lc := ipc.ListenConfig{Takeover: policy}
	left := func(want ...string) error {
		names, err := filepath.Glob(filepath.Dir(path) + "/*")
		hidden, _ := filepath.Glob(filepath.Dir(path) + "/.*")
		if names = append(names, hidden...); err == nil && !slices.Equal(names, want) {
			err = fmt.Errorf("%v, %v: the folder has %s, want %s", policy, errno, names, want)
		}
		return err
	}
	l, err := lc.Listen(ipc.Path(path))
	if errno == syscall.EIO { // which says nothing of whether there is flock
		if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "flock") {
			return fmt.Errorf("%v: Listen says %v", policy, err)
		}
		return left()
	}
	if err != nil {
		return err
	}
	if err := left(path); err != nil {
		return err
	}
	for _, rival := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever} {
		if _, err := (ipc.ListenConfig{Takeover: rival}).Listen(ipc.Path(path)); !errors.Is(err, ipc.ErrAddrInUse) {
			return fmt.Errorf("%v: a rival with %v gets %v", policy, rival, err)
		}
	}
	next, err := ipc.ListenConfig{Takeover: ipc.TakeoverAlways, KeepName: true}.Listen(ipc.Path(path))
	if err != nil {
		return err
	}
	if err := errors.Join(l.Close(), left(path)); err != nil { // it is the other one's now
		return err
	}
	if err := errors.Join(next.Close(), left(path)); err != nil {
		return err
	}
	l, err = ipc.Listen(ipc.Path(path)) // what was left is stale
	if err != nil {
		return err
	}
	child := kit.Rerun("noflock heir")
	told, err := child.StdinPipe()
	if err != nil {
		return err
	}
	if err := errors.Join(ipc.Inherit(child, "listener", l), child.Start(), l.Close(), left(path)); err != nil {
		return err
	}
	return errors.Join(told.Close(), child.Wait(), left())
}

func childInheritsWithoutFlock(p *kit.Parent, _ []string) error {
	l, err := ipc.InheritedListener("listener")
	if err != nil {
		return err
	}
	p.Hear() // the end
	return l.Close()
}

// Android forbids link(2).
func TestListenLongNameWithoutLink(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EACCES, syscall.EPERM} {
		t.Run(errno.Error(), func(t *testing.T) {
			inSandbox(t, "nolink", kit.OpenDir(t)+"/"+strings.Repeat("b", 240), strconv.Itoa(int(errno)))
		})
	}
}

func childListensWithoutLink(p *kit.Parent, args []string) error {
	err := refuse(syscall.SYS_LINKAT, syscall.Errno(kit.Sure(strconv.Atoi(args[1]))))
	for range 2 {
		if err == nil {
			var l *ipc.Listener
			if l, err = ipc.Listen(ipc.Path(args[0])); err == nil {
				var c *ipc.Conn
				if c, err = ipc.Dial(ipc.Path(args[0])); err == nil {
					err = errors.Join(c.Close(), l.Close())
				}
			}
		}
	}
	if err != nil {
		p.Say("%v", err)
		return nil
	}
	p.Say("done")
	return nil
}

// ---------------------------------------------------------------------------
// Working directories without a name

func TestListenRelativePathDeeperThanAnyPath(t *testing.T) {
	kit.Story(t)
	c := kit.StartChild(t, "deep", t.TempDir(), "")
	c.MustSay("done")
	c.End()
}

// Without /proc the working directory has to have a name for a relative path that does
// not fit into a socket address.
func TestListenLongRelativePathDeeperThanAnyPathIsTooLong(t *testing.T) {
	kit.NeedsRoot(t)
	kit.Story(t)
	c := kit.StartChild(t, "deep", t.TempDir(), "chroot")
	c.MustSay("done")
	c.End()
}

// childListensDeep goes to a folder whose path is longer than a path can be.
func childListensDeep(p *kit.Parent, args []string) error {
	name := strings.Repeat("d", 250)
	err := syscall.Chdir(args[0])
	if err == nil && args[1] == "chroot" {
		err = syscall.Chroot(".")
	}
	for range 20 {
		if err == nil {
			err = errors.Join(syscall.Mkdir(name, 0o700), syscall.Chdir(name))
		}
	}
	if err != nil {
		return err
	}
	if wd, err := syscall.Getwd(); err == nil {
		return fmt.Errorf("the working directory has a name of %d bytes", len(wd))
	}
	long := strings.Repeat("f", 120) + "/socket"
	if args[1] == "chroot" {
		said := servesRelative("socket", "sub/socket", strings.Repeat("b", 90))
		if err := syscall.Mkdir(filepath.Dir(long), 0o700); err != nil {
			return err
		}
		_, errListen := ipc.Listen(ipc.Path(long))
		if err := os.WriteFile(long, nil, 0o600); err != nil { // Dial looks for it first
			return err
		}
		_, errDial := ipc.Dial(ipc.Path(long))
		if !errors.Is(errListen, ipc.ErrNameTooLong) || !errors.Is(errDial, ipc.ErrNameTooLong) {
			said = fmt.Sprintf("Listen: %v; Dial: %v", errListen, errDial)
		}
		p.Say("%s", said)
		return nil
	}
	p.Say("%s", servesRelative("socket", "./socket", strings.Repeat("b", 250), "sub/socket", long))
	return nil
}

// servesRelative tells the life of servers at paths from the working directory.
func servesRelative(paths ...string) string {
	for _, path := range paths {
		addr := ipc.Path(path)
		if dir := filepath.Dir(path); dir != "." {
			if err := syscall.Mkdir(dir, 0o700); err != nil {
				return err.Error()
			}
		}
		for _, policy := range kit.Policies {
			l, err := ipc.ListenConfig{Takeover: policy}.Listen(addr)
			if err != nil {
				return fmt.Sprintf("%v: %v", policy, err)
			}
			c, err := ipc.Dial(addr)
			if err != nil {
				return err.Error()
			}
			_, again := ipc.Listen(addr)
			err = errors.Join(c.Close(), l.Close())
			if _, left := os.Lstat(path); err != nil || !errors.Is(again, ipc.ErrAddrInUse) || !errors.Is(left, fs.ErrNotExist) {
				return fmt.Sprintf("%v at %s: %v; %v; %v", policy, path, err, again, left)
			}
		}
	}
	return "done"
}

func TestListenRelativePathOutsideTheRoot(t *testing.T) {
	kit.NeedsRoot(t)
	kit.Story(t)
	c := kit.StartChild(t, "outside", kit.TempDir(t))
	c.MustSay("done")
	c.End()
}

// childListensOutside stays where it is when its root becomes another folder, so its
// working directory has no name, and there is no /proc.
func childListensOutside(p *kit.Parent, args []string) error {
	if err := errors.Join(syscall.Chdir(args[0]), syscall.Mkdir("root", 0o700), syscall.Chroot("root")); err != nil {
		return err
	}
	p.Say("%s", servesRelative("socket", "./socket", "sub/socket", strings.Repeat("b", 90)))
	return nil
}

// A folder may give what is made in it an access control list, and chmod(2) takes the permissions of
// the group for what that list may grant. Others than the group get nothing by it.
func TestListenDropsTheListOfTheFolder(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	dir := t.TempDir()
	kit.Must(t, os.Chmod(dir, 0o770)) // so that the group may use the lock, too
	list := []byte{2, 0, 0, 0}        // acl(5), as linux/posix_acl_xattr.h has it: tag, permissions, user
	for _, e := range []struct {
		tag, perm uint16
		user      uint32
	}{{0x1, 7, ^uint32(0)}, {0x2, 7, 12345}, {0x4, 7, ^uint32(0)}, {0x10, 7, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		list = binary.LittleEndian.AppendUint16(list, e.tag)
		list = binary.LittleEndian.AppendUint16(list, e.perm)
		list = binary.LittleEndian.AppendUint32(list, e.user)
	}
	if err := syscall.Setxattr(dir, "system.posix_acl_default", list, 0); err != nil {
		t.Skip("there are no such lists here:", err)
	}
	l, err := ipc.ListenConfig{Sys: &ipc.SysListenConfig{Mode: 0o660}}.Listen(ipc.Path(filepath.Join(dir, "socket")))
	kit.Must(t, err)
	defer l.Close()
	kit.Must(t, ipc.Mkfifo(filepath.Join(dir, "fifo"), 0o660))
	for _, name := range []string{"socket", "fifo", "socket.lock"} {
		path := filepath.Join(dir, name)
		fi, err := os.Lstat(path)
		kit.Must(t, err)
		if mode := fi.Mode() &^ fs.ModeType; mode != 0o660 && filepath.Ext(name) != ".lock" {
			t.Errorf("the mode of the %s is %v", name, mode)
		}
		if n, err := syscall.Getxattr(path, "system.posix_acl_access", nil); err != syscall.ENODATA {
			t.Errorf("the %s has a list: %d, %v", name, n, err)
		}
	}
}
