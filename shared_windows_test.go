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

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["shares by hand"] = childSharesByHand
}

// sendsMemory makes a write that sends the memory of c, and ends before the peer answers.
func sendsMemory(t *testing.T, c *ipc.SharedConn) {
	t.Helper()
	writing := kit.Begin(func() error { _, err := io.WriteString(c, large); return err })
	kit.AwaitParked(t, "recvHello", 1)
	kit.Must(t, c.SetWriteDeadline(time.Unix(1, 0)))
	kit.TimedOut(t, <-writing)
}

// A SharedConn that is closed in the handshake closes the memory and the doorbells that the
// peer has put into this process, read or not.
func TestSharedConnCloseLeavesNoHandlesOfAnUnreadHello(t *testing.T) {
	kit.Story(t)
	l := listenShared(t, kit.NameAddr(t))
	for _, reads := range []bool{false, true} {
		var before int
		for round := range 10 {
			if round == 1 { // whatever is kept for good
				before = kit.HandlesOf("File", "Section")
			}
			a, err := ipc.DialShared(l.Addr().(ipc.Addr))
			kit.Must(t, err)
			b, err := l.AcceptShared()
			kit.Must(t, err)
			kit.Send(t, a, "early")
			if reads {
				kit.Expect(t, b, "e")
			}
			sendsMemory(t, a)
			kit.Must(t, b.Close())
			kit.Must(t, a.Close())
		}
		kit.Eventually(t, "no handle is left", func() bool { return kit.HandlesOf("File", "Section") <= before })
	}
}

// childSharesByHand sends hellos as a client of shared memory does: early data, of which the
// second half comes later, and then three handles of a file that it puts into the server.
// The early data looks like a record about a handle of the server.
func childSharesByHand(p *kit.Parent, args []string) error {
	c := kit.Sure(ipc.Dial(kit.Sure(ipc.ParseAddr(args[0]))))
	defer c.Close()
	server, _ := kit.Sure(c.Peer()).PID()
	hello := func(what, size int) string {
		b := append([]byte("\xffipcshm\x01"), make([]byte, 24)...)
		binary.NativeEndian.PutUint32(b[8:], 0x01020304)
		binary.LittleEndian.PutUint32(b[12:], uint32(what))
		binary.LittleEndian.PutUint32(b[16:], uint32(size))
		return string(b)
	}
	p.Say("here")
	early := newLetter(server, 1).write(uint32(kit.Sure(strconv.Atoi(p.Hear()))))
	early += early
	half := len(early) / 2
	_, err := io.WriteString(c, hello(2, len(early))+early[:half])
	p.Say("half")
	p.Hear()
	process := kit.Sure(syscall.OpenProcess(0x40, false, uint32(server))) // PROCESS_DUP_HANDLE
	defer syscall.CloseHandle(process)
	f := kit.Sure(os.Open(kit.Sure(os.Executable())))
	defer f.Close()
	var handles [3]uint32
	for i := range handles {
		handles[i] = uint32(kit.Sure(duplicateInto(f, process)))
	}
	_, e := io.WriteString(c, early[half:])
	text := strings.TrimSuffix(newLetter(server, len(handles)).write(handles[:]...), zeroByte)
	_, e2 := io.WriteString(c, text+hello(1, 1<<16))
	p.Say("sent")
	p.Hear()
	return errors.Join(err, e, e2)
}

// Close finds the handles behind the early data, wherever in that it is, and takes nothing
// in the early data for handles.
func TestSharedConnCloseSeesEarlyDataAsData(t *testing.T) {
	for _, read := range []int{0, 1, 1000} {
		t.Run(strconv.Itoa(read), func(t *testing.T) {
			kit.Story(t)
			mine := kit.TextFile(t, "mine")
			h := kit.HandleOf(t, mine)
			defer syscall.CloseHandle(h)
			l := listenShared(t, kit.NameAddr(t))
			child := kit.StartChild(t, "shares by hand", l.Addr().String())
			child.MustSay("here")
			c, err := l.AcceptShared()
			kit.Must(t, err)
			child.Say(strconv.Itoa(int(h)))
			child.MustSay("half")
			if read > 0 {
				if _, err := c.Read(make([]byte, read)); err != nil {
					t.Error(err)
				}
			}
			before := kit.HandlesOf("File", "Process", "Token")
			child.Say("go on")
			child.MustSay("sent")
			kit.Must(t, c.Close())
			noMoreHandles(t, before-1) // without the connection's own
			isOpen(t, h, mine)
			child.Say("done")
			child.End()
		})
	}
}

// A peer that leaves before it has the answer to its memory is gone for a read that waits in
// memory.
func TestSharedConnReadEndsWithAPeerThatLeftTheHandshake(t *testing.T) {
	kit.Story(t)
	l := listenShared(t, kit.NameAddr(t))
	for range 3 {
		a, err := ipc.DialShared(l.Addr().(ipc.Addr))
		kit.Must(t, err)
		b, err := l.AcceptShared()
		kit.Must(t, err)
		sendsMemory(t, a)
		reading := kit.BeginRead(b)
		kit.Eventually(t, "the reader is in memory", b.InMemory)
		kit.AwaitParked(t, "awaitBell", 1)
		kit.Must(t, a.Close())
		if err := <-reading; err != io.EOF {
			t.Errorf("the read: %v", err)
		}
		kit.Must(t, b.Close())
	}
}
