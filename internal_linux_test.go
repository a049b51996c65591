package ipc

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

func TestPeerFullMapGivesEveryIDAMapping(t *testing.T) {
	for _, c := range []struct {
		text string
		full bool
	}{
		{"         0          0 4294967295\n", true},
		{"0 0 4294967295", true},
		{"0 1000 1\n1 0 1000\n1001 1001 4294966294\n", true}, // two ids change places
		{"", false}, // not written yet
		{"0 0 4294967294\n", false},
		{"0 100000 65536\n", false},
		{"0 1000 1\n", false},
		{"0 0\n", false},
		{"0 0 many\n", false},
		{"0 0 -1\n", false},
		{"0 0 4294967295 1\n", false},
		{"0 0 4294967296\n", false},
	} {
		if got := isFullMap(c.text); got != c.full {
			t.Errorf("%q is full: %v", c.text, got)
		}
	}
}

func TestPeerOverflowIDIsThatOfTheKernel(t *testing.T) {
	for _, c := range []struct {
		text string
		err  error
		id   uint32
	}{
		{"65534\n", nil, 65534}, {"60000\n", nil, 60000}, {"", nil, 65534}, {"none\n", nil, 65534},
		{"60000\n", errors.New("not read"), 65534},
	} {
		if got := overflowID(c.text, c.err); got != c.id {
			t.Errorf("%q, %v is %d, want %d", c.text, c.err, got, c.id)
		}
	}
}

// Without descriptors it is not known which id is that of nobody.
func TestPeerIsUnknownWhileTheOverflowIDCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	ids := idMap{mapFile: dir + "/map", overflowFile: dir + "/overflow"}
	for file, text := range map[string]string{ids.mapFile: "0 100000 65536\n", ids.overflowFile: "9999\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if !ids.hides(9999) || ids.hides(1000) {
		t.Error("the id is not that of the file")
	}
	never := idMap{mapFile: ids.mapFile, overflowFile: ids.overflowFile}
	withoutDescriptors(t, func() {
		if !ids.hides(9999) || ids.hides(1000) {
			t.Error("the id is not what it was")
		}
		if !never.hides(9999) {
			t.Error("the id of nobody is taken for a user")
		}
	})
}

// withoutDescriptors makes the call while this process can open nothing.
func withoutDescriptors(t *testing.T, call func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	none := before
	none.Cur = 0
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
	}()
	call()
}

// An answer about many sockets comes in parts, between which one may be left out.
func TestBoundAtOnceTellsAnAnswerInParts(t *testing.T) {
	if descriptorLimit() < 3000 {
		t.Skip("this process may have too few descriptors")
	}
	absent := fileID{1, 1<<32 - 2}
	for range 1000 {
		a, b, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		defer b.Close()
	}
	bound, whole, err := boundAtOnce(absent)
	if err != nil {
		t.Skip(err)
	}
	if bound || whole {
		t.Errorf("of an inode that no socket has: bound %t, and the answer is whole: %t", bound, whole)
	}
}

// ownProgram returns the file of this program, where it can be started as it is.
func ownProgram(t *testing.T) string {
	t.Helper()
	if os.Getenv("IPC_TEST_EXEC") != "" {
		t.Skip("the program needs another one to run it")
	}
	program, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	return program
}

// startIdle starts a process that does nothing until it is killed, and is not waited
// for.
func startIdle(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(ownProgram(t))
	cmd.Env = append(os.Environ(), "IPC_TEST_CHILD=stays")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); in.Close(); cmd.Wait() })
	return cmd
}

// The first waits of a process do not spin. On one CPU, where a spin keeps the peer from
// answering, hardly any does.
func TestSpinNotAmongTheFirstWaits(t *testing.T) {
	const child = "IPC_TEST_FIRST_WAITS"
	if os.Getenv(child) != "" {
		first := func(what string, e *experience, want int) {
			t.Helper()
			n := 0
			for ; n < want && !e.allows(new(backoff)); n++ {
				e.skipped(new(backoff))
			}
			if n != want || !e.allows(new(backoff)) {
				t.Errorf("the first %d waits do not %s, want %d", n, what, want)
			}
		}
		first("yield", &spinning.yields, firstWaits)
		if oneCPU {
			first("spin", &spinning.spins, skipDoubted)
		} else {
			first("spin", &spinning.spins, firstWaits)
		}
		if doubted := spinning.spins.most == skipDoubted; doubted != oneCPU {
			t.Errorf("one CPU: %t, spins are doubted: %t", oneCPU, doubted)
		}
		return
	}
	program := ownProgram(t)
	start := func() {
		t.Helper()
		cmd := exec.Command(program, "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("%v: %s", err, out)
		}
	}
	start()
	runtime.LockOSThread() // this thread and its child have one CPU from now on; it ends with this goroutine
	var mask cpuMask
	if !mask.get() {
		t.Skip("sched_getaffinity(2) is refused")
	}
	for cpu := 0; mask.count() > 1; cpu++ {
		mask.remove(cpu)
	}
	if !mask.set() {
		t.Skip("sched_setaffinity(2) is refused")
	}
	start()
}

// TestWaitPeerWatchesNoticeTheEnd has every way of watching that an older kernel, or a sandbox,
// leaves.
func TestWaitPeerWatchesNoticeTheEnd(t *testing.T) {
	for what, watch := range map[string]func(pid int) (processWatch, error){
		"PidfdOpen": kern.watchProcess,
		"Number":    baseKernel{}.watchProcess,
		"Unpolled":  openUnpolled,
	} {
		t.Run(what, func(t *testing.T) {
			cmd := startIdle(t)
			w, err := watch(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			defer w.close()
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			if err := w.wait(ctx); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("of a process that lives: %v", err)
			}
			cmd.Process.Kill()
			ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := w.wait(ctx); err != nil { // nobody has waited for it
				t.Errorf("of a process that has ended: %v", err)
			}
			cmd.Wait()
			if w, err := watch(cmd.Process.Pid); err == nil {
				defer w.close()
				if err := w.wait(ctx); err != nil {
					t.Errorf("of a process that was waited for: %v", err)
				}
			} else if err != errProcessEnded {
				t.Errorf("a process that was waited for cannot be watched: %v", err)
			}
		})
	}
}

// openUnpolled returns a watch whose file is not with the poller: it is not nonblocking.
func openUnpolled(pid int) (processWatch, error) {
	pidfd, _, errno := syscall.Syscall(434, uintptr(pid), 0, 0) // pidfd_open(2)
	switch errno {
	case 0:
		return pidfdWatch{os.NewFile(pidfd, "pidfd")}, nil
	case syscall.ENOSYS, syscall.EPERM:
		return kern.watchProcess(pid)
	}
	return nil, errProcessEnded
}

// A thread that leaves its CPU may run on all of them again, however often it does so.
func TestSpinLeavingTheCPUGivesItBack(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after cpuMask
	if !before.get() {
		t.Skip("the kernel does not tell")
	}
	for range 3 {
		kern.leaveCPU()
		if after = (cpuMask{}); !after.get() || after != before {
			t.Fatalf("the thread may run on %x, before on %x", after, before)
		}
	}
}

// Memory is refused that has another size than the hello says, could shrink, or could have
// holes punched into it, and what is no memory, though the doorbells are good.
func TestSharedHelloWithWrongMemory(t *testing.T) {
	whole := controlSize + ringMin
	for name, size := range map[string]int{"without the control page": ringMin, "a page less": whole - os.Getpagesize(),
		"a byte less": whole - 1, "a byte more": whole + 1, "more": whole + ringMin, "may shrink": whole, "may be punched": whole, "no memory": 0} {
		for _, passive := range []bool{false, true} {
			memory, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			if size > 0 {
				files, err := newMemory(size)
				if err != nil {
					t.Skip(err)
				}
				memory.Close()
				memory = files.object
			}
			switch {
			case name == "may be punched" && !sealsWrites():
				memory.Close()
				continue
			case size > 0 && name != "may shrink":
				if err := sealMemory(memory, name != "may be punched"); err != nil {
					t.Fatal(err)
				}
			}
			near, far, err := newBell()
			if err != nil {
				t.Fatal(err)
			}
			c, peer := halfShared(t, passive)
			hello := helloOf(helloMemory, ringMin)
			if err := peer.fd.sendWithFiles(hello[:], []*os.File{memory, far.File, far.File}); err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.EPROTO) {
				t.Errorf("%s: the error is %v", name, err)
			}
			c.Close()
			peer.Close()
			near.close()
			far.close()
			memory.Close()
		}
	}
}

// A server that has no descriptors left for the memory of a client serves it through the
// socket.
func TestSharedServerWithoutDescriptorsUsesTheSocket(t *testing.T) {
	c, peer := halfShared(t, true)
	cfg, _ := ShareConfig{}.complete()
	p := newSharedConn(peer.endpoint, cfg, false)
	const size = earlyMax + 1000
	wrote := make(chan error, 1)
	go func() { _, err := p.Write(make([]byte, size)); wrote <- err }()
	for !SentMemory(p) {
		runtime.Gosched()
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	p.SetDeadline(time.Now().Add(20 * time.Second))
	var err error
	withoutDescriptors(t, func() { _, err = io.ReadFull(c, make([]byte, size)) })
	if err != nil || UsesMemory(c) {
		t.Errorf("the server reads with %v, through memory: %v", err, UsesMemory(c))
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	p.Close()
}

// A peer whose memory may be punched is refused also by a process that has no descriptors left,
// and by that process later.
func TestSharedHelloWithWrongMemoryForAServerWithoutDescriptors(t *testing.T) {
	if !sealsWrites() {
		t.Skip("this kernel has no F_SEAL_FUTURE_WRITE")
	}
	punchable := func() error { return kern.keepsPages(memoryInfo{size: 1, punchable: true}) }
	var err error
	withoutDescriptors(t, func() { err = punchable() })
	if err == nil || punchable() == nil {
		t.Errorf("without descriptors: %v, then: %v", err, punchable())
	}
	if err := kern.keepsPages(memoryInfo{size: 1}); err != nil {
		t.Error(err)
	}
}

// A doorbell takes no files where the kernel can refuse them. Elsewhere the first one ends the connection,
// and is not even taken while many wait to be closed.
func TestSharedDoorbellFiles(t *testing.T) {
	send := func(b *SharedConn, sent *filesProbe) error {
		_, err := kern.sendmsg(b.w.far.sys, zeroByte[:], syscall.UnixRights(int(sent.w.Fd())), dontWait|noSignal)
		return err
	}
	t.Run("refused", func(t *testing.T) {
		a, b := sharedInMemory(t)
		if a.r.bell.files.Load() == filesCome {
			t.Skip("no SO_PASSRIGHTS")
		}
		if err := send(b, newFilesProbe(t)); err != syscall.EPERM {
			t.Errorf("the peer sends a file with %v", err)
		}
		converse(t, a, b, 50)
	})
	for name, hold := range map[string]bool{"closed": false, "not taken": true} {
		t.Run(name, func(t *testing.T) {
			a, b := sharedInMemory(t)
			takesFiles(a.r.bell)
			sent := newFilesProbe(t)
			if err := send(b, sent); err != nil {
				t.Fatal(err)
			}
			if hold {
				defer holdClosers(&disposal, true)()
			}
			waiting := disposal.waiting.Load()
			a.SetDeadline(time.Now().Add(20 * time.Second))
			_, err := a.Read(make([]byte, 1))
			isProtocolError(t, err)
			if n := disposal.waiting.Load() - waiting; hold && n != 0 {
				t.Errorf("%d files wait to be closed", n)
			}
			a.Close()
			sent.allClosed()
		})
	}
	t.Run("none", func(t *testing.T) { // rings are taken all the same
		a, b := sharedInMemory(t)
		for _, end := range [...]*SharedConn{a, b} {
			end.SetSpin(-1)
			takesFiles(end.r.bell)
			takesFiles(end.w.bell)
		}
		defer holdClosers(&disposal, true)()
		converse(t, a, b, 50)
	})
}

// takesFiles makes the near end of a doorbell one of a kernel that cannot refuse files.
func takesFiles(near *fd) {
	syscall.SetsockoptInt(near.sys, syscall.SOL_SOCKET, soPassRights, 1)
	near.files.Store(filesCome)
}

// Before a read parks it looks whether there is nothing. It must park then alone.
func TestLookTellsTheEndAndAnEmptyMessageFromNothing(t *testing.T) {
	for what, c := range map[string]struct {
		typ  int
		send func(far int) error
		want error
	}{
		"nothing":          {syscall.SOCK_STREAM, func(int) error { return nil }, syscall.EAGAIN},
		"a byte":           {syscall.SOCK_STREAM, func(far int) error { _, err := syscall.Write(far, []byte("x")); return err }, nil},
		"the end":          {syscall.SOCK_STREAM, func(far int) error { return syscall.Shutdown(far, syscall.SHUT_WR) }, nil},
		"no message":       {syscall.SOCK_SEQPACKET, func(int) error { return nil }, syscall.EAGAIN},
		"an empty message": {syscall.SOCK_SEQPACKET, func(far int) error { return syscall.Sendto(far, nil, 0, nil) }, nil},
		"a message":        {syscall.SOCK_SEQPACKET, func(far int) error { _, err := syscall.Write(far, []byte("xyz")); return err }, nil},
		"the last message": {syscall.SOCK_SEQPACKET, func(far int) error { return syscall.Shutdown(far, syscall.SHUT_WR) }, nil},
	} {
		s, err := syscall.Socketpair(syscall.AF_UNIX, c.typ|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.send(s[1]); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for range 2 { // it takes nothing
			if got := kern.look(s[0]); got != c.want {
				t.Errorf("with %s in the queue look says %v, want %v", what, got, c.want)
			}
		}
		syscall.Close(s[0])
		syscall.Close(s[1])
	}
}

// A look takes the error of a socket, which is told once: it is the error of the read.
func TestReadThatParksTellsOfAReset(t *testing.T) {
	for _, kind := range []connKind{streams, messages} {
		a, b, err := pair(kind)
		if err != nil {
			t.Fatal(err)
		}
		defer a.close()
		if err := a.send([]byte("unread")); err != nil {
			t.Fatal(err)
		}
		b.close()
		a.spin.Store(-1)
		a.r.expectPark = expectParkMax + 1 // so that it looks
		if err := a.acquire(&a.r); err != nil {
			t.Fatal(err)
		}
		_, _, _, err = a.recvmsg(make([]byte, 1), nil, 0)
		a.release(&a.r)
		if err != syscall.ECONNRESET {
			t.Errorf("kind %d: the first receive after the peer closed with unread data returns %v", kind, err)
		}
	}
}

// refusing returns two ends of which the second refuses files.
func refusing(t *testing.T, before func(a *Conn)) (a, b *Conn) {
	t.Helper()
	a, b = connected(t)
	before(a)
	// An emulator may know only one of the two calls, and a sandbox accept what it does not know.
	err := syscall.SetsockoptInt(b.fd.sys, syscall.SOL_SOCKET, soPassRights, 1)
	if err == nil {
		_, err = syscall.GetsockoptInt(b.fd.sys, syscall.SOL_SOCKET, soPassRights)
	}
	if err != nil {
		t.Skip("no SO_PASSRIGHTS: ", err)
	}
	if err := b.RefuseFiles(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// readsWithoutRoom reports whether a read of that end has no room for files.
func readsWithoutRoom(t *testing.T, c *Conn) bool {
	t.Helper()
	if err := c.fd.acquire(&c.fd.r); err != nil {
		t.Fatal(err)
	}
	defer c.fd.release(&c.fd.r)
	return c.fd.readMode()&withoutFiles != 0
}

func TestRefuseFilesKeepsRoomForWhatWasSentBefore(t *testing.T) {
	for what, sent := range map[string]struct{ bytes, flags int }{
		"a file with a byte":         {bytes: 1},
		"a file with some data":      {bytes: 5},
		"a file with an urgent byte": {bytes: 1, flags: syscall.MSG_OOB},
	} {
		t.Run(what, func(t *testing.T) {
			probe := newFilesProbe(t)
			_, b := refusing(t, func(a *Conn) {
				rights := syscall.UnixRights(int(probe.w.Fd()))
				if err := syscall.Sendmsg(a.fd.sys, make([]byte, sent.bytes), rights, nil, sent.flags); err == syscall.EOPNOTSUPP {
					t.Skip("no urgent bytes: ", err)
				} else if err != nil {
					t.Fatal(err)
				}
			})
			if readsWithoutRoom(t, b) {
				t.Error("a read has no room for what was sent before")
			}
			if _, err := b.Read(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			probe.allClosed()
			if !readsWithoutRoom(t, b) {
				t.Error("a read has room for files, though the queue was empty")
			}
		})
	}
}

// Another holder of the socket can have files come again.
func TestRefuseFilesKeepsRoomOnceOthersHaveIt(t *testing.T) {
	for how, share := range map[string]func(c *Conn) (io.Closer, error){
		"File": func(c *Conn) (io.Closer, error) { return c.File() },
		"SyscallConn": func(c *Conn) (io.Closer, error) {
			raw, err := c.SyscallConn()
			if err != nil {
				return nil, err
			}
			return io.NopCloser(nil), raw.Control(func(uintptr) {})
		},
	} {
		_, b := refusing(t, func(*Conn) {})
		if !readsWithoutRoom(t, b) {
			t.Fatal("a read has room for files that cannot come")
		}
		begun := op{call: opReceive, mode: withoutFiles, p: make([]byte, 1)}
		parked := newParking(b.fd)
		parked.op = begun
		holder, err := share(b)
		if err != nil {
			t.Fatal(err)
		}
		defer holder.Close()
		if parked.again(uintptr(b.fd.sys)) || parked.op.mode&withoutFiles != 0 {
			t.Errorf("%s: a read that was parked has no room for files", how)
		}
		if b.fd.heedOthers(&begun); begun.mode&withoutFiles != 0 {
			t.Errorf("%s: a read that spins has no room for files", how)
		}
		if readsWithoutRoom(t, b) {
			t.Errorf("%s: a read has no room for files", how)
		}
		if b.fd.closesAtOnce() {
			t.Errorf("%s: the close is one that cannot sleep", how)
		}
	}
}

// The system tells the error of a socket once: it is that of the read.
func TestRefuseFilesKeepsAReset(t *testing.T) {
	for _, wasEmpty := range []bool{false, true} {
		a, b := refusing(t, func(*Conn) {})
		if wasEmpty {
			readsWithoutRoom(t, b)
		}
		if _, err := b.Write([]byte("unread")); err != nil {
			t.Fatal(err)
		}
		a.Close()
		if _, err := b.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the first read after the peer closed with unread data returns %v", err)
		}
	}
}

// A file in an empty message is one that no count of bytes shows.
func TestRefuseFilesKeepsRoomForMessages(t *testing.T) {
	f := &fd{socket: true, kind: messages}
	f.files.Store(filesGone)
	if f.readMode() != 0 {
		t.Error("a receive of messages has no room for files")
	}
}

// A sandbox may forbid recvfrom(2).
func TestRefuseFilesReadsByRecvmsgIfItMust(t *testing.T) {
	a, b := refusing(t, func(*Conn) {})
	was := numbers.recvfrom
	defer func() { numbers.recvfrom = was }()
	for _, number := range []uintptr{was, 1 << 20} {
		if !readsWithoutRoom(t, b) {
			t.Error("a read has room for files that cannot come")
		}
		numbers.recvfrom = number
		if _, err := a.Write([]byte("data")); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 10)
		if n, err := b.Read(p); string(p[:n]) != "data" || err != nil {
			t.Errorf("%q is read, %v", p[:n], err)
		}
	}
}

// Another holder of a listener can make it blocking and take the client just before accept4(2), which
// waits no longer than the grace then. The limit is gone after the call: others may wait for longer.
func TestAcceptOfASharedListenerThatBlocksReturns(t *testing.T) {
	was := isBefore6_18
	defer func() { isBefore6_18 = was }()
	for _, old := range []bool{false, true} {
		isBefore6_18 = func() bool { return old }
		l, err := Listen(Addr{})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		sys := l.listener.fd.sys
		restore, err := limitAccept(sys)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.SetNonblock(sys, false); err != nil {
			t.Fatal(err)
		}
		if err := ignoringEINTR(func() error { _, err := accept4(sys); return err }); err != syscall.EAGAIN {
			t.Errorf("accept4 returns %v", err)
		}
		limitAccept(sys) // another holder, which does not come to restore its limit
		restore()
		limitAccept(sys)
		c, err := Dial(l.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var done result
		err = ignoringEINTR(func() (err error) { done, err = acceptClient(&op{mode: acceptShared}, sys); return err })
		if err != nil {
			t.Fatal(err)
		}
		syscall.Close(done.n)
		limit := make([]byte, unsafe.Sizeof(syscall.Timeval{}))
		n := len(limit)
		if err := getsockopt(sys, syscall.SO_RCVTIMEO, limit, &n); err != nil || strings.Trim(string(limit), "\x00") != "" {
			t.Errorf("the limit afterwards is %v, %v", limit, err)
		}
	}
}

// Where a close may collect what others left, closers make it. If all of those sleep, or the others, the
// peer is told the end all the same.
func TestCloseBehindClosersThatSleepTellsThePeer(t *testing.T) {
	was := isBefore6_9
	defer func() { isBefore6_9 = was }()
	for _, old := range []bool{false, true} {
		isBefore6_9 = func() bool { return old }
		for _, files := range []bool{false, true} {
			a, b := connected(t)
			if files {
				null, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				defer null.Close()
				if err := a.SendFiles(null); err != nil {
					t.Fatal(err)
				}
			}
			release := holdClosers(&socketEnds, true)
			b.Close()
			a.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := a.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("before Linux 6.9: %t, with a file: %t: the peer reads %v", old, files, err)
			}
			release()
		}
	}
}

// A client of a listener that refuses files can send none, whether it was accepted or not, and one that
// connected before can send none once it is accepted.
func TestListenerRefuseFiles(t *testing.T) {
	l, err := Listen(Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial := func() *Conn {
		c, err := Dial(l.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	before := dial()
	if err := l.RefuseFiles(); errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	after := dial()
	if err := after.SendFiles(null); !errors.Is(err, os.ErrPermission) {
		t.Errorf("SendFiles of a client that is not accepted: %v", err)
	}
	for _, c := range []*Conn{before, after} {
		s, err := l.AcceptConn()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := c.SendFiles(null); !errors.Is(err, os.ErrPermission) {
			t.Errorf("SendFiles of a client that is accepted: %v", err)
		}
	}
	l.Close()
	if err := l.RefuseFiles(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("RefuseFiles after Close: %v", err)
	}
	var zero Listener
	if err := zero.RefuseFiles(); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("RefuseFiles of a zero Listener: %v", err)
	}
}

// Unread data needs no goroutine to close, but files may.
func TestCloseIsMadeAtOnceUnlessFilesAreUnread(t *testing.T) {
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null := int(file.Fd())
	for name, c := range map[string]struct {
		messages bool
		send     func(a *fd) error
		atOnce   bool
	}{
		"nothing": {false, func(a *fd) error { return nil }, true},
		"data": {false, func(a *fd) error {
			_, err := a.write(make([]byte, 70<<10))
			return err
		}, true},
		"a file behind data": {false, func(a *fd) error {
			_, err := a.write(make([]byte, 1000))
			return errors.Join(err, syscall.Sendmsg(a.sys, []byte("x"), syscall.UnixRights(null), nil, 0))
		}, false},
		"a file before data": {false, func(a *fd) error {
			err := syscall.Sendmsg(a.sys, []byte("x"), syscall.UnixRights(null), nil, 0)
			_, e := a.write(make([]byte, 1000))
			return errors.Join(err, e)
		}, false},
		"an urgent byte": {false, func(a *fd) error { return syscall.Sendmsg(a.sys, []byte("x"), nil, nil, syscall.MSG_OOB) }, true},
		"a file with an urgent byte": {false, func(a *fd) error {
			return syscall.Sendmsg(a.sys, []byte("x"), syscall.UnixRights(null), nil, syscall.MSG_OOB)
		}, false},
		"a message": {true, func(a *fd) error { return syscall.Sendmsg(a.sys, []byte("x"), nil, nil, 0) }, false},
		"a file in an empty message": {true, func(a *fd) error {
			return syscall.Sendmsg(a.sys, nil, syscall.UnixRights(null), nil, 0)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			kind := streams
			if c.messages {
				kind = messages
			}
			a, b, err := pair(kind)
			if err != nil {
				t.Fatal(err)
			}
			defer a.close()
			defer b.close()
			if err := c.send(a); errors.Is(err, syscall.EOPNOTSUPP) { // urgent bytes: since Linux 5.15
				t.Skip(err)
			} else if err != nil {
				t.Fatal(err)
			}
			if got := b.closesAtOnce(); got != c.atOnce {
				t.Errorf("the close is made at once: %t, want %t", got, c.atOnce)
			}
		})
	}
}

func TestReleaseOf(t *testing.T) {
	for release, want := range map[string]bool{
		"6.8.0-31-generic": true, "6.9.0": false, "6.18.44": false, "5.15.0": true, "4.4.0": true, "7.0-rc1": false, "6.9-rc1": false, "": true,
	} {
		if got := releaseOf(release) < 6<<16|9; got != want {
			t.Errorf("%q is older than 6.9: %t", release, got)
		}
	}
}

// The poll of other sockets may take a lock that another process holds.
func TestPollsKnowsWhatAnswersAtOnce(t *testing.T) {
	for what, want := range map[string]struct {
		domain int
		polls  bool
	}{
		"a local socket":     {syscall.AF_UNIX, true},
		"a socket of IPv4":   {syscall.AF_INET, true},
		"a socket of IPv6":   {syscall.AF_INET6, true},
		"one of the kernel":  {syscall.AF_NETLINK, false},
		"one of the network": {syscall.AF_PACKET, false},
	} {
		sys, err := syscall.Socket(want.domain, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Logf("%s: %v", what, err)
			continue
		}
		if got := kern.polls(sys); got != want.polls {
			t.Errorf("%s polls: %t", what, got)
		}
		syscall.Close(sys)
	}
}

// What the poller refuses by itself needs no other descriptor, whatever its mode: see receivedFile.
func TestNeverPollsKnowsWhatThePollerRefuses(t *testing.T) {
	ask := func(what string, sys int, err error, want bool) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := kern.neverPolls(sys); got != want {
			t.Errorf("%s never polls: %t", what, got)
		}
		syscall.Close(sys)
	}
	dir := t.TempDir()
	fifo := dir + "/fifo"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, flags := range map[string]int{"": 0, "nonblocking ": syscall.O_NONBLOCK} {
		sys, err := syscall.Open(dir+"/file", syscall.O_RDWR|syscall.O_CREAT|syscall.O_CLOEXEC|flags, 0o600)
		ask("a "+mode+"file", sys, err, true)
		sys, err = syscall.Open(dir, syscall.O_RDONLY|syscall.O_CLOEXEC|flags, 0)
		ask("a "+mode+"folder", sys, err, true)
		sys, err = syscall.Open(fifo, syscall.O_RDWR|syscall.O_CLOEXEC|flags, 0)
		ask("a "+mode+"FIFO", sys, err, false)
		sys, err = syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|flags, 0)
		ask("a "+mode+"socket", sys, err, false)
	}
	sys, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	ask("a poller", sys, err, false)
}

// Who may rename files in the folder can put another socket or FIFO of this user in the place of
// one that was just made. Its mode stays.
func TestListenLeavesTheModeOfAnotherFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a folder away")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := dir + "/fifo"
	if err := Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, owner := range []int{0, 1} {
		if err := os.Chown(dir, owner, -1); err != nil {
			t.Skip(err)
		}
		d, err := openFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		_, err = kern.setMode(d, "fifo", syscall.S_IFIFO, 0o640|uint32(owner), -1, -1)
		d.close()
		if owner != 0 && err != errReplaced || owner == 0 && err != nil {
			t.Errorf("the folder is that of %d: %v", owner, err)
		}
		if fi, err := os.Lstat(path); err != nil {
			t.Error(err)
		} else if fi.Mode().Perm() != 0o640 {
			t.Error(fi.Mode())
		}
	}
	if err := Mkfifo(dir+"/another", 0o666); err != nil {
		t.Error(err)
	}
}

// A file that there was no descriptor for came with a doorbell all the same.
func TestSharedDoorbellWithoutDescriptorsTellsOfFiles(t *testing.T) {
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	defer b.close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := a.sendWithFiles(zeroByte[:], []*os.File{null}); err != nil {
		t.Fatal(err)
	}
	withoutDescriptors(t, func() { err = awaitBell(b, &bellRoom{}) })
	if err != errFilesInDoorbell {
		t.Errorf("the error is %v", err)
	}
}

// A child that another goroutine starts has the socket until it runs its program. Nobody connects to it.
func TestCloseOfAListenerThatAChildHasRefusesClients(t *testing.T) {
	addr := Name("ipc-" + freshName())
	l, err := Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	child, err := kern.dup(l.listener.fd.sys)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(child)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err := Dial(addr); !errors.Is(err, ErrNoListener) {
		t.Errorf("%v, %v", c, err)
	}
}
