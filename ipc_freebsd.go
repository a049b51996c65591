package ipc

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// Traits of FreeBSD that ipc_unix.go builds on.
const (
	abstractNames = false
	fullRefuses   = true // sys/kern/uipc_usrreq.c, unp_connectat: a full backlog is ECONNREFUSED
	pathMax       = 1023 // PATH_MAX of sys/syslimits.h, less the NUL
	socketFlags   = syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	framedHere    = false // SOCK_SEQPACKET keeps messages apart
	markRoom      = 0     // nothing marks messages
	peekTells     = false // MSG_TRUNC is an output of recvmsg(2) alone
	dontWait      = syscall.MSG_DONTWAIT
	cmsgCloexec   = syscall.MSG_CMSG_CLOEXEC
	noSignal      = syscall.MSG_NOSIGNAL
	filesAlone    = true // sosend_generic of sys/kern/uipc_socket.c: files may come without a byte of data
	sharesMemory  = true // see newMemory
	spinByDefault = 0    // whether it pays is not known
	fifoPolls     = true // the poller serves FIFOs
	fifoQuiet     = true // a FIFO without a writer reads as empty: see primedFIFO
)

type kernel struct{ baseKernel }

func (kernel) sysFlock(fd, how int) error            { return syscall.Flock(fd, how) }
func (kernel) mkfifo(path string, mode uint32) error { return syscall.Mkfifo(path, mode) }

// newPipe passes the flags that pipe2(2) takes. Those of socket(2) have other
// numbers, and are EINVAL here.
func (kernel) newPipe(p *[2]int) error {
	return syscall.Pipe2(p[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK)
}

// rightsLost goes by unp_externalize of sys/kern/uipc_usrreq.c: without enough free
// descriptors it says EMSGSIZE in FreeBSD 13 and what fdallocn says, EMFILE, from
// 14 on. soreceive_generic, and uipc_soreceive_stream_or_seqpacket of FreeBSD 15,
// then leave the data of a stream in the queue. It is never ENFILE, which
// falloc_noinstall of sys/kern/kern_descrip.c says when a file is opened: these are open.
func (kernel) rightsLost(err error) (lost, dataStays bool) {
	lost = err == syscall.EMSGSIZE || err == syscall.EMFILE
	return lost, lost
}

// closesOnExec asks by F_GETFD, which takes no argument and cannot block.
func (kernel) closesOnExec(sys int) bool {
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(sys), syscall.F_GETFD, 0)
	return errno == 0 && flags&syscall.FD_CLOEXEC != 0
}

// accept leaves the client's address out: package syscall refuses a client that is
// bound to a path too long for its sockaddr_un.
func (kernel) accept(sys int) (int, error) {
	conn, _, errno := syscall.Syscall6(syscall.SYS_ACCEPT4, uintptr(sys), 0, 0, socketFlags, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(conn), nil
}

func (kernel) dup(sys int) (int, error) {
	d, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(sys), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(d), nil
}

// primedFIFO returns a second reader of the FIFO that tells a writer which has not
// written yet from none, or nil where the FIFO may not be written. fifo_open of
// sys/fs/fifofs/fifo_vnops.c clears PIPE_EOF for the first reader, so that a read is
// EAGAIN with and without a writer; the last writer's close sets it. So a writer
// comes and goes here. The reader that is opened then, while f keeps the FIFO, leaves
// PIPE_EOF as it is: without a writer its reads return 0, with one they say EAGAIN.
// Of writers that left, poll(2) tells it those that came after it was opened.
func (kernel) primedFIFO(ctx context.Context, f *fd, path string) *fd {
	w, err := tryFIFO(ctx, path, writing)
	if err != nil {
		return nil
	}
	same := fstatID(w.sys) == fstatID(f.sys)
	w.close()
	if !same {
		return nil // the file at the path was replaced; f is what was asked for
	}
	r, err := tryFIFO(ctx, path, reading)
	if err != nil {
		return nil
	}
	if fstatID(r.sys) != fstatID(f.sys) {
		r.close()
		return nil
	}
	return r
}

// hungUp reports whether the FIFO had a writer that left since the reader was opened:
// see pipe_poll of sys/kern/sys_pipe.c.
func (kernel) hungUp(sys int) bool {
	const pollIn, pollHup = 0x1, 0x10 // sys/sys/poll.h
	p := struct {                     // struct pollfd
		fd              int32
		events, revents int16
	}{fd: int32(sys), events: pollIn}
	n, _, errno := syscall.Syscall(syscall.SYS_POLL, uintptr(unsafe.Pointer(&p)), 1, 0)
	return errno == 0 && n == 1 && p.revents&pollHup != 0
}

// hasNoWriter polls: a read would wait for data if another process has made the pipe blocking.
func (k kernel) hasNoWriter(sys int) bool { return k.hungUp(sys) }

// isMessage tells an empty message from the end: only a message has an end or brings
// control messages. On FreeBSD 15 files without a byte of data have no end: MSG_EOR
// goes with a buffer of data, and there is none (mc_uiotomc of sys/kern/uipc_mbuf.c). They
// are the first part of the message that follows.
func (kernel) isMessage(flags, oobn int) bool { return flags&syscall.MSG_EOR != 0 || oobn > 0 }

// splitsMessages reports whether this is FreeBSD 15 or later, whose messages are
// records in a stream: an empty one does not exist, what does not fit a buffer
// stays for the next receive, and of what does not fit the queue a part is sent.
func (kernel) splitsMessages() bool { return keepsRest() }

// keepsRest tries once, on a pair of sockets, whether what does not fit a buffer stays for
// the next receive. The version of the kernel does not tell for sure: kern.osreldate is what
// a jail was given (pr_osreldate of sys/jail.h).
var keepsRest = sync.OnceValue(func() bool {
	s, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|socketFlags, 0)
	if err == nil {
		defer syscall.Close(s[0])
		defer syscall.Close(s[1])
		_, err = syscall.SendmsgN(s[0], make([]byte, 2), nil, nil, syscall.MSG_EOR)
	}
	if err != nil { // no descriptors, for example
		version, err := syscall.SysctlUint32("kern.osreldate")
		return err == nil && version >= 1500000 // __FreeBSD_version of sys/param.h
	}
	var b [1]byte
	syscall.Read(s[1], b[:])
	n, err := syscall.Read(s[1], b[:])
	return err == nil && n == 1
})

// tooLong reports whether the kernel would make several messages of one: each time
// it has copied as much as SO_SNDBUF it ends a message (mc_uiotomc). A message that fits
// the least buffer of setBuffer is not asked about: one system call less for each.
func (kernel) tooLong(sys, n int) bool {
	if n <= bufferMin || !kern.splitsMessages() {
		return false
	}
	limit, err := kern.messageMax(sys)
	return err == nil && n > limit
}

func (kernel) carriesEmpty() bool { return !kern.splitsMessages() }

// sendmsg sends data alone by sendto(2), for which the kernel allocates no copy of a list
// of buffers (copyiniov of sys/kern/subr_uio.c).
func (kernel) sendmsg(sys int, p, oob []byte, flags int) (int, error) {
	if len(oob) == 0 {
		n, _, errno := syscall.Syscall6(syscall.SYS_SENDTO, uintptr(sys), uintptr(unsafe.Pointer(unsafe.SliceData(p))),
			uintptr(len(p)), uintptr(flags), 0, 0)
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
	if kern.splitsMessages() && !rightsMayGo(sys, oob) {
		return 0, syscall.EAGAIN
	}
	n, err := baseKernel{}.sendmsg(sys, p, oob, flags)
	if err == syscall.EAGAIN && flags&syscall.MSG_EOR != 0 && !kern.splitsMessages() {
		err = fullOrTooLong(sys, len(p)+len(oob)) // the kernel waits for ever for what is too long
	}
	return n, err
}

// rightsMayGo reports whether sendmsg(2) may be called with the control messages now, on
// FreeBSD 15. If the peer's queue has room for them and for nothing else, that queues them,
// and says EAGAIN because of the data (uipc_sosend_stream_or_seqpacket of
// sys/kern/uipc_usrreq.c). To try again then would send the files twice. With room for a
// byte more that cannot happen: the room only grows, as long as nobody else sends through
// the socket.
//
// A descriptor is a pointer in the queue (unp_internalize): at most twice its size in the
// call. If the peer has asked for credentials they go along (unp_addsockcred): a struct
// sockcred2 with CMGROUP_MAX groups, 92 bytes, at most.
//
// A queue can be too small for that at any time. Nothing tells its size, but sendmsg(2)
// says EMSGSIZE of what never fits. So it may be called with less room, too, if that is not
// exactly what the control messages take, and does not grow for a moment, since nobody
// receives. What credentials take is not known here.
func rightsMayGo(sys int, oob []byte) bool {
	kq, err := syscall.Kqueue()
	if err != nil { // without a descriptor to spare the files are sent as they would be
		return true
	}
	defer syscall.Close(kq)
	if _, fits := roomOver(kq, sys, 2*len(oob)+syscall.CmsgSpace(92), 0); fits {
		return true
	}
	room, some := roomOver(kq, sys, 0, 0)
	if !some || room == syscall.CmsgSpace(len(descriptorsIn(oob))*int(unsafe.Sizeof(uintptr(0)))) {
		return false
	}
	_, grows := roomOver(kq, sys, room, 5*time.Millisecond)
	return !grows
}

// roomOver reports whether the queue that the socket sends to has more room than so many
// bytes, or gets it within the time, and how much it has then. EVFILT_WRITE with NOTE_LOWAT
// tells that. It tells the end of the connection, too, for which sendmsg(2) has the error
// (uipc_filt_sowrite).
func roomOver(kq, sys, least int, within time.Duration) (room int, yes bool) {
	change := newKevent(sys, syscall.EVFILT_WRITE, syscall.NOTE_LOWAT, least+1)
	var got [1]kevent
	timeout := syscall.NsecToTimespec(int64(within))
	n := 0
	err := ignoringEINTR(func() (err error) {
		n, err = callKevent(kq, []kevent{change}, got[:], &timeout)
		return err
	})
	return int(got[0][keventData]), err != nil || n > 0
}

// recvmsg leaves the peer's address out, which package syscall would allocate for
// each message. But an empty one of another program, sent without MSG_EOR, is told
// from the end by its having an address at all.
func (kernel) recvmsg(sys int, p, oob []byte, flags int) (n, oobn, got int, err error) {
	var dummy [1]byte
	room := p
	if len(p) == 0 {
		room = dummy[:] // a receive without room waits for nothing
	}
	n, oobn, got, err = kern.recvv(sys, []iovec{{&room[0], uintptr(len(room))}}, oob, flags)
	return min(n, len(p)), oobn, got, err
}

func (kernel) recvv(sys int, iov []iovec, oob []byte, flags int) (n, oobn, got int, err error) {
	var name [1]byte
	hdr := syscall.Msghdr{Name: &name[0], Namelen: 1, Iov: (*syscall.Iovec)(unsafe.Pointer(&iov[0])), Iovlen: int32(len(iov))}
	if len(oob) > 0 {
		hdr.Control = &oob[0]
		hdr.SetControllen(len(oob))
	}
	r, _, errno := syscall.Syscall(syscall.SYS_RECVMSG, uintptr(sys), uintptr(unsafe.Pointer(&hdr)), uintptr(flags))
	if errno == syscall.EPIPE { // since FreeBSD 15: the listener was closed first (unp_drop of sys/kern/uipc_usrreq.c)
		errno = syscall.ECONNRESET
	}
	if errno != 0 {
		return 0, 0, 0, errno
	}
	if r == 0 && hdr.Namelen > 0 && !kern.splitsMessages() {
		hdr.Flags |= syscall.MSG_EOR
	}
	return int(r), int(hdr.Controllen), int(hdr.Flags), nil
}

// sendv is sendmsg(2) without control messages.
func (kernel) sendv(sys int, iov []iovec, flags int) (int, error) {
	hdr := syscall.Msghdr{Iov: (*syscall.Iovec)(unsafe.Pointer(&iov[0])), Iovlen: int32(len(iov))}
	n, _, errno := syscall.Syscall(syscall.SYS_SENDMSG, uintptr(sys), uintptr(unsafe.Pointer(&hdr)), uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// peerOf asks for LOCAL_PEERCRED, see unix(4): the struct xucred of sys/ucred.h,
// whose last field is a pointer wide and holds cr_pid since FreeBSD 13.0.
func (kernel) peerOf(sys int) (Peer, error) {
	const (
		solLocal      = 0 // sys/un.h
		localPeerCred = 1
		pidWord       = 18 + unsafe.Sizeof(uintptr(0))/4
	)
	var cred [pidWord + unsafe.Sizeof(uintptr(0))/4]uint32
	size := uint32(unsafe.Sizeof(cred))
	_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, uintptr(sys), solLocal, localPeerCred,
		uintptr(unsafe.Pointer(&cred)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return Peer{}, errno
	}
	p, err := xucredPeer(cred[:19])
	if err == nil {
		p.add(knowsPID, &p.pid, int(int32(cred[pidWord])))
	}
	return p, err
}

// The calls that folder builds on: see ipc_unix.go.
var folderCalls = folderNumbers{
	openat: syscall.SYS_OPENAT, fstatat: syscall.SYS_FSTATAT, unlinkat: syscall.SYS_UNLINKAT,
	renameat: syscall.SYS_RENAMEAT, linkat: syscall.SYS_LINKAT,
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
	folderFlags       = syscall.O_RDONLY | syscall.O_NONBLOCK
	atSymlinkNoFollow = 0x200 // sys/fcntl.h: AT_SYMLINK_NOFOLLOW
	cleanerBit        = 0     // only root may set the sticky bit of a file here
)

// bindAt binds in the folder by bindat(2). The name fits unless it fits nowhere.
func (kernel) bindAt(sys int, d *folder, name string) error {
	if d.sys < 0 {
		return baseKernel{}.bindAt(sys, d, name)
	}
	if len(name) > sunPathMax {
		return errNoRoom
	}
	return classify("bindat", ignoringEINTR(func() error { return atSocket(syscall.SYS_BINDAT, d, sys, name) }))
}

// probeAt connects in the folder by connectat(2). See probe.
func (kernel) probeAt(d *folder, name string) (at dirEntry, unpin func(), err error) {
	if d.sys < 0 || len(name) > sunPathMax {
		return baseKernel{}.probeAt(d, name)
	}
	if at, err = d.lstat(name); err != nil {
		return dirEntry{}, noUnpin, err
	}
	sys, err := newSocket(syscall.SOCK_DGRAM)
	if err != nil {
		return at, noUnpin, err
	}
	defer syscall.Close(sys)
	err = classify("connectat", ignoringEINTR(func() error { return atSocket(syscall.SYS_CONNECTAT, d, sys, name) }))
	if now, e := d.lstat(name); e != nil {
		err = e
	} else if now.id != at.id {
		err = errReplaced
	}
	return at, noUnpin, err
}

// atSocket makes the call bindat(2) or connectat(2).
func atSocket(trap uintptr, d *folder, sys int, name string) error {
	// 3: the two bytes before the path, and its NUL.
	sa := syscall.RawSockaddrUnix{Len: uint8(3 + len(name)), Family: syscall.AF_UNIX}
	for i := range len(name) {
		sa.Path[i] = int8(name[i])
	}
	_, _, errno := syscall.Syscall6(trap, uintptr(d.sys), uintptr(sys), uintptr(unsafe.Pointer(&sa)), uintptr(sa.Len), 0, 0)
	return errnoOrNil(errno)
}

// watchProcess watches for NOTE_EXIT of EVFILT_PROC: see kqueue(2).
func (kernel) watchProcess(pid int) (processWatch, error) {
	end := newKevent(pid, syscall.EVFILT_PROC, syscall.NOTE_EXIT, 0)
	return kqueueWatch[kevent]{pid: pid, kqueue: syscall.Kqueue, kevent: callKevent}.begin(end)
}

// A kevent is a struct kevent of sys/event.h, in 32-bit words: ident (a pointer wide),
// filter and flags (16 bits each), fflags, data (64 bits, which arm aligns), udata (a
// pointer wide), and four words of 64 bits. That is the one of FreeBSD 12. Package syscall
// has the call and the structure of FreeBSD 11, and a kernel that was built without
// COMPAT_FREEBSD11 kills a process that makes that call (SIGSYS).
type kevent [16]uint32

const sysKevent = 560 // sys/syscall.h: SYS_kevent

// keventData is the place of data, of which the lower word is enough here.
var keventData = func() int {
	at := int(unsafe.Sizeof(uintptr(0)))/4 + 2
	if runtime.GOARCH == "arm" {
		at++
	}
	return at
}()

// newKevent returns an event to be added for once.
func newKevent(ident, filter int, fflags uint32, data int) (e kevent) {
	at := int(unsafe.Sizeof(uintptr(0))) / 4
	e[0] = uint32(ident)
	e[at] = uint32(uint16(filter)) | (syscall.EV_ADD|syscall.EV_ONESHOT)<<16
	e[at+1] = fflags
	e[keventData] = uint32(data)
	return e
}

// callKevent is kevent(2), with at most one change and one event.
func callKevent(kq int, changes, events []kevent, timeout *syscall.Timespec) (int, error) {
	n, _, errno := syscall.Syscall6(sysKevent, uintptr(kq), uintptr(unsafe.Pointer(unsafe.SliceData(changes))), uintptr(len(changes)),
		uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(unsafe.Pointer(timeout)))
	return int(n), errnoOrNil(errno)
}

// ---------------------------------------------------------------------------
// Shared memory

// FreeBSD 13: sys/syscall.h, sys/mman.h and sys/fcntl.h.
const (
	sysShmOpen2     = 571
	shmAllowSealing = 0x1 // SHM_ALLOW_SEALING
	addSeals        = 19  // F_ADD_SEALS
	getSeals        = 20  // F_GET_SEALS
	sealSeal        = 0x1 // F_SEAL_SEAL
	sealShrink      = 0x2 // F_SEAL_SHRINK
	sealGrow        = 0x4 // F_SEAL_GROW
	sealWrite       = 0x8 // F_SEAL_WRITE
)

// newMemory makes a shm_open2(2) of a fresh name, opens it once more for reading alone,
// and takes the name away.
func (kernel) newMemory(size int) (memoryFiles, error) {
	name, err := syscall.BytePtrFromString("/" + freshName())
	if err != nil {
		return memoryFiles{}, err
	}
	object, err := shmOpen2(name, syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL)
	if err != nil {
		if err == syscall.ENOSYS { // before FreeBSD 13
			err = &classified{err, errors.ErrUnsupported}
		}
		return memoryFiles{}, os.NewSyscallError("shm_open2", err)
	}
	readOnly, err := shmOpen2(name, syscall.O_RDONLY)
	syscall.Syscall(syscall.SYS_SHM_UNLINK, uintptr(unsafe.Pointer(name)), 0, 0)
	if err != nil {
		syscall.Close(object)
		return memoryFiles{}, os.NewSyscallError("shm_open2", err)
	}
	files := memoryFiles{os.NewFile(uintptr(object), "memory"), os.NewFile(uintptr(readOnly), "memory")}
	if err := ignoringEINTR(func() error { return syscall.Ftruncate(object, int64(size)) }); err != nil {
		files.close()
		return memoryFiles{}, os.NewSyscallError("ftruncate", err)
	}
	return files, nil
}

func shmOpen2(name *byte, flags int) (fd int, err error) {
	err = ignoringEINTR(func() error {
		r, _, errno := syscall.Syscall6(sysShmOpen2, uintptr(unsafe.Pointer(name)),
			uintptr(flags|syscall.O_CLOEXEC), 0o600, shmAllowSealing, 0, 0)
		if errno != 0 {
			return errno
		}
		fd = int(r)
		return nil
	})
	return fd, err
}

// sealMemory seals the object. That a peer cannot write follows from its descriptor, which
// is for reading alone.
func (kernel) sealMemory(sys int, _ bool) error {
	_, err := fcntl(sys, addSeals, sealSeal|sealShrink|sealGrow)
	return os.NewSyscallError("fcntl", err)
}

func (kernel) checkMemory(sys int) (memoryInfo, error) {
	return sealedMemory(sys, fcntl, getSeals, sealShrink, sealWrite)
}

func (kernel) openReadOnly(int) (*os.File, error) {
	return nil, &ruleError{"this system cannot open memory again for reading alone", errors.ErrUnsupported}
}

// mapAt makes an mmap(2) at a fixed place. The offset, an off_t, takes two words where a
// word has 32 bits, on arm an even and the following one. The address may be kept as a
// number, since mem is no memory of the Go runtime.
func (kernel) mapAt(mem []byte, prot, flags, sys, offset int) error {
	addr, size, at := uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(offset)
	var errno syscall.Errno
	switch runtime.GOARCH {
	case "386":
		_, _, errno = syscall.Syscall9(syscall.SYS_MMAP, addr, size, uintptr(prot), uintptr(flags), uintptr(sys), at, 0, 0, 0)
	case "arm":
		_, _, errno = syscall.Syscall9(syscall.SYS_MMAP, addr, size, uintptr(prot), uintptr(flags), uintptr(sys), 0, at, 0, 0)
	default:
		_, _, errno = syscall.Syscall6(syscall.SYS_MMAP, addr, size, uintptr(prot), uintptr(flags), uintptr(sys), at)
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
