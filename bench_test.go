//go:build unix

package ipc_test

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// The benchmarks compare with package net, and os.Pipe for pipes, in the same
// run: two processes, the two sides of the comparison by turns, medians.
//
//	go test -run '^$' -bench AgainstNet -benchtime 1x .
//
// prints a table of ratios. Times are never asserted.

var (
	benchRounds = flag.Int("ipc.rounds", 5, "rounds of each comparison")
	benchTime   = flag.Duration("ipc.roundtime", 200*time.Millisecond, "about how long a round takes")
)

// A contender is one side of the comparison.
type contender struct {
	name   string
	listen func(path string) (net.Listener, error)
	dial   func(path string) (net.Conn, error)
	pipe   func() (r io.ReadCloser, w io.WriteCloser, err error)
	reader func(fd uintptr) (io.ReadCloser, error) // of an inherited pipe
	writer func(fd uintptr) (io.WriteCloser, error)
	send   func(c net.Conn, f *os.File) error
	recv   func(c net.Conn) (*os.File, error)
}

var contenders = []contender{
	{
		name:   "net",
		listen: func(path string) (net.Listener, error) { return net.Listen("unix", path) },
		dial: func(path string) (net.Conn, error) {
			for {
				c, err := net.Dial("unix", path)
				if !errors.Is(err, syscall.EAGAIN) { // a full backlog
					return c, err
				}
				time.Sleep(100 * time.Microsecond)
			}
		},
		pipe:   func() (io.ReadCloser, io.WriteCloser, error) { return os.Pipe() },
		reader: func(fd uintptr) (io.ReadCloser, error) { return nonblocking(fd), nil },
		writer: func(fd uintptr) (io.WriteCloser, error) { return nonblocking(fd), nil },
		send: func(c net.Conn, f *os.File) error {
			raw, err := f.SyscallConn()
			if err != nil {
				return err
			}
			raw.Control(func(fd uintptr) {
				_, _, err = c.(*net.UnixConn).WriteMsgUnix([]byte{0}, syscall.UnixRights(int(fd)), nil)
			})
			return err
		},
		recv: func(c net.Conn) (*os.File, error) {
			var b [1]byte
			oob := make([]byte, syscall.CmsgSpace(4))
			_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(b[:], oob)
			if err != nil {
				return nil, err
			}
			msgs, err := syscall.ParseSocketControlMessage(oob[:n])
			if err != nil {
				return nil, err
			}
			fds, err := syscall.ParseUnixRights(&msgs[0])
			if err != nil {
				return nil, err
			}
			return os.NewFile(uintptr(fds[0]), ""), nil
		},
	},
	{
		name:   "ipc",
		listen: func(path string) (net.Listener, error) { return ipc.Listen(ipc.Path(path)) },
		dial:   func(path string) (net.Conn, error) { return ipc.Dial(ipc.Path(path)) },
		pipe:   func() (io.ReadCloser, io.WriteCloser, error) { return ipc.Pipe() },
		reader: func(fd uintptr) (io.ReadCloser, error) {
			f := os.NewFile(fd, "")
			defer f.Close()
			return ipc.FileReader(f)
		},
		writer: func(fd uintptr) (io.WriteCloser, error) {
			f := os.NewFile(fd, "")
			defer f.Close()
			return ipc.FileWriter(f)
		},
		send: func(c net.Conn, f *os.File) error { return c.(*ipc.Conn).SendFiles(f) },
		recv: func(c net.Conn) (*os.File, error) {
			files, err := c.(*ipc.Conn).RecvFiles(1)
			if err != nil {
				return nil, err
			}
			return files[0], nil
		},
	},
}

func nonblocking(fd uintptr) *os.File {
	syscall.SetNonblock(int(fd), true)
	return os.NewFile(fd, "")
}

// A workload is one row of the comparison. Its server runs in a child.
type workload struct {
	name   string
	size   int
	better string // "time" or "rate"
	serve  func(side contender, conn net.Conn, size int)
	client func(side contender, path string, size int) (float64, error)
	pipes  bool
}

var workloads = []workload{
	{name: "ping-pong 64 B", size: 64, serve: echo, client: pingPong},
	{name: "ping-pong 1 KiB", size: 1 << 10, serve: echo, client: pingPong},
	{name: "ping-pong 64 KiB", size: 64 << 10, serve: echo, client: pingPong},
	{name: "connect, 1 byte, close", size: 1, serve: greet, client: connects},
	{name: "pass a file", size: 1, serve: takeFiles, client: passFiles},
	{name: "pipe ping-pong 64 B", size: 64, pipes: true},
	{name: "stream 4 KiB", size: 4 << 10, better: "rate", serve: drain, client: stream},
	{name: "stream 64 KiB", size: 64 << 10, better: "rate", serve: drain, client: stream},
	{name: "stream 1 MiB", size: 1 << 20, better: "rate", serve: drain, client: stream},
	{name: "100 busy, 10000 idle", size: 64, better: "rate", serve: echo, client: manyBusy},
}

func BenchmarkAgainstNet(b *testing.B) {
	for _, w := range workloads {
		b.Run(strings.ReplaceAll(w.name, " ", "_"), func(b *testing.B) {
			got := map[string][]float64{}
			cpu := map[string][]float64{}
			for range *benchRounds {
				for _, side := range contenders {
					v, used, err := round(w, side)
					if err != nil {
						b.Fatal(err)
					}
					got[side.name] = append(got[side.name], v)
					cpu[side.name] = append(cpu[side.name], used)
				}
			}
			var ratios []float64
			for i := range got["net"] {
				ratios = append(ratios, got["ipc"][i]/got["net"][i])
			}
			slices.Sort(ratios)
			b.ReportMetric(median(got["ipc"])/median(got["net"]), "xnet")
			b.ReportMetric(ratios[0], "xnet-min")
			b.ReportMetric(ratios[len(ratios)-1], "xnet-max")
			b.ReportMetric(median(cpu["ipc"])/median(cpu["net"]), "cpu-xnet")
			b.ReportMetric(median(got["ipc"]), "ipc")
			b.ReportMetric(median(got["net"]), "net")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

// round runs the workload once and returns its measure and the CPU seconds that
// both processes used for a unit of work.
func round(w workload, side contender) (v, cpu float64, err error) {
	dir, err := os.MkdirTemp("", "ipcbench")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	cmd := exec.Command(os.Args[0], "bench", side.name, w.name, path)
	cmd.Env = append(os.Environ(), childRole+"=bench")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	var r io.ReadCloser
	var wr io.WriteCloser
	if w.pipes {
		// Two plain pipes, whose ends each side then treats as its own.
		var p, q [2]int
		if err := syscall.Pipe(p[:]); err != nil {
			return 0, 0, err
		}
		if err := syscall.Pipe(q[:]); err != nil {
			return 0, 0, err
		}
		for _, fd := range []int{p[0], p[1], q[0], q[1]} {
			syscall.CloseOnExec(fd)
		}
		cr, cw := os.NewFile(uintptr(p[0]), ""), os.NewFile(uintptr(q[1]), "")
		cmd.ExtraFiles = []*os.File{cr, cw}
		defer cr.Close()
		defer cw.Close()
		if r, err = side.reader(uintptr(q[0])); err != nil {
			return 0, 0, err
		}
		if wr, err = side.writer(uintptr(p[1])); err != nil {
			return 0, 0, err
		}
		defer r.Close()
		defer wr.Close()
	}
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return 0, 0, err
	}
	before := cpuTime(syscall.RUSAGE_SELF)
	if w.pipes {
		v, err = exchange(r, wr, w.size)
		wr.Close()
	} else {
		v, err = w.client(side, path, w.size)
	}
	if err != nil {
		return 0, 0, err
	}
	used := cpuTime(syscall.RUSAGE_SELF) - before
	in.Close()
	cmd.Wait()
	used += cmd.ProcessState.UserTime().Seconds() + cmd.ProcessState.SystemTime().Seconds()
	work := v // bytes per second, all rounds equally long
	if w.better != "rate" {
		work = 1 / v
	}
	return v, used / work, nil
}

func cpuTime(who int) float64 {
	var u syscall.Rusage
	syscall.Getrusage(who, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

func init() { roles["bench"] = benchServer }

func benchServer(_ *parent, args []string) error {
	side := contenders[slices.IndexFunc(contenders, func(c contender) bool { return c.name == args[1] })]
	w := workloads[slices.IndexFunc(workloads, func(w workload) bool { return w.name == args[2] })]
	if w.pipes {
		r, err := side.reader(3)
		if err != nil {
			return err
		}
		wr, err := side.writer(4)
		if err != nil {
			return err
		}
		fmt.Println("ready")
		p := make([]byte, w.size)
		for {
			if _, err := io.ReadFull(r, p); err != nil {
				return nil
			}
			if _, err := wr.Write(p); err != nil {
				return err
			}
		}
	}
	l, err := side.listen(args[3])
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("ready")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				w.serve(side, c, w.size)
			}()
		}
	}()
	io.Copy(io.Discard, os.Stdin)
	return nil
}

func echo(_ contender, c net.Conn, size int) {
	p := make([]byte, size)
	for {
		if _, err := io.ReadFull(c, p); err != nil {
			return
		}
		if _, err := c.Write(p); err != nil {
			return
		}
	}
}

func pingPong(side contender, path string, size int) (float64, error) {
	c, err := side.dial(path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return exchange(c, c, size)
}

// exchange returns the median time of a round trip in microseconds.
func exchange(r io.Reader, w io.Writer, size int) (float64, error) {
	p := make([]byte, size)
	var times []float64
	for start := time.Now(); time.Since(start) < *benchTime; {
		t := time.Now()
		if _, err := w.Write(p); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(r, p); err != nil {
			return 0, err
		}
		times = append(times, float64(time.Since(t).Nanoseconds())/1e3)
	}
	return median(times), nil
}

func greet(_ contender, c net.Conn, _ int) {
	var b [1]byte
	c.Read(b[:])
	c.Write(b[:])
}

// connects returns the median time of connect, exchange and close.
func connects(side contender, path string, _ int) (float64, error) {
	var times []float64
	var b [1]byte
	for start := time.Now(); time.Since(start) < *benchTime; {
		t := time.Now()
		c, err := side.dial(path)
		if err != nil {
			return 0, err
		}
		if _, err := c.Write(b[:]); err != nil {
			return 0, err
		}
		if _, err := c.Read(b[:]); err != nil {
			return 0, err
		}
		c.Close()
		times = append(times, float64(time.Since(t).Nanoseconds())/1e3)
	}
	return median(times), nil
}

func takeFiles(side contender, c net.Conn, _ int) {
	for {
		f, err := side.recv(c)
		if err != nil {
			return
		}
		f.Close()
		if _, err := c.Write([]byte{1}); err != nil {
			return
		}
	}
}

// passFiles returns the median time of passing a file and an answer.
func passFiles(side contender, path string, _ int) (float64, error) {
	c, err := side.dial(path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	f, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var times []float64
	var b [1]byte
	for start := time.Now(); time.Since(start) < *benchTime; {
		t := time.Now()
		if err := side.send(c, f); err != nil {
			return 0, err
		}
		if _, err := c.Read(b[:]); err != nil {
			return 0, err
		}
		times = append(times, float64(time.Since(t).Nanoseconds())/1e3)
	}
	return median(times), nil
}

func drain(_ contender, c net.Conn, size int) {
	p := make([]byte, size)
	for {
		if _, err := c.Read(p); err != nil {
			c.Write(p[:1])
			return
		}
	}
}

// stream returns the rate in MB/s of writes of the size.
func stream(side contender, path string, size int) (float64, error) {
	c, err := side.dial(path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	p := make([]byte, size)
	n := 0
	start := time.Now()
	for time.Since(start) < *benchTime {
		m, err := c.Write(p)
		if err != nil {
			return 0, err
		}
		n += m
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c, p[:1]); err != nil {
		return 0, err
	}
	return float64(n) / time.Since(start).Seconds() / 1e6, nil
}

// manyBusy returns the exchanges per second of 100 connections beside 10000 idle
// ones, as far as the limit of descriptors allows.
func manyBusy(side contender, path string, size int) (float64, error) {
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	idle := 10000
	if n := int(limit.Cur) - 300; n < idle {
		idle = max(n, 0)
	}
	for range idle {
		c, err := side.dial(path)
		if err != nil {
			return 0, err
		}
		defer c.Close()
	}
	var busy [100]net.Conn
	for i := range busy {
		c, err := side.dial(path)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		busy[i] = c
	}
	p := make([]byte, size)
	if err := swap(busy[len(busy)-1], p); err != nil { // now the server has accepted them all
		return 0, err
	}
	var done sync.WaitGroup
	var ops atomic.Int64
	start := time.Now()
	for _, c := range busy {
		done.Go(func() {
			p := make([]byte, size)
			for time.Since(start) < *benchTime {
				if swap(c, p) != nil {
					return
				}
				ops.Add(1)
			}
		})
	}
	done.Wait()
	return float64(ops.Load()) / time.Since(start).Seconds(), nil
}

// swap sends a message to an echo and receives it again.
func swap(c net.Conn, p []byte) error {
	if _, err := c.Write(p); err != nil {
		return err
	}
	_, err := io.ReadFull(c, p)
	return err
}

// ---------------------------------------------------------------------------

// The plain benchmarks, for go test -bench and benchstat; they fail when an
// operation allocates.

func BenchmarkPair(b *testing.B) {
	for _, size := range []int{64, 4 << 10, 64 << 10} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			a, c, err := ipc.Pair()
			if err != nil {
				b.Fatal(err)
			}
			defer a.Close()
			defer c.Close()
			go echo(contender{}, c, size)
			p := make([]byte, size)
			b.SetBytes(int64(2 * size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Write(p); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(a, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
