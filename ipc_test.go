//go:build unix || windows

// The tests of this file hold on every system that the package supports, and
// see the package as its users do. What only one system has is in the files of
// that system. A story that holds for streams, for messages and for pipes is told
// once: see overEachEnd and overEachServer.
//
// Every test begins with story, which ends the process with all stacks if the
// test hangs, and fails it if it leaves a goroutine or a descriptor behind.
// Addresses come from pathAddr and nameAddr, which fail the test if a file is
// left. Child processes are this very program, see startChild.
package ipc_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// ---------------------------------------------------------------------------
// The frame of every test

const (
	patience = 60 * time.Second // for a whole test, and for a child's life
	soon     = 20 * time.Second // for a condition that is about to hold
	brief    = 30 * time.Millisecond

	tooMuch = 16 << 20 // more than any connection holds
)

func TestMain(m *testing.M) {
	if role := os.Getenv(childRole); role != "" {
		os.Exit(childMain(role, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// countDescriptors returns how many descriptors or handles the process has. A
// system's test file sets it; where it is nil they are not counted.
var countDescriptors func() int

func openDescriptors() int {
	if countDescriptors == nil {
		return 0
	}
	return countDescriptors()
}

// story begins a test.
func story(t *testing.T) {
	t.Helper()
	longStory(t, patience)
}

// longStory is story for a test that does many things that may each take long, such
// as starting processes.
func longStory(t *testing.T, patience time.Duration) {
	t.Helper()
	warmUp()
	dog := time.AfterFunc(patience, func() {
		panic(t.Name() + " hangs\n\n" + stacks())
	})
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors()
	t.Cleanup(func() {
		defer dog.Stop()
		if t.Failed() {
			return
		}
		if !holdsSoon(func() bool { return runtime.NumGoroutine() <= goroutines }) {
			t.Errorf("%d goroutines at the start, %d at the end\n\n%s", goroutines, runtime.NumGoroutine(), stacks())
		}
		if !holdsSoon(func() bool { return openDescriptors() <= descriptors }) {
			t.Errorf("%d descriptors at the start, %d at the end", descriptors, openDescriptors())
		}
	})
}

// warmUp lets the runtime open the descriptors that it keeps for good.
var warmUp = sync.OnceFunc(func() {
	if a, b, err := ipc.Pair(); err == nil {
		a.SetReadDeadline(time.Now().Add(time.Millisecond))
		a.Read(make([]byte, 1))
		a.Close()
		b.Close()
	}
})

// notEmulated skips the test under an emulator, which cannot be started by another user
// or in another namespace.
func notEmulated(t *testing.T) {
	t.Helper()
	if os.Getenv("IPC_TEST_EXEC") != "" {
		t.Skip("the emulator cannot be started by another user or in another namespace")
	}
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

func holdsSoon(condition func() bool) bool {
	for end := time.Now().Add(soon); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	if !holdsSoon(condition) {
		t.Fatalf("still not so: %s\n\n%s", what, stacks())
	}
}

// awaitParked returns when n goroutines wait, at rest, inside a function of the
// package, named as in a stack trace: "(*Conn).Read".
func awaitParked(t *testing.T, function string, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d goroutines wait in %s", n, function), func() bool {
		parked := 0
		for g := range strings.SplitSeq(stacks(), "\n\n") {
			state, frames, _ := strings.Cut(g, "\n")
			awake := strings.Contains(state, "[runn") || // running, runnable
				runtime.GOOS != "windows" && strings.Contains(state, "[syscall")
			if !awake && strings.Contains(frames, "/ipc."+function+"(") {
				parked++
			}
		}
		return parked >= n
	})
}

// underRace reports whether the race detector is at work: it allocates.
func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// begin runs f in a goroutine; the channel delivers its error once.
func begin(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// beginRead waits in a goroutine for something to read.
func beginRead(r io.Reader) <-chan error {
	return begin(func() error { _, err := r.Read(make([]byte, 1)); return err })
}

// later makes an end in a goroutine, because that may have to wait; the function
// that it returns waits for it.
func later[C io.Closer](t *testing.T, do func() (C, error)) (await func() C) {
	var c C
	done := begin(func() (err error) { c, err = do(); return err })
	return func() C {
		t.Helper()
		err := <-done
		return kept(t, c, err)
	}
}

// kept returns an end that the test has made, which is closed when the test ends.
func kept[C io.Closer](t *testing.T, c C, err error) C {
	t.Helper()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// repeatedly does f in a goroutine, over and over until it is stopped or fails.
func repeatedly(f func() error) (stop func() error) {
	quit := make(chan struct{})
	done := begin(func() error {
		for {
			select {
			case <-quit:
				return nil
			default:
			}
			if err := f(); err != nil {
				return err
			}
		}
	})
	return func() error { close(quit); return <-done }
}

// leavesNothing fails the test if a thing done many times leaves something behind.
func leavesNothing(t *testing.T, rounds int, round func()) {
	t.Helper()
	round()
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors()
	end := time.Now().Add(patience / 2) // a slow machine makes fewer rounds
	for n := 0; n < rounds && time.Now().Before(end); n++ {
		round()
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
	if now := openDescriptors(); now > descriptors {
		t.Errorf("%d descriptors became %d in %d rounds", descriptors, now, rounds)
	}
}

// ---------------------------------------------------------------------------
// Addresses for tests

// unique returns a name that no other test and no other process uses.
func unique() string {
	return fmt.Sprintf("ipc-test-%d-%d-%s", os.Getpid(), uniques.Add(1), strconv.FormatInt(time.Now().UnixNano(), 36))
}

var uniques atomic.Int64

// tempDir returns a folder in which the test must leave no file.
func tempDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	leavesNoFiles(t, dir)
	return dir
}

func leavesNoFiles(t *testing.T, dir string) {
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		must(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				t.Errorf("the test leaves %s behind", path)
			}
			return err
		}))
	})
}

// pathAddr returns an address made with Path where nothing is.
func pathAddr(t *testing.T) ipc.Addr {
	t.Helper()
	if runtime.GOOS == "windows" {
		return ipc.Path(`\\.\pipe\` + unique())
	}
	return ipc.Path(filepath.Join(tempDir(t), "socket"))
}

// nameAddr returns an address made with Name where nothing is.
func nameAddr(t *testing.T) ipc.Addr {
	t.Helper()
	name := unique()
	if runtime.GOOS != "windows" {
		t.Cleanup(func() {
			if left, _ := filepath.Glob("/tmp/" + name + "*"); len(left) > 0 && !t.Failed() {
				t.Errorf("the test leaves %s behind", left)
			}
		})
	}
	return ipc.Name(name)
}

// overEachAddr tells a story twice: over a path and over a name.
func overEachAddr(t *testing.T, tell func(t *testing.T, addr ipc.Addr)) {
	t.Run("Path", func(t *testing.T) { story(t); tell(t, pathAddr(t)) })
	t.Run("Name", func(t *testing.T) { story(t); tell(t, nameAddr(t)) })
}

// ---------------------------------------------------------------------------
// Words that the stories are told in

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// matches fails the test unless err matches every target.
func matches(t *testing.T, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Fatalf("error is %v, want one that matches %v", err, target)
		}
	}
}

// timedOut fails the test unless err is what a passed deadline gives.
func timedOut(t *testing.T, err error) {
	t.Helper()
	matches(t, err, os.ErrDeadlineExceeded)
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("%v is not a net.Error that says Timeout", err)
	}
}

func listen(t *testing.T, addr ipc.Addr) *ipc.Listener {
	t.Helper()
	return listenWith(t, ipc.ListenConfig{}, addr)
}

func listenWith(t *testing.T, lc ipc.ListenConfig, addr ipc.Addr) *ipc.Listener {
	t.Helper()
	l, err := lc.Listen(addr)
	return kept(t, l, err)
}

func dial(t *testing.T, addr net.Addr) *ipc.Conn {
	t.Helper()
	c, err := ipc.Dial(addr.(ipc.Addr))
	return kept(t, c, err)
}

func accept(t *testing.T, l *ipc.Listener) *ipc.Conn {
	t.Helper()
	c, err := l.AcceptConn()
	return kept(t, c, err)
}

// connect returns both ends of a new connection to the listener.
func connect(t *testing.T, l *ipc.Listener) (client, server *ipc.Conn) {
	t.Helper()
	return dial(t, l.Addr()), accept(t, l)
}

func pair(t *testing.T) (a, b *ipc.Conn) {
	t.Helper()
	a, b, err := ipc.Pair()
	return kept(t, a, err), kept(t, b, err)
}

func send(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if n, err := io.WriteString(w, text); err != nil || n != len(text) {
		t.Fatalf("write: %d, %v", n, err)
	}
}

// expect reads the text; from an end of messages it is one message.
func expect(t *testing.T, r io.Reader, text string) {
	t.Helper()
	read, got := io.ReadFull, make([]byte, len(text))
	if _, ok := r.(messenger); ok {
		read, got = io.Reader.Read, make([]byte, len(text)+10) // with room for more
	}
	if n, err := read(r, got); err != nil || string(got[:n]) != text {
		t.Fatalf("read %q, %v; want %q", got[:n], err, text)
	}
}

func expectEOF(t *testing.T, r io.Reader) {
	t.Helper()
	if m, ok := r.(messenger); ok {
		expectMsgEOF(t, m)
	}
	if n, err := r.Read(make([]byte, 16)); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v; want io.EOF itself", n, err)
	}
}

// talk proves that two ends are connected to each other.
func talk(t *testing.T, a, b io.ReadWriter) {
	t.Helper()
	send(t, a, "ping")
	expect(t, b, "ping")
	send(t, b, "pong")
	expect(t, a, "pong")
}

// talkToEcho proves that an echo is at the other end.
func talkToEcho(t *testing.T, c io.ReadWriter) {
	t.Helper()
	send(t, c, "is there an echo?")
	expect(t, c, "is there an echo?")
}

// serves proves that the listener is the one that clients of addr reach.
func serves(t *testing.T, l *ipc.Listener, addr ipc.Addr) {
	t.Helper()
	client := dial(t, addr)
	server := accept(t, l)
	talk(t, client, server)
	must(t, client.Close())
	must(t, server.Close())
}

// serveEach serves each client whom the listener admits until that is closed.
func serveEach(l *ipc.Listener, serve func(c *ipc.Conn) error) <-chan error {
	return begin(func() error {
		for c, err := range l.Conns() {
			if err == nil {
				err = serve(c)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func welcomeAll(l *ipc.Listener) <-chan error {
	return serveEach(l, func(c *ipc.Conn) error {
		_, err := io.WriteString(c, "welcome")
		return errors.Join(err, c.Close())
	})
}

// fill connects clients until the listener has no room for one more.
func fill(t *testing.T, addr ipc.Addr) (waiting []*ipc.Conn) {
	t.Helper()
	for refused := 0; refused < 2; { // one could be the fault of a busy machine
		c, err := ipc.Dialer{Timeout: 50 * time.Millisecond}.Dial(addr)
		if err != nil {
			timedOut(t, err)
			refused++
			continue
		}
		t.Cleanup(func() { c.Close() })
		if waiting = append(waiting, c); len(waiting) > 100 {
			t.Fatal("100 clients have room in a backlog of 1")
		}
	}
	return waiting
}

// pattern returns n bytes that tell where they belong.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16)
	}
	return p
}

// ---------------------------------------------------------------------------
// Ends and servers of every kind

// An end is one of two that are connected: what is written to one is read from
// the other.
type end interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// A msgEnd is a MsgConn as an end: each write sends a message, each read receives
// one. An appendEnd receives it by RecvAppend.
type (
	msgEnd    struct{ *ipc.MsgConn }
	appendEnd struct{ msgEnd }
)

// A messenger is an end of messages.
type messenger interface {
	Recv(p []byte) (int, error)
	RecvAppend(dst []byte) ([]byte, error)
}

func (e msgEnd) Read(p []byte) (int, error) { return e.Recv(p) }

func (e msgEnd) Write(p []byte) (int, error) {
	if err := e.Send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (e appendEnd) Read(p []byte) (int, error) {
	q, err := e.RecvAppend(p[:0])
	return copy(p, q), err
}

// A pipeEnd is made of two pipes, one for each direction.
type pipeEnd struct {
	*ipc.PipeReader
	*ipc.PipeWriter
}

func (e pipeEnd) Close() error { return errors.Join(e.PipeReader.Close(), e.PipeWriter.Close()) }

func (e pipeEnd) SetDeadline(t time.Time) error {
	return errors.Join(e.SetReadDeadline(t), e.SetWriteDeadline(t))
}

func pipePair(t *testing.T) (a, b pipeEnd) {
	t.Helper()
	r, w := pipe(t)
	s, v := pipe(t)
	return pipeEnd{r, v}, pipeEnd{s, w}
}

// overEachEnd tells a story over ends of every kind, however they are made.
func overEachEnd(t *testing.T, tell func(t *testing.T, a, b end)) {
	t.Run("Conn", func(t *testing.T) {
		overEachConn(t, func(t *testing.T, a, b *ipc.Conn) { tell(t, a, b) })
	})
	t.Run("Recv", func(t *testing.T) {
		overEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) { tell(t, msgEnd{a}, msgEnd{b}) })
	})
	t.Run("RecvAppend", func(t *testing.T) {
		overEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) { tell(t, appendEnd{msgEnd{a}}, appendEnd{msgEnd{b}}) })
	})
	t.Run("Pipe", func(t *testing.T) {
		story(t)
		a, b := pipePair(t)
		tell(t, a, b)
	})
}

// overEachConn tells a story over connections however they are made.
func overEachConn(t *testing.T, tell func(t *testing.T, a, b *ipc.Conn)) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		a, b := connect(t, listen(t, addr))
		tell(t, a, b)
	})
	t.Run("Pair", func(t *testing.T) {
		story(t)
		a, b := pair(t)
		tell(t, a, b)
	})
}

// methods returns the methods by which the end is read from and written to, as in
// a stack trace.
func methods(e end) (read, write string) {
	switch e.(type) {
	case msgEnd:
		return "(*MsgConn).Recv", "(*MsgConn).Send"
	case appendEnd:
		return "(*MsgConn).RecvAppend", "(*MsgConn).Send"
	case pipeEnd:
		return "(*PipeReader).Read", "(*PipeWriter).Write"
	}
	return "(*Conn).Read", "(*Conn).Write"
}

// awaitReads returns when n reads of the end wait, awaitWrites when n writes do.
func awaitReads(t *testing.T, e end, n int) {
	t.Helper()
	read, _ := methods(e)
	awaitParked(t, read, n)
}

func awaitWrites(t *testing.T, e end, n int) {
	t.Helper()
	_, write := methods(e)
	awaitParked(t, write, n)
}

// isReadError fails the test unless err is the *net.OpError of a read of the end,
// isWriteError unless it is that of a write.
func isReadError(t *testing.T, err error, e end) {
	t.Helper()
	isErrorOf(t, err, e, "read", "recv")
}

func isWriteError(t *testing.T, err error, e end) {
	t.Helper()
	isErrorOf(t, err, e, "write", "send")
}

func isErrorOf(t *testing.T, err error, e end, op, msgOp string) {
	t.Helper()
	switch e.(type) {
	case pipeEnd:
		isPipeError(t, err, op)
		return
	case messenger:
		op = msgOp
	}
	isOpError(t, err, op)
	to := e.(interface{ RemoteAddr() net.Addr }).RemoteAddr()
	if oe := (*net.OpError)(nil); errors.As(err, &oe) && oe.Addr != nil && oe.Addr != to {
		t.Fatalf("%#v does not say whose it is", err)
	}
}

// writeMuch writes more than fits, and returns how much of it was written.
func writeMuch(w io.Writer) (written int, err error) {
	p := make([]byte, tooMuch)
	if _, ok := w.(messenger); ok {
		p = p[:2000] // goes into the queue of any system
	}
	for err == nil {
		var n int
		n, err = w.Write(p)
		written += n
	}
	return written, err
}

func beginWrite(w io.Writer) <-chan error {
	return begin(func() error { _, err := writeMuch(w); return err })
}

// A server is a Listener or a MsgListener.
type server struct {
	listener
	waits        string // the method that waits for a client, as in a stack trace
	dial, accept func() (knownEnd, error)
}

type listener interface {
	Addr() net.Addr
	Close() error
	SetDeadline(time.Time) error
}

// A knownEnd is one of a connection, and tells between whom.
type knownEnd interface {
	end
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
	Peer() (ipc.Peer, error)
}

// connect returns both ends of a new connection to the server.
func (s server) connect(t *testing.T) (client, there knownEnd) {
	t.Helper()
	client, err := s.dial()
	kept(t, client, err)
	there, err = s.accept()
	return client, kept(t, there, err)
}

// overEachServer tells a story over servers of either kind.
func overEachServer(t *testing.T, tell func(t *testing.T, addr ipc.Addr, s server)) {
	t.Run("Listener", func(t *testing.T) {
		overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := listen(t, addr)
			tell(t, addr, server{l, "(*Listener).AcceptConn",
				func() (knownEnd, error) { return ipc.Dial(addr) },
				func() (knownEnd, error) { return l.AcceptConn() }})
		})
	})
	t.Run("MsgListener", func(t *testing.T) {
		overEachMsgAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := listenMsg(t, addr)
			tell(t, addr, server{l, "(*MsgListener).Accept",
				func() (knownEnd, error) { c, err := ipc.DialMsg(addr); return msgEnd{c}, err },
				func() (knownEnd, error) { c, err := l.Accept(); return msgEnd{c}, err }})
		})
	})
}

// ---------------------------------------------------------------------------
// Children
//
// A child is this program run again, with its role in the environment. It talks
// in lines: what it says on standard output the test hears, and the other way
// round. It ends when its standard input does.

const (
	childRole = "IPC_TEST_CHILD"
	childExec = "IPC_TEST_EXEC" // a command to run this program with: "qemu-aarch64-static"
)

// roles is what a child can be. It returns an error to fail the test.
var roles = map[string]func(p *parent, args []string) error{
	"serve":   childServes,
	"race":    childRaces,
	"connect": childConnects,
}

// A parent is the test as its child sees it.
type parent struct{ in *bufio.Scanner }

func (p *parent) say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// hear returns the next line, or "" when the test has no more to say.
func (p *parent) hear() string {
	p.in.Scan()
	return p.in.Text()
}

// asChild is run first in a child; a system's test file may set it.
var asChild func() error

func childMain(role string, args []string) int {
	time.AfterFunc(patience, func() { panic("the child " + role + " hangs\n\n" + stacks()) })
	err := fmt.Errorf("no such role: %s", role)
	if play := roles[role]; play != nil {
		err = nil
		if asChild != nil {
			err = asChild()
		}
		if err == nil {
			err = play(&parent{bufio.NewScanner(os.Stdin)}, args)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// sure returns v, or ends the child, which fails its test.
func sure[V any](v V, err error) V {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return v
}

type child struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	errors bytes.Buffer // what it wrote to standard error; read after Wait
	ended  bool
}

func startChild(t *testing.T, role string, args ...string) *child {
	t.Helper()
	return startChildWith(t, exec.Cmd{}, role, args...)
}

// startChildWith starts a child with the ExtraFiles and the SysProcAttr, and more
// in its environment from the Env, of cmd.
func startChildWith(t *testing.T, with exec.Cmd, role string, args ...string) *child {
	t.Helper()
	c := &child{t: t, cmd: rerun(role, args...)}
	c.cmd.Env = append(append(c.cmd.Env, goRace()), with.Env...)
	c.cmd.ExtraFiles, c.cmd.SysProcAttr = with.ExtraFiles, with.SysProcAttr
	c.cmd.Stderr = &c.errors
	var err error
	c.in, err = c.cmd.StdinPipe()
	must(t, err)
	out, err := c.cmd.StdoutPipe()
	must(t, err)
	c.out = bufio.NewReader(out)
	must(t, c.cmd.Start())
	t.Cleanup(c.kill)
	return c
}

// startServer starts a child that echoes what it is sent at the address.
func startServer(t *testing.T, addr ipc.Addr) *child {
	t.Helper()
	c := startChild(t, "serve", addr.String())
	c.mustSay("serving")
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

// rerun returns the command for this program in another role.
func rerun(role string, args ...string) *exec.Cmd {
	command := append(strings.Fields(os.Getenv(childExec)), thisProgram)
	cmd := exec.Command(command[0], append(command[1:], args...)...)
	cmd.Env = append(os.Environ(), childRole+"="+role)
	return cmd
}

// underEmulation reports whether a program stands between this one and the kernel,
// which it cannot serve in all that the kernel does: see qemu(1).
func underEmulation() bool {
	with := strings.Fields(os.Getenv(childExec))
	return len(with) > 0 && strings.HasPrefix(filepath.Base(with[0]), "qemu-")
}

// goRace keeps the race detector from making every child wait a second at its end.
func goRace() string { return "GORACE=" + os.Getenv("GORACE") + " atexit_sleep_ms=0" }

func (c *child) pid() int { return c.cmd.Process.Pid }

func (c *child) say(line string) {
	c.t.Helper()
	_, err := io.WriteString(c.in, line+"\n")
	must(c.t, err)
}

// hear returns the next line of the child, which must say something.
func (c *child) hear() string {
	c.t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.kill()
		c.t.Fatalf("the child says no more: %v: %s", err, c.errors.Bytes())
	}
	return strings.TrimSpace(line)
}

func (c *child) mustSay(want string) {
	c.t.Helper()
	if got := c.hear(); got != want {
		c.t.Fatalf("the child says %q, want %q", got, want)
	}
}

// end tells the child that there is no more to do; it must find all in order.
func (c *child) end() {
	c.t.Helper()
	c.in.Close()
	c.ended = true
	if err := c.cmd.Wait(); err != nil {
		c.t.Fatalf("the child fails: %v: %s", err, c.errors.Bytes())
	}
}

// kill ends the child as a crash or kill -9 does.
func (c *child) kill() {
	if !c.ended {
		c.ended = true
		c.cmd.Process.Kill() // before its input ends, or it might end in good order
		c.in.Close()
		c.cmd.Wait()
	}
}

// childServes listens at the address and echoes what each client sends, until it
// is told to end.
func childServes(p *parent, args []string) error {
	addr := sure(ipc.ParseAddr(args[0]))
	var lc ipc.ListenConfig
	if slices.Contains(args, "everyone") {
		lc.Access = ipc.Everyone
	}
	l := sure(lc.Listen(addr))
	serving := serveEach(l, func(c *ipc.Conn) error {
		go func() { io.Copy(c, c); c.Close() }()
		return nil
	})
	p.say("serving")
	p.hear()
	return errors.Join(l.Close(), <-serving)
}

// childRaces listens at every address it is told, at the word, and says whether
// it got it. It serves until the next word.
func childRaces(p *parent, args []string) error {
	addr := sure(ipc.ParseAddr(args[0]))
	p.say("ready")
	for p.hear() == "go" {
		l, err := ipc.Listen(addr)
		switch {
		case err == nil:
			p.say("won")
		case errors.Is(err, ipc.ErrAddrInUse):
			p.say("lost")
		default:
			p.say("failed: %v", err)
		}
		p.hear()
		if l != nil {
			if err := l.Close(); err != nil {
				return err
			}
		}
		p.say("ready")
	}
	return nil
}

// childConnects dials the address, says how that went, and stays until the test
// has no more to say.
func childConnects(p *parent, args []string) error {
	return childGreets(p, args, func(d ipc.Dialer, addr ipc.Addr) (end, error) { return d.Dial(addr) })
}

func childGreets(p *parent, args []string, dial func(d ipc.Dialer, addr ipc.Addr) (end, error)) error {
	addr := sure(ipc.ParseAddr(args[0]))
	d := ipc.Dialer{Timeout: soon}
	if slices.Contains(args, "everyone") {
		d.Access = ipc.Everyone
	}
	c, err := dial(d, addr)
	switch {
	case errors.Is(err, ipc.ErrUntrusted):
		p.say("untrusted")
		return nil
	case errors.Is(err, os.ErrPermission):
		p.say("permission denied")
		return nil
	case err != nil:
		return err
	}
	defer c.Close()
	io.WriteString(c, "hello from a child") // a server that refuses may be gone already
	greeting := make([]byte, len("welcome"))
	if _, err := io.ReadFull(c, greeting); err != nil {
		p.say("turned away")
		return nil
	}
	p.say("%s", greeting)
	p.hear()
	return nil
}

// ---------------------------------------------------------------------------
// Addresses

func TestAddrsSurviveEveryWayOfWritingThem(t *testing.T) {
	story(t)
	for _, addr := range []ipc.Addr{
		ipc.Path("/run/app/socket"), ipc.Path("socket"), ipc.Path("./@socket"), ipc.Path("@socket"),
		ipc.Path(`\\.\pipe\app`), ipc.Path("ünïcödé/s"), ipc.Path("with space"),
		ipc.Name("app"), ipc.Name("@app"), ipc.Name("a/b"), ipc.Name("ünïcödé"), ipc.Name(" "),
		ipc.Name(`\`), ipc.Name(`\0`), ipc.Name(`\\0`), ipc.Name(`a\b\00\`), ipc.Name("0"), ipc.Name(`\x00`),
	} {
		if got, err := ipc.ParseAddr(addr.String()); got != addr || err != nil {
			t.Errorf("ParseAddr(%q) = %v, %v", addr, got, err)
		}
		text, err := addr.MarshalText()
		must(t, err)
		var back ipc.Addr
		if err := back.UnmarshalText(text); back != addr || err != nil {
			t.Errorf("UnmarshalText(%q) = %v, %v", text, back, err)
		}

		type config struct {
			Server ipc.Addr
			Named  map[ipc.Addr]int
		}
		in := config{addr, map[ipc.Addr]int{addr: 1}}
		data, err := json.Marshal(in)
		must(t, err)
		var out config
		must(t, json.Unmarshal(data, &out))
		if out.Server != addr || out.Named[addr] != 1 {
			t.Errorf("JSON %s became %v", data, out)
		}

		var flagged ipc.Addr
		flags := flag.NewFlagSet("", flag.ContinueOnError)
		flags.TextVar(&flagged, "server", ipc.Name("default"), "")
		must(t, flags.Parse([]string{"-server", addr.String()}))
		if flagged != addr {
			t.Errorf("-server %s gave %v", addr, flagged)
		}
	}
}

// TestTextThatIsNotUTF8IsRefused keeps JSON from making another address of it.
func TestTextThatIsNotUTF8IsRefused(t *testing.T) {
	story(t)
	for _, addr := range []ipc.Addr{ipc.Path("/run/\xff"), ipc.Name("\xc3"), ipc.Path("a\xed\xa0\x80")} {
		if text, err := addr.MarshalText(); err == nil || !strings.Contains(err.Error(), "UTF-8") || text != nil {
			t.Errorf("MarshalText of %q: %q, %v", addr, text, err)
		} else {
			isOpError(t, err, "marshal")
		}
		if data, err := json.Marshal(map[string]ipc.Addr{"server": addr}); err == nil {
			t.Errorf("%q became %s", addr, data)
		}
		if again, err := ipc.ParseAddr(addr.String()); again != addr || err != nil { // which changes nothing
			t.Errorf("%q is read as %q, %v", addr, again, err)
		}
	}
	replaced := ipc.Path("/run/\uFFFD") // what others make of it is text
	if text, err := replaced.MarshalText(); string(text) != replaced.String() || err != nil {
		t.Errorf("MarshalText of %q: %q, %v", replaced, text, err)
	}
}

func TestAddrsAreComparable(t *testing.T) {
	story(t)
	seen := map[ipc.Addr]string{
		ipc.Path("a"): "path a", ipc.Name("a"): "name a", ipc.Path("b"): "path b", {}: "none",
	}
	for addr, want := range map[ipc.Addr]string{
		ipc.Path("a"): "path a", ipc.Name("a"): "name a", ipc.Path("b"): "path b", {}: "none", ipc.Name("b"): "",
	} {
		if got := seen[addr]; got != want {
			t.Errorf("found %q under %v, want %q", got, addr, want)
		}
	}
	if ipc.Path("a") == ipc.Name("a") {
		t.Error("a path and a name of the same text are equal")
	}
}

// ownRuntimeDir gives this process a folder for UserAddr, where Unix looks for one.
func ownRuntimeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ipc") // of a short name
	if err != nil {
		dir, err = os.MkdirTemp("", "ipc")
	}
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o700))
	t.Setenv("XDG_RUNTIME_DIR", dir)
	return dir
}

// childTellsUserAddr says which address it has for the name.
func childTellsUserAddr(p *parent, args []string) error {
	addr, err := ipc.UserAddr(args[0])
	if err != nil {
		p.say("%v", err)
		return nil
	}
	p.say("%v", addr)
	return nil
}

func init() { roles["useraddr"] = childTellsUserAddr }

func TestUserAddrIsTheSameForEveryProcess(t *testing.T) {
	story(t)
	ownRuntimeDir(t)
	name := unique()
	addr, err := ipc.UserAddr(name)
	must(t, err)
	if again, err := ipc.UserAddr(name); again != addr || err != nil {
		t.Errorf("it is %v, and then %v, %v", addr, again, err)
	}
	other, err := ipc.UserAddr(name + "-")
	if other == addr || err != nil {
		t.Errorf("another name has %v, %v", other, err)
	}
	child := startChild(t, "useraddr", name)
	child.mustSay(addr.String())
	child.end()
	l := listen(t, addr)
	serves(t, l, addr)
	server := startChild(t, "connect", addr.String())
	expect(t, accept(t, l), "hello from a child")
	server.kill()
}

func TestUserAddrRefusesBadNames(t *testing.T) {
	story(t)
	ownRuntimeDir(t)
	for _, name := range []string{
		"", ".", "..", "a/b", `a\b`, "/a", ".a", "a.", "a b", "a\x00", "ü", "a:b", "a.lock", ".lock", "@a",
	} {
		addr, err := ipc.UserAddr(name)
		if err == nil || addr != (ipc.Addr{}) || !strings.Contains(err.Error(), strconv.Quote(name)) {
			t.Errorf("%q has %v, %v", name, addr, err)
		}
		isOpError(t, err, "useraddr")
	}
	_, err := ipc.UserAddr(strings.Repeat("n", 300))
	matches(t, err, ipc.ErrNameTooLong)
}

func TestAddrTellsItsNetworkAndText(t *testing.T) {
	story(t)
	network := "unix"
	if runtime.GOOS == "windows" {
		network = "pipe"
	}
	for _, c := range []struct {
		addr ipc.Addr
		text string
	}{{ipc.Path("/a/b"), "/a/b"}, {ipc.Path("@b"), "./@b"}, {ipc.Name("b"), "@b"}, {ipc.Addr{}, ""}} {
		if got := c.addr.String(); got != c.text {
			t.Errorf("String is %q, want %q", got, c.text)
		}
		if got := c.addr.Network(); got != network {
			t.Errorf("Network of %q is %q, want %q", c.text, got, network)
		}
	}
	if got, err := ipc.ParseAddr("@b"); got != ipc.Name("b") || err != nil {
		t.Errorf("@b is %#v, %v; want the name b", got, err)
	}
	if got, err := ipc.ParseAddr("b"); got != ipc.Path("b") || err != nil {
		t.Errorf("b is %#v, %v; want the path b", got, err)
	}
}

func TestZeroAddrIsAnEmptyText(t *testing.T) {
	story(t)
	text, err := ipc.Addr{}.MarshalText()
	if len(text) != 0 || err != nil {
		t.Errorf("MarshalText: %q, %v", text, err)
	}
	addr := ipc.Name("before")
	if err := addr.UnmarshalText(nil); err != nil || addr != (ipc.Addr{}) {
		t.Errorf("UnmarshalText of nothing: %v, %v", addr, err)
	}
}

func TestTextThatIsNoAddressIsRefused(t *testing.T) {
	story(t)
	for text, words := range map[string][]string{
		"":        {"address"},
		"a\x00b":  {"NUL", "1", `"a\x00b"`},
		"@ab\x00": {"NUL", "2", `"ab\x00"`},
	} {
		addr, err := ipc.ParseAddr(text)
		if err == nil {
			t.Errorf("ParseAddr(%q) = %v", text, addr)
			continue
		}
		if addr != (ipc.Addr{}) {
			t.Errorf("ParseAddr(%q) gives %v with its error", text, addr)
		}
		for _, word := range words {
			if text != "" && !strings.Contains(err.Error(), word) {
				t.Errorf("ParseAddr(%q): %q does not say %q", text, err, word)
			}
		}
		kept := ipc.Name("kept")
		if text != "" && (kept.UnmarshalText([]byte(text)) == nil || kept != ipc.Name("kept")) {
			t.Errorf("UnmarshalText(%q) made it %v", text, kept)
		}
	}
}

// A badAddr is an address that no call may accept, and words that the error has.
type badAddr struct {
	addr  ipc.Addr
	is    error
	words []string
}

// badAddrs are bad everywhere; a system's test file may add its own.
var badAddrs = []badAddr{
	{addr: ipc.Path(""), words: []string{"empty"}},
	{addr: ipc.Name(""), words: []string{"empty"}},
	{addr: ipc.Path("a\x00b"), words: []string{"NUL", "1"}},
	{addr: ipc.Name(strings.Repeat("n", 5000)), is: ipc.ErrNameTooLong, words: []string{"50", "limit"}},
}

// refused checks the error of a call that was given a bad address: it says what
// is wrong and with what, and no system call was needed to find out.
func (bad badAddr) refused(t *testing.T, op string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s accepts %.40q", op, bad.addr)
		return
	}
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != op || oe.Net != bad.addr.Network() || oe.Addr != bad.addr {
		t.Errorf("%s of %.40q: %#v is not a *net.OpError about it", op, bad.addr, err)
	}
	if bad.is != nil && !errors.Is(err, bad.is) {
		t.Errorf("%s of %.40q: %v does not match %v", op, bad.addr, err, bad.is)
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		t.Errorf("%s of %.40q: %v comes from a system call", op, bad.addr, err)
	}
	for _, word := range append(bad.words, bad.addr.String()) {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s of %.40q: %q does not say %q", op, bad.addr, err, word)
		}
	}
}

func TestBadAddressesAreRefused(t *testing.T) {
	story(t)
	for _, bad := range badAddrs {
		l, err := ipc.Listen(bad.addr)
		bad.refused(t, "listen", err)
		if l != nil {
			t.Error("a listener comes with the error")
		}
		c, err := ipc.Dial(bad.addr)
		bad.refused(t, "dial", err)
		if c != nil {
			t.Error("a connection comes with the error")
		}
		_, err = ipc.Dialer{Wait: true}.Dial(bad.addr) // would wait for ever
		bad.refused(t, "dial", err)
	}
	if _, err := ipc.Dial(ipc.Addr{}); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("dial of the zero Addr: %v", err)
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for _, c := range []struct {
			lc    ipc.ListenConfig
			words []string
		}{
			{ipc.ListenConfig{Access: 2}, []string{"Access(2)", "OwnerOnly", "Everyone"}},
			{ipc.ListenConfig{Takeover: 3}, []string{"Takeover(3)", "TakeoverStale"}},
			{ipc.ListenConfig{Backlog: -1}, []string{"Backlog", "-1", "0 or more"}},
		} {
			l, err := c.lc.Listen(addr)
			if err == nil {
				l.Close()
				t.Fatalf("%+v is accepted", c.lc)
			}
			for _, word := range c.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not say %q", err, word)
				}
			}
		}
		listen(t, addr)
		if _, err := (ipc.Dialer{Access: 2}).Dial(addr); err == nil || !strings.Contains(err.Error(), "Access(2)") {
			t.Errorf("Dialer{Access: 2}: %v", err)
		}
	})
}

func TestOptionsHaveNames(t *testing.T) {
	story(t)
	for v, want := range map[fmt.Stringer]string{
		ipc.OwnerOnly: "OwnerOnly", ipc.Everyone: "Everyone", ipc.Access(9): "Access(9)",
		ipc.TakeoverStale: "TakeoverStale", ipc.TakeoverNever: "TakeoverNever",
		ipc.TakeoverAlways: "TakeoverAlways", ipc.Takeover(9): "Takeover(9)",
	} {
		if got := v.String(); got != want {
			t.Errorf("String is %q, want %q", got, want)
		}
	}
	if (ipc.ListenConfig{}).Access != ipc.OwnerOnly || (ipc.ListenConfig{}).Takeover != ipc.TakeoverStale {
		t.Error("the zero values are not the safe ones")
	}
}

// TestOptionsAreWords has them in flags and JSON; what is no constant is no word.
func TestOptionsAreWords(t *testing.T) {
	story(t)
	type options struct {
		Access   ipc.Access
		Takeover ipc.Takeover
	}
	for in, want := range map[options]string{
		{}:                                  `{"Access":"OwnerOnly","Takeover":"TakeoverStale"}`,
		{ipc.Everyone, ipc.TakeoverNever}:   `{"Access":"Everyone","Takeover":"TakeoverNever"}`,
		{ipc.OwnerOnly, ipc.TakeoverAlways}: `{"Access":"OwnerOnly","Takeover":"TakeoverAlways"}`,
	} {
		data, err := json.Marshal(in)
		if string(data) != want || err != nil {
			t.Errorf("%v is %s, %v; want %s", in, data, err, want)
		}
		out := options{9, 9}
		if err := json.Unmarshal(data, &out); out != in || err != nil {
			t.Errorf("%s is read as %v, %v", data, out, err)
		}
	}
	for _, bad := range []any{ipc.Access(2), ipc.Takeover(3)} {
		text, err := bad.(interface{ MarshalText() ([]byte, error) }).MarshalText()
		if text != nil || err == nil || !strings.Contains(err.Error(), "must be") {
			t.Errorf("%v is written %q, %v", bad, text, err)
		}
		isOpError(t, err, "marshal")
	}
	access, takeover := ipc.Everyone, ipc.TakeoverNever
	for _, text := range []string{"", "everyone", "Everyone ", "2", "Access(2)", "Takeover(3)"} {
		for _, err := range []error{access.UnmarshalText([]byte(text)), takeover.UnmarshalText([]byte(text))} {
			if err == nil || !strings.Contains(err.Error(), strconv.Quote(text)) {
				t.Errorf("%q is read: %v", text, err)
			}
			isOpError(t, err, "parse")
		}
	}
	if access != ipc.Everyone || takeover != ipc.TakeoverNever {
		t.Errorf("words that are none change it to %v, %v", access, takeover)
	}
}

func TestBothEndsKnowTheAddress(t *testing.T) {
	overEachServer(t, func(t *testing.T, addr ipc.Addr, s server) {
		client, there := s.connect(t)
		for what, got := range map[string]net.Addr{
			"the listener's": s.Addr(), "the server's": there.LocalAddr(), "the client's remote": client.RemoteAddr(),
		} {
			if got != addr {
				t.Errorf("%s address is %v, want %v", what, got, addr)
			}
		}
		if client.LocalAddr() != (ipc.Addr{}) {
			t.Errorf("the client's own address is %v", client.LocalAddr())
		}
		isUnnamed(t, there.RemoteAddr(), addr)
		talk(t, client, there)
		must(t, there.Close())
		if got := there.RemoteAddr(); got != ipc.Name("") {
			t.Errorf("after Close the address of the client is %v", got)
		}
	})
}

// isUnnamed fails the test unless got is what an end without an address has, of a
// connection to the server at addr: as package net says it, and on Windows the path
// of the pipe, by which programs know that it is one.
func isUnnamed(t *testing.T, got net.Addr, addr ipc.Addr) {
	t.Helper()
	want := ipc.Name("")
	if runtime.GOOS == "windows" {
		want = ipc.Path(`\\.\pipe\` + strings.TrimPrefix(strings.TrimPrefix(addr.String(), "@"), `\\.\pipe\`))
	}
	if got != want {
		t.Errorf("the address is %v, want %v", got, want)
	}
	if text, err := got.(ipc.Addr).MarshalText(); string(text) != got.String() || err != nil {
		t.Errorf("the address %v marshals to %q, %v", got, text, err)
	}
}

// second returns the second of two results.
func second[T any](_ T, err error) error { return err }

// TestUnnamedAddrIsAnAtSign has the address that is there to be printed and compared.
func TestUnnamedAddrIsAnAtSign(t *testing.T) {
	story(t)
	unnamed := ipc.Name("")
	if unnamed.String() != "@" || unnamed == (ipc.Addr{}) {
		t.Errorf("it is %q, %#v", unnamed, unnamed)
	}
	if _, err := ipc.ParseAddr("@"); err == nil {
		t.Error("the text of an end without a name is read as an address")
	}
	for _, err := range []error{second(ipc.Listen(unnamed)), second(ipc.Dial(unnamed))} {
		if err == nil || !strings.Contains(err.Error(), "the name is empty") {
			t.Errorf("it can be used: %v", err)
		}
	}
}

func TestPairHasNoAddresses(t *testing.T) {
	story(t)
	a, b := pair(t)
	c, d := msgPair(t)
	for _, got := range []net.Addr{
		a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr(), c.LocalAddr(), d.RemoteAddr(),
	} {
		if got != (ipc.Addr{}) {
			t.Errorf("an end of a pair has the address %v", got)
		}
	}
}

func TestZeroAddrListensAtAFreshName(t *testing.T) {
	story(t)
	a, b := listen(t, ipc.Addr{}), listen(t, ipc.Addr{})
	if a.Addr() == b.Addr() {
		t.Fatalf("two listeners at %v", a.Addr())
	}
	for _, l := range []*ipc.Listener{a, b} {
		addr, err := ipc.ParseAddr(l.Addr().String()) // as another process would be told
		must(t, err)
		serves(t, l, addr)
	}
}

// ---------------------------------------------------------------------------
// Listening

func TestNobodyListens(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		_, err := ipc.Dial(addr)
		matches(t, err, ipc.ErrNoListener)
		var oe *net.OpError
		if !errors.As(err, &oe) || oe.Op != "dial" || oe.Net != addr.Network() || oe.Addr != addr {
			t.Errorf("%#v does not say what was dialed", err)
		}
		if !strings.Contains(err.Error(), addr.String()) {
			t.Errorf("%q does not name the address", err)
		}

		l := listen(t, addr)
		serves(t, l, addr)
		must(t, l.Close())
		_, err = ipc.Dial(addr)
		matches(t, err, ipc.ErrNoListener)
	})
}

func TestLiveServerIsNotReplaced(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		for _, policy := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever} {
			_, err := ipc.ListenConfig{Takeover: policy}.Listen(addr)
			matches(t, err, ipc.ErrAddrInUse)
			var oe *net.OpError
			if !errors.As(err, &oe) || oe.Op != "listen" || oe.Addr != addr {
				t.Errorf("%#v does not say what failed", err)
			}
			serves(t, l, addr)
		}
	})
}

func TestLiveServerOfAnotherProcessIsNotReplaced(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		server := startServer(t, addr)
		_, err := ipc.Listen(addr)
		matches(t, err, ipc.ErrAddrInUse)
		client := dial(t, addr)
		talkToEcho(t, client)
		server.end()
	})
}

func TestKilledServersAddressIsFree(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 3 {
			startServer(t, addr).kill()
			_, err := ipc.Dial(addr)
			matches(t, err, ipc.ErrNoListener)
		}
		serves(t, listen(t, addr), addr)
	})
}

func TestOneOfManyStartersWins(t *testing.T) {
	const starters, rounds = 16, 3
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		var children []*child
		for range starters {
			children = append(children, startChild(t, "race", addr.String()))
		}
		for _, c := range children {
			c.mustSay("ready")
		}
		for range rounds {
			startServer(t, addr).kill()
			for _, c := range children {
				c.say("go")
			}
			winners := 0
			for _, c := range children {
				switch said := c.hear(); said {
				case "won":
					winners++
				case "lost":
				default:
					t.Error(said)
				}
			}
			if winners != 1 {
				t.Fatalf("%d starters have the address", winners)
			}
			for _, c := range children {
				c.say("done")
				c.mustSay("ready")
			}
		}
		for _, c := range children {
			c.end()
		}
	})
}

func TestOneOfManyGoroutinesWins(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 50 {
			const starters = 8
			var starting sync.WaitGroup
			listeners := make([]*ipc.Listener, starters)
			for i := range starters {
				starting.Go(func() {
					l, err := ipc.Listen(addr)
					if err != nil && !errors.Is(err, ipc.ErrAddrInUse) {
						t.Error(err)
					}
					listeners[i] = l
				})
			}
			starting.Wait()
			winners := 0
			for _, l := range listeners {
				if l != nil {
					winners++
					serves(t, l, addr)
					must(t, l.Close())
				}
			}
			if winners != 1 {
				t.Fatalf("%d starters have the address", winners)
			}
		}
	})
}

func TestAcceptEndsAtTheDeadline(t *testing.T) {
	overEachServer(t, func(t *testing.T, addr ipc.Addr, s server) {
		serves := func() {
			t.Helper()
			client, there := s.connect(t)
			talk(t, client, there)
			must(t, errors.Join(client.Close(), there.Close()))
		}
		past := time.Now().Add(-time.Hour)

		must(t, s.SetDeadline(past))
		_, err := s.accept()
		timedOut(t, err)
		var oe *net.OpError
		if !errors.As(err, &oe) || oe.Op != "accept" || oe.Addr != addr {
			t.Errorf("%#v does not say what failed", err)
		}
		if l, ok := s.listener.(net.Listener); ok {
			c, err := l.Accept()
			timedOut(t, err)
			if c != nil {
				t.Errorf("%T comes with the error", c)
			}
		}

		begun := time.Now()
		must(t, s.SetDeadline(begun.Add(brief)))
		_, err = s.accept()
		timedOut(t, err)
		if waited := time.Since(begun); waited < brief {
			t.Errorf("gave up after %v, the deadline was %v", waited, brief)
		}

		must(t, s.SetDeadline(time.Time{}))
		serves()

		waiting := begin(func() error { _, err := s.accept(); return err })
		awaitParked(t, s.waits, 1)
		must(t, s.SetDeadline(past))
		timedOut(t, <-waiting)

		must(t, s.SetDeadline(time.Now().Add(time.Hour)))
		serves()
	})
}

func TestCloseEndsEveryAccept(t *testing.T) {
	overEachServer(t, func(t *testing.T, addr ipc.Addr, s server) {
		const waiters = 5
		accept := func() error { _, err := s.accept(); return err }
		var waiting [waiters]<-chan error
		for i := range waiting {
			waiting[i] = begin(accept)
		}
		awaitParked(t, s.waits, waiters)
		must(t, s.Close())
		for _, done := range waiting {
			matches(t, <-done, net.ErrClosed)
		}

		matches(t, s.Close(), net.ErrClosed)
		matches(t, s.SetDeadline(time.Now()), net.ErrClosed)
		matches(t, accept(), net.ErrClosed)
		if l, ok := s.listener.(net.Listener); ok {
			if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept after Close: %v, %v", c, err)
			}
		}
		if s.Addr() != addr {
			t.Errorf("the address is %v after Close", s.Addr())
		}
	})
}

func TestOneOfManyListenerClosesSucceeds(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 20 {
			oneCloseSucceeds(t, listen(t, addr))
		}
	})
}

// oneCloseSucceeds closes it by many goroutines.
func oneCloseSucceeds(t *testing.T, c io.Closer) {
	t.Helper()
	var closing [4]<-chan error
	for i := range closing {
		closing[i] = begin(c.Close)
	}
	succeeded := 0
	for _, done := range closing {
		if err := <-done; err == nil {
			succeeded++
		} else {
			matches(t, err, net.ErrClosed)
		}
	}
	if succeeded != 1 {
		t.Fatalf("%d of the closes succeed", succeeded)
	}
}

func TestCloseDisconnectsClientsThatWait(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client := dial(t, addr)
		reading := beginRead(client)
		must(t, l.Close())
		if err := <-reading; err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a client that was not accepted reads %v", err)
		}
	})
}

func TestCloseOfListenerKeepsItsConnections(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client, server := connect(t, l)
		must(t, l.Close())
		talk(t, client, server)
	})
}

func TestConnsEndsAtClose(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		const clients = 5
		for range clients {
			dial(t, addr)
			if served := 0; true {
				for conn, err := range l.Conns() { // left by break, taken up again
					must(t, err)
					must(t, conn.Close())
					served++
					break
				}
				if served != 1 {
					t.Fatalf("%d clients served", served)
				}
			}
		}

		ended := serveEach(l, (*ipc.Conn).Close)
		expectEOF(t, dial(t, addr))
		awaitParked(t, "(*Listener).AcceptConn", 1)
		must(t, l.Close())
		must(t, <-ended)
		for range l.Conns() {
			t.Error("a closed listener has another client")
		}
	})
}

func TestConnsHandsErrorsToTheLoop(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		must(t, l.SetDeadline(time.Now().Add(-time.Hour)))
		failures := 0
		for conn, err := range l.Conns() {
			if err == nil {
				conn.Close()
				break
			}
			timedOut(t, err)
			if conn != nil {
				t.Error("a connection comes with the error")
			}
			if failures++; failures == 3 { // the loop went on; let it succeed
				must(t, l.SetDeadline(time.Time{}))
				dial(t, addr)
			}
		}
		if failures != 3 {
			t.Errorf("%d errors, want 3", failures)
		}
	})
}

func TestAcceptNeverSeesClientsThatCheckRefuses(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		var open atomic.Bool
		var asked atomic.Int32
		l := listenWith(t, ipc.ListenConfig{Check: func(p ipc.Peer) error {
			asked.Add(1)
			if pid, ok := p.PID(); ok && pid != os.Getpid() {
				t.Errorf("Check is told of %v", p)
			}
			if !open.Load() {
				return errors.New("we are closed")
			}
			return nil
		}}, addr)

		accepted := later(t, l.AcceptConn)
		for range 3 {
			refused := dial(t, addr)
			if n, err := refused.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Fatalf("a refused client reads %d, %v", n, err)
			}
		}
		open.Store(true)
		client := dial(t, addr)
		talk(t, client, accepted())
		if n := asked.Load(); n != 4 {
			t.Errorf("Check was asked %d times about 4 clients", n)
		}
	})
}

func TestSetAccessHoldsFromTheNextClientOn(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Check: func(ipc.Peer) error { return errors.New("we are closed") }}, addr)
		done := welcomeAll(l)
		isRefused := func() {
			t.Helper()
			if n, err := dial(t, addr).Read(make([]byte, 1)); n != 0 || err == nil {
				t.Fatalf("a refused client reads %d, %v", n, err)
			}
		}
		isRefused()
		for range 2 {
			must(t, l.SetAccess(ipc.OwnerOnly, nil))
			expect(t, dial(t, addr), "welcome")
			must(t, l.SetAccess(ipc.Everyone, func(ipc.Peer) error { return errors.New("we are closed again") }))
			isRefused()
		}
		must(t, l.SetAccess(ipc.Everyone, nil))
		if err := l.SetAccess(2, nil); err == nil || !strings.Contains(err.Error(), "Access(2)") {
			t.Errorf("SetAccess(2): %v", err)
		}
		expect(t, dial(t, addr), "welcome") // what cannot be changes nothing
		must(t, l.Close())
		must(t, <-done)
	})
}

// ---------------------------------------------------------------------------
// Dialing

func TestFullBacklogMakesDialWait(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		waiting := fill(t, addr)

		dialed := later(t, func() (*ipc.Conn, error) { return ipc.Dial(addr) })
		awaitParked(t, "Dialer.DialContext", 1)
		for _, client := range waiting {
			talk(t, client, accept(t, l))
		}
		server := accept(t, l)
		talk(t, dialed(), server)
	})
}

// A dialEnd is a way to end a Dial that waits.
var dialEnds = map[string]func(addr ipc.Addr, d ipc.Dialer) error{
	"Timeout": func(addr ipc.Addr, d ipc.Dialer) error {
		d.Timeout = brief
		_, err := d.Dial(addr)
		return err
	},
	"Deadline": func(addr ipc.Addr, d ipc.Dialer) error {
		d.Deadline = time.Now().Add(brief)
		_, err := d.Dial(addr)
		return err
	},
	"Context": func(addr ipc.Addr, d ipc.Dialer) error {
		ctx, cancel := context.WithTimeout(context.Background(), brief)
		defer cancel()
		_, err := d.DialContext(ctx, addr)
		return err
	},
	"FirstOfThree": func(addr ipc.Addr, d ipc.Dialer) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		d.Deadline = time.Now().Add(2 * time.Hour)
		d.Timeout = brief
		_, err := d.DialContext(ctx, addr)
		return err
	},
}

// endsAtItsDeadline dials an address that lets nobody in, with every deadline.
func endsAtItsDeadline(t *testing.T, addr ipc.Addr, d ipc.Dialer) {
	t.Helper()
	for name, dialUntil := range dialEnds {
		begun := time.Now()
		err := dialUntil(addr, d)
		if waited := time.Since(begun); waited < brief {
			t.Errorf("%s: gave up after %v, before %v", name, waited, brief)
		}
		timedOut(t, err)
		matches(t, err, context.DeadlineExceeded)
		var oe *net.OpError
		if !errors.As(err, &oe) || oe.Op != "dial" || oe.Addr != addr {
			t.Errorf("%s: %#v does not say what failed", name, err)
		}
	}
}

func TestFullBacklogEndsDialAtItsDeadline(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		waiting := fill(t, addr)
		endsAtItsDeadline(t, addr, ipc.Dialer{})
		endsAtItsDeadline(t, addr, ipc.Dialer{Wait: true})
		for _, client := range waiting { // nobody who gave up is in the way
			talk(t, client, accept(t, l))
		}
		serves(t, l, addr)
	})
}

func TestWaitEndsAtItsDeadline(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		endsAtItsDeadline(t, addr, ipc.Dialer{Wait: true})
	})
}

// TestWaitSaysThatNobodyListened tells the two reasons for a wait apart.
func TestWaitSaysThatNobodyListened(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		_, err := ipc.Dialer{Wait: true, Timeout: time.Second}.Dial(addr)
		timedOut(t, err)
		matches(t, err, ipc.ErrNoListener)
		if !strings.Contains(err.Error(), "i/o timeout") {
			t.Errorf("%q does not say that time is up", err)
		}

		listenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		fill(t, addr)
		_, err = ipc.Dialer{Wait: true, Timeout: time.Second}.Dial(addr)
		timedOut(t, err)
		if errors.Is(err, ipc.ErrNoListener) {
			t.Errorf("%v matches ErrNoListener, and a server is there", err)
		}
	})
}

func TestDeadlineInThePastEndsDialAtOnce(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		listen(t, addr)
		_, err := ipc.Dialer{Deadline: time.Now().Add(-time.Hour)}.Dial(addr)
		timedOut(t, err)
		_, err = ipc.Dialer{Timeout: -time.Hour}.Dial(addr)
		timedOut(t, err)
	})
}

func TestWaitWaitsForTheServer(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		const clients = 3
		var dialed [clients]func() *ipc.Conn
		for i := range dialed {
			dialed[i] = later(t, func() (*ipc.Conn, error) { return ipc.Dialer{Wait: true}.Dial(addr) })
		}
		awaitParked(t, "Dialer.DialContext", clients)
		l := listen(t, addr)
		for range dialed {
			server := accept(t, l)
			send(t, server, "at last")
			must(t, server.Close())
		}
		for _, client := range dialed {
			expect(t, client(), "at last")
		}
	})
}

func TestWaitOutlivesARestartOfTheServer(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		startServer(t, addr).kill() // leaves a path that refuses
		dialed := later(t, func() (*ipc.Conn, error) { return ipc.Dialer{Wait: true}.Dial(addr) })
		awaitParked(t, "Dialer.DialContext", 1)
		l := listen(t, addr)
		server := accept(t, l)
		talk(t, dialed(), server)
	})
}

func TestCancelEndsEveryWayOfWaiting(t *testing.T) {
	cancelled := func(t *testing.T, addr ipc.Addr, d ipc.Dialer) {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		dialing := begin(func() error { _, err := d.DialContext(ctx, addr); return err })
		awaitParked(t, "Dialer.DialContext", 1)
		cancel()
		err := <-dialing
		matches(t, err, context.Canceled)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v matches a deadline that was not", err)
		}
		_, err = d.DialContext(ctx, addr) // cancelled before it begins
		matches(t, err, context.Canceled)
	}
	t.Run("FullBacklog", func(t *testing.T) {
		overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			listenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
			fill(t, addr)
			cancelled(t, addr, ipc.Dialer{})
			cancelled(t, addr, ipc.Dialer{Timeout: time.Hour})
		})
	})
	t.Run("NoServer", func(t *testing.T) {
		overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			cancelled(t, addr, ipc.Dialer{Wait: true})
		})
	})
	t.Run("RefusingServer", func(t *testing.T) {
		overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			startServer(t, addr).kill()
			cancelled(t, addr, ipc.Dialer{Wait: true})
			listen(t, addr).Close() // takes the path away
		})
	})
}

func TestContextHasNoSayOnceConnected(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		ctx, cancel := context.WithCancel(context.Background())
		client, err := ipc.Dialer{}.DialContext(ctx, addr)
		must(t, err)
		defer client.Close()
		cancel()
		talk(t, client, accept(t, l))
	})
}

func TestListenerCloseEndsDialsThatWait(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		waiting := fill(t, addr)
		var dialing [3]<-chan error
		for i := range dialing {
			dialing[i] = begin(func() error { _, err := ipc.Dial(addr); return err })
		}
		awaitParked(t, "Dialer.DialContext", len(dialing))
		must(t, l.Close())
		for _, client := range waiting {
			client.Close()
		}
		for _, done := range dialing {
			matches(t, <-done, ipc.ErrNoListener)
		}
	})
}

func TestDialersCheckCanRefuseTheServer(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		stranger := errors.New("not whom I expected")
		var told ipc.Peer
		for _, access := range []ipc.Access{ipc.OwnerOnly, ipc.Everyone} {
			c, err := ipc.Dialer{Access: access, Check: func(p ipc.Peer) error { told = p; return stranger }}.Dial(addr)
			matches(t, err, ipc.ErrUntrusted, stranger)
			if c != nil {
				t.Error("a connection comes with the error")
			}
			if pid, ok := told.PID(); ok && pid != os.Getpid() {
				t.Errorf("Check is told of %v", told)
			}
			if runtime.GOOS != "windows" { // where a client that left is seen only if it sent something
				expectEOF(t, accept(t, l)) // nothing was sent to it
			}
		}
		client, err := ipc.Dialer{Check: func(ipc.Peer) error { return nil }}.Dial(addr)
		must(t, err)
		defer client.Close()
		talk(t, client, accept(t, l))
	})
}

func TestDialAndCloseOfListenerRace(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 300 {
			l, err := ipc.Listen(addr)
			must(t, err)
			accepting := serveEach(l, (*ipc.Conn).Close)
			dialing := begin(func() error {
				c, err := ipc.Dial(addr)
				if err != nil {
					return err
				}
				defer c.Close()
				if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
					return fmt.Errorf("read %d, %v", n, err)
				}
				return nil
			})
			must(t, l.Close())
			must(t, <-accepting)
			if err := <-dialing; err != nil {
				matches(t, err, ipc.ErrNoListener)
			}
		}
	})
}

// ---------------------------------------------------------------------------
// Peers

// me returns the identity of this process's user as os/user has it.
func me(t *testing.T) string {
	t.Helper()
	u, err := user.Current()
	must(t, err)
	return u.Uid
}

// pidsAreTold reports whether the system says the pid of a peer.
var pidsAreTold = slices.Contains([]string{
	"linux", "android", "windows", "darwin", "freebsd", "netbsd", "openbsd", "illumos"}, runtime.GOOS)

// isProcess checks that p tells of the process of that number, run by this user.
func isProcess(t *testing.T, p ipc.Peer, pid int) {
	t.Helper()
	got, ok := p.PID()
	if ok && got != pid || ok != pidsAreTold {
		t.Errorf("PID is %d, %v; want %d, %v", got, ok, pid, pidsAreTold)
	}
	if ok && !strings.Contains(p.String(), "pid "+strconv.Itoa(pid)) {
		t.Errorf("%q does not tell the pid", p)
	}
	if got, want := p.UserID(), me(t); got != want {
		t.Errorf("UserID is %q, want %q", got, want)
	}
	if !strings.Contains(p.String(), p.UserID()) {
		t.Errorf("%q does not tell the user", p)
	}
	uid, ok := p.UID()
	if want := os.Getuid(); ok && uid != want || ok != (want >= 0) {
		t.Errorf("UID is %d, %v; want %d", uid, ok, want)
	}
	gid, ok := p.GID()
	if want := os.Getgid(); ok && gid != want || ok != (want >= 0) {
		t.Errorf("GID is %d, %v; want %d", gid, ok, want)
	}
}

func peerOf(t *testing.T, c interface{ Peer() (ipc.Peer, error) }) ipc.Peer {
	t.Helper()
	p, err := c.Peer()
	must(t, err)
	return p
}

func TestPeerTellsWhoIsThere(t *testing.T) {
	overEachServer(t, func(t *testing.T, _ ipc.Addr, s server) {
		client, there := s.connect(t)
		isProcess(t, peerOf(t, client), os.Getpid())
		isProcess(t, peerOf(t, there), os.Getpid())
	})
	t.Run("Pair", func(t *testing.T) {
		story(t)
		a, b := pair(t)
		isProcess(t, peerOf(t, a), os.Getpid())
		isProcess(t, peerOf(t, b), os.Getpid())
	})
}

func TestPeerInAnotherProcess(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client := startChild(t, "connect", addr.String())
		server := accept(t, l)
		isProcess(t, peerOf(t, server), client.pid())
		expect(t, server, "hello from a child")
		send(t, server, "welcome")
		client.mustSay("welcome")
		client.end()
		must(t, errors.Join(server.Close(), l.Close()))

		serving := startServer(t, addr)
		isProcess(t, peerOf(t, dial(t, addr)), serving.pid())
		serving.end()
	})
}

func TestWhatIsNotKnownOfAPeerIsAbsent(t *testing.T) {
	story(t)
	var p ipc.Peer
	if pid, ok := p.PID(); pid != 0 || ok {
		t.Errorf("PID is %d, %v", pid, ok)
	}
	if uid, ok := p.UID(); uid != 0 || ok {
		t.Errorf("UID is %d, %v", uid, ok)
	}
	if gid, ok := p.GID(); gid != 0 || ok {
		t.Errorf("GID is %d, %v", gid, ok)
	}
	if p.UserID() != "" || p.Groups() != nil || p.String() != "unknown peer" {
		t.Errorf("%q %v %q", p.UserID(), p.Groups(), p)
	}
}

func TestPeerThatIsGoneIsNoPanic(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client, server := connect(t, l)
		must(t, client.Close())
		if p, err := server.Peer(); err == nil {
			if id := p.UserID(); id != "" && id != me(t) {
				t.Errorf("the peer was %v", p)
			}
		} else if oe := (*net.OpError)(nil); !errors.As(err, &oe) {
			t.Errorf("%#v is not a *net.OpError", err)
		}
		must(t, server.Close())
		_, err := server.Peer()
		matches(t, err, net.ErrClosed)
	})
}

// ---------------------------------------------------------------------------
// Conversations

// converse is one side of the exchange: two messages each way, the first ends
// with a newline, the second with NUL, read and written at the same time.
func converse(c *ipc.Conn, say, want [2]string) error {
	writing := begin(func() error {
		for _, line := range say {
			if _, err := io.WriteString(c, line); err != nil {
				return err
			}
		}
		return nil
	})
	r := bufio.NewReader(c)
	var failed error
	for i, end := range []byte{'\n', 0} {
		if got, err := r.ReadString(end); failed == nil && (err != nil || got != want[i]) {
			failed = fmt.Errorf("heard %q, %v; want %q", got, err, want[i])
		}
	}
	if err := <-writing; failed == nil {
		failed = err
	}
	return failed
}

func TestManyClientsConverseAtOnce(t *testing.T) {
	const clients = 80
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		fromServer := [2]string{"Hello from server!\n", "The server bids you farewell.\x00"}
		fromClient := [2]string{"Hello from client!\n", "The client takes its leave.\x00"}
		pid := os.Getpid()
		known := func(c *ipc.Conn) error {
			p, err := c.Peer()
			if got, ok := p.PID(); ok && got != pid {
				return fmt.Errorf("the peer is %v", p)
			}
			return err
		}

		var all sync.WaitGroup
		all.Go(func() {
			for range clients {
				conn, err := l.AcceptConn()
				if err != nil {
					t.Error(err)
					return
				}
				all.Go(func() {
					defer conn.Close()
					if err := errors.Join(known(conn), converse(conn, fromServer, fromClient)); err != nil {
						t.Error("server:", err)
					}
				})
			}
		})
		for range clients {
			all.Go(func() {
				conn, err := ipc.Dial(addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				if err := errors.Join(known(conn), converse(conn, fromClient, fromServer)); err != nil {
					t.Error("client:", err)
				}
			})
		}
		all.Wait()
		must(t, l.Close())
		_, err := ipc.Dial(addr)
		matches(t, err, ipc.ErrNoListener)
	})
}

func TestPairIsConnected(t *testing.T) {
	story(t)
	a, b := pair(t)
	talk(t, a, b)
	talk(t, b, a)
	must(t, a.Close())
	expectEOF(t, b)
}

func TestBothDirectionsCarryMuchAtOnce(t *testing.T) {
	story(t)
	a, b := pair(t)
	const size = 4 << 20
	data := pattern(size)
	mirror := bytes.Clone(data)
	slices.Reverse(mirror)
	var done []<-chan error
	for _, way := range []struct {
		from, to *ipc.Conn
		data     []byte
	}{{a, b, data}, {b, a, mirror}} {
		done = append(done,
			begin(func() error {
				n, err := way.from.Write(way.data)
				if err == nil && n != size {
					err = fmt.Errorf("wrote %d of %d", n, size)
				}
				return err
			}),
			begin(func() error {
				got := make([]byte, size)
				_, err := io.ReadFull(way.to, got)
				if err == nil && !bytes.Equal(got, way.data) {
					err = errors.New("the bytes were changed on their way")
				}
				return err
			}))
	}
	for _, d := range done {
		must(t, <-d)
	}
}

func TestWhatWasWrittenCanBeReadAfterClose(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		for range 20 {
			client, server := connect(t, l)
			for _, way := range [][2]*ipc.Conn{{client, server}, {server, client}} {
				text := strings.Repeat("last words ", 100)
				send(t, way[0], text)
				if way[0] == server {
					must(t, server.Close())
				}
				expect(t, way[1], text)
			}
			expectEOF(t, client)
			expectEOF(t, client) // and so it stays
		}
		client, server := connect(t, l)
		send(t, client, "sent and gone")
		must(t, client.Close())
		must(t, l.Close())
		expect(t, server, "sent and gone")
		expectEOF(t, server)
	})
}

func TestClientThatLeftBeforeAcceptIsHeard(t *testing.T) {
	overEachServer(t, func(t *testing.T, _ ipc.Addr, s server) {
		early, err := s.dial()
		kept(t, early, err)
		send(t, early, "could")
		send(t, early, " not wait")
		must(t, early.Close())
		there, err := s.accept()
		kept(t, there, err)
		expect(t, there, "could")
		expect(t, there, " not wait")
		expectEOF(t, there)
		client, there := s.connect(t)
		talk(t, client, there)
	})
}

func TestClientThatComesAndGoesHarmsNobody(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Backlog: 20}, addr)
		for range 10 {
			must(t, dial(t, addr).Close())
		}
		client := dial(t, addr)
		send(t, client, "here to stay")
		for { // those that left may or may not be seen
			server := accept(t, l)
			first := make([]byte, 4)
			if _, err := io.ReadFull(server, first); err == io.EOF {
				must(t, server.Close())
				continue
			}
			expect(t, server, " to stay")
			break
		}
	})
}

func TestWriteToAPeerThatIsGone(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		must(t, b.Close())
		var err error
		eventually(t, "a write fails", func() bool {
			_, err = a.Write([]byte("anybody?"))
			return err != nil
		})
		matches(t, err, syscall.EPIPE)
		isWriteError(t, err, a)
		if oe := (*net.OpError)(nil); errors.As(err, &oe) && oe.Timeout() {
			t.Errorf("%#v looks like a deadline", err)
		}
		_, err = a.Write([]byte("nobody"))
		matches(t, err, syscall.EPIPE)
		if c, ok := a.(*ipc.Conn); ok {
			_, err = c.WriteBuffers(&net.Buffers{[]byte("any"), []byte("body?")})
			matches(t, err, syscall.EPIPE)
		}
		expectEOF(t, a)
	})
}

func TestPeerThatLeavesEndsWritesThatWait(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		writing := beginWrite(a)
		awaitWrites(t, a, 1)
		must(t, b.Close())
		matches(t, <-writing, syscall.EPIPE)
	})
}

func TestPeerThatLeavesEndsReadsThatWait(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		reading := beginRead(a)
		awaitReads(t, a, 1)
		must(t, b.Close())
		if err := <-reading; err != io.EOF {
			t.Errorf("read: %v, want io.EOF itself", err)
		}
	})
}

func TestReadsAndWritesOfNothing(t *testing.T) {
	nothing := func(t *testing.T, a, b end) {
		for _, p := range [][]byte{nil, {}} {
			if n, err := a.Write(p); n != 0 || err != nil {
				t.Errorf("write of nothing: %d, %v", n, err)
			}
			if n, err := a.Read(p); n != 0 || err != nil {
				t.Errorf("read of nothing: %d, %v", n, err)
			}
		}
		if c, ok := a.(*ipc.Conn); ok {
			bufs := net.Buffers{nil, {}}
			if n, err := c.WriteBuffers(&bufs); n != 0 || err != nil || len(bufs) != 0 {
				t.Errorf("write of no buffers: %d, %v, %d left", n, err, len(bufs))
			}
			if n, err := c.ReadBuffers([][]byte{nil, {}}); n != 0 || err != nil {
				t.Errorf("read of no buffers: %d, %v", n, err)
			}
		}
		send(t, a, "something")
		expect(t, b, "something") // and nothing before it, no end of the stream either
	}
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) { nothing(t, a, b) })
	t.Run("Pipe", func(t *testing.T) {
		story(t)
		a, b := pipePair(t)
		nothing(t, a, b)
	})
}

func TestWritesAreNotMingled(t *testing.T) {
	story(t)
	a, b := pair(t)
	const writers, records, size = 6, 8, 300_000 // larger than any socket buffer
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			record := bytes.Repeat([]byte{byte(w)}, size)
			for i := range records {
				var err error
				if i%2 == 0 {
					_, err = a.Write(record)
				} else {
					_, err = a.WriteBuffers(&net.Buffers{record[:size/3], record[size/3:]})
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	record := make([]byte, size)
	for range writers * records {
		if _, err := io.ReadFull(b, record); err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(record, record[:1]); n != size {
			t.Fatalf("%d bytes of another write among those of writer %d", size-n, record[0])
		}
	}
	writing.Wait()
}

func TestConcurrentReadsShareTheStream(t *testing.T) {
	story(t)
	a, b := pair(t)
	const size = 1 << 20
	var sum, count atomic.Int64
	var reading sync.WaitGroup
	for range 4 {
		reading.Go(func() {
			for buf := make([]byte, 1000); ; {
				n, err := b.Read(buf)
				count.Add(int64(n))
				for _, x := range buf[:n] {
					sum.Add(int64(x))
				}
				if err != nil {
					if err != io.EOF {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	data, want := pattern(size), int64(0)
	for _, x := range data {
		want += int64(x)
	}
	send(t, a, string(data))
	must(t, a.Close())
	reading.Wait()
	if count.Load() != size || sum.Load() != want {
		t.Errorf("%d bytes of sum %d arrive, want %d of sum %d", count.Load(), sum.Load(), size, want)
	}
}

func TestWriteBuffersTakesWhatItWrote(t *testing.T) {
	story(t)
	a, b := pair(t)
	const size, pieces = 3_000_000, 3000 // more pieces than one system call takes
	data := pattern(size)
	var bufs net.Buffers
	for rest := data; len(rest) > 0; {
		n := min(size/pieces, len(rest))
		bufs = append(bufs, nil, rest[:n])
		rest = rest[n:]
	}
	bufs = append(bufs, nil)
	writing := begin(func() error {
		n, err := a.WriteBuffers(&bufs)
		if err == nil && (n != size || len(bufs) != 0) {
			err = fmt.Errorf("wrote %d of %d, %d buffers left", n, size, len(bufs))
		}
		return err
	})
	got := make([]byte, size)
	_, err := io.ReadFull(b, got)
	must(t, err)
	must(t, <-writing)
	if !bytes.Equal(got, data) {
		t.Error("the bytes were changed on their way")
	}
}

func TestWriteBuffersThatFailsLeavesTheRest(t *testing.T) {
	story(t)
	a, _ := pair(t)
	const size = 8 << 20
	data := pattern(size)
	bufs := net.Buffers{data[:size/4], data[size/4 : size/2], data[size/2:]}
	must(t, a.SetWriteDeadline(time.Now().Add(brief)))
	n, err := a.WriteBuffers(&bufs)
	timedOut(t, err)
	if left := bytes.Join(bufs, nil); !bytes.Equal(left, data[n:]) {
		t.Errorf("%d bytes written, %d left of %d", n, len(left), size)
	}
}

func TestReadBuffersFillsInTurn(t *testing.T) {
	story(t)
	a, b := pair(t)
	one, two, three := make([]byte, 4), make([]byte, 3), make([]byte, 100)
	reading := begin(func() error { // waits for the first byte, and not for full buffers
		n, err := b.ReadBuffers([][]byte{nil, one})
		if err == nil && (n != 1 || one[0] != '!') {
			err = fmt.Errorf("read %d %q", n, one)
		}
		return err
	})
	send(t, a, "!")
	must(t, <-reading)

	send(t, a, "onetwothree")
	var got []byte
	for len(got) < len("onetwothree") {
		n, err := b.ReadBuffers([][]byte{one, {}, two, three})
		must(t, err)
		if n < 1 {
			t.Fatal("read nothing, without an error")
		}
		got = append(got, slices.Concat(one, two, three)[:n]...)
	}
	if string(got) != "onetwothree" {
		t.Errorf("read %q", got)
	}
	must(t, a.Close())
	if n, err := b.ReadBuffers([][]byte{one, two}); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v; want io.EOF", n, err)
	}
}

func TestCopyBothWays(t *testing.T) {
	story(t)
	const size = 3 << 20
	data := pattern(size)
	a, b := pair(t)
	c, d := pair(t)
	relaying := begin(func() error { // from one connection to another
		n, err := io.Copy(c, b)
		if err == nil && n != size {
			err = fmt.Errorf("relayed %d of %d", n, size)
		}
		return errors.Join(err, c.Close())
	})
	sending := begin(func() error {
		n, err := io.Copy(a, bytes.NewReader(data))
		if err == nil && n != size {
			err = fmt.Errorf("sent %d of %d", n, size)
		}
		return errors.Join(err, a.Close())
	})
	var got bytes.Buffer
	if n, err := io.Copy(&got, d); n != size || err != nil {
		t.Errorf("received %d, %v", n, err)
	}
	must(t, <-sending)
	must(t, <-relaying)
	if !bytes.Equal(got.Bytes(), data) {
		t.Error("the bytes were changed on their way")
	}
}

func TestHalfClose(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client, server := connect(t, l)
		send(t, client, "question")
		if err := client.CloseWrite(); runtime.GOOS == "windows" {
			matches(t, err, errors.ErrUnsupported)
			matches(t, client.CloseRead(), errors.ErrUnsupported)
			expect(t, server, "question")
			talk(t, client, server)
			return
		} else {
			must(t, err)
		}
		expect(t, server, "question")
		expectEOF(t, server)
		_, err := client.Write([]byte("more"))
		matches(t, err, syscall.EPIPE)
		send(t, server, "answer")
		expect(t, client, "answer")

		must(t, client.CloseRead())
		expectEOF(t, client)
		must(t, client.Close())
	})
}

// ---------------------------------------------------------------------------
// Closing connections

func TestCloseEndsReadsAndWritesThatWait(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		var waiting []<-chan error
		for range 2 { // the second queues behind the first
			waiting = append(waiting, beginRead(a))
		}
		awaitReads(t, a, 2)
		for n := range 2 {
			waiting = append(waiting, beginWrite(a))
			awaitWrites(t, a, n+1)
		}
		must(t, a.Close())
		for _, done := range waiting {
			matches(t, <-done, net.ErrClosed)
		}
		if _, ok := b.(messenger); ok {
			return
		}
		n, err := io.Copy(io.Discard, b)
		if err != nil || n == 0 && runtime.GOOS != "windows" { // where what was not read is taken back
			t.Errorf("of what was written %d bytes are left, %v", n, err)
		}
	})
}

func TestNothingWorksAfterClose(t *testing.T) {
	story(t)
	c, peer := pair(t)
	send(t, peer, "unread")
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, c.Close())
	saysClosed(t, map[string]func() error{
		"Close":            c.Close,
		"Read":             func() error { _, err := c.Read(make([]byte, 1)); return err },
		"Write":            func() error { _, err := c.Write(make([]byte, 1)); return err },
		"ReadBuffers":      func() error { _, err := c.ReadBuffers([][]byte{make([]byte, 1)}); return err },
		"WriteBuffers":     func() error { _, err := c.WriteBuffers(&net.Buffers{make([]byte, 1)}); return err },
		"WriteTo":          func() error { _, err := c.WriteTo(io.Discard); return err },
		"ReadFrom":         func() error { _, err := c.ReadFrom(strings.NewReader("x")); return err },
		"SetDeadline":      func() error { return c.SetDeadline(time.Time{}) },
		"SetReadDeadline":  func() error { return c.SetReadDeadline(time.Now()) },
		"SetWriteDeadline": func() error { return c.SetWriteDeadline(time.Now()) },
		"Peer":             func() error { _, err := c.Peer(); return err },
		"File":             func() error { _, err := c.File(); return err },
		"Control":          func() error { return raw.Control(func(uintptr) { t.Error("the descriptor is gone") }) },
	})
}

// saysClosed fails the test unless each call does.
func saysClosed(t *testing.T, calls map[string]func() error) {
	t.Helper()
	for what, call := range calls {
		if err := call(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		} else if oe := (*net.OpError)(nil); !strings.Contains(what, "Control") && !errors.As(err, &oe) {
			t.Errorf("%s after Close: %#v is not a *net.OpError", what, err)
		}
	}
}

func TestOneOfManyClosesSucceeds(t *testing.T) {
	for kind, open := range map[string]func(t *testing.T) io.ReadCloser{
		"Conn":       func(t *testing.T) io.ReadCloser { c, _ := pair(t); return c },
		"MsgConn":    func(t *testing.T) io.ReadCloser { c, _ := msgPair(t); return msgEnd{c} },
		"PipeReader": func(t *testing.T) io.ReadCloser { r, _ := pipe(t); return r },
	} {
		t.Run(kind, func(t *testing.T) {
			story(t)
			for range 100 {
				c := open(t)
				reading := beginRead(c)
				oneCloseSucceeds(t, c)
				matches(t, <-reading, net.ErrClosed)
			}
		})
	}
}

func TestCloseWhileEverythingIsUnderWay(t *testing.T) {
	story(t)
	for range 50 {
		c, peer := pair(t)
		raw, err := c.SyscallConn()
		must(t, err)
		ended := untilClosed(t,
			func() error { _, err := c.Read(make([]byte, 10)); return err },
			func() error { _, err := c.Write(make([]byte, 1000)); return err },
			func() error { return c.SetReadDeadline(time.Now().Add(time.Hour)) },
			func() error { return c.SetDeadline(time.Time{}) },
			func() error { _, err := c.Peer(); return err },
			func() error { return raw.Control(func(uintptr) {}) },
			func() error { _, err := c.WriteBuffers(&net.Buffers{make([]byte, 10)}); return err },
		)
		send(t, peer, "some news")
		expect(t, peer, string(make([]byte, 2000)))
		must(t, c.Close())
		ended()
		peer.Close()
	}
}

// untilClosed makes each call over and over in a goroutine of its own, until it
// says that the end is closed; the function that it returns waits for all of them.
func untilClosed(t *testing.T, calls ...func() error) (ended func()) {
	var busy sync.WaitGroup
	for _, call := range calls {
		busy.Go(func() {
			for {
				if err := call(); errors.Is(err, net.ErrClosed) {
					return
				} else if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	return busy.Wait
}

// ---------------------------------------------------------------------------
// Deadlines

func TestDeadlineInThePastFailsAtOnce(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		send(t, b, "kept") // even though there is something to read
		must(t, a.SetDeadline(time.Now().Add(-time.Hour)))
		for range 3 {
			n, err := a.Read(make([]byte, 10))
			timedOut(t, err)
			isReadError(t, err, a)
			if n != 0 {
				t.Errorf("read %d bytes with the error", n)
			}
			n, err = a.Write([]byte("unsaid"))
			timedOut(t, err)
			isWriteError(t, err, a)
			if n != 0 {
				t.Errorf("wrote %d bytes with the error", n)
			}
		}
		must(t, a.SetDeadline(time.Time{}))
		expect(t, a, "kept")
		talk(t, a, b)
	})
}

func TestDeadlineIsNotEarly(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		for range 3 {
			begun := time.Now()
			must(t, a.SetReadDeadline(begun.Add(brief)))
			_, err := a.Read(make([]byte, 1))
			timedOut(t, err)
			if waited := time.Since(begun); waited < brief {
				t.Errorf("read gave up after %v, before %v", waited, brief)
			}
		}
		must(t, a.SetReadDeadline(time.Now().Add(time.Hour)))
		talk(t, a, b)

		begun := time.Now()
		must(t, a.SetWriteDeadline(begun.Add(brief)))
		n, err := writeMuch(a)
		timedOut(t, err)
		if waited := time.Since(begun); waited < brief {
			t.Errorf("write gave up after %v, before %v", waited, brief)
		}
		if _, ok := a.(messenger); !ok && runtime.GOOS != "windows" { // where what was not read is taken back
			must(t, a.Close())
			if got, err := io.Copy(io.Discard, b); got != int64(n) || err != nil {
				t.Errorf("%d bytes were written it says, %d arrive, %v", n, got, err)
			}
		}
	})
}

func TestDeadlineEndsWhatWaitsAlready(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, _ end) {
		reading, writing := beginRead(a), beginWrite(a)
		awaitReads(t, a, 1)
		awaitWrites(t, a, 1)
		must(t, a.SetReadDeadline(time.Now().Add(-time.Second)))
		timedOut(t, <-reading)
		select {
		case err := <-writing:
			t.Fatalf("the read deadline ends a write: %v", err)
		default:
		}
		must(t, a.SetWriteDeadline(time.Now().Add(brief)))
		timedOut(t, <-writing)
	})
}

func TestDeadlineThatIsClearedIsNone(t *testing.T) {
	story(t)
	a, b := pair(t)
	must(t, a.SetReadDeadline(time.Now().Add(brief)))
	reading := begin(func() error {
		_, err := io.ReadFull(a, make([]byte, 4))
		return err
	})
	must(t, a.SetReadDeadline(time.Time{}))
	_, err := b.Read(nil)
	must(t, err)
	must(t, b.SetReadDeadline(time.Now().Add(2*brief))) // outlasts the deadline that was
	_, err = b.Read(make([]byte, 1))
	timedOut(t, err)
	send(t, b, "here")
	if err := <-reading; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	} else if err != nil {
		// The machine slept between setting and clearing it: nothing is proven.
		t.Log("the deadline passed before it could be cleared")
	}
}

func TestReadAndWriteDeadlinesAreApart(t *testing.T) {
	story(t)
	a, b := pair(t)
	past := time.Now().Add(-time.Hour)
	must(t, a.SetReadDeadline(past))
	send(t, a, "written")
	expect(t, b, "written")
	must(t, a.SetReadDeadline(time.Time{}))
	must(t, a.SetWriteDeadline(past))
	send(t, b, "read")
	expect(t, a, "read")
	_, err := a.Write([]byte("late"))
	timedOut(t, err)
}

func TestReadThatTimesOutLosesNothing(t *testing.T) {
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) { losesNothingToDeadlines(t, b, a) })
	t.Run("Pipe", func(t *testing.T) {
		story(t)
		r, w := pipe(t)
		losesNothingToDeadlines(t, r, w)
	})
}

// losesNothingToDeadlines reads what is written at the other end, with deadlines
// that pass all the time.
func losesNothingToDeadlines(t *testing.T, r interface {
	io.Reader
	SetReadDeadline(time.Time) error
}, w io.WriteCloser) {
	const records = 3000
	writing := trickle(records, w, func(i int) error {
		_, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(i)))
		return err
	})
	var got []byte
	buf := make([]byte, 20)
	inAHurry(t, r, func() error {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		return err
	})
	must(t, <-writing)
	if len(got) != 8*records {
		t.Fatalf("%d bytes of %d arrive", len(got), 8*records)
	}
	for i := range records {
		if x := binary.BigEndian.Uint64(got[8*i:]); x != uint64(i) {
			t.Fatalf("record %d is %d", i, x)
		}
	}
}

// trickle puts so many things into an end, which it closes then, in a goroutine that
// lets the other end wait now and then.
func trickle(things int, w io.Closer, put func(i int) error) <-chan error {
	return begin(func() error {
		for i := range things {
			if err := put(i); err != nil {
				return err
			}
			if i%16 == 0 {
				time.Sleep(50 * time.Microsecond)
			}
		}
		return w.Close()
	})
}

// inAHurry takes what there is from an end until its other end is closed, with
// deadlines that pass all the time.
func inAHurry(t *testing.T, r interface{ SetReadDeadline(time.Time) error }, take func() error) {
	t.Helper()
	for timeouts := 0; ; {
		must(t, r.SetReadDeadline(time.Now().Add(time.Duration(timeouts%7)*20*time.Microsecond)))
		err := take()
		if err == io.EOF {
			if timeouts == 0 {
				t.Error("nothing timed out: nothing was tested")
			}
			return
		}
		if err != nil {
			timedOut(t, err)
			timeouts++
		}
	}
}

// ---------------------------------------------------------------------------
// Costs

func TestNothingIsLeftAfterManyRounds(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		leavesNothing(t, 1000, func() {
			l, err := ipc.Listen(addr)
			must(t, err)
			client, err := ipc.Dial(addr)
			must(t, err)
			server, err := l.AcceptConn()
			must(t, err)
			reading := begin(func() error { _, err := io.ReadFull(server, make([]byte, 4)); return err })
			send(t, client, "ping")
			must(t, <-reading)
			_, err = ipc.Listen(addr) // one that fails
			matches(t, err, ipc.ErrAddrInUse)
			must(t, client.SetDeadline(time.Now().Add(time.Hour)))
			_, err = ipc.Dialer{Check: func(ipc.Peer) error { return io.EOF }}.Dial(addr)
			matches(t, err, ipc.ErrUntrusted)
			must(t, client.Close())
			expectEOF(t, server)
			must(t, server.Close())
			must(t, l.Close())
			_, err = ipc.Dial(addr)
			matches(t, err, ipc.ErrNoListener)
		})
	})
}

func TestReadAndWriteAllocateNothing(t *testing.T) {
	overEachEnd(t, func(t *testing.T, a, b end) {
		out, in := make([]byte, 64), make([]byte, 64)
		exchange := func(from end) error {
			if _, err := a.Write(out); err != nil {
				return err
			}
			_, err := io.ReadFull(from, in)
			return err
		}
		allocatesNothing(t, "a write and a read that do not wait", func() error { return exchange(b) })
		echoing := begin(func() error {
			buf := make([]byte, 64)
			for {
				n, err := b.Read(buf)
				if err != nil {
					return err
				}
				if _, err := b.Write(buf[:n]); err != nil {
					return err
				}
			}
		})
		roundTrip := func() error { return exchange(a) } // here reads wait
		allocatesNothing(t, "a round trip", roundTrip)
		must(t, a.SetDeadline(time.Now().Add(time.Hour)))
		must(t, b.SetDeadline(time.Now().Add(time.Hour)))
		allocatesNothing(t, "a round trip with deadlines", roundTrip)
		must(t, a.Close())
		if err := <-echoing; err != io.EOF {
			t.Error(err)
		}
	})
}

// allocatesNothing fails the test if a thing done many times allocates.
func allocatesNothing(t *testing.T, what string, do func() error) {
	t.Helper()
	if underRace() {
		t.Skip("the race detector allocates")
	}
	if n := testing.AllocsPerRun(500, func() {
		if err := do(); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%s: %v allocations", what, n)
	}
}

func TestBuffersAllocateNothing(t *testing.T) {
	story(t)
	a, b := pair(t)
	one, two := make([]byte, 32), make([]byte, 32)
	in := [][]byte{one, two}
	backing := make([][]byte, 2)
	bufs := new(net.Buffers)
	allocatesNothing(t, "WriteBuffers and ReadBuffers", func() error {
		backing[0], backing[1] = one, two
		*bufs = backing
		_, err := a.WriteBuffers(bufs)
		for got := int64(0); err == nil && got < 64; {
			var n int64
			n, err = b.ReadBuffers(in)
			got += n
		}
		return err
	})
}

// ---------------------------------------------------------------------------
// HTTP

func TestHTTPServerAndTransport(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		mux := http.NewServeMux()
		mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "hello from %s", r.Context().Value(http.LocalAddrContextKey))
		})
		mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
		server := &http.Server{Handler: mux, ReadTimeout: patience, WriteTimeout: patience, IdleTimeout: patience}
		serving := begin(func() error { return server.Serve(l) })

		transport := &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return ipc.Dialer{}.DialContext(ctx, addr)
			},
		}
		client := &http.Client{Transport: transport, Timeout: patience}
		get := func(do func() (*http.Response, error)) (string, error) {
			resp, err := do()
			if err != nil {
				return "", err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			return string(body), err
		}

		var busy sync.WaitGroup
		for range 8 {
			busy.Go(func() {
				for range 5 {
					body, err := get(func() (*http.Response, error) { return client.Get("http://server/hello") })
					if want := "hello from " + addr.String(); err != nil || body != want {
						t.Errorf("%q, %v; want %q", body, err, want)
					}
				}
				big := string(pattern(1 << 20))
				body, err := get(func() (*http.Response, error) {
					return client.Post("http://server/echo", "application/octet-stream", strings.NewReader(big))
				})
				if err != nil || body != big {
					t.Errorf("%d bytes come back of %d, %v", len(body), len(big), err)
				}
			})
		}
		busy.Wait()
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		must(t, server.Shutdown(ctx))
		matches(t, <-serving, http.ErrServerClosed)
	})
}
