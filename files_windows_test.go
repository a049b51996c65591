// Files as Windows has them: handles that are put into another process, and the record that tells it of them. What a
// program can do that does not use this package, and what a peer can do that must not. Ends that a child is given.
package ipc_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/interprocess-go/ipc"
)

func init() {
	roles["locked"] = childIsLocked
	roles["sends by hand"] = childSendsByHand
	roles["holds an end"] = childHoldsAnEnd
}

var (
	setKernelObjectSecurity = advapi32.NewProc("SetKernelObjectSecurity")
	parseDescriptor         = advapi32.NewProc("ConvertStringSecurityDescriptorToSecurityDescriptorW")
)

// A letter is a record as any program could write it.
type letter struct {
	Mark    [8]byte
	Version uint32
	N       uint32
	PID     uint32
	ID      [16]byte
}

const letterSize = 36

// write returns the bytes of a letter about the handles.
func (l letter) write(handles ...uint32) string {
	p, err := binary.Append(nil, binary.LittleEndian, l)
	if err == nil {
		p, err = binary.Append(p, binary.LittleEndian, handles)
	}
	if err != nil {
		panic(err)
	}
	return string(p) + zeroByte
}

// zeroByte is the data that files travel with.
const zeroByte = "\x00"

// readLetter reads what write returns.
func readLetter(t *testing.T, text string) (l letter, handles []uint32) {
	t.Helper()
	n, err := binary.Decode([]byte(text), binary.LittleEndian, &l)
	must(t, err)
	handles = make([]uint32, l.N)
	m, err := binary.Decode([]byte(text[n:]), binary.LittleEndian, handles)
	must(t, err)
	if n+m+len(zeroByte) != len(text) || !strings.HasSuffix(text, zeroByte) {
		t.Fatalf("%d bytes for %d files", len(text), l.N)
	}
	return l, handles
}

// newLetter returns a letter about files that the process holds.
func newLetter(pid, files int) letter {
	l := letter{Version: 2, N: uint32(files), PID: uint32(pid)}
	copy(l.Mark[:], "ipcfiles")
	return l
}

// ---------------------------------------------------------------------------
// The record

func TestSendFilesRecordIsAsDocumented(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		sendFiles(t, a, textFile(t, "one"), textFile(t, "two"))
		text := make([]byte, letterSize+8+len(zeroByte))
		must(t, hearInto(b, text))
		l, files := readLetter(t, string(text))
		if string(l.Mark[:]) != "ipcfiles" || l.Version != 2 || int(l.PID) != os.Getpid() || l.ID == [16]byte{} {
			t.Errorf("the record is %+v", l)
		}
		for i, h := range files {
			f := os.NewFile(uintptr(h), "by hand")
			holds(t, f, []string{"one", "two"}[i])
			must(t, f.Close())
		}
		filesStillPass(t, a, b)
	})
}

// hearInto reads what is there into p.
func hearInto(c carrier, p []byte) (err error) {
	switch c := c.(type) {
	case *ipc.Conn:
		_, err = io.ReadFull(c, p)
	case *ipc.MsgConn:
		_, err = c.Recv(p)
	}
	return err
}

// byHand connects a child that sends files by hand, and returns the connection.
func byHand(t *testing.T, way string) (*child, *ipc.Conn) {
	t.Helper()
	l := listen(t, nameAddr(t))
	c := startChild(t, "sends by hand", l.Addr().String(), way)
	c.mustSay("here")
	server := accept(t, l)
	t.Cleanup(func() { server.Close() })
	return c, server
}

// childSendsByHand writes records about a file that it has put into the server's
// process, or that it holds itself, or about a handle of the server that it is told
// of. It needs nothing of the package for that but a connection.
func childSendsByHand(p *parent, args []string) error {
	c := sure(ipc.Dial(sure(ipc.ParseAddr(args[0]))))
	defer c.Close()
	server, _ := sure(c.Peer()).PID()
	p.say("here")
	f := sure(os.Open(sure(os.Executable())))
	defer f.Close()
	for told := p.hear(); told != ""; told = p.hear() {
		l := newLetter(os.Getpid(), 1)
		h := uint32(sure(strconv.Atoi(told)))
		switch args[1] {
		case "names":
			l.PID = uint32(server)
		case "puts":
			l.PID = uint32(server)
			process := sure(syscall.OpenProcess(0x40, false, uint32(server))) // PROCESS_DUP_HANDLE
			h = uint32(sure(duplicateInto(f, process)))
			syscall.CloseHandle(process)
		case "holds":
			h = uint32(sure(duplicateInto(f, thisProcess)))
		}
		if _, err := io.WriteString(c, l.write(h)); err != nil {
			return err
		}
		p.say("sent %d", h)
	}
	return nil
}

// duplicateInto duplicates the handle of a file into a process.
func duplicateInto(f *os.File, process syscall.Handle) (d syscall.Handle, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	e := raw.Control(func(h uintptr) {
		err = syscall.DuplicateHandle(thisProcess, syscall.Handle(h), process, &d, 0, false, syscall.DUPLICATE_SAME_ACCESS)
	})
	return d, errors.Join(e, err)
}

func TestRecvFilesFromOtherProgram(t *testing.T) {
	for _, way := range []string{"puts", "holds"} {
		t.Run(way, func(t *testing.T) {
			story(t)
			c, server := byHand(t, way)
			c.say("0")
			c.hear()
			files, err := server.RecvFiles(1)
			must(t, err)
			info, err := files[0].Stat()
			must(t, errors.Join(err, files[0].Close()))
			if info.Size() == 0 {
				t.Error("it is another file")
			}
			c.end()
		})
	}
}

func TestRecvFilesTakesARecordOnce(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		sendFiles(t, a, textFile(t, "one"))
		text := make([]byte, letterSize+4+len(zeroByte))
		must(t, hearInto(b, text))
		say(t, a, string(text))
		say(t, a, string(text))
		holds(t, recvFiles(t, b, 1)[0], "one")
		if _, err := b.RecvFiles(1); !errors.Is(err, ipc.ErrUntrusted) {
			t.Errorf("the second is %v", err)
		}
	})
}

func TestRecvFilesLeavesDataThatIsNoRecord(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		good := newLetter(os.Getpid(), 1)
		change := func(change func(l *letter)) string {
			l := good
			change(&l)
			return l.write(4)
		}
		for what, text := range map[string]string{
			"another mark":       change(func(l *letter) { l.Mark[7] = 'S' }),
			"no files":           change(func(l *letter) { l.N = 0 }),
			"too many files":     change(func(l *letter) { l.N = 254 }),
			"very many files":    change(func(l *letter) { l.N = 0xffffffff }),
			"more files":         change(func(l *letter) { l.N = 2 }),
			"a part":             good.write(4)[:letterSize+3],
			"the head":           good.write(),
			"the mark":           "ipcfiles",
			"a part of the mark": "ipc",
		} {
			say(t, a, text)
			_, err := b.RecvFiles(253)
			matches(t, err, ipc.ErrNoFiles)
			if errors.Is(err, ipc.ErrUntrusted) {
				t.Errorf("%s: %v", what, err)
			}
			hear(t, b, text)
		}
		if _, ok := a.(*ipc.MsgConn); ok {
			say(t, a, good.write(4)+"!") // a message is a record or not
			_, err := b.RecvFiles(1)
			matches(t, err, ipc.ErrNoFiles)
			hear(t, b, good.write(4)+"!")
		}
		filesStillPass(t, a, b)
	})
}

func TestRecvFilesOfAnotherVersionIsAClearError(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		l := newLetter(os.Getpid(), 1)
		l.Version = 3
		say(t, a, l.write(0))
		_, err := b.RecvFiles(1)
		matches(t, err, errors.ErrUnsupported)
		if !strings.Contains(err.Error(), "version 3") {
			t.Errorf("%q does not say the version", err)
		}
		hear(t, b, l.write(0))
		filesStillPass(t, a, b)
	})
}

// ---------------------------------------------------------------------------
// Peers that are not to be believed

// isOpen checks that h is still a handle of the file.
func isOpen(t *testing.T, h syscall.Handle, f *os.File) {
	t.Helper()
	var want, got syscall.ByHandleFileInformation
	control(t, f, func(sys uintptr) { must(t, syscall.GetFileInformationByHandle(syscall.Handle(sys), &want)) })
	must(t, syscall.GetFileInformationByHandle(h, &got))
	if got != want {
		t.Errorf("handle %d is another file", h)
	}
}

// lockThisProcess takes from everybody the right to open this process for
// PROCESS_DUP_HANDLE, until the test ends.
func lockThisProcess(t *testing.T) {
	t.Helper()
	must(t, setProcessSecurity("D:P(A;;0x121400;;;WD)")) // SYNCHRONIZE, READ_CONTROL and what may be asked
	t.Cleanup(func() { must(t, setProcessSecurity("D:P(A;;0x1fffff;;;WD)")) })
}

func setProcessSecurity(sddl string) error {
	text, err := syscall.UTF16PtrFromString(sddl)
	if err != nil {
		return err
	}
	var sd uintptr
	if r, _, err := parseDescriptor.Call(uintptr(unsafe.Pointer(text)), 1, uintptr(unsafe.Pointer(&sd)), 0); r == 0 {
		return err
	}
	defer syscall.LocalFree(syscall.Handle(sd))
	const daclInformation = 4
	if r, _, err := setKernelObjectSecurity.Call(uintptr(thisProcess), daclInformation, sd); r == 0 {
		return err
	}
	return nil
}

// A client names a handle of the server that it could not have put there.
func TestRecvFilesRefusesGuessedHandles(t *testing.T) {
	story(t)
	mine := textFile(t, "mine")
	h := handleOf(t, mine)
	defer syscall.CloseHandle(h)
	c, server := byHand(t, "names")
	lockThisProcess(t)
	for range 3 {
		c.say(strconv.Itoa(int(h)))
		c.hear()
		before := handlesOf("File", "Process", "Token")
		for range 2 { // it stays so until the data is read
			files, err := server.RecvFiles(1)
			if !errors.Is(err, ipc.ErrUntrusted) || !errors.Is(err, ipc.ErrNoFiles) || files != nil {
				t.Fatalf("%d files, %v", len(files), err)
			}
			isOpError(t, err, "recvfiles")
		}
		noMoreHandles(t, before)
		isOpen(t, h, mine)
		expect(t, server, newLetter(os.Getpid(), 1).write(uint32(h)))
	}
	c.say("")
	c.end()
}

// Handles of a third process, which nobody may open, and of none.
func TestRecvFilesRefusesHandlesOfOthers(t *testing.T) {
	story(t)
	l := listen(t, nameAddr(t))
	other := startChild(t, "locked", l.Addr().String())
	other.mustSay("locked")
	accept(t, l)
	overEachPair(t, func(t *testing.T, a, b carrier) {
		for _, pid := range []int{0, 0x7ffffffc, other.pid()} {
			text := newLetter(pid, 1).write(4)
			for _, way := range [][2]carrier{{a, b}, {b, a}} {
				say(t, way[0], text)
				_, err := way[1].RecvFiles(1)
				matches(t, err, ipc.ErrUntrusted, ipc.ErrNoFiles)
				hear(t, way[1], text)
			}
		}
		filesStillPass(t, a, b)
	})
	other.kill()
}

// What this process sends to itself is known by more than its handle.
func TestRecvFilesRefusesHandlesOfThisProcess(t *testing.T) {
	lockThisProcess(t)
	overEachPair(t, func(t *testing.T, a, b carrier) {
		mine := textFile(t, "mine")
		h := handleOf(t, mine)
		defer syscall.CloseHandle(h)
		sendFiles(t, a, textFile(t, "sent"))
		text := make([]byte, letterSize+4+len(zeroByte))
		must(t, hearInto(b, text))
		l, files := readLetter(t, string(text))
		for what, forged := range map[string]struct {
			from, to carrier
			text     string
		}{
			"a guess":            {b, a, newLetter(os.Getpid(), 1).write(uint32(h))},
			"a guess back":       {a, b, newLetter(os.Getpid(), 1).write(uint32(h))},
			"another handle":     {a, b, l.write(uint32(h))},
			"on the wrong end":   {b, a, l.write(files...)},
			"one file for two":   {a, b, func() string { l := l; l.N = 2; return l.write(files[0], files[0]) }()},
			"one of two is mine": {a, b, func() string { l := l; l.N = 2; return l.write(files[0], uint32(h)) }()},
		} {
			if what == "one file for two" {
				continue // it is taken, and only once: see TestRecvFilesTakesARecordOnce
			}
			say(t, forged.from, forged.text)
			_, err := forged.to.RecvFiles(2)
			if !errors.Is(err, ipc.ErrUntrusted) || !errors.Is(err, ipc.ErrNoFiles) {
				t.Fatalf("%s: %v", what, err)
			}
			hear(t, forged.to, forged.text)
			isOpen(t, h, mine)
		}
		say(t, a, string(text))
		holds(t, recvFiles(t, b, 1)[0], "sent")
		filesStillPass(t, a, b)
	})
}

// A child that was given an end and names a handle of the process that gave it. It
// can do no more than it could without.
func TestRecvFilesFromChildWithAnEnd(t *testing.T) {
	for _, which := range []string{"first", "second", "dialed", "accepted"} {
		t.Run(which, func(t *testing.T) {
			story(t)
			mine := textFile(t, "mine")
			handle := handleOf(t, mine)
			defer syscall.CloseHandle(handle)
			var given, kept *ipc.Conn
			switch which {
			case "first":
				given, kept = pair(t)
			case "second":
				kept, given = pair(t)
			case "dialed":
				given, kept = connect(t, listen(t, nameAddr(t)))
			case "accepted":
				kept, given = connect(t, listen(t, nameAddr(t)))
			}
			h := newHeir(t)
			h.gets("end", given)
			c := h.start("holds an end", "end", strconv.Itoa(os.Getpid()), strconv.Itoa(int(handle)))
			must(t, given.Close())
			c.mustSay("sent")
			files, err := kept.RecvFiles(1)
			must(t, err)
			must(t, files[0].Close())
			lockThisProcess(t)
			c.say("")
			c.mustSay("forged")
			_, err = kept.RecvFiles(1)
			matches(t, err, ipc.ErrUntrusted, ipc.ErrNoFiles)
			isOpen(t, handle, mine)
			c.end()
		})
	}
}

// childHoldsAnEnd sends a file, and then a record of a handle of its parent.
func childHoldsAnEnd(p *parent, args []string) error {
	c := sure(ipc.InheritedConn(args[0]))
	f := sure(os.Open(sure(os.Executable())))
	if err := c.SendFiles(f); err != nil {
		return err
	}
	p.say("sent")
	p.hear()
	forged := newLetter(sure(strconv.Atoi(args[1])), 1).write(uint32(sure(strconv.Atoi(args[2]))))
	if _, err := io.WriteString(c, forged); err != nil {
		return err
	}
	p.say("forged")
	p.hear()
	return errors.Join(f.Close(), c.Close())
}

func TestSendFilesToAPeerThatNobodyMayOpen(t *testing.T) {
	story(t)
	l := listen(t, nameAddr(t))
	c := startChild(t, "locked", l.Addr().String())
	server := accept(t, l)
	c.mustSay("locked")
	const dupHandle = 0x40 // PROCESS_DUP_HANDLE
	if process, err := syscall.OpenProcess(dupHandle, false, uint32(c.pid())); err == nil {
		syscall.CloseHandle(process)
		t.Skip("this system lets this user open the process")
	}
	exchangesFiles(t, c, server)
}

// childIsLocked is childHandlesFiles in a process that nobody may open.
func childIsLocked(p *parent, args []string) error {
	if err := setProcessSecurity("D:P(A;;0x1000;;;WD)"); err != nil { // PROCESS_QUERY_LIMITED_INFORMATION
		return err
	}
	p.say("locked")
	return childHandlesFiles(p, args)
}

// ---------------------------------------------------------------------------
// What arrives

func TestRecvFilesAreNotInherited(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		f := textFile(t, "x")
		control(t, f, func(h uintptr) {
			must(t, syscall.SetHandleInformation(syscall.Handle(h), syscall.HANDLE_FLAG_INHERIT, syscall.HANDLE_FLAG_INHERIT))
		})
		sendFiles(t, a, f, f)
		for _, f := range recvFiles(t, b, 2) {
			control(t, f, func(h uintptr) {
				var flags uint32
				if r, _, err := getHandleInformation.Call(h, uintptr(unsafe.Pointer(&flags))); r == 0 {
					t.Fatal(err)
				}
				if flags != 0 {
					t.Errorf("flags %#x", flags)
				}
			})
		}
	})
}

func TestSendFilesKeepsOverlappedMode(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		// A connection that its sender has used: a Conn made of it has deadlines.
		near, far := pair(t)
		talk(t, near, far)
		f, err := far.File()
		must(t, err)
		sendFiles(t, a, f)
		must(t, errors.Join(f.Close(), far.Close()))
		got := recvFiles(t, b, 1)[0]
		send(t, got, "as a file")
		expect(t, near, "as a file")
		c, err := ipc.FileConn(got)
		must(t, err)
		defer c.Close()
		talk(t, near, c)
		must(t, c.SetReadDeadline(time.Now().Add(brief)))
		_, err = c.Read(make([]byte, 1))
		timedOut(t, err)
	})
}

func TestSendFilesGoTheWayOfTheirPipe(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{Direction: ipc.ServerToClient, Messages: true})
	sendFiles(t, server, textFile(t, "x"))
	holds(t, recvFiles(t, client, 1)[0], "x")
	matches(t, client.SendFiles(textFile(t, "y")), errors.ErrUnsupported)
	_, err := server.RecvFiles(1)
	matches(t, err, errors.ErrUnsupported)
}

// ---------------------------------------------------------------------------
// Waiting

func TestRecvFilesIsTheSameHoweverItWaits(t *testing.T) {
	for _, spin := range []time.Duration{-1, patience} {
		t.Run(spin.String(), func(t *testing.T) {
			overEachPair(t, func(t *testing.T, a, b carrier) {
				b.(interface{ SetSpin(time.Duration) }).SetSpin(spin)
				for range 3 {
					received := begin(func() error {
						files, err := b.RecvFiles(1)
						for _, f := range files {
							f.Close()
						}
						return err
					})
					awaitParked(t, recvFilesOf(b), 1)
					sendFiles(t, a, textFile(t, "x"))
					must(t, <-received)

					received = begin(func() error { _, err := b.RecvFiles(1); return err })
					awaitParked(t, recvFilesOf(b), 1)
					say(t, a, "data")
					matches(t, <-received, ipc.ErrNoFiles)
					hear(t, b, "data")
				}
				must(t, b.SetReadDeadline(time.Now().Add(brief)))
				_, err := b.RecvFiles(1)
				timedOut(t, err)
			})
		})
	}
}

func recvFilesOf(c carrier) string {
	if _, ok := c.(*ipc.MsgConn); ok {
		return "(*MsgConn).RecvFiles"
	}
	return "(*Conn).RecvFiles"
}

func TestRecvFilesOfAnEmptyMessageLeavesItNextToRead(t *testing.T) {
	story(t)
	client, server := connectPipe(t, ipc.PipeConfig{Messages: true})
	for range 2 {
		must(t, client.WriteMessage(nil))
		_, err := server.RecvFiles(1)
		matches(t, err, ipc.ErrNoFiles)
		must(t, client.WriteMessage([]byte("next")))
		n, size, err := server.PeekMessage(make([]byte, 10))
		if n != 0 || size != 0 || err != nil {
			t.Errorf("there are %d bytes of %d to read, %v", n, size, err)
		}
		expectMessage(t, server, "")
		if _, size, err = server.PeekMessage(nil); size != len("next") || err != nil {
			t.Errorf("there are %d bytes to read, %v", size, err)
		}
		expectMessage(t, server, "next")
	}
	must(t, client.WriteMessage(nil))
	must(t, client.Close())
	_, err := server.RecvFiles(1)
	matches(t, err, ipc.ErrNoFiles)
	expectMessage(t, server, "")
	if _, err := server.RecvFiles(1); err != io.EOF {
		t.Errorf("%v at the end", err)
	}
}

func TestRecvWithFilesOfAMessageWithoutFilesAllocatesNothing(t *testing.T) {
	story(t)
	a, b := msgPair(t)
	p, q := make([]byte, 64), make([]byte, 64)
	allocatesNothing(t, "a message without files", func() error {
		if err := a.Send(p); err != nil {
			return err
		}
		_, files, err := b.RecvWithFiles(q, 1)
		if files != nil {
			t.Error("there are files")
		}
		return err
	})
}

func TestPipeConnEmptyWritesAreNothing(t *testing.T) {
	story(t)
	a, b := pair(t)
	event, _, err := createEvent.Call(0, 0, 0, 0)
	if event == 0 {
		t.Fatal(err)
	}
	defer syscall.CloseHandle(syscall.Handle(event))
	for range 3 {
		control(t, a, func(h uintptr) {
			var done uint32
			overlapped := &syscall.Overlapped{HEvent: syscall.Handle(event | 1)} // it does not pend: there is room
			must(t, syscall.WriteFile(syscall.Handle(h), nil, &done, overlapped))
		})
		must(t, b.SetReadDeadline(time.Now().Add(brief)))
		_, err = b.RecvFiles(1)
		timedOut(t, err)
		must(t, b.SetReadDeadline(time.Time{}))
		filesStillPass(t, a, b)
	}
}

// ---------------------------------------------------------------------------
// What is left behind

// noMoreHandles checks that there are no more handles than before. There may be
// fewer: the garbage collector closes what earlier tests dropped.
func noMoreHandles(t *testing.T, before int) {
	t.Helper()
	if now := handlesOf("File", "Process", "Token"); now > before {
		t.Errorf("%d handles became %d", before, now)
	}
}

func TestSendFilesLeavesNoHandlesBehind(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		f, closed := textFile(t, "x"), textFile(t, "y")
		must(t, closed.Close())
		broken := os.NewFile(0x7ffffff0, "no handle") // that os takes for open
		once := func() {
			sendFiles(t, a, f, f, f)
			for _, f := range recvFiles(t, b, 3) {
				must(t, f.Close())
			}
			sendFiles(t, a, f, f)
			_, err := b.RecvFiles(1)
			matches(t, err, ipc.ErrMsgTooLong)
			if a.SendFiles(f, closed) == nil || a.SendFiles(f, nil) == nil || a.SendFiles(f, broken) == nil {
				t.Error("what is not open is sent")
			}
			must(t, a.SetWriteDeadline(time.Now().Add(-time.Second)))
			timedOut(t, a.SendFiles(f, f))
			must(t, a.SetWriteDeadline(time.Time{}))
		}
		once() // whatever is kept for good
		before := handlesOf("File", "Process", "Token")
		for range 20 {
			once()
		}
		must(t, b.Close())
		for range 20 {
			matches(t, a.SendFiles(f), syscall.EPIPE)
		}
		noMoreHandles(t, before)
	})
}

func TestSendFilesTakenBackLeavesNoHandlesBehind(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		f := textFile(t, "x")
		say(t, a, strings.Repeat("x", 70<<10)[:64<<10]) // there is no more room
		before := handlesOf("File", "Process", "Token")
		for range 20 {
			must(t, a.SetWriteDeadline(time.Now().Add(time.Millisecond)))
			timedOut(t, a.SendFiles(f, f, f))
		}
		must(t, a.SetWriteDeadline(time.Time{}))
		sending := begin(func() error { return a.SendFiles(f) })
		awaitParked(t, strings.Replace(recvFilesOf(a), "Recv", "Send", 1), 1)
		must(t, a.Close())
		if err := <-sending; err == nil {
			t.Error("it is sent")
		}
		noMoreHandles(t, before)
	})
}

// Where neither process may open the other there is no way.
func TestSendFilesWithoutRightsFails(t *testing.T) {
	story(t)
	l := listen(t, nameAddr(t))
	c := startChild(t, "locked", l.Addr().String())
	server := accept(t, l)
	c.mustSay("locked")
	lockThisProcess(t)
	const dupHandle = 0x40 // PROCESS_DUP_HANDLE
	if process, err := syscall.OpenProcess(dupHandle, false, uint32(c.pid())); err == nil {
		syscall.CloseHandle(process)
		t.Skip("this system lets this user open the process")
	}
	f := textFile(t, "x")
	before := handlesOf("File", "Process", "Token")
	for range 3 {
		err := server.SendFiles(f)
		matches(t, err, os.ErrPermission)
		isOpError(t, err, "sendfiles")
	}
	noMoreHandles(t, before)
	send(t, server, "x") // nothing was sent
	c.kill()
}

func init() {
	roles["refuses an end"] = childRefusesAnEnd
	roles["welcomes"] = childWelcomes
	roles["serves a pipe"] = childServesAPipe
	roles["reads an end"] = childReadsAnEnd
}

// instanceInfo returns the kind and the buffers of the pipe of an end.
func instanceInfo(t *testing.T, c syscall.Conn) (info [3]uint32) {
	t.Helper()
	control(t, c, func(h uintptr) {
		r, _, err := getNamedPipeInfo.Call(h, uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&info[1])),
			uintptr(unsafe.Pointer(&info[2])), 0)
		if r == 0 {
			t.Fatal(err)
		}
	})
	return info
}

func TestInheritedListenerIsAsItsParents(t *testing.T) {
	for _, remote := range []bool{false, true} {
		t.Run(fmt.Sprint("AcceptRemote ", remote), func(t *testing.T) {
			story(t)
			path := pipePath()
			lc := ipc.ListenConfig{
				Access:  ipc.Everyone,
				Backlog: 2,
				Sys:     &ipc.SysListenConfig{ReadBuffer: 12 << 10, WriteBuffer: 20 << 10, AcceptRemote: remote},
			}
			l := listenWith(t, lc, ipc.Path(path))
			h := newHeir(t)
			h.gets("l", l)
			if strings.HasSuffix(h.cmd.Env[0], ":remote") != remote { // nothing else tells, on this machine
				t.Errorf("the child is told %s", h.cmd.Env)
			}
			c := h.start("holds a listener", "l")
			c.mustSay("ready")

			before := dialPipe(t, path, ipc.PipeDialer{}) // an instance of the parent's
			must(t, l.Close())
			after := dialPipe(t, path, ipc.PipeDialer{})
			if got, want := instanceInfo(t, after), instanceInfo(t, before); got != want {
				t.Errorf("the kind and the buffers are %v, want %v", got, want)
			}
			was, err := before.SecurityDescriptor()
			must(t, err)
			is, err := after.SecurityDescriptor()
			must(t, err)
			if is.String() != was.String() {
				t.Errorf("the descriptor is %v, want %v", is, was)
			}
			if n := 1 + len(fill(t, ipc.Path(path))); n != lc.Backlog {
				t.Errorf("%d clients have room, want %d", n, lc.Backlog)
			}
			c.end()
		})
	}
}

func TestInheritedListenersServeOneName(t *testing.T) {
	story(t)
	addr := nameAddr(t)
	l := listen(t, addr)
	var heirs []*child
	for _, name := range []string{"first", "second"} {
		h := newHeir(t)
		h.gets(name, l)
		c := h.start("welcomes", name)
		c.mustSay("welcoming " + addr.String())
		heirs = append(heirs, c)
	}
	must(t, l.Close())
	servedBy := func(names ...string) {
		t.Helper()
		for _, name := range names {
			eventually(t, name+" serves", func() bool {
				var conns []*ipc.Conn // the system takes the instance that listens longest
				defer func() {
					for _, c := range conns {
						c.Close()
					}
				}()
				for range 20 {
					c, err := ipc.Dialer{Timeout: soon}.Dial(addr)
					must(t, err)
					conns = append(conns, c)
					if who, err := io.ReadAll(c); string(who) == name && err == nil {
						return true
					}
				}
				return false
			})
		}
	}
	servedBy("first", "second")
	heirs[0].end()
	servedBy("second")
	_, err := ipc.Listen(addr)
	matches(t, err, ipc.ErrAddrInUse)
	heirs[1].end()
	serves(t, listen(t, addr), addr)
}

// childWelcomes tells the clients of the listener of its argument that name.
func childWelcomes(p *parent, args []string) error {
	l := sure(ipc.InheritedListener(args[0]))
	serving := begin(func() error { welcome(l, args[0]); return nil })
	p.say("welcoming %v", l.Addr())
	p.hear()
	return errors.Join(l.Close(), <-serving)
}

func TestInheritedRefusesEndsOfAnotherKind(t *testing.T) {
	story(t)
	_, conn := pair(t)
	r, w := pipe(t)
	l := listen(t, nameAddr(t))
	for what, end := range map[string]ipc.Inheritable{"conn": conn, "reader": r, "writer": w, "listener": l} {
		for _, kind := range []string{"conn", "msgconn", "listener"} {
			if kind == what {
				continue
			}
			h := newHeir(t)
			h.gets("x", end)
			// As if it were one of the other kind, in every way to write its token.
			_, token, _ := strings.Cut(h.cmd.Env[0], ","+what+",")
			handle, _, _ := strings.Cut(token, ":")
			for _, token := range []string{handle, handle + ":4", handle + ":remote", handle + ":4:remote"} {
				if what == "listener" && kind == "conn" && !strings.Contains(token, ":4") {
					continue // its handle is that of a connection whose client has left
				}
				h.cmd.Env[0] = inheritVar + "=x," + kind + "," + token
				c := h.start("refuses an end", kind)
				c.mustSay("refused")
				c.end()
			}
		}
	}
	runtime.KeepAlive(l) // with its handle
}

// childRefusesAnEnd takes the end "x" of the kind, which it must not get.
func childRefusesAnEnd(p *parent, args []string) error {
	for range 2 { // it stays where it is
		end, err := inheritors[args[0]]("x")
		if err == nil {
			return fmt.Errorf("there is an end %#v", end)
		}
		if err := refusedEnd(err); err != nil {
			return err
		}
		if strings.Contains(err.Error(), "garbled") {
			return err
		}
	}
	p.say("refused")
	return nil
}

// A child reads what was written to an end, though its peer is gone already. The system
// may have forgotten the name of such a pipe.
func TestInheritOfAnEndWhosePeerIsGone(t *testing.T) {
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		send(t, a, "before")
		h := newHeir(t)
		h.gets("c", b)
		must(t, a.Close())
		h.start("reads an end", "c", "before").end()
		must(t, b.Close())
	})
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		send(t, a, "before")
		must(t, a.Close())
		h := newHeir(t)
		h.gets("c", b)
		h.start("reads an end", "c", "before").end()
		must(t, b.Close())
	})
}

func childReadsAnEnd(p *parent, args []string) error {
	c, err := ipc.InheritedConn(args[0])
	if err != nil {
		return err
	}
	text, err := io.ReadAll(c)
	if string(text) != args[1] {
		err = errors.Join(err, fmt.Errorf("there is %q to read, want %q", text, args[1]))
	}
	return errors.Join(err, c.Close())
}

func TestPipeListenerIsHandedOn(t *testing.T) {
	for what, c := range map[string]ipc.PipeConfig{
		"bytes":    {},
		"messages": {Messages: true, Backlog: 2, Access: ipc.Everyone, ReadBuffer: 12 << 10, WriteBuffer: 20 << 10},
		"inbound":  {Direction: ipc.ClientToServer},
		"outbound": {Direction: ipc.ServerToClient, Messages: true, AcceptRemote: true, Inheritable: true},
	} {
		t.Run(what, func(t *testing.T) {
			story(t)
			l, path := listenPipe(t, c)
			h := newHeir(t)
			h.gets("l", l)
			child := h.start("serves a pipe", "l")
			child.mustSay("serving " + path)
			must(t, l.Close())
			client := dialPipe(t, path, ipc.PipeDialer{Direction: c.Direction, Messages: c.Messages})
			if c.Direction != ipc.ServerToClient {
				send(t, client, "word")
				child.mustSay("heard word")
			}
			if c.Direction != ipc.ClientToServer {
				p := make([]byte, 10)
				if n, err := client.Read(p); string(p[:n]) != "answer" || err != nil {
					t.Errorf("%q, %v", p[:n], err)
				}
			}
			must(t, client.Close())
			child.end()
			again, err := ipc.ListenPipe(path, c) // the name went with the child
			must(t, err)
			must(t, again.Close())
		})
	}
}

// childServesAPipe serves one client of the pipe of its argument.
func childServesAPipe(p *parent, args []string) error {
	l, err := ipc.InheritedPipeListener(args[0])
	if err != nil {
		return err
	}
	p.say("serving %v", l.Addr())
	c, err := l.AcceptPipe()
	if err != nil {
		return err
	}
	b := make([]byte, 10)
	if n, err := c.Read(b); err == nil {
		p.say("heard %s", b[:n])
	} else if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if _, err := c.Write([]byte("answer")); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	p.hear()
	return errors.Join(c.Close(), l.Close())
}

func TestPipeListenerWithALimitIsNotHandedOn(t *testing.T) {
	story(t)
	l, _ := listenPipe(t, ipc.PipeConfig{MaxInstances: 1})
	var cmd exec.Cmd
	matches(t, ipc.Inherit(&cmd, "l", l), errors.ErrUnsupported)
	if cmd.Env != nil || cmd.SysProcAttr != nil {
		t.Errorf("the command became %+v", cmd)
	}
}

// A handle that is open when the child starts, but that of another pipe.
func TestInheritedEndWithAnotherHandleIsRefused(t *testing.T) {
	story(t)
	_, b := pair(t)
	_, other := pair(t)
	h, wrong := newHeir(t), newHeir(t)
	h.gets("x", b)
	wrong.gets("x", other)
	_, id, _ := strings.Cut(h.cmd.Env[0], "@")
	handle, _, _ := strings.Cut(wrong.cmd.Env[0], "@")
	wrong.cmd.Env[0] = handle + "@" + id
	c := wrong.start("refuses an end", "conn")
	c.mustSay("refused")
	c.end()
}
