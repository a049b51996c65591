//go:build unix || windows

package ipc_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"os/exec"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/interprocess-go/ipc"
)

// TestZeroValueFails calls every method of the zero value of every type that stands for
// something open. Each returns an error that matches EINVAL, as in package net.
func TestZeroValueFails(t *testing.T) {
	for _, zero := range []any{
		new(ipc.Conn), new(ipc.MsgConn), new(ipc.Listener), new(ipc.MsgListener), new(ipc.PipeReader), new(ipc.PipeWriter),
		new(ipc.SharedConn), new(ipc.SharedListener),
	} {
		everyMethodFails(t, zero)
	}
}

// everyMethodFails calls each method of the zero value with arguments that are valid
// where a method could look at them, and checks the results.
func everyMethodFails(t *testing.T, zero any) {
	v := reflect.ValueOf(zero)
	if v.NumMethod() < 5 {
		t.Fatalf("%T has %d methods", zero, v.NumMethod())
	}
	for i := range v.NumMethod() {
		t.Run(v.Type().Elem().Name()+"/"+v.Type().Method(i).Name, func(t *testing.T) {
			callZero(t, v.Method(i))
		})
	}
}

func callZero(t *testing.T, method reflect.Value) {
	source := strings.NewReader("x")
	var in []reflect.Value
	for i := range method.Type().NumIn() {
		in = append(in, argument(method.Type().In(i), source))
	}
	call := method.Call
	if method.Type().IsVariadic() {
		call = method.CallSlice
	}
	for _, result := range call(in) {
		switch result.Type() {
		case reflect.TypeFor[error]():
			err, _ := result.Interface().(error)
			var op *net.OpError
			if !errors.Is(err, syscall.EINVAL) || !errors.As(err, &op) {
				t.Errorf("the error is %v", err)
			}
		case reflect.TypeFor[net.Addr]():
			if result.Interface() != ipc.Addr(ipc.Addr{}) {
				t.Errorf("the address is %v", result)
			}
		case reflect.TypeFor[iter.Seq2[*ipc.Conn, error]]():
			onlyEINVAL(t, result.Interface().(iter.Seq2[*ipc.Conn, error]))
		case reflect.TypeFor[iter.Seq2[*ipc.MsgConn, error]]():
			onlyEINVAL(t, result.Interface().(iter.Seq2[*ipc.MsgConn, error]))
		case reflect.TypeFor[bool](): // Native
		case reflect.TypeFor[[]byte](): // of RecvAppend the slice that it was given
			if got := string(result.Bytes()); got != "x" && got != "" {
				t.Errorf("the slice is now %q", result.Bytes())
			}
		default:
			if result.Kind() != reflect.Func && !result.IsZero() {
				t.Errorf("a result is %v", result)
			}
		}
	}
	if source.Len() == 0 {
		t.Error("what cannot be written was read")
	}
}

// argument returns a valid argument, and the zero value where that is one.
func argument(typ reflect.Type, source io.Reader) reflect.Value {
	switch typ {
	case reflect.TypeFor[context.Context]():
		return reflect.ValueOf(context.Background())
	case reflect.TypeFor[io.Reader]():
		return reflect.ValueOf(source)
	case reflect.TypeFor[io.Writer]():
		return reflect.ValueOf(io.Discard)
	case reflect.TypeFor[*net.Buffers]():
		return reflect.ValueOf(&net.Buffers{[]byte("x")})
	case reflect.TypeFor[[]byte]():
		return reflect.ValueOf([]byte("x"))
	}
	return reflect.Zero(typ)
}

// onlyEINVAL checks that the iterator hands one error out and ends.
func onlyEINVAL[C any](t *testing.T, clients iter.Seq2[C, error]) {
	n := 0
	for _, err := range clients {
		if n++; !errors.Is(err, syscall.EINVAL) || n > 1 {
			t.Fatalf("error %d is %v", n, err)
		}
	}
	if n != 1 {
		t.Errorf("the iterator handed out %d errors", n)
	}
}

// TestInheritZeroValueFails hands on what is not open.
func TestInheritZeroValueFails(t *testing.T) {
	for _, end := range []ipc.Inheritable{
		new(ipc.Conn), new(ipc.MsgConn), new(ipc.Listener), new(ipc.MsgListener), new(ipc.PipeReader), new(ipc.PipeWriter),
		(*ipc.Conn)(nil), (*ipc.MsgConn)(nil), (*ipc.Listener)(nil), (*ipc.MsgListener)(nil), (*ipc.PipeReader)(nil), (*ipc.PipeWriter)(nil),
		nil,
	} {
		cmd := exec.Command("true")
		if err := ipc.Inherit(cmd, "end", end); !errors.Is(err, syscall.EINVAL) || cmd.Env != nil || cmd.ExtraFiles != nil {
			t.Errorf("%T: %v", end, err)
		}
	}
}

// TestZeroValueCopies copies from and to what is not open, by the way of io.Copy.
func TestZeroValueCopies(t *testing.T) {
	a, b, err := ipc.Pair()
	must(t, err)
	defer a.Close()
	defer b.Close()
	if _, err := a.ReadFrom(new(ipc.Conn)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("from a Conn: %v", err)
	}
	if _, err := a.ReadFrom(new(ipc.PipeReader)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("from a PipeReader: %v", err)
	}
	_, err = b.Write([]byte("x"))
	must(t, err)
	if _, err := a.WriteTo(new(ipc.PipeWriter)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("to a PipeWriter: %v", err)
	}
}

// TestInheritedErrorsNameNetwork asks for ends that nobody gave: the errors say the
// network of such an end.
func TestInheritedErrorsNameNetwork(t *testing.T) {
	_, ofConn := ipc.InheritedConn("none")
	_, ofMsgConn := ipc.InheritedMsgConn("none")
	_, ofListener := ipc.InheritedListener("none")
	_, ofMsgListener := ipc.InheritedMsgListener("none")
	_, ofReader := ipc.InheritedReader("none")
	_, ofWriter := ipc.InheritedWriter("none")
	network := ipc.Addr{}.Network()
	for i, err := range []error{ofConn, ofMsgConn, ofListener, ofMsgListener, ipc.Inherit(exec.Command("true"), "end", new(ipc.Conn))} {
		if op := new(net.OpError); !errors.As(err, &op) || op.Net != network {
			t.Errorf("%d: %v", i, err)
		}
	}
	for i, err := range []error{ofReader, ofWriter, ipc.Inherit(exec.Command("true"), "end", new(ipc.PipeWriter))} {
		if op := new(net.OpError); !errors.As(err, &op) || op.Net != "pipe" {
			t.Errorf("pipe %d: %v", i, err)
		}
	}
}
