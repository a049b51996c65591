//go:build unix || windows

package kit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// A child is this program run again, with its role in the environment. It talks
// in lines: what it says on standard output the test hears, and the other way
// round. It ends when its standard input does.
const (
	ChildRole = "IPC_TEST_CHILD"
	ChildExec = "IPC_TEST_EXEC" // a command to run this program with: "qemu-aarch64-static"
)

// Roles is what a child can be. A file of tests adds its own. A role returns an error to fail the test.
var Roles = map[string]func(p *Parent, args []string) error{
	"serve":   childServes,
	"race":    childRaces,
	"connect": ChildConnects,
}

// A Parent is the test as its child sees it.
type Parent struct{ in *bufio.Scanner }

// Say tells the test a line.
func (p *Parent) Say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// Hear returns the next line, or "" when the test has no more to say.
func (p *Parent) Hear() string {
	p.in.Scan()
	return p.in.Text()
}

// asChild is run first in a child; a system's file may set it.
var asChild func() error

func childMain(role string, args []string) int {
	time.AfterFunc(Patience, func() { panic("the child " + role + " hangs\n\n" + Stacks()) })
	err := fmt.Errorf("no such role: %s", role)
	if play := Roles[role]; play != nil {
		err = nil
		if asChild != nil {
			err = asChild()
		}
		if err == nil {
			err = play(&Parent{bufio.NewScanner(os.Stdin)}, args)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Sure returns v, or ends the child, which fails its test.
func Sure[V any](v V, err error) V {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return v
}

// Sure2 is Sure for two values.
func Sure2[A, B any](a A, b B, err error) (A, B) { return Sure(a, err), b }

// A Child is a child process as the test sees it.
type Child struct {
	t      *testing.T
	Cmd    *exec.Cmd
	In     io.WriteCloser
	Out    *bufio.Reader
	Errors bytes.Buffer // what it wrote to standard error; read after Wait
	Ended  bool
}

// StartChild starts a child in the role.
func StartChild(t *testing.T, role string, args ...string) *Child {
	t.Helper()
	return StartChildWith(t, exec.Cmd{}, role, args...)
}

// StartChildWith starts a child with the ExtraFiles and the SysProcAttr, and more
// in its environment from the Env, of cmd.
func StartChildWith(t *testing.T, with exec.Cmd, role string, args ...string) *Child {
	t.Helper()
	c := &Child{t: t, Cmd: Rerun(role, args...)}
	c.Cmd.Env = append(append(c.Cmd.Env, goRace()), with.Env...)
	c.Cmd.ExtraFiles, c.Cmd.SysProcAttr = with.ExtraFiles, with.SysProcAttr
	c.Cmd.Stderr = &c.Errors
	var err error
	c.In, err = c.Cmd.StdinPipe()
	Must(t, err)
	out, err := c.Cmd.StdoutPipe()
	Must(t, err)
	c.Out = bufio.NewReader(out)
	Must(t, c.Cmd.Start())
	t.Cleanup(c.Kill)
	return c
}

// StartServer starts a child that echoes what it is sent at the address.
func StartServer(t *testing.T, addr ipc.Addr) *Child {
	t.Helper()
	c := StartChild(t, "serve", addr.String())
	c.MustSay("serving")
	return c
}

// thisProgram is the file of this program, looked up before a test goes to another
// folder.
var thisProgram = func() string {
	if program, err := os.Executable(); err == nil {
		return program
	}
	program, _ := exec.LookPath(os.Args[0])
	program, _ = filepath.Abs(program)
	return program
}()

// Rerun returns the command for this program in another role.
func Rerun(role string, args ...string) *exec.Cmd {
	command := append(strings.Fields(os.Getenv(ChildExec)), thisProgram)
	cmd := exec.Command(command[0], append(command[1:], args...)...)
	cmd.Env = append(os.Environ(), ChildRole+"="+role)
	return cmd
}

// UnderEmulation reports whether a program stands between this one and the kernel,
// which it cannot serve in all that the kernel does: see qemu(1).
func UnderEmulation() bool {
	with := strings.Fields(os.Getenv(ChildExec))
	return len(with) > 0 && strings.HasPrefix(filepath.Base(with[0]), "qemu-")
}

// goRace keeps the race detector from making every child wait a second at its end.
func goRace() string { return "GORACE=" + os.Getenv("GORACE") + " atexit_sleep_ms=0" }

// PID returns the number of the process.
func (c *Child) PID() int { return c.Cmd.Process.Pid }

// Say tells the child a line.
func (c *Child) Say(line string) {
	c.t.Helper()
	_, err := io.WriteString(c.In, line+"\n")
	Must(c.t, err)
}

// Hear returns the next line of the child, which must say something.
func (c *Child) Hear() string {
	c.t.Helper()
	line, err := c.Out.ReadString('\n')
	if err != nil {
		c.Kill()
		c.t.Fatalf("the child says no more: %v: %s", err, c.Errors.Bytes())
	}
	return strings.TrimSpace(line)
}

// MustSay fails the test unless the next line of the child is the one wanted.
func (c *Child) MustSay(want string) {
	c.t.Helper()
	if got := c.Hear(); got != want {
		c.t.Fatalf("the child says %q, want %q", got, want)
	}
}

// End tells the child that there is no more to do; it must find all in order.
func (c *Child) End() {
	c.t.Helper()
	c.In.Close()
	c.Ended = true
	if err := c.Cmd.Wait(); err != nil {
		c.t.Fatalf("the child fails: %v: %s", err, c.Errors.Bytes())
	}
}

// Kill ends the child as a crash or kill -9 does.
func (c *Child) Kill() {
	if !c.Ended {
		c.Ended = true
		c.Cmd.Process.Kill() // before its input ends, or it might end in good order
		c.In.Close()
		c.Cmd.Wait()
	}
}

// childServes listens at the address and echoes what each client sends, until it
// is told to end.
func childServes(p *Parent, args []string) error {
	addr := Sure(ipc.ParseAddr(args[0]))
	var lc ipc.ListenConfig
	if slices.Contains(args, "everyone") {
		lc.Access = ipc.Everyone
	}
	l := Sure(lc.Listen(addr))
	serving := ServeEach(l, func(c *ipc.Conn) error {
		go func() { io.Copy(c, c); c.Close() }()
		return nil
	})
	p.Say("serving")
	p.Hear()
	return errors.Join(l.Close(), <-serving)
}

// childRaces listens at every address it is told, at the word, and says whether
// it got it. It serves until the next word.
func childRaces(p *Parent, args []string) error {
	addr := Sure(ipc.ParseAddr(args[0]))
	p.Say("ready")
	for p.Hear() == "go" {
		l, err := ipc.Listen(addr)
		switch {
		case err == nil:
			p.Say("won")
		case errors.Is(err, ipc.ErrAddrInUse):
			p.Say("lost")
		default:
			p.Say("failed: %v", err)
		}
		p.Hear()
		if l != nil {
			if err := l.Close(); err != nil {
				return err
			}
		}
		p.Say("ready")
	}
	return nil
}

// ChildConnects dials the address, says how that went, and stays until the test
// has no more to say.
func ChildConnects(p *Parent, args []string) error {
	return ChildGreets(p, args, func(d ipc.Dialer, addr ipc.Addr) (End, error) { return d.Dial(addr) })
}

// ChildGreets is ChildConnects with another way to dial.
func ChildGreets(p *Parent, args []string, dial func(d ipc.Dialer, addr ipc.Addr) (End, error)) error {
	addr := Sure(ipc.ParseAddr(args[0]))
	d := ipc.Dialer{Timeout: Soon}
	if slices.Contains(args, "everyone") {
		d.Access = ipc.Everyone
	}
	c, err := dial(d, addr)
	switch {
	case errors.Is(err, ipc.ErrUntrusted):
		p.Say("untrusted")
		return nil
	case errors.Is(err, os.ErrPermission):
		p.Say("permission denied")
		return nil
	case err != nil:
		return err
	}
	defer c.Close()
	io.WriteString(c, "hello from a child") // a server that refuses may be gone already
	greeting := make([]byte, len("welcome"))
	if _, err := io.ReadFull(c, greeting); err != nil {
		p.Say("turned away")
		return nil
	}
	p.Say("%s", greeting)
	p.Hear()
	return nil
}

// An Heir is a child to be, and the ends that it will be given.
type Heir struct {
	t   *testing.T
	Cmd exec.Cmd
}

// NewHeir returns a child to be that has no ends yet.
func NewHeir(t *testing.T) *Heir { return &Heir{t: t, Cmd: exec.Cmd{Env: []string{}}} }

// Gets gives it the end under the name.
func (h *Heir) Gets(name string, end ipc.Inheritable) {
	h.t.Helper()
	Must(h.t, ipc.Inherit(&h.Cmd, name, end))
}

// Start starts it in the role.
func (h *Heir) Start(role string, args ...string) *Child {
	h.t.Helper()
	return StartChildWith(h.t, h.Cmd, role, args...)
}

// Again is Rerun for a child that gives its standard streams to a child of its own.
func Again(role string, args ...string) *exec.Cmd {
	cmd := Rerun(role, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

// Outlive waits until everything that has the child's standard output, also a
// child of it, has ended.
func (c *Child) Outlive() {
	c.t.Helper()
	c.In.Close()
	if rest, err := io.ReadAll(c.Out); len(rest) > 0 || err != nil {
		c.t.Errorf("the child goes on to say %q, %v", rest, err)
	}
	c.End()
}
