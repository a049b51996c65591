//go:build unix

package ipc

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

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

func forget() { spinning.young.Store(0) }

// attempts counts how often a read is tried that never succeeds.
func attempts(t *testing.T, c *Conn) (n int) {
	t.Helper()
	forget()
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	f := c.fd
	if err := f.enter(&f.r); err != nil {
		t.Fatal(err)
	}
	defer f.leave(&f.r)
	_, err := f.run(&f.r, &op{attempt: func(*op, int) (result, error) { n++; return result{}, syscall.EAGAIN }})
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return n
}

func TestWaitThatMayNotSpinParksAtOnce(t *testing.T) {
	a, _ := connected(t)
	a.SetSpin(-1)
	if n := attempts(t, a); n > 2 { // one before the poller's own
		t.Errorf("%d attempts with SetSpin(-1)", n)
	}
	a, _ = connected(t)
	a.SetSpin(10 * time.Millisecond)
	if n := attempts(t, a); n <= 2 {
		t.Errorf("%d attempts with SetSpin(10ms)", n)
	}
	a.SetSpin(0)
	if got := a.fd.spinLimit(); got != spinByDefault {
		t.Errorf("SetSpin(0) sets a limit of %d ns, want the default", got)
	}
}

func TestSpinFieldsReachTheConnections(t *testing.T) {
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
	for f, want := range map[*fd]int64{l.sys.fd: 0, s.fd: 0, c.fd: int64(time.Millisecond), a.fd: spinByDefault} {
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

func TestDeadlineDoesNotMoveWithTheClockOfTheWall(t *testing.T) {
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

func TestDeadlineMayBeAnyTime(t *testing.T) {
	at := time.Now()
	for _, past := range []time.Time{{}, time.Unix(0, 0), time.Unix(-1<<60, 0), epoch, at} {
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

func TestBuffersThatWereWrittenAreForgotten(t *testing.T) {
	p := [][]byte{{1}, {2}, {3}}
	iov := gather(gather(nil, p), p[:1])
	for i, v := range iov[:len(p)] {
		if (v.base == nil) != (i > 0) {
			t.Errorf("after one buffer that follows three, number %d is %v", i, v)
		}
	}
}

// A reader that makes room in time lets no write park, and Close wakes only those that do.
func TestCloseEndsAWriteThatNeverParks(t *testing.T) {
	const closeAt, tooLong = 4 << 20, 100 << 20 // bytes, when Close is called and when it must have had its effect
	p := make([]byte, 1<<20)
	for way, write := range map[string]func(c *Conn) error{
		"Write": func(c *Conn) error { _, err := c.Write(slices.Repeat(p, tooLong>>20+1)); return err },
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
				go func() { closed <- a.Close() }()
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
func winning(f *fd) { f.r.backoff = backoff{waits: youngWaits, wins: longRunOfWins - 1} }

// spinOnce is a read that has to wait, but not long.
func spinOnce(t *testing.T, f *fd) {
	t.Helper()
	f.setSpin(10 * time.Second)
	winning(f)
	if err := f.enter(&f.r); err != nil {
		t.Fatal(err)
	}
	defer f.leave(&f.r)
	tried := false
	_, err := f.run(&f.r, &op{attempt: func(*op, int) (result, error) {
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

func TestConnectionLeavesThePollerWhenSpinsSucceed(t *testing.T) {
	a, b := connected(t)
	if _, err := a.fd.join(); err != nil {
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
		if _, err := c.fd.join(); err != nil {
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

func TestLeavingThePollerDisturbsNobody(t *testing.T) {
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
		a.fd.join()
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
