package ipc

import (
	"errors"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// Traits of macOS and iOS that ipc_unix.go builds on.
const (
	abstractNames = false
	fullRefuses   = true  // bsd/kern/uipc_usrreq.c, unp_connect: a full backlog is ECONNREFUSED
	pathMax       = 1023  // PATH_MAX of sys/syslimits.h, less the NUL
	socketFlags   = 0     // no SOCK_CLOEXEC: descriptors are made under syscall.ForkLock
	framedHere    = true  // bsd/kern/uipc_proto.c, localsw: no SOCK_SEQPACKET
	markRoom      = 0     // nothing marks messages
	peekTells     = false // no messages to look at
	dontWait      = syscall.MSG_DONTWAIT
	cmsgCloexec   = 0       // received under syscall.ForkLock
	noSignal      = 0x80000 // MSG_NOSIGNAL of sys/socket.h since macOS 11 (xnu-7195)
	filesAlone    = true    // bsd/kern/uipc_socket.c, sosend: files may come without a byte of data
	sharesMemory  = true    // see newMemory
	spinByDefault = 0       // whether it pays is not known
	fifoPolls     = false   // the poller does not hear of the last writer's end
	fifoQuiet     = false   // bsd/miscfs/fifofs/fifo_vnops.c, fifo_read: a FIFO without a writer reads as ended
)

type kernel struct{ baseKernel }

func (kernel) sysFlock(fd, how int) error            { return syscall.Flock(fd, how) }
func (kernel) mkfifo(path string, mode uint32) error { return syscall.Mkfifo(path, mode) }

// closesOnExec asks by F_GETFD, which takes no argument and cannot block.
func (kernel) closesOnExec(sys int) bool {
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(sys), syscall.F_GETFD, 0)
	return errno == 0 && flags&syscall.FD_CLOEXEC != 0
}

// accept looks for a free descriptor first. Without one the kernel takes the client out of
// the queue all the same, and drops it (accept_nocancel of bsd/kern/uipc_syscalls.c).
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
	return baseKernel{}.accept(sys)
}

// rightsLost goes by unp_externalize of bsd/kern/uipc_usrreq.c: EMSGSIZE or EMFILE if
// there are not enough free descriptors. It is never ENFILE, which falloc says when a file
// is opened: these are open. soreceive_ctl of uipc_socket.c has taken the control message
// out by then, and soreceive leaves the data in the queue.
func (kernel) rightsLost(err error) (lost, dataStays bool) {
	lost = err == syscall.EMSGSIZE || err == syscall.EMFILE
	return lost, lost
}

// sendmsg tells apart a queue that has no room for the control messages now and one
// that never has. The kernel says EMSGSIZE for both: it compares with SO_SNDBUF, which what
// is in the queue is taken off (sosendcheck of bsd/kern/uipc_socket.c, uipc_send of
// uipc_usrreq.c).
func (kernel) sendmsg(sys int, p, oob []byte, flags int) (int, error) {
	n, err := baseKernel{}.sendmsg(sys, p, oob, flags)
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

// watchProcess watches for NOTE_EXIT of EVFILT_PROC: see kqueue(2).
func (kernel) watchProcess(pid int) (processWatch, error) {
	var end syscall.Kevent_t
	syscall.SetKevent(&end, pid, syscall.EVFILT_PROC, syscall.EV_ADD|syscall.EV_ONESHOT)
	end.Fflags = syscall.NOTE_EXIT
	return kqueueWatch[syscall.Kevent_t]{pid: pid, kqueue: syscall.Kqueue, kevent: syscall.Kevent}.begin(end)
}

// PeerAuditToken returns the audit token of the peer, which names its process and
// no later one of the same number: LOCAL_PEERTOKEN of unix(4), macOS 11 and
// later. If several have had the other end, it is the one that used it last. It is
// the audit_token_t of mach/message.h; audit_token_to_pid(3) and the functions like it take it
// apart, SecCodeCopyGuestWithAttributes judges the program by it. Once the peer has
// gone the error matches [syscall.ENOTCONN].
func (c *endpoint) PeerAuditToken() (token [8]uint32, err error) {
	const (
		solLocal       = 0 // sys/un.h
		localPeerToken = 6 // LOCAL_PEERTOKEN
	)
	err = c.end().control("getsockopt", func() error {
		t, err := syscall.GetsockoptICMPv6Filter(c.fd.sys, solLocal, localPeerToken)
		if err == nil {
			token = t.Filt
		}
		return err
	})
	return token, c.failed("peer", err)
}

// The calls that folder builds on: see ipc_unix.go. Package syscall does not name these calls. The
// numbers are those of bsd/kern/syscalls.master of XNU, the same since macOS 10.10.
var folderCalls = folderNumbers{
	openat: 463, fstatat: 470, unlinkat: 472, renameat: 465, linkat: 471, fchmodat: 467, fchownat: 468,
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
	atSymlinkNoFollow = 0x20 // sys/fcntl.h: AT_SYMLINK_NOFOLLOW
	cleanerBit        = 0    // only root may set the sticky bit of a file here
)

// ---------------------------------------------------------------------------
// Shared memory

// newMemory makes a shm_open(2) of a fresh name, opens it once more for reading alone, and
// takes the name away. The name has at most 31 bytes (PSHMNAMLEN of
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
	err = os.NewSyscallError("ftruncate", ignoringEINTR(func() error { return syscall.Ftruncate(object, int64(size)) }))
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
	err = ignoringEINTR(func() error {
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
	st, err := fstat(sys)
	if err != nil {
		return memoryInfo{}, err
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
	return errnoOrNil(errno)
}
