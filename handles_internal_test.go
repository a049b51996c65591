//go:build windows

package ipc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// FuzzRecord reads records of any content. It opens nothing and closes nothing.
func FuzzRecord(f *testing.F) {
	r := record{pid: 1, id: [16]byte{1, 2, 3}, files: []uint32{4, 8}}
	f.Add(r.bytes())
	f.Add(append(r.bytes(), "data"...))
	f.Add(r.bytes()[:recordHead])
	f.Add([]byte(recordMark))
	f.Add([]byte{})
	f.Add(bytes.Replace(r.bytes(), []byte{recordVersion, 0, 0, 0}, []byte{1, 0, 0, 0}, 1))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, size, err := parseRecord(p)
		switch {
		case err != nil:
			if r != nil || size != 0 || !errors.Is(err, errors.ErrUnsupported) {
				t.Fatalf("%v, %d, %v", r, size, err)
			}
		case r == nil:
			if size != 0 {
				t.Fatalf("nothing is %d bytes long", size)
			}
		default:
			if n := len(r.files); n < 1 || n > maxFiles || size > recordMax {
				t.Fatalf("%d files in %d bytes", n, size)
			}
			if !bytes.Equal(r.bytes(), p[:size]) {
				t.Fatalf("%q is written %q", p[:size], r.bytes())
			}
		}
	})
}

func TestTokensAreHandles(t *testing.T) {
	for text, want := range map[string]token{
		"4":                         {handle: 4},
		"4294967292":                {handle: 4294967292},
		"4:remote":                  {handle: 4, remote: true},
		"4@1f":                      {handle: 4, id: 0x1f},
		"4@1f:2:inheritable:remote": {handle: 4, id: 0x1f, backlog: 2, inherit: true, remote: true},
		"4@":                        {},
		"4@0":                       {},
		"4@01":                      {},
		"4@1F":                      {},
		"4:1@1f":                    {},
		"4:remote:inheritable":      {},
		"8:1":                       {handle: 8, backlog: 1},
		"8:254:remote":              {handle: 8, backlog: 254, remote: true},
		"":                          {},
		"0":                         {},
		"0:4":                       {},
		"-4":                        {},
		"+4":                        {},
		"04":                        {},
		"0x4":                       {},
		" 4":                        {},
		"4 ":                        {},
		"4294967296":                {},
		"4:":                        {},
		"4:0":                       {},
		"4:01":                      {},
		"4:255":                     {},
		"4:256":                     {},
		"4:-1":                      {},
		"4:1:1":                     {},
		"4:remote:1":                {},
		"4:remote:":                 {},
		"4::remote":                 {},
		"4:Remote":                  {},
		":4":                        {},
		":remote":                   {},
		"remote":                    {},
		"4:1:remote:":               {},
		"4:remote:remote":           {},
		"4:pair":                    {handle: 4, pair: true},
		"4:remote:pair":             {handle: 4, remote: true, pair: true},
		"4:pair:remote":             {},
		"4:pair:pair":               {},
	} {
		if got := parseToken(text); got != want || (tokenDescriptors(text) != nil) != (want != token{}) {
			t.Errorf("%q is %+v", text, got)
		}
	}
}

// internalStory is the watchdog of an internal test.
func internalStory(t *testing.T) {
	dog := time.AfterFunc(time.Minute, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { dog.Stop() })
}

func TestRightsAreNoMoreThanNeeded(t *testing.T) {
	const genericRead = 0x120089 // FILE_GENERIC_READ: what a pipe grants everybody by default
	for _, c := range []struct {
		ends     direction
		messages bool
		rights   uint32
	}{
		{reading, false, 0x120081},
		{reading, true, 0x120181},
		{writing, false, 0x120082},
		{reading | writing, false, 0x120083},
		{reading | writing, true, 0x120183},
	} {
		got := rightsOf(c.ends, c.messages)
		if got != c.rights || got&^ClientRights != 0 {
			t.Errorf("%v, %v: %#x, want %#x", c.ends, c.messages, got, c.rights)
		}
	}
	if extra := rightsOf(reading, false) &^ genericRead; extra != 0 {
		t.Errorf("a reader asks for %#x more than FILE_GENERIC_READ", extra)
	}
}

func TestAccessSIDsAreNarrow(t *testing.T) {
	const user, pkg = "S-1-5-21-1-2-3-1001", "S-1-15-2-1-2-3-4-5-6-7"
	for _, c := range []struct{ packages, restricting, want []string }{
		{nil, nil, []string{user}},
		{[]string{pkg}, nil, []string{user, pkg}},
		{nil, []string{"S-1-1-0", "S-1-5-5-0-99", "S-1-5-33", "S-1-5-80-1-2-3-4-5", "S-1-5-32-545"},
			[]string{user, "S-1-5-5-0-99", "S-1-5-80-1-2-3-4-5"}},
		{nil, []string{"S-1-5-12", "S-1-5-21-1-2-3-513"}, []string{user}},
	} {
		if got := accessSIDs(user, c.packages, c.restricting); !slices.Equal(got, c.want) {
			t.Errorf("%v, %v: %v, want %v", c.packages, c.restricting, got, c.want)
		}
	}
}

func TestFreshPipesAreInTheFolderOfApps(t *testing.T) {
	l, err := Listen(Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	defer b.close()
	for _, name := range []string{l.Addr().String()[1:], strings.TrimPrefix(a.pipe, localPrefix), strings.TrimPrefix(b.pipe, localPrefix)} {
		if !strings.HasPrefix(strings.ToUpper(name), `LOCAL\`) {
			t.Errorf("the pipe is %q", name)
		}
	}
}

// A read from another machine is never cancelled because it takes long.
func TestRemoteReadsParkAtOnce(t *testing.T) {
	f := &fd{}
	f.setSpin(time.Hour)
	if f.spinBudget() != time.Hour {
		t.Error("a read does not wait in its thread")
	}
	f.remote = true
	if f.spinBudget() != 0 {
		t.Error("a read from another machine waits in its thread")
	}
}

// The process at the other end is known by its time of creation, whatever a clock
// says now.
func TestPeerIsKnownByItsCreation(t *testing.T) {
	born, err := createdAt(currentProcess)
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[*fd]error{
		{peerBorn: born}:     nil,
		{peerBorn: born - 1}: errProcessEnded,
		{peerBorn: born + 1}: errProcessEnded,
		{}:                   errPeerNotSeen, // which is not to say that it has ended
	} {
		if err := f.checkPeer(currentProcess); err != want {
			t.Errorf("born %d, a process born %d: %v, want %v", f.peerBorn, born, err, want)
		}
	}
}

func TestProcessMayOpenItself(t *testing.T) {
	if !mayOpen(currentProcessToken, currentProcess, processDupHandle) {
		t.Error("this process may not open itself")
	}
	token, err := tokenOf(currentProcess)
	if err != nil {
		t.Fatal(err)
	}
	defer token.Close()
	if mayOpen(token, 0, processDupHandle) {
		t.Error("a process that is none may be opened")
	}
	if level, err := integrityOf(token); level < 0x1000 || err != nil {
		t.Errorf("the level is %#x, %v", level, err)
	}
}

func TestLabelsAreRead(t *testing.T) {
	for sddl, want := range map[string]uint32{
		"D:P(A;;GA;;;WD)S:(ML;;NW;;;LW)":   0x1000,
		"D:P(A;;GA;;;WD)S:(ML;;NWNR;;;HI)": 0x3000,
	} {
		sd, err := ParseSDDL(sddl)
		if err != nil {
			t.Skip("this system reads no labels: ", err)
		}
		var got uint32
		for _, e := range sd.entries(sd.word(12)) {
			got = integrityLevel(e.sid)
		}
		if got != want {
			t.Errorf("%s: %#x, want %#x", sddl, got, want)
		}
	}
}

// arrives makes b receive a file with the data behind it, which becomes a file of os
// when open lets it.
func arrives(b *fd, behind []byte, open func(syscall.Handle) *os.File) {
	<-wrappers
	b.r.arriving = newArrival([]syscall.Handle{4}, behind)
	b.r.arriving.wrap(open)
}

// Another process may keep the kernel from saying what a file is. RecvFiles gives up
// at its deadline, and the next one gets the files.
func TestBusyFilesDoNotHoldRecvFiles(t *testing.T) {
	internalStory(t)
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	opened := make(chan *os.File, 2)
	busy := make(chan struct{})
	open := func(syscall.Handle) *os.File {
		<-busy
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Error(err)
		}
		opened <- f
		return f
	}
	arrives(b, nil, open)
	for range 3 {
		if err := b.setDeadline(time.Now().Add(time.Millisecond), reading); err != nil {
			t.Fatal(err)
		}
		if files, err := b.recvFiles(maxFiles); err != os.ErrDeadlineExceeded {
			t.Fatalf("%v, %v", files, err)
		}
	}
	if err := b.setDeadline(time.Time{}, reading); err != nil {
		t.Fatal(err)
	}
	busy <- struct{}{}
	files, err := b.recvFiles(maxFiles)
	if err != nil || len(files) != 1 || files[0] != <-opened {
		t.Fatalf("%v, %v", files, err)
	}
	files[0].Close()

	// Close does not wait, and the file is closed once it can be.
	arrives(b, nil, open)
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	busy <- struct{}{}
	f := <-opened
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := f.Read(make([]byte, 1)); errors.Is(err, os.ErrClosed) {
			break
		} else if time.Now().After(end) {
			t.Fatal("the file is open")
		}
	}
}

// takeAllWrappers is as if as many files were kept busy as can be, until the returned
// function is called.
func takeAllWrappers(t *testing.T) (giveBack func()) {
	for range wrappersMax {
		<-wrappers
	}
	giveBack = sync.OnceFunc(func() {
		for range wrappersMax {
			wrappers <- struct{}{}
		}
	})
	t.Cleanup(giveBack)
	return giveBack
}

// While too many files are kept busy, RecvFiles waits for its turn.
func TestRecvFilesWaitsForItsTurn(t *testing.T) {
	internalStory(t)
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	defer b.close()
	giveBack := takeAllWrappers(t)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := a.sendWithFiles(zeroByte[:], []*os.File{f}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := b.setDeadline(time.Now().Add(10*time.Millisecond), reading); err != nil {
			t.Fatal(err)
		}
		if files, err := b.recvFiles(maxFiles); err != os.ErrDeadlineExceeded {
			t.Fatalf("%v, %v", files, err)
		}
	}
	giveBack()
	b.setDeadline(time.Time{}, reading)
	files, err := b.recvFiles(maxFiles)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	files[0].Close()
}

// sendsEnd sends the data and an end of a pipe that nobody else has then. closed waits
// until that end is closed.
func sendsEnd(t *testing.T, a *fd, data string) (closed func()) {
	t.Helper()
	near, far, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.close() })
	f, err := far.dupFile("end")
	if err != nil {
		t.Fatal(err)
	}
	far.close()
	sendMessage(t, a, data, f)
	f.Close()
	return func() {
		t.Helper()
		if n, err := near.read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("the end that was sent is open: %d, %v", n, err)
		}
	}
}

// missesItsTurn has a RecvFiles take what was sent with the data, and end at its deadline
// while all wrappers are taken.
func missesItsTurn(t *testing.T, b *fd, max int, data string) {
	t.Helper()
	received := make(chan error, 1)
	go func() {
		_, err := b.recvFiles(max)
		received <- err
	}()
	p := []byte(strings.Repeat("?", len(data)))
	for string(p) != data { // but the record is there, or nothing
		if _, _, err := b.peek(p); err != nil {
			t.Fatal(err)
		}
	}
	b.setDeadline(time.Now().Add(-time.Second), reading)
	if err := <-received; err != os.ErrDeadlineExceeded {
		t.Fatal(err)
	}
	b.setDeadline(time.Time{}, reading)
}

// A RecvFiles that was too late for its turn leaves the data to the next read, and not
// the record, as one does that was too late for its files. Nobody has the files then.
func TestRecvFilesThatMissesItsTurnLeavesTheData(t *testing.T) {
	internalStory(t)
	for name, kind := range map[string]connKind{"stream": streams, "messages": messages} {
		t.Run(name, func(t *testing.T) {
			a, b, err := pair(kind)
			if err != nil {
				t.Fatal(err)
			}
			defer a.close()
			defer b.close()
			takeAllWrappers(t)
			zero := string(zeroByte[:])
			for range 2 {
				closed := sendsEnd(t, a, zero)
				sendMessage(t, a, "next")
				missesItsTurn(t, b, 1, zero)
				for _, want := range []string{zero, "next"} {
					p := make([]byte, 64)
					if n, err := b.read(p); string(p[:n]) != want || err != nil {
						t.Fatalf("%q, %v, want %q", p[:n], err, want)
					}
				}
				closed()
			}
			closed := sendsEnd(t, a, zero)
			missesItsTurn(t, b, 1, zero)
			b.close()
			closed()
		})
	}
}

// A connection that nobody closes does not keep the files that it was too late for.
func TestFilesOfADroppedConnectionAreClosed(t *testing.T) {
	internalStory(t)
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	takeAllWrappers(t)
	closed := sendsEnd(t, a, "data")
	missesItsTurn(t, b, 1, "d")
	b = nil
	done := make(chan struct{})
	go func() {
		defer close(done)
		closed()
	}()
	for {
		select {
		case <-done:
			return
		case <-time.After(10 * time.Millisecond):
			runtime.GC()
		}
	}
}

// The RecvFiles that gets the files may ask for fewer than the one that was too late.
func TestFilesOfAnEarlierCallAreNotTooMany(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	takeAllWrappers(t)
	null := openNull(t)
	for range 2 {
		sendMessage(t, a, "first", null, null)
		sendMessage(t, a, "next")
		missesItsTurn(t, b, 2, "first")
		if files, err := b.recvFiles(1); files != nil || !errors.Is(err, ErrMsgTooLong) {
			t.Fatalf("%v, %v", files, err)
		}
		isNext(t, b, "first")
		isNext(t, b, "next")
	}
}

// While RecvFiles has a message, and may give it back, PeekMessage shows it and not the
// next one.
func TestPeekMessageWhileFilesArrive(t *testing.T) {
	internalStory(t)
	for name, kind := range map[string]connKind{"stream": streams, "messages": messages} {
		t.Run(name, func(t *testing.T) {
			a, b, err := pair(kind)
			if err != nil {
				t.Fatal(err)
			}
			defer a.close()
			defer b.close()
			takeAllWrappers(t)
			null := openNull(t)
			for range 50 {
				sendMessage(t, a, "\x00", null)
				sendMessage(t, a, "next")
				b.setDeadline(time.Time{}, reading)
				received := make(chan error, 1)
				go func() {
					files, err := b.recvFiles(1)
					if files != nil {
						err = errors.New("there are files")
					}
					received <- err
				}()
				before, after := recordHead+4+1, 1 // the record is there, or is taken
				if kind == streams {
					before, after = before+len("next"), after+len("next")
				}
				p := make([]byte, 64)
				for n, size := 0, before; size == before; {
					if n, size, err = b.peek(p); err != nil {
						t.Fatal(err)
					}
					if size != before && (size != after || n != after || p[0] != 0 || string(p[1:n]) != "next"[:n-1]) {
						t.Fatalf("the next are %q of %d bytes", p[:n], size)
					}
				}
				b.setDeadline(time.Now().Add(-time.Second), reading)
				if err := <-received; err != os.ErrDeadlineExceeded {
					t.Fatal(err)
				}
				if n, size, err := b.peek(p); n != after || size != after || err != nil {
					t.Fatalf("the next are %q of %d bytes, %v", p[:n], size, err)
				}
				b.setDeadline(time.Time{}, reading)
				for _, want := range []string{"\x00", "next"} {
					if n, err := b.read(p); string(p[:n]) != want || err != nil {
						t.Fatalf("%q, %v, want %q", p[:n], err, want)
					}
				}
			}
		})
	}
}

// RecvFiles takes an empty message by waiting for something, and leaves it to the next
// receive. PeekMessage sees no message that comes after it.
func TestPeekMessageWhileRecvFilesTakesAnEmptyMessage(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	for range 200 {
		received, peeked, stop := make(chan error, 1), make(chan error, 1), make(chan struct{})
		go func() {
			_, err := b.recvFiles(1)
			received <- err
		}()
		go func() {
			for {
				select {
				case <-stop:
					peeked <- nil
					return
				default:
				}
				if n, size, err := b.peek(nil); n != 0 || size != 0 || err != nil {
					peeked <- fmt.Errorf("the next has %d bytes, %v", size, err)
					return
				}
			}
		}()
		for _, message := range []string{"", "next"} {
			if err := a.send([]byte(message)); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-received; err != ErrNoFiles {
			t.Fatal(err)
		}
		close(stop)
		if err := <-peeked; err != nil {
			t.Fatal(err)
		}
		isNext(t, b, "")
		isNext(t, b, "next")
	}
}

// messagePair returns the ends of a pipe of messages.
func messagePair(t *testing.T) (a, b *fd) {
	t.Helper()
	a, b, err := pair(messages)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.close(); b.close() })
	return a, b
}

// isNext checks which message is the next one.
func isNext(t *testing.T, f *fd, want string) {
	t.Helper()
	p := make([]byte, 64)
	if n, err := f.recv(p); string(p[:n]) != want || err != nil {
		t.Fatalf("the next message is %q, %v, want %q", p[:n], err, want)
	}
}

func sendMessage(t *testing.T, f *fd, message string, files ...*os.File) {
	t.Helper()
	if err := f.sendWithFiles([]byte(message), files); err != nil {
		t.Fatal(err)
	}
}

func openNull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A message whose deadline was over before it was sent is not withdrawn, so another one
// may follow, however the write waits.
func TestMessageThatWasTooLateMayBeFollowed(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	var taken []*slot
	for { // until writes park
		s, err := takeSlot(false)
		if err != nil {
			t.Fatal(err)
		}
		if s == nil {
			break
		}
		taken = append(taken, s)
	}
	for range 2 {
		a.setDeadline(time.Now().Add(-time.Second), writing)
		if err := a.send([]byte("late")); err != os.ErrDeadlineExceeded {
			t.Error(err)
		}
		a.setDeadline(time.Time{}, writing)
		sendMessage(t, a, "next")
		isNext(t, b, "next")
	}
	for _, s := range taken {
		giveSlot(s)
	}
}

// What may wait for another machine, to open a pipe, ends with the Dial.
func TestOpenFarEndsWithTheDial(t *testing.T) {
	internalStory(t)
	a, b := messagePair(t)
	sendMessage(t, a, "unread")
	waits := func() (syscall.Handle, error) { // it can be cancelled, as the call in question can
		return a.sys, os.NewSyscallError("CreateFile", syscall.FlushFileBuffers(a.sys))
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := openFar(&retryTimer{ctx: ctx}, waits); err != context.Canceled {
		t.Errorf("%v, want that it was cancelled", err)
	}
	soon := time.Now().Add(20 * time.Millisecond)
	if _, err := openFar(&retryTimer{ctx: context.Background(), deadline: soon}, waits); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want that the deadline is exceeded", err)
	}
	go b.recv(make([]byte, 64)) // which ends the wait
	far := time.Now().Add(time.Hour)
	if h, err := openFar(&retryTimer{ctx: context.Background(), deadline: far}, waits); h != a.sys || err != nil {
		t.Errorf("%d, %v", h, err)
	}
	fails := func() (syscall.Handle, error) { return 0, os.NewSyscallError("CreateFile", errPipeBusy) }
	if _, err := openFar(&retryTimer{ctx: context.Background()}, fails); judge("", err) != busy {
		t.Errorf("%v", err)
	}
}

// allWrappersAreFree checks that as many files can be received at once as before.
func allWrappersAreFree(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); len(wrappers) != wrappersMax; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d wrappers are free of %d", len(wrappers), wrappersMax)
		}
	}
}

// A deadline that ends a RecvWithFiles while its files are made files of os leaves the
// message, and the files with it for who asks for them.
func TestMessageOfBusyFilesIsNotLost(t *testing.T) {
	internalStory(t)
	for name, next := range map[string]func(t *testing.T, b *fd){
		"Recv": func(t *testing.T, b *fd) { isNext(t, b, "first") },
		"Read": func(t *testing.T, b *fd) {
			p := make([]byte, 64)
			if n, err := b.read(p); string(p[:n]) != "first" || err != nil {
				t.Errorf("%q, %v", p[:n], err)
			}
		},
		"ReadMessage": func(t *testing.T, b *fd) {
			p := make([]byte, 64)
			if n, more, err := b.readMessage(p); string(p[:n]) != "first" || more || err != nil {
				t.Errorf("%q, %t, %v", p[:n], more, err)
			}
		},
		"RecvWithFiles": func(t *testing.T, b *fd) {
			p := make([]byte, 64)
			n, files, err := b.recvWithFiles(p, 1)
			if string(p[:n]) != "first" || len(files) != 1 || err != nil {
				t.Fatalf("%q, %v, %v", p[:n], files, err)
			}
			files[0].Close()
		},
		"RecvFiles": func(t *testing.T, b *fd) {
			files, err := b.recvFiles(1)
			if len(files) != 1 || err != nil {
				t.Fatalf("%v, %v", files, err)
			}
			files[0].Close()
			isNext(t, b, "first") // which is not the byte that files travel with
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := messagePair(t)
			busy, opened := make(chan struct{}), make(chan *os.File, 1)
			arrives(b, []byte("first"), func(syscall.Handle) *os.File {
				<-busy
				f, err := os.Open(os.DevNull)
				if err != nil {
					t.Error(err)
				}
				opened <- f
				return f
			})
			sendMessage(t, a, "second", openNull(t))
			b.setDeadline(time.Now().Add(time.Millisecond), reading)
			if n, files, err := b.recvWithFiles(make([]byte, 64), 1); n != 0 || files != nil || err != os.ErrDeadlineExceeded {
				t.Fatalf("%d, %v, %v", n, files, err)
			}
			b.setDeadline(time.Time{}, reading)
			if name == "RecvWithFiles" || name == "RecvFiles" {
				close(busy)
				next(t, b)
			} else {
				next(t, b)
				close(busy)
			}
			(<-opened).Close()
			p := make([]byte, 64)
			n, files, err := b.recvWithFiles(p, 1)
			if string(p[:n]) != "second" || len(files) != 1 || err != nil {
				t.Fatalf("%q, %v, %v", p[:n], files, err)
			}
			files[0].Close()
			allWrappersAreFree(t)
		})
	}
}

// Files can be gone, or too many: the data that they came with is there all the same.
func TestMessageWithoutItsFilesIsNotLost(t *testing.T) {
	internalStory(t)
	null := openNull(t)
	gone := record{pid: uint32(os.Getpid()), files: []uint32{0x7ffffff0}} // no handle
	for name, c := range map[string]struct {
		send func(t *testing.T, a *fd)
		is   error
	}{
		"gone":     {func(t *testing.T, a *fd) { sendMessage(t, a, string(gone.bytes())+"data") }, ErrUntrusted},
		"too many": {func(t *testing.T, a *fd) { sendMessage(t, a, "data", null, null) }, ErrMsgTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			b, a := messagePair(t) // only the server of a pair asks what its client may do
			for range 2 {
				c.send(t, a)
				sendMessage(t, a, "next")
				p := make([]byte, 64)
				if n, files, err := b.recvWithFiles(p, 1); string(p[:n]) != "data" || files != nil || !errors.Is(err, c.is) {
					t.Errorf("%q, %v, %v", p[:n], files, err)
				}
				isNext(t, b, "next")
				c.send(t, a)
				sendMessage(t, a, "next")
				if files, err := b.recvFiles(1); files != nil || !errors.Is(err, c.is) {
					t.Errorf("%v, %v", files, err)
				}
				isNext(t, b, "data")
				isNext(t, b, "next")
			}
			allWrappersAreFree(t)
		})
	}
}

// Only the zero byte goes with its files. Any other message is the next to be received,
// and one that is too long takes its files along.
func TestMessageOfFilesIsTheNextToRead(t *testing.T) {
	internalStory(t)
	null := openNull(t)
	a, b := messagePair(t)
	for _, data := range []string{"data", "", "\x00"} {
		sendMessage(t, a, data, null)
		sendMessage(t, a, "next")
		files, err := b.recvFiles(1)
		if len(files) != 1 || err != nil {
			t.Fatalf("%v, %v", files, err)
		}
		files[0].Close()
		if data != string(zeroByte[:]) {
			isNext(t, b, data)
		}
		isNext(t, b, "next")
	}
	sendMessage(t, a, "too long", null)
	sendMessage(t, a, "next")
	p := make([]byte, 3)
	if n, files, err := b.recvWithFiles(p, 1); string(p[:n]) != "too" || files != nil || !errors.Is(err, ErrMsgTooLong) {
		t.Errorf("%q, %v, %v", p[:n], files, err)
	}
	isNext(t, b, "next")
	allWrappersAreFree(t)
}

// What came with files that RecvFiles was too late for is before all that comes later.
func TestNothingOvertakesBusyFiles(t *testing.T) {
	internalStory(t)
	busy := make(chan struct{})
	open := func(syscall.Handle) *os.File { <-busy; return nil }
	_, b := messagePair(t)
	arrives(b, []byte("first"), open)
	p := make([]byte, 64)
	if n, err := b.transact(context.Background(), []byte("request"), p); n != 0 || errnoOf(err) != errPipeBusy {
		t.Errorf("%q, %v", p[:n], err)
	}
	isNext(t, b, "first")

	_, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	arrives(b, []byte("first"), open)
	if n, with, err := recvHello(b, p); string(p[:n]) != "first" || with != nil || err != nil {
		t.Errorf("%q, %v, %v", p[:n], with, err)
	}
	close(busy)
	allWrappersAreFree(t)
}
