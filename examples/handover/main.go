//go:build unix

// Handover is a server that can be replaced by a new version of itself while it
// serves, and no client is refused meanwhile.
//
//	handover [PATH]
//
// listens at PATH and answers each line of a client. On SIGHUP it starts its
// program file once more. The new process inherits the listening socket and says
// when it serves; from then on the old one accepts no more clients, finishes
// those it has, and leaves. Clients that connect in between wait in the backlog
// of the socket, which is never closed. If the new process fails, the old one
// goes on as if nothing had happened. SIGINT and SIGTERM end the server; the last
// process removes the socket file.
//
//	$ handover /tmp/example.sock &
//	$ ipccat /tmp/example.sock    # in other terminals, as often as you like
//	$ kill -HUP %1                # and then the process that it tells
//
// It also is a service of systemd, of Type=notify. The listening socket comes from
// a .socket unit if there is one:
//
//	$ systemd-socket-activate -l /tmp/example.sock handover
//
// If not, the first process puts its own into the manager's fd store (which needs
// FileDescriptorStoreMax=1), and leaves the socket file where it is: after a crash
// or a restart the next process gets it back, with the clients that wait in its
// backlog. At each hand-over the manager learns which process is the main one.
//
// It is told what to do by signals of Unix; Windows hands a listener over in the
// same way.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/interprocess-go/ipc"
)

const (
	// generationVar counts the processes that served before this one. It makes
	// a process a successor.
	generationVar = "HANDOVER_GENERATION"

	startTime  = 10 * time.Second // in which a successor has to serve
	finishTime = 30 * time.Second // in which clients have to come to an end
)

func main() {
	generation, _ := strconv.Atoi(os.Getenv(generationVar))
	log.SetFlags(0)
	log.SetPrefix(fmt.Sprintf("handover[%d]: generation %d: ", os.Getpid(), generation))
	path := ""
	if len(os.Args) == 2 {
		path = os.Args[1]
	} else if len(os.Args) > 2 {
		fmt.Fprintln(os.Stderr, "usage: handover [PATH]")
		os.Exit(2)
	}
	if err := run(path, generation); err != nil {
		log.Fatal(err)
	}
}

func run(path string, generation int) error {
	// From the start, so that a signal during it is not lost.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, os.Interrupt, syscall.SIGTERM)

	l, err := open(path, generation)
	if err != nil {
		return err
	}
	s := serve(l, generation)
	if generation > 0 {
		if err := tellPredecessor(); err != nil {
			return err
		}
	} else {
		tellManager("READY=1")
	}
	log.Print("serving")

	for sig := range signals {
		if sig != syscall.SIGHUP {
			tellManager("STOPPING=1")
			break
		}
		successor, err := startSuccessor(l, generation+1)
		if err != nil {
			log.Printf("no successor: %v", err)
			continue
		}
		// It is for the main process to name the next one (NotifyAccess=main).
		tellManager(fmt.Sprintf("MAINPID=%d", successor))
		log.Printf("handed over to process %d", successor)
		break
	}
	return s.finish()
}

// open returns the listener: the predecessor's, the service manager's, or a new one.
func open(path string, generation int) (*ipc.Listener, error) {
	if generation > 0 {
		return ipc.InheritedListener("listener")
	}
	passed, err := ipc.Activated() // by a socket unit, or from the fd store
	switch {
	case err != nil:
		return nil, err
	case len(passed) == 1:
		return passed[0], nil
	case len(passed) > 1:
		return nil, fmt.Errorf("%d sockets were passed, want one", len(passed))
	case path == "":
		return nil, errors.New("there is no PATH, and no socket was passed")
	}
	// What the manager stores outlives this process, and so must the socket file.
	managed := os.Getenv("NOTIFY_SOCKET") != ""
	l, err := ipc.ListenConfig{KeepName: managed}.Listen(ipc.Path(path))
	if err != nil || !managed {
		return l, err
	}
	f, err := l.File()
	if err != nil {
		l.Close()
		return nil, err
	}
	defer f.Close()
	tellManager("FDSTORE=1\nFDNAME=listener", f)
	return l, nil
}

// tellManager tells the service manager, if there is one. A server serves also if it
// cannot say so.
func tellManager(state string, files ...*os.File) {
	if _, err := ipc.Notify(state, files...); err != nil {
		log.Print(err)
	}
}

// ---------------------------------------------------------------------------
// Handing over

// startSuccessor starts this program with the listener and returns its process
// id when it serves.
func startSuccessor(l *ipc.Listener, generation int) (pid int, err error) {
	r, ready, err := ipc.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	defer ready.Close()

	self, err := os.Executable() // the path; what is there may have been replaced
	if err != nil {
		self = os.Args[0]
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), generationVar+"="+strconv.Itoa(generation))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := errors.Join(ipc.Inherit(cmd, "listener", l), ipc.Inherit(cmd, "ready", ready)); err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}

	// With this copy closed, the pipe ends if the successor does.
	ready.Close()
	r.SetReadDeadline(time.Now().Add(startTime))
	if _, err := io.ReadFull(r, make([]byte, len(readyWord))); err != nil {
		cmd.Process.Kill()
		return 0, fmt.Errorf("it does not serve: %w (%v)", err, cmd.Wait())
	}
	pid = cmd.Process.Pid
	return pid, cmd.Process.Release() // it outlives this process
}

const readyWord = "ready"

// tellPredecessor is what a successor does when it serves.
func tellPredecessor() error {
	ready, err := ipc.InheritedWriter("ready")
	if err != nil {
		return err
	}
	_, err = io.WriteString(ready, readyWord)
	return errors.Join(err, ready.Close())
}

// ---------------------------------------------------------------------------
// Serving

// A server is the part of the service that one process does.
type server struct {
	l          *ipc.Listener
	generation int
	accepting  sync.WaitGroup
	clients    sync.WaitGroup

	mu   sync.Mutex         // guards what follows
	open map[*ipc.Conn]bool // the clients' connections
}

// serve begins to serve clients.
func serve(l *ipc.Listener, generation int) *server {
	s := &server{l: l, generation: generation, open: map[*ipc.Conn]bool{}}
	s.accepting.Go(func() {
		for conn, err := range l.Conns() {
			if err != nil {
				log.Print(err) // descriptors have run out; the client waits
				time.Sleep(10 * time.Millisecond)
				continue
			}
			s.track(conn, true)
			s.clients.Go(func() {
				s.answer(conn)
				conn.Close()
				s.track(conn, false)
			})
		}
	})
	return s
}

func (s *server) track(conn *ipc.Conn, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open {
		s.open[conn] = true
	} else {
		delete(s.open, conn)
	}
}

// answer answers each line of a client.
func (s *server) answer(conn *ipc.Conn) {
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if _, err := fmt.Fprintf(conn, "generation %d, process %d: %s\n", s.generation, os.Getpid(), lines.Text()); err != nil {
			return
		}
	}
}

// finish accepts no more clients and waits for those that are there.
func (s *server) finish() error {
	err := s.l.Close()
	s.accepting.Wait()
	tooLong := time.AfterFunc(finishTime, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for conn := range s.open {
			conn.Close()
		}
	})
	defer tooLong.Stop()
	s.clients.Wait()
	return err
}
