//go:build windows

package ipc

import (
	"context"
	"testing"
	"time"
)

// TestPipeSpinIsPassedOn checks that both ends of a pipe have the Spin of their options.
func TestPipeSpinIsPassedOn(t *testing.T) {
	path := `\\.\pipe\` + t.Name()
	l, err := ListenPipe(path, PipeConfig{Spin: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := DialPipe(context.Background(), path, PipeDialer{Spin: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.AcceptPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if s, c := server.fd.spin.Load(), client.fd.spin.Load(); s != -1 || c != int64(time.Millisecond) {
		t.Errorf("the server's end has %d, the client's %d", s, c)
	}
}
