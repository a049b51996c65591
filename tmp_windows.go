package ipc

// Temporary: primitives that ipc.go has begun to use; they move to
// ipc_windows.go with their implementation.

import (
	"errors"
	"io"
	"os"
	"os/exec"
)

func pipe() (*fd, *fd, error)                           { return nil, nil, errors.ErrUnsupported }
func adoptPipe(*os.File, direction) (*fd, error)        { return nil, errors.ErrUnsupported }
func (f *fd) spliceFrom(io.Reader) (int64, bool, error) { return 0, false, nil }
func (f *fd) spliceTo(io.Writer) (int64, bool, error)   { return 0, false, nil }
func keepFromChildren(string)                           {}
func validToken(string) bool                            { return true }
func inheritedConn(string) (*fd, error)                 { return nil, errors.ErrUnsupported }
func inheritedPipe(string) (*fd, error)                 { return nil, errors.ErrUnsupported }
func inheritedListener(string) (*Listener, error)       { return nil, errors.ErrUnsupported }
func (f *fd) bequeath(*exec.Cmd) (string, error)        { return "", errors.ErrUnsupported }
func (l *listener) bequeath(*exec.Cmd) (string, error)  { return "", errors.ErrUnsupported }
func (f *fd) localAddr() Addr                           { return Addr{} }
