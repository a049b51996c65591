// What a peer does that means harm, or another holder of a descriptor: it may delay
// itself, and nobody else. The kernel lets it make close(2), read(2) and others sleep,
// by a file system in user space (testdata/slowfs.c), by a TCP socket that lingers, by
// a page fault in the middle of a call on a pipe, and by changing what all holders of
// a descriptor share.
//
// A test that stops the whole process when it fails runs in a child, which says
// whether the gate was still closed when it had done what it should.
package tests

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	for role, play := range map[string]func(*kit.Parent, []string) error{
		"sends a dirty file": childSendsADirtyFile,
		"meets a dirty file": childMeetsADirtyFile,
		"faults in a pipe":   childFaultsInAPipe,
		"faults in a socket": childFaultsInASocket,
		"faults in a folder": childFaultsInAFolder,
		"has a stuck pipe":   childHasAStuckPipe,
		"takes a stuck end":  childTakesAStuckEnd,

		"holds the pipe of the owners": childHoldsThePipeOfTheOwners,

		"is flooded":               childIsFlooded,
		"is given slow files":      childIsGivenSlowFiles,
		"is given a slow doorbell": childIsGivenASlowDoorbell,

		"is given a file whose mode changes": childIsGivenAFileWhoseModeChanges,

		"has a stuck doorbell":    childHasAStuckDoorbell,
		"has files in a doorbell": childHasFilesInADoorbell,
		"lacks descriptors":       childLacksDescriptors,
		"fills the flight":        childFillsTheFlight,
		"shares its ends":         childSharesItsEnds,
	} {
		kit.Roles[role] = play
	}
}

// ---------------------------------------------------------------------------
// A slow file system

// A slowFS is a file system whose server answers when the test opens the gate.
type slowFS struct {
	t          *testing.T
	file, gate string
	opens      *time.Timer
}

// mountSlow mounts one that is slow at the operations, and opens the gate if the
// test does not do it soon, so that a child that is stuck says so. The caller defers
// open: a process that is stuck cannot even be killed before.
func mountSlow(t *testing.T, operations string, env ...string) *slowFS {
	t.Helper()
	kit.NeedsRoot(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there are no file systems in user space here:", err)
	}
	dir := t.TempDir()
	program := compileC(t, dir, "testdata/slowfs.c", "fuse3")
	mount := filepath.Join(dir, "mount")
	kit.Must(t, os.Mkdir(mount, 0o755))
	s := &slowFS{t: t, file: filepath.Join(mount, "f"), gate: filepath.Join(dir, "gate")}
	server := exec.Command(program, "-f", "-o", "allow_other", mount)
	server.Env = append(append(os.Environ(), "GATE="+s.gate, "SLOW="+operations), env...)
	var said bytes.Buffer
	server.Stderr = &said
	kit.Must(t, server.Start())
	ended := kit.Begin(server.Wait)
	t.Cleanup(func() {
		s.open()
		syscall.Unmount(mount, 2) // MNT_DETACH of linux/fs.h
		select {
		case <-ended:
		case <-time.After(kit.Soon):
			server.Process.Kill()
			<-ended
		}
	})
	for {
		select {
		case err := <-ended:
			ended = kit.Begin(func() error { return err })
			t.Skipf("no file system in user space can be mounted: %v: %s", err, said.Bytes())
		case <-time.After(time.Millisecond):
		}
		if _, err := os.Stat(s.file); err == nil {
			break
		}
	}
	s.opens = time.AfterFunc(kit.Soon, s.open)
	return s
}

// slowPages begins a story in which a peer has the kernel use pages that are slow to come.
func slowPages(t *testing.T) *slowFS {
	t.Helper()
	if kit.UnderEmulation() {
		t.Skip("an emulator may stop all threads while one is in such a call")
	}
	kit.Together(t)
	kit.Story(t)
	return mountSlow(t, "read")
}

func (s *slowFS) open() {
	if s.opens != nil {
		s.opens.Stop()
	}
	os.WriteFile(s.gate, nil, 0o600)
}

// await returns when somebody waits in the operation.
func (s *slowFS) await(operation string) {
	s.t.Helper()
	kit.Eventually(s.t, "somebody waits in "+operation, func() bool {
		_, err := os.Stat(s.gate + "." + operation)
		return err == nil
	})
}

// compileC compiles a C program against a library that pkg-config knows.
func compileC(t *testing.T, dir, source, library string) (program string) {
	t.Helper()
	flags, err := exec.Command("pkg-config", "--cflags", "--libs", library).Output()
	if err != nil {
		t.Skipf("pkg-config does not know %s: %v", library, err)
	}
	program = filepath.Join(dir, strings.TrimSuffix(filepath.Base(source), ".c"))
	args := append([]string{"-O1", "-o", program, source}, strings.Fields(string(flags))...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Skipf("gcc does not compile here: %v: %s", err, out)
	}
	return program
}

// tellsGate says whether the gate is still closed, after this process has done what
// one that is stopped cannot do.
func tellsGate(p *kit.Parent, gate string) {
	runtime.GC()
	others := make(chan bool)
	go close(others)
	<-others
	if _, err := os.Stat(gate); err == nil {
		p.Say("only when the gate was open")
	} else {
		p.Say("while the gate is closed")
	}
}

// ---------------------------------------------------------------------------
// Descriptors whose closing waits

// childSendsADirtyFile connects to the address and sends a byte with a file that it
// then writes to by a mapping, so that the last to close it writes the page back.
func childSendsADirtyFile(p *kit.Parent, args []string) error {
	typ := syscall.SOCK_STREAM
	if args[2] == "messages" {
		typ = syscall.SOCK_SEQPACKET
	}
	s := kit.Sure(syscall.Socket(syscall.AF_UNIX, typ|syscall.SOCK_CLOEXEC, 0))
	if err := syscall.Connect(s, &syscall.SockaddrUnix{Name: args[0]}); err != nil {
		return err
	}
	given := kit.Sure(syscall.Open(args[1], syscall.O_RDWR|syscall.O_CLOEXEC, 0))
	mapped := kit.Sure(syscall.Open(args[1], syscall.O_RDWR|syscall.O_CLOEXEC, 0))
	page := kit.Sure(syscall.Mmap(mapped, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED))
	if err := syscall.Sendmsg(s, []byte("x"), syscall.UnixRights(given), nil, 0); err != nil {
		return err
	}
	if err := syscall.Close(given); err != nil {
		return err
	}
	page[0] = 'd'
	p.Say("sent")
	p.Hear()
	return nil
}

// meetings is what a process can do that makes it close what was sent to it.
var meetings = map[string]func(c *ipc.Conn, m *ipc.MsgConn) error{
	"Read": func(c *ipc.Conn, _ *ipc.MsgConn) error { return isOne(c.Read(make([]byte, 8))) },
	"ReadBuffers": func(c *ipc.Conn, _ *ipc.MsgConn) error {
		n, err := c.ReadBuffers([][]byte{make([]byte, 8)})
		return isOne(int(n), err)
	},
	"CloseRead":       func(c *ipc.Conn, _ *ipc.MsgConn) error { return c.CloseRead() },
	"Close":           func(c *ipc.Conn, _ *ipc.MsgConn) error { return c.Close() },
	"Recv":            func(_ *ipc.Conn, m *ipc.MsgConn) error { return isOne(m.Recv(make([]byte, 8))) },
	"CloseOfMsgConn":  func(_ *ipc.Conn, m *ipc.MsgConn) error { return m.Close() },
	"CloseOfListener": nil,
}

func isOne(n int, err error) error {
	if n != 1 || err != nil {
		return fmt.Errorf("%d bytes and not one, %w", n, err)
	}
	return nil
}

func TestRecvFilesOfADirtyFileStopsNobody(t *testing.T) {
	kit.Together(t)
	for what := range meetings {
		t.Run(what, func(t *testing.T) {
			kit.Story(t)
			fs := mountSlow(t, "write", "WRITEBACK=1")
			defer fs.open()
			victim := kit.StartChild(t, "meets a dirty file", what, fs.gate)
			addr, kind, _ := strings.Cut(victim.Hear(), " ")
			peer := kit.StartChild(t, "sends a dirty file", addr, fs.file, kind)
			peer.MustSay("sent")
			victim.Say("go")
			victim.MustSay("while the gate is closed")
			fs.await("write") // it was closed indeed
			fs.open()
			victim.End()
			peer.End()
		})
	}
}

func childMeetsADirtyFile(p *kit.Parent, args []string) error {
	what, gate := args[0], args[1]
	addr := ipc.Name(kit.Unique())
	var c *ipc.Conn
	var m *ipc.MsgConn
	if what == "Recv" || what == "CloseOfMsgConn" {
		l := kit.Sure(ipc.ListenMsg(addr))
		p.Say("%v messages", addr)
		m = kit.Sure(l.Accept())
		l.Close()
	} else {
		l := kit.Sure(ipc.Listen(addr))
		p.Say("%v stream", addr)
		if what == "CloseOfListener" {
			p.Hear()
			if err := l.Close(); err != nil {
				return err
			}
			tellsGate(p, gate)
			p.Hear()
			return nil
		}
		c = kit.Sure(l.AcceptConn())
		l.Close()
	}
	p.Hear()
	if err := meetings[what](c, m); err != nil {
		return err
	}
	tellsGate(p, gate)
	p.Hear()
	return nil
}

// ---------------------------------------------------------------------------
// Pipes whose mutex is held

// childFaultsInAPipe writes to the pipe from a page that the file system is slow to
// fill, or reads from it into one, and holds the pipe's mutex meanwhile.
func childFaultsInAPipe(p *kit.Parent, args []string) error {
	side, path, file := args[0], args[1], args[2]
	mode, call := syscall.O_WRONLY, syscall.Write
	if side == "reads" {
		mode, call = syscall.O_RDONLY, syscall.Read
	}
	fd := 3
	if path != "" {
		fd = kit.Sure(syscall.Open(path, mode|syscall.O_CLOEXEC, 0))
	}
	page := mapPage(file)
	p.Say("ready")
	p.Hear()
	call(fd, page[:8])
	return nil
}

// mapPage returns a page of the file, which its file system fills when it is first used.
func mapPage(file string) []byte {
	mapped := kit.Sure(syscall.Open(file, syscall.O_RDWR|syscall.O_CLOEXEC, 0))
	return kit.Sure(syscall.Mmap(mapped, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED))
}

func TestPipeHeldInAPageFaultStopsNobody(t *testing.T) {
	if kit.UnderEmulation() {
		t.Skip("an emulator may stop all threads while one is in such a call")
	}
	kit.Together(t)
	for _, pipe := range []string{"FIFO", "Inherited"} {
		for _, side := range []string{"writes", "reads"} { // of the peer
			t.Run(pipe+"/Peer"+strings.ToUpper(side[:1])+side[1:], func(t *testing.T) {
				kit.Story(t)
				fs := mountSlow(t, "read")
				defer fs.open()
				var victim, peer *kit.Child
				if pipe == "FIFO" {
					path := filepath.Join(filepath.Dir(fs.gate), "fifo")
					kit.Must(t, ipc.Mkfifo(path, 0o600))
					victim = kit.StartChild(t, "has a stuck pipe", side, fs.gate, path)
					peer = kit.StartChild(t, "faults in a pipe", side, path, fs.file)
				} else {
					r, w, err := ipc.Pipe()
					kit.Must(t, err)
					mine, theirs := ipc.Inheritable(r), w.File
					if side == "reads" {
						mine, theirs = w, r.File
					}
					f, err := theirs()
					kit.Must(t, err)
					kit.Must(t, f.Close())
					h := kit.NewHeir(t)
					h.Gets("end", mine)
					f, err = theirs()
					kit.Must(t, err)
					kit.Must(t, syscall.SetNonblock(kit.SysFD(t, f), false))
					victim = h.Start("has a stuck pipe", side, fs.gate)
					peer = kit.StartChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "faults in a pipe", side, "", fs.file)
					kit.Must(t, errors.Join(f.Close(), r.Close(), w.Close()))
				}
				victim.MustSay("ready")
				peer.MustSay("ready")
				peer.Say("go")
				fs.await("read")
				victim.Say("go")
				victim.MustSay("while the gate is closed") // the call is under way
				victim.MustSay("while the gate is closed") // Close has returned
				fs.open()
				victim.End()
				peer.End()
			})
		}
	}
}

// TestOpenFIFOOfOneThatIsHeldEndsWithItsContext has the FIFO's mutex be held, which its open takes.
func TestOpenFIFOOfOneThatIsHeldEndsWithItsContext(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	fs := mountSlow(t, "read")
	path := filepath.Join(filepath.Dir(fs.gate), "fifo")
	kit.Must(t, ipc.Mkfifo(path, 0o600))
	peer := kit.StartChild(t, "faults in a pipe", "writes", path, fs.file)
	first, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0) // the peer's open waits for it
	kit.Must(t, err)
	defer func() { fs.open(); peer.End(); syscall.Close(first) }()
	peer.MustSay("ready")
	peer.Say("go")
	fs.await("read")
	for what, open := range map[string]func(ctx context.Context) error{
		"OpenFIFOReader": func(ctx context.Context) error { _, err := ipc.OpenFIFOReader(ctx, path); return err },
		"OpenFIFOWriter": func(ctx context.Context) error { _, err := ipc.OpenFIFOWriter(ctx, path); return err },
		"FIFOConfig.OpenReader": func(ctx context.Context) error {
			_, err := ipc.FIFOConfig{KeepOpen: true}.OpenReader(ctx, path)
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		ends(t, what, func() error {
			if err := open(ctx); !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("it ends with %w", err)
			}
			return nil
		})
		cancel()
		if _, err := os.Stat(fs.gate); err == nil {
			t.Errorf("%s waited for the peer", what)
		}
	}
}

// TestListenerCloseWithAHeldOwnersPipe has a child that was given the listener hold the mutex of the
// pipe by which its owners find the last of them, or make that pipe blocking.
func TestListenerCloseWithAHeldOwnersPipe(t *testing.T) {
	kit.Together(t)
	for _, how := range []string{"held", "blocking"} {
		t.Run(how, func(t *testing.T) {
			kit.Story(t)
			fs := mountSlow(t, "read")
			defer fs.open()
			path := filepath.Join(filepath.Dir(fs.gate), "socket")
			l, err := ipc.Listen(ipc.Path(path))
			kit.Kept(t, l, err)
			h := kit.NewHeir(t)
			h.Gets("server", l)
			child := h.Start("holds the pipe of the owners", how, fs.file)
			child.MustSay("ready")
			child.Say("go")
			if how == "held" {
				fs.await("read")
			} else {
				child.MustSay("done")
			}
			ends(t, "Close", l.Close)
			ends(t, "a start of a process", func() error { syscall.ForkLock.Lock(); defer syscall.ForkLock.Unlock(); return nil })
			if _, err := os.Stat(fs.gate); err == nil {
				t.Error("Close waited for the child")
			}
			fs.open()
			child.End()
		})
	}
}

func childHoldsThePipeOfTheOwners(p *kit.Parent, args []string) error {
	how, file := args[0], args[1]
	reads, writes := -1, -1 // both ends were given
	for _, fd := range kit.Descriptors() {
		var st syscall.Stat_t
		if fd < 3 || syscall.Fstat(fd, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFIFO {
			continue
		}
		if _, err := syscall.Read(fd, nil); err == nil {
			reads = fd
		} else {
			writes = fd
		}
	}
	p.Say("ready")
	p.Hear()
	if how == "blocking" {
		stop := kit.Repeatedly(func() error { return syscall.SetNonblock(reads, false) })
		p.Say("done")
		p.Hear()
		return stop()
	}
	syscall.Write(writes, mapPage(file)[:8])
	return nil
}

// TestRecvFilesOfAnEndThatIsHeld has another process hold the mutex of the pipe, or the lock of the
// socket, while it arrives and is looked at.
func TestRecvFilesOfAnEndThatIsHeld(t *testing.T) {
	kit.Together(t)
	for what, ends := range map[string]func(t *testing.T) (sent, held *os.File){
		"Pipe":   kit.OsPipe,
		"Socket": tcpSocketTwice,
	} {
		t.Run(what, func(t *testing.T) {
			kit.Story(t)
			fs := mountSlow(t, "read")
			defer fs.open()
			sent, held := ends(t)
			kit.Must(t, syscall.SetNonblock(sysFDOf(held), false))
			peer := kit.StartChildWith(t, exec.Cmd{ExtraFiles: []*os.File{held}}, "faults in a pipe", "writes", "", fs.file)
			a, b := kit.Pair(t)
			h := kit.NewHeir(t)
			h.Gets("line", b)
			victim := h.Start("takes a stuck end", fs.gate)
			kit.Must(t, b.Close())
			peer.MustSay("ready")
			peer.Say("go")
			fs.await("read")
			kit.SendFiles(t, a, sent)
			victim.MustSay("while the gate is closed")
			fs.open()
			victim.End()
			peer.End()
		})
	}
}

// tcpSocketTwice returns a connected socket of TCP, and a duplicate.
func tcpSocketTwice(t *testing.T) (sent, held *os.File) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip("no TCP: ", err)
	}
	kit.Kept(t, l, err) // which would reset what it has not accepted
	c, err := net.Dial("tcp", l.Addr().String())
	kit.Kept(t, c, err)
	sent, err = c.(*net.TCPConn).File()
	kit.Kept(t, sent, err)
	held, err = c.(*net.TCPConn).File()
	return sent, kit.Kept(t, held, err)
}

func childTakesAStuckEnd(p *kit.Parent, args []string) error {
	c := kit.Sure(ipc.InheritedConn("line"))
	files := kit.Sure(c.RecvFiles(1))
	for what, adopt := range map[string]func() error{
		"FileConn":        func() error { _, err := ipc.FileConn(files[0]); return err },
		"FileMsgListener": func() error { _, err := ipc.FileMsgListener(files[0]); return err },
	} {
		if err := adopt(); err == nil {
			return errors.New(what + " takes what is no local socket")
		}
	}
	tellsGate(p, args[0])
	p.Hear()
	return errors.Join(files[0].Close(), c.Close())
}

func childHasAStuckPipe(p *kit.Parent, args []string) error {
	side, gate := args[0], args[1]
	var call func([]byte) (int, error)
	var end interface{ Close() error }
	in := "(*PipeReader).Read("
	if side == "writes" {
		var r *ipc.PipeReader
		if len(args) > 2 {
			r = kit.Sure(ipc.OpenFIFOReader(context.Background(), args[2]))
		} else {
			r = kit.Sure(ipc.InheritedReader("end"))
		}
		call, end = r.Read, r
	} else {
		var w *ipc.PipeWriter
		if len(args) > 2 {
			w = kit.Sure(ipc.OpenFIFOWriter(context.Background(), args[2]))
		} else {
			w = kit.Sure(ipc.InheritedWriter("end"))
		}
		call, end, in = w.Write, w, "(*PipeWriter).Write("
		kit.Sure(w.Write([]byte("something to read")))
	}
	p.Say("ready")
	p.Hear()
	calling := kit.Begin(func() error { _, err := call(make([]byte, 8)); return err })
	for !strings.Contains(kit.Stacks(), in) { // which stops the world
		select {
		case err := <-calling:
			return fmt.Errorf("the call did not wait: %v", err)
		default:
			runtime.Gosched()
		}
	}
	tellsGate(p, gate)
	if err := end.Close(); err != nil {
		return err
	}
	tellsGate(p, gate)
	p.Hear()
	// Once the gate is open the peer may be gone before the call ends.
	if err := <-calling; err != nil && !errors.Is(err, net.ErrClosed) && err != io.EOF && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	return nil
}

// ---------------------------------------------------------------------------
// Files that are slow to answer

// TestFileConnRefusesASlowFileAtOnce has files refused that are no sockets or pipes. The close of
// a duplicate would take as long as their file system likes.
func TestFileConnRefusesASlowFileAtOnce(t *testing.T) {
	kit.Together(t)
	for _, slow := range []string{"flush", "attr"} {
		t.Run(slow, func(t *testing.T) {
			kit.Story(t)
			fs := mountSlow(t, slow)
			defer fs.open()
			f, err := os.Open(fs.file)
			kit.Must(t, err)
			defer func() { fs.open(); f.Close() }()
			kit.Must(t, os.WriteFile(fs.gate+".opened", nil, 0o600))
			for what, adopt := range map[string]func() error{
				"FileConn":     func() error { _, err := ipc.FileConn(f); return err },
				"FileListener": func() error { _, err := ipc.FileListener(f); return err },
				"FileReader":   func() error { _, err := ipc.FileReader(f); return err },
				"FileWriter":   func() error { _, err := ipc.FileWriter(f); return err },
			} {
				if adopt() == nil {
					t.Errorf("%s takes a file", what)
				}
				if _, err := os.Stat(fs.gate); err == nil {
					t.Fatalf("%s waited for the file", what)
				}
			}
		})
	}
}

func TestRecvFilesOfSlowFilesEnds(t *testing.T) {
	kit.Together(t)
	for _, slow := range []string{"poll", "flush"} {
		t.Run(slow, func(t *testing.T) {
			kit.Story(t)
			fs := mountSlow(t, slow)
			defer fs.open()
			a, b := kit.Pair(t)
			h := kit.NewHeir(t)
			h.Gets("line", b)
			victim := h.Start("is given slow files", slow, fs.gate)
			kit.Must(t, b.Close())
			victim.MustSay("ready")
			f, err := syscall.Open(fs.file, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
			kit.Must(t, err)
			// It stays open here until the gate is: closing it asks the server too.
			closed := func() error { fs.open(); return syscall.Close(f) }
			defer closed()
			rights := syscall.UnixRights(f, f, f)
			for range 2 {
				_, err = a.WriteMsg([]byte{0}, rights)
				kit.Must(t, err)
			}
			victim.Say("go")
			victim.MustSay("while the gate is closed")
			if slow == "flush" {
				fs.await("flush")
			}
			fs.open()
			victim.End()
		})
	}
}

func childIsGivenSlowFiles(p *kit.Parent, args []string) error {
	slow, gate := args[0], args[1]
	c := kit.Sure(ipc.InheritedConn("line"))
	p.Say("ready")
	p.Hear()
	files, err := c.RecvFiles(2)
	if files != nil || !errors.Is(err, ipc.ErrMsgTooLong) {
		return fmt.Errorf("of 3 files for 2 there are %d, %v", len(files), err)
	}
	if files, err = c.RecvFiles(3); len(files) != 3 || err != nil {
		return fmt.Errorf("of 3 files there are %d, %v", len(files), err)
	}
	if slow == "poll" { // they are what they were
		if n, err := files[2].ReadAt(make([]byte, 8), 0); n != 8 || err != nil {
			return fmt.Errorf("read %d, %v", n, err)
		}
	}
	tellsGate(p, gate)
	p.Hear()
	for _, f := range files {
		if err := f.Close(); err != nil {
			return err
		}
	}
	return c.Close()
}

// A peer can change the mode of a file while it is looked at.
func TestRecvFilesOfASlowFileWhoseModeChanges(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	fs := mountSlow(t, "poll")
	defer fs.open()
	a, b := kit.Pair(t)
	h := kit.NewHeir(t)
	h.Gets("line", b)
	victim := h.Start("is given a file whose mode changes", fs.gate)
	kit.Must(t, b.Close())
	victim.MustSay("ready")
	f, err := syscall.Open(fs.file, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	kit.Must(t, err)
	defer func() { fs.open(); syscall.Close(f) }()
	nonblocking, sent := false, 0
	stop := kit.Repeatedly(func() error {
		nonblocking = !nonblocking
		return syscall.SetNonblock(f, nonblocking)
	})
	for end := time.Now().Add(kit.Soon / 4); time.Now().Before(end) && sent < 5000; sent++ { // a slow machine makes fewer
		_, err = a.WriteMsg([]byte{0}, syscall.UnixRights(f, f, f))
		kit.Must(t, err)
	}
	kit.Must(t, a.CloseWrite())
	victim.MustSay("while the gate is closed")
	kit.Must(t, stop())
	fs.open()
	victim.End()
}

func childIsGivenAFileWhoseModeChanges(p *kit.Parent, args []string) error {
	c := kit.Sure(ipc.InheritedConn("line"))
	p.Say("ready")
	for {
		files, err := c.RecvFiles(3)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		for _, f := range files {
			f.Close()
		}
	}
	tellsGate(p, args[0])
	p.Hear()
	return c.Close()
}

// Who has the same socket can keep the lock that its options need. Calls that set one give up, with or
// without a deadline, and a doorbell needs none.
func TestSocketHeldInAPageFaultStopsNobody(t *testing.T) {
	if kit.UnderEmulation() {
		t.Skip("an emulator may stop all threads while one is in such a call")
	}
	kit.Together(t)
	msgs := func(call func(c *ipc.MsgConn) error) func(t *testing.T, f *os.File) error {
		return func(t *testing.T, f *os.File) error {
			c, err := ipc.FileMsgConn(f)
			kit.Must(t, err)
			defer c.Close()
			return call(c)
		}
	}
	for name, does := range map[string]struct {
		typ  int
		call func(t *testing.T, f *os.File) error
	}{
		"FileConn": {syscall.SOCK_STREAM, func(t *testing.T, f *os.File) error {
			c, err := ipc.FileConn(f)
			if err == nil {
				c.Close()
			}
			return err
		}},
		"Doorbell": {syscall.SOCK_STREAM, func(t *testing.T, f *os.File) error {
			a, b := kit.Pair(t)
			c, err := b.Share(ipc.ShareConfig{})
			kit.Must(t, err)
			sendHello(t, a, int(f.Fd()), int(f.Fd()))
			for limit := time.Second; limit < kit.Soon/2 && !c.InMemory(); limit *= 2 { // for the handshake
				kit.Must(t, c.SetReadDeadline(time.Now().Add(limit)))
				_, err = c.Read(make([]byte, 1))
				kit.TimedOut(t, err)
			}
			if !c.InMemory() {
				t.Error("the end is not in memory")
			}
			return errors.Join(err, c.Close())
		}},
		"Recv": {syscall.SOCK_SEQPACKET, msgs(func(c *ipc.MsgConn) error {
			c.SetReadDeadline(time.Now().Add(kit.Soon))
			_, err := c.Recv(make([]byte, 1))
			return err
		})},
		"RecvPeer": {syscall.SOCK_SEQPACKET, msgs(func(c *ipc.MsgConn) error {
			c.SetReadDeadline(time.Now().Add(kit.Soon))
			_, _, err := c.RecvPeer(make([]byte, 1))
			return err
		})},
		"SetReadBuffer": {syscall.SOCK_SEQPACKET, msgs(func(c *ipc.MsgConn) error { return c.SetReadBuffer(1 << 16) })},
		"RefuseFiles":   {syscall.SOCK_SEQPACKET, msgs(func(c *ipc.MsgConn) error { return c.RefuseFiles() })},
	} {
		t.Run(name, func(t *testing.T) {
			kit.Story(t)
			fs := mountSlow(t, "read")
			defer fs.open()
			s, err := syscall.Socketpair(syscall.AF_UNIX, does.typ|syscall.SOCK_CLOEXEC, 0)
			kit.Must(t, err)
			near, far := os.NewFile(uintptr(s[0]), "near"), os.NewFile(uintptr(s[1]), "far")
			defer near.Close()
			defer far.Close()
			peer := kit.StartChildWith(t, exec.Cmd{ExtraFiles: []*os.File{far}}, "faults in a socket", fs.file)
			peer.MustSay("ready")
			fs.await("read")
			err = does.call(t, far)
			if held := err != nil && strings.Contains(err.Error(), "keeps it busy"); held == (name == "Doorbell") {
				t.Errorf("the error is %v", err)
			}
			if _, err := os.Stat(fs.gate); err == nil {
				t.Error("the call has waited for the gate")
			}
			fs.open()
			peer.End()
		})
	}
}

// childFaultsInASocket has the kernel read a filter for the socket from a page that the file system is
// slow to fill.
func childFaultsInASocket(p *kit.Parent, args []string) error {
	filter := unsafe.Slice((*syscall.SockFilter)(unsafe.Pointer(&mapPage(args[0])[0])), 1)
	p.Say("ready")
	//lint:ignore SA1019 x/net/bpf compiles filters; this attaches one, also where setsockopt(2) has no number of its own
	syscall.AttachLsf(3, filter)
	p.Hear()
	return nil
}

// Who may write to memory can keep the lock of its file. Nothing but ReadOnlyFile waits for that.
func TestMemoryHeldInAPageFaultCloses(t *testing.T) {
	fs := slowPages(t)
	defer fs.open()
	kit.NeedsMemory(t)
	m, err := ipc.NewMemory(1 << 12)
	kit.Must(t, err)
	f, err := m.File()
	kit.Must(t, err)
	defer f.Close()
	peer := kit.StartChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "faults in a pipe", "writes", "", fs.file)
	peer.MustSay("ready")
	peer.Say("go")
	fs.await("read")
	opening := kit.Begin(func() error {
		ro, err := m.ReadOnlyFile()
		if err == nil {
			err = ro.Close()
		}
		return err
	})
	kit.Eventually(t, "ReadOnlyFile is under way", func() bool {
		all := make([]byte, 1<<20)
		return strings.Contains(string(all[:runtime.Stack(all, true)]), "ipc.openReadOnly")
	})
	if len(m.Bytes()) != 1<<12 {
		t.Error("the memory is not there")
	}
	kit.Must(t, m.Close())
	if _, err := os.Stat(fs.gate); err == nil {
		t.Error("a call has waited for the gate")
	}
	fs.open()
	kit.Must(t, <-opening)
	peer.End()
}

// Who may read a folder can keep the lock that changes of it need. Accept ends at once then, Close soon,
// and a Dial with a limit at that.
func TestListenerInAFolderHeldInAPageFaultCloses(t *testing.T) {
	fs := slowPages(t)
	defer fs.open()
	folder := t.TempDir()
	addr := ipc.Path(filepath.Join(folder, "socket"))
	l, err := ipc.Listen(addr)
	kit.Must(t, err)
	accepting := kit.Begin(func() error { _, err := l.AcceptConn(); return err })
	f, err := os.Open(folder)
	kit.Must(t, err)
	defer f.Close()
	peer := kit.StartChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "faults in a folder", fs.file)
	peer.MustSay("ready")
	fs.await("read")
	closing := kit.Begin(l.Close)
	kit.Matches(t, <-accepting, net.ErrClosed)
	for err = nil; err == nil; { // so that some dial while Close waits to remove the file
		_, dialErr := ipc.Dialer{Timeout: 10 * time.Millisecond, Wait: true}.Dial(ipc.Path(filepath.Join(folder, "another")))
		kit.TimedOut(t, dialErr)
		select {
		case err = <-closing:
			kit.Matches(t, err, os.ErrDeadlineExceeded)
		default:
		}
	}
	if _, err := os.Stat(fs.gate); err == nil {
		t.Error("a call has waited for the gate")
	}
	fs.open()
	peer.End()
	kit.Eventually(t, "the socket is removed", func() bool { _, err := os.Lstat(addr.String()); return err != nil })
}

// childFaultsInAFolder has the kernel write the names in the folder to a page that the file system is slow
// to fill.
func childFaultsInAFolder(p *kit.Parent, args []string) error {
	page := mapPage(args[0])
	p.Say("ready")
	syscall.ReadDirent(3, page)
	p.Hear()
	return nil
}

// A doorbell that is no socket is refused without asking its file system.
func TestSharedConnRefusesASlowDoorbell(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	kit.NeedsMemory(t)
	fs := mountSlow(t, "flush")
	defer fs.open()
	a, b := kit.Pair(t)
	h := kit.NewHeir(t)
	h.Gets("line", b)
	victim := h.Start("is given a slow doorbell", fs.gate)
	kit.Must(t, b.Close())
	victim.MustSay("ready")
	f, err := syscall.Open(fs.file, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	kit.Must(t, err)
	defer func() { fs.open(); syscall.Close(f) }()
	sendHello(t, a, f, f)
	victim.MustSay("while the gate is closed")
	fs.open()
	victim.End()
}

// sendHello sends what an end of shared memory says first, with memory and these doorbells.
func sendHello(t *testing.T, c *ipc.Conn, doorbells ...int) {
	t.Helper()
	memory := newRing(t, 2<<16) // the control page and the smallest ring
	defer syscall.Close(memory)
	_, err := c.WriteMsg([]byte(memoryHello), syscall.UnixRights(append([]int{memory}, doorbells...)...))
	kit.Must(t, err)
}

// memoryHello says that memory comes with it, with the smallest ring.
var memoryHello = "\xffipcshm\x01" + string(binary.NativeEndian.AppendUint32(nil, 0x01020304)) +
	"\x01\x00\x00\x00" + "\x00\x00\x01\x00" + strings.Repeat("\x00", 12)

// newRing makes memory that nobody else can write any more, as a hello has it.
func newRing(t *testing.T, size int64) int {
	t.Helper()
	number, ok := map[string]uintptr{ // SYS_memfd_create
		"386": 356, "amd64": 319, "arm": 385, "arm64": 279, "loong64": 279, "ppc64": 360, "ppc64le": 360, "riscv64": 279, "s390x": 350,
	}[runtime.GOARCH]
	if !ok {
		t.Skip("the number of memfd_create(2) is not known here")
	}
	name := []byte("ring\x00")
	const cloexec, allowSealing = 1, 2
	fd, _, errno := syscall.Syscall(number, uintptr(unsafe.Pointer(&name[0])), cloexec|allowSealing, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	kit.Must(t, syscall.Ftruncate(int(fd), size))
	const addSeals, seals, futureWrite = 1033, 0x1 | 0x2 | 0x4, 0x10 // F_ADD_SEALS, and F_SEAL_SEAL, _SHRINK, _GROW
	_, _, errno = syscall.Syscall(syscall.SYS_FCNTL, fd, addSeals, seals|futureWrite)
	if errno == syscall.EINVAL { // before Linux 5.1
		_, _, errno = syscall.Syscall(syscall.SYS_FCNTL, fd, addSeals, seals)
	}
	if errno != 0 {
		t.Fatal(errno)
	}
	return int(fd)
}

// A peer can hold the lock of every end of a doorbell that it has. Nobody waits for that.
func TestSharedDoorbellHeldInAPageFaultStopsNobody(t *testing.T) {
	fs := slowPages(t)
	defer fs.open()
	kit.NeedsMemory(t)
	var s [2]int
	var err error
	s, err = syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	kit.Must(t, err)
	near, far := os.NewFile(uintptr(s[0]), "near"), os.NewFile(uintptr(s[1]), "far")
	peer := kit.StartChildWith(t, exec.Cmd{ExtraFiles: []*os.File{far}}, "faults in a pipe", "reads", "", fs.file)
	a, b := kit.Pair(t)
	h := kit.NewHeir(t)
	h.Gets("line", b)
	victim := h.Start("has a stuck doorbell", fs.gate)
	kit.Must(t, b.Close())
	sendHello(t, a, s[1], s[1])
	peer.MustSay("ready")
	peer.Say("go")
	kit.Send(t, near, "something to read")
	fs.await("read")
	victim.Say("go")
	victim.MustSay("while the gate is closed")
	fs.open()
	victim.End()
	peer.End()
	kit.Must(t, errors.Join(near.Close(), far.Close()))
}

func childHasAStuckDoorbell(p *kit.Parent, args []string) error {
	c := kit.Sure(kit.Sure(ipc.InheritedConn("line")).Share(ipc.ShareConfig{}))
	p.Hear()
	reading := kit.Begin(func() error { _, err := c.Read(make([]byte, 1)); return err })
	var n int
	var err error
	for limit := time.Second; n == 0 && limit < kit.Soon/2; limit *= 2 { // for the handshake
		c.SetWriteDeadline(time.Now().Add(limit))
		n, err = c.Write(make([]byte, 1<<20))
	}
	if n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("write: %d, %v", n, err)
	}
	if err := errors.Join(c.CloseWrite(), c.Close()); err != nil {
		return err
	}
	if err := <-reading; !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("read: %v", err)
	}
	tellsGate(p, args[0])
	return nil
}

func childIsGivenASlowDoorbell(p *kit.Parent, args []string) error {
	c := kit.Sure(kit.Sure(ipc.InheritedConn("line")).Share(ipc.ShareConfig{}))
	p.Say("ready")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.EPROTO) {
		return fmt.Errorf("read: %v", err)
	}
	tellsGate(p, args[0])
	return c.Close()
}

// TestRecvFilesOfAFloodHoldsNobodyElseUp has a peer send more files whose closing
// waits than there are closers.
func TestRecvFilesOfAFloodHoldsNobodyElseUp(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	fs := mountSlow(t, "flush")
	defer fs.open()
	a, b := kit.Pair(t)
	h := kit.NewHeir(t)
	h.Gets("line", b)
	victim := h.Start("is flooded", fs.gate)
	kit.Must(t, b.Close())
	f, err := syscall.Open(fs.file, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	kit.Must(t, err)
	defer func() { fs.open(); syscall.Close(f) }()
	for range 2 {
		_, err = a.WriteMsg([]byte{0}, syscall.UnixRights(slices.Repeat([]int{f}, 200)...))
		kit.Must(t, err)
	}
	victim.MustSay("while the gate is closed")
	_, err = a.WriteMsg([]byte{0}, syscall.UnixRights(slices.Repeat([]int{f}, 200)...))
	kit.Must(t, err)
	victim.Say("go")
	victim.MustSay("while the gate is closed")
	fs.open()
	victim.End()
}

func childIsFlooded(p *kit.Parent, args []string) error {
	c := kit.Sure(ipc.InheritedConn("line"))
	for range 2 {
		if _, err := c.RecvFiles(1); !errors.Is(err, ipc.ErrMsgTooLong) {
			return err
		}
	}

	// What this process closes for others is closed all the same.
	r, w := kit.Sure2(ipc.Pipe())
	l := kit.Sure(ipc.Listen(ipc.Addr{}))
	client := kit.Sure(ipc.Dial(l.Addr().(ipc.Addr)))
	x, y := kit.Sure2(ipc.Pair())
	kit.Sure(x.Write([]byte("not read")))
	if err := errors.Join(w.Close(), l.Close(), y.Close()); err != nil {
		return err
	}
	if n, err := r.Read(make([]byte, 8)); err != io.EOF {
		return fmt.Errorf("from a pipe without a writer %d bytes come, %w", n, err)
	}
	if n, err := client.Read(make([]byte, 8)); err == nil {
		return fmt.Errorf("from a server that is closed %d bytes come", n)
	}
	if n, err := x.Read(make([]byte, 8)); err == nil {
		return fmt.Errorf("from an end that is closed %d bytes come", n)
	}
	tellsGate(p, args[0])

	// A plain read keeps none of the files that come now.
	p.Hear()
	count := func() int { return len(kit.Sure(os.ReadDir("/proc/self/fd"))) } // asks no file
	before := count()
	reading := kit.Begin(func() error { return isOne(c.Read(make([]byte, 8))) })
	for end := time.Now().Add(kit.Brief); time.Now().Before(end); runtime.Gosched() {
		if now := count(); now > before {
			return fmt.Errorf("%d descriptors became %d", before, now)
		}
	}
	tellsGate(p, args[0])
	p.Hear()
	return errors.Join(<-reading, c.Close())
}

// ---------------------------------------------------------------------------
// Descriptors that another holder makes block

// blockingEnds are the ends of one process that somebody else shares.
type blockingEnds struct {
	c *ipc.Conn
	m *ipc.MsgConn
	r *ipc.PipeReader
	w *ipc.PipeWriter
	l *ipc.Listener
}

// TestConnThatAnotherMakesBlockKeepsItsDeadlines has another holder of each kind of
// end clear O_NONBLOCK, which all holders share.
func TestConnThatAnotherMakesBlockKeepsItsDeadlines(t *testing.T) {
	kit.Together(t)
	for _, way := range []string{"Duplicate", "Bequeathed", "Adopted", "Inherited"} {
		for _, when := range []string{"before use", "after use"} {
			t.Run(way+"/"+when, func(t *testing.T) {
				kit.Story(t)
				var victim *kit.Child
				var block func()
				if way == "Inherited" {
					ends, others, err := makeEnds()
					kit.Must(t, err)
					defer others.close() // not before: who reads would see the end
					h := kit.NewHeir(t)
					h.Gets("c", ends.c)
					h.Gets("m", ends.m)
					h.Gets("r", ends.r)
					h.Gets("w", ends.w)
					h.Gets("l", ends.l)
					victim = h.Start("shares its ends", way, when)
					block = func() { kit.Must(t, ends.block()) }
					defer ends.close()
				} else {
					victim = kit.StartChild(t, "shares its ends", way, when)
					block = func() {}
				}
				limit := time.AfterFunc(kit.Soon, func() { victim.Cmd.Process.Signal(syscall.SIGQUIT) }) // with all stacks
				defer limit.Stop()
				victim.MustSay("ready")
				block()
				victim.Say("go")
				victim.MustSay("all ended in time")
				victim.End()
			})
		}
	}
}

// makeEnds returns ends and their other ends.
func makeEnds() (e, others blockingEnds, err error) {
	var errs [4]error
	e.c, others.c, errs[0] = ipc.Pair()
	e.m, others.m, errs[1] = ipc.MsgPair()
	e.r, others.w, errs[2] = ipc.Pipe()
	others.r, e.w, errs[3] = ipc.Pipe()
	e.l, err = ipc.Listen(ipc.Addr{})
	return e, others, errors.Join(append(errs[:], err)...)
}

func (e *blockingEnds) close() error {
	errs := []error{e.c.Close(), e.m.Close(), e.r.Close(), e.w.Close()}
	if e.l != nil {
		errs = append(errs, e.l.Close())
	}
	return errors.Join(errs...)
}

func (e *blockingEnds) conns() (all []syscall.Conn) {
	return []syscall.Conn{e.c, e.m, e.r, e.w, e.l}
}

// block makes the ends block, for all that share them.
func (e *blockingEnds) block() error {
	for _, c := range e.conns() {
		if err := setBlocking(c); err != nil {
			return err
		}
	}
	return nil
}

func setBlocking(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = syscall.SetNonblock(int(fd), false) }); e != nil {
		return e
	}
	return err
}

// shared returns the ends as this process has them, and how the other holder makes
// them block.
func sharedEnds(way string) (e, others blockingEnds, block func() error, err error) {
	if way == "Inherited" {
		e = blockingEnds{kit.Sure(ipc.InheritedConn("c")), kit.Sure(ipc.InheritedMsgConn("m")), kit.Sure(ipc.InheritedReader("r")),
			kit.Sure(ipc.InheritedWriter("w")), kit.Sure(ipc.InheritedListener("l"))}
		return e, others, func() error { return nil }, nil
	}
	if e, others, err = makeEnds(); err != nil {
		return e, others, nil, err
	}
	if way == "Bequeathed" {
		var cmd exec.Cmd
		for i, end := range []ipc.Inheritable{e.c, e.m, e.r, e.w, e.l} {
			if err := ipc.Inherit(&cmd, strconv.Itoa(i), end); err != nil {
				return e, others, nil, err
			}
		}
		return e, others, e.block, nil
	}
	var files []*os.File
	for _, c := range e.conns() {
		files = append(files, kit.Sure(c.(interface{ File() (*os.File, error) }).File()))
	}
	if way == "Adopted" {
		own := e
		e = blockingEnds{kit.Sure(ipc.FileConn(files[0])), kit.Sure(ipc.FileMsgConn(files[1])), kit.Sure(ipc.FileReader(files[2])),
			kit.Sure(ipc.FileWriter(files[3])), kit.Sure(ipc.FileListener(files[4]))}
		return e, others, own.block, nil
	}
	return e, others, func() error {
		for _, f := range files {
			if err := setBlocking(f); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

func childSharesItsEnds(p *kit.Parent, args []string) error {
	way, when := args[0], args[1]
	e, others, block, err := sharedEnds(way)
	if err != nil {
		return err
	}
	if when == "after use" {
		if err := e.endInTime(); err != nil {
			return err
		}
	}
	p.Say("ready")
	p.Hear()
	if err := block(); err != nil {
		return err
	}
	if err := e.endInTime(); err != nil {
		return err
	}
	waiting := []<-chan error{
		kit.BeginRead(e.c), kit.BeginRead(e.r), kit.BeginRead(kit.MsgEnd{MsgConn: e.m}),
		kit.Begin(func() error { _, err := e.l.Accept(); return err }),
		kit.Begin(func() error { _, err := e.w.Write(make([]byte, kit.TooMuch)); return err }),
		kit.Begin(func() error { _, err := e.c.Write(make([]byte, kit.TooMuch)); return err }),
	}
	for _, in := range []string{"(*Conn).Read(", "(*PipeReader).Read(", "(*MsgConn).Recv(", "(*Listener).Accept(",
		"(*PipeWriter).Write(", "(*Conn).Write("} {
		for !strings.Contains(kit.Stacks(), in) {
			runtime.Gosched()
		}
	}
	runtime.GC()
	if err := e.close(); err != nil {
		return err
	}
	for i, done := range waiting {
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("call %d ends with %w", i, err)
		}
	}
	runtime.KeepAlive(others)
	p.Say("all ended in time")
	return nil
}

// A writingEnd can be shared, and waits.
type writingEnd interface {
	ipc.Inheritable
	syscall.Conn
	SetWriteDeadline(time.Time) error
}

// TestEndThatBlocksWhileItIsUsedKeepsItsDeadlines has another get the end while a call waits on it.
func TestEndThatBlocksWhileItIsUsedKeepsItsDeadlines(t *testing.T) {
	data := kit.Pattern(kit.TooMuch)
	for what, test := range map[string]struct {
		in    string
		begin func(t *testing.T, e, others *blockingEnds) (end writingEnd, call func() error, reader io.Reader)
	}{
		"PipeWriter.Write": {"(*PipeWriter).Write", func(t *testing.T, e, others *blockingEnds) (writingEnd, func() error, io.Reader) {
			return e.w, func() error { _, err := e.w.Write(data); return err }, others.r
		}},
		"Conn.ReadFrom a pipe": {"(*Conn).ReadFrom", func(t *testing.T, e, others *blockingEnds) (writingEnd, func() error, io.Reader) {
			go func() { others.w.Write(data); others.w.Close() }()
			return e.c, func() error { _, err := e.c.ReadFrom(e.r); return err }, others.c
		}},
		"Conn.ReadFrom a Conn": {"(*Conn).ReadFrom", func(t *testing.T, e, others *blockingEnds) (writingEnd, func() error, io.Reader) {
			a, b := kit.Pair(t)
			go func() { a.Write(data); a.Close() }()
			return e.c, func() error { _, err := e.c.ReadFrom(b); return err }, others.c
		}},
	} {
		for _, limited := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/limited=%t", what, limited), func(t *testing.T) {
				kit.Story(t)
				e, others, err := makeEnds()
				kit.Must(t, err)
				end, call, reader := test.begin(t, &e, &others)
				done := kit.Begin(call)
				kit.AwaitParked(t, test.in, 1)
				kit.Must(t, ipc.Inherit(new(exec.Cmd), "end", end))
				kit.Must(t, setBlocking(end)) // as the child can
				// The call goes on, and would wait for room.
				got := make([]byte, len(data))
				n, err := io.ReadFull(reader, got[:kit.TooMuch/8])
				kit.Must(t, err)
				var want error
				if limited {
					want = os.ErrDeadlineExceeded
					kit.Must(t, end.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
				} else {
					_, err := io.ReadFull(reader, got[n:])
					kit.Must(t, err)
					n = len(got)
				}
				ends(t, what, func() error {
					if err := <-done; !errors.Is(err, want) {
						return fmt.Errorf("it ends with %w", err)
					}
					return nil
				})
				if !bytes.Equal(got[:n], data[:n]) {
					t.Error("other data arrives")
				}
				kit.Must(t, e.close())
				others.close() // one end may be closed already
			})
		}
	}
}

// endInTime proves that every call that has to wait ends with its deadline.
func (e *blockingEnds) endInTime() error {
	big := make([]byte, kit.TooMuch)
	for what, call := range map[string]func(time.Time) error{
		"Conn.Read":        func(t time.Time) error { e.c.SetReadDeadline(t); _, err := e.c.Read(big); return err },
		"Conn.Write":       func(t time.Time) error { e.c.SetWriteDeadline(t); _, err := e.c.Write(big); return err },
		"Conn.ReadBuffers": func(t time.Time) error { e.c.SetReadDeadline(t); _, err := e.c.ReadBuffers([][]byte{big}); return err },
		"Conn.WriteBuffers": func(t time.Time) error {
			e.c.SetWriteDeadline(t)
			_, err := e.c.WriteBuffers(&net.Buffers{big, big})
			return err
		},
		"Conn.RecvFiles": func(t time.Time) error { e.c.SetReadDeadline(t); _, err := e.c.RecvFiles(1); return err },
		"Conn.ReadFrom": func(t time.Time) error {
			r, w := kit.Sure2(os.Pipe())
			defer r.Close()
			go func() { w.Write(big); w.Close() }()
			e.c.SetWriteDeadline(t)
			_, err := e.c.ReadFrom(r)
			return err
		},
		"MsgConn.Recv":     func(t time.Time) error { e.m.SetReadDeadline(t); _, err := e.m.Recv(big); return err },
		"MsgConn.RecvPeer": func(t time.Time) error { e.m.SetReadDeadline(t); _, _, err := e.m.RecvPeer(big); return err },
		"MsgConn.Send": func(t time.Time) error {
			e.m.SetWriteDeadline(t)
			_, err := kit.WriteMuch(kit.MsgEnd{MsgConn: e.m})
			return err
		},
		"PipeReader.Read":  func(t time.Time) error { e.r.SetReadDeadline(t); _, err := e.r.Read(big); return err },
		"PipeWriter.Write": func(t time.Time) error { e.w.SetWriteDeadline(t); _, err := e.w.Write(big); return err },
		"Listener.Accept":  func(t time.Time) error { e.l.SetDeadline(t); _, err := e.l.Accept(); return err },
	} {
		if err := call(time.Now().Add(kit.Brief)); !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%s ends with %w", what, err)
		}
	}
	never := time.Time{}
	return errors.Join(e.c.SetDeadline(never), e.m.SetDeadline(never), e.r.SetReadDeadline(never),
		e.w.SetWriteDeadline(never), e.l.SetDeadline(never))
}

// ---------------------------------------------------------------------------
// Sockets that linger

// A lingering socket waits in close(2) for an hour, unless its peer makes room. Its peer
// stays until the test ends.
type lingering struct{ fd, peer int }

// newLingering makes n of them, or skips the test if there is no TCP here. It takes a while, for many no longer than for
// one.
func newLingering(t *testing.T, n int) (all []*lingering) {
	t.Helper()
	l, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	kit.Must(t, err)
	defer syscall.Close(l)
	kit.Must(t, syscall.SetsockoptInt(l, syscall.SOL_SOCKET, syscall.SO_RCVBUF, 2048))
	if err := syscall.Bind(l, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Skip("there is no loopback interface:", err)
	}
	kit.Must(t, syscall.Listen(l, n))
	addr, err := syscall.Getsockname(l)
	kit.Must(t, err)
	for range n {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		kit.Must(t, err)
		kit.Must(t, syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, 4096))
		kit.Must(t, syscall.Connect(fd, addr))
		peer, _, err := syscall.Accept4(l, syscall.SOCK_CLOEXEC)
		kit.Must(t, err)
		kit.Must(t, syscall.SetNonblock(fd, true))
		kit.Must(t, syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1, Linger: 3600}))
		all = append(all, &lingering{fd, peer})
	}
	// The peer's queue is full too once nothing has moved for longer than an
	// acknowledgement may be delayed.
	for idle := 0; idle < 15; idle++ {
		for _, l := range all {
			for {
				if _, err := syscall.Write(l.fd, make([]byte, 64<<10)); err == syscall.EAGAIN {
					break
				} else {
					kit.Must(t, err)
				}
				idle = 0
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return all
}

// lingerings are those that were made and that no test has taken.
var lingerings []*lingering

// takeLingering returns n of them, which linger until the test ends.
func takeLingering(t *testing.T, n int) (taken []*lingering) {
	t.Helper()
	taken, lingerings = lingerings[:n], lingerings[n:]
	for _, l := range taken {
		t.Cleanup(func() { syscall.Close(l.peer) }) // which resets the other end
	}
	return taken
}

// rights returns the control message that sends it, so often.
func (l *lingering) rights(times int) []byte {
	return syscall.UnixRights(slices.Repeat([]int{l.fd}, times)...)
}

// let gives up this end's own descriptor, which lingers only where it is the last.
func (l *lingering) let() { syscall.Close(l.fd) }

// bombs sends p with a new lingering socket.
func bombs(t *testing.T, c kit.RawCarrier, p string, times int) {
	t.Helper()
	for _, l := range takeLingering(t, 1) {
		_, err := c.WriteMsg([]byte(p), l.rights(times))
		l.let()
		kit.Must(t, err)
	}
}

// urgentBomb sends a lingering socket with an urgent byte, which a read may skip.
func urgentBomb(t *testing.T, c kit.RawCarrier) {
	t.Helper()
	if _, ok := c.(*ipc.Conn); !ok {
		t.Skip("only a stream has urgent data")
	}
	l := takeLingering(t, 1)[0]
	defer l.let()
	raw, err := c.SyscallConn()
	kit.Must(t, err)
	kit.Must(t, raw.Control(func(fd uintptr) {
		err = syscall.Sendmsg(int(fd), []byte("!"), l.rights(1), nil, syscall.MSG_OOB)
	}))
	if err == syscall.EOPNOTSUPP {
		t.Skip("this kernel has no urgent data in local sockets")
	}
	kit.Must(t, err)
}

// dialBomb connects to the abstract name as a program would that means harm, sends a
// lingering socket, and stays until the test ends.
func dialBomb(t *testing.T, typ int, addr net.Addr) {
	t.Helper()
	l := takeLingering(t, 1)[0]
	defer l.let()
	s, err := syscall.Socket(syscall.AF_UNIX, typ|syscall.SOCK_CLOEXEC, 0)
	kit.Must(t, err)
	t.Cleanup(func() { syscall.Close(s) })
	kit.Must(t, syscall.Connect(s, &syscall.SockaddrUnix{Name: addr.String()}))
	kit.Must(t, syscall.Sendmsg(s, []byte("x"), l.rights(1), nil, 0))
}

// ends fails the test unless the call ends, with no error, while those who mean harm
// stay. One that does not ends when they do.
func ends(t *testing.T, what string, call func() error) {
	t.Helper()
	select {
	case err := <-kit.Begin(call):
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(kit.Soon):
		t.Fatalf("%s does not end", what)
	}
}

func TestConnCloseOfALingeringSocketHoldsNobodyUp(t *testing.T) {
	lingerings = newLingering(t, 50)
	defer func() {
		for _, l := range lingerings {
			syscall.Close(l.peer)
			l.let()
		}
	}()
	refuse := func(ipc.Peer) error { return errors.New("refused") }
	onConns := map[string]func(t *testing.T, a, b kit.RawCarrier){
		"Close": func(t *testing.T, a, b kit.RawCarrier) {
			bombs(t, a, "x", 1)
			ends(t, "Close", b.Close)
		},
		"CloseOfAdopted": func(t *testing.T, a, b kit.RawCarrier) { // which others may have too
			f, err := b.File()
			kit.Must(t, err)
			kit.Must(t, b.Close())
			var adopted io.Closer
			if _, ok := b.(*ipc.MsgConn); ok {
				adopted, err = ipc.FileMsgConn(f)
			} else {
				adopted, err = ipc.FileConn(f)
			}
			kit.Must(t, err)
			kit.Must(t, f.Close())
			bombs(t, a, "x", 1)
			ends(t, "Close", adopted.Close)
		},
		"Dropped": func(t *testing.T, a, b kit.RawCarrier) {
			f, err := b.File()
			kit.Must(t, err)
			kit.Must(t, b.Close())
			func() {
				var dropped kit.End
				if _, ok := b.(*ipc.MsgConn); ok {
					m, err := ipc.FileMsgConn(f)
					kit.Must(t, err)
					dropped = kit.MsgEnd{MsgConn: m}
				} else {
					dropped, err = ipc.FileConn(f)
					kit.Must(t, err)
				}
				kit.Must(t, dropped.SetReadDeadline(time.Now().Add(time.Millisecond)))
				if _, err := dropped.Read(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) { // it has parked
					t.Errorf("nothing is read: %v", err)
				}
			}()
			kit.Must(t, f.Close())
			bombs(t, a, "x", 1)
			kit.Eventually(t, "it is closed", func() bool {
				runtime.GC()
				_, err := a.WriteMsg([]byte("y"), nil)
				return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
			})
			finalized := make(chan error, 1)
			func() { runtime.SetFinalizer(new([64]byte), func(*[64]byte) { finalized <- nil }) }()
			runtime.GC()
			ends(t, "the finalizer of something else", func() error { return <-finalized })
		},
		"CloseBehindAnEmptyMessage": func(t *testing.T, a, b kit.RawCarrier) {
			if m, ok := a.(*ipc.MsgConn); ok {
				kit.SendMsg(t, m, "before")
				kit.ExpectMsg(t, b.(*ipc.MsgConn), "before")
				kit.SendMsg(t, m, "")
			}
			bombs(t, a, "x", 1)
			ends(t, "Close", b.Close)
		},
		"CloseWithUrgentData": func(t *testing.T, a, b kit.RawCarrier) {
			urgentBomb(t, a)
			ends(t, "Close", b.Close)
		},
		"ReadWithUrgentData": func(t *testing.T, a, b kit.RawCarrier) {
			urgentBomb(t, a)
			kit.Say(t, a, "x")
			ends(t, "Read", func() error {
				for p := []byte{0}; p[0] != 'x'; { // whether or not urgent data is data
					if _, err := b.(*ipc.Conn).Read(p); err != nil {
						return err
					}
				}
				return nil
			})
		},
		"CloseBehindTheEnd": func(t *testing.T, a, b kit.RawCarrier) {
			bombs(t, a, "x", 1)
			kit.Must(t, a.Close())
			ends(t, "Close", b.Close)
		},
		"CloseRead": func(t *testing.T, a, b kit.RawCarrier) {
			c, ok := b.(*ipc.Conn)
			if !ok {
				t.Skip("messages have no half close")
			}
			for _, l := range takeLingering(t, 20) {
				_, err := a.WriteMsg([]byte("x"), l.rights(1))
				l.let()
				kit.Must(t, err)
			}
			ends(t, "CloseRead", c.CloseRead)
		},
		"Read": func(t *testing.T, a, b kit.RawCarrier) {
			bombs(t, a, "x", 1)
			ends(t, "Read", func() error { return isOne(kit.EndOf(b).Read(make([]byte, 8))) })
		},
		"Surplus": func(t *testing.T, a, b kit.RawCarrier) {
			bombs(t, a, "\x00", 3)
			ends(t, "RecvFiles", func() error {
				if files, err := b.RecvFiles(2); files != nil || !errors.Is(err, ipc.ErrMsgTooLong) {
					return fmt.Errorf("%d files, %w", len(files), err)
				}
				return nil
			})
		},
		"ReadMsgWithoutRoom": func(t *testing.T, a, b kit.RawCarrier) {
			bombs(t, a, "x", 1)
			ends(t, "ReadMsg", func() error { n, _, _, err := b.ReadMsg(make([]byte, 8), nil); return isOne(n, err) })
		},
		"RecvPeer": func(t *testing.T, a, b kit.RawCarrier) {
			m, ok := b.(*ipc.MsgConn)
			if !ok {
				t.Skip("only a message has a sender")
			}
			bombs(t, a, "x", 1)
			ends(t, "RecvPeer", func() error { n, _, err := m.RecvPeer(make([]byte, 8)); return isOne(n, err) })
		},
		"RecvAppend": func(t *testing.T, a, b kit.RawCarrier) {
			m, ok := b.(*ipc.MsgConn)
			if !ok {
				t.Skip("only messages are appended")
			}
			bombs(t, a, "x", 1)
			ends(t, "RecvAppend", func() error { p, err := m.RecvAppend(nil); return isOne(len(p), err) })
		},
	}
	for what, tell := range onConns {
		t.Run(what, func(t *testing.T) { kit.OverEachRaw(t, tell) })
	}

	onListeners := map[string]func(t *testing.T){
		"CloseOfListener": func(t *testing.T) {
			l := kit.Listen(t, kit.NameAddr(t))
			dialBomb(t, syscall.SOCK_STREAM, l.Addr())
			ends(t, "Close", l.Close)
		},
		"CloseOfMsgListener": func(t *testing.T) {
			l := kit.ListenMsg(t, kit.NameAddr(t))
			dialBomb(t, syscall.SOCK_SEQPACKET, l.Addr())
			ends(t, "Close", l.Close)
		},
		"AcceptThatRefuses": func(t *testing.T) {
			honest := false
			addr := kit.NameAddr(t)
			l := kit.ListenWith(t, ipc.ListenConfig{Check: func(ipc.Peer) error {
				if !honest {
					honest = true
					return errors.New("refused")
				}
				return nil
			}}, addr)
			dialBomb(t, syscall.SOCK_STREAM, addr)
			c := kit.Dial(t, addr)
			ends(t, "Accept", func() error {
				served, err := l.AcceptConn()
				if err == nil {
					defer served.Close()
					kit.Talk(t, c, served)
				}
				return err
			})
		},
		"DialThatRefuses": func(t *testing.T) {
			addr := kit.NameAddr(t)
			squatter, err := net.ListenUnix("unix", &net.UnixAddr{Name: addr.String(), Net: "unix"})
			kit.Must(t, err)
			defer squatter.Close()
			bomb := takeLingering(t, 1)[0]
			ends(t, "Dial", func() error {
				_, err := ipc.Dialer{Check: func(p ipc.Peer) error {
					c, err := squatter.AcceptUnix()
					if err != nil {
						return nil
					}
					t.Cleanup(func() { c.Close() })
					if _, _, err := c.WriteMsgUnix([]byte("x"), bomb.rights(1), nil); err != nil {
						return nil
					}
					bomb.let()
					return refuse(p)
				}}.Dial(addr)
				if !errors.Is(err, ipc.ErrUntrusted) {
					return fmt.Errorf("the squatter is trusted: %w", err)
				}
				return nil
			})
		},
	}
	for what, tell := range onListeners {
		t.Run(what, func(t *testing.T) { kit.Story(t); tell(t) })
	}
}

// ---------------------------------------------------------------------------
// Descriptors that the kernel adds

// A peer's hello comes with sockets that linger, as many at once as there are closers, or a few each from
// many peers. They hold the closers no longer than it takes to end that.
func TestSharedHelloWithLingeringFilesHoldsNobodyUp(t *testing.T) {
	kit.NeedsMemory(t)
	kit.Story(t)
	const closers, few, many = 64, 3, 22 // few each from many are more than there are closers
	all := newLingering(t, closers+few*many)
	for _, l := range all {
		defer syscall.Close(l.peer)
	}
	for n := closers; len(all) > 0; n = few {
		a, b := kit.Pair(t)
		c, err := b.Share(ipc.ShareConfig{})
		kit.Must(t, err)
		var rights []int
		for _, l := range all[:n] {
			rights = append(rights, l.fd)
		}
		_, err = a.WriteMsg([]byte(memoryHello), syscall.UnixRights(rights...))
		kit.Must(t, err)
		for _, l := range all[:n] {
			l.let()
		}
		ends(t, "Read", func() error {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.EPROTO) {
				return fmt.Errorf("read: %v", err)
			}
			return nil
		})
		ends(t, "Close", c.Close)
		if all = all[n:]; n == closers {
			closesFiles(t)
		}
	}
	closesFiles(t)
}

// closesFiles fails the test unless a file that nobody has asked for is closed soon.
func closesFiles(t *testing.T) {
	t.Helper()
	a, b := kit.Pair(t)
	r, w, err := os.Pipe()
	kit.Must(t, err)
	defer r.Close()
	_, err = a.WriteMsg([]byte("x"), syscall.UnixRights(sysFDOf(w)))
	kit.Must(t, err)
	kit.Must(t, w.Close())
	kit.Expect(t, b, "x")
	ends(t, "a read of a pipe that was sent", func() error {
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			return err
		}
		return nil
	})
}

// soPassPidfd is SO_PASSPIDFD of asm-generic/socket.h, Linux 6.5 and later.
const soPassPidfd = 76

// overEachPidfd tells a story over connections whose b is adopted from somebody who
// has every message bring a descriptor of its sender's process.
func overEachPidfd(t *testing.T, tell func(t *testing.T, a, b kit.RawCarrier)) {
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		f, err := b.File()
		kit.Must(t, err)
		defer f.Close()
		if err := syscall.SetsockoptInt(kit.SysFD(t, f), syscall.SOL_SOCKET, soPassPidfd, 1); err != nil {
			t.Skip("this kernel has no SO_PASSPIDFD:", err)
		}
		if _, ok := b.(*ipc.MsgConn); ok {
			c, err := ipc.FileMsgConn(f)
			tell(t, a, kit.Kept(t, c, err))
		} else {
			c, err := ipc.FileConn(f)
			tell(t, a, kit.Kept(t, c, err))
		}
	})
}

func TestRecvPeerClosesDescriptorsOfSenders(t *testing.T) {
	overEachPidfd(t, func(t *testing.T, a, b kit.RawCarrier) {
		file := kit.TextFile(t, "a file")
		p := make([]byte, 8)
		ways := map[string]func(){
			"Read":      func() { kit.Say(t, a, "x"); kit.Hear(t, b, "x") },
			"RecvFiles": func() { kit.SendFiles(t, a, file); kit.Must(t, kit.RecvFiles(t, b, 1)[0].Close()) },
			"NoFiles": func() {
				kit.Say(t, a, "x")
				_, err := b.RecvFiles(1)
				kit.Matches(t, err, ipc.ErrNoFiles)
				kit.Hear(t, b, "x")
			},
			"Surplus": func() {
				kit.SendFiles(t, a, file, file)
				_, err := b.RecvFiles(1)
				kit.Matches(t, err, ipc.ErrMsgTooLong)
			},
			"ReadMsgWithoutRoom": func() {
				kit.Say(t, a, "x")
				_, _, _, err := b.ReadMsg(p, nil)
				kit.Must(t, err)
			},
			"ReadMsgWithLittleRoom": func() {
				kit.SendFiles(t, a, file, file)
				oob := make([]byte, syscall.CmsgSpace(4))
				_, oobn, flags, err := b.ReadMsg(p, oob)
				kit.Must(t, err)
				if flags&syscall.MSG_CTRUNC == 0 {
					t.Errorf("flags are %#x", flags)
				}
				for _, f := range kit.FilesIn(t, oob[:oobn]) {
					kit.Must(t, f.Close())
				}
			},
		}
		if m, ok := b.(*ipc.MsgConn); ok {
			from := a.(*ipc.MsgConn)
			ways["RecvPeer"] = func() {
				kit.SendMsg(t, from, "x")
				_, _, err := m.RecvPeer(p)
				kit.Must(t, err)
			}
			ways["RecvAppend"] = func() {
				kit.SendMsg(t, from, "x")
				_, err := m.RecvAppend(nil)
				kit.Must(t, err)
			}
			ways["RecvWithFiles"] = func() {
				kit.Must(t, from.SendWithFiles([]byte("x"), file))
				_, files, err := m.RecvWithFiles(p, 1)
				kit.Must(t, err)
				kit.Must(t, files[0].Close())
			}
		}
		for what, way := range ways {
			t.Log(what)
			kit.LeavesNothing(t, 5, way)
		}
	})
}

// TestConnEOFWhateverComesWithIt has somebody ask for the credentials of every
// sender, which the kernel then adds to the end of a stream too.
func TestConnEOFWhateverComesWithIt(t *testing.T) {
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		f, err := b.File()
		kit.Must(t, err)
		kit.Must(t, syscall.SetsockoptInt(kit.SysFD(t, f), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1))
		kit.Must(t, f.Close())
		kit.Must(t, a.Close())
		if files, err := b.RecvFiles(1); err != io.EOF {
			t.Errorf("RecvFiles returns %d files, %v", len(files), err)
		}
		if n, oobn, _, err := b.ReadMsg(make([]byte, 8), kit.OobRoom(1)); err != io.EOF {
			t.Errorf("ReadMsg returns %d bytes, %d of control messages, %v", n, oobn, err)
		}
		kit.HearEOF(t, b)
	})
}

// TestReadMsgWithoutTheMarkIsWhole has another holder switch off what this
// package has the kernel mark messages with.
func TestReadMsgWithoutTheMarkIsWhole(t *testing.T) {
	kit.Story(t)
	a, b := kit.MsgPair(t)
	if !a.Native() {
		t.Skip("the socket carries frames")
	}
	kit.SendMsg(t, a, "first")
	kit.ExpectMsg(t, b, "first") // it is marked from now on
	f, err := b.File()
	kit.Must(t, err)
	kit.Must(t, syscall.SetsockoptInt(kit.SysFD(t, f), syscall.SOL_SOCKET, syscall.SO_TIMESTAMP, 0))
	kit.Must(t, f.Close())
	file := kit.TextFile(t, "a file")
	for _, sent := range []int{0, 1, 5} {
		for _, room := range []int{0, syscall.CmsgSpace(4), syscall.CmsgSpace(4 * 5), 300} {
			before := kit.OpenDescriptors()
			_, err := a.WriteMsg([]byte("data"), kit.RightsOf(t, slices.Repeat([]*os.File{file}, sent)...))
			kit.Must(t, err)
			p, oob := make([]byte, 8), make([]byte, room)
			n, oobn, flags, err := b.ReadMsg(p, oob)
			if string(p[:n]) != "data" || err != nil {
				t.Fatalf("read %q, %v", p[:n], err)
			}
			files := kit.FilesIn(t, oob[:oobn])
			fit := sent
			for fit > 0 && syscall.CmsgSpace(4*fit) > room {
				fit--
			}
			if len(files) != fit || (flags&syscall.MSG_CTRUNC != 0) != (fit < sent) {
				t.Errorf("of %d files in room of %d bytes come %d, flags %#x", sent, room, len(files), flags)
			}
			for _, f := range files {
				kit.Must(t, f.Close())
			}
			if err := kit.NoMoreDescriptors(before); err != nil {
				t.Errorf("%d files, room of %d bytes: %v", sent, room, err)
			}
		}
	}
}

// ---------------------------------------------------------------------------
// Limits

func TestRecvFilesWithoutDescriptorsSaysSo(t *testing.T) {
	for _, kind := range []string{"stream", "native", "framed"} {
		t.Run(kind, func(t *testing.T) {
			kit.Story(t)
			kit.StartChild(t, "lacks descriptors", kind).End()
		})
	}
}

// childLacksDescriptors receives files with no descriptor, or one, to spare.
func childLacksDescriptors(_ *kit.Parent, args []string) error {
	a, b := kit.Sure2(kit.Carriers(args[0]))
	r, w := kit.Sure2(os.Pipe())
	defer r.Close()
	defer w.Close()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	kit.Reaches(a, b, "what is opened for good is open now")
	poller := os.NewFile(uintptr(kit.Sure(syscall.EpollCreate1(syscall.EPOLL_CLOEXEC))), "poller") // takes one more for a moment
	defer poller.Close()
	before := kit.OpenDescriptors()
	for spare, sent := range [][]*os.File{{w, w, w}, {w, w, w}, {w, w, w}, 3: {poller, poller, poller}} {
		if err := a.SendFiles(sent...); err != nil {
			return err
		}
		few, open := limit, kit.Descriptors()
		few.Cur = 0
		for free := spare; free > 0 || slices.Contains(open, int(few.Cur)); few.Cur++ { // up to the next one that is free
			if !slices.Contains(open, int(few.Cur)) {
				free--
			}
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
			return err
		}
		files, err := b.RecvFiles(3)
		if e := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); e != nil {
			return e
		}
		if files != nil || !errors.Is(err, syscall.EMFILE) || !errors.Is(err, ipc.ErrMsgTooLong) {
			return fmt.Errorf("with %d descriptors to spare: %d files, %w", spare, len(files), err)
		}
		if err := kit.NoMoreDescriptors(before); err != nil {
			return err
		}
		if err := kit.Reaches(a, b, "data behind the files"); err != nil {
			return err
		}
		if err := a.SendFiles(w); err != nil {
			return err
		}
		if files, err = b.RecvFiles(1); len(files) != 1 || err != nil {
			return fmt.Errorf("then %d files, %w", len(files), err)
		}
		files[0].Close()
	}
	return errors.Join(a.Close(), b.Close())
}

// TestSendFilesThatNobodyTakesDelayOthersBriefly has a user who may have 64 descriptors,
// and so 64 files under way to all of its receivers together: see unix(7),
// ETOOMANYREFS. Root may have any number.
func TestSendFilesThatNobodyTakesDelayOthersBriefly(t *testing.T) {
	kit.NeedsRoot(t)
	kit.Story(t)
	user := 1<<20 + os.Getpid() // nobody else has files under way
	kit.StartChildWith(t, exec.Cmd{Env: []string{fmt.Sprintf("%s=%d:%d", kit.ChildUser, user, user)}}, "fills the flight").End()
}

func childFillsTheFlight(*kit.Parent, []string) error {
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 64, Max: 64}); err != nil {
		return err
	}
	r, w := kit.Sure2(os.Pipe())
	defer r.Close()
	defer w.Close()
	var idle [2]*ipc.Conn // never take what they are sent
	idle[0], idle[1] = kit.Sure2(ipc.Pair())
	a, b := kit.Sure2(ipc.Pair())
	fill := func() {
		raw := kit.Sure(idle[0].SyscallConn())
		raw.Control(func(fd uintptr) {
			for syscall.Sendmsg(int(fd), []byte{0}, syscall.UnixRights(sysFDOf(w)), nil, syscall.MSG_DONTWAIT) == nil {
			}
		})
	}
	take := func() error {
		files, err := idle[1].RecvFiles(1)
		if err == nil {
			err = files[0].Close()
		}
		return err
	}
	fill()
	if err := a.SendFiles(w); !errors.Is(err, syscall.ETOOMANYREFS) {
		return fmt.Errorf("too many files under way: %w", err)
	}

	ended := false
	for range 20 { // the wait may be over before a deadline that this process is late for
		a.SetWriteDeadline(time.Now().Add(kit.Brief))
		err := a.SendFiles(w)
		if ended = errors.Is(err, os.ErrDeadlineExceeded); ended {
			break
		} else if !errors.Is(err, syscall.ETOOMANYREFS) {
			return fmt.Errorf("with a deadline: %w", err)
		}
	}
	a.SetWriteDeadline(time.Time{})
	if !ended {
		return errors.New("the deadline does not end the wait")
	}

	sent := false
	for range 20 { // the wait may be over before this process can take a file
		fill()
		sending := kit.Begin(func() error { return a.SendFiles(w) })
		var err error
		waits := false
		for !waits {
			select {
			case err = <-sending:
				waits = true
			default:
				if waits = strings.Contains(kit.Stacks(), "(*fd).pollByTimer("); waits {
					if err := take(); err != nil {
						return err
					}
					err = <-sending
				}
			}
		}
		if sent = err == nil; sent {
			break
		} else if !errors.Is(err, syscall.ETOOMANYREFS) {
			return err
		}
	}
	if !sent {
		return errors.New("files are not sent when others have taken theirs")
	}
	if files, err := b.RecvFiles(1); len(files) != 1 || err != nil {
		return fmt.Errorf("%d files, %w", len(files), err)
	}

	fill()
	sending := kit.Begin(func() error { return a.SendFiles(w) })
	if err := a.Close(); err != nil {
		return err
	}
	if err := <-sending; !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ETOOMANYREFS) {
		return fmt.Errorf("Close ends the wait with %w", err)
	}
	return nil
}

func sysFDOf(f *os.File) (fd int) {
	raw := kit.Sure(f.SyscallConn())
	raw.Control(func(sys uintptr) { fd = int(sys) })
	return fd
}

// ---------------------------------------------------------------------------
// Signals

// TestPeerThatIsGoneSendsNoSignal matters to a program in C that has Go within: there
// SIGPIPE may end the process.
func TestPeerThatIsGoneSendsNoSignal(t *testing.T) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGWINCH) // starts a goroutine for good
	kit.Story(t)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGPIPE, syscall.SIGWINCH)
	defer signal.Stop(signals)
	file := kit.TextFile(t, "a file")
	p := []byte("to nobody")
	calls := map[string]func() error{}
	a, b := kit.Pair(t)
	kit.Must(t, b.Close())
	calls["Write"] = func() error { _, err := a.Write(p); return err }
	calls["WriteBuffers"] = func() error { _, err := a.WriteBuffers(&net.Buffers{p, p}); return err }
	calls["SendFiles"] = func() error { return a.SendFiles(file) }
	calls["WriteMsg"] = func() error { _, err := a.WriteMsg(p, nil); return err }
	for _, on := range []bool{false, true} {
		before := kit.FrameMessages(on)
		m, gone := kit.MsgPair(t)
		kit.FrameMessages(before)
		kit.Must(t, gone.Close())
		kind := kit.AsFramed(m)
		calls[kind+" Send"] = func() error { return m.Send(p) }
		calls[kind+" SendFiles"] = func() error { return m.SendFiles(file) }
		calls[kind+" SendWithFiles"] = func() error { return m.SendWithFiles(p, file) }
		calls[kind+" WriteMsg"] = func() error { _, err := m.WriteMsg(p, nil); return err }
	}
	for what, call := range calls {
		kit.Matches(t, call(), syscall.EPIPE)
		// A later signal of a higher number comes behind.
		kit.Must(t, syscall.Kill(os.Getpid(), syscall.SIGWINCH))
		for sig := range signals {
			if sig == syscall.SIGWINCH {
				break
			}
			t.Errorf("%s brings %v", what, sig)
		}
	}
}

// A peer sends a file whose close lingers by a doorbell, while so many files wait to be closed
// that no more may. Neither a deadline nor Close waits for that. From Linux 6.16 on the kernel refuses
// the file.
func TestSharedDoorbellWithFilesStopsNobody(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	kit.NeedsMemory(t)
	fs := mountSlow(t, "flush")
	defer fs.open()
	lingering := newLingering(t, 1)[0]
	defer syscall.Close(lingering.peer)
	a, b := kit.Pair(t)
	h := kit.NewHeir(t)
	h.Gets("line", b)
	other, d := kit.Pair(t)
	h.Gets("other", d)
	victim := h.Start("has files in a doorbell", fs.gate)
	kit.Must(t, b.Close())
	kit.Must(t, d.Close())
	s, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	kit.Must(t, err)
	defer syscall.Close(s[0])
	sendHello(t, a, s[1], s[1])
	kit.Must(t, syscall.Close(s[1]))
	var with []int // the victim's memory and the far ends of its doorbells
	for oob := make([]byte, syscall.CmsgSpace(3*4)); len(with) == 0; {
		_, oobn, _, err := a.ReadMsg(make([]byte, 100), oob)
		kit.Must(t, err)
		if oobn > 0 {
			m, err := syscall.ParseSocketControlMessage(oob[:oobn])
			kit.Must(t, err)
			with, err = syscall.ParseUnixRights(&m[0])
			kit.Must(t, err)
		}
	}
	for _, fd := range with {
		defer syscall.Close(fd)
	}
	bell := with[1] // that of the reading half
	f, err := syscall.Open(fs.file, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	kit.Must(t, err)
	defer func() { fs.open(); syscall.Close(f) }()
	_, err = other.WriteMsg([]byte("x"), syscall.UnixRights(slices.Repeat([]int{f}, 200)...))
	kit.Must(t, err)
	end := "broken protocol"
	if err := syscall.Sendmsg(bell, []byte("x"), lingering.rights(1), nil, 0); err == syscall.EPERM {
		end = "deadline"
		kit.Must(t, syscall.SetsockoptLinger(lingering.fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{}))
	} else {
		kit.Must(t, err)
	}
	lingering.let()
	victim.Say(end)
	victim.MustSay("while the gate is closed")
	fs.open()
	victim.End()
}

func childHasFilesInADoorbell(p *kit.Parent, args []string) error {
	c := kit.Sure(kit.Sure(ipc.InheritedConn("line")).Share(ipc.ShareConfig{}))
	if _, err := c.Write(make([]byte, 5000)); err != nil { // this sets the memory up
		return err
	}
	var end error
	limit := kit.Soon / 2
	switch p.Hear() {
	case "broken protocol":
		end = syscall.EPROTO
	case "deadline":
		end, limit = os.ErrDeadlineExceeded, kit.Brief
	}
	other := kit.Sure(ipc.InheritedConn("other"))
	if _, err := other.Read(make([]byte, 1)); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, end) {
		return fmt.Errorf("read: %v", err)
	}
	if err := errors.Join(c.Close(), other.Close()); err != nil {
		return err
	}
	tellsGate(p, args[0])
	return nil
}

// ---------------------------------------------------------------------------
// Memory that a peer may have

// linux/fcntl.h, linux/memfd.h
const (
	addSeals        = 1033
	sealSeal        = 0x1
	sealShrink      = 0x2
	sealGrow        = 0x4
	sealWrite       = 0x8
	sealFutureWrite = 0x10
	allowSealing    = 0x2
	hugeTLB         = 0x4
)

// memfd makes memory as another program may, and seals it.
func memfd(t *testing.T, size int64, flags, seals uintptr) *os.File {
	t.Helper()
	number := map[string]uintptr{"amd64": 319, "386": 356, "arm": 385, "ppc64le": 360, "s390x": 350}[runtime.GOARCH]
	if number == 0 {
		number = 279
	}
	name := []byte("test\x00")
	fd, _, errno := syscall.Syscall(number, uintptr(unsafe.Pointer(&name[0])), flags|1, 0)
	if errno != 0 {
		t.Skip("memfd_create: ", errno)
	}
	f := os.NewFile(fd, "memfd")
	t.Cleanup(func() { f.Close() })
	if err := syscall.Ftruncate(int(fd), size); err != nil {
		t.Skip("ftruncate: ", err)
	}
	if seals != 0 {
		if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, addSeals, seals); errno != 0 {
			t.Skip("F_ADD_SEALS: ", errno)
		}
	}
	return f
}

func TestFileMemoryLooksAtTheSeals(t *testing.T) {
	kit.NeedsMemory(t)
	for _, c := range []struct {
		flags, seals      uintptr
		size              int64
		accepted, mayEdit bool
	}{
		{0, 0, 4096, false, false}, // not to be sealed at all
		{allowSealing, 0, 4096, false, false},
		{allowSealing, sealSeal, 4096, false, false},
		{allowSealing, sealGrow, 4096, false, false},
		{allowSealing, sealGrow | sealSeal | sealFutureWrite, 4096, false, false},
		{allowSealing, sealShrink, 4096, true, true},
		{allowSealing, sealShrink | sealGrow | sealSeal, 4096, true, true},
		{allowSealing, sealShrink | sealWrite, 4096, true, false},
		{allowSealing, sealShrink | sealFutureWrite, 4096, true, false},
		{allowSealing, sealShrink, 1, true, true},
		{allowSealing, sealShrink, 5000, true, true},
		{allowSealing, sealShrink, 0, false, false},
		{allowSealing, sealShrink, 1<<20 + 1, false, false},
		{allowSealing, sealShrink, 1 << 40, false, false},
		{allowSealing | hugeTLB, sealShrink | sealGrow | sealSeal, 2 << 20, false, false},
	} {
		t.Run(fmt.Sprintf("flags=%#x,seals=%#x,size=%d", c.flags, c.seals, c.size), func(t *testing.T) {
			kit.Story(t)
			f := memfd(t, c.size, c.flags, c.seals)
			limit := 1 << 20
			if c.flags&hugeTLB != 0 {
				limit = 4 << 20
			}
			m, err := ipc.FileMemory(f, limit)
			if (err == nil) != c.accepted {
				t.Fatalf("accepted %v, %v", err == nil, err)
			}
			if err != nil {
				return
			}
			defer m.Close()
			if m.Writable() != c.mayEdit || int64(len(m.Bytes())) != c.size {
				t.Errorf("writable %v, %d bytes", m.Writable(), len(m.Bytes()))
			}
			if c.mayEdit {
				m.Bytes()[c.size-1] = 1
			}
			if err := f.Truncate(0); err == nil {
				t.Error("the memory has shrunk")
			}
		})
	}
}

// Nobody shrinks, grows or reopens for writing what NewMemory made, and who only reads punches no holes.
func TestMemoryKeepsItsSize(t *testing.T) {
	kit.NeedsMemory(t)
	kit.Story(t)
	m := kit.NewMemory(t, 8192)
	f, ro := kit.MemoryFile(t, m, false), kit.MemoryFile(t, m, true)
	for _, size := range []int64{0, 4096, 16384} {
		if err := f.Truncate(size); !errors.Is(err, syscall.EPERM) {
			t.Errorf("truncated to %d: %v", size, err)
		}
	}
	if _, err := syscall.Mmap(int(ro.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); !errors.Is(err, syscall.EACCES) {
		t.Errorf("mapped for writing: %v", err)
	}
	const punchHole = 0x2 | 0x1 // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of linux/falloc.h
	if err := syscall.Fallocate(int(ro.Fd()), punchHole, 0, 4096); err == nil {
		t.Error("a hole is punched by a descriptor for reading")
	}
	var st syscall.Stat_t
	kit.Must(t, syscall.Fstat(int(f.Fd()), &st))
	if st.Mode&0o777 != 0o600 {
		t.Errorf("its mode is %o", st.Mode&0o777)
	}
}

// What a peer gets of a connection's memory it cannot write.
func TestSharedConnPeerCannotWriteItsMemory(t *testing.T) {
	kit.NeedsMemory(t)
	kit.Story(t)
	addr := kit.PathAddr(t)
	l := kit.Listen(t, addr)
	a, err := ipc.DialShared(addr)
	kit.Kept(t, a, err)
	b := kit.Accept(t, l)
	reserving := kit.Begin(func() error { _, err := a.Reserve(8 << 10); return err })
	hello := make([]byte, 32)
	oob := make([]byte, 100)
	n, oobn, _, err := b.ReadMsg(hello, oob)
	kit.Must(t, err)
	msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
	kit.Must(t, err)
	fds, err := syscall.ParseUnixRights(&msgs[0])
	kit.Must(t, err)
	defer func() {
		for _, fd := range fds {
			syscall.Close(fd)
		}
	}()
	if n != 32 || len(fds) != 3 {
		t.Fatalf("a hello of %d bytes and %d descriptors", n, len(fds))
	}
	var st syscall.Stat_t
	kit.Must(t, syscall.Fstat(fds[0], &st))
	if _, err := syscall.Mmap(fds[0], 0, int(st.Size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); !errors.Is(err, syscall.EPERM) {
		t.Errorf("mapped for writing: %v", err)
	}
	if again, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fds[0]), os.O_RDWR, 0); err == nil {
		if _, err := again.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.EPERM) {
			t.Errorf("written: %v", err)
		}
		again.Close()
	}
	if err := syscall.Ftruncate(fds[0], 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("truncated: %v", err)
	}
	mem, err := syscall.Mmap(fds[0], 0, int(st.Size), syscall.PROT_READ, syscall.MAP_SHARED)
	kit.Must(t, err)
	if err := syscall.Mprotect(mem, syscall.PROT_READ|syscall.PROT_WRITE); !errors.Is(err, syscall.EACCES) {
		t.Errorf("made writable: %v", err)
	}
	kit.Must(t, syscall.Munmap(mem))
	kit.Must(t, b.Close())
	<-reserving
}
