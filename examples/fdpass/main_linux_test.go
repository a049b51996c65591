package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// tryToReach makes the test binary confine itself, and then try to reach the
// file of that name, and everything else. It prints what it could do.
const tryToReach = "FDPASS_TRY_TO_REACH"

func init() {
	file, ok := os.LookupEnv(tryToReach)
	if !ok {
		return
	}
	os.Unsetenv(tryToReach) // or the program that it runs would do the same
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	run := exec.Command(self, "-test.run=^$")
	if err := confine(); err != nil {
		fmt.Println("confine:", err)
	}
	for what, err := range map[string]error{
		"read the file":           read(file),
		"read its own program":    read(self),
		"read a descriptor anew":  read("/proc/self/fd/0"),
		"list the root folder":    list("/"),
		"list the present folder": list("."),
		"list the one above":      list(".."),
		"write":                   os.WriteFile(filepath.Join(filepath.Dir(file), "new"), nil, 0o600),
		"make a folder":           os.Mkdir("new", 0o700),
		"remove the file":         os.Remove(file),
		"run a program":           run.Run(),
		"have root":               syscall.Setuid(0),
		"leave the root folder":   syscall.Chroot(".."),
	} {
		if err == nil {
			fmt.Println("it can", what)
		}
	}
	os.Exit(0)
}

func read(file string) error {
	_, err := os.ReadFile(file)
	return err
}

func list(dir string) error {
	_, err := os.ReadDir(dir)
	return err
}

func TestConfinedProcessReachesNothing(t *testing.T) {
	if os.Getenv("IPC_TEST_EXEC") != "" {
		t.Skip("a program under an emulator cannot run itself")
	}
	users := map[string]*syscall.Credential{"as it is": nil}
	if os.Geteuid() == 0 {
		users["without root"] = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	for user, credential := range users {
		t.Run(user, func(t *testing.T) {
			// Whoever it is could read and remove the file.
			dir, err := os.MkdirTemp("", "fdpass")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			file := filepath.Join(dir, "file")
			if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{dir, file} {
				if err := os.Chmod(name, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			// Not by its path, which may lead through a folder of root's.
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, "/proc/self/exe")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), tryToReach+"="+file, "GORACE=atexit_sleep_ms=0")
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			// Root needs no Landlock.
			root := credential == nil && os.Geteuid() == 0
			if _, why, ok := strings.Cut(string(out), "confine: "); ok && !(root && strings.HasPrefix(why, "no Landlock")) {
				t.Skipf("it cannot be confined: %s", why)
			}
			if strings.Contains(string(out), "it can ") {
				t.Errorf("%s", out)
			}
		})
	}
}

func TestFIFOIsRefusedAndNotWaitedFor(t *testing.T) {
	dir := folder(t, map[string]string{"a": "hello\n"})
	if err := ipc.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Skipf("no FIFO: %v", err)
	}
	p := program(t, dir, "fifo", "a").start()
	if said := p.ends(1); fmt.Sprint(said) != "[fdpass: fifo: not a regular file]" || p.out.String() != line("a", "hello\n") {
		t.Errorf("it says %q and prints %q", said, &p.out)
	}
}

func TestParentKeepsNoFileOpen(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which closes files, too
	open := func() int {
		descriptors, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skipf("it is not told what is open: %v", err)
		}
		return len(descriptors)
	}
	dir := folder(t, map[string]string{"a": "hello\n", "folder/b": ""})
	before := open()
	child, served := serveHere(t, dir)
	send(t, child, "confined")
	for _, name := range []string{"a", "a", "missing", "folder", "a"} {
		if f, err := request(child, name); err == nil {
			f.Close()
		}
	}
	child.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	// A close that a peer could hold up is made on another goroutine.
	for end := time.Now().Add(patience); open() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("of %d descriptors became %d", before, open())
		}
	}
}

func TestTellsHowItsChildIsConfined(t *testing.T) {
	dir := folder(t, map[string]string{"a": "hello\n"})
	p := program(t, "-v", dir, "a").start()
	p.ends(0)
	said := p.err.String()
	want := "fdpass: the child is confined, as user 65534: "
	if os.Geteuid() != 0 {
		want = fmt.Sprintf("fdpass: the child is confined, as user %d: ", os.Getuid())
		if strings.Contains(said, "no Landlock") {
			want = "fdpass: the child is not confined: no Landlock"
		}
	}
	if !strings.HasPrefix(said, want) || strings.Count(said, "\n") != 1 {
		t.Errorf("it says %q, want %q", said, want)
	}
}
