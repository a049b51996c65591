package main

import (
	"context"
	"io"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/Microsoft/go-winio"
	"github.com/interprocess-go/ipc"
)

// The two libraries talk to each other: pipes carry no trace of who made them.

const soon = 20 * time.Second

// guard ends the process if the test hangs.
func guard(t *testing.T) {
	dog := time.AfterFunc(60*time.Second, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { dog.Stop() })
}

// converse exchanges a few words, and more than the buffers hold, both ways.
func converse(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, size := range []int{4, 300 << 10} {
		for _, ends := range [][2]net.Conn{{a, b}, {b, a}} {
			message := make([]byte, size)
			for i := range message {
				message[i] = byte(i * 7)
			}
			sent := make(chan error, 1)
			go func() { _, err := ends[0].Write(message); sent <- err }()
			got := make([]byte, size)
			if _, err := io.ReadFull(ends[1], got); err != nil || string(got) != string(message) {
				t.Fatalf("%d bytes arrive otherwise, or not: %v", size, err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		}
	}
}

func expectEOF(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("%d, %v, want io.EOF", n, err)
	}
}

func TestTheirClientTalksToOurListener(t *testing.T) {
	for _, messages := range []bool{false, true} {
		t.Run("Messages "+strconv.FormatBool(messages), func(t *testing.T) {
			guard(t)
			path := freshAddress("interop")
			l, err := ipc.ListenPipe(path, ipc.PipeConfig{Messages: messages})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			for range 10 { // more than are armed at once
				timeout := soon
				client, err := winio.DialPipe(path, &timeout)
				if err != nil {
					t.Fatal(err)
				}
				server, err := l.AcceptPipe()
				if err != nil {
					t.Fatal(err)
				}
				// It connects anonymously, and is known by its process.
				if p, err := server.Peer(); err != nil || p.UserID() == "" {
					t.Errorf("the client is %v, %v", p, err)
				}
				converse(t, client, server)
				if _, err := server.Write([]byte("last words")); err != nil {
					t.Fatal(err)
				}
				server.Close()
				got := make([]byte, 10)
				if _, err := io.ReadFull(client, got); err != nil || string(got) != "last words" {
					t.Fatalf("%q, %v", got, err)
				}
				expectEOF(t, client)
				client.Close()
			}
		})
	}
}

// Their half close is an empty message.
func TestTheirCloseWriteIsAnEmptyMessage(t *testing.T) {
	guard(t)
	path := freshAddress("interop")
	l, err := ipc.ListenPipe(path, ipc.PipeConfig{Messages: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	timeout := soon
	client, err := winio.DialPipe(path, &timeout)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.AcceptPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := client.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, more, err := server.ReadMessage(make([]byte, 9)); n != 0 || more || err != nil {
		t.Errorf("%d, %v, %v, want an empty message", n, more, err)
	}
	if err := server.WriteMessage(nil); err != nil {
		t.Fatal(err)
	}
	expectEOF(t, client)
}

func TestOurClientTalksToTheirListener(t *testing.T) {
	for _, messages := range []bool{false, true} {
		t.Run("Messages "+strconv.FormatBool(messages), func(t *testing.T) {
			guard(t)
			path := freshAddress("interop")
			l, err := winio.ListenPipe(path, &winio.PipeConfig{MessageMode: messages})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			holdFirstInstance(path)
			d := ipc.PipeDialer{Messages: messages}
			if isWine() { // gives a pipe without a security descriptor no owner
				d.Access = ipc.Everyone
			}
			accepted := make(chan net.Conn, 1)
			go func() {
				c, err := l.Accept()
				if err != nil {
					t.Error(err)
				}
				accepted <- c
			}()
			ctx, cancel := context.WithTimeout(context.Background(), soon)
			defer cancel()
			client, err := ipc.DialPipe(ctx, path, d)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			server := <-accepted
			if server == nil {
				t.FailNow()
			}
			defer server.Close()
			converse(t, client, server)
			if messages {
				if err := server.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if n, more, err := client.ReadMessage(make([]byte, 9)); n != 0 || more || err != nil {
					t.Errorf("%d, %v, %v, want an empty message", n, more, err)
				}
			}
			server.Close()
			expectEOF(t, client)
		})
	}
}

func isWine() bool { return syscall.NewLazyDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil }
