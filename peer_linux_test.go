// Who is at the other end, as Linux tells it: pidfds, groups, namespaces, and the sender of each message.
package ipc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

func init() {
	roles["groups"] = childTellsItsGroups
	roles["shares"] = childSharesAnEnd
	roles["namespace"] = childMakesANamespace
	roles["recycle"] = childMeetsTheSamePidTwice
	roles["guards"] = childGuards
	roles["senders"] = childTellsSenders
	roles["nothing"] = func(*parent, []string) error { return nil }
}

// A linuxEnd is a Conn or a MsgConn.
type linuxEnd interface {
	carrier
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
		isOpError(t, err, "peer")
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// fdinfo returns a field of /proc/self/fdinfo: see proc_pid_fdinfo(5).
func fdinfo(t *testing.T, f *os.File, field string) string {
	t.Helper()
	value, err := fdinfoField(f, field)
	must(t, err)
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
	must(t, err)
	defer syscall.Close(ep)
	must(t, syscall.EpollCtl(ep, syscall.EPOLL_CTL_ADD, sysFD(t, f), &syscall.EpollEvent{Events: syscall.EPOLLIN}))
	events := make([]syscall.EpollEvent, 1)
	for {
		n, err := syscall.EpollWait(ep, events, 0)
		if err == syscall.EINTR {
			continue
		}
		must(t, err)
		return n == 1 && events[0].Events&syscall.EPOLLIN != 0
	}
}

func TestPeerPidfdIsOfThePeersProcess(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		first := startChild(t, "connect", addr.String())
		server := accept(t, l)
		second := startChild(t, "connect", addr.String())
		other := accept(t, l)
		f, g := peerPidfd(t, server), peerPidfd(t, other)
		if got, want := fdinfo(t, f, "Pid"), fmt.Sprint(first.pid()); got != want {
			t.Errorf("it is of process %s, want %s", got, want)
		}
		if got, want := fdinfo(t, g, "Pid"), fmt.Sprint(second.pid()); got != want {
			t.Errorf("it is of process %s, want %s", got, want)
		}
		if readable(t, f) || readable(t, g) {
			t.Error("it tells the end of a process that lives")
		}

		first.kill() // and its number is free for others
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
			startChild(t, "inherits").end() // whoever comes after
		}

		// Asked for only now, it is of nobody, or there is none. The number is
		// known still: that is why one asks for more.
		if late, err := server.PeerPidfd(); err != nil {
			isOpError(t, err, "peer")
		} else {
			if got := fdinfo(t, late, "Pid"); got != "-1" {
				t.Errorf("of a process that ended it says %s", got)
			}
			must(t, late.Close())
		}
		if pid, ok := peerOf(t, server).PID(); pid != first.pid() || !ok {
			t.Errorf("PID is %d, %v", pid, ok)
		}
		second.kill()
	})
}

// TestPeerPidfdOfARecycledPidIsNotMistaken lets another process have the number of a peer
// that ended. In a PID namespace of its own a process may say which number is
// next, and the system outside is none the wiser.
func TestPeerPidfdOfARecycledPidIsNotMistaken(t *testing.T) {
	story(t)
	needsRoot(t)
	c := startChild(t, "namespace")
	if said := c.hear(); said != "not mistaken" {
		t.Skip(said)
	}
	c.end()
}

func childMakesANamespace(p *parent, _ []string) error {
	cmd := rerun("recycle")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		p.say("no namespace: %v", err)
		return nil
	}
	return cmd.Wait()
}

// childMeetsTheSamePidTwice is the first process of its namespace.
func childMeetsTheSamePidTwice(p *parent, _ []string) error {
	l := sure(ipc.Listen(ipc.Addr{}))
	client := func() (*exec.Cmd, *ipc.Conn, error) {
		cmd := rerun("connect", l.Addr().String())
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
		p.say("%v", err)
		return nil
	} else if err != nil {
		return err
	}
	end(first)
	for try := 0; ; try++ {
		err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(fmt.Sprint(pid-1)), 0)
		if err != nil || try == 50 {
			p.say("after %d attempts no process has the number %d again: %v", try, pid, err)
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
	p.say("not mistaken")
	return nil
}

func TestPeerPidfdOfMessagesAndPairs(t *testing.T) {
	story(t)
	a, b := pair(t)
	c, d := msgPair(t)
	e, f := msgConnect(t, listenMsg(t, ipc.Addr{}))
	for _, end := range []linuxEnd{a, b, c, d, e, f} {
		pidfd := peerPidfd(t, end)
		if got, want := fdinfo(t, pidfd, "Pid"), fmt.Sprint(os.Getpid()); got != want {
			t.Errorf("it is of process %s, want %s", got, want)
		}
		must(t, pidfd.Close())
	}
	must(t, a.Close())
	_, err := a.PeerPidfd()
	matches(t, err, net.ErrClosed)
}

// TestPeerPidfdIsWaitedFor has the poller do it, in which the file has a deadline.
func TestPeerPidfdIsWaitedFor(t *testing.T) {
	story(t)
	l := listen(t, ipc.Addr{})
	client := startChild(t, "lingers", l.Addr().String())
	pidfd := peerPidfd(t, accept(t, l))
	client.mustSay("connected")
	raw, err := pidfd.SyscallConn()
	must(t, err)
	wait := func() error { return raw.Read(func(uintptr) bool { return readable(t, pidfd) }) }
	must(t, pidfd.SetReadDeadline(time.Now().Add(brief)))
	matches(t, wait(), os.ErrDeadlineExceeded)
	must(t, pidfd.SetReadDeadline(time.Time{}))
	waits := begin(wait)
	must(t, client.cmd.Process.Kill())
	must(t, <-waits)
	client.kill()
}

// TestWaitPeerHoldsNoThread has more waits than there are threads.
func TestWaitPeerHoldsNoThread(t *testing.T) {
	story(t)
	l := listen(t, ipc.Addr{})
	client := startChild(t, "lingers", l.Addr().String())
	server := accept(t, l)
	before, waits := threads(t), []<-chan error{}
	for range 100 {
		waits = append(waits, begin(func() error { return server.WaitPeer(context.Background()) }))
	}
	awaitParked(t, "(*endpoint).WaitPeer", len(waits))
	if now := threads(t); now > before+len(waits)/2 {
		t.Errorf("%d threads became %d", before, now)
	}
	client.kill()
	for _, w := range waits {
		must(t, <-w)
	}
}

func TestPeerPidfdIsCloseOnExec(t *testing.T) {
	story(t)
	a, _ := pair(t)
	var flags int
	_, err := fmt.Sscanf(fdinfo(t, peerPidfd(t, a), "flags"), "%o", &flags)
	must(t, err)
	if flags&syscall.O_CLOEXEC == 0 {
		t.Errorf("flags are %#o", flags)
	}
}

// ---------------------------------------------------------------------------
// Groups and labels

func TestPeerGroupsAreThoseOfPeer(t *testing.T) {
	if underEmulation() {
		t.Skip("qemu-user takes SO_PEERGROUPS for a number of 4 bytes")
	}
	story(t)
	needsRoot(t)
	l := listen(t, ipc.Addr{})
	c := startChild(t, "groups", l.Addr().String())
	server := accept(t, l)
	groups, err := server.PeerGroups()
	must(t, err)
	if want := childGroups(); !slices.Equal(groups, want) {
		t.Errorf("%d groups %v, want %d", len(groups), groups, len(want))
	}
	if got := peerOf(t, server).Groups(); !slices.Equal(groups, got) {
		t.Errorf("groups are %v, and of Peer %v", groups, got)
	}
	c.mustSay("done")
	c.end()
	must(t, server.Close())
	_, err = server.PeerGroups()
	matches(t, err, net.ErrClosed)
}

func TestPeerGroupsOfThisProcess(t *testing.T) {
	story(t)
	want, err := os.Getgroups()
	must(t, err)
	slices.Sort(want)
	a, _ := pair(t)
	b, _ := msgPair(t)
	for _, end := range []linuxEnd{a, b} {
		got, err := end.PeerGroups()
		must(t, err)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("groups are %v, want %v", got, want)
		}
	}
}

func TestPeerLabelIsThereOrUnsupported(t *testing.T) {
	story(t)
	a, _ := pair(t)
	b, _ := msgPair(t)
	for _, end := range []linuxEnd{a, b} {
		label, err := end.PeerLabel()
		if err != nil {
			matches(t, err, errors.ErrUnsupported)
			isOpError(t, err, "peer")
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
	must(t, a.Close())
	_, err := a.PeerLabel()
	matches(t, err, net.ErrClosed)
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
	must(t, c.SetReadDeadline(time.Now().Add(-time.Second)))
	_, peer, err := c.RecvPeer(make([]byte, 1))
	timedOut(t, err)
	isOpError(t, err, "recv")
	if peer.String() != "unknown peer" {
		t.Errorf("with the error comes the peer %v", peer)
	}
	must(t, c.SetReadDeadline(time.Time{}))
}

// childSharesAnEnd sends each line it hears over the end that it got.
func childSharesAnEnd(p *parent, _ []string) error {
	f := os.NewFile(3, "end")
	c, err := ipc.FileMsgConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	for line := p.hear(); line != ""; line = p.hear() {
		if err := c.Send([]byte(line)); err != nil {
			return err
		}
	}
	return c.Close()
}

func TestRecvPeerTellsTheSenderOfEveryMessage(t *testing.T) {
	story(t)
	a, b := msgPair(t)
	f, err := b.File()
	must(t, err)
	defer f.Close()
	share := exec.Cmd{ExtraFiles: []*os.File{f}}
	one, two := startChildWith(t, share, "shares"), startChildWith(t, share, "shares")
	nothingYet(t, a)

	for i := range 5 {
		ours, ones, twos := fmt.Sprint("ours ", i), fmt.Sprint("one's ", i), fmt.Sprint("two's ", i)
		one.say(ones)
		isProcess(t, recvFrom(t, a, ones), one.pid())
		sendMsg(t, b, ours)
		isProcess(t, recvFrom(t, a, ours), os.Getpid())
		two.say(twos)
		isProcess(t, recvFrom(t, a, twos), two.pid())
		isProcess(t, peerOf(t, a), os.Getpid()) // which is who made the pair, all the while
	}
	sendMsg(t, a, "and back") // the other end is none the wiser
	expectMsg(t, b, "and back")
	one.say("the last") // that of a process that is gone
	one.end()
	isProcess(t, recvFrom(t, a, "the last"), one.pid())
	two.end()
}

func TestRecvPeerTellsTheUser(t *testing.T) {
	story(t)
	needsRoot(t)
	a, b := msgPair(t)
	f, err := b.File()
	must(t, err)
	defer f.Close()
	stranger := startChildWith(t, exec.Cmd{
		ExtraFiles: []*os.File{f}, Env: []string{fmt.Sprintf("%s=%d:%d", childUser, nobody, nobody)},
	}, "shares")
	nothingYet(t, a)
	stranger.say("hello")
	p := recvFrom(t, a, "hello")
	uid, _ := p.UID()
	gid, _ := p.GID()
	pid, _ := p.PID()
	if uid != nobody || gid != nobody || pid != stranger.pid() {
		t.Errorf("the sender is %v", p)
	}
	if uid, _ := peerOf(t, a).UID(); uid != 0 {
		t.Errorf("the peer is user %d", uid)
	}
	stranger.end()
}

func TestRecvPeerOfAMessageFromBeforeIsNotWrong(t *testing.T) {
	story(t)
	a, b := msgPair(t)
	sendMsg(t, b, "early")
	if p := recvFrom(t, a, "early"); p.String() == "unknown peer" {
		_, pid := p.PID()
		_, uid := p.UID()
		_, gid := p.GID()
		if pid || uid || gid || p.UserID() != "" || p.Groups() != nil {
			t.Errorf("nothing is known, but %#v", p)
		}
	} else {
		isProcess(t, p, os.Getpid())
	}
	sendMsg(t, b, "later")
	isProcess(t, recvFrom(t, a, "later"), os.Getpid())
	sendMsg(t, b, "held")
	_, err := a.RecvFiles(1)
	matches(t, err, ipc.ErrNoFiles)
	if p := recvFrom(t, a, "held"); p.String() != "unknown peer" {
		isProcess(t, p, os.Getpid())
	}
	sendMsg(t, b, "plain") // the other receives work as before
	expectMsg(t, a, "plain")
	sendMsg(t, b, "appended")
	p, err := a.RecvAppend(nil)
	if string(p) != "appended" || err != nil {
		t.Errorf("received %q, %v", p, err)
	}
	filesStillPass(t, b, a)
}

func TestRecvPeerIsARecv(t *testing.T) {
	story(t)
	a, b := msgPair(t)
	nothingYet(t, a)
	sendMsg(t, b, "too long")
	p := make([]byte, 3)
	n, peer, err := a.RecvPeer(p)
	matches(t, err, ipc.ErrMsgTooLong)
	if n != 3 || string(p) != "too" {
		t.Errorf("received %q", p[:n])
	}
	isProcess(t, peer, os.Getpid())
	sendMsg(t, b, "x")
	n, peer, err = a.RecvPeer(nil)
	matches(t, err, ipc.ErrMsgTooLong)
	if n != 0 {
		t.Errorf("received %d bytes into nothing", n)
	}
	isProcess(t, peer, os.Getpid())
	sendMsg(t, b, "")
	isProcess(t, recvFrom(t, a, ""), os.Getpid())
	sendMsg(t, b, "last")
	must(t, b.Close())
	isProcess(t, recvFrom(t, a, "last"), os.Getpid())
	n, peer, err = a.RecvPeer(make([]byte, 10))
	if n != 0 || peer.String() != "unknown peer" || err != io.EOF {
		t.Errorf("received %d of %v, %v at the end", n, peer, err)
	}
	must(t, a.Close())
	_, _, err = a.RecvPeer(make([]byte, 10))
	matches(t, err, net.ErrClosed)
}

func TestRecvPeerClosesFiles(t *testing.T) {
	if underEmulation() {
		t.Skip("qemu-user asks the kernel for twice as much room as there is, and loses the files that are too many")
	}
	story(t)
	a, b := msgPair(t)
	nothingYet(t, a)
	r, w := osPipe(t)
	for _, n := range []int{1, 3, 60, 253} { // more than there is room for, too
		files := make([]*os.File, n)
		for i := range files {
			files[i] = w
		}
		before := openDescriptors()
		sendFiles(t, b, files...)
		isProcess(t, recvFrom(t, a, "\x00"), os.Getpid())
		must(t, noMoreDescriptors(before))
	}
	must(t, w.Close())
	expectEOF(t, r)
}

// TestReadMsgOfCredentials sends and receives them as a program does that uses the raw
// calls for what the package does not wrap.
func TestReadMsgOfCredentials(t *testing.T) {
	overEachRaw(t, func(t *testing.T, a, b rawCarrier) {
		raw, err := b.SyscallConn()
		must(t, err)
		var on error
		must(t, raw.Control(func(fd uintptr) {
			on = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1)
		}))
		must(t, on)
		self := syscall.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
		for _, oob := range [][]byte{syscall.UnixCredentials(&self), nil} { // by us, or by the kernel
			_, err := a.WriteMsg([]byte("it is me"), oob)
			must(t, err)
			p, oob := make([]byte, 20), make([]byte, 256)
			n, oobn, _, err := b.ReadMsg(p, oob)
			if string(p[:n]) != "it is me" || err != nil {
				t.Fatalf("read %q, %v", p[:n], err)
			}
			msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
			must(t, err)
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
func startInNamespace(t *testing.T, uid int, role string, args ...string) *child {
	t.Helper()
	needsRoot(t)
	ids := []syscall.SysProcIDMap{
		{ContainerID: 0, HostID: 0, Size: 1},
		{ContainerID: container, HostID: 201000, Size: 1},
		{ContainerID: overflow, HostID: 265534, Size: 1},
	}
	with := exec.Cmd{
		Env: []string{fmt.Sprintf("%s=%d:%d", childUser, uid, uid)},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		},
	}
	needsNamespaces(t, with.SysProcAttr)
	return startChildWith(t, with, role, args...)
}

// needsNamespaces skips the test where no process can be started with the attributes.
func needsNamespaces(t *testing.T, attr *syscall.SysProcAttr) {
	t.Helper()
	cmd := rerun("nothing")
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
func childGuards(p *parent, args []string) error {
	var lc ipc.ListenConfig
	if slices.Contains(args, "everyone") {
		lc.Access = ipc.Everyone
	}
	l := sure(lc.Listen(sure(ipc.ParseAddr(args[0]))))
	serving := serveEach(l, func(c *ipc.Conn) error {
		peer, err := c.Peer()
		if err != nil {
			return err
		}
		_, uid := peer.UID()
		_, gid := peer.GID()
		groups, err := c.PeerGroups()
		p.say("%v %v %q %v %v %v", uid, gid, peer.UserID(), strings.Contains(peer.String(), "id 65534"), peer.Groups(), groups)
		io.WriteString(c, "welcome")
		return errors.Join(err, c.Close())
	})
	p.say("guarding")
	p.hear()
	return errors.Join(l.Close(), <-serving)
}

// TestRefusedIsToldOfWhomAccessKeepsOut has a name, which no permission guards.
func TestRefusedIsToldOfWhomAccessKeepsOut(t *testing.T) {
	story(t)
	needsRoot(t)
	addr := nameAddr(t)
	type refusal struct {
		peer ipc.Peer
		err  error
	}
	told := make(chan refusal, 1)
	l := listenWith(t, ipc.ListenConfig{Refused: func(p ipc.Peer, err error) { told <- refusal{p, err} }}, addr)
	serving := welcomeAll(l)
	stranger := startStranger(t, "connect", addr.String())
	stranger.mustSay("turned away")
	got := <-told
	if got.peer.UserID() != fmt.Sprint(nobody) {
		t.Errorf("the peer is %v", got.peer)
	}
	matches(t, got.err, os.ErrPermission)
	isOpError(t, got.err, "accept")
	stranger.end()
	must(t, l.Close())
	must(t, <-serving)
}

// strangerIsAdmitted reports whether the server admits a user of the host that has no mapping in
// the namespace of the server.
func strangerIsAdmitted(t *testing.T, addr ipc.Addr) bool {
	t.Helper()
	stranger := startStranger(t, "connect", addr.String(), "everyone")
	defer stranger.end()
	return stranger.hear() == "welcome"
}

func TestAccessOwnerOnlyRefusesUsersWithoutMapping(t *testing.T) {
	notEmulated(t)
	story(t)
	for _, uid := range []int{overflow, container, 0} {
		addr := nameAddr(t)
		c := startInNamespace(t, uid, "guards", addr.String())
		c.mustSay("guarding")
		if strangerIsAdmitted(t, addr) {
			t.Errorf("user %d of the namespace admits a user without a mapping", uid)
		}
		host := dialAnyone(t, addr) // root of the host, whom the namespace knows as its own
		c.mustSay(`true true "0" false [] []`)
		expect(t, host, "welcome")
		c.end()
	}
}

// TestAccessOwnerOnlyRefusesAllWithoutAMap has a server in a namespace whose map was never
// written: everybody is the overflow user to it, and it to itself.
func TestAccessOwnerOnlyRefusesAllWithoutAMap(t *testing.T) {
	story(t)
	needsRoot(t)
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	needsNamespaces(t, attr)
	addr := nameAddr(t)
	c := startChildWith(t, exec.Cmd{SysProcAttr: attr}, "guards", addr.String())
	c.mustSay("guarding")
	if strangerIsAdmitted(t, addr) {
		t.Error("a user without a mapping is admitted")
	}
	expectEOF(t, dialAnyone(t, addr)) // nor can root be told from others
	c.end()
}

func dialAnyone(t *testing.T, addr ipc.Addr) *ipc.Conn {
	t.Helper()
	c, err := ipc.Dialer{Access: ipc.Everyone}.Dial(addr)
	return kept(t, c, err)
}

func TestPeerWithoutMappingIsUnknown(t *testing.T) {
	notEmulated(t)
	story(t)
	for _, uid := range []int{overflow, 0} {
		addr := nameAddr(t)
		c := startInNamespace(t, uid, "guards", addr.String(), "everyone")
		c.mustSay("guarding")
		if !strangerIsAdmitted(t, addr) {
			t.Error("Everyone does not admit a user without a mapping")
		}
		c.mustSay(`false false "" false [] []`)
		c.end()
	}
}

func TestDialDoesNotTrustServerWithoutMapping(t *testing.T) {
	notEmulated(t)
	story(t)
	addr := nameAddr(t)
	startForeignServer(t, addr, "everyone")
	for _, uid := range []int{overflow, container, 0} {
		c := startInNamespace(t, uid, "connect", addr.String())
		c.mustSay("untrusted")
		c.end()
	}
	own := nameAddr(t)
	l := listenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, own)
	for _, uid := range []int{overflow, container, 0} { // a server of root is trusted
		c := startInNamespace(t, uid, "connect", own.String())
		send(t, accept(t, l), "welcome")
		c.mustSay("welcome")
		c.end()
	}
}

func TestUserAddrOfAUserWithoutMapping(t *testing.T) {
	notEmulated(t)
	story(t)
	c := startInNamespace(t, overflow, "useraddr", "agent")
	if said := c.hear(); !strings.Contains(said, "no mapping") {
		t.Errorf("it is %q", said)
	}
	c.end()
}

// childTellsSenders says who sends each of the messages that it gets.
func childTellsSenders(p *parent, _ []string) error {
	f := os.NewFile(3, "end")
	c, err := ipc.FileMsgConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(-time.Second))
	c.RecvPeer(make([]byte, 1)) // asks for the senders of what follows
	c.SetReadDeadline(time.Time{})
	p.say("listening")
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
		p.say("%v %v %v %q", uid, gid, pid, peer.UserID())
	}
}

func TestRecvPeerWithoutMappingIsUnknown(t *testing.T) {
	notEmulated(t)
	story(t)
	needsRoot(t)
	a, b := msgPair(t)
	f, err := a.File()
	must(t, err)
	defer f.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	needsNamespaces(t, attr)
	c := startChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}, SysProcAttr: attr}, "senders")
	c.mustSay("listening")
	must(t, errors.Join(a.Close(), f.Close()))

	sendMsg(t, b, "from root")
	c.mustSay(`true true true "0"`)
	other, err := b.File()
	must(t, err)
	defer other.Close()
	stranger := startChildWith(t, exec.Cmd{
		ExtraFiles: []*os.File{other}, Env: []string{fmt.Sprintf("%s=%d:%d", childUser, nobody, nobody)},
	}, "shares")
	stranger.say("from a stranger")
	c.mustSay(`false false true ""`)
	stranger.end()
	must(t, errors.Join(b.Close(), other.Close()))
	c.end()
}
