//go:build unix || windows

// Who is at the other end, as every system tells it.
package ipc_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/interprocess-go/ipc"
)

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

// TestChecksSeeThePeer has the same facts for Check, on both sides, as for Peer.
func TestChecksSeeThePeer(t *testing.T) {
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

var errNot = errors.New("not this one")

// TestRefusalSaysWhy keeps the reason of a Check for the caller.
func TestRefusalSaysWhy(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenMsg(t, addr)
		_, err := ipc.Dialer{Check: func(ipc.Peer) error { return errNot }}.DialMsg(context.Background(), addr)
		matches(t, err, ipc.ErrUntrusted, errNot)
		isOpError(t, err, "dial")
		must(t, l.Close())
	})
}
