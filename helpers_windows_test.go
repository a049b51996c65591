// The tests of what only Windows has are written to run on Windows and under Wine; what Wine does not do is skipped
// there, with the reason.
package ipc_test

import (
	"context"
	"runtime/pprof"
	"slices"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/interprocess-go/ipc"
)

func init() { countDescriptors = fileHandles }

var (
	kernel32 = syscall.NewLazyDLL("kernel32.dll")
	advapi32 = syscall.NewLazyDLL("advapi32.dll")
	ntdll    = syscall.NewLazyDLL("ntdll.dll")

	createEvent          = kernel32.NewProc("CreateEventW")
	getProcessID         = kernel32.NewProc("GetProcessId")
	getNamedPipeInfo     = kernel32.NewProc("GetNamedPipeInfo")
	getHandleInformation = kernel32.NewProc("GetHandleInformation")
	waitNamedPipe        = kernel32.NewProc("WaitNamedPipeW")
	openThreadToken      = advapi32.NewProc("OpenThreadToken")
	ntQueryObject        = ntdll.NewProc("NtQueryObject")
	ntQueryInformation   = ntdll.NewProc("NtQueryInformationFile")
)

const thisProcess = ^syscall.Handle(0)

// onWine skips the test on Wine. These need Windows:
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
func onWine(t *testing.T, reason string) {
	t.Helper()
	if isWine() {
		t.Skip("Wine " + reason)
	}
}

// Wine makes a pipe one of message type if it is to reject clients of other
// machines: see NtCreateNamedPipeFile there. byteType makes one of bytes.
var byteType = ipc.PipeConfig{AcceptRemote: isWine()}

func isWine() bool { return ntdll.NewProc("wine_get_version").Find() == nil }

// countHandles counts the handles of this process that look accepts. Wine does not tell
// their number, but handles are small numbers, and free ones are used again, so there is
// no handle far beyond the others.
func countHandles(look func(h uintptr) (open, accepted bool)) (n int) {
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

func allHandles() int {
	return countHandles(func(h uintptr) (open, accepted bool) {
		var flags uint32
		r, _, _ := getHandleInformation.Call(h, uintptr(unsafe.Pointer(&flags)))
		return r != 0, r != 0
	})
}

// fileHandles counts the handles of files and pipes. Others come and go with the
// runtime's threads.
func fileHandles() int { return handlesOf("File") }

// handlesOf counts the handles of objects of these types.
func handlesOf(types ...string) int {
	return countHandles(func(h uintptr) (open, accepted bool) {
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

func pipePath() string { return `\\.\pipe\` + unique() }

func listenPipe(t *testing.T, c ipc.PipeConfig) (*ipc.PipeListener, string) {
	t.Helper()
	path := pipePath()
	l, err := ipc.ListenPipe(path, c)
	return kept(t, l, err), path
}

func dialPipe(t *testing.T, path string, d ipc.PipeDialer) *ipc.PipeConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	c, err := ipc.DialPipe(ctx, path, d)
	return kept(t, c, err)
}

func acceptPipe(t *testing.T, l *ipc.PipeListener) *ipc.PipeConn {
	t.Helper()
	c, err := l.AcceptPipe()
	return kept(t, c, err)
}

// connectPipe returns both ends of a new connection to a new pipe.
func connectPipe(t *testing.T, c ipc.PipeConfig) (client, server *ipc.PipeConn) {
	t.Helper()
	l, path := listenPipe(t, c)
	client = dialPipe(t, path, ipc.PipeDialer{Direction: c.Direction, Messages: c.Messages})
	server = acceptPipe(t, l)
	must(t, l.Close())
	return client, server
}

// tryDial attempts once, or a little longer, to open the pipe.
func tryDial(path string, d ipc.PipeDialer) (*ipc.PipeConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), brief)
	defer cancel()
	return ipc.DialPipe(ctx, path, d)
}

func background() context.Context { return context.Background() }

// control runs f with the handle.
func control(t *testing.T, c syscall.Conn, f func(h uintptr)) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(f))
}

func expectMessage(t *testing.T, c *ipc.PipeConn, want string) {
	t.Helper()
	p := make([]byte, len(want)+1)
	n, more, err := c.ReadMessage(p)
	if err != nil || more || string(p[:n]) != want {
		t.Fatalf("message %.40q, %v, %v; want %.40q", p[:n], more, err, want)
	}
}

// limitSpin bounds the waits of the ends unless they are to stay as they are.
func limitSpin(spin time.Duration, ends ...interface{ SetSpin(time.Duration) }) {
	for _, end := range ends {
		if spin != asItIs {
			end.SetSpin(spin)
		}
	}
}

// threads is how many threads the program has had.
func threads() int { return pprof.Lookup("threadcreate").Count() }

// handleOf returns another handle of the file, which is the caller's to close.
func handleOf(t *testing.T, f syscall.Conn) (d syscall.Handle) {
	t.Helper()
	control(t, f, func(h uintptr) {
		must(t, syscall.DuplicateHandle(thisProcess, syscall.Handle(h), thisProcess, &d, 0, false, syscall.DUPLICATE_SAME_ACCESS))
	})
	return d
}
