//go:build unix || windows

// Addresses.
package ipc_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/interprocess-go/ipc"
)

func init() { roles["useraddr"] = childTellsUserAddr }

func TestAddrSurvivesEveryWayOfWriting(t *testing.T) {
	story(t)
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
		must(t, err)
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
		must(t, err)
		var out config
		must(t, json.Unmarshal(data, &out))
		if out.Server != addr || out.Named[addr] != 1 {
			t.Errorf("JSON %s became %v", data, out)
		}

		var flagged ipc.Addr
		flags := flag.NewFlagSet("", flag.ContinueOnError)
		flags.TextVar(&flagged, "server", ipc.Name("default"), "")
		must(t, flags.Parse([]string{"-server", addr.String()}))
		if flagged != addr {
			t.Errorf("-server %s gave %v", addr, flagged)
		}
	}
}

// TestAddrTextThatIsNotUTF8IsRefused keeps JSON from making another address of it.
func TestAddrTextThatIsNotUTF8IsRefused(t *testing.T) {
	story(t)
	for _, addr := range []ipc.Addr{ipc.Path("/run/\xff"), ipc.Name("\xc3"), ipc.Path("a\xed\xa0\x80")} {
		if text, err := addr.MarshalText(); err == nil || !strings.Contains(err.Error(), "UTF-8") || text != nil {
			t.Errorf("MarshalText of %q: %q, %v", addr, text, err)
		} else {
			isOpError(t, err, "marshal")
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
	story(t)
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
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o700))
	t.Setenv("XDG_RUNTIME_DIR", dir)
	return dir
}

// childTellsUserAddr says which address it has for the name.
func childTellsUserAddr(p *parent, args []string) error {
	addr, err := ipc.UserAddr(args[0])
	if err != nil {
		p.say("%v", err)
		return nil
	}
	p.say("%v", addr)
	return nil
}

func TestUserAddrIsTheSameForEveryProcess(t *testing.T) {
	story(t)
	ownRuntimeDir(t)
	name := unique()
	addr, err := ipc.UserAddr(name)
	must(t, err)
	if again, err := ipc.UserAddr(name); again != addr || err != nil {
		t.Errorf("it is %v, and then %v, %v", addr, again, err)
	}
	other, err := ipc.UserAddr(name + "-")
	if other == addr || err != nil {
		t.Errorf("another name has %v, %v", other, err)
	}
	child := startChild(t, "useraddr", name)
	child.mustSay(addr.String())
	child.end()
	l := listen(t, addr)
	serves(t, l, addr)
	server := startChild(t, "connect", addr.String())
	expect(t, accept(t, l), "hello from a child")
	server.kill()
}

func TestUserAddrRefusesBadNames(t *testing.T) {
	story(t)
	ownRuntimeDir(t)
	for _, name := range []string{
		"", ".", "..", "a/b", `a\b`, "/a", ".a", "a.", "a b", "a\x00", "ü", "a:b", "a.lock", ".lock", "@a",
	} {
		addr, err := ipc.UserAddr(name)
		if err == nil || addr != (ipc.Addr{}) || !strings.Contains(err.Error(), strconv.Quote(name)) {
			t.Errorf("%q has %v, %v", name, addr, err)
		}
		isOpError(t, err, "useraddr")
	}
	_, err := ipc.UserAddr(strings.Repeat("n", 300))
	matches(t, err, ipc.ErrNameTooLong)
}

func TestAddrTellsItsNetworkAndText(t *testing.T) {
	story(t)
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
	story(t)
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
	story(t)
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
	story(t)
	for _, bad := range badAddrs {
		l, err := ipc.Listen(bad.addr)
		bad.refused(t, "listen", err)
		if l != nil {
			t.Error("a listener comes with the error")
		}
		c, err := ipc.Dial(bad.addr)
		bad.refused(t, "dial", err)
		if c != nil {
			t.Error("a connection comes with the error")
		}
		_, err = ipc.Dialer{Wait: true}.Dial(bad.addr) // would wait for ever
		bad.refused(t, "dial", err)
	}
	if _, err := ipc.Dial(ipc.Addr{}); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("dial of the zero Addr: %v", err)
	}
}

func TestListenConfigAndDialerRefuseBadOptions(t *testing.T) {
	overEachAddr(t, func(t *testing.T, addr ipc.Addr) {
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
		listen(t, addr)
		if _, err := (ipc.Dialer{Access: 2}).Dial(addr); err == nil || !strings.Contains(err.Error(), "Access(2)") {
			t.Errorf("Dialer{Access: 2}: %v", err)
		}
	})
}

func TestListenConfigOptionsHaveNames(t *testing.T) {
	story(t)
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
	story(t)
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
		isOpError(t, err, "marshal")
	}
	access, takeover := ipc.Everyone, ipc.TakeoverNever
	for _, text := range []string{"", "everyone", "Everyone ", "2", "Access(2)", "Takeover(3)"} {
		for _, err := range []error{access.UnmarshalText([]byte(text)), takeover.UnmarshalText([]byte(text))} {
			if err == nil || !strings.Contains(err.Error(), strconv.Quote(text)) {
				t.Errorf("%q is read: %v", text, err)
			}
			isOpError(t, err, "parse")
		}
	}
	if access != ipc.Everyone || takeover != ipc.TakeoverNever {
		t.Errorf("words that are none change it to %v, %v", access, takeover)
	}
}

func TestConnKnowsTheAddress(t *testing.T) {
	overEachServer(t, func(t *testing.T, addr ipc.Addr, s server) {
		client, there := s.connect(t)
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
		talk(t, client, there)
		must(t, there.Close())
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
	story(t)
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
	story(t)
	a, b := pair(t)
	c, d := msgPair(t)
	for _, got := range []net.Addr{
		a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr(), c.LocalAddr(), d.RemoteAddr(),
	} {
		if got != (ipc.Addr{}) {
			t.Errorf("an end of a pair has the address %v", got)
		}
	}
}

func TestListenZeroAddrIsAFreshName(t *testing.T) {
	story(t)
	a, b := listen(t, ipc.Addr{}), listen(t, ipc.Addr{})
	if a.Addr() == b.Addr() {
		t.Fatalf("two listeners at %v", a.Addr())
	}
	for _, l := range []*ipc.Listener{a, b} {
		addr, err := ipc.ParseAddr(l.Addr().String()) // as another process would be told
		must(t, err)
		serves(t, l, addr)
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
