package ipc_test

import (
	"errors"
	"fmt"
	"log"
	"os"
	"syscall"
	"time"
	"unsafe"

	"github.com/interprocess-go/ipc"
)

// A pidfd is waited for in the runtime's poller: no thread is held, and the wait has a
// deadline.
func ExampleConn_PeerPidfd() {
	a, b, err := ipc.Pair() // whose ends both are of this very process
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	pidfd, err := a.PeerPidfd()
	if errors.Is(err, errors.ErrUnsupported) {
		fmt.Println("the process still runs") // as before Linux 6.5 nobody can tell
		return
	} else if err != nil {
		log.Fatal(err)
	}
	defer pidfd.Close()

	// readable asks poll(2), as Poll of golang.org/x/sys/unix does.
	readable := func(fd uintptr) bool {
		p := struct {
			fd              int32
			events, revents int16
		}{fd: int32(fd), events: 1} // POLLIN
		var now [2]int64 // a time of zero
		n, _, _ := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		return n == 1
	}
	raw, err := pidfd.SyscallConn()
	if err != nil {
		log.Fatal(err)
	}
	if err := pidfd.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		log.Fatal(err)
	}
	switch err := raw.Read(readable); {
	case err == nil:
		fmt.Println("the process has ended")
	case errors.Is(err, os.ErrDeadlineExceeded):
		fmt.Println("the process still runs")
	default:
		log.Fatal(err)
	}
	// Output: the process still runs
}
