// Report reads what go test -json writes. It prints what go test prints without -v, and then the tests that were skipped,
// by reason.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

type event struct {
	Action, Package, Test, Output string
}

// A test's output is kept until it is known whether anybody wants it.
type test struct{ pkg, name string }

var (
	place = regexp.MustCompile(`^\s*[\w.-]+\.go:\d+: `)               // what t.Skip writes before the reason
	noise = regexp.MustCompile(`^(=== |PASS\n?$|\s*--- (PASS|SKIP))`) // what -v adds
)

func main() {
	output := map[test][]string{}
	reasons := map[string][]string{}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 64<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			fmt.Println(in.Text()) // not an event: print it as it is
			continue
		}
		t := test{e.Package, e.Test}
		switch e.Action {
		case "output", "build-output":
			if e.Test != "" {
				output[t] = append(output[t], e.Output)
			} else if !noise.MatchString(e.Output) {
				fmt.Print(e.Output)
			}
		case "fail":
			if e.Test == "" { // a panic, or a timeout: the output of what had not ended is all there is
				for unfinished, lines := range output {
					if unfinished.pkg == e.Package {
						fmt.Printf("unfinished: %s\n%s", unfinished.name, strings.Join(lines, ""))
					}
				}
			} else {
				fmt.Print(strings.Join(output[t], ""))
			}
			delete(output, t)
		case "skip":
			if e.Test != "" {
				r := reason(output[t])
				reasons[r] = append(reasons[r], e.Test)
			}
			delete(output, t)
		case "pass":
			delete(output, t)
		}
	}
	if err := in.Err(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var all []string
	for r, names := range reasons {
		slices.Sort(names)
		all = append(all, fmt.Sprintf("skipped %s: %s", strings.Join(slices.Compact(names), ", "), r))
	}
	slices.Sort(all)
	for _, line := range all {
		fmt.Println(line)
	}
}

// reason is the last thing that a skipped test said.
func reason(lines []string) string {
	last := "no reason given"
	for i, line := range lines {
		if place.MatchString(line) {
			last = strings.TrimSpace(place.ReplaceAllString(line, ""))
			for _, more := range lines[i+1:] {
				if noise.MatchString(more) {
					break
				}
				last += " " + strings.TrimSpace(more)
			}
		}
	}
	return last
}
