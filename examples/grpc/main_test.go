package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// TestCallerIsThisProcess calls a server of this very process, which is told so.
func TestCallerIsThisProcess(t *testing.T) {
	l, err := ipc.Listen(ipc.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	callers := make(chan ipc.Peer, 1)
	s := newServer(func(p ipc.Peer) { callers <- p })
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	status, err := call(ctx, l.Addr().(ipc.Addr))
	if status != "SERVING" || err != nil {
		t.Errorf("the server is %q, %v", status, err)
	}
	select {
	case p := <-callers:
		if pid, ok := p.PID(); ok && pid != os.Getpid() || strings.Contains(p.String(), "unknown") {
			t.Errorf("the caller is %v", p)
		}
	default:
		t.Error("the server does not know its caller")
	}
	s.GracefulStop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
