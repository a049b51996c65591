package ipc

import (
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

// Traits of Linux and Android that ipc_unix.go builds on.
const (
	abstractNames = true  // names without a file: unix(7)
	fullRefuses   = false // a full backlog is EAGAIN, not ECONNREFUSED
	pathMax       = 4095  // PATH_MAX of linux/limits.h, less the NUL
	socketFlags   = syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	fifoPolls     = true  // the poller serves FIFOs
	fifoQuiet     = false // a FIFO without a writer reads as ended, not as empty
)

// nameTarget maps a name to the abstract socket of that name.
func nameTarget(name string) (string, error) {
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
func shorten(path string) (short string, release func(), err error) { return pin(path, 0) }

func pin(path string, flags int) (short string, release func(), err error) {
	fd, err := open(path, oPath|syscall.O_CLOEXEC|flags)
	if err != nil {
		return "", nil, classify("open", err)
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), func() { syscall.Close(fd) }, nil
}

// setMode sets permissions and owner of the file of that type at the path. It
// holds on to the file, so that nothing put in its place meanwhile is changed.
func setMode(path string, typ, mode uint32, uid, gid int) error {
	file, release, err := pin(path, syscall.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer release()
	var st syscall.Stat_t
	if err := control(func() error { return syscall.Stat(file, &st) }); err == syscall.ENOENT {
		return setModeByPath(path, typ, mode, uid, gid) // /proc is not mounted
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

func sysFlock(fd, how int) error { return syscall.Flock(fd, how) }

func newPipe(p *[2]int) error { return syscall.Pipe2(p[:], socketFlags) }

func mkfifo(path string, mode uint32) error { return syscall.Mkfifo(path, mode) }

// hungUp reports whether the FIFO had a writer that left: POLLHUP of poll(2), by
// ppoll(2), which every architecture has.
func hungUp(sys int) bool {
	const pollHup = 0x10 // asm-generic/poll.h
	p := struct {
		fd              int32
		events, revents int16
	}{fd: int32(sys)}
	var now [2]int64 // a timespec of zero, whatever its width
	n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return errno == 0 && n == 1 && p.revents&pollHup != 0
}

func accept(sys int) (int, error) {
	conn, _, err := syscall.Accept4(sys, socketFlags)
	return conn, err
}

func dup(sys int) (int, error) {
	d, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(sys), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(d), nil
}

func readv(sys int, iov []iovec) (int, error)  { return vector(syscall.SYS_READV, sys, iov) }
func writev(sys int, iov []iovec) (int, error) { return vector(syscall.SYS_WRITEV, sys, iov) }

// peerOf asks for SO_PEERCRED and SO_PEERGROUPS, see unix(7) and socket(7).
func peerOf(sys int) (Peer, error) {
	cred, err := syscall.GetsockoptUcred(sys, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		return Peer{}, err
	}
	if cred.Uid == ^uint32(0) { // nobody has connected
		return Peer{}, syscall.ENOTCONN
	}
	p := unixPeer(int(cred.Uid))
	p.add(knowsGID, &p.gid, int(cred.Gid))
	p.add(knowsPID, &p.pid, int(cred.Pid)) // 0: in a namespace out of sight
	p.groups = peerGroups(sys)
	return p, nil
}

// peerGroups returns the supplementary groups of the peer, or nil if the kernel
// (before 4.13) does not tell.
func peerGroups(sys int) []int {
	const soPeerGroups = 59 // asm-generic/socket.h
	ids := make([]uint32, 32)
	for {
		size := uint32(4 * len(ids))
		_, _, errno := syscall.Syscall6(sysGetsockopt(), uintptr(sys), syscall.SOL_SOCKET, soPeerGroups,
			uintptr(unsafe.Pointer(&ids[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == syscall.ERANGE && int(size) > 4*len(ids):
			ids = make([]uint32, size/4)
			continue
		case errno != 0:
			return nil
		}
		groups := make([]int, size/4)
		for i := range groups {
			groups[i] = int(ids[i])
		}
		return groups
	}
}

// sysGetsockopt is the number of getsockopt(2), of asm/unistd.h. Package syscall
// lacks it on 386, where the call came with Linux 4.3; before, socketcall(2) was
// the only way.
func sysGetsockopt() uintptr {
	switch runtime.GOARCH {
	case "amd64":
		return 55
	case "386", "s390x":
		return 365
	case "arm":
		return 295
	case "ppc64", "ppc64le":
		return 340
	case "mips", "mipsle":
		return 4173
	case "mips64", "mips64le":
		return 5054
	}
	return 209 // arm64, riscv64, loong64: asm-generic/unistd.h
}
