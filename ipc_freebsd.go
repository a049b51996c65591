package ipc

import (
	"sync"
	"syscall"
	"unsafe"
)

// Traits of FreeBSD that ipc_unix.go builds on.
const (
	abstractNames = false
	fullRefuses   = true // a full backlog is ECONNREFUSED
	pathMax       = 1023 // PATH_MAX of sys/syslimits.h, less the NUL
	socketFlags   = syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	framedHere    = false // SOCK_SEQPACKET keeps messages apart
	markRoom      = 0     // nothing marks messages
	peekTells     = false
	cutsRights    = true
	dontWait      = syscall.MSG_DONTWAIT
	cmsgCloexec   = syscall.MSG_CMSG_CLOEXEC
	spinByDefault = 0    // whether it pays is not known
	fifoPolls     = true // the poller serves FIFOs
	fifoQuiet     = true // a FIFO without a writer reads as empty, not as ended
)

type kernel struct{ everyUnix }

func (kernel) sysFlock(fd, how int) error            { return syscall.Flock(fd, how) }
func (kernel) newPipe(p *[2]int) error               { return syscall.Pipe2(p[:], socketFlags) }
func (kernel) mkfifo(path string, mode uint32) error { return syscall.Mkfifo(path, mode) }

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

func (kernel) readv(sys int, iov []iovec) (int, error)  { return vector(syscall.SYS_READV, sys, iov) }
func (kernel) writev(sys int, iov []iovec) (int, error) { return vector(syscall.SYS_WRITEV, sys, iov) }

// isMessage tells an empty message from the end: only a message ends a record.
func (kernel) isMessage(flags, oobn int) bool { return flags&syscall.MSG_EOR != 0 }

// looseRecords reports whether this is FreeBSD 15 or later, whose messages are
// records in a stream: an empty one does not exist, what does not fit a buffer
// stays for the next receive, and of what does not fit the queue a part is sent.
func (kernel) looseRecords() bool { return isFreeBSD15() }

// isFreeBSD15 asks the kernel once for __FreeBSD_version of sys/param.h.
var isFreeBSD15 = sync.OnceValue(func() bool {
	version, err := syscall.SysctlUint32("kern.osreldate")
	return err == nil && version >= 1500000
})

func (kernel) carriesEmpty() bool { return !kern.looseRecords() }

func (kernel) sendmsg(sys int, p, oob []byte, flags int) (int, error) {
	n, err := everyUnix{}.sendmsg(sys, p, oob, flags)
	if err == syscall.EAGAIN && len(oob) > 0 && flags&syscall.MSG_EOR != 0 && !kern.looseRecords() {
		err = fullOrTooLong(sys, len(p)+len(oob)) // the kernel waits for ever for what is too long
	}
	return n, err
}

// recvmsg leaves the peer's address out, which package syscall would allocate for
// each message. But an empty one of another program, sent without MSG_EOR, is told
// from the end by its having an address at all.
func (kernel) recvmsg(sys int, p, oob []byte, flags int) (n, oobn, got int, err error) {
	var name, dummy [1]byte
	room := p
	if len(p) == 0 {
		room = dummy[:] // a receive without room waits for nothing
	}
	iov := syscall.Iovec{Base: &room[0]}
	iov.SetLen(len(room))
	hdr := syscall.Msghdr{Name: &name[0], Namelen: 1, Iov: &iov, Iovlen: 1}
	if len(oob) > 0 {
		hdr.Control = &oob[0]
		hdr.SetControllen(len(oob))
	}
	r, _, errno := syscall.Syscall(syscall.SYS_RECVMSG, uintptr(sys), uintptr(unsafe.Pointer(&hdr)), uintptr(flags))
	if errno != 0 {
		return 0, 0, 0, errno
	}
	if r == 0 && hdr.Namelen > 0 && !kern.looseRecords() {
		hdr.Flags |= syscall.MSG_EOR
	}
	return min(int(r), len(p)), int(hdr.Controllen), int(hdr.Flags), nil
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
