//go:build unix || windows

// Memory, and connections over it.
package ipc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	for role, play := range map[string]func(*kit.Parent, []string) error{
		"shared memory":  childChangesMemory,
		"shared serve":   childServesShared,
		"shared dial":    childDialsShared,
		"shared inherit": childInheritsShared,
		"shared dies":    childDiesInTheHandshake,

		"shared listener inherit": childInheritsSharedListener,
	} {
		kit.Roles[role] = play
	}
}

func TestMemoryIsThereWhereTheDocumentationSaysSo(t *testing.T) {
	switch runtime.GOOS {
	case "linux", "android", "freebsd", "darwin", "ios", "windows":
		m, err := ipc.NewMemory(1)
		if errors.Is(err, syscall.ENOSYS) {
			t.Skip("this kernel, or what stands in for it, is too old: ", err)
		}
		kit.Must(t, err)
		kit.Must(t, m.Close())
	default:
		_, err := ipc.NewMemory(1)
		kit.Matches(t, err, errors.ErrUnsupported)
	}
}

// ---------------------------------------------------------------------------
// Memory

func TestMemoryIsSharedByItsFiles(t *testing.T) {
	kit.NeedsMemory(t)
	for _, size := range []int{1, 4096, 5000, 1 << 20} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			kit.Story(t)
			m := kit.NewMemory(t, size)
			if len(m.Bytes()) != size || !m.Writable() {
				t.Fatalf("%d bytes, writable %v", len(m.Bytes()), m.Writable())
			}
			m.Bytes()[size-1] = 'x'
			same, err := ipc.FileMemory(kit.MemoryFile(t, m, false), 2<<20)
			kit.Kept(t, same, err)
			if len(same.Bytes()) < size || !same.Writable() || same.Bytes()[size-1] != 'x' {
				t.Fatalf("%d bytes, writable %v", len(same.Bytes()), same.Writable())
			}
			same.Bytes()[0] = 'y'
			if m.Bytes()[0] != 'y' {
				t.Error("the two are not the same memory")
			}
			reader, err := ipc.FileMemory(kit.MemoryFile(t, m, true), 2<<20)
			kit.Kept(t, reader, err)
			if reader.Writable() || reader.Bytes()[0] != 'y' {
				t.Errorf("writable %v", reader.Writable())
			}
			again, err := reader.ReadOnlyFile()
			kit.Kept(t, again, err)
		})
	}
}

func TestMemoryGoesToAnotherProcess(t *testing.T) {
	kit.NeedsMemory(t)
	kit.Story(t)
	addr := kit.PathAddr(t)
	l := kit.Listen(t, addr)
	c := kit.StartChild(t, "shared memory", addr.String())
	conn := kit.Accept(t, l)
	m := kit.NewMemory(t, 10000)
	copy(m.Bytes(), "question")
	kit.Must(t, conn.SendFiles(kit.MemoryFile(t, m, false), kit.MemoryFile(t, m, true)))
	kit.Expect(t, conn, "done")
	if string(m.Bytes()[:6]) != "answer" {
		t.Errorf("the child left %q", m.Bytes()[:10])
	}
	c.End()
}

// childChangesMemory answers in the memory that it receives.
func childChangesMemory(p *kit.Parent, args []string) error {
	c := kit.Sure(ipc.Dial(kit.Sure(ipc.ParseAddr(args[0]))))
	files := kit.Sure(c.RecvFiles(2))
	m := kit.Sure(ipc.FileMemory(files[0], 1<<20))
	r := kit.Sure(ipc.FileMemory(files[1], 1<<20))
	if string(r.Bytes()[:8]) != "question" || r.Writable() || !m.Writable() {
		return fmt.Errorf("the memory has %q, writable %v and %v", r.Bytes()[:8], r.Writable(), m.Writable())
	}
	copy(m.Bytes(), "answer")
	_, err := io.WriteString(c, "done")
	return errors.Join(err, m.Close(), r.Close(), files[0].Close(), files[1].Close(), c.Close())
}

func TestFileMemoryRefusesWhatIsNoMemory(t *testing.T) {
	kit.NeedsMemory(t)
	kit.Story(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	kit.Kept(t, file, err)
	kit.Must(t, file.Truncate(1<<16))
	r, w, err := os.Pipe()
	kit.Kept(t, r, err)
	kit.Kept(t, w, err)
	a, _ := kit.Pair(t)
	conn, err := a.File()
	kit.Kept(t, conn, err)
	closed, err := os.Open(os.DevNull)
	kit.Must(t, err)
	kit.Must(t, closed.Close())
	for what, f := range map[string]*os.File{
		"a file": file, "a pipe": r, "a socket": conn, "a closed file": closed, "nil": nil,
	} {
		if m, err := ipc.FileMemory(f, 1<<20); err == nil {
			t.Errorf("%s is mapped: %d bytes", what, len(m.Bytes()))
			m.Close()
		}
	}
	_, err = ipc.FileMemory(kit.MemoryFile(t, kit.NewMemory(t, 1<<20), false), 1<<20-1)
	kit.Matches(t, err, ipc.ErrMsgTooLong)
	for _, size := range []int{0, -1} {
		if _, err := ipc.NewMemory(size); err == nil {
			t.Errorf("there is memory of %d bytes", size)
		}
	}
}

func TestMemoryCloses(t *testing.T) {
	kit.NeedsMemory(t)
	kit.Story(t)
	kit.LeavesNothing(t, 20, func() {
		m := kit.NewMemory(t, 1<<16)
		f, err := m.File()
		kit.Must(t, err)
		kit.Must(t, m.Close())
		if m.Bytes() != nil {
			t.Error("there are bytes after Close")
		}
		kit.Matches(t, m.Close(), net.ErrClosed)
		_, err = m.File()
		kit.Matches(t, err, net.ErrClosed)
		_, err = m.ReadOnlyFile()
		kit.Matches(t, err, net.ErrClosed)
		other, err := ipc.FileMemory(f, 1<<16) // lives on
		kit.Must(t, err)
		kit.Must(t, f.Close())
		other.Bytes()[0] = 1
		kit.Must(t, other.Close())
	})
}

// ---------------------------------------------------------------------------
// Connections, in every way to make them

// sharedPair returns two ends that do nothing for each other, unlike those of SharedPair.
func sharedPair(t *testing.T) (a, b *ipc.SharedConn) {
	t.Helper()
	x, y := kit.Pair(t)
	return share(t, x, ipc.ShareConfig{}), share(t, y, ipc.ShareConfig{})
}

func listenShared(t *testing.T, addr ipc.Addr) *ipc.SharedListener {
	t.Helper()
	l, err := ipc.ListenShared(addr)
	return kit.Kept(t, l, err)
}

func share(t *testing.T, c *ipc.Conn, cfg ipc.ShareConfig) *ipc.SharedConn {
	t.Helper()
	s, err := c.Share(cfg)
	return kit.Kept(t, s, err)
}

// tooLarge is a buffer that a SharedListener does not accept.
const tooLarge = 128 << 20

// sharedWays are the ways to a connection, the last of which go through the socket.
var sharedWays = []struct {
	name   string
	memory bool
	make   func(t *testing.T) (a, b *ipc.SharedConn)
}{
	{"Pair", true, sharedPair},
	{"Listener", true, func(t *testing.T) (a, b *ipc.SharedConn) {
		l := listenShared(t, kit.PathAddr(t))
		a, err := ipc.DialShared(l.Addr().(ipc.Addr))
		kit.Kept(t, a, err)
		b, err = l.AcceptShared()
		return a, kit.Kept(t, b, err)
	}},
	{"Share", true, func(t *testing.T) (a, b *ipc.SharedConn) {
		x, y := kit.Connect(t, kit.Listen(t, kit.NameAddr(t)))
		return share(t, x, ipc.ShareConfig{Buffer: 1}), share(t, y, ipc.ShareConfig{Buffer: 300 << 10})
	}},
	{"NoSpin", true, func(t *testing.T) (a, b *ipc.SharedConn) {
		a, b = sharedPair(t)
		a.SetSpin(-1)
		b.SetSpin(-1)
		return a, b
	}},
	{"LongSpin", true, func(t *testing.T) (a, b *ipc.SharedConn) {
		a, b = sharedPair(t)
		a.SetSpin(20 * time.Millisecond)
		b.SetSpin(20 * time.Millisecond)
		return a, b
	}},
	{"OverSocket", false, func(t *testing.T) (a, b *ipc.SharedConn) {
		l := listenShared(t, kit.PathAddr(t))
		a = share(t, kit.Dial(t, l.Addr()), ipc.ShareConfig{Buffer: tooLarge})
		b, err := l.AcceptShared()
		return a, kit.Kept(t, b, err)
	}},
}

// overEachShared tells a story over connections however they are made.
func overEachShared(t *testing.T, tell func(t *testing.T, a, b *ipc.SharedConn)) {
	overEachSetUp(t, tell)
	for _, way := range sharedWays {
		t.Run(way.name+"Early", func(t *testing.T) {
			kit.Story(t)
			defer func(words string) { firstWords = words }(firstWords)
			firstWords = "ping"
			a, b := way.make(t)
			tell(t, a, b)
		})
	}
}

// overEachReceived is overEachShared for a story in which an end may never receive what makes the
// memory. On Windows its handles then stay in this process.
func overEachReceived(t *testing.T, tell func(t *testing.T, a, b *ipc.SharedConn)) {
	if runtime.GOOS == "windows" {
		overEachSetUp(t, tell)
	} else {
		overEachShared(t, tell)
	}
}

// overEachWay tells a story over connections however they are made, over which nothing was
// said yet, and whether they will set memory up where this system has any.
func overEachWay(t *testing.T, tell func(t *testing.T, a, b *ipc.SharedConn, memory bool)) {
	for _, way := range sharedWays {
		t.Run(way.name, func(t *testing.T) {
			kit.Story(t)
			a, b := way.make(t)
			tell(t, a, b, way.memory)
		})
	}
}

// overEachSetUp tells it over those that have set their memory up, if they have any.
func overEachSetUp(t *testing.T, tell func(t *testing.T, a, b *ipc.SharedConn)) {
	overEachWay(t, func(t *testing.T, a, b *ipc.SharedConn, memory bool) {
		tell(t, a, b)
		if memory && kit.HasMemory() != ipc.UsesMemory(a) || ipc.UsesMemory(a) != ipc.UsesMemory(b) {
			t.Errorf("in memory: %v and %v", ipc.UsesMemory(a), ipc.UsesMemory(b))
		}
	})
}

// large is more than an end writes before its memory is set up.
var large = strings.Repeat("ping", 2000)

// firstWords are what meet sends.
var firstWords = large

// meet makes the ends set their memory up, or not if firstWords are few.
func meet(t *testing.T, a, b *ipc.SharedConn) {
	t.Helper()
	done := kit.Begin(func() error { _, err := io.WriteString(a, firstWords); return err })
	kit.Expect(t, b, firstWords)
	kit.Must(t, <-done)
	kit.Send(t, b, "pong")
	kit.Expect(t, a, "pong")
}

func TestSharedConnCarriesBothWays(t *testing.T) {
	overEachShared(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		for n := 1; n < 100; n += 7 {
			text := strings.Repeat("x", n)
			kit.Send(t, b, text)
			kit.Expect(t, a, text)
		}
	})
}

// TestSharedConnCarriesMuch sends pieces of every size in both directions at once, by
// both ways to write and to read.
func TestSharedConnCarriesMuch(t *testing.T) {
	overEachShared(t, func(t *testing.T, a, b *ipc.SharedConn) {
		total := 8 << 20
		if testing.Short() || kit.UnderRace() {
			total = 2 << 20
		}
		var ends []<-chan error
		for i, c := range []*ipc.SharedConn{a, b} {
			ends = append(ends,
				kit.Begin(func() error { return writePattern(c, total, int64(i)) }),
				kit.Begin(func() error { return readPattern(c, total, int64(i)+10) }))
		}
		for _, end := range ends {
			kit.Must(t, <-end)
		}
	})
}

// patternAt is byte number i of the stream.
func patternAt(i int) byte { return byte(i) ^ byte(i>>8)*3 ^ byte(i>>16)*5 }

func writePattern(c *ipc.SharedConn, total int, seed int64) error {
	random := rand.New(rand.NewSource(seed))
	for done := 0; done < total; {
		n := min(sizeOf(random), total-done)
		p, inPlace := make([]byte, n), random.Intn(2) == 0 && n <= 32<<10
		if inPlace {
			var err error
			if p, err = c.Reserve(n); err != nil {
				return err
			}
			n = random.Intn(n + 1) // commit less than that
		}
		for i := range n {
			p[i] = patternAt(done + i)
		}
		if inPlace {
			if err := c.Commit(n); err != nil {
				return err
			}
		} else if m, err := c.Write(p[:n]); err != nil || m != n {
			return fmt.Errorf("%d of %d bytes written: %w", m, n, err)
		}
		done += n
	}
	return nil
}

func readPattern(c *ipc.SharedConn, total int, seed int64) error {
	random := rand.New(rand.NewSource(seed))
	buf := make([]byte, 300<<10)
	for done := 0; done < total; {
		n := min(sizeOf(random), total-done)
		p, inPlace := buf, random.Intn(2) == 0 && n <= 32<<10
		var err error
		if inPlace {
			if p, err = c.Peek(n * random.Intn(2)); err != nil { // or whatever there is
				return err
			}
			n = random.Intn(len(p) + 1)
		} else if n, err = c.Read(p[:n]); err != nil {
			return err
		}
		for i := range n {
			if p[i] != patternAt(done+i) {
				return fmt.Errorf("byte %d is %d, not %d", done+i, p[i], patternAt(done+i))
			}
		}
		if inPlace {
			if err := c.Discard(n); err != nil {
				return err
			}
		}
		done += n
	}
	return nil
}

// sizeOf returns sizes of every order of magnitude.
func sizeOf(random *rand.Rand) int { return 1 + random.Intn(1<<(1+random.Intn(18))) }

func TestSharedConnIsAGoodNetConn(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	l := listenShared(t, addr)
	a, err := ipc.Dialer{Timeout: kit.Soon, Spin: time.Microsecond}.DialShared(context.Background(), addr)
	kit.Kept(t, a, err)
	b, err := l.AcceptShared()
	kit.Kept(t, b, err)
	meet(t, a, b)
	if a.RemoteAddr() != addr || b.LocalAddr() != addr || a.LocalAddr() != (ipc.Addr{}) {
		t.Errorf("addresses are %v, %v, %v", a.RemoteAddr(), b.LocalAddr(), a.LocalAddr())
	}
	kit.IsProcess(t, kit.PeerOf(t, a), os.Getpid())
	if n, err := a.Read(nil); n != 0 || err != nil {
		t.Errorf("a read of nothing: %d, %v", n, err)
	}
	if n, err := a.Write(nil); n != 0 || err != nil {
		t.Errorf("a write of nothing: %d, %v", n, err)
	}
	kit.Must(t, b.Close())
	_, err = a.Write([]byte("x"))
	kit.IsWriteError(t, err, a)
	kit.Matches(t, err, syscall.EPIPE)
}

// ---------------------------------------------------------------------------
// The handshake

func TestSharedListenerAcceptsAClientThatDoesNothing(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	l := listenShared(t, addr)
	idle := kit.Dial(t, addr)
	slow, err := l.AcceptShared()
	kit.Kept(t, slow, err)
	later, err := ipc.DialShared(addr)
	kit.Kept(t, later, err)
	quick, err := l.AcceptShared()
	kit.Kept(t, quick, err)
	meet(t, later, quick)

	kit.Must(t, slow.SetReadDeadline(time.Now().Add(kit.Brief)))
	_, err = slow.Read(make([]byte, 1))
	kit.TimedOut(t, err)
	kit.Must(t, slow.SetWriteDeadline(time.Now().Add(kit.Brief)))
	_, err = slow.Write(make([]byte, 1))
	kit.TimedOut(t, err)

	// It is not too late for either.
	kit.Must(t, slow.SetDeadline(time.Time{}))
	meet(t, share(t, idle, ipc.ShareConfig{}), slow)
}

// The two ends of a SharedPair can be used by one goroutine, in any order.
func TestSharedPairWaitsForNobodyAtTheOtherEnd(t *testing.T) {
	kit.Story(t)
	fresh := func() (a, b *ipc.SharedConn) {
		a, b, err := ipc.SharedPair()
		kit.Kept(t, a, err)
		kit.Kept(t, b, err)
		kit.Must(t, a.SetDeadline(time.Now().Add(kit.Patience)))
		kit.Must(t, b.SetDeadline(time.Now().Add(kit.Patience)))
		return a, b
	}
	a, b := fresh()
	for range 200 {
		kit.Send(t, a, "ping")
		kit.Expect(t, b, "ping")
		kit.Send(t, b, "pong")
		kit.Expect(t, a, "pong")
	}
	if a.InMemory() != b.InMemory() {
		t.Error("one end is in memory, and the other is not")
	}
	a, b = fresh()
	much := strings.Repeat("x", 10<<10)
	kit.Send(t, a, much)
	kit.Expect(t, b, much)
	a, b = fresh()
	p, err := a.Reserve(100 << 10)
	kit.Must(t, err)
	clear(p)
	kit.Must(t, a.Commit(len(p)))
	q, err := b.Peek(100 << 10)
	kit.Must(t, err)
	if !bytes.Equal(p, q) {
		t.Error("other bytes arrive")
	}
	kit.Must(t, b.Discard(len(q)))
	a, b = fresh()
	f, err := os.Open(os.DevNull)
	kit.Kept(t, f, err)
	kit.Must(t, a.SendFiles(f))
	files, err := b.RecvFiles(1)
	kit.Must(t, err)
	kit.Must(t, files[0].Close())
}

func TestSharedHandshakeHeedsDeadlinesThatChange(t *testing.T) {
	kit.Story(t)
	a, b := sharedPair(t)
	reading, writing := kit.BeginRead(a), kit.Begin(func() error { _, err := io.WriteString(a, large); return err })
	kit.AwaitParked(t, "(*SharedConn).setUp", 2)
	kit.Must(t, a.SetWriteDeadline(time.Now()))
	kit.TimedOut(t, <-writing)
	kit.Must(t, a.SetReadDeadline(time.Now()))
	kit.TimedOut(t, <-reading)
	kit.Must(t, a.SetDeadline(time.Time{}))
	meet(t, a, b)
}

func TestSharedHandshakeEndsWithClose(t *testing.T) {
	kit.Story(t)
	kit.LeavesNothing(t, 20, func() {
		a, b := sharedPair(t)
		reading, writing := kit.BeginRead(a), kit.Begin(func() error { _, err := io.WriteString(a, large); return err })
		kit.AwaitParked(t, "(*SharedConn).setUp", 2)
		kit.Must(t, a.Close())
		kit.Matches(t, <-reading, net.ErrClosed)
		kit.Matches(t, <-writing, net.ErrClosed)
		kit.ExpectEOF(t, b)
		_, err := b.Write([]byte("x"))
		kit.Matches(t, err, syscall.EPIPE)
		kit.Must(t, b.Close())
	})
}

func TestSharedListenerServesPlainClients(t *testing.T) {
	for _, first := range []string{"GET / HTTP/1.1\r\n", "x", "\xff", "\xffipc", "\xffipcshn\x01 and so on"} {
		t.Run(strconv.Quote(first), func(t *testing.T) {
			kit.Story(t)
			l := listenShared(t, kit.PathAddr(t))
			a := kit.Dial(t, l.Addr())
			b, err := l.AcceptShared()
			kit.Kept(t, b, err)
			kit.Send(t, a, first)
			kit.Send(t, a, " and more")
			if p, err := b.Peek(1); err != nil || p[0] != first[0] {
				t.Fatalf("peek: %q, %v", p, err)
			}
			kit.Must(t, b.Discard(0))
			kit.Expect(t, b, first+" and more")
			kit.Talk(t, b, a)
			if b.InMemory() {
				t.Error("in memory with a client that has none")
			}
			f, err := os.Open(os.DevNull)
			kit.Kept(t, f, err)
			kit.Must(t, a.SendFiles(f))
			files, err := b.RecvFiles(1)
			kit.Must(t, err)
			kit.Must(t, files[0].Close())
			kit.Must(t, a.Close())
			kit.ExpectEOF(t, b)
		})
	}
}

func TestSharedListenerSeesThatAPlainClientLeft(t *testing.T) {
	kit.Story(t)
	l := listenShared(t, kit.PathAddr(t))
	for _, said := range []string{"\xff", "bye"} {
		a := kit.Dial(t, l.Addr())
		kit.Send(t, a, said)
		kit.Must(t, a.Close())
		b, err := l.AcceptShared()
		kit.Kept(t, b, err)
		if said == "bye" {
			kit.Expect(t, b, said)
			kit.ExpectEOF(t, b)
		} else if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a hello that was cut off: %v", err)
		}
		kit.Must(t, b.Close())
	}
}

func TestDialSharedFindsOutThatTheServerDoesNotShare(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, kit.PathAddr(t))
	a, err := ipc.DialShared(l.Addr().(ipc.Addr))
	kit.Kept(t, a, err)
	b := kit.Accept(t, l)
	kit.Send(t, b, "220 welcome, this is something else\r\n")
	_, err = a.Read(make([]byte, 10))
	kit.Matches(t, err, syscall.EPROTO)
	_, err = a.Write(make([]byte, 10))
	kit.Matches(t, err, syscall.EPROTO)
}

func TestShareRefusesBadSizes(t *testing.T) {
	kit.Story(t)
	for _, cfg := range []ipc.ShareConfig{{Buffer: -1}, {Buffer: 1<<30 + 1}, {MaxPeerBuffer: -1}} {
		a, _ := kit.Pair(t)
		if _, err := a.Share(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

func TestShareRefusesAConnThatIsClosed(t *testing.T) {
	kit.Story(t)
	a, _ := kit.Pair(t)
	kit.Must(t, a.Close())
	_, err := a.Share(ipc.ShareConfig{})
	kit.Matches(t, err, net.ErrClosed)
}

func TestShareRefusesAPeersBufferThatIsTooLarge(t *testing.T) {
	kit.NeedsMemory(t)
	kit.Story(t)
	x, y := kit.Pair(t)
	a := share(t, x, ipc.ShareConfig{Buffer: 1 << 20})
	b := share(t, y, ipc.ShareConfig{MaxPeerBuffer: 1<<20 - 1})
	writing := kit.Begin(func() error { _, err := a.Write(make([]byte, 10)); return err })
	_, err := b.Read(make([]byte, 10))
	kit.Matches(t, err, ipc.ErrMsgTooLong)
	kit.Must(t, b.Close())
	<-writing // it may have been quicker
	_, err = a.Write(make([]byte, 4<<20))
	kit.Matches(t, err, syscall.EPIPE)
}

// ---------------------------------------------------------------------------
// The end

func TestSharedConnCloseIsTheEnd(t *testing.T) {
	overEachShared(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		kit.Send(t, a, "the last words")
		kit.Must(t, a.Close())
		kit.Matches(t, a.Close(), net.ErrClosed)
		kit.Expect(t, b, "the last words")
		kit.ExpectEOF(t, b)
		kit.ExpectEOF(t, b)
		_, err := b.Write(make([]byte, 10))
		kit.Matches(t, err, syscall.EPIPE)
	})
}

func TestSharedConnCloseEndsWhatWaits(t *testing.T) {
	overEachReceived(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		first, second := kit.BeginRead(a), kit.BeginRead(a)
		writing := kit.Begin(func() error {
			for {
				if _, err := a.Write(make([]byte, 100<<10)); err != nil {
					return err
				}
			}
		})
		kit.AwaitParked(t, "(*SharedConn).Write", 1)
		kit.Must(t, a.Close())
		for _, done := range []<-chan error{first, second, writing} {
			kit.Matches(t, <-done, net.ErrClosed)
		}
	})
}

func TestSharedConnPeersCloseEndsWhatWaits(t *testing.T) {
	overEachReceived(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		reading := kit.BeginRead(a)
		writing := kit.Begin(func() error {
			for {
				if _, err := a.Write(make([]byte, 100<<10)); err != nil {
					return err
				}
			}
		})
		kit.AwaitParked(t, "(*SharedConn).Write", 1)
		kit.Must(t, b.Close())
		if err := <-reading; err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
		kit.Matches(t, <-writing, syscall.EPIPE)
	})
}

func TestSharedConnHalfClose(t *testing.T) {
	overEachShared(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		if !ipc.UsesMemory(a) && runtime.GOOS == "windows" && firstWords == large {
			kit.Matches(t, a.CloseWrite(), errors.ErrUnsupported)
			return
		}
		kit.Send(t, a, "question")
		kit.Must(t, a.CloseWrite())
		kit.Expect(t, b, "question")
		kit.ExpectEOF(t, b)
		_, err := a.Write([]byte("more"))
		kit.Matches(t, err, syscall.EPIPE)
		kit.Send(t, b, "answer")
		kit.Expect(t, a, "answer")
		if !ipc.UsesMemory(a) && runtime.GOOS == "windows" {
			kit.Matches(t, a.CloseRead(), errors.ErrUnsupported)
			return
		}
		kit.Must(t, a.CloseRead())
		kit.ExpectEOF(t, a)
		if ipc.UsesMemory(a) {
			_, err = b.Write([]byte("more"))
			kit.Matches(t, err, syscall.EPIPE)
		}
	})
}

func TestSharedConnHalfCloseEndsWhatWaits(t *testing.T) {
	kit.NeedsMemory(t)
	kit.Story(t)
	a, b := sharedPair(t)
	meet(t, a, b)
	reading := kit.BeginRead(a)
	writing := kit.Begin(func() error { _, err := a.Write(make([]byte, 1<<20)); return err })
	kit.AwaitParked(t, "(*SharedConn).Write", 1)
	kit.AwaitParked(t, "(*SharedConn).Read", 1)
	kit.Must(t, a.CloseRead())
	if err := <-reading; err != io.EOF {
		t.Errorf("read: %v", err)
	}
	kit.Must(t, a.CloseWrite())
	kit.Matches(t, <-writing, syscall.EPIPE)
	n, err := io.Copy(io.Discard, b)
	kit.Must(t, err)
	if n == 0 {
		t.Error("nothing of what was written is left")
	}
	kit.Must(t, a.SetDeadline(time.Now().Add(-time.Second)))
	kit.Must(t, a.SetDeadline(time.Time{}))
	kit.ExpectEOF(t, a)
}

// Files go through the socket also if the bytes do not.
func TestSharedConnHalfCloseEndsSendFilesAndRecvFiles(t *testing.T) {
	overEachSetUp(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		if !ipc.UsesMemory(a) {
			t.Skip("it is the half-close of a socket")
		}
		f, err := os.Open(os.DevNull)
		kit.Kept(t, f, err)
		receiving := kit.Begin(func() error { _, err := a.RecvFiles(1); return err })
		kit.AwaitParked(t, "(*SharedConn).RecvFiles", 1)
		kit.Must(t, a.CloseRead())
		if err := <-receiving; err != io.EOF {
			t.Errorf("RecvFiles: %v", err)
		}
		sent := 0
		sending := kit.Begin(func() error {
			for ; ; sent++ {
				if err := a.SendFiles(f); err != nil {
					return err
				}
			}
		})
		kit.AwaitParked(t, "(*SharedConn).SendFiles", 1)
		kit.Must(t, a.CloseWrite())
		kit.Matches(t, <-sending, syscall.EPIPE)
		for range sent {
			files, err := b.RecvFiles(1)
			kit.Must(t, err)
			kit.Must(t, files[0].Close())
		}
	})
}

// What Conn has read and kept is not lost.
func TestShareAfterRecvFilesThatFoundNone(t *testing.T) {
	kit.Story(t)
	x, y := kit.Pair(t)
	a := share(t, x, ipc.ShareConfig{})
	kit.Send(t, a, "early")
	_, err := y.RecvFiles(1)
	kit.Matches(t, err, ipc.ErrNoFiles)
	b := share(t, y, ipc.ShareConfig{})
	kit.Expect(t, b, "early")
	kit.Talk(t, a, b)
}

func TestSharedConnWaitPeerWaitsForTheProcess(t *testing.T) {
	kit.Story(t)
	a, _ := sharedPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := a.WaitPeer(ctx) // the peer is this process
	if !errors.Is(err, context.Canceled) && !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

func TestSharedConnDeadlines(t *testing.T) {
	overEachReceived(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		kit.Must(t, a.SetReadDeadline(time.Now().Add(kit.Brief)))
		_, err := a.Read(make([]byte, 1))
		kit.TimedOut(t, err)
		_, err = a.Peek(1)
		kit.TimedOut(t, err)
		kit.Must(t, a.SetReadDeadline(time.Time{}))
		kit.Send(t, b, "still usable")
		kit.Expect(t, a, "still usable")

		reading := kit.BeginRead(a)
		kit.AwaitParked(t, "(*SharedConn).Read", 1)
		kit.Must(t, a.SetReadDeadline(time.Now()))
		kit.TimedOut(t, <-reading)
		if n, err := a.Read(nil); n != 0 || err != nil {
			t.Errorf("a Read of nothing returns %d, %v", n, err)
		}
		kit.Must(t, a.SetDeadline(time.Time{}))

		kit.Must(t, a.SetWriteDeadline(time.Now().Add(kit.Brief)))
		written := 0
		for err = nil; err == nil; {
			var n int
			n, err = a.Write(make([]byte, 50<<10))
			written += n
		}
		kit.TimedOut(t, err)
		_, err = a.Write([]byte("x"))
		kit.TimedOut(t, err)
		if ipc.UsesMemory(a) {
			_, err = a.Reserve(1000)
			kit.TimedOut(t, err)
			kit.Must(t, a.SetDeadline(time.Time{}))
			_, err = io.ReadFull(b, make([]byte, written))
			kit.Must(t, err)
			kit.Send(t, a, "no more, no less")
			kit.Expect(t, b, "no more, no less")
		}
	})
}

func TestSharedConnDeadlineEndsASpin(t *testing.T) {
	kit.NeedsMemory(t)
	kit.Story(t)
	a, b := sharedPair(t)
	meet(t, a, b)
	a.SetSpin(time.Hour)
	kit.Must(t, a.SetReadDeadline(time.Now().Add(kit.Brief)))
	_, err := a.Read(make([]byte, 1))
	kit.TimedOut(t, err)
	kit.Must(t, a.SetReadDeadline(time.Time{}))
	reading := kit.BeginRead(a)
	time.Sleep(time.Millisecond) // it should be spinning; if it is not yet, the test is the weaker
	kit.Must(t, a.Close())
	kit.Matches(t, <-reading, net.ErrClosed)
}

func TestSharedConnNothingWorksAfterClose(t *testing.T) {
	overEachShared(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		memory := ipc.UsesMemory(a)
		kit.Must(t, a.Close())
		kit.SaysClosed(t, map[string]func() error{
			"Close":       a.Close,
			"Read":        func() error { _, err := a.Read(make([]byte, 1)); return err },
			"Read(nil)":   func() error { _, err := a.Read(nil); return err },
			"Write":       func() error { _, err := a.Write(make([]byte, 1)); return err },
			"Peek":        func() error { _, err := a.Peek(1); return err },
			"Reserve":     func() error { _, err := a.Reserve(1); return err },
			"Discard":     func() error { return a.Discard(0) },
			"Commit":      func() error { return a.Commit(0) },
			"SetDeadline": func() error { return a.SetDeadline(time.Time{}) },
			"CloseRead":   a.CloseRead,
			"CloseWrite":  a.CloseWrite,
			"Peer":        func() error { _, err := a.Peer(); return err },
			"RecvFiles":   func() error { _, err := a.RecvFiles(1); return err },
			"SendFiles":   func() error { return a.SendFiles(os.Stdin) },
		})
		if ipc.UsesMemory(a) != memory {
			t.Error("InMemory has changed")
		}
	})
}

func TestSharedConnCloseWhileEverythingIsUnderWay(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	for range 30 {
		a, b := sharedPair(t)
		ended := kit.UntilClosed(t,
			func() error { _, err := a.Read(make([]byte, 10)); return err },
			func() error { _, err := a.Write(make([]byte, 10000)); return err },
			func() error { return a.SetReadDeadline(time.Now().Add(time.Hour)) },
			func() error { return a.SetDeadline(time.Time{}) },
			func() error { _, err := a.Peer(); return err },
			func() error { a.SetSpin(time.Microsecond); a.InMemory(); return a.SetDeadline(time.Time{}) },
		)
		kit.Send(t, b, "some news")
		_, err := io.ReadFull(b, make([]byte, 1<<20))
		kit.Must(t, err)
		kit.Must(t, a.Close())
		ended()
		kit.Must(t, b.Close())
	}
}

func TestSharedConnLeavesNothing(t *testing.T) {
	overEachShared(t, func(t *testing.T, a, b *ipc.SharedConn) { meet(t, a, b) })
	kit.Story(t)
	kit.LeavesNothing(t, 20, func() {
		a, b := sharedPair(t)
		meet(t, a, b)
		reading := kit.BeginRead(b)
		kit.Must(t, a.Close())
		<-reading
		kit.Must(t, b.Close())
	})
}

// A connection that was dropped without Close is closed by the garbage collector.
func TestSharedConnThatWasDroppedIsClosed(t *testing.T) {
	kit.Story(t)
	before := kit.OpenDescriptors()
	func() {
		for range 20 {
			a, _, err := ipc.SharedPair()
			kit.Must(t, err)
			if _, err := a.Reserve(10 << 10); err != nil {
				t.Fatal(err)
			}
		}
	}()
	kit.Eventually(t, "the descriptors are closed", func() bool { runtime.GC(); return kit.OpenDescriptors() <= before })
}

// ---------------------------------------------------------------------------
// In place

func TestSharedLoans(t *testing.T) {
	overEachSetUp(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		p, err := a.Reserve(100)
		kit.Must(t, err)
		if len(p) != 100 || cap(p) != 100 {
			t.Fatalf("%d bytes of %d are reserved", len(p), cap(p))
		}
		copy(p, "in place, and what is not committed is not sent")
		if _, err := a.Write([]byte("x")); err == nil {
			t.Error("a write goes into what is reserved")
		}
		for _, n := range []int{101, -1} {
			if err := a.Commit(n); err == nil {
				t.Errorf("%d bytes of 100 are committed", n)
			}
		}
		kit.Must(t, a.Commit(8))
		if err := a.Commit(1); err == nil {
			t.Error("a loan is given back twice")
		}
		kit.Send(t, a, "!")
		q, err := b.Peek(9)
		kit.Must(t, err)
		if string(q) != "in place!" || cap(q) != 9 {
			t.Fatalf("%q is there, of %d", q, cap(q))
		}
		for _, n := range []int{10, -1} {
			if err := b.Discard(n); err == nil {
				t.Errorf("%d bytes of 9 are discarded", n)
			}
		}
		kit.Must(t, b.Discard(3))
		kit.Expect(t, b, "place!")
		for _, n := range []int{-1, 1 << 30} {
			if _, err := a.Reserve(n); err == nil {
				t.Errorf("%d bytes are reserved", n)
			}
			if _, err := a.Peek(n); err == nil {
				t.Errorf("%d bytes are there", n)
			}
		}
		_, err = a.Reserve(1 << 30)
		kit.Matches(t, err, ipc.ErrMsgTooLong)

		kit.Send(t, a, "short")
		kit.Must(t, a.Close())
		q, err = b.Peek(6)
		if string(q) != "short" || err != io.EOF {
			t.Errorf("%q, %v", q, err)
		}
		kit.Must(t, b.Discard(5))
		if q, err = b.Peek(1); len(q) != 0 || err != io.EOF {
			t.Errorf("%q, %v", q, err)
		}
	})
}

// Close leaves what is on loan where it is, and so does the garbage collector.
func TestSharedLoansOutliveClose(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	overEachSetUp(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		kit.Send(t, b, "something")
		p, err := a.Peek(9)
		kit.Must(t, err)
		q, err := a.Reserve(1000)
		kit.Must(t, err)
		kit.Must(t, a.Close())
		kit.Must(t, b.Close())
		for i := range q {
			q[i] = 1
		}
		if string(p) != "something" {
			t.Errorf("on loan is %q", p)
		}
		kit.Matches(t, a.Discard(9), net.ErrClosed)
		kit.Matches(t, a.Commit(10), net.ErrClosed)
		kit.Matches(t, a.Commit(0), net.ErrClosed)
	})
	t.Run("Dropped", func(t *testing.T) {
		kit.Story(t)
		var p, q []byte
		func() {
			a, b := dropped(t)
			meet(t, a, b)
			kit.Send(t, b, "something")
			var err error
			p, err = a.Peek(9)
			kit.Must(t, err)
			q, err = a.Reserve(1000)
			kit.Must(t, err)
			b.Close()
		}()
		for range 5 {
			runtime.GC()
			time.Sleep(time.Millisecond)
		}
		q[999] = 1
		if len(bytes.Clone(p)) != 9 {
			t.Error("what was on loan is gone")
		}
	})
}

// dropped returns a connection that the test does not hold on to.
func dropped(t *testing.T) (a, b *ipc.SharedConn) {
	a, b, err := ipc.SharedPair()
	kit.Must(t, err)
	return a, b
}

// Half of the buffer can always be reserved, and half of it seen, wherever the ring ends.
func TestSharedLoansAreInOnePiece(t *testing.T) {
	kit.Story(t)
	x, y := kit.Pair(t)
	a, b := share(t, x, ipc.ShareConfig{Buffer: 64 << 10}), share(t, y, ipc.ShareConfig{Buffer: 64 << 10})
	meet(t, a, b)
	for n := range 200 {
		size := 32<<10 - n*17%100
		p, err := a.Reserve(size)
		kit.Must(t, err)
		for i := range p {
			p[i] = patternAt(n + i)
		}
		kit.Must(t, a.Commit(size))
		q, err := b.Peek(size)
		kit.Must(t, err)
		for i := range q {
			if q[i] != patternAt(n+i) {
				t.Fatalf("round %d: byte %d is %d", n, i, q[i])
			}
		}
		kit.Must(t, b.Discard(size))
	}
}

// ---------------------------------------------------------------------------
// Files, children, servers

func TestSharedConnPassesFiles(t *testing.T) {
	overEachSetUp(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		r, w := kit.Pipe(t)
		f, err := r.File()
		kit.Kept(t, f, err)
		kit.Must(t, a.SendFiles(f))
		if ipc.UsesMemory(a) {
			kit.Send(t, a, "bytes go their own way")
			kit.Expect(t, b, "bytes go their own way")
		}
		files, err := b.RecvFiles(3)
		kit.Must(t, err)
		defer files[0].Close()
		got, err := ipc.FileReader(files[0])
		kit.Kept(t, got, err)
		kit.Send(t, w, "through the file")
		kit.Expect(t, got, "through the file")

		kit.Must(t, b.SetReadDeadline(time.Now().Add(kit.Brief)))
		_, err = b.RecvFiles(1)
		kit.TimedOut(t, err)
		kit.Must(t, b.SetReadDeadline(time.Time{}))
		kit.Must(t, a.Close())
		_, err = b.RecvFiles(1)
		if !errors.Is(err, io.EOF) {
			t.Errorf("files after the end: %v", err)
		}
	})
}

// A peer that leaves with files unread resets the socket.
func TestSharedRecvFilesAfterAPeerThatLeftSomeIsTheEnd(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a file that nobody received is left in the process of the receiver, which is this one")
	}
	overEachSetUp(t, func(t *testing.T, a, b *ipc.SharedConn) {
		meet(t, a, b)
		f, err := os.Open(os.DevNull)
		kit.Kept(t, f, err)
		kit.Must(t, a.SendFiles(f))
		kit.Must(t, b.Close())
		if _, err := a.RecvFiles(1); err != io.EOF {
			t.Errorf("RecvFiles: %v", err)
		}
	})
}

// childServesShared serves as a SharedListener, and echoes.
func childServesShared(p *kit.Parent, args []string) error {
	l := kit.Sure(ipc.ListenShared(kit.Sure(ipc.ParseAddr(args[0]))))
	done := kit.Begin(func() error {
		for c, err := range l.Conns() {
			if err != nil {
				return err
			}
			go func() { io.Copy(struct{ io.Writer }{c}, c); c.Close() }()
		}
		return nil
	})
	p.Say("serving")
	p.Hear()
	return errors.Join(l.Close(), <-done)
}

// childDialsShared dials and does what it is told.
func childDialsShared(p *kit.Parent, args []string) error {
	c := kit.Sure(ipc.DialShared(kit.Sure(ipc.ParseAddr(args[0]))))
	for {
		switch word, arg, _ := strings.Cut(p.Hear(), " "); word {
		case "write":
			kit.Sure(io.WriteString(c, arg))
		case "read":
			buf := make([]byte, len(arg))
			if kit.Sure(io.ReadFull(c, buf)); string(buf) != arg {
				return fmt.Errorf("read %q, not %q", buf, arg)
			}
		case "flood":
			p.Say("now")
			for {
				kit.Sure(c.Write(make([]byte, 1000)))
			}
		case "park":
			p.Say("now")
			c.Read(make([]byte, 1))
		case "close":
			if err := c.Close(); err != nil {
				return err
			}
		case "":
			return nil
		}
		p.Say("done")
	}
}

func echoesAll(t *testing.T, c io.ReadWriter, text string) {
	t.Helper()
	kit.Send(t, c, text)
	kit.Expect(t, c, text)
}

func TestSharedConnBetweenProcesses(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	server := kit.StartChild(t, "shared serve", addr.String())
	server.MustSay("serving")
	c, err := ipc.DialShared(addr)
	kit.Kept(t, c, err)
	echoesAll(t, c, large)
	if c.InMemory() != kit.HasMemory() {
		t.Errorf("in memory: %v", c.InMemory())
	}
	kit.IsProcess(t, kit.PeerOf(t, c), server.PID())
	total := 4 << 20
	done := kit.Begin(func() error { return writePattern(c, total, 1) })
	kit.Must(t, readPattern(c, total, 2))
	kit.Must(t, <-done)
	kit.Must(t, c.Close())
	server.End()
}

// A process that is killed leaves what it had written, and then the end.
func TestSharedConnPeerIsKilled(t *testing.T) {
	for _, at := range []string{"dial", "write", "park", "flood"} {
		t.Run(at, func(t *testing.T) {
			kit.Story(t)
			addr := kit.PathAddr(t)
			l := listenShared(t, addr)
			client := kit.StartChild(t, "shared dial", addr.String())
			c, err := l.AcceptShared()
			kit.Kept(t, c, err)
			reading := (<-chan error)(nil)
			switch at {
			case "write":
				client.Say("write last words")
				kit.Expect(t, c, "last words")
				client.MustSay("done")
				reading = kit.BeginRead(c)
				kit.AwaitParked(t, "(*SharedConn).Read", 1)
			case "park":
				client.Say("park")
				client.MustSay("now")
				kit.Send(t, c, "")
			case "flood":
				client.Say("flood")
				client.MustSay("now")
				_, err := io.ReadFull(c, make([]byte, 100<<10))
				kit.Must(t, err)
			}
			client.Kill()
			if reading != nil {
				if err := <-reading; err != io.EOF {
					t.Errorf("read: %v", err)
				}
			}
			if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read: %v", err)
			}
			_, err = c.Write(make([]byte, 10))
			kit.Matches(t, err, syscall.EPIPE)
		})
	}
}

// A process that is stopped, as by a debugger, keeps nobody from heeding a deadline, and loses nothing.
func TestSharedConnPeerIsStopped(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	server := kit.StartChild(t, "shared serve", addr.String())
	server.MustSay("serving")
	c, err := ipc.DialShared(addr)
	kit.Kept(t, c, err)
	kit.TalkToEcho(t, c)
	server.Suspend()
	kit.Must(t, c.SetDeadline(time.Now().Add(kit.Brief)))
	written := 0
	for err = nil; err == nil; {
		var n int
		n, err = c.Write(make([]byte, 10000))
		written += n
	}
	kit.TimedOut(t, err)
	kit.Must(t, c.SetDeadline(time.Now().Add(kit.Brief)))
	got := 0 // what it sent before it was stopped
	for err = nil; err == nil; {
		var n int
		n, err = c.Read(make([]byte, 10000))
		got += n
	}
	kit.TimedOut(t, err)
	kit.Must(t, c.SetDeadline(time.Time{}))
	server.Resume()
	_, err = io.ReadFull(c, make([]byte, written-got))
	kit.Must(t, err)
	kit.TalkToEcho(t, c)
	kit.Must(t, c.Close())
	server.End()
}

// childDiesInTheHandshake goes as far as it is told, and waits to be killed.
func childDiesInTheHandshake(p *kit.Parent, args []string) error {
	addr := kit.Sure(ipc.ParseAddr(args[0]))
	switch args[1] {
	case "connected":
		defer kit.Sure(ipc.Dial(addr)).Close()
	case "half a hello":
		kit.Sure(kit.Sure(ipc.Dial(addr)).Write([]byte("\xffipcshm\x01\x04\x03")))
	case "a hello without memory":
		hello := make([]byte, 32)
		copy(hello, "\xffipcshm\x01")
		kit.Sure(kit.Sure(ipc.Dial(addr)).Write(hello))
	case "its hello":
		c := kit.Sure(ipc.DialShared(addr))
		go c.Write([]byte("x"))
	case "everything":
		c := kit.Sure(ipc.DialShared(addr))
		go func() {
			c.Read(make([]byte, 1))
			for {
				c.Write(make([]byte, 1000))
			}
		}()
	}
	p.Say("here")
	p.Hear()
	return nil
}

// A client that dies in the handshake, wherever it has got to, is one that has gone.
func TestSharedConnPeerIsKilledInTheHandshake(t *testing.T) {
	for _, at := range []string{"connected", "half a hello", "a hello without memory", "its hello", "everything"} {
		t.Run(at, func(t *testing.T) {
			kit.Story(t)
			for _, first := range []string{"read", "write", "accept"} {
				if first == "accept" && runtime.GOOS == "windows" {
					continue // where one that has left without a word is never seen
				}
				addr := kit.PathAddr(t)
				l := listenShared(t, addr)
				client := kit.StartChild(t, "shared dies", addr.String(), at)
				client.MustSay("here")
				if first == "accept" {
					client.Kill()
				}
				c, err := l.AcceptShared()
				if err != nil {
					t.Fatal(err)
				}
				waiting := kit.Begin(func() error {
					if first == "write" {
						for {
							if _, err := c.Write(make([]byte, 1000)); err != nil {
								return err
							}
						}
					}
					_, err := io.Copy(io.Discard, c)
					return err
				})
				client.Kill()
				err = <-waiting
				if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%s first: %v", first, err)
				}
				kit.Must(t, c.Close())
				kit.Must(t, l.Close())
			}
		})
	}
}

func childInheritsShared(p *kit.Parent, args []string) error {
	c := kit.Sure(ipc.InheritedSharedConn("shared"))
	plain := kit.Sure(ipc.InheritedConn("plain"))
	s := kit.Sure(plain.Share(ipc.ShareConfig{}))
	for _, c := range []*ipc.SharedConn{c, s} {
		go io.Copy(struct{ io.Writer }{c}, c)
	}
	p.Hear()
	return errors.Join(c.Close(), s.Close())
}

func TestSharedConnIsInherited(t *testing.T) {
	kit.Story(t)
	a, b := sharedPair(t)
	x, y := kit.Pair(t)
	h := kit.NewHeir(t)
	h.Gets("shared", b)
	h.Gets("plain", y)
	c := h.Start("shared inherit")
	kit.Must(t, b.Close())
	kit.Must(t, y.Close())
	for _, c := range []*ipc.SharedConn{a, share(t, x, ipc.ShareConfig{})} {
		echoesAll(t, c, large)
		if c.InMemory() != kit.HasMemory() {
			t.Errorf("in memory: %v", c.InMemory())
		}
	}
	err := ipc.Inherit(&kit.NewHeir(t).Cmd, "late", a)
	kit.Matches(t, err, errors.ErrUnsupported)
	c.End()
	kit.ExpectEOF(t, a)
}

func childInheritsSharedListener(p *kit.Parent, args []string) error {
	if _, err := ipc.InheritedListener("l"); err == nil {
		return errors.New("the listener is taken as another kind")
	}
	l := kit.Sure(ipc.InheritedSharedListener("l"))
	p.Say("serving")
	c := kit.Sure(l.AcceptShared())
	io.Copy(struct{ io.Writer }{c}, c)
	return errors.Join(c.Close(), l.Close())
}

func TestSharedListenerIsInherited(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenShared(t, addr)
		h := kit.NewHeir(t)
		h.Gets("l", l)
		child := h.Start("shared listener inherit")
		child.MustSay("serving")
		kit.Must(t, l.Close())
		c, err := ipc.DialShared(addr)
		kit.Kept(t, c, err)
		echoesAll(t, c, large)
		if ipc.UsesMemory(c) != kit.HasMemory() {
			t.Errorf("in memory: %v", ipc.UsesMemory(c))
		}
		kit.Must(t, c.Close())
		child.End()
		kit.Serves(t, kit.Listen(t, addr), addr) // the name went with the child
	})
}

// What serves a net.Listener serves a SharedListener unchanged.
func TestSharedListenerServesHTTP(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	l, err := ipc.ListenShared(addr)
	kit.Must(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Write(bytes.ToUpper(body))
	})}
	serving := kit.Begin(func() error { return server.Serve(l) })
	for name, dial := range map[string]func(ctx context.Context) (net.Conn, error){
		"shared": func(ctx context.Context) (net.Conn, error) { return ipc.Dialer{}.DialShared(ctx, addr) },
		"plain":  func(ctx context.Context) (net.Conn, error) { return ipc.Dialer{}.DialContext(ctx, addr) },
	} {
		t.Run(name, func(t *testing.T) {
			transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport}
			for _, n := range []int{0, 10, 1 << 20} {
				body := strings.Repeat("a", n)
				resp, err := client.Post("http://server/", "text/plain", strings.NewReader(body))
				kit.Must(t, err)
				got, err := io.ReadAll(resp.Body)
				kit.Must(t, err)
				kit.Must(t, resp.Body.Close())
				if string(got) != strings.ToUpper(body) {
					t.Errorf("%d bytes came back, not %d", len(got), n)
				}
			}
		})
	}
	kit.Must(t, server.Shutdown(context.Background()))
	kit.Matches(t, <-serving, http.ErrServerClosed)
}

func TestSharedListenerIsAListener(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	l := listenShared(t, addr)
	kit.Must(t, l.SetDeadline(time.Now().Add(kit.Brief)))
	_, err := l.Accept()
	kit.TimedOut(t, err)
	kit.Must(t, l.SetDeadline(time.Time{}))
	kit.Must(t, l.SetAccess(ipc.Everyone, func(ipc.Peer) error { return nil }))
	done := kit.Begin(func() error {
		for c, err := range l.Conns() {
			if err != nil {
				return err
			}
			go func() { io.WriteString(c, "welcome"); c.Close() }()
		}
		return nil
	})
	for range 3 {
		c, err := ipc.DialShared(addr)
		kit.Kept(t, c, err)
		kit.Expect(t, c, "welcome")
		kit.ExpectEOF(t, c)
		kit.Must(t, c.Close())
	}
	kit.Must(t, l.Close())
	kit.Must(t, <-done)
	_, err = ipc.DialShared(addr)
	kit.Matches(t, err, ipc.ErrNoListener)
}

// ---------------------------------------------------------------------------
// Cost

func TestSharedConnDoesNotAllocate(t *testing.T) {
	if kit.UnderRace() {
		t.Skip("the race detector allocates")
	}
	kit.NeedsMemory(t)
	for _, spin := range []time.Duration{0, time.Millisecond} {
		t.Run(spin.String(), func(t *testing.T) {
			kit.Story(t)
			a, b := sharedPair(t)
			a.SetSpin(spin)
			b.SetSpin(spin)
			meet(t, a, b)
			echo := kit.Begin(func() error {
				buf := make([]byte, 100)
				for {
					n, err := b.Read(buf)
					if err == io.EOF {
						return nil
					} else if err != nil {
						return err
					}
					if _, err := b.Write(buf[:n]); err != nil {
						return err
					}
				}
			})
			buf := make([]byte, 100)
			if n := testing.AllocsPerRun(500, func() {
				p, err := a.Reserve(100)
				if err == nil {
					clear(p)
					err = a.Commit(100)
				}
				if err == nil {
					_, err = io.ReadFull(a, buf)
				}
				if err == nil {
					_, err = a.Write(buf)
				}
				if err == nil {
					p, err = a.Peek(100)
				}
				if err == nil {
					err = a.Discard(len(p))
				}
				if err != nil {
					t.Fatal(err)
				}
			}); n != 0 {
				t.Errorf("%v allocations", n)
			}
			kit.Must(t, a.Close())
			kit.Must(t, <-echo)
		})
	}
}

func TestSharedConnsThatAreIdle(t *testing.T) {
	kit.Story(t)
	many := 300 // descriptors: 6 for each
	if testing.Short() || kit.UnderRace() {
		many = 50
	}
	if kit.CountDescriptors == nil {
		many = 30 // a limit of 256 is common
	}
	var ends [][2]*ipc.SharedConn
	var waits []<-chan error
	for range many {
		a, b := sharedPair(t)
		meet(t, a, b)
		ends = append(ends, [2]*ipc.SharedConn{a, b})
		waits = append(waits, kit.BeginRead(b))
	}
	for _, c := range ends {
		kit.Send(t, c[1], "still here")
		kit.Expect(t, c[0], "still here")
		kit.Must(t, c[0].Close())
	}
	for _, wait := range waits {
		<-wait
	}
}

// ---------------------------------------------------------------------------
// Early data

// What little is said at first goes through the socket, and more of it sets the memory up,
// whoever has more to say. No byte is lost, doubled or moved on the way.
func TestSharedConnBecomesShared(t *testing.T) {
	for _, way := range sharedWays {
		for _, speaker := range []string{"client", "server", "both"} {
			for _, sizes := range [][]int{{1}, {5000}, {3000, 3000}, {4096, 1}, {100, 4097, 1}, {0, 7, 64}} {
				t.Run(fmt.Sprint(way.name, speaker, sizes), func(t *testing.T) {
					kit.Story(t)
					a, b := way.make(t)
					kit.Send(t, a, "hello")
					kit.Expect(t, b, "hello")
					kit.Send(t, b, "welcome")
					kit.Expect(t, a, "welcome")
					if ipc.UsesMemory(a) || ipc.UsesMemory(b) {
						t.Error("little is said, and they share memory")
					}
					if way.memory && (a.InMemory() != kit.HasMemory() || b.InMemory() != kit.HasMemory()) {
						t.Errorf("in memory once there is more to say: %v and %v", a.InMemory(), b.InMemory())
					}
					total := 64 << 10
					if sizes[0] == 1 {
						total = 8 << 10 // a slow machine needs a millisecond for each write
					}
					speak := func(c *ipc.SharedConn) error {
						for n, i := 0, 0; n < total; i++ {
							p := make([]byte, min(sizes[i%len(sizes)], total-n))
							for j := range p {
								p[j] = byte((n + j) * 7 / 3)
							}
							if _, err := c.Write(p); err != nil {
								return err
							}
							n += len(p)
						}
						return nil
					}
					hear := func(c *ipc.SharedConn) error {
						p := make([]byte, total)
						if _, err := io.ReadFull(c, p); err != nil {
							return err
						}
						for i, v := range p {
							if v != byte(i*7/3) {
								return fmt.Errorf("byte %d is %d", i, v)
							}
						}
						return nil
					}
					var done []<-chan error
					if speaker != "server" {
						done = append(done, kit.Begin(func() error { return speak(a) }), kit.Begin(func() error { return hear(b) }))
					}
					if speaker != "client" {
						done = append(done, kit.Begin(func() error { return speak(b) }), kit.Begin(func() error { return hear(a) }))
					}
					for _, d := range done {
						kit.Must(t, <-d)
					}
					if memory := way.memory && kit.HasMemory(); ipc.UsesMemory(a) != memory || ipc.UsesMemory(b) != memory {
						t.Errorf("in memory: %v and %v", ipc.UsesMemory(a), ipc.UsesMemory(b))
					}
				})
			}
		}
	}
}

// Peek goes on from what came early to what came through memory.
func TestSharedPeekOverEarlyData(t *testing.T) {
	overEachWay(t, func(t *testing.T, a, b *ipc.SharedConn, _ bool) {
		kit.Send(t, a, "early, ")
		p, err := b.Peek(3)
		if kit.Must(t, err); string(p) != "ear" {
			t.Errorf("peeked %q", p)
		}
		writing := kit.Begin(func() error { _, err := io.WriteString(a, large); return err })
		p, err = b.Peek(5000)
		if kit.Must(t, err); string(p) != ("early, " + large)[:5000] {
			t.Errorf("peeked %.40q", p)
		}
		kit.Must(t, <-writing)
		kit.Must(t, b.Discard(2))
		p, err = b.Peek(0)
		if kit.Must(t, err); !strings.HasPrefix("rly, "+large, string(p)) {
			t.Errorf("peeked %.40q", p)
		}
		kit.Must(t, b.Discard(1))
		kit.Expect(t, b, "ly, "+large)
		p, err = a.Reserve(4)
		kit.Must(t, err)
		copy(p, "more")
		kit.Must(t, a.Commit(4))
		kit.Expect(t, b, "more")
	})
}

// CloseWrite and CloseRead do not wait for a peer that calls nothing.
func TestSharedConnHalfCloseEarly(t *testing.T) {
	for _, way := range sharedWays {
		t.Run(way.name, func(t *testing.T) {
			kit.Story(t)
			a, b := way.make(t)
			kit.Send(t, a, "hello")
			kit.Expect(t, b, "hello")
			kit.Send(t, b, "to be read")
			kit.Must(t, a.CloseWrite())
			kit.Must(t, a.CloseWrite())
			_, err := a.Write([]byte("x"))
			kit.Matches(t, err, syscall.EPIPE)
			kit.Send(t, b, " and more")
			kit.Expect(t, a, "to be read and more")
			kit.ExpectEOF(t, b)
			writing := kit.Begin(func() error { _, err := io.WriteString(b, large); return err })
			kit.Expect(t, a, large)
			kit.Must(t, <-writing)
			kit.Must(t, b.Close())
			kit.ExpectEOF(t, a)

			a, b = way.make(t)
			kit.Send(t, a, "hello")
			kit.Expect(t, b, "hello")
			reading := kit.BeginRead(b)
			kit.AwaitParked(t, "(*SharedConn).Read", 1)
			kit.Must(t, b.CloseRead())
			if err := <-reading; err != io.EOF {
				t.Errorf("a read that waited: %v", err)
			}
			kit.ExpectEOF(t, b)
			for {
				if _, err = a.Write(make([]byte, 1000)); err != nil {
					break
				}
			}
			kit.Matches(t, err, syscall.EPIPE)
			writing = kit.Begin(func() error { _, err := io.WriteString(b, large); return err })
			kit.Expect(t, a, large)
			kit.Must(t, <-writing)
		})
	}
}

// What was written early is read after the peer has closed its end, also if it has left
// something unread.
func TestSharedConnCloseLeavesEarlyData(t *testing.T) {
	overEachWay(t, func(t *testing.T, a, b *ipc.SharedConn, _ bool) {
		kit.Send(t, a, "hello")
		kit.Expect(t, b, "hello")
		kit.Send(t, b, "nobody reads this")
		kit.Send(t, a, "the last words")
		kit.Must(t, a.Close())
		kit.Expect(t, b, "the last words")
		kit.ExpectEOF(t, b)
		_, err := b.Write([]byte("x"))
		kit.Matches(t, err, syscall.EPIPE)
	})
}

// Files take the way over the socket, whichever end sends them first.
func TestSharedConnPassesFilesAtFirst(t *testing.T) {
	overEachWay(t, func(t *testing.T, a, b *ipc.SharedConn, _ bool) {
		kit.Send(t, a, "hello")
		kit.Expect(t, b, "hello")
		r, w := kit.Pipe(t)
		f, err := w.File()
		kit.Kept(t, f, err)
		sending := kit.Begin(func() error { return b.SendFiles(f) })
		files, err := a.RecvFiles(1)
		kit.Must(t, err)
		kit.Must(t, <-sending)
		_, err = files[0].WriteString("through the file")
		kit.Must(t, err)
		kit.Must(t, files[0].Close())
		kit.Expect(t, r, "through the file")
	})
}

// What is looked at or reserved early stays as it is while the other half sets the memory up.
func TestSharedLoansWhileMemoryIsSetUp(t *testing.T) {
	kit.Story(t)
	for range 20 {
		a, b := sharedPair(t)
		kit.Send(t, b, "1234")
		written := make(chan struct{})
		writing := kit.Begin(func() error {
			defer close(written)
			_, err := io.WriteString(a, large)
			return err
		})
		reading := kit.Begin(func() error {
			for i := range 4 {
				p, err := a.Peek(1)
				if err != nil {
					return err
				}
				<-written
				if p[0] != '1'+byte(i) {
					return fmt.Errorf("peeked %q", p)
				}
				if err := a.Discard(1); err != nil {
					return err
				}
			}
			return nil
		})
		reserving := kit.Begin(func() error {
			p, err := b.Reserve(4)
			if err == nil {
				copy(p, "more")
				err = b.Commit(4)
			}
			return err
		})
		kit.Expect(t, b, large)
		kit.Must(t, <-writing)
		kit.Must(t, <-reading)
		kit.Must(t, <-reserving)
		kit.Expect(t, a, "more")
		kit.Must(t, a.Close())
		kit.Must(t, b.Close())
	}
}

// What was reserved early may be reserved again when the memory is there, and stays as it was.
func TestSharedReserveAgain(t *testing.T) {
	overEachWay(t, func(t *testing.T, a, b *ipc.SharedConn, _ bool) {
		kit.Send(t, a, "hello")
		kit.Expect(t, b, "hello")
		p, err := a.Reserve(4)
		kit.Must(t, err)
		copy(p, "long")
		writing := kit.Begin(func() error { _, err := io.WriteString(b, large); return err })
		kit.Expect(t, a, large)
		kit.Must(t, <-writing)
		p, err = a.Reserve(100)
		kit.Must(t, err)
		copy(p[4:], "er than that")
		kit.Must(t, a.Commit(16))
		kit.Expect(t, b, "longer than that")
	})
}

// A write into what Reserve has lent fails at once, though it is more than early data.
func TestSharedWriteWhileReservedEarly(t *testing.T) {
	kit.Story(t)
	a, b := sharedPair(t)
	kit.Send(t, a, "hello")
	kit.Expect(t, b, "hello")
	_, err := a.Reserve(4)
	kit.Must(t, err)
	if _, err := io.WriteString(a, large); err == nil {
		t.Error("a write goes beside what is reserved")
	}
	kit.Must(t, a.Commit(0))
}

// A read gets early data also while a write of the same end waits for the memory.
func TestSharedReadWhileMemoryIsSetUp(t *testing.T) {
	overEachWay(t, func(t *testing.T, a, b *ipc.SharedConn, _ bool) {
		kit.Send(t, a, "hello")
		kit.Expect(t, b, "hello")
		writing := kit.Begin(func() error { _, err := io.WriteString(a, large); return err })
		kit.AwaitParked(t, "(*SharedConn).Write", 1)
		reading := kit.Begin(func() error {
			p := make([]byte, len("an event"))
			_, err := io.ReadFull(a, p)
			return err
		})
		kit.AwaitParked(t, "(*SharedConn).Read", 1)
		kit.Send(t, b, "an event")
		kit.Must(t, <-reading)
		kit.Expect(t, b, large)
		kit.Must(t, <-writing)
	})
}

// Both halves can be closed early, in any order, and no matter what the deadlines are.
func TestSharedConnClosesBothHalvesEarly(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a named pipe has no half-close, which the second half needs")
	}
	for _, way := range sharedWays {
		for _, order := range []string{"read, write", "write, read", "at once"} {
			t.Run(way.name+" "+order, func(t *testing.T) {
				kit.Story(t)
				a, b := way.make(t)
				kit.Send(t, a, "hello")
				kit.Expect(t, b, "hello")
				kit.Send(t, b, "abcd")
				kit.Expect(t, a, "ab")
				kit.Must(t, a.SetDeadline(time.Unix(1, 0)))
				closes := []func() error{a.CloseRead, a.CloseWrite}
				switch order {
				case "write, read":
					closes[0], closes[1] = closes[1], closes[0]
				case "at once":
					var done []<-chan error
					for _, end := range append(closes, closes...) {
						done = append(done, kit.Begin(end))
					}
					for _, d := range done {
						kit.Must(t, <-d)
					}
				}
				for _, end := range append(closes, closes...) {
					kit.Must(t, end())
				}
				kit.Must(t, a.SetDeadline(time.Time{}))
				kit.ExpectEOF(t, a)
				if _, err := a.Peek(1); err != io.EOF {
					t.Errorf("peek: %v", err)
				}
				_, err := a.Write([]byte("x"))
				kit.Matches(t, err, syscall.EPIPE)
				kit.ExpectEOF(t, b)
				for err = nil; err == nil; {
					_, err = b.Write(make([]byte, 1000))
				}
				kit.Matches(t, err, syscall.EPIPE)
			})
		}
	}
}

// halvesToClose are ways to close halves before the memory is set up.
var halvesToClose = []string{"read", "write", "read, write", "write, read", "at once"}

// closesHalves closes halves of c, which waits for nobody. It ends the calls that wait there.
func closesHalves(t *testing.T, c *ipc.SharedConn, how string, reading, writing <-chan error) (read, write bool) {
	t.Helper()
	read, write = how != "write", how != "read"
	ends := map[string]func() error{"read": c.CloseRead, "write": c.CloseWrite}
	if how == "at once" {
		var done []<-chan error
		for range 2 {
			done = append(done, kit.Begin(c.CloseRead), kit.Begin(c.CloseWrite))
		}
		for _, d := range done {
			kit.Must(t, <-d)
		}
	} else {
		for range 2 {
			for half := range strings.SplitSeq(how, ", ") {
				kit.Must(t, ends[half]())
			}
		}
	}
	if read {
		if err := <-reading; err != io.EOF {
			t.Errorf("a read that waited: %v", err)
		}
		kit.ExpectEOF(t, c)
		if _, err := c.Peek(1); err != io.EOF {
			t.Errorf("peek: %v", err)
		}
	}
	if write {
		kit.Matches(t, <-writing, syscall.EPIPE)
		_, err := c.Write([]byte("x"))
		kit.Matches(t, err, syscall.EPIPE)
	}
	return read, write
}

// writesEnd proves that the peer of c reads no more, and that c gets to know.
func writesEnd(t *testing.T, c io.Writer) {
	t.Helper()
	for {
		if _, err := c.Write(make([]byte, 1000)); err != nil {
			kit.Matches(t, err, syscall.EPIPE)
			return
		}
	}
}

// A server closes halves before its client has said anything. The client gets to know when it
// says something, whatever that is.
func TestSharedListenerClosesHalvesOfASilentClient(t *testing.T) {
	for _, how := range halvesToClose {
		for _, client := range []string{"writes little", "writes much", "reads", "is plain", "says nothing", "leaves"} {
			t.Run(how+", it "+client, func(t *testing.T) {
				kit.Story(t)
				l := listenShared(t, kit.PathAddr(t))
				raw := kit.Dial(t, l.Addr())
				b, err := l.AcceptShared()
				kit.Kept(t, b, err)
				reading, writing := kit.BeginRead(b), kit.Begin(func() error { _, err := io.WriteString(b, "answer"); return err })
				kit.AwaitParked(t, "(*SharedConn).setUp", 2)
				read, write := closesHalves(t, b, how, reading, writing)
				if b.InMemory() {
					t.Error("in memory")
				}
				a, told := net.Conn(raw), true
				switch client {
				case "says nothing":
					kit.Must(t, b.Close())
					kit.ExpectEOF(t, a)
					return
				case "leaves":
					kit.Must(t, a.Close())
					return
				case "is plain":
					told = runtime.GOOS == "linux" // of both by the socket
				default:
					a = share(t, raw, ipc.ShareConfig{})
				}
				said := map[string]string{"writes little": "hello", "is plain": "hello", "writes much": large}[client]
				speaking := kit.Begin(func() error { _, err := io.WriteString(a, said); return err })
				if !read && said != "" {
					kit.Must(t, <-reading)
					kit.Expect(t, b, said[1:])
				}
				if err := <-speaking; !read || client != "writes much" {
					kit.Must(t, err)
				} else {
					kit.Matches(t, err, syscall.EPIPE)
				}
				if !write {
					kit.Expect(t, a, "answer")
					kit.Must(t, <-writing)
				} else if told {
					kit.ExpectEOF(t, a)
				}
				// On Windows the handles of a hello that nobody receives stay open in the process
				// that they were made for, which is this one.
				if read && told && runtime.GOOS != "windows" {
					writesEnd(t, a)
				}
				if ipc.UsesMemory(b) {
					t.Error("in memory after a half was closed")
				}
			})
		}
	}
}

// An end closes halves while it waits for the peer to answer to its memory. The peer gets to know
// when it does so.
func TestSharedConnClosesHalvesBeforeThePeerAnswers(t *testing.T) {
	for _, how := range halvesToClose {
		t.Run(how, func(t *testing.T) {
			overEachWay(t, func(t *testing.T, a, b *ipc.SharedConn, memory bool) {
				if !memory && runtime.GOOS != "linux" {
					t.Skip("a socket of this system does not tell the peer of both halves")
				}
				writing := kit.Begin(func() error { _, err := io.WriteString(a, large); return err })
				kit.AwaitParked(t, "(*SharedConn).Write", 1)
				reading := kit.BeginRead(a)
				kit.AwaitParked(t, "(*SharedConn).Read", 1)
				kit.Eventually(t, "the memory is sent", func() bool { return ipc.SentMemory(a) })
				read, write := closesHalves(t, a, how, reading, writing)
				if a.InMemory() != kit.HasMemory() {
					t.Errorf("in memory as soon as the peer has answered: %v", a.InMemory())
				}
				if write {
					kit.ExpectEOF(t, b)
				} else {
					kit.Expect(t, b, large)
					kit.Must(t, <-writing)
				}
				if read {
					writesEnd(t, b)
				} else {
					kit.Send(t, b, "x")
					kit.Must(t, <-reading)
				}
				if ipc.UsesMemory(b) != (memory && kit.HasMemory()) {
					t.Errorf("in memory: %v", ipc.UsesMemory(b))
				}
			})
		})
	}
}

// A server that has closed a half leaves nothing, whether its client has said anything or not.
func TestSharedListenerHalfCloseLeavesNothing(t *testing.T) {
	kit.Story(t)
	l := listenShared(t, kit.PathAddr(t))
	for _, says := range []string{"", "hello"} {
		kit.LeavesNothing(t, 20, func() {
			a, err := ipc.DialShared(l.Addr().(ipc.Addr))
			kit.Must(t, err)
			b, err := l.AcceptShared()
			kit.Must(t, err)
			kit.Must(t, b.CloseWrite())
			if says != "" {
				kit.Send(t, a, says)
				kit.Expect(t, b, says)
			}
			kit.Must(t, b.Close())
			kit.ExpectEOF(t, a)
			kit.Must(t, a.Close())
		})
	}
}

// After CloseRead nothing is read, also not what had come with other data before.
func TestSharedConnCloseReadKeepsNothing(t *testing.T) {
	overEachWay(t, func(t *testing.T, a, b *ipc.SharedConn, _ bool) {
		kit.Send(t, a, "hello")
		kit.Expect(t, b, "hello")
		kit.Send(t, b, "abcd")
		kit.Expect(t, a, "ab")
		kit.Must(t, a.CloseRead())
		kit.ExpectEOF(t, a)
		writing := kit.Begin(func() error { _, err := io.WriteString(a, large); return err })
		kit.Expect(t, b, large)
		kit.Must(t, <-writing)
		kit.ExpectEOF(t, a)
	})
}

// The end of a peer that has left a hello unread is io.EOF.
func TestSharedConnEndsBehindAnUnreadHello(t *testing.T) {
	kit.Story(t)
	for range 100 {
		a, b := sharedPair(t)
		kit.Send(t, a, "hello")
		kit.Expect(t, b, "hello")
		here, there := kit.BeginRead(a), kit.BeginRead(b)
		kit.Must(t, a.CloseRead())
		if err := <-here; err != io.EOF {
			t.Errorf("a read that waited: %v", err)
		}
		kit.Must(t, a.Close())
		if err := <-there; err != io.EOF {
			t.Errorf("the peer's read: %v", err)
		}
		kit.Must(t, b.Close())
	}
}
