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
)

func init() {
	badAddrs = append(badAddrs,
		badAddr{addr: ipc.Path("folder/"), words: []string{"folder"}},
		badAddr{addr: ipc.Path("/"), words: []string{"folder"}},
		badAddr{addr: ipc.Path("."), words: []string{"folder"}},
		badAddr{addr: ipc.Path("a/.."), words: []string{"folder"}},
		badAddr{ipc.Path("/" + strings.Repeat("p", 256)), ipc.ErrNameTooLong, []string{"256 bytes", "limit is 255"}},
		badAddr{ipc.Path(strings.Repeat("/folder", 1000)), ipc.ErrNameTooLong, []string{"7000 bytes", "limit is "}},
		badAddr{ipc.Path("/" + strings.Repeat("ü", 128)), ipc.ErrNameTooLong, []string{"256 bytes"}}, // bytes, not letters
	)
	roles["umask"] = childListensUnderUmask
	roles["chown"] = childGivesSocketAway
	roles["crowded"] = childRunsOutOfDescriptors
	roles["member"] = childIsMember

	roles["listen"] = childListens
}

// ---------------------------------------------------------------------------
// Users

func TestAccessOwnerOnlyRefusesAnotherUser(t *testing.T) {
	overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		accepted := later(t, l.AcceptConn)
		for range 3 {
			stranger := startStranger(t, "connect", addr.String(), "everyone")
			if said := stranger.hear(); said != "permission denied" && said != "turned away" {
				t.Errorf("a stranger says %q", said)
			}
			stranger.end()
		}
		client := dial(t, addr) // the first that Accept sees
		talk(t, client, accepted())
	})
}

func TestAccessEveryoneAdmitsAnotherUser(t *testing.T) {
	overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
		stranger := startStranger(t, "connect", addr.String())
		server := accept(t, l)
		p := peerOf(t, server)
		if uid, _ := p.UID(); uid != nobody {
			t.Errorf("the peer is %v", p)
		}
		if gid, _ := p.GID(); gid != nobody {
			t.Errorf("the peer is %v", p)
		}
		if pid, ok := p.PID(); ok && pid != stranger.pid() {
			t.Errorf("the peer is %v", p)
		}
		expect(t, server, "hello from a child")
		send(t, server, "welcome") // it trusts a server that root runs
		stranger.mustSay("welcome")
		stranger.end()
	})
}

func TestListenConfigCheckCanRefuseAnotherUser(t *testing.T) {
	overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Access: ipc.Everyone, Check: func(p ipc.Peer) error {
			if uid, ok := p.UID(); !ok || uid != os.Getuid() {
				return errors.New("not you")
			}
			return nil
		}}, addr)
		stranger := startStranger(t, "connect", addr.String())
		accepted := begin(func() error {
			c, err := l.AcceptConn()
			if err == nil {
				defer c.Close()
				if p, _ := c.Peer(); p.UserID() != "0" {
					err = fmt.Errorf("accepted %v", p)
				}
			}
			return err
		})
		stranger.mustSay("turned away")
		stranger.end()
		expectEOF(t, dial(t, addr))
		must(t, <-accepted)
	})
}

func TestListenerSetAccessRefusesAnotherUser(t *testing.T) {
	overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
		done := welcomeAll(l)
		for _, c := range []struct {
			access ipc.Access
			said   string
		}{{ipc.OwnerOnly, "turned away"}, {ipc.Everyone, "welcome"}} {
			must(t, l.SetAccess(c.access, nil))
			stranger := startStranger(t, "connect", addr.String())
			stranger.mustSay(c.said)
			stranger.end()
		}
		must(t, l.Close())
		must(t, <-done)
	})
}

func TestAccessOwnerOnlyAdmitsRoot(t *testing.T) {
	overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		server := startForeignServer(t, addr)
		client, err := ipc.Dialer{Access: ipc.Everyone}.Dial(addr)
		must(t, err)
		defer client.Close()
		talkToEcho(t, client)
		server.end()
	})
}

func TestDialDoesNotTrustAServerOfAnotherUser(t *testing.T) {
	needsRoot(t)
	story(t)
	addr := nameAddr(t)
	server := startForeignServer(t, addr, "everyone")
	for range 2 {
		c, err := ipc.Dial(addr)
		matches(t, err, ipc.ErrUntrusted)
		if c != nil {
			t.Error("a connection comes with the error")
		}
		if who := strconv.Itoa(nobody); !strings.Contains(err.Error(), who) {
			t.Errorf("%q does not say who serves", err)
		}
	}
	asked := false
	client, err := ipc.Dialer{Access: ipc.Everyone, Check: func(p ipc.Peer) error {
		asked = p.UserID() == strconv.Itoa(nobody)
		return nil
	}}.Dial(addr)
	must(t, err)
	defer client.Close()
	if !asked {
		t.Error("Check was not told that the server is nobody's")
	}
	talkToEcho(t, client)
	server.end()
}

func TestPathIsTrustedAsTheFileSystemIs(t *testing.T) {
	needsRoot(t)
	story(t)
	addr := ipc.Path(openDir(t) + "/socket")
	server := startForeignServer(t, addr, "everyone")
	client := dial(t, addr)
	talkToEcho(t, client)
	server.end()
}

func TestTakeoverByAnotherUserCannotTakeALivePath(t *testing.T) {
	needsRoot(t)
	story(t)
	addr := ipc.Path(openDir(t) + "/socket")
	l := listenWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
	starter := startStranger(t, "race", addr.String())
	starter.mustSay("ready")
	starter.say("go")
	if said := starter.hear(); said == "won" {
		t.Error("a stranger has our path")
	}
	starter.say("done")
	starter.mustSay("ready")
	starter.end()
	serves(t, l, addr)
}

func TestSysListenConfigGroupOfTheSocketMayConnect(t *testing.T) {
	needsRoot(t)
	story(t)
	addr := ipc.Path(openDir(t) + "/socket")
	l := listenWith(t, ipc.ListenConfig{Sys: &ipc.SysListenConfig{Mode: 0o660, GID: nobody}}, addr)
	member := startStranger(t, "connect", addr.String())
	server := accept(t, l)
	send(t, server, "welcome")
	member.mustSay("welcome")
	member.end()
}

// childIsMember gives up being root and becomes a user whose only tie to the group is
// that it is one of its supplementary groups. Then it connects.
func childIsMember(p *parent, args []string) error {
	gid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	const another = nobody + 1
	err = errors.Join(syscall.Setgroups([]int{another + 1, gid}), syscall.Setgid(another), syscall.Setuid(another))
	if err != nil {
		return err
	}
	return childConnects(p, []string{args[0], "everyone"})
}

// TestAccessGroupMayConnect has a group of the server that a client has as its own, as one of
// several, and not at all.
func TestAccessGroupMayConnect(t *testing.T) {
	notEmulated(t)
	overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listenWith(t, ipc.ListenConfig{Group: strconv.Itoa(nobody)}, addr)
		serving := welcomeAll(l)
		member := startStranger(t, "connect", addr.String(), "everyone")
		member.mustSay("welcome")
		member.end()

		one := startChild(t, "member", addr.String(), strconv.Itoa(nobody))
		one.mustSay("welcome")
		one.end()
		stranger := startChild(t, "member", addr.String(), strconv.Itoa(nobody+5))
		if said := stranger.hear(); said != "turned away" && said != "permission denied" {
			t.Errorf("one that is not in the group hears %q", said)
		}
		stranger.end()
		expect(t, dial(t, addr), "welcome") // and the server's user needs no group
		must(t, l.Close())
		must(t, <-serving)
	})
}

// TestAccessGroupIsThatOfTheSocketFile needs no other user: one's own group will do.
func TestAccessGroupIsThatOfTheSocketFile(t *testing.T) {
	story(t)
	gid := os.Getgid()
	for _, policy := range policies {
		addr := ipc.Path(sockPath(t))
		l := listenWith(t, ipc.ListenConfig{Group: strconv.Itoa(gid), Takeover: policy}, addr)
		var st syscall.Stat_t
		must(t, syscall.Lstat(addr.String(), &st))
		if mode := modeOf(t, addr.String()); mode != 0o660 || int(st.Gid) != gid {
			t.Errorf("the socket has mode %o and group %d", mode, st.Gid)
		}
		serves(t, l, addr)
		must(t, l.Close())
	}
	addr := ipc.Path(sockPath(t))
	l := listenWith(t, ipc.ListenConfig{Group: strconv.Itoa(gid), Sys: &ipc.SysListenConfig{Mode: 0o620}}, addr)
	if mode := modeOf(t, addr.String()); mode != 0o620 {
		t.Errorf("the socket has mode %o", mode)
	}
	must(t, l.Close())
}

func TestAccessGroupThatIsBadIsRefused(t *testing.T) {
	story(t)
	addr := ipc.Path(sockPath(t))
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
		isOpError(t, err, "listen")
		if c.is != nil {
			matches(t, err, c.is)
		}
		for _, word := range c.words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q does not say %q", err, word)
			}
		}
		isGone(t, addr.String())
	}
}

// TestAccessGroupHasAName uses a name of the file of groups, if that has one of this process.
func TestAccessGroupHasAName(t *testing.T) {
	story(t)
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
		addr := ipc.Path(sockPath(t))
		l := listenWith(t, ipc.ListenConfig{Group: fields[0]}, addr)
		var st syscall.Stat_t
		must(t, syscall.Lstat(addr.String(), &st))
		if strconv.Itoa(int(st.Gid)) != gid {
			t.Errorf("the socket has group %d, and %s is %s", st.Gid, fields[0], gid)
		}
		serves(t, l, addr)
		must(t, l.Close())
		return
	}
	t.Skip("this process's group has no name there")
}

// ---------------------------------------------------------------------------
// The socket file

func TestListenModeOfTheSocketIsExact(t *testing.T) {
	together(t)
	underEachUmask(t, func(t *testing.T, dir string, start func(role string) *child) { start("umask").end() })
}

// underEachUmask tells a story under umasks of every kind, of this user and of
// another. A child that is started has as its arguments the umask, the folder, and
// one with a long path in it.
func underEachUmask(t *testing.T, tell func(t *testing.T, dir string, start func(role string) *child)) {
	for _, mask := range []string{"000", "022", "077", "0777"} {
		for _, user := range []string{"", fmt.Sprintf("%d:%d", nobody, nobody)} {
			name := "umask" + mask
			if user != "" {
				name += "OfNobody"
			}
			t.Run(name, func(t *testing.T) {
				story(t)
				if user != "" {
					needsRoot(t)
				}
				dir := openDir(t)
				long := filepath.Join(dir, strings.Repeat("folder", 20), strings.Repeat("another", 10))
				must(t, os.MkdirAll(long, 0o777))
				must(t, os.Chmod(long, 0o777))
				must(t, os.Chmod(filepath.Dir(long), 0o777))
				tell(t, dir, func(role string) *child {
					return startChildWith(t, exec.Cmd{Env: []string{childUser + "=" + user}}, role, mask, dir, long)
				})
			})
		}
	}
}

// childListensUnderUmask sets its umask and then checks the mode of every socket
// it makes, and that files which other goroutines make meanwhile, and the umask
// itself, are as the umask wants it.
func childListensUnderUmask(_ *parent, args []string) error {
	mask := sure(strconv.ParseUint(args[0], 8, 32))
	syscall.Umask(int(mask))

	bystanderEnds := repeatedly(func() error {
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
	story(t)
	path := sockPath(t)
	owner, group := os.Getuid(), os.Getgid()
	if owner == 0 {
		owner, group = nobody, nobody-1
	}
	for _, takeover := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverAlways} {
		for _, sys := range []*ipc.SysListenConfig{
			{Mode: 0o640, UID: owner, GID: group}, {UID: owner}, {GID: group}, {Mode: 0o777}, {},
		} {
			l, err := ipc.ListenConfig{Sys: sys, Takeover: takeover}.Listen(ipc.Path(path))
			must(t, err)
			want := *sys
			if want.Mode == 0 {
				want.Mode = 0o600
			}
			if want.UID == 0 {
				want.UID = os.Getuid()
			}
			var st syscall.Stat_t
			must(t, syscall.Lstat(path, &st))
			if sys.GID == 0 { // the system's choice: ours or the folder's
				want.GID = int(st.Gid)
			}
			if got := (ipc.SysListenConfig{Mode: modeOf(t, path), UID: int(st.Uid), GID: int(st.Gid)}); got != want {
				t.Errorf("%+v made %+v", *sys, got)
			}
			must(t, l.Close())
		}
	}
}

func TestSysListenConfigThatIsBadIsRefused(t *testing.T) {
	story(t)
	addr := pathAddr(t)
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
	story(t)
	dir := tempDir(t)
	for _, takeover := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever, ipc.TakeoverAlways} {
		l := listenWith(t, ipc.ListenConfig{Takeover: takeover}, ipc.Path(dir+"/socket"))
		modeOf(t, dir+"/socket")
		must(t, l.Close())
		if names := namesIn(t, dir); len(names) != 0 {
			t.Errorf("%v leaves %s", takeover, names)
		}
	}
}

func TestListenConfigKeepNameLeavesTheSocketAlone(t *testing.T) {
	story(t)
	dir := tempDir(t)
	path := dir + "/socket"
	l := listenWith(t, ipc.ListenConfig{KeepName: true}, ipc.Path(path))
	must(t, l.Close())
	if names := namesIn(t, dir); !slices.Equal(names, []string{"socket"}) {
		t.Fatalf("KeepName leaves %s", names)
	}
	_, err := ipc.Dial(ipc.Path(path))
	matches(t, err, ipc.ErrNoListener, syscall.ECONNREFUSED)
	serves(t, listen(t, ipc.Path(path)), ipc.Path(path)) // what was left is stale
}

func TestListenThatFailsLeavesNothing(t *testing.T) {
	story(t)
	if os.Getuid() == 0 {
		startStranger(t, "chown", openDir(t)).end()
	} else {
		must(t, childGivesSocketAway(nil, []string{tempDir(t)}))
	}

	dir := tempDir(t)
	_, err := ipc.Listen(ipc.Path(dir + "/missing/socket"))
	matches(t, err, fs.ErrNotExist)
	if !strings.Contains(err.Error(), dir+"/missing/socket") {
		t.Errorf("%q does not name the path", err)
	}
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	_, err = ipc.Listen(ipc.Path(dir + "/file/socket"))
	matches(t, err, syscall.ENOTDIR)
	l := listen(t, ipc.Path(dir+"/socket"))
	before := namesIn(t, dir)
	for _, takeover := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever} {
		_, err := ipc.ListenConfig{Takeover: takeover}.Listen(l.Addr().(ipc.Addr))
		matches(t, err, ipc.ErrAddrInUse)
	}
	if after := namesIn(t, dir); !slices.Equal(after, before) {
		t.Errorf("%s became %s", before, after)
	}
	must(t, os.Remove(dir+"/file"))
}

// childGivesSocketAway fails late in Listen, as it may not change the owner.
func childGivesSocketAway(_ *parent, args []string) error {
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
	killed := func(t *testing.T, path string) { startServer(t, ipc.Path(path)).kill() }
	for name, leave := range map[string]func(t *testing.T, path string){"Killed": killed, "Foreign": makeStale} {
		for _, policy := range policies {
			t.Run(name+policy.String(), func(t *testing.T) {
				story(t)
				path := openDir(t) + "/socket"
				leave(t, path)
				before, err := os.Lstat(path)
				must(t, err)
				l, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(path))
				if policy == ipc.TakeoverNever {
					matches(t, err, ipc.ErrAddrInUse)
					after, err := os.Lstat(path)
					must(t, err)
					if !os.SameFile(before, after) {
						t.Error("the socket was replaced")
					}
					must(t, os.Remove(path))
					os.Remove(path + ".lock") // of the one that was killed
					return
				}
				must(t, err)
				defer l.Close()
				serves(t, l, ipc.Path(path))
			})
		}
	}
}

func TestTakeoverRespectsAForeignServer(t *testing.T) {
	story(t)
	path := openDir(t) + "/socket"
	serveForeign(t, path)
	for range 3 {
		isRespected(t, path)
		isGone(t, path+".lock")
		expect(t, dial(t, ipc.Path(path)), "foreign")
	}
}

// isRespected checks that nobody takes the path of a live server who does not
// insist.
func isRespected(t *testing.T, path string) {
	t.Helper()
	before, err := os.Lstat(path)
	must(t, err)
	for _, policy := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever} {
		_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(path))
		matches(t, err, ipc.ErrAddrInUse)
	}
	after, err := os.Lstat(path)
	must(t, err)
	if !os.SameFile(before, after) {
		t.Fatal("the socket of a live server was replaced")
	}
}

func TestTakeoverAlwaysDisplacesAForeignServer(t *testing.T) {
	story(t)
	path := openDir(t) + "/socket"
	foreign := serveForeign(t, path)
	foreign.SetUnlinkOnClose(false)
	l := listenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, ipc.Path(path))
	serves(t, l, ipc.Path(path))
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
			makeStale(t, path+"-target")
			t.Cleanup(func() { os.Remove(path + "-target") })
			return os.Symlink(path+"-target", path)
		},
		"LinkToLiveSocket": func(t *testing.T, path string) error {
			serveForeign(t, path+"-target")
			return os.Symlink(path+"-target", path)
		},
	}
	for kind, make := range kinds {
		t.Run(kind, func(t *testing.T) {
			story(t)
			dir := openDir(t)
			path := dir + "/socket"
			must(t, make(t, path))
			names := namesIn(t, dir)
			before, err := os.Lstat(path)
			must(t, err)
			for _, policy := range policies {
				_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(path))
				if err == nil {
					t.Fatalf("%v replaces it", policy)
				}
				matches(t, err, ipc.ErrAddrInUse)
				after, err := os.Lstat(path)
				must(t, err)
				if !os.SameFile(before, after) || before.Mode() != after.Mode() ||
					before.Size() != after.Size() || !before.ModTime().Equal(after.ModTime()) {
					t.Errorf("%v changes it", policy)
				}
				if left := namesIn(t, dir); !slices.Equal(left, names) {
					t.Errorf("%v makes %s of %s", policy, left, names)
				}
			}
			must(t, os.Remove(path))
		})
	}
}

func TestListenLeavesTheLockOfAnotherProgramAlone(t *testing.T) {
	story(t)
	dir := openDir(t)
	path := dir + "/socket"
	must(t, os.WriteFile(path+".lock", []byte("what another program keeps there"), 0o640))
	before, err := os.Lstat(path + ".lock")
	must(t, err)
	for _, policy := range policies {
		l := listenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path(path))
		for _, policy := range policies { // it does as a lock, and one that must not be replaced
			_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(path))
			matches(t, err, ipc.ErrAddrInUse)
		}
		serves(t, l, ipc.Path(path))
		must(t, l.Close())
		if names := namesIn(t, dir); !slices.Equal(names, []string{"socket.lock"}) {
			t.Fatalf("%v leaves %s", policy, names)
		}
	}
	after, err := os.Lstat(path + ".lock")
	must(t, err)
	if !os.SameFile(before, after) || before.Mode() != after.Mode() || !before.ModTime().Equal(after.ModTime()) {
		t.Error("it was changed")
	}
	must(t, os.Remove(path+".lock"))
}

func TestTakeoverAlwaysLeavesNoGap(t *testing.T) {
	together(t)
	story(t)
	addr := pathAddr(t)
	var serving []<-chan error
	takeOver := func() *ipc.Listener {
		l := listenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, addr)
		serving = append(serving, serveEach(l, (*ipc.Conn).Close))
		return l
	}
	current := takeOver()

	var clients []func() error // end them
	var dials [2]atomic.Int64
	for i := range dials {
		clients = append(clients, repeatedly(func() error {
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
			if !holdsSoon(func() bool { return dials[i].Load() > before }) {
				t.Error("the client dials no more")
			}
		}
		must(t, current.Close())
		current = next
		if t.Failed() {
			break
		}
	}
	for _, end := range clients {
		must(t, end())
	}
	must(t, current.Close())
	for _, done := range serving {
		must(t, <-done)
	}
}

func TestTakeoverLeavesTheDisplacedListenerWhatItHas(t *testing.T) {
	story(t)
	addr := pathAddr(t)
	old := listen(t, addr)
	client, server := connect(t, old)
	waiting := dial(t, addr)
	l := listenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, addr)

	talk(t, client, server)
	talk(t, waiting, accept(t, old)) // had connected before
	for range 3 {
		serves(t, l, addr)
	}
	must(t, old.SetDeadline(time.Now().Add(-time.Hour)))
	_, err := old.Accept() // and nobody since
	timedOut(t, err)
	_, err = ipc.Listen(addr) // the path is protected as before
	matches(t, err, ipc.ErrAddrInUse)
	must(t, old.Close())
	_, err = ipc.Listen(addr)
	matches(t, err, ipc.ErrAddrInUse)
	serves(t, l, addr)
}

func TestListenerCloseLeavesSuccessorsSocketAlone(t *testing.T) {
	successors := map[string]func(t *testing.T, path string){
		"TakeoverAlways": func(t *testing.T, path string) {
			listenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, ipc.Path(path))
		},
		"RemovedAndListenedAt": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			serveForeign(t, path)
		},
		"RenamedOver": func(t *testing.T, path string) {
			serveForeign(t, path+"-new").SetUnlinkOnClose(false)
			must(t, os.Rename(path+"-new", path))
			t.Cleanup(func() { os.Remove(path) })
		},
		"FileInItsPlace": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.WriteFile(path, nil, 0o600))
			t.Cleanup(func() { os.Remove(path) })
		},
		"SocketAndLockRemoved": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.Remove(path+".lock"))
			listen(t, ipc.Path(path))
		},
	}
	for name, succeed := range successors {
		t.Run(name, func(t *testing.T) {
			story(t)
			path := openDir(t) + "/socket"
			old, err := ipc.Listen(ipc.Path(path))
			must(t, err)
			succeed(t, path)
			before, err := os.Lstat(path)
			must(t, err)
			must(t, old.Close())
			after, err := os.Lstat(path)
			must(t, err)
			if !os.SameFile(before, after) {
				t.Fatal("the successor's file is gone")
			}
			if before.Mode().Type() == fs.ModeSocket {
				must(t, dial(t, ipc.Path(path)).Close())
				_, err := ipc.Listen(ipc.Path(path)) // and it is respected
				matches(t, err, ipc.ErrAddrInUse)
			}
		})
	}
}

func TestListenerCloseAndTakeoverRace(t *testing.T) {
	together(t)
	for _, policy := range policies {
		t.Run(policy.String(), func(t *testing.T) {
			story(t)
			addr := pathAddr(t)
			for range 200 {
				old, err := ipc.Listen(addr)
				must(t, err)
				closing := begin(old.Close)
				var l *ipc.Listener
				eventually(t, "the path can be had", func() bool {
					l, err = ipc.ListenConfig{Takeover: policy}.Listen(addr)
					if err != nil {
						matches(t, err, ipc.ErrAddrInUse)
					}
					return err == nil
				})
				must(t, <-closing)
				serves(t, l, addr)
				must(t, l.Close())
				isGone(t, addr.String()+".lock")
			}
		})
	}
}

func TestTakeoversAtOnce(t *testing.T) {
	story(t)
	addr := pathAddr(t)
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
		must(t, dial(t, addr).Close())
		modeOf(t, addr.String())
		reached := 0
		for _, l := range listeners {
			must(t, l.SetDeadline(time.Now()))
			if c, err := l.Accept(); err == nil {
				must(t, c.Close())
				reached++
			}
		}
		for _, l := range listeners {
			must(t, l.SetDeadline(time.Time{}))
		}
		_, err := ipc.Listen(addr)
		matches(t, err, ipc.ErrAddrInUse)
		for _, l := range listeners {
			starting.Go(func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		starting.Wait()
		if names := namesIn(t, filepath.Dir(addr.String())); len(names) != 0 {
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
	must(t, os.MkdirAll(dir, 0o700))
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
	l := listen(t, addr)
	client, server := connect(t, l)
	if l.Addr() != addr || client.RemoteAddr() != addr || server.LocalAddr() != addr {
		t.Errorf("the addresses are %q, %q, %q; want %q", l.Addr(), client.RemoteAddr(), server.LocalAddr(), path)
	}
	talk(t, client, server)
	if mode := modeOf(t, path); mode != 0o600 {
		t.Errorf("the mode is %o", mode)
	}
	_, err := ipc.Listen(addr)
	matches(t, err, ipc.ErrAddrInUse)
	next := listenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, addr)
	must(t, l.Close())
	serves(t, next, addr)
	must(t, next.Close())
	isGone(t, path)
	_, err = ipc.Dial(addr)
	matches(t, err, ipc.ErrNoListener, fs.ErrNotExist)

	dead := startServer(t, addr)
	send(t, dial(t, addr), "reached")
	dead.kill()
	_, err = ipc.Dial(addr)
	matches(t, err, ipc.ErrNoListener)
	l = listen(t, addr)
	serves(t, l, addr)
	must(t, l.Close())
	if names := namesIn(t, filepath.Dir(path)); len(names) != 0 {
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
			story(t)
			worksAt(t, path(openDir(t)))
		})
	}
}

func TestPathThatIsRelative(t *testing.T) {
	long := strings.Repeat("d", 200) + "/" + strings.Repeat("d", 200)
	for name, folder := range map[string]string{
		"Short": "", "LongWorkingFolder": long, "LongPath": long, "LongBase": "",
	} {
		t.Run(name, func(t *testing.T) {
			story(t)
			dir := tempDir(t)
			must(t, os.MkdirAll(filepath.Join(dir, folder), 0o700))
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

			l := listen(t, ipc.Path(path))
			t.Chdir(os.TempDir()) // the path means something else now
			if l.Addr() != ipc.Path(path) {
				t.Errorf("the address is %v", l.Addr())
			}
			must(t, l.Close())
		})
	}
}

func TestPathOfAnAtSign(t *testing.T) {
	story(t)
	dir := tempDir(t)
	t.Chdir(dir)
	l := listen(t, ipc.Path("@socket"))
	modeOf(t, dir+"/@socket")
	addr, err := ipc.ParseAddr(l.Addr().String())
	must(t, err)
	serves(t, l, addr)
}

func TestListenRefusesABaseTooLongForItsLock(t *testing.T) {
	story(t)
	dir := tempDir(t)
	for n := 251; n <= 255; n++ {
		addr := ipc.Path(dir + "/" + strings.Repeat("b", n))
		_, err := ipc.Listen(addr)
		badAddr{addr, ipc.ErrNameTooLong, []string{strconv.Itoa(n) + " bytes", "limit is 250"}}.refused(t, "listen", err)
		_, err = ipc.Dial(addr) // a server of another kind might have it
		matches(t, err, ipc.ErrNoListener)
	}
}

// ---------------------------------------------------------------------------
// Errors

func TestListenAndDialErrorsTellTheSystemCall(t *testing.T) {
	story(t)
	addr := ipc.Path(openDir(t) + "/socket")

	_, err := ipc.Dial(addr)
	isErrno(t, err, "dial", "connect", syscall.ENOENT)
	matches(t, err, fs.ErrNotExist)
	makeStale(t, addr.String())
	_, err = ipc.Dial(addr)
	isErrno(t, err, "dial", "connect", syscall.ECONNREFUSED)
	_, err = ipc.ListenConfig{Takeover: ipc.TakeoverNever}.Listen(addr)
	isErrno(t, err, "listen", "bind", syscall.EADDRINUSE)
	_, err = ipc.Listen(ipc.Path(addr.String() + "/none"))
	isErrno(t, err, "listen", "open "+addr.String(), syscall.ENOTDIR)

	l := listen(t, addr)
	_, err = ipc.Listen(addr)
	isErrno(t, err, "listen", "bind", syscall.EADDRINUSE)

	client, server := connect(t, l)
	must(t, server.Close())
	_, err = client.Write([]byte("x"))
	isErrno(t, err, "write", "write", syscall.EPIPE)
	var oe *net.OpError
	if errors.As(err, &oe); oe.Addr != addr {
		t.Errorf("%v does not tell whom it was written to", err)
	}
}

func TestDialWithoutPermission(t *testing.T) {
	needsRoot(t)
	story(t)
	dir := openDir(t)
	must(t, os.Chmod(dir, 0o755))
	starter := startStranger(t, "race", dir+"/socket")
	starter.mustSay("ready")
	starter.say("go")
	if said := starter.hear(); !strings.HasPrefix(said, "failed") || !strings.Contains(said, "permission denied") ||
		!strings.Contains(said, dir+"/socket") {
		t.Errorf("in a folder of another user a starter says %q", said)
	}
	starter.say("done")
	starter.mustSay("ready")
	starter.end()
}

func TestListenConfigGreatestBacklogIsTheSystemsLimit(t *testing.T) {
	story(t)
	for _, backlog := range []int{math.MaxInt, math.MaxInt/2 + 1, math.MaxInt32} {
		addr := nameAddr(t)
		l := listenWith(t, ipc.ListenConfig{Backlog: backlog}, addr)
		for range 5 {
			c, err := ipc.Dialer{Timeout: soon}.Dial(addr)
			kept(t, c, err)
		}
		must(t, l.Close())
	}
}

func TestListenerAcceptSurvivesLackOfDescriptors(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		startChild(t, "crowded", addr.String()).end()
	})
}

// childRunsOutOfDescriptors accepts a client that waits, first without and then
// with a descriptor left for it.
func childRunsOutOfDescriptors(_ *parent, args []string) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = 64
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	addr := sure(ipc.ParseAddr(args[0]))
	l := sure(ipc.Listen(addr))
	client := sure(ipc.Dial(addr))
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
func childListens(p *parent, args []string) error {
	var sys ipc.SysListenConfig
	if args[1] != "-" {
		if _, err := fmt.Sscanf(args[1], "%o:%d", &sys.Mode, &sys.GID); err != nil {
			return err
		}
	}
	var last *ipc.Listener
	for _, name := range args[2:] {
		i := slices.IndexFunc(policies, func(policy ipc.Takeover) bool { return policy.String() == name })
		l, err := ipc.ListenConfig{Takeover: policies[i], Sys: &sys}.Listen(ipc.Path(args[0]))
		if err == nil && last != nil {
			err = last.Close()
		}
		switch {
		case err == nil:
			last = l
			p.say("listens")
		case errors.Is(err, ipc.ErrAddrInUse):
			p.say("in use")
		default:
			p.say("%v", err)
		}
	}
	p.hear()
	if last == nil {
		return nil
	}
	return last.Close()
}

// startListening starts a child of that user that listens, and returns what it says.
func startListening(t *testing.T, uid, gid int, path, mode string, policies ...ipc.Takeover) (*child, string) {
	t.Helper()
	needsRoot(t)
	args := []string{path, mode}
	for _, policy := range policies {
		args = append(args, policy.String())
	}
	c := startChildWith(t, exec.Cmd{Env: []string{fmt.Sprintf("%s=%d:%d", childUser, uid, gid)}}, "listen", args...)
	return c, c.hear()
}

// ---------------------------------------------------------------------------
// Locks of other users

// A crashed root leaves a lock and a socket of mode 0600 in the folder of the user that
// is to run the service.
func TestListenOwnFolderOutlivesLockOfRoot(t *testing.T) {
	notEmulated(t)
	needsRoot(t)
	for _, policy := range policies {
		for _, leaves := range []string{"Lock", "LockAndSocket"} {
			t.Run(policy.String()+leaves, func(t *testing.T) {
				story(t)
				path := openDir(t) + "/socket"
				must(t, os.Chmod(filepath.Dir(path), 0o700))
				must(t, os.Chown(filepath.Dir(path), nobody, nobody))
				crashed, said := startListening(t, 0, 0, path, "-", ipc.TakeoverStale)
				if said != "listens" {
					t.Fatal(said)
				}
				if policy == ipc.TakeoverStale && toldOfForeignSockets {
					server, said := startListening(t, nobody, nobody, path, "-", policy)
					if said != "in use" {
						t.Errorf("while root serves there, the user hears %q", said)
					}
					server.end()
				}
				crashed.kill()
				want := "listens"
				if leaves == "Lock" {
					must(t, os.Remove(path))
				} else if policy == ipc.TakeoverNever {
					want = "in use"
				} else if policy == ipc.TakeoverStale && !toldOfForeignSockets {
					want = "permission denied" // it cannot be told whether the socket is alive
				}
				server, said := startListening(t, nobody, nobody, path, "-", policy)
				if !strings.Contains(said, want) {
					t.Errorf("the user hears %q, want %q", said, want)
				}
				server.end()
				if want == "listens" {
					isGone(t, path)
					isGone(t, path+".lock")
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
	needsRoot(t)
	story(t)
	dir := openDir(t)
	must(t, os.Chown(dir, nobody, nobody))
	must(t, os.WriteFile(dir+"/socket.lock", []byte("data"), 0o600))
	for _, policy := range policies {
		server, said := startListening(t, nobody, nobody, dir+"/socket", "-", policy)
		if !strings.Contains(said, "permission denied") || !strings.Contains(said, "socket.lock") {
			t.Errorf("%v: the user hears %q", policy, said)
		}
		server.end()
	}
	if names := namesIn(t, dir); !slices.Equal(names, []string{"socket.lock"}) {
		t.Errorf("the folder has %s", names)
	}
	must(t, os.Remove(dir+"/socket.lock"))
}

// The users of a folder that several may write to take turns there, if the socket is
// for all of them.
func TestListenSharedFolderSharesLock(t *testing.T) {
	needsRoot(t)
	const a, b, group = nobody - 1, nobody - 2, nobody - 3
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
			story(t)
			dir := openDir(t)
			path := dir + "/socket"
			must(t, os.Chown(dir, a, group))
			must(t, os.Chmod(dir, c.folder))
			crashed, said := startListening(t, a, group, path, c.socket, ipc.TakeoverStale)
			if said != "listens" {
				t.Fatal(said)
			}
			st, err := os.Lstat(path + ".lock")
			must(t, err)
			if st.Mode().Perm() != c.lock {
				t.Errorf("the lock has mode %v, want %v", st.Mode(), c.lock)
			}
			other, said := startListening(t, b, group, path, c.socket, ipc.TakeoverStale)
			if said == "listens" {
				t.Error("another user takes a live server's path")
			}
			other.end()
			crashed.kill()
			other, said = startListening(t, b, group, path, c.socket, ipc.TakeoverStale)
			if !strings.Contains(said, c.takeover) {
				t.Errorf("another user hears %q after a crash, want %q", said, c.takeover)
			}
			other.end()
			os.Remove(path)
			os.Remove(path + ".lock")
		})
	}
}

func TestListenLockFollowsGroup(t *testing.T) {
	needsRoot(t)
	story(t)
	dir := openDir(t)
	must(t, os.Chown(dir, 0, nobody))
	must(t, os.Chmod(dir, 0o770))
	for _, c := range []struct {
		group  int
		shared bool
	}{{nobody, true}, {nobody - 1, false}} { // who may not write to the folder has no use for the lock
		l := listenWith(t, ipc.ListenConfig{Sys: &ipc.SysListenConfig{Mode: 0o660, GID: c.group}}, ipc.Path(dir+"/socket"))
		var st syscall.Stat_t
		must(t, syscall.Lstat(dir+"/socket.lock", &st))
		shared := int(st.Gid) == c.group && st.Mode&0o777 == 0o660
		if shared != c.shared || !shared && st.Mode&0o777 != 0o600 {
			t.Errorf("a socket of group %d has a lock of group %d, mode %o", c.group, st.Gid, st.Mode)
		}
		must(t, l.Close())
	}
}

// ---------------------------------------------------------------------------
// What is in the way

func TestListenLockPathThatIsNoFile(t *testing.T) {
	for kind, make := range map[string]func(t *testing.T, path string) error{
		"FIFO":   func(t *testing.T, path string) error { makeFIFOAt(t, path); return nil },
		"Folder": func(_ *testing.T, path string) error { return os.Mkdir(path, 0o777) },
		"Link":   func(_ *testing.T, path string) error { return os.Symlink("/dev/null", path) },
		"Socket": func(t *testing.T, path string) error { makeStale(t, path); return nil },
	} {
		t.Run(kind, func(t *testing.T) {
			story(t)
			dir := openDir(t)
			must(t, make(t, dir+"/socket.lock"))
			before, err := os.Lstat(dir + "/socket.lock")
			must(t, err)
			for _, policy := range policies {
				_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(dir + "/socket"))
				matches(t, err, ipc.ErrAddrInUse)
				if err == nil || !strings.Contains(err.Error(), dir+"/socket.lock") {
					t.Errorf("%v: %v does not name what is in the way", policy, err)
				}
			}
			if names := namesIn(t, dir); !slices.Equal(names, []string{"socket.lock"}) {
				t.Errorf("the folder has %s", names)
			}
			after, err := os.Lstat(dir + "/socket.lock")
			must(t, err)
			if !os.SameFile(before, after) {
				t.Error("it was replaced")
			}
			must(t, os.Remove(dir+"/socket.lock"))
		})
	}
}

// A FIFO comes in the place of the folder, and of the lock. Close waits for neither.
func TestListenerCloseFolderReplacedByFIFO(t *testing.T) {
	for _, policy := range policies {
		t.Run(policy.String(), func(t *testing.T) {
			story(t)
			dir := tempDir(t)
			must(t, os.Mkdir(dir+"/folder", 0o700))
			l := listenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path(dir+"/folder/socket"))
			must(t, os.Rename(dir+"/folder", dir+"/moved"))
			makeFIFOAt(t, dir+"/folder")
			_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(dir + "/folder/socket"))
			matches(t, err, syscall.ENOTDIR)
			err = l.Close()
			if followsFolders {
				must(t, err)
				if names := namesIn(t, dir+"/moved"); len(names) != 0 {
					t.Errorf("Close leaves %s in the folder", names)
				}
			}
			must(t, os.RemoveAll(dir+"/moved"))
			must(t, os.Remove(dir+"/folder"))
		})
	}
}

func TestListenerCloseLockReplacedByFIFO(t *testing.T) {
	story(t)
	path := openDir(t) + "/socket"
	l := listen(t, ipc.Path(path))
	must(t, os.Remove(path+".lock"))
	makeFIFOAt(t, path+".lock")
	must(t, l.Close())
	isGone(t, path)
	must(t, os.Remove(path+".lock"))
}

func makeFIFOAt(t *testing.T, path string) {
	t.Helper()
	if err := ipc.Mkfifo(path, 0o666); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("this system makes no FIFOs")
	} else {
		must(t, err)
	}
}

// A cleaner of temporary folders takes the lock away. The socket is this listener's
// all the same.
func TestListenerCloseLockGoneRemovesSocket(t *testing.T) {
	for _, policy := range policies {
		t.Run(policy.String(), func(t *testing.T) {
			story(t)
			dir := tempDir(t)
			l := listenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path(dir+"/socket"))
			must(t, os.Remove(dir+"/socket.lock"))
			must(t, l.Close())
			if names := namesIn(t, dir); len(names) != 0 {
				t.Errorf("Close leaves %s", names)
			}
		})
	}
}

func TestListenerCloseFolderGone(t *testing.T) {
	story(t)
	dir := tempDir(t)
	must(t, os.Mkdir(dir+"/folder", 0o700))
	l := listen(t, ipc.Path(dir+"/folder/socket"))
	must(t, os.RemoveAll(dir+"/folder"))
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
	story(t)
	dir := openDir(t)
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	for path, want := range map[string]error{
		dir + "/missing/socket":  fs.ErrNotExist,
		"missing/socket":         fs.ErrNotExist,
		dir + "/file/socket":     syscall.ENOTDIR,
		dir + "/file/sub/socket": syscall.ENOTDIR,
	} {
		for _, policy := range policies {
			_, err := ipc.ListenConfig{Takeover: policy}.Listen(ipc.Path(path))
			matches(t, err, want)
			if text := fmt.Sprint(err); !strings.Contains(text, path) || strings.Contains(text, ".lock") {
				t.Errorf("%v: %q", policy, text)
			}
		}
	}
	must(t, os.Remove(dir+"/file"))

	must(t, os.Chmod(dir, 0o555))
	server, said := startListening(t, nobody, nobody, dir+"/socket", "-", ipc.TakeoverStale) // root may write anywhere
	if !strings.Contains(said, "permission denied") || !strings.Contains(said, dir+"/socket") || strings.Contains(said, ".lock") {
		t.Errorf("a user hears %q", said)
	}
	server.end()
}

// ---------------------------------------------------------------------------
// The folders of an address that belongs to one user

func TestUserAddrIsInTheRuntimeDir(t *testing.T) {
	story(t)
	dir := ownRuntimeDir(t)
	if len(dir) > 80 {
		t.Skip("the temporary folder has a long name")
	}
	addr, err := ipc.UserAddr("agent")
	if want := ipc.Path(dir + "/agent"); addr != want || err != nil {
		t.Errorf("it is %v, %v; want %v", addr, err, want)
	}
}

// asUser starts a child as that user, to say what its address of the name is with the
// value of XDG_RUNTIME_DIR.
func asUser(t *testing.T, uid int, runtimeDir, name string) string {
	t.Helper()
	c := startChildWith(t, exec.Cmd{Env: []string{
		fmt.Sprintf("%s=%d:%d", childUser, uid, uid), "XDG_RUNTIME_DIR=" + runtimeDir,
	}}, "useraddr", name)
	said := c.hear()
	c.end()
	return said
}

// strangeUser returns the number of a user who has neither a folder for UserAddr nor
// else anything, and that folder. It is removed when the test ends.
func strangeUser(t *testing.T) (uid int, dir string) {
	t.Helper()
	needsRoot(t)
	if _, err := os.Stat("/tmp"); err != nil {
		t.Skip("there is no /tmp: ", err)
	}
	for uid = 500123; ; uid++ {
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
	story(t)
	uid, dir := strangeUser(t)
	want := dir + "/agent"
	others := openDir(t)
	open, link, own := others+"/open", others+"/link", others+"/own"
	for _, d := range []string{open, own} {
		must(t, os.Mkdir(d, 0o700))
		must(t, os.Chown(d, uid, uid))
	}
	must(t, os.Chmod(open, 0o750))
	must(t, os.Symlink(own, link))
	must(t, os.Mkdir(others+"/roots", 0o700))
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
	must(t, os.Remove(link))
	var st syscall.Stat_t
	must(t, syscall.Lstat(dir, &st))
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
	story(t)
	uid, dir := strangeUser(t)
	own := openDir(t)
	must(t, os.Chown(own, uid, uid))
	must(t, os.Chmod(own, 0o700))
	for what, put := range map[string]func() error{
		"belongs to another user": func() error { return os.Mkdir(dir, 0o700) },
		"is open to other users":  func() error { return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, uid, uid), os.Chmod(dir, 0o710)) },
		"is not a folder":         func() error { return os.Symlink(own, dir) },
	} {
		must(t, put())
		if said := asUser(t, uid, "", "agent"); !strings.Contains(said, what) || !strings.Contains(said, dir) {
			t.Errorf("of a folder that %s it says %q", what, said)
		}
		must(t, os.Remove(dir))
	}
}

// ---------------------------------------------------------------------------
// Messages

func TestListenMsgOwnerOnlyRefusesAnotherUser(t *testing.T) {
	overEachFraming(t, func(t *testing.T) {
		overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := listenMsg(t, addr)
			a, _ := msgPair(t)
			accepting := begin(func() error {
				c, err := l.Accept()
				if err == nil {
					defer c.Close()
					sendMsg(t, c, "mine")
				}
				return err
			})
			stranger := startStranger(t, "message", addr.String(), asFramed(a))
			if said := stranger.hear(); said != "permission denied" && said != "turned away" {
				t.Errorf("the stranger says %q", said)
			}
			stranger.end()
			expectMsg(t, dialMsg(t, addr), "mine") // the first that Accept has seen
			must(t, <-accepting)
		})
	})
}

func TestListenMsgEveryoneAdmitsAnotherUser(t *testing.T) {
	overEachFraming(t, func(t *testing.T) {
		overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
			l := listenMsgWith(t, ipc.ListenConfig{Access: ipc.Everyone}, addr)
			a, _ := msgPair(t)
			stranger := startStranger(t, "message", addr.String(), asFramed(a))
			server := acceptMsg(t, l)
			if uid, ok := peerOf(t, server).UID(); uid != nobody || !ok {
				t.Errorf("the peer's user is %d, %v", uid, ok)
			}
			expectMsg(t, server, "hello from a child")
			sendMsg(t, server, "welcome")
			stranger.mustSay("welcome")
			stranger.end()
		})
	})
}

func TestListenMsgModeOfTheSocketIsExact(t *testing.T) {
	overEachFraming(t, func(t *testing.T) {
		path := sockPath(t)
		l := listenMsg(t, ipc.Path(path))
		if mode := modeOf(t, path); mode != 0o600 {
			t.Errorf("mode is %o", mode)
		}
		must(t, l.Close())
		isGone(t, path)
		l = listenMsgWith(t, ipc.ListenConfig{Access: ipc.Everyone}, ipc.Path(path))
		if mode := modeOf(t, path); mode != 0o666 {
			t.Errorf("mode is %o", mode)
		}
		must(t, l.Close())
		isGone(t, path)
		isGone(t, path+".lock")
	})
}

func TestListenMsgTakeoverAlwaysDisplaces(t *testing.T) {
	overEachFraming(t, func(t *testing.T) {
		addr := pathAddr(t)
		old := listenMsg(t, addr)
		client, server := msgConnect(t, old)
		successor := listenMsgWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, addr)
		msgTalk(t, client, server) // the old one keeps what it has
		must(t, old.Close())
		client, server = msgConnect(t, successor)
		msgTalk(t, client, server)
		must(t, successor.Close())
	})
}
