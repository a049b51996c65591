//go:build unix || windows

package ipc

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// FuzzInheritedEnvironment reads what anybody may have put into the environment.
func FuzzInheritedEnvironment(f *testing.F) {
	for _, s := range []string{
		"", "a,conn,3", "a,conn,3;b,reader,4", "a,conn,3;a,conn,4", "a,conn,3;", ";", ",", ",,", "a,,3", "a,conn,",
		"a,conn,2", "a,conn,03", "a,conn,+3", "a,conn,-3", "a,conn,3,4", "a,conn,99999999999999999999", "a b,conn,3",
		"a-b_c.D9,listener,1048576", "a,conn,1048577", "a;conn;3", "ü,conn,3", "a,conn,3\n", "a,conn,0x3", "a,msgconn,18446744073709551615",
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
			if !validEndName(name) || !validToken(end.token) {
				t.Fatalf("%q gives %q: %+v", list, name, end)
			}
			entries = append(entries, name+","+end.kind+","+end.token)
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
