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

// network is what Addr.Network says: local sockets are AF_UNIX sockets here.
const network = "unix"

// ---------------------------------------------------------------------------
// What only Unix has

// A SysListenConfig holds the options of a listener that only Unix has. They
// concern the socket file; with an abstract name, which has none, they are an
// error.
type SysListenConfig struct {
	// Mode is the exact permission bits of the socket file, instead of those
	// that [ListenConfig.Access] stands for. A client needs permission to
	// write. 0 leaves them to Access.
	Mode fs.FileMode

	// UID and GID are the owner and the group that the socket file is given
	// before anybody can connect, as by chown(2), which limits who may say so. 0
	// leaves them as they are.
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

// validID reports whether chown(2) takes the id for what it is: of a greater one the
// kernel sees the low 32 bits, which may be root's, and the last one of those is none.
func validID(id int) bool { return id >= 0 && uint64(id) < 1<<32-1 }

const idRule = "0 to 4294967294"

func modeError(field string, mode fs.FileMode) error {
	return configError(field, "0"+strconv.FormatUint(uint64(mode), 8), "permission bits, at most 0777")
}

// A SysDialer holds the options of a dialer that only this system has. There
// are none on Unix.
type SysDialer struct{}

// File returns a duplicate of the listening descriptor, to hand the listener
// over to another process, which adopts that of a Listener with [FileListener].
// The socket listens until both are closed. The socket file stays with l: to hand
// that over too, set [ListenConfig.KeepName].
func (l *server) File() (*os.File, error) {
	f, err := l.sys.dupFile(l.addr.String())
	if err != nil {
		return nil, opError("file", Addr{}, l.addr, err)
	}
	return f, nil
}

// FileListener returns a listener over a duplicate of f, which must be a
// listening stream socket of the local family (AF_UNIX); anything else is
// refused. f stays the caller's to close, whatever the result, and becomes
// nonblocking, as the two share that mode. Who may connect is up to the socket
// file as it is, which the listener never removes; an abstract name, which no
// permission guards, serves this user and root alone until [Listener.SetAccess]
// says otherwise. Its Addr is what the
// socket was bound to (getsockname(2)): where a [Listener] had to use a temporary
// name, because of [TakeoverAlways] or a long path, that leads nowhere.
func FileListener(f *os.File) (*Listener, error) {
	fd, err := adopt(f, streams, isListening)
	if err != nil {
		return nil, opError("file", Addr{}, Addr{}, err)
	}
	return adoptedListener(fd), nil
}

// adoptedListener returns the Listener of a socket that no ListenConfig made. If it
// has no file for the kernel to guard, it is for this user, until SetAccess says
// otherwise.
func adoptedListener(fd *fd) *Listener {
	l := &Listener{server{sys: &listener{fd: fd}, addr: fd.localAddr()}}
	l.setRules(l.addr.kind != pathAddr, nil)
	return l
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
func (everyUnix) nameTarget(name string) (string, error) {
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

// squattable reports whether anybody may have taken the address. Nobody can
// where the folder's permissions forbid it, and the user chose the folder.
func squattable(a Addr) bool { return a.kind == nameAddr }

// sockAddr returns the socket address of a target that fits into one.
func sockAddr(target string) *syscall.SockaddrUnix { return &syscall.SockaddrUnix{Name: target} }

// sunPathMax is the longest path, or name, that a sockaddr_un of package syscall
// takes.
const sunPathMax = len(syscall.RawSockaddrUnix{}.Path) - 1

// addrOf returns the Addr that the kernel gave as sa.
func addrOf(sa syscall.Sockaddr) Addr {
	un, ok := sa.(*syscall.SockaddrUnix)
	switch {
	case !ok || un.Name == "" || abstractNames && un.Name == "@":
		return Addr{}
	case abstractNames && un.Name[0] == '@':
		return Name(un.Name[1:])
	}
	return Path(un.Name)
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
	file    *socketFile // nil: an abstract name, or the file is somebody else's
	givenUp atomic.Bool // set by the one Close that gives the file up
	fdName  string      // what the service manager calls it
	kind    transport   // of its connections
}

func listen(target string, kind transport, lc *ListenConfig) (*listener, error) {
	if err := lc.Sys.check(isAbstract(target)); err != nil {
		return nil, err
	}
	sys, err := newSocket(socketType(kind))
	if err != nil {
		return nil, err
	}
	l := &listener{fd: newFD(sys), kind: kind}
	l.limitSpin(lc.Spin)
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
	// The kernel lowers it to its own limit, but takes no more than 32 bits, and some
	// add a half first.
	if backlog = min(backlog, 1<<30); backlog == 0 {
		backlog = 1<<16 - 1
	}
	return os.NewSyscallError("listen", control(func() error { return syscall.Listen(sys, backlog) }))
}

// accept waits for a client. One that gave up meanwhile (ECONNABORTED) is none.
func (l *listener) accept() (*fd, error) {
	h := &l.r
	if err := l.enter(h); err != nil {
		return nil, err
	}
	defer l.leave(h)
	for {
		switch err := l.run(h, acceptCall); err {
		case nil:
			return newConnFD(h.n, l.kind), nil
		case syscall.ECONNABORTED:
		default:
			return nil, callError("accept", err)
		}
	}
}

func (l *listener) setDeadline(t time.Time) error { return l.fd.setDeadline(t, reading) }

// close removes the file first, so that the path does not lead to a socket that
// refuses, and nobody who finds it refusing takes it for stale.
func (l *listener) close() error {
	if !l.givenUp.CompareAndSwap(false, true) {
		return net.ErrClosed
	}
	var err error
	if l.file != nil {
		err = l.file.release()
	}
	if e := l.fd.close(); err == nil {
		err = e
	}
	return err
}

// ---------------------------------------------------------------------------
// Socket files
//
// A socket file outlives its server, and the names of a folder can be changed
// by anyone who may write to it. Three things keep starters and closers from
// each other's sockets:
//
// The lock, an flock(2) on path.lock for the life of the listener. Whoever has
// it decides about the path. It is the file at that name that counts: one that
// was removed or replaced since it was opened says nothing.
//
// The guard, an flock on the folder for the moment of a change. "Is it still
// mine? Then remove it" is two system calls; TakeoverAlways, which cannot wait
// for the lock of the live listener that it displaces, comes between no such
// two because it changes lock and socket under the guard, as everybody does.
//
// The identity, device and inode of the socket file as recorded after bind. It
// protects the sockets of programs that know nothing of lock and guard.

// A socketFile is the claim of a listener on a path.
type socketFile struct {
	path    string          // absolute, so that it means the same at Close
	lock    int             // descriptor of path.lock, which holds the flock; -1 for none
	dropped runtime.Cleanup // gives the lock up if nobody closes the listener
	id      fileID          // of the socket
	keep    bool            // leave the socket file behind
}

// A fileID tells whether two names, or a name and a descriptor, are one file.
type fileID struct {
	dev, ino uint64
}

// lockSuffix makes the name of the lock of a socket file.
const lockSuffix = ".lock"

// claim binds the socket to the path and makes it listen, as lc says.
func claim(sys int, path string, lc *ListenConfig) (_ *socketFile, err error) {
	if path[0] != '/' {
		wd, err := syscall.Getwd()
		if err != nil {
			return nil, os.NewSyscallError("getwd", err)
		}
		path = joinPath(wd, path)
	}
	dir, base := splitPath(path)
	if limit := nameMax - len(lockSuffix); len(base) > limit {
		return nil, tooLong("the last element of the path of a listener", len(base), limit)
	}

	f := &socketFile{path: path, lock: -1, keep: lc.KeepName}
	lock, err := takeLock(path + lockSuffix)
	displace := err == syscall.EWOULDBLOCK && lc.Takeover == TakeoverAlways
	if err == nil {
		f.own(lock)
	} else if !displace {
		return nil, lockError(err, path)
	}
	defer func() {
		if err != nil {
			f.release() // what it gives up is not worth a second error
		}
	}()

	found, err := f.vacancy(lc.Takeover)
	if err != nil {
		return nil, err
	}
	giveBack := takeGuard(dir)
	defer giveBack()

	// What was decided above must still be so under the guard.
	if lc.Takeover == TakeoverAlways && !displace && !f.holdsLock() {
		f.unlock() // another one with TakeoverAlways was faster, and is displaced in turn
		displace = true
	}
	switch now, err := lstat(path); {
	case !displace && !f.holdsLock(), lc.Takeover != TakeoverAlways && now.id != found:
		return nil, inUse()
	case err == nil && !now.socket:
		return nil, errNoSocket
	}
	if found != (fileID{}) && lc.Takeover != TakeoverAlways {
		if err := unlink(path); err != nil {
			return nil, err
		}
	}

	// A file that is to appear all at once, or whose name alone is too long for
	// a sockaddr_un, is bound under another name in the same folder.
	name := base
	if lc.Takeover == TakeoverAlways {
		name = "." + freshName()
	}
	folder, letGo := dir, func() {}
	if len(joinPath(dir, name)) > sunPathMax {
		if folder, letGo, err = kern.shorten(dir); err != nil {
			return nil, err
		}
	}
	defer letGo()
	if len(joinPath(folder, name)) > sunPathMax {
		name = "." + freshName()
	}
	at := joinPath(folder, name)
	if err := f.place(sys, at, lc); err != nil {
		return nil, err
	}
	if displace {
		lock, err := replaceLock(dir, path+lockSuffix)
		if err != nil {
			unlink(at)
			return nil, lockError(err, path)
		}
		f.own(lock)
	}
	if name != base {
		if err := publish(at, path, lc.Takeover == TakeoverAlways); err != nil {
			unlink(at)
			return nil, err
		}
	}
	return f, nil
}

// errNoSocket protects whatever else is at the path.
var errNoSocket = &ruleError{"a file that is not a socket is there", ErrAddrInUse}

// vacancy decides whether the policy allows a socket to be put at the path, and
// returns the identity of the one that is in the way, if any.
func (f *socketFile) vacancy(policy Takeover) (fileID, error) {
	at, err := lstat(f.path)
	switch {
	case err == syscall.ENOENT:
		return fileID{}, nil
	case err != nil:
		return fileID{}, os.NewSyscallError("lstat", err)
	case !at.socket:
		return fileID{}, errNoSocket
	case policy == TakeoverNever:
		return fileID{}, inUse()
	case policy == TakeoverAlways:
		return at.id, nil
	}
	switch err := probe(f.path); errnoOf(err) {
	case syscall.ECONNREFUSED:
		return at.id, nil
	case syscall.ENOENT:
		return fileID{}, nil // its owner has just removed it
	case nil, syscall.EPROTOTYPE:
		return fileID{}, inUse()
	default:
		return fileID{}, err // cannot tell (no permission, no descriptors): hands off
	}
}

// probe asks whether a socket of any process is bound to the path, by connecting
// one for datagrams. Where a stream server is that is EPROTOTYPE, also if its
// backlog is full or it does not listen yet, and the server does not notice; only
// where nobody is left it is ECONNREFUSED.
func probe(path string) error {
	f, err := connectSocket(path, syscall.SOCK_DGRAM)
	if err != nil {
		return err
	}
	return f.close()
}

// place binds the socket at a path that fits into a sockaddr_un, gives the file
// its exact mode and owner, and listens. Nobody can connect before listen, so
// nobody ever meets the file with other permissions.
func (f *socketFile) place(sys int, at string, lc *ListenConfig) (err error) {
	if err := bind(sys, at); err != nil {
		return err
	}
	defer func() {
		if err != nil && err != errReplaced {
			unlink(at)
		}
	}()
	mode, uid, gid := lc.fileMode()
	if err := kern.setMode(at, syscall.S_IFSOCK, mode, uid, gid); err != nil {
		return err
	}
	made, err := lstat(at)
	if err != nil {
		return os.NewSyscallError("lstat", err)
	}
	f.id = made.id
	return startListening(sys, lc.Backlog)
}

// publish moves the socket file from its temporary name to the path.
func publish(at, path string, replace bool) error {
	if replace {
		return os.NewSyscallError("rename", control(func() error { return syscall.Rename(at, path) }))
	}
	// Unlike rename, link does not replace what came meanwhile.
	if err := control(func() error { return syscall.Link(at, path) }); err != nil {
		return classify("link", err)
	}
	return unlink(at)
}

// fileMode returns the permissions and the owner of the socket file; an owner
// of -1 is left as it is.
func (lc *ListenConfig) fileMode() (mode uint32, uid, gid int) {
	mode, uid, gid = 0o600, -1, -1
	if lc.Access == Everyone {
		mode = 0o666
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

// release gives the path up: the socket file goes if it is still this
// listener's, then the lock goes. A displaced listener, whose lock was replaced,
// owns nothing any more.
func (f *socketFile) release() error {
	defer f.unlock()
	dir, _ := splitPath(f.path)
	giveBack := takeGuard(dir)
	defer giveBack()
	if !f.holdsLock() {
		return nil
	}
	var err error
	if at, e := lstat(f.path); e == nil && at.id == f.id && !f.keep {
		err = unlink(f.path)
	}
	if !isForeign(f.path + lockSuffix) {
		if e := unlink(f.path + lockSuffix); err == nil {
			err = e
		}
	}
	return err
}

// holdsLock reports whether the file at path.lock is the one that f locked.
func (f *socketFile) holdsLock() bool {
	at, err := lstat(f.path + lockSuffix)
	return err == nil && at.id == fstatID(f.lock)
}

// own makes f the owner of a lock that was taken. If the listener is dropped without
// Close, the garbage collector gives the lock up, as it closes the socket: else the
// path would be in use until the process ends, with nobody there.
func (f *socketFile) own(lock int) {
	f.lock = lock
	f.dropped = runtime.AddCleanup(f, dropLock, lock)
}

func (f *socketFile) unlock() {
	if f.lock >= 0 {
		f.dropped.Stop()
		dropLock(f.lock)
		f.lock = -1
	}
}

// dropLock gives up the flock, also for a copy of the descriptor that a child has
// between fork and exec, and closes it.
func dropLock(lock int) {
	flock(lock, false)
	syscall.Close(lock)
}

// isForeign reports whether the lock of a socket file is not one that openLock made,
// an empty file. What another program keeps at that name serves as the lock, but is
// neither removed nor replaced.
func isForeign(path string) bool {
	var st syscall.Stat_t
	err := control(func() error { return syscall.Lstat(path, &st) })
	return err == nil && (st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Size != 0)
}

// takeLock creates or opens the file and takes the flock on it. The error is
// EWOULDBLOCK if somebody else has it.
func takeLock(path string) (int, error) {
	held, letGo := kern.holdsLock(path)
	defer letGo()
	if held {
		return -1, syscall.EWOULDBLOCK
	}
	for {
		lock, err := openLock(path)
		if err != nil {
			return -1, err
		}
		if err := flock(lock, true); err != nil {
			syscall.Close(lock)
			return -1, err
		}
		if at, err := lstat(path); err == nil && at.id == fstatID(lock) {
			return lock, nil
		}
		dropLock(lock) // the last holder removed it as we opened it
	}
}

// openLock opens the lock file and creates it if need be. It never does both in
// one call: Linux refuses O_CREAT on another user's file in a sticky folder
// (fs.protected_regular), even to root.
func openLock(path string) (lock int, err error) {
	const flags = syscall.O_RDWR | syscall.O_CLOEXEC | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	for {
		if lock, err = open(path, flags); err != syscall.ENOENT {
			return lock, err
		}
		if lock, err = open(path, flags|syscall.O_CREAT|syscall.O_EXCL); err != syscall.EEXIST {
			break
		}
	}
	if err == nil {
		err = control(func() error { return syscall.Fchmod(lock, 0o600) }) // whatever the umask
		if err != nil {
			unlink(path)
			syscall.Close(lock)
			return -1, err
		}
	}
	return lock, err
}

// replaceLock puts a lock of our own in the place of one that somebody holds.
func replaceLock(dir, path string) (int, error) {
	if isForeign(path) {
		return -1, syscall.EWOULDBLOCK
	}
	temporary := joinPath(dir, "."+freshName()+lockSuffix)
	lock, err := takeLock(temporary)
	if err != nil {
		return -1, err
	}
	if err := control(func() error { return syscall.Rename(temporary, path) }); err != nil {
		unlink(temporary)
		dropLock(lock)
		return -1, err
	}
	return lock, nil
}

// lockError explains why the lock of a socket file is not to be had.
func lockError(err error, path string) error {
	if err == syscall.EWOULDBLOCK {
		return inUse()
	}
	return classify("open "+path+lockSuffix, err) // which is not the path that was asked for
}

// inUse is EADDRINUSE, as bind(2) says it.
func inUse() error { return classify("bind", syscall.EADDRINUSE) }

// How long a change waits for the guard of its folder. Nobody of this package holds
// it for longer than a few system calls, but anybody who may read the folder can.
const (
	guardPatience = 2 * time.Second
	guardPause    = time.Millisecond
)

// takeGuard takes the guard of the folder and returns how to give it back. A
// folder that may be searched but not read, or lies on a file system without
// flock, has no guard, and one whose guard somebody keeps does as if it had none:
// no other user may say whether a server can start. The identity of the file must
// do then.
func takeGuard(dir string) (release func()) {
	fd, err := open(dir, syscall.O_RDONLY|syscall.O_CLOEXEC)
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

// lockHeld reports whether a listener of this package lives at the path, by
// asking for its lock without taking it: see F_GETLK of fcntl(2), which tells of
// an flock(2) too where the two are one thing (BSD, macOS).
func lockHeld(path string) bool {
	held, letGo := kern.holdsLock(path + lockSuffix)
	defer letGo()
	if held {
		return true
	}
	fd, err := open(path+lockSuffix, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NOFOLLOW|syscall.O_NONBLOCK)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	lock := syscall.Flock_t{Type: syscall.F_RDLCK}
	err = control(func() error { return syscall.FcntlFlock(uintptr(fd), syscall.F_GETLK, &lock) })
	return err == nil && lock.Type != syscall.F_UNLCK
}

// setMode sets permissions and owner of the file of that type that was
// just made at the path. What could have been put in its place since is looked
// for before, not excluded: the folder is trusted to that degree.
func (everyUnix) setMode(path string, typ, mode uint32, uid, gid int) error {
	var st syscall.Stat_t
	if err := control(func() error { return syscall.Lstat(path, &st) }); err != nil {
		return os.NewSyscallError("lstat", err)
	}
	if uint32(st.Mode)&syscall.S_IFMT != typ {
		return errReplaced
	}
	if uid >= 0 || gid >= 0 {
		if err := control(func() error { return syscall.Lchown(path, uid, gid) }); err != nil {
			return os.NewSyscallError("lchown", err)
		}
	}
	return os.NewSyscallError("chmod", control(func() error { return syscall.Chmod(path, mode) }))
}

// errReplaced is for a file that somebody replaces as it is being made.
var errReplaced = &ruleError{"the file was replaced by another", ErrAddrInUse}

// shorten makes a private symbolic link to a path that is too long for a
// sockaddr_un, and returns its short name and how to remove it.
func (everyUnix) shorten(path string) (short string, release func(), err error) {
	if path[0] != '/' {
		wd, err := syscall.Getwd()
		if err != nil {
			return "", nil, os.NewSyscallError("getwd", err)
		}
		path = joinPath(wd, path)
	}
	// /tmp before $TMPDIR, which is long itself on macOS.
	dir, err := os.MkdirTemp("/tmp", "ipc")
	if err != nil {
		if dir, err = os.MkdirTemp("", "ipc"); err != nil {
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

// connect makes one attempt to connect to the target.
func connect(target string, kind transport, _ *SysDialer) (*fd, error) {
	f, err := connectSocket(target, socketType(kind))
	if err == nil {
		f.carry(kind)
	}
	return f, err
}

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
	f := newFD(sys)
	sa := sockAddr(target)
	err = control(func() error { return syscall.Connect(sys, sa) })
	if err == syscall.EINPROGRESS || err == syscall.EALREADY {
		err = f.finishConnect()
	}
	if err != nil {
		f.close()
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

// judge tells what the failure of connect means. The BSDs and macOS refuse a
// client when the backlog is full as they do when nobody listens. There a probe
// tells whether anybody is left, and the lock whether it is a listener of this
// package, which is worth waiting for.
func judge(target string, err error) verdict {
	switch errnoOf(err) {
	case syscall.EAGAIN:
		return busy
	case syscall.ENOENT:
		return absent
	case syscall.ECONNREFUSED:
		switch {
		case !fullRefuses || errnoOf(probe(target)) == syscall.ECONNREFUSED:
			return absent
		case lockHeld(target):
			return busy
		}
		return unsure
	case syscall.ECONNRESET: // FreeBSD: the listener was closed when it had just taken the client in
		return unsure
	}
	return final
}

// trusted reports whether the peer is this process's user or root.
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

// xucredPeer returns the Peer of a struct xucred (sys/ucred.h of FreeBSD, macOS
// and DragonFly), given as 32-bit words, as many as the system told: version,
// user id, number of groups in 16 bits, and the groups, the effective one first.
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

func pair(kind transport) (a, b *fd, err error) {
	var s [2]int
	err = atBirth(func() (err error) {
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
func newConnFD(sys int, kind transport) *fd {
	f := newFD(sys)
	f.carry(kind)
	return f
}

func (f *fd) carry(kind transport) {
	if kind == messages && !framesMessages {
		f.kind = messages
	}
}

// socketType returns the type of socket that carries the kind.
func socketType(kind transport) int {
	if kind == messages && !framesMessages {
		return syscall.SOCK_SEQPACKET
	}
	return syscall.SOCK_STREAM
}

// adoptConn returns a connection over a duplicate of f.
func adoptConn(f *os.File, kind transport) (*fd, error) {
	return adopt(f, kind, func(sys int) error { return isConnected(sys, kind) })
}

// adopt returns an fd over a duplicate of f, if that passes the check.
func adopt(f *os.File, kind transport, check func(sys int) error) (*fd, error) {
	var sys int
	err := withFile(f, func(fd uintptr) (err error) {
		sys, err = kern.dup(int(fd))
		return os.NewSyscallError("dup", err)
	})
	if err != nil {
		return nil, err
	}
	fd, err := adoptSys(sys, kind, check)
	if err != nil {
		syscall.Close(sys)
		return nil, err
	}
	fd.share() // f stays the caller's, whose Fd makes both of them block
	return fd, nil
}

// adoptSys returns an fd that owns sys, if that passes the check; if not, sys
// stays as it was.
func adoptSys(sys int, kind transport, check func(sys int) error) (*fd, error) {
	if err := check(sys); err != nil {
		return nil, err
	}
	if err := syscall.SetNonblock(sys, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return newConnFD(sys, kind), nil
}

// isLocal refuses every descriptor that is not a local socket of that kind.
func isLocal(sys int, kind transport) error {
	typ, err := syscall.GetsockoptInt(sys, syscall.SOL_SOCKET, syscall.SO_TYPE)
	if err != nil {
		return os.NewSyscallError("getsockopt", err) // ENOTSOCK
	}
	sa, err := syscall.Getsockname(sys)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	if _, ok := sa.(*syscall.SockaddrUnix); !ok || typ != socketType(kind) {
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
func isConnected(sys int, kind transport) error {
	if err := isLocal(sys, kind); err != nil {
		return err
	}
	_, err := syscall.Getpeername(sys)
	if err != nil && wasConnected(sys) {
		return nil
	}
	return os.NewSyscallError("getpeername", err) // ENOTCONN
}

// wasConnected reports whether the socket has had a peer, also if that is gone,
// which only Linux tells by its name: by looking whether there is something to
// receive, be it the end.
func wasConnected(sys int) bool {
	var b [1]byte
	err := control(func() error {
		_, _, _, err := kern.recvmsg(sys, b[:], nil, syscall.MSG_PEEK|dontWait)
		return err
	})
	return err == nil || err == syscall.EAGAIN || err == syscall.ECONNRESET
}

// isListening refuses every descriptor that is not a listening local stream
// socket.
func isListening(sys int) error {
	if err := isLocal(sys, streams); err != nil {
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
	err = atBirth(func() error { return kern.newPipe(&p) }, &p[0], &p[1])
	if err != nil {
		return nil, nil, os.NewSyscallError("pipe", err)
	}
	return newFD(p[0]), newFD(p[1]), nil
}

// adoptPipe returns the end of a pipe or FIFO over a duplicate of f.
func adoptPipe(f *os.File, d direction) (*fd, error) {
	try := syscall.Read
	if d == writing {
		try = syscall.Write
	}
	return asPipe(adopt(f, streams, func(sys int) error {
		if err := isPipe(sys); err != nil {
			return err
		}
		// The open mode has no call in package syscall; an empty transfer in the
		// wrong direction is EBADF and otherwise nothing, but perhaps the word
		// that the other side is gone.
		if _, err := try(sys, nil); err == syscall.EBADF {
			return os.NewSyscallError("fcntl", err)
		}
		return nil
	}))
}

// asPipe prepares the fd of an adopted pipe or FIFO. Only a FIFO is a file on a
// device, where fifoPolls makes a difference.
func asPipe(f *fd, err error) (*fd, error) {
	if err != nil {
		return nil, err
	}
	f.naps = !fifoPolls && fstatID(f.sys).dev != 0
	return f, nil
}

// isPipe refuses every descriptor that is not a pipe or FIFO.
func isPipe(sys int) error {
	var st syscall.Stat_t
	if err := control(func() error { return syscall.Fstat(sys, &st) }); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFIFO {
		return &ruleError{"the descriptor is not a pipe", errors.ErrUnsupported}
	}
	return nil
}

// Mkfifo makes a FIFO, see mkfifo(3), with exactly the permission bits of perm,
// whatever the umask. Like every reader and writer of a FIFO it exists on Unix
// alone; AIX, illumos and Solaris offer no call for it, there the error matches
// [errors.ErrUnsupported].
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
	// The umask can only take bits away, so the FIFO is never open to more
	// users than it should be.
	if err := control(func() error { return kern.mkfifo(path, uint32(perm)) }); err != nil {
		return os.NewSyscallError("mkfifo", err)
	}
	if err := kern.setMode(path, syscall.S_IFIFO, uint32(perm), -1, -1); err != nil {
		if err != errReplaced {
			unlink(path)
		}
		return err
	}
	return nil
}

// OpenFIFOReader opens the FIFO at the path for reading and waits for a writer,
// until ctx ends: see fifo(7). Anything but a FIFO is refused, also a symbolic
// link to one. The waiting holds no thread. On FreeBSD, where a writer that has
// not written yet cannot be noticed, it waits for the first byte.
func OpenFIFOReader(ctx context.Context, path string) (*PipeReader, error) {
	addr := Path(path)
	f, err := openFIFO(ctx, addr, reading)
	if err != nil {
		return nil, pipeError("open", addr, err)
	}
	return &PipeReader{pipeEnd{fd: f, addr: addr}}, nil
}

// OpenFIFOWriter opens the FIFO at the path for writing and waits for a reader,
// until ctx ends: see [OpenFIFOReader].
func OpenFIFOWriter(ctx context.Context, path string) (*PipeWriter, error) {
	addr := Path(path)
	f, err := openFIFO(ctx, addr, writing)
	if err != nil {
		return nil, pipeError("open", addr, err)
	}
	return &PipeWriter{pipeEnd{fd: f, addr: addr}}, nil
}

// openFIFO opens the FIFO without blocking and then waits for the other side in
// steps: there is no event for its arrival. A reader is let in at once and asks
// whether there is a writer; a writer is ENXIO until there is a reader.
func openFIFO(ctx context.Context, addr Addr, d direction) (*fd, error) {
	path, err := addr.resolve()
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	p := patience{ctx: ctx, deadline: deadline}
	defer p.stop()
	for {
		if err := p.ended(nil); err != nil {
			return nil, err
		}
		f, err := tryFIFO(path, d)
		if err == nil && d == reading {
			err = f.awaitWriter(&p)
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

// tryFIFO opens the FIFO if it is one. Opening has effects on other kinds of
// files (a tape rewinds), so the kind is looked at before, and once more on
// what was opened.
func tryFIFO(path string, d direction) (*fd, error) {
	var st syscall.Stat_t
	if err := control(func() error { return syscall.Lstat(path, &st) }); err != nil {
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
	f.naps = !fifoPolls
	return f, nil
}

// awaitWriter waits until the FIFO has a writer, or had one. Without, a read says
// end of file, but on FreeBSD EAGAIN; with one it says EAGAIN or returns data,
// which is kept for the first Read.
func (f *fd) awaitWriter(p *patience) error {
	h := &f.r
	for {
		var first [1]byte
		n := 0
		err := control(func() (err error) { n, err = syscall.Read(f.sys, first[:]); return err })
		switch {
		case err == nil && n > 0:
			h.envelope = &envelope{ahead: first[:]}
			return nil
		case err == nil && (fifoQuiet || kern.hungUp(f.sys)):
			return nil // a writer came and left
		case err == syscall.EAGAIN && !fifoQuiet:
			return nil
		case err != nil && err != syscall.EAGAIN:
			return os.NewSyscallError("read", err)
		}
		if err := p.ended(nil); err != nil {
			return err
		}
		p.pause()
	}
}

// ---------------------------------------------------------------------------
// Children

// bequeath adds the descriptor to the files that cmd's process gets. It is the
// file of fd itself, so that Close of the end is all there is to close; Start
// asks it for the descriptor, which for a file that was nonblocking when it was
// made changes nothing.
func (f *fd) bequeath(cmd *exec.Cmd) (token string, err error) {
	f.pin()
	p, err := f.join()
	if err != nil {
		return "", err
	}
	n := len(cmd.ExtraFiles)
	cmd.ExtraFiles = append(cmd.ExtraFiles[:n:n], p.file) // not into what another Cmd shares
	return strconv.Itoa(2 + len(cmd.ExtraFiles)), nil     // after 0, 1 and 2
}

func validToken(token string) bool {
	n, err := strconv.Atoi(token)
	return err == nil && n > 2 && n <= 1<<20 && token == strconv.Itoa(n)
}

// keepFromChildren makes an inherited descriptor close-on-exec.
func keepFromChildren(token string) { syscall.CloseOnExec(tokenFD(token)) }

// tokenFD returns the descriptor of a token that is valid.
func tokenFD(token string) int {
	n, _ := strconv.Atoi(token)
	return n
}

func inheritedStream(token string) (*fd, error)   { return inheritedSocket(token, streams) }
func inheritedMessages(token string) (*fd, error) { return inheritedSocket(token, messages) }

func inheritedSocket(token string, kind transport) (*fd, error) {
	return adoptSys(tokenFD(token), kind, func(sys int) error { return isConnected(sys, kind) })
}

func inheritedPipe(token string) (*fd, error) {
	return asPipe(adoptSys(tokenFD(token), streams, isPipe))
}

func inheritedListener(token string) (*Listener, error) {
	return ownListener(tokenFD(token))
}

// ownListener returns a Listener that owns sys, which stays as it was if it does
// not listen.
func ownListener(sys int) (*Listener, error) {
	f, err := adoptSys(sys, streams, isListening)
	if err != nil {
		return nil, err
	}
	return adoptedListener(f), nil
}

// Activated returns the listeners that the service manager opened for this
// process, in its order: see sd_listen_fds(3). There are none unless LISTEN_PID
// is this process. It unsets LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES, so that
// neither a second call nor a child takes them for its own, and keeps the
// descriptors from children. [Listener.FDName] tells which is which, and who may
// connect is as with [FileListener]. Close does not remove a socket file: it is the
// service manager's.
//
// If the variables are garbled or a descriptor is no listening local stream
// socket the error says which, and nothing is taken or unset.
func Activated() ([]*Listener, error) {
	activating.Lock()
	defer activating.Unlock()
	ls, err := activated()
	if err != nil {
		return nil, opError("activate", Addr{}, Addr{}, err)
	}
	return ls, nil
}

// activating keeps two calls from taking the same descriptors.
var activating sync.Mutex

func activated() (ls []*Listener, err error) {
	const firstFD = 3 // SD_LISTEN_FDS_START of systemd/sd-daemon.h
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid == "" || fds == "" {
		return nil, nil
	}
	if p, err := strconv.Atoi(pid); err != nil || p <= 0 {
		return nil, configError("LISTEN_PID", strconv.Quote(pid), "a process id")
	} else if p != os.Getpid() {
		return nil, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > 1<<16 {
		return nil, configError("LISTEN_FDS", strconv.Quote(fds), "a number of descriptors")
	}
	var names []string
	if list, ok := os.LookupEnv("LISTEN_FDNAMES"); ok && n > 0 {
		if names = strings.Split(list, ":"); len(names) != n {
			return nil, configError("LISTEN_FDNAMES", strconv.Quote(list), strconv.Itoa(n)+" names")
		}
	}
	for i := range n {
		if err := isListening(firstFD + i); err != nil {
			return nil, &classified{&ruleError{what: "descriptor " + strconv.Itoa(firstFD+i) + ": " + err.Error()}, err}
		}
	}
	for i := range n {
		syscall.CloseOnExec(firstFD + i)
		l, err := ownListener(firstFD + i)
		if err != nil {
			for _, l := range ls {
				l.Close()
			}
			return nil, err
		}
		l.sys.fdName = "unknown" // as sd_listen_fds_with_names does
		if names != nil {
			l.sys.fdName = names[i]
		}
		ls = append(ls, l)
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	return ls, nil
}

// FDName returns the name that the service manager gave a listener of
// [Activated] (FileDescriptorName= of systemd.socket(5)); "unknown" if it gave
// none, and "" for other listeners.
func (l *Listener) FDName() string { return l.sys.fdName }

// ---------------------------------------------------------------------------
// Descriptors: the one way to system calls that may block
//
// An operation tries its system call at once. When the kernel says EAGAIN it
// tries for some microseconds more if recent waits were that short: to wake a
// thread costs the system several times what the call itself does. Only then does
// the descriptor join the runtime's poller, by becoming an os.File, and the
// goroutine parks there until the kernel has news; no thread is held. A connection
// that never parks is never registered, and no thread wakes for what it gets; one
// that has not had to park for a while leaves the poller.
//
// The descriptor's number must not go to somebody else while a call uses it, so
// each operation counts as a user of the fd, and the last user closes it.

// An fd is a nonblocking, close-on-exec descriptor that this package made.
type fd struct {
	users // calls that use sys; the last one after Close lets it go

	sys     int       // changed by leavePoller alone, while nobody else is a user
	kind    transport // messages: the kernel keeps their boundaries
	gone    sync.WaitGroup
	goneErr error // of close(2); written before gone is done
	r, w    half
	spin    atomic.Int64 // the most nanoseconds that a wait may spin; spinUnset by default

	polled atomic.Pointer[registration] // nil unless it is with the poller; stored under mu, loaded by every wait

	mu      sync.Mutex      // guards what follows, and keeps join, leavePoller, Close and SetDeadline apart
	naps    bool            // the poller cannot serve it: see nap; settled before polled is
	pinned  bool            // somebody may know the number, so it stays
	cleanup runtime.Cleanup // closes sys if nobody does; stopped when a registration takes over
}

// A registration is what a descriptor is while it is with the runtime's poller.
type registration struct {
	file *os.File // owns the descriptor
	raw  syscall.RawConn
}

// A half is one direction of an fd and the operation that is under way in it. A
// connection that does nothing costs no more than this, so what only some
// operations need is apart.
type half struct {
	mu    sync.Mutex               // one operation at a time; guards all but expiry and shared
	call  func(int, *half) error   // one attempt, which never blocks
	buf   []byte                   // argument of call
	n     int                      // result of call
	err   error                    // result of call
	again func(sysfd uintptr) bool // call as the poller wants it; made once, so that no wait allocates
	*envelope

	expiry atomic.Int64 // the deadline on the clock of now, 0 for none; set while an operation has mu
	shared atomic.Bool  // others have the descriptor too: see share; set while an operation has mu
	deaf   atomic.Bool  // closeRead was called: see hearsOn; set while an operation has mu

	served bool  // an accept succeeded since the last Gosched for it
	parked bool  // the last operation had to park, and the next is likely to
	tries  uint8 // attempts of the operation under way that the poller made, up to 2
	raws   uint8 // counts calls, see rawEvery
	gauge  gauge // whether spinning pays
}

// An envelope is what operations need that do more than read and write.
type envelope struct {
	iov    []iovec // argument of call, kept for its capacity
	oob    []byte  // argument of call: control messages
	flags  int     // argument of call; result of a receive
	oobn   int     // result of call
	ahead  []byte  // was read while looking for something else; the next read returns it
	held   bool    // ahead is a whole message, which may be empty
	skip   bool    // what comes next is the rest of a message, to be dropped
	torn   error   // why no message can be sent any more
	marked bool    // markMessages was called
	one    [1]byte // room for what is only looked at
}

// newFD takes ownership of sys. If the fd is dropped without Close, the garbage
// collector closes it, as it does for os and net.
func newFD(sys int) *fd {
	f := &fd{sys: sys}
	f.spin.Store(spinUnset)
	f.gone.Add(1)
	f.own()
	return f
}

func (f *fd) own() {
	f.cleanup = runtime.AddCleanup(f, func(sys int) { syscall.Close(sys) }, f.sys)
}

// unuse ends what use began. The last user of a closed fd closes the descriptor.
func (f *fd) unuse() {
	if !f.left() {
		return
	}
	if p := f.polled.Load(); p != nil { // nobody else is left to change it
		f.goneErr = errnoOf(p.file.Close())
	} else {
		f.cleanup.Stop()
		f.goneErr = syscall.Close(f.sys)
	}
	f.gone.Done()
}

// close marks the fd closed, wakes whoever waits on it, and returns when the
// descriptor is gone: no call blocks, so that is at once.
func (f *fd) close() error {
	if !f.shut() {
		return net.ErrClosed
	}
	raceRelease()
	f.mu.Lock()
	if p := f.polled.Load(); p != nil {
		p.file.SetDeadline(time.Unix(1, 0)) // in the past: ends every wait
	}
	f.mu.Unlock()
	f.unuse()
	f.gone.Wait()
	return os.NewSyscallError("close", f.goneErr)
}

// enter begins an operation on a half, leave ends it.
func (f *fd) enter(h *half) error {
	h.mu.Lock()
	if err := f.use(); err != nil {
		h.mu.Unlock()
		return err
	}
	return nil
}

// enterMessage is enter for operations that need the envelope of the half.
func (f *fd) enterMessage(h *half) error {
	err := f.enter(h)
	if err == nil && h.envelope == nil {
		h.envelope = new(envelope)
	}
	return err
}

func (f *fd) leave(h *half) {
	h.buf, h.call = nil, nil
	if h.envelope != nil {
		h.oob = nil
		clear(h.iov)
	}
	f.unuse()
	h.mu.Unlock()
}

// run makes the call until it succeeds or fails for good. This is where EINTR,
// EAGAIN, the deadline and Close are dealt with, and nowhere else.
func (f *fd) run(h *half, call func(int, *half) error) error {
	h.call = call
	raceRelease()
	err := f.untilDone(h)
	raceAcquire()
	return err
}

func (f *fd) untilDone(h *half) error {
	if h.expired() {
		return os.ErrDeadlineExceeded
	}
	// The poller makes an attempt before it parks. One that is likely to be in
	// vain is not made twice.
	spun := false
	if !h.parked || h.gauge.ready() {
		if h.attempt(f.sys) {
			h.parked = false
			return h.err
		}
		if limit := f.spinLimit(); limit > 0 && h.gauge.ready() && startSpin() {
			spun = true
			done := f.spinFor(h, limit)
			spinners.Add(-1)
			if done {
				h.parked = false
				if h.gauge.wins == winsToLeave {
					h.gauge.wins = 0
					f.leavePoller()
				}
				return h.err
			}
		}
	}
	h.tries = 0
	if err := f.await(h, nil); err != nil {
		return err
	}
	h.parked = h.tries > 1
	if h.parked && !spun {
		h.gauge.satOut()
	}
	return h.err
}

// expiryAt returns the deadline t on the clock of now. It goes by how far away t is at
// the moment: one without a monotonic reading must not count what the clock of the
// wall was set forward or back since epoch, nor the time that the machine slept.
func expiryAt(t, at time.Time) int64 {
	passed, left := int64(at.Sub(epoch))+1, int64(t.Sub(at))
	if left > 1<<63-1-passed {
		return 1<<63 - 1
	}
	return max(passed+left, 1)
}

// deadline is the deadline as a time.
func (h *half) deadline() (t time.Time) {
	if e := h.expiry.Load(); e != 0 {
		t = epoch.Add(time.Duration(e - 1))
	}
	return t
}

// expired reports whether the deadline has passed.
func (h *half) expired() bool {
	e := h.expiry.Load()
	return e != 0 && now() >= e
}

// now is the time in nanoseconds on a clock that only goes forward, never 0.
func now() int64 { return int64(time.Since(epoch)) + 1 }

var epoch = time.Now()

// ---------------------------------------------------------------------------
// Spinning
//
// A spin costs the CPU time it takes, so it must win most of the time. One in vain
// makes its half sit out twice as many waits as the one before, one that won half as
// many; so the price of looking whether it pays again is lost among a thousand
// waits. Besides, those that lost last share a budget: what they lose together is a
// small part of one CPU's time, however many they are and however busy the machine.
// A half that has hardly waited yet goes by what all such halves learned, and
// starts from there. No more goroutines spin than leave one CPU free; where there is
// but one CPU, one may, since it lets the other end have it between its attempts.

const (
	spinUnset   = -1                    // of fd.spin: up to spinByDefault
	spinDefault = 50 * time.Microsecond // about the time of two wake-ups
	spinLoaded  = time.Millisecond      // a spin as long lost its CPU to somebody else
	sitOutMax   = 1024
	budgetShare = 16                   // one part in so many of the time may be lost
	budgetAhead = 2 * time.Millisecond // so much of it may be lost at once
	youngWaits  = 4
	winsToLeave = 16 // spins won in a row after which it is time to leave the poller
)

// spinners is how many goroutines are spinning now.
var spinners atomic.Int32

// A gauge tells whether it pays to spin. It is guarded by half.mu.
type gauge struct {
	waits  uint8 // how many waits it has seen, up to youngWaits
	wins   uint8 // spins won in a row; from winsToLeave on counted anew
	record record
}

// A record is how many waits are not to spin, and how many that was after the
// last spin in vain.
type record struct{ sitOut, lost int16 }

// young is the record of the halves that have hardly waited, packed: several use
// it at once, and that an update is lost now and then does no harm.
var young atomic.Uint32

func (r record) pack() uint32      { return uint32(uint16(r.sitOut))<<16 | uint32(uint16(r.lost)) }
func unpackRecord(v uint32) record { return record{int16(v >> 16), int16(v)} }

// paidUntil is the time by which the budget makes up for the spins in vain so far.
var paidUntil atomic.Int64

// ready reports whether the next wait is one to spin in.
func (g *gauge) ready() bool {
	r := g.record
	if g.waits < youngWaits {
		r = unpackRecord(young.Load())
	}
	return r.sitOut == 0 && (r.lost == 0 || paidUntil.Load() <= now()+budgetShare*int64(budgetAhead))
}

// won, inVain and satOut tell how a wait went.
func (g *gauge) won() {
	g.wins++
	g.update(func(r record) record { return record{0, r.lost / 2} })
}

func (g *gauge) inVain(spent int64) {
	g.wins = 0
	g.update(func(r record) record {
		lost := 2*int(r.lost) + 1
		if spent >= int64(spinLoaded) {
			lost *= 8
		}
		paidUntil.Store(max(now(), paidUntil.Load()) + budgetShare*spent)
		r.lost = int16(min(lost, sitOutMax))
		r.sitOut = r.lost
		return r
	})
}

func (g *gauge) satOut() {
	g.wins = 0
	g.update(func(r record) record { return record{max(r.sitOut-1, 0), r.lost} })
}

func (g *gauge) update(next func(record) record) {
	if g.waits == youngWaits {
		g.record = next(g.record)
		return
	}
	g.record = next(unpackRecord(young.Load()))
	young.Store(g.record.pack())
	g.waits++
}

// startSpin counts the caller as a spinner, unless there are enough.
func startSpin() bool {
	if spinners.Add(1) > spinnersMax() {
		spinners.Add(-1)
		return false
	}
	return true
}

// spinnersMax is read from the scheduler now and then, under a lock of its own.
func spinnersMax() int32 {
	if spinnersAsked.Add(1)%1024 == 1 {
		spinnersLimit.Store(int32(max(1, runtime.GOMAXPROCS(0)-1)))
	}
	return spinnersLimit.Load()
}

// spinnersAsked counts the calls of spinnersMax, spinnersLimit keeps its result.
var (
	spinnersAsked atomic.Uint32
	spinnersLimit atomic.Int32
)

func (f *fd) spinLimit() int64 {
	limit := f.spin.Load()
	if limit == spinUnset {
		limit = spinByDefault
	}
	return limit
}

// spinFor makes attempts for up to limit nanoseconds, and reports whether one
// was the end of it. Between two it lets another process have the CPU: if both
// ends share one, only that brings the answer.
func (f *fd) spinFor(h *half, limit int64) bool {
	start := now()
	for {
		kern.yield()
		done := h.attempt(f.sys)
		spent := now() - start
		switch {
		case done && spent < limit:
			h.gauge.won()
			return true
		case spent >= limit: // also if it is done now: others have use for this CPU
			h.gauge.inVain(spent)
			return done
		case f.closing() || h.expired():
			return false // the wait that follows says so
		}
	}
}

func (f *fd) setSpin(d time.Duration) { f.spin.Store(int64(d)) }

// ---------------------------------------------------------------------------
// Waiting

// await calls try, by default another attempt at h's operation, when the half may
// be ready, until it reports true.
func (f *fd) await(h *half, try func(sysfd uintptr) bool) error {
	p, err := f.join()
	if err != nil {
		return err
	}
	if try == nil {
		try = h.again
	}
	switch {
	case f.naps:
		err = f.nap(h, try)
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

// nap stands in for the poller where it cannot serve the descriptor: FIFOs on
// macOS, where the end of the last writer is no event, and on OpenBSD, which
// cannot register one. It holds no thread, and looks often enough for people.
func (f *fd) nap(h *half, try func(sysfd uintptr) bool) error {
	p := patience{ctx: context.Background()}
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

// attemptAgain is an attempt that the poller makes: the first at once, before it
// parks the goroutine.
func (h *half) attemptAgain(sys int) bool {
	h.tries = min(h.tries+1, 2)
	return h.attempt(sys)
}

// attempt makes the call once and reports whether that was the end of it.
func (h *half) attempt(sys int) bool {
	for {
		if h.err = h.call(sys, h); h.err != syscall.EINTR {
			if kern.hearsOn() && h.err == nil && h.deaf.Load() {
				h.n = 0
			}
			return h.err != syscall.EAGAIN
		}
	}
}

// join registers the descriptor with the runtime's poller, if it is not yet.
func (f *fd) join() (*registration, error) {
	if p := f.polled.Load(); p != nil {
		return p, nil // should Close come now, its deadline ends the wait
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing() {
		return nil, net.ErrClosed
	}
	if p := f.polled.Load(); p != nil {
		return p, nil
	}
	f.cleanup.Stop()
	p := &registration{file: os.NewFile(uintptr(f.sys), "ipc")}
	var err error
	if p.raw, err = p.file.SyscallConn(); err != nil {
		return nil, err
	}
	// This fails if the poller does not know it.
	err = p.file.SetDeadline(f.r.deadline())
	if f.r.deadline() != f.w.deadline() && err == nil {
		err = p.file.SetWriteDeadline(f.w.deadline())
	}
	f.naps = f.naps || err != nil
	if f.r.again == nil {
		f.r.again = func(sysfd uintptr) bool { return f.r.attemptAgain(int(sysfd)) }
		f.w.again = func(sysfd uintptr) bool { return f.w.attemptAgain(int(sysfd)) }
	}
	f.polled.Store(p)
	return p, nil
}

// leavePoller ends the registration, if the caller is the only user. That takes a
// new number for the descriptor, since to end it is to close the old one; if there
// is none to be had, or somebody knows the old one, all stays as it is.
func (f *fd) leavePoller() {
	p := f.polled.Load()
	if p == nil || f.naps || !f.hold() {
		return
	}
	defer f.letGo()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pinned {
		return
	}
	sys, err := kern.dup(f.sys)
	if err != nil {
		return
	}
	f.polled.Store(nil)
	p.file.Close() // what was written stays: sys leads to the same socket
	f.sys = sys
	f.own()
}

// pin keeps the number of the descriptor from changing.
func (f *fd) pin() {
	f.mu.Lock()
	f.pinned = true
	f.mu.Unlock()
}

// setDeadline sets the deadlines of one or both directions.
func (f *fd) setDeadline(t time.Time, d direction) error {
	if err := f.use(); err != nil {
		return err
	}
	defer f.unuse()
	expiry := int64(0)
	if !t.IsZero() {
		expiry = expiryAt(t, time.Now())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing() {
		return net.ErrClosed // or the wake-up of Close would be undone
	}
	var err error
	p := f.polled.Load()
	if d&reading != 0 {
		f.r.expiry.Store(expiry)
		if p != nil && !f.naps {
			err = p.file.SetReadDeadline(t)
		}
	}
	if d&writing != 0 {
		f.w.expiry.Store(expiry)
		if p != nil && !f.naps && err == nil {
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
	if err := c.f.use(); err != nil {
		return err
	}
	defer c.f.unuse()
	fn(uintptr(c.f.sys))
	return nil
}

func (c rawConn) Read(fn func(fd uintptr) bool) error  { return c.wait(&c.f.r, fn) }
func (c rawConn) Write(fn func(fd uintptr) bool) error { return c.wait(&c.f.w, fn) }

func (c rawConn) wait(h *half, fn func(fd uintptr) bool) error {
	if err := c.f.enter(h); err != nil {
		return err
	}
	defer c.f.leave(h)
	return c.f.await(h, fn)
}

// ---------------------------------------------------------------------------
// Operations on descriptors

func (f *fd) read(p []byte) (int, error) {
	h := &f.r
	if err := f.enter(h); err != nil {
		return 0, err
	}
	defer f.leave(h)
	if len(p) == 0 {
		return 0, nil
	}
	if h.hasAhead() {
		return h.readAhead(p), nil
	}
	h.buf = p[:min(len(p), ioMax)]
	return h.received(f.run(h, readCall), "read")
}

// readAhead returns what was read before anybody asked for it, hasAhead whether
// there is any.
func (h *half) hasAhead() bool { return h.envelope != nil && len(h.ahead) > 0 }

func (h *half) readAhead(p []byte) int {
	n := copy(p, h.ahead)
	h.ahead = h.ahead[n:]
	return n
}

// received returns the result of a read of at least one byte.
func (h *half) received(err error, call string) (int, error) {
	switch {
	case err != nil:
		return 0, callError(call, err)
	case h.n == 0:
		return 0, io.EOF
	}
	return h.n, nil
}

func (f *fd) write(p []byte) (n int, err error) {
	h := &f.w
	if err := f.enter(h); err != nil {
		return 0, err
	}
	defer f.leave(h)
	for {
		h.buf = p[n:min(len(p), n+ioMax)]
		if err := f.run(h, writeCall); err != nil {
			return n, writeError("write", err)
		}
		if n += h.n; n == len(p) {
			return n, nil
		}
		if f.closing() { // Close would wait for as long as the peer makes room in time
			return n, net.ErrClosed
		}
	}
}

func (f *fd) readBuffers(bufs [][]byte) (int64, error) {
	h := &f.r
	if err := f.enterMessage(h); err != nil {
		return 0, err
	}
	defer f.leave(h)
	if h.iov = gather(h.iov, bufs); len(h.iov) == 0 {
		return 0, nil
	}
	if len(h.ahead) > 0 {
		return int64(h.readAhead(first(h.iov))), nil
	}
	n, err := h.received(f.run(h, readvCall), "readv")
	return int64(n), err
}

func (f *fd) writeBuffers(bufs *net.Buffers) (total int64, err error) {
	h := &f.w
	if err := f.enterMessage(h); err != nil {
		return 0, err
	}
	defer f.leave(h)
	for {
		if h.iov = gather(h.iov, *bufs); len(h.iov) == 0 {
			consume(bufs, 0)
			return total, nil
		}
		if err := f.run(h, writevCall); err != nil {
			return total, writeError("writev", err)
		}
		total += int64(h.n)
		consume(bufs, h.n)
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

// gather returns the buffers that are not empty, as many as one call takes, in the
// place of those that iov had.
func gather(iov []iovec, bufs [][]byte) []iovec {
	clear(iov) // or fewer than before would keep the others alive
	iov = iov[:0]
	room := ioMax
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

// consume takes n bytes, and every empty buffer before the next one, out of bufs.
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

func first(iov []iovec) []byte { return unsafe.Slice(iov[0].base, int(iov[0].len)) }

// vector makes the call readv or writev by its number.
func vector(trap uintptr, sys int, iov []iovec) (int, error) {
	n, _, errno := syscall.Syscall(trap, uintptr(sys), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// raw reports whether the next call may leave the runtime's scheduler out. It
// costs less so, but then nobody takes the processor from a goroutine that makes
// nothing but such calls, as only the others wake the monitor that does. A few of
// them are enough.
func (h *half) raw() bool {
	h.raws++
	return h.raws%rawEvery != 0 && !h.shared.Load()
}

// share is for a descriptor that others get a duplicate of. They may make it block, as
// [os.File.Fd] does and many a program to its standard input. A call that the scheduler
// knows of then holds a thread; one that it does not know of would stop the process at
// its next garbage collection, and for ever if it is this process that has to answer.
func (f *fd) share() {
	f.r.shared.Store(true)
	f.w.shared.Store(true)
}

// rawEvery is how many calls include one that the scheduler knows of; rawMax is
// how many bytes a call may copy behind its back, because a garbage collection
// that stops the world waits for it.
const (
	rawEvery = 32
	rawMax   = 32 << 10
)

// The calls of the operations: one attempt each.
func readCall(sys int, h *half) (err error)   { h.n, err = kern.read(sys, h.buf, h.raw()); return err }
func writeCall(sys int, h *half) (err error)  { h.n, err = kern.write(sys, h.buf, h.raw()); return err }
func readvCall(sys int, h *half) (err error)  { h.n, err = kern.readv(sys, h.iov); return err }
func writevCall(sys int, h *half) (err error) { h.n, err = kern.writev(sys, h.iov); return err }

// acceptCall lets the connection that was accepted last be served before it looks
// a second time whether there is another: to spin meanwhile would take the CPU
// from the very goroutine that the next client waits for.
func acceptCall(sys int, h *half) (err error) {
	h.n, err = kern.accept(sys)
	if err == syscall.EAGAIN && h.served {
		h.served = false
		runtime.Gosched()
		h.n, err = kern.accept(sys)
	}
	if err == nil {
		h.served = true
	}
	return err
}

func sendmsgCall(sys int, h *half) (err error) {
	h.n, err = kern.sendmsg(sys, h.buf, h.oob, h.flags)
	return err
}

func recvmsgCall(sys int, h *half) (err error) {
	if cmsgCloexec == 0 && len(h.oob) > 0 { // or the flag does it
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		h.flags |= dontWait // a fork waits for this
	}
	var got int
	h.n, h.oobn, got, err = kern.recvmsg(sys, h.buf, h.oob, h.flags|cmsgCloexec)
	if err != nil {
		return err
	}
	h.flags = got
	if cmsgCloexec == 0 && h.oobn > 0 {
		fds, _ := rights(h.oob[:h.oobn]) // who takes them apart finds the error, and has the data
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// ---------------------------------------------------------------------------
// Messages and control messages

func (f *fd) send(p []byte) error {
	h := &f.w
	if err := f.enterMessage(h); err != nil {
		return err
	}
	defer f.leave(h)
	return f.sendMessage(h, p, nil)
}

// sendMessage sends one message. MSG_EOR ends it: without, FreeBSD 15 joins it with
// the next one.
func (f *fd) sendMessage(h *half, p, oob []byte) error {
	switch {
	case h.torn != nil:
		return h.torn
	case len(p) == 0 && len(oob) == 0 && !kern.carriesEmpty():
		return &ruleError{"this system cannot send an empty message", errors.ErrUnsupported}
	case kern.looseRecords(): // the kernel would make several of one that is too long
		limit, err := syscall.GetsockoptInt(f.sys, syscall.SOL_SOCKET, syscall.SO_SNDBUF)
		if err == nil && len(p) > limit {
			return sendError(syscall.EMSGSIZE)
		}
	}
	h.buf, h.oob, h.flags = p, oob, syscall.MSG_EOR
	for begun := false; ; begun = true {
		err := f.run(h, sendmsgCall)
		if err != nil && begun && err != net.ErrClosed {
			// The peer has a part. It must not take the next message for the rest.
			h.torn = cutOff(err)
			syscall.Shutdown(f.sys, syscall.SHUT_WR)
		}
		if err != nil || h.n >= len(h.buf) {
			return sendError(err)
		}
		h.buf, h.oob = h.buf[h.n:], nil // only where records are loose
	}
}

// sendError is the writeError of a message.
func sendError(err error) error {
	if err == syscall.EMSGSIZE {
		return &classified{os.NewSyscallError("sendmsg", err), ErrMsgTooLong}
	}
	return writeError("sendmsg", err)
}

// enterRecv begins a receive. The first one of messages makes the kernel mark
// them; before, the socket may yet go to a program that knows nothing of that.
func (f *fd) enterRecv(h *half) error {
	if err := f.enterMessage(h); err != nil {
		return err
	}
	if f.kind == messages && !h.marked {
		kern.markMessages(f.sys)
		h.marked = true
	}
	return nil
}

// recv receives one message into p.
func (f *fd) recv(p []byte) (int, error) {
	h := &f.r
	if err := f.enterRecv(h); err != nil {
		return 0, err
	}
	defer f.leave(h)
	return f.recvInto(h, p)
}

// recvInto receives one message, or the one that is held, into p.
func (f *fd) recvInto(h *half, p []byte) (n int, err error) {
	if h.held {
		n = copy(p, h.ahead)
		if n < len(h.ahead) {
			err = ErrMsgTooLong
		}
		h.held, h.ahead = false, nil
		return n, err
	}
	if kern.looseRecords() {
		return f.recvParts(h, p)
	}
	h.buf, h.flags = p, 0
	if len(p) == 0 {
		h.buf = h.one[:] // a buffer without room learns nothing
	}
	if err := f.run(h, recvmsgCall); err != nil {
		return 0, callError("recvmsg", err)
	}
	switch n = min(h.n, len(p)); {
	case h.n == 0 && !kern.isMessage(h.flags, h.oobn):
		return 0, io.EOF
	case h.n > n || h.flags&syscall.MSG_TRUNC != 0:
		return n, ErrMsgTooLong
	}
	return n, nil
}

// recvParts is recvInto where a message may arrive in parts, of which only the last
// one says that it is, and what does not fit a buffer stays for the next receive.
func (f *fd) recvParts(h *half, p []byte) (int, error) {
	if err := f.skipRest(h); err != nil {
		return 0, err
	}
	room := p
	if len(p) == 0 {
		room = h.one[:] // a buffer without room learns nothing
	}
	n, last := copy(room, h.ahead), false
	for n < len(room) && !last {
		m, ends, err := f.nextPart(h, room[n:])
		if err != nil {
			return 0, h.keepPart(room[:n], err)
		}
		n, last = n+m, ends
	}
	h.skip, h.ahead = !last, nil
	if h.skip || n > len(p) {
		return min(n, len(p)), ErrMsgTooLong
	}
	return n, nil
}

// nextPart receives some of a message and reports whether that ends it.
func (f *fd) nextPart(h *half, p []byte) (n int, ends bool, err error) {
	h.buf, h.flags = p, 0
	if err := f.run(h, recvmsgCall); err != nil {
		return 0, false, callError("recvmsg", err)
	}
	ends = h.flags&syscall.MSG_EOR != 0
	if h.n == 0 && !ends {
		return 0, false, io.EOF
	}
	return h.n, ends, nil
}

// keepPart keeps for the next receive what one got of a message before the error,
// and returns what to say.
func (h *half) keepPart(part []byte, err error) error {
	h.ahead = append([]byte(nil), part...)
	if len(part) > 0 {
		err = within(err)
	}
	return err
}

// skipRest receives the rest of a message that was too long for its receiver.
func (f *fd) skipRest(h *half) error {
	for h.skip {
		_, ends, err := f.nextPart(h, make([]byte, 4<<10))
		if err != nil {
			return within(err)
		}
		h.skip = !ends
	}
	return nil
}

// recvAppend receives one message of any length behind dst.
func (f *fd) recvAppend(dst []byte) ([]byte, error) {
	h := &f.r
	if err := f.enterRecv(h); err != nil {
		return dst, err
	}
	defer f.leave(h)
	return f.recvBehind(h, dst)
}

func (f *fd) recvBehind(h *half, dst []byte) ([]byte, error) {
	switch {
	case h.held:
		dst = append(dst, h.ahead...)
		h.held, h.ahead = false, nil
		return dst, nil
	case kern.looseRecords():
		return f.appendParts(h, dst)
	}
	p, err := f.makeRoom(h, dst)
	if err != nil {
		return dst, err
	}
	n, err := f.recvInto(h, p[len(p):cap(p)])
	if err != nil {
		return dst, err
	}
	return p[:len(p)+n], nil
}

// makeRoom waits for a message and gives p room for it behind what is there. A
// kernel that does not tell the length of a message that is only looked at tells
// whether that was all of it.
func (f *fd) makeRoom(h *half, p []byte) ([]byte, error) {
	for {
		h.buf, h.flags = p[len(p):cap(p)], syscall.MSG_PEEK
		if peekTells {
			h.buf, h.flags = nil, syscall.MSG_PEEK|syscall.MSG_TRUNC
		} else if len(h.buf) == 0 {
			h.buf = h.one[:]
		}
		if err := f.run(h, recvmsgCall); err != nil {
			return p, callError("recvmsg", err)
		}
		if peekTells || h.flags&syscall.MSG_TRUNC == 0 {
			return withRoom(p, h.n), nil
		}
		p = withRoom(p, max(roomAtLeast, 2*len(h.buf)))
	}
}

// appendParts is recvBehind where a message may arrive in parts: see recvParts.
func (f *fd) appendParts(h *half, dst []byte) ([]byte, error) {
	if err := f.skipRest(h); err != nil {
		return dst, err
	}
	p := append(dst, h.ahead...)
	for last := false; !last; {
		if len(p) == cap(p) {
			p = withRoom(p, max(roomAtLeast, len(p)-len(dst)))
		}
		n, ends, err := f.nextPart(h, p[len(p):cap(p)])
		if err != nil {
			return dst, h.keepPart(p[len(dst):], err)
		}
		p, last = p[:len(p)+n], ends
	}
	h.ahead = nil
	return p, nil
}

// roomAtLeast is the room that a message of unknown length is given at first.
const roomAtLeast = 512

// withRoom returns p with room for n bytes behind it.
func withRoom(p []byte, n int) []byte {
	if cap(p)-len(p) >= n {
		return p
	}
	return append(p, make([]byte, n)...)[:len(p)]
}

// sendFiles sends the descriptors of the files as SCM_RIGHTS with the data.
func (f *fd) sendFiles(files []*os.File, data []byte) error {
	h := &f.w
	if err := f.enterMessage(h); err != nil {
		return err
	}
	defer f.leave(h)
	return whileOpen(files, make([]int, 0, len(files)), func(fds []int) error {
		if f.kind == messages {
			return f.sendMessage(h, data, syscall.UnixRights(fds...))
		}
		h.buf, h.oob, h.flags = data, syscall.UnixRights(fds...), 0
		for {
			if err := f.run(h, sendmsgCall); err != nil {
				return sendError(err)
			}
			if h.n == len(h.buf) {
				return nil
			}
			h.buf, h.oob = h.buf[h.n:], nil // the files went with the first byte
		}
	})
}

// recvFiles receives one byte, or one message, with descriptors. Data that came
// without them, or is not the zero byte that they travel with, is kept for the
// next read.
func (f *fd) recvFiles() ([]*os.File, error) {
	h := &f.r
	if err := f.enterRecv(h); err != nil {
		return nil, err
	}
	defer f.leave(h)
	if err := f.skipRest(h); err != nil {
		return nil, err
	}
	if h.held || len(h.ahead) > 0 {
		return nil, ErrNoFiles
	}
	p := make([]byte, 1)
	switch {
	case f.kind != messages:
	case kern.looseRecords(): // what does not fit stays
		p = make([]byte, roomAtLeast)
	default:
		room, err := f.makeRoom(h, p[:0])
		if err != nil {
			return nil, err
		}
		p = room[:cap(room)]
	}
	n, files, err := f.takeRights(h, p)
	if err == nil && files == nil {
		err = ErrNoFiles
	}
	whole := f.kind == messages && (!kern.looseRecords() || h.flags&syscall.MSG_EOR != 0)
	alone := n == 1 && p[0] == zeroByte[0] && err != ErrNoFiles && whole == (f.kind == messages)
	if !alone && (n > 0 || err == ErrNoFiles) {
		h.ahead, h.held = p[:n], whole
	}
	return files, err
}

// recvRights receives some data, and the descriptors that came with it. It tells
// of the data also when there is something wrong with the descriptors.
func (f *fd) recvRights(p []byte) (int, []*os.File, error) {
	h := &f.r
	if err := f.enterRecv(h); err != nil {
		return 0, nil, err
	}
	defer f.leave(h)
	return f.takeRights(h, p)
}

func (f *fd) takeRights(h *half, p []byte) (int, []*os.File, error) {
	h.buf, h.oob, h.flags = p, make([]byte, rightsRoom), 0
	err := f.run(h, recvmsgCall)
	if err == syscall.EMSGSIZE {
		return f.lostRights(h, err)
	}
	if err != nil {
		return 0, nil, callError("recvmsg", err)
	}
	fds, err := rights(h.oob[:h.oobn])
	if err == nil && h.flags&syscall.MSG_CTRUNC != 0 {
		err = &ruleError{"the list of files was cut off", ErrMsgTooLong}
	}
	if err != nil {
		for _, fd := range fds {
			syscall.Close(fd)
		}
		return h.n, nil, err
	}
	if h.n == 0 && len(fds) == 0 && !(f.kind == messages && kern.isMessage(h.flags, h.oobn)) {
		return 0, nil, io.EOF
	}
	var files []*os.File
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "received"))
	}
	return h.n, files, nil
}

// lostRights is for a process that had no descriptors left. The BSDs and macOS say
// EMSGSIZE then, where Linux cuts the list off, and drop the files; the data of a
// stream is still there, and goes as it would have gone with them.
func (f *fd) lostRights(h *half, err error) (int, []*os.File, error) {
	err = &classified{os.NewSyscallError("recvmsg", err), ErrMsgTooLong}
	if f.kind == messages && !kern.looseRecords() {
		return 0, nil, err
	}
	h.oob, h.flags = nil, 0
	if control(func() error { return recvmsgCall(f.sys, h) }) != nil {
		return 0, nil, err
	}
	return h.n, nil, err
}

// rightsMax is the most descriptors that one message carries on any system
// (macOS and NetBSD: 512); rightsRoom is room for as many, so that the kernel never
// has to cut the list, and for what else it adds.
const (
	rightsMax  = 512
	rightsRoom = 4*rightsMax + 280
)

// rights returns the descriptors in control messages.
func rights(oob []byte) (fds []int, err error) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	for _, m := range msgs {
		if m.Header.Level != syscall.SOL_SOCKET || m.Header.Type != syscall.SCM_RIGHTS {
			continue
		}
		m.Data = m.Data[:len(m.Data)&^3] // whole descriptors, or ParseUnixRights panics
		some, e := syscall.ParseUnixRights(&m)
		if e != nil {
			err = e
		}
		fds = append(fds, some...)
	}
	return fds, err
}

// ReadMsg reads data and control messages, as recvmsg(2) does, for what this
// package does not wrap: it returns how much of p and of oob was filled, and the
// flags (MSG_CTRUNC and the like). It waits until there is something. Descriptors
// among the control messages are close-on-exec and the caller's to close;
// [syscall.ParseSocketControlMessage] takes oob apart. Where there is room in p for
// no byte, one may be lost with them. ReadMsg and WriteMsg know nothing of the frames
// of a MsgConn that is not native.
func (c *endpoint) ReadMsg(p, oob []byte) (n, oobn, flags int, err error) {
	n, oobn, flags, err = c.fd.readMsg(p, oob)
	return n, oobn, flags, c.failed("readmsg", err)
}

// WriteMsg writes data with control messages, as one sendmsg(2) does, and returns
// how much of p was written: on a stream perhaps not all. The control messages
// went with the first byte; Linux sends none without a byte.
func (c *endpoint) WriteMsg(p, oob []byte) (n int, err error) {
	n, err = c.fd.writeMsg(p, oob)
	return n, c.failed("writemsg", err)
}

func (f *fd) readMsg(p, oob []byte) (n, oobn, flags int, err error) {
	h := &f.r
	if err := f.enterRecv(h); err != nil {
		return 0, 0, 0, err
	}
	defer f.leave(h)
	if err := f.skipRest(h); err != nil {
		return 0, 0, 0, err
	}
	if h.held || len(h.ahead) > 0 {
		n := h.readAhead(p)
		if h.held && len(h.ahead) > 0 {
			flags = syscall.MSG_TRUNC
		}
		if h.held {
			h.held, h.ahead = false, nil
		}
		return n, 0, flags, nil
	}
	h.buf, h.oob, h.flags = p, oob, 0
	switch {
	case f.kind == messages && markRoom > 0:
		h.oob = make([]byte, markRoom+len(oob)) // the mark comes first
	case !cutsRights && len(p)+len(oob) > 0:
		h.oob = make([]byte, rightsRoom)
	}
	if err := f.run(h, recvmsgCall); err != nil {
		return 0, 0, 0, callError("recvmsg", err)
	}
	ended := f.kind != messages || !kern.isMessage(h.flags, h.oobn)
	if h.n == 0 && h.oobn == 0 && ended && len(p) > 0 {
		return 0, 0, h.flags, io.EOF
	}
	switch {
	case f.kind == messages && markRoom > 0:
		h.oobn = copy(oob, kern.unmarked(h.oob[:h.oobn]))
	case !cutsRights && len(h.oob) > 0:
		var cut bool
		if h.oobn, cut = fitRights(oob, h.oob[:h.oobn]); cut {
			h.flags |= syscall.MSG_CTRUNC
		}
	}
	return h.n, h.oobn, h.flags, nil
}

// fitRights copies control messages into oob, or of too many only the descriptors
// that fit, and reports whether any were cut off. It closes the other descriptors,
// which a kernel that cuts without a thought leaves open for nobody to find.
func fitRights(oob, got []byte) (n int, cut bool) {
	if len(got) <= len(oob) {
		return copy(oob, got), false
	}
	fds, _ := rights(got) // what is garbled is cut off
	fit := 0
	for fit < len(fds) && syscall.CmsgSpace(4*(fit+1)) <= len(oob) {
		fit++
	}
	for _, fd := range fds[fit:] {
		syscall.Close(fd)
	}
	if fit > 0 {
		n = copy(oob, syscall.UnixRights(fds[:fit]...))
	}
	return n, true
}

func (f *fd) writeMsg(p, oob []byte) (int, error) {
	h := &f.w
	if err := f.enterMessage(h); err != nil {
		return 0, err
	}
	defer f.leave(h)
	if f.kind == messages {
		if err := f.sendMessage(h, p, oob); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	h.buf, h.oob, h.flags = p, oob, 0
	if err := f.run(h, sendmsgCall); err != nil {
		return 0, sendError(err)
	}
	return h.n, nil
}

// ---------------------------------------------------------------------------
// Operations on descriptors that do not block

func (f *fd) closeWrite() error { return f.shutdown(syscall.SHUT_WR) }

// closeRead throws away what was not read yet, as the BSDs do by themselves: on
// Linux reads would go on to return it, and a peer that waits for room to write
// would not learn that nobody makes any. On the BSDs it does not learn of it at all,
// and what it goes on to send must not be read, as it follows a gap.
func (f *fd) closeRead() error {
	f.r.deaf.Store(true) // before there is a gap
	if err := f.shutdown(syscall.SHUT_RD); err != nil {
		return err
	}
	// The reads that the shutdown woke come first, and those that wait for them: what
	// they return must have no gap.
	h := &f.r
	if f.enter(h) != nil {
		return nil // closed meanwhile, both ways
	}
	defer f.leave(h)
	if h.envelope != nil {
		h.held, h.ahead = false, nil
	}
	if kern.hearsOn() {
		return nil // there may be no end of it
	}
	waste := make([]byte, 32<<10)
	for {
		if n, err := syscall.Read(f.sys, waste); n <= 0 && err != syscall.EINTR {
			return nil // the end, or what the next read says
		}
	}
}

func (f *fd) shutdown(how int) error {
	return f.control("shutdown", func() error { return syscall.Shutdown(f.sys, how) })
}

func (f *fd) setBuffer(d direction, n int) error {
	if n < 0 {
		return configError("the buffer size", strconv.Itoa(n), "0 or more")
	}
	opt := syscall.SO_RCVBUF
	if d == writing {
		opt = syscall.SO_SNDBUF
	}
	n = min(n, maxInt32) // package syscall would take the lower half
	return f.control("setsockopt", func() error {
		return syscall.SetsockoptInt(f.sys, syscall.SOL_SOCKET, opt, n)
	})
}

// maxInt32 is the largest int of C, on every system.
const maxInt32 = 1<<31 - 1

func (f *fd) peer() (p Peer, err error) {
	err = f.control("getsockopt", func() (err error) {
		p, err = kern.peerOf(f.sys)
		return err
	})
	return p, err
}

func (f *fd) dupFile(name string) (*os.File, error) {
	var sys int
	f.share()
	err := f.control("dup", func() (err error) {
		sys, err = kern.dup(f.sys)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(sys), name), nil
}

func (f *fd) localAddr() Addr  { return f.name(syscall.Getsockname) }
func (f *fd) remoteAddr() Addr { return f.name(syscall.Getpeername) }

func (f *fd) name(get func(int) (syscall.Sockaddr, error)) (a Addr) {
	f.control("", func() error {
		sa, err := get(f.sys)
		a = addrOf(sa)
		return err
	})
	return a
}

// control makes a call on the descriptor that does not block.
func (f *fd) control(name string, call func() error) error {
	if err := f.use(); err != nil {
		return err
	}
	defer f.unuse()
	return callError(name, control(call))
}

// ---------------------------------------------------------------------------
// Errors

// writeError is the callError of a write: what the systems say of a peer that is
// gone all matches EPIPE. macOS says EPROTOTYPE while the peer is closing.
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

// errnoOf returns the errno in err, or err itself if there is none. errors.As says
// the same, but brings reflection into programs that have no other use for it.
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

// An everyUnix does what differs between the systems as every one of them can. The
// type kernel of each system has it inside, and methods of its own where it can do
// better.
type everyUnix struct{}

// kern is what this package knows of the kernel.
var kern kernel

// holdsLock is for systems where a lock of this process must be known before its
// file is opened.
func (everyUnix) holdsLock(string) (held bool, letGo func()) { return false, func() {} }

func (everyUnix) newPipe(p *[2]int) error { return syscall.Pipe(p[:]) }

func (everyUnix) read(sys int, p []byte, _ bool) (int, error)  { return syscall.Read(sys, p) }
func (everyUnix) write(sys int, p []byte, _ bool) (int, error) { return syscall.Write(sys, p) }

// readv and writev work on the first buffer where package syscall does not reach
// them: short transfers are in their contract.
func (everyUnix) readv(sys int, iov []iovec) (int, error)  { return kern.read(sys, first(iov), false) }
func (everyUnix) writev(sys int, iov []iovec) (int, error) { return kern.write(sys, first(iov), false) }

func (everyUnix) yield() {}

// hearsOn reports whether what the peer sends may go on to arrive after a shutdown of
// the reading side, of which nobody tells it.
func (everyUnix) hearsOn() bool { return true }

// hungUp reports whether a FIFO had a writer that left, where the kernel tells.
func (everyUnix) hungUp(int) bool { return false }

// markMessages makes empty messages differ from the end, if they do not anyway;
// isMessage tells by the result of a receive of no bytes whether it was one.
func (everyUnix) markMessages(int)           {}
func (everyUnix) isMessage(int, int) bool    { return true }
func (everyUnix) unmarked(oob []byte) []byte { return oob }

// looseRecords reports whether messages are no more than records in a stream: see
// the one for FreeBSD. carriesEmpty reports whether a message may be empty.
func (everyUnix) looseRecords() bool { return false }
func (everyUnix) carriesEmpty() bool { return true }

// No other system but Linux splices.
func (everyUnix) spliceFrom(*fd, io.Reader) (int64, bool, error) { return 0, false, nil }
func (everyUnix) spliceTo(*fd, io.Writer) (int64, bool, error)   { return 0, false, nil }

// control makes a call that does not block, again if a signal interrupted it.
func control(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR {
			return err
		}
	}
}

// atBirth makes descriptors close-on-exec and nonblocking before another
// goroutine can start a child: by socketFlags, where make's call takes them, or
// else under the lock that every fork of this process waits for.
func atBirth(make func() error, made ...*int) error {
	if socketFlags != 0 {
		return control(make)
	}
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := control(make); err != nil {
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
	err = atBirth(func() (err error) {
		sys, err = syscall.Socket(syscall.AF_UNIX, typ|socketFlags, 0)
		return err
	}, &sys)
	return sys, os.NewSyscallError("socket", err)
}

// accept is for systems without accept4(2). The listener does not
// block, so neither does a fork that waits for the lock.
func (everyUnix) accept(sys int) (conn int, err error) {
	err = atBirth(func() (err error) {
		conn, _, err = syscall.Accept(sys)
		return err
	}, &conn)
	return conn, acceptError(sys, err)
}

// acceptError takes a client for one that gave up if package syscall turned it away:
// it does with EINVAL if the client is bound to a path too long for its sockaddr_un.
func acceptError(sys int, err error) error {
	if err == syscall.EINVAL && isListening(sys) == nil {
		return syscall.ECONNABORTED
	}
	return err
}

// dup duplicates a descriptor, close-on-exec, where package syscall
// does not reach F_DUPFD_CLOEXEC.
func (everyUnix) dup(sys int) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	d, err := syscall.Dup(sys)
	if err == nil {
		syscall.CloseOnExec(d)
	}
	return d, err
}

// sendmsg and recvmsg are sendmsg(2) and recvmsg(2) as package syscall has them.
func (everyUnix) sendmsg(sys int, p, oob []byte, flags int) (int, error) {
	return syscall.SendmsgN(sys, p, oob, nil, flags)
}

func (everyUnix) recvmsg(sys int, p, oob []byte, flags int) (n, oobn, got int, err error) {
	n, oobn, got, _, err = syscall.Recvmsg(sys, p, oob, flags)
	return min(n, len(p)), oobn, got, err // it asks for a byte that p has no room for
}

// fullOrTooLong is the error of a send that needs so much room in a queue: EAGAIN
// if it fits once the queue is empty, EMSGSIZE if it never does. Some kernels say
// the one for the other. They tell how much a queue holds as the block size of the
// socket: see the function behind stat of uipc_usrreq.c.
func fullOrTooLong(sys, need int) error {
	var st syscall.Stat_t
	if err := control(func() error { return syscall.Fstat(sys, &st) }); err != nil {
		return err
	}
	if need > int(st.Blksize) {
		return syscall.EMSGSIZE
	}
	return syscall.EAGAIN
}

// bind binds the socket to a target that fits into a sockaddr_un.
func bind(sys int, target string) error {
	sa := sockAddr(target)
	return classify("bind", control(func() error { return syscall.Bind(sys, sa) }))
}

func open(path string, flags int) (fd int, err error) {
	err = control(func() (err error) {
		fd, err = syscall.Open(path, flags, 0o600)
		return err
	})
	return fd, err
}

func unlink(path string) error {
	return os.NewSyscallError("unlink", control(func() error { return syscall.Unlink(path) }))
}

// flock takes or gives up the flock(2) of an open file, without waiting: the
// error is EWOULDBLOCK if somebody else has it.
func flock(fd int, take bool) error {
	how := lockUN
	if take {
		how = lockEX | lockNB
	}
	return control(func() error { return kern.sysFlock(fd, how) })
}

// sys/file.h, the same on every system that has flock.
const (
	lockEX = 2
	lockNB = 4
	lockUN = 8
)

// A dirEntry is what the name of a file leads to.
type dirEntry struct {
	id     fileID
	socket bool
}

func lstat(path string) (dirEntry, error) {
	var st syscall.Stat_t
	if err := control(func() error { return syscall.Lstat(path, &st) }); err != nil {
		return dirEntry{}, err
	}
	return dirEntry{idOf(&st), st.Mode&syscall.S_IFMT == syscall.S_IFSOCK}, nil
}

func fstatID(fd int) fileID {
	var st syscall.Stat_t
	if err := control(func() error { return syscall.Fstat(fd, &st) }); err != nil {
		return fileID{}
	}
	return idOf(&st)
}

func idOf(st *syscall.Stat_t) fileID { return fileID{uint64(st.Dev), uint64(st.Ino)} }

// ---------------------------------------------------------------------------
// Shared memory

// newMemory makes a memory object of that size, close-on-exec and without a name.
func newMemory(size int) (memoryFiles, error) { return kern.newMemory(size) }

// sealMemory keeps the object from shrinking and growing, and if nobody but the mappings
// that there are is to write to it, from being written by any other.
func sealMemory(f *os.File, ownerWrites bool) error {
	return withFile(f, func(sys uintptr) error { return kern.sealMemory(int(sys), ownerWrites) })
}

// checkMemory tells the size of a memory object, if it is one that cannot shrink.
func checkMemory(f *os.File) (info memoryInfo, err error) {
	err = withFile(f, func(sys uintptr) (err error) {
		info, err = kern.checkMemory(int(sys))
		return err
	})
	return info, err
}

// The defaults are for systems that cannot keep memory from shrinking: an access to a page
// that somebody cut off ends the process (SIGBUS), unless runtime/debug.SetPanicOnFault
// has taken precautions, which belongs to another package than this one uses.
var errNoMemory = &ruleError{"this system has no memory that cannot shrink", errors.ErrUnsupported}

func (everyUnix) newMemory(int) (memoryFiles, error)  { return memoryFiles{}, errNoMemory }
func (everyUnix) sealMemory(int, bool) error          { return errNoMemory }
func (everyUnix) checkMemory(int) (memoryInfo, error) { return memoryInfo{}, errNoMemory }
func (everyUnix) openReadOnly(int) (*os.File, error)  { return nil, errNoMemory }
func (everyUnix) mapAt(mem []byte, prot, flags, sys, offset int) error {
	return errNoMemory
}

// mapMemory maps the first size bytes of a memory object, and the last of them, as many as
// again says, a second time behind that.
func mapMemory(f *os.File, size, again int, write bool) (mem []byte, err error) {
	prot := syscall.PROT_READ
	if write {
		prot |= syscall.PROT_WRITE
	}
	err = withFile(f, func(sys uintptr) error {
		if again == 0 {
			mem, err = syscall.Mmap(int(sys), 0, size, prot, syscall.MAP_SHARED)
		} else {
			mem, err = kern.mapTwice(int(sys), size, again, prot)
		}
		return os.NewSyscallError("mmap", err)
	})
	return mem, err
}

// mapTwice takes room for both mappings first, and then puts them into it, so that nothing
// else can get in between.
func (everyUnix) mapTwice(sys, size, again, prot int) ([]byte, error) {
	mem, err := syscall.Mmap(-1, 0, size+again, syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, err
	}
	const flags = syscall.MAP_SHARED | syscall.MAP_FIXED
	if err = kern.mapAt(mem[:size], prot, flags, sys, 0); err == nil {
		err = kern.mapAt(mem[size:], prot, flags, sys, size-again)
	}
	if err != nil {
		syscall.Munmap(mem)
		return nil, err
	}
	return mem, nil
}

// unmapMemory ends what mapMemory returned.
func unmapMemory(mem []byte, again int) error {
	return os.NewSyscallError("munmap", syscall.Munmap(mem))
}

// vacateMemory puts empty memory in the place of a mapping, which then stays readable for
// ever and holds on to nothing.
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

// duplicateFile duplicates the descriptor of a memory object.
func duplicateFile(f *os.File) (d *os.File, err error) {
	err = withFile(f, func(sys uintptr) error {
		n, err := kern.dup(int(sys))
		if err == nil {
			d = os.NewFile(uintptr(n), "memory")
		}
		return os.NewSyscallError("dup", err)
	})
	return d, err
}

// A farBell is the peer's end of a doorbell, on its way.
type farBell struct{ *os.File }

func (b farBell) close() { b.Close() }

// newBell makes a doorbell: a pair of sockets. A pipe would be cheaper, but who writes to a
// pipe can hold its lock for as long as he likes (a page that userfaultfd(2) or FUSE serves),
// and then a read of it waits as long. The far end may block, so that os.NewFile leaves the
// poller alone; the peer changes that.
func newBell() (*fd, farBell, error) {
	var s [2]int
	err := atBirth(func() (err error) {
		s, err = syscall.Socketpair(syscall.AF_UNIX, socketType(streams)|socketFlags, 0)
		return err
	}, &s[0], &s[1])
	if err != nil {
		return nil, farBell{}, os.NewSyscallError("socketpair", err)
	}
	near := newConnFD(s[0], streams)
	if err := syscall.SetNonblock(s[1], false); err != nil {
		near.close()
		syscall.Close(s[1])
		return nil, farBell{}, os.NewSyscallError("fcntl", err)
	}
	return near, farBell{os.NewFile(uintptr(s[1]), "doorbell")}, nil
}

// ringBell sends one byte. It does not wait: a socket that is full has enough of them.
func ringBell(f *fd) error {
	if err := f.use(); err != nil {
		return err
	}
	defer f.unuse()
	for {
		_, err := kern.sendmsg(f.sys, zeroByte[:], nil, dontWait)
		switch err {
		case syscall.EINTR:
		case syscall.EAGAIN, syscall.ENOBUFS:
			return nil
		default:
			return err
		}
	}
}

// sendHello sends the hello with the memory and the far end of the doorbell.
func sendHello(f *fd, memory *os.File, bell farBell, hello []byte) error {
	return f.sendFiles([]*os.File{memory, bell.File}, hello)
}

// A received is what came with a hello. The peer chose it, so it is closed as every file is
// that nobody asked for.
type received struct{ *os.File }

func (r received) close()           { closeFiles([]*os.File{r.File}) }
func (r received) memory() *os.File { return r.File }

// doorbell returns the end of a doorbell, over a duplicate of r.
func (r received) doorbell() (*fd, error) { return adoptConn(r.File, streams) }

// recvHello receives some of a hello and what came with it.
func recvHello(f *fd, p []byte) (n int, with []received, err error) {
	n, files, err := f.recvRights(p)
	for _, file := range files {
		with = append(with, received{file})
	}
	return n, with, err
}
