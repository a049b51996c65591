// Localsocket shows a server and a client that talk over a local socket, and
// whom each of them finds at the other end.
//
//	go run ./examples/localsocket
//
// starts the server and runs itself once more as the client. Both can also be
// started by hand, in two terminals:
//
//	go run ./examples/localsocket -listen /tmp/example.sock
//	go run ./examples/localsocket -dial /tmp/example.sock
//
// An address is a path or "@name". On Windows write @name, or a path such as
// \\.\pipe\name.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"time"

	"github.com/interprocess-go/ipc"
)

func main() {
	var listenAt, dialTo ipc.Addr
	flag.TextVar(&listenAt, "listen", ipc.Addr{}, "be the server alone, at `address`")
	flag.TextVar(&dialTo, "dial", ipc.Addr{}, "be the client alone, of the server at `address`")
	timeout := flag.Duration("timeout", 30*time.Second, "the longest that all of it may take")
	flag.Parse()

	var err error
	deadline := time.Now().Add(*timeout)
	switch none := (ipc.Addr{}); {
	case flag.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case listenAt != none && dialTo != none:
		err = errors.New("-listen and -dial are two processes")
	case listenAt != none:
		err = server(listenAt, deadline)
	case dialTo != none:
		err = client(dialTo, deadline)
	default:
		err = both(deadline)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "localsocket:", err)
		os.Exit(1)
	}
}

// server listens at addr and serves one client.
func server(addr ipc.Addr, deadline time.Time) error {
	l, err := ipc.Listen(addr)
	if err != nil {
		return err
	}
	defer l.Close()
	return serve(l, deadline)
}

// serve answers one client, line by line, until it hangs up.
func serve(l *ipc.Listener, deadline time.Time) error {
	out := log.New(os.Stdout, "server: ", 0)
	out.Printf("listening at %v", l.Addr())

	l.SetDeadline(deadline)
	conn, err := l.AcceptConn()
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(deadline)

	peer := describePeer(conn)
	out.Printf("the client is %s", peer)

	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		out.Printf("<- %s", lines.Text())
		reply := answer(lines.Text(), peer)
		out.Printf("-> %s", reply)
		if _, err := fmt.Fprintln(conn, reply); err != nil {
			return err
		}
	}
	return lines.Err()
}

// answer is what the server has to say to a line of a client.
func answer(line, peer string) string {
	switch line {
	case "Hello, server!":
		return "Hello, client!"
	case "Who am I?":
		return "You are " + peer + "."
	case "How do you know?":
		return "The system told me when you connected."
	case "Goodbye!":
		return "Goodbye!"
	}
	return fmt.Sprintf("You said %q, and I have no answer to that.", line)
}

// client connects to the server at addr and has a conversation with it.
func client(addr ipc.Addr, deadline time.Time) error {
	out := log.New(os.Stdout, "client: ", 0)

	conn, err := ipc.Dialer{Deadline: deadline}.Dial(addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(deadline)
	out.Printf("the server is %s", describePeer(conn))

	answers := bufio.NewScanner(conn)
	for _, line := range []string{"Hello, server!", "Who am I?", "How do you know?", "Goodbye!"} {
		out.Printf("-> %s", line)
		if _, err := fmt.Fprintln(conn, line); err != nil {
			return err
		}
		if !answers.Scan() {
			if err := answers.Err(); err != nil {
				return err
			}
			return fmt.Errorf("the server hung up: %w", io.ErrUnexpectedEOF)
		}
		out.Printf("<- %s", answers.Text())
	}
	return nil
}

// describePeer says who is at the other end of the connection. What it says
// comes from the system; the peer could not lie about it.
func describePeer(conn *ipc.Conn) string {
	peer, err := conn.Peer()
	if err != nil {
		return fmt.Sprintf("unknown (%v)", err)
	}
	name := peer.UserID()
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	if pid, ok := peer.PID(); ok {
		return fmt.Sprintf("pid %d, user %s", pid, name)
	}
	return "user " + name
}

// both is the server, under a fresh name that nobody else knows, and runs the
// client as a process of its own.
func both(deadline time.Time) error {
	l, err := ipc.Listen(ipc.Addr{})
	if err != nil {
		return err
	}
	defer l.Close()

	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	var complaint strings.Builder
	cmd := exec.CommandContext(ctx, self,
		"-dial", l.Addr().String(),
		"-timeout", time.Until(deadline).String())
	cmd.Stdout = os.Stdout
	cmd.Stderr = &complaint

	served := make(chan error, 1)
	go func() { served <- serve(l, deadline) }()
	clientErr := cmd.Run()
	l.Close() // in case the client never came: nobody else will
	if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	if clientErr != nil {
		return fmt.Errorf("the client: %w: %s", clientErr, strings.TrimSpace(complaint.String()))
	}
	return nil
}
