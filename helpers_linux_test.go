package ipc_test

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func init() { interrupt = interruptThreads }

// interruptThreads signals every thread, by tgkill(2): the kernel gives a signal
// to the process to a thread of its choice, which is hardly ever one in a call.
func interruptThreads() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, task := range tasks {
		if tid, err := strconv.Atoi(task.Name()); err == nil {
			syscall.Syscall(syscall.SYS_TGKILL, uintptr(os.Getpid()), uintptr(tid), uintptr(syscall.SIGWINCH))
		}
	}
}

func threads(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "\nThreads:")
	n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]))
	must(t, err)
	return n
}
