//go:build unix || windows

// Who is at the other end.
package ipc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["lingers"] = childClosesAndLingers
	kit.Roles["stays"] = func(p *kit.Parent, _ []string) error { p.Hear(); return nil }
}

// ---------------------------------------------------------------------------
// Peers

func TestPeerTellsWhoIsThere(t *testing.T) {
	kit.OverEachServer(t, func(t *testing.T, _ ipc.Addr, s kit.Server) {
		client, there := s.Connect(t)
		kit.IsProcess(t, kit.PeerOf(t, client), os.Getpid())
		kit.IsProcess(t, kit.PeerOf(t, there), os.Getpid())
	})
	t.Run("Pair", func(t *testing.T) {
		kit.Story(t)
		a, b := kit.Pair(t)
		kit.IsProcess(t, kit.PeerOf(t, a), os.Getpid())
		kit.IsProcess(t, kit.PeerOf(t, b), os.Getpid())
	})
}

func TestPeerInAnotherProcess(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		client := kit.StartChild(t, "connect", addr.String())
		server := kit.Accept(t, l)
		kit.IsProcess(t, kit.PeerOf(t, server), client.PID())
		kit.Expect(t, server, "hello from a child")
		kit.Send(t, server, "welcome")
		client.MustSay("welcome")
		client.End()
		kit.Must(t, errors.Join(server.Close(), l.Close()))

		serving := kit.StartServer(t, addr)
		kit.IsProcess(t, kit.PeerOf(t, kit.Dial(t, addr)), serving.PID())
		serving.End()
	})
}

func TestPeerWhatIsNotKnownIsAbsent(t *testing.T) {
	kit.Story(t)
	var p ipc.Peer
	if pid, ok := p.PID(); pid != 0 || ok {
		t.Errorf("PID is %d, %v", pid, ok)
	}
	if uid, ok := p.UID(); uid != 0 || ok {
		t.Errorf("UID is %d, %v", uid, ok)
	}
	if gid, ok := p.GID(); gid != 0 || ok {
		t.Errorf("GID is %d, %v", gid, ok)
	}
	if p.UserID() != "" || p.Groups() != nil || p.String() != "unknown peer" {
		t.Errorf("%q %v %q", p.UserID(), p.Groups(), p)
	}
}

func TestPeerThatIsGoneIsNoPanic(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		client, server := kit.Connect(t, l)
		kit.Must(t, client.Close())
		if p, err := server.Peer(); err == nil {
			if id := p.UserID(); id != "" && id != kit.Me(t) {
				t.Errorf("the peer was %v", p)
			}
		} else if oe := (*net.OpError)(nil); !errors.As(err, &oe) {
			t.Errorf("%#v is not a *net.OpError", err)
		}
		kit.Must(t, server.Close())
		_, err := server.Peer()
		kit.Matches(t, err, net.ErrClosed)
	})
}

func TestPeerOfMessagesTellsWhoIsThere(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		kit.IsProcess(t, kit.PeerOf(t, a), os.Getpid())
		kit.IsProcess(t, kit.PeerOf(t, b), os.Getpid())
	})
}

func TestPeerOfMessagesThatIsGoneIsNoPanic(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		kit.Must(t, a.Close())
		if p, err := b.Peer(); err == nil {
			if id := p.UserID(); id != "" && id != kit.Me(t) {
				t.Errorf("the peer was %v", p)
			}
		} else {
			kit.IsOpError(t, err, "peer")
		}
		kit.Must(t, b.Close())
		p, err := b.Peer()
		kit.Matches(t, err, net.ErrClosed)
		if p.String() != "unknown peer" || p.UserID() != "" || p.Groups() != nil {
			t.Errorf("with the error comes the peer %v", p)
		}
	})
}

// TestPeerIsOfWhoConnected holds also after that process has ended: what the
// kernel recorded stays.
func TestPeerIsOfWhoConnected(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		client := kit.StartChild(t, "connect", addr.String())
		server := kit.Accept(t, l)
		kit.Expect(t, server, "hello from a child")
		before := kit.PeerOf(t, server)
		kit.IsProcess(t, before, client.PID())
		client.Kill()
		if after, err := server.Peer(); err != nil {
			kit.IsOpError(t, err, "peer") // or else the system does not tell any more
		} else {
			if id := after.UserID(); id != before.UserID() && id != "" {
				t.Errorf("%v became %v", before, after)
			}
			if pid, ok := after.PID(); ok && pid != client.PID() {
				t.Errorf("%v became %v", before, after)
			}
		}
	})
}

// TestPeerIsWhatChecksSee has the same facts for Check, on both sides, as for Peer.
func TestPeerIsWhatChecksSee(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		var seen []string
		look := func(p ipc.Peer) error {
			kit.IsProcess(t, p, os.Getpid())
			seen = append(seen, p.String())
			return nil
		}
		l := kit.ListenWith(t, ipc.ListenConfig{Check: look}, addr)
		client, err := ipc.Dialer{Check: look}.DialContext(context.Background(), addr)
		kit.Must(t, err)
		defer client.Close()
		server := kit.Accept(t, l)
		want := []string{kit.PeerOf(t, client).String(), kit.PeerOf(t, server).String()}
		if strings.Join(seen, "\n") != strings.Join(want, "\n") {
			t.Errorf("the checks see %q, Peer tells %q", seen, want)
		}
	})
}

func TestPeerIsTextInLogs(t *testing.T) {
	kit.Story(t)
	a, _ := kit.Pair(t)
	peer := kit.PeerOf(t, a)
	data, err := json.Marshal(struct{ Peer ipc.Peer }{peer})
	if string(data) != `{"Peer":"`+peer.String()+`"}` || err != nil {
		t.Errorf("JSON is %s, %v", data, err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("hello", "peer", peer)
	if want := fmt.Sprintf("peer=%q", peer.String()); !strings.Contains(log.String(), want) {
		t.Errorf("the log is %s, without %s", log.String(), want)
	}
}

// ---------------------------------------------------------------------------
// The end of the peer

// childClosesAndLingers connects, closes its end at the word, and stays.
func childClosesAndLingers(p *kit.Parent, args []string) error {
	c := kit.Sure(ipc.Dial(kit.Sure(ipc.ParseAddr(args[0]))))
	p.Say("connected")
	p.Hear()
	err := c.Close()
	p.Say("closed")
	p.Hear()
	return err
}

type peerWaiter interface {
	WaitPeer(context.Context) error
	Close() error
}

// needsPID skips the test where the process of the peer is not known.
func needsPID(t *testing.T, c peerWaiter) {
	t.Helper()
	if err := waitBriefly(c); errors.Is(err, errors.ErrUnsupported) {
		kit.IsOpError(t, err, "wait")
		t.Skip(err)
	}
}

func waitBriefly(c peerWaiter) error {
	ctx, cancel := context.WithTimeout(context.Background(), kit.Brief)
	defer cancel()
	return c.WaitPeer(ctx)
}

func TestWaitPeerWaitsForTheProcess(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		client := kit.StartChild(t, "lingers", addr.String())
		server := kit.Accept(t, l)
		client.MustSay("connected")
		needsPID(t, server)
		waits := kit.Begin(func() error { return server.WaitPeer(context.Background()) })
		kit.AwaitParked(t, "(*endpoint).WaitPeer", 1)
		client.Say("close")
		client.MustSay("closed")
		kit.ExpectEOF(t, server)
		if err := waitBriefly(server); !errors.Is(err, errors.ErrUnsupported) { // as on macOS, once the end is closed
			kit.TimedOut(t, err)
			kit.IsOpError(t, err, "wait")
			kit.Matches(t, err, context.DeadlineExceeded)
		}
		select {
		case err := <-waits:
			t.Fatalf("the wait ends with the connection: %v", err)
		default:
		}
		if runtime.GOOS == "illumos" { // where that takes its parent to wait for it
			client.Kill()
		}
		client.Cmd.Process.Kill()
		kit.Must(t, <-waits)
		client.Kill()
		if err := server.WaitPeer(context.Background()); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("of a process that has ended: %v", err)
		}
	})
}

func TestWaitPeerEndsWithItsContext(t *testing.T) {
	kit.Story(t)
	a, _ := kit.Pair(t) // of this very process
	needsPID(t, a)
	ctx, cancel := context.WithCancel(context.Background())
	waits := kit.Begin(func() error { return a.WaitPeer(ctx) })
	kit.AwaitParked(t, "(*endpoint).WaitPeer", 1)
	cancel()
	err := <-waits
	kit.Matches(t, err, context.Canceled)
	kit.IsOpError(t, err, "wait")
	kit.Matches(t, a.WaitPeer(ctx), context.Canceled)
	kit.TimedOut(t, waitBriefly(a))
}

func TestWaitPeerOutlivesClose(t *testing.T) {
	kit.Story(t)
	l := kit.ListenMsg(t, ipc.Addr{})
	client := kit.StartChild(t, "message", l.Addr().String())
	server, err := l.Accept()
	kit.Kept(t, server, err)
	needsPID(t, server)
	waits := kit.Begin(func() error { return server.WaitPeer(context.Background()) })
	kit.AwaitParked(t, "(*endpoint).WaitPeer", 1)
	kit.Must(t, server.Close())
	err = server.WaitPeer(context.Background())
	kit.Matches(t, err, net.ErrClosed)
	kit.IsOpError(t, err, "wait")
	client.Kill()
	kit.Must(t, <-waits)
}

// TestWaitPeerLeavesNothing has many waits at once, and many one after another.
func TestWaitPeerLeavesNothing(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, ipc.Addr{})
	client := kit.StartChild(t, "lingers", l.Addr().String())
	server := kit.Accept(t, l)
	needsPID(t, server)
	kit.LeavesNothing(t, 20, func() { kit.TimedOut(t, server.WaitPeer(expired(t))) })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	kit.LeavesNothing(t, 5, func() {
		var waits []<-chan error
		for range 20 {
			ctx, cancel := context.WithTimeout(ctx, kit.Brief)
			defer cancel()
			waits = append(waits, kit.Begin(func() error { return server.WaitPeer(ctx) }))
		}
		for _, w := range waits {
			kit.TimedOut(t, <-w)
		}
	})
	var waits []<-chan error
	for range 100 {
		waits = append(waits, kit.Begin(func() error { return server.WaitPeer(ctx) }))
	}
	kit.AwaitParked(t, "(*endpoint).WaitPeer", len(waits))
	client.Kill()
	for _, w := range waits {
		kit.Must(t, <-w)
	}
}

// expired returns a context whose deadline has passed.
func expired(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), -time.Second)
	t.Cleanup(cancel)
	return ctx
}

// ---------------------------------------------------------------------------
// Clients that are refused

// refuseClients lets clients in until the server has refused n of them.
func refuseClients(t *testing.T, addr ipc.Addr, n int) {
	t.Helper()
	for range n {
		c := kit.Dial(t, addr)
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Fatalf("a client is not refused: %d, %v", n, err)
		}
		kit.Must(t, c.Close())
	}
}

func TestListenConfigRefusedIsToldWhoAndWhy(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		type refusal struct {
			peer ipc.Peer
			err  error
		}
		told := make(chan refusal, 10)
		l := kit.ListenWith(t, ipc.ListenConfig{
			Check:   func(ipc.Peer) error { return errNot },
			Refused: func(p ipc.Peer, err error) { told <- refusal{p, err} },
		}, addr)
		serving := kit.WelcomeAll(l)
		refuseClients(t, addr, 3)
		for range 3 {
			got := <-told
			kit.IsProcess(t, got.peer, os.Getpid())
			kit.Matches(t, got.err, errNot)
			kit.IsOpError(t, got.err, "accept")
		}
		kit.Must(t, l.SetAccess(ipc.Everyone, nil)) // and this one is welcome
		kit.Expect(t, kit.Dial(t, addr), "welcome")
		kit.Must(t, l.Close())
		kit.Must(t, <-serving)
		if len(told) > 0 {
			t.Errorf("Refused is told once more: %v", <-told)
		}
	})
}

// TestListenConfigRefusedDoesNotHoldAccept has a function that never ends while others are
// refused and served. What it misses is counted.
func TestListenConfigRefusedDoesNotHoldAccept(t *testing.T) {
	kit.Story(t)
	addr := kit.NameAddr(t)
	const kept, more = 64, 7
	var welcome atomic.Bool
	entered, release := make(chan bool), make(chan bool)
	var errs []error
	var peers []string
	done := make(chan bool)
	l := kit.ListenWith(t, ipc.ListenConfig{
		Check: func(ipc.Peer) error {
			if welcome.Load() {
				return nil
			}
			return errNot
		},
		Refused: func(p ipc.Peer, err error) {
			if len(errs) == 0 {
				close(entered)
				<-release
			}
			errs, peers = append(errs, err), append(peers, p.String())
			if !errors.Is(err, errNot) {
				close(done)
			}
		},
	}, addr)
	serving := kit.WelcomeAll(l)
	refuseClients(t, addr, 1)
	<-entered
	refuseClients(t, addr, kept+more)
	welcome.Store(true)
	kit.Expect(t, kit.Dial(t, addr), "welcome")
	kit.Must(t, l.Close())
	kit.Must(t, <-serving)
	close(release)
	<-done
	if len(errs) != 1+kept+1 {
		t.Fatalf("Refused was called %d times", len(errs))
	}
	last := len(errs) - 1
	if !strings.Contains(errs[last].Error(), "7 more clients") || peers[last] != "unknown peer" {
		t.Errorf("at last it is told of %s: %v", peers[last], errs[last])
	}
	kit.IsOpError(t, errs[last], "accept")
	for _, err := range errs[:last] {
		kit.Matches(t, err, errNot)
	}
}

var errNot = errors.New("not this one")

// TestDialerCheckGivesItsReasonToTheCaller keeps the reason of a Check for the caller.
func TestDialerCheckGivesItsReasonToTheCaller(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenMsg(t, addr)
		_, err := ipc.Dialer{Check: func(ipc.Peer) error { return errNot }}.DialMsg(context.Background(), addr)
		kit.Matches(t, err, ipc.ErrUntrusted, errNot)
		kit.IsOpError(t, err, "dial")
		kit.Must(t, l.Close())
	})
}
