//go:build unix

package ipc_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	countDescriptors = func() int { return len(descriptors()) }
	asChild = becomeUser
	roles["inherits"] = childLooksForDescriptors
}

// descriptors returns the numbers of the descriptors that are open. Where the
// system lists them it asks for no others, which is much faster.
func descriptors() (open []int) {
	candidates := make([]int, 0, 4096)
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		for _, e := range entries { // one of them is closed again by now
			if fd, err := strconv.Atoi(e.Name()); err == nil {
				candidates = append(candidates, fd)
			}
		}
	} else {
		for fd := range cap(candidates) {
			candidates = append(candidates, fd)
		}
	}
	for _, fd := range candidates {
		var st syscall.Stat_t
		if syscall.Fstat(fd, &st) == nil {
			open = append(open, fd)
		}
	}
	return open
}

// ---------------------------------------------------------------------------
// Users

const (
	childUser = "IPC_TEST_USER" // "uid:gid" that a child of root is to run as
	nobody    = 12345           // has no account, and is not the overflow id of a user namespace
)

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
}

// startStranger starts a child that another user runs.
func startStranger(t *testing.T, role string, args ...string) *child {
	t.Helper()
	needsRoot(t)
	return startChildWith(t, exec.Cmd{Env: []string{fmt.Sprintf("%s=%d:%d", childUser, nobody, nobody)}}, role, args...)
}

// startForeignServer starts one that echoes what it is sent at the address.
func startForeignServer(t *testing.T, addr ipc.Addr, access ...string) *child {
	t.Helper()
	c := startStranger(t, "serve", append([]string{addr.String()}, access...)...)
	c.mustSay("serving")
	return c
}

// becomeUser gives up being root, in a child that is to be somebody else. The
// program file need not be within that user's reach then.
func becomeUser() error {
	who := os.Getenv(childUser)
	if who == "" {
		return nil
	}
	user, group, _ := strings.Cut(who, ":")
	uid, err := strconv.Atoi(user)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(group)
	if err != nil {
		return err
	}
	return errors.Join(syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(uid))
}

// openDir returns a folder of a short path in which every user may do anything,
// for programs that cannot cope with long ones. No file must be left in it.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ipc")
	if err != nil {
		dir, err = os.MkdirTemp("", "ipc")
	}
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o777))
	leavesNoFiles(t, dir)
	return dir
}

// overEachOpenAddr is overEachAddr for stories with several users.
func overEachOpenAddr(t *testing.T, tell func(t *testing.T, addr ipc.Addr)) {
	needsRoot(t)
	t.Run("Path", func(t *testing.T) { story(t); tell(t, ipc.Path(openDir(t)+"/socket")) })
	t.Run("Name", func(t *testing.T) { story(t); tell(t, nameAddr(t)) })
}

// sockPath returns a path where nothing is, which fits into a socket address: the
// kernel tells it as it is.
func sockPath(t *testing.T) string { return openDir(t) + "/socket" }

// modeOf returns the mode of the socket file.
func modeOf(t *testing.T, path string) fs.FileMode {
	t.Helper()
	st, err := os.Lstat(path)
	must(t, err)
	if st.Mode().Type() != fs.ModeSocket {
		t.Fatalf("%s is %v, no socket", path, st.Mode())
	}
	return st.Mode().Perm()
}

func isGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", path, err)
	}
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// serveForeign listens at the path as any program does that knows nothing of
// this package, and accepts clients.
func serveForeign(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "foreign")
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l
}

// makeStale leaves a socket file as a crash does.
func makeStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
}

var policies = []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever, ipc.TakeoverAlways}

// isErrno checks that err is a *net.OpError around an *os.SyscallError of that
// call around that errno.
func isErrno(t *testing.T, err error, op, call string, errno syscall.Errno) {
	t.Helper()
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != op || oe.Net != "unix" {
		t.Errorf("%#v is not a *net.OpError of %s", err, op)
	}
	var se *os.SyscallError
	if !errors.As(err, &se) || se.Syscall != call {
		t.Errorf("%v: %#v is not an *os.SyscallError of %s", err, se, call)
	}
	var got syscall.Errno
	if !errors.As(err, &got) || got != errno {
		t.Errorf("%v: errno is %v, want %v", err, got, errno)
	}
}

// areCloseOnExec starts a child that must not have the descriptors that came
// since, and returns their number.
func areCloseOnExec(t *testing.T, before []int) int {
	t.Helper()
	var args []string
	for _, fd := range descriptors() {
		if !slices.Contains(before, fd) {
			var st syscall.Stat_t
			must(t, syscall.Fstat(fd, &st))
			args = append(args, fmt.Sprintf("%d %d %d", fd, st.Dev, st.Ino))
		}
	}
	startChild(t, "inherits", args...).end()
	return len(args)
}

// areCollected makes ends again and again that nobody closes.
func areCollected(t *testing.T, drop func()) {
	story(t)
	before := openDescriptors()
	for range 50 {
		drop()
	}
	eventually(t, "the garbage collector closes them", func() bool {
		runtime.GC()
		return openDescriptors() <= before
	})
}

// adoptPair adopts the ends of a socket pair of that type, made as C programs make
// it.
func adoptPair[C io.Closer](t *testing.T, typ int, adopt func(*os.File) (C, error)) (a, b C) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, typ, 0) // blocking
	must(t, err)
	var ends [2]C
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := adopt(f)
		ends[i] = kept(t, c, err)
		_, err = f.Stat() // still the caller's
		must(t, err)
		must(t, f.Close())
	}
	return ends[0], ends[1]
}

// adopt returns a second listener of the same socket.
func adopt(t *testing.T, l *ipc.Listener) *ipc.Listener {
	t.Helper()
	f, err := l.File()
	must(t, err)
	adopted, err := ipc.FileListener(f)
	must(t, f.Close())
	return kept(t, adopted, err)
}

// makeFIFO makes a FIFO in the folder.
func makeFIFO(t *testing.T, dir string) (path string) {
	t.Helper()
	path = dir + "/fifo"
	err := ipc.Mkfifo(path, 0o600)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("there is no call to make a FIFO here")
	}
	must(t, err)
	t.Cleanup(func() { os.Remove(path) })
	return path
}

// blocks reports whether calls on the descriptor wait in the kernel.
func blocks(t *testing.T, f *os.File) bool {
	t.Helper()
	raw, err := f.SyscallConn()
	must(t, err)
	var d int
	must(t, raw.Control(func(fd uintptr) { d, err = syscall.Dup(int(fd)) }))
	must(t, err)
	twin := os.NewFile(uintptr(d), "twin")
	defer twin.Close()
	return twin.SetDeadline(time.Time{}) != nil // only a nonblocking file has deadlines
}

// A rawCarrier is a carrier with the raw calls.
type rawCarrier interface {
	carrier
	ReadMsg(p, oob []byte) (n, oobn, flags int, err error)
	WriteMsg(p, oob []byte) (n int, err error)
	File() (*os.File, error)
}

// overEachRaw tells a story over each kind of connection that is a bare socket.
func overEachRaw(t *testing.T, tell func(t *testing.T, a, b rawCarrier)) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		if m, ok := a.(*ipc.MsgConn); ok && !m.Native() {
			t.Skip("the socket carries frames")
		}
		tell(t, a.(rawCarrier), b.(rawCarrier))
	})
}

// sysFD returns the descriptor of a file that stays open meanwhile.
func sysFD(t *testing.T, f *os.File) (fd int) {
	t.Helper()
	raw, err := f.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(sys uintptr) { fd = int(sys) }))
	return fd
}

// rightsOf returns the control message that sends the files.
func rightsOf(t *testing.T, files ...*os.File) []byte {
	t.Helper()
	fds := []int{}
	for _, f := range files {
		fds = append(fds, sysFD(t, f))
	}
	return syscall.UnixRights(fds...)
}

// filesIn returns the files in control messages.
func filesIn(t *testing.T, oob []byte) (files []*os.File) {
	t.Helper()
	msgs, err := syscall.ParseSocketControlMessage(oob)
	must(t, err)
	for _, m := range msgs {
		if m.Header.Level != syscall.SOL_SOCKET || m.Header.Type != syscall.SCM_RIGHTS {
			continue
		}
		fds, err := syscall.ParseUnixRights(&m)
		must(t, err)
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "received")
			t.Cleanup(func() { f.Close() })
			files = append(files, f)
		}
	}
	return files
}

// oobRoom is room for some files and for what the kernel may add.
func oobRoom(files int) []byte { return make([]byte, syscall.CmsgSpace(4*files)+256) }

// carriers is a pair of connections of the kind "stream", "native" or "framed", for a child.
func carriers(kind string) (a, b carrier, err error) {
	if kind == "stream" {
		return carrierPair(ipc.Pair())
	}
	frameMessages(kind == "framed")
	return carrierPair(ipc.MsgPair())
}

func carrierPair[C carrier](a, b C, err error) (carrier, carrier, error) { return a, b, err }

// reaches sends the text from a to b.
func reaches(a, b carrier, text string) error {
	got := make([]byte, len(text))
	var err error
	switch a := a.(type) {
	case *ipc.Conn:
		_, err = io.WriteString(a, text)
		if err == nil {
			_, err = io.ReadFull(b.(*ipc.Conn), got)
		}
	case *ipc.MsgConn:
		err = a.Send([]byte(text))
		if err == nil {
			_, err = b.(*ipc.MsgConn).Recv(got)
		}
	}
	if err != nil || string(got) != text {
		return fmt.Errorf("%q arrives as %q, %w", text, got, err)
	}
	return nil
}

// fileOf returns a duplicate that the test closes.
func fileOf(t *testing.T, l interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := l.File()
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}
