package ipc

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

const network = "pipe"

// A SysListenConfig holds the options of a listener that only Windows has.
type SysListenConfig struct{}

// A SysDialer holds the options of a dialer that only Windows has.
type SysDialer struct{}

type peerSystem struct{}

type fd struct{}

type listener struct{}

func (a Addr) resolve() (string, error)                { return a.text, a.check() }
func guarded(string) bool                              { return true }
func squattable(Addr) bool                             { return true }
func listen(string, ListenConfig) (*listener, error)   { return nil, errors.ErrUnsupported }
func connect(string, *SysDialer) (*fd, error)          { return nil, errors.ErrUnsupported }
func judge(string, error) verdict                      { return final }
func pair() (*fd, *fd, error)                          { return nil, nil, errors.ErrUnsupported }
func adoptConn(*os.File) (*fd, Addr, Addr, error)      { return nil, Addr{}, Addr{}, errors.ErrUnsupported }
func (p Peer) trusted() bool                           { return false }
func (l *listener) accept() (*fd, error)               { return nil, errors.ErrUnsupported }
func (l *listener) close() error                       { return errors.ErrUnsupported }
func (l *listener) setDeadline(time.Time) error        { return errors.ErrUnsupported }
func (l *listener) rawConn() (syscall.RawConn, error)  { return nil, errors.ErrUnsupported }
func (f *fd) read([]byte) (int, error)                 { return 0, errors.ErrUnsupported }
func (f *fd) write([]byte) (int, error)                { return 0, errors.ErrUnsupported }
func (f *fd) readBuffers([][]byte) (int64, error)      { return 0, errors.ErrUnsupported }
func (f *fd) writeBuffers(*net.Buffers) (int64, error) { return 0, errors.ErrUnsupported }
func (f *fd) close() error                             { return errors.ErrUnsupported }
func (f *fd) closeRead() error                         { return errors.ErrUnsupported }
func (f *fd) closeWrite() error                        { return errors.ErrUnsupported }
func (f *fd) setDeadline(time.Time, direction) error   { return errors.ErrUnsupported }
func (f *fd) setBuffer(direction, int) error           { return errors.ErrUnsupported }
func (f *fd) peer() (Peer, error)                      { return Peer{}, errors.ErrUnsupported }
func (f *fd) dupFile(string) (*os.File, error)         { return nil, errors.ErrUnsupported }
func (f *fd) rawConn() (syscall.RawConn, error)        { return nil, errors.ErrUnsupported }
func (f *fd) remoteAddr() Addr                         { return Addr{} }
