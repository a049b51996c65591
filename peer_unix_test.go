//go:build unix

// Peers of other users, and the peers of ends that are handed on.
package ipc_test

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["knows"] = childTellsItsPeer
	kit.Roles["heir"] = childInheritsAnEnd
}

// childTellsItsPeer connects to the server and tells who that is.
func childTellsItsPeer(p *kit.Parent, args []string) error {
	addr := kit.Sure(ipc.ParseAddr(args[0]))
	c := kit.Sure(ipc.Dialer{Access: ipc.Everyone}.Dial(addr))
	peer := kit.Sure(c.Peer())
	p.Say("%v", peer)
	p.Hear()
	return c.Close()
}

func TestPeerOfAnotherUser(t *testing.T) {
	kit.OverEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
		stranger := kit.StartStranger(t, "knows", addr.String())
		server := kit.Accept(t, l)
		p := kit.PeerOf(t, server)
		if uid, ok := p.UID(); uid != kit.Nobody || !ok {
			t.Errorf("UID is %d, %v", uid, ok)
		}
		if gid, ok := p.GID(); ok && gid != kit.Nobody {
			t.Errorf("GID is %d", gid)
		}
		if id := p.UserID(); id != strconv.Itoa(kit.Nobody) {
			t.Errorf("UserID is %q", id)
		}
		if groups := p.Groups(); len(groups) > 0 && !slices.Equal(groups, []int{kit.Nobody}) {
			t.Errorf("groups are %v", groups)
		}
		if pid, ok := p.PID(); ok && pid != stranger.PID() {
			t.Errorf("PID is %d, want %d", pid, stranger.PID())
		}
		if !strings.Contains(p.String(), "uid "+strconv.Itoa(kit.Nobody)) {
			t.Errorf("%q does not tell the user", p)
		}

		said := stranger.Hear() // and of the other end, us
		if !strings.Contains(said, "uid 0") || kit.PidsAreTold && !strings.Contains(said, "pid "+strconv.Itoa(os.Getpid())) {
			t.Errorf("the stranger's peer is %q", said)
		}
		stranger.End()
	})
}

// TestPeerIsWhoMadeTheSocket whatever process has it: a Pair given to a child is
// still that of its maker.
func TestPeerIsWhoMadeTheSocket(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	f, err := b.File()
	kit.Must(t, err)
	c := kit.StartChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "heir")
	kit.Must(t, errors.Join(f.Close(), b.Close()))
	c.MustSay(strconv.FormatBool(kit.PidsAreTold))
	kit.Expect(t, a, "from the heir")
	if runtime.GOOS != "darwin" && runtime.GOOS != "ios" { // where it is who used the end last, as long as it is open
		kit.IsProcess(t, kit.PeerOf(t, a), os.Getpid()) // and not the child
	}
	c.End()
	kit.ExpectEOF(t, a)
}

// childInheritsAnEnd says whether its peer is its parent.
func childInheritsAnEnd(p *kit.Parent, _ []string) error {
	f := os.NewFile(3, "end")
	c, err := ipc.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	peer := kit.Sure(c.Peer())
	pid, _ := peer.PID()
	p.Say("%v", pid == os.Getppid())
	_, err = c.Write([]byte("from the heir"))
	return errors.Join(err, c.Close())
}
