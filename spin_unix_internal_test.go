//go:build unix

package ipc

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
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

func forget() {
	young.Store(0)
	paidUntil.Store(0)
}

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
	err := f.run(&f.r, func(int, *half) error { n++; return syscall.EAGAIN })
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return n
}

func TestWaitThatMayNotSpinParksAtOnce(t *testing.T) {
	a, _ := connected(t)
	a.SetSpin(0)
	if n := attempts(t, a); n > 2 { // one before the poller's own
		t.Errorf("%d attempts with SetSpin(0)", n)
	}
	a.SetSpin(-1)
	if n := attempts(t, a); n > 2 {
		t.Errorf("%d attempts with SetSpin(-1)", n)
	}
	a, _ = connected(t)
	a.SetSpin(10 * time.Millisecond)
	if n := attempts(t, a); n <= 2 {
		t.Errorf("%d attempts with SetSpin(10ms)", n)
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
	for f, want := range map[*fd]int64{l.sys.fd: 0, s.fd: 0, c.fd: int64(time.Millisecond), a.fd: spinUnset} {
		if got := f.spin.Load(); got != want {
			t.Errorf("the bound is %d, want %d", got, want)
		}
	}
}

func TestSpinsInVainBecomeRare(t *testing.T) {
	forget()
	defer forget()
	g := gauge{waits: youngWaits}
	spins := 0
	for range 100 * sitOutMax {
		if g.ready() {
			spins++
			g.inVain(0)
		} else {
			g.satOut()
		}
	}
	if spins > 120 || spins < 100 {
		t.Errorf("%d spins in %d waits", spins, 100*sitOutMax)
	}
	for range 10 {
		g.won()
	}
	if !g.ready() || g.record.lost > 1 {
		t.Errorf("ten spins won leave %+v", g)
	}

	// Each half begins with what others learned.
	for range 20 {
		g = gauge{}
		g.inVain(0)
	}
	if g = (gauge{}); g.ready() {
		t.Error("a new half spins where all others did in vain")
	}
}

func TestSpinsInVainStayWithinTheirBudget(t *testing.T) {
	forget()
	defer forget()
	g := gauge{waits: youngWaits}
	g.inVain(int64(2 * budgetAhead))
	g.record.sitOut = 0
	if g.ready() {
		t.Error("a half spins that lost, and all the budget is used up")
	}
	if g = (gauge{waits: youngWaits}); !g.ready() {
		t.Error("a half that lost nothing does not spin")
	}
}

// winning makes the next spin of the read half the last that it takes to leave.
func winning(f *fd) { f.r.gauge = gauge{waits: youngWaits, wins: winsToLeave - 1} }

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
	err := f.run(&f.r, func(int, *half) error {
		if !tried {
			tried = true
			return syscall.EAGAIN
		}
		return nil
	})
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
	a.SetSpin(0)
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
	if err := shared.fd.use(); err != nil {
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
	shared.fd.unuse()
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
		if err := a.fd.use(); err != nil {
			t.Fatal(err)
		}
		a.fd.leavePoller()
		a.fd.unuse()
	}
	close(stop)
	all.Wait()
	a.CloseWrite()
	<-drained
}
