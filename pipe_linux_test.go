// Pipes, FIFOs and copying on Linux, which splices.
package ipc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["blocked"] = childReadsAnEndThatBlocks
	kit.Roles["splice"] = childSplicesWithoutDescriptors
	kit.Roles["sandbox"] = childMayHaveNoDescriptors
}

// ---------------------------------------------------------------------------
// Pipes and FIFOs

func TestPipeThatAnotherMakesBlockStopsNobodyElse(t *testing.T) {
	kit.Story(t)
	kit.StartChild(t, "blocked").End()
}

// childReadsAnEndThatBlocks has what is a process of its own, so that it can hang.
func childReadsAnEndThatBlocks(*kit.Parent, []string) error {
	r, w := kit.Sure2(ipc.Pipe())
	f, err := r.File()
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = syscall.SetNonblock(int(fd), false) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	reading := kit.BeginRead(r)
	for !strings.Contains(kit.Stacks(), "(*PipeReader).Read(") { // which stops the world
		runtime.Gosched()
	}
	runtime.GC()
	if _, err := w.Write([]byte{1}); err != nil {
		return err
	}
	return errors.Join(<-reading, r.Close(), w.Close())
}

func TestPipeCapacity(t *testing.T) {
	kit.Story(t)
	r, w := kit.Pipe(t)
	before, err := r.Capacity()
	kit.Must(t, err)
	if before < os.Getpagesize() {
		t.Errorf("the capacity is %d", before)
	}
	for _, end := range []interface {
		SetCapacity(int) error
		Capacity() (int, error)
	}{r, w} {
		kit.Must(t, end.SetCapacity(2*before-1)) // the kernel rounds it up
		for _, other := range []interface{ Capacity() (int, error) }{r, w} {
			if n, err := other.Capacity(); n != 2*before || err != nil {
				t.Errorf("the capacity is %d, %v; want %d", n, err, 2*before)
			}
		}
		n, err := w.Write(make([]byte, 2*before)) // there is room for so much and no more
		kit.Must(t, err)
		kit.Must(t, w.SetWriteDeadline(time.Now().Add(kit.Brief)))
		_, err = w.Write([]byte{1})
		kit.TimedOut(t, err)
		kit.Must(t, w.SetWriteDeadline(time.Time{}))
		err = end.SetCapacity(before)
		kit.Matches(t, err, syscall.EBUSY) // more is in it
		kit.IsPipeError(t, err, "set")
		if _, err := io.ReadFull(r, make([]byte, n)); err != nil {
			t.Error(err)
		}
		kit.Must(t, end.SetCapacity(before))
		for _, n := range []int{-1, math.MinInt, 1<<(strconv.IntSize/2) + 1} {
			if n < math.MaxInt32 && n > 0 {
				continue // int has 32 bits: it is one that there can be
			}
			if end.SetCapacity(n) == nil {
				t.Errorf("a capacity of %d is accepted", n)
			}
		}
		if n, err := end.Capacity(); n != before || err != nil {
			t.Errorf("the capacity is %d, %v", n, err)
		}
	}
	kit.Must(t, r.Close())
	_, err = r.Capacity()
	kit.Matches(t, err, net.ErrClosed)
	kit.IsPipeError(t, err, "get")
	kit.Matches(t, r.SetCapacity(before), net.ErrClosed)
}

func TestFIFOCapacity(t *testing.T) {
	kit.Story(t)
	r, w := polled.open(t, kit.MakeFIFO(t, kit.TempDir(t)))
	kit.Must(t, w.SetCapacity(128<<10))
	if n, err := r.Capacity(); n != 128<<10 || err != nil {
		t.Errorf("the capacity is %d, %v", n, err)
	}
}

// On other systems it is not to be seen that somebody was there.
func TestFIFOWriterThatSaysNothingIsNoticed(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		cmd, _ := shell(t, `: > "$0"`, path)
		r, err := w.openReader(t.Context(), path)
		kit.Must(t, err)
		defer r.Close()
		kit.ExpectEOF(t, r)
		kit.Must(t, cmd.Wait())

		opening := kit.Begin(func() error {
			r, err := w.openReader(t.Context(), path)
			if err != nil {
				return err
			}
			if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				return fmt.Errorf("read %d, %w", n, err)
			}
			return r.Close()
		})
		kit.AwaitParked(t, "OpenFIFOReader", 1)
		kit.Must(t, r.Close())
		p, err := w.openWriter(t.Context(), path)
		kit.Must(t, err)
		kit.Must(t, p.Close())
		kit.Must(t, <-opening)
	})
}

func TestPipeWaitHoldsNoThread(t *testing.T) {
	const each = 60
	before := threads(t)
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		var ends []io.Closer
		var ended, opening []<-chan error
		for i := range each {
			r, _ := kit.Pipe(t)
			_, full := kit.Pipe(t)
			ended = append(ended,
				kit.BeginRead(r),
				kit.Begin(func() error { _, err := full.Write(make([]byte, kit.TooMuch)); return err }))
			ends = append(ends, r, full)
			fifo := path + strconv.Itoa(i)
			kit.Must(t, ipc.Mkfifo(fifo, 0o600))
			t.Cleanup(func() { os.Remove(fifo) })
			fr, _ := w.open(t, fifo)
			ended = append(ended, kit.BeginRead(fr))
			ends = append(ends, fr)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for i := range each {
			name := []string{"OpenFIFOReader", "OpenFIFOWriter"}[i%2]
			fifo := path + "-" + strconv.Itoa(i)
			kit.Must(t, ipc.Mkfifo(fifo, 0o600))
			t.Cleanup(func() { os.Remove(fifo) })
			opening = append(opening, kit.Begin(func() error { _, err := openers[name](ctx, fifo); return err }))
		}
		kit.AwaitParked(t, "(*PipeReader).Read", 2*each)
		kit.AwaitParked(t, "(*PipeWriter).Write", each)
		kit.AwaitParked(t, "OpenFIFOReader", each/2)
		kit.AwaitParked(t, "OpenFIFOWriter", each/2)
		if now := threads(t); now > before+20 {
			t.Errorf("%d waits made %d threads of %d", 4*each, now, before)
		}
		for _, end := range ends {
			kit.Must(t, end.Close())
		}
		for _, done := range ended {
			kit.Matches(t, <-done, net.ErrClosed)
		}
		cancel()
		for _, done := range opening {
			kit.Matches(t, <-done, context.Canceled)
		}
	})
}

// ---------------------------------------------------------------------------
// Copying

// readByProcess returns how many bytes this process has read by read(2) and the
// functions like it, which splice(2) is none of: see proc_pid_io(5).
func readByProcess(t *testing.T) int64 {
	t.Helper()
	counters, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skipf("the kernel does not count what is read: %v", err)
	}
	_, rest, _ := strings.Cut("\n"+string(counters), "\nrchar: ")
	n, err := strconv.ParseInt(strings.SplitN(rest, "\n", 2)[0], 10, 64)
	kit.Must(t, err)
	return n
}

func TestCopyDoesNotPassThroughThisProcess(t *testing.T) {
	data := kit.Pattern(4 << 20)
	splices := func(name string) bool {
		return slices.Contains([]string{
			"Conn", "PipeReader", "PipeWriter", "TCPConn", "UnixConn", "LimitedConn", "LimitedPipe", "OSPipe",
		}, name)
	}
	for _, from := range sources {
		for _, to := range sinks {
			if !splices(from.name) || !splices(to.name) || !from.own && !to.own || to.name == "OSPipe" {
				continue
			}
			t.Run(from.name+"To"+to.name, func(t *testing.T) {
				kit.Story(t)
				src := from.open(t, data)
				dst, arrived := to.open(t)
				before := readByProcess(t)
				var n int64
				var err error
				if to.own {
					n, err = dst.(io.ReaderFrom).ReadFrom(src)
				} else if from.own {
					n, err = src.(io.WriterTo).WriteTo(dst)
				}
				kit.Must(t, dst.Close())
				if got := arrived(); n != int64(len(data)) || err != nil || !bytes.Equal(got, data) {
					t.Errorf("copied %d of %d, %v", n, len(data), err)
				}
				// What arrives is read by this test; a copy through the process
				// reads it once more.
				if read := readByProcess(t) - before; read > int64(len(data))*3/2 {
					t.Errorf("%d bytes were read to copy %d", read, len(data))
				}
			})
		}
	}
}

// Others may take the very bytes that a copy has found to be there.
func TestCopyAndReadsShareTheSource(t *testing.T) {
	overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
		const rounds = 1500
		arrived := make(chan int, 2*rounds) // how much, at either place
		done := kit.Begin(func() error { _, err := copying(); return errors.Join(err, s.dst.Close()) })
		count := func(r io.Reader) <-chan error {
			return kit.Begin(func() error {
				for p := make([]byte, 10); ; {
					n, err := r.Read(p)
					if err == io.EOF {
						return nil
					} else if err != nil {
						return err
					}
					arrived <- n
				}
			})
		}
		reading, draining := count(s.src), count(s.out)
		for i := range rounds { // each arrives before the next is sent
			kit.Send(t, s.in, "x")
			select {
			case n := <-arrived:
				if n != 1 {
					t.Fatalf("byte %d became %d", i, n)
				}
			case <-time.After(kit.Soon):
				t.Fatalf("byte %d does not arrive\n\n%s", i, kit.Stacks())
			}
		}
		kit.Must(t, s.in.Close())
		kit.Must(t, errors.Join(<-done, <-reading, <-draining))
		if n := len(arrived); n != 0 {
			t.Errorf("%d bytes became %d", rounds, rounds+n)
		}
	})
}

// What the kernel does not splice is copied all the same.
func TestCopyOfFilesThatAreNotSpliced(t *testing.T) {
	kit.Story(t)
	r, w := kit.Pipe(t)
	a, b := kit.Pair(t)
	for path, out := range map[string]io.Reader{"/proc/self/cmdline": r, "/proc/self/environ": b} {
		want, err := os.ReadFile(path)
		kit.Must(t, err)
		f, err := os.Open(path)
		kit.Must(t, err)
		var dst interface {
			io.ReaderFrom
			io.Closer
		} = w
		if out == io.Reader(b) {
			dst = a
		}
		arrived := collect(t, out)
		n, err := dst.ReadFrom(f)
		if n != int64(len(want)) || err != nil {
			t.Errorf("%s: copied %d of %d, %v", path, n, len(want), err)
		}
		kit.Must(t, errors.Join(f.Close(), dst.Close()))
		if !bytes.Equal(arrived(), want) {
			t.Errorf("%s: other bytes arrive", path)
		}
	}
	dir, err := os.Open("/")
	kit.Must(t, err)
	defer dir.Close()
	_, w = kit.Pipe(t)
	_, err = w.ReadFrom(dir)
	kit.Matches(t, err, syscall.EISDIR)
}

func TestCopyFromAFollowedFileEndsAtItsEnd(t *testing.T) {
	kit.Story(t)
	name := kit.TempDir(t) + "/log"
	kit.Must(t, os.WriteFile(name, []byte("first"), 0o600))
	defer os.Remove(name)
	log, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	kit.Must(t, err)
	defer log.Close()
	f, err := os.Open(name)
	kit.Must(t, err)
	defer f.Close()
	r, w := kit.Pipe(t)
	for _, text := range []string{"first", "then", ""} {
		if n, err := w.ReadFrom(f); n != int64(len(text)) || err != nil {
			t.Errorf("copied %d of %q, %v", n, text, err)
		}
		kit.Expect(t, r, text)
		if text == "first" {
			kit.Send(t, log, "then")
		}
	}
}

// Each datagram stays one, and an empty one is no end.
func TestCopyLeavesDatagramsAlone(t *testing.T) {
	kit.Story(t)
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	kit.Must(t, err)
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		kit.Must(t, errors.Join(err, f.Close()))
		defer c.Close()
		ends[i] = c.(*net.UnixConn)
	}
	r, w := kit.Pipe(t)
	datagrams := []string{"one", "", "three"}
	for _, d := range datagrams {
		_, err := ends[0].Write([]byte(d))
		kit.Must(t, err)
	}
	kit.Must(t, ends[1].SetReadDeadline(time.Now().Add(kit.Brief)))
	n, err := w.ReadFrom(ends[1])
	kit.TimedOut(t, err)
	if n != int64(len("onethree")) {
		t.Errorf("copied %d bytes of %d", n, len("onethree"))
	}
	kit.Must(t, w.Close())
	got, err := io.ReadAll(r)
	if string(got) != "onethree" || err != nil {
		t.Errorf("%q arrives, %v", got, err)
	}
}

func TestCopyAllocatesLittle(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	r, w := kit.Pipe(t)
	copying := kit.Begin(func() error { _, err := w.ReadFrom(b); return err })
	buf := make([]byte, 100)
	kit.AllocatesNothing(t, "a copy that waits each time", func() error {
		if _, err := a.Write(buf); err != nil {
			return err
		}
		_, err := io.ReadFull(r, buf)
		return err
	})
	kit.Must(t, a.Close())
	kit.Must(t, <-copying)
}

func TestCopyWithoutDescriptors(t *testing.T) {
	kit.Story(t)
	kit.StartChild(t, "splice").End()
}

// childSplicesWithoutDescriptors copies between sockets where there is none left
// for a pipe between them.
func childSplicesWithoutDescriptors(*kit.Parent, []string) error {
	a, b := kit.Sure2(ipc.Pair())
	c, d := kit.Sure2(ipc.Pair())
	data := kit.Pattern(1 << 20)
	later := time.Now().Add(time.Hour) // joins the poller, which takes descriptors
	err := errors.Join(a.SetDeadline(later), b.SetDeadline(later), c.SetDeadline(later), d.SetDeadline(later))
	if err != nil {
		return err
	}
	limit := syscall.Rlimit{Cur: 64, Max: 64}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	for {
		if _, err := syscall.Dup(0); err == syscall.EMFILE {
			break
		} else if err != nil {
			return err
		}
	}
	feeding := kit.Begin(func() error { _, err := a.Write(data); return errors.Join(err, a.Close()) })
	copying := kit.Begin(func() error {
		n, err := c.ReadFrom(b)
		if n != int64(len(data)) {
			err = fmt.Errorf("copied %d of %d, %w", n, len(data), err)
		}
		return errors.Join(err, c.Close())
	})
	got, err := io.ReadAll(d)
	if !bytes.Equal(got, data) {
		err = fmt.Errorf("of %d bytes %d arrive, %w", len(data), len(got), err)
	}
	return errors.Join(err, <-feeding, <-copying)
}

// As standard input is most of the time: a pipe that blocks, which no poller knows.
func TestCopyFromAFileThatBlocks(t *testing.T) {
	ends := map[string]func() ([2]int, error){
		"Pipe": func() (p [2]int, err error) { err = syscall.Pipe2(p[:], syscall.O_CLOEXEC); return p, err },
		"Socket": func() ([2]int, error) {
			return syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		},
	}
	for from, open := range ends {
		for _, to := range sinks {
			if !to.own {
				continue
			}
			t.Run(from+"To"+to.name, func(t *testing.T) {
				kit.Story(t)
				fds, err := open()
				kit.Must(t, err)
				src, in := os.NewFile(uintptr(fds[0]), "src"), os.NewFile(uintptr(fds[1]), "in")
				defer src.Close()
				defer in.Close()
				dst, arrived := to.open(t)
				kit.Send(t, in, "first")
				copying := kit.Begin(func() error {
					n, err := dst.(io.ReaderFrom).ReadFrom(&io.LimitedReader{R: src, N: 9})
					if err == nil && n != 9 {
						err = fmt.Errorf("copied %d of 9", n)
					}
					return errors.Join(err, dst.Close())
				})
				kit.Eventually(t, "the copy waits in a read", func() bool {
					return strings.Contains(kit.Stacks(), "os.(*File).Read(")
				})
				kit.Send(t, in, "then, and more")
				kit.Must(t, <-copying)
				if got := arrived(); string(got) != "firstthen" {
					t.Errorf("%q arrives", got)
				}
				kit.Expect(t, src, ", and more")
			})
		}
	}
}

// What the sink does not take in time stays with the source, if no pipe in the
// middle has it by then.
func TestCopyThatTimesOutTakesNothing(t *testing.T) {
	overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
		_, from := s.src.(*ipc.Conn)
		if _, to := s.dst.(*ipc.Conn); from && to {
			t.Skip("there is a pipe in the middle")
		}
		kit.Send(t, s.in, "data")
		kit.Must(t, s.dst.SetWriteDeadline(time.Now().Add(-time.Hour)))
		_, err := copying()
		kit.TimedOut(t, err)
		kit.Must(t, s.in.Close())
		kit.Expect(t, s.src, "data")
		kit.ExpectEOF(t, s.src)
	})
}

func TestCopyWhereDescriptorsAreForbidden(t *testing.T) {
	kit.Story(t)
	kit.StartChild(t, "sandbox").End()
}

// childMayHaveNoDescriptors is in a sandbox where poll(2) fails, as it does with
// more descriptors than a process may have, and be it one.
func childMayHaveNoDescriptors(p *kit.Parent, _ []string) error {
	l, err := ipc.Listen(ipc.Addr{})
	if err != nil {
		return err
	}
	defer l.Close()
	client, err := ipc.Dial(l.Addr().(ipc.Addr))
	if err != nil {
		return err
	}
	defer client.Close()
	in, a := kit.Sure2(ipc.Pair())
	r, w := kit.Sure2(ipc.Pipe())
	data := kit.Pattern(1 << 20)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{}); err != nil {
		return err
	}
	if _, err := l.Accept(); !errors.Is(err, syscall.EMFILE) {
		return fmt.Errorf("accept: %w", err)
	}
	feeding := kit.Begin(func() error { _, err := in.Write(data); return errors.Join(err, in.Close()) })
	copying := kit.Begin(func() error { _, err := w.ReadFrom(a); return errors.Join(err, w.Close()) })
	got, err := io.ReadAll(r)
	if !bytes.Equal(got, data) {
		err = errors.Join(err, fmt.Errorf("of %d bytes %d arrive", len(data), len(got)))
	}
	return errors.Join(err, <-feeding, <-copying)
}

func TestCopyHoldsNoThread(t *testing.T) {
	kit.Story(t)
	const each = 50
	before := threads(t)
	var ends []io.Closer
	var copying []<-chan error
	for range each {
		_, b := kit.Pair(t)
		c, _ := kit.Pair(t)
		r, _ := kit.Pipe(t)
		_, full := kit.Pipe(t)
		kit.Must(t, full.SetWriteDeadline(time.Now())) // fill it
		for {
			if _, err := full.Write(make([]byte, 4096)); err != nil {
				break
			}
		}
		kit.Must(t, full.SetWriteDeadline(time.Time{}))
		copying = append(copying, kit.Begin(func() error { _, err := c.ReadFrom(b); return err }))
		copying = append(copying, kit.Begin(func() error { _, err := r.WriteTo(full); return err }))
		ends = append(ends, b, r)
	}
	kit.Eventually(t, "the copies wait", func() bool {
		return strings.Count(kit.Stacks(), "splicer).run(") >= 2*each
	})
	if now := threads(t); now > before+20 {
		t.Errorf("%d copies made %d threads of %d", 2*each, now, before)
	}
	for _, end := range ends {
		kit.Must(t, end.Close())
	}
	for _, done := range copying {
		kit.Matches(t, <-done, net.ErrClosed)
	}
}
