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
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What the rest of the world may rely on. A Conn is a net.Conn, a Listener a
// net.Listener, an Addr a net.Addr, on every system.
var (
	_ net.Conn      = (*Conn)(nil)
	_ syscall.Conn  = (*Conn)(nil)
	_ io.ReaderFrom = (*Conn)(nil)
	_ io.WriterTo   = (*Conn)(nil)
	_ net.Listener  = (*Listener)(nil)
	_ syscall.Conn  = (*Listener)(nil)
	_ net.Addr      = Addr{}

	_ io.ReadCloser  = (*PipeReader)(nil)
	_ io.WriterTo    = (*PipeReader)(nil)
	_ syscall.Conn   = (*PipeReader)(nil)
	_ io.WriteCloser = (*PipeWriter)(nil)
	_ io.ReaderFrom  = (*PipeWriter)(nil)
	_ syscall.Conn   = (*PipeWriter)(nil)
)

// ---------------------------------------------------------------------------
// Addresses

// An Addr says where a server listens: a path in the file system ([Path]) or a
// name in the namespace that the system keeps for such names ([Name]). Addrs
// are comparable, and the zero Addr asks [Listen] for a fresh private name; it
// is also the address of an end that has none, such as a client's.
//
// An Addr is checked when it is used. One that is empty, too long, holds a NUL
// byte or has no meaning on the system is refused before any system call, with
// an error that names the address and the rule.
type Addr struct {
	kind addrKind
	text string // without the mark that String puts before a name
}

type addrKind uint8

const (
	noAddr   addrKind = iota
	pathAddr          // text is a path
	nameAddr          // text is a name
)

// Path returns the address of a socket in the file system. On Windows path is
// the full path of a named pipe, \\.\pipe\x or \\host\pipe\x.
//
// On Unix the path is used as it stands, whatever its length: the 104 or 108
// bytes of a sun_path (unix(4), unix(7)) are no limit here. A relative path is
// relative to the working folder at the time of Listen or Dial. A path that
// begins with '@' is written ./@ so that it is not taken for a name.
func Path(path string) Addr {
	if strings.HasPrefix(path, "@") {
		path = "./" + path
	}
	return Addr{pathAddr, path}
}

// Name returns the address of a name in the system's namespace:
//
//	Linux, Android     the abstract socket name, at most 107 bytes
//	Windows            the pipe \\.\pipe\name
//	every other Unix   the socket file /tmp/name
//
// The mapping is part of the interface: it does not change within a major
// version, so the other end need not use this package. Anyone can take a name
// that is free; [Dialer] therefore checks whom it reached by one. Abstract names
// belong to a network namespace (network_namespaces(7)): containers that share
// one share the names, and root of each is root to [OwnerOnly] unless it has a
// user namespace of its own.
func Name(name string) Addr { return Addr{nameAddr, name} }

// ParseAddr reads an address as [Addr.String] writes it: "@name" is
// Name("name"), anything else is Path. An empty string, an empty name and a NUL
// byte are errors; every other rule is the system's and is checked on use.
func ParseAddr(s string) (Addr, error) {
	a := Path(s)
	if name, ok := strings.CutPrefix(s, "@"); ok {
		a = Name(name)
	}
	if err := a.check(); err != nil {
		return Addr{}, &net.OpError{Op: "parse", Net: a.Network(), Err: err}
	}
	return a, nil
}

// Network returns "unix", on Windows "pipe".
func (a Addr) Network() string { return network }

// String returns the text that [ParseAddr] reads back: the path, or the name
// behind an '@'. It is empty for the zero Addr.
func (a Addr) String() string {
	if a.kind == nameAddr {
		return "@" + a.text
	}
	return a.text
}

// MarshalText is [Addr.String] as an [encoding.TextMarshaler], for flag.TextVar,
// JSON and their like.
func (a Addr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText is [ParseAddr] as an [encoding.TextUnmarshaler]. An empty text
// is the zero Addr, as MarshalText writes it.
func (a *Addr) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*a = Addr{}
		return nil
	}
	parsed, err := ParseAddr(string(text))
	if err == nil {
		*a = parsed
	}
	return err
}

// check applies the rules that hold for addresses on every system.
func (a Addr) check() error {
	switch {
	case a == Addr{}:
		return &ruleError{what: "no address is given"}
	case a.text == "" && a.kind == nameAddr:
		return &ruleError{what: "the name is empty"}
	case a.text == "":
		return &ruleError{what: "the path is empty"}
	}
	if i := strings.IndexByte(a.text, 0); i >= 0 {
		return &ruleError{what: "NUL byte at index " + strconv.Itoa(i) + " of " + strconv.Quote(a.text)}
	}
	return nil
}

// freshName returns a name that nobody uses: the process, the time and a
// counter make it unique on this machine. It is not secret and need not be:
// access is decided by credentials.
func freshName() string {
	return "ipc-" + strconv.Itoa(os.Getpid()) +
		"-" + strconv.FormatInt(time.Now().UnixNano(), 36) +
		"-" + strconv.FormatUint(freshNames.Add(1), 36)
}

// freshNames counts the names given out, so that two of one nanosecond differ.
var freshNames atomic.Uint64

// ---------------------------------------------------------------------------
// Errors
//
// Every error of this package but io.EOF is a *net.OpError, as in package net.
// A failed system call is an *os.SyscallError around a syscall.Errno in it.

var (
	// ErrAddrInUse is matched when a live listener, or a file that is no
	// socket, is where a listener was to be, and with [TakeoverNever] any file.
	ErrAddrInUse = errors.New("address already in use")

	// ErrNoListener is matched when nobody listens at the address dialed: it
	// does not exist (ENOENT, ERROR_FILE_NOT_FOUND), or exists and no process
	// serves it (ECONNREFUSED).
	ErrNoListener = errors.New("nobody listens there")

	// ErrNameTooLong is matched when an address is longer than the system can
	// take. The error says the length and the limit, in bytes.
	ErrNameTooLong = errors.New("name too long")

	// ErrUntrusted is matched when the server reached by a Dial is not one
	// that [Dialer.Access] or [Dialer.Check] accepts. Nothing was sent to it.
	// On Windows it is also matched when a peer pretends to send files: see
	// [Conn.RecvFiles].
	ErrUntrusted = errors.New("the server is not trusted")
)

// A ruleError is an error that this package finds itself: an argument, or what
// came from outside, that breaks a rule. It matches is, if set.
type ruleError struct {
	what string
	is   error
}

func (e *ruleError) Error() string        { return e.what }
func (e *ruleError) Is(target error) bool { return e.is != nil && target == e.is }

// tooLong is the error of an address of n bytes where limit are allowed.
func tooLong(what string, n, limit int) error {
	return &ruleError{
		what: what + " is " + strconv.Itoa(n) + " bytes long, the limit is " + strconv.Itoa(limit),
		is:   ErrNameTooLong,
	}
}

// configError is the error of a field whose value breaks the rule.
func configError(field, value, rule string) error {
	return &ruleError{what: field + " is " + value + ", it must be " + rule}
}

// A classified error is the system's error err, which also matches is: what
// the systems say differently is the same to errors.Is.
type classified struct {
	err error
	is  error
}

func (e *classified) Error() string        { return e.err.Error() }
func (e *classified) Unwrap() error        { return e.err }
func (e *classified) Is(target error) bool { return target == e.is }

// A timeoutError ends a Dial that waited until its deadline. It says what it
// waited for, and matches both os.ErrDeadlineExceeded and
// context.DeadlineExceeded.
type timeoutError struct{ last error }

func (e *timeoutError) Error() string {
	if e.last == nil {
		return os.ErrDeadlineExceeded.Error()
	}
	return os.ErrDeadlineExceeded.Error() + " (" + e.last.Error() + ")"
}
func (e *timeoutError) Timeout() bool   { return true }
func (e *timeoutError) Temporary() bool { return true }
func (e *timeoutError) Is(target error) bool {
	return target == os.ErrDeadlineExceeded || target == context.DeadlineExceeded
}

// opError wraps err as package net does. Unknown addresses are left out.
func opError(op string, source, addr Addr, err error) error {
	e := &net.OpError{Op: op, Net: addr.Network(), Err: err}
	if source != (Addr{}) {
		e.Source = source
	}
	if addr != (Addr{}) {
		e.Addr = addr
	}
	return e
}

// ---------------------------------------------------------------------------
// Who may connect, and who is at the other end

// An Access says which local users may take part in a connection.
type Access uint8

const (
	// OwnerOnly admits the user this process runs as, and root; on Windows
	// this user, SYSTEM and Administrators.
	OwnerOnly Access = iota

	// Everyone admits any local user.
	Everyone
)

// String returns "OwnerOnly" or "Everyone".
func (a Access) String() string {
	switch a {
	case OwnerOnly:
		return "OwnerOnly"
	case Everyone:
		return "Everyone"
	}
	return "Access(" + strconv.Itoa(int(a)) + ")"
}

func (a Access) validate() error {
	if a > Everyone {
		return configError("Access", a.String(), "OwnerOnly or Everyone")
	}
	return nil
}

// A Peer is what the kernel recorded of the process at the other end of a
// connection: of a client when it connected, of a server when it began to
// listen, of both ends of a [Pair] when the pair was made. A descriptor that
// was passed on since then still tells of the process that made it; on macOS the
// process identifier alone is that of the process which used the other end last, and
// absent once that is closed.
//
// What the system does not tell is absent, never zero. Process identifiers are
// used again: the process of that number may not be the peer any more.
type Peer struct {
	facts  peerFacts // what is known
	pid    int
	uid    int
	gid    int
	groups []int
	user   string // the SID on Windows, elsewhere derived from uid
	system peerSystem
}

// peerFacts is the set of facts that a Peer knows.
type peerFacts uint8

const (
	knowsPID peerFacts = 1 << iota
	knowsUID
	knowsGID
)

// PID returns the process identifier of the peer, and whether it is known. It
// is not on DragonFly, nor for a peer in another PID namespace that this one
// cannot see.
func (p Peer) PID() (int, bool) { return p.pid, p.facts&knowsPID != 0 }

// UID returns the effective user id of the peer, and whether it is known. It
// never is on Windows.
func (p Peer) UID() (int, bool) { return p.uid, p.facts&knowsUID != 0 }

// GID returns the effective group id of the peer, and whether it is known. It
// never is on Windows.
func (p Peer) GID() (int, bool) { return p.gid, p.facts&knowsGID != 0 }

// UserID returns the identity of the peer's user in the form that
// [os/user.LookupId] takes: a decimal user id, on Windows a SID. It is empty
// when it is not known: on Windows of a client that dialed with the level Anonymous,
// as those of go-winio do by default, and of one of another program before something
// of what it sent was read, if that program did not ask for static tracking.
func (p Peer) UserID() string {
	if p.facts&knowsUID != 0 {
		return strconv.FormatUint(uint64(uint32(p.uid)), 10) // an int of 32 bits may have become negative
	}
	return p.user
}

// Groups returns the supplementary group ids of the peer, or nil where the
// system does not tell. FreeBSD and DragonFly tell the first 15, macOS the
// first four; a group that is missing here is not one the peer lacks.
func (p Peer) Groups() []int {
	if p.groups == nil {
		return nil
	}
	return append([]int{}, p.groups...)
}

// String describes the peer in the words of the system, for logs: "pid 12 uid
// 1000 gid 1000". What is not known is left out.
func (p Peer) String() string {
	var parts []string
	if pid, ok := p.PID(); ok {
		parts = append(parts, "pid "+strconv.Itoa(pid))
	}
	if p.facts&knowsUID != 0 {
		parts = append(parts, "uid "+p.UserID())
	}
	if gid, ok := p.GID(); ok {
		parts = append(parts, "gid "+strconv.Itoa(gid))
	}
	if p.user != "" {
		parts = append(parts, "user "+p.user)
	}
	if len(parts) == 0 {
		return "unknown peer"
	}
	return strings.Join(parts, " ")
}

// ---------------------------------------------------------------------------
// Listening

// A Takeover says what Listen does about a socket file that is already there.
// Whatever is not a socket is never touched. Abstract names and pipes leave
// nothing behind, and a live one cannot be taken over: every Takeover means the
// same for them.
type Takeover uint8

const (
	// TakeoverStale replaces a socket file that no process serves any more,
	// as a crash leaves it. A live one is ErrAddrInUse.
	TakeoverStale Takeover = iota

	// TakeoverNever replaces nothing.
	TakeoverNever

	// TakeoverAlways replaces even a live server's socket, without a moment in
	// which the path leads nowhere. The displaced listener keeps the
	// connections it has, gets no new ones, and its Close leaves the new
	// socket alone.
	TakeoverAlways
)

// String returns the name of the constant.
func (t Takeover) String() string {
	switch t {
	case TakeoverStale:
		return "TakeoverStale"
	case TakeoverNever:
		return "TakeoverNever"
	case TakeoverAlways:
		return "TakeoverAlways"
	}
	return "Takeover(" + strconv.Itoa(int(t)) + ")"
}

// A ListenConfig holds the options of a listener. The zero value is the default
// that [Listen] uses.
type ListenConfig struct {
	// Access says who may connect. It is enforced by the kernel, or where the
	// kernel has no means to (abstract names) on the credentials of each
	// client before Accept returns it:
	//
	// A socket file has mode 0600 (OwnerOnly) or 0666 (Everyone) exactly,
	// whatever the umask, before anybody can connect. A pipe has a protected
	// DACL, and clients on other machines are rejected.
	Access Access

	// Check, if set, has a further say over each client. A client for which it
	// returns an error is closed and never seen by Accept; the listener goes
	// on. It runs within Accept, so it should be quick. A client that left
	// before it could be asked who it is never reaches Check, nor Accept.
	Check func(Peer) error

	// Takeover says what to do when the path exists already.
	Takeover Takeover

	// KeepName leaves the socket file behind on Close. It has no meaning where
	// the name goes with the listener: abstract names and pipes.
	KeepName bool

	// Backlog is how many clients may wait for Accept: the backlog of
	// listen(2), which the system may raise by half (BSD) or one (Linux) and
	// limits (net.core.somaxconn, kern.ipc.somaxconn); on Windows the number
	// of pipe instances that are armed at once, at most 254. 0 is the system's
	// limit, on Windows 4.
	Backlog int

	// Spin bounds how long Accept and the waits of accepted connections may try
	// again before they park, as [Conn.SetSpin] does: 0 is the default, less
	// never spins.
	Spin time.Duration

	// Sys holds what only this system has.
	Sys *SysListenConfig
}

// Listen opens a server at addr, for the user of this process alone. It is
// ListenConfig{}.Listen(addr).
func Listen(addr Addr) (*Listener, error) { return ListenConfig{}.Listen(addr) }

// Listen opens a server at addr. The zero Addr takes a fresh private name,
// which [Listener.Addr] tells.
//
// On Unix, while a listener on a path lives, it holds an flock(2) on the
// sibling file path + ".lock", so that of many starters exactly one gets a
// stale path; Close removes both files, but never a lock with something in it, which
// is another program's. The folder must be writable. Whoever else can write to that
// folder can put another server there; whoever can read it can delay Listen and Close
// by 2 seconds, with an flock(2) on the folder.
//
// On Windows the pipe keeps its name, and Listen fails with [ErrAddrInUse], as
// long as a listener or an end of a connection of it is open in any process.
func (lc ListenConfig) Listen(addr Addr) (*Listener, error) {
	l := new(Listener)
	if err := lc.serve(&l.server, addr, streams); err != nil {
		return nil, err
	}
	return l, nil
}

// serve opens l at addr for connections of that kind.
func (lc *ListenConfig) serve(l *server, addr Addr, kind transport) error {
	if addr == (Addr{}) {
		addr = Name(freshName())
	}
	target, err := lc.target(addr)
	if err == nil {
		l.sys, err = listen(target, kind, lc)
	}
	if err != nil {
		return opError("listen", Addr{}, addr, err)
	}
	l.addr, l.spin = addr, lc.Spin
	l.setRules(lc.Access == OwnerOnly && !guarded(target), lc.Check)
	return nil
}

func (lc *ListenConfig) target(addr Addr) (string, error) {
	if err := lc.validate(); err != nil {
		return "", err
	}
	return addr.resolve()
}

// validate applies the rules of the options that hold on every system.
func (lc *ListenConfig) validate() error {
	if lc.Takeover > TakeoverAlways {
		return configError("Takeover", lc.Takeover.String(), "TakeoverStale, TakeoverNever or TakeoverAlways")
	}
	if lc.Backlog < 0 {
		return configError("Backlog", strconv.Itoa(lc.Backlog), "0 or more")
	}
	return lc.Access.validate()
}

// A server is what Listener and MsgListener have in common.
type server struct {
	sys   *listener
	addr  Addr
	spin  time.Duration             // ListenConfig.Spin
	rules atomic.Pointer[admission] // replaced by SetAccess while others accept
}

// An admission decides in Accept which clients may stay, of those that the kernel
// let connect.
type admission struct {
	ownerOnly bool             // by their credentials
	check     func(Peer) error // ListenConfig.Check
}

func (l *server) setRules(ownerOnly bool, check func(Peer) error) {
	l.rules.Store(&admission{ownerOnly, check})
}

// A Listener is a server's end of a local socket. It is a [net.Listener] whose
// connections are *Conn. All its methods may be called concurrently.
type Listener struct{ server }

// Accept waits for a client and returns its connection, a *Conn.
func (l *Listener) Accept() (net.Conn, error) { return asNetConn(l.AcceptConn()) }

// AcceptConn waits for a client and returns its connection. Clients that
// [ListenConfig.Access] or [ListenConfig.Check] refuse, and those that left
// before they were accepted where the system says so, are not returned. On
// Windows those are all that left without having written anything; the places
// that they take in the backlog are free again at the next Accept.
//
// The error matches [net.ErrClosed] after Close and [os.ErrDeadlineExceeded]
// after the deadline. Any other (EMFILE and ENFILE, when descriptors have run
// out) leaves the listener usable: the client waits on, and a server that
// tries again after a pause serves it.
func (l *Listener) AcceptConn() (*Conn, error) {
	fd, err := l.accept()
	if err != nil {
		return nil, err
	}
	return &Conn{endpoint{fd: fd, local: l.addr}}, nil
}

// Conns returns an iterator over the clients, which ends at Close. An error of
// Accept is handed to the loop, which decides whether to go on.
//
//	for conn, err := range l.Conns() {
//		if err != nil {
//			log.Print(err) // EMFILE, say
//			time.Sleep(10 * time.Millisecond)
//			continue
//		}
//		go serve(conn)
//	}
func (l *Listener) Conns() iter.Seq2[*Conn, error] { return untilClosed(l.AcceptConn) }

// asNetConn keeps a nil pointer from becoming a net.Conn that is not nil.
func asNetConn[C net.Conn](c C, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

func untilClosed[C any](accept func() (C, error)) iter.Seq2[C, error] {
	return func(yield func(C, error) bool) {
		for {
			c, err := accept()
			if errors.Is(err, net.ErrClosed) || !yield(c, err) {
				return
			}
		}
	}
}

// accept waits for a client that may stay.
func (l *server) accept() (*fd, error) {
	for {
		fd, err := l.sys.accept()
		if err != nil {
			return nil, opError("accept", Addr{}, l.addr, err)
		}
		if l.admit(fd) {
			fd.limitSpin(l.spin)
			return fd, nil
		}
		fd.close()
	}
}

// admit reports whether the client at the other end of fd may stay.
func (l *server) admit(fd *fd) bool {
	rules := l.rules.Load()
	if !rules.ownerOnly && rules.check == nil {
		return true
	}
	p, err := fd.peer()
	return err == nil &&
		(!rules.ownerOnly || p.trusted()) &&
		(rules.check == nil || rules.check(p) == nil)
}

// SetAccess says who of those that can connect may stay, from the next client on:
// for a listener that no [ListenConfig] made, but another process or the service
// manager. With [OwnerOnly] each client's credentials must be those of this user
// or root (on Windows: of this user, SYSTEM or an administrator), so one of whom
// the system tells nothing may not stay; check is as [ListenConfig.Check], or nil.
// This takes the place of what was said before. It lets nobody in whom the
// permissions of a socket file or the access list of a pipe keep out.
func (l *server) SetAccess(access Access, check func(Peer) error) error {
	if err := access.validate(); err != nil {
		return opError("set", Addr{}, l.addr, err)
	}
	l.setRules(access == OwnerOnly, check)
	return nil
}

// Addr returns the address that the listener was opened with, an [Addr].
func (l *server) Addr() net.Addr { return l.addr }

// Close stops listening. Every Accept that waits returns an error that matches
// [net.ErrClosed], and clients that were not accepted are disconnected;
// connections that were live on. A socket file is removed unless
// [ListenConfig.KeepName] is set or it is not this listener's any more. The
// second Close returns net.ErrClosed.
func (l *server) Close() error {
	if err := l.sys.close(); err != nil {
		return opError("close", Addr{}, l.addr, err)
	}
	return nil
}

// SetDeadline sets the time after which Accept fails with an error that matches
// [os.ErrDeadlineExceeded], also one that waits already. The zero time is none.
func (l *server) SetDeadline(t time.Time) error {
	if err := l.sys.setDeadline(t); err != nil {
		return opError("set", Addr{}, l.addr, err)
	}
	return nil
}

// SyscallConn gives access to the descriptor or handle, for what this package
// does not wrap. It must not be closed nor made blocking.
func (l *server) SyscallConn() (syscall.RawConn, error) { return l.sys.rawConn() }

// ---------------------------------------------------------------------------
// Dialing

// A Dialer holds the options of a connection to be made. The zero value is the
// default that [Dial] uses.
type Dialer struct {
	// Timeout is the longest that Dial may take; 0 is no limit. A Dial waits
	// while the server is there but has no room for one more client.
	Timeout time.Duration

	// Deadline is the moment at which Dial gives up; the zero time is none. Of
	// Timeout, Deadline and the context's deadline the first one counts.
	Deadline time.Time

	// Wait keeps trying until a server listens, instead of failing with
	// [ErrNoListener].
	Wait bool

	// Access says who may be the server. With OwnerOnly, the zero value, the
	// server reached by a [Name] must run as this user or as root, for anyone
	// can take a name that is free; otherwise Dial fails with [ErrUntrusted]. A
	// Unix path is trusted as the file system is: who could put a socket there
	// is decided by the permissions of its folder. A Windows pipe must be owned
	// by this user, SYSTEM or Administrators, whichever kind of address leads to
	// it; that of another machine cannot be verified, and needs Everyone.
	Access Access

	// Check, if set, has a further say over the server. Its error is returned,
	// and matches [ErrUntrusted] too.
	Check func(Peer) error

	// Spin bounds how long the waits of the connection may try again before they
	// park, as [Conn.SetSpin] does: 0 is the default, less never spins.
	Spin time.Duration

	// Sys holds what only this system has.
	Sys *SysDialer
}

// Dial connects to the server at addr. It waits as long as the server has no
// room for one more client, without limit. It is Dialer{}.Dial(addr).
func Dial(addr Addr) (*Conn, error) { return Dialer{}.Dial(addr) }

// Dial connects to the server at addr.
func (d Dialer) Dial(addr Addr) (*Conn, error) { return d.DialContext(context.Background(), addr) }

// DialContext connects to the server at addr, and gives up when ctx ends: the
// error then matches [context.Canceled], or [os.ErrDeadlineExceeded] and
// [context.DeadlineExceeded]. Once connected, ctx has no say any more. Other errors
// match [ErrNoListener], [ErrUntrusted], or [os.ErrPermission] where the mode of the
// socket file, of a folder on the way to it, or the access list of the pipe keeps
// this user out.
//
// A full backlog is waited out: EAGAIN on Linux, ERROR_PIPE_BUSY on Windows. The
// other Unix systems refuse a client then exactly as if nobody listened; there
// ECONNREFUSED is tried again until ctx ends while the server's lock file shows
// that it lives, and for a quarter of a second if another socket is bound there.
// A pipe whose listener is closed, but not all of its connections, is busy until
// they are.
func (d Dialer) DialContext(ctx context.Context, addr Addr) (*Conn, error) {
	fd, err := d.reach(ctx, addr, streams)
	if err != nil {
		return nil, err
	}
	return &Conn{endpoint{fd: fd, remote: addr}}, nil
}

// reach connects to a server of that kind at addr.
func (d *Dialer) reach(ctx context.Context, addr Addr, kind transport) (*fd, error) {
	fd, err := d.dial(ctx, addr, kind)
	if err != nil {
		return nil, opError("dial", Addr{}, addr, err)
	}
	fd.limitSpin(d.Spin)
	return fd, nil
}

func (d *Dialer) dial(ctx context.Context, addr Addr, kind transport) (*fd, error) {
	if err := d.Access.validate(); err != nil {
		return nil, err
	}
	target, err := addr.resolve()
	if err != nil {
		return nil, err
	}
	fd, err := d.connect(ctx, target, kind)
	if err != nil {
		return nil, err
	}
	if err := d.trust(fd, addr); err != nil {
		fd.close()
		return nil, err
	}
	return fd, nil
}

// A verdict says what a failed attempt to connect means for the next one.
type verdict uint8

const (
	final  verdict = iota // another attempt would fail too
	busy                  // a server is there and has no room now
	absent                // nobody listens
	unsure                // busy or absent: the system does not tell
)

// refusalGrace is how long refusals are tried again that may mean a full backlog
// or a dead server.
const refusalGrace = 250 * time.Millisecond

// connect attempts to connect until it succeeds, fails for good, or ctx or the
// dialer's own limits end it.
func (d *Dialer) connect(ctx context.Context, target string, kind transport) (*fd, error) {
	start := time.Now()
	p := patience{ctx: ctx, deadline: d.deadline(ctx, start)}
	defer p.stop()
	var last error
	for {
		if err := p.ended(last); err != nil {
			return nil, err
		}
		fd, err := connect(target, kind, d.Sys)
		if err == nil {
			return fd, nil
		}
		switch judge(target, err) {
		case final:
			return nil, err
		case absent:
			if !d.Wait {
				return nil, &classified{err, ErrNoListener}
			}
		case unsure:
			if !d.Wait && time.Since(start) >= refusalGrace {
				return nil, &classified{err, ErrNoListener}
			}
		}
		last = err
		p.pause()
	}
}

// A patience spaces the attempts at something for which the system has no event
// to wait for, until a context or a deadline ends them.
type patience struct {
	ctx      context.Context
	deadline time.Time // the zero time is none
	timer    *time.Timer
	length   time.Duration // of the last pause
}

// The shortest and the longest pause: what is about to happen should be seen
// soon, and waiting for what may never happen should cost nothing.
const (
	pauseMin = 50 * time.Microsecond
	pauseMax = 20 * time.Millisecond
)

// ended returns the error that ends the attempts, the last of which failed with
// last, or nil.
func (p *patience) ended(last error) error {
	if err := contextError(p.ctx, last); err != nil {
		return err
	}
	if !p.deadline.IsZero() && !time.Now().Before(p.deadline) {
		return &timeoutError{last}
	}
	return nil
}

// contextError returns the error of what ctx ends, which failed with last before
// if it was tried, or nil while ctx does not end it.
func contextError(ctx context.Context, last error) error {
	if err := ctx.Err(); err != context.DeadlineExceeded {
		return err
	}
	return &timeoutError{last}
}

// pause waits a while, each time for longer, but not beyond the end.
func (p *patience) pause() {
	p.length = min(max(2*p.length, pauseMin), pauseMax)
	d := p.length
	if !p.deadline.IsZero() {
		d = min(d, max(time.Until(p.deadline), 0))
	}
	if p.timer == nil {
		p.timer = time.NewTimer(d)
	} else {
		p.timer.Reset(d)
	}
	select {
	case <-p.timer.C:
	case <-p.ctx.Done():
	}
}

func (p *patience) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
}

// deadline returns the first of the limits that apply, or the zero time.
func (d *Dialer) deadline(ctx context.Context, now time.Time) time.Time {
	first := d.Deadline
	if d.Timeout != 0 {
		if t := now.Add(d.Timeout); first.IsZero() || t.Before(first) {
			first = t
		}
	}
	if t, ok := ctx.Deadline(); ok && (first.IsZero() || t.Before(first)) {
		first = t
	}
	return first
}

// trust decides whether the server at the other end of fd is one to talk to.
func (d *Dialer) trust(fd *fd, addr Addr) error {
	verify := d.Access == OwnerOnly && squattable(addr)
	if !verify && d.Check == nil {
		return nil
	}
	p, err := fd.peer()
	if err != nil {
		return &classified{err, ErrUntrusted}
	}
	if verify && !p.trusted() {
		return &ruleError{"the server is not trusted: it runs as " + p.String(), ErrUntrusted}
	}
	if d.Check != nil {
		if err := d.Check(p); err != nil {
			return &classified{err, ErrUntrusted}
		}
	}
	return nil
}

// Pair returns two connected ends, for a child process or a test. They have no
// address. On Unix it is socketpair(2).
func Pair() (*Conn, *Conn, error) {
	a, b, err := pair(streams)
	if err != nil {
		return nil, nil, opError("pair", Addr{}, Addr{}, err)
	}
	return &Conn{endpoint{fd: a}}, &Conn{endpoint{fd: b}}, nil
}

// ---------------------------------------------------------------------------
// Connections

// A Conn is one end of a connection: a full-duplex stream of bytes, delivered
// in order, none added and none dropped. It is a [net.Conn]. All its methods may
// be called concurrently; reads queue behind reads and writes behind writes.
type Conn struct{ endpoint }

// An endpoint is what Conn and MsgConn have in common.
type endpoint struct {
	fd     *fd
	local  Addr
	remote Addr // zero on the server's side: the system is asked when needed
}

// A transport is what a connection carries.
type transport uint8

const (
	streams  transport = iota // bytes: a Conn
	messages                  // messages: a MsgConn
)

// failed gives err, if it is one, the operation and the addresses. Inlined, it
// would double the stack of every goroutine that waits in Read.
//
//go:noinline
func (c *endpoint) failed(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return opError(op, c.local, c.remote, err)
}

// Read reads up to len(p) bytes, and waits until there is at least one. When
// the peer has closed its end, Read returns what it wrote before that and then
// [io.EOF]. On Unix, a peer that closed with unread data in its own queue may
// make that ECONNRESET. The other errors match [net.ErrClosed] and
// [os.ErrDeadlineExceeded].
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.fd.read(p)
	return n, c.failed("read", err)
}

// Write writes all of p, and waits while the peer's queue is full. A write that
// fails returns how many bytes were written before. After the peer has closed
// its end the error matches [syscall.EPIPE], on every system.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.fd.write(p)
	return n, c.failed("write", err)
}

// ReadBuffers reads into the buffers in turn, with one readv(2) where the
// system has it to offer. Like Read it waits for at least one byte and not for
// full buffers.
func (c *Conn) ReadBuffers(bufs [][]byte) (int64, error) {
	n, err := c.fd.readBuffers(bufs)
	return n, c.failed("read", err)
}

// WriteBuffers writes the contents of the buffers in turn, with writev(2) where
// the system has it to offer. As [net.Buffers.WriteTo] does, it takes what was
// written out of bufs, also on an error.
func (c *Conn) WriteBuffers(bufs *net.Buffers) (int64, error) {
	n, err := c.fd.writeBuffers(bufs)
	return n, c.failed("write", err)
}

// ReadFrom copies from r to the connection until r ends, for [io.Copy]. On Linux
// the bytes do not pass through this process where r is a Conn, a pipe end, a TCP
// connection or a file: see splice(2). For the last two call ReadFrom itself:
// io.Copy prefers their own WriteTo. As with any copy, what was read and cannot be
// written is lost: up to 256 KiB here.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return copyIn(c, c.fd, r, c.failed) }

// WriteTo copies from the connection to w until the peer closes, for [io.Copy].
// On Linux the bytes do not pass through this process where w is a Conn, a pipe
// end or a TCP connection: see splice(2).
func (c *Conn) WriteTo(w io.Writer) (int64, error) { return copyOut(w, c, c.fd, c.failed) }

// Close closes the connection. It does not wait for the peer and does not
// discard what was written: the peer reads that and then gets io.EOF. Calls that
// wait on this end return an error that matches [net.ErrClosed], and so does the
// second Close. When Close returns, the descriptor is gone.
func (c *endpoint) Close() error { return c.failed("close", c.fd.close()) }

// CloseRead shuts the reading side down: see shutdown(2). Reads return io.EOF. On
// Linux and FreeBSD 15 the peer's writes fail; the other Unix systems do not tell it:
// what it writes is lost, or waits for room until this end is closed. Pipes have no
// half close: on Windows the error matches [errors.ErrUnsupported].
func (c *Conn) CloseRead() error { return c.failed("close", c.fd.closeRead()) }

// CloseWrite shuts the writing side down: see shutdown(2). The peer reads what
// was written and then gets io.EOF; the other direction stays open. Pipes have
// no half close: on Windows the error matches [errors.ErrUnsupported].
func (c *Conn) CloseWrite() error { return c.failed("close", c.fd.closeWrite()) }

// LocalAddr returns the address of this end, an [Addr]: the listener's on the
// server's side, the zero Addr on the client's.
func (c *endpoint) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the address of the other end, an [Addr]: the one dialed on
// the client's side. A client has none but on Unix where it bound its socket to
// one; otherwise it is the zero Addr.
func (c *endpoint) RemoteAddr() net.Addr {
	if c.remote == (Addr{}) {
		return c.fd.remoteAddr()
	}
	return c.remote
}

// SetDeadline sets the read and the write deadline.
func (c *endpoint) SetDeadline(t time.Time) error {
	return c.failed("set", c.fd.setDeadline(t, reading|writing))
}

// SetReadDeadline sets the time after which reads fail with an error that
// matches [os.ErrDeadlineExceeded], also those that wait already. The zero time
// is none. A read that fails so has lost nothing: the connection stays usable.
func (c *endpoint) SetReadDeadline(t time.Time) error {
	return c.failed("set", c.fd.setDeadline(t, reading))
}

// SetWriteDeadline sets the time after which writes fail with an error that
// matches [os.ErrDeadlineExceeded], also those that wait already. The zero time
// is none. On Unix a write that fails so says how much of it the peer can read;
// on Windows the pipe takes back what the peer has not read, though the peer may
// have read a part, so the stream should be given up.
func (c *endpoint) SetWriteDeadline(t time.Time) error {
	return c.failed("set", c.fd.setDeadline(t, writing))
}

// SetReadBuffer sets the size in bytes of the receive buffer (SO_RCVBUF of
// socket(7); Linux ignores it for local sockets). On Windows the sizes of a pipe
// are fixed when it is made: the error matches [errors.ErrUnsupported].
func (c *endpoint) SetReadBuffer(n int) error {
	return c.failed("set", c.fd.setBuffer(reading, n))
}

// SetWriteBuffer sets the size in bytes of the send buffer (SO_SNDBUF of
// socket(7)): how much may be written that the peer has not read. On Windows the
// sizes of a pipe are fixed when it is made: the error matches
// [errors.ErrUnsupported].
func (c *endpoint) SetWriteBuffer(n int) error {
	return c.failed("set", c.fd.setBuffer(writing, n))
}

// SetSpin bounds how long a wait of this end may try again before its goroutine
// parks; 0 or less never does. To try again costs CPU time, but less than half of
// what waking a thread costs both processes. So by default, on Linux, a wait
// spins for up to 50 µs as long as that proves enough: each time that it does not,
// the next waits park at once, twice as many as before, and no more goroutines
// spin than leave one CPU free, or one where there is no other. An idle connection
// costs nothing. Whatever the bound, it is only used while it pays. The other Unix
// systems do not spin by default. Windows does not spin; there d bounds how long a
// read that waits holds its thread, by default 2 ms, and only after such waits were
// not in vain.
func (c *endpoint) SetSpin(d time.Duration) { c.fd.setSpin(max(d, 0)) }

// limitSpin is SetSpin for the fields Spin, whose zero value changes nothing.
func (f *fd) limitSpin(d time.Duration) {
	if d != 0 {
		f.setSpin(max(d, 0))
	}
}

// Peer tells who is at the other end. See [Peer] for what that means. Where the
// system does not tell anything the error matches [errors.ErrUnsupported].
func (c *endpoint) Peer() (Peer, error) {
	p, err := c.fd.peer()
	return p, c.failed("peer", err)
}

// SyscallConn gives access to the descriptor or handle, for what this package
// does not wrap. It must not be closed nor made blocking.
func (c *endpoint) SyscallConn() (syscall.RawConn, error) { return c.fd.rawConn() }

// File returns a duplicate of the descriptor or handle as an [os.File], to hand
// over to another process. Closing it does not affect c, nor the other way
// round, but the connection stays open until both are closed. On Windows c is
// used by that, and the os.File, which is not the first of its pipe end in this
// process, has no deadlines; a Conn made of it by [FileConn] has them.
//
// On Unix the duplicate is nonblocking, as c is, which a program that does not
// expect it of its standard input reads as an error; [os.Pipe] is for that.
func (c *endpoint) File() (*os.File, error) {
	f, err := c.fd.dupFile(c.local.String() + "->" + c.remote.String())
	return f, c.failed("file", err)
}

// FileConn returns a connection over a duplicate of f, which must be a connected
// stream socket of the local family (AF_UNIX), on Windows a connected pipe
// handle opened for overlapped I/O. Everything else is refused. f stays the
// caller's to close, whatever the result; on Unix it becomes nonblocking, as the
// two share that mode.
func FileConn(f *os.File) (*Conn, error) {
	fd, err := adoptConn(f, streams)
	if err != nil {
		return nil, opError("file", Addr{}, Addr{}, err)
	}
	return &Conn{endpoint{fd: fd, local: fd.localAddr(), remote: fd.remoteAddr()}}, nil
}

// ---------------------------------------------------------------------------
// Messages

var (
	// ErrMsgTooLong is matched when a message is longer than the buffer it is
	// received into, or than the system can send.
	ErrMsgTooLong = errors.New("message too long")

	// ErrNoFiles is matched by RecvFiles when the peer sent data instead, which
	// the next read then returns.
	ErrNoFiles = errors.New("the peer sent data and no files")
)

// A MsgConn is one end of a connection that carries messages: each Send is one
// Recv at the other end, whole, in order, whatever its length, 0 included. All
// its methods may be called concurrently.
//
// On Unix it is a SOCK_SEQPACKET socket (unix(7)), on Windows a pipe in message
// mode. macOS, AIX, illumos and Solaris have neither; there [MsgConn.Native] is
// false and each message travels over a stream behind its length in four bytes,
// the most significant first.
type MsgConn struct {
	endpoint
	framing *framing // nil where the system keeps the boundaries
}

// framesMessages is a variable so that tests run the framing on every system.
var framesMessages = framedHere

func newMsgConn(e endpoint) *MsgConn {
	c := &MsgConn{endpoint: e}
	if framesMessages {
		c.framing = &framing{}
	}
	return c
}

// ListenMsg opens a server for messages: see [Listen].
func ListenMsg(addr Addr) (*MsgListener, error) { return ListenConfig{}.ListenMsg(addr) }

// ListenMsg opens a server for messages: see [ListenConfig.Listen].
func (lc ListenConfig) ListenMsg(addr Addr) (*MsgListener, error) {
	l := new(MsgListener)
	if err := lc.serve(&l.server, addr, messages); err != nil {
		return nil, err
	}
	return l, nil
}

// DialMsg connects to a server for messages: see [Dial].
func DialMsg(addr Addr) (*MsgConn, error) { return Dialer{}.DialMsg(context.Background(), addr) }

// DialMsg connects to a server for messages: see [Dialer.DialContext].
func (d Dialer) DialMsg(ctx context.Context, addr Addr) (*MsgConn, error) {
	fd, err := d.reach(ctx, addr, messages)
	if err != nil {
		return nil, err
	}
	return newMsgConn(endpoint{fd: fd, remote: addr}), nil
}

// MsgPair returns two connected ends for messages: see [Pair].
func MsgPair() (*MsgConn, *MsgConn, error) {
	a, b, err := pair(messages)
	if err != nil {
		return nil, nil, opError("pair", Addr{}, Addr{}, err)
	}
	return newMsgConn(endpoint{fd: a}), newMsgConn(endpoint{fd: b}), nil
}

// FileMsgConn returns a connection for messages over a duplicate of f: see
// [FileConn].
func FileMsgConn(f *os.File) (*MsgConn, error) {
	fd, err := adoptConn(f, messages)
	if err != nil {
		return nil, opError("file", Addr{}, Addr{}, err)
	}
	return newMsgConn(endpoint{fd: fd, local: fd.localAddr(), remote: fd.remoteAddr()}), nil
}

// A MsgListener is a server's end of a local socket for messages. All its
// methods may be called concurrently.
type MsgListener struct{ server }

// Accept waits for a client and returns its connection: see
// [Listener.AcceptConn].
func (l *MsgListener) Accept() (*MsgConn, error) {
	fd, err := l.accept()
	if err != nil {
		return nil, err
	}
	return newMsgConn(endpoint{fd: fd, local: l.addr}), nil
}

// Conns returns an iterator over the clients, which ends at Close: see
// [Listener.Conns].
func (l *MsgListener) Conns() iter.Seq2[*MsgConn, error] { return untilClosed(l.Accept) }

// Close closes the connection: see [Conn.Close].
func (c *MsgConn) Close() error {
	err := c.endpoint.Close()
	if c.framing != nil {
		c.framing.abandon()
	}
	return err
}

// Native reports whether the system itself keeps the boundaries of messages, so
// that the peer need not use this package.
func (c *MsgConn) Native() bool { return c.framing == nil }

// Send sends p as one message, whole or not at all, and waits while the peer's
// queue is full. A message is too long, and the error matches [ErrMsgTooLong],
// when it exceeds the send buffer (about 200 KiB on Linux by default, 8 KiB on
// the BSDs; see [Conn.SetWriteBuffer]), 1 GiB on Windows, or 16 MiB where messages
// are not native. FreeBSD 15, OpenBSD and DragonFly cannot send an empty message;
// there the error matches [errors.ErrUnsupported]. After the peer has closed its end
// it matches [syscall.EPIPE].
func (c *MsgConn) Send(p []byte) error {
	if c.framing != nil {
		return c.failed("send", c.framing.send(c.fd, p))
	}
	return c.failed("send", c.fd.send(p))
}

// Recv receives one message into p, waits until there is one, and returns its
// length. One that is longer than p fills it; the rest is dropped, and the error
// matches [ErrMsgTooLong]. An empty message is 0 and no error; [io.EOF] comes
// only when the peer has closed its end and all its messages were received; on
// Windows also in the place of an empty message that Recv waited for and that the
// peer's Close followed at once.
func (c *MsgConn) Recv(p []byte) (int, error) {
	if c.framing != nil {
		n, err := c.framing.recv(c.fd, p)
		return n, c.failed("recv", err)
	}
	n, err := c.fd.recv(p)
	return n, c.failed("recv", err)
}

// RecvAppend receives one message of any length, appends it to dst, and returns
// the extended slice. It does not allocate while the message fits the capacity
// of dst. On an error it returns dst as it was.
func (c *MsgConn) RecvAppend(dst []byte) ([]byte, error) {
	if c.framing != nil {
		p, err := c.framing.recvAppend(c.fd, dst)
		return p, c.failed("recv", err)
	}
	p, err := c.fd.recvAppend(dst)
	return p, c.failed("recv", err)
}

// A framing is the state of a MsgConn over a stream.
type framing struct {
	sending sync.Mutex // one message at a time; guards header, both and torn
	header  [frameHeader]byte
	both    net.Buffers // header and message, for one write
	room    [2][]byte   // what both is made of
	torn    error       // why the stream ends within a message: nothing can follow

	receiving sync.Mutex // one message at a time; guards what follows
	start     [frameHeader]byte
	got       int        // bytes of start, and of the message, that were read so far
	part      []byte     // the message so far, if a receive ended within it
	skip      int        // bytes to drop before the next frame
	files     []*os.File // that came with start
	cutOff    error      // what was wrong with them
}

// frameHeader is the length of the prefix; frameMax the longest message, so that
// neither a mistake nor malice makes the other side wait for more.
const (
	frameHeader = 4
	frameMax    = 16 << 20
)

func (f *framing) send(fd *fd, p []byte) error {
	if len(p) > frameMax {
		return &ruleError{"the message is " + strconv.Itoa(len(p)) + " bytes long, the limit is " + strconv.Itoa(frameMax), ErrMsgTooLong}
	}
	f.sending.Lock()
	defer f.sending.Unlock()
	if err := f.usable(fd); err != nil {
		return err
	}
	f.header = frameOf(len(p))
	f.room = [2][]byte{f.header[:], p}
	f.both = f.room[:]
	n, err := fd.writeBuffers(&f.both)
	f.room = [2][]byte{}
	if err != nil && n > 0 && err != net.ErrClosed {
		// The peer has a part. It must not take the next message for the rest.
		f.torn = cutOff(err)
		fd.closeWrite()
	}
	return err
}

// cutOff is the error of a send after one that ended within its message.
func cutOff(err error) error {
	return &classified{&ruleError{what: "an earlier message was cut off: " + err.Error()}, syscall.EPIPE}
}

// usable returns why nothing can be sent any more, or nil.
func (f *framing) usable(fd *fd) error {
	if f.torn != nil && fd.closeWrite() == net.ErrClosed {
		return net.ErrClosed
	}
	return f.torn
}

func frameOf(n int) [frameHeader]byte {
	return [frameHeader]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// next reads to the start of the next message and returns its length. What was
// read before an error is kept for the next call.
func (f *framing) next(fd *fd) (int, error) {
	if err := f.drop(fd); err != nil {
		return 0, err
	}
	for f.got < frameHeader {
		n, err := fd.read(f.start[f.got:])
		if err != nil {
			if f.got > 0 {
				err = within(err)
			}
			return 0, err
		}
		f.got += n
	}
	size := int(f.start[0])<<24 | int(f.start[1])<<16 | int(f.start[2])<<8 | int(f.start[3])
	if uint(size) > frameMax {
		return 0, &ruleError{what: "the length of the next message is garbled: " + strconv.FormatUint(uint64(uint32(size)), 10) +
			" bytes, the limit is " + strconv.Itoa(frameMax)}
	}
	return size, nil
}

// drop reads the rest of a message that was too long for its receiver.
func (f *framing) drop(fd *fd) error {
	for f.skip > 0 {
		var waste [4096]byte
		n, err := fd.read(waste[:min(f.skip, len(waste))])
		if err != nil {
			return within(err)
		}
		f.skip -= n
	}
	return nil
}

// within is the error of a read in the middle of a message.
func within(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (f *framing) recv(fd *fd, p []byte) (int, error) {
	f.receiving.Lock()
	defer f.receiving.Unlock()
	size, err := f.next(fd)
	if err != nil {
		return 0, err
	}
	n := copy(p, f.part)
	for n < min(size, len(p)) {
		m, err := fd.read(p[n:min(size, len(p))])
		if err != nil {
			f.part = append(f.part, p[len(f.part):n]...)
			return 0, within(err)
		}
		n += m
	}
	f.skip = size - max(n, len(f.part))
	f.received()
	if size > len(p) {
		return n, ErrMsgTooLong
	}
	return n, nil
}

func (f *framing) recvAppend(fd *fd, dst []byte) ([]byte, error) {
	f.receiving.Lock()
	defer f.receiving.Unlock()
	size, err := f.next(fd)
	if err != nil {
		return dst, err
	}
	p := append(dst, f.part...)
	for len(p) < len(dst)+size {
		if len(p) == cap(p) {
			// By what has arrived, not by what the length promises.
			p = append(p, 0)[:len(p)]
		}
		n, err := fd.read(p[len(p):min(cap(p), len(dst)+size)])
		if err != nil {
			f.part = append([]byte(nil), p[len(dst):]...)
			return dst, within(err)
		}
		p = p[:len(p)+n]
	}
	f.received()
	return p, nil
}

// ---------------------------------------------------------------------------
// Files over a connection

// maxFiles is how many files go in one message: SCM_MAX_FD of Linux, the least
// of all systems.
const maxFiles = 253

// SendFiles gives the peer the open files, 1 to 253 of them, which it receives
// with one RecvFiles. It does not touch what is written, and the files stay this
// process's to close.
//
// On Unix the descriptors travel as SCM_RIGHTS with one zero byte (unix(7)), on a
// MsgConn with a message of one zero byte; a peer that reads instead sees that
// byte and gets no files. macOS may lose a file that its sender closes before it
// is received, so there the sender should wait for an answer.
//
// On Windows the handles are duplicated into the process at the other end, and a
// record of some bytes tells it of them, on a MsgConn as one message; a peer that
// reads instead sees the record. What it never receives stays open in it until it
// ends. If this process may not open that one, or the connection has been handed
// on since it was made, the duplicates wait in a process that may be this one, and
// are lost if that ends before they are received. To another machine the error
// matches [errors.ErrUnsupported].
//
// A file that is closed already matches [os.ErrClosed], and then none is sent.
func (c *Conn) SendFiles(files ...*os.File) error {
	err := checkFiles(len(files))
	if err == nil {
		err = c.fd.sendFiles(files, zeroByte[:])
	}
	return c.failed("sendfiles", err)
}

// SendFiles gives the peer the open files: see [Conn.SendFiles].
func (c *MsgConn) SendFiles(files ...*os.File) error {
	err := checkFiles(len(files))
	switch {
	case err != nil:
	case c.framing != nil:
		err = c.framing.sendFiles(c.fd, files)
	default:
		err = c.fd.sendFiles(files, zeroByte[:])
	}
	return c.failed("sendfiles", err)
}

// RecvFiles receives the files of one SendFiles, at most max of them (1 to 253),
// in the order in which they were given, and waits until there are some. No
// child of this process inherits them. A file that was nonblocking with its
// sender is so here. On Windows that is one opened for overlapped I/O; it belongs
// to the completion port of the sender and has no deadlines here, but what
// [FileConn], [FileReader] and [FileWriter] make of a pipe has them. Windows lets
// nobody see of which kind a file is, as [os.NewFile] must, while another process
// waits in a read of it that is not overlapped; RecvFiles then waits for that too.
//
// If the peer sent more than max, all are closed and the error matches
// [ErrMsgTooLong]. If it sent data instead the error matches [ErrNoFiles], and
// the data waits for the next read. [io.EOF] means that it has closed its end.
//
// On Windows the record that files are received by is made of plain bytes. Bytes
// that look like one, and come from where nobody can put handles into this process,
// are data: the error matches both ErrNoFiles and [ErrUntrusted].
func (c *Conn) RecvFiles(max int) ([]*os.File, error) {
	err := checkFiles(max)
	var files []*os.File
	if err == nil {
		files, err = c.fd.recvFiles()
	}
	files, err = atMost(max, files, err)
	return files, c.failed("recvfiles", err)
}

// RecvFiles receives the files of one SendFiles: see [Conn.RecvFiles].
func (c *MsgConn) RecvFiles(max int) ([]*os.File, error) {
	err := checkFiles(max)
	var files []*os.File
	switch {
	case err != nil:
	case c.framing != nil:
		files, err = c.framing.recvFiles(c.fd)
	default:
		files, err = c.fd.recvFiles()
	}
	files, err = atMost(max, files, err)
	return files, c.failed("recvfiles", err)
}

// zeroByte is the data that files travel with.
var zeroByte [1]byte

func checkFiles(n int) error {
	if n < 1 || n > maxFiles {
		return configError("the number of files", strconv.Itoa(n), "1 to "+strconv.Itoa(maxFiles))
	}
	return nil
}

// atMost refuses more files than were asked for.
func atMost(max int, files []*os.File, err error) ([]*os.File, error) {
	if len(files) > max {
		err = &ruleError{"the peer sent " + strconv.Itoa(len(files)) + " files, " + strconv.Itoa(max) + " were asked for", ErrMsgTooLong}
	}
	if err != nil {
		closeFiles(files)
		return nil, err
	}
	return files, nil
}

// whileOpen calls do with the descriptors or handles of the files, appended to
// sys, none of which can be closed meanwhile. It asks each file in the way that
// leaves its mode alone.
func whileOpen[H ~int | ~uintptr](files []*os.File, sys []H, do func(sys []H) error) error {
	if len(files) == 0 {
		return do(sys)
	}
	if files[0] == nil {
		return configError("file "+strconv.Itoa(len(sys)), "nil", "open")
	}
	return withFile(files[0], func(s uintptr) error { return whileOpen(files[1:], append(sys, H(s)), do) })
}

// withFile calls do with the descriptor or handle of f, which cannot be closed
// meanwhile.
func withFile(f *os.File, do func(sys uintptr) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(sys uintptr) { err = do(sys) }); e != nil {
		return &classified{e, os.ErrClosed} // which this error of os does not match
	}
	return err
}

// sendFiles sends the files with a frame of one zero byte. They go with its
// first byte, so a frame is received whole or not at all.
func (f *framing) sendFiles(fd *fd, files []*os.File) error {
	f.sending.Lock()
	defer f.sending.Unlock()
	if err := f.usable(fd); err != nil {
		return err
	}
	length := frameOf(len(zeroByte))
	return fd.sendFiles(files, append(length[:], zeroByte[:]...))
}

func (f *framing) recvFiles(fd *fd) ([]*os.File, error) {
	f.receiving.Lock()
	defer f.receiving.Unlock()
	if err := f.drop(fd); err != nil {
		return nil, err
	}
	if f.got == 0 {
		n, files, err := fd.recvRights(f.start[:])
		if n == 0 {
			return files, err
		}
		f.got, f.files, f.cutOff = n, files, err
	}
	if f.files == nil && f.cutOff == nil {
		return nil, ErrNoFiles
	}
	size, err := f.next(fd)
	if err == nil && size == len(zeroByte) && f.part == nil {
		var b [1]byte
		if _, err = fd.read(b[:]); err == nil {
			f.part = b[:]
		}
	}
	if within(err) == io.ErrUnexpectedEOF { // there is no rest of the frame
		closeFiles(f.files)
		f.files, f.cutOff = nil, io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, within(err)
	}
	var files []*os.File
	files, err = f.files, f.cutOff
	f.files, f.cutOff = nil, nil
	if size == len(zeroByte) && f.part[0] == zeroByte[0] {
		f.got, f.part = 0, nil
	} // or it is somebody else's message, for the next Recv
	return files, err
}

// abandon gives up what a receive that did not get to the end has left. It is for
// Close, after which it delays nobody: every receive has an error.
func (f *framing) abandon() {
	f.receiving.Lock()
	defer f.receiving.Unlock()
	f.received()
}

// received ends the receipt of a message, and of files that nobody asked for.
func (f *framing) received() {
	f.got, f.part = 0, nil
	closeFiles(f.files)
	f.files, f.cutOff = nil, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// ---------------------------------------------------------------------------
// Unnamed pipes

// Pipe returns the two ends of a pipe: what is written to the one is read from
// the other. Unlike those of [os.Pipe] both have deadlines on every system, and
// Close wakes whoever waits. On Unix it is pipe(2); on Windows, where the
// unnamed pipe has no asynchronous I/O, a named pipe of one instance that nobody
// else can open.
func Pipe() (*PipeReader, *PipeWriter, error) {
	r, w, err := pipe()
	if err != nil {
		return nil, nil, pipeError("pipe", Addr{}, err)
	}
	return &PipeReader{pipeEnd{fd: r}}, &PipeWriter{pipeEnd{fd: w}}, nil
}

// pipeError gives err, if it is one, the operation and the path of the FIFO.
func pipeError(op string, addr Addr, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	e := opError(op, Addr{}, addr, err).(*net.OpError)
	e.Net = "pipe"
	return e
}

// A pipeEnd is what PipeReader and PipeWriter have in common.
type pipeEnd struct {
	fd   *fd
	addr Addr // the path of a FIFO
}

func (e *pipeEnd) failed(op string, err error) error { return pipeError(op, e.addr, err) }

// Close closes the end. It does not discard what was written: the reader reads
// that and then gets io.EOF. When no reader is left, writes fail with an error
// that matches [syscall.EPIPE]. Calls that wait on this end return an error that
// matches [net.ErrClosed], and so does the second Close.
func (e *pipeEnd) Close() error { return e.failed("close", e.fd.close()) }

// File returns a duplicate of the descriptor or handle: see [Conn.File].
func (e *pipeEnd) File() (*os.File, error) {
	f, err := e.fd.dupFile("pipe " + e.addr.String())
	return f, e.failed("file", err)
}

// SyscallConn gives access to the descriptor or handle: see [Conn.SyscallConn].
func (e *pipeEnd) SyscallConn() (syscall.RawConn, error) { return e.fd.rawConn() }

// A PipeReader is the end of a pipe or FIFO that is read. All its methods may be
// called concurrently.
type PipeReader struct{ pipeEnd }

// Read reads up to len(p) bytes, and waits until there is at least one. When
// the last writer has closed its end, Read returns what was written before that
// and then [io.EOF]. The other errors match [net.ErrClosed] and
// [os.ErrDeadlineExceeded].
func (r *PipeReader) Read(p []byte) (int, error) {
	n, err := r.fd.read(p)
	return n, r.failed("read", err)
}

// WriteTo copies from the pipe to w until the last writer closes, for [io.Copy].
// On Linux the bytes do not pass through this process where w is a Conn, a pipe
// end or a TCP connection: see splice(2).
func (r *PipeReader) WriteTo(w io.Writer) (int64, error) { return copyOut(w, r, r.fd, r.failed) }

// SetReadDeadline sets the time after which reads fail with an error that
// matches [os.ErrDeadlineExceeded], also those that wait already. The zero time
// is none.
func (r *PipeReader) SetReadDeadline(t time.Time) error {
	return r.failed("set", r.fd.setDeadline(t, reading))
}

// A PipeWriter is the end of a pipe or FIFO that is written. All its methods may
// be called concurrently.
type PipeWriter struct{ pipeEnd }

// Write writes all of p, and waits while the pipe is full. A write that fails
// returns how many bytes were written before. When no reader is left the error
// matches [syscall.EPIPE].
func (w *PipeWriter) Write(p []byte) (int, error) {
	n, err := w.fd.write(p)
	return n, w.failed("write", err)
}

// ReadFrom copies from r to the pipe until r ends, for [io.Copy]: see
// [Conn.ReadFrom].
func (w *PipeWriter) ReadFrom(r io.Reader) (int64, error) { return copyIn(w, w.fd, r, w.failed) }

// SetWriteDeadline sets the time after which writes fail with an error that
// matches [os.ErrDeadlineExceeded], also those that wait already. The zero time
// is none.
func (w *PipeWriter) SetWriteDeadline(t time.Time) error {
	return w.failed("set", w.fd.setDeadline(t, writing))
}

// SetSpin bounds how long a wait of this end may try again before its goroutine
// parks: see [Conn.SetSpin].
func (e *pipeEnd) SetSpin(d time.Duration) { e.fd.setSpin(max(d, 0)) }

// FileReader returns a PipeReader over a duplicate of f, which must be a pipe or
// FIFO (on Windows the handle of a pipe opened for overlapped I/O); anything
// else is refused. f stays the caller's to close, whatever the result; on Unix
// it becomes nonblocking, as the two share that mode.
func FileReader(f *os.File) (*PipeReader, error) {
	fd, err := adoptPipe(f, reading)
	if err != nil {
		return nil, pipeError("file", Addr{}, err)
	}
	return &PipeReader{pipeEnd{fd: fd}}, nil
}

// FileWriter returns a PipeWriter over a duplicate of f: see [FileReader].
func FileWriter(f *os.File) (*PipeWriter, error) {
	fd, err := adoptPipe(f, writing)
	if err != nil {
		return nil, pipeError("file", Addr{}, err)
	}
	return &PipeWriter{pipeEnd{fd: fd}}, nil
}

// ---------------------------------------------------------------------------
// Copying

// copySize is the size of the buffer of a copy through user space: large enough
// that the calls do not count, small enough to stay in a cache.
const copySize = 64 << 10

// plainCopy copies through this process.
func plainCopy(w io.Writer, r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, copySize))
}

// copyIn copies from r to dst, whose descriptor is fd, without a detour through
// this process where the system can.
func copyIn(dst io.Writer, fd *fd, r io.Reader, failed func(string, error) error) (int64, error) {
	n, done, err := fd.spliceFrom(r)
	if done {
		return n, failed("readfrom", err)
	}
	m, err := plainCopy(dst, r)
	return n + m, err
}

// copyOut copies from src, whose descriptor is fd, to w, without a detour
// through this process where the system can.
func copyOut(w io.Writer, src io.Reader, fd *fd, failed func(string, error) error) (int64, error) {
	n, done, err := fd.spliceTo(w)
	if done {
		return n, failed("writeto", err)
	}
	m, err := plainCopy(w, src)
	return n + m, err
}

// ---------------------------------------------------------------------------
// Children

// inheritVar is the environment variable that tells a child which ends it got:
// entries name,kind,token separated by ';'. A token is a descriptor number, on
// Windows handle values.
const inheritVar = "IPC_INHERIT"

// An Inheritable is an end that a child can be given: a *Conn, *SharedConn, *MsgConn,
// *PipeReader, *PipeWriter or *Listener.
type Inheritable interface {
	// bequeath adds the end to what cmd's process inherits, and returns the
	// kind of the end and the token by which the child finds it.
	bequeath(cmd *exec.Cmd) (kind, token string, err error)
}

// The kinds of ends, as they stand in the variable.
const (
	kindConn     = "conn"
	kindMsgConn  = "msgconn"
	kindReader   = "reader"
	kindWriter   = "writer"
	kindListener = "listener"
)

// Inherit gives the process that cmd will start the end, under the name by which
// the child asks for it with [InheritedConn] and its kin. It is called before
// cmd.Start, and after cmd.Env and cmd.Dir were set, if they are: it adds to
// cmd.Env, to cmd.ExtraFiles on Unix and to
// cmd.SysProcAttr.AdditionalInheritedHandles on Windows. The name consists of
// letters, digits, '_', '-' and '.', and each is given once.
//
// The caller closes its copy of the end after Start (not before); only then does
// the other side see the child's exit as the end of the stream. On Windows the
// end must not have been used yet: a handle that this process has bound to its
// completion port cannot be used by another.
//
// A Listener may have been used, and both processes may accept clients of it, so
// that one can take over from the other without a moment in which nobody listens.
// The child's has no [ListenConfig.Check], and on an abstract name it serves this
// user and root alone, until [Listener.SetAccess] says otherwise; what guards a
// socket file or a pipe guards it as before. On Unix both have one queue of clients,
// and the parent's Close removes the socket file unless [ListenConfig.KeepName] is
// set. On Windows each has its own, of as many clients: a client that waits in the
// parent's when that closes its Listener is disconnected, and sees io.EOF, or EPIPE
// when it writes; one that dials before the child takes its own waits.
func Inherit(cmd *exec.Cmd, name string, end Inheritable) error {
	if err := inherit(cmd, name, end); err != nil {
		return pipeError("inherit", Addr{}, err)
	}
	return nil
}

func inherit(cmd *exec.Cmd, name string, end Inheritable) error {
	if !validEndName(name) {
		return configError("the name", strconv.Quote(name), "letters, digits, '_', '-' and '.'")
	}
	env := cmd.Env
	if env == nil {
		env = cmd.Environ() // with what Start would add
	}
	at, list := -1, ""
	for i, entry := range env {
		if v, ok := strings.CutPrefix(entry, inheritVar+"="); ok {
			at, list = i, v
		}
	}
	ends, err := parseInherited(list)
	if err != nil {
		return err
	}
	if ends[name] != nil {
		return configError("the name", strconv.Quote(name), "given only once")
	}
	kind, token, err := end.bequeath(cmd)
	if err != nil {
		return err
	}
	if list != "" {
		list += ";"
	}
	list = inheritVar + "=" + list + name + "," + kind + "," + token
	if at < 0 {
		cmd.Env = append(env[:len(env):len(env)], list)
	} else {
		cmd.Env = append([]string(nil), env...)
		cmd.Env[at] = list
	}
	return nil
}

func validEndName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.') {
			return false
		}
	}
	return name != ""
}

// An inheritedEnd is an end that this process was given and nobody took yet.
type inheritedEnd struct {
	kind, token string
}

// inherited holds the ends that this process was given.
var inherited struct {
	mu   sync.Mutex // guards the rest
	ends map[string]*inheritedEnd
	err  error // what is wrong with the variable
}

// The variable is read when the program starts, before anything can start a
// child: what this process was given is not passed on, neither the ends nor the
// variable that names them.
func init() {
	list, ok := os.LookupEnv(inheritVar)
	if !ok {
		return
	}
	os.Unsetenv(inheritVar)
	inherited.ends, inherited.err = parseInherited(list)
	for _, end := range inherited.ends {
		keepFromChildren(end.token)
	}
}

// parseInherited reads the value of the variable.
func parseInherited(list string) (map[string]*inheritedEnd, error) {
	ends, tokens := map[string]*inheritedEnd{}, map[string]bool{}
	for entry := range strings.SplitSeq(list, ";") {
		if list == "" {
			break
		}
		name, rest, _ := strings.Cut(entry, ",")
		kind, token, ok := strings.Cut(rest, ",")
		if !ok || !validEndName(name) || !validToken(token) || ends[name] != nil || tokens[token] {
			return nil, &ruleError{what: inheritVar + " is garbled at " + strconv.Quote(entry)}
		}
		ends[name], tokens[token] = &inheritedEnd{kind, token}, true
	}
	return ends, nil
}

// takeInherited takes the end of that name and kind, so that no other call does.
func takeInherited(name, kind string) (*inheritedEnd, error) {
	inherited.mu.Lock()
	defer inherited.mu.Unlock()
	end := inherited.ends[name]
	switch {
	case inherited.err != nil:
		return nil, inherited.err
	case end == nil:
		return nil, &ruleError{what: "no end named " + strconv.Quote(name) + " was inherited, or it was taken before"}
	case end.kind != kind:
		return nil, &ruleError{what: "the inherited end " + strconv.Quote(name) + " is a " + end.kind + ", not a " + kind}
	}
	delete(inherited.ends, name)
	return end, nil
}

// adoptInherited adopts the end of that name and kind. One that cannot be
// adopted stays where it is.
func adoptInherited[T any](name, kind string, adopt func(token string) (T, error)) (T, error) {
	var none T
	end, err := takeInherited(name, kind)
	if err != nil {
		return none, pipeError("inherit", Addr{}, err)
	}
	v, err := adopt(end.token)
	if err != nil {
		inherited.mu.Lock()
		inherited.ends[name] = end
		inherited.mu.Unlock()
		return none, pipeError("inherit", Addr{}, err)
	}
	return v, nil
}

// InheritedConn returns the connection that the parent process gave this one
// under the name, with [Inherit]. It can be taken once. What is not taken stays
// open but is not passed on to children of this process.
func InheritedConn(name string) (*Conn, error) {
	fd, err := adoptInherited(name, kindConn, inheritedStream)
	if err != nil {
		return nil, err
	}
	return &Conn{endpoint{fd: fd, local: fd.localAddr()}}, nil
}

// InheritedMsgConn returns the inherited connection: see [InheritedConn].
func InheritedMsgConn(name string) (*MsgConn, error) {
	fd, err := adoptInherited(name, kindMsgConn, inheritedMessages)
	if err != nil {
		return nil, err
	}
	return newMsgConn(endpoint{fd: fd, local: fd.localAddr()}), nil
}

// InheritedReader returns the inherited end of a pipe: see [InheritedConn].
func InheritedReader(name string) (*PipeReader, error) {
	fd, err := adoptInherited(name, kindReader, inheritedPipe)
	if err != nil {
		return nil, err
	}
	return &PipeReader{pipeEnd{fd: fd}}, nil
}

// InheritedWriter returns the inherited end of a pipe: see [InheritedConn].
func InheritedWriter(name string) (*PipeWriter, error) {
	fd, err := adoptInherited(name, kindWriter, inheritedPipe)
	if err != nil {
		return nil, err
	}
	return &PipeWriter{pipeEnd{fd: fd}}, nil
}

// InheritedListener returns the inherited listener: see [InheritedConn]. Its
// Close does not remove a socket file; that is the parent's.
func InheritedListener(name string) (*Listener, error) {
	return adoptInherited(name, kindListener, inheritedListener)
}

func (c *Conn) bequeath(cmd *exec.Cmd) (kind, token string, err error) {
	token, err = c.fd.bequeath(cmd)
	return kindConn, token, err
}

func (c *MsgConn) bequeath(cmd *exec.Cmd) (kind, token string, err error) {
	token, err = c.fd.bequeath(cmd)
	return kindMsgConn, token, err
}

func (r *PipeReader) bequeath(cmd *exec.Cmd) (kind, token string, err error) {
	token, err = r.fd.bequeath(cmd)
	return kindReader, token, err
}

func (w *PipeWriter) bequeath(cmd *exec.Cmd) (kind, token string, err error) {
	token, err = w.fd.bequeath(cmd)
	return kindWriter, token, err
}

func (l *Listener) bequeath(cmd *exec.Cmd) (kind, token string, err error) {
	token, err = l.sys.bequeath(cmd)
	return kindListener, token, err
}

// ---------------------------------------------------------------------------
// The race detector
//
// It does not see that what happens before a write happens before the read that
// returns it. Package syscall tells it for calls that end at once, and these do
// for all. They do nothing in a build without the detector.

// raceSync is what the detector sees instead of the bytes: an atomic that every
// operation adds to before and reads after its calls.
var raceSync atomic.Int32

func raceRelease() {
	if raceBuild() {
		raceSync.Add(1)
	}
}

func raceAcquire() {
	if raceBuild() {
		raceSync.Load()
	}
}

// raceBuild reports whether this is a build with -race. There is no file of the
// package that only such a build would take, so it looks at what only such a
// build does: sync.Pool loses a quarter of what is put into it.
var raceBuild = sync.OnceValue(func() bool {
	var pool sync.Pool
	lost := 0
	for range 256 {
		pool.Put(&pool)
		if pool.Get() == nil {
			lost++
		}
	}
	return lost > 16 // 64 are expected; otherwise 0, or 1 if preempted just then
})

// ---------------------------------------------------------------------------
// What the systems share below this

// callError names the system call in an error of it, and leaves what is none
// (net.ErrClosed, os.ErrDeadlineExceeded) as it is.
func callError(call string, err error) error {
	if err == nil { // of every message: it must not cost an allocation
		return nil
	}
	err = errnoOf(err)
	if errno, ok := err.(syscall.Errno); ok {
		return os.NewSyscallError(call, errno)
	}
	return err
}

// A users counts the calls that use a descriptor or handle. Its number must not
// go to somebody else while one does, so the last user of a closed one lets it go.
type users struct {
	n atomic.Int32 // how many, and isClosing
}

// isClosing is the bit of users.n that is set once, by Close; isHeld is the one
// that is set while the only user is to stay the only one.
const (
	isClosing = 1 << 30
	isHeld    = 1 << 29
)

// use counts the caller as a user, unless it is closed.
func (u *users) use() error {
	for {
		n := u.n.Load()
		switch {
		case n&isClosing != 0:
			return net.ErrClosed
		case n&isHeld != 0:
			runtime.Gosched()
		case u.n.CompareAndSwap(n, n+1):
			return nil
		}
	}
}

// left ends what use began, and reports whether that was the last user after
// Close.
func (u *users) left() bool { return u.n.Add(-1) == isClosing }

// shut marks it closed and counts the caller as a user, once.
func (u *users) shut() bool {
	for {
		n := u.n.Load()
		switch {
		case n&isClosing != 0:
			return false
		case n&isHeld != 0:
			runtime.Gosched()
		case u.n.CompareAndSwap(n, (n|isClosing)+1):
			return true
		}
	}
}

// hold keeps others from becoming users, for the time of calls that do not block,
// if the caller is the only one. letGo ends that.
func (u *users) hold() bool { return u.n.CompareAndSwap(1, 1|isHeld) }
func (u *users) letGo()     { u.n.Store(1) }

func (u *users) closing() bool { return u.n.Load()&isClosing != 0 }

// ioMax is the most that one read or write asks for: macOS and FreeBSD fail
// above INT_MAX, and os.File on Windows stops there.
const ioMax = 1 << 30

// A direction is one or both of the two halves of a descriptor.
type direction uint8

const (
	reading direction = 1 << iota
	writing
)
