//go:build unix

package kit

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
	CountDescriptors = func() int { return len(Descriptors()) }
	asChild = becomeUser
	Roles["inherits"] = childLooksForDescriptors
}

// Descriptors returns the numbers of the descriptors that are open. Where the
// system lists them it asks for no others, which is much faster.
func Descriptors() (open []int) {
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

// These are of a child that another user runs.
const (
	ChildUser = "IPC_TEST_USER" // "uid:gid" that a child of root is to run as
	Nobody    = 12345           // has no account, and is not the overflow id of a user namespace
)

// NeedsRoot skips the test unless root runs it.
func NeedsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
}

// StartStranger starts a child that another user runs.
func StartStranger(t *testing.T, role string, args ...string) *Child {
	t.Helper()
	NeedsRoot(t)
	return StartChildWith(t, exec.Cmd{Env: []string{fmt.Sprintf("%s=%d:%d", ChildUser, Nobody, Nobody)}}, role, args...)
}

// StartForeignServer starts one that echoes what it is sent at the address.
func StartForeignServer(t *testing.T, addr ipc.Addr, access ...string) *Child {
	t.Helper()
	c := StartStranger(t, "serve", append([]string{addr.String()}, access...)...)
	c.MustSay("serving")
	return c
}

// becomeUser gives up being root, in a child that is to be somebody else. The
// program file need not be within that user's reach then.
func becomeUser() error {
	who := os.Getenv(ChildUser)
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

// OpenDir returns a folder of a short path in which every user may do anything,
// for programs that cannot cope with long ones. No file must be left in it.
func OpenDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ipc")
	if err != nil {
		dir, err = os.MkdirTemp("", "ipc")
	}
	Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	Must(t, os.Chmod(dir, 0o777))
	leavesNoFiles(t, dir)
	return dir
}

// OverEachOpenAddr is OverEachAddr for stories with several users.
func OverEachOpenAddr(t *testing.T, tell func(t *testing.T, addr ipc.Addr)) {
	NeedsRoot(t)
	t.Run("Path", func(t *testing.T) { Story(t); tell(t, ipc.Path(OpenDir(t)+"/socket")) })
	t.Run("Name", func(t *testing.T) { Story(t); tell(t, NameAddr(t)) })
}

// SockPath returns a path where nothing is, which fits into a socket address: the
// kernel tells it as it is.
func SockPath(t *testing.T) string { return OpenDir(t) + "/socket" }

// ModeOf returns the mode of the socket file.
func ModeOf(t *testing.T, path string) fs.FileMode {
	t.Helper()
	st, err := os.Lstat(path)
	Must(t, err)
	if st.Mode().Type() != fs.ModeSocket {
		t.Fatalf("%s is %v, no socket", path, st.Mode())
	}
	return st.Mode().Perm()
}

// IsGone fails the test if there is a file at the path.
func IsGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", path, err)
	}
}

// Suspend stops all threads of the child, until Resume.
func (c *Child) Suspend() { c.t.Helper(); Must(c.t, syscall.Kill(c.PID(), syscall.SIGSTOP)) }

// Resume ends what Suspend began.
func (c *Child) Resume() { c.t.Helper(); Must(c.t, syscall.Kill(c.PID(), syscall.SIGCONT)) }

// NamesIn returns the names of the files in the folder.
func NamesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	Must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// ServeForeign listens at the path as any program does that knows nothing of
// this package, and accepts clients.
func ServeForeign(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	Must(t, err)
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

// MakeStale leaves a socket file as a crash does.
func MakeStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	Must(t, err)
	l.SetUnlinkOnClose(false)
	Must(t, l.Close())
}

// Policies are all that a listener can do about a socket that is there already.
var Policies = []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever, ipc.TakeoverAlways}

// IsErrno checks that err is a *net.OpError around an *os.SyscallError of that
// call around that errno.
func IsErrno(t *testing.T, err error, op, call string, errno syscall.Errno) {
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

// AreCloseOnExec starts a child that must not have the descriptors that came
// since, and returns their number.
func AreCloseOnExec(t *testing.T, before []int) int {
	t.Helper()
	var args []string
	for _, fd := range Descriptors() {
		if !slices.Contains(before, fd) {
			var st syscall.Stat_t
			Must(t, syscall.Fstat(fd, &st))
			args = append(args, fmt.Sprintf("%d %d %d", fd, st.Dev, st.Ino))
		}
	}
	StartChild(t, "inherits", args...).End()
	return len(args)
}

// AreCollected makes ends again and again that nobody closes.
func AreCollected(t *testing.T, drop func()) {
	Story(t)
	before := OpenDescriptors()
	for range 50 {
		drop()
	}
	Eventually(t, "the garbage collector closes them", func() bool {
		runtime.GC()
		return OpenDescriptors() <= before
	})
}

// AdoptPair adopts the ends of a socket pair of that type, made as C programs make
// it.
func AdoptPair[C io.Closer](t *testing.T, typ int, adopt func(*os.File) (C, error)) (a, b C) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, typ, 0) // blocking
	Must(t, err)
	var ends [2]C
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := adopt(f)
		ends[i] = Kept(t, c, err)
		_, err = f.Stat() // still the caller's
		Must(t, err)
		Must(t, f.Close())
	}
	return ends[0], ends[1]
}

// Adopt returns a second listener of the same socket.
func Adopt(t *testing.T, l *ipc.Listener) *ipc.Listener {
	t.Helper()
	f, err := l.File()
	Must(t, err)
	adopted, err := ipc.FileListener(f)
	Must(t, f.Close())
	return Kept(t, adopted, err)
}

// MakeFIFO makes a FIFO in the folder.
func MakeFIFO(t *testing.T, dir string) (path string) {
	t.Helper()
	path = dir + "/fifo"
	err := ipc.Mkfifo(path, 0o600)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("there is no call to make a FIFO here")
	}
	Must(t, err)
	t.Cleanup(func() { os.Remove(path) })
	return path
}

// Blocks reports whether calls on the descriptor wait in the kernel.
func Blocks(t *testing.T, f *os.File) bool {
	t.Helper()
	raw, err := f.SyscallConn()
	Must(t, err)
	var d int
	Must(t, raw.Control(func(fd uintptr) { d, err = syscall.Dup(int(fd)) }))
	Must(t, err)
	twin := os.NewFile(uintptr(d), "twin")
	defer twin.Close()
	return twin.SetDeadline(time.Time{}) != nil // only a nonblocking file has deadlines
}

// A RawCarrier is a carrier with the raw calls.
type RawCarrier interface {
	Carrier
	ReadMsg(p, oob []byte) (n, oobn, flags int, err error)
	WriteMsg(p, oob []byte) (n int, err error)
	File() (*os.File, error)
}

// OverEachRaw tells a story over each kind of connection that is a bare socket.
func OverEachRaw(t *testing.T, tell func(t *testing.T, a, b RawCarrier)) {
	OverEachPair(t, func(t *testing.T, a, b Carrier) {
		if m, ok := a.(*ipc.MsgConn); ok && !m.Native() {
			t.Skip("the socket carries frames")
		}
		tell(t, a.(RawCarrier), b.(RawCarrier))
	})
}

// SysFD returns the descriptor of a file that stays open meanwhile.
func SysFD(t *testing.T, f *os.File) (fd int) {
	t.Helper()
	raw, err := f.SyscallConn()
	Must(t, err)
	Must(t, raw.Control(func(sys uintptr) { fd = int(sys) }))
	return fd
}

// RightsOf returns the control message that sends the files.
func RightsOf(t *testing.T, files ...*os.File) []byte {
	t.Helper()
	fds := []int{}
	for _, f := range files {
		fds = append(fds, SysFD(t, f))
	}
	return syscall.UnixRights(fds...)
}

// FilesIn returns the files in control messages.
func FilesIn(t *testing.T, oob []byte) (files []*os.File) {
	t.Helper()
	msgs, err := syscall.ParseSocketControlMessage(oob)
	Must(t, err)
	for _, m := range msgs {
		if m.Header.Level != syscall.SOL_SOCKET || m.Header.Type != syscall.SCM_RIGHTS {
			continue
		}
		fds, err := syscall.ParseUnixRights(&m)
		Must(t, err)
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "received")
			t.Cleanup(func() { f.Close() })
			files = append(files, f)
		}
	}
	return files
}

// OobRoom is room for some files and for what the kernel may add.
func OobRoom(files int) []byte { return make([]byte, syscall.CmsgSpace(4*files)+256) }

// Carriers is a pair of connections of the kind "stream", "native" or "framed", for a child.
func Carriers(kind string) (a, b Carrier, err error) {
	if kind == "stream" {
		return carrierPair(ipc.Pair())
	}
	FrameMessages(kind == "framed")
	return carrierPair(ipc.MsgPair())
}

func carrierPair[C Carrier](a, b C, err error) (Carrier, Carrier, error) { return a, b, err }

// Reaches sends the text from a to b.
func Reaches(a, b Carrier, text string) error {
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

// FileOf returns a duplicate that the test closes.
func FileOf(t *testing.T, l interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := l.File()
	Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// AddrOfSocket returns the listener's address as its socket alone tells it: a
// name is a path where names are files.
func AddrOfSocket(l *ipc.Listener) string {
	text := l.Addr().String()
	if name, ok := strings.CutPrefix(text, "@"); ok {
		if _, err := os.Lstat("/tmp/" + name); err == nil {
			return "/tmp/" + name
		}
	}
	return text
}

// childLooksForDescriptors fails if it has one of its parent's.
func childLooksForDescriptors(_ *Parent, args []string) error {
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
