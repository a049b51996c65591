//go:build unix

package ipc

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The BSDs and macOS say ENOTCONN of a connection whose peer has closed. Linux says
// it of a socket that was never connected, if it is not a local one.
func TestShutdownOfWhatIsNotConnectedIsNoError(t *testing.T) {
	sys, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Skip(err)
	}
	f := newFD(sys)
	defer f.close()
	if err := syscall.Shutdown(sys, syscall.SHUT_WR); err != syscall.ENOTCONN {
		t.Skip("this system says ", err)
	}
	if err := errors.Join(f.closeWrite(), f.shutdown(syscall.SHUT_RD)); err != nil {
		t.Error(err)
	}
}

// filesWith returns the receiving end of a stream to which came, as is so on the BSDs
// after a receive that found no room for them, the data that files travelled with.
func filesWith(t *testing.T, data string) *fd {
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	if _, err := a.Write([]byte(data)); err != nil {
		t.Fatal(err)
	}
	return b.fd
}

func TestLostFilesLeaveNothingInTheStream(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMSGSIZE, syscall.EMFILE} {
		for _, dataStays := range []bool{true, false} {
			data := "next"
			if dataStays {
				data = "\x00next"
			}
			f := filesWith(t, data)
			if err := f.enterRecv(); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 1)
			got, err := f.withoutRights(p, errno, dataStays)
			if got.n != 1 || p[0] != 0 {
				t.Errorf("%v: %d bytes, %x are returned", errno, got.n, p)
			}
			if !errors.Is(err, ErrMsgTooLong) || !errors.Is(err, errno) {
				t.Errorf("%v is returned as %v", errno, err)
			}
			f.leave(&f.r)
			next := make([]byte, 10)
			if n, err := f.read(next); string(next[:n]) != "next" || err != nil {
				t.Errorf("%v: then %q is read, %v", errno, next[:n], err)
			}
		}
	}
}

// A kernel whose messages are records in a stream leaves the message in the queue, which
// is received whole. From the others it takes no second one.
func TestLostFilesOfAMessageTakeNoOther(t *testing.T) {
	a, b, err := MsgPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	if !a.Native() {
		t.Skip("messages are framed here")
	}
	for _, m := range []string{"first", "next"} {
		if err := a.Send([]byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.fd.enterRecv(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 10)
	got, err := b.fd.withoutRights(p, syscall.EMFILE, true)
	b.fd.leave(&b.fd.r)
	left, whole := "first", false
	if kern.looseRecords() {
		left, whole = "next", true
	}
	if got.whole != whole || whole && string(p[:got.n]) != "first" || !whole && got.n != 0 || !errors.Is(err, ErrMsgTooLong) {
		t.Errorf("%q is returned, a whole message: %t, %v", p[:got.n], got.whole, err)
	}
	if n, err := b.Recv(p); string(p[:n]) != left || err != nil {
		t.Errorf("then %q comes, %v", p[:n], err)
	}
}

// Nothing but what the kernel says of dropped files may be taken for that: after
// another error nothing must be received that nobody asked for.
func TestErrorsThatAreNotOfFiles(t *testing.T) {
	for _, errno := range []syscall.Errno{0, syscall.EAGAIN, syscall.EINTR, syscall.ECONNRESET, syscall.ENOTCONN,
		syscall.EBADF, syscall.ENOTSOCK, syscall.EINVAL, syscall.EPIPE, syscall.ENOBUFS, syscall.ENOMEM} {
		if lost, _ := kern.rightsLost(errno); lost {
			t.Errorf("%v is taken for the loss of files", errno)
		}
	}
}

func TestMoreFilesThanTheSystemTakesAreRefused(t *testing.T) {
	limit := kern.filesMax()
	if limit < 1 || limit > maxFiles {
		t.Fatalf("the limit is %d", limit)
	}
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	files := make([]*os.File, limit+1)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for i := range files {
		files[i] = null
	}
	err = a.fd.sendWithFiles(zeroByte[:], files)
	if err == nil || errnoOf(err) != err || !strings.Contains(err.Error(), "at most "+strconv.Itoa(limit)) {
		t.Errorf("%d files: %v", len(files), err) // not the kernel's word
	}
	if err := a.SendFiles(files[:limit]...); err != nil {
		t.Errorf("%d files: %v", limit, err)
	}
}
