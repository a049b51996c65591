// Who may have a path on Linux: attacks by another user, sandboxes, cleaners of temporary
// folders, and working directories without a name.
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
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/interprocess-go/ipc"
)

func init() {
	roles["swap"] = childSwapsFolders
	roles["plant"] = childPlantsSocket
	roles["noflock"] = childListensWithoutFlock
	roles["nolink"] = childListensWithoutLink
	roles["deep"] = childListensDeep
	roles["outside"] = childListensOutside
}

// ---------------------------------------------------------------------------
// Attacks

// Another user owns the parent of the folder that root listens in, and makes the path lead
// to a folder of root's and back, all the time. He must not make root touch what is there.
func TestListenFolderSwappedByParentsOwner(t *testing.T) {
	needsRoot(t)
	targets := map[string]func(t *testing.T, path string){
		"Socket": func(t *testing.T, path string) {
			serveForeign(t, path)
			must(t, os.Chmod(path, 0o777))
		},
		"File":  func(t *testing.T, path string) { must(t, os.WriteFile(path, nil, 0o640)) },
		"Stale": makeStaleForGood,
	}
	for target, make := range targets {
		for _, policy := range policies {
			if target == "Stale" && policy != ipc.TakeoverNever || target == "Socket" && policy == ipc.TakeoverAlways {
				continue // the user asked for it, wherever the path leads
			}
			t.Run(target+policy.String(), func(t *testing.T) {
				story(t)
				dir := openDir(t)
				must(t, os.Chmod(dir, 0o755))
				for _, name := range []string{"/victim", "/attacker", "/attacker/folder"} {
					must(t, os.Mkdir(dir+name, 0o755))
				}
				must(t, os.Symlink(dir+"/victim", dir+"/attacker/link"))
				must(t, os.Chown(dir+"/attacker", nobody, nobody))
				make(t, dir+"/victim/socket")
				before := stat(t, dir+"/victim/socket")

				attacker := startStranger(t, "swap", dir+"/attacker")
				attacker.mustSay("swapping")
				lc := ipc.ListenConfig{Takeover: policy, Access: ipc.Everyone, Sys: &ipc.SysListenConfig{UID: nobody}}
				listened := 0
				for end := time.Now().Add(attackTime); listened == 0 || time.Now().Before(end); {
					l, err := lc.Listen(ipc.Path(dir + "/attacker/folder/socket"))
					if err == nil {
						listened++
						must(t, l.Close())
					}
					after := stat(t, dir+"/victim/socket")
					if after.Ino != before.Ino || after.Mode != before.Mode || after.Uid != before.Uid || after.Gid != before.Gid {
						t.Fatalf("after %d listeners %+v became %+v", listened, before, after)
					}
				}
				attacker.end()
				if names := namesIn(t, dir+"/victim"); !slices.Equal(names, []string{"socket"}) {
					t.Errorf("the victim's folder has %s", names)
				}
				if names := namesIn(t, dir+"/attacker/folder"); len(names) != 0 {
					t.Errorf("left behind: %s", names)
				}
				must(t, os.Remove(dir+"/attacker/link"))
				os.Remove(dir + "/victim/socket")
			})
		}
	}
}

// Another user may write to the folder itself, and puts a socket of his own in the place of
// the one that root has just bound. Root must not give it a new owner or mode.
func TestListenSocketReplacedAsItIsMade(t *testing.T) {
	needsRoot(t)
	story(t)
	dir := openDir(t)
	attacker := startStranger(t, "plant", dir)
	attacker.mustSay("planting")
	lc := ipc.ListenConfig{Takeover: ipc.TakeoverNever, Access: ipc.Everyone, Sys: &ipc.SysListenConfig{UID: nobody - 1}}
	listened := 0
	for end := time.Now().Add(attackTime); listened == 0 || time.Now().Before(end); {
		if l, err := lc.Listen(ipc.Path(dir + "/socket")); err == nil {
			listened++
			must(t, l.Close())
		}
	}
	attacker.end()
	os.Remove(dir + "/decoy")
	os.Remove(dir + "/socket")
}

// childPlantsSocket puts a socket of its own in the place of "socket" and takes it away
// again, and fails if that ever has another owner or mode.
func childPlantsSocket(p *parent, args []string) error {
	decoy, socket := args[0]+"/decoy", args[0]+"/socket"
	end := repeatedly(func() error {
		sys, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(sys)
		if err := syscall.Bind(sys, &syscall.SockaddrUnix{Name: decoy}); err != nil {
			return err
		}
		const oPath = 0x200000 // asm-generic/fcntl.h
		file, err := syscall.Open(decoy, oPath|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(file)
		var before, after syscall.Stat_t
		if err := syscall.Fstat(file, &before); err != nil {
			return err
		}
		for range 1000 {
			if _, err := os.Lstat(socket); err != nil {
				continue // nothing to replace
			}
			os.Rename(decoy, socket)
			if os.Rename(socket, decoy) != nil {
				break // it was removed with what it replaced, which is its owner's risk
			}
		}
		os.Remove(decoy)
		if err := syscall.Fstat(file, &after); err != nil || after.Uid != before.Uid || after.Mode != before.Mode {
			return fmt.Errorf("%+v became %+v, %v", before, after, err)
		}
		return nil
	})
	p.say("planting")
	p.hear()
	return end()
}

// attackTime is how long an attack goes on that is won or lost by luck.
const attackTime = time.Second

// Mkfifo is led astray in the same way.
func TestMkfifoFolderSwappedByParentsOwner(t *testing.T) {
	needsRoot(t)
	story(t)
	dir := openDir(t)
	must(t, os.Chmod(dir, 0o755))
	for _, name := range []string{"/victim", "/attacker", "/attacker/folder"} {
		must(t, os.Mkdir(dir+name, 0o755))
	}
	must(t, os.Symlink(dir+"/victim", dir+"/attacker/link"))
	must(t, os.Chown(dir+"/attacker", nobody, nobody))
	must(t, ipc.Mkfifo(dir+"/victim/fifo", 0o600))
	attacker := startStranger(t, "swap", dir+"/attacker")
	attacker.mustSay("swapping")
	made := 0
	for end := time.Now().Add(attackTime); made == 0 || time.Now().Before(end); {
		if ipc.Mkfifo(dir+"/attacker/folder/fifo", 0o666) == nil {
			made++
		}
		if st := stat(t, dir+"/victim/fifo"); st.Mode&0o777 != 0o600 {
			t.Fatalf("after %d FIFOs the victim's has mode %o", made, st.Mode)
		}
		for _, name := range []string{"/attacker/folder/fifo", "/attacker/other/fifo"} {
			// Where the path leads to the victim's now, os.Remove would do what Mkfifo must not.
			if st, err := os.Lstat(dir + filepath.Dir(name)); err == nil && st.IsDir() {
				removeIn(t, dir+filepath.Dir(name), "fifo")
			}
		}
	}
	attacker.end()
	for _, name := range []string{"/attacker/folder/fifo", "/attacker/link", "/victim/fifo"} {
		os.Remove(dir + name)
	}
}

// removeIn removes the file in the folder, if the path leads to a folder itself.
func removeIn(t *testing.T, dir, name string) {
	t.Helper()
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err == nil {
		syscall.Unlinkat(fd, name)
		must(t, syscall.Close(fd))
	}
}

func stat(t *testing.T, path string) (st syscall.Stat_t) {
	t.Helper()
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func makeStaleForGood(t *testing.T, path string) {
	makeStale(t, path)
	must(t, os.Chmod(path, 0o700))
}

// childSwapsFolders has "folder" lead to the folder and to where "link" leads, in turn.
func childSwapsFolders(p *parent, args []string) error {
	folder, link, other := args[0]+"/folder", args[0]+"/link", args[0]+"/other"
	end := repeatedly(func() error {
		return errors.Join(
			os.Rename(folder, other), os.Rename(link, folder),
			os.Rename(folder, link), os.Rename(other, folder))
	})
	p.say("swapping")
	p.hear()
	return end()
}

// Where another user can make the path lead elsewhere, the socket is not bound by it.
func TestListenBindsByPathOnlyWhereItIsSettled(t *testing.T) {
	needsRoot(t)
	for name, c := range map[string]struct {
		prepare func(t *testing.T, dir string)
		settled bool
	}{
		"OwnFolders":  {func(t *testing.T, dir string) {}, true},
		"OtherOwner":  {func(t *testing.T, dir string) { must(t, os.Chown(dir+"/a", nobody, nobody)) }, false},
		"GroupWrites": {func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/a", 0o770)) }, false},
		"EveryoneIn":  {func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/a", 0o777)) }, false},
		"Sticky":      {func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/a", 0o777|fs.ModeSticky)) }, true},
		"StickyOfOther": {func(t *testing.T, dir string) {
			must(t, os.Chmod(dir+"/a", 0o777|fs.ModeSticky))
			must(t, os.Chown(dir+"/a/b", nobody, nobody))
		}, false},
		"OpenFolder": {func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/a/b", 0o777)) }, true},
		"Link": {func(t *testing.T, dir string) {
			must(t, os.Rename(dir+"/a", dir+"/c"))
			must(t, os.Symlink("../"+filepath.Base(dir)+"/c", dir+"/a"))
		}, true},
		"LinkThroughOther": {func(t *testing.T, dir string) {
			must(t, os.Mkdir(dir+"/other", 0o755))
			must(t, os.Rename(dir+"/a", dir+"/other/a"))
			must(t, os.Chown(dir+"/other", nobody, nobody))
			must(t, os.Symlink(dir+"/other/a", dir+"/a"))
		}, false},
		"LinkIntoItself": {func(t *testing.T, dir string) {
			must(t, os.Symlink(dir+"/a/b/x/../../b", dir+"/a/b/x"))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			story(t)
			dir := t.TempDir()
			must(t, os.MkdirAll(dir+"/a/b", 0o755))
			c.prepare(t, dir)
			path := dir + "/a/b/socket"
			l := listen(t, ipc.Path(path))
			if bound := isInTable(t, path); bound != c.settled {
				t.Errorf("bound by its path: %t, want %t", bound, c.settled)
			}
			// What is not bound by its path has the sticky bit instead.
			if sticky := stat(t, path).Mode&syscall.S_ISVTX != 0; sticky == c.settled {
				t.Errorf("protected from cleaners: %t", sticky)
			}
			serves(t, l, ipc.Path(path))
			must(t, l.Close())
			isGone(t, path)
			isGone(t, path+".lock")
		})
	}
}

// isInTable reports whether a socket is bound to exactly that path.
func isInTable(t *testing.T, path string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/net/unix")
	must(t, err)
	return slices.ContainsFunc(strings.Split(string(table), "\n"), func(line string) bool {
		return strings.HasSuffix(line, " "+path)
	})
}

// ---------------------------------------------------------------------------
// Cleaners

// systemd-tmpfiles(8) goes by /proc/net/unix, and by the sticky bit.
func TestListenFreePathIsBoundByItsName(t *testing.T) {
	for _, policy := range policies {
		t.Run(policy.String(), func(t *testing.T) {
			story(t)
			dir := openDir(t)
			must(t, os.Chmod(dir, 0o755))
			path := dir + "/socket"
			l := listenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path(path))
			if !isInTable(t, path) {
				t.Error("the kernel does not know the socket by its path")
			}
			if adopted := adopt(t, l); adopted.Addr() != ipc.Path(path) {
				t.Errorf("FileListener has %v", adopted.Addr())
			}
			if st := stat(t, path+".lock"); st.Mode&syscall.S_ISVTX == 0 {
				t.Errorf("the lock has mode %o", st.Mode)
			}
			must(t, l.Close())

			if policy != ipc.TakeoverNever {
				makeStale(t, path)
				l = listenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path(path))
				if !isInTable(t, path) && stat(t, path).Mode&syscall.S_ISVTX == 0 {
					t.Error("nothing protects the socket that replaces a stale one")
				}
				must(t, l.Close())
			}
			t.Chdir(dir)
			l = listenWith(t, ipc.ListenConfig{Takeover: policy}, ipc.Path("socket"))
			if !isInTable(t, path) {
				t.Error("the kernel does not know the socket of a relative path by its path")
			}
			must(t, l.Close())
		})
	}
}

func TestListenCleanersSpareLiveSockets(t *testing.T) {
	cleaner, err := exec.LookPath("systemd-tmpfiles")
	if err != nil {
		t.Skip("there is no systemd-tmpfiles")
	}
	needsRoot(t)
	story(t)
	dir := openDir(t)
	must(t, os.Chmod(dir, 0o755))
	long := dir + "/" + strings.Repeat("l", 120)
	must(t, os.Mkdir(long, 0o755))
	config := filepath.Join(t.TempDir(), "clean.conf")
	must(t, os.WriteFile(config, []byte("e "+dir+" - - - 0\n"), 0o600))

	for _, path := range []string{"/free", "/stale", "/always", "/" + filepath.Base(long) + "/socket", "/" + strings.Repeat("b", 200)} {
		lc := ipc.ListenConfig{}
		if path == "/stale" {
			makeStale(t, dir+path)
		}
		if path == "/always" {
			l := listen(t, ipc.Path(dir+path))
			defer l.Close()
			lc.Takeover = ipc.TakeoverAlways
		}
		listenWith(t, lc, ipc.Path(dir+path))
	}
	makeStale(t, dir+"/dead") // which shows that the cleaner is at work
	before := append(namesIn(t, dir), namesIn(t, long)...)
	if out, err := exec.Command(cleaner, "--clean", config).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	after := append(namesIn(t, dir), namesIn(t, long)...)
	if os.Remove(dir+"/dead") == nil {
		t.Skip("this systemd-tmpfiles removes no socket")
	}
	before = slices.DeleteFunc(before, func(name string) bool { return name == "dead" })
	if !slices.Equal(before, after) {
		t.Errorf("of %s the cleaner leaves %s", before, after)
	}
}

// ---------------------------------------------------------------------------
// Sandboxes and file systems without a call

// refuse has the kernel answer a call of this process with the error from now on, as a
// sandbox or a file system does: seccomp(2).
func refuse(call uintptr, errno syscall.Errno) error {
	trap := map[string]uintptr{
		"amd64": 317, "386": 354, "arm": 383, "arm64": 277, "riscv64": 277, "loong64": 277, "ppc64le": 358, "s390x": 348,
	}[runtime.GOARCH]
	if trap == 0 {
		return errNoSeccomp
	}
	type filter struct { // struct sock_filter of linux/filter.h
		code   uint16
		jt, jf uint8
		k      uint32
	}
	program := []filter{
		{code: 0x20},                                // BPF_LD|BPF_W|BPF_ABS: the number of the call
		{code: 0x15, jf: 1, k: uint32(call)},        // BPF_JMP|BPF_JEQ|BPF_K
		{code: 0x06, k: 0x00050000 | uint32(errno)}, // BPF_RET: SECCOMP_RET_ERRNO
		{code: 0x06, k: 0x7fff0000},                 // SECCOMP_RET_ALLOW
	}
	prog := struct { // struct sock_fprog
		n      uint16
		filter *filter
	}{uint16(len(program)), &program[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const setNoNewPrivs, setModeFilter, flagTSync = 38, 1, 1
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, setNoNewPrivs, 1, 0, 0, 0, 0); errno != 0 {
		return errNoSeccomp
	}
	if r, _, errno := syscall.RawSyscall(trap, setModeFilter, flagTSync, uintptr(unsafe.Pointer(&prog))); r != 0 || errno != 0 {
		return errNoSeccomp
	}
	return nil
}

var errNoSeccomp = errors.New("this system has no seccomp")

// inSandbox tells a story in a child, which skips the test if there is no sandbox.
func inSandbox(t *testing.T, role string, args ...string) {
	t.Helper()
	story(t)
	c := startChild(t, role, args...)
	switch said := c.hear(); said {
	case "done":
	case errNoSeccomp.Error():
		t.Skip(said)
	default:
		t.Error(said)
	}
	c.end()
}

func TestListenWithoutFlock(t *testing.T) {
	for _, errno := range []syscall.Errno{
		syscall.ENOLCK, syscall.ENOSYS, syscall.EOPNOTSUPP, syscall.EINVAL, syscall.EPERM, syscall.EACCES, syscall.EIO,
	} {
		t.Run(errno.Error(), func(t *testing.T) { inSandbox(t, "noflock", openDir(t), strconv.Itoa(int(errno))) })
	}
}

// childListensWithoutFlock tells the life of listeners where flock(2) fails.
func childListensWithoutFlock(p *parent, args []string) error {
	path := args[0] + "/socket"
	errno := syscall.Errno(sure(strconv.Atoi(args[1])))
	err := refuse(syscall.SYS_FLOCK, errno)
	for _, policy := range policies {
		if err == nil {
			err = listensWithoutFlock(policy, path, errno)
		}
	}
	if err != nil {
		p.say("%v", err)
		return nil
	}
	p.say("done")
	return nil
}

func listensWithoutFlock(policy ipc.Takeover, path string, errno syscall.Errno) error {
	lc := ipc.ListenConfig{Takeover: policy}
	left := func(want ...string) error {
		names, err := filepath.Glob(filepath.Dir(path) + "/*")
		hidden, _ := filepath.Glob(filepath.Dir(path) + "/.*")
		if names = append(names, hidden...); err == nil && !slices.Equal(names, want) {
			err = fmt.Errorf("%v, %v: the folder has %s, want %s", policy, errno, names, want)
		}
		return err
	}
	l, err := lc.Listen(ipc.Path(path))
	if errno == syscall.EIO { // which says nothing of whether there is flock
		if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "flock") {
			return fmt.Errorf("%v: Listen says %v", policy, err)
		}
		return left()
	}
	if err != nil {
		return err
	}
	if err := left(path); err != nil {
		return err
	}
	for _, rival := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever} {
		if _, err := (ipc.ListenConfig{Takeover: rival}).Listen(ipc.Path(path)); !errors.Is(err, ipc.ErrAddrInUse) {
			return fmt.Errorf("%v: a rival with %v gets %v", policy, rival, err)
		}
	}
	next, err := ipc.ListenConfig{Takeover: ipc.TakeoverAlways, KeepName: true}.Listen(ipc.Path(path))
	if err != nil {
		return err
	}
	if err := errors.Join(l.Close(), left(path)); err != nil { // it is the other one's now
		return err
	}
	if err := errors.Join(next.Close(), left(path)); err != nil {
		return err
	}
	l, err = ipc.Listen(ipc.Path(path)) // what was left is stale
	if err != nil {
		return err
	}
	return errors.Join(l.Close(), left())
}

// Android forbids link(2).
func TestListenLongNameWithoutLink(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EACCES, syscall.EPERM} {
		t.Run(errno.Error(), func(t *testing.T) {
			inSandbox(t, "nolink", openDir(t)+"/"+strings.Repeat("b", 240), strconv.Itoa(int(errno)))
		})
	}
}

func childListensWithoutLink(p *parent, args []string) error {
	err := refuse(syscall.SYS_LINKAT, syscall.Errno(sure(strconv.Atoi(args[1]))))
	for range 2 {
		if err == nil {
			var l *ipc.Listener
			if l, err = ipc.Listen(ipc.Path(args[0])); err == nil {
				var c *ipc.Conn
				if c, err = ipc.Dial(ipc.Path(args[0])); err == nil {
					err = errors.Join(c.Close(), l.Close())
				}
			}
		}
	}
	if err != nil {
		p.say("%v", err)
		return nil
	}
	p.say("done")
	return nil
}

// ---------------------------------------------------------------------------
// Working directories without a name

func TestListenRelativePathDeeperThanAnyPath(t *testing.T) {
	story(t)
	c := startChild(t, "deep", t.TempDir(), "")
	c.mustSay("done")
	c.end()
}

// Without /proc the working directory has to have a name for a relative path that does
// not fit into a socket address.
func TestLongRelativePathDeeperThanAnyPathIsTooLong(t *testing.T) {
	needsRoot(t)
	story(t)
	c := startChild(t, "deep", t.TempDir(), "chroot")
	c.mustSay("done")
	c.end()
}

// childListensDeep goes to a folder whose path is longer than a path can be.
func childListensDeep(p *parent, args []string) error {
	name := strings.Repeat("d", 250)
	err := syscall.Chdir(args[0])
	if err == nil && args[1] == "chroot" {
		err = syscall.Chroot(".")
	}
	for range 20 {
		if err == nil {
			err = errors.Join(syscall.Mkdir(name, 0o700), syscall.Chdir(name))
		}
	}
	if err != nil {
		return err
	}
	if wd, err := syscall.Getwd(); err == nil {
		return fmt.Errorf("the working directory has a name of %d bytes", len(wd))
	}
	long := strings.Repeat("f", 120) + "/socket"
	if args[1] == "chroot" {
		said := servesRelative("socket", "sub/socket", strings.Repeat("b", 90))
		if err := syscall.Mkdir(filepath.Dir(long), 0o700); err != nil {
			return err
		}
		_, errListen := ipc.Listen(ipc.Path(long))
		if err := os.WriteFile(long, nil, 0o600); err != nil { // Dial looks for it first
			return err
		}
		_, errDial := ipc.Dial(ipc.Path(long))
		if !errors.Is(errListen, ipc.ErrNameTooLong) || !errors.Is(errDial, ipc.ErrNameTooLong) {
			said = fmt.Sprintf("Listen: %v; Dial: %v", errListen, errDial)
		}
		p.say("%s", said)
		return nil
	}
	p.say("%s", servesRelative("socket", "./socket", strings.Repeat("b", 250), "sub/socket", long))
	return nil
}

// servesRelative tells the life of servers at paths from the working directory.
func servesRelative(paths ...string) string {
	for _, path := range paths {
		addr := ipc.Path(path)
		if dir := filepath.Dir(path); dir != "." {
			if err := syscall.Mkdir(dir, 0o700); err != nil {
				return err.Error()
			}
		}
		for _, policy := range policies {
			l, err := ipc.ListenConfig{Takeover: policy}.Listen(addr)
			if err != nil {
				return fmt.Sprintf("%v: %v", policy, err)
			}
			c, err := ipc.Dial(addr)
			if err != nil {
				return err.Error()
			}
			_, again := ipc.Listen(addr)
			err = errors.Join(c.Close(), l.Close())
			if _, left := os.Lstat(path); err != nil || !errors.Is(again, ipc.ErrAddrInUse) || !errors.Is(left, fs.ErrNotExist) {
				return fmt.Sprintf("%v at %s: %v; %v; %v", policy, path, err, again, left)
			}
		}
	}
	return "done"
}

func TestListenRelativePathOutsideTheRoot(t *testing.T) {
	needsRoot(t)
	story(t)
	c := startChild(t, "outside", tempDir(t))
	c.mustSay("done")
	c.end()
}

// childListensOutside stays where it is when its root becomes another folder, so its
// working directory has no name, and there is no /proc.
func childListensOutside(p *parent, args []string) error {
	if err := errors.Join(syscall.Chdir(args[0]), syscall.Mkdir("root", 0o700), syscall.Chroot("root")); err != nil {
		return err
	}
	p.say("%s", servesRelative("socket", "./socket", "sub/socket", strings.Repeat("b", 90)))
	return nil
}
