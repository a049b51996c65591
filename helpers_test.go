//go:build unix || windows

// The tests see the package as its users do, and hold on every system that it supports; what only one system has is in
// the files that are named after it. A story that holds for streams, for messages and for pipes is told once: see
// overEachEnd and overEachServer. Tests of what users do not see are in the files internal*_test.go.
//
// Every test begins with story, which ends the process with all stacks if the test hangs, and fails it if it leaves a
// goroutine or a descriptor behind. Addresses come from pathAddr and nameAddr, which fail the test if a file is left.
// Child processes are this very program, see startChild.
package ipc_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
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

func TestMain(m *testing.M) { runTests(m) }

// runTests is TestMain of a package that tells stories: it runs the tests, or plays the role of a child.
func runTests(m *testing.M) {
	if role := os.Getenv(childRole); role != "" {
		os.Exit(childMain(role, os.Args[1:]))
	}
	code := m.Run()
	if code == 0 && anyTogether {
		if err := nothingLeft(atFirst.goroutines, atFirst.descriptors); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
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
	t.Cleanup(func() { dog.Stop() })
	top, _, _ := strings.Cut(t.Name(), "/")
	if _, ok := sideBySide.Load(top); ok {
		return
	}
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		if err := nothingLeft(goroutines, descriptors); err != nil {
			t.Error(err)
		}
	})
}

// together begins a test that owns all that it touches: it runs beside others that do,
// after all that do not. What they leave behind is looked for when all have ended: see
// TestMain. It is not for a test that looks at or changes what the whole process has, as
// awaitParked, leavesNothing and framed do.
func together(t *testing.T) {
	t.Helper()
	sideBySide.Store(t.Name(), true)
	if !anyTogether { // before any of them goes on
		anyTogether = true
		warmUp()
		atFirst.goroutines, atFirst.descriptors = runtime.NumGoroutine(), openDescriptors()
	}
	t.Parallel()
}

var (
	sideBySide  sync.Map // the names of those tests
	anyTogether bool
	atFirst     struct{ goroutines, descriptors int } // when the first of them began
)

// nothingLeft waits until there are no more goroutines and descriptors than that.
func nothingLeft(goroutines, descriptors int) error {
	if !holdsSoon(func() bool { return runtime.NumGoroutine() <= goroutines }) {
		return fmt.Errorf("%d goroutines at the start, %d at the end\n\n%s", goroutines, runtime.NumGoroutine(), stacks())
	}
	return noMoreDescriptors(descriptors)
}

// warmUp lets the runtime open the descriptors and begin the goroutines that it keeps for good.
var warmUp = sync.OnceFunc(func() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt)
	signal.Stop(signals)
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
	must(t, noMoreDescriptors(descriptors))
}

// noMoreDescriptors waits until no more are open than before: those that are thrown away may
// be closed a little later, on another goroutine.
func noMoreDescriptors(before int) error {
	if !holdsSoon(func() bool { return openDescriptors() <= before }) {
		return fmt.Errorf("%d descriptors became %d", before, openDescriptors())
	}
	return nil
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
	SetSpin(time.Duration)
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

func (e pipeEnd) SetSpin(d time.Duration) {
	e.PipeReader.SetSpin(d)
	e.PipeWriter.SetSpin(d)
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

// sure2 is sure for two values.
func sure2[A, B any](a A, b B, err error) (A, B) { return sure(a, err), b }

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
// Addresses, peers and errors, in words

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

// second returns the second of two results.
func second[T any](_ T, err error) error { return err }

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

// allocatesNothing fails the test if a thing done many times allocates each time that it
// is tried: the runtime, and waits on a busy machine, may do so now and then.
func allocatesNothing(t *testing.T, what string, do func() error) {
	t.Helper()
	if underRace() {
		t.Skip("the race detector allocates")
	}
	var n float64
	for range 5 {
		n = testing.AllocsPerRun(500, func() {
			if err := do(); err != nil {
				t.Error(err)
			}
		})
		if n == 0 || t.Failed() {
			return
		}
	}
	t.Errorf("%s: %v allocations", what, n)
}

// ---------------------------------------------------------------------------
// Words for messages

// framesMessages is the variable of the package.
var framesMessages bool

// framedHere is whether this system keeps no boundaries of messages.
var framedHere = framesMessages

// frameMessages decides how the message connections made from now on keep their boundaries, and returns how they did
// before. The tests tell every story about messages over frames too, whatever the system.
func frameMessages(on bool) (before bool) {
	before, framesMessages = framesMessages, on
	return before
}

// framed makes the messages of the test travel in frames.
func framed(t *testing.T) {
	before := frameMessages(true)
	t.Cleanup(func() { frameMessages(before) })
}

// overEachFraming tells a story of messages as the system carries them, where it
// does, and of messages in frames.
func overEachFraming(t *testing.T, tell func(t *testing.T)) {
	if !framedHere {
		t.Run("Native", func(t *testing.T) { story(t); tell(t) })
	}
	t.Run("Framed", func(t *testing.T) { framed(t); story(t); tell(t) })
}

// overEachMsgAddr tells the story over a path and over a name.
func overEachMsgAddr(t *testing.T, tell func(t *testing.T, addr ipc.Addr)) {
	overEachFraming(t, func(t *testing.T) {
		overEachAddr(t, tell)
	})
}

// overEachMsgConn tells the story over connections however they are made.
func overEachMsgConn(t *testing.T, tell func(t *testing.T, a, b *ipc.MsgConn)) {
	overEachFraming(t, func(t *testing.T) {
		overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			a, b := msgConnect(t, listenMsg(t, addr))
			tell(t, a, b)
		})
		t.Run("Pair", func(t *testing.T) {
			story(t)
			a, b := msgPair(t)
			tell(t, a, b)
		})
	})
}

func listenMsg(t *testing.T, addr ipc.Addr) *ipc.MsgListener {
	t.Helper()
	return listenMsgWith(t, ipc.ListenConfig{}, addr)
}

func listenMsgWith(t *testing.T, lc ipc.ListenConfig, addr ipc.Addr) *ipc.MsgListener {
	t.Helper()
	l, err := lc.ListenMsg(addr)
	return kept(t, l, err)
}

func dialMsg(t *testing.T, addr net.Addr) *ipc.MsgConn {
	t.Helper()
	c, err := ipc.DialMsg(addr.(ipc.Addr))
	return kept(t, c, err)
}

func acceptMsg(t *testing.T, l *ipc.MsgListener) *ipc.MsgConn {
	t.Helper()
	c, err := l.Accept()
	return kept(t, c, err)
}

func msgConnect(t *testing.T, l *ipc.MsgListener) (client, server *ipc.MsgConn) {
	t.Helper()
	return dialMsg(t, l.Addr()), acceptMsg(t, l)
}

func msgPair(t *testing.T) (a, b *ipc.MsgConn) {
	t.Helper()
	a, b, err := ipc.MsgPair()
	return kept(t, a, err), kept(t, b, err)
}

func sendMsg(t *testing.T, c *ipc.MsgConn, text string) {
	t.Helper()
	must(t, c.Send([]byte(text)))
}

func expectMsg(t *testing.T, c *ipc.MsgConn, text string) {
	t.Helper()
	expect(t, msgEnd{c}, text)
}

func expectMsgEOF(t *testing.T, c messenger) {
	t.Helper()
	if n, err := c.Recv(make([]byte, 16)); n != 0 || err != io.EOF {
		t.Fatalf("received %d, %v; want io.EOF itself", n, err)
	}
	if p, err := c.RecvAppend([]byte("kept")); string(p) != "kept" || err != io.EOF {
		t.Fatalf("received %q, %v; want io.EOF itself", p, err)
	}
	if n, err := c.Recv(nil); n != 0 || err != io.EOF {
		t.Fatalf("received %d, %v into nothing; want io.EOF itself", n, err)
	}
}

func msgTalk(t *testing.T, a, b *ipc.MsgConn) {
	t.Helper()
	talk(t, msgEnd{a}, msgEnd{b})
}

// isOpError fails the test unless err is a *net.OpError of that operation.
func isOpError(t *testing.T, err error, op string) {
	t.Helper()
	if oe := (*net.OpError)(nil); !errors.As(err, &oe) || oe.Op != op {
		t.Fatalf("%#v (%v) is not a *net.OpError of %q", err, err, op)
	}
}

// needsEmpty skips the test where no empty message can be sent, once it has seen
// that the package says so.
func needsEmpty(t *testing.T) {
	t.Helper()
	a, b := msgPair(t)
	err := a.Send(nil)
	cannot := runtime.GOOS == "freebsd" || runtime.GOOS == "openbsd" || runtime.GOOS == "dragonfly"
	if errors.Is(err, errors.ErrUnsupported) && cannot && a.Native() {
		isOpError(t, err, "send")
		matches(t, a.Send([]byte{}), errors.ErrUnsupported)
		msgTalk(t, a, b)
		t.Skip("this system cannot send an empty message")
	}
	must(t, err)
}

// numbered returns a message of at least 8 bytes that tells which one it is, and
// whether it is whole.
func numbered(i, length int) []byte {
	p := pattern(max(8, length))
	binary.BigEndian.PutUint32(p, uint32(i))
	binary.BigEndian.PutUint32(p[4:], uint32(len(p)))
	return p
}

// numberOf returns the number of a message that is whole.
func numberOf(p []byte) (int, error) {
	if len(p) < 8 || int(binary.BigEndian.Uint32(p[4:])) != len(p) {
		return 0, fmt.Errorf("a message of %d bytes is torn: %q", len(p), p[:min(len(p), 16)])
	}
	i := int(binary.BigEndian.Uint32(p))
	if !bytes.Equal(p, numbered(i, len(p))) {
		return 0, fmt.Errorf("message %d of %d bytes is garbled", i, len(p))
	}
	return i, nil
}

// everythingArrivesOnce puts numbered things into an end, by many senders of which
// each puts its share in order, and has many receivers take them from the other end
// until the first is closed. A receiver is told which one it is, and its turn.
func everythingArrivesOnce(t *testing.T, w io.Closer, things, senders int, put func(n int) error, receivers int, take func(r, turn int) (int, error)) {
	t.Helper()
	var sending, receiving sync.WaitGroup
	for s := range senders {
		sending.Go(func() {
			for n := s * things / senders; n < (s+1)*things/senders; n++ {
				if err := put(n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var mu sync.Mutex
	seen := map[int]int{}
	for r := range receivers {
		receiving.Go(func() {
			for turn := r; ; turn++ {
				n, err := take(r, turn)
				if err == io.EOF {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[n]++
				mu.Unlock()
			}
		})
	}
	sending.Wait()
	must(t, w.Close())
	receiving.Wait()
	for n := range things {
		if seen[n] != 1 {
			t.Errorf("number %d arrives %d times", n, seen[n])
		}
	}
	if len(seen) != things {
		t.Errorf("%d things arrive of %d", len(seen), things)
	}
}

func pipe(t *testing.T) (*ipc.PipeReader, *ipc.PipeWriter) {
	t.Helper()
	r, w, err := ipc.Pipe()
	return kept(t, r, err), kept(t, w, err)
}

// isPipeError checks that err is the *net.OpError of that operation on a pipe.
func isPipeError(t *testing.T, err error, op string) {
	t.Helper()
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != op || oe.Net != "pipe" {
		t.Errorf("%#v is not a *net.OpError of %q on a pipe", err, op)
	}
}

// osPipe returns the ends of a pipe of package os.
func osPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	return kept(t, r, err), kept(t, w, err)
}

// ---------------------------------------------------------------------------
// Words for files

// A carrier is a connection that files travel over.
type carrier interface {
	SendFiles(files ...*os.File) error
	RecvFiles(max int) ([]*os.File, error)
	Close() error
	SetDeadline(t time.Time) error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	SyscallConn() (syscall.RawConn, error)
}

// overEachCarrier tells a story over each kind of connection, however it is made.
func overEachCarrier(t *testing.T, tell func(t *testing.T, a, b carrier)) {
	t.Run("Stream", func(t *testing.T) {
		overEachConn(t, func(t *testing.T, a, b *ipc.Conn) { tell(t, a, b) })
	})
	t.Run("Messages", func(t *testing.T) {
		overEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) { tell(t, a, b) })
	})
}

// overEachPair tells a story over a pair of each kind.
func overEachPair(t *testing.T, tell func(t *testing.T, a, b carrier)) {
	t.Run("Stream", func(t *testing.T) {
		story(t)
		a, b := pair(t)
		tell(t, a, b)
	})
	t.Run("Messages", func(t *testing.T) {
		story(t)
		a, b := msgPair(t)
		tell(t, a, b)
	})
}

// say sends the text over a carrier, hear receives it.
func say(t *testing.T, c carrier, text string) { t.Helper(); send(t, endOf(c), text) }

func hear(t *testing.T, c carrier, text string) { t.Helper(); expect(t, endOf(c), text) }

func hearEOF(t *testing.T, c carrier) { t.Helper(); expectEOF(t, endOf(c)) }

func endOf(c carrier) end {
	if m, ok := c.(*ipc.MsgConn); ok {
		return msgEnd{m}
	}
	return c.(*ipc.Conn)
}

// textFile returns an open file that nobody else can open, with the text in it.
func textFile(t *testing.T, text string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func sendFiles(t *testing.T, c carrier, files ...*os.File) {
	t.Helper()
	must(t, c.SendFiles(files...))
}

// recvFiles receives exactly n files.
func recvFiles(t *testing.T, c carrier, n int) []*os.File {
	t.Helper()
	files, err := c.RecvFiles(n)
	must(t, err)
	for _, f := range files {
		t.Cleanup(func() { f.Close() })
	}
	if len(files) != n {
		t.Fatalf("%d files arrive, want %d", len(files), n)
	}
	return files
}

// holds checks what there is to read in the file, from where it stands.
func holds(t *testing.T, f *os.File, text string) {
	t.Helper()
	if got, err := io.ReadAll(f); string(got) != text || err != nil {
		t.Errorf("the file holds %q, %v; want %q", got, err, text)
	}
}

// cards returns n open files that tell their places in the order.
func cards(t *testing.T, n int) []*os.File {
	t.Helper()
	var deck []byte
	for i := range n {
		deck = binary.BigEndian.AppendUint32(deck, uint32(i))
	}
	path := filepath.Join(t.TempDir(), "deck")
	must(t, os.WriteFile(path, deck, 0o600))
	files := make([]*os.File, n)
	for i := range files {
		f, err := os.Open(path)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		_, err = f.Seek(int64(4*i), io.SeekStart)
		must(t, err)
		files[i] = f
	}
	return files
}

// card returns the place of a card. It leaves the position alone, which is that
// of all who have the file.
func card(f *os.File) (int, error) {
	oneCard.Lock()
	defer oneCard.Unlock()
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	var place [4]byte
	_, err = f.ReadAt(place[:], at)
	return int(binary.BigEndian.Uint32(place[:])), err
}

// oneCard is held while a card is looked at: on Windows ReadAt moves the position
// and puts it back.
var oneCard sync.Mutex

// filesStillPass proves that files still travel from a to b.
func filesStillPass(t *testing.T, a, b carrier) {
	t.Helper()
	sendFiles(t, a, textFile(t, "exchanged"))
	holds(t, recvFiles(t, b, 1)[0], "exchanged")
}

// An heir is a child to be, and the ends that it will be given.
type heir struct {
	t   *testing.T
	cmd exec.Cmd
}

func newHeir(t *testing.T) *heir { return &heir{t: t, cmd: exec.Cmd{Env: []string{}}} }

func (h *heir) gets(name string, end ipc.Inheritable) {
	h.t.Helper()
	must(h.t, ipc.Inherit(&h.cmd, name, end))
}

func (h *heir) start(role string, args ...string) *child {
	h.t.Helper()
	return startChildWith(h.t, h.cmd, role, args...)
}

// again is rerun for a child that gives its standard streams to a child of its own.
func again(role string, args ...string) *exec.Cmd {
	cmd := rerun(role, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}
