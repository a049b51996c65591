//go:build unix

// What is true of every Unix: socket files, users and descriptors.
package ipc_test

import (
	"bytes"
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
	countDescriptors = func() int { return len(descriptors()) }
	asChild = becomeUser
	badAddrs = append(badAddrs,
		badAddr{addr: ipc.Path("folder/"), words: []string{"folder"}},
		badAddr{addr: ipc.Path("/"), words: []string{"folder"}},
		badAddr{addr: ipc.Path("."), words: []string{"folder"}},
		badAddr{addr: ipc.Path("a/.."), words: []string{"folder"}},
		badAddr{ipc.Path("/" + strings.Repeat("p", 256)), ipc.ErrNameTooLong, []string{"256 bytes", "limit is 255"}},
		badAddr{ipc.Path(strings.Repeat("/folder", 1000)), ipc.ErrNameTooLong, []string{"7000 bytes", "limit is "}},
		badAddr{ipc.Path("/" + strings.Repeat("ü", 128)), ipc.ErrNameTooLong, []string{"256 bytes"}}, // bytes, not letters
	)
	for role, play := range map[string]func(*parent, []string) error{
		"umask":    childListensUnderUmask,
		"chown":    childGivesSocketAway,
		"crowded":  childRunsOutOfDescriptors,
		"inherits": childLooksForDescriptors,
		"adopts":   childAdoptsListener,
		"member":   childIsMember,
	} {
		roles[role] = play
	}
}

// descriptors returns the numbers of the descriptors that are open. Where the
// system lists them it asks for no others, which is much faster.
func descriptors() (open []int) {
	candidates := make([]int, 0, 4096)
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		for _, e := range entries { // one of them is closed again by now
			if fd, err := strconv.Atoi(e.Name()); err == nil {
				candidates = append(candidates, fd)
			}
		}
	} else {
		for fd := range cap(candidates) {
			candidates = append(candidates, fd)
		}
	}
	for _, fd := range candidates {
		var st syscall.Stat_t
		if syscall.Fstat(fd, &st) == nil {
			open = append(open, fd)
		}
	}
	return open
}

// ---------------------------------------------------------------------------
// Users

const (
	childUser = "IPC_TEST_USER" // "uid:gid" that a child of root is to run as
	nobody    = 12345           // has no account, and is not the overflow id of a user namespace
)

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
}

// startStranger starts a child that another user runs.
func startStranger(t *testing.T, role string, args ...string) *child {
	t.Helper()
	needsRoot(t)
	return startChildWith(t, exec.Cmd{Env: []string{fmt.Sprintf("%s=%d:%d", childUser, nobody, nobody)}}, role, args...)
}

// startForeignServer starts one that echoes what it is sent at the address.
func startForeignServer(t *testing.T, addr ipc.Addr, access ...string) *child {
	t.Helper()
	c := startStranger(t, "serve", append([]string{addr.String()}, access...)...)
	c.mustSay("serving")
	return c
}

// becomeUser gives up being root, in a child that is to be somebody else. The
// program file need not be within that user's reach then.
func becomeUser() error {
	who := os.Getenv(childUser)
	if who == "" {
		return nil
	}
	user, group, _ := strings.Cut(who, ":")
	uid, err := strconv.Atoi(user)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(group)
	if err != nil {
		return err
	}
	return errors.Join(syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(uid))
}

// openDir returns a folder of a short path in which every user may do anything,
// for programs that cannot cope with long ones. No file must be left in it.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ipc")
	if err != nil {
		dir, err = os.MkdirTemp("", "ipc")
	}
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o777))
	leavesNoFiles(t, dir)
	return dir
}

// overEachOpenAddr is overEachAddr for stories with several users.
func overEachOpenAddr(t *testing.T, tell func(t *testing.T, addr ipc.Addr)) {
	needsRoot(t)
	t.Run("Path", func(t *testing.T) { story(t); tell(t, ipc.Path(openDir(t)+"/socket")) })
	t.Run("Name", func(t *testing.T) { story(t); tell(t, nameAddr(t)) })
}

func TestOwnerOnlyRefusesAnotherUser(t *testing.T) {
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

func TestEveryoneAdmitsAnotherUser(t *testing.T) {
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

func TestCheckCanRefuseAnotherUser(t *testing.T) {
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

func TestSetAccessRefusesAnotherUser(t *testing.T) {
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

func TestRootIsAdmittedByAnotherUser(t *testing.T) {
	overEachOpenAddr(t, func(t *testing.T, addr ipc.Addr) {
		server := startForeignServer(t, addr)
		client, err := ipc.Dialer{Access: ipc.Everyone}.Dial(addr)
		must(t, err)
		defer client.Close()
		talkToEcho(t, client)
		server.end()
	})
}

func TestServerOfAnotherUserIsNotTrusted(t *testing.T) {
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

func TestAnotherUserCannotTakeALivePath(t *testing.T) {
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

func TestGroupOfTheSocketMayConnect(t *testing.T) {
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

// TestGroupMayConnect has a group of the server that a client has as its own, as one of
// several, and not at all.
func TestGroupMayConnect(t *testing.T) {
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

// TestGroupIsThatOfTheSocketFile needs no other user: one's own group will do.
func TestGroupIsThatOfTheSocketFile(t *testing.T) {
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

func TestBadGroupIsRefused(t *testing.T) {
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

// TestGroupHasAName uses a name of the file of groups, if that has one of this process.
func TestGroupHasAName(t *testing.T) {
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

// sockPath returns a path where nothing is, which fits into a socket address: the
// kernel tells it as it is.
func sockPath(t *testing.T) string { return openDir(t) + "/socket" }

// modeOf returns the mode of the socket file.
func modeOf(t *testing.T, path string) fs.FileMode {
	t.Helper()
	st, err := os.Lstat(path)
	must(t, err)
	if st.Mode().Type() != fs.ModeSocket {
		t.Fatalf("%s is %v, no socket", path, st.Mode())
	}
	return st.Mode().Perm()
}

func isGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", path, err)
	}
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// serveForeign listens at the path as any program does that knows nothing of
// this package, and accepts clients.
func serveForeign(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "foreign")
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l
}

// makeStale leaves a socket file as a crash does.
func makeStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
}

func TestModeOfTheSocketIsExact(t *testing.T) {
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
					// The sticky bit protects a socket from cleaners: see takeover_linux_test.go.
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

func TestBadSysListenConfigIsRefused(t *testing.T) {
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

func TestCloseLeavesNothing(t *testing.T) {
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

func TestKeepNameLeavesTheSocketAlone(t *testing.T) {
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

var policies = []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever, ipc.TakeoverAlways}

func TestStaleSocketIsReplacedAsThePolicySays(t *testing.T) {
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

func TestForeignServerIsRespected(t *testing.T) {
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

func TestForeignServerCanBeDisplaced(t *testing.T) {
	story(t)
	path := openDir(t) + "/socket"
	foreign := serveForeign(t, path)
	foreign.SetUnlinkOnClose(false)
	l := listenWith(t, ipc.ListenConfig{Takeover: ipc.TakeoverAlways}, ipc.Path(path))
	serves(t, l, ipc.Path(path))
}

func TestFilesThatAreNoSocketsAreUntouched(t *testing.T) {
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

func TestLockOfAnotherProgramIsLeftAlone(t *testing.T) {
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

func TestDisplacedListenerKeepsWhatItHas(t *testing.T) {
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

func TestCloseLeavesSuccessorsSocketAlone(t *testing.T) {
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

func TestCloseAndTakeoverRace(t *testing.T) {
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

func TestManyTakeoversAtOnce(t *testing.T) {
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

func TestPathsLongerThanASocketAddress(t *testing.T) {
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

func TestRelativePaths(t *testing.T) {
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

func TestBaseTooLongForItsLockIsRefused(t *testing.T) {
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

// isErrno checks that err is a *net.OpError around an *os.SyscallError of that
// call around that errno.
func isErrno(t *testing.T, err error, op, call string, errno syscall.Errno) {
	t.Helper()
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != op || oe.Net != "unix" {
		t.Errorf("%#v is not a *net.OpError of %s", err, op)
	}
	var se *os.SyscallError
	if !errors.As(err, &se) || se.Syscall != call {
		t.Errorf("%v: %#v is not an *os.SyscallError of %s", err, se, call)
	}
	var got syscall.Errno
	if !errors.As(err, &got) || got != errno {
		t.Errorf("%v: errno is %v, want %v", err, got, errno)
	}
}

func TestErrorsTellTheSystemCall(t *testing.T) {
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

func TestServerWithoutPermission(t *testing.T) {
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

func TestGreatestBacklogIsTheSystemsLimit(t *testing.T) {
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

func TestAcceptSurvivesLackOfDescriptors(t *testing.T) {
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
// Descriptors

func TestDescriptorsAreCloseOnExec(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		before := descriptors()
		l := listen(t, addr)
		connect(t, l)
		dial(t, addr)
		pair(t)
		f, err := l.File()
		kept(t, f, err)
		adopted, err := ipc.FileListener(f)
		kept(t, adopted, err)
		if n := areCloseOnExec(t, before); n < 8 {
			t.Fatalf("only %d new descriptors", n)
		}
	})
}

// areCloseOnExec starts a child that must not have the descriptors that came
// since, and returns their number.
func areCloseOnExec(t *testing.T, before []int) int {
	t.Helper()
	var args []string
	for _, fd := range descriptors() {
		if !slices.Contains(before, fd) {
			var st syscall.Stat_t
			must(t, syscall.Fstat(fd, &st))
			args = append(args, fmt.Sprintf("%d %d %d", fd, st.Dev, st.Ino))
		}
	}
	startChild(t, "inherits", args...).end()
	return len(args)
}

// childLooksForDescriptors fails if it has one of its parent's.
func childLooksForDescriptors(_ *parent, args []string) error {
	for _, arg := range args {
		fd, err := strconv.Atoi(strings.Fields(arg)[0])
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if syscall.Fstat(fd, &st) == nil && fmt.Sprintf("%d %d %d", fd, st.Dev, st.Ino) == arg {
			return fmt.Errorf("inherited descriptor %d", fd)
		}
	}
	return nil
}

func TestConnectionsThatAreDroppedAreCollected(t *testing.T) {
	areCollected(t, func() {
		a, b, err := ipc.Pair()
		must(t, err)
		must(t, a.SetReadDeadline(time.Now().Add(time.Hour))) // one that joined the poller, one that did not
		_, _ = a, b
	})
}

func TestListenersThatAreDroppedAreCollected(t *testing.T) {
	dir := t.TempDir() // what they leave there is stale
	n := 0
	areCollected(t, func() {
		n++
		_, err := ipc.Listen(ipc.Path(fmt.Sprint(dir, "/", n)))
		must(t, err)
	})
	for i := range n {
		must(t, listen(t, ipc.Path(fmt.Sprint(dir, "/", i+1))).Close())
	}
	if names := namesIn(t, dir); len(names) > 0 {
		t.Errorf("%s are left", names)
	}
}

// A peer need not send a whole frame.
func TestFilesOfHalfAFrameEndWithClose(t *testing.T) {
	overFrames(t, func(t *testing.T, c *ipc.MsgConn, stream *ipc.Conn) {
		for range 3 {
			r, w := pipe(t)
			f, err := w.File()
			must(t, err)
			raw, err := f.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) {
				_, err = stream.WriteMsg([]byte{0, 0}, syscall.UnixRights(int(fd)))
			}))
			must(t, err)
			must(t, errors.Join(f.Close(), w.Close()))
			must(t, c.SetReadDeadline(time.Now().Add(brief)))
			_, err = c.RecvFiles(1)
			timedOut(t, err)
			must(t, c.Close())
			expectEOF(t, r) // nobody has the other end
			must(t, r.Close())
			c, stream = frameEnds(t)
		}
		must(t, errors.Join(c.Close(), stream.Close()))
	})
}

// areCollected makes ends again and again that nobody closes.
func areCollected(t *testing.T, drop func()) {
	story(t)
	before := openDescriptors()
	for range 50 {
		drop()
	}
	eventually(t, "the garbage collector closes them", func() bool {
		runtime.GC()
		return openDescriptors() <= before
	})
}

func TestSyscallConnReachesTheDescriptor(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client, server := connect(t, l)
		option := func(c syscall.Conn, opt int) (value int) {
			t.Helper()
			raw, err := c.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) {
				value, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, opt)
			}))
			must(t, err)
			return value
		}
		for _, c := range []syscall.Conn{l, client, server} {
			if typ := option(c, syscall.SO_TYPE); typ != syscall.SOCK_STREAM {
				t.Errorf("socket type is %d", typ)
			}
		}

		raw, err := client.SyscallConn()
		must(t, err)
		var text string
		reading := begin(func() error {
			buf := make([]byte, 10)
			return raw.Read(func(fd uintptr) bool {
				n, err := syscall.Read(int(fd), buf)
				text = string(buf[:max(n, 0)])
				return err != syscall.EAGAIN
			})
		})
		send(t, server, "raw")
		must(t, <-reading)
		if text != "raw" {
			t.Errorf("read %q", text)
		}
		must(t, raw.Write(func(fd uintptr) bool {
			_, err = syscall.Write(int(fd), []byte("wild"))
			return true
		}))
		must(t, err)
		expect(t, server, "wild")

		must(t, client.SetReadDeadline(time.Now().Add(brief)))
		timedOut(t, raw.Read(func(uintptr) bool { return false }))
		must(t, client.SetReadDeadline(time.Time{}))
		reading = begin(func() error { return raw.Read(func(uintptr) bool { return false }) })
		must(t, client.Close())
		matches(t, <-reading, net.ErrClosed)
	})
}

func TestBufferSizes(t *testing.T) {
	story(t)
	a, _ := pair(t)
	const size = 100_000
	must(t, a.SetWriteBuffer(size))
	must(t, a.SetReadBuffer(size))
	raw, err := a.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		for _, opt := range []int{syscall.SO_SNDBUF, syscall.SO_RCVBUF} {
			if n, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, opt); n < size || err != nil {
				t.Errorf("option %d is %d, %v", opt, n, err)
			}
		}
	}))
	if a.SetWriteBuffer(-1) == nil || a.SetReadBuffer(-1) == nil {
		t.Error("a negative size is accepted")
	}
}

func TestBufferSizesHaveAFloor(t *testing.T) {
	story(t)
	a, b := pair(t)
	option := func(c *ipc.Conn, opt int) (n int) {
		raw, err := c.SyscallConn()
		must(t, err)
		var e error
		must(t, raw.Control(func(fd uintptr) { n, e = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, opt) }))
		must(t, e)
		return n
	}
	for opt, set := range map[int]func(c *ipc.Conn, n int) error{
		syscall.SO_SNDBUF: (*ipc.Conn).SetWriteBuffer,
		syscall.SO_RCVBUF: (*ipc.Conn).SetReadBuffer,
	} {
		must(t, set(b, 4096))
		floor := option(b, opt)
		for _, n := range []int{0, 1, 4095} {
			must(t, set(a, n))
			if got := option(a, opt); got != floor {
				t.Errorf("option %d is %d for %d, and %d for 4096", opt, got, n, floor)
			}
		}
	}
	send(t, a, "more than a byte goes at once")
	expect(t, b, "more than a byte goes at once")
}

func TestHalfCloseAfterThePeersClose(t *testing.T) {
	for name, first := range map[string]func(*ipc.Conn) error{
		"CloseRead":  (*ipc.Conn).CloseRead,
		"CloseWrite": (*ipc.Conn).CloseWrite,
	} {
		t.Run(name, func(t *testing.T) {
			overEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
				send(t, b, "unread")
				must(t, b.Close())
				must(t, errors.Join(a.SetReadBuffer(8<<10), a.SetWriteBuffer(8<<10)))
				must(t, first(a))
				must(t, a.CloseRead())
				expectEOF(t, a)
				must(t, a.CloseWrite())
				must(t, a.CloseWrite()) // it is done already
				must(t, errors.Join(a.SetReadBuffer(8<<10), a.SetWriteBuffer(8<<10)))
				_, err := a.Write([]byte("x"))
				matches(t, err, syscall.EPIPE)
				must(t, a.Close())
				matches(t, a.CloseRead(), net.ErrClosed)
				matches(t, a.CloseWrite(), net.ErrClosed)
			})
		})
	}
}

func TestHalfCloseTwice(t *testing.T) {
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		must(t, errors.Join(b.CloseWrite(), a.CloseRead(), a.CloseRead()))
		expectEOF(t, a)
		must(t, errors.Join(b.CloseRead(), a.CloseWrite(), a.CloseWrite()))
		expectEOF(t, b)
	})
}

func TestCloseReadIsTheEndOfReading(t *testing.T) {
	overEachConn(t, func(t *testing.T, a, b *ipc.Conn) {
		flooding := flood(a)
		expect(t, b, string(make([]byte, 100)))
		must(t, b.CloseRead())
		for range 200 { // whatever the peer goes on to send
			expectEOF(t, b)
			if n, err := b.ReadBuffers([][]byte{make([]byte, 10)}); n != 0 || err != io.EOF {
				t.Fatalf("read %d, %v; want io.EOF itself", n, err)
			}
			runtime.Gosched()
		}
		send(t, b, "the other way")
		expect(t, a, "the other way")
		must(t, a.Close()) // not every system tells it that nobody reads
		if err := <-flooding; !errors.Is(err, net.ErrClosed) {
			matches(t, err, syscall.EPIPE)
		}
	})
}

func TestFileIsADuplicate(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := listen(t, addr)
		client, server := connect(t, l)
		f, err := client.File()
		must(t, err)
		talk(t, client, server) // the original still waits and wakes
		must(t, client.SetReadDeadline(time.Now().Add(brief)))
		_, err = client.Read(make([]byte, 1))
		timedOut(t, err)
		must(t, client.Close())

		adopted, err := ipc.FileConn(f)
		must(t, err)
		defer adopted.Close()
		must(t, f.Close())
		talk(t, adopted, server)
		// Of a long path the kernel knows a temporary name.
		if want := addrOfSocket(l); len(want) <= 103 && adopted.RemoteAddr().String() != want {
			t.Errorf("the address is %v, want %v", adopted.RemoteAddr(), want)
		}
		isProcess(t, peerOf(t, adopted), os.Getpid())
		reading := beginRead(adopted)
		awaitParked(t, "(*Conn).Read", 1)
		must(t, adopted.Close())
		matches(t, <-reading, net.ErrClosed)
		expectEOF(t, server) // not before the last duplicate was closed
	})
}

func TestFileConnAdoptsForeignSockets(t *testing.T) {
	story(t)
	a, b := adoptPair(t, syscall.SOCK_STREAM, ipc.FileConn)
	talk(t, a, b)
	must(t, a.SetReadDeadline(time.Now().Add(brief)))
	_, err := a.Read(make([]byte, 1))
	timedOut(t, err)
}

// adoptPair adopts the ends of a socket pair of that type, made as C programs make
// it.
func adoptPair[C io.Closer](t *testing.T, typ int, adopt func(*os.File) (C, error)) (a, b C) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, typ, 0) // blocking
	must(t, err)
	var ends [2]C
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := adopt(f)
		ends[i] = kept(t, c, err)
		_, err = f.Stat() // still the caller's
		must(t, err)
		must(t, f.Close())
	}
	return ends[0], ends[1]
}

func TestWhatIsNoConnectionIsNotAdopted(t *testing.T) {
	story(t)
	dir := tempDir(t)
	socket := func(typ int) *os.File {
		fd, err := syscall.Socket(syscall.AF_UNIX, typ, 0)
		must(t, err)
		return os.NewFile(uintptr(fd), "socket")
	}
	l := listen(t, ipc.Path(dir+"/socket"))
	listening, err := l.File()
	must(t, err)
	c, _ := pair(t)
	connected, err := c.File()
	must(t, err)
	file, err := os.Create(dir + "/file")
	must(t, err)
	r, w, err := os.Pipe()
	must(t, err)
	must(t, os.Remove(dir+"/file"))
	datagram, unconnected := socket(syscall.SOCK_DGRAM), socket(syscall.SOCK_STREAM)

	for what, f := range map[string]*os.File{
		"a file": file, "a pipe": r, "the other end": w, "a datagram socket": datagram,
		"an unconnected socket": unconnected, "a listening socket": listening,
	} {
		if c, err := ipc.FileConn(f); err == nil {
			t.Errorf("FileConn adopts %s", what)
			c.Close()
		} else if oe := (*net.OpError)(nil); !errors.As(err, &oe) || oe.Op != "file" {
			t.Errorf("%s: %#v is not a *net.OpError", what, err)
		}
		if what != "a listening socket" {
			if l, err := ipc.FileListener(f); err == nil {
				t.Errorf("FileListener adopts %s", what)
				l.Close()
			}
		}
	}
	if l, err := ipc.FileListener(connected); err == nil {
		t.Error("FileListener adopts a connection")
		l.Close()
	}
	for _, f := range []*os.File{file, r, w, datagram, unconnected, listening, connected} {
		if _, err := f.Stat(); err != nil {
			t.Errorf("the caller's file is gone: %v", err)
		}
		must(t, f.Close())
		for what, adopt := range map[string]func(f *os.File) error{
			"FileConn":     func(f *os.File) error { _, err := ipc.FileConn(f); return err },
			"FileMsgConn":  func(f *os.File) error { _, err := ipc.FileMsgConn(f); return err },
			"FileListener": func(f *os.File) error { _, err := ipc.FileListener(f); return err },
			"FileReader":   func(f *os.File) error { _, err := ipc.FileReader(f); return err },
			"FileWriter":   func(f *os.File) error { _, err := ipc.FileWriter(f); return err },
		} {
			if err := adopt(f); !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s says %v of a closed file", what, err)
			}
		}
	}
	if _, err := ipc.FileConn(nil); err == nil {
		t.Error("FileConn adopts nil")
	}
}

// adopt returns a second listener of the same socket.
func adopt(t *testing.T, l *ipc.Listener) *ipc.Listener {
	t.Helper()
	f, err := l.File()
	must(t, err)
	adopted, err := ipc.FileListener(f)
	must(t, f.Close())
	return kept(t, adopted, err)
}

func TestFileListenerNeverUnlinks(t *testing.T) {
	story(t)
	path := sockPath(t)
	l := listen(t, ipc.Path(path))
	adopted := adopt(t, l)
	if adopted.Addr() != l.Addr() {
		t.Errorf("the address is %v", adopted.Addr())
	}
	serves(t, adopted, ipc.Path(path))
	serves(t, l, ipc.Path(path))
	accepting := begin(func() error { _, err := adopted.Accept(); return err })
	awaitParked(t, "(*Listener).AcceptConn", 1)
	must(t, adopted.Close())
	matches(t, <-accepting, net.ErrClosed)
	matches(t, adopted.Close(), net.ErrClosed)
	serves(t, l, ipc.Path(path))
}

func TestListenerIsHandedToAChild(t *testing.T) {
	story(t)
	path := sockPath(t)
	l := listenWith(t, ipc.ListenConfig{KeepName: true}, ipc.Path(path))
	f, err := l.File()
	must(t, err)
	c := startChildWith(t, exec.Cmd{ExtraFiles: []*os.File{f}}, "adopts")
	must(t, f.Close())
	must(t, l.Close()) // the child's is left
	c.mustSay("adopted " + path)
	client := dial(t, ipc.Path(path))
	expect(t, client, "from the heir")
	c.end()
	must(t, os.Remove(path))
}

func childAdoptsListener(p *parent, _ []string) error {
	f := os.NewFile(3, "listener")
	l, err := ipc.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	p.say("adopted %s", l.Addr())
	c := sure(l.Accept())
	_, err = io.WriteString(c, "from the heir")
	return errors.Join(err, c.Close(), l.Close())
}

// ---------------------------------------------------------------------------
// Other programs

func TestSpeaksWithForeignPrograms(t *testing.T) {
	story(t)
	path := openDir(t) + "/socket"

	l := listen(t, ipc.Path(path))
	foreign, err := net.Dial("unix", path)
	must(t, err)
	defer foreign.Close()
	server := accept(t, l)
	talk(t, foreign, server)
	must(t, foreign.(*net.UnixConn).CloseWrite())
	expectEOF(t, server)
	must(t, server.Close())
	must(t, l.Close())

	serveForeign(t, path)
	client := dial(t, ipc.Path(path))
	got, err := io.ReadAll(client)
	if !bytes.Equal(got, []byte("foreign")) || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestClientsOwnAddressIsTold(t *testing.T) {
	story(t)
	dir := openDir(t)
	l := listen(t, ipc.Path(dir+"/socket"))
	foreign, err := net.DialUnix("unix",
		&net.UnixAddr{Name: dir + "/client", Net: "unix"}, &net.UnixAddr{Name: dir + "/socket", Net: "unix"})
	must(t, err)
	defer os.Remove(dir + "/client")
	defer foreign.Close()
	if got := accept(t, l).RemoteAddr(); got != ipc.Path(dir+"/client") {
		t.Errorf("the client's address is %v", got)
	}
}
