//go:build dragonfly || netbsd || openbsd

package ipc

import (
	"runtime"
	"syscall"
	"unsafe"
)

// Traits of DragonFly, NetBSD and OpenBSD that ipc_unix.go builds on.
const (
	abstractNames = false
	fullRefuses   = true // uipc_usrreq.c, unp_connect: a full backlog is ECONNREFUSED
	pathMax       = 1023 // PATH_MAX of sys/syslimits.h, less the NUL
	socketFlags   = syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	framedHere    = false // SOCK_SEQPACKET keeps messages apart
	markRoom      = 0     // nothing marks messages
	peekTells     = false // MSG_TRUNC is an output of recvmsg(2) alone
	dontWait      = syscall.MSG_DONTWAIT
	cmsgCloexec   = syscall.MSG_CMSG_CLOEXEC
	noSignal      = syscall.MSG_NOSIGNAL
	filesAlone    = true  // sosend of uipc_socket.c: files may come without a byte of data
	sharesMemory  = false // all memory here can shrink
	spinByDefault = 0     // whether it pays is not known
	fifoPolls     = false // OpenBSD's poller refuses FIFOs, NetBSD's before 10 loses a writer
	fifoQuiet     = false // fifo_vnops.c: a FIFO without a writer reads as ended, not as empty
)

// A bsd is what DragonFly, NetBSD and OpenBSD do differently.
type bsd struct {
	// filesMax is how many descriptors unp_internalize of uipc_usrreq.c takes.
	// It lays its own entries out behind a header in one cluster of MCLBYTES
	// (2048, sys/param.h) and says E2BIG if they do not fit.
	filesMax int

	// queueShrinks: what is in the queue is taken off SO_SNDBUF, which is the
	// room that is left (unp_send of uipc_usrreq.c).
	queueShrinks bool

	// rightsGrow: sosend of uipc_socket.c asks whether the queue has room for the
	// descriptors as they are in the call. sbappendcontrol of uipc_socket2.c needs room
	// for the kernel's entries, up to four times as much, and says ENOBUFS if the queue
	// does not have it now. It never says that for want of memory, which sosend waits
	// for (M_WAIT).
	rightsGrow bool

	// carriesEmpty: an empty message wakes a receiver that waits.
	carriesEmpty bool

	peer peerOption
}

// A peerOption is the socket option that tells the peer's credentials, and where
// its 32-bit words have them.
type peerOption struct {
	level, option int
	xucred        bool // struct xucred of sys/ucred.h, see xucredPeer
	pid, uid, gid int  // otherwise: the positions of these
}

const (
	clusterBytes = 2048                           // MCLBYTES of sys/param.h on all three
	pointerBytes = int(unsafe.Sizeof(uintptr(0))) // struct file *
	solLocal     = 0                              // uipc_usrreq.c, uipc_ctloutput: NetBSD wants this level, DragonFly takes any
)

// system is what holds on this one.
var system = map[string]bsd{
	"dragonfly": {
		// An entry is a pointer: 254 fit. If the peer's receive buffer was made smaller than this
		// send buffer, uipc_send can lose what does not fit, files and data, and take it for
		// sent (ssb_appendcontrol of sys/socketvar.h). The sender cannot ask how large the
		// other buffer is.
		filesMax: maxFiles,
		// sys/un.h: LOCAL_PEERCRED is 1; struct xucred of sys/ucred.h has no process id.
		peer: peerOption{level: solLocal, option: 1, xucred: true},
	},
	"netbsd": {
		filesMax:     maxFiles, // an entry is a pointer; 500 were seen to go
		queueShrinks: true,
		carriesEmpty: true, // the bytes of its control message do: see sendEmpty
		// sys/un.h: LOCAL_PEEREID is 3; struct unpcbid {pid, euid, egid}. A client is told
		// who bound the socket (unp_bind), as on OpenBSD.
		peer: peerOption{level: solLocal, option: 3, pid: 0, uid: 1, gid: 2},
	},
	"openbsd": {
		// sys/unpcb.h: struct fdpass {struct file *, int}, so 127 on 64 bits.
		filesMax:   min(maxFiles, (clusterBytes-syscall.CmsgLen(0))/(2*pointerBytes)),
		rightsGrow: true,
		// sys/socket.h: SO_PEERCRED is 0x1022; struct sockpeercred {uid, gid, pid}.
		peer: peerOption{level: syscall.SOL_SOCKET, option: 0x1022, uid: 0, gid: 1, pid: 2},
	},
}[runtime.GOOS]

type kernel struct{ baseKernel }

func (kernel) sysFlock(fd, how int) error            { return syscall.Flock(fd, how) }
func (kernel) mkfifo(path string, mode uint32) error { return syscall.Mkfifo(path, mode) }

// newPipe passes the flags that pipe2(2) takes. Those of socket(2) have other
// numbers, and are EINVAL here.
func (kernel) newPipe(p *[2]int) error {
	return syscall.Pipe2(p[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK)
}

func (kernel) filesMax() int { return system.filesMax }

// rightsLost goes by unp_externalize of uipc_usrreq.c: EMSGSIZE if there are not
// enough free descriptors; EPERM if a pledge(2) or chroot(2) of this process forbids
// what came (OpenBSD, NetBSD). soreceive of uipc_socket.c then leaves the data of a
// stream in the queue. ENFILE is none of them: the file exists already, and wants no more
// than a place in the table of the process.
func (kernel) rightsLost(err error) (lost, dataStays bool) {
	lost = err == syscall.EMSGSIZE || err == syscall.EPERM
	return lost, lost
}

func (kernel) messageMax(sys int) (int, error) { return queueSize(sys) }

func (kernel) accept(sys int) (int, error) {
	conn, _, err := syscall.Accept4(sys, socketFlags)
	return conn, acceptError(sys, err)
}

// isMessage tells an empty message from the end: only a message has an end or brings
// control messages (soreceive of uipc_socket.c). Files without a byte of data may come
// without MSG_EOR.
func (kernel) isMessage(flags, oobn int) bool { return flags&syscall.MSG_EOR != 0 || oobn > 0 }

// carriesEmpty reports whether an empty message can be sent. Only bytes wake a receiver
// that waits. On NetBSD the bytes of a control message do, too: see sendEmpty.
func (kernel) carriesEmpty() bool { return system.carriesEmpty }

func (kernel) sendmsg(sys int, p, oob []byte, flags int) (int, error) {
	endsMessage := flags&syscall.MSG_EOR != 0
	need := len(oob)
	if endsMessage {
		need += len(p) // all or nothing
	}
	switch {
	case system.queueShrinks && len(oob) > 0:
		return sendmsgRights(sys, p, oob, endsMessage)
	case system.carriesEmpty && endsMessage && need == 0:
		return 0, sendEmpty(sys)
	}
	grown := system.rightsGrow && len(oob) > 0
	if grown && !endsMessage {
		p = p[:min(len(p), 1024)] // more could fill the room that the entries need
	}
	n, err := baseKernel{}.sendmsg(sys, p, oob, flags)
	if grown && err == syscall.ENOBUFS {
		return 0, fullOrTooLong(sys, len(p)+4*len(oob))
	}
	if err == syscall.EMSGSIZE || err == syscall.EAGAIN && endsMessage && len(oob) > 0 {
		err = fullOrTooLong(sys, need)
	}
	return n, err
}

// sendRights sends with control messages on NetBSD. What does not fit into the queue is
// thrown away there, and taken for sent (unp_send of uipc_usrreq.c). So this asks how much
// room is left, which is SO_SNDBUF. A descriptor is a pointer in the queue: at most twice
// its size in the call. A message goes without MSG_EOR, which would end it with the first
// mbuf. It is a message all the same.
func sendmsgRights(sys int, p, oob []byte, endsMessage bool) (int, error) {
	free, err := syscall.GetsockoptInt(sys, syscall.SOL_SOCKET, syscall.SO_SNDBUF)
	if err != nil {
		return 0, err
	}
	need := 2*len(oob) + 1
	if endsMessage {
		need += max(len(p)-1, 0)
	}
	if need > free {
		if _, err := syscall.Getpeername(sys); err == syscall.ENOTCONN {
			return 0, syscall.EPIPE // there is no queue any more
		}
		return 0, fullOrTooLong(sys, need)
	}
	return baseKernel{}.sendmsg(sys, p[:min(len(p), free-2*len(oob))], oob, 0)
}

// sendEmpty sends an empty message on NetBSD, with an empty list of descriptors. Package
// syscall would add a byte of data.
func sendEmpty(sys int) error {
	hdr := syscall.Msghdr{Iov: new(syscall.Iovec), Iovlen: 1, Control: &noRights[0]}
	hdr.SetControllen(len(noRights))
	_, _, errno := syscall.Syscall(syscall.SYS_SENDMSG, uintptr(sys), uintptr(unsafe.Pointer(&hdr)), syscall.MSG_EOR)
	switch errno {
	case 0:
		return nil
	case syscall.EMSGSIZE:
		return syscall.EAGAIN // the queue is full: an empty list fits into any other
	}
	return errno
}

// noRights is a control message that passes no descriptor; nobody changes it.
var noRights = syscall.UnixRights()

// peerOf asks for the option of the system. Raw system calls are shut off on
// OpenBSD, and package syscall has no getsockopt for a structure of any kind; but
// its variants for fixed structures take any level and option, and the kernel fills
// in what fits.
func (kernel) peerOf(sys int) (Peer, error) {
	o := system.peer
	if o.xucred {
		cred, err := syscall.GetsockoptICMPv6Filter(sys, o.level, o.option)
		if err != nil {
			return Peer{}, err
		}
		return xucredPeer(cred.Filt[:])
	}
	buf, err := syscall.GetsockoptIPv6Mreq(sys, o.level, o.option)
	if err != nil {
		return Peer{}, err
	}
	cred := (*[3]uint32)(unsafe.Pointer(buf)) // each structure is three words, and buf has five
	p := unixPeer(int(cred[o.uid]))
	p.add(knowsGID, &p.gid, int(cred[o.gid]))
	p.add(knowsPID, &p.pid, int(int32(cred[o.pid])))
	return p, nil
}

// The calls that folder builds on: see ipc_unix.go. OpenBSD lets nobody but its libc make a system
// call by its number.
var folderCalls = func() folderNumbers {
	if runtime.GOOS == "openbsd" {
		return folderNumbers{}
	}
	return folderNumbers{
		openat: syscall.SYS_OPENAT, fstatat: syscall.SYS_FSTATAT, unlinkat: syscall.SYS_UNLINKAT,
		renameat: syscall.SYS_RENAMEAT, linkat: syscall.SYS_LINKAT,
		fchmodat: syscall.SYS_FCHMODAT, fchownat: syscall.SYS_FCHOWNAT,
	}
}()

// syscall6 makes a system call by its number, which package syscall does not for every
// Unix. Pointers among the arguments stay valid meanwhile.
//
//go:uintptrescapes
func syscall6(trap, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2 uintptr, errno syscall.Errno) {
	return syscall.Syscall6(trap, a1, a2, a3, a4, a5, a6)
}

const (
	folderFlags = syscall.O_RDONLY | syscall.O_NONBLOCK
	cleanerBit  = 0 // only root may set the sticky bit of a file here
)

// atSymlinkNoFollow is AT_SYMLINK_NOFOLLOW of sys/fcntl.h: of NetBSD, and of DragonFly.
var atSymlinkNoFollow = func() uintptr {
	if runtime.GOOS == "dragonfly" {
		return 0x1
	}
	return 0x200
}()

// watchProcess watches for NOTE_EXIT of EVFILT_PROC: see kqueue(2).
func (kernel) watchProcess(pid int) (processWatch, error) {
	var end syscall.Kevent_t
	syscall.SetKevent(&end, pid, syscall.EVFILT_PROC, syscall.EV_ADD|syscall.EV_ONESHOT)
	end.Fflags = syscall.NOTE_EXIT
	return kqueueWatch[syscall.Kevent_t]{pid: pid, kqueue: syscall.Kqueue, kevent: syscall.Kevent}.begin(end)
}
