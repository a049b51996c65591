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
	fullRefuses   = true // a full backlog is ECONNREFUSED
	pathMax       = 1023 // PATH_MAX of sys/syslimits.h, less the NUL
	socketFlags   = syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	framedHere    = false // SOCK_SEQPACKET keeps messages apart
	markRoom      = 0     // nothing marks messages
	peekTells     = false
	cutsRights    = runtime.GOOS == "netbsd"
	dontWait      = syscall.MSG_DONTWAIT
	cmsgCloexec   = syscall.MSG_CMSG_CLOEXEC
	spinByDefault = 0     // whether it pays is not known
	fifoPolls     = false // OpenBSD's poller refuses FIFOs, NetBSD's before 10 loses a writer
	fifoQuiet     = false // a FIFO without a writer reads as ended, not as empty
)

type kernel struct{ everyUnix }

func (kernel) sysFlock(fd, how int) error            { return syscall.Flock(fd, how) }
func (kernel) newPipe(p *[2]int) error               { return syscall.Pipe2(p[:], socketFlags) }
func (kernel) mkfifo(path string, mode uint32) error { return syscall.Mkfifo(path, mode) }

func (kernel) accept(sys int) (int, error) {
	conn, _, err := syscall.Accept4(sys, socketFlags)
	return conn, acceptError(sys, err)
}

// isMessage tells an empty message from the end: only a message ends a record.
func (kernel) isMessage(flags, oobn int) bool { return flags&syscall.MSG_EOR != 0 }

// carriesEmpty reports whether an empty message can be sent: a receiver that waits
// is woken for bytes alone. On NetBSD those of a control message do; package
// syscall would send none without a byte of data.
func (kernel) carriesEmpty() bool { return runtime.GOOS == "netbsd" }

func (kernel) sendmsg(sys int, p, oob []byte, flags int) (int, error) {
	record := flags&syscall.MSG_EOR != 0
	need := len(oob)
	if record {
		need += len(p) // all or nothing
	}
	switch {
	case runtime.GOOS == "netbsd" && len(oob) > 0:
		return sendRights(sys, p, oob, record)
	case runtime.GOOS == "netbsd" && record && need == 0:
		return 0, sendEmpty(sys)
	}
	n, err := everyUnix{}.sendmsg(sys, p, oob, flags)
	if err == syscall.EMSGSIZE || err == syscall.EAGAIN && record && len(oob) > 0 {
		err = fullOrTooLong(sys, need)
	}
	return n, err
}

// sendRights sends with control messages on NetBSD. A descriptor is a pointer in
// the queue there, and what does not fit then is thrown away and taken for sent; the
// room that is left is SO_SNDBUF. A message must do without MSG_EOR, which would end
// it with the first mbuf; it is a record all the same.
func sendRights(sys int, p, oob []byte, record bool) (int, error) {
	free, err := syscall.GetsockoptInt(sys, syscall.SOL_SOCKET, syscall.SO_SNDBUF)
	if err != nil {
		return 0, err
	}
	need := 2*len(oob) + 1
	if record {
		need += max(len(p)-1, 0)
	}
	if need > free {
		if _, err := syscall.Getpeername(sys); err == syscall.ENOTCONN {
			return 0, syscall.EPIPE // there is no queue any more
		}
		return 0, fullOrTooLong(sys, need)
	}
	return everyUnix{}.sendmsg(sys, p[:min(len(p), free-2*len(oob))], oob, 0)
}

// sendEmpty sends an empty message on NetBSD, with an empty list of descriptors.
func sendEmpty(sys int) error {
	hdr := syscall.Msghdr{Iov: new(syscall.Iovec), Iovlen: 1, Control: &noRights[0]}
	hdr.SetControllen(len(noRights))
	_, _, errno := syscall.Syscall(syscall.SYS_SENDMSG, uintptr(sys), uintptr(unsafe.Pointer(&hdr)), syscall.MSG_EOR)
	switch errno {
	case 0:
		return nil
	case syscall.EMSGSIZE:
		return syscall.EAGAIN // it is full, however small
	}
	return errno
}

// noRights is a control message that passes no descriptor; nobody changes it.
var noRights = syscall.UnixRights()

// peerOf asks as each of the three wants to be asked. Raw system calls are shut
// off on OpenBSD, and package syscall has no getsockopt for a structure of any
// kind; but its variants for fixed structures take any level and option, and the
// kernel fills in what fits.
func (kernel) peerOf(sys int) (Peer, error) {
	const (
		solLocal      = 0      // sys/un.h
		localPeerCred = 1      // DragonFly: struct xucred of sys/ucred.h, which has no pid
		localPeerEID  = 3      // NetBSD: struct unpcbid {pid, euid, egid} of sys/un.h
		soPeerCred    = 0x1022 // OpenBSD: struct sockpeercred {uid, gid, pid} of sys/socket.h
	)
	if runtime.GOOS == "dragonfly" {
		cred, err := syscall.GetsockoptICMPv6Filter(sys, solLocal, localPeerCred)
		if err != nil {
			return Peer{}, err
		}
		return xucredPeer(cred.Filt[:])
	}
	level, option := solLocal, localPeerEID
	if runtime.GOOS == "openbsd" {
		level, option = syscall.SOL_SOCKET, soPeerCred
	}
	buf, err := syscall.GetsockoptIPv6Mreq(sys, level, option)
	if err != nil {
		return Peer{}, err
	}
	cred := (*[3]uint32)(unsafe.Pointer(buf)) // both are three words, and buf has five
	pid, uid, gid := cred[0], cred[1], cred[2]
	if runtime.GOOS == "openbsd" {
		uid, gid, pid = cred[0], cred[1], cred[2]
	}
	p := unixPeer(int(uid))
	p.add(knowsGID, &p.gid, int(gid))
	p.add(knowsPID, &p.pid, int(int32(pid)))
	return p, nil
}

// watchProcess watches for NOTE_EXIT of EVFILT_PROC: see kqueue(2).
func (kernel) watchProcess(pid int) (processWatch, error) {
	var end syscall.Kevent_t
	syscall.SetKevent(&end, pid, syscall.EVFILT_PROC, syscall.EV_ADD|syscall.EV_ONESHOT)
	end.Fflags = syscall.NOTE_EXIT
	return kqueueWatch[syscall.Kevent_t]{pid: pid, kqueue: syscall.Kqueue, kevent: syscall.Kevent}.begin(end)
}
