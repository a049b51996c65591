// Ipccat is a netcat for local sockets: it passes its standard input on to the
// other end of a connection, and what comes from there to its standard output.
//
//	ipccat [flags] ADDR          connect to the server at ADDR
//	ipccat -l [flags] ADDR       be a server at ADDR for one client
//	ipccat -l -k [flags] ADDR    be a server at ADDR that collects from any number of clients
//
// ADDR is a path or "@name"; ipc.Path and ipc.Name say what they stand for on
// each system. Flags go before it; ipccat -h lists them.
//
// # When it ends
//
// The end of the input is passed on (half close), and ipccat goes on receiving.
// It ends when both directions have ended, or when the peer is gone altogether,
// even if the input goes on. The peer's half close alone does not end it: an
// upload to a server that has nothing to say is complete. A server that only
// receives should therefore have no input: ipccat -l ADDR </dev/null >file.
//
// Pipes, the local sockets of Windows, have no half close. The peer cannot be
// told of the end of the input there but by closing the connection, which ends
// both directions. So ipccat closes it when the input has ended and the peer has
// been silent for a second; -q sets another time, and sets one on the systems
// that have a half close too. An ipccat whose input was empty from the start
// has only come to receive, and waits for the peer to close.
//
// # Serving many clients
//
// With -k clients are served at the same time, so that an idle one does not
// hold up the others. They can only send: an input that is to be shared among
// them makes no sense, so it is not read. What they send is put out line by
// line as it comes, and the lines of two clients never mix; longer lines than
// 64 KiB come out in pieces. SIGINT or SIGTERM ends such a server.
//
// # Exit status
//
//	0  done; a server with -k: ended by SIGINT or SIGTERM
//	1  failed, also when the peer left before it had read everything
//	2  wrong usage
//
// Errors are told on the standard error, each in one line.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/interprocess-go/ipc"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) (status int) {
	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		complain(fmt.Errorf("%w (ipccat -h explains)", err))
		return 2
	}

	// A standard output that nobody reads any more is an error like others,
	// after which a server still has its socket file to remove.
	signal.Ignore(syscall.SIGPIPE)

	switch {
	case o.keep:
		err = o.collect()
	case o.listen:
		err = o.serveOne()
	default:
		err = o.connect()
	}
	if err != nil {
		complain(err)
		return 1
	}
	return 0
}

// complain tells an error in one line, also if the address holds a line break.
func complain(err error) {
	fmt.Fprintln(os.Stderr, "ipccat:", strings.ReplaceAll(err.Error(), "\n", `\n`))
}

// ---------------------------------------------------------------------------
// The command line

type options struct {
	addr     ipc.Addr
	listen   bool
	keep     bool
	wait     bool
	everyone bool
	peer     bool
	timeout  time.Duration
	quiet    time.Duration
}

func parse(args []string) (*options, error) {
	o := new(options)
	flags := flag.NewFlagSet("ipccat", flag.ContinueOnError)
	flags.BoolVar(&o.listen, "l", false, "listen: be the server")
	flags.BoolVar(&o.keep, "k", false, "with -l: keep serving, and only receive")
	flags.BoolVar(&o.wait, "wait", false, "keep trying until a server listens")
	flags.BoolVar(&o.everyone, "everyone", false, "let any user connect, or be the server, not this user alone")
	flags.BoolVar(&o.peer, "peer", false, "say on the standard error who is at the other end")
	flags.DurationVar(&o.timeout, "timeout", 0, "how long to wait for a connection; 0 is without limit")
	flags.DurationVar(&o.quiet, "q", 0, "quit when the input has ended and the peer has been silent for so long")

	flags.SetOutput(io.Discard) // an error of usage is one line as well
	flags.Usage = func() {}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(os.Stdout)
		fmt.Println("usage: ipccat [-l [-k]] [flags] ADDR\n\nADDR is a path or @name.")
		flags.PrintDefaults()
		return nil, err
	} else if err != nil {
		return nil, err
	}

	switch {
	case flags.NArg() == 0:
		return nil, errors.New("no address is given")
	case flags.NArg() > 1:
		return nil, fmt.Errorf("unexpected argument %q: flags go before the one address", flags.Arg(1))
	case o.keep && !o.listen:
		return nil, errors.New("-k needs -l")
	case o.wait && o.listen:
		return nil, errors.New("-wait is not for a server")
	case o.keep && (o.timeout != 0 || o.quiet != 0):
		return nil, errors.New("a server with -k has no use for -timeout and -q")
	case o.timeout < 0 || o.quiet < 0:
		return nil, errors.New("a duration is negative")
	}
	var err error
	o.addr, err = ipc.ParseAddr(flags.Arg(0))
	return o, err
}

func (o *options) access() ipc.Access {
	if o.everyone {
		return ipc.Everyone
	}
	return ipc.OwnerOnly
}

// announce says who the peer is, if that was asked for.
func (o *options) announce(role string, conn *ipc.Conn) {
	if !o.peer {
		return
	}
	if peer, err := conn.Peer(); err != nil {
		complain(err)
	} else {
		fmt.Fprintf(os.Stderr, "ipccat: the %s is %v\n", role, peer)
	}
}

// ---------------------------------------------------------------------------
// Client and servers

func (o *options) connect() error {
	d := ipc.Dialer{Access: o.access(), Wait: o.wait, Timeout: o.timeout}
	conn, err := d.Dial(o.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	o.announce("server", conn)
	return talk(conn, o.quiet)
}

// open listens at the address. When ctx ends, Accept fails with
// os.ErrDeadlineExceeded, and the caller closes the listener: were it closed
// from here, the process might end before the socket file is removed.
func (o *options) open(ctx context.Context) (*ipc.Listener, error) {
	l, err := ipc.ListenConfig{Access: o.access()}.Listen(o.addr)
	if err != nil {
		return nil, err
	}
	if o.timeout > 0 {
		l.SetDeadline(time.Now().Add(o.timeout))
	}
	context.AfterFunc(ctx, func() { l.SetDeadline(longAgo) })
	return l, nil
}

// longAgo is the deadline that ends an Accept at once.
var longAgo = time.Unix(1, 0)

// untilSignal returns a context that a signal ends.
func untilSignal() (ctx context.Context, stop context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}

// serveOne serves the first client.
func (o *options) serveOne() error {
	ctx, stop := untilSignal()
	defer stop()
	l, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	conn, err := l.AcceptConn()
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err != nil {
		return err
	}
	defer conn.Close()

	// A second client should be refused, not wait for nothing. With the
	// listener gone a signal has nothing left to clean up, and may end the
	// process.
	if err := l.Close(); err != nil {
		return err
	}
	stop()

	o.announce("client", conn)
	return talk(conn, o.quiet)
}

// collect puts out what clients send, until a signal or a failing output ends it.
func (o *options) collect() error {
	ctx, stop := untilSignal()
	defer stop()
	l, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()

	failed := make(chan error, 1) // the first error of the output
	for conn, err := range l.Conns() {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			complain(err)
			time.Sleep(100 * time.Millisecond) // descriptors have run out; clients that leave free some
			continue
		}
		go func() {
			defer conn.Close()
			o.announce("client", conn)
			readErr, writeErr := copyLines(os.Stdout, conn)
			if readErr != nil {
				complain(readErr)
			}
			if writeErr != nil {
				select {
				case failed <- writeErr:
					l.SetDeadline(longAgo)
				default:
				}
			}
		}()
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// copyLines copies from r until it ends, each line by one Write.
func copyLines(w io.Writer, r io.Reader) (readErr, writeErr error) {
	lines := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			if _, err := w.Write(line); err != nil {
				return nil, err
			}
		}
		switch err {
		case nil, bufio.ErrBufferFull:
		case io.EOF:
			return nil, nil
		default:
			return err, nil
		}
	}
}

// ---------------------------------------------------------------------------
// The conversation

// talk passes the standard input on to the peer, and what the peer sends to the
// standard output, until both have ended or the peer is gone.
func talk(conn *ipc.Conn, quiet time.Duration) error {
	c := &conversation{conn: conn, quiet: quiet}
	sent := make(chan error, 1)
	go func() { sent <- c.send(os.Stdin) }()

	if err := c.receive(os.Stdout); err != nil {
		return err
	}
	// What could not be sent is told only now: a peer that does not want the
	// rest of a request may well have answered it.
	for gone := false; !gone; gone = peerGone(conn) {
		select {
		case err := <-sent:
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
	select {
	case err := <-sent:
		return err
	default: // the input goes on, and nobody is there to send it to
		return nil
	}
}

type conversation struct {
	conn      *ipc.Conn
	quiet     time.Duration // -q
	impatient atomic.Bool   // the input has ended, and the peer's silence counts
}

// defaultQuiet is how long the peer may be silent where it cannot be told that
// the input has ended. It should be long enough for an answer that has to be
// computed, and short enough for a person who waits for the prompt.
const defaultQuiet = time.Second

// send copies from the input to the peer and passes its end on.
func (c *conversation) send(in io.Reader) error {
	n, err := io.Copy(c.conn, in)
	c.conn.CloseWrite() // fails where there is none
	if c.quiet > 0 || !hasHalfClose(c.conn) && n > 0 {
		c.impatient.Store(true)
		c.hurry()
	}
	return err
}

// receive copies from the peer to the output until the peer's data ends, or its
// silence has lasted too long.
func (c *conversation) receive(out io.Writer) error {
	if c.quiet > 0 || !hasHalfClose(c.conn) {
		out = patientWriter{out, c}
	}
	_, err := io.Copy(out, c.conn)
	if c.impatient.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// hurry gives the peer a new period in which to say something.
func (c *conversation) hurry() {
	c.conn.SetReadDeadline(time.Now().Add(cmp.Or(c.quiet, defaultQuiet)))
}

// A patientWriter notes with each Write that the peer was not silent.
type patientWriter struct {
	io.Writer
	c *conversation
}

func (w patientWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if w.c.impatient.Load() {
		w.c.hurry()
	}
	return n, err
}

// hasHalfClose reports whether one direction of the connection can end before
// the other. Sockets can, pipes cannot.
func hasHalfClose(conn *ipc.Conn) bool { return conn.RemoteAddr().Network() != "pipe" }

// peerGone reports whether the peer, whose data has ended, has closed the
// connection and not just its half of it. A write would tell, and one of no
// bytes does no harm. Conn.Write makes no system call for that; a File does.
func peerGone(conn *ipc.Conn) bool {
	if !hasHalfClose(conn) {
		return true
	}
	f, err := conn.File()
	if err != nil {
		return true
	}
	defer f.Close()
	_, err = f.Write(nil)
	return err != nil
}
