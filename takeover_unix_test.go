//go:build unix

// Who may have a path: locks, folders and what is at the path, on every Unix. What
// needs only one policy or a crash is in ipc_unix_test.go.
package ipc_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/interprocess-go/ipc"
)

func init() {
	roles["listen"] = childListens
}

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
func TestCloseFolderReplacedByFIFO(t *testing.T) {
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

func TestCloseLockReplacedByFIFO(t *testing.T) {
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
func TestCloseLockGoneRemovesSocket(t *testing.T) {
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

func TestCloseFolderGone(t *testing.T) {
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
// Errors

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
