// Frames sends pictures from one process to another and tells what that costs.
//
//	frames [-frames N] [-rate PER_SECOND] [-size BYTES] [-consumer PROGRAM]
//
// A producer fills frames of 4 MB, 60 in a second, and a consumer looks at each of them:
// once through shared memory, where both work on the frame in place, and once through a
// socket, where it is copied into the kernel and out of it. In a third round nothing is sent,
// and each does its work on frames of its own: what the others take beyond that is the cost of
// the way. Both are children of this program, which gives each its end of the connection and
// reads from the system how much CPU time it has used. With -rate 0 frames follow each other
// as fast as they can. -consumer names another build of this program, such as one for a CPU
// with words of 32 bits.
package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/interprocess-go/ipc"
)

// A plan says what is to be sent.
type plan struct {
	frames, rate, size int
	consumer           string
}

// The arguments that make this program one of the children.
const (
	produceCommand = "produce-frames"
	consumeCommand = "consume-frames"
)

func main() {
	var p plan
	flag.IntVar(&p.frames, "frames", 120, "how many frames are sent each way")
	flag.IntVar(&p.rate, "rate", 60, "how many in a second; 0: as many as can be")
	flag.IntVar(&p.size, "size", 4<<20, "bytes of a frame, at least 8")
	flag.StringVar(&p.consumer, "consumer", "", "another build of this `program`, to be the consumer")
	flag.Parse()
	err := errors.New("a frame has at least 8 bytes, and there is at least one")
	switch command := flag.Arg(0); {
	case command == produceCommand || command == consumeCommand:
		err = child(command, flag.Arg(1), p)
	case p.size >= 8 && p.frames > 0 && p.rate >= 0 && flag.NArg() == 0:
		err = compare(os.Stdout, p)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "frames:", err)
		os.Exit(1)
	}
}

// The ways to send a frame.
const (
	inPlace    = "shared memory"
	overSocket = "socket"
	notAtAll   = "the work alone"
)

// compare sends the frames in each way and writes a table.
func compare(w io.Writer, p plan) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "way\tframes\tframes/s\tCPU per frame\tof the producer\tof the consumer\t")
	for _, way := range []string{inPlace, overSocket, notAtAll} {
		began := time.Now()
		producer, consumer, err := run(way, p)
		if err != nil {
			return fmt.Errorf("%s: %w", way, err)
		}
		each := func(d time.Duration) time.Duration { return (d / time.Duration(p.frames)).Round(time.Microsecond) }
		fmt.Fprintf(table, "%s\t%d\t%.1f\t%v\t%v\t%v\t\n", way, p.frames,
			float64(p.frames)/time.Since(began).Seconds(), each(producer+consumer), each(producer), each(consumer))
	}
	return table.Flush()
}

// run starts the two children with a connection between them, and returns the CPU time that
// each has used in the end.
func run(way string, p plan) (producer, consumer time.Duration, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	other := p.consumer
	if other == "" {
		other = self
	}
	a, b, err := ipc.Pair()
	if err != nil {
		return 0, 0, err
	}
	produce, err := start(self, produceCommand, way, p, a)
	if err != nil {
		b.Close()
		return 0, 0, err
	}
	consume, err := start(other, consumeCommand, way, p, b)
	if err != nil { // the producer ends with the connection
		return 0, 0, errors.Join(err, produce.Wait())
	}
	err = errors.Join(produce.Wait(), consume.Wait())
	return cpuTime(produce), cpuTime(consume), err
}

func cpuTime(cmd *exec.Cmd) time.Duration {
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// start starts a child and gives it its end of the connection.
func start(program, command, way string, p plan, end *ipc.Conn) (*exec.Cmd, error) {
	defer end.Close()
	cmd := exec.Command(program, "-frames="+strconv.Itoa(p.frames), "-rate="+strconv.Itoa(p.rate),
		"-size="+strconv.Itoa(p.size), command, way)
	cmd.Stderr = os.Stderr
	if err := ipc.Inherit(cmd, "frames", end); err != nil {
		return nil, err
	}
	return cmd, cmd.Start()
}

// child is one of the two processes.
func child(command, way string, p plan) error {
	conn, err := ipc.InheritedConn("frames")
	if err != nil {
		return err
	}
	defer conn.Close()
	var send func(n int) error
	var look func(n int) error
	switch way {
	case inPlace:
		// Twice a frame: one is filled while the other is looked at.
		shared, err := conn.Share(ipc.ShareConfig{Buffer: 2 * p.size, MaxPeerBuffer: 4 * p.size})
		if err != nil {
			return err
		}
		defer shared.Close()
		send, look = fillInPlace(shared, p.size), lookInPlace(shared, p.size)
	case overSocket:
		send, look = fillAndWrite(conn, p.size), readAndLook(conn, p.size)
	case notAtAll:
		send, look = fillAlone(p.size), lookAlone(p.size)
	}
	if command == consumeCommand {
		for n := range p.frames {
			if err := look(n); err != nil {
				return fmt.Errorf("frame %d: %w", n, err)
			}
		}
		return nil
	}
	began := time.Now()
	for n := range p.frames {
		if p.rate > 0 {
			time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(p.rate))))
		}
		if err := send(n); err != nil {
			return fmt.Errorf("frame %d: %w", n, err)
		}
	}
	return nil
}

// fillInPlace fills a frame where the consumer will find it.
func fillInPlace(c *ipc.SharedConn, size int) func(n int) error {
	return func(n int) error {
		frame, err := c.Reserve(size)
		if err != nil {
			return err
		}
		fill(frame, n)
		return c.Commit(size)
	}
}

// lookInPlace looks at a frame where the producer has made it. The producer is trusted here:
// it could change the frame while it is looked at.
func lookInPlace(c *ipc.SharedConn, size int) func(n int) error {
	return func(n int) error {
		frame, err := c.Peek(size)
		if err != nil {
			return err
		}
		err = check(frame, n)
		if e := c.Discard(size); err == nil {
			err = e
		}
		return err
	}
}

func fillAndWrite(c *ipc.Conn, size int) func(n int) error {
	frame := make([]byte, size)
	return func(n int) error {
		fill(frame, n)
		_, err := c.Write(frame)
		return err
	}
}

func readAndLook(c *ipc.Conn, size int) func(n int) error {
	frame := make([]byte, size)
	return func(n int) error {
		if _, err := io.ReadFull(c, frame); err != nil {
			return err
		}
		return check(frame, n)
	}
}

// fillAlone fills two frames in turn, lookAlone looks at two that stay as they are.
func fillAlone(size int) func(n int) error {
	frames := [2][]byte{make([]byte, size), make([]byte, size)}
	return func(n int) error {
		fill(frames[n%2], n)
		return nil
	}
}

func lookAlone(size int) func(n int) error {
	frames := [2][]byte{make([]byte, size), make([]byte, size)}
	for n := range frames {
		fill(frames[n], n)
	}
	return func(n int) error { return check(frames[n%2], n%2) }
}

// fill draws frame number n: the number, and a colour that follows from it.
func fill(frame []byte, n int) {
	binary.LittleEndian.PutUint64(frame, uint64(n))
	picture := frame[8:]
	if len(picture) == 0 {
		return
	}
	picture[0] = byte(n*7 + 1)
	for done := 1; done < len(picture); done *= 2 {
		copy(picture[done:], picture[:done])
	}
}

// check looks at every cache line of the frame.
func check(frame []byte, n int) error {
	if got := binary.LittleEndian.Uint64(frame); got != uint64(n) {
		return fmt.Errorf("it is number %d", got)
	}
	for i := 8; i < len(frame); i += 64 {
		if frame[i] != byte(n*7+1) {
			return fmt.Errorf("byte %d is %d", i, frame[i])
		}
	}
	return nil
}
