//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// beProgram makes the test binary run the program instead of the tests, so
// that there are processes to test without a toolchain at hand.
const beProgram = "HANDOVER_BE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience is when the watchdog ends a test, soon how long a condition may take
// to hold.
const (
	patience = time.Minute
	soon     = 20 * time.Second
)

// A service is a server in all its generations.
type service struct {
	t    *testing.T
	path string
	said chan string // what they say, until the last one has ended

	mu   sync.Mutex
	pids []int // of the generations that served so far
}

// start starts the first generation from the program file.
func start(t *testing.T, program string) *service {
	t.Helper()
	if os.Getenv("IPC_TEST_EXEC") != "" {
		t.Skip("a program under an emulator cannot run itself")
	}
	dir := t.TempDir()
	s := &service{t: t, path: filepath.Join(dir, "socket"), said: make(chan string, 1000)}
	cmd := exec.Command(program, s.path)
	cmd.Env = append(os.Environ(), beProgram+"=1", "GORACE=atexit_sleep_ms=0")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()                                   // the generations keep theirs
	r.SetReadDeadline(time.Now().Add(patience)) // the watchdog
	s.pids = []int{cmd.Process.Pid}
	go func() {
		defer close(s.said)
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			s.said <- lines.Text()
		}
		if err := lines.Err(); err != nil {
			t.Errorf("a generation is still there: %v", err)
			s.kill()
		}
	}()
	t.Cleanup(func() {
		if t.Failed() {
			s.kill()
		}
		for range s.said { // until all have ended
		}
		cmd.Wait()
		r.Close()
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 && !t.Failed() {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	s.says("serving")
	return s
}

func (s *service) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pid := range s.pids {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// says waits until a generation says that, and returns what follows.
func (s *service) says(what string) (rest string) {
	s.t.Helper()
	var log []string
	for timeout := time.After(soon); ; {
		select {
		case line, ok := <-s.said:
			if log = append(log, line); !ok {
				s.t.Fatalf("it ends without saying %q:\n%s", what, strings.Join(log, "\n"))
			}
			if _, rest, ok := strings.Cut(line, what); ok {
				return rest
			}
		case <-timeout:
			s.t.Fatalf("it does not say %q:\n%s", what, strings.Join(log, "\n"))
		}
	}
}

// signal signals the present generation.
func (s *service) signal(sig syscall.Signal) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := syscall.Kill(s.pids[len(s.pids)-1], sig); err != nil {
		s.t.Fatal(err)
	}
}

// replace makes the present generation start the next one.
func (s *service) replace() {
	s.t.Helper()
	s.signal(syscall.SIGHUP)
	pid, err := strconv.Atoi(s.says("handed over to process "))
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pids = append(s.pids, pid)
}

// A client is a conversation with one generation.
type client struct {
	*ipc.Conn
	t       *testing.T
	answers *bufio.Reader
}

func (s *service) dial() *client {
	s.t.Helper()
	conn, err := ipc.Dialer{Timeout: soon}.Dial(ipc.Path(s.path))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(soon))
	return &client{conn, s.t, bufio.NewReader(conn)}
}

// dialNew connects to the generation. The one before may accept a last few.
func (s *service) dialNew(generation int) *client {
	s.t.Helper()
	for end := time.Now().Add(soon); ; {
		c := s.dial()
		if got, _ := c.ask(); got == generation {
			return c
		}
		c.Close()
		if time.Now().After(end) {
			s.t.Fatalf("generation %d does not serve", generation)
		}
	}
}

// ask has the server answer, and returns who it is.
func (c *client) ask() (generation, pid int) {
	c.t.Helper()
	var word string
	fmt.Fprintln(c, "question")
	if _, err := fmt.Fscanf(c.answers, "generation %d, process %d: %s\n", &generation, &pid, &word); err != nil || word != "question" {
		c.t.Fatalf("the answer: %q, %v", word, err)
	}
	return generation, pid
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		path = os.Args[0]
	}
	return path
}

func TestReplacesItselfWithoutRefusingAClient(t *testing.T) {
	s := start(t, self(t))
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var mu sync.Mutex
	served := map[string]int{} // by generation
	var failed error
	for range 3 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				answer, err := once(s.path)
				mu.Lock()
				if served[answer]++; err != nil && failed == nil {
					failed = err
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	const last = 4
	enough := func(generation int) bool {
		mu.Lock()
		defer mu.Unlock()
		return served[fmt.Sprint("generation ", generation)] >= 20 || failed != nil
	}
	for generation := 0; ; generation++ {
		for end := time.Now().Add(soon); !enough(generation); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("generation %d does not serve: %v", generation, served)
			}
		}
		if generation == last {
			break
		}
		s.replace()
	}
	close(stop)
	clients.Wait()
	if failed != nil {
		t.Errorf("a client was refused: %v (%v)", failed, served)
	}
	s.signal(syscall.SIGTERM)
}

// once has one answer of the server.
func once(path string) (answer string, err error) {
	c, err := ipc.Dialer{Timeout: soon}.Dial(ipc.Path(path))
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(soon))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", err
	}
	answer, _, _ = strings.Cut(line, ",")
	return answer, nil
}

func TestOldGenerationFinishesItsClients(t *testing.T) {
	s := start(t, self(t))
	old := s.dial()
	_, first := old.ask()
	s.replace()
	young := s.dialNew(1)
	if _, second := young.ask(); second == first {
		t.Errorf("it is still process %d", second)
	}
	if generation, pid := old.ask(); generation != 0 || pid != first {
		t.Errorf("an old client talks to generation %d, process %d, not %d", generation, pid, first)
	}
	old.Close()
	young.Close()
	s.signal(syscall.SIGTERM)
}

func TestGoesOnWithoutASuccessor(t *testing.T) {
	// The program file is replaced by one that does not serve, and then is gone.
	program := filepath.Join(t.TempDir(), "program")
	data, err := os.ReadFile(self(t))
	if err != nil {
		t.Skipf("the program cannot be copied: %v", err)
	}
	if err := os.WriteFile(program, data, 0o700); err != nil {
		t.Fatal(err)
	}
	check := exec.Command(program, "-test.run=^$")
	if err := check.Run(); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Skipf("a program in the folder for temporary files cannot be run: %v", err)
	}
	s := start(t, program)
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/bin/sh"); err == nil {
		if err := os.WriteFile(program, []byte("#!/bin/sh\nexit 3\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		s.signal(syscall.SIGHUP)
		s.says("no successor: it does not serve")
		os.Remove(program)
	}
	s.signal(syscall.SIGHUP)
	s.says("no successor: ")
	s.dialNew(0).Close()
	if err := os.WriteFile(program, data, 0o700); err != nil {
		t.Fatal(err)
	}
	s.replace()
	s.dialNew(1).Close()
	s.signal(syscall.SIGINT)
}

func TestServerOfAnotherIsLeftAlone(t *testing.T) {
	s := start(t, self(t))
	s.replace()
	var complaint bytes.Buffer
	cmd := exec.Command(self(t), s.path)
	cmd.Env = append(os.Environ(), beProgram+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = &complaint
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 1 || strings.Count(complaint.String(), "\n") != 1 {
		t.Errorf("a second server ends with %v: %s", err, &complaint)
	}
	s.dialNew(1).Close()
	s.signal(syscall.SIGTERM)
}
