//go:build unix || windows

package kit

import (
	"errors"
	"io"
	"net"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// Must fails the test if there is an error.
func Must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Matches fails the test unless err matches every target.
func Matches(t *testing.T, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Fatalf("error is %v, want one that matches %v", err, target)
		}
	}
}

// TimedOut fails the test unless err is what a passed deadline gives.
func TimedOut(t *testing.T, err error) {
	t.Helper()
	Matches(t, err, os.ErrDeadlineExceeded)
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("%v is not a net.Error that says Timeout", err)
	}
}

// Listen returns a listener at the address.
func Listen(t *testing.T, addr ipc.Addr) *ipc.Listener {
	t.Helper()
	return ListenWith(t, ipc.ListenConfig{}, addr)
}

// ListenWith is Listen with a configuration.
func ListenWith(t *testing.T, lc ipc.ListenConfig, addr ipc.Addr) *ipc.Listener {
	t.Helper()
	l, err := lc.Listen(addr)
	return Kept(t, l, err)
}

// Dial returns a connection to the address.
func Dial(t *testing.T, addr net.Addr) *ipc.Conn {
	t.Helper()
	c, err := ipc.Dial(addr.(ipc.Addr))
	return Kept(t, c, err)
}

// Accept returns the next connection to the listener.
func Accept(t *testing.T, l *ipc.Listener) *ipc.Conn {
	t.Helper()
	c, err := l.AcceptConn()
	return Kept(t, c, err)
}

// Connect returns both ends of a new connection to the listener.
func Connect(t *testing.T, l *ipc.Listener) (client, server *ipc.Conn) {
	t.Helper()
	return Dial(t, l.Addr()), Accept(t, l)
}

// Pair returns two ends that are connected.
func Pair(t *testing.T) (a, b *ipc.Conn) {
	t.Helper()
	a, b, err := ipc.Pair()
	return Kept(t, a, err), Kept(t, b, err)
}

// Send writes the text.
func Send(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if n, err := io.WriteString(w, text); err != nil || n != len(text) {
		t.Fatalf("write: %d, %v", n, err)
	}
}

// Expect reads the text; from an end of messages it is one message.
func Expect(t *testing.T, r io.Reader, text string) {
	t.Helper()
	read, got := io.ReadFull, make([]byte, len(text))
	if _, ok := r.(Messenger); ok {
		read, got = io.Reader.Read, make([]byte, len(text)+10) // with room for more
	}
	if n, err := read(r, got); err != nil || string(got[:n]) != text {
		t.Fatalf("read %q, %v; want %q", got[:n], err, text)
	}
}

// ExpectEOF fails the test unless the end says io.EOF.
func ExpectEOF(t *testing.T, r io.Reader) {
	t.Helper()
	if m, ok := r.(Messenger); ok {
		ExpectMsgEOF(t, m)
	}
	if n, err := r.Read(make([]byte, 16)); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v; want io.EOF itself", n, err)
	}
}

// Talk proves that two ends are connected to each other.
func Talk(t *testing.T, a, b io.ReadWriter) {
	t.Helper()
	Send(t, a, "ping")
	Expect(t, b, "ping")
	Send(t, b, "pong")
	Expect(t, a, "pong")
}

// TalkToEcho proves that an echo is at the other end.
func TalkToEcho(t *testing.T, c io.ReadWriter) {
	t.Helper()
	Send(t, c, "is there an echo?")
	Expect(t, c, "is there an echo?")
}

// Serves proves that the listener is the one that clients of addr reach.
func Serves(t *testing.T, l *ipc.Listener, addr ipc.Addr) {
	t.Helper()
	client := Dial(t, addr)
	server := Accept(t, l)
	Talk(t, client, server)
	Must(t, client.Close())
	Must(t, server.Close())
}

// ServeEach serves each client whom the listener admits until that is closed.
func ServeEach(l *ipc.Listener, serve func(c *ipc.Conn) error) <-chan error {
	return Begin(func() error {
		for c, err := range l.Conns() {
			if err == nil {
				err = serve(c)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// WelcomeAll greets each client of the listener, and closes its connection.
func WelcomeAll(l *ipc.Listener) <-chan error {
	return ServeEach(l, func(c *ipc.Conn) error {
		_, err := io.WriteString(c, "welcome")
		return errors.Join(err, c.Close())
	})
}

// Fill connects clients until the listener has no room for one more.
func Fill(t *testing.T, addr ipc.Addr) (waiting []*ipc.Conn) {
	t.Helper()
	for refused := 0; refused < 2; { // one could be the fault of a busy machine
		c, err := ipc.Dialer{Timeout: 50 * time.Millisecond}.Dial(addr)
		if err != nil {
			TimedOut(t, err)
			refused++
			continue
		}
		t.Cleanup(func() { c.Close() })
		if waiting = append(waiting, c); len(waiting) > 100 {
			t.Fatal("100 clients have room in a backlog of 1")
		}
	}
	return waiting
}

// Pattern returns n bytes that tell where they belong.
func Pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16)
	}
	return p
}

// A BadAddr is an address that no call may accept, and words that the error has.
type BadAddr struct {
	Addr  ipc.Addr
	Is    error
	Words []string
}

// BadAddrs are bad everywhere; a system's test file may add its own.
var BadAddrs = []BadAddr{
	{Addr: ipc.Path(""), Words: []string{"empty"}},
	{Addr: ipc.Name(""), Words: []string{"empty"}},
	{Addr: ipc.Path("a\x00b"), Words: []string{"NUL", "1"}},
	{Addr: ipc.Name(strings.Repeat("n", 5000)), Is: ipc.ErrNameTooLong, Words: []string{"50", "limit"}},
}

// Refused checks the error of a call that was given a bad address: it says what
// is wrong and with what, and no system call was needed to find out.
func (bad BadAddr) Refused(t *testing.T, op string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s accepts %.40q", op, bad.Addr)
		return
	}
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != op || oe.Net != bad.Addr.Network() || oe.Addr != bad.Addr {
		t.Errorf("%s of %.40q: %#v is not a *net.OpError about it", op, bad.Addr, err)
	}
	if bad.Is != nil && !errors.Is(err, bad.Is) {
		t.Errorf("%s of %.40q: %v does not match %v", op, bad.Addr, err, bad.Is)
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		t.Errorf("%s of %.40q: %v comes from a system call", op, bad.Addr, err)
	}
	for _, word := range append(bad.Words, bad.Addr.String()) {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s of %.40q: %q does not say %q", op, bad.Addr, err, word)
		}
	}
}

// Me returns the identity of this process's user as os/user has it.
func Me(t *testing.T) string {
	t.Helper()
	u, err := user.Current()
	Must(t, err)
	return u.Uid
}

// PidsAreTold reports whether the system says the pid of a peer.
var PidsAreTold = slices.Contains([]string{
	"linux", "android", "windows", "darwin", "freebsd", "netbsd", "openbsd", "illumos"}, runtime.GOOS)

// IsProcess checks that p tells of the process of that number, run by this user.
func IsProcess(t *testing.T, p ipc.Peer, pid int) {
	t.Helper()
	got, ok := p.PID()
	if ok && got != pid || ok != PidsAreTold {
		t.Errorf("PID is %d, %v; want %d, %v", got, ok, pid, PidsAreTold)
	}
	if ok && !strings.Contains(p.String(), "pid "+strconv.Itoa(pid)) {
		t.Errorf("%q does not tell the pid", p)
	}
	if got, want := p.UserID(), Me(t); got != want {
		t.Errorf("UserID is %q, want %q", got, want)
	}
	if !strings.Contains(p.String(), p.UserID()) {
		t.Errorf("%q does not tell the user", p)
	}
	uid, ok := p.UID()
	if want := os.Getuid(); ok && uid != want || ok != (want >= 0) {
		t.Errorf("UID is %d, %v; want %d", uid, ok, want)
	}
	gid, ok := p.GID()
	if want := os.Getgid(); ok && gid != want || ok != (want >= 0) {
		t.Errorf("GID is %d, %v; want %d", gid, ok, want)
	}
}

// PeerOf returns the peer of the connection.
func PeerOf(t *testing.T, c interface{ Peer() (ipc.Peer, error) }) ipc.Peer {
	t.Helper()
	p, err := c.Peer()
	Must(t, err)
	return p
}

// SaysClosed fails the test unless each call does.
func SaysClosed(t *testing.T, calls map[string]func() error) {
	t.Helper()
	for what, call := range calls {
		if err := call(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		} else if oe := (*net.OpError)(nil); !strings.Contains(what, "Control") && !errors.As(err, &oe) {
			t.Errorf("%s after Close: %#v is not a *net.OpError", what, err)
		}
	}
}

// UntilClosed makes each call over and over in a goroutine of its own, until it
// says that the end is closed; the function that it returns waits for all of them.
func UntilClosed(t *testing.T, calls ...func() error) (ended func()) {
	var busy sync.WaitGroup
	for _, call := range calls {
		busy.Go(func() {
			for {
				if err := call(); errors.Is(err, net.ErrClosed) {
					return
				} else if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	return busy.Wait
}

// Trickle puts so many things into an end, which it closes then, in a goroutine that
// lets the other end wait now and then.
func Trickle(things int, w io.Closer, put func(i int) error) <-chan error {
	return Begin(func() error {
		for i := range things {
			if err := put(i); err != nil {
				return err
			}
			if i%16 == 0 {
				time.Sleep(50 * time.Microsecond)
			}
		}
		return w.Close()
	})
}

// InAHurry takes what there is from an end until its other end is closed, with
// deadlines that pass all the time.
func InAHurry(t *testing.T, r interface{ SetReadDeadline(time.Time) error }, take func() error) {
	t.Helper()
	for timeouts := 0; ; {
		Must(t, r.SetReadDeadline(time.Now().Add(time.Duration(timeouts%7)*20*time.Microsecond)))
		err := take()
		if err == io.EOF {
			if timeouts == 0 {
				t.Error("nothing timed out: nothing was tested")
			}
			return
		}
		if err != nil {
			TimedOut(t, err)
			timeouts++
		}
	}
}

// AllocatesNothing fails the test if a thing done many times allocates each time that it
// is tried: the runtime, and waits on a busy machine, may do so now and then.
func AllocatesNothing(t *testing.T, what string, do func() error) {
	t.Helper()
	if UnderRace() {
		t.Skip("the race detector allocates")
	}
	var n float64
	for range 5 {
		n = testing.AllocsPerRun(500, func() {
			if err := do(); err != nil {
				t.Error(err)
			}
		})
		if n == 0 || t.Failed() {
			return
		}
	}
	t.Errorf("%s: %v allocations", what, n)
}

// IsOpError fails the test unless err is a *net.OpError of that operation.
func IsOpError(t *testing.T, err error, op string) {
	t.Helper()
	if oe := (*net.OpError)(nil); !errors.As(err, &oe) || oe.Op != op {
		t.Fatalf("%#v (%v) is not a *net.OpError of %q", err, err, op)
	}
}

// Pipe returns the ends of a pipe.
func Pipe(t *testing.T) (*ipc.PipeReader, *ipc.PipeWriter) {
	t.Helper()
	r, w, err := ipc.Pipe()
	return Kept(t, r, err), Kept(t, w, err)
}

// IsPipeError checks that err is the *net.OpError of that operation on a pipe.
func IsPipeError(t *testing.T, err error, op string) {
	t.Helper()
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != op || oe.Net != "pipe" {
		t.Errorf("%#v is not a *net.OpError of %q on a pipe", err, op)
	}
}

// OsPipe returns the ends of a pipe of package os.
func OsPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	return Kept(t, r, err), Kept(t, w, err)
}
