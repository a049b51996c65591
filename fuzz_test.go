//go:build unix || windows

// Fuzz tests. Without -fuzz they run their seeds as ordinary tests.
package ipc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/interprocess-go/ipc"
)

func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{
		"", "@", "@@", "@name", "./@name", "/tmp/socket", "relative", "../up", "/", "//", "a\x00b", "@a\x00b", "\x00",
		`\\.\pipe\x`, "//./pipe/x", `\\host\pipe\x`, `@\0`, `@\\0`, `@a\\\00\`, "\xff\xfe", "ü", " ", "@ ", "\n", strings.Repeat("x", 300),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ipc.ParseAddr(s)
		bad := s == "" || s == "@" || strings.ContainsRune(s, 0)
		if (err != nil) != bad {
			t.Fatalf("ParseAddr(%q): %v", s, err)
		}
		var text ipc.Addr
		if e := text.UnmarshalText([]byte(s)); s != "" && (e != nil) != bad {
			t.Fatalf("UnmarshalText(%q): %v", s, e)
		}
		if bad {
			var oe *net.OpError
			if !errors.As(err, &oe) || oe.Op != "parse" || a != (ipc.Addr{}) || text != (ipc.Addr{}) {
				t.Fatalf("ParseAddr(%q) is %#v, %#v", s, a, err)
			}
			return
		}
		if a != text || a.String() != s {
			t.Fatalf("%q becomes %q and %q", s, a, text)
		}
		if again, err := ipc.ParseAddr(a.String()); again != a || err != nil {
			t.Fatalf("%q is %#v at first and %#v then, %v", s, a, again, err)
		}
		if p, err := a.MarshalText(); utf8.ValidString(s) != (string(p) == s) || utf8.ValidString(s) != (err == nil) {
			t.Fatalf("%q is written %q, %v", s, p, err)
		}
		if name, ok := strings.CutPrefix(s, "@"); !strings.Contains(s, `\0`) && ok != (a == ipc.Name(name)) || ok == (a == ipc.Path(s)) {
			t.Fatalf("%q is %#v", s, a)
		}

		// Whatever an Addr is made of, its text means the same Addr.
		made := []ipc.Addr{ipc.Path(s), ipc.Name(s)}
		if runtime.GOOS == "linux" || runtime.GOOS == "android" {
			made = append(made, ipc.Name(strings.ReplaceAll(s, "0", "\x00")), ipc.Name(s+"\x00"))
		}
		for _, a := range made {
			if again, err := ipc.ParseAddr(a.String()); again != a || err != nil {
				t.Fatalf("%#v is written %q and read %#v, %v", a, a, again, err)
			}
		}
	})
}

// FuzzFrames lets a peer send any bytes at all to an end that receives messages
// in frames. What is received is what a reading of the bytes at one's leisure
// gives, however they are cut into pieces and whatever the receives are like.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x05hello\x00\x00\x00\x00\x00\x00\x00\x01x"), []byte{0, 1, 2, 3})
	f.Add([]byte("\x00\x00\x00\x05hel"), []byte{4})
	f.Add([]byte("\x00\x00\x00"), []byte{1})
	f.Add([]byte("\xff\xff\xff\xffhello"), []byte{7})
	f.Add([]byte("\x01\x00\x00\x00hello"), []byte{7, 0})
	f.Add([]byte("\x01\x00\x00\x01hello"), []byte{6})
	f.Add([]byte("\x00\x00\x00\x0ahelloworld\x00\x00\x00\x02ok"), []byte{0x10, 0x21, 0x32, 0x43, 0x54})
	f.Add([]byte("\x00\x00\x00\x01\x00\x00\x00\x00\x02ab"), []byte{3, 0x3f, 3, 4})
	f.Add([]byte("\x00\x00\x00\x05hel"), []byte{0, 3})
	f.Add([]byte{}, []byte{0})
	f.Fuzz(func(t *testing.T, wire, script []byte) {
		if len(wire) > 8000 || len(script) == 0 { // fits the queue of any system
			return
		}
		before := ipc.FrameMessages(true)
		defer ipc.FrameMessages(before)
		l, err := ipc.ListenMsg(ipc.Addr{})
		must(t, err)
		defer l.Close()
		stream, err := ipc.Dial(l.Addr().(ipc.Addr))
		must(t, err)
		defer stream.Close()
		c, err := l.Accept()
		must(t, err)
		defer c.Close()

		rest, within := wire, false // what is not yet received, and whether that begins within a message
		sent, late := 0, true
		more := func(n int) { // sends another piece, and the end with the last
			p := wire[sent:min(len(wire), sent+n)]
			sent += len(p)
			_, err := stream.Write(p)
			must(t, err)
			if sent == len(wire) {
				must(t, stream.Close())
				late = false
			}
		}
		asked := false // for files, in vain, which takes nothing
		for turn := 0; ; turn++ {
			order := script[turn%len(script)]
			forFiles := order&3 == 3 && !asked && runtime.GOOS != "windows"
			asked = false
			if late {
				must(t, c.SetReadDeadline(time.Now().Add(time.Millisecond*time.Duration(order>>7))))
			} else {
				must(t, c.SetReadDeadline(time.Time{}))
			}
			var got []byte
			room := -1
			switch {
			case forFiles:
				var files []*os.File
				if files, err = c.RecvFiles(1); len(files) != 0 {
					t.Fatal("bytes become files")
				}
			case order&1 == 0:
				room = int(order >> 2 & 15)
				got = make([]byte, room)
				n := 0
				n, err = c.Recv(got)
				got = got[:n]
			default:
				prefix := make([]byte, order>>2&7, 16)
				got, err = c.RecvAppend(prefix)
				if len(got) < len(prefix) || err != nil && len(got) != len(prefix) {
					t.Fatalf("appended to %d bytes gives %d", len(prefix), len(got))
				}
				got = got[len(prefix):]
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() && late {
				if len(got) != 0 {
					t.Fatalf("%q comes with %v", got, err)
				}
				more(max(1+int(order>>1&3), len(wire)/64)) // or it would take long
				continue
			}

			var want []byte
			var wantErr error
			switch {
			case len(rest) == 0 && !within:
				wantErr = io.EOF
			case forFiles && len(rest) == 0:
				wantErr = io.ErrUnexpectedEOF
			case forFiles:
				if !errors.Is(err, ipc.ErrNoFiles) {
					t.Fatalf("turn %d: asked for files where %q is: %v", turn, rest, err)
				}
				asked = true
				continue
			case len(rest) < 4:
				wantErr = io.ErrUnexpectedEOF
			default:
				size := binary.BigEndian.Uint32(rest)
				switch body := rest[4:]; {
				case size > uint32(ipc.FrameMax):
					if err == nil || errors.Is(err, io.EOF) || len(got) != 0 {
						t.Fatalf("a length of %d gives %q, %v", size, got, err)
					}
					return
				case room >= 0 && int(size) > room && len(body) >= room:
					want, wantErr = body[:room], ipc.ErrMsgTooLong
				case len(body) < int(size):
					wantErr = io.ErrUnexpectedEOF
				default:
					want = body[:size]
				}
				within = len(rest)-4 < int(size)
				rest = rest[min(len(rest), 4+int(size)):]
			}
			if !bytes.Equal(got, want) || !errors.Is(err, wantErr) || wantErr == nil && err != nil {
				t.Fatalf("turn %d: received %q, %v; want %q, %v", turn, got, err, want, wantErr)
			}
			if wantErr == io.EOF || wantErr == io.ErrUnexpectedEOF {
				return
			}
		}
	})
}
