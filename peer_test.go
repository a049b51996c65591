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
)

func init() {
	roles["lingers"] = childClosesAndLingers
	roles["stays"] = func(p *parent, _ []string) error { p.hear(); return nil }
}

// ---------------------------------------------------------------------------
// Peers

func TestPeerTellsWhoIsThere(t *testing.T) {
	overEachServer(t, func(t *testing.T, _ ipc.Addr, s server) {
		client, there := s.connect(t)
		isProcess(t, peerOf(t, client), os.Getpid())
		isProcess(t, peerOf(t, there), os.Getpid())
	})
	t.Run("Pair", func(t *testing.T) {
		story(t)
		a, b := pair(t)
		isProcess(t, peerOf(t, a), os.Getpid())
		isProcess(t, peerOf(t, b), os.Getpid())
	})
}

func TestPeerInAnotherProcess(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client := startChild(t, "connect", addr.String())
		server := accept(t, l)
		isProcess(t, peerOf(t, server), client.pid())
		expect(t, server, "hello from a child")
		send(t, server, "welcome")
		client.mustSay("welcome")
		client.end()
		must(t, errors.Join(server.Close(), l.Close()))

		serving := startServer(t, addr)
		isProcess(t, peerOf(t, dial(t, addr)), serving.pid())
		serving.end()
	})
}

func TestPeerWhatIsNotKnownIsAbsent(t *testing.T) {
	story(t)
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
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client, server := connect(t, l)
		must(t, client.Close())
		if p, err := server.Peer(); err == nil {
			if id := p.UserID(); id != "" && id != me(t) {
				t.Errorf("the peer was %v", p)
			}
		} else if oe := (*net.OpError)(nil); !errors.As(err, &oe) {
			t.Errorf("%#v is not a *net.OpError", err)
		}
		must(t, server.Close())
		_, err := server.Peer()
		matches(t, err, net.ErrClosed)
	})
}

func TestPeerOfMessagesTellsWhoIsThere(t *testing.T) {
	overEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		isProcess(t, peerOf(t, a), os.Getpid())
		isProcess(t, peerOf(t, b), os.Getpid())
	})
}

func TestPeerOfMessagesThatIsGoneIsNoPanic(t *testing.T) {
	overEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		must(t, a.Close())
		if p, err := b.Peer(); err == nil {
			if id := p.UserID(); id != "" && id != me(t) {
				t.Errorf("the peer was %v", p)
			}
		} else {
			isOpError(t, err, "peer")
		}
		must(t, b.Close())
		p, err := b.Peer()
		matches(t, err, net.ErrClosed)
		if p.String() != "unknown peer" || p.UserID() != "" || p.Groups() != nil {
			t.Errorf("with the error comes the peer %v", p)
		}
	})
}

// TestPeerIsOfWhoConnected holds also after that process has ended: what the
// kernel recorded stays.
func TestPeerIsOfWhoConnected(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client := startChild(t, "connect", addr.String())
		server := accept(t, l)
		expect(t, server, "hello from a child")
		before := peerOf(t, server)
		isProcess(t, before, client.pid())
		client.kill()
		if after, err := server.Peer(); err != nil {
			isOpError(t, err, "peer") // or else the system does not tell any more
		} else {
			if id := after.UserID(); id != before.UserID() && id != "" {
				t.Errorf("%v became %v", before, after)
			}
			if pid, ok := after.PID(); ok && pid != client.pid() {
				t.Errorf("%v became %v", before, after)
			}
		}
	})
}

// TestPeerIsWhatChecksSee has the same facts for Check, on both sides, as for Peer.
func TestPeerIsWhatChecksSee(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		var seen []string
		look := func(p ipc.Peer) error {
			isProcess(t, p, os.Getpid())
			seen = append(seen, p.String())
			return nil
		}
		l := listenWith(t, ipc.ListenConfig{Check: look}, addr)
		client, err := ipc.Dialer{Check: look}.DialContext(context.Background(), addr)
		must(t, err)
		defer client.Close()
		server := accept(t, l)
		want := []string{peerOf(t, client).String(), peerOf(t, server).String()}
		if strings.Join(seen, "\n") != strings.Join(want, "\n") {
			t.Errorf("the checks see %q, Peer tells %q", seen, want)
		}
	})
}

func TestPeerIsTextInLogs(t *testing.T) {
	story(t)
	a, _ := pair(t)
	peer := peerOf(t, a)
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
func childClosesAndLingers(p *parent, args []string) error {
	c := sure(ipc.Dial(sure(ipc.ParseAddr(args[0]))))
	p.say("connected")
	p.hear()
	err := c.Close()
	p.say("closed")
	p.hear()
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
		isOpError(t, err, "wait")
		t.Skip(err)
	}
}

func waitBriefly(c peerWaiter) error {
	ctx, cancel := context.WithTimeout(context.Background(), brief)
	defer cancel()
	return c.WaitPeer(ctx)
}

func TestWaitPeerWaitsForTheProcess(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client := startChild(t, "lingers", addr.String())
		server := accept(t, l)
		client.mustSay("connected")
		needsPID(t, server)
		waits := begin(func() error { return server.WaitPeer(context.Background()) })
		awaitParked(t, "(*endpoint).WaitPeer", 1)
		client.say("close")
		client.mustSay("closed")
		expectEOF(t, server)
		if err := waitBriefly(server); !errors.Is(err, errors.ErrUnsupported) { // as on macOS, once the end is closed
			timedOut(t, err)
			isOpError(t, err, "wait")
			matches(t, err, context.DeadlineExceeded)
		}
		select {
		case err := <-waits:
			t.Fatalf("the wait ends with the connection: %v", err)
		default:
		}
		if runtime.GOOS == "illumos" { // where that takes its parent to wait for it
			client.kill()
		}
		client.cmd.Process.Kill()
		must(t, <-waits)
		client.kill()
		if err := server.WaitPeer(context.Background()); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("of a process that has ended: %v", err)
		}
	})
}

func TestWaitPeerEndsWithItsContext(t *testing.T) {
	story(t)
	a, _ := pair(t) // of this very process
	needsPID(t, a)
	ctx, cancel := context.WithCancel(context.Background())
	waits := begin(func() error { return a.WaitPeer(ctx) })
	awaitParked(t, "(*endpoint).WaitPeer", 1)
	cancel()
	err := <-waits
	matches(t, err, context.Canceled)
	isOpError(t, err, "wait")
	matches(t, a.WaitPeer(ctx), context.Canceled)
	timedOut(t, waitBriefly(a))
}

func TestWaitPeerOutlivesClose(t *testing.T) {
	story(t)
	l := listenMsg(t, ipc.Addr{})
	client := startChild(t, "message", l.Addr().String())
	server, err := l.Accept()
	kept(t, server, err)
	needsPID(t, server)
	waits := begin(func() error { return server.WaitPeer(context.Background()) })
	awaitParked(t, "(*endpoint).WaitPeer", 1)
	must(t, server.Close())
	err = server.WaitPeer(context.Background())
	matches(t, err, net.ErrClosed)
	isOpError(t, err, "wait")
	client.kill()
	must(t, <-waits)
}

// TestWaitPeerLeavesNothing has many waits at once, and many one after another.
func TestWaitPeerLeavesNothing(t *testing.T) {
	story(t)
	l := listen(t, ipc.Addr{})
	client := startChild(t, "lingers", l.Addr().String())
	server := accept(t, l)
	needsPID(t, server)
	leavesNothing(t, 20, func() { timedOut(t, server.WaitPeer(expired(t))) })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	leavesNothing(t, 5, func() {
		var waits []<-chan error
		for range 20 {
			ctx, cancel := context.WithTimeout(ctx, brief)
			defer cancel()
			waits = append(waits, begin(func() error { return server.WaitPeer(ctx) }))
		}
		for _, w := range waits {
			timedOut(t, <-w)
		}
	})
	var waits []<-chan error
	for range 100 {
		waits = append(waits, begin(func() error { return server.WaitPeer(ctx) }))
	}
	awaitParked(t, "(*endpoint).WaitPeer", len(waits))
	client.kill()
	for _, w := range waits {
		must(t, <-w)
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
		c := dial(t, addr)
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Fatalf("a client is not refused: %d, %v", n, err)
		}
		must(t, c.Close())
	}
}

func TestRefusedIsToldWhoAndWhy(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		type refusal struct {
			peer ipc.Peer
			err  error
		}
		told := make(chan refusal, 10)
		l := listenWith(t, ipc.ListenConfig{
			Check:   func(ipc.Peer) error { return errNot },
			Refused: func(p ipc.Peer, err error) { told <- refusal{p, err} },
		}, addr)
		serving := welcomeAll(l)
		refuseClients(t, addr, 3)
		for range 3 {
			got := <-told
			isProcess(t, got.peer, os.Getpid())
			matches(t, got.err, errNot)
			isOpError(t, got.err, "accept")
		}
		must(t, l.SetAccess(ipc.Everyone, nil)) // and this one is welcome
		expect(t, dial(t, addr), "welcome")
		must(t, l.Close())
		must(t, <-serving)
		if len(told) > 0 {
			t.Errorf("Refused is told once more: %v", <-told)
		}
	})
}

// TestRefusedDoesNotHoldAccept has a function that never ends while others are
// refused and served. What it misses is counted.
func TestRefusedDoesNotHoldAccept(t *testing.T) {
	story(t)
	addr := nameAddr(t)
	const kept, more = 64, 7
	var welcome atomic.Bool
	entered, release := make(chan bool), make(chan bool)
	var errs []error
	var peers []string
	done := make(chan bool)
	l := listenWith(t, ipc.ListenConfig{
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
	serving := welcomeAll(l)
	refuseClients(t, addr, 1)
	<-entered
	refuseClients(t, addr, kept+more)
	welcome.Store(true)
	expect(t, dial(t, addr), "welcome")
	must(t, l.Close())
	must(t, <-serving)
	close(release)
	<-done
	if len(errs) != 1+kept+1 {
		t.Fatalf("Refused was called %d times", len(errs))
	}
	last := len(errs) - 1
	if !strings.Contains(errs[last].Error(), "7 more clients") || peers[last] != "unknown peer" {
		t.Errorf("at last it is told of %s: %v", peers[last], errs[last])
	}
	isOpError(t, errs[last], "accept")
	for _, err := range errs[:last] {
		matches(t, err, errNot)
	}
}

var errNot = errors.New("not this one")

// TestRefusedClientIsToldWhy keeps the reason of a Check for the caller.
func TestRefusedClientIsToldWhy(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenMsg(t, addr)
		_, err := ipc.Dialer{Check: func(ipc.Peer) error { return errNot }}.DialMsg(context.Background(), addr)
		matches(t, err, ipc.ErrUntrusted, errNot)
		isOpError(t, err, "dial")
		must(t, l.Close())
	})
}
