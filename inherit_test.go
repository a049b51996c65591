//go:build unix || windows

// Ends that a child process is given.
package ipc_test

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
)

func init() {
	for role, play := range map[string]func(*parent, []string) error{
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
		roles[role] = play
	}
}

// inheritVar tells a child of its ends. Its name is part of the interface: a
// program may be asked to clear its environment but for it.
const inheritVar = "IPC_INHERIT"

// childServesItsEnds takes the ends that the arguments tell, "kind name", and
// serves each until its end: connections and clients of listeners by an echo, a
// reader by a copy to the writer.
func childServesItsEnds(p *parent, args []string) error {
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
	p.say("serving")
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
	data := pattern(500 << 10)
	writing := begin(func() error { _, err := w.Write(data); return err })
	got := make([]byte, len(data))
	if n, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("of %d bytes %d come back, %v", len(data), n, err)
	}
	must(t, <-writing)
}

// echoesMessages proves it of messages.
func echoesMessages(t *testing.T, c *ipc.MsgConn) {
	t.Helper()
	for _, msg := range []string{"one", "another", string(pattern(3000)), "a last one"} {
		must(t, c.Send([]byte(msg)))
		if got, err := c.RecvAppend(nil); string(got) != msg || err != nil {
			t.Fatalf("%.20q comes back for %.20q, %v", got, msg, err)
		}
	}
}

// ---------------------------------------------------------------------------
// What a child is given

func TestInheritedEndsAreUsed(t *testing.T) {
	t.Run("Conn", func(t *testing.T) {
		overEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
			h := newHeir(t)
			h.gets("c", b)
			c := h.start("takes ends", "conn c")
			must(t, b.Close())
			c.mustSay("serving")
			echoes(t, a, a)
			must(t, a.Close())
			c.end()
		})
	})
	t.Run("MsgConn", func(t *testing.T) {
		story(t)
		a, b := msgPair(t)
		h := newHeir(t)
		h.gets("m", b)
		c := h.start("takes ends", "msgconn m")
		must(t, b.Close())
		c.mustSay("serving")
		echoesMessages(t, a)
		must(t, a.Close())
		c.end()
	})
	t.Run("Pipes", func(t *testing.T) {
		story(t)
		r, w := pipe(t)
		back, answer := pipe(t)
		h := newHeir(t)
		h.gets("in", r)
		h.gets("out", answer)
		c := h.start("takes ends", "reader in", "writer out")
		must(t, errors.Join(r.Close(), answer.Close()))
		c.mustSay("serving")
		echoes(t, w, back)
		must(t, w.Close())
		expectEOF(t, back)
		c.end()
	})
	t.Run("MsgListener", func(t *testing.T) {
		overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := listenMsg(t, addr)
			h := newHeir(t)
			h.gets("l", l)
			c := h.start("takes ends", "msglistener l")
			if runtime.GOOS == "windows" { // where both have clients of their own
				c.mustSay("serving")
				must(t, l.Close())
			}
			client := dialMsg(t, addr)
			if runtime.GOOS != "windows" {
				c.mustSay("serving")
			}
			echoesMessages(t, client)
			must(t, client.Close())
			c.end()
		})
	})
	t.Run("Listener", func(t *testing.T) {
		overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := listen(t, addr)
			h := newHeir(t)
			h.gets("l", l)
			c := h.start("takes ends", "listener l")
			if runtime.GOOS == "windows" { // where both have clients of their own
				must(t, l.Close())
			}
			client := dial(t, addr) // the child is the one to accept it
			c.mustSay("serving")
			echoes(t, client, client)
			must(t, client.Close())
			c.end()
			if runtime.GOOS == "windows" {
				l = listen(t, addr) // the name went with the child
			}
			serves(t, l, addr) // neither the socket nor its file went with the child
		})
	})
}

func TestInheritManyEnds(t *testing.T) {
	story(t)
	h := newHeir(t)
	var args []string
	var conns []*ipc.Conn
	var given []io.Closer
	give := func(kind, name string, end interface {
		ipc.Inheritable
		io.Closer
	}) {
		h.gets(name, end)
		args = append(args, kind+" "+name)
		given = append(given, end)
	}
	for i := range 8 {
		a, b := pair(t)
		give("conn", fmt.Sprintf("conn-%d.x_Y", i), b)
		conns = append(conns, a)
	}
	m, n := msgPair(t)
	give("msgconn", "M", n)
	r, w := pipe(t)
	back, answer := pipe(t)
	give("writer", ".", answer)
	give("reader", "-", r)
	slices.Reverse(args) // the order in which they are taken is the child's
	c := h.start("takes ends", args...)
	for _, end := range given {
		must(t, end.Close())
	}
	c.mustSay("serving")
	for i, conn := range conns { // each is the one of its name
		send(t, conn, fmt.Sprint("to ", i))
		expect(t, conn, fmt.Sprint("to ", i))
	}
	echoesMessages(t, m)
	echoes(t, w, back)
	for _, conn := range conns {
		must(t, conn.Close())
	}
	must(t, errors.Join(m.Close(), w.Close()))
	c.end()
}

func TestListenerServesOnWithoutItsHeirs(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		serves(t, l, addr)
		h := newHeir(t)
		h.gets("l", l)
		for _, args := range [][]string{{"l"}, {}} { // one takes the listener, one does not
			c := h.start("holds a listener", args...)
			c.mustSay("ready")
			c.end()
			for range 5 {
				serves(t, l, addr)
			}
		}
	})
}

// childHoldsAListener takes the listener of the argument, if there is one, and
// accepts nobody.
func childHoldsAListener(p *parent, args []string) error {
	if len(args) > 0 {
		l, err := ipc.InheritedListener(args[0])
		if err != nil {
			return err
		}
		defer l.Close()
	}
	p.say("ready")
	p.hear()
	return nil
}

func TestInheritedListenerTakesOverWithoutAGap(t *testing.T) {
	story(t)
	addr := pathAddr(t)
	l := listenWith(t, ipc.ListenConfig{KeepName: true}, addr)
	serving := welcome(l, "parent")

	var clients []func() error // end them
	var mu sync.Mutex
	served := map[string]int{} // by whom
	for range 4 {
		clients = append(clients, repeatedly(func() error {
			c, err := ipc.Dialer{Timeout: soon}.Dial(addr)
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
		eventually(t, who+" serves", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return served[who] >= 20 || t.Failed()
		})
	}
	isServedBy("parent")
	h := newHeir(t)
	h.gets("l", l)
	c := h.start("succeeds", "l", "3")
	must(t, l.Close()) // before the child can have taken its own
	must(t, <-serving)
	for generation := 3; ; generation-- {
		isServedBy(fmt.Sprint("generation ", generation))
		if generation == 1 {
			break
		}
		c.say("next")
	}
	for _, end := range clients {
		must(t, end())
	}
	c.say("next") // to nobody
	c.outlive()
	if runtime.GOOS != "windows" {
		must(t, os.Remove(addr.String()))
	}
	_, err := ipc.Dial(addr)
	matches(t, err, ipc.ErrNoListener)
}

// welcome tells each client who serves it, until the listener is closed.
func welcome(l *ipc.Listener, who string) <-chan error {
	return serveEach(l, func(c *ipc.Conn) error {
		io.WriteString(c, who) // to one that may be gone
		return c.Close()
	})
}

// childSucceeds serves the listener of the first argument in as many generations
// as the second one says, each of which at the word gives it to the next, by a
// copy of its standard streams.
func childSucceeds(p *parent, args []string) error {
	l := sure(ipc.InheritedListener(args[0]))
	left := sure(strconv.Atoi(args[1]))
	serving := welcome(l, fmt.Sprint("generation ", left))
	// One byte at a time: the rest is for the next generation.
	for b := []byte{0}; b[0] != '\n'; {
		if _, err := os.Stdin.Read(b); err != nil {
			return err
		}
	}
	if left > 1 {
		next := again("succeeds", args[0], strconv.Itoa(left-1))
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
	story(t)
	a, b := pair(t)
	m, n := msgPair(t)
	r, w := pipe(t)
	in, out := pipe(t)
	h := newHeir(t)
	h.gets("c", b)
	h.gets("m", n)
	h.gets("w", w)
	h.gets("r", in)
	c := h.start("takes ends", "conn c", "msgconn m", "reader r", "writer w")
	must(t, errors.Join(b.Close(), n.Close(), w.Close(), in.Close()))
	c.mustSay("serving")
	reading := []<-chan error{
		beginRead(a),
		begin(func() error { _, err := m.Recv(make([]byte, 1)); return err }),
		beginRead(r),
	}
	awaitParked(t, "(*Conn).Read", 1)
	awaitParked(t, "(*MsgConn).Recv", 1)
	awaitParked(t, "(*PipeReader).Read", 1)
	c.kill()
	for _, done := range reading {
		if err := <-done; err != io.EOF {
			t.Errorf("a read ends with %v, want io.EOF", err)
		}
	}
	_, err := a.Write([]byte("x"))
	matches(t, err, syscall.EPIPE)
	matches(t, m.Send([]byte("x")), syscall.EPIPE)
	_, err = out.Write([]byte("x"))
	matches(t, err, syscall.EPIPE)
}

func TestInheritLeavesTheParentItsDeadlines(t *testing.T) {
	story(t)
	a, b := pair(t)
	r, w := pipe(t)
	in, out := pipe(t)
	h := newHeir(t)
	h.gets("c", b)
	h.gets("w", w)
	h.gets("r", in)
	c := h.start("keeps ends") // reads nothing and writes nothing
	c.mustSay("ready")
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
			must(t, e.set(begun.Add(brief)))
			_, err := call(make([]byte, tooMuch))
			for err == nil { // what an earlier end wrote
				_, err = call(make([]byte, tooMuch))
			}
			timedOut(t, err)
			if waited := time.Since(begun); waited < brief {
				t.Errorf("%s gave up after %v", e.what, waited)
			}
			must(t, e.set(time.Time{}))
		}
	}
	reading := begin(func() error { _, err := r.Read(make([]byte, tooMuch)); return err })
	for _, e := range ends {
		must(t, e.close())
	}
	if err := <-reading; err != nil {
		matches(t, err, net.ErrClosed)
	}
	c.end()
}

func TestInheritedEndIsTakenOnce(t *testing.T) {
	story(t)
	a, b := pair(t)
	r, w := pipe(t)
	h := newHeir(t)
	h.gets("c", b)
	h.gets("r", r)
	c := h.start("tries ends", "c", "r")
	must(t, errors.Join(b.Close(), r.Close()))
	c.mustSay("as it should")
	send(t, w, "by the pipe")
	expect(t, a, "by the pipe")
	send(t, a, ".")
	c.end()
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
func childTakesEndsInEveryWay(p *parent, args []string) error {
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
	c := sure(ipc.InheritedConn(args[0]))
	r := sure(ipc.InheritedReader(args[1]))
	for _, take := range inheritors {
		for _, name := range append(args, "another", "") {
			_, err := take(name)
			if err := refusedEnd(err, fmt.Sprintf("%q", name)); err != nil {
				return err
			}
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(brief)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("an inherited end without news gives %v", err)
	}
	if err := errors.Join(c.SetReadDeadline(time.Time{})); err != nil {
		return err
	}
	p.say("as it should")
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

// outlive waits until everything that has the child's standard output, also a
// child of it, has ended.
func (c *child) outlive() {
	c.t.Helper()
	c.in.Close()
	if rest, err := io.ReadAll(c.out); len(rest) > 0 || err != nil {
		c.t.Errorf("the child goes on to say %q, %v", rest, err)
	}
	c.end()
}

func TestInheritedEndsAreNotPassedOn(t *testing.T) {
	story(t)
	taken, b := pair(t)
	left, d := pair(t)
	r, w := pipe(t)
	h := newHeir(t)
	h.gets("taken", b)
	h.gets("left", d)
	h.gets("w", w)
	c := h.start("keeps ends", "taken")
	must(t, errors.Join(b.Close(), d.Close(), w.Close()))
	c.mustSay("ready")
	c.say("start a child and leave")
	c.mustSay("alive")
	// The child is gone, its child is not: had that one of the ends, they would
	// not be closed.
	for _, end := range []interface {
		io.Reader
		SetReadDeadline(time.Time) error
	}{taken, left, r} {
		must(t, end.SetReadDeadline(time.Now().Add(soon)))
		expectEOF(t, end)
	}
	c.outlive()
}

// childKeepsItsEnds takes the end of the argument, if there is one, and starts a
// child that outlives it.
func childKeepsItsEnds(p *parent, args []string) error {
	if len(args) > 0 {
		c, err := ipc.InheritedConn(args[0])
		if err != nil {
			return err
		}
		defer c.Close()
	}
	p.say("ready")
	if p.hear() == "" {
		return nil
	}
	return again("lives on").Start()
}

// childLives says whether it is told of ends, and lives until its input ends.
func childLives(p *parent, args []string) error {
	if list, ok := os.LookupEnv(inheritVar); ok {
		p.say("told of %s", list)
	}
	if _, err := ipc.InheritedConn("left"); err == nil {
		p.say("given an end")
	}
	p.say("alive")
	p.hear()
	return nil
}

func TestInheritedEndIsPassedOnByInheritAlone(t *testing.T) {
	story(t)
	a, b := pair(t)
	in, out := pipe(t)
	r, w := pipe(t)
	h := newHeir(t)
	h.gets("c", b)
	h.gets("r", in)
	h.gets("w", w)
	c := h.start("relays ends", "c", "r", "w")
	must(t, errors.Join(b.Close(), in.Close(), w.Close()))
	c.mustSay("serving") // says the grandchild
	echoes(t, a, a)
	echoes(t, out, r)
	must(t, errors.Join(a.Close(), out.Close()))
	c.mustSay("relayed")
	c.end()
}

// childPassesItsEndOn gives what it was given to a child of its own, under other
// names.
func childPassesItsEndOn(p *parent, args []string) error {
	c := sure(ipc.InheritedConn(args[0]))
	r := sure(ipc.InheritedReader(args[1]))
	w := sure(ipc.InheritedWriter(args[2]))
	cmd := again("takes ends", "conn other", "reader in", "writer out")
	err := errors.Join(ipc.Inherit(cmd, "other", c), ipc.Inherit(cmd, "in", r), ipc.Inherit(cmd, "out", w))
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		err = errors.Join(c.Close(), r.Close(), w.Close(), cmd.Wait())
	}
	if err == nil {
		p.say("relayed")
	}
	return err
}

// ---------------------------------------------------------------------------
// What cannot be given

func TestInheritRefusesBadNames(t *testing.T) {
	story(t)
	_, b := pair(t)
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
	story(t)
	_, b := pair(t)
	_, d := pair(t)
	h := newHeir(t)
	h.gets("x", b)
	env, files := slices.Clone(h.cmd.Env), len(h.cmd.ExtraFiles)
	for _, end := range []ipc.Inheritable{b, d} {
		if err := refusedEnd(ipc.Inherit(&h.cmd, "x", end), "x", "once"); err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(h.cmd.Env, env) || len(h.cmd.ExtraFiles) != files {
		t.Errorf("a refused end is in the command: %v", h.cmd.Env)
	}
	h.gets("y", d)
}

func TestInheritRefusesAClosedEnd(t *testing.T) {
	story(t)
	a, b := pair(t)
	r, w := pipe(t)
	l := listen(t, ipc.Addr{})
	m, n := msgPair(t)
	must(t, errors.Join(a.Close(), b.Close(), r.Close(), w.Close(), l.Close(), m.Close(), n.Close()))
	for _, end := range []ipc.Inheritable{a, r, w, l, m} {
		var cmd exec.Cmd
		err := ipc.Inherit(&cmd, "x", end)
		matches(t, err, net.ErrClosed)
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
	story(t)
	a, b := pair(t)
	talk(t, a, b)
	var cmd exec.Cmd
	matches(t, ipc.Inherit(&cmd, "x", b), errors.ErrUnsupported)
}

func TestInheritForAChildThatDoesNotStart(t *testing.T) {
	story(t)
	a, b := pair(t)
	cmd := exec.Command(tempDir(t) + "/no such program")
	must(t, ipc.Inherit(cmd, "x", b))
	if cmd.Start() == nil {
		t.Fatal("it starts")
	}
	talk(t, a, b)
	must(t, b.SetReadDeadline(time.Now().Add(brief)))
	_, err := b.Read(make([]byte, 1))
	timedOut(t, err)
}

// ---------------------------------------------------------------------------
// The command and its environment

func TestInheritKeepsTheEnvironment(t *testing.T) {
	story(t)
	_, b := pair(t)
	_, d := pair(t)
	t.Setenv("IPC_TEST_MARK", "of the parent")
	var cmd exec.Cmd // whose environment is this process's
	must(t, ipc.Inherit(&cmd, "b", b))
	must(t, ipc.Inherit(&cmd, "d", d))
	if n := len(cmd.Env); n != len(os.Environ())+1 || !slices.Equal(cmd.Env[:n-1], os.Environ()) {
		t.Errorf("the environment became %q", cmd.Env)
	}

	// A shell goes by this variable, which Start would set.
	cmd = exec.Cmd{Dir: os.TempDir()}
	start := cmd.Environ()
	must(t, ipc.Inherit(&cmd, "b", b))
	if n := len(cmd.Env); n != len(start)+1 || !slices.Equal(cmd.Env[:n-1], start) {
		t.Errorf("the environment in another folder became %q", cmd.Env)
	}

	own := make([]string, 2, 10)
	own[0], own[1] = "A=1", "B=2"
	spare := own[:10]
	cmd = exec.Cmd{Env: own}
	must(t, ipc.Inherit(&cmd, "b", b))
	must(t, ipc.Inherit(&cmd, "d", d))
	if len(cmd.Env) != 3 || !slices.Equal(cmd.Env[:2], own) || !strings.HasPrefix(cmd.Env[2], inheritVar+"=") {
		t.Errorf("the environment became %q", cmd.Env)
	}
	if spare[2] != "" {
		t.Error("the caller's slice was written to beyond its end")
	}
	if _, ok := os.LookupEnv(inheritVar); ok {
		t.Error("the parent's own environment was changed")
	}

	for _, garbled := range []string{"x", "x,conn", "x,conn,3;;"} {
		cmd = exec.Cmd{Env: []string{inheritVar + "=" + garbled}}
		if err := refusedEnd(ipc.Inherit(&cmd, "b", b), inheritVar); err != nil {
			t.Error(err)
		}
	}
}

func TestInheritByTwoCommandsSharesNothing(t *testing.T) {
	story(t)
	_, b := pair(t)
	_, d := pair(t)
	files := make([]*os.File, 0, 4)
	first, second := exec.Cmd{ExtraFiles: files}, exec.Cmd{ExtraFiles: files}
	must(t, ipc.Inherit(&first, "x", b))
	given := slices.Clone(first.ExtraFiles)
	must(t, ipc.Inherit(&second, "x", d))
	if !slices.Equal(first.ExtraFiles, given) {
		t.Error("the end for one command is given to another")
	}
}

// ---------------------------------------------------------------------------
// What a child is told wrong

// garbledLists are values of the variable from which no end "x" that is a
// connection must come, and a word of the error each.
var garbledLists = map[string]string{
	"":                                    `"x"`,
	"x":                                   "garbled",
	",":                                   "garbled",
	";":                                   "garbled",
	",,":                                  "garbled",
	"=":                                   "garbled",
	"x,conn":                              "garbled",
	"x,conn,":                             "garbled",
	"x,conn,-1":                           "garbled",
	"x,conn,0":                            "garbled",
	"x,conn,+5":                           "garbled",
	"x,conn,05":                           "garbled",
	"x,conn,5x":                           "garbled",
	"x,conn,5,5":                          "garbled",
	"x,conn, 5":                           "garbled",
	"x,conn,5;":                           "garbled",
	";x,conn,5":                           "garbled",
	"x,conn,5;;y,conn,6":                  "garbled",
	"x,conn,5;x,conn,6":                   "garbled",
	"x,conn,5;y,conn,5":                   "garbled", // two owners of one
	"x,conn,99999999999999999999":         "garbled",
	",conn,5":                             "garbled",
	"x y,conn,5;x,conn,6":                 "garbled",
	"\xff\xfe,conn,5":                     "garbled",
	"x,conn,5\n":                          "garbled",
	strings.Repeat("x,conn,5;", 5000):     "garbled",
	strings.Repeat("x", 50000):            "garbled",
	"y,conn,5":                            `"x"`,
	"X,conn,5":                            `"x"`,
	"x,CONN,5":                            "CONN",
	"x,,5":                                "conn",
	"x,listener,5":                        "listener",
	"x,conn,987654":                       "", // which is not open: the system says so
	"x,conn,3;y,msgconn,987654;z,conn,10": "", // a file
}

func TestInheritedWithAMalformedVariable(t *testing.T) {
	longStory(t, patience+time.Duration(len(garbledLists))*soon)
	file, err := os.Create(tempDir(t) + "/file")
	must(t, err)
	defer os.Remove(file.Name())
	defer file.Close()
	inexistent := exec.Cmd{}
	if runtime.GOOS != "windows" {
		inexistent.ExtraFiles = []*os.File{file}
	}
	for list, word := range garbledLists {
		cmd := inexistent
		cmd.Env = []string{inheritVar + "=" + list}
		c := startChildWith(t, cmd, "has no ends", word)
		for { // to its last word, which may be a panic
			line, err := c.out.ReadString('\n')
			if err != nil {
				break
			}
			t.Errorf("%.60q: %s", list, line)
		}
		c.ended = true
		c.in.Close()
		if err := c.cmd.Wait(); err != nil {
			t.Errorf("%.60q: %v: %s", list, err, c.errors.Bytes())
		}
	}
}

func TestInheritedWithAMissingVariable(t *testing.T) {
	story(t)
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
func childAsksForWhatItHasNot(p *parent, args []string) error {
	for range 2 {
		c, err := inheritors["conn"]("x")
		if err == nil {
			p.say("there is an end %#v", c)
			continue
		}
		if err := refusedEnd(err, args[0]); err != nil {
			p.say("%v", err)
		}
		for _, take := range inheritors {
			for _, name := range []string{"", "nothing", "x\x00"} {
				if _, err := take(name); err == nil {
					p.say("there is an end %q", name)
				}
			}
		}
	}
	if list, ok := os.LookupEnv(inheritVar); ok {
		p.say("%s is still there: %.20s", inheritVar, list)
	}
	return nil
}

// A launcher closed what the parent gave; the child opens its own under the number.
func TestInheritedEndThatALauncherClosedIsRefused(t *testing.T) {
	story(t)
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
		startChildWith(t, cmd, "opens ends", kind).end()
	}
}

// childOpensEndsItWasNotGiven opens ends of its own until they have the numbers of
// those that it was given, as the variable says, and takes none of them.
func childOpensEndsItWasNotGiven(p *parent, args []string) error {
	var own []*ipc.Conn
	for range 40 {
		a, b := sure2(ipc.Pair())
		defer a.Close()
		defer b.Close()
		own = append(own, a, b)
	}
	r, w := sure2(ipc.Pipe())
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
	story(t)
	_, b := pair(t)
	h := newHeir(t)
	h.gets("x", b)
	h.cmd.Env = []string{"A=1"} // replaced after Inherit
	c := h.start("has no ends", inheritVar+" was not set")
	if line, err := c.out.ReadString('\n'); err != io.EOF {
		t.Errorf("the child says %q, %v", line, err)
	}
	c.end()
}

func TestInheritOfNothingIsAnError(t *testing.T) {
	story(t)
	_, b := pair(t)
	matches(t, ipc.Inherit(nil, "x", b), syscall.EINVAL)
	matches(t, ipc.Inherit(new(exec.Cmd), "x", nil), syscall.EINVAL)
}

// What is appended to the environment after Inherit keeps the variable.
func TestInheritBeforeTheEnvironmentIsAppendedTo(t *testing.T) {
	story(t)
	a, b := pair(t)
	cmd := rerun("takes ends", "conn c")
	cmd.Env = nil // this process's
	must(t, ipc.Inherit(cmd, "c", b))
	cmd.Env = append(cmd.Env, childRole+"=takes ends")
	must(t, cmd.Start())
	must(t, b.Close())
	echoes(t, a, a)
	must(t, a.Close())
	must(t, cmd.Wait())
}

func TestInheritErrorsNameTheNetwork(t *testing.T) {
	story(t)
	a, _ := pair(t)
	m, _ := msgPair(t)
	r, w := pipe(t)
	l := listen(t, ipc.Addr{})
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
