// Parentchild compresses a file in a child process.
//
//	parentchild [-o OUTPUT.gz] [-v] [FILE]
//
// The parent streams the file, or its standard input, to the child through a
// pipe, and the child's gzip stream through another one to the output, or to its
// standard output. The child reports its progress over a connection, which also
// is the leash on which the parent holds it: when the connection ends, because
// the parent was interrupted or is gone, the child leaves.
//
//	parent ── input ──▶ child ── output ──▶ parent
//	parent ◀──────── control ────────▶ child
//
// The output appears when it is complete. After an error or an interrupt
// (Ctrl-C) there is no output, and no child.
package main

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/interprocess-go/ipc"
)

// childCommand is the argument that makes this program the child.
const childCommand = "compress-for-parent"

func main() {
	if len(os.Args) == 2 && os.Args[1] == childCommand {
		if child() != nil {
			os.Exit(1) // the parent was told why
		}
		return
	}

	output := flag.String("o", "", "write to `file`, not to the standard output")
	verbose := flag.Bool("v", false, "tell the progress on the standard error")
	flag.Parse()
	if flag.NArg() > 1 {
		fmt.Fprintf(os.Stderr, "parentchild: unexpected argument %q\n", flag.Arg(1))
		os.Exit(2)
	}
	report := func(progress) {}
	if *verbose {
		report = func(p progress) { fmt.Fprintf(os.Stderr, "parentchild: %d bytes in, %d out\n", p.In, p.Out) }
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, flag.Arg(0), *output, report); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "parentchild:", err)
		os.Exit(1)
	}
}

// run compresses one file to another. An empty name is the standard input or
// output.
func run(ctx context.Context, from, to string, report func(progress)) error {
	in, mode := os.Stdin, os.FileMode(0o600)
	if from != "" {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil {
			mode = info.Mode().Perm()
		}
		in = f
	}
	if to == "" {
		return compress(ctx, os.Stdout, in, report)
	}

	// What is not complete has a name of its own.
	out, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name()) // fails once it has its final name
	err = compress(ctx, out, in, report)
	if err = errors.Join(err, out.Chmod(mode), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), to)
}

// A progress is what the child sends over the control connection, as JSON.
type progress struct {
	In, Out int64  // bytes read and written so far
	Done    bool   // this is the last one
	Error   string `json:",omitempty"` // why the child gives up
}

// ---------------------------------------------------------------------------
// The parent

// leaveTime is how long a child may take to leave when it should.
const leaveTime = 5 * time.Second

// compress has a child compress src to dst.
func compress(ctx context.Context, dst io.Writer, src io.Reader, report func(progress)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// Three ends for the child, and the other ends of the same for the parent.
	input, toChild, err := ipc.Pipe()
	if err != nil {
		return err
	}
	defer toChild.Close()
	defer input.Close()
	fromChild, output, err := ipc.Pipe()
	if err != nil {
		return err
	}
	defer fromChild.Close()
	defer output.Close()
	control, childsControl, err := ipc.Pair()
	if err != nil {
		return err
	}
	defer control.Close()
	defer childsControl.Close()

	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	cmd := exec.CommandContext(ctx, self, childCommand)
	cmd.Stderr = os.Stderr
	err = errors.Join(
		ipc.Inherit(cmd, "input", input),
		ipc.Inherit(cmd, "output", output),
		ipc.Inherit(cmd, "control", childsControl))
	if err != nil {
		return err
	}
	cmd.Cancel = control.Close // when ctx ends; the child leaves in good order then,
	cmd.WaitDelay = leaveTime  // and is killed if it does not
	if err := cmd.Start(); err != nil {
		return err
	}
	// The child has its ends now. While the parent kept them too, it would not
	// see that the child has closed them, or is gone.
	input.Close()
	output.Close()
	childsControl.Close()

	fed, drained := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(toChild, src)
		if err != nil && !errors.Is(err, syscall.EPIPE) { // the child knows why it stopped reading
			cancel(err) // before Close, which would look like the end of the file
		}
		fed <- toChild.Close()
	}()
	var received int64
	go func() {
		n, err := io.Copy(dst, fromChild)
		if err != nil {
			cancel(err)
		}
		received = n
		drained <- err
	}()

	var last progress
	for reports := json.NewDecoder(control); !last.Done; {
		if err := reports.Decode(&last); err != nil {
			break // what it means depends on how the child has ended
		}
		report(last)
	}

	err = cmd.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause // nobody waits for src, which may be a terminal
	}
	switch {
	case last.Error != "":
		return fmt.Errorf("the child: %s", last.Error)
	case err != nil:
		return fmt.Errorf("the child: %w", err)
	case !last.Done:
		return errors.New("the child left before it was done")
	}
	if err := errors.Join(<-fed, <-drained); err != nil {
		return err
	}
	if received != last.Out {
		return fmt.Errorf("the child wrote %d bytes, and %d arrived", last.Out, received)
	}
	return nil
}

// ---------------------------------------------------------------------------
// The child

// child compresses its input to its output and reports to its parent.
func child() error {
	// Ctrl-C at a terminal goes to both processes. The parent decides.
	signal.Ignore(os.Interrupt)

	control, err := ipc.InheritedConn("control")
	if err != nil {
		fmt.Fprintln(os.Stderr, "parentchild:", err) // there is no parent to tell
		return err
	}
	defer control.Close()
	reports := json.NewEncoder(control)

	done, err := compressInherited(control, reports)
	done.Done = true
	if err != nil {
		done.Error = err.Error()
	}
	return errors.Join(err, reports.Encode(done))
}

func compressInherited(control *ipc.Conn, reports *json.Encoder) (progress, error) {
	var now progress
	input, err := ipc.InheritedReader("input")
	if err != nil {
		return now, err
	}
	defer input.Close()
	output, err := ipc.InheritedWriter("output")
	if err != nil {
		return now, err
	}
	defer output.Close()

	// The parent never says anything. When the connection ends, what is under
	// way below fails.
	go func() {
		io.Copy(io.Discard, control)
		input.Close()
		output.Close()
	}()

	in := &meter{r: input, count: &now.In, report: func() { reports.Encode(now) }}
	out := gzip.NewWriter(&meter{w: output, count: &now.Out})
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Close()
	}
	return now, err
}

// A meter counts the bytes that pass through it, and reports now and then.
type meter struct {
	r      io.Reader
	w      io.Writer
	count  *int64
	report func()
}

// reportEvery is how many bytes are read from one report to the next.
const reportEvery = 1 << 20

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	before := *m.count / reportEvery
	if *m.count += int64(n); *m.count/reportEvery > before {
		m.report()
	}
	return n, err
}

func (m *meter) Write(p []byte) (int, error) {
	n, err := m.w.Write(p)
	*m.count += int64(n)
	return n, err
}
