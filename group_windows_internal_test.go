//go:build windows

package ipc

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
)

// sidUsers is BUILTIN\Users, a group that every Windows has.
const sidUsers = "S-1-5-32-545"

func TestGroupIsResolvedByNameAndSID(t *testing.T) {
	if got, err := resolveGroup(sidUsers); got != sidUsers || err != nil {
		t.Errorf("%s is %q, %v", sidUsers, got, err)
	}
	sid, err := syscall.StringToSid(sidUsers)
	if err != nil {
		t.Fatal(err)
	}
	name, _, _, err := sid.LookupAccount("") // in the language of this system
	if err != nil {
		t.Fatal(err)
	}
	if got, err := resolveGroup(name); got != sidUsers || err != nil {
		t.Errorf("%q is %q, %v", name, got, err)
	}
	if got, err := resolveGroup("no such group"); got != "" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a group that does not exist is %q, %v", got, err)
	}
	if got, err := resolveGroup("S-one"); got != "" || err == nil {
		t.Errorf("what is no SID is %q, %v", got, err)
	}
	me, err := currentUser()
	if err != nil {
		t.Fatal(err)
	}
	if sid, err = syscall.StringToSid(me); err != nil {
		t.Fatal(err)
	}
	if name, _, kind, err := sid.LookupAccount(""); err == nil && kind == syscall.SidTypeUser {
		if got, err := resolveGroup(name); err == nil {
			t.Errorf("the user %q is the group %q", name, got)
		}
	}
}

func TestGroupIsInTheDACL(t *testing.T) {
	c := PipeConfig{}
	if err := c.admitGroup(sidUsers); err != nil {
		t.Fatal(err)
	}
	own, err := OwnerOnly.SecurityDescriptor()
	if err != nil {
		t.Fatal(err)
	}
	want, _ := own.DACL()
	want = append(want, AccessEntry{SID: sidUsers, Mask: ClientRights})
	if got, ok := c.Security.DACL(); !ok || !slices.Equal(got, want) {
		t.Errorf("the DACL is %v, want %v", got, want)
	}
	if err := c.admitGroup(sidUsers); err == nil {
		t.Error("a group is added to a security descriptor of the caller")
	}
	none := PipeConfig{}
	if err := none.admitGroup(""); err != nil || none.Security != nil {
		t.Errorf("no group makes %v, %v", none.Security, err)
	}
	lc := ListenConfig{Group: sidUsers}
	l, err := lc.Listen(Addr{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.sys.control(func(h syscall.Handle) error {
		sd, err := securityOf(h)
		if err != nil {
			return err
		}
		if got, ok := sd.DACL(); ok && len(got) > 0 && !slices.ContainsFunc(got, func(e AccessEntry) bool { return e.SID == sidUsers }) {
			t.Errorf("the DACL of the pipe is %v", got) // Wine keeps none
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	lc = ListenConfig{Group: sidUsers, Sys: &SysListenConfig{Security: c.Security}}
	if l, err := lc.Listen(Addr{}); err == nil {
		l.Close()
		t.Error("Group and Sys.Security are accepted together")
	}
}
