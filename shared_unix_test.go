//go:build unix

package ipc_test

import (
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// A process that is stopped keeps nobody from heeding a deadline, and loses nothing.
func TestSharedConnPeerIsStopped(t *testing.T) {
	story(t)
	addr := pathAddr(t)
	server := startChild(t, "shared serve", addr.String())
	server.mustSay("serving")
	c, err := ipc.DialShared(addr)
	kept(t, c, err)
	talkToEcho(t, c)
	must(t, syscall.Kill(server.pid(), syscall.SIGSTOP))
	must(t, c.SetDeadline(time.Now().Add(brief)))
	written := 0
	for err = nil; err == nil; {
		var n int
		n, err = c.Write(make([]byte, 10000))
		written += n
	}
	timedOut(t, err)
	must(t, c.SetDeadline(time.Now().Add(brief)))
	got := 0 // what it sent before it was stopped
	for err = nil; err == nil; {
		var n int
		n, err = c.Read(make([]byte, 10000))
		got += n
	}
	timedOut(t, err)
	must(t, c.SetDeadline(time.Time{}))
	must(t, syscall.Kill(server.pid(), syscall.SIGCONT))
	_, err = io.ReadFull(c, make([]byte, written-got))
	must(t, err)
	talkToEcho(t, c)
	must(t, c.Close())
	server.end()
}
