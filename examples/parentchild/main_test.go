package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// beProgram makes the test binary run the program instead of the tests, so
// that there are processes to test without a toolchain at hand.
const beProgram = "PARENTCHILD_BE_PROGRAM"

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

// program prepares a run of the program.
func program(t *testing.T, args ...string) *process {
	t.Helper()
	if os.Getenv("IPC_TEST_EXEC") != "" {
		t.Skip("a program under an emulator cannot run itself")
	}
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience) // the watchdog
	p := &process{Cmd: exec.CommandContext(ctx, self, args...), t: t}
	p.WaitDelay = 2 * leaveTime
	p.Env = append(os.Environ(), beProgram+"=1", "GORACE=atexit_sleep_ms=0")
	p.Stdout, p.Stderr = &p.out, &p.err
	t.Cleanup(func() {
		cancel()
		if p.Process != nil && p.ProcessState == nil {
			p.Wait()
		}
	})
	return p
}

// ends waits for the process, and for its child, which has the same standard
// error. A failure is told in one line.
func (p *process) ends(status int) {
	p.t.Helper()
	if err := p.Wait(); errors.Is(err, exec.ErrWaitDelay) {
		p.t.Fatal("the child outlives its parent")
	}
	if got := p.ProcessState.ExitCode(); got != status {
		p.t.Fatalf("exit status %d, want %d: %s", got, status, &p.err)
	}
	if status != 0 && strings.Count(p.err.String(), "\n") != 1 {
		p.t.Fatalf("want one line of complaint, got %q", &p.err)
	}
}

func (p *process) runs(status int) {
	p.t.Helper()
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.ends(status)
}

// text returns n bytes that can be compressed, though not by much.
func text(n int) []byte {
	r := rand.New(rand.NewSource(1))
	block := make([]byte, 40<<10) // gzip looks back 32 KiB
	for i := range block {
		block[i] = "0123456789abcdef"[r.Intn(16)]
	}
	return bytes.Repeat(block, n/len(block)+1)[:n]
}

// holds checks that the gzip stream holds the data.
func holds(t *testing.T, compressed, data []byte) {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("of %d bytes %d come back, %v", len(data), len(got), err)
	}
}

// file makes a file of the data in a folder of its own.
func file(t *testing.T, data []byte) (dir, name string) {
	t.Helper()
	dir = t.TempDir()
	name = filepath.Join(dir, "input")
	if err := os.WriteFile(name, data, 0o640); err != nil {
		t.Fatal(err)
	}
	return dir, name
}

// has checks which files are in the folder.
func has(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if fmt.Sprint(names) != fmt.Sprint(want) {
		t.Errorf("in the folder are %q, want %q", names, want)
	}
}

func TestCompressesFiles(t *testing.T) {
	for _, data := range [][]byte{nil, text(1), text(100 << 10), text(1<<20 + 1), make([]byte, 2<<20)} {
		dir, in := file(t, data)
		out := filepath.Join(dir, "output.gz")
		p := program(t, "-o", out, in)
		p.runs(0)
		if p.out.Len() > 0 || p.err.Len() > 0 {
			t.Errorf("it says %q and %q", &p.out, &p.err)
		}
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		holds(t, got, data)
		has(t, dir, "input", "output.gz")
		if info, err := os.Stat(out); runtime.GOOS != "windows" && (err != nil || info.Mode().Perm() != 0o640) {
			t.Errorf("the mode is %v, %v", info.Mode(), err)
		}
	}
}

func TestCompressesStandardInputToStandardOutput(t *testing.T) {
	data := text(1 << 20)
	p := program(t)
	p.Stdin = bytes.NewReader(data)
	p.runs(0)
	holds(t, p.out.Bytes(), data)
}

func TestTellsTheProgress(t *testing.T) {
	data := text(3<<20 + 5)
	_, in := file(t, data)
	p := program(t, "-v", in)
	p.runs(0)
	var before progress
	lines := strings.Split(strings.TrimSpace(p.err.String()), "\n")
	for _, line := range lines {
		var now progress
		if _, err := fmt.Sscanf(line, "parentchild: %d bytes in, %d out", &now.In, &now.Out); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if now.In <= before.In || now.Out < before.Out {
			t.Errorf("after %+v comes %+v", before, now)
		}
		before = now
	}
	if before.In != int64(len(data)) || before.Out != int64(p.out.Len()) || len(lines) < 4 {
		t.Errorf("in %d lines, at last %+v of %d bytes in, %d out", len(lines), before, len(data), p.out.Len())
	}
}

func TestOutputIsReplacedWhenItIsComplete(t *testing.T) {
	data := text(1000)
	dir, in := file(t, data)
	out := filepath.Join(dir, "output.gz")
	if err := os.WriteFile(out, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	program(t, "-o", out, dir).runs(1) // a folder cannot be read
	if old, err := os.ReadFile(out); string(old) != "old" || err != nil {
		t.Errorf("a failure left %q, %v", old, err)
	}
	program(t, "-o", out, in).runs(0)
	compressed, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, compressed, data)
	has(t, dir, "input", "output.gz")
}

func TestFailuresLeaveNothing(t *testing.T) {
	dir, in := file(t, text(1000))
	out := filepath.Join(dir, "output.gz")
	for status, runs := range map[int][][]string{
		1: {
			{filepath.Join(dir, "missing")},
			{"-o", out, filepath.Join(dir, "missing")},
			{"-o", out, dir},
			{"-o", filepath.Join(dir, "missing", "output.gz"), in},
			{childCommand}, // nobody's child
		},
		2: {{in, in}},
	} {
		for _, args := range runs {
			program(t, args...).runs(status)
			has(t, dir, "input")
		}
	}
}

// A telltale keeps what a process says on its standard error, but for its
// progress, and signals the first of that.
type telltale struct {
	err     *bytes.Buffer
	begun   chan struct{}
	reports int
}

func (w *telltale) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) { // the program writes whole ones
		if !bytes.HasSuffix(line, []byte(" out\n")) {
			w.err.Write(line)
		} else if w.reports++; w.reports == 1 {
			close(w.begun)
		}
	}
	return len(p), nil
}

// underWay starts a run whose input does not end, and returns when a part of it
// is compressed.
func underWay(t *testing.T, out string) *process {
	t.Helper()
	p := program(t, "-v", "-o", out)
	said := &telltale{err: &p.err, begun: make(chan struct{})}
	p.Stderr = said
	in, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	flooded := make(chan struct{})
	t.Cleanup(func() { in.Close(); <-flooded })
	go func() {
		defer close(flooded)
		for data := text(64 << 10); ; {
			if _, err := in.Write(data); err != nil {
				return
			}
		}
	}()
	select {
	case <-said.begun:
	case <-time.After(patience):
		t.Fatal("nothing is compressed")
	}
	return p
}

func TestInterruptLeavesNothing(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be interrupted from outside here")
	}
	dir := t.TempDir()
	out := filepath.Join(dir, "output.gz")
	if err := os.WriteFile(out, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := underWay(t, out)
	if err := p.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	p.ends(1)
	if got := p.err.String(); got != "parentchild: interrupted\n" {
		t.Errorf("it says %q", got)
	}
	has(t, dir, "output.gz")
	if old, err := os.ReadFile(out); string(old) != "old" || err != nil {
		t.Errorf("the output became %q, %v", old, err)
	}
}

func TestCancelLeavesNothing(t *testing.T) {
	if os.Getenv("IPC_TEST_EXEC") != "" {
		t.Skip("a program under an emulator cannot run itself")
	}
	t.Setenv(beProgram, "1") // for the child
	dir, in := file(t, text(4<<20))
	for range 3 {
		goroutines := runtime.NumGoroutine()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		reports := 0
		err := run(ctx, in, filepath.Join(dir, "output.gz"), func(progress) {
			if reports++; reports == 2 {
				cancel()
			}
		})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("after %d reports it ends with %v", reports, err)
		}
		has(t, dir, "input")
		for end := time.Now().Add(patience); runtime.NumGoroutine() > goroutines; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d goroutines became %d", goroutines, runtime.NumGoroutine())
			}
		}
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	if err := run(canceled, in, filepath.Join(dir, "output.gz"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled before, it ends with %v", err)
	}
	has(t, dir, "input")
}

func TestKilledParentLeavesNoChild(t *testing.T) {
	p := underWay(t, filepath.Join(t.TempDir(), "output.gz"))
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); errors.Is(err, exec.ErrWaitDelay) {
		t.Error("the child outlives its parent")
	}
}

func TestKilledChildIsAnError(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only here the child is known to be found")
	}
	dir := t.TempDir()
	p := underWay(t, filepath.Join(dir, "output.gz"))
	child, err := os.FindProcess(childOf(t, p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Kill(); err != nil {
		t.Fatal(err)
	}
	p.ends(1)
	if got := p.err.String(); got != "parentchild: the child: signal: killed\n" {
		t.Errorf("it says %q", got)
	}
	has(t, dir)
}

// childOf returns the process whose parent that is: see proc_pid_stat(5).
func childOf(t *testing.T, parent int) int {
	t.Helper()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		stat, _ := os.ReadFile(name)
		if _, rest, ok := strings.Cut(string(stat), ") "); ok && strings.Fields(rest)[1] == strconv.Itoa(parent) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Skip("/proc does not show the child")
	return 0
}
