// Who is at the other end of a pipe, and who may be: impersonation and security descriptors.
package ipc_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/interprocess-go/ipc"
)

// ---------------------------------------------------------------------------
// Who is there

// threadUser returns the user that the thread impersonates, or "".
func threadUser() (string, error) {
	const thisThread, noToken = ^uintptr(1), syscall.Errno(1008)
	var token syscall.Token
	r, _, err := openThreadToken.Call(thisThread, syscall.TOKEN_QUERY, 1, uintptr(unsafe.Pointer(&token)))
	switch {
	case r == 0 && err == noToken:
		return "", nil
	case r == 0:
		return "", err
	}
	defer token.Close()
	user, err := token.GetTokenUser()
	if err != nil {
		return "", err
	}
	return user.User.Sid.String()
}

// nobodyImpersonates fails the test if a thread does.
func nobodyImpersonates(t *testing.T) {
	t.Helper()
	var busy sync.WaitGroup
	ready := make(chan struct{})
	for range 50 { // more than there are idle threads
		busy.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			<-ready
			if user, err := threadUser(); user != "" || err != nil {
				t.Errorf("a thread acts as %q, %v", user, err)
			}
		})
	}
	close(ready)
	busy.Wait()
}

func TestImpersonateActsAsTheClientAndRevertsAlways(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{})
	talk(t, client, server)
	never := func() error { t.Error("runs"); return nil }
	matches(t, client.Impersonate(never), errors.ErrUnsupported)

	must(t, server.Impersonate(func() error {
		user, err := threadUser()
		if err == nil && user != me(t) {
			err = fmt.Errorf("the thread acts as %q", user)
		}
		return err
	}))
	nobodyImpersonates(t)

	failure := errors.New("f's own error")
	if err := server.Impersonate(func() error { return failure }); err != failure {
		t.Errorf("f fails, and the error is %v", err)
	}
	nobodyImpersonates(t)

	func() {
		defer func() {
			if p := recover(); p != "f panics" {
				t.Errorf("the panic is %v", p)
			}
		}()
		server.Impersonate(func() error { panic("f panics") })
	}()
	nobodyImpersonates(t)

	left := make(chan bool)
	go func() {
		returned := false
		defer func() { left <- returned }()
		server.Impersonate(func() error { runtime.Goexit(); return nil })
		returned = true
	}()
	if <-left {
		t.Error("Goexit in f did not end the caller's goroutine")
	}
	nobodyImpersonates(t)

	must(t, server.Close())
	matches(t, server.Impersonate(never), net.ErrClosed)
}

func TestImpersonateAtEveryLevel(t *testing.T) {
	story(t)
	l := listen(t, nameAddr(t))
	for _, level := range []ipc.ImpersonationLevel{ipc.Identification, ipc.Anonymous, ipc.Impersonation, ipc.Delegation} {
		client, err := ipc.Dialer{Timeout: soon, Sys: &ipc.SysDialer{Impersonation: level}}.Dial(l.Addr().(ipc.Addr))
		must(t, err)
		server := accept(t, l)
		p, err := server.Peer() // before anything was read
		must(t, err)
		if p.UserID() != me(t) && !(level == ipc.Anonymous && p.UserID() == "") { // Wine tells it all the same
			t.Errorf("%v: the user is %q, want %q", level, p.UserID(), me(t))
		}
		talk(t, client, server)
		must(t, client.Close())
		must(t, server.Close())
	}
	nobodyImpersonates(t)
}

func TestImpersonateOnlyAsTheClientAllows(t *testing.T) {
	onWine(t, "impersonates at any level")
	story(t)
	l, path := listenPipe(t, ipc.PipeConfig{})
	for level, want := range map[ipc.ImpersonationLevel]uint32{ipc.Identification: 1, ipc.Impersonation: 2} {
		client := dialPipe(t, path, ipc.PipeDialer{Impersonation: level})
		server := acceptPipe(t, l)
		talk(t, client, server)
		must(t, server.Impersonate(func() error {
			const thisThread, tokenImpersonationLevel = ^uintptr(1), 9
			var token syscall.Token
			if r, _, err := openThreadToken.Call(thisThread, syscall.TOKEN_QUERY, 1, uintptr(unsafe.Pointer(&token))); r == 0 {
				return err
			}
			defer token.Close()
			var got, size uint32
			err := syscall.GetTokenInformation(token, tokenImpersonationLevel, (*byte)(unsafe.Pointer(&got)), 4, &size)
			if err == nil && got != want {
				err = fmt.Errorf("%v: level %d, want %d", level, got, want)
			}
			return err
		}))
		must(t, client.Close())
		must(t, server.Close())
	}
}

func TestPeerProcessAndSessionOfBothEnds(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{})
	for _, c := range []*ipc.PipeConn{client, server} {
		for _, ask := range []func() (uint32, error){c.ClientProcessID, c.ServerProcessID} {
			if pid, err := ask(); err != nil || int(pid) != os.Getpid() {
				t.Errorf("process %d, %v", pid, err)
			}
		}
		p, err := c.Peer()
		must(t, err)
		session, known := p.SessionID()
		if !known {
			t.Error("no session")
		}
		for _, ask := range []func() (uint32, error){c.ClientSessionID, c.ServerSessionID} {
			if id, err := ask(); err != nil || id != session {
				t.Errorf("session %d, %v, want %d", id, err, session)
			}
		}
	}
}

func TestPeerProcessStaysThatProcess(t *testing.T) {
	story(t)
	l := listen(t, nameAddr(t))
	c := startChild(t, "connect", l.Addr().String())
	server := accept(t, l)
	process, err := server.PeerProcess(syscall.SYNCHRONIZE)
	must(t, err)
	defer syscall.CloseHandle(process)
	if pid, _, _ := getProcessID.Call(uintptr(process)); int(pid) != c.pid() {
		t.Errorf("process %d, want %d", pid, c.pid())
	}
	c.kill()
	if event, err := syscall.WaitForSingleObject(process, syscall.INFINITE); event != syscall.WAIT_OBJECT_0 || err != nil {
		t.Errorf("waiting for its end: %d, %v", event, err)
	}
	must(t, server.Close())
	_, err = server.PeerProcess(0)
	matches(t, err, net.ErrClosed)
}

// ---------------------------------------------------------------------------
// Security

func TestSecurityDescriptorPresetsAllowNoMoreThanTheySay(t *testing.T) {
	story(t)
	for _, access := range []ipc.Access{ipc.OwnerOnly, ipc.Everyone} {
		l, path := listenPipe(t, ipc.PipeConfig{Access: access})
		client, server := dialPipe(t, path, ipc.PipeDialer{}), acceptPipe(t, l)
		for _, read := range []func() (*ipc.SecurityDescriptor, error){l.SecurityDescriptor, client.SecurityDescriptor, server.SecurityDescriptor} {
			sd, err := read()
			must(t, err)
			if sd.Owner() != me(t) {
				t.Errorf("%v: the owner is %q", access, sd.Owner())
			}
			if !strings.Contains(sd.String(), "D:P") {
				t.Errorf("%v: %v is not protected", access, sd)
			}
			entries, ok := sd.DACL()
			if !ok {
				t.Fatalf("%v: no DACL", access)
			}
			allowed := map[string]uint32{}
			for _, e := range entries {
				if e.Deny {
					t.Errorf("%v: denies %v", access, e)
				}
				allowed[e.SID] |= e.Mask
			}
			const create = 0x4 // FILE_CREATE_PIPE_INSTANCE
			for sid, mask := range allowed {
				switch {
				case sid == me(t):
					if mask&ipc.ServerRights != ipc.ServerRights {
						t.Errorf("%v: this user has %#x", access, mask)
					}
				case mask&create != 0 || mask&^ipc.ClientRights != 0:
					t.Errorf("%v: %s has %#x", access, sid, mask)
				case sid == "S-1-5-18" || sid == "S-1-5-32-544":
				case sid == "S-1-1-0" && access == ipc.Everyone:
				default:
					t.Errorf("%v: %s is allowed", access, sid)
				}
			}
			if _, all := allowed["S-1-1-0"]; all != (access == ipc.Everyone) {
				t.Errorf("%v: %v", access, sd)
			}
		}
		talk(t, client, server)
	}
}

func TestSecurityDescriptorIsReadAndWritten(t *testing.T) {
	story(t)
	const text = "O:SYG:BAD:P(D;;0x2;;;AN)(A;;0x12019f;;;WD)(A;;FA;;;S-1-5-21-1-2-3-1001)"
	sd, err := ipc.ParseSDDL(text)
	must(t, err)
	if sd.Owner() != "S-1-5-18" || sd.Group() != "S-1-5-32-544" {
		t.Errorf("owner %q, group %q", sd.Owner(), sd.Group())
	}
	entries, ok := sd.DACL()
	want := []ipc.AccessEntry{{"S-1-5-7", 0x2, true}, {"S-1-1-0", 0x12019f, false}, {"S-1-5-21-1-2-3-1001", 0x1f01ff, false}}
	if !ok || fmt.Sprint(entries) != fmt.Sprint(want) {
		t.Errorf("the DACL is %v, %v", entries, ok)
	}
	again, err := ipc.ParseSDDL(sd.String())
	must(t, err)
	if again.String() != sd.String() {
		t.Errorf("%q is read as %q", sd, again)
	}
	for _, text := range []string{"", "O:SY", "D:NO_ACCESS_CONTROL"} {
		sd, err := ipc.ParseSDDL(text)
		if err != nil {
			continue // some systems do not take all of them
		}
		if entries, ok := sd.DACL(); ok && len(entries) > 0 {
			t.Errorf("%q has entries %v", text, entries)
		}
	}
	_, err = ipc.ParseSDDL("nonsense")
	var oe *net.OpError
	if !errors.As(err, &oe) {
		t.Errorf("nonsense: %#v", err)
	}

	built, err := ipc.NewSecurityDescriptor(
		ipc.AccessEntry{SID: me(t), Mask: ipc.ServerRights},
		ipc.AccessEntry{SID: "S-1-5-7", Mask: ipc.ClientRights, Deny: true})
	must(t, err)
	l, path := listenPipe(t, ipc.PipeConfig{Security: built})
	client, server := dialPipe(t, path, ipc.PipeDialer{}), acceptPipe(t, l)
	talk(t, client, server)
	back, err := client.SecurityDescriptor()
	must(t, err)
	got, _ := back.DACL()
	made, _ := built.DACL()
	if back.Owner() != me(t) || fmt.Sprint(got) != fmt.Sprint(made) {
		t.Errorf("%v was set, and %v read back", built, back)
	}
	listening := listenWith(t, ipc.ListenConfig{Sys: &ipc.SysListenConfig{Security: built, ReadBuffer: 1 << 10, WriteBuffer: 2 << 10}}, nameAddr(t))
	serves(t, listening, listening.Addr().(ipc.Addr))
}

func TestSecurityDescriptorIsEnforced(t *testing.T) {
	onWine(t, "does not enforce security descriptors")
	story(t)
	sd, err := ipc.NewSecurityDescriptor(
		ipc.AccessEntry{SID: me(t), Mask: 0x1, Deny: true}, // FILE_READ_DATA, which the listener opened already
		ipc.AccessEntry{SID: me(t), Mask: ipc.ServerRights})
	must(t, err)
	if l, err := ipc.ListenPipe(pipePath(), ipc.PipeConfig{Security: sd}); err == nil {
		l.Close()
		t.Error("more instances were made than the descriptor allows")
	} else {
		matches(t, err, os.ErrPermission)
	}
}

func TestDialDoesNotTrustAServerOfAnotherUser(t *testing.T) {
	story(t)
	sd, err := ipc.ParseSDDL("O:S-1-5-21-1-2-3-1001D:P(A;;FA;;;WD)")
	must(t, err)
	path := pipePath()
	l, err := ipc.ListenPipe(path, ipc.PipeConfig{Security: sd})
	if err != nil {
		t.Skipf("this user cannot make a pipe that another owns: %v", err)
	}
	defer l.Close()
	for _, addr := range []ipc.Addr{ipc.Path(path), ipc.Name(strings.TrimPrefix(path, `\\.\pipe\`))} {
		_, err = ipc.Dialer{Timeout: soon}.Dial(addr)
		matches(t, err, ipc.ErrUntrusted)
	}
	_, err = ipc.DialPipe(background(), path, ipc.PipeDialer{})
	matches(t, err, ipc.ErrUntrusted)
	accepted := begin(func() error {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		return err
	})
	c, err := ipc.Dialer{Timeout: soon, Access: ipc.Everyone}.Dial(ipc.Path(path))
	must(t, err)
	must(t, c.Close())
	l.Close()
	<-accepted
}

func TestPipeOfAnotherMachineIsNotTrusted(t *testing.T) {
	onWine(t, "has no pipes of other machines")
	story(t)
	l, path := listenPipe(t, ipc.PipeConfig{AcceptRemote: true})
	defer l.Close()
	_, err := ipc.Dialer{Timeout: soon}.Dial(ipc.Path(`\\localhost` + path[3:]))
	matches(t, err, ipc.ErrUntrusted)
}

// ---------------------------------------------------------------------------
// Descriptors that must not be, and what is told when something does not work

func TestSecurityDescriptorEntrySaysWhoAndNothingElse(t *testing.T) {
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

func TestSecurityDescriptorThatSaysNothingIsRefused(t *testing.T) {
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

func TestPeerProcessErrorNamesItsCall(t *testing.T) {
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

func TestPipeConnThatWasDroppedGivesItsPlaceBack(t *testing.T) {
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
func TestPeerThatHidesIsNotTheOwner(t *testing.T) {
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
