// Ends that a child process is given, as Windows has them.
package tests

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
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["refuses an end"] = childRefusesAnEnd
	kit.Roles["welcomes"] = childWelcomes
	kit.Roles["serves a pipe"] = childServesAPipe
	kit.Roles["reads an end"] = childReadsAnEnd
}

// instanceInfo returns the kind and the buffers of the pipe of an end.
func instanceInfo(t *testing.T, c syscall.Conn) (info [3]uint32) {
	t.Helper()
	kit.Control(t, c, func(h uintptr) {
		r, _, err := kit.GetNamedPipeInfo.Call(h, uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&info[1])),
			uintptr(unsafe.Pointer(&info[2])), 0)
		if r == 0 {
			t.Fatal(err)
		}
	})
	return info
}

func TestInheritedListenerIsAsItsParents(t *testing.T) {
	for _, remote := range []bool{false, true} {
		t.Run(fmt.Sprint("AcceptRemote ", remote), func(t *testing.T) {
			kit.Story(t)
			path := kit.PipePath()
			lc := ipc.ListenConfig{
				Access:  ipc.Everyone,
				Backlog: 2,
				Sys:     &ipc.SysListenConfig{ReadBuffer: 12 << 10, WriteBuffer: 20 << 10, AcceptRemote: remote},
			}
			l := kit.ListenWith(t, lc, ipc.Path(path))
			h := kit.NewHeir(t)
			h.Gets("l", l)
			if strings.HasSuffix(h.Cmd.Env[0], ":remote") != remote { // nothing else tells, on this machine
				t.Errorf("the child is told %s", h.Cmd.Env)
			}
			c := h.Start("holds a listener", "l")
			c.MustSay("ready")

			before := kit.DialPipe(t, path, ipc.PipeDialer{}) // an instance of the parent's
			kit.Must(t, l.Close())
			after := kit.DialPipe(t, path, ipc.PipeDialer{})
			if got, want := instanceInfo(t, after), instanceInfo(t, before); got != want {
				t.Errorf("the kind and the buffers are %v, want %v", got, want)
			}
			was, err := before.SecurityDescriptor()
			kit.Must(t, err)
			is, err := after.SecurityDescriptor()
			kit.Must(t, err)
			if is.String() != was.String() {
				t.Errorf("the descriptor is %v, want %v", is, was)
			}
			if n := 1 + len(kit.Fill(t, ipc.Path(path))); n != lc.Backlog {
				t.Errorf("%d clients have room, want %d", n, lc.Backlog)
			}
			c.End()
		})
	}
}

func TestInheritedListenersServeOneName(t *testing.T) {
	kit.Story(t)
	addr := kit.NameAddr(t)
	l := kit.Listen(t, addr)
	var heirs []*kit.Child
	for _, name := range []string{"first", "second"} {
		h := kit.NewHeir(t)
		h.Gets(name, l)
		c := h.Start("welcomes", name)
		c.MustSay("welcoming " + addr.String())
		heirs = append(heirs, c)
	}
	kit.Must(t, l.Close())
	servedBy := func(names ...string) {
		t.Helper()
		for _, name := range names {
			kit.Eventually(t, name+" serves", func() bool {
				var conns []*ipc.Conn // the system takes the instance that listens longest
				defer func() {
					for _, c := range conns {
						c.Close()
					}
				}()
				for range 20 {
					c, err := ipc.Dialer{Timeout: kit.Soon}.Dial(addr)
					kit.Must(t, err)
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
	heirs[0].End()
	servedBy("second")
	_, err := ipc.Listen(addr)
	kit.Matches(t, err, ipc.ErrAddrInUse)
	heirs[1].End()
	kit.Serves(t, kit.Listen(t, addr), addr)
}

// childWelcomes tells the clients of the listener of its argument that name.
func childWelcomes(p *kit.Parent, args []string) error {
	l := kit.Sure(ipc.InheritedListener(args[0]))
	serving := kit.Begin(func() error { welcome(l, args[0]); return nil })
	p.Say("welcoming %v", l.Addr())
	p.Hear()
	return errors.Join(l.Close(), <-serving)
}

func TestInheritedRefusesEndsOfAnotherKind(t *testing.T) {
	kit.Story(t)
	_, conn := kit.Pair(t)
	r, w := kit.Pipe(t)
	l := kit.Listen(t, kit.NameAddr(t))
	for what, end := range map[string]ipc.Inheritable{"conn": conn, "reader": r, "writer": w, "listener": l} {
		for _, kind := range []string{"conn", "msgconn", "listener"} {
			if kind == what {
				continue
			}
			h := kit.NewHeir(t)
			h.Gets("x", end)
			// As if it were one of the other kind, in every way to write its token.
			_, token, _ := strings.Cut(h.Cmd.Env[0], ","+what+",")
			handle, _, _ := strings.Cut(token, ":")
			for _, token := range []string{handle, handle + ":4", handle + ":remote", handle + ":4:remote"} {
				if what == "listener" && kind == "conn" && !strings.Contains(token, ":4") {
					continue // its handle is that of a connection whose client has left
				}
				h.Cmd.Env[0] = inheritVar + "=x," + kind + "," + token
				c := h.Start("refuses an end", kind)
				c.MustSay("refused")
				c.End()
			}
		}
	}
	runtime.KeepAlive(l) // with its handle
}

// childRefusesAnEnd takes the end "x" of the kind, which it must not get.
func childRefusesAnEnd(p *kit.Parent, args []string) error {
	for range 2 { // it stays where it is
		end, err := inheritors[args[0]]("x")
		if err == nil {
			return fmt.Errorf("there is an end %#v", end)
		}
		if err := refusedEnd(err); err != nil {
			return err
		}
		if strings.Contains(err.Error(), "malformed") {
			return err
		}
	}
	p.Say("refused")
	return nil
}

// A child reads what was written to an end, though its peer is gone already. The system
// may have forgotten the name of such a pipe.
func TestInheritOfAnEndWhosePeerIsGone(t *testing.T) {
	kit.OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		kit.Send(t, a, "before")
		h := kit.NewHeir(t)
		h.Gets("c", b)
		kit.Must(t, a.Close())
		h.Start("reads an end", "c", "before").End()
		kit.Must(t, b.Close())
	})
	kit.OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		kit.Send(t, a, "before")
		kit.Must(t, a.Close())
		h := kit.NewHeir(t)
		h.Gets("c", b)
		h.Start("reads an end", "c", "before").End()
		kit.Must(t, b.Close())
	})
}

func childReadsAnEnd(p *kit.Parent, args []string) error {
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
			kit.Story(t)
			l, path := kit.ListenPipe(t, c)
			h := kit.NewHeir(t)
			h.Gets("l", l)
			child := h.Start("serves a pipe", "l")
			child.MustSay("serving " + path)
			kit.Must(t, l.Close())
			client := kit.DialPipe(t, path, ipc.PipeDialer{Direction: c.Direction, Messages: c.Messages})
			if c.Direction != ipc.ServerToClient {
				kit.Send(t, client, "word")
				child.MustSay("heard word")
			}
			if c.Direction != ipc.ClientToServer {
				p := make([]byte, 10)
				if n, err := client.Read(p); string(p[:n]) != "answer" || err != nil {
					t.Errorf("%q, %v", p[:n], err)
				}
			}
			kit.Must(t, client.Close())
			child.End()
			again, err := ipc.ListenPipe(path, c) // the name went with the child
			kit.Must(t, err)
			kit.Must(t, again.Close())
		})
	}
}

// childServesAPipe serves one client of the pipe of its argument.
func childServesAPipe(p *kit.Parent, args []string) error {
	l, err := ipc.InheritedPipeListener(args[0])
	if err != nil {
		return err
	}
	p.Say("serving %v", l.Addr())
	c, err := l.AcceptPipe()
	if err != nil {
		return err
	}
	b := make([]byte, 10)
	if n, err := c.Read(b); err == nil {
		p.Say("heard %s", b[:n])
	} else if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if _, err := c.Write([]byte("answer")); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	p.Hear()
	return errors.Join(c.Close(), l.Close())
}

func TestPipeListenerWithALimitIsNotHandedOn(t *testing.T) {
	kit.Story(t)
	l, _ := kit.ListenPipe(t, ipc.PipeConfig{MaxInstances: 1})
	var cmd exec.Cmd
	kit.Matches(t, ipc.Inherit(&cmd, "l", l), errors.ErrUnsupported)
	if cmd.Env != nil || cmd.SysProcAttr != nil {
		t.Errorf("the command became %+v", cmd)
	}
}

// A handle that is open when the child starts, but that of another pipe.
func TestInheritedEndWithAnotherHandleIsRefused(t *testing.T) {
	kit.Story(t)
	_, b := kit.Pair(t)
	_, other := kit.Pair(t)
	h, wrong := kit.NewHeir(t), kit.NewHeir(t)
	h.Gets("x", b)
	wrong.Gets("x", other)
	_, id, _ := strings.Cut(h.Cmd.Env[0], "@")
	handle, _, _ := strings.Cut(wrong.Cmd.Env[0], "@")
	wrong.Cmd.Env[0] = handle + "@" + id
	c := wrong.Start("refuses an end", "conn")
	c.MustSay("refused")
	c.End()
}
