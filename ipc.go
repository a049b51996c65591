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
// The seam: what this file asks of a system
//
// Everything above the system calls is in this file and in ipc_shared.go. Each system
// meets the following, in ipc_unix.go or ipc_windows.go; a new one is added by meeting
// it. The compiler checks that each system has what is in the list, and a test that nothing
// is missing from it (tests/seam_test.go).
//
//	descriptor      identity, deadlines, closing and handing on of an end    *fd
//	byteCarrier     the bytes of a Conn and of a pipe end                    *fd
//	messageCarrier  the messages of a MsgConn                                *fd, *framing over an *fd
//	messageSource   messages that come in parts, for a messageReader         *fd, *framing
//	clientSource    the clients of a server                                  *listener
//	functions       how ends and listeners come into being                   see below
//	memory          memory and doorbells of a SharedConn                     see ipc_shared.go
//
// On Unix the systems differ in a type kernel, which embeds what every one of them can
// do (baseKernel) and has methods of its own where it can do better.

// A descriptor is one end of a connection or of a pipe. It is safe for concurrent use.
// After close every method fails with net.ErrClosed.
type descriptor interface {
	begin(spin time.Duration)            // comes first for what was accepted or dialed: how long waits may spin
	closeLater() error                   // marks it closed, and wakes every call that waits; waits for nothing
	awaitGone(grace time.Duration) error // waits until the number is free again, no longer than the grace
	dispose()                            // closes it, when the last user has left: see refs
	setDeadline(t time.Time, d direction) error
	setBuffer(d direction, n int) error
	rawConn() (syscall.RawConn, error)
	dupFile(name string) (*os.File, error)

	peer() (Peer, error)
	waitPeer(ctx context.Context) error
	localAddr() Addr
	remoteAddr() Addr

	// bequeath makes a child inherit the descriptor, and returns the token by which
	// the child finds it.
	bequeath(cmd *exec.Cmd) (token string, err error)
}

// A byteCarrier carries a stream of bytes, and files beside it. Reads wait for at least
// one byte, writes until all is written.
type byteCarrier interface {
	read(p []byte) (int, error)
	write(p []byte) (int, error)
	readBuffers(bufs [][]byte) (int64, error)
	writeBuffers(bufs *net.Buffers) (int64, error)
	closeRead() error
	closeWrite() error

	// spliceFrom and spliceTo copy in the kernel where it can; done says that there
	// is nothing left for a plain copy to do.
	spliceFrom(r io.Reader) (n int64, done bool, err error)
	spliceTo(w io.Writer) (n int64, done bool, err error)

	// sendRights sends files with the first byte of p and tells how much of p was
	// sent; recvRights receives some data and at most limit files that came with it.
	sendRights(p []byte, files []*os.File) (sent int, err error)
	recvRights(p []byte, limit int) (int, []*os.File, error)
	recvFiles(limit int) ([]*os.File, error)
}

// A clientSource accepts clients until it is closed.
type clientSource interface {
	accept(asksWho bool) (*fd, error) // whether the client is to be admitted by who it is
	close() error
	closing() bool
	setDeadline(t time.Time) error
	rawConn() (syscall.RawConn, error)
	bequeath(cmd *exec.Cmd) (token string, err error)
}

var (
	_ descriptor     = (*fd)(nil)
	_ byteCarrier    = (*fd)(nil)
	_ messageCarrier = (*fd)(nil)
	_ messageCarrier = (*framing)(nil)
	_ messageSource  = (*fd)(nil)
	_ messageSource  = (*framing)(nil)
	_ clientSource   = (*listener)(nil)

	// An address becomes a target, which the other functions take. judge says what an
	// error of connect means for the next attempt.
	_ func(Addr) (target string, err error)                                        = Addr.resolve
	_ func(target string, kind connKind, lc *ListenConfig) (*listener, error)      = listen
	_ func(p *retryTimer, target string, kind connKind, d *SysDialer) (*fd, error) = connect
	_ func(target string, err error) verdict                                       = judge

	// How many descriptors this process may have, and how one that a peer chose is closed.
	_ func() int64   = descriptorLimit
	_ func(*os.File) = closeReceived

	_ func(kind connKind) (a, b *fd, err error)            = pair
	_ func() (r, w *fd, err error)                         = pipe
	_ func(f *os.File, kind connKind) (*fd, error)         = adoptConn
	_ func(f *os.File, d direction) (*fd, error)           = adoptPipe
	_ func(token string, kind connKind) (*listener, error) = inheritedListener

	// d is reading|writing for a connection, and one of the two for an end of a pipe.
	_ func(token string, kind connKind, d direction) (*fd, error) = inheritedFD

	// A token names what a process inherits. The text of what was passed, and of what is
	// there, is the same as long as the token's descriptors are still what they were.
	_ func(token string) (string, error) = whatWasPassed
	_ func(token string) (string, error) = whatIsThere
	_ func(token string) []uintptr       = tokenDescriptors
	_ func(token string)                 = keepFromChildren

	_ func(target string) bool                      = guarded      // the kernel enforces an Access there
	_ func(Addr) bool                               = squattable   // any user may have taken it
	_ func(name string) (Addr, error)               = userAddr     // see UserAddr
	_ func(group string) (number string, err error) = resolveGroup // see ListenConfig.Group
	_ func(Peer) bool                               = Peer.trusted // this user, or who rules the machine
	_ func(*server, *listener)                      = (*server).adopted
	_ func()                                        = leaveCPU // see spinPolicy
	_ func()                                        = yieldCPU // the same
	_ func(error) error                             = errnoOf
	_ func(*fd) *refs                               = func(f *fd) *refs { return &f.refs }
	_ func(*fd) *atomic.Int64                       = func(f *fd) *atomic.Int64 { return &f.spin } // see SetSpin
	_ *fd                                           = noFD                                         // closed
	_ *listener                                     = noListener                                   // closed
	_ string                                        = network                                      // of an Addr
	_ string                                        = freshFolder                                  // in the name of a fresh Addr
	_ bool                                          = nulInNames                                   // a Name may hold NUL bytes
	_ bool                                          = framedHere                                   // messages go through a stream: see framing
	_ bool                                          = sharesMemory

	// What a system adds to the types of the interface. They may be empty.
	_ peerSystem
	_ SysDialer
	_ SysListenConfig
)

// ---------------------------------------------------------------------------
// Addresses

// An Addr says where a server listens: a path in the file system ([Path]) or a
// name in the namespace that the system keeps for such names ([Name]). Addrs
// are comparable, and the zero Addr asks [Listen] for a fresh private name.
//
// Most clients on Unix have no address of their own. A server sees such a client as
// Name(""). That is written "@", as in package net; nobody can listen there or dial it.
//
// An Addr is checked when it is used. It is refused before any system call if it is empty
// or too long, holds a NUL byte where none may be, or has no meaning on the system. The
// error names the address and the rule.
type Addr struct {
	kind addrKind
	text string // without the mark that String puts before a name
}

// unnamed is the address of an end that has none.
var unnamed = Name("")

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
// The mapping is part of the interface: it does not change within a major version, so the
// other end need not use this package. Any user can take a name that is free. A [Dialer]
// therefore checks which user runs the server that it reached by a name. Abstract names
// belong to a network namespace (network_namespaces(7)). Containers that share one share
// the names. Root of each such container is root to [OwnerOnly], unless the container has
// a user namespace of its own.
//
// An abstract name is all the bytes of the socket address behind the first one. Node.js
// 20, and many programs in C, pad the address with NUL bytes, which then belong to the
// name. To meet such a program, give Name the padded name: 107 bytes in all.
func Name(name string) Addr { return Addr{nameAddr, name} }

// ParseAddr reads an address as [Addr.String] writes it: "@name" is
// Name("name"), anything else is Path. An empty string, "@" alone and a NUL byte are
// errors; every other rule is the system's and is checked on use.
func ParseAddr(s string) (Addr, error) {
	a := Path(s)
	if name, ok := strings.CutPrefix(s, "@"); ok {
		a = Name(name)
	}
	err := nulError(a.text)
	if a.text == "" {
		err = a.check()
	}
	if err != nil {
		return Addr{}, &net.OpError{Op: "parse", Net: a.Network(), Err: err}
	}
	if a.kind == nameAddr && nulInNames {
		a.text = unescapeNUL(a.text)
	}
	return a, nil
}

// Network returns "unix", on Windows "pipe".
func (a Addr) Network() string { return network }

// String returns the text that [ParseAddr] reads back: the path, or the name
// behind an '@'. It is empty for the zero Addr.
//
// On Linux and Android, where a name may hold NUL bytes, each is written \0. A name
// that itself has a '0' behind backslashes is written with twice as many backslashes,
// so that no two names have the same text. All other names are written as they are.
func (a Addr) String() string {
	switch {
	case a.kind == nameAddr && nulInNames:
		return "@" + escapeNUL(a.text)
	case a.kind == nameAddr:
		return "@" + a.text
	}
	return a.text
}

// escapeNUL writes each NUL as \0. Backslashes are doubled where they would be taken
// for a part of that: before a '0' and before a NUL, and nowhere else.
func escapeNUL(name string) string {
	if strings.IndexByte(name, 0) < 0 && !strings.Contains(name, `\0`) {
		return name
	}
	var text strings.Builder
	backslashes := 0 // right before this byte
	for i := range len(name) {
		c := name[i]
		if c == 0 || c == '0' {
			for range backslashes {
				text.WriteByte('\\')
			}
		}
		switch c {
		case 0:
			text.WriteString(`\0`)
		default:
			text.WriteByte(c)
		}
		backslashes++
		if c != '\\' {
			backslashes = 0
		}
	}
	return text.String()
}

// unescapeNUL reads what escapeNUL has written. Before a '0', two backslashes stand for
// one, and a single one that is left makes the '0' a NUL.
func unescapeNUL(text string) string {
	if !strings.Contains(text, `\0`) {
		return text
	}
	var name strings.Builder
	for text != "" {
		rest := strings.TrimLeft(text, `\`)
		n := len(text) - len(rest)
		if rest == "" || rest[0] != '0' || n == 0 {
			end := min(n+1, len(text))
			name.WriteString(text[:end])
			text = text[end:]
			continue
		}
		name.WriteString(text[:n/2])
		name.WriteByte("0\x00"[n%2])
		text = rest[1:]
	}
	return name.String()
}

// MarshalText is [Addr.String] as an [encoding.TextMarshaler], for flag.TextVar and
// JSON. An address that is not valid UTF-8 is an error: JSON would replace those bytes,
// which makes it another address.
func (a Addr) MarshalText() ([]byte, error) {
	text := a.String()
	if strings.ToValidUTF8(text, "\uFFFD") != text {
		return nil, opError("marshal", Addr{}, a, &ruleError{what: strconv.Quote(text) + " is not valid UTF-8"})
	}
	return []byte(text), nil
}

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
		return errNoAddress
	case a.text == "" && a.kind == nameAddr:
		return &ruleError{what: "the name is empty"}
	case a.text == "":
		return &ruleError{what: "the path is empty"}
	case a.kind == nameAddr && nulInNames:
		return nil
	}
	return nulError(a.text)
}

var errNoAddress = &ruleError{what: "no address is given"}

// nulError refuses a NUL byte, and says where it is.
func nulError(text string) error {
	if i := strings.IndexByte(text, 0); i >= 0 {
		return &ruleError{what: "NUL byte at index " + strconv.Itoa(i) + " of " + strconv.Quote(text)}
	}
	return nil
}

// UserAddr returns an address that belongs to the user of this process alone, and that is
// the same in all processes of that user. It is for an agent, or for a program of which
// each user is to have one instance. The name consists of ASCII letters, digits, '_', '-'
// and '.', does not begin or end with '.', and does not end in ".lock".
//
// On Unix it is a path in the first of these folders:
//
//   - $XDG_RUNTIME_DIR, if that is an absolute path and leads to a private folder
//   - /run/user/UID on Linux, if that is a private folder
//   - /tmp/ipc-UID, or ipc-UID in $TMPDIR where there is no /tmp; it is made with mode
//     0700 if need be
//
// A private folder belongs to the effective user, nobody else may enter it, and it is not
// a link to a folder. If the last folder is not private, as when another user made it,
// the error matches [os.ErrPermission]. A folder with which the path would be too long
// for a sockaddr_un is passed over; if all are, the error matches [ErrNameTooLong].
// Processes agree on the address as long as they have the same XDG_RUNTIME_DIR. Those
// without the variable agree if they run while the user is logged in.
//
// On Windows it is a pipe with the user's SID in its name. In an AppContainer the pipe is
// below LOCAL\, which only that container can reach. Another user can take the name, but
// a [Dial] finds that out: see [Dialer.Access].
//
// In a Linux user namespace a process whose user has no mapping of its own has no such
// address: the error matches [errors.ErrUnsupported].
func UserAddr(name string) (Addr, error) {
	a, err := Addr{}, checkUserName(name)
	if err == nil {
		a, err = userAddr(name)
	}
	if err == nil {
		_, err = a.resolve()
	}
	if err != nil {
		return Addr{}, opError("useraddr", Addr{}, a, err)
	}
	return a, nil
}

// checkUserName allows a name that is one element of a path on every system, is not the
// lock file of another name, and cannot be a temporary name of this package.
func checkUserName(name string) error {
	if !validEndName(name) || name[0] == '.' || strings.HasSuffix(name, ".") || strings.HasSuffix(name, ".lock") {
		return configError("the name", strconv.Quote(name),
			"of ASCII letters, digits, '_', '-' and '.', without '.' at its ends and .lock at its end")
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
	// ErrAddrInUse is matched when Listen finds a live listener, or a file that is no
	// socket, at the address. With [TakeoverNever] it is matched for any file.
	ErrAddrInUse = errors.New("address already in use")

	// ErrNoListener is matched when nobody listens at the address dialed: it
	// does not exist (ENOENT, ERROR_FILE_NOT_FOUND), or exists and no process
	// serves it (ECONNREFUSED).
	ErrNoListener = errors.New("no listener at this address")

	// ErrNameTooLong is matched when an address is longer than the system can
	// take. The error says the length and the limit, in bytes.
	ErrNameTooLong = errors.New("name too long")

	// ErrUntrusted is matched when the server reached by a Dial is not one that
	// [Dialer.Access] or [Dialer.Check] accepts. Nothing was sent to that server. On
	// Windows it is also matched when a peer pretends to send files: see
	// [Conn.RecvFiles].
	ErrUntrusted = errors.New("the server is not trusted")
)

// A ruleError is an error that this package finds itself: an argument, or something from
// outside, breaks a rule. The error matches the field is, if that is set.
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

// A classified error is the system's error err, which also matches is. With it an error
// that has another number on each system is the same to errors.Is.
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
type timeoutError struct{ last error } // last may be nil

// Unwrap makes the error match what the last attempt failed with: ErrNoListener, say.
func (e *timeoutError) Unwrap() error { return e.last }

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

// MarshalText is [Access.String] as an [encoding.TextMarshaler]; a value that is none of
// the constants is an error.
func (a Access) MarshalText() ([]byte, error) { return wordOf(a.String(), a.validate()) }

// UnmarshalText reads "OwnerOnly" or "Everyone".
func (a *Access) UnmarshalText(text []byte) error {
	return readWord(a, text, accessRule, OwnerOnly, Everyone)
}

const accessRule = "OwnerOnly or Everyone"

func (a Access) validate() error {
	if a > Everyone {
		return configError("Access", a.String(), accessRule)
	}
	return nil
}

// wordOf returns the text of a value that is valid.
func wordOf(word string, err error) ([]byte, error) {
	if err != nil {
		return nil, opError("marshal", Addr{}, Addr{}, err)
	}
	return []byte(word), nil
}

// readWord sets v to the value whose String is the text.
func readWord[V interface{ String() string }](v *V, text []byte, rule string, values ...V) error {
	for _, value := range values {
		if value.String() == string(text) {
			*v = value
			return nil
		}
	}
	return opError("parse", Addr{}, Addr{}, configError("the text", strconv.Quote(string(text)), rule))
}

// A Peer is what the kernel recorded of the process at the other end of a connection. The
// kernel records a client when it connects, a server when it begins to listen, and both
// ends of a [Pair] when the pair is made. If the other end was passed on since then, the
// Peer is still the process that made it. On macOS the process identifier, and nothing
// else, is that of the process which used the other end last; it is absent once that end
// is closed.
//
// A fact that the system does not tell is absent, never zero. Process identifiers are
// used again: the process that has the number now may not be the peer.
//
// In a Linux user namespace (user_namespaces(7)) that does not map every id, the kernel
// gives the same id, usually 65534, for each user and group without a mapping. That id is
// absent too, even if the namespace has a user of its own with that number: the two
// cannot be told apart. So [OwnerOnly] neither admits nor trusts such a user, not even in
// a process that itself runs as that user.
type Peer struct {
	facts  peerFacts // what is known
	pid    int
	uid    int
	gid    int
	groups []int
	user   string // the SID on Windows, elsewhere derived from uid
	doubt  string // why the peer is not trusted, if that is not who it is; Windows
	system peerSystem
}

// peerFacts is the set of facts that a Peer knows.
type peerFacts uint8

const (
	knowsPID peerFacts = 1 << iota
	knowsUID
	knowsGID
)

// PID returns the process identifier of the peer, and whether it is known. It is not
// known on DragonFly, nor for a peer in another PID namespace that this one cannot see.
func (p Peer) PID() (int, bool) { return p.pid, p.facts&knowsPID != 0 }

// UID returns the effective user id of the peer, and whether it is known. It
// never is on Windows, nor for a user without a mapping in a Linux user namespace.
func (p Peer) UID() (int, bool) { return p.uid, p.facts&knowsUID != 0 }

// GID returns the effective group id of the peer, and whether it is known. It
// never is on Windows, nor for a group without a mapping in a Linux user namespace.
func (p Peer) GID() (int, bool) { return p.gid, p.facts&knowsGID != 0 }

// UserID returns the identity of the peer's user in the form that [os/user.LookupId]
// takes: a decimal user id, on Windows a SID. It is empty when it is not known. On
// Windows it is not known for a client that dialed with the impersonation level
// Anonymous, as those of go-winio do by default. Nor is it known for a client of another
// library that did not ask for static tracking, until something that this client sent was
// read.
func (p Peer) UserID() string {
	if p.facts&knowsUID != 0 {
		return strconv.FormatUint(uint64(uint32(p.uid)), 10) // an int of 32 bits may have become negative
	}
	return p.user
}

// Groups returns the supplementary group ids of the peer, or nil where the system does
// not tell them. FreeBSD and DragonFly tell the first 15, macOS the first four, and Linux
// only those with a mapping in this user namespace. So the peer may be in a group that is
// missing here.
func (p Peer) Groups() []int {
	if p.groups == nil {
		return nil
	}
	return append([]int{}, p.groups...)
}

// inGroup reports whether the peer is known to be in the group of that number.
func (p Peer) inGroup(number string) bool {
	if gid, ok := p.GID(); ok && strconv.Itoa(gid) == number {
		return true
	}
	for _, gid := range p.groups {
		if strconv.Itoa(gid) == number {
			return true
		}
	}
	return false
}

// String describes the peer in the words of the system, for logs: "pid 12 uid
// 1000 gid 1000". What is not known is left out.
func (p Peer) String() string {
	text := ""
	if pid, ok := p.PID(); ok {
		text += " pid " + strconv.Itoa(pid)
	}
	if p.facts&knowsUID != 0 {
		text += " uid " + p.UserID()
	}
	if gid, ok := p.GID(); ok {
		text += " gid " + strconv.Itoa(gid)
	}
	if p.user != "" {
		text += " user " + p.user
	}
	if text == "" {
		return "unknown peer"
	}
	return text[1:]
}

// MarshalText is [Peer.String] as an [encoding.TextMarshaler], for log/slog and JSON.
// It is not read back: a Peer is what the kernel says.
func (p Peer) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// ---------------------------------------------------------------------------
// Listening

// A Takeover says what Listen does about a socket file that is already there. A file that
// is not a socket is never touched. Abstract names and pipes leave nothing behind, and a
// live one cannot be taken over: every Takeover means the same for them.
type Takeover uint8

const (
	// TakeoverStale replaces a socket file that no process serves any more,
	// as a crash leaves it. If one serves it, the error matches [ErrAddrInUse].
	//
	// On Unix a connection attempt tells whether a process has the socket. If this
	// process may not connect, because the socket is another user's, Listen fails
	// with [os.ErrPermission]. On Linux there is one exception, for what a server of
	// root leaves: in a folder that belongs to this user the socket is stale if the
	// kernel knows no socket of this network namespace that is bound to it.
	TakeoverStale Takeover = iota

	// TakeoverNever replaces nothing: if there is any file, the error matches
	// [ErrAddrInUse].
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

// MarshalText is [Takeover.String] as an [encoding.TextMarshaler]; a value that is none
// of the constants is an error.
func (t Takeover) MarshalText() ([]byte, error) { return wordOf(t.String(), t.validate()) }

// UnmarshalText reads the name of a constant, such as "TakeoverNever".
func (t *Takeover) UnmarshalText(text []byte) error {
	return readWord(t, text, takeoverRule, TakeoverStale, TakeoverNever, TakeoverAlways)
}

const takeoverRule = "TakeoverStale, TakeoverNever or TakeoverAlways"

func (t Takeover) validate() error {
	if t > TakeoverAlways {
		return configError("Takeover", t.String(), takeoverRule)
	}
	return nil
}

// A ListenConfig holds the options of a listener. The zero value is the default
// that [Listen] uses.
type ListenConfig struct {
	// Access says who may connect. The kernel enforces it, except for abstract names,
	// where the kernel has no means to. There the credentials of each client are checked
	// before Accept returns it.
	//
	// A socket file has the permissions 0600 (OwnerOnly) or 0666 (Everyone) exactly, whatever
	// the umask, before the listener takes clients. ([ListenConfig.Listen] says where it has
	// the sticky bit besides, and SECURITY.md what the umask means before that on systems
	// other than Linux.) A pipe has a protected DACL, and clients on other machines are rejected.
	Access Access

	// Group, if set, admits the members of a group besides those whom OwnerOnly admits.
	// It is the name of the group or its number, on Windows the name of an account or a
	// SID ("S-1-5-32-545").
	//
	// A socket file has mode 0660, unless Sys.Mode says otherwise, and that group; only
	// a member of the group, or root, may give a file to it. For an abstract name the
	// group and the supplementary groups of the client decide, as the kernel recorded
	// them when it connected (SO_PEERGROUPS, Linux 4.13 and later). On a pipe the group
	// has the rights of a client in the DACL.
	//
	// On Unix a name is looked up in /etc/group and nowhere else: a group that another
	// service keeps (LDAP, NSS, Open Directory) needs its number. On Windows names
	// depend on the language of the system, SIDs do not. A group that does not exist
	// matches [os.ErrNotExist].
	//
	// A member who dials a [Name] needs a [Dialer] whose Access is Everyone, since the
	// server runs as another user. The Check of that Dialer can tell who it is.
	Group string

	// Check, if set, is called for each client that Access and Group admit. If it returns
	// an error, the client is closed and Accept does not return it; the listener goes on.
	// Check runs within Accept, so it should be quick. A client that left before it could
	// be asked who it is reaches neither Check nor Accept.
	Check func(Peer) error

	// Refused, if set, is called for each client that Check refused, or that Access
	// refused where the kernel has no means to; for a log, say. The error is the reason:
	// it matches that of Check, or [os.ErrPermission] for a client that Access keeps out.
	// The Peer is unknown if the client left before it could be asked who it is. Refused
	// is not called for clients that the kernel turns away, by the mode of a socket file
	// or the access list of a pipe.
	//
	// Accept does not wait for Refused. Each listener calls it in a goroutine of its own,
	// one call at a time, in the order of the refusals. It goes on to do so after Close.
	// While Refused is slow, up to 64 refusals wait. Those beyond are only counted; one
	// call with an unknown Peer then tells how many.
	Refused func(Peer, error)

	// Takeover says what to do when the path exists already.
	Takeover Takeover

	// KeepName leaves the socket file behind on Close. It has no meaning where
	// the name goes with the listener: abstract names and pipes.
	KeepName bool

	// Backlog is how many clients may wait for Accept. On Unix it is the backlog of
	// listen(2), which the system may raise by half (BSD) or one (Linux) and limits
	// (net.core.somaxconn, kern.ipc.somaxconn). On Windows it is the number of pipe
	// instances that are ready for a client at once, at most 254. 0 is the system's
	// limit, on Windows 4.
	Backlog int

	// Spin is the longest time that Accept, and each wait of an accepted connection,
	// busy-polls before it parks: see [Conn.SetSpin]. 0 is the default, a negative one
	// never spins.
	Spin time.Duration

	// Sys holds the options that only this system has.
	Sys *SysListenConfig
}

// Listen opens a server at addr, for the user of this process alone. It is
// ListenConfig{}.Listen(addr).
func Listen(addr Addr) (*Listener, error) { return ListenConfig{}.Listen(addr) }

// Listen opens a server at addr. For the zero Addr it takes a fresh private name, which
// [Listener.Addr] returns. Clients written with Node.js 20, and many in C, pad an
// abstract name with NUL bytes: [Name] says how a server can be reached by them.
//
// On Unix a listener on a path holds an flock(2) on the sibling file path + ".lock" until
// Close, so that of many starters exactly one gets a stale path. Close removes the socket
// and the lock file; a lock file that is not empty is another program's and stays. The
// folder must be writable. Listen opens it once, and everything up to Close happens in
// the folder that was opened, wherever its path leads by then (on OpenBSD, AIX, illumos
// and Solaris the path is checked before each step instead). Whoever else can write to
// that folder can put another server there. Whoever can read it can delay Listen and
// Close by 2 seconds, with an flock(2) on the folder.
//
// The lock file can be opened by this user, and by those others who may both connect and
// write to the folder, so that several users can take turns in a shared folder. If this
// user cannot open the lock file but may replace it, Listen does so once nobody serves
// the path. Where there is no flock (some network file systems and sandboxes), Listen
// does without a lock file. If two servers then start at the very same moment, one may
// remove the socket of the other.
//
// On Linux the lock file has the sticky bit, and so has a socket that could not be bound
// directly at its path. The reason is systemd-tmpfiles(8): it removes old sockets from
// /tmp that it does not find in /proc/net/unix, but no file with that bit.
//
// On Windows the pipe keeps its name, and Listen fails with [ErrAddrInUse], as
// long as a listener or an end of a connection of it is open in any process.
func (lc ListenConfig) Listen(addr Addr) (*Listener, error) {
	l := new(Listener)
	return opened(l, lc.serve(&l.server, addr, streams))
}

// opened returns the listener, unless opening it has failed.
func opened[L any](l *L, err error) (*L, error) {
	if err != nil {
		return nil, err
	}
	return l, nil
}

// serve opens l at addr for connections of that kind.
func (lc *ListenConfig) serve(l *server, addr Addr, kind connKind) error {
	if addr == (Addr{}) {
		addr = Name(freshFolder + freshName())
	}
	target, err := lc.target(addr)
	if err == nil && lc.Group != "" {
		lc.Group, err = resolveGroup(lc.Group) // lc is a copy, which the caller does not see
	}
	if err == nil {
		l.listener, err = listen(target, kind, lc)
	}
	if err != nil {
		return opError("listen", Addr{}, addr, err)
	}
	l.addr, l.spin = addr, lc.Spin
	rules := &admission{check: lc.Check}
	if !guarded(target) {
		rules.ownerOnly, rules.group = lc.Access == OwnerOnly, lc.Group
	}
	l.rules.Store(rules)
	l.refusals = tellRefusals(lc.Refused)
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
	if err := lc.Takeover.validate(); err != nil {
		return err
	}
	if lc.Backlog < 0 {
		return configError("Backlog", strconv.Itoa(lc.Backlog), "0 or more")
	}
	if lc.Group != "" && lc.Access == Everyone {
		return configError("Group", strconv.Quote(lc.Group), "empty where Access is Everyone")
	}
	return lc.Access.validate()
}

// A server is what the listeners of all kinds have in common.
type server struct {
	listener *listener
	addr     Addr
	spin     time.Duration             // ListenConfig.Spin
	rules    atomic.Pointer[admission] // replaced by SetAccess while others accept

	refusals *refusals // nil if ListenConfig.Refused is
}

// An admission decides in Accept which clients may stay, of those that the kernel
// let connect.
type admission struct {
	ownerOnly bool             // admits this user and root alone, by their credentials
	group     string           // the number of a group that is admitted too; "" is none
	check     func(Peer) error // ListenConfig.Check
}

// end returns the listener of the system. For the zero value that is noListener, which is
// closed. failed does what endpoint.failed does.
func (l *server) end() *listener {
	if l.listener == nil {
		return noListener
	}
	return l.listener
}

func (l *server) failed(op string, err error) error {
	if l.listener == nil {
		err = syscall.EINVAL
	}
	if err == nil {
		return nil
	}
	return opError(op, Addr{}, l.addr, err)
}

// serverOf returns the server of a listener, for a nil one that of the zero value. The
// methods of the listeners go through it: one that is promoted from the server panics if
// the listener is nil.
func serverOf[L any, P interface {
	*L
	base() *server
}](l P) *server {
	if l == nil {
		return new(server)
	}
	return l.base()
}

func (l *server) base() *server { return l }

func (l *server) setRules(ownerOnly bool, check func(Peer) error) {
	l.rules.Store(&admission{ownerOnly: ownerOnly, check: check})
}

// A Listener is a server's end of a local socket. It is a [net.Listener] whose
// connections are *Conn. All its methods may be called concurrently.
type Listener struct{ server }

// Accept waits for a client and returns its connection, a *Conn: see
// [Listener.AcceptConn].
func (l *Listener) Accept() (net.Conn, error) { return asNetConn(l.AcceptConn()) }

// AcceptConn waits for a client and returns its connection. It does not return clients
// that [ListenConfig.Access] or [ListenConfig.Check] refuse. Nor does it return clients
// that left before they were accepted, where the system says so. On Windows those are all
// that left without having written anything; the places that they take in the backlog are
// free again at the next Accept.
// On Unix no client is taken while peers keep a quarter of the descriptors of this process in
// closes that they hold up (SECURITY.md).
//
// The error matches [net.ErrClosed] after Close and [os.ErrDeadlineExceeded] after the
// deadline. Any other error (EMFILE and ENFILE, when descriptors have run out) leaves the
// listener usable: the client still waits, and the server can serve it if it calls
// AcceptConn again after a pause.
func (l *Listener) AcceptConn() (*Conn, error) {
	fd, err := serverOf(l).accept()
	if err != nil {
		return nil, err
	}
	return &Conn{endpoint{fd: fd, local: l.addr}}, nil
}

// Conns returns an iterator over the clients, which ends at Close. An error of
// Accept is handed to the loop, which decides whether to go on. After one that
// matches [syscall.EINVAL] the iterator ends: l does not listen, and never will.
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
			if errors.Is(err, syscall.EINVAL) { // it does not listen, and never will
				return
			}
		}
	}
}

// accept waits for a client that may stay.
func (l *server) accept() (*fd, error) {
	for {
		fd, err := l.end().accept(l.rules.Load().asksWho())
		if err != nil {
			return nil, l.failed("accept", err)
		}
		p, err := l.rules.Load().admitOrClose(fd)
		if err == nil {
			fd.begin(l.spin)
			return fd, nil
		}
		l.refusals.add(p, opError("accept", Addr{}, l.addr, err))
	}
}

// asksWho reports whether it depends on who a client is whether it may stay.
func (a *admission) asksWho() bool { return a != nil && (a.ownerOnly || a.check != nil) }

// admitOrClose is admit, and closes a client that may not stay, also if Check panics.
func (a *admission) admitOrClose(fd *fd) (p Peer, err error) {
	admitted := false
	defer func() {
		if !admitted {
			fd.closeLater() // whatever is in its queue must not hold the others up
		}
	}()
	p, err = a.admit(fd)
	admitted = err == nil
	return p, err
}

// admit returns nil if the client at the other end of fd may stay, else the reason why
// not. The Peer is that client as far as it was asked who it is.
func (a *admission) admit(fd *fd) (Peer, error) {
	if !a.asksWho() {
		return Peer{}, nil
	}
	p, err := fd.peer()
	switch {
	case err != nil:
		return Peer{}, err
	case a.ownerOnly && !p.trusted() && !p.inGroup(a.group):
		return p, errNotOwner
	case a.check != nil:
		return p, a.check(p)
	}
	return p, nil
}

// errNotOwner is the reason why OwnerOnly refuses a client.
var errNotOwner = &ruleError{"the client is not one that Access admits", os.ErrPermission}

// A refusals reports the clients that were refused to ListenConfig.Refused. Neither a
// slow function nor many clients delay Accept, and both need limited memory.
type refusals struct {
	tell func(Peer, error)

	mu      sync.Mutex // guards what follows; not held while tell runs
	waiting []refusal  // up to refusalsMax
	more    int        // how many had no room there
	telling bool       // a goroutine runs deliver
}

type refusal struct {
	peer Peer
	why  error
}

const refusalsMax = 64

// tellRefusals returns nil if there is no function to call.
func tellRefusals(tell func(Peer, error)) *refusals {
	if tell == nil {
		return nil
	}
	return &refusals{tell: tell}
}

// add queues a refusal, and starts deliver if it does not run.
func (r *refusals) add(p Peer, why error) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) < refusalsMax {
		r.waiting = append(r.waiting, refusal{p, why})
	} else {
		r.more++
	}
	if !r.telling {
		r.telling = true
		go r.deliver()
	}
}

// deliver reports refusals until there are no more.
func (r *refusals) deliver() {
	for {
		waiting, more := r.take()
		for _, one := range waiting {
			r.tell(one.peer, one.why)
		}
		if more > 0 {
			why := &ruleError{what: strconv.Itoa(more) + " more clients were refused"}
			r.tell(Peer{}, &net.OpError{Op: "accept", Net: network, Err: why})
		}
		if waiting == nil {
			return
		}
	}
}

// take returns the refusals to report now. If there are none, the goroutine is to end.
func (r *refusals) take() (waiting []refusal, more int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	waiting, more = r.waiting, r.more
	r.waiting, r.more = nil, 0
	r.telling = waiting != nil
	return waiting, more
}

// SetAccess sets which clients Accept returns from now on. It is for a listener that
// another process or the service manager made. With [OwnerOnly] a client must be this
// user or root (on Windows this user, SYSTEM or an administrator); a client of which the
// system tells nothing is refused. check is as [ListenConfig.Check], or nil.
//
// SetAccess replaces the Access and Check of the [ListenConfig], and its Group for an
// abstract name. The permissions of a socket file and the access list of a pipe stay as
// they are: clients that they keep out stay out.
func (l *Listener) SetAccess(access Access, check func(Peer) error) error {
	return serverOf(l).setAccess(access, check)
}

func (l *server) setAccess(access Access, check func(Peer) error) error {
	err := access.validate()
	if l.listener != nil && l.listener.closing() {
		err = net.ErrClosed
	}
	if err = l.failed("set", err); err == nil {
		l.setRules(access == OwnerOnly, check)
	}
	return err
}

// Addr returns the address that the listener was opened with, an [Addr].
func (l *server) Addr() net.Addr { return l.addr }

// Close stops listening. Every Accept that waits returns an error that matches
// [net.ErrClosed]. Clients that were not accepted are disconnected; accepted connections
// stay open. A socket file is removed unless [ListenConfig.KeepName] is set or it is not
// this listener's any more. If another process keeps its folder busy for 4 seconds, it is removed
// later; then the error matches [os.ErrDeadlineExceeded]. The error of the second Close matches
// net.ErrClosed.
func (l *Listener) Close() error { return serverOf(l).close() }

func (l *server) close() error { return l.failed("close", l.end().close()) }

// SetDeadline sets the time after which Accept fails with an error that matches
// [os.ErrDeadlineExceeded], also an Accept that waits already. The zero time means no
// deadline.
func (l *Listener) SetDeadline(t time.Time) error { return serverOf(l).setDeadline(t) }

func (l *server) setDeadline(t time.Time) error {
	return l.failed("set", l.end().setDeadline(t))
}

// SyscallConn gives access to the descriptor or handle, for what this package
// does not wrap. It must not be closed nor made blocking.
func (l *Listener) SyscallConn() (syscall.RawConn, error) { return serverOf(l).rawConn() }

func (l *server) rawConn() (syscall.RawConn, error) {
	if l.listener == nil {
		return nil, l.failed("raw", nil)
	}
	return l.listener.rawConn()
}

// ---------------------------------------------------------------------------
// Dialing

// A Dialer holds the options of a connection to be made. The zero value is the
// default that [Dial] uses.
type Dialer struct {
	// Timeout is the longest that Dial may take; 0 is no limit. A Dial waits
	// while the server is there but has no room for one more client. What Check takes
	// is its own. If another process holds the call that connects in the kernel, Dial takes
	// up to a tenth of a second longer, and on Windows up to a second.
	//
	// On Unix a Dial to a path that has a limit of any kind, or a context that can end, connects in
	// another thread. So what belongs to the thread of the caller alone (runtime.LockOSThread with
	// setfsuid(2), or unshare(2) of CLONE_FS) has no effect on it.
	Timeout time.Duration

	// Deadline is the moment at which Dial gives up; the zero time means no deadline.
	// Of Timeout, Deadline and the context's deadline the first one counts.
	Deadline time.Time

	// Wait keeps trying until a server listens, instead of failing with [ErrNoListener].
	// There is no event for that. The pauses between the attempts grow to 20 ms, so a new
	// server is noticed that soon, plus what the scheduler takes. If nobody listens
	// before the time is over, the error matches ErrNoListener too. A server that may not be
	// connected to is an error once it has stayed so for a quarter of a second: one that
	// starts on Unix has yet to give its socket file the permissions.
	Wait bool

	// Access says who may be the server. With OwnerOnly, the zero value, a server that
	// was reached by a [Name] must run as this user or as root, since any user can take a
	// name that is free. Otherwise Dial fails with [ErrUntrusted]. A server at a Unix
	// path is trusted as the file system is: the permissions of its folder decide who
	// could put a socket there. A Windows pipe must be owned by this user, SYSTEM or
	// Administrators, whichever kind of address leads to it. A pipe on another machine
	// cannot be verified, and needs Everyone.
	Access Access

	// Check, if set, is called for a server that Access accepts. If it returns an error,
	// Dial fails with that error, which then matches [ErrUntrusted] too.
	Check func(Peer) error

	// Spin is the longest time that each wait of the connection busy-polls before it
	// parks: see [Conn.SetSpin]. 0 is the default, a negative one never spins.
	Spin time.Duration

	// Sys holds the options that only this system has.
	Sys *SysDialer
}

// Dial connects to the server at addr. While the server has no room for one more client
// Dial waits, without limit. It is Dialer{}.Dial(addr).
func Dial(addr Addr) (*Conn, error) { return Dialer{}.Dial(addr) }

// Dial connects to the server at addr, within Timeout and Deadline: see
// [Dialer.DialContext].
func (d Dialer) Dial(addr Addr) (*Conn, error) { return d.DialContext(context.Background(), addr) }

// DialContext connects to the server at addr, and gives up when ctx ends: the error then
// matches [context.Canceled], or [os.ErrDeadlineExceeded] and [context.DeadlineExceeded].
// Once the connection is made, ctx has no effect on it. Other errors match
//
//   - [ErrNoListener], also if the server has padded its abstract name with NUL bytes:
//     see [Name]
//   - [ErrUntrusted]
//   - [os.ErrPermission], where the mode of the socket file, of a folder on the way to
//     it, or the access list of the pipe keeps this user out
//
// While the backlog is full, DialContext waits: that is EAGAIN on Linux, ERROR_PIPE_BUSY
// on Windows. The other Unix systems refuse a client then exactly as if nobody listened.
// There DialContext tries again after ECONNREFUSED: until ctx ends while the server's
// lock file shows that it lives, and for a quarter of a second if a socket without such a
// lock is bound there. On Windows it also waits while connections of a closed listener
// are still open.
func (d Dialer) DialContext(ctx context.Context, addr Addr) (*Conn, error) {
	fd, err := d.reach(ctx, addr, streams)
	if err != nil {
		return nil, err
	}
	return &Conn{endpoint{fd: fd, remote: addr}}, nil
}

// reach connects to a server of that kind at addr.
func (d *Dialer) reach(ctx context.Context, addr Addr, kind connKind) (*fd, error) {
	fd, err := d.dial(ctx, addr, kind)
	if err != nil {
		return nil, opError("dial", Addr{}, addr, err)
	}
	fd.begin(d.Spin)
	return fd, nil
}

func (d *Dialer) dial(ctx context.Context, addr Addr, kind connKind) (*fd, error) {
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
	trusted := false
	defer func() { // also if Check panics
		if !trusted {
			fd.close() // so that the server sees it; whatever is in its queue holds the caller up for closeGrace at most
		}
	}()
	if err := d.trust(fd, addr); err != nil {
		return nil, err
	}
	trusted = true
	return fd, nil
}

// A verdict says what a failed attempt to connect means for the next one.
type verdict uint8

const (
	final  verdict = iota // another attempt would fail too
	busy                  // a server is there and has no room now
	absent                // nobody listens
	unsure                // busy or absent: the system does not tell
	barred                // to this user, unless a server that starts has yet to say who may connect
)

// refusalGrace is how long connect tries again after a refusal that may mean a full
// backlog or a dead server, or a server that is about to start.
const refusalGrace = 250 * time.Millisecond

// connect attempts to connect until it succeeds, fails for good, or ctx or the
// dialer's own limits end it.
func (d *Dialer) connect(ctx context.Context, target string, kind connKind) (*fd, error) {
	if err := contextError(ctx, nil); err != nil {
		return nil, err
	}
	start := time.Now()
	p := retryTimer{ctx: ctx, deadline: d.deadline(ctx, start)}
	defer p.stop()
	var last error
	var barredSince time.Time // without any other answer
	for {
		if err := p.ended(last); err != nil {
			return nil, err
		}
		fd, err := connect(&p, target, kind, d.Sys)
		if err == nil {
			return fd, nil
		}
		v := judge(target, err)
		if v != barred {
			barredSince = time.Time{}
		}
		switch v {
		case final:
			return nil, err
		case barred:
			if barredSince.IsZero() {
				barredSince = time.Now()
			}
			if !d.Wait || time.Since(barredSince) >= refusalGrace {
				return nil, err
			}
		case absent:
			err = &classified{err, ErrNoListener}
			if !d.Wait {
				return nil, err
			}
		case unsure:
			if time.Since(start) < refusalGrace {
				break
			}
			err = &classified{err, ErrNoListener}
			if !d.Wait {
				return nil, err
			}
		}
		last = err
		p.pause()
	}
}

// A semaphore holds one element for each user that it still admits. A user receives an
// element before it begins and sends it back at its end. Unlike the wait for a Mutex, the
// wait for an element can end early.
type semaphore chan struct{}

// newSemaphore returns a semaphore for so many users at once. One for a single user is a
// lock that is free.
func newSemaphore(users int) semaphore {
	s := make(semaphore, users)
	for range users {
		s <- struct{}{}
	}
	return s
}

// A retryTimer spaces the attempts at something for which the system has no event
// to wait for, until a context or a deadline ends them.
type retryTimer struct {
	ctx      context.Context
	deadline time.Time // the zero time is none
	timer    *time.Timer
	length   time.Duration // of the last pause
	last     error         // of the last attempt
}

// The shortest and the longest pause: what is about to happen should be seen
// soon, and waiting for what may never happen should cost nothing.
const (
	pauseMin = 50 * time.Microsecond
	pauseMax = 20 * time.Millisecond
)

// ended returns the error that ends the attempts, or nil. last is the error of the last
// attempt.
func (p *retryTimer) ended(last error) error {
	p.last = last
	if err := contextError(p.ctx, last); err != nil {
		return err
	}
	if !p.deadline.IsZero() && !time.Now().Before(p.deadline) {
		return &timeoutError{last}
	}
	return nil
}

// contextError returns the error of an operation that ctx ends, or nil while ctx does not
// end it. last is the error of its last attempt, or nil if there was none.
func contextError(ctx context.Context, last error) error {
	if ctx == nil {
		panic("nil context") // as package net does
	}
	if err := ctx.Err(); err != context.DeadlineExceeded {
		return err
	}
	return &timeoutError{last}
}

// pause waits a while, each time for longer, but not beyond the end.
func (p *retryTimer) pause() {
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

// await returns nil once done is closed, or an element has come, or the error that ends p before that.
func (p *retryTimer) await(done <-chan struct{}) error {
	select {
	case <-done: // also if p has ended
		return nil
	default:
	}
	var expiry <-chan time.Time
	if !p.deadline.IsZero() {
		timer := time.NewTimer(time.Until(p.deadline))
		defer timer.Stop()
		expiry = timer.C
	}
	select {
	case <-done:
		return nil
	case <-p.ctx.Done():
		return contextError(p.ctx, p.last)
	case <-expiry:
		return &timeoutError{p.last}
	}
}

func (p *retryTimer) stop() {
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
		why := p.doubt
		if why == "" {
			why = "it runs as " + p.String()
		}
		return &ruleError{"the server is not trusted: " + why, ErrUntrusted}
	}
	if d.Check != nil {
		if err := d.Check(p); err != nil {
			return &classified{err, ErrUntrusted}
		}
	}
	return nil
}

// Pair returns two connected ends, for a child process or a test. They have no
// address of their own: see [Conn.LocalAddr]. On Unix it is socketpair(2).
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

// end returns the descriptor. The zero value of each type has none, as nobody opened it.
// Its methods work on noFD, which is closed, and failed makes every result EINVAL, the
// error that package net has for it.
func (c *endpoint) end() *fd {
	if c.fd == nil {
		return noFD
	}
	return c.fd
}

// A connKind is what a connection carries.
type connKind uint8

const (
	streams  connKind = iota // bytes: a Conn
	messages                 // messages: a MsgConn
)

// native returns what the socket or pipe of a connection of that kind carries.
func (kind connKind) native() connKind {
	if framesMessages {
		return streams
	}
	return kind
}

// failed adds the operation and the addresses to err, unless that is nil or io.EOF.
func (c *endpoint) failed(op string, err error) error {
	if err == nil && c.fd != nil {
		return nil
	}
	return c.failure(op, err)
}

// failure is the part of failed that, inlined, would double the stack of every goroutine that
// waits in Read.
//
//go:noinline
func (c *endpoint) failure(op string, err error) error {
	if c.fd == nil {
		err = syscall.EINVAL
	}
	if err == io.EOF {
		return err
	}
	return opError(op, c.local, c.remote, err)
}

// Read reads up to len(p) bytes, and waits until there is at least one. When the peer has
// closed its end, Read returns what the peer wrote before that and then [io.EOF]. On
// Unix, a peer that closed with unread data in its own queue may turn that io.EOF into
// ECONNRESET. The other errors match [net.ErrClosed] and [os.ErrDeadlineExceeded].
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.end().read(p)
	return n, c.failed("read", err)
}

// Write writes all of p, and waits while the peer's queue is full. A write that
// fails returns how many bytes were written before. After the peer has closed
// its end the error matches [syscall.EPIPE], on every system.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.end().write(p)
	return n, c.failed("write", err)
}

// ReadBuffers reads into the buffers in turn, with one readv(2) where the
// system has it to offer. Like Read it waits for at least one byte and not for
// full buffers.
func (c *Conn) ReadBuffers(bufs [][]byte) (int64, error) {
	n, err := c.end().readBuffers(bufs)
	return n, c.failed("read", err)
}

// WriteBuffers writes the contents of the buffers in turn, with writev(2) where the
// system has it to offer. As [net.Buffers.WriteTo] does, it removes from bufs what was
// written, also on an error.
func (c *Conn) WriteBuffers(bufs *net.Buffers) (int64, error) {
	n, err := c.end().writeBuffers(bufs)
	return n, c.failed("write", err)
}

// ReadFrom copies from r to the connection until r ends, for [io.Copy]. On Linux the
// bytes do not pass through this process where r is a Conn, a pipe end, a TCP connection
// or a file: see splice(2). For a TCP connection or a file call ReadFrom itself: io.Copy
// prefers their own WriteTo. As with any copy, bytes that were read and cannot be written
// are lost: up to 256 KiB here.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return copyIn(c, c.end(), r, c.failed) }

// WriteTo copies from the connection to w until the peer closes, for [io.Copy].
// On Linux the bytes do not pass through this process where w is a Conn, a pipe
// end or a TCP connection: see splice(2).
func (c *Conn) WriteTo(w io.Writer) (int64, error) { return copyOut(w, c, c.end(), c.failed) }

// Close closes the connection. It does not wait for the peer and does not discard what
// was written: the peer reads that and then gets io.EOF. Calls that wait on this end
// return an error that matches [net.ErrClosed], and so does the second Close. When Close
// returns, the descriptor is closed too. There is one exception: what a peer has put into
// its queue, or holds, can delay that. Close then returns after a tenth of a second all
// the same, and the descriptor is closed as soon as that is possible.
func (c *endpoint) Close() error { return c.failed("close", c.end().close()) }

// CloseRead shuts the reading side down: see shutdown(2). Reads return io.EOF. On Linux
// and FreeBSD 15 the peer's writes fail. The other Unix systems do not tell the peer:
// what it writes is lost, or waits for room until this end is closed. After the peer's
// Close there is nothing left to shut down, and CloseRead returns nil. Pipes have no half
// close: on Windows the error matches [errors.ErrUnsupported].
func (c *Conn) CloseRead() error { return c.failed("close", c.end().closeRead()) }

// CloseWrite shuts the writing side down: see shutdown(2). The peer reads what
// was written and then gets io.EOF; the other direction stays open. After the peer's
// Close it returns nil. Pipes have no half close: on Windows the error matches
// [errors.ErrUnsupported].
func (c *Conn) CloseWrite() error { return c.failed("close", c.end().closeWrite()) }

// LocalAddr returns the address of this end, an [Addr]. On the server's side it is the
// listener's; on the client's side there is none, and it is the zero Addr.
func (c *endpoint) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the address of the other end, an [Addr]. On the client's side it is
// the address that was dialed. On the server's side it depends on the system: on Unix it
// is the address to which the client bound its socket, or "@", as in package net, if the
// client did not bind it; on Windows it is the path of the pipe. An end of a [Pair] has
// none: it is the zero Addr.
func (c *endpoint) RemoteAddr() net.Addr {
	if c.remote == (Addr{}) && c.local != (Addr{}) {
		return c.end().remoteAddr()
	}
	return c.remote
}

// SetDeadline sets both deadlines: see [Conn.SetReadDeadline] and
// [Conn.SetWriteDeadline].
func (c *endpoint) SetDeadline(t time.Time) error {
	return c.failed("set", c.end().setDeadline(t, reading|writing))
}

// SetReadDeadline sets the time after which reads fail with an error that matches
// [os.ErrDeadlineExceeded], also those that wait already. The zero time means no
// deadline. A read that fails in this way has lost nothing: the connection stays usable.
func (c *endpoint) SetReadDeadline(t time.Time) error {
	return c.failed("set", c.end().setDeadline(t, reading))
}

// SetWriteDeadline sets the time after which writes fail with an error that matches
// [os.ErrDeadlineExceeded], also those that wait already. The zero time means no
// deadline. On Unix a Write that fails in this way returns how much of it the peer can
// read. On Windows the system takes back what the peer has not read, and does not tell
// how much that is, so the stream should be given up. A message is sent whole or not at
// all: see [MsgConn.Send].
func (c *endpoint) SetWriteDeadline(t time.Time) error {
	return c.failed("set", c.end().setDeadline(t, writing))
}

// SetReadBuffer sets the size in bytes of the receive buffer (SO_RCVBUF of
// socket(7); Linux ignores it for local sockets), with the limits of
// [Conn.SetWriteBuffer]. On Windows the sizes of a pipe are fixed when it is made:
// the error matches [errors.ErrUnsupported].
func (c *endpoint) SetReadBuffer(n int) error {
	return c.failed("set", c.end().setBuffer(reading, n))
}

// SetWriteBuffer sets the size in bytes of the send buffer (SO_SNDBUF of socket(7)): how
// much may be written that the peer has not read. A size below 4096 counts as 4096: some
// systems would else move a byte with each call. A size above the limit of the system is
// cut to the limit on Linux (net.core.wmem_max). On the BSDs and macOS it is an error
// that matches [syscall.ENOBUFS]. On Windows the sizes of a pipe are fixed when it is
// made: the error matches [errors.ErrUnsupported].
func (c *endpoint) SetWriteBuffer(n int) error {
	return c.failed("set", c.end().setBuffer(writing, n))
}

// SetSpin sets the longest time that a wait of this end busy-polls (spins) before
// its goroutine parks. 0 restores the default, and a negative d never spins. The
// fields Spin of [ListenConfig] and [Dialer] mean the same.
//
// The default is at most 100 µs on Linux, or 200 µs where a system call takes half a microsecond or
// more, and never on the other Unix systems. A spin
// costs the CPU time that it takes. Waking a thread costs both processes more, so a
// spin that succeeds saves time: a ping-pong of 64 bytes between two processes of a quiet
// machine took 0.25 to 0.7 of the time of package net, and 0.4 to 1.0 of its CPU time: the
// longer it takes to wake a thread, the less (README.md has the table, and what other
// conditions show). Whatever the limit, spins stop
// where more than about one in nine of them fails: then the next waits do not spin, and their
// number doubles with each further failure, up to four thousand. The first waits on the first
// connections of a process do not spin either, 8 of each or, if the process may run on one CPU
// alone, 256, until a spin has succeeded. At most GOMAXPROCS-1 goroutines of a process spin at a
// time, or one if that is 0. A connection that stays idle costs nothing.
//
// A spin takes the CPU from others, so some waits never spin:
//
//   - a wait to write;
//   - a wait to read in a stream: 4 KiB or more were read since the wait before it, or since
//     the first read after a write, and this end wrote nothing meanwhile. A [PipeReader] never
//     writes;
//   - a wait to read in bulk: 48 KiB or more were read and written since then, the process may
//     run on more than one CPU, and a system call takes less than half a microsecond;
//   - a wait to read after a pause: the wait before it ended longer ago than the limit;
//   - a wait to read after two in a row that took longer than the limit and 400 µs, or that spun in
//     vain for a peer that had a CPU. One spins all the same after 16 such waits, and after 247
//     more each time, until one takes no longer than the limit;
//   - any wait while the process has more busy ends than two for each CPU, or if more than three
//     for each of several CPUs have parked within half a millisecond. A direction of a connection,
//     a pipe end and a listener are an end each.
//
// While a few connections are busy at the same time, one that spins with success keeps its CPU until
// the system takes it away. So the mean time of an exchange is shorter, but single ones on the other
// connections may take some milliseconds longer. If that matters more, use a negative d.
//
// On Linux a wait to read that does not spin, after a pause, long waits or failed spins, lets the
// other threads of its CPU run before it parks (sched_yield(2)), at most four times and not again
// after d. So two ends on one CPU need 0.6 to 0.7 of the time of package net. Where others want
// that CPU too, a yield may lose a time slice. An end whose yields fail, or have lost more time
// than they gained, parks its next waits, up to four thousand. A negative d excludes yields, too.
//
// On Linux a thread whose spin failed lets those run that wait for its CPU, since the peer may be
// one of them. If the answer is there then, the thread leaves that CPU for a moment:
// sched_setaffinity(2), which is then undone. That happens only in a process that may run on every
// CPU, and less and less often if it does not help. In a sandbox that ends the process for this
// call, use a negative d. An Accept lets others run after 10 µs of a spin, too, if a client may not
// be served yet.
//
// Windows does not spin. There d is how long a read that waits keeps its thread
// before it parks, by default at most 2 ms, and only while such waits succeed.
func (c *endpoint) SetSpin(d time.Duration) { c.end().setSpin(d) }

// Peer returns who is at the other end, as the system recorded it: see the type
// [Peer]. Where the system tells nothing (AIX, Solaris) the error matches
// [errors.ErrUnsupported].
func (c *endpoint) Peer() (Peer, error) {
	p, err := c.end().peer()
	return p, c.failed("peer", err)
}

// WaitPeer waits until the process at the other end has ended, and then returns nil. If
// ctx ends first, the error is as with [Dialer.DialContext]. A process that only closes
// its end has not ended. Whether its parent has waited for it does not matter, except
// where the table below says so. The process is that of [Conn.Peer]: the one that made the
// other end, even if that end was passed on.
//
// Close does not end the wait, so a caller can tell the process to end by closing the
// connection. On a connection that is closed already the error matches [net.ErrClosed].
//
// No thread is held. Each wait needs one descriptor or handle:
//
//	Linux, Android      a pidfd in the poller; before Linux 5.3 the process is looked
//	                    for up to 50 times a second
//	Windows             a wait of the system's thread pool (RegisterWaitForSingleObject),
//	                    one thread of which serves up to 63 of them
//	BSD, macOS          kqueue(2), EVFILT_PROC, asked up to 50 times a second
//	every other Unix    the process is looked for, up to 50 times a second, until its
//	                    parent has waited for it
//
// While the process lives WaitPeer does not return nil, unless the system hides the
// process from this one (security.bsd.see_other_uids of FreeBSD). Only Linux 6.5 and
// later and Windows know the process itself. On the other systems WaitPeer goes by the
// number: if the process ended before WaitPeer was called, and its number was given to
// another process by then, WaitPeer waits for that one.
//
// Where the process is not known the error matches [errors.ErrUnsupported]: on DragonFly,
// AIX and Solaris, on macOS when the other end is closed, before Linux 6.5 for a process
// of a PID namespace that this one cannot see, and for a process on another machine. If
// Windows does not let this process wait for that one the error matches
// [os.ErrPermission].
func (c *endpoint) WaitPeer(ctx context.Context) error {
	return c.failed("wait", c.end().waitPeer(ctx))
}

// errProcessEnded says that the process to wait for has ended already.
var errProcessEnded = &ruleError{what: "the process of the peer has ended"}

// SyscallConn gives access to the descriptor or handle, for what this package
// does not wrap. It must not be closed nor made blocking.
func (c *endpoint) SyscallConn() (syscall.RawConn, error) {
	if c.fd == nil {
		return nil, c.failed("raw", nil)
	}
	return c.fd.rawConn()
}

// File returns a duplicate of the descriptor or handle as an [os.File], to hand over to
// another process. Closing one does not affect the other, but the connection stays open
// until both are closed.
//
// On Windows, File is a use of c, after which c cannot be given to a child: see
// [Inherit]. The os.File is not the first of its pipe end in this process there, and
// therefore has no deadlines; a Conn made of it by [FileConn] has them. Who gets the handle
// of an end that this process uses can end this process. The Close of one
// of the two may end a call that is under way on the other in this process
// (ERROR_OPERATION_ABORTED), but not the reads of a Conn.
//
// On Unix the duplicate is nonblocking, as c is: the two share that mode. Many programs
// do not expect that of their standard input and fail with EAGAIN. For them there is
// BlockingFile, which gives c away. If the other process makes its duplicate blocking, c
// still works.
func (c *endpoint) File() (*os.File, error) {
	f, err := c.end().dupFile(c.local.String() + "->" + c.remote.String())
	return f, c.failed("file", err)
}

// FileConn returns a connection over a duplicate of f, which must be a connected
// stream socket of the local family (AF_UNIX), on Windows a connected pipe
// handle opened for overlapped I/O. Everything else is refused. f stays the
// caller's to close, whatever the result; on Unix it becomes nonblocking, as the
// two share that mode.
//
// On Windows each write at the client's end of a pipe may lend the server the rights of the
// process that writes. Who opened that end has chosen which rights (the flags of CreateFile
// that begin with SECURITY_), and the handle does not tell. So do not write to a client's
// end that comes from a process which must not act in the name of this one, nor send files
// there. A read lends nothing, and neither does a write at the server's end.
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
	carrier messageCarrier
}

// A messageCarrier carries whole messages: the descriptor itself where the system
// keeps their boundaries, else a framing over it.
type messageCarrier interface {
	send(p []byte) error
	recv(p []byte) (int, error)
	recvAppend(dst []byte) ([]byte, error)

	// sendWithFiles sends one message and the files, recvWithFiles receives both;
	// recvFiles receives files alone, and leaves data for the next receive.
	sendWithFiles(p []byte, files []*os.File) error
	recvWithFiles(p []byte, limit int) (int, []*os.File, error)
	recvFiles(limit int) ([]*os.File, error)

	maxMessage() (int, error) // in bytes
	close() error
}

// messages returns the carrier: see end.
func (c *MsgConn) messages() messageCarrier {
	if c.carrier == nil {
		return noFD
	}
	return c.carrier
}

// framesMessages is a variable so that tests run the framing on every system: internal/kit sets
// it by go:linkname. newMsgConn reads it, once for each connection.
var framesMessages = framedHere

func newMsgConn(e endpoint) *MsgConn {
	if framesMessages {
		return &MsgConn{e, &framing{fd: e.fd}}
	}
	return &MsgConn{e, e.fd}
}

// ListenMsg opens a server for messages: see [Listen].
func ListenMsg(addr Addr) (*MsgListener, error) { return ListenConfig{}.ListenMsg(addr) }

// ListenMsg opens a server for messages: see [ListenConfig.Listen].
func (lc ListenConfig) ListenMsg(addr Addr) (*MsgListener, error) {
	l := new(MsgListener)
	return opened(l, lc.serve(&l.server, addr, messages))
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

// FileMsgConn returns a connection for messages over a duplicate of f, which must be
// a connected socket of type SOCK_SEQPACKET (SOCK_STREAM where messages are framed), on
// Windows the handle of a pipe that reads messages: see [FileConn], also for what a write
// to the pipe of another process may do there.
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
	fd, err := serverOf(l).accept()
	if err != nil {
		return nil, err
	}
	return newMsgConn(endpoint{fd: fd, local: l.addr}), nil
}

// Conns returns an iterator over the clients, which ends at Close: see
// [Listener.Conns].
func (l *MsgListener) Conns() iter.Seq2[*MsgConn, error] { return untilClosed(l.Accept) }

// SetAccess sets which clients Accept returns from now on: see [Listener.SetAccess].
func (l *MsgListener) SetAccess(access Access, check func(Peer) error) error {
	return serverOf(l).setAccess(access, check)
}

// Close stops listening: see [Listener.Close].
func (l *MsgListener) Close() error { return serverOf(l).close() }

// SetDeadline sets the time after which Accept fails: see [Listener.SetDeadline].
func (l *MsgListener) SetDeadline(t time.Time) error { return serverOf(l).setDeadline(t) }

// SyscallConn gives access to the descriptor or handle: see [Listener.SyscallConn].
func (l *MsgListener) SyscallConn() (syscall.RawConn, error) { return serverOf(l).rawConn() }

// Close closes the connection: see [Conn.Close].
func (c *MsgConn) Close() error { return c.failed("close", c.messages().close()) }

// Native reports whether the system itself keeps the boundaries of messages, so
// that the peer need not use this package.
func (c *MsgConn) Native() bool {
	_, framed := c.messages().(*framing)
	return !framed
}

// MaxMessage returns the longest message that Send takes now, in bytes. On Unix it
// depends on the send buffer, and so on [Conn.SetWriteBuffer]: by default it is about 208
// KiB on Linux (net.core.wmem_default less 32 bytes, and never more than 1024 pages), 8
// KiB on FreeBSD (64 KiB from FreeBSD 15 on), 32 KiB on OpenBSD, 56 KiB on DragonFly and
// 4 KiB on NetBSD. It is 1 GiB on Windows, and 16 MiB where messages are not native.
// Messages that are in the queue already do not reduce it. Once c is closed it is 0.
func (c *MsgConn) MaxMessage() int {
	n, err := c.messages().maxMessage()
	if err != nil {
		return 0
	}
	return n
}

// Send sends p as one message, whole or not at all, and waits while the peer's queue is
// full. A message longer than [MsgConn.MaxMessage] is too long: the error matches
// [ErrMsgTooLong]. Every system takes 4 KiB by default. FreeBSD 15, OpenBSD and DragonFly
// cannot send an empty message; there the error matches [errors.ErrUnsupported]. After
// the peer has closed its end it matches [syscall.EPIPE].
func (c *MsgConn) Send(p []byte) error { return c.failed("send", c.messages().send(p)) }

// Recv receives one message into p, waits until there is one, and returns its length. A
// message that is longer than p fills it; the rest is dropped, and the error matches
// [ErrMsgTooLong]. For an empty message Recv returns 0 and no error. [io.EOF] means that
// the peer has closed its end and all its messages were received. On Windows, Recv may
// also return io.EOF in the place of an empty message: if it waited for that message and
// the peer's Close followed at once.
func (c *MsgConn) Recv(p []byte) (int, error) {
	n, err := c.messages().recv(p)
	return n, c.failed("recv", err)
}

// RecvAppend receives one message of any length that may be sent, appends it to dst, and
// returns the extended slice. It does not allocate while the message fits the capacity
// of dst. On an error it returns dst as it was. On Windows another program may send more than
// 1 GiB as one message: it is dropped, and the error matches [ErrMsgTooLong].
func (c *MsgConn) RecvAppend(dst []byte) ([]byte, error) {
	p, err := c.messages().recvAppend(dst)
	return p, c.failed("recv", err)
}

// SendWithFiles sends p as one message, as [MsgConn.Send] does, together with the
// open files, at most 253 of them. RecvWithFiles receives both. On Unix the
// descriptors travel with the message as SCM_RIGHTS (unix(7)), which is what
// socket.send_fds of Python sends, and a plain receive gets p and no files. On
// Windows a plain receive gets the record of the files in front of p. See
// [Conn.SendFiles] for the rules of files.
func (c *MsgConn) SendWithFiles(p []byte, files ...*os.File) error {
	err := checkFiles(len(files), 0)
	if err == nil {
		err = c.messages().sendWithFiles(p, files)
	}
	return c.failed("send", err)
}

// RecvWithFiles receives one message into p, as [MsgConn.Recv] does, and the files that
// were sent with it, at most max of them (0 to 253). For a message that was sent without
// files, it returns none. No child of this process inherits the files. On an error no
// file is returned. If there are more than max files, or the message is longer than p,
// all files are closed, the error matches [ErrMsgTooLong], and n tells how much of p was
// filled.
//
// On Windows a record that cannot be believed (see [Conn.RecvFiles]) is received as data:
// as a message without files. If the record can be believed but the files are gone, the
// error matches [ErrUntrusted], and n tells how much of p was filled.
func (c *MsgConn) RecvWithFiles(p []byte, max int) (n int, files []*os.File, err error) {
	if err = checkFiles(max, 0); err == nil {
		n, files, err = c.messages().recvWithFiles(p, max)
	}
	return n, files, c.failed("recv", err)
}

// A messageSource is where a messageReader gets messages from, in one or in several
// parts.
type messageSource interface {
	// nextPart waits for some of the next message, receives it into p, which has
	// room for a byte at least, and reports whether the message ends there.
	// [io.EOF] means that no message follows, ErrMsgTooLong that p is full and the
	// source has dropped the rest.
	nextPart(p []byte) (n int, ends bool, err error)

	// nextRoom returns how much room nextPart should be given. have is how many bytes
	// of the message were received already. nextRoom may wait for the message, and
	// look at it in the spare memory. An error that matches ErrMsgTooLong means that no
	// room is to be made for the message, and the source has dropped it.
	nextRoom(have int, spare []byte) (int, error)
}

// errWithdrawn says that the sender has taken back a message, or what was not read of it,
// which only Windows lets it do. From nextPart it means that there is no rest of the message.
var errWithdrawn = errors.New("withdrawn")

// A messageReader makes whole messages of what a messageSource gives. An error in
// the middle of a message loses nothing: the next receive goes on from there, unless the
// source says that the rest is gone. It is guarded by what guards the reading side of
// the source.
type messageReader struct {
	ahead []byte // was received before its reader came: data, or the first part of a message
	whole bool   // ahead is a whole message, which may be empty
	skip  bool   // what comes next is the rest of a message, to be dropped
}

// hasAhead reports whether there are bytes for the next read, holds whether there
// is anything, takeAhead takes some of them.
func (r *messageReader) hasAhead() bool { return len(r.ahead) > 0 }
func (r *messageReader) holds() bool    { return r.whole || len(r.ahead) > 0 }

func (r *messageReader) takeAhead(p []byte) int {
	n := copy(p, r.ahead)
	if r.ahead = r.ahead[n:]; len(r.ahead) == 0 {
		r.ahead = nil
	}
	return n
}

// keep gives p to the next receive.
func (r *messageReader) keep(p []byte, whole bool) {
	r.ahead, r.whole = append([]byte(nil), p...), whole
}

// recv receives one message into p.
func (r *messageReader) recv(src messageSource, p []byte) (n int, err error) {
	if r.whole {
		if n = copy(p, r.ahead); n < len(r.ahead) {
			err = ErrMsgTooLong
		}
		r.ahead, r.whole = nil, false
		return n, err
	}
	if err := r.skipRest(src); err != nil {
		return 0, err
	}
	room := p
	if len(p) == 0 {
		room = make([]byte, 1) // without room nothing is learned
	}
	n, ends := copy(room, r.ahead), false
	for n < len(room) && !ends && err == nil {
		var m int
		m, ends, err = src.nextPart(room[n:])
		n += m
	}
	if err != nil && err != ErrMsgTooLong {
		return 0, r.interrupted(room[:n], err)
	}
	r.ahead, r.skip = nil, !ends
	if n > len(p) || !ends {
		err = ErrMsgTooLong
	}
	return min(n, len(p)), err
}

// recvAppend receives one message of any length behind dst.
func (r *messageReader) recvAppend(src messageSource, dst []byte) ([]byte, error) {
	if r.whole {
		dst = append(dst, r.ahead...)
		r.ahead, r.whole = nil, false
		return dst, nil
	}
	if err := r.skipRest(src); err != nil {
		return dst, err
	}
	p := append(dst, r.ahead...)
	for ends := false; !ends; {
		n, err := src.nextRoom(len(p)-len(dst), p[len(p):cap(p)])
		if err == nil {
			p = withRoom(p, max(n, 1))
			n, ends, err = src.nextPart(p[len(p):cap(p)])
		}
		if err != nil {
			return dst, r.interrupted(p[len(dst):], err)
		}
		p = p[:len(p)+n]
	}
	r.ahead = nil
	return p, nil
}

// interrupted keeps the part of a message that came before the error for the next
// receive, if the rest can still come, and returns the error to report.
func (r *messageReader) interrupted(part []byte, err error) error {
	if err == errWithdrawn || errors.Is(err, ErrMsgTooLong) {
		part = nil
	}
	r.keep(part, false)
	if len(part) > 0 {
		err = within(err)
	}
	return err
}

// skipRest receives the rest of a message that was too long for its receiver.
func (r *messageReader) skipRest(src messageSource) error {
	if !r.skip {
		return nil
	}
	rest := make([]byte, 1<<10) // most that are too long are so by little
	for {
		_, ends, err := src.nextPart(rest)
		if err != nil && err != errWithdrawn {
			return within(err)
		}
		if r.skip = !ends && err == nil; !r.skip {
			return nil
		}
		if len(rest) < 64<<10 {
			rest = make([]byte, 8*len(rest))
		}
	}
}

// within is the error of a receive in the middle of a message.
func within(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// roomAtLeast is the room in bytes that a message of unknown length is given at first.
const roomAtLeast = 512

// withRoom returns p with room for n bytes behind it.
func withRoom(p []byte, n int) []byte {
	if cap(p)-len(p) >= n {
		return p
	}
	return append(p, make([]byte, n)...)[:len(p)]
}

// A framing carries messages over a stream, each behind its length.
type framing struct {
	fd *fd

	sending sync.Mutex // one message at a time; guards what follows
	header  [frameHeader]byte
	both    net.Buffers // header and message, for one write
	room    [2][]byte   // what both is made of
	torn    error       // why the stream ends within a message: nothing can follow

	receiving sync.Mutex // one message at a time; guards what follows
	in        messageReader
	start     [frameHeader]byte
	got       int        // bytes of start that were read
	sized     bool       // left is known
	left      int        // bytes of the message that were not read
	files     []*os.File // that came with start, or before it
	filesErr  error      // what was wrong with them
}

// frameHeader is the length of the prefix; frameMax the longest message, so that
// neither a mistake nor malice makes the other side wait for more.
const (
	frameHeader = 4
	frameMax    = 16 << 20
)

func (f *framing) send(p []byte) error {
	if err := checkFrame(p); err != nil {
		return err
	}
	f.sending.Lock()
	defer f.sending.Unlock()
	if err := f.usable(); err != nil {
		return err
	}
	f.header = frameOf(len(p))
	f.room = [2][]byte{f.header[:], p}
	f.both = f.room[:]
	n, err := f.fd.writeBuffers(&f.both)
	f.room = [2][]byte{}
	if err != nil && n > 0 && err != net.ErrClosed {
		// The peer has a part. It must not take the next message for the rest.
		f.torn = cutOff(err)
		f.fd.closeWrite()
	}
	return err
}

func (f *framing) maxMessage() (int, error) {
	_, err := f.fd.maxMessage() // an error once it is closed
	return frameMax, err
}

func checkFrame(p []byte) error {
	if len(p) > frameMax {
		return &ruleError{"the message is " + strconv.Itoa(len(p)) + " bytes long, the limit is " + strconv.Itoa(frameMax), ErrMsgTooLong}
	}
	return nil
}

// cutOff is the error of a send after one that ended within its message.
func cutOff(err error) error {
	return &classified{&ruleError{what: "an earlier message was cut off: " + err.Error()}, syscall.EPIPE}
}

// usable returns why nothing can be sent any more, or nil.
func (f *framing) usable() error {
	if f.torn != nil && f.fd.closeWrite() == net.ErrClosed {
		return net.ErrClosed
	}
	return f.torn
}

func frameOf(n int) [frameHeader]byte {
	return [frameHeader]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// nextPart and nextRoom are the messageSource that a framing is for f.in.
func (f *framing) nextPart(p []byte) (n int, ends bool, err error) {
	if err := f.readStart(); err != nil {
		return 0, false, err
	}
	if f.left > 0 {
		if n, err = f.fd.read(p[:min(len(p), f.left)]); err != nil {
			return 0, false, within(err)
		}
		f.left -= n
	}
	if f.left > 0 {
		return n, false, nil
	}
	f.got, f.sized = 0, false
	f.forget(f.files) // files that came with the message, and that nobody asked for
	return n, true, nil
}

// nextRoom goes by what has arrived, not by what the length promises.
func (f *framing) nextRoom(have int, _ []byte) (int, error) {
	if err := f.readStart(); err != nil {
		return 0, err
	}
	return min(f.left, max(roomAtLeast, have)), nil
}

// readStart reads the length of the next message, if that is not read yet. What was
// read before an error is kept for the next call.
func (f *framing) readStart() error {
	if f.sized {
		return nil
	}
	for f.got < frameHeader {
		n, err := f.fd.read(f.start[f.got:])
		if err != nil {
			if f.got > 0 {
				err = within(err)
			}
			return err
		}
		f.got += n
	}
	size := uint32(f.start[0])<<24 | uint32(f.start[1])<<16 | uint32(f.start[2])<<8 | uint32(f.start[3])
	if size > frameMax {
		return &ruleError{what: "the length of the next message is malformed: " + strconv.FormatUint(uint64(size), 10) +
			" bytes, the limit is " + strconv.Itoa(frameMax)}
	}
	f.left, f.sized = int(size), true
	return nil
}

func (f *framing) recv(p []byte) (int, error) {
	f.receiving.Lock()
	defer f.receiving.Unlock()
	if len(p) == 0 && !f.in.holds() { // the length alone tells that it does not fit
		if err := f.in.skipRest(f); err != nil {
			return 0, err
		}
		if err := f.readStart(); err != nil {
			return 0, err
		}
		if f.left > 0 {
			f.in.skip = true
			return 0, ErrMsgTooLong
		}
	}
	return f.in.recv(f, p)
}

func (f *framing) recvAppend(dst []byte) ([]byte, error) {
	f.receiving.Lock()
	defer f.receiving.Unlock()
	return f.in.recvAppend(f, dst)
}

// sendWithFiles sends the files with a frame. They go with its first byte.
func (f *framing) sendWithFiles(p []byte, files []*os.File) error {
	if len(files) == 0 {
		return f.send(p)
	}
	if err := checkFrame(p); err != nil {
		return err
	}
	f.sending.Lock()
	defer f.sending.Unlock()
	if err := f.usable(); err != nil {
		return err
	}
	length := frameOf(len(p))
	sent, err := f.fd.sendRights(append(length[:], p...), files)
	if err != nil && sent > 0 && err != net.ErrClosed {
		f.torn = cutOff(err) // as in send
		f.fd.closeWrite()
	}
	return err
}

func (f *framing) recvFiles(limit int) ([]*os.File, error) {
	f.receiving.Lock()
	defer f.receiving.Unlock()
	if err := f.takeFiles(limit); err != nil {
		return nil, err
	}
	if f.in.holds() || f.files == nil && f.filesErr == nil {
		return nil, ErrNoFiles
	}
	err := f.readStart()
	if err == nil && f.left == len(zeroByte) {
		err = f.readZero()
	}
	if err != nil {
		if within(err) == io.ErrUnexpectedEOF { // there is no rest of the frame
			f.forget(f.files)
			f.filesErr = io.ErrUnexpectedEOF
		}
		return nil, within(err)
	}
	return f.giveFiles(limit)
}

// giveFiles returns the files that came with start, and forgets them. An earlier call
// that was interrupted may have asked for more.
func (f *framing) giveFiles(limit int) ([]*os.File, error) {
	files, err := f.files, f.filesErr
	f.files, f.filesErr = nil, nil
	if e := checkReceived(len(files), limit); e != nil {
		discardFiles(files)
		return nil, e
	}
	return files, err
}

// readZero reads the byte that files travel with. Any other byte is a message, which the
// next receive gets.
func (f *framing) readZero() error {
	var b [1]byte
	if _, err := f.fd.read(b[:]); err != nil {
		return err
	}
	f.got, f.sized = 0, false
	if b != zeroByte {
		f.in.keep(b[:], true)
	}
	return nil
}

func (f *framing) recvWithFiles(p []byte, limit int) (int, []*os.File, error) {
	f.receiving.Lock()
	defer f.receiving.Unlock()
	if err := f.takeFiles(limit); err != nil {
		return 0, nil, err
	}
	if f.in.whole { // recvFiles kept it, and has returned its files
		n, err := f.in.recv(f, p)
		return n, nil, err
	}
	if err := f.readStart(); err != nil {
		return 0, nil, err
	}
	files, filesErr := f.giveFiles(limit) // before nextPart closes them at the end of the message
	n, err := f.in.recv(f, p)
	switch {
	case err == nil && filesErr == nil:
		return n, files, nil
	case err == nil:
		err = filesErr
	case err != ErrMsgTooLong: // the message is not complete, and its files wait for it
		f.files, f.filesErr = files, filesErr
		return n, nil, err
	}
	discardFiles(files)
	return n, nil, err
}

// takeFiles begins to receive a message, and keeps the files that come with its first
// byte, at most limit. Some kernels deliver files without a byte: those that come before
// the first byte belong to the message, too.
func (f *framing) takeFiles(limit int) error {
	if err := f.in.skipRest(f); err != nil || f.in.holds() {
		return err
	}
	for f.got == 0 {
		n, files, err := f.fd.recvRights(f.start[:], max(limit-len(f.files), 0))
		if n == 0 && err != nil {
			return err
		}
		if err != nil { // all or none
			discardFiles(f.files)
			f.files = nil
		}
		f.got, f.files, f.filesErr = n, append(f.files, files...), err
	}
	return nil
}

// forget closes the files given, and clears files and filesErr.
func (f *framing) forget(files []*os.File) {
	discardFiles(files)
	f.files, f.filesErr = nil, nil
}

// close closes the descriptor, and then the files of a receive that did not get to the
// end. Once the descriptor is closed every receive fails, and lets the lock go; but one that closes
// files itself may take as long as the peer likes.
func (f *framing) close() error {
	err := f.fd.close()
	if f.receiving.TryLock() {
		f.release()
	} else {
		go func() { f.receiving.Lock(); f.release() }()
	}
	return err
}

// release closes the files of a receive that did not get to the end, and gives the lock back.
func (f *framing) release() {
	defer f.receiving.Unlock()
	releaseFiles(f.files)
	f.files, f.filesErr = nil, nil
}

// ---------------------------------------------------------------------------
// Files over a connection

// maxFiles is how many files go in one message: SCM_MAX_FD of Linux. OpenBSD takes
// fewer: see filesMax.
const maxFiles = 253

// SendFiles gives the peer the open files, 1 to 253 of them (127 on OpenBSD), which it
// receives with one RecvFiles. More are refused before anything is sent. Data that Write
// sends is not changed. The files still belong to the caller, who closes them.
//
// On Unix the descriptors travel as SCM_RIGHTS with one zero byte (unix(7)), on a
// MsgConn with a message of one zero byte; a peer that reads instead sees that
// byte and gets no files. macOS may lose a file that its sender closes before it
// is received, so there the sender should wait for an answer. On Linux the peer may refuse
// files ([Conn.RefuseFiles]); the error matches [os.ErrPermission] then.
//
// On Windows the handles are duplicated into the process that opened the other end. A
// short record tells that process of them, on a MsgConn as one message; a peer that reads
// instead sees the record. If the last receive of the peer was a RecvFiles or
// RecvWithFiles, its Close closes the handles that the next one would have received. Others
// that the peer never receives stay open until that process ends.
//
// Who gets a file that was opened for overlapped I/O on Windows, and that this process uses
// asynchronously (an os.File with deadlines, what File returns of a used end), can end this
// process: the operations of others on it are reported to the runtime too. Send such a file
// only to who is trusted with that.
//
// In two cases this process holds the duplicates itself, and they are lost if it ends
// before they are received: if this process may not open that one, or if another process
// gave it its end, unless that is the second end of a Pair. If neither process may open the
// other, the error matches [os.ErrPermission]. To another machine it matches
// [errors.ErrUnsupported].
//
// If a file is closed already, the error matches [os.ErrClosed] and none is sent.
func (c *Conn) SendFiles(files ...*os.File) error { return c.sendFiles(c.end(), files) }

// SendFiles gives the peer the open files: see [Conn.SendFiles].
func (c *MsgConn) SendFiles(files ...*os.File) error { return c.sendFiles(c.messages(), files) }

func (c *endpoint) sendFiles(by messageCarrier, files []*os.File) error {
	err := checkFiles(len(files), 1)
	if err == nil {
		err = by.sendWithFiles(zeroByte[:], files)
	}
	return c.failed("sendfiles", err)
}

// RecvFiles receives the files of one SendFiles, at most max of them (1 to 253), in the
// order in which they were given, and waits until there are some. No child of this
// process inherits them. A file that was nonblocking with its sender is nonblocking here.
//
// If the peer sent more files than max, or more than this process has free descriptors
// for, all are closed and the error matches [ErrMsgTooLong]. For what is no socket or pipe Linux
// takes one more, until the old one is closed. If the peer sent data instead, the error matches
// [ErrNoFiles], and the next read gets the data. [io.EOF] means that the peer has closed its end.
//
// On Windows a nonblocking file is one opened for overlapped I/O. It joins no completion
// port of this process, by which its sender could end this process, and so it has no
// deadlines here. What [FileConn], [FileReader] and [FileWriter] make of a pipe has them,
// and holds a thread while it waits. RecvFiles also waits while
// another process is in a read of the file that is not overlapped. [os.NewFile] must find
// out of which kind a file is, and Windows tells nobody during such a read. That wait
// ends at the deadline too; the next RecvFiles then gets the files.
//
// On Windows the record that files are received by is made of plain bytes. It is believed
// only if its sender has the right to do by itself what the record asks for. Otherwise it
// is data, and the error matches both ErrNoFiles and [ErrUntrusted].
func (c *Conn) RecvFiles(max int) ([]*os.File, error) { return c.recvFiles(c.end(), max) }

// RecvFiles receives the files of one SendFiles: see [Conn.RecvFiles].
func (c *MsgConn) RecvFiles(max int) ([]*os.File, error) { return c.recvFiles(c.messages(), max) }

func (c *endpoint) recvFiles(by messageCarrier, limit int) ([]*os.File, error) {
	err := checkFiles(limit, 1)
	var files []*os.File
	if err == nil {
		files, err = by.recvFiles(limit)
	}
	return files, c.failed("recvfiles", err)
}

// zeroByte is the data that files travel with.
var zeroByte [1]byte

// checkFiles checks a number of files to send, or the most to receive.
func checkFiles(n, least int) error {
	if n < least || n > maxFiles {
		return configError("the number of files", strconv.Itoa(n), strconv.Itoa(least)+" to "+strconv.Itoa(maxFiles))
	}
	return nil
}

// checkReceived refuses more files than were asked for.
func checkReceived(n, limit int) error {
	if n > limit {
		return excess{n, limit}
	}
	return nil
}

// An excess is the error for more files than were asked for.
type excess struct{ sent, limit int }

func (e excess) Error() string {
	return "the peer sent " + strconv.Itoa(e.sent) + " files, " + strconv.Itoa(e.limit) + " were asked for"
}
func (e excess) Unwrap() error { return ErrMsgTooLong }

// holdFiles returns the descriptors or handles of the files, none of which can be
// closed until release is called. It does not use File.Fd, which on Unix makes a file
// blocking.
func holdFiles[H ~int | ~uintptr](files []*os.File) (sys []H, release func(), err error) {
	held := make([]func(), 0, len(files))
	release = func() {
		for _, r := range held {
			r()
		}
	}
	for i, f := range files {
		if isNoFile(f) {
			err = configError("file "+strconv.Itoa(i), "nil", "open")
		} else {
			var h uintptr
			var r func()
			if h, r, err = holdFile(f); err == nil {
				sys, held = append(sys, H(h)), append(held, r)
			}
		}
		if err != nil {
			release()
			return nil, nil, err
		}
	}
	return sys, release, nil
}

// holdFile returns the descriptor or handle of f, which cannot be closed until release is
// called. A file gives its descriptor for the time of one function alone
// (RawConn.Control), so that function runs as a coroutine, which ends at release.
func holdFile(f *os.File) (sys uintptr, release func(), err error) {
	next, release := iter.Pull(func(yield func(uintptr) bool) {
		err = withFile(f, func(sys uintptr) error { yield(sys); return nil })
	})
	sys, ok := next()
	if !ok {
		return 0, nil, err
	}
	return sys, release, nil
}

// withFile calls do with the descriptor or handle of f, which cannot be closed
// meanwhile.
func withFile(f *os.File, do func(sys uintptr) error) error {
	if isNoFile(f) {
		return errNoFile
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(sys uintptr) { err = do(sys) }); e != nil {
		return &classified{e, os.ErrClosed} // which this error of os does not match
	}
	return err
}

// isNoFile reports whether f is nil or was never opened.
func isNoFile(f *os.File) bool { return f == nil || *f == os.File{} }

var errNoFile = &ruleError{"the file is nil, it must be open", os.ErrInvalid}

// discardFiles closes files that a peer chose and this end has received, as disposeOf does.
func discardFiles(files []*os.File) {
	if len(files) == 0 { // each message that is framed asks for it
		return
	}
	disposeOf(len(files), closeGrace, func(i int) { closeReceived(files[i]) })
}

// releaseFiles closes the files that are left when an end is closed. However many wait already, they are
// closed away from the caller, since Close waits for nobody; they are few.
func releaseFiles(files []*os.File) {
	disposeElsewhere(len(files), closeGrace, func(i int) { closeReceived(files[i]) })
}

// ---------------------------------------------------------------------------
// Unnamed pipes

// Pipe returns the two ends of a pipe: what is written to the one is read from the other.
// Unlike those of [os.Pipe] both have deadlines on every system, and Close wakes the
// calls that wait. On Unix it is pipe(2). On Windows, where the unnamed pipe has no
// asynchronous I/O, it is a named pipe of one instance that nobody else can open.
func Pipe() (*PipeReader, *PipeWriter, error) {
	r, w, err := pipe()
	if err != nil {
		return nil, nil, pipeError("pipe", Addr{}, err)
	}
	return &PipeReader{pipeEnd{fd: r}}, &PipeWriter{pipeEnd{fd: w}}, nil
}

// pipeError adds the operation and the path of the FIFO to err, unless that is nil or
// io.EOF.
func pipeError(op string, addr Addr, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if err == net.ErrClosed {
		err = errPipeClosed
	}
	e := opError(op, Addr{}, addr, err).(*net.OpError)
	e.Net = "pipe"
	return e
}

// errPipeClosed is the error of a pipe end that was closed here. It matches os.ErrClosed
// too, as the error of the ends of os.Pipe does.
var errPipeClosed = &classified{net.ErrClosed, os.ErrClosed}

// A pipeRawConn is the RawConn of a pipe end.
type pipeRawConn struct{ syscall.RawConn }

func (c pipeRawConn) Control(f func(fd uintptr)) error          { return closedPipe(c.RawConn.Control(f)) }
func (c pipeRawConn) Read(f func(fd uintptr) (done bool)) error { return closedPipe(c.RawConn.Read(f)) }
func (c pipeRawConn) Write(f func(fd uintptr) (done bool)) error {
	return closedPipe(c.RawConn.Write(f))
}

func closedPipe(err error) error {
	if err == net.ErrClosed {
		return errPipeClosed
	}
	return err
}

// A pipeEnd is what PipeReader and PipeWriter have in common.
type pipeEnd struct {
	fd     *fd
	addr   Addr // the path of a FIFO
	writer *fd  // a writer of the same FIFO, which keeps reads from ending: FIFOConfig.KeepOpen
}

func (e *pipeEnd) failed(op string, err error) error {
	if e.fd == nil {
		err = syscall.EINVAL
	}
	return pipeError(op, e.addr, err)
}

// end returns the descriptor, as that of a connection does.
func (e *pipeEnd) end() *fd {
	if e.fd == nil {
		return noFD
	}
	return e.fd
}

// Close closes the end. It does not discard what was written: the reader reads
// that and then gets io.EOF. When no reader is left, writes fail with an error
// that matches [syscall.EPIPE]. Calls that wait on this end, every call after Close
// and the second Close return an error that matches [net.ErrClosed] and [os.ErrClosed].
func (e *pipeEnd) Close() error { return e.failed("close", e.close()) }

func (e *pipeEnd) close() error {
	err := e.end().close()
	if err == nil && e.writer != nil {
		err = e.writer.close()
	}
	return err
}

// File returns a duplicate of the descriptor or handle: see [Conn.File]. On Unix it is
// nonblocking; PipeReader.BlockingFile is for programs that do not expect that. On
// Linux the mode is the duplicate's own, where the pipe can be opened anew through
// /proc.
func (e *pipeEnd) File() (*os.File, error) {
	f, err := e.end().dupFile("pipe " + e.addr.String())
	return f, e.failed("file", err)
}

// SyscallConn gives access to the descriptor or handle: see [Conn.SyscallConn].
func (e *pipeEnd) SyscallConn() (syscall.RawConn, error) {
	if e.fd == nil {
		return nil, e.failed("raw", nil)
	}
	raw, err := e.fd.rawConn()
	return pipeRawConn{raw}, e.failed("raw", err)
}

// A PipeReader is the end of a pipe or FIFO that is read. All its methods may be
// called concurrently.
type PipeReader struct{ pipeEnd }

// Read reads up to len(p) bytes, and waits until there is at least one. When
// the last writer has closed its end, Read returns what was written before that
// and then [io.EOF]. The other errors match [net.ErrClosed] and
// [os.ErrDeadlineExceeded].
func (r *PipeReader) Read(p []byte) (int, error) {
	n, err := r.end().read(p)
	return n, r.failed("read", err)
}

// WriteTo copies from the pipe to w until the last writer closes, for [io.Copy].
// On Linux the bytes do not pass through this process where w is a Conn, a pipe
// end or a TCP connection: see splice(2).
func (r *PipeReader) WriteTo(w io.Writer) (int64, error) { return copyOut(w, r, r.end(), r.failed) }

// SetReadDeadline sets the time after which reads fail with an error that matches
// [os.ErrDeadlineExceeded], also those that wait already. The zero time means no
// deadline.
func (r *PipeReader) SetReadDeadline(t time.Time) error {
	return r.failed("set", r.end().setDeadline(t, reading))
}

// A PipeWriter is the end of a pipe or FIFO that is written. All its methods may
// be called concurrently.
type PipeWriter struct{ pipeEnd }

// Write writes all of p, and waits while the pipe is full. A write that fails
// returns how many bytes were written before. When no reader is left the error
// matches [syscall.EPIPE].
func (w *PipeWriter) Write(p []byte) (int, error) {
	n, err := w.end().write(p)
	return n, w.failed("write", err)
}

// ReadFrom copies from r to the pipe until r ends, for [io.Copy]: see
// [Conn.ReadFrom].
func (w *PipeWriter) ReadFrom(r io.Reader) (int64, error) { return copyIn(w, w.end(), r, w.failed) }

// SetWriteDeadline sets the time after which writes fail with an error that matches
// [os.ErrDeadlineExceeded], also those that wait already. The zero time means no
// deadline. On Windows it is not known how much of such a write the reader has got: see
// [Conn.SetWriteDeadline].
func (w *PipeWriter) SetWriteDeadline(t time.Time) error {
	return w.failed("set", w.end().setDeadline(t, writing))
}

// SetSpin sets the longest time that a wait of this end spins before its goroutine
// parks: see [Conn.SetSpin]. It makes no difference to a PipeWriter: a wait to write does
// not spin.
func (e *pipeEnd) SetSpin(d time.Duration) { e.end().setSpin(d) }

// FileReader returns a PipeReader over a duplicate of f, which must be a pipe or
// FIFO (on Windows the handle of a pipe opened for overlapped I/O); anything
// else is refused. f stays the caller's to close, whatever the result. On Unix
// it becomes nonblocking, as the two share that mode; on Linux only if the pipe
// cannot be opened anew through /proc (no /proc, or the pipe is another user's).
func FileReader(f *os.File) (*PipeReader, error) {
	fd, err := adoptPipe(f, reading)
	if err != nil {
		return nil, pipeError("file", Addr{}, err)
	}
	return &PipeReader{pipeEnd{fd: fd}}, nil
}

// FileWriter returns a PipeWriter over a duplicate of f: see [FileReader]. On Windows a write
// to a pipe that another process opened may lend that process rights: see [FileConn].
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
	if fd == noFD { // or what r has would be read and lost
		return 0, failed("readfrom", nil)
	}
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
	if fd == noFD {
		return 0, failed("writeto", nil)
	}
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
// entries name,kind,token separated by ';'. A token says under which descriptor
// number (on Windows, handle value) the child finds the end, and what it is.
const inheritVar = "IPC_INHERIT"

// An Inheritable is an end that a child can be given: a *Conn, *SharedConn, *MsgConn,
// *PipeReader, *PipeWriter, *Listener, *SharedListener or *MsgListener, on Windows also
// a *PipeListener, or a *PipeConn, which the child takes by [InheritedConn].
type Inheritable interface {
	// kindOfEnd returns the kind of the end, as it stands in the variable.
	kindOfEnd() endKind

	// bequeath adds the end to what cmd's process inherits, and returns the token
	// by which the child finds it.
	bequeath(cmd *exec.Cmd) (token string, err error)
}

// An endKind is the kind of an end, as it stands in the variable.
type endKind string

const (
	kindConn         endKind = "conn"
	kindMsgConn      endKind = "msgconn"
	kindReader       endKind = "reader"
	kindWriter       endKind = "writer"
	kindListener     endKind = "listener"
	kindMsgListener  endKind = "msglistener"
	kindPipeListener endKind = "pipelistener" // on Windows
)

func (c *Conn) kindOfEnd() endKind        { return kindOf(c, kindConn) }
func (c *MsgConn) kindOfEnd() endKind     { return kindOf(c, kindMsgConn) }
func (r *PipeReader) kindOfEnd() endKind  { return kindOf(r, kindReader) }
func (w *PipeWriter) kindOfEnd() endKind  { return kindOf(w, kindWriter) }
func (l *Listener) kindOfEnd() endKind    { return kindOf(l, kindListener) }
func (l *MsgListener) kindOfEnd() endKind { return kindOf(l, kindMsgListener) }

// kindOf returns kind, or "" if end is nil.
func kindOf[T any](end *T, kind endKind) endKind {
	if end == nil {
		return ""
	}
	return kind
}

func (c *endpoint) bequeath(cmd *exec.Cmd) (string, error) {
	if c.fd == nil {
		return "", syscall.EINVAL
	}
	return c.fd.bequeath(cmd)
}

func (c *MsgConn) bequeath(cmd *exec.Cmd) (string, error) {
	if err := c.mayGo(); err != nil {
		return "", err
	}
	return c.endpoint.bequeath(cmd)
}

// mayGo refuses to give the connection away if a framing has read a part of what came,
// such as the beginning of a frame: that would be lost. A receive that is under way takes
// what was read.
func (c *MsgConn) mayGo() error {
	f, framed := c.carrier.(*framing)
	if !framed || !f.receiving.TryLock() {
		return nil
	}
	defer f.receiving.Unlock()
	if f.got > 0 || f.in.holds() || f.in.skip {
		return errReadAhead
	}
	return nil
}

// errReadAhead is for an end that cannot be given away.
var errReadAhead = &ruleError{what: "something was read ahead, which would be lost: read it first"}

func (e *pipeEnd) bequeath(cmd *exec.Cmd) (string, error) {
	if e.fd == nil {
		return "", syscall.EINVAL
	}
	return e.fd.bequeath(cmd)
}

func (l *server) bequeath(cmd *exec.Cmd) (string, error) {
	if l.listener == nil {
		return "", syscall.EINVAL
	}
	return l.listener.bequeath(cmd)
}

// inheritError adds the operation to err, and the network of an end of that kind.
func inheritError(kind endKind, err error) error {
	if kind == kindReader || kind == kindWriter {
		return pipeError("inherit", Addr{}, err)
	}
	return opError("inherit", Addr{}, Addr{}, err)
}

// Inherit gives the end to the process that cmd will start. The child asks for it by the
// name, with [InheritedConn] or the function for another kind of end. Inherit is called
// before cmd.Start. It adds to cmd.Env, to cmd.ExtraFiles on Unix and to
// cmd.SysProcAttr.AdditionalInheritedHandles on Windows. The name consists of letters,
// digits, '_', '-' and '.', and each is given once.
//
// The child is told by the environment variable IPC_INHERIT in cmd.Env. If cmd.Env is
// nil, Inherit first fills it with what Start would use (cmd.Environ), so later changes
// must append to cmd.Env. A program that replaces cmd.Env, cmd.ExtraFiles or
// cmd.SysProcAttr, or sets cmd.Dir, does so before Inherit. If it does so afterwards,
// package os/exec has no means to notice it; InheritedConn in the child then fails and
// says that the variable is missing.
//
// The caller closes its copy of the end after Start (not before); only then does the
// other side see the child's exit as the end of the stream. On Windows the end must not
// have been used yet: a handle that this process has bound to its completion port cannot
// be used by another. The caller does not use its copy afterwards either, as the child
// could end this process by it.
//
// A listener may have been used, and both processes may accept clients of it, so that one
// can take over from the other without a moment in which nobody listens. The child's
// listener has no [ListenConfig.Check]. On an abstract name it serves this user and root
// alone, until [Listener.SetAccess] says otherwise. The mode of a socket file and the
// access list of a pipe guard it as before.
//
// On Unix both have one queue of clients. The socket file and its lock belong to all
// processes that have the listener: the last one to Close it removes them, unless
// [ListenConfig.KeepName] was set. A process that ends without Close removes nothing; the
// next Listen then replaces the file. On AIX, illumos and Solaris a lock belongs to one
// process, so that there only the first owner has it.
//
// On Windows each process has its own queue, of as many clients. A client that waits in
// the parent's queue when the parent closes its listener is disconnected: it sees io.EOF,
// or EPIPE when it writes. A client that dials before the child takes its listener waits.
// A *PipeListener with [PipeConfig.MaxInstances] cannot be handed on: the instance that
// the child would need counts as one of them.
func Inherit(cmd *exec.Cmd, name string, end Inheritable) error {
	if cmd == nil || end == nil || end.kindOfEnd() == "" {
		return inheritError("", syscall.EINVAL)
	}
	if err := inherit(cmd, name, end); err != nil {
		return inheritError(end.kindOfEnd(), err)
	}
	return nil
}

func inherit(cmd *exec.Cmd, name string, end Inheritable) error {
	if cmd.Process != nil {
		return configError("the command", "of process "+strconv.Itoa(cmd.Process.Pid), "one that was not started yet")
	}
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
	token, err := end.bequeath(cmd)
	if err != nil {
		return err
	}
	if list != "" {
		list += ";"
	}
	list = inheritVar + "=" + list + name + "," + string(end.kindOfEnd()) + "," + token
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
	kind  endKind
	token string
	found string // what the descriptors were when the program started
	lost  error  // why the end cannot be had
}

// inherited holds the ends that this process was given.
var inherited struct {
	mu   sync.Mutex // guards ends
	told bool       // the variable was set; written by init alone, as is err
	ends map[string]*inheritedEnd
	err  error // what is wrong with the variable
}

// The variable is read when the program starts, before anything can start a
// child: what this process was given is not passed on, neither the ends nor the
// variable that names them.
//
// That is also before the program opens anything. If a descriptor was closed on the way
// here, its number is not open now, or is something else than what the parent gave. Such an
// end is lost, and its number belongs to the rest of the program.
func init() {
	list, ok := os.LookupEnv(inheritVar)
	if !ok {
		return
	}
	os.Unsetenv(inheritVar)
	inherited.told = true
	inherited.ends, inherited.err = parseInherited(list)
	for _, end := range inherited.ends {
		if end.found, end.lost = whatWasPassed(end.token); end.lost == nil {
			keepFromChildren(end.token)
		}
	}
}

// parseInherited reads the value of the variable.
func parseInherited(list string) (map[string]*inheritedEnd, error) {
	ends, taken := map[string]*inheritedEnd{}, map[uintptr]bool{}
	for entry := range strings.SplitSeq(list, ";") {
		if list == "" {
			break
		}
		name, rest, _ := strings.Cut(entry, ",")
		kind, token, ok := strings.Cut(rest, ",")
		descriptors := tokenDescriptors(token)
		ok = ok && validEndName(name) && descriptors != nil && ends[name] == nil
		for _, d := range descriptors {
			ok = ok && !taken[d] // one descriptor has one owner
			taken[d] = true
		}
		if !ok {
			return nil, &ruleError{what: inheritVar + " is malformed at " + strconv.Quote(entry)}
		}
		ends[name] = &inheritedEnd{kind: endKind(kind), token: token}
	}
	return ends, nil
}

// takeInherited takes the end of that name and kind, so that no other call does.
func takeInherited(name string, kind endKind) (*inheritedEnd, error) {
	inherited.mu.Lock()
	defer inherited.mu.Unlock()
	end := inherited.ends[name]
	switch {
	case inherited.err != nil:
		return nil, inherited.err
	case !inherited.told:
		return nil, &ruleError{what: "no end named " + strconv.Quote(name) + " was inherited: the variable " + inheritVar +
			" was not set (Inherit was not called, or cmd.Env was replaced after it)"}
	case end == nil:
		return nil, &ruleError{what: "no end named " + strconv.Quote(name) + " was inherited, or it was taken before"}
	case end.kind != kind:
		return nil, &ruleError{what: "the inherited end " + strconv.Quote(name) + " is a " + string(end.kind) + ", not a " + string(kind)}
	case end.lost != nil:
		return nil, lostEnd(name, "when the program started", end.lost)
	}
	// The descriptor is still this end only if nobody closed it since.
	if found, err := whatIsThere(end.token); err != nil {
		return nil, lostEnd(name, "now", err)
	} else if found != end.found {
		return nil, lostEnd(name, "now", errOtherFile)
	}
	delete(inherited.ends, name)
	return end, nil
}

// errOtherFile is for a descriptor that is not the one that was given.
var errOtherFile = &ruleError{what: "it is another file"}

// lostEnd explains why an inherited end cannot be had.
func lostEnd(name, when string, why error) error {
	return &classified{&ruleError{what: "the descriptor of the inherited end " + strconv.Quote(name) +
		" is not what the parent gave " + when + " (was it closed on the way?): " + why.Error()}, why}
}

// adoptInherited adopts the end of that name and kind. If it cannot be adopted, it can be
// asked for again.
func adoptInherited[T any](name string, kind endKind, adopt func(token string) (T, error)) (T, error) {
	var none T
	end, err := takeInherited(name, kind)
	if err != nil {
		return none, inheritError(kind, err)
	}
	v, err := adopt(end.token)
	if err != nil {
		inherited.mu.Lock()
		inherited.ends[name] = end
		inherited.mu.Unlock()
		return none, inheritError(kind, err)
	}
	return v, nil
}

func inheritedConn(kind connKind) func(token string) (*fd, error) {
	return func(token string) (*fd, error) { return inheritedFD(token, kind, reading|writing) }
}

func inheritedPipe(d direction) func(token string) (*fd, error) {
	return func(token string) (*fd, error) { return inheritedFD(token, streams, d) }
}

// InheritedConn returns the connection that the parent process gave this one under the
// name, with [Inherit]. Each end can be taken once. An end that is not taken stays open,
// but children of this process do not inherit it.
//
// It is an error if the descriptor was closed, before this program started or since. A
// launcher that closes what it does not know does that: sudo and Python's subprocess are
// two. The package remembers what the descriptor was at the start, so it never
// takes what the program opened under the same number.
func InheritedConn(name string) (*Conn, error) {
	fd, err := adoptInherited(name, kindConn, inheritedConn(streams))
	if err != nil {
		return nil, err
	}
	return &Conn{endpoint{fd: fd, local: fd.localAddr()}}, nil
}

// InheritedMsgConn returns the inherited connection: see [InheritedConn].
func InheritedMsgConn(name string) (*MsgConn, error) {
	fd, err := adoptInherited(name, kindMsgConn, inheritedConn(messages))
	if err != nil {
		return nil, err
	}
	return newMsgConn(endpoint{fd: fd, local: fd.localAddr()}), nil
}

// InheritedReader returns the inherited end of a pipe: see [InheritedConn].
func InheritedReader(name string) (*PipeReader, error) {
	fd, err := adoptInherited(name, kindReader, inheritedPipe(reading))
	if err != nil {
		return nil, err
	}
	return &PipeReader{pipeEnd{fd: fd}}, nil
}

// InheritedWriter returns the inherited end of a pipe: see [InheritedConn].
func InheritedWriter(name string) (*PipeWriter, error) {
	fd, err := adoptInherited(name, kindWriter, inheritedPipe(writing))
	if err != nil {
		return nil, err
	}
	return &PipeWriter{pipeEnd{fd: fd}}, nil
}

// InheritedListener returns the inherited listener: see [InheritedConn]. It owns the
// socket file and its lock together with the parent: see [Inherit].
func InheritedListener(name string) (*Listener, error) {
	l := new(Listener)
	return opened(l, inheritServer(name, kindListener, streams, &l.server))
}

// InheritedMsgListener returns the inherited listener for messages: see
// [InheritedListener].
func InheritedMsgListener(name string) (*MsgListener, error) {
	l := new(MsgListener)
	return opened(l, inheritServer(name, kindMsgListener, messages, &l.server))
}

// inheritServer makes l the inherited listener of that name and kind.
func inheritServer(name string, kind endKind, carries connKind, l *server) error {
	sys, err := adoptInherited(name, kind, func(token string) (*listener, error) {
		return inheritedListener(token, carries)
	})
	if err == nil {
		l.adopted(sys)
	}
	return err
}

// ---------------------------------------------------------------------------
// The race detector
//
// The detector does not know that what happens before a write happens before the read
// that returns the bytes. Package syscall tells it so for calls that end at once. The
// functions below tell it so for all calls; they do nothing in a build without the
// detector.

// raceSync is what the detector sees instead of the bytes: an atomic that every
// operation adds to before and reads after its calls.
var raceSync atomic.Int32

func raceRelease() {
	if raceBuild {
		raceSync.Add(1)
	}
}

func raceAcquire() {
	if raceBuild {
		raceSync.Load()
	}
}

// raceBuild reports whether this is a build with -race. The package has no file that only
// such a build takes, so this looks at what only such a build does: sync.Pool drops a
// quarter of what is put into it. If the result is wrong, the race detector reports false
// races, or an atomic is counted for nothing.
var raceBuild = func() bool {
	var pool sync.Pool
	lost := 0
	for range 128 {
		pool.Put(&pool)
		if pool.Get() == nil {
			lost++
		}
	}
	return lost > 8 // 32 are expected; otherwise 0, or 1 if preempted just then
}()

// ---------------------------------------------------------------------------
// Spinning
//
// A wait first retries its call for some microseconds: it spins. That costs CPU time, but
// less than to park the goroutine and to wake a thread for it. So a spin pays if it
// succeeds most of the time: one that fails costs as much as about eight that succeed save.
// A backoff for each direction of each end finds out: where more of them fail, each failed
// spin doubles the number of waits that do not spin, up to four thousand. Once the
// successes have made up for the failures, each one halves it. The first few failures cost
// nothing, since one or two in a hundred waits are long on any machine. If the end stopped
// spinning after one of those, the peer's next wait would be long too, and the two ends would
// keep each other from spinning.
//
// A spin cannot succeed while the peer waits for the very CPU that it spins on. Linux
// brings that about: a write that wakes a sleeping peer queues it behind the writer (a
// synchronous wake-up, see wake_affine of kernel/sched/fair.c), which is right for a
// writer that sleeps next. So after a spin that failed the thread lets those run that wait for
// its CPU. If the answer is there then, the peer was probably one of them, and the thread leaves
// that CPU, where the system lets it: see giveWay and leaveCPU. If that does not help, threads do so
// less and less often. Otherwise the peer is elsewhere, or slow, and to leave could bring both to one
// CPU, or to one that others want. (Shared memory knows whether the peer was asleep, and leaves at
// once, unless it waits for much.)
//
// The first waits on the first connections of a process neither spin nor yield, until one that does
// has succeeded: the process may be a server that is started for many clients at once. If all its
// threads have one CPU, it probably shares it with the peer, and far more waits do not spin.
//
// A server's Accept can spin on the CPU that its own thread needs to serve a client. If such a
// spin takes long, and a client may not be served yet, it gives way before each attempt.
//
// No wait spins after a pause: see paused. The peer sleeps then, and is woken on this very
// CPU, where it can run as soon as this end sleeps, too. Nor does one after two long waits in a
// row, or two that spun in vain for a peer that was elsewhere: the peer is slow, or makes pauses
// itself. Now and then one tries all the same.
//
// A wait that does not spin, after a pause or because spins failed, yields: it lets others have
// its CPU, and tries again when it has it back (sched_yield(2)). If the peer has waited for that
// CPU, it has answered by then, and this end was never put to sleep and woken again. If the
// peer is elsewhere, the yield returns at once, for nothing. If others want the CPU too, a yield
// can take a whole time slice, since the system gives them what this thread has left of its own
// (yield_task_fair of kernel/sched/fair.c). So each direction compares its waits that yield with
// those that park, and yields as long as it has gained by that on the whole: see yielder.
//
// In a stream no wait spins. Its two ends are fastest one after the other on one CPU,
// whose cache still has what the other end wrote, and a spin takes the time that the other
// end needs. The same is true of an answer to much data, or with much, where system calls are cheap:
// see dearCalls. Both ends count what they exchange, so that most of the time they agree. A wait to
// write is always one of a stream; see streaming and inBulk for the others. A writer that parked is
// not woken by each read of its peer: Linux waits until three quarters of what it queued are read
// (unix_writable of net/unix/af_unix.c).
//
// Where a system call takes half a microsecond and more, to park and to wake takes long: about ten
// calls, and two changes of the thread. There a wait for an answer spins whatever was exchanged, and up to
// twice as long. Most of the time both ends find the same, since each measures what a call takes. Where they do not
// (one is in a sandbox, or the time is near the limit), one spins for a peer that parks, until its backoff ends
// that. A stream does not spin even there: its two ends would be a fifth faster with both CPUs free, and half as
// fast with one of them busy.
//
// Where more than two directions for each CPU wait all the time, none spins or yields: see crowd.
// Where one goroutine runs at a time, those of a new direction let the others run first, so that many
// that begin at once are answered at once.

const (
	spinDefault   = 100 * time.Microsecond // about the time of two wake-ups on a slow machine
	dearCall      = 500                    // nanoseconds of a system call that is dear: see dearCalls
	lossWeight    = 8                      // successful spins that make up for a failed one
	debtMax       = 8 * lossWeight         // that many failed spins cost nothing
	skipMin       = 4                      // waits without a spin after one more failed spin; each further one doubles that
	skipMax       = 4096                   // the most that skipMin is doubled to
	skipDoubted   = 256                    // takes the place of skipMin where a spin is likely to fail
	firstWaits    = 32                     // waits that the first directions share, without a spin or a yield
	youngWaits    = 4                      // waits after which a direction goes by its own history
	longWaits     = 2                      // long waits in a row, after which none spins until one was short
	longFirst     = 16                     // waits after which one spins all the same, at first
	longTrial     = 250                    // about so many are between two such waits after that
	longRunOfWins = 16                     // spins that succeeded in a row, after which an end leaves the poller
	longerRuns    = 4                      // how many times that number doubles, once with each such run
	streamMin     = 4 << 10                // bytes read from one wait to the next that are a stream, if nothing was written
	bulkMin       = 48 << 10               // bytes read and written from one wait to the next that are best copied on one CPU
	turnAfter     = crowdShare / 2         // spins and yields after which others run, if one goroutine runs at a time; see crowd
	turnTime      = 5 * time.Millisecond   // after which they run otherwise, shared by those that spin
	attemptMax    = 20 * time.Microsecond  // the most that one attempt counts as spinning; the rest went to others
	yieldsMax     = 4                      // yields of one wait: after the first the system may choose this end once more
	yieldsInARow  = 4096                   // waits that could yield, after which one parks: it tells how long that takes
	yieldsAlone   = 7 * crowdRound / 2     // the same if one goroutine runs at a time: some rounds and a half, so that one has two directions
	sliceLost     = time.Millisecond       // a wait that took so much longer for its yields has lost a time slice
	parkedMax     = 400 * time.Microsecond // a longer wait is one for a peer that is idle or busy, whatever this end does
	parkedWeight  = 8                      // connections without a wait that parked, for which one with such a wait makes up
	unparkedMax   = 8 * parkedWeight       // after so many without, the next ones join the poller when they park
	serveTime     = 10 * time.Microsecond  // after which Accept gives way to those that serve a client
	giveShare     = 4                      // of the time of such a spin, with what it gave away, one part in so many counts
	switchTime    = 2 * time.Microsecond   // a yield that takes so long has let others run
	sliceMost     = 10 * time.Millisecond  // the most that a yield counts as lost: the process may have been stopped
	keepShare     = 64                     // after a yield that lost a time slice, nobody gives way for so many times as long
	leaveMin      = 200 * time.Microsecond // between two times that a thread of the process leaves its CPU
	leaveMax      = 200 * time.Millisecond // the same while that does not help
)

// A backoff is the history of the waits in one direction that could spin. Those that could
// yield have another, in which each spin stands for the yields of a wait. It is guarded by the
// lock of the direction.
type backoff struct {
	waits uint8  // seen so far, up to youngWaits
	runs  uint8  // long runs so far, up to longerRuns
	debt  uint8  // lossWeight for each failed spin, less one for each successful one; below debtMax + lossWeight
	long  uint8  // waits in a row that were long, up to longTrial; for spins alone
	wins  uint16 // spins that succeeded in a row
	skip  uint16 // waits to come that do not spin
	last  uint16 // value of skip after the latest failed spin, halved by each success without a debt
}

// longRun reports, once for each such run, that so many spins in a row have succeeded
// that the end should leave the poller. Each time it asks for more: to leave the poller
// and to come back costs some system calls and allocations, which too few waits would
// share.
func (b *backoff) longRun() bool {
	if b.wins < longRunOfWins<<b.runs {
		return false
	}
	b.wins = 0
	b.runs = min(b.runs+1, longerRuns)
	return true
}

// paused reports whether a wait begins so long after the one before it that the peer's spin
// has failed meanwhile, if its limit is the same.
func paused(gap, limit int64) bool { return gap > limit }

// streaming reports whether a wait for something to read is one of a stream, given how many
// bytes were read and written since the wait before it: if any were written, it is for an
// answer.
func streaming(heard, said int32) bool { return heard >= streamMin && said == 0 }

// inBulk reports whether it is a wait for an answer among much data.
func inBulk(heard, said int32) bool { return heard+said >= bulkMin }

// took takes note of how long a wait was, where a spin may take that limit. One that parked is long
// only if it would be without the time that parking takes. Otherwise two ends that park would keep
// each other from spinning. After some that were long it takes a wait within the limit to tell that
// the next will be short again.
func (b *backoff) took(length, limit int64) {
	switch {
	case length <= limit:
		b.long = 0
	case length > max(limit, int64(parkedMax)), b.long >= longWaits:
		b.wasLong()
	}
}

// wasLong takes note of a wait that is long, such as one that spun in vain though the peer did not
// wait for its CPU: a peer that has to be woken answers sooner.
func (b *backoff) wasLong() {
	switch b.long++; {
	case b.long == longWaits:
		b.long = longTrial - longFirst
	case b.long > longTrial:
		b.long = longWaits + 1
	}
}

// expectsLong reports whether the next wait is likely to be long, too.
func (b *backoff) expectsLong() bool { return b.long >= longWaits && b.long < longTrial }

func (b *backoff) won() {
	b.wins++
	b.skip = 0
	if b.debt > 0 {
		b.debt--
	} else {
		b.last /= 2
	}
}

func (b *backoff) lost() {
	b.wins = 0
	if b.debt < debtMax {
		b.debt += lossWeight
		return
	}
	b.last = min(max(2*b.last, skipMin), skipMax)
	b.skip = b.last
}

// lostMuch is lost for a loss that many successes do not make up for.
func (b *backoff) lostMuch() {
	b.debt, b.last = debtMax, skipMax
	b.lost()
}

func (b *backoff) skipped() {
	b.wins = 0
	b.skip -= min(b.skip, 1)
}

// A yielder is the history of the waits in one direction that do not spin: they yield or they
// park.
type yielder struct {
	backoff
	inARow  uint16   // waits that could yield since one parked
	parked  meanTime // how long those take that park
	balance int16    // what those that yielded have gained by it, in steps of 128 ns, up to 4 ms
}

// turnToPark counts a wait that could yield, and reports whether it should park after so many of
// them in a row.
func (y *yielder) turnToPark(inARow uint16) bool {
	y.inARow++
	return y.inARow > inARow || y.parked == 0 && y.waits == youngWaits
}

// hasParked takes note of a wait that parked at once and took so long. A direction with long
// waits alone never yields.
func (y *yielder) hasParked(took int64) {
	if took > int64(parkedMax) {
		return
	}
	y.inARow = 0
	y.parked.add(took)
}

// expected is how long a wait that yields may take to be no loss: as long as one that
// parks, or hardly longer. Before one has, that is not known.
func (y *yielder) expected() int64 {
	if y.parked == 0 {
		return int64(spinDefault)
	}
	parked := y.parked.get()
	return parked + parked/8
}

// gain adds what a wait gained, in nanoseconds, and reports whether all of them have lost
// nothing. They can lose: a thread that was asleep may take the CPU from the one that wakes it,
// and one that yielded waits until that one sleeps, or until somebody else's time slice is over.
func (y *yielder) gain(ns int64) bool {
	const most = 1<<15 - 1
	y.balance = int16(max(-most, min(int64(y.balance)+ns>>7, most)))
	return y.balance >= 0
}

// startAfresh lets a few waits find out whether it pays, when the next one yields again. One
// end gains by it only if the other yields too.
func (y *yielder) startAfresh() {
	y.balance, y.debt = 0, min(y.debt, debtMax/2)
}

// A meanTime is a running mean of times up to 8 ms, in steps of 128 ns. It is so small since
// each direction has one.
type meanTime uint16

func (m *meanTime) get() int64 { return int64(*m) << 7 }

// add adds a time in nanoseconds. One that is far longer than the others counts as twice their
// mean.
func (m *meanTime) add(ns int64) {
	n, mean := min(ns>>7+1, 1<<16-1), int64(*m)
	if mean == 0 {
		mean = n
	}
	if n = min(n, 2*mean); n > mean {
		mean += (n - mean + 3) / 4 // a mean of one step can grow, too
	} else {
		mean -= (mean - n) / 4
	}
	*m = meanTime(mean)
}

// A spin measures one spin that is under way.
type spin struct {
	last, left int64 // the time of the latest look at the clock; nanoseconds that may still be spent
}

func (s *spin) begin(now, limit int64) { s.last, s.left = now, limit }

// over reports whether the spin has used up its time. It counts its own time, not
// what the system gave to others meanwhile.
func (s *spin) over(now int64) bool {
	s.left -= min(now-s.last, int64(attemptMax))
	s.last = now
	return s.left <= 0
}

// A spinPolicy is what all directions of a process have in common.
type spinPolicy struct {
	cpus     atomic.Int32  // goroutines that run at a time, read from the scheduler now and then; 0 until then
	spinners atomic.Int32  // those that spin now
	asked    atomic.Uint32 // counts the calls of ask
	spins    experience
	yields   experience
	leftAt   atomic.Int64 // when a thread left its CPU last
	leaveGap atomic.Int64 // how long it is until the next time; 0 for leaveMin
	keepTill atomic.Int64 // no thread gives way until then
	turnAt   atomic.Int64 // when a goroutine that spins or yields let others run last
	unparked atomic.Int32 // connections that ended without a wait that parked, up to unparkedMax: see expectsToPark
	crowd    crowd
	losses   lossAccount  // of shared memory
	leave    func()       // moves the calling thread to another CPU, where the system can do that
	yield    func()       // lets the other threads of this CPU run; nil where that is not known to pay
	clock    func() int64 // see now
	callTime atomic.Int64 // nanoseconds of a system call; 0 before timeCalls has measured it
	call     func()       // makes one that does nothing
}

// An experience is what all directions that have hardly waited have in common, of their
// spins or of their yields.
type experience struct {
	young atomic.Uint64 // their backoff, packed; a lost update does no harm
	most  uint16        // waits without a spin that a direction takes over from young, if it is not skipMin
	cold  atomic.Bool   // young says what is likely, since nothing was learned yet
}

// doubt has the first directions try rarely, until a try has succeeded.
func (e *experience) doubt() {
	e.most = skipDoubted
	e.keep(backoff{debt: debtMax, skip: e.most, last: e.most})
	e.cold.Store(true)
}

// hesitate has the first waits of the first directions not try, until a try has succeeded.
// Meanwhile it turns out whether they are a crowd.
func (e *experience) hesitate() {
	e.keep(backoff{skip: firstWaits})
	e.cold.Store(true)
}

// A crowd finds out whether too many directions wait at a time. Then some of them are
// ready at any moment, and a spin, though it succeeds, takes the CPU that they need.
//
// It counts the waits that end, in rounds of crowdRound for each CPU. A direction tells it of
// crowdShare waits at a time, since all of them share its memory, and is counted once in a
// round. If two directions for each CPU wait equally often, each of them ends 16 waits in a
// round, and half of the round is counted. So more than that is counted only if more than two
// directions for each CPU wait. Where they are idle most of the time a round takes long, and
// they are not too many.
//
// A direction is not counted in its first round. Connections that are made one after the
// other, for a few exchanges each, are many directions, and yet only one waits at a time.
//
// A crowd stays for some rounds. Otherwise a peer that has not found it yet, and exchanges some
// messages with one of many before it looks at the others, would make it seem gone. After a round
// that took long it stays for one more: there may have been a pause, and it may be back. A round
// that takes long ends early, so that a few slow ones end a crowd on a machine with many CPUs, too.
//
// When many begin at once the rounds tell it late: one direction spins with success, and the
// others, which are parked, end no wait. So it also counts those that are parked: see begins.
type crowd struct {
	ended   atomic.Uint32 // waits that ended, in steps of crowdShare
	counted atomic.Uint32 // those of this round
	begun   atomic.Int64  // when this round began
	joined  atomic.Uint32 // directions that have waited
	left    atomic.Int32  // rounds for which there still is a crowd
	several atomic.Bool   // the last round told that more than one direction waits

	_      [64]byte        // what follows changes with each wait that parks while there is no crowd
	window atomic.Int64    // the latest window of time in which a wait began, counted from the start of the process
	parked [2]atomic.Int32 // waits that are parked and were counted in that window, or in the one before, by its lowest bit
}

const (
	crowdRound = 32                                  // waits for each CPU
	crowdShare = crowdRound / 4                      // waits of a direction, of which it tells at once
	crowdStays = 16                                  // rounds that a crowd stays after the last that told so
	crowdTime  = 2 * crowdRound * int64(spinDefault) // a round that takes longer is not one of a crowd

	crowdLook = 16 * crowdShare // waits after which a round that takes longer ends early

	crowdWindow = 256 * time.Microsecond // a direction that is parked for longer is no part of a crowd
	crowdParked = 3                      // directions for each CPU; more that have parked just now are a crowd
)

// A turnout is what one direction contributed to a round. It is guarded by the lock of
// the direction.
type turnout struct {
	round uint16 // the lower half of the number of that in which it was counted last, or of its first
	left  uint8  // waits until it tells of them; 0 before the first
}

// add counts a wait that ended, where so many goroutines run at a time. It reports whether
// that was the last wait of a round. A lost update at the turn of a round does no harm.
func (c *crowd) add(t *turnout, cpus uint32, clock func() int64) (last bool) {
	size := crowdRound * cpus
	if t.left == 0 { // those that wait in turn do not tell all at once
		t.left = 1 + uint8(c.joined.Add(1)%crowdShare)
		t.round = uint16(c.ended.Load() / size)
	}
	if t.left--; t.left > 0 {
		return false
	}
	t.left = crowdShare
	n := c.ended.Add(crowdShare)
	if round := uint16((n - 1) / size); t.round != round {
		t.round = round
		c.counted.Add(crowdShare)
	}
	last = n%size == 0
	if !last && (n%crowdLook != 0 || clock()-c.begun.Load() < crowdTime) {
		return false
	}
	now := clock()
	took, counted := now-c.begun.Swap(now), c.counted.Swap(0)
	switch left := c.left.Load(); {
	case took >= crowdTime && left > 1:
		c.left.Store(1) // there may have been a pause
	case took >= crowdTime:
		c.left.Store(0)
	case counted > size/2:
		c.left.Store(crowdStays)
	case left > 0:
		c.left.Store(left - 1)
	}
	c.several.Store(counted > crowdShare)
	return last
}

// begins counts a wait that is about to park, which began at that time, where so many goroutines
// run at a time. The result is for ends. A wait counts for one window or two, so those that are idle
// do not. A lost update at the turn of a window does no harm, since each begins with 0. If one
// goroutine runs at a time, as many are a crowd as if two did: the peer may have a CPU of its own.
func (c *crowd) begins(at int64, cpus int32) (window uint16) {
	w, last := at/int64(crowdWindow), c.window.Load()
	if w <= last {
		w = last // it began earlier, and spun before it parks
	} else if c.window.CompareAndSwap(last, w) {
		c.parked[w%2].Store(0)
		if w-last > 1 {
			c.parked[(w+1)%2].Store(0)
		}
	}
	n := c.parked[w%2].Add(1) + c.parked[(w+1)%2].Load()
	if n > crowdParked*max(cpus, 2) && c.left.Load() == 0 {
		c.begun.Store(at) // the time before counts no more
		c.left.Store(crowdStays)
	}
	return uint16(w)
}

// ends is called when the wait has ended for which begins returned that window, of which this has
// the lower half. One that ends after a multiple of 16.8 s may be taken from the wrong window.
func (c *crowd) ends(window uint16) {
	if uint16(c.window.Load())-window <= 1 {
		c.parked[window%2].Add(-1)
	}
}

// isNow reports whether too many wait now: one of the last rounds told so.
func (c *crowd) isNow() bool { return c.left.Load() > 0 }

// isMoreThanOne reports whether more than one direction waits now: the round before told so, and
// this one is not already longer than one of a crowd.
func (c *crowd) isMoreThanOne(clock func() int64) bool {
	return c.several.Load() && clock()-c.begun.Load() < crowdTime
}

// spinning is the policy of this process. It times getuid(2), since macOS keeps the process id in the process
// (___getpid of xnu's libsyscall).
var spinning = spinPolicy{leave: leaveCPU, yield: yieldCPU, clock: now, call: func() { syscall.Getuid() }}

// oneCPU reports whether all threads of this process share one CPU, and probably with the peer.
// Then a spin is likely to keep the peer from answering.
var oneCPU = runtime.NumCPU() == 1

// crowded reports whether too many directions wait for a spin to pay.
func (p *spinPolicy) crowded() bool { return p.crowd.isNow() }

// allows reports whether the history of the direction lets the next wait spin, or yield.
func (e *experience) allows(b *backoff) bool {
	skip := b.skip
	if b.waits < youngWaits {
		skip = e.youngBackoff().skip
	}
	return skip == 0 && !b.expectsLong()
}

// begin reports whether the caller, whose wait began at that time, may spin, and counts it as a
// spinner then. Spinners leave one CPU free, but one may spin in any case.
func (p *spinPolicy) begin(at int64) bool {
	p.ask()
	p.letOthersRun(at)
	if p.spinners.Add(1) > max(1, p.cpus.Load()-1) {
		p.spinners.Add(-1)
		return false
	}
	return true
}

// ask counts a spin, or a yield that succeeded, and measures now and then.
func (p *spinPolicy) ask() {
	if p.asked.Add(1)%1024 == 1 { // GOMAXPROCS takes a lock
		p.measure()
	}
}

// measure finds out how many goroutines run at a time.
func (p *spinPolicy) measure() { p.cpus.Store(int32(runtime.GOMAXPROCS(0))) }

// dearCalls reports whether system calls take so long here that waits for an answer spin for longer, and also
// in bulk. They do not before timeCalls has measured it.
func (p *spinPolicy) dearCalls() bool { return p.callTime.Load() >= dearCall }

// timeCalls measures once, for good, how long a system call takes. The least of some tells, since others can take
// the CPU meanwhile.
func (p *spinPolicy) timeCalls() {
	if p.callTime.Load() != 0 {
		return
	}
	const calls = 8 // between two looks at the clock, which may be slow or coarse itself
	least := int64(time.Second)
	for range 4 {
		begun := p.clock()
		for range calls {
			p.call()
		}
		least = min(least, (p.clock()-begun)/calls)
	}
	p.callTime.Store(max(least, 1))
}

// alone reports whether one goroutine runs at a time.
func (p *spinPolicy) alone() bool { return p.cpus.Load() == 1 }

// end is called after a spin that begin allowed.
func (p *spinPolicy) end(b *backoff, won bool) {
	p.stop()
	p.spins.tried(b, won)
	if won {
		p.succeeded()
	}
}

// expectsToPark reports whether a connection that was accepted or dialed just now will probably
// park before it ends, as far as those before it tell. To join the poller at once, in vain, costs
// several times less than to join it later.
func (p *spinPolicy) expectsToPark() bool { return p.unparked.Load() < unparkedMax }

// hasEnded takes note of a connection that was accepted or dialed, and whether it has parked. A
// lost update does no harm.
func (p *spinPolicy) hasEnded(parked bool) {
	before := p.unparked.Load()
	after := min(before+1, unparkedMax)
	if parked {
		after = max(before-parkedWeight, 0)
	}
	if after != before {
		p.unparked.Store(after)
	}
}

// yieldsNext reports whether the next wait is likely to yield if it does not spin.
func (p *spinPolicy) yieldsNext(y *yielder) bool {
	return p.yield != nil && p.yields.allows(&y.backoff)
}

// mayYield counts a wait that does not spin, and reports whether it may yield.
func (p *spinPolicy) mayYield(y *yielder) bool {
	if !p.yieldsNext(y) {
		p.yields.skipped(&y.backoff)
		return false
	}
	return !y.turnToPark(p.yieldsUntilPark())
}

// yieldsUntilPark returns after how many waits that yield a direction parks once. If one goroutine
// runs at a time, those that the poller has ready run only if that one parks. So it soon gives way
// where others have waited too, and looks now and then whether they do.
func (p *spinPolicy) yieldsUntilPark() uint16 {
	switch {
	case !p.alone():
		return yieldsInARow
	case p.crowd.isMoreThanOne(p.clock):
		return turnAfter
	default:
		return yieldsAlone
	}
}

// moreYields reports whether a wait may yield once more, after so many yields that took so long,
// where a wait may spin for that limit.
func moreYields(n int, took, limit int64) bool {
	return n < yieldsMax && took < min(limit, int64(spinDefault))
}

// hasYielded is called after the yields of a wait: what came of them, and when they began and ended.
func (p *spinPolicy) hasYielded(y *yielder, won bool, begun, at int64) {
	gain := y.expected() - (at - begun)
	switch {
	case won && y.gain(gain):
		p.yields.tried(&y.backoff, true)
	case won && gain < -int64(sliceLost) && y.waits == youngWaits:
		y.lostMuch()
	default:
		p.yields.tried(&y.backoff, false)
	}
	if y.skip > 0 {
		y.startAfresh()
	}
	if won {
		p.ask()
		p.letOthersRun(at)
	}
}

// stop ends what begin began.
func (p *spinPolicy) stop() { p.spinners.Add(-1) }

// succeeded is called after a spin that did. It was made on the CPU that is right for it.
func (p *spinPolicy) succeeded() {
	if p.leaveGap.Load() != 0 {
		p.leaveGap.Store(0)
	}
}

// letOthersRun lets the other goroutines run now and then, before a spin or after a yield. If one runs
// at a time, one that never parks would give its CPU up after 10 ms only. Otherwise they have CPUs of their
// own, but then the scheduler preempts one that has not let others run for 10 ms (forcePreemptNS of Go's
// runtime/proc.go). Whenever it finds that one in a system call, a thread of its own (sysmon) wakes every
// 20 µs or so for the next milliseconds, to see whether others stay in theirs. If that takes long, as where
// system calls are dear, it takes a seventh of the CPU from each end of a connection that spins.
func (p *spinPolicy) letOthersRun(at int64) {
	if p.alone() {
		if p.asked.Load()%turnAfter == 0 {
			runtime.Gosched()
		}
		return
	}
	last := p.turnAt.Load()
	if at-last >= int64(turnTime)/int64(1+p.spinners.Load()) && p.turnAt.CompareAndSwap(last, at) {
		runtime.Gosched()
	}
}

// giveWay lets the other threads of this CPU run, unless that has lost a time slice lately. It
// reports whether some have that did not take a time slice.
func (p *spinPolicy) giveWay(now int64) bool {
	if p.yield == nil || now < p.keepTill.Load() {
		return false
	}
	p.yield()
	end := p.clock()
	took := min(end-now, int64(sliceMost))
	if took >= int64(sliceLost) {
		p.keepTill.Store(end + keepShare*took)
	}
	return took >= int64(switchTime) && took < int64(sliceLost)
}

// shouldLeave reports whether the caller, whose spin kept the peer from running, should leave its CPU.
func (p *spinPolicy) shouldLeave(now int64) bool {
	last, gap := p.leftAt.Load(), max(p.leaveGap.Load(), int64(leaveMin))
	if now-last < gap || !p.leftAt.CompareAndSwap(last, now) {
		return false
	}
	p.leaveGap.Store(min(2*gap, int64(leaveMax)))
	return true
}

// count counts a wait of that direction, which has ended.
func (p *spinPolicy) count(t *turnout) {
	if p.cpus.Load() == 0 {
		p.measure()
	}
	if p.crowd.add(t, uint32(p.cpus.Load()), p.clock) {
		p.measure()
	}
}

// tried records whether a spin succeeded, skipped that a wait did not spin.
func (e *experience) tried(b *backoff, won bool) {
	if won {
		if e.cold.Load() {
			e.cold.Store(false)
			e.keep(backoff{})
		}
		e.note(b, (*backoff).won)
	} else {
		e.note(b, (*backoff).lost)
	}
}

func (e *experience) skipped(b *backoff) { e.note(b, (*backoff).skipped) }

// note records how a wait went. A direction that has hardly waited goes by what all
// such directions learned, and starts from there. It does not take over how many waits they
// do not spin: they do that together, and it would alone.
func (e *experience) note(b *backoff, what func(*backoff)) {
	if b.waits >= youngWaits {
		what(b)
		return
	}
	before := *b
	*b = e.youngBackoff()
	b.waits, b.wins, b.runs, b.long = before.waits+1, before.wins, before.runs, before.long
	what(b)
	e.keep(*b)
	if b.waits == youngWaits {
		most := max(e.most, skipMin)
		b.skip, b.last = min(b.skip, most), min(b.last, most)
	}
}

func (e *experience) keep(b backoff) {
	e.young.Store(uint64(b.debt)<<32 | uint64(b.skip)<<16 | uint64(b.last))
}

func (e *experience) youngBackoff() backoff {
	v := e.young.Load()
	return backoff{debt: uint8(v >> 32), skip: uint16(v >> 16), last: uint16(v)}
}

// ---------------------------------------------------------------------------
// Closers

// closers runs calls that another process can make sleep for as long as it likes. They
// run in goroutines of their own, so that whoever adds one does not wait for it.
type closers struct {
	waiting atomic.Int32 // the length of queue; read by full without the lock
	mu      sync.Mutex   // guards what follows
	queue   []func()
	running int
}

// The closers of descriptors that a peer sent, of sockets and of pipes, and those that ring a
// peer for the last time: on Windows that is a write that the peer can hold up. Each kind has
// its own, so that calls of one kind that sleep do not delay those of another.
var disposal, socketEnds, pipeEnds, lastRings closers

// disposeOf is disposeElsewhere, unless calls that sleep keep too many descriptors open. Then the
// caller makes the calls itself: that delays what it does for this peer alone.
func disposeOf(n int, grace time.Duration, call func(i int)) {
	if !disposal.holdTooMany() {
		disposeElsewhere(n, grace, call)
		return
	}
	for i := range n {
		call(i)
	}
}

// disposeElsewhere makes call for each of 0 to n-1, each of which closes what a peer sent, and waits no
// longer than the grace, and not at all behind calls that sleep.
func disposeElsewhere(n int, grace time.Duration, call func(i int)) {
	if disposal.full() {
		grace = 0
	}
	disposal.do(n, grace, call)
}

// holdTooMany reports whether the calls that sleep, and those that wait for them, keep a quarter of the
// descriptors that this process may have, each of them one. Peers that come again and again would take
// all of them. While none waits, there are no more than closersMax.
func (c *closers) holdTooMany() bool {
	waiting := int64(c.waiting.Load())
	return waiting > 0 && c.allSleep() && waiting+closersMax >= descriptorLimit()/4
}

// allSleep reports whether a call that is added now waits for others.
func (c *closers) allSleep() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running == closersMax
}

// full reports whether so many calls wait that no more should be added.
func (c *closers) full() bool { return c.waiting.Load() >= closersMax }

// closersMax is how many of the calls run at once. Each one that sleeps holds a
// thread.
const closersMax = 64

// add queues the call, which is made soon.
func (c *closers) add(call func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, call)
	c.waiting.Add(1)
	if c.running < closersMax {
		c.running++
		go c.run()
	}
}

// do makes call for each of 0 to n-1, and waits until all have returned, but no longer
// than grace.
func (c *closers) do(n int, grace time.Duration, call func(i int)) {
	if n == 0 {
		return
	}
	done := make(chan struct{}, n)
	for i := range n {
		c.add(func() { call(i); done <- struct{}{} })
	}
	if grace <= 0 {
		return
	}
	runtime.Gosched() // most have returned after it: then this takes no timer, which can wake a thread
	for ; n > 0 && len(done) > 0; n-- {
		<-done
	}
	if n == 0 {
		return
	}
	over := time.NewTimer(grace)
	defer over.Stop()
	for range n {
		select {
		case <-done:
		case <-over.C:
			return
		}
	}
}

// closeGrace is how long a caller waits for calls that may sleep.
const closeGrace = 100 * time.Millisecond

// closedSoon reports whether the channel is closed within the grace.
func closedSoon(done <-chan struct{}, grace time.Duration) bool {
	select {
	case <-done: // most are: it takes no timer
		return true
	default:
	}
	over := time.NewTimer(grace)
	defer over.Stop()
	select {
	case <-done:
		return true
	case <-over.C:
		return false
	}
}

// run makes calls until there are none left.
func (c *closers) run() {
	for {
		c.mu.Lock()
		if len(c.queue) == 0 {
			c.running--
			c.queue = nil
			c.mu.Unlock()
			return
		}
		call := c.queue[0]
		c.queue[0] = nil // or the array would keep what belongs to it
		c.queue = c.queue[1:]
		c.waiting.Add(-1)
		c.mu.Unlock()
		call()
	}
}

// ---------------------------------------------------------------------------
// What the systems share below this

// callError adds the name of the system call to its error. An error that is not the
// system's (net.ErrClosed, os.ErrDeadlineExceeded) stays as it is.
func callError(call string, err error) error {
	if err == nil { // so it is for every message: this must not cost an allocation
		return nil
	}
	err = errnoOf(err)
	if errno, ok := err.(syscall.Errno); ok {
		return os.NewSyscallError(call, errno)
	}
	return err
}

// A refs counts the calls that use a descriptor or handle. While one does, the number
// must not go to another file, so the last user of a closed descriptor lets it go.
type refs struct {
	n atomic.Int32 // how many, and the bits isClosing and isExclusive
}

// isClosing is the bit of refs.n that is set once, by Close. isExclusive is the bit that
// is set while the only user keeps others out.
const (
	isClosing   = 1 << 30
	isExclusive = 1 << 29
)

// incref counts the caller as a user, unless the descriptor is closed.
func (r *refs) incref() error {
	for {
		n := r.n.Load()
		switch {
		case n&isClosing != 0:
			return net.ErrClosed
		case n&isExclusive != 0:
			runtime.Gosched()
		case r.n.CompareAndSwap(n, n+1):
			return nil
		}
	}
}

// decref ends what incref began, and reports whether that was the last user after
// Close.
func (r *refs) decref() (last bool) { return r.n.Add(-1) == isClosing }

// increfAndClose marks the descriptor closed and counts the caller as a user. It reports
// false if the descriptor was closed already.
func (r *refs) increfAndClose() bool {
	for {
		n := r.n.Load()
		switch {
		case n&isClosing != 0:
			return false
		case n&isExclusive != 0:
			runtime.Gosched()
		case r.n.CompareAndSwap(n, (n|isClosing)+1):
			return true
		}
	}
}

// tryExclusive keeps others from becoming users if the caller is the only one. The calls
// made meanwhile must not block. endExclusive lets others in again.
func (r *refs) tryExclusive() bool { return r.n.CompareAndSwap(1, 1|isExclusive) }
func (r *refs) endExclusive()      { r.n.Store(1) }

// decref ends what incref began. The last user of a closed fd closes the descriptor or
// handle.
func (f *fd) decref() {
	if f.refs.decref() {
		f.dispose()
	}
}

// close marks the fd closed, wakes the calls that wait on it, and returns when the
// descriptor or handle is closed, or after closeGrace. A function that was given the
// number may use it for long, and may even be the one that calls Close.
func (f *fd) close() error {
	if err := f.closeLater(); err != nil {
		return err
	}
	return f.awaitGone(closeGrace)
}

// setSpin is for a wait that begins after it.
func (f *fd) setSpin(d time.Duration) { f.spin.Store(int64(d)) }

// sendWithFiles is sendRights for those who send all of p or fail.
func (f *fd) sendWithFiles(p []byte, files []*os.File) error {
	_, err := f.sendRights(p, files)
	return err
}

func (r *refs) closing() bool { return r.n.Load()&isClosing != 0 }

// now is the time in nanoseconds on a clock that only goes forward, never 0.
func now() int64 { return int64(time.Since(clockStart)) + 1 }

var clockStart = time.Now()

// expiryAt returns the deadline t on the clock of now. It goes by how far t is from at:
// if t has no monotonic reading, changes of the wall clock since clockStart must not count,
// nor the time that the machine slept.
func expiryAt(t, at time.Time) int64 {
	passed, left := int64(at.Sub(clockStart))+1, int64(t.Sub(at))
	if left > 1<<63-1-passed {
		return 1<<63 - 1
	}
	return max(passed+left, 1)
}

// timeOf returns the time of an expiry, with a monotonic reading, or the zero time for none.
func timeOf(expiry int64) (t time.Time) {
	if expiry != 0 {
		t = clockStart.Add(time.Duration(expiry - 1))
	}
	return t
}

// ioMax is the most that one read or write asks for: macOS and FreeBSD fail
// above INT_MAX, and os.File on Windows stops there.
const ioMax = 1 << 30

// A direction is reading, writing or both.
type direction uint8

const (
	reading direction = 1 << iota
	writing
)
