//go:build unix || windows

package ipc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/interprocess-go/ipc"
)

// A server and a client. Real ones agree on an address such as
// ipc.Name("my-service") or ipc.Path("/run/my-service/socket"); the zero Addr
// takes a fresh name, which the server has to tell the client.
func Example() {
	l, err := ipc.Listen(ipc.Addr{})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	go func() {
		for conn, err := range l.Conns() {
			if err != nil {
				log.Print(err)
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprintln(conn, "hello, client")
			}()
		}
	}()

	conn, err := ipc.Dial(l.Addr().(ipc.Addr))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(text))
	// Output: hello, client
}

// An HTTP server on a local socket, and the client for it.
func Example_http() {
	l, err := ipc.Listen(ipc.Addr{})
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "you asked for %s", r.URL.Path)
		}),
		ReadHeaderTimeout: time.Minute,
	}
	go server.Serve(l)
	defer server.Close()

	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ipc.Dialer{}.DialContext(ctx, l.Addr().(ipc.Addr))
		},
	}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://server/weather") // the host name is not used
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", body)
	// Output: you asked for /weather
}

func ExampleParseAddr() {
	for _, text := range []string{"@my-service", "/run/my-service/socket", "@"} {
		addr, err := ipc.ParseAddr(text)
		if err != nil {
			fmt.Println("not an address:", text)
			continue
		}
		fmt.Println(addr, addr == ipc.Name("my-service"))
	}
	// Output:
	// @my-service true
	// /run/my-service/socket false
	// not an address: @
}

func ExamplePair() {
	a, b, err := ipc.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	if _, err := io.WriteString(a, "what was written is read after Close"); err != nil {
		log.Fatal(err)
	}
	a.Close()

	text, err := io.ReadAll(b)
	fmt.Println(string(text), err)
	// Output: what was written is read after Close <nil>
}

// Everyone may connect, but only those whom Check lets in are served.
func ExampleListenConfig() {
	me := os.Getpid()
	l, err := ipc.ListenConfig{
		Access: ipc.Everyone,
		Check: func(p ipc.Peer) error {
			if pid, ok := p.PID(); ok && pid != me {
				return errors.New("not one of us")
			}
			return nil
		},
	}.Listen(ipc.Addr{})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	client, err := ipc.Dial(l.Addr().(ipc.Addr))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	server, err := l.AcceptConn()
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	fmt.Println("served")
	// Output: served
}

// Errors are the same on every system.
func ExampleDialer_DialContext() {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	addr := ipc.Name("nobody-serves-this-name")

	_, err := ipc.Dialer{}.DialContext(ctx, addr)
	fmt.Println("at once:", errors.Is(err, ipc.ErrNoListener))

	_, err = ipc.Dialer{Wait: true}.DialContext(ctx, addr)
	fmt.Println("in the end:", errors.Is(err, os.ErrDeadlineExceeded))
	// Output:
	// at once: true
	// in the end: true
}

// A read that times out loses nothing.
func ExampleConn_SetReadDeadline() {
	a, b, err := ipc.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	defer b.Close()

	buf := make([]byte, 100)
	a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err = a.Read(buf)
	fmt.Println(errors.Is(err, os.ErrDeadlineExceeded))

	a.SetReadDeadline(time.Time{})
	io.WriteString(b, "better late than never")
	n, err := a.Read(buf)
	fmt.Println(string(buf[:n]), err)
	// Output:
	// true
	// better late than never <nil>
}

// A request of several parts goes out in one system call.
func ExampleConn_WriteBuffers() {
	a, b, err := ipc.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()

	head, body := []byte("5 bytes: "), []byte("hello")
	bufs := net.Buffers{head, body}
	n, err := a.WriteBuffers(&bufs)
	fmt.Println(n, err, len(bufs))
	a.Close()

	text, _ := io.ReadAll(b)
	fmt.Println(string(text))
	// Output:
	// 14 <nil> 0
	// 5 bytes: hello
}
