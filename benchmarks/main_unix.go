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
	"runtime"
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
// needs, and ratios to net and to the limit of which less is better. A ratio is 0 if it
// means nothing.
type row struct {
	Name, Unit                    string
	IPC, Rival, Limit             float64
	Ratio, Min, Max, ToLimit, CPU float64
	Mean, MeanToLimit             float64
}

func main() {
	rounds := flag.Int("rounds", 7, "how often everything is measured")
	roundTime := flag.Duration("roundtime", 200*time.Millisecond, "about how long a round takes")
	quiet := flag.Float64("quiet", 1, "measure a round again while other processes use more than this share of the CPUs (Linux)")
	all := flag.Bool("conditions", false, "measure what waits under several conditions instead")
	flag.Parse()
	var err error
	switch flag.Arg(0) {
	case "connect": // see countCalls
		err = connect(flag.Arg(1), flag.Arg(2), flag.Arg(3))
	case "burn": // see loaded
		burn()
	default:
		err = run(*all, *quiet, "-ipc.rounds="+strconv.Itoa(*rounds), "-ipc.roundtime="+roundTime.String())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(all bool, quiet float64, flags ...string) error {
	dir, err := os.MkdirTemp("", "ipcbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m, err := newMeter(dir, flags)
	if err != nil {
		return err
	}
	if all {
		return m.conditions(quiet)
	}
	rows, err := m.measure("AgainstNet", quiet)
	if err != nil {
		return err
	}
	for _, also := range []func(dir string) (row, error){countCalls, compareSizes} {
		r, err := also(dir)
		if leftOut(err) {
			continue
		}
		if err != nil {
			return err
		}
		rows = append(rows, r)
	}
	fmt.Print("| | ipc | net | limit | to net | from, to | to the limit | means: to net, to the limit | CPU time, to net |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Println(r)
	}
	return nil
}

// leftOut reports whether a program that is needed is not there, and says so.
func leftOut(err error) bool {
	missing := errors.Is(err, exec.ErrNotFound)
	if missing {
		fmt.Fprintln(os.Stderr, "left out:", err)
	}
	return missing
}

func (r row) String() string {
	spread := ""
	if r.Min != r.Max {
		spread = fmt.Sprintf("%.2f, %.2f", r.Min, r.Max)
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %s%s | %s |", r.Name,
		r.figure(r.IPC), r.figure(r.Rival), ratio("%s", r.figure(r.Limit), r.Limit),
		ratio("**%.2f**", r.Ratio, r.Ratio), spread, ratio("%.2f", r.ToLimit, r.ToLimit),
		ratio("%.2f", r.Mean, r.Mean), ratio(", %.2f", r.MeanToLimit, r.MeanToLimit), ratio("%.2f", r.CPU, r.CPU))
}

// ratio formats v, unless what it rests on is 0 and means nothing.
func ratio(format string, v any, restsOn float64) string {
	if restsOn == 0 {
		return ""
	}
	return fmt.Sprintf(format, v)
}

func (r row) figure(v float64) string {
	if r.Unit == "" {
		return figure(v)
	}
	return figure(v) + " " + r.Unit
}

// figure writes a number with no more digits than mean something.
func figure(v float64) string {
	digits := 0
	for limit := 100.0; v < limit && v != float64(int(v)) && digits < 2; limit /= 10 {
		digits++
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

// A meter runs BenchmarkAgainstNet.
type meter struct {
	program string // the test binary
	results string // where it writes rows
	limit   string // the program of the folder limit; "" without a C compiler, and on other systems than Linux
	flags   []string
}

func newMeter(dir string, flags []string) (*meter, error) {
	m := &meter{program: filepath.Join(dir, "tests"), results: filepath.Join(dir, "results"), flags: flags}
	if err := tool("go", "test", "-c", "-o", m.program, module+"/tests"); err != nil {
		return nil, err
	}
	if runtime.GOOS != "linux" {
		return m, nil // limit.c is for Linux alone
	}
	source, err := exec.Command("go", "list", "-f", "{{.Dir}}", module+"/benchmarks").Output()
	if err != nil {
		return nil, err
	}
	limit := filepath.Join(dir, "limit")
	err = tool("cc", "-O2", "-o", limit, filepath.Join(strings.TrimSpace(string(source)), "limit", "limit.c"))
	if !leftOut(err) {
		if err != nil {
			return nil, err
		}
		m.limit = limit
		m.flags = append(m.flags, "-ipc.limit="+limit)
	}
	return m, nil
}

// measure runs the benchmarks that match, behind the words of prefix, and returns their
// rows. What they print goes to standard error.
func (m *meter) measure(match string, quiet float64, prefix ...string) (rows []row, err error) {
	os.Remove(m.results)
	line := append(prefix, m.program, "-test.run=^$", "-test.bench="+match, "-test.benchtime=1x",
		"-ipc.results="+m.results, fmt.Sprint("-ipc.quiet=", quiet))
	line = append(line, m.flags...)
	if err := tool(line[0], line[1:]...); err != nil {
		return nil, err
	}
	f, err := os.Open(m.results)
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
// Conditions

// waits matches the workloads in which somebody waits.
const waits = "AgainstNet/^(ping-pong|messages|pipe|connect|pass|stream|8_busy|100_busy|files_refused|shared_memory,_(ping|stream))"

// conditions measures under several conditions. Each takes a column, with the ratio to net
// of which less is better, the one to the limit where it was measured, and the ratio of the
// CPU time to that of net.
func (m *meter) conditions(quiet float64) error {
	const noisy = 1000 // nobody is quiet meanwhile
	var names, order []string
	cells := map[string][]string{}
	for _, c := range []struct {
		name    string
		quiet   float64
		prepare func() (end func(), err error)
		prefix  []string
	}{
		{name: "quiet", quiet: quiet},
		{name: "CPUs loaded by nice loops", quiet: noisy, prepare: loaded},
		{name: "one CPU", quiet: quiet, prefix: []string{"taskset", "-c", "0"}},
		{name: "GOMAXPROCS=1", quiet: quiet, prefix: []string{"env", "GOMAXPROCS=1"}},
		{name: "slow system calls", quiet: quiet, prefix: []string{m.limit, "slow"}},
	} {
		if len(c.prefix) > 0 && c.prefix[0] == "" {
			continue // it was not built
		}
		end := func() {}
		if c.prepare != nil {
			var err error
			if end, err = c.prepare(); err != nil {
				return err
			}
		}
		rows, err := m.measure(waits, c.quiet, c.prefix...)
		end()
		if leftOut(err) {
			continue
		}
		if err != nil {
			return err
		}
		names = append(names, c.name)
		for _, r := range rows {
			if cells[r.Name] == nil {
				order = append(order, r.Name)
			}
			cell := fmt.Sprintf("**%.2f**, %s%.2f", r.Ratio, ratio("%.2f, ", r.ToLimit, r.ToLimit), r.CPU)
			cells[r.Name] = append(cells[r.Name], cell)
		}
	}
	fmt.Println("| to net, to the limit, CPU time to net |", strings.Join(names, " | "), "|")
	fmt.Println(strings.Repeat("|---", len(names)+1) + "|")
	for _, name := range order {
		fmt.Println("|", name, "|", strings.Join(cells[name], " | "), "|")
	}
	return nil
}

// loaded keeps every CPU busy with a process that is nicer than others.
func loaded() (end func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var loops []*exec.Cmd
	end = func() {
		for _, loop := range loops {
			loop.Process.Kill()
			loop.Wait()
		}
	}
	for range runtime.NumCPU() {
		loop := exec.Command("nice", "-n", "10", self, "burn")
		if err := loop.Start(); err != nil {
			end()
			return nil, err
		}
		loops = append(loops, loop)
	}
	return end, nil
}

func burn() {
	for start := time.Now(); time.Since(start) < time.Hour; { // or until it is killed
	}
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
