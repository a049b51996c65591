package kit

import (
	"context"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"github.com/interprocess-go/ipc"
)

func init() { CountDescriptors = fileHandles }

// These are functions of the system that package syscall lacks.
var (
	kernel32 = syscall.NewLazyDLL("kernel32.dll")
	Advapi32 = syscall.NewLazyDLL("advapi32.dll")
	ntdll    = syscall.NewLazyDLL("ntdll.dll")

	CreateEvent          = kernel32.NewProc("CreateEventW")
	GetProcessID         = kernel32.NewProc("GetProcessId")
	GetNamedPipeInfo     = kernel32.NewProc("GetNamedPipeInfo")
	GetHandleInformation = kernel32.NewProc("GetHandleInformation")
	WaitNamedPipe        = kernel32.NewProc("WaitNamedPipeW")
	OpenThreadToken      = Advapi32.NewProc("OpenThreadToken")
	ntQueryObject        = ntdll.NewProc("NtQueryObject")
	NtQueryInformation   = ntdll.NewProc("NtQueryInformationFile")
)

// ThisProcess is the handle by which a process names itself.
const ThisProcess = ^syscall.Handle(0)

// OnWine skips the test on Wine. These need Windows:
//
//   - TestPeerThatHidesIsNotTheOwner, TestImpersonateOnlyAsTheClientAllows: Wine
//     impersonates at any level.
//   - TestSecurityDescriptorIsEnforced: Wine lets everybody open a pipe.
//   - TestDialPipeInTheWrongDirectionIsRefused: Wine looks at generic rights alone.
//   - TestPipeOfAnotherMachineIsNotTrusted: Wine has no pipes of other machines.
//
// Nor is seen there, for Wine takes every client for the user of the server: files
// from a client with other rights, dynamic tracking, AppContainers, restricted
// tokens and integrity levels. What a process allows is enforced, so tests lock
// processes instead.
func OnWine(t *testing.T, reason string) {
	t.Helper()
	if IsWine() {
		t.Skip("Wine " + reason)
	}
}

// IsWine reports whether Wine stands in for Windows.
func IsWine() bool { return ntdll.NewProc("wine_get_version").Find() == nil }

// CountHandles counts the handles of this process that look accepts. Wine does not tell
// their number, but handles are small numbers, and free ones are used again, so there is
// no handle far beyond the others.
func CountHandles(look func(h uintptr) (open, accepted bool)) (n int) {
	const far = 256
	for h, free := uintptr(4), 0; free < far; h += 4 {
		open, accepted := look(h)
		if free++; open {
			free = 0
		}
		if accepted {
			n++
		}
	}
	return n
}

// fileHandles counts the handles of files and pipes. Others come and go with the
// runtime's threads.
func fileHandles() int { return HandlesOf("File") }

// HandlesOf counts the handles of objects of these types.
func HandlesOf(types ...string) int {
	return CountHandles(func(h uintptr) (open, accepted bool) {
		var info struct {
			length, capacity uint16
			name             *uint16
			rest             [1024]byte
		}
		const objectTypeInformation = 2
		status, _, _ := ntQueryObject.Call(h, objectTypeInformation, uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), 0)
		if int32(status) < 0 {
			return false, false
		}
		return true, slices.Contains(types, syscall.UTF16ToString(unsafe.Slice(info.name, info.length/2)))
	})
}

// PipePath returns the path of a pipe that is not there.
func PipePath() string { return `\\.\pipe\` + Unique() }

// ListenPipe returns a listener of a new pipe, and the path of that.
func ListenPipe(t *testing.T, c ipc.PipeConfig) (*ipc.PipeListener, string) {
	t.Helper()
	path := PipePath()
	l, err := ipc.ListenPipe(path, c)
	return Kept(t, l, err), path
}

// DialPipe returns a connection to the pipe.
func DialPipe(t *testing.T, path string, d ipc.PipeDialer) *ipc.PipeConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Soon)
	defer cancel()
	c, err := ipc.DialPipe(ctx, path, d)
	return Kept(t, c, err)
}

// AcceptPipe returns the next connection to the listener.
func AcceptPipe(t *testing.T, l *ipc.PipeListener) *ipc.PipeConn {
	t.Helper()
	c, err := l.AcceptPipe()
	return Kept(t, c, err)
}

// ConnectPipe returns both ends of a new connection to a new pipe.
func ConnectPipe(t *testing.T, c ipc.PipeConfig) (client, server *ipc.PipeConn) {
	t.Helper()
	l, path := ListenPipe(t, c)
	client = DialPipe(t, path, ipc.PipeDialer{Direction: c.Direction, Messages: c.Messages})
	server = AcceptPipe(t, l)
	Must(t, l.Close())
	return client, server
}

// TryDial attempts once, or a little longer, to open the pipe.
func TryDial(path string, d ipc.PipeDialer) (*ipc.PipeConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Brief)
	defer cancel()
	return ipc.DialPipe(ctx, path, d)
}

// Background is the context of calls that nothing ends.
func Background() context.Context { return context.Background() }

// Control runs f with the handle.
func Control(t *testing.T, c syscall.Conn, f func(h uintptr)) {
	t.Helper()
	raw, err := c.SyscallConn()
	Must(t, err)
	Must(t, raw.Control(f))
}

// ExpectMessage reads a message, which must be the text.
func ExpectMessage(t *testing.T, c *ipc.PipeConn, want string) {
	t.Helper()
	p := make([]byte, len(want)+1)
	n, more, err := c.ReadMessage(p)
	if err != nil || more || string(p[:n]) != want {
		t.Fatalf("message %.40q, %v, %v; want %.40q", p[:n], more, err, want)
	}
}

// HandleOf returns another handle of the file, which is the caller's to close.
func HandleOf(t *testing.T, f syscall.Conn) (d syscall.Handle) {
	t.Helper()
	Control(t, f, func(h uintptr) {
		Must(t, syscall.DuplicateHandle(ThisProcess, syscall.Handle(h), ThisProcess, &d, 0, false, syscall.DUPLICATE_SAME_ACCESS))
	})
	return d
}

// Suspend stops all threads of the child, until Resume.
func (c *Child) Suspend() { c.t.Helper(); c.allThreads("NtSuspendProcess") }

// Resume ends what Suspend began.
func (c *Child) Resume() { c.t.Helper(); c.allThreads("NtResumeProcess") }

func (c *Child) allThreads(call string) {
	c.t.Helper()
	const suspendResume = 0x0800 // winnt.h: PROCESS_SUSPEND_RESUME
	h, err := syscall.OpenProcess(suspendResume, false, uint32(c.PID()))
	Must(c.t, err)
	defer syscall.CloseHandle(h)
	if status, _, _ := ntdll.NewProc(call).Call(uintptr(h)); status != 0 {
		c.t.Fatalf("%s: status %#x", call, status)
	}
}
