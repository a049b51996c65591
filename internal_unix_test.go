//go:build unix

package ipc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// Nap makes the waits of the end those of a system whose poller does not serve
// FIFOs, so that they are tested on every system. It comes before the first use.
func (e *pipeEnd) Nap() {
	e.end().mu.Lock()
	defer e.end().mu.Unlock()
	e.end().byTimer = true
}

// ---------------------------------------------------------------------------
// System calls

// While the kernel closes none of its descriptors, Close waits for all of them no longer than
// for one.
func TestSharedConnCloseWaitsOnce(t *testing.T) {
	least := time.Duration(1 << 62)
	for range 5 { // the machine may be slow, but not each time
		a, _ := sharedInMemory(t)
		for _, f := range [...]*fd{a.base.fd, a.r.bell, a.w.bell, a.r.far, a.w.far} {
			f.markShared() // its close may sleep
		}
		asleep := make(chan struct{})
		for range closersMax {
			socketEnds.add(func() { <-asleep })
		}
		begun := time.Now()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		least = min(least, time.Since(begun))
		close(asleep)
	}
	if least < closeGrace || least >= 2*closeGrace {
		t.Errorf("Close took %v, want %v", least, closeGrace)
	}
}

// The BSDs and macOS say ENOTCONN of a connection whose peer has closed. Linux says
// it of a socket that was never connected, if it is not a local one.
func TestConnShutdownOfWhatIsNotConnected(t *testing.T) {
	sys, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Skip(err)
	}
	f := newFD(sys)
	defer f.close()
	if err := syscall.Shutdown(sys, syscall.SHUT_WR); err != syscall.ENOTCONN {
		t.Skip("this system says ", err)
	}
	if err := errors.Join(f.closeWrite(), f.shutdown(syscall.SHUT_RD)); err != nil {
		t.Error(err)
	}
}

// filesWith returns the receiving end of a stream to which came, as is so on the BSDs
// after a receive that found no room for them, the data that files travelled with.
func filesWith(t *testing.T, data string) *fd {
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	if _, err := a.Write([]byte(data)); err != nil {
		t.Fatal(err)
	}
	return b.fd
}

func TestRecvFilesThatAreLostLeaveNothingInTheStream(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMSGSIZE, syscall.EMFILE} {
		for _, dataStays := range []bool{true, false} {
			data := "next"
			if dataStays {
				data = "\x00next"
			}
			f := filesWith(t, data)
			if err := f.acquireRecv(); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 1)
			got, err := f.withoutRights(p, errno, dataStays)
			if got.n != 1 || p[0] != 0 {
				t.Errorf("%v: %d bytes, %x are returned", errno, got.n, p)
			}
			if !errors.Is(err, ErrMsgTooLong) || !errors.Is(err, errno) {
				t.Errorf("%v is returned as %v", errno, err)
			}
			f.release(&f.r)
			next := make([]byte, 10)
			if n, err := f.read(next); string(next[:n]) != "next" || err != nil {
				t.Errorf("%v: then %q is read, %v", errno, next[:n], err)
			}
		}
	}
}

// A kernel whose messages are records in a stream leaves the message in the queue, which
// is received whole. From the others it takes no second one.
func TestRecvFilesThatAreLostTakeNoOther(t *testing.T) {
	a, b, err := MsgPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	if !a.Native() {
		t.Skip("messages are framed here")
	}
	for _, m := range []string{"first", "next"} {
		if err := a.Send([]byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.fd.acquireRecv(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 10)
	got, err := b.fd.withoutRights(p, syscall.EMFILE, true)
	b.fd.release(&b.fd.r)
	left, whole := "first", false
	if kern.splitsMessages() {
		left, whole = "next", true
	}
	if got.whole != whole || whole && string(p[:got.n]) != "first" || !whole && got.n != 0 || !errors.Is(err, ErrMsgTooLong) {
		t.Errorf("%q is returned, a whole message: %t, %v", p[:got.n], got.whole, err)
	}
	if n, err := b.Recv(p); string(p[:n]) != left || err != nil {
		t.Errorf("then %q comes, %v", p[:n], err)
	}
}

// A filesProbe is a pipe of which one end is sent. The other end tells when nobody has it
// any more.
type filesProbe struct {
	t    *testing.T
	r, w *os.File
}

func newFilesProbe(t *testing.T) *filesProbe {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return &filesProbe{t, r, w}
}

// allClosed fails the test if somebody still has an end that was sent.
func (p *filesProbe) allClosed() {
	p.t.Helper()
	p.w.Close()
	p.r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := p.r.Read(make([]byte, 1)); err != io.EOF {
		p.t.Errorf("the files are not closed: %v", err)
	}
}

// While too many descriptors wait to be closed, in whatever file system, further ones are closed
// by the call that got them, whichever it is: what peers send does not fill the table of this process.
// A call that reads data alone does that earlier.
func TestFilesAreClosedBesideManyThatAreBeingClosed(t *testing.T) {
	regular, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer regular.Close()
	for name, get := range map[string]func(b *Conn) error{
		"Read": func(b *Conn) error {
			p := make([]byte, 10)
			n, err := b.Read(p)
			if string(p[:n]) != "\x00" {
				t.Errorf("%q is read", p[:n])
			}
			return err
		},
		"RecvFiles": func(b *Conn) error {
			if _, err := b.RecvFiles(1); !errors.Is(err, ErrMsgTooLong) {
				t.Errorf("RecvFiles(1) of two: %v", err)
			}
			return nil
		},
		"ReadMsg": func(b *Conn) error {
			_, _, _, err := b.ReadMsg(make([]byte, 1), make([]byte, syscall.CmsgSpace(0)))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := connected(t)
			sent := newFilesProbe(t)
			if err := a.SendFiles(sent.w, regular); err != nil {
				t.Fatal(err)
			}
			defer holdClosers(&disposal, name == "Read")()
			if err := get(b); err != nil {
				t.Fatal(err)
			}
			sent.allClosed()
		})
	}
	t.Run("received", func(t *testing.T) {
		a, b := connected(t)
		defer holdClosers(&disposal, false)()
		waiting := disposal.waiting.Load()
		if err := a.SendFiles(regular); err != nil {
			t.Fatal(err)
		}
		files, err := b.RecvFiles(1)
		if err != nil {
			t.Fatal(err)
		}
		files[0].Close()
		if n := disposal.waiting.Load() - waiting; n != 0 {
			t.Errorf("%d descriptors of a file that was received wait to be closed", n)
		}
	})
}

// holdClosers gives them calls that do not end, and pretends that as many wait as are needed: to be
// full, or else to hold too many descriptors. The function that it returns ends that.
func holdClosers(c *closers, full bool) (release func()) {
	wake := keepAllAsleep(c)
	more := int32(closersMax)
	if !full {
		more += int32(min(descriptorLimit()/4, 1<<30))
	}
	c.waiting.Add(more)
	return func() { c.waiting.Add(-more); wake() }
}

// Closes that sleep hold too much of a small table of descriptors, too.
func TestClosersHoldTooManyOfFewDescriptors(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := before
	few.Cur = 4 * closersMax
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Skip(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before)
	var c closers
	wake := keepAllAsleep(&c)
	if c.holdTooMany() {
		t.Error("too many, though none waits")
	}
	c.add(func() {})
	if !c.holdTooMany() {
		t.Error("one waits, and there is no limit")
	}
	wake()
}

// Some kernels deliver files that were sent without a byte before the message that they
// belong to.
func TestRecvFilesGetsWhatCameBeforeTheFrame(t *testing.T) {
	defer frameMessages(frameMessages(true))
	a, b, err := MsgPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	sent := newFilesProbe(t)
	for _, limit := range []int{2, 1} {
		d, err := syscall.Dup(int(sent.w.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		b.carrier.(*framing).files = []*os.File{os.NewFile(uintptr(d), "before")}
		if err := a.SendFiles(sent.w); err != nil {
			t.Fatal(err)
		}
		files, err := b.RecvFiles(limit)
		if limit == 2 && (len(files) != 2 || err != nil) || limit == 1 && (files != nil || !errors.Is(err, ErrMsgTooLong)) {
			t.Errorf("%d files are received of 2, %d were asked for: %v", len(files), limit, err)
		}
		discardFiles(files)
	}
	if err := a.Send([]byte("next")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 10)
	if n, err := b.Recv(p); string(p[:n]) != "next" || err != nil {
		t.Errorf("then %q is received, %v", p[:n], err)
	}
	sent.allClosed()
}

// Nothing but what the kernel says of dropped files may be taken for that: after
// another error nothing must be received that nobody asked for.
func TestRecvFilesErrorsThatAreNotOfFiles(t *testing.T) {
	for _, errno := range []syscall.Errno{0, syscall.EAGAIN, syscall.EINTR, syscall.ECONNRESET, syscall.ENOTCONN,
		syscall.EBADF, syscall.ENOTSOCK, syscall.EINVAL, syscall.EPIPE, syscall.ENOBUFS, syscall.ENOMEM} {
		if lost, _ := kern.rightsLost(errno); lost {
			t.Errorf("%v is taken for the loss of files", errno)
		}
	}
}

func TestSendFilesRefusesMoreThanTheSystemTakes(t *testing.T) {
	limit := kern.filesMax()
	if limit < 1 || limit > maxFiles {
		t.Fatalf("the limit is %d", limit)
	}
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	files := make([]*os.File, limit+1)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for i := range files {
		files[i] = null
	}
	err = a.fd.sendWithFiles(zeroByte[:], files)
	if err == nil || errnoOf(err) != err || !strings.Contains(err.Error(), "at most "+strconv.Itoa(limit)) {
		t.Errorf("%d files: %v", len(files), err) // not the kernel's word
	}
	if err := a.SendFiles(files[:limit]...); err != nil {
		t.Errorf("%d files: %v", limit, err)
	}
}

// ---------------------------------------------------------------------------
// Control messages

// FuzzRights takes apart control messages of any content. It closes nothing and
// keeps nothing: the numbers are no descriptors.
func FuzzRights(f *testing.F) {
	two := syscall.UnixRights(3, 4)
	other := slices.Clone(two)
	(*syscall.Cmsghdr)(unsafe.Pointer(&other[0])).Type++ // of some other type
	f.Add([]byte{})
	f.Add(two)
	f.Add(two[:len(two)-1])
	f.Add(syscall.UnixRights())
	f.Add(append(slices.Clone(two), syscall.UnixRights(5)...))
	f.Add(append(slices.Clone(other), two...))
	f.Add(append(slices.Clone(two), other...))
	f.Add(make([]byte, syscall.CmsgSpace(4)))
	f.Add(slices.Repeat([]byte{0xff}, 64))
	uneven := append(syscall.UnixRights(3, 4, 5), 0, 0, 0, 0, 0, 0, 0)
	(*syscall.Cmsghdr)(unsafe.Pointer(&uneven[0])).Len++ // which syscall.ParseUnixRights does not expect
	f.Add(uneven)
	f.Fuzz(func(t *testing.T, oob []byte) {
		defer func() {
			if v := recover(); v != nil {
				t.Fatal(v)
			}
		}()
		if rest := kern.unmarked(slices.Clone(oob)); !bytes.HasSuffix(oob, rest) {
			t.Fatalf("behind the mark of %x is %x", oob, rest)
		}
		fds, _, err := passedIn(slices.Clone(oob))
		if 4*len(fds) > len(oob) {
			t.Fatalf("%d bytes hold %d descriptors", len(oob), len(fds))
		}
		if err == nil && len(fds) > 0 {
			// They are what they were when they are sent on.
			again, _, err := passedIn(syscall.UnixRights(fds...))
			if !slices.Equal(again, fds) || err != nil {
				t.Fatalf("%v become %v, %v", fds, again, err)
			}
		}

		// Any numbers are found, in one list or in several, behind whatever else.
		var want []int
		for p := oob; len(p) >= 4 && len(want) < rightsMax; p = p[4:] {
			want = append(want, int(int32(binary.NativeEndian.Uint32(p))))
		}
		half := len(want) / 2
		for _, list := range [][]byte{
			syscall.UnixRights(want...),
			append(syscall.UnixRights(want[:half]...), syscall.UnixRights(want[half:]...)...),
			append(slices.Clone(other), syscall.UnixRights(want...)...),
		} {
			got, _, err := passedIn(list)
			if !slices.Equal(got, want) || err != nil {
				t.Fatalf("%v are read as %v, %v", want, got, err)
			}
		}
	})
}

var targetSeeds = []string{
	"", "a", "@a", "a\x00b", "\x00", "/", "//", ".", "..", "a/", "a/.", "a/..", "../a", "/a", "./@a", "/tmp/../a", "a//b", "-",
	"a/../../b", "...", "ü", "\xff", strings.Repeat("n", sunPathMax), strings.Repeat("n", sunPathMax+1),
	strings.Repeat("p", nameMax), strings.Repeat("p", nameMax+1), strings.Repeat("d/", pathMax/2), strings.Repeat("d/", pathMax/2) + "dd",
}

// checkTarget makes no file: a name without one is bound, everything else is only
// looked at.
func checkTarget(t *testing.T, a Addr, text, target string) {
	if isAbstract(target) {
		if a.kind != nameAddr || target[1:] != text {
			t.Fatalf("%q is the abstract socket %q", a, target[1:])
		}
		sys, err := newSocket(syscall.SOCK_STREAM)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(sys)
		switch err := bind(sys, target); {
		case errors.Is(err, ErrAddrInUse): // by another program, or another worker
		case err != nil:
			t.Fatalf("%q: %v", a, err)
		default:
			if got, err := kern.sockName(sys); got != a || err != nil {
				t.Fatalf("%q is read back as %q, %v", a, got, err)
			}
		}
		return
	}
	dir, base := splitPath(target)
	switch clean := filepath.Clean(target); {
	case len(target) > pathMax, len(base) > nameMax, strings.Contains(target, "\x00"),
		base != filepath.Base(clean), filepath.Clean(joinPath(dir, base)) != clean:
		t.Fatalf("%q is the path %q, of %q and %q", a, target, dir, base)
	case a.kind == pathAddr && target != a.String():
		t.Fatalf("%q is the path %q", a, target)
	case a.kind == nameAddr && (abstractNames || !strings.HasPrefix(clean, "/tmp/")):
		t.Fatalf("the name %q is the path %q", a, target)
	}
	if sa := sockAddr(target); len(target) <= sunPathMax && target[0] != '@' && addrOf(sa) != Path(target) {
		t.Fatalf("%q is read back as %q", a, addrOf(sa))
	}
}

func TestInheritTokensAreNumbersOfDescriptors(t *testing.T) {
	for _, token := range []string{"3", "4", "10", "1048576", "3@c000.8.1f",
		"3@c000.8.1:4@4000.1.1:5@8000.1.2:6@1000.d.3:7@1000.d.3:1:2:remove:2f61", "3:4:5:6:7:1a:2b:keep:2f612f62", "3:4:5:6:7:1:2:keep:61"} {
		if tokenDescriptors(token) == nil {
			t.Errorf("%q is refused", token)
		}
	}
	for _, token := range []string{"", "0", "1", "2", "-1", "-3", "+3", "03", "0x3", " 3", "3 ", "3.0", "1048577", "99999999999999999999", "three",
		"3@", "3@x", "3@A", "@1", "3:4", "3:4:5:6", "3:4:5:6:7:1:2:remove", "3:4:5:6:7:1:2:remove:", "3:4:5:6:7:1:2:remove:2f612f", // no last element
		"3:4:5:6:7:1:2:other:2f61", "3:4:5:6:7:01:2:keep:2f61", "3:4:5:6:7:1:2:keep:2F61", "3:4:5:6:7:1:2:keep:2f6", "3:4:5:2:7:1:2:keep:2f61"} {
		if tokenDescriptors(token) != nil { // 0, 1 and 2 are the standard ones; one text per number
			t.Errorf("%q is accepted", token)
		}
	}
}

// ---------------------------------------------------------------------------
// Peers

func TestPeerTellsWhatItKnowsAndNoMore(t *testing.T) {
	const all = knowsPID | knowsUID | knowsGID
	for _, c := range []struct {
		peer   Peer
		text   string
		userID string
	}{
		{Peer{}, "unknown peer", ""},
		{Peer{pid: 1, uid: 2, gid: 3}, "unknown peer", ""}, // numbers that nobody vouches for
		{Peer{facts: knowsUID}, "uid 0", "0"},
		{Peer{facts: knowsUID, uid: -2}, "uid 4294967294", "4294967294"}, // as an int of 32 bits
		{Peer{facts: knowsGID}, "gid 0", ""},
		{Peer{facts: knowsPID, pid: 12}, "pid 12", ""},
		{Peer{facts: all, pid: 12, uid: 1000, gid: 100}, "pid 12 uid 1000 gid 100", "1000"},
		{Peer{facts: knowsUID | knowsGID, uid: 1000, gid: 100}, "uid 1000 gid 100", "1000"},
		{Peer{user: "S-1-5-18"}, "user S-1-5-18", "S-1-5-18"},
		{Peer{facts: knowsPID, pid: 4, user: "S-1-5-18"}, "pid 4 user S-1-5-18", "S-1-5-18"},
	} {
		if got := c.peer.String(); got != c.text {
			t.Errorf("%#v is %q, want %q", c.peer, got, c.text)
		}
		if got := c.peer.UserID(); got != c.userID {
			t.Errorf("%v has the user %q, want %q", c.peer, got, c.userID)
		}
		for fact, get := range map[peerFacts]func() (int, bool){
			knowsPID: c.peer.PID, knowsUID: c.peer.UID, knowsGID: c.peer.GID,
		} {
			if _, ok := get(); ok != (c.peer.facts&fact != 0) {
				t.Errorf("%#v: fact %d is known: %v", c.peer, fact, ok)
			}
		}
	}
}

// TestPeerPIDOfAnotherNamespaceIsAbsent has the numbers with which systems say that
// they do not tell.
func TestPeerPIDOfAnotherNamespaceIsAbsent(t *testing.T) {
	for _, pid := range []int{0, -1} {
		p := unixPeer(0)
		p.add(knowsPID, &p.pid, pid)
		if got, ok := p.PID(); ok {
			t.Errorf("PID is %d for %d", got, pid)
		}
		if p.String() != "uid 0" {
			t.Errorf("the peer is %q", p)
		}
	}
	p := unixPeer(7)
	p.add(knowsGID, &p.gid, 0) // the group of root is one
	p.add(knowsPID, &p.pid, 1)
	if p.String() != "pid 1 uid 7 gid 0" {
		t.Errorf("the peer is %q", p)
	}
}

func TestPeerStructXucredIsRead(t *testing.T) {
	words := func(w ...uint32) []uint32 { return append(w, make([]uint32, 19-len(w))...) }
	for _, c := range []struct {
		cred   []uint32
		text   string
		groups []int
	}{
		{words(0, 1000, 1, 100), "uid 1000 gid 100", []int{}},
		{words(0, 1000, 3, 100, 101, 102, 666), "uid 1000 gid 100", []int{101, 102}},
		{words(0, 1000, 0xabcd0002, 100, 101), "uid 1000 gid 100", []int{101}}, // the upper half is padding
		{words(0, 0, 0, 666), "uid 0", nil},
		{words(0, 0, 16), "uid 0 gid 0", make([]int, 15)},
		{words(0, 0, 0xffff), "uid 0 gid 0", make([]int, 15)}, // more than there is room for
		{words(0, 5, 9, 1, 2, 3, 4, 5)[:8], "uid 5 gid 1", []int{2, 3, 4, 5}},
		{words(0, 5, 3, 1)[:4], "uid 5 gid 1", []int{}},
	} {
		p, err := xucredPeer(c.cred)
		if p.String() != c.text || !slices.Equal(p.Groups(), c.groups) || (p.Groups() == nil) != (c.groups == nil) || err != nil {
			t.Errorf("%v is %v with groups %v, %v", c.cred, p, p.Groups(), err)
		}
	}
	if p, err := xucredPeer(words(1, 1000, 1, 100)); err != syscall.EINVAL || p.facts != 0 {
		t.Errorf("a struct of another version is %v, %v", p, err)
	}
}

func TestSysListenConfigGroupIsFoundByItsName(t *testing.T) {
	const text = "# wheel:*:1:\nroot:x:0:\n\nstaff:x:50:alice,bob\nstaff:x:51:\n+::\nbad:x:many:\nbad:x:-1:\nhuge:x:4294967295:\nlast:*:60"
	for name, want := range map[string]int{
		"root": 0, "staff": 50, "last": 60, "wheel": -1, "": -1, "+": -1, "bad": -1, "huge": -1, "alice": -1, "sta": -1,
	} {
		n, ok := groupNumber(text, name)
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("%q is group %d, %v; want %d", name, n, ok, want)
		}
	}
}

func TestPeerGroupsOfTheUnknownAreNone(t *testing.T) {
	if (Peer{gid: 0}).inGroup("0") || (Peer{}).inGroup("") {
		t.Error("a peer of whom nothing is known is in a group")
	}
	p := Peer{facts: knowsGID, gid: 7, groups: []int{8, 9}}
	for _, n := range []string{"7", "8", "9"} {
		if !p.inGroup(n) {
			t.Errorf("%v is not in group %s", p, n)
		}
	}
	for _, n := range []string{"0", "", "77", "07"} {
		if p.inGroup(n) {
			t.Errorf("%v is in group %s", p, n)
		}
	}
}

// ---------------------------------------------------------------------------
// Waits and spins

// connected returns two ends whose spins start without a past.
func connected(t *testing.T) (a, b *Conn) {
	t.Helper()
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	forget()
	return a, b
}

// forget makes a wait spin that goes by what all learned.
func forget() {
	spinning.keepTill.Store(0)
	spinning.unparked.Store(0)
	spinning.spins.young.Store(0)
	spinning.yields.young.Store(0)
	spinning.spins.cold.Store(false)
	spinning.yields.cold.Store(false)
	spinning.crowd.counted.Store(0)
	spinning.crowd.left.Store(0)
	spinning.crowd.window.Store(now() / int64(crowdWindow))
	spinning.crowd.parked[0].Store(0)
	spinning.crowd.parked[1].Store(0)
}

// spins reports whether a wait in that direction spins before it parks.
func spins(t *testing.T, f *fd, h *ioState) (spun bool) {
	t.Helper()
	forget()
	neverYield(t)
	tries := 0
	for limit := 10 * time.Millisecond; tries == 0; limit *= 2 { // a slow machine may not begin before the deadline
		if err := f.setDeadline(time.Now().Add(limit), reading|writing); err != nil {
			t.Fatal(err)
		}
		if err := f.acquire(h); err != nil {
			t.Fatal(err)
		}
		asked := spinning.asked.Load()
		_, err := f.run(h, &op{call: opOther, other: func(int) (result, error) {
			tries++
			if spinning.asked.Load() != asked {
				return result{}, nil
			}
			return result{}, syscall.EAGAIN
		}})
		f.release(h)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if spun = spinning.asked.Load() != asked; spun { // also if the deadline has passed meanwhile
			break
		}
	}
	if err := f.setDeadline(time.Time{}, reading|writing); err != nil {
		t.Fatal(err)
	}
	return spun
}

func TestSetSpinZeroParksAtOnce(t *testing.T) {
	callsTake(t, dearCall-1)
	a, _ := connected(t)
	a.SetSpin(-1)
	if spins(t, a.fd, &a.fd.r) {
		t.Error("it spins after SetSpin(-1)")
	}
	a, _ = connected(t)
	a.SetSpin(time.Minute)
	if !spins(t, a.fd, &a.fd.r) {
		t.Error("it does not spin after SetSpin")
	}
	a.SetSpin(0)
	if got := a.fd.spinLimit(); got != spinByDefault {
		t.Errorf("SetSpin(0) sets a limit of %d ns, want the default", got)
	}
	callsTake(t, dearCall)
	if got := a.fd.spinLimit(); got != 2*spinByDefault {
		t.Errorf("where calls are dear the default is %d ns", got)
	}
	if a.SetSpin(time.Minute); a.fd.spinLimit() != int64(time.Minute) {
		t.Error("where calls are dear SetSpin sets another limit")
	}
}

func TestSpinWaitThatParksTimesCalls(t *testing.T) {
	a, _ := connected(t)
	timesCallsIfItParks(t, a)
}

func TestSpinDoesNotDisturbAStream(t *testing.T) {
	a, b := connected(t)
	a.SetSpin(time.Minute)
	pass := func(from, to *Conn, n int) {
		t.Helper()
		if _, err := from.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(to, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	pass(b, a, streamMin-1)
	if !spins(t, a.fd, &a.fd.r) {
		t.Error("a wait after little does not spin")
	}
	pass(b, a, streamMin-1)
	pass(b, a, 1)
	if spins(t, a.fd, &a.fd.r) {
		t.Error("a wait in a stream spins")
	}
	pass(b, a, 1)
	if !spins(t, a.fd, &a.fd.r) {
		t.Error("a wait that follows such a one, and little, does not spin")
	}
	pass(b, a, streamMin)
	pass(a, b, 1)
	if !spins(t, a.fd, &a.fd.r) {
		t.Error("a wait for an answer does not spin")
	}
	if spins(t, a.fd, &a.fd.w) {
		t.Error("a wait for room spins")
	}
}

// An answer among much data is not spun for, unless there is but one CPU. What counts is
// what the two ends exchanged last, whether they had to wait meanwhile or not.
func TestSpinNotForAnAnswerInBulk(t *testing.T) {
	callsTake(t, dearCall-1)
	a, b := connected(t)
	a.SetSpin(time.Minute)
	defer func(one bool) { oneCPU = one }(oneCPU)
	forget()
	exchange := func(heard, said int) {
		t.Helper()
		for p := make([]byte, 1<<10); heard+said > 0; {
			from, to, left := b, a, &heard
			if heard == 0 {
				from, to, left = a, b, &said
			}
			p = p[:min(len(p), *left)]
			if _, err := from.Write(p); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(to, p); err != nil {
				t.Fatal(err)
			}
			*left -= len(p)
			p = p[:cap(p)]
		}
	}
	for _, c := range []struct {
		heard, said int
		one, may    bool
	}{
		{bulkMin / 2, bulkMin / 2, false, false},
		{bulkMin / 2, bulkMin / 2, true, true},
		{bulkMin/2 - 1, bulkMin / 2, false, true}, // and all that came before is not counted
		{bulkMin/2 - 1, bulkMin / 2, false, true},
		{bulkMin - 1, 1, false, false},
		{1, bulkMin - 1, false, false},
		{1, 1, false, true},
	} {
		exchange(c.heard, c.said)
		oneCPU = c.one
		if got := a.fd.maySpin(&a.fd.r); got != c.may {
			t.Errorf("a wait after %d bytes read and %d written, with one CPU: %t, may spin: %t", c.heard, c.said, c.one, got)
		}
	}
	exchange(bulkMin/2, bulkMin/2)
	callsTake(t, dearCall)
	if oneCPU = false; !a.fd.maySpin(&a.fd.r) {
		t.Error("a wait for an answer in bulk may not spin where calls are dear")
	}
	exchange(streamMin, 0)
	if a.fd.maySpin(&a.fd.r) {
		t.Error("a wait in a stream may spin where calls are dear")
	}
	if a.fd.maySpin(&a.fd.w) {
		t.Error("a wait for room may spin where calls are dear")
	}
	exchange(1, 1)
	if oneCPU = false; !spins(t, a.fd, &a.fd.r) || !a.fd.maySpin(&a.fd.r) {
		t.Error("a wait after little, and one after none, do not spin")
	}
}

func TestSpinNotAfterAPause(t *testing.T) {
	a, _ := connected(t)
	const limit = 10 * time.Second
	a.SetSpin(limit)
	for ago, want := range map[time.Duration]bool{limit / 2: true, 2 * limit: false} {
		a.fd.waited = now() - int64(ago)
		if got := spins(t, a.fd, &a.fd.r); got != want {
			t.Errorf("a wait %v after the one before it spins: %t, with a limit of %v", ago, got, limit)
		}
		if since := time.Duration(now() - a.fd.waited); since > limit/2 {
			t.Errorf("the wait is remembered as one that ended %v ago", since)
		}
	}
}

// After long waits none spins, until one was short.
func TestSpinNotAfterLongWaits(t *testing.T) {
	a, b := connected(t)
	neverYield(t)
	a.fd.r.spins.waits = youngWaits // where one goroutine runs at a time, others run before it parks
	for n := range longWaits {
		a.SetSpin(time.Nanosecond)
		if got := a.fd.r.spins.long; int(got) != n {
			t.Fatalf("%d waits count as long after %d of them", got, n)
		}
		parkOnce(t, a, func() {
			time.Sleep(2 * parkedMax)
			b.Write([]byte("x"))
		})
	}
	a.fd.r.spins.skip = 0
	a.SetSpin(10 * time.Second)
	if spins(t, a.fd, &a.fd.r) {
		t.Errorf("after %d long waits one spins", longWaits)
	}
	if !a.fd.r.spins.expectsLong() {
		t.Error("a wait that ended with its deadline is a short one")
	}
	parkOnce(t, a, func() { b.Write([]byte("x")) })
	if !spins(t, a.fd, &a.fd.r) {
		t.Error("after a short wait none spins")
	}
	a.fd.r.spins.long = 1
	for range 10 { // on a slow machine the deadline may pass before the spin succeeds
		if spins(t, a.fd, &a.fd.r); a.fd.r.spins.long != 1 {
			break
		}
	}
	if a.fd.r.spins.long != 0 {
		t.Error("a spin that succeeds is no short wait")
	}
}

// A wait that does not spin, after a pause or since spins have failed, yields. Where that ends
// it, nothing is given to the poller.
func TestReadThatDoesNotSpinYields(t *testing.T) {
	for what, prepare := range map[string]func(h *ioState, f *fd){
		"after a pause":       func(_ *ioState, f *fd) { f.waited = now() - int64(time.Hour) },
		"after failed spins":  func(h *ioState, _ *fd) { h.spins = backoff{waits: youngWaits, skip: 100} },
		"after long waits":    func(h *ioState, _ *fd) { h.spins = backoff{waits: youngWaits, long: longWaits} },
		"of a busy direction": func(h *ioState, f *fd) { h.expectPark, f.waited = expectParkMax, now()-int64(time.Hour) },
	} {
		a, b := connected(t)
		a.SetSpin(time.Second)
		a.SetReadDeadline(time.Now().Add(time.Minute))
		yields := 0
		yieldBy(t, func() {
			if yields++; yields == 1 {
				b.Write([]byte("x"))
			}
		})
		prepare(&a.fd.r, a.fd)
		if n, err := a.Read(make([]byte, 1)); n != 1 || err != nil || yields != 1 {
			t.Errorf("Read %s = %d, %v after %d yields", what, n, err, yields)
		}
		if a.fd.polled.Load() != nil {
			t.Errorf("Read %s has joined the poller", what)
		}
		if since := time.Duration(now() - a.fd.waited); since > time.Minute {
			t.Errorf("Read %s is remembered as one that ended %v ago", what, since)
		}
		if skip := a.fd.r.spins.skip; skip > 99 {
			t.Errorf("Read %s is none of the %d that do not spin", what, skip)
		}
		if a.fd.r.spins.long != 0 {
			t.Errorf("Read %s is no short wait", what)
		}
	}
}

// An end whose waits all yield leaves the poller, as one whose waits all spin does.
func TestReadsThatYieldLeaveThePoller(t *testing.T) {
	a, b := connected(t)
	if _, err := a.fd.join(nil); err != nil {
		t.Fatal(err)
	}
	a.SetSpin(time.Second)
	a.SetReadDeadline(time.Now().Add(time.Minute))
	yieldBy(t, func() { b.Write([]byte("x")) })
	for range 1000 { // on a slow machine some take so long that they do not count
		a.fd.r.spins = backoff{waits: youngWaits, skip: skipMax}
		a.fd.r.yields = yielder{backoff: backoff{waits: youngWaits, wins: longRunOfWins - 1}}
		a.fd.r.yields.hasParked(int64(parkedMax))
		if _, err := a.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if a.fd.polled.Load() == nil {
			break
		}
	}
	if a.fd.polled.Load() != nil {
		t.Error("it is with the poller after a long run of reads that yielded")
	}
	if n := a.fd.r.turnout.left; n == 0 {
		t.Error("a wait that yielded is not counted among those of a crowd")
	}
}

func TestReadYieldsNoLongerThanItMay(t *testing.T) {
	a, _ := connected(t)
	yields := 0
	yieldBy(t, func() { yields++ })
	fails := func(limit time.Duration) {
		t.Helper()
		yields = 0
		a.SetReadDeadline(time.Now().Add(limit))
		a.fd.waited = now() - int64(time.Hour)
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	a.SetSpin(time.Second)
	for limit := 50 * time.Millisecond; yields == 0; limit *= 2 { // a slow machine may not begin before the deadline
		fails(limit)
	}
	if yields > yieldsMax {
		t.Errorf("a wait yields %d times, want %d", yields, yieldsMax)
	}
	a.SetSpin(-1)
	if fails(time.Millisecond); yields != 0 {
		t.Error("a wait yields after SetSpin(-1)")
	}
	a.SetSpin(time.Second)
	a.SetReadDeadline(time.Time{})
	spinning.yield = func() { yields++; a.fd.closeLater() }
	yields = 0
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) || yields != 1 {
		t.Errorf("Read = %v after %d yields, of which the first closed the connection", err, yields)
	}
}

// A wait that has spun in vain leaves its CPU if the peer has waited for that, and only then. It
// need not park then, and it was not long.
func TestSpinInVainLeavesACPUThatThePeerWaitsFor(t *testing.T) {
	a, b := connected(t)
	defer forget()
	const limit = 100 * time.Microsecond
	a.SetSpin(limit)
	leaves, polled := 0, false
	leaveBy(t, func() { leaves++ })
	// vain has a read spin in vain, as far as that yield does not help.
	vain := func(yield func()) error {
		t.Helper()
		yields := 0
		yieldBy(t, func() {
			if yields++; yields == 1 {
				yield()
			}
		})
		var err error
		a.fd.r.spins.debt = 0
		for wait := 10 * time.Millisecond; a.fd.r.spins.debt == 0 || yields == 0; wait *= 2 { // a slow machine may not spin in time
			forget()
			a.fd.r.spins, a.fd.waited, leaves, yields = backoff{}, now()+int64(time.Hour), 0, 0
			spinning.leftAt.Store(0)
			spinning.leaveGap.Store(0)
			polled = a.fd.polled.Load() != nil
			if err := a.SetReadDeadline(time.Now().Add(wait)); err != nil {
				t.Fatal(err)
			}
			_, err = a.Read(make([]byte, 1))
		}
		return err
	}
	others := func() {
		for begun := now(); now()-begun < int64(switchTime); {
		}
	}
	err := vain(func() { others(); b.Write([]byte("x")) })
	for tries := 1; err == nil && leaves == 0 && tries < 100; tries++ { // a slow machine may need a time slice for that
		err = vain(func() { others(); b.Write([]byte("x")) })
	}
	if err != nil || leaves != 1 || a.fd.r.spins.long != 0 {
		t.Errorf("Read = %v, it left the CPU of its peer %d times, and %d waits were long", err, leaves, a.fd.r.spins.long)
	}
	if a.fd.polled.Load() != nil && !polled {
		t.Error("it joined the poller though the peer had answered")
	}
	if err := vain(others); !errors.Is(err, os.ErrDeadlineExceeded) || leaves != 0 || a.fd.r.spins.long != 1 {
		t.Errorf("Read = %v, it left a CPU that others wait for %d times, and %d waits were long", err, leaves, a.fd.r.spins.long)
	}
	slice := func() {
		for begun := now(); now()-begun < 2*int64(sliceLost); {
		}
	}
	if err := vain(func() { slice(); b.Write([]byte("x")) }); err != nil || leaves != 0 {
		t.Errorf("Read = %v, and it left a CPU of which others had a time slice %d times", err, leaves)
	}
	clock := spinning.clock
	defer func() { spinning.clock = clock }()
	spinning.clock = func() int64 { return 0 } // as if the yield took no time
	if err := vain(func() {}); !errors.Is(err, os.ErrDeadlineExceeded) || leaves != 0 {
		t.Errorf("Read = %v, and it left a CPU that nobody waits for %d times", err, leaves)
	}
}

// What a wait takes that yields in vain before it parks is not how long one takes that parks at
// once.
func TestYieldInVainDoesNotCountAsParkedAtOnce(t *testing.T) {
	a, b := connected(t)
	defer forget()
	for _, yields := range []bool{true, false} {
		yielded := false
		yieldBy(t, func() { yielded = true })
		forget()
		h := &a.fd.r
		h.spins, h.yields, h.parking = backoff{waits: youngWaits, skip: 1}, yielder{}, nil
		if !yields {
			h.yields.backoff = backoff{waits: youngWaits, skip: 1}
		}
		if err := a.fd.acquire(h); err != nil {
			t.Fatal(err)
		}
		_, err := a.fd.run(h, &op{call: opOther, other: func(sys int) (result, error) {
			if h.parking != nil && h.parking.tries == 1 { // the poller's first: what comes now wakes it
				b.Write([]byte("x"))
				return result{}, syscall.EAGAIN
			}
			return receive(&op{p: make([]byte, 1)}, sys)
		}})
		a.fd.release(h)
		if err != nil || yielded != yields || yields && h.yields.parked != 0 {
			t.Errorf("run = %v, it yielded: %t, and one that parks takes %v", err, yielded, time.Duration(h.yields.parked.get()))
		}
	}
}

// A wait that spins in vain and then parks for long is one long wait, not two.
func TestSpinInVainCountsOnce(t *testing.T) {
	a, b := connected(t)
	defer forget()
	neverYield(t)
	const limit = 100 * time.Microsecond
	a.SetSpin(limit)
	for tries := 0; a.fd.r.spins.debt == 0 || a.fd.r.spins.long == 0; tries++ { // on a slow machine the answer may come first
		if tries == 100 {
			t.Fatal("no wait spins in vain")
		}
		forget()
		a.fd.r.spins, a.fd.waited = backoff{}, now()+int64(time.Hour)
		answer := time.AfterFunc(10*max(limit, parkedMax), func() { b.Write([]byte("x")) })
		if _, err := a.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		answer.Stop()
	}
	if n := a.fd.r.spins.long; n != 1 {
		t.Errorf("%d waits were long", n)
	}
}

// An Accept that spins gives way while a connection may not be served yet, but not at once.
func TestAcceptGivesWayToThoseThatServe(t *testing.T) {
	defer forget()
	l, err := ListenConfig{Spin: 10 * time.Millisecond}.Listen(Path(t.TempDir() + "/s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := l.listener.fd
	for _, unserved := range []bool{true, false} {
		yields := 0
		yieldBy(t, func() { yields++ })
		var begun, first int64
		for wait, tries := 50*time.Millisecond, 0; tries < 3 || unserved && yields < 2 && wait < time.Second; wait *= 2 { // a slow machine may not spin in time
			forget()
			f.r.spins, f.waited, tries, yields, first = backoff{}, now()+int64(time.Hour), 0, 0, 0
			f.anyUnserved.Store(unserved)
			if err := f.setDeadline(time.Now().Add(wait), reading); err != nil {
				t.Fatal(err)
			}
			if err := f.acquire(&f.r); err != nil {
				t.Fatal(err)
			}
			begun = now()
			_, err := f.run(&f.r, &op{call: opOther, other: func(int) (result, error) {
				if tries++; yields == 1 && first == 0 {
					first = now()
				}
				return result{}, syscall.EAGAIN
			}})
			f.release(&f.r)
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
		switch {
		case unserved && yields < 2:
			t.Errorf("it gives way %d times while a connection may not be served", yields)
		case unserved && first-begun < int64(serveTime):
			t.Errorf("it gives way after %d ns", first-begun)
		case !unserved && yields > 2: // two are at the end of the spin
			t.Errorf("it gives way %d times though all are served", yields)
		}
	}
}

// However long a spin may take, what it gives away does not end it at once.
func TestAcceptThatMaySpinForEver(t *testing.T) {
	l, err := ListenConfig{Spin: math.MaxInt64}.Listen(Path(t.TempDir() + "/s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := l.listener.fd
	yieldBy(t, func() {})
	forget()
	f.r.spins, f.waited = backoff{}, now()+int64(time.Hour)
	f.anyUnserved.Store(true)
	if err := f.setDeadline(time.Now().Add(10*time.Second), reading); err != nil {
		t.Fatal(err)
	}
	if err := f.acquire(&f.r); err != nil {
		t.Fatal(err)
	}
	defer f.release(&f.r)
	begun := now()
	_, err = f.run(&f.r, &op{call: opOther, other: func(int) (result, error) {
		if now()-begun < 4*int64(serveTime) {
			return result{}, syscall.EAGAIN
		}
		return result{}, nil
	}})
	if joined := f.polled.Load() != nil; err != nil || joined {
		t.Errorf("run = %v, and it joined the poller: %t", err, joined)
	}
}

// What the last attempt of a spin returns is not lost.
func TestSpinThatSucceedsAtItsEnd(t *testing.T) {
	const limit = 2 * time.Millisecond
	l, err := ListenConfig{Spin: limit}.Listen(Path(t.TempDir() + "/s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer forget()
	f := l.listener.fd
	for range 5 {
		var yielded int64
		yieldBy(t, func() {
			for yielded = now(); now()-yielded < (giveShare+1)*int64(limit); {
			}
		})
		forget()
		f.r.spins, f.waited = backoff{}, now()+int64(time.Hour)
		f.anyUnserved.Store(true)
		if err := f.acquire(&f.r); err != nil {
			t.Fatal(err)
		}
		got, tries := 0, 0
		done, err := f.run(&f.r, &op{call: opOther, other: func(int) (result, error) {
			if tries++; yielded == 0 || got == 0 && tries%2 == 0 {
				return result{}, syscall.EAGAIN
			}
			got++
			return result{n: got}, nil
		}})
		f.release(&f.r)
		if err != nil || done.n != 1 || got != 1 {
			t.Fatalf("of %d results the caller got number %d, %v", got, done.n, err)
		}
	}
}

// A read that finds data does not yield, whatever those before it did.
func TestReadOfWhatIsThereDoesNotYield(t *testing.T) {
	a, b := connected(t)
	a.SetSpin(time.Second)
	yieldBy(t, func() { t.Error("it yields") })
	for range 10 {
		if _, err := b.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		a.fd.r.spins = backoff{waits: youngWaits, skip: skipMax}
		a.fd.r.expectPark = expectParkMax
		if _, err := a.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// parkOnce reads a byte that write writes when the read is about to park.
func parkOnce(t *testing.T, c *Conn, write func()) {
	t.Helper()
	h := &c.fd.r
	h.expectPark = 0
	if err := c.fd.acquire(h); err != nil {
		t.Fatal(err)
	}
	defer c.fd.release(h)
	tries, p := 0, make([]byte, 1)
	_, err := c.fd.run(h, &op{call: opOther, other: func(sys int) (result, error) {
		if tries++; tries == 2 { // the poller's first: what comes now wakes it
			write()
			return result{}, syscall.EAGAIN
		}
		return receive(&op{p: p}, sys)
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// An operation that goes through the poller looks first whether there is something only if the two
// before it parked, or if there was nothing a moment ago.
func TestReadLooksFirstIfItIsLikelyToPark(t *testing.T) {
	a, b := connected(t)
	a.SetSpin(-1)
	h := &a.fd.r
	h.expectPark = 1
	for i, c := range []struct{ tried, parks, looks bool }{
		{false, true, false},
		{false, true, false},
		{false, true, true},
		{false, false, true},
		{false, true, false},
		{false, false, false},
		{false, false, false},
		{true, true, true},
	} {
		if c.tried {
			h.expectPark = 0
		}
		if err := a.fd.acquire(h); err != nil {
			t.Fatal(err)
		}
		tries := 0
		_, err := a.fd.run(h, &op{call: opOther, other: func(sys int) (result, error) {
			if tries++; tries == 1 && c.tried {
				return result{}, syscall.EAGAIN
			}
			if h.parking.tries == 1 && c.parks {
				b.Write([]byte("x"))
				return result{}, syscall.EAGAIN
			}
			return result{}, nil
		}})
		a.fd.release(h)
		if err != nil {
			t.Fatal(err)
		}
		if h.parking.looks != c.looks {
			t.Errorf("operation %d: looks first: %t, want %t", i+1, h.parking.looks, c.looks)
		}
	}
}

// The buffers of an operation that parked are the caller's again when it has ended.
func TestReadThatParkedLetsItsBufferGo(t *testing.T) {
	for what, end := range map[string]func(a, b *Conn){
		"data":         func(_, b *Conn) { b.Write([]byte("x")) },
		"the deadline": func(a, _ *Conn) { a.SetReadDeadline(time.Unix(1, 0)) },
		"the end":      func(_, b *Conn) { b.Close() },
		"Close":        func(a, _ *Conn) { a.fd.closeLater() },
	} {
		a, b := connected(t)
		a.SetSpin(-1)
		ended := make(chan struct{})
		go func() {
			a.Read(make([]byte, 10))
			close(ended)
		}()
		for a.fd.polled.Load() == nil {
			runtime.Gosched()
		}
		end(a, b)
		<-ended
		a.fd.r.mu.Lock()
		if o := &a.fd.r.parking.op; o.p != nil || o.oob != nil || o.iov != nil || o.other != nil {
			t.Errorf("after a Read that %s ended its arguments are still there", what)
		}
		a.fd.r.mu.Unlock()
	}
}

// It is remembered how long a wait takes that parks at once, unless it is long.
func TestReadThatParksIsMeasured(t *testing.T) {
	a, b := connected(t)
	a.SetSpin(time.Second)
	neverYield(t)
	park := func(pause time.Duration) {
		a.fd.r.spins = backoff{waits: youngWaits, skip: skipMax}
		parkOnce(t, a, func() {
			time.Sleep(pause)
			b.Write([]byte("x"))
		})
	}
	park(2 * parkedMax)
	if a.fd.r.yields.parked != 0 {
		t.Error("a long wait counts")
	}
	fastest := time.Hour
	for range 100 { // a slow machine takes long for some
		begun := time.Now()
		if park(0); a.fd.r.yields.parked != 0 {
			return
		}
		fastest = min(fastest, time.Since(begun))
	}
	if fastest > parkedMax {
		t.Skipf("the fastest of them took %v here", fastest)
	}
	t.Error("no wait that parked counts")
}

// The wait after one of a stream begins when that one has ended, not when one before it has.
func TestSpinAfterAWaitOfAStream(t *testing.T) {
	a, b := connected(t)
	const limit = 10 * time.Second
	a.SetSpin(limit)
	if _, err := b.Write(make([]byte, streamMin)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a, make([]byte, streamMin)); err != nil {
		t.Fatal(err)
	}
	a.fd.waited = now() - int64(2*limit)
	if spins(t, a.fd, &a.fd.r) {
		t.Error("a wait in a stream spins")
	}
	if !spins(t, a.fd, &a.fd.r) {
		t.Error("a wait that follows one of a stream at once does not spin")
	}
}

// An end that polls by deadlines goes through the poller at once.
func TestConnReadThatTimesOutExpectsToPark(t *testing.T) {
	a, _ := connected(t)
	a.SetSpin(-1)
	a.fd.r.expectPark = expectParkMax
	for range expectParkMax + 1 {
		a.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	if got := a.fd.r.expectPark; got != expectParkMax {
		t.Errorf("after reads that had to park, %d of %d expect it", got, expectParkMax)
	}
}

func TestSpinNotInACrowd(t *testing.T) {
	a, _ := connected(t)
	a.SetSpin(time.Minute)
	spinning.crowd.begun.Store(now() + int64(time.Hour)) // so that the verdict holds
	defer spinning.crowd.begun.Store(now())
	spinning.crowd.left.Store(1)
	if a.fd.maySpin(&a.fd.r) {
		t.Error("a wait spins in a crowd")
	}
	forget()
	if !a.fd.maySpin(&a.fd.r) {
		t.Error("a wait does not spin without a crowd")
	}
}

// Many that begin to wait at once are a crowd, though none of their waits has ended.
func TestSpinNotWhereManyHaveJustParked(t *testing.T) {
	neverYield(t)
	before := runtime.GOMAXPROCS(2)
	spinning.measure()
	defer func() { runtime.GOMAXPROCS(before); spinning.measure() }()
	ends := make([][2]*Conn, 2*(2*crowdParked+1))
	for i := range ends {
		a, b := connected(t)
		a.SetSpin(spinDefault)
		b.SetSpin(spinDefault)
		ends[i] = [2]*Conn{a, b}
	}
	defer forget()
	until := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !done(); runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	spinning.crowd.window.Store(1 << 60) // so that it does not end
	parked := func() int32 { return spinning.crowd.parked[0].Load() + spinning.crowd.parked[1].Load() }
	var reads sync.WaitGroup
	for i, pair := range ends {
		reads.Go(func() { pair[0].Read(make([]byte, 1)) })
		want := min(i+1, 2*crowdParked+1)
		until("a wait does not park", func() bool { return parked() >= int32(want) })
		idle := ends[0][1].fd
		if i < 2*crowdParked && !idle.canSpin(&idle.r) {
			t.Fatalf("after %d have parked no other spins", i+1)
		}
		until("others spin though many have parked", func() bool { return i < 2*crowdParked || !idle.canSpin(&idle.r) })
	}
	for _, pair := range ends {
		pair[1].Write([]byte("x"))
	}
	reads.Wait()
	if n := parked(); n != 0 {
		t.Errorf("%d count as parked after all have ended", n)
	}
}

// Neither the descriptors that a listener returns nor what is only looked at are bytes of
// a stream.
func TestSpinTellsAStreamByBytes(t *testing.T) {
	l, err := Listen(Path(t.TempDir() + "/s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, _ := connected(t)
	for what, f := range map[string]*fd{"accepted": l.listener.fd, "looked": c.fd} {
		if err := f.acquire(&f.r); err != nil {
			t.Fatal(err)
		}
		o := op{call: opOther, other: func(int) (result, error) { return result{n: streamMin}, nil }}
		if f == c.fd {
			o.flags = syscall.MSG_PEEK
		}
		_, err := f.run(&f.r, &o)
		f.release(&f.r)
		if err != nil || f.heard != 0 {
			t.Errorf("%s: %d bytes were heard, %v", what, f.heard, err)
		}
	}
}

func TestCrowdCountsEachWait(t *testing.T) {
	a, b := connected(t)
	for _, limit := range []time.Duration{-1, time.Minute} {
		a.SetSpin(limit)
		forget()
		a.fd.r.turnout.left = crowdShare
		if err := a.fd.acquire(&a.fd.r); err != nil {
			t.Fatal(err)
		}
		tries := 0
		_, err := a.fd.run(&a.fd.r, &op{call: opOther, other: func(int) (result, error) {
			switch tries++; {
			case tries == 1:
				return result{}, syscall.EAGAIN
			case tries == 2 && limit < 0: // the poller's first: what comes now wakes it
				if _, err := b.Write([]byte{1}); err != nil {
					return result{}, err
				}
				return result{}, syscall.EAGAIN
			}
			return result{}, nil
		}})
		a.fd.release(&a.fd.r)
		if err != nil {
			t.Fatal(err)
		}
		if n := crowdShare - a.fd.r.turnout.left; n != 1 {
			t.Errorf("with SetSpin(%v) %d waits are counted, want 1", limit, n)
		}
		if limit < 0 && a.fd.r.spins != (backoff{}) {
			t.Error("a wait that cannot spin is one that others learn from")
		}
	}
}

func TestSpinFieldsReachTheConnections(t *testing.T) {
	callsTake(t, dearCall-1)
	addr := Path(t.TempDir() + "/s")
	l, err := ListenConfig{Spin: -1}.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dialer{Spin: time.Millisecond}.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, _ := connected(t)
	for f, want := range map[*fd]int64{l.listener.fd: 0, s.fd: 0, c.fd: int64(time.Millisecond), a.fd: spinByDefault} {
		if got := f.spinLimit(); got != want {
			t.Errorf("the bound is %d, want %d", got, want)
		}
	}
}

// stepped returns t with another time on the clock of the wall and the same monotonic
// reading, as time.Now does after the clock was set.
func stepped(t *testing.T, at time.Time, by time.Duration) time.Time {
	t.Helper()
	*(*uint64)(unsafe.Pointer(&at)) += uint64(by/time.Second) << 30 // the seconds in Time.wall
	return at
}

func TestConnDeadlineDoesNotMoveWithTheWallClock(t *testing.T) {
	at := time.Now()
	for _, by := range []time.Duration{0, 8 * time.Hour, -8 * time.Hour} {
		set := stepped(t, at, by)
		if set.Sub(at) != 0 || set.Round(0).Sub(at.Round(0)) != by {
			t.Skip("this version of Go has another time.Time")
		}
		want := expiryAt(at.Add(time.Minute), at)
		for what, deadline := range map[string]time.Time{
			"with":    set.Add(time.Minute),
			"without": set.Round(0).Add(time.Minute),
		} {
			if got := expiryAt(deadline, set); got != want {
				t.Errorf("%s a monotonic reading, the clock set by %v, a deadline in a minute moves by %v",
					what, by, time.Duration(got-want))
			}
		}
	}
}

func TestConnDeadlineMayBeAnyTime(t *testing.T) {
	at := time.Now()
	for _, past := range []time.Time{{}, time.Unix(0, 0), time.Unix(-1<<60, 0), clockStart, at} {
		if e := expiryAt(past, at); e < 1 || e > now() {
			t.Errorf("%v is not over", past)
		}
	}
	for _, future := range []time.Time{at.Add(time.Hour), at.Add(1<<63 - 1), time.Unix(1<<60, 0)} {
		h := &ioState{}
		h.expiry.Store(expiryAt(future, at))
		if h.expired() || time.Until(h.deadline()) < 59*time.Minute {
			t.Errorf("%v is over", future)
		}
	}
}

func TestWriteBuffersForgetsWhatWasWritten(t *testing.T) {
	p := [][]byte{{1}, {2}, {3}}
	iov := gather(gather(nil, p), p[:1])
	for i, v := range iov[:len(p)] {
		if (v.base == nil) != (i > 0) {
			t.Errorf("after one buffer that follows three, number %d is %v", i, v)
		}
	}
}

// A reader that makes room in time lets no write park, and Close wakes only those that do.
func TestConnCloseEndsAWriteThatNeverParks(t *testing.T) {
	const (
		closeAt = 4 << 20                     // bytes, when Close is called
		tooLong = closeAt + streamMax + 4<<20 // when it must have had its effect: after one call more, and what is in the queue
	)
	p := make([]byte, 1<<20)
	for way, write := range map[string]func(c *Conn) error{
		"Write": func(c *Conn) error { _, err := c.Write(make([]byte, tooLong+1<<20)); return err },
		"WriteBuffers": func(c *Conn) error {
			bufs := slices.Repeat(net.Buffers{p}, 1<<20)
			_, err := c.WriteBuffers(&bufs)
			return err
		},
	} {
		a, b := connected(t)
		a.SetSpin(time.Minute)
		b.SetSpin(-1) // or it takes the place of the one that spins
		if err := b.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		written := make(chan error, 1)
		go func() { written <- write(a) }()
		var got int64
		closed := make(chan error, 1)
		for q := make([]byte, 32<<10); ; {
			n, err := b.Read(q)
			if before := got; before < closeAt && before+int64(n) >= closeAt {
				f := a.fd
				go func() { closed <- a.Close() }()
				for !f.closing() { // from then on it is the write's to see it
					runtime.Gosched()
				}
			}
			got += int64(n)
			if err == io.EOF || got > tooLong {
				break
			} else if err != nil {
				t.Fatal(way, err)
			}
		}
		if got > tooLong {
			t.Errorf("%s: Close waits while %d bytes are written", way, got)
			b.Close()
		} else if err := <-written; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", way, err)
		}
		if err := <-closed; err != nil {
			t.Errorf("%s: %v", way, err)
		}
	}
}

// winning makes the next spin of the read half the last that it takes to leave.
func winning(f *fd) { f.r.spins = backoff{waits: youngWaits, wins: longRunOfWins - 1} }

// spinOnce is a read that has to wait, but not long.
func spinOnce(t *testing.T, f *fd) {
	t.Helper()
	f.setSpin(10 * time.Second)
	forget()
	winning(f)
	if err := f.acquire(&f.r); err != nil {
		t.Fatal(err)
	}
	defer f.release(&f.r)
	tried := false
	_, err := f.run(&f.r, &op{call: opOther, other: func(int) (result, error) {
		if !tried {
			tried = true
			return result{}, syscall.EAGAIN
		}
		return result{}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// A connection whose first wait is likely to park is with the poller before its first use, without
// another goroutine.
func TestDialAndAcceptJoinThePollerIfTheyAreLikelyToPark(t *testing.T) {
	neverYield(t)
	for _, c := range []struct {
		spin   time.Duration
		young  backoff
		polled bool
	}{
		{-1, backoff{}, true},
		{time.Second, backoff{}, false},
		{time.Second, backoff{skip: 1}, true},
	} {
		l, err := ListenConfig{Spin: c.spin}.Listen(Path(t.TempDir() + "/s"))
		if err != nil {
			t.Fatal(err)
		}
		forget()
		spinning.spins.young.Store(uint64(c.young.skip) << 16)
		dialed, err := Dialer{Spin: c.spin}.DialContext(context.Background(), l.Addr().(Addr))
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		for what, end := range map[string]*Conn{"dialed": dialed, "accepted": accepted} {
			if polled := end.fd.polled.Load() != nil; polled != c.polled {
				t.Errorf("a connection that was %s is with the poller: %t, with Spin %v and %d waits that do not spin", what, polled, c.spin, c.young.skip)
			}
			end.Close()
		}
		l.Close()
	}
	forget()
}

// Where connections that were accepted or dialed end without having parked, the next of them join
// the poller when they do.
func TestDialDoesNotJoinThePollerWhereNoConnectionParks(t *testing.T) {
	neverYield(t)
	defer forget()
	l, err := Listen(Path(t.TempDir() + "/s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	joined := func(use func(*Conn)) bool {
		t.Helper()
		c, err := Dialer{Spin: -1}.DialContext(context.Background(), l.Addr().(Addr))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		polled := c.fd.polled.Load() != nil
		use(c)
		a, err := l.AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		return polled
	}
	idle := func(*Conn) {}
	forget()
	for n := 0; joined(idle); n++ {
		if n > unparkedMax {
			t.Fatalf("after %d connections that did not park, the next joins the poller at once", n)
		}
	}
	if joined(func(c *Conn) {
		for wait := time.Millisecond; c.fd.r.parking == nil || !c.fd.r.parking.once; wait *= 2 { // a slow machine may not park in time
			c.SetReadDeadline(time.Now().Add(wait))
			c.Read(make([]byte, 1))
		}
	}) {
		t.Error("a connection joins the poller at once that should not")
	}
	if !joined(idle) {
		t.Error("after one that parked, the next does not join the poller at once")
	}
}

func TestSpinThatSucceedsLeavesThePoller(t *testing.T) {
	a, b := connected(t)
	if _, err := a.fd.join(nil); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Hour)
	if err := a.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	spinOnce(t, a.fd)
	if a.fd.polled.Load() != nil {
		t.Fatal("it did not leave")
	}
	// And joins again, with the deadline that it has.
	a.SetSpin(-1)
	read := make(chan error)
	go func() {
		_, err := io.ReadFull(a, make([]byte, 3))
		read <- err
	}()
	if _, err := b.Write([]byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Error(err)
	}
	if got := a.fd.r.deadline(); got.Sub(deadline).Abs() > time.Microsecond {
		t.Errorf("the deadline is %v, want %v", got, deadline)
	}

	// Not if somebody may know the number, nor while somebody else uses it.
	pinned, _ := connected(t)
	if _, err := pinned.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	shared, _ := connected(t)
	if err := shared.fd.incref(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Conn{pinned, shared} {
		if _, err := c.fd.join(nil); err != nil {
			t.Fatal(err)
		}
		sys := c.fd.sys
		spinOnce(t, c.fd)
		if c.fd.polled.Load() == nil || c.fd.sys != sys {
			t.Error("it left")
		}
	}
	shared.fd.decref()
}

func TestSpinThatLeavesThePollerDisturbsNobody(t *testing.T) {
	a, b := connected(t)
	const size = 64 << 10
	var all sync.WaitGroup
	all.Go(func() {
		p := make([]byte, 100)
		for n := 0; n < size; n += len(p) {
			if _, err := b.Write(p); err != nil {
				t.Error(err)
			}
		}
		b.CloseWrite()
	})
	stop := make(chan struct{})
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := a.SetWriteDeadline(time.Now().Add(time.Hour)); err != nil {
				t.Error(err)
			}
			if _, err := a.Write([]byte{1}); err != nil {
				t.Error(err)
			}
		}
	})
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		io.Copy(io.Discard, b)
	}()
	p := make([]byte, 77)
	for got := 0; ; {
		a.fd.join(nil)
		n, err := a.Read(p)
		if err == io.EOF {
			if got < size {
				t.Errorf("%d bytes of %d", got, size)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got += n
		if err := a.fd.incref(); err != nil {
			t.Fatal(err)
		}
		a.fd.leavePoller()
		a.fd.decref()
	}
	close(stop)
	all.Wait()
	a.CloseWrite()
	<-drained
}

// Opens of FIFOs that another process holds in the kernel are few, even with contexts that never end.
func TestOpenFIFOBesideOpensThatAreHeld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := kern.mkfifo(path, 0o600); err != nil {
		t.Skip(err)
	}
	var held sync.WaitGroup
	release := make(chan struct{})
	inside := make(chan struct{})
	for range closersMax {
		held.Go(func() {
			inTurn(&retryTimer{ctx: context.Background()}, openTurns, func() error { inside <- struct{}{}; <-release; return nil })
		})
	}
	for range closersMax {
		<-inside
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	for _, keep := range []bool{false, true} {
		if _, err := (FIFOConfig{KeepOpen: keep}).OpenReader(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("KeepOpen %t: OpenReader: %v", keep, err)
		}
	}
	close(release)
	held.Wait()
	r, err := FIFOConfig{KeepOpen: true}.OpenReader(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if n := len(openTurns); n != closersMax {
		t.Errorf("%d turns are there", n)
	}
}

// Those that wait for the other side hold up no other open.
func TestOpenFIFOBesideManyThatWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := kern.mkfifo(path, 0o600); err != nil {
		t.Skip(err)
	}
	const n = 2 * closersMax
	waiting, end := context.WithCancel(context.Background())
	defer end()
	errs := make(chan error, n)
	for range n {
		go func() {
			r, err := OpenFIFOReader(waiting, path)
			if err == nil {
				r.Close()
			}
			errs <- err
		}()
	}
	w, err := OpenFIFOWriter(waiting, path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// Sockets that were closed and wait behind closes that sleep do not take all descriptors: no client is
// accepted until there are fewer.
func TestAcceptWaitsWhileClosedSocketsTakeDescriptors(t *testing.T) {
	l, err := Listen(Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(l.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	release := holdClosers(&socketEnds, false)
	l.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := l.AcceptConn(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Accept: %v", err)
	}
	l.SetDeadline(time.Time{})
	accepted := make(chan error)
	accept := func() {
		s, err := l.AcceptConn()
		if err == nil {
			s.Close()
		}
		accepted <- err
	}
	go accept()
	release()
	if err := <-accepted; err != nil {
		t.Errorf("Accept: %v", err)
	}
	defer holdClosers(&socketEnds, false)()
	go accept()
	l.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
}

// ---------------------------------------------------------------------------
// Clients in turn

// Accept makes way for the goroutine of the connection before (acceptServing), but not if
// that connection was served and closed.
func TestListenerMakesWayForUnservedConnectionsAlone(t *testing.T) {
	l, err := Listen(Path(filepath.Join(t.TempDir(), "s")))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 {
		client, err := Dial(l.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		c, err := l.AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		unserved := l.end().anyUnserved
		if !unserved.Load() {
			t.Error("a connection is served before anybody could serve it")
		}
		c.Close()
		if unserved.Load() {
			t.Error("a connection that was closed is not served")
		}
	}
}

// An error of a doorbell that is not its end is no end of the stream, which would be taken for whole.
func TestSharedDoorbellErrorIsNoEnd(t *testing.T) {
	broken := func(t *testing.T) *fd { // neither data nor its end comes from a socket that listens
		t.Helper()
		l, err := Listen(Addr{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		sys, err := kern.dup(l.listener.fd.sys)
		if err != nil {
			t.Fatal(err)
		}
		return newFD(sys) // a pipe to the poller, so that it is not asked for messages
	}
	fails := func(t *testing.T, c *SharedConn) {
		t.Helper()
		for range 2 {
			if _, err := c.Read(make([]byte, 8)); err == nil || err == io.EOF {
				t.Errorf("Read: %v", err)
			}
		}
	}
	t.Run("Await", func(t *testing.T) {
		_, b := sharedInMemory(t)
		was := b.r.bell
		defer was.close()
		b.r.bell = broken(t)
		fails(t, b)
	})
	t.Run("Ring", func(t *testing.T) {
		a, b := sharedInMemory(t)
		reading := make(chan error)
		go func() { _, err := b.Read(make([]byte, 8)); reading <- err }()
		waitForEpoch(t, b)
		was := a.w.far
		r, w, err := pipe() // which is no socket
		if err != nil {
			t.Fatal(err)
		}
		defer r.close()
		a.w.far = w
		a.Write([]byte("x"))
		fails(t, a)
		was.close() // ends the wait of b
		<-reading
	})
}

// A peer can send many bytes by a doorbell at once. They do not cost the end that takes them a call for
// every few.
func TestSharedDoorbellBytesAreTakenTogether(t *testing.T) {
	a, b := sharedInMemory(t)
	a.SetSpin(-1)
	bell := b.w.far.sys
	sent, err := kern.sendmsg(bell, make([]byte, 16<<10), nil, dontWait|noSignal)
	if err != nil {
		t.Fatal(err)
	}
	page, before := a.ownMem.control(), a.r.epoch
	read := make(chan error, 1)
	go func() { _, err := a.Read(make([]byte, 1)); read <- err }()
	// Behind them comes one more byte, and then a byte in the ring. At most three calls take all of it.
	for page.rwait.Load()-before <= 1 {
		runtime.Gosched()
	}
	if _, err := kern.sendmsg(bell, zeroByte[:], nil, dontWait|noSignal); err != nil {
		t.Fatal(err)
	}
	for page.rwait.Load()-before <= 3 {
		runtime.Gosched()
	}
	if _, err := b.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if epochs := (a.r.epoch - before) / 2; epochs > 4 {
		t.Errorf("%d bytes of a doorbell cost %d epochs", sent, epochs)
	}
}

// Where one goroutine runs at a time, and many have just begun, each lets the others have their turn
// before it spins or yields, so that the peer answers all of them at once.
func TestYoungWaitLetsOthersRunIfOneRunsAtATime(t *testing.T) {
	defer spinning.measure()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer forget()
	a, _ := connected(t)
	yieldBy(t, func() {})
	h := &a.fd.r
	if err := a.fd.acquire(h); err != nil {
		t.Fatal(err)
	}
	defer a.fd.release(h)
	for range 10 { // the runtime takes the one that gives way again, once in 61 times
		forget()
		h.spins, h.yields = backoff{}, yielder{}
		spinning.measure()
		var othersRan atomic.Bool
		go othersRan.Store(true)
		attempts := 0
		_, err := a.fd.run(h, &op{call: opOther, other: func(int) (result, error) {
			if attempts++; !othersRan.Load() && attempts < 3 {
				return result{}, syscall.EAGAIN
			}
			return result{n: 1}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if attempts <= 2 {
			return
		}
	}
	t.Error("others did not run before the second attempt")
}
