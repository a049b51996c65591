package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// beProgram makes the test binary run the program instead of the tests, so
// that there are processes to test without a toolchain at hand.
const beProgram = "SINGLE_BE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience is when the watchdog ends a process.
const patience = time.Minute

// command is one start of the program, in a folder.
func command(t *testing.T, addr, dir string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	// IPC_TEST_EXEC is the emulator that runs the binaries of this architecture.
	argv := append(strings.Fields(os.Getenv("IPC_TEST_EXEC")), self, "-addr", addr)
	argv = append(argv, args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), beProgram+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Dir = dir
	return cmd
}

// address returns one that nobody else uses. Where it is a file, that must not be left.
func address(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("single-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	if runtime.GOOS != "windows" && runtime.GOOS != "linux" {
		t.Cleanup(func() {
			if _, err := os.Lstat("/tmp/" + name); err == nil {
				t.Error("a socket file is left")
			}
		})
	}
	return "@" + name
}

// A process is the one that runs.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	out *bufio.Reader
	err bytes.Buffer
}

func start(t *testing.T, addr, dir string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: command(t, addr, dir, args...)}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out, p.cmd.Stderr = bufio.NewReader(out), &p.err
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dog := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	t.Cleanup(func() { dog.Stop(); p.cmd.Process.Kill() })
	return p
}

// opens waits until it says that it opens the file.
func (p *process) opens(path string) {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if strings.TrimRight(line, "\r\n") != "opened "+path {
		p.t.Fatalf("it says %q, %v, want opened %s (%s)", line, err, path, &p.err)
	}
}

// ends waits for its end, which must be a good one.
func (p *process) ends() {
	p.t.Helper()
	if line, err := p.out.ReadString('\n'); line != "" {
		p.t.Errorf("it goes on to say %q, %v", line, err)
	}
	if err := p.cmd.Wait(); err != nil || p.err.Len() > 0 {
		p.t.Errorf("it ends with %v: %s", err, &p.err)
	}
}

// runs starts the program once more, which must end and say nothing.
func runs(t *testing.T, addr, dir string, args ...string) {
	t.Helper()
	if out, err := command(t, addr, dir, args...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%q ends with %v and says %q", args, err, out)
	}
}

func TestSecondStartHandsItsArgumentsOver(t *testing.T) {
	addr, here, there := address(t), t.TempDir(), t.TempDir()
	p := start(t, addr, here, "one", filepath.Join(there, "two"))
	p.opens(filepath.Join(here, "one"))
	p.opens(filepath.Join(there, "two"))
	runs(t, addr, there, "three", "four with a space", filepath.Join(here, "five"))
	p.opens(filepath.Join(there, "three"))
	p.opens(filepath.Join(there, "four with a space"))
	p.opens(filepath.Join(here, "five"))
	runs(t, addr, here)               // nothing to open
	long := strings.Repeat("x", 1000) // what a pipe holds on every system, three times
	runs(t, addr, here, long, long, long)
	for range 3 {
		p.opens(filepath.Join(here, long))
	}
	runs(t, addr, here, "-quit")
	p.ends()
}

func TestNothingRunsAfterTheEnd(t *testing.T) {
	addr, dir := address(t), t.TempDir()
	out, err := command(t, addr, dir, "-quit").CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("nothing runs")) {
		t.Errorf("it ends with %v and says %q", err, out)
	}
	for _, name := range []string{"a", "b"} { // one after the other
		p := start(t, addr, dir, name)
		p.opens(filepath.Join(dir, name))
		runs(t, addr, dir, "-quit")
		p.ends()
	}
}

// A crash leaves nothing that would keep the next one from running.
func TestNextStartRunsAfterACrash(t *testing.T) {
	addr, dir := address(t), t.TempDir()
	p := start(t, addr, dir, "a")
	p.opens(filepath.Join(dir, "a"))
	p.cmd.Process.Kill()
	p.cmd.Wait()
	p = start(t, addr, dir, "b")
	p.opens(filepath.Join(dir, "b"))
	runs(t, addr, dir, "-quit")
	p.ends()
}

// Of many that start at once one runs, and every file is opened once.
func TestManyStartsAtOnceAreOneProcess(t *testing.T) {
	addr, dir := address(t), t.TempDir()
	const starts = 8
	var mu sync.Mutex
	var out bytes.Buffer // of all of them
	var started sync.WaitGroup
	for i := range starts {
		cmd := command(t, addr, dir, fmt.Sprint("file", i))
		started.Go(func() {
			said, err := cmd.CombinedOutput() // of the one that runs, until the end
			mu.Lock()
			defer mu.Unlock()
			out.Write(said)
			if err != nil {
				t.Errorf("a start ends with %v", err)
			}
		})
	}
	done := make(chan struct{})
	go func() { started.Wait(); close(done) }()
	dog := time.After(patience)
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-dog:
			t.Fatal("they do not end")
		case <-time.After(50 * time.Millisecond):
			command(t, addr, dir, "-quit").Run() // who has not started yet runs next
		}
	}
	for i := range starts {
		want := "opened " + filepath.Join(dir, fmt.Sprint("file", i))
		if n := strings.Count(strings.ReplaceAll(out.String(), "\r", ""), want+"\n"); n != 1 {
			t.Errorf("file %d is opened %d times:\n%s", i, n, &out)
		}
	}
}
