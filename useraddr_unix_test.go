//go:build unix

// The folders of an address that belongs to one user.
package ipc_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/interprocess-go/ipc"
)

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
