// What a peer does that means harm, or another holder of a descriptor: it may delay
// itself, and nobody else. The kernel lets it make close(2), read(2) and others sleep,
// by a file system in user space (testdata/slowfs.c), by a TCP socket that lingers, by
// a page fault in the middle of a call on a pipe, and by changing what all holders of
// a descriptor share.
//
// A test that stops the whole process when it fails runs in a child, which says
// whether the gate was still closed when it had done what it should.
package ipc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

func init() {
	for role, play := range map[string]func(*parent, []string) error{
		"sends a dirty file":  childSendsADirtyFile,
		"meets a dirty file":  childMeetsADirtyFile,
		"faults in a pipe":    childFaultsInAPipe,
		"has a stuck pipe":    childHasAStuckPipe,
		"is given slow files": childIsGivenSlowFiles,
		"shares its ends":     childSharesItsEnds,
	} {
		roles[role] = play
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
// open: whoever is stuck cannot even be killed before.
func mountSlow(t *testing.T, operations string, env ...string) *slowFS {
	t.Helper()
	needsRoot(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there are no file systems in user space here:", err)
	}
	dir := t.TempDir()
	program := compileC(t, dir, "testdata/slowfs.c", "fuse3")
	mount := filepath.Join(dir, "mount")
	must(t, os.Mkdir(mount, 0o755))
	s := &slowFS{t: t, file: filepath.Join(mount, "f"), gate: filepath.Join(dir, "gate")}
	server := exec.Command(program, "-f", "-o", "allow_other", mount)
	server.Env = append(append(os.Environ(), "GATE="+s.gate, "SLOW="+operations), env...)
	var said bytes.Buffer
	server.Stderr = &said
	must(t, server.Start())
	ended := begin(server.Wait)
	t.Cleanup(func() {
		s.open()
		syscall.Unmount(mount, 2) // MNT_DETACH of linux/fs.h
		select {
		case <-ended:
		case <-time.After(soon):
			server.Process.Kill()
			<-ended
		}
	})
	for {
		select {
		case err := <-ended:
			ended = begin(func() error { return err })
			t.Skipf("no file system in user space can be mounted: %v: %s", err, said.Bytes())
		case <-time.After(time.Millisecond):
		}
		if _, err := os.Stat(s.file); err == nil {
			break
		}
	}
	s.opens = time.AfterFunc(soon, s.open)
	return s
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
	eventually(s.t, "somebody waits in "+operation, func() bool {
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
func (p *parent) tellsGate(gate string) {
	runtime.GC()
	others := make(chan bool)
	go close(others)
	<-others
	if _, err := os.Stat(gate); err == nil {
		p.say("only when the gate was open")
	} else {
		p.say("while the gate is closed")
	}
}

// ---------------------------------------------------------------------------
// Descriptors whose closing waits

// childSendsADirtyFile connects to the address and sends a byte with a file that it
// then writes to by a mapping, so that the last to close it writes the page back.
func childSendsADirtyFile(p *parent, args []string) error {
	typ := syscall.SOCK_STREAM
	if args[2] == "messages" {
		typ = syscall.SOCK_SEQPACKET
	}
	s := sure(syscall.Socket(syscall.AF_UNIX, typ|syscall.SOCK_CLOEXEC, 0))
	if err := syscall.Connect(s, &syscall.SockaddrUnix{Name: args[0]}); err != nil {
		return err
	}
	given := sure(syscall.Open(args[1], syscall.O_RDWR|syscall.O_CLOEXEC, 0))
	mapped := sure(syscall.Open(args[1], syscall.O_RDWR|syscall.O_CLOEXEC, 0))
	page := sure(syscall.Mmap(mapped, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED))
	if err := syscall.Sendmsg(s, []byte("x"), syscall.UnixRights(given), nil, 0); err != nil {
		return err
	}
	if err := syscall.Close(given); err != nil {
		return err
	}
	page[0] = 'd'
	p.say("sent")
	p.hear()
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

func TestClosingADirtyFileStopsNobody(t *testing.T) {
	for what := range meetings {
		t.Run(what, func(t *testing.T) {
			story(t)
			fs := mountSlow(t, "write", "WRITEBACK=1")
			defer fs.open()
			victim := startChild(t, "meets a dirty file", what, fs.gate)
			addr, kind, _ := strings.Cut(victim.hear(), " ")
			peer := startChild(t, "sends a dirty file", addr, fs.file, kind)
			peer.mustSay("sent")
			victim.say("go")
			victim.mustSay("while the gate is closed")
			fs.await("write") // it was closed indeed
			fs.open()
			victim.end()
			peer.end()
		})
	}
}

func childMeetsADirtyFile(p *parent, args []string) error {
	what, gate := args[0], args[1]
	addr := ipc.Name(unique())
	var c *ipc.Conn
	var m *ipc.MsgConn
	if what == "Recv" || what == "CloseOfMsgConn" {
		l := sure(ipc.ListenMsg(addr))
		p.say("%v messages", addr)
		m = sure(l.Accept())
		l.Close()
	} else {
		l := sure(ipc.Listen(addr))
		p.say("%v stream", addr)
		if what == "CloseOfListener" {
			p.hear()
			if err := l.Close(); err != nil {
				return err
			}
			p.tellsGate(gate)
			p.hear()
			return nil
		}
		c = sure(l.AcceptConn())
		l.Close()
	}
	p.hear()
	if err := meetings[what](c, m); err != nil {
		return err
	}
	p.tellsGate(gate)
	p.hear()
	return nil
}

// ---------------------------------------------------------------------------
// Pipes whose mutex is held

// childFaultsInAPipe writes to the pipe from a page that the file system is slow to
// fill, or reads from it into one, and holds the pipe's mutex meanwhile.
func childFaultsInAPipe(p *parent, args []string) error {
	side, path, file := args[0], args[1], args[2]
	mode, call := syscall.O_WRONLY, syscall.Write
	if side == "reads" {
		mode, call = syscall.O_RDONLY, syscall.Read
	}
	fd := 3
	if path != "" {
		fd = sure(syscall.Open(path, mode|syscall.O_CLOEXEC, 0))
	}
	mapped := sure(syscall.Open(file, syscall.O_RDWR|syscall.O_CLOEXEC, 0))
	page := sure(syscall.Mmap(mapped, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED))
	p.say("ready")
	p.hear()
	call(fd, page[:8])
	return nil
}

func TestPipeHeldInAPageFaultStopsNobody(t *testing.T) {
	for _, pipe := range []string{"FIFO", "Inherited"} {
		for _, side := range []string{"writes", "reads"} { // of the peer
			t.Run(pipe+"/Peer"+strings.ToUpper(side[:1])+side[1:], func(t *testing.T) {
				story(t)
				fs := mountSlow(t, "read")
				defer fs.open()
				var victim, peer *child
				if pipe == "FIFO" {
					path := filepath.Join(filepath.Dir(fs.gate), "fifo")
					must(t, ipc.Mkfifo(path, 0o600))
					victim = startChild(t, "has a stuck pipe", side, fs.gate, path)
					peer = startChild(t, "faults in a pipe", side, path, fs.file)
				} else {
					r, w, err := ipc.Pipe()
					must(t, err)
					mine, theirs := ipc.Inheritable(r), w.File
					if side == "reads" {
						mine, theirs = w, r.File
					}
					f, err := theirs()
					must(t, err)
					must(t, f.Close())
					h := newHeir(t)
					h.gets("end", mine)
					f, err = theirs()
					must(t, err)
					must(t, syscall.SetNonblock(sysFD(t, f), false))
					victim = h.start("has a stuck pipe", side, fs.gate)
					peer = startChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "faults in a pipe", side, "", fs.file)
					must(t, errors.Join(f.Close(), r.Close(), w.Close()))
				}
				victim.mustSay("ready")
				peer.mustSay("ready")
				peer.say("go")
				fs.await("read")
				victim.say("go")
				victim.mustSay("while the gate is closed") // the call is under way
				victim.mustSay("while the gate is closed") // Close has returned
				fs.open()
				victim.end()
				peer.end()
			})
		}
	}
}

func childHasAStuckPipe(p *parent, args []string) error {
	side, gate := args[0], args[1]
	var call func([]byte) (int, error)
	var end interface{ Close() error }
	in := "(*PipeReader).Read("
	if side == "writes" {
		var r *ipc.PipeReader
		if len(args) > 2 {
			r = sure(ipc.OpenFIFOReader(context.Background(), args[2]))
		} else {
			r = sure(ipc.InheritedReader("end"))
		}
		call, end = r.Read, r
	} else {
		var w *ipc.PipeWriter
		if len(args) > 2 {
			w = sure(ipc.OpenFIFOWriter(context.Background(), args[2]))
		} else {
			w = sure(ipc.InheritedWriter("end"))
		}
		call, end, in = w.Write, w, "(*PipeWriter).Write("
		sure(w.Write([]byte("something to read")))
	}
	p.say("ready")
	p.hear()
	calling := begin(func() error { _, err := call(make([]byte, 8)); return err })
	for !strings.Contains(stacks(), in) { // which stops the world
		runtime.Gosched()
	}
	p.tellsGate(gate)
	if err := end.Close(); err != nil {
		return err
	}
	p.tellsGate(gate)
	p.hear()
	if err := <-calling; err != nil && !errors.Is(err, net.ErrClosed) && err != io.EOF {
		return err
	}
	return nil
}

// ---------------------------------------------------------------------------
// Files that are slow to answer

func TestRecvFilesOfSlowFilesEnds(t *testing.T) {
	for _, slow := range []string{"poll", "flush"} {
		t.Run(slow, func(t *testing.T) {
			story(t)
			fs := mountSlow(t, slow)
			defer fs.open()
			a, b := pair(t)
			h := newHeir(t)
			h.gets("line", b)
			victim := h.start("is given slow files", slow, fs.gate)
			must(t, b.Close())
			victim.mustSay("ready")
			f, err := syscall.Open(fs.file, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
			must(t, err)
			// It stays open here until the gate is: closing it asks the server too.
			closed := func() error { fs.open(); return syscall.Close(f) }
			defer closed()
			rights := syscall.UnixRights(f, f, f)
			for range 2 {
				_, err = a.WriteMsg([]byte{0}, rights)
				must(t, err)
			}
			victim.say("go")
			victim.mustSay("while the gate is closed")
			if slow == "flush" {
				fs.await("flush")
			}
			fs.open()
			victim.end()
		})
	}
}

func childIsGivenSlowFiles(p *parent, args []string) error {
	slow, gate := args[0], args[1]
	c := sure(ipc.InheritedConn("line"))
	p.say("ready")
	p.hear()
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
	p.tellsGate(gate)
	p.hear()
	for _, f := range files {
		if err := f.Close(); err != nil {
			return err
		}
	}
	return c.Close()
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

// TestEndsThatAnotherMakesBlockKeepTheirDeadlines has another holder of each kind of
// end clear O_NONBLOCK, which all holders share.
func TestEndsThatAnotherMakesBlockKeepTheirDeadlines(t *testing.T) {
	for _, way := range []string{"Duplicate", "Bequeathed", "Adopted", "Inherited"} {
		for _, when := range []string{"before use", "after use"} {
			t.Run(way+"/"+when, func(t *testing.T) {
				story(t)
				var victim *child
				var block func()
				if way == "Inherited" {
					ends, _, err := makeEnds()
					must(t, err)
					h := newHeir(t)
					h.gets("c", ends.c)
					h.gets("m", ends.m)
					h.gets("r", ends.r)
					h.gets("w", ends.w)
					h.gets("l", ends.l)
					victim = h.start("shares its ends", way, when)
					block = func() { must(t, ends.block()) }
					defer ends.close()
				} else {
					victim = startChild(t, "shares its ends", way, when)
					block = func() {}
				}
				limit := time.AfterFunc(soon, func() { victim.cmd.Process.Signal(syscall.SIGQUIT) }) // with all stacks
				defer limit.Stop()
				victim.mustSay("ready")
				block()
				victim.say("go")
				victim.mustSay("all ended in time")
				victim.end()
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
		e = blockingEnds{sure(ipc.InheritedConn("c")), sure(ipc.InheritedMsgConn("m")), sure(ipc.InheritedReader("r")),
			sure(ipc.InheritedWriter("w")), sure(ipc.InheritedListener("l"))}
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
		files = append(files, sure(c.(interface{ File() (*os.File, error) }).File()))
	}
	if way == "Adopted" {
		own := e
		e = blockingEnds{sure(ipc.FileConn(files[0])), sure(ipc.FileMsgConn(files[1])), sure(ipc.FileReader(files[2])),
			sure(ipc.FileWriter(files[3])), sure(ipc.FileListener(files[4]))}
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

func childSharesItsEnds(p *parent, args []string) error {
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
	p.say("ready")
	p.hear()
	if err := block(); err != nil {
		return err
	}
	if err := e.endInTime(); err != nil {
		return err
	}
	waiting := []<-chan error{
		beginRead(e.c), beginRead(e.r), beginRead(msgEnd{e.m}),
		begin(func() error { _, err := e.l.Accept(); return err }),
		begin(func() error { _, err := e.w.Write(make([]byte, tooMuch)); return err }),
		begin(func() error { _, err := e.c.Write(make([]byte, tooMuch)); return err }),
	}
	for _, in := range []string{"(*Conn).Read(", "(*PipeReader).Read(", "(*MsgConn).Recv(", "(*Listener).Accept(",
		"(*PipeWriter).Write(", "(*Conn).Write("} {
		for !strings.Contains(stacks(), in) {
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
	p.say("all ended in time")
	return nil
}

// endInTime proves that every call that has to wait ends with its deadline.
func (e *blockingEnds) endInTime() error {
	big := make([]byte, tooMuch)
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
			r, w := sure2(os.Pipe())
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
			_, err := writeMuch(msgEnd{e.m})
			return err
		},
		"PipeReader.Read":  func(t time.Time) error { e.r.SetReadDeadline(t); _, err := e.r.Read(big); return err },
		"PipeWriter.Write": func(t time.Time) error { e.w.SetWriteDeadline(t); _, err := e.w.Write(big); return err },
		"Listener.Accept":  func(t time.Time) error { e.l.SetDeadline(t); _, err := e.l.Accept(); return err },
	} {
		if err := call(time.Now().Add(brief)); !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%s ends with %w", what, err)
		}
	}
	never := time.Time{}
	return errors.Join(e.c.SetDeadline(never), e.m.SetDeadline(never), e.r.SetReadDeadline(never),
		e.w.SetWriteDeadline(never), e.l.SetDeadline(never))
}

func sure2[A, B any](a A, b B, err error) (A, B) { return sure(a, err), b }
