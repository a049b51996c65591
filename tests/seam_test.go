package tests

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// portable are the files of the package that are the same for every system but those that
// have neither Unix nor Windows.
var portable = []string{"doc.go", "ipc.go", "ipc_shared.go"}

// TestSeamListsAllThatIsAskedOfASystem looks for names that the portable files use and do not
// have. Each must stand in the list at the head of ipc.go or ipc_shared.go: in a declaration of
// the name _, by which the compiler checks that a system has it.
func TestSeamListsAllThatIsAskedOfASystem(t *testing.T) {
	fset := token.NewFileSet()
	var files []*ast.File
	listed := map[string]bool{}
	for _, name := range portable {
		f, err := parser.ParseFile(fset, filepath.Join("..", name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
				listNames(g, listed)
			}
		}
	}
	missing := map[string]bool{}
	conf := types.Config{Importer: noPackages{}, Error: func(err error) {
		var e types.Error
		if errors.As(err, &e) {
			if name, ok := strings.CutPrefix(e.Msg, "undefined: "); ok && !listed[name] {
				missing[name] = true
			}
		}
	}}
	_, _ = conf.Check("ipc", fset, files, nil) // it fails: there is no system
	if len(listed) < 40 {
		t.Errorf("the list has %d names: it was not found", len(listed))
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		t.Errorf("%s is asked of every system, and not in the list of the seam", name)
	}
}

// listNames adds the names in the declarations of _.
func listNames(g *ast.GenDecl, listed map[string]bool) {
	for _, spec := range g.Specs {
		v := spec.(*ast.ValueSpec)
		if v.Names[0].Name != "_" {
			continue
		}
		ast.Inspect(v, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				listed[id.Name] = true
			}
			return true
		})
	}
}

// noPackages imports nothing. The checker then says nothing of what is used of a package.
type noPackages struct{}

func (noPackages) Import(path string) (*types.Package, error) {
	return nil, errors.New("no package " + path)
}

// TestSeamSectionsAreInOneOrder compares the headings of sections of ipc_unix.go and
// ipc_windows.go. Those that both have stand in the same order, so that a reader of one file
// finds the same thing in the other.
func TestSeamSectionsAreInOneOrder(t *testing.T) {
	unix, windows := sections(t, "ipc_unix.go"), sections(t, "ipc_windows.go")
	without := func(all, other []string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(heading string) bool { return !slices.Contains(other, heading) })
	}
	onUnix, onWindows := without(unix, windows), without(windows, unix)
	if len(onUnix) < 10 {
		t.Errorf("the files have only %d headings in common: %q", len(onUnix), onUnix)
	}
	if !slices.Equal(onUnix, onWindows) {
		t.Errorf("in ipc_unix.go: %q\nin ipc_windows.go: %q", onUnix, onWindows)
	}
}

// sections returns the headings of the file: a line of dashes is above each.
func sections(t *testing.T, name string) (headings []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", name))
	if err != nil {
		t.Fatal(err)
	}
	line := ""
	for next := range strings.Lines(string(text)) {
		if heading, ok := strings.CutPrefix(next, "// "); ok && strings.HasPrefix(line, "// ----------") {
			headings = append(headings, strings.TrimSpace(heading))
		}
		line = next
	}
	return headings
}
