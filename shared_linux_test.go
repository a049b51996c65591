package ipc_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"github.com/interprocess-go/ipc"
)

// linux/fcntl.h, linux/memfd.h
const (
	addSeals        = 1033
	sealSeal        = 0x1
	sealShrink      = 0x2
	sealGrow        = 0x4
	sealWrite       = 0x8
	sealFutureWrite = 0x10
	allowSealing    = 0x2
	hugeTLB         = 0x4
)

// memfd makes memory as another program may, and seals it.
func memfd(t *testing.T, size int64, flags, seals uintptr) *os.File {
	t.Helper()
	number := map[string]uintptr{"amd64": 319, "386": 356, "arm": 385, "ppc64le": 360, "s390x": 350}[runtime.GOARCH]
	if number == 0 {
		number = 279
	}
	name := []byte("test\x00")
	fd, _, errno := syscall.Syscall(number, uintptr(unsafe.Pointer(&name[0])), flags|1, 0)
	if errno != 0 {
		t.Skip("memfd_create: ", errno)
	}
	f := os.NewFile(fd, "memfd")
	t.Cleanup(func() { f.Close() })
	if err := syscall.Ftruncate(int(fd), size); err != nil {
		t.Skip("ftruncate: ", err)
	}
	if seals != 0 {
		if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, addSeals, seals); errno != 0 {
			t.Skip("F_ADD_SEALS: ", errno)
		}
	}
	return f
}

func TestFileMemoryLooksAtTheSeals(t *testing.T) {
	needsMemory(t)
	for _, c := range []struct {
		flags, seals      uintptr
		size              int64
		accepted, mayEdit bool
	}{
		{0, 0, 4096, false, false}, // not to be sealed at all
		{allowSealing, 0, 4096, false, false},
		{allowSealing, sealSeal, 4096, false, false},
		{allowSealing, sealGrow, 4096, false, false},
		{allowSealing, sealGrow | sealSeal | sealFutureWrite, 4096, false, false},
		{allowSealing, sealShrink, 4096, true, true},
		{allowSealing, sealShrink | sealGrow | sealSeal, 4096, true, true},
		{allowSealing, sealShrink | sealWrite, 4096, true, false},
		{allowSealing, sealShrink | sealFutureWrite, 4096, true, false},
		{allowSealing, sealShrink, 1, true, true},
		{allowSealing, sealShrink, 5000, true, true},
		{allowSealing, sealShrink, 0, false, false},
		{allowSealing, sealShrink, 1<<20 + 1, false, false},
		{allowSealing, sealShrink, 1 << 40, false, false},
		{allowSealing | hugeTLB, sealShrink | sealGrow | sealSeal, 2 << 20, false, false},
	} {
		t.Run(fmt.Sprintf("flags=%#x,seals=%#x,size=%d", c.flags, c.seals, c.size), func(t *testing.T) {
			story(t)
			f := memfd(t, c.size, c.flags, c.seals)
			limit := 1 << 20
			if c.flags&hugeTLB != 0 {
				limit = 4 << 20
			}
			m, err := ipc.FileMemory(f, limit)
			if (err == nil) != c.accepted {
				t.Fatalf("accepted %v, %v", err == nil, err)
			}
			if err != nil {
				return
			}
			defer m.Close()
			if m.Writable() != c.mayEdit || int64(len(m.Bytes())) != c.size {
				t.Errorf("writable %v, %d bytes", m.Writable(), len(m.Bytes()))
			}
			if c.mayEdit {
				m.Bytes()[c.size-1] = 1
			}
			if err := f.Truncate(0); err == nil {
				t.Error("the memory has shrunk")
			}
		})
	}
}

// Nobody shrinks, grows or reopens for writing what NewMemory made.
func TestMemoryKeepsItsSize(t *testing.T) {
	needsMemory(t)
	story(t)
	m := newMemory(t, 8192)
	f, ro := memoryFile(t, m, false), memoryFile(t, m, true)
	for _, size := range []int64{0, 4096, 16384} {
		if err := f.Truncate(size); !errors.Is(err, syscall.EPERM) {
			t.Errorf("truncated to %d: %v", size, err)
		}
	}
	if _, err := syscall.Mmap(int(ro.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); !errors.Is(err, syscall.EACCES) {
		t.Errorf("mapped for writing: %v", err)
	}
	var st syscall.Stat_t
	must(t, syscall.Fstat(int(f.Fd()), &st))
	if st.Mode&0o777 != 0o600 {
		t.Errorf("its mode is %o", st.Mode&0o777)
	}
}

// What a peer gets of a connection's memory it cannot write.
func TestSharedConnPeerCannotWriteItsMemory(t *testing.T) {
	needsMemory(t)
	story(t)
	addr := pathAddr(t)
	l := listen(t, addr)
	a, err := ipc.DialShared(addr)
	kept(t, a, err)
	b := accept(t, l)
	reserving := begin(func() error { _, err := a.Reserve(8 << 10); return err })
	hello := make([]byte, 32)
	oob := make([]byte, 100)
	n, oobn, _, err := b.ReadMsg(hello, oob)
	must(t, err)
	msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
	must(t, err)
	fds, err := syscall.ParseUnixRights(&msgs[0])
	must(t, err)
	defer func() {
		for _, fd := range fds {
			syscall.Close(fd)
		}
	}()
	if n != 32 || len(fds) != 2 {
		t.Fatalf("a hello of %d bytes and %d descriptors", n, len(fds))
	}
	var st syscall.Stat_t
	must(t, syscall.Fstat(fds[0], &st))
	if _, err := syscall.Mmap(fds[0], 0, int(st.Size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); !errors.Is(err, syscall.EPERM) {
		t.Errorf("mapped for writing: %v", err)
	}
	if again, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fds[0]), os.O_RDWR, 0); err == nil {
		if _, err := again.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.EPERM) {
			t.Errorf("written: %v", err)
		}
		again.Close()
	}
	if err := syscall.Ftruncate(fds[0], 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("truncated: %v", err)
	}
	mem, err := syscall.Mmap(fds[0], 0, int(st.Size), syscall.PROT_READ, syscall.MAP_SHARED)
	must(t, err)
	if err := syscall.Mprotect(mem, syscall.PROT_READ|syscall.PROT_WRITE); !errors.Is(err, syscall.EACCES) {
		t.Errorf("made writable: %v", err)
	}
	must(t, syscall.Munmap(mem))
	must(t, b.Close())
	<-reserving
}
