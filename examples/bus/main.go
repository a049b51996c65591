// Bus passes each message of its publishers to all of its subscribers.
//
//	$ bus serve @example-bus &
//	$ bus sub @example-bus               # in other terminals, as often as you like
//	$ date | bus pub @example-bus        # each line is a message
//
// An address is a path or "@name"; on Windows write @name.
//
// Every subscriber gets the messages in one order, and all of them from the moment on
// that it is told "subscribed". Each has a queue in the server. While a queue is full,
// the publishers wait, so that nobody loses anything; a subscriber that has taken
// nothing for longer than -patience is dropped, so that one that sleeps does not stop
// the others for good. It learns that from the end of its connection.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/interprocess-go/ipc"
)

// The first message of a client says what it is; the server answers with welcome.
const (
	subscriber = "subscribe"
	publisher  = "publish"
	welcome    = "welcome"
)

const (
	queueLength = 256              // messages that wait for one subscriber
	helloTime   = 10 * time.Second // in which a client has to say what it is
	messageMax  = 64 << 10         // the longest line of a publisher
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("bus: ")
	patience := flag.Duration("patience", 2*time.Second, "how long a subscriber may take nothing")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: bus [-patience TIME] serve|sub|pub ADDR")
		flag.PrintDefaults()
	}
	flag.Parse()
	addr, err := ipc.ParseAddr(flag.Arg(1))
	if flag.NArg() != 2 || err != nil {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	switch flag.Arg(0) {
	case "serve":
		err = serve(ctx, addr, *patience)
	case "sub":
		err = subscribe(ctx, addr, os.Stdout)
	case "pub":
		err = publish(ctx, addr, os.Stdin)
	default:
		flag.Usage()
		os.Exit(2)
	}
	if err != nil {
		log.Print(err)
		os.Exit(1)
	}
}

// ---------------------------------------------------------------------------
// The server

// A bus is the set of its subscribers.
type bus struct {
	patience time.Duration

	sending sync.Mutex // one message at a time goes into all queues, so that they agree on the order

	mu          sync.Mutex // guards subscribers
	subscribers map[*subscription]bool
}

// A subscription is one subscriber.
type subscription struct {
	conn  *ipc.MsgConn
	queue chan []byte
	gone  chan struct{} // closed when nothing is sent to it any more
}

// serve serves clients until ctx ends.
func serve(ctx context.Context, addr ipc.Addr, patience time.Duration) error {
	l, err := ipc.ListenMsg(addr)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	fmt.Println("serving at", l.Addr())
	b := &bus{patience: patience, subscribers: map[*subscription]bool{}}
	for conn, err := range l.Conns() {
		if err != nil {
			log.Print(err) // descriptors have run out; the client waits
			time.Sleep(10 * time.Millisecond)
			continue
		}
		go func() {
			defer conn.Close()
			if err := b.serve(conn); err != nil && err != io.EOF {
				log.Print(err)
			}
		}()
	}
	return nil
}

// serve serves one client until it leaves.
func (b *bus) serve(conn *ipc.MsgConn) error {
	conn.SetDeadline(time.Now().Add(helloTime))
	hello, err := conn.RecvAppend(nil)
	if err != nil {
		return err
	}
	switch string(hello) {
	case subscriber:
		return b.feed(conn)
	case publisher:
		return b.listen(conn)
	}
	return fmt.Errorf("a client says %.20q", hello)
}

// listen passes on what a publisher sends.
func (b *bus) listen(conn *ipc.MsgConn) error {
	if err := conn.Send([]byte(welcome)); err != nil {
		return err
	}
	conn.SetDeadline(time.Time{}) // it publishes when it has something to say
	for {
		msg, err := conn.RecvAppend(nil)
		if err != nil {
			return err
		}
		b.publish(msg)
	}
}

// publish puts the message into every queue.
func (b *bus) publish(msg []byte) {
	b.sending.Lock()
	defer b.sending.Unlock()
	b.mu.Lock()
	all := make([]*subscription, 0, len(b.subscribers))
	for s := range b.subscribers {
		all = append(all, s)
	}
	b.mu.Unlock()
	for _, s := range all {
		select {
		case s.queue <- msg:
		case <-s.gone: // a full queue empties, or its subscriber is dropped
		}
	}
}

// feed sends a subscriber what is in its queue, until it leaves or takes too long.
func (b *bus) feed(conn *ipc.MsgConn) error {
	s := &subscription{conn, make(chan []byte, queueLength), make(chan struct{})}
	defer close(s.gone)
	b.sending.Lock() // between two messages
	b.mu.Lock()
	b.subscribers[s] = true
	b.mu.Unlock()
	b.sending.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subscribers, s)
	}()
	if err := conn.Send([]byte(welcome)); err != nil {
		return err
	}
	left := s.watch()
	for {
		select {
		case <-left:
			return nil
		case msg := <-s.queue:
			conn.SetWriteDeadline(time.Now().Add(b.patience))
			if err := conn.Send(msg); errors.Is(err, os.ErrDeadlineExceeded) {
				return errors.New("a subscriber takes nothing, and is dropped")
			} else if err != nil {
				return nil // it left
			}
		}
	}
}

// watch returns a channel that is closed when the subscriber leaves. It has nothing
// to say, so the only news is its end.
func (s *subscription) watch() <-chan struct{} {
	left := make(chan struct{})
	s.conn.SetReadDeadline(time.Time{})
	go func() {
		defer close(left)
		s.conn.Recv(make([]byte, 1)) // ends with Close, too
	}()
	return left
}

// ---------------------------------------------------------------------------
// Clients

// join connects as that kind of client. The connection is closed when ctx ends.
func join(ctx context.Context, addr ipc.Addr, kind string) (conn *ipc.MsgConn, leave func(), err error) {
	if conn, err = (ipc.Dialer{}).DialMsg(ctx, addr); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	leave = func() { stop(); conn.Close() }
	if err = conn.Send([]byte(kind)); err == nil {
		var answer []byte
		if answer, err = conn.RecvAppend(nil); err == nil && string(answer) != welcome {
			err = fmt.Errorf("the server says %.20q", answer)
		}
	}
	if err != nil {
		leave()
		return nil, nil, err
	}
	return conn, leave, nil
}

// subscribe writes each message to w, as a line, until the server ends or ctx.
func subscribe(ctx context.Context, addr ipc.Addr, w io.Writer) error {
	conn, leave, err := join(ctx, addr, subscriber)
	if err != nil {
		return err
	}
	defer leave()
	log.Print("subscribed")
	var msg []byte
	for {
		msg, err = conn.RecvAppend(msg[:0])
		if ctx.Err() != nil || err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s\n", msg); err != nil {
			return err
		}
	}
}

// publish sends each line of r as a message.
func publish(ctx context.Context, addr ipc.Addr, r io.Reader) error {
	conn, leave, err := join(ctx, addr, publisher)
	if err != nil {
		return err
	}
	defer leave()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, messageMax)
	for lines.Scan() {
		if err := conn.Send(lines.Bytes()); err != nil {
			return err
		}
	}
	return lines.Err()
}
