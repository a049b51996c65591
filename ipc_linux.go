package ipc

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// Traits of Linux and Android that ipc_unix.go builds on.
const (
	abstractNames = true  // names without a file: unix(7)
	fullRefuses   = false // a full backlog is EAGAIN, not ECONNREFUSED
	pathMax       = 4095  // PATH_MAX of linux/limits.h, less the NUL
	socketFlags   = syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	framedHere    = false // SOCK_SEQPACKET keeps messages apart
	peekTells     = true  // MSG_PEEK|MSG_TRUNC returns the whole length of a message
	dontWait      = syscall.MSG_DONTWAIT
	cmsgCloexec   = syscall.MSG_CMSG_CLOEXEC
	noSignal      = syscall.MSG_NOSIGNAL
	filesAlone    = false // net/unix/af_unix.c, unix_stream_sendmsg: no control message goes without data
	sharesMemory  = true  // see newMemory
	spinByDefault = int64(spinDefault)
	fifoPolls     = true  // the poller serves FIFOs
	fifoQuiet     = false // a FIFO without a writer reads as ended, not as empty
)

type kernel struct{ baseKernel }

// ---------------------------------------------------------------------------
// What only Linux has

// PeerPidfd returns a descriptor that stands for the peer's process itself, even if its
// number is used again: SO_PEERPIDFD of Linux 6.5 and later, see pidfd_open(2). It
// becomes readable when the process ends. A signal that is sent to it, by
// pidfd_send_signal(2), reaches no other process. The process is the one that the
// credentials belong to: see [Peer]. Before 6.5 the error matches
// [errors.ErrUnsupported].
//
// The file is nonblocking and registered with the runtime's poller. So its SyscallConn
// can wait for the end of the process, with a deadline, and holds no thread; the Example
// shows it. [Conn.WaitPeer] does all that.
func (c *endpoint) PeerPidfd() (*os.File, error) {
	var f *os.File
	err := c.end().option("getsockopt", func() (err error) {
		f, err = peerPidfd(c.fd.sys)
		return err
	})
	return f, c.failed("peer", err)
}

func peerPidfd(sys int) (*os.File, error) {
	const soPeerPidfd = 77                                                    // asm-generic/socket.h
	pidfd, err := syscall.GetsockoptInt(sys, syscall.SOL_SOCKET, soPeerPidfd) // close-on-exec from birth
	if err != nil {
		return nil, err
	}
	return pidfdFile(pidfd)
}

// pidfdFile takes ownership of a pidfd that nobody else has.
func pidfdFile(pidfd int) (*os.File, error) {
	if err := syscall.SetNonblock(pidfd, true); err != nil { // or os.NewFile keeps it from the poller
		syscall.Close(pidfd)
		return nil, err
	}
	return os.NewFile(uintptr(pidfd), "pidfd"), nil
}

// PeerLabel returns the label that the security module (SELinux, AppArmor) gave
// the peer: SO_PEERSEC of unix(7). Where none is in force the error matches
// [errors.ErrUnsupported].
func (c *endpoint) PeerLabel() (string, error) {
	label := make([]byte, 256)
	for {
		n := len(label)
		err := c.end().option("getsockopt", func() error { return getsockopt(c.fd.sys, syscall.SO_PEERSEC, label, &n) })
		switch {
		case errnoOf(err) == syscall.ERANGE && n > len(label):
			label = make([]byte, n)
		case err != nil:
			return "", c.failed("peer", err)
		default:
			return strings.TrimRight(string(label[:n]), "\x00"), nil
		}
	}
}

// PeerGroups returns the supplementary groups of the peer: SO_PEERGROUPS of socket(7),
// Linux 4.13 and later. Groups without a mapping in this user namespace are left out.
// [Peer.Groups] returns the same groups. Before 4.13 the error matches
// [errors.ErrUnsupported].
func (c *endpoint) PeerGroups() (groups []int, err error) {
	err = c.end().option("getsockopt", func() (err error) {
		groups, err = peerGroups(c.fd.sys)
		return err
	})
	return groups, c.failed("peer", err)
}

// RefuseFiles has the system refuse the files that the peer sends from now on: SO_PASSRIGHTS of
// Linux 6.16 and later. The peer's send fails then with an error that matches [os.ErrPermission],
// and nothing of it arrives. What was sent before can still be received. Before 6.16 the error
// matches [errors.ErrUnsupported], and the peer can send files as before.
//
// It is for an end that needs no files. Once those that were sent before are received, nothing
// that the peer chose is closed in this process any more, which takes threads and can take long
// (SECURITY.md). Once the queue has been empty, a Read of a Conn needs no room for descriptors and
// costs less, unless the socket has another holder: File, SyscallConn, Inherit and the like. Such
// a holder can also have files come again. Shared memory is passed as files, so a [Conn.Share] goes
// through the socket then.
func (c *endpoint) RefuseFiles() error {
	return c.failed("refuse files", c.end().refuseFiles())
}

const soPassRights = 83 // asm-generic/socket.h, and arch/mips/include/uapi/asm/socket.h

// RefuseFiles is [Conn.RefuseFiles] for each client that connects from now on, before anybody has
// accepted it: nothing in the queue of a client that is refused takes threads or descriptors of this
// process then. A client that connected before may have sent files until it is accepted.
func (l *Listener) RefuseFiles() error { return serverOf(l).refuseFiles() }

// RefuseFiles is [Listener.RefuseFiles].
func (l *MsgListener) RefuseFiles() error { return serverOf(l).refuseFiles() }

func (l *server) refuseFiles() error { return l.failed("refuse files", l.end().refuseFiles()) }

// refuseRights asks whether it was done, since a sandbox may accept options that it does not know.
// Who sends files looks whether they are refused, and puts them into the queue, under the lock of
// the receiving socket's state (unix_stream_sendmsg of net/unix/af_unix.c). getpeername(2) takes
// that lock, too (unix_peer_get). So afterwards no file is still on its way. The socket of a client
// has the option from the listener (unix_stream_connect).
func (kernel) refuseRights(sys int) error {
	err := syscall.SetsockoptInt(sys, syscall.SOL_SOCKET, soPassRights, 0)
	if err != nil {
		return err
	}
	if on, err := syscall.GetsockoptInt(sys, syscall.SOL_SOCKET, soPassRights); err != nil || on != 0 {
		return syscall.ENOPROTOOPT
	}
	syscall.Getpeername(sys) // for the lock; the peer may be gone
	return nil
}

// RecvPeer is [MsgConn.Recv], and also returns who sent this very message, as the kernel
// recorded it when the message was sent: SCM_CREDENTIALS of unix(7). That is more than
// [MsgConn.Peer] when several processes share the other end. The kernel records the real user and group
// here, unless the sender names others that it may be; those of MsgConn.Peer are the effective ones. For
// a message that was sent before the first RecvPeer, the Peer may be unknown. If the socket has no name, the
// kernel gives it one (unix(7), autobind).
func (c *MsgConn) RecvPeer(p []byte) (int, Peer, error) {
	n, peer, err := c.end().recvPeer(p)
	return n, peer, c.failed("recv", err)
}

func (f *fd) recvPeer(p []byte) (n int, peer Peer, err error) {
	err = f.control("setsockopt", func() error { return setFlag(f.sys, syscall.SO_PASSCRED, f.mayBeOthersToo()) })
	if err != nil {
		return 0, Peer{}, err
	}
	if err := f.acquireRecv(); err != nil {
		return 0, Peer{}, err
	}
	defer f.release(&f.r)
	if f.in.holds() {
		n, err = f.in.recv(f, p)
		return n, Peer{}, err
	}
	room := rightsRooms.Get().(*[rightsRoom]byte)
	defer rightsRooms.Put(room)
	n, oobn, got, err := f.recvmsg(p, room[:], 0)
	if err != nil {
		return 0, Peer{}, callError("recvmsg", err)
	}
	discardRights(room[:oobn]) // nobody asked for files
	if _, err = f.classify(n, oobn, got); err != nil && err != ErrMsgTooLong {
		return 0, Peer{}, err
	}
	msgs, e := syscall.ParseSocketControlMessage(room[:oobn])
	if e != nil {
		return n, Peer{}, e
	}
	for _, m := range msgs {
		if cred, e := syscall.ParseUnixCredentials(&m); e == nil && cred.Pid != 0 {
			peer = credPeer(cred)
		}
	}
	return n, peer, err
}

// linux/fcntl.h: F_SETPIPE_SZ, F_GETPIPE_SZ.
const (
	setPipeSize = 1031
	getPipeSize = 1032
)

// SetCapacity asks for room for n bytes in the pipe or FIFO: F_SETPIPE_SZ of fcntl(2).
// The kernel rounds up to a power of two of pages; a user that is not root gets at most
// /proc/sys/fs/pipe-max-size. EBUSY means that more than n bytes are in the pipe.
func (e *pipeEnd) SetCapacity(n int) error {
	if n < 0 || n > maxInt32 { // the kernel would take the lower 32 bits of it
		return e.failed("set", configError("the capacity", strconv.Itoa(n), "0 to "+strconv.Itoa(maxInt32)))
	}
	_, err := e.end().fcntl(setPipeSize, n)
	return e.failed("set", err)
}

// Capacity returns the room in the pipe or FIFO in bytes: F_GETPIPE_SZ of
// fcntl(2).
func (e *pipeEnd) Capacity() (int, error) {
	n, err := e.end().fcntl(getPipeSize, 0)
	return n, e.failed("get", err)
}

func (f *fd) fcntl(cmd, arg int) (n int, err error) {
	err = f.control("fcntl", func() error {
		r, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(f.sys), uintptr(cmd), uintptr(arg))
		if errno != 0 {
			return errno
		}
		n = int(r)
		return nil
	})
	return n, err
}

// ---------------------------------------------------------------------------
// Splicing
//
// splice(2) moves bytes between a pipe and anything without a copy through user
// space. Between two sockets it takes a pipe in the middle.

// spliceFrom copies from r until r ends, if r is something to splice from. Unless done is
// set, the caller copies the rest by other means.
func (kernel) spliceFrom(f *fd, r io.Reader) (n int64, done bool, err error) {
	limit := int64(noLimit)
	if l, ok := r.(*io.LimitedReader); ok {
		r, limit = l.R, l.N
		defer func() { l.N -= n }()
	}
	src := spliceEnd(r)
	if own, ok := src.(rawConn); src == nil || ok && own.f.hasAhead() {
		return 0, false, nil
	}
	return splice(rawConn{f}, src, limit)
}

// spliceTo copies to w until the peer closes, if w is something to splice to.
func (kernel) spliceTo(f *fd, w io.Writer) (n int64, done bool, err error) {
	dst := spliceEnd(w)
	if _, file := w.(*os.File); dst == nil || file || f.hasAhead() {
		return 0, false, nil
	}
	return splice(dst, rawConn{f}, noLimit)
}

const noLimit = 1<<63 - 1

// spliceEnd returns access to the descriptor of v if v reads and writes nothing but what
// its descriptor does. That is known of the types below alone: a type that embeds one of
// them may do more. A file is only read from: to write to one may need more than splice
// offers (O_APPEND).
func spliceEnd(v any) (raw syscall.RawConn) {
	var err error
	switch v := v.(type) {
	case *Conn:
		return ownEnd(v.fd)
	case *PipeReader:
		return ownEnd(v.fd)
	case *PipeWriter:
		return ownEnd(v.fd)
	case *net.TCPConn:
		raw, err = v.SyscallConn()
	case *net.UnixConn:
		if v.LocalAddr().Network() != "unix" {
			return nil // messages, which splice would join
		}
		raw, err = v.SyscallConn()
	case *os.File:
		raw, err = v.SyscallConn()
	}
	if err != nil {
		return nil
	}
	return raw
}

// ownEnd is the spliceEnd of an end of this package. The zero value has none: its own
// methods say what is wrong.
func ownEnd(f *fd) syscall.RawConn {
	if f == nil {
		return nil
	}
	return rawConn{f}
}

// hasAhead reports whether something was read ahead, which must go before what is
// spliced. It waits for a read that is under way, so it is asked only for the end that
// the copy reads from. The end that the copy writes to may have a reader that waits for
// what the copy brings.
func (f *fd) hasAhead() bool {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return f.in.hasAhead()
}

// splice copies from src to dst until src ends. done is false if the kernel does not
// splice between the two, if src fails or cannot be waited for, or once others have dst. Nothing is
// lost then: a plain copy goes on from there or returns the error.
func splice(dst, src syscall.RawConn, limit int64) (total int64, done bool, err error) {
	s := splicer{dst: dst, src: src}
	if own, ok := dst.(rawConn); ok && own.f.socket {
		s.own = own.f
	}
	if !endsInPipe(dst) && !endsInPipe(src) {
		r, w, err := pipe()
		if err != nil {
			return 0, false, nil // out of descriptors: a plain copy needs none
		}
		defer r.close()
		defer w.close()
		w.fcntl(setPipeSize, spliceRoom) // a smaller one works too
		s.out, s.in = r, w
	}
	return s.run(limit)
}

func endsInPipe(raw syscall.RawConn) (yes bool) {
	raw.Control(func(sysfd uintptr) { yes = isPipe(int(sysfd)) == nil })
	return yes
}

// spliceRoom is the size of the pipe between two sockets.
const spliceRoom = 256 << 10

// A splicer moves bytes from src to dst. If neither is a pipe, it moves them through a
// pipe whose ends are in and out.
type splicer struct {
	dst, src syscall.RawConn
	in, out  *fd // or nil
	own      *fd // dst, if that is a socket of this package

	// The methods below are called by a syscall.RawConn, which passes on a descriptor and
	// a bool alone. So these are their arguments and results.
	want    int // bytes to move; n and errno are the result
	n       int
	errno   syscall.Errno
	blocked bool  // it is src that has to be waited for
	failed  error // the error of src: it is closed, say, or has no poller to wait with

	side    int // the descriptor of dst
	fromSrc func(src uintptr)
}

func (s *splicer) run(limit int64) (total int64, done bool, err error) {
	// The functions are made once, so that no wait allocates.
	fill, drain := s.fill, s.drain
	s.fromSrc = s.moveDirectly
	for total < limit && !s.mayBlock() {
		s.want = int(min(spliceRoom, limit-total))
		if s.in == nil {
			err = s.direct(fill, drain)
		} else {
			s.failed = s.src.Read(fill)
		}
		switch {
		case err != nil:
			return total, true, err
		case s.failed != nil, refused(s.errno):
			return total, false, nil
		case s.errno != 0:
			return total, true, os.NewSyscallError("splice", s.errno)
		case s.n == 0:
			return total, true, nil
		}
		moved := s.n
		if s.in != nil {
			moved, err = s.empty(s.n, drain)
		}
		if total += int64(moved); err != nil {
			return total, true, err
		}
	}
	return total, total >= limit, nil
}

// mayBlock reports whether splice(2) to dst can block: SPLICE_F_NONBLOCK does not count for a
// socket, and O_NONBLOCK is not ours alone once others have it, too.
func (s *splicer) mayBlock() bool { return s.own != nil && s.own.shared.Load() }

// empty moves the n bytes that are in the pipe to dst.
func (s *splicer) empty(n int, drain func(uintptr) bool) (moved int, err error) {
	for ; moved < n; moved += s.n {
		if s.mayBlock() {
			p := make([]byte, n-moved)
			if s.n, err = s.out.read(p); err == nil {
				s.n, err = s.own.write(p[:s.n])
			}
			if err != nil {
				return moved + s.n, err
			}
			continue
		}
		s.want = n - moved
		if err = s.dst.Write(drain); err == nil && s.errno != 0 {
			err = writeError("splice", s.errno)
		}
		if err != nil {
			return moved, err
		}
	}
	return moved, nil
}

// direct moves bytes where one side is a pipe, so that one call needs both sides to be
// ready. It moves them within a write to dst, so that they do not come in the middle of
// another write. It waits for src first, so that the deadline and Close of src count too.
// The error is that of dst.
func (s *splicer) direct(fill, drain func(uintptr) bool) error {
	for {
		if s.failed = s.src.Read(fill); s.failed != nil {
			return nil
		}
		if err := s.dst.Write(drain); err != nil || !s.blocked {
			return err
		}
	}
}

// moveDirectly moves bytes from src to side. If neither can go on it tells which one has to be
// waited for.
func (s *splicer) moveDirectly(src uintptr) {
	for range contradictionsMax {
		if s.mayBlock() {
			break
		}
		s.move(int(src), s.side)
		s.blocked = s.errno == syscall.EAGAIN && !readable(int(src))
		if s.errno != syscall.EAGAIN || s.blocked || !writable(s.side) {
			return
		}
		runtime.Gosched() // one of the two became ready just after
	}
	s.errno = syscall.EINVAL // or poll(2) is not allowed here, or contradicts splice(2)
}

// contradictionsMax is how often in a row poll(2) may say that both sides are ready and
// splice(2) that one is not. Meanwhile deadlines and Close are not looked at.
const contradictionsMax = 100

// refused reports whether the kernel does not splice between the two (EINVAL), or a
// sandbox does not let it.
func refused(errno syscall.Errno) bool {
	return errno == syscall.EINVAL || errno == syscall.ENOSYS || errno == syscall.EPERM
}

// fill is called when src may be ready.
func (s *splicer) fill(src uintptr) bool {
	if s.in != nil {
		return s.move(int(src), s.in.sys)
	}
	return readable(int(src))
}

// drain is called when dst may be ready.
func (s *splicer) drain(dst uintptr) bool {
	if s.out != nil {
		if s.mayBlock() {
			s.n, s.errno = 0, 0
			return true
		}
		return s.move(s.out.sys, int(dst))
	}
	s.side, s.blocked = int(dst), false
	if s.failed = s.src.Control(s.fromSrc); s.failed != nil {
		return true
	}
	return s.errno != syscall.EAGAIN || s.blocked
}

// linux/splice.h: SPLICE_F_MOVE, SPLICE_F_NONBLOCK.
const (
	spliceMove     = 1
	spliceNonblock = 2
)

// move makes the call. It returns false if the call failed because it would have to wait.
func (s *splicer) move(from, to int) bool {
	for {
		n, _, errno := syscall.Syscall6(syscall.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(s.want),
			spliceMove|spliceNonblock)
		if s.n, s.errno = int(n), errno; errno != syscall.EINTR {
			return errno != syscall.EAGAIN
		}
	}
}

// ---------------------------------------------------------------------------
// Primitives

// nameTarget maps a name to the abstract socket of that name.
func (kernel) nameTarget(name string) (string, error) {
	if limit := sunPathMax; len(name) > limit {
		return "", tooLong("the abstract name", len(name), limit)
	}
	return "\x00" + name, nil
}

// sockName and peerName read the socket address themselves. Package syscall ends an
// abstract name at its first NUL, and gives one and the same text to the abstract name
// x and to the path @x.
func (kernel) sockName(sys int) (Addr, error) { return nameOfSocket(numbers.getsockname, sys) }
func (kernel) peerName(sys int) (Addr, error) { return nameOfSocket(numbers.getpeername, sys) }

func nameOfSocket(trap uintptr, sys int) (Addr, error) {
	var sa syscall.RawSockaddrUnix
	size := uint32(unsafe.Sizeof(sa))
	_, _, errno := syscall.Syscall(trap, uintptr(sys), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return unnamed, errno
	}
	// size is that of the whole address, even if that is longer than sa: a path of 108
	// bytes has a NUL behind it that is not in sun_path.
	const sunPath = unsafe.Offsetof(sa.Path)
	n := min(max(int(size)-int(sunPath), 0), len(sa.Path))
	return addrOfSunPath(unsafe.Slice((*byte)(unsafe.Pointer(&sa.Path)), n)), nil
}

// addrOfSunPath returns the Addr of as much of a sun_path as the kernel says that
// there is: see unix(7), "Address format".
func addrOfSunPath(path []byte) Addr {
	switch {
	case len(path) == 0:
		return unnamed
	case path[0] == 0:
		return Name(string(path[1:]))
	}
	text, _, _ := strings.Cut(string(path), "\x00")
	return Path(text)
}

// runtimeDir is the XDG_RUNTIME_DIR that systemd-logind gives the processes it starts.
func (kernel) runtimeDir(uid int) string { return "/run/user/" + strconv.Itoa(uid) }

// oPath is O_PATH of asm-generic/fcntl.h, the same on every architecture: a
// descriptor that stands for the file and cannot be read or written.
const oPath = 0x200000

// shorten returns a name of at most a few bytes for a path of any length: the
// kernel follows /proc/self/fd/N to the very file, see proc(5).
func (kernel) shorten(path string) (short string, release func(), err error) {
	if short, release, err = pin(path, 0); err != nil {
		return "", nil, err
	}
	if _, err := lstat(short); err == syscall.ENOENT { // /proc is not mounted
		release()
		return baseKernel{}.shorten(path)
	}
	return short, release, nil
}

func pin(path string, flags int) (short string, release func(), err error) {
	fd, err := open(path, oPath|syscall.O_CLOEXEC|flags)
	if err != nil {
		return "", nil, classify("open", err)
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), func() { syscall.Close(fd) }, nil
}

// The calls that folder builds on: see ipc_unix.go. The numbers of fstatat and renameat differ too
// much between the architectures; lstatAt and renameAt do without.
var folderCalls = folderNumbers{
	openat: syscall.SYS_OPENAT, unlinkat: syscall.SYS_UNLINKAT, linkat: syscall.SYS_LINKAT,
	fchmodat: syscall.SYS_FCHMODAT, fchownat: syscall.SYS_FCHOWNAT,
}

// syscall6 makes a system call by its number, which package syscall does not for every
// Unix. Pointers among the arguments stay valid meanwhile.
//
//go:uintptrescapes
func syscall6(trap, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2 uintptr, errno syscall.Errno) {
	return syscall.Syscall6(trap, a1, a2, a3, a4, a5, a6)
}

const (
	folderFlags       = oPath
	atSymlinkNoFollow = 0x100           // linux/fcntl.h: AT_SYMLINK_NOFOLLOW; fchmodat(2) ignores it
	atEmptyPath       = 0x1000          // linux/fcntl.h: AT_EMPTY_PATH
	cleanerBit        = syscall.S_ISVTX // systemd-tmpfiles leaves files with this bit alone: tmpfiles.d(5)
)

// procName returns a name that leads to the file of the descriptor and nowhere else. It
// is "" if there is none: /proc is not mounted, or it is another one, or this process may
// not use it.
func procName(sys int, id fileID) string {
	name := "/proc/self/fd/" + strconv.Itoa(sys)
	var st syscall.Stat_t
	if err := ignoringEINTR(func() error { return syscall.Stat(name, &st) }); err != nil || idOf(&st) != id {
		return ""
	}
	return name
}

// nameIn returns a name for the file in the folder that holds as long as the folder is
// open.
func (kernel) nameIn(d *folder, name string) (string, error) {
	if dir := procName(d.sys, d.id); dir != "" {
		return joinPath(dir, name), nil
	}
	return d.named(name)
}

// lstatAt opens the file with O_PATH and asks the descriptor. If no descriptor is left,
// it asks by a name.
func (kernel) lstatAt(d *folder, name string, st *syscall.Stat_t) error {
	sys, err := d.open(name, oPath|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err == syscall.EMFILE || err == syscall.ENFILE {
		path, err := kern.nameIn(d, name)
		if err != nil {
			return err
		}
		return syscall.Lstat(path, st)
	}
	if err != nil {
		return err
	}
	defer syscall.Close(sys)
	return syscall.Fstat(sys, st)
}

func (kernel) renameAt(d *folder, from, to string) error {
	return syscall.Renameat(d.sys, from, d.sys, to)
}

// beginClosed: unix_bind_bsd of net/unix/af_unix.c makes the file with the mode
// of the socket, less the umask.
func (kernel) beginClosed(sys int) {
	ignoringEINTR(func() error { return syscall.Fchmod(sys, newSocketMode) }) // a sandbox may forbid it
}

// The modes that a socket and a FIFO are made with, less what the umask takes. Other sockets of this
// package that have the sticky bit can be read, too, and no other FIFO has it: so setMode knows that a
// file was just made. (Sandboxes forbid the bits that look better: RestrictSUIDSGID of systemd.exec(5).)
const (
	newSocketMode = syscall.S_ISVTX | 0o200
	newFIFOMode   = syscall.S_ISVTX | 0o600
)

// isNew reports whether the file has the mode that it was made with.
func isNew(st *syscall.Stat_t) bool {
	made := uint32(newFIFOMode)
	if st.Mode&syscall.S_IFMT == syscall.S_IFSOCK {
		made = newSocketMode
	}
	return st.Mode&syscall.S_ISVTX != 0 && st.Mode&0o7777&^made == 0
}

// bindAt binds by /proc/self/fd/N/name, which leads to the opened folder.
func (kernel) bindAt(sys int, d *folder, name string) error {
	dir := procName(d.sys, d.id)
	if dir == "" {
		return baseKernel{}.bindAt(sys, d, name)
	}
	path := joinPath(dir, name)
	if len(path) > sunPathMax {
		return errNoRoom
	}
	return bind(sys, path)
}

// probeAt keeps the socket open, so that it asks the one whose identity it returns, and
// so that no other file gets its inode before unpin.
func (kernel) probeAt(d *folder, name string) (at dirEntry, unpin func(), err error) {
	sys, err := d.open(name, oPath|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return dirEntry{}, noUnpin, err
	}
	st, err := fstat(sys)
	if err != nil {
		syscall.Close(sys)
		return dirEntry{}, noUnpin, err
	}
	at = entryOf(&st)
	unpin = func() { syscall.Close(sys) }
	if !at.socket {
		return at, unpin, errNoSocket
	}
	if path := procName(sys, at.id); path != "" {
		return at, unpin, probe(path)
	}
	asked, _, err := baseKernel{}.probeAt(d, name)
	if asked.id != at.id {
		err = errReplaced
	}
	return at, unpin, err
}

// isBound asks the kernel for the sockets of this network namespace that are bound to
// files: sock_diag(7). A socket of another namespace is not found. The kernel tells 32
// bits of the inode, and not always the device that stat(2) tells, so only the inode is
// compared. An unbound file may therefore be taken for a bound one, which is safe. An answer in several
// parts can leave a socket out if another one is closed between two of them (unix_diag_dump of
// net/unix/diag.c counts), so the kernel is asked several times then.
func (kernel) isBound(id fileID) (bool, error) {
	for range 3 {
		bound, whole, err := boundAtOnce(id)
		if bound || whole || err != nil {
			return bound, err
		}
	}
	return false, nil
}

// boundAtOnce asks once. The answer is whole if it came in one part.
func boundAtOnce(id fileID) (bound, whole bool, err error) {
	sys, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|socketFlags, netlinkSockDiag)
	if err != nil {
		return false, false, os.NewSyscallError("socket", err)
	}
	defer syscall.Close(sys)
	type unixDiagRequest struct { // struct nlmsghdr, and struct unix_diag_req of linux/unix_diag.h
		header           syscall.NlMsghdr
		family, protocol uint8
		_                uint16
		states           uint32
		inode            uint32 // of the socket, not of its file; 0 for every one
		show             uint32
		cookie           [2]uint32
	}
	const showVFS = 0x2 // linux/unix_diag.h: UDIAG_SHOW_VFS
	request := unixDiagRequest{family: syscall.AF_UNIX, states: ^uint32(0), show: showVFS}
	size := unsafe.Sizeof(request)
	request.header = syscall.NlMsghdr{
		Len: uint32(size), Type: sockDiagByFamily, Flags: syscall.NLM_F_REQUEST | syscall.NLM_F_DUMP,
	}
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(&request)), size)
	err = ignoringEINTR(func() error {
		return syscall.Sendto(sys, bytes, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK})
	})
	if err != nil {
		return false, false, os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 32<<10) // the kernel fills at most that in one go: NLMSG_GOODSIZE
	parts := 0
	for {
		var n int
		err := ignoringEINTR(func() (err error) {
			n, _, err = syscall.Recvfrom(sys, buf, 0)
			return err
		})
		if err != nil {
			return false, false, os.NewSyscallError("recvfrom", err)
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return false, false, err
		}
		if len(messages) > 0 && messages[0].Header.Type == sockDiagByFamily {
			parts++
		}
		for _, m := range messages {
			switch m.Header.Type {
			case syscall.NLMSG_DONE:
				return false, parts <= 1, nil
			case sockDiagByFamily:
				if inode, ok := boundInode(m.Data); ok && inode == uint32(id.ino) {
					return true, false, nil
				}
			default: // NLMSG_ERROR: unix_diag is not there
				return false, false, errors.ErrUnsupported
			}
		}
	}
}

const (
	netlinkSockDiag  = 4  // linux/netlink.h: NETLINK_SOCK_DIAG
	sockDiagByFamily = 20 // linux/sock_diag.h: SOCK_DIAG_BY_FAMILY
)

// boundInode returns the inode of the file that a socket is bound to, from an answer of
// the kernel: a struct unix_diag_msg and attributes, of which UNIX_DIAG_VFS begins with
// the inode.
func boundInode(answer []byte) (inode uint32, ok bool) {
	const (
		messageSize = 16 // struct unix_diag_msg of linux/unix_diag.h
		unixDiagVFS = 1
	)
	for rest := answer[min(messageSize, len(answer)):]; len(rest) >= syscall.SizeofRtAttr+4; {
		attr := (*syscall.RtAttr)(unsafe.Pointer(&rest[0])) // answers and attributes are aligned to 4 bytes
		if attr.Type == unixDiagVFS {
			return *(*uint32)(unsafe.Pointer(&rest[syscall.SizeofRtAttr])), true
		}
		size := (int(attr.Len) + syscall.RTA_ALIGNTO - 1) &^ (syscall.RTA_ALIGNTO - 1)
		if size < syscall.SizeofRtAttr || size > len(rest) {
			break
		}
		rest = rest[size:]
	}
	return 0, false
}

// setMode keeps the file open, so that it does not change another one that is put in its
// place meanwhile. One that was put there before is not new. Where nobody else can do that, the
// file system may have dropped the bit that tells.
func (kernel) setMode(d *folder, name string, typ, mode uint32, uid, gid int) (fileID, error) {
	file, err := d.open(name, oPath|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fileID{}, classify("open", err)
	}
	defer syscall.Close(file)
	st, err := fstat(file)
	if err != nil {
		return fileID{}, err
	}
	made := entryOf(&st)
	if made.typ != typ || !made.madeHere() || !isNew(&st) && !d.protectsFile(&st) {
		return fileID{}, errReplaced
	}
	if uid >= 0 || gid >= 0 {
		if err := ignoringEINTR(func() error { return syscall.Fchownat(file, "", uid, gid, atEmptyPath) }); err != nil {
			return made.id, os.NewSyscallError("chown", err)
		}
	}
	path := procName(file, made.id)
	if mode&0o070 != 0 {
		named := path
		if named == "" { // without proc(5) there is no way but by the name
			named = joinPath(d.path, name)
		}
		if err := listError(ignoringEINTR(func() error { return syscall.Removexattr(named, accessList) })); err != nil {
			return made.id, err
		}
	}
	return made.id, exactMode(mode, func(mode uint32) error {
		if path != "" {
			return syscall.Chmod(path, mode)
		}
		if at, err := d.lstat(name); err != nil || at.id != made.id {
			return errReplaced
		}
		return d.chmod(name, mode)
	})
}

// accessList is the attribute that has the access control list of a file. chmod(2) takes the group's
// permissions for what that may grant to others: acl(5).
const accessList = "system.posix_acl_access"

func (kernel) dropList(sys int) error {
	list := []byte(accessList + "\x00")
	return listError(ignoringEINTR(func() error {
		_, _, errno := syscall.Syscall(syscall.SYS_FREMOVEXATTR, uintptr(sys), uintptr(unsafe.Pointer(&list[0])), 0)
		return errnoOrNil(errno)
	}))
}

// listError is the error of a call that was to remove the list.
func listError(err error) error {
	if err == syscall.ENODATA || forbidden(err) { // there is none, or the file system or a sandbox lets nobody have one
		return nil
	}
	return os.NewSyscallError("removexattr", err)
}

func (kernel) sysFlock(fd, how int) error { return syscall.Flock(fd, how) }

func (kernel) readsAfterShutdown() bool { return false }

func (kernel) newPipe(p *[2]int) error {
	return syscall.Pipe2(p[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK)
}

// messageMax is the longest message that unix_dgram_sendmsg of net/unix/af_unix.c lets
// through: 32 bytes less than the send buffer, up to pieceMax.
func (kernel) messageMax(sys int) (int, error) {
	n, err := syscall.GetsockoptInt(sys, syscall.SOL_SOCKET, syscall.SO_SNDBUF)
	return min(n-32, pieceMax), err
}

// tooLong reports whether the kernel would say ENOBUFS for a message because of its
// length, as if it lacked memory just now.
func (kernel) tooLong(sys, n int) bool { return n > pieceMax }

// pieceMax is KMALLOC_MAX_SIZE of linux/slab.h where MAX_PAGE_ORDER is 10, the least
// of the usual kernels. The kernel copies a message into 17 pages (MAX_SKB_FRAGS) and
// one piece for the rest, which kmalloc(9) has to provide together with its header.
var pieceMax = 1024 * syscall.Getpagesize()

// mkfifo makes it for this user alone; setMode adds the rest.
func (kernel) mkfifo(path string, mode uint32) error {
	err := syscall.Mkfifo(path, newFIFOMode)
	if forbidden(err) {
		err = syscall.Mkfifo(path, mode&0o700)
	}
	return err
}

// closesOnExec asks by F_GETFD, which takes no argument and cannot block.
func (kernel) closesOnExec(sys int) bool {
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(sys), syscall.F_GETFD, 0)
	return errno == 0 && flags&syscall.FD_CLOEXEC != 0
}

// reopen opens a pipe through /proc/self/fd, where that leads to it: proc(5). The open of
// a pipe does not wait for the other end (fifo_open of fs/pipe.c, with O_NONBLOCK), but for the mutex
// of the pipe: see untilEnd. It may fail: a FIFO without a reader refuses a writer, and a pipe of
// another user may refuse this one.
func (kernel) reopen(sys int) (int, error) {
	if err := isPipe(sys); err != nil {
		return -1, err
	}
	mode, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(sys), syscall.F_GETFL, 0)
	if errno != 0 {
		return -1, os.NewSyscallError("fcntl", errno)
	}
	path, id := "/proc/self/fd/"+strconv.Itoa(sys), fstatID(sys)
	var st syscall.Stat_t // what is mounted on /proc may be anything
	if err := ignoringEINTR(func() error { return syscall.Stat(path, &st) }); err != nil || idOf(&st) != id {
		return -1, errors.ErrUnsupported
	}
	own, err := open(path, int(mode)&syscall.O_ACCMODE|syscall.O_NONBLOCK|syscall.O_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("open", err)
	}
	if fstatID(own) != id {
		syscall.Close(own)
		return -1, errors.ErrUnsupported
	}
	return own, nil
}

// hungUp reports whether the FIFO had a writer that left.
func (kernel) hungUp(sys int) bool { return poll(sys, pollIn)&pollHup != 0 }

// hasNoWriter polls. A read would wait for the mutex of the pipe, which another process can hold
// for as long as it likes, and if that has made the pipe blocking, for data.
func (k kernel) hasNoWriter(sys int) bool {
	p := pollFD{fd: int32(sys), events: pollIn}
	if _, err := ppoll(&p); err != nil { // in a sandbox
		return k.baseKernel.hasNoWriter(sys)
	}
	return p.revents&pollHup != 0
}

// readable reports whether the descriptor has something to read: data, the end or
// an error; writable whether it has room, or an error.
func readable(sys int) bool { return poll(sys, pollIn) != 0 }
func writable(sys int) bool { return poll(sys, pollOut) != 0 }

// asm-generic/poll.h: POLLIN, POLLOUT, POLLHUP.
const (
	pollIn  = 0x1
	pollOut = 0x4
	pollHup = 0x10
)

// poll returns what poll(2) says of the descriptor now. It calls ppoll(2), which every
// architecture has. Where the process may not do that (in a sandbox, or because it may
// have no descriptors: EINVAL), poll says that the descriptor is ready, and the call that
// follows gets the error.
func poll(sys int, events int16) int16 {
	p := pollFD{fd: int32(sys), events: events}
	if _, err := ppoll(&p); err != nil && err != syscall.EINTR { // EINTR comes only if nothing is ready
		return events
	}
	return p.revents
}

// A pollFD is the struct pollfd of asm-generic/poll.h.
type pollFD struct {
	fd              int32
	events, revents int16
}

// ppoll asks about one descriptor and does not wait.
func ppoll(p *pollFD) (int, error) {
	var now [2]int64 // a timespec of zero, whatever its width
	n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// accept polls first: accept4(2) makes a socket before it looks whether there is a client
// for it. An accept4 without a client costs ten times what the poll does. It asks for no
// address of the client, which syscall.Accept4 would allocate.
func (kernel) accept(sys int) (int, error) {
	if !readable(sys) {
		return -1, syscall.EAGAIN
	}
	return accept4(sys)
}

func accept4(sys int) (int, error) {
	conn, _, errno := syscall.Syscall6(numbers.accept4, uintptr(sys), 0, 0, socketFlags, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(conn), nil
}

func (kernel) acceptShared(sys int) (int, error) {
	if !readable(sys) {
		return -1, syscall.EAGAIN
	}
	restore, err := limitAccept(sys)
	if err != nil {
		return -1, err
	}
	defer restore()
	return accept4(sys)
}

// limitAccept limits the wait of accept4: unix_accept of net/unix/af_unix.c heeds SO_RCVTIMEO, and
// returns EAGAIN then. The option belongs to all holders, who may wait for longer, so restore puts it
// back. If it is the limit already, another holder is in here, or has ended in here: then it was 0.
func limitAccept(sys int) (restore func(), err error) {
	var before syscall.Timeval
	n := int(unsafe.Sizeof(before))
	if getsockopt(sys, syscall.SO_RCVTIMEO, unsafe.Slice((*byte)(unsafe.Pointer(&before)), n), &n) != nil {
		return func() {}, nil // a sandbox may forbid it
	}
	limit := syscall.NsecToTimeval(int64(closeGrace))
	rounded := syscall.NsecToTimeval(int64(closeGrace + 20*time.Millisecond)) // the kernel rounds up to a tick
	if limit.Nano() <= before.Nano() && before.Nano() < rounded.Nano() {
		before = syscall.Timeval{}
	}
	set := func(t syscall.Timeval) error {
		return setOption(sys, isBefore6_18(), func(sys int) error {
			return syscall.SetsockoptTimeval(sys, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &t)
		})
	}
	if set(limit) == errHeld {
		return func() {}, errHeld
	}
	return func() { set(before) }, nil
}

// isBefore6_18: since then at the latest this option takes no lock (sk_setsockopt of net/core/sock.c).
var isBefore6_18 = func() bool { return kernelRelease() < 6<<16|18 }

func (kernel) dup(sys int) (int, error) {
	d, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(sys), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(d), nil
}

// readNow and writeNow are preadv2(2) and pwritev2(2) with RWF_NOWAIT, which pipes know
// since Linux 6.4. Before that, poll(2) is asked first. The call may still wait if another
// process takes the data or the room in between. A write is limited to a page, since poll
// promises no more room.
func (kernel) readNow(sys int, p []byte) (int, error) {
	n, err := vectorNow(numbers.preadv2, sys, p)
	if !noNowait(err) {
		return n, err
	}
	if !readable(sys) {
		return 0, syscall.EAGAIN
	}
	return syscall.Read(sys, p)
}

func (kernel) writeNow(sys int, p []byte) (int, error) {
	n, err := vectorNow(numbers.preadv2+1, sys, p)
	if !noNowait(err) {
		return n, err
	}
	if !writable(sys) {
		return 0, syscall.EAGAIN
	}
	return syscall.Write(sys, p[:min(len(p), 4096)]) // PIPE_BUF of linux/limits.h
}

// noNowait reports whether the kernel, or a sandbox, has no RWF_NOWAIT for pipes.
func noNowait(err error) bool {
	return err == syscall.EOPNOTSUPP || err == syscall.ENOSYS || err == syscall.EPERM || err == syscall.EINVAL
}

// vectorNow makes the call preadv2 or pwritev2 by its number, at the current
// position (-1), which takes two registers, with RWF_NOWAIT of linux/fs.h.
func vectorNow(trap uintptr, sys int, p []byte) (int, error) {
	const rwfNowait = 8
	if len(p) == 0 {
		return 0, nil
	}
	iov := iovec{&p[0], uintptr(len(p))}
	n, _, errno := syscall.Syscall6(trap, uintptr(sys), uintptr(unsafe.Pointer(&iov)), 1, ^uintptr(0), ^uintptr(0), rwfNowait)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// drained shuts the reading side first. unix_stream_sendmsg and unix_dgram_sendmsg of
// net/unix/af_unix.c look for that under the lock of the receiver, under which they also
// queue, so nothing comes any more. Then drained looks what is there, and leaves it: a close with unread
// data is a reset for the peer. In a stream files come with at least one byte. A message may be empty.
func (k kernel) drained(sys int, messages, marked bool) bool {
	if syscall.Shutdown(sys, syscall.SHUT_RD) != nil {
		return false
	}
	n := k.queued(sys)
	if !messages {
		return n == 0 || n > 0 && n <= drainedMax && k.isPlain(sys, n)
	}
	if n != 0 {
		return false
	}
	r, err := k.receive(sys, &op{flags: syscall.MSG_PEEK | syscall.MSG_TRUNC})
	return err == nil && r.n == 0 && r.oobn == 0 && r.got&syscall.MSG_CTRUNC == 0 && marked
}

// drainedMax is how many unread bytes are copied to see whether files are among them. A peer can queue
// about that many unless an administrator has raised the limit of its buffer (socket(7), wmem_max).
const drainedMax = 256 << 10

var drainedRooms = sync.Pool{New: func() any { return new([drainedMax]byte) }}

// isPlain reports whether no files come with the n bytes in the queue. A look (MSG_PEEK) ends with the
// first byte that has some, and without room for them says MSG_CTRUNC. Only duplicates are let go,
// which asks no file system (scm_recv and scm_destroy of net/core/scm.c).
func (k kernel) isPlain(sys, n int) bool {
	p := drainedRooms.Get().(*[drainedMax]byte)
	defer drainedRooms.Put(p)
	r, err := k.receive(sys, &op{p: p[:n], flags: syscall.MSG_PEEK})
	return err == nil && r.n == n && r.got&syscall.MSG_CTRUNC == 0
}

// closeCollects: before Linux 6.9 the close of any local socket may collect those that are in flight
// and that nobody can receive, and close what these have in their queues (unix_release_sock and unix_gc
// of net/unix, until the commit "af_unix: Run GC on only one CPU"). Any user can leave such behind.
func (kernel) closeCollects() bool { return isBefore6_9() }

var isBefore6_9 = func() bool { return kernelRelease() < 6<<16|9 }

// kernelRelease returns the release of this kernel as releaseOf does, or 0.
var kernelRelease = sync.OnceValue(func() int {
	var u syscall.Utsname
	if syscall.Uname(&u) != nil {
		return 0
	}
	return releaseOf(textOf(u.Release[:]))
})

// releaseOf returns the major and the minor number of a release such as "6.8.0-31-generic", each in 16
// bits.
func releaseOf(release string) int {
	of := func(part string) int {
		end := 0
		for end < len(part) && '0' <= part[end] && part[end] <= '9' {
			end++
		}
		n, _ := strconv.Atoi(part[:end])
		return min(n, 1<<16-1)
	}
	major, rest, _ := strings.Cut(release, ".")
	return of(major)<<16 | of(rest)
}

// textOf returns the text before the first zero byte; char is signed on some architectures.
func textOf[C int8 | uint8](chars []C) string {
	var b []byte
	for _, c := range chars {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

// isEmpty counts bytes. A look by MSG_PEEK passes over an urgent byte (MSG_OOB),
// which may bring files, and takes the error of the socket, which is told once.
func (k kernel) isEmpty(sys int) bool { return k.queued(sys) == 0 }

func (k kernel) hasData(sys int) bool { return k.queued(sys) > 0 }

// queued returns how many bytes are in the queue (SIOCINQ of unix(7)), or -1.
func (kernel) queued(sys int) int {
	var n int32
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(sys), syscall.TIOCINQ, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return -1
	}
	return int(n)
}

// inlineUrgent makes an urgent byte a part of the stream. Otherwise a receive skips the
// byte, and itself closes the descriptors that came with it (manage_oob of
// net/unix/af_unix.c, Linux 5.15).
func (kernel) inlineUrgent(sys int, others bool) error {
	return ifHeld(setFlag(sys, syscall.SO_OOBINLINE, others)) // a pipe has no options
}

// setFlag sets an option of the socket to 1. If others may have the socket, it asks first whether that
// is done: to ask takes no lock (sk_getsockopt).
func setFlag(sys, opt int, others bool) error {
	if others {
		on, err := syscall.GetsockoptInt(sys, syscall.SOL_SOCKET, opt)
		if err == syscall.ENOTSOCK || err == nil && on != 0 {
			return err
		}
	}
	return setOption(sys, others, func(sys int) error {
		return syscall.SetsockoptInt(sys, syscall.SOL_SOCKET, opt, 1)
	})
}

// ifHeld returns the error of setOption if that tells of another holder.
func ifHeld(err error) error {
	if err == errHeld {
		return err
	}
	return nil
}

// hurry makes the call, and sends its thread SIGURG until the call ends: a TCP socket
// that lingers in close(2) gives up at a signal (sk_stream_wait_close of
// net/core/stream.c). The runtime of Go ignores a SIGURG that it did not send itself.
func (kernel) hurry(call func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, tid := syscall.Getpid(), syscall.Gettid()
	var done atomic.Bool // the call has ended, and the thread may do something else
	kick := time.AfterFunc(10*time.Millisecond, func() {
		for !done.Load() {
			syscall.Syscall(syscall.SYS_TGKILL, uintptr(pid), uintptr(tid), uintptr(syscall.SIGURG))
			time.Sleep(50 * time.Millisecond)
		}
	})
	call()
	done.Store(true)
	kick.Stop()
}

// leaveCPU makes the calling thread leave its CPU: it calls sched_setaffinity(2) without
// that CPU, and at once again with all CPUs. It does so only where the thread may run on
// every CPU that is online: if CPUs were chosen for this process, by taskset(1) or a
// cpuset, that choice stays. The thread belongs to this goroutine meanwhile, so that the
// runtime starts no thread from it, which would inherit the mask.
func (kernel) leaveCPU() {
	n := onlineCPUs()
	if n < 2 {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	masks := cpuMasks.Get().(*[3]cpuMask) // not on the stack of the goroutine, which waits
	defer cpuMasks.Put(masks)
	*masks = [3]cpuMask{} // the kernel fills in no more than it has CPUs
	all, others, now := &masks[0], &masks[1], &masks[2]
	var cpu uint32
	if !all.get() || all.count() != n {
		return
	}
	if _, _, errno := syscall.Syscall(numbers.getcpu, uintptr(unsafe.Pointer(&cpu)), 0, 0); errno != 0 {
		return
	}
	*others = *all
	others.remove(int(cpu))
	if others.set() && now.get() && *now == *others { // otherwise somebody else has set it meanwhile
		every := now
		for i := range every {
			every[i] = ^uintptr(0) // also those that come online later
		}
		if !every.set() {
			all.set()
		}
	}
}

// yieldCPU calls sched_yield(2), which always succeeds.
func (kernel) yieldCPU() func() {
	return func() { syscall.Syscall(syscall.SYS_SCHED_YIELD, 0, 0, 0) }
}

var cpuMasks = sync.Pool{New: func() any { return new([3]cpuMask) }}

// A cpuMask is the cpu_set_t of sched.h for the calling thread: 1024 CPUs.
type cpuMask [1024 / 8 / unsafe.Sizeof(uintptr(0))]uintptr

func (m *cpuMask) get() bool { return m.call(syscall.SYS_SCHED_GETAFFINITY) }
func (m *cpuMask) set() bool { return m.call(syscall.SYS_SCHED_SETAFFINITY) }

func (m *cpuMask) call(trap uintptr) bool {
	_, _, errno := syscall.Syscall(trap, 0, unsafe.Sizeof(*m), uintptr(unsafe.Pointer(m)))
	return errno == 0
}

func (m *cpuMask) count() (n int) {
	for _, word := range m {
		for ; word != 0; word &= word - 1 {
			n++
		}
	}
	return n
}

func (m *cpuMask) remove(cpu int) {
	const bits = 8 * int(unsafe.Sizeof(uintptr(0)))
	if cpu/bits < len(m) {
		m[cpu/bits] &^= 1 << (cpu % bits)
	}
}

// onlineCPUs returns the number of CPUs of the machine, or 0 where that cannot be
// read: a list of ranges, see Documentation/ABI/testing/sysfs-devices-system-cpu.
var onlineCPUs = sync.OnceValue(func() (n int) {
	list, err := readFile("/sys/devices/system/cpu/online")
	if err != nil {
		return 0
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(string(list), "\n"), ",") {
		from, to, ranged := strings.Cut(part, "-")
		if !ranged {
			to = from
		}
		first, err := strconv.Atoi(from)
		last, e := strconv.Atoi(to)
		if err != nil || e != nil || last < first {
			return 0
		}
		n += last - first + 1
	}
	return n
})

// domain asks for SO_DOMAIN, which takes no lock of the socket (sk_getsockopt of net/core/sock.c).
// getsockname(2) of a TCP socket takes the lock that another process holds while it sends
// (inet_getname of net/ipv4/af_inet.c, Linux 5.16), and package syscall calls it raw.
func (kernel) domain(sys int) (domain int, err error) {
	err = ignoringEINTR(func() error {
		domain, err = syscall.GetsockoptInt(sys, syscall.SOL_SOCKET, syscall.SO_DOMAIN)
		return err
	})
	return domain, os.NewSyscallError("getsockopt", err)
}

// neverPolls takes the file out of itself, which fails with EPERM for what has no poll function,
// like a file on a disk or in memory, and with EINVAL for everything else. That function is not
// called (epoll_ctl of fs/eventpoll.c, which looks in this order).
func (kernel) neverPolls(sys int) bool {
	_, _, errno := syscall.Syscall6(syscall.SYS_EPOLL_CTL, uintptr(sys), syscall.EPOLL_CTL_DEL, uintptr(sys), 0, 0, 0)
	return errno == syscall.EPERM
}

// polls makes two calls that succeed, or fail in a certain way, only for a socket or a
// pipe. One asks for SO_DOMAIN. The other is splice(2) with an offset, which fails with
// ESPIPE for a pipe, and with EINVAL or EBADF between two descriptors that are no
// pipes (__do_splice of fs/splice.c). Neither asks a file system, nor takes the mutex of the
// pipe, as F_GETPIPE_SZ does. The poll of other sockets than these three families may take a lock
// that the sender of a file holds for as long as it likes (vsock_poll of net/vmw_vsock/af_vsock.c).
func (k kernel) polls(sys int) bool {
	if domain, err := k.domain(sys); err == nil {
		return domain == syscall.AF_UNIX || domain == syscall.AF_INET || domain == syscall.AF_INET6
	}
	err := ignoringEINTR(func() error {
		var offset int64
		_, _, errno := syscall.Syscall6(syscall.SYS_SPLICE, uintptr(sys), uintptr(unsafe.Pointer(&offset)),
			uintptr(sys), uintptr(unsafe.Pointer(&offset)), 1, spliceNonblock)
		return errno
	})
	if err == syscall.ENOSYS || err == syscall.EPERM { // in a sandbox
		_, err := fcntl(sys, getPipeSize, 0)
		return err == nil
	}
	return err == syscall.ESPIPE
}

// blockingFile returns a file whose descriptor keeps its mode, that of an eventfd(2),
// say. It gives os.NewFile an eventfd(2) that blocks, which the runtime's poller needs too, and then
// puts the descriptor in its place.
func (kernel) blockingFile(fd int, name string, grace time.Duration) (*os.File, error) {
	flags, err := fcntl(fd, syscall.F_GETFL, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	placeholder, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC, 0)
	if errno != 0 { // no descriptors are left
		return nil, &classified{os.NewSyscallError("eventfd2", errno), ErrMsgTooLong}
	}
	if flags&syscall.O_APPEND != 0 { // which an os.File is to know
		fcntl(int(placeholder), syscall.F_SETFL, syscall.O_APPEND)
	}
	file := os.NewFile(placeholder, name)
	if err := syscall.Dup3(fd, int(placeholder), syscall.O_CLOEXEC); err != nil {
		file.Close()
		return nil, os.NewSyscallError("dup3", err)
	}
	// Even a close that is not the last asks the file's file system: fuse_flush of fs/fuse/file.c. It
	// is waited for unless many sleep, since it also lets the process's locks of fcntl(2) go.
	disposeOf(1, grace, func(int) { syscall.Close(fd) })
	return file, nil
}

// extraDescriptor returns the descriptor of SCM_PIDFD (linux/socket.h), which a
// socket with SO_PASSPIDFD receives with every message.
func (kernel) extraDescriptor(m syscall.SocketControlMessage) (int, bool) {
	const scmPidfd = 4
	if m.Header.Level != syscall.SOL_SOCKET || m.Header.Type != scmPidfd || len(m.Data) < 4 {
		return 0, false
	}
	fd := int(*(*int32)(unsafe.Pointer(&m.Data[0]))) // control messages are aligned
	return fd, fd >= 0
}

// markMessages makes the kernel set a time stamp on every message. A plain receive has no
// room for the stamp, and MSG_CTRUNC tells that. So an empty message differs from the
// end, where nothing was received and nothing was cut off. If the kernel refuses, an
// empty message is taken for the end.
func (kernel) markMessages(sys int, others bool) error {
	return ifHeld(setFlag(sys, syscall.SO_TIMESTAMP, others))
}

// markRoom is the room that the mark takes in a buffer for control messages, where
// it comes first: CMSG_SPACE of a struct timeval.
var markRoom = syscall.CmsgSpace(int(unsafe.Sizeof(syscall.Timeval{})))

// unmarked returns the control messages behind the mark.
func (kernel) unmarked(oob []byte) []byte {
	if isMark(oob) {
		return oob[markRoom:]
	}
	return oob
}

func (kernel) onlyMark(oob []byte) bool { return len(oob) == markRoom && isMark(oob) }

// isMark reports whether the control messages begin with the mark.
func isMark(oob []byte) bool {
	if len(oob) < markRoom {
		return false
	}
	h := (*syscall.Cmsghdr)(unsafe.Pointer(&oob[0])) // large enough, and aligned as an allocation is
	return h.Level == syscall.SOL_SOCKET && h.Type == syscall.SCM_TIMESTAMP
}

func (kernel) isMessage(flags, oobn int) bool { return oobn > 0 || flags&syscall.MSG_CTRUNC != 0 }

// receive leaves the peer's address out, which package syscall would allocate for each
// message of a peer that is bound to one.
func (kernel) receive(sys int, o *op) (result, error) {
	if o.mode&withoutFiles != 0 {
		if n, errno := recvfrom(sys, o.p, o.flags); errno == 0 {
			return result{n: n}, nil
		} else if !isForbidden(errno) {
			return result{}, errno
		}
	}
	var one [1]iovec
	iov := inVector(&one, o.p)
	if o.iov != nil {
		iov = *o.iov
	}
	hdr := header(iov, o.oob)
	n, _, errno := syscall.Syscall(numbers.recvmsg, uintptr(sys), uintptr(unsafe.Pointer(&hdr)), uintptr(o.flags|dontWait|cmsgCloexec))
	if errno != 0 {
		return result{}, errno
	}
	return result{n: int(n), oobn: int32(hdr.Controllen), got: hdr.Flags}, nil
}

// look asks by recvfrom(2). If there is nothing, that costs three quarters of a recvmsg with room
// for descriptors. Else it costs more than that, since MSG_PEEK has the kernel go through all that
// is in the queue (unix_stream_read_generic of net/unix/af_unix.c).
func (kernel) look(sys int) error {
	var p [1]byte
	_, errno := recvfrom(sys, p[:], syscall.MSG_PEEK)
	if errno == 0 || errno == syscall.EINTR || isForbidden(errno) {
		return nil
	}
	return errno
}

// recvfrom receives data alone, for which the kernel copies no msghdr and no name of the sender.
func recvfrom(sys int, p []byte, flags int32) (int, syscall.Errno) {
	n, _, errno := syscall.Syscall6(numbers.recvfrom, uintptr(sys), uintptr(unsafe.Pointer(unsafe.SliceData(p))),
		uintptr(len(p)), uintptr(flags|dontWait), 0, 0)
	return int(n), errno
}

// isForbidden reports that a sandbox forbids the call; recvmsg(2) can do what recvfrom(2) does.
func isForbidden(errno syscall.Errno) bool {
	return errno == syscall.EPERM || errno == syscall.EACCES || errno == syscall.ENOSYS
}

// sendmsg sends data alone by sendto(2), for which the kernel copies no msghdr.
func (kernel) sendmsg(sys int, p, oob []byte, flags int) (int, error) {
	if len(oob) == 0 {
		n, _, errno := syscall.Syscall6(numbers.sendto, uintptr(sys), uintptr(unsafe.Pointer(unsafe.SliceData(p))),
			uintptr(len(p)), uintptr(flags), 0, 0)
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
	var one [1]iovec
	return sendmsg(sys, inVector(&one, p), oob, flags)
}

func (kernel) sendv(sys int, iov []iovec, flags int) (int, error) {
	return sendmsg(sys, iov, nil, flags)
}

func sendmsg(sys int, iov []iovec, oob []byte, flags int) (int, error) {
	hdr := header(iov, oob)
	n, _, errno := syscall.Syscall(numbers.sendmsg, uintptr(sys), uintptr(unsafe.Pointer(&hdr)), uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// inVector returns a vector with p as its only buffer. one is its memory.
func inVector(one *[1]iovec, p []byte) []iovec {
	one[0] = iovec{unsafe.SliceData(p), uintptr(len(p))}
	return one[:]
}

// header is the header of a message with the buffers and the control messages.
func header(iov []iovec, oob []byte) (hdr syscall.Msghdr) {
	hdr.Iov = (*syscall.Iovec)(unsafe.Pointer(unsafe.SliceData(iov)))
	setLen(&hdr.Iovlen, len(iov))
	hdr.Control = unsafe.SliceData(oob)
	hdr.SetControllen(len(oob))
	return hdr
}

// setLen sets a length whose type differs between the architectures.
func setLen[L uint32 | uint64](field *L, n int) { *field = L(n) }

// peerOf asks for SO_PEERCRED and SO_PEERGROUPS, see unix(7) and socket(7).
func (kernel) peerOf(sys int) (Peer, error) {
	cred, err := syscall.GetsockoptUcred(sys, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		return Peer{}, err
	}
	if cred.Uid == ^uint32(0) { // nobody has connected
		return Peer{}, syscall.ENOTCONN
	}
	p := credPeer(cred)
	p.groups, _ = peerGroups(sys) // absent before 4.13
	return p, nil
}

// watchPeer asks for the process itself. For a process that was waited for the kernel
// returns ESRCH, before 6.15 EINVAL: see pidfd_prepare of kernel/fork.c.
func (kernel) watchPeer(sys int) (processWatch, error) {
	f, err := peerPidfd(sys)
	switch err {
	case nil:
		return pidfdWatch{f}, nil
	case syscall.ESRCH, syscall.EINVAL:
		return nil, errProcessEnded
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM:
		return nil, os.NewSyscallError("getsockopt", err)
	}
	return baseKernel{}.watchPeer(sys) // before 6.5, or in a sandbox
}

// watchProcess watches the process of that number by pidfd_open(2). That fails with
// EINVAL, in later kernels ENOENT, if a thread has the number by now.
func (kernel) watchProcess(pid int) (processWatch, error) {
	const pidfdOpen = 434 // SYS_pidfd_open, the same on every architecture: asm-generic/unistd.h
	pidfd, _, errno := syscall.Syscall(pidfdOpen, uintptr(pid), 0, 0)
	switch errno {
	case 0:
		f, err := pidfdFile(int(pidfd))
		return pidfdWatch{f}, os.NewSyscallError("fcntl", err)
	case syscall.ESRCH, syscall.EINVAL, syscall.ENOENT:
		return nil, errProcessEnded
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM:
		return nil, os.NewSyscallError("pidfd_open", errno)
	}
	return processNumber(pid), nil // before 5.3, or in a sandbox
}

// hasEnded looks at the state too. A process that its parent has not waited for still has
// its number. Its state, which stands behind the name of its program, is Z or X then: see
// proc_pid_stat(5).
func (kernel) hasEnded(pid int) bool {
	if (baseKernel{}).hasEnded(pid) {
		return true
	}
	stat, err := readFile("/proc/" + strconv.Itoa(pid) + "/stat")
	i := strings.LastIndex(string(stat), ") ")
	return err == nil && i >= 0 && i+2 < len(stat) && (stat[i+2] == 'Z' || stat[i+2] == 'X')
}

// A pidfdWatch waits in the runtime's poller.
type pidfdWatch struct{ file *os.File }

func (w pidfdWatch) wait(ctx context.Context) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { w.file.SetReadDeadline(time.Unix(1, 0)) }) // in the past: ends the wait
	defer stop()
	var ended bool
	var failure error
	ask := func(fd uintptr) bool {
		ended, failure = pidfdEnded(int(fd))
		return ended || failure != nil
	}
	raw.Read(ask) // what follows tells how it ended
	switch {
	case ended, failure != nil:
		return failure
	case ctx.Err() != nil:
		return contextError(ctx, nil)
	}
	return pollUntil(ctx, func() (bool, error) { // the poller did not take it
		if e := raw.Control(func(fd uintptr) { ask(fd) }); e != nil {
			return false, e
		}
		return ended, failure
	})
}

func (w pidfdWatch) close() { w.file.Close() }

// pidfdEnded reports whether the process has ended: then, and only then, the
// descriptor is readable. Unlike poll it takes no failure for a yes.
func pidfdEnded(pidfd int) (bool, error) {
	var n int
	p := pollFD{fd: int32(pidfd), events: pollIn}
	err := ignoringEINTR(func() (err error) { n, err = ppoll(&p); return err })
	return n > 0 && p.revents != 0, os.NewSyscallError("ppoll", err)
}

func credPeer(cred *syscall.Ucred) Peer {
	var p Peer
	if !userIDs.hides(cred.Uid) {
		p = unixPeer(int(cred.Uid))
	}
	if !groupIDs.hides(cred.Gid) {
		p.add(knowsGID, &p.gid, int(cred.Gid))
	}
	p.add(knowsPID, &p.pid, int(cred.Pid)) // 0: in a namespace out of sight
	return p
}

// An idMap says which ids mean one user, or one group, to this process. In a user
// namespace (user_namespaces(7)) the kernel tells of every user without a mapping as
// the overflow id, so that id is nobody's identity there: neither that of a peer, nor
// that of this process, nor that of the owner of a file.
type idMap struct {
	mapFile, overflowFile string
	full                  atomic.Bool  // the map was seen to be full; a map is written once and stays
	last                  atomic.Int64 // the id that was read last, and 1; 0 before
}

var (
	userIDs  = idMap{mapFile: "/proc/self/uid_map", overflowFile: "/proc/sys/kernel/overflowuid"}
	groupIDs = idMap{mapFile: "/proc/self/gid_map", overflowFile: "/proc/sys/kernel/overflowgid"}
)

// hidden returns which ids stand for all that have no mapping: none if every id has
// one. It reads the files each time: the map may be written after the process has
// started, and root may change the id. If it cannot now, the id is the one that it was, or
// any.
func (m *idMap) hidden() (isHidden func(id uint32) bool) {
	none := func(uint32) bool { return false }
	if m.full.Load() {
		return none
	}
	text, err := readFile(m.mapFile)
	if isFullMap(string(text)) || errnoOf(err) == syscall.ENOENT && hasProc() { // a kernel without user namespaces
		m.full.Store(true)
		return none
	}
	if text, err = readFile(m.overflowFile); !isShortage(errnoOf(err)) {
		m.last.Store(int64(overflowID(string(text), err)) + 1)
	}
	last := m.last.Load()
	return func(id uint32) bool { return last == 0 || int64(id) == last-1 }
}

// hides reports whether the id stands for all that have no mapping.
func (m *idMap) hides(id uint32) bool { return m.hidden()(id) }

// isShortage reports whether a file could not be opened for want of descriptors or memory.
func isShortage(err error) bool {
	return err == syscall.EMFILE || err == syscall.ENFILE || err == syscall.ENOMEM
}

// hasProc reports whether proc(5) is mounted.
func hasProc() bool {
	var st syscall.Stat_t
	return ignoringEINTR(func() error { return syscall.Stat("/proc/self/stat", &st) }) == nil
}

// isFullMap reports whether the text of a uid_map or gid_map gives every id a mapping.
// The last number is not counted: it is no id. Each line is the first id inside, the
// first outside, and how many. The kernel lets no line overlap another.
func isFullMap(text string) bool {
	const all = 1<<32 - 1
	var mapped uint64
	for line := range strings.Lines(text) {
		fields := words(line)
		if len(fields) != 3 {
			return false
		}
		n, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil {
			return false
		}
		mapped += n
	}
	return mapped == all
}

// words splits a text at its spaces and ends of lines. (strings.Fields and TrimSpace know the spaces of
// Unicode, whose tables a program makes when it starts.)
func words(text string) (all []string) {
	begin := 0
	for i := range len(text) + 1 {
		if i == len(text) || text[i] == ' ' || text[i] == '\n' {
			if i > begin {
				all = append(all, text[begin:i])
			}
			begin = i + 1
		}
	}
	return all
}

// overflowID reads the text of overflowuid or overflowgid. If it cannot be read, the id
// is DEFAULT_OVERFLOWUID of linux/highuid.h, the same for groups.
func overflowID(text string, err error) uint32 {
	if id, e := strconv.ParseUint(strings.TrimSuffix(text, "\n"), 10, 32); e == nil && err == nil {
		return uint32(id)
	}
	return 65534
}

// hidesUser reports whether the id of a user stands for all that this process's user
// namespace has no mapping for.
func (kernel) hidesUser(uid int) bool { return userIDs.hides(uint32(uid)) }

func peerGroups(sys int) ([]int, error) {
	const soPeerGroups = 59   // asm-generic/socket.h
	ids := make([]uint32, 32) // gid_t
	for {
		n := 4 * len(ids)
		err := getsockopt(sys, soPeerGroups, unsafe.Slice((*byte)(unsafe.Pointer(&ids[0])), n), &n)
		if err == syscall.ERANGE && n > 4*len(ids) {
			ids = make([]uint32, (n+3)/4)
			continue
		}
		if err != nil {
			return nil, err
		}
		groups := make([]int, 0, n/4)
		isHidden := groupIDs.hidden()
		for _, id := range ids[:n/4] {
			if !isHidden(id) {
				groups = append(groups, int(id))
			}
		}
		return groups, nil
	}
}

// getsockopt fills buf with an option of the socket and sets n to its size, also
// where that is too large for buf (ERANGE).
func getsockopt(sys, opt int, buf []byte, n *int) error {
	size := uint32(*n)
	_, _, errno := syscall.Syscall6(numbers.getsockopt, uintptr(sys), syscall.SOL_SOCKET, uintptr(opt),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	*n = int(size)
	return errnoOrNil(errno)
}

// callNumbers are numbers of asm/unistd.h for calls that package syscall lacks: those
// of sockets on 386 and s390x, where they came with Linux 4.3 (before, socketcall(2) was
// the only way), preadv2 of Linux 4.6, which pwritev2 follows, and getcpu.
type callNumbers struct {
	getsockname, getpeername, getsockopt, sendto, recvfrom, sendmsg, recvmsg, accept4, preadv2, getcpu uintptr
}

// numbers are those of this architecture.
var numbers = func() callNumbers {
	switch runtime.GOARCH {
	case "amd64":
		return callNumbers{51, 52, 55, 44, 45, 46, 47, 288, 327, 309}
	case "386":
		return callNumbers{367, 368, 365, 369, 371, 370, 372, 364, 378, 318}
	case "s390x":
		return callNumbers{367, 368, 365, 369, 371, 370, 372, 364, 376, 311}
	case "arm":
		return callNumbers{286, 287, 295, 290, 292, 296, 297, 366, 392, 345}
	case "ppc64", "ppc64le":
		return callNumbers{331, 332, 340, 335, 337, 341, 342, 344, 380, 302}
	case "mips", "mipsle":
		return callNumbers{4172, 4171, 4173, 4180, 4176, 4179, 4177, 4334, 4361, 4312}
	case "mips64", "mips64le":
		return callNumbers{5050, 5051, 5054, 5043, 5044, 5045, 5046, 5293, 5321, 5271}
	}
	return callNumbers{204, 205, 209, 206, 207, 211, 212, 242, 286, 168} // arm64, riscv64, loong64: asm-generic/unistd.h
}()

// ---------------------------------------------------------------------------
// Shared memory

// linux/memfd.h and linux/fcntl.h, the same on every architecture.
const (
	mfdCloexec      = 0x1 // MFD_CLOEXEC
	mfdAllowSealing = 0x2 // MFD_ALLOW_SEALING
	mfdNoExecSeal   = 0x8 // MFD_NOEXEC_SEAL, Linux 6.3

	addSeals        = 1033 // F_ADD_SEALS
	getSeals        = 1034 // F_GET_SEALS
	sealSeal        = 0x1  // F_SEAL_SEAL
	sealShrink      = 0x2  // F_SEAL_SHRINK
	sealGrow        = 0x4  // F_SEAL_GROW
	sealWrite       = 0x8  // F_SEAL_WRITE
	sealFutureWrite = 0x10 // F_SEAL_FUTURE_WRITE, Linux 5.1

	tmpfsMagic = 0x01021994 // TMPFS_MAGIC of linux/magic.h
)

// newMemory makes memory by memfd_create(2). It tries MFD_NOEXEC_SEAL first: without that
// flag a system may refuse the call (sysctl vm.memfd_noexec), and with it an older kernel
// does.
func (kernel) newMemory(size int) (memoryFiles, error) {
	name := [...]byte{'i', 'p', 'c', 0}
	var sys uintptr
	err := ignoringEINTR(func() error {
		var errno syscall.Errno
		for _, flags := range [...]uintptr{mfdCloexec | mfdAllowSealing | mfdNoExecSeal, mfdCloexec | mfdAllowSealing} {
			sys, _, errno = syscall.Syscall(memoryCalls.memfdCreate, uintptr(unsafe.Pointer(&name[0])), flags, 0)
			if errno != syscall.EINVAL {
				break
			}
		}
		return errnoOrNil(errno)
	})
	if err != nil {
		return memoryFiles{}, os.NewSyscallError("memfd_create", err)
	}
	if err := ignoringEINTR(func() error { return syscall.Ftruncate(int(sys), int64(size)) }); err != nil {
		syscall.Close(int(sys))
		return memoryFiles{}, os.NewSyscallError("ftruncate", err)
	}
	return memoryFiles{object: os.NewFile(sys, "memory")}, nil
}

// sealMemory seals the object. A kernel before 5.1 does without F_SEAL_FUTURE_WRITE.
func (kernel) sealMemory(sys int, ownerWrites bool) error {
	seals := sealSeal | sealShrink | sealGrow
	if ownerWrites {
		if _, err := fcntl(sys, addSeals, seals|sealFutureWrite); err != syscall.EINVAL {
			return os.NewSyscallError("fcntl", err)
		}
	}
	_, err := fcntl(sys, addSeals, seals)
	return os.NewSyscallError("fcntl", err)
}

// checkMemory accepts memory of tmpfs alone. One other kind of file knows seals, that of
// huge pages (hugetlbfs). It is refused: its pages may turn out not to be there when they
// are touched.
func (kernel) checkMemory(sys int) (memoryInfo, error) {
	info, err := sealedMemory(sys, fcntl, getSeals, sealShrink, sealWrite|sealFutureWrite)
	if err != nil {
		return memoryInfo{}, err
	}
	var fs syscall.Statfs_t
	if err := ignoringEINTR(func() error { return syscall.Fstatfs(sys, &fs) }); err != nil {
		return memoryInfo{}, os.NewSyscallError("fstatfs", err)
	}
	if uint32(fs.Type) != tmpfsMagic {
		return memoryInfo{}, &ruleError{what: "the memory is not of the ordinary kind"}
	}
	return info, nil
}

// sealsWrites reports whether this kernel can forbid new writers of memory. One that cannot says
// so: EINVAL of memfd_add_seals in mm/memfd.c. Every other error is none of that, and nothing is
// remembered: a peer chooses when this is asked, and may have used up the descriptors of this
// process.
func sealsWrites() bool {
	files, err := kern.newMemory(1)
	if err != nil {
		return true
	}
	defer files.close()
	return withFile(files.object, func(sys uintptr) error {
		_, err := fcntl(int(sys), addSeals, sealFutureWrite)
		return err
	}) != syscall.EINVAL
}

// keepsPages refuses memory of a peer that could punch holes into it (fallocate(2)): while
// that goes on, a thread of this process that reads there sleeps in a page fault, and with
// it, at the next garbage collection, the process (shmem_fault of mm/shmem.c).
func (kernel) keepsPages(info memoryInfo) error {
	if info.punchable && sealsWrites() {
		return &ruleError{what: "holes can be punched into the memory: it has no F_SEAL_FUTURE_WRITE"}
	}
	return nil
}

// openReadOnly opens the file anew through /proc, for reading. First it sets the mode, so
// that processes of other users cannot do the same for writing: whoever has a descriptor
// of the file can open it anew if its mode allows that.
func (kernel) openReadOnly(sys int) (*os.File, error) {
	if err := ignoringEINTR(func() error { return syscall.Fchmod(sys, 0o600) }); err != nil && err != syscall.EPERM {
		return nil, os.NewSyscallError("fchmod", err)
	} // EPERM: the file is another user's, who decides on its mode
	path := "/proc/self/fd/" + strconv.Itoa(sys)
	fd, err := open(path, syscall.O_RDONLY|syscall.O_CLOEXEC)
	if err == syscall.ENOENT { // /proc is not mounted
		return nil, &classified{os.NewSyscallError("open", err), errors.ErrUnsupported}
	} else if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	return os.NewFile(uintptr(fd), "memory"), nil
}

// mapTwice maps beyond the end of the file, which Linux allows, and puts the second
// mapping there before anybody looks. That takes one call less.
func (kernel) mapTwice(sys, size, again, prot int) ([]byte, error) {
	mem, err := syscall.Mmap(sys, 0, size+again, prot, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	if err := kern.mapAt(mem[size:], prot, syscall.MAP_SHARED|syscall.MAP_FIXED, sys, size-again); err != nil {
		syscall.Munmap(mem)
		return nil, err
	}
	return mem, nil
}

// mapAt makes an mmap(2) at a fixed place. mmap2 counts the offset in units of 4096 bytes;
// on s390x the call takes its arguments as an array. The address may be kept as a number,
// since mem is no memory of the Go runtime.
func (kernel) mapAt(mem []byte, prot, flags, sys, offset int) error {
	args := [6]uintptr{uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(prot), uintptr(flags), uintptr(sys), uintptr(offset)}
	var errno syscall.Errno
	switch {
	case memoryCalls.mmapTakesArray:
		_, _, errno = syscall.Syscall(memoryCalls.mmap, uintptr(unsafe.Pointer(&args)), 0, 0)
	case memoryCalls.mmapTakesPages:
		_, _, errno = syscall.Syscall6(memoryCalls.mmap, args[0], args[1], args[2], args[3], args[4], args[5]/4096)
	default:
		_, _, errno = syscall.Syscall6(memoryCalls.mmap, args[0], args[1], args[2], args[3], args[4], args[5])
	}
	return errnoOrNil(errno)
}

func fcntl(sys, cmd, arg int) (int, error) {
	r, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(sys), uintptr(cmd), uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// memoryCalls are numbers of asm/unistd.h, of calls that package syscall lacks or that differ
// in how they take their arguments.
var memoryCalls = func() (n struct {
	memfdCreate, mmap              uintptr
	mmapTakesPages, mmapTakesArray bool
}) {
	switch runtime.GOARCH {
	case "amd64":
		n.memfdCreate, n.mmap = 319, 9
	case "386":
		n.memfdCreate, n.mmap, n.mmapTakesPages = 356, 192, true
	case "arm":
		n.memfdCreate, n.mmap, n.mmapTakesPages = 385, 192, true
	case "ppc64", "ppc64le":
		n.memfdCreate, n.mmap = 360, 90
	case "s390x":
		n.memfdCreate, n.mmap, n.mmapTakesArray = 350, 90, true
	case "mips", "mipsle":
		n.memfdCreate, n.mmap, n.mmapTakesPages = 4354, 4210, true
	case "mips64", "mips64le":
		n.memfdCreate, n.mmap = 5314, 5009
	default: // arm64, riscv64, loong64: asm-generic/unistd.h
		n.memfdCreate, n.mmap = 279, 222
	}
	return n
}()
