package tests

import (
	"go/ast"
	"go/build"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The numbers of flags differ between the systems, and a flag of one call is not
// always one of another: on Linux SOCK_CLOEXEC does for pipe2(2), elsewhere it is
// EINVAL. The tests here read the package as it is for each system, and what package
// syscall is there, so that a wrong flag is found without running there.

// A flagCall is a call that takes flags. A parameter of this package's own that is
// passed on as flags stands for its callers.
type flagCall struct {
	name   string // function or method, or the constant of a raw call's number
	arg    int    // the argument with the flags
	family []string
}

var (
	openFlags   = []string{"O_"}
	pipeFlags   = []string{"O_CLOEXEC", "O_NONBLOCK"} // pipe2(2), and no other
	socketFlags = []string{"SOCK_"}
	acceptFlags = []string{"SOCK_CLOEXEC", "SOCK_NONBLOCK"} // accept4(2)
	msgFlags    = []string{"MSG_"}
)

var flagCalls = []flagCall{
	{"syscall.Pipe2", 1, pipeFlags},
	{"syscall.Open", 1, openFlags},
	{"syscall.Socket", 1, socketFlags},
	{"syscall.Socketpair", 1, socketFlags},
	{"syscall.Accept4", 1, acceptFlags},
	{"SYS_ACCEPT4", 4, acceptFlags},
	{"SYS_SENDMSG", 3, msgFlags},
	{"SYS_SENDTO", 4, msgFlags},
	{"SYS_RECVMSG", 3, msgFlags},
	{"syscall.SendmsgN", 4, msgFlags},
	{"syscall.Recvmsg", 3, msgFlags},
	{"syscall.Sendto", 2, msgFlags},
	{"syscall.Recvfrom", 2, msgFlags},
	{"syscall.Shutdown", 1, []string{"SHUT_"}},
	{"syscall.GetsockoptInt", 2, []string{"SO_"}},
	{"syscall.SetsockoptInt", 2, []string{"SO_"}},
	{"syscall.FcntlFlock", 1, []string{"F_"}},
	{"SYS_FCNTL", 1, []string{"F_"}},
	{"open", 1, openFlags},
	{"newSocket", 0, socketFlags},
	{"sendmsg", 2, msgFlags}, // of an fd
	{"recvmsg", 2, msgFlags},
	{"sendmsg", 3, msgFlags}, // of a kernel
	{"recvmsg", 3, msgFlags},
	{"shutdown", 0, []string{"SHUT_"}},
}

// flagFields are fields that carry the flags of a call that is made elsewhere.
var flagFields = map[string][]string{"flags": msgFlags}

// ownNumbers are flags and options that package syscall lacks: where they are used,
// by the name of the constant, or the value where there is none, with their origin.
var ownNumbers = map[string][]string{
	"aix":     {"0x80", "0x4000"}, // dontWait: sys/socket.h, MSG_NONBLOCK; of Solaris
	"illumos": {"0x80", "0x4000"}, // dontWait: sys/socket.h
	"solaris": {"0x80", "0x4000"}, // dontWait: sys/socket.h
	"linux":   {"oPath", "soPeerPidfd", "soPeerSec", "soPeerGroups", "soPassRights", "setPipeSize", "getPipeSize"},
	"android": {"oPath", "soPeerPidfd", "soPeerSec", "soPeerGroups", "soPassRights", "setPipeSize", "getPipeSize"},
	"darwin":  {"localPeerPID", "0x80000"}, // sys/un.h; noSignal: sys/socket.h, MSG_NOSIGNAL
}

// numbers are those of the systems' headers, for what flags are put together from and
// for calls by number: sys/fcntl.h, sys/socket.h, sys/event.h and sys/syscall.h, on Linux
// asm-generic/fcntl.h and linux/socket.h. Some are written out in the package, in a file
// for several systems.
var numbers = map[string]map[string]int64{
	"linux": {
		"O_CLOEXEC": 0x80000, "O_NONBLOCK": 0x800, "SOCK_CLOEXEC": 0x80000, "SOCK_NONBLOCK": 0x800, "SOCK_STREAM": 1, "SOCK_SEQPACKET": 5,
		"MSG_DONTWAIT": 0x40, "MSG_EOR": 0x80, "MSG_PEEK": 2, "MSG_TRUNC": 0x20, "MSG_CTRUNC": 8, "MSG_CMSG_CLOEXEC": 0x40000000,
	},
	"freebsd": {
		"O_CLOEXEC": 0x100000, "O_NONBLOCK": 4, "SOCK_CLOEXEC": 0x10000000, "SOCK_NONBLOCK": 0x20000000, "SOCK_STREAM": 1, "SOCK_SEQPACKET": 5,
		"MSG_DONTWAIT": 0x80, "MSG_EOR": 8, "MSG_PEEK": 2, "MSG_TRUNC": 0x10, "MSG_CTRUNC": 0x20, "MSG_CMSG_CLOEXEC": 0x40000,
		"MSG_NOSIGNAL": 0x20000, "EVFILT_WRITE": -2, "EVFILT_PROC": -5, "EV_ADD": 1, "EV_ONESHOT": 0x10, "NOTE_LOWAT": 1, "NOTE_EXIT": 0x80000000,
		"SYS_POLL": 209, "SYS_SHM_UNLINK": 483, "SYS_BINDAT": 538, "SYS_CONNECTAT": 539, "SYS_ACCEPT4": 541, "SYS_FSTATAT": 552, // of FreeBSD 12
	},
	"openbsd": {
		"SO_PEERCRED": 0x1022, "MSG_NOSIGNAL": 0x400, "EVFILT_PROC": -5, "NOTE_EXIT": 0x80000000,
		"O_CLOEXEC": 0x10000, "O_NONBLOCK": 4, "SOCK_CLOEXEC": 0x8000, "SOCK_NONBLOCK": 0x4000, "SOCK_STREAM": 1, "SOCK_SEQPACKET": 5,
		"MSG_DONTWAIT": 0x80, "MSG_EOR": 8, "MSG_PEEK": 2, "MSG_TRUNC": 0x10, "MSG_CTRUNC": 0x20, "MSG_CMSG_CLOEXEC": 0x800,
	},
	"netbsd": {
		"MSG_NOSIGNAL": 0x400, "EVFILT_PROC": 4, "NOTE_EXIT": 0x80000000,
		"O_CLOEXEC": 0x400000, "O_NONBLOCK": 4, "SOCK_CLOEXEC": 0x10000000, "SOCK_NONBLOCK": 0x20000000, "SOCK_STREAM": 1, "SOCK_SEQPACKET": 5,
		"MSG_DONTWAIT": 0x80, "MSG_EOR": 8, "MSG_PEEK": 2, "MSG_TRUNC": 0x10, "MSG_CTRUNC": 0x20, "MSG_CMSG_CLOEXEC": 0x800,
	},
	"dragonfly": {
		"SYS_OPENAT": 504, "SYS_FSTATAT": 505, "SYS_FCHMODAT": 506, "SYS_FCHOWNAT": 507, "SYS_UNLINKAT": 508, "SYS_RENAMEAT": 523, "SYS_LINKAT": 531,
		"MSG_NOSIGNAL": 0x400, "EVFILT_PROC": -5, "NOTE_EXIT": 0x80000000,
		"O_CLOEXEC": 0x20000, "O_NONBLOCK": 4, "SOCK_CLOEXEC": 0x10000000, "SOCK_NONBLOCK": 0x20000000, "SOCK_STREAM": 1, "SOCK_SEQPACKET": 5,
		"MSG_DONTWAIT": 0x80, "MSG_EOR": 8, "MSG_PEEK": 2, "MSG_TRUNC": 0x10, "MSG_CTRUNC": 0x20, "MSG_CMSG_CLOEXEC": 0x1000,
	},
	"darwin": {
		"SYS_SHM_OPEN": 266, "SYS_SHM_UNLINK": 267, "EVFILT_PROC": -5, "NOTE_EXIT": 0x80000000,
		"O_CLOEXEC": 0x1000000, "O_NONBLOCK": 4, "SOCK_STREAM": 1,
		"MSG_DONTWAIT": 0x80, "MSG_EOR": 8, "MSG_PEEK": 2, "MSG_TRUNC": 0x10, "MSG_CTRUNC": 0x20,
	},
	"illumos": {
		"O_CLOEXEC": 0x800000, "O_NONBLOCK": 0x80, "SOCK_STREAM": 2, "MSG_EOR": 8, "MSG_PEEK": 2, "MSG_TRUNC": 0x20, "MSG_CTRUNC": 0x10,
		"MSG_DONTWAIT": 0x80, "SCM_RIGHTS": 0x1010,
	},
	"aix": {
		"O_CLOEXEC": 0x800000, "O_NONBLOCK": 4, "SOCK_STREAM": 1, "MSG_EOR": 8, "MSG_PEEK": 2, "MSG_TRUNC": 0x10, "MSG_CTRUNC": 0x20,
		"MSG_NONBLOCK": 0x4000,
	},
}

func TestFlagsAreThoseOfTheCallOnEverySystem(t *testing.T) {
	for _, port := range []string{"linux/amd64", "android/arm64", "freebsd/amd64", "openbsd/amd64", "netbsd/amd64",
		"dragonfly/amd64", "darwin/arm64", "illumos/amd64", "solaris/amd64", "aix/ppc64"} {
		t.Run(port, func(t *testing.T) {
			p := readPort(t, port)
			calls := map[string]int{}
			for _, file := range p.files {
				ast.Inspect(file, func(n ast.Node) bool {
					switch n := n.(type) {
					case *ast.CallExpr:
						for _, c := range flagCalls {
							if len(n.Args) > c.arg && p.isCallOf(n, c.name) {
								calls[c.name]++
								p.check(t, c.name, n.Args[c.arg], c.family)
							}
						}
					case *ast.KeyValueExpr: // of an op, which the attempt takes them from
						if field, ok := n.Key.(*ast.Ident); ok && flagFields[field.Name] != nil {
							calls[field.Name]++
							p.check(t, field.Name, n.Value, flagFields[field.Name])
						}
					}
					return true
				})
			}
			for _, name := range []string{"syscall.Socket", "syscall.Socketpair", "syscall.Open", "flags"} {
				if calls[name] == 0 {
					t.Errorf("no call of %s was found", name) // this test has to follow where it went
				}
			}
			if system := p.numbersOf(); system != nil {
				for name, want := range system {
					c, ok := p.syscall.Scope().Lookup(name).(*types.Const)
					if !ok {
						t.Errorf("package syscall has no %s", name)
					} else if got, _ := constant.Int64Val(c.Val()); got != want {
						t.Errorf("%s is %#x in package syscall, and %#x in the header", name, got, want)
					}
				}
			}
		})
	}
}

// callsByNumber are the functions that may name a call by number of package syscall where
// that does not reach every number: on OpenBSD it says ENOSYS to nearly all, on AIX EINVAL,
// and on AIX, illumos and Solaris a program with any but Syscall does not link. These
// functions are not reached there, or know the one number that works.
var callsByNumber = map[string][]string{
	"openbsd": {"syscall6", "unlink", "sendEmpty"},
	"aix":     {"unlink", "peerOf"},
	"illumos": {"unlink", "peerOf"},
	"solaris": {"unlink", "peerOf"},
}

func TestCallsByNumberAreReachedOnEverySystem(t *testing.T) {
	for _, name := range []string{"openbsd/amd64", "aix/ppc64", "illumos/amd64", "solaris/amd64"} {
		t.Run(name, func(t *testing.T) {
			p := readPort(t, name)
			for _, file := range p.files {
				for _, d := range file.Decls {
					f, _ := d.(*ast.FuncDecl)
					ast.Inspect(d, func(n ast.Node) bool {
						e, _ := n.(ast.Expr)
						call := p.syscallName(e)
						switch {
						case !strings.HasPrefix(strings.TrimPrefix(call, "Raw"), "Syscall"):
						case f == nil || !slices.Contains(callsByNumber[p.goos], f.Name.Name):
							t.Errorf("%s: syscall.%s does not reach every call here", p.fset.Position(n.Pos()), call)
						case call != "Syscall" && p.goos != "openbsd":
							t.Errorf("%s: a program with syscall.%s does not link", p.fset.Position(n.Pos()), call)
						}
						return true
					})
				}
			}
		})
	}
}

// A port is the package as it is for one system.
type port struct {
	goos    string
	fset    *token.FileSet
	files   []*ast.File
	info    types.Info
	syscall *types.Package
	values  map[types.Object]ast.Expr // of constants and variables of the package
}

func (p *port) numbersOf() map[string]int64 {
	switch p.goos {
	case "android":
		return numbers["linux"]
	case "solaris":
		return numbers["illumos"]
	}
	return numbers[p.goos]
}

// top is the folder of the package.
const top = ".."

// readPort parses the package and package syscall for the system. Of the other
// packages nothing is known, and errors because of that are no matter.
func readPort(t *testing.T, name string) *port {
	goos, goarch, _ := strings.Cut(name, "/")
	ctx := build.Default
	ctx.GOOS, ctx.GOARCH, ctx.CgoEnabled = goos, goarch, false
	p := &port{goos: goos, fset: token.NewFileSet(), values: map[types.Object]ast.Expr{}}
	dir := filepath.Join(ctx.GOROOT, "src", "syscall")
	if _, err := os.Stat(filepath.Join(dir, "syscall.go")); err != nil {
		t.Skipf("the source of package syscall is not here: %v", err)
	}
	if _, err := os.Stat(filepath.Join(top, "ipc_unix.go")); err != nil {
		t.Skipf("the source of this package is not here: %v", err)
	}
	config := types.Config{
		Importer:         knownPackages{},
		Error:            func(error) {},
		IgnoreFuncBodies: true,
		Sizes:            types.SizesFor("gc", goarch),
	}
	p.syscall, _ = config.Check("syscall", p.fset, p.parse(t, &ctx, dir), nil)

	config.Importer, config.IgnoreFuncBodies = knownPackages{"syscall": p.syscall}, false
	p.files = p.parse(t, &ctx, top)
	p.info = types.Info{Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{}}
	config.Check("ipc", p.fset, p.files, &p.info)
	for _, file := range p.files {
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Names) == len(spec.Values) {
				for i, name := range spec.Names {
					p.values[p.info.Defs[name]] = spec.Values[i]
				}
			}
			return true
		})
	}
	return p
}

func (p *port) parse(t *testing.T, ctx *build.Context, dir string) (files []*ast.File) {
	t.Helper()
	found, err := ctx.ImportDir(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range found.GoFiles {
		file, err := parser.ParseFile(p.fset, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

// knownPackages imports the packages it has, and every other as one without contents.
type knownPackages map[string]*types.Package

func (known knownPackages) Import(path string) (*types.Package, error) {
	if path == "unsafe" {
		return types.Unsafe, nil
	}
	if p := known[path]; p != nil {
		return p, nil
	}
	empty := types.NewPackage(path, path[strings.LastIndexByte(path, '/')+1:])
	empty.MarkComplete()
	return empty, nil
}

// isCallOf reports whether the call is one of the function or method of that name,
// or a raw one of that number.
func (p *port) isCallOf(call *ast.CallExpr, name string) bool {
	if strings.HasPrefix(name, "SYS_") {
		return len(call.Args) > 1 && p.syscallName(call.Args[0]) == name
	}
	if system, ok := strings.CutPrefix(name, "syscall."); ok {
		return p.syscallName(call.Fun) == system
	}
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return f.Name == name
	case *ast.SelectorExpr:
		return f.Sel.Name == name && p.syscallName(f) == ""
	}
	return false
}

// syscallName returns the name in package syscall that the expression is, if it is.
func (p *port) syscallName(e ast.Expr) string {
	if s, ok := e.(*ast.SelectorExpr); ok {
		if x, ok := s.X.(*ast.Ident); ok {
			if name, ok := p.info.Uses[x].(*types.PkgName); ok && name.Imported() == p.syscall {
				return s.Sel.Name
			}
		}
	}
	return ""
}

// check looks at everything that the flags are put together from. What comes as an
// argument, or out of a field, is looked at where it comes from.
func (p *port) check(t *testing.T, call string, flags ast.Expr, family []string) {
	t.Helper()
	wrong := func(what string) {
		t.Errorf("%s: %s has the flag %s", p.fset.Position(flags.Pos()), call, what)
	}
	seen := map[types.Object]bool{}
	var look func(e ast.Expr)
	look = func(e ast.Expr) {
		switch e := e.(type) {
		case *ast.BinaryExpr:
			look(e.X)
			look(e.Y)
		case *ast.ParenExpr:
			look(e.X)
		case *ast.CallExpr: // a conversion, or a function of this package that returns some
			if len(e.Args) == 1 && p.info.Types[e.Fun].IsType() {
				look(e.Args[0])
			} else if f, ok := e.Fun.(*ast.Ident); ok {
				p.lookAtResults(f, look)
			}
		case *ast.BasicLit:
			if e.Value != "0" && !slices.Contains(ownNumbers[p.goos], e.Value) {
				wrong(e.Value)
			}
		case *ast.SelectorExpr:
			if name := p.syscallName(e); name != "" {
				if !slices.ContainsFunc(family, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
					wrong("syscall." + name)
				} else if p.syscall.Scope().Lookup(name) == nil {
					wrong("syscall." + name + ", which this system has not")
				}
			}
		case *ast.Ident:
			object := p.info.Uses[e]
			value := p.values[object]
			if value != nil && !seen[object] && !slices.Contains(ownNumbers[p.goos], e.Name) {
				seen[object] = true
				look(value)
			}
		}
	}
	look(flags)
}

// lookAtResults looks at what the function of this package returns.
func (p *port) lookAtResults(name *ast.Ident, look func(ast.Expr)) {
	for _, file := range p.files {
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil || f.Name.Name != name.Name || f.Body == nil {
				continue
			}
			ast.Inspect(f.Body, func(n ast.Node) bool {
				if r, ok := n.(*ast.ReturnStmt); ok {
					for _, result := range r.Results {
						look(result)
					}
				}
				return true
			})
		}
	}
}
