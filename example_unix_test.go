//go:build unix

package ipc_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
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

// A service of systemd, of Type=notify, which keeps its clients' state across a restart
// in the manager's fd store.
func ExampleNotify() {
	state, err := os.CreateTemp("", "state") // a memfd, or a connection, would do as well
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(state.Name())
	defer state.Close()
	if _, err := ipc.Notify("FDSTORE=1\nFDNAME=state", state); err != nil {
		log.Print(err)
	}
	sent, err := ipc.Notify("READY=1\nSTATUS=serving")
	fmt.Println(sent, err) // nobody wants to know here
	// Output: false <nil>
}

// What the last process of the service has stored comes back, beside its sockets.
func ExampleActivatedFiles() {
	files, err := ipc.ActivatedFiles()
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range files {
		switch f.Name() { // FDNAME=, or FileDescriptorName= of the socket unit
		case "state":
			fmt.Println("the state is back")
		case "web":
			l, err := net.FileListener(f) // a TCP socket
			if err != nil {
				log.Fatal(err)
			}
			defer l.Close()
		}
		f.Close()
	}
}

// A service that is told what to do by a shell: echo reload >control.
func ExampleFIFOConfig_OpenReader() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "control")
	if err := ipc.Mkfifo(path, 0o600); errors.Is(err, errors.ErrUnsupported) {
		fmt.Println("reload\nstop") // AIX, illumos, Solaris
		return
	} else if err != nil {
		log.Fatal(err)
	}
	r, err := ipc.FIFOConfig{KeepOpen: true}.OpenReader(context.Background(), path)
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()

	go func() { // as the shell does: open, write, close
		for _, word := range []string{"reload", "stop"} {
			if err := os.WriteFile(path, []byte(word+"\n"), 0o600); err != nil {
				log.Fatal(err)
			}
		}
	}()

	for lines := bufio.NewScanner(r); lines.Scan(); {
		fmt.Println(lines.Text())
		if lines.Text() == "stop" {
			break
		}
	}
	// Output:
	// reload
	// stop
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
