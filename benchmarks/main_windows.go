// The comparison with go-winio, the Go library for named pipes that is used most.

package main

import (
	"bufio"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/Microsoft/go-winio"
	"github.com/interprocess-go/ipc"
)

// A contender is a library, as the benchmark uses it.
type contender struct {
	name   string
	listen func(address string) (net.Listener, error)
	dial   func(address string) (net.Conn, error)
}

var ours = contender{
	name:   "ipc",
	listen: func(address string) (net.Listener, error) { return ipc.Listen(ipc.Path(address)) },
	dial:   func(address string) (net.Conn, error) { return ipc.Dial(ipc.Path(address)) },
}

var rival = contender{
	name: "go-winio",
	listen: func(address string) (net.Listener, error) {
		l, err := winio.ListenPipe(address, &winio.PipeConfig{InputBufferSize: 64 << 10, OutputBufferSize: 64 << 10})
		if err == nil {
			holdFirstInstance(address)
		}
		return l, err
	},
	dial: func(address string) (net.Conn, error) { return winio.DialPipe(address, nil) },
}

// holdFirstInstance connects to the first instance of go-winio's listener, which
// it never serves. Windows lets nobody in there, and the call fails; Wine does,
// and would connect a client that waits for ever. The handle is never closed, or
// the next client would be let in.
func holdFirstInstance(address string) {
	path, err := syscall.UTF16PtrFromString(address)
	if err != nil {
		return
	}
	syscall.CreateFile(path, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil, syscall.OPEN_EXISTING, 0, 0)
}

// A workload is what is measured: run makes n operations and returns the typical
// time of one.
type workload struct {
	name string
	n    int
	run  func(c contender, address string, n int) (time.Duration, error)
}

var workloads = []workload{
	{"round trip, 64 B", 2000, roundTrips(64)},
	{"round trip, 1 KiB", 2000, roundTrips(1 << 10)},
	{"round trip, 64 KiB", 500, roundTrips(64 << 10)},
	{"one way, 4 KiB writes", 4000, oneWay(4 << 10)},
	{"one way, 64 KiB writes", 1000, oneWay(64 << 10)},
	{"connect, round trip of 1 B, close", 200, connects},
}

func main() {
	rounds := flag.Int("rounds", 7, "how often everything is measured")
	scale := flag.Float64("scale", 1, "more or fewer operations per round")
	flag.Parse()
	var err error
	if flag.Arg(0) == "serve" { // see startServer
		err = serve(flag.Arg(1), flag.Arg(2))
	} else {
		err = run(*rounds, *scale)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A result is one workload with one library: an entry per round.
type result struct{ times, allocs []float64 }

func run(rounds int, scale float64) error {
	contenders := [2]contender{ours, rival}
	var addresses [2]string
	for i, c := range contenders {
		addresses[i] = freshAddress(c.name)
		end, err := startServer(c, addresses[i])
		if err != nil {
			return err
		}
		defer end()
	}
	results := make([][2]result, len(workloads))
	for range rounds {
		for w, load := range workloads {
			n := max(int(float64(load.n)*scale), 10)
			for i, c := range contenders {
				if _, err := load.run(c, addresses[i], n/10+1); err != nil { // warms up
					return fmt.Errorf("%s, %s: %w", c.name, load.name, err)
				}
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				took, err := load.run(c, addresses[i], n)
				runtime.ReadMemStats(&after)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, load.name, err)
				}
				r := &results[w][i]
				r.times = append(r.times, float64(took)/float64(time.Microsecond))
				r.allocs = append(r.allocs, float64(after.Mallocs-before.Mallocs)/float64(n))
			}
		}
	}

	fmt.Printf("| µs per operation, median of %d rounds | %s | %s | ratio | allocations, %s | allocations, %s |\n|---|---|---|---|---|---|\n",
		rounds, ours.name, rival.name, ours.name, rival.name)
	for w, load := range workloads {
		mine, other := results[w][0], results[w][1]
		var ratios []float64
		for i := range mine.times {
			ratios = append(ratios, mine.times[i]/other.times[i])
		}
		fmt.Printf("| %s | %.1f | %.1f | **%.2f** | %.1f | %.1f |\n", load.name,
			median(mine.times), median(other.times), median(ratios), median(mine.allocs), median(other.allocs))
	}
	return nil
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}

// ---------------------------------------------------------------------------
// The client. A connection begins with two numbers of 32 bits: the length of a
// message, and how many messages come before the server answers with one of them.

func open(c contender, address string, size, perAnswer int) (net.Conn, error) {
	conn, err := c.dial(address)
	if err != nil {
		return nil, err
	}
	var header [8]byte
	binary.BigEndian.PutUint32(header[:], uint32(size))
	binary.BigEndian.PutUint32(header[4:], uint32(perAnswer))
	if _, err := conn.Write(header[:]); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// roundTrips returns the median time of a message to the server and back.
func roundTrips(size int) func(contender, string, int) (time.Duration, error) {
	return func(c contender, address string, n int) (time.Duration, error) {
		conn, err := open(c, address, size, 1)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		message := make([]byte, size)
		times := make([]time.Duration, n)
		for i := range times {
			begun := time.Now()
			if _, err := conn.Write(message); err != nil {
				return 0, err
			}
			if _, err := io.ReadFull(conn, message); err != nil {
				return 0, err
			}
			times[i] = time.Since(begun)
		}
		slices.Sort(times)
		return times[n/2], nil
	}
}

// oneWay returns the mean time of a write, of n that the server reads.
func oneWay(size int) func(contender, string, int) (time.Duration, error) {
	return func(c contender, address string, n int) (time.Duration, error) {
		conn, err := open(c, address, size, n)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		message := make([]byte, size)
		begun := time.Now()
		for range n {
			if _, err := conn.Write(message); err != nil {
				return 0, err
			}
		}
		if _, err := io.ReadFull(conn, message); err != nil {
			return 0, err
		}
		return time.Since(begun) / time.Duration(n), nil
	}
}

// connects returns the median time of a short conversation.
func connects(c contender, address string, n int) (time.Duration, error) {
	times := make([]time.Duration, n)
	for i := range times {
		begun := time.Now()
		conn, err := open(c, address, 1, 1)
		if err != nil {
			return 0, err
		}
		var one [1]byte
		if _, err = conn.Write(one[:]); err == nil {
			_, err = io.ReadFull(conn, one[:])
		}
		conn.Close()
		if err != nil {
			return 0, err
		}
		times[i] = time.Since(begun)
	}
	slices.Sort(times)
	return times[n/2], nil
}

// ---------------------------------------------------------------------------
// The server

// startServer starts this program again as the server; end ends it.
func startServer(c contender, address string) (end func(), err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, "serve", c.name, address)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	end = func() { in.Close(); cmd.Wait() }
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		end()
		return nil, fmt.Errorf("the server of %s does not start", c.name)
	}
	return end, nil
}

// serve serves until standard input ends.
func serve(name, address string) error {
	c := ours
	if name == rival.name {
		c = rival
	}
	l, err := c.listen(address)
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				answer(conn)
			}()
		}
	}()
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return nil
}

func answer(conn net.Conn) {
	var header [8]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return
	}
	message := make([]byte, binary.BigEndian.Uint32(header[:]))
	perAnswer := binary.BigEndian.Uint32(header[4:])
	for n := uint32(1); ; n++ {
		if _, err := io.ReadFull(conn, message); err != nil {
			return
		}
		if n%perAnswer == 0 {
			if _, err := conn.Write(message); err != nil {
				return
			}
		}
	}
}

func freshAddress(name string) string {
	return `\\.\pipe\ipc-benchmark-` + name + "-" + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatInt(time.Now().UnixNano(), 36)
}
