//go:build unix

package ipc

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// freshFolder is the beginning of the names that Listen makes.
const freshFolder = ""

// network is what Addr.Network says: local sockets are AF_UNIX sockets here.
const network = "unix"

// nulInNames says that a Name may hold NUL bytes: an abstract one has a length.
const nulInNames = abstractNames

// ---------------------------------------------------------------------------
// What only Unix has

// A SysListenConfig holds the options of a listener that only Unix has. They are about
// the socket file. With an abstract name, which has no file, they are an error.
type SysListenConfig struct {
	// Mode is the exact permission bits of the socket file, instead of those
	// that [ListenConfig.Access] stands for. A client needs permission to
	// write. 0 leaves them to Access. On Linux the file may have the sticky bit
	// too: see [ListenConfig.Listen].
	Mode fs.FileMode

	// UID and GID are the owner and the group that the socket file is given before
	// anybody can connect, as by chown(2), which limits who may do that. 0 leaves them as
	// they are.
	UID, GID int
}

func (s *SysListenConfig) check(abstract bool) error {
	switch {
	case s == nil || *s == SysListenConfig{}:
		return nil
	case s.Mode&^fs.ModePerm != 0:
		return modeError("Sys.Mode", s.Mode)
	case !validID(s.UID):
		return configError("Sys.UID", strconv.Itoa(s.UID), idRule)
	case !validID(s.GID):
		return configError("Sys.GID", strconv.Itoa(s.GID), idRule)
	case abstract:
		return &ruleError{what: "Sys.Mode, UID and GID are of a socket file, and an abstract name has none"}
	}
	return nil
}

// resolveGroup returns the number of a group that is given by number or by name, as text.
// Package os/user would know more groups with cgo; without cgo it would only make
// programs larger.
func resolveGroup(group string) (number string, err error) {
	if n, err := strconv.Atoi(group); err == nil {
		if !validID(n) {
			return "", configError("Group", strconv.Quote(group), "a name, or "+idRule)
		}
		return strconv.Itoa(n), nil
	}
	text, err := readFile(groupFile)
	if err != nil {
		return "", &classified{&ruleError{what: groupUnknown(group) + ": " + err.Error()}, os.ErrNotExist}
	}
	n, ok := groupNumber(string(text), group)
	if !ok {
		return "", &ruleError{groupUnknown(group), os.ErrNotExist}
	}
	return strconv.Itoa(n), nil
}

const groupFile = "/etc/group"

func groupUnknown(group string) string {
	return "no group " + strconv.Quote(group) + " is in " + groupFile + " (a group that is kept elsewhere needs its number)"
}

// groupNumber finds a group in the text of a file as group(5) describes it: lines of
// name, password, number and members, with ':' between them.
func groupNumber(text, name string) (number int, ok bool) {
	for line := range strings.Lines(text) {
		found, rest, _ := strings.Cut(line, ":")
		_, rest, ok := strings.Cut(rest, ":") // behind the password
		id, _, _ := strings.Cut(rest, ":")
		if found != name || !ok {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSuffix(id, "\n")); err == nil && validID(n) {
			return n, true
		}
	}
	return 0, false
}

// validID reports whether chown(2) takes the id as it is. Of a greater one the kernel
// sees the low 32 bits, which may be those of root. The last number of 32 bits is no id.
func validID(id int) bool { return id >= 0 && uint64(id) < 1<<32-1 }

const idRule = "0 to 4294967294"

func modeError(field string, mode fs.FileMode) error {
	return configError(field, "0"+strconv.FormatUint(uint64(mode), 8), "permission bits, at most 0777")
}

// A SysDialer holds the options of a dialer that only this system has. There
// are none on Unix.
type SysDialer struct{}

// File returns a duplicate of the listening descriptor, to hand the listener over to
// another process, which adopts it with [FileListener] or [FileMsgListener]. A
// [SharedListener] is handed over by [Inherit] alone. The socket listens until both are
// closed. The socket file and its lock stay with l: to leave the
// file behind, set [ListenConfig.KeepName]; to hand it over with its lock, use [Inherit].
//
// The duplicate is nonblocking, as l is: the two share that mode. For a program in
// another language whose accept(2) then fails with EAGAIN there is
// [Listener.BlockingFile].
func (l *Listener) File() (*os.File, error) { return serverOf(l).file() }

// File returns a duplicate of the listening descriptor: see [Listener.File].
func (l *MsgListener) File() (*os.File, error) { return serverOf(l).file() }

// File returns a duplicate of the listening descriptor: see [Listener.File].
func (l *SharedListener) File() (*os.File, error) { return serverOf(l).file() }

func (l *server) file() (*os.File, error) {
	f, err := l.end().dupFile(l.addr.String())
	return f, l.failed("file", err)
}

// BlockingFile gives the listener away: it closes l and returns its descriptor in
// blocking mode, for a program in another language. The socket still listens. Its lock is
// given up; the socket file stays, and nobody removes it. If another process got the
// listener by [Inherit], that process still owns both. See [Conn.BlockingFile].
func (l *Listener) BlockingFile() (*os.File, error) { return serverOf(l).blockingFile() }

// BlockingFile gives the listener away: see [Listener.BlockingFile].
func (l *MsgListener) BlockingFile() (*os.File, error) { return serverOf(l).blockingFile() }

// BlockingFile gives the listener away: see [Listener.BlockingFile].
func (l *SharedListener) BlockingFile() (*os.File, error) { return serverOf(l).blockingFile() }

func (l *server) blockingFile() (*os.File, error) {
	f, err := l.end().blockingFile(l.addr.String(), func() error {
		err := l.listener.giveUp(true)
		if err == errFolderHeld { // only the lock is removed later
			err = nil
		}
		return err
	})
	return f, l.failed("file", err)
}

// BlockingFile gives the end away: it closes c and returns its descriptor in blocking
// mode, as programs in other languages expect it, above all of their standard input
// and output:
//
//	cmd.Stdin, err = conn.BlockingFile() // and close it after cmd.Start
//
// The mode belongs to the open file description and not to the descriptor, so an end that
// is still used here cannot have a blocking duplicate. A duplicate that was made before,
// by File or Inherit, becomes blocking too. The error matches [net.ErrClosed] after
// Close. If something was read ahead of the caller, which would be lost, the error says
// so and c stays as it is. Calls under way return as after Close.
func (c *endpoint) BlockingFile() (*os.File, error) {
	f, err := c.end().blockingFile(c.local.String()+"->"+c.remote.String(), c.end().close)
	return f, c.failed("file", err)
}

// BlockingFile gives the end away, in blocking mode: see [Conn.BlockingFile].
func (c *MsgConn) BlockingFile() (*os.File, error) {
	if err := c.mayGo(); err != nil {
		return nil, c.failed("file", err)
	}
	f, err := c.end().blockingFile(c.local.String()+"->"+c.remote.String(), c.messages().close)
	return f, c.failed("file", err)
}

// BlockingFile gives the end away, in blocking mode: see [Conn.BlockingFile].
func (e *pipeEnd) BlockingFile() (*os.File, error) {
	f, err := e.end().blockingFile("pipe "+e.addr.String(), e.close)
	return f, e.failed("file", err)
}

// mayGo refuses to give an end away if something was read ahead of the caller, which
// would stay here. A read that is under way takes what was read ahead.
func (f *fd) mayGo() error {
	if !f.r.mu.TryLock() {
		return nil
	}
	defer f.r.mu.Unlock()
	if f.in.holds() {
		return errReadAhead
	}
	return nil
}

// blockingFile returns the descriptor of f, which end closes, in blocking mode.
func (f *fd) blockingFile(name string, end func() error) (*os.File, error) {
	if err := f.mayGo(); err != nil {
		return nil, err
	}
	sys, err := f.dupSys()
	if err != nil {
		return nil, err
	}
	if err = end(); err == nil {
		err = os.NewSyscallError("fcntl", syscall.SetNonblock(sys, false))
	}
	if err != nil {
		syscall.Close(sys)
		return nil, err
	}
	return os.NewFile(uintptr(sys), name), nil
}

// FileListener returns a listener over a duplicate of f, which must be a listening stream
// socket of the local family (AF_UNIX); anything else is refused. f stays the caller's to
// close, whatever the result, and becomes nonblocking, as the two share that mode. The
// mode of the socket file decides who may connect; the listener never removes that file.
// On an abstract name, which no permission guards, the listener serves this user and root
// alone until [Listener.SetAccess] says otherwise.
//
// Its Addr is the name that the socket was bound to (getsockname(2)). A [Listener] binds
// to another name than its path where [TakeoverAlways] replaces a socket, where the path
// is too long for a socket address, and where somebody else could make the path lead to
// another folder. That other name leads nowhere.
func FileListener(f *os.File) (*Listener, error) {
	l := new(Listener)
	return opened(l, l.adoptFile(f, streams))
}

// FileMsgListener returns a listener for messages over a duplicate of f, which must
// be a listening socket of type SOCK_SEQPACKET of the local family, or SOCK_STREAM
// where messages are framed (macOS, AIX, illumos, Solaris): see [FileListener].
func FileMsgListener(f *os.File) (*MsgListener, error) {
	l := new(MsgListener)
	return opened(l, l.adoptFile(f, messages))
}

// adoptFile makes l a listener over a duplicate of f.
func (l *server) adoptFile(f *os.File, kind connKind) error {
	fd, err := adopt(f, streams, func(sys int) error { return isListening(sys, kind) })
	if err != nil {
		return opError("file", Addr{}, Addr{}, err)
	}
	l.adopted(newListener(fd, kind))
	return nil
}

// adopted makes l the server of a socket that no ListenConfig of this process made. If
// the socket has no file for the kernel to guard, it serves this user and root alone,
// until SetAccess says otherwise.
func (l *server) adopted(sys *listener) {
	l.listener, l.addr = sys, sys.localAddr()
	if sys.file != nil { // the name that clients know, not the one that was bound
		l.addr = Path(sys.file.path())
	}
	l.setRules(l.addr.kind != pathAddr, nil)
}

// ---------------------------------------------------------------------------
// Addresses
//
// A target is an address as the system knows it: the path of a socket file, or
// where there are abstract names a NUL byte and the name.

// resolve checks the address and returns its target.
func (a Addr) resolve() (target string, err error) {
	if err := a.check(); err != nil {
		return "", err
	}
	target = a.text
	if a.kind == nameAddr {
		if target, err = kern.nameTarget(a.text); err != nil {
			return "", err
		}
	}
	if isAbstract(target) {
		return target, nil
	}
	if len(target) > pathMax {
		return "", tooLong("the path", len(target), pathMax)
	}
	switch _, base := splitPath(target); {
	case base == "" || base == "." || base == "..":
		return "", &ruleError{what: "the path " + strconv.Quote(target) + " names a folder"}
	case len(base) > nameMax:
		return "", tooLong("the last element of the path", len(base), nameMax)
	}
	return target, nil
}

// nameMax is NAME_MAX, the longest element of a path, on every Unix.
const nameMax = 255

// nameTarget maps a name to a file where the system has no abstract names.
func (baseKernel) nameTarget(name string) (string, error) {
	for element := range strings.SplitSeq(name, "/") {
		if element == ".." {
			return "", &ruleError{what: "the name " + strconv.Quote(name) + " leads out of /tmp"}
		}
	}
	return "/tmp/" + name, nil
}

func isAbstract(target string) bool { return target[0] == 0 }

// guarded reports whether the kernel itself enforces an Access on the target: a
// file's mode does, an abstract name has no permissions.
func guarded(target string) bool { return !isAbstract(target) }

// squattable reports whether any user may have taken the address. That cannot be where
// the permissions of a folder forbid it, and the folder of a path was chosen by this
// user.
func squattable(a Addr) bool { return a.kind == nameAddr }

// sockAddr returns the socket address of a target that fits into one. Package syscall
// takes an '@' at the start for the NUL byte of an abstract name. So an abstract name may
// be as long as the kernel allows.
func sockAddr(target string) *syscall.SockaddrUnix {
	if isAbstract(target) {
		target = "@" + target[1:]
	}
	return &syscall.SockaddrUnix{Name: target}
}

// sunPathMax is the longest path, or name, that a sockaddr_un of package syscall
// takes.
const sunPathMax = len(syscall.RawSockaddrUnix{}.Path) - 1

// addrOf returns the Addr of a socket address, on systems where every address is a path.
// There package syscall does not take a path that begins with '@' for an abstract name.
func addrOf(sa syscall.Sockaddr) Addr {
	un, ok := sa.(*syscall.SockaddrUnix)
	if !ok || un.Name == "" {
		return unnamed
	}
	return Path(un.Name)
}

// sockName returns the bound address of the socket, peerName that of the peer.
func (baseKernel) sockName(sys int) (Addr, error) {
	sa, err := syscall.Getsockname(sys)
	return addrOf(sa), err
}

func (baseKernel) peerName(sys int) (Addr, error) {
	sa, err := syscall.Getpeername(sys)
	return addrOf(sa), err
}

// userAddr returns the path in the first of the folders that is this user's own.
func userAddr(name string) (Addr, error) {
	uid := os.Geteuid()
	if kern.hidesUser(uid) {
		return Addr{}, &ruleError{"the user of this process has no mapping in its user namespace", errors.ErrUnsupported}
	}
	fits := func(dir string) bool { return len(joinPath(dir, name)) <= sunPathMax }
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), kern.runtimeDir(uid)} {
		if strings.HasPrefix(dir, "/") && fits(dir) && isPrivate(dir, uid) == nil {
			return Path(joinPath(dir, name)), nil
		}
	}
	dir := privateDir(uid)
	if !fits(dir) {
		return Addr{}, tooLong("the path", len(joinPath(dir, name)), sunPathMax)
	}
	if err := makePrivate(dir, uid); err != nil {
		return Addr{}, err
	}
	return Path(joinPath(dir, name)), nil
}

// runtimeDir returns where the service manager keeps the runtime folder of a user, or "".
func (baseKernel) runtimeDir(uid int) string { return "" }

// privateDir is a folder that every process of the user finds, whatever its environment.
// $TMPDIR differs between processes on macOS. It is used where there is no /tmp, as on
// Android.
func privateDir(uid int) string {
	tmp := "/tmp"
	if _, err := os.Stat(tmp); err != nil {
		tmp = os.TempDir()
	}
	return joinPath(tmp, "ipc-"+strconv.FormatUint(uint64(uint32(uid)), 10))
}

// makePrivate makes the folder, unless it is there, and checks that it is this user's
// own. If others can write to the parent folder, they could replace the folder unless the
// sticky bit of the parent forbids it.
func makePrivate(dir string, uid int) error {
	var parent syscall.Stat_t
	above, _ := splitPath(dir)
	if err := ignoringEINTR(func() error { return syscall.Stat(above, &parent) }); err != nil {
		return os.NewSyscallError("stat", err)
	}
	if parent.Mode&0o022 != 0 && parent.Mode&syscall.S_ISVTX == 0 {
		return &ruleError{"others can replace what is in " + above + ", which is not sticky", os.ErrPermission}
	}
	switch err := ignoringEINTR(func() error { return syscall.Mkdir(dir, 0o700) }); err {
	case nil: // the umask may have taken bits away
		if err := ignoringEINTR(func() error { return syscall.Chmod(dir, 0o700) }); err != nil {
			return os.NewSyscallError("chmod", err)
		}
	case syscall.EEXIST:
	default:
		return os.NewSyscallError("mkdir", err)
	}
	return isPrivate(dir, uid)
}

// isPrivate refuses everything but a folder of the user that nobody else may enter.
func isPrivate(dir string, uid int) error {
	var st syscall.Stat_t
	named := strings.TrimRight(dir, "/") // lstat(2) follows a link with a slash behind it
	if err := ignoringEINTR(func() error { return syscall.Lstat(named, &st) }); err != nil {
		return os.NewSyscallError("lstat", err)
	}
	switch {
	case st.Mode&syscall.S_IFMT != syscall.S_IFDIR:
		return &ruleError{dir + " is not a folder", os.ErrPermission}
	case st.Uid != uint32(uid):
		return &ruleError{dir + " belongs to another user", os.ErrPermission}
	case st.Mode&0o077 != 0:
		return &ruleError{dir + " is open to other users", os.ErrPermission}
	}
	return nil
}

// splitPath cuts a path before its last element. The folder of a path without
// one is ".".
func splitPath(path string) (dir, base string) {
	i := strings.LastIndexByte(path, '/')
	switch {
	case i < 0:
		return ".", path
	case i == 0:
		return "/", path[1:]
	}
	return path[:i], path[i+1:]
}

// joinPath is not copied to its callers: see ignoringEINTR.
//
//go:noinline
func joinPath(dir, base string) string {
	if dir == "/" {
		return dir + base
	}
	return dir + "/" + base
}

// ---------------------------------------------------------------------------
// Listeners

// A listener is a listening socket, and the file that leads to it.
type listener struct {
	*fd
	file    *socketFile // nil for an abstract name, or if the file is not this listener's
	givenUp atomic.Bool // set by the one Close that gives the file up
	fdName  string      // the name that the service manager gave it
	serves  connKind    // what its connections carry
}

func newListener(f *fd, serves connKind) *listener {
	f.listen, f.anyUnserved = true, new(atomic.Bool)
	return &listener{fd: f, serves: serves}
}

func listen(target string, kind connKind, lc *ListenConfig) (*listener, error) {
	if err := lc.Sys.check(isAbstract(target)); err != nil {
		return nil, err
	}
	if lc.Group != "" && lc.Sys != nil && lc.Sys.GID != 0 {
		return nil, configError("Sys.GID", strconv.Itoa(lc.Sys.GID), "0 where Group is set")
	}
	sys, err := newSocket(socketType(kind))
	if err != nil {
		return nil, err
	}
	l := newListener(newSocketFD(sys), kind)
	l.setSpin(lc.Spin)
	if isAbstract(target) {
		if err = bind(sys, target); err == nil {
			err = startListening(sys, lc.Backlog)
		}
	} else {
		l.file, err = claim(sys, target, lc)
	}
	if err != nil {
		l.fd.close()
		return nil, err
	}
	return l, nil
}

func startListening(sys, backlog int) error {
	// The kernel lowers it to its own limit. It takes no more than 32 bits, and some
	// kernels add a half first.
	if backlog = min(backlog, 1<<30); backlog == 0 {
		backlog = 1<<16 - 1
	}
	return os.NewSyscallError("listen", ignoringEINTR(func() error { return syscall.Listen(sys, backlog) }))
}

// accept waits for a client. A client that gave up meanwhile (ECONNABORTED) does not
// count.
func (l *listener) accept(bool) (*fd, error) {
	h := &l.r
	if err := l.acquire(h); err != nil {
		return nil, err
	}
	defer l.release(h)
	if err := l.awaitEnds(h); err != nil {
		return nil, err
	}
	var mode opMode
	if l.anyUnserved.Load() {
		mode |= acceptServing
	}
	for {
		switch done, err := l.run(h, &op{call: opAccept, mode: mode}); err {
		case nil:
			f := newConnFD(done.n, l.serves)
			f.anyUnserved = l.anyUnserved
			f.anyUnserved.Store(true)
			if l.files.Load() != filesCome {
				f.refuseFiles() // again, since it may have connected before
			}
			return f, nil
		case syscall.ECONNABORTED:
		default:
			return nil, callError("accept", err)
		}
	}
}

// awaitEnds waits while sockets that were closed, or files that peers sent, hold too many descriptors
// behind closes that sleep: clients that come again and again would take all that are left.
func (l *listener) awaitEnds(h *ioState) error {
	for socketEnds.holdTooMany() || disposal.holdTooMany() {
		switch {
		case l.closing():
			return net.ErrClosed
		case h.expired():
			return os.ErrDeadlineExceeded
		}
		time.Sleep(closeGrace / 10)
	}
	return nil
}

// descriptorLimit returns how many descriptors this process may have.
func descriptorLimit() int64 {
	const none = 1<<63 - 1
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || int64(limit.Cur) < 0 { // RLIM_INFINITY
		return none
	}
	return int64(limit.Cur)
}

func (l *listener) setDeadline(t time.Time) error { return l.fd.setDeadline(t, reading) }

func (l *listener) close() error { return l.giveUp(false) }

// giveUp ends Accept, and removes the file before it closes the socket, unless the file is to be left
// behind. So the path does not lead to a socket that refuses clients, which another process would take
// for stale. Whoever may read the folder can keep the lock that its changes need (iterate_dir of
// fs/readdir.c, in a page fault), so that does not take longer than the patience.
func (l *listener) giveUp(leaveFile bool) error {
	if !l.givenUp.CompareAndSwap(false, true) {
		return net.ErrClosed
	}
	if l.file == nil {
		return l.fd.close()
	}
	for range 2 { // for this call, and for the removal, which may outlast it; only giveUp closes the fd
		if err := l.fd.incref(); err != nil {
			return err
		}
	}
	l.fd.closeLater()
	err := patiently(2*guardPatience, errFolderHeld, func() error {
		defer l.fd.decref() // the file keeps its identity until then: see fileID
		return l.file.release(leaveFile)
	})
	if err == errFolderHeld {
		l.fd.endNow()
		l.fd.decref()
		return err
	}
	l.fd.decref()
	if e := l.fd.awaitGone(closeGrace); err == nil {
		err = e
	}
	return err
}

// errFolderHeld is the error of a Close that does not wait until the file is removed.
var errFolderHeld = &ruleError{"the socket file is removed later: another process keeps the folder busy", os.ErrDeadlineExceeded}

// ---------------------------------------------------------------------------
// Socket files
//
// A socket file outlives its server, and the names in a folder can be changed by anyone
// who may write to it. Listen opens the folder once, and works in the opened folder until
// Close: its path may lead to another one later (see folder). Three things keep listeners
// from removing each other's sockets:
//
// The lock is an flock(2) on path.lock for the life of the listener. Its holder decides
// about the path. Only the file that has that name now counts. A lock file that was
// removed or replaced after it was opened means nothing.
//
// The guard is an flock on the folder for the moment of a change. "Is it still mine? Then
// remove it" takes two system calls. TakeoverAlways cannot wait for the lock of the live
// listener that it displaces. Every listener changes lock and socket under the guard, so
// no other comes between those two calls.
//
// The identity is device and inode of the socket file as recorded after bind. It protects
// the sockets of programs that do not know lock and guard. Where there is no flock, it is
// the only protection.

// A socketFile is the claim of a listener on a path.
type socketFile struct {
	folder  *folder
	base    string // the name of the socket in the folder
	rights  lockRights
	lock    lockFile
	id      fileID          // of the socket; zero until it is bound
	keep    bool            // ListenConfig.KeepName, or see bequeath; guarded by sharing until given is set
	dropped runtime.Cleanup // closes the descriptors if nobody closes the listener

	sharing sync.Mutex // guards what follows, and keep; bequeath and release exclude each other
	owners  *owners    // set once the listener was handed on, or came from another process
	given   bool       // released: it cannot be handed on any more
}

// A fileID tells whether two names, or a name and a descriptor, are one file.
type fileID struct {
	dev, ino uint64
}

// lockSuffix makes the name of the lock of a socket file.
const lockSuffix = ".lock"

// claim binds the socket to the path and makes it listen, as lc says.
func claim(sys int, path string, lc *ListenConfig) (_ *socketFile, err error) {
	f, err := openSocketFile(path, lc)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.release(false) // an error of release would hide the first one
		}
	}()

	policy := policyOf(lc.Takeover)
	if f.lock, err = f.folder.takeLock(f.lockName(), f.rights); err != nil {
		return nil, err
	}
	found, unpin, err := policy.judge(f)
	if err != nil {
		return nil, err
	}
	defer unpin()

	unguard := takeGuard(f.folder)
	defer unguard()
	if err := policy.confirm(f, found); err != nil {
		return nil, err
	}
	if err := f.bindAndListen(sys, lc, policy); err != nil {
		return nil, err
	}
	f.closeWhenDropped()
	return f, nil
}

// openSocketFile opens the folder of the path.
func openSocketFile(path string, lc *ListenConfig) (*socketFile, error) {
	dir, base := splitPath(path)
	if limit := nameMax - len(lockSuffix); len(base) > limit {
		return nil, tooLong("the last element of the path of a listener", len(base), limit)
	}
	folder, err := openFolder(dir)
	if err != nil {
		return nil, err
	}
	return &socketFile{folder: folder, base: base, rights: lc.lockRights(), lock: lockFile{sys: -1}, keep: lc.KeepName}, nil
}

func (f *socketFile) lockName() string { return f.base + lockSuffix }

// A takeover is a policy for what is at the path.
type takeover struct {
	// judge decides, before the guard is taken, whether a socket may be put at the path.
	// It returns the identity of the socket that is in the way, if there is one. No other
	// file gets that identity until unpin is called.
	judge func(f *socketFile) (found fileID, unpin func(), err error)

	// confirm checks under the guard that what judge found still holds, and makes
	// lock and path ready for bind.
	confirm func(f *socketFile, found fileID) error

	replace bool // a socket that is at the path after confirm is renamed over
}

func policyOf(t Takeover) takeover {
	switch t {
	case TakeoverAlways:
		return takeover{judgeAlways, confirmAlways, true}
	case TakeoverNever:
		return takeover{judgeNever, confirmVacant, false}
	}
	return takeover{judgeStale, confirmVacant, false}
}

// judgeStale lets Listen replace a socket that no process serves.
func judgeStale(f *socketFile) (found fileID, unpin func(), err error) {
	at, err := f.occupant()
	if err != nil || at.id == (fileID{}) {
		return fileID{}, noUnpin, err
	}
	if f.lock.state == lockTaken {
		return fileID{}, nil, inUse()
	}
	at, unpin, err = kern.probeAt(f.folder, f.base)
	if e := errnoOf(err); (e == syscall.EACCES || e == syscall.EPERM) && at.socket && f.folder.isOwn() {
		// Another user's socket in this user's folder, as a server of root leaves it.
		if bound, e := kern.isBound(at.id); e == nil {
			err = syscall.ECONNREFUSED
			if bound {
				err = nil
			}
		}
	}
	switch errnoOf(err) {
	case syscall.ECONNREFUSED:
		return at.id, unpin, nil
	case syscall.ENOENT: // its owner has just removed it
		return fileID{}, unpin, nil
	case nil, syscall.EPROTOTYPE:
		err = inUse()
	}
	unpin() // any other error: whether it is live is not known
	return fileID{}, nil, err
}

// judgeNever lets Listen replace nothing.
func judgeNever(f *socketFile) (found fileID, unpin func(), err error) {
	at, err := f.occupant()
	if err == nil && at.id != (fileID{}) {
		err = inUse()
	}
	return fileID{}, noUnpin, err
}

// judgeAlways lets Listen replace every socket.
func judgeAlways(f *socketFile) (found fileID, unpin func(), err error) {
	at, err := f.occupant()
	return at.id, noUnpin, err
}

func noUnpin() {}

// occupant returns what is at the path: a socket, or nothing, which has the zero
// identity. Any other file is an error.
func (f *socketFile) occupant() (dirEntry, error) {
	at, err := f.folder.lstat(f.base)
	switch {
	case err == syscall.ENOENT:
		return dirEntry{}, nil
	case err != nil:
		return dirEntry{}, os.NewSyscallError("lstat", err)
	case !at.socket:
		return dirEntry{}, errNoSocket
	}
	return at, nil
}

// errNoSocket is the error for a file that is not a socket, and is not to be replaced.
var errNoSocket = &ruleError{"a file that is not a socket is there", ErrAddrInUse}

// confirmVacant makes sure of the lock and removes the stale socket.
func confirmVacant(f *socketFile, found fileID) error {
	if f.lock.state == lockTaken || f.lock.state == lockOurs && !f.holdsLock() {
		return inUse()
	}
	at, err := f.occupant()
	if err != nil {
		return err
	}
	if at.id != found {
		return inUse()
	}
	if f.lock.state == lockBarred {
		if err := f.replaceLock(); err != nil {
			return err
		}
	}
	if found != (fileID{}) {
		return f.folder.remove(f.base, found)
	}
	return nil
}

// confirmAlways finds out whether another TakeoverAlways was faster, whose listener is
// then displaced in turn. The lock of a displaced listener is replaced together with its
// socket, later: see bindAndListen.
func confirmAlways(f *socketFile, _ fileID) error {
	if f.lock.state == lockOurs && !f.holdsLock() {
		f.lock.drop()
		f.lock.state = lockTaken
	}
	_, err := f.occupant()
	return err
}

// probe asks whether a socket of any process is bound to the path, by connecting a
// datagram socket to it. If a stream server is there, that fails with EPROTOTYPE, also if
// its backlog is full or it does not listen yet, and the server does not notice. If no
// process has the socket any more, it fails with ECONNREFUSED.
func probe(path string) error {
	f, err := connectSocket(path, syscall.SOCK_DGRAM)
	if err != nil {
		return err
	}
	return f.close()
}

// bindAndListen binds the socket in the folder, gives the file its exact mode and owner, and
// listens. If the socket was bound to another name, place then puts it at the path.
// Until then clients can be refused by the mode that it is made with: see judge.
func (f *socketFile) bindAndListen(sys int, lc *ListenConfig, policy takeover) (err error) {
	kern.beginClosed(sys)
	name, exempt, err := f.bind(sys, policy.replace)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && err != errReplaced {
			f.folder.undo(name, syscall.S_IFSOCK, f.id)
		}
	}()
	mode, uid, gid := lc.fileMode()
	f.id, err = kern.setMode(f.folder, name, syscall.S_IFSOCK, mode|exempt, uid, gid)
	if err != nil {
		return err
	}
	if err := startListening(sys, lc.Backlog); err != nil {
		return err
	}
	if policy.replace && (f.lock.state == lockTaken || f.lock.state == lockBarred) {
		if err := f.replaceLock(); err != nil {
			return err
		}
	}
	if name == f.base {
		return nil
	}
	return f.publish(name, policy.replace)
}

// bind binds the socket to the path, if that is free and fits into a sockaddr_un.
// Otherwise it binds the socket to a temporary name in the same folder. It returns the
// name. If that is not the path, the kernel keeps another name than the path for the
// socket, and bind also returns the mode bit that then protects the file from cleaners of
// temporary folders.
func (f *socketFile) bind(sys int, replace bool) (name string, exempt uint32, err error) {
	at, err := f.occupant()
	if err != nil {
		return "", 0, err
	}
	if !replace || at.id == (fileID{}) {
		byPath, err := f.folder.bind(sys, f.base)
		overtaken := replace && errnoOf(err) == syscall.EADDRINUSE
		if byPath && !overtaken {
			return f.base, 0, err
		}
		if err != errNoRoom && !overtaken {
			return f.base, cleanerBit, err
		}
	}
	name = "." + freshName()
	if _, err := f.folder.bind(sys, name); err == errNoRoom {
		limit := sunPathMax - len(name) - 1
		return "", 0, tooLong("the path of the folder, as bind(2) takes it,", len(f.folder.path), limit)
	} else if err != nil {
		return "", 0, err
	}
	return name, cleanerBit, nil
}

// errNoRoom is for a name that does not fit into a sockaddr_un.
var errNoRoom = &ruleError{"the name does not fit into a socket address", ErrNameTooLong}

// publish moves the socket from its temporary name to the path.
func (f *socketFile) publish(name string, replace bool) error {
	if !replace {
		// Unlike rename, link does not replace what came meanwhile.
		err := f.folder.link(name, f.base)
		if err == nil {
			return f.folder.remove(name, f.id)
		}
		if !forbidden(err) {
			return classify("link", err)
		}
		// Hard links are forbidden here (Android, some file systems).
		if at, err := f.occupant(); err != nil {
			return err
		} else if at.id != (fileID{}) {
			return inUse()
		}
	} else if _, err := f.occupant(); err != nil {
		return err
	}
	return os.NewSyscallError("rename", f.folder.rename(name, f.base))
}

// forbidden reports whether the error means that a call does not exist in this
// process or on this file system: the kernel, the file system or a sandbox says so.
func forbidden(err error) bool {
	return err == syscall.EPERM || err == syscall.EACCES || err == syscall.ENOSYS ||
		err == syscall.EINVAL || err == syscall.ENOTSUP || err == syscall.EOPNOTSUPP
}

// fileMode returns the permissions and the owner of the socket file; an owner
// of -1 is left as it is.
func (lc *ListenConfig) fileMode() (mode uint32, uid, gid int) {
	mode, uid, gid = 0o600, -1, -1
	if lc.Access == Everyone {
		mode = 0o666
	}
	if lc.Group != "" {
		mode = 0o660
		gid, _ = strconv.Atoi(lc.Group) // it is a number since resolveGroup
	}
	if s := lc.Sys; s != nil {
		if s.Mode != 0 {
			mode = uint32(s.Mode)
		}
		if s.UID != 0 {
			uid = s.UID
		}
		if s.GID != 0 {
			gid = s.GID
		}
	}
	return mode, uid, gid
}

// release gives the path up. First it removes the socket file, unless that is to be left
// behind or is not this listener's any more, and then the lock. The identity tells whose
// the socket file is, even where the lock file is gone: no other file can have it
// meanwhile, as the socket that is still open keeps its inode in use.
func (f *socketFile) release(leaveFile bool) error {
	if last, err := f.isLastOwner(); !last {
		f.leave()
		return err
	}
	f.dropped.Stop()
	defer f.folder.close()
	defer f.lock.drop()
	unguard := takeGuard(f.folder)
	defer unguard()
	var err error
	if !f.keep && !leaveFile && f.id != (fileID{}) {
		err = f.folder.remove(f.base, f.id)
	}
	if f.holdsLock() {
		e := f.folder.removeLock(f.lockName(), f.lock.id)
		if err == nil && !forbidden(errnoOf(e)) { // in a sticky folder the file may be another user's, and is of no harm
			err = e
		}
	}
	return err
}

// closeWhenDropped gives up lock and folder if the listener is dropped without Close. The
// garbage collector closes the socket then. With the lock still held, the path would be
// in use until the process ends, although nobody listens there.
func (f *socketFile) closeWhenDropped() {
	type descriptors struct {
		lock   lockFile
		folder folder
	}
	f.dropped = runtime.AddCleanup(f, func(d descriptors) {
		d.lock.drop()
		d.folder.close()
	}, descriptors{f.lock, *f.folder})
}

// ---------------------------------------------------------------------------
// Locks of socket files

// A lockFile is the lock of a socket file, or why there is none.
type lockFile struct {
	sys    int // the descriptor that has the flock; -1 for none
	id     fileID
	state  lockState
	reason error // of lockBarred
}

type lockState uint8

const (
	lockNone   lockState = iota // this file system or sandbox has no flock(2)
	lockOurs                    // this listener has it
	lockTaken                   // another listener has it
	lockBarred                  // the file is another user's, and cannot be opened
)

// lockRights says who may open a new lock file: those who may connect and may also write
// to the folder. Any of them can replace the socket, so a lock that a crash left behind
// must not keep them out. Nobody else may open the lock, since whoever can open it can
// keep a server from starting.
type lockRights struct {
	mode uint32 // of the socket file
	gid  int    // -1: as the system chooses
}

func (lc *ListenConfig) lockRights() lockRights {
	mode, _, gid := lc.fileMode()
	return lockRights{mode, gid}
}

// modeIn returns the mode of a lock file of that group in the folder. Where the sticky
// bit of the folder keeps others from removing the socket, its lock is of no use to them.
func (r lockRights) modeIn(folder *syscall.Stat_t, gid uint32) uint32 {
	mode, dir := uint32(0o600), uint32(folder.Mode)
	if dir&syscall.S_ISVTX != 0 {
		return mode
	}
	if r.mode&0o020 != 0 && (dir&0o002 != 0 || dir&0o020 != 0 && gid == uint32(folder.Gid)) {
		mode |= 0o060
	}
	if r.mode&dir&0o002 != 0 {
		mode |= 0o006
	}
	return mode
}

// takeLock creates or opens the lock file and takes the flock on it. An error means
// that nobody can listen here.
func (d *folder) takeLock(name string, rights lockRights) (lockFile, error) {
	held, unlock := kern.holdsLock(joinPath(d.path, name))
	defer unlock()
	if held {
		return lockFile{sys: -1, state: lockTaken}, nil
	}
	for range lockTries {
		lock, made, err := d.openLock(name, rights)
		if err != nil || lock.state == lockBarred {
			return lock, err
		}
		if err := flock(lock.sys, true); err != nil {
			return d.withoutFlock(name, lock, made, err)
		}
		if at, err := d.lstat(name); err == nil && at.id == lock.id {
			return lock, nil
		}
		lock.drop() // the last holder removed it while it was opened here
	}
	return lockFile{sys: -1, state: lockTaken}, nil // somebody replaces it all the time
}

// lockTries is how often an attempt to open or take a lock is repeated because the name
// leads to another file by now.
const lockTries = 100

// withoutFlock returns what takes the place of a lock whose flock failed with that error.
// A file that was made for the lock is removed, unless another listener has locked it.
func (d *folder) withoutFlock(name string, lock lockFile, made bool, err error) (lockFile, error) {
	defer syscall.Close(lock.sys)
	if err == syscall.EWOULDBLOCK {
		return lockFile{sys: -1, state: lockTaken}, nil
	}
	if made {
		d.removeLock(name, lock.id)
	}
	none := lockFile{sys: -1, state: lockNone}
	// ENOLCK: a network file system without locks. EBADF: see flock(2) about NFS.
	if forbidden(err) || err == syscall.ENOLCK || err == syscall.EBADF {
		return none, nil
	}
	return none, os.NewSyscallError("flock "+joinPath(d.path, name), err)
}

// openLock opens the lock file, or creates it. It never does both in one call: Linux
// refuses O_CREAT on another user's file in a sticky folder (fs.protected_regular), even
// to root. It opens nothing but a regular file: to open a FIFO may wait, and to open a
// device may have effects.
func (d *folder) openLock(name string, rights lockRights) (lock lockFile, made bool, err error) {
	const flags = syscall.O_RDWR | syscall.O_CLOEXEC | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	none, path := lockFile{sys: -1}, joinPath(d.path, name)
	for range lockTries {
		at, err := d.lstat(name)
		if err == nil && !at.regular {
			return none, false, &ruleError{"a file that is not a lock is at " + strconv.Quote(path), ErrAddrInUse}
		}
		var sys int
		if err == nil {
			sys, err = d.open(name, flags, 0)
		}
		if err == nil {
			return lockFile{sys: sys, id: fstatID(sys), state: lockOurs}, false, nil
		}
		if err == syscall.EACCES || err == syscall.EPERM {
			return lockFile{sys: -1, state: lockBarred, reason: classify("open "+path, err)}, false, nil
		}
		if err != syscall.ENOENT {
			return none, false, classify("open "+path, err)
		}
		sys, err = d.open(name, flags|syscall.O_CREAT|syscall.O_EXCL, 0o600)
		if err == nil {
			lock := lockFile{sys: sys, id: fstatID(sys), state: lockOurs}
			if err := d.setLockMode(lock, rights); err != nil {
				d.removeLock(name, lock.id)
				syscall.Close(sys)
				return none, false, err
			}
			return lock, true, nil
		}
		if err != syscall.EEXIST {
			return none, false, classify("create a file in "+d.path, err)
		}
	}
	return none, false, inUse() // somebody creates and removes it all the time
}

// setLockMode gives a new lock file the group and the mode that the rights ask for, whatever
// the umask.
func (d *folder) setLockMode(lock lockFile, rights lockRights) error {
	var dir syscall.Stat_t
	if err := d.stat(&dir); err != nil {
		return err
	}
	st, err := fstat(lock.sys)
	if err != nil {
		return err
	}
	gid := uint32(st.Gid)
	if rights.gid >= 0 {
		gid = uint32(rights.gid)
	}
	mode := rights.modeIn(&dir, gid)
	if mode&0o060 != 0 && gid != uint32(st.Gid) {
		if err := ignoringEINTR(func() error { return syscall.Fchown(lock.sys, -1, int(gid)) }); err != nil {
			return os.NewSyscallError("fchown", err)
		}
	}
	if mode&0o070 != 0 {
		if err := kern.dropList(lock.sys); err != nil {
			return err
		}
	}
	return exactMode(mode|cleanerBit, func(mode uint32) error { return syscall.Fchmod(lock.sys, mode) })
}

// exactMode sets the mode of a file by chmod. If the file system refuses the bit against
// cleaners, exactMode does without that bit.
func exactMode(mode uint32, chmod func(mode uint32) error) error {
	err := ignoringEINTR(func() error { return chmod(mode) })
	if err != nil && mode&cleanerBit != 0 {
		err = ignoringEINTR(func() error { return chmod(mode &^ cleanerBit) })
	}
	return os.NewSyscallError("chmod", err)
}

// replaceLock puts a lock of this listener in the place of one that another holds or that
// cannot be opened. It leaves a lock file of another program, which is not empty, where
// it is.
func (f *socketFile) replaceLock() error {
	if at, err := f.folder.lstat(f.lockName()); err == nil && !at.isLock() {
		return f.lock.failure()
	}
	temporary := "." + freshName() + lockSuffix
	lock, err := f.folder.takeLock(temporary, f.rights)
	if err != nil || lock.state != lockOurs {
		if err == nil && lock.state == lockNone {
			f.lock = lock // the lock that is there cannot be held either
		}
		return err
	}
	if err := f.folder.rename(temporary, f.lockName()); err != nil {
		f.folder.removeLock(temporary, lock.id)
		lock.drop()
		if f.lock.state == lockBarred {
			return f.lock.reason
		}
		return os.NewSyscallError("rename", err)
	}
	f.lock = lock
	return nil
}

// failure returns the reason why the lock cannot be had.
func (l *lockFile) failure() error {
	if l.state == lockBarred {
		return l.reason
	}
	return inUse()
}

// holdsLock reports whether the file at path.lock is the one that f locked.
func (f *socketFile) holdsLock() bool {
	if f.lock.state != lockOurs {
		return false
	}
	at, err := f.folder.lstat(f.lockName())
	return err == nil && at.id == f.lock.id
}

// drop gives up the flock and closes the descriptor. The flock is given up also if a
// child has a copy of the descriptor between fork and exec.
func (l *lockFile) drop() {
	if l.sys >= 0 {
		flock(l.sys, false)
		syscall.Close(l.sys)
		l.sys = -1
	}
}

// inUse is EADDRINUSE, as bind(2) says it.
func inUse() error { return classify("bind", syscall.EADDRINUSE) }

// lockHeld reports whether a listener of this package lives at the path. It asks for the
// lock without taking it: F_GETLK of fcntl(2) also reports an flock(2) where the two are
// one thing (BSD, macOS).
func lockHeld(path string) bool {
	held, unlock := kern.holdsLock(path + lockSuffix)
	defer unlock()
	if held {
		return true
	}
	fd, err := open(path+lockSuffix, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NOFOLLOW|syscall.O_NONBLOCK)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	lock := syscall.Flock_t{Type: syscall.F_RDLCK}
	err = ignoringEINTR(func() error { return syscall.FcntlFlock(uintptr(fd), syscall.F_GETLK, &lock) })
	return err == nil && lock.Type != syscall.F_UNLCK
}

// ---------------------------------------------------------------------------
// Folders
//
// The path of a folder may lead to another one at any time, if anybody else owns a part
// of it. So the folder is opened once. All that follows is done in the opened folder, by
// the calls that take its descriptor (openat(2) and the like). Package syscall does not
// reach these calls on OpenBSD, AIX, illumos and Solaris. There the path is compared with
// the opened folder before each step; a change between the two is not noticed.

// folderNumbers are the numbers of these calls; 0 for a call that is not reached.
type folderNumbers struct {
	openat, fstatat, unlinkat, renameat, linkat, fchmodat, fchownat uintptr
}

// A folder is an opened directory.
type folder struct {
	sys  int    // -1 if the system does not let this user open the directory
	path string // absolute, if an absolute path leads to the folder
	id   fileID
}

// openFolder opens the directory at the path. It never waits: a file of another kind is
// refused.
func openFolder(path string) (*folder, error) {
	d := &folder{sys: -1, path: path}
	sys, err := open(path, folderFlags|syscall.O_DIRECTORY|syscall.O_CLOEXEC)
	if err == nil {
		d.sys = sys
	} else if err != syscall.EACCES {
		return nil, classify("open "+path, err)
	}
	var st syscall.Stat_t
	if err := d.stat(&st); err != nil {
		d.close()
		return nil, err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		d.close()
		return nil, classify("open "+path, syscall.ENOTDIR)
	}
	d.id = idOf(&st)
	if path[0] != '/' {
		// The path means the same at Close then. A working directory that has no name
		// (outside the root directory, deeper than PATH_MAX) needs none.
		if wd, err := syscall.Getwd(); err == nil {
			d.path = joinPath(wd, path)
			if _, err := d.named(""); err != nil {
				d.path = path
			}
		}
	}
	return d, nil
}

func (d *folder) close() {
	if d.sys >= 0 {
		syscall.Close(d.sys)
	}
}

// stat asks for the folder itself.
func (d *folder) stat(st *syscall.Stat_t) error {
	if d.sys >= 0 {
		return os.NewSyscallError("fstat", ignoringEINTR(func() error { return syscall.Fstat(d.sys, st) }))
	}
	return classify("stat "+d.path, ignoringEINTR(func() error { return syscall.Stat(d.path, st) }))
}

// isOwn reports whether the folder is this user's.
func (d *folder) isOwn() bool {
	var st syscall.Stat_t
	return d.stat(&st) == nil && int(st.Uid) == os.Geteuid()
}

// named returns the path of a file in the folder, if the path of the folder leads
// there now.
func (d *folder) named(name string) (string, error) {
	var st syscall.Stat_t
	if err := ignoringEINTR(func() error { return syscall.Stat(d.path, &st) }); err != nil {
		return "", err
	}
	if idOf(&st) != d.id {
		return "", errFolderReplaced
	}
	return joinPath(d.path, name), nil
}

// nameIn returns a name for the file in the folder, if the path leads there now.
func (baseKernel) nameIn(d *folder, name string) (string, error) { return d.named(name) }

var errFolderReplaced = &ruleError{"the folder was replaced by another", ErrAddrInUse}

// reachesCalls reports whether the calls that take the descriptor of a folder can be
// made.
func (d *folder) reachesCalls() bool { return d.sys >= 0 && folderCalls.openat != 0 }

// call makes the call of that number, with these arguments behind the descriptor and the
// name. Where package syscall cannot make it (reachesCalls), byPath is called with the path.
// Pointers that are converted in the arguments stay valid: go:uintptrescapes.
//
//go:uintptrescapes
func (d *folder) call(trap uintptr, byPath func(path string) (int, error), name string, a1, a2, a3 uintptr) (int, error) {
	if !d.reachesCalls() {
		path, err := d.named(name)
		if err != nil {
			return -1, err
		}
		return byPath(path)
	}
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	n, _, errno := syscall6(trap, uintptr(d.sys), uintptr(unsafe.Pointer(p)), a1, a2, a3, 0)
	return int(n), errnoOrNil(errno)
}

// open is not copied to its callers: see ignoringEINTR.
//
//go:noinline
func (d *folder) open(name string, flags int, mode uint32) (sys int, err error) {
	byPath := func(path string) (int, error) { return syscall.Open(path, flags, mode) }
	err = ignoringEINTR(func() (err error) {
		sys, err = d.call(folderCalls.openat, byPath, name, uintptr(flags), uintptr(mode), 0)
		return err
	})
	return sys, err
}

// lstat returns what the name of a file in the folder leads to.
func (d *folder) lstat(name string) (at dirEntry, err error) {
	var st syscall.Stat_t
	err = ignoringEINTR(func() error { return kern.lstatAt(d, name, &st) })
	if err != nil {
		return dirEntry{}, err
	}
	return entryOf(&st), nil
}

func (baseKernel) lstatAt(d *folder, name string, st *syscall.Stat_t) error {
	byPath := func(path string) (int, error) { return 0, syscall.Lstat(path, st) }
	_, err := d.call(folderCalls.fstatat, byPath, name, uintptr(unsafe.Pointer(st)), atSymlinkNoFollow, 0)
	return err
}

func errnoOrNil(errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

// remove removes the socket of that name and identity. It does nothing if there is no
// file of that name, or another one.
func (d *folder) remove(name string, id fileID) error {
	at, err := d.lstat(name)
	if err == syscall.ENOENT || err == nil && (!at.socket || at.id != id) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("lstat", err)
	}
	return d.unlink(name)
}

// undo removes the file of that type that was just made, after the call that made it has
// failed. id is zero if the failure came before the identity was known.
func (d *folder) undo(name string, typ uint32, id fileID) {
	at, err := d.lstat(name)
	if err == nil && at.typ == typ && at.madeHere() && (id == fileID{} || at.id == id) {
		d.unlink(name)
	}
}

// removeLock removes the lock file of that name and identity, unless it is not empty:
// then it is another program's.
func (d *folder) removeLock(name string, id fileID) error {
	at, err := d.lstat(name)
	if err != nil || !at.isLock() || at.id != id {
		return nil
	}
	return d.unlink(name)
}

func (d *folder) unlink(name string) error {
	byPath := func(path string) (int, error) { return 0, syscall.Unlink(path) }
	err := ignoringEINTR(func() error {
		_, err := d.call(folderCalls.unlinkat, byPath, name, 0, 0, 0)
		return err
	})
	if err == syscall.ENOENT {
		return nil // somebody else was faster
	}
	return os.NewSyscallError("unlink", err)
}

func (d *folder) rename(from, to string) error {
	return ignoringEINTR(func() error { return kern.renameAt(d, from, to) })
}

func (baseKernel) renameAt(d *folder, from, to string) error {
	if !d.reachesCalls() {
		return d.byPaths(syscall.Rename, from, to)
	}
	return d.twoNames(folderCalls.renameat, from, to)
}

// link gives the file a second name.
func (d *folder) link(from, to string) error {
	return ignoringEINTR(func() error {
		if !d.reachesCalls() {
			return d.byPaths(syscall.Link, from, to)
		}
		return d.twoNames(folderCalls.linkat, from, to)
	})
}

func (d *folder) byPaths(call func(from, to string) error, from, to string) error {
	path, err := d.named(from)
	if err != nil {
		return err
	}
	return call(path, joinPath(d.path, to))
}

// twoNames makes the call renameat(2) or linkat(2), the latter without flags.
func (d *folder) twoNames(trap uintptr, from, to string) error {
	p, err := syscall.BytePtrFromString(from)
	if err != nil {
		return err
	}
	q, err := syscall.BytePtrFromString(to)
	if err != nil {
		return err
	}
	_, _, errno := syscall6(trap, uintptr(d.sys), uintptr(unsafe.Pointer(p)), uintptr(d.sys), uintptr(unsafe.Pointer(q)), 0, 0)
	return errnoOrNil(errno)
}

// setMode sets owner, group and permissions of the file of that type that was just made
// in the folder, and returns its identity. An owner or a group of -1 stays. A file that
// was put in its place since then is not changed, as far as type and owner show that.
func (baseKernel) setMode(d *folder, name string, typ, mode uint32, uid, gid int) (fileID, error) {
	made, err := d.lstat(name)
	if err != nil {
		return fileID{}, os.NewSyscallError("lstat", err)
	}
	if made.typ != typ || !made.madeHere() {
		return fileID{}, errReplaced
	}
	if uid >= 0 || gid >= 0 {
		if err := ignoringEINTR(func() error { return d.lchown(name, uid, gid) }); err != nil {
			return made.id, os.NewSyscallError("chown", err)
		}
	}
	if err := exactMode(mode, func(mode uint32) error { return d.chmod(name, mode) }); err != nil {
		return made.id, err
	}
	if at, err := d.lstat(name); err != nil || at.id != made.id {
		return fileID{}, errReplaced
	}
	return made.id, nil
}

func (d *folder) lchown(name string, uid, gid int) error {
	byPath := func(path string) (int, error) { return 0, syscall.Lchown(path, uid, gid) }
	_, err := d.call(folderCalls.fchownat, byPath, name, uintptr(uid), uintptr(gid), atSymlinkNoFollow)
	return err
}

// chmod follows a symbolic link on Linux, and wherever it goes by the path: there is no
// call that does not.
func (d *folder) chmod(name string, mode uint32) error {
	byPath := func(path string) (int, error) { return 0, syscall.Chmod(path, mode) }
	_, err := d.call(folderCalls.fchmodat, byPath, name, uintptr(mode), atSymlinkNoFollow, 0)
	return err
}

// errReplaced is the error for a file that was replaced while it was being made.
var errReplaced = &ruleError{"the file was replaced by another", ErrAddrInUse}

// bind binds the socket to a name in the folder and reports whether it did so by the path
// of the folder. The kernel keeps the name as it was given (/proc/net/unix,
// getsockname(2)). Cleaners of temporary folders remove sockets that they do not find
// under their path. So the path is used if nobody else can make it lead to another
// folder. The error is errNoRoom if the name does not fit into a sockaddr_un.
func (d *folder) bind(sys int, name string) (byPath bool, err error) {
	path := joinPath(d.path, name)
	if len(path) <= sunPathMax && path[0] == '/' && d.isSettled() {
		return true, bind(sys, path)
	}
	return false, kern.bindAt(sys, d, name)
}

// beginClosed has bind make a socket file that is open to this user alone, where the system can do that.
// Otherwise its first mode is what the umask leaves. A kernel looks at the mode before it looks whether
// the socket listens, so a client can pass the one under the first mode and the other after listen.
func (baseKernel) beginClosed(int) {}

// bindAt binds by the path, or by a private symbolic link to the folder: there is no
// other way.
func (baseKernel) bindAt(sys int, d *folder, name string) error {
	path, err := d.named(name)
	if err != nil {
		return os.NewSyscallError("bind", err)
	}
	if len(path) > sunPathMax {
		short, release, err := baseKernel{}.shorten(d.path)
		if err != nil {
			return err
		}
		defer release()
		path = joinPath(short, name)
	}
	if len(path) > sunPathMax {
		return errNoRoom
	}
	if err := bind(sys, path); err != nil {
		return err
	}
	_, err = d.named(name)
	return os.NewSyscallError("bind", err)
}

// probeAt does what probe does, for the socket of that name in the folder. It returns the
// identity of the socket that it asked. Until unpin is called no other file gets that
// identity, as far as the system can ensure it.
func (baseKernel) probeAt(d *folder, name string) (at dirEntry, unpin func(), err error) {
	if at, err = d.lstat(name); err != nil {
		return dirEntry{}, noUnpin, err
	}
	path, err := d.named(name)
	if err != nil {
		return at, noUnpin, err
	}
	err = probe(path)
	if _, e := d.named(name); e != nil {
		err = e
	} else if now, e := d.lstat(name); e != nil {
		err = e
	} else if now.id != at.id {
		err = errReplaced
	}
	return at, noUnpin, err
}

// isBound reports whether any process has a socket that is bound to the file, where the
// system can tell. It is called for sockets that this user may not connect to.
func (baseKernel) isBound(fileID) (bool, error) { return false, errors.ErrUnsupported }

// isSettled reports whether the path leads to the folder, and nobody but this user and
// root can make it lead to another one. That is so if each folder on the way is theirs,
// and others cannot write there, or the sticky bit keeps them from replacing files of
// other owners.
func (d *folder) isSettled() bool {
	links := 0
	at, rest := "/", d.path
	for rest != "" {
		var element string
		element, rest, _ = strings.Cut(rest, "/")
		if element == "" || element == "." {
			continue
		}
		if element == ".." {
			at, _ = splitPath(at)
			continue
		}
		var dir, st syscall.Stat_t
		if syscall.Lstat(at, &dir) != nil || syscall.Lstat(joinPath(at, element), &st) != nil || !protects(&dir, &st) {
			return false
		}
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFDIR:
			at = joinPath(at, element)
		case syscall.S_IFLNK:
			target, err := os.Readlink(joinPath(at, element))
			if links++; err != nil || links > linksMax {
				return false
			}
			if strings.HasPrefix(target, "/") {
				at = "/"
			}
			rest = target + "/" + rest
		default:
			return false
		}
	}
	var st syscall.Stat_t
	return syscall.Lstat(at, &st) == nil && idOf(&st) == d.id
}

// linksMax is how many symbolic links Linux follows in one path (MAXSYMLINKS of
// linux/namei.h); others follow fewer.
const linksMax = 40

// protects reports whether nobody but this user and root can put another file in the
// place of one in the folder.
func protects(dir, file *syscall.Stat_t) bool {
	if !isOurs(dir) {
		return false
	}
	return dir.Mode&0o022 == 0 || dir.Mode&syscall.S_ISVTX != 0 && isOurs(file)
}

// protectsFile reports what protects does of a file in the opened folder.
func (d *folder) protectsFile(file *syscall.Stat_t) bool {
	dir, err := fstat(d.sys)
	return err == nil && protects(&dir, file)
}

// isOurs reports whether the file is this user's or root's.
func isOurs(st *syscall.Stat_t) bool { return st.Uid == 0 || int(st.Uid) == os.Geteuid() }

// guardPatience is how long a change waits for the guard of its folder. Listeners hold it
// for no longer than a few system calls, but anybody who may read the folder can hold it
// longer.
const (
	guardPatience = 2 * time.Second
	guardPause    = time.Millisecond
)

// takeGuard takes the guard of the folder and returns how to give it back. A folder that
// may be searched but not read, or that lies on a file system without flock, has no
// guard. If somebody holds the guard for too long, the change goes on without it: no
// other user may decide whether a server can start. Then only the identity of the file
// protects it.
func takeGuard(d *folder) (release func()) {
	fd, err := d.open(".", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	for end := time.Now().Add(guardPatience); ; time.Sleep(guardPause) {
		err := flock(fd, true)
		if err == nil {
			return func() { flock(fd, false); syscall.Close(fd) }
		}
		if err != syscall.EWOULDBLOCK || time.Now().After(end) {
			syscall.Close(fd)
			return func() {}
		}
	}
}

// shorten makes a private symbolic link to a path that is too long for a
// sockaddr_un, and returns its short name and how to remove it.
func (baseKernel) shorten(path string) (short string, release func(), err error) {
	if path[0] != '/' {
		wd, err := syscall.Getwd()
		if err == syscall.ERANGE {
			err = syscall.ENAMETOOLONG // the name of the working directory
		}
		if err != nil {
			return "", nil, classify("getwd", err)
		}
		path = joinPath(wd, path)
	}
	// /tmp before $TMPDIR, which is long itself on macOS.
	dir, err := makeFolder("/tmp")
	if err != nil {
		if dir, err = makeFolder(os.TempDir()); err != nil {
			return "", nil, err
		}
	}
	release = func() {
		os.Remove(dir + "/l")
		os.Remove(dir)
	}
	if err := os.Chmod(dir, 0o700); err != nil { // whatever the umask
		release()
		return "", nil, err
	}
	if err := os.Symlink(path, dir+"/l"); err != nil {
		release()
		return "", nil, err
	}
	return dir + "/l", release, nil
}

// ---------------------------------------------------------------------------
// Connections

// connect makes one attempt to connect to the target. Who can keep the lock of a folder can make it
// wait in there: see giveUp.
func connect(p *retryTimer, target string, kind connKind, _ *SysDialer) (*fd, error) {
	dial := func() (*fd, error) {
		f, err := connectSocket(target, socketType(kind))
		if err == nil {
			f.carry(kind)
		}
		return f, err
	}
	if isAbstract(target) || p.ctx.Done() == nil && p.deadline.IsZero() {
		return dial()
	}
	f, _, err := untilEnd(p, func() (f, _ *fd, err error) {
		err = inTurn(p, dialTurns, func() error { f, err = dial(); return err })
		return f, nil, err
	})
	return f, err
}

// dialTurns bounds how many calls of connect are in the kernel, where each may be held.
var dialTurns = newSemaphore(4 * closersMax)

func connectSocket(target string, typ int) (*fd, error) {
	if len(target) > sunPathMax && !isAbstract(target) {
		short, release, err := kern.shorten(target)
		if err != nil {
			return nil, err
		}
		defer release()
		target = short
	}
	sys, err := newSocket(typ)
	if err != nil {
		return nil, err
	}
	f := newSocketFD(sys)
	sa := sockAddr(target)
	err = ignoringEINTR(func() error { return syscall.Connect(sys, sa) })
	if err == syscall.EINPROGRESS || err == syscall.EALREADY {
		err = f.finishConnect()
	}
	if err != nil {
		f.closeLater()
		return nil, classify("connect", err)
	}
	return f, nil
}

// finishConnect waits for a connection that is under way (illumos, Solaris).
func (f *fd) finishConnect() error {
	raw := rawConn{f}
	var result error
	err := raw.Write(func(sys uintptr) bool {
		if code, err := syscall.GetsockoptInt(int(sys), syscall.SOL_SOCKET, syscall.SO_ERROR); err != nil {
			result = err
		} else if code != 0 {
			result = syscall.Errno(code)
		} else if _, err := syscall.Getpeername(int(sys)); err == syscall.ENOTCONN {
			return false
		}
		return true
	})
	if err != nil {
		return err
	}
	return result
}

// judge tells what the failure of connect means. When the backlog is full, the BSDs and
// macOS refuse a client exactly as if nobody listened. There a probe tells whether any
// process has the socket. The lock tells whether that is a listener of this package,
// which is worth waiting for.
func judge(target string, err error) verdict {
	switch errnoOf(err) {
	case syscall.EAGAIN:
		return busy
	case syscall.ENOENT:
		return absent
	case syscall.EACCES: // between bind and chmod the mode is what the umask makes it: see bindAndListen
		return barred
	case syscall.ECONNREFUSED:
		switch {
		case !fullRefuses || errnoOf(probe(target)) == syscall.ECONNREFUSED:
			return absent
		case lockHeld(target):
			return busy
		}
		return unsure
	case syscall.ECONNRESET, syscall.EPIPE: // FreeBSD, and since 15: the listener was closed when it had just taken the client in
		return unsure
	}
	return final
}

// trusted reports whether the peer is this process's user or root. A user that is
// not known, such as one without a mapping in a user namespace, is neither.
func (p Peer) trusted() bool {
	uid, ok := p.UID()
	return ok && (uid == 0 || uid == os.Geteuid())
}

// peerSystem is what a Peer holds beyond the portable facts: nothing on Unix.
type peerSystem struct{}

// unixPeer returns the Peer of a user id, with the other facts yet to be added.
func unixPeer(uid int) Peer { return Peer{facts: knowsUID, uid: uid} }

// add records a process id or group id, if it is one.
func (p *Peer) add(fact peerFacts, field *int, value int) {
	if value > 0 || value == 0 && fact != knowsPID {
		p.facts |= fact
		*field = value
	}
}

// xucredPeer returns the Peer of a struct xucred (sys/ucred.h of FreeBSD, macOS and
// DragonFly). cred has as many 32-bit words of it as the system returned: version, user
// id, number of groups in 16 bits, and the groups, the effective one first.
func xucredPeer(cred []uint32) (Peer, error) {
	if cred[0] != 0 { // XUCRED_VERSION
		return Peer{}, syscall.EINVAL
	}
	p := unixPeer(int(cred[1]))
	if n := min(int(cred[2]&0xffff), len(cred)-3); n > 0 {
		p.add(knowsGID, &p.gid, int(cred[3]))
		p.groups = make([]int, n-1)
		for i := range p.groups {
			p.groups[i] = int(cred[4+i])
		}
	}
	return p, nil
}

func pair(kind connKind) (a, b *fd, err error) {
	var s [2]int
	err = newDescriptors(func() (err error) {
		s, err = syscall.Socketpair(syscall.AF_UNIX, socketType(kind)|socketFlags, 0)
		return err
	}, &s[0], &s[1])
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return newConnFD(s[0], kind), newConnFD(s[1], kind), nil
}

// newConnFD takes ownership of the socket of a connection, and prepares it for
// what it carries.
func newConnFD(sys int, kind connKind) *fd {
	f := newSocketFD(sys)
	f.carry(kind)
	return f
}

// begin sets how long waits of a connection that was accepted or dialed may spin. If its first
// wait is likely to park, and such connections do wait, it is registered with the poller right
// here. Later that takes another goroutine, for which the scheduler wakes a thread: see join.
func (f *fd) begin(spin time.Duration) {
	f.begun = true
	f.setSpin(spin)
	h := &f.r
	awake := f.maySpin(h) && (spinning.spins.allows(&h.spins) || spinning.yieldsNext(&h.yields))
	if !awake && spinning.expectsToPark() {
		f.register(h) // the first wait tries again if this fails
	}
}

// carry has the socket, which no other process has, carry the kind.
func (f *fd) carry(kind connKind) {
	if f.kind = kind.native(); f.kind == streams {
		kern.inlineUrgent(f.sys, false)
	}
}

// socketType returns the type of socket that carries the kind.
func socketType(kind connKind) int {
	if kind.native() == messages {
		return syscall.SOCK_SEQPACKET
	}
	return syscall.SOCK_STREAM
}

// adoptConn returns a connection over a duplicate of f.
func adoptConn(f *os.File, kind connKind) (*fd, error) {
	return adopt(f, kind, func(sys int) error { return isConnected(sys, kind) })
}

// adopt returns an fd over a duplicate of f, if that passes the check.
func adopt(f *os.File, kind connKind, check func(sys int) error) (*fd, error) {
	return ofDuplicate(f, check, func(sys int) (*fd, error) { return adoptSys(sys, kind, check) })
}

// ofDuplicate returns what adopt makes of a duplicate of f, if f passes the check. f is
// checked before it is duplicated: to close a duplicate of a file can take as long as its
// server likes (flush of FUSE).
func ofDuplicate(f *os.File, check func(sys int) error, adopt func(sys int) (*fd, error)) (*fd, error) {
	var sys int
	err := withFile(f, func(fd uintptr) (err error) {
		if err = check(int(fd)); err != nil {
			return err
		}
		sys, err = kern.dup(int(fd))
		return os.NewSyscallError("dup", err)
	})
	if err != nil {
		return nil, err
	}
	fd, err := adopt(sys)
	if err != nil {
		syscall.Close(sys)
	}
	return fd, err
}

// adoptSys returns an fd that owns sys, if sys passes the check; if not, sys stays as it
// was. The process or caller that sys came from may have a duplicate, and may make both
// blocking.
func adoptSys(sys int, kind connKind, check func(sys int) error) (*fd, error) {
	if err := check(sys); err != nil {
		return nil, err
	}
	if kind.native() == streams {
		if err := kern.inlineUrgent(sys, true); err != nil {
			return nil, err
		}
	}
	return adoptSocket(sys, kind)
}

// adoptSocket is adoptSys for a socket that has passed the check, and whose options stay as they are.
func adoptSocket(sys int, kind connKind) (*fd, error) {
	if err := syscall.SetNonblock(sys, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := newSocketFD(sys)
	f.kind = kind.native()
	f.markShared()
	return f, nil
}

// isLocal refuses every descriptor that is not a local socket of that kind.
func isLocal(sys int, kind connKind) error {
	typ, err := syscall.GetsockoptInt(sys, syscall.SOL_SOCKET, syscall.SO_TYPE)
	if err != nil {
		return os.NewSyscallError("getsockopt", err) // ENOTSOCK
	}
	domain, err := kern.domain(sys)
	if err != nil {
		return err
	}
	if domain != syscall.AF_UNIX || typ != socketType(kind) {
		what := "stream"
		if kind == messages {
			what = "message"
		}
		return &ruleError{"the descriptor is not a local " + what + " socket", errors.ErrUnsupported}
	}
	return nil
}

// isConnected refuses every descriptor that is not a connected local socket of
// that kind.
func isConnected(sys int, kind connKind) error {
	if err := isLocal(sys, kind); err != nil {
		return err
	}
	_, err := syscall.Getpeername(sys)
	if err != nil && wasConnected(sys) {
		return nil
	}
	return os.NewSyscallError("getpeername", err) // ENOTCONN
}

// wasConnected reports whether the socket has had a peer, even if that is gone. Only
// Linux still tells the name of a peer that is gone, so this looks whether there is
// something to receive; the end of the stream counts too.
func wasConnected(sys int) bool {
	var b [1]byte
	err := ignoringEINTR(func() error {
		_, err := kern.receive(sys, &op{p: b[:], flags: syscall.MSG_PEEK})
		return err
	})
	return err == nil || err == syscall.EAGAIN || err == syscall.ECONNRESET
}

// isListening refuses every descriptor that is not a listening local socket of that
// kind.
func isListening(sys int, kind connKind) error {
	if err := isLocal(sys, kind); err != nil {
		return err
	}
	on, err := syscall.GetsockoptInt(sys, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	if err == syscall.ENOPROTOOPT { // macOS; there only a listener refuses to connect like this
		if syscall.Connect(sys, sockAddr("/")) == syscall.EOPNOTSUPP {
			return nil
		}
		on, err = 0, nil
	}
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	} else if on == 0 {
		return &ruleError{what: "the descriptor is a socket that does not listen"}
	}
	return nil
}

// ---------------------------------------------------------------------------
// Pipes and FIFOs

func pipe() (r, w *fd, err error) {
	var p [2]int
	err = newDescriptors(func() error { return kern.newPipe(&p) }, &p[0], &p[1])
	if err != nil {
		return nil, nil, os.NewSyscallError("pipe", err)
	}
	return newFD(p[0]), newFD(p[1]), nil
}

// adoptPipe returns the end of a pipe or FIFO over a duplicate of f.
func adoptPipe(f *os.File, d direction) (*fd, error) {
	return ofDuplicate(f, func(sys int) error { return isPipeEnd(sys, d) },
		func(sys int) (*fd, error) { return adoptPipeSys(sys, d) })
}

// adoptPipeSys returns an fd that owns sys, if sys is such an end of a pipe or FIFO; if
// not, sys stays as it was. Where the system can open the pipe anew, the fd gets an open
// file description of its own. Then no other holder can make it blocking, and it makes no
// other holder's nonblocking.
func adoptPipeSys(sys int, d direction) (f *fd, err error) {
	if err := isPipeEnd(sys, d); err != nil {
		return nil, err
	}
	if own, err := kern.reopen(sys); err == nil {
		f = newFD(own)
		f.closers().do(1, closeGrace, func(int) { syscall.Close(sys) }) // which may be the last of its description
	} else if f, err = adoptSys(sys, streams, isPipe); err != nil {
		return nil, err
	}
	// Only a FIFO is a file on a device, where fifoPolls makes a difference.
	f.byTimer = !fifoPolls && fstatID(f.sys).dev != 0
	return f, nil
}

// isPipeEnd refuses every descriptor that is not a pipe or FIFO opened in that direction.
// Package syscall has no call for the open mode. So this makes an empty transfer: in the
// wrong direction it fails with EBADF, otherwise it does nothing, or fails because the
// other side is gone.
func isPipeEnd(sys int, d direction) error {
	if err := isPipe(sys); err != nil {
		return err
	}
	try := syscall.Read
	if d == writing {
		try = syscall.Write
	}
	if _, err := try(sys, nil); err == syscall.EBADF {
		return os.NewSyscallError("fcntl", err)
	}
	return nil
}

// isPipe refuses every descriptor that is not a pipe or FIFO. It asks polls first, since
// fstat(2) of another file asks its file system, which may be slow.
func isPipe(sys int) error {
	if kern.polls(sys) {
		st, err := fstat(sys)
		if err != nil {
			return err
		}
		if st.Mode&syscall.S_IFMT == syscall.S_IFIFO {
			return nil
		}
	}
	return &ruleError{"the descriptor is not a pipe", errors.ErrUnsupported}
}

// Mkfifo makes a FIFO, see mkfifo(3), with exactly the permission bits of perm, whatever
// the umask. Like every reader and writer of a FIFO it exists on Unix alone. AIX, illumos
// and Solaris offer no call for it: there the error matches [errors.ErrUnsupported].
func Mkfifo(path string, perm fs.FileMode) error {
	addr := Path(path)
	if err := mkfifoExact(addr, perm); err != nil {
		return pipeError("mkfifo", addr, err)
	}
	return nil
}

func mkfifoExact(addr Addr, perm fs.FileMode) error {
	path, err := addr.resolve()
	if err != nil {
		return err
	}
	if perm&^fs.ModePerm != 0 {
		return modeError("perm", perm)
	}
	// The FIFO is never open to more users than it should be: on Linux it begins as this user's
	// alone, and elsewhere the umask can only take bits away.
	dir, base := splitPath(path)
	folder, err := openFolder(dir)
	if err != nil {
		return err
	}
	defer folder.close()
	if _, err := folder.lstat(base); err == nil {
		return os.NewSyscallError("mkfifo", syscall.EEXIST)
	}
	name, err := kern.nameIn(folder, base)
	if err == nil {
		err = ignoringEINTR(func() error { return kern.mkfifo(name, uint32(perm)) })
	}
	if err != nil {
		return os.NewSyscallError("mkfifo", err)
	}
	id, err := kern.setMode(folder, base, syscall.S_IFIFO, uint32(perm), -1, -1)
	if err != nil && err != errReplaced {
		folder.undo(base, syscall.S_IFIFO, id)
	}
	return err
}

// OpenFIFOReader opens the FIFO at the path for reading and waits for a writer, until ctx
// ends: see fifo(7). Anything but a FIFO is refused, also a symbolic link to one. The
// wait holds no thread, unless another process holds the FIFO in a page fault.
//
// FreeBSD does not tell a reader of a writer that has not written yet. If this process
// may write to the FIFO too, OpenFIFOReader opens it for writing for a moment, after
// which the kernel does tell; other readers that wait for a writer see one come and go.
// If it may not, OpenFIFOReader waits for the first byte. Two processes with a FIFO each
// way then wait for each other if each opens its reader first and writes only afterwards:
// let one of them write before it opens its reader.
//
// When the last writer has closed the FIFO, Read returns io.EOF. [FIFOConfig.KeepOpen] is
// for a service whose writers come and go.
func OpenFIFOReader(ctx context.Context, path string) (*PipeReader, error) {
	return FIFOConfig{}.OpenReader(ctx, path)
}

// A FIFOConfig holds the options of the reader of a FIFO. The zero value is what
// [OpenFIFOReader] uses.
type FIFOConfig struct {
	// KeepOpen makes the reader keep a writing end of its own until it is closed. So the
	// reader does not wait for a first writer, writers may come and go, and Read never
	// returns io.EOF: between two writers it waits. A shell can then talk to a service
	// one line at a time:
	//
	//	echo reload >/run/service/control
	//
	// A line that is written by one write(2) of at most PIPE_BUF bytes (4096 on Linux,
	// 512 or more elsewhere) is not mixed with those of other writers: see pipe(7). This
	// process must be allowed to write to the FIFO. Neither File nor Inherit passes the
	// writing end along.
	KeepOpen bool
}

// OpenReader opens the FIFO at the path for reading: see [OpenFIFOReader].
func (c FIFOConfig) OpenReader(ctx context.Context, path string) (*PipeReader, error) {
	addr := Path(path)
	r, w, err := untilEnd(&retryTimer{ctx: ctx}, func() (r, w *fd, err error) {
		if c.KeepOpen {
			return openOwnFIFO(ctx, addr)
		}
		r, err = openFIFO(ctx, addr, reading)
		return r, nil, err
	})
	if err != nil {
		return nil, pipeError("open", addr, err)
	}
	return &PipeReader{pipeEnd{fd: r, addr: addr, writer: w}}, nil
}

// openOwnFIFO opens both ends of the FIFO. Neither open waits: that of a reader never
// does, and the writer finds a reader.
func openOwnFIFO(ctx context.Context, addr Addr) (r, w *fd, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, contextError(ctx, nil)
	}
	path, err := addr.resolve()
	if err != nil {
		return nil, nil, err
	}
	if r, err = tryFIFO(ctx, path, reading); err != nil {
		return nil, nil, err
	}
	if w, err = tryFIFO(ctx, path, writing); err == nil && fstatID(w.sys) != fstatID(r.sys) {
		w.close()
		err = errReplaced
	}
	if err != nil {
		r.close()
		return nil, nil, err
	}
	return r, w, nil
}

// OpenFIFOWriter opens the FIFO at the path for writing and waits for a reader,
// until ctx ends: see [OpenFIFOReader].
func OpenFIFOWriter(ctx context.Context, path string) (*PipeWriter, error) {
	addr := Path(path)
	_, f, err := untilEnd(&retryTimer{ctx: ctx}, func() (r, w *fd, err error) {
		w, err = openFIFO(ctx, addr, writing)
		return nil, w, err
	})
	if err != nil {
		return nil, pipeError("open", addr, err)
	}
	return &PipeWriter{pipeEnd{fd: f, addr: addr}}, nil
}

// untilEnd opens one or two ends on another goroutine, which it leaves alone once p has ended and
// the grace is over. For a FIFO, open(2) and read(2) wait for the mutex of the pipe, whatever O_NONBLOCK
// says, and another process can hold that in a page fault (fifo_open and pipe_write of fs/pipe.c). What
// is opened after that is closed.
func untilEnd(p *retryTimer, open func() (r, w *fd, err error)) (*fd, *fd, error) {
	var r, w *fd
	var err error
	opened := make(chan struct{}) // closed once the three are set
	go func() {
		defer close(opened)
		r, w, err = open()
	}()
	runtime.Gosched() // most have opened it after that: then no other thread is woken for it
	ended := p.await(opened)
	if ended == nil || closedSoon(opened, closeGrace) {
		return r, w, err
	}
	go func() {
		<-opened
		for _, f := range []*fd{r, w} {
			if f != nil {
				f.close()
			}
		}
	}()
	return nil, nil, ended
}

// openTurns bounds how many opens of FIFOs are in the kernel, where each may be held and holds a
// thread. Who waits for the other side of its FIFO is not in there.
var openTurns = newSemaphore(closersMax)

// inTurn makes a call that may be held, once there is room for it in turns.
func inTurn(p *retryTimer, turns semaphore, call func() error) error {
	if err := p.await(turns); err != nil {
		return err
	}
	defer func() { turns <- struct{}{} }()
	return call()
}

// openFIFO opens the FIFO without blocking, and then waits for the other side by asking
// again and again: there is no event for its arrival. The open of a reader succeeds at
// once; then the reader asks whether there is a writer. The open of a writer fails with
// ENXIO until there is a reader.
func openFIFO(ctx context.Context, addr Addr, d direction) (*fd, error) {
	path, err := addr.resolve()
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	p := retryTimer{ctx: ctx, deadline: deadline}
	defer p.stop()
	for {
		if err := p.ended(nil); err != nil {
			return nil, err
		}
		f, err := tryFIFO(ctx, path, d)
		if err == nil && d == reading {
			f, err = awaitWriter(f, path, &p)
		}
		switch {
		case err == nil:
			return f, nil
		case f != nil:
			f.close()
			return nil, err
		case d == writing && errnoOf(err) == syscall.ENXIO:
			p.pause()
		default:
			return nil, err
		}
	}
}

// tryFIFO opens the file if it is a FIFO. To open a file of another kind may have effects
// (a tape rewinds). So it checks the kind before the open, and again on the opened file.
func tryFIFO(ctx context.Context, path string, d direction) (f *fd, err error) {
	err = inTurn(&retryTimer{ctx: ctx}, openTurns, func() error { f, err = openIfFIFO(path, d); return err })
	return f, err
}

func openIfFIFO(path string, d direction) (*fd, error) {
	var st syscall.Stat_t
	if err := ignoringEINTR(func() error { return syscall.Lstat(path, &st) }); err != nil {
		return nil, os.NewSyscallError("lstat", err)
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFIFO {
		return nil, &ruleError{what: "the file is not a FIFO"}
	}
	mode := syscall.O_RDONLY
	if d == writing {
		mode = syscall.O_WRONLY
	}
	sys, err := open(path, mode|syscall.O_NONBLOCK|syscall.O_NOFOLLOW|syscall.O_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	if err := isPipe(sys); err != nil {
		syscall.Close(sys)
		return nil, err
	}
	f := newFD(sys)
	f.byTimer = !fifoPolls
	return f, nil
}

// awaitWriter waits until the FIFO has a writer, or had one, and returns its reader,
// which may be another one than f. Without a writer a read returns the end of the file.
// With a writer it returns EAGAIN, or data, which is kept for the first Read. With
// fifoQuiet, a read returns EAGAIN without a writer too, until a writer has left or the
// reader was primed.
func awaitWriter(f *fd, path string, p *retryTimer) (*fd, error) {
	tells, primed := !fifoQuiet, false
	for {
		var first [1]byte
		n := 0
		err := inTurn(p, openTurns, func() error {
			return ignoringEINTR(func() (err error) { n, err = syscall.Read(f.sys, first[:]); return err })
		})
		switch {
		case err == nil && n > 0:
			f.in.keep(first[:], false)
			return f, nil
		case err == nil && kern.hungUp(f.sys):
			return f, nil // a writer came and left
		case err == nil:
			tells = true // there is none, and the kernel knows
		case err != syscall.EAGAIN:
			return f, callError("read", err)
		case tells:
			return f, nil
		case !primed:
			primed = true
			if r := kern.primedFIFO(p.ctx, f, path); r != nil {
				f.close()
				f, tells = r, true
				continue
			}
		}
		if err := p.ended(nil); err != nil {
			return f, err
		}
		p.pause()
	}
}

// ---------------------------------------------------------------------------
// Children

// bequeath adds the descriptor to the files that cmd's process gets, and returns the
// token: the number there, and the identity of the file. It passes the file of fd itself,
// so that Close of the end is all there is to close. Start asks the file for the
// descriptor, which changes nothing for a file that was nonblocking when it was made.
func (f *fd) bequeath(cmd *exec.Cmd) (token string, err error) {
	if err := f.incref(); err != nil {
		return "", err
	}
	defer f.decref()
	if err := f.mayGo(); err != nil {
		return "", err
	}
	f.pin()
	f.markShared() // the child has the description too
	p, err := f.join(nil)
	if err != nil {
		return "", err
	}
	id, err := identityOf(f.sys)
	if err != nil {
		return "", err
	}
	f.mu.Lock()
	f.cleanup.Stop() // cmd has the file too, and may need it longer
	f.mu.Unlock()
	n := len(cmd.ExtraFiles)
	cmd.ExtraFiles = append(cmd.ExtraFiles[:n:n], p.file)                // not into what another Cmd shares
	return strconv.Itoa(2+len(cmd.ExtraFiles)) + tokenIdentity + id, nil // after 0, 1 and 2
}

// A token of an end is the number of a descriptor, "@" and the identity of its file. The
// token of a listener with a socket file goes on with fields, separated by ":", which
// make the child an owner of the socket file: see fileToken.
const (
	tokenIdentity  = "@"
	tokenSeparator = ":"
)

// A passedFD is a descriptor that this process got when it was started.
type passedFD struct {
	sys int
	id  string // the identity that it should have; "" if that is not given
}

// parsePassedFD reads "7" or "7@id".
func parsePassedFD(text string) (d passedFD, ok bool) {
	number, id, said := strings.Cut(text, tokenIdentity)
	n, err := strconv.Atoi(number)
	if err != nil || n <= 2 || n > 1<<20 || number != strconv.Itoa(n) || said && !validIdentity(id) {
		return passedFD{}, false
	}
	return passedFD{n, id}, true
}

// identityOf returns a text that tells the files of descriptors apart: the type of the
// file, its device and its inode number. The kernel gives sockets and pipes inode numbers
// too, the same in every process that has a descriptor of one.
func identityOf(sys int) (string, error) {
	st, err := fstat(sys)
	if err != nil {
		return "", err
	}
	id := idOf(&st)
	return strconv.FormatUint(uint64(st.Mode&syscall.S_IFMT), 16) + "." +
		strconv.FormatUint(id.dev, 16) + "." + strconv.FormatUint(id.ino, 16), nil
}

// validIdentity reports whether identityOf may have returned the text.
func validIdentity(id string) bool {
	for i := range len(id) {
		if c := id[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c == '.') {
			return false
		}
	}
	return id != ""
}

// tokenDescriptors returns the numbers of the descriptors that a token names, or nil if
// the text is no token.
func tokenDescriptors(token string) []uintptr {
	passed, _, ok := parseToken(token)
	if !ok {
		return nil
	}
	var numbers []uintptr
	for _, d := range passed {
		numbers = append(numbers, uintptr(d.sys))
	}
	return numbers
}

// passedIdentity is identityOf when the program starts. A descriptor that is
// close-on-exec then did not come through exec(2): the runtime of Go or another package
// has opened it since.
func passedIdentity(sys int) (string, error) {
	if kern.closesOnExec(sys) {
		return "", errNotPassed
	}
	return identityOf(sys)
}

var errNotPassed = &ruleError{what: "it was closed, and this process has opened another file under its number"}

// identify returns the identities of the descriptors of a valid token. It is an error if
// a descriptor is closed, or is not what the token says.
func identify(token string, ask func(sys int) (string, error)) (string, error) {
	passed, _, _ := parseToken(token)
	var ids strings.Builder
	for _, d := range passed {
		id, err := ask(d.sys)
		if err != nil {
			return "", err
		}
		if d.id != "" && d.id != id {
			return "", errOtherFile
		}
		ids.WriteString(id + " ")
	}
	return ids.String(), nil
}

// whatWasPassed returns the identities of the descriptors of a valid token when the
// program starts, whatIsThere those that they have later.
func whatWasPassed(token string) (string, error) { return identify(token, passedIdentity) }
func whatIsThere(token string) (string, error)   { return identify(token, identityOf) }

// keepFromChildren makes the descriptors of a valid token close-on-exec.
func keepFromChildren(token string) {
	for _, sys := range tokenDescriptors(token) {
		syscall.CloseOnExec(int(sys))
	}
}

// inheritedFD returns the connection, or the end of a pipe, of a valid token.
func inheritedFD(token string, kind connKind, d direction) (*fd, error) {
	passed, _, _ := parseToken(token)
	sys := passed[0].sys
	if d != reading|writing {
		return adoptPipeSys(sys, d)
	}
	return adoptSys(sys, kind, func(sys int) error { return isConnected(sys, kind) })
}

func inheritedListener(token string, kind connKind) (*listener, error) {
	passed, file, _ := parseToken(token)
	l, err := ownListener(passed[0].sys, kind)
	if err == nil && file != nil {
		l.file = file.adopt(passed[1].sys, passed[2].sys, passed[3].sys, passed[4].sys)
	}
	return l, err
}

// ownListener returns a listener that owns sys, which stays as it was if it does
// not listen.
func ownListener(sys int, kind connKind) (*listener, error) {
	f, err := adoptSys(sys, streams, func(sys int) error { return isListening(sys, kind) })
	if err != nil {
		return nil, err
	}
	return newListener(f, kind), nil
}

// ---------------------------------------------------------------------------
// Socket files with several owners
//
// A listener that is handed on takes its lock along: an flock(2) belongs to the open file
// description, so it is held until the last process that has the descriptor closes it.
// The last process to Close the listener also removes socket file and lock.
//
// Nobody can count the descriptors of a description, but the kernel tells when those of a
// pipe's writing end are gone. So the owners share a pipe that nobody writes to. Each
// owner has both its ends. To leave, it closes the writing end. If no process has that any
// more, it was the last. Two owners that leave at once may both find that. They remove under
// the guard, and the second finds nothing.
//
// A process that ends without Close is no owner any more, as its descriptors are closed.
// A process that was given the listener and never takes it is an owner.

// The owners are the ends of the common pipe that this process has, and duplicates of
// lock and folder for its children.
type owners struct {
	r, w, lock, folder *fd
}

// close closes those that are still open.
func (o *owners) close() {
	for _, f := range []*fd{o.r, o.w, o.lock, o.folder} {
		if f != nil {
			f.close() // an error here has no consequence; a second Close does nothing
		}
	}
}

// bequeath gives the child the listener, and the descriptors that make it an owner of the
// file.
func (l *listener) bequeath(cmd *exec.Cmd) (token string, err error) {
	before := cmd.ExtraFiles
	token, err = l.fd.bequeath(cmd)
	if err == nil && l.file != nil {
		var file string
		if file, err = l.file.bequeath(cmd); err != nil {
			cmd.ExtraFiles = before
		}
		token += file
	}
	return token, err
}

func (f *socketFile) bequeath(cmd *exec.Cmd) (string, error) {
	f.sharing.Lock()
	defer f.sharing.Unlock()
	switch {
	case f.given:
		return "", net.ErrClosed
	case f.folder.sys < 0: // the child cannot be told where the file is, and may serve there still
		f.keep = true
		return "", nil
	case f.owners == nil:
		if err := f.becomeOwner(); err != nil {
			return "", err
		}
	}
	var b strings.Builder
	for _, d := range []*fd{f.owners.folder, f.owners.lock, f.owners.r, f.owners.w} {
		if d == nil { // there was no descriptor left when this process became an owner
			return "", os.NewSyscallError("dup", syscall.EMFILE)
		}
		token, err := d.bequeath(cmd)
		if err != nil {
			return "", err
		}
		b.WriteString(tokenSeparator + token)
	}
	b.WriteString(fileToken{f.path(), f.id, f.keep}.String())
	return b.String(), nil
}

// becomeOwner makes this process the first of several owners. Where there is no flock the folder takes
// the place of the lock: no name of a lock leads to it, so nobody takes it for one.
func (f *socketFile) becomeOwner() error {
	lock := f.folder.sys
	if f.lock.state == lockOurs {
		lock = f.lock.sys
	}
	lock, err := kern.dup(lock)
	if err != nil {
		return os.NewSyscallError("dup", err)
	}
	folder, err := kern.dup(f.folder.sys)
	if err != nil {
		syscall.Close(lock)
		return os.NewSyscallError("dup", err)
	}
	r, w, err := pipe()
	if err != nil {
		syscall.Close(lock)
		syscall.Close(folder)
		return err
	}
	f.setOwners(&owners{r, w, newFD(lock), newFD(folder)})
	return nil
}

// setOwners makes this process one of several owners. If the listener is dropped without
// Close, the lock is closed but not unlocked, since the others hold it too.
func (f *socketFile) setOwners(o *owners) {
	f.owners = o
	f.dropped.Stop()
	f.dropped = runtime.AddCleanup(f, func(sys [2]int) {
		syscall.Close(sys[0])
		syscall.Close(sys[1])
	}, [2]int{f.lock.sys, f.folder.sys})
}

// isLastOwner ends this process's share in the file, and reports whether no other process
// has one. A child that another goroutine starts has the pipe until it runs its program. No fork may be
// under way when the pipe is closed. Even so the last child may have the pipe for a moment
// longer: its parent goes on before exec closes what it has to (begin_new_exec of fs/exec.c on Linux).
func (f *socketFile) isLastOwner() (bool, error) {
	f.sharing.Lock()
	defer f.sharing.Unlock()
	f.given = true
	if f.owners == nil {
		return true, nil
	}
	defer f.owners.close()
	syscall.ForkLock.RLock()
	f.owners.w.close()
	syscall.ForkLock.RUnlock()
	if !f.owners.w.isDisposed() {
		return false, &ruleError{"the socket file stays: the close of the pipe that its owners share takes too long", os.ErrDeadlineExceeded}
	}
	for range childLooks {
		if kern.hasNoWriter(f.owners.r.sys) {
			return true, nil
		}
		time.Sleep(childPause)
	}
	return false, nil
}

// A child runs its program after some hundred microseconds. A Close that is not the last takes as long as
// all the looks.
const (
	childLooks = 10
	childPause = time.Millisecond / 2
)

// leave closes the lock, which the other owners still hold, and the folder.
func (f *socketFile) leave() {
	f.dropped.Stop()
	syscall.Close(f.lock.sys)
	f.lock.sys = -1
	f.folder.close()
}

// path returns the path of the socket, as far as it is known.
func (f *socketFile) path() string { return joinPath(f.folder.path, f.base) }

// A fileToken is what a child needs to become an owner of a socket file. In a token it
// follows the listener, the folder, the lock and the two ends of the common pipe.
type fileToken struct {
	path string
	id   fileID
	keep bool
}

const tokenKeeps, tokenRemoves = "keep", "remove"

// String writes device and inode of the socket, whether its file is kept or removed, and
// the path in hexadecimal digits, none of which is a separator.
func (t fileToken) String() string {
	fate := tokenRemoves
	if t.keep {
		fate = tokenKeeps
	}
	var b strings.Builder
	b.WriteString(tokenSeparator + strconv.FormatUint(t.id.dev, 16) + tokenSeparator + strconv.FormatUint(t.id.ino, 16) +
		tokenSeparator + fate + tokenSeparator)
	const digits = "0123456789abcdef"
	for i := range len(t.path) {
		b.WriteByte(digits[t.path[i]>>4])
		b.WriteByte(digits[t.path[i]&15])
	}
	return b.String()
}

// parseFileToken reads the four fields that String writes, with which the token ends.
func parseFileToken(token string, fields []string) (t fileToken, ok bool) {
	t.id.dev, _ = strconv.ParseUint(fields[0], 16, 64)
	t.id.ino, _ = strconv.ParseUint(fields[1], 16, 64)
	t.keep = fields[2] == tokenKeeps
	var path []byte
	for hex := fields[3]; len(hex) >= 2; hex = hex[2:] {
		c, _ := strconv.ParseUint(hex[:2], 16, 8)
		path = append(path, byte(c))
	}
	t.path = string(path)
	_, base := splitPath(t.path)
	return t, base != "" && strings.IndexByte(t.path, 0) < 0 && strings.HasSuffix(token, t.String())
}

// parseToken returns the descriptors that a token names, that of the end first, and the
// part about a socket file.
func parseToken(token string) (passed []passedFD, file *fileToken, ok bool) {
	var fields []string
	for field := range strings.SplitSeq(token, tokenSeparator) {
		fields = append(fields, field)
	}
	const descriptors = 5 // of a listener with a file
	if len(fields) > 1 {
		if len(fields) != descriptors+4 {
			return nil, nil, false
		}
		t, ok := parseFileToken(token, fields[descriptors:])
		if !ok {
			return nil, nil, false
		}
		fields, file = fields[:descriptors], &t
	}
	for _, field := range fields {
		d, ok := parsePassedFD(field)
		if !ok {
			return nil, nil, false
		}
		passed = append(passed, d)
	}
	return passed, file, true
}

// adopt makes this process an owner of the file. The claim that it returns owns the
// descriptors.
func (t *fileToken) adopt(dir, lock, r, w int) *socketFile {
	path, base := splitPath(t.path)
	f := &socketFile{
		folder: &folder{sys: dir, path: path, id: fstatID(dir)},
		base:   base,
		lock:   lockFile{sys: lock, id: fstatID(lock), state: lockOurs},
		id:     t.id,
		keep:   t.keep,
	}
	o := &owners{r: newFD(r), w: newFD(w)}
	if sys, err := kern.dup(lock); err == nil {
		o.lock = newFD(sys)
	}
	if sys, err := kern.dup(dir); err == nil {
		o.folder = newFD(sys)
	}
	f.setOwners(o)
	return f
}

// ---------------------------------------------------------------------------
// Activation: see sd_listen_fds(3)

// Activated returns the listeners for streams among the descriptors that the service
// manager passed to this process, in its order: see sd_listen_fds(3). There are none
// unless LISTEN_PID is this process. [Listener.FDName] tells which is which. Who may
// connect is as with [FileListener]. Close does not remove a socket file: it is the
// service manager's.
//
// The first successful call of Activated, [ActivatedMsg] or [ActivatedFiles] unsets
// LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES, so that no child takes them for its own, and
// makes all the descriptors close-on-exec. Each descriptor belongs to one of the three
// functions, according to its type, and is returned once. What nobody asks for stays
// open.
//
// It is an error if the variables are malformed, or if a descriptor was not open when the
// program started, or is another one now. The error says which, and nothing is taken or
// unset.
func Activated() ([]*Listener, error) {
	return activated[Listener](passedListener, streams)
}

// ActivatedMsg returns the listeners for messages (SOCK_SEQPACKET) that the service
// manager passed: see [Activated]. Where messages are framed on stream sockets (macOS,
// AIX, illumos, Solaris) nothing tells those apart from other stream sockets, so
// Activated returns them all; [FileMsgListener] takes the File of one.
func ActivatedMsg() ([]*MsgListener, error) {
	return activated[MsgListener](passedMsgListener, messages)
}

// ActivatedFiles returns every other descriptor that the service manager passed, as it
// is: listeners of other families (for [net.FileListener]), datagram sockets,
// connections, FIFOs, and files that the process put into the fd store with [Notify]. The
// Name of a file is the name that the manager gave it ("unknown" if none): see
// [Activated].
func ActivatedFiles() ([]*os.File, error) {
	var files []*os.File
	err := takePassed(passedOther, func(p passedFile) error {
		files = append(files, os.NewFile(uintptr(p.sys), p.name))
		return nil
	})
	return files, err
}

// activated returns the listeners of one kind among what was passed.
func activated[L any, P interface {
	*L
	activated(*listener, string)
}](kind passedKind, carries connKind) ([]*L, error) {
	var ls []*L
	err := takePassed(kind, func(p passedFile) error {
		sys, err := ownListener(p.sys, carries)
		if err == nil {
			l := new(L)
			P(l).activated(sys, p.name)
			ls = append(ls, l)
		}
		return err
	})
	return ls, err
}

// FDName returns the name that the service manager gave a listener of [Activated] or
// [ActivatedMsg] (FileDescriptorName= of systemd.socket(5)); "unknown" if it gave
// none, and "" for other listeners.
func (l *server) FDName() string { return l.end().fdName }

func (l *server) activated(sys *listener, name string) {
	sys.fdName = name
	l.adopted(sys)
}

// A passedFile is a descriptor that the service manager passed.
type passedFile struct {
	passedFD
	name string
	kind passedKind
	lost error // it was not open when the program started
}

// A passedKind says which function returns a descriptor.
type passedKind uint8

const (
	passedOther passedKind = iota
	passedListener
	passedMsgListener
)

// The variables of sd_listen_fds(3). LISTEN_PIDFDID, of systemd 258, is unset with them.
const (
	listenPID   = "LISTEN_PID"
	listenFDs   = "LISTEN_FDS"
	listenNames = "LISTEN_FDNAMES"
	listenPidfd = "LISTEN_PIDFDID"
)

// activation holds what the service manager passed and nobody took yet.
var activation struct {
	number int          // what LISTEN_FDS was when the program started
	found  []passedFile // what was there then, up to the first that was not

	mu     sync.Mutex // guards what follows
	files  []passedFile
	opened bool // the variables were read, checked and unset
}

// The descriptors that the service manager passed are looked at when the program starts,
// before it opens anything: see the init of inherited ends. The program itself may set
// LISTEN_PID later, if the process that started it could not know the number.
func init() {
	activation.number, _ = passedNumber(os.Getenv(listenFDs)) // Activated says what is wrong with it
	for i := range activation.number {
		var p passedFile
		p.sys = firstPassedFD + i
		p.id, p.lost = passedIdentity(p.sys)
		activation.found = append(activation.found, p)
		if p.lost != nil {
			break // nothing will be taken
		}
	}
}

// firstPassedFD is SD_LISTEN_FDS_START of systemd/sd-daemon.h.
const firstPassedFD = 3

// passedNumber reads LISTEN_FDS, which is set.
func passedNumber(fds string) (int, error) {
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > 1<<16 {
		return 0, configError(listenFDs, strconv.Quote(fds), "a number of descriptors")
	}
	return n, nil
}

// listenVars are the values of the variables.
type listenVars struct {
	pid, fds, names string
	named           bool // names is set
}

func activationVars() (v listenVars) {
	v.pid, v.fds = os.Getenv(listenPID), os.Getenv(listenFDs)
	v.names, v.named = os.LookupEnv(listenNames)
	return v
}

// passedFiles returns what the variables say was passed: nil if they are not set, or
// for another process.
func passedFiles(v listenVars) ([]passedFile, error) {
	if v.pid == "" || v.fds == "" {
		return nil, nil
	}
	if p, err := strconv.Atoi(v.pid); err != nil || p <= 0 {
		return nil, configError(listenPID, strconv.Quote(v.pid), "a process id")
	} else if p != os.Getpid() {
		return nil, nil
	}
	n, err := passedNumber(v.fds)
	if err != nil {
		return nil, err
	}
	files := make([]passedFile, n)
	for i := range files {
		files[i].sys, files[i].name = firstPassedFD+i, "unknown" // as sd_listen_fds_with_names does
	}
	if !v.named || n == 0 {
		return files, nil
	}
	names := strings.Split(v.names, ":")
	if len(names) != n {
		return nil, configError(listenNames, strconv.Quote(v.names), strconv.Itoa(n)+" names")
	}
	for i, name := range names {
		files[i].name = name
	}
	return files, nil
}

// takePassed calls take for each file of the kind that was passed, until one call fails.
// A file that was taken is removed from the list.
func takePassed(kind passedKind, take func(passedFile) error) error {
	activation.mu.Lock()
	defer activation.mu.Unlock()
	if err := openActivation(); err != nil {
		return opError("activate", Addr{}, Addr{}, err)
	}
	var left []passedFile
	var failed error
	for _, p := range activation.files {
		if p.kind == kind && failed == nil {
			if err := take(p); err == nil {
				continue
			} else {
				failed = passedError(p, err)
			}
		}
		left = append(left, p)
	}
	activation.files = left
	if failed != nil {
		return opError("activate", Addr{}, Addr{}, failed)
	}
	return nil
}

// openActivation reads and unsets the variables, if they are for this process, and checks
// that the descriptors are still those of the start. It does so once.
func openActivation() error {
	if activation.opened {
		return nil
	}
	files, err := passedFiles(activationVars())
	if err != nil || files == nil { // nothing was passed, or another package has taken it
		return err
	}
	if len(files) != activation.number {
		return &ruleError{what: listenFDs + " was changed since the program started"}
	}
	for i, p := range activation.found {
		if err := p.check(); err != nil {
			return passedError(files[i], err)
		}
	}
	for i := range files {
		syscall.CloseOnExec(files[i].sys)
		files[i].classify()
	}
	activation.files, activation.opened = files, true
	for _, name := range []string{listenPID, listenFDs, listenNames, listenPidfd} {
		os.Unsetenv(name)
	}
	return nil
}

// check returns an error unless the descriptor is what it was when the program started.
func (p *passedFile) check() error {
	if p.lost != nil {
		return p.lost
	}
	id, err := identityOf(p.sys)
	if err == nil && id != p.id {
		err = errOtherFile
	}
	return err
}

func (p *passedFile) classify() {
	switch {
	case isListening(p.sys, streams) == nil:
		p.kind = passedListener
	case isListening(p.sys, messages) == nil:
		p.kind = passedMsgListener
	}
}

// passedError says which descriptor cannot be had.
func passedError(p passedFile, err error) error {
	return &classified{&ruleError{what: "descriptor " + strconv.Itoa(p.sys) + " (" + strconv.Quote(p.name) +
		") is not what the service manager passed: " + err.Error()}, err}
}

// notifySocket is the variable of sd_notify(3).
const notifySocket = "NOTIFY_SOCKET"

// notifyPatience bounds how long Notify waits for room in the manager's queue.
const notifyPatience = 5 * time.Second

// Notify tells the service manager about this process: see sd_notify(3). The state holds
// assignments, one a line: READY=1, STATUS=..., STOPPING=1, MAINPID=... for a successor
// that takes over. With FDSTORE=1 the manager keeps duplicates of the files and passes
// them to the next process of the service. There [ActivatedFiles], or [Activated] for
// listeners, returns them under the name of FDNAME=...; FDSTOREREMOVE=1 removes the files
// of a name from the store. The files stay the caller's to close.
//
// sent is false, and err nil, where NOTIFY_SOCKET is not set: no manager wants to know.
// That the state was sent does not mean that the manager acted on it: NotifyAccess= and
// FileDescriptorStoreMax= of systemd.service(5) must allow that. The manager reports a
// refusal in its journal alone. The kernel tells the manager which process has sent the
// state.
//
// Notify waits up to 5 seconds for room in the manager's queue; the error then matches
// [os.ErrDeadlineExceeded]. Other errors match [ErrNoListener] if the manager is gone,
// [ErrMsgTooLong] for a state that no datagram takes, and [errors.ErrUnsupported] for a
// NOTIFY_SOCKET that is neither a path nor the name of an abstract socket (vsock).
//
// Notify exists on Unix alone. Children inherit NOTIFY_SOCKET, as they do with sd_notify:
// remove it from the environment of those that are not to speak for the service.
func Notify(state string, files ...*os.File) (sent bool, err error) {
	text := os.Getenv(notifySocket)
	if text == "" {
		return false, nil
	}
	addr := Path(text)
	if text[0] == '@' {
		addr = Name(text[1:])
	}
	if err := notify(addr, state, files); err != nil {
		return false, opError("notify", Addr{}, addr, err)
	}
	return true, nil
}

func notify(addr Addr, state string, files []*os.File) error {
	if state == "" {
		return configError("the state", `""`, "assignments such as READY=1")
	}
	if err := checkFiles(len(files), 0); err != nil {
		return err
	}
	if text := addr.text; addr.kind == pathAddr && text[0] != '/' || addr.kind == nameAddr && !abstractNames {
		return &ruleError{notifySocket + " is not the path of a socket, nor the name of one that this system has", errors.ErrUnsupported}
	}
	target, err := addr.resolve()
	if err != nil {
		return err
	}
	f, err := connectSocket(target, syscall.SOCK_DGRAM)
	if e := errnoOf(err); e == syscall.ENOENT || e == syscall.ECONNREFUSED {
		return &classified{err, ErrNoListener}
	} else if err != nil {
		return err
	}
	defer f.close()
	fds, release, err := holdFiles[int](files)
	if err != nil {
		return err
	}
	defer release()
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	return f.sendDatagram([]byte(state), rights)
}

// sendDatagram sends one datagram. It waits until the receiver has room, by trying again:
// not every system has an event for that.
func (f *fd) sendDatagram(p, rights []byte) error {
	wait := retryTimer{ctx: context.Background(), deadline: time.Now().Add(notifyPatience)}
	defer wait.stop()
	for {
		err := f.control("sendmsg", func() error {
			_, err := kern.sendmsg(f.sys, p, rights, dontWait|noSignal)
			return err
		})
		switch errno := errnoOf(err); errno {
		// The queue is full: EAGAIN on Linux, ENOBUFS on the BSDs and macOS. Or too many
		// files of this user are on their way: unix(7).
		case syscall.EAGAIN, syscall.ENOBUFS, syscall.ETOOMANYREFS:
		case syscall.EMSGSIZE:
			return sendError(errno)
		default:
			return err
		}
		if ended := wait.ended(err); ended != nil {
			return ended
		}
		wait.pause()
	}
}

// ---------------------------------------------------------------------------
// The one way to system calls that may block
//
// An operation tries its system call at once. When the kernel returns EAGAIN it may try
// again for some microseconds, since to wake a thread costs several times what the call
// itself does: see Spinning in ipc.go. Only then does the descriptor join the
// runtime's poller, by becoming an os.File, and the goroutine parks there until the
// kernel reports an event. No thread is held. A connection that never parks is never
// registered, so no thread wakes for data that it receives. A connection that has not had
// to park for a while leaves the poller again.
//
// Every system call here is made through the scheduler ([syscall.Syscall]), but for a few of
// package syscall that cannot sleep (getpid, getuid, socket, socketpair, pipe2, and
// getsockname and getpeername of a local socket: unix_getname of net/unix/af_unix.c). A raw
// call that sleeps stops the process at its next garbage collection. The peer decides how
// long many calls sleep: read(2) closes the descriptors that it has no room for (__fput of
// fs/file_table.c), and pipe_read and pipe_write of fs/pipe.c hold a mutex while a page
// fault of the other end is served.
//
// While a call uses the descriptor, its number must not go to another file. So each
// operation counts as a user of the fd, and the last user closes it.

// An fd is a close-on-exec descriptor of a socket, pipe or FIFO that this package
// owns. It is nonblocking, as far as that is up to this process: see markShared.
type fd struct {
	// What most operations look at comes first, so that it is on one cache line: where many
	// connections are busy, none of them stays in the cache.
	refs                              // calls that use sys; the last one after Close closes it
	heard    int32                    // bytes read since hear was called, up to bulkMin; guarded by r.mu
	sys      int                      // changed by leavePoller alone, while nobody else is a user
	kind     connKind                 // messages: the kernel keeps their boundaries
	socket   bool                     // not a pipe or FIFO
	listen   bool                     // it listens: clients wait in its queue
	marked   bool                     // markMessages was called; guarded by r.mu
	begun    bool                     // begin was called, before others had it
	byTimer  bool                     // the poller cannot serve it: see pollByTimer; settled before polled is
	shared   atomic.Bool              // set by markShared, never cleared
	files    atomic.Uint32            // whether the peer's files can come: filesCome and so on
	readShut atomic.Bool              // set by closeRead, never cleared: see readsAfterShutdown
	ended    atomic.Bool              // a read met the end of the stream, so that nothing is in the queue
	said     atomic.Int32             // bytes written since hear was called, likewise; a lost update does no harm
	spin     atomic.Int64             // SetSpin, in nanoseconds
	waited   int64                    // when the latest wait to read ended, as far as the next compares with it; guarded by r.mu
	polled   atomic.Pointer[pollFile] // nil unless it is with the poller; stored under mu, loaded by every wait

	r, w ioState
	in   messageReader // guarded by r.mu
	torn error         // why no message can be sent any more; guarded by w.mu

	// A listener and its connections share this; it is nil for others. Accept sets it, and the
	// Close of any connection clears it: a hint whether the latest still waits for its goroutine.
	anyUnserved *atomic.Bool

	mu       sync.Mutex      // guards what follows, and keeps join, leavePoller, Close and SetDeadline apart
	pinned   atomic.Bool     // somebody may know the number, so it must not change; stored under mu
	disposed bool            // the descriptor was closed
	goneErr  error           // the error of that close
	gone     chan struct{}   // closed with it; nil until Close waits for it
	cleanup  runtime.Cleanup // closes sys, or the pollFile, if nobody does
}

// A pollFile is the os.File of a descriptor that is with the runtime's poller.
type pollFile struct {
	file *os.File // owns the descriptor
	raw  syscall.RawConn
}

// An ioState is the state of one direction of an fd: on a system of 64 bits it takes a cache line.
type ioState struct {
	mu      sync.Mutex   // one operation at a time; guards all but expiry
	expiry  atomic.Int64 // the deadline on the clock of now, 0 for none; set while an operation has mu
	parking *parking     // nil until an operation parks
	iov     *[]iovec     // kept for its capacity; nil until several buffers are read or written

	spins   backoff // whether the next wait spins
	yields  yielder // whether it yields otherwise
	turnout turnout // how often this direction waits, among all

	expectPark uint8 // expectParkMax or more after an operation that parked, one less after each that did not
}

// A parking is what the poller needs to make an operation. It is made once for a direction, so
// that no wait allocates, and is guarded by the lock of that.
type parking struct {
	op    op                       // a copy, so that the caller's stays on its stack; zero between operations
	done  result                   // what the latest attempt returned
	err   error                    // with it; EAGAIN: nothing happened yet
	tries uint8                    // attempts that the poller made, up to 2
	looks bool                     // the first of them looks whether there is something
	once  bool                     // an operation has parked
	again func(sysfd uintptr) bool // see newParking
}

// An op is a system call with its arguments. It is on the stack of each goroutine that
// waits, maybe thousands of them, and a stack that outgrows its first 2 KiB doubles. So
// this struct, and the functions between an exported method and the call, stay small. The
// result of an attempt is in a struct of its own.
type op struct {
	call  opCall
	mode  opMode
	flags int32    // MSG_ flags
	p     []byte   // the data, or
	iov   *[]iovec // several buffers of it
	oob   []byte   // room for control messages, or the messages

	other func(sys int) (result, error) // see opOther
}

// An opCall tells which call an op makes. It is no function, because what a function gets by
// a variable is on the heap.
type opCall uint8

const (
	opReceive opCall = iota
	opSend
	opReadPipe
	opWritePipe
	opReadShared
	opWriteShared
	opAccept
	opOther // a function that needs no other argument, as tests have
)

// A result is what a call returned: bytes, or the descriptor of accept, bytes of control
// messages, flags, and how many files came that nobody wanted.
type result struct {
	n                int
	oobn, got, files int32
}

// newFD takes ownership of sys. If the fd is dropped without Close, the garbage
// collector closes it, as it does for os and net.
func newFD(sys int) *fd { return (&fd{sys: sys}).started() }

// noFD and noListener are closed: see endpoint.end.
var (
	noFD       = closedFD()
	noListener = &listener{fd: noFD}
)

func closedFD() *fd {
	f := new(fd)
	f.increfAndClose()
	return f
}

func (f *fd) started() *fd {
	f.waited = now()
	f.armCleanup(nil)
	return f
}

// newSocketFD is newFD for a socket.
func newSocketFD(sys int) *fd { return (&fd{sys: sys, socket: true}).started() }

// armCleanup has the descriptor closed when the fd is dropped, by the pollFile if there is one. The
// finalizer of that would sleep in close(2), and no other finalizer of the process would run then.
func (f *fd) armCleanup(p *pollFile) {
	f.cleanup = runtime.AddCleanup(f, dropped.close, dropped{f.closers(), f.sys, p})
}

// A dropped is what is left of an fd that nobody has any more.
type dropped struct {
	by     *closers
	sys    int
	polled *pollFile
}

func (d dropped) close() { d.by.close(func() { closeEnd(d.sys, d.polled) }) }

// closeEnd closes a descriptor, which the pollFile owns if there is one.
func closeEnd(sys int, p *pollFile) error {
	if p != nil {
		return errnoOf(p.file.Close())
	}
	return syscall.Close(sys)
}

// close makes a call soon that closes a descriptor.
func (c *closers) close(call func()) { c.add(func() { kern.hurry(call) }) }

// closers returns the closers for the descriptor, for a close that may sleep.
func (f *fd) closers() *closers {
	if f.socket {
		return &socketEnds
	}
	return &pipeEnds
}

// markShared notes that another holder has the same open file description: a process that it
// came from or goes to, or an os.File of this one. Such a holder can make it blocking, as
// [os.File.Fd] does and many programs do to their standard input. So from then on no call
// relies on O_NONBLOCK.
func (f *fd) markShared() { f.shared.Store(true) }

// acquire begins an operation in one direction, release ends it.
func (f *fd) acquire(h *ioState) error {
	h.mu.Lock()
	if err := f.incref(); err != nil {
		h.mu.Unlock()
		return err
	}
	return nil
}

func (f *fd) release(h *ioState) {
	f.decref()
	h.mu.Unlock()
}

// run makes the call until it succeeds or fails for good, and returns its result, which is
// zero with an error. For operations that may park, EINTR, EAGAIN, the deadline and Close are
// dealt with here, and nowhere else. The caller has acquired h.
func (f *fd) run(h *ioState, o *op) (result, error) {
	raceRelease()
	done, err := f.untilDone(h, o)
	raceAcquire()
	if err != nil {
		return result{}, err // done may be what a failed call returned
	}
	switch {
	case h == &f.w:
		if said := f.said.Load(); said < bulkMin {
			f.said.Store(upToBulk(said, max(done.n, 1))) // an empty message says something, too
		}
	case !f.listen && o.flags&syscall.MSG_PEEK == 0:
		f.heard = upToBulk(f.heard, done.n)
	}
	return done, nil
}

// hear begins to count what the next wait to read goes by: from each wait on, and from each read
// on that follows a write.
func (f *fd) hear() {
	f.heard = 0
	if f.said.Load() != 0 { // most waits have just called this
		f.said.Store(0)
	}
}

func init() {
	spinning.yields.hesitate()
	if oneCPU {
		spinning.spins.doubt()
	} else {
		spinning.spins.hesitate()
	}
}

// upToBulk adds n bytes to so many, up to bulkMin.
func upToBulk(bytes int32, n int) int32 { return int32(min(int(bytes)+n, bulkMin)) }

// maySpin reports whether a wait in that direction may spin or yield, apart from its backoff.
func (f *fd) maySpin(h *ioState) bool { return f.canSpin(h) && f.awaitsAnswer() }

// canSpin reports whether waits in that direction spin or yield at all now. A wait to write never
// does: it is one of a stream.
func (f *fd) canSpin(h *ioState) bool {
	return h != &f.w && f.spinLimit() > 0 && !spinning.crowded()
}

// awaitsAnswer reports whether the next wait is for an answer among little data, by what was
// exchanged since the one before.
func (f *fd) awaitsAnswer() bool {
	heard, said := f.heard, f.said.Load()
	return !streaming(heard, said) && (!inBulk(heard, said) || oneCPU || spinning.dearCalls())
}

// A wait is what is known of the wait of an operation.
type wait struct {
	begun   int64  // when, if it may spin
	window  uint16 // for crowd.ends, if it may spin
	can     bool   // canSpin
	may     bool   // maySpin
	spins   bool   // and the backoff allows it
	spun    bool   // it has
	yielded bool   // it has yielded instead
	looks   bool   // there is likely to be nothing when it goes to the poller
}

// untilDone makes the call until the operation ends: at once, by spinning or yielding, or
// parked in the poller. The steps are functions of their own, so that the stack of a goroutine
// that is parked has this one alone. A step that ends with EAGAIN leaves it to the next.
func (f *fd) untilDone(h *ioState, o *op) (result, error) {
	if h.expired() {
		return result{}, os.ErrDeadlineExceeded
	}
	var w wait
	if done, err := f.tryAtOnce(h, o, &w); !notYet(err) {
		return done, err
	}
	if w.may {
		if done, err := f.stayAwake(h, o, &w); !notYet(err) {
			return done, err
		}
	}
	if w.can {
		spinning.timeCalls()
	}
	p, err := f.join(h)
	if err != nil {
		return result{}, err
	}
	if w.may {
		w.window = spinning.crowd.begins(w.begun, spinning.cpus.Load())
	}
	h.parking.begin(o, &w)
	err = f.await(h, p, h.parking.again)
	return f.hasParked(h, &w, err)
}

// tryAtOnce makes an attempt, unless it is likely to fail: the poller makes one before it
// parks, and that one is enough then.
func (f *fd) tryAtOnce(h *ioState, o *op, w *wait) (done result, err error) {
	if w.can = f.canSpin(h); w.can {
		w.may = f.awaitsAnswer()
		if f.said.Load() > 0 {
			f.hear()
		}
	}
	w.spins = w.may && spinning.spins.allows(&h.spins)
	tries := h.expectPark == 0 || w.spins || w.may && spinning.yieldsNext(&h.yields)
	w.looks = tries || h.expectPark > expectParkMax
	if tries {
		if done, err = f.attempt(o); !notYet(err) {
			h.expectPark = 0
			return done, err
		}
	}
	if w.can {
		f.hear()
	}
	return result{}, syscall.EAGAIN
}

// stayAwake waits without parking, as far as that is likely to pay: it spins, or else it yields.
func (f *fd) stayAwake(h *ioState, o *op, w *wait) (result, error) {
	limit := f.spinLimit()
	if spinning.alone() && h.spins.waits < youngWaits {
		// Of many that have just begun the others run first, and the peer answers all of them at once.
		runtime.Gosched()
		if done, err := f.attempt(o); !notYet(err) {
			f.stayedAwake(h, &h.spins, now())
			return done, err
		}
	}
	w.begun = now()
	switch {
	case w.spins && !paused(w.begun-f.waited, limit):
		if spinning.begin(w.begun) {
			w.spun = true
			return f.spinFor(h, o, w.begun, limit)
		}
	case spinning.mayYield(&h.yields):
		w.yielded = true
		return f.yieldFor(h, o, w.begun, limit)
	}
	return result{}, syscall.EAGAIN
}

// hasParked ends a wait that was left to the poller, which returned that error.
func (f *fd) hasParked(h *ioState, w *wait, err error) (done result, _ error) {
	if w.may {
		spinning.crowd.ends(w.window)
	}
	k := h.parking
	k.op = op{} // the buffers are the caller's again
	parked := err == nil && k.tries > 1
	switch {
	case parked:
		h.expectPark = expectParkMax + h.expectPark/expectParkMax
		done, err = k.done, k.err
		spinning.count(&h.turnout)
	case err == nil: // it was ready
		h.expectPark = max(min(h.expectPark, expectParkMax), 1) - 1
		return k.done, k.err
	}
	k.once = true
	switch {
	case w.may:
		f.waited = now() // the next wait compares with it
		if !parked {
			break // it failed, which tells nothing
		}
		if !w.spun {
			h.spins.took(f.waited-w.begun, f.spinLimit())
		}
		if !w.spun && !w.yielded {
			h.yields.hasParked(f.waited - w.begun)
		}
		if !w.spins {
			spinning.spins.skipped(&h.spins)
		}
	case w.can && spinning.spins.allows(&h.spins):
		f.waited = now()
	}
	return done, err
}

// expectParkMax is how many operations in a row must end without parking before the next is
// expected not to park. Where some of them park and some do not, a first attempt that fails
// costs more than the way through the poller. After two in a row that parked expectPark is one more:
// then the next one looks first whether there is something.
const expectParkMax = 4

// spinFor makes attempts until one succeeds or fails for good, up to the limit.
func (f *fd) spinFor(h *ioState, o *op, begun, limit int64) (done result, err error) {
	var s spin
	s.begin(begun, limit)
	err = syscall.EAGAIN
	for notYet(err) && !s.over(now()) && !f.closing() && !h.expired() {
		if spun := s.last - begun; f.listen && spun > int64(serveTime) && f.anyUnserved.Load() {
			s.left = min(s.left, limit-spun/giveShare)
			spinning.giveWay(s.last) // to the thread that serves the client
		}
		done, err = f.attempt(o)
	}
	spinning.end(&h.spins, !notYet(err))
	at := s.last
	if notYet(err) && s.left <= 0 {
		// After the first yield the system may choose this thread once more.
		others := spinning.giveWay(at) || spinning.giveWay(now())
		done, err = f.attempt(o)
		at = now()
		switch {
		case notYet(err):
			h.spins.wasLong()
		case others && spinning.shouldLeave(at): // the peer was probably one of them
			spinning.leave()
		}
	}
	if !notYet(err) {
		h.spins.took(0, limit) // what others took, or the peer waited for this CPU, does not make it long
		f.stayedAwake(h, &h.spins, at)
	}
	return done, err
}

// yieldFor lets others run before it makes an attempt, a few times.
func (f *fd) yieldFor(h *ioState, o *op, begun, limit int64) (done result, err error) {
	at := begun
	err = syscall.EAGAIN
	for n := 0; notYet(err) && moreYields(n, at-begun, limit) && !f.closing() && !h.expired(); n++ {
		spinning.yield()
		done, err = f.attempt(o)
		at = now()
	}
	won := !notYet(err)
	spinning.hasYielded(&h.yields, won, begun, at)
	if won {
		h.spins.took(at-begun, limit)
		spinning.spins.skipped(&h.spins)
		f.stayedAwake(h, &h.yields.backoff, at)
	}
	return done, err
}

// stayedAwake ends a wait that did not park.
func (f *fd) stayedAwake(h *ioState, b *backoff, at int64) {
	f.waited, h.expectPark = at, 0
	spinning.count(&h.turnout)
	if f.polled.Load() != nil && b.longRun() {
		f.leavePoller()
	}
}

// notYet reports EAGAIN. A comparison of errors would be a call.
func notYet(err error) bool {
	errno, _ := err.(syscall.Errno)
	return errno == syscall.EAGAIN
}

// heedOthers has an operation go on as it must once others have the descriptor too: they can have
// files come again, and make it blocking. They may get it while the operation waits, so each attempt
// begins with this.
func (f *fd) heedOthers(o *op) {
	if f.mayBeOthersToo() {
		o.mode &^= withoutFiles
	}
	if !f.shared.Load() {
		return
	}
	switch o.call {
	case opReadPipe:
		o.call = opReadShared
	case opWritePipe:
		o.call = opWriteShared
	case opAccept:
		o.mode |= acceptShared
	}
}

// attempt makes the call once, without waiting: EAGAIN tells that nothing happened yet.
func (f *fd) attempt(o *op) (r result, err error) {
	sys := f.sys
	f.heedOthers(o)
	for {
		switch o.call {
		case opReceive:
			r, err = receive(o, sys)
		case opSend:
			r, err = sendData(o, sys)
		case opReadPipe:
			r, err = readPipe(o, sys)
		case opWritePipe:
			r, err = writePipe(o, sys)
		case opReadShared:
			r, err = readShared(o, sys)
		case opWriteShared:
			r, err = writeShared(o, sys)
		case opAccept:
			r, err = acceptClient(o, sys)
		case opOther:
			r, err = o.other(sys)
		}
		if errno, _ := err.(syscall.Errno); errno != syscall.EINTR {
			return r, err
		}
	}
}

// newParking returns a parking. Its function again makes an attempt for the poller: the first at
// once, before the goroutine parks. If that is likely to fail, it looks first. It reports whether
// the operation has ended.
func newParking(f *fd) *parking {
	k := new(parking)
	k.again = func(sysfd uintptr) bool {
		k.tries = min(k.tries+1, 2)
		if k.tries == 1 && k.looks && k.op.call == opReceive {
			if k.err = kern.look(int(sysfd)); k.err != nil {
				k.done = result{}
				return !notYet(k.err)
			}
		}
		k.done, k.err = f.attempt(&k.op)
		return !notYet(k.err)
	}
	return k
}

// begin prepares an operation for the poller. It is not inlined, since what it needs for the copy
// would be on the stack of each goroutine that is parked.
//
//go:noinline
func (k *parking) begin(o *op, w *wait) { k.op, k.tries, k.looks = *o, 0, w.looks }

// deadline is the deadline as a time.
func (h *ioState) deadline() time.Time { return timeOf(h.expiry.Load()) }

// expired reports whether the deadline has passed.
func (h *ioState) expired() bool {
	e := h.expiry.Load()
	return e != 0 && now() >= e
}

// spinLimit returns the most nanoseconds that a wait may spin.
func (f *fd) spinLimit() int64 {
	if limit := f.spin.Load(); limit != 0 {
		return max(limit, 0)
	}
	if spinning.dearCalls() {
		return 2 * spinByDefault
	}
	return spinByDefault
}

// ---------------------------------------------------------------------------
// Closing
//
// close(2) can sleep for as long as another process likes. The last close of a socket
// closes the descriptors in its queue: a TCP socket with SO_LINGER waits for its peer, a
// file of FUSE for its server. The clients in a listener's backlog are closed in the same
// way. The last close of a pipe waits for a mutex that the other end may hold in a page
// fault (pipe_release of Linux' fs/pipe.c). So only a close that nobody can make sleep is
// made by the caller. The others are made by closers, and Close waits for them no longer
// than closeGrace.

// closeLater marks the fd closed and wakes the calls that wait on it.
func (f *fd) closeLater() error {
	if !f.increfAndClose() {
		return net.ErrClosed
	}
	raceRelease()
	if f.anyUnserved != nil {
		f.anyUnserved.Store(false)
	}
	f.mu.Lock()
	if p := f.polled.Load(); p != nil {
		p.file.SetDeadline(time.Unix(1, 0)) // in the past: ends every wait
	}
	f.mu.Unlock()
	f.decref()
	return nil
}

// awaitGone waits until the descriptor is closed, no longer than the grace.
func (f *fd) awaitGone(grace time.Duration) error {
	f.mu.Lock()
	done := f.disposed
	if !done {
		f.gone = make(chan struct{})
	}
	f.mu.Unlock()
	if !done && !closedSoon(f.gone, grace) {
		return nil
	}
	return os.NewSyscallError("close", f.goneErr)
}

// isDisposed reports whether the descriptor is closed.
func (f *fd) isDisposed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.disposed
}

// dispose closes the descriptor, which nobody uses any more.
func (f *fd) dispose() {
	if f.begun {
		spinning.hasEnded(f.r.parking != nil && f.r.parking.once)
	}
	f.cleanup.Stop()
	p := f.polled.Load()
	end := func() {
		err := closeEnd(f.sys, p)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.disposed, f.goneErr = true, err
		if f.gone != nil {
			close(f.gone)
		}
	}
	switch cannotSleep := f.closesAtOnce(); {
	case cannotSleep && !kern.closeCollects():
		end()
	case cannotSleep:
		collectingEnds.close(end)
	default:
		f.closeBy(f.closers(), end)
	}
}

// closeBy leaves the close to closers. If all of them sleep, the peer is told the end now. So are the
// clients of a listener: a child that another goroutine starts may have the socket for a moment longer.
func (f *fd) closeBy(c *closers, end func()) {
	if f.socket && (f.listen || c.allSleep()) {
		f.endNow()
	}
	c.close(end)
}

// endNow ends the connection for the peer, or has the listener refuse clients where the system does
// that, unless others have the socket. Where a shutdown of the reading side throws away what is unread,
// that closes the files in it (unp_dispose of FreeBSD's sys/kern/uipc_usrreq.c), which is for the closers.
func (f *fd) endNow() {
	if f.mayBeOthersToo() {
		return
	}
	how := syscall.SHUT_RDWR
	if !f.listen && kern.readsAfterShutdown() {
		how = syscall.SHUT_WR
	}
	syscall.Shutdown(f.sys, how)
}

// collectingEnds closes sockets where that may close what others left: see closeCollects. A kernel does
// that once at a time (gc_in_progress of net/unix/garbage.c).
var collectingEnds closers

// closesAtOnce reports whether close(2) cannot sleep for what is in the queue. That is so for a connection
// with no files there, if nothing can come any more.
func (f *fd) closesAtOnce() bool {
	switch {
	case !f.socket || f.listen:
		return false
	case filesAlone: // files without data can look like the end, and more may follow them
		return false
	case f.ended.Load() && f.kind != messages: // an unmarked empty message looks like the end
		return true
	case f.mayBeOthersToo(): // another holder may still receive
		return false
	case f.files.Load() == filesGone:
		return true
	}
	return kern.drained(f.sys, f.kind == messages, f.marked)
}

// discard closes descriptors that a peer chose, on another goroutine, as disposeOf does. The caller
// waits no longer than closeGrace.
func discard(sys ...int) {
	if len(sys) == 0 { // each call that asks for files comes here
		return
	}
	disposeOf(len(sys), closeGrace, func(i int) { closeHurried(sys[i]) })
}

func closeHurried(sys int) { kern.hurry(func() { syscall.Close(sys) }) }

// closeReceived closes a file that a peer chose.
func closeReceived(f *os.File) { kern.hurry(func() { f.Close() }) }

// ---------------------------------------------------------------------------
// Waiting

// await calls try when the direction may be ready, until it reports true.
func (f *fd) await(h *ioState, p *pollFile, try func(sysfd uintptr) bool) (err error) {
	switch {
	case f.byTimer:
		err = f.pollByTimer(h, try)
	case h == &f.r:
		err = p.raw.Read(try)
	default:
		err = p.raw.Write(try)
	}
	if err != nil && f.closing() {
		return net.ErrClosed // Close wakes waits by a deadline in the past
	}
	return err
}

// pollByTimer takes the place of the poller where the poller has no event: for FIFOs on
// macOS, where the end of the last writer is no event, and on OpenBSD, which cannot
// register FIFOs. It is also for a limit of the kernel that others use up. It holds no
// thread.
func (f *fd) pollByTimer(h *ioState, try func(sysfd uintptr) bool) error {
	p := retryTimer{ctx: context.Background()}
	defer p.stop()
	for {
		switch {
		case f.closing():
			return net.ErrClosed
		case h.expired():
			return os.ErrDeadlineExceeded
		case try(uintptr(f.sys)):
			return nil
		}
		p.pause()
	}
}

// join registers the descriptor with the runtime's poller, if it is not registered yet. If an
// operation of h is about to park (h is nil otherwise), h has its parking then. It does that on
// another goroutine: os.NewFile takes more stack than all the rest of a wait, and a stack that
// grew does not shrink while its goroutine waits.
func (f *fd) join(h *ioState) (*pollFile, error) {
	if p := f.polled.Load(); p != nil && (h == nil || h.parking != nil) {
		return p, nil // if Close comes now, its deadline ends the wait
	}
	err := make(chan error, 1)
	go func() { err <- f.register(h) }()
	if err := <-err; err != nil {
		return nil, err
	}
	return f.polled.Load(), nil
}

// register does the work of join.
func (f *fd) register(h *ioState) error {
	if h != nil && h.parking == nil {
		h.parking = newParking(f)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing() {
		return net.ErrClosed
	}
	if f.polled.Load() != nil {
		return nil
	}
	f.cleanup.Stop()
	p := &pollFile{file: os.NewFile(uintptr(f.sys), "ipc")}
	var err error
	if p.raw, err = p.file.SyscallConn(); err != nil {
		return err
	}
	// This fails if the poller does not know it.
	err = p.file.SetDeadline(f.r.deadline())
	if f.r.deadline() != f.w.deadline() && err == nil {
		err = p.file.SetWriteDeadline(f.w.deadline())
	}
	f.byTimer = f.byTimer || err != nil
	f.armCleanup(p)
	f.polled.Store(p)
	return nil
}

// leavePoller closes the pollFile, if the caller is the only user. To leave the poller
// the old descriptor must be closed, so the fd gets a duplicate with a new number. If no
// descriptor is left, or somebody may know the old number, nothing changes.
func (f *fd) leavePoller() {
	p := f.polled.Load()
	if p == nil || f.byTimer || !f.tryExclusive() {
		return
	}
	defer f.endExclusive()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pinned.Load() {
		return
	}
	sys, err := kern.dup(f.sys)
	if err != nil {
		return
	}
	f.cleanup.Stop()
	f.polled.Store(nil)
	p.file.Close() // not the last descriptor of its description, so nothing is released
	f.sys = sys
	f.armCleanup(nil)
}

// pin keeps the number of the descriptor from changing.
func (f *fd) pin() {
	f.mu.Lock()
	f.pinned.Store(true)
	f.mu.Unlock()
}

// mayBeOthersToo reports whether somebody else may use the socket, by another descriptor or by its
// number.
func (f *fd) mayBeOthersToo() bool { return f.shared.Load() || f.pinned.Load() }

// setDeadline sets the deadlines of one or both directions.
func (f *fd) setDeadline(t time.Time, d direction) error {
	if err := f.incref(); err != nil {
		return err
	}
	defer f.decref()
	expiry := int64(0)
	if !t.IsZero() {
		expiry = expiryAt(t, time.Now())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing() {
		return net.ErrClosed // otherwise the wake-up of Close would be undone
	}
	var err error
	p := f.polled.Load()
	if d&reading != 0 {
		f.r.expiry.Store(expiry)
		if p != nil && !f.byTimer {
			err = p.file.SetReadDeadline(t)
		}
	}
	if d&writing != 0 {
		f.w.expiry.Store(expiry)
		if p != nil && !f.byTimer && err == nil {
			err = p.file.SetWriteDeadline(t)
		}
	}
	return err
}

// A rawConn is an fd as a syscall.RawConn.
type rawConn struct{ f *fd }

func (f *fd) rawConn() (syscall.RawConn, error) {
	f.pin() // the caller may remember the number, though it may not use it
	return rawConn{f}, nil
}

func (c rawConn) Control(fn func(fd uintptr)) error {
	if err := c.f.incref(); err != nil {
		return err
	}
	defer c.f.decref()
	fn(uintptr(c.f.sys))
	return nil
}

func (c rawConn) Read(fn func(fd uintptr) bool) error  { return c.wait(&c.f.r, fn) }
func (c rawConn) Write(fn func(fd uintptr) bool) error { return c.wait(&c.f.w, fn) }

func (c rawConn) wait(h *ioState, fn func(fd uintptr) bool) error {
	if err := c.f.acquire(h); err != nil {
		return err
	}
	defer c.f.release(h)
	p, err := c.f.join(nil)
	if err != nil {
		return err
	}
	return c.f.await(h, p, fn)
}

// ---------------------------------------------------------------------------
// Bytes

func (f *fd) read(p []byte) (int, error) {
	h := &f.r
	if err := f.acquire(h); err != nil {
		return 0, err
	}
	defer f.release(h)
	if len(p) == 0 {
		return 0, nil
	}
	if f.in.hasAhead() {
		if h.expired() {
			return 0, os.ErrDeadlineExceeded
		}
		n := f.in.takeAhead(p)
		return n + f.readMore(p[n:]), nil
	}
	call := opReceive
	if !f.socket {
		call = opReadPipe
	}
	for {
		done, err := f.run(h, &op{call: call, mode: f.readMode(), p: f.partOf(p)})
		if !onlyFiles(done, err) {
			return f.readResult(done.n, err)
		}
		if f.closing() { // Close would wait for as long as the peer sends more of them
			return 0, net.ErrClosed
		}
	}
}

// readMore reads what is in the queue behind data that was received ahead, where the system tells that
// there is something: otherwise the attempt could take the error of the socket, which is told once.
func (f *fd) readMore(p []byte) int {
	if len(p) == 0 || !f.socket || !kern.hasData(f.sys) {
		return 0
	}
	done, err := f.attempt(&op{call: opReceive, mode: f.readMode(), p: f.partOf(p)})
	if err != nil {
		return 0
	}
	return done.n
}

// setOption makes a call that sets an option of the socket. Linux takes a lock for that which another
// process with the same socket can keep for as long as it likes, since the kernel reads the filter of
// SO_ATTACH_FILTER under it (sk_setsockopt of net/core/sock.c). So if there may be such processes,
// another goroutine makes the call, on a descriptor of its own, and the caller waits no longer
// than the grace.
func setOption(sys int, others bool, set func(sys int) error) error {
	if !others {
		return set(sys)
	}
	turn := retryTimer{ctx: context.Background(), deadline: time.Now().Add(closeGrace)}
	if turn.await(optionTurns) != nil {
		return errHeld
	}
	own, err := kern.dup(sys)
	if err != nil {
		optionTurns <- struct{}{}
		return err
	}
	return patiently(closeGrace, errHeld, func() error {
		defer func() { closeHurried(own); optionTurns <- struct{}{} }()
		return ignoringEINTR(func() error { return set(own) })
	})
}

// patiently makes a call that another process may hold on another goroutine, for which it waits no longer
// than the grace: then the error is held, and the call goes on.
func patiently(grace time.Duration, held error, call func() error) error {
	over := time.NewTimer(grace)
	defer over.Stop()
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		return err
	case <-over.C:
		return held
	}
}

// optionTurns bounds how many calls of setOption are under way. Each may hold a thread.
var optionTurns = newSemaphore(closersMax)

// errHeld is the error of setOption if the call does not return.
var errHeld = &ruleError{what: "another process that has the socket keeps it busy"}

// option makes a call for an option of the socket that not every kernel knows.
func (f *fd) option(name string, call func() error) error {
	err := f.control(name, call)
	if errnoOf(err) == syscall.ENOPROTOOPT {
		return &classified{err, errors.ErrUnsupported}
	}
	return err
}

// refuseFiles has the system refuse the files that the peer of f, or a client, sends. Only Linux can.
func (f *fd) refuseFiles() error {
	return f.option("setsockopt", func() error {
		err := setOption(f.sys, f.mayBeOthersToo(), kern.refuseRights)
		if err == nil {
			f.files.Store(filesRefused)
		}
		return err
	})
}

// What fd.files tells. It begins with the first, and readMode stores the last.
const (
	filesCome    = iota // the peer may send files
	filesRefused        // it can send none any more, but some may be in the queue
	filesGone           // and none are in the queue, either
)

// readMode returns the mode for a read of data. The caller has acquired f.r.
func (f *fd) readMode() opMode {
	switch {
	case f.files.Load() == filesCome || f.kind == messages || f.mayBeOthersToo():
		return 0
	case f.files.Load() == filesRefused:
		if !kern.isEmpty(f.sys) {
			return 0
		}
		f.files.Store(filesGone)
	}
	return withoutFiles
}

// onlyFiles reports a receive without data that is not the end of the stream. Either the
// files were lost because no descriptor was free, and their data follows. Or files came
// without data: see filesAlone.
func onlyFiles(done result, err error) bool {
	lost, _ := kern.rightsLost(err)
	return lost || err == nil && done.n == 0 && done.files > 0
}

// readResult returns the result of a read of at least one byte.
func (f *fd) readResult(n int, err error) (int, error) {
	switch {
	case err != nil:
		return 0, callError("read", err)
	case f.readShut.Load() && kern.readsAfterShutdown():
		return 0, io.EOF
	case n == 0:
		f.ended.Store(true)
		return 0, io.EOF
	}
	return n, nil
}

func (f *fd) write(p []byte) (n int, err error) {
	h := &f.w
	if err := f.acquire(h); err != nil {
		return 0, err
	}
	defer f.release(h)
	call := opSend
	if !f.socket {
		call = opWritePipe
	}
	for {
		done, err := f.run(h, &op{call: call, p: f.partOf(p[n:])})
		if err != nil {
			return n, writeError("write", err)
		}
		if n += done.n; n == len(p) {
			return n, nil
		}
		if f.closing() { // else Close would wait as long as the peer makes room in time
			return n, net.ErrClosed
		}
	}
}

func (f *fd) readBuffers(bufs [][]byte) (int64, error) {
	h := &f.r
	if err := f.acquire(h); err != nil {
		return 0, err
	}
	defer f.release(h)
	iov := h.vector()
	*iov = gather(*iov, bufs)
	defer clear(*iov)
	if len(*iov) == 0 {
		return 0, nil
	}
	if f.in.hasAhead() {
		if h.expired() {
			return 0, os.ErrDeadlineExceeded
		}
		return int64(f.in.takeAhead(first(*iov))), nil
	}
	for {
		done, err := f.run(h, &op{call: opReceive, iov: iov})
		if !onlyFiles(done, err) {
			n, err := f.readResult(done.n, err)
			return int64(n), err
		}
		if f.closing() {
			return 0, net.ErrClosed
		}
	}
}

func (f *fd) writeBuffers(bufs *net.Buffers) (total int64, err error) {
	h := &f.w
	if err := f.acquire(h); err != nil {
		return 0, err
	}
	defer f.release(h)
	iov := h.vector()
	defer func() { clear(*iov) }()
	for {
		if *iov = gather(*iov, *bufs); len(*iov) == 0 {
			consume(bufs, 0)
			return total, nil
		}
		o, err := f.run(h, &op{call: opSend, iov: iov})
		if err != nil {
			return total, writeError("write", err)
		}
		total += int64(o.n)
		consume(bufs, o.n)
		if len(*bufs) > 0 && f.closing() { // as in write
			return total, net.ErrClosed
		}
	}
}

func (f *fd) spliceFrom(r io.Reader) (n int64, done bool, err error) { return kern.spliceFrom(f, r) }
func (f *fd) spliceTo(w io.Writer) (n int64, done bool, err error)   { return kern.spliceTo(f, w) }

// An iovec is the struct of readv(2), the same on every Unix.
type iovec struct {
	base *byte
	len  uintptr
}

// iovMax is how many buffers go into one call: IOV_MAX of sys/uio.h.
const iovMax = 1024

// vector returns the vector of the direction.
func (h *ioState) vector() *[]iovec {
	if h.iov == nil {
		h.iov = new([]iovec)
	}
	return h.iov
}

// streamMax is how many bytes of a stream one call moves at most. While the peer makes room, or data, as fast as
// the kernel copies, the call goes on, and nobody looks at the deadline or whether Close was called.
const streamMax = 16 << 20

// partOf returns as much of p, from its start, as one call takes. A message is received by one call.
func (f *fd) partOf(p []byte) []byte {
	most := streamMax
	if f.kind == messages {
		most = ioMax
	}
	return p[:min(len(p), most)]
}

// gather fills iov with the buffers that are not empty, as many as one call takes, and
// returns it.
func gather(iov []iovec, bufs [][]byte) []iovec {
	clear(iov) // or fewer than before would keep the others alive
	iov = iov[:0]
	room := streamMax
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		if len(iov) == iovMax || room == 0 {
			break
		}
		b = b[:min(len(b), room)]
		room -= len(b)
		iov = append(iov, iovec{&b[0], uintptr(len(b))})
	}
	return iov
}

// consume removes n bytes from bufs, and every empty buffer before the next one.
func consume(bufs *net.Buffers, n int) {
	for len(*bufs) > 0 && n >= len((*bufs)[0]) {
		n -= len((*bufs)[0])
		(*bufs)[0] = nil
		*bufs = (*bufs)[1:]
	}
	if n > 0 {
		(*bufs)[0] = (*bufs)[0][n:]
	}
}

// first returns the first of the buffers. Its base points to a buffer of the caller, which is
// in use until the call returns.
func first(iov []iovec) []byte { return unsafe.Slice(iov[0].base, int(iov[0].len)) }

// The attempts: each makes one system call that does not wait.

func readPipe(o *op, sys int) (r result, err error)  { r.n, err = syscall.Read(sys, o.p); return }
func writePipe(o *op, sys int) (r result, err error) { r.n, err = syscall.Write(sys, o.p); return }

// readShared and writeShared are for a pipe that may have been made blocking.
func readShared(o *op, sys int) (r result, err error)  { r.n, err = kern.readNow(sys, o.p); return }
func writeShared(o *op, sys int) (r result, err error) { r.n, err = kern.writeNow(sys, o.p); return }

// receive receives data from a socket, and control messages if there is room for them.
// For data alone a read(2) would do. But read(2) itself closes the descriptors that came
// along, which may sleep. So there is room for them, unless none can come, and they are closed
// elsewhere. A look (MSG_PEEK) takes nothing from the queue.
//
// If too many wait to be closed already, they are closed in this call: that delays calls
// for this peer alone, and this process does not run out of descriptors. The kernel does it
// if there is no room for them. Where files come without data (filesAlone), there is room
// all the same: otherwise such files would look like the end of the stream, and macOS would
// leave them open in this process (soreceive_ctl of bsd/kern/uipc_socket.c).
func receive(o *op, sys int) (result, error) {
	if o.mode&doorbellRead != 0 {
		return receiveBell(o, sys)
	}
	full := disposal.full()
	if len(o.oob) > 0 || o.mode&withoutFiles != 0 || o.flags&syscall.MSG_PEEK != 0 || full && !filesAlone {
		return kern.receive(sys, o)
	}
	room := rightsRooms.Get().(*[rightsRoom]byte)
	o.oob = room[:]
	r, err := kern.receive(sys, o)
	o.oob = nil
	if err == nil && r.oobn > 0 {
		r.files = int32(closeRights(room[:r.oobn], full))
	}
	rightsRooms.Put(room)
	return r, err
}

// closeRights closes the descriptors that receive got, and tells how many there were. It is
// no part of receive, since that must fit on the small stack of a goroutine that waits.
//
//go:noinline
func closeRights(oob []byte, full bool) int {
	if kern.onlyMark(oob) {
		return 0
	}
	fds := descriptorsIn(oob)
	if full {
		for _, fd := range fds {
			closeHurried(fd)
		}
	} else {
		discard(fds...)
	}
	return len(fds)
}

// A bellScratch has room for what one receive takes of a doorbell. A peer can send as many bytes as
// it likes by one call, so they are not taken by the dozen.
type bellScratch struct {
	bytes  [16 << 10]byte // nobody looks at them
	rights [rightsRoom]byte
}

var bellScratches = sync.Pool{New: func() any { return new(bellScratch) }}

// receiveBell takes some bytes of a doorbell. The first file that comes with them ends the connection.
// Close waits for this call, so files are closed elsewhere however many wait. So that they
// do not fill the table of descriptors, they are not taken while many wait, where a look shows them. The
// scratch is not held while the goroutine is parked.
//
//go:noinline
func receiveBell(o *op, sys int) (r result, err error) {
	scratch := bellScratches.Get().(*bellScratch)
	defer bellScratches.Put(scratch)
	take := op{mode: o.mode, p: scratch.bytes[:]}
	if o.mode&withoutFiles == 0 {
		if !filesAlone && disposal.full() {
			take.flags = syscall.MSG_PEEK
			if r, err = kern.receive(sys, &take); err != nil || r.n == 0 {
				return r, err
			}
			if r.got&syscall.MSG_CTRUNC != 0 {
				r.files = 1 // or more
				return r, nil
			}
			take.flags, take.p = 0, take.p[:r.n] // no more, for the next byte may have files
		}
		take.oob = scratch.rights[:]
	}
	r, err = kern.receive(sys, &take)
	if err == nil && r.oobn > 0 {
		fds := descriptorsIn(scratch.rights[:r.oobn])
		disposal.do(len(fds), 0, func(i int) { closeHurried(fds[i]) })
		r.files = int32(len(fds))
	}
	if err == nil && r.got&syscall.MSG_CTRUNC != 0 {
		r.files = max(r.files, 1) // the kernel has let some go, for which there was no descriptor
	}
	return r, err
}

// sendData sends data, and control messages if there are any, to a socket.
func sendData(o *op, sys int) (r result, err error) {
	flags := int(o.flags) | dontWait | noSignal
	if o.iov != nil {
		r.n, err = kern.sendv(sys, *o.iov, flags)
	} else {
		r.n, err = kern.sendmsg(sys, o.p, o.oob, flags)
	}
	return r, err
}

// An opMode has flags for an attempt.
type opMode uint8

const (
	acceptShared  opMode = 1 << iota // another holder may have made the listener blocking
	acceptServing                    // the connection accepted last may not be served yet
	doorbellRead                     // see receiveBell
	withoutFiles                     // no files can come, so a receive needs no room for them
)

// acceptClient accepts a client. If there is none, it lets the goroutine of the
// connection that was accepted last run before it looks a second time. A spin would take
// the CPU from the very goroutine that the next client waits for. A server that serves its
// clients in turn has no such goroutine, and has closed a connection since: see anyUnserved.
func acceptClient(o *op, sys int) (r result, err error) {
	accept := kern.accept
	if o.mode&acceptShared != 0 {
		if err := syscall.SetNonblock(sys, true); err != nil {
			return result{}, err
		}
		accept = kern.acceptShared
	}
	r.n, err = accept(sys)
	if err == syscall.EAGAIN && o.mode&acceptServing != 0 {
		o.mode &^= acceptServing
		runtime.Gosched()
		r.n, err = accept(sys)
	}
	return r, err
}

// ---------------------------------------------------------------------------
// Messages

// recvmsg receives some data, and control messages if there is room for them. If there is
// none, the descriptors among them are closed elsewhere. The caller has acquired f.r.
func (f *fd) recvmsg(p, oob []byte, flags int) (n, oobn, got int, err error) {
	done, err := f.run(&f.r, &op{call: opReceive, p: f.partOf(p), oob: oob, flags: int32(flags)})
	if err == nil && f.readShut.Load() && kern.readsAfterShutdown() {
		if len(oob) > 0 {
			discardRights(oob[:done.oobn])
		}
		return 0, 0, 0, nil
	}
	return done.n, int(done.oobn), int(done.got), err
}

// sendmsg sends some of the data, with the control messages. The caller has acquired
// f.w.
func (f *fd) sendmsg(p, oob []byte, flags int) (int, error) {
	if f.kind == streams { // a message that is too long is for the kernel to refuse
		p = f.partOf(p)
	}
	var giveUp int64 // when to stop waiting for others to receive their files
	for {
		done, err := f.run(&f.w, &op{call: opSend, p: p, oob: oob, flags: int32(flags)})
		if err != syscall.ETOOMANYREFS {
			return done.n, err
		}
		switch {
		case giveUp == 0:
			giveUp = now() + int64(inFlightGrace)
		case now() >= giveUp:
			return 0, err
		}
		if err := f.pollByTimer(&f.w, f.once()); err != nil {
			return 0, err
		}
	}
}

// once returns a function for pollByTimer that makes it pause once.
func (f *fd) once() func(uintptr) bool {
	again := false
	return func(uintptr) bool { done := again; again = true; return done }
}

// inFlightGrace is how long SendFiles waits while this user has as many files in flight
// as the system allows: a receiver that does not receive them delays the others.
const inFlightGrace = 250 * time.Millisecond

func (f *fd) send(p []byte) error {
	h := &f.w
	if err := f.acquire(h); err != nil {
		return err
	}
	defer f.release(h)
	_, err := f.sendWhole(p, nil)
	return err
}

// sendRights sends one message, or in a stream some data, with the files. It returns how
// much of p was sent.
func (f *fd) sendRights(p []byte, files []*os.File) (sent int, err error) {
	h := &f.w
	if err := f.acquire(h); err != nil {
		return 0, err
	}
	defer f.release(h)
	if len(files) == 0 {
		return f.sendWhole(p, nil)
	}
	if limit := kern.filesMax(); len(files) > limit {
		return 0, configError("the number of files", strconv.Itoa(len(files)), "at most "+strconv.Itoa(limit)+" on this system")
	}
	if len(files) == 1 && files[0] != nil { // the usual case, for which no coroutine is needed
		e := withFile(files[0], func(fd uintptr) error {
			sent, err = f.sendWhole(p, syscall.UnixRights(int(fd)))
			return err
		})
		return sent, e
	}
	fds, release, err := holdFiles[int](files)
	if err != nil {
		return 0, err
	}
	defer release()
	return f.sendWhole(p, syscall.UnixRights(fds...))
}

// sendWhole sends all of p as one message, or in a stream, and returns how much was sent.
// The control messages go with the first byte. MSG_EOR ends a message: without it,
// FreeBSD 15 joins it with the next one.
func (f *fd) sendWhole(p, oob []byte) (sent int, err error) {
	flags := 0
	if f.kind == messages {
		flags = syscall.MSG_EOR
		if err := f.sendable(p, oob); err != nil {
			return 0, err
		}
	}
	for {
		n, err := f.sendmsg(p[sent:], oob, flags)
		if err != nil && sent > 0 && f.kind == messages && err != net.ErrClosed {
			// The peer has a part. It must not take the next message for the rest.
			f.torn = cutOff(err)
			syscall.Shutdown(f.sys, syscall.SHUT_WR)
		}
		if err != nil {
			return sent, sendError(err)
		}
		if sent += n; sent >= len(p) {
			return sent, nil
		}
		oob = nil // more follows in a stream, or where messages are split
	}
}

// sendable returns why the message cannot be sent, or nil.
func (f *fd) sendable(p, oob []byte) error {
	switch {
	case f.torn != nil:
		return f.torn
	case len(p) == 0 && len(oob) == 0 && !kern.carriesEmpty():
		return &ruleError{"this system cannot send an empty message", errors.ErrUnsupported}
	case kern.tooLong(f.sys, len(p)):
		return sendError(syscall.EMSGSIZE)
	}
	return nil
}

// sendError is the writeError of a message.
func sendError(err error) error {
	if err == syscall.EMSGSIZE {
		return &classified{os.NewSyscallError("sendmsg", err), ErrMsgTooLong}
	}
	return writeError("sendmsg", err)
}

// acquireRecv begins a receive. The first receive of messages makes the kernel mark them.
// It is not done earlier, since the socket may yet go to a program that does not know the
// mark.
func (f *fd) acquireRecv() error {
	if err := f.acquire(&f.r); err != nil {
		return err
	}
	if f.kind == messages && !f.marked {
		if err := kern.markMessages(f.sys, f.mayBeOthersToo()); err != nil {
			f.release(&f.r)
			return err
		}
		f.marked = true
	}
	return nil
}

// recv receives one message into p.
func (f *fd) recv(p []byte) (int, error) {
	if err := f.acquireRecv(); err != nil {
		return 0, err
	}
	defer f.release(&f.r)
	return f.in.recv(f, p)
}

// recvAppend receives one message of any length behind dst.
func (f *fd) recvAppend(dst []byte) ([]byte, error) {
	if err := f.acquireRecv(); err != nil {
		return dst, err
	}
	defer f.release(&f.r)
	return f.in.recvAppend(f, dst)
}

// nextPart and nextRoom are the messageSource that an fd is for f.in. Only where
// the kernel splits messages does one come in several parts.
func (f *fd) nextPart(p []byte) (n int, ends bool, err error) {
	n, oobn, got, err := f.recvmsg(p, nil, 0)
	if err != nil {
		return 0, false, callError("recvmsg", err)
	}
	ends, err = f.classify(n, oobn, got)
	if err == nil && !ends && f.closing() { // else Close would wait as long as the peer sends parts
		err = net.ErrClosed
	}
	return n, ends, err
}

// classify tells what a receive of n bytes and oobn bytes of control messages was: a message
// or its end (true), a part of a message (false), the end of the connection (io.EOF), or
// a message that the kernel cut off (ErrMsgTooLong).
func (f *fd) classify(n, oobn, got int) (bool, error) {
	switch {
	case n == 0 && !kern.isMessage(got, oobn):
		f.ended.Store(true)
		return false, io.EOF
	case kern.splitsMessages():
		return got&syscall.MSG_EOR != 0, nil
	case got&syscall.MSG_TRUNC != 0:
		return true, ErrMsgTooLong
	}
	return true, nil
}

// nextRoom returns how much room the next part of a message needs. Some kernels do not
// tell the length of a message that is only looked at (MSG_PEEK). They tell whether that
// was all of it.
func (f *fd) nextRoom(have int, spare []byte) (int, error) {
	switch {
	case kern.splitsMessages():
		return max(roomAtLeast, have), nil
	case peekTells:
		n, _, _, err := f.recvmsg(nil, nil, syscall.MSG_PEEK|syscall.MSG_TRUNC)
		return n, callError("recvmsg", err)
	}
	for {
		if len(spare) == 0 {
			spare = make([]byte, roomAtLeast)
		}
		n, _, got, err := f.recvmsg(spare, nil, syscall.MSG_PEEK)
		if err != nil || got&syscall.MSG_TRUNC == 0 {
			return n, callError("recvmsg", err)
		}
		spare = make([]byte, 2*len(spare))
	}
}

// ---------------------------------------------------------------------------
// Files over a connection

// recvFiles receives one byte, or one message, with at most limit descriptors. Data
// that came without them, or is not the zero byte that they travel with, is kept for
// the next read.
func (f *fd) recvFiles(limit int) ([]*os.File, error) {
	if err := f.acquireRecv(); err != nil {
		return nil, err
	}
	defer f.release(&f.r)
	if err := f.in.skipRest(f); err != nil {
		return nil, err
	}
	if f.in.holds() {
		return nil, ErrNoFiles
	}
	p, err := f.roomForFiles()
	if err != nil {
		return nil, err
	}
	got, err := f.recvWithRights(p)
	switch {
	case err != nil && got.n == 0:
		return nil, err
	case len(got.fds) == 0 && err == nil:
		f.in.keep(p[:got.n], got.whole)
		return nil, ErrNoFiles
	case got.n != len(zeroByte) || p[0] != zeroByte[0] || got.whole != (f.kind == messages):
		f.in.keep(p[:got.n], got.whole) // it is data, for the next read
	}
	if err != nil {
		return nil, err
	}
	return asFiles(got.fds, limit)
}

// roomForFiles returns room for the data that files travel with: a byte, or a message,
// for which it waits.
func (f *fd) roomForFiles() ([]byte, error) {
	n := 1
	if f.kind == messages {
		var err error
		if n, err = f.nextRoom(0, nil); err != nil {
			return nil, err
		}
	}
	return make([]byte, max(n, 1)), nil
}

// recvWithFiles receives one message into p and the files that came with it.
func (f *fd) recvWithFiles(p []byte, limit int) (int, []*os.File, error) {
	if err := f.acquireRecv(); err != nil {
		return 0, nil, err
	}
	defer f.release(&f.r)
	if err := f.in.skipRest(f); err != nil {
		return 0, nil, err
	}
	if f.in.holds() {
		n, err := f.in.recv(f, p)
		return n, nil, err
	}
	room := p
	if len(p) == 0 {
		room = make([]byte, 1) // a receive without room waits for nothing
	}
	got, err := f.recvWithRights(room)
	switch {
	case got.whole:
	case err != nil:
		f.in.skip = got.n > 0 // the rest of it is no message of its own
	default: // the files came with the first part
		f.in.keep(room[:got.n], false)
		got.n, err = f.in.recv(f, p)
	}
	if err == nil && got.n > len(p) {
		err = ErrMsgTooLong
	}
	n := min(got.n, len(p))
	if err != nil {
		discard(got.fds...)
		return n, nil, err
	}
	files, err := asFiles(got.fds, limit)
	return n, files, err
}

// recvRights receives some data, and the files that came with it. It returns the data
// also when there is something wrong with the files.
func (f *fd) recvRights(p []byte, limit int) (int, []*os.File, error) {
	if err := f.acquireRecv(); err != nil {
		return 0, nil, err
	}
	defer f.release(&f.r)
	got, err := f.recvWithRights(p)
	if err != nil {
		return got.n, nil, err
	}
	files, err := asFiles(got.fds, limit)
	return got.n, files, err
}

// A parcel is data and the descriptors that came with it.
type parcel struct {
	n     int
	whole bool // it is a whole message
	fds   []int
}

// recvWithRights receives some data with the descriptors that come with it. If something
// is wrong with the descriptors, it still returns the data.
func (f *fd) recvWithRights(p []byte) (got parcel, err error) {
	room := rightsRooms.Get().(*[rightsRoom]byte)
	defer rightsRooms.Put(room)
	n, oobn, flags, err := f.recvmsg(p, room[:], 0)
	if lost, dataStays := kern.rightsLost(err); lost {
		return f.withoutRights(p, err, dataStays)
	}
	if err != nil {
		return got, callError("recvmsg", err)
	}
	got.n = n
	fds, extra, e := passedIn(room[:oobn])
	if f.kind == messages {
		got.whole, err = f.classify(n, oobn, flags)
	} else if n == 0 && len(fds) == 0 { // credentials may come with the end
		f.ended.Store(true)
		err = io.EOF
	}
	discard(extra...)
	if e == nil && flags&syscall.MSG_CTRUNC != 0 {
		e = lostRights(f.sys)
	}
	if err == nil {
		err = e
	}
	if err != nil {
		discard(fds...)
		return got, err
	}
	got.fds = fds
	return got, nil
}

// lostRights returns the error for descriptors that this process could not be given,
// though there was room for as many as a message can carry. Either it has reached its
// limit, or a security module forbids one.
func lostRights(sys int) error {
	spare, err := kern.dup(sys)
	if err != nil {
		return &classified{os.NewSyscallError("recvmsg", err), ErrMsgTooLong}
	}
	syscall.Close(spare) // which is no last close
	return &ruleError{"some files could not be received", ErrMsgTooLong}
}

// withoutRights is for files that the kernel dropped because this process had no
// descriptors left for them: see rightsLost. If the data of a stream is still in the
// queue, it is received now, as it would have been with the files. If it were left there,
// the byte that files travel with would be taken for data.
func (f *fd) withoutRights(p []byte, err error, dataStays bool) (got parcel, _ error) {
	err = &classified{os.NewSyscallError("recvmsg", err), ErrMsgTooLong}
	switch {
	case f.kind == messages && !kern.splitsMessages():
		return got, err // the message went with its files
	case !dataStays: // the data was lost with the files; this is what files travel with
		frame := frameOf(len(zeroByte))
		got.n = copy(p, frame[:])
		return got, err
	}
	var r result
	if ignoringEINTR(func() (e error) { r, e = receive(&op{p: p}, f.sys); return e }) != nil {
		return got, err
	}
	got.n, got.whole = r.n, f.kind == messages && r.got&syscall.MSG_EOR != 0
	return got, err
}

// asFiles returns the descriptors as files, if they are not more than limit. The
// names of the files tell where they came from.
func asFiles(fds []int, limit int) (files []*os.File, err error) {
	if err := checkReceived(len(fds), limit); err != nil {
		discard(fds...)
		return nil, err
	}
	giveUp := now() + int64(closeGrace) // waiting for old descriptors
	for _, fd := range fds {
		file, err := receivedFile(fd, time.Duration(giveUp-now()))
		if err != nil {
			discard(fds[len(files):]...)
			discardFiles(files)
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// receivedFile returns a descriptor that a peer chose as an os.File. os.NewFile registers
// a nonblocking descriptor with the poller, which asks the file what is ready. A file
// system in user space answers that when it likes. So only what polls gets there, and what the
// kernel refuses to register without asking it. That a descriptor blocks now tells nothing: whoever
// sent it can change that before os.NewFile looks.
// If the file gets another descriptor, this waits no longer than the grace for the close of the old.
func receivedFile(fd int, grace time.Duration) (*os.File, error) {
	const name = "received"
	if kern.neverPolls(fd) || kern.polls(fd) {
		return os.NewFile(uintptr(fd), name), nil
	}
	return kern.blockingFile(fd, name, grace)
}

// rightsMax is the most descriptors that one message carries on any system (macOS and
// NetBSD: 512). rightsRoom is room in bytes for as many, so that the kernel never has to
// cut the list, and for the control messages that the kernel adds.
const (
	rightsMax  = 512
	rightsRoom = 4*rightsMax + 280
)

// rightsRooms holds buffers for control messages.
var rightsRooms = sync.Pool{New: func() any { return new([rightsRoom]byte) }}

// passedIn returns the descriptors of SCM_RIGHTS in control messages, and separately the
// descriptors in other control messages.
func passedIn(oob []byte) (fds, extra []int, err error) {
	if len(oob) == 0 {
		return nil, nil, nil
	}
	msgs, err := syscall.ParseSocketControlMessage(oob)
	for _, m := range msgs {
		if fd, ok := kern.extraDescriptor(m); ok {
			extra = append(extra, fd)
		}
		if m.Header.Level != syscall.SOL_SOCKET || m.Header.Type != syscall.SCM_RIGHTS {
			continue
		}
		m.Data = m.Data[:len(m.Data)&^3] // ParseUnixRights panics unless the descriptors are whole
		some, e := syscall.ParseUnixRights(&m)
		if e != nil {
			err = e
		}
		if fds == nil {
			fds = some
		} else {
			fds = append(fds, some...)
		}
	}
	return fds, extra, err
}

// descriptorsIn returns every descriptor in control messages.
func descriptorsIn(oob []byte) []int {
	fds, extra, _ := passedIn(oob) // what is malformed has none
	return append(fds, extra...)
}

// discardRights closes every descriptor in control messages.
func discardRights(oob []byte) { closeRights(oob, false) }

// ReadMsg reads data and control messages, as recvmsg(2) does, for what this package does
// not wrap. It returns how much of p and of oob was filled, and the flags (MSG_CTRUNC and
// the like). It waits until there is something. Descriptors among the control messages
// are close-on-exec and the caller's to close; [syscall.ParseSocketControlMessage] takes
// oob apart. If the control messages do not fit into oob, only descriptors that fit are
// returned; the others are closed. If p is empty, one byte may be lost with them. ReadMsg
// and WriteMsg do not know the frames of a MsgConn that is not native.
func (c *endpoint) ReadMsg(p, oob []byte) (n, oobn, flags int, err error) {
	n, oobn, flags, err = c.end().readMsg(p, oob)
	return n, oobn, flags, c.failed("readmsg", err)
}

// WriteMsg writes data with control messages, as one sendmsg(2) does, and returns how
// much of p was written, which on a stream may be less than all. The control messages go
// with the first byte; Linux sends none without a byte.
func (c *endpoint) WriteMsg(p, oob []byte) (n int, err error) {
	n, err = c.end().writeMsg(p, oob)
	return n, c.failed("writemsg", err)
}

func (f *fd) readMsg(p, oob []byte) (n, oobn, flags int, err error) {
	if err := f.acquireRecv(); err != nil {
		return 0, 0, 0, err
	}
	defer f.release(&f.r)
	if err := f.in.skipRest(f); err != nil {
		return 0, 0, 0, err
	}
	if f.in.holds() {
		n, flags = f.readHeld(p)
		return n, 0, flags, nil
	}
	room := make([]byte, max(rightsRoom, markRoom+len(oob)))
	n, oobn, flags, err = f.recvmsg(p, room, 0)
	if err != nil {
		return 0, 0, 0, callError("recvmsg", err)
	}
	got := room[:oobn]
	ended := !kern.isMessage(flags, oobn)
	if f.kind != messages {
		ended = len(descriptorsIn(got)) == 0 // credentials may come with the end
	}
	if n == 0 && ended && len(p) > 0 {
		return 0, 0, flags, io.EOF
	}
	if f.kind == messages {
		got = kern.unmarked(got)
	}
	oobn, cut := fitRights(oob, got)
	if cut {
		flags |= syscall.MSG_CTRUNC
	}
	return n, oobn, flags, nil
}

// readHeld is readMsg for data that was received ahead.
func (f *fd) readHeld(p []byte) (n, flags int) {
	whole := f.in.whole
	n = f.in.takeAhead(p)
	if whole {
		if f.in.hasAhead() {
			flags = syscall.MSG_TRUNC
		}
		f.in = messageReader{}
	}
	return n, flags
}

// fitRights copies control messages into oob. If they do not fit, it copies only the
// descriptors that fit, closes the others, and reports true.
func fitRights(oob, got []byte) (n int, cut bool) {
	if len(got) <= len(oob) {
		return copy(oob, got), false
	}
	fds, extra, _ := passedIn(got) // what is malformed is cut off
	fit := 0
	for fit < len(fds) && syscall.CmsgSpace(4*(fit+1)) <= len(oob) {
		fit++
	}
	discard(fds[fit:]...)
	discard(extra...)
	if fit > 0 {
		n = copy(oob, syscall.UnixRights(fds[:fit]...))
	}
	return n, true
}

func (f *fd) writeMsg(p, oob []byte) (int, error) {
	h := &f.w
	if err := f.acquire(h); err != nil {
		return 0, err
	}
	defer f.release(h)
	if f.kind == messages {
		return f.sendWhole(p, oob)
	}
	n, err := f.sendmsg(p, oob, 0)
	return n, sendError(err)
}

// ---------------------------------------------------------------------------
// Operations that do not block

func (f *fd) closeWrite() error { return f.shutdown(syscall.SHUT_WR) }

// closeRead shuts the reading direction down. Linux leaves unread data readable after
// shutdown(2), and a peer that waits for room would go on waiting, so closeRead discards
// the data. The BSDs discard it themselves, but do not tell the peer. What the peer sends
// later follows a gap there and must not be read.
func (f *fd) closeRead() error {
	f.readShut.Store(true) // before there is a gap
	if kern.readsAfterShutdown() {
		f.control("recvmsg", f.drain) // otherwise the shutdown itself closes the descriptors in the queue
	}
	if err := f.shutdown(syscall.SHUT_RD); err != nil {
		return err
	}
	// The reads that the shutdown woke come first, and then those that wait for them.
	// What they return must have no gap.
	if f.acquire(&f.r) != nil {
		return nil // closed meanwhile, both ways
	}
	defer f.release(&f.r)
	f.in = messageReader{}
	if !kern.readsAfterShutdown() && !disposal.full() { // otherwise the peer's files stay in the queue until Close
		f.drain()
	}
	return nil
}

// drain receives what is in the queue, up to an amount that a peer cannot raise.
func (f *fd) drain() error {
	room := rightsRooms.Get().(*[rightsRoom]byte)
	defer rightsRooms.Put(room)
	o := op{p: make([]byte, 32<<10), oob: room[:]}
	giveUp := now() + int64(closeGrace) // for all of them
	for range drainMax {
		var r result
		err := ignoringEINTR(func() (e error) { r, e = receive(&o, f.sys); return e })
		if err != nil {
			break
		}
		fds := descriptorsIn(room[:r.oobn]) // Close may wait for this call, so all are closed elsewhere
		disposal.do(len(fds), time.Duration(giveUp-now()), func(i int) { closeHurried(fds[i]) })
		if r.n == 0 && len(fds) == 0 {
			break
		}
	}
	return nil // the next read returns any error
}

// drainMax is how many receives drain makes. A queue holds a few hundred at most.
const drainMax = 4096

// shutdown is shutdown(2). If the peer has closed, or has shut down the same direction
// from its side, the BSDs and macOS return ENOTCONN (soshutdown of uipc_socket.c). Linux
// does not. It is no error here: the direction is shut down already.
func (f *fd) shutdown(how int) error {
	return f.control("shutdown", func() error {
		if err := syscall.Shutdown(f.sys, how); err != syscall.ENOTCONN {
			return err
		}
		return nil
	})
}

func (f *fd) setBuffer(d direction, n int) error {
	if n < 0 {
		return configError("the buffer size", strconv.Itoa(n), "0 or more")
	}
	opt := syscall.SO_RCVBUF
	if d == writing {
		opt = syscall.SO_SNDBUF
	}
	n = max(n, bufferMin)
	n = min(n, maxInt32) // package syscall would take the lower half
	set := func(sys int) error { return syscall.SetsockoptInt(sys, syscall.SOL_SOCKET, opt, n) }
	return f.control("setsockopt", func() error {
		if err := setOption(f.sys, f.mayBeOthersToo(), set); err != syscall.EINVAL {
			return err
		}
		// It is not about n, which is positive. OpenBSD says so of a direction that was shut
		// down, macOS of both (sosetopt, sosetoptlock of uipc_socket.c), as they are once the
		// peer has closed. A buffer is of no use then.
		return nil
	})
}

// bufferMin is the least size of a buffer in bytes, about what Linux makes of a smaller
// one too. The BSDs and macOS refuse 0 (EINVAL) and accept 1: then each call moves one
// byte.
const bufferMin = 4096

// maxInt32 is the largest int of C, on every system.
const maxInt32 = 1<<31 - 1

// maxMessage returns the longest message that can be sent now.
func (f *fd) maxMessage() (n int, err error) {
	err = f.control("getsockopt", func() (err error) {
		n, err = kern.messageMax(f.sys)
		return err
	})
	return n, err
}

// ---------------------------------------------------------------------------
// The process of the peer

func (f *fd) peer() (p Peer, err error) {
	err = f.control("getsockopt", func() (err error) {
		p, err = kern.peerOf(f.sys)
		return err
	})
	return p, err
}

// waitPeer waits for the end of the peer's process.
func (f *fd) waitPeer(ctx context.Context) error {
	if err := contextError(ctx, nil); err != nil {
		return err
	}
	var w processWatch
	err := f.control("", func() (err error) {
		w, err = kern.watchPeer(f.sys)
		return err
	})
	if err == errProcessEnded {
		return nil
	} else if err != nil {
		return err
	}
	defer w.close()
	return w.wait(ctx)
}

// A processWatch notices the end of one process.
type processWatch interface {
	wait(ctx context.Context) error
	close()
}

// watchPeer watches the peer's process by its number. The error is errProcessEnded if
// that process has ended.
func (baseKernel) watchPeer(sys int) (processWatch, error) {
	p, err := kern.peerOf(sys)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	pid, ok := p.PID()
	if !ok {
		return nil, errNoPID
	}
	return kern.watchProcess(pid)
}

var errNoPID = &ruleError{"the system does not tell the process of the peer", errors.ErrUnsupported}

// A processNumber watches a process by asking whether its number exists.
type processNumber int

func (baseKernel) watchProcess(pid int) (processWatch, error) { return processNumber(pid), nil }

func (n processNumber) wait(ctx context.Context) error {
	return pollUntil(ctx, func() (bool, error) { return kern.hasEnded(int(n)), nil })
}
func (n processNumber) close() {}

// hasEnded reports whether no process has the number: kill(2) without a signal.
func (baseKernel) hasEnded(pid int) bool { return syscall.Kill(pid, 0) == syscall.ESRCH }

// pollUntil asks again and again until the answer is yes, or an error, or ctx ends.
func pollUntil(ctx context.Context, ask func() (bool, error)) error {
	deadline, _ := ctx.Deadline()
	p := retryTimer{ctx: ctx, deadline: deadline}
	defer p.stop()
	for {
		if yes, err := ask(); yes || err != nil {
			return err
		}
		if err := p.ended(nil); err != nil {
			return err
		}
		p.pause()
	}
}

// A kqueueWatch watches a process by a kqueue(2) of its own. E is the type of event that
// package syscall has on the system. The runtime's poller does not take a kqueue: it asks
// for EVFILT_WRITE too, which a kqueue does not have (kqueue_kqfilter of kern_event.c). A
// child does not inherit the kqueue.
type kqueueWatch[E any] struct {
	pid, kq int
	kqueue  func() (int, error)
	kevent  func(kq int, changes, events []E, timeout *syscall.Timespec) (int, error)
}

// begin adds the event, which is to be the end of the process. The kernel returns ESRCH
// for a process that has ended, whether or not its parent has waited for it. If the
// kernel does not let this process ask (NetBSD and OpenBSD: EACCES), it watches the
// number instead.
func (w kqueueWatch[E]) begin(end E) (processWatch, error) {
	var err error
	if w.kq, err = w.kqueue(); err != nil {
		return nil, os.NewSyscallError("kqueue", err)
	}
	err = ignoringEINTR(func() error {
		_, err := w.kevent(w.kq, []E{end}, nil, nil)
		return err
	})
	if err == nil {
		return w, nil
	}
	w.close()
	if err == syscall.ESRCH {
		return nil, errProcessEnded
	}
	return processNumber(w.pid), nil
}

// wait asks for the number too: macOS reports only events after the event was added, and
// the process may have been ending just then.
func (w kqueueWatch[E]) wait(ctx context.Context) error {
	return pollUntil(ctx, func() (ended bool, err error) {
		err = ignoringEINTR(func() error {
			var events [1]E
			var now syscall.Timespec
			n, err := w.kevent(w.kq, nil, events[:], &now)
			ended = n > 0 || kern.hasEnded(w.pid)
			return err
		})
		return ended, os.NewSyscallError("kevent", err)
	})
}

func (w kqueueWatch[E]) close() { syscall.Close(w.kq) }

func (f *fd) dupFile(name string) (*os.File, error) {
	sys, err := f.dupSys()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(sys), name), nil
}

// dupSys duplicates the descriptor. It opens a pipe anew where that is possible, so that
// the duplicate has a mode of its own.
func (f *fd) dupSys() (sys int, err error) {
	err = f.control("dup", func() (err error) {
		if sys, err = kern.reopen(f.sys); err == nil {
			return nil
		}
		f.markShared()
		sys, err = kern.dup(f.sys)
		return err
	})
	return sys, err
}

func (f *fd) localAddr() Addr  { return f.name(kern.sockName) }
func (f *fd) remoteAddr() Addr { return f.name(kern.peerName) }

// name returns the address that the kernel tells. If the kernel tells nothing, as for a
// closed end, it is unnamed.
func (f *fd) name(get func(sys int) (Addr, error)) Addr {
	addr := unnamed
	f.control("", func() error {
		a, err := get(f.sys)
		if err == nil {
			addr = a
		}
		return err
	})
	return addr
}

// control makes a call on the descriptor that does not block.
func (f *fd) control(name string, call func() error) error {
	if err := f.incref(); err != nil {
		return err
	}
	defer f.decref()
	return callError(name, ignoringEINTR(call))
}

// ---------------------------------------------------------------------------
// Errors

// writeError is the callError of a write. The errors that the systems have for a peer
// that is gone all match EPIPE. macOS returns EPROTOTYPE while the peer is closing.
func writeError(call string, err error) error {
	switch err {
	case syscall.EPROTOTYPE:
		err = syscall.ECONNRESET
		fallthrough
	case syscall.ECONNRESET, syscall.ENOTCONN:
		return &classified{os.NewSyscallError(call, err), syscall.EPIPE}
	}
	return callError(call, err)
}

// classify is the callError of a call that takes an address.
func classify(call string, err error) error {
	switch e := callError(call, err); err {
	case syscall.EADDRINUSE, syscall.EEXIST:
		return &classified{e, ErrAddrInUse}
	case syscall.ENAMETOOLONG:
		return &classified{e, ErrNameTooLong}
	default:
		return e
	}
}

// errnoOf returns the errno in err, or err itself if there is none. errors.As would do
// too, but it brings reflection into programs that have no other use for it.
func errnoOf(err error) error {
	for inner := err; inner != nil; {
		switch e := inner.(type) {
		case syscall.Errno:
			return e
		case interface{ Unwrap() error }:
			inner = e.Unwrap()
		default:
			return err
		}
	}
	return err
}

// ---------------------------------------------------------------------------
// System calls

// A baseKernel has a method for each thing that differs between the systems, in the form
// that works on all of them. The type kernel of each system embeds it, and has methods of
// its own where the system can do better.
type baseKernel struct{}

// kern is the kernel of this system.
var kern kernel

// holdsLock reports whether this process holds the lock at the path. It is for systems
// where that must be known before the file is opened.
func (baseKernel) holdsLock(string) (held bool, unlock func()) { return false, func() {} }

func (baseKernel) newPipe(p *[2]int) error { return syscall.Pipe(p[:]) }

// readNow and writeNow transfer what can be transferred at once, whether or not the
// pipe was made blocking. Where the kernel has no call for that they may wait.
func (baseKernel) readNow(sys int, p []byte) (int, error)  { return syscall.Read(sys, p) }
func (baseKernel) writeNow(sys int, p []byte) (int, error) { return syscall.Write(sys, p) }

// receive is recvmsg(2) without waiting. The descriptors that come are close-on-exec
// before another goroutine can start a child.
func (baseKernel) receive(sys int, o *op) (r result, err error) {
	if cmsgCloexec == 0 {
		syscall.ForkLock.RLock() // no call here waits, so no fork waits long for the lock
		defer syscall.ForkLock.RUnlock()
	}
	flags := int(o.flags) | dontWait | cmsgCloexec
	var n, oobn, got int
	if o.iov != nil {
		n, oobn, got, err = kern.recvv(sys, *o.iov, o.oob, flags)
	} else {
		n, oobn, got, err = kern.recvmsg(sys, o.p, o.oob, flags)
	}
	r.n, r.oobn, r.got = n, int32(oobn), int32(got)
	if cmsgCloexec == 0 && err == nil {
		for _, fd := range descriptorsIn(o.oob[:r.oobn]) {
			syscall.CloseOnExec(fd)
		}
	}
	return r, err
}

// look looks whether a receive would find something, if that can be told for less than the
// receive costs. It returns EAGAIN if there is nothing, and any other error for the receive: the
// kernel tells the error of a socket only once (sock_error of Linux' include/net/sock.h).
func (baseKernel) look(int) error { return nil }

// isEmpty reports whether a socket has no byte in its queue; an empty message may be there.
func (baseKernel) isEmpty(int) bool { return false }

// recvv and sendv use only the first buffer where package syscall does not reach
// readv(2). That is allowed: a transfer may be short.
func (baseKernel) recvv(sys int, iov []iovec, oob []byte, flags int) (n, oobn, got int, err error) {
	return kern.recvmsg(sys, first(iov), oob, flags)
}

func (baseKernel) sendv(sys int, iov []iovec, flags int) (int, error) {
	return kern.sendmsg(sys, first(iov), nil, flags)
}

// hidesUser reports whether the id stands for many users. Only Linux has user namespaces.
func (baseKernel) hidesUser(int) bool { return false }

// closeCollects reports whether the close of a socket may close what is in the queues of others.
func (baseKernel) closeCollects() bool { return false }

// hasData reports whether data is in the queue, where that can be told without a receive.
func (baseKernel) hasData(int) bool { return false }

// refuseRights has the system refuse descriptors that are sent to the socket from now on, and to those
// of its clients if it listens.
func (baseKernel) refuseRights(int) error { return syscall.ENOPROTOOPT }

// drained reports whether neither files nor messages are in the queue of a connection that no other
// process has, and nothing can come any more. It is false where that is not known. An empty
// message is not seen if it is unmarked.
func (baseKernel) drained(sys int, messages, marked bool) bool { return false }

// dropList removes the access control list that a file may have from its folder, and whose effect a mode
// with permissions for the group would have.
func (baseKernel) dropList(int) error { return nil }

// inlineUrgent makes a stream deliver urgent data (MSG_OOB) like any other data, where
// local sockets have urgent data.
func (baseKernel) inlineUrgent(sys int, others bool) error { return nil }

// hurry makes a call that may sleep. Where a signal ends such a sleep, it sends signals
// meanwhile.
func (baseKernel) hurry(call func()) { call() }

// leaveCPU moves the calling thread to another CPU, where the system can do that: see the
// method for Linux.
func (baseKernel) leaveCPU() {}

func leaveCPU() { kern.leaveCPU() }

// yieldCPU is the function that lets the other threads of the CPU run, nil where the policy
// was not measured.
var yieldCPU = kern.yieldCPU()

func (baseKernel) yieldCPU() func() { return nil }

// domain returns the address family of a socket.
func (baseKernel) domain(sys int) (int, error) {
	switch sa, err := syscall.Getsockname(sys); sa.(type) {
	case nil:
		return 0, os.NewSyscallError("getsockname", err)
	case *syscall.SockaddrUnix:
		return syscall.AF_UNIX, nil
	}
	return syscall.AF_UNSPEC, nil
}

// neverPolls reports whether the poller refuses the descriptor without a question to the file.
func (baseKernel) neverPolls(int) bool { return false }

// polls reports whether the descriptor may be given to the poller: a socket, pipe or
// FIFO. It does not ask a file system. lseek(2) fails with ESPIPE on these alone, and on
// terminals, which no peer serves.
func (baseKernel) polls(sys int) bool {
	err := ignoringEINTR(func() error {
		_, err := syscall.Seek(sys, 0, io.SeekCurrent)
		return err
	})
	return err == syscall.ESPIPE
}

// blockingFile returns the descriptor as an os.File that does not use the poller. The
// descriptor is that of a file or folder, for which nonblocking mode has no meaning.
func (baseKernel) blockingFile(fd int, name string, _ time.Duration) (*os.File, error) {
	if err := syscall.SetNonblock(fd, false); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// extraDescriptor returns the descriptor in a control message that is not SCM_RIGHTS.
func (baseKernel) extraDescriptor(syscall.SocketControlMessage) (int, bool) { return 0, false }

// onlyMark reports whether there is no control message but that of markMessages.
func (baseKernel) onlyMark([]byte) bool { return false }

// readsAfterShutdown reports whether data of the peer may still arrive after a shutdown
// of the reading side, since the peer is not told of it.
func (baseKernel) readsAfterShutdown() bool { return true }

// hasNoWriter reports whether nobody has the writing end of a pipe any more.
func (baseKernel) hasNoWriter(sys int) bool {
	if syscall.SetNonblock(sys, true) != nil {
		return false
	}
	n, err := syscall.Read(sys, make([]byte, 1))
	return err == nil && n == 0
}

// hungUp reports whether a FIFO had a writer that left, where the kernel tells.
func (baseKernel) hungUp(int) bool { return false }

// primedFIFO is for fifoQuiet: see the method for FreeBSD.
func (baseKernel) primedFIFO(context.Context, *fd, string) *fd { return nil }

// markMessages makes the kernel mark messages where an empty message would look like the
// end. isMessage tells for a receive of no bytes whether it was a message, or a part of
// one. unmarked returns the control messages without the mark.
func (baseKernel) markMessages(int, bool) error { return nil }
func (baseKernel) isMessage(int, int) bool      { return true }
func (baseKernel) unmarked(oob []byte) []byte   { return oob }

// filesMax is the most descriptors that the kernel takes in one message.
func (baseKernel) filesMax() int { return maxFiles }

// rightsLost reports whether err means that the kernel dropped the files that came, in a
// receive that had room for control messages. dataStays tells whether the data that they
// came with is still in the queue of a stream. Linux cuts the list of files off instead.
func (baseKernel) rightsLost(err error) (lost, dataStays bool) { return false, false }

// messageMax returns the longest message that goes in one call. On FreeBSD that is
// SO_SNDBUF, net.local.seqpacket.maxseqpacket by default: sosend_generic of
// sys/kern/uipc_socket.c refuses a longer one. FreeBSD 15 does not refuse it, and ends a
// message wherever it has copied that much; there tooLong keeps to the limit.
func (baseKernel) messageMax(sys int) (int, error) {
	return syscall.GetsockoptInt(sys, syscall.SOL_SOCKET, syscall.SO_SNDBUF)
}

// tooLong reports whether a message exceeds a limit for which the kernel does not return
// EMSGSIZE.
func (baseKernel) tooLong(sys, n int) bool { return false }

// splitsMessages reports whether a long message may come in several parts: see the method for
// FreeBSD. carriesEmpty reports whether a message may be empty.
func (baseKernel) splitsMessages() bool { return false }
func (baseKernel) carriesEmpty() bool   { return true }

// No other system but Linux splices.
func (baseKernel) spliceFrom(*fd, io.Reader) (int64, bool, error) { return 0, false, nil }
func (baseKernel) spliceTo(*fd, io.Writer) (int64, bool, error)   { return 0, false, nil }

// ignoringEINTR makes a call that does not block, and makes it again if a signal interrupted
// it. Copies of it and of a few others, one for each caller, would make a small program 4 kB larger.
//
//go:noinline
func ignoringEINTR(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR {
			return err
		}
	}
}

// newDescriptors calls create, and makes the descriptors that it made close-on-exec and
// nonblocking before another goroutine can start a child. Where the call in create takes
// socketFlags, it has done both. Elsewhere newDescriptors does it under the lock that every
// fork of this process waits for.
func newDescriptors(create func() error, made ...*int) error {
	if socketFlags != 0 {
		return ignoringEINTR(create)
	}
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := ignoringEINTR(create); err != nil {
		return err
	}
	for _, fd := range made {
		syscall.CloseOnExec(*fd)
		if err := syscall.SetNonblock(*fd, true); err != nil {
			for _, fd := range made {
				syscall.Close(*fd)
			}
			return err
		}
	}
	return nil
}

func newSocket(typ int) (sys int, err error) {
	err = newDescriptors(func() (err error) {
		sys, err = syscall.Socket(syscall.AF_UNIX, typ|socketFlags, 0)
		return err
	}, &sys)
	return sys, os.NewSyscallError("socket", err)
}

// accept is for systems without accept4(2). The listener does not
// block, so neither does a fork that waits for the lock.
func (baseKernel) accept(sys int) (conn int, err error) {
	err = newDescriptors(func() (err error) {
		conn, _, err = syscall.Accept(sys)
		return err
	}, &conn)
	return conn, acceptError(sys, err)
}

// acceptShared is accept for a listener that another holder can make blocking just before that call, and
// take the client, where the system has a limit for the wait that follows.
func (baseKernel) acceptShared(sys int) (int, error) { return kern.accept(sys) }

// acceptError treats a client as one that gave up if package syscall refused it: that
// returns EINVAL if the client is bound to a path too long for its sockaddr_un.
func acceptError(sys int, err error) error {
	if err == syscall.EINVAL && (isListening(sys, streams) == nil || isListening(sys, messages) == nil) {
		return syscall.ECONNABORTED
	}
	return err
}

// dup duplicates a descriptor, close-on-exec, where package syscall
// does not reach F_DUPFD_CLOEXEC.
func (baseKernel) dup(sys int) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	d, err := syscall.Dup(sys)
	if err == nil {
		syscall.CloseOnExec(d)
	}
	return d, err
}

// reopen opens the pipe or FIFO of a descriptor anew, in the same direction and
// nonblocking, where the system can: the error matches errors.ErrUnsupported if not.
func (baseKernel) reopen(int) (int, error) { return -1, errors.ErrUnsupported }

// closesOnExec reports whether a descriptor is close-on-exec, where package syscall
// reaches F_GETFD.
func (baseKernel) closesOnExec(int) bool { return false }

// sendmsg and recvmsg are sendmsg(2) and recvmsg(2) as package syscall has them.
func (baseKernel) sendmsg(sys int, p, oob []byte, flags int) (int, error) {
	return syscall.SendmsgN(sys, p, oob, nil, flags)
}

func (baseKernel) recvmsg(sys int, p, oob []byte, flags int) (n, oobn, got int, err error) {
	n, oobn, got, _, err = syscall.Recvmsg(sys, p, oob, flags)
	return min(n, len(p)), oobn, got, err // it asks for a byte that p has no room for
}

// fullOrTooLong is the error of a send that needs so much room in a queue: EAGAIN if it
// fits once the queue is empty, EMSGSIZE if it never does. Some kernels return one for
// the other. The size of the queue is the block size that they report for the socket: see
// the function behind stat of uipc_usrreq.c.
func fullOrTooLong(sys, need int) error {
	size, err := queueSize(sys)
	switch {
	case err != nil:
		return err
	case need > size:
		return syscall.EMSGSIZE
	}
	return syscall.EAGAIN
}

// queueSize returns the size in bytes of the queue that the socket sends to.
func queueSize(sys int) (int, error) {
	var st syscall.Stat_t
	err := ignoringEINTR(func() error { return syscall.Fstat(sys, &st) })
	return int(st.Blksize), err
}

// bind binds the socket to a target that fits into a sockaddr_un.
func bind(sys int, target string) error {
	sa := sockAddr(target)
	return classify("bind", ignoringEINTR(func() error { return syscall.Bind(sys, sa) }))
}

func open(path string, flags int) (fd int, err error) {
	err = ignoringEINTR(func() (err error) {
		fd, err = syscall.Open(path, flags, 0o600)
		return err
	})
	return fd, err
}

// readFile reads a file of the system that is short. os.ReadFile and os.MkdirTemp bring os.FileInfo along,
// 8 kB of a small program.
func readFile(path string) (text []byte, err error) {
	sys, err := open(path, syscall.O_RDONLY|syscall.O_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer syscall.Close(sys)
	var piece [4096]byte
	for {
		var n int
		err := ignoringEINTR(func() (err error) { n, err = syscall.Read(sys, piece[:]); return err })
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return text, nil
		}
		text = append(text, piece[:n]...)
	}
}

// makeFolder makes a new folder in dir.
func makeFolder(dir string) (path string, err error) {
	const attempts = 100
	for range attempts {
		path = joinPath(dir, freshName())
		if err = ignoringEINTR(func() error { return syscall.Mkdir(path, 0o700) }); err != syscall.EEXIST {
			break
		}
	}
	return path, os.NewSyscallError("mkdir", err)
}

// flock takes or gives up the flock(2) of an open file, without waiting: the error is
// EWOULDBLOCK if another has it.
func flock(fd int, take bool) error {
	how := lockUN
	if take {
		how = lockEX | lockNB
	}
	return ignoringEINTR(func() error { return kern.sysFlock(fd, how) })
}

// sys/file.h, the same on every system that has flock.
const (
	lockEX = 2
	lockNB = 4
	lockUN = 8
)

// A dirEntry is what the name of a file leads to.
type dirEntry struct {
	id              fileID
	typ             uint32 // S_IFSOCK, ...
	socket, regular bool
	empty           bool
	uid             int
}

func lstat(path string) (dirEntry, error) {
	var st syscall.Stat_t
	if err := ignoringEINTR(func() error { return syscall.Lstat(path, &st) }); err != nil {
		return dirEntry{}, err
	}
	return entryOf(&st), nil
}

func entryOf(st *syscall.Stat_t) dirEntry {
	typ := uint32(st.Mode) & syscall.S_IFMT
	return dirEntry{
		id: idOf(st), typ: typ, socket: typ == syscall.S_IFSOCK, regular: typ == syscall.S_IFREG,
		empty: st.Size == 0, uid: int(st.Uid),
	}
}

// isLock reports whether the file is a lock such as openLock makes. A file that is not
// empty is another program's. It serves as the lock, but is neither removed nor replaced.
func (e dirEntry) isLock() bool { return e.regular && e.empty }

// madeHere reports whether this process can have made the file. It matters for root
// alone: only root could change another user's file.
func (e dirEntry) madeHere() bool { return e.uid == 0 || os.Geteuid() != 0 }

func fstatID(fd int) fileID {
	st, err := fstat(fd)
	if err != nil {
		return fileID{}
	}
	return idOf(&st)
}

// fstat is not copied to its callers: see ignoringEINTR.
//
//go:noinline
func fstat(sys int) (st syscall.Stat_t, err error) {
	err = ignoringEINTR(func() error { return syscall.Fstat(sys, &st) })
	return st, os.NewSyscallError("fstat", err)
}

func idOf(st *syscall.Stat_t) fileID { return fileID{uint64(st.Dev), uint64(st.Ino)} }

// ---------------------------------------------------------------------------
// Shared memory

// newMemory makes a memory object of that size, close-on-exec and without a name.
func newMemory(size int) (memoryFiles, error) { return kern.newMemory(size) }

// sealMemory keeps the object from shrinking and growing. With ownerWrites it also keeps
// every mapping but those that exist from writing to it.
func sealMemory(f *os.File, ownerWrites bool) error {
	return withFile(f, func(sys uintptr) error { return kern.sealMemory(int(sys), ownerWrites) })
}

// sysMemory tells the size of a memory object, if it is one that cannot shrink.
func sysMemory(sys uintptr) (memoryInfo, error) { return kern.checkMemory(int(sys)) }

// sealedMemory describes memory by its seals. With the seal shrink it keeps every page
// that it has; with one of the seals write it cannot be written. get is the number of
// F_GET_SEALS, which fails with EINVAL for a file that is not memory. Not every system
// has fcntl(2) by number, so the kernels that know seals pass theirs.
func sealedMemory(sys int, fcntl func(sys, cmd, arg int) (int, error), get, shrink, write int) (memoryInfo, error) {
	seals, err := fcntl(sys, get, 0)
	if err == syscall.EINVAL {
		return memoryInfo{}, &ruleError{what: "the file is not memory"}
	} else if err != nil {
		return memoryInfo{}, os.NewSyscallError("fcntl", err)
	}
	if seals&shrink == 0 {
		return memoryInfo{}, &ruleError{what: "the memory can shrink: it has no F_SEAL_SHRINK"}
	}
	st, err := fstat(sys) // its size cannot become less any more
	if err != nil {
		return memoryInfo{}, err
	}
	mode, err := fcntl(sys, syscall.F_GETFL, 0)
	if err != nil {
		return memoryInfo{}, os.NewSyscallError("fcntl", err)
	}
	closed := seals&write != 0
	return memoryInfo{size: st.Size, writable: mode&syscall.O_ACCMODE == syscall.O_RDWR && !closed, punchable: !closed}, nil
}

// The methods below are for systems that cannot keep memory from shrinking. There an
// access to a page that was cut off ends the process (SIGBUS).
// runtime/debug.SetPanicOnFault could prevent that, but belongs to a package that this
// one does not use.
var errNoMemory = &ruleError{"this system has no memory that cannot shrink", errors.ErrUnsupported}

func (baseKernel) newMemory(int) (memoryFiles, error)  { return memoryFiles{}, errNoMemory }
func (baseKernel) sealMemory(int, bool) error          { return errNoMemory }
func (baseKernel) checkMemory(int) (memoryInfo, error) { return memoryInfo{}, errNoMemory }
func (baseKernel) openReadOnly(int) (*os.File, error)  { return nil, errNoMemory }
func (baseKernel) keepsPages(memoryInfo) error         { return nil }
func (baseKernel) mapAt(mem []byte, prot, flags, sys, offset int) error {
	return errNoMemory
}

// mapMemory maps the first size bytes of a memory object. If repeat > 0, the last repeat of
// these bytes are mapped once more, directly behind.
func mapMemory(f *os.File, size, repeat int, write bool) (mem []byte, err error) {
	prot := syscall.PROT_READ
	if write {
		prot |= syscall.PROT_WRITE
	}
	err = withFile(f, func(sys uintptr) error {
		if repeat == 0 {
			mem, err = syscall.Mmap(int(sys), 0, size, prot, syscall.MAP_SHARED)
		} else {
			mem, err = kern.mapTwice(int(sys), size, repeat, prot)
		}
		return os.NewSyscallError("mmap", err)
	})
	return mem, err
}

// mapTwice reserves address space for both mappings first, and then puts them there, so
// that nothing else can get in between.
func (baseKernel) mapTwice(sys, size, repeat, prot int) ([]byte, error) {
	mem, err := syscall.Mmap(-1, 0, size+repeat, syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, err
	}
	const flags = syscall.MAP_SHARED | syscall.MAP_FIXED
	if err = kern.mapAt(mem[:size], prot, flags, sys, 0); err == nil {
		err = kern.mapAt(mem[size:], prot, flags, sys, size-repeat)
	}
	if err != nil {
		syscall.Munmap(mem)
		return nil, err
	}
	return mem, nil
}

// unmapMemory unmaps what mapMemory returned.
func unmapMemory(mem []byte, repeat int) error {
	return os.NewSyscallError("munmap", syscall.Munmap(mem))
}

// vacateMemory puts empty memory in the place of a mapping. The addresses stay readable
// for ever, and the object is released.
func vacateMemory(mem []byte) {
	kern.mapAt(mem, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_FIXED, -1, 0)
}

// openReadOnly opens a memory object once more, for reading alone.
func openReadOnly(f *os.File) (ro *os.File, err error) {
	err = withFile(f, func(sys uintptr) (err error) {
		ro, err = kern.openReadOnly(int(sys))
		return err
	})
	return ro, err
}

func duplicateSys(sys uintptr) (uintptr, error) {
	n, err := kern.dup(int(sys))
	return uintptr(n), os.NewSyscallError("dup", err)
}

// A farBell is the peer's end of a doorbell, before it is sent.
type farBell struct{ *os.File }

func (b farBell) close() { b.Close() }

// newBell makes a doorbell: a pair of sockets. A pipe would be cheaper. But who has a
// descriptor of a pipe, or of the end of a socket that is read, can hold its lock for as
// long as it likes (in a page that userfaultfd(2) or FUSE serves: pipe_write of fs/pipe.c,
// unix_stream_read_generic of net/unix/af_unix.c), and a read of it then waits as long. So
// the near end is sent to nobody, and nobody but the peer reads the far one. It refuses files where
// the system can do that. The far end is blocking, so that os.NewFile does not register it with the
// poller.
func newBell() (*fd, farBell, error) {
	var s [2]int
	err := newDescriptors(func() (err error) {
		s, err = syscall.Socketpair(syscall.AF_UNIX, socketType(streams)|socketFlags, 0)
		return err
	}, &s[0], &s[1])
	if err != nil {
		return nil, farBell{}, os.NewSyscallError("socketpair", err)
	}
	near := newConnFD(s[0], streams)
	if near.refuseFiles() == nil {
		near.files.Store(filesGone) // nobody has had the far end yet
	}
	if err := syscall.SetNonblock(s[1], false); err != nil {
		near.close()
		syscall.Close(s[1])
		return nil, farBell{}, os.NewSyscallError("fcntl", err)
	}
	return near, farBell{os.NewFile(uintptr(s[1]), "doorbell")}, nil
}

// A bellRoom is empty: see bellScratch.
type bellRoom struct{}

// awaitBell waits until the bell is rung, and takes some of its bytes.
func awaitBell(f *fd, _ *bellRoom) error {
	h := &f.r
	if err := f.acquire(h); err != nil {
		return err
	}
	defer f.release(h)
	done, err := f.run(h, &op{call: opReceive, mode: doorbellRead | f.readMode()})
	if lost, _ := kern.rightsLost(err); lost || done.files > 0 {
		return errFilesInDoorbell
	}
	if err == syscall.ECONNRESET { // doorbells were left unread
		return io.EOF
	}
	_, err = f.readResult(done.n, err)
	return err
}

// ringBell sends one byte. It does not wait: a socket that is full holds enough of them. io.EOF
// means that the other end is closed.
func ringBell(f *fd) error {
	if err := f.incref(); err != nil {
		return err
	}
	defer f.decref()
	for {
		_, err := kern.sendmsg(f.sys, zeroByte[:], nil, dontWait|noSignal)
		switch err {
		case syscall.EINTR:
		case nil, syscall.EAGAIN, syscall.ENOBUFS:
			return nil
		case syscall.EPIPE, syscall.ECONNRESET, syscall.ENOTCONN, syscall.EPROTOTYPE: // see writeError
			return io.EOF
		default:
			return callError("sendmsg", err)
		}
	}
}

// sendPlainHello sends a hello without files, and the early data behind it.
func sendPlainHello(f *fd, p []byte) (sent int, err error) { return f.write(p) }

// sendHello sends the hello with the memory and the far ends of the doorbells.
func sendHello(f *fd, memory *os.File, far []farBell, hello []byte) (sent int, err error) {
	files := []*os.File{memory}
	for _, bell := range far {
		files = append(files, bell.File)
	}
	return f.sendRights(hello, files)
}

// A helloFile is a file that came with a hello. The peer chose it, so it is closed as
// every file is that came unasked.
type helloFile struct{ *os.File }

func discardHelloFiles(with []helloFile) {
	var files []*os.File
	for _, r := range with {
		if r.File != nil { // it was not taken
			files = append(files, r.File)
		}
	}
	releaseFiles(files)
}

// memory returns the file, which the caller closes, if it is memory that the peer can only
// write.
func (r *helloFile) memory() (*os.File, memoryInfo, error) {
	info, err := checkMemory(r.File)
	if err == nil {
		err = kern.keepsPages(info)
	}
	if err != nil {
		return nil, info, err
	}
	file := r.File
	r.File = nil
	return file, info, nil
}

// doorbell returns the far end of a doorbell, over a duplicate of r. The close of r is not the last one
// of the socket then, and cannot sleep.
//
// Nobody reads it, so it needs no option, for which its other holders could make this end wait.
func (r *helloFile) doorbell(*fd) (*fd, error) {
	check := func(sys int) error { return isConnected(sys, streams) }
	f, err := ofDuplicate(r.File, check, func(sys int) (*fd, error) { return adoptSocket(sys, streams) })
	if err == nil {
		r.File.Close()
		r.File = nil
	}
	return f, err
}

// expect does nothing: what a socket holds goes with it.
func (f *fd) expect(sequel) {}

// recvHello receives some of a hello and what came with it. An idle end waits in here, so it
// does not hold room for rights meanwhile.
func recvHello(f *fd, p []byte) (n int, with []helloFile, err error) {
	if n, err = f.awaitReceive(p); n > 0 || err != nil {
		return n, nil, err
	}
	n, files, err := f.recvRights(p, helloFiles)
	for _, file := range files {
		with = append(with, helloFile{file})
	}
	return n, with, err
}

// awaitReceive waits until there is data or the end of the stream, and takes nothing. If
// RecvFiles kept data for the next read, it copies that to p.
func (f *fd) awaitReceive(p []byte) (n int, err error) {
	if err := f.acquireRecv(); err != nil {
		return 0, err
	}
	defer f.release(&f.r)
	if f.in.hasAhead() {
		if f.r.expired() {
			return 0, os.ErrDeadlineExceeded
		}
		return f.in.takeAhead(p), nil
	}
	_, _, _, err = f.recvmsg(p[:1], nil, syscall.MSG_PEEK)
	return 0, callError("recvmsg", err)
}
