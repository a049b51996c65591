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
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// beProgram makes the test binary run the program instead of the tests, so
// that there are processes to test without a toolchain at hand.
const beProgram = "RPC_BE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience is when the watchdog ends a test.
const patience = time.Minute

// A process is a run of the program.
type process struct {
	*exec.Cmd
	t        *testing.T
	out, err bytes.Buffer
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	// IPC_TEST_EXEC is the emulator that runs the binaries of this architecture.
	argv := append(strings.Fields(os.Getenv("IPC_TEST_EXEC")), self)
	argv = append(argv, args...)
	ctx, cancel := context.WithTimeout(context.Background(), patience) // the watchdog
	p := &process{Cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), t: t}
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

// puts waits for the process, which has to put out that.
func (p *process) puts(want string) {
	p.t.Helper()
	if got := p.ends(0); got != want {
		p.t.Fatalf("%q puts out %q, want %q", p.Args, got, want)
	}
}

// address returns an address that nothing else uses.
func address(t *testing.T) ipc.Addr {
	t.Helper()
	if runtime.GOOS == "windows" {
		return ipc.Name(fmt.Sprintf("store-%d-%d", os.Getpid(), time.Now().UnixNano()))
	}
	// Not t.TempDir: socat takes no path longer than sun_path.
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 && !t.Failed() {
			t.Errorf("left behind: %v, %v", left, err)
		}
		os.RemoveAll(dir)
	})
	return ipc.Path(filepath.Join(dir, "socket"))
}

// connect waits until a server listens, and connects to it.
func connect(t *testing.T, addr ipc.Addr) *ipc.Conn {
	t.Helper()
	conn, err := ipc.Dialer{Wait: true, Timeout: patience}.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// server starts the program as a server, and ends it with the test.
func server(t *testing.T, addr ipc.Addr) {
	t.Helper()
	p := start(t, "-serve", addr.String())
	connect(t, addr).Close()
	t.Cleanup(func() {
		if runtime.GOOS == "windows" { // a process cannot be interrupted from outside there
			p.Process.Kill()
		} else {
			p.Process.Signal(syscall.SIGTERM)
			p.ends(0)
		}
	})
}

// serveHere makes this process the server, until stop is called, which returns
// the server's error. The test ends with as many goroutines as there are now.
func serveHere(t *testing.T, addr ipc.Addr) (stop func() error) {
	t.Helper()
	goroutines := runtime.NumGoroutine()
	dog := time.AfterFunc(2*patience, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { dog.Stop() })
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, addr) }()
	stop = sync.OnceValue(func() error { cancel(); return <-served })
	t.Cleanup(func() {
		stop()
		fewer(t, goroutines+1)
	})
	connect(t, addr).Close()
	return stop
}

// fewer waits until there are fewer than n goroutines.
func fewer(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); runtime.NumGoroutine() >= n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("there are %d goroutines, want fewer than %d", runtime.NumGoroutine(), n)
		}
	}
}

// open makes this process a client.
func open(t *testing.T, addr ipc.Addr) (context.Context, client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	c, err := dial(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return ctx, c
}

func TestCommandsShareAStore(t *testing.T) {
	addr := address(t)
	server(t, addr)
	run := func(args ...string) *process { return start(t, append([]string{addr.String()}, args...)...) }
	run("list").puts("")
	run("set", "color", "blue \u2603\n").puts("")
	run("get", "color").puts("blue \u2603\n\n")
	run("set", "color", "red").puts("")
	run("add", "count", "5").puts("5\n")
	run("add", "count", "-7").puts("-2\n")
	run("list").puts("color\tred\ncount\t-2\n")
	run("list", "col").puts("color\tred\n")
	run("delete", "color").puts("")
	run("delete", "color").puts("")
	run("list").puts("count\t-2\n")
}

func TestManyProcessesCount(t *testing.T) {
	addr := address(t)
	server(t, addr)
	const processes, goroutines, each = 8, 8, 100
	var running []*process
	for range processes {
		running = append(running, start(t, addr.String(), "add", "jobs", "1000"))
	}
	// Meanwhile one connection is shared by many.
	ctx, c := open(t, addr)
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for before := int64(0); before < each; before++ {
				var sum int64
				if err := c.call(ctx, "Add", Increment{"jobs", 1}, &sum); err != nil || sum <= before {
					t.Errorf("after %d comes %d, %v", before, sum, err)
					return
				}
			}
		})
	}
	all.Wait()
	for _, p := range running {
		p.ends(0)
	}
	start(t, addr.String(), "get", "jobs").puts(fmt.Sprintln(processes*1000 + goroutines*each))
}

func TestWaitEndsWhenThereIsAValue(t *testing.T) {
	addr := address(t)
	server(t, addr)
	ctx, c := open(t, addr)
	waiting := start(t, addr.String(), "wait", "ready")
	waits := make(chan error, 1)
	var value string
	go func() { waits <- c.call(ctx, "Wait", "ready", &value) }()
	// Another call of the same connection is not held up.
	var sum int64
	if err := c.call(ctx, "Add", Increment{"other", 1}, &sum); err != nil || sum != 1 {
		t.Errorf("the sum is %d, %v", sum, err)
	}
	select {
	case err := <-waits:
		t.Fatalf("without a value the wait ends with %q, %v", value, err)
	default:
	}
	start(t, addr.String(), "set", "ready", "yes").puts("")
	if err := <-waits; err != nil || value != "yes" {
		t.Errorf("the value is %q, %v", value, err)
	}
	waiting.puts("yes\n")
}

func TestWaitEndsWithItsClient(t *testing.T) {
	addr := address(t)
	stop := serveHere(t, addr)
	// A first client has been served, so the server has begun all that it keeps.
	ctx, first := open(t, addr)
	if err := first.call(ctx, "List", "", new([]Entry)); err != nil {
		t.Fatal(err)
	}
	idle := runtime.NumGoroutine()
	for range 3 {
		_, c := open(t, addr)
		ctx, cancel := context.WithCancel(t.Context())
		waits := make(chan error, 1)
		go func() { waits <- c.call(ctx, "Wait", "never", new(string)) }()
		if err := c.call(ctx, "List", "", new([]Entry)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-waits; !errors.Is(err, context.Canceled) {
			t.Errorf("canceled, the wait ends with %v", err)
		}
		c.Close()
	}
	fewer(t, idle+1)
	first.Close()
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestShutdownAnswersTheCallsUnderWay(t *testing.T) {
	addr := address(t)
	stop := serveHere(t, addr)
	conn := connect(t, addr)
	answers := bufio.NewReader(conn)
	fmt.Fprintln(conn, `{"method": "Store.Wait", "params": ["never"], "id": "w"} {"method": "Store.Set", "params": [{"Key": "a"}], "id": "s"}`)
	if answer, err := answers.ReadString('\n'); err != nil || answer != `{"id":"s","result":{},"error":null}`+"\n" {
		t.Fatalf("the answer is %q, %v", answer, err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	if rest, err := io.ReadAll(answers); err != nil || !bytes.HasPrefix(rest, []byte(`{"id":"w","result":null,"error":"the wait is over`)) {
		t.Errorf("who waits is told %q, %v", rest, err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("it stops with %v", err)
	}
	if _, err := ipc.Dial(addr); runtime.GOOS != "windows" && !errors.Is(err, ipc.ErrNoListener) {
		t.Errorf("a new client gets %v", err)
	}
}

func TestInterruptEndsAClient(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be interrupted from outside here")
	}
	addr := address(t)
	// A server that takes the call and is silent, so that there is a moment to
	// interrupt.
	l, err := ipc.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetDeadline(time.Now().Add(patience))
	p := start(t, addr.String(), "wait", "never")
	conn, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := p.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	p.ends(1)
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("the server reads %v", err)
	}
}

func TestAnyClientThatSpeaksJSONWillDo(t *testing.T) {
	socat, err := exec.LookPath("socat")
	if err != nil || runtime.GOOS == "windows" {
		t.Skipf("there is no socat that knows local sockets: %v", err)
	}
	addr := address(t)
	server(t, addr)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, socat, "-t", "30", "-", "UNIX:"+addr.String())
	cmd.Stdin = strings.NewReader(`{"method": "Store.Add", "params": [{"Key": "jobs", "Number": 2}], "id": 1}`)
	if out, err := cmd.Output(); err != nil || string(out) != `{"id":1,"result":2,"error":null}`+"\n" {
		t.Errorf("socat receives %q, %v", out, err)
	}
}

func TestGarbageEndsItsOwnConnectionAlone(t *testing.T) {
	addr := address(t)
	server(t, addr)
	ctx, c := open(t, addr)
	for _, garbage := range []string{"}", "GET / HTTP/1.1\r\n\r\n", `{"method": 1}`, "[]"} {
		conn := connect(t, addr)
		io.WriteString(conn, garbage)
		if answer, err := io.ReadAll(conn); err != nil && !errors.Is(err, syscall.ECONNRESET) { // it was not read to its end
			t.Errorf("%q is answered with %q, %v", garbage, answer, err)
		}
	}
	var sum int64
	if err := c.call(ctx, "Add", Increment{"calls", 1}, &sum); err != nil || sum != 1 {
		t.Errorf("the sum is %d, %v", sum, err)
	}
}

func TestFailuresAreTold(t *testing.T) {
	addr := address(t)
	start(t, addr.String(), "list").ends(1) // no server
	server(t, addr)
	start(t, "-serve", addr.String()).ends(1) // a second one
	start(t, addr.String(), "set", "text", "x").ends(0)
	start(t, addr.String(), "set", "last", "9223372036854775807").ends(0)
	for why, args := range map[string][]string{
		`no value for "missing"`:         {"get", "missing"},
		`"text" is not a counter`:        {"add", "text", "1"},
		`"last" cannot count that far`:   {"add", "last", "1"},
		`invalid syntax`:                 {"add", "text", "x"},
		`"fly" is no command of 1 arg`:   {"fly", "away"},
		`"get" is no command of 0 argum`: {"get"},
		"usage: ":                        nil,
	} {
		status := 1
		if strings.Contains(why, "usage") || strings.Contains(why, "no command") || why == "invalid syntax" {
			status = 2
		}
		p := start(t, append([]string{addr.String()}, args...)...)
		if p.ends(status); !strings.Contains(p.err.String(), why) {
			t.Errorf("%q says %q, not %q", args, &p.err, why)
		}
	}
	start(t, addr.String(), "get", "last").puts("9223372036854775807\n")
	start(t).ends(2)
	start(t, "-serve", addr.String(), "list").ends(2)
	start(t, "", "list").ends(1)
}
