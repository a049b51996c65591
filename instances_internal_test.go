//go:build windows

package ipc

import (
	"io"
	"os"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// A client can connect to an instance from its birth on. One that does so, writes
// and leaves before the listener asks for a client is heard like any other, and one
// that says nothing is not seen.
func TestClientThatWroteAndLeftBeforeItsInstanceListensIsHeard(t *testing.T) {
	dog := time.AfterFunc(time.Minute, func() { panic("accept hangs") })
	defer dog.Stop()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, words := range []string{"", "last words"} {
		spec, err := newPipeSpec(localPrefix+freshName(), PipeConfig{})
		must(err)
		s, err := newInstances(spec, 1, 0)
		must(err)
		h, err := spec.create(true)
		must(err)
		visit := func(words string) {
			t.Helper()
			fd, err := connect(nil, spec.target, streams, nil)
			must(err)
			_, err = fd.write([]byte(words))
			must(err)
			must(fd.close())
		}
		visit(words)
		s.arm(h)
		l, err := s.listen(false)
		must(err)
		must(l.setDeadline(time.Now().Add(10 * time.Millisecond)))
		server, err := l.accept()
		if words == "" {
			if err != os.ErrDeadlineExceeded {
				t.Errorf("a client that said nothing: %v, %v", server, err)
			}
			must(l.setDeadline(time.Time{}))
			visit("its place is free again")
			server, err = l.accept()
			words = "its place is free again"
		}
		must(err)
		got, err := io.ReadAll(readerOf(server.read))
		if must(err); string(got) != words {
			t.Errorf("read %q, want %q", got, words)
		}
		must(server.close())
		must(l.close())
	}
}

// A readerOf reads with the function.
type readerOf func(p []byte) (int, error)

func (read readerOf) Read(p []byte) (int, error) { return read(p) }

// A handle that does not wait looks like one at the end of its stream.
func TestPipeThatDoesNotWaitIsRefused(t *testing.T) {
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	defer b.close()
	f, err := b.dupFile("pipe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	setMode := func(mode uint32) {
		t.Helper()
		err := b.control("SetNamedPipeHandleState", func(h syscall.Handle) error {
			r, _, errno := syscall.SyscallN(procSetNamedPipeHandleState.Addr(), uintptr(h), uintptr(unsafe.Pointer(&mode)), 0, 0)
			return failure(r, errno)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	const noWait = 1 // PIPE_NOWAIT
	setMode(noWait)
	if c, err := FileConn(f); err == nil {
		c.Close()
		t.Error("it was adopted")
	}
	setMode(0)
	c, err := FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// A client is not lost if an instance is armed before anybody looks.
func TestArmingAnInstanceHidesNoClient(t *testing.T) {
	internalStory(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		spec, err := newPipeSpec(localPrefix+freshName(), PipeConfig{})
		must(err)
		s, err := newInstances(spec, 2, 0)
		must(err)
		must(s.add(true))
		waitFor(s.event, 0) // whatever that told
		client, err := connect(nil, spec.target, streams, nil)
		must(err)
		must(s.add(false))
		if e, err := syscall.WaitForSingleObject(s.event, 0); e != syscall.WAIT_OBJECT_0 {
			t.Errorf("nothing tells of the client: %d, %v", e, err)
		}
		must(client.close())
		must(s.close())
	}
}
