// Signals for every thread, which only Linux has the means for.
package tests

import (
	"os"
	"strconv"
	"syscall"
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
