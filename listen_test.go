//go:build unix || windows

// Addresses, listeners, and how they are dialed.
package ipc_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() { kit.Roles["useraddr"] = childTellsUserAddr }

// ---------------------------------------------------------------------------
// Addresses

func TestAddrSurvivesEveryWayOfWriting(t *testing.T) {
	kit.Story(t)
	for _, addr := range []ipc.Addr{
		ipc.Path("/run/app/socket"), ipc.Path("socket"), ipc.Path("./@socket"), ipc.Path("@socket"),
		ipc.Path(`\\.\pipe\app`), ipc.Path("ünïcödé/s"), ipc.Path("with space"),
		ipc.Name("app"), ipc.Name("@app"), ipc.Name("a/b"), ipc.Name("ünïcödé"), ipc.Name(" "),
		ipc.Name(`\`), ipc.Name(`\0`), ipc.Name(`\\0`), ipc.Name(`a\b\00\`), ipc.Name("0"), ipc.Name(`\x00`),
	} {
		if got, err := ipc.ParseAddr(addr.String()); got != addr || err != nil {
			t.Errorf("ParseAddr(%q) = %v, %v", addr, got, err)
		}
		text, err := addr.MarshalText()
		kit.Must(t, err)
		var back ipc.Addr
		if err := back.UnmarshalText(text); back != addr || err != nil {
			t.Errorf("UnmarshalText(%q) = %v, %v", text, back, err)
		}

		type config struct {
			Server ipc.Addr
			Named  map[ipc.Addr]int
		}
		in := config{addr, map[ipc.Addr]int{addr: 1}}
		data, err := json.Marshal(in)
		kit.Must(t, err)
		var out config
		kit.Must(t, json.Unmarshal(data, &out))
		if out.Server != addr || out.Named[addr] != 1 {
			t.Errorf("JSON %s became %v", data, out)
		}

		var flagged ipc.Addr
		flags := flag.NewFlagSet("", flag.ContinueOnError)
		flags.TextVar(&flagged, "server", ipc.Name("default"), "")
		kit.Must(t, flags.Parse([]string{"-server", addr.String()}))
		if flagged != addr {
			t.Errorf("-server %s gave %v", addr, flagged)
		}
	}
}

// TestAddrTextThatIsNotUTF8IsRefused keeps JSON from making another address of it.
func TestAddrTextThatIsNotUTF8IsRefused(t *testing.T) {
	kit.Story(t)
	for _, addr := range []ipc.Addr{ipc.Path("/run/\xff"), ipc.Name("\xc3"), ipc.Path("a\xed\xa0\x80")} {
		if text, err := addr.MarshalText(); err == nil || !strings.Contains(err.Error(), "UTF-8") || text != nil {
			t.Errorf("MarshalText of %q: %q, %v", addr, text, err)
		} else {
			kit.IsOpError(t, err, "marshal")
		}
		if data, err := json.Marshal(map[string]ipc.Addr{"server": addr}); err == nil {
			t.Errorf("%q became %s", addr, data)
		}
		if again, err := ipc.ParseAddr(addr.String()); again != addr || err != nil { // which changes nothing
			t.Errorf("%q is read as %q, %v", addr, again, err)
		}
	}
	replaced := ipc.Path("/run/\uFFFD") // what others make of it is text
	if text, err := replaced.MarshalText(); string(text) != replaced.String() || err != nil {
		t.Errorf("MarshalText of %q: %q, %v", replaced, text, err)
	}
}

func TestAddrIsComparable(t *testing.T) {
	kit.Story(t)
	seen := map[ipc.Addr]string{
		ipc.Path("a"): "path a", ipc.Name("a"): "name a", ipc.Path("b"): "path b", {}: "none",
	}
	for addr, want := range map[ipc.Addr]string{
		ipc.Path("a"): "path a", ipc.Name("a"): "name a", ipc.Path("b"): "path b", {}: "none", ipc.Name("b"): "",
	} {
		if got := seen[addr]; got != want {
			t.Errorf("found %q under %v, want %q", got, addr, want)
		}
	}
	if ipc.Path("a") == ipc.Name("a") {
		t.Error("a path and a name of the same text are equal")
	}
}

// ownRuntimeDir gives this process a folder for UserAddr, where Unix looks for one.
func ownRuntimeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ipc") // of a short name
	if err != nil {
		dir, err = os.MkdirTemp("", "ipc")
	}
	kit.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	kit.Must(t, os.Chmod(dir, 0o700))
	t.Setenv("XDG_RUNTIME_DIR", dir)
	return dir
}

// childTellsUserAddr says which address it has for the name.
func childTellsUserAddr(p *kit.Parent, args []string) error {
	addr, err := ipc.UserAddr(args[0])
	if err != nil {
		p.Say("%v", err)
		return nil
	}
	p.Say("%v", addr)
	return nil
}

func TestUserAddrIsTheSameForEveryProcess(t *testing.T) {
	kit.Story(t)
	ownRuntimeDir(t)
	name := kit.Unique()
	addr, err := ipc.UserAddr(name)
	kit.Must(t, err)
	if again, err := ipc.UserAddr(name); again != addr || err != nil {
		t.Errorf("it is %v, and then %v, %v", addr, again, err)
	}
	other, err := ipc.UserAddr(name + "-")
	if other == addr || err != nil {
		t.Errorf("another name has %v, %v", other, err)
	}
	child := kit.StartChild(t, "useraddr", name)
	child.MustSay(addr.String())
	child.End()
	l := kit.Listen(t, addr)
	kit.Serves(t, l, addr)
	server := kit.StartChild(t, "connect", addr.String())
	kit.Expect(t, kit.Accept(t, l), "hello from a child")
	server.Kill()
}

func TestUserAddrRefusesBadNames(t *testing.T) {
	kit.Story(t)
	ownRuntimeDir(t)
	for _, name := range []string{
		"", ".", "..", "a/b", `a\b`, "/a", ".a", "a.", "a b", "a\x00", "ü", "a:b", "a.lock", ".lock", "@a",
	} {
		addr, err := ipc.UserAddr(name)
		if err == nil || addr != (ipc.Addr{}) || !strings.Contains(err.Error(), strconv.Quote(name)) {
			t.Errorf("%q has %v, %v", name, addr, err)
		}
		kit.IsOpError(t, err, "useraddr")
	}
	_, err := ipc.UserAddr(strings.Repeat("n", 300))
	kit.Matches(t, err, ipc.ErrNameTooLong)
}

func TestAddrTellsItsNetworkAndText(t *testing.T) {
	kit.Story(t)
	network := "unix"
	if runtime.GOOS == "windows" {
		network = "pipe"
	}
	for _, c := range []struct {
		addr ipc.Addr
		text string
	}{{ipc.Path("/a/b"), "/a/b"}, {ipc.Path("@b"), "./@b"}, {ipc.Name("b"), "@b"}, {ipc.Addr{}, ""}} {
		if got := c.addr.String(); got != c.text {
			t.Errorf("String is %q, want %q", got, c.text)
		}
		if got := c.addr.Network(); got != network {
			t.Errorf("Network of %q is %q, want %q", c.text, got, network)
		}
	}
	if got, err := ipc.ParseAddr("@b"); got != ipc.Name("b") || err != nil {
		t.Errorf("@b is %#v, %v; want the name b", got, err)
	}
	if got, err := ipc.ParseAddr("b"); got != ipc.Path("b") || err != nil {
		t.Errorf("b is %#v, %v; want the path b", got, err)
	}
}

func TestAddrZeroIsAnEmptyText(t *testing.T) {
	kit.Story(t)
	text, err := ipc.Addr{}.MarshalText()
	if len(text) != 0 || err != nil {
		t.Errorf("MarshalText: %q, %v", text, err)
	}
	addr := ipc.Name("before")
	if err := addr.UnmarshalText(nil); err != nil || addr != (ipc.Addr{}) {
		t.Errorf("UnmarshalText of nothing: %v, %v", addr, err)
	}
}

func TestParseAddrRefusesOtherText(t *testing.T) {
	kit.Story(t)
	for text, words := range map[string][]string{
		"":        {"address"},
		"a\x00b":  {"NUL", "1", `"a\x00b"`},
		"@ab\x00": {"NUL", "2", `"ab\x00"`},
	} {
		addr, err := ipc.ParseAddr(text)
		if err == nil {
			t.Errorf("ParseAddr(%q) = %v", text, addr)
			continue
		}
		if addr != (ipc.Addr{}) {
			t.Errorf("ParseAddr(%q) gives %v with its error", text, addr)
		}
		for _, word := range words {
			if text != "" && !strings.Contains(err.Error(), word) {
				t.Errorf("ParseAddr(%q): %q does not say %q", text, err, word)
			}
		}
		kept := ipc.Name("kept")
		if text != "" && (kept.UnmarshalText([]byte(text)) == nil || kept != ipc.Name("kept")) {
			t.Errorf("UnmarshalText(%q) made it %v", text, kept)
		}
	}
}

func TestAddrThatIsBadIsRefused(t *testing.T) {
	kit.Story(t)
	for _, bad := range kit.BadAddrs {
		l, err := ipc.Listen(bad.Addr)
		bad.Refused(t, "listen", err)
		if l != nil {
			t.Error("a listener comes with the error")
		}
		c, err := ipc.Dial(bad.Addr)
		bad.Refused(t, "dial", err)
		if c != nil {
			t.Error("a connection comes with the error")
		}
		_, err = ipc.Dialer{Wait: true}.Dial(bad.Addr) // would wait for ever
		bad.Refused(t, "dial", err)
	}
	if _, err := ipc.Dial(ipc.Addr{}); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("dial of the zero Addr: %v", err)
	}
}

func TestListenConfigAndDialerRefuseBadOptions(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for _, c := range []struct {
			lc    ipc.ListenConfig
			words []string
		}{
			{ipc.ListenConfig{Access: 2}, []string{"Access(2)", "OwnerOnly", "Everyone"}},
			{ipc.ListenConfig{Takeover: 3}, []string{"Takeover(3)", "TakeoverStale"}},
			{ipc.ListenConfig{Backlog: -1}, []string{"Backlog", "-1", "0 or more"}},
		} {
			l, err := c.lc.Listen(addr)
			if err == nil {
				l.Close()
				t.Fatalf("%+v is accepted", c.lc)
			}
			for _, word := range c.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not say %q", err, word)
				}
			}
		}
		kit.Listen(t, addr)
		if _, err := (ipc.Dialer{Access: 2}).Dial(addr); err == nil || !strings.Contains(err.Error(), "Access(2)") {
			t.Errorf("Dialer{Access: 2}: %v", err)
		}
	})
}

func TestListenConfigOptionsHaveNames(t *testing.T) {
	kit.Story(t)
	for v, want := range map[fmt.Stringer]string{
		ipc.OwnerOnly: "OwnerOnly", ipc.Everyone: "Everyone", ipc.Access(9): "Access(9)",
		ipc.TakeoverStale: "TakeoverStale", ipc.TakeoverNever: "TakeoverNever",
		ipc.TakeoverAlways: "TakeoverAlways", ipc.Takeover(9): "Takeover(9)",
	} {
		if got := v.String(); got != want {
			t.Errorf("String is %q, want %q", got, want)
		}
	}
	if (ipc.ListenConfig{}).Access != ipc.OwnerOnly || (ipc.ListenConfig{}).Takeover != ipc.TakeoverStale {
		t.Error("the zero values are not the safe ones")
	}
}

// TestListenConfigOptionsAreWords has them in flags and JSON; what is no constant is no word.
func TestListenConfigOptionsAreWords(t *testing.T) {
	kit.Story(t)
	type options struct {
		Access   ipc.Access
		Takeover ipc.Takeover
	}
	for in, want := range map[options]string{
		{}:                                  `{"Access":"OwnerOnly","Takeover":"TakeoverStale"}`,
		{ipc.Everyone, ipc.TakeoverNever}:   `{"Access":"Everyone","Takeover":"TakeoverNever"}`,
		{ipc.OwnerOnly, ipc.TakeoverAlways}: `{"Access":"OwnerOnly","Takeover":"TakeoverAlways"}`,
	} {
		data, err := json.Marshal(in)
		if string(data) != want || err != nil {
			t.Errorf("%v is %s, %v; want %s", in, data, err, want)
		}
		out := options{9, 9}
		if err := json.Unmarshal(data, &out); out != in || err != nil {
			t.Errorf("%s is read as %v, %v", data, out, err)
		}
	}
	for _, bad := range []any{ipc.Access(2), ipc.Takeover(3)} {
		text, err := bad.(interface{ MarshalText() ([]byte, error) }).MarshalText()
		if text != nil || err == nil || !strings.Contains(err.Error(), "must be") {
			t.Errorf("%v is written %q, %v", bad, text, err)
		}
		kit.IsOpError(t, err, "marshal")
	}
	access, takeover := ipc.Everyone, ipc.TakeoverNever
	for _, text := range []string{"", "everyone", "Everyone ", "2", "Access(2)", "Takeover(3)"} {
		for _, err := range []error{access.UnmarshalText([]byte(text)), takeover.UnmarshalText([]byte(text))} {
			if err == nil || !strings.Contains(err.Error(), strconv.Quote(text)) {
				t.Errorf("%q is read: %v", text, err)
			}
			kit.IsOpError(t, err, "parse")
		}
	}
	if access != ipc.Everyone || takeover != ipc.TakeoverNever {
		t.Errorf("words that are none change it to %v, %v", access, takeover)
	}
}

func TestConnKnowsTheAddress(t *testing.T) {
	kit.OverEachServer(t, func(t *testing.T, addr ipc.Addr, s kit.Server) {
		client, there := s.Connect(t)
		for what, got := range map[string]net.Addr{
			"the listener's": s.Addr(), "the server's": there.LocalAddr(), "the client's remote": client.RemoteAddr(),
		} {
			if got != addr {
				t.Errorf("%s address is %v, want %v", what, got, addr)
			}
		}
		if client.LocalAddr() != (ipc.Addr{}) {
			t.Errorf("the client's own address is %v", client.LocalAddr())
		}
		isUnnamed(t, there.RemoteAddr(), addr)
		kit.Talk(t, client, there)
		kit.Must(t, there.Close())
		if got := there.RemoteAddr(); got != ipc.Name("") {
			t.Errorf("after Close the address of the client is %v", got)
		}
	})
}

// isUnnamed fails the test unless got is what an end without an address has, of a
// connection to the server at addr: as package net says it, and on Windows the path
// of the pipe, by which programs know that it is one.
func isUnnamed(t *testing.T, got net.Addr, addr ipc.Addr) {
	t.Helper()
	want := ipc.Name("")
	if runtime.GOOS == "windows" {
		want = ipc.Path(`\\.\pipe\` + strings.TrimPrefix(strings.TrimPrefix(addr.String(), "@"), `\\.\pipe\`))
	}
	if got != want {
		t.Errorf("the address is %v, want %v", got, want)
	}
	if text, err := got.(ipc.Addr).MarshalText(); string(text) != got.String() || err != nil {
		t.Errorf("the address %v marshals to %q, %v", got, text, err)
	}
}

// TestAddrOfTheUnnamedIsAnAtSign has the address that is there to be printed and compared.
func TestAddrOfTheUnnamedIsAnAtSign(t *testing.T) {
	kit.Story(t)
	unnamed := ipc.Name("")
	if unnamed.String() != "@" || unnamed == (ipc.Addr{}) {
		t.Errorf("it is %q, %#v", unnamed, unnamed)
	}
	if _, err := ipc.ParseAddr("@"); err == nil {
		t.Error("the text of an end without a name is read as an address")
	}
	for _, err := range []error{second(ipc.Listen(unnamed)), second(ipc.Dial(unnamed))} {
		if err == nil || !strings.Contains(err.Error(), "the name is empty") {
			t.Errorf("it can be used: %v", err)
		}
	}
}

func TestAddrOfAPairIsNone(t *testing.T) {
	kit.Story(t)
	a, b := kit.Pair(t)
	c, d := kit.MsgPair(t)
	for _, got := range []net.Addr{
		a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr(), c.LocalAddr(), d.RemoteAddr(),
	} {
		if got != (ipc.Addr{}) {
			t.Errorf("an end of a pair has the address %v", got)
		}
	}
}

func TestListenZeroAddrIsAFreshName(t *testing.T) {
	kit.Story(t)
	a, b := kit.Listen(t, ipc.Addr{}), kit.Listen(t, ipc.Addr{})
	if a.Addr() == b.Addr() {
		t.Fatalf("two listeners at %v", a.Addr())
	}
	for _, l := range []*ipc.Listener{a, b} {
		addr, err := ipc.ParseAddr(l.Addr().String()) // as another process would be told
		kit.Must(t, err)
		kit.Serves(t, l, addr)
	}
}

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

// ---------------------------------------------------------------------------
// Listening

func TestDialWhereNobodyListens(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		_, err := ipc.Dial(addr)
		kit.Matches(t, err, ipc.ErrNoListener)
		var oe *net.OpError
		if !errors.As(err, &oe) || oe.Op != "dial" || oe.Net != addr.Network() || oe.Addr != addr {
			t.Errorf("%#v does not say what was dialed", err)
		}
		if !strings.Contains(err.Error(), addr.String()) {
			t.Errorf("%q does not name the address", err)
		}

		l := kit.Listen(t, addr)
		kit.Serves(t, l, addr)
		kit.Must(t, l.Close())
		_, err = ipc.Dial(addr)
		kit.Matches(t, err, ipc.ErrNoListener)
	})
}

func TestListenDoesNotReplaceALiveServer(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		for _, policy := range []ipc.Takeover{ipc.TakeoverStale, ipc.TakeoverNever} {
			_, err := ipc.ListenConfig{Takeover: policy}.Listen(addr)
			kit.Matches(t, err, ipc.ErrAddrInUse)
			var oe *net.OpError
			if !errors.As(err, &oe) || oe.Op != "listen" || oe.Addr != addr {
				t.Errorf("%#v does not say what failed", err)
			}
			kit.Serves(t, l, addr)
		}
	})
}

func TestListenDoesNotReplaceALiveServerOfAnotherProcess(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		server := kit.StartServer(t, addr)
		_, err := ipc.Listen(addr)
		kit.Matches(t, err, ipc.ErrAddrInUse)
		client := kit.Dial(t, addr)
		kit.TalkToEcho(t, client)
		server.End()
	})
}

func TestListenAtAKilledServersAddress(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 3 {
			kit.StartServer(t, addr).Kill()
			_, err := ipc.Dial(addr)
			kit.Matches(t, err, ipc.ErrNoListener)
		}
		kit.Serves(t, kit.Listen(t, addr), addr)
	})
}

func TestListenByManyProcessesOneWins(t *testing.T) {
	const starters, rounds = 16, 3
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		var children []*kit.Child
		for range starters {
			children = append(children, kit.StartChild(t, "race", addr.String()))
		}
		for _, c := range children {
			c.MustSay("ready")
		}
		for range rounds {
			kit.StartServer(t, addr).Kill()
			for _, c := range children {
				c.Say("go")
			}
			winners := 0
			for _, c := range children {
				switch said := c.Hear(); said {
				case "won":
					winners++
				case "lost":
				default:
					t.Error(said)
				}
			}
			if winners != 1 {
				t.Fatalf("%d starters have the address", winners)
			}
			for _, c := range children {
				c.Say("done")
				c.MustSay("ready")
			}
		}
		for _, c := range children {
			c.End()
		}
	})
}

func TestListenByManyGoroutinesOneWins(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 50 {
			const starters = 8
			var starting sync.WaitGroup
			listeners := make([]*ipc.Listener, starters)
			for i := range starters {
				starting.Go(func() {
					l, err := ipc.Listen(addr)
					if err != nil && !errors.Is(err, ipc.ErrAddrInUse) {
						t.Error(err)
					}
					listeners[i] = l
				})
			}
			starting.Wait()
			winners := 0
			for _, l := range listeners {
				if l != nil {
					winners++
					kit.Serves(t, l, addr)
					kit.Must(t, l.Close())
				}
			}
			if winners != 1 {
				t.Fatalf("%d starters have the address", winners)
			}
		}
	})
}

func TestListenerAcceptEndsAtTheDeadline(t *testing.T) {
	kit.OverEachServer(t, func(t *testing.T, addr ipc.Addr, s kit.Server) {
		serves := func() {
			t.Helper()
			client, there := s.Connect(t)
			kit.Talk(t, client, there)
			kit.Must(t, errors.Join(client.Close(), there.Close()))
		}
		past := time.Now().Add(-time.Hour)

		kit.Must(t, s.SetDeadline(past))
		_, err := s.Accept()
		kit.TimedOut(t, err)
		var oe *net.OpError
		if !errors.As(err, &oe) || oe.Op != "accept" || oe.Addr != addr {
			t.Errorf("%#v does not say what failed", err)
		}
		if l, ok := s.Listener.(net.Listener); ok {
			c, err := l.Accept()
			kit.TimedOut(t, err)
			if c != nil {
				t.Errorf("%T comes with the error", c)
			}
		}

		begun := time.Now()
		kit.Must(t, s.SetDeadline(begun.Add(kit.Brief)))
		_, err = s.Accept()
		kit.TimedOut(t, err)
		if waited := time.Since(begun); waited < kit.Brief {
			t.Errorf("gave up after %v, the deadline was %v", waited, kit.Brief)
		}

		kit.Must(t, s.SetDeadline(time.Time{}))
		serves()

		waiting := kit.Begin(func() error { _, err := s.Accept(); return err })
		kit.AwaitParked(t, s.Waits, 1)
		kit.Must(t, s.SetDeadline(past))
		kit.TimedOut(t, <-waiting)

		kit.Must(t, s.SetDeadline(time.Now().Add(time.Hour)))
		serves()
	})
}

func TestListenerCloseEndsEveryAccept(t *testing.T) {
	kit.OverEachServer(t, func(t *testing.T, addr ipc.Addr, s kit.Server) {
		const waiters = 5
		accept := func() error { _, err := s.Accept(); return err }
		var waiting [waiters]<-chan error
		for i := range waiting {
			waiting[i] = kit.Begin(accept)
		}
		kit.AwaitParked(t, s.Waits, waiters)
		kit.Must(t, s.Close())
		for _, done := range waiting {
			kit.Matches(t, <-done, net.ErrClosed)
		}

		kit.Matches(t, s.Close(), net.ErrClosed)
		kit.Matches(t, s.SetDeadline(time.Now()), net.ErrClosed)
		kit.Matches(t, accept(), net.ErrClosed)
		if l, ok := s.Listener.(net.Listener); ok {
			if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept after Close: %v, %v", c, err)
			}
		}
		if s.Addr() != addr {
			t.Errorf("the address is %v after Close", s.Addr())
		}
	})
}

func TestListenerCloseSucceedsOnce(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 20 {
			oneCloseSucceeds(t, kit.Listen(t, addr))
		}
	})
}

// oneCloseSucceeds closes it by many goroutines.
func oneCloseSucceeds(t *testing.T, c io.Closer) {
	t.Helper()
	var closing [4]<-chan error
	for i := range closing {
		closing[i] = kit.Begin(c.Close)
	}
	succeeded := 0
	for _, done := range closing {
		if err := <-done; err == nil {
			succeeded++
		} else {
			kit.Matches(t, err, net.ErrClosed)
		}
	}
	if succeeded != 1 {
		t.Fatalf("%d of the closes succeed", succeeded)
	}
}

func TestListenerCloseDisconnectsClientsThatWait(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		client := kit.Dial(t, addr)
		reading := kit.BeginRead(client)
		kit.Must(t, l.Close())
		if err := <-reading; err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a client that was not accepted reads %v", err)
		}
	})
}

func TestListenerCloseKeepsItsConnections(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		client, server := kit.Connect(t, l)
		kit.Must(t, l.Close())
		kit.Talk(t, client, server)
	})
}

// TestListenerNilFails calls every method of a nil listener that can say that it failed. As
// in package net the error matches EINVAL.
func TestListenerNilFails(t *testing.T) {
	kit.Story(t)
	nilFails(t, (*ipc.Listener)(nil))
	nilFails(t, (*ipc.MsgListener)(nil))
	nilFails(t, (*ipc.SharedListener)(nil))
}

func nilFails(t *testing.T, listener any) {
	v := reflect.ValueOf(listener)
	for i := range v.NumMethod() {
		if name := v.Type().Method(i).Name; name != "Addr" && name != "FDName" {
			t.Run(v.Type().Elem().Name()+"/"+name, func(t *testing.T) { callZero(t, v.Method(i)) })
		}
	}
}

func TestListenerConnsEndsAtClose(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		const clients = 5
		for range clients {
			kit.Dial(t, addr)
			if served := 0; true {
				for conn, err := range l.Conns() { // left by break, taken up again
					kit.Must(t, err)
					kit.Must(t, conn.Close())
					served++
					break
				}
				if served != 1 {
					t.Fatalf("%d clients served", served)
				}
			}
		}

		ended := kit.ServeEach(l, (*ipc.Conn).Close)
		kit.ExpectEOF(t, kit.Dial(t, addr))
		kit.AwaitParked(t, "(*Listener).AcceptConn", 1)
		kit.Must(t, l.Close())
		kit.Must(t, <-ended)
		for range l.Conns() {
			t.Error("a closed listener has another client")
		}
	})
}

func TestListenerConnsHandsErrorsToTheLoop(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		kit.Must(t, l.SetDeadline(time.Now().Add(-time.Hour)))
		failures := 0
		for conn, err := range l.Conns() {
			if err == nil {
				conn.Close()
				break
			}
			kit.TimedOut(t, err)
			if conn != nil {
				t.Error("a connection comes with the error")
			}
			if failures++; failures == 3 { // the loop went on; let it succeed
				kit.Must(t, l.SetDeadline(time.Time{}))
				kit.Dial(t, addr)
			}
		}
		if failures != 3 {
			t.Errorf("%d errors, want 3", failures)
		}
	})
}

func TestListenConfigCheckHidesClientsFromAccept(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		var open atomic.Bool
		var asked atomic.Int32
		l := kit.ListenWith(t, ipc.ListenConfig{Check: func(p ipc.Peer) error {
			asked.Add(1)
			if pid, ok := p.PID(); ok && pid != os.Getpid() {
				t.Errorf("Check is told of %v", p)
			}
			if !open.Load() {
				return errors.New("we are closed")
			}
			return nil
		}}, addr)

		accepted := kit.Later(t, l.AcceptConn)
		for range 3 {
			refused := kit.Dial(t, addr)
			if n, err := refused.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Fatalf("a refused client reads %d, %v", n, err)
			}
		}
		open.Store(true)
		client := kit.Dial(t, addr)
		kit.Talk(t, client, accepted())
		if n := asked.Load(); n != 4 {
			t.Errorf("Check was asked %d times about 4 clients", n)
		}
	})
}

func TestListenerSetAccessHoldsFromTheNextClientOn(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenWith(t, ipc.ListenConfig{Check: func(ipc.Peer) error { return errors.New("we are closed") }}, addr)
		done := kit.WelcomeAll(l)
		isRefused := func() {
			t.Helper()
			if n, err := kit.Dial(t, addr).Read(make([]byte, 1)); n != 0 || err == nil {
				t.Fatalf("a refused client reads %d, %v", n, err)
			}
		}
		isRefused()
		for range 2 {
			kit.Must(t, l.SetAccess(ipc.OwnerOnly, nil))
			kit.Expect(t, kit.Dial(t, addr), "welcome")
			kit.Must(t, l.SetAccess(ipc.Everyone, func(ipc.Peer) error { return errors.New("we are closed again") }))
			isRefused()
		}
		kit.Must(t, l.SetAccess(ipc.Everyone, nil))
		if err := l.SetAccess(2, nil); err == nil || !strings.Contains(err.Error(), "Access(2)") {
			t.Errorf("SetAccess(2): %v", err)
		}
		kit.Expect(t, kit.Dial(t, addr), "welcome") // what cannot be changes nothing
		kit.Must(t, l.Close())
		kit.Must(t, <-done)
	})
}

// ---------------------------------------------------------------------------
// Dialing

func TestDialFullBacklogWaits(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		waiting := kit.Fill(t, addr)

		dialed := kit.Begin(func() error {
			c, err := ipc.Dial(addr)
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := io.WriteString(c, "last"); err != nil {
				return err
			}
			answer := make([]byte, 4)
			if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "last" {
				return fmt.Errorf("the answer is %q, %v", answer, err)
			}
			return nil
		})
		kit.AwaitParked(t, "Dialer.DialContext", 1)
		var inTurn, served []string
		for i, client := range waiting {
			inTurn = append(inTurn, fmt.Sprintf("%4d", i))
			kit.Send(t, client, inTurn[i])
		}
		inTurn = append(inTurn, "last")
		for range inTurn {
			server, word := kit.Accept(t, l), make([]byte, 4)
			_, err := io.ReadFull(server, word)
			kit.Must(t, err)
			served = append(served, string(word))
			kit.Send(t, server, string(word))
		}
		for i, client := range waiting {
			kit.Expect(t, client, inTurn[i])
		}
		kit.Must(t, <-dialed)
		if runtime.GOOS == "windows" { // it need not ask who they are in their order
			slices.Sort(served)
		}
		if !slices.Equal(served, inTurn) {
			t.Errorf("served are %q, want %q", served, inTurn)
		}
	})
}

// A dialEnd is a way to end a Dial that waits.
var dialEnds = map[string]func(addr ipc.Addr, d ipc.Dialer) error{
	"Timeout": func(addr ipc.Addr, d ipc.Dialer) error {
		d.Timeout = kit.Brief
		_, err := d.Dial(addr)
		return err
	},
	"Deadline": func(addr ipc.Addr, d ipc.Dialer) error {
		d.Deadline = time.Now().Add(kit.Brief)
		_, err := d.Dial(addr)
		return err
	},
	"Context": func(addr ipc.Addr, d ipc.Dialer) error {
		ctx, cancel := context.WithTimeout(context.Background(), kit.Brief)
		defer cancel()
		_, err := d.DialContext(ctx, addr)
		return err
	},
	"FirstOfThree": func(addr ipc.Addr, d ipc.Dialer) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		d.Deadline = time.Now().Add(2 * time.Hour)
		d.Timeout = kit.Brief
		_, err := d.DialContext(ctx, addr)
		return err
	},
}

// endsAtItsDeadline dials an address that lets nobody in, with every deadline.
func endsAtItsDeadline(t *testing.T, addr ipc.Addr, d ipc.Dialer) {
	t.Helper()
	for name, dialUntil := range dialEnds {
		begun := time.Now()
		err := dialUntil(addr, d)
		if waited := time.Since(begun); waited < kit.Brief {
			t.Errorf("%s: gave up after %v, before %v", name, waited, kit.Brief)
		}
		kit.TimedOut(t, err)
		kit.Matches(t, err, context.DeadlineExceeded)
		var oe *net.OpError
		if !errors.As(err, &oe) || oe.Op != "dial" || oe.Addr != addr {
			t.Errorf("%s: %#v does not say what failed", name, err)
		}
	}
}

func TestDialFullBacklogEndsAtTheDeadline(t *testing.T) {
	kit.Together(t)
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		waiting := kit.Fill(t, addr)
		endsAtItsDeadline(t, addr, ipc.Dialer{})
		endsAtItsDeadline(t, addr, ipc.Dialer{Wait: true})
		for _, client := range waiting { // nobody who gave up is in the way
			kit.Talk(t, client, kit.Accept(t, l))
		}
		kit.Serves(t, l, addr)
	})
}

func TestDialWaitEndsAtTheDeadline(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		endsAtItsDeadline(t, addr, ipc.Dialer{Wait: true})
	})
}

// TestDialWaitSaysThatNobodyListened tells the two reasons for a wait apart.
func TestDialWaitSaysThatNobodyListened(t *testing.T) {
	kit.Together(t)
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		_, err := ipc.Dialer{Wait: true, Timeout: time.Second}.Dial(addr)
		kit.TimedOut(t, err)
		kit.Matches(t, err, ipc.ErrNoListener)
		if !strings.Contains(err.Error(), "i/o timeout") {
			t.Errorf("%q does not say that time is up", err)
		}

		kit.ListenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		kit.Fill(t, addr)
		_, err = ipc.Dialer{Wait: true, Timeout: time.Second}.Dial(addr)
		kit.TimedOut(t, err)
		if errors.Is(err, ipc.ErrNoListener) {
			t.Errorf("%v matches ErrNoListener, and a server is there", err)
		}
	})
}

func TestDialDeadlineInThePastEndsAtOnce(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		kit.Listen(t, addr)
		_, err := ipc.Dialer{Deadline: time.Now().Add(-time.Hour)}.Dial(addr)
		kit.TimedOut(t, err)
		_, err = ipc.Dialer{Timeout: -time.Hour}.Dial(addr)
		kit.TimedOut(t, err)
	})
}

func TestDialWaitWaitsForTheServer(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		const clients = 3
		var dialed [clients]func() *ipc.Conn
		for i := range dialed {
			dialed[i] = kit.Later(t, func() (*ipc.Conn, error) { return ipc.Dialer{Wait: true}.Dial(addr) })
		}
		kit.AwaitParked(t, "Dialer.DialContext", clients)
		l := kit.Listen(t, addr)
		for range dialed {
			server := kit.Accept(t, l)
			kit.Send(t, server, "at last")
			kit.Must(t, server.Close())
		}
		for _, client := range dialed {
			kit.Expect(t, client(), "at last")
		}
	})
}

func TestDialWaitOutlivesARestartOfTheServer(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		kit.StartServer(t, addr).Kill() // leaves a path that refuses
		dialed := kit.Later(t, func() (*ipc.Conn, error) { return ipc.Dialer{Wait: true}.Dial(addr) })
		kit.AwaitParked(t, "Dialer.DialContext", 1)
		l := kit.Listen(t, addr)
		server := kit.Accept(t, l)
		kit.Talk(t, dialed(), server)
	})
}

func TestDialCancelEndsEveryWayOfWaiting(t *testing.T) {
	cancelled := func(t *testing.T, addr ipc.Addr, d ipc.Dialer) {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		dialing := kit.Begin(func() error { _, err := d.DialContext(ctx, addr); return err })
		kit.AwaitParked(t, "Dialer.DialContext", 1)
		cancel()
		err := <-dialing
		kit.Matches(t, err, context.Canceled)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v matches a deadline that was not", err)
		}
		_, err = d.DialContext(ctx, addr) // cancelled before it begins
		kit.Matches(t, err, context.Canceled)
	}
	t.Run("FullBacklog", func(t *testing.T) {
		kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			kit.ListenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
			kit.Fill(t, addr)
			cancelled(t, addr, ipc.Dialer{})
			cancelled(t, addr, ipc.Dialer{Timeout: time.Hour})
		})
	})
	t.Run("NoServer", func(t *testing.T) {
		kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			cancelled(t, addr, ipc.Dialer{Wait: true})
		})
	})
	t.Run("RefusingServer", func(t *testing.T) {
		kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
			kit.StartServer(t, addr).Kill()
			cancelled(t, addr, ipc.Dialer{Wait: true})
			kit.Listen(t, addr).Close() // takes the path away
		})
	})
}

func TestDialContextHasNoSayOnceConnected(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		ctx, cancel := context.WithCancel(context.Background())
		client, err := ipc.Dialer{}.DialContext(ctx, addr)
		kit.Must(t, err)
		defer client.Close()
		cancel()
		kit.Talk(t, client, kit.Accept(t, l))
	})
}

func TestDialThatWaitsEndsWithListenerClose(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.ListenWith(t, ipc.ListenConfig{Backlog: 1}, addr)
		waiting := kit.Fill(t, addr)
		var dialing [3]<-chan error
		for i := range dialing {
			dialing[i] = kit.Begin(func() error { _, err := ipc.Dial(addr); return err })
		}
		kit.AwaitParked(t, "Dialer.DialContext", len(dialing))
		kit.Must(t, l.Close())
		for _, client := range waiting {
			client.Close()
		}
		for _, done := range dialing {
			kit.Matches(t, <-done, ipc.ErrNoListener)
		}
	})
}

func TestDialerCheckCanRefuseTheServer(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		l := kit.Listen(t, addr)
		stranger := errors.New("not whom I expected")
		var told ipc.Peer
		for _, access := range []ipc.Access{ipc.OwnerOnly, ipc.Everyone} {
			c, err := ipc.Dialer{Access: access, Check: func(p ipc.Peer) error { told = p; return stranger }}.Dial(addr)
			kit.Matches(t, err, ipc.ErrUntrusted, stranger)
			if c != nil {
				t.Error("a connection comes with the error")
			}
			if pid, ok := told.PID(); ok && pid != os.Getpid() {
				t.Errorf("Check is told of %v", told)
			}
			if runtime.GOOS != "windows" { // where a client that left is seen only if it sent something
				kit.ExpectEOF(t, kit.Accept(t, l)) // nothing was sent to it
			}
		}
		client, err := ipc.Dialer{Check: func(ipc.Peer) error { return nil }}.Dial(addr)
		kit.Must(t, err)
		defer client.Close()
		kit.Talk(t, client, kit.Accept(t, l))
	})
}

func TestDialAndListenerCloseRace(t *testing.T) {
	kit.OverEachAddr(t, func(t *testing.T, addr ipc.Addr) {
		for range 300 {
			l, err := ipc.Listen(addr)
			kit.Must(t, err)
			accepting := kit.ServeEach(l, (*ipc.Conn).Close)
			dialing := kit.Begin(func() error {
				c, err := ipc.Dial(addr)
				if err != nil {
					return err
				}
				defer c.Close()
				if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
					return fmt.Errorf("read %d, %v", n, err)
				}
				return nil
			})
			kit.Must(t, l.Close())
			kit.Must(t, <-accepting)
			if err := <-dialing; err != nil {
				kit.Matches(t, err, ipc.ErrNoListener)
			}
		}
	})
}

// ---------------------------------------------------------------------------
// Words of this file

// second returns the second of two results.
func second[T any](_ T, err error) error { return err }
