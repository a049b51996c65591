//go:build unix || windows

// Stress: everything at once, at random, for as long as one likes.
//
//	go test -run Stress ./tests                                    rounds for a few seconds
//	go test -run Stress -timeout 0 ./tests -ipc.stress=1h          rounds for an hour
//	go test -run Stress/Closes ./tests -ipc.seed=42 -ipc.stress=5s a scenario, from a seed on
//
// A round that fails is named by its scenario and its seed, which makes the same
// choices again, though not the same timing. Each is a story: it leaves no
// goroutine, descriptor or file behind.
package tests

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

var (
	stressTime = flag.Duration("ipc.stress", 3*time.Second, "how long TestStress goes on; 0, or -short, is one round of each scenario")
	stressSeed = flag.Uint64("ipc.seed", 0, "the seed of the first round of TestStress; 0 is one by the clock")
)

// A scenario is played in rounds, each with dice of its own.
type scenario struct {
	name string
	play func(t *testing.T, d dice)
}

// scenarios are those of every system; a system's test file may add its own.
var scenarios = []scenario{
	{"Streams", stressStreams},
	{"Messages", stressMessages},
	{"Pipes", stressPipes},
	{"Closes", stressCloses},
	{"Dials", stressDials},
	{"Takeovers", stressTakeovers},
	{"Files", stressFiles},
	{"KilledServers", stressKilledServers},
	{"KilledClients", stressKilledClients},
}

func init() {
	kit.Roles["stress serve"] = childServesStress
	kit.Roles["stress dial"] = childDialsStress
}

func TestStress(t *testing.T) {
	if kit.UnderEmulation() {
		t.Skip("how well the emulator holds out is not the question")
	}
	seed := *stressSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	end := time.Now().Add(*stressTime)
	if testing.Short() {
		end = time.Time{}
	}
	if deadline, ok := t.Deadline(); ok && deadline.Before(end) {
		t.Fatalf("-ipc.stress=%v is more than the time limit of the tests: add -timeout 0", *stressTime)
	}
	for first := true; first || time.Now().Before(end) && !t.Failed(); first = false {
		played := false // or -run chose none of them
		for _, s := range scenarios {
			t.Run(s.name+"/"+strconv.FormatUint(seed, 10), func(t *testing.T) {
				played = true
				kit.Story(t)
				s.play(t, newDice(seed))
				if t.Failed() {
					t.Logf("-ipc.seed=%d plays this round again", seed)
				}
			})
		}
		if !played {
			return
		}
		seed++
	}
}

// some is n, or less where it should not take long.
func some(n int) int {
	if testing.Short() {
		return max(n/4, 1)
	}
	return n
}

// ---------------------------------------------------------------------------
// Chance

// Dice make the choices of one goroutine.
type dice struct{ *rand.Rand }

func newDice(seed uint64) dice { return dice{rand.New(rand.NewPCG(seed, 0))} }

// more returns dice for another goroutine.
func (d dice) more() dice { return dice{rand.New(rand.NewPCG(d.Uint64(), d.Uint64()))} }

// one reports true once in n times.
func (d dice) one(n int) bool { return d.IntN(n) == 0 }

// upTo returns 1 to n, of every order of magnitude as often.
func (d dice) upTo(n int) int {
	magnitude := 1 << d.IntN(20)
	return 1 + d.IntN(min(magnitude, n))
}

// micros returns up to n microseconds.
func (d dice) micros(n int) time.Duration {
	return time.Duration(d.IntN(n*1000)) * time.Nanosecond
}

// addr returns an address of either kind.
func (d dice) addr(t *testing.T) ipc.Addr {
	if d.one(2) {
		return kit.PathAddr(t)
	}
	return kit.NameAddr(t)
}

// dawdle sleeps or yields, now and then.
func (d dice) dawdle() {
	switch {
	case d.one(32):
		time.Sleep(d.micros(100))
	case d.one(8):
		runtime.Gosched()
	}
}

// A gang is goroutines that all have to end well.
type gang struct {
	t     *testing.T
	doing []<-chan error
}

func (g *gang) begin(f func() error) { g.doing = append(g.doing, kit.Begin(f)) }

func (g *gang) end() {
	g.t.Helper()
	for _, done := range g.doing {
		if err := <-done; err != nil {
			g.t.Error(err)
		}
	}
	g.doing = nil
}

// conversations has so many clients dial, each as often as that, and talk.
func conversations[C any](g *gang, clients, each int, d dice, dial func(d dice) (C, error), talk func(c C, d dice) (sent, received error)) {
	for range clients {
		d := d.more()
		g.begin(func() error {
			for range each {
				c, err := dial(d)
				if err != nil {
					return err
				}
				if err := errors.Join(talk(c, d)); err != nil {
					return fmt.Errorf("a client: %w", err)
				}
			}
			return nil
		})
	}
}

// answers accepts so many clients, and talks with all of them at once.
func answers[C any](g *gang, l interface{ SetDeadline(time.Time) error }, clients int, d dice, accept func() (C, error), talk func(c C, d dice) (sent, received error)) {
	for range clients {
		kit.Must(g.t, l.SetDeadline(time.Now().Add(kit.Soon)))
		c, err := accept()
		if err != nil {
			g.t.Error(err)
			break
		}
		d := d.more()
		g.begin(func() error {
			if err := errors.Join(talk(c, d)); err != nil {
				return fmt.Errorf("the server: %w", err)
			}
			return nil
		})
	}
}

// ---------------------------------------------------------------------------
// Sequences
//
// A sequence is a row of bytes without end, of which eight in a row tell their
// place and the sequence. What is lost, repeated, put elsewhere or of somebody
// else is none.

type sequence uint64

func (s sequence) fill(p []byte, at int) {
	for i := range p {
		k := uint64(at + i)
		word := (uint64(s) + k>>3) * 0x9e3779b97f4a7c15
		word ^= word >> 29
		p[i] = byte(word >> (8 * (k & 7)))
	}
}

// check returns an error unless the bytes are those of the sequence at the place.
func (s sequence) check(p []byte, at int) error {
	want := make([]byte, len(p))
	s.fill(want, at)
	if bytes.Equal(p, want) {
		return nil
	}
	i := 0
	for p[i] == want[i] {
		i++
	}
	return &garbled{fmt.Sprintf("sequence %x: of %d bytes from %d on, those from %d on are %x, not %x",
		uint64(s), len(p), at, at+i, p[i:min(len(p), i+16)], want[i:min(len(p), i+16)])}
}

// A garbled error is what no fault of a peer excuses.
type garbled struct{ what string }

func (e *garbled) Error() string { return e.what }

// send writes the first size bytes in pieces and by calls of all kinds, with
// deadlines that pass, and returns how many were written.
func (s sequence) send(w interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}, size int, d dice) (n int, err error) {
	for n < size {
		p := make([]byte, min(d.upTo(64<<10), size-n))
		s.fill(p, n)
		// A write that is cut off on Windows does not tell how far it came.
		hurry := d.one(4) && runtime.GOOS != "windows"
		if hurry {
			if err := w.SetWriteDeadline(time.Now().Add(d.micros(300))); err != nil {
				return n, err
			}
		}
		m, err := writeSomehow(w, p, d)
		if m < 0 || m > len(p) || err == nil && m < len(p) {
			return n, &garbled{fmt.Sprintf("%d bytes of %d are written, and the error is %v", m, len(p), err)}
		}
		n += m
		if hurry && (err == nil || errors.Is(err, os.ErrDeadlineExceeded)) {
			err = w.SetWriteDeadline(time.Time{})
		}
		if err != nil {
			return n, err
		}
		d.dawdle()
	}
	return n, nil
}

func writeSomehow(w io.Writer, p []byte, d dice) (int, error) {
	if c, ok := w.(*ipc.Conn); ok && d.one(6) {
		half := d.IntN(len(p) + 1)
		n, err := c.WriteBuffers(&net.Buffers{p[:half], nil, p[half:]})
		return int(n), err
	}
	if w, ok := w.(io.ReaderFrom); ok && d.one(6) {
		n, err := w.ReadFrom(bytes.NewReader(p))
		return int(n), err
	}
	return w.Write(p)
}

// recv reads and checks the sequence by calls of all kinds, with deadlines that
// pass, and returns how many bytes came: up to limit of them, or if that is
// negative all until the end.
func (s sequence) recv(r interface {
	io.Reader
	SetReadDeadline(time.Time) error
}, limit int, d dice) (n int, err error) {
	buf := make([]byte, 64<<10)
	for limit < 0 || n < limit {
		p := buf[:d.upTo(len(buf))]
		if limit >= 0 {
			p = p[:min(len(p), limit-n)]
		}
		hurry := d.one(4)
		if hurry {
			if err := r.SetReadDeadline(time.Now().Add(d.micros(300))); err != nil {
				return n, err
			}
		}
		ended := false
		if w, ok := r.(io.WriterTo); ok && limit < 0 && d.one(16) {
			taste := &tasting{s, n}
			var m int64
			m, err = w.WriteTo(taste)
			if taste.at != n+int(m) {
				return n, &garbled{fmt.Sprintf("%d bytes are copied to a writer that gets %d", m, taste.at-n)}
			}
			n, ended = taste.at, err == nil
		} else {
			m := 0
			m, err = readSomehow(r, p, d)
			if e := s.check(p[:m], n); e != nil {
				return n, e
			}
			n += m
		}
		if hurry && (err == nil || errors.Is(err, os.ErrDeadlineExceeded)) {
			err = r.SetReadDeadline(time.Time{})
		}
		switch {
		case ended || err == io.EOF && limit < 0:
			return n, nil
		case err == io.EOF:
			return n, io.ErrUnexpectedEOF
		case err != nil:
			return n, err
		}
		d.dawdle()
	}
	return n, nil
}

func readSomehow(r io.Reader, p []byte, d dice) (int, error) {
	if c, ok := r.(*ipc.Conn); ok && d.one(4) {
		half := d.IntN(len(p) + 1)
		n, err := c.ReadBuffers([][]byte{p[:half], nil, p[half:]})
		return int(n), err
	}
	return r.Read(p)
}

// A tasting is a writer that checks what is written.
type tasting struct {
	sequence
	at int
}

func (w *tasting) Write(p []byte) (int, error) {
	if err := w.check(p, w.at); err != nil {
		return 0, err
	}
	w.at += len(p)
	return len(p), nil
}

// ---------------------------------------------------------------------------
// Conversations

// endless is the length of a conversation that something else ends.
const endless = 1 << 30

// halfCloses is whether an end can say that it has said all.
const halfCloses = runtime.GOOS != "windows"

// chat sends a sequence and at the same time receives that of the other end. It
// closes c.
func chat(c *ipc.Conn, dialed bool, size int, d dice) (sent, received error) {
	defer c.Close()
	switch d.IntN(3) {
	case 0:
		c.SetSpin(-1)
	case 1:
		c.SetSpin(d.micros(100))
	}
	return introduced(c, dialed, size, d, func(mine sequence, d dice) error {
		if _, err := mine.send(c, size, d); err != nil || !halfCloses {
			return err
		}
		return c.CloseWrite()
	}, func(theirs sequence, size int) error {
		limit := size
		if halfCloses {
			limit = -1
		}
		switch n, err := theirs.recv(c, limit, d); {
		case err == nil && n < size:
			return io.ErrUnexpectedEOF
		case err == nil && n > size:
			return &garbled{fmt.Sprintf("of %d bytes %d arrive", size, n)}
		default:
			return err
		}
	})
}

// introduced has both ends say which sequence they will send and how much of it,
// and then does so. Who dialed names its own, and the other answers with the
// complement, so that no two connections can be mixed up. When receiving
// fails it closes c, or sending might never end.
func introduced(c kit.End, dialed bool, size int, d dice, say func(mine sequence, d dice) error, hear func(theirs sequence, size int) error) (sent, received error) {
	mine := sequence(d.Uint64())
	var theirs sequence
	var theirSize int
	meet := func() error {
		var head [16]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return err
		}
		theirs = sequence(binary.BigEndian.Uint64(head[:]))
		theirSize = int(binary.BigEndian.Uint64(head[8:]))
		return nil
	}
	if !dialed {
		if err := meet(); err != nil {
			return nil, err
		}
		mine = ^theirs
	}
	dd := d.more()
	sending := kit.Begin(func() error {
		head := binary.BigEndian.AppendUint64(nil, uint64(mine))
		if _, err := c.Write(binary.BigEndian.AppendUint64(head, uint64(size))); err != nil {
			return err
		}
		return say(mine, dd)
	})
	received = func() error {
		if dialed {
			if err := meet(); err != nil {
				return err
			} else if theirs != ^mine {
				return &garbled{fmt.Sprintf("%x is answered by %x", uint64(mine), uint64(theirs))}
			}
		}
		return hear(theirs, theirSize)
	}()
	if received != nil {
		c.Close()
	}
	return <-sending, received
}

// gone returns nil for the errors of a conversation whose other end was closed or
// killed, or whose own was closed.
func gone(errs ...error) error {
	for _, err := range errs {
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
			errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			continue
		}
		return err
	}
	return nil
}

func stressStreams(t *testing.T, d dice) {
	clients, each := some(16), some(12)
	addr := d.addr(t)
	lc := ipc.ListenConfig{Backlog: d.IntN(4)}
	if d.one(2) {
		lc.Check = func(ipc.Peer) error { return nil }
	}
	l := kit.ListenWith(t, lc, addr)
	all := gang{t: t}
	conversations(&all, clients, each, d, func(dice) (*ipc.Conn, error) {
		return ipc.Dialer{Timeout: kit.Soon}.Dial(addr)
	}, func(c *ipc.Conn, d dice) (sent, received error) {
		return chat(c, true, d.upTo(256<<10), d)
	})
	answers(&all, l, clients*each, d, l.AcceptConn, func(c *ipc.Conn, d dice) (sent, received error) {
		if d.one(4) && halfCloses {
			c.SetWriteBuffer(d.upTo(16 << 10)) // some have little room
		}
		return chat(c, false, d.upTo(256<<10), d)
	})
	all.end()
}

// msgMax is the longest message of a conversation, which goes into the queue of
// any system, and msgMin the shortest.
func msgMax(c *ipc.MsgConn) int {
	if c.Native() && runtime.GOOS != "linux" && runtime.GOOS != "windows" {
		return 4 << 10
	}
	return 64 << 10
}

func msgMin(c *ipc.MsgConn) int {
	if c.Native() && slices.Contains([]string{"freebsd", "openbsd", "dragonfly"}, runtime.GOOS) { // which may have no empty one
		return 1
	}
	return 0
}

// A discourse is messages of which each tells its place by length and content.
type discourse struct {
	sequence
	count    int
	min, max int
}

func (o discourse) length(i int) int {
	d := newDice(uint64(o.sequence) + uint64(i))
	n := o.min
	if !d.one(8) {
		n = max(n, d.upTo(o.max))
	}
	if i == o.count-1 && runtime.GOOS == "windows" {
		n = max(n, 1) // the end may take the place of an empty one there: see MsgConn.Recv
	}
	return n
}

// message returns the i-th message. Its bytes are nowhere else in the sequence.
func (o discourse) message(i int) []byte {
	p := make([]byte, o.length(i))
	o.fill(p, o.place(i))
	return p
}

func (o discourse) place(i int) int { return i << 20 }

func (o discourse) send(c *ipc.MsgConn, d dice) error {
	for i := 0; i < o.count; {
		// One that is cut off may be the last.
		hurry := d.one(4) && !kit.MayCutOff(c) && runtime.GOOS != "windows"
		if hurry {
			if err := c.SetWriteDeadline(time.Now().Add(d.micros(300))); err != nil {
				return err
			}
		}
		err := c.Send(o.message(i))
		if err == nil {
			i++
		}
		if hurry && (err == nil || errors.Is(err, os.ErrDeadlineExceeded)) {
			err = c.SetWriteDeadline(time.Time{})
		}
		if err != nil {
			return err
		}
		d.dawdle()
	}
	return nil
}

func (o discourse) recv(c *ipc.MsgConn, d dice) error {
	var kept []byte
	for i := 0; i < o.count; {
		length := o.length(i)
		hurry := d.one(4)
		if hurry {
			if err := c.SetReadDeadline(time.Now().Add(d.micros(300))); err != nil {
				return err
			}
		}
		var p []byte
		var n int
		var err error
		room := -1
		switch d.IntN(4) {
		case 0: // too little, but for the last: a rest of that might reset the connection
			if room = length; i+1 < o.count {
				room = d.IntN(length + 1)
			}
			p = make([]byte, room)
			n, err = c.Recv(p)
			p = p[:n]
		case 1: // perhaps too much
			p = make([]byte, length+d.IntN(100))
			n, err = c.Recv(p)
			p = p[:n]
		case 2:
			p, err = c.RecvAppend(nil)
		case 3:
			before := min(d.IntN(10), len(kept))
			kept, err = c.RecvAppend(kept[:before])
			p = kept[before:]
		}
		switch {
		case hurry && errors.Is(err, os.ErrDeadlineExceeded):
			err = nil
		case room >= 0 && room < length && errors.Is(err, ipc.ErrMsgTooLong):
			length, err = room, nil
			fallthrough
		case err == nil:
			if len(p) != length {
				return &garbled{fmt.Sprintf("message %d of %d bytes arrives with %d", i, o.length(i), len(p))}
			}
			if err := o.check(p, o.place(i)); err != nil {
				return fmt.Errorf("message %d: %w", i, err)
			}
			i++
		default:
			return fmt.Errorf("message %d: %w", i, err)
		}
		if hurry {
			if err := c.SetReadDeadline(time.Time{}); err != nil {
				return err
			}
		}
		d.dawdle()
	}
	return nil
}

// chatMessages is chat by messages: who dialed waits for the end of the other.
func chatMessages(c *ipc.MsgConn, dialed bool, count int, d dice) (sent, received error) {
	defer c.Close()
	sent, received = introduced(kit.MsgEnd{MsgConn: c}, dialed, count, d, func(mine sequence, d dice) error {
		return discourse{mine, count, msgMin(c), msgMax(c)}.send(c, d)
	}, func(theirs sequence, count int) error {
		return discourse{theirs, count, msgMin(c), msgMax(c)}.recv(c, d)
	})
	if dialed && sent == nil && received == nil {
		if n, err := c.Recv(make([]byte, 16)); err != io.EOF {
			received = &garbled{fmt.Sprintf("after the last message comes one of %d bytes, %v", n, err)}
		}
	}
	return sent, received
}

// framedOrNot decides how this round's messages keep their boundaries.
func framedOrNot(t *testing.T, d dice) {
	before := kit.FrameMessages(kit.FramedHere || d.one(2))
	t.Cleanup(func() { kit.FrameMessages(before) })
}

func stressMessages(t *testing.T, d dice) {
	framedOrNot(t, d)
	clients, each := some(12), some(8)
	addr := d.addr(t)
	l := kit.ListenMsgWith(t, ipc.ListenConfig{Backlog: d.IntN(4)}, addr)
	all := gang{t: t}
	conversations(&all, clients, each, d, func(dice) (*ipc.MsgConn, error) {
		return ipc.Dialer{Timeout: kit.Soon}.DialMsg(t.Context(), addr)
	}, func(c *ipc.MsgConn, d dice) (sent, received error) {
		return chatMessages(c, true, d.upTo(100), d)
	})
	answers(&all, l, clients*each, d, l.Accept, func(c *ipc.MsgConn, d dice) (sent, received error) {
		return chatMessages(c, false, d.upTo(100), d)
	})
	all.end()
}

func stressPipes(t *testing.T, d dice) {
	all := gang{t: t}
	for range some(60) {
		r, w := kit.Pipe(t)
		s, size := sequence(d.Uint64()), d.upTo(512<<10)
		sending, receiving := d.more(), d.more()
		all.begin(func() error { return s.pour(w, size, sending) })
		all.begin(func() error { return s.drain(r, size, receiving) })
	}
	all.end()
}

// pour sends the first size bytes through a pipe and closes it.
func (s sequence) pour(w *ipc.PipeWriter, size int, d dice) error {
	_, err := s.send(w, size, d)
	return errors.Join(err, w.Close())
}

// drain receives what was poured into the pipe, and closes it.
func (s sequence) drain(r *ipc.PipeReader, size int, d dice) error {
	n, err := s.recv(r, -1, d)
	if err == nil && n != size {
		err = &garbled{fmt.Sprintf("of %d bytes %d arrive", size, n)}
	}
	return errors.Join(err, r.Close())
}

// ---------------------------------------------------------------------------
// Closing

// stressCloses closes either end, or half of it, while both send and receive. What
// arrives is what was sent, in order, and all of it unless its receiver was closed.
func stressCloses(t *testing.T, d dice) {
	all := gang{t: t}
	var l *ipc.Listener
	for range some(150) {
		var a, b *ipc.Conn
		switch d.IntN(2) {
		case 0:
			a, b = kit.Pair(t)
		case 1:
			if l == nil {
				l = kit.Listen(t, d.addr(t))
			}
			a, b = kit.Connect(t, l)
		}
		da, dp := d.more(), d.more()
		all.begin(func() error { return tornApart(a, b, da) })
		if d.one(2) {
			r, w := kit.Pipe(t)
			all.begin(func() error { return tornPipe(r, w, dp) })
		}
	}
	all.end()
}

func tornApart(a, b *ipc.Conn, d dice) error {
	type side struct {
		to, from       *ipc.Conn
		cut            bool // its receiving half was shut
		sent, received int
	}
	sides := []*side{{to: a, from: b}, {to: b, from: a}}
	var flows []<-chan error
	for _, x := range sides {
		s, sending, receiving := sequence(d.Uint64()), d.more(), d.more()
		flows = append(flows, kit.Begin(func() (err error) {
			x.sent, err = s.send(x.to, endless, sending)
			return gone(err)
		}), kit.Begin(func() (err error) {
			x.received, err = s.recv(x.from, -1, receiving)
			if e := gone(err); e != nil {
				return e
			}
			x.cut = x.cut || err != nil // EOF alone promises that all came before
			return nil
		}))
	}
	acts := []func() error{a.Close, b.Close}
	if halfCloses {
		acts = append(acts, a.CloseWrite, b.CloseWrite, func() error { return a.CloseRead() }, func() error { return b.CloseRead() })
	}
	var doing []<-chan error
	cuts := [2]bool{}
	for range 1 + d.IntN(3) {
		i, pause := d.IntN(len(acts)), d.micros(2000)
		if i >= 4 {
			cuts[5-i] = true // what a no longer receives is what b sends
		}
		doing = append(doing, kit.Begin(func() error {
			time.Sleep(pause)
			err := acts[i]()
			if errors.Is(err, net.ErrClosed) { // another was faster
				return nil
			}
			return err
		}))
	}
	var err error
	for _, done := range doing {
		err = errors.Join(err, <-done)
	}
	time.Sleep(d.micros(500))
	closing := kit.Begin(a.Close)
	for _, e := range []error{b.Close(), <-closing} {
		if !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	for _, done := range flows {
		err = errors.Join(err, <-done)
	}
	for i, x := range sides {
		err = errors.Join(err, allOf(x.sent, x.received, x.cut || cuts[i]))
	}
	return err
}

// allOf compares how much was sent with how much was received, of which a part may
// be missing if it was cut.
func allOf(sent, received int, cut bool) error {
	switch {
	case runtime.GOOS != "linux" && received > sent: // of a write that was cut off, which may not tell how far it came
		return nil
	case received > sent, received < sent && !cut:
		return &garbled{fmt.Sprintf("of %d bytes %d arrive", sent, received)}
	}
	return nil
}

func tornPipe(r *ipc.PipeReader, w *ipc.PipeWriter, d dice) error {
	s, sending, receiving := sequence(d.Uint64()), d.more(), d.more()
	var sent, received int
	cut := false
	pouring := kit.Begin(func() (err error) {
		sent, err = s.send(w, endless, sending)
		return gone(err)
	})
	tasting := kit.Begin(func() (err error) {
		received, err = s.recv(r, -1, receiving)
		cut = err != nil
		return gone(err)
	})
	time.Sleep(d.micros(2000))
	ends := []io.Closer{r, w}
	if d.one(2) {
		ends[0], ends[1] = ends[1], ends[0]
	}
	err := ends[0].Close()
	if ends[0] == w {
		err = errors.Join(err, <-tasting) // ends by itself
		tasting = nil
	}
	err = errors.Join(err, ends[1].Close(), <-pouring)
	if tasting != nil {
		err = errors.Join(err, <-tasting)
	}
	return errors.Join(err, allOf(sent, received, cut))
}

// ---------------------------------------------------------------------------
// Coming and going

// stressDials has clients that are in a hurry dial a server that is slow and has
// no room. Who gives up was never there; who does not is served.
func stressDials(t *testing.T, d dice) {
	clients, each := some(12), some(8)
	addr := d.addr(t)
	l := kit.ListenWith(t, ipc.ListenConfig{Backlog: 1 + d.IntN(2)}, addr)
	all := gang{t: t}
	conversations(&all, clients, each, d, func(d dice) (*ipc.Conn, error) {
		for {
			c, err := dialInAHurry(addr, d)
			if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.Canceled) {
				return c, err
			}
			d.dawdle()
		}
	}, func(c *ipc.Conn, d dice) (sent, received error) {
		return chat(c, true, d.upTo(4<<10), d)
	})
	answers(&all, l, clients*each, d, func() (*ipc.Conn, error) {
		if d.one(4) {
			time.Sleep(d.micros(2000))
		}
		return l.AcceptConn()
	}, func(c *ipc.Conn, d dice) (sent, received error) {
		return chat(c, false, d.upTo(4<<10), d)
	})
	all.end()
	kit.Must(t, l.SetDeadline(time.Now().Add(time.Millisecond)))
	if c, err := l.AcceptConn(); err == nil {
		c.Close()
		t.Error("a client that gave up is served")
	} else {
		kit.TimedOut(t, err)
	}
}

func dialInAHurry(addr ipc.Addr, d dice) (*ipc.Conn, error) {
	limit := d.micros(3000)
	switch d.IntN(4) {
	case 0:
		return ipc.Dialer{Timeout: limit}.Dial(addr)
	case 1:
		return ipc.Dialer{Deadline: time.Now().Add(limit), Wait: true}.Dial(addr)
	case 2:
		ctx, cancel := context.WithCancel(context.Background())
		timer := time.AfterFunc(limit, cancel)
		defer timer.Stop()
		defer cancel()
		return ipc.Dialer{}.DialContext(ctx, addr)
	}
	return ipc.Dial(addr)
}

// stressTakeovers has starters listen at one address under every policy, and
// clients that are not to mind.
func stressTakeovers(t *testing.T, d dice) {
	addr := d.addr(t)
	var starters []func() error // end them
	for range 3 {
		d := d.more()
		starters = append(starters, kit.Repeatedly(func() error {
			l, err := ipc.ListenConfig{Takeover: ipc.Takeover(d.IntN(3))}.Listen(addr)
			if errors.Is(err, ipc.ErrAddrInUse) {
				time.Sleep(d.micros(200))
				return nil
			} else if err != nil {
				return err
			}
			return shortService(l, d)
		}))
	}
	clients := gang{t: t}
	for range some(4) {
		d := d.more()
		clients.begin(func() error {
			for served := 0; served < 16; {
				c, err := ipc.Dialer{Wait: true, Timeout: kit.Soon}.Dial(addr)
				if err != nil {
					return err
				}
				sent, received := chat(c, true, d.upTo(4<<10), d)
				if err := gone(sent, received); err != nil {
					return err
				}
				if sent == nil && received == nil {
					served++ // or the server closed before it was accepted
				}
			}
			return nil
		})
	}
	clients.end()
	for _, end := range starters {
		if err := end(); err != nil {
			t.Error(err)
		}
	}
}

// shortService serves some clients that come soon, and closes.
func shortService(l *ipc.Listener, d dice) error {
	if err := l.SetDeadline(time.Now().Add(d.micros(3000))); err != nil {
		return err
	}
	var serving []<-chan error
	for range 1 + d.IntN(4) {
		c, err := l.AcceptConn()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			return err
		}
		d := d.more()
		serving = append(serving, kit.Begin(func() error { return gone(chat(c, false, d.upTo(4<<10), d)) }))
	}
	err := l.Close()
	for _, done := range serving {
		err = errors.Join(err, <-done)
	}
	return err
}

// ---------------------------------------------------------------------------
// Files

// stressFiles mixes files and data. Both ends know what comes when.
func stressFiles(t *testing.T, d dice) {
	framedOrNot(t, d)
	deck := kit.Cards(t, 8)
	all := gang{t: t}
	for range some(40) {
		var a, b kit.Carrier
		if d.one(2) {
			a, b = kit.Pair(t)
		} else {
			a, b = kit.MsgPair(t)
		}
		script, count := d.Uint64(), d.upTo(60)
		da, db := d.more(), d.more()
		all.begin(func() error { return errors.Join(sendMixture(a, deck, newDice(script), count, da), a.Close()) })
		all.begin(func() error { return errors.Join(recvMixture(b, newDice(script), count, db), b.Close()) })
	}
	all.end()
}

// ofMixture is the next thing of a mixture: files by their places in the deck, or
// bytes.
func ofMixture(script dice) (places []int, data []byte) {
	if script.one(2) {
		for range 1 + script.IntN(4) {
			places = append(places, script.IntN(8))
		}
		return places, nil
	}
	data = make([]byte, script.upTo(4<<10))
	sequence(script.Uint64()).fill(data, 0)
	return nil, data
}

func sendMixture(c kit.Carrier, deck []*os.File, script dice, count int, d dice) error {
	for range count {
		var err error
		switch places, data := ofMixture(script); {
		case places != nil:
			var files []*os.File
			for _, i := range places {
				files = append(files, deck[i])
			}
			err = c.SendFiles(files...)
		default:
			switch c := c.(type) {
			case *ipc.Conn:
				_, err = c.Write(data)
			case *ipc.MsgConn:
				err = c.Send(data)
			}
		}
		if err != nil {
			return fmt.Errorf("the sender: %w", err)
		}
		d.dawdle()
	}
	return nil
}

func recvMixture(c kit.Carrier, script dice, count int, d dice) (err error) {
	for i := range count {
		places, data := ofMixture(script)
		got := make([]byte, len(data))
		n := 0
		for again := true; again; { // when the deadline passes nothing is lost
			hurry := d.one(4)
			if hurry {
				if err := c.SetReadDeadline(time.Now().Add(d.micros(300))); err != nil {
					return err
				}
			}
			m := 0
			switch v := c.(type) {
			default:
				err = checkFiles(c, places)
			case *ipc.Conn:
				if places != nil {
					err = checkFiles(c, places)
				} else {
					m, err = io.ReadFull(v, got[n:])
				}
			case *ipc.MsgConn:
				if places != nil {
					err = checkFiles(c, places)
				} else {
					m, err = v.Recv(got)
				}
			}
			n += m
			again = hurry && errors.Is(err, os.ErrDeadlineExceeded)
			if hurry {
				if err := c.SetReadDeadline(time.Time{}); err != nil {
					return err
				}
			}
		}
		if err != nil {
			return fmt.Errorf("the receiver, thing %d: %w", i, err)
		}
		if !bytes.Equal(got[:n], data) {
			return &garbled{fmt.Sprintf("thing %d of %d bytes is %d others", i, len(data), n)}
		}
		d.dawdle()
	}
	return nil
}

// checkFiles receives files and looks whether they are the ones of those places.
func checkFiles(c kit.Carrier, places []int) error {
	files, err := c.RecvFiles(len(places))
	if err != nil {
		return err
	}
	if len(files) != len(places) {
		err = &garbled{fmt.Sprintf("%d files of %d arrive", len(files), len(places))}
	}
	for i, f := range files {
		place, e := kit.Card(f)
		if e == nil && err == nil && place != places[i] {
			e = &garbled{fmt.Sprintf("file %d is that of place %d, not of %d", i, place, places[i])}
		}
		err = errors.Join(err, e, f.Close())
	}
	return err
}

// ---------------------------------------------------------------------------
// Killing

// childServesStress listens at the address, and talks with whoever comes without
// an end, or for as many bytes as it is told.
func childServesStress(p *kit.Parent, args []string) error {
	addr, seed, size, err := stressArgs(args)
	if err != nil {
		return err
	}
	l := kit.Sure(ipc.Listen(addr))
	d := newDice(seed)
	var serving []<-chan error
	accepting := kit.ServeEach(l, func(c *ipc.Conn) error {
		d := d.more()
		serving = append(serving, kit.Begin(func() error { return errors.Join(chat(c, false, size, d)) }))
		return nil
	})
	p.Say("serving")
	p.Hear()
	err = errors.Join(l.Close(), <-accepting)
	for _, done := range serving {
		err = errors.Join(err, <-done)
	}
	return err
}

// childDialsStress dials the address some times and talks without an end.
func childDialsStress(p *kit.Parent, args []string) error {
	addr, seed, size, err := stressArgs(args)
	if err != nil {
		return err
	}
	d := newDice(seed)
	var talking []<-chan error
	for range 4 {
		c, err := ipc.Dial(addr)
		if err != nil {
			return err
		}
		d := d.more()
		talking = append(talking, kit.Begin(func() error { return errors.Join(chat(c, true, size, d)) }))
	}
	p.Say("talking")
	for _, done := range talking {
		err = errors.Join(err, <-done)
	}
	return err
}

func stressArgs(args []string) (addr ipc.Addr, seed uint64, size int, err error) {
	addr, e1 := ipc.ParseAddr(args[0])
	seed, e2 := strconv.ParseUint(args[1], 10, 64)
	size, e3 := strconv.Atoi(args[2])
	return addr, seed, size, errors.Join(e1, e2, e3)
}

// startStress starts a child of such a role.
func startStress(t *testing.T, role string, addr ipc.Addr, size int, d dice) *kit.Child {
	t.Helper()
	return kit.StartChild(t, role, addr.String(), strconv.FormatUint(d.Uint64(), 10), strconv.Itoa(size))
}

// stressKilledServers kills a server in the midst of its conversations. Its
// clients got nothing wrong before, notice, and the address is free.
func stressKilledServers(t *testing.T, d dice) {
	addr := d.addr(t)
	for range some(2) {
		server := startStress(t, "stress serve", addr, endless, d)
		server.MustSay("serving")
		all := gang{t: t}
		for range 4 {
			c := kit.Dial(t, addr)
			d := d.more()
			all.begin(func() error {
				sent, received := chat(c, true, endless, d)
				if sent == nil || received == nil {
					return errors.New("a conversation without an end has one")
				}
				return gone(sent, received)
			})
		}
		time.Sleep(d.micros(20000))
		server.Kill()
		all.end()

		l := kit.Listen(t, addr)
		kit.Serves(t, l, addr)
		kit.Must(t, l.Close())
	}
}

// stressKilledClients kills clients in the midst of their conversations, while
// others are served.
func stressKilledClients(t *testing.T, d dice) {
	addr := d.addr(t)
	l := kit.Listen(t, addr)
	dd := d.more() // the first are the server's
	all := gang{t: t}
	accepting := kit.ServeEach(l, func(c *ipc.Conn) error {
		d := d.more()
		all.begin(func() error { return gone(chat(c, false, endless, d)) })
		return nil
	})
	for range some(2) {
		client := startStress(t, "stress dial", addr, endless, dd)
		client.MustSay("talking")
		time.Sleep(dd.micros(20000))
		client.Kill()
		other := kit.Dial(t, addr)
		head := binary.BigEndian.AppendUint64(nil, 1)
		kit.Send(t, other, string(binary.BigEndian.AppendUint64(head, 0)))
		answer := make([]byte, 16)
		if _, err := io.ReadFull(other, answer); err != nil || binary.BigEndian.Uint64(answer) != ^uint64(1) {
			t.Errorf("another client is answered %x, %v", answer, err)
		}
		kit.Must(t, other.Close())
	}
	kit.Must(t, l.Close())
	kit.Must(t, <-accepting)
	all.end()
}
