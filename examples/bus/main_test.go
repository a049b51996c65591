package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// beProgram makes the test binary run the program instead of the tests, so
// that there are processes to test without a toolchain at hand.
const beProgram = "BUS_BE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience is when the watchdog ends a process, or a wait.
const patience = 2 * time.Minute

// command is one run of the program.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	// IPC_TEST_EXEC is the emulator that runs the binaries of this architecture.
	argv := append(strings.Fields(os.Getenv("IPC_TEST_EXEC")), self)
	argv = append(argv, args...)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), beProgram+"=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}

// A server is a run of it as the server, and what it complains about.
type server struct {
	t    *testing.T
	addr ipc.Addr
	cmd  *exec.Cmd
	said chan string
}

func startServer(t *testing.T, args ...string) *server {
	t.Helper()
	s := &server{t: t, said: make(chan string, 1000)}
	s.addr = ipc.Name(fmt.Sprintf("bus-test-%d-%d", os.Getpid(), time.Now().UnixNano()))
	s.cmd = command(t, append(args, "serve", s.addr.String())...)
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	complaints, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var read sync.WaitGroup
	read.Go(func() {
		for lines := bufio.NewScanner(complaints); lines.Scan(); {
			s.said <- lines.Text()
		}
		close(s.said)
	})
	t.Cleanup(func() {
		if runtime.GOOS == "windows" {
			s.cmd.Process.Kill() // nobody can interrupt it alone
		} else {
			s.cmd.Process.Signal(os.Interrupt)
		}
		read.Wait()
		if err := s.cmd.Wait(); err != nil && runtime.GOOS != "windows" {
			t.Errorf("the server ends with %v", err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); strings.TrimSpace(line) != "serving at "+s.addr.String() {
		t.Fatalf("the server says %q, %v", line, err)
	}
	return s
}

// subscribe returns a subscriber of this process, which is welcome already.
func (s *server) subscribe() *ipc.MsgConn {
	s.t.Helper()
	conn, _, err := join(s.t.Context(), s.addr, subscriber)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// publish runs a publisher to its end.
func (s *server) publish(lines string) {
	s.t.Helper()
	cmd := command(s.t, "pub", s.addr.String())
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		s.t.Fatalf("the publisher ends with %v: %s", err, out)
	}
}

// receive takes n messages.
func receive(conn *ipc.MsgConn, n int) (got []string, err error) {
	var msg []byte
	for range n {
		if msg, err = conn.RecvAppend(msg[:0]); err != nil {
			return got, err
		}
		got = append(got, string(msg))
	}
	return got, nil
}

// The slow one is dropped, and no other loses a message.
func TestSlowSubscriberIsDroppedAndNobodyElseLosesAnything(t *testing.T) {
	const subscribers, messages = 50, 800
	s := startServer(t, "-patience=10s") // enough for those that wait for a busy machine
	var want []string
	for i := range messages { // more than a queue and a socket hold together
		want = append(want, fmt.Sprintf("%6d %s", i, strings.Repeat("x", 500)))
	}
	slow := s.subscribe()
	var receiving sync.WaitGroup
	for i := range subscribers {
		conn := s.subscribe()
		receiving.Go(func() {
			got, err := receive(conn, messages)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("subscriber %d gets %d of %d messages, %v", i, len(got), messages, err)
			}
		})
	}
	s.publish(strings.Join(want, "\n"))
	receiving.Wait()

	// What it was sent before is still its, up to the end.
	select {
	case line := <-s.said:
		if !strings.Contains(line, "dropped") {
			t.Errorf("the server says %q", line)
		}
	case <-time.After(patience):
		t.Fatal("nobody is dropped")
	}
	got, err := receive(slow, messages)
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the slow one gets %d messages, %v", len(got), err)
	}
	if !slices.Equal(got, want[:len(got)]) {
		t.Errorf("the slow one gets %d messages with a gap", len(got))
	}
}

func TestSubscriberPrintsEachMessage(t *testing.T) {
	s := startServer(t)
	cmd := command(t, "sub", s.addr.String())
	complaints, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if line, err := bufio.NewReader(complaints).ReadString('\n'); !strings.Contains(line, "subscribed") {
		t.Fatalf("the subscriber says %q, %v", line, err)
	}
	const lines = "one\ntwo words\n\nfour\n"
	s.publish(lines)
	got := make([]byte, len(lines))
	if _, err := io.ReadFull(out, got); err != nil || !bytes.Equal(got, []byte(lines)) {
		t.Errorf("it prints %q, %v", got, err)
	}
}

// Publishers that speak at once are heard in one order by all.
func TestAllSubscribersAgreeOnTheOrder(t *testing.T) {
	const publishers, messages = 4, 200
	s := startServer(t)
	subscribers := []*ipc.MsgConn{s.subscribe(), s.subscribe(), s.subscribe()}
	var publishing sync.WaitGroup
	for i := range publishers {
		publishing.Go(func() {
			conn, leave, err := join(t.Context(), s.addr, publisher)
			if err != nil {
				t.Error(err)
				return
			}
			defer leave()
			for j := range messages {
				if err := conn.Send(fmt.Appendf(nil, "%d of %d", j, i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	got := make([][]string, len(subscribers))
	for i, conn := range subscribers {
		publishing.Go(func() {
			var err error
			if got[i], err = receive(conn, publishers*messages); err != nil {
				t.Errorf("subscriber %d gets %d messages, %v", i, len(got[i]), err)
			}
		})
	}
	publishing.Wait()
	for i := range got {
		if !slices.Equal(got[i], got[0]) {
			t.Errorf("subscriber %d gets them in another order", i)
		}
	}
}

func TestWhoIsNeitherIsTurnedAway(t *testing.T) {
	s := startServer(t)
	conn, err := ipc.DialMsg(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if err := conn.Send([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if msg, err := conn.RecvAppend(nil); err != io.EOF {
		t.Errorf("it hears %q, %v", msg, err)
	}
	if line := <-s.said; !strings.Contains(line, "hello") {
		t.Errorf("the server says %q", line)
	}
	s.publish("to nobody\n")
}
