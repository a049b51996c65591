//go:build unix || windows

package ipc

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// FuzzTarget looks up what addresses of any text are to the system, without asking
// it. What a target must be like on this system is known to checkTarget.
func FuzzTarget(f *testing.F) {
	for _, s := range targetSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, a := range []Addr{Path(text), Name(text)} {
			target, err := a.resolve()
			if errno := syscall.Errno(0); errors.As(err, &errno) {
				t.Fatalf("%q asks the system: %v", a, err)
			}
			if err == nil {
				checkTarget(t, a, text, target)
			} else if target != "" {
				t.Fatalf("%q is %q, with %v", a, target, err)
			}
		}
	})
}

// FuzzInheritedEnvironment reads what anybody may have put into the environment.
func FuzzInheritedEnvironment(f *testing.F) {
	for _, s := range []string{
		"", "a,conn,3", "a,conn,3;b,reader,4", "a,conn,3;a,conn,4", "a,conn,3;", ";", ",", ",,", "a,,3", "a,conn,",
		"a,conn,2", "a,conn,03", "a,conn,+3", "a,conn,-3", "a,conn,3,4", "a,conn,99999999999999999999", "a b,conn,3",
		"a-b_c.D9,listener,1048576", "a,conn,1048577", "a;conn;3", "ü,conn,3", "a,conn,3\n", "a,conn,0x3", "a,msgconn,18446744073709551615",
		"a,conn,3@c000.8.1f;b,reader,4@1000.d.20", "a,conn,3@", "a,conn,3@x", "a,conn,3@1;b,conn,3@2",
		"l,listener,3@c000.8.1:4@8000.1.2:5@1000.d.3:6@1000.d.3:1:2:remove:2f61", "l,listener,3:4:5:5:1:2:keep:2f61",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, list string) {
		ends, err := parseInherited(list)
		if err != nil {
			if ends != nil {
				t.Fatalf("%q gives %d ends and the error %v", list, len(ends), err)
			}
			if !strings.Contains(err.Error(), inheritVar) {
				t.Fatalf("%q: %v does not say where", list, err)
			}
			return
		}
		if list == "" && len(ends) != 0 || list != "" && len(ends) != 1+strings.Count(list, ";") {
			t.Fatalf("%q gives %d ends", list, len(ends))
		}
		var entries []string
		for _, name := range slices.Sorted(maps.Keys(ends)) {
			end := ends[name]
			if !validEndName(name) || tokenDescriptors(end.token) == nil {
				t.Fatalf("%q gives %q: %+v", list, name, end)
			}
			entries = append(entries, name+","+string(end.kind)+","+end.token)
		}
		if given := strings.Split(list, ";"); list != "" { // nothing is added, nothing lost
			slices.Sort(given)
			slices.Sort(entries)
			if !slices.Equal(given, entries) {
				t.Fatalf("%q is read as %q", given, entries)
			}
		}
	})
}
