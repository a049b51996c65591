//go:build unix

package ipc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"strings"
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
		if rest := kern.unmarked(slices.Clone(oob)); !bytes.HasSuffix(oob, rest) {
			t.Fatalf("behind the mark of %x is %x", oob, rest)
		}
		fds, _, err := passedIn(slices.Clone(oob))
		if 4*len(fds) > len(oob) {
			t.Fatalf("%d bytes hold %d descriptors", len(oob), len(fds))
		}
		if err == nil && len(fds) > 0 {
			// They are what they were when they are sent on.
			again, _, err := passedIn(syscall.UnixRights(fds...))
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
			got, _, err := passedIn(list)
			if !slices.Equal(got, want) || err != nil {
				t.Fatalf("%v are read as %v, %v", want, got, err)
			}
		}
	})
}

var targetSeeds = []string{
	"", "a", "@a", "a\x00b", "\x00", "/", "//", ".", "..", "a/", "a/.", "a/..", "../a", "/a", "./@a", "/tmp/../a", "a//b", "-",
	"a/../../b", "...", "ü", "\xff", strings.Repeat("n", sunPathMax), strings.Repeat("n", sunPathMax+1),
	strings.Repeat("p", nameMax), strings.Repeat("p", nameMax+1), strings.Repeat("d/", pathMax/2), strings.Repeat("d/", pathMax/2) + "dd",
}

// checkTarget makes no file: a name without one is bound, everything else is only
// looked at.
func checkTarget(t *testing.T, a Addr, text, target string) {
	if isAbstract(target) {
		if a.kind != nameAddr || target[1:] != text {
			t.Fatalf("%q is the abstract socket %q", a, target[1:])
		}
		sys, err := newSocket(syscall.SOCK_STREAM)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(sys)
		switch err := bind(sys, target); {
		case errors.Is(err, ErrAddrInUse): // by another program, or another worker
		case err != nil:
			t.Fatalf("%q: %v", a, err)
		default:
			if got, err := kern.sockName(sys); got != a || err != nil {
				t.Fatalf("%q is read back as %q, %v", a, got, err)
			}
		}
		return
	}
	dir, base := splitPath(target)
	switch clean := filepath.Clean(target); {
	case len(target) > pathMax, len(base) > nameMax, strings.Contains(target, "\x00"),
		base != filepath.Base(clean), filepath.Clean(joinPath(dir, base)) != clean:
		t.Fatalf("%q is the path %q, of %q and %q", a, target, dir, base)
	case a.kind == pathAddr && target != a.String():
		t.Fatalf("%q is the path %q", a, target)
	case a.kind == nameAddr && (abstractNames || !strings.HasPrefix(clean, "/tmp/")):
		t.Fatalf("the name %q is the path %q", a, target)
	}
	if sa := sockAddr(target); len(target) <= sunPathMax && target[0] != '@' && addrOf(sa) != Path(target) {
		t.Fatalf("%q is read back as %q", a, addrOf(sa))
	}
}

func TestTokensAreNumbersOfDescriptors(t *testing.T) {
	for _, token := range []string{"3", "4", "10", "1048576", "3@c000.8.1f",
		"3@c000.8.1:4@4000.1.1:5@8000.1.2:6@1000.d.3:7@1000.d.3:1:2:remove:2f61", "3:4:5:6:7:1a:2b:keep:2f612f62", "3:4:5:6:7:1:2:keep:61"} {
		if tokenDescriptors(token) == nil {
			t.Errorf("%q is refused", token)
		}
	}
	for _, token := range []string{"", "0", "1", "2", "-1", "-3", "+3", "03", "0x3", " 3", "3 ", "3.0", "1048577", "99999999999999999999", "three",
		"3@", "3@x", "3@A", "@1", "3:4", "3:4:5:6", "3:4:5:6:7:1:2:remove", "3:4:5:6:7:1:2:remove:", "3:4:5:6:7:1:2:remove:2f612f", // no last element
		"3:4:5:6:7:1:2:other:2f61", "3:4:5:6:7:01:2:keep:2f61", "3:4:5:6:7:1:2:keep:2F61", "3:4:5:6:7:1:2:keep:2f6", "3:4:5:2:7:1:2:keep:2f61"} {
		if tokenDescriptors(token) != nil { // 0, 1 and 2 are the standard ones; one text per number
			t.Errorf("%q is accepted", token)
		}
	}
}
