//go:build unix

// Messages and what a socket file adds to them: users and takeovers.
package ipc_test

import (
	"testing"

	"github.com/interprocess-go/ipc"
)

func TestOwnerOnlyRefusesMessagesOfAnotherUser(t *testing.T) {
	overEachFraming(t, func(t *testing.T) {
		overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := listenMsg(t, addr)
			a, _ := msgPair(t)
			accepting := begin(func() error {
				c, err := l.Accept()
				if err == nil {
					defer c.Close()
					sendMsg(t, c, "mine")
				}
				return err
			})
			stranger := startStranger(t, "message", addr.String(), asFramed(a))
			if said := stranger.hear(); said != "permission denied" && said != "turned away" {
				t.Errorf("the stranger says %q", said)
			}
			stranger.end()
			expectMsg(t, dialMsg(t, addr), "mine") // the first that Accept has seen
			must(t, <-accepting)
		})
	})
}

func TestEveryoneAdmitsMessagesOfAnotherUser(t *testing.T) {
	overEachFraming(t, func(t *testing.T) {
		overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := listenMsgWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
			a, _ := msgPair(t)
			stranger := startStranger(t, "message", addr.String(), asFramed(a))
			server := acceptMsg(t, l)
			if uid, ok := peerOf(t, server).UID(); uid != nobody || !ok {
				t.Errorf("the peer's user is %d, %v", uid, ok)
			}
			expectMsg(t, server, "hello from a child")
			sendMsg(t, server, "welcome")
			stranger.mustSay("welcome")
			stranger.end()
		})
	})
}

func TestModeOfTheMessageSocketIsExact(t *testing.T) {
	overEachFraming(t, func(t *testing.T) {
		path := sockPath(t)
		l := listenMsg(t, ipc.Path(path))
		if mode := modeOf(t, path); mode != 0o600 {
			t.Errorf("mode is %o", mode)
		}
		must(t, l.Close())
		isGone(t, path)
		l = listenMsgWith(t, ipc.ListenConfig{Access: ipc.Everyone}, ipc.Path(path))
		if mode := modeOf(t, path); mode != 0o666 {
			t.Errorf("mode is %o", mode)
		}
		must(t, l.Close())
		isGone(t, path)
		isGone(t, path+".lock")
	})
}

func TestMessageServerCanBeDisplaced(t *testing.T) {
	overEachFraming(t, func(t *testing.T) {
		addr := pathAddr(t)
		old := listenMsg(t, addr)
		client, server := msgConnect(t, old)
		successor := listenMsgWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, addr)
		msgTalk(t, client, server) // the old one keeps what it has
		must(t, old.Close())
		client, server = msgConnect(t, successor)
		msgTalk(t, client, server)
		must(t, successor.Close())
	})
}
