package ipc

import (
	"errors"
	"os"
	"runtime"
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
	if err := control(func() error { return syscall.Ftruncate(object, int64(size)) }); err != nil {
		files.close()
		return memoryFiles{}, os.NewSyscallError("ftruncate", err)
	}
	return files, nil
}

func shmOpen2(name *byte, flags int) (fd int, err error) {
	err = control(func() error {
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

// checkMemory looks at the seals: what has F_SEAL_SHRINK keeps every page that it has.
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
	var st syscall.Stat_t // its size cannot become less any more
	if err := control(func() error { return syscall.Fstat(sys, &st) }); err != nil {
		return memoryInfo{}, os.NewSyscallError("fstat", err)
	}
	mode, err := fcntl(sys, syscall.F_GETFL, 0)
	if err != nil {
		return memoryInfo{}, os.NewSyscallError("fcntl", err)
	}
	return memoryInfo{size: st.Size, writable: mode&syscall.O_ACCMODE == syscall.O_RDWR && seals&sealWrite == 0}, nil
}

func (kernel) openReadOnly(int) (*os.File, error) {
	return nil, &ruleError{"this system cannot open memory again for reading alone", errors.ErrUnsupported}
}

// mapAt makes an mmap(2) at a fixed place. The offset, an off_t, takes two words where a
// word has 32 bits, on arm an even and the following one.
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
