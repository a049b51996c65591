// Shared memory with peers as only Windows has them.
package ipc_test

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

func init() { roles["shares a busy pipe"] = childSharesABusyPipe }

// A client passes a synchronous pipe in which it waits, as memory or as a doorbell. For such a
// handle the kernel tells nothing until that wait ends.
func TestSharedListenerIsNotHeldByABusyPipe(t *testing.T) {
	for _, as := range []string{"memory", "doorbell"} {
		t.Run(as, func(t *testing.T) {
			story(t)
			l := listenShared(t, nameAddr(t))
			client := startChild(t, "shares a busy pipe", l.Addr().String(), as)
			client.mustSay("sent")
			c, err := l.AcceptShared()
			kept(t, c, err)
			if as == "doorbell" {
				must(t, c.SetDeadline(time.Now().Add(brief)))
			}
			for range 2 {
				_, err = c.Read(make([]byte, 1))
				busyOrRefused(t, as, err)
				_, err = c.Write([]byte("x"))
				busyOrRefused(t, as, err)
			}
			must(t, c.Close())
			client.say("ends")
			client.end()
		})
	}
}

// busyOrRefused checks the error of a connection whose peer has sent a busy pipe. Wine does
// not keep the answer back, so there the doorbell is refused at once.
func busyOrRefused(t *testing.T, as string, err error) {
	t.Helper()
	if as == "doorbell" && errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	matches(t, err, syscall.EPROTO)
}

// childSharesABusyPipe sends a hello with the handles of memory and of doorbells, where the
// memory, or each doorbell, is a pipe from which it reads.
func childSharesABusyPipe(p *parent, args []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	m := sure(ipc.NewMemory(2 << 16)) // the control page and the smallest ring
	near, far, err := ipc.Pair()
	if err != nil {
		return err
	}
	memory, bell := sure(m.File()), sure(far.File())
	handles := map[string]*os.File{"memory": memory, "doorbell": bell}
	handles[args[1]] = r
	var numbers []uint32
	for _, name := range []string{"memory", "doorbell", "doorbell"} {
		numbers = append(numbers, uint32(sure(duplicateInto(handles[name], thisProcess))))
	}
	record := strings.TrimSuffix(newLetter(os.Getpid(), len(numbers)).write(numbers...), zeroByte)
	busy := begin(func() error { _, err := r.Read(make([]byte, 1)); return err })
	c := sure(ipc.Dial(sure(ipc.ParseAddr(args[0]))))
	hello := "\xffipcshm\x01" + string(binary.NativeEndian.AppendUint32(nil, 0x01020304)) +
		"\x01\x00\x00\x00" + "\x00\x00\x01\x00" + strings.Repeat("\x00", 12)
	if _, err := io.WriteString(c, record+hello); err != nil {
		return err
	}
	p.say("sent")
	p.hear()
	if err := w.Close(); err != nil {
		return err
	}
	if err := <-busy; err != io.EOF {
		return err
	}
	return errors.Join(r.Close(), memory.Close(), bell.Close(), m.Close(), near.Close(), far.Close(), c.Close())
}
