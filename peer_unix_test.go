//go:build unix

// Peers of other users and in other processes, as Unix has them.
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
)

func init() {
	roles["knows"] = childTellsItsPeer
	roles["heir"] = childInheritsAnEnd
}

// childTellsItsPeer connects to the server and tells who that is.
func childTellsItsPeer(p *parent, args []string) error {
	addr := sure(ipc.ParseAddr(args[0]))
	c := sure(ipc.Dialer{Access: ipc.Everyone}.Dial(addr))
	peer := sure(c.Peer())
	p.say("%v", peer)
	p.hear()
	return c.Close()
}

func TestPeerOfAnotherUser(t *testing.T) {
	overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
		stranger := startStranger(t, "knows", addr.String())
		server := accept(t, l)
		p := peerOf(t, server)
		if uid, ok := p.UID(); uid != nobody || !ok {
			t.Errorf("UID is %d, %v", uid, ok)
		}
		if gid, ok := p.GID(); ok && gid != nobody {
			t.Errorf("GID is %d", gid)
		}
		if id := p.UserID(); id != strconv.Itoa(nobody) {
			t.Errorf("UserID is %q", id)
		}
		if groups := p.Groups(); groups != nil && len(groups) > 0 && !slices.Equal(groups, []int{nobody}) {
			t.Errorf("groups are %v", groups)
		}
		if pid, ok := p.PID(); ok && pid != stranger.pid() {
			t.Errorf("PID is %d, want %d", pid, stranger.pid())
		}
		if !strings.Contains(p.String(), "uid "+strconv.Itoa(nobody)) {
			t.Errorf("%q does not tell the user", p)
		}

		said := stranger.hear() // and of the other end, us
		if !strings.Contains(said, "uid 0") || pidsAreTold && !strings.Contains(said, "pid "+strconv.Itoa(os.Getpid())) {
			t.Errorf("the stranger's peer is %q", said)
		}
		stranger.end()
	})
}

// TestPeerIsWhoMadeTheSocket whatever process has it: a Pair given to a child is
// still that of its maker.
func TestPeerIsWhoMadeTheSocket(t *testing.T) {
	story(t)
	a, b := pair(t)
	f, err := b.File()
	must(t, err)
	c := startChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "heir")
	must(t, errors.Join(f.Close(), b.Close()))
	c.mustSay(strconv.FormatBool(pidsAreTold))
	expect(t, a, "from the heir")
	if runtime.GOOS != "darwin" && runtime.GOOS != "ios" { // where it is who used the end last, as long as it is open
		isProcess(t, peerOf(t, a), os.Getpid()) // and not the child
	}
	c.end()
	expectEOF(t, a)
}

// childInheritsAnEnd says whether its peer is its parent.
func childInheritsAnEnd(p *parent, _ []string) error {
	f := os.NewFile(3, "end")
	c, err := ipc.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	peer := sure(c.Peer())
	pid, _ := peer.PID()
	p.say("%v", pid == os.Getppid())
	_, err = c.Write([]byte("from the heir"))
	return errors.Join(err, c.Close())
}
