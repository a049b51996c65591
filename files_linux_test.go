package ipc_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

// refuseFiles has the end refuse files, or skips the test where the kernel cannot.
func refuseFiles(t *testing.T, c any) {
	t.Helper()
	err := c.(interface{ RefuseFiles() error }).RefuseFiles()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	kit.Must(t, err)
}

func TestRefuseFilesFailsTheSender(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		refuseFiles(t, b)
		r, w := kit.OsPipe(t)
		for range 2 {
			if err := a.SendFiles(r, w); !errors.Is(err, os.ErrPermission) {
				t.Errorf("SendFiles to an end that refuses files: %v", err)
			}
		}
		kit.SendFiles(t, b, w) // the other direction is as it was
		kit.RecvFiles(t, a, 1)
	})
}

func TestRefuseFilesLeavesDataAlone(t *testing.T) {
	kit.OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		refuseFiles(t, b)
		r, _ := kit.OsPipe(t)
		for _, data := range []string{"first", "second"} {
			kit.Send(t, a, data)
			if err := a.SendFiles(r); !errors.Is(err, os.ErrPermission) {
				t.Errorf("SendFiles to an end that refuses files: %v", err)
			}
			p := make([]byte, 10)
			n, err := b.Read(p)
			if string(p[:n]) != data || err != nil {
				t.Errorf("%q is read, %v, want %q", p[:n], err, data)
			}
		}
		kit.Must(t, a.CloseWrite())
		for range 2 {
			if n, err := b.Read(make([]byte, 10)); n != 0 || err != io.EOF {
				t.Errorf("after the end %d bytes, %v", n, err)
			}
		}
	})
}

// What was sent before is received as it always was.
func TestRefuseFilesTakesNothingBack(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		r, w := kit.OsPipe(t)
		kit.SendFiles(t, a, r, w)
		refuseFiles(t, b)
		kit.RecvFiles(t, b, 2)
	})
}

func TestRefuseFilesOfAClosedEnd(t *testing.T) {
	a, _ := kit.Pair(t)
	a.Close()
	if err := a.RefuseFiles(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("RefuseFiles after Close: %v", err)
	}
}

// Shared memory is passed as files. Without it the data goes through the socket.
func TestRefuseFilesLeavesShareTheSocket(t *testing.T) {
	a, b := kit.Pair(t)
	refuseFiles(t, b)
	x, err := a.Share(ipc.ShareConfig{})
	kit.Kept(t, x, err)
	y, err := b.Share(ipc.ShareConfig{})
	kit.Kept(t, y, err)
	data := kit.Pattern(100_000)
	sent := make(chan error)
	go func() { sent <- second(x.Write(data)) }()
	got := make([]byte, len(data))
	kit.Must(t, second(io.ReadFull(y, got)))
	kit.Must(t, <-sent)
	if !bytes.Equal(got, data) {
		t.Error("other data arrives")
	}
	if x.InMemory() || y.InMemory() {
		t.Error("it is in memory all the same")
	}
}

// An os.File knows that it appends: WriteAt would not write where it is told to.
func TestRecvFilesKeepsThatAFileAppends(t *testing.T) {
	a, b := kit.Pair(t)
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	kit.Kept(t, f, err)
	kit.SendFiles(t, a, f)
	got := kit.RecvFiles(t, b, 1)[0]
	if _, err := got.WriteAt([]byte("x"), 0); err == nil {
		t.Error("WriteAt works on a file that appends")
	}
	kit.Must(t, second(got.WriteString("text")))
	if text, err := os.ReadFile(f.Name()); string(text) != "text" || err != nil {
		t.Errorf("the file has %q, %v", text, err)
	}
}
