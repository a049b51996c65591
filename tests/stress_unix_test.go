//go:build unix

// Stress that only Unix has the means for: signals, limits, FIFOs, and what ten
// thousand connections cost.
package tests

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/pprof"
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
	scenarios = append(scenarios,
		scenario{"FIFOs", stressFIFOs},
		scenario{"Interrupts", stressInterrupts},
		scenario{"StoppedPeers", stressStoppedPeers},
		scenario{"NoDescriptors", stressNoDescriptors},
	)
	kit.Roles["stress descriptors"] = childRunsShortOfDescriptors
	kit.Roles["many"] = childHoldsManyConnections
}

// stressFIFOs has writers and readers of one FIFO come and go, and give up.
func stressFIFOs(t *testing.T, d dice) {
	path := kit.MakeFIFO(t, kit.TempDir(t))
	for range some(8) {
		for range d.IntN(3) {
			ctx, cancel := context.WithTimeout(t.Context(), d.micros(500))
			var end io.Closer
			var err error
			if d.one(2) {
				end, err = asCloser(ipc.OpenFIFOReader(ctx, path))
			} else {
				end, err = asCloser(ipc.OpenFIFOWriter(ctx, path))
			}
			cancel()
			if err == nil { // the other side's that waits below could be on its way
				end.Close()
				t.Fatal("a FIFO that nobody else has opens")
			}
			kit.TimedOut(t, err)
		}
		s, size := sequence(d.Uint64()), d.upTo(512<<10)
		sending, receiving := d.more(), d.more()
		all := gang{t: t}
		all.begin(func() error {
			time.Sleep(sending.micros(300))
			w, err := ipc.OpenFIFOWriter(t.Context(), path)
			if err != nil {
				return err
			}
			return s.pour(w, size, sending)
		})
		all.begin(func() error {
			time.Sleep(receiving.micros(300))
			r, err := ipc.OpenFIFOReader(t.Context(), path)
			if err != nil {
				return err
			}
			return s.drain(r, size, receiving)
		})
		all.end()
	}
}

func asCloser[C io.Closer](c C, err error) (io.Closer, error) { return c, err }

// ---------------------------------------------------------------------------
// Signals

// interrupt sends signals to this process that mean nothing to it: what a call
// that is under way may get of them is EINTR. A system's test file may know how to
// hit every thread.
var interrupt = func() { syscall.Kill(os.Getpid(), syscall.SIGWINCH) }

// stressInterrupts plays other scenarios in a storm of signals.
func stressInterrupts(t *testing.T, d dice) {
	calm := kit.Repeatedly(func() error {
		interrupt()
		time.Sleep(20 * time.Microsecond)
		return nil
	})
	defer calm()
	for _, play := range []func(*testing.T, dice){
		stressStreams, stressMessages, stressPipes, stressFiles, stressDials, stressTakeovers, stressFIFOs, stressKilledServers,
	} {
		if d.one(2) {
			play(t, d)
		}
	}
}

// stressStoppedPeers has conversations with a process that is stopped and goes on,
// again and again.
func stressStoppedPeers(t *testing.T, d dice) {
	addr := d.addr(t)
	server := startStress(t, "stress serve", addr, 256<<10, d)
	server.MustSay("serving")
	all := gang{t: t}
	for range 4 {
		c := kit.Dial(t, addr)
		d := d.more()
		all.begin(func() error { return errors.Join(chat(c, true, 256<<10, d)) })
	}
	for range some(8) {
		kit.Must(t, syscall.Kill(server.PID(), syscall.SIGSTOP))
		time.Sleep(d.micros(2000))
		kit.Must(t, syscall.Kill(server.PID(), syscall.SIGCONT))
		time.Sleep(d.micros(1000))
	}
	all.end()
	server.End()
}

// ---------------------------------------------------------------------------
// Too few descriptors

func stressNoDescriptors(t *testing.T, d dice) {
	kit.StartChild(t, "stress descriptors", strconv.FormatUint(d.Uint64(), 10), strconv.Itoa(some(12))).End()
}

// childRunsShortOfDescriptors makes connections and descriptors of all kinds
// where there are not enough for all at once. Everyone is served in the end, and
// nothing is left.
func childRunsShortOfDescriptors(_ *kit.Parent, args []string) error {
	seed := kit.Sure(strconv.ParseUint(args[0], 10, 64))
	each := kit.Sure(strconv.Atoi(args[1]))
	d := newDice(seed)
	kit.WarmUp()
	before := kit.OpenDescriptors()
	l := kit.Sure(ipc.Listen(ipc.Addr{}))
	limit := kit.Sure(leaveDescriptors(10 + d.IntN(20)))

	var serving, working []<-chan error
	accepting := kit.Begin(func() error {
		for c, err := range l.Conns() {
			if errors.Is(err, syscall.EMFILE) {
				time.Sleep(time.Millisecond)
				continue
			} else if err != nil {
				return err
			}
			serving = append(serving, kit.Begin(func() error {
				defer c.Close()
				c.SetDeadline(time.Now().Add(50 * time.Millisecond)) // or it might hold what others need
				io.Copy(c, c)
				return nil
			}))
		}
		return nil
	})
	for _, work := range []func(*ipc.Listener, dice) error{
		dialsInACrowd, dialsInACrowd, dialsInACrowd, dialsInACrowd, dialsInACrowd, dialsInACrowd,
		pairsInACrowd, pairsInACrowd, pipesInACrowd, pipesInACrowd, filesInACrowd, filesInACrowd, filesInACrowd,
	} {
		d := d.more()
		working = append(working, kit.Begin(func() error {
			for done := 0; done < each; {
				switch err := inACrowd(work(l, d)); err {
				case nil:
					done++
				case errCrowded:
				default:
					return err
				}
				time.Sleep(d.micros(200))
			}
			return nil
		}))
	}
	var err error
	for _, done := range working {
		err = errors.Join(err, <-done)
	}

	// The listener serves as before, as soon as the last of the crowd are gone.
	for served := false; err == nil && !served; {
		err = inACrowd(dialsInACrowd(l, d))
		served = err == nil
		if err == errCrowded {
			err = nil
		}
	}
	err = errors.Join(err, l.Close(), <-accepting)
	for _, done := range serving {
		err = errors.Join(err, <-done)
	}
	err = errors.Join(err, syscall.Setrlimit(syscall.RLIMIT_NOFILE, limit))
	err = errors.Join(err, kit.NoMoreDescriptors(before))
	return err
}

// errCrowded is every error that is due to a lack of descriptors, here or at the
// other end.
var errCrowded = errors.New("there are not enough descriptors")

func inACrowd(err error) error {
	if err != nil && (errors.Is(err, syscall.EMFILE) || errors.Is(err, os.ErrDeadlineExceeded) || gone(err) == nil) {
		return errCrowded
	}
	return err
}

// leaveDescriptors sets the limit so that about n descriptors are left, and
// returns what it was.
func leaveDescriptors(n int) (*syscall.Rlimit, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	few := limit
	few.Cur = 0
	for open := kit.Descriptors(); n > 0; few.Cur++ { // it is one of numbers, and there are gaps
		if !slices.Contains(open, int(few.Cur)) {
			n--
		}
	}
	return &limit, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few)
}

// dialsInACrowd asks for an echo and gives up soon: if all did nothing but wait for
// each other they would wait for ever.
func dialsInACrowd(l *ipc.Listener, d dice) error {
	c, err := ipc.Dialer{Timeout: 20 * time.Millisecond}.Dial(l.Addr().(ipc.Addr))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20*time.Millisecond + d.micros(20000))); err != nil {
		return err
	}
	question := make([]byte, d.upTo(4<<10))
	sequence(d.Uint64()).fill(question, 0)
	if _, err := c.Write(question); err != nil {
		return err
	}
	answer := make([]byte, len(question))
	if n, err := io.ReadFull(c, answer); err != nil {
		if !bytes.Equal(answer[:n], question[:n]) {
			return &garbled{"an echo is another"}
		}
		return err
	}
	if !bytes.Equal(answer, question) {
		return &garbled{"an echo is another"}
	}
	return nil
}

func pairsInACrowd(_ *ipc.Listener, d dice) error {
	a, b, err := ipc.Pair()
	if err != nil {
		return err
	}
	defer a.Close()
	defer b.Close()
	f, err := a.File()
	if err != nil {
		return err
	}
	c, err := ipc.FileConn(f)
	if e := f.Close(); err != nil || e != nil {
		return errors.Join(err, e)
	}
	defer c.Close()
	s, size := sequence(d.Uint64()), d.upTo(16<<10)
	sending := kit.Begin(func() error { _, err := s.send(c, size, d); return err })
	_, err = s.recv(b, size, newDice(uint64(size)))
	return errors.Join(err, <-sending)
}

func pipesInACrowd(_ *ipc.Listener, d dice) error {
	r, w, err := ipc.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	s, size := sequence(d.Uint64()), d.upTo(16<<10)
	sending := kit.Begin(func() error { _, err := s.send(w, size, d); return errors.Join(err, w.Close()) })
	_, err = s.recv(r, -1, newDice(uint64(size)))
	return errors.Join(err, <-sending)
}

// filesInACrowd sends files where there may be no descriptors for them. They are
// lost then, all of them, and nothing else is.
func filesInACrowd(_ *ipc.Listener, d dice) error {
	a, b, err := ipc.Pair()
	if err != nil {
		return err
	}
	defer a.Close()
	defer b.Close()
	files := make([]*os.File, 1+d.IntN(4))
	for i := range files {
		files[i] = []*os.File{os.Stdin, os.Stdout, os.Stderr}[i%3]
	}
	if err := a.SendFiles(files...); err != nil {
		return err
	}
	got, err := b.RecvFiles(len(files))
	switch {
	case err == nil && len(got) != len(files):
		return &garbled{fmt.Sprintf("%d files of %d arrive", len(got), len(files))}
	case err != nil && len(got) > 0:
		return &garbled{fmt.Sprintf("%d files arrive with %v", len(got), err)}
	}
	for i, f := range got {
		want, e1 := files[i].Stat()
		is, e2 := f.Stat()
		if e1 == nil && e2 == nil && !os.SameFile(want, is) {
			e1 = &garbled{fmt.Sprintf("file %d is another", i)}
		}
		err = errors.Join(err, e1, e2, f.Close())
	}
	if errors.Is(err, ipc.ErrMsgTooLong) { // so says the kernel where the list of files was cut off
		err = syscall.EMFILE
	}
	if e := kit.Reaches(a, b, "data behind the files"); e != nil {
		return e
	}
	return err
}

// ---------------------------------------------------------------------------
// Ten thousand connections

// roomFor returns how many connections out of n there are descriptors for. The
// runtime has raised the limit to what the system allows.
func roomFor(t *testing.T, n int) int {
	t.Helper()
	var limit syscall.Rlimit
	kit.Must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	const others = 200
	if uint64(limit.Cur) < uint64(n+others) {
		n = max(int(limit.Cur)-others, 10)
	}
	return n
}

// TestConnsByTheTenThousandAreCheap tells what they cost, and makes sure that they
// work: all at the end of it, none instead of another.
func TestConnsByTheTenThousandAreCheap(t *testing.T) {
	if kit.UnderEmulation() {
		t.Skip("what the emulator takes is not the question")
	}
	kit.Story(t)
	want := 10000
	// The race detector allows 8128 goroutines, a BSD little more descriptors than
	// these to all processes at once.
	if testing.Short() || kit.UnderRace() || runtime.GOOS != "linux" {
		want = 1000
	}
	n := roomFor(t, want)
	if n < want {
		t.Logf("the limit of descriptors leaves room for %d connections", n)
	}

	l := kit.Listen(t, ipc.Addr{})
	clients := kit.StartChild(t, "many", l.Addr().String(), strconv.Itoa(n))
	conns := make([]*ipc.Conn, 0, n)
	empty := memory()
	for range n {
		c, err := l.AcceptConn()
		kit.Must(t, err)
		conns = append(conns, c)
	}
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	clients.MustSay("connected")
	silent := memory()

	waiting := make([]<-chan error, n)
	for i, c := range conns {
		waiting[i] = kit.Begin(func() error { return echoIndex(c, i) })
	}
	kit.Eventually(t, "every goroutine waits", func() bool { return parkedInPoller() >= n })
	waited := memory()
	const pause = 200 * time.Millisecond
	used := cpuUsed()
	time.Sleep(pause) // is what is measured
	used = cpuUsed() - used
	t.Logf("each of %d connections takes %d bytes, and %d with a goroutine that waits; all of them %v of CPU time in %v",
		n, (silent-empty)/int64(n), (waited-empty)/int64(n), used, pause)

	clients.Say("talk")
	for i, done := range waiting {
		if err := <-done; err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	clients.MustSay("all are well")
	clients.End()
	for _, c := range conns {
		kit.ExpectEOF(t, c)
		kit.Must(t, c.Close())
	}
	conns = nil
}

// memory returns the bytes that the heap and the stacks of goroutines take.
func memory() int64 {
	runtime.GC()
	runtime.GC() // the second one ends the sweep of the first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func cpuUsed() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// parkedInPoller counts the goroutines that wait there. It takes them by groups of
// one stack, as each on its own would be long to read.
func parkedInPoller() (n int) {
	var profile strings.Builder
	pprof.Lookup("goroutine").WriteTo(&profile, 1)
	for group := range strings.SplitSeq(profile.String(), "\n\n") {
		if strings.Contains(group, "runtime_pollWait") {
			for line := range strings.Lines(group) {
				if count, _, ok := strings.Cut(line, " @ "); ok {
					m, _ := strconv.Atoi(count)
					n += m
				}
			}
		}
	}
	return n
}

// echoIndex returns what the i-th client says, which is its index.
func echoIndex(c *ipc.Conn, i int) error {
	var p [4]byte
	if _, err := io.ReadFull(c, p[:]); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint32(p[:]); got != uint32(i) {
		return fmt.Errorf("it is that of client %d", got)
	}
	_, err := c.Write(p[:])
	return err
}

// childHoldsManyConnections dials one after the other, so that they are accepted
// in that order.
func childHoldsManyConnections(p *kit.Parent, args []string) error {
	addr := kit.Sure(ipc.ParseAddr(args[0]))
	n := kit.Sure(strconv.Atoi(args[1]))
	conns := make([]*ipc.Conn, n)
	for i := range conns {
		conns[i] = kit.Sure(ipc.Dial(addr))
	}
	p.Say("connected")
	if p.Hear() != "talk" {
		return nil
	}
	for i, c := range conns {
		if _, err := c.Write(binary.BigEndian.AppendUint32(nil, uint32(i))); err != nil {
			return err
		}
	}
	for i, c := range conns {
		if err := hearsIndex(c, i); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
	}
	p.Say("all are well")
	p.Hear()
	for _, c := range conns {
		if err := c.Close(); err != nil {
			return err
		}
	}
	return nil
}

func hearsIndex(c *ipc.Conn, i int) error {
	var p [4]byte
	_, err := io.ReadFull(c, p[:])
	if got := binary.BigEndian.Uint32(p[:]); err == nil && got != uint32(i) {
		err = fmt.Errorf("the answer is that to client %d", got)
	}
	return err
}
