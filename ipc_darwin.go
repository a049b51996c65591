package ipc

import (
	"errors"
	"os"
	"strconv"
	"sync"
	"syscall"
	"unsafe"
)

// Traits of macOS and iOS that ipc_unix.go builds on.
const (
	abstractNames = false
	fullRefuses   = true // a full backlog is ECONNREFUSED
	pathMax       = 1023 // PATH_MAX of sys/syslimits.h, less the NUL
	socketFlags   = 0    // no SOCK_CLOEXEC: descriptors are made under syscall.ForkLock
	framedHere    = true // no SOCK_SEQPACKET
	markRoom      = 0    // nothing marks messages
	peekTells     = false
	cutsRights    = false // descriptors that do not fit would stay open for nobody to find
	dontWait      = syscall.MSG_DONTWAIT
	cmsgCloexec   = 0     // received under syscall.ForkLock
	spinByDefault = 0     // whether it pays is not known
	fifoPolls     = false // the poller does not hear of the last writer's end
	fifoQuiet     = false // a FIFO without a writer reads as ended, not as empty
)

type kernel struct{ everyUnix }

func (kernel) sysFlock(fd, how int) error            { return syscall.Flock(fd, how) }
func (kernel) mkfifo(path string, mode uint32) error { return syscall.Mkfifo(path, mode) }

// accept looks for a free descriptor first. Without one the kernel takes the client
// out of the queue all the same, and drops it.
func (kernel) accept(sys int) (int, error) {
	syscall.ForkLock.RLock() // the duplicate is not close-on-exec
	spare, err := syscall.Dup(sys)
	if err == nil {
		syscall.Close(spare)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return -1, err
	}
	return everyUnix{}.accept(sys)
}

// read reads from a socket by recvmsg(2). Whoever is sent files gets them here, even
// by a read(2), which tells nobody their numbers; so a peer could use up the
// descriptors of this process.
func (kernel) read(sys int, p []byte, _ bool) (int, error) {
	room := rightsRooms.Get().(*[rightsRoom]byte)
	defer rightsRooms.Put(room)
	syscall.ForkLock.RLock()
	n, oobn, _, err := kern.recvmsg(sys, p, room[:], dontWait) // a fork waits for this
	if err == nil && oobn > 0 {
		fds, _ := rights(room[:oobn])
		for _, fd := range fds {
			syscall.Close(fd)
		}
	}
	syscall.ForkLock.RUnlock()
	if err == syscall.ENOTSOCK {
		return syscall.Read(sys, p)
	}
	return n, err
}

// rightsRooms holds buffers for the files that nobody asked for.
var rightsRooms = sync.Pool{New: func() any { return new([rightsRoom]byte) }}

// sendmsg tells apart a queue that has no room for the control messages now and one
// that never has: the kernel says EMSGSIZE for both.
func (kernel) sendmsg(sys int, p, oob []byte, flags int) (int, error) {
	n, err := everyUnix{}.sendmsg(sys, p, oob, flags)
	if err == syscall.EMSGSIZE && len(oob) > 0 {
		err = fullOrTooLong(sys, len(oob))
	}
	return n, err
}

// peerOf asks for LOCAL_PEERCRED and LOCAL_PEERPID, see unix(4). Package syscall
// has no getsockopt for a structure of any kind; its variant for an
// ICMPv6Filter, 32 bytes, takes any level and option, and the kernel fills in
// the first 32 bytes of the struct xucred of sys/ucred.h: version, uid, number
// of groups (16 bits), and the first five of sixteen groups. Unlike these the
// process id is not that of who made the other end but of who used it last.
func (kernel) peerOf(sys int) (Peer, error) {
	const (
		solLocal      = 0 // sys/un.h
		localPeerCred = 1
		localPeerPID  = 2
	)
	cred, err := syscall.GetsockoptICMPv6Filter(sys, solLocal, localPeerCred)
	if err != nil {
		return Peer{}, err
	}
	p, err := xucredPeer(cred.Filt[:])
	if err != nil {
		return Peer{}, err
	}
	if pid, err := syscall.GetsockoptInt(sys, solLocal, localPeerPID); err == nil {
		p.add(knowsPID, &p.pid, pid) // ENOTCONN once the peer has closed
	}
	return p, nil
}

// PeerAuditToken returns the audit token of the peer, which names its process and
// no later one of the same number: LOCAL_PEERTOKEN of unix(4), macOS 11 and
// later. If several have had the other end, it is the one that used it last. It is
// the audit_token_t of mach/message.h; audit_token_to_pid(3) and its kin take it
// apart, SecCodeCopyGuestWithAttributes judges the program by it. Once the peer has
// gone the error matches [syscall.ENOTCONN].
func (c *endpoint) PeerAuditToken() (token [8]uint32, err error) {
	const (
		solLocal       = 0 // sys/un.h
		localPeerToken = 6
	)
	err = c.fd.control("getsockopt", func() error {
		t, err := syscall.GetsockoptICMPv6Filter(c.fd.sys, solLocal, localPeerToken)
		if err == nil {
			token = t.Filt
		}
		return err
	})
	return token, c.failed("peer", err)
}

// ---------------------------------------------------------------------------
// Shared memory

// newMemory makes a shm_open(2) of a fresh name, opens it once more for reading alone, and
// takes the name away. The name has at most 31 bytes with its NUL (PSHMNAMLEN of
// bsd/kern/posix_shm.c); package syscall has the numbers of the calls and not the calls.
func (kernel) newMemory(size int) (memoryFiles, error) {
	text := "/ipc." + strconv.Itoa(os.Getpid()) + "." + strconv.FormatUint(freshNames.Add(1), 36)
	name, err := syscall.BytePtrFromString(text)
	if err != nil {
		return memoryFiles{}, err
	}
	object, err := shmOpen(name, syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL)
	if err != nil {
		return memoryFiles{}, os.NewSyscallError("shm_open", err)
	}
	// Only an object that has a size can lose its name.
	err = os.NewSyscallError("ftruncate", control(func() error { return syscall.Ftruncate(object, int64(size)) }))
	readOnly := -1
	if err == nil {
		readOnly, err = shmOpen(name, syscall.O_RDONLY)
		err = os.NewSyscallError("shm_open", err)
	}
	syscall.Syscall(syscall.SYS_SHM_UNLINK, uintptr(unsafe.Pointer(name)), 0, 0)
	if err != nil {
		syscall.Close(object)
		return memoryFiles{}, err
	}
	return memoryFiles{os.NewFile(uintptr(object), "memory"), os.NewFile(uintptr(readOnly), "memory")}, nil
}

// shmOpen makes a shm_open(2), close-on-exec before this process can fork. A name that a
// process of the same number has left behind is not taken for ours: see O_EXCL.
func shmOpen(name *byte, flags int) (fd int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	err = control(func() error {
		r, _, errno := syscall.Syscall(syscall.SYS_SHM_OPEN, uintptr(unsafe.Pointer(name)), uintptr(flags), 0o600)
		if errno != 0 {
			return errno
		}
		fd = int(r)
		return nil
	})
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	return fd, err
}

// sealMemory has nothing to do: an object keeps the size that it was given first
// (pshm_truncate of bsd/kern/posix_shm.c says EINVAL from then on), and a peer gets a
// descriptor for reading alone.
func (kernel) sealMemory(int, bool) error { return nil }

// checkMemory refuses everything that is not a POSIX shared memory object: its mode alone
// has no type of a file in it (pshm_stat of bsd/kern/posix_shm.c), and of what else may
// have none, mmap(2) takes nothing.
func (kernel) checkMemory(sys int) (memoryInfo, error) {
	var st syscall.Stat_t
	if err := control(func() error { return syscall.Fstat(sys, &st) }); err != nil {
		return memoryInfo{}, os.NewSyscallError("fstat", err)
	}
	if st.Mode&syscall.S_IFMT != 0 {
		return memoryInfo{}, &ruleError{what: "the file is not memory"}
	}
	mode, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(sys), syscall.F_GETFL, 0)
	if errno != 0 {
		return memoryInfo{}, os.NewSyscallError("fcntl", errno)
	}
	return memoryInfo{size: st.Size, writable: mode&syscall.O_ACCMODE == syscall.O_RDWR}, nil
}

func (kernel) openReadOnly(int) (*os.File, error) {
	return nil, &ruleError{"this system cannot open memory again for reading alone", errors.ErrUnsupported}
}

// mapAt makes an mmap(2) at a fixed place.
func (kernel) mapAt(mem []byte, prot, flags, sys, offset int) error {
	_, _, errno := syscall.Syscall6(syscall.SYS_MMAP, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)),
		uintptr(prot), uintptr(flags), uintptr(sys), uintptr(offset))
	if errno != 0 {
		return errno
	}
	return nil
}
