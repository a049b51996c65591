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
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	for role, play := range map[string]func(*kit.Parent, []string) error{
		"files":        childHandlesFiles,
		"makes a line": childMakesALineForOthers,
		"gives a file": childGivesAFile,
		"takes a file": childTakesAFile,
	} {
		kit.Roles[role] = play
	}
}

// childHandlesFiles receives files, tells what they hold, and sends a pipe end
// into which it writes, over a connection to the address, or if there is none over
// the inherited end "line".
func childHandlesFiles(p *kit.Parent, args []string) error {
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
	files := kit.Sure(c.RecvFiles(3))
	for _, f := range files {
		text, err := io.ReadAll(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		p.Say("%s", text)
	}
	r, w := kit.Sure2(os.Pipe())
	if err := c.SendFiles(r); err != nil {
		return err
	}
	p.Hear() // the file has arrived: see SendFiles on macOS
	_, err = io.WriteString(w, "from the child")
	return errors.Join(err, w.Close(), r.Close(), c.Close())
}

// ---------------------------------------------------------------------------
// What arrives

func TestSendFilesArriveInOrder(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		for range 2 {
			kit.SendFiles(t, a, kit.TextFile(t, "one"), kit.TextFile(t, "two"), kit.TextFile(t, "three"))
			kit.SendFiles(t, a, kit.TextFile(t, "four"))
			for i, f := range kit.RecvFiles(t, b, 3) {
				kit.Holds(t, f, []string{"one", "two", "three"}[i])
			}
			kit.Holds(t, kit.RecvFiles(t, b, 1)[0], "four")
			a, b = b, a
		}
	})
}

func TestSendFilesOfEveryKind(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		r, w := kit.OsPipe(t)
		reader, writer, err := ipc.Pipe()
		kit.Must(t, err)
		defer reader.Close()
		defer writer.Close()
		writerFile, err := writer.File()
		kit.Must(t, err)
		defer writerFile.Close()
		regular := kit.TextFile(t, "a regular file")

		kit.SendFiles(t, a, regular, r, w, writerFile)
		files := kit.RecvFiles(t, b, 4)
		for _, f := range []*os.File{r, w, writerFile, regular} { // the sender's stay the sender's
			_, err := f.Stat()
			kit.Must(t, err)
			kit.Must(t, f.Close())
		}
		kit.Must(t, writer.Close())

		kit.Holds(t, files[0], "a regular file")
		kit.Send(t, files[2], "through the pipe")
		kit.Must(t, files[2].Close())
		kit.Holds(t, files[1], "through the pipe")
		kit.Send(t, files[3], "into our pipe")
		kit.Must(t, files[3].Close())
		kit.Expect(t, reader, "into our pipe")
		kit.ExpectEOF(t, reader)
	})
}

func TestSendFilesSharesAndDoesNotCopy(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		f := kit.TextFile(t, "abcdef")
		kit.Expect(t, f, "ab")
		kit.SendFiles(t, a, f, f) // one file twice is two files
		got := kit.RecvFiles(t, b, 2)
		kit.Expect(t, got[0], "cd")
		kit.Must(t, got[0].Close())
		kit.Expect(t, got[1], "e") // one position for all
		kit.Expect(t, f, "f")
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
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		most := mostFiles()
		files := kit.Cards(t, most+1)
		err := a.SendFiles(files...)
		if err == nil || !strings.Contains(err.Error(), strconv.Itoa(most)) {
			t.Fatalf("%d files are sent, or refused without the limit: %v", most+1, err)
		}
		kit.IsOpError(t, err, "sendfiles")
		kit.SendFiles(t, a, files[:most]...)
		for want, f := range kit.RecvFiles(t, b, 253) {
			if got, err := kit.Card(f); got != want || err != nil {
				t.Errorf("file %d arrives in the place of %d, %v", got, want, err)
			}
			kit.Must(t, f.Close())
		}
		kit.FilesStillPass(t, a, b)
	})
}

func TestSendFilesAndRecvFilesCheckTheNumber(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		err := a.SendFiles()
		if err == nil {
			t.Fatal("no files are sent")
		}
		kit.IsOpError(t, err, "sendfiles")
		kit.SendFiles(t, a, kit.TextFile(t, "still there"))
		for _, max := range []int{0, -1, 254, 1 << 30} {
			files, err := b.RecvFiles(max)
			if err == nil || files != nil {
				t.Fatalf("%d files are received when %d are asked for", len(files), max)
			}
			kit.IsOpError(t, err, "recvfiles")
		}
		kit.Holds(t, kit.RecvFiles(t, b, 1)[0], "still there")
	})
}

func TestRecvFilesClosesMoreThanAskedFor(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		r, w := kit.OsPipe(t)
		files := []*os.File{kit.TextFile(t, "one"), w, kit.TextFile(t, "three")}
		before := kit.OpenDescriptors()
		kit.SendFiles(t, a, files...)
		got, err := b.RecvFiles(2)
		kit.Matches(t, err, ipc.ErrMsgTooLong)
		kit.IsOpError(t, err, "recvfiles")
		if got != nil {
			t.Errorf("%d files are returned with the error", len(got))
		}
		kit.Must(t, kit.NoMoreDescriptors(before))
		kit.Must(t, w.Close())
		kit.ExpectEOF(t, r) // nobody has the other end any more
		kit.FilesStillPass(t, a, b)
	})
}

func TestRecvFilesOfFewerThanAskedFor(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		kit.SendFiles(t, a, kit.TextFile(t, "alone"))
		kit.SendFiles(t, a, kit.TextFile(t, "next"))
		for _, want := range []string{"alone", "next"} {
			files, err := b.RecvFiles(253)
			kit.Must(t, err)
			if len(files) != 1 {
				t.Fatalf("%d files arrive", len(files))
			}
			kit.Holds(t, files[0], want)
			kit.Must(t, files[0].Close())
		}
	})
}

func TestSendFilesToAnotherProcess(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		c := kit.StartChild(t, "files", addr.String())
		exchangesFiles(t, c, kit.Accept(t, l))
	})
}

// exchangesFiles does what childHandlesFiles expects.
func exchangesFiles(t *testing.T, c *kit.Child, line *ipc.Conn) {
	t.Helper()
	r, w := kit.OsPipe(t)
	kit.SendFiles(t, line, kit.TextFile(t, "a file"), r)
	kit.Send(t, w, "a pipe")
	kit.Must(t, w.Close())
	c.MustSay("a file")
	c.MustSay("a pipe")
	f := kit.RecvFiles(t, line, 1)[0]
	c.Say("thanks")
	kit.Holds(t, f, "from the child")
	c.End()
	kit.ExpectEOF(t, line)
}

func TestSendFilesToTheProcessThatWasGivenTheEnd(t *testing.T) {
	given := func(t *testing.T, near, far *ipc.Conn) {
		t.Helper()
		h := kit.NewHeir(t)
		h.Gets("line", far)
		c := h.Start("files")
		kit.Must(t, far.Close())
		exchangesFiles(t, c, near)
	}
	t.Run("Pair", func(t *testing.T) {
		kit.Story(t)
		near, far := kit.Pair(t)
		given(t, near, far)
		far, near = kit.Pair(t) // the ends of a pair may differ
		given(t, near, far)
	})
	t.Run("Dialed", func(t *testing.T) {
		kit.Story(t)
		client, server := kit.Connect(t, kit.Listen(t, kit.NameAddr(t)))
		given(t, server, client)
	})
	t.Run("Accepted", func(t *testing.T) {
		kit.Story(t)
		client, server := kit.Connect(t, kit.Listen(t, kit.NameAddr(t)))
		given(t, client, server)
	})
}

func TestSendFilesBetweenProcessesThatHaveTheirLineFromAnother(t *testing.T) {
	kit.Story(t)
	c := kit.StartChild(t, "makes a line")
	c.MustSay("received: from a sibling")
	c.Outlive()
}

// childMakesALineForOthers gives the ends of a pair to two children and leaves.
func childMakesALineForOthers(*kit.Parent, []string) error {
	a, b := kit.Sure2(ipc.Pair())
	r, w := kit.Sure2(ipc.Pipe())
	giver, taker := kit.Again("gives a file"), kit.Again("takes a file")
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
func childGivesAFile(*kit.Parent, []string) error {
	c := kit.Sure(ipc.InheritedConn("line"))
	end := kit.Sure(ipc.InheritedReader("end"))
	if _, err := io.Copy(io.Discard, end); err != nil {
		return err
	}
	r, w := kit.Sure2(os.Pipe())
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
func childTakesAFile(p *kit.Parent, _ []string) error {
	c := kit.Sure(ipc.InheritedConn("line"))
	files := kit.Sure(c.RecvFiles(1))
	text := make([]byte, len("from a sibling"))
	if _, err := io.ReadFull(files[0], text); err != nil {
		return err
	}
	p.Say("received: %s", text)
	return errors.Join(files[0].Close(), c.Close())
}

// isNonblocking reports whether the file was in nonblocking mode when it was made.
func isNonblocking(f *os.File) bool { return f.SetReadDeadline(time.Time{}) == nil }

func TestSendFilesKeepsTheNonblockingMode(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a mode of Unix")
	}
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		nonblocking, _ := kit.OsPipe(t)
		blocking, _ := kit.OsPipe(t)
		blocking.Fd() // this makes it so

		kit.SendFiles(t, a, nonblocking, blocking, kit.TextFile(t, "x"))
		for i, f := range kit.RecvFiles(t, b, 3) {
			if got, want := isNonblocking(f), i == 0; got != want {
				t.Errorf("file %d is nonblocking: %v", i, got)
			}
		}
		kit.Must(t, nonblocking.SetReadDeadline(time.Now().Add(kit.Brief))) // and so it is still for its sender
		_, err := nonblocking.Read(make([]byte, 1))
		kit.Matches(t, err, os.ErrDeadlineExceeded)
	})
}

// ---------------------------------------------------------------------------
// Files and data

func TestSendFilesBetweenData(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		for i := range 10 {
			kit.Say(t, a, fmt.Sprintf("before %d", i))
			kit.SendFiles(t, a, kit.TextFile(t, "a file"), kit.TextFile(t, "another"))
			kit.SendFiles(t, a, kit.TextFile(t, "a third"))
			kit.Say(t, a, "between")
			kit.SendFiles(t, a, kit.TextFile(t, "the last"))
			kit.Say(t, a, "after")

			kit.Hear(t, b, fmt.Sprintf("before %d", i))
			files := kit.RecvFiles(t, b, 2)
			kit.Holds(t, files[0], "a file")
			kit.Holds(t, files[1], "another")
			kit.Holds(t, kit.RecvFiles(t, b, 1)[0], "a third")
			kit.Hear(t, b, "between")
			kit.Holds(t, kit.RecvFiles(t, b, 1)[0], "the last")
			kit.Hear(t, b, "after")
		}
		kit.Must(t, a.Close())
		kit.HearEOF(t, b)
	})
}

func TestRecvFilesOfData(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		for _, text := range []string{"data", "\x00", "\x00data", "x"} {
			kit.Say(t, a, text)
			kit.SendFiles(t, a, kit.TextFile(t, "a file"))
			for range 2 { // it stays so until the data is read
				files, err := b.RecvFiles(1)
				kit.Matches(t, err, ipc.ErrNoFiles)
				kit.IsOpError(t, err, "recvfiles")
				if files != nil {
					t.Errorf("%d files are returned with the error", len(files))
				}
			}
			kit.Hear(t, b, text)
			kit.Holds(t, kit.RecvFiles(t, b, 1)[0], "a file")
		}
	})
}

// The byte that RecvFiles had to receive, to know that it is data, is like any other of the next read.
func TestRecvFilesOfDataIsReadInOnePiece(t *testing.T) {
	kit.OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		kit.Send(t, a, "data")
		_, err := b.RecvFiles(1)
		kit.Matches(t, err, ipc.ErrNoFiles)
		for what, read := range map[string]func(p []byte) (int, error){
			"Read":        b.Read,
			"ReadBuffers": func(p []byte) (int, error) { n, err := b.ReadBuffers([][]byte{p}); return int(n), err },
		} {
			kit.Must(t, b.SetReadDeadline(time.Unix(1, 0)))
			if n, err := read(make([]byte, 10)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s after the deadline: %d, %v", what, n, err)
			}
		}
		kit.Must(t, b.SetReadDeadline(time.Time{}))
		p := make([]byte, 10)
		n, err := b.Read(p)
		kit.Must(t, err)
		if got := string(p[:n]); got != "data" && (runtime.GOOS == "linux" || runtime.GOOS == "windows" || got != "d") {
			t.Errorf("%q is read", got)
		}
		kit.Must(t, a.Close())
	})
}

func TestRecvFilesOfAMessageLeavesItWhole(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		instead := func(text string) {
			t.Helper()
			kit.SendMsg(t, a, text)
			_, err := b.RecvFiles(1)
			kit.Matches(t, err, ipc.ErrNoFiles)
		}
		instead("appended")
		p, err := b.RecvAppend([]byte("is "))
		if string(p) != "is appended" || err != nil {
			t.Errorf("received %q, %v", p, err)
		}
		instead("cut off")
		room := make([]byte, 3)
		n, err := b.Recv(room)
		kit.Matches(t, err, ipc.ErrMsgTooLong)
		if n != 3 || string(room) != "cut" {
			t.Errorf("received %q", room[:n])
		}
		instead("dropped")
		_, err = b.Recv(nil)
		kit.Matches(t, err, ipc.ErrMsgTooLong)
		instead("last")
		kit.Must(t, a.Close())
		_, err = b.RecvFiles(1)
		kit.Matches(t, err, ipc.ErrNoFiles)
		kit.ExpectMsg(t, b, "last")
		_, err = b.RecvFiles(1)
		if err != io.EOF {
			t.Errorf("%v at the end", err)
		}
		kit.ExpectMsgEOF(t, b)
	})
}

func TestRecvFilesOfAnEmptyMessage(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		kit.NeedsEmpty(t)
		kit.SendMsg(t, a, "")
		kit.SendFiles(t, a, kit.TextFile(t, "a file"))
		for range 2 {
			_, err := b.RecvFiles(1)
			kit.Matches(t, err, ipc.ErrNoFiles)
		}
		kit.ExpectMsg(t, b, "")
		kit.Holds(t, kit.RecvFiles(t, b, 1)[0], "a file")
		kit.SendMsg(t, a, "")
		_, err := b.RecvFiles(1)
		kit.Matches(t, err, ipc.ErrNoFiles)
		p, err := b.RecvAppend(nil)
		if len(p) != 0 || err != nil {
			t.Errorf("received %q, %v", p, err)
		}
	})
}

func TestSendFilesThatNobodyAskedForAreClosed(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
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
			r, w := kit.OsPipe(t)
			f := kit.TextFile(t, "x")
			before := kit.OpenDescriptors()
			kit.SendFiles(t, a, w, f, w)
			p, err := read()
			if string(p) != "\x00" || err != nil {
				t.Errorf("read %q, %v", p, err)
			}
			kit.Must(t, kit.NoMoreDescriptors(before))
			kit.Must(t, w.Close())
			kit.ExpectEOF(t, r) // nobody has the other end any more
			kit.Say(t, a, "and on")
			kit.Hear(t, b, "and on")
		}
		kit.FilesStillPass(t, a, b)
	})
}

func TestSendFilesOnTheirWayAreClosedWithTheConnection(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		if runtime.GOOS == "windows" {
			t.Skip("handles are the peer's as soon as they are sent")
		}
		r, w := kit.OsPipe(t)
		for range 3 {
			kit.SendFiles(t, a, w, w)
		}
		kit.Must(t, w.Close())
		kit.Must(t, b.Close())
		kit.Must(t, a.Close())
		kit.ExpectEOF(t, r)
	})
}

func TestRecvFilesOutliveTheConnection(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		r, w := kit.OsPipe(t)
		kit.SendFiles(t, a, r)
		kit.Must(t, a.Close())
		f := kit.RecvFiles(t, b, 1)[0]
		_, err := b.RecvFiles(1)
		if err != io.EOF {
			t.Errorf("%v at the end", err)
		}
		kit.Must(t, b.Close())
		kit.Must(t, r.Close())
		kit.Send(t, w, "still there")
		kit.Must(t, w.Close())
		kit.Holds(t, f, "still there")
	})
}

// ---------------------------------------------------------------------------
// What cannot be sent

func TestSendFilesRefusesWhatIsNoOpenFile(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		closed := kit.TextFile(t, "closed")
		kit.Must(t, closed.Close())
		open := kit.TextFile(t, "open")
		before := kit.OpenDescriptors()
		for what, files := range map[string][]*os.File{
			"nil": {nil}, "closed": {closed},
			"nil among others": {open, nil, open}, "closed among others": {open, open, closed},
		} {
			err := a.SendFiles(files...)
			if err == nil {
				t.Fatalf("%s: it is sent", what)
			}
			kit.IsOpError(t, err, "sendfiles")
			if strings.HasPrefix(what, "closed") {
				kit.Matches(t, err, os.ErrClosed)
			}
		}
		kit.Must(t, kit.NoMoreDescriptors(before))
		kit.Say(t, a, "the first that arrives")
		kit.Hear(t, b, "the first that arrives")
		kit.FilesStillPass(t, a, b)
		_, err := open.Stat()
		kit.Must(t, err)
	})
}

func TestSendFilesToAPeerThatIsGone(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		f := kit.TextFile(t, "x")
		kit.Must(t, b.Close())
		var err error
		kit.Eventually(t, "sending fails", func() bool { err = a.SendFiles(f); return err != nil })
		kit.Matches(t, err, syscall.EPIPE)
		kit.IsOpError(t, err, "sendfiles")
		if _, err := a.RecvFiles(1); err != io.EOF {
			t.Errorf("%v at the end", err)
		}
	})
}

func TestSendFilesAndRecvFilesAfterClose(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		f := kit.TextFile(t, "x")
		if runtime.GOOS != "windows" { // where it would be left in this process
			kit.SendFiles(t, b, f)
		}
		kit.Must(t, a.Close())
		err := a.SendFiles(f)
		kit.Matches(t, err, net.ErrClosed)
		kit.IsOpError(t, err, "sendfiles")
		files, err := a.RecvFiles(1)
		kit.Matches(t, err, net.ErrClosed)
		kit.IsOpError(t, err, "recvfiles")
		if files != nil {
			t.Error("files are returned with the error")
		}
	})
}

// ---------------------------------------------------------------------------
// Waiting

func TestSendFilesAndRecvFilesEndAtTheDeadline(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		begun := time.Now()
		kit.Must(t, b.SetReadDeadline(begun.Add(kit.Brief)))
		_, err := b.RecvFiles(1)
		kit.TimedOut(t, err)
		kit.IsOpError(t, err, "recvfiles")
		if waited := time.Since(begun); waited < kit.Brief {
			t.Errorf("it gave up after %v", waited)
		}
		kit.Must(t, a.SetWriteDeadline(time.Now().Add(-time.Second)))
		f := kit.TextFile(t, "x")
		err = a.SendFiles(f)
		kit.TimedOut(t, err)
		kit.IsOpError(t, err, "sendfiles")
		kit.Must(t, a.SetWriteDeadline(time.Time{}))
		kit.Must(t, b.SetReadDeadline(time.Time{}))
		kit.FilesStillPass(t, a, b)
	})
}

func TestRecvFilesThatTimesOutLosesNothing(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		rounds := 1000
		if runtime.GOOS == "windows" { // a wait there is at least a millisecond
			rounds = 200
		}
		deck := kit.Cards(t, 4)
		sending := kit.Trickle(rounds, a, func(i int) error { return a.SendFiles(deck[i%4]) })
		got := 0
		kit.InAHurry(t, b, func() error {
			files, err := b.RecvFiles(1)
			if err != nil {
				return err
			}
			place, err := kit.Card(files[0])
			kit.Must(t, errors.Join(err, files[0].Close()))
			if place != got%4 {
				t.Fatalf("card %d arrives in round %d", place, got)
			}
			got++
			return nil
		})
		kit.Must(t, <-sending)
		if got != rounds {
			t.Fatalf("%d files of %d arrive", got, rounds)
		}
	})
}

func TestSendFilesThatTimesOutSendsAllOrNothing(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		deck := kit.Cards(t, 100)
		sent := 0
		for timeouts := 0; timeouts < 3 && sent < 5000; {
			kit.Must(t, a.SetWriteDeadline(time.Now().Add(5*time.Millisecond)))
			switch err := a.SendFiles(deck[sent%100]); {
			case err == nil:
				sent++
			case errors.Is(err, syscall.ETOOMANYREFS), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
				timeouts++ // the system limits what is on its way: just as good a reason to send nothing
			default:
				kit.TimedOut(t, err)
				timeouts++
			}
		}
		kit.Must(t, a.SetWriteDeadline(time.Time{}))
		closing := kit.Begin(a.Close)
		for i := range sent {
			f := kit.RecvFiles(t, b, 1)[0]
			if place, err := kit.Card(f); place != i%100 || err != nil {
				t.Fatalf("card %d arrives in the place of %d, %v", place, i%100, err)
			}
			kit.Must(t, f.Close())
		}
		kit.Must(t, <-closing)
		kit.HearEOF(t, b)
	})
}

func TestSendFilesAndRecvFilesEndWithClose(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		receiving := kit.Begin(func() error { _, err := a.RecvFiles(1); return err })
		kit.AwaitParked(t, strings.Replace(fmt.Sprintf("(%T).RecvFiles", a), "ipc.", "", 1), 1) // (*Conn).RecvFiles
		kit.Must(t, a.Close())
		kit.Matches(t, <-receiving, net.ErrClosed)
		if _, err := b.RecvFiles(1); err != io.EOF {
			t.Errorf("%v at the end", err)
		}
	})
}

func TestSendFilesOfManyAtOnce(t *testing.T) {
	const senders, receivers, each = 4, 3, 50
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		deck := kit.Cards(t, senders*each+2)
		put := func(n int) error { return a.SendFiles(deck[n : n+1+n%3]...) } // 1 to 3 in a row
		kit.EverythingArrivesOnce(t, a, senders*each, senders, put, receivers, func(int, int) (int, error) {
			files, err := b.RecvFiles(3)
			if err != nil {
				return 0, err
			}
			first, err := kit.Card(files[0])
			if err != nil || len(files) != 1+first%3 {
				t.Errorf("%d files arrive behind %d, %v", len(files), first, err)
			}
			for i, f := range files {
				if place, err := kit.Card(f); place != first+i || err != nil {
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
	kit.Must(t, err)
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
	if err := c.SendWithFiles([]byte("x"), kit.TextFile(t, "x")); errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	} else {
		kit.Must(t, err)
	}
}

func TestRecvWithFilesBringsTheMessage(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		needsFilesWithMessages(t, a)
		recvWith(t, b, "x", 1)
		for _, text := range []string{"", "\x00", "m", "a message", string(kit.Pattern(3000))} {
			kit.Must(t, a.SendWithFiles([]byte(text), kit.TextFile(t, "one"), kit.TextFile(t, "two")))
			files := recvWith(t, b, text, 2)
			kit.Holds(t, files[0], "one")
			kit.Holds(t, files[1], "two")
		}
		kit.Must(t, a.SendWithFiles([]byte("without files")))
		recvWith(t, b, "without files", 0)
		kit.SendMsg(t, a, "plain")
		recvWith(t, b, "plain", 0)
		kit.SendFiles(t, a, kit.TextFile(t, "file alone"))
		kit.Holds(t, recvWith(t, b, "\x00", 1)[0], "file alone")
		kit.Must(t, a.SendWithFiles([]byte("message"), kit.TextFile(t, "file first")))
		kit.Holds(t, kit.RecvFiles(t, b, 1)[0], "file first")
		kit.ExpectMsg(t, b, "message")
		kit.FilesStillPass(t, a, b)
		kit.Must(t, a.Close())
		if n, files, err := b.RecvWithFiles(make([]byte, 8), 1); n != 0 || files != nil || err != io.EOF {
			t.Errorf("after the last message come %d, %d files, %v", n, len(files), err)
		}
	})
}

func TestRecvWithFilesThatCannotBeHad(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		needsFilesWithMessages(t, a)
		recvWith(t, b, "x", 1)
		f := kit.TextFile(t, "a file")
		p := make([]byte, 4)
		kit.LeavesNothing(t, 3, func() {
			kit.Must(t, a.SendWithFiles([]byte("many"), f, f, f))
			n, files, err := b.RecvWithFiles(p, 2)
			if files != nil || string(p[:n]) != "many" {
				t.Fatalf("%q comes with %d files", p[:n], len(files))
			}
			kit.Matches(t, err, ipc.ErrMsgTooLong)

			kit.Must(t, a.SendWithFiles([]byte("longer than 4"), f))
			n, files, err = b.RecvWithFiles(p, 1)
			if files != nil || string(p[:n]) != "long" {
				t.Fatalf("%q comes with %d files", p[:n], len(files))
			}
			kit.Matches(t, err, ipc.ErrMsgTooLong)

			kit.Must(t, a.SendWithFiles([]byte("none"), f))
			n, files, err = b.RecvWithFiles(p, 0)
			if files != nil || string(p[:n]) != "none" {
				t.Fatalf("%q comes with %d files", p[:n], len(files))
			}
			kit.Matches(t, err, ipc.ErrMsgTooLong)

			if runtime.GOOS != "windows" { // where the record of the files is in front
				kit.Must(t, a.SendWithFiles([]byte("plain"), f)) // which nobody asked for
				kit.ExpectMsg(t, b, "plain")
				kit.Must(t, a.SendWithFiles([]byte("append"), f))
				if got, err := b.RecvAppend(nil); string(got) != "append" || err != nil {
					t.Fatalf("%q comes, %v", got, err)
				}
			}
			kit.Must(t, a.SendWithFiles([]byte("next")))
			recvWith(t, b, "next", 0)
		})
		for _, most := range []int{-1, 254} {
			if _, _, err := b.RecvWithFiles(p, most); err == nil {
				t.Errorf("at most %d files are asked for", most)
			}
		}
		kit.Must(t, f.Close())
		kit.Matches(t, a.SendWithFiles([]byte("x"), f), os.ErrClosed)
		kit.Must(t, a.Send([]byte("next")))
		recvWith(t, b, "next", 0)
	})
}

func TestRecvWithFilesEndsAtTheDeadline(t *testing.T) {
	kit.OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) {
		needsFilesWithMessages(t, a)
		recvWith(t, b, "x", 1)
		kit.Must(t, b.SetReadDeadline(time.Now().Add(kit.Brief)))
		_, files, err := b.RecvWithFiles(make([]byte, 8), 1)
		if files != nil {
			t.Errorf("%d files come with %v", len(files), err)
		}
		kit.TimedOut(t, err)
		kit.Must(t, b.SetReadDeadline(time.Time{}))
		f := kit.TextFile(t, "a file")
		kit.Must(t, a.SetWriteDeadline(time.Now().Add(kit.Brief)))
		sent := 0
		for err = nil; err == nil; {
			if err = a.SendWithFiles(kit.Pattern(2000), f); err == nil {
				sent++
			}
		}
		kit.TimedOut(t, err)
		kit.Must(t, a.Close())
		for range sent { // whole, with their files, or cut off
			p := make([]byte, 3000)
			n, files, err := b.RecvWithFiles(p, 1)
			if n != 2000 || len(files) != 1 || err != nil {
				t.Fatalf("%d bytes come with %d files, %v", n, len(files), err)
			}
			kit.Must(t, files[0].Close())
		}
		if _, files, err := b.RecvWithFiles(make([]byte, 8), 1); files != nil || err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("then come %d files, %v", len(files), err)
		}
	})
}
