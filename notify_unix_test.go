//go:build unix

// What a process tells its service manager: see sd_notify(3).
package ipc_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/interprocess-go/ipc"
)

func init() { roles["notifies"] = childNotifies }

// A manager is the socket of a service manager. The kernel counts what is not received.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func startManager(t *testing.T, name string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { conn.Close(); os.Remove(name) })
	t.Setenv("NOTIFY_SOCKET", name)
	return &manager{t, conn}
}

// receive returns the next datagram and what came with it.
func (m *manager) receive() (state string, files []*os.File) {
	m.t.Helper()
	p, oob := make([]byte, 64<<10), make([]byte, 4<<10)
	n, oobn, _, _, err := m.conn.ReadMsgUnix(p, oob)
	must(m.t, err)
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	must(m.t, err)
	for _, message := range messages {
		fds, err := syscall.ParseUnixRights(&message)
		must(m.t, err)
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "stored")
			m.t.Cleanup(func() { f.Close() })
			files = append(files, f)
		}
	}
	return string(p[:n]), files
}

// managerNames are names that NOTIFY_SOCKET may have.
func managerNames(t *testing.T) map[string]string {
	dir := openDir(t)
	long := dir + "/" + strings.Repeat("d", 120)
	must(t, os.Mkdir(long, 0o777))
	t.Cleanup(func() { os.Remove(long) })
	names := map[string]string{"path": dir + "/notify"}
	if runtime.GOOS == "linux" || runtime.GOOS == "android" {
		names["abstract"] = "@" + dir + "/notify"
	}
	return names
}

func TestNotifyTellsTheManager(t *testing.T) {
	for what, name := range managerNames(t) {
		t.Run(what, func(t *testing.T) {
			story(t)
			m := startManager(t, name)
			for _, state := range []string{"READY=1", "STATUS=one\nMAINPID=1", strings.Repeat("X=1\n", 500)} {
				if sent, err := ipc.Notify(state); !sent || err != nil {
					t.Fatalf("sent %v, %v", sent, err)
				}
				if got, files := m.receive(); got != state || files != nil {
					t.Errorf("the manager hears %.40q, with %d files", got, len(files))
				}
			}
			if os.Getenv("NOTIFY_SOCKET") != name {
				t.Error("the variable is gone")
			}
		})
	}
}

func TestNotifyStoresFiles(t *testing.T) {
	story(t)
	m := startManager(t, openDir(t)+"/notify")
	r, w := pipe(t)
	l := listen(t, ipc.Addr{})
	sent, err := ipc.Notify("FDSTORE=1\nFDNAME=x", fileOf(t, w), fileOf(t, l))
	if !sent || err != nil {
		t.Fatalf("sent %v, %v", sent, err)
	}
	state, files := m.receive()
	if state != "FDSTORE=1\nFDNAME=x" || len(files) != 2 {
		t.Fatalf("the manager hears %q, with %d files", state, len(files))
	}
	send(t, files[0], "through the store")
	expect(t, r, "through the store")
	stored, err := ipc.FileListener(files[1])
	must(t, err)
	defer stored.Close()
	serves(t, stored, l.Addr().(ipc.Addr))
}

func TestNotifyWithoutAManagerSendsNothing(t *testing.T) {
	story(t)
	t.Setenv("NOTIFY_SOCKET", "") // not there, as far as anybody can tell
	os.Unsetenv("NOTIFY_SOCKET")
	if sent, err := ipc.Notify("READY=1"); sent || err != nil {
		t.Errorf("sent %v, %v", sent, err)
	}
}

func TestNotifyRefusesWhatItCannotSend(t *testing.T) {
	story(t)
	path := openDir(t) + "/notify"
	m := startManager(t, path)
	refused := func(sent bool, err error) error {
		t.Helper()
		var oe *net.OpError
		if sent || !errors.As(err, &oe) || oe.Op != "notify" {
			t.Errorf("sent %v, %v", sent, err)
		}
		return err
	}
	refused(ipc.Notify(""))
	refused(ipc.Notify("FDSTORE=1", nil))
	closed, err := os.Open(os.DevNull)
	must(t, err)
	must(t, closed.Close())
	matches(t, refused(ipc.Notify("FDSTORE=1", closed)), os.ErrClosed)
	matches(t, refused(ipc.Notify(strings.Repeat("X", 16<<20))), ipc.ErrMsgTooLong)
	must(t, m.conn.Close())
	os.Remove(path)
	matches(t, refused(ipc.Notify("READY=1")), ipc.ErrNoListener)
	for _, name := range []string{"vsock:2:1234", "relative/path", "x"} {
		t.Setenv("NOTIFY_SOCKET", name)
		matches(t, refused(ipc.Notify("READY=1")), errors.ErrUnsupported)
	}
	t.Setenv("NOTIFY_SOCKET", "/"+strings.Repeat("x", 5000))
	matches(t, refused(ipc.Notify("READY=1")), ipc.ErrNameTooLong)
}

// A manager that does not listen makes Notify wait, but not for ever.
func TestNotifyToADeafManagerEnds(t *testing.T) {
	path := openDir(t) + "/notify"
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	defer os.Remove(path)
	defer conn.Close()
	t.Parallel() // it takes seconds
	c := startChildWith(t, exec.Cmd{Env: []string{"NOTIFY_SOCKET=" + path}}, "notifies")
	c.mustSay("the queue is full")
	m := &manager{t, conn}
	m.receive()
	c.say("there is room again")
	c.mustSay("sent")
	c.end()
}

// childNotifies tells a manager that does not listen until that is an error, and
// once more when it is told to.
func childNotifies(p *parent, _ []string) error {
	for n := 0; ; n++ {
		sent, err := ipc.Notify("WATCHDOG=1")
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if !sent || err != nil || n == 100000 {
			return fmt.Errorf("%d: sent %v, %w", n, sent, err)
		}
	}
	p.say("the queue is full")
	p.hear()
	if sent, err := ipc.Notify("READY=1"); !sent || err != nil {
		return fmt.Errorf("sent %v, %w", sent, err)
	}
	p.say("sent")
	return nil
}
