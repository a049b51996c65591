//go:build linux

// Command sharedmem compares the connections of package ipc through shared memory with
// package net, with the sockets of package ipc and with shmipc-go, and prints a table in
// Markdown: medians, and in bold their ratios to package net, of time, so that less is better.
// The ratio behind that is of the CPU time that both processes take for the same work, which
// depends less on what else the machine does.
//
//	go run ./sharedmem [-rounds N] [-roundtime D] [-only REGEXP] [-split] [-limit PROGRAM]
//
// Client and server are two processes. Each round measures every side, in an order that is
// drawn anew. -only chooses the rows. -split has the client on the first CPU and the server on
// the second, by taskset(1). -limit names the program of ../limit, built, to compare with as well.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cloudwego/shmipc-go"

	"github.com/interprocess-go/ipc"
)

// A side is one of those compared.
type side struct {
	name   string
	listen func(path string) (accept func() (io.ReadWriteCloser, error), err error)
	dial   func(path string) (io.ReadWriteCloser, error)
}

func accepting[C io.ReadWriteCloser](accept func() (C, error)) func() (io.ReadWriteCloser, error) {
	return func() (io.ReadWriteCloser, error) { return accept() }
}

var sides = []side{
	{
		name: "net",
		listen: func(path string) (func() (io.ReadWriteCloser, error), error) {
			l, err := net.Listen("unix", path)
			if err != nil {
				return nil, err
			}
			return accepting(l.Accept), nil
		},
		dial: func(path string) (io.ReadWriteCloser, error) { return net.Dial("unix", path) },
	},
	{
		name: "ipc, socket",
		listen: func(path string) (func() (io.ReadWriteCloser, error), error) {
			l, err := ipc.Listen(ipc.Path(path))
			if err != nil {
				return nil, err
			}
			return accepting(l.AcceptConn), nil
		},
		dial: func(path string) (io.ReadWriteCloser, error) { return ipc.Dial(ipc.Path(path)) },
	},
	{
		name: "ipc, shared memory",
		listen: func(path string) (func() (io.ReadWriteCloser, error), error) {
			l, err := ipc.ListenShared(ipc.Path(path))
			if err != nil {
				return nil, err
			}
			return accepting(l.AcceptShared), nil
		},
		dial: func(path string) (io.ReadWriteCloser, error) { return ipc.DialShared(ipc.Path(path)) },
	},
	{
		name: "shmipc-go",
		listen: func(path string) (func() (io.ReadWriteCloser, error), error) {
			l, err := net.Listen("unix", path)
			if err != nil {
				return nil, err
			}
			return func() (io.ReadWriteCloser, error) {
				c, err := l.Accept()
				if err != nil {
					return nil, err
				}
				session, err := shmipc.Server(c, shmipc.DefaultConfig())
				if err != nil {
					return nil, err
				}
				return session.AcceptStream()
			}, nil
		},
		dial: func(path string) (io.ReadWriteCloser, error) {
			cfg := shmipc.DefaultSessionManagerConfig()
			cfg.Network, cfg.Address = "unix", path
			cfg.ShareMemoryPathPrefix = "/dev/shm/ipc-benchmark-" + strconv.Itoa(os.Getpid())
			manager, err := shmipc.NewSessionManager(cfg)
			if err != nil {
				return nil, err
			}
			return manager.GetStream()
		},
	},
}

// A workload is one row.
type workload struct {
	name string
	kind string // pp: ping-pong; tp: stream
	size int
}

var workloads = []workload{
	{"ping-pong 64 B", "pp", 64},
	{"ping-pong 1 KiB", "pp", 1 << 10},
	{"ping-pong 64 KiB", "pp", 64 << 10},
	{"stream 4 KiB", "tp", 4 << 10},
	{"stream 64 KiB", "tp", 64 << 10},
	{"stream 1 MiB", "tp", 1 << 20},
}

func main() {
	rounds := flag.Int("rounds", 7, "how often everything is measured")
	roundTime := flag.Duration("roundtime", 200*time.Millisecond, "about how long one measurement takes")
	only := flag.String("only", "", "measure the rows that match this `regexp`")
	split := flag.Bool("split", false, "keep client and server on two CPUs, with taskset")
	limit := flag.String("limit", "", "the `program` of ../limit, to compare with as well")
	flag.Parse()
	shmipc.SetLogLevel(5) // nothing
	var err error
	switch args := flag.Args(); {
	case len(args) == 4 && args[0] == "server":
		err = serve(find(args[1]), args[2], args[3])
	case len(args) == 0:
		err = compareRows(*rounds, *roundTime, *only, *split, *limit)
	default:
		err = errors.New("unexpected arguments")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sharedmem:", err)
		os.Exit(1)
	}
}

func find(name string) *side {
	return &sides[slices.IndexFunc(sides, func(s side) bool { return s.name == name })]
}

// serve serves one client: it echoes, or takes a stream and acknowledges each megabyte.
func serve(s *side, kind, spec string) error {
	sizeText, path, _ := strings.Cut(spec, ",")
	size, err := strconv.Atoi(sizeText)
	if err != nil {
		return err
	}
	accept, err := s.listen(path)
	if err != nil {
		return err
	}
	fmt.Println("READY")
	c, err := accept()
	if err != nil {
		return err
	}
	buf, got := make([]byte, size), 0
	for {
		if kind == "pp" {
			if _, err := io.ReadFull(c, buf); err != nil {
				return nil
			}
			if _, err := c.Write(buf); err != nil {
				return nil
			}
			continue
		}
		n, err := c.Read(buf)
		if err != nil {
			return nil
		}
		for got += n; got >= block; got -= block {
			if _, err := c.Write(buf[:1]); err != nil {
				return nil
			}
		}
	}
}

const block = 8 << 20 // of a stream, between two acknowledgements

// A result is the time of a round trip in microseconds, or the rate in MB/s, and the CPU
// time of both processes for each round trip or megabyte, in microseconds; 0 if not known.
type result struct{ v, cpu float64 }

// measure measures a side once.
func measure(s *side, w workload, d time.Duration) (r result, err error) {
	dir, err := os.MkdirTemp("", "sharedmem")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	stop, err := start(self, "server", s.name, w.kind, strconv.Itoa(w.size)+","+path)
	if err != nil {
		return r, err
	}
	before := cpuTime()
	c, err := s.dial(path)
	if err != nil {
		stop()
		return r, err
	}
	work := 0.0
	if w.kind == "pp" {
		r.v, work, err = pingPong(c, w.size, d)
	} else {
		r.v, work, err = stream(c, w.size, d)
	}
	c.Close()
	used := cpuTime() - before
	used += stop()
	r.cpu = float64(used.Nanoseconds()) / 1e3 / work
	return r, err
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// onServerCPU is what a server is started with.
var onServerCPU []string

// start starts a server and waits until it is ready. stop tells how much CPU time it has used.
func start(program string, args ...string) (stop func() time.Duration, err error) {
	args = append(append(onServerCPU, program), args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() time.Duration {
		cmd.Process.Kill()
		cmd.Wait()
		return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

func pingPong(c io.ReadWriter, size int, d time.Duration) (v, trips float64, err error) {
	buf := make([]byte, size)
	n, all, began := 0, 0, time.Now()
	for warm := false; ; n++ {
		switch passed := time.Since(began); {
		case !warm && passed > d/8:
			warm, n, began = true, 0, time.Now()
		case warm && passed > d:
			return float64(passed.Nanoseconds()) / 1e3 / float64(n), float64(all), nil
		}
		if _, err := c.Write(buf); err != nil {
			return 0, 0, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return 0, 0, err
		}
		all++
	}
}

func stream(c io.ReadWriter, size int, d time.Duration) (rate, megabytes float64, err error) {
	buf := make([]byte, size)
	blocks, began := -1, time.Now() // the first one does not count
	for {
		for sent := 0; sent < block; sent += size {
			if _, err := c.Write(buf); err != nil {
				return 0, 0, err
			}
		}
		if _, err := io.ReadFull(c, buf[:1]); err != nil {
			return 0, 0, err
		}
		if blocks++; blocks == 0 {
			began = time.Now()
		} else if passed := time.Since(began); passed > d {
			return float64(blocks) * block / passed.Seconds() / 1e6, float64(blocks+1) * block / 1e6, nil
		}
	}
}

// measureLimit measures the program in C.
func measureLimit(program string, w workload, d time.Duration) (r result, err error) {
	name := map[string]string{"pp": "memory", "tp": "memory-stream"}[w.kind]
	out, err := exec.Command(program, name, strconv.Itoa(w.size), strconv.FormatInt(d.Milliseconds(), 10)).Output()
	if err == nil {
		_, err = fmt.Sscan(string(out), &r.v)
	}
	return r, err
}

func compareRows(rounds int, d time.Duration, only string, split bool, limit string) error {
	rows, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	workloads = slices.DeleteFunc(workloads, func(w workload) bool { return !rows.MatchString(w.name) })
	if split {
		onServerCPU = []string{"taskset", "-c", "1"}
		out, err := exec.Command("taskset", "-a", "-p", "-c", "0", strconv.Itoa(os.Getpid())).CombinedOutput()
		if err != nil {
			return fmt.Errorf("taskset: %w: %s", err, out)
		}
	}
	return compare(rounds, d, limit)
}

func compare(rounds int, d time.Duration, limit string) error {
	names := make([]string, 0, len(sides)+1)
	for _, s := range sides {
		names = append(names, s.name)
	}
	if limit != "" {
		names = append(names, "C")
	}
	fmt.Printf("| | %s |\n|---%s|\n", strings.Join(names, " | "), strings.Repeat("|---", len(names)))
	for _, w := range workloads {
		results, cpu, failed := map[string][]float64{}, map[string][]float64{}, map[string]error{}
		for range rounds {
			for _, i := range rand.Perm(len(names)) {
				var r result
				var err error
				if names[i] == "C" {
					r, err = measureLimit(limit, w, d)
				} else {
					r, err = measure(&sides[i], w, d)
				}
				if err != nil {
					failed[names[i]] = err
					continue
				}
				results[names[i]] = append(results[names[i]], r.v)
				cpu[names[i]] = append(cpu[names[i]], r.cpu)
			}
		}
		fmt.Print("| ", w.name)
		for _, name := range names {
			fmt.Print(" | ", cell(w, results[name], results["net"], failed[name]))
			if v := median(cpu[name]); v > 0 {
				fmt.Printf(", %.2f", v/median(cpu["net"]))
			}
		}
		fmt.Println(" |")
	}
	return nil
}

// cell is the median, and its ratio to that of net: of time and of rate, so that less is
// better.
func cell(w workload, own, net []float64, failed error) string {
	if len(own) == 0 {
		return fmt.Sprintf("fails: %v", failed)
	}
	v := median(own)
	text, ratio := fmt.Sprintf("%.3g µs", v), v/median(net)
	if w.kind == "tp" {
		text, ratio = fmt.Sprintf("%.0f MB/s", v), median(net)/v
	}
	return fmt.Sprintf("%s, **%.2f**", text, ratio)
}

// median is 0 of nothing.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(v))[len(v)/2]
}
