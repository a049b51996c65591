//go:build unix

// Ends that a child process is given, and descriptors that others hold too.
package tests

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	for role, play := range map[string]func(*kit.Parent, []string) error{
		"owns a listener":  childOwnsAListener,
		"replaces its end": childReplacesItsEnd,
		"is refused":       childIsRefusedItsEnd,
		"has it blocking":  childHasItBlocking,
	} {
		kit.Roles[role] = play
	}
}

// ---------------------------------------------------------------------------
// Descriptors that are not what was given

// A launcher closed what the parent gave, and has something else there.
func TestInheritedEndThatALauncherReplacedIsRefused(t *testing.T) {
	kit.Story(t)
	_, b := kit.Pair(t)
	_, other := kit.Pair(t)
	r, _ := kit.Pipe(t)
	_, w := kit.Pipe(t)
	l, foreign := kit.Listen(t, ipc.Addr{}), kit.Listen(t, ipc.Addr{})
	for what, c := range map[string]struct {
		end     ipc.Inheritable
		instead interface{ File() (*os.File, error) }
	}{"conn": {b, other}, "reader": {r, w}, "listener": {l, foreign}} {
		t.Run(what, func(t *testing.T) {
			h := kit.NewHeir(t)
			h.Gets("x", c.end)
			h.Cmd.ExtraFiles[0] = kit.FileOf(t, c.instead)
			h.Start("is refused", what).End()
		})
	}
}

// childIsRefusedItsEnd takes the end "x", which it must not get.
func childIsRefusedItsEnd(_ *kit.Parent, args []string) error {
	for range 2 {
		end, err := inheritors[args[0]]("x")
		if err == nil {
			return fmt.Errorf("there is an end %#v", end)
		}
		if err := refusedEnd(err, `"x"`, "not what the parent gave"); err != nil {
			return err
		}
	}
	return nil
}

func TestInheritedEndThatWasReplacedIsRefused(t *testing.T) {
	kit.Story(t)
	_, b := kit.Pair(t)
	h := kit.NewHeir(t)
	h.Gets("x", b)
	h.Start("replaces its end").End()

	// Also if the parent does not say what it gave.
	h.Cmd.Env[0], _, _ = strings.Cut(h.Cmd.Env[0], "@")
	h.Start("replaces its end").End()
}

// What was read ahead of the caller would be lost in this process.
func TestInheritRefusesAnEndWithDataReadAhead(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	kit.Send(t, a, "word")
	_, err := b.RecvFiles(1) // finds a byte that is no file's
	kit.Matches(t, err, ipc.ErrNoFiles)
	for range 2 {
		var cmd exec.Cmd
		if err := ipc.Inherit(&cmd, "x", b); err == nil || cmd.ExtraFiles != nil || cmd.Env != nil {
			t.Errorf("Inherit: %v, %+v", err, cmd)
		}
		if f, err := b.BlockingFile(); err == nil {
			f.Close()
			t.Error("it is given away")
		}
	}
	kit.Expect(t, b, "word")
	f, err := b.BlockingFile()
	kit.Must(t, err)
	kit.Must(t, f.Close())
}

// What was read ahead may also be the beginning of a frame.
func TestInheritRefusesAnEndWithMessagesReadAhead(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		kit.Story(t)
		a, b := kit.MsgPair(t)
		kit.Must(t, a.Send([]byte("word")))
		_, err := b.RecvFiles(1)
		kit.Matches(t, err, ipc.ErrNoFiles)
		var cmd exec.Cmd
		if err := ipc.Inherit(&cmd, "x", b); err == nil || cmd.ExtraFiles != nil || cmd.Env != nil {
			t.Errorf("Inherit: %v, %+v", err, cmd)
		}
		if f, err := b.BlockingFile(); err == nil {
			f.Close()
			t.Fatal("it is given away")
		}
		kit.ExpectMsg(t, b, "word")
		kit.Must(t, ipc.Inherit(&cmd, "x", b))
		f, err := b.BlockingFile()
		kit.Must(t, err)
		kit.Must(t, f.Close())
		kit.Matches(t, b.Close(), net.ErrClosed)
	})
}

// childReplacesItsEnd closes the end "x" and has another under its number.
func childReplacesItsEnd(p *kit.Parent, _ []string) error {
	if err := syscall.Close(3); err != nil {
		return err
	}
	if err := childIsRefusedItsEnd(p, []string{"conn"}); err != nil {
		return err
	}
	s, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if s[0] != 3 {
		return fmt.Errorf("the descriptor is %d", s[0])
	}
	if err := childIsRefusedItsEnd(p, []string{"conn"}); err != nil {
		return err
	}
	if _, err := syscall.Write(s[1], []byte("private")); err != nil { // it is as it was
		return err
	}
	return errors.Join(syscall.Close(s[0]), syscall.Close(s[1]))
}

// ---------------------------------------------------------------------------
// Listeners with several owners

// childOwnsAListener takes the listener of that kind under the name, tells its
// address and does as it is told.
func childOwnsAListener(p *kit.Parent, args []string) error {
	var l interface {
		io.Closer
		Addr() net.Addr
	}
	switch kind := args[0]; kind {
	case "listener":
		l = kit.Sure(ipc.InheritedListener("l"))
	case "msglistener":
		l = kit.Sure(ipc.InheritedMsgListener("l"))
	case "nothing":
		p.Say("without")
		p.Hear()
		return nil
	}
	p.Say("%v", l.Addr())
	for {
		switch p.Hear() {
		case "":
			return nil
		case "close":
			if err := l.Close(); err != nil {
				return err
			}
			p.Say("closed")
		case "give":
			next := kit.Again("owns a listener", args[0])
			if err := ipc.Inherit(next, "l", l.(ipc.Inheritable)); err != nil {
				return err
			}
			if err := next.Start(); err != nil {
				return err
			}
			return errors.Join(l.Close(), next.Wait())
		}
	}
}

// An ownership is a listener on a path with one heir.
type ownership struct {
	t    *testing.T
	path string
	l    io.Closer
	heir *kit.Child
}

// overEachOwnership tells the story of both kinds of listeners.
func overEachOwnership(t *testing.T, lc ipc.ListenConfig, tell func(t *testing.T, o ownership)) {
	t.Run("Listener", func(t *testing.T) {
		kit.Story(t)
		path := kit.SockPath(t)
		l := kit.ListenWith(t, lc, ipc.Path(path))
		h := kit.NewHeir(t)
		h.Gets("l", l)
		c := h.Start("owns a listener", "listener")
		c.MustSay(path)
		tell(t, ownership{t, path, l, c})
	})
	t.Run("MsgListener", func(t *testing.T) {
		kit.Story(t)
		path := kit.SockPath(t)
		l := kit.ListenMsgWith(t, lc, ipc.Path(path))
		h := kit.NewHeir(t)
		h.Gets("l", l)
		c := h.Start("owns a listener", "msglistener")
		c.MustSay(path)
		tell(t, ownership{t, path, l, c})
	})
}

// isThere checks whether the socket file and its lock exist.
func (o ownership) isThere(want bool) {
	o.t.Helper()
	for _, path := range []string{o.path, o.path + ".lock"} {
		if _, err := os.Lstat(path); (err == nil) != want {
			o.t.Fatalf("%s: %v, want it there: %v", path, err, want)
		}
	}
	_, err := ipc.Listen(ipc.Path(o.path))
	if want {
		kit.Matches(o.t, err, ipc.ErrAddrInUse)
	} else if err == nil {
		o.t.Fatal("a listener is left open")
	}
}

// isFree checks that nothing is left.
func (o ownership) isFree() {
	o.t.Helper()
	for _, path := range []string{o.path, o.path + ".lock"} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			o.t.Errorf("%s is left: %v", path, err)
		}
	}
	kit.Must(o.t, kit.Listen(o.t, ipc.Path(o.path)).Close())
}

func TestListenerFileGoesWithItsLastOwner(t *testing.T) {
	t.Run("heir last", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			kit.Must(t, o.l.Close())
			o.isThere(true)
			o.heir.Say("close")
			o.heir.MustSay("closed")
			o.isFree()
			o.heir.End()
		})
	})
	t.Run("parent last", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			o.heir.Say("close")
			o.heir.MustSay("closed")
			o.isThere(true)
			kit.Must(t, o.l.Close())
			o.isFree()
			o.heir.End()
		})
	})
	t.Run("heir killed", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			o.heir.Kill()
			o.isThere(true)
			kit.Must(t, o.l.Close())
			o.isFree()
		})
	})
	t.Run("heir killed last", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			kit.Must(t, o.l.Close())
			o.isThere(true)
			o.heir.Kill()
			kit.Must(t, kit.Listen(t, ipc.Path(o.path)).Close()) // the file is stale
			o.isFree()
		})
	})
	t.Run("third generation", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			kit.Must(t, o.l.Close())
			o.heir.Say("give")
			o.heir.MustSay(o.path)
			o.isThere(true)
			o.heir.Say("close")
			o.heir.MustSay("closed")
			o.isFree()
			o.heir.End()
		})
	})
	t.Run("KeepName", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{KeepName: true}, func(t *testing.T, o ownership) {
			kit.Must(t, o.l.Close())
			o.isThere(true)
			o.heir.Say("close")
			o.heir.MustSay("closed")
			if _, err := os.Lstat(o.path); err != nil {
				t.Error(err)
			}
			kit.Must(t, kit.Listen(t, ipc.Path(o.path)).Close()) // removes it
			o.isFree()
			o.heir.End()
		})
	})
	t.Run("displaced", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			successor := kit.ListenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, ipc.Path(o.path))
			o.heir.Say("close")
			o.heir.MustSay("closed")
			kit.Must(t, o.l.Close())
			o.isThere(true)
			kit.Serves(t, successor, ipc.Path(o.path))
			kit.Must(t, successor.Close())
			o.isFree()
			o.heir.End()
		})
	})
	t.Run("never taken", func(t *testing.T) {
		kit.Story(t)
		path := kit.SockPath(t)
		l := kit.Listen(t, ipc.Path(path))
		h := kit.NewHeir(t)
		h.Gets("l", l)
		c := h.Start("owns a listener", "nothing")
		c.MustSay("without")
		kit.Must(t, l.Close())
		o := ownership{t: t, path: path}
		o.isThere(true) // its descriptors are
		c.End()
		kit.Must(t, kit.Listen(t, ipc.Path(path)).Close())
		o.isFree()
	})
	t.Run("never started", func(t *testing.T) {
		kit.Story(t)
		path := kit.SockPath(t)
		l := kit.Listen(t, ipc.Path(path))
		for range 2 {
			cmd := exec.Command(path + "/no such program")
			kit.Must(t, ipc.Inherit(cmd, "l", l))
			if cmd.Start() == nil {
				t.Fatal("it starts")
			}
		}
		kit.Must(t, l.Close())
		ownership{t: t, path: path}.isFree()
		kit.Matches(t, ipc.Inherit(new(exec.Cmd), "l", l), net.ErrClosed)
	})
}

// TestInheritWhileTheListenerCloses has nothing left of the listener, whichever of the
// two comes first, as no child is started.
func TestInheritWhileTheListenerCloses(t *testing.T) {
	kit.Story(t)
	path := kit.SockPath(t)
	for range 20 {
		l := kit.Listen(t, ipc.Path(path))
		inherited := make(chan error)
		go func() { inherited <- ipc.Inherit(&exec.Cmd{Env: []string{}}, "l", l) }()
		kit.Must(t, l.Close())
		if err := <-inherited; err != nil {
			kit.Matches(t, err, net.ErrClosed)
		}
		ownership{t: t, path: path}.isFree()
	}
}

// The path of a new generation's listener is the one that clients know, also if the
// socket had to be bound to another.
func TestInheritedListenerKnowsTheAddress(t *testing.T) {
	kit.Story(t)
	dir := kit.OpenDir(t) + "/" + strings.Repeat("d", 120)
	kit.Must(t, os.Mkdir(dir, 0o777))
	defer os.Remove(dir)
	path := dir + "/s,o;c:k=e\xfft"
	l := kit.Listen(t, ipc.Path(path))
	h := kit.NewHeir(t)
	h.Gets("l", l)
	c := h.Start("owns a listener", "listener")
	c.MustSay(path)
	kit.Must(t, l.Close())
	c.Say("close")
	c.MustSay("closed")
	ownership{t: t, path: path}.isFree()
	c.End()
}

// ---------------------------------------------------------------------------
// Descriptions that somebody else makes block

// makesBlock makes the description of f block, as a program does that expects it.
func makesBlock(t *testing.T, f *os.File) {
	t.Helper()
	raw, err := f.SyscallConn()
	kit.Must(t, err)
	kit.Must(t, raw.Control(func(fd uintptr) { err = syscall.SetNonblock(int(fd), false) }))
	kit.Must(t, err)
}

// A waiter is an end with a call that waits.
type waiter struct {
	io.Closer
	wait func() error
	set  func(time.Time) error
}

// waiters adopt a file in every way, whose duplicate it returns: what others make of
// that must not concern the waiter.
func waiters() map[string]func(t *testing.T) (waiter, *os.File) {
	read := func(c io.Reader) func() error {
		return func() error { _, err := c.Read(make([]byte, 1)); return err }
	}
	return map[string]func(t *testing.T) (waiter, *os.File){
		"Conn.File": func(t *testing.T) (waiter, *os.File) {
			a, _ := kit.Pair(t)
			return waiter{a, read(a), a.SetDeadline}, kit.FileOf(t, a)
		},
		"FileConn": func(t *testing.T) (waiter, *os.File) {
			a, _ := kit.Pair(t)
			f := kit.FileOf(t, a)
			c, err := ipc.FileConn(f)
			kit.Must(t, err)
			return waiter{c, read(c), c.SetDeadline}, f
		},
		"FileMsgConn": func(t *testing.T) (waiter, *os.File) {
			a, _ := kit.MsgPair(t)
			f := kit.FileOf(t, a)
			c, err := ipc.FileMsgConn(f)
			kit.Must(t, err)
			return waiter{c, func() error { _, err := c.Recv(make([]byte, 1)); return err }, c.SetDeadline}, f
		},
		"PipeReader.File": func(t *testing.T) (waiter, *os.File) {
			r, _ := kit.Pipe(t)
			return waiter{r, read(r), r.SetReadDeadline}, kit.FileOf(t, r)
		},
		"FileReader": func(t *testing.T) (waiter, *os.File) {
			r, _ := kit.Pipe(t)
			f := kit.FileOf(t, r)
			c, err := ipc.FileReader(f)
			kit.Must(t, err)
			return waiter{c, read(c), c.SetReadDeadline}, f
		},
		"FileWriter": func(t *testing.T) (waiter, *os.File) {
			_, w := kit.Pipe(t)
			f := kit.FileOf(t, w)
			c, err := ipc.FileWriter(f)
			kit.Must(t, err)
			return waiter{c, func() error { _, err := c.Write(make([]byte, kit.TooMuch)); return err }, c.SetWriteDeadline}, f
		},
		"FileListener": func(t *testing.T) (waiter, *os.File) {
			f := kit.FileOf(t, kit.Listen(t, ipc.Addr{}))
			l, err := ipc.FileListener(f)
			kit.Must(t, err)
			return waiter{l, func() error { _, err := l.Accept(); return err }, l.SetDeadline}, f
		},
		"FileMsgListener": func(t *testing.T) (waiter, *os.File) {
			f := kit.FileOf(t, kit.ListenMsg(t, ipc.Addr{}))
			l, err := ipc.FileMsgListener(f)
			kit.Must(t, err)
			return waiter{l, func() error { _, err := l.Accept(); return err }, l.SetDeadline}, f
		},
		"Inherit": func(t *testing.T) (waiter, *os.File) {
			r, _ := kit.Pipe(t)
			var cmd exec.Cmd
			kit.Must(t, ipc.Inherit(&cmd, "x", r))
			return waiter{r, read(r), r.SetReadDeadline}, cmd.ExtraFiles[0]
		},
	}
}

func TestConnFileThatBlocksStallsNoWaiter(t *testing.T) {
	kit.Together(t)
	for way, adopt := range waiters() {
		t.Run(way, func(t *testing.T) {
			kit.Story(t)
			w, f := adopt(t)
			for range 2 { // before it first waits, and after
				makesBlock(t, f)
				kit.Must(t, w.set(time.Now().Add(kit.Brief)))
				kit.TimedOut(t, w.wait())
			}
			kit.Must(t, w.set(time.Time{}))
			makesBlock(t, f)
			waiting := kit.Begin(w.wait)
			time.Sleep(kit.Brief) // either way Close ends it
			kit.Must(t, w.Close())
			kit.Matches(t, <-waiting, net.ErrClosed)
		})
	}
}

func TestFileReaderLeavesModeAlone(t *testing.T) {
	kit.Story(t)
	r, w, err := os.Pipe()
	kit.Must(t, err)
	defer r.Close()
	defer w.Close()
	makesBlock(t, r)
	c, err := ipc.FileReader(r)
	kit.Must(t, err)
	defer c.Close()
	if canReopen() && !kit.Blocks(t, r) {
		t.Error("the caller's file does not block any more")
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	kit.Expect(t, c, "x")
}

// ---------------------------------------------------------------------------
// For programs in other languages

func TestConnFileThatBlocksGivesTheEndAway(t *testing.T) {
	type end interface {
		io.Closer
		BlockingFile() (*os.File, error)
	}
	a, b := kit.Pair(t)
	m, n := kit.MsgPair(t)
	r, w := kit.Pipe(t)
	in, out := kit.Pipe(t)
	l, ml := kit.Listen(t, ipc.Addr{}), kit.ListenMsg(t, ipc.Addr{})
	for what, c := range map[string]struct {
		end  end
		talk func(f *os.File)
	}{
		"Conn": {b, func(f *os.File) {
			kit.Send(t, a, "word")
			kit.Expect(t, f, "word")
		}},
		"MsgConn": {n, func(f *os.File) {
			kit.Must(t, m.Send([]byte("word")))
			if c, err := ipc.FileMsgConn(f); err != nil {
				t.Error(err)
			} else {
				defer c.Close()
				got, err := c.RecvAppend(nil)
				if string(got) != "word" || err != nil {
					t.Errorf("%q, %v", got, err)
				}
			}
		}},
		"PipeReader": {r, func(f *os.File) {
			kit.Send(t, w, "word")
			kit.Expect(t, f, "word")
		}},
		"PipeWriter": {out, func(f *os.File) {
			kit.Send(t, f, "word")
			kit.Expect(t, in, "word")
		}},
		"Listener":    {l, func(f *os.File) { kit.Must(t, kit.Dial(t, l.Addr()).Close()) }},
		"MsgListener": {ml, func(f *os.File) { kit.Must(t, kit.DialMsg(t, ml.Addr()).Close()) }},
	} {
		t.Run(what, func(t *testing.T) {
			kit.Story(t)
			f, err := c.end.BlockingFile()
			kit.Must(t, err)
			defer f.Close()
			if !kit.Blocks(t, f) {
				t.Error("the file does not block")
			}
			kit.Matches(t, c.end.Close(), net.ErrClosed)
			if f, err := c.end.BlockingFile(); f != nil || !errors.Is(err, net.ErrClosed) {
				t.Errorf("a second one is %v, %v", f, err)
			}
			cmd := exec.Cmd{ExtraFiles: []*os.File{f}}
			kit.StartChildWith(t, cmd, "has it blocking").End()
			c.talk(f)
		})
	}
}

// childHasItBlocking looks whether descriptor 3 blocks.
func childHasItBlocking(*kit.Parent, []string) error {
	f := os.NewFile(3, "given")
	defer f.Close()
	if err := f.SetDeadline(time.Time{}); !errors.Is(err, os.ErrNoDeadline) {
		return fmt.Errorf("its deadlines are %v", err)
	}
	return nil
}

func TestListenerFileThatBlocksLeavesTheSocketFile(t *testing.T) {
	kit.Story(t)
	path := kit.SockPath(t)
	l := kit.Listen(t, ipc.Path(path))
	f, err := l.BlockingFile()
	kit.Must(t, err)
	kit.Must(t, kit.Dial(t, ipc.Path(path)).Close())
	if _, err := os.Lstat(path + ".lock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lock is left: %v", err)
	}
	kit.Must(t, f.Close())
	kit.Must(t, kit.Listen(t, ipc.Path(path)).Close()) // stale now
}

// canReopen reports whether a pipe can be opened anew, by itself.
func canReopen() bool {
	if runtime.GOOS != "linux" && runtime.GOOS != "android" {
		return false
	}
	r, w, err := os.Pipe()
	if err != nil {
		return false
	}
	defer r.Close()
	defer w.Close()
	f, err := os.Open(fmt.Sprint("/proc/self/fd/", r.Fd()))
	if err == nil {
		f.Close()
	}
	return err == nil
}
