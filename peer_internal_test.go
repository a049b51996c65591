//go:build unix

package ipc

import (
	"slices"
	"syscall"
	"testing"
)

func TestPeerTellsWhatItKnowsAndNoMore(t *testing.T) {
	const all = knowsPID | knowsUID | knowsGID
	for _, c := range []struct {
		peer   Peer
		text   string
		userID string
	}{
		{Peer{}, "unknown peer", ""},
		{Peer{pid: 1, uid: 2, gid: 3}, "unknown peer", ""}, // numbers that nobody vouches for
		{Peer{facts: knowsUID}, "uid 0", "0"},
		{Peer{facts: knowsUID, uid: -2}, "uid 4294967294", "4294967294"}, // as an int of 32 bits
		{Peer{facts: knowsGID}, "gid 0", ""},
		{Peer{facts: knowsPID, pid: 12}, "pid 12", ""},
		{Peer{facts: all, pid: 12, uid: 1000, gid: 100}, "pid 12 uid 1000 gid 100", "1000"},
		{Peer{facts: knowsUID | knowsGID, uid: 1000, gid: 100}, "uid 1000 gid 100", "1000"},
		{Peer{user: "S-1-5-18"}, "user S-1-5-18", "S-1-5-18"},
		{Peer{facts: knowsPID, pid: 4, user: "S-1-5-18"}, "pid 4 user S-1-5-18", "S-1-5-18"},
	} {
		if got := c.peer.String(); got != c.text {
			t.Errorf("%#v is %q, want %q", c.peer, got, c.text)
		}
		if got := c.peer.UserID(); got != c.userID {
			t.Errorf("%v has the user %q, want %q", c.peer, got, c.userID)
		}
		for fact, get := range map[peerFacts]func() (int, bool){
			knowsPID: c.peer.PID, knowsUID: c.peer.UID, knowsGID: c.peer.GID,
		} {
			if _, ok := get(); ok != (c.peer.facts&fact != 0) {
				t.Errorf("%#v: fact %d is known: %v", c.peer, fact, ok)
			}
		}
	}
}

// TestPidOfAnotherNamespaceIsAbsent has the numbers with which systems say that
// they do not tell.
func TestPidOfAnotherNamespaceIsAbsent(t *testing.T) {
	for _, pid := range []int{0, -1} {
		p := unixPeer(0)
		p.add(knowsPID, &p.pid, pid)
		if got, ok := p.PID(); ok {
			t.Errorf("PID is %d for %d", got, pid)
		}
		if p.String() != "uid 0" {
			t.Errorf("the peer is %q", p)
		}
	}
	p := unixPeer(7)
	p.add(knowsGID, &p.gid, 0) // the group of root is one
	p.add(knowsPID, &p.pid, 1)
	if p.String() != "pid 1 uid 7 gid 0" {
		t.Errorf("the peer is %q", p)
	}
}

func TestStructXucredIsRead(t *testing.T) {
	words := func(w ...uint32) []uint32 { return append(w, make([]uint32, 19-len(w))...) }
	for _, c := range []struct {
		cred   []uint32
		text   string
		groups []int
	}{
		{words(0, 1000, 1, 100), "uid 1000 gid 100", []int{}},
		{words(0, 1000, 3, 100, 101, 102, 666), "uid 1000 gid 100", []int{101, 102}},
		{words(0, 1000, 0xabcd0002, 100, 101), "uid 1000 gid 100", []int{101}}, // the upper half is padding
		{words(0, 0, 0, 666), "uid 0", nil},
		{words(0, 0, 16), "uid 0 gid 0", make([]int, 15)},
		{words(0, 0, 0xffff), "uid 0 gid 0", make([]int, 15)}, // more than there is room for
		{words(0, 5, 9, 1, 2, 3, 4, 5)[:8], "uid 5 gid 1", []int{2, 3, 4, 5}},
		{words(0, 5, 3, 1)[:4], "uid 5 gid 1", []int{}},
	} {
		p, err := xucredPeer(c.cred)
		if p.String() != c.text || !slices.Equal(p.Groups(), c.groups) || (p.Groups() == nil) != (c.groups == nil) || err != nil {
			t.Errorf("%v is %v with groups %v, %v", c.cred, p, p.Groups(), err)
		}
	}
	if p, err := xucredPeer(words(1, 1000, 1, 100)); err != syscall.EINVAL || p.facts != 0 {
		t.Errorf("a struct of another version is %v, %v", p, err)
	}
}

func TestGroupIsFoundByItsName(t *testing.T) {
	const text = "# wheel:*:1:\nroot:x:0:\n\nstaff:x:50:alice,bob\nstaff:x:51:\n+::\nbad:x:many:\nbad:x:-1:\nhuge:x:4294967295:\nlast:*:60"
	for name, want := range map[string]int{
		"root": 0, "staff": 50, "last": 60, "wheel": -1, "": -1, "+": -1, "bad": -1, "huge": -1, "alice": -1, "sta": -1,
	} {
		n, ok := groupNumber(text, name)
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("%q is group %d, %v; want %d", name, n, ok, want)
		}
	}
}

func TestGroupsOfAPeerThatIsNotKnownAreNone(t *testing.T) {
	if (Peer{gid: 0}).inGroup("0") || (Peer{}).inGroup("") {
		t.Error("a peer of whom nothing is known is in a group")
	}
	p := Peer{facts: knowsGID, gid: 7, groups: []int{8, 9}}
	for _, n := range []string{"7", "8", "9"} {
		if !p.inGroup(n) {
			t.Errorf("%v is not in group %s", p, n)
		}
	}
	for _, n := range []string{"0", "", "77", "07"} {
		if p.inGroup(n) {
			t.Errorf("%v is in group %s", p, n)
		}
	}
}
