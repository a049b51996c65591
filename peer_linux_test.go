// Who is at the other end, as Linux tells it: pidfds, groups, namespaces, and the sender of each message.
package ipc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["groups"] = childTellsItsGroups
	kit.Roles["shares"] = childSharesAnEnd
	kit.Roles["namespace"] = childMakesANamespace
	kit.Roles["recycle"] = childMeetsTheSamePidTwice
	kit.Roles["guards"] = childGuards
	kit.Roles["senders"] = childTellsSenders
	kit.Roles["nothing"] = func(*kit.Parent, []string) error { return nil }
}

// A linuxEnd is a Conn or a MsgConn.
type linuxEnd interface {
	kit.Carrier
	Peer() (ipc.Peer, error)
	PeerPidfd() (*os.File, error)
	PeerGroups() ([]int, error)
	PeerLabel() (string, error)
}

// ---------------------------------------------------------------------------
// The process itself

// peerPidfd skips the test before Linux 6.5.
func peerPidfd(t *testing.T, c linuxEnd) *os.File {
	t.Helper()
	f, err := c.PeerPidfd()
	if errors.Is(err, errors.ErrUnsupported) {
		kit.IsOpError(t, err, "peer")
		t.Skip(err)
	}
	kit.Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// fdinfo returns a field of /proc/self/fdinfo: see proc_pid_fdinfo(5).
func fdinfo(t *testing.T, f *os.File, field string) string {
	t.Helper()
	value, err := fdinfoField(f, field)
	kit.Must(t, err)
	return value
}

func fdinfoField(f *os.File, field string) (string, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return "", err
	}
	var info []byte
	if e := raw.Control(func(fd uintptr) { info, err = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd)) }); e != nil || err != nil {
		return "", errors.Join(e, err)
	}
	for line := range strings.SplitSeq(string(info), "\n") {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("no %s in %q", field, info)
}

// readable reports whether poll(2) would say so of the file, by epoll(7).
func readable(t *testing.T, f *os.File) bool {
	t.Helper()
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	kit.Must(t, err)
	defer syscall.Close(ep)
	kit.Must(t, syscall.EpollCtl(ep, syscall.EPOLL_CTL_ADD, kit.SysFD(t, f), &syscall.EpollEvent{Events: syscall.EPOLLIN}))
	events := make([]syscall.EpollEvent, 1)
	for {
		n, err := syscall.EpollWait(ep, events, 0)
		if err == syscall.EINTR {
			continue
		}
		kit.Must(t, err)
		return n == 1 && events[0].Events&syscall.EPOLLIN != 0
	}
}

func TestPeerPidfdIsOfThePeersProcess(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		first := kit.StartChild(t, "connect", addr.String())
		server := kit.Accept(t, l)
		second := kit.StartChild(t, "connect", addr.String())
		other := kit.Accept(t, l)
		f, g := peerPidfd(t, server), peerPidfd(t, other)
		if got, want := fdinfo(t, f, "Pid"), fmt.Sprint(first.PID()); got != want {
			t.Errorf("it is of process %s, want %s", got, want)
		}
		if got, want := fdinfo(t, g, "Pid"), fmt.Sprint(second.PID()); got != want {
			t.Errorf("it is of process %s, want %s", got, want)
		}
		if readable(t, f) || readable(t, g) {
			t.Error("it tells the end of a process that lives")
		}

		first.Kill() // and its number is free for others
		if !readable(t, f) {
			t.Error("it does not tell the end of the process")
		}
		if readable(t, g) {
			t.Error("it tells the end of another process")
		}
		for range 3 {
			if got := fdinfo(t, f, "Pid"); got != "-1" {
				t.Errorf("of a process that ended it says %s", got)
			}
			kit.StartChild(t, "inherits").End() // the process that comes after
		}

		// Asked for only now, it is of nobody, or there is none. The number is
		// known still: that is why one asks for more.
		if late, err := server.PeerPidfd(); err != nil {
			kit.IsOpError(t, err, "peer")
		} else {
			if got := fdinfo(t, late, "Pid"); got != "-1" {
				t.Errorf("of a process that ended it says %s", got)
			}
			kit.Must(t, late.Close())
		}
		if pid, ok := kit.PeerOf(t, server).PID(); pid != first.PID() || !ok {
			t.Errorf("PID is %d, %v", pid, ok)
		}
		second.Kill()
	})
}

// TestPeerPidfdOfARecycledPidIsNotMistaken lets another process have the number of a peer
// that ended. In a PID namespace of its own a process may say which number is
// next, and the system outside is none the wiser.
func TestPeerPidfdOfARecycledPidIsNotMistaken(t *testing.T) {
	kit.Story(t)
	kit.NeedsRoot(t)
	c := kit.StartChild(t, "namespace")
	if said := c.Hear(); said != "not mistaken" {
		t.Skip(said)
	}
	c.End()
}

func childMakesANamespace(p *kit.Parent, _ []string) error {
	cmd := kit.Rerun("recycle")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		p.Say("no namespace: %v", err)
		return nil
	}
	return cmd.Wait()
}

// childMeetsTheSamePidTwice is the first process of its namespace.
func childMeetsTheSamePidTwice(p *kit.Parent, _ []string) error {
	l := kit.Sure(ipc.Listen(ipc.Addr{}))
	client := func() (*exec.Cmd, *ipc.Conn, error) {
		cmd := kit.Rerun("connect", l.Addr().String())
		if _, err := cmd.StdinPipe(); err != nil { // it stays as long as we do
			return nil, nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, nil, err
		}
		server, err := l.AcceptConn()
		return cmd, server, err
	}
	end := func(cmd *exec.Cmd) {
		cmd.Process.Kill()
		cmd.Wait()
	}

	first, server, err := client()
	if err != nil {
		return err
	}
	pid := first.Process.Pid
	early, err := server.PeerPidfd()
	if errors.Is(err, errors.ErrUnsupported) {
		p.Say("%v", err)
		return nil
	} else if err != nil {
		return err
	}
	end(first)
	for try := 0; ; try++ {
		err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(fmt.Sprint(pid-1)), 0)
		if err != nil || try == 50 {
			p.Say("after %d attempts no process has the number %d again: %v", try, pid, err)
			return nil
		}
		second, other, err := client()
		if err != nil {
			return err
		}
		defer end(second)
		if second.Process.Pid != pid { // a thread was faster
			continue
		}
		for _, c := range []*ipc.Conn{server, other} {
			peer, err := c.Peer()
			if got, _ := peer.PID(); got != pid || err != nil {
				return fmt.Errorf("the peer is %v, %v", peer, err)
			}
		}
		live, err := other.PeerPidfd()
		if err != nil {
			return err
		}
		if got, err := fdinfoField(live, "Pid"); got == "-1" || err != nil {
			return fmt.Errorf("of a process that lives it says %s, %v", got, err)
		}
		break
	}

	if got, err := fdinfoField(early, "Pid"); got != "-1" || err != nil {
		return fmt.Errorf("it became that of process %s, %v", got, err)
	}
	if late, err := server.PeerPidfd(); err == nil { // or there is none any more
		if got, err := fdinfoField(late, "Pid"); got != "-1" || err != nil {
			return fmt.Errorf("it is of process %s, a later one of the number, %v", got, err)
		}
	}
	p.Say("not mistaken")
	return nil
}

func TestPeerPidfdOfMessagesAndPairs(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	c, d := kit.MsgPair(t)
	e, f := kit.MsgConnect(t, kit.ListenMsg(t, ipc.Addr{}))
	for _, end := range []linuxEnd{a, b, c, d, e, f} {
		pidfd := peerPidfd(t, end)
		if got, want := fdinfo(t, pidfd, "Pid"), fmt.Sprint(os.Getpid()); got != want {
			t.Errorf("it is of process %s, want %s", got, want)
		}
		kit.Must(t, pidfd.Close())
	}
	kit.Must(t, a.Close())
	_, err := a.PeerPidfd()
	kit.Matches(t, err, net.ErrClosed)
}

// TestPeerPidfdIsWaitedFor has the poller do it, in which the file has a deadline.
func TestPeerPidfdIsWaitedFor(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, ipc.Addr{})
	client := kit.StartChild(t, "lingers", l.Addr().String())
	pidfd := peerPidfd(t, kit.Accept(t, l))
	client.MustSay("connected")
	raw, err := pidfd.SyscallConn()
	kit.Must(t, err)
	wait := func() error { return raw.Read(func(uintptr) bool { return readable(t, pidfd) }) }
	kit.Must(t, pidfd.SetReadDeadline(time.Now().Add(kit.Brief)))
	kit.Matches(t, wait(), os.ErrDeadlineExceeded)
	kit.Must(t, pidfd.SetReadDeadline(time.Time{}))
	waits := kit.Begin(wait)
	kit.Must(t, client.Cmd.Process.Kill())
	kit.Must(t, <-waits)
	client.Kill()
}

// TestWaitPeerHoldsNoThread has more waits than there are threads.
func TestWaitPeerHoldsNoThread(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, ipc.Addr{})
	client := kit.StartChild(t, "lingers", l.Addr().String())
	server := kit.Accept(t, l)
	before, waits := threads(t), []<-chan error{}
	for range 100 {
		waits = append(waits, kit.Begin(func() error { return server.WaitPeer(context.Background()) }))
	}
	kit.AwaitParked(t, "(*endpoint).WaitPeer", len(waits))
	if now := threads(t); now > before+len(waits)/2 {
		t.Errorf("%d threads became %d", before, now)
	}
	client.Kill()
	for _, w := range waits {
		kit.Must(t, <-w)
	}
}

func TestPeerPidfdIsCloseOnExec(t *testing.T) {
	kit.Story(t)
	a, _ := kit.Pair(t)
	var flags int
	_, err := fmt.Sscanf(fdinfo(t, peerPidfd(t, a), "flags"), "%o", &flags)
	kit.Must(t, err)
	if flags&syscall.O_CLOEXEC == 0 {
		t.Errorf("flags are %#o", flags)
	}
}

// ---------------------------------------------------------------------------
// Groups and labels

func TestPeerGroupsAreThoseOfPeer(t *testing.T) {
	if kit.UnderEmulation() {
		t.Skip("qemu-user takes SO_PEERGROUPS for a number of 4 bytes")
	}
	kit.Story(t)
	kit.NeedsRoot(t)
	l := kit.Listen(t, ipc.Addr{})
	c := kit.StartChild(t, "groups", l.Addr().String())
	server := kit.Accept(t, l)
	groups, err := server.PeerGroups()
	kit.Must(t, err)
	if want := childGroups(); !slices.Equal(groups, want) {
		t.Errorf("%d groups %v, want %d", len(groups), groups, len(want))
	}
	if got := kit.PeerOf(t, server).Groups(); !slices.Equal(groups, got) {
		t.Errorf("groups are %v, and of Peer %v", groups, got)
	}
	c.MustSay("done")
	c.End()
	kit.Must(t, server.Close())
	_, err = server.PeerGroups()
	kit.Matches(t, err, net.ErrClosed)
}

func TestPeerGroupsOfAnotherProcess(t *testing.T) {
	kit.Story(t)
	kit.NeedsRoot(t)
	l := kit.Listen(t, ipc.Addr{})
	c := kit.StartChildWith(t, exec.Cmd{}, "groups", l.Addr().String())
	server := kit.Accept(t, l)
	p := kit.PeerOf(t, server)
	if p.Groups() == nil {
		t.Skip("this kernel does not tell the groups of a peer")
	}
	want := childGroups()
	if got := p.Groups(); !slices.Equal(got, want) {
		t.Errorf("%d groups %v, want %d %v", len(got), got, len(want), want)
	}
	p.Groups()[0] = 1 // is the caller's to change
	if got := p.Groups(); !slices.Equal(got, want) {
		t.Errorf("the groups became %v", got)
	}
	c.MustSay("done")
	c.End()
}

// childGroups are more than one asks for at first.
func childGroups() (groups []int) {
	for i := range 100 {
		groups = append(groups, 1000+i)
	}
	return groups
}

func childTellsItsGroups(p *kit.Parent, args []string) error {
	if err := syscall.Setgroups(childGroups()); err != nil {
		return err
	}
	addr := kit.Sure(ipc.ParseAddr(args[0]))
	c := kit.Sure(ipc.Dial(addr))
	p.Say("done")
	p.Hear()
	return c.Close()
}

func TestPeerGroupsOfThisProcess(t *testing.T) {
	kit.Story(t)
	want, err := os.Getgroups()
	kit.Must(t, err)
	slices.Sort(want)
	a, _ := kit.Pair(t)
	b, _ := kit.MsgPair(t)
	for _, end := range []linuxEnd{a, b} {
		got, err := end.PeerGroups()
		kit.Must(t, err)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("groups are %v, want %v", got, want)
		}
	}
}

func TestPeerLabelIsThereOrUnsupported(t *testing.T) {
	kit.Story(t)
	a, _ := kit.Pair(t)
	b, _ := kit.MsgPair(t)
	for _, end := range []linuxEnd{a, b} {
		label, err := end.PeerLabel()
		if err != nil {
			kit.Matches(t, err, errors.ErrUnsupported)
			kit.IsOpError(t, err, "peer")
			if label != "" {
				t.Errorf("%q comes with the error", label)
			}
			continue
		}
		if strings.ContainsRune(label, 0) {
			t.Errorf("the label is %q", label)
		}
		if own, err := os.ReadFile("/proc/self/attr/current"); err == nil && label != strings.Trim(string(own), "\x00\n") {
			t.Errorf("the label is %q, that of this process %q", label, own)
		}
	}
	kit.Must(t, a.Close())
	_, err := a.PeerLabel()
	kit.Matches(t, err, net.ErrClosed)
}

// ---------------------------------------------------------------------------
// The sender of each message

// recvFrom receives the text and returns who sent it.
func recvFrom(t *testing.T, c *ipc.MsgConn, text string) ipc.Peer {
	t.Helper()
	p := make([]byte, len(text)+10)
	n, peer, err := c.RecvPeer(p)
	if string(p[:n]) != text || err != nil {
		t.Fatalf("received %q, %v; want %q", p[:n], err, text)
	}
	return peer
}

// nothingYet lets RecvPeer ask for the senders of the messages that follow.
func nothingYet(t *testing.T, c *ipc.MsgConn) {
	t.Helper()
	kit.Must(t, c.SetReadDeadline(time.Now().Add(-time.Second)))
	_, peer, err := c.RecvPeer(make([]byte, 1))
	kit.TimedOut(t, err)
	kit.IsOpError(t, err, "recv")
	if peer.String() != "unknown peer" {
		t.Errorf("with the error comes the peer %v", peer)
	}
	kit.Must(t, c.SetReadDeadline(time.Time{}))
}

// childSharesAnEnd sends each line it hears over the end that it got.
func childSharesAnEnd(p *kit.Parent, _ []string) error {
	f := os.NewFile(3, "end")
	c, err := ipc.FileMsgConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	for line := p.Hear(); line != ""; line = p.Hear() {
		if err := c.Send([]byte(line)); err != nil {
			return err
		}
	}
	return c.Close()
}

func TestRecvPeerTellsTheSenderOfEveryMessage(t *testing.T) {
	kit.Story(t)
	a, b := kit.MsgPair(t)
	f, err := b.File()
	kit.Must(t, err)
	defer f.Close()
	share := exec.Cmd{ExtraFiles: []*os.File{f}}
	one, two := kit.StartChildWith(t, share, "shares"), kit.StartChildWith(t, share, "shares")
	nothingYet(t, a)

	for i := range 5 {
		ours, ones, twos := fmt.Sprint("ours ", i), fmt.Sprint("one's ", i), fmt.Sprint("two's ", i)
		one.Say(ones)
		kit.IsProcess(t, recvFrom(t, a, ones), one.PID())
		kit.SendMsg(t, b, ours)
		kit.IsProcess(t, recvFrom(t, a, ours), os.Getpid())
		two.Say(twos)
		kit.IsProcess(t, recvFrom(t, a, twos), two.PID())
		kit.IsProcess(t, kit.PeerOf(t, a), os.Getpid()) // which is who made the pair, all the while
	}
	kit.SendMsg(t, a, "and back") // the other end is none the wiser
	kit.ExpectMsg(t, b, "and back")
	one.Say("the last") // that of a process that is gone
	one.End()
	kit.IsProcess(t, recvFrom(t, a, "the last"), one.PID())
	two.End()
}

func TestRecvPeerTellsTheUser(t *testing.T) {
	kit.Story(t)
	kit.NeedsRoot(t)
	a, b := kit.MsgPair(t)
	f, err := b.File()
	kit.Must(t, err)
	defer f.Close()
	stranger := kit.StartChildWith(t, exec.Cmd{
		ExtraFiles: []*os.File{f}, Env: []string{fmt.Sprintf("%s=%d:%d", kit.ChildUser, kit.Nobody, kit.Nobody)},
	}, "shares")
	nothingYet(t, a)
	stranger.Say("hello")
	p := recvFrom(t, a, "hello")
	uid, _ := p.UID()
	gid, _ := p.GID()
	pid, _ := p.PID()
	if uid != kit.Nobody || gid != kit.Nobody || pid != stranger.PID() {
		t.Errorf("the sender is %v", p)
	}
	if uid, _ := kit.PeerOf(t, a).UID(); uid != 0 {
		t.Errorf("the peer is user %d", uid)
	}
	stranger.End()
}

func TestRecvPeerOfAMessageFromBeforeIsNotWrong(t *testing.T) {
	kit.Story(t)
	a, b := kit.MsgPair(t)
	kit.SendMsg(t, b, "early")
	if p := recvFrom(t, a, "early"); p.String() == "unknown peer" {
		_, pid := p.PID()
		_, uid := p.UID()
		_, gid := p.GID()
		if pid || uid || gid || p.UserID() != "" || p.Groups() != nil {
			t.Errorf("nothing is known, but %#v", p)
		}
	} else {
		kit.IsProcess(t, p, os.Getpid())
	}
	kit.SendMsg(t, b, "later")
	kit.IsProcess(t, recvFrom(t, a, "later"), os.Getpid())
	kit.SendMsg(t, b, "held")
	_, err := a.RecvFiles(1)
	kit.Matches(t, err, ipc.ErrNoFiles)
	if p := recvFrom(t, a, "held"); p.String() != "unknown peer" {
		kit.IsProcess(t, p, os.Getpid())
	}
	kit.SendMsg(t, b, "plain") // the other receives work as before
	kit.ExpectMsg(t, a, "plain")
	kit.SendMsg(t, b, "appended")
	p, err := a.RecvAppend(nil)
	if string(p) != "appended" || err != nil {
		t.Errorf("received %q, %v", p, err)
	}
	kit.FilesStillPass(t, b, a)
}

func TestRecvPeerIsARecv(t *testing.T) {
	kit.Story(t)
	a, b := kit.MsgPair(t)
	nothingYet(t, a)
	kit.SendMsg(t, b, "too long")
	p := make([]byte, 3)
	n, peer, err := a.RecvPeer(p)
	kit.Matches(t, err, ipc.ErrMsgTooLong)
	if n != 3 || string(p) != "too" {
		t.Errorf("received %q", p[:n])
	}
	kit.IsProcess(t, peer, os.Getpid())
	kit.SendMsg(t, b, "x")
	n, peer, err = a.RecvPeer(nil)
	kit.Matches(t, err, ipc.ErrMsgTooLong)
	if n != 0 {
		t.Errorf("received %d bytes into nothing", n)
	}
	kit.IsProcess(t, peer, os.Getpid())
	kit.SendMsg(t, b, "")
	kit.IsProcess(t, recvFrom(t, a, ""), os.Getpid())
	kit.SendMsg(t, b, "last")
	kit.Must(t, b.Close())
	kit.IsProcess(t, recvFrom(t, a, "last"), os.Getpid())
	n, peer, err = a.RecvPeer(make([]byte, 10))
	if n != 0 || peer.String() != "unknown peer" || err != io.EOF {
		t.Errorf("received %d of %v, %v at the end", n, peer, err)
	}
	kit.Must(t, a.Close())
	_, _, err = a.RecvPeer(make([]byte, 10))
	kit.Matches(t, err, net.ErrClosed)
}

func TestRecvPeerClosesFiles(t *testing.T) {
	if kit.UnderEmulation() {
		t.Skip("qemu-user asks the kernel for twice as much room as there is, and loses the files that are too many")
	}
	kit.Story(t)
	a, b := kit.MsgPair(t)
	nothingYet(t, a)
	r, w := kit.OsPipe(t)
	for _, n := range []int{1, 3, 60, 253} { // more than there is room for, too
		files := make([]*os.File, n)
		for i := range files {
			files[i] = w
		}
		before := kit.OpenDescriptors()
		kit.SendFiles(t, b, files...)
		kit.IsProcess(t, recvFrom(t, a, "\x00"), os.Getpid())
		kit.Must(t, kit.NoMoreDescriptors(before))
	}
	kit.Must(t, w.Close())
	kit.ExpectEOF(t, r)
}

// TestReadMsgOfCredentials sends and receives them as a program does that uses the raw
// calls for what the package does not wrap.
func TestReadMsgOfCredentials(t *testing.T) {
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		raw, err := b.SyscallConn()
		kit.Must(t, err)
		var on error
		kit.Must(t, raw.Control(func(fd uintptr) {
			on = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1)
		}))
		kit.Must(t, on)
		self := syscall.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
		for _, oob := range [][]byte{syscall.UnixCredentials(&self), nil} { // by us, or by the kernel
			_, err := a.WriteMsg([]byte("it is me"), oob)
			kit.Must(t, err)
			p, oob := make([]byte, 20), make([]byte, 256)
			n, oobn, _, err := b.ReadMsg(p, oob)
			if string(p[:n]) != "it is me" || err != nil {
				t.Fatalf("read %q, %v", p[:n], err)
			}
			msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
			kit.Must(t, err)
			found := false
			for _, m := range msgs {
				if cred, err := syscall.ParseUnixCredentials(&m); err == nil {
					found = true
					if *cred != self {
						t.Errorf("the sender is %+v", cred)
					}
				}
			}
			if !found {
				t.Errorf("no credentials in %d messages", len(msgs))
			}
		}
	})
}

// ---------------------------------------------------------------------------
// User namespaces

// overflow is the id that stands for all without a mapping; container is a user of a
// namespace, and of the host another one.
const (
	overflow  = 65534
	container = 1000
)

// startInNamespace starts a child as that user of a user namespace in which root is
// root of the host, so that it can read this program, container and overflow are
// users of their own, and nobody else has a mapping.
func startInNamespace(t *testing.T, uid int, role string, args ...string) *kit.Child {
	t.Helper()
	kit.NeedsRoot(t)
	ids := []syscall.SysProcIDMap{
		{ContainerID: 0, HostID: 0, Size: 1},
		{ContainerID: container, HostID: 201000, Size: 1},
		{ContainerID: overflow, HostID: 265534, Size: 1},
	}
	with := exec.Cmd{
		Env: []string{fmt.Sprintf("%s=%d:%d", kit.ChildUser, uid, uid)},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		},
	}
	needsNamespaces(t, with.SysProcAttr)
	return kit.StartChildWith(t, with, role, args...)
}

// needsNamespaces skips the test where no process can be started with the attributes.
func needsNamespaces(t *testing.T, attr *syscall.SysProcAttr) {
	t.Helper()
	cmd := kit.Rerun("nothing")
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		t.Skip("no user namespace can be made here: ", err)
	}
	cmd.Wait()
	overflowIs := func(file string) bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.TrimSpace(string(text)) == fmt.Sprint(overflow)
	}
	if !overflowIs("/proc/sys/kernel/overflowuid") || !overflowIs("/proc/sys/kernel/overflowgid") {
		t.Skip("the overflow id is another one here")
	}
}

// childGuards listens at the name and welcomes each client whom it admits. It says of
// each who that is, in words without the process.
func childGuards(p *kit.Parent, args []string) error {
	var lc ipc.ListenConfig
	if slices.Contains(args, "everyone") {
		lc.Access = ipc.Everyone
	}
	l := kit.Sure(lc.Listen(kit.Sure(ipc.ParseAddr(args[0]))))
	serving := kit.ServeEach(l, func(c *ipc.Conn) error {
		peer, err := c.Peer()
		if err != nil {
			return err
		}
		_, uid := peer.UID()
		_, gid := peer.GID()
		groups, err := c.PeerGroups()
		p.Say("%v %v %q %v %v %v", uid, gid, peer.UserID(), strings.Contains(peer.String(), "id 65534"), peer.Groups(), groups)
		io.WriteString(c, "welcome")
		return errors.Join(err, c.Close())
	})
	p.Say("guarding")
	p.Hear()
	return errors.Join(l.Close(), <-serving)
}

// TestListenConfigRefusedIsToldOfWhomAccessKeepsOut has a name, which no permission guards.
func TestListenConfigRefusedIsToldOfWhomAccessKeepsOut(t *testing.T) {
	kit.Story(t)
	kit.NeedsRoot(t)
	addr := kit.NameAddr(t)
	type refusal struct {
		peer ipc.Peer
		err  error
	}
	told := make(chan refusal, 1)
	l := kit.ListenWith(t, ipc.ListenConfig{Refused: func(p ipc.Peer, err error) { told <- refusal{p, err} }}, addr)
	serving := kit.WelcomeAll(l)
	stranger := kit.StartStranger(t, "connect", addr.String())
	stranger.MustSay("turned away")
	got := <-told
	if got.peer.UserID() != fmt.Sprint(kit.Nobody) {
		t.Errorf("the peer is %v", got.peer)
	}
	kit.Matches(t, got.err, os.ErrPermission)
	kit.IsOpError(t, got.err, "accept")
	stranger.End()
	kit.Must(t, l.Close())
	kit.Must(t, <-serving)
}

// strangerIsAdmitted reports whether the server admits a user of the host that has no mapping in
// the namespace of the server.
func strangerIsAdmitted(t *testing.T, addr ipc.Addr) bool {
	t.Helper()
	stranger := kit.StartStranger(t, "connect", addr.String(), "everyone")
	defer stranger.End()
	return stranger.Hear() == "welcome"
}

func TestAccessOwnerOnlyRefusesUsersWithoutMapping(t *testing.T) {
	kit.NotEmulated(t)
	kit.Story(t)
	for _, uid := range []int{overflow, container, 0} {
		addr := kit.NameAddr(t)
		c := startInNamespace(t, uid, "guards", addr.String())
		c.MustSay("guarding")
		if strangerIsAdmitted(t, addr) {
			t.Errorf("user %d of the namespace admits a user without a mapping", uid)
		}
		host := dialAnyone(t, addr) // root of the host, whom the namespace knows as its own
		c.MustSay(`true true "0" false [] []`)
		kit.Expect(t, host, "welcome")
		c.End()
	}
}

// TestAccessOwnerOnlyRefusesAllWithoutAMap has a server in a namespace whose map was never
// written: everybody is the overflow user to it, and it to itself.
func TestAccessOwnerOnlyRefusesAllWithoutAMap(t *testing.T) {
	kit.Story(t)
	kit.NeedsRoot(t)
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	needsNamespaces(t, attr)
	addr := kit.NameAddr(t)
	c := kit.StartChildWith(t, exec.Cmd{SysProcAttr: attr}, "guards", addr.String())
	c.MustSay("guarding")
	if strangerIsAdmitted(t, addr) {
		t.Error("a user without a mapping is admitted")
	}
	kit.ExpectEOF(t, dialAnyone(t, addr)) // nor can root be told from others
	c.End()
}

func dialAnyone(t *testing.T, addr ipc.Addr) *ipc.Conn {
	t.Helper()
	c, err := ipc.Dialer{Access: ipc.Everyone}.Dial(addr)
	return kit.Kept(t, c, err)
}

func TestPeerWithoutMappingIsUnknown(t *testing.T) {
	kit.NotEmulated(t)
	kit.Story(t)
	for _, uid := range []int{overflow, 0} {
		addr := kit.NameAddr(t)
		c := startInNamespace(t, uid, "guards", addr.String(), "everyone")
		c.MustSay("guarding")
		if !strangerIsAdmitted(t, addr) {
			t.Error("Everyone does not admit a user without a mapping")
		}
		c.MustSay(`false false "" false [] []`)
		c.End()
	}
}

func TestDialDoesNotTrustServerWithoutMapping(t *testing.T) {
	kit.NotEmulated(t)
	kit.Story(t)
	addr := kit.NameAddr(t)
	kit.StartForeignServer(t, addr, "everyone")
	for _, uid := range []int{overflow, container, 0} {
		c := startInNamespace(t, uid, "connect", addr.String())
		c.MustSay("untrusted")
		c.End()
	}
	own := kit.NameAddr(t)
	l := kit.ListenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, own)
	for _, uid := range []int{overflow, container, 0} { // a server of root is trusted
		c := startInNamespace(t, uid, "connect", own.String())
		kit.Send(t, kit.Accept(t, l), "welcome")
		c.MustSay("welcome")
		c.End()
	}
}

func TestUserAddrOfAUserWithoutMapping(t *testing.T) {
	kit.NotEmulated(t)
	kit.Story(t)
	c := startInNamespace(t, overflow, "useraddr", "agent")
	if said := c.Hear(); !strings.Contains(said, "no mapping") {
		t.Errorf("it is %q", said)
	}
	c.End()
}

// childTellsSenders says who sends each of the messages that it gets.
func childTellsSenders(p *kit.Parent, _ []string) error {
	f := os.NewFile(3, "end")
	c, err := ipc.FileMsgConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(-time.Second))
	c.RecvPeer(make([]byte, 1)) // asks for the senders of what follows
	c.SetReadDeadline(time.Time{})
	p.Say("listening")
	for {
		_, peer, err := c.RecvPeer(make([]byte, 100))
		if err == io.EOF {
			return c.Close()
		} else if err != nil {
			return err
		}
		_, uid := peer.UID()
		_, gid := peer.GID()
		_, pid := peer.PID()
		p.Say("%v %v %v %q", uid, gid, pid, peer.UserID())
	}
}

func TestRecvPeerWithoutMappingIsUnknown(t *testing.T) {
	kit.NotEmulated(t)
	kit.Story(t)
	kit.NeedsRoot(t)
	a, b := kit.MsgPair(t)
	f, err := a.File()
	kit.Must(t, err)
	defer f.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	needsNamespaces(t, attr)
	c := kit.StartChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}, SysProcAttr: attr}, "senders")
	c.MustSay("listening")
	kit.Must(t, errors.Join(a.Close(), f.Close()))

	kit.SendMsg(t, b, "from root")
	c.MustSay(`true true true "0"`)
	other, err := b.File()
	kit.Must(t, err)
	defer other.Close()
	stranger := kit.StartChildWith(t, exec.Cmd{
		ExtraFiles: []*os.File{other}, Env: []string{fmt.Sprintf("%s=%d:%d", kit.ChildUser, kit.Nobody, kit.Nobody)},
	}, "shares")
	stranger.Say("from a stranger")
	c.MustSay(`false false true ""`)
	stranger.End()
	kit.Must(t, errors.Join(b.Close(), other.Close()))
	c.End()
}

// ---------------------------------------------------------------------------
// An example

// A pidfd is waited for in the runtime's poller: no thread is held, and the wait has a
// deadline.
func ExampleConn_PeerPidfd() {
	a, b, err := ipc.Pair() // whose ends both are of this very process
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	pidfd, err := a.PeerPidfd()
	if errors.Is(err, errors.ErrUnsupported) {
		fmt.Println("the process still runs") // as before Linux 6.5 nobody can tell
		return
	} else if err != nil {
		log.Fatal(err)
	}
	defer pidfd.Close()

	// readable asks poll(2), as Poll of golang.org/x/sys/unix does.
	readable := func(fd uintptr) bool {
		p := struct {
			fd              int32
			events, revents int16
		}{fd: int32(fd), events: 1} // POLLIN
		var now [2]int64 // a time of zero
		n, _, _ := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		return n == 1
	}
	raw, err := pidfd.SyscallConn()
	if err != nil {
		log.Fatal(err)
	}
	if err := pidfd.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		log.Fatal(err)
	}
	switch err := raw.Read(readable); {
	case err == nil:
		fmt.Println("the process has ended")
	case errors.Is(err, os.ErrDeadlineExceeded):
		fmt.Println("the process still runs")
	default:
		log.Fatal(err)
	}
	// Output: the process still runs
}
