//go:build unix || windows

// Ends that a child process is given.
package tests

import (
	"bytes"
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
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	for role, play := range map[string]func(*kit.Parent, []string) error{
		"takes ends":  childServesItsEnds,
		"tries ends":  childTakesEndsInEveryWay,
		"keeps ends":  childKeepsItsEnds,
		"relays ends": childPassesItsEndOn,
		"lives on":    childLives,
		"has no ends": childAsksForWhatItHasNot,
		"opens ends":  childOpensEndsItWasNotGiven,

		"holds a listener": childHoldsAListener,
		"succeeds":         childSucceeds,
	} {
		kit.Roles[role] = play
	}
}

// inheritVar tells a child of its ends. Its name is part of the interface: a
// program may be asked to clear its environment but for it.
const inheritVar = "IPC_INHERIT"

// childServesItsEnds takes the ends that the arguments tell, "kind name", and
// serves each until its end: connections and clients of listeners by an echo, a
// reader by a copy to the writer.
func childServesItsEnds(p *kit.Parent, args []string) error {
	var r *ipc.PipeReader
	var w *ipc.PipeWriter
	var failed []error
	var mu sync.Mutex
	var busy sync.WaitGroup
	serve := func(what string, f func() error) {
		busy.Go(func() {
			if err := f(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	for _, arg := range args {
		kind, name, _ := strings.Cut(arg, " ")
		var err error
		switch kind {
		case "conn":
			var c *ipc.Conn
			if c, err = ipc.InheritedConn(name); err == nil {
				serve(arg, func() error { _, err := io.Copy(c, c); return errors.Join(err, c.Close()) })
			}
		case "msgconn":
			var c *ipc.MsgConn
			if c, err = ipc.InheritedMsgConn(name); err == nil {
				serve(arg, func() error { return errors.Join(returnMessages(c), c.Close()) })
			}
		case "reader":
			r, err = ipc.InheritedReader(name)
		case "writer":
			w, err = ipc.InheritedWriter(name)
		case "msglistener":
			var l *ipc.MsgListener
			if l, err = ipc.InheritedMsgListener(name); err == nil {
				serve(arg, func() error {
					c, err := l.Accept()
					if err != nil {
						return err
					}
					return errors.Join(returnMessages(c), c.Close(), l.Close())
				})
			}
		case "listener":
			var l *ipc.Listener
			if l, err = ipc.InheritedListener(name); err == nil {
				serve(arg, func() error {
					c, err := l.Accept()
					if err != nil {
						return err
					}
					_, err = io.Copy(c, c)
					return errors.Join(err, c.Close(), l.Close())
				})
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
	}
	if r != nil {
		serve("reader to writer", func() error { _, err := io.Copy(w, r); return errors.Join(err, r.Close(), w.Close()) })
	}
	p.Say("serving")
	busy.Wait()
	return errors.Join(failed...)
}

func returnMessages(c *ipc.MsgConn) error {
	for {
		msg, err := c.RecvAppend(nil)
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := c.Send(msg); err != nil {
			return err
		}
	}
}

// echoes proves that what is written to w comes back from r.
func echoes(t *testing.T, w io.Writer, r io.Reader) {
	t.Helper()
	data := kit.Pattern(500 << 10)
	writing := kit.Begin(func() error { _, err := w.Write(data); return err })
	got := make([]byte, len(data))
	if n, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("of %d bytes %d come back, %v", len(data), n, err)
	}
	kit.Must(t, <-writing)
}

// echoesMessages proves it of messages.
func echoesMessages(t *testing.T, c *ipc.MsgConn) {
	t.Helper()
	for _, msg := range []string{"one", "another", string(kit.Pattern(3000)), "a last one"} {
		kit.Must(t, c.Send([]byte(msg)))
		if got, err := c.RecvAppend(nil); string(got) != msg || err != nil {
			t.Fatalf("%.20q comes back for %.20q, %v", got, msg, err)
		}
	}
}

// ---------------------------------------------------------------------------
// What a child is given

func TestInheritedEndsAreUsed(t *testing.T) {
	t.Run("Conn", func(t *testing.T) {
		kit.OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
			h := kit.NewHeir(t)
			h.Gets("c", b)
			c := h.Start("takes ends", "conn c")
			kit.Must(t, b.Close())
			c.MustSay("serving")
			echoes(t, a, a)
			kit.Must(t, a.Close())
			c.End()
		})
	})
	t.Run("MsgConn", func(t *testing.T) {
		kit.Story(t)
		a, b := kit.MsgPair(t)
		h := kit.NewHeir(t)
		h.Gets("m", b)
		c := h.Start("takes ends", "msgconn m")
		kit.Must(t, b.Close())
		c.MustSay("serving")
		echoesMessages(t, a)
		kit.Must(t, a.Close())
		c.End()
	})
	t.Run("Pipes", func(t *testing.T) {
		kit.Story(t)
		r, w := kit.Pipe(t)
		back, answer := kit.Pipe(t)
		h := kit.NewHeir(t)
		h.Gets("in", r)
		h.Gets("out", answer)
		c := h.Start("takes ends", "reader in", "writer out")
		kit.Must(t, errors.Join(r.Close(), answer.Close()))
		c.MustSay("serving")
		echoes(t, w, back)
		kit.Must(t, w.Close())
		kit.ExpectEOF(t, back)
		c.End()
	})
	t.Run("MsgListener", func(t *testing.T) {
		kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := kit.ListenMsg(t, addr)
			h := kit.NewHeir(t)
			h.Gets("l", l)
			c := h.Start("takes ends", "msglistener l")
			if runtime.GOOS == "windows" { // where both have clients of their own
				c.MustSay("serving")
				kit.Must(t, l.Close())
			}
			client := kit.DialMsg(t, addr)
			if runtime.GOOS != "windows" {
				c.MustSay("serving")
			}
			echoesMessages(t, client)
			kit.Must(t, client.Close())
			c.End()
		})
	})
	t.Run("Listener", func(t *testing.T) {
		kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := kit.Listen(t, addr)
			h := kit.NewHeir(t)
			h.Gets("l", l)
			c := h.Start("takes ends", "listener l")
			if runtime.GOOS == "windows" { // where both have clients of their own
				kit.Must(t, l.Close())
			}
			client := kit.Dial(t, addr) // the child is the one to accept it
			c.MustSay("serving")
			echoes(t, client, client)
			kit.Must(t, client.Close())
			c.End()
			if runtime.GOOS == "windows" {
				l = kit.Listen(t, addr) // the name went with the child
			}
			kit.Serves(t, l, addr) // neither the socket nor its file went with the child
		})
	})
}

func TestInheritManyEnds(t *testing.T) {
	kit.Story(t)
	h := kit.NewHeir(t)
	var args []string
	var conns []*ipc.Conn
	var given []io.Closer
	give := func(kind, name string, end interface {
		ipc.Inheritable
		io.Closer
	}) {
		h.Gets(name, end)
		args = append(args, kind+" "+name)
		given = append(given, end)
	}
	for i := range 8 {
		a, b := kit.Pair(t)
		give("conn", fmt.Sprintf("conn-%d.x_Y", i), b)
		conns = append(conns, a)
	}
	m, n := kit.MsgPair(t)
	give("msgconn", "M", n)
	r, w := kit.Pipe(t)
	back, answer := kit.Pipe(t)
	give("writer", ".", answer)
	give("reader", "-", r)
	slices.Reverse(args) // the order in which they are taken is the child's
	c := h.Start("takes ends", args...)
	for _, end := range given {
		kit.Must(t, end.Close())
	}
	c.MustSay("serving")
	for i, conn := range conns { // each is the one of its name
		kit.Send(t, conn, fmt.Sprint("to ", i))
		kit.Expect(t, conn, fmt.Sprint("to ", i))
	}
	echoesMessages(t, m)
	echoes(t, w, back)
	for _, conn := range conns {
		kit.Must(t, conn.Close())
	}
	kit.Must(t, errors.Join(m.Close(), w.Close()))
	c.End()
}

func TestListenerServesOnWithoutItsHeirs(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		kit.Serves(t, l, addr)
		h := kit.NewHeir(t)
		h.Gets("l", l)
		for _, args := range [][]string{{"l"}, {}} { // one takes the listener, one does not
			c := h.Start("holds a listener", args...)
			c.MustSay("ready")
			c.End()
			for range 5 {
				kit.Serves(t, l, addr)
			}
		}
	})
}

// childHoldsAListener takes the listener of the argument, if there is one, and
// accepts nobody.
func childHoldsAListener(p *kit.Parent, args []string) error {
	if len(args) > 0 {
		l, err := ipc.InheritedListener(args[0])
		if err != nil {
			return err
		}
		defer l.Close()
	}
	p.Say("ready")
	p.Hear()
	return nil
}

func TestInheritedListenerTakesOverWithoutAGap(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	l := kit.ListenWith(t, ipc.ListenConfig{KeepName: true}, addr)
	serving := welcome(l, "parent")

	var clients []func() error // end them
	var mu sync.Mutex
	served := map[string]int{} // by whom
	for range 4 {
		clients = append(clients, kit.Repeatedly(func() error {
			c, err := ipc.Dialer{Timeout: kit.Soon}.Dial(addr)
			if err != nil {
				t.Errorf("a client was refused: %v", err)
				return err
			}
			who, err := io.ReadAll(c)
			c.Close()
			if runtime.GOOS == "windows" && len(who) == 0 {
				who = []byte("nobody") // waited for the one that left
			} else if err != nil {
				t.Errorf("a client was not served: %v", err)
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			served[string(who)]++
			return nil
		}))
	}
	isServedBy := func(who string) {
		t.Helper()
		kit.Eventually(t, who+" serves", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return served[who] >= 20 || t.Failed()
		})
	}
	isServedBy("parent")
	h := kit.NewHeir(t)
	h.Gets("l", l)
	c := h.Start("succeeds", "l", "3")
	kit.Must(t, l.Close()) // before the child can have taken its own
	kit.Must(t, <-serving)
	for generation := 3; ; generation-- {
		isServedBy(fmt.Sprint("generation ", generation))
		if generation == 1 {
			break
		}
		c.Say("next")
	}
	for _, end := range clients {
		kit.Must(t, end())
	}
	c.Say("next") // to nobody
	c.Outlive()
	if runtime.GOOS != "windows" {
		kit.Must(t, os.Remove(addr.String()))
	}
	_, err := ipc.Dial(addr)
	kit.Matches(t, err, ipc.ErrNoListener)
}

// welcome tells each client who serves it, until the listener is closed.
func welcome(l *ipc.Listener, who string) <-chan error {
	return kit.ServeEach(l, func(c *ipc.Conn) error {
		io.WriteString(c, who) // to one that may be gone
		return c.Close()
	})
}

// childSucceeds serves the listener of the first argument in as many generations
// as the second one says, each of which at the word gives it to the next, by a
// copy of its standard streams.
func childSucceeds(p *kit.Parent, args []string) error {
	l := kit.Sure(ipc.InheritedListener(args[0]))
	left := kit.Sure(strconv.Atoi(args[1]))
	serving := welcome(l, fmt.Sprint("generation ", left))
	// One byte at a time: the rest is for the next generation.
	for b := []byte{0}; b[0] != '\n'; {
		if _, err := os.Stdin.Read(b); err != nil {
			return err
		}
	}
	if left > 1 {
		next := kit.Again("succeeds", args[0], strconv.Itoa(left-1))
		if err := ipc.Inherit(next, args[0], l); err != nil {
			return err
		}
		if err := next.Start(); err != nil {
			return err
		}
	}
	return errors.Join(l.Close(), <-serving)
}

func TestInheritedEndsEndWithTheChild(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	m, n := kit.MsgPair(t)
	r, w := kit.Pipe(t)
	in, out := kit.Pipe(t)
	h := kit.NewHeir(t)
	h.Gets("c", b)
	h.Gets("m", n)
	h.Gets("w", w)
	h.Gets("r", in)
	c := h.Start("takes ends", "conn c", "msgconn m", "reader r", "writer w")
	kit.Must(t, errors.Join(b.Close(), n.Close(), w.Close(), in.Close()))
	c.MustSay("serving")
	reading := []<-chan error{
		kit.BeginRead(a),
		kit.Begin(func() error { _, err := m.Recv(make([]byte, 1)); return err }),
		kit.BeginRead(r),
	}
	kit.AwaitParked(t, "(*Conn).Read", 1)
	kit.AwaitParked(t, "(*MsgConn).Recv", 1)
	kit.AwaitParked(t, "(*PipeReader).Read", 1)
	c.Kill()
	for _, done := range reading {
		if err := <-done; err != io.EOF {
			t.Errorf("a read ends with %v, want io.EOF", err)
		}
	}
	_, err := a.Write([]byte("x"))
	kit.Matches(t, err, syscall.EPIPE)
	kit.Matches(t, m.Send([]byte("x")), syscall.EPIPE)
	_, err = out.Write([]byte("x"))
	kit.Matches(t, err, syscall.EPIPE)
}

func TestInheritLeavesTheParentItsDeadlines(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	r, w := kit.Pipe(t)
	in, out := kit.Pipe(t)
	h := kit.NewHeir(t)
	h.Gets("c", b)
	h.Gets("w", w)
	h.Gets("r", in)
	c := h.Start("keeps ends") // reads nothing and writes nothing
	c.MustSay("ready")
	type end struct {
		what  string
		read  func(p []byte) (int, error)
		write func(p []byte) (int, error)
		set   func(time.Time) error
		close func() error
	}
	ends := []end{
		{"the connection", a.Read, a.Write, a.SetDeadline, a.Close},
		{"the reader", r.Read, nil, r.SetReadDeadline, r.Close},
		{"the writer", nil, out.Write, out.SetWriteDeadline, out.Close},
	}
	if runtime.GOOS != "windows" { // where an end is used by one process alone
		ends = append(ends,
			end{"the connection that was given", b.Read, b.Write, b.SetDeadline, b.Close},
			end{"the reader that was given", in.Read, nil, in.SetReadDeadline, in.Close},
			end{"the writer that was given", nil, w.Write, w.SetWriteDeadline, w.Close})
	}
	for _, e := range ends {
		for _, call := range []func([]byte) (int, error){e.read, e.write} {
			if call == nil {
				continue
			}
			begun := time.Now()
			kit.Must(t, e.set(begun.Add(kit.Brief)))
			_, err := call(make([]byte, kit.TooMuch))
			for err == nil { // what an earlier end wrote
				_, err = call(make([]byte, kit.TooMuch))
			}
			kit.TimedOut(t, err)
			if waited := time.Since(begun); waited < kit.Brief {
				t.Errorf("%s gave up after %v", e.what, waited)
			}
			kit.Must(t, e.set(time.Time{}))
		}
	}
	reading := kit.Begin(func() error { _, err := r.Read(make([]byte, kit.TooMuch)); return err })
	for _, e := range ends {
		kit.Must(t, e.close())
	}
	if err := <-reading; err != nil {
		kit.Matches(t, err, net.ErrClosed)
	}
	c.End()
}

func TestInheritedEndIsTakenOnce(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	r, w := kit.Pipe(t)
	h := kit.NewHeir(t)
	h.Gets("c", b)
	h.Gets("r", r)
	c := h.Start("tries ends", "c", "r")
	kit.Must(t, errors.Join(b.Close(), r.Close()))
	c.MustSay("as it should")
	kit.Send(t, w, "by the pipe")
	kit.Expect(t, a, "by the pipe")
	kit.Send(t, a, ".")
	c.End()
}

// inheritors take an end in each way, and say what is wrong with it.
var inheritors = map[string]func(name string) (io.Closer, error){
	"conn":     func(name string) (io.Closer, error) { return errOrNil(ipc.InheritedConn(name)) },
	"msgconn":  func(name string) (io.Closer, error) { return errOrNil(ipc.InheritedMsgConn(name)) },
	"reader":   func(name string) (io.Closer, error) { return errOrNil(ipc.InheritedReader(name)) },
	"writer":   func(name string) (io.Closer, error) { return errOrNil(ipc.InheritedWriter(name)) },
	"listener": func(name string) (io.Closer, error) { return errOrNil(ipc.InheritedListener(name)) },

	"msglistener":    func(name string) (io.Closer, error) { return errOrNil(ipc.InheritedMsgListener(name)) },
	"shared":         func(name string) (io.Closer, error) { return errOrNil(ipc.InheritedSharedConn(name)) },
	"sharedlistener": func(name string) (io.Closer, error) { return errOrNil(ipc.InheritedSharedListener(name)) },
}

// errOrNil keeps a nil pointer from becoming an interface that is not nil.
func errOrNil[E interface {
	comparable
	io.Closer
}](end E, err error) (io.Closer, error) {
	var none E
	if err != nil {
		if end != none {
			panic("an end comes with an error")
		}
		return nil, err
	}
	return end, nil
}

// refusedEnd returns an error unless err, of InheritedX, is a clear one that
// holds the words.
func refusedEnd(err error, words ...string) error {
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != "inherit" || oe.Net != "pipe" && oe.Net != localNetwork {
		return fmt.Errorf("%v (%#v) is not a *net.OpError of an inheritance", err, err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			return fmt.Errorf("%q does not say %s", err, word)
		}
	}
	return nil
}

// childTakesEndsInEveryWay takes a connection and a reader, each in every wrong
// way, then in the right one, then again, and passes on what it reads.
func childTakesEndsInEveryWay(p *kit.Parent, args []string) error {
	if list, ok := os.LookupEnv(inheritVar); ok {
		return fmt.Errorf("%s is still there: %s", inheritVar, list)
	}
	for i, right := range []string{"conn", "reader"} {
		for kind, take := range inheritors {
			if kind == right {
				continue
			}
			_, err := take(args[i])
			if err := refusedEnd(err, args[i], right, kind); err != nil {
				return err
			}
		}
	}
	c := kit.Sure(ipc.InheritedConn(args[0]))
	r := kit.Sure(ipc.InheritedReader(args[1]))
	for _, take := range inheritors {
		for _, name := range append(args, "another", "") {
			_, err := take(name)
			if err := refusedEnd(err, fmt.Sprintf("%q", name)); err != nil {
				return err
			}
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(kit.Brief)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("an inherited end without news gives %v", err)
	}
	if err := errors.Join(c.SetReadDeadline(time.Time{})); err != nil {
		return err
	}
	p.Say("as it should")
	if _, err := io.CopyN(c, r, int64(len("by the pipe"))); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return err
	}
	return errors.Join(c.Close(), r.Close())
}

// ---------------------------------------------------------------------------
// What a grandchild is given

func TestInheritedEndsAreNotPassedOn(t *testing.T) {
	kit.Story(t)
	taken, b := kit.Pair(t)
	left, d := kit.Pair(t)
	r, w := kit.Pipe(t)
	h := kit.NewHeir(t)
	h.Gets("taken", b)
	h.Gets("left", d)
	h.Gets("w", w)
	c := h.Start("keeps ends", "taken")
	kit.Must(t, errors.Join(b.Close(), d.Close(), w.Close()))
	c.MustSay("ready")
	c.Say("start a child and leave")
	c.MustSay("alive")
	// The child is gone, its child is not: had that one of the ends, they would
	// not be closed.
	for _, end := range []interface {
		io.Reader
		SetReadDeadline(time.Time) error
	}{taken, left, r} {
		kit.Must(t, end.SetReadDeadline(time.Now().Add(kit.Soon)))
		kit.ExpectEOF(t, end)
	}
	c.Outlive()
}

// childKeepsItsEnds takes the end of the argument, if there is one, and starts a
// child that outlives it.
func childKeepsItsEnds(p *kit.Parent, args []string) error {
	if len(args) > 0 {
		c, err := ipc.InheritedConn(args[0])
		if err != nil {
			return err
		}
		defer c.Close()
	}
	p.Say("ready")
	if p.Hear() == "" {
		return nil
	}
	return kit.Again("lives on").Start()
}

// childLives says whether it is told of ends, and lives until its input ends.
func childLives(p *kit.Parent, args []string) error {
	if list, ok := os.LookupEnv(inheritVar); ok {
		p.Say("told of %s", list)
	}
	if _, err := ipc.InheritedConn("left"); err == nil {
		p.Say("given an end")
	}
	p.Say("alive")
	p.Hear()
	return nil
}

func TestInheritedEndIsPassedOnByInheritAlone(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	in, out := kit.Pipe(t)
	r, w := kit.Pipe(t)
	h := kit.NewHeir(t)
	h.Gets("c", b)
	h.Gets("r", in)
	h.Gets("w", w)
	c := h.Start("relays ends", "c", "r", "w")
	kit.Must(t, errors.Join(b.Close(), in.Close(), w.Close()))
	c.MustSay("serving") // says the grandchild
	echoes(t, a, a)
	echoes(t, out, r)
	kit.Must(t, errors.Join(a.Close(), out.Close()))
	c.MustSay("relayed")
	c.End()
}

// childPassesItsEndOn gives what it was given to a child of its own, under other
// names.
func childPassesItsEndOn(p *kit.Parent, args []string) error {
	c := kit.Sure(ipc.InheritedConn(args[0]))
	r := kit.Sure(ipc.InheritedReader(args[1]))
	w := kit.Sure(ipc.InheritedWriter(args[2]))
	cmd := kit.Again("takes ends", "conn other", "reader in", "writer out")
	err := errors.Join(ipc.Inherit(cmd, "other", c), ipc.Inherit(cmd, "in", r), ipc.Inherit(cmd, "out", w))
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		err = errors.Join(c.Close(), r.Close(), w.Close(), cmd.Wait())
	}
	if err == nil {
		p.Say("relayed")
	}
	return err
}

// ---------------------------------------------------------------------------
// What cannot be given

func TestInheritRefusesBadNames(t *testing.T) {
	kit.Story(t)
	_, b := kit.Pair(t)
	for _, name := range []string{"", " ", "a b", "a,b", "a;b", "a=b", "a/b", "ü", "a\x00", "a\n"} {
		var cmd exec.Cmd
		err := ipc.Inherit(&cmd, name, b)
		if err == nil {
			t.Errorf("the name %q is taken", name)
		} else if err := refusedEnd(err, "name", "letters"); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if cmd.Env != nil || cmd.ExtraFiles != nil || cmd.SysProcAttr != nil {
			t.Errorf("%q: the command became %+v", name, cmd)
		}
	}
}

func TestInheritGivesANameOnce(t *testing.T) {
	kit.Story(t)
	_, b := kit.Pair(t)
	_, d := kit.Pair(t)
	h := kit.NewHeir(t)
	h.Gets("x", b)
	env, files := slices.Clone(h.Cmd.Env), len(h.Cmd.ExtraFiles)
	for _, end := range []ipc.Inheritable{b, d} {
		if err := refusedEnd(ipc.Inherit(&h.Cmd, "x", end), "x", "once"); err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(h.Cmd.Env, env) || len(h.Cmd.ExtraFiles) != files {
		t.Errorf("a refused end is in the command: %v", h.Cmd.Env)
	}
	h.Gets("y", d)
}

func TestInheritRefusesAClosedEnd(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	r, w := kit.Pipe(t)
	l := kit.Listen(t, ipc.Addr{})
	m, n := kit.MsgPair(t)
	kit.Must(t, errors.Join(a.Close(), b.Close(), r.Close(), w.Close(), l.Close(), m.Close(), n.Close()))
	for _, end := range []ipc.Inheritable{a, r, w, l, m} {
		var cmd exec.Cmd
		err := ipc.Inherit(&cmd, "x", end)
		kit.Matches(t, err, net.ErrClosed)
		if err := refusedEnd(err); err != nil {
			t.Error(err)
		}
		if cmd.Env != nil || cmd.ExtraFiles != nil || cmd.SysProcAttr != nil {
			t.Errorf("the command became %+v", cmd)
		}
	}
}

func TestInheritRefusesAUsedEndWhereItBelongsToTheProcess(t *testing.T) {
	if runtime.GOOS != "windows" {
		t.Skip("here it can")
	}
	kit.Story(t)
	a, b := kit.Pair(t)
	kit.Talk(t, a, b)
	var cmd exec.Cmd
	kit.Matches(t, ipc.Inherit(&cmd, "x", b), errors.ErrUnsupported)
}

func TestInheritForAChildThatDoesNotStart(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	cmd := exec.Command(kit.TempDir(t) + "/no such program")
	kit.Must(t, ipc.Inherit(cmd, "x", b))
	if cmd.Start() == nil {
		t.Fatal("it starts")
	}
	kit.Talk(t, a, b)
	kit.Must(t, b.SetReadDeadline(time.Now().Add(kit.Brief)))
	_, err := b.Read(make([]byte, 1))
	kit.TimedOut(t, err)
}

// ---------------------------------------------------------------------------
// The command and its environment

func TestInheritKeepsTheEnvironment(t *testing.T) {
	kit.Story(t)
	_, b := kit.Pair(t)
	_, d := kit.Pair(t)
	t.Setenv("IPC_TEST_MARK", "of the parent")
	var cmd exec.Cmd // whose environment is this process's
	kit.Must(t, ipc.Inherit(&cmd, "b", b))
	kit.Must(t, ipc.Inherit(&cmd, "d", d))
	if n := len(cmd.Env); n != len(os.Environ())+1 || !slices.Equal(cmd.Env[:n-1], os.Environ()) {
		t.Errorf("the environment became %q", cmd.Env)
	}

	// A shell goes by this variable, which Start would set.
	cmd = exec.Cmd{Dir: os.TempDir()}
	start := cmd.Environ()
	kit.Must(t, ipc.Inherit(&cmd, "b", b))
	if n := len(cmd.Env); n != len(start)+1 || !slices.Equal(cmd.Env[:n-1], start) {
		t.Errorf("the environment in another folder became %q", cmd.Env)
	}

	own := make([]string, 2, 10)
	own[0], own[1] = "A=1", "B=2"
	spare := own[:10]
	cmd = exec.Cmd{Env: own}
	kit.Must(t, ipc.Inherit(&cmd, "b", b))
	kit.Must(t, ipc.Inherit(&cmd, "d", d))
	if len(cmd.Env) != 3 || !slices.Equal(cmd.Env[:2], own) || !strings.HasPrefix(cmd.Env[2], inheritVar+"=") {
		t.Errorf("the environment became %q", cmd.Env)
	}
	if spare[2] != "" {
		t.Error("the caller's slice was written to beyond its end")
	}
	if _, ok := os.LookupEnv(inheritVar); ok {
		t.Error("the parent's own environment was changed")
	}

	for _, malformed := range []string{"x", "x,conn", "x,conn,3;;"} {
		cmd = exec.Cmd{Env: []string{inheritVar + "=" + malformed}}
		if err := refusedEnd(ipc.Inherit(&cmd, "b", b), inheritVar); err != nil {
			t.Error(err)
		}
	}
}

func TestInheritByTwoCommandsSharesNothing(t *testing.T) {
	kit.Story(t)
	_, b := kit.Pair(t)
	_, d := kit.Pair(t)
	files := make([]*os.File, 0, 4)
	first, second := exec.Cmd{ExtraFiles: files}, exec.Cmd{ExtraFiles: files}
	kit.Must(t, ipc.Inherit(&first, "x", b))
	given := slices.Clone(first.ExtraFiles)
	kit.Must(t, ipc.Inherit(&second, "x", d))
	if !slices.Equal(first.ExtraFiles, given) {
		t.Error("the end for one command is given to another")
	}
}

// ---------------------------------------------------------------------------
// What a child is told wrong

// malformedLists are values of the variable from which no end "x" that is a
// connection must come, and a word of the error each.
var malformedLists = map[string]string{
	"":                                    `"x"`,
	"x":                                   "malformed",
	",":                                   "malformed",
	";":                                   "malformed",
	",,":                                  "malformed",
	"=":                                   "malformed",
	"x,conn":                              "malformed",
	"x,conn,":                             "malformed",
	"x,conn,-1":                           "malformed",
	"x,conn,0":                            "malformed",
	"x,conn,+5":                           "malformed",
	"x,conn,05":                           "malformed",
	"x,conn,5x":                           "malformed",
	"x,conn,5,5":                          "malformed",
	"x,conn, 5":                           "malformed",
	"x,conn,5;":                           "malformed",
	";x,conn,5":                           "malformed",
	"x,conn,5;;y,conn,6":                  "malformed",
	"x,conn,5;x,conn,6":                   "malformed",
	"x,conn,5;y,conn,5":                   "malformed", // two owners of one
	"x,conn,99999999999999999999":         "malformed",
	",conn,5":                             "malformed",
	"x y,conn,5;x,conn,6":                 "malformed",
	"\xff\xfe,conn,5":                     "malformed",
	"x,conn,5\n":                          "malformed",
	strings.Repeat("x,conn,5;", 5000):     "malformed",
	strings.Repeat("x", 50000):            "malformed",
	"y,conn,5":                            `"x"`,
	"X,conn,5":                            `"x"`,
	"x,CONN,5":                            "CONN",
	"x,,5":                                "conn",
	"x,listener,5":                        "listener",
	"x,conn,987654":                       "", // which is not open: the system says so
	"x,conn,3;y,msgconn,987654;z,conn,10": "", // a file
}

func TestInheritedWithAMalformedVariable(t *testing.T) {
	kit.LongStory(t, kit.Patience+time.Duration(len(malformedLists))*kit.Soon)
	file, err := os.Create(kit.TempDir(t) + "/file")
	kit.Must(t, err)
	defer os.Remove(file.Name())
	defer file.Close()
	inexistent := exec.Cmd{}
	if runtime.GOOS != "windows" {
		inexistent.ExtraFiles = []*os.File{file}
	}
	for list, word := range malformedLists {
		cmd := inexistent
		cmd.Env = []string{inheritVar + "=" + list}
		c := kit.StartChildWith(t, cmd, "has no ends", word)
		for { // to its last word, which may be a panic
			line, err := c.Out.ReadString('\n')
			if err != nil {
				break
			}
			t.Errorf("%.60q: %s", list, line)
		}
		c.Ended = true
		c.In.Close()
		if err := c.Cmd.Wait(); err != nil {
			t.Errorf("%.60q: %v: %s", list, err, c.Errors.Bytes())
		}
	}
}

func TestInheritedWithAMissingVariable(t *testing.T) {
	kit.Story(t)
	for _, take := range inheritors {
		for _, name := range []string{"x", ""} {
			_, err := take(name)
			if err := refusedEnd(err, fmt.Sprintf("%q", name)); err != nil {
				t.Error(err)
			}
		}
	}
}

// childAsksForWhatItHasNot asks for the end "x", and says so if it is given one
// or the error does not hold the word.
func childAsksForWhatItHasNot(p *kit.Parent, args []string) error {
	for range 2 {
		c, err := inheritors["conn"]("x")
		if err == nil {
			p.Say("there is an end %#v", c)
			continue
		}
		if err := refusedEnd(err, args[0]); err != nil {
			p.Say("%v", err)
		}
		for _, take := range inheritors {
			for _, name := range []string{"", "nothing", "x\x00"} {
				if _, err := take(name); err == nil {
					p.Say("there is an end %q", name)
				}
			}
		}
	}
	if list, ok := os.LookupEnv(inheritVar); ok {
		p.Say("%s is still there: %.20s", inheritVar, list)
	}
	return nil
}

// A launcher closed what the parent gave; the child opens its own under the number.
func TestInheritedEndThatALauncherClosedIsRefused(t *testing.T) {
	kit.Story(t)
	for kind := range inheritors {
		var cmd exec.Cmd
		var list []string
		numbers := []int{60, 61, 62, 63, 64, 65} // of the child's own descriptors
		if runtime.GOOS == "windows" {
			numbers = nil // of its own handles
			for n := 0x100; n < 0x800; n += 4 {
				numbers = append(numbers, n)
			}
		}
		for _, n := range numbers {
			token := strconv.Itoa(n)
			if runtime.GOOS == "windows" && strings.HasSuffix(kind, "listener") {
				token += ":4"
			}
			list = append(list, fmt.Sprintf("x%d,%s,%s", n, kind, token))
		}
		cmd.Env = []string{inheritVar + "=" + strings.Join(list, ";")}
		kit.StartChildWith(t, cmd, "opens ends", kind).End()
	}
}

// childOpensEndsItWasNotGiven opens ends of its own until they have the numbers of
// those that it was given, as the variable says, and takes none of them.
func childOpensEndsItWasNotGiven(p *kit.Parent, args []string) error {
	var own []*ipc.Conn
	for range 40 {
		a, b := kit.Sure2(ipc.Pair())
		defer a.Close()
		defer b.Close()
		own = append(own, a, b)
	}
	r, w := kit.Sure2(ipc.Pipe())
	defer r.Close()
	defer w.Close()
	l, err := ipc.Listen(ipc.Addr{})
	if err != nil {
		return err
	}
	defer l.Close()
	for n := range 0x800 {
		end, err := inheritors[args[0]](fmt.Sprint("x", n))
		if err == nil {
			return fmt.Errorf("there is the end %d: %#v", n, end)
		}
		given := runtime.GOOS == "windows" && n >= 0x100 && n%4 == 0 || runtime.GOOS != "windows" && n >= 60 && n <= 65
		if given && runtime.GOOS == "windows" {
			err = refusedEnd(err) // it may be that of a standard stream, which was inherited
		} else if given {
			err = refusedEnd(err, fmt.Sprintf(`"x%d"`, n), "not what the parent gave")
		} else {
			err = refusedEnd(err, "inherited")
		}
		if err != nil {
			return err
		}
	}
	for i := 0; i < len(own); i += 2 { // they are as they were
		if _, err := own[i].Write([]byte("x")); err != nil {
			return err
		}
		if _, err := io.ReadFull(own[i+1], make([]byte, 1)); err != nil {
			return err
		}
	}
	return nil
}

// The child says that the variable is missing, since the parent cannot.
func TestInheritedWithoutTheVariableSaysSo(t *testing.T) {
	kit.Story(t)
	_, b := kit.Pair(t)
	h := kit.NewHeir(t)
	h.Gets("x", b)
	h.Cmd.Env = []string{"A=1"} // replaced after Inherit
	c := h.Start("has no ends", inheritVar+" was not set")
	if line, err := c.Out.ReadString('\n'); err != io.EOF {
		t.Errorf("the child says %q, %v", line, err)
	}
	c.End()
}

func TestInheritOfNothingIsAnError(t *testing.T) {
	kit.Story(t)
	_, b := kit.Pair(t)
	kit.Matches(t, ipc.Inherit(nil, "x", b), syscall.EINVAL)
	kit.Matches(t, ipc.Inherit(new(exec.Cmd), "x", nil), syscall.EINVAL)
}

// What is appended to the environment after Inherit keeps the variable.
func TestInheritBeforeTheEnvironmentIsAppendedTo(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	cmd := kit.Rerun("takes ends", "conn c")
	cmd.Env = nil // this process's
	kit.Must(t, ipc.Inherit(cmd, "c", b))
	cmd.Env = append(cmd.Env, kit.ChildRole+"=takes ends")
	kit.Must(t, cmd.Start())
	kit.Must(t, b.Close())
	echoes(t, a, a)
	kit.Must(t, a.Close())
	kit.Must(t, cmd.Wait())
}

func TestInheritErrorsNameTheNetwork(t *testing.T) {
	kit.Story(t)
	a, _ := kit.Pair(t)
	m, _ := kit.MsgPair(t)
	r, w := kit.Pipe(t)
	l := kit.Listen(t, ipc.Addr{})
	for _, c := range []struct {
		end  ipc.Inheritable
		want string
	}{{a, localNetwork}, {m, localNetwork}, {l, localNetwork}, {r, "pipe"}, {w, "pipe"}} {
		var oe *net.OpError
		if err := ipc.Inherit(new(exec.Cmd), "", c.end); !errors.As(err, &oe) || oe.Net != c.want {
			t.Errorf("%T: %v names %q, want %q", c.end, err, oe.Net, c.want)
		}
	}
	for kind, take := range inheritors {
		want := localNetwork
		if kind == "reader" || kind == "writer" {
			want = "pipe"
		}
		var oe *net.OpError
		if _, err := take("nothing"); !errors.As(err, &oe) || oe.Net != want {
			t.Errorf("%s: %v names %q, want %q", kind, err, oe.Net, want)
		}
	}
}

// localNetwork is the network of local sockets in errors.
var localNetwork = ipc.Addr{}.Network()
