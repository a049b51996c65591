// Who is at the other end of a pipe, and who may be: impersonation and security descriptors.
package ipc_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

// ---------------------------------------------------------------------------
// Who is there

// threadUser returns the user that the thread impersonates, or "".
func threadUser() (string, error) {
	const thisThread, noToken = ^uintptr(1), syscall.Errno(1008)
	var token syscall.Token
	r, _, err := kit.OpenThreadToken.Call(thisThread, syscall.TOKEN_QUERY, 1, uintptr(unsafe.Pointer(&token)))
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
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{})
	kit.Talk(t, client, server)
	never := func() error { t.Error("runs"); return nil }
	kit.Matches(t, client.Impersonate(never), errors.ErrUnsupported)

	kit.Must(t, server.Impersonate(func() error {
		user, err := threadUser()
		if err == nil && user != kit.Me(t) {
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

	kit.Must(t, server.Close())
	kit.Matches(t, server.Impersonate(never), net.ErrClosed)
}

func TestImpersonateAtEveryLevel(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, kit.NameAddr(t))
	for _, level := range []ipc.ImpersonationLevel{ipc.Identification, ipc.Anonymous, ipc.Impersonation, ipc.Delegation} {
		client, err := ipc.Dialer{Timeout: kit.Soon, Sys: &ipc.SysDialer{Impersonation: level}}.Dial(l.Addr().(ipc.Addr))
		kit.Must(t, err)
		server := kit.Accept(t, l)
		p, err := server.Peer() // before anything was read
		kit.Must(t, err)
		if p.UserID() != kit.Me(t) && !(level == ipc.Anonymous && p.UserID() == "") { // Wine tells it all the same
			t.Errorf("%v: the user is %q, want %q", level, p.UserID(), kit.Me(t))
		}
		kit.Talk(t, client, server)
		kit.Must(t, client.Close())
		kit.Must(t, server.Close())
	}
	nobodyImpersonates(t)
}

func TestImpersonateOnlyAsTheClientAllows(t *testing.T) {
	kit.OnWine(t, "impersonates at any level")
	kit.Story(t)
	l, path := kit.ListenPipe(t, ipc.PipeConfig{})
	for level, want := range map[ipc.ImpersonationLevel]uint32{ipc.Identification: 1, ipc.Impersonation: 2} {
		client := kit.DialPipe(t, path, ipc.PipeDialer{Impersonation: level})
		server := kit.AcceptPipe(t, l)
		kit.Talk(t, client, server)
		kit.Must(t, server.Impersonate(func() error {
			const thisThread, tokenImpersonationLevel = ^uintptr(1), 9
			var token syscall.Token
			if r, _, err := kit.OpenThreadToken.Call(thisThread, syscall.TOKEN_QUERY, 1, uintptr(unsafe.Pointer(&token))); r == 0 {
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
		kit.Must(t, client.Close())
		kit.Must(t, server.Close())
	}
}

func TestPeerProcessAndSessionOfBothEnds(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{})
	for _, c := range []*ipc.PipeConn{client, server} {
		for _, ask := range []func() (uint32, error){c.ClientProcessID, c.ServerProcessID} {
			if pid, err := ask(); err != nil || int(pid) != os.Getpid() {
				t.Errorf("process %d, %v", pid, err)
			}
		}
		p, err := c.Peer()
		kit.Must(t, err)
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
	kit.Story(t)
	l := kit.Listen(t, kit.NameAddr(t))
	c := kit.StartChild(t, "connect", l.Addr().String())
	server := kit.Accept(t, l)
	process, err := server.PeerProcess(syscall.SYNCHRONIZE)
	kit.Must(t, err)
	defer syscall.CloseHandle(process)
	if pid, _, _ := kit.GetProcessID.Call(uintptr(process)); int(pid) != c.PID() {
		t.Errorf("process %d, want %d", pid, c.PID())
	}
	c.Kill()
	if event, err := syscall.WaitForSingleObject(process, syscall.INFINITE); event != syscall.WAIT_OBJECT_0 || err != nil {
		t.Errorf("waiting for its end: %d, %v", event, err)
	}
	kit.Must(t, server.Close())
	_, err = server.PeerProcess(0)
	kit.Matches(t, err, net.ErrClosed)
}

// ---------------------------------------------------------------------------
// Security

func TestSecurityDescriptorPresetsAllowNoMoreThanTheySay(t *testing.T) {
	kit.Story(t)
	for _, access := range []ipc.Access{ipc.OwnerOnly, ipc.Everyone} {
		l, path := kit.ListenPipe(t, ipc.PipeConfig{Access: access})
		client, server := kit.DialPipe(t, path, ipc.PipeDialer{}), kit.AcceptPipe(t, l)
		for _, read := range []func() (*ipc.SecurityDescriptor, error){l.SecurityDescriptor, client.SecurityDescriptor, server.SecurityDescriptor} {
			sd, err := read()
			kit.Must(t, err)
			if sd.Owner() != kit.Me(t) {
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
				case sid == kit.Me(t):
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
		kit.Talk(t, client, server)
	}
}

func TestSecurityDescriptorIsReadAndWritten(t *testing.T) {
	kit.Story(t)
	const text = "O:SYG:BAD:P(D;;0x2;;;AN)(A;;0x12019f;;;WD)(A;;FA;;;S-1-5-21-1-2-3-1001)"
	sd, err := ipc.ParseSDDL(text)
	kit.Must(t, err)
	if sd.Owner() != "S-1-5-18" || sd.Group() != "S-1-5-32-544" {
		t.Errorf("owner %q, group %q", sd.Owner(), sd.Group())
	}
	entries, ok := sd.DACL()
	want := []ipc.AccessEntry{{"S-1-5-7", 0x2, true}, {"S-1-1-0", 0x12019f, false}, {"S-1-5-21-1-2-3-1001", 0x1f01ff, false}}
	if !ok || fmt.Sprint(entries) != fmt.Sprint(want) {
		t.Errorf("the DACL is %v, %v", entries, ok)
	}
	again, err := ipc.ParseSDDL(sd.String())
	kit.Must(t, err)
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
		ipc.AccessEntry{SID: kit.Me(t), Mask: ipc.ServerRights},
		ipc.AccessEntry{SID: "S-1-5-7", Mask: ipc.ClientRights, Deny: true})
	kit.Must(t, err)
	l, path := kit.ListenPipe(t, ipc.PipeConfig{Security: built})
	client, server := kit.DialPipe(t, path, ipc.PipeDialer{}), kit.AcceptPipe(t, l)
	kit.Talk(t, client, server)
	back, err := client.SecurityDescriptor()
	kit.Must(t, err)
	got, _ := back.DACL()
	made, _ := built.DACL()
	if back.Owner() != kit.Me(t) || fmt.Sprint(got) != fmt.Sprint(made) {
		t.Errorf("%v was set, and %v read back", built, back)
	}
	listening := kit.ListenWith(t, ipc.ListenConfig{Sys: &ipc.SysListenConfig{Security: built, ReadBuffer: 1 << 10, WriteBuffer: 2 << 10}}, kit.NameAddr(t))
	kit.Serves(t, listening, listening.Addr().(ipc.Addr))
}

func TestSecurityDescriptorIsEnforced(t *testing.T) {
	kit.OnWine(t, "does not enforce security descriptors")
	kit.Story(t)
	sd, err := ipc.NewSecurityDescriptor(
		ipc.AccessEntry{SID: kit.Me(t), Mask: 0x1, Deny: true}, // FILE_READ_DATA, which the listener opened already
		ipc.AccessEntry{SID: kit.Me(t), Mask: ipc.ServerRights})
	kit.Must(t, err)
	if l, err := ipc.ListenPipe(kit.PipePath(), ipc.PipeConfig{Security: sd}); err == nil {
		l.Close()
		t.Error("more instances were made than the descriptor allows")
	} else {
		kit.Matches(t, err, os.ErrPermission)
	}
}

func TestDialDoesNotTrustAServerOfAnotherUser(t *testing.T) {
	kit.Story(t)
	sd, err := ipc.ParseSDDL("O:S-1-5-21-1-2-3-1001D:P(A;;FA;;;WD)")
	kit.Must(t, err)
	path := kit.PipePath()
	l, err := ipc.ListenPipe(path, ipc.PipeConfig{Security: sd})
	if err != nil {
		t.Skipf("this user cannot make a pipe that another owns: %v", err)
	}
	defer l.Close()
	for _, addr := range []ipc.Addr{ipc.Path(path), ipc.Name(strings.TrimPrefix(path, `\\.\pipe\`))} {
		_, err = ipc.Dialer{Timeout: kit.Soon}.Dial(addr)
		kit.Matches(t, err, ipc.ErrUntrusted)
	}
	_, err = ipc.DialPipe(kit.Background(), path, ipc.PipeDialer{})
	kit.Matches(t, err, ipc.ErrUntrusted)
	accepted := kit.Begin(func() error {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		return err
	})
	c, err := ipc.Dialer{Timeout: kit.Soon, Access: ipc.Everyone}.Dial(ipc.Path(path))
	kit.Must(t, err)
	kit.Must(t, c.Close())
	l.Close()
	<-accepted
}

// Who may serve a pipe of this user can be at its other end, and the descriptor does not show
// that. So such a pipe is not trusted.
func TestDialDoesNotTrustAPipeThatOthersMayServe(t *testing.T) {
	kit.Story(t)
	me := kit.Me(t)
	for sddl, entry := range map[string]string{
		"(A;;GA;;;WD)":                   "S-1-1-0",
		"(A;;0x12019f;;;WD)":             "S-1-1-0",
		"(A;;0x12019b;;;WD)":             "",
		"(A;;FR;;;WD)(A;;0x4;;;BG)":      "S-1-5-32-546",
		"(A;;0x40000;;;BG)":              "S-1-5-32-546",
		"(A;;0x80000;;;BG)":              "S-1-5-32-546",
		"(D;;GA;;;BG)(A;;FA;;;BA)":       "",
		"(A;;FA;;;SY)(A;;RC;;;OW)":       "",
		"(A;;FA;;;S-1-15-2-1)":           "", // every package, which still needs the right of its user
		"(A;;FA;;;S-1-5-5-0-12345)":      "", // a logon of this user
		"(A;;FA;;;S-1-5-80-0)":           "S-1-5-80-0",
		"(A;;FA;;;S-1-5-21-1-2-3-1001)":  "S-1-5-21-1-2-3-1001",
		"(D;;FA;;;WD)(A;;0x1f01ff;;;WD)": "S-1-1-0", // no denial is counted, whatever its order
	} {
		sd, err := ipc.ParseSDDL("O:" + me + "D:P(A;;FA;;;" + me + ")" + sddl)
		kit.Must(t, err)
		l, path := kit.ListenPipe(t, ipc.PipeConfig{Security: sd})
		c, err := ipc.DialPipe(kit.Background(), path, ipc.PipeDialer{Timeout: kit.Soon})
		if entry == "" {
			kit.Must(t, err)
			kit.Must(t, c.Close())
		} else {
			kit.Matches(t, err, ipc.ErrUntrusted)
			if !strings.Contains(err.Error(), entry+`"`) {
				t.Errorf("%s: the error does not name the entry: %v", sddl, err)
			}
		}
		kit.Must(t, kit.DialPipe(t, path, ipc.PipeDialer{Access: ipc.Everyone}).Close())
		kit.Must(t, l.Close())
	}
}

// Servers of this package let nobody else serve their pipes.
func TestDialTrustsServersThatAdmitOthers(t *testing.T) {
	kit.Story(t)
	for _, lc := range []ipc.ListenConfig{{}, {Access: ipc.Everyone}, {Group: "S-1-5-32-545"}} {
		l := kit.ListenWith(t, lc, ipc.Addr{})
		kit.Serves(t, l, l.Addr().(ipc.Addr))
	}
}

func TestPipeOfAnotherMachineIsNotTrusted(t *testing.T) {
	kit.OnWine(t, "has no pipes of other machines")
	kit.Story(t)
	l, path := kit.ListenPipe(t, ipc.PipeConfig{AcceptRemote: true})
	defer l.Close()
	_, err := ipc.Dialer{Timeout: kit.Soon}.Dial(ipc.Path(`\\localhost` + path[3:]))
	kit.Matches(t, err, ipc.ErrUntrusted)
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
		kit.Must(t, err)
		if entries, ok := sd.DACL(); !ok || fmt.Sprint(entries) != fmt.Sprint([]ipc.AccessEntry{{"S-1-5-18", ipc.ClientRights, false}}) {
			t.Errorf("%q: %v", sid, sd)
		}
	}
}

func TestSecurityDescriptorThatSaysNothingIsRefused(t *testing.T) {
	nothing := &ipc.SecurityDescriptor{}
	if l, err := ipc.ListenPipe(kit.PipePath(), ipc.PipeConfig{Security: nothing}); err == nil {
		l.Close()
		t.Error("a pipe has it")
	}
	lc := ipc.ListenConfig{Sys: &ipc.SysListenConfig{Security: nothing}}
	if l, err := lc.Listen(kit.NameAddr(t)); err == nil {
		l.Close()
		t.Error("a listener has it")
	}
	if sd, err := ipc.Access(2).SecurityDescriptor(); err == nil {
		t.Errorf("Access(2) stands for %v", sd)
	}
}

func TestPeerProcessErrorNamesItsCall(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, kit.NameAddr(t))
	c := kit.StartChild(t, "connect", l.Addr().String())
	server := kit.Accept(t, l)
	p := kit.PeerOf(t, server)
	pid, _ := p.PID()
	if pid != c.PID() {
		t.Fatalf("process %d, want %d", pid, c.PID())
	}
	c.Kill()
	// The number is nobody's now, or that of a process that began later.
	kit.Eventually(t, "the process cannot be opened", func() bool {
		process, err := server.PeerProcess(0)
		if err == nil {
			kit.Must(t, syscall.CloseHandle(process))
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
			kit.Story(t)
			l, path := kit.ListenPipe(t, ipc.PipeConfig{MaxInstances: 1})
			client := kit.DialPipe(t, path, ipc.PipeDialer{})
			server, err := l.AcceptPipe()
			kit.Must(t, err)
			if used {
				kit.Send(t, client, "x")
				kit.Expect(t, server, "x")
			}
			server = nil
			next := kit.Begin(func() error {
				c, err := l.AcceptPipe()
				if err == nil {
					err = c.Close()
				}
				return err
			})
			var again *ipc.PipeConn
			kit.Eventually(t, "the place is free", func() bool {
				runtime.GC()
				again, err = kit.TryDial(path, ipc.PipeDialer{})
				return err == nil
			})
			kit.Must(t, <-next)
			kit.Must(t, again.Close())
			kit.ExpectEOF(t, client)
		})
	}
}

// A server that serves its own user alone knows that one by what the system took from
// the client, not by the number of a process, which may be another's by now.
func TestPeerThatHidesIsNotTheOwner(t *testing.T) {
	kit.OnWine(t, "impersonates at any level")
	kit.Story(t)
	l := kit.Listen(t, kit.NameAddr(t))
	kit.Must(t, l.SetAccess(ipc.OwnerOnly, nil))
	done := kit.WelcomeAll(l)
	for level, welcome := range map[ipc.ImpersonationLevel]bool{ipc.Anonymous: false, ipc.Identification: true} {
		c, err := ipc.Dialer{Timeout: kit.Soon, Sys: &ipc.SysDialer{Impersonation: level}}.Dial(l.Addr().(ipc.Addr))
		kit.Must(t, err)
		if welcome {
			kit.Expect(t, c, "welcome")
		} else {
			kit.ExpectEOF(t, c)
		}
		kit.Must(t, c.Close())
	}
	kit.Must(t, l.Close())
	kit.Must(t, <-done)
}

// ---------------------------------------------------------------------------
// Shared memory with peers as only Windows has them

func init() { kit.Roles["shares a busy pipe"] = childSharesABusyPipe }

// A client passes a synchronous pipe in which it waits, as memory or as a doorbell. For such a
// handle the kernel tells nothing until that wait ends.
func TestSharedListenerIsNotHeldByABusyPipe(t *testing.T) {
	for _, as := range []string{"memory", "doorbell"} {
		t.Run(as, func(t *testing.T) {
			kit.Story(t)
			l := listenShared(t, kit.NameAddr(t))
			client := kit.StartChild(t, "shares a busy pipe", l.Addr().String(), as)
			client.MustSay("sent")
			c, err := l.AcceptShared()
			kit.Kept(t, c, err)
			if as == "doorbell" {
				kit.Must(t, c.SetDeadline(time.Now().Add(kit.Brief)))
			}
			for range 2 {
				_, err = c.Read(make([]byte, 1))
				busyOrRefused(t, as, err)
				_, err = c.Write([]byte("x"))
				busyOrRefused(t, as, err)
			}
			kit.Must(t, c.Close())
			client.Say("ends")
			client.End()
		})
	}
}

// busyOrRefused checks the error of a connection whose peer has sent a busy pipe. Wine does
// not keep the answer back, so there the doorbell is refused at once.
func busyOrRefused(t *testing.T, as string, err error) {
	t.Helper()
	if as == "doorbell" && errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	kit.Matches(t, err, syscall.EPROTO)
}

// childSharesABusyPipe sends a hello with the handles of memory and of doorbells, where the
// memory, or each doorbell, is a pipe from which it reads.
func childSharesABusyPipe(p *kit.Parent, args []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	m := kit.Sure(ipc.NewMemory(2 << 16)) // the control page and the smallest ring
	far, near, err := ipc.Pair()          // the far end of a doorbell is the server's
	if err != nil {
		return err
	}
	memory, bell := kit.Sure(m.File()), kit.Sure(far.File())
	handles := map[string]*os.File{"memory": memory, "doorbell": bell}
	handles[args[1]] = r
	var numbers []uint32
	for _, name := range []string{"memory", "doorbell", "doorbell"} {
		numbers = append(numbers, uint32(kit.Sure(duplicateInto(handles[name], kit.ThisProcess))))
	}
	record := strings.TrimSuffix(newLetter(os.Getpid(), len(numbers)).write(numbers...), zeroByte)
	busy := kit.Begin(func() error { _, err := r.Read(make([]byte, 1)); return err })
	c := kit.Sure(ipc.Dial(kit.Sure(ipc.ParseAddr(args[0]))))
	hello := "\xffipcshm\x01" + string(binary.NativeEndian.AppendUint32(nil, 0x01020304)) +
		"\x01\x00\x00\x00" + "\x00\x00\x01\x00" + strings.Repeat("\x00", 12)
	if _, err := io.WriteString(c, record+hello); err != nil {
		return err
	}
	p.Say("sent")
	p.Hear()
	if err := w.Close(); err != nil {
		return err
	}
	if err := <-busy; err != io.EOF {
		return err
	}
	return errors.Join(r.Close(), memory.Close(), bell.Close(), m.Close(), near.Close(), far.Close(), c.Close())
}
