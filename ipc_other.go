//go:build aix || solaris

package ipc

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"
)

// Traits of AIX, illumos and Solaris that ipc_unix.go builds on, chosen so that
// they hold on each of them.
const (
	abstractNames = false
	fullRefuses   = true  // a full backlog may be ECONNREFUSED
	pathMax       = 1022  // PATH_MAX of limits.h, less the NUL, and AIX's sun_path
	socketFlags   = 0     // AIX has no SOCK_CLOEXEC: descriptors are made under syscall.ForkLock
	framedHere    = true  // SOCK_SEQPACKET is not known to work on each of them
	markRoom      = 0     // nothing marks messages
	peekTells     = false // no messages to look at
	noSignal      = 0     // older releases of illumos have none
	cmsgCloexec   = 0     // received under syscall.ForkLock
	filesAlone    = true  // files may come without a byte of data: it is not known
	sharesMemory  = false // all memory here can shrink
	spinByDefault = 0     // whether it pays is not known
	fifoPolls     = true
	fifoQuiet     = false // a FIFO without a writer reads as ended, not as empty
)

type kernel struct{ baseKernel }

// dontWait is MSG_DONTWAIT of sys/socket.h (illumos, Solaris: 0x80), which is
// MSG_NONBLOCK on AIX (0x4000); package syscall has each for its own system alone. What
// newer headers of illumos have, MSG_NOSIGNAL (0x200) and MSG_CMSG_CLOEXEC (0x1000), older
// kernels and Oracle's Solaris need not know.
var dontWait = 0x80

func init() {
	if runtime.GOOS == "aix" {
		dontWait = 0x4000
	}
}

// locked holds the files that this process has locked. There is no flock here;
// the locks of fcntl(2) that stand in for it belong to the process, so between
// its own goroutines this table decides.
var locked struct {
	taking     sync.Mutex     // held while a lock file is open and not locked yet
	sync.Mutex                // guards files
	files      map[int]fileID // by descriptor
}

// sysFlock locks as flock(2) does. A folder is locked among the goroutines of this
// process alone: fcntl(2) wants a descriptor that can be written.
func (kernel) sysFlock(fd, how int) error {
	locked.Lock()
	defer locked.Unlock()
	lock := syscall.Flock_t{Type: syscall.F_UNLCK}
	if how&lockUN == 0 {
		lock.Type = syscall.F_WRLCK
		id := fstatID(fd)
		for _, other := range locked.files {
			if other == id {
				return syscall.EWOULDBLOCK
			}
		}
		if locked.files == nil {
			locked.files = map[int]fileID{}
		}
		locked.files[fd] = id
	}
	err := syscall.FcntlFlock(uintptr(fd), syscall.F_SETLK, &lock)
	if err == syscall.EBADF {
		err = nil // a folder
	}
	if err != nil || lock.Type == syscall.F_UNLCK {
		delete(locked.files, fd)
	}
	if err == syscall.EACCES { // POSIX allows it in place of EAGAIN
		err = syscall.EWOULDBLOCK
	}
	return err
}

// holdsLock reports whether this process has locked the file. If so it must not be
// opened: a lock of fcntl(2) is gone once any descriptor of its file is closed. No
// other is taken until unlock is called.
func (kernel) holdsLock(path string) (held bool, unlock func()) {
	locked.taking.Lock()
	at, err := lstat(path)
	if err != nil {
		return false, locked.taking.Unlock
	}
	locked.Lock()
	defer locked.Unlock()
	for _, id := range locked.files {
		held = held || id == at.id
	}
	return held, locked.taking.Unlock
}

// rightsLost goes by fdbuf_extract of illumos' uts/common/fs/sockfs/socksubr.c: EMFILE
// if there are not enough free descriptors (ufalloc), and nothing else. recvmsg(2) has
// copied the data out by then, and what fails returns none of it. Of AIX it is not known.
func (kernel) rightsLost(err error) (lost, dataStays bool) { return err == syscall.EMFILE, false }

// mkfifo has no call that package syscall offers on both AIX and Solaris.
func (kernel) mkfifo(string, uint32) error { return errors.ErrUnsupported }

// peerOf asks as getpeerucred(3C) of illumos does. Oracle's Solaris and AIX have
// nothing that package syscall reaches; there nobody's identity is known, and
// what depends on it is refused.
func (kernel) peerOf(sys int) (Peer, error) {
	const (
		sysUcredsys   = 155 // sys/syscall.h: SYS_ucredsys
		getPeerUcred  = 1   // sys/ucred.h: UCREDSYS_GETPEERUCRED
		wordPID       = 3   // struct ucred_s, in 32-bit words: size, credoff, privoff, pid, ...
		wordCredOff   = 1
		credEUID      = 0 // struct prcred of sys/procfs.h: euid, ruid, suid, egid, rgid, sgid, ngroups, groups
		credEGID      = 3
		credNumGroups = 6
		credGroups    = 7
	)
	if runtime.GOOS != "illumos" {
		return Peer{}, errors.ErrUnsupported
	}
	var buf [4096]uint32 // the largest that the kernel fills
	buf[0] = uint32(unsafe.Sizeof(buf))
	if _, _, errno := syscall.Syscall(sysUcredsys, getPeerUcred, uintptr(sys), uintptr(unsafe.Pointer(&buf))); errno != 0 {
		return Peer{}, os.NewSyscallError("getpeerucred", errno)
	}
	off := int(buf[wordCredOff] / 4)
	if off == 0 || off+credGroups > len(buf) {
		return Peer{}, errors.ErrUnsupported // the credentials are withheld
	}
	cred := buf[off:]
	p := unixPeer(int(cred[credEUID]))
	p.add(knowsGID, &p.gid, int(cred[credEGID]))
	p.add(knowsPID, &p.pid, int(int32(buf[wordPID])))
	for _, gid := range cred[credGroups:][:min(int(cred[credNumGroups]), len(cred)-credGroups)] {
		p.groups = append(p.groups, int(gid))
	}
	return p, nil
}

// The calls that folder builds on: see ipc_unix.go. Package syscall reaches none of its calls here.
var folderCalls folderNumbers

// syscall6 is not reached: the Syscall6 of package syscall does not link on AIX, illumos and
// Solaris.
func syscall6(_, _, _, _, _, _, _ uintptr) (r1, r2 uintptr, errno syscall.Errno) {
	return 0, 0, syscall.ENOSYS
}

const (
	folderFlags       = syscall.O_RDONLY | syscall.O_NONBLOCK
	atSymlinkNoFollow = 0
	cleanerBit        = 0 // only root may set the sticky bit of a file here
)
