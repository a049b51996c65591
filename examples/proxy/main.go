// Proxy takes connections in one place and passes them on to another: TCP to a
// local socket, a local socket to TCP, or either to its kind.
//
//	proxy -from tcp:127.0.0.1:8080 -to /run/app.sock    a browser talks to an application
//	proxy -from @db -to tcp:db.example:5432             an application talks to a database
//
// ADDR is tcp:HOST:PORT, a path or "@name"; the port 0 takes a free one, which the
// first line on the standard error tells. Then comes a line every second while
// there are connections, and one for each connection at its end. On Linux the
// bytes pass through the kernel alone: see splice(2).
//
// The end of one direction is passed on (half close), and the other one goes on.
// Pipes, the local sockets of Windows, have no half close; a connection to one
// ends when the other direction has been silent for a second or two after that.
// A connection that was reset is reset on the other side, if that is TCP.
//
// SIGINT or SIGTERM ends it gracefully: there are no new connections, and those
// that are there may finish, for a while. A second signal ends it at once.
//
// Local sockets admit this user and root, and are trusted if they are theirs; with
// -everyone, anyone's. A TCP port knows no users: whoever reaches it speaks to a
// local socket as the user of this program.
//
// The exit status is 0, 1 after a failure or if connections had to be cut off, or
// 2 after wrong usage. A connection that fails is told, and is no failure.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/interprocess-go/ipc"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("proxy: ")
	var p proxy
	flag.TextVar(&p.from, "from", place{}, "take connections at `ADDR`")
	flag.TextVar(&p.to, "to", place{}, "pass them on to `ADDR`")
	flag.DurationVar(&p.every, "every", time.Second, "how often to tell the state; 0 is never")
	flag.DurationVar(&p.grace, "grace", 10*time.Second, "how long connections may go on after a signal")
	everyone := flag.Bool("everyone", false, "let any user connect to the local socket, or be its server")
	flag.Parse()
	if none := (place{}); p.from == none || p.to == none || flag.NArg() > 0 || p.every < 0 || p.grace < 0 {
		log.Print("usage: proxy [-every TIME] [-grace TIME] [-everyone] -from ADDR -to ADDR")
		os.Exit(2)
	}
	if *everyone {
		p.access = ipc.Everyone
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // so that a second signal is not caught
	if err := p.run(ctx); err != nil {
		log.Fatal(err)
	}
}

// ---------------------------------------------------------------------------
// Places

// A place is where connections come from or go to.
type place struct {
	tcp   string // HOST:PORT; if empty:
	local ipc.Addr
}

func (p place) String() string {
	if p.tcp != "" {
		return "tcp:" + p.tcp
	}
	return p.local.String()
}

func (p place) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

func (p *place) UnmarshalText(text []byte) (err error) {
	*p = place{}
	var ok bool
	if p.tcp, ok = strings.CutPrefix(string(text), "tcp:"); ok {
		_, _, err = net.SplitHostPort(p.tcp)
		return err
	}
	p.tcp = ""
	p.local, err = ipc.ParseAddr(string(text))
	return err
}

// A stream is a *net.TCPConn or a *ipc.Conn.
type stream interface {
	net.Conn
	CloseWrite() error
}

// listen returns a listener at the place, whose connections are streams, and the
// place with its port.
func (p place) listen(access ipc.Access) (net.Listener, place, error) {
	if p.tcp == "" {
		l, err := ipc.ListenConfig{Access: access}.Listen(p.local)
		return l, p, err
	}
	l, err := net.Listen("tcp", p.tcp)
	if err == nil {
		p.tcp = l.Addr().String()
	}
	return l, p, err
}

func (p place) dial(ctx context.Context, access ipc.Access) (stream, error) {
	if p.tcp == "" {
		return ipc.Dialer{Access: access}.DialContext(ctx, p.local)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", p.tcp)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// who says who is at the other end.
func who(s stream) string {
	if conn, ok := s.(*ipc.Conn); ok {
		if peer, err := conn.Peer(); err == nil {
			return peer.String()
		}
		return "somebody"
	}
	return s.RemoteAddr().String()
}

// reset ends the connection so that the peer does not take it for a good end,
// where there is such a thing.
func reset(s stream) {
	if conn, ok := s.(*net.TCPConn); ok {
		conn.SetLinger(0)
	}
	s.Close()
}

// ---------------------------------------------------------------------------
// Passing on

// dialTime is in which the server has to take a connection.
const dialTime = 10 * time.Second

type proxy struct {
	from, to     place
	access       ipc.Access
	every, grace time.Duration

	opened, closed atomic.Int64 // connections so far
	there, back    atomic.Int64 // bytes so far, from client to server and back
}

// run passes connections on until ctx ends.
func (p *proxy) run(ctx context.Context) error {
	l, from, err := p.from.listen(p.access)
	if err != nil {
		return err
	}
	log.Printf("from %v to %v", from, p.to)
	closed := make(chan error, 1)
	context.AfterFunc(ctx, func() { closed <- l.Close() })
	told := p.tellState()
	defer told()

	cut, cutOff := context.WithCancel(context.Background())
	defer cutOff()
	var relays sync.WaitGroup
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			log.Print(err) // descriptors have run out; the client waits
			time.Sleep(10 * time.Millisecond)
			continue
		}
		number := p.opened.Add(1)
		relays.Go(func() {
			defer p.closed.Add(1)
			log.Printf("connection %d: %s", number, p.relay(cut, conn.(stream)))
		})
	}
	if err := <-closed; err != nil {
		return err
	}
	if open := p.opened.Load() - p.closed.Load(); open > 0 {
		log.Printf("stopping; %d open, which may finish within %v", open, p.grace)
	}
	tooLong := time.AfterFunc(p.grace, cutOff)
	relays.Wait()
	if !tooLong.Stop() {
		return errors.New("connections were cut off")
	}
	return nil
}

// relay connects the client to the server until both directions have ended, or
// cut does. It returns what is to be told of it.
func (p *proxy) relay(cut context.Context, client stream) (report string) {
	begin := time.Now()
	defer client.Close()
	report = who(client) + ": "

	ctx, cancel := context.WithTimeout(cut, dialTime)
	server, err := p.to.dial(ctx, p.access)
	cancel()
	if err != nil {
		reset(client)
		return report + err.Error()
	}
	defer server.Close()
	stop := context.AfterFunc(cut, func() {
		reset(client)
		reset(server)
	})
	defer stop()

	tick := min(cmp.Or(p.every, time.Second), time.Second)
	there := direction{dst: server, src: client, tick: tick, total: &p.there}
	back := direction{dst: client, src: server, tick: tick, total: &p.back}
	var both sync.WaitGroup
	both.Go(func() { there.pass(&back) })
	both.Go(func() { back.pass(&there) })
	both.Wait()

	report += fmt.Sprintf("%d bytes there, %d back, %v", there.n, back.n, time.Since(begin).Round(time.Millisecond))
	if cut.Err() != nil {
		return report + ": cut off"
	}
	for _, err := range []error{there.err, back.err} {
		if err != nil && !errors.Is(err, net.ErrClosed) { // which is the other one's doing
			report += ": " + err.Error()
		}
	}
	return report
}

// A direction is one half of a connection.
type direction struct {
	dst, src stream
	tick     time.Duration // from one count to the next
	total    *atomic.Int64 // of all connections

	n         int64
	err       error
	impatient atomic.Bool // the other direction has ended, and could not say so
}

// pass copies until src ends, and passes the end on.
func (d *direction) pass(other *direction) {
	d.err = d.copy()
	switch {
	case errors.Is(d.err, syscall.EPIPE):
		// dst takes no more, but may have something to say yet. When it has, both
		// are closed.
	case d.err != nil:
		// It did not end but break, and dst must not take that for the end.
		reset(d.dst)
		reset(d.src)
	case errors.Is(d.dst.CloseWrite(), errors.ErrUnsupported):
		other.impatient.Store(true)
	}
	// Any other error of CloseWrite means that dst is gone, as the other direction
	// finds out.
}

// copy copies until src ends. To count what has passed it is interrupted by a
// deadline now and then, at which nothing is lost: counting each read instead
// would take every byte through this process.
func (d *direction) copy() error {
	for silent := 0; ; {
		d.src.SetReadDeadline(time.Now().Add(d.tick))
		n, err := copyUntil(d.dst, d.src)
		d.n += n
		d.total.Add(n)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		if n > 0 || !d.impatient.Load() {
			silent = 0
		} else if silent++; time.Duration(silent)*d.tick > time.Second {
			return nil
		}
	}
}

// copyUntil copies until src ends or its deadline has come, in the kernel if it
// can.
func copyUntil(dst, src stream) (int64, error) {
	if conn, ok := dst.(*ipc.Conn); ok {
		return conn.ReadFrom(src) // io.Copy prefers the WriteTo of a TCP connection, which does not know how
	}
	return io.Copy(dst, src)
}

// ---------------------------------------------------------------------------
// Telling

// tellState tells the state now and then, until the returned function is called.
func (p *proxy) tellState() (stop func()) {
	if p.every == 0 {
		return func() {}
	}
	ticker := time.NewTicker(p.every)
	done := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		var there, back int64
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
			}
			nowThere, nowBack := p.there.Load(), p.back.Load()
			if open := p.opened.Load() - p.closed.Load(); open > 0 {
				log.Printf("%d open; there %s, %s/s; back %s, %s/s", open,
					size(nowThere), p.rate(nowThere-there), size(nowBack), p.rate(nowBack-back))
			}
			there, back = nowThere, nowBack
		}
	})
	return func() {
		ticker.Stop()
		close(done)
		telling.Wait()
	}
}

// rate is what a number of bytes from one line to the next is in a second.
func (p *proxy) rate(n int64) string { return size(int64(float64(n) / p.every.Seconds())) }

// size is a number of bytes for people.
func size(n int64) string {
	v, unit := float64(n), "B"
	for _, larger := range []string{"kB", "MB", "GB", "TB"} {
		if v < 999.5 {
			break
		}
		v, unit = v/1000, larger
	}
	return fmt.Sprintf("%.3g %s", v, unit)
}
