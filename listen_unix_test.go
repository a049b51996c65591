//go:build unix

// Socket files, and who may have a path, on every Unix.
package ipc_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.BadAddrs = append(kit.BadAddrs,
		kit.BadAddr{Addr: ipc.Path("folder/"), Words: []string{"folder"}},
		kit.BadAddr{Addr: ipc.Path("/"), Words: []string{"folder"}},
		kit.BadAddr{Addr: ipc.Path("."), Words: []string{"folder"}},
		kit.BadAddr{Addr: ipc.Path("a/.."), Words: []string{"folder"}},
		kit.BadAddr{Addr: ipc.Path("/" + strings.Repeat("p", 256)), Is: ipc.ErrNameTooLong, Words: []string{"256 bytes", "limit is 255"}},
		kit.BadAddr{Addr: ipc.Path(strings.Repeat("/folder", 1000)), Is: ipc.ErrNameTooLong, Words: []string{"7000 bytes", "limit is "}},
		kit.BadAddr{Addr: ipc.Path("/" + strings.Repeat("ü", 128)), Is: ipc.ErrNameTooLong, Words: []string{"256 bytes"}}, // bytes, not letters
	)
	kit.Roles["umask"] = childListensUnderUmask
	kit.Roles["chown"] = childGivesSocketAway
	kit.Roles["crowded"] = childRunsOutOfDescriptors
	kit.Roles["member"] = childIsMember
	kit.Roles["listen"] = childListens
	kit.Roles["adopts"] = childAdoptsListener
	kit.Roles["knock"] = childKnocks
	kit.Roles["listens and closes"] = childListensAndCloses
}

// ---------------------------------------------------------------------------
// Users

func TestAccessOwnerOnlyRefusesAnotherUser(t *testing.T) {
	kit.OverEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		accepted := kit.Later(t, l.AcceptConn)
		for range 3 {
			stranger := kit.StartStranger(t, "connect", addr.String(), "everyone")
			if said := stranger.Hear(); said != "permission denied" && said != "turned away" {
				t.Errorf("a stranger says %q", said)
			}
			stranger.End()
		}
		client := kit.Dial(t, addr) // the first that Accept sees
		kit.Talk(t, client, accepted())
	})
}

func TestAccessEveryoneAdmitsAnotherUser(t *testing.T) {
	kit.OverEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
		stranger := kit.StartStranger(t, "connect", addr.String())
		server := kit.Accept(t, l)
		p := kit.PeerOf(t, server)
		if uid, _ := p.UID(); uid != kit.Nobody {
			t.Errorf("the peer is %v", p)
		}
		if gid, _ := p.GID(); gid != kit.Nobody {
			t.Errorf("the peer is %v", p)
		}
		if pid, ok := p.PID(); ok && pid != stranger.PID() {
			t.Errorf("the peer is %v", p)
		}
		kit.Expect(t, server, "hello from a child")
		kit.Send(t, server, "welcome") // it trusts a server that root runs
		stranger.MustSay("welcome")
		stranger.End()
	})
}

// A lock file that another user made in a folder with the sticky bit stays, and Close has done its work.
func TestListenerCloseLeavesTheLockOfAnotherUser(t *testing.T) {
	kit.Story(t)
	kit.NeedsRoot(t) // before there are files
	path := kit.SockPath(t)
	kit.Must(t, os.Chmod(filepath.Dir(path), 0o777|fs.ModeSticky))
	lock := path + ".lock"
	kit.Must(t, os.WriteFile(lock, nil, 0o666))
	kit.Must(t, os.Chmod(lock, 0o666)) // whatever the umask
	stranger := kit.StartStranger(t, "listens and closes", path)
	stranger.MustSay("<nil>")
	stranger.End()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket: %v", err)
	}
	kit.Must(t, os.Remove(lock))
}

func childListensAndCloses(p *kit.Parent, args []string) error {
	p.Say("%v", kit.Sure(ipc.Listen(ipc.Path(args[0]))).Close())
	return nil
}

// While servers come and go, whatever the umask: who may connect does so, if it waits, and is never told
// that it may not; who may not never gets in.
func TestAccessHoldsWhileAServerStarts(t *testing.T) {
	open := 0o022
	if runtime.GOOS == "linux" { // elsewhere the first mode of a socket file is what the umask leaves
		open = 0
	}
	for access, umask := range map[ipc.Access]int{ipc.Everyone: 0o077, ipc.OwnerOnly: open} {
		t.Run(access.String(), func(t *testing.T) {
			kit.Story(t)
			addr := ipc.Path(kit.SockPath(t))
			defer syscall.Umask(syscall.Umask(umask))
			stranger := kit.StartStranger(t, "knock", addr.String(), access.String())
			serving := kit.Repeatedly(func() error {
				l, err := ipc.ListenConfig{Access: access}.Listen(addr)
				if err != nil {
					return err
				}
				return l.Close()
			})
			stranger.MustSay("as it must be")
			kit.Must(t, serving())
			stranger.End()
		})
	}
}

// childKnocks connects over and over, to a server that admits it or not.
func childKnocks(p *kit.Parent, args []string) error {
	addr := kit.Sure(ipc.ParseAddr(args[0]))
	admitted := args[1] == ipc.Everyone.String()
	giveUp := time.Now().Add(kit.Soon)
	for range map[bool]int{true: 500, false: 20_000}[admitted] { // those that are refused do not wait
		if time.Now().After(giveUp) {
			break // a slow file system: so many will do
		}
		c, err := ipc.Dialer{Access: ipc.Everyone, Wait: admitted}.Dial(addr)
		switch {
		case err == nil && !admitted:
			return fmt.Errorf("connected to %v", c.RemoteAddr())
		case err == nil:
			c.Close()
		case admitted:
			return err
		}
	}
	p.Say("as it must be")
	return nil
}

func TestListenConfigCheckCanRefuseAnotherUser(t *testing.T) {
	kit.OverEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenWith(t, ipc.ListenConfig{Access: ipc.Everyone, Check: func(p ipc.Peer) error {
			if uid, ok := p.UID(); !ok || uid != os.Getuid() {
				return errors.New("not you")
			}
			return nil
		}}, addr)
		stranger := kit.StartStranger(t, "connect", addr.String())
		accepted := kit.Begin(func() error {
			c, err := l.AcceptConn()
			if err == nil {
				defer c.Close()
				if p, _ := c.Peer(); p.UserID() != "0" {
					err = fmt.Errorf("accepted %v", p)
				}
			}
			return err
		})
		stranger.MustSay("turned away")
		stranger.End()
		kit.ExpectEOF(t, kit.Dial(t, addr))
		kit.Must(t, <-accepted)
	})
}

func TestListenerSetAccessRefusesAnotherUser(t *testing.T) {
	kit.OverEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
		done := kit.WelcomeAll(l)
		for _, c := range []struct {
			access ipc.Access
			said   string
		}{{ipc.OwnerOnly, "turned away"}, {ipc.Everyone, "welcome"}} {
			kit.Must(t, l.SetAccess(c.access, nil))
			stranger := kit.StartStranger(t, "connect", addr.String())
			stranger.MustSay(c.said)
			stranger.End()
		}
		kit.Must(t, l.Close())
		kit.Must(t, <-done)
	})
}

func TestAccessOwnerOnlyAdmitsRoot(t *testing.T) {
	kit.OverEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		server := kit.StartForeignServer(t, addr)
		client, err := ipc.Dialer{Access: ipc.Everyone}.Dial(addr)
		kit.Must(t, err)
		defer client.Close()
		kit.TalkToEcho(t, client)
		server.End()
	})
}

func TestDialDoesNotTrustAServerOfAnotherUser(t *testing.T) {
	kit.NeedsRoot(t)
	kit.Story(t)
	addr := kit.NameAddr(t)
	server := kit.StartForeignServer(t, addr, "everyone")
	for range 2 {
		c, err := ipc.Dial(addr)
		kit.Matches(t, err, ipc.ErrUntrusted)
		if c != nil {
			t.Error("a connection comes with the error")
		}
		if who := strconv.Itoa(kit.Nobody); !strings.Contains(err.Error(), who) {
			t.Errorf("%q does not say who serves", err)
		}
	}
	asked := false
	client, err := ipc.Dialer{Access: ipc.Everyone, Check: func(p ipc.Peer) error {
		asked = p.UserID() == strconv.Itoa(kit.Nobody)
		return nil
	}}.Dial(addr)
	kit.Must(t, err)
	defer client.Close()
	if !asked {
		t.Error("Check was not told that the server is nobody's")
	}
	kit.TalkToEcho(t, client)
	server.End()
}

func TestPathIsTrustedAsTheFileSystemIs(t *testing.T) {
	kit.NeedsRoot(t)
	kit.Story(t)
	addr := ipc.Path(kit.OpenDir(t) + "/socket")
	server := kit.StartForeignServer(t, addr, "everyone")
	client := kit.Dial(t, addr)
	kit.TalkToEcho(t, client)
	server.End()
}

func TestTakeoverByAnotherUserCannotTakeALivePath(t *testing.T) {
	kit.NeedsRoot(t)
	kit.Story(t)
	addr := ipc.Path(kit.OpenDir(t) + "/socket")
	l := kit.ListenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
	starter := kit.StartStranger(t, "race", addr.String())
	starter.MustSay("ready")
	starter.Say("go")
	if said := starter.Hear(); said == "won" {
		t.Error("a stranger has our path")
	}
	starter.Say("done")
	starter.MustSay("ready")
	starter.End()
	kit.Serves(t, l, addr)
}

func TestSysListenConfigGroupOfTheSocketMayConnect(t *testing.T) {
	kit.NeedsRoot(t)
	kit.Story(t)
	addr := ipc.Path(kit.OpenDir(t) + "/socket")
	l := kit.ListenWith(t, ipc.ListenConfig{Sys: &ipc.SysListenConfig{Mode: 0o660, GID: kit.Nobody}}, addr)
	member := kit.StartStranger(t, "connect", addr.String())
	server := kit.Accept(t, l)
	kit.Send(t, server, "welcome")
	member.MustSay("welcome")
	member.End()
}

// childIsMember gives up being root and becomes a user whose only tie to the group is
// that it is one of its supplementary groups. Then it connects.
func childIsMember(p *kit.Parent, args []string) error {
	gid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	const another = kit.Nobody + 1
	err = errors.Join(syscall.Setgroups([]int{another + 1, gid}), syscall.Setgid(another), syscall.Setuid(another))
	if err != nil {
		return err
	}
	return kit.ChildConnects(p, []string{args[0], "everyone"})
}

// TestAccessGroupMayConnect has a group of the server that a client has as its own, as one of
// several, and not at all.
func TestAccessGroupMayConnect(t *testing.T) {
	kit.NotEmulated(t)
	kit.OverEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenWith(t, ipc.ListenConfig{Group: strconv.Itoa(kit.Nobody)}, addr)
		serving := kit.WelcomeAll(l)
		member := kit.StartStranger(t, "connect", addr.String(), "everyone")
		member.MustSay("welcome")
		member.End()

		one := kit.StartChild(t, "member", addr.String(), strconv.Itoa(kit.Nobody))
		one.MustSay("welcome")
		one.End()
		stranger := kit.StartChild(t, "member", addr.String(), strconv.Itoa(kit.Nobody+5))
		if said := stranger.Hear(); said != "turned away" && said != "permission denied" {
			t.Errorf("one that is not in the group hears %q", said)
		}
		stranger.End()
		kit.Expect(t, kit.Dial(t, addr), "welcome") // and the server's user needs no group
		kit.Must(t, l.Close())
		kit.Must(t, <-serving)
	})
}

// TestAccessGroupIsThatOfTheSocketFile needs no other user: one's own group will do.
func TestAccessGroupIsThatOfTheSocketFile(t *testing.T) {
	kit.Story(t)
	gid := os.Getgid()
	for _, policy := range kit.Policies {
		addr := ipc.Path(kit.SockPath(t))
		l := kit.ListenWith(t, ipc.ListenConfig{Group: strconv.Itoa(gid), Takeover: policy}, addr)
		var st syscall.Stat_t
		kit.Must(t, syscall.Lstat(addr.String(), &st))
		if mode := kit.ModeOf(t, addr.String()); mode != 0o660 || int(st.Gid) != gid {
			t.Errorf("the socket has mode %o and group %d", mode, st.Gid)
		}
		kit.Serves(t, l, addr)
		kit.Must(t, l.Close())
	}
	addr := ipc.Path(kit.SockPath(t))
	l := kit.ListenWith(t, ipc.ListenConfig{Group: strconv.Itoa(gid), Sys: &ipc.SysListenConfig{Mode: 0o620}}, addr)
	if mode := kit.ModeOf(t, addr.String()); mode != 0o620 {
		t.Errorf("the socket has mode %o", mode)
	}
	kit.Must(t, l.Close())
}

func TestAccessGroupThatIsBadIsRefused(t *testing.T) {
	kit.Story(t)
	addr := ipc.Path(kit.SockPath(t))
	for _, c := range []struct {
		lc    ipc.ListenConfig
		is    error
		words []string
	}{
		{ipc.ListenConfig{Group: "no such group"}, os.ErrNotExist, []string{`"no such group"`, "/etc/group"}},
		{ipc.ListenConfig{Group: "-1"}, nil, []string{`"-1"`, "4294967294"}},
		{ipc.ListenConfig{Group: "4294967295"}, nil, []string{"4294967295"}},
		{ipc.ListenConfig{Group: "1", Access: ipc.Everyone}, nil, []string{"Group", "Everyone"}},
		{ipc.ListenConfig{Group: "1", Sys: &ipc.SysListenConfig{GID: 1}}, nil, []string{"Group", "Sys.GID"}},
	} {
		l, err := c.lc.Listen(addr)
		if err == nil {
			l.Close()
			t.Errorf("%+v is accepted", c.lc)
			continue
		}
		kit.IsOpError(t, err, "listen")
		if c.is != nil {
			kit.Matches(t, err, c.is)
		}
		for _, word := range c.words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q does not say %q", err, word)
			}
		}
		kit.IsGone(t, addr.String())
	}
}

// TestAccessGroupHasAName uses a name of the file of groups, if that has one of this process.
func TestAccessGroupHasAName(t *testing.T) {
	kit.Story(t)
	text, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Skip(err)
	}
	gid := strconv.Itoa(os.Getgid())
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(line, ":")
		if len(fields) < 3 || fields[2] != gid || fields[0] == "" {
			continue
		}
		addr := ipc.Path(kit.SockPath(t))
		l := kit.ListenWith(t, ipc.ListenConfig{Group: fields[0]}, addr)
		var st syscall.Stat_t
		kit.Must(t, syscall.Lstat(addr.String(), &st))
		if strconv.Itoa(int(st.Gid)) != gid {
			t.Errorf("the socket has group %d, and %s is %s", st.Gid, fields[0], gid)
		}
		kit.Serves(t, l, addr)
		kit.Must(t, l.Close())
		return
	}
	t.Skip("this process's group has no name there")
}

// ---------------------------------------------------------------------------
// The socket file

func TestListenModeOfTheSocketIsExact(t *testing.T) {
	kit.Together(t)
	underEachUmask(t, func(t *testing.T, dir string, start func(role string) *kit.Child) { start("umask").End() })
}

// underEachUmask tells a story under umasks of every kind, of this user and of
// another. A child that is started has as its arguments the umask, the folder, and
// one with a long path in it.
func underEachUmask(t *testing.T, tell func(t *testing.T, dir string, start func(role string) *kit.Child)) {
	for _, mask := range []string{"000", "022", "077", "0777"} {
		for _, user := range []string{"", fmt.Sprintf("%d:%d", kit.Nobody, kit.Nobody)} {
			name := "umask" + mask
			if user != "" {
				name += "OfNobody"
			}
			t.Run(name, func(t *testing.T) {
				kit.Story(t)
				if user != "" {
					kit.NeedsRoot(t)
				}
				dir := kit.OpenDir(t)
				long := filepath.Join(dir, strings.Repeat("folder", 20), strings.Repeat("another", 10))
				kit.Must(t, os.MkdirAll(long, 0o777))
				kit.Must(t, os.Chmod(long, 0o777))
				kit.Must(t, os.Chmod(filepath.Dir(long), 0o777))
				tell(t, dir, func(role string) *kit.Child {
					return kit.StartChildWith(t, exec.Cmd{Env: []string{kit.ChildUser + "=" + user}}, role, mask, dir, long)
				})
			})
		}
	}
}

// childListensUnderUmask sets its umask and then checks the mode of every socket
// it makes, and that files which other goroutines make meanwhile, and the umask
// itself, are as the umask wants it.
func childListensUnderUmask(_ *kit.Parent, args []string) error {
	mask := kit.Sure(strconv.ParseUint(args[0], 8, 32))
	syscall.Umask(int(mask))

	bystanderEnds := kit.Repeatedly(func() error {
		name, want := args[1]+"/bystander", fs.FileMode(0o666&^mask)
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
		if err != nil {
			return err
		}
		st, err := f.Stat()
		f.Close()
		os.Remove(name)
		if err != nil {
			return err
		}
		if got := st.Mode().Perm(); got != want {
			return fmt.Errorf("a bystander's file has mode %o, want %o: the umask was changed", got, want)
		}
		return nil
	})

	checkModes := func() error {
		for _, dir := range args[1:] {
			for _, takeover := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever, ipc.TakeoverAlways} {
				for _, c := range []struct {
					want fs.FileMode
					lc   ipc.ListenConfig
				}{
					{0o600, ipc.ListenConfig{}},
					{0o666, ipc.ListenConfig{Access: ipc.Everyone}},
					{0o660, ipc.ListenConfig{Sys: &ipc.SysListenConfig{Mode: 0o660}}},
					{0o642, ipc.ListenConfig{Access: ipc.Everyone, Sys: &ipc.SysListenConfig{Mode: 0o642}}},
				} {
					path := dir + "/socket"
					c.lc.Takeover = takeover
					l, err := c.lc.Listen(ipc.Path(path))
					if err != nil {
						return err
					}
					st, err := os.Lstat(path)
					if err := errors.Join(err, l.Close()); err != nil {
						return err
					}
					// The sticky bit protects a socket from cleaners: see listen_linux_test.go.
					if got := st.Mode() &^ fs.ModeSticky; got != fs.ModeSocket|c.want {
						return fmt.Errorf("%s has mode %v under %+v, want %o", path, got, c.lc, c.want)
					}
				}
			}
		}
		return nil
	}
	var err error
	for range 20 {
		if err = checkModes(); err != nil {
			break
		}
	}
	err = errors.Join(err, bystanderEnds())
	if now := syscall.Umask(int(mask)); now != int(mask) {
		err = errors.Join(err, fmt.Errorf("the umask became %o", now))
	}
	return err
}

func TestSysListenConfigSetsModeAndOwner(t *testing.T) {
	kit.Story(t)
	path := kit.SockPath(t)
	owner, group := os.Getuid(), os.Getgid()
	if owner == 0 {
		owner, group = kit.Nobody, kit.Nobody-1
	}
	for _, takeover := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverAlways} {
		for _, sys := range []*ipc.SysListenConfig{
			{Mode: 0o640, UID: owner, GID: group}, {UID: owner}, {GID: group}, {Mode: 0o777}, {},
		} {
			l, err := ipc.ListenConfig{Sys: sys, Takeover: takeover}.Listen(ipc.Path(path))
			kit.Must(t, err)
			want := *sys
			if want.Mode == 0 {
				want.Mode = 0o600
			}
			if want.UID == 0 {
				want.UID = os.Getuid()
			}
			var st syscall.Stat_t
			kit.Must(t, syscall.Lstat(path, &st))
			if sys.GID == 0 { // the system's choice: ours or the folder's
				want.GID = int(st.Gid)
			}
			if got := (ipc.SysListenConfig{Mode: kit.ModeOf(t, path), UID: int(st.Uid), GID: int(st.Gid)}); got != want {
				t.Errorf("%+v made %+v", *sys, got)
			}
			kit.Must(t, l.Close())
		}
	}
}

func TestSysListenConfigThatIsBadIsRefused(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	noID := -1
	if strconv.IntSize > 32 {
		noID = 1 << (strconv.IntSize / 2) // root's, to a kernel that looks at 32 bits
	}
	for _, c := range []struct {
		sys   ipc.SysListenConfig
		words []string
	}{
		{ipc.SysListenConfig{Mode: fs.ModeSetuid | 0o600}, []string{"Mode", "0777"}},
		{ipc.SysListenConfig{Mode: 0o1777}, []string{"Mode", "01777", "0777"}},
		{ipc.SysListenConfig{UID: -1}, []string{"UID", "-1"}},
		{ipc.SysListenConfig{GID: -1}, []string{"GID", "-1"}},
		{ipc.SysListenConfig{UID: noID}, []string{"UID", strconv.Itoa(noID)}},
		{ipc.SysListenConfig{GID: noID}, []string{"GID", strconv.Itoa(noID)}},
	} {
		_, err := ipc.ListenConfig{Sys: &c.sys}.Listen(addr)
		if err == nil {
			t.Fatalf("%+v is accepted", c.sys)
		}
		for _, word := range c.words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q does not say %q", err, word)
			}
		}
	}
}

func TestListenerCloseLeavesNothing(t *testing.T) {
	kit.Story(t)
	dir := kit.TempDir(t)
	for _, takeover := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever, ipc.TakeoverAlways} {
		l := kit.ListenWith(t, ipc.ListenConfig{Takeover: takeover}, ipc.Path(dir+"/socket"))
		kit.ModeOf(t, dir+"/socket")
		kit.Must(t, l.Close())
		if names := kit.NamesIn(t, dir); len(names) != 0 {
			t.Errorf("%v leaves %s", takeover, names)
		}
	}
}

func TestListenConfigKeepNameLeavesTheSocketAlone(t *testing.T) {
	kit.Story(t)
	dir := kit.TempDir(t)
	path := dir + "/socket"
	l := kit.ListenWith(t, ipc.ListenConfig{KeepName: true}, ipc.Path(path))
	kit.Must(t, l.Close())
	if names := kit.NamesIn(t, dir); !slices.Equal(names, []string{"socket"}) {
		t.Fatalf("KeepName leaves %s", names)
	}
	_, err := ipc.Dial(ipc.Path(path))
	kit.Matches(t, err, ipc.ErrNoListener, syscall.ECONNREFUSED)
	kit.Serves(t, kit.Listen(t, ipc.Path(path)), ipc.Path(path)) // what was left is stale
}

func TestListenThatFailsLeavesNothing(t *testing.T) {
	kit.Story(t)
	if os.Getuid() == 0 {
		kit.StartStranger(t, "chown", kit.OpenDir(t)).End()
	} else {
		kit.Must(t, childGivesSocketAway(nil, []string{kit.TempDir(t)}))
	}

	dir := kit.TempDir(t)
	_, err := ipc.Listen(ipc.Path(dir + "/missing/socket"))
	kit.Matches(t, err, fs.ErrNotExist)
	if !strings.Contains(err.Error(), dir+"/missing/socket") {
		t.Errorf("%q does not name the path", err)
	}
	kit.Must(t, os.WriteFile(dir+"/file", nil, 0o600))
	_, err = ipc.Listen(ipc.Path(dir + "/file/socket"))
	kit.Matches(t, err, syscall.ENOTDIR)
	l := kit.Listen(t, ipc.Path(dir+"/socket"))
	before := kit.NamesIn(t, dir)
	for _, takeover := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever} {
		_, err := ipc.ListenConfig{Takeover: takeover}.Listen(l.Addr().(ipc.Addr))
		kit.Matches(t, err, ipc.ErrAddrInUse)
	}
	if after := kit.NamesIn(t, dir); !slices.Equal(after, before) {
		t.Errorf("%s became %s", before, after)
	}
	kit.Must(t, os.Remove(dir+"/file"))
}

func TestListenerThatWasDroppedIsCollected(t *testing.T) {
	dir := t.TempDir() // what they leave there is stale
	n := 0
	kit.AreCollected(t, func() {
		n++
		_, err := ipc.Listen(ipc.Path(fmt.Sprint(dir, "/", n)))
		kit.Must(t, err)
	})
	for i := range n {
		kit.Must(t, kit.Listen(t, ipc.Path(fmt.Sprint(dir, "/", i+1))).Close())
	}
	if names := kit.NamesIn(t, dir); len(names) > 0 {
		t.Errorf("%s are left", names)
	}
}

func TestFileListenerNeverUnlinks(t *testing.T) {
	kit.Story(t)
	path := kit.SockPath(t)
	l := kit.Listen(t, ipc.Path(path))
	adopted := kit.Adopt(t, l)
	if adopted.Addr() != l.Addr() {
		t.Errorf("the address is %v", adopted.Addr())
	}
	kit.Serves(t, adopted, ipc.Path(path))
	kit.Serves(t, l, ipc.Path(path))
	accepting := kit.Begin(func() error { _, err := adopted.Accept(); return err })
	kit.AwaitParked(t, "(*Listener).AcceptConn", 1)
	kit.Must(t, adopted.Close())
	kit.Matches(t, <-accepting, net.ErrClosed)
	kit.Matches(t, adopted.Close(), net.ErrClosed)
	kit.Serves(t, l, ipc.Path(path))
}

func TestListenerIsHandedToAChild(t *testing.T) {
	kit.Story(t)
	path := kit.SockPath(t)
	l := kit.ListenWith(t, ipc.ListenConfig{KeepName: true}, ipc.Path(path))
	f, err := l.File()
	kit.Must(t, err)
	c := kit.StartChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "adopts")
	kit.Must(t, f.Close())
	kit.Must(t, l.Close()) // the child's is left
	c.MustSay("adopted " + path)
	client := kit.Dial(t, ipc.Path(path))
	kit.Expect(t, client, "from the heir")
	c.End()
	kit.Must(t, os.Remove(path))
}

func childAdoptsListener(p *kit.Parent, _ []string) error {
	f := os.NewFile(3, "listener")
	l, err := ipc.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	p.Say("adopted %s", l.Addr())
	c := kit.Sure(l.Accept())
	_, err = io.WriteString(c, "from the heir")
	return errors.Join(err, c.Close(), l.Close())
}

// childGivesSocketAway fails late in Listen, as it may not change the owner.
func childGivesSocketAway(_ *kit.Parent, args []string) error {
	for _, takeover := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever, ipc.TakeoverAlways} {
		l, err := ipc.ListenConfig{
			Takeover: takeover, Sys: &ipc.SysListenConfig{UID: 1},
		}.Listen(ipc.Path(args[0] + "/socket"))
		if err == nil {
			return errors.Join(errors.New("a user gave a file away"), l.Close())
		}
		if !errors.Is(err, os.ErrPermission) {
			return err
		}
		names, err := filepath.Glob(args[0] + "/*")
		hidden, _ := filepath.Glob(args[0] + "/.*")
		if err != nil || len(names)+len(hidden) > 0 {
			return fmt.Errorf("%v leaves %s %s, %v", takeover, names, hidden, err)
		}
	}
	return nil
}

// ---------------------------------------------------------------------------
// Taking a path over

func TestTakeoverReplacesAStaleSocketAsItSays(t *testing.T) {
	killed := func(t *testing.T, path string) { kit.StartServer(t, ipc.Path(path)).Kill() }
	for name, leave := range map[string]func(t *testing.T, path string){"Killed": killed, "Foreign": kit.MakeStale} {
		for _, policy := range kit.Policies {
			t.Run(name+policy.String(), func(t *testing.T) {
				kit.Story(t)
				path := kit.OpenDir(t) + "/socket"
				leave(t, path)
				before, err := os.Lstat(path)
				kit.Must(t, err)
				l, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(path))
				if policy == ipc.TakeoverNever {
					kit.Matches(t, err, ipc.ErrAddrInUse)
					after, err := os.Lstat(path)
					kit.Must(t, err)
					if !os.SameFile(before, after) {
						t.Error("the socket was replaced")
					}
					kit.Must(t, os.Remove(path))
					os.Remove(path + ".lock") // of the one that was killed
					return
				}
				kit.Must(t, err)
				defer l.Close()
				kit.Serves(t, l, ipc.Path(path))
			})
		}
	}
}

func TestTakeoverRespectsAForeignServer(t *testing.T) {
	kit.Story(t)
	path := kit.OpenDir(t) + "/socket"
	kit.ServeForeign(t, path)
	for range 3 {
		isRespected(t, path)
		kit.IsGone(t, path+".lock")
		kit.Expect(t, kit.Dial(t, ipc.Path(path)), "foreign")
	}
}

// isRespected checks that nobody takes the path of a live server who does not
// insist.
func isRespected(t *testing.T, path string) {
	t.Helper()
	before, err := os.Lstat(path)
	kit.Must(t, err)
	for _, policy := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever} {
		_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(path))
		kit.Matches(t, err, ipc.ErrAddrInUse)
	}
	after, err := os.Lstat(path)
	kit.Must(t, err)
	if !os.SameFile(before, after) {
		t.Fatal("the socket of a live server was replaced")
	}
}

func TestTakeoverAlwaysDisplacesAForeignServer(t *testing.T) {
	kit.Story(t)
	path := kit.OpenDir(t) + "/socket"
	foreign := kit.ServeForeign(t, path)
	foreign.SetUnlinkOnClose(false)
	l := kit.ListenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, ipc.Path(path))
	kit.Serves(t, l, ipc.Path(path))
}

func TestTakeoverDoesNotTouchWhatIsNoSocket(t *testing.T) {
	kinds := map[string]func(t *testing.T, path string) error{
		"File":   func(_ *testing.T, path string) error { return os.WriteFile(path, []byte("content"), 0o640) },
		"Empty":  func(_ *testing.T, path string) error { return os.WriteFile(path, nil, 0o640) },
		"Folder": func(_ *testing.T, path string) error { return os.Mkdir(path, 0o750) },
		"FIFO":   func(_ *testing.T, path string) error { return ipc.Mkfifo(path, 0o640) },
		"LinkToNothing": func(_ *testing.T, path string) error {
			return os.Symlink(path+"-target", path)
		},
		"LinkToStaleSocket": func(t *testing.T, path string) error {
			kit.MakeStale(t, path+"-target")
			t.Cleanup(func() { os.Remove(path + "-target") })
			return os.Symlink(path+"-target", path)
		},
		"LinkToLiveSocket": func(t *testing.T, path string) error {
			kit.ServeForeign(t, path+"-target")
			return os.Symlink(path+"-target", path)
		},
	}
	for kind, make := range kinds {
		t.Run(kind, func(t *testing.T) {
			kit.Story(t)
			dir := kit.OpenDir(t)
			path := dir + "/socket"
			kit.Must(t, make(t, path))
			names := kit.NamesIn(t, dir)
			before, err := os.Lstat(path)
			kit.Must(t, err)
			for _, policy := range kit.Policies {
				_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(path))
				if err == nil {
					t.Fatalf("%v replaces it", policy)
				}
				kit.Matches(t, err, ipc.ErrAddrInUse)
				after, err := os.Lstat(path)
				kit.Must(t, err)
				if !os.SameFile(before, after) || before.Mode() != after.Mode() ||
					before.Size() != after.Size() || !before.ModTime().Equal(after.ModTime()) {
					t.Errorf("%v changes it", policy)
				}
				if left := kit.NamesIn(t, dir); !slices.Equal(left, names) {
					t.Errorf("%v makes %s of %s", policy, left, names)
				}
			}
			kit.Must(t, os.Remove(path))
		})
	}
}

func TestListenLeavesTheLockOfAnotherProgramAlone(t *testing.T) {
	kit.Story(t)
	dir := kit.OpenDir(t)
	path := dir + "/socket"
	kit.Must(t, os.WriteFile(path+".lock", []byte("what another program keeps there"), 0o640))
	before, err := os.Lstat(path + ".lock")
	kit.Must(t, err)
	for _, policy := range kit.Policies {
		l := kit.ListenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path(path))
		for _, policy := range kit.Policies { // it does as a lock, and one that must not be replaced
			_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(path))
			kit.Matches(t, err, ipc.ErrAddrInUse)
		}
		kit.Serves(t, l, ipc.Path(path))
		kit.Must(t, l.Close())
		if names := kit.NamesIn(t, dir); !slices.Equal(names, []string{"socket.lock"}) {
			t.Fatalf("%v leaves %s", policy, names)
		}
	}
	after, err := os.Lstat(path + ".lock")
	kit.Must(t, err)
	if !os.SameFile(before, after) || before.Mode() != after.Mode() || !before.ModTime().Equal(after.ModTime()) {
		t.Error("it was changed")
	}
	kit.Must(t, os.Remove(path+".lock"))
}

func TestTakeoverAlwaysLeavesNoGap(t *testing.T) {
	kit.Together(t)
	kit.Story(t)
	addr := kit.PathAddr(t)
	var serving []<-chan error
	takeOver := func() *ipc.Listener {
		l := kit.ListenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, addr)
		serving = append(serving, kit.ServeEach(l, (*ipc.Conn).Close))
		return l
	}
	current := takeOver()

	var clients []func() error // end them
	var dials [2]atomic.Int64
	for i := range dials {
		clients = append(clients, kit.Repeatedly(func() error {
			c, err := ipc.Dial(addr)
			if err != nil {
				t.Error(err)
				return err
			}
			dials[i].Add(1)
			return c.Close()
		}))
	}
	for range 60 {
		next := takeOver()
		// The displaced listener goes when no dial that began before can be on
		// its way to it any more.
		for i := range dials {
			before := dials[i].Load()
			if !kit.HoldsSoon(func() bool { return dials[i].Load() > before }) {
				t.Error("the client dials no more")
			}
		}
		kit.Must(t, current.Close())
		current = next
		if t.Failed() {
			break
		}
	}
	for _, end := range clients {
		kit.Must(t, end())
	}
	kit.Must(t, current.Close())
	for _, done := range serving {
		kit.Must(t, <-done)
	}
}

func TestTakeoverLeavesTheDisplacedListenerWhatItHas(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	old := kit.Listen(t, addr)
	client, server := kit.Connect(t, old)
	waiting := kit.Dial(t, addr)
	l := kit.ListenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, addr)

	kit.Talk(t, client, server)
	kit.Talk(t, waiting, kit.Accept(t, old)) // had connected before
	for range 3 {
		kit.Serves(t, l, addr)
	}
	kit.Must(t, old.SetDeadline(time.Now().Add(-time.Hour)))
	_, err := old.Accept() // and nobody since
	kit.TimedOut(t, err)
	_, err = ipc.Listen(addr) // the path is protected as before
	kit.Matches(t, err, ipc.ErrAddrInUse)
	kit.Must(t, old.Close())
	_, err = ipc.Listen(addr)
	kit.Matches(t, err, ipc.ErrAddrInUse)
	kit.Serves(t, l, addr)
}

func TestListenerCloseLeavesSuccessorsSocketAlone(t *testing.T) {
	successors := map[string]func(t *testing.T, path string){
		"TakeoverAlways": func(t *testing.T, path string) {
			kit.ListenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, ipc.Path(path))
		},
		"RemovedAndListenedAt": func(t *testing.T, path string) {
			kit.Must(t, os.Remove(path))
			kit.ServeForeign(t, path)
		},
		"RenamedOver": func(t *testing.T, path string) {
			kit.ServeForeign(t, path+"-new").SetUnlinkOnClose(false)
			kit.Must(t, os.Rename(path+"-new", path))
			t.Cleanup(func() { os.Remove(path) })
		},
		"FileInItsPlace": func(t *testing.T, path string) {
			kit.Must(t, os.Remove(path))
			kit.Must(t, os.WriteFile(path, nil, 0o600))
			t.Cleanup(func() { os.Remove(path) })
		},
		"SocketAndLockRemoved": func(t *testing.T, path string) {
			kit.Must(t, os.Remove(path))
			kit.Must(t, os.Remove(path+".lock"))
			kit.Listen(t, ipc.Path(path))
		},
	}
	for name, succeed := range successors {
		t.Run(name, func(t *testing.T) {
			kit.Story(t)
			path := kit.OpenDir(t) + "/socket"
			old, err := ipc.Listen(ipc.Path(path))
			kit.Must(t, err)
			succeed(t, path)
			before, err := os.Lstat(path)
			kit.Must(t, err)
			kit.Must(t, old.Close())
			after, err := os.Lstat(path)
			kit.Must(t, err)
			if !os.SameFile(before, after) {
				t.Fatal("the successor's file is gone")
			}
			if before.Mode().Type() == fs.ModeSocket {
				kit.Must(t, kit.Dial(t, ipc.Path(path)).Close())
				_, err := ipc.Listen(ipc.Path(path)) // and it is respected
				kit.Matches(t, err, ipc.ErrAddrInUse)
			}
		})
	}
}

func TestListenerCloseAndTakeoverRace(t *testing.T) {
	kit.Together(t)
	for _, policy := range kit.Policies {
		t.Run(policy.String(), func(t *testing.T) {
			kit.Story(t)
			addr := kit.PathAddr(t)
			for range 200 {
				old, err := ipc.Listen(addr)
				kit.Must(t, err)
				closing := kit.Begin(old.Close)
				var l *ipc.Listener
				kit.Eventually(t, "the path can be had", func() bool {
					l, err = ipc.ListenConfig{Takeover: policy}.Listen(addr)
					if err != nil {
						kit.Matches(t, err, ipc.ErrAddrInUse)
					}
					return err == nil
				})
				kit.Must(t, <-closing)
				kit.Serves(t, l, addr)
				kit.Must(t, l.Close())
				kit.IsGone(t, addr.String()+".lock")
			}
		})
	}
}

func TestTakeoverAlwaysByManyAtOnceLeavesOne(t *testing.T) {
	kit.Story(t)
	addr := kit.PathAddr(t)
	for range 20 {
		listeners := make([]*ipc.Listener, 6)
		var starting sync.WaitGroup
		for i := range listeners {
			starting.Go(func() {
				var err error
				if listeners[i], err = (ipc.ListenConfig{Takeover: ipc.TakeoverAlways}).Listen(addr); err != nil {
					t.Error(err)
				}
			})
		}
		starting.Wait()
		if t.Failed() {
			return
		}
		kit.ModeOf(t, addr.String())
		var reached atomic.Int32
		for _, l := range listeners {
			starting.Go(func() {
				for c, err := l.Accept(); err == nil; c, err = l.Accept() {
					reached.Add(1)
					c.Close()
				}
			})
		}
		client := kit.Dial(t, addr)
		kit.ExpectEOF(t, client)
		kit.Must(t, client.Close())
		for _, l := range listeners {
			kit.Must(t, l.SetDeadline(time.Now()))
		}
		starting.Wait()
		if n := reached.Load(); n != 1 {
			t.Fatalf("a client reaches %d listeners", n)
		}
		for _, l := range listeners {
			kit.Must(t, l.SetDeadline(time.Time{}))
		}
		_, err := ipc.Listen(addr)
		kit.Matches(t, err, ipc.ErrAddrInUse)
		for _, l := range listeners {
			starting.Go(func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		starting.Wait()
		if names := kit.NamesIn(t, filepath.Dir(addr.String())); len(names) != 0 {
			t.Fatalf("all are closed and %s is left", names)
		}
	}
}

// ---------------------------------------------------------------------------
// Long paths

// pathLimit is the longest path that the package takes.
func pathLimit() int {
	switch runtime.GOOS {
	case "linux", "android":
		return 4095
	case "aix", "solaris", "illumos":
		return 1022
	}
	return 1023
}

// deepPath returns a path of n bytes below dir in folders that it makes.
func deepPath(t *testing.T, dir string, n int, base string) string {
	t.Helper()
	for rest := n - len(dir) - len(base) - 2; rest > 0; rest = n - len(dir) - len(base) - 2 {
		size := min(rest, 100)
		if rest == 101 { // would leave one byte, for the separator alone
			size = 50
		}
		dir += "/" + strings.Repeat("d", size)
	}
	kit.Must(t, os.MkdirAll(dir, 0o700))
	path := dir + "/" + base
	if len(path) != n {
		t.Fatalf("made a path of %d bytes, want %d", len(path), n)
	}
	return path
}

// worksAt tells the life of a server at the path.
func worksAt(t *testing.T, path string) {
	t.Helper()
	addr := ipc.Path(path)
	l := kit.Listen(t, addr)
	client, server := kit.Connect(t, l)
	if l.Addr() != addr || client.RemoteAddr() != addr || server.LocalAddr() != addr {
		t.Errorf("the addresses are %q, %q, %q; want %q", l.Addr(), client.RemoteAddr(), server.LocalAddr(), path)
	}
	kit.Talk(t, client, server)
	if mode := kit.ModeOf(t, path); mode != 0o600 {
		t.Errorf("the mode is %o", mode)
	}
	_, err := ipc.Listen(addr)
	kit.Matches(t, err, ipc.ErrAddrInUse)
	next := kit.ListenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, addr)
	kit.Must(t, l.Close())
	kit.Serves(t, next, addr)
	kit.Must(t, next.Close())
	kit.IsGone(t, path)
	_, err = ipc.Dial(addr)
	kit.Matches(t, err, ipc.ErrNoListener, fs.ErrNotExist)

	dead := kit.StartServer(t, addr)
	kit.Send(t, kit.Dial(t, addr), "reached")
	dead.Kill()
	_, err = ipc.Dial(addr)
	kit.Matches(t, err, ipc.ErrNoListener)
	l = kit.Listen(t, addr)
	kit.Serves(t, l, addr)
	kit.Must(t, l.Close())
	if names := kit.NamesIn(t, filepath.Dir(path)); len(names) != 0 {
		t.Errorf("left behind: %.80s", names)
	}
}

func TestPathLongerThanASocketAddress(t *testing.T) {
	long := strings.Repeat("b", 250)
	for name, path := range map[string]func(dir string) string{
		"AtTheLimitOfASocketAddress": func(dir string) string { return deepPath(t, dir, 107, "s") },
		"OneOver":                    func(dir string) string { return deepPath(t, dir, 108, "s") },
		"LongFolder":                 func(dir string) string { return deepPath(t, dir, 500, "s") },
		"LongBase":                   func(dir string) string { return dir + "/" + long },
		"Both":                       func(dir string) string { return deepPath(t, dir, 800, long) },
		"4000Bytes":                  func(dir string) string { return deepPath(t, dir, min(4000, pathLimit()-50), long[:10]) },
	} {
		t.Run(name, func(t *testing.T) {
			kit.Story(t)
			worksAt(t, path(kit.OpenDir(t)))
		})
	}
}

func TestPathThatIsRelative(t *testing.T) {
	long := strings.Repeat("d", 200) + "/" + strings.Repeat("d", 200)
	for name, folder := range map[string]string{
		"Short": "", "LongWorkingFolder": long, "LongPath": long, "LongBase": "",
	} {
		t.Run(name, func(t *testing.T) {
			kit.Story(t)
			dir := kit.TempDir(t)
			kit.Must(t, os.MkdirAll(filepath.Join(dir, folder), 0o700))
			path := "socket"
			switch name {
			case "LongWorkingFolder":
				t.Chdir(filepath.Join(dir, folder))
			case "LongPath":
				path = folder + "/socket"
				fallthrough
			default:
				t.Chdir(dir)
			}
			if name == "LongBase" {
				path = strings.Repeat("b", 240)
			}
			worksAt(t, path)

			l := kit.Listen(t, ipc.Path(path))
			t.Chdir(os.TempDir()) // the path means something else now
			if l.Addr() != ipc.Path(path) {
				t.Errorf("the address is %v", l.Addr())
			}
			kit.Must(t, l.Close())
		})
	}
}

func TestPathOfAnAtSign(t *testing.T) {
	kit.Story(t)
	dir := kit.TempDir(t)
	t.Chdir(dir)
	l := kit.Listen(t, ipc.Path("@socket"))
	kit.ModeOf(t, dir+"/@socket")
	addr, err := ipc.ParseAddr(l.Addr().String())
	kit.Must(t, err)
	kit.Serves(t, l, addr)
}

func TestListenRefusesABaseTooLongForItsLock(t *testing.T) {
	kit.Story(t)
	dir := kit.TempDir(t)
	for n := 251; n <= 255; n++ {
		addr := ipc.Path(dir + "/" + strings.Repeat("b", n))
		_, err := ipc.Listen(addr)
		kit.BadAddr{Addr: addr, Is: ipc.ErrNameTooLong, Words: []string{strconv.Itoa(n) + " bytes", "limit is 250"}}.Refused(t, "listen", err)
		_, err = ipc.Dial(addr) // a server of another kind might have it
		kit.Matches(t, err, ipc.ErrNoListener)
	}
}

// ---------------------------------------------------------------------------
// Errors

func TestListenAndDialErrorsTellTheSystemCall(t *testing.T) {
	kit.Story(t)
	addr := ipc.Path(kit.OpenDir(t) + "/socket")

	_, err := ipc.Dial(addr)
	kit.IsErrno(t, err, "dial", "connect", syscall.ENOENT)
	kit.Matches(t, err, fs.ErrNotExist)
	kit.MakeStale(t, addr.String())
	_, err = ipc.Dial(addr)
	kit.IsErrno(t, err, "dial", "connect", syscall.ECONNREFUSED)
	_, err = ipc.ListenConfig{Takeover: ipc.TakeoverNever}.Listen(addr)
	kit.IsErrno(t, err, "listen", "bind", syscall.EADDRINUSE)
	_, err = ipc.Listen(ipc.Path(addr.String() + "/none"))
	kit.IsErrno(t, err, "listen", "open "+addr.String(), syscall.ENOTDIR)

	l := kit.Listen(t, addr)
	_, err = ipc.Listen(addr)
	kit.IsErrno(t, err, "listen", "bind", syscall.EADDRINUSE)

	client, server := kit.Connect(t, l)
	kit.Must(t, server.Close())
	_, err = client.Write([]byte("x"))
	kit.IsErrno(t, err, "write", "write", syscall.EPIPE)
	var oe *net.OpError
	if errors.As(err, &oe); oe.Addr != addr {
		t.Errorf("%v does not tell whom it was written to", err)
	}
}

func TestDialWithoutPermission(t *testing.T) {
	kit.NeedsRoot(t)
	kit.Story(t)
	dir := kit.OpenDir(t)
	kit.Must(t, os.Chmod(dir, 0o755))
	starter := kit.StartStranger(t, "race", dir+"/socket")
	starter.MustSay("ready")
	starter.Say("go")
	if said := starter.Hear(); !strings.HasPrefix(said, "failed") || !strings.Contains(said, "permission denied") ||
		!strings.Contains(said, dir+"/socket") {
		t.Errorf("in a folder of another user a starter says %q", said)
	}
	starter.Say("done")
	starter.MustSay("ready")
	starter.End()
}

func TestListenConfigGreatestBacklogIsTheSystemsLimit(t *testing.T) {
	kit.Story(t)
	for _, backlog := range []int{math.MaxInt, math.MaxInt/2 + 1, math.MaxInt32} {
		addr := kit.NameAddr(t)
		l := kit.ListenWith(t, ipc.ListenConfig{Backlog: backlog}, addr)
		for range 5 {
			c, err := ipc.Dialer{Timeout: kit.Soon}.Dial(addr)
			kit.Kept(t, c, err)
		}
		kit.Must(t, l.Close())
	}
}

func TestListenerAcceptSurvivesLackOfDescriptors(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		kit.StartChild(t, "crowded", addr.String()).End()
	})
}

// childRunsOutOfDescriptors accepts a client that waits, first without and then
// with a descriptor left for it.
func childRunsOutOfDescriptors(_ *kit.Parent, args []string) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = 64
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	addr := kit.Sure(ipc.ParseAddr(args[0]))
	l := kit.Sure(ipc.Listen(addr))
	client := kit.Sure(ipc.Dial(addr))
	var crowd []*os.File
	for {
		f, err := os.Open("/")
		if errors.Is(err, syscall.EMFILE) {
			break
		} else if err != nil {
			return err
		}
		crowd = append(crowd, f)
	}
	for range 3 {
		c, err := l.AcceptConn()
		if c != nil || !errors.Is(err, syscall.EMFILE) {
			return fmt.Errorf("without descriptors Accept gives %v, %v", c, err)
		}
		var oe *net.OpError
		var se *os.SyscallError
		if !errors.As(err, &oe) || oe.Op != "accept" || !errors.As(err, &se) || !strings.HasPrefix(se.Syscall, "accept") {
			return fmt.Errorf("%#v does not tell what failed", err)
		}
		if _, err := ipc.Dial(addr); !errors.Is(err, syscall.EMFILE) {
			return fmt.Errorf("without descriptors Dial gives %v", err)
		}
		if _, _, err := ipc.Pair(); !errors.Is(err, syscall.EMFILE) {
			return fmt.Errorf("without descriptors Pair gives %v", err)
		}
	}
	failures := 0
	for server, err := range l.Conns() {
		if err != nil {
			failures++
			crowd[0].Close()
			continue
		}
		if _, err := server.Write([]byte("welcome")); err != nil {
			return err
		}
		server.Close()
		break
	}
	if failures != 1 {
		return fmt.Errorf("%d failures before there was room", failures)
	}
	got, err := io.ReadAll(client)
	if string(got) != "welcome" {
		return fmt.Errorf("the client that waited reads %q, %v", got, err)
	}
	return errors.Join(client.Close(), l.Close())
}

// ---------------------------------------------------------------------------
// Locks, folders, and what is at the path

// childListens listens at the path under each of the policies and says what became of
// it. Its arguments are the path, the mode and group of the socket ("-" for neither), and
// the policies. The last listener lives until the child is told to end.
func childListens(p *kit.Parent, args []string) error {
	var sys ipc.SysListenConfig
	if args[1] != "-" {
		if _, err := fmt.Sscanf(args[1], "%o:%d", &sys.Mode, &sys.GID); err != nil {
			return err
		}
	}
	var last *ipc.Listener
	for _, name := range args[2:] {
		i := slices.IndexFunc(kit.Policies, func(policy ipc.Takeover) bool { return policy.String() == name })
		l, err := ipc.ListenConfig{Takeover: kit.Policies[i], Sys: &sys}.Listen(ipc.Path(args[0]))
		if err == nil && last != nil {
			err = last.Close()
		}
		switch {
		case err == nil:
			last = l
			p.Say("listens")
		case errors.Is(err, ipc.ErrAddrInUse):
			p.Say("in use")
		default:
			p.Say("%v", err)
		}
	}
	p.Hear()
	if last == nil {
		return nil
	}
	return last.Close()
}

// startListening starts a child of that user that listens, and returns what it says.
func startListening(t *testing.T, uid, gid int, path, mode string, policies ...ipc.Takeover) (*kit.Child, string) {
	t.Helper()
	kit.NeedsRoot(t)
	args := []string{path, mode}
	for _, policy := range policies {
		args = append(args, policy.String())
	}
	c := kit.StartChildWith(t, exec.Cmd{Env: []string{fmt.Sprintf("%s=%d:%d", kit.ChildUser, uid, gid)}}, "listen", args...)
	return c, c.Hear()
}

// ---------------------------------------------------------------------------
// Locks of other users

// A crashed root leaves a lock and a socket of mode 0600 in the folder of the user that
// is to run the service.
func TestListenOwnFolderOutlivesLockOfRoot(t *testing.T) {
	kit.NotEmulated(t)
	kit.NeedsRoot(t)
	for _, policy := range kit.Policies {
		for _, leaves := range []string{"Lock", "LockAndSocket"} {
			t.Run(policy.String()+leaves, func(t *testing.T) {
				kit.Story(t)
				path := kit.OpenDir(t) + "/socket"
				kit.Must(t, os.Chmod(filepath.Dir(path), 0o700))
				kit.Must(t, os.Chown(filepath.Dir(path), kit.Nobody, kit.Nobody))
				crashed, said := startListening(t, 0, 0, path, "-", ipc.TakeoverStale)
				if said != "listens" {
					t.Fatal(said)
				}
				if policy == ipc.TakeoverStale && toldOfForeignSockets {
					server, said := startListening(t, kit.Nobody, kit.Nobody, path, "-", policy)
					if said != "in use" {
						t.Errorf("while root serves there, the user hears %q", said)
					}
					server.End()
				}
				crashed.Kill()
				want := "listens"
				if leaves == "Lock" {
					kit.Must(t, os.Remove(path))
				} else if policy == ipc.TakeoverNever {
					want = "in use"
				} else if policy == ipc.TakeoverStale && !toldOfForeignSockets {
					want = "permission denied" // it cannot be told whether the socket is alive
				}
				server, said := startListening(t, kit.Nobody, kit.Nobody, path, "-", policy)
				if !strings.Contains(said, want) {
					t.Errorf("the user hears %q, want %q", said, want)
				}
				server.End()
				if want == "listens" {
					kit.IsGone(t, path)
					kit.IsGone(t, path+".lock")
				}
				os.Remove(path)
				os.Remove(path + ".lock")
			})
		}
	}
}

// toldOfForeignSockets is whether the system tells of a socket that this user may not
// connect to whether any process has it.
var toldOfForeignSockets = runtime.GOOS == "linux" || runtime.GOOS == "android"

// A lock with something in it is another program's. Who cannot read it cannot take it
// either.
func TestListenForeignLockOfRootIsKept(t *testing.T) {
	kit.NeedsRoot(t)
	kit.Story(t)
	dir := kit.OpenDir(t)
	kit.Must(t, os.Chown(dir, kit.Nobody, kit.Nobody))
	kit.Must(t, os.WriteFile(dir+"/socket.lock", []byte("data"), 0o600))
	for _, policy := range kit.Policies {
		server, said := startListening(t, kit.Nobody, kit.Nobody, dir+"/socket", "-", policy)
		if !strings.Contains(said, "permission denied") || !strings.Contains(said, "socket.lock") {
			t.Errorf("%v: the user hears %q", policy, said)
		}
		server.End()
	}
	if names := kit.NamesIn(t, dir); !slices.Equal(names, []string{"socket.lock"}) {
		t.Errorf("the folder has %s", names)
	}
	kit.Must(t, os.Remove(dir+"/socket.lock"))
}

// The users of a folder that several may write to take turns there, if the socket is
// for all of them.
func TestListenSharedFolderSharesLock(t *testing.T) {
	kit.NeedsRoot(t)
	const a, b, group = kit.Nobody - 1, kit.Nobody - 2, kit.Nobody - 3
	for name, c := range map[string]struct {
		folder   fs.FileMode
		socket   string
		lock     fs.FileMode
		takeover string // what the other user hears after a crash
	}{
		"Group":            {0o770, fmt.Sprintf("660:%d", group), 0o660, "listens"},
		"OtherGroup":       {0o770, fmt.Sprintf("660:%d", 0), 0o660, "listens"},
		"Everyone":         {0o777, "666:0", 0o666, "listens"},
		"SocketOfOwner":    {0o770, "600:0", 0o600, "permission denied"},
		"FolderOfOwner":    {0o750, fmt.Sprintf("666:%d", group), 0o600, "permission denied"},
		"FolderWithSticky": {0o777 | fs.ModeSticky, "666:0", 0o600, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			kit.Story(t)
			dir := kit.OpenDir(t)
			path := dir + "/socket"
			kit.Must(t, os.Chown(dir, a, group))
			kit.Must(t, os.Chmod(dir, c.folder))
			crashed, said := startListening(t, a, group, path, c.socket, ipc.TakeoverStale)
			if said != "listens" {
				t.Fatal(said)
			}
			st, err := os.Lstat(path + ".lock")
			kit.Must(t, err)
			if st.Mode().Perm() != c.lock {
				t.Errorf("the lock has mode %v, want %v", st.Mode(), c.lock)
			}
			other, said := startListening(t, b, group, path, c.socket, ipc.TakeoverStale)
			if said == "listens" {
				t.Error("another user takes a live server's path")
			}
			other.End()
			crashed.Kill()
			other, said = startListening(t, b, group, path, c.socket, ipc.TakeoverStale)
			if !strings.Contains(said, c.takeover) {
				t.Errorf("another user hears %q after a crash, want %q", said, c.takeover)
			}
			other.End()
			os.Remove(path)
			os.Remove(path + ".lock")
		})
	}
}

func TestListenLockFollowsGroup(t *testing.T) {
	kit.NeedsRoot(t)
	kit.Story(t)
	dir := kit.OpenDir(t)
	kit.Must(t, os.Chown(dir, 0, kit.Nobody))
	kit.Must(t, os.Chmod(dir, 0o770))
	for _, c := range []struct {
		group  int
		shared bool
	}{{kit.Nobody, true}, {kit.Nobody - 1, false}} { // who may not write to the folder has no use for the lock
		l := kit.ListenWith(t, ipc.ListenConfig{Sys: &ipc.SysListenConfig{Mode: 0o660, GID: c.group}}, ipc.Path(dir+"/socket"))
		var st syscall.Stat_t
		kit.Must(t, syscall.Lstat(dir+"/socket.lock", &st))
		shared := int(st.Gid) == c.group && st.Mode&0o777 == 0o660
		if shared != c.shared || !shared && st.Mode&0o777 != 0o600 {
			t.Errorf("a socket of group %d has a lock of group %d, mode %o", c.group, st.Gid, st.Mode)
		}
		kit.Must(t, l.Close())
	}
}

// ---------------------------------------------------------------------------
// What is in the way

func TestListenLockPathThatIsNoFile(t *testing.T) {
	for kind, make := range map[string]func(t *testing.T, path string) error{
		"FIFO":   func(t *testing.T, path string) error { makeFIFOAt(t, path); return nil },
		"Folder": func(_ *testing.T, path string) error { return os.Mkdir(path, 0o777) },
		"Link":   func(_ *testing.T, path string) error { return os.Symlink("/dev/null", path) },
		"Socket": func(t *testing.T, path string) error { kit.MakeStale(t, path); return nil },
	} {
		t.Run(kind, func(t *testing.T) {
			kit.Story(t)
			dir := kit.OpenDir(t)
			kit.Must(t, make(t, dir+"/socket.lock"))
			before, err := os.Lstat(dir + "/socket.lock")
			kit.Must(t, err)
			for _, policy := range kit.Policies {
				_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(dir + "/socket"))
				kit.Matches(t, err, ipc.ErrAddrInUse)
				if err == nil || !strings.Contains(err.Error(), dir+"/socket.lock") {
					t.Errorf("%v: %v does not name what is in the way", policy, err)
				}
			}
			if names := kit.NamesIn(t, dir); !slices.Equal(names, []string{"socket.lock"}) {
				t.Errorf("the folder has %s", names)
			}
			after, err := os.Lstat(dir + "/socket.lock")
			kit.Must(t, err)
			if !os.SameFile(before, after) {
				t.Error("it was replaced")
			}
			kit.Must(t, os.Remove(dir+"/socket.lock"))
		})
	}
}

// A FIFO comes in the place of the folder, and of the lock. Close waits for neither.
func TestListenerCloseFolderReplacedByFIFO(t *testing.T) {
	for _, policy := range kit.Policies {
		t.Run(policy.String(), func(t *testing.T) {
			kit.Story(t)
			dir := kit.TempDir(t)
			kit.Must(t, os.Mkdir(dir+"/folder", 0o700))
			l := kit.ListenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path(dir+"/folder/socket"))
			kit.Must(t, os.Rename(dir+"/folder", dir+"/moved"))
			makeFIFOAt(t, dir+"/folder")
			_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(dir + "/folder/socket"))
			kit.Matches(t, err, syscall.ENOTDIR)
			err = l.Close()
			if followsFolders {
				kit.Must(t, err)
				if names := kit.NamesIn(t, dir+"/moved"); len(names) != 0 {
					t.Errorf("Close leaves %s in the folder", names)
				}
			}
			kit.Must(t, os.RemoveAll(dir+"/moved"))
			kit.Must(t, os.Remove(dir+"/folder"))
		})
	}
}

func TestListenerCloseLockReplacedByFIFO(t *testing.T) {
	kit.Story(t)
	path := kit.OpenDir(t) + "/socket"
	l := kit.Listen(t, ipc.Path(path))
	kit.Must(t, os.Remove(path+".lock"))
	makeFIFOAt(t, path+".lock")
	kit.Must(t, l.Close())
	kit.IsGone(t, path)
	kit.Must(t, os.Remove(path+".lock"))
}

func makeFIFOAt(t *testing.T, path string) {
	t.Helper()
	if err := ipc.Mkfifo(path, 0o666); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("this system makes no FIFOs")
	} else {
		kit.Must(t, err)
	}
}

// A cleaner of temporary folders takes the lock away. The socket is this listener's
// all the same.
func TestListenerCloseLockGoneRemovesSocket(t *testing.T) {
	for _, policy := range kit.Policies {
		t.Run(policy.String(), func(t *testing.T) {
			kit.Story(t)
			dir := kit.TempDir(t)
			l := kit.ListenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path(dir+"/socket"))
			kit.Must(t, os.Remove(dir+"/socket.lock"))
			kit.Must(t, l.Close())
			if names := kit.NamesIn(t, dir); len(names) != 0 {
				t.Errorf("Close leaves %s", names)
			}
		})
	}
}

func TestListenerCloseFolderGone(t *testing.T) {
	kit.Story(t)
	dir := kit.TempDir(t)
	kit.Must(t, os.Mkdir(dir+"/folder", 0o700))
	l := kit.Listen(t, ipc.Path(dir+"/folder/socket"))
	kit.Must(t, os.RemoveAll(dir+"/folder"))
	if err := l.Close(); err != nil && followsFolders {
		t.Error(err)
	}
}

// followsFolders is whether a listener finds its folder again after a rename.
var followsFolders = slices.Contains(
	[]string{"linux", "android", "darwin", "ios", "freebsd", "netbsd", "dragonfly"}, runtime.GOOS)

// ---------------------------------------------------------------------------
// What errors name

// The user gave the path of a socket. A lock beside it means nothing to him.
func TestListenErrorNamesWhatTheUserGave(t *testing.T) {
	kit.Story(t)
	dir := kit.OpenDir(t)
	kit.Must(t, os.WriteFile(dir+"/file", nil, 0o600))
	for path, want := range map[string]error{
		dir + "/missing/socket":  fs.ErrNotExist,
		"missing/socket":         fs.ErrNotExist,
		dir + "/file/socket":     syscall.ENOTDIR,
		dir + "/file/sub/socket": syscall.ENOTDIR,
	} {
		for _, policy := range kit.Policies {
			_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(path))
			kit.Matches(t, err, want)
			if text := fmt.Sprint(err); !strings.Contains(text, path) || strings.Contains(text, ".lock") {
				t.Errorf("%v: %q", policy, text)
			}
		}
	}
	kit.Must(t, os.Remove(dir+"/file"))

	kit.Must(t, os.Chmod(dir, 0o555))
	server, said := startListening(t, kit.Nobody, kit.Nobody, dir+"/socket", "-", ipc.TakeoverStale) // root may write anywhere
	if !strings.Contains(said, "permission denied") || !strings.Contains(said, dir+"/socket") || strings.Contains(said, ".lock") {
		t.Errorf("a user hears %q", said)
	}
	server.End()
}

// ---------------------------------------------------------------------------
// The folders of an address that belongs to one user

func TestUserAddrIsInTheRuntimeDir(t *testing.T) {
	kit.Story(t)
	dir := ownRuntimeDir(t)
	if len(dir) > 80 {
		t.Skip("the temporary folder has a long name")
	}
	addr, err := ipc.UserAddr("agent")
	if want := ipc.Path(dir + "/agent"); addr != want || err != nil {
		t.Errorf("it is %v, %v; want %v", addr, err, want)
	}
	link := dir + ".link"
	kit.Must(t, os.Symlink(dir, link))
	defer os.Remove(link)
	for _, value := range []string{link, link + "/"} {
		t.Setenv("XDG_RUNTIME_DIR", value)
		if addr, err := ipc.UserAddr("agent"); err == nil && strings.HasPrefix(addr.String(), link) {
			t.Errorf("it is %v, behind a link", addr)
		}
	}
}

// asUser starts a child as that user, to say what its address of the name is with the
// value of XDG_RUNTIME_DIR.
func asUser(t *testing.T, uid int, runtimeDir, name string) string {
	t.Helper()
	c := kit.StartChildWith(t, exec.Cmd{Env: []string{
		fmt.Sprintf("%s=%d:%d", kit.ChildUser, uid, uid), "XDG_RUNTIME_DIR=" + runtimeDir,
	}}, "useraddr", name)
	said := c.Hear()
	c.End()
	return said
}

// strangeUser returns the number of a user who has neither a folder for UserAddr nor
// else anything, and that folder. It is removed when the test ends.
func strangeUser(t *testing.T) (uid int, dir string) {
	t.Helper()
	kit.NeedsRoot(t)
	if _, err := os.Stat("/tmp"); err != nil {
		t.Skip("there is no /tmp: ", err)
	}
	for uid = 500123 + 4*os.Getpid(); ; uid++ { // the same tests may run beside these
		dir = fmt.Sprintf("/tmp/ipc-%d", uid)
		_, err := os.Lstat(dir)
		_, runtimeErr := os.Lstat(fmt.Sprintf("/run/user/%d", uid))
		if errors.Is(err, os.ErrNotExist) && errors.Is(runtimeErr, os.ErrNotExist) {
			t.Cleanup(func() { os.RemoveAll(dir) })
			return uid, dir
		}
	}
}

// TestUserAddrMakesAFolderOfItsOwn has no folder of the service manager, or none that
// may be trusted.
func TestUserAddrMakesAFolderOfItsOwn(t *testing.T) {
	kit.Story(t)
	uid, dir := strangeUser(t)
	want := dir + "/agent"
	others := kit.OpenDir(t)
	open, link, own := others+"/open", others+"/link", others+"/own"
	for _, d := range []string{open, own} {
		kit.Must(t, os.Mkdir(d, 0o700))
		kit.Must(t, os.Chown(d, uid, uid))
	}
	kit.Must(t, os.Chmod(open, 0o750))
	kit.Must(t, os.Symlink(own, link))
	kit.Must(t, os.Mkdir(others+"/roots", 0o700))
	for what, runtimeDir := range map[string]string{
		"none": "", "relative": "own", "missing": others + "/missing", "of root": others + "/roots",
		"open to a group": open, "a link": link,
		"too long": own + strings.Repeat("/.", 60),
	} {
		if said := asUser(t, uid, runtimeDir, "agent"); said != want {
			t.Errorf("with a runtime folder that is %s the address is %s, want %s", what, said, want)
		}
	}
	if said := asUser(t, uid, own, "agent"); said != own+"/agent" {
		t.Errorf("with a runtime folder of one's own the address is %s", said)
	}
	kit.Must(t, os.Remove(link))
	var st syscall.Stat_t
	kit.Must(t, syscall.Lstat(dir, &st))
	if int(st.Uid) != uid || st.Mode&0o7777 != 0o700 || st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		t.Errorf("the folder has owner %d and mode %o", st.Uid, st.Mode)
	}
	if said := asUser(t, uid+1, "", "agent"); said == want {
		t.Error("two users have one address")
	} else {
		os.RemoveAll(filepath.Dir(said))
	}
}

// TestUserAddrRefusesAFolderOfAnother has what another user put there before.
func TestUserAddrRefusesAFolderOfAnother(t *testing.T) {
	kit.Story(t)
	uid, dir := strangeUser(t)
	own := kit.OpenDir(t)
	kit.Must(t, os.Chown(own, uid, uid))
	kit.Must(t, os.Chmod(own, 0o700))
	for what, put := range map[string]func() error{
		"belongs to another user": func() error { return os.Mkdir(dir, 0o700) },
		"is open to other users":  func() error { return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, uid, uid), os.Chmod(dir, 0o710)) },
		"is not a folder":         func() error { return os.Symlink(own, dir) },
	} {
		kit.Must(t, put())
		if said := asUser(t, uid, "", "agent"); !strings.Contains(said, what) || !strings.Contains(said, dir) {
			t.Errorf("of a folder that %s it says %q", what, said)
		}
		kit.Must(t, os.Remove(dir))
	}
}

// ---------------------------------------------------------------------------
// Messages

func TestListenMsgOwnerOnlyRefusesAnotherUser(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		kit.OverEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := kit.ListenMsg(t, addr)
			a, _ := kit.MsgPair(t)
			accepting := kit.Begin(func() error {
				c, err := l.Accept()
				if err == nil {
					defer c.Close()
					kit.SendMsg(t, c, "mine")
				}
				return err
			})
			stranger := kit.StartStranger(t, "message", addr.String(), kit.AsFramed(a))
			if said := stranger.Hear(); said != "permission denied" && said != "turned away" {
				t.Errorf("the stranger says %q", said)
			}
			stranger.End()
			kit.ExpectMsg(t, kit.DialMsg(t, addr), "mine") // the first that Accept has seen
			kit.Must(t, <-accepting)
		})
	})
}

func TestListenMsgEveryoneAdmitsAnotherUser(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		kit.OverEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := kit.ListenMsgWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
			a, _ := kit.MsgPair(t)
			stranger := kit.StartStranger(t, "message", addr.String(), kit.AsFramed(a))
			server := kit.AcceptMsg(t, l)
			if uid, ok := kit.PeerOf(t, server).UID(); uid != kit.Nobody || !ok {
				t.Errorf("the peer's user is %d, %v", uid, ok)
			}
			kit.ExpectMsg(t, server, "hello from a child")
			kit.SendMsg(t, server, "welcome")
			stranger.MustSay("welcome")
			stranger.End()
		})
	})
}

func TestListenMsgModeOfTheSocketIsExact(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		path := kit.SockPath(t)
		l := kit.ListenMsg(t, ipc.Path(path))
		if mode := kit.ModeOf(t, path); mode != 0o600 {
			t.Errorf("mode is %o", mode)
		}
		kit.Must(t, l.Close())
		kit.IsGone(t, path)
		l = kit.ListenMsgWith(t, ipc.ListenConfig{Access: ipc.Everyone}, ipc.Path(path))
		if mode := kit.ModeOf(t, path); mode != 0o666 {
			t.Errorf("mode is %o", mode)
		}
		kit.Must(t, l.Close())
		kit.IsGone(t, path)
		kit.IsGone(t, path+".lock")
	})
}

func TestListenMsgTakeoverAlwaysDisplaces(t *testing.T) {
	kit.OverEachFraming(t, func(t *testing.T) {
		addr := kit.PathAddr(t)
		old := kit.ListenMsg(t, addr)
		client, server := kit.MsgConnect(t, old)
		successor := kit.ListenMsgWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, addr)
		kit.MsgTalk(t, client, server) // the old one keeps what it has
		kit.Must(t, old.Close())
		client, server = kit.MsgConnect(t, successor)
		kit.MsgTalk(t, client, server)
		kit.Must(t, successor.Close())
	})
}
