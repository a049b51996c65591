//go:build unix || windows

package kit

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// Unique returns a name that no other test and no other process uses.
func Unique() string {
	return fmt.Sprintf("ipc-test-%d-%d-%s", os.Getpid(), uniques.Add(1), strconv.FormatInt(time.Now().UnixNano(), 36))
}

var uniques atomic.Int64

// TempDir returns a folder in which the test must leave no file.
func TempDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	leavesNoFiles(t, dir)
	return dir
}

func leavesNoFiles(t *testing.T, dir string) {
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		Must(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				t.Errorf("the test leaves %s behind", path)
			}
			return err
		}))
	})
}

// PathAddr returns an address made with Path where nothing is.
func PathAddr(t *testing.T) ipc.Addr {
	t.Helper()
	if runtime.GOOS == "windows" {
		return ipc.Path(`\\.\pipe\` + Unique())
	}
	return ipc.Path(filepath.Join(TempDir(t), "socket"))
}

// NameAddr returns an address made with Name where nothing is.
func NameAddr(t *testing.T) ipc.Addr {
	t.Helper()
	name := Unique()
	if runtime.GOOS != "windows" {
		t.Cleanup(func() {
			if left, _ := filepath.Glob("/tmp/" + name + "*"); len(left) > 0 && !t.Failed() {
				t.Errorf("the test leaves %s behind", left)
			}
		})
	}
	return ipc.Name(name)
}

// OverEachAddr tells a story twice: over a path and over a name.
func OverEachAddr(t *testing.T, tell func(t *testing.T, addr ipc.Addr)) {
	t.Run("Path", func(t *testing.T) { Story(t); tell(t, PathAddr(t)) })
	t.Run("Name", func(t *testing.T) { Story(t); tell(t, NameAddr(t)) })
}
