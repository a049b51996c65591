package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// beProgram makes the test binary run the program instead of the tests, so
// that there are processes to test without a toolchain at hand.
const beProgram = "HTTP_BE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience is when the watchdog ends a test.
const patience = time.Minute

// A process is a program that a test runs.
type process struct {
	*exec.Cmd
	t        *testing.T
	out, err bytes.Buffer
}

// start runs a program.
func start(t *testing.T, path string, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience) // the watchdog
	p := &process{Cmd: exec.CommandContext(ctx, path, args...), t: t}
	p.Env = append(os.Environ(), beProgram+"=1", "GORACE=atexit_sleep_ms=0")
	p.Stdout, p.Stderr = &p.out, &p.err
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cancel(); p.ProcessState == nil {
			p.Wait()
		}
	})
	return p
}

// program runs this program.
func program(t *testing.T, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	// IPC_TEST_EXEC is the emulator that runs the binaries of this architecture.
	argv := append(strings.Fields(os.Getenv("IPC_TEST_EXEC")), self)
	argv = append(argv, args...)
	return start(t, argv[0], argv[1:]...)
}

// ends waits for the process, and checks how it ended: a failure is told in one
// line, a success in none. It returns the output.
func (p *process) ends(status int) string {
	p.t.Helper()
	p.Wait()
	if got, lines := p.ProcessState.ExitCode(), strings.Count(p.err.String(), "\n"); got != status || lines != min(status, 1) {
		p.t.Fatalf("%q: exit status %d, want %d: %s", p.Args, got, status, &p.err)
	}
	return p.out.String()
}

// says waits for the process, which has to fail and say why.
func (p *process) says(why string) {
	p.t.Helper()
	if p.ends(1); !strings.Contains(p.err.String(), why) {
		p.t.Errorf("%q says %q, not %q", p.Args, &p.err, why)
	}
}

// address returns an address that nothing else uses.
func address(t *testing.T) ipc.Addr {
	t.Helper()
	if runtime.GOOS == "windows" {
		return ipc.Name(fmt.Sprintf("notes-%d-%d", os.Getpid(), time.Now().UnixNano()))
	}
	// Not t.TempDir: curl takes no path longer than sun_path.
	dir, err := os.MkdirTemp("", "notes")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return ipc.Path(filepath.Join(dir, "socket"))
}

// dial waits until a server listens, and connects to it.
func dial(t *testing.T, addr ipc.Addr) *ipc.Conn {
	t.Helper()
	conn, err := ipc.Dialer{Wait: true, Timeout: patience}.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// nobodyListens waits until the server has stopped listening.
func nobodyListens(t *testing.T, addr ipc.Addr) {
	t.Helper()
	for giveUp := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		// On Windows the name is busy as long as there is a connection.
		conn, err := ipc.Dialer{Timeout: time.Second}.Dial(addr)
		if errors.Is(err, ipc.ErrNoListener) || runtime.GOOS == "windows" && errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err == nil {
			conn.Close()
		}
		if time.Now().After(giveUp) {
			t.Fatalf("the server goes on: %v", err)
		}
	}
}

// nothingLeft checks that the server, which has ended, has removed its files.
func nothingLeft(t *testing.T, addr ipc.Addr) {
	t.Helper()
	path := addr.String()
	if path[0] == '@' {
		return
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// server starts the program as a server.
func server(t *testing.T, addr ipc.Addr) *process {
	t.Helper()
	p := program(t, "-serve", addr.String())
	dial(t, addr).Close()
	return p
}

// serveHere makes this process the server, until stop is called, which returns
// the server's error.
func serveHere(t *testing.T, addr ipc.Addr) (stop func() error) {
	t.Helper()
	dog := time.AfterFunc(2*patience, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { dog.Stop() })
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, addr, ipc.OwnerOnly) }()
	stop = sync.OnceValue(func() error { cancel(); return <-served })
	t.Cleanup(func() { stop() })
	dial(t, addr).Close()
	return stop
}

// readerWaits waits until the server, which is this process, has a request to read.
func readerWaits(t *testing.T) {
	t.Helper()
	stacks := make([]byte, 1<<20)
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if n := runtime.Stack(stacks, true); bytes.Contains(stacks[:n], []byte("(*board).read(")) {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the server has no request")
		}
	}
}

// get asks for the path.
func get(t *testing.T, addr ipc.Addr, path string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out strings.Builder
	if err := request(ctx, &out, addr, ipc.OwnerOnly, path, ""); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestNotesAreSignedByTheSystem(t *testing.T) {
	addr := address(t)
	server(t, addr)
	if notes := program(t, addr.String(), "/notes").ends(0); notes != "" {
		t.Errorf("at first there are notes: %q", notes)
	}
	want := ""
	for i, text := range []string{"Hello!", "A note from \u2603 & 100%"} {
		p := program(t, "-d", text, addr.String(), "/notes")
		note := p.ends(0)
		if !strings.HasPrefix(note, fmt.Sprint(i+1, " (")) || !strings.HasSuffix(note, ") "+text+"\n") {
			t.Errorf("the note is %q", note)
		}
		if pid := fmt.Sprintf(" (pid %d, user ", p.Process.Pid); strings.Contains(note, "(pid ") && !strings.Contains(note, pid) {
			t.Errorf("the author of %q has %q", note, pid)
		}
		want += note
	}
	if notes := program(t, addr.String(), "/notes").ends(0); notes != want {
		t.Errorf("read %q, want %q", notes, want)
	}
	if _, second, _ := strings.Cut(want, "\n"); second != get(t, addr, "/notes?after=1") {
		t.Errorf("after the first note does not come %q", second)
	}
	if me, pid := get(t, addr, "/whoami"), fmt.Sprintf("pid %d, user ", os.Getpid()); runtime.GOOS == "linux" && !strings.HasPrefix(me, pid) {
		t.Errorf("the test is %q, not %q", me, pid)
	}
}

func TestCurlIsAClient(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skipf("curl is not installed: %v", err)
	}
	features, err := exec.Command(curl, "--version").Output()
	if err != nil || !bytes.Contains(features, []byte("UnixSockets")) || runtime.GOOS == "windows" {
		t.Skipf("this curl knows no local sockets: %v", err)
	}
	path := address(t)
	kinds := map[ipc.Addr][]string{path: {"--unix-socket", path.String()}}
	if runtime.GOOS == "linux" {
		name := fmt.Sprintf("notes-%d-%d", os.Getpid(), time.Now().UnixNano())
		kinds[ipc.Name(name)] = []string{"--abstract-unix-socket", name}
	}
	for addr, args := range kinds {
		server(t, addr)
		run := func(more ...string) *process {
			args := append([]string{"--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "50"}, args...)
			return start(t, curl, append(args, more...)...)
		}
		p := run("http://localhost/notes", "-d", "from curl")
		note := p.ends(0)
		if !strings.HasSuffix(note, ") from curl\n") || runtime.GOOS == "linux" && !strings.Contains(note, fmt.Sprint("pid ", p.Process.Pid, ",")) {
			t.Errorf("curl, process %d, posts %q", p.Process.Pid, note)
		}
		if notes := run("http://localhost/notes", "http://localhost/notes").ends(0); notes != note+note {
			t.Errorf("curl reads %q, want %q twice", notes, note)
		}
		if p := run("http://localhost/missing"); p.Wait() == nil || !strings.Contains(p.err.String(), "404") {
			t.Errorf("curl does not notice the failure: %s", &p.err)
		}
	}
}

func TestManyClientsPostAtOnce(t *testing.T) {
	addr := address(t)
	server(t, addr)
	const clients, each = 8, 25
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			client := newClient(addr, ipc.OwnerOnly)
			defer client.CloseIdleConnections()
			client.Timeout = patience
			for j := range each {
				answer, err := client.Post("http://localhost/notes", "text/plain", strings.NewReader(fmt.Sprintf("%d/%d", i, j)))
				if err != nil {
					t.Error(err)
					return
				}
				note, err := io.ReadAll(answer.Body)
				answer.Body.Close()
				if err != nil || answer.StatusCode != http.StatusCreated || !bytes.HasSuffix(note, fmt.Appendf(nil, ") %d/%d\n", i, j)) {
					t.Errorf("%s, %q, %v", answer.Status, note, err)
				}
			}
		})
	}
	all.Wait()
	next := make([]int, clients) // of each client, in order
	for i, note := range strings.Split(strings.TrimSpace(get(t, addr, "/notes")), "\n") {
		var client, number int
		_, text, _ := strings.Cut(note, ") ")
		if _, err := fmt.Sscanf(text, "%d/%d", &client, &number); err != nil || number != next[client] || !strings.HasPrefix(note, fmt.Sprint(i+1, " ")) {
			t.Fatalf("the line %d is %q, %v", i+1, note, err)
		}
		next[client]++
	}
	if slices.Min(next) != each {
		t.Errorf("of the clients there are %v notes, want %d each", next, each)
	}
}

func TestReaderWaitsForTheNextNote(t *testing.T) {
	addr := address(t)
	server(t, addr)
	program(t, "-d", "old", addr.String(), "/notes").ends(0)
	reader := program(t, addr.String(), "/notes?after=1")
	note := program(t, "-d", "new", addr.String(), "/notes").ends(0)
	if got := reader.ends(0); got != note {
		t.Errorf("the reader gets %q, want %q", got, note)
	}
}

func TestShutdownAnswersRequestsUnderWay(t *testing.T) {
	addr := address(t)
	goroutines := runtime.NumGoroutine()
	stop := serveHere(t, addr)

	// One request that waits, and one of which the server has only seen a part.
	waiting := dial(t, addr)
	io.WriteString(waiting, "GET /notes?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")
	readerWaits(t)
	posting := dial(t, addr)
	io.WriteString(posting, "POST /notes HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	const proceed = "HTTP/1.1 100 Continue\r\n\r\n" // it is being served
	if _, err := io.ReadFull(posting, make([]byte, len(proceed))); err != nil {
		t.Fatal(err)
	}

	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	if answer, err := io.ReadAll(waiting); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 503 ")) {
		t.Errorf("who waits is told %q, %v", answer, err)
	}
	waiting.Close()
	nobodyListens(t, addr)
	io.WriteString(posting, "hello")
	if answer, err := io.ReadAll(posting); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 201 ")) || !bytes.HasSuffix(answer, []byte(") hello\n")) {
		t.Errorf("who posts is told %q, %v", answer, err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("it stops with %v", err)
	}
	nothingLeft(t, addr)
	for end := time.Now().Add(patience); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines became %d", goroutines, runtime.NumGoroutine())
		}
	}
}

func TestSignalsEndTheServerAndLeaveNothing(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be interrupted from outside here")
	}
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		addr := address(t)
		p := server(t, addr)
		reader := program(t, addr.String(), "/notes?after=0")
		if err := p.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		p.ends(0)
		nothingLeft(t, addr)
		reader.ends(1) // it was told, or came too late
	}
}

func TestInterruptEndsAClientThatWaits(t *testing.T) {
	addr := address(t)
	goroutines := runtime.NumGoroutine()
	stop := serveHere(t, addr)
	ctx, cancel := context.WithCancel(context.Background())
	waited := make(chan error, 1)
	go func() { waited <- request(ctx, io.Discard, addr, ipc.OwnerOnly, "/notes?after=0", "") }()
	readerWaits(t)
	cancel()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("canceled, it ends with %v", err)
	}
	// The server does not wait for it any longer than it is there.
	for end := time.Now().Add(patience); runtime.NumGoroutine() > goroutines+2; /* who accepts, and on Windows who looks after the pipe */ time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines became %d", goroutines, runtime.NumGoroutine())
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	addr := address(t)
	server(t, addr)
	program(t, "-serve", addr.String()).ends(1)
	get(t, addr, "/notes")
}

func TestFailuresAreToldInOneLine(t *testing.T) {
	addr := address(t)
	program(t, addr.String(), "/notes").says("dial ") // no server
	server(t, addr)
	for why, args := range map[string][]string{
		"404 ":                          {addr.String(), "/missing"},
		"405 ":                          {"-d", "x", addr.String(), "/whoami"},
		"a note is one line":            {"-d", "two\nlines", addr.String(), "/notes"},
		"a note has at most 1024 bytes": {"-d", strings.Repeat("x", maxNote+1), addr.String(), "/notes"},
		"not the number of a note":      {addr.String(), "/notes?after=x"},
		"a slash":                       {addr.String(), "notes"},
		"the path is empty":             {"", "/notes"},
	} {
		program(t, args...).says(why)
	}
	for _, args := range [][]string{nil, {addr.String()}, {"-serve", addr.String(), "/notes"}, {"-d", "x", "-serve", addr.String()}} {
		program(t, args...).ends(2)
	}
	if notes := get(t, addr, "/notes"); notes != "" {
		t.Errorf("a failure posts %q", notes)
	}
}
