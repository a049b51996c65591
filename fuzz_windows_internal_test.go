//go:build windows

package ipc

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
)

var targetSeeds = []string{
	"", "a", "@a", "a\x00b", `\\.\pipe\a`, `\\.\PIPE\a`, `//./pipe/a`, `\\?\pipe\a`, `\\host\pipe\a\b`, `\\.\pipe\`, `\\.\pipe`,
	`\\.\pipe\a\..\b`, `\\.\pipe\a.`, `\\.\pipe\a `, `\\.\pipe\\a`, `\\\pipe\a`, `\\.\pipes\a`, `C:\a`, "a/b", "/a", "a/", "..", "ü", "\xff",
	"\U0001f600", "\xed\xa0\x80", strings.Repeat("n", 247), strings.Repeat("n", 248), strings.Repeat("\U0001f600", 124),
}

// checkTarget takes the path of a pipe apart.
func checkTarget(t *testing.T, a Addr, _, target string) {
	host, name, ok := cutPipePath(target)
	if !ok || name == "" || a.kind == nameAddr && host != "." {
		t.Fatalf("%q is %q", a, target)
	}
	for element := range strings.SplitSeq(name, `\`) {
		if element == "" || element == "." || element == ".." {
			t.Fatalf("%q is %q, which is not the pipe of that name", a, target)
		}
	}
	if strings.ContainsAny(target, "\x00/") || len(utf16.Encode([]rune(target))) > pathMax {
		t.Fatalf("%q is %q", a, target)
	}
	if again, err := Path(target).resolve(); again != target || err != nil {
		t.Fatalf("%q is %q, and that is %q, %v", a, target, again, err)
	}
}

// FuzzSDDL reads descriptions of access of any text. What the system accepts it
// writes in words of its own, which mean the same.
func FuzzSDDL(f *testing.F) {
	for _, s := range []string{
		"", "O:SY", "O:SYG:BAD:P(A;;GA;;;SY)", "D:", "D:P", "D:(A;;0x12019b;;;S-1-1-0)(D;;FR;;;AN)", "D:NO_ACCESS_CONTROL",
		"D:P(A;;GA;;;SY", "O:S-1-5-21-1-2-3-1000D:P(A;;FA;;;S-1-5-18)", "S:(ML;;NW;;;LW)", "D:(A;;GA;;;WD)S:(ML;;NW;;;ME)",
		"D:(OA;;CCDC;bf967aba-0de6-11d0-a285-00aa003049e2;;SY)", "D:(XA;;GX;;;S-1-1-0;(@User.Title==\"PM\"))", "D:\x00", "\xff", "O:",
		"D:(A;;99999999999;;;SY)", "D:(A;;GA;;;S-1-5-4294967296)", "G:BAO:SY", "D:AI(A;ID;FA;;;SY)", strings.Repeat("(A;;GA;;;SY)", 50),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sddl string) {
		sd, err := ParseSDDL(sddl)
		if err != nil {
			var oe *net.OpError
			if sd != nil || !errors.As(err, &oe) || oe.Op != "parse" {
				t.Fatalf("%q gives %v, %#v", sddl, sd, err)
			}
			return
		}
		owner, group, text := sd.Owner(), sd.Group(), sd.String()
		entries, ok := sd.DACL()
		if text == "" { // the system cannot say it, or there is nothing to say
			return
		}
		again, err := ParseSDDL(text)
		if err != nil {
			t.Fatalf("%q is written %q: %v", sddl, text, err)
		}
		if e, k := again.DACL(); again.Owner() != owner || again.Group() != group || !slices.Equal(e, entries) || k != ok {
			t.Fatalf("%q is written %q, and that means %q", sddl, text, again)
		}
	})
}

// FuzzDescriptor takes apart security descriptors of any content.
func FuzzDescriptor(f *testing.F) {
	for _, s := range []string{"O:SYG:BAD:P(A;;GA;;;SY)(D;;FR;;;AN)", "D:NO_ACCESS_CONTROL", "O:SY", "D:P"} {
		if sd, err := ParseSDDL(s); err == nil {
			f.Add(sd.raw)
			f.Add(sd.raw[:len(sd.raw)-1])
			f.Add(sd.raw[:len(sd.raw)/2])
		}
	}
	f.Add([]byte{})
	f.Add(make([]byte, 19))
	f.Add(make([]byte, 20))
	f.Add(slices.Repeat([]byte{0x7f}, 40))
	f.Add(slices.Repeat([]byte{0x14, 0, 0, 0}, 40))
	f.Add(slices.Repeat([]byte{0xff}, 40)) // offsets that are negative in 32 bits
	f.Fuzz(func(t *testing.T, raw []byte) {
		sd := &SecurityDescriptor{raw}
		for _, sid := range []string{sd.Owner(), sd.Group()} {
			if sid != "" && !strings.HasPrefix(sid, "S-") {
				t.Fatalf("a user is %q", sid)
			}
		}
		if entries, ok := sd.DACL(); !ok && entries != nil || len(entries) > 1<<16 {
			t.Fatalf("%d entries, %t", len(entries), ok)
		}
	})
}
