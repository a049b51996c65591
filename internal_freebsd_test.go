//go:build freebsd

package ipc

import (
	"io"
	"os"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// sendFilesAlone sends descriptors without a byte of data, as package syscall never does.
func sendFilesAlone(t *testing.T, f *fd, fds ...int) {
	t.Helper()
	oob := syscall.UnixRights(fds...)
	hdr := syscall.Msghdr{Control: &oob[0]}
	hdr.SetControllen(len(oob))
	_, _, errno := syscall.Syscall(syscall.SYS_SENDMSG, uintptr(f.sys), uintptr(unsafe.Pointer(&hdr)), 0)
	if errno != 0 {
		t.Skip("sendmsg: ", errno)
	}
}

func TestFilesWithoutDataAreNotTheEnd(t *testing.T) {
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 3 {
		sendFilesAlone(t, a.fd, int(w.Fd()))
	}
	if _, err := a.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 10)
	if n, err := b.Read(p); string(p[:n]) != "data" || err != nil {
		t.Errorf("%q is read, %v", p[:n], err)
	}
	w.Close()
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := r.Read(p); err != io.EOF {
		t.Errorf("the files that nobody asked for are not closed: %v", err)
	}
	a.Close()
	if _, err := b.Read(p); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// A kqueue says whether the queue has room, by the system call of FreeBSD 12.
func TestRoomForFilesIsToldByTheQueue(t *testing.T) {
	if !kern.looseRecords() {
		t.Skip("this kernel is older than FreeBSD 15")
	}
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	defer a.Close()
	rights := syscall.UnixRights(0)
	if !rightsFit(a.fd.sys, rights) {
		t.Error("an empty queue has no room")
	}
	a.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	a.Write(make([]byte, 4<<20))
	if rightsFit(a.fd.sys, rights) {
		t.Error("a full queue has room")
	}
	b.Close()
	if !rightsFit(a.fd.sys, rights) {
		t.Error("the end of the connection is not told")
	}
}
