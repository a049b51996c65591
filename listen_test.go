//go:build unix || windows

// Listeners, and how they are dialed.
package ipc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// ---------------------------------------------------------------------------
// Listening

func TestDialWhereNobodyListens(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		_, err := ipc.Dial(addr)
		matches(t, err, ipc.ErrNoListener)
		var oe *net.OpError
		if !errors.As(err, &oe) || oe.Op != "dial" || oe.Net != addr.Network() || oe.Addr != addr {
			t.Errorf("%#v does not say what was dialed", err)
		}
		if !strings.Contains(err.Error(), addr.String()) {
			t.Errorf("%q does not name the address", err)
		}

		l := listen(t, addr)
		serves(t, l, addr)
		must(t, l.Close())
		_, err = ipc.Dial(addr)
		matches(t, err, ipc.ErrNoListener)
	})
}

func TestListenDoesNotReplaceALiveServer(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		for _, policy := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever} {
			_, err := ipc.ListenConfig{Takeover: policy}.Listen(addr)
			matches(t, err, ipc.ErrAddrInUse)
			var oe *net.OpError
			if !errors.As(err, &oe) || oe.Op != "listen" || oe.Addr != addr {
				t.Errorf("%#v does not say what failed", err)
			}
			serves(t, l, addr)
		}
	})
}

func TestListenDoesNotReplaceALiveServerOfAnotherProcess(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		server := startServer(t, addr)
		_, err := ipc.Listen(addr)
		matches(t, err, ipc.ErrAddrInUse)
		client := dial(t, addr)
		talkToEcho(t, client)
		server.end()
	})
}

func TestListenAtAKilledServersAddress(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 3 {
			startServer(t, addr).kill()
			_, err := ipc.Dial(addr)
			matches(t, err, ipc.ErrNoListener)
		}
		serves(t, listen(t, addr), addr)
	})
}

func TestListenByManyProcessesOneWins(t *testing.T) {
	const starters, rounds = 16, 3
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		var children []*child
		for range starters {
			children = append(children, startChild(t, "race", addr.String()))
		}
		for _, c := range children {
			c.mustSay("ready")
		}
		for range rounds {
			startServer(t, addr).kill()
			for _, c := range children {
				c.say("go")
			}
			winners := 0
			for _, c := range children {
				switch said := c.hear(); said {
				case "won":
					winners++
				case "lost":
				default:
					t.Error(said)
				}
			}
			if winners != 1 {
				t.Fatalf("%d starters have the address", winners)
			}
			for _, c := range children {
				c.say("done")
				c.mustSay("ready")
			}
		}
		for _, c := range children {
			c.end()
		}
	})
}

func TestListenByManyGoroutinesOneWins(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 50 {
			const starters = 8
			var starting sync.WaitGroup
			listeners := make([]*ipc.Listener, starters)
			for i := range starters {
				starting.Go(func() {
					l, err := ipc.Listen(addr)
					if err != nil && !errors.Is(err, ipc.ErrAddrInUse) {
						t.Error(err)
					}
					listeners[i] = l
				})
			}
			starting.Wait()
			winners := 0
			for _, l := range listeners {
				if l != nil {
					winners++
					serves(t, l, addr)
					must(t, l.Close())
				}
			}
			if winners != 1 {
				t.Fatalf("%d starters have the address", winners)
			}
		}
	})
}

func TestListenerAcceptEndsAtTheDeadline(t *testing.T) {
	overEachServer(t, func(t *testing.T, addr ipc.Addr, s server) {
		serves := func() {
			t.Helper()
			client, there := s.connect(t)
			talk(t, client, there)
			must(t, errors.Join(client.Close(), there.Close()))
		}
		past := time.Now().Add(-time.Hour)

		must(t, s.SetDeadline(past))
		_, err := s.accept()
		timedOut(t, err)
		var oe *net.OpError
		if !errors.As(err, &oe) || oe.Op != "accept" || oe.Addr != addr {
			t.Errorf("%#v does not say what failed", err)
		}
		if l, ok := s.listener.(net.Listener); ok {
			c, err := l.Accept()
			timedOut(t, err)
			if c != nil {
				t.Errorf("%T comes with the error", c)
			}
		}

		begun := time.Now()
		must(t, s.SetDeadline(begun.Add(brief)))
		_, err = s.accept()
		timedOut(t, err)
		if waited := time.Since(begun); waited < brief {
			t.Errorf("gave up after %v, the deadline was %v", waited, brief)
		}

		must(t, s.SetDeadline(time.Time{}))
		serves()

		waiting := begin(func() error { _, err := s.accept(); return err })
		awaitParked(t, s.waits, 1)
		must(t, s.SetDeadline(past))
		timedOut(t, <-waiting)

		must(t, s.SetDeadline(time.Now().Add(time.Hour)))
		serves()
	})
}

func TestListenerCloseEndsEveryAccept(t *testing.T) {
	overEachServer(t, func(t *testing.T, addr ipc.Addr, s server) {
		const waiters = 5
		accept := func() error { _, err := s.accept(); return err }
		var waiting [waiters]<-chan error
		for i := range waiting {
			waiting[i] = begin(accept)
		}
		awaitParked(t, s.waits, waiters)
		must(t, s.Close())
		for _, done := range waiting {
			matches(t, <-done, net.ErrClosed)
		}

		matches(t, s.Close(), net.ErrClosed)
		matches(t, s.SetDeadline(time.Now()), net.ErrClosed)
		matches(t, accept(), net.ErrClosed)
		if l, ok := s.listener.(net.Listener); ok {
			if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept after Close: %v, %v", c, err)
			}
		}
		if s.Addr() != addr {
			t.Errorf("the address is %v after Close", s.Addr())
		}
	})
}

func TestListenerCloseSucceedsOnce(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 20 {
			oneCloseSucceeds(t, listen(t, addr))
		}
	})
}

// oneCloseSucceeds closes it by many goroutines.
func oneCloseSucceeds(t *testing.T, c io.Closer) {
	t.Helper()
	var closing [4]<-chan error
	for i := range closing {
		closing[i] = begin(c.Close)
	}
	succeeded := 0
	for _, done := range closing {
		if err := <-done; err == nil {
			succeeded++
		} else {
			matches(t, err, net.ErrClosed)
		}
	}
	if succeeded != 1 {
		t.Fatalf("%d of the closes succeed", succeeded)
	}
}

func TestListenerCloseDisconnectsClientsThatWait(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client := dial(t, addr)
		reading := beginRead(client)
		must(t, l.Close())
		if err := <-reading; err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a client that was not accepted reads %v", err)
		}
	})
}

func TestListenerCloseKeepsItsConnections(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client, server := connect(t, l)
		must(t, l.Close())
		talk(t, client, server)
	})
}

func TestListenerConnsEndsAtClose(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		const clients = 5
		for range clients {
			dial(t, addr)
			if served := 0; true {
				for conn, err := range l.Conns() { // left by break, taken up again
					must(t, err)
					must(t, conn.Close())
					served++
					break
				}
				if served != 1 {
					t.Fatalf("%d clients served", served)
				}
			}
		}

		ended := serveEach(l, (*ipc.Conn).Close)
		expectEOF(t, dial(t, addr))
		awaitParked(t, "(*Listener).AcceptConn", 1)
		must(t, l.Close())
		must(t, <-ended)
		for range l.Conns() {
			t.Error("a closed listener has another client")
		}
	})
}

func TestListenerConnsHandsErrorsToTheLoop(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		must(t, l.SetDeadline(time.Now().Add(-time.Hour)))
		failures := 0
		for conn, err := range l.Conns() {
			if err == nil {
				conn.Close()
				break
			}
			timedOut(t, err)
			if conn != nil {
				t.Error("a connection comes with the error")
			}
			if failures++; failures == 3 { // the loop went on; let it succeed
				must(t, l.SetDeadline(time.Time{}))
				dial(t, addr)
			}
		}
		if failures != 3 {
			t.Errorf("%d errors, want 3", failures)
		}
	})
}

func TestListenConfigCheckHidesClientsFromAccept(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		var open atomic.Bool
		var asked atomic.Int32
		l := listenWith(t, ipc.ListenConfig{Check: func(p ipc.Peer) error {
			asked.Add(1)
			if pid, ok := p.PID(); ok && pid != os.Getpid() {
				t.Errorf("Check is told of %v", p)
			}
			if !open.Load() {
				return errors.New("we are closed")
			}
			return nil
		}}, addr)

		accepted := later(t, l.AcceptConn)
		for range 3 {
			refused := dial(t, addr)
			if n, err := refused.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Fatalf("a refused client reads %d, %v", n, err)
			}
		}
		open.Store(true)
		client := dial(t, addr)
		talk(t, client, accepted())
		if n := asked.Load(); n != 4 {
			t.Errorf("Check was asked %d times about 4 clients", n)
		}
	})
}

func TestListenerSetAccessHoldsFromTheNextClientOn(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Check: func(ipc.Peer) error { return errors.New("we are closed") }}, addr)
		done := welcomeAll(l)
		isRefused := func() {
			t.Helper()
			if n, err := dial(t, addr).Read(make([]byte, 1)); n != 0 || err == nil {
				t.Fatalf("a refused client reads %d, %v", n, err)
			}
		}
		isRefused()
		for range 2 {
			must(t, l.SetAccess(ipc.OwnerOnly, nil))
			expect(t, dial(t, addr), "welcome")
			must(t, l.SetAccess(ipc.Everyone, func(ipc.Peer) error { return errors.New("we are closed again") }))
			isRefused()
		}
		must(t, l.SetAccess(ipc.Everyone, nil))
		if err := l.SetAccess(2, nil); err == nil || !strings.Contains(err.Error(), "Access(2)") {
			t.Errorf("SetAccess(2): %v", err)
		}
		expect(t, dial(t, addr), "welcome") // what cannot be changes nothing
		must(t, l.Close())
		must(t, <-done)
	})
}

// ---------------------------------------------------------------------------
// Dialing

func TestDialFullBacklogWaits(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		waiting := fill(t, addr)

		dialed := later(t, func() (*ipc.Conn, error) { return ipc.Dial(addr) })
		awaitParked(t, "Dialer.DialContext", 1)
		for _, client := range waiting {
			talk(t, client, accept(t, l))
		}
		server := accept(t, l)
		talk(t, dialed(), server)
	})
}

// A dialEnd is a way to end a Dial that waits.
var dialEnds = map[string]func(addr ipc.Addr, d ipc.Dialer) error{
	"Timeout": func(addr ipc.Addr, d ipc.Dialer) error {
		d.Timeout = brief
		_, err := d.Dial(addr)
		return err
	},
	"Deadline": func(addr ipc.Addr, d ipc.Dialer) error {
		d.Deadline = time.Now().Add(brief)
		_, err := d.Dial(addr)
		return err
	},
	"Context": func(addr ipc.Addr, d ipc.Dialer) error {
		ctx, cancel := context.WithTimeout(context.Background(), brief)
		defer cancel()
		_, err := d.DialContext(ctx, addr)
		return err
	},
	"FirstOfThree": func(addr ipc.Addr, d ipc.Dialer) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		d.Deadline = time.Now().Add(2 * time.Hour)
		d.Timeout = brief
		_, err := d.DialContext(ctx, addr)
		return err
	},
}

// endsAtItsDeadline dials an address that lets nobody in, with every deadline.
func endsAtItsDeadline(t *testing.T, addr ipc.Addr, d ipc.Dialer) {
	t.Helper()
	for name, dialUntil := range dialEnds {
		begun := time.Now()
		err := dialUntil(addr, d)
		if waited := time.Since(begun); waited < brief {
			t.Errorf("%s: gave up after %v, before %v", name, waited, brief)
		}
		timedOut(t, err)
		matches(t, err, context.DeadlineExceeded)
		var oe *net.OpError
		if !errors.As(err, &oe) || oe.Op != "dial" || oe.Addr != addr {
			t.Errorf("%s: %#v does not say what failed", name, err)
		}
	}
}

func TestDialFullBacklogEndsAtTheDeadline(t *testing.T) {
	together(t)
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		waiting := fill(t, addr)
		endsAtItsDeadline(t, addr, ipc.Dialer{})
		endsAtItsDeadline(t, addr, ipc.Dialer{Wait: true})
		for _, client := range waiting { // nobody who gave up is in the way
			talk(t, client, accept(t, l))
		}
		serves(t, l, addr)
	})
}

func TestDialWaitEndsAtTheDeadline(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		endsAtItsDeadline(t, addr, ipc.Dialer{Wait: true})
	})
}

// TestDialWaitSaysThatNobodyListened tells the two reasons for a wait apart.
func TestDialWaitSaysThatNobodyListened(t *testing.T) {
	together(t)
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		_, err := ipc.Dialer{Wait: true, Timeout: time.Second}.Dial(addr)
		timedOut(t, err)
		matches(t, err, ipc.ErrNoListener)
		if !strings.Contains(err.Error(), "i/o timeout") {
			t.Errorf("%q does not say that time is up", err)
		}

		listenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		fill(t, addr)
		_, err = ipc.Dialer{Wait: true, Timeout: time.Second}.Dial(addr)
		timedOut(t, err)
		if errors.Is(err, ipc.ErrNoListener) {
			t.Errorf("%v matches ErrNoListener, and a server is there", err)
		}
	})
}

func TestDialDeadlineInThePastEndsAtOnce(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		listen(t, addr)
		_, err := ipc.Dialer{Deadline: time.Now().Add(-time.Hour)}.Dial(addr)
		timedOut(t, err)
		_, err = ipc.Dialer{Timeout: -time.Hour}.Dial(addr)
		timedOut(t, err)
	})
}

func TestDialWaitWaitsForTheServer(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		const clients = 3
		var dialed [clients]func() *ipc.Conn
		for i := range dialed {
			dialed[i] = later(t, func() (*ipc.Conn, error) { return ipc.Dialer{Wait: true}.Dial(addr) })
		}
		awaitParked(t, "Dialer.DialContext", clients)
		l := listen(t, addr)
		for range dialed {
			server := accept(t, l)
			send(t, server, "at last")
			must(t, server.Close())
		}
		for _, client := range dialed {
			expect(t, client(), "at last")
		}
	})
}

func TestDialWaitOutlivesARestartOfTheServer(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		startServer(t, addr).kill() // leaves a path that refuses
		dialed := later(t, func() (*ipc.Conn, error) { return ipc.Dialer{Wait: true}.Dial(addr) })
		awaitParked(t, "Dialer.DialContext", 1)
		l := listen(t, addr)
		server := accept(t, l)
		talk(t, dialed(), server)
	})
}

func TestDialCancelEndsEveryWayOfWaiting(t *testing.T) {
	cancelled := func(t *testing.T, addr ipc.Addr, d ipc.Dialer) {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		dialing := begin(func() error { _, err := d.DialContext(ctx, addr); return err })
		awaitParked(t, "Dialer.DialContext", 1)
		cancel()
		err := <-dialing
		matches(t, err, context.Canceled)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v matches a deadline that was not", err)
		}
		_, err = d.DialContext(ctx, addr) // cancelled before it begins
		matches(t, err, context.Canceled)
	}
	t.Run("FullBacklog", func(t *testing.T) {
		overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			listenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
			fill(t, addr)
			cancelled(t, addr, ipc.Dialer{})
			cancelled(t, addr, ipc.Dialer{Timeout: time.Hour})
		})
	})
	t.Run("NoServer", func(t *testing.T) {
		overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			cancelled(t, addr, ipc.Dialer{Wait: true})
		})
	})
	t.Run("RefusingServer", func(t *testing.T) {
		overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			startServer(t, addr).kill()
			cancelled(t, addr, ipc.Dialer{Wait: true})
			listen(t, addr).Close() // takes the path away
		})
	})
}

func TestDialContextHasNoSayOnceConnected(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		ctx, cancel := context.WithCancel(context.Background())
		client, err := ipc.Dialer{}.DialContext(ctx, addr)
		must(t, err)
		defer client.Close()
		cancel()
		talk(t, client, accept(t, l))
	})
}

func TestDialThatWaitsEndsWithListenerClose(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		waiting := fill(t, addr)
		var dialing [3]<-chan error
		for i := range dialing {
			dialing[i] = begin(func() error { _, err := ipc.Dial(addr); return err })
		}
		awaitParked(t, "Dialer.DialContext", len(dialing))
		must(t, l.Close())
		for _, client := range waiting {
			client.Close()
		}
		for _, done := range dialing {
			matches(t, <-done, ipc.ErrNoListener)
		}
	})
}

func TestDialerCheckCanRefuseTheServer(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		stranger := errors.New("not whom I expected")
		var told ipc.Peer
		for _, access := range []ipc.Access{ipc.OwnerOnly, ipc.Everyone} {
			c, err := ipc.Dialer{Access: access, Check: func(p ipc.Peer) error { told = p; return stranger }}.Dial(addr)
			matches(t, err, ipc.ErrUntrusted, stranger)
			if c != nil {
				t.Error("a connection comes with the error")
			}
			if pid, ok := told.PID(); ok && pid != os.Getpid() {
				t.Errorf("Check is told of %v", told)
			}
			if runtime.GOOS != "windows" { // where a client that left is seen only if it sent something
				expectEOF(t, accept(t, l)) // nothing was sent to it
			}
		}
		client, err := ipc.Dialer{Check: func(ipc.Peer) error { return nil }}.Dial(addr)
		must(t, err)
		defer client.Close()
		talk(t, client, accept(t, l))
	})
}

func TestDialAndListenerCloseRace(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 300 {
			l, err := ipc.Listen(addr)
			must(t, err)
			accepting := serveEach(l, (*ipc.Conn).Close)
			dialing := begin(func() error {
				c, err := ipc.Dial(addr)
				if err != nil {
					return err
				}
				defer c.Close()
				if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
					return fmt.Errorf("read %d, %v", n, err)
				}
				return nil
			})
			must(t, l.Close())
			must(t, <-accepting)
			if err := <-dialing; err != nil {
				matches(t, err, ipc.ErrNoListener)
			}
		}
	})
}
