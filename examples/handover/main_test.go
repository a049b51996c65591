//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
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

// beActivated makes it become the program with a socket that was passed to it.
const beActivated = "HANDOVER_BE_ACTIVATED"

func TestMain(m *testing.M) {
	if os.Getenv(beActivated) != "" {
		os.Unsetenv(beActivated)
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())) // which only this process knows
		err := syscall.Exec(self(nil), os.Args, os.Environ())
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
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
	path := filepath.Join(t.TempDir(), "socket")
	s := launch(t, path, exec.Command(program, path))
	s.says("serving")
	return s
}

// launch starts the first generation by the command. When all have ended, nothing
// must be left in the folder of the path.
func launch(t *testing.T, path string, cmd *exec.Cmd) *service {
	t.Helper()
	if os.Getenv("IPC_TEST_EXEC") != "" {
		t.Skip("a program under an emulator cannot run itself")
	}
	s := &service{t: t, path: path, said: make(chan string, 1000)}
	cmd.Env = append(append(os.Environ(), beProgram+"=1", "GORACE=atexit_sleep_ms=0"), cmd.Env...)
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
		if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 && !t.Failed() {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
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

func self(*testing.T) string {
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

// ---------------------------------------------------------------------------
// As a service

// A manager is the socket of a service manager, which systemd has in its place.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	name string
}

func startManager(t *testing.T) *manager {
	t.Helper()
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return &manager{t, conn, name}
}

// hears waits for a state, and returns the file that came with it.
func (m *manager) hears(want string) (stored *os.File) {
	m.t.Helper()
	p, oob := make([]byte, 4096), make([]byte, 1024)
	n, oobn, _, _, err := m.conn.ReadMsgUnix(p, oob)
	if err != nil || string(p[:n]) != want {
		m.t.Fatalf("the manager hears %q, %v, want %q", p[:n], err, want)
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		m.t.Fatal(err)
	}
	for _, message := range messages {
		fds, err := syscall.ParseUnixRights(&message)
		if err != nil || len(fds) != 1 {
			m.t.Fatalf("descriptors %v, %v", fds, err)
		}
		stored = os.NewFile(uintptr(fds[0]), "stored")
		m.t.Cleanup(func() { stored.Close() })
	}
	return stored
}

func TestManagerKeepsTheListener(t *testing.T) {
	m := startManager(t)
	path := filepath.Join(t.TempDir(), "socket")
	cmd := exec.Command(self(t), path)
	cmd.Env = []string{"NOTIFY_SOCKET=" + m.name}
	s := launch(t, path, cmd)
	stored := m.hears("FDSTORE=1\nFDNAME=listener")
	if stored == nil {
		t.Fatal("nothing is to be stored")
	}
	m.hears("READY=1")
	s.says("serving")
	s.dialNew(0).Close()

	s.signal(syscall.SIGHUP)
	var second int
	if _, err := fmt.Sscan(s.says("handed over to process "), &second); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.pids = append(s.pids, second)
	s.mu.Unlock()
	m.hears(fmt.Sprintf("MAINPID=%d", second))
	s.dialNew(1).Close()

	// It crashes. A client that comes now waits for the next process.
	s.signal(syscall.SIGKILL)
	for range s.said { // until it is gone
	}
	waiting, err := ipc.Dial(ipc.Path(path))
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	fmt.Fprintln(waiting, "question")

	again := exec.Command(self(t), path)
	again.ExtraFiles = []*os.File{stored}
	again.Env = []string{beActivated + "=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=listener", "NOTIFY_SOCKET=" + m.name}
	next := launch(t, path, again)
	m.hears("READY=1") // and nothing more is to be stored
	next.says("serving")
	waiting.SetDeadline(time.Now().Add(soon))
	if answer, err := bufio.NewReader(waiting).ReadString('\n'); err != nil || !strings.HasPrefix(answer, "generation 0,") {
		t.Errorf("the client that waited hears %q, %v", answer, err)
	}
	waiting.Close()
	next.signal(syscall.SIGTERM)
	m.hears("STOPPING=1")
	for range next.said {
	}
	// The file is the service's, as long as the manager has the socket; and its lock
	// is what the crash left.
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
	os.Remove(path + ".lock")
}

func TestServesUnderSocketActivation(t *testing.T) {
	const program = "systemd-socket-activate"
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
	path := filepath.Join(t.TempDir(), "socket")
	s := launch(t, path, exec.Command(program, "-l", path, "-E", beProgram+"=1", "-E", "GORACE=atexit_sleep_ms=0", self(t)))
	c, err := ipc.Dialer{Wait: true, Timeout: soon}.Dial(ipc.Path(path)) // which starts the server
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(soon))
	first := &client{c, t, bufio.NewReader(c)}
	if generation, _ := first.ask(); generation != 0 {
		t.Errorf("generation %d serves", generation)
	}
	s.replace()
	s.dialNew(1).Close()
	first.Close()
	s.signal(syscall.SIGTERM)
	for range s.said {
	}
	if err := os.Remove(path); err != nil { // systemd's
		t.Error(err)
	}
}
