//go:build unix

package ipc

import (
	"encoding/binary"
	"slices"
	"syscall"
	"testing"
	"unsafe"
)

// FuzzRights takes apart control messages of any content. It closes nothing and
// keeps nothing: the numbers are no descriptors.
func FuzzRights(f *testing.F) {
	two := syscall.UnixRights(3, 4)
	other := slices.Clone(two)
	(*syscall.Cmsghdr)(unsafe.Pointer(&other[0])).Type++ // of some other type
	f.Add([]byte{})
	f.Add(two)
	f.Add(two[:len(two)-1])
	f.Add(syscall.UnixRights())
	f.Add(append(slices.Clone(two), syscall.UnixRights(5)...))
	f.Add(append(slices.Clone(other), two...))
	f.Add(append(slices.Clone(two), other...))
	f.Add(make([]byte, syscall.CmsgSpace(4)))
	f.Add(slices.Repeat([]byte{0xff}, 64))
	uneven := append(syscall.UnixRights(3, 4, 5), 0, 0, 0, 0, 0, 0, 0)
	(*syscall.Cmsghdr)(unsafe.Pointer(&uneven[0])).Len++ // which syscall.ParseUnixRights does not expect
	f.Add(uneven)
	f.Fuzz(func(t *testing.T, oob []byte) {
		defer func() {
			if v := recover(); v != nil {
				t.Fatal(v)
			}
		}()
		fds, err := rights(slices.Clone(oob))
		if 4*len(fds) > len(oob) {
			t.Fatalf("%d bytes hold %d descriptors", len(oob), len(fds))
		}
		if err == nil && len(fds) > 0 {
			// They are what they were when they are sent on.
			again, err := rights(syscall.UnixRights(fds...))
			if !slices.Equal(again, fds) || err != nil {
				t.Fatalf("%v become %v, %v", fds, again, err)
			}
		}

		// Any numbers are found, in one list or in several, behind whatever else.
		var want []int
		for p := oob; len(p) >= 4 && len(want) < rightsMax; p = p[4:] {
			want = append(want, int(int32(binary.NativeEndian.Uint32(p))))
		}
		half := len(want) / 2
		for _, list := range [][]byte{
			syscall.UnixRights(want...),
			append(syscall.UnixRights(want[:half]...), syscall.UnixRights(want[half:]...)...),
			append(slices.Clone(other), syscall.UnixRights(want...)...),
		} {
			got, err := rights(list)
			if !slices.Equal(got, want) || err != nil {
				t.Fatalf("%v are read as %v, %v", want, got, err)
			}
		}
	})
}
