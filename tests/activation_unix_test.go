//go:build unix

// Listening sockets from a service manager, and from an older process of the same server; what a manager is told.
package tests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	for role, play := range map[string]func(*kit.Parent, []string) error{
		"trampoline": childBecomesActivated,
		"activated":  childServesAsActivated,
		"inactive":   childIsNotActivated,
		"impatient":  childActivatesManyTimesAtOnce,
		"passed":     childTellsWhatItWasPassed,
		"replaces":   childReplacesWhatItWasPassed,

		"opens since": childOpensSinceItWasActivated,
		"successor":   childTakesOver,
	} {
		kit.Roles[role] = play
	}
	kit.Roles["notifies"] = childNotifies
}

// ---------------------------------------------------------------------------
// Activation: see sd_listen_fds(3)

// An activation is what a service manager would tell the child.
type activation struct {
	pid   string // LISTEN_PID; "self" is the child's own
	fds   string // LISTEN_FDS
	names string // LISTEN_FDNAMES
	files []*os.File
}

const unset = "-"

// start starts a child that is told so. The files are its descriptors from 3 on.
func (a activation) start(t *testing.T, role string, args ...string) *kit.Child {
	t.Helper()
	return kit.StartChildWith(t, exec.Cmd{ExtraFiles: a.files}, "trampoline",
		append([]string{role, a.pid, a.fds, a.names}, args...)...)
}

// childBecomesActivated turns into a program of the other role, which only thus
// can be told its own process id before it starts.
func childBecomesActivated(_ *kit.Parent, args []string) error {
	pid := args[1]
	if pid == "self" {
		pid = strconv.Itoa(os.Getpid())
	}
	for name, value := range map[string]string{
		kit.ChildRole: args[0], "LISTEN_PID": pid, "LISTEN_FDS": args[2], "LISTEN_FDNAMES": args[3],
	} {
		if value == unset {
			os.Unsetenv(name)
		} else if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	cmd := kit.Again("", args[4:]...)
	if cmd.Err != nil {
		return cmd.Err
	}
	return syscall.Exec(cmd.Path, cmd.Args, os.Environ())
}

// childServesAsActivated tells the name and the address of each listener, serves
// one client of each, and closes it.
func childServesAsActivated(p *kit.Parent, args []string) error {
	ls := kit.Sure(ipc.Activated())
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if value, ok := os.LookupEnv(name); ok {
			return fmt.Errorf("%s is still %q", name, value)
		}
	}
	if again, err := ipc.Activated(); again != nil || err != nil {
		return fmt.Errorf("a second time: %v, %w", again, err)
	}
	// What a child of this process must not have.
	var descriptors []string
	for i := range ls {
		var st syscall.Stat_t
		if err := syscall.Fstat(3+i, &st); err != nil {
			return err
		}
		descriptors = append(descriptors, fmt.Sprintf("%d %d %d", 3+i, st.Dev, st.Ino))
	}
	grandchild := kit.Again("inherits", descriptors...)
	grandchild.Stdin = nil
	if err := grandchild.Run(); err != nil {
		return fmt.Errorf("a child of the child: %w", err)
	}
	for _, l := range ls {
		if err := l.SetDeadline(time.Now().Add(-time.Second)); err != nil {
			return err
		}
		if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("past its deadline Accept gives %v", err)
		}
		if err := l.SetDeadline(time.Time{}); err != nil {
			return err
		}
		p.Say("%s %v", l.FDName(), l.Addr())
	}
	p.Say("that is all")
	for _, l := range ls {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_, err = io.Copy(c, c)
		if err := errors.Join(err, c.Close(), l.Close()); err != nil {
			return err
		}
	}
	return nil
}

func TestActivatedTakesTheListeners(t *testing.T) {
	for names, want := range map[string][2]string{"web:admin": {"web", "admin"}, unset: {"unknown", "unknown"}, ":": {"", ""}} {
		t.Run(names, func(t *testing.T) {
			kit.Story(t)
			path := kit.SockPath(t)
			first := kit.Listen(t, ipc.Path(path))
			second := kit.Listen(t, kit.NameAddr(t))
			if first.FDName() != "" {
				t.Errorf("a listener of this package is called %q", first.FDName())
			}
			c := activation{"self", "2", names, []*os.File{kit.FileOf(t, first), kit.FileOf(t, second)}}.start(t, "activated")
			for i, l := range []*ipc.Listener{first, second} {
				c.MustSay(strings.TrimSpace(want[i] + " " + kit.AddrOfSocket(l)))
			}
			c.MustSay("that is all")
			for _, l := range []*ipc.Listener{first, second} {
				client := kit.Dial(t, l.Addr())
				kit.TalkToEcho(t, client)
				kit.Must(t, client.Close())
			}
			c.End()
			kit.Serves(t, first, ipc.Path(path)) // the child's Close removed nothing
			kit.Serves(t, second, second.Addr().(ipc.Addr))
		})
	}
}

func TestActivatedTakesBlockingSockets(t *testing.T) {
	kit.Story(t)
	path := kit.OpenDir(t) + "/socket"
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0) // as C programs make it
	kit.Must(t, err)
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	kit.Must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
	defer os.Remove(path)
	kit.Must(t, syscall.Listen(fd, 5))
	c := activation{"self", "1", "socket", []*os.File{f}}.start(t, "activated") // sets deadlines
	c.MustSay("socket " + path)
	c.MustSay("that is all")
	client := kit.Dial(t, ipc.Path(path))
	kit.TalkToEcho(t, client)
	kit.Must(t, client.Close())
	c.End()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the manager's socket is gone: %v", err)
	}
}

// childIsNotActivated calls Activated, which must not take anything: the error
// holds the words, or it is none if there are no words. The argument before them
// says whether the variables are left.
func childIsNotActivated(_ *kit.Parent, args []string) error {
	before := os.Environ()
	var stats []syscall.Stat_t
	for fd := 3; ; fd++ {
		var st syscall.Stat_t
		if syscall.Fstat(fd, &st) != nil {
			break
		}
		stats = append(stats, st)
	}
	for range 2 {
		ls, err := ipc.Activated()
		if ls != nil {
			return fmt.Errorf("there are listeners: %v", ls)
		}
		words := args[1:]
		if (err == nil) != (len(words) == 0) {
			return fmt.Errorf("the error is %v, want one with %q", err, words)
		}
		if err != nil {
			if oe := (*net.OpError)(nil); !errors.As(err, &oe) || oe.Op != "activate" {
				return fmt.Errorf("%#v is not a *net.OpError of an activation", err)
			}
			for _, word := range words {
				if !strings.Contains(err.Error(), word) {
					return fmt.Errorf("%q does not say %s", err, word)
				}
			}
		}
	}
	if after := os.Environ(); args[0] == "left" && !slices.Equal(before, after) {
		return fmt.Errorf("the environment was %q and is %q", before, after)
	} else if args[0] == "unset" && strings.Contains(strings.Join(after, "\n"), "LISTEN_") {
		return fmt.Errorf("the environment is still %q", after)
	}
	for i, st := range stats {
		var now syscall.Stat_t
		if err := syscall.Fstat(3+i, &now); err != nil || now.Ino != st.Ino || now.Dev != st.Dev {
			return fmt.Errorf("descriptor %d is not what it was: %v", 3+i, err)
		}
	}
	return nil
}

func TestActivatedOnceAmongMany(t *testing.T) {
	kit.Story(t)
	var files []*os.File
	for range 20 {
		files = append(files, kit.FileOf(t, kit.Listen(t, ipc.Addr{})))
	}
	activation{"self", strconv.Itoa(len(files)), unset, files}.start(t, "impatient", strconv.Itoa(len(files))).End()
}

func childActivatesManyTimesAtOnce(_ *kit.Parent, args []string) error {
	var taken atomic.Int32
	var calls sync.WaitGroup
	ready := make(chan struct{})
	for range 20 {
		calls.Go(func() {
			<-ready
			ls := kit.Sure(ipc.Activated())
			taken.Add(int32(len(ls)))
			for _, l := range ls {
				kit.Sure(0, l.Close())
			}
		})
	}
	close(ready)
	calls.Wait()
	if n := strconv.Itoa(int(taken.Load())); n != args[0] {
		return fmt.Errorf("%s listeners became %s", args[0], n)
	}
	return nil
}

func TestActivatedWithoutAManager(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, ipc.Addr{})
	f := kit.FileOf(t, l)
	for what, c := range map[string]struct {
		activation
		want []string
	}{
		"not at all":           {activation{pid: unset, fds: unset, names: unset}, []string{"left"}},
		"without descriptors":  {activation{pid: "self", fds: unset, names: unset}, []string{"left"}},
		"without a process id": {activation{pid: unset, fds: "1", names: unset}, []string{"left"}},
		"another process":      {activation{pid: "1", fds: "1", names: "a"}, []string{"left"}},
		"another, garbled":     {activation{pid: "1", fds: "many", names: "a"}, []string{"left"}},
		"none":                 {activation{pid: "self", fds: "0", names: unset}, []string{"unset"}},
		"none, with names":     {activation{pid: "self", fds: "0", names: ""}, []string{"unset"}},
		"pid is a word":        {activation{pid: "me", fds: "1", names: "a"}, []string{"left", "LISTEN_PID", `"me"`}},
		"pid is negative":      {activation{pid: "-7", fds: "1", names: "a"}, []string{"left", "LISTEN_PID", `"-7"`}},
		"pid is 0":             {activation{pid: "0", fds: "1", names: "a"}, []string{"left", "LISTEN_PID"}},
		"pid is huge":          {activation{pid: "99999999999999999999", fds: "1", names: "a"}, []string{"left", "LISTEN_PID"}},
		"fds is a word":        {activation{pid: "self", fds: "many", names: "a"}, []string{"left", "LISTEN_FDS", `"many"`}},
		"fds is negative":      {activation{pid: "self", fds: "-1", names: "a"}, []string{"left", "LISTEN_FDS"}},
		"fds is not whole":     {activation{pid: "self", fds: "1.0", names: "a"}, []string{"left", "LISTEN_FDS"}},
		"fds is huge":          {activation{pid: "self", fds: "999999999", names: unset}, []string{"left", "LISTEN_FDS"}},
		"too many names":       {activation{pid: "self", fds: "1", names: "a:b"}, []string{"left", "LISTEN_FDNAMES", `"a:b"`}},
		"too few names":        {activation{pid: "self", fds: "2", names: "a"}, []string{"left", "LISTEN_FDNAMES"}},
		"more than are open":   {activation{pid: "self", fds: "300", names: unset}, []string{"left", "descriptor 4"}},
		"separators alone":     {activation{pid: "self", fds: "1", names: ":,:"}, []string{"left", "LISTEN_FDNAMES"}},
	} {
		t.Run(what, func(t *testing.T) {
			kit.Story(t)
			c.files = []*os.File{f}
			c.start(t, "inactive", c.want...).End()
		})
	}
	kit.Serves(t, l, l.Addr().(ipc.Addr))
}

// childTellsWhatItWasPassed says of each descriptor that it was passed what it became,
// and under which name; then it passes a word through what carries one.
func childTellsWhatItWasPassed(p *kit.Parent, args []string) error {
	for _, what := range args { // in the order in which they are asked for
		switch what {
		case "files":
			for _, f := range kit.Sure(ipc.ActivatedFiles()) {
				raw := kit.Sure(f.SyscallConn())
				var sys int
				var st syscall.Stat_t
				err := raw.Control(func(fd uintptr) { sys = int(fd); syscall.Fstat(sys, &st) })
				if err != nil {
					return err
				}
				p.Say("file %s %d %x", f.Name(), sys, st.Mode&syscall.S_IFMT)
				grandchild := kit.Again("inherits", fmt.Sprintf("%d %d %d", sys, st.Dev, st.Ino))
				grandchild.Stdin = nil
				if err := grandchild.Run(); err != nil {
					return fmt.Errorf("a child of the child, %s: %w", f.Name(), err)
				}
				f.Close()
			}
		case "messages":
			for _, l := range kit.Sure(ipc.ActivatedMsg()) {
				p.Say("messages %s", l.FDName())
				c := kit.Sure(l.Accept())
				if err := errors.Join(returnMessages(c), c.Close(), l.Close()); err != nil {
					return err
				}
			}
		case "streams":
			for _, l := range kit.Sure(ipc.Activated()) {
				p.Say("streams %s", l.FDName())
				c := kit.Sure(l.AcceptConn())
				_, err := io.Copy(c, c)
				if err := errors.Join(err, c.Close(), l.Close()); err != nil {
					return err
				}
			}
		}
	}
	if _, ok := os.LookupEnv("LISTEN_FDS"); ok {
		return errors.New("LISTEN_FDS is still there")
	}
	p.Say("that is all")
	return nil
}

// passedFiles are one of each kind of file that a manager may pass, and what is told
// of it.
func passedFiles(t *testing.T) (files []*os.File, names []string) {
	add := func(name string, f *os.File) {
		files, names = append(files, f), append(names, name)
	}
	socket := func(family, typ int) *os.File {
		fd, err := syscall.Socket(family, typ, 0)
		kit.Must(t, err)
		f := os.NewFile(uintptr(fd), "socket")
		t.Cleanup(func() { f.Close() })
		return f
	}
	a, _ := kit.Pair(t)
	_, w := kit.Pipe(t)
	null, err := os.Open(os.DevNull)
	kit.Must(t, err)
	t.Cleanup(func() { null.Close() })
	regular, err := os.Create(kit.OpenDir(t) + "/file")
	kit.Must(t, err)
	t.Cleanup(func() { regular.Close(); os.Remove(regular.Name()) })
	add("connection", kit.FileOf(t, a))
	add("pipe", kit.FileOf(t, w))
	add("device", null)
	add("file", regular)
	add("unbound", socket(syscall.AF_UNIX, syscall.SOCK_STREAM))
	add("datagrams", socket(syscall.AF_UNIX, syscall.SOCK_DGRAM))
	if tcp, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Cleanup(func() { tcp.Close() })
		add("tcp", kit.FileOf(t, tcp.(*net.TCPListener)))
	}
	return files, names
}

func TestActivatedOfOtherKindsSpoilsNothing(t *testing.T) {
	for _, order := range [][]string{{"streams", "files"}, {"files", "streams"}} {
		t.Run(order[0]+" first", func(t *testing.T) {
			kit.Story(t)
			l := kit.Listen(t, ipc.Addr{})
			files, names := passedFiles(t)
			at := len(files) / 2 // the listener is among them
			files = slices.Insert(files, at, kit.FileOf(t, l))
			names = slices.Insert(names, at, "listener")
			c := activation{"self", strconv.Itoa(len(files)), strings.Join(names, ":"), files}.start(t, "passed", order...)
			for _, what := range order {
				if what == "streams" {
					c.MustSay("streams listener")
					client := kit.Dial(t, l.Addr())
					kit.TalkToEcho(t, client)
					kit.Must(t, client.Close())
					continue
				}
				for i, f := range files {
					if i == at {
						continue
					}
					var st syscall.Stat_t
					raw, err := f.SyscallConn()
					kit.Must(t, err)
					kit.Must(t, raw.Control(func(fd uintptr) { err = syscall.Fstat(int(fd), &st) }))
					kit.Must(t, err)
					c.MustSay(fmt.Sprintf("file %s %d %x", names[i], 3+i, st.Mode&syscall.S_IFMT))
				}
			}
			c.MustSay("that is all")
			c.End()
			kit.Serves(t, l, l.Addr().(ipc.Addr))
		})
	}
}

func TestActivatedMsgTakesMessageListeners(t *testing.T) {
	kit.Story(t)
	if framesHere(t) {
		t.Skip("a listener for messages is one for streams here")
	}
	l, m := kit.Listen(t, ipc.Addr{}), kit.ListenMsg(t, ipc.Addr{})
	c := activation{"self", "2", "m:s", []*os.File{kit.FileOf(t, m), kit.FileOf(t, l)}}.start(t, "passed", "messages", "streams", "files")
	c.MustSay("messages m")
	client := kit.DialMsg(t, m.Addr())
	echoesMessages(t, client)
	kit.Must(t, client.Close())
	c.MustSay("streams s")
	stream := kit.Dial(t, l.Addr())
	kit.TalkToEcho(t, stream)
	kit.Must(t, stream.Close())
	c.MustSay("that is all")
	c.End()
}

// framesHere reports whether messages go through stream sockets on this system.
func framesHere(t *testing.T) bool {
	t.Helper()
	a, _ := kit.MsgPair(t)
	return !a.Native()
}

// What a launcher closed is not passed, whatever this process opened in its place,
// before main or after.
func TestActivatedTakesNothingThatWasOpenedSince(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, ipc.Addr{})
	c := activation{"self", "2", unset, []*os.File{kit.FileOf(t, l)}}.start(t, "opens since")
	c.End()
	kit.Serves(t, l, l.Addr().(ipc.Addr))
}

// childOpensSinceItWasActivated was passed descriptor 4, it is told, which was closed
// on the way.
func childOpensSinceItWasActivated(_ *kit.Parent, args []string) error {
	var opened []*os.File // one of them is descriptor 4, unless the runtime has it
	for range 10 {
		l, err := ipc.ListenConfig{}.Listen(ipc.Addr{})
		if err != nil {
			return err
		}
		defer l.Close()
		opened = append(opened, kit.Sure(l.File()))
	}
	for range 2 {
		ls, err := ipc.Activated()
		if ls != nil || err == nil {
			return fmt.Errorf("listeners %v, error %v", ls, err)
		}
		if !strings.Contains(err.Error(), "descriptor 4 ") {
			return fmt.Errorf("%q does not say descriptor 4", err)
		}
		if files, err := ipc.ActivatedFiles(); files != nil || err == nil {
			return fmt.Errorf("files %v, error %v", files, err)
		}
	}
	// The other one was closed since, and something else is there.
	if err := syscall.Close(3); err != nil {
		return err
	}
	if f := kit.Sure(os.Open(os.DevNull)); f.Fd() != 3 {
		return fmt.Errorf("the descriptor is %d", f.Fd())
	}
	for _, f := range opened {
		f.Close()
	}
	return nil
}

func TestActivatedNoticesWhatWasReplaced(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, ipc.Addr{})
	activation{"self", "1", "x", []*os.File{kit.FileOf(t, l)}}.start(t, "replaces").End()
}

// childReplacesWhatItWasPassed closes descriptor 3 and listens on its number.
func childReplacesWhatItWasPassed(*kit.Parent, []string) error {
	own, err := ipc.Listen(ipc.Addr{})
	if err != nil {
		return err
	}
	defer own.Close()
	f := kit.Sure(own.File())
	defer f.Close()
	if err := syscall.Close(3); err != nil {
		return err
	}
	raw := kit.Sure(f.SyscallConn())
	var three int
	raw.Control(func(fd uintptr) { three, err = syscall.Dup(int(fd)) })
	if err != nil || three != 3 {
		return fmt.Errorf("descriptor %d, %v", three, err)
	}
	defer syscall.Close(3)
	ls, err := ipc.Activated()
	if ls != nil || err == nil || !strings.Contains(err.Error(), "descriptor 3 ") {
		return fmt.Errorf("listeners %v, error %v", ls, err)
	}
	return nil
}

func TestActivatedBySystemd(t *testing.T) {
	kit.Story(t)
	const program = "systemd-socket-activate"
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
	dir := kit.OpenDir(t)
	paths := []string{dir + "/web", dir + "/admin"}
	// The manager runs the child, and clears its environment but for -E.
	t.Setenv(kit.ChildExec, fmt.Sprintf("%s -l %s -l %s --fdname=web:admin -E %s=activated -E %s=%s %s",
		program, paths[0], paths[1], kit.ChildRole, kit.ChildExec, os.Getenv(kit.ChildExec), os.Getenv(kit.ChildExec)))
	c := kit.StartChild(t, "nothing, but for -E")
	var clients []*ipc.Conn
	for _, path := range paths {
		defer os.Remove(path)
		client, err := ipc.Dialer{Wait: true, Timeout: kit.Soon}.Dial(ipc.Path(path)) // starts the child
		kit.Must(t, err)
		defer client.Close()
		clients = append(clients, client)
	}
	c.MustSay("web " + paths[0])
	c.MustSay("admin " + paths[1])
	c.MustSay("that is all")
	for _, client := range clients {
		kit.TalkToEcho(t, client)
		kit.Must(t, client.Close())
	}
	c.End()
	for _, path := range paths {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the manager's socket is gone: %v", err)
		}
	}
}

// ---------------------------------------------------------------------------
// Hand-over

// A shift is a server's accept loop, in whichever process: each client is told
// the process id.
type shift struct {
	l       *ipc.Listener
	clients sync.WaitGroup
	ended   chan struct{}
}

func beginShift(l *ipc.Listener) *shift {
	s := &shift{l: l, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		for c, err := range l.Conns() {
			if err != nil {
				continue // a client will say that it was not served
			}
			s.clients.Go(func() {
				fmt.Fprintln(c, os.Getpid())
				c.Close()
			})
		}
	}()
	return s
}

// end leaves what comes from now on to the next shift, and finishes the rest.
func (s *shift) end() error {
	err := s.l.Close()
	<-s.ended
	s.clients.Wait()
	return err
}

// bequest gives a successor the listener in one of the ways.
func bequest(cmd *exec.Cmd, way string, l *ipc.Listener) (release func(), err error) {
	if way == "Inherit" {
		return func() {}, ipc.Inherit(cmd, "listener", l)
	}
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, f) // descriptor 3
	return func() { f.Close() }, nil
}

// childTakesOver serves as the successor of the process that started it, and
// when it is told to, starts its own and leaves the rest to it.
func childTakesOver(p *kit.Parent, args []string) error {
	way := args[0]
	var l *ipc.Listener
	var err error
	if way == "Inherit" {
		l, err = ipc.InheritedListener("listener")
	} else {
		f := os.NewFile(3, "listener")
		l, err = ipc.FileListener(f)
		f.Close()
	}
	if err != nil {
		return err
	}
	s := beginShift(l)
	p.Say("serving %d", os.Getpid())
	if p.Hear() == "" {
		return s.end()
	}
	next := kit.Again("successor", way)
	next.Stdout = nil
	said := kit.Sure(next.StdoutPipe())
	release := kit.Sure(bequest(next, way, l))
	if err := next.Start(); err != nil {
		return err
	}
	release()
	var pid int
	if _, err := fmt.Fscanf(said, "serving %d\n", &pid); err != nil {
		return err
	}
	if err := s.end(); err != nil {
		return err
	}
	p.Say("handed over to %d", pid)
	return next.Wait()
}

func TestListenerHandOverRefusesNoClient(t *testing.T) {
	for _, way := range []string{"Inherit", "File"} {
		t.Run(way, func(t *testing.T) {
			kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
				first := beginShift(kit.ListenWith(t, ipc.ListenConfig{KeepName: true}, addr))
				defer removeSocket(addr)

				var mu sync.Mutex
				served := map[int]int{} // by process id
				count := func(pid int) int { mu.Lock(); defer mu.Unlock(); return served[pid] }
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				var clients []<-chan error
				for range 3 {
					clients = append(clients, kit.Begin(func() error {
						for ctx.Err() == nil {
							c, err := ipc.Dialer{Timeout: kit.Soon}.Dial(addr)
							if err != nil {
								return err
							}
							c.SetDeadline(time.Now().Add(kit.Soon))
							var pid int
							if _, err := fmt.Fscan(c, &pid); err != nil {
								return fmt.Errorf("a client is not served: %w", err)
							}
							c.Close()
							mu.Lock()
							served[pid]++
							mu.Unlock()
						}
						return nil
					}))
				}
				const enough = 20
				kit.Eventually(t, "the first serves", func() bool { return count(os.Getpid()) >= enough })

				var cmd exec.Cmd
				cmd.Env = []string{}
				release, err := bequest(&cmd, way, first.l)
				kit.Must(t, err)
				c := kit.StartChildWith(t, cmd, "successor", way)
				release()
				var second, third int
				if _, err := fmt.Sscanf(c.Hear(), "serving %d", &second); err != nil {
					t.Fatal(err)
				}
				kit.Must(t, first.end())
				kit.Eventually(t, "the second serves", func() bool { return count(second) >= enough })
				_, err = ipc.Listen(addr)
				kit.Matches(t, err, ipc.ErrAddrInUse) // though the first has given its claim up

				c.Say("hand over")
				if _, err := fmt.Sscanf(c.Hear(), "handed over to %d", &third); err != nil {
					t.Fatal(err)
				}
				late := count(second)
				kit.Eventually(t, "the third serves", func() bool { return count(third) >= enough })
				if count(second) > late+len(clients) || third == second || second == os.Getpid() {
					t.Errorf("the process that left goes on to serve: %v", served)
				}
				stop()
				for _, done := range clients {
					kit.Must(t, <-done)
				}
				c.Outlive()
			})
		})
	}
}

// removeSocket removes what a listener with KeepName leaves behind, if that is
// something.
func removeSocket(addr ipc.Addr) {
	path := addr.String()
	if name, ok := strings.CutPrefix(path, "@"); ok {
		path = "/tmp/" + name
	}
	os.Remove(path)
}

// ---------------------------------------------------------------------------
// Notify

// A manager is the socket of a service manager. The kernel counts what is not received.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func startManager(t *testing.T, name string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	kit.Must(t, err)
	t.Cleanup(func() { conn.Close(); os.Remove(name) })
	t.Setenv("NOTIFY_SOCKET", name)
	return &manager{t, conn}
}

// receive returns the next datagram and what came with it.
func (m *manager) receive() (state string, files []*os.File) {
	m.t.Helper()
	p, oob := make([]byte, 64<<10), make([]byte, 4<<10)
	n, oobn, _, _, err := m.conn.ReadMsgUnix(p, oob)
	kit.Must(m.t, err)
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	kit.Must(m.t, err)
	for _, message := range messages {
		fds, err := syscall.ParseUnixRights(&message)
		kit.Must(m.t, err)
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "stored")
			m.t.Cleanup(func() { f.Close() })
			files = append(files, f)
		}
	}
	return string(p[:n]), files
}

// managerNames are names that NOTIFY_SOCKET may have.
func managerNames(t *testing.T) map[string]string {
	dir := kit.OpenDir(t)
	long := dir + "/" + strings.Repeat("d", 120)
	kit.Must(t, os.Mkdir(long, 0o777))
	t.Cleanup(func() { os.Remove(long) })
	names := map[string]string{"path": dir + "/notify"}
	if runtime.GOOS == "linux" || runtime.GOOS == "android" {
		names["abstract"] = "@" + dir + "/notify"
	}
	return names
}

func TestNotifyTellsTheManager(t *testing.T) {
	for what, name := range managerNames(t) {
		t.Run(what, func(t *testing.T) {
			kit.Story(t)
			m := startManager(t, name)
			for _, state := range []string{"READY=1", "STATUS=one\nMAINPID=1", strings.Repeat("X=1\n", 500)} {
				if sent, err := ipc.Notify(state); !sent || err != nil {
					t.Fatalf("sent %v, %v", sent, err)
				}
				if got, files := m.receive(); got != state || files != nil {
					t.Errorf("the manager hears %.40q, with %d files", got, len(files))
				}
			}
			if os.Getenv("NOTIFY_SOCKET") != name {
				t.Error("the variable is gone")
			}
		})
	}
}

func TestNotifyStoresFiles(t *testing.T) {
	kit.Story(t)
	m := startManager(t, kit.OpenDir(t)+"/notify")
	r, w := kit.Pipe(t)
	l := kit.Listen(t, ipc.Addr{})
	sent, err := ipc.Notify("FDSTORE=1\nFDNAME=x", kit.FileOf(t, w), kit.FileOf(t, l))
	if !sent || err != nil {
		t.Fatalf("sent %v, %v", sent, err)
	}
	state, files := m.receive()
	if state != "FDSTORE=1\nFDNAME=x" || len(files) != 2 {
		t.Fatalf("the manager hears %q, with %d files", state, len(files))
	}
	kit.Send(t, files[0], "through the store")
	kit.Expect(t, r, "through the store")
	stored, err := ipc.FileListener(files[1])
	kit.Must(t, err)
	defer stored.Close()
	kit.Serves(t, stored, l.Addr().(ipc.Addr))
}

func TestNotifyWithoutAManagerSendsNothing(t *testing.T) {
	kit.Story(t)
	t.Setenv("NOTIFY_SOCKET", "") // not there, as far as anybody can tell
	os.Unsetenv("NOTIFY_SOCKET")
	if sent, err := ipc.Notify("READY=1"); sent || err != nil {
		t.Errorf("sent %v, %v", sent, err)
	}
}

func TestNotifyRefusesWhatItCannotSend(t *testing.T) {
	kit.Story(t)
	path := kit.OpenDir(t) + "/notify"
	m := startManager(t, path)
	refused := func(sent bool, err error) error {
		t.Helper()
		var oe *net.OpError
		if sent || !errors.As(err, &oe) || oe.Op != "notify" {
			t.Errorf("sent %v, %v", sent, err)
		}
		return err
	}
	refused(ipc.Notify(""))
	refused(ipc.Notify("FDSTORE=1", nil))
	closed, err := os.Open(os.DevNull)
	kit.Must(t, err)
	kit.Must(t, closed.Close())
	kit.Matches(t, refused(ipc.Notify("FDSTORE=1", closed)), os.ErrClosed)
	kit.Matches(t, refused(ipc.Notify(strings.Repeat("X", 16<<20))), ipc.ErrMsgTooLong)
	kit.Must(t, m.conn.Close())
	os.Remove(path)
	kit.Matches(t, refused(ipc.Notify("READY=1")), ipc.ErrNoListener)
	for _, name := range []string{"vsock:2:1234", "relative/path", "x"} {
		t.Setenv("NOTIFY_SOCKET", name)
		kit.Matches(t, refused(ipc.Notify("READY=1")), errors.ErrUnsupported)
	}
	t.Setenv("NOTIFY_SOCKET", "/"+strings.Repeat("x", 5000))
	kit.Matches(t, refused(ipc.Notify("READY=1")), ipc.ErrNameTooLong)
}

// A manager that does not listen makes Notify wait, but not for ever.
func TestNotifyToADeafManagerEnds(t *testing.T) {
	path := kit.OpenDir(t) + "/notify"
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	kit.Must(t, err)
	defer os.Remove(path)
	defer conn.Close()
	kit.Together(t)
	c := kit.StartChildWith(t, exec.Cmd{Env: []string{"NOTIFY_SOCKET=" + path}}, "notifies")
	c.MustSay("the queue is full")
	m := &manager{t, conn}
	m.receive()
	c.Say("there is room again")
	c.MustSay("sent")
	c.End()
}

// childNotifies tells a manager that does not listen until that is an error, and
// once more when it is told to.
func childNotifies(p *kit.Parent, _ []string) error {
	for n := 0; ; n++ {
		sent, err := ipc.Notify("WATCHDOG=1")
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if !sent || err != nil || n == 100000 {
			return fmt.Errorf("%d: sent %v, %w", n, sent, err)
		}
	}
	p.Say("the queue is full")
	p.Hear()
	if sent, err := ipc.Notify("READY=1"); !sent || err != nil {
		return fmt.Errorf("sent %v, %w", sent, err)
	}
	p.Say("sent")
	return nil
}
