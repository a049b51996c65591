//go:build unix

// Files as Unix has them: descriptors in control messages.
package ipc_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["fewfiles"] = childReceivesMoreThanItCan
}

// ---------------------------------------------------------------------------
// Descriptors

func TestRecvFilesAreCloseOnExec(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		r, w := kit.OsPipe(t)
		before := kit.Descriptors()
		kit.SendFiles(t, a, r, w, r)
		kit.RecvFiles(t, b, 3)
		kit.SendFiles(t, a, w)
		oob := kit.OobRoom(1)
		_, oobn, _, err := b.(kit.RawCarrier).ReadMsg(make([]byte, 10), oob)
		kit.Must(t, err)
		kit.FilesIn(t, oob[:oobn])
		if n := kit.AreCloseOnExec(t, before); n != 4 {
			t.Fatalf("%d new descriptors", n)
		}
	})
}

// sharedModeIsNonblocking reports the mode of a pipe or socket, which all its
// descriptors share.
func sharedModeIsNonblocking(t *testing.T, f *os.File) bool {
	t.Helper()
	fd, err := syscall.Dup(kit.SysFD(t, f))
	kit.Must(t, err)
	other := os.NewFile(uintptr(fd), "duplicate") // os.NewFile looks at the mode
	defer other.Close()
	return isNonblocking(other)
}

func TestSendFilesLeavesTheModeAsItWas(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		nonblocking, _ := kit.OsPipe(t)
		var p [2]int
		kit.Must(t, syscall.Pipe(p[:]))
		blocking := os.NewFile(uintptr(p[0]), "blocking")
		defer blocking.Close()
		defer syscall.Close(p[1])

		kit.SendFiles(t, a, nonblocking, blocking)
		files := kit.RecvFiles(t, b, 2)
		for _, f := range []*os.File{nonblocking, files[0]} {
			if !sharedModeIsNonblocking(t, f) {
				t.Error("a nonblocking file became blocking")
			}
		}
		for _, f := range []*os.File{blocking, files[1]} {
			if sharedModeIsNonblocking(t, f) {
				t.Error("a blocking file became nonblocking")
			}
		}
	})
}

func TestSendFilesOfConnections(t *testing.T) {
	kit.OverEachCarrier(t, func(t *testing.T, a, b kit.Carrier) {
		near, far := kit.Pair(t)
		f, err := far.File()
		kit.Must(t, err)
		kit.SendFiles(t, a, f)
		got := kit.RecvFiles(t, b, 1)[0]
		kit.Must(t, errors.Join(f.Close(), far.Close())) // not before: see SendFiles on macOS
		adopted, err := ipc.FileConn(got)
		kit.Must(t, err)
		defer adopted.Close()
		kit.Talk(t, near, adopted)
	})
}

func TestRecvFilesCutOffByTheSystemAreClosed(t *testing.T) {
	for _, kind := range []string{"stream", "native", "framed"} {
		if kind == "native" && kit.FramedHere {
			continue
		}
		t.Run(kind, func(t *testing.T) {
			kit.Story(t)
			kit.StartChild(t, "fewfiles", kind).End()
		})
	}
}

// childReceivesMoreThanItCan receives more files than it may have descriptors.
func childReceivesMoreThanItCan(_ *kit.Parent, args []string) error {
	a, b := kit.Sure2(kit.Carriers(args[0]))
	r, w := kit.Sure2(os.Pipe())
	many := make([]*os.File, 20)
	for i := range many {
		many[i] = w
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	few, open := limit, kit.Descriptors()
	few.Cur = 0
	for free, fd := 6, 0; free > 0; fd++ { // the limit is on the number, and there are gaps
		if !slices.Contains(open, fd) {
			free--
		}
		few.Cur++
	}

	before := kit.OpenDescriptors()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		return err
	}
	for range 3 {
		if err := a.SendFiles(many...); err != nil {
			return err
		}
		files, err := b.RecvFiles(253)
		if err == nil {
			return fmt.Errorf("%d files of %d are received without an error", len(files), len(many))
		}
		if files != nil {
			return fmt.Errorf("%d files are returned with the error %w", len(files), err)
		}
		if err := kit.NoMoreDescriptors(before); err != nil {
			return err
		}
		if err := kit.Reaches(a, b, "data in between"); err != nil {
			return err
		}
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}

	if err := a.SendFiles(many...); err != nil { // now there is room
		return err
	}
	files, err := b.RecvFiles(253)
	if err != nil || len(files) != len(many) {
		return fmt.Errorf("afterwards %d files of %d are received, %w", len(files), len(many), err)
	}
	if err := kit.Reaches(a, b, "data at the end"); err != nil {
		return err
	}
	for _, f := range append(files, w) {
		f.Close()
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		return fmt.Errorf("somebody still has a file: %v", err)
	}
	return errors.Join(a.Close(), b.Close())
}

// ---------------------------------------------------------------------------
// Peers that send files in another way

func TestRecvFilesThatComeWithData(t *testing.T) {
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		for _, data := range []string{"data", "\x01", "\xff\x00"} {
			n, err := a.WriteMsg([]byte(data), kit.RightsOf(t, kit.TextFile(t, "a file"), kit.TextFile(t, "another")))
			if n != len(data) || err != nil {
				t.Fatalf("wrote %d, %v", n, err)
			}
			files := kit.RecvFiles(t, b, 2)
			kit.Holds(t, files[0], "a file")
			kit.Holds(t, files[1], "another")
			kit.Hear(t, b, data)
		}
		kit.FilesStillPass(t, a, b)
	})
}

func TestRecvFilesOfTooManyLeavesTheData(t *testing.T) {
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		f := kit.TextFile(t, "a file")
		before := kit.OpenDescriptors()
		_, err := a.WriteMsg([]byte("data"), kit.RightsOf(t, f, f, f))
		kit.Must(t, err)
		_, err = b.RecvFiles(2)
		kit.Matches(t, err, ipc.ErrMsgTooLong)
		kit.Must(t, kit.NoMoreDescriptors(before))
		kit.Hear(t, b, "data")
		kit.FilesStillPass(t, a, b)
	})
}

// TestRecvFilesThatComeWithAFrame has a frame of another length than that of
// SendFiles: the next message is where it should be all the same.
func TestRecvFilesThatComeWithAFrame(t *testing.T) {
	for what, message := range map[string]string{
		"Longer": "message", "OneByte": "m", "Empty": "", "Zeros": "\x00\x00",
	} {
		t.Run(what, func(t *testing.T) {
			overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
				frame := "\x00\x00\x00" + string(rune(len(message))) + message
				_, err := stream.WriteMsg([]byte(frame), kit.RightsOf(t, kit.TextFile(t, "a file")))
				kit.Must(t, err)
				kit.Send(t, stream, "\x00\x00\x00\x04next")
				kit.Holds(t, kit.RecvFiles(t, c, 1)[0], "a file")
				kit.ExpectMsg(t, c, message)
				kit.ExpectMsg(t, c, "next")
			})
		})
	}
}

// TestRecvFilesOfAFrameLeavesTheNextAlone has RecvFiles keep a message, which the
// next receive returns at once: the files of the message after it stay with that.
func TestRecvFilesOfAFrameLeavesTheNextAlone(t *testing.T) {
	overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
		_, err := stream.WriteMsg([]byte("\x00\x00\x00\x01m"), kit.RightsOf(t, kit.TextFile(t, "a file")))
		kit.Must(t, err)
		_, err = stream.WriteMsg([]byte("\x00\x00\x00\x04next"), kit.RightsOf(t, kit.TextFile(t, "another")))
		kit.Must(t, err)
		kit.Holds(t, kit.RecvFiles(t, c, 1)[0], "a file")
		p := make([]byte, 10)
		n, files, err := c.RecvWithFiles(p, 1)
		if string(p[:n]) != "m" || len(files) != 0 || err != nil {
			t.Fatalf("%q comes with %d files, %v", p[:n], len(files), err)
		}
		n, files, err = c.RecvWithFiles(p, 1)
		if string(p[:n]) != "next" || len(files) != 1 || err != nil {
			t.Fatalf("%q comes with %d files, %v", p[:n], len(files), err)
		}
		defer files[0].Close()
		kit.Holds(t, files[0], "another")
	})
}

// TestRecvFilesOfAFrameThatComesInPieces has the files come before the rest of their
// frame, so that the receiver may give up in between.
func TestRecvFilesOfAFrameThatComesInPieces(t *testing.T) {
	overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
		const frame = "\x00\x00\x00\x01\x00"
		begun := func(cut int) (r *os.File, before int) { // RecvFiles has seen a part
			t.Helper()
			r, w := kit.OsPipe(t)
			before = kit.OpenDescriptors() - 1
			_, err := stream.WriteMsg([]byte(frame[:cut]), kit.RightsOf(t, w))
			kit.Must(t, err)
			kit.Must(t, w.Close())
			for range 2 {
				kit.Must(t, c.SetReadDeadline(time.Now().Add(2*time.Millisecond)))
				_, err = c.RecvFiles(1)
				kit.TimedOut(t, err)
			}
			kit.Must(t, c.SetReadDeadline(time.Time{}))
			return r, before
		}
		for cut := 1; cut < len(frame); cut++ {
			r, _ := begun(cut) // and gets the rest
			kit.Send(t, stream, frame[cut:])
			f := kit.RecvFiles(t, c, 1)[0]
			kit.Send(t, f, "through the pipe")
			kit.Must(t, f.Close())
			kit.Holds(t, r, "through the pipe")

			r, before := begun(cut) // and somebody receives it as a message
			kit.Send(t, stream, frame[cut:])
			kit.ExpectMsg(t, c, "\x00")
			kit.Must(t, kit.NoMoreDescriptors(before))
			kit.ExpectEOF(t, r)
		}

		_, before := begun(len(frame) - 1) // and there is no rest
		kit.Must(t, stream.Close())
		_, err := c.RecvFiles(1)
		kit.Matches(t, err, io.ErrUnexpectedEOF)
		kit.Must(t, kit.NoMoreDescriptors(before-1)) // less the stream's
	})
}

// A peer need not send a whole frame.
func TestMsgConnCloseClosesTheFilesOfHalfAFrame(t *testing.T) {
	overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
		for range 3 {
			r, w := kit.Pipe(t)
			f, err := w.File()
			kit.Must(t, err)
			raw, err := f.SyscallConn()
			kit.Must(t, err)
			kit.Must(t, raw.Control(func(fd uintptr) {
				_, err = stream.WriteMsg([]byte{0, 0}, syscall.UnixRights(int(fd)))
			}))
			kit.Must(t, err)
			kit.Must(t, errors.Join(f.Close(), w.Close()))
			kit.Must(t, c.SetReadDeadline(time.Now().Add(kit.Brief)))
			_, err = c.RecvFiles(1)
			kit.TimedOut(t, err)
			kit.Must(t, c.Close())
			kit.ExpectEOF(t, r) // nobody has the other end
			kit.Must(t, r.Close())
			c, stream = frameEnds(t)
		}
		kit.Must(t, errors.Join(c.Close(), stream.Close()))
	})
}

// ---------------------------------------------------------------------------
// Raw control messages

func TestReadMsgAndWriteMsgCarryFiles(t *testing.T) {
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		n, err := a.WriteMsg([]byte("data"), kit.RightsOf(t, kit.TextFile(t, "one"), kit.TextFile(t, "two")))
		if n != 4 || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
		p, oob := make([]byte, 10), kit.OobRoom(2)
		n, oobn, flags, err := b.ReadMsg(p, oob)
		if string(p[:n]) != "data" || flags&(syscall.MSG_CTRUNC|syscall.MSG_TRUNC) != 0 || err != nil {
			t.Errorf("read %q, flags %#x, %v", p[:n], flags, err)
		}
		files := kit.FilesIn(t, oob[:oobn])
		if len(files) != 2 {
			t.Fatalf("%d files arrive", len(files))
		}
		kit.Holds(t, files[0], "one")
		kit.Holds(t, files[1], "two")

		// What SendFiles sends is no secret.
		kit.SendFiles(t, a, kit.TextFile(t, "three"))
		n, oobn, _, err = b.ReadMsg(p, oob)
		if string(p[:n]) != "\x00" || err != nil {
			t.Errorf("read %q, %v", p[:n], err)
		}
		if files := kit.FilesIn(t, oob[:oobn]); len(files) == 1 {
			kit.Holds(t, files[0], "three")
		} else {
			t.Errorf("%d files arrive", len(files))
		}

		// And RecvFiles takes what a C program sends.
		_, err = a.WriteMsg([]byte{0}, kit.RightsOf(t, kit.TextFile(t, "four")))
		kit.Must(t, err)
		kit.Holds(t, kit.RecvFiles(t, b, 1)[0], "four")
		kit.FilesStillPass(t, a, b)
	})
}

// TestReadMsgNeedsRoomForItsFilesAlone sizes the buffer as the example of
// cmsg(3) does: what the package asks of the kernel for itself is not in the way.
func TestReadMsgNeedsRoomForItsFilesAlone(t *testing.T) {
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		for _, n := range []int{1, 2, mostFiles()} {
			files := kit.Cards(t, n)
			_, err := a.WriteMsg([]byte("x"), kit.RightsOf(t, files...))
			kit.Must(t, err)
			oob := make([]byte, syscall.CmsgSpace(4*n))
			_, oobn, flags, err := b.ReadMsg(make([]byte, 10), oob)
			kit.Must(t, err)
			got := kit.FilesIn(t, oob[:oobn])
			if len(got) != n || flags&syscall.MSG_CTRUNC != 0 {
				t.Fatalf("%d files of %d arrive, flags are %#x", len(got), n, flags)
			}
			for _, f := range got {
				kit.Must(t, f.Close())
			}
			kit.Say(t, a, "in between") // after a plain receive it is the same
			kit.Hear(t, b, "in between")
		}
	})
}

func TestReadMsgNeedsNoControl(t *testing.T) {
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		n, err := a.WriteMsg([]byte("plain"), nil)
		if n != 5 || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
		kit.Hear(t, b, "plain")
		kit.Say(t, a, "answer")
		p := make([]byte, 10)
		n, oobn, _, err := b.ReadMsg(p, nil)
		if string(p[:n]) != "answer" || oobn != 0 || err != nil {
			t.Errorf("read %q, %d, %v", p[:n], oobn, err)
		}
		kit.Say(t, a, "alone")
		n, oobn, flags, err := b.ReadMsg(p, kit.OobRoom(1))
		if string(p[:n]) != "alone" || oobn != 0 || flags&syscall.MSG_CTRUNC != 0 || err != nil {
			t.Errorf("read %q, %d, %#x, %v", p[:n], oobn, flags, err)
		}

		kit.Say(t, a, "held") // what RecvFiles has looked at
		_, err = b.RecvFiles(1)
		kit.Matches(t, err, ipc.ErrNoFiles)
		got := ""
		for len(got) < 4 {
			n, _, _, err := b.ReadMsg(p, kit.OobRoom(1))
			kit.Must(t, err)
			got += string(p[:n])
		}
		if got != "held" {
			t.Errorf("read %q", got)
		}

		kit.Must(t, a.Close())
		n, _, _, err = b.ReadMsg(p, kit.OobRoom(1))
		if n != 0 || err != io.EOF {
			t.Errorf("read %d, %v at the end", n, err)
		}
		_, err = b.WriteMsg([]byte("x"), nil)
		kit.Matches(t, err, syscall.EPIPE)
		kit.IsOpError(t, err, "writemsg")
	})
}

func TestReadMsgAndWriteMsgWait(t *testing.T) {
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		begun := time.Now()
		kit.Must(t, b.SetReadDeadline(begun.Add(kit.Brief)))
		_, _, _, err := b.ReadMsg(make([]byte, 1), kit.OobRoom(1))
		kit.TimedOut(t, err)
		kit.IsOpError(t, err, "readmsg")
		if waited := time.Since(begun); waited < kit.Brief {
			t.Errorf("it gave up after %v", waited)
		}
		kit.Must(t, b.SetReadDeadline(time.Time{}))
		got := make(chan string, 1)
		reading := kit.Begin(func() error {
			p := make([]byte, 10)
			n, _, _, err := b.ReadMsg(p, nil)
			got <- string(p[:n])
			return err
		})
		kit.Say(t, a, "news")
		kit.Must(t, <-reading)
		if text := <-got; text != "news" {
			t.Errorf("read %q", text)
		}
		reading = kit.Begin(func() error { _, _, _, err := b.ReadMsg(make([]byte, 1), nil); return err })
		kit.Must(t, b.Close())
		kit.Matches(t, <-reading, net.ErrClosed)
		_, err = b.WriteMsg([]byte("x"), nil)
		kit.Matches(t, err, net.ErrClosed)
	})
}

func TestReadMsgAndWriteMsgReturnNothingAfterTheDeadline(t *testing.T) {
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		p, oob := make([]byte, 10), kit.OobRoom(1)
		_, err := a.WriteMsg([]byte("news"), nil)
		kit.Must(t, err)
		_, _, _, err = b.ReadMsg(p, oob)
		kit.Must(t, err)
		past := time.Now().Add(-time.Second)
		kit.Must(t, a.SetWriteDeadline(past))
		kit.Must(t, b.SetReadDeadline(past))
		n, err := a.WriteMsg([]byte("more news"), nil)
		kit.TimedOut(t, err)
		if n != 0 {
			t.Errorf("WriteMsg has written %d bytes after the deadline", n)
		}
		n, oobn, flags, err := b.ReadMsg(p, oob)
		kit.TimedOut(t, err)
		if n != 0 || oobn != 0 || flags != 0 {
			t.Errorf("ReadMsg returned %d bytes, %d of control messages and flags %#x after the deadline", n, oobn, flags)
		}
	})
}

func TestReadMsgFlagsAMessageTooLong(t *testing.T) {
	if kit.FramedHere {
		t.Skip("no messages but in frames")
	}
	kit.Story(t)
	a, b := kit.MsgPair(t)
	p := make([]byte, 4)
	kit.SendMsg(t, a, "too long")
	n, _, flags, err := b.ReadMsg(p, kit.OobRoom(1))
	if string(p[:n]) != "too " || err != nil {
		t.Errorf("read %q, %v", p[:n], err)
	}
	if runtime.GOOS == "freebsd" { // where the rest may follow: FreeBSD 15
		t.Logf("flags are %#x", flags)
		return
	}
	if flags&syscall.MSG_TRUNC == 0 {
		t.Errorf("flags are %#x", flags)
	}
	kit.SendMsg(t, a, "too long")
	_, err = b.RecvFiles(1)
	kit.Matches(t, err, ipc.ErrNoFiles)
	if n, _, flags, err := b.ReadMsg(p, nil); string(p[:n]) != "too " || flags&syscall.MSG_TRUNC == 0 || err != nil {
		t.Errorf("read %q, flags %#x, %v", p[:n], flags, err)
	}
	kit.SendMsg(t, a, "next")
	kit.ExpectMsg(t, b, "next")
}

func TestReadMsgOfNothingIsNotTheEnd(t *testing.T) {
	if kit.FramedHere {
		t.Skip("no messages but in frames")
	}
	kit.Story(t)
	kit.NeedsEmpty(t)
	a, b := kit.MsgPair(t)
	for range 2 {
		kit.SendMsg(t, a, "")
	}
	kit.Must(t, a.Close())
	for _, oob := range [][]byte{nil, kit.OobRoom(1)} {
		if n, _, _, err := b.ReadMsg(make([]byte, 10), oob); n != 0 || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
	}
	if n, _, _, err := b.ReadMsg(make([]byte, 10), nil); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v at the end", n, err)
	}
}

// TestReadMsgClosesControlWithoutRoom counts; that the kernel says so is another
// test.
func TestReadMsgClosesControlWithoutRoom(t *testing.T) {
	if kit.UnderEmulation() {
		t.Skip("qemu-user asks the kernel for twice as much room as there is, and loses the files that are too many")
	}
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		r, w := kit.OsPipe(t)
		for _, room := range []int{0, 1, 2, 4} {
			before := kit.OpenDescriptors()
			_, err := a.WriteMsg([]byte("x"), kit.RightsOf(t, w, w, w, w, w))
			kit.Must(t, err)
			oob := make([]byte, 0)
			if room > 0 {
				oob = make([]byte, syscall.CmsgSpace(4*room))
			}
			n, oobn, _, err := b.ReadMsg(make([]byte, 10), oob)
			if n != 1 || err != nil {
				t.Errorf("read %d, %v", n, err)
			}
			files := kit.FilesIn(t, oob[:oobn])
			for _, f := range files {
				kit.Must(t, f.Close())
			}
			if len(files) > 5 {
				t.Errorf("%d files arrive", len(files))
			}
			if err := kit.NoMoreDescriptors(before); err != nil {
				t.Errorf("with room for %d files: %v", room, err)
			}
		}
		kit.Must(t, w.Close())
		kit.ExpectEOF(t, r)
		kit.FilesStillPass(t, a, b)
	})
}

func TestReadMsgFlagsControlWithoutRoom(t *testing.T) {
	if kit.UnderEmulation() {
		t.Skip("qemu-user does not report MSG_CTRUNC")
	}
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		_, w := kit.OsPipe(t)
		_, err := a.WriteMsg([]byte("x"), kit.RightsOf(t, w, w, w, w, w))
		kit.Must(t, err)
		oob := make([]byte, syscall.CmsgSpace(4))
		_, oobn, flags, err := b.ReadMsg(make([]byte, 10), oob)
		kit.Must(t, err)
		kit.FilesIn(t, oob[:oobn])
		if flags&syscall.MSG_CTRUNC == 0 {
			t.Errorf("flags are %#x", flags)
		}
	})
}

// FreeBSD 15 queues the files and says EAGAIN if there is room for them and not for a byte
// of data.
func TestSendFilesSendsOnceHoweverFullTheQueueIs(t *testing.T) {
	kit.Story(t)
	a, _ := kit.Pair(t)
	kit.Must(t, a.SetWriteDeadline(time.Now().Add(20*time.Millisecond)))
	capacity, _ := a.Write(make([]byte, 4<<20))
	file := kit.TextFile(t, "once")
	for left := range min(160, capacity) {
		a, b := kit.Pair(t)
		kit.Must(t, a.SetWriteDeadline(time.Now().Add(2*time.Millisecond)))
		a.Write(make([]byte, capacity-left))
		err := a.SendFiles(file)
		sent := make(chan error, 1)
		go func() {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = errors.Join(a.SetWriteDeadline(time.Time{}), a.SendFiles(file))
			}
			sent <- errors.Join(err, a.Close())
		}()
		files := 0
		p, oob := make([]byte, 64<<10), kit.OobRoom(4)
		for {
			_, oobn, _, err := b.ReadMsg(p, oob)
			if err == io.EOF {
				break
			}
			kit.Must(t, err)
			for _, f := range kit.FilesIn(t, oob[:oobn]) {
				files++
				kit.Must(t, f.Close())
			}
		}
		if err := <-sent; files != 1 || err != nil {
			t.Fatalf("with %d bytes of %d left the file comes %d times, %v", left, capacity, files, err)
		}
		kit.Must(t, b.Close())
	}
}

// ---------------------------------------------------------------------------
// A C program at the other end

// cPeer is the other end in C, with descriptor 3 for a socket. It says what it
// finds, and is told by its argument what to do.
const cPeer = `
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX 253

static void die(const char *what) { perror(what); exit(1); }

static void send_files(int n) {
	int fds[MAX];
	for (int i = 0; i < n; i++) {
		int p[2];
		char text[32];
		if (pipe(p) < 0) die("pipe");
		snprintf(text, sizeof text, "file %d", i);
		if (write(p[1], text, strlen(text)) < 0) die("write");
		close(p[1]);
		fds[i] = p[0];
	}
	char zero = 0, control[CMSG_SPACE(sizeof fds)];
	memset(control, 0, sizeof control);
	struct iovec iov = { &zero, 1 };
	struct msghdr msg = { 0 };
	msg.msg_iov = &iov;
	msg.msg_iovlen = 1;
	msg.msg_control = control;
	msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(n * sizeof(int));
	memcpy(CMSG_DATA(c), fds, n * sizeof(int));
	if (sendmsg(3, &msg, 0) != 1) die("sendmsg");
	for (int i = 0; i < n; i++) close(fds[i]);
}

static void recv_files(void) {
	char data[16], control[CMSG_SPACE(MAX * sizeof(int))];
	struct iovec iov = { data, sizeof data };
	struct msghdr msg = { 0 };
	msg.msg_iov = &iov;
	msg.msg_iovlen = 1;
	msg.msg_control = control;
	msg.msg_controllen = sizeof control;
	ssize_t n = recvmsg(3, &msg, 0);
	if (n < 0) die("recvmsg");
	int files = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
		int m = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (int i = 0; i < m; i++) {
			int fd;
			char text[64];
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
			snprintf(text, sizeof text, "C has file %d\n", files++);
			if (write(fd, text, strlen(text)) < 0) die("write");
			close(fd);
		}
	}
	printf("%d files with %d bytes, the first is %d, control %s\n", files, (int)n, data[0],
		msg.msg_flags & MSG_CTRUNC ? "cut off" : "whole");
}

int main(int argc, char **argv) {
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0) die("getrlimit");
	if (limit.rlim_cur < MAX + 50) { /* 256 on macOS, 128 on NetBSD */
		limit.rlim_cur = MAX + 50;
		if (setrlimit(RLIMIT_NOFILE, &limit) < 0) die("setrlimit");
	}
	if (fcntl(3, F_SETFL, fcntl(3, F_GETFL) & ~O_NONBLOCK) < 0) die("fcntl");
	setvbuf(stdout, 0, _IOLBF, 0);
	for (int i = 1; i < argc; i++) {
		if (strncmp(argv[i], "send", 4) == 0) send_files(atoi(argv[i] + 4));
		else if (strcmp(argv[i], "recv") == 0) recv_files();
		else if (strcmp(argv[i], "say") == 0) { if (write(3, "plain", 5) != 5) die("write"); }
	}
	return 0;
}
`

func TestSendFilesToAndFromAProgramInC(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	source, program := filepath.Join(dir, "peer.c"), filepath.Join(dir, "peer")
	kit.Must(t, os.WriteFile(source, []byte(cPeer), 0o600))
	if out, err := exec.Command(gcc, "-o", program, source).CombinedOutput(); err != nil {
		t.Skipf("gcc does not compile here: %v: %s", err, out)
	}
	most := mostFiles()
	kit.OverEachRaw(t, func(t *testing.T, a, b kit.RawCarrier) {
		end, err := b.File()
		kit.Must(t, err)
		cmd := exec.Command(program, "recv", "recv", "send1", "send3", "say", "send"+strconv.Itoa(most), "recv")
		cmd.ExtraFiles = []*os.File{end}
		out, err := cmd.StdoutPipe()
		kit.Must(t, err)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); errors.Is(err, os.ErrPermission) {
			t.Skipf("programs cannot be run from the temporary folder: %v", err)
		} else {
			kit.Must(t, err)
		}
		defer func() { cmd.Process.Kill(); cmd.Wait() }()
		kit.Must(t, errors.Join(end.Close(), b.Close())) // only the program has that end now

		gives := func(n int) {
			t.Helper()
			r, w := kit.OsPipe(t)
			files := make([]*os.File, n)
			want := ""
			for i := range files {
				files[i] = w
				want += fmt.Sprintf("C has file %d\n", i)
			}
			kit.SendFiles(t, a, files...)
			kit.Expect(t, out, fmt.Sprintf("%d files with 1 bytes, the first is 0, control whole\n", n))
			kit.Must(t, w.Close())
			kit.Holds(t, r, want) // and the program has closed what it got
		}
		takes := func(n int) {
			t.Helper()
			for i, f := range kit.RecvFiles(t, a, n) {
				kit.Holds(t, f, fmt.Sprintf("file %d", i))
				kit.Must(t, f.Close())
			}
		}
		gives(1)
		gives(100)
		takes(1)
		takes(3)
		_, err = a.RecvFiles(1)
		kit.Matches(t, err, ipc.ErrNoFiles)
		kit.Hear(t, a, "plain")
		takes(most)
		gives(most)
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		kit.HearEOF(t, a)
	})
}

// TestRecvFilesOfAnInterruptedMessageAreBounded gives up in the middle of a frame that
// brings files, and asks for fewer the next time.
func TestRecvFilesOfAnInterruptedMessageAreBounded(t *testing.T) {
	overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
		f := kit.TextFile(t, "a file")
		before := kit.OpenDescriptors()
		begun := func() {
			t.Helper()
			_, err := stream.WriteMsg([]byte("\x00\x00\x00\x04ab"), kit.RightsOf(t, f, f))
			kit.Must(t, err)
			kit.Must(t, c.SetReadDeadline(time.Now().Add(2*time.Millisecond)))
			_, files, err := c.RecvWithFiles(make([]byte, 8), 2)
			if files != nil {
				t.Errorf("%d files come with %v", len(files), err)
			}
			kit.TimedOut(t, err)
			kit.Must(t, c.SetReadDeadline(time.Time{}))
			kit.Send(t, stream, "cd")
		}
		begun()
		files := recvWith(t, c, "abcd", 2)
		kit.Must(t, errors.Join(files[0].Close(), files[1].Close()))
		begun()
		p := make([]byte, 8)
		n, files, err := c.RecvWithFiles(p, 1)
		if string(p[:n]) != "abcd" || files != nil {
			t.Errorf("%q comes with %d files", p[:n], len(files))
		}
		kit.Matches(t, err, ipc.ErrMsgTooLong)
		begun()
		kit.ExpectMsg(t, c, "abcd")
		kit.Must(t, kit.NoMoreDescriptors(before))
	})
}

// pythonPeer has a socket for messages as descriptor 3. It returns each message, with
// the files that came with it, by what Python offers for that.
const pythonPeer = `
import os, socket
s = socket.socket(fileno=3)
s.setblocking(True)
while True:
    data, files, flags, addr = socket.recv_fds(s, 1 << 16, 253)
    if not data and not files:
        break
    socket.send_fds(s, [data], files)
    for f in files:
        os.close(f)
`

func TestSendFilesToPythonAndBack(t *testing.T) {
	kit.Together(t)
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command(python, "-c", "import socket; socket.recv_fds").CombinedOutput(); err != nil {
		t.Skipf("this Python does not send files: %v: %s", err, out)
	}
	kit.Story(t)
	a, b := kit.MsgPair(t)
	if !a.Native() {
		t.Skip("the socket carries frames")
	}
	f, err := b.File()
	kit.Must(t, err)
	cmd := exec.Command(python, "-c", pythonPeer)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{f}, os.Stderr
	kit.Must(t, cmd.Start())
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	kit.Must(t, errors.Join(f.Close(), b.Close()))
	for i, text := range []string{"hello", "x", "none", string(kit.Pattern(5000))} {
		files := kit.Cards(t, 4*i%13)
		kit.Must(t, a.SendWithFiles([]byte(text), files...))
		back := recvWith(t, a, text, len(files))
		for j, f := range back {
			if n, err := kit.Card(f); n != j || err != nil {
				t.Errorf("file %d comes back as %d, %v", j, n, err)
			}
		}
	}
	kit.SendFiles(t, a, kit.TextFile(t, "alone"))
	kit.Holds(t, kit.RecvFiles(t, a, 1)[0], "alone")
	kit.Must(t, a.Close())
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
