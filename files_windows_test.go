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
)

// Files as Windows has them: handles that are put into another process, and the
// record that tells it of them. What a program can do that does not use this
// package, and what a peer can do that must not.

func init() {
	roles["locked"] = childIsLocked
	roles["forges"] = childForges
}

var (
	createSemaphore         = kernel32.NewProc("CreateSemaphoreW")
	setKernelObjectSecurity = advapi32.NewProc("SetKernelObjectSecurity")
	parseDescriptor         = advapi32.NewProc("ConvertStringSecurityDescriptorToSecurityDescriptorW")
	ntQuerySemaphore        = ntdll.NewProc("NtQuerySemaphore")
)

// A letter is a record as any program could write it: the documentation of the
// package is all it knows.
type letter struct {
	Mark    [8]byte
	Version uint32
	N       uint32
	PID     uint32
	Count   uint32
}

const letterSize = 24

// An enclosure is the handle of a file and that of its seal.
type enclosure struct{ File, Seal uint32 }

// limit returns the maximum that the seal of a file has.
func limit(file uint32) uint32 { return 1<<30 + file/4 }

// write returns the bytes of a letter about the files.
func (l letter) write(files ...enclosure) string {
	p, err := binary.Append(nil, binary.LittleEndian, l)
	if err == nil {
		p, err = binary.Append(p, binary.LittleEndian, files)
	}
	if err != nil {
		panic(err)
	}
	return string(p)
}

// readLetter reads what write returns.
func readLetter(t *testing.T, text string) (l letter, files []enclosure) {
	t.Helper()
	n, err := binary.Decode([]byte(text), binary.LittleEndian, &l)
	must(t, err)
	files = make([]enclosure, l.N)
	m, err := binary.Decode([]byte(text[n:]), binary.LittleEndian, files)
	must(t, err)
	if n+m != len(text) {
		t.Fatalf("%d bytes for %d files", len(text), l.N)
	}
	return l, files
}

// newLetter returns a letter about files that this process holds.
func newLetter(files int) letter {
	l := letter{Version: 1, N: uint32(files), PID: uint32(os.Getpid()), Count: 1<<29 + 12345}
	copy(l.Mark[:], "ipcfiles")
	return l
}

// enclose returns the handle of a file and a seal of it, in this process.
func (l letter) enclose(t *testing.T, h syscall.Handle) enclosure {
	t.Helper()
	return enclosure{uint32(h), uint32(newSemaphore(t, l.Count, limit(uint32(h))))}
}

// isSealed reports whether the seal is there.
func (l letter) isSealed(e enclosure) bool {
	return isSemaphore(syscall.Handle(e.Seal), l.Count, limit(e.File))
}

// newSemaphore returns the handle of a semaphore. It is closed if nobody did.
func newSemaphore(t *testing.T, count, limit uint32) syscall.Handle {
	t.Helper()
	h, _, err := createSemaphore.Call(0, uintptr(count), uintptr(limit), 0)
	if h == 0 {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if isSemaphore(syscall.Handle(h), count, limit) {
			syscall.CloseHandle(syscall.Handle(h))
		}
	})
	return syscall.Handle(h)
}

// isSemaphore reports whether this is the handle of such a semaphore.
func isSemaphore(h syscall.Handle, count, limit uint32) bool {
	var info [2]uint32
	status, _, _ := ntQuerySemaphore.Call(uintptr(h), 0, uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), 0)
	return int32(status) >= 0 && info == [2]uint32{count, limit}
}

// handleOf returns another handle of the file, which is the caller's to close.
func handleOf(t *testing.T, f syscall.Conn) (d syscall.Handle) {
	t.Helper()
	control(t, f, func(h uintptr) {
		must(t, syscall.DuplicateHandle(thisProcess, syscall.Handle(h), thisProcess, &d, 0, false, syscall.DUPLICATE_SAME_ACCESS))
	})
	return d
}

// ---------------------------------------------------------------------------
// The record

func TestRecordIsAsDocumented(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		sendFiles(t, a, textFile(t, "one"), textFile(t, "two"))
		text := make([]byte, 100)
		var n int
		var err error
		switch b := b.(type) {
		case *ipc.Conn:
			n, err = b.Read(text)
		case *ipc.MsgConn:
			n, err = b.Recv(text)
		}
		must(t, err)
		l, files := readLetter(t, string(text[:n]))
		if string(l.Mark[:]) != "ipcfiles" || l.Version != 1 || int(l.PID) != os.Getpid() {
			t.Errorf("the record is %+v", l)
		}
		if l.Count < 1<<29 || l.Count >= 1<<30 {
			t.Errorf("the count of the seals is %d", l.Count)
		}
		for i, e := range files {
			if !l.isSealed(e) {
				t.Errorf("the seal is none: %+v, %+v", l, e)
			}
			must(t, syscall.CloseHandle(syscall.Handle(e.Seal)))
			f := os.NewFile(uintptr(e.File), "by hand")
			holds(t, f, []string{"one", "two"}[i])
			must(t, f.Close())
		}
		filesStillPass(t, a, b)
	})
}

func TestOtherProgramsCanSendFiles(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		l := newLetter(2)
		one, two := l.enclose(t, handleOf(t, textFile(t, "one"))), l.enclose(t, handleOf(t, textFile(t, "two")))
		say(t, a, l.write(one, two))
		say(t, a, "and on")
		files := recvFiles(t, b, 2)
		holds(t, files[0], "one")
		holds(t, files[1], "two")
		hear(t, b, "and on")
		if l.isSealed(one) || l.isSealed(two) {
			t.Error("a seal is still there")
		}
	})
}

func TestRecordCountsOnce(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		l := newLetter(1)
		record := l.write(l.enclose(t, handleOf(t, textFile(t, "one"))))
		say(t, a, record)
		say(t, a, record)
		recvFiles(t, b, 1)
		_, err := b.RecvFiles(1)
		matches(t, err, ipc.ErrUntrusted, ipc.ErrNoFiles)
		hear(t, b, record)
	})
}

func TestBytesThatAreNoRecordAreData(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		f := textFile(t, "x")
		good := newLetter(1)
		h := good.enclose(t, handleOf(t, f))
		change := func(change func(l *letter)) string {
			l := good
			change(&l)
			return l.write(h)
		}
		for what, text := range map[string]string{
			"another mark":       change(func(l *letter) { l.Mark[7] = 'S' }),
			"no files":           change(func(l *letter) { l.N = 0 }),
			"too many files":     change(func(l *letter) { l.N = 254 }),
			"very many files":    change(func(l *letter) { l.N = 0xffffffff }),
			"a common semaphore": change(func(l *letter) { l.Count = 1 }),
			"a high count":       change(func(l *letter) { l.Count = 1 << 30 }),
			"more files":         change(func(l *letter) { l.N = 2 }),
			"a part":             good.write(h)[:letterSize+3],
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
			say(t, a, good.write(h)+"!") // a message is a record or not
			_, err := b.RecvFiles(1)
			matches(t, err, ipc.ErrNoFiles)
			hear(t, b, good.write(h)+"!")
		}
		say(t, a, good.write(h))
		holds(t, recvFiles(t, b, 1)[0], "x")
	})
}

func TestRecordOfALaterVersionIsAClearError(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		l := newLetter(1)
		l.Version = 2
		say(t, a, l.write(enclosure{}))
		_, err := b.RecvFiles(1)
		matches(t, err, errors.ErrUnsupported)
		if !strings.Contains(err.Error(), "version 2") {
			t.Errorf("%q does not say the version", err)
		}
		hear(t, b, l.write(enclosure{}))
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

func TestHandlesThatThePeerDidNotSendAreLeftAlone(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		other := startChild(t, "waits")
		other.mustSay("here")
		mine := textFile(t, "mine")
		h := handleOf(t, mine)
		defer syscall.CloseHandle(h)
		good := newLetter(1)
		file := good.enclose(t, h)
		common := newSemaphore(t, 1, 1)
		before := handlesOf("File", "Semaphore", "Process")
		for what, change := range map[string]func(l *letter, e *enclosure){
			"no seal":                 func(_ *letter, e *enclosure) { e.Seal = 0 },
			"a seal that is none":     func(_ *letter, e *enclosure) { e.Seal = 0x7ffffff0 },
			"this process for a seal": func(_ *letter, e *enclosure) { e.Seal = 0xffffffff },
			"a file for a seal":       func(_ *letter, e *enclosure) { e.Seal = uint32(h) },
			"a common semaphore":      func(_ *letter, e *enclosure) { e.Seal = uint32(common) },
			"the seal of another":     func(_ *letter, e *enclosure) { e.File += 4 },
			"another count":           func(l *letter, _ *enclosure) { l.Count++ },
			"another process":         func(l *letter, _ *enclosure) { l.PID = uint32(other.pid()) },
			"no process":              func(l *letter, _ *enclosure) { l.PID = 0 },
			"a process that is none":  func(l *letter, _ *enclosure) { l.PID = 0xfffffffc },
		} {
			l, e := good, file
			change(&l, &e)
			text := l.write(e)
			say(t, a, text)
			for range 2 { // it stays so until the data is read
				files, err := b.RecvFiles(1)
				if !errors.Is(err, ipc.ErrUntrusted) || !errors.Is(err, ipc.ErrNoFiles) || files != nil {
					t.Fatalf("%s: %d files, %v", what, len(files), err)
				}
				isOpError(t, err, "recvfiles")
			}
			hear(t, b, text)
		}
		noMoreHandles(t, before)
		isOpen(t, h, mine)
		filesStillPass(t, a, b)
		other.end()
	})
}

// A peer learns of the seals of what it is sent. Where the process that holds that is
// the sender, as when it made both ends, the peer must not have it take other handles
// of its own by them.
func TestSealsThatThePeerWasToldOfAreNoHelp(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		mine := textFile(t, "mine")
		h := handleOf(t, mine)
		defer syscall.CloseHandle(h)
		sendFiles(t, a, textFile(t, "sent"))
		text := make([]byte, letterSize+8)
		must(t, hearInto(b, text))
		l, files := readLetter(t, string(text))

		forged := l.write(enclosure{uint32(h), files[0].Seal})
		say(t, b, forged)
		_, err := a.RecvFiles(1)
		matches(t, err, ipc.ErrUntrusted, ipc.ErrNoFiles)
		hear(t, a, forged)

		l.N = 2
		say(t, b, l.write(files[0], files[0])) // one file is no two
		got, err := a.RecvFiles(2)
		matches(t, err, ipc.ErrUntrusted)
		if got != nil || l.isSealed(files[0]) {
			t.Errorf("%d files, and the seal is there: %t", len(got), l.isSealed(files[0]))
		}
		isOpen(t, h, mine)
		filesStillPass(t, a, b)
	})
}

func TestRecordSentOnManyConnectionsCountsOnce(t *testing.T) {
	story(t)
	const conns = 4
	var ends, peers [conns]*ipc.Conn
	for i := range conns {
		ends[i], peers[i] = pair(t)
	}
	for range 50 {
		l := newLetter(1)
		record := l.write(l.enclose(t, handleOf(t, textFile(t, "one"))))
		got := make(chan []*os.File, conns)
		for i := range conns {
			send(t, ends[i], record)
		}
		for i := range conns {
			go func() {
				files, _ := peers[i].RecvFiles(1)
				got <- files
			}()
		}
		n := 0
		for range conns {
			for _, f := range <-got {
				n++
				holds(t, f, "one")
				must(t, f.Close())
			}
		}
		if n != 1 {
			t.Fatalf("one file was received %d times", n)
		}
		for _, c := range peers { // those that did not get it have the record to read, or not any more
			must(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
			c.Read(make([]byte, len(record)))
			must(t, c.SetReadDeadline(time.Time{}))
		}
	}
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

func TestProcessThatNamesOurHandlesGetsNothing(t *testing.T) {
	story(t)
	l := listen(t, nameAddr(t))
	mine := textFile(t, "mine")
	h := handleOf(t, mine)
	defer syscall.CloseHandle(h)
	c := startChild(t, "forges", l.Addr().String(), strconv.Itoa(os.Getpid()), strconv.Itoa(int(h)))
	server := accept(t, l)
	before := handlesOf("File", "Semaphore", "Process")
	_, err := server.RecvFiles(1)
	matches(t, err, ipc.ErrUntrusted)
	noMoreHandles(t, before)
	isOpen(t, h, mine)
	must(t, server.Close())
	c.end()
}

// childForges tells the server at the address of a handle of that process which it
// did not put there, with a seal that is in its own.
func childForges(p *parent, args []string) error {
	addr := sure(ipc.ParseAddr(args[0]))
	pid := sure(strconv.Atoi(args[1]))
	h := sure(strconv.Atoi(args[2]))
	l := letter{Version: 1, N: 1, PID: uint32(pid), Count: 1 << 29}
	copy(l.Mark[:], "ipcfiles")
	seal, _, err := createSemaphore.Call(0, uintptr(l.Count), uintptr(limit(uint32(h))), 0)
	if seal == 0 {
		return err
	}
	c := sure(ipc.Dial(addr))
	if _, err := io.WriteString(c, l.write(enclosure{uint32(h), uint32(seal)})); err != nil {
		return err
	}
	p.hear()
	return c.Close()
}

func TestFilesReachAPeerThatNobodyMayOpen(t *testing.T) {
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
	text, err := syscall.UTF16PtrFromString("D:P(A;;0x1000;;;WD)") // PROCESS_QUERY_LIMITED_INFORMATION
	if err != nil {
		return err
	}
	var sd uintptr
	if r, _, err := parseDescriptor.Call(uintptr(unsafe.Pointer(text)), 1, uintptr(unsafe.Pointer(&sd)), 0); r == 0 {
		return err
	}
	const daclInformation = 4
	if r, _, err := setKernelObjectSecurity.Call(uintptr(thisProcess), daclInformation, sd); r == 0 {
		return err
	}
	p.say("locked")
	return childHandlesFiles(p, args)
}

// ---------------------------------------------------------------------------
// What arrives

func TestReceivedHandlesAreNotInherited(t *testing.T) {
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

func TestOverlappedFilesAreSoForTheReceiver(t *testing.T) {
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

		// One that nobody has used is a file with deadlines.
		near, far = pair(t)
		l := newLetter(1)
		say(t, a, l.write(l.enclose(t, handleOf(t, far))))
		must(t, far.Close())
		got = recvFiles(t, b, 1)[0]
		must(t, got.SetReadDeadline(time.Now().Add(brief)))
		_, err = got.Read(make([]byte, 1))
		timedOut(t, err)
		must(t, got.SetReadDeadline(time.Time{}))
		talk(t, near, got)
	})
}

func TestFilesGoTheWayOfTheirPipe(t *testing.T) {
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
	for _, spin := range []time.Duration{0, patience} {
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

func TestEmptyMessageInsteadOfFilesIsTheNextToRead(t *testing.T) {
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

func TestEmptyWritesToAStreamAreNothing(t *testing.T) {
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
	if now := handlesOf("File", "Semaphore", "Process"); now > before {
		t.Errorf("%d handles became %d", before, now)
	}
}

func TestFilesLeaveNoHandlesBehind(t *testing.T) {
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
		before := handlesOf("File", "Semaphore", "Process")
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

func TestFilesThatAreTakenBackLeaveNoHandlesBehind(t *testing.T) {
	overEachPair(t, func(t *testing.T, a, b carrier) {
		f := textFile(t, "x")
		say(t, a, strings.Repeat("x", 70<<10)[:64<<10]) // there is no more room
		before := handlesOf("File", "Semaphore", "Process")
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
