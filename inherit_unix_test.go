//go:build unix

// Ends that a child process is given, and descriptors that others hold too.
package ipc_test

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
)

func init() {
	for role, play := range map[string]func(*parent, []string) error{
		"owns a listener":  childOwnsAListener,
		"replaces its end": childReplacesItsEnd,
		"is refused":       childIsRefusedItsEnd,
		"has it blocking":  childHasItBlocking,
	} {
		roles[role] = play
	}
}

// ---------------------------------------------------------------------------
// Descriptors that are not what was given

// A launcher closed what the parent gave, and has something else there.
func TestInheritedEndThatALauncherReplacedIsRefused(t *testing.T) {
	story(t)
	_, b := pair(t)
	_, other := pair(t)
	r, _ := pipe(t)
	_, w := pipe(t)
	l, foreign := listen(t, ipc.Addr{}), listen(t, ipc.Addr{})
	for what, c := range map[string]struct {
		end     ipc.Inheritable
		instead interface{ File() (*os.File, error) }
	}{"conn": {b, other}, "reader": {r, w}, "listener": {l, foreign}} {
		t.Run(what, func(t *testing.T) {
			h := newHeir(t)
			h.gets("x", c.end)
			h.cmd.ExtraFiles[0] = fileOf(t, c.instead)
			h.start("is refused", what).end()
		})
	}
}

// childIsRefusedItsEnd takes the end "x", which it must not get.
func childIsRefusedItsEnd(_ *parent, args []string) error {
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
	story(t)
	_, b := pair(t)
	h := newHeir(t)
	h.gets("x", b)
	h.start("replaces its end").end()

	// Also if the parent does not say what it gave.
	h.cmd.Env[0], _, _ = strings.Cut(h.cmd.Env[0], "@")
	h.start("replaces its end").end()
}

// What was read ahead of the caller would be lost in this process.
func TestInheritRefusesAnEndWithDataReadAhead(t *testing.T) {
	story(t)
	a, b := pair(t)
	send(t, a, "word")
	_, err := b.RecvFiles(1) // finds a byte that is no file's
	matches(t, err, ipc.ErrNoFiles)
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
	expect(t, b, "word")
	f, err := b.BlockingFile()
	must(t, err)
	must(t, f.Close())
}

// What was read ahead may also be the beginning of a frame.
func TestInheritRefusesAnEndWithMessagesReadAhead(t *testing.T) {
	overEachFraming(t, func(t *testing.T) {
		story(t)
		a, b := msgPair(t)
		must(t, a.Send([]byte("word")))
		_, err := b.RecvFiles(1)
		matches(t, err, ipc.ErrNoFiles)
		var cmd exec.Cmd
		if err := ipc.Inherit(&cmd, "x", b); err == nil || cmd.ExtraFiles != nil || cmd.Env != nil {
			t.Errorf("Inherit: %v, %+v", err, cmd)
		}
		if f, err := b.BlockingFile(); err == nil {
			f.Close()
			t.Fatal("it is given away")
		}
		expectMsg(t, b, "word")
		must(t, ipc.Inherit(&cmd, "x", b))
		f, err := b.BlockingFile()
		must(t, err)
		must(t, f.Close())
		matches(t, b.Close(), net.ErrClosed)
	})
}

// childReplacesItsEnd closes the end "x" and has another under its number.
func childReplacesItsEnd(p *parent, _ []string) error {
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
func childOwnsAListener(p *parent, args []string) error {
	var l interface {
		io.Closer
		Addr() net.Addr
	}
	switch kind := args[0]; kind {
	case "listener":
		l = sure(ipc.InheritedListener("l"))
	case "msglistener":
		l = sure(ipc.InheritedMsgListener("l"))
	case "nothing":
		p.say("without")
		p.hear()
		return nil
	}
	p.say("%v", l.Addr())
	for {
		switch p.hear() {
		case "":
			return nil
		case "close":
			if err := l.Close(); err != nil {
				return err
			}
			p.say("closed")
		case "give":
			next := again("owns a listener", args[0])
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
	heir *child
}

// overEachOwnership tells the story of both kinds of listeners.
func overEachOwnership(t *testing.T, lc ipc.ListenConfig, tell func(t *testing.T, o ownership)) {
	t.Run("Listener", func(t *testing.T) {
		story(t)
		path := sockPath(t)
		l := listenWith(t, lc, ipc.Path(path))
		h := newHeir(t)
		h.gets("l", l)
		c := h.start("owns a listener", "listener")
		c.mustSay(path)
		tell(t, ownership{t, path, l, c})
	})
	t.Run("MsgListener", func(t *testing.T) {
		story(t)
		path := sockPath(t)
		l := listenMsgWith(t, lc, ipc.Path(path))
		h := newHeir(t)
		h.gets("l", l)
		c := h.start("owns a listener", "msglistener")
		c.mustSay(path)
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
		matches(o.t, err, ipc.ErrAddrInUse)
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
	must(o.t, listen(o.t, ipc.Path(o.path)).Close())
}

func TestListenerFileGoesWithItsLastOwner(t *testing.T) {
	t.Run("heir last", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			must(t, o.l.Close())
			o.isThere(true)
			o.heir.say("close")
			o.heir.mustSay("closed")
			o.isFree()
			o.heir.end()
		})
	})
	t.Run("parent last", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			o.heir.say("close")
			o.heir.mustSay("closed")
			o.isThere(true)
			must(t, o.l.Close())
			o.isFree()
			o.heir.end()
		})
	})
	t.Run("heir killed", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			o.heir.kill()
			o.isThere(true)
			must(t, o.l.Close())
			o.isFree()
		})
	})
	t.Run("heir killed last", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			must(t, o.l.Close())
			o.isThere(true)
			o.heir.kill()
			must(t, listen(t, ipc.Path(o.path)).Close()) // the file is stale
			o.isFree()
		})
	})
	t.Run("third generation", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			must(t, o.l.Close())
			o.heir.say("give")
			o.heir.mustSay(o.path)
			o.isThere(true)
			o.heir.say("close")
			o.heir.mustSay("closed")
			o.isFree()
			o.heir.end()
		})
	})
	t.Run("KeepName", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{KeepName: true}, func(t *testing.T, o ownership) {
			must(t, o.l.Close())
			o.isThere(true)
			o.heir.say("close")
			o.heir.mustSay("closed")
			if _, err := os.Lstat(o.path); err != nil {
				t.Error(err)
			}
			must(t, listen(t, ipc.Path(o.path)).Close()) // removes it
			o.isFree()
			o.heir.end()
		})
	})
	t.Run("displaced", func(t *testing.T) {
		overEachOwnership(t, ipc.ListenConfig{}, func(t *testing.T, o ownership) {
			successor := listenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, ipc.Path(o.path))
			o.heir.say("close")
			o.heir.mustSay("closed")
			must(t, o.l.Close())
			o.isThere(true)
			serves(t, successor, ipc.Path(o.path))
			must(t, successor.Close())
			o.isFree()
			o.heir.end()
		})
	})
	t.Run("never taken", func(t *testing.T) {
		story(t)
		path := sockPath(t)
		l := listen(t, ipc.Path(path))
		h := newHeir(t)
		h.gets("l", l)
		c := h.start("owns a listener", "nothing")
		c.mustSay("without")
		must(t, l.Close())
		o := ownership{t: t, path: path}
		o.isThere(true) // its descriptors are
		c.end()
		must(t, listen(t, ipc.Path(path)).Close())
		o.isFree()
	})
	t.Run("never started", func(t *testing.T) {
		story(t)
		path := sockPath(t)
		l := listen(t, ipc.Path(path))
		for range 2 {
			cmd := exec.Command(path + "/no such program")
			must(t, ipc.Inherit(cmd, "l", l))
			if cmd.Start() == nil {
				t.Fatal("it starts")
			}
		}
		must(t, l.Close())
		ownership{t: t, path: path}.isFree()
		matches(t, ipc.Inherit(new(exec.Cmd), "l", l), net.ErrClosed)
	})
}

// TestInheritWhileTheListenerCloses has nothing left of the listener, whichever of the
// two comes first, as no child is started.
func TestInheritWhileTheListenerCloses(t *testing.T) {
	story(t)
	path := sockPath(t)
	for range 20 {
		l := listen(t, ipc.Path(path))
		inherited := make(chan error)
		go func() { inherited <- ipc.Inherit(&exec.Cmd{Env: []string{}}, "l", l) }()
		must(t, l.Close())
		if err := <-inherited; err != nil {
			matches(t, err, net.ErrClosed)
		}
		ownership{t: t, path: path}.isFree()
	}
}

// The path of a new generation's listener is the one that clients know, also if the
// socket had to be bound to another.
func TestInheritedListenerKnowsTheAddress(t *testing.T) {
	story(t)
	dir := openDir(t) + "/" + strings.Repeat("d", 120)
	must(t, os.Mkdir(dir, 0o777))
	defer os.Remove(dir)
	path := dir + "/s,o;c:k=e\xfft"
	l := listen(t, ipc.Path(path))
	h := newHeir(t)
	h.gets("l", l)
	c := h.start("owns a listener", "listener")
	c.mustSay(path)
	must(t, l.Close())
	c.say("close")
	c.mustSay("closed")
	ownership{t: t, path: path}.isFree()
	c.end()
}

// ---------------------------------------------------------------------------
// Descriptions that somebody else makes block

// makesBlock makes the description of f block, as a program does that expects it.
func makesBlock(t *testing.T, f *os.File) {
	t.Helper()
	raw, err := f.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = syscall.SetNonblock(int(fd), false) }))
	must(t, err)
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
			a, _ := pair(t)
			return waiter{a, read(a), a.SetDeadline}, fileOf(t, a)
		},
		"FileConn": func(t *testing.T) (waiter, *os.File) {
			a, _ := pair(t)
			f := fileOf(t, a)
			c, err := ipc.FileConn(f)
			must(t, err)
			return waiter{c, read(c), c.SetDeadline}, f
		},
		"FileMsgConn": func(t *testing.T) (waiter, *os.File) {
			a, _ := msgPair(t)
			f := fileOf(t, a)
			c, err := ipc.FileMsgConn(f)
			must(t, err)
			return waiter{c, func() error { _, err := c.Recv(make([]byte, 1)); return err }, c.SetDeadline}, f
		},
		"PipeReader.File": func(t *testing.T) (waiter, *os.File) {
			r, _ := pipe(t)
			return waiter{r, read(r), r.SetReadDeadline}, fileOf(t, r)
		},
		"FileReader": func(t *testing.T) (waiter, *os.File) {
			r, _ := pipe(t)
			f := fileOf(t, r)
			c, err := ipc.FileReader(f)
			must(t, err)
			return waiter{c, read(c), c.SetReadDeadline}, f
		},
		"FileWriter": func(t *testing.T) (waiter, *os.File) {
			_, w := pipe(t)
			f := fileOf(t, w)
			c, err := ipc.FileWriter(f)
			must(t, err)
			return waiter{c, func() error { _, err := c.Write(make([]byte, tooMuch)); return err }, c.SetWriteDeadline}, f
		},
		"FileListener": func(t *testing.T) (waiter, *os.File) {
			f := fileOf(t, listen(t, ipc.Addr{}))
			l, err := ipc.FileListener(f)
			must(t, err)
			return waiter{l, func() error { _, err := l.Accept(); return err }, l.SetDeadline}, f
		},
		"FileMsgListener": func(t *testing.T) (waiter, *os.File) {
			f := fileOf(t, listenMsg(t, ipc.Addr{}))
			l, err := ipc.FileMsgListener(f)
			must(t, err)
			return waiter{l, func() error { _, err := l.Accept(); return err }, l.SetDeadline}, f
		},
		"Inherit": func(t *testing.T) (waiter, *os.File) {
			r, _ := pipe(t)
			var cmd exec.Cmd
			must(t, ipc.Inherit(&cmd, "x", r))
			return waiter{r, read(r), r.SetReadDeadline}, cmd.ExtraFiles[0]
		},
	}
}

func TestConnFileThatBlocksStallsNoWaiter(t *testing.T) {
	together(t)
	for way, adopt := range waiters() {
		t.Run(way, func(t *testing.T) {
			story(t)
			w, f := adopt(t)
			for range 2 { // before it first waits, and after
				makesBlock(t, f)
				must(t, w.set(time.Now().Add(brief)))
				timedOut(t, w.wait())
			}
			must(t, w.set(time.Time{}))
			makesBlock(t, f)
			waiting := begin(w.wait)
			time.Sleep(brief) // either way Close ends it
			must(t, w.Close())
			matches(t, <-waiting, net.ErrClosed)
		})
	}
}

func TestFileReaderLeavesModeAlone(t *testing.T) {
	story(t)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	makesBlock(t, r)
	c, err := ipc.FileReader(r)
	must(t, err)
	defer c.Close()
	if canReopen() && !blocks(t, r) {
		t.Error("the caller's file does not block any more")
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "x")
}

// ---------------------------------------------------------------------------
// For programs in other languages

func TestConnFileThatBlocksGivesTheEndAway(t *testing.T) {
	type end interface {
		io.Closer
		BlockingFile() (*os.File, error)
	}
	a, b := pair(t)
	m, n := msgPair(t)
	r, w := pipe(t)
	in, out := pipe(t)
	l, ml := listen(t, ipc.Addr{}), listenMsg(t, ipc.Addr{})
	for what, c := range map[string]struct {
		end  end
		talk func(f *os.File)
	}{
		"Conn": {b, func(f *os.File) {
			send(t, a, "word")
			expect(t, f, "word")
		}},
		"MsgConn": {n, func(f *os.File) {
			must(t, m.Send([]byte("word")))
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
			send(t, w, "word")
			expect(t, f, "word")
		}},
		"PipeWriter": {out, func(f *os.File) {
			send(t, f, "word")
			expect(t, in, "word")
		}},
		"Listener":    {l, func(f *os.File) { must(t, dial(t, l.Addr()).Close()) }},
		"MsgListener": {ml, func(f *os.File) { must(t, dialMsg(t, ml.Addr()).Close()) }},
	} {
		t.Run(what, func(t *testing.T) {
			story(t)
			f, err := c.end.BlockingFile()
			must(t, err)
			defer f.Close()
			if !blocks(t, f) {
				t.Error("the file does not block")
			}
			matches(t, c.end.Close(), net.ErrClosed)
			if f, err := c.end.BlockingFile(); f != nil || !errors.Is(err, net.ErrClosed) {
				t.Errorf("a second one is %v, %v", f, err)
			}
			cmd := exec.Cmd{ExtraFiles: []*os.File{f}}
			startChildWith(t, cmd, "has it blocking").end()
			c.talk(f)
		})
	}
}

// childHasItBlocking looks whether descriptor 3 blocks.
func childHasItBlocking(*parent, []string) error {
	f := os.NewFile(3, "given")
	defer f.Close()
	if err := f.SetDeadline(time.Time{}); !errors.Is(err, os.ErrNoDeadline) {
		return fmt.Errorf("its deadlines are %v", err)
	}
	return nil
}

func TestListenerFileThatBlocksLeavesTheSocketFile(t *testing.T) {
	story(t)
	path := sockPath(t)
	l := listen(t, ipc.Path(path))
	f, err := l.BlockingFile()
	must(t, err)
	must(t, dial(t, ipc.Path(path)).Close())
	if _, err := os.Lstat(path + ".lock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lock is left: %v", err)
	}
	must(t, f.Close())
	must(t, listen(t, ipc.Path(path)).Close()) // stale now
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
