//go:build unix || windows

package ipc_test

import (
	"io"
	"testing"

	"github.com/interprocess-go/ipc"
)

func sharedPair(t *testing.T) (a, b *ipc.SharedConn) {
	t.Helper()
	a, b, err := ipc.SharedPair()
	return kept(t, a, err), kept(t, b, err)
}

func TestSharedTalk(t *testing.T) {
	story(t)
	a, b := sharedPair(t)
	done := begin(func() error {
		_, err := io.WriteString(a, "ping")
		return err
	})
	expect(t, b, "ping")
	must(t, <-done)
	send(t, b, "pong")
	expect(t, a, "pong")
	if !a.InMemory() || !b.InMemory() {
		t.Error("not in memory")
	}
	a.Close()
	expectEOF(t, b)
}
