//go:build unix || windows

package ipc

import (
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

var (
	_ net.Conn     = (*SharedConn)(nil)
	_ net.Listener = (*SharedListener)(nil)
	_ Inheritable  = (*SharedConn)(nil)
	_ Inheritable  = (*SharedListener)(nil)
)

// What this file asks of a system, besides the seam in ipc.go. A descriptor, or handle, of
// memory is written sys.
var (
	// Memory that can neither shrink nor grow. sealMemory makes it so, for a system whose
	// newMemory does not. A mapping may have the last bytes of the memory twice in a row.
	_ func(size int) (memoryFiles, error)                            = newMemory
	_ func(f *os.File, ownerWrites bool) error                       = sealMemory
	_ func(sys uintptr) (memoryInfo, error)                          = sysMemory
	_ func(sys uintptr) (uintptr, error)                             = duplicateSys
	_ func(f *os.File) (*os.File, error)                             = openReadOnly
	_ func(f *os.File, size, repeat int, write bool) ([]byte, error) = mapMemory
	_ func(mem []byte, repeat int) error                             = unmapMemory
	_ func(mem []byte)                                               = vacateMemory

	// A doorbell wakes the one that reads its near end. The far end goes to the peer. bellRoom is
	// what a wait needs of the caller's memory.
	_ func() (near *fd, far farBell, err error) = newBell
	_ func(near *fd, room *bellRoom) error      = awaitBell
	_ func(far *fd) error                       = ringBell

	// A hello carries the memory and the far ends, and is received with files that are
	// believed to be nothing yet. If a send fails, sent is more than 0 if the peer may have
	// received a part.
	_ func(f *fd, p []byte) (sent int, err error)                                     = sendPlainHello
	_ func(f *fd, memory *os.File, far []farBell, hello []byte) (sent int, err error) = sendHello
	_ func(f *fd, p []byte) (n int, with []helloFile, err error)                      = recvHello
	_ func(with []helloFile)                                                          = discardHelloFiles
	_ func(f *fd, next sequel)                                                        = (*fd).expect
	_ interface {
		memory() (*os.File, memoryInfo, error)
		doorbell(from *fd) (*fd, error)
	} = (*helloFile)(nil)
)

// ---------------------------------------------------------------------------
// Memory

// A Memory is memory that several processes can map. Its size is fixed: no process that
// has a descriptor or handle of it can make it shorter, so an access to [Memory.Bytes]
// never fails. On Linux and Android it can be delayed: see [Memory.Bytes]. All methods may
// be called concurrently. The processes must synchronize their accesses to the bytes
// themselves.
type Memory struct {
	mu       sync.Mutex // guards the rest
	data     []byte     // the mapping; nil after Close
	files    memoryFiles
	writable bool
}

// memoryFiles are the open files of one memory object. readOnly is nil where
// object itself can be opened a second time for reading alone.
type memoryFiles struct{ object, readOnly *os.File }

func (m memoryFiles) close() error {
	err := m.object.Close()
	if m.readOnly != nil {
		if e := m.readOnly.Close(); err == nil {
			err = e
		}
	}
	return err
}

// NewMemory returns size bytes of new memory, all zero, mapped for reading and
// writing. It is memfd_create(2) with the seals F_SEAL_SHRINK and F_SEAL_GROW on
// Linux and Android, shm_open2(2) with the same seals on FreeBSD 13 and later,
// shm_open(2) on macOS, whose objects keep their first size, and a section
// (CreateFileMapping) on Windows. No name and no file is left anywhere. macOS and
// Windows round the size that others see up to whole pages. Give [Memory.File] only to
// processes that may stop this one: see [Memory.Bytes].
//
// Where the system cannot keep memory from shrinking the error matches
// [errors.ErrUnsupported].
func NewMemory(size int) (*Memory, error) {
	m, err := createMemory(size)
	if err != nil {
		return nil, memoryError("new", err)
	}
	return m, nil
}

// memoryError adds the operation to err. Memory has no address.
func memoryError(op string, err error) error {
	return &net.OpError{Op: op, Net: "memory", Err: err}
}

func createMemory(size int) (*Memory, error) {
	if size < 1 {
		return nil, configError("the size", strconv.Itoa(size), "1 or more")
	}
	files, err := newMemory(size)
	if err != nil {
		return nil, err
	}
	m := &Memory{files: files, writable: true}
	if m.data, err = mapMemory(files.object, size, 0, true); err == nil {
		err = sealMemory(files.object, false)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// FileMemory maps the memory whose descriptor or handle f is, as [Memory.File] and
// [Memory.ReadOnlyFile] return them and [Conn.RecvFiles] receives them. It refuses a file
// that is not memory, memory that some process could still make shorter, and memory
// larger than max bytes: that error matches [ErrMsgTooLong]. On Linux and FreeBSD
// F_SEAL_SHRINK must be set. On Windows the section must be committed memory that no file
// stands behind. f stays the caller's to close, whatever the result.
//
// [Memory.Writable] tells whether this process may write the memory: that depends on what
// the peer has sent. On Linux and Android whoever can write it can stop this process: see
// [Memory.Bytes].
func FileMemory(f *os.File, max int) (*Memory, error) {
	m, err := adoptMemory(f, max)
	if err != nil {
		return nil, memoryError("file", err)
	}
	return m, nil
}

func adoptMemory(f *os.File, limit int) (*Memory, error) {
	info, err := checkMemory(f)
	if err != nil {
		return nil, err
	}
	if info.size < 1 || info.size > int64(limit) {
		return nil, &ruleError{"the memory has " + strconv.FormatInt(info.size, 10) +
			" bytes, the limit is " + strconv.Itoa(limit), ErrMsgTooLong}
	}
	object, err := duplicateMemory(f)
	if err != nil {
		return nil, err
	}
	m := &Memory{files: memoryFiles{object: object}, writable: info.writable}
	if m.data, err = mapMemory(object, int(info.size), 0, info.writable); err != nil {
		object.Close()
		return nil, err
	}
	return m, nil
}

// checkMemory tells the size of the memory object f, if it is one that cannot shrink.
func checkMemory(f *os.File) (info memoryInfo, err error) {
	err = withFile(f, func(sys uintptr) (err error) {
		info, err = sysMemory(sys)
		return err
	})
	return info, err
}

// duplicateMemory duplicates the descriptor or handle of a memory object.
func duplicateMemory(f *os.File) (d *os.File, err error) {
	err = withFile(f, func(sys uintptr) error {
		n, err := duplicateSys(sys)
		if err == nil {
			d = os.NewFile(n, "memory")
		}
		return err
	})
	return d, err
}

// memoryInfo is what the system tells about a memory object that can neither
// shrink nor be anything else.
type memoryInfo struct {
	size     int64
	writable bool // through this descriptor or handle

	// punchable says that pages may be given back while others have them mapped; what is
	// there is zero then.
	punchable bool
}

// Bytes returns the memory itself. It is valid until Close, and nil after it. The other
// processes that have the memory may change it at any time, so data from there must be
// copied before it is checked. The slice must not be written unless [Memory.Writable]
// reports true.
//
// On Linux and Android whoever has a descriptor that can write can also make an access here
// sleep: it takes pages away again and again (fallocate(2), FALLOC_FL_PUNCH_HOLE), and then
// this process stands still at its next garbage collection. Memory that several processes
// write cannot be closed to that. To processes that only read, give [Memory.ReadOnlyFile]:
// fallocate needs a descriptor that can write. That protects the owner from them, and not
// them from the owner. From Linux 5.1 on a [SharedConn] takes no memory of this kind.
func (m *Memory) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data
}

// Writable reports whether this process may write to [Memory.Bytes]. Memory that
// NewMemory made is writable; for memory from [FileMemory] the descriptor or handle
// decides.
func (m *Memory) Writable() bool { return m.writable }

// File returns a duplicate of the descriptor or handle, to be passed by
// [Conn.SendFiles]. Whoever has it can map the memory as this process can.
func (m *Memory) File() (*os.File, error) {
	return m.duplicate(func() (*os.File, error) { return duplicateMemory(m.files.object) })
}

// ReadOnlyFile returns a descriptor or handle by which the memory can be mapped for
// reading alone, to be passed by [Conn.SendFiles]. On Linux a process of the same user,
// and root, can open that file again for writing (/proc/self/fd); they can change this
// process by other means too. For memory from FileMemory on FreeBSD and macOS the error
// matches [errors.ErrUnsupported] unless the memory is read-only here.
func (m *Memory) ReadOnlyFile() (*os.File, error) {
	writable := false
	f, err := m.duplicate(func() (*os.File, error) {
		if m.files.readOnly != nil {
			return duplicateMemory(m.files.readOnly)
		}
		writable = m.writable
		return duplicateMemory(m.files.object)
	})
	if err != nil || !writable {
		return f, err
	}
	defer f.Close()
	// Without the lock: a process that writes to the memory from a page that it keeps from being
	// filled has the lock of the file meanwhile, which the change of a mode needs.
	ro, err := openReadOnly(f)
	if err != nil {
		return nil, memoryError("file", err)
	}
	return ro, nil
}

func (m *Memory) duplicate(dup func() (*os.File, error)) (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, err := (*os.File)(nil), net.ErrClosed
	if m.data != nil {
		f, err = dup()
	}
	if err != nil {
		return nil, memoryError("file", err)
	}
	return f, nil
}

// Close unmaps the memory and closes its descriptor or handle. The slice that
// [Memory.Bytes] returned must not be used any more: an access to it ends the process.
// The memory itself lives as long as some process has it. Without Close it stays mapped.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files.object == nil {
		return memoryError("close", net.ErrClosed)
	}
	var err error
	if m.data != nil {
		err = unmapMemory(m.data, 0)
	}
	if e := m.files.close(); err == nil {
		err = e
	}
	m.data, m.files = nil, memoryFiles{}
	if err != nil {
		return memoryError("close", err)
	}
	return nil
}

// ---------------------------------------------------------------------------
// Connections through shared memory: making them

// A ShareConfig holds the options of a connection through shared memory.
type ShareConfig struct {
	// Buffer is how many bytes this end can have written that the peer has not read: the
	// size of the ring in shared memory, rounded up to a power of two of at least 64 KiB
	// and at most 1 GiB. 0 is 256 KiB. Only the part of the ring that has been written
	// takes memory. Rings larger than the processor's caches are slower for small
	// messages.
	Buffer int

	// MaxPeerBuffer is the largest Buffer of the peer that this end accepts, at least 64
	// KiB. 0 is 64 MiB, on 32-bit systems 4 MiB. Up to twice that much of the address space is
	// needed, of which all rings of the process take at most 144 GiB, on 32-bit systems 1152
	// MiB, and memory for the part of it that the peer says it has written. If the peer has a
	// larger one, the connection goes through the socket where that can still be agreed on.
	// Otherwise it is refused: the error matches [ErrMsgTooLong].
	MaxPeerBuffer int

	// Spin is the longest time that a wait spins before its goroutine parks: see
	// [SharedConn.SetSpin]. 0 keeps the limit that the connection has, by [Conn.SetSpin] or
	// [Dialer.Spin] for instance; without one it is the default. A negative one never spins.
	Spin time.Duration
}

const (
	ringMin       = 64 << 10  // a multiple of every page size and of Windows' allocation granularity
	bufferDefault = 256 << 10 // fits the caches together with what the processes work on
	ringMax       = 1 << 30   // indices have 32 bits, and distances must not be ambiguous

	peerBufferDefault = 4 << 20 << (^uint(0) >> 63 * 4) // 64 MiB, or 4 MiB where addresses are few
)

// complete returns the configuration with the defaults put in.
func (cfg ShareConfig) complete() (ShareConfig, error) {
	switch {
	case cfg.Buffer < 0 || cfg.Buffer > ringMax:
		return cfg, configError("Buffer", strconv.Itoa(cfg.Buffer), "0 to "+strconv.Itoa(ringMax))
	case cfg.MaxPeerBuffer < 0:
		return cfg, configError("MaxPeerBuffer", strconv.Itoa(cfg.MaxPeerBuffer), "0 or more")
	}
	size := ringMin
	for size < cfg.Buffer {
		size *= 2
	}
	if cfg.Buffer == 0 {
		size = bufferDefault
	}
	cfg.Buffer = size
	if cfg.MaxPeerBuffer == 0 {
		cfg.MaxPeerBuffer = peerBufferDefault
	}
	cfg.MaxPeerBuffer = max(cfg.MaxPeerBuffer, ringMin)
	return cfg, nil
}

// Share makes a connection through shared memory out of c. The SharedConn then owns c,
// which must not be used any more; the Close of the SharedConn closes both. Both ends
// call Share, at the same point of what they say to each other, after each has checked
// with [Conn.Peer] whom it shares memory with. Nothing is sent until the first Read or
// Write.
//
// Where the system has no memory that is safe to share, or one of the two processes gets
// none, the connection goes on through the socket: see [SharedConn.InMemory].
//
// The limit of spins that was set on c is kept unless cfg has another. Deadlines that were
// set on c are not: set them on the SharedConn.
func (c *Conn) Share(cfg ShareConfig) (*SharedConn, error) {
	full, err := cfg.complete()
	switch {
	case err != nil:
	case c.fd == nil:
		err = syscall.EINVAL
	case c.fd.closing():
		err = net.ErrClosed
	}
	if err != nil {
		return nil, c.failed("share", err)
	}
	if full.Spin == 0 {
		full.Spin = time.Duration(c.fd.spin.Load())
	}
	return newSharedConn(c.endpoint, full, false), nil
}

// SharedPair returns two connected ends, for a child process or a test: see [Pair]. As long
// as this process has both, no call waits until the other end is used to set the memory up. An
// end for a child is given away before either end is used.
func SharedPair() (*SharedConn, *SharedConn, error) {
	f, g, err := pair(streams)
	if err != nil {
		return nil, nil, opError("pair", Addr{}, Addr{}, err)
	}
	cfg, _ := ShareConfig{}.complete()
	a := newSharedConn(endpoint{fd: f}, cfg, false)
	b := newSharedConn(endpoint{fd: g}, cfg, false)
	a.twins = &twins{ends: [2]*SharedConn{a, b}}
	b.twins = a.twins
	return a, b, nil
}

// twins link the two ends of a SharedPair until one of them is used or inherited.
type twins struct {
	ends   [2]*SharedConn // for whoever sets parted
	parted atomic.Bool    // set once, by the caller of part that gets the ends
}

// part returns the ends to the first caller, and nil to every other.
func (t *twins) part() (ends [2]*SharedConn) {
	if t != nil && !t.parted.Swap(true) {
		ends, t.ends = t.ends, ends
	}
	return ends
}

// meet runs the handshake of both ends in goroutines, since nobody may be in a call of the
// other one.
func (t *twins) meet() {
	for _, c := range t.part() {
		if c != nil {
			go c.setUp(new(sharedHalf), toShare) // it ends with the handshake
		}
	}
}

// DialShared connects to a [SharedListener] at addr. It is
// Dialer{}.DialShared(context.Background(), addr).
func DialShared(addr Addr) (*SharedConn, error) {
	return Dialer{}.DialShared(context.Background(), addr)
}

// DialShared connects to a [SharedListener] at addr, as [Dialer.DialContext] connects to
// a Listener. A server that does not share memory gets bytes that it does not understand;
// then reads and writes fail with an error that matches [syscall.EPROTO]. For other sizes
// than those of the zero [ShareConfig] both ends call [Conn.Share].
func (d Dialer) DialShared(ctx context.Context, addr Addr) (*SharedConn, error) {
	fd, err := d.reach(ctx, addr, streams)
	if err != nil {
		return nil, err
	}
	cfg, _ := ShareConfig{Spin: d.Spin}.complete()
	return newSharedConn(endpoint{fd: fd, remote: addr}, cfg, false), nil
}

// A SharedListener is a server's end of a local socket whose connections go through
// shared memory. It is a [net.Listener] whose connections are *SharedConn, so what
// serves a net.Listener serves it unchanged. All its methods may be called
// concurrently.
//
// A client that does not share memory is served as well, through the socket, if it writes
// first.
type SharedListener struct{ server }

// ListenShared opens a server at addr, for the user of this process alone. It is
// ListenConfig{}.ListenShared(addr).
func ListenShared(addr Addr) (*SharedListener, error) { return ListenConfig{}.ListenShared(addr) }

// ListenShared opens a server at addr whose connections go through shared memory:
// see [ListenConfig.Listen].
func (lc ListenConfig) ListenShared(addr Addr) (*SharedListener, error) {
	l := new(SharedListener)
	return opened(l, lc.serve(&l.server, addr, streams))
}

// Accept waits for a client and returns its connection, a *SharedConn.
func (l *SharedListener) Accept() (net.Conn, error) { return asNetConn(l.AcceptShared()) }

// AcceptShared waits for a client and returns its connection: see [Listener.AcceptConn].
// It does not wait for the client to say anything: the first Read or Write does.
func (l *SharedListener) AcceptShared() (*SharedConn, error) {
	fd, err := serverOf(l).accept()
	if err != nil {
		return nil, err
	}
	cfg, _ := ShareConfig{Spin: l.spin}.complete()
	return newSharedConn(endpoint{fd: fd, local: l.addr}, cfg, true), nil
}

// Conns returns an iterator over the clients, which ends at Close: see
// [Listener.Conns].
func (l *SharedListener) Conns() iter.Seq2[*SharedConn, error] { return untilClosed(l.AcceptShared) }

// SetAccess sets which clients Accept returns from now on: see [Listener.SetAccess].
func (l *SharedListener) SetAccess(access Access, check func(Peer) error) error {
	return serverOf(l).setAccess(access, check)
}

// Close stops listening: see [Listener.Close].
func (l *SharedListener) Close() error { return serverOf(l).close() }

// SetDeadline sets the time after which Accept fails: see [Listener.SetDeadline].
func (l *SharedListener) SetDeadline(t time.Time) error { return serverOf(l).setDeadline(t) }

// SyscallConn gives access to the descriptor or handle: see [Listener.SyscallConn].
func (l *SharedListener) SyscallConn() (syscall.RawConn, error) { return serverOf(l).rawConn() }

func (l *SharedListener) kindOfEnd() endKind { return kindOf(l, kindSharedListener) }

// InheritedSharedListener returns the inherited listener: see [InheritedListener].
func InheritedSharedListener(name string) (*SharedListener, error) {
	l := new(SharedListener)
	return opened(l, inheritServer(name, kindSharedListener, streams, &l.server))
}

// ---------------------------------------------------------------------------
// SharedConn
//
// Each end owns one memory object that it alone writes: a control page and the ring of
// the bytes it sends. The peer maps it for reading. So the bytes of each direction are
// copied once into the ring and once out of it. Small requests and answers between two
// ends that are awake take no system call; a wait for much data yields: see Spinning in shared memory.
//
// A goroutine that finds nothing to do parks in a read of a doorbell. A doorbell is a pair
// of sockets; each half of each end has one of its own. Before the goroutine looks for the
// last time, it says on its control page that it is about to park. The peer looks at that
// after it has written or read, and rings: it writes one byte to the far end, which is all
// that it has of the doorbell. The doorbell also ends when the peer's process does.

// A SharedConn is one end of a connection through shared memory: a full-duplex stream of
// bytes, as a [Conn] is. It is a [net.Conn]. All its methods may be called concurrently,
// with two exceptions: [SharedConn.Peek] and the [SharedConn.Discard] that follows it
// belong together, and so do [SharedConn.Reserve] and [SharedConn.Commit]. Reads queue
// behind reads and writes behind writes.
//
// A connection begins in the socket. So a short one costs hardly more than a [Conn], and
// one that has hardly been used takes no memory. The first 4 KiB that an end writes, in
// up to 32 writes, go that way. The two ends set their memory up for the write that goes
// beyond that, for a Reserve or Peek of more than that, and for SendFiles and RecvFiles.
// These calls therefore wait, until their deadline, for the peer to read or to make such
// a call itself. Before that, each Write and Reserve of an end that a [SharedListener] has
// accepted waits for the client to say something: the client's first Read or Write does.
// See [SharedPair] for two ends in one process.
//
// A peer that crashes ends the connection as Close does; what the peer had written before
// is still read. A write that follows a crash may still succeed while there is room in
// the ring.
type SharedConn struct {
	base    endpoint // base.fd carries the handshake and files, and everything if not in memory
	cfg     ShareConfig
	passive bool // waits for the peer's hello before it sends its own
	twins   *twins

	mode      atomic.Uint32 // of sharedMode; set by the handshake, and by fail
	closed    atomic.Bool   // Close was called
	gone      atomic.Bool   // the peer's end of a doorbell is closed
	said      atomic.Uint32 // what our last hello says of halves that are shut, once it was sent
	peerWShut atomic.Bool   // not in memory: the peer's CloseWrite came in the handshake
	peerRShut atomic.Bool   // not in memory: the peer's CloseRead came in the handshake
	spin      atomic.Int64  // SetSpin, in nanoseconds

	r, w sharedHalf // the operations of each direction

	in  ringReader // guarded by r.mu, once the mode is inMemory
	out ringWriter // guarded by w.mu, once the mode is inMemory

	spokeTo, heardTo uint32 // the head of out, and the tail of in, at the latest wait to read; guarded by r.mu
	heardMuch        bool   // the latest wait to read before which anything was exchanged was for much; guarded by r.mu

	ahead []byte // read from the socket and not yet taken; guarded by r.mu, and by mu while setting up

	mu       sync.Mutex  // guards what follows and the deadlines
	hello    *handshake  // nil after it has ended
	receiver *sharedHalf // whose deadline the socket has for receiving in the handshake
	sender   *sharedHalf // and for sending
	failure  error       // why the handshake failed for good
	ownMem   *mapping
	peerMem  *mapping
	released bool            // Close is done, and no call uses the mappings
	dropped  runtime.Cleanup // unmaps them if nobody calls Close
}

type sharedMode = uint32

const (
	settingUp sharedMode = iota // the handshake is not done
	inMemory
	overSocket
	inFailure // SharedConn.failure says why
)

// A sharedHalf is one direction of a SharedConn, and what belongs to the operation that is
// under way in it. bell, far and word are set by the handshake, before the mode is inMemory.
type sharedHalf struct {
	mu       sync.Mutex     // one operation at a time; guards what follows up to shut
	bell     *fd            // this half parks in a read of it
	far      *fd            // the far end of the bell of the peer's other half
	word     *atomic.Uint32 // the epoch, on the own control page
	bellRoom bellRoom
	epoch    uint32        // odd: parked, or about to be
	lent     bool          // a loan is out: what Peek or Reserve returned was not given back
	loan     int           // its length
	loanFrom *mapping      // the mapping that it is in; nil if it is a copy
	loanCopy []byte        // the copy, if the loan is not in the ring; the reading half has those bytes in ahead too
	spins    [2]sharedSpin // for waits that begin while the peer is awake, and while it is parked
	yields   yielder       // whether a wait that does not spin yields
	sleepers uint8         // waits whose peer was parked: see mayYield
	apart    uint16        // waits for much since a yield soon had success: see yieldsForMuch

	shut    atomic.Bool  // by CloseRead or CloseWrite
	expiry  atomic.Int64 // the deadline on the clock of now, 0 for none
	armed   int64        // the expiry that the bell has, or inThePast; guarded by SharedConn.mu
	parked  atomic.Bool  // set with SharedConn.mu held: a call waits for the bell, or is about to
	passing int          // how many calls wait in the socket to pass files; guarded by SharedConn.mu
}

func newSharedConn(base endpoint, cfg ShareConfig, passive bool) *SharedConn {
	c := &SharedConn{base: base, cfg: cfg, passive: passive, hello: newHandshake()}
	c.hello.met.Store(!passive)
	base.fd.expect(hellosFollow)
	c.SetSpin(cfg.Spin)
	return c
}

// failed adds the operation and the addresses to err: see endpoint.failed.
func (c *SharedConn) failed(op string, err error) error { return c.base.failed(op, err) }

// InMemory reports whether the connection goes through shared memory, or will as soon as
// there is so much to say that it pays. It is false before the first Read or Write. It is
// false for good once it is known that one of the two ends cannot or will not share, or
// has called CloseRead or CloseWrite before: then the connection goes through the socket,
// and everything else about it is the same.
func (c *SharedConn) InMemory() bool {
	switch c.mode.Load() {
	case inMemory:
		return true
	case settingUp:
		c.mu.Lock()
		defer c.mu.Unlock()
		hs := c.hello
		if hs == nil || !hs.begun || !hs.met.Load() || c.peerWShut.Load() || c.peerRShut.Load() {
			return false
		}
		if hs.last.Load() {
			return hs.own != nil
		}
		return sharesMemory && !c.r.shut.Load() && !c.w.shut.Load()
	}
	return false
}

// Read reads up to len(p) bytes, and waits until there is at least one. When the peer has
// closed its end, or its process has ended, Read returns what the peer wrote before that
// and then [io.EOF]. The other errors match [net.ErrClosed], [os.ErrDeadlineExceeded],
// and [syscall.EPROTO] if the peer broke the protocol.
func (c *SharedConn) Read(p []byte) (int, error) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	n, err := c.read(p)
	return n, c.failed("read", err)
}

func (c *SharedConn) read(p []byte) (n int, err error) {
	c.endLoan(&c.r)
	if len(p) == 0 && !c.closed.Load() {
		return 0, nil
	}
	if err := c.begin(&c.r, true, 1); err != nil {
		return 0, err
	}
	if c.r.shut.Load() {
		return 0, io.EOF // also if there are bytes that were read ahead
	}
	if n := c.takeAhead(p); n > 0 {
		return n, nil
	}
	if c.mode.Load() == overSocket {
		return c.readSocket(p)
	}
	avail, err := c.awaitData(1)
	if avail == 0 {
		return 0, err
	}
	return c.readRing(p, avail), nil
}

// readRing reads what is in the ring, of which avail bytes are known. The peer may write on and on:
// what ends a read that waits ends this one as well.
func (c *SharedConn) readRing(p []byte, avail uint32) (n int) {
	for avail > 0 {
		m := c.in.take(p[n:], avail)
		c.consume(m)
		if n += int(m); n == len(p) || c.closed.Load() || c.r.shut.Load() || c.r.expired() {
			break
		}
		avail, _ = c.in.available(1) // the next read tells the error
	}
	return n
}

// Write writes all of p. When the ring is full of bytes that the peer has not read, it waits
// until half of the ring is free. A write that fails returns how many bytes were written
// before. After the peer has closed its end the error matches [syscall.EPIPE].
func (c *SharedConn) Write(p []byte) (int, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	n, err := c.write(p)
	return n, c.failed("write", err)
}

func (c *SharedConn) write(p []byte) (n int, err error) {
	use := len(p) > 0 && !c.w.lent
	if use && c.mode.Load() == settingUp {
		if done, err := c.writeEarly(p); err != nil {
			return 0, err
		} else if done {
			return len(p), nil
		}
	}
	if err := c.begin(&c.w, use, toShare); err != nil || len(p) == 0 {
		return 0, err
	}
	if c.w.lent {
		return 0, errReserved
	}
	if c.mode.Load() == overSocket {
		if c.w.shut.Load() || c.peerRShut.Load() {
			return 0, errBrokenPipe
		}
		return c.base.end().write(p)
	}
	return c.writeRing(p)
}

// writeRing writes all of p to the ring. The peer may read on and on: the deadline ends that.
func (c *SharedConn) writeRing(p []byte) (n int, err error) {
	for {
		room, err := c.awaitRoom(1)
		if room > 0 {
			m := c.out.put(p[n:], room)
			c.publish(m)
			n += int(m)
		}
		switch {
		case n == len(p):
			return n, nil
		case err != nil:
			return n, err
		case c.w.expired():
			return n, os.ErrDeadlineExceeded
		}
	}
}

// errReserved refuses a write into what Reserve has lent.
var errReserved = &ruleError{what: "what Reserve returned was not given back by Commit"}

// Peek returns the next n bytes without reading them, and waits until there are as many.
// With n 0 it returns what there is, at least one byte. The bytes are in the ring itself,
// so nothing is copied. They must not be written. The peer can still change them, so they
// must be copied before they are checked. n is at most half of the peer's
// [ShareConfig.Buffer], so that the two ends cannot wait for each other; otherwise the
// error matches [ErrMsgTooLong]. If the connection ends before there are n bytes, Peek
// returns what there is with [io.EOF].
//
// The bytes are on loan until Discard, or the next Read or Peek, whether that succeeds or
// fails. Every loan must be given back, also after Close, or the memory of the connection
// stays mapped; what comes with an error is a copy, and is no loan. An access to bytes on
// loan never fails: Close leaves them where they are.
func (c *SharedConn) Peek(n int) ([]byte, error) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	p, err := c.peek(n)
	return p, c.failed("read", err)
}

func (c *SharedConn) peek(n int) ([]byte, error) {
	c.endLoan(&c.r)
	if err := checkLoan(n, max(c.cfg.MaxPeerBuffer, c.cfg.Buffer)/2); err != nil {
		return nil, err
	}
	enough := aim(max(n, 1))
	if n > earlyMax {
		enough = toShare
	}
	if err := c.begin(&c.r, true, enough); err != nil {
		return nil, err
	}
	limit := c.cfg.Buffer / 2
	if c.mode.Load() == inMemory {
		limit = int(c.in.size / 2)
	}
	if err := checkLoan(n, limit); err != nil {
		return nil, err
	}
	if c.r.shut.Load() {
		return nil, io.EOF
	}
	var p []byte
	var from *mapping
	var err error
	apart := true
	switch mode := c.mode.Load(); {
	case mode == settingUp || c.hasAhead(max(n, 1)):
		p = c.lookAhead(n)
	case mode == inMemory && !c.hasAhead(1):
		p, from, err = c.peekRing(n)
		apart = false
	default:
		p, err = c.peekSocket(n)
	}
	if err != nil && err != io.EOF {
		return nil, err
	}
	if apart {
		c.r.loanCopy = p
	}
	c.r.lend(len(p), from)
	return p, err
}

func checkLoan(n, limit int) error {
	if n < 0 {
		return configError("the length", strconv.Itoa(n), "0 or more")
	}
	if n > limit {
		return &ruleError{strconv.Itoa(n) + " bytes are more than half of the buffer, " + strconv.Itoa(limit), ErrMsgTooLong}
	}
	return nil
}

// peekRing returns the next bytes of the ring and the mapping that they are in, or a copy
// of them. With io.EOF they are copied, since hardly anybody gives back what comes with an
// error.
func (c *SharedConn) peekRing(n int) (p []byte, from *mapping, err error) {
	avail, err := c.awaitData(uint32(max(n, 1)))
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	if n == 0 || int(avail) < n {
		n = int(avail)
	}
	raceAcquire()
	if p, whole := c.in.span(uint32(n)); whole && err == nil {
		return p, c.peerMem, nil
	}
	p = make([]byte, n)
	c.in.look(p)
	return p, nil, err
}

// Discard reads the first n bytes of what Peek returned, and ends the loan. If n is more than that, or
// negative, Discard fails and nothing changes.
func (c *SharedConn) Discard(n int) error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	return c.failed("read", c.discard(n))
}

func (c *SharedConn) discard(n int) error {
	if err := c.checkReturn(&c.r, n, "Peek"); err != nil {
		return err
	}
	apart := c.r.loanCopy != nil
	c.endLoan(&c.r)
	if c.closed.Load() {
		return net.ErrClosed
	}
	if apart {
		c.dropAhead(n)
		return nil
	}
	if n > 0 {
		c.consume(uint32(n))
	}
	return nil
}

// Reserve returns n bytes of the ring itself to write into, and waits until there is room
// for as many. Commit sends them, so nothing is copied. n is at most half of
// [ShareConfig.Buffer], so that the two ends cannot wait for each other; otherwise the
// error matches [ErrMsgTooLong]. The bytes are not cleared: they hold anything at first.
// The peer can see what is written into them at once, also if it is never committed.
//
// The bytes are on loan until Commit. Meanwhile Write fails, and another Reserve returns
// the same bytes. Every loan must be given back, also after Close, or the memory of the
// connection stays mapped. An access to bytes on loan never fails: Close leaves them
// where they are.
func (c *SharedConn) Reserve(n int) ([]byte, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	p, err := c.reserve(n)
	return p, c.failed("write", err)
}

func (c *SharedConn) reserve(n int) ([]byte, error) {
	if err := checkLoan(n, c.cfg.Buffer/2); err != nil {
		return nil, err
	}
	enough := toMeet // Commit sees whether it is early data
	if n > earlyMax {
		enough = toShare
	}
	if err := c.begin(&c.w, true, enough); err != nil {
		return nil, err
	}
	var p []byte
	whole := false
	if c.mode.Load() == inMemory {
		if room, err := c.awaitRoom(uint32(max(n, 1))); int(room) < max(n, 1) {
			return nil, err
		}
		p, whole = c.out.span(uint32(n))
	}
	before := c.w.loanCopy // what is on loan may have to move, as it is
	if before == nil && c.w.lent {
		before, _ = c.out.span(uint32(c.w.loan))
	}
	var from *mapping
	if whole {
		from, c.w.loanCopy = c.ownMem, nil
	} else {
		p = make([]byte, n)
		c.w.loanCopy = p
	}
	copy(p, before)
	c.w.lend(n, from)
	return p, nil
}

// Commit sends the first n bytes of what Reserve returned, and ends the loan. With
// n 0 nothing is sent. If those bytes are not in the ring, because the memory was not set
// up or there is none, Commit waits as Write does. If n is more than Reserve returned, or
// negative, Commit fails and nothing changes.
func (c *SharedConn) Commit(n int) error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	return c.failed("write", c.commit(n))
}

func (c *SharedConn) commit(n int) error {
	if err := c.checkReturn(&c.w, n, "Reserve"); err != nil {
		return err
	}
	apart := c.w.loanCopy
	c.endLoan(&c.w)
	if c.closed.Load() {
		return net.ErrClosed
	}
	if n == 0 {
		return nil
	}
	if apart != nil {
		_, err := c.write(apart[:n])
		return err
	}
	switch {
	case c.mode.Load() == inFailure:
		return c.why()
	case c.writeEnded():
		return errBrokenPipe
	}
	c.publish(uint32(n))
	return nil
}

// errBrokenPipe is the error of a write that nobody will read.
var errBrokenPipe = os.NewSyscallError("write", syscall.EPIPE)

// lend notes what Peek or Reserve returned. The mapping that it is in, if any, stays mapped
// until endLoan.
func (h *sharedHalf) lend(n int, from *mapping) {
	if h.loanFrom != nil { // another Reserve
		h.loanFrom.lent.Store(false)
	}
	h.lent, h.loan, h.loanFrom = true, n, from
	if from != nil {
		from.lent.Store(true)
	}
}

// checkReturn refuses a length that is not of the loan, which then is not given back. After Close any
// length gives it back.
func (c *SharedConn) checkReturn(h *sharedHalf, n int, from string) error {
	if (n < 0 || n > h.loan) && !c.closed.Load() {
		return configError("the length", strconv.Itoa(n), "0 to "+strconv.Itoa(h.loan)+", what "+from+" returned")
	}
	return nil
}

// endLoan ends the loan of a half, if there is one. After Close that unmaps the
// memory.
func (c *SharedConn) endLoan(h *sharedHalf) {
	from := h.loanFrom
	h.lent, h.loan, h.loanFrom, h.loanCopy = false, 0, nil, nil
	if from == nil {
		return
	}
	from.lent.Store(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.released {
		c.unmap()
	}
}

// ---------------------------------------------------------------------------
// The rest of a net.Conn

// Close closes the connection. It does not wait for the peer and does not discard
// what was written: the peer reads that and then gets io.EOF. Calls that wait on this
// end return an error that matches [net.ErrClosed], and so does the second Close. If the peer
// holds one of these calls up, as it can on Windows, Close does not wait for that: the memory
// is unmapped when that call has returned.
func (c *SharedConn) Close() error {
	if c.closed.Swap(true) {
		return c.failed("close", net.ErrClosed)
	}
	c.mu.Lock()
	hs, memory := c.hello, c.ownMem != nil
	c.hello = nil
	parked := c.tellEnd()
	ends := [...]*fd{c.base.end(), c.r.bell, c.w.bell, c.r.far, c.w.far}
	c.mu.Unlock()
	begun, err := time.Now(), error(nil)
	ringLast(parked, closeGrace)
	for i, end := range ends {
		if end == nil {
			continue
		}
		if e := end.closeLater(); e != nil { // it is the zero value
			ends[i], err = nil, e
		}
	}
	if hs != nil {
		close(hs.over) // whoever makes the handshake gives up
		hs.release()
	}
	for _, end := range ends {
		if end == nil {
			continue
		}
		if e := end.awaitGone(closeGrace - time.Since(begun)); err == nil { // one grace for all
			err = e
		}
	}
	if memory && !c.release(false) {
		// No call waits there any more, so each half is free soon, unless the peer holds up a
		// system call: on Windows it can hold the lock of a doorbell.
		released := make(chan struct{})
		go func() { c.release(true); close(released) }()
		closedSoon(released, closeGrace-time.Since(begun))
	}
	return c.failed("close", err)
}

// release unmaps the memory once no call uses it. If it is not to wait for that, it reports
// whether it could.
func (c *SharedConn) release(wait bool) bool {
	if wait {
		c.r.mu.Lock()
	} else if !c.r.mu.TryLock() {
		return false
	}
	defer c.r.mu.Unlock()
	if wait {
		c.w.mu.Lock()
	} else if !c.w.mu.TryLock() {
		return false
	}
	defer c.w.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.released = true
	c.unmap()
	return true
}

// tellEnd tells the peer in memory that nothing more is written or read, and returns the
// doorbells of those of its halves that are parked, for ringLast. The caller holds c.mu.
func (c *SharedConn) tellEnd() (parked []*fd) {
	if c.ownMem == nil || c.peerMem == nil { // there is none, or Close has unmapped it
		return nil
	}
	own, peer := c.ownMem.control(), c.peerMem.control()
	own.tellEnd()
	if peer.rwait.Load()&1 != 0 {
		parked = append(parked, c.w.far)
	}
	if peer.wwait.Load()&1 != 0 {
		parked = append(parked, c.r.far)
	}
	return parked
}

// ringLast rings after tellEnd, and waits for that no longer than the grace: see lastRings.
// The end of a doorbell would make the peer look too, but another process may have a
// duplicate of it.
func ringLast(parked []*fd, grace time.Duration) {
	if len(parked) > 0 {
		lastRings.do(len(parked), grace, func(i int) { ringBell(parked[i]) })
	}
}

// unmap unmaps the memory that is not on loan. No call uses that any more: c.released is
// set. The caller holds c.mu.
func (c *SharedConn) unmap() {
	for _, m := range [...]**mapping{&c.ownMem, &c.peerMem} {
		if *m != nil && !(*m).lent.Load() {
			(*m).unmap()
			*m = nil
		}
	}
	if c.ownMem == nil && c.peerMem == nil {
		c.dropped.Stop()
	}
	if c.peerMem == nil {
		c.in = ringReader{}
	}
	if c.ownMem == nil {
		c.out = ringWriter{}
	}
}

// CloseRead shuts the reading side down: reads return io.EOF, and the peer's writes
// fail with an error that matches [syscall.EPIPE]. Over a socket it is [Conn.CloseRead],
// but before the memory is set up it works on every system, unless CloseWrite was called.
// Writes after such an early CloseRead wait for the peer to read.
//
// CloseRead does not wait for the peer, and reads of this end return at once. Some peers
// must speak before they can be told: a client that has said nothing yet, and a peer that
// has not answered since this end has sent its memory. A goroutine waits for that, until
// Close at the latest. If such a peer then does not share memory, it is told through the
// socket, but on Windows not before Close.
func (c *SharedConn) CloseRead() error { return c.failed("close", c.closeHalf(&c.r)) }

// CloseWrite shuts the writing side down: the peer reads what was written and then
// gets io.EOF; the other direction stays open. Over a socket it is [Conn.CloseWrite], but
// before the memory is set up it works on every system, unless CloseRead was called. It
// waits for the peer as little as CloseRead does, and writes of this end fail at once.
func (c *SharedConn) CloseWrite() error { return c.failed("close", c.closeHalf(&c.w)) }

// closeHalf shuts a half down. Its calls end at once. The peer is told at once if that
// needs nothing of the peer.
func (c *SharedConn) closeHalf(h *sharedHalf) error {
	c.mu.Lock()
	switch {
	case c.closed.Load():
		c.mu.Unlock()
		return net.ErrClosed
	case h.shut.Load(): // a call did it before
		c.mu.Unlock()
		return nil
	case c.shutsBySocket(h): // which may be impossible, so that the half stays open
		c.mu.Unlock()
		err := c.shutSocket(h)
		if err == nil {
			h.shut.Store(true)
			c.endWaits(h)
		}
		return err
	}
	h.shut.Store(true)
	if c.hello != nil {
		c.hello.begun = true
	}
	c.mu.Unlock()
	c.endWaits(h)
	done, err := c.tellShut(h, false)
	if !done {
		go c.tellShut(h, true) // until the peer speaks or leaves, or Close
	}
	return err
}

// tellShut tells the peer that a half is shut, and reports whether it is done with that.
// Only if it is patient it waits for the peer, where the peer must speak first.
func (c *SharedConn) tellShut(h *sharedHalf, patient bool) (done bool, err error) {
	waits := new(sharedHalf) // unlike h it is not shut, and its deadline is another
	if !patient {
		waits.expiry.Store(now() + int64(closeGrace))
	}
	for err == nil || err == errAgain {
		c.mu.Lock()
		hs, mode, socket := c.hello, c.mode.Load(), c.shutsBySocket(h)
		sent := hs == nil || hs.last.Load()
		c.mu.Unlock()
		switch {
		case c.closed.Load():
			return true, net.ErrClosed
		case mode == inFailure:
			return true, c.why()
		case mode == inMemory:
			return true, c.shutRing(h)
		case sent && byte(c.said.Load())&c.wordOf(h) != 0:
			return true, nil
		case socket:
			return true, c.shutSocket(h)
		case waits.expired() || !patient && (sent || !hs.met.Load()):
			return false, nil
		case sent: // and memory with it, so the peer's answer decides where the bytes go
			err = c.setUp(waits, toShare)
		case !hs.met.Load():
			err = c.setUp(waits, toMeet)
		default:
			err = c.sendLast(waits, hs, true)
		}
	}
	return true, err
}

// wordOf returns what a last hello says of a half that is shut.
func (c *SharedConn) wordOf(h *sharedHalf) byte {
	if h == &c.r {
		return helloReadShut
	}
	return helloWriteShut
}

// shutRing tells the peer in memory that the half is shut. A peer may hold up the write that
// rings it, here or in a call on the half that is under way, so shutRing waits no longer than
// the grace. Then the peer is told later, when it lets that go on.
func (c *SharedConn) shutRing(h *sharedHalf) error {
	told := make(chan error, 1)
	lastRings.do(1, closeGrace, func(int) { told <- c.ringShut(h) })
	select {
	case err := <-told:
		return err
	default:
		return nil
	}
}

func (c *SharedConn) ringShut(h *sharedHalf) error {
	h.mu.Lock() // its calls have ended
	defer h.mu.Unlock()
	if c.closed.Load() {
		return net.ErrClosed
	}
	if h == &c.r {
		c.in.own.rclosed.Store(1)
		c.wakePeer(h, c.in.peer.wwait.Load(), &c.in.woken)
	} else {
		c.out.own.wclosed.Store(1)
		c.wakePeer(h, c.out.peer.rwait.Load(), &c.out.woken)
	}
	return nil
}

// shutSocket shuts that direction of the socket down.
func (c *SharedConn) shutSocket(h *sharedHalf) error {
	if h == &c.r {
		return c.base.end().closeRead()
	}
	return c.base.end().closeWrite()
}

// shutsBySocket reports whether the half is shut down by the socket alone. To shut the
// reading half down empties the socket, which may still hold the peer's last hello until the
// handshake is over. The caller holds c.mu.
func (c *SharedConn) shutsBySocket(h *sharedHalf) bool {
	return c.socketOnly() && (h == &c.w || c.hello == nil)
}

// socketOnly reports whether all that this end has still to say goes through the socket:
// the handshake is over, or our last hello has said that there is no memory. The caller
// holds c.mu.
func (c *SharedConn) socketOnly() bool {
	if hs := c.hello; hs != nil {
		return hs.last.Load() && hs.own == nil
	}
	return c.mode.Load() != inMemory && c.mode.Load() != inFailure
}

// endWaits ends the wait of a half that was shut down: by a deadline in the past,
// which SetDeadline no longer changes.
func (c *SharedConn) endWaits(h *sharedHalf) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applyDeadline(h)
	if c.hello != nil {
		c.hello.stir()
	}
}

// LocalAddr returns the address of this end: see [Conn.LocalAddr].
func (c *SharedConn) LocalAddr() net.Addr { return c.base.LocalAddr() }

// RemoteAddr returns the address of the other end: see [Conn.RemoteAddr].
func (c *SharedConn) RemoteAddr() net.Addr { return c.base.RemoteAddr() }

// Peer tells who is at the other end: see [Conn.Peer].
func (c *SharedConn) Peer() (Peer, error) { return c.base.Peer() }

// WaitPeer waits until the process at the other end has ended: see [Conn.WaitPeer].
func (c *SharedConn) WaitPeer(ctx context.Context) error { return c.base.WaitPeer(ctx) }

// SetDeadline sets the read and the write deadline.
func (c *SharedConn) SetDeadline(t time.Time) error {
	return c.failed("set", c.setDeadline(t, reading|writing))
}

// SetReadDeadline sets the time after which reads, and RecvFiles, fail with an error that
// matches [os.ErrDeadlineExceeded], also those that wait already. The zero time means no
// deadline. A read that fails in this way has lost nothing.
func (c *SharedConn) SetReadDeadline(t time.Time) error {
	return c.failed("set", c.setDeadline(t, reading))
}

// SetWriteDeadline sets the time after which writes, and SendFiles, fail with an error
// that matches [os.ErrDeadlineExceeded], also those that wait already. The zero time
// means no deadline. A write that fails in this way returns how much of it the peer can
// read; over a socket on Windows see [Conn.SetWriteDeadline].
func (c *SharedConn) SetWriteDeadline(t time.Time) error {
	return c.failed("set", c.setDeadline(t, writing))
}

func (c *SharedConn) setDeadline(t time.Time, d direction) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return net.ErrClosed
	}
	expiry := int64(0)
	if !t.IsZero() {
		expiry = expiryAt(t, time.Now())
	}
	var err error
	for _, h := range [...]*sharedHalf{&c.r, &c.w} {
		if d&c.directionOf(h) == 0 {
			continue
		}
		h.expiry.Store(expiry)
		if e := c.applyDeadline(h); err == nil {
			err = e
		}
	}
	if c.hello != nil {
		c.hello.stir()
	}
	return err
}

// applyDeadline sets the deadline of a half where it waits: of the socket or of the doorbell.
// That costs more than all the rest of SetDeadline, so what nobody waits for is left as it is
// until somebody does. For a half that was shut down, and waits in memory or in the
// handshake, the deadline is in the past. The caller holds c.mu.
func (c *SharedConn) applyDeadline(h *sharedHalf) error {
	if c.mode.Load() == inFailure {
		return nil // what ends the waits stays
	}
	expiry := h.expiry.Load()
	t := timeOf(expiry) // not the time that was set: the wall clock may have changed since
	if h.shut.Load() && (c.hello != nil || h.bell != nil) {
		t, expiry = time.Unix(1, 0), inThePast
	}
	var d direction // in which the half waits in the socket
	switch {
	case c.hello == nil:
		if h.bell == nil || h.passing > 0 {
			d = c.directionOf(h)
		}
	default:
		if c.receiver == h {
			d |= reading
		}
		if c.sender == h {
			d |= writing
		}
	}
	var err error
	if d != 0 {
		err = c.base.end().setDeadline(t, d)
	}
	if h.parked.Load() && h.armed != expiry {
		h.armed = expiry
		if e := h.bell.setDeadline(t, reading); err == nil {
			err = e
		}
	}
	return err
}

// inThePast is no expiry that expiryAt returns.
const inThePast = -1

// passFiles calls pass, which waits in the socket, within the deadline of the half.
func (c *SharedConn) passFiles(h *sharedHalf, pass func() error) error {
	c.mu.Lock()
	h.passing++
	err := c.applyDeadline(h)
	c.mu.Unlock()
	if err == nil {
		err = pass()
	}
	c.mu.Lock()
	h.passing--
	c.mu.Unlock()
	return err
}

func (c *SharedConn) directionOf(h *sharedHalf) direction {
	if h == &c.w {
		return writing
	}
	return reading
}

// SetSpin sets the longest time that a wait of this end spins before its goroutine parks.
// A spin looks at the memory again and again, which costs no system call. 0 restores the
// default, and a negative d never spins. By default a wait spins for up to 50 µs (100 µs where a system call takes
// half a microsecond or more), or 200 µs while the peer is being woken, as long as that pays. On Linux a wait that does not spin
// may let other threads run, and a thread whose spin failed leaves its CPU for a moment: see
// [Conn.SetSpin]. There a wait for much does not spin by default, but lets others run, unless that keeps failing
// or this process has one CPU. Such a wait is each wait to write, and one to read after 4 KiB and more were
// read and nothing was written, or 48 KiB and more in all. A positive d lets it spin, which is right if
// each end has a CPU of its own. Over a socket SetSpin is the same as Conn.SetSpin.
func (c *SharedConn) SetSpin(d time.Duration) {
	c.spin.Store(int64(d))
	c.base.end().setSpin(d)
}

// SendFiles gives the peer the open files, which it receives with one RecvFiles: see
// [Conn.SendFiles]. Files travel beside the bytes, and have no order with them.
func (c *SharedConn) SendFiles(files ...*os.File) error {
	err := checkFiles(len(files), 1)
	if err == nil {
		err = c.setUp(&c.w, toShare)
	}
	switch {
	case err != nil:
	case c.w.shut.Load() || c.peerRShut.Load():
		err = errBrokenPipe
	default:
		err = c.passFiles(&c.w, func() error { return c.base.end().sendWithFiles(zeroByte[:], files) })
		if err != nil && c.w.shut.Load() {
			err = errBrokenPipe // CloseWrite ended the wait
		}
	}
	return c.failed("sendfiles", c.failureOr(err))
}

// RecvFiles receives the files of one SendFiles, at most max of them, and waits until
// there are some: see [Conn.RecvFiles]. In memory the files go beside the bytes: what ends
// the wait is the deadline, CloseRead, Close, or the peer's Close, not the peer's
// CloseWrite.
func (c *SharedConn) RecvFiles(max int) ([]*os.File, error) {
	err := checkFiles(max, 1)
	if err == nil {
		err = c.setUp(&c.r, toShare)
	}
	var files []*os.File
	if err == nil {
		files, err = c.recvFiles(max)
	}
	return files, c.failed("recvfiles", c.failureOr(err))
}

func (c *SharedConn) recvFiles(limit int) ([]*os.File, error) {
	if c.r.shut.Load() {
		return nil, io.EOF
	}
	if c.mode.Load() == overSocket {
		c.r.mu.Lock()
		held := len(c.ahead) > 0
		c.r.mu.Unlock()
		switch {
		case held:
			return nil, ErrNoFiles
		case c.peerWShut.Load():
			return nil, io.EOF
		}
	}
	var files []*os.File
	err := c.passFiles(&c.r, func() (err error) {
		files, err = c.base.end().recvFiles(limit)
		return err
	})
	switch {
	case err == nil:
	case c.closed.Load():
		return nil, net.ErrClosed
	case c.r.shut.Load() || isEnd(err): // by CloseRead, or a peer that left files of ours unread
		return nil, io.EOF
	case errors.Is(err, ErrNoFiles) && c.mode.Load() == inMemory:
		return nil, c.fail(&classified{err, syscall.EPROTO}) // nobody would ever read what is there instead
	}
	return files, err
}

// failureOr returns why the connection has failed, if it has and err is an error, or err.
func (c *SharedConn) failureOr(err error) error {
	if err != nil && c.mode.Load() == inFailure && !c.closed.Load() {
		return c.why()
	}
	return err
}

// bequeath gives a child the connection, before its first use.
func (c *SharedConn) bequeath(cmd *exec.Cmd) (token string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.base.fd == nil:
		return "", syscall.EINVAL
	case c.closed.Load():
		return "", net.ErrClosed
	case c.hello == nil || c.hello.begun:
		return "", &ruleError{"the connection was used, and its memory is this process's", errors.ErrUnsupported}
	}
	c.base.end().expect(dataFollows) // what the child leaves of it is not known here
	c.twins.part()
	return c.base.end().bequeath(cmd)
}

// kindOfEnd tells the child which of the two ends it gets.
func (c *SharedConn) kindOfEnd() endKind {
	if c != nil && c.passive {
		return kindSharedServer
	}
	return kindOf(c, kindShared)
}

const (
	kindShared         endKind = "shared"
	kindSharedServer   endKind = "sharedserver" // one that waits for the client's hello
	kindSharedListener endKind = "sharedlistener"
)

// InheritedSharedConn returns the inherited connection: see [InheritedConn]. The
// parent must not have used it.
func InheritedSharedConn(name string) (*SharedConn, error) {
	kind := kindShared
	inherited.mu.Lock()
	if end := inherited.ends[name]; end != nil && end.kind == kindSharedServer {
		kind = kindSharedServer
	}
	inherited.mu.Unlock()
	fd, err := adoptInherited(name, kind, inheritedConn(streams))
	if err != nil {
		return nil, err
	}
	cfg, _ := ShareConfig{}.complete()
	return newSharedConn(endpoint{fd: fd, local: fd.localAddr()}, cfg, kind == kindSharedServer), nil
}

// ---------------------------------------------------------------------------
// Over the socket

// readSocket reads from the socket what was not read ahead.
func (c *SharedConn) readSocket(p []byte) (int, error) {
	if c.peerWShut.Load() || c.r.shut.Load() {
		return 0, io.EOF
	}
	n, err := c.base.end().read(p)
	if n == 0 && isEnd(err) { // ECONNRESET if something was left unread, which may be a hello
		err = io.EOF
	}
	return n, err
}

// peekSocket reads ahead until there are n bytes. It does so in memory too, if bytes that
// came in the handshake are still to be read before those in the ring.
func (c *SharedConn) peekSocket(n int) ([]byte, error) {
	for len(c.ahead) < max(n, 1) {
		room := max(n, roomToPeek) - len(c.ahead)
		p := append(c.ahead, make([]byte, room)...)
		m, err := c.readMore(p[len(c.ahead):])
		c.ahead = p[:len(c.ahead)+m]
		if err != nil {
			return c.ahead, err
		}
	}
	return c.lookAhead(n), nil
}

// readMore reads the bytes that follow those that were read ahead.
func (c *SharedConn) readMore(p []byte) (int, error) {
	if c.mode.Load() == overSocket {
		return c.readSocket(p)
	}
	avail, err := c.awaitData(1)
	if avail == 0 {
		return 0, err
	}
	n := c.in.take(p, avail)
	c.consume(n)
	return int(n), nil
}

// Until the handshake is over, other calls may add to the bytes that were read ahead.

func (c *SharedConn) hasAhead(n int) bool {
	if c.mode.Load() == settingUp {
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	return len(c.ahead) >= n
}

// lookAhead returns the first n bytes that were read ahead, or all of them if n is 0.
func (c *SharedConn) lookAhead(n int) []byte {
	if c.mode.Load() == settingUp {
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	if n == 0 {
		n = len(c.ahead)
	}
	return c.ahead[:n:n]
}

func (c *SharedConn) takeAhead(p []byte) int {
	if c.mode.Load() == settingUp {
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	n := copy(p, c.ahead)
	c.ahead = c.ahead[n:]
	return n
}

func (c *SharedConn) dropAhead(n int) {
	if c.mode.Load() == settingUp {
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	c.ahead = c.ahead[n:]
}

// roomToPeek is how much peekSocket reads at least.
const roomToPeek = 4 << 10

// ---------------------------------------------------------------------------
// Waiting
//
// The words of the control pages are written and read with sync/atomic, in one order that
// both ends agree on. A half that is about to park makes its epoch odd and then looks at
// the peer's index; the peer stores its index and then looks at the epoch. So at least
// one of the two sees what the other did, and no wake-up is lost.
//
// The peer rings the doorbell once for an epoch. It may be late: for bytes that were there
// before the wait began. Then the doorbell of this epoch is used up. So a half that was
// woken and finds nothing begins a new epoch before it looks again.

// begin begins an operation of the half that the caller has locked. It fails if the
// connection is closed or the deadline has passed, and sets the connection up as far as is
// enough.
func (c *SharedConn) begin(h *sharedHalf, use bool, enough aim) error {
	switch {
	case c.closed.Load():
		return net.ErrClosed
	case h.expired():
		return os.ErrDeadlineExceeded
	case !use || c.mode.Load() == inMemory:
		return nil
	}
	return c.setUp(h, enough)
}

// awaitData waits until there are need bytes to read. It returns how many there are,
// and io.EOF if there will be no more.
func (c *SharedConn) awaitData(need uint32) (uint32, error) {
	for {
		if c.r.shut.Load() {
			return 0, io.EOF
		}
		over := c.in.peer.wclosed.Load() != 0 || c.gone.Load() // before the look at the ring
		avail, err := c.in.available(need)
		switch {
		case err != nil:
			return 0, c.fail(err)
		case avail >= need:
			return avail, nil
		case over:
			return avail, io.EOF
		}
		if err := c.wait(&c.r, need); err != nil {
			return 0, err
		}
	}
}

// awaitRoom waits until there is room for need bytes and returns how much there is, with
// os.ErrDeadlineExceeded maybe less.
func (c *SharedConn) awaitRoom(need uint32) (uint32, error) {
	for {
		if c.writeEnded() {
			return 0, errBrokenPipe
		}
		room, err := c.out.room(need)
		switch {
		case err != nil:
			return 0, c.fail(err)
		case room >= need:
			if c.closed.Load() { // a long write ends with Close, whatever the peer does
				return 0, net.ErrClosed
			}
			return room, nil
		}
		if err := c.wait(&c.w, need); err == os.ErrDeadlineExceeded {
			room, failed := c.out.room(c.out.size) // there may be some for which nobody wakes
			if failed != nil {
				return 0, c.fail(failed)
			}
			return room, err
		} else if err != nil {
			return 0, err
		}
	}
}

// writeEnded reports whether nobody will read what is written.
func (c *SharedConn) writeEnded() bool {
	return c.w.shut.Load() || c.gone.Load() || c.out.peer.rclosed.Load() != 0
}

// ready reports whether the half has something to do or to report.
func (c *SharedConn) ready(h *sharedHalf, need uint32) bool {
	if c.closed.Load() || c.gone.Load() || c.mode.Load() != inMemory {
		return true
	}
	if h == &c.r {
		return c.in.ready(need) || c.r.shut.Load()
	}
	return c.out.ready(need) || c.w.shut.Load()
}

// wait returns when the half may be ready.
func (c *SharedConn) wait(h *sharedHalf, need uint32) error {
	begun, spun := now(), int64(0)
	asleep := (c.in.peer.rwait.Load()|c.in.peer.wwait.Load())&1 != 0
	spin := &h.spins[0]
	if asleep {
		spin = &h.spins[1]
	}
	limit, most := c.spinLimits()
	much, answer := c.waitsFor(h)
	onlyYields := much && c.spin.Load() == 0 && spinning.yield != nil && !oneCPU && h.yieldsForMuch()
	if onlyYields {
		spin = &sharedSpin{skip: 1} // no other wait goes by what this one finds
	}
	if budget := spin.budget(limit, most, asleep); budget > 0 && spinning.losses.mayLose(begun) && spinning.begin(begun) {
		won := c.spinFor(h, need, begun, budget)
		spinning.stop()
		if won {
			spinning.succeeded()
			spinning.losses.add(spin.outcome(0, true, asleep, 0))
			return c.waited(h)
		}
		spun = budget
		// Linux has queued a peer that was asleep on the CPU that rang it.
		if asleep && answer && !much && spinning.shouldLeave(now()) {
			spinning.leave()
		}
	}
	yields := spun == 0 && limit > 0 && h.mayYield(asleep) && spinning.mayYield(&h.yields)
	if yields && c.yieldFor(h, need, begun, limit) {
		spin.skipped()
		return c.waited(h)
	}
	if limit > 0 {
		spinning.timeCalls()
	}
	epoch := h.epoch
	err := c.park(h, need)
	length := now() - begun
	if woken := h.epoch-epoch > 2; woken && spun == 0 && !yields {
		h.yields.hasParked(max(length, int64(wakeUps)))
	}
	spinning.losses.add(spin.outcome(spun, false, asleep, length))
	if err != nil && err != os.ErrDeadlineExceeded {
		return err
	}
	return c.waited(h)
}

// waitsFor reports whether a wait of that half is for much data, and whether it is for an answer, by what
// this end has written and read since the wait to read before it. Only waits to read are for an answer.
func (c *SharedConn) waitsFor(h *sharedHalf) (much, answer bool) {
	if h == &c.w {
		return true, false
	}
	head, tail := c.out.own.head.Load(), c.in.tail
	said, heard := int32(min(head-c.spokeTo, bulkMin)), int32(min(tail-c.heardTo, bulkMin))
	c.spokeTo, c.heardTo = head, tail
	if said > 0 || heard > 0 { // otherwise it goes on with the wait before, as for the rest of a frame
		c.heardMuch = streaming(heard, said) || inBulk(heard, said)
	}
	return c.heardMuch, said > 0
}

// waited returns the error with which an operation ends after a wait, or nil if it goes
// on.
func (c *SharedConn) waited(h *sharedHalf) error {
	switch {
	case c.closed.Load():
		return net.ErrClosed
	case c.mode.Load() == inFailure:
		return c.why()
	case h.expired():
		return os.ErrDeadlineExceeded
	}
	return nil // there is news, or CloseRead or CloseWrite was called
}

// park waits on the doorbell. See the head of this section.
func (c *SharedConn) park(h *sharedHalf, need uint32) error {
	c.mu.Lock()
	h.parked.Store(true)
	err := c.applyDeadline(h)
	c.mu.Unlock()
	defer h.parked.Store(false)
	h.epoch++ // odd
	h.word.Store(h.epoch)
	for err == nil && !c.ready(h, need) {
		if err = awaitBell(h.bell, &h.bellRoom); err == nil {
			h.epoch += 2
			h.word.Store(h.epoch)
		}
	}
	h.epoch++ // even
	h.word.Store(h.epoch)
	switch err {
	case nil, os.ErrDeadlineExceeded, net.ErrClosed:
		return err
	case io.EOF:
		c.gone.Store(true)
		return nil
	}
	return c.fail(err)
}

// wakePeer rings the doorbell of the peer's half that has this epoch, if it is parked and
// was not woken in that epoch before.
func (c *SharedConn) wakePeer(h *sharedHalf, epoch uint32, woken *uint32) {
	if epoch&1 == 0 {
		*woken = 0
		return
	}
	if epoch == *woken {
		return
	}
	*woken = epoch
	switch err := ringBell(h.far); err {
	case nil, net.ErrClosed:
	case io.EOF:
		c.gone.Store(true)
	default: // the peer may never wake, and an end of the stream would be a lie
		c.fail(err)
	}
}

// publish lets the peer read n bytes more, consume lets it write as many again.
func (c *SharedConn) publish(n uint32) {
	raceRelease()
	c.wakePeer(&c.w, c.out.publish(n), &c.out.woken)
}

func (c *SharedConn) consume(n uint32) {
	raceAcquire()
	c.wakePeer(&c.r, c.in.consume(n), &c.in.woken)
}

// fail ends a connection whose peer broke the protocol, or whose doorbell failed.
func (c *SharedConn) fail(err error) error {
	var parked []*fd
	defer func() { ringLast(parked, 0) }()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mode.Load() != inFailure {
		c.failure = err
		c.mode.Store(inFailure)
		parked = c.tellEnd()
		c.base.end().setDeadline(time.Unix(1, 0), reading|writing) // ends RecvFiles and SendFiles
		for _, h := range [...]*sharedHalf{&c.r, &c.w} {
			if h.bell != nil {
				h.bell.setDeadline(time.Unix(1, 0), reading)
			}
		}
	}
	return c.failure
}

func (c *SharedConn) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

var errFilesInDoorbell = protocolError("it sent files with a doorbell")

func protocolError(what string) error {
	return &ruleError{"the peer broke the protocol of shared memory: " + what, syscall.EPROTO}
}

func (h *sharedHalf) expired() bool {
	e := h.expiry.Load()
	return e != 0 && now() >= e
}

// ---------------------------------------------------------------------------
// Spinning in shared memory
//
// This is another policy than that of sockets (see backoff). An attempt there is a system
// call, and here a load from memory. Here an end sees whether its peer is parked, so it knows
// whether a wait takes a wake-up. And here the account of all connections limits what failed
// spins cost, since many of them would cost more than the waits that they shorten.
//
// A wait for much data yields or parks, where the system can yield, and does not spin. Then both ends are
// soon on one CPU, one after the other, and copy within its cache. On two CPUs each copies out of the other's
// cache, which some CPUs do ten times more slowly. If so many yields in a row gain nothing, the ends have not come to
// one CPU, and such waits spin after all. (A yield to a peer on another CPU can gain something by chance: it
// returns at once, and the peer was about to be ready.) They spin at once if SetSpin was called, or if this process has
// one CPU: the peer may have another for good.

const (
	spinShared       = 50 * time.Microsecond  // about the time of two wake-ups
	spinSharedAsleep = 200 * time.Microsecond // the most while the peer is being woken
	spinSharedGain   = 10 * time.Microsecond  // about the CPU time that a spin saves if it is enough
	spinSharedAhead  = 2 * time.Millisecond   // CPU time that spins of all connections may lose at once
	spinSharedShare  = 16                     // besides, one part in so many of the time that passes
	spinSharedFree   = 8                      // losses in a row that are normal on a busy machine
	spinSharedMax    = 128                    // waits that skip spinning after a loss, at most
	spinSharedShort  = 400 * time.Microsecond // a longer wait is no reason to spin at the next one
	parksForMuch     = 64                     // waits for much that do not spin, if no yield soon has success
	spinsForMuch     = 8192                   // such waits that may spin after that
)

// A sharedSpin decides whether a wait spins. A half has two. One is for waits that begin
// while the peer is awake: they end soon unless the peer loses its CPU. The other is for
// waits that begin while the peer is parked and has just been woken: they do not end
// before the peer has been woken.
//
// A few losses in a row cost nothing, so that the two ends do not keep each other from
// spinning. After more, each loss doubles the number of waits that do not spin, and each
// success halves it. Only short waits use that number up, so a connection that is mostly
// idle does not spin at all.
type sharedSpin struct {
	losses uint8
	skip   uint8 // coming short waits that do not spin
	last   uint8 // skip after the latest loss
	cost   int64 // how long short waits take that park, on average; 0 before the first
}

// budget returns how many nanoseconds the next wait may spin: limit for a peer that is awake.
// One that is asleep is given the time that it has needed lately, up to most.
func (s *sharedSpin) budget(limit, most int64, asleep bool) int64 {
	if s.skip > 0 || limit == 0 {
		return 0
	}
	if asleep {
		return min(max(limit/2, s.cost+s.cost/2), most)
	}
	return limit
}

// outcome tells how a wait went: how long it spun, whether that was enough, and how long it
// took in all. It returns the CPU time that the spin has saved, which is negative for one that
// failed.
func (s *sharedSpin) outcome(spun int64, won, asleep bool, length int64) (saved int64) {
	switch {
	case won:
		s.losses, s.last = s.losses/2, s.last/2
		return int64(spinSharedGain)
	case spun > 0:
		if s.losses++; s.losses > spinSharedFree || asleep {
			s.losses, s.last = spinSharedFree, min(2*s.last+1, spinSharedMax-1)
			s.skip = s.last
		}
	case length < int64(spinSharedShort):
		s.skipped()
	}
	if length < int64(spinSharedShort) {
		s.cost += (length - s.cost) / 8
	}
	return -spun
}

// skipped takes note of a short wait that did not spin.
func (s *sharedSpin) skipped() { s.skip = max(s.skip, 1) - 1 }

// A lossAccount has the CPU time that the spins of all shared connections of the process
// may lose. It grows by what spins have saved, and by a small part of the time that passes.
// Concurrent updates may be lost, which is harmless.
type lossAccount struct {
	balance  atomic.Int64 // nanoseconds, at most spinSharedAhead
	refilled atomic.Int64 // when it was last given its part of the time
}

// mayLose reports whether there is any to lose.
func (a *lossAccount) mayLose(now int64) bool {
	if last := a.refilled.Load(); now-last > int64(time.Millisecond) && a.refilled.CompareAndSwap(last, now) {
		a.add((now - last) / spinSharedShare)
	}
	return a.balance.Load() > 0
}

func (a *lossAccount) add(n int64) {
	if n != 0 && a.balance.Add(n) > int64(spinSharedAhead) {
		a.balance.Store(int64(spinSharedAhead))
	}
}

// spinLimits returns the limits of sharedSpin.budget. What SetSpin has set holds for every
// wait. Where system calls are dear, so are interrupts: there a timer or a thread of the runtime takes
// the peer's CPU for longer than a spin elsewhere.
func (c *SharedConn) spinLimits() (limit, most int64) {
	if set := c.spin.Load(); set != 0 {
		return max(set, 0), max(set, 0)
	}
	limit = int64(spinShared)
	if spinning.dearCalls() {
		limit *= 2
	}
	return limit, int64(spinSharedAsleep)
}

// spinFor looks whether the half is ready, for up to budget nanoseconds from begun on.
func (c *SharedConn) spinFor(h *sharedHalf, need uint32, begun, budget int64) bool {
	var s spin
	for s.begin(begun, budget); !s.over(now()) && !h.expired(); {
		for range 64 {
			if c.ready(h, need) {
				return true
			}
		}
	}
	return false
}

// mayYield reports whether the wait may yield, given whether the peer was parked when it began.
// An end that yields to one that parks each time does more, and smaller, turns than if both
// parked; only if both yield they gain. So a wait yields if the peer has not parked. Now and
// then one does all the same: the peer, which sees that this end is awake, can join in.
func (h *sharedHalf) mayYield(asleep bool) bool {
	if !asleep {
		return true
	}
	h.sleepers++
	return h.sleepers%yieldToSleeper == 0
}

// wakeUps is what two wake-ups cost at least. Where both ends of a stream park, many waits are
// shorter, but there are more of them.
const wakeUps = 20 * time.Microsecond

// yieldsForMuch counts a wait for much, and reports whether it yields or parks, and does not spin. If so many have
// gained nothing by that, the ends are not on one CPU for all that, or share it with others. Then such waits
// spin for a while.
func (h *sharedHalf) yieldsForMuch() bool {
	h.apart = (h.apart + 1) % (parksForMuch + spinsForMuch)
	return h.apart <= parksForMuch
}

// yieldToSleeper is how often a wait yields though the peer has parked: once in so many such waits.
const yieldToSleeper = 64

// yieldFor lets others run before it looks whether the half is ready, a few times. Unlike those
// of sockets, waits for room yield too: on one CPU, two ends that yield pass a stream on twice
// as fast as two that park.
func (c *SharedConn) yieldFor(h *sharedHalf, need uint32, begun, limit int64) bool {
	at, ready := begun, false
	for n := 0; !ready && moreYields(n, at-begun, limit) && !h.expired(); n++ {
		spinning.yield()
		ready = c.ready(h, need)
		at = now()
	}
	spinning.hasYielded(&h.yields, ready, begun, at)
	if ready && at-begun < limit {
		h.apart = 0
	}
	return ready
}

// ---------------------------------------------------------------------------
// Rings
//
// The indices count bytes since the beginning, modulo 2^32; their difference is how many
// bytes are in the ring, and at most its size. What an end writes and reads, and where,
// depends on its private copies alone. From the peer's index it takes one thing: how far
// it may go. It loads that once and checks it against the size.

// A controlPage is the beginning of a memory object. Words that are written at different
// times are on different cache lines, and on different pairs of them.
type controlPage struct {
	head    atomic.Uint32 // bytes written to this object's ring
	wclosed atomic.Uint32 // 1: there will be no more
	_       [120]byte
	tail    atomic.Uint32 // bytes read from the peer's ring
	rclosed atomic.Uint32 // 1: no more is read
	_       [120]byte
	rwait   atomic.Uint32 // epoch of the reading half; odd: wake it when there are bytes
	_       [124]byte
	wwait   atomic.Uint32 // epoch of the writing half; odd: wake it when there is room
}

// tellEnd says that nothing more is written or read.
func (p *controlPage) tellEnd() {
	p.wclosed.Store(1)
	p.rclosed.Store(1)
}

// controlSize is the room of the control page before the ring: a multiple of every page
// size, and of the allocation granularity of Windows. Only the part in use takes memory.
const controlSize = 64 << 10

// copyMax is how many bytes are copied before the peer gets to know of them, so that both
// ends can be at work on a long write.
const copyMax = 16 << 10

// A ringWriter is the writing end of a ring.
type ringWriter struct {
	own  *controlPage // has head and wwait
	peer *controlPage // has tail and rwait
	data []byte       // the ring, twice in a row where the system can map it so
	size uint32

	head  uint32 // bytes written
	tail  uint32 // the last index of the peer that was checked
	woken uint32 // the epoch in which the peer's reading half was woken last
}

// room returns how many bytes can be written; it looks at the peer's index if it knows of
// less than need.
func (w *ringWriter) room(need uint32) (uint32, error) {
	if room := w.size - (w.head - w.tail); room >= need {
		return room, nil
	}
	tail := w.peer.tail.Load()
	used := w.head - tail
	if used > w.head-w.tail { // it went back, or beyond head
		return 0, protocolError("it has read more than was written")
	}
	w.tail = tail
	return w.size - used, nil
}

// ready reports whether room may return more, or an error.
func (w *ringWriter) ready(need uint32) bool {
	used := w.head - w.peer.tail.Load()
	return used > w.size || w.size-used >= need || w.peer.rclosed.Load() != 0
}

// put copies as much of p as there is room for, and at most copyMax. publish then sends
// it.
func (w *ringWriter) put(p []byte, room uint32) uint32 {
	n := uint32(min(uint64(len(p)), uint64(room), copyMax))
	at := w.head & (w.size - 1)
	if m := copy(w.data[at:], p[:n]); m < int(n) {
		copy(w.data, p[m:n])
	}
	return n
}

// span returns the next n bytes to be written, if they are in one piece.
func (w *ringWriter) span(n uint32) (p []byte, whole bool) {
	return spanOf(w.data, w.head&(w.size-1), n)
}

// publish stores the index behind n bytes that were put, and returns the epoch of the
// peer's reading half.
func (w *ringWriter) publish(n uint32) (epoch uint32) {
	w.head += n
	w.own.head.Store(w.head)
	return w.peer.rwait.Load()
}

// A ringReader is the reading end of a ring.
type ringReader struct {
	own  *controlPage // has tail and rwait
	peer *controlPage // has head and wwait
	data []byte       // the peer's ring, as in ringWriter: memory that the peer can change
	size uint32

	tail  uint32 // bytes read
	head  uint32 // the last index of the peer that was checked
	woken uint32 // the epoch in which the peer's writing half was woken last
}

// available returns how many bytes can be read; it looks at the peer's index if it knows of
// less than need.
func (r *ringReader) available(need uint32) (uint32, error) {
	if avail := r.head - r.tail; avail >= need {
		return avail, nil
	}
	head := r.peer.head.Load()
	avail := head - r.tail
	if avail > r.size || avail < r.head-r.tail { // the latter if it went back
		return 0, protocolError("it has written more than there is room for")
	}
	r.head = head
	return avail, nil
}

// ready reports whether available may return more, or an error.
func (r *ringReader) ready(need uint32) bool {
	avail := r.peer.head.Load() - r.tail
	return avail >= need || r.peer.wclosed.Load() != 0
}

// take copies up to avail bytes to p, and at most copyMax. consume then gives their room
// back.
func (r *ringReader) take(p []byte, avail uint32) uint32 {
	n := uint32(min(uint64(len(p)), uint64(avail), copyMax))
	r.look(p[:n])
	return n
}

// look copies the next bytes to p.
func (r *ringReader) look(p []byte) {
	if m := copy(p, r.data[r.tail&(r.size-1):]); m < len(p) {
		copy(p[m:], r.data)
	}
}

// span returns the next n bytes to be read, if they are in one piece.
func (r *ringReader) span(n uint32) (p []byte, whole bool) {
	return spanOf(r.data, r.tail&(r.size-1), n)
}

// consume stores the index behind n bytes that were taken, and returns the epoch of the
// peer's writing half. If that half is parked but should not be woken yet, it returns 0:
// the half is woken when half of the ring is free, and not for every few bytes.
func (r *ringReader) consume(n uint32) (epoch uint32) {
	r.tail += n
	r.own.tail.Store(r.tail)
	epoch = r.peer.wwait.Load()
	if epoch&1 != 0 && r.peer.head.Load()-r.tail > r.size/2 {
		epoch = 0
	}
	return epoch
}

// spanOf returns the n bytes of data from at on, if data reaches so far.
func spanOf(data []byte, at, n uint32) (p []byte, whole bool) {
	if uint64(at)+uint64(n) > uint64(len(data)) {
		return nil, false
	}
	return data[at : at+n : at+n], true
}

// ---------------------------------------------------------------------------
// Mappings

// A mapping is a memory object of a connection in the address space of this process.
type mapping struct {
	mem   []byte
	again int         // how many bytes at the end are the ring a second time
	lent  atomic.Bool // a caller has a part of it; set under the lock of a half, and read under SharedConn.mu
}

// control returns the control page. The mapping is aligned to a page and stays until unmap.
// The peer may write its own page at any time, so the fields are atomic.
func (m *mapping) control() *controlPage { return (*controlPage)(unsafe.Pointer(&m.mem[0])) }
func (m *mapping) ring() []byte          { return m.mem[controlSize:] }

// unmap cannot fail for what was mapped; if it did, nothing could be done about it.
func (m *mapping) unmap() {
	ringsMapped.remove(len(m.mem))
	unmapMemory(m.mem, m.again)
	m.mem = nil
}

// abandon is for a connection that was dropped without Close. Bytes that are still on
// loan then must stay readable, though nobody can give them back. Their memory
// need not stay: see vacateMemory.
func (m *mapping) abandon() {
	switch {
	case m.mem == nil: // Close did it
	case m.lent.Load():
		vacateMemory(m.mem)
	default:
		m.unmap()
	}
}

// ringsMapped counts the rings that are mapped, and the addresses that they take. Linux limits the
// mappings of a process (vm.max_map_count, 65530 by default), and every system its addresses. The
// runtime of Go, which needs some itself, ends the process when it gets none. So there are limits
// here: the peers decide how many rings there are, and how large theirs are.
var ringsMapped ringCount

type ringCount struct {
	mu    sync.Mutex // guards the rest
	rings int
	space int64 // in bytes
}

// A ringLimit is how many rings may be mapped, and how much space they may take.
type ringLimit struct {
	rings int
	space int64
}

// ringSpace is how much of the addresses the rings may take: 1 GiB where they have 32 bits, or
// else 128 GiB, half of what the smallest of the others leave to a process (riscv64, Sv39).
const ringSpace int64 = 1 << 30 << (^uint(0) >> 63 * 7)

var (
	limitTwice = ringLimit{20000, ringSpace / 2} // more are mapped once: copies are made where a loan would wrap
	limitOwn   = ringLimit{30000, ringSpace}     // then connections go through the socket

	// For rings of peers, since this end's own ring may be mapped already, and was sent. Then it is
	// too late for the socket.
	limitPeers = ringLimit{30000 + 2000, ringSpace + ringSpace/8}
)

// add counts a ring that takes so many bytes, unless that goes beyond the limit.
func (c *ringCount) add(size int, most ringLimit) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rings >= most.rings || c.space+int64(size) > most.space {
		return false
	}
	c.rings++
	c.space += int64(size)
	return true
}

func (c *ringCount) remove(size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rings--
	c.space -= int64(size)
}

var errTooManyRings = &ruleError{"the process has mapped too many rings, or too large ones", syscall.ENOMEM}

// mapRing maps a memory object with a ring of that size, the ring twice in a row if that
// can be done. Only an own ring is mapped to write.
func mapRing(f *os.File, ring int, write bool) (*mapping, error) {
	size := controlSize + ring
	if ringsMapped.add(size+ring, limitTwice) {
		if mem, err := mapMemory(f, size, ring, write); err == nil {
			return &mapping{mem: mem, again: ring}, nil
		}
		ringsMapped.remove(size + ring)
	}
	most := limitPeers
	if write {
		most = limitOwn
	}
	if !ringsMapped.add(size, most) {
		return nil, errTooManyRings
	}
	mem, err := mapMemory(f, size, 0, write)
	if err != nil {
		ringsMapped.remove(size)
		return nil, err
	}
	return &mapping{mem: mem}, nil
}

// ---------------------------------------------------------------------------
// The handshake
//
// To set memory up costs many times what a small exchange through the socket does, and
// takes memory. So an end first writes through the socket: that is early data. It makes
// its memory when there is too much early data, or when a call needs the memory.
//
// Each end sends hellos of 32 bytes over the socket. Early data follows some of them. The
// last hello says whether the end has memory to share. If so, its memory object comes with
// that hello, and the far ends of the doorbells of its reading and its writing half.
//
//	 0  8 bytes  ff "ipcshm" and the version: 01
//	 8  4 bytes  0x01020304 in the order of bytes in which the words of the control page are
//	12  4 bytes  what it says, see helloMemory; least significant byte first, as what follows
//	16  4 bytes  the size of the ring, which with the control page is the size of the memory,
//	             or how many bytes of early data follow
//	20  4 bytes  with early data: the size of the ring that is to come
//	24  8 bytes  zero
//
// If both have sent memory it is used from the last hello on, and otherwise the socket. An
// end that has got the peer's last hello sends its own last one as the answer.
//
// A server waits for the client's first hello before it sends one: what does not begin
// like a hello is data of a client that does not share memory. It also waits for the
// client's last hello before it sends its own last one, unless its own says that there is
// no memory. Either end refuses a hello of another version.

const (
	helloMark    = "\xffipcshm"
	helloVersion = 1
	helloSize    = 32
	helloOrder   = 0x01020304
	helloFiles   = 3  // the memory and the far ends of the doorbells
	ringAt       = 20 // where a hello with early data has the size of the ring that is to come

	// What a hello says. 0 is a last hello of an end that has no memory to share.
	helloMemory    = 1  // a last hello: memory comes with it
	helloEarly     = 2  // not a last hello: early data follows
	helloAsk       = 4  // with helloEarly: the sender waits for the peer's last hello
	helloWriteShut = 8  // a last hello: there is no memory, and nothing more is written
	helloReadShut  = 16 // a last hello: there is no memory, and nothing more is read; both can be said at once
)

// The most early data that an end sends, in bytes, and the most hellos with it. All of it
// fits the buffers of a socket. If there are more writes, the connection lasts, and is
// worth the memory.
const (
	earlyMax   = 4 << 10
	earlyTimes = 32
)

// A handshake is the state of a handshake that is not over.
type handshake struct {
	turn    chan struct{} // holds a value while a call receives
	pen     chan struct{} // holds a value while a call sends; a call that needs both takes the turn first
	over    chan struct{} // closed when it is over, and by Close
	changed chan struct{} // closed and made anew when a deadline or met has changed, when early data has come; guarded by SharedConn.mu

	begun bool        // something may have been sent or received; guarded by SharedConn.mu
	met   atomic.Bool // the peer shares memory, or must: this end is not passive

	// The holder of the pen sets these. Others read them without it.
	spoke atomic.Bool // a hello was sent
	asked atomic.Bool // a hello with helloAsk was sent
	last  atomic.Bool // our last hello was sent

	// The holder of the pen has what follows. Once last is true, it is changed only by
	// settle, and by the call that releases it after that.
	early int             // bytes of early data that were sent
	times int             // hellos that were sent with them
	own   *mapping        // our memory, which was sent
	drop  runtime.Cleanup // unmaps own if nobody calls Close
	bells doorbells       // of our halves

	// The holder of the turn has what follows.
	buf      [helloSize]byte
	got      int             // bytes of buf that were received
	files    []helloFile     // that came with them
	lost     bool            // more came, for which there were no descriptors
	due      int             // bytes of early data that follow
	received int             // bytes of early data that were announced
	hellos   int             // hellos that announced early data
	wanted   bool            // the peer waits for our last hello
	done     bool            // the peer's last hello is complete
	peer     *mapping        // nil: it sent none, or it is not to be used
	peerDrop runtime.Cleanup // unmaps peer if nobody calls Close
	theirs   doorbells       // the far ends of the peer's
	plain    bool            // the peer does not share memory, or is gone
}

// doorbells are those of one end, or their far ends.
type doorbells struct{ r, w *fd } // of the reading and the writing half

func (b doorbells) close() {
	for _, f := range [...]*fd{b.r, b.w} {
		if f != nil {
			f.closeLater()
		}
	}
}

// A sequel says what is to be read next from a socket or a doorbell. By that Close on Windows
// finds the memory, the doorbells and the files that the peer has put into this process, and
// that nobody has received. It also leaves the close of what is not dataFollows to another
// goroutine, since the peer can hold it up.
type sequel = uint32

const (
	dataFollows  sequel = iota // anything
	filesFollow                // files
	hellosFollow               // hellos, with early data or memory
	ringsFollow                // the bytes of a doorbell
)

func newHandshake() *handshake {
	return &handshake{turn: make(chan struct{}, 1), pen: make(chan struct{}, 1),
		over: make(chan struct{}), changed: make(chan struct{})}
}

// stir makes every call that waits for the handshake look at its deadline again, and
// whether the connection is closed. The caller holds SharedConn.mu.
func (hs *handshake) stir() {
	close(hs.changed)
	hs.changed = make(chan struct{})
}

// An aim says how far a call needs the handshake to go: until so many bytes were read
// ahead, or to one of the points below. The end of the handshake is enough for every aim.
type aim int

const (
	toMeet  aim = 0  // until it is known that the peer shares memory
	toShare aim = -1 // to the end of the handshake
)

// setUp carries the handshake on as far as enough says, or waits until another call has
// done so. It ends at the deadline of the half.
func (c *SharedConn) setUp(h *sharedHalf, enough aim) error {
	if enough == toShare {
		c.twins.meet()
	}
	for {
		hs, changed, err := c.underWay(h, enough)
		if hs == nil {
			return err
		}
		if err = c.propose(h, hs, enough); err == nil {
			err = c.hold(h, hs, hs.turn, changed)
		}
		if err == nil {
			err = c.hearOut(h, hs, enough)
			hs.giveBack(hs.turn)
		}
		if err != nil && err != errAgain {
			return err
		}
	}
}

// errAgain says that the handshake has to be looked at again.
var errAgain = errors.New("look again")

// hold takes the turn or the pen. It returns errAgain if something has changed while it
// waited.
func (c *SharedConn) hold(h *sharedHalf, hs *handshake, token, changed chan struct{}) error {
	select {
	case token <- struct{}{}:
		return nil
	default:
	}
	c.mu.Lock()
	deadline := timeOf(h.expiry.Load())
	late := c.hello != hs || hs.changed != changed || c.closed.Load() || h.expired() || h.shut.Load()
	c.mu.Unlock()
	if late {
		return errAgain
	}
	select {
	case token <- struct{}{}:
		return nil
	case <-hs.over:
	case <-changed:
	case <-until(deadline):
	}
	return errAgain
}

// until returns a channel that delivers at the time, or never if that is zero.
func until(t time.Time) <-chan time.Time {
	if t.IsZero() {
		return nil
	}
	return time.After(time.Until(t))
}

// hearOut receives until the handshake has gone as far as enough says, within the deadline
// of the half. If that ends it early, the part that was received is kept. The caller has
// the turn.
func (c *SharedConn) hearOut(h *sharedHalf, hs *handshake, enough aim) error {
	c.mu.Lock()
	if c.hello != hs {
		c.mu.Unlock()
		return errAgain
	}
	hs.begun, c.receiver = true, h
	err := c.applyDeadline(h)
	c.mu.Unlock()
	over := false
	if err == nil {
		over, err = c.exchange(h, hs, enough)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.receiver = nil
	switch {
	case c.closed.Load():
		return net.ErrClosed // Close releases what there is
	case c.hello != hs: // a call that sends has ended it
		return errAgain
	case err == errAgain || errors.Is(err, os.ErrDeadlineExceeded):
		return errAgain // the deadline may have been changed since
	case err == nil && !over:
		return nil
	}
	c.settle(hs, err)
	return errAgain
}

// exchange sends and receives until the handshake has gone as far as enough says, or is
// over.
func (c *SharedConn) exchange(h *sharedHalf, hs *handshake, enough aim) (over bool, err error) {
	for {
		switch {
		case hs.plain:
			return true, nil
		case hs.done:
			if err := c.sendLast(h, hs, hs.peer == nil); err != nil {
				return false, err
			}
			return true, nil
		case hs.wanted && !c.passive:
			if err := c.sendLast(h, hs, false); err != nil {
				return false, err
			}
			hs.wanted = false
			continue
		case enough == toMeet && hs.met.Load() || enough > 0 && c.hasAhead(int(enough)):
			return false, nil
		default:
			err = c.propose(h, hs, enough)
		}
		if err == nil {
			err = c.receive(hs)
		}
		if err != nil {
			return false, err
		}
	}
}

// underWay returns the handshake, if it has to go on, and the channel that tells of changes
// from now on. Otherwise it returns nil and the error of the call, or none.
func (c *SharedConn) underWay(h *sharedHalf, enough aim) (hs *handshake, changed chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	hs = c.hello
	switch {
	case c.closed.Load() || c.base.fd == nil: // failed makes another error of that of the zero value
		return nil, nil, net.ErrClosed
	case hs == nil:
		return nil, nil, c.failure
	case h.shut.Load() && h == &c.r:
		return nil, nil, io.EOF
	case h.shut.Load():
		return nil, nil, errBrokenPipe
	case h.expired():
		return nil, nil, os.ErrDeadlineExceeded
	case enough > 0 && len(c.ahead) >= int(enough), enough == toMeet && hs.met.Load():
		return nil, nil, nil
	}
	return hs, hs.changed, nil
}

// propose sends the hello, if any, without which the peer would not send the hello that
// the caller is about to wait for.
func (c *SharedConn) propose(h *sharedHalf, hs *handshake, enough aim) error {
	switch {
	case enough == toShare && !c.passive:
		return c.sendLast(h, hs, false)
	case enough == toShare && hs.met.Load() && !hs.asked.Load():
		return c.withPen(h, hs, func() error { return c.sendWord(hs, helloEarly|helloAsk, &hs.asked) })
	case enough != toShare && !c.passive && !hs.spoke.Load():
		return c.withPen(h, hs, func() error { return c.sendWord(hs, helloEarly, &hs.spoke) })
	}
	return nil
}

// sendWord sends a hello without data behind it, and sets sent. It is no error if the peer
// is gone: the peer may still have sent hellos and early data, which are received first.
func (c *SharedConn) sendWord(hs *handshake, what byte, sent *atomic.Bool) error {
	hello := c.helloOf(what, 0)
	n, err := sendPlainHello(c.base.end(), hello[:])
	if err != nil {
		c.sentPart(hs, n, err)
	}
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		err = nil
	}
	sent.Store(err == nil)
	return err
}

// withPen calls send with the pen, within the deadline of the half, unless our last hello
// was sent.
func (c *SharedConn) withPen(h *sharedHalf, hs *handshake, send func() error) error {
	if hs.last.Load() {
		return nil
	}
	c.mu.Lock()
	changed := hs.changed
	c.mu.Unlock()
	if err := c.hold(h, hs, hs.pen, changed); err != nil {
		return err
	}
	c.mu.Lock()
	if c.hello != hs || c.closed.Load() {
		c.mu.Unlock()
		hs.giveBack(hs.pen)
		return errAgain
	}
	hs.begun, c.sender = true, h
	err := c.applyDeadline(h)
	c.mu.Unlock()
	if err == nil && !hs.last.Load() {
		err = send()
	}
	c.mu.Lock()
	c.sender = nil
	c.mu.Unlock()
	hs.giveBack(hs.pen)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errAgain // it may have been changed since
	}
	return err
}

// sendEarly sends early data. The caller has the pen. The data is sent whole or not at
// all. Only if the socket's buffer was made tiny may a part be sent: then nothing can be
// sent behind it, and the connection fails.
func (c *SharedConn) sendEarly(hs *handshake, p []byte) error {
	hello := c.helloOf(helloEarly, len(p))
	n, err := sendPlainHello(c.base.end(), append(hello[:], p...))
	switch {
	case err == nil:
		hs.spoke.Store(true)
		hs.early += len(p)
		hs.times++
	default:
		c.sentPart(hs, n, err)
	}
	return err
}

// sentPart ends the connection if n bytes of a hello were sent, and not all of it, or may
// have been: the peer would take what is sent next for the rest. The caller has the pen.
func (c *SharedConn) sentPart(hs *handshake, n int, err error) {
	if n == 0 || errors.Is(err, net.ErrClosed) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hello == hs {
		c.settle(hs, &classified{&ruleError{what: "a write of the handshake was cut off: " + err.Error()}, syscall.EPIPE})
	}
}

// writeEarly writes p as early data, and reports true. It does nothing if that would be
// too much early data, or if the handshake is over.
func (c *SharedConn) writeEarly(p []byte) (done bool, err error) {
	for c.mode.Load() == settingUp {
		if err := c.setUp(&c.w, toMeet); err != nil {
			return false, err
		}
		c.mu.Lock()
		hs := c.hello
		c.mu.Unlock()
		if hs == nil {
			return false, nil
		}
		err := c.withPen(&c.w, hs, func() error {
			if hs.times == earlyTimes || len(p) > earlyMax-hs.early {
				return nil
			}
			err := c.sendEarly(hs, p)
			done = err == nil
			return err
		})
		if err != errAgain {
			return done, err
		}
	}
	return false, nil
}

// sendLast sends our last hello, unless it was sent before. Memory comes with it, if the
// peer has not refused that, no half is shut, and this end gets some.
func (c *SharedConn) sendLast(h *sharedHalf, hs *handshake, refused bool) error {
	return c.withPen(h, hs, func() error {
		said := byte(0)
		for _, h := range [...]*sharedHalf{&c.r, &c.w} {
			if h.shut.Load() {
				said |= c.wordOf(h)
			}
		}
		if !refused && said == 0 {
			err := c.sendMemory(hs)
			if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
				return err
			}
			// This system has no such memory, or this process gets none at the moment, or it
			// cannot be handed to this peer, or the peer is gone.
		}
		c.said.Store(uint32(said)) // before others go by it that our last hello was sent
		return c.sendWord(hs, said, &hs.last)
	})
}

// sendMemory makes our memory and sends it.
func (c *SharedConn) sendMemory(hs *handshake) error {
	own, files, err := makeRing(c.cfg.Buffer)
	if err != nil {
		return err
	}
	defer files.close()
	file := files.object
	if files.readOnly != nil {
		file = files.readOnly
	}
	bells, sent, err := c.sendDoorbells(file)
	if err != nil {
		c.sentPart(hs, sent, err)
		own.unmap()
		bells.close()
		return err
	}
	hs.own, hs.bells = own, bells
	hs.drop = runtime.AddCleanup(c, (*mapping).abandon, own)
	hs.last.Store(true) // now the holder of the turn may use them
	return nil
}

// sendDoorbells makes the doorbells of this end, and sends the last hello with the memory and
// their far ends. sent is that of sendHello.
func (c *SharedConn) sendDoorbells(memory *os.File) (bells doorbells, sent int, err error) {
	var far [2]farBell
	for i, near := range [...]**fd{&bells.r, &bells.w} {
		if *near, far[i], err = newBell(); err != nil {
			return bells, 0, err
		}
		(*near).expect(ringsFollow)
		defer far[i].close()
	}
	hello := helloOf(helloMemory, c.cfg.Buffer)
	sent, err = sendHello(c.base.fd, memory, far[:], hello[:])
	return bells, sent, err
}

// makeRing makes a memory object with a ring of that size, which this process alone can
// write where the system can enforce that. Where the system cannot, a peer that writes
// there hurts nobody but itself: this process reads nothing from its own ring.
func makeRing(size int) (*mapping, memoryFiles, error) {
	files, err := newMemory(controlSize + size)
	if err != nil {
		return nil, files, err
	}
	own, err := mapRing(files.object, size, true)
	if err == nil {
		if err = sealMemory(files.object, true); err != nil {
			own.unmap()
		}
	}
	if err != nil {
		files.close()
		return nil, memoryFiles{}, err
	}
	return own, files, nil
}

// helloOf returns a hello of this end, with how many bytes of early data follow.
func (c *SharedConn) helloOf(what byte, early int) [helloSize]byte {
	b := helloOf(what, early)
	if what&helloEarly != 0 {
		putWord(b[ringAt:], uint32(c.cfg.Buffer))
	}
	return b
}

// helloOf returns a hello that says what, with the size of the ring or of the data that
// follows.
func helloOf(what byte, size int) (b [helloSize]byte) {
	b[copy(b[:], helloMark)] = helloVersion
	*(*uint32)(unsafe.Pointer(&b[8])) = helloOrder // b begins at a word, or the processor takes any address
	b[12] = what
	putWord(b[16:], uint32(size))
	return b
}

func putWord(b []byte, v uint32) {
	b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}

func getWord(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// receive receives some of a hello, or of the early data behind one. It takes a hello that
// is complete then.
func (c *SharedConn) receive(hs *handshake) error {
	switch {
	case hs.due > 0:
		return c.receiveEarly(hs)
	case hs.got == helloSize: // a deadline came before its memory was taken
		return c.takeHello(hs)
	}
	n, files, err := recvHello(c.base.fd, hs.buf[hs.got:])
	hs.files = append(hs.files, files...)
	hs.got += n
	_, tooMany := err.(excess)
	switch {
	case err != nil && n == 0:
		if hs.got == 0 && isEnd(err) {
			hs.plain = true // the socket says the rest
			return nil
		}
		return within(err)
	case tooMany:
	case c.passive && errors.Is(err, ErrMsgTooLong): // this process has no descriptors left
		hs.lost = true
	case err != nil:
		return err
	}
	switch mark := min(hs.got, len(helloMark)); {
	case string(hs.buf[:mark]) != helloMark[:mark]:
		if hs.met.Load() {
			return protocolError("it does not share")
		}
		hs.plain = true
		return nil
	case hs.got > len(helloMark) && hs.buf[len(helloMark)] != helloVersion:
		return protocolError("its version is " + strconv.Itoa(int(hs.buf[len(helloMark)])) + ", not " + strconv.Itoa(helloVersion))
	case tooMany || len(hs.files) > helloFiles:
		return protocolError("too many files")
	case hs.got < helloSize:
		return nil
	}
	return c.takeHello(hs)
}

// isEnd reports whether an error of receiving says that the peer has gone.
func isEnd(err error) bool { return err == io.EOF || errors.Is(err, syscall.ECONNRESET) }

// receiveEarly receives early data. From a peer that is gone it may be less than the hello
// said.
func (c *SharedConn) receiveEarly(hs *handshake) error {
	p := make([]byte, hs.due)
	n, err := c.base.end().read(p)
	c.mu.Lock()
	if c.hello == hs { // or a call that sends has ended it, and reads look at c.ahead without the lock
		c.ahead = append(c.ahead, p[:n]...)
		hs.stir() // a read may wait for no more than that
	}
	c.mu.Unlock()
	if hs.due -= n; isEnd(err) {
		hs.plain = true
		return nil
	}
	return err
}

// takeHello takes a hello that is complete. If a deadline ends that, the hello stays.
func (c *SharedConn) takeHello(hs *handshake) error {
	what, size, err := parseHello(hs.buf[:])
	if err != nil {
		return err
	}
	if !hs.met.Swap(true) {
		c.mu.Lock()
		hs.stir()
		c.mu.Unlock()
	}
	if what != helloMemory && len(hs.files) > 0 {
		return protocolError("it sent files with no memory")
	}
	if what&helloEarly != 0 {
		// Besides those with data, one may have no data and one may ask.
		if hs.hellos++; hs.hellos > earlyTimes+2 || int64(size) > int64(earlyMax-hs.received) {
			return protocolError("it sent too much before its memory")
		}
		hs.got = 0
		hs.received += int(size)
		hs.due = int(size)
		hs.wanted = hs.wanted || what&helloAsk != 0
		return c.acceptsRing(getWord(hs.buf[ringAt:]))
	}
	if what == helloMemory {
		if err := c.takeMemory(hs, size); err != nil {
			return err
		}
	} else {
		c.peerWShut.Store(what&helloWriteShut != 0)
		c.peerRShut.Store(what&helloReadShut != 0)
	}
	hs.got, hs.done = 0, true
	return nil
}

// acceptsRing returns the error of an end that must not have a peer with a ring of that
// size. A passive end has the time to say that it does without memory instead.
func (c *SharedConn) acceptsRing(size uint32) error {
	if c.passive || int64(size) <= int64(c.cfg.MaxPeerBuffer) {
		return nil
	}
	return &ruleError{"the peer's buffer has " + strconv.FormatUint(uint64(size), 10) + " bytes, the limit is " +
		strconv.Itoa(c.cfg.MaxPeerBuffer), ErrMsgTooLong}
}

// takeMemory takes the memory that came with the peer's hello, unless it is too large and
// there is still time to say so.
func (c *SharedConn) takeMemory(hs *handshake, ring uint32) error {
	c.mu.Lock()
	socket := c.socketOnly()
	c.mu.Unlock()
	switch {
	case hs.lost: // the peer can still be told that there is no memory here
		return nil
	case len(hs.files) != helloFiles:
		return protocolError("it sent " + strconv.Itoa(len(hs.files)) + " files")
	case socket: // our last hello said that we have no memory, or that a half is shut
		return nil
	case int64(ring) > int64(c.cfg.MaxPeerBuffer) && c.passive:
		return nil
	}
	if err := c.acceptsRing(ring); err != nil {
		return err
	}
	for i, far := range [...]**fd{&hs.theirs.r, &hs.theirs.w} {
		if *far != nil { // since before a deadline
			continue
		}
		var err error
		switch *far, err = hs.files[1+i].doorbell(c.base.fd); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case err != nil:
			return &classified{err, syscall.EPROTO}
		}
		(*far).expect(ringsFollow)
	}
	peer, err := mapPeer(&hs.files[0], int(ring))
	if err != nil {
		if c.passive && !errors.Is(err, syscall.EPROTO) {
			return nil // this process cannot, and the peer can still be told
		}
		return err
	}
	hs.peer = peer
	hs.peerDrop = runtime.AddCleanup(c, (*mapping).abandon, peer)
	hs.releaseFiles()
	return nil
}

// mapPeer maps the peer's memory, if it is what the hello says.
func mapPeer(r *helloFile, ring int) (*mapping, error) {
	memory, info, err := r.memory()
	if err != nil {
		return nil, &classified{err, syscall.EPROTO}
	}
	defer memory.Close()
	if info.size != controlSize+int64(ring) {
		return nil, protocolError("its memory has " + strconv.FormatInt(info.size, 10) + " bytes")
	}
	return mapRing(memory, ring, false)
}

// parseHello returns what a hello says, and the size in it: of the ring, or of the early
// data that follows.
func parseHello(b []byte) (what byte, size uint32, err error) {
	order := helloOf(0, 0)
	flags := getWord(b[12:])
	size = getWord(b[16:])
	switch flags {
	case 0, helloWriteShut, helloReadShut, helloWriteShut | helloReadShut:
		return byte(flags), 0, nil
	case helloMemory, helloEarly, helloEarly | helloAsk:
	default:
		return 0, 0, protocolError("unknown flags")
	}
	switch {
	case string(b[8:12]) != string(order[8:12]):
		return 0, 0, protocolError("its order of bytes is another")
	case flags == helloMemory && (size < ringMin || size > ringMax || size&(size-1) != 0):
		return 0, 0, protocolError("its ring has " + strconv.FormatUint(uint64(size), 10) + " bytes")
	}
	return byte(flags), size, nil
}

// settle ends the handshake with its result. The caller holds c.mu.
func (c *SharedConn) settle(hs *handshake, err error) {
	mode := overSocket
	switch {
	case err != nil:
		mode, c.failure = inFailure, err
	case hs.peer != nil && hs.own != nil: // if there is a peer's, our last hello was sent
		mode = inMemory
		c.useMemory(hs)
	}
	if err == nil && hs.plain {
		c.ahead = append(c.ahead, hs.buf[:hs.got]...)
	}
	if mode == overSocket {
		c.base.end().expect(dataFollows)
	}
	c.hello = nil
	for _, h := range [...]*sharedHalf{&c.r, &c.w} {
		if e := c.applyDeadline(h); e != nil && mode != inFailure {
			mode, c.failure = inFailure, e
		}
	}
	c.mode.Store(mode)
	if mode == inFailure {
		c.base.end().setDeadline(time.Unix(1, 0), reading|writing) // ends what waits in the socket
	}
	close(hs.over)
}

// useMemory makes the ring reader and the ring writer out of the two memory objects.
func (c *SharedConn) useMemory(hs *handshake) {
	own, peer := hs.own, hs.peer
	c.base.end().expect(filesFollow)
	c.ownMem, c.peerMem = own, peer
	c.in = ringReader{own: own.control(), peer: peer.control(), data: peer.ring(), size: ringSize(peer)}
	c.out = ringWriter{own: own.control(), peer: peer.control(), data: own.ring(), size: ringSize(own)}
	c.r.bell, c.r.far, c.r.word = hs.bells.r, hs.theirs.w, &own.control().rwait
	c.w.bell, c.w.far, c.w.word = hs.bells.w, hs.theirs.r, &own.control().wwait
	// A read of a doorbell must park at once: the half has spun already, on the ring.
	c.r.bell.setSpin(-1)
	c.w.bell.setSpin(-1)
	hs.drop.Stop()
	hs.peerDrop.Stop()
	hs.own, hs.bells, hs.peer, hs.theirs = nil, doorbells{}, nil, doorbells{}
	c.dropped = runtime.AddCleanup(c, func(m [2]*mapping) {
		m[0].abandon()
		m[1].abandon()
	}, [2]*mapping{own, peer})
}

func ringSize(m *mapping) uint32 { return uint32(len(m.mem) - m.again - controlSize) }

// giveBack gives the turn or the pen back.
func (hs *handshake) giveBack(token chan struct{}) {
	<-token
	select {
	case <-hs.over:
		hs.release()
	default:
	}
}

// release releases what was not used. What belongs to the turn or the pen is released by
// the call that has it, when it gives it back.
func (hs *handshake) release() {
	select {
	case hs.turn <- struct{}{}:
		hs.releasePeer()
		<-hs.turn
	default:
	}
	select {
	case hs.pen <- struct{}{}:
		hs.releaseOwn()
		<-hs.pen
	default:
	}
}

// releasePeer closes and unmaps what came from the peer; the caller has the turn.
// releaseOwn does so with what was made for the peer; the caller has the pen.
func (hs *handshake) releasePeer() {
	hs.releaseFiles()
	hs.theirs.close()
	hs.theirs = doorbells{}
	if hs.peer != nil {
		hs.peerDrop.Stop()
		hs.peer.unmap()
		hs.peer = nil
	}
}

func (hs *handshake) releaseFiles() {
	discardHelloFiles(hs.files)
	hs.files = nil
}

func (hs *handshake) releaseOwn() {
	if hs.own != nil {
		// The peer may use the memory already, whose answer then was not received. It looks
		// here when a doorbell ends.
		hs.own.control().tellEnd()
		hs.drop.Stop()
		hs.own.unmap()
		hs.bells.close()
		hs.own, hs.bells = nil, doorbells{}
	}
}
