// Fdpass prints the SHA-256 of files that the process which reads them could not
// open.
//
//	fdpass [-v] FOLDER NAME...
//
// The work is done by a child that is confined before it reads the first byte: it
// can open no file. It asks its parent by name, over a connection that it has
// inherited. The parent decides (regular files inside the folder, nothing that
// leads out of it), opens, and passes the open file. Whatever a file could make
// the child do, had it a worse parser than a checksum, would stay in the child.
//
//	parent ◀── name ──────────────────────── child
//	parent ─── open file, or a refusal ────▶ child
//
// On Linux a child of root moves into an empty root folder and gives root up; any
// child forbids itself files by Landlock, which takes a program that was built
// with CGO_ENABLED=0. A child that is not confined, as on other systems, does the
// work all the same, and the parent warns of it. With -v it tells in any case what
// the child found.
//
// The exit status is 0, 1 if a file was refused or something else has failed, or
// 2 after wrong usage.
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/interprocess-go/ipc"
)

// childCommand is the argument that makes this program the child.
const childCommand = "sum-for-parent"

func main() {
	if len(os.Args) > 1 && os.Args[1] == childCommand {
		os.Exit(child(os.Args[2:]))
	}
	verbose := flag.Bool("v", false, "tell how the child is confined")
	flag.Parse()
	if flag.NArg() < 2 {
		fmt.Fprintln(os.Stderr, "usage: fdpass [-v] FOLDER NAME...")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := parent(ctx, flag.Arg(0), flag.Args()[1:], *verbose)
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err != nil {
		if !errors.Is(err, errTold) {
			complain(err)
		}
		os.Exit(1)
	}
}

// errTold is the failure of a child that has told what it was.
var errTold = errors.New("the child has failed")

// complain tells an error in one line, whatever the name of a file.
func complain(err error) {
	fmt.Fprintln(os.Stderr, "fdpass:", strings.ReplaceAll(err.Error(), "\n", `\n`))
}

// ---------------------------------------------------------------------------
// The parent

// parent has a child print the checksums of files in the folder.
func parent(ctx context.Context, folder string, names []string, verbose bool) error {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	control, childsControl, err := ipc.MsgPair()
	if err != nil {
		return err
	}
	defer control.Close()
	defer childsControl.Close()

	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	cmd := exec.CommandContext(ctx, self, append([]string{childCommand}, names...)...)
	cmd.Env = []string{} // which may hold secrets; Inherit adds what the child needs
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := ipc.Inherit(cmd, "control", childsControl); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	childsControl.Close() // the child has it now, and its exit is the end of the connection

	err = serve(control, root, func(found string) {
		if verbose || !strings.HasPrefix(found, isConfined) {
			fmt.Fprintln(os.Stderr, "fdpass: the child is", found)
		}
	})
	control.Close() // should the child wait for an answer, it waits no longer
	waitErr := cmd.Wait()
	if cmd.ProcessState.ExitCode() == 1 {
		return cmp.Or(err, errTold)
	}
	if waitErr != nil {
		return fmt.Errorf("the child: %w", waitErr)
	}
	return err
}

// maxMessage is the longest message that the parent takes, in bytes. Names may be
// somewhat longer on some systems.
const maxMessage = 4096

// serve tells what the child found of its confinement, and then passes the files
// that it asks for, until it hangs up. The child is not to be trusted any more.
func serve(control *ipc.MsgConn, root *os.Root, tell func(found string)) error {
	message := make([]byte, maxMessage)
	n, err := control.Recv(message)
	if err != nil {
		return err
	}
	tell(string(message[:n]))

	var sent *os.File
	defer func() { sent.Close() }() // an error if there is none
	for {
		n, err := control.Recv(message)
		sent.Close() // not before: macOS may lose a file that was not received yet
		switch {
		case err == io.EOF:
			return nil
		case err == nil:
			if sent, err = open(root, string(message[:n])); err == nil {
				err = control.SendFiles(sent)
			}
		case !errors.Is(err, ipc.ErrMsgTooLong):
			return err
		}
		if err != nil {
			err = control.Send([]byte(err.Error()))
		}
		if err != nil {
			return err
		}
	}
}

// open is the policy: it opens regular files inside the folder to be read.
func open(root *os.Root, name string) (*os.File, error) {
	// A FIFO, which is refused below, would make this wait for its writer.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ---------------------------------------------------------------------------
// The child

// child prints the checksums of the files that its parent passes it.
func child(names []string) (status int) {
	control, err := ipc.InheritedMsgConn("control")
	if err != nil {
		complain(err)
		return 1
	}
	defer control.Close()
	if err := control.Send([]byte(tryConfine())); err != nil {
		complain(err)
		return 1
	}
	for _, name := range names {
		sum, err := checksum(control, name)
		if err == nil {
			_, err = fmt.Printf("%x  %s\n", sum, name)
		}
		if err != nil {
			complain(err)
			status = 1
		}
	}
	return status
}

// isConfined is how the child's finding begins if it is a good one.
const isConfined = "confined"

// tryConfine confines the process, and finds out whether it is: by opening a file
// that certainly is there.
func tryConfine() (found string) {
	confineErr := confine()
	f, err := os.Open(os.Args[0])
	if err == nil {
		f.Close()
		return fmt.Sprintf("not confined: %v", cmp.Or(confineErr, errors.New("it can open files")))
	}
	found = fmt.Sprintf("%s, as user %d: %v", isConfined, os.Getuid(), err)
	if confineErr != nil {
		found += fmt.Sprintf(" (though %v)", confineErr)
	}
	return found
}

// checksum asks for a file by name and reads it.
func checksum(control *ipc.MsgConn, name string) ([]byte, error) {
	f, err := request(control, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	hash := sha256.New()
	_, err = io.Copy(hash, f)
	return hash.Sum(nil), err
}

func request(control *ipc.MsgConn, name string) (*os.File, error) {
	if err := control.Send([]byte(name)); err != nil {
		return nil, err
	}
	files, err := control.RecvFiles(1)
	if errors.Is(err, ipc.ErrNoFiles) { // but the reason why
		reason, err := control.RecvAppend(nil)
		if err == nil {
			err = errors.New(string(reason))
		}
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	return files[0], nil
}
