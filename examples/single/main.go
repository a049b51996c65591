// Single is a program of which each user runs one at a time: a second start hands
// its arguments to the first and ends.
//
//	$ go build ./examples/single
//	$ ./single report.txt &        # the first one stays
//	opened report.txt
//	$ ./single notes.txt todo.txt  # in any terminal: the first one says
//	opened notes.txt
//	opened todo.txt
//	$ ./single -quit
//
// It works the same on Windows. Arguments that are relative paths are relative to
// the folder of the process that was started, which tells it with them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/interprocess-go/ipc"
)

// A request is what a start wants the one process to do, as one message.
type request struct {
	Dir  string   // of the process that was started
	Args []string // files to open
	Quit bool     // end instead
}

// answerTime is how long each side waits for the other, which has nothing to do but
// to answer.
const answerTime = 10 * time.Second

func main() {
	addr, err := ipc.UserAddr("example-single") // of this user alone
	if err != nil {
		fmt.Fprintln(os.Stderr, "single:", err)
		os.Exit(1)
	}
	flag.TextVar(&addr, "addr", addr, "where the one process is found, an `address`")
	quit := flag.Bool("quit", false, "end the one process")
	flag.Parse()
	if err := run(addr, flag.Args(), *quit); err != nil {
		fmt.Fprintln(os.Stderr, "single:", err)
		os.Exit(1)
	}
}

// run is the one process, or hands the request to it.
func run(addr ipc.Addr, args []string, quit bool) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	req := request{dir, args, quit}
	for deadline := time.Now().Add(answerTime); ; {
		l, err := ipc.ListenMsg(addr)
		if err == nil {
			defer l.Close()
			return serve(l, req)
		}
		if !errors.Is(err, ipc.ErrAddrInUse) {
			return err
		}
		// Somebody is there. If it leaves before it has answered, this process may
		// be the next one.
		err = handOver(addr, req)
		if err == nil || !isGone(err) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// isGone reports whether the other end is no more.
func isGone(err error) bool {
	for _, gone := range []error{ipc.ErrNoListener, io.EOF, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

// handOver has the one process do what req says.
func handOver(addr ipc.Addr, req request) error {
	conn, err := ipc.Dialer{Timeout: answerTime}.DialMsg(context.Background(), addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(answerTime))
	msg, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if err := conn.Send(msg); err != nil {
		return err
	}
	answer, err := conn.RecvAppend(nil)
	if err != nil {
		return err
	}
	if string(answer) != "done" {
		return fmt.Errorf("the process that runs says: %s", answer)
	}
	return nil
}

// serve does what the first request says, and then what others say, until one says
// that this is to end.
func serve(l *ipc.MsgListener, first request) error {
	if first.Quit {
		return errors.New("nothing runs")
	}
	open(first)
	for conn, err := range l.Conns() {
		if err != nil {
			return err
		}
		quit, err := answer(conn)
		conn.Close()
		if err != nil {
			fmt.Fprintln(os.Stderr, "single:", err) // one start's problem
		}
		if quit {
			break
		}
	}
	return nil
}

// answer serves one start. One at a time is enough: each is over at once, or after
// answerTime.
func answer(conn *ipc.MsgConn) (quit bool, err error) {
	conn.SetDeadline(time.Now().Add(answerTime))
	msg, err := conn.RecvAppend(nil)
	if err != nil {
		return false, err
	}
	var req request
	if err := json.Unmarshal(msg, &req); err != nil {
		return false, errors.Join(err, conn.Send([]byte("that was no request")))
	}
	if !req.Quit {
		open(req)
	}
	return req.Quit, conn.Send([]byte("done"))
}

// open is what the program is for.
func open(req request) {
	for _, arg := range req.Args {
		if !filepath.IsAbs(arg) {
			arg = filepath.Join(req.Dir, arg)
		}
		fmt.Println("opened", arg)
	}
}
