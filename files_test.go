//go:build unix || windows

// Files that travel over connections: SendFiles and RecvFiles.
package ipc_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

func init() {
	for role, play := range map[string]func(*parent, []string) error{
		"files":        childHandlesFiles,
		"makes a line": childMakesALineForOthers,
		"gives a file": childGivesAFile,
		"takes a file": childTakesAFile,
	} {
		roles[role] = play
	}
}

// childHandlesFiles receives files, tells what they hold, and sends a pipe end
// into which it writes, over a connection to the address, or if there is none over
// the inherited end "line".
func childHandlesFiles(p *parent, args []string) error {
	c, err := func() (*ipc.Conn, error) {
		if len(args) == 0 {
			return ipc.InheritedConn("line")
		}
		addr, err := ipc.ParseAddr(args[0])
		if err != nil {
			return nil, err
		}
		return ipc.Dial(addr)
	}()
	if err != nil {
		return err
	}
	files := sure(c.RecvFiles(3))
	for _, f := range files {
		text, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		p.say("%s", text)
	}
	r, w := sure2(os.Pipe())
	if err := c.SendFiles(r); err != nil {
		return err
	}
	p.hear() // the file has arrived: see SendFiles on macOS
	_, err = io.WriteString(w, "from the child")
	return errors.Join(err, w.Close(), r.Close(), c.Close())
}

// ---------------------------------------------------------------------------
// What arrives

func TestSendFilesArriveInOrder(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		for range 2 {
			sendFiles(t, a, textFile(t, "one"), textFile(t, "two"), textFile(t, "three"))
			sendFiles(t, a, textFile(t, "four"))
			for i, f := range recvFiles(t, b, 3) {
				holds(t, f, []string{"one", "two", "three"}[i])
			}
			holds(t, recvFiles(t, b, 1)[0], "four")
			a, b = b, a
		}
	})
}

func TestSendFilesOfEveryKind(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		r, w := osPipe(t)
		reader, writer, err := ipc.Pipe()
		must(t, err)
		defer reader.Close()
		defer writer.Close()
		writerFile, err := writer.File()
		must(t, err)
		defer writerFile.Close()
		regular := textFile(t, "a regular file")

		sendFiles(t, a, regular, r, w, writerFile)
		files := recvFiles(t, b, 4)
		for _, f := range []*os.File{r, w, writerFile, regular} { // the sender's stay the sender's
			_, err := f.Stat()
			must(t, err)
			must(t, f.Close())
		}
		must(t, writer.Close())

		holds(t, files[0], "a regular file")
		send(t, files[2], "through the pipe")
		must(t, files[2].Close())
		holds(t, files[1], "through the pipe")
		send(t, files[3], "into our pipe")
		must(t, files[3].Close())
		expect(t, reader, "into our pipe")
		expectEOF(t, reader)
	})
}

func TestSendFilesSharesAndDoesNotCopy(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		f := textFile(t, "abcdef")
		expect(t, f, "ab")
		sendFiles(t, a, f, f) // one file twice is two files
		got := recvFiles(t, b, 2)
		expect(t, got[0], "cd")
		must(t, got[0].Close())
		expect(t, got[1], "e") // one position for all
		expect(t, f, "f")
	})
}

// mostFiles is how many files go in one message.
func mostFiles() int {
	if runtime.GOOS == "openbsd" && strconv.IntSize == 64 {
		return 127
	}
	return 253
}

func TestSendFilesMostOfOneMessage(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		most := mostFiles()
		files := cards(t, most+1)
		err := a.SendFiles(files...)
		if err == nil || !strings.Contains(err.Error(), strconv.Itoa(most)) {
			t.Fatalf("%d files are sent, or refused without the limit: %v", most+1, err)
		}
		isOpError(t, err, "sendfiles")
		sendFiles(t, a, files[:most]...)
		for want, f := range recvFiles(t, b, 253) {
			if got, err := card(f); got != want || err != nil {
				t.Errorf("file %d arrives in the place of %d, %v", got, want, err)
			}
			must(t, f.Close())
		}
		filesStillPass(t, a, b)
	})
}

func TestSendFilesAndRecvFilesCheckTheNumber(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		err := a.SendFiles()
		if err == nil {
			t.Fatal("no files are sent")
		}
		isOpError(t, err, "sendfiles")
		sendFiles(t, a, textFile(t, "still there"))
		for _, max := range []int{0, -1, 254, 1 << 30} {
			files, err := b.RecvFiles(max)
			if err == nil || files != nil {
				t.Fatalf("%d files are received when %d are asked for", len(files), max)
			}
			isOpError(t, err, "recvfiles")
		}
		holds(t, recvFiles(t, b, 1)[0], "still there")
	})
}

func TestRecvFilesClosesMoreThanAskedFor(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		r, w := osPipe(t)
		files := []*os.File{textFile(t, "one"), w, textFile(t, "three")}
		before := openDescriptors()
		sendFiles(t, a, files...)
		got, err := b.RecvFiles(2)
		matches(t, err, ipc.ErrMsgTooLong)
		isOpError(t, err, "recvfiles")
		if got != nil {
			t.Errorf("%d files are returned with the error", len(got))
		}
		must(t, noMoreDescriptors(before))
		must(t, w.Close())
		expectEOF(t, r) // nobody has the other end any more
		filesStillPass(t, a, b)
	})
}

func TestRecvFilesOfFewerThanAskedFor(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		sendFiles(t, a, textFile(t, "alone"))
		sendFiles(t, a, textFile(t, "next"))
		for _, want := range []string{"alone", "next"} {
			files, err := b.RecvFiles(253)
			must(t, err)
			if len(files) != 1 {
				t.Fatalf("%d files arrive", len(files))
			}
			holds(t, files[0], want)
			must(t, files[0].Close())
		}
	})
}

func TestSendFilesToAnotherProcess(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		c := startChild(t, "files", addr.String())
		exchangesFiles(t, c, accept(t, l))
	})
}

// exchangesFiles does what childHandlesFiles expects.
func exchangesFiles(t *testing.T, c *child, line *ipc.Conn) {
	t.Helper()
	r, w := osPipe(t)
	sendFiles(t, line, textFile(t, "a file"), r)
	send(t, w, "a pipe")
	must(t, w.Close())
	c.mustSay("a file")
	c.mustSay("a pipe")
	f := recvFiles(t, line, 1)[0]
	c.say("thanks")
	holds(t, f, "from the child")
	c.end()
	expectEOF(t, line)
}

func TestSendFilesToTheProcessThatWasGivenTheEnd(t *testing.T) {
	given := func(t *testing.T, near, far *ipc.Conn) {
		t.Helper()
		h := newHeir(t)
		h.gets("line", far)
		c := h.start("files")
		must(t, far.Close())
		exchangesFiles(t, c, near)
	}
	t.Run("Pair", func(t *testing.T) {
		story(t)
		near, far := pair(t)
		given(t, near, far)
		far, near = pair(t) // the ends of a pair may differ
		given(t, near, far)
	})
	t.Run("Dialed", func(t *testing.T) {
		story(t)
		client, server := connect(t, listen(t, nameAddr(t)))
		given(t, server, client)
	})
	t.Run("Accepted", func(t *testing.T) {
		story(t)
		client, server := connect(t, listen(t, nameAddr(t)))
		given(t, client, server)
	})
}

func TestSendFilesBetweenProcessesThatHaveTheirLineFromAnother(t *testing.T) {
	story(t)
	c := startChild(t, "makes a line")
	c.mustSay("received: from a sibling")
	c.outlive()
}

// childMakesALineForOthers gives the ends of a pair to two children and leaves.
func childMakesALineForOthers(*parent, []string) error {
	a, b := sure2(ipc.Pair())
	r, w := sure2(ipc.Pipe())
	giver, taker := again("gives a file"), again("takes a file")
	err := errors.Join(ipc.Inherit(giver, "line", a), ipc.Inherit(giver, "end", r), ipc.Inherit(taker, "line", b))
	if err != nil {
		return err
	}
	if err := errors.Join(giver.Start(), taker.Start()); err != nil {
		return err
	}
	err = errors.Join(a.Close(), b.Close(), r.Close())
	runtime.KeepAlive(w) // the giver sees the end of it with that of this process
	return err
}

// childGivesAFile sends a file when the process that made the line has ended.
func childGivesAFile(*parent, []string) error {
	c := sure(ipc.InheritedConn("line"))
	end := sure(ipc.InheritedReader("end"))
	if _, err := io.Copy(io.Discard, end); err != nil {
		return err
	}
	r, w := sure2(os.Pipe())
	if err := c.SendFiles(r); err != nil {
		return err
	}
	if _, err := io.WriteString(w, "from a sibling"); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c) // until the file has arrived
	return errors.Join(err, w.Close(), r.Close(), end.Close(), c.Close())
}

// childTakesAFile receives a file and tells what it holds.
func childTakesAFile(p *parent, _ []string) error {
	c := sure(ipc.InheritedConn("line"))
	files := sure(c.RecvFiles(1))
	text := make([]byte, len("from a sibling"))
	if _, err := io.ReadFull(files[0], text); err != nil {
		return err
	}
	p.say("received: %s", text)
	return errors.Join(files[0].Close(), c.Close())
}

// isNonblocking reports whether the file was in nonblocking mode when it was made.
func isNonblocking(f *os.File) bool { return f.SetReadDeadline(time.Time{}) == nil }

func TestSendFilesKeepsTheNonblockingMode(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a mode of Unix")
	}
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		nonblocking, _ := osPipe(t)
		blocking, _ := osPipe(t)
		blocking.Fd() // this makes it so

		sendFiles(t, a, nonblocking, blocking, textFile(t, "x"))
		for i, f := range recvFiles(t, b, 3) {
			if got, want := isNonblocking(f), i == 0; got != want {
				t.Errorf("file %d is nonblocking: %v", i, got)
			}
		}
		must(t, nonblocking.SetReadDeadline(time.Now().Add(brief))) // and so it is still for its sender
		_, err := nonblocking.Read(make([]byte, 1))
		matches(t, err, os.ErrDeadlineExceeded)
	})
}

// ---------------------------------------------------------------------------
// Files and data

func TestSendFilesBetweenData(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		for i := range 10 {
			say(t, a, fmt.Sprintf("before %d", i))
			sendFiles(t, a, textFile(t, "a file"), textFile(t, "another"))
			sendFiles(t, a, textFile(t, "a third"))
			say(t, a, "between")
			sendFiles(t, a, textFile(t, "the last"))
			say(t, a, "after")

			hear(t, b, fmt.Sprintf("before %d", i))
			files := recvFiles(t, b, 2)
			holds(t, files[0], "a file")
			holds(t, files[1], "another")
			holds(t, recvFiles(t, b, 1)[0], "a third")
			hear(t, b, "between")
			holds(t, recvFiles(t, b, 1)[0], "the last")
			hear(t, b, "after")
		}
		must(t, a.Close())
		hearEOF(t, b)
	})
}

func TestRecvFilesOfData(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		for _, text := range []string{"data", "\x00", "\x00data", "x"} {
			say(t, a, text)
			sendFiles(t, a, textFile(t, "a file"))
			for range 2 { // it stays so until the data is read
				files, err := b.RecvFiles(1)
				matches(t, err, ipc.ErrNoFiles)
				isOpError(t, err, "recvfiles")
				if files != nil {
					t.Errorf("%d files are returned with the error", len(files))
				}
			}
			hear(t, b, text)
			holds(t, recvFiles(t, b, 1)[0], "a file")
		}
	})
}

func TestRecvFilesOfAMessageLeavesItWhole(t *testing.T) {
	overEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		instead := func(text string) {
			t.Helper()
			sendMsg(t, a, text)
			_, err := b.RecvFiles(1)
			matches(t, err, ipc.ErrNoFiles)
		}
		instead("appended")
		p, err := b.RecvAppend([]byte("is "))
		if string(p) != "is appended" || err != nil {
			t.Errorf("received %q, %v", p, err)
		}
		instead("cut off")
		room := make([]byte, 3)
		n, err := b.Recv(room)
		matches(t, err, ipc.ErrMsgTooLong)
		if n != 3 || string(room) != "cut" {
			t.Errorf("received %q", room[:n])
		}
		instead("dropped")
		_, err = b.Recv(nil)
		matches(t, err, ipc.ErrMsgTooLong)
		instead("last")
		must(t, a.Close())
		_, err = b.RecvFiles(1)
		matches(t, err, ipc.ErrNoFiles)
		expectMsg(t, b, "last")
		_, err = b.RecvFiles(1)
		if err != io.EOF {
			t.Errorf("%v at the end", err)
		}
		expectMsgEOF(t, b)
	})
}

func TestRecvFilesOfAnEmptyMessage(t *testing.T) {
	overEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		needsEmpty(t)
		sendMsg(t, a, "")
		sendFiles(t, a, textFile(t, "a file"))
		for range 2 {
			_, err := b.RecvFiles(1)
			matches(t, err, ipc.ErrNoFiles)
		}
		expectMsg(t, b, "")
		holds(t, recvFiles(t, b, 1)[0], "a file")
		sendMsg(t, a, "")
		_, err := b.RecvFiles(1)
		matches(t, err, ipc.ErrNoFiles)
		p, err := b.RecvAppend(nil)
		if len(p) != 0 || err != nil {
			t.Errorf("received %q, %v", p, err)
		}
	})
}

func TestSendFilesThatNobodyAskedForAreClosed(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		if runtime.GOOS == "windows" {
			t.Skip("handles are the peer's as soon as they are sent")
		}
		reads := []func() ([]byte, error){}
		switch b := b.(type) {
		case *ipc.Conn:
			reads = append(reads, func() ([]byte, error) {
				p := make([]byte, 1)
				n, err := b.Read(p)
				return p[:n], err
			}, func() ([]byte, error) {
				p := make([]byte, 1)
				n, err := b.ReadBuffers([][]byte{p})
				return p[:n], err
			}, func() ([]byte, error) {
				_, err := b.Read(nil)
				p := make([]byte, 1)
				n, e := b.Read(p)
				return p[:n], errors.Join(err, e)
			})
		case *ipc.MsgConn:
			reads = append(reads, func() ([]byte, error) {
				p := make([]byte, 10)
				n, err := b.Recv(p)
				return p[:n], err
			}, func() ([]byte, error) {
				return b.RecvAppend(nil)
			}, func() ([]byte, error) {
				if _, err := b.Recv(nil); !errors.Is(err, ipc.ErrMsgTooLong) {
					return nil, fmt.Errorf("received into nothing: %v", err)
				}
				return []byte{0}, nil
			})
		}
		for _, read := range reads {
			r, w := osPipe(t)
			f := textFile(t, "x")
			before := openDescriptors()
			sendFiles(t, a, w, f, w)
			p, err := read()
			if string(p) != "\x00" || err != nil {
				t.Errorf("read %q, %v", p, err)
			}
			must(t, noMoreDescriptors(before))
			must(t, w.Close())
			expectEOF(t, r) // nobody has the other end any more
			say(t, a, "and on")
			hear(t, b, "and on")
		}
		filesStillPass(t, a, b)
	})
}

func TestSendFilesOnTheirWayAreClosedWithTheConnection(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		if runtime.GOOS == "windows" {
			t.Skip("handles are the peer's as soon as they are sent")
		}
		r, w := osPipe(t)
		for range 3 {
			sendFiles(t, a, w, w)
		}
		must(t, w.Close())
		must(t, b.Close())
		must(t, a.Close())
		expectEOF(t, r)
	})
}

func TestRecvFilesOutliveTheConnection(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		r, w := osPipe(t)
		sendFiles(t, a, r)
		must(t, a.Close())
		f := recvFiles(t, b, 1)[0]
		_, err := b.RecvFiles(1)
		if err != io.EOF {
			t.Errorf("%v at the end", err)
		}
		must(t, b.Close())
		must(t, r.Close())
		send(t, w, "still there")
		must(t, w.Close())
		holds(t, f, "still there")
	})
}

// ---------------------------------------------------------------------------
// What cannot be sent

func TestSendFilesRefusesWhatIsNoOpenFile(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		closed := textFile(t, "closed")
		must(t, closed.Close())
		open := textFile(t, "open")
		before := openDescriptors()
		for what, files := range map[string][]*os.File{
			"nil": {nil}, "closed": {closed},
			"nil among others": {open, nil, open}, "closed among others": {open, open, closed},
		} {
			err := a.SendFiles(files...)
			if err == nil {
				t.Fatalf("%s: it is sent", what)
			}
			isOpError(t, err, "sendfiles")
			if strings.HasPrefix(what, "closed") {
				matches(t, err, os.ErrClosed)
			}
		}
		must(t, noMoreDescriptors(before))
		say(t, a, "the first that arrives")
		hear(t, b, "the first that arrives")
		filesStillPass(t, a, b)
		_, err := open.Stat()
		must(t, err)
	})
}

func TestSendFilesToAPeerThatIsGone(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		f := textFile(t, "x")
		must(t, b.Close())
		var err error
		eventually(t, "sending fails", func() bool { err = a.SendFiles(f); return err != nil })
		matches(t, err, syscall.EPIPE)
		isOpError(t, err, "sendfiles")
		if _, err := a.RecvFiles(1); err != io.EOF {
			t.Errorf("%v at the end", err)
		}
	})
}

func TestSendFilesAndRecvFilesAfterClose(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		f := textFile(t, "x")
		if runtime.GOOS != "windows" { // where it would be left in this process
			sendFiles(t, b, f)
		}
		must(t, a.Close())
		err := a.SendFiles(f)
		matches(t, err, net.ErrClosed)
		isOpError(t, err, "sendfiles")
		files, err := a.RecvFiles(1)
		matches(t, err, net.ErrClosed)
		isOpError(t, err, "recvfiles")
		if files != nil {
			t.Error("files are returned with the error")
		}
	})
}

// ---------------------------------------------------------------------------
// Waiting

func TestSendFilesAndRecvFilesEndAtTheDeadline(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		begun := time.Now()
		must(t, b.SetReadDeadline(begun.Add(brief)))
		_, err := b.RecvFiles(1)
		timedOut(t, err)
		isOpError(t, err, "recvfiles")
		if waited := time.Since(begun); waited < brief {
			t.Errorf("it gave up after %v", waited)
		}
		must(t, a.SetWriteDeadline(time.Now().Add(-time.Second)))
		f := textFile(t, "x")
		err = a.SendFiles(f)
		timedOut(t, err)
		isOpError(t, err, "sendfiles")
		must(t, a.SetWriteDeadline(time.Time{}))
		must(t, b.SetReadDeadline(time.Time{}))
		filesStillPass(t, a, b)
	})
}

func TestRecvFilesThatTimesOutLosesNothing(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		rounds := 1000
		if runtime.GOOS == "windows" { // a wait there is at least a millisecond
			rounds = 200
		}
		deck := cards(t, 4)
		sending := trickle(rounds, a, func(i int) error { return a.SendFiles(deck[i%4]) })
		got := 0
		inAHurry(t, b, func() error {
			files, err := b.RecvFiles(1)
			if err != nil {
				return err
			}
			place, err := card(files[0])
			must(t, errors.Join(err, files[0].Close()))
			if place != got%4 {
				t.Fatalf("card %d arrives in round %d", place, got)
			}
			got++
			return nil
		})
		must(t, <-sending)
		if got != rounds {
			t.Fatalf("%d files of %d arrive", got, rounds)
		}
	})
}

func TestSendFilesThatTimesOutSendsAllOrNothing(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		deck := cards(t, 100)
		sent := 0
		for timeouts := 0; timeouts < 3 && sent < 5000; {
			must(t, a.SetWriteDeadline(time.Now().Add(5*time.Millisecond)))
			switch err := a.SendFiles(deck[sent%100]); {
			case err == nil:
				sent++
			case errors.Is(err, syscall.ETOOMANYREFS), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
				timeouts++ // the system limits what is on its way: just as good a reason to send nothing
			default:
				timedOut(t, err)
				timeouts++
			}
		}
		must(t, a.SetWriteDeadline(time.Time{}))
		closing := begin(a.Close)
		for i := range sent {
			f := recvFiles(t, b, 1)[0]
			if place, err := card(f); place != i%100 || err != nil {
				t.Fatalf("card %d arrives in the place of %d, %v", place, i%100, err)
			}
			must(t, f.Close())
		}
		must(t, <-closing)
		hearEOF(t, b)
	})
}

func TestSendFilesAndRecvFilesEndWithClose(t *testing.T) {
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		receiving := begin(func() error { _, err := a.RecvFiles(1); return err })
		awaitParked(t, strings.Replace(fmt.Sprintf("(%T).RecvFiles", a), "ipc.", "", 1), 1) // (*Conn).RecvFiles
		must(t, a.Close())
		matches(t, <-receiving, net.ErrClosed)
		if _, err := b.RecvFiles(1); err != io.EOF {
			t.Errorf("%v at the end", err)
		}
	})
}

func TestSendFilesOfManyAtOnce(t *testing.T) {
	const senders, receivers, each = 4, 3, 50
	overEachCarrier(t, func(t *testing.T, a, b carrier) {
		deck := cards(t, senders*each+2)
		put := func(n int) error { return a.SendFiles(deck[n : n+1+n%3]...) } // 1 to 3 in a row
		everythingArrivesOnce(t, a, senders*each, senders, put, receivers, func(int, int) (int, error) {
			files, err := b.RecvFiles(3)
			if err != nil {
				return 0, err
			}
			first, err := card(files[0])
			if err != nil || len(files) != 1+first%3 {
				t.Errorf("%d files arrive behind %d, %v", len(files), first, err)
			}
			for i, f := range files {
				if place, err := card(f); place != first+i || err != nil {
					t.Errorf("%d is behind %d, %v", place, first, err)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}
			return first, nil
		})
	})
}

// ---------------------------------------------------------------------------
// Files that come with a message

// recvWith receives one message and exactly n files.
func recvWith(t *testing.T, c *ipc.MsgConn, text string, n int) []*os.File {
	t.Helper()
	p := make([]byte, len(text)+8)
	m, files, err := c.RecvWithFiles(p, max(n, 1))
	must(t, err)
	for _, f := range files {
		t.Cleanup(func() { f.Close() })
	}
	if string(p[:m]) != text || len(files) != n {
		t.Fatalf("%q comes with %d files, want %q with %d", p[:m], len(files), text, n)
	}
	return files
}

// needsFilesWithMessages skips the test where a message cannot bring files yet.
func needsFilesWithMessages(t *testing.T, c *ipc.MsgConn) {
	t.Helper()
	if err := c.SendWithFiles([]byte("x"), textFile(t, "x")); errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	} else {
		must(t, err)
	}
}

func TestRecvWithFilesBringsTheMessage(t *testing.T) {
	overEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		needsFilesWithMessages(t, a)
		recvWith(t, b, "x", 1)
		for _, text := range []string{"", "\x00", "m", "a message", string(pattern(3000))} {
			must(t, a.SendWithFiles([]byte(text), textFile(t, "one"), textFile(t, "two")))
			files := recvWith(t, b, text, 2)
			holds(t, files[0], "one")
			holds(t, files[1], "two")
		}
		must(t, a.SendWithFiles([]byte("without files")))
		recvWith(t, b, "without files", 0)
		sendMsg(t, a, "plain")
		recvWith(t, b, "plain", 0)
		sendFiles(t, a, textFile(t, "file alone"))
		holds(t, recvWith(t, b, "\x00", 1)[0], "file alone")
		must(t, a.SendWithFiles([]byte("message"), textFile(t, "file first")))
		holds(t, recvFiles(t, b, 1)[0], "file first")
		expectMsg(t, b, "message")
		filesStillPass(t, a, b)
		must(t, a.Close())
		if n, files, err := b.RecvWithFiles(make([]byte, 8), 1); n != 0 || files != nil || err != io.EOF {
			t.Errorf("after the last message come %d, %d files, %v", n, len(files), err)
		}
	})
}

func TestRecvWithFilesThatCannotBeHad(t *testing.T) {
	overEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		needsFilesWithMessages(t, a)
		recvWith(t, b, "x", 1)
		f := textFile(t, "a file")
		p := make([]byte, 4)
		leavesNothing(t, 3, func() {
			must(t, a.SendWithFiles([]byte("many"), f, f, f))
			n, files, err := b.RecvWithFiles(p, 2)
			if files != nil || string(p[:n]) != "many" {
				t.Fatalf("%q comes with %d files", p[:n], len(files))
			}
			matches(t, err, ipc.ErrMsgTooLong)

			must(t, a.SendWithFiles([]byte("longer than 4"), f))
			n, files, err = b.RecvWithFiles(p, 1)
			if files != nil || string(p[:n]) != "long" {
				t.Fatalf("%q comes with %d files", p[:n], len(files))
			}
			matches(t, err, ipc.ErrMsgTooLong)

			must(t, a.SendWithFiles([]byte("none"), f))
			n, files, err = b.RecvWithFiles(p, 0)
			if files != nil || string(p[:n]) != "none" {
				t.Fatalf("%q comes with %d files", p[:n], len(files))
			}
			matches(t, err, ipc.ErrMsgTooLong)

			if runtime.GOOS != "windows" { // where the record of the files is in front
				must(t, a.SendWithFiles([]byte("plain"), f)) // which nobody asked for
				expectMsg(t, b, "plain")
				must(t, a.SendWithFiles([]byte("append"), f))
				if got, err := b.RecvAppend(nil); string(got) != "append" || err != nil {
					t.Fatalf("%q comes, %v", got, err)
				}
			}
			must(t, a.SendWithFiles([]byte("next")))
			recvWith(t, b, "next", 0)
		})
		for _, most := range []int{-1, 254} {
			if _, _, err := b.RecvWithFiles(p, most); err == nil {
				t.Errorf("at most %d files are asked for", most)
			}
		}
		must(t, f.Close())
		matches(t, a.SendWithFiles([]byte("x"), f), os.ErrClosed)
		must(t, a.Send([]byte("next")))
		recvWith(t, b, "next", 0)
	})
}

func TestRecvWithFilesEndsAtTheDeadline(t *testing.T) {
	overEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		needsFilesWithMessages(t, a)
		recvWith(t, b, "x", 1)
		must(t, b.SetReadDeadline(time.Now().Add(brief)))
		_, files, err := b.RecvWithFiles(make([]byte, 8), 1)
		if files != nil {
			t.Errorf("%d files come with %v", len(files), err)
		}
		timedOut(t, err)
		must(t, b.SetReadDeadline(time.Time{}))
		f := textFile(t, "a file")
		must(t, a.SetWriteDeadline(time.Now().Add(brief)))
		sent := 0
		for err = nil; err == nil; {
			if err = a.SendWithFiles(pattern(2000), f); err == nil {
				sent++
			}
		}
		timedOut(t, err)
		must(t, a.Close())
		for range sent { // whole, with their files, or cut off
			p := make([]byte, 3000)
			n, files, err := b.RecvWithFiles(p, 1)
			if n != 2000 || len(files) != 1 || err != nil {
				t.Fatalf("%d bytes come with %d files, %v", n, len(files), err)
			}
			must(t, files[0].Close())
		}
		if _, files, err := b.RecvWithFiles(make([]byte, 8), 1); files != nil || err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("then come %d files, %v", len(files), err)
		}
	})
}
