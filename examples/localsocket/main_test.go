package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

// beProgram makes the test binary run the program instead of the tests, so
// that there are processes to test without a toolchain at hand.
const beProgram = "LOCALSOCKET_BE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A process is a run of the program.
type process struct {
	*exec.Cmd
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
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the watchdog
	t.Cleanup(cancel)
	p := &process{Cmd: exec.CommandContext(ctx, argv[0], argv[1:]...)}
	p.WaitDelay = time.Second
	p.Env = append(os.Environ(), beProgram+"=1", "GORACE=atexit_sleep_ms=0")
	p.Stdout, p.Stderr = &p.out, &p.err
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// ends waits for the process and checks how it ended: a failure is told in one
// line, and a success in none.
func (p *process) ends(t *testing.T, code int) {
	t.Helper()
	p.Wait()
	lines := 0
	if code != 0 {
		lines = 1
	}
	if got := p.ProcessState.ExitCode(); got != code || strings.Count(p.err.String(), "\n") != lines {
		t.Fatalf("exit status %d, want %d and %d lines of complaint:\n%s%s", got, code, lines, &p.err, &p.out)
	}
}

// address returns an address that nothing else uses, and on Unix the folder of
// its socket file.
func address(t *testing.T) (addr, dir string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		return fmt.Sprintf("@localsocket-%d-%d", os.Getpid(), time.Now().UnixNano()), ""
	}
	dir = t.TempDir()
	return filepath.Join(dir, "socket"), dir
}

// isEmpty checks that a server left nothing in the folder of its socket file.
func isEmpty(t *testing.T, dir string) {
	t.Helper()
	if dir == "" {
		return
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// checkSide checks what one side printed, and returns the pid that it found at
// the other end, if it says one.
func checkSide(t *testing.T, side, other, out string) (pid string) {
	t.Helper()
	who := regexp.MustCompile(`(?m)^` + side + `: the ` + other + ` is (?:pid (\d+), )?user (\S.*)$`).FindStringSubmatch(out)
	if who == nil {
		t.Fatalf("the %s does not say who the %s is:\n%s", side, other, out)
	}
	for _, arrow := range []string{"->", "<-"} {
		if n := strings.Count(out, side+": "+arrow+" "); n != 4 {
			t.Errorf("%d lines %s of the %s, want 4:\n%s", n, arrow, side, out)
		}
	}
	return who[1]
}

func TestRunsItsOwnClientAndTalksToIt(t *testing.T) {
	if os.Getenv("IPC_TEST_EXEC") != "" {
		t.Skip("a program under an emulator cannot run itself")
	}
	p := start(t)
	p.ends(t, 0)
	out := p.out.String()
	server := checkSide(t, "client", "server", out)
	client := checkSide(t, "server", "client", out)
	if server != "" && server != fmt.Sprint(p.Process.Pid) {
		t.Errorf("the client found pid %s, the server is %d", server, p.Process.Pid)
	}
	if client != "" && client == server {
		t.Errorf("server and client are one process, %s", client)
	}
}

func TestServerAndClientStartedByHandTalk(t *testing.T) {
	addr, dir := address(t)
	server := start(t, "-listen", addr)
	client := start(t, "-dial", addr)
	for giveUp := time.Now().Add(30 * time.Second); ; { // until the server listens
		client.Wait()
		if !strings.HasPrefix(client.err.String(), "localsocket: dial ") {
			break
		}
		if time.Now().After(giveUp) {
			t.Fatalf("there is no server: %s", &client.err)
		}
		time.Sleep(10 * time.Millisecond)
		client = start(t, "-dial", addr)
	}
	client.ends(t, 0)
	server.ends(t, 0)
	pid := checkSide(t, "client", "server", client.out.String())
	if pid != "" && pid != fmt.Sprint(server.Process.Pid) {
		t.Errorf("the client found pid %s, the server is %d", pid, server.Process.Pid)
	}
	pid = checkSide(t, "server", "client", server.out.String())
	if pid != "" && pid != fmt.Sprint(client.Process.Pid) {
		t.Errorf("the server found pid %s, the client is %d", pid, client.Process.Pid)
	}
	isEmpty(t, dir)
}

func TestServerGivesUpWithoutClient(t *testing.T) {
	addr, dir := address(t)
	start(t, "-listen", addr, "-timeout", "50ms").ends(t, 1)
	isEmpty(t, dir)
}

func TestClientFailsWithoutServer(t *testing.T) {
	addr, _ := address(t)
	start(t, "-dial", addr).ends(t, 1)
}

func TestRefusesToBeBothSidesAtOnce(t *testing.T) {
	addr, _ := address(t)
	start(t, "-dial", addr, "-listen", addr).ends(t, 1)
	start(t, addr).ends(t, 1)
}
