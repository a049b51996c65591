//go:build freebsd

package ipc

import (
	"errors"
	"io"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// sendFilesAlone sends descriptors without a byte of data, as package syscall never does.
func sendFilesAlone(t *testing.T, f *fd, flags int, fds ...int) {
	t.Helper()
	oob := syscall.UnixRights(fds...)
	hdr := syscall.Msghdr{Control: &oob[0]}
	hdr.SetControllen(len(oob))
	_, _, errno := syscall.Syscall(syscall.SYS_SENDMSG, uintptr(f.sys), uintptr(unsafe.Pointer(&hdr)), uintptr(flags))
	if errno != 0 {
		t.Skip("sendmsg: ", errno)
	}
}

func TestConnFilesWithoutDataAreNotTheEnd(t *testing.T) {
	for _, full := range []bool{false, true} { // whether many descriptors wait to be closed
		a, b, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		defer b.Close()
		sent := newFilesProbe(t)
		for range 3 {
			sendFilesAlone(t, a.fd, 0, int(sent.w.Fd()))
		}
		if _, err := a.Write([]byte("data")); err != nil {
			t.Fatal(err)
		}
		if full {
			disposal.waiting.Add(closersMax)
		}
		p := make([]byte, 10)
		n, err := b.Read(p)
		if full {
			disposal.waiting.Add(-closersMax)
		}
		if string(p[:n]) != "data" || err != nil {
			t.Errorf("%q is read, %v", p[:n], err)
		}
		sent.allClosed()
		a.Close()
		if _, err := b.Read(p); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
	}
}

// On FreeBSD 15 they are a part of the message that follows, before that a message.
func TestMsgConnFilesWithoutDataAreNotTheEnd(t *testing.T) {
	for _, flags := range []int{0, syscall.MSG_EOR} {
		a, b, err := MsgPair()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		defer b.Close()
		p := make([]byte, 10)
		next := func() (string, error) { // the next message that is not empty
			for {
				if n, err := b.Recv(p); n > 0 || err != nil {
					return string(p[:n]), err
				}
			}
		}
		sent := newFilesProbe(t)
		sendFilesAlone(t, a.fd, flags, int(sent.w.Fd()))
		if err := a.Send([]byte("next")); err != nil {
			t.Fatal(err)
		}
		if m, err := next(); m != "next" || err != nil {
			t.Errorf("%q is received, %v", m, err)
		}
		sendFilesAlone(t, a.fd, flags, int(sent.w.Fd()))
		files, err := b.RecvFiles(1)
		if len(files) != 1 || err != nil {
			t.Errorf("%d files are received, %v", len(files), err)
		}
		discardFiles(files)
		sendFilesAlone(t, a.fd, flags, int(sent.w.Fd()))
		a.Close()
		if m, err := next(); err != io.EOF {
			t.Errorf("at the end: %q, %v", m, err)
		}
		sent.allClosed()
	}
}

func TestMsgConnFilesWithoutDataBelongToTheFrameThatFollows(t *testing.T) {
	defer frameMessages(frameMessages(true))
	a, b, err := MsgPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	sent := newFilesProbe(t)
	sendFilesAlone(t, a.fd, 0, int(sent.w.Fd()))
	if err := a.SendFiles(sent.w); err != nil {
		t.Fatal(err)
	}
	files, err := b.RecvFiles(2)
	if len(files) != 2 || err != nil {
		t.Errorf("%d files are received, %v", len(files), err)
	}
	discardFiles(files)
	p := make([]byte, 10)
	for _, asked := range []bool{true, false} {
		sendFilesAlone(t, a.fd, 0, int(sent.w.Fd()))
		if err := a.Send([]byte("data")); err != nil {
			t.Fatal(err)
		}
		if asked {
			files, err := b.RecvFiles(1)
			if len(files) != 1 || err != nil {
				t.Errorf("%d files are received, %v", len(files), err)
			}
			discardFiles(files)
		}
		if n, err := b.Recv(p); string(p[:n]) != "data" || err != nil {
			t.Errorf("%q is received, %v", p[:n], err)
		}
	}
	sent.allClosed()
}

// The queue of a peer may be too small for the files at any time.
func TestSendFilesToASmallQueue(t *testing.T) {
	if !kern.splitsMessages() {
		t.Skip("before FreeBSD 15 control messages may be more than the queue holds")
	}
	for size, fits := range map[int]bool{8: false, 64: true} {
		a, b, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		defer b.Close()
		if err := syscall.SetsockoptInt(b.fd.sys, syscall.SOL_SOCKET, syscall.SO_RCVBUF, size); err != nil {
			t.Skip("setsockopt: ", err)
		}
		sent := newFilesProbe(t)
		a.SetWriteDeadline(time.Now().Add(30 * time.Second))
		err = a.SendFiles(sent.w)
		if fits && err != nil || !fits && !errors.Is(err, ErrMsgTooLong) {
			t.Errorf("to a queue of %d bytes: %v", size, err)
		}
		if err == nil {
			files, err := b.RecvFiles(1)
			if len(files) != 1 || err != nil {
				t.Errorf("%d files are received, %v", len(files), err)
			}
			discardFiles(files)
		}
		sent.allClosed()
	}
}

// A kqueue says whether the queue has room, by the system call of FreeBSD 12.
func TestSendFilesRoomIsToldByTheQueue(t *testing.T) {
	if !kern.splitsMessages() {
		t.Skip("this kernel is older than FreeBSD 15")
	}
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	defer a.Close()
	rights := syscall.UnixRights(0)
	if !rightsMayGo(a.fd.sys, rights) {
		t.Error("an empty queue has no room")
	}
	a.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	a.Write(make([]byte, 4<<20))
	if rightsMayGo(a.fd.sys, rights) {
		t.Error("a full queue has room")
	}
	b.Close()
	if !rightsMayGo(a.fd.sys, rights) {
		t.Error("the end of the connection is not told")
	}
}
