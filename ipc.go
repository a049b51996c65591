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
// that is free; [Dialer] therefore checks whom it reached by one.
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
		return &addrError{what: "no address is given"}
	case a.text == "" && a.kind == nameAddr:
		return &addrError{what: "the name is empty"}
	case a.text == "":
		return &addrError{what: "the path is empty"}
	}
	if i := strings.IndexByte(a.text, 0); i >= 0 {
		return &addrError{what: "NUL byte at index " + strconv.Itoa(i) + " of " + strconv.Quote(a.text)}
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
	// socket, is where a listener was to be.
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
	ErrUntrusted = errors.New("the server is not trusted")
)

// An addrError says what is wrong with an address. It matches is, if set.
type addrError struct {
	what string
	is   error
}

func (e *addrError) Error() string        { return e.what }
func (e *addrError) Is(target error) bool { return e.is != nil && target == e.is }

// tooLong is the error of an address of n bytes where limit are allowed.
func tooLong(what string, n, limit int) error {
	return &addrError{
		what: what + " is " + strconv.Itoa(n) + " bytes long, the limit is " + strconv.Itoa(limit),
		is:   ErrNameTooLong,
	}
}

// configError is the error of a field whose value breaks the rule.
func configError(field, value, rule string) error {
	return &addrError{what: field + " is " + value + ", it must be " + rule}
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

func (a Access) check() error {
	if a > Everyone {
		return configError("Access", a.String(), "OwnerOnly or Everyone")
	}
	return nil
}

// A Peer is what the kernel recorded of the process at the other end of a
// connection: of a client when it connected, of a server when it began to
// listen, of both ends of a [Pair] when the pair was made. A descriptor that
// was passed on since then still tells of the process that made it.
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
// when it is not known.
func (p Peer) UserID() string {
	if p.facts&knowsUID != 0 {
		return strconv.Itoa(p.uid)
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
	if uid, ok := p.UID(); ok {
		parts = append(parts, "uid "+strconv.Itoa(uid))
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
	// of pipe instances that are armed at once. 0 is the system's limit, on
	// Windows 4.
	Backlog int

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
// stale path; Close removes both files. The folder must be writable. Whoever
// else can write to that folder can put another server there.
func (lc ListenConfig) Listen(addr Addr) (*Listener, error) {
	if addr == (Addr{}) {
		addr = Name(freshName())
	}
	l, err := lc.listen(addr)
	if err != nil {
		return nil, opError("listen", Addr{}, addr, err)
	}
	return l, nil
}

func (lc ListenConfig) listen(addr Addr) (*Listener, error) {
	if err := lc.check(); err != nil {
		return nil, err
	}
	target, err := addr.resolve()
	if err != nil {
		return nil, err
	}
	sys, err := listen(target, lc)
	if err != nil {
		return nil, err
	}
	l := &Listener{sys: sys, addr: addr, check: lc.Check}
	l.ownerOnly = lc.Access == OwnerOnly && !guarded(target)
	return l, nil
}

// check applies the rules of the options that hold on every system.
func (lc *ListenConfig) check() error {
	if lc.Takeover > TakeoverAlways {
		return configError("Takeover", lc.Takeover.String(), "TakeoverStale, TakeoverNever or TakeoverAlways")
	}
	if lc.Backlog < 0 {
		return configError("Backlog", strconv.Itoa(lc.Backlog), "0 or more")
	}
	return lc.Access.check()
}

// A Listener is a server's end of a local socket. It is a [net.Listener] whose
// connections are *Conn. All its methods may be called concurrently.
type Listener struct {
	sys       *listener
	addr      Addr
	ownerOnly bool             // admit by credentials, because the kernel did not
	check     func(Peer) error // ListenConfig.Check
}

// Accept waits for a client and returns its connection, a *Conn.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptConn()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptConn waits for a client and returns its connection. Clients that
// [ListenConfig.Access] or [ListenConfig.Check] refuse, and those that left
// before they were accepted where the system says so, are not returned.
//
// The error matches [net.ErrClosed] after Close and [os.ErrDeadlineExceeded]
// after the deadline. Any other (EMFILE and ENFILE, when descriptors have run
// out) leaves the listener usable: the client waits on, and a server that
// tries again after a pause serves it.
func (l *Listener) AcceptConn() (*Conn, error) {
	for {
		fd, err := l.sys.accept()
		if err != nil {
			return nil, opError("accept", Addr{}, l.addr, err)
		}
		if l.admit(fd) {
			return &Conn{fd: fd, local: l.addr}, nil
		}
		fd.close()
	}
}

// admit reports whether the client at the other end of fd may stay.
func (l *Listener) admit(fd *fd) bool {
	if !l.ownerOnly && l.check == nil {
		return true
	}
	p, err := fd.peer()
	return err == nil &&
		(!l.ownerOnly || p.trusted()) &&
		(l.check == nil || l.check(p) == nil)
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
func (l *Listener) Conns() iter.Seq2[*Conn, error] {
	return func(yield func(*Conn, error) bool) {
		for {
			c, err := l.AcceptConn()
			if errors.Is(err, net.ErrClosed) || !yield(c, err) {
				return
			}
		}
	}
}

// Addr returns the address that the listener was opened with, an [Addr].
func (l *Listener) Addr() net.Addr { return l.addr }

// Close stops listening. Every Accept that waits returns an error that matches
// [net.ErrClosed], and clients that were not accepted are disconnected;
// connections that were live on. A socket file is removed unless
// [ListenConfig.KeepName] is set or it is not this listener's any more. The
// second Close returns net.ErrClosed.
func (l *Listener) Close() error {
	if err := l.sys.close(); err != nil {
		return opError("close", Addr{}, l.addr, err)
	}
	return nil
}

// SetDeadline sets the time after which Accept fails with an error that matches
// [os.ErrDeadlineExceeded], also one that waits already. The zero time is none.
func (l *Listener) SetDeadline(t time.Time) error {
	if err := l.sys.setDeadline(t); err != nil {
		return opError("set", Addr{}, l.addr, err)
	}
	return nil
}

// SyscallConn gives access to the descriptor or handle, for what this package
// does not wrap. It must not be closed nor made blocking.
func (l *Listener) SyscallConn() (syscall.RawConn, error) { return l.sys.rawConn() }

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
	// server reached by a [Name] must run as this user or as root (on Windows:
	// as this user, SYSTEM or an administrator), for anyone can take a name
	// that is free; otherwise Dial fails with [ErrUntrusted]. A Unix path is
	// trusted as the file system is: who could put a socket there is decided
	// by the permissions of its folder.
	Access Access

	// Check, if set, has a further say over the server. Its error is returned,
	// and matches [ErrUntrusted] too.
	Check func(Peer) error

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
// [context.DeadlineExceeded]. Once connected, ctx has no say any more.
//
// A full backlog is waited out: EAGAIN on Linux, ERROR_PIPE_BUSY on Windows. The
// other Unix systems refuse a client then exactly as if nobody listened; there
// ECONNREFUSED is tried again until ctx ends while the server's lock file shows
// that it lives, and for a quarter of a second otherwise.
func (d Dialer) DialContext(ctx context.Context, addr Addr) (*Conn, error) {
	fd, err := d.dial(ctx, addr)
	if err != nil {
		return nil, opError("dial", Addr{}, addr, err)
	}
	return &Conn{fd: fd, remote: addr}, nil
}

func (d *Dialer) dial(ctx context.Context, addr Addr) (*fd, error) {
	if err := addr.check(); err != nil {
		return nil, err
	}
	if err := d.Access.check(); err != nil {
		return nil, err
	}
	target, err := addr.resolve()
	if err != nil {
		return nil, err
	}
	fd, err := d.connect(ctx, target)
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
func (d *Dialer) connect(ctx context.Context, target string) (*fd, error) {
	start := time.Now()
	p := patience{ctx: ctx, deadline: d.deadline(ctx, start)}
	defer p.stop()
	var last error
	for {
		if err := p.ended(last); err != nil {
			return nil, err
		}
		fd, err := connect(target, d.Sys)
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
	switch err := p.ctx.Err(); {
	case err == context.Canceled:
		return err
	case err != nil, !p.deadline.IsZero() && !time.Now().Before(p.deadline):
		return &timeoutError{last}
	}
	return nil
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
		return &addrError{"the server is not trusted: it runs as " + p.String(), ErrUntrusted}
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
	a, b, err := pair()
	if err != nil {
		return nil, nil, opError("pair", Addr{}, Addr{}, err)
	}
	return &Conn{fd: a}, &Conn{fd: b}, nil
}

// ---------------------------------------------------------------------------
// Connections

// A Conn is one end of a connection: a full-duplex stream of bytes, delivered
// in order, none added and none dropped. It is a [net.Conn]. All its methods may
// be called concurrently; reads queue behind reads and writes behind writes.
type Conn struct {
	fd     *fd
	local  Addr
	remote Addr // zero on the server's side: the system is asked when needed
}

// failed gives err, if it is one, the operation and the addresses.
func (c *Conn) failed(op string, err error) error {
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
// the bytes do not pass through this process where r is a Conn, a pipe end or a
// TCP connection: see splice(2).
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return copyIn(c, c.fd, r) }

// WriteTo copies from the connection to w until the peer closes, for [io.Copy].
// On Linux the bytes do not pass through this process where w is a Conn, a pipe
// end or a TCP connection: see splice(2).
func (c *Conn) WriteTo(w io.Writer) (int64, error) { return copyOut(w, c, c.fd) }

// Close closes the connection. It does not wait for the peer and does not
// discard what was written: the peer reads that and then gets io.EOF. Calls that
// wait on this end return an error that matches [net.ErrClosed], and so does the
// second Close. When Close returns, the descriptor is gone.
func (c *Conn) Close() error { return c.failed("close", c.fd.close()) }

// CloseRead shuts the reading side down: see shutdown(2). Reads return io.EOF
// and the peer's writes fail. Pipes have no half close: on Windows the error
// matches [errors.ErrUnsupported].
func (c *Conn) CloseRead() error { return c.failed("close", c.fd.closeRead()) }

// CloseWrite shuts the writing side down: see shutdown(2). The peer reads what
// was written and then gets io.EOF; the other direction stays open. Pipes have
// no half close: on Windows the error matches [errors.ErrUnsupported].
func (c *Conn) CloseWrite() error { return c.failed("close", c.fd.closeWrite()) }

// LocalAddr returns the address of this end, an [Addr]: the listener's on the
// server's side, the zero Addr on the client's.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the address of the other end, an [Addr]: the one dialed on
// the client's side. A client has none but on Unix where it bound its socket to
// one; otherwise it is the zero Addr.
func (c *Conn) RemoteAddr() net.Addr {
	if c.remote == (Addr{}) {
		return c.fd.remoteAddr()
	}
	return c.remote
}

// SetDeadline sets the read and the write deadline.
func (c *Conn) SetDeadline(t time.Time) error {
	return c.failed("set", c.fd.setDeadline(t, reading|writing))
}

// SetReadDeadline sets the time after which reads fail with an error that
// matches [os.ErrDeadlineExceeded], also those that wait already. The zero time
// is none. A read that fails so has lost nothing: the connection stays usable.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.failed("set", c.fd.setDeadline(t, reading))
}

// SetWriteDeadline sets the time after which writes fail with an error that
// matches [os.ErrDeadlineExceeded], also those that wait already. The zero time
// is none. On Unix a write that fails so says how much of it the peer can read;
// on Windows the pipe takes back what the peer has not read, though the peer may
// have read a part, so the stream should be given up.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.failed("set", c.fd.setDeadline(t, writing))
}

// SetReadBuffer sets the size in bytes of the receive buffer (SO_RCVBUF of
// socket(7); Linux ignores it for local sockets). On Windows the sizes of a pipe
// are fixed when it is made: the error matches [errors.ErrUnsupported].
func (c *Conn) SetReadBuffer(n int) error {
	return c.failed("set", c.fd.setBuffer(reading, n))
}

// SetWriteBuffer sets the size in bytes of the send buffer (SO_SNDBUF of
// socket(7)): how much may be written that the peer has not read. On Windows the
// sizes of a pipe are fixed when it is made: the error matches
// [errors.ErrUnsupported].
func (c *Conn) SetWriteBuffer(n int) error {
	return c.failed("set", c.fd.setBuffer(writing, n))
}

// Peer tells who is at the other end. See [Peer] for what that means. Where the
// system does not tell anything the error matches [errors.ErrUnsupported].
func (c *Conn) Peer() (Peer, error) {
	p, err := c.fd.peer()
	return p, c.failed("peer", err)
}

// SyscallConn gives access to the descriptor or handle, for what this package
// does not wrap. It must not be closed nor made blocking.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.fd.rawConn() }

// File returns a duplicate of the descriptor or handle as an [os.File], to hand
// over to another process. Closing it does not affect c, nor the other way
// round, but the connection stays open until both are closed.
func (c *Conn) File() (*os.File, error) {
	f, err := c.fd.dupFile(c.local.String() + "->" + c.remote.String())
	return f, c.failed("file", err)
}

// FileConn returns a connection over a duplicate of f, which must be a connected
// stream socket of the local family (AF_UNIX), on Windows a connected pipe
// handle opened for overlapped I/O. Everything else is refused. f stays the
// caller's to close, whatever the result; on Unix it becomes nonblocking, as the
// two share that mode.
func FileConn(f *os.File) (*Conn, error) {
	fd, local, remote, err := adoptConn(f)
	if err != nil {
		return nil, opError("file", Addr{}, Addr{}, err)
	}
	return &Conn{fd: fd, local: local, remote: remote}, nil
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
	return &PipeReader{fd: r}, &PipeWriter{fd: w}, nil
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

// A PipeReader is the end of a pipe or FIFO that is read. All its methods may be
// called concurrently.
type PipeReader struct {
	fd   *fd
	addr Addr // the path of a FIFO
}

// Read reads up to len(p) bytes, and waits until there is at least one. When
// the last writer has closed its end, Read returns what was written before that
// and then [io.EOF]. The other errors match [net.ErrClosed] and
// [os.ErrDeadlineExceeded].
func (r *PipeReader) Read(p []byte) (int, error) {
	n, err := r.fd.read(p)
	return n, pipeError("read", r.addr, err)
}

// WriteTo copies from the pipe to w until the last writer closes, for [io.Copy].
// On Linux the bytes do not pass through this process where w is a Conn, a pipe
// end or a TCP connection: see splice(2).
func (r *PipeReader) WriteTo(w io.Writer) (int64, error) { return copyOut(w, r, r.fd) }

// Close closes the end. Calls that wait on it return an error that matches
// [net.ErrClosed], and so does the second Close. When no reader is left, writes
// fail with an error that matches [syscall.EPIPE].
func (r *PipeReader) Close() error { return pipeError("close", r.addr, r.fd.close()) }

// SetReadDeadline sets the time after which reads fail with an error that
// matches [os.ErrDeadlineExceeded], also those that wait already. The zero time
// is none.
func (r *PipeReader) SetReadDeadline(t time.Time) error {
	return pipeError("set", r.addr, r.fd.setDeadline(t, reading))
}

// File returns a duplicate of the descriptor or handle: see [Conn.File].
func (r *PipeReader) File() (*os.File, error) {
	f, err := r.fd.dupFile("pipe reader")
	return f, pipeError("file", r.addr, err)
}

// SyscallConn gives access to the descriptor or handle: see [Conn.SyscallConn].
func (r *PipeReader) SyscallConn() (syscall.RawConn, error) { return r.fd.rawConn() }

// A PipeWriter is the end of a pipe or FIFO that is written. All its methods may
// be called concurrently.
type PipeWriter struct {
	fd   *fd
	addr Addr // the path of a FIFO
}

// Write writes all of p, and waits while the pipe is full. A write that fails
// returns how many bytes were written before. When no reader is left the error
// matches [syscall.EPIPE].
func (w *PipeWriter) Write(p []byte) (int, error) {
	n, err := w.fd.write(p)
	return n, pipeError("write", w.addr, err)
}

// ReadFrom copies from r to the pipe until r ends, for [io.Copy]. On Linux the
// bytes do not pass through this process where r is a Conn, a pipe end or a TCP
// connection: see splice(2).
func (w *PipeWriter) ReadFrom(r io.Reader) (int64, error) { return copyIn(w, w.fd, r) }

// Close closes the end. It does not discard what was written: the reader reads
// that and then gets io.EOF. Calls that wait on it return an error that matches
// [net.ErrClosed], and so does the second Close.
func (w *PipeWriter) Close() error { return pipeError("close", w.addr, w.fd.close()) }

// SetWriteDeadline sets the time after which writes fail with an error that
// matches [os.ErrDeadlineExceeded], also those that wait already. The zero time
// is none.
func (w *PipeWriter) SetWriteDeadline(t time.Time) error {
	return pipeError("set", w.addr, w.fd.setDeadline(t, writing))
}

// File returns a duplicate of the descriptor or handle: see [Conn.File].
func (w *PipeWriter) File() (*os.File, error) {
	f, err := w.fd.dupFile("pipe writer")
	return f, pipeError("file", w.addr, err)
}

// SyscallConn gives access to the descriptor or handle: see [Conn.SyscallConn].
func (w *PipeWriter) SyscallConn() (syscall.RawConn, error) { return w.fd.rawConn() }

// FileReader returns a PipeReader over a duplicate of f, which must be a pipe or
// FIFO (on Windows the handle of a pipe opened for overlapped I/O); anything
// else is refused. f stays the caller's to close, whatever the result; on Unix
// it becomes nonblocking, as the two share that mode.
func FileReader(f *os.File) (*PipeReader, error) {
	fd, err := adoptPipe(f, reading)
	if err != nil {
		return nil, pipeError("file", Addr{}, err)
	}
	return &PipeReader{fd: fd}, nil
}

// FileWriter returns a PipeWriter over a duplicate of f: see [FileReader].
func FileWriter(f *os.File) (*PipeWriter, error) {
	fd, err := adoptPipe(f, writing)
	if err != nil {
		return nil, pipeError("file", Addr{}, err)
	}
	return &PipeWriter{fd: fd}, nil
}

// ---------------------------------------------------------------------------
// Copying

// copySize is the size of the buffer of a copy through user space: large enough
// that the calls do not count, small enough to stay in a cache.
const copySize = 64 << 10

// copyIn copies from r to dst, whose descriptor is fd, without a detour through
// this process where the system can.
func copyIn(dst io.Writer, fd *fd, r io.Reader) (int64, error) {
	n, done, err := fd.spliceFrom(r)
	if done {
		return n, err
	}
	m, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{r}, make([]byte, copySize))
	return n + m, err
}

// copyOut copies from src, whose descriptor is fd, to w, without a detour
// through this process where the system can.
func copyOut(w io.Writer, src io.Reader, fd *fd) (int64, error) {
	n, done, err := fd.spliceTo(w)
	if done {
		return n, err
	}
	m, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{src}, make([]byte, copySize))
	return n + m, err
}

// ---------------------------------------------------------------------------
// Children

// inheritVar is the environment variable that tells a child which ends it got:
// entries name,kind,token separated by ';'. A token is a descriptor number, on
// Windows handle values.
const inheritVar = "IPC_INHERIT"

// An Inheritable is an end that a child can be given: a *Conn, *PipeReader,
// *PipeWriter or *Listener.
type Inheritable interface {
	// bequeath adds the end to what cmd's process inherits, and returns the
	// kind of the end and the token by which the child finds it.
	bequeath(cmd *exec.Cmd) (kind, token string, err error)
}

// The kinds of ends, as they stand in the variable.
const (
	kindConn     = "conn"
	kindReader   = "reader"
	kindWriter   = "writer"
	kindListener = "listener"
)

// Inherit gives the process that cmd will start the end, under the name by which
// the child asks for it with [InheritedConn] and its kin. It is called before
// cmd.Start, and after cmd.Env was set, if it is: it adds to cmd.Env, to
// cmd.ExtraFiles on Unix and to cmd.SysProcAttr.AdditionalInheritedHandles on
// Windows. The name consists of letters, digits, '_', '-' and '.', and each is
// given once.
//
// The caller closes its copy of the end after Start (not before); only then does
// the other side see the child's exit as the end of the stream. On Windows the
// end must not have been used yet: a handle that this process has bound to its
// completion port cannot be used by another.
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
		env = os.Environ()
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
	ends := map[string]*inheritedEnd{}
	for entry := range strings.SplitSeq(list, ";") {
		if list == "" {
			break
		}
		name, rest, _ := strings.Cut(entry, ",")
		kind, token, ok := strings.Cut(rest, ",")
		if !ok || !validEndName(name) || !validToken(token) || ends[name] != nil {
			return nil, &addrError{what: inheritVar + " is garbled at " + strconv.Quote(entry)}
		}
		ends[name] = &inheritedEnd{kind, token}
	}
	return ends, nil
}

// takeInherited finds the end of that name and kind and adopts it. An end that
// cannot be adopted stays where it is.
func takeInherited(name, kind string) (*inheritedEnd, error) {
	inherited.mu.Lock()
	defer inherited.mu.Unlock()
	end := inherited.ends[name]
	switch {
	case inherited.err != nil:
		return nil, inherited.err
	case end == nil:
		return nil, &addrError{what: "no end named " + strconv.Quote(name) + " was inherited, or it was taken before"}
	case end.kind != kind:
		return nil, &addrError{what: "the inherited end " + strconv.Quote(name) + " is a " + end.kind + ", not a " + kind}
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
	fd, err := adoptInherited(name, kindConn, inheritedConn)
	if err != nil {
		return nil, err
	}
	return &Conn{fd: fd, local: fd.localAddr()}, nil
}

// InheritedReader returns the inherited end of a pipe: see [InheritedConn].
func InheritedReader(name string) (*PipeReader, error) {
	fd, err := adoptInherited(name, kindReader, inheritedPipe)
	if err != nil {
		return nil, err
	}
	return &PipeReader{fd: fd}, nil
}

// InheritedWriter returns the inherited end of a pipe: see [InheritedConn].
func InheritedWriter(name string) (*PipeWriter, error) {
	fd, err := adoptInherited(name, kindWriter, inheritedPipe)
	if err != nil {
		return nil, err
	}
	return &PipeWriter{fd: fd}, nil
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

// A direction is one or both of the two halves of a descriptor.
type direction uint8

const (
	reading direction = 1 << iota
	writing
)
