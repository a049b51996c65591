//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/interprocess-go/ipc"
)

const (
	module = "github.com/interprocess-go/ipc"
	echo   = module + "/benchmarks/echo/" // the programs whose size is compared
)

// A row is one comparison, as BenchmarkAgainstNet writes them too: what each side
// needs, and ratios of which less is better. A ratio is 0 if it means nothing.
type row struct {
	Name, Unit           string
	IPC, Rival           float64
	Ratio, Min, Max, CPU float64
}

func main() {
	rounds := flag.Int("rounds", 7, "how often everything is measured")
	roundTime := flag.Duration("roundtime", 200*time.Millisecond, "about how long a round takes")
	quiet := flag.Float64("quiet", 1, "measure a round again while other processes use more than this share of the CPUs (Linux)")
	flag.Parse()
	var err error
	if flag.Arg(0) == "connect" { // see countCalls
		err = connect(flag.Arg(1), flag.Arg(2), flag.Arg(3))
	} else {
		err = run("-ipc.rounds="+strconv.Itoa(*rounds), "-ipc.roundtime="+roundTime.String(), fmt.Sprint("-ipc.quiet=", *quiet))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(flags ...string) error {
	dir, err := os.MkdirTemp("", "ipcbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	rows, err := measure(dir, flags)
	if err != nil {
		return err
	}
	for _, also := range []func(dir string) (row, error){countCalls, compareSizes} {
		r, err := also(dir)
		if errors.Is(err, exec.ErrNotFound) {
			fmt.Fprintln(os.Stderr, "left out:", err)
			continue
		}
		if err != nil {
			return err
		}
		rows = append(rows, r)
	}
	fmt.Print("| | ipc | net | ratio | from, to | CPU time |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Println(r)
	}
	return nil
}

func (r row) String() string {
	ratio, spread, cpu := "", "", ""
	if r.Ratio != 0 {
		ratio = fmt.Sprintf("**%.2f**", r.Ratio)
	}
	if r.Min != r.Max {
		spread = fmt.Sprintf("%.2f, %.2f", r.Min, r.Max)
	}
	if r.CPU != 0 {
		cpu = fmt.Sprintf("%.2f", r.CPU)
	}
	unit := ""
	if r.Unit != "" {
		unit = " " + r.Unit
	}
	return fmt.Sprintf("| %s | %s%s | %s%s | %s | %s | %s |",
		r.Name, figure(r.IPC), unit, figure(r.Rival), unit, ratio, spread, cpu)
}

// figure writes a number with no more digits than mean something.
func figure(v float64) string {
	digits := 0
	for limit := 100.0; v < limit && v != float64(int(v)) && digits < 2; limit /= 10 {
		digits++
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

// measure runs the benchmark of the package, whose progress goes to standard error.
func measure(dir string, flags []string) (rows []row, err error) {
	program, results := filepath.Join(dir, "ipc.test"), filepath.Join(dir, "results")
	if err := tool("go", "test", "-c", "-o", program, module+"/tests"); err != nil {
		return nil, err
	}
	flags = append(flags, "-test.run=^$", "-test.bench=AgainstNet", "-test.benchtime=1x", "-ipc.results="+results)
	if err := tool(program, flags...); err != nil {
		return nil, err
	}
	f, err := os.Open(results)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for lines := json.NewDecoder(f); ; {
		var r row
		switch err := lines.Decode(&r); err {
		case nil:
			rows = append(rows, r)
		case io.EOF:
			return rows, nil
		default:
			return nil, err
		}
	}
}

func tool(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", cmd, err)
	}
	return nil
}

// compareSizes builds the same program with either package.
func compareSizes(dir string) (row, error) {
	size := func(name string) (float64, error) {
		program := filepath.Join(dir, name)
		if err := tool("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, echo+name); err != nil {
			return 0, err
		}
		info, err := os.Stat(program)
		if err != nil {
			return 0, err
		}
		return float64(info.Size()) / 1e3, nil
	}
	return compare("size of an echo server", "kB", size)
}

func compare(name, unit string, measure func(side string) (float64, error)) (row, error) {
	ours, err := measure("ipc")
	if err != nil {
		return row{}, err
	}
	theirs, err := measure("net")
	return row{Name: name, Unit: unit, IPC: ours, Rival: theirs, Ratio: ours / theirs}, err
}

// ---------------------------------------------------------------------------
// System calls

// countCalls counts those of a connection from dial to close, both ends together,
// with strace(1). Those of the runtime's own threads, which have no descriptor, do
// not count, and what the program does besides is the same for any number of them.
func countCalls(dir string) (row, error) {
	self, err := os.Executable()
	if err != nil {
		return row{}, err
	}
	strace := func(side string, n int) (float64, error) {
		counts := filepath.Join(dir, "counts")
		err := tool("strace", "-f", "-c", "-e", "trace=%desc,%network", "-o", counts, self, "connect", side, filepath.Join(dir, "socket"), strconv.Itoa(n))
		if err != nil {
			return 0, err
		}
		text, err := os.ReadFile(counts)
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 4 && f[len(f)-1] == "total" {
				return strconv.ParseFloat(f[3], 64)
			}
		}
		return 0, fmt.Errorf("strace reports no total: %q", text)
	}
	return compare("system calls of a connection", "", func(side string) (float64, error) {
		const few, more = 100, 1000
		a, err := strace(side, few)
		if err != nil {
			return 0, err
		}
		b, err := strace(side, few+more)
		return (b - a) / more, err
	})
}

// connect makes n connections in turn, with a byte sent over each.
func connect(side, path, times string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	debug.SetGCPercent(-1) // no calls but those of connections
	listen := func() (net.Listener, error) { return ipc.Listen(ipc.Path(path)) }
	dial := func() (net.Conn, error) { return ipc.Dial(ipc.Path(path)) }
	if side == "net" {
		listen = func() (net.Listener, error) { return net.Listen("unix", path) }
		dial = func() (net.Conn, error) { return net.Dial("unix", path) }
	}
	l, err := listen()
	if err != nil {
		return err
	}
	defer l.Close()
	one := make([]byte, 1)
	for range n {
		client, err := dial()
		if err != nil {
			return err
		}
		server, err := l.Accept()
		if err != nil {
			return err
		}
		_, err = client.Write(one)
		if err == nil {
			_, err = server.Read(one)
		}
		if err := errors.Join(err, client.Close(), server.Close()); err != nil {
			return err
		}
	}
	return nil
}
