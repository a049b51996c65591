package ipc

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// Traits of Linux and Android that ipc_unix.go builds on.
const (
	abstractNames = true  // names without a file: unix(7)
	fullRefuses   = false // a full backlog is EAGAIN, not ECONNREFUSED
	pathMax       = 4095  // PATH_MAX of linux/limits.h, less the NUL
	socketFlags   = syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	framedHere    = false // SOCK_SEQPACKET keeps messages apart
	cutsRights    = true  // control messages that do not fit are cut off, and no descriptor gets lost
	peekTells     = true  // MSG_PEEK|MSG_TRUNC returns the whole length of a message
	dontWait      = syscall.MSG_DONTWAIT
	cmsgCloexec   = syscall.MSG_CMSG_CLOEXEC
	spinByDefault = int64(spinDefault)
	fifoPolls     = true  // the poller serves FIFOs
	fifoQuiet     = false // a FIFO without a writer reads as ended, not as empty
)

type kernel struct{ everyUnix }

// ---------------------------------------------------------------------------
// What only Linux has

// PeerPidfd returns a descriptor that stands for the peer's process itself,
// whatever becomes of its number: SO_PEERPIDFD of Linux 6.5 and later, see
// pidfd_open(2). It becomes readable when the process ends, and signals are sent
// to no other by pidfd_send_signal(2). It is the process that the credentials are
// of: see [Peer]. Before 6.5 the error matches [errors.ErrUnsupported].
func (c *endpoint) PeerPidfd() (*os.File, error) {
	const soPeerPidfd = 77 // asm-generic/socket.h
	var pidfd int
	err := c.fd.peerOption(func() (err error) {
		pidfd, err = syscall.GetsockoptInt(c.fd.sys, syscall.SOL_SOCKET, soPeerPidfd)
		return err
	})
	if err != nil {
		return nil, c.failed("peer", err)
	}
	return os.NewFile(uintptr(pidfd), "pidfd"), nil // close-on-exec from birth
}

// PeerLabel returns the label that the security module (SELinux, AppArmor) gave
// the peer: SO_PEERSEC of unix(7). Where none is in force the error matches
// [errors.ErrUnsupported].
func (c *endpoint) PeerLabel() (string, error) {
	const soPeerSec = 31 // asm-generic/socket.h
	label := make([]byte, 256)
	for {
		n := len(label)
		err := c.fd.peerOption(func() error { return getsockopt(c.fd.sys, soPeerSec, label, &n) })
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

// PeerGroups returns the supplementary groups of the peer: SO_PEERGROUPS of
// socket(7), Linux 4.13 and later. [Peer.Groups] has them too. Before 4.13 the
// error matches [errors.ErrUnsupported].
func (c *endpoint) PeerGroups() (groups []int, err error) {
	err = c.fd.peerOption(func() (err error) {
		groups, err = peerGroups(c.fd.sys)
		return err
	})
	return groups, c.failed("peer", err)
}

// peerOption asks for an option of the socket that not every kernel knows.
func (f *fd) peerOption(ask func() error) error {
	err := f.control("getsockopt", ask)
	if errnoOf(err) == syscall.ENOPROTOOPT {
		return &classified{err, errors.ErrUnsupported}
	}
	return err
}

// RecvPeer is [MsgConn.Recv] and tells who sent this very message, as the kernel
// recorded it when it was sent: SCM_CREDENTIALS of unix(7). That is more than
// [MsgConn.Peer] when the other end is shared by several processes. A message
// that was sent before the first RecvPeer may have no sender: nothing is known of
// its Peer. The kernel gives a socket without a name one (unix(7), autobind).
func (c *MsgConn) RecvPeer(p []byte) (int, Peer, error) {
	n, peer, err := c.fd.recvPeer(p)
	return n, peer, c.failed("recv", err)
}

func (f *fd) recvPeer(p []byte) (n int, peer Peer, err error) {
	err = f.control("setsockopt", func() error {
		return syscall.SetsockoptInt(f.sys, syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1)
	})
	if err != nil {
		return 0, Peer{}, err
	}
	h := &f.r
	if err := f.enterRecv(h); err != nil {
		return 0, Peer{}, err
	}
	defer f.leave(h)
	if !h.held {
		h.oob = make([]byte, 256)
	}
	n, err = f.recvInto(h, p)
	if len(h.oob) == 0 || err != nil && err != ErrMsgTooLong {
		return n, Peer{}, err
	}
	msgs, e := syscall.ParseSocketControlMessage(h.oob[:h.oobn])
	if e != nil {
		return n, Peer{}, e
	}
	for _, m := range msgs {
		switch cred, e := syscall.ParseUnixCredentials(&m); {
		case e == nil && cred.Pid != 0:
			peer = credPeer(cred)
		case m.Header.Type == syscall.SCM_RIGHTS:
			fds, _ := syscall.ParseUnixRights(&m)
			for _, fd := range fds { // nobody asked for files
				syscall.Close(fd)
			}
		}
	}
	return n, peer, err
}

// linux/fcntl.h: F_SETPIPE_SZ, F_GETPIPE_SZ.
const (
	setPipeSize = 1031
	getPipeSize = 1032
)

// SetCapacity asks for room for n bytes in the pipe or FIFO: F_SETPIPE_SZ of
// fcntl(2). The kernel rounds up to a power of two of pages; a user that is not
// root gets at most /proc/sys/fs/pipe-max-size. EBUSY means that more is in the
// pipe.
func (e *pipeEnd) SetCapacity(n int) error {
	if n < 0 || n > maxInt32 { // the kernel would take the lower half of it
		return pipeError("set", e.addr, configError("the capacity", strconv.Itoa(n), "0 to "+strconv.Itoa(maxInt32)))
	}
	_, err := e.fd.fcntl(setPipeSize, n)
	return pipeError("set", e.addr, err)
}

// Capacity returns the room in the pipe or FIFO in bytes: F_GETPIPE_SZ of
// fcntl(2).
func (e *pipeEnd) Capacity() (int, error) {
	n, err := e.fd.fcntl(getPipeSize, 0)
	return n, pipeError("get", e.addr, err)
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

// spliceFrom copies from r until it ends, if it is something to splice from.
// Unless it says done, the caller copies the rest by other means.
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

// spliceTo copies to w until the peer closes, if it is something to splice to.
func (kernel) spliceTo(f *fd, w io.Writer) (n int64, done bool, err error) {
	dst := spliceEnd(w)
	if _, file := w.(*os.File); dst == nil || file || f.hasAhead() {
		return 0, false, nil
	}
	return splice(dst, rawConn{f}, noLimit)
}

const noLimit = 1<<63 - 1

// spliceEnd returns access to the descriptor of v if v reads and writes nothing
// but what its descriptor does. That is known of these very types alone: a type
// that has one inside may do more. A file is read from; to write to one may need
// more than splice offers (O_APPEND).
func spliceEnd(v any) (raw syscall.RawConn) {
	var err error
	switch v := v.(type) {
	case *Conn:
		return rawConn{v.fd}
	case *PipeReader:
		return rawConn{v.fd}
	case *PipeWriter:
		return rawConn{v.fd}
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

// hasAhead reports whether something was read ahead of its reader, which has to go
// first. It waits for the read that is under way, so only who is about to read asks:
// a sink may be read by somebody who waits for what the copy brings.
func (f *fd) hasAhead() bool {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return f.r.hasAhead()
}

// splice copies from src to dst until src ends. It is not done when the kernel
// does not splice between the two, nor when src cannot be waited for or fails:
// nothing is lost then, and a plain copy goes on from there or says what is wrong.
func splice(dst, src syscall.RawConn, limit int64) (total int64, done bool, err error) {
	s := splicer{dst: dst, src: src, in: -1, out: -1}
	if !endsInPipe(dst) && !endsInPipe(src) {
		r, w, err := pipe()
		if err != nil {
			return 0, false, nil // out of descriptors: a plain copy needs none
		}
		defer r.close()
		defer w.close()
		w.fcntl(setPipeSize, spliceRoom) // a smaller one works too
		s.out, s.in = r.sys, w.sys
	}
	return s.run(limit)
}

func endsInPipe(raw syscall.RawConn) (yes bool) {
	raw.Control(func(sysfd uintptr) { yes = isPipe(int(sysfd)) == nil })
	return yes
}

// spliceRoom is the size of the pipe between two sockets.
const spliceRoom = 256 << 10

// A splicer moves bytes from src to dst; if neither is a pipe, through one whose
// ends are in and out.
type splicer struct {
	dst, src syscall.RawConn
	in, out  int

	want    int // to move, and how it went
	n       int
	errno   syscall.Errno
	blocked bool  // it is src that has to be waited for
	failed  error // of src: it is closed, say, or has no poller to wait with

	side    int // the descriptor of dst
	fromSrc func(src uintptr)
}

func (s *splicer) run(limit int64) (total int64, done bool, err error) {
	// The functions are made once, so that no wait allocates.
	fill, drain := s.fill, s.drain
	s.fromSrc = func(src uintptr) {
		for range contradictionsMax {
			s.move(int(src), s.side)
			s.blocked = s.errno == syscall.EAGAIN && !readable(int(src))
			if s.errno != syscall.EAGAIN || s.blocked || !writable(s.side) {
				return
			}
			kern.yield() // one of the two became ready just after
		}
		s.errno = syscall.EINVAL // poll(2) is not to be had, or does not speak for splice(2)
	}
	for total < limit {
		s.want = int(min(spliceRoom, limit-total))
		if s.in < 0 {
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
		if s.in < 0 {
			total += int64(s.n)
			continue
		}
		for s.want = s.n; s.want > 0; s.want -= s.n {
			if err = s.dst.Write(drain); err == nil && s.errno != 0 {
				err = writeError("splice", s.errno)
			}
			if err != nil {
				return total, true, err
			}
			total += int64(s.n)
		}
	}
	return total, true, nil
}

// direct moves bytes where one side is a pipe, so that one call needs both sides
// to be ready. It moves them as a write to dst, so that no other write is torn,
// and asks src first, whose deadline and Close count too. The error is of dst.
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

// contradictionsMax is how often in a row poll(2) may say that both sides are ready
// and splice(2) that one is not. Nobody looks at deadlines and Close meanwhile.
const contradictionsMax = 100

// refused reports whether the kernel does not splice between the two (EINVAL), or a
// sandbox does not let it.
func refused(errno syscall.Errno) bool {
	return errno == syscall.EINVAL || errno == syscall.ENOSYS || errno == syscall.EPERM
}

// fill is called when src may be ready.
func (s *splicer) fill(src uintptr) bool {
	if s.in >= 0 {
		return s.move(int(src), s.in)
	}
	return readable(int(src))
}

// drain is called when dst may be ready.
func (s *splicer) drain(dst uintptr) bool {
	if s.out >= 0 {
		return s.move(s.out, int(dst))
	}
	s.side, s.blocked = int(dst), false
	if s.failed = s.src.Control(s.fromSrc); s.failed != nil {
		return true
	}
	return s.errno != syscall.EAGAIN || s.blocked
}

// move makes the call and reports whether it did not meet an obstacle to wait for.
func (s *splicer) move(from, to int) bool {
	const flags = 1 | 2 // SPLICE_F_MOVE, SPLICE_F_NONBLOCK of linux/splice.h
	for {
		n, _, errno := syscall.Syscall6(syscall.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(s.want), flags)
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
		return everyUnix{}.shorten(path)
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

// setMode sets permissions and owner of the file of that type at the path. It
// holds on to the file, so that nothing put in its place meanwhile is changed.
func (kernel) setMode(path string, typ, mode uint32, uid, gid int) error {
	file, release, err := pin(path, syscall.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer release()
	var st syscall.Stat_t
	if err := control(func() error { return syscall.Stat(file, &st) }); err == syscall.ENOENT {
		return everyUnix{}.setMode(path, typ, mode, uid, gid) // /proc is not mounted
	} else if err != nil {
		return os.NewSyscallError("stat", err)
	} else if st.Mode&syscall.S_IFMT != typ {
		return errReplaced
	}
	if uid >= 0 || gid >= 0 {
		if err := control(func() error { return syscall.Chown(file, uid, gid) }); err != nil {
			return os.NewSyscallError("chown", err)
		}
	}
	return os.NewSyscallError("chmod", control(func() error { return syscall.Chmod(file, mode) }))
}

func (kernel) sysFlock(fd, how int) error { return syscall.Flock(fd, how) }

func (kernel) hearsOn() bool { return false }

func (kernel) newPipe(p *[2]int) error { return syscall.Pipe2(p[:], socketFlags) }

func (kernel) mkfifo(path string, mode uint32) error { return syscall.Mkfifo(path, mode) }

// hungUp reports whether the FIFO had a writer that left.
func (kernel) hungUp(sys int) bool { return poll(sys, pollIn)&pollHup != 0 }

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

// poll returns what poll(2) says of the descriptor now; by ppoll(2), which every
// architecture has. Where a process may not ask (in a sandbox, or because it may have
// no descriptors: EINVAL) all is as if it were ready, and the call that follows says.
func poll(sys int, events int16) int16 {
	p := struct {
		fd              int32
		events, revents int16
	}{fd: int32(sys), events: events}
	var now [2]int64 // a timespec of zero, whatever its width
	_, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	if errno != 0 && errno != syscall.EINTR { // which comes only if nothing is ready
		return events
	}
	return p.revents
}

// accept looks before it asks: accept4(2) makes a socket first and then looks whether
// there is a client for it, which in vain costs ten times what the look does.
func (kernel) accept(sys int) (int, error) {
	if !readable(sys) {
		return -1, syscall.EAGAIN
	}
	conn, _, err := syscall.Accept4(sys, socketFlags)
	return conn, err
}

func (kernel) dup(sys int) (int, error) {
	d, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(sys), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(d), nil
}

func (kernel) read(sys int, p []byte, raw bool) (int, error) {
	if !raw || len(p) > rawMax || len(p) == 0 {
		return syscall.Read(sys, p)
	}
	return rawCall(syscall.SYS_READ, sys, p)
}

func (kernel) write(sys int, p []byte, raw bool) (int, error) {
	if !raw || len(p) > rawMax || len(p) == 0 {
		return syscall.Write(sys, p)
	}
	return rawCall(syscall.SYS_WRITE, sys, p)
}

// rawCall makes the call read or write by its number, without the scheduler: see
// half.raw.
func rawCall(trap uintptr, sys int, p []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(trap, uintptr(sys), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// yield lets another thread of the machine have the CPU: sched_yield(2).
func (kernel) yield() { syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0) }

func (kernel) readv(sys int, iov []iovec) (int, error)  { return vector(syscall.SYS_READV, sys, iov) }
func (kernel) writev(sys int, iov []iovec) (int, error) { return vector(syscall.SYS_WRITEV, sys, iov) }

// markMessages makes the kernel set a time stamp on every message. There is no
// room for it in a plain receive, which MSG_CTRUNC tells; so an empty message
// differs from the end, where nothing was received and nothing cut off. Should
// the kernel refuse, an empty message is taken for the end.
func (kernel) markMessages(sys int) {
	syscall.SetsockoptInt(sys, syscall.SOL_SOCKET, syscall.SO_TIMESTAMP, 1)
}

// markRoom is the room that the mark takes in a buffer for control messages, where
// it comes first: CMSG_SPACE of a struct timeval.
var markRoom = syscall.CmsgSpace(int(unsafe.Sizeof(syscall.Timeval{})))

// unmarked returns the control messages behind the mark.
func (kernel) unmarked(oob []byte) []byte {
	if len(oob) < markRoom {
		return oob
	}
	h := (*syscall.Cmsghdr)(unsafe.Pointer(&oob[0])) // large enough, and aligned as an allocation is
	if h.Level != syscall.SOL_SOCKET || h.Type != syscall.SCM_TIMESTAMP {
		return oob
	}
	return oob[markRoom:]
}

func (kernel) isMessage(flags, oobn int) bool { return oobn > 0 || flags&syscall.MSG_CTRUNC != 0 }

func (kernel) sendmsg(sys int, p, oob []byte, flags int) (int, error) {
	n, _, _, err := message(numbers.sendmsg, sys, p, oob, flags)
	return n, err
}

func (kernel) recvmsg(sys int, p, oob []byte, flags int) (n, oobn, got int, err error) {
	return message(numbers.recvmsg, sys, p, oob, flags)
}

// message makes the call sendmsg(2) or recvmsg(2). It leaves the peer's address
// out, which package syscall would allocate for each message of a peer that is
// bound to one.
func message(trap uintptr, sys int, p, oob []byte, flags int) (n, oobn, got int, err error) {
	var iov iovec
	if len(p) > 0 {
		iov = iovec{&p[0], uintptr(len(p))}
	}
	hdr := syscall.Msghdr{Iov: (*syscall.Iovec)(unsafe.Pointer(&iov)), Iovlen: 1}
	if len(oob) > 0 {
		hdr.Control = &oob[0]
		hdr.SetControllen(len(oob))
	}
	r, _, errno := syscall.Syscall(trap, uintptr(sys), uintptr(unsafe.Pointer(&hdr)), uintptr(flags))
	if errno != 0 {
		return 0, 0, 0, errno
	}
	return int(r), int(hdr.Controllen), int(hdr.Flags), nil
}

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

func credPeer(cred *syscall.Ucred) Peer {
	p := unixPeer(int(cred.Uid))
	p.add(knowsGID, &p.gid, int(cred.Gid))
	p.add(knowsPID, &p.pid, int(cred.Pid)) // 0: in a namespace out of sight
	return p
}

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
		groups := make([]int, n/4)
		for i := range groups {
			groups[i] = int(ids[i])
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
	if errno != 0 {
		return errno
	}
	return nil
}

// numbers are those of asm/unistd.h for calls that package syscall lacks on 386,
// where they came with Linux 4.3; before, socketcall(2) was the only way.
var numbers = func() (n struct{ getsockopt, sendmsg, recvmsg uintptr }) {
	switch runtime.GOARCH {
	case "amd64":
		n.getsockopt, n.sendmsg, n.recvmsg = 55, 46, 47
	case "386", "s390x":
		n.getsockopt, n.sendmsg, n.recvmsg = 365, 370, 372
	case "arm":
		n.getsockopt, n.sendmsg, n.recvmsg = 295, 296, 297
	case "ppc64", "ppc64le":
		n.getsockopt, n.sendmsg, n.recvmsg = 340, 341, 342
	case "mips", "mipsle":
		n.getsockopt, n.sendmsg, n.recvmsg = 4173, 4179, 4177
	case "mips64", "mips64le":
		n.getsockopt, n.sendmsg, n.recvmsg = 5054, 5045, 5046
	default: // arm64, riscv64, loong64: asm-generic/unistd.h
		n.getsockopt, n.sendmsg, n.recvmsg = 209, 211, 212
	}
	return n
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

// newMemory makes a memfd_create(2). Without MFD_NOEXEC_SEAL a system may refuse it (sysctl
// vm.memfd_noexec), and with it an older kernel does.
func (kernel) newMemory(size int) (memoryFiles, error) {
	name := [...]byte{'i', 'p', 'c', 0}
	var sys uintptr
	err := control(func() error {
		var errno syscall.Errno
		for _, flags := range [...]uintptr{mfdCloexec | mfdAllowSealing | mfdNoExecSeal, mfdCloexec | mfdAllowSealing} {
			sys, _, errno = syscall.Syscall(memoryCalls.memfdCreate, uintptr(unsafe.Pointer(&name[0])), flags, 0)
			if errno != syscall.EINVAL {
				break
			}
		}
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return memoryFiles{}, os.NewSyscallError("memfd_create", err)
	}
	if err := control(func() error { return syscall.Ftruncate(int(sys), int64(size)) }); err != nil {
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

// checkMemory looks at the seals: what has F_SEAL_SHRINK keeps every page that it has. Of
// the two kinds of file that know seals it refuses the one of huge pages (hugetlbfs), whose
// pages may turn out not to be there when they are touched.
func (kernel) checkMemory(sys int) (memoryInfo, error) {
	seals, err := fcntl(sys, getSeals, 0)
	if err == syscall.EINVAL {
		return memoryInfo{}, &ruleError{what: "the file is not memory"}
	} else if err != nil {
		return memoryInfo{}, os.NewSyscallError("fcntl", err)
	}
	if seals&sealShrink == 0 {
		return memoryInfo{}, &ruleError{what: "the memory can shrink: it has no F_SEAL_SHRINK"}
	}
	var fs syscall.Statfs_t
	if err := control(func() error { return syscall.Fstatfs(sys, &fs) }); err != nil {
		return memoryInfo{}, os.NewSyscallError("fstatfs", err)
	}
	if uint32(fs.Type) != tmpfsMagic {
		return memoryInfo{}, &ruleError{what: "the memory is not of the ordinary kind"}
	}
	var st syscall.Stat_t // its size cannot become less any more
	if err := control(func() error { return syscall.Fstat(sys, &st) }); err != nil {
		return memoryInfo{}, os.NewSyscallError("fstat", err)
	}
	mode, err := fcntl(sys, syscall.F_GETFL, 0)
	if err != nil {
		return memoryInfo{}, os.NewSyscallError("fcntl", err)
	}
	writable := mode&syscall.O_ACCMODE == syscall.O_RDWR && seals&(sealWrite|sealFutureWrite) == 0
	return memoryInfo{size: st.Size, writable: writable}, nil
}

// openReadOnly keeps the processes of other users from doing the same for writing: who has a
// descriptor of the file can open it anew through /proc if its mode allows that.
func (kernel) openReadOnly(sys int) (*os.File, error) {
	if err := control(func() error { return syscall.Fchmod(sys, 0o600) }); err != nil && err != syscall.EPERM {
		return nil, os.NewSyscallError("fchmod", err)
	} // EPERM: it is another user's, who says
	path := "/proc/self/fd/" + strconv.Itoa(sys)
	fd, err := open(path, syscall.O_RDONLY|syscall.O_CLOEXEC)
	if err == syscall.ENOENT { // /proc is not mounted
		return nil, &classified{os.NewSyscallError("open", err), errors.ErrUnsupported}
	} else if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	return os.NewFile(uintptr(fd), "memory"), nil
}

// mapTwice maps beyond the end of the file, which Linux allows, and puts the second mapping
// there before anybody looks: one call less.
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
// on s390x the call takes its arguments as an array.
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
	if errno != 0 {
		return errno
	}
	return nil
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
