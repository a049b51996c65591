package ipc_test

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/interprocess-go/ipc"
)

// Security descriptors that must not be, and what is told of a pipe and its peers
// when something does not work.

func TestEntrySaysWhoAndNothingElse(t *testing.T) {
	for _, sid := range []string{"S-1-5-18)(A;;0x12019b;;;WD", "SY;", "(SY", ""} {
		sd, err := ipc.NewSecurityDescriptor(ipc.AccessEntry{SID: sid, Mask: ipc.ClientRights})
		if err == nil {
			t.Errorf("an entry for %q became %v", sid, sd)
			continue
		}
		if _, ok := err.(*net.OpError); !ok {
			t.Errorf("%q: %#v", sid, err)
		}
	}
	for _, sid := range []string{"S-1-5-18", "SY"} {
		sd, err := ipc.NewSecurityDescriptor(ipc.AccessEntry{SID: sid, Mask: ipc.ClientRights})
		must(t, err)
		if entries, ok := sd.DACL(); !ok || fmt.Sprint(entries) != fmt.Sprint([]ipc.AccessEntry{{"S-1-5-18", ipc.ClientRights, false}}) {
			t.Errorf("%q: %v", sid, sd)
		}
	}
}

func TestDescriptorThatSaysNothingIsRefused(t *testing.T) {
	nothing := &ipc.SecurityDescriptor{}
	if l, err := ipc.ListenPipe(pipePath(), ipc.PipeConfig{Security: nothing}); err == nil {
		l.Close()
		t.Error("a pipe has it")
	}
	lc := ipc.ListenConfig{Sys: &ipc.SysListenConfig{Security: nothing}}
	if l, err := lc.Listen(nameAddr(t)); err == nil {
		l.Close()
		t.Error("a listener has it")
	}
	if sd, err := ipc.Access(2).SecurityDescriptor(); err == nil {
		t.Errorf("Access(2) stands for %v", sd)
	}
}

func TestErrorNamesItsCall(t *testing.T) {
	story(t)
	l := listen(t, nameAddr(t))
	c := startChild(t, "connect", l.Addr().String())
	server := accept(t, l)
	p := peerOf(t, server)
	pid, _ := p.PID()
	if pid != c.pid() {
		t.Fatalf("process %d, want %d", pid, c.pid())
	}
	c.kill()
	// The number is nobody's now, or that of a process that began later.
	eventually(t, "the process cannot be opened", func() bool {
		process, err := server.PeerProcess(0)
		if err == nil {
			must(t, syscall.CloseHandle(process))
			return false
		}
		if text := err.Error(); strings.Contains(text, ": : ") || !strings.Contains(text, "OpenProcess: ") && !strings.Contains(text, "has ended") {
			t.Errorf("%q does not say which call failed", text)
		}
		return true
	})
}

func TestDroppedConnGivesItsPlaceBack(t *testing.T) {
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprintf("used=%t", used), func(t *testing.T) {
			story(t)
			l, path := listenPipe(t, ipc.PipeConfig{MaxInstances: 1})
			client := dialPipe(t, path, ipc.PipeDialer{})
			server, err := l.AcceptPipe()
			must(t, err)
			if used {
				send(t, client, "x")
				expect(t, server, "x")
			}
			server = nil
			next := begin(func() error {
				c, err := l.AcceptPipe()
				if err == nil {
					err = c.Close()
				}
				return err
			})
			var again *ipc.PipeConn
			eventually(t, "the place is free", func() bool {
				runtime.GC()
				again, err = tryDial(path, ipc.PipeDialer{})
				return err == nil
			})
			must(t, <-next)
			must(t, again.Close())
			expectEOF(t, client)
		})
	}
}

// A server that serves its own user alone knows that one by what the system took from
// the client, not by the number of a process, which may be another's by now.
func TestClientThatHidesIsNotItsOwner(t *testing.T) {
	onWine(t, "impersonates at any level")
	story(t)
	l := listen(t, nameAddr(t))
	must(t, l.SetAccess(ipc.OwnerOnly, nil))
	done := welcomeAll(l)
	for level, welcome := range map[ipc.ImpersonationLevel]bool{ipc.Anonymous: false, ipc.Identification: true} {
		c, err := ipc.Dialer{Timeout: soon, Sys: &ipc.SysDialer{Impersonation: level}}.Dial(l.Addr().(ipc.Addr))
		must(t, err)
		if welcome {
			expect(t, c, "welcome")
		} else {
			expectEOF(t, c)
		}
		must(t, c.Close())
	}
	must(t, l.Close())
	must(t, <-done)
}
