// Files as Windows has them: handles that are put into another process, and the record that tells it of them. What a
// program can do that does not use this package, and what a peer can do that must not.
package ipc_test

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["locked"] = childIsLocked
	kit.Roles["sends by hand"] = childSendsByHand
	kit.Roles["holds an end"] = childHoldsAnEnd
}

var (
	setKernelObjectSecurity = kit.Advapi32.NewProc("SetKernelObjectSecurity")
	parseDescriptor         = kit.Advapi32.NewProc("ConvertStringSecurityDescriptorToSecurityDescriptorW")
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
	kit.Must(t, err)
	handles = make([]uint32, l.N)
	m, err := binary.Decode([]byte(text[n:]), binary.LittleEndian, handles)
	kit.Must(t, err)
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
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
		kit.SendFiles(t, a, kit.TextFile(t, "one"), kit.TextFile(t, "two"))
		text := make([]byte, letterSize+8+len(zeroByte))
		kit.Must(t, hearInto(b, text))
		l, files := readLetter(t, string(text))
		if string(l.Mark[:]) != "ipcfiles" || l.Version != 2 || int(l.PID) != os.Getpid() || l.ID == [16]byte{} {
			t.Errorf("the record is %+v", l)
		}
		for i, h := range files {
			f := os.NewFile(uintptr(h), "by hand")
			kit.Holds(t, f, []string{"one", "two"}[i])
			kit.Must(t, f.Close())
		}
		kit.FilesStillPass(t, a, b)
	})
}

// hearInto reads what is there into p.
func hearInto(c kit.Carrier, p []byte) (err error) {
	switch c := c.(type) {
	case *ipc.Conn:
		_, err = io.ReadFull(c, p)
	case *ipc.MsgConn:
		_, err = c.Recv(p)
	}
	return err
}

// byHand connects a child that sends files by hand, and returns the connection.
func byHand(t *testing.T, way string) (*kit.Child, *ipc.Conn) {
	t.Helper()
	l := kit.Listen(t, kit.NameAddr(t))
	c := kit.StartChild(t, "sends by hand", l.Addr().String(), way)
	c.MustSay("here")
	server := kit.Accept(t, l)
	t.Cleanup(func() { server.Close() })
	return c, server
}

// childSendsByHand writes records about a file that it has put into the server's
// process, or that it holds itself, or about a handle of the server that it is told
// of. It needs nothing of the package for that but a connection.
func childSendsByHand(p *kit.Parent, args []string) error {
	c := kit.Sure(ipc.Dial(kit.Sure(ipc.ParseAddr(args[0]))))
	defer c.Close()
	server, _ := kit.Sure(c.Peer()).PID()
	p.Say("here")
	f := kit.Sure(os.Open(kit.Sure(os.Executable())))
	defer f.Close()
	for told := p.Hear(); told != ""; told = p.Hear() {
		l := newLetter(os.Getpid(), 1)
		h := uint32(kit.Sure(strconv.Atoi(told)))
		switch args[1] {
		case "names":
			l.PID = uint32(server)
		case "puts":
			l.PID = uint32(server)
			process := kit.Sure(syscall.OpenProcess(0x40, false, uint32(server))) // PROCESS_DUP_HANDLE
			h = uint32(kit.Sure(duplicateInto(f, process)))
			syscall.CloseHandle(process)
		case "holds":
			h = uint32(kit.Sure(duplicateInto(f, kit.ThisProcess)))
		}
		if _, err := io.WriteString(c, l.write(h)); err != nil {
			return err
		}
		p.Say("sent %d", h)
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
		err = syscall.DuplicateHandle(kit.ThisProcess, syscall.Handle(h), process, &d, 0, false, syscall.DUPLICATE_SAME_ACCESS)
	})
	return d, errors.Join(e, err)
}

func TestRecvFilesFromOtherProgram(t *testing.T) {
	for _, way := range []string{"puts", "holds"} {
		t.Run(way, func(t *testing.T) {
			kit.Story(t)
			c, server := byHand(t, way)
			c.Say("0")
			c.Hear()
			files, err := server.RecvFiles(1)
			kit.Must(t, err)
			info, err := files[0].Stat()
			kit.Must(t, errors.Join(err, files[0].Close()))
			if info.Size() == 0 {
				t.Error("it is another file")
			}
			c.End()
		})
	}
}

func TestRecvFilesTakesARecordOnce(t *testing.T) {
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
		kit.SendFiles(t, a, kit.TextFile(t, "one"))
		text := make([]byte, letterSize+4+len(zeroByte))
		kit.Must(t, hearInto(b, text))
		kit.Say(t, a, string(text))
		kit.Say(t, a, string(text))
		kit.Holds(t, kit.RecvFiles(t, b, 1)[0], "one")
		if _, err := b.RecvFiles(1); !errors.Is(err, ipc.ErrUntrusted) {
			t.Errorf("the second is %v", err)
		}
	})
}

func TestRecvFilesLeavesDataThatIsNoRecord(t *testing.T) {
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
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
			kit.Say(t, a, text)
			_, err := b.RecvFiles(253)
			kit.Matches(t, err, ipc.ErrNoFiles)
			if errors.Is(err, ipc.ErrUntrusted) {
				t.Errorf("%s: %v", what, err)
			}
			kit.Hear(t, b, text)
		}
		if _, ok := a.(*ipc.MsgConn); ok {
			kit.Say(t, a, good.write(4)+"!") // a message is a record or not
			_, err := b.RecvFiles(1)
			kit.Matches(t, err, ipc.ErrNoFiles)
			kit.Hear(t, b, good.write(4)+"!")
		}
		kit.FilesStillPass(t, a, b)
	})
}

func TestRecvFilesOfAnotherVersionIsAClearError(t *testing.T) {
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
		l := newLetter(os.Getpid(), 1)
		l.Version = 3
		kit.Say(t, a, l.write(0))
		_, err := b.RecvFiles(1)
		kit.Matches(t, err, errors.ErrUnsupported)
		if !strings.Contains(err.Error(), "version 3") {
			t.Errorf("%q does not say the version", err)
		}
		kit.Hear(t, b, l.write(0))
		kit.FilesStillPass(t, a, b)
	})
}

// ---------------------------------------------------------------------------
// Peers that are not to be believed

// isOpen checks that h is still a handle of the file.
func isOpen(t *testing.T, h syscall.Handle, f *os.File) {
	t.Helper()
	var want, got syscall.ByHandleFileInformation
	kit.Control(t, f, func(sys uintptr) { kit.Must(t, syscall.GetFileInformationByHandle(syscall.Handle(sys), &want)) })
	kit.Must(t, syscall.GetFileInformationByHandle(h, &got))
	if got != want {
		t.Errorf("handle %d is another file", h)
	}
}

// lockThisProcess takes from everybody the right to open this process for
// PROCESS_DUP_HANDLE, until the test ends.
func lockThisProcess(t *testing.T) {
	t.Helper()
	kit.Must(t, setProcessSecurity("D:P(A;;0x121400;;;WD)")) // SYNCHRONIZE, READ_CONTROL and what may be asked
	t.Cleanup(func() { kit.Must(t, setProcessSecurity("D:P(A;;0x1fffff;;;WD)")) })
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
	if r, _, err := setKernelObjectSecurity.Call(uintptr(kit.ThisProcess), daclInformation, sd); r == 0 {
		return err
	}
	return nil
}

// A client names a handle of the server that it could not have put there.
func TestRecvFilesRefusesGuessedHandles(t *testing.T) {
	kit.Story(t)
	mine := kit.TextFile(t, "mine")
	h := kit.HandleOf(t, mine)
	defer syscall.CloseHandle(h)
	c, server := byHand(t, "names")
	lockThisProcess(t)
	for range 3 {
		c.Say(strconv.Itoa(int(h)))
		c.Hear()
		before := kit.HandlesOf("File", "Process", "Token")
		for range 2 { // it stays so until the data is read
			files, err := server.RecvFiles(1)
			if !errors.Is(err, ipc.ErrUntrusted) || !errors.Is(err, ipc.ErrNoFiles) || files != nil {
				t.Fatalf("%d files, %v", len(files), err)
			}
			kit.IsOpError(t, err, "recvfiles")
		}
		noMoreHandles(t, before)
		isOpen(t, h, mine)
		kit.Expect(t, server, newLetter(os.Getpid(), 1).write(uint32(h)))
	}
	c.Say("")
	c.End()
}

// Handles of a third process, which nobody may open, and of none.
func TestRecvFilesRefusesHandlesOfOthers(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, kit.NameAddr(t))
	other := kit.StartChild(t, "locked", l.Addr().String())
	other.MustSay("locked")
	kit.Accept(t, l)
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
		for _, pid := range []int{0, 0x7ffffffc, other.PID()} {
			text := newLetter(pid, 1).write(4)
			for _, way := range [][2]kit.Carrier{{a, b}, {b, a}} {
				kit.Say(t, way[0], text)
				_, err := way[1].RecvFiles(1)
				kit.Matches(t, err, ipc.ErrUntrusted, ipc.ErrNoFiles)
				kit.Hear(t, way[1], text)
			}
		}
		kit.FilesStillPass(t, a, b)
	})
	other.Kill()
}

// What this process sends to itself is known by more than its handle.
func TestRecvFilesRefusesHandlesOfThisProcess(t *testing.T) {
	lockThisProcess(t)
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
		mine := kit.TextFile(t, "mine")
		h := kit.HandleOf(t, mine)
		defer syscall.CloseHandle(h)
		kit.SendFiles(t, a, kit.TextFile(t, "sent"))
		text := make([]byte, letterSize+4+len(zeroByte))
		kit.Must(t, hearInto(b, text))
		l, files := readLetter(t, string(text))
		for what, forged := range map[string]struct {
			from, to kit.Carrier
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
			kit.Say(t, forged.from, forged.text)
			_, err := forged.to.RecvFiles(2)
			if !errors.Is(err, ipc.ErrUntrusted) || !errors.Is(err, ipc.ErrNoFiles) {
				t.Fatalf("%s: %v", what, err)
			}
			kit.Hear(t, forged.to, forged.text)
			isOpen(t, h, mine)
		}
		kit.Say(t, a, string(text))
		kit.Holds(t, kit.RecvFiles(t, b, 1)[0], "sent")
		kit.FilesStillPass(t, a, b)
	})
}

// A child that was given an end and names a handle of the process that gave it. It
// can do no more than it could without.
func TestRecvFilesFromChildWithAnEnd(t *testing.T) {
	for _, which := range []string{"first", "second", "dialed", "accepted"} {
		t.Run(which, func(t *testing.T) {
			kit.Story(t)
			mine := kit.TextFile(t, "mine")
			handle := kit.HandleOf(t, mine)
			defer syscall.CloseHandle(handle)
			var given, kept *ipc.Conn
			switch which {
			case "first":
				given, kept = kit.Pair(t)
			case "second":
				kept, given = kit.Pair(t)
			case "dialed":
				given, kept = kit.Connect(t, kit.Listen(t, kit.NameAddr(t)))
			case "accepted":
				kept, given = kit.Connect(t, kit.Listen(t, kit.NameAddr(t)))
			}
			h := kit.NewHeir(t)
			h.Gets("end", given)
			c := h.Start("holds an end", "end", strconv.Itoa(os.Getpid()), strconv.Itoa(int(handle)))
			kit.Must(t, given.Close())
			c.MustSay("sent")
			files, err := kept.RecvFiles(1)
			kit.Must(t, err)
			kit.Must(t, files[0].Close())
			lockThisProcess(t)
			c.Say("")
			c.MustSay("forged")
			_, err = kept.RecvFiles(1)
			kit.Matches(t, err, ipc.ErrUntrusted, ipc.ErrNoFiles)
			isOpen(t, handle, mine)
			c.End()
		})
	}
}

// childHoldsAnEnd sends a file, and then a record of a handle of its parent.
func childHoldsAnEnd(p *kit.Parent, args []string) error {
	c := kit.Sure(ipc.InheritedConn(args[0]))
	f := kit.Sure(os.Open(kit.Sure(os.Executable())))
	if err := c.SendFiles(f); err != nil {
		return err
	}
	p.Say("sent")
	p.Hear()
	forged := newLetter(kit.Sure(strconv.Atoi(args[1])), 1).write(uint32(kit.Sure(strconv.Atoi(args[2]))))
	if _, err := io.WriteString(c, forged); err != nil {
		return err
	}
	p.Say("forged")
	p.Hear()
	return errors.Join(f.Close(), c.Close())
}

func TestSendFilesToAPeerThatNobodyMayOpen(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, kit.NameAddr(t))
	c := kit.StartChild(t, "locked", l.Addr().String())
	server := kit.Accept(t, l)
	c.MustSay("locked")
	const dupHandle = 0x40 // PROCESS_DUP_HANDLE
	if process, err := syscall.OpenProcess(dupHandle, false, uint32(c.PID())); err == nil {
		syscall.CloseHandle(process)
		t.Skip("this system lets this user open the process")
	}
	exchangesFiles(t, c, server)
}

// childIsLocked is childHandlesFiles in a process that nobody may open.
func childIsLocked(p *kit.Parent, args []string) error {
	if err := setProcessSecurity("D:P(A;;0x1000;;;WD)"); err != nil { // PROCESS_QUERY_LIMITED_INFORMATION
		return err
	}
	p.Say("locked")
	return childHandlesFiles(p, args)
}

// ---------------------------------------------------------------------------
// What arrives

func TestRecvFilesAreNotInherited(t *testing.T) {
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
		f := kit.TextFile(t, "x")
		kit.Control(t, f, func(h uintptr) {
			kit.Must(t, syscall.SetHandleInformation(syscall.Handle(h), syscall.HANDLE_FLAG_INHERIT, syscall.HANDLE_FLAG_INHERIT))
		})
		kit.SendFiles(t, a, f, f)
		for _, f := range kit.RecvFiles(t, b, 2) {
			kit.Control(t, f, func(h uintptr) {
				var flags uint32
				if r, _, err := kit.GetHandleInformation.Call(h, uintptr(unsafe.Pointer(&flags))); r == 0 {
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
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
		// A connection that its sender has used: a Conn made of it has deadlines.
		near, far := kit.Pair(t)
		kit.Talk(t, near, far)
		f, err := far.File()
		kit.Must(t, err)
		kit.SendFiles(t, a, f)
		kit.Must(t, errors.Join(f.Close(), far.Close()))
		got := kit.RecvFiles(t, b, 1)[0]
		kit.Send(t, got, "as a file")
		kit.Expect(t, near, "as a file")
		c, err := ipc.FileConn(got)
		kit.Must(t, err)
		defer c.Close()
		kit.Talk(t, near, c)
		kit.Must(t, c.SetReadDeadline(time.Now().Add(kit.Brief)))
		_, err = c.Read(make([]byte, 1))
		kit.TimedOut(t, err)
	})
}

func TestSendFilesGoTheWayOfTheirPipe(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{Direction: ipc.ServerToClient, Messages: true})
	kit.SendFiles(t, server, kit.TextFile(t, "x"))
	kit.Holds(t, kit.RecvFiles(t, client, 1)[0], "x")
	kit.Matches(t, client.SendFiles(kit.TextFile(t, "y")), errors.ErrUnsupported)
	_, err := server.RecvFiles(1)
	kit.Matches(t, err, errors.ErrUnsupported)
}

// ---------------------------------------------------------------------------
// Waiting

func TestRecvFilesIsTheSameHoweverItWaits(t *testing.T) {
	for _, spin := range []time.Duration{-1, kit.Patience} {
		t.Run(spin.String(), func(t *testing.T) {
			kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
				b.(interface{ SetSpin(time.Duration) }).SetSpin(spin)
				for range 3 {
					received := kit.Begin(func() error {
						files, err := b.RecvFiles(1)
						for _, f := range files {
							f.Close()
						}
						return err
					})
					kit.AwaitParked(t, recvFilesOf(b), 1)
					kit.SendFiles(t, a, kit.TextFile(t, "x"))
					kit.Must(t, <-received)

					received = kit.Begin(func() error { _, err := b.RecvFiles(1); return err })
					kit.AwaitParked(t, recvFilesOf(b), 1)
					kit.Say(t, a, "data")
					kit.Matches(t, <-received, ipc.ErrNoFiles)
					kit.Hear(t, b, "data")
				}
				kit.Must(t, b.SetReadDeadline(time.Now().Add(kit.Brief)))
				_, err := b.RecvFiles(1)
				kit.TimedOut(t, err)
			})
		})
	}
}

func recvFilesOf(c kit.Carrier) string {
	if _, ok := c.(*ipc.MsgConn); ok {
		return "(*MsgConn).RecvFiles"
	}
	return "(*Conn).RecvFiles"
}

func TestRecvFilesOfAnEmptyMessageLeavesItNextToRead(t *testing.T) {
	kit.Story(t)
	client, server := kit.ConnectPipe(t, ipc.PipeConfig{Messages: true})
	for range 2 {
		kit.Must(t, client.WriteMessage(nil))
		_, err := server.RecvFiles(1)
		kit.Matches(t, err, ipc.ErrNoFiles)
		kit.Must(t, client.WriteMessage([]byte("next")))
		n, size, err := server.PeekMessage(make([]byte, 10))
		if n != 0 || size != 0 || err != nil {
			t.Errorf("there are %d bytes of %d to read, %v", n, size, err)
		}
		kit.ExpectMessage(t, server, "")
		if _, size, err = server.PeekMessage(nil); size != len("next") || err != nil {
			t.Errorf("there are %d bytes to read, %v", size, err)
		}
		kit.ExpectMessage(t, server, "next")
	}
	kit.Must(t, client.WriteMessage(nil))
	kit.Must(t, client.Close())
	_, err := server.RecvFiles(1)
	kit.Matches(t, err, ipc.ErrNoFiles)
	kit.ExpectMessage(t, server, "")
	if _, err := server.RecvFiles(1); err != io.EOF {
		t.Errorf("%v at the end", err)
	}
}

func TestRecvWithFilesOfAMessageWithoutFilesAllocatesNothing(t *testing.T) {
	kit.Story(t)
	a, b := kit.MsgPair(t)
	p, q := make([]byte, 64), make([]byte, 64)
	kit.AllocatesNothing(t, "a message without files", func() error {
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
	kit.Story(t)
	a, b := kit.Pair(t)
	event, _, err := kit.CreateEvent.Call(0, 0, 0, 0)
	if event == 0 {
		t.Fatal(err)
	}
	defer syscall.CloseHandle(syscall.Handle(event))
	for range 3 {
		kit.Control(t, a, func(h uintptr) {
			var done uint32
			overlapped := &syscall.Overlapped{HEvent: syscall.Handle(event | 1)} // it does not pend: there is room
			kit.Must(t, syscall.WriteFile(syscall.Handle(h), nil, &done, overlapped))
		})
		kit.Must(t, b.SetReadDeadline(time.Now().Add(kit.Brief)))
		_, err = b.RecvFiles(1)
		kit.TimedOut(t, err)
		kit.Must(t, b.SetReadDeadline(time.Time{}))
		kit.FilesStillPass(t, a, b)
	}
}

// ---------------------------------------------------------------------------
// What is left behind

// noMoreHandles checks that there are no more handles than before. There may be
// fewer: the garbage collector closes what earlier tests dropped.
func noMoreHandles(t *testing.T, before int) {
	t.Helper()
	if now := kit.HandlesOf("File", "Process", "Token"); now > before {
		t.Errorf("%d handles became %d", before, now)
	}
}

func TestSendFilesLeavesNoHandlesBehind(t *testing.T) {
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
		f, closed := kit.TextFile(t, "x"), kit.TextFile(t, "y")
		kit.Must(t, closed.Close())
		broken := os.NewFile(0x7ffffff0, "no handle") // that os takes for open
		once := func() {
			kit.SendFiles(t, a, f, f, f)
			for _, f := range kit.RecvFiles(t, b, 3) {
				kit.Must(t, f.Close())
			}
			kit.SendFiles(t, a, f, f)
			_, err := b.RecvFiles(1)
			kit.Matches(t, err, ipc.ErrMsgTooLong)
			if a.SendFiles(f, closed) == nil || a.SendFiles(f, nil) == nil || a.SendFiles(f, broken) == nil {
				t.Error("what is not open is sent")
			}
			kit.Must(t, a.SetWriteDeadline(time.Now().Add(-time.Second)))
			kit.TimedOut(t, a.SendFiles(f, f))
			kit.Must(t, a.SetWriteDeadline(time.Time{}))
		}
		once() // whatever is kept for good
		before := kit.HandlesOf("File", "Process", "Token")
		for range 20 {
			once()
		}
		kit.Must(t, b.Close())
		for range 20 {
			kit.Matches(t, a.SendFiles(f), syscall.EPIPE)
		}
		noMoreHandles(t, before)
	})
}

func TestSendFilesTakenBackLeavesNoHandlesBehind(t *testing.T) {
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
		f := kit.TextFile(t, "x")
		kit.Say(t, a, strings.Repeat("x", 70<<10)[:64<<10]) // there is no more room
		before := kit.HandlesOf("File", "Process", "Token")
		for range 20 {
			kit.Must(t, a.SetWriteDeadline(time.Now().Add(time.Millisecond)))
			kit.TimedOut(t, a.SendFiles(f, f, f))
		}
		kit.Must(t, a.SetWriteDeadline(time.Time{}))
		sending := kit.Begin(func() error { return a.SendFiles(f) })
		kit.AwaitParked(t, strings.Replace(recvFilesOf(a), "Recv", "Send", 1), 1)
		kit.Must(t, a.Close())
		if err := <-sending; err == nil {
			t.Error("it is sent")
		}
		noMoreHandles(t, before)
	})
}

// missesFiles makes a RecvFiles that ends before there are any.
func missesFiles(t *testing.T, c kit.Carrier) {
	t.Helper()
	kit.Must(t, c.SetReadDeadline(time.Unix(1, 0)))
	_, err := c.RecvFiles(1)
	kit.TimedOut(t, err)
	kit.Must(t, c.SetReadDeadline(time.Time{}))
}

func TestCloseClosesTheFilesThatRecvFilesWouldGet(t *testing.T) {
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
		r, w := kit.OsPipe(t)
		missesFiles(t, b)
		for range 3 {
			kit.SendFiles(t, a, w, w)
		}
		kit.Must(t, w.Close())
		kit.Must(t, b.Close())
		kit.ExpectEOF(t, r)
	})
	for _, way := range []string{"puts", "holds"} {
		t.Run(way, func(t *testing.T) {
			kit.Story(t)
			c, server := byHand(t, way)
			missesFiles(t, server)
			before := kit.HandlesOf("File", "Process", "Token")
			for range 3 {
				c.Say("0")
				c.Hear()
			}
			kit.Must(t, server.Close())
			noMoreHandles(t, before-1) // without the server's own
			c.End()
		})
	}
}

// A record among data may be a stranger's, whatever the rights of the peer that passes it on.
func TestCloseBelievesNoRecordAmongData(t *testing.T) {
	for _, last := range []string{"nothing", "a read", "an untrusted record"} {
		t.Run(last, func(t *testing.T) {
			kit.Story(t)
			mine := kit.TextFile(t, "mine")
			h := kit.HandleOf(t, mine)
			defer syscall.CloseHandle(h)
			c, server := byHand(t, "names")
			names := func() {
				c.Say(strconv.Itoa(int(h)))
				c.Hear()
			}
			switch last {
			case "a read":
				missesFiles(t, server)
				names()
				kit.Expect(t, server, newLetter(os.Getpid(), 1).write(uint32(h)))
			case "an untrusted record":
				lockThisProcess(t)
				missesFiles(t, server)
			}
			names()
			kit.Must(t, server.Close())
			isOpen(t, h, mine)
			c.Say("")
			c.End()
		})
	}
}

// What another handle of the same end can still receive stays.
func TestCloseLeavesFilesToOtherHandles(t *testing.T) {
	kit.OverEachPair(t, func(t *testing.T, a, b kit.Carrier) {
		missesFiles(t, b)
		var other kit.Carrier
		switch b := b.(type) {
		case *ipc.Conn:
			f := kit.Sure(b.File())
			defer f.Close()
			other = kit.Sure(ipc.FileConn(f))
		case *ipc.MsgConn:
			f := kit.Sure(b.File())
			defer f.Close()
			other = kit.Sure(ipc.FileMsgConn(f))
		}
		kit.SendFiles(t, a, kit.TextFile(t, "text"))
		kit.Must(t, b.Close())
		defer other.Close()
		kit.Holds(t, kit.RecvFiles(t, other, 1)[0], "text")
	})
}

// Where neither process may open the other there is no way.
func TestSendFilesWithoutRightsFails(t *testing.T) {
	kit.Story(t)
	l := kit.Listen(t, kit.NameAddr(t))
	c := kit.StartChild(t, "locked", l.Addr().String())
	server := kit.Accept(t, l)
	c.MustSay("locked")
	lockThisProcess(t)
	const dupHandle = 0x40 // PROCESS_DUP_HANDLE
	if process, err := syscall.OpenProcess(dupHandle, false, uint32(c.PID())); err == nil {
		syscall.CloseHandle(process)
		t.Skip("this system lets this user open the process")
	}
	f := kit.TextFile(t, "x")
	before := kit.HandlesOf("File", "Process", "Token")
	for range 3 {
		err := server.SendFiles(f)
		kit.Matches(t, err, os.ErrPermission)
		kit.IsOpError(t, err, "sendfiles")
	}
	noMoreHandles(t, before)
	kit.Send(t, server, "x") // nothing was sent
	c.Kill()
}
