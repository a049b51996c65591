//go:build unix || windows

package ipc

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// sharedInMemory returns two ends that have set their memory up, or skips the test.
func sharedInMemory(t *testing.T) (a, b *SharedConn) {
	t.Helper()
	dog := time.AfterFunc(time.Minute, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { dog.Stop() })
	a, b, err := SharedPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	done := make(chan error, 1)
	go func() { _, err := a.Write(make([]byte, earlyMax+1)); done <- err }()
	if _, err := io.ReadFull(b, make([]byte, earlyMax+1)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !a.InMemory() {
		t.Skip("this system has no memory that can be shared safely")
	}
	return a, b
}

// ---------------------------------------------------------------------------
// Hostile peers

// hostile is what a peer can do to the words that it writes. None may panic, make the
// other end touch what is not in the ring, or keep it from ending by its deadline.
var hostile = map[string]func(p *controlPage, random *rand.Rand){
	"scribbles everywhere": func(p *controlPage, random *rand.Rand) {
		for _, word := range [...]*atomic.Uint32{&p.head, &p.tail, &p.rwait, &p.wwait} {
			word.Store(random.Uint32())
		}
		p.wclosed.Store(random.Uint32() & 1)
		p.rclosed.Store(random.Uint32() & 1)
	},
	"head jumps":          func(p *controlPage, random *rand.Rand) { p.head.Store(random.Uint32()) },
	"head goes back":      func(p *controlPage, random *rand.Rand) { p.head.Add(^uint32(0)) },
	"head is too far":     func(p *controlPage, random *rand.Rand) { p.head.Add(bufferDefault + 1) },
	"tail jumps":          func(p *controlPage, random *rand.Rand) { p.tail.Store(random.Uint32()) },
	"tail goes back":      func(p *controlPage, random *rand.Rand) { p.tail.Add(^uint32(0)) },
	"tail passes head":    func(p *controlPage, random *rand.Rand) { p.tail.Add(1) },
	"always asks to ring": func(p *controlPage, random *rand.Rand) { p.rwait.Add(2); p.wwait.Add(2); p.rwait.Or(1); p.wwait.Or(1) },
	"closes and opens": func(p *controlPage, random *rand.Rand) {
		p.wclosed.Store(random.Uint32())
		p.rclosed.Store(random.Uint32())
	},
}

func TestSharedHostileControlPage(t *testing.T) {
	for name, attack := range hostile {
		t.Run(name, func(t *testing.T) {
			rounds := 200
			if testing.Short() {
				rounds = 20
			}
			a, b := sharedInMemory(t)
			for round := range rounds {
				if round%20 == 19 {
					a.Close()
					b.Close()
					a, b = sharedInMemory(t)
				}
				random := rand.New(rand.NewSource(int64(round)))
				useWhile(t, a, func() { attack(b.ownMem.control(), random) })
			}
		})
	}
}

// useWhile uses the connection in every way while somebody attacks it.
func useWhile(t *testing.T, c *SharedConn, attack func()) {
	t.Helper()
	c.SetDeadline(time.Now().Add(3 * time.Millisecond))
	var busy sync.WaitGroup
	check := func(err error) {
		if err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.EPROTO) {
			t.Errorf("unexpected: %v", err)
		}
	}
	busy.Go(func() {
		buf := make([]byte, 100<<10)
		for range 5 {
			n, err := c.Read(buf)
			if n < 0 || n > len(buf) {
				t.Errorf("%d bytes are read", n)
			}
			check(err)
			p, err := c.Peek(0)
			if len(p) > bufferDefault {
				t.Errorf("%d bytes are there", len(p))
			}
			bytes.Count(p, []byte{0}) // all of them can be read
			check(err)
			if err == nil {
				check(c.Discard(len(p)))
			}
		}
	})
	busy.Go(func() {
		buf := make([]byte, 100<<10)
		for range 5 {
			_, err := c.Write(buf)
			check(err)
			p, err := c.Reserve(30 << 10)
			check(err)
			if err == nil {
				clear(p)
				check(c.Commit(len(p)))
			}
		}
	})
	quit := make(chan struct{})
	var attacker sync.WaitGroup
	attacker.Go(func() {
		for {
			select {
			case <-quit:
				return
			default:
				attack()
				runtime.Gosched()
			}
		}
	})
	busy.Wait()
	close(quit)
	attacker.Wait()
}

// An index that cannot be is noticed, and everything ends.
func TestSharedImpossibleIndexEndsTheConnection(t *testing.T) {
	for name, damage := range map[string]func(p *controlPage){
		"head": func(p *controlPage) { p.head.Add(bufferDefault + 1) },
		"tail": func(p *controlPage) { p.tail.Add(1 << 20) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := sharedInMemory(t)
			waiting := make(chan error, 1)
			go func() { // waits for what the damage is not about
				if name == "head" {
					_, err := a.Write(make([]byte, 1<<20))
					waiting <- err
				} else {
					_, err := a.Read(make([]byte, 1))
					waiting <- err
				}
			}()
			waitForEpoch(t, a)
			damage(b.ownMem.control())
			if name == "head" {
				_, err := a.Read(make([]byte, 1))
				isProtocolError(t, err)
			} else {
				_, err := a.Write(make([]byte, 1<<20))
				isProtocolError(t, err)
			}
			isProtocolError(t, <-waiting)
			_, err := b.Write([]byte("x")) // the peer learns of the end
			if !errors.Is(err, syscall.EPIPE) {
				t.Errorf("the peer's write: %v", err)
			}
		})
	}
}

// waitForEpoch waits until a half of the connection is parked.
func waitForEpoch(t *testing.T, c *SharedConn) {
	t.Helper()
	p := c.ownMem.control()
	for end := time.Now().Add(20 * time.Second); (p.rwait.Load()|p.wwait.Load())&1 == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody parks")
		}
	}
}

func isProtocolError(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, syscall.EPROTO) {
		t.Errorf("error is %v, not that the peer broke the protocol", err)
	}
}

// Doorbells beyond what was asked for cost time, and nothing else.
func TestSharedSurplusDoorbells(t *testing.T) {
	a, b := sharedInMemory(t)
	quit, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-quit:
				return
			default:
				ringBell(b.r.bell)
				ringBell(b.w.bell)
			}
		}
	}()
	a.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	a.SetReadDeadline(time.Time{})
	converse(t, a, b, 200)
	reading := make(chan error, 1)
	go func() { _, err := a.Read(make([]byte, 1)); reading <- err }()
	waitForEpoch(t, a)
	a.Close()
	if err := <-reading; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	close(quit)
	<-stopped
}

// A peer that never takes its doorbells does not hold up who rings them.
func TestSharedDoorbellsThatNobodyTakes(t *testing.T) {
	a, b := sharedInMemory(t)
	page := b.ownMem.control()
	buf := make([]byte, 1)
	for i := range uint32(20000) {
		page.rwait.Store(2*i + 1)
		page.tail.Store(a.out.head) // it reads everything at once
		if _, err := a.Write(buf); err != nil {
			t.Fatal(err)
		}
	}
	if a.out.head == 0 {
		t.Error("nothing was written")
	}
}

// converse makes n round trips.
func converse(t *testing.T, a, b *SharedConn, n int) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, 10)
		for range n {
			if _, err := io.ReadFull(b, buf); err != nil {
				done <- err
				return
			}
			if _, err := b.Write(buf); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	buf := make([]byte, 10)
	for i := range n {
		buf[0] = byte(i)
		if _, err := a.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(a, buf); err != nil {
			t.Fatal(err)
		}
		if buf[0] != byte(i) {
			t.Fatalf("%d comes back as %d", byte(i), buf[0])
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// ---------------------------------------------------------------------------
// Wrapping

// skipAhead makes both ends believe that so many bytes went each way, and so many waits.
func skipAhead(a, b *SharedConn, bytes, epochs uint32) {
	for _, ends := range [...][2]*SharedConn{{a, b}, {b, a}} {
		c, peer := ends[0], ends[1]
		c.out.head, c.out.tail = c.out.head+bytes, c.out.head+bytes
		peer.in.tail, peer.in.head = c.out.head, c.out.head
		c.ownMem.control().head.Store(c.out.head)
		peer.ownMem.control().tail.Store(peer.in.tail)
		for _, h := range [...]*sharedHalf{&c.r, &c.w} {
			h.epoch = epochs &^ 1
			h.word.Store(h.epoch)
		}
	}
}

// The indices wrap at 2^32, and so do the epochs.
func TestSharedIndicesAndEpochsWrap(t *testing.T) {
	for _, once := range []bool{false, true} {
		mapsOnce = once
		a, b := sharedInMemory(t)
		mapsOnce = false
		a.SetSpin(-1)
		b.SetSpin(-1)
		skipAhead(a, b, 1<<32-1-3*bufferDefault, 1<<32-20)
		const total = 10 * bufferDefault
		done := make(chan error, 1)
		go func() {
			for i := 0; i < total; {
				n := min(1+i*7%50000, total-i)
				p := make([]byte, n)
				for j := range p {
					p[j] = byte((i + j) * 13 >> 3)
				}
				if _, err := a.Write(p); err != nil {
					done <- err
					return
				}
				i += n
			}
			done <- nil
		}()
		buf := make([]byte, 70000)
		for i := 0; i < total; {
			n, err := b.Read(buf[:1+i*11%len(buf)])
			if err != nil {
				t.Fatal(err)
			}
			for j, v := range buf[:n] {
				if v != byte((i+j)*13>>3) {
					t.Fatalf("byte %d is %d", i+j, v)
				}
			}
			i += n
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		converse(t, a, b, 50)
		if b.in.tail > bufferDefault*20 || b.r.epoch > 1<<31 && a.r.epoch > 1<<31 {
			t.Errorf("nothing has wrapped: %d bytes, epochs %d and %d", b.in.tail, a.r.epoch, b.r.epoch)
		}
	}
}

// Where the ring cannot be mapped twice in a row, what goes around its end is copied.
func TestSharedRingMappedOnce(t *testing.T) {
	mapsOnce = true
	a, b := sharedInMemory(t)
	mapsOnce = false
	if a.ownMem.again != 0 {
		t.Fatal("mapped twice")
	}
	for n := range 100 {
		size := bufferDefault/2 - n*13
		p, err := a.Reserve(size)
		if err != nil {
			t.Fatal(err)
		}
		for i := range p {
			p[i] = byte(i + n)
		}
		if err := a.Commit(size); err != nil {
			t.Fatal(err)
		}
		q, err := b.Peek(size)
		if err != nil {
			t.Fatal(err)
		}
		for i := range q {
			if q[i] != byte(i+n) {
				t.Fatalf("round %d: byte %d is %d", n, i, q[i])
			}
		}
		if err := b.Discard(size); err != nil {
			t.Fatal(err)
		}
	}
}

// ---------------------------------------------------------------------------
// The two faults

// A late doorbell: the writer is held up between its index and its look at the epoch. By
// then the reader has taken the bytes and is parked again, for the next ones. The doorbell
// that it then gets in vain must not count as that of its wait.
func TestSharedLateDoorbell(t *testing.T) {
	a, b := sharedInMemory(t)
	b.SetSpin(-1)
	got := make(chan byte)
	go func() {
		buf := make([]byte, 1)
		for {
			if _, err := b.Read(buf); err != nil {
				close(got)
				return
			}
			got <- buf[0]
		}
	}()
	for i := range byte(50) {
		// Write, in steps.
		a.out.put([]byte{i}, 1)
		a.out.head++
		a.out.own.head.Store(a.out.head)
		ringBell(a.w.bell) // so that the reader sees it, parked or not
		if v := <-got; v != i {
			t.Fatalf("read %d, want %d", v, i)
		}
		waitForEpoch(t, b)
		a.ring(&a.w, a.out.peer.rwait.Load(), &a.out.rung) // late

		// The next one must ring again.
		if _, err := a.Write([]byte{i + 100}); err != nil {
			t.Fatal(err)
		}
		select {
		case v := <-got:
			if v != i+100 {
				t.Fatalf("read %d, want %d", v, i+100)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the reader was not woken")
		}
		waitForEpoch(t, b)
	}
	a.Close()
	for range got {
	}
}

// Both halves of one end are parked, and each gets its own doorbells.
func TestSharedBothHalvesParked(t *testing.T) {
	a, b := sharedInMemory(t)
	for _, c := range [...]*SharedConn{a, b} {
		c.SetSpin(-1)
	}
	for range 30 {
		wrote, read := make(chan error, 1), make(chan error, 1)
		go func() { _, err := a.Write(make([]byte, 2*bufferDefault)); wrote <- err }()
		go func() { _, err := io.ReadFull(a, make([]byte, 100)); read <- err }()
		p := a.ownMem.control()
		for p.rwait.Load()&1 == 0 || p.wwait.Load()&1 == 0 {
			time.Sleep(100 * time.Microsecond)
		}
		if _, err := b.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b, make([]byte, 2*bufferDefault)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(<-wrote, <-read); err != nil {
			t.Fatal(err)
		}
	}
}

// ---------------------------------------------------------------------------
// Hellos

// The reading of a hello never panics, and believes no size that cannot be.
func FuzzSharedHello(f *testing.F) {
	for _, ring := range [...]int{0, ringMin, bufferDefault, ringMax} {
		for what := range byte(2 * helloReadShut) {
			hello := helloOf(what, ring)
			f.Add(hello[:])
		}
	}
	f.Add(make([]byte, helloSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < helloSize {
			return
		}
		what, ring, err := parseHello(b[:helloSize])
		if err == nil && (what == helloMemory || what&helloEarly == 0 && ring != 0) && (ring < ringMin || ring > ringMax || ring&(ring-1) != 0) {
			t.Fatalf("a ring of %d bytes", ring)
		}
	})
}

// FuzzSharedControlPage gives the reader and the writer control pages of any content, which
// change between any two steps.
func FuzzSharedControlPage(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17})
	f.Add(bytes.Repeat([]byte{0xff, 0, 0x80}, 50))
	f.Add(bytes.Repeat([]byte{1, 0, 0, 0, 2, 3, 0, 1}, 20))
	f.Fuzz(func(t *testing.T, script []byte) {
		const size = 256
		next := func() byte {
			if len(script) == 0 {
				return 0
			}
			v := script[0]
			script = script[1:]
			return v
		}
		word := func() uint32 {
			v := uint32(next())
			if v&1 != 0 { // a distance that is nearly possible, or anything
				return v >> 1 * 3
			}
			return v | uint32(next())<<8 | uint32(next())<<16 | uint32(next())<<24
		}
		var own, peer controlPage
		in := ringReader{own: &own, peer: &peer, data: make([]byte, 2*size), size: size}
		out := ringWriter{own: &own, peer: &peer, data: make([]byte, 2*size), size: size}
		if next()&1 != 0 {
			in.data, out.data = in.data[:size], out.data[:size]
		}
		start := word()
		in.tail, in.head, out.head, out.tail = start, start, start, start
		peer.head.Store(start)
		peer.tail.Store(start)
		buf := make([]byte, 2*size)
		for len(script) > 0 {
			peer.head.Store(in.tail + word())
			peer.tail.Store(out.head - word())
			peer.rwait.Store(word())
			peer.wwait.Store(word())
			need := word() % (size / 2)
			in.ready(need)
			out.ready(need)
			if avail, err := in.available(need); err == nil {
				if avail > size {
					t.Fatalf("%d bytes are available", avail)
				}
				if p, whole := in.span(avail); whole && uint32(len(p)) != avail {
					t.Fatalf("%d bytes in one piece, not %d", len(p), avail)
				}
				in.consume(in.take(buf[:next()], avail))
			}
			if room, err := out.room(need); err == nil {
				if room > size {
					t.Fatalf("there is room for %d bytes", room)
				}
				out.span(room)
				out.publish(out.put(buf[:next()], room))
			}
		}
	})
}

// A peer's hello that is none, or comes with the wrong things, ends the connection and
// leaves nothing behind.
func TestSharedHelloWithWrongFiles(t *testing.T) {
	hello := func(ring int) []byte {
		what := byte(helloMemory)
		if ring == 0 {
			what = 0
		}
		b := helloOf(what, ring)
		return b[:]
	}
	null := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	memory := func(size int) *os.File {
		m, err := NewMemory(size)
		if err != nil {
			t.Skip(err)
		}
		defer m.Close()
		f, err := m.File()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	other := hello(ringMin)
	other[8], other[11] = other[11], other[8]
	flags := hello(ringMin)
	flags[12] = 3
	odd := hello(ringMin)
	odd[16] = 1
	for name, peer := range map[string]struct {
		hello []byte
		files []*os.File
	}{
		"no files":          {hello(ringMin), nil},
		"one file":          {hello(ringMin), []*os.File{memory(controlSize + ringMin)}},
		"no memory":         {hello(ringMin), []*os.File{null(), null()}},
		"no doorbell":       {hello(ringMin), []*os.File{memory(controlSize + ringMin), null()}},
		"memory too small":  {hello(ringMin), []*os.File{memory(controlSize + ringMin - 1<<12), null()}},
		"memory too large":  {hello(ringMin), []*os.File{memory(controlSize + 2*ringMin), null()}},
		"control page only": {hello(ringMin), []*os.File{memory(4096), null()}},
		"three files":       {hello(ringMin), []*os.File{null(), null(), null()}},
		"files and no use":  {hello(0), []*os.File{null(), null()}},
		"odd size":          {odd, []*os.File{null(), null()}},
		"unknown flags":     {flags, nil},
		"another order":     {other, nil},
	} {
		for _, passive := range []bool{false, true} {
			x, y, err := Pair()
			if err != nil {
				t.Fatal(err)
			}
			cfg, _ := ShareConfig{}.complete()
			c := newSharedConn(y.endpoint, cfg, passive)
			if len(peer.files) > 0 {
				err = x.fd.sendWithFiles(peer.hello, peer.files)
			} else {
				_, err = x.Write(peer.hello)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Read(make([]byte, 1))
			if !errors.Is(err, syscall.EPROTO) {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := c.Write(make([]byte, 1)); err == nil {
				t.Errorf("%s: a write goes somewhere", name)
			}
			c.Close()
			x.Close()
		}
		discardFiles(peer.files)
	}
}

// A peer that sends more early data than there may be, or something else that makes no sense,
// ends the connection.
func TestSharedHostileEarlyData(t *testing.T) {
	hello := func(what byte, size int) string { b := helloOf(what, size); return string(b[:]) }
	for name, said := range map[string]string{
		"too much at once":     hello(helloEarly, earlyMax+1) + strings.Repeat("x", earlyMax+1),
		"a size that is huge":  hello(helloEarly, -1),
		"too much in all":      strings.Repeat(hello(helloEarly, 1000)+strings.Repeat("x", 1000), 5),
		"nothing again":        strings.Repeat(hello(helloEarly, 0), 1000),
		"asks again":           strings.Repeat(hello(helloEarly|helloAsk, 0), 1000),
		"no hello behind data": hello(helloEarly, 1) + "xGET / HTTP/1.1\r\n",
	} {
		for _, passive := range []bool{false, true} {
			x, y, err := Pair()
			if err != nil {
				t.Fatal(err)
			}
			cfg, _ := ShareConfig{}.complete()
			c := newSharedConn(y.endpoint, cfg, passive)
			c.SetDeadline(time.Now().Add(time.Minute))
			go func() { io.WriteString(x, said) }()
			go io.Copy(io.Discard, struct{ io.Reader }{x})
			if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.EPROTO) {
				t.Errorf("%s: %v", name, err)
			}
			if len(c.ahead) > earlyMax {
				t.Errorf("%s: %d bytes are kept", name, len(c.ahead))
			}
			if _, err := c.Write(make([]byte, 1)); !errors.Is(err, syscall.EPROTO) {
				t.Errorf("%s: %v", name, err)
			}
			c.Close()
			x.Close()
		}
	}
}

// A peer that has no memory to share says so, and the connection goes through the socket.
func TestSharedPeerWithoutMemory(t *testing.T) {
	for _, passive := range []bool{false, true} {
		x, y, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		cfg, _ := ShareConfig{}.complete()
		c := newSharedConn(y.endpoint, cfg, passive)
		hello := helloOf(0, 0)
		if _, err := x.Write(append(hello[:], "text"...)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := io.ReadFull(c, buf[:4]); err != nil || string(buf[:n]) != "text" {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		if c.InMemory() {
			t.Error("in memory with a peer that has none")
		}
		if _, err := c.Write([]byte("answer")); err != nil {
			t.Error(err)
		}
		n, files, err := x.fd.recvRights(buf[:helloSize], maxFiles)
		if !passive { // it has asked for nothing but the peer's hello
			if what, size, err := parseHello(buf[:n]); err != nil || what != helloEarly || size != 0 {
				t.Errorf("the first hello is %q, %v", buf[:n], err)
			}
			n, files, err = x.fd.recvRights(buf[:helloSize], maxFiles)
		}
		if err != nil || n != helloSize || string(buf[:len(helloMark)]) != helloMark {
			t.Errorf("the hello is %q, %v", buf[:n], err)
		}
		if len(files) > 0 {
			t.Error("memory was sent to a peer that cannot use it")
		}
		discardFiles(files)
		if n, err := io.ReadFull(x, buf[:6]); err != nil || string(buf[:n]) != "answer" {
			t.Errorf("the answer is %q, %v", buf[:n], err)
		}
		c.Close()
		x.Close()
	}
}

// Close brings a peer that is parked to look, also if somebody else has a duplicate of its
// doorbell, so that it does not end.
func TestSharedCloseRings(t *testing.T) {
	a, b := sharedInMemory(t)
	b.SetSpin(-1)
	for _, bell := range [...]*fd{a.r.bell, a.w.bell} {
		f, err := bell.dupFile("duplicate")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	read, wrote := make(chan error, 1), make(chan error, 1)
	go func() { _, err := b.Read(make([]byte, 1)); read <- err }()
	go func() { _, err := b.Write(make([]byte, 2*bufferDefault)); wrote <- err }()
	p := b.ownMem.control()
	for p.rwait.Load()&1 == 0 || p.wwait.Load()&1 == 0 {
		time.Sleep(100 * time.Microsecond)
	}
	a.Close()
	if err := <-read; err != io.EOF {
		t.Errorf("read: %v", err)
	}
	if err := <-wrote; !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write: %v", err)
	}
}

// A half whose spins are in vain soon spins no more, and one that loses a few of a hundred goes on.
func TestSharedSpinBacksOff(t *testing.T) {
	limit := int64(spinShared)
	defer func() { spinAccount.balance.Store(int64(spinSharedAhead)) }()
	for _, asleep := range []bool{false, true} {
		var s sharedSpin
		spins := 0
		for range 10000 {
			spinAccount.balance.Store(int64(spinSharedAhead))
			spun := s.budget(limit, asleep)
			if spun > 0 {
				spins++
			}
			if spun > 4*limit {
				t.Fatalf("a spin of %d ns", spun)
			}
			s.outcome(spun, false, asleep, int64(spinSharedShort)/2)
		}
		if spins > 200 {
			t.Errorf("%d of 10000 waits spin in vain", spins)
		}
	}
	var s sharedSpin
	skipped := 0
	for i := range 10000 {
		spun := s.budget(limit, false)
		if spun == 0 {
			skipped++
		}
		s.outcome(spun, spun > 0 && i%50 != 0, false, limit)
	}
	if skipped > 0 {
		t.Errorf("%d of 10000 waits do not spin, though 98 of 100 spins are enough", skipped)
	}
	spinAccount.balance.Store(-1)
	if s.budget(limit, false) != 0 && spinAccount.balance.Load() <= 0 {
		t.Error("a wait spins though all together have lost too much")
	}
}

// A wait for an answer whose spin was in vain leaves its CPU, which the peer may be waiting
// for, and does so ever more rarely until a spin succeeds. A wait in a stream does not.
func TestSharedSpinLeavesItsCPU(t *testing.T) {
	a, b := sharedInMemory(t)
	defer func(leave func(), left, gap int64) {
		leaveCPU = leave
		spinning.left.Store(left)
		spinning.leaveGap.Store(gap)
	}(leaveCPU, spinning.left.Load(), spinning.leaveGap.Load())
	times := 0
	leaveCPU = func() { times++ }
	var p [1]byte
	wait := func(written int) {
		t.Helper()
		spinAccount.balance.Store(int64(spinSharedAhead))
		a.r.gauges = [2]sharedSpin{}
		spinning.left.Store(0)
		b.ownMem.control().rwait.Store(1) // as if it were parked
		if _, err := a.Write(make([]byte, written)); err != nil {
			t.Fatal(err)
		}
		a.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := a.Read(p[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	wait(1) // what was written before counts, too
	times = 0
	spinning.leaveGap.Store(0)
	for _, written := range [...]int{0, copyMax + 1} {
		if wait(written); times != 0 {
			t.Errorf("it left its CPU after writing %d bytes", written)
		}
	}
	if wait(64); times != 1 {
		t.Fatalf("it left its CPU %d times", times)
	}
	spinning.leaveGap.Store(int64(time.Hour) * 1000000)
	if wait(64); times != 1 {
		t.Error("it left its CPU again at once")
	}
	b.ownMem.control().rwait.Store(0)
	a.SetReadDeadline(time.Time{})
	a.SetSpin(time.Hour)
	spinAccount.balance.Store(int64(spinSharedAhead))
	a.r.gauges = [2]sharedSpin{}
	go func() {
		for spinning.spinners.Load() == 0 {
			runtime.Gosched()
		}
		b.Write([]byte("x"))
	}()
	if _, err := a.Read(p[:]); err != nil {
		t.Fatal(err)
	}
	if gap := spinning.leaveGap.Load(); gap != 0 {
		t.Errorf("after a success the next time is %v away", time.Duration(gap))
	}
}

// A server's write that waits to hear of the client goes on when its read has heard of it, though
// that waits on: a client that reads first says hello and no more.
func TestSharedServerSpeaksFirst(t *testing.T) {
	dog := time.AfterFunc(time.Minute, func() { panic(t.Name() + " hangs") })
	defer dog.Stop()
	for range 200 {
		x, y, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		cfg, _ := ShareConfig{}.complete()
		client, server := newSharedConn(x.endpoint, cfg, false), newSharedConn(y.endpoint, cfg, true)
		go server.Read(make([]byte, 1))
		go server.Write([]byte("220 welcome"))
		if n, err := client.Read(make([]byte, 100)); n != len("220 welcome") || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		server.Close()
		client.Close()
	}
}
