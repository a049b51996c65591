// What strace(1) sees of the package: how descriptors are made, and what a thread
// does while calls wait.
package tests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["ends at once"] = func(*kit.Parent, []string) error { return nil }
	kit.Roles["makes descriptors"] = childMakesDescriptors
	kit.Roles["waits in every way"] = childWaitsInEveryWay
}

// traceChildren makes strace run the children of the test. What it sees goes to
// the file, or with -ff to a file of that name and a suffix for each thread.
func traceChildren(t *testing.T, options ...string) (file string) {
	t.Helper()
	if kit.UnderEmulation() {
		t.Skip("strace sees the calls of the emulator")
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	file = filepath.Join(t.TempDir(), "trace")
	t.Setenv(kit.ChildExec, strings.Join(append([]string{strace, "-qq", "-o", file}, options...), " "))
	if out, err := kit.Rerun("ends at once").CombinedOutput(); err != nil {
		t.Skipf("strace may not trace here: %v: %s", err, out)
	}
	return file
}

// A tracedCall is a line of a trace.
type tracedCall struct{ name, args, result string }

func (c tracedCall) String() string { return c.name + "(" + c.args + ") = " + c.result }

var callLine = regexp.MustCompile(`^(\w+)\((.*)\) += (.*)$`)

// readTrace returns the calls of all threads in the order in which they returned.
func readTrace(t *testing.T, file string) (calls []tracedCall) {
	t.Helper()
	text, err := os.ReadFile(file)
	kit.Must(t, err)
	begun := map[string]string{} // by thread
	for line := range strings.Lines(string(text)) {
		thread, line, _ := strings.Cut(strings.TrimSpace(line), " ")
		line = strings.TrimSpace(line)
		if start, ok := strings.CutSuffix(line, "<unfinished ...>"); ok {
			begun[thread] = start
			continue
		}
		if rest, ok := strings.CutPrefix(line, "<... "); ok {
			_, rest, _ = strings.Cut(rest, "resumed>")
			line = begun[thread] + rest
		}
		if m := callLine.FindStringSubmatch(line); m != nil { // or it is a signal
			calls = append(calls, tracedCall{m[1], m[2], m[3]})
		}
	}
	return calls
}

// ---------------------------------------------------------------------------
// Descriptors

// births returns whether the call made descriptors, and whether these were
// close-on-exec from the first.
func (c tracedCall) births() (born, closeOnExec bool) {
	closeOnExec = strings.Contains(c.args, "_CLOEXEC") // in whichever of the many flags
	switch {
	case strings.HasPrefix(c.result, "-1"):
		return false, false
	case c.name == "pipe", c.name == "pipe2", c.name == "socketpair":
		return true, closeOnExec
	case strings.HasPrefix(c.name, "recv"):
		return strings.Contains(c.args, "SCM_RIGHTS"), closeOnExec
	case c.name == "getsockopt":
		return strings.Contains(c.args, "SO_PEERPIDFD") || strings.Contains(c.args, "0x4d"), true // as every pidfd is
	}
	return resultIsFD.MatchString(c.result), closeOnExec
}

// resultIsFD is how strace -y writes a descriptor that a call returns, whatever
// call that is.
var resultIsFD = regexp.MustCompile(`^\d+<`)

// TestDescriptorsAreCloseOnExecFromBirth has a child call everything that makes a
// descriptor, and looks at the system calls. That they are so in the end, which
// other tests show, leaves room for a child that starts in between.
func TestDescriptorsAreCloseOnExecFromBirth(t *testing.T) {
	kit.Story(t)
	file := traceChildren(t, "-f", "-y", "-s", "64", "-e", "signal=none")

	c, steps := makeDescriptors(t)

	step, made := "", map[string]int{}
	for _, call := range readTrace(t, file) {
		if call.name == "write" && strings.HasPrefix(call.args, "1<") {
			_, step, _ = strings.Cut(call.args, `"`)
			step, _, _ = strings.Cut(step, `\n`)
		}
		if step == "" { // the program starts
			continue
		}
		if born, closeOnExec := call.births(); born {
			made[step]++
			if !closeOnExec {
				t.Errorf("%s: children may inherit what this makes: %v", step, call)
			}
		}
	}
	for _, step := range steps {
		if made[step] == 0 {
			t.Errorf("%s: no descriptor is made, or the trace is not understood", step)
		}
		t.Logf("%3d births: %s", made[step], step)
	}
	c.End()
}

// makeDescriptors starts a child that makes descriptors in every way, and returns
// what it says of each.
func makeDescriptors(t *testing.T) (c *kit.Child, steps []string) {
	t.Helper()
	// The first descriptors of the child are those of a service manager, the rest
	// are inherited.
	h := kit.NewHeir(t)
	for range 2 {
		f := kit.FileOf(t, kit.Listen(t, ipc.Addr{}))
		t.Cleanup(func() { f.Close() })
		h.Cmd.ExtraFiles = append(h.Cmd.ExtraFiles, f)
	}
	h.Cmd.Env = append(h.Cmd.Env, "LISTEN_FDS=2")
	a, _ := kit.Pair(t)
	b, _ := kit.MsgPair(t)
	r, w := kit.Pipe(t)
	h.Gets("conn", a)
	h.Gets("msgconn", b)
	h.Gets("reader", r)
	h.Gets("writer", w)
	h.Gets("listener", kit.Listen(t, ipc.Addr{}))
	c = h.Start("makes descriptors", kit.TempDir(t), strconv.Itoa(2+len(h.Cmd.ExtraFiles)))
	for said := c.Hear(); said != "done"; said = c.Hear() {
		steps = append(steps, said)
	}
	return c, steps
}

// childMakesDescriptors makes them in every way there is, says which is next, and
// looks in the end whether all that it has are close-on-exec.
func childMakesDescriptors(p *kit.Parent, args []string) error {
	given := kit.Sure(strconv.Atoi(args[1]))
	// What else was open before is the business of the program that started the test.
	before := slices.DeleteFunc(kit.Descriptors(), func(fd int) bool { return fd > 2 && fd <= given })
	var ends []io.Closer // close-on-exec is looked at while all are open
	keep := func(more ...io.Closer) { ends = append(ends, more...) }
	var failed error
	step := func(name string, do func() error) {
		if failed == nil {
			p.Say("%s", name)
			if err := do(); err != nil {
				failed = fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	// one is a step whose call returns an end; the rest of the scenario uses it.
	var (
		path       = ipc.Path(args[0] + "/socket")
		name       = ipc.Name(kit.Unique())
		stale      = ipc.Path(args[0] + "/stale")
		long       = ipc.Path(args[0] + "/" + strings.Repeat("d", 120) + "/socket")
		messages   = ipc.Name(kit.Unique())
		a, b, c, d *ipc.Conn
		m, n       *ipc.MsgConn
		r          *ipc.PipeReader
		w          *ipc.PipeWriter
		listeners  = map[ipc.Addr]*ipc.Listener{}
		l          *ipc.MsgListener
		files      = map[string]*os.File{}
	)
	listen := func(lc ipc.ListenConfig, addr ipc.Addr) func() error {
		return func() error {
			l, err := lc.Listen(addr)
			if err == nil {
				listeners[addr] = l
				keep(l)
			}
			return err
		}
	}
	dial := func(addr ipc.Addr) func() error {
		return func() error {
			c, err := ipc.Dial(addr)
			if err == nil {
				keep(c)
			}
			return err
		}
	}
	duplicate := func(name string, file func() (*os.File, error)) {
		step("File of a "+name, func() error {
			f, err := file()
			if err == nil {
				files[name] = f
				keep(f)
			}
			return err
		})
	}
	adopt := func(name string, adopt func(f *os.File) (io.Closer, error)) {
		step("a "+name+" of a File", func() error {
			end, err := adopt(files[name])
			if err == nil {
				keep(end)
			}
			return err
		})
	}
	files3 := func(a, b interface {
		SendFiles(...*os.File) error
		RecvFiles(int) ([]*os.File, error)
	}) error {
		if err := a.SendFiles(os.Stdin, os.Stdout, os.Stderr); err != nil {
			return err
		}
		files, err := b.RecvFiles(3)
		for _, f := range files {
			keep(f)
		}
		return err
	}
	if err := os.Mkdir(filepath.Dir(long.String()), 0o700); err != nil {
		return err
	}
	if l, err := (ipc.ListenConfig{KeepName: true}).Listen(stale); err != nil {
		return err
	} else if err := l.Close(); err != nil {
		return err
	}

	step("Listen", listen(ipc.ListenConfig{}, path))
	step("Listen at a name", listen(ipc.ListenConfig{}, name))
	step("Listen at a stale path", listen(ipc.ListenConfig{}, stale))
	step("Listen at a long path", listen(ipc.ListenConfig{}, long))
	step("Listen in the place of another", listen(ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, path))
	step("Dial", dial(path))
	step("Dial a name", dial(name))
	step("Dial a long path", dial(long))
	step("Accept", func() error {
		for _, addr := range []ipc.Addr{path, name, long} {
			c, err := listeners[addr].Accept()
			if err != nil {
				return err
			}
			keep(c)
		}
		return nil
	})
	step("ListenMsg", func() (err error) {
		if l, err = ipc.ListenMsg(messages); err == nil {
			keep(l)
		}
		return err
	})
	step("DialMsg", func() error {
		c, err := ipc.DialMsg(messages)
		if err == nil {
			keep(c)
		}
		return err
	})
	step("Accept of messages", func() error {
		c, err := l.Accept()
		if err == nil {
			keep(c)
		}
		return err
	})
	step("Pair", func() (err error) {
		if a, b, err = ipc.Pair(); err != nil {
			return err
		}
		keep(a, b)
		if c, d, err = ipc.Pair(); err != nil {
			return err
		}
		keep(c, d)
		return nil
	})
	step("MsgPair", func() (err error) {
		if m, n, err = ipc.MsgPair(); err == nil {
			keep(m, n)
		}
		return err
	})
	step("Pipe", func() (err error) {
		if r, w, err = ipc.Pipe(); err == nil {
			keep(r, w)
		}
		return err
	})
	fifo := args[0] + "/fifo"
	step("Mkfifo", func() error { return ipc.Mkfifo(fifo, 0o600) })
	step("OpenFIFOReader and Writer", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), kit.Soon)
		defer cancel()
		opening := kit.Begin(func() error {
			r, err := ipc.OpenFIFOReader(ctx, fifo)
			if err == nil {
				keep(r)
			}
			return err
		})
		w, err := ipc.OpenFIFOWriter(ctx, fifo)
		err = errors.Join(err, <-opening)
		if err == nil {
			keep(w)
		}
		return err
	})
	step("RecvFiles", func() error { return files3(a, b) })
	step("RecvFiles of messages", func() error { return files3(m, n) })
	step("RecvFiles of frames", func() error {
		defer kit.FrameMessages(kit.FrameMessages(true))
		m, n := kit.Sure2(ipc.MsgPair())
		keep(m, n)
		return files3(m, n)
	})
	step("ReadMsg", func() error {
		if _, err := a.WriteMsg([]byte("x"), syscall.UnixRights(0, 1)); err != nil {
			return err
		}
		oob := kit.OobRoom(2)
		_, oobn, _, err := b.ReadMsg(make([]byte, 1), oob)
		if err != nil {
			return err
		}
		msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return err
		}
		fds, err := syscall.ParseUnixRights(&msgs[0])
		for _, fd := range fds {
			keep(os.NewFile(uintptr(fd), "received"))
		}
		return err
	})
	step("RecvPeer, of files", func() error {
		if _, err := m.WriteMsg([]byte("x"), syscall.UnixRights(0, 1)); err != nil {
			return err
		}
		_, _, err := n.RecvPeer(make([]byte, 1))
		return err
	})
	if pidfd, err := a.PeerPidfd(); err == nil { // since Linux 6.5
		keep(pidfd)
		step("PeerPidfd", func() error {
			pidfd, err := n.PeerPidfd()
			if err == nil {
				keep(pidfd)
			}
			return err
		})
	}
	duplicate("Conn", a.File)
	duplicate("MsgConn", m.File)
	duplicate("Listener", listeners[name].File)
	duplicate("PipeReader", r.File)
	duplicate("PipeWriter", w.File)
	adopt("Conn", func(f *os.File) (io.Closer, error) { return ipc.FileConn(f) })
	adopt("MsgConn", func(f *os.File) (io.Closer, error) { return ipc.FileMsgConn(f) })
	adopt("Listener", func(f *os.File) (io.Closer, error) { return ipc.FileListener(f) })
	adopt("PipeReader", func(f *os.File) (io.Closer, error) { return ipc.FileReader(f) })
	adopt("PipeWriter", func(f *os.File) (io.Closer, error) { return ipc.FileWriter(f) })
	step("a copy between sockets", func() error {
		if _, err := a.Write([]byte("spliced")); err != nil {
			return err
		}
		if err := a.CloseWrite(); err != nil {
			return err
		}
		_, err := c.ReadFrom(b)
		return err
	})
	if failed != nil {
		return failed
	}

	// These make no descriptor, but bequeath some.
	cmd := exec.Command("never-started")
	if err := ipc.Inherit(cmd, "end", d); err != nil {
		return err
	}
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	activated, err := ipc.Activated()
	if err != nil || len(activated) != 2 {
		return fmt.Errorf("activated: %d, %w", len(activated), err)
	}
	keep(activated[0], activated[1])
	for name, take := range map[string]func(string) (io.Closer, error){
		"conn":     func(s string) (io.Closer, error) { return ipc.InheritedConn(s) },
		"msgconn":  func(s string) (io.Closer, error) { return ipc.InheritedMsgConn(s) },
		"reader":   func(s string) (io.Closer, error) { return ipc.InheritedReader(s) },
		"writer":   func(s string) (io.Closer, error) { return ipc.InheritedWriter(s) },
		"listener": func(s string) (io.Closer, error) { return ipc.InheritedListener(s) },
	} {
		end, err := take(name)
		if err != nil {
			return err
		}
		keep(end)
	}
	for _, fd := range kit.Descriptors() {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if errno == 0 && !slices.Contains(before, fd) && flags&syscall.FD_CLOEXEC == 0 {
			failed = errors.Join(failed, fmt.Errorf("descriptor %d is not close-on-exec", fd))
		}
	}
	step("Close of a Listener", listeners[path].Close) // opens the folder
	for _, end := range slices.Backward(ends) {
		if err := end.Close(); end != listeners[path] {
			failed = errors.Join(failed, err)
		}
	}
	p.Say("done")
	return errors.Join(failed, os.Remove(fifo))
}

// ---------------------------------------------------------------------------
// Interruptions

// TestInterruptedCallsAreMadeAgain has strace answer every other call that a signal
// may interrupt with EINTR. Nonblocking ones hardly ever are, so that no storm of
// signals shows it.
func TestInterruptedCallsAreMadeAgain(t *testing.T) {
	kit.Story(t)
	const calls = "accept4,connect,flock,openat,read,recvmsg,sendmsg,sendto,splice,write"
	file := traceChildren(t, "-f", "-e", "signal=none", "-e", "trace="+calls, "-e", "inject="+calls+":error=EINTR:when=2+2")
	interrupted := func(calls ...string) {
		t.Helper()
		count := map[string]int{}
		for _, call := range readTrace(t, file) {
			if strings.Contains(call.result, "(INJECTED)") {
				count[call.name]++
			}
		}
		t.Log(count)
		for _, call := range calls {
			if count[call] == 0 {
				t.Errorf("%s was not interrupted", call)
			}
		}
	}

	c, _ := makeDescriptors(t)
	c.End()
	interrupted("accept4", "connect", "flock", "openat", "recvmsg", "sendmsg")

	addr := kit.NameAddr(t)
	d := newDice(1)
	server := startStress(t, "stress serve", addr, 128<<10, d)
	server.MustSay("serving")
	for range 20 { // each thread has its own count of calls
		c, err := ipc.Dial(addr)
		kit.Must(t, err)
		kit.Must(t, errors.Join(chat(c, true, 128<<10, d)))
	}
	server.End()
	interrupted("accept4", "recvmsg", "sendto")
}

// ---------------------------------------------------------------------------
// Threads

// atRest are the calls that a thread makes which has nothing to do.
var atRest = []string{"futex", "epoll_pwait", "nanosleep", "clock_nanosleep", "sched_yield"}

// sitsIn returns the calls that threads are in, but for those at rest and the
// child's own read of what the test says, by the traces of each thread.
func sitsIn(t *testing.T, file string) (calls []string) {
	t.Helper()
	traces, err := filepath.Glob(file + ".*")
	kit.Must(t, err)
	if len(traces) < 3 {
		t.Fatalf("only %d threads are traced", len(traces))
	}
	for _, trace := range traces {
		text, err := os.ReadFile(trace)
		kit.Must(t, err)
		last := string(text[strings.LastIndexByte(string(text), '\n')+1:]) // is without an end yet
		name, _, _ := strings.Cut(last, "(")
		name = strings.TrimSuffix(name, "_time64") // where a word is 32 bits
		if last != "" && !slices.Contains(atRest, name) && !strings.HasPrefix(last, "read(0, ") {
			calls = append(calls, last)
		}
	}
	return calls
}

// TestWaitsHoldNoThread has a child wait in every way with hundreds of
// goroutines. The threads of the process are few, and none is in a system call on
// behalf of them.
func TestWaitsHoldNoThread(t *testing.T) {
	kit.Story(t)
	file := traceChildren(t, "-ff", "-e", "signal=none")
	c := kit.StartChild(t, "waits in every way", kit.TempDir(t))
	var parked, waiting, before, now int
	if _, err := fmt.Sscanf(c.Hear(), "%d of %d parked, %d threads became %d", &parked, &waiting, &before, &now); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d goroutines of %d are parked, %d threads became %d", parked, waiting, before, now)
	if waiting < 200 || parked != waiting {
		t.Errorf("%d goroutines wait, and %d are parked", waiting, parked)
	}
	if now > before+waiting/10 { // a few are made to make the ends
		t.Errorf("%d goroutines that wait made %d threads %d", waiting, before, now)
	}
	var calls []string
	if !kit.HoldsSoon(func() bool { calls = sitsIn(t, file); return len(calls) == 0 }) {
		t.Errorf("threads are in %q", calls)
	}
	c.End()
}

func childWaitsInEveryWay(p *kit.Parent, args []string) error {
	const each, polled = 25, 5
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	threads := func() int {
		tasks, _ := os.ReadDir("/proc/self/task")
		return len(tasks)
	}
	before := threads()
	var ends []io.Closer
	var waits []<-chan error
	wait := func(f func() error) { waits = append(waits, kit.Begin(f)) }
	fifos := 0
	fifo := func() string {
		fifos++
		return fmt.Sprintf("%s/%d", args[0], fifos)
	}
	full := kit.Sure(ipc.ListenConfig{Backlog: 1}.Listen(ipc.Addr{}))
	ends = append(ends, full)
	for i := range each {
		a, b := kit.Sure2(ipc.Pair())
		m, n := kit.Sure2(ipc.MsgPair())
		c, d := kit.Sure2(ipc.Pair())
		r, u := kit.Sure2(ipc.Pipe())
		s, w := kit.Sure2(ipc.Pipe())
		l, err := ipc.Listen(ipc.Addr{})
		if err != nil {
			return err
		}
		ends = append(ends, a, b, m, n, c, d, r, s, u, w, l)
		wait(func() error { _, err := a.Read(make([]byte, 1)); return err })
		wait(func() error { _, err := a.Write(make([]byte, kit.TooMuch)); return err })
		wait(func() error { _, err := m.Recv(make([]byte, 1)); return err })
		wait(func() error { _, err := kit.WriteMuch(kit.MsgEnd{MsgConn: m}); return err })
		wait(func() error { _, err := c.RecvFiles(1); return err })
		wait(func() error { _, err := c.ReadFrom(d); return err })
		wait(func() error { _, err := r.Read(make([]byte, 1)); return err })
		wait(func() error { _, err := w.Write(make([]byte, kit.TooMuch)); return err })
		wait(func() error { _, err := l.Accept(); return err })
		if i >= polled {
			continue
		}
		read, write := fifo(), fifo()
		for _, path := range []string{read, write} {
			if err := ipc.Mkfifo(path, 0o600); err != nil {
				return err
			}
			defer os.Remove(path)
		}
		wait(func() error { _, err := ipc.OpenFIFOReader(ctx, read); return err })
		wait(func() error { _, err := ipc.OpenFIFOWriter(ctx, write); return err })
	}
	for {
		c, err := ipc.Dialer{Timeout: kit.Brief}.Dial(full.Addr().(ipc.Addr))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			return err
		}
		ends = append(ends, c)
	}
	for range polled {
		wait(func() error { _, err := ipc.Dialer{}.DialContext(ctx, full.Addr().(ipc.Addr)); return err })
	}
	parked := 0
	kit.HoldsSoon(func() bool {
		now := kit.Stacks()
		parked = strings.Count(now, "[IO wait") + strings.Count(now, "(*retryTimer).pause(")
		return parked == len(waits)
	})
	p.Say("%d of %d parked, %d threads became %d", parked, len(waits), before, threads())
	p.Hear()
	if parked != len(waits) { // the end of the process ends the others
		return nil
	}

	cancel()
	for _, end := range ends {
		if err := end.Close(); err != nil {
			return err
		}
	}
	for _, ended := range waits {
		select {
		case <-ended:
		case <-time.After(kit.Soon):
			return errors.New("a call does not end\n\n" + kit.Stacks())
		}
	}
	return nil
}
