//go:build unix || windows

package kit

import (
	"os"
	"sync"
	"testing"

	"github.com/interprocess-go/ipc"
)

// HasMemory reports whether the system has memory that can be shared safely. The
// systems of which the documentation says so must have it.
var HasMemory = sync.OnceValue(func() bool {
	m, err := ipc.NewMemory(1)
	if err != nil {
		return false
	}
	m.Close()
	return true
})

// NeedsMemory skips the test where there is no memory that can be shared.
func NeedsMemory(t *testing.T) {
	t.Helper()
	if !HasMemory() {
		t.Skip("this system has no memory that cannot shrink")
	}
}

// NewMemory returns new memory of the size.
func NewMemory(t *testing.T, size int) *ipc.Memory {
	t.Helper()
	m, err := ipc.NewMemory(size)
	return Kept(t, m, err)
}

// MemoryFile returns a file of the memory.
func MemoryFile(t *testing.T, m *ipc.Memory, readOnly bool) *os.File {
	t.Helper()
	file := m.File
	if readOnly {
		file = m.ReadOnlyFile
	}
	f, err := file()
	return Kept(t, f, err)
}
