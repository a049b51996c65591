//go:build linux

package ipc

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// sleepWithoutTimer waits for an event that the kernel alone knows of, so that the
// runtime sleeps with everything it has, and its monitor too.
func sleepWithoutTimer(t *testing.T) {
	const monotonic = 1 // CLOCK_MONOTONIC of linux/time.h
	sys, _, errno := syscall.Syscall(syscall.SYS_TIMERFD_CREATE, monotonic, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errno != 0 {
		t.Skip("timerfd_create: ", errno)
	}
	f := newFD(int(sys))
	t.Cleanup(func() { f.close() }) // later: an ordinary system call would wake it again
	var at [2]syscall.Timespec      // struct itimerspec of sys/timerfd.h
	at[1] = syscall.NsecToTimespec(int64(100 * time.Millisecond))
	if _, _, errno := syscall.Syscall6(syscall.SYS_TIMERFD_SETTIME, sys, 0, uintptr(unsafe.Pointer(&at)), 0, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	f.setSpin(0)
	if _, err := f.read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
}

// A goroutine that never waits makes nothing but raw calls, which wake nobody who
// would take the CPU from it.
func TestConnectionThatNeverWaitsLeavesRoomForOthers(t *testing.T) {
	a, b := connected(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	sleepWithoutTimer(t)
	var timer, other, collected atomic.Bool
	time.AfterFunc(time.Millisecond, func() { timer.Store(true) })
	go func() {
		other.Store(true)
		runtime.GC()
		collected.Store(true)
	}()
	p := []byte{1}
	for end := time.Now().Add(30 * time.Second); !timer.Load() || !other.Load() || !collected.Load(); {
		if _, err := a.Write(p); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Read(p); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatalf("timer ran: %v, goroutine: %v, collector: %v", timer.Load(), other.Load(), collected.Load())
		}
	}
}
