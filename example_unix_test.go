//go:build unix

package ipc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/interprocess-go/ipc"
)

// A reader and a writer of a FIFO wait for each other, as long as the context
// lets them.
func ExampleOpenFIFOReader() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "fifo")
	if err := ipc.Mkfifo(path, 0o600); errors.Is(err, errors.ErrUnsupported) {
		fmt.Println("through the FIFO") // AIX, illumos, Solaris
		return
	} else if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	go func() {
		w, err := ipc.OpenFIFOWriter(ctx, path)
		if err != nil {
			log.Fatal(err)
		}
		defer w.Close()
		fmt.Fprintln(w, "through the FIFO")
	}()

	r, err := ipc.OpenFIFOReader(ctx, path)
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r) // until the last writer closes it
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(text))
	// Output: through the FIFO
}

// A server that a service manager starts on demand, or somebody by hand.
func ExampleActivated() {
	listeners, err := ipc.Activated()
	if err != nil {
		log.Fatal(err)
	}
	if len(listeners) == 0 {
		l, err := ipc.Listen(ipc.Path("/run/my-service/socket"))
		if err != nil {
			log.Fatal(err)
		}
		listeners = append(listeners, l)
	}
	for conn, err := range listeners[0].Conns() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprintln(conn, "hello")
		conn.Close()
	}
}

// A socket passes from one server to the next, and its clients wait meanwhile.
func ExampleFileListener() {
	l, err := ipc.Listen(ipc.Addr{})
	if err != nil {
		log.Fatal(err)
	}
	addr := l.Addr().(ipc.Addr)
	f, err := l.File() // for ExtraFiles of os/exec, or SendFiles
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	early, err := ipc.Dial(addr) // whom nobody has accepted yet
	if err != nil {
		log.Fatal(err)
	}
	defer early.Close()

	heir, err := ipc.FileListener(f)
	if err != nil {
		log.Fatal(err)
	}
	defer heir.Close()
	conn, err := heir.AcceptConn()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(conn, "served by the next one")
	conn.Close()
	text, err := io.ReadAll(early)
	fmt.Print(string(text))
	l.Close()
	// Output: served by the next one
}

// The group of the socket file may connect, too.
func ExampleSysListenConfig() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")
	l, err := ipc.ListenConfig{
		Sys: &ipc.SysListenConfig{Mode: 0o660},
	}.Listen(ipc.Path(path))
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(path)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Mode())
	// Output: Srw-rw----
}
