package ipc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf16"
	"unsafe"
)

// FuzzRecord reads records of any content. It opens nothing and closes nothing.
func FuzzRecord(f *testing.F) {
	r := record{pid: 1, id: [16]byte{1, 2, 3}, files: []uint32{4, 8}}
	f.Add(r.bytes())
	f.Add(append(r.bytes(), "data"...))
	f.Add(r.bytes()[:recordHead])
	f.Add([]byte(recordMark))
	f.Add([]byte{})
	f.Add(bytes.Replace(r.bytes(), []byte{recordVersion, 0, 0, 0}, []byte{1, 0, 0, 0}, 1))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, size, err := parseRecord(p)
		switch {
		case err != nil:
			if r != nil || size != 0 || !errors.Is(err, errors.ErrUnsupported) {
				t.Fatalf("%v, %d, %v", r, size, err)
			}
		case r == nil:
			if size != 0 {
				t.Fatalf("nothing is %d bytes long", size)
			}
		default:
			if n := len(r.files); n < 1 || n > maxFiles || size > recordMax {
				t.Fatalf("%d files in %d bytes", n, size)
			}
			if !bytes.Equal(r.bytes(), p[:size]) {
				t.Fatalf("%q is written %q", p[:size], r.bytes())
			}
		}
	})
}

func TestInheritTokensAreHandles(t *testing.T) {
	for text, want := range map[string]endToken{
		"4":                         {handle: 4},
		"4294967292":                {handle: 4294967292},
		"4:remote":                  {handle: 4, remote: true},
		"4@1f":                      {handle: 4, id: 0x1f},
		"4@1f:2:inheritable:remote": {handle: 4, id: 0x1f, backlog: 2, inherit: true, remote: true},
		"4@":                        {},
		"4@0":                       {},
		"4@01":                      {},
		"4@1F":                      {},
		"4:1@1f":                    {},
		"4:remote:inheritable":      {},
		"8:1":                       {handle: 8, backlog: 1},
		"8:254:remote":              {handle: 8, backlog: 254, remote: true},
		"":                          {},
		"0":                         {},
		"0:4":                       {},
		"-4":                        {},
		"+4":                        {},
		"04":                        {},
		"0x4":                       {},
		" 4":                        {},
		"4 ":                        {},
		"4294967296":                {},
		"4:":                        {},
		"4:0":                       {},
		"4:01":                      {},
		"4:255":                     {},
		"4:256":                     {},
		"4:-1":                      {},
		"4:1:1":                     {},
		"4:remote:1":                {},
		"4:remote:":                 {},
		"4::remote":                 {},
		"4:Remote":                  {},
		":4":                        {},
		":remote":                   {},
		"remote":                    {},
		"4:1:remote:":               {},
		"4:remote:remote":           {},
		"4:pair":                    {handle: 4, pair: true},
		"4:remote:pair":             {handle: 4, remote: true, pair: true},
		"4:pair:remote":             {},
		"4:pair:pair":               {},
	} {
		if got := parseToken(text); got != want || (tokenDescriptors(text) != nil) != (want != endToken{}) {
			t.Errorf("%q is %+v", text, got)
		}
	}
}

// internalStory is the watchdog of an internal test.
func internalStory(t *testing.T) {
	dog := time.AfterFunc(5*time.Minute, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { dog.Stop() })
}

func TestPipeRightsAreNoMoreThanNeeded(t *testing.T) {
	const genericRead = 0x120089 // FILE_GENERIC_READ: what a pipe grants everybody by default
	for _, c := range []struct {
		ends     direction
		messages bool
		rights   uint32
	}{
		{reading, false, 0x120081},
		{reading, true, 0x120181},
		{writing, false, 0x120082},
		{reading | writing, false, 0x120083},
		{reading | writing, true, 0x120183},
	} {
		got := rightsOf(c.ends, c.messages)
		if got != c.rights || got&^ClientRights != 0 {
			t.Errorf("%v, %v: %#x, want %#x", c.ends, c.messages, got, c.rights)
		}
	}
	if extra := rightsOf(reading, false) &^ genericRead; extra != 0 {
		t.Errorf("a reader asks for %#x more than FILE_GENERIC_READ", extra)
	}
}

func TestSecurityDescriptorAccessSIDsAreNarrow(t *testing.T) {
	const user, pkg = "S-1-5-21-1-2-3-1001", "S-1-15-2-1-2-3-4-5-6-7"
	for _, c := range []struct{ packages, restricting, want []string }{
		{nil, nil, []string{user}},
		{[]string{pkg}, nil, []string{user, pkg}},
		{nil, []string{"S-1-1-0", "S-1-5-5-0-99", "S-1-5-33", "S-1-5-80-1-2-3-4-5", "S-1-5-32-545"},
			[]string{user, "S-1-5-5-0-99", "S-1-5-80-1-2-3-4-5"}},
		{nil, []string{"S-1-5-12", "S-1-5-21-1-2-3-513"}, []string{user}},
	} {
		if got := accessSIDs(user, c.packages, c.restricting); !slices.Equal(got, c.want) {
			t.Errorf("%v, %v: %v, want %v", c.packages, c.restricting, got, c.want)
		}
	}
}

// Without a DACL everybody may serve a pipe, and the SID of some kinds of entries is not where
// that of others is.
func TestSecurityDescriptorWhoMayServe(t *testing.T) {
	own, err := ownSIDs()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		sddl string
		kind int // of the entry; -1: as it was parsed
		open bool
	}{
		{"O:SY", -1, true},
		{"O:SYD:P", -1, false},
		{"O:SYD:P(A;;FA;;;SY)", -1, false},
		{"O:SYD:P(A;;FA;;;SY)", 4, true},
		{"O:SYD:P(A;;FA;;;SY)", 5, true},
		{"O:SYD:P(A;;FA;;;SY)", 6, false}, // it denies
		{"O:SYD:P(A;;FA;;;SY)", 9, false},
		{"O:SYD:P(A;;FA;;;SY)", 11, true},
		{"O:SYD:P(A;;FA;;;S-1-5-5-0-1)", -1, true}, // a logon of whom?
	} {
		sd, err := ParseSDDL(c.sddl)
		if err != nil {
			t.Fatal(err)
		}
		if c.kind >= 0 {
			sd.raw[sd.word(16)+aclHeader] = byte(c.kind)
		}
		if why := sd.servedBy(sd.Owner(), own); (why != "") != c.open {
			t.Errorf("%s with an entry of kind %d: %q", c.sddl, c.kind, why)
		}
	}
}

func TestListenFreshPipesAreInTheFolderOfApps(t *testing.T) {
	l, err := Listen(Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	defer b.close()
	for _, name := range []string{l.Addr().String()[1:], strings.TrimPrefix(a.pipe, localPrefix), strings.TrimPrefix(b.pipe, localPrefix)} {
		if !strings.HasPrefix(strings.ToUpper(name), `LOCAL\`) {
			t.Errorf("the pipe is %q", name)
		}
	}
}

// A read from another machine is never cancelled because it takes long.
func TestPipeConnRemoteReadsParkAtOnce(t *testing.T) {
	f := &fd{}
	f.setSpin(time.Hour)
	if f.spinBudget() != time.Hour {
		t.Error("a read does not wait in its thread")
	}
	f.remote = true
	if f.spinBudget() != 0 {
		t.Error("a read from another machine waits in its thread")
	}
}

// The process at the other end is known by its time of creation, whatever a clock
// says now.
func TestPeerIsKnownByItsCreation(t *testing.T) {
	born, err := createdAt(currentProcess)
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[*fd]error{
		{peerBorn: born}:     nil,
		{peerBorn: born - 1}: errProcessEnded,
		{peerBorn: born + 1}: errProcessEnded,
		{}:                   errPeerNotSeen, // which is not to say that it has ended
	} {
		if err := f.checkPeer(currentProcess); err != want {
			t.Errorf("born %d, a process born %d: %v, want %v", f.peerBorn, born, err, want)
		}
	}
}

func TestPeerProcessMayOpenItself(t *testing.T) {
	if !mayOpen(currentProcessToken, currentProcess) {
		t.Error("this process may not open itself")
	}
	token, err := tokenOf(currentProcess)
	if err != nil {
		t.Fatal(err)
	}
	defer token.Close()
	if mayOpen(token, 0) {
		t.Error("a process that is none may be opened")
	}
	if level, err := integrityOf(token); level < 0x1000 || err != nil {
		t.Errorf("the level is %#x, %v", level, err)
	}
}

func TestSecurityDescriptorLabelsAreRead(t *testing.T) {
	for sddl, want := range map[string]uint32{
		"D:P(A;;GA;;;WD)S:(ML;;NW;;;LW)":   0x1000,
		"D:P(A;;GA;;;WD)S:(ML;;NWNR;;;HI)": 0x3000,
	} {
		sd, err := ParseSDDL(sddl)
		if err != nil {
			t.Skip("this system reads no labels: ", err)
		}
		var got uint32
		entries, _ := sd.entries(sd.word(12))
		for _, e := range entries {
			got = integrityLevel(e.sid)
		}
		if got != want {
			t.Errorf("%s: %#x, want %#x", sddl, got, want)
		}
	}
}

// arrives makes b receive a file with the data behind it, which becomes a file of os
// when open lets it.
func arrives(b *fd, behind []byte, open func(syscall.Handle) (*os.File, error)) {
	<-inquiries
	b.r.arriving = newArrival([]syscall.Handle{4}, behind)
	b.r.arriving.wrap(open)
}

// Another process may keep the kernel from saying what a file is. RecvFiles gives up
// at its deadline, and the next one gets the files.
func TestRecvFilesIsNotHeldByBusyFiles(t *testing.T) {
	internalStory(t)
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	opened := make(chan *os.File, 2)
	busy := make(chan struct{})
	open := func(syscall.Handle) (*os.File, error) {
		<-busy
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Error(err)
		}
		opened <- f
		return f, nil
	}
	arrives(b, nil, open)
	for range 3 {
		if err := b.setDeadline(time.Now().Add(time.Millisecond), reading); err != nil {
			t.Fatal(err)
		}
		if files, err := b.recvFiles(maxFiles); err != os.ErrDeadlineExceeded {
			t.Fatalf("%v, %v", files, err)
		}
	}
	if err := b.setDeadline(time.Time{}, reading); err != nil {
		t.Fatal(err)
	}
	busy <- struct{}{}
	files, err := b.recvFiles(maxFiles)
	if err != nil || len(files) != 1 || files[0] != <-opened {
		t.Fatalf("%v, %v", files, err)
	}
	files[0].Close()

	// Close does not wait, and the file is closed once it can be.
	arrives(b, nil, open)
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	busy <- struct{}{}
	f := <-opened
	untilFileCloses(f)
}

// Who shares a file with this process may report operations of his own at the port that the
// file has joined, and the runtime does not survive that. So what came from a peer does not
// join, and nothing that is made of it does.
func TestRecvFilesDoNotJoinTheRuntime(t *testing.T) {
	internalStory(t)
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	defer b.close()
	server, client, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer client.close()
	defer server.close()
	if err := a.acquire(limits{}, writing); err != nil {
		t.Fatal(err)
	}
	_, err = a.sendHandles([]syscall.Handle{server.sys}, zeroByte[:], false) // which has no port yet
	a.release(writing)
	if err != nil {
		t.Fatal(err)
	}
	files, err := b.recvFiles(1)
	if err != nil {
		t.Fatal(err)
	}
	defer files[0].Close()
	waitsByEvents(t, files[0])

	// A file that its sender has taken from its port is like one that never had one.
	other, peer, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.close()
	defer other.close()
	h, err := duplicate(other.sys)
	if err != nil {
		t.Fatal(err)
	}
	end, err := adoptOrClose(h, streams, reading|writing)
	if err != nil {
		t.Fatal(err)
	}
	defer end.close()
	end.setSpin(-1) // so that a read parks, if it can
	end.setDeadline(time.Now().Add(time.Millisecond), reading)
	if _, err := end.read(make([]byte, 1)); err != os.ErrDeadlineExceeded {
		t.Error(err)
	}
	if end.canPark.Load() {
		t.Error("an adopted end has joined the runtime")
	}
	f, err := end.dupFile("end")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	waitsByEvents(t, f)

	end.setDeadline(time.Time{}, reading)
	for _, c := range []struct {
		w *fd
		r io.Reader
	}{{peer, readerOf(end.read)}, {peer, f}, {client, files[0]}} {
		if _, err := c.w.write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := c.r.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
}

// waitsByEvents fails the test if the file has joined the runtime's completion port.
func waitsByEvents(t *testing.T, f *os.File) {
	t.Helper()
	if err := f.SetDeadline(time.Time{}); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("it has joined the runtime: %v", err)
	}
}

// A file that has joined the runtime, because its sender took it from the port that it was
// given, is refused, and so are those that came with it.
func TestRecvFilesRefusesAFileThatHasJoined(t *testing.T) {
	internalStory(t)
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	defer b.close()
	null := openNull(t)
	<-inquiries
	b.r.arriving = newArrival([]syscall.Handle{4, 8}, zeroByte[:])
	b.r.arriving.wrap(func(h syscall.Handle) (*os.File, error) {
		if h == 8 {
			return nil, errJoined
		}
		return null, nil
	})
	if files, err := b.recvFiles(2); !errors.Is(err, ErrUntrusted) || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
	untilFileCloses(null)
}

// writesOn writes data at f until f is closed, and returns when some of it is at the other end.
func writesOn(t *testing.T, f, other *fd, data []byte) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f.write(data) }()
	t.Cleanup(func() { f.close(); <-done })
	for {
		if _, there, _, err := peekMessage(other.sys, nil); err != nil {
			t.Fatal(err)
		} else if there > 0 {
			return
		}
		runtime.Gosched()
	}
}

// drainedOf returns how many of the bytes that its peer has written drain has read.
func drainedOf(t *testing.T, f *fd, all int) (n int) {
	t.Helper()
	f.expect(dataFollows)
	rest, p := 0, make([]byte, 64<<10)
	for last := byte(0); last != 'E'; {
		m, err := f.read(p)
		if err != nil {
			t.Fatal(err)
		}
		rest += m
		last = p[m-1]
	}
	return all - rest
}

// How much Close looks through is not the peer's choice.
func TestCloseDrainsNoMoreThanABufferHolds(t *testing.T) {
	hello := helloOf(helloEarly, 0)
	r := record{pid: uint32(os.Getpid()), files: make([]uint32, maxFiles)}
	for i := range r.files {
		r.files[i] = 0x7ffffff0 // no handle
	}
	for name, c := range map[string]struct {
		next  sequel
		piece []byte
		most  int
	}{
		"hellos": {hellosFollow, hello[:], (earlyTimes + 3) * helloSize},
		"files":  {filesFollow, append(r.bytes(), zeroByte[:]...), drainAll + recordMax + 1},
	} {
		t.Run(name, func(t *testing.T) {
			internalStory(t)
			a, b, err := pair(streams)
			if err != nil {
				t.Fatal(err)
			}
			defer a.close()
			data := bytes.Repeat(c.piece, 256<<10/len(c.piece))
			data = append(data, 'E')
			writesOn(t, b, a, data)
			a.expect(c.next)
			a.drain()
			if n := drainedOf(t, a, len(data)); n > c.most || n < len(c.piece) {
				t.Errorf("Close has looked through %d bytes", n)
			}
		})
	}
}

// The server's end of a pair that was adopted again closes the files that nobody received.
func TestCloseOfAnAdoptedServerClosesFiles(t *testing.T) {
	internalStory(t)
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	f, err := a.dupFile("a")
	if err != nil {
		t.Fatal(err)
	}
	c, err := adoptConn(f, streams)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), a.close()); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	send := func() {
		if err := b.sendWithFiles(zeroByte[:], []*os.File{w}); err != nil {
			t.Fatal(err)
		}
	}
	send()
	files, err := c.recvFiles(1)
	if err != nil {
		t.Fatal(err)
	}
	files[0].Close()
	send() // and nobody receives it
	w.Close()
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the file is open: %d, %v", n, err)
	}
}

// replaceCall has the procedure called through what by makes of its address, until the test
// ends. Nobody else may call it when replaceCall begins, or when the test ends.
func replaceCall(t *testing.T, call *syscall.LazyProc, by func(real uintptr) (callback any)) {
	type ( // of package syscall
		proc struct {
			_    *syscall.DLL
			_    string // the name
			addr uintptr
		}
		lazyProc struct {
			mu   sync.Mutex
			name string
			dll  *syscall.LazyDLL
			proc *proc
		}
	)
	real := call.Addr()
	p := (*lazyProc)(unsafe.Pointer(call)).proc
	if p.addr != real {
		t.Fatal("package syscall has changed")
	}
	p.addr = syscall.NewCallback(by(real))
	t.Cleanup(func() { p.addr = real })
}

// duringPeeks has PeekNamedPipe call before and after: see replaceCall.
func duringPeeks(t *testing.T, before, after func(h syscall.Handle)) {
	replaceCall(t, procPeekNamedPipe, func(real uintptr) any {
		return func(h, p, n, read, total, left uintptr) uintptr {
			before(syscall.Handle(h))
			r, _, _ := syscall.SyscallN(real, h, p, n, read, total, left)
			after(syscall.Handle(h))
			return r
		}
	})
}

// A client can hold up the calls that look at its pipe. Accept returns the other clients, and
// Close does not wait, whether Accept or watch looks first.
func TestAcceptIsNotHeldByAClient(t *testing.T) {
	for name, backlog := range map[string]int{"Accept looks": 2, "watch looks": 1} {
		t.Run(name, func(t *testing.T) {
			internalStory(t)
			var held atomic.Uintptr
			inside, free := make(chan struct{}, 100), make(chan struct{})
			duringPeeks(t, func(h syscall.Handle) {
				if uintptr(h) == held.Load() {
					inside <- struct{}{}
					<-free
				}
			}, func(syscall.Handle) {})
			l, err := ListenConfig{Backlog: backlog}.Listen(Addr{})
			if err != nil {
				t.Fatal(err)
			}
			s := l.listener.instances
			s.mu.Lock()
			if backlog == 1 { // watch does not look before the lock is free
				held.Store(uintptr(s.armed[0].sys))
			}
			s.mu.Unlock()
			evil, err := Dial(l.Addr().(Addr))
			if err != nil {
				t.Fatal(err)
			}
			for held.Load() == 0 { // the server may learn of its client after that has the pipe
				s.mu.Lock()
				for _, in := range s.armed {
					if !in.listens() {
						held.Store(uintptr(in.sys))
					}
				}
				s.mu.Unlock()
			}
			if backlog == 1 {
				<-inside // watch is held
			}
			accepted := make(chan *Conn)
			go func() {
				c, err := l.AcceptConn()
				if err != nil {
					t.Error(err)
				}
				accepted <- c
			}()
			good, err := Dial(l.Addr().(Addr))
			if err != nil {
				t.Fatal(err)
			}
			c := <-accepted
			if _, err := good.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			if backlog > 1 {
				<-inside
			}
			if err := errors.Join(l.SetDeadline(time.Now()), l.Close()); err != nil {
				t.Error(err)
			}
			close(free)
			if n, err := evil.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("the client that was held is there: %d", n)
			}
			for _, c := range []*Conn{evil, good, c} {
				c.Close()
			}
		})
	}
}

// A server can hold up the calls by which Dial prepares its end.
func TestDialIsNotHeldByAServer(t *testing.T) {
	internalStory(t)
	inside, free := make(chan struct{}, 100), make(chan struct{})
	replaceCall(t, procSetNamedPipeHandleState, func(real uintptr) any {
		return func(h, mode, n, wait uintptr) uintptr {
			inside <- struct{}{}
			<-free
			r, _, _ := syscall.SyscallN(real, h, mode, n, wait)
			return r
		}
	})
	l, err := ListenMsg(Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-inside
		cancel()
	}()
	if _, err := (Dialer{}).DialMsg(ctx, l.Addr().(Addr)); !errors.Is(err, context.Canceled) {
		t.Errorf("a context ends it: %v", err)
	}
	if _, err := (Dialer{Timeout: 10 * time.Millisecond}).DialMsg(context.Background(), l.Addr().(Addr)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a timeout ends it: %v", err)
	}
	close(free)
	c, err := DialMsg(l.Addr().(Addr))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for range inquiriesMax { // until those that were left behind have ended
		<-introductions
	}
	for range inquiriesMax {
		introductions <- struct{}{}
	}
}

// ReadBuffers does not wait for what a peer has taken back, once it has something.
func TestReadBuffersDoesNotWaitForWhatWasWithdrawn(t *testing.T) {
	internalStory(t)
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	defer b.close()
	written := make(chan struct{})
	withdrawn := false
	duringPeeks(t, func(syscall.Handle) {}, func(h syscall.Handle) {
		if h == a.sys && !withdrawn {
			withdrawn = true
			b.setDeadline(time.Unix(1, 0), writing)
			<-written
		}
	})
	if _, err := b.write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(written)
		b.write(make([]byte, 1<<20))
	}()
	for info, err := localInfo(a.sys); ; info, err = localInfo(a.sys) { // until it waits for a reader
		if err != nil {
			t.Fatal(err)
		}
		if info.readable > 1 {
			break
		}
		runtime.Gosched()
	}
	n, err := a.readBuffers([][]byte{make([]byte, 1), make([]byte, 1)})
	if n != 1 || err != nil || !withdrawn {
		t.Errorf("%d, %v, %t", n, err, withdrawn)
	}
}

// takeAllInquiries is as if as many files were kept busy as can be, until the returned
// function is called.
func takeAllInquiries(t *testing.T) (giveBack func()) {
	for range inquiriesMax {
		<-inquiries
	}
	giveBack = sync.OnceFunc(func() {
		for range inquiriesMax {
			inquiries <- struct{}{}
		}
	})
	t.Cleanup(giveBack)
	return giveBack
}

// While too many files are kept busy, RecvFiles waits for its turn.
func TestRecvFilesWaitsForItsTurn(t *testing.T) {
	internalStory(t)
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	defer b.close()
	giveBack := takeAllInquiries(t)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := a.sendWithFiles(zeroByte[:], []*os.File{f}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := b.setDeadline(time.Now().Add(10*time.Millisecond), reading); err != nil {
			t.Fatal(err)
		}
		if files, err := b.recvFiles(maxFiles); err != os.ErrDeadlineExceeded {
			t.Fatalf("%v, %v", files, err)
		}
	}
	giveBack()
	b.setDeadline(time.Time{}, reading)
	files, err := b.recvFiles(maxFiles)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	files[0].Close()
}

// sendsEnd sends the data and an end of a pipe that nobody else has then. closed waits
// until that end is closed.
func sendsEnd(t *testing.T, a *fd, data string) (closed func()) {
	t.Helper()
	near, far, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.close() })
	f, err := far.dupFile("end")
	if err != nil {
		t.Fatal(err)
	}
	far.close()
	sendMessage(t, a, data, f)
	f.Close()
	return func() {
		t.Helper()
		if n, err := near.read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("the end that was sent is open: %d, %v", n, err)
		}
	}
}

// missesItsTurn has a RecvFiles take what was sent with the data, and end at its deadline
// while as many inquiries are under way as may be.
func missesItsTurn(t *testing.T, b *fd, max int, data string) {
	t.Helper()
	received := make(chan error, 1)
	go func() {
		_, err := b.recvFiles(max)
		received <- err
	}()
	p := []byte(strings.Repeat("?", len(data)))
	for string(p) != data { // but the record is there, or nothing
		if _, _, err := b.peek(p); err != nil {
			t.Fatal(err)
		}
	}
	b.setDeadline(time.Now().Add(-time.Second), reading)
	if err := <-received; err != os.ErrDeadlineExceeded {
		t.Fatal(err)
	}
	b.setDeadline(time.Time{}, reading)
}

// overEachKind tells a story over a pair of each kind, while no inquiry may begin.
func overEachKind(t *testing.T, tell func(t *testing.T, a, b *fd, kind connKind)) {
	internalStory(t)
	for name, kind := range map[string]connKind{"stream": streams, "messages": messages} {
		t.Run(name, func(t *testing.T) {
			a, b, err := pair(kind)
			if err != nil {
				t.Fatal(err)
			}
			defer a.close()
			defer b.close()
			takeAllInquiries(t)
			tell(t, a, b, kind)
		})
	}
}

// A RecvFiles that was too late for its turn leaves the data to the next read, and not
// the record, as one does that was too late for its files. Nobody has the files then.
func TestRecvFilesThatMissesItsTurnLeavesTheData(t *testing.T) {
	overEachKind(t, func(t *testing.T, a, b *fd, _ connKind) {
		zero := string(zeroByte[:])
		for range 2 {
			closed := sendsEnd(t, a, zero)
			sendMessage(t, a, "next")
			missesItsTurn(t, b, 1, zero)
			for _, want := range []string{zero, "next"} {
				p := make([]byte, 64)
				if n, err := b.read(p); string(p[:n]) != want || err != nil {
					t.Fatalf("%q, %v, want %q", p[:n], err, want)
				}
			}
			closed()
		}
		closed := sendsEnd(t, a, zero)
		missesItsTurn(t, b, 1, zero)
		b.close()
		closed()
	})
}

// A read, and Close, do not wait until files are closed that nobody asked for. The peer chose
// them, and may keep the kernel from closing them.
func TestRecvFilesThatMissesItsTurnHoldsNobodyElseUp(t *testing.T) {
	internalStory(t)
	defer debug.SetGCPercent(debug.SetGCPercent(-1))       // what is collected may be closed
	for disposal.isRunning() || ordinaryEnds.isRunning() { // from an earlier test, outside of the bubble
		time.Sleep(time.Millisecond)
	}
	synctest.Test(t, func(t *testing.T) { // its clock goes on when everybody waits
		a, b, err := pair(streams)
		if err != nil {
			t.Fatal(err)
		}
		defer a.close()
		busy := make(chan struct{})
		for range closersMax {
			disposal.add(func() { <-busy })
		}
		defer close(busy)
		arrives := func() {
			null, err := syscall.Open(os.DevNull, syscall.O_RDONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			b.r.arriving = newArrival([]syscall.Handle{null}, []byte("data"))
		}
		start := time.Now()
		arrives()
		p := make([]byte, 64)
		if n, err := b.read(p); string(p[:n]) != "data" || err != nil {
			t.Errorf("%q, %v", p[:n], err)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("the read waits for %v", waited)
		}
		arrives()
		if err := b.close(); err != nil {
			t.Error(err)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("Close waits for %v", waited)
		}
	})
}

// isRunning reports whether any calls are under way.
func (c *closers) isRunning() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running > 0
}

// A connection that nobody closes does not keep the files that it was too late for.
func TestRecvFilesOfADroppedConnectionAreClosed(t *testing.T) {
	internalStory(t)
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	takeAllInquiries(t)
	closed := sendsEnd(t, a, "data")
	missesItsTurn(t, b, 1, "d")
	b = nil
	untilCollected(closed)
}

// untilCollected collects garbage until the function has returned.
func untilCollected(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	for {
		select {
		case <-done:
			return
		case <-time.After(10 * time.Millisecond):
			runtime.GC()
		}
	}
}

// The handles of a handshake that nobody goes on with are closed.
func TestSharedHandshakeThatWasDroppedIsClosed(t *testing.T) {
	internalStory(t)
	peer, y, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	near, bell, err := newBell()
	if err != nil {
		t.Fatal(err)
	}
	defer near.close()
	files, err := newMemory(controlSize + ringMin)
	if err != nil {
		t.Fatal(err)
	}
	func() {
		cfg, _ := ShareConfig{}.complete()
		c := newSharedConn(y.endpoint, cfg, true)
		if err := withFile(files.object, func(sys uintptr) error {
			sharesHandles(t, peer, syscall.Handle(sys), syscall.Handle(bell))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		bell.close()
		files.close()
		giveBack := takeAllInquiries(t)
		for len(c.hello.files) == 0 {
			c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
		giveBack()
	}()
	y = nil
	untilCollected(func() {
		if n, err := near.read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("the doorbell is open: %d, %v", n, err)
		}
	})
}

// What closes the handles in the process that held them may take long. RecvFiles does not wait
// for that, nor does a PeekMessage beside it.
func TestRecvFilesIsNotHeldByTheHolder(t *testing.T) {
	internalStory(t)
	null := openNull(t)
	var h syscall.Handle
	if err := withFile(null, func(sys uintptr) (err error) {
		h, err = duplicate(syscall.Handle(sys))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	wake := keepAllAsleep(&disposal)
	got, err := takeFrom(currentProcess, []uint32{uint32(h)})
	if err != nil || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := handleFlags(h); err != nil {
		t.Errorf("the caller has closed the handle itself: %v", err)
	}
	wake()
	for !hasHandles(t, got[0], 2) { // null and got are left
		runtime.Gosched()
	}
	syscall.CloseHandle(got[0])
}

// hasHandles reports whether so many handles of the object are open.
func hasHandles(t *testing.T, h syscall.Handle, n uint32) bool {
	t.Helper()
	_, handles, err := objectInfo(h)
	if err != nil {
		t.Fatal(err)
	}
	return handles == n
}

// The RecvFiles that gets the files may ask for fewer than the one that was too late.
func TestRecvFilesOfAnEarlierCallAreNotTooMany(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	takeAllInquiries(t)
	null := openNull(t)
	for range 2 {
		sendMessage(t, a, "first", null, null)
		sendMessage(t, a, "next")
		missesItsTurn(t, b, 2, "first")
		if files, err := b.recvFiles(1); files != nil || !errors.Is(err, ErrMsgTooLong) {
			t.Fatalf("%v, %v", files, err)
		}
		isNext(t, b, "first")
		isNext(t, b, "next")
	}
}

// While RecvFiles has a message, and may give it back, PeekMessage shows it and not the
// next one.
func TestPipePeekMessageWhileFilesArrive(t *testing.T) {
	overEachKind(t, func(t *testing.T, a, b *fd, kind connKind) {
		null := openNull(t)
		for range 50 {
			sendMessage(t, a, "\x00", null)
			sendMessage(t, a, "next")
			b.setDeadline(time.Time{}, reading)
			received := make(chan error, 1)
			go func() {
				files, err := b.recvFiles(1)
				if files != nil {
					err = errors.New("there are files")
				}
				received <- err
			}()
			before, after := recordHead+4+1, 1 // the record is there, or is taken
			if kind == streams {
				before, after = before+len("next"), after+len("next")
			}
			p := make([]byte, 64)
			for size := before; size == before; {
				var n int
				var err error
				if n, size, err = b.peek(p); err != nil {
					t.Fatal(err)
				}
				if size != before && (size != after || n != after || p[0] != 0 || string(p[1:n]) != "next"[:n-1]) {
					t.Fatalf("the next are %q of %d bytes", p[:n], size)
				}
			}
			b.setDeadline(time.Now().Add(-time.Second), reading)
			if err := <-received; err != os.ErrDeadlineExceeded {
				t.Fatal(err)
			}
			if n, size, err := b.peek(p); n != after || size != after || err != nil {
				t.Fatalf("the next are %q of %d bytes, %v", p[:n], size, err)
			}
			b.setDeadline(time.Time{}, reading)
			for _, want := range []string{"\x00", "next"} {
				if n, err := b.read(p); string(p[:n]) != want || err != nil {
					t.Fatalf("%q, %v, want %q", p[:n], err, want)
				}
			}
		}
	})
}

// RecvFiles takes an empty message by waiting for something, and leaves it to the next
// receive. PeekMessage sees no message that comes after it.
func TestPipePeekMessageWhileRecvFilesTakesAnEmptyMessage(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	for range 200 {
		received, peeked, stop := make(chan error, 1), make(chan error, 1), make(chan struct{})
		go func() {
			_, err := b.recvFiles(1)
			received <- err
		}()
		go func() {
			for {
				select {
				case <-stop:
					peeked <- nil
					return
				default:
				}
				begun := now() // it waits no longer than closeGrace for its turn
				if n, size, err := b.peek(nil); err != nil || (n != 0 || size != 0) && now()-begun < int64(closeGrace) {
					peeked <- fmt.Errorf("the next has %d bytes, %v", size, err)
					return
				}
			}
		}()
		for _, message := range []string{"", "next"} {
			if err := a.send([]byte(message)); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-received; err != ErrNoFiles {
			t.Fatal(err)
		}
		close(stop)
		if err := <-peeked; err != nil {
			t.Fatal(err)
		}
		isNext(t, b, "")
		isNext(t, b, "next")
	}
}

// PeekMessage does not wait for a RecvFiles that waits on, as it does if the peer takes back
// the message that PeekMessage has seen, or shows one again and again.
func TestPipePeekMessageDoesNotWaitForRecvFiles(t *testing.T) {
	internalStory(t)
	for _, back := range []bool{true, false} {
		a, b := messagePair(t)
		sent := make(chan error, 1)
		go func() { sent <- a.send(make([]byte, 1<<20)) }() // it pends
		for there := 0; there == 0; {
			_, _, there, _ = peekMessage(b.sys, nil)
		}
		b.r.taking.Lock()
		b.r.awaiting = true // as if RecvFiles had not woken
		b.r.taking.Unlock()
		want := 1 << 20
		if back {
			want = 0
		}
		peeked := make(chan error, 1)
		go func() {
			for size := -1; size != want; {
				var err error
				if _, size, err = b.peek(nil); err != nil {
					peeked <- err
					return
				}
			}
			peeked <- nil
		}()
		if back {
			withdraw(t, a, sent)
		}
		if err := <-peeked; err != nil {
			t.Error(err)
		}
	}
}

// messagePair returns the ends of a pipe of messages.
func messagePair(t *testing.T) (a, b *fd) {
	t.Helper()
	a, b, err := pair(messages)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.close(); b.close() })
	return a, b
}

// isNext checks which message is the next one.
func isNext(t *testing.T, f *fd, want string) {
	t.Helper()
	p := make([]byte, 64)
	if n, err := f.recv(p); string(p[:n]) != want || err != nil {
		t.Fatalf("the next message is %q, %v, want %q", p[:n], err, want)
	}
}

func sendMessage(t *testing.T, f *fd, message string, files ...*os.File) {
	t.Helper()
	if err := f.sendWithFiles([]byte(message), files); err != nil {
		t.Fatal(err)
	}
}

func openNull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A message whose deadline was over before it was sent is not withdrawn, so another one
// may follow, however the write waits.
func TestMsgConnMessageThatWasTooLateMayBeFollowed(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	var taken []*slot
	for { // until writes park
		s, err := slots.take(false)
		if err != nil {
			t.Fatal(err)
		}
		if s == nil {
			break
		}
		taken = append(taken, s)
	}
	for range 2 {
		a.setDeadline(time.Now().Add(-time.Second), writing)
		if err := a.send([]byte("late")); err != os.ErrDeadlineExceeded {
			t.Error(err)
		}
		a.setDeadline(time.Time{}, writing)
		sendMessage(t, a, "next")
		isNext(t, b, "next")
	}
	for _, s := range taken {
		slots.give(s)
	}
}

// A peer may announce up to 4 GiB. Room is made for what may be sent; the rest is dropped,
// whether the message was there before the call or comes while the call waits.
func TestMsgConnMakesNoRoomForMoreThanMayBeSent(t *testing.T) {
	internalStory(t)
	if n := lengthOf(1<<32 - 1); n <= ioMax || n+recordMax <= ioMax {
		t.Fatalf("4 GiB are told as %d bytes", n)
	}
	const limit = 1000
	for _, waits := range []bool{false, true} {
		for _, room := range []int{0, 100, limit - 1} {
			a, b := messagePair(t)
			for _, size := range []int{limit, 100 * limit, 1} {
				sent := make(chan error, 1)
				go func() {
					for stacks := make([]byte, 1<<20); waits; time.Sleep(time.Millisecond) {
						if n := runtime.Stack(stacks, true); bytes.Contains(stacks[:n], []byte("runParked")) {
							break
						}
					}
					sent <- a.send(make([]byte, size))
				}()
				p, err := new(messageReader).recvAppend(limitedSource{b, limit}, append(make([]byte, 0, 2+room), "ab"...))
				switch {
				case size > limit && (!errors.Is(err, ErrMsgTooLong) || string(p) != "ab"),
					size <= limit && (err != nil || len(p) != 2+size), cap(p) > 4*limit:
					t.Errorf("waits %v, room for %d, a message of %d bytes: %d bytes in %d, %v", waits, room, size, len(p), cap(p), err)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// A limitedSource is an fd with another limit of what may be sent.
type limitedSource struct {
	*fd
	limit int
}

func (s limitedSource) nextRoom(have int, spare []byte) (int, error) {
	return s.roomUpTo(s.limit, have, spare)
}

// What comes after a part of a message whose rest was withdrawn is another message.
func TestMessageWithdrawnBetweenItsParts(t *testing.T) {
	internalStory(t)
	for _, remote := range []bool{false, true} {
		a, b := messagePair(t)
		b.remote = remote
		for _, size := range []int{4, 100, 64 << 10, 1<<20 - 100, 1<<20 - 99, 1 << 20} {
			for name, receive := range map[string]func(p []byte) ([]byte, error){
				"RecvAppend": func(p []byte) ([]byte, error) { // it has read the part
					var in messageReader
					in.keep(p, false)
					p, err := in.recvAppend(b, nil)
					if err != errWithdrawn {
						return p, fmt.Errorf("RecvAppend is told %v", err)
					}
					return b.recvAppend(nil)
				},
				"Recv": func([]byte) ([]byte, error) { // it drops the rest
					if err := b.dropRest(); err != nil {
						return nil, err
					}
					p := make([]byte, 2<<20)
					n, err := b.recv(p)
					return p[:n], err
				},
				"a receive that follows one that failed": func([]byte) ([]byte, error) {
					return b.recvAppend(nil)
				},
				"ReadMessage that follows one that failed": func([]byte) ([]byte, error) {
					p := make([]byte, 2<<20)
					n, _, err := b.readMessage(p)
					return p[:n], err
				},
				"RecvFiles that follows one that failed": func([]byte) ([]byte, error) {
					if _, err := b.recvFiles(1); err != ErrNoFiles {
						return nil, err
					}
					return b.recvAppend(nil)
				},
			} {
				if size == 1<<20-100 {
					continue // it cannot be told from the rest
				}
				p, sent := beginMessage(t, a, b)
				withdraw(t, a, sent)
				next := bytes.Repeat([]byte{'n'}, size)
				go func() { sent <- a.send(next) }()
				for there := 0; there == 0; {
					_, _, there, _ = peekMessage(b.sys, nil)
				}
				if got, err := receive(p); !bytes.Equal(got, next) || err != nil {
					t.Fatalf("remote %v, %s: %d bytes, %v, want %d", remote, name, len(got), err, size)
				}
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				if b.r.rest != 0 || b.r.unread != nil {
					t.Fatalf("remote %v, %s: %d bytes of a rest, %d unread", remote, name, b.r.rest, len(b.r.unread))
				}
			}
		}
	}
}

// beginMessage sends a message of 1 MiB from a, and receives a part of it at b.
func beginMessage(t *testing.T, a, b *fd) (part []byte, sent chan error) {
	t.Helper()
	sent = make(chan error, 1)
	go func() { sent <- a.send(make([]byte, 1<<20)) }()
	part = make([]byte, 100)
	if n, ends, err := b.nextPart(part); n != len(part) || ends || err != nil {
		t.Fatalf("%d, %t, %v", n, ends, err)
	}
	return part, sent
}

// withdraw takes back what was not received of the message, as a sender does who does not
// care how much that is.
func withdraw(t *testing.T, a *fd, sent chan error) {
	t.Helper()
	a.setDeadline(time.Now().Add(-time.Second), writing)
	if err := <-sent; err != os.ErrDeadlineExceeded {
		t.Fatal(err)
	}
	a.setDeadline(time.Time{}, writing)
	a.w.torn = nil
}

// A receive goes on to the next message when what it was about to read was withdrawn.
func TestReceiveGoesOnAfterWhatWasWithdrawn(t *testing.T) {
	internalStory(t)
	for _, remote := range []bool{false, true} {
		a, b := messagePair(t)
		b.remote = remote
		var in messageReader
		for name, receive := range map[string]func() error{
			"Recv":        func() error { _, err := b.recv(make([]byte, 64)); return err },
			"RecvAppend":  func() error { _, err := b.recvAppend(nil); return err },
			"ReadMessage": func() error { _, _, err := b.readMessage(make([]byte, 64)); return err },
			"Read":        func() error { _, err := b.read(make([]byte, 64)); return err },
			"RecvFiles":   func() error { _, err := b.recvFiles(1); return err },
			"a part, and then RecvAppend": func() error {
				if _, err := in.recvAppend(b, nil); err != errWithdrawn {
					return fmt.Errorf("it is told %v", err)
				}
				_, err := b.recvAppend(nil)
				return err
			},
		} {
			part, sent := beginMessage(t, a, b)
			in.keep(part, false)
			withdraw(t, a, sent)
			b.setDeadline(time.Now().Add(5*time.Millisecond), reading)
			if err := receive(); err != os.ErrDeadlineExceeded {
				t.Errorf("remote %v, %s: %v, want that it waits for the next message", remote, name, err)
			}
			b.setDeadline(time.Time{}, reading)
			sendMessage(t, a, "next")
			isNext(t, b, "next")
		}
	}
}

// A receive that fails in the middle of a message loses that message, and no other. No
// later receive of any kind gets the rest.
func TestReceiveThatFailsWithinAMessage(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	recv := func() (string, error) {
		p := make([]byte, 64)
		n, err := b.recv(p)
		return string(p[:n]), err
	}
	for name, receive := range map[string]func() (string, error){
		"Recv":       recv,
		"RecvAppend": func() (string, error) { p, err := b.recvAppend(nil); return string(p), err },
		"ReadMessage": func() (string, error) {
			p := make([]byte, 64)
			n, _, err := b.readMessage(p)
			return string(p[:n]), err
		},
		"Read": func() (string, error) {
			p := make([]byte, 64)
			n, err := b.read(p)
			return string(p[:n]), err
		},
		"RecvFiles": func() (string, error) {
			if _, err := b.recvFiles(1); err != ErrNoFiles {
				return "", err
			}
			return recv()
		},
		"Transact": func() (string, error) {
			p := make([]byte, 64)
			n, err := b.transact(context.Background(), []byte("request"), p)
			return string(p[:n]), err
		},
	} {
		for what, fail := range map[string]func() error{
			"a part was read": func() error {
				_, err := new(messageReader).recvAppend(failingSource{b}, nil)
				return err
			},
			"the rest was to be dropped": func() error {
				if _, err := new(messageReader).recv(b, make([]byte, 100)); err != ErrMsgTooLong {
					return fmt.Errorf("Recv is told %v", err)
				}
				return failWithin(b, b.dropRest)
			},
		} {
			for _, withdrawn := range []bool{false, true} {
				if withdrawn && name == "Transact" {
					continue // it refuses a pipe with something in it
				}
				sent := make(chan error, 1)
				go func() { sent <- a.send(make([]byte, 1<<20)) }()
				if err := fail(); !errors.Is(err, errInvalidHandle) {
					t.Fatalf("%s: %v", what, err)
				}
				if withdrawn {
					withdraw(t, a, sent)
					sendMessage(t, a, "next")
				} else {
					go func() {
						if err := <-sent; err != nil {
							t.Error(err)
						}
						if name == "Transact" {
							isNext(t, a, "request")
						}
						sendMessage(t, a, "next")
					}()
				}
				if m, err := receive(); m != "next" || err != nil {
					t.Errorf("%s after %s, which was withdrawn: %v: %d bytes, %v", name, what, withdrawn, len(m), err)
				}
			}
		}
	}
}

// A failingSource is an fd whose handle is not valid while it reads the rest of a message.
type failingSource struct{ *fd }

func (s failingSource) nextRoom(have int, _ []byte) (int, error) { return 100, nil }

func (s failingSource) nextPart(p []byte) (n int, ends bool, err error) {
	if s.r.rest == 0 {
		return s.fd.nextPart(p)
	}
	err = failWithin(s.fd, func() error {
		n, ends, err = s.fd.nextPart(p)
		return err
	})
	return n, ends, err
}

func failWithin(f *fd, do func() error) error {
	h := f.sys
	f.sys = 0
	defer func() { f.sys = h }()
	return do()
}

const errInvalidHandle = syscall.Errno(6) // ERROR_INVALID_HANDLE

// A peer that has several messages under way, and withdraws each of them while it is
// received, keeps no receive longer than its deadline allows.
func TestReceiveFromAPeerThatWithdrawsAllEnds(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	ended := withdrawsAll(t, a)
	p := make([]byte, 100)
	for name, receive := range map[string]func() (int, error){
		"Recv":       func() (int, error) { return b.recv(p) },
		"RecvAppend": func() (int, error) { m, err := b.recvAppend(nil); return len(m), err },
	} {
		var errs [4]int
		for range 100 {
			begun := time.Now()
			b.setDeadline(begun.Add(10*time.Millisecond), reading)
			_, err := receive()
			switch {
			case err == nil:
				errs[0]++
			case err == os.ErrDeadlineExceeded:
				errs[1]++
			case errors.Is(err, ErrMsgTooLong) && name == "Recv":
				errs[2]++
			case err == errWithdrawsAll:
				errs[3]++
			default:
				t.Fatalf("%s: %v", name, err)
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Fatalf("%s took %v", name, took)
			}
		}
		t.Logf("%s: received, too late, too long, withdrawn: %d", name, errs)
	}
	ended()
	for err := error(nil); err != os.ErrDeadlineExceeded; { // until nothing is left of what came
		b.setDeadline(time.Now().Add(10*time.Millisecond), reading)
		_, err = b.recv(p)
	}
	b.setDeadline(time.Time{}, reading)
	sendMessage(t, a, "next")
	isNext(t, b, "next")
}

// withdrawsAll has f send messages of 4 MiB, and take each of them back soon, until the
// function is called that it returns.
func withdrawsAll(t *testing.T, f *fd) (end func()) {
	var writes []*slot
	message := make([]byte, 4<<20)
	begin := func() {
		s, err := slots.take(true)
		if err != nil {
			t.Error(err)
			return
		}
		s.begin(op{p: message})
		if err := writeFile(f.sys, message, nil, &s.done, &s.overlapped); err != nil && err != syscall.ERROR_IO_PENDING {
			t.Error(err)
		}
		writes = append(writes, s)
	}
	withdraw := func() {
		s := writes[0]
		writes = writes[1:]
		syscall.CancelIoEx(f.sys, &s.overlapped)
		for !completed(&s.overlapped) {
			waitFor(s.event, 1)
		}
		slots.give(s)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for range 8 {
			begin()
		}
		for {
			select {
			case <-stop:
				for len(writes) > 0 {
					withdraw()
				}
				return
			default:
				withdraw()
				begin()
			}
		}
	}()
	return func() { close(stop); <-stopped }
}

// An end that is closed while it drops a rest does not go on.
func TestCloseEndsTheDropOfARest(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	_, sent := beginMessage(t, a, b)
	if err := b.incref(); err != nil {
		t.Fatal(err)
	}
	b.closeLater()
	if err := b.dropRest(); err != net.ErrClosed || b.r.rest != 1<<20-100 {
		t.Errorf("%v, %d bytes are left", err, b.r.rest)
	}
	b.decref()
	if err := <-sent; err == nil {
		t.Error("the rest was received")
	}
}

// A message that is there is taken by one ReadFile, whatever room the receiver has.
func TestMessageThatIsThereIsTakenWhole(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	for _, room := range []int{0, 1, 100, 5000, 10000} {
		sendMessage(t, a, string(make([]byte, 5000)))
		parts := 0
		m, err := new(messageReader).recvAppend(countingSource{b, &parts}, make([]byte, 2, 2+room))
		if len(m) != 2+5000 || err != nil || parts != 1 {
			t.Errorf("room for %d: %d bytes in %d parts, %v", room, len(m), parts, err)
		}
	}
	for _, b.remote = range []bool{false, true} { // it is in the place of a shorter one
		sendMessage(t, a, string(make([]byte, 5000)))
		b.r.taking.Lock()
		m, err := b.readCandidate(50)
		b.r.taking.Unlock()
		if len(m) != 5000 || err != nil {
			t.Errorf("in the place of another: %d bytes, %v", len(m), err)
		}
	}
}

// A countingSource is an fd that counts the parts it gives.
type countingSource struct {
	*fd
	parts *int
}

func (s countingSource) nextPart(p []byte) (int, bool, error) {
	*s.parts++
	return s.fd.nextPart(p)
}

// What may wait for another machine, to open a pipe, ends with the Dial.
func TestDialOfAnotherMachineCanBeEnded(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	sendMessage(t, a, "unread")
	waits := func() (syscall.Handle, error) { // it can be cancelled, as the call in question can
		return a.sys, os.NewSyscallError("CreateFile", syscall.FlushFileBuffers(a.sys))
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := openRemote(&retryTimer{ctx: ctx}, waits); err != context.Canceled {
		t.Errorf("%v, want that it was cancelled", err)
	}
	soon := time.Now().Add(20 * time.Millisecond)
	if _, err := openRemote(&retryTimer{ctx: context.Background(), deadline: soon}, waits); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want that the deadline is exceeded", err)
	}
	go b.recv(make([]byte, 64)) // which ends the wait
	far := time.Now().Add(time.Hour)
	if h, err := openRemote(&retryTimer{ctx: context.Background(), deadline: far}, waits); h != a.sys || err != nil {
		t.Errorf("%d, %v", h, err)
	}
	fails := func() (syscall.Handle, error) { return 0, os.NewSyscallError("CreateFile", errPipeBusy) }
	if _, err := openRemote(&retryTimer{ctx: context.Background()}, fails); judge("", err) != busy {
		t.Errorf("%v", err)
	}
}

// allInquiriesAreFree checks that as many files can be received at once as before.
func allInquiriesAreFree(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); len(inquiries) != inquiriesMax; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d inquiries are free of %d", len(inquiries), inquiriesMax)
		}
	}
}

// A deadline that ends a RecvWithFiles while its files are made files of os leaves the
// message, and the files with it for who asks for them.
func TestRecvFilesKeepsTheMessageOfBusyFiles(t *testing.T) {
	internalStory(t)
	for name, next := range map[string]func(t *testing.T, b *fd){
		"Recv": func(t *testing.T, b *fd) { isNext(t, b, "first") },
		"Read": func(t *testing.T, b *fd) {
			p := make([]byte, 64)
			if n, err := b.read(p); string(p[:n]) != "first" || err != nil {
				t.Errorf("%q, %v", p[:n], err)
			}
		},
		"ReadMessage": func(t *testing.T, b *fd) {
			p := make([]byte, 64)
			if n, more, err := b.readMessage(p); string(p[:n]) != "first" || more || err != nil {
				t.Errorf("%q, %t, %v", p[:n], more, err)
			}
		},
		"RecvWithFiles": func(t *testing.T, b *fd) {
			p := make([]byte, 64)
			n, files, err := b.recvWithFiles(p, 1)
			if string(p[:n]) != "first" || len(files) != 1 || err != nil {
				t.Fatalf("%q, %v, %v", p[:n], files, err)
			}
			files[0].Close()
		},
		"RecvFiles": func(t *testing.T, b *fd) {
			files, err := b.recvFiles(1)
			if len(files) != 1 || err != nil {
				t.Fatalf("%v, %v", files, err)
			}
			files[0].Close()
			isNext(t, b, "first") // which is not the byte that files travel with
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := messagePair(t)
			busy, opened := make(chan struct{}), make(chan *os.File, 1)
			arrives(b, []byte("first"), func(syscall.Handle) (*os.File, error) {
				<-busy
				f, err := os.Open(os.DevNull)
				if err != nil {
					t.Error(err)
				}
				opened <- f
				return f, nil
			})
			sendMessage(t, a, "second", openNull(t))
			b.setDeadline(time.Now().Add(time.Millisecond), reading)
			if n, files, err := b.recvWithFiles(make([]byte, 64), 1); n != 0 || files != nil || err != os.ErrDeadlineExceeded {
				t.Fatalf("%d, %v, %v", n, files, err)
			}
			b.setDeadline(time.Time{}, reading)
			if name == "RecvWithFiles" || name == "RecvFiles" {
				close(busy)
				next(t, b)
			} else {
				next(t, b)
				close(busy)
			}
			(<-opened).Close()
			p := make([]byte, 64)
			n, files, err := b.recvWithFiles(p, 1)
			if string(p[:n]) != "second" || len(files) != 1 || err != nil {
				t.Fatalf("%q, %v, %v", p[:n], files, err)
			}
			files[0].Close()
			allInquiriesAreFree(t)
		})
	}
}

// Files can be gone, or too many: the data that they came with is there all the same.
func TestRecvFilesKeepsTheMessageWithoutItsFiles(t *testing.T) {
	internalStory(t)
	null := openNull(t)
	gone := record{pid: uint32(os.Getpid()), files: []uint32{0x7ffffff0}} // no handle
	for name, c := range map[string]struct {
		send func(t *testing.T, a *fd)
		is   error
	}{
		"gone":     {func(t *testing.T, a *fd) { sendMessage(t, a, string(gone.bytes())+"data") }, ErrUntrusted},
		"too many": {func(t *testing.T, a *fd) { sendMessage(t, a, "data", null, null) }, ErrMsgTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			b, a := messagePair(t) // only the server of a pair asks what its client may do
			for range 2 {
				c.send(t, a)
				sendMessage(t, a, "next")
				p := make([]byte, 64)
				if n, files, err := b.recvWithFiles(p, 1); string(p[:n]) != "data" || files != nil || !errors.Is(err, c.is) {
					t.Errorf("%q, %v, %v", p[:n], files, err)
				}
				isNext(t, b, "next")
				c.send(t, a)
				sendMessage(t, a, "next")
				if files, err := b.recvFiles(1); files != nil || !errors.Is(err, c.is) {
					t.Errorf("%v, %v", files, err)
				}
				isNext(t, b, "data")
				isNext(t, b, "next")
			}
			allInquiriesAreFree(t)
		})
	}
}

// Only the zero byte goes with its files. Any other message is the next to be received,
// and one that is too long takes its files along.
func TestRecvFilesLeavesTheMessageOfFilesNextToRead(t *testing.T) {
	internalStory(t)
	null := openNull(t)
	a, b := messagePair(t)
	for _, data := range []string{"data", "", "\x00"} {
		sendMessage(t, a, data, null)
		sendMessage(t, a, "next")
		files, err := b.recvFiles(1)
		if len(files) != 1 || err != nil {
			t.Fatalf("%v, %v", files, err)
		}
		files[0].Close()
		if data != string(zeroByte[:]) {
			isNext(t, b, data)
		}
		isNext(t, b, "next")
	}
	sendMessage(t, a, "too long", null)
	sendMessage(t, a, "next")
	p := make([]byte, 3)
	if n, files, err := b.recvWithFiles(p, 1); string(p[:n]) != "too" || files != nil || !errors.Is(err, ErrMsgTooLong) {
		t.Errorf("%q, %v, %v", p[:n], files, err)
	}
	isNext(t, b, "next")
	allInquiriesAreFree(t)
}

// What came with files that RecvFiles was too late for is before all that comes later.
func TestRecvFilesOfBusyFilesIsNotOvertaken(t *testing.T) {
	internalStory(t)
	busy := make(chan struct{})
	open := func(syscall.Handle) (*os.File, error) { <-busy; return nil, nil }
	_, b := messagePair(t)
	arrives(b, []byte("first"), open)
	p := make([]byte, 64)
	if n, err := b.transact(context.Background(), []byte("request"), p); n != 0 || errnoOf(err) != errPipeBusy {
		t.Errorf("%q, %v", p[:n], err)
	}
	isNext(t, b, "first")

	_, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	arrives(b, []byte("first"), open)
	if n, with, err := recvHello(b, p); string(p[:n]) != "first" || with != nil || err != nil {
		t.Errorf("%q, %v, %v", p[:n], with, err)
	}
	close(busy)
	allInquiriesAreFree(t)
}

// ---------------------------------------------------------------------------
// Shared memory

// While too many handles are kept busy, the doorbell of a peer waits for its turn. A
// deadline ends that, and the next call goes on with it.
func TestSharedHandshakeWaitsForItsTurn(t *testing.T) {
	internalStory(t)
	a, b := sharedPair(t)
	giveBack := takeAllInquiries(t)
	written := make(chan error, 1)
	go func() { _, err := a.Write(make([]byte, earlyMax+1)); written <- err }()
	p := make([]byte, earlyMax+1)
	for range 3 {
		b.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if n, err := b.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d, %v", n, err)
		}
	}
	giveBack()
	b.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(b, p); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if !a.InMemory() || !b.InMemory() {
		t.Error("it is not in memory")
	}
	allInquiriesAreFree(t)
}

// sharesHandles has the peer of c send a hello with the handles, one for both doorbells.
func sharesHandles(t *testing.T, peer *Conn, memory, bell syscall.Handle) {
	t.Helper()
	hello := helloOf(helloMemory, ringMin)
	if err := peer.fd.acquire(limits{}, writing); err != nil {
		t.Fatal(err)
	}
	defer peer.fd.release(writing)
	if _, err := peer.fd.sendHandles([]syscall.Handle{memory, bell, bell}, hello[:], false); err != nil {
		t.Fatal(err)
	}
}

// What this process writes to a pipe may give who has the server's end its token, if the
// pipe's client was opened so. So it rings at a server's end alone, and sends such ends.
func TestSharedHandshakeRefusesADoorbellThatTakesTheToken(t *testing.T) {
	internalStory(t)
	near, far, err := newBell()
	if err != nil {
		t.Fatal(err)
	}
	defer near.close()
	defer far.close()
	if info, err := localInfo(syscall.Handle(far)); err != nil || info.end != pipeServerEnd || near.server || near.ends != reading {
		t.Errorf("a peer gets the end %d of a doorbell, %v, and this process writes to %d at its own", info.end, err, near.ends)
	}
	for _, d := range []Direction{Duplex, ClientToServer} {
		server, client, err := newEnds(d, streams, Impersonation.flags())
		if err != nil {
			t.Fatal(err)
		}
		bell, err := duplicate(client.sys)
		if err != nil {
			t.Fatal(err)
		}
		if f, err := adoptBell(bell); err != errBellOfClient {
			t.Fatalf("%v: a doorbell that is the client's end: %v, %v", d, f, err)
		}
		if d == Duplex {
			c, peer := halfShared(t, true)
			m, err := newMemory(controlSize + ringMin)
			if err != nil {
				t.Fatal(err)
			}
			if err := withFile(m.object, func(sys uintptr) error {
				sharesHandles(t, peer, syscall.Handle(sys), client.sys)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			m.close()
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.EPROTO) || !errors.Is(err, errBellOfClient) {
				t.Errorf("the handshake: %v", err)
			}
		}
		client.close()
		if n, err := server.read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%v: what was refused is open: %d, %v", d, n, err)
		}
		server.close()
	}
}

// Close does not wait for the doorbell of a peer, and nobody has it then.
func TestSharedHandshakeClosesADoorbellThatComesLate(t *testing.T) {
	internalStory(t)
	for _, asked := range []bool{false, true} { // whether the kernel was asked what it is
		c, peer := halfShared(t, true)
		near, bell, err := newBell()
		if err != nil {
			t.Fatal(err)
		}
		files, err := newMemory(controlSize + ringMin)
		if err != nil {
			t.Fatal(err)
		}
		if err := withFile(files.object, func(sys uintptr) error {
			sharesHandles(t, peer, syscall.Handle(sys), syscall.Handle(bell))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		bell.close()
		files.close()
		giveBack := takeAllInquiries(t)
		for len(c.hello.files) == 0 {
			c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			if c.hello == nil {
				t.Fatal("the handshake is over")
			}
		}
		giveBack()
		answer := make(chan struct{})
		if asked {
			<-inquiries
			with := &c.hello.files[1]
			with.bell = askBell(with.sys, func(h syscall.Handle) (*fd, error) { <-answer; return adoptBell(h) })
			c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		close(answer)
		if n, err := near.read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("the doorbell is open: %d, %v", n, err)
		}
		near.close()
		allInquiriesAreFree(t)
	}
}

// A peer can hold up the write that rings it. Close does not wait for that, nor does the failure
// of the connection, which has the lock that Close needs.
func TestSharedConnCloseLeavesARingThatIsHeld(t *testing.T) {
	for _, fails := range []bool{false, true} {
		a, b := sharedInMemory(t)
		reading := make(chan error, 1)
		go func() { _, err := b.Read(make([]byte, 1)); reading <- err }()
		for b.ownMem.control().rwait.Load()&1 == 0 { // until it parks
			runtime.Gosched()
		}
		<-a.w.far.w.turn
		if fails {
			a.fail(protocolError("it is made up"))
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if err := <-reading; err != io.EOF {
			t.Error(err)
		}
		a.w.far.w.turn <- struct{}{}
	}
}

// A peer can hold up the ring that tells it that a half is shut. CloseRead and CloseWrite do not
// wait for that, and the peer is told when it lets go.
func TestSharedConnHalfCloseLeavesARingThatIsHeld(t *testing.T) {
	a, b := sharedInMemory(t)
	reading := make(chan error, 1)
	go func() { _, err := b.Read(make([]byte, 1)); reading <- err }()
	for b.ownMem.control().rwait.Load()&1 == 0 { // until it parks
		runtime.Gosched()
	}
	<-a.w.far.w.turn
	a.r.mu.Lock()
	if err := errors.Join(a.CloseWrite(), a.CloseRead()); err != nil {
		t.Error(err)
	}
	a.w.far.w.turn <- struct{}{}
	a.r.mu.Unlock()
	if err := <-reading; err != io.EOF {
		t.Error(err)
	}
	for {
		if _, err := b.Write([]byte("x")); errors.Is(err, syscall.EPIPE) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
}

// A peer can hold up the close of a pipe. Close does not wait for that long, in the handshake
// or after it, and the handles are closed when they can be.
func TestSharedConnCloseLeavesAPipeThatIsHeld(t *testing.T) {
	for _, memory := range []bool{false, true} {
		a, b := sharedPair(t)
		if memory {
			a, b = sharedInMemory(t)
		} else if err := a.sendMemory(a.hello); err != nil {
			t.Fatal(err)
		}
		wake := keepAllAsleep(&pipeEnds)
		ends := []*fd{a.base.fd, a.r.bell, a.r.far, a.w.bell, a.w.far}
		if !memory {
			ends = []*fd{a.base.fd, a.hello.bells.r, a.hello.bells.w}
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		for i, end := range ends {
			select {
			case <-end.gone:
				t.Errorf("in memory %t: end %d was closed by Close itself", memory, i)
			default:
			}
		}
		wake()
		for _, end := range ends {
			<-end.gone
		}
		b.Close()
	}
}

// A peer can hold up the close of any pipe. Close does not wait for that long, and what holds
// doorbells up does not delay other pipes.
func TestCloseIsNotHeldByAPipe(t *testing.T) {
	internalStory(t)
	for _, c := range []struct {
		by    *closers
		waits bool
	}{{&ordinaryEnds, true}, {&pipeEnds, false}} {
		l, err := Listen(Addr{})
		if err != nil {
			t.Fatal(err)
		}
		client, err := Dial(l.Addr().(Addr)) // which nobody accepts
		if err != nil {
			t.Fatal(err)
		}
		a, b, err := pair(streams)
		if err != nil {
			t.Fatal(err)
		}
		wake := keepAllAsleep(c.by)
		if err := errors.Join(a.closeLater(), l.Close()); err != nil {
			t.Error(err)
		}
		if c.waits {
			select {
			case <-a.gone:
				t.Error("Close itself has closed the pipe")
			default:
			}
			wake()
			<-a.gone
		} else {
			<-a.gone
			wake()
		}
		if n, err := client.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("the client that nobody accepted is there: %d", n)
		}
		client.Close()
		b.close()
	}
}

// A pipe that comes as memory does not join the completion port of this process. To make an
// os.File of it would do that, and would ask the kernel what it is.
func TestSharedHandshakeAsksNothingOfAPipeAsMemory(t *testing.T) {
	internalStory(t)
	for _, passive := range []bool{false, true} {
		c, peer := halfShared(t, passive)
		near, bell, err := newBell()
		if err != nil {
			t.Fatal(err)
		}
		other, pipe, err := newBell()
		if err != nil {
			t.Fatal(err)
		}
		sharesHandles(t, peer, syscall.Handle(pipe), syscall.Handle(bell))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.EPROTO) {
			t.Error(err)
		}
		f := os.NewFile(uintptr(pipe), "pipe")
		if err := f.SetDeadline(time.Time{}); err != nil {
			t.Errorf("the pipe belongs to another completion port: %v", err)
		}
		c.Close()
		f.Close()
		bell.close()
		near.close()
		other.close()
	}
}

// A write of the handshake that a deadline has ended may have been read in part. Then nothing
// follows, which the peer would take for the rest. If nothing of it was read, the handshake
// goes on.
func TestSharedHandshakeWriteThatWasCutOffEndsIt(t *testing.T) {
	internalStory(t)
	const room = 16 // of the pipe, which is less than any write of the handshake
	for name, use := range map[string]func(*SharedConn) error{
		"the first hello": func(c *SharedConn) error { _, err := c.Read(make([]byte, 1)); return err },
		"early data":      func(c *SharedConn) error { _, err := c.Write(make([]byte, 100)); return err },
		"the memory":      func(c *SharedConn) error { _, err := c.Write(make([]byte, earlyMax+1)); return err },
	} {
		for _, behind := range []int{0, room} { // that many bytes, which the peer has not read
			spec, err := newPipeSpec(localPrefix+freshName(), PipeConfig{ReadBuffer: room, WriteBuffer: room})
			if err != nil {
				t.Fatal(err)
			}
			h, err := spec.create(true)
			if err != nil {
				t.Fatal(err)
			}
			peer := newFD(h, streams, spec.ends, true)
			base, err := openClient(nil, spec.target, streams, Duplex, Identification.flags())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := base.write(make([]byte, behind)); err != nil {
				t.Fatal(err)
			}
			base.sends = streams // Wine says that it sends messages
			cfg, _ := ShareConfig{}.complete()
			c := newSharedConn(endpoint{fd: base}, cfg, false)
			used := make(chan error, 1)
			go func() { used <- use(c) }()
			p := make([]byte, helloSize+1000)
			part := 5
			if behind > 0 {
				part = 0
				for there := 0; there <= behind; {
					if _, there, err = peer.peek(nil); err != nil {
						t.Fatal(err)
					}
				}
			} else if _, err := io.ReadFull(readerOf(peer.read), p[:part]); err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Unix(1, 0))
			err = <-used
			c.SetDeadline(time.Now().Add(20 * time.Second))
			if behind > 0 {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s, not read: %v", name, err)
				}
				go use(c)
				if n, err := io.ReadFull(readerOf(peer.read), p[:behind+len(helloMark)]); err != nil {
					t.Errorf("%s, not read: then the peer gets %q, %v", name, p[:n], err)
				}
			} else {
				if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s, read in part: %v", name, err)
				}
				if err := use(c); !errors.Is(err, syscall.EPIPE) {
					t.Errorf("%s, read in part, and again: %v", name, err)
				}
				c.Close()
				if n, err := peer.read(p); err != io.EOF {
					t.Errorf("%s, read in part: then the peer gets %q, %v", name, p[:n], err)
				}
			}
			c.Close()
			peer.close()
		}
	}
}

// ---------------------------------------------------------------------------
// Instances

// A client can connect to an instance from its birth on. One that does so, writes
// and leaves before the listener asks for a client is heard like any other, and one
// that says nothing is not seen.
func TestListenerHearsAClientThatLeftBeforeItsInstanceListens(t *testing.T) {
	dog := time.AfterFunc(5*time.Minute, func() { panic("accept hangs") })
	defer dog.Stop()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, words := range []string{"", "last words"} {
		spec, err := newPipeSpec(localPrefix+freshName(), PipeConfig{})
		must(err)
		s, err := newInstances(spec, 1, 0)
		must(err)
		h, err := spec.create(true)
		must(err)
		visit := func(words string) {
			t.Helper()
			fd, err := connect(&retryTimer{ctx: context.Background()}, spec.target, streams, nil)
			must(err)
			_, err = fd.write([]byte(words))
			must(err)
			must(fd.close())
		}
		visit(words)
		s.arm(h)
		l, err := s.listen(false)
		must(err)
		if words == "" { // nobody is to come
			must(l.setDeadline(time.Now().Add(10 * time.Millisecond)))
		}
		server, err := l.accept(false)
		if words == "" {
			if err != os.ErrDeadlineExceeded {
				t.Errorf("a client that said nothing: %v, %v", server, err)
			}
			must(l.setDeadline(time.Time{}))
			visit("its place is free again")
			server, err = l.accept(false)
			words = "its place is free again"
		}
		must(err)
		got, err := io.ReadAll(readerOf(server.read))
		if must(err); string(got) != words {
			t.Errorf("read %q, want %q", got, words)
		}
		must(server.close())
		must(l.close())
	}
}

// look closes an instance only if close has left that to it.
func TestLookLeavesItsInstanceToClose(t *testing.T) {
	internalStory(t)
	l, err := listenPipe(localPrefix+freshName(), PipeConfig{MaxInstances: 1})
	if err != nil {
		t.Fatal(err)
	}
	client, err := openClient(nil, l.spec.target, streams, Duplex, Identification.flags())
	if err != nil {
		t.Fatal(err)
	}
	defer client.close()
	l.mu.Lock()
	in := l.armed[0]
	for in.looking || !l.refresh(in) { // that of watch
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
	}
	in.looking = true
	l.mu.Unlock()
	l.closed.Store(true) // as close does at first
	l.look(in)
	l.closed.Store(false)
	var flags uint32
	if r, _, err := syscall.SyscallN(procGetHandleInformation.Addr(), uintptr(in.sys), uintptr(unsafe.Pointer(&flags))); r == 0 {
		t.Errorf("the handle that close will close: %v", err)
	}
	l.close()
}

// Calls that sleep do not keep the name of a listener that was closed: nobody holds up the close of an
// instance without a client.
func TestListenerCloseFreesTheNameBesideClosesThatSleep(t *testing.T) {
	internalStory(t)
	l, err := Listen(Addr{})
	if err != nil {
		t.Fatal(err)
	}
	held := make(chan struct{})
	defer close(held)
	for range closersMax {
		l.listener.ends.add(func() { <-held })
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(l.addr); !errors.Is(err, ErrNoListener) {
		t.Errorf("Dial: %v", err)
	}
	if l, err = Listen(l.addr); err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// A client that an Accept took, and that leaves after the deadline of that, gives its place back.
func TestListenerGivesThePlaceOfAGuestBack(t *testing.T) {
	internalStory(t)
	path := localPrefix + freshName()
	l, err := ListenPipe(path, PipeConfig{MaxInstances: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	first, err := DialPipe(context.Background(), path, PipeDialer{})
	if err != nil {
		t.Fatal(err)
	}
	isGuest := func() bool {
		l.end().mu.Lock()
		defer l.end().mu.Unlock()
		return len(l.end().guests) > 0
	}
	for limit := 100 * time.Microsecond; !isGuest(); limit += 10 * time.Microsecond {
		l.SetDeadline(time.Now().Add(limit))
		if c, err := l.AcceptPipe(); err == nil {
			c.Close()
			t.Skip("the answer came in time")
		}
	}
	first.Close()
	second, err := DialPipe(context.Background(), path, PipeDialer{Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

// Connections that were dropped without Close leave the name to others, if no instance is
// armed. The listener adds no instance to the pipe that they make.
func TestListenerAddsNoInstanceToThePipeOfAnother(t *testing.T) {
	internalStory(t)
	path := localPrefix + freshName()
	l, err := listenPipe(path, PipeConfig{MaxInstances: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	connect := func() (server *fd) {
		t.Helper()
		client, err := openClient(nil, path, streams, Duplex, Identification.flags())
		if err != nil {
			t.Fatal(err)
		}
		defer client.close()
		if server, err = l.accept(false); err != nil {
			t.Fatal(err)
		}
		return server
	}
	drop := func(server *fd) { // it is not counted out yet
		server.quota = nil
		server.close()
	}
	take := func(when string, want error, armed int) {
		t.Helper()
		if f, _, err := l.take(l.accepts); f != nil || !errors.Is(err, want) || len(l.armed) != armed {
			t.Fatalf("%s: %v, %v, %d armed", when, f, err, len(l.armed))
		}
	}
	first, second := connect(), connect()
	drop(first)
	if l.forget(); len(l.armed) > 0 {
		t.Error("an instance was armed, though nobody knows for which pipe")
	}
	take("a connection keeps the name", nil, 1)
	drop(connect())
	drop(second)
	spec, err := newPipeSpec(path, PipeConfig{Access: Everyone})
	if err != nil {
		t.Fatal(err)
	}
	other, err := spec.create(true)
	if err != nil {
		t.Fatal(err)
	}
	l.forget()
	take("no connection keeps the name", ErrAddrInUse, 0)
	l.forget()
	take("no connection is left", ErrAddrInUse, 0)
	if info, err := localInfo(other); err != nil || info.count != 1 {
		t.Errorf("the other pipe has %d instances, %v", info.count, err)
	}
	syscall.CloseHandle(other)
	take("the name is free", nil, 2)
	connect().close()
}

// A readerOf reads with the function.
type readerOf func(p []byte) (int, error)

func (read readerOf) Read(p []byte) (int, error) { return read(p) }

// A handle that does not wait looks like one at the end of its stream.
func TestPipeThatDoesNotWaitIsRefused(t *testing.T) {
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	defer b.close()
	f, err := b.dupFile("pipe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	setMode := func(mode uint32) {
		t.Helper()
		err := b.control("SetNamedPipeHandleState", func(h syscall.Handle) error {
			r, _, errno := syscall.SyscallN(procSetNamedPipeHandleState.Addr(), uintptr(h), uintptr(unsafe.Pointer(&mode)), 0, 0)
			return failure(r, errno)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	const noWait = 1 // PIPE_NOWAIT
	setMode(noWait)
	if c, err := FileConn(f); err == nil {
		c.Close()
		t.Error("it was adopted")
	}
	setMode(0)
	c, err := FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// NtCreateNamedPipeFile takes no default wait of 0, and one of less than 100 ns is none.
func TestPipeConfigDefaultWaitIsNeverNothing(t *testing.T) {
	for wait, want := range map[time.Duration]int64{
		0: -500000, -1: -1 << 63, 1: -1, 99: -1, 100: -1, 250: -2, time.Second: -1e7,
	} {
		spec, err := newPipeSpec(localPrefix+freshName(), PipeConfig{DefaultWait: wait})
		if err != nil {
			t.Fatal(err)
		}
		if spec.wait != want {
			t.Errorf("a wait of %v becomes %d, want %d", wait, spec.wait, want)
		}
	}
}

// ---------------------------------------------------------------------------
// Groups

// sidUsers is BUILTIN\Users, a group that every Windows has.
const sidUsers = "S-1-5-32-545"

func TestSysListenConfigGroupIsResolvedByNameAndSID(t *testing.T) {
	if got, err := resolveGroup(sidUsers); got != sidUsers || err != nil {
		t.Errorf("%s is %q, %v", sidUsers, got, err)
	}
	sid, err := syscall.StringToSid(sidUsers)
	if err != nil {
		t.Fatal(err)
	}
	name, _, _, err := sid.LookupAccount("") // in the language of this system
	if err != nil {
		t.Fatal(err)
	}
	if got, err := resolveGroup(name); got != sidUsers || err != nil {
		t.Errorf("%q is %q, %v", name, got, err)
	}
	if got, err := resolveGroup("no such group"); got != "" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a group that does not exist is %q, %v", got, err)
	}
	if got, err := resolveGroup("S-one"); got != "" || err == nil {
		t.Errorf("what is no SID is %q, %v", got, err)
	}
	me, err := currentUser()
	if err != nil {
		t.Fatal(err)
	}
	if sid, err = syscall.StringToSid(me); err != nil {
		t.Fatal(err)
	}
	if name, _, kind, err := sid.LookupAccount(""); err == nil && kind == syscall.SidTypeUser {
		if got, err := resolveGroup(name); err == nil {
			t.Errorf("the user %q is the group %q", name, got)
		}
	}
}

func TestSysListenConfigGroupIsInTheDACL(t *testing.T) {
	c := PipeConfig{}
	if err := c.admitGroup(sidUsers); err != nil {
		t.Fatal(err)
	}
	own, err := OwnerOnly.SecurityDescriptor()
	if err != nil {
		t.Fatal(err)
	}
	want, _ := own.DACL()
	want = append(want, AccessEntry{SID: sidUsers, Mask: ClientRights})
	if got, ok := c.Security.DACL(); !ok || !slices.Equal(got, want) {
		t.Errorf("the DACL is %v, want %v", got, want)
	}
	if err := c.admitGroup(sidUsers); err == nil {
		t.Error("a group is added to a security descriptor of the caller")
	}
	none := PipeConfig{}
	if err := none.admitGroup(""); err != nil || none.Security != nil {
		t.Errorf("no group makes %v, %v", none.Security, err)
	}
	lc := ListenConfig{Group: sidUsers}
	l, err := lc.Listen(Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.listener.control(func(h syscall.Handle) error {
		sd, err := securityOf(h)
		if err != nil {
			return err
		}
		if got, ok := sd.DACL(); ok && len(got) > 0 && !slices.ContainsFunc(got, func(e AccessEntry) bool { return e.SID == sidUsers }) {
			t.Errorf("the DACL of the pipe is %v", got) // Wine keeps none
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	lc = ListenConfig{Group: sidUsers, Sys: &SysListenConfig{Security: c.Security}}
	if l, err := lc.Listen(Addr{}); err == nil {
		l.Close()
		t.Error("Group and Sys.Security are accepted together")
	}
}

// ---------------------------------------------------------------------------
// Text and descriptors from outside

var targetSeeds = []string{
	"", "a", "@a", "a\x00b", `\\.\pipe\a`, `\\.\PIPE\a`, `//./pipe/a`, `\\?\pipe\a`, `\\host\pipe\a\b`, `\\.\pipe\`, `\\.\pipe`,
	`\\.\pipe\a\..\b`, `\\.\pipe\a.`, `\\.\pipe\a `, `\\.\pipe\\a`, `\\\pipe\a`, `\\.\pipes\a`, `C:\a`, "a/b", "/a", "a/", "..", "ü", "\xff",
	"\U0001f600", "\xed\xa0\x80", strings.Repeat("n", 247), strings.Repeat("n", 248), strings.Repeat("\U0001f600", 124),
}

// checkTarget takes the path of a pipe apart.
func checkTarget(t *testing.T, a Addr, _, target string) {
	host, name, ok := cutPipePath(target)
	if !ok || name == "" || a.kind == nameAddr && host != "." {
		t.Fatalf("%q is %q", a, target)
	}
	for element := range strings.SplitSeq(name, `\`) {
		if element == "" || element == "." || element == ".." {
			t.Fatalf("%q is %q, which is not the pipe of that name", a, target)
		}
	}
	if strings.ContainsAny(target, "\x00/") || len(utf16.Encode([]rune(target))) > pathMax {
		t.Fatalf("%q is %q", a, target)
	}
	if again, err := Path(target).resolve(); again != target || err != nil {
		t.Fatalf("%q is %q, and that is %q, %v", a, target, again, err)
	}
}

// FuzzSDDL reads descriptions of access of any text. What the system accepts it
// writes in words of its own, which mean the same.
func FuzzSDDL(f *testing.F) {
	for _, s := range []string{
		"", "O:SY", "O:SYG:BAD:P(A;;GA;;;SY)", "D:", "D:P", "D:(A;;0x12019b;;;S-1-1-0)(D;;FR;;;AN)", "D:NO_ACCESS_CONTROL",
		"D:P(A;;GA;;;SY", "O:S-1-5-21-1-2-3-1000D:P(A;;FA;;;S-1-5-18)", "S:(ML;;NW;;;LW)", "D:(A;;GA;;;WD)S:(ML;;NW;;;ME)",
		"D:(OA;;CCDC;bf967aba-0de6-11d0-a285-00aa003049e2;;SY)", "D:(XA;;GX;;;S-1-1-0;(@User.Title==\"PM\"))", "D:\x00", "\xff", "O:",
		"D:(A;;99999999999;;;SY)", "D:(A;;GA;;;S-1-5-4294967296)", "G:BAO:SY", "D:AI(A;ID;FA;;;SY)", strings.Repeat("(A;;GA;;;SY)", 50),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sddl string) {
		sd, err := ParseSDDL(sddl)
		if err != nil {
			var oe *net.OpError
			if sd != nil || !errors.As(err, &oe) || oe.Op != "parse" {
				t.Fatalf("%q gives %v, %#v", sddl, sd, err)
			}
			return
		}
		owner, group, text := sd.Owner(), sd.Group(), sd.String()
		entries, ok := sd.DACL()
		if text == "" { // the system cannot say it, or there is nothing to say
			return
		}
		again, err := ParseSDDL(text)
		if err != nil {
			t.Fatalf("%q is written %q: %v", sddl, text, err)
		}
		if e, k := again.DACL(); again.Owner() != owner || again.Group() != group || !slices.Equal(e, entries) || k != ok {
			t.Fatalf("%q is written %q, and that means %q", sddl, text, again)
		}
	})
}

// FuzzDescriptor takes apart security descriptors of any content.
func FuzzDescriptor(f *testing.F) {
	for _, s := range []string{"O:SYG:BAD:P(A;;GA;;;SY)(D;;FR;;;AN)", "D:NO_ACCESS_CONTROL", "O:SY", "D:P"} {
		if sd, err := ParseSDDL(s); err == nil {
			f.Add(sd.raw)
			f.Add(sd.raw[:len(sd.raw)-1])
			f.Add(sd.raw[:len(sd.raw)/2])
		}
	}
	f.Add([]byte{})
	f.Add(make([]byte, 19))
	f.Add(make([]byte, 20))
	f.Add(slices.Repeat([]byte{0x7f}, 40))
	f.Add(slices.Repeat([]byte{0x14, 0, 0, 0}, 40))
	f.Add(slices.Repeat([]byte{0xff}, 40)) // offsets that are negative in 32 bits
	f.Fuzz(func(t *testing.T, raw []byte) {
		sd := &SecurityDescriptor{raw}
		for _, sid := range []string{sd.Owner(), sd.Group()} {
			if sid != "" && !strings.HasPrefix(sid, "S-") {
				t.Fatalf("a user is %q", sid)
			}
		}
		if entries, ok := sd.DACL(); !ok && entries != nil || len(entries) > 1<<16 {
			t.Fatalf("%d entries, %t", len(entries), ok)
		}
	})
}

// ---------------------------------------------------------------------------
// Spins

// TestPipeSpinIsPassedOn checks that both ends of a pipe have the Spin of their options.
func TestPipeSpinIsPassedOn(t *testing.T) {
	path := localPrefix + freshName()
	l, err := ListenPipe(path, PipeConfig{Spin: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := DialPipe(context.Background(), path, PipeDialer{Spin: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.AcceptPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if s, c := server.fd.spin.Load(), client.fd.spin.Load(); s != -1 || c != int64(time.Millisecond) {
		t.Errorf("the server's end has %d, the client's %d", s, c)
	}
}

// A client is not lost if an instance is armed before anybody looks.
func TestPipeListenerArmingAnInstanceHidesNoClient(t *testing.T) {
	internalStory(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		spec, err := newPipeSpec(localPrefix+freshName(), PipeConfig{})
		must(err)
		s, err := newInstances(spec, 2, 0)
		must(err)
		must(s.add(true))
		waitFor(s.event, 0) // whatever that told
		client, err := connect(&retryTimer{ctx: context.Background()}, spec.target, streams, nil)
		must(err)
		must(s.add(false))
		if e, err := syscall.WaitForSingleObject(s.event, 0); e != syscall.WAIT_OBJECT_0 {
			t.Errorf("nothing tells of the client: %d, %v", e, err)
		}
		must(client.close())
		must(s.close())
	}
}

// A handle for reading alone stays one, also if who has it asks for more rights.
// The owner of a section may not change who may write to it. Wine keeps the entry that says so,
// and lets the owner do it.
func TestMemoryOwnerMayNotChangeItsRights(t *testing.T) {
	internalStory(t)
	m, err := newMemory(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	err = withFile(m.object, func(sys uintptr) error {
		sd, err := securityOf(syscall.Handle(sys))
		if err == nil {
			entries, _ := sd.DACL()
			if len(entries) != 1 || entries[0] != (AccessEntry{sidOwnerRights, readControl, false}) {
				t.Errorf("%v", sd)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if procClientComputerName.Find() != nil {
		return // Wine
	}
	err = withFile(m.readOnly, func(sys uintptr) error {
		const writeDAC = 0x40000 // winnt.h: WRITE_DAC
		var h syscall.Handle
		err := syscall.DuplicateHandle(currentProcess, syscall.Handle(sys), currentProcess, &h, writeDAC, false, 0)
		if err == nil {
			syscall.CloseHandle(h)
		}
		return err
	})
	if err != syscall.ERROR_ACCESS_DENIED {
		t.Errorf("for WRITE_DAC the error is %v", err)
	}
}

func TestMemoryReadOnlyFileStaysReadOnly(t *testing.T) {
	internalStory(t)
	m, err := NewMemory(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f, err := m.ReadOnlyFile()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const sectionMapWrite = 2 // winnt.h: SECTION_MAP_WRITE
	err = withFile(f, func(sys uintptr) error {
		var h syscall.Handle
		err := syscall.DuplicateHandle(currentProcess, syscall.Handle(sys), currentProcess, &h, sectionQuery|sectionMapRead|sectionMapWrite, false, 0)
		if err == nil {
			syscall.CloseHandle(h)
		}
		return err
	})
	if err != syscall.ERROR_ACCESS_DENIED {
		t.Errorf("for the right to write the error is %v", err)
	}
}

// Accept itself asks nothing about a client, which could hold that up, also if the answer was that nobody
// knows, or if who it is came to matter only after it was asked.
func TestAcceptItselfAsksNothingOfAClient(t *testing.T) {
	internalStory(t)
	l, err := Listen(Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := l.listener.instances
	dial := func() {
		c, err := Dial(l.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	accept := func() *fd {
		f, err := s.accept(true)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.close() })
		return f
	}

	dial()
	turn := s.beginAccept(false)
	for answered := false; !answered; { // until it was asked, but not who it is
		if f, _, err := s.take(turn + 1); f != nil || err != nil {
			t.Fatalf("%v, %v", f, err)
		}
		s.mu.Lock()
		answered = len(s.guests) > 0 && s.guests[0].answered
		s.mu.Unlock()
	}
	s.endAccept()
	if accept().met.Load() == nil {
		t.Error("who the client is is not known")
	}

	var calls atomic.Int32
	replaceCall(t, procOpenThreadToken, func(uintptr) any {
		return func(thread, access, self, token uintptr) uintptr {
			calls.Add(1)
			return 0
		}
	})
	dial()
	f := accept()
	before := calls.Load()
	if before == 0 {
		t.Error("nobody was asked")
	}
	f.peer()
	if n := calls.Load() - before; n != 0 {
		t.Errorf("%d questions more", n)
	}
	f.peer() // which may know more, as any later call
	if calls.Load() == before {
		t.Error("the answer is an old one")
	}
}

// Clients that hold their pipes delay the close of no pipe that is not their listener's.
func TestCloseIsNotHeldByTheClientsOfAnotherListener(t *testing.T) {
	internalStory(t)
	l, err := Listen(Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	evil := l.listener.ends
	client, err := Dial(l.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	wake := keepAllAsleep(evil)
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.closeLater(), b.closeLater(), server.fd.closeLater()); err != nil {
		t.Fatal(err)
	}
	<-a.gone
	<-b.gone
	if server.fd.by != evil {
		t.Error("others close the pipes of the listener")
	}
	wake()
	<-server.fd.gone
}
