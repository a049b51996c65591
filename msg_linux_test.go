// Messages as Linux alone has them, and other programs that speak them.
package ipc_test

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// foreignMsg is a connection of package net that carries messages.
func foreignMsg(t *testing.T, c net.Conn, err error) net.Conn {
	t.Helper()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// msgTalkForeign proves that boundaries hold between c and a foreign end, which
// like most programs writes and reads each message in one call.
func msgTalkForeign(t *testing.T, c *ipc.MsgConn, foreign net.Conn) {
	t.Helper()
	for _, text := range []string{"one", "the second"} {
		if n, err := foreign.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
		sendMsg(t, c, text)
	}
	buf := make([]byte, 100)
	for _, text := range []string{"one", "the second"} {
		expectMsg(t, c, text)
		if n, err := foreign.Read(buf); string(buf[:n]) != text || err != nil {
			t.Fatalf("the foreign end reads %q, %v; want %q", buf[:n], err, text)
		}
	}
}

func TestForeignMessageClientAndServer(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenMsg(t, addr)
		c, err := net.Dial("unixpacket", addr.String())
		foreign := foreignMsg(t, c, err)
		server := acceptMsg(t, l)
		msgTalkForeign(t, server, foreign)
		must(t, foreign.Close())
		expectMsgEOF(t, server)
		must(t, server.Close())
		must(t, l.Close())

		other, err := net.Listen("unixpacket", addr.String())
		must(t, err)
		defer other.Close()
		client := dialMsg(t, addr)
		c, err = other.Accept()
		foreign = foreignMsg(t, c, err)
		msgTalkForeign(t, client, foreign)
		must(t, client.Close())
		if n, err := foreign.Read(make([]byte, 10)); n != 0 || err != io.EOF {
			t.Errorf("the foreign end reads %d, %v", n, err)
		}

		_, err = ipc.ListenMsg(addr)
		matches(t, err, ipc.ErrAddrInUse)
	})
}

// TestForeignEmptyMessagesAreReceived has them sent before the server's end was
// accepted: nothing on this side was prepared for them.
func TestForeignEmptyMessagesAreReceived(t *testing.T) {
	story(t)
	addr := nameAddr(t)
	l := listenMsg(t, addr)
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	f := os.NewFile(uintptr(fd), "foreign")
	defer f.Close()
	must(t, syscall.Connect(fd, &syscall.SockaddrUnix{Name: addr.String()}))
	for _, text := range []string{"", "one", "", ""} {
		must(t, syscall.Sendto(fd, []byte(text), 0, nil))
	}
	must(t, f.Close())
	server := acceptMsg(t, l)
	for _, text := range []string{"", "one", "", ""} {
		expectMsg(t, server, text)
	}
	expectMsgEOF(t, server)
}

func TestFileMsgConnAdoptsForeignSockets(t *testing.T) {
	story(t)
	a, b := adoptPair(t, syscall.SOCK_SEQPACKET, ipc.FileMsgConn)
	msgTalk(t, a, b)
	must(t, a.SetReadDeadline(time.Now().Add(brief)))
	_, err := a.Recv(make([]byte, 1))
	timedOut(t, err)
	isProcess(t, peerOf(t, a), os.Getpid())
	must(t, b.Close())
	must(t, a.SetReadDeadline(time.Time{}))
	expectMsgEOF(t, a)
}

func TestFileOfAMsgConnIsADuplicate(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		client, server := msgConnect(t, listenMsg(t, addr))
		f, err := client.File()
		must(t, err)
		must(t, client.Close())
		adopted, err := ipc.FileMsgConn(f)
		must(t, err)
		defer adopted.Close()
		must(t, f.Close())
		msgTalk(t, adopted, server)
		if adopted.RemoteAddr() != addr {
			t.Errorf("the address is %v, want %v", adopted.RemoteAddr(), addr)
		}
		must(t, adopted.Close())
		expectMsgEOF(t, server) // not before the last duplicate was closed
	})
}

// TestForeignMessageServerIsRespected has a socket file in the way that a stream
// cannot even be dialed to.
func TestForeignMessageServerIsRespected(t *testing.T) {
	story(t)
	path := openDir(t) + "/socket"
	foreign, err := net.Listen("unixpacket", path)
	must(t, err)
	defer foreign.Close()
	for _, policy := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever} {
		lc := ipc.ListenConfig{Takeover: policy}
		_, err := lc.ListenMsg(ipc.Path(path))
		matches(t, err, ipc.ErrAddrInUse)
		_, err = lc.Listen(ipc.Path(path))
		matches(t, err, ipc.ErrAddrInUse)
	}
	c, err := net.Dial("unixpacket", path)
	foreignMsg(t, c, err)

	foreign.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, foreign.Close())
	l := listenMsg(t, ipc.Path(path)) // now it is stale
	client, server := msgConnect(t, l)
	msgTalk(t, client, server)
	must(t, l.Close())
}
