package ipc_test

import (
	"context"
	"errors"
	"net"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

func TestZeroPipeFails(t *testing.T) {
	everyMethodFails(t, new(ipc.PipeConn))
	everyMethodFails(t, new(ipc.PipeListener))
}

// TestPipeConnIsConn checks that a PipeConn has all methods of a Conn.
func TestPipeConnIsConn(t *testing.T) {
	conn, pipe := reflect.TypeFor[*ipc.Conn](), reflect.TypeFor[*ipc.PipeConn]()
	for i := range conn.NumMethod() {
		name := conn.Method(i).Name
		if _, ok := pipe.MethodByName(name); !ok && name != "Share" { // which takes a Conn over
			t.Errorf("%s is missing", name)
		}
	}
	for i := range pipe.Elem().NumField() {
		if pipe.Elem().Field(i).IsExported() {
			t.Errorf("the field %s can be changed", pipe.Elem().Field(i).Name)
		}
	}
	var _ net.Conn = (*ipc.PipeConn)(nil)
	var _ ipc.Inheritable = (*ipc.PipeConn)(nil)
}

// TestPipeDialerLimitsEnd waits for a pipe that nobody makes.
func TestPipeDialerLimitsEnd(t *testing.T) {
	path := `\\.\pipe\` + t.Name()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer time.AfterFunc(10*time.Second, cancel).Stop() // if nothing else ends the dials
	for _, d := range []ipc.PipeDialer{
		{Wait: true, Timeout: time.Millisecond},
		{Wait: true, Deadline: time.Now().Add(time.Millisecond)},
		{Deadline: time.Unix(1, 0)},
	} {
		if _, err := ipc.DialPipe(ctx, path, d); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%+v: %v", d, err)
		}
	}
}
