package ipc_test

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/interprocess-go/ipc"
)

// Ends that a child process is given, as Windows has them.

func init() {
	roles["refuses an end"] = childRefusesAnEnd
	roles["welcomes"] = childWelcomes
	roles["serves a pipe"] = childServesAPipe
	roles["reads an end"] = childReadsAnEnd
}

// instanceInfo returns the kind and the buffers of the pipe of an end.
func instanceInfo(t *testing.T, c syscall.Conn) (info [3]uint32) {
	t.Helper()
	control(t, c, func(h uintptr) {
		r, _, err := getNamedPipeInfo.Call(h, uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&info[1])),
			uintptr(unsafe.Pointer(&info[2])), 0)
		if r == 0 {
			t.Fatal(err)
		}
	})
	return info
}

func TestHeirsListenerIsAsItsParents(t *testing.T) {
	for _, remote := range []bool{false, true} {
		t.Run(fmt.Sprint("AcceptRemote ", remote), func(t *testing.T) {
			story(t)
			path := pipePath()
			lc := ipc.ListenConfig{
				Access:  ipc.Everyone,
				Backlog: 2,
				Sys:     &ipc.SysListenConfig{ReadBuffer: 12 << 10, WriteBuffer: 20 << 10, AcceptRemote: remote},
			}
			l := listenWith(t, lc, ipc.Path(path))
			h := newHeir(t)
			h.gets("l", l)
			if strings.HasSuffix(h.cmd.Env[0], ":remote") != remote { // nothing else tells, on this machine
				t.Errorf("the child is told %s", h.cmd.Env)
			}
			c := h.start("holds a listener", "l")
			c.mustSay("ready")

			before := dialPipe(t, path, ipc.PipeDialer{}) // an instance of the parent's
			must(t, l.Close())
			after := dialPipe(t, path, ipc.PipeDialer{})
			if got, want := instanceInfo(t, after), instanceInfo(t, before); got != want {
				t.Errorf("the kind and the buffers are %v, want %v", got, want)
			}
			was, err := before.SecurityDescriptor()
			must(t, err)
			is, err := after.SecurityDescriptor()
			must(t, err)
			if is.String() != was.String() {
				t.Errorf("the descriptor is %v, want %v", is, was)
			}
			if n := 1 + len(fill(t, ipc.Path(path))); n != lc.Backlog {
				t.Errorf("%d clients have room, want %d", n, lc.Backlog)
			}
			c.end()
		})
	}
}

func TestManyHeirsServeOneName(t *testing.T) {
	story(t)
	addr := nameAddr(t)
	l := listen(t, addr)
	var heirs []*child
	for _, name := range []string{"first", "second"} {
		h := newHeir(t)
		h.gets(name, l)
		c := h.start("welcomes", name)
		c.mustSay("welcoming " + addr.String())
		heirs = append(heirs, c)
	}
	must(t, l.Close())
	servedBy := func(names ...string) {
		t.Helper()
		for _, name := range names {
			eventually(t, name+" serves", func() bool {
				var conns []*ipc.Conn // the system takes the instance that listens longest
				defer func() {
					for _, c := range conns {
						c.Close()
					}
				}()
				for range 20 {
					c, err := ipc.Dialer{Timeout: soon}.Dial(addr)
					must(t, err)
					conns = append(conns, c)
					if who, err := io.ReadAll(c); string(who) == name && err == nil {
						return true
					}
				}
				return false
			})
		}
	}
	servedBy("first", "second")
	heirs[0].end()
	servedBy("second")
	_, err := ipc.Listen(addr)
	matches(t, err, ipc.ErrAddrInUse)
	heirs[1].end()
	serves(t, listen(t, addr), addr)
}

// childWelcomes tells the clients of the listener of its argument that name.
func childWelcomes(p *parent, args []string) error {
	l := sure(ipc.InheritedListener(args[0]))
	serving := begin(func() error { welcome(l, args[0]); return nil })
	p.say("welcoming %v", l.Addr())
	p.hear()
	return errors.Join(l.Close(), <-serving)
}

func TestEndsAreTakenForWhatTheyAreAlone(t *testing.T) {
	story(t)
	_, conn := pair(t)
	r, w := pipe(t)
	l := listen(t, nameAddr(t))
	for what, end := range map[string]ipc.Inheritable{"conn": conn, "reader": r, "writer": w, "listener": l} {
		for _, kind := range []string{"conn", "msgconn", "listener"} {
			if kind == what {
				continue
			}
			h := newHeir(t)
			h.gets("x", end)
			// As if it were one of the other kind, in every way to write its token.
			_, token, _ := strings.Cut(h.cmd.Env[0], ","+what+",")
			handle, _, _ := strings.Cut(token, ":")
			for _, token := range []string{handle, handle + ":4", handle + ":remote", handle + ":4:remote"} {
				if what == "listener" && kind == "conn" && !strings.Contains(token, ":4") {
					continue // its handle is that of a connection whose client has left
				}
				h.cmd.Env[0] = inheritVar + "=x," + kind + "," + token
				c := h.start("refuses an end", kind)
				c.mustSay("refused")
				c.end()
			}
		}
	}
	runtime.KeepAlive(l) // with its handle
}

// childRefusesAnEnd takes the end "x" of the kind, which it must not get.
func childRefusesAnEnd(p *parent, args []string) error {
	for range 2 { // it stays where it is
		end, err := inheritors[args[0]]("x")
		if err == nil {
			return fmt.Errorf("there is an end %#v", end)
		}
		if err := refusedEnd(err); err != nil {
			return err
		}
		if strings.Contains(err.Error(), "garbled") {
			return err
		}
	}
	p.say("refused")
	return nil
}

// A child reads what was written to an end, though its peer is gone already. The system
// may have forgotten the name of such a pipe.
func TestEndWhosePeerIsGoneIsGiven(t *testing.T) {
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		send(t, a, "before")
		h := newHeir(t)
		h.gets("c", b)
		must(t, a.Close())
		h.start("reads an end", "c", "before").end()
		must(t, b.Close())
	})
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		send(t, a, "before")
		must(t, a.Close())
		h := newHeir(t)
		h.gets("c", b)
		h.start("reads an end", "c", "before").end()
		must(t, b.Close())
	})
}

func childReadsAnEnd(p *parent, args []string) error {
	c, err := ipc.InheritedConn(args[0])
	if err != nil {
		return err
	}
	text, err := io.ReadAll(c)
	if string(text) != args[1] {
		err = errors.Join(err, fmt.Errorf("there is %q to read, want %q", text, args[1]))
	}
	return errors.Join(err, c.Close())
}

func TestPipeListenerIsHandedOn(t *testing.T) {
	for what, c := range map[string]ipc.PipeConfig{
		"bytes":    {},
		"messages": {Messages: true, Backlog: 2, Access: ipc.Everyone, ReadBuffer: 12 << 10, WriteBuffer: 20 << 10},
		"inbound":  {Direction: ipc.ClientToServer},
		"outbound": {Direction: ipc.ServerToClient, Messages: true, AcceptRemote: true, Inheritable: true},
	} {
		t.Run(what, func(t *testing.T) {
			story(t)
			l, path := listenPipe(t, c)
			h := newHeir(t)
			h.gets("l", l)
			child := h.start("serves a pipe", "l")
			child.mustSay("serving " + path)
			must(t, l.Close())
			client := dialPipe(t, path, ipc.PipeDialer{Direction: c.Direction, Messages: c.Messages})
			if c.Direction != ipc.ServerToClient {
				send(t, client, "word")
				child.mustSay("heard word")
			}
			if c.Direction != ipc.ClientToServer {
				p := make([]byte, 10)
				if n, err := client.Read(p); string(p[:n]) != "answer" || err != nil {
					t.Errorf("%q, %v", p[:n], err)
				}
			}
			must(t, client.Close())
			child.end()
			again, err := ipc.ListenPipe(path, c) // the name went with the child
			must(t, err)
			must(t, again.Close())
		})
	}
}

// childServesAPipe serves one client of the pipe of its argument.
func childServesAPipe(p *parent, args []string) error {
	l, err := ipc.InheritedPipeListener(args[0])
	if err != nil {
		return err
	}
	p.say("serving %v", l.Addr())
	c, err := l.AcceptPipe()
	if err != nil {
		return err
	}
	b := make([]byte, 10)
	if n, err := c.Read(b); err == nil {
		p.say("heard %s", b[:n])
	} else if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if _, err := c.Write([]byte("answer")); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	p.hear()
	return errors.Join(c.Close(), l.Close())
}

func TestPipeListenerWithALimitIsNotHandedOn(t *testing.T) {
	story(t)
	l, _ := listenPipe(t, ipc.PipeConfig{MaxInstances: 1})
	var cmd exec.Cmd
	matches(t, ipc.Inherit(&cmd, "l", l), errors.ErrUnsupported)
	if cmd.Env != nil || cmd.SysProcAttr != nil {
		t.Errorf("the command became %+v", cmd)
	}
}

// A handle that is open when the child starts, but that of another pipe.
func TestInheritedEndWithAnotherHandleIsRefused(t *testing.T) {
	story(t)
	_, b := pair(t)
	_, other := pair(t)
	h, wrong := newHeir(t), newHeir(t)
	h.gets("x", b)
	wrong.gets("x", other)
	_, id, _ := strings.Cut(h.cmd.Env[0], "@")
	handle, _, _ := strings.Cut(wrong.cmd.Env[0], "@")
	wrong.cmd.Env[0] = handle + "@" + id
	c := wrong.start("refuses an end", "conn")
	c.mustSay("refused")
	c.end()
}
