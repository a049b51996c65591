// Package conformance runs the public conformance suite for net.Conn over the
// connections of package ipc. It is a module of its own because the suite is
// not part of the standard library, and package ipc requires nothing else.
package conformance

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/interprocess-go/ipc"
)

func TestPair(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		a, b, err := ipc.Pair()
		if err != nil {
			return nil, nil, nil, err
		}
		return a, b, func() { a.Close(); b.Close() }, nil
	})
}

func TestName(t *testing.T) {
	nettest.TestConn(t, dialed(func() ipc.Addr { return ipc.Name(unique()) }))
}

func TestPath(t *testing.T) {
	dir := t.TempDir()
	nettest.TestConn(t, dialed(func() ipc.Addr {
		if runtime.GOOS == "windows" {
			return ipc.Path(`\\.\pipe\` + unique())
		}
		return ipc.Path(filepath.Join(dir, unique()))
	}))
}

func unique() string {
	return fmt.Sprintf("ipc-conformance-%d-%d", os.Getpid(), time.Now().UnixNano())
}

// dialed makes connections through a listener at a new address each.
func dialed(addr func() ipc.Addr) nettest.MakePipe {
	return func() (c1, c2 net.Conn, stop func(), err error) {
		l, err := ipc.Listen(addr())
		if err != nil {
			return nil, nil, nil, err
		}
		client, err := ipc.Dial(l.Addr().(ipc.Addr))
		if err != nil {
			l.Close()
			return nil, nil, nil, err
		}
		server, err := l.Accept()
		if err != nil {
			client.Close()
			l.Close()
			return nil, nil, nil, err
		}
		return client, server, func() { client.Close(); server.Close(); l.Close() }, nil
	}
}

func TestSharedPair(t *testing.T) {
	for _, spin := range []time.Duration{0, time.Millisecond, -1} {
		t.Run(spin.String(), func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				a, b, err := ipc.SharedPair()
				if err != nil {
					return nil, nil, nil, err
				}
				if spin != 0 {
					a.SetSpin(spin)
					b.SetSpin(spin)
				}
				return a, b, func() { a.Close(); b.Close() }, nil
			})
		})
	}
}

func TestSharedListener(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		l, err := ipc.ListenShared(ipc.Name(unique()))
		if err != nil {
			return nil, nil, nil, err
		}
		client, err := ipc.DialShared(l.Addr().(ipc.Addr))
		if err != nil {
			l.Close()
			return nil, nil, nil, err
		}
		server, err := l.Accept()
		if err != nil {
			client.Close()
			l.Close()
			return nil, nil, nil, err
		}
		return client, server, func() { client.Close(); server.Close(); l.Close() }, nil
	})
}
