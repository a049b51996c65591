//go:build unix

package tests

import (
	"bufio"
	"cmp"
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

// BenchmarkAgainstNet compares with package net, and os.Pipe for pipes, in the
// same run: two processes, the two sides of the comparison by turns, medians.
//
//	go test -run '^$' -bench AgainstNet -benchtime 1x ./tests
//
// prints a table of ratios; the program in benchmarks makes it one for people.
// Times are never asserted.

var (
	benchRounds  = flag.Int("ipc.rounds", 5, "rounds of each comparison")
	benchTime    = flag.Duration("ipc.roundtime", 200*time.Millisecond, "about how long a round takes")
	benchResults = flag.String("ipc.results", "", "append what AgainstNet measures to this file, as lines of JSON")
	benchLimit   = flag.String("ipc.limit", "", "the program of benchmarks/limit, to compare with as well")
	benchQuiet   = flag.Float64("ipc.quiet", 1, "measure a round again while other processes use more than this share of the CPUs (Linux)")
)

// A contender is one side of the comparison.
type contender struct {
	name   string
	listen func(network, path string) (net.Listener, error)
	dial   func(network, path string) (net.Conn, error)
	copy   func(dst io.Writer, src io.Reader) (int64, error)
	reader func(fd uintptr) (io.ReadCloser, error) // of an inherited pipe
	writer func(fd uintptr) (io.WriteCloser, error)
	send   func(c net.Conn, f *os.File) error
	recv   func(c net.Conn) (*os.File, error)
}

var contenders = []contender{
	{
		name:   "net",
		listen: net.Listen,
		dial: func(network, path string) (net.Conn, error) {
			for {
				c, err := net.Dial(network, path)
				full := errors.Is(err, syscall.EAGAIN)
				if runtime.GOOS != "linux" { // where it looks as if nobody listened; somebody does
					full = errors.Is(err, syscall.ECONNREFUSED)
				}
				if !full {
					return c, err
				}
				time.Sleep(100 * time.Microsecond)
			}
		},
		copy:   io.Copy,
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
		listen: listenHere,
		dial:   dialHere,
		copy:   io.Copy,
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
	{
		name:   "shared",
		listen: func(_, path string) (net.Listener, error) { return ipc.ListenShared(ipc.Path(path)) },
		dial:   func(_, path string) (net.Conn, error) { return ipc.DialShared(ipc.Path(path)) },
	},
	{
		name:   "shared frames", // with room for two
		listen: func(_, path string) (net.Listener, error) { return listenForFrames(path) },
		dial: func(_, path string) (net.Conn, error) {
			c, err := ipc.Dial(ipc.Path(path))
			if err != nil {
				return nil, err
			}
			return c.Share(forFrames)
		},
	},
	{
		name:   "plain", // ipc without its own copying
		listen: listenHere,
		dial:   dialHere,
		copy: func(dst io.Writer, src io.Reader) (int64, error) {
			return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 64<<10))
		},
	},
}

func listenHere(network, path string) (net.Listener, error) {
	if network == "unixpacket" {
		l, err := ipc.ListenMsg(ipc.Path(path))
		return packetListener{l}, err
	}
	return ipc.Listen(ipc.Path(path))
}

func dialHere(network, path string) (net.Conn, error) {
	if network == "unixpacket" {
		c, err := ipc.DialMsg(ipc.Path(path))
		return packetConn{c}, err
	}
	return ipc.Dial(ipc.Path(path))
}

var forFrames = ipc.ShareConfig{Buffer: 8 << 20}

type framesListener struct{ *ipc.Listener }

func listenForFrames(path string) (net.Listener, error) {
	l, err := ipc.Listen(ipc.Path(path))
	return framesListener{l}, err
}

func (l framesListener) Accept() (net.Conn, error) {
	c, err := l.AcceptConn()
	if err != nil {
		return nil, err
	}
	return c.Share(forFrames)
}

// Messages as net has them: a read or a write is one.
type (
	packetListener struct{ *ipc.MsgListener }
	packetConn     struct{ *ipc.MsgConn }
)

func (l packetListener) Accept() (net.Conn, error) {
	c, err := l.MsgListener.Accept()
	return packetConn{c}, err
}

func (c packetConn) Read(p []byte) (int, error)  { return c.Recv(p) }
func (c packetConn) Write(p []byte) (int, error) { return len(p), c.Send(p) }

func nonblocking(fd uintptr) *os.File {
	syscall.SetNonblock(int(fd), true)
	return os.NewFile(fd, "")
}

// A workload is one row of the comparison. Its server runs in a child.
type workload struct {
	name    string
	size    int
	unit    string        // of what client returns; one that ends in "/s" is a rate, and more is better
	network string        // "unix" by default
	ours    string        // "ipc" by default
	rival   string        // "net" by default
	pipes   bool          // two pipes instead of a connection
	atRest  bool          // nothing is done, so that the CPU time of it says nothing
	inUse   bool          // so much was said that shared memory was set up
	inTurn  bool          // the server serves a client before it accepts the next
	limit   string        // what the program of benchmarks/limit calls it
	think   time.Duration // how long the client computes before each exchange
	busy    int           // connections that exchange messages all the time
	idle    int           // connections beside them
	serve   func(side *contender, w *workload, conn net.Conn)
	client  func(side *contender, w *workload, path string) ([]float64, error) // times, or one figure
}

var workloads = []workload{
	{name: "ping-pong 64 B", limit: "ping-pong", size: 64, unit: "µs", serve: echo, client: pingPong},
	{name: "ping-pong 1 KiB", limit: "ping-pong", size: 1 << 10, unit: "µs", serve: echo, client: pingPong},
	{name: "ping-pong 64 KiB", limit: "ping-pong", size: 64 << 10, unit: "µs", serve: echo, client: pingPong},
	{name: "ping-pong 64 B, 10 µs apart", size: 64, unit: "µs", think: 10 * time.Microsecond, serve: echo, client: pingPong},
	{name: "ping-pong 64 B, 100 µs apart", size: 64, unit: "µs", think: 100 * time.Microsecond, serve: echo, client: pingPong},
	{name: "ping-pong 64 B, 1 ms apart", size: 64, unit: "µs", think: time.Millisecond, serve: echo, client: pingPong},
	{name: "messages ping-pong 64 B", limit: "messages", size: 64, unit: "µs", network: "unixpacket", serve: echo, client: pingPong},
	{name: "pipe ping-pong 64 B", limit: "pipe", size: 64, unit: "µs", pipes: true},
	{name: "connect, 1 byte, close", limit: "connect", size: 1, unit: "µs", serve: greet, client: connects},
	{name: "connect, 1 byte, close, served in turn", limit: "connect", size: 1, unit: "µs", inTurn: true, serve: greet, client: connects},
	{name: "pass a file", limit: "file", size: 1, unit: "µs", serve: takeFiles, client: passFiles},
	{name: "stream 4 KiB", limit: "stream", size: 4 << 10, unit: "MB/s", serve: drain, client: streaming},
	{name: "stream 64 KiB", limit: "stream", size: 64 << 10, unit: "MB/s", serve: drain, client: streaming},
	{name: "stream 1 MiB", limit: "stream", size: 1 << 20, unit: "MB/s", serve: drain, client: streaming},
	{name: "shared memory, ping-pong 64 B", limit: "memory", size: 64, unit: "µs", ours: "shared", serve: echo, client: pingPong},
	{name: "shared memory, ping-pong 1 KiB", limit: "memory", size: 1 << 10, unit: "µs", ours: "shared", serve: echo, client: pingPong},
	{name: "shared memory, ping-pong 64 KiB", limit: "memory", size: 64 << 10, unit: "µs", ours: "shared", serve: echo, client: pingPong},
	{name: "shared memory, connect, 1 byte, close", size: 1, unit: "µs", ours: "shared", serve: greet, client: connects},
	{name: "shared memory, stream 4 KiB", limit: "memory-stream", size: 4 << 10, unit: "MB/s", ours: "shared", serve: drain, client: streaming},
	{name: "shared memory, stream 64 KiB", limit: "memory-stream", size: 64 << 10, unit: "MB/s", ours: "shared", serve: drain, client: streaming},
	{name: "shared memory, stream 1 MiB", limit: "memory-stream", size: 1 << 20, unit: "MB/s", ours: "shared", serve: drain, client: streaming},
	{name: "shared memory, 4 MB frames in place", size: 4 << 20, unit: "µs", ours: "shared frames", serve: lookAtFrames, client: makeFrames},
	{name: "shared memory, memory of an idle connection", unit: "B", ours: "shared", atRest: true, serve: sit, client: idleMemory},
	{name: "shared memory in use, memory of an idle connection", unit: "B", ours: "shared", atRest: true, inUse: true, serve: sit, client: idleMemory},
	{name: "shared memory, CPU time of 10000 idle connections", unit: "µs per s", ours: "shared", atRest: true, serve: sit, client: idleCPU},
	{name: "shared memory in use, CPU time of idle connections", unit: "µs per s", ours: "shared", atRest: true, inUse: true, serve: sit, client: idleCPU},
	{name: "copy to a socket", size: 64 << 10, unit: "MB/s", serve: relay, client: relayed},
	{name: "copy to a socket, against a plain copy", size: 64 << 10, unit: "MB/s", rival: "plain", serve: relay, client: relayed},
	{name: "copy to TCP", size: 64 << 10, unit: "MB/s", serve: relay, client: relayedToTCP},
	{name: "copy to TCP, against a plain copy", size: 64 << 10, unit: "MB/s", rival: "plain", serve: relay, client: relayedToTCP},
	{name: "8 busy", size: 64, unit: "exchanges/s", busy: 8, serve: echo, client: manyBusy},
	{name: "100 busy, 10000 idle", size: 64, unit: "exchanges/s", busy: 100, idle: 10000, serve: echo, client: manyBusy},
	{name: "memory of an idle connection", unit: "B", atRest: true, serve: sit, client: idleMemory},
	{name: "CPU time of 10000 idle connections", unit: "µs per s", atRest: true, serve: sit, client: idleCPU},
}

func (w *workload) isRate() bool { return strings.HasSuffix(w.unit, "/s") }

func findContender(name string) *contender {
	return &contenders[slices.IndexFunc(contenders, func(c contender) bool { return c.name == name })]
}

func BenchmarkAgainstNet(b *testing.B) {
	for _, w := range workloads {
		w.network, w.ours, w.rival = cmp.Or(w.network, "unix"), cmp.Or(w.ours, "ipc"), cmp.Or(w.rival, "net")
		b.Run(strings.ReplaceAll(w.name, " ", "_"), func(b *testing.B) {
			if w.network == "unixpacket" {
				p, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET, 0)
				if err != nil {
					b.Skip("package net has no messages here: ", err)
				}
				syscall.Close(p[0])
				syscall.Close(p[1])
			}
			against(b, &w, findContender(w.ours), findContender(w.rival))
		})
	}
}

// A comparison is a row as ipc.results has it: medians, and ratios to the rival and to the
// limit of which less is better. Mean and MeanToLimit are those of mean times, which tell more
// of the long ones. A ratio is 0 if it means nothing.
type comparison struct {
	Name, Unit                    string
	IPC, Rival, Limit             float64
	Ratio, Min, Max, ToLimit, CPU float64
	Mean, MeanToLimit             float64
}

// An outcome is what a round measured: its value in the workload's unit, which is the median of
// times, their mean, and a figure for the CPU time that both processes used for a unit of work.
// Only rounds of the same length have figures that can be compared.
type outcome struct{ value, mean, cpu float64 }

func valueOf(o outcome) float64 { return o.value }
func meanOf(o outcome) float64  { return o.mean }
func cpuOf(o outcome) float64   { return o.cpu }

// among returns the median of that figure of the rounds.
func among(rounds []outcome, figure func(outcome) float64) float64 {
	var v []float64
	for _, o := range rounds {
		v = append(v, figure(o))
	}
	return median(v)
}

func against(b *testing.B, w *workload, ours, rival *contender) {
	var mine, other, limit []outcome
	var ratios []float64
	for len(ratios) < *benchRounds {
		start, before := time.Now(), busyElsewhere()
		u, err := round(w, rival)
		var v, l outcome
		if err == nil {
			v, err = round(w, ours)
		}
		if err == nil && *benchLimit != "" && w.limit != "" {
			l, err = roundOfLimit(w)
		}
		if errors.Is(err, errors.ErrUnsupported) {
			b.Skip(err)
		}
		if err != nil {
			b.Fatal(err)
		}
		room := *benchQuiet * time.Since(start).Seconds() * float64(runtime.NumCPU())
		if busyElsewhere()-before > room {
			continue // other processes did not leave the machine alone
		}
		mine, other, limit = append(mine, v), append(other, u), append(limit, l)
		ratios = append(ratios, v.value/u.value)
	}
	slices.Sort(ratios)
	row := comparison{
		Name: w.name, Unit: w.unit, IPC: among(mine, valueOf), Rival: among(other, valueOf), Limit: among(limit, valueOf),
		Min: ratios[0], Max: ratios[len(ratios)-1],
	}
	row.Ratio = row.IPC / row.Rival
	if row.Rival == 0 { // nothing to compare with
		row.Ratio, row.Min, row.Max = 0, 0, 0
	} else {
		b.ReportMetric(row.Ratio, "xnet")
		b.ReportMetric(row.Min, "xnet-min")
		b.ReportMetric(row.Max, "xnet-max")
	}
	if row.Limit != 0 {
		row.ToLimit = row.IPC / row.Limit
		b.ReportMetric(row.ToLimit, "xlimit")
		b.ReportMetric(row.Limit, "limit")
	}
	if !w.atRest {
		row.CPU = among(mine, cpuOf) / among(other, cpuOf)
		b.ReportMetric(row.CPU, "cpu-xnet")
	}
	if w.unit == "µs" {
		row.Mean = among(mine, meanOf) / among(other, meanOf)
		b.ReportMetric(row.Mean, "mean-xnet")
		if row.Limit != 0 {
			row.MeanToLimit = among(mine, meanOf) / among(limit, meanOf)
			b.ReportMetric(row.MeanToLimit, "mean-xlimit")
		}
	}
	b.ReportMetric(row.IPC, "ipc")
	b.ReportMetric(row.Rival, "net")
	b.ReportMetric(0, "ns/op")
	if w.isRate() {
		row.Ratio, row.Min, row.Max = 1/row.Ratio, 1/row.Max, 1/row.Min
		if row.Limit != 0 {
			row.ToLimit = 1 / row.ToLimit
		}
	}
	if *benchResults != "" {
		if err := appendLine(*benchResults, row); err != nil {
			b.Fatal(err)
		}
	}
}

// roundOfLimit runs the workload once with the program that is the limit.
func roundOfLimit(w *workload) (o outcome, err error) {
	out, err := exec.Command(*benchLimit, w.limit, strconv.Itoa(w.size), strconv.FormatInt(benchTime.Milliseconds(), 10)).Output()
	if err == nil {
		_, err = fmt.Sscan(string(out), &o.value, &o.mean, &o.cpu)
	}
	return o, err
}

func appendLine(path string, v any) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	return errors.Join(json.NewEncoder(f).Encode(v), f.Close())
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

func mean(v []float64) (sum float64) {
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// busyElsewhere returns how many seconds the CPUs worked for other processes than
// this one and its children, or 0 where the system does not tell.
func busyElsewhere() float64 {
	text, err := os.ReadFile("/proc/stat") // proc_stat(5)
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var busy float64
	for i, field := range strings.Fields(line)[1:9] {
		if i == 3 || i == 4 { // idle, iowait
			continue
		}
		n, _ := strconv.ParseFloat(field, 64)
		busy += n / 100
	}
	return busy - cpuTime(syscall.RUSAGE_SELF) - cpuTime(syscall.RUSAGE_CHILDREN)
}

// round runs the workload once.
func round(w *workload, side *contender) (outcome, error) {
	dir, err := os.MkdirTemp("", "ipcbench")
	if err != nil {
		return outcome{}, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	cmd := exec.Command(os.Args[0], "bench", side.name, w.name, path)
	cmd.Env = append(os.Environ(), sideVar+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return outcome{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return outcome{}, err
	}
	var r io.ReadCloser
	var wr io.WriteCloser
	if w.pipes {
		// Two plain pipes, whose ends each side then treats as its own.
		var p, q [2]int
		if err := syscall.Pipe(p[:]); err != nil {
			return outcome{}, err
		}
		if err := syscall.Pipe(q[:]); err != nil {
			return outcome{}, err
		}
		for _, fd := range []int{p[0], p[1], q[0], q[1]} {
			syscall.CloseOnExec(fd)
		}
		cr, cw := os.NewFile(uintptr(p[0]), ""), os.NewFile(uintptr(q[1]), "")
		cmd.ExtraFiles = []*os.File{cr, cw}
		defer cr.Close()
		defer cw.Close()
		if r, err = side.reader(uintptr(q[0])); err != nil {
			return outcome{}, err
		}
		if wr, err = side.writer(uintptr(p[1])); err != nil {
			return outcome{}, err
		}
		defer r.Close()
		defer wr.Close()
	}
	if err := cmd.Start(); err != nil {
		return outcome{}, err
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return outcome{}, err
	}
	before := cpuTime(syscall.RUSAGE_SELF)
	var samples []float64
	if w.pipes {
		samples, err = exchange(r, wr, w)
		wr.Close()
	} else {
		samples, err = w.client(side, w, path)
	}
	if err != nil {
		return outcome{}, err
	}
	used := cpuTime(syscall.RUSAGE_SELF) - before
	in.Close()
	cmd.Wait()
	used += cmd.ProcessState.UserTime().Seconds() + cmd.ProcessState.SystemTime().Seconds()
	o := outcome{value: median(samples), mean: mean(samples)}
	o.cpu = used * o.mean // all rounds are equally long
	if w.isRate() {
		o.cpu = used / o.mean
	}
	return o, nil
}

func cpuTime(who int) float64 {
	var u syscall.Rusage
	syscall.Getrusage(who, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// The other side is this program run again with this in its environment. It is no child of the kit, as that has a time
// to end in.
const sideVar = "IPC_TEST_SIDE"

func init() {
	otherSide = func() {
		if os.Getenv(sideVar) == "" {
			return
		}
		if err := benchServer(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// benchServer is the other process of a round: bench SIDE WORKLOAD PATH.
func benchServer(args []string) error {
	side := findContender(args[1])
	w := &workloads[slices.IndexFunc(workloads, func(w workload) bool { return w.name == args[2] })]
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
	l, err := side.listen(cmp.Or(w.network, "unix"), args[3])
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
			serve := func() {
				defer c.Close()
				w.serve(side, w, c)
			}
			if w.inTurn {
				serve()
			} else {
				go serve()
			}
		}
	}()
	io.Copy(io.Discard, os.Stdin)
	return nil
}

func echo(_ *contender, w *workload, c net.Conn) {
	p := make([]byte, w.size)
	for {
		if _, err := io.ReadFull(c, p); err != nil {
			return
		}
		if _, err := c.Write(p); err != nil {
			return
		}
	}
}

func pingPong(side *contender, w *workload, path string) ([]float64, error) {
	c, err := side.dial(w.network, path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return exchange(c, c, w)
}

// exchange returns the times of round trips in microseconds.
func exchange(in io.Reader, out io.Writer, w *workload) ([]float64, error) {
	p := make([]byte, w.size)
	var times []float64
	for start := time.Now(); time.Since(start) < *benchTime; {
		for ready := time.Now().Add(w.think); time.Now().Before(ready); {
		}
		t := time.Now()
		if _, err := out.Write(p); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(in, p); err != nil {
			return nil, err
		}
		times = append(times, float64(time.Since(t).Nanoseconds())/1e3)
	}
	return times, nil
}

func greet(_ *contender, _ *workload, c net.Conn) {
	var b [1]byte
	c.Read(b[:])
	c.Write(b[:])
}

// connects returns the times of connect, exchange and close.
func connects(side *contender, w *workload, path string) ([]float64, error) {
	var times []float64
	var b [1]byte
	for start := time.Now(); time.Since(start) < *benchTime; {
		t := time.Now()
		c, err := side.dial(w.network, path)
		if err != nil {
			return nil, err
		}
		if _, err := c.Write(b[:]); err != nil {
			return nil, err
		}
		if _, err := c.Read(b[:]); err != nil {
			return nil, err
		}
		c.Close()
		times = append(times, float64(time.Since(t).Nanoseconds())/1e3)
	}
	return times, nil
}

func takeFiles(side *contender, _ *workload, c net.Conn) {
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

// passFiles returns the times of passing a file and an answer.
func passFiles(side *contender, w *workload, path string) ([]float64, error) {
	c, err := side.dial(w.network, path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	f, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var times []float64
	var b [1]byte
	for start := time.Now(); time.Since(start) < *benchTime; {
		t := time.Now()
		if err := side.send(c, f); err != nil {
			return nil, err
		}
		if _, err := c.Read(b[:]); err != nil {
			return nil, err
		}
		times = append(times, float64(time.Since(t).Nanoseconds())/1e3)
	}
	return times, nil
}

func drain(_ *contender, w *workload, c net.Conn) {
	p := make([]byte, w.size)
	for {
		if _, err := c.Read(p); err != nil {
			c.Write(p[:1])
			return
		}
	}
}

// streaming returns the rate in MB/s of writes of the size.
func streaming(side *contender, w *workload, path string) ([]float64, error) {
	c, err := side.dial(w.network, path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	n, start, err := pour(c, w.size)
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil { // all was read
		return nil, err
	}
	return []float64{megabytes(n, start)}, nil
}

// pour writes for the time of a round.
func pour(c net.Conn, size int) (n int, start time.Time, err error) {
	p := make([]byte, size)
	for start = time.Now(); time.Since(start) < *benchTime; {
		m, err := c.Write(p)
		if err != nil {
			return 0, start, err
		}
		n += m
	}
	return n, start, c.(interface{ CloseWrite() error }).CloseWrite()
}

func megabytes(n int, start time.Time) float64 {
	return float64(n) / time.Since(start).Seconds() / 1e6
}

// makeFrames fills frames and sends them, where it can in place, and returns the time that
// one takes in microseconds.
func makeFrames(side *contender, w *workload, path string) ([]float64, error) {
	c, err := side.dial(w.network, path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	shared, _ := c.(*ipc.SharedConn)
	frame, frames, start := make([]byte, w.size), 0, time.Now()
	for ; time.Since(start) < *benchTime; frames++ {
		if shared != nil {
			if frame, err = shared.Reserve(w.size); err != nil {
				return nil, err
			}
		}
		frame[0] = byte(frames)
		for done := 1; done < len(frame); done *= 2 { // as fast as memory can be written
			copy(frame[done:], frame[:done])
		}
		if shared != nil {
			err = shared.Commit(w.size)
		} else {
			_, err = c.Write(frame)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return nil, err
	}
	_, err = io.ReadFull(c, make([]byte, 1)) // all were looked at
	return []float64{float64(time.Since(start).Microseconds()) / float64(frames)}, err
}

// lookAtFrames adds up a byte of every cache line of each frame.
func lookAtFrames(_ *contender, w *workload, c net.Conn) {
	shared, _ := c.(*ipc.SharedConn)
	frame, sum := make([]byte, w.size), byte(0)
	for {
		var err error
		if shared != nil {
			frame, err = shared.Peek(w.size)
		} else {
			_, err = io.ReadFull(c, frame)
		}
		if err != nil {
			break
		}
		for i := 0; i < len(frame); i += 64 {
			sum += frame[i]
		}
		if shared != nil {
			if shared.Discard(w.size) != nil {
				break
			}
		}
	}
	c.Write([]byte{sum})
}

// relay copies to where the first bytes of the connection say.
func relay(side *contender, _ *workload, src net.Conn) {
	target := make([]byte, relayHeader)
	if _, err := io.ReadFull(src, target); err != nil {
		return
	}
	network, address, _ := strings.Cut(strings.TrimRight(string(target), " "), " ")
	dial := side.dial
	if network == "tcp" {
		dial = net.Dial
	}
	dst, err := dial(network, address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer dst.Close()
	if _, err := side.copy(dst, src); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

const relayHeader = 256 // "NETWORK ADDRESS", with blanks to fill it

// relayed returns the rate in MB/s through a relay, from one socket to another.
func relayed(side *contender, w *workload, path string) ([]float64, error) {
	l, err := side.listen("unix", path+"2")
	if err != nil {
		return nil, err
	}
	return through(side, w, path, l, "unix "+path+"2")
}

func relayedToTCP(side *contender, w *workload, path string) ([]float64, error) {
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		return nil, errors.Join(errors.ErrUnsupported, err)
	}
	return through(side, w, path, l, "tcp "+l.Addr().String())
}

func through(side *contender, w *workload, path string, l net.Listener, target string) ([]float64, error) {
	defer l.Close()
	src, err := side.dial(w.network, path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if _, err := fmt.Fprintf(src, "%-*s", relayHeader, target); err != nil {
		return nil, err
	}
	dst, err := l.Accept()
	if err != nil {
		return nil, err
	}
	defer dst.Close()
	read := make(chan error, 1)
	go func() {
		for p := make([]byte, w.size); ; {
			if _, err := dst.Read(p); err == io.EOF {
				read <- nil
				return
			} else if err != nil {
				read <- err
				return
			}
		}
	}()
	n, start, err := pour(src, w.size)
	if err != nil {
		return nil, err
	}
	if err := <-read; err != nil {
		return nil, err
	}
	return []float64{megabytes(n, start)}, nil
}

// manyBusy returns the exchanges per second of many connections beside idle ones, as far as
// the limit of descriptors allows.
func manyBusy(side *contender, w *workload, path string) ([]float64, error) {
	conns, err := dialMany(side, w, path, min(w.idle, idleConns(300)))
	defer closeAll(conns)
	if err != nil {
		return nil, err
	}
	busy := make([]net.Conn, w.busy)
	for i := range busy {
		c, err := side.dial(w.network, path)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		busy[i] = c
	}
	p := make([]byte, w.size)
	if err := swap(busy[len(busy)-1], p); err != nil { // now the server has accepted them all
		return nil, err
	}
	time.Sleep(100 * time.Millisecond) // now it waits for all of them, too
	var done sync.WaitGroup
	var ops atomic.Int64
	start := time.Now()
	for _, c := range busy {
		done.Go(func() {
			p := make([]byte, w.size)
			for time.Since(start) < *benchTime {
				if swap(c, p) != nil {
					return
				}
				ops.Add(1)
			}
		})
	}
	done.Wait()
	return []float64{float64(ops.Load()) / time.Since(start).Seconds()}, nil
}

// swap sends a message to an echo and receives it again.
func swap(c net.Conn, p []byte) error {
	if _, err := c.Write(p); err != nil {
		return err
	}
	_, err := io.ReadFull(c, p)
	return err
}

// idleConns is 10000, as far as the limit of descriptors allows beside others.
func idleConns(others int) int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return max(0, min(10000, int(limit.Cur)-others))
}

func dialMany(side *contender, w *workload, path string, n int) (conns []net.Conn, err error) {
	for range n {
		c, err := side.dial(w.network, path)
		if err != nil {
			return conns, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}

// sit answers a 0, and a 1 with the process id after it gave the system back what
// memory it does not use.
func sit(_ *contender, _ *workload, c net.Conn) {
	var b [1]byte
	for {
		if _, err := c.Read(b[:]); err != nil {
			return
		}
		answer := b[:]
		if b[0] == 1 {
			debug.FreeOSMemory()
			answer = []byte(strconv.Itoa(os.Getpid()) + "\n")
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// idleMemory returns how many bytes of the server's memory a connection takes
// that a goroutine waits in Read for.
func idleMemory(side *contender, w *workload, path string) ([]float64, error) {
	n, before, after, err := amongIdle(side, w, path, residentMemory)
	return []float64{(after - before) / float64(n)}, err
}

// idleCPU returns how many microseconds of CPU time the server uses in a second
// while all its connections are idle.
func idleCPU(side *contender, w *workload, path string) ([]float64, error) {
	_, _, used, err := amongIdle(side, w, path, func(pid string) (float64, error) {
		time.Sleep(50 * time.Millisecond) // the runtime's work after a collection
		before, err := threadTimes(pid)
		if err != nil {
			return 0, err
		}
		start := time.Now()
		time.Sleep(*benchTime)
		after, err := threadTimes(pid)
		return (after - before) / time.Since(start).Seconds(), err
	})
	return []float64{used}, err
}

// amongIdle has a look at the server before and after n clients have connected,
// each of which it waits for in Read.
func amongIdle(side *contender, w *workload, path string, look func(pid string) (float64, error)) (n int, before, after float64, err error) {
	ask := func() (float64, error) {
		c, err := side.dial(w.network, path)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		if _, err := c.Write([]byte{1}); err != nil {
			return 0, err
		}
		pid, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			return 0, err
		}
		return look(strings.TrimSpace(pid))
	}
	n = idleConns(100)
	if w.inUse {
		n /= 3 // each end has three descriptors
	}
	if before, err = ask(); err != nil {
		return n, 0, 0, err
	}
	conns, err := dialMany(side, w, path, n)
	defer closeAll(conns)
	if err != nil {
		return n, 0, 0, err
	}
	p := []byte{0}
	for _, c := range conns {
		exchanges := 1
		if w.inUse {
			exchanges = 40
		}
		for range exchanges {
			if err := swap(c, p); err != nil {
				return n, 0, 0, err
			}
		}
		if s, ok := c.(*ipc.SharedConn); ok && !s.InMemory() {
			return n, 0, 0, errors.ErrUnsupported
		}
	}
	after, err = ask()
	return n, before, after, err
}

// residentMemory returns the memory of a process in bytes: see proc_pid_statm(5).
func residentMemory(pid string) (float64, error) {
	text, err := os.ReadFile("/proc/" + pid + "/statm")
	if err != nil {
		return 0, errors.Join(errors.ErrUnsupported, err)
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0, errors.ErrUnsupported
	}
	pages, err := strconv.ParseFloat(fields[1], 64)
	return pages * float64(os.Getpagesize()), err
}

// threadTimes returns the CPU time of a process in microseconds, which is finer
// in the schedstat of its threads than elsewhere.
func threadTimes(pid string) (sum float64, err error) {
	files, err := filepath.Glob("/proc/" + pid + "/task/*/schedstat")
	if err != nil || len(files) == 0 {
		return 0, errors.Join(errors.ErrUnsupported, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		ran, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseFloat(ran, 64)
		if err != nil {
			return 0, err
		}
		sum += ns / 1e3
	}
	return sum, nil
}
