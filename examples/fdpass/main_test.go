package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// beProgram makes the test binary run the program instead of the tests, so
// that there are processes to test without a toolchain at hand. The child does
// not inherit it.
const beProgram = "FDPASS_BE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" || len(os.Args) > 1 && os.Args[1] == childCommand {
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
	p.WaitDelay = 10 * time.Second
	p.Env = append(os.Environ(), beProgram+"=1", "GORACE=atexit_sleep_ms=0")
	p.Stdout, p.Stderr = &p.out, &p.err
	t.Cleanup(func() {
		if cancel(); p.Process != nil && p.ProcessState == nil {
			p.Wait()
		}
	})
	return p
}

func (p *process) start() *process {
	p.t.Helper()
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
	return p
}

// ends waits for the process, and for its child, which has the same standard
// error. It returns what they said there, but for that the child is not confined.
func (p *process) ends(status int) (complaints []string) {
	p.t.Helper()
	if err := p.Wait(); errors.Is(err, exec.ErrWaitDelay) {
		p.t.Fatal("the child outlives its parent")
	}
	if got := p.ProcessState.ExitCode(); got != status {
		p.t.Fatalf("exit status %d, want %d: %s", got, status, &p.err)
	}
	for line := range strings.Lines(p.err.String()) {
		if !strings.HasPrefix(line, "fdpass: the child is not confined: ") {
			complaints = append(complaints, strings.TrimSpace(line))
		}
	}
	return complaints
}

// folder makes a folder of files, and a secret beside it.
func folder(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	filesArePassed(t)
	top := t.TempDir()
	dir = filepath.Join(top, "folder")
	write := func(name, data string) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(data), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(top, "secret"), "secret")
	for name, data := range files {
		write(filepath.Join(dir, filepath.FromSlash(name)), data)
	}
	return dir
}

// filesArePassed skips the test where no files are.
func filesArePassed(t *testing.T) {
	t.Helper()
	a, b, err := ipc.MsgPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	if err := a.SendFiles(os.Stdin); errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("this system passes no files: %v", err)
	}
}

func line(name, data string) string {
	return fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte(data)), name)
}

func TestChildReadsTheFilesThatItsParentOpens(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1<<17)
	dir := folder(t, map[string]string{"empty": "", "a": "hello\n", "sub/folder/big": big, "a name\u2603": "x"})
	p := program(t, dir, "empty", "sub/folder/big", "a", "a", "sub/../a", "a name\u2603").start()
	if said := p.ends(0); len(said) > 0 {
		t.Errorf("it says %q", said)
	}
	want := line("empty", "") + line("sub/folder/big", big) + line("a", "hello\n") + line("a", "hello\n") + line("sub/../a", "hello\n") + line("a name\u2603", "x")
	if got := p.out.String(); got != want {
		t.Errorf("it prints\n%swant\n%s", got, want)
	}
}

func TestWhatThePolicyForbidsIsRefused(t *testing.T) {
	dir := folder(t, map[string]string{"a": "hello\n", "sub/b": "b"})
	secret := filepath.Join(filepath.Dir(dir), "secret")
	forbidden := map[string]string{ // and a part of the reason
		"../secret":                       "escapes",
		"sub/../../secret":                "escapes",
		secret:                            "escapes",
		"missing":                         "missing",
		"a/b":                             "a/b",
		"sub":                             "not a regular file",
		".":                               "not a regular file",
		"line\nbreak":                     `line\nbreak`,
		strings.Repeat("x", maxMessage+1): "message",
	}
	for name, target := range map[string]string{"out": secret, "up": "../secret", "around": "../folder/../secret", "in": "sub/b"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Logf("without symbolic links: %v", err)
		} else if name != "in" {
			forbidden[name] = "escapes"
			if runtime.GOOS == "windows" {
				forbidden[name] = name // there is more than one reason not to follow it
			}
		}
	}
	args, reasons := []string{dir}, []string{}
	for name, reason := range forbidden {
		args, reasons = append(args, name, "a"), append(reasons, reason)
	}
	p := program(t, args...).start()
	said := p.ends(1)
	if len(said) != len(reasons) {
		t.Fatalf("it says %q, want a line for each of %q", said, reasons)
	}
	for i, reason := range reasons {
		if !strings.HasPrefix(said[i], "fdpass: ") || !strings.Contains(said[i], reason) {
			t.Errorf("%.50q is refused as %.200q, not as %q", args[1+2*i], said[i], reason)
		}
	}
	if got := p.out.String(); got != strings.Repeat(line("a", "hello\n"), len(reasons)) {
		t.Errorf("what is allowed is not read: %q", got)
	}
	if _, err := os.Lstat(filepath.Join(dir, "in")); err == nil {
		if p := program(t, dir, "in").start(); len(p.ends(0)) > 0 || p.out.String() != line("in", "b") {
			t.Errorf("a link that leads to a file inside: %q", &p.out)
		}
	}
}

// serveHere makes this process the parent, and returns the child's end.
func serveHere(t *testing.T, dir string) (child *ipc.MsgConn, served chan error) {
	t.Helper()
	dog := time.AfterFunc(2*patience, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { dog.Stop() })
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	control, child, err := ipc.MsgPair()
	if err != nil {
		t.Fatal(err)
	}
	child.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { child.Close() })
	served = make(chan error, 1)
	go func() {
		err := serve(control, root, func(string) {})
		served <- errors.Join(err, control.Close(), root.Close())
	}()
	return child, served
}

func send(t *testing.T, child *ipc.MsgConn, message string) {
	t.Helper()
	if err := child.Send([]byte(message)); err != nil {
		t.Fatal(err)
	}
}

// A child that does not keep to the conversation gets files that the policy
// allows, and nothing else, and does the parent no harm.
func TestHostileChildIsServedByTheRules(t *testing.T) {
	dir := folder(t, map[string]string{"a": "hello\n"})
	child, served := serveHere(t, dir)
	send(t, child, "confined")
	for _, name := range []string{
		"", ".", "/", "//", "..", strings.Repeat("../", 1000) + "secret", `..\secret`,
		"\x00", "a\x00b", "\xff\xfe", "missing",
		strings.Repeat("a", min(50_000, child.MaxMessage())),
	} {
		send(t, child, name)
		if files, err := child.RecvFiles(1); !errors.Is(err, ipc.ErrNoFiles) {
			t.Fatalf("for %.20q come %v, %v", name, files, err)
		}
		if reason, err := child.RecvAppend(nil); err != nil || len(reason) == 0 {
			t.Errorf("%.20q is refused as %q, %v", name, reason, err)
		}
	}
	for range 20 { // requests whose answers are not waited for
		send(t, child, "a")
	}
	child.Close()
	if err := <-served; err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the parent ends with %v", err)
	}

	child, served = serveHere(t, dir)
	child.Close()
	if err := <-served; err == nil {
		t.Error("a child that says nothing is no failure")
	}
}

func TestPassedFilesCannotBeWritten(t *testing.T) {
	dir := folder(t, map[string]string{"a": "hello\n"})
	child, served := serveHere(t, dir)
	send(t, child, "confined")
	f, err := request(child, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err == nil {
		t.Error("the child can write")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("the child can truncate")
	}
	if data, err := io.ReadAll(f); err != nil || string(data) != "hello\n" {
		t.Errorf("the child reads %q, %v", data, err)
	}
	child.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestFailuresAreTold(t *testing.T) {
	dir := folder(t, nil)
	for status, runs := range map[int][][]string{
		1: {{filepath.Join(dir, "missing"), "a"}, {filepath.Join(filepath.Dir(dir), "secret"), "a"}},
		2: {{}, {dir}},
	} {
		for _, args := range runs {
			if said := program(t, args...).start().ends(status); len(said) != 1 {
				t.Errorf("%q says %q, want one line", args, said)
			}
		}
	}
	// Nobody's child.
	if said := program(t, childCommand, "a").start().ends(1); len(said) != 1 {
		t.Errorf("without a parent the child says %q", said)
	}
}

// underWay starts a run that takes very long, and returns when the child reads.
func underWay(t *testing.T) *process {
	t.Helper()
	dir := folder(t, map[string]string{"a": "x", "long": ""})
	if err := os.Truncate(filepath.Join(dir, "long"), 1<<31-1); err != nil {
		t.Skipf("no sparse file: %v", err)
	}
	p := program(t, append([]string{dir, "a"}, strings.Fields(strings.Repeat("long ", 1000))...)...)
	p.Stdout = nil
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.start()
	if _, err := io.ReadFull(out, make([]byte, len(line("a", "x")))); err != nil {
		t.Fatalf("the first checksum: %v", err)
	}
	return p
}

func TestInterruptLeavesNoChild(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be interrupted from outside here")
	}
	p := underWay(t)
	if err := p.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if said := p.ends(1); fmt.Sprint(said) != "[fdpass: interrupted]" {
		t.Errorf("it says %q", said)
	}
}
