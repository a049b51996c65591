//go:build unix || windows

package ipc_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
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

type peerKey struct{}

// An HTTP server knows the user of each request: ConnContext puts the Peer of the
// connection into the context of its requests.
func Example_httpPeer() {
	l, err := ipc.Listen(ipc.Addr{})
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			peer, err := c.(*ipc.Conn).Peer()
			if err != nil {
				return ctx // the handler finds none
			}
			return context.WithValue(ctx, peerKey{}, peer)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			peer, ok := r.Context().Value(peerKey{}).(ipc.Peer)
			me, err := user.Current()
			if !ok || err != nil || peer.UserID() != me.Uid {
				http.Error(w, "for this user alone", http.StatusForbidden)
				return
			}
			fmt.Fprint(w, "hello, it is you")
		}),
	}
	go server.Serve(l)
	defer server.Close()

	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ipc.Dialer{}.DialContext(ctx, l.Addr().(ipc.Addr))
		},
	}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get("http://ipc/")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	fmt.Println(string(text), err)
	// Output: hello, it is you <nil>
}

// TLS over a local socket: behind the tls.Conn is the connection that knows the peer.
func Example_tlsPeer() {
	certificate, err := selfSigned()
	if err != nil {
		log.Fatal(err)
	}
	l, err := ipc.Listen(ipc.Addr{})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	secure := tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}})
	go func() {
		conn, err := secure.Accept()
		if err != nil {
			log.Print(err)
			return
		}
		defer conn.Close()
		peer, err := conn.(*tls.Conn).NetConn().(*ipc.Conn).Peer()
		if err != nil {
			log.Print(err)
			return
		}
		pid, ok := peer.PID()
		fmt.Fprint(conn, "you are this process: ", !ok || pid == os.Getpid())
	}()

	client, err := ipc.Dial(l.Addr().(ipc.Addr))
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate.Leaf)
	conn := tls.Client(client, &tls.Config{RootCAs: roots, ServerName: "ipc"})
	defer conn.Close()
	text, err := io.ReadAll(conn)
	fmt.Println(string(text), err)
	// Output: you are this process: true <nil>
}

// selfSigned returns a certificate for the name ipc, for an hour.
func selfSigned() (tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"ipc"},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf}, err
}

// A Peer, an Access and a Takeover are words to log/slog, JSON and flag.TextVar.
func ExamplePeer_MarshalText() {
	a, b, err := ipc.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	peer, err := a.Peer()
	if err != nil {
		log.Fatal(err)
	}
	record, err := json.Marshal(map[string]any{"peer": peer, "access": ipc.OwnerOnly})
	fmt.Println(string(record) == `{"access":"OwnerOnly","peer":"`+peer.String()+`"}`, err)
	// Output: true <nil>
}

func ExampleParseAddr() {
	for _, text := range []string{"@my-service", "/run/my-service/socket", "@a\x00b"} {
		addr, err := ipc.ParseAddr(text)
		if err != nil {
			fmt.Printf("not an address: %q\n", text)
			continue
		}
		fmt.Println(addr, addr == ipc.Name("my-service"))
	}
	// Output:
	// @my-service true
	// /run/my-service/socket false
	// not an address: "@a\x00b"
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
	addr := ipc.Name("nobody-serves-this-name")

	_, err := ipc.Dialer{}.DialContext(context.Background(), addr)
	fmt.Println("at once:", errors.Is(err, ipc.ErrNoListener))

	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
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

// Boundaries hold on every system.
func ExampleMsgConn() {
	a, b, err := ipc.MsgPair() // or ListenMsg and DialMsg
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	for _, message := range []string{"one", "two, which is longer"} {
		if err := a.Send([]byte(message)); err != nil {
			log.Fatal(err)
		}
	}
	a.Close()

	var message []byte
	for {
		message, err = b.RecvAppend(message[:0]) // grows to fit any message
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%q\n", message)
	}
	// Output:
	// "one"
	// "two, which is longer"
}

// A pipe whose reader has no patience, on every system.
func ExamplePipe() {
	r, w, err := ipc.Pipe()
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()

	r.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err = r.Read(make([]byte, 1))
	fmt.Println("nothing yet:", errors.Is(err, os.ErrDeadlineExceeded))
	r.SetReadDeadline(time.Time{})

	fmt.Fprintln(w, "what came through the pipe")
	w.Close()
	text, err := io.ReadAll(r)
	fmt.Print(string(text))
	// Output:
	// nothing yet: true
	// what came through the pipe
}

// The process that may open a file passes it to one that may not.
func ExampleConn_SendFiles() {
	a, b, err := ipc.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	f, err := os.CreateTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	io.WriteString(f, "read by whoever has the file")

	if err := a.SendFiles(f); err != nil {
		log.Fatal(err)
	}
	files, err := b.RecvFiles(1)
	if err != nil {
		log.Fatal(err)
	}
	defer files[0].Close()
	text, err := io.ReadAll(io.NewSectionReader(files[0], 0, 1<<20))
	fmt.Println(string(text), err)
	// Output: read by whoever has the file <nil>
}

// The kernel says who is there, so nobody needs a password.
func ExampleConn_Peer() {
	l, err := ipc.ListenConfig{Access: ipc.Everyone}.Listen(ipc.Name("my-service"))
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	for conn, err := range l.Conns() {
		if err != nil {
			log.Fatal(err)
		}
		peer, err := conn.Peer()
		if err != nil {
			log.Fatal(err) // not a word about it from this system
		}
		log.Print(peer) // pid 12 uid 1000 gid 1000
		if who, err := user.LookupId(peer.UserID()); err == nil {
			fmt.Fprintln(conn, "hello,", who.Name)
		}
		conn.Close()
	}
}

// The parent gives its child a pipe and a connection, by name.
func ExampleInherit() {
	ours, theirs, err := ipc.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer ours.Close()
	r, w, err := ipc.Pipe()
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()

	cmd := exec.Command("child")
	if err := errors.Join(ipc.Inherit(cmd, "control", theirs), ipc.Inherit(cmd, "input", r)); err != nil {
		log.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		log.Fatal(err)
	}
	theirs.Close() // they are the child's now
	r.Close()

	fmt.Fprintln(w, "what it has to do")
	text, err := io.ReadAll(ours) // until the child closes its end, or ends
	fmt.Println(string(text), err, cmd.Wait())
}

// The child asks for what its parent gave it.
func ExampleInheritedConn() {
	control, err := ipc.InheritedConn("control")
	if err != nil {
		log.Fatal(err)
	}
	defer control.Close()
	input, err := ipc.InheritedReader("input")
	if err != nil {
		log.Fatal(err)
	}
	defer input.Close()
	n, err := io.Copy(io.Discard, input)
	fmt.Fprintf(control, "%d bytes, %v", n, err)
}
