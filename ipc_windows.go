package ipc

import (
	"context"
	"errors"
	"io"
	"io/fs"
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
	"unsafe"
)

// network is what Addr.Network says: local sockets are named pipes here.
const network = "pipe"

const framedHere = false // a pipe of message type keeps messages apart

// ---------------------------------------------------------------------------
// What only Windows has: options of local sockets

// A SysListenConfig holds the options of a listener that only Windows has.
type SysListenConfig struct {
	// AcceptRemote admits clients on other machines, as far as the security
	// descriptor does. Without it the system rejects them
	// (PIPE_REJECT_REMOTE_CLIENTS).
	AcceptRemote bool

	// Security, if set, says who may connect, instead of
	// [ListenConfig.Access]. It must allow this process [ServerRights].
	Security *SecurityDescriptor

	// ReadBuffer and WriteBuffer are how many bytes may be on their way from
	// and to a client before its Write, or ours, waits. 0 is 64 KiB.
	ReadBuffer, WriteBuffer int
}

// A SysDialer holds the options of a dialer that only Windows has.
type SysDialer struct {
	// Impersonation says what the server may do in this process's name; the
	// zero value is [Identification].
	Impersonation ImpersonationLevel

	direction Direction // of the pipe: PipeDialer.Direction
}

// An ImpersonationLevel says what the server of a pipe may do in the name of its
// client. It is passed to CreateFile as SECURITY_SQOS_PRESENT and one of the four
// levels, with static tracking: the server sees the client as it was when it
// connected.
type ImpersonationLevel uint8

const (
	// Identification lets the server learn who the client is, and nothing else.
	Identification ImpersonationLevel = iota

	// Anonymous does not let the server learn from the pipe who the client is,
	// but for the id of its process.
	Anonymous

	// Impersonation lets the server act as the client on its own machine.
	Impersonation

	// Delegation lets it do so on other machines too.
	Delegation
)

// String returns the name of the constant.
func (l ImpersonationLevel) String() string {
	return nameOf("ImpersonationLevel", uint8(l), "Identification", "Anonymous", "Impersonation", "Delegation")
}

// flags returns the level as CreateFile takes it. winbase.h: SECURITY_ANONYMOUS
// is 0, SECURITY_IDENTIFICATION 1<<16, SECURITY_IMPERSONATION 2<<16,
// SECURITY_DELEGATION 3<<16.
func (l ImpersonationLevel) flags() uint32 {
	const securitySQOSPresent = 0x100000
	return securitySQOSPresent | [...]uint32{1, 0, 2, 3}[l]<<16
}

// nameOf is the String of a type whose constants count up from 0.
func nameOf(typ string, value uint8, names ...string) string {
	if int(value) < len(names) {
		return names[value]
	}
	return typ + "(" + strconv.Itoa(int(value)) + ")"
}

// SessionID returns the Remote Desktop session of the peer's process, and
// whether it is known. It is not for a peer on another machine.
func (p Peer) SessionID() (uint32, bool) { return p.system.session, p.system.knowsSession }

// PeerProcess opens the process at the other end with the access rights, as
// OpenProcess does, and PROCESS_QUERY_LIMITED_INFORMATION: unlike its number, the
// handle stays that of this process when it ends. The caller closes it. A process
// that was started after the Dial or the Accept of this end, and so has only
// inherited the number of the peer, is refused. The error matches
// [os.ErrPermission] if this process may not open that one, and
// [errors.ErrUnsupported] for a peer on another machine.
func (c *endpoint) PeerProcess(access uint32) (syscall.Handle, error) {
	process, err := c.fd.peerProcess(access)
	return process, c.failed("peer", err)
}

// ShareHandle duplicates the handle h of this process into the process, with the
// same rights, and returns its value there, for this process to tell that one by
// any means. process must have been opened with PROCESS_DUP_HANDLE (0x40). If
// the value never arrives, the handle stays open in the process until that ends.
//
// The handle of a Conn or a pipe end that was used already, in this process, can
// be shared, but not read or written asynchronously there: hand on unused ones.
func ShareHandle(h, process syscall.Handle) (syscall.Handle, error) {
	there, err := duplicateHandle(currentProcess, h, process, syscall.DUPLICATE_SAME_ACCESS)
	if err != nil {
		return 0, opError("share", Addr{}, Addr{}, err)
	}
	return there, nil
}

// ---------------------------------------------------------------------------
// What only Windows has: named pipes

// A Direction is the way in which a pipe carries data.
type Direction uint8

const (
	// Duplex pipes carry data both ways.
	Duplex Direction = iota

	// ClientToServer pipes are written by clients and read by the server.
	ClientToServer

	// ServerToClient pipes are written by the server and read by clients.
	ServerToClient
)

// String returns the name of the constant.
func (d Direction) String() string {
	return nameOf("Direction", uint8(d), "Duplex", "ClientToServer", "ServerToClient")
}

func (d Direction) validate() error {
	if d > ServerToClient {
		return configError("Direction", d.String(), "Duplex, ClientToServer or ServerToClient")
	}
	return nil
}

// ends returns what the server, or a client, can do with its end.
func (d Direction) ends(server bool) direction {
	switch {
	case d == Duplex:
		return reading | writing
	case (d == ClientToServer) == server:
		return reading
	}
	return writing
}

// A PipeConfig holds the options of a named pipe: the arguments of
// CreateNamedPipe. The zero value is a duplex pipe of bytes for the user of this
// process.
type PipeConfig struct {
	// Direction is the way in which the pipe carries data.
	Direction Direction

	// Messages makes a pipe of message type (PIPE_TYPE_MESSAGE) whose server
	// ends read messages: see [PipeConn.ReadMessage]. Without it, a pipe of
	// bytes.
	Messages bool

	// Access says who may connect, unless Security is set.
	Access Access

	// Security, if set, is the security descriptor of the pipe. It must allow
	// this process [ServerRights], and should not allow clients more than
	// [ClientRights].
	Security *SecurityDescriptor

	// Check, if set, has a further say over each client: see
	// [ListenConfig.Check].
	Check func(Peer) error

	// Backlog is how many clients may wait for Accept: instances that are
	// armed at once, at most 254. 0 is 4.
	Backlog int

	// MaxInstances is how many instances the pipe has at most, 1 to 254, both
	// armed and connected; 0 is no limit. A client beyond it waits, in Dial,
	// until a connection is closed on this side. The listener does the
	// counting (the limit of CreateNamedPipe counts connections that only the
	// client still holds), so that it can make the new instance before the
	// old one goes, and the name is never free.
	MaxInstances int

	// AcceptRemote admits clients on other machines: see
	// [SysListenConfig.AcceptRemote].
	AcceptRemote bool

	// WriteThrough makes writes of bytes to a client on another machine wait
	// until they are there (FILE_FLAG_WRITE_THROUGH). It has no effect on this
	// machine, nor on messages.
	WriteThrough bool

	// Inheritable makes the server ends inheritable: every process that is
	// started with inheritance of handles gets them. [Inherit] gives one end
	// to one child.
	Inheritable bool

	// ReadBuffer and WriteBuffer are how many bytes may be on their way from
	// and to a client before its Write, or ours, waits. 0 is 64 KiB.
	ReadBuffer, WriteBuffer int

	// DefaultWait is how long clients that call WaitNamedPipe with the default
	// time wait, in steps of 100 ns. 0 is 50 ms, a negative one is for ever.
	DefaultWait time.Duration
}

func (c *PipeConfig) validate() error {
	if err := c.Direction.validate(); err != nil {
		return err
	}
	if err := c.Access.validate(); err != nil {
		return err
	}
	for _, field := range [...]struct {
		name  string
		value int
		limit int
	}{
		{"Backlog", c.Backlog, 1<<31 - 1},
		{"MaxInstances", c.MaxInstances, instancesMax},
		{"ReadBuffer", c.ReadBuffer, 1<<31 - 1},
		{"WriteBuffer", c.WriteBuffer, 1<<31 - 1},
	} {
		if field.value < 0 || field.value > field.limit {
			return configError(field.name, strconv.Itoa(field.value), "0 to "+strconv.Itoa(field.limit))
		}
	}
	if c.Security != nil && len(c.Security.raw) == 0 {
		return configError("Security", "empty", "made by ParseSDDL or NewSecurityDescriptor")
	}
	return nil
}

// instancesMax is the highest limit that CreateNamedPipe takes for instances.
const instancesMax = 254

// ListenPipe makes the named pipe \\.\pipe\x, as CreateNamedPipe does, and
// listens on it. The error matches [ErrAddrInUse] when the pipe exists,
// [ErrNameTooLong] when the path has more than 256 UTF-16 characters, and
// [errors.ErrUnsupported] when it is not that of a pipe of this machine.
func ListenPipe(path string, c PipeConfig) (*PipeListener, error) {
	addr := Path(path)
	err := c.validate()
	if err == nil {
		var target string
		if target, err = addr.resolve(); err == nil {
			l := &PipeListener{server{addr: addr}}
			l.setRules(false, c.Check)
			if l.sys, err = listenPipe(target, c); err == nil {
				return l, nil
			}
		}
	}
	return nil, opError("listen", Addr{}, addr, err)
}

// A PipeListener is the server of a named pipe. It is a [net.Listener] whose
// connections are *PipeConn. All its methods may be called concurrently.
type PipeListener struct{ server }

// Accept waits for a client and returns its connection, a *PipeConn: see
// [Listener.AcceptConn].
func (l *PipeListener) Accept() (net.Conn, error) { return asNetConn(l.AcceptPipe()) }

// AcceptPipe is Accept with the type of the connection.
func (l *PipeListener) AcceptPipe() (*PipeConn, error) {
	fd, err := l.accept()
	if err != nil {
		return nil, err
	}
	return newPipeConn(endpoint{fd: fd, local: l.addr}), nil
}

// Conns returns an iterator over the clients, which ends at Close: see
// [Listener.Conns].
func (l *PipeListener) Conns() iter.Seq2[*PipeConn, error] { return untilClosed(l.AcceptPipe) }

// SecurityDescriptor reads the owner, group and DACL of the pipe back
// (GetKernelObjectSecurity), from an instance that listens: while
// [PipeConfig.MaxInstances] are connected, the error matches
// [errors.ErrUnsupported].
func (l *PipeListener) SecurityDescriptor() (*SecurityDescriptor, error) {
	var sd *SecurityDescriptor
	err := l.sys.control(func(h syscall.Handle) (err error) {
		sd, err = securityOf(h)
		return err
	})
	if err != nil {
		return nil, opError("security", Addr{}, l.addr, err)
	}
	return sd, nil
}

// A PipeDialer holds the options of a client of a named pipe. The zero value is
// for a duplex pipe of this user that is read as bytes.
type PipeDialer struct {
	// Direction is that of the pipe. With another one the server refuses:
	// the error matches [os.ErrPermission].
	Direction Direction

	// Messages reads messages (PIPE_READMODE_MESSAGE): see
	// [PipeConn.ReadMessage]. The pipe must be of message type. Without it its
	// messages are read as a stream.
	Messages bool

	// Access says who may be the server: see [Dialer.Access].
	Access Access

	// Check, if set, has a further say over the server: see [Dialer.Check].
	Check func(Peer) error

	// Wait keeps trying until the pipe exists.
	Wait bool

	// Impersonation says what the server may do in this process's name.
	Impersonation ImpersonationLevel
}

// DialPipe opens the named pipe \\.\pipe\x or \\host\pipe\x, as CreateFile does,
// and gives up when ctx ends: see [Dialer.DialContext].
func DialPipe(ctx context.Context, path string, d PipeDialer) (*PipeConn, error) {
	addr, kind := Path(path), streams
	if d.Messages {
		kind = messages
	}
	portable := Dialer{Wait: d.Wait, Access: d.Access, Check: d.Check, Sys: &SysDialer{d.Impersonation, d.Direction}}
	fd, err := portable.reach(ctx, addr, kind)
	if err != nil {
		return nil, err
	}
	return newPipeConn(endpoint{fd: fd, remote: addr}), nil
}

// A PipeConn is one end of a named pipe: a [Conn], and what only a pipe can do.
// All its methods may be called concurrently.
//
// An end of a one-way pipe can only be read or only be written; the other
// operation fails with an error that matches [errors.ErrUnsupported]. On a pipe
// of message type each Write sends one message (WriteBuffers one per buffer, and
// 1 GiB at most), and Read reads messages as a stream, without their boundaries.
type PipeConn struct{ *Conn }

func newPipeConn(e endpoint) *PipeConn { return &PipeConn{&Conn{e}} }

// ReadMessage reads one message, or as much of it as fits into p, which must not
// be empty; more says that there is a rest, which the next read gets. It waits
// until there is a message. An empty message is 0, false and no error;
// [io.EOF] comes when the peer has closed its end. The system does not let the
// two be told apart in one case: an empty message that arrives while ReadMessage
// waits, and that the peer's Close follows at once, may be io.EOF.
//
// An end that reads bytes has no messages: the error matches
// [errors.ErrUnsupported]. See ReadFile.
func (c *PipeConn) ReadMessage(p []byte) (n int, more bool, err error) {
	n, more, err = c.fd.readMessage(p)
	return n, more, c.failed("read", err)
}

// WriteMessage writes p as one message, which may be empty. The error matches
// [ErrMsgTooLong] above 1 GiB, and [errors.ErrUnsupported] on an end that reads
// bytes. See WriteFile.
func (c *PipeConn) WriteMessage(p []byte) error { return c.failed("write", c.fd.send(p)) }

// PeekMessage copies what is there to read into p, without waiting and without
// taking it, and returns how much it copied and the length of the whole message
// at the head, or in a stream of bytes of all that is there. Both are 0 when
// there is nothing, or an empty message. [io.EOF] means that the peer has closed
// its end and all was read. See PeekNamedPipe.
func (c *PipeConn) PeekMessage(p []byte) (n, size int, err error) {
	n, size, err = c.fd.peek(p)
	return n, size, c.failed("peek", err)
}

// Transact writes the request as one message and reads the reply into reply, as
// one operation that holds an operating-system thread while it waits
// (TransactNamedPipe). It returns the length of the reply; of one that does not
// fit, reply is filled, the rest is dropped, and the error matches
// [ErrMsgTooLong]. There must be nothing unread on this end, which must be one
// that reads messages of a duplex pipe. It ends with ctx, and at the read deadline;
// the peer may have the request all the same, and its reply is left for the next
// read.
func (c *PipeConn) Transact(ctx context.Context, request, reply []byte) (int, error) {
	n, err := c.fd.transact(ctx, request, reply)
	return n, c.failed("transact", err)
}

// Flush waits until the peer has read everything that was written, or is gone. It
// holds an operating-system thread while it waits, writes wait for it, and it
// ends with ctx or Close. On an end that cannot be written it does nothing. See
// FlushFileBuffers.
func (c *PipeConn) Flush(ctx context.Context) error {
	return c.failed("flush", c.fd.flush(ctx))
}

// Disconnect throws the client out: both ends lose what they have not read, and
// all that is left to do with this one is Close. What the client reads is
// io.EOF with this package, ERROR_PIPE_NOT_CONNECTED with others. It is for the
// server's end; on the client's the error matches [errors.ErrUnsupported]. See
// DisconnectNamedPipe.
func (c *PipeConn) Disconnect() error {
	if !c.fd.server {
		return c.failed("disconnect", errNotServer)
	}
	return c.failed("disconnect", c.fd.control("DisconnectNamedPipe", disconnectNamedPipe))
}

// errNotServer refuses at a client's end what only a server's can do.
var errNotServer = &ruleError{"this is the client's end of the pipe", errors.ErrUnsupported}

// Impersonate runs f with the identity and rights of the client, as far as its
// [ImpersonationLevel] lets the server have them, and returns f's error. f runs
// in a goroutine of its own on a thread of its own, and goroutines that it
// starts do not impersonate anybody. The thread takes its own identity back when
// f returns, panics or ends its goroutine; should that fail, which is an error
// too, the thread is not used again. It is for the server's end; on the client's
// the error matches [errors.ErrUnsupported]. See ImpersonateNamedPipeClient.
//
// A client that does not use this package and did not ask for static tracking
// can be impersonated only after something of what it sent was read.
func (c *PipeConn) Impersonate(f func() error) error {
	var result error
	if err := c.fd.impersonate(func() { result = f() }); err != nil {
		return c.failed("impersonate", err)
	}
	return result
}

// ClientProcessID returns the process id of the client, from either end:
// GetNamedPipeClientProcessId.
func (c *PipeConn) ClientProcessID() (uint32, error) { return c.ask(procClientProcessID) }

// ServerProcessID returns the process id of the server, from either end:
// GetNamedPipeServerProcessId.
func (c *PipeConn) ServerProcessID() (uint32, error) { return c.ask(procServerProcessID) }

// ClientSessionID returns the Remote Desktop session of the client, from either
// end: GetNamedPipeClientSessionId.
func (c *PipeConn) ClientSessionID() (uint32, error) { return c.ask(procClientSessionID) }

// ServerSessionID returns the Remote Desktop session of the server, from either
// end: GetNamedPipeServerSessionId.
func (c *PipeConn) ServerSessionID() (uint32, error) { return c.ask(procServerSessionID) }

func (c *PipeConn) ask(question *syscall.LazyProc) (answer uint32, err error) {
	err = c.fd.control(question.Name, func(h syscall.Handle) (err error) {
		answer, err = pipeNumber(question, h)
		return err
	})
	return answer, c.failed("peer", err)
}

// SecurityDescriptor reads the owner, group and DACL of the pipe back:
// GetKernelObjectSecurity.
func (c *PipeConn) SecurityDescriptor() (*SecurityDescriptor, error) {
	var sd *SecurityDescriptor
	err := c.fd.control("", func(h syscall.Handle) (err error) {
		sd, err = securityOf(h)
		return err
	})
	return sd, c.failed("security", err)
}

// ---------------------------------------------------------------------------
// What only Windows has: security descriptors

// A SecurityDescriptor says who owns a pipe and who may do what with it. It is a
// self-relative SECURITY_DESCRIPTOR, and does not change. It is made by
// [ParseSDDL] or [NewSecurityDescriptor], or read from a pipe; the zero value says
// nothing and no pipe can have it.
type SecurityDescriptor struct{ raw []byte }

// Rights on a pipe (winnt.h). A client that may also create instances
// (FILE_CREATE_PIPE_INSTANCE, the bit FILE_APPEND_DATA, which GENERIC_WRITE
// stands for too) could put its own server behind the name.
const (
	// ClientRights is FILE_GENERIC_READ | FILE_GENERIC_WRITE without
	// FILE_CREATE_PIPE_INSTANCE.
	ClientRights uint32 = 0x12019b

	// ServerRights is ClientRights | FILE_CREATE_PIPE_INSTANCE.
	ServerRights = ClientRights | syscall.FILE_APPEND_DATA
)

// The users that every Windows has, as SIDs.
const (
	sidEveryone       = "S-1-1-0"
	sidSystem         = "S-1-5-18"
	sidAdministrators = "S-1-5-32-544"
)

// An AccessEntry allows or denies the user or group of the SID the rights of the
// mask (ACCESS_MASK).
type AccessEntry struct {
	SID  string // "S-1-5-18", or as SDDL abbreviates it, "SY"
	Mask uint32
	Deny bool
}

// ParseSDDL reads a security descriptor in the security descriptor definition
// language, such as "O:SYD:P(A;;GA;;;SY)": ConvertStringSecurityDescriptor-
// ToSecurityDescriptor.
func ParseSDDL(sddl string) (*SecurityDescriptor, error) {
	raw, err := parseSDDL(sddl)
	if err != nil {
		return nil, opError("parse", Addr{}, Addr{}, err)
	}
	return &SecurityDescriptor{raw}, nil
}

// NewSecurityDescriptor returns a security descriptor that this user owns, with
// a protected DACL of the entries: it inherits nothing, and what is not allowed
// is denied. Denials belong before what they are to be excepted from.
func NewSecurityDescriptor(entries ...AccessEntry) (*SecurityDescriptor, error) {
	user, err := currentUser()
	if err != nil {
		return nil, opError("security", Addr{}, Addr{}, err)
	}
	var sddl strings.Builder
	sddl.WriteString("O:" + user + "D:P")
	for _, e := range entries {
		if strings.ContainsAny(e.SID, ";()") { // or it could say more than who
			return nil, opError("security", Addr{}, Addr{}, configError("SID", strconv.Quote(e.SID), "a security identifier"))
		}
		what := "(A;;0x"
		if e.Deny {
			what = "(D;;0x"
		}
		sddl.WriteString(what + strconv.FormatUint(uint64(e.Mask), 16) + ";;;" + e.SID + ")")
	}
	return ParseSDDL(sddl.String())
}

// SecurityDescriptor returns what the Access stands for on a pipe: this user has
// [ServerRights]; SYSTEM and Administrators, and with Everyone all users, have
// [ClientRights].
func (a Access) SecurityDescriptor() (*SecurityDescriptor, error) {
	err := a.validate()
	var user string
	if err == nil {
		user, err = currentUser()
	}
	if err != nil {
		return nil, opError("security", Addr{}, Addr{}, err)
	}
	entries := []AccessEntry{{user, ServerRights, false}, {sidSystem, ClientRights, false}, {sidAdministrators, ClientRights, false}}
	if a == Everyone {
		entries = append(entries, AccessEntry{sidEveryone, ClientRights, false})
	}
	return NewSecurityDescriptor(entries...)
}

// String returns the descriptor in the language that [ParseSDDL] reads, with
// all parts that it has; it is empty if the system cannot say it so.
func (sd *SecurityDescriptor) String() string { return formatSDDL(sd.raw) }

// Owner returns the SID of the owner, or "" if the descriptor has none.
func (sd *SecurityDescriptor) Owner() string { return sidAt(sd.raw, sd.word(4)) }

// Group returns the SID of the primary group, or "" if the descriptor has none.
func (sd *SecurityDescriptor) Group() string { return sidAt(sd.raw, sd.word(8)) }

// DACL returns the entries of the DACL that allow and deny, in their order;
// other kinds of entries are left out. ok is false if there is no DACL, which
// allows everybody everything; a DACL without entries allows nobody anything.
func (sd *SecurityDescriptor) DACL() (entries []AccessEntry, ok bool) {
	const header = 8 // of an ACL: revision, reserved, size in bytes, count
	offset := sd.word(16)
	if offset == 0 || uint64(offset)+header > uint64(len(sd.raw)) {
		return nil, false
	}
	at := int(offset)
	count := int(sd.raw[at+4]) | int(sd.raw[at+5])<<8
	for at += header; count > 0 && at+8 <= len(sd.raw); count-- {
		kind, size := sd.raw[at], int(sd.raw[at+2])|int(sd.raw[at+3])<<8
		if kind <= 1 { // ACCESS_ALLOWED_ACE_TYPE, ACCESS_DENIED_ACE_TYPE
			entries = append(entries, AccessEntry{sidAt(sd.raw, uint32(at+8)), sd.word(at + 4), kind == 1})
		}
		at += size
	}
	return entries, true
}

// word returns the 32 bits at an offset: fields 4, 8, 12 and 16 of the header are
// the offsets of owner, group, SACL and DACL, 0 for what is not there.
func (sd *SecurityDescriptor) word(at int) uint32 {
	if at+4 > len(sd.raw) {
		return 0
	}
	return wordAt(sd.raw[at:])
}

func wordAt(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// sidAt returns the SID at an offset as text, or "" if there is none.
func sidAt(raw []byte, at uint32) string {
	if at == 0 || uint64(at)+8 > uint64(len(raw)) {
		return ""
	}
	sid := raw[at:]
	count := int(sid[1])
	if 8+4*count > len(sid) {
		return ""
	}
	var authority uint64
	for _, b := range sid[2:8] {
		authority = authority<<8 | uint64(b)
	}
	text := "S-" + strconv.Itoa(int(sid[0])) + "-" + strconv.FormatUint(authority, 10)
	for i := range count {
		text += "-" + strconv.FormatUint(uint64(wordAt(sid[8+4*i:])), 10)
	}
	return text
}

// currentUser returns the SID of the user that this process runs as, whoever a
// thread of it may impersonate: to open the token might be denied to that one.
var currentUser = sync.OnceValues(func() (string, error) { return userOf(currentProcessToken) })

// userOf returns the SID of a token's user.
func userOf(token syscall.Token) (string, error) {
	user, err := token.GetTokenUser()
	if err != nil {
		return "", os.NewSyscallError("GetTokenInformation", err)
	}
	sid, err := user.User.Sid.String()
	return sid, os.NewSyscallError("ConvertSidToStringSid", err)
}

// ---------------------------------------------------------------------------
// Addresses
//
// A target is the path of a pipe in one spelling: \\.\pipe\x or \\host\pipe\x.

const (
	localPrefix = `\\.\pipe\`
	pathMax     = 256 // UTF-16 units of the whole path, of CreateNamedPipe
)

// resolve checks the address and returns its target.
func (a Addr) resolve() (target string, err error) {
	if err := a.check(); err != nil {
		return "", err
	}
	name := strings.ReplaceAll(a.text, "/", `\`)
	prefix := localPrefix
	if a.kind == pathAddr {
		host, rest, ok := cutPipePath(name)
		if !ok {
			return "", &classified{&ruleError{what: "the path " + strconv.Quote(a.text) +
				` is not that of a pipe: write \\.\pipe\name, or ipc.Name("name")`}, errors.ErrUnsupported}
		}
		if host != "." && host != "?" {
			prefix = `\\` + host + `\pipe\`
		}
		name = rest
	}
	// What Windows would change in a path is refused, so that no name leads to
	// another pipe or out of the folder of the pipes.
	for element := range strings.SplitSeq(name, `\`) {
		if element == "" || strings.HasSuffix(element, ".") || strings.HasSuffix(element, " ") {
			return "", &ruleError{what: "the name " + strconv.Quote(name) +
				` has an element that is empty or ends in a dot or space, which Windows would drop`}
		}
	}
	target = prefix + name
	wide, err := syscall.UTF16FromString(target)
	if err != nil || syscall.UTF16ToString(wide) != target {
		return "", &ruleError{what: "the name " + strconv.Quote(name) + " is not valid UTF-8"}
	}
	if units := len(wide) - 1; units > pathMax {
		return "", &ruleError{"the path is " + strconv.Itoa(units) + " UTF-16 characters long, the limit is " + strconv.Itoa(pathMax), ErrNameTooLong}
	}
	return target, nil
}

// cutPipePath takes \\host\pipe\name apart.
func cutPipePath(path string) (host, name string, ok bool) {
	path, ok = strings.CutPrefix(path, `\\`)
	if !ok {
		return "", "", false
	}
	host, path, _ = strings.Cut(path, `\`)
	folder, name, ok := strings.Cut(path, `\`)
	return host, name, ok && host != "" && strings.EqualFold(folder, "pipe")
}

// isRemote reports whether the target is a pipe of another machine; \\localhost
// is one too, as it is reached by way of the network.
func isRemote(target string) bool { return !strings.HasPrefix(target, localPrefix) }

// guarded reports whether the kernel itself enforces an Access: the DACL of a
// pipe does.
func guarded(string) bool { return true }

// squattable reports whether anybody may have taken the address: any user can
// make a pipe of any name that is free.
func squattable(Addr) bool { return true }

// ---------------------------------------------------------------------------
// Listeners

// A listener is the server of a pipe.
type listener struct {
	*instances
	cleanup runtime.Cleanup // closes the instances if nobody does
}

func listen(target string, kind transport, lc *ListenConfig) (*listener, error) {
	c := PipeConfig{Access: lc.Access, Backlog: lc.Backlog, Messages: kind.native() == messages}
	if s := lc.Sys; s != nil {
		c.AcceptRemote, c.Security, c.ReadBuffer, c.WriteBuffer = s.AcceptRemote, s.Security, s.ReadBuffer, s.WriteBuffer
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	p, err := newPipeSpec(target, c)
	if err != nil {
		return nil, err
	}
	s, err := newInstances(p, c.Backlog, 0)
	if err != nil {
		return nil, err
	}
	if kind != streams {
		return s.listen(true)
	}
	if err := s.claim(); err != nil { // a Listener can be given to a child
		s.close()
		return nil, err
	}
	return s.listen(false)
}

func listenPipe(target string, c PipeConfig) (*listener, error) {
	p, err := newPipeSpec(target, c)
	if err != nil {
		return nil, err
	}
	s, err := newInstances(p, c.Backlog, c.MaxInstances)
	if err != nil {
		return nil, err
	}
	return s.listen(true)
}

func (l *listener) close() error {
	l.cleanup.Stop()
	return l.instances.close()
}

// rawConn gives access to the handle of an armed instance.
func (l *listener) rawConn() (syscall.RawConn, error) { return listenerRawConn{l}, nil }

type listenerRawConn struct{ l *listener }

func (c listenerRawConn) Control(f func(fd uintptr)) error {
	return c.l.control(func(h syscall.Handle) error { f(uintptr(h)); return nil })
}
func (c listenerRawConn) Read(func(fd uintptr) bool) error  { return errors.ErrUnsupported }
func (c listenerRawConn) Write(func(fd uintptr) bool) error { return errors.ErrUnsupported }

// ---------------------------------------------------------------------------
// Instances
//
// The kernel connects a client to an instance that listens, whether the server
// calls Accept or not. So Backlog instances listen from Listen to Close, each
// with a ConnectNamedPipe under way, and each is replaced before its connection
// is handed out: a burst of clients does not find the pipe busy, and its name is
// not free for a moment.
//
// All of these operations signal one event, which says no more than "look again".
// Whoever waits for it examines all instances before it waits and after, so that
// no signal is lost by a reset: ConnectNamedPipe resets the event when it begins,
// and the kernel writes the result of an operation before it signals the event.
//
// The kernel writes to the OVERLAPPED of an operation until that is done. An
// instance is therefore reachable as long as its operation is under way: from
// instances, which the listener's cleanup keeps alive; and close waits for the
// end of each operation.

// instances are the instances of a pipe that listen for a client.
type instances struct {
	spec    *pipeSpec
	backlog int            // how many are armed
	limit   int            // how many may exist, connected ones included; 0 is no limit
	changed syscall.Handle // auto-reset event: an operation ended, or closed or deadline changed
	keeper  syscall.Handle // an instance that nobody can connect to, for Inherit; 0 if there is none
	unkept  error          // why there is none

	turn sync.Mutex // the Accept that waits, or the Close that has ended it; taken before mu

	mu       sync.Mutex  // guards what follows; never held while waiting
	armed    []*instance // the first was armed first
	out      int         // connections handed out and not closed; counted if there is a limit
	closed   bool
	deadline time.Time
}

// newInstances returns none yet: listen arms them.
func newInstances(p *pipeSpec, backlog, limit int) (s *instances, err error) {
	s = &instances{spec: p, limit: limit, backlog: min(backlog, instancesMax)}
	if s.backlog == 0 {
		s.backlog = 4
	}
	if limit > 0 {
		s.backlog = min(s.backlog, limit)
	}
	s.changed, err = createEvent()
	return s, err
}

// claim makes the pipe, and keeps its name with an instance that is no more than
// that. A client can connect to an instance from its birth to when it has had
// one, and nobody else knows of the pipe yet; so this process is its client, and
// leaves. A real client that is faster has its place like any other.
func (s *instances) claim() error {
	for first := true; len(s.armed) < instancesMax; first = false {
		h, err := s.spec.create(first)
		if err != nil {
			return err
		}
		client, err := openPipe(s.spec.target, fileReadAttributes, Anonymous.flags())
		if err == nil {
			s.keeper = h
			return os.NewSyscallError("CloseHandle", syscall.CloseHandle(client))
		}
		s.arm(h)
		if errnoOf(err) != errPipeBusy { // SysListenConfig.Security does not let this user in
			s.unkept = err
			return nil
		}
	}
	s.unkept = os.NewSyscallError("CreateFile", errPipeBusy)
	return nil
}

// listen arms the instances, the first of which may have to make the pipe.
func (s *instances) listen(first bool) (*listener, error) {
	for ; len(s.armed) < s.backlog; first = false {
		if err := s.add(first); err != nil {
			s.close()
			return nil, err
		}
	}
	l := &listener{instances: s}
	l.cleanup = runtime.AddCleanup(l, func(s *instances) { s.close() }, s)
	return l, nil
}

// An instance is one that listens, or has a client that was not accepted yet.
type instance struct {
	overlapped syscall.Overlapped // the kernel's while pending
	sys        syscall.Handle
	pending    bool
	err        error // result of ConnectNamedPipe, once it is not pending
}

// accept waits for a client.
func (s *instances) accept() (*fd, error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	for {
		fd, wait, err := s.take()
		if fd != nil || err != nil {
			return fd, err
		}
		waitFor(s.changed, wait)
	}
}

// take returns the connection of a client that is there, or how many
// milliseconds to wait for one.
func (s *instances) take() (_ *fd, wait uint32, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, 0, net.ErrClosed
	}
	if !s.deadline.IsZero() && !time.Now().Before(s.deadline) {
		return nil, 0, os.ErrDeadlineExceeded
	}
	wait = milliseconds(s.deadline)
	// Only with a limit can instances be missing.
	for s.limit > 0 && len(s.armed) < s.backlog && len(s.armed)+s.out < s.limit {
		if err := s.add(len(s.armed)+s.out == 0); err != nil {
			return nil, 0, err
		}
	}
	var first *instance // with a client
	for _, in := range s.armed {
		switch done, err := in.outcome(s.spec.ends); {
		case !done:
		case err == nil:
			if first == nil {
				first = in
			}
		case err == errNoData: // came and went
			if in.err = disconnectNamedPipe(in.sys); in.err == nil {
				in.arm(s.changed)
			}
			wait = 0
		case err == syscall.ERROR_OPERATION_ABORTED: // the thread that began it is gone
			in.arm(s.changed)
			wait = 0
		default:
			return nil, 0, s.replace(in, os.NewSyscallError("ConnectNamedPipe", err))
		}
	}
	if first == nil {
		return nil, wait, nil
	}
	fd, err := s.handOut(first)
	return fd, 0, err
}

// handOut makes an instance with a client a connection. If it cannot be
// replaced, the client stays where it is, for the next Accept.
func (s *instances) handOut(in *instance) (*fd, error) {
	if s.limit == 0 || len(s.armed)+s.out < s.limit {
		if err := s.add(false); err != nil {
			return nil, err
		}
	}
	s.remove(in)
	f := newFD(in.sys, s.spec.kind, s.spec.ends, true)
	f.remote = s.spec.remote
	if s.limit > 0 {
		s.out++
		f.place = s
		f.dropped = runtime.AddCleanup(f, (*instances).giveBack, s)
	}
	return f, nil
}

// replace puts a new instance in the place of one that cannot be used any more.
func (s *instances) replace(in *instance, why error) error {
	if err := s.add(false); err != nil {
		return why
	}
	s.remove(in)
	return os.NewSyscallError("CloseHandle", syscall.CloseHandle(in.sys))
}

// giveBack arms an instance for the connection that is about to be closed, while
// its handle still keeps the name. That of one that was dropped without Close may
// be gone; then it is Accept that makes the pipe again.
func (s *instances) giveBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out--
	if s.closed {
		return
	}
	if len(s.armed) < s.backlog {
		s.add(false) // an error comes again, and is reported, in the Accept that this wakes
	}
	setEvent(s.changed)
}

// add makes one more instance and arms it. Only the first one takes the name.
func (s *instances) add(first bool) error {
	h, err := s.spec.create(first)
	if err != nil {
		return err
	}
	s.arm(h)
	return nil
}

func (s *instances) arm(h syscall.Handle) {
	in := &instance{sys: h}
	s.armed = append(s.armed, in)
	in.arm(s.changed)
}

func (s *instances) remove(in *instance) {
	for i, other := range s.armed {
		if other == in {
			s.armed = append(s.armed[:i:i], s.armed[i+1:]...)
			return
		}
	}
}

// arm begins to listen for a client.
func (in *instance) arm(changed syscall.Handle) {
	in.overlapped = syscall.Overlapped{Internal: statusPending, HEvent: changed}
	err := connectNamedPipe(in.sys, &in.overlapped)
	in.pending = err == syscall.ERROR_IO_PENDING
	// The client came first, and may have left since. It is outcome that asks
	// whether it wrote anything.
	if in.err = err; err == errPipeConnected || err == errNoData {
		in.err = nil
	}
}

// outcome reports whether arm has come to an end, and to which. A client that
// left without a word is errNoData.
func (in *instance) outcome(ends direction) (done bool, err error) {
	if in.pending {
		if !ended(&in.overlapped) {
			return false, nil
		}
		in.pending = false
		in.err = overlappedResult(in.sys, &in.overlapped, nil)
	}
	if in.err == nil && deserted(in.sys, ends) {
		in.err = errNoData
	}
	return true, in.err
}

// close stops listening, and returns when no operation is under way any more.
func (s *instances) close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.closed = true
	setEvent(s.changed)
	s.mu.Unlock()

	s.turn.Lock() // nobody waits for the event any more
	defer s.turn.Unlock()
	var err error
	for _, in := range s.armed { // nobody changes them any more
		if in.pending {
			// If there is nothing to cancel, it has ended or is about to.
			syscall.CancelIoEx(in.sys, &in.overlapped)
			for !ended(&in.overlapped) {
				waitFor(s.changed, syscall.INFINITE)
			}
		}
		if e := syscall.CloseHandle(in.sys); err == nil {
			err = e
		}
	}
	s.armed = nil
	if s.keeper != 0 {
		if e := syscall.CloseHandle(s.keeper); err == nil {
			err = e
		}
	}
	if e := syscall.CloseHandle(s.changed); err == nil {
		err = e
	}
	return os.NewSyscallError("CloseHandle", err)
}

func (s *instances) setDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.deadline = t
	setEvent(s.changed)
	return nil
}

// control makes a call, which must not block, on one of the instances.
func (s *instances) control(call func(syscall.Handle) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if len(s.armed) == 0 {
		return &ruleError{"all instances of the pipe are connected", errors.ErrUnsupported}
	}
	return call(s.armed[0].sys)
}

// deserted reports whether the client of an instance has left and there is
// nothing of it to read.
func deserted(h syscall.Handle, ends direction) bool {
	if ends&reading != 0 {
		_, _, _, err := peekMessage(h, nil)
		return err != nil
	}
	info, err := localInfo(h)
	return err != nil || info.state != pipeConnected
}

// A pipeSpec is what all instances of a pipe are made with.
type pipeSpec struct {
	target   string
	kind     transport
	ends     direction // of the server
	remote   bool      // clients may be on other machines
	inherit  bool
	through  bool
	in, out  uint32 // quotas in bytes
	wait     int64  // in 100 ns; negative is relative to now
	security *SecurityDescriptor
}

func newPipeSpec(target string, c PipeConfig) (*pipeSpec, error) {
	if isRemote(target) {
		return nil, &ruleError{what: `a pipe can be served on this machine only: write \\.\pipe\name`, is: errors.ErrUnsupported}
	}
	p := &pipeSpec{
		target:   target,
		ends:     c.Direction.ends(true),
		remote:   c.AcceptRemote,
		inherit:  c.Inheritable,
		through:  c.WriteThrough,
		in:       quota(c.ReadBuffer),
		out:      quota(c.WriteBuffer),
		wait:     -int64(c.DefaultWait / 100),
		security: c.Security,
	}
	if c.Messages {
		p.kind = messages
	}
	switch {
	case c.DefaultWait == 0:
		p.wait = -int64(50 * time.Millisecond / 100)
	case c.DefaultWait < 0:
		p.wait = -1 << 63 // never
	}
	if p.security == nil {
		var err error
		if p.security, err = c.Access.SecurityDescriptor(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// quota returns the size of a buffer, or the default.
func quota(n int) uint32 {
	if n == 0 {
		return 64 << 10
	}
	return uint32(n)
}

// ---------------------------------------------------------------------------
// Connections

// connect makes one attempt to open the pipe. The rights asked for never include
// FILE_CREATE_PIPE_INSTANCE, which a well-guarded pipe refuses.
func connect(target string, kind transport, s *SysDialer) (*fd, error) {
	if s == nil {
		s = &SysDialer{}
	}
	if s.Impersonation > Delegation {
		return nil, configError("Impersonation", s.Impersonation.String(), "Identification, Anonymous, Impersonation or Delegation")
	}
	if err := s.direction.validate(); err != nil {
		return nil, err
	}
	rights := [...]uint32{
		Duplex:         ClientRights,
		ClientToServer: 0x120192, // FILE_GENERIC_WRITE without that bit, FILE_READ_ATTRIBUTES
		ServerToClient: 0x120189, // FILE_GENERIC_READ, FILE_WRITE_ATTRIBUTES
	}[s.direction]
	h, err := openPipe(target, rights, s.Impersonation.flags())
	if err != nil {
		return nil, err
	}
	f := newFD(h, kind.native(), s.direction.ends(false), false)
	f.remote = isRemote(target)
	if f.kind == messages { // a client's end always begins with bytes
		if err := f.control("SetNamedPipeHandleState", setMessageMode); err != nil {
			f.close()
			return nil, err
		}
	}
	return f, nil
}

// native returns what the pipe of a connection of that kind carries.
func (kind transport) native() transport {
	if framesMessages {
		return streams
	}
	return kind
}

// judge tells what the failure of connect means.
func judge(_ string, err error) verdict {
	switch errnoOf(err) {
	case errPipeBusy:
		return busy
	case syscall.ERROR_FILE_NOT_FOUND:
		return absent
	}
	return final
}

// peerSystem is what a Peer holds beyond the portable facts.
type peerSystem struct {
	session      uint32
	knowsSession bool
	trusted      bool // see Peer.trusted
}

// trusted reports whether the peer is this process's user, SYSTEM or an
// administrator. Of a server the owner of the pipe counts, which a user cannot
// forge, of a client its token; and both only on this machine, where these SIDs
// mean something.
func (p Peer) trusted() bool { return p.system.trusted }

// pair returns the server's and the client's end of a pipe of its own. Nobody
// else can open the client's end: the instance is the only one, of a new pipe,
// of this user, and has its client when pair returns.
func pair(kind transport) (a, b *fd, err error) { return pairOf(Duplex, kind) }

func pairOf(d Direction, kind transport) (server, client *fd, err error) {
	p, err := newPipeSpec(localPrefix+freshName(), PipeConfig{Direction: d, Messages: kind.native() == messages})
	if err != nil {
		return nil, nil, err
	}
	h, err := p.create(true)
	if err != nil {
		return nil, nil, err
	}
	server = newFD(h, p.kind, p.ends, true)
	client, err = connect(p.target, kind, &SysDialer{direction: d})
	if err != nil {
		server.close()
		return nil, nil, err
	}
	return server, client, nil
}

// pipe returns the ends of an unnamed pipe.
func pipe() (r, w *fd, err error) { return pairOf(ClientToServer, streams) }

// adoptConn returns a connection over a duplicate of f.
func adoptConn(f *os.File, kind transport) (*fd, error) {
	return adopt(f, kind, reading|writing)
}

// adoptPipe returns the end of a pipe over a duplicate of f.
func adoptPipe(f *os.File, d direction) (*fd, error) { return adopt(f, streams, d) }

// adopt returns an fd over a duplicate of f.
func adopt(f *os.File, kind transport, d direction) (*fd, error) {
	var h syscall.Handle
	err := withFile(f, func(sys uintptr) (err error) {
		h, err = duplicate(syscall.Handle(sys))
		return err
	})
	if err != nil {
		return nil, err
	}
	fd, err := adoptSys(h, kind, d)
	if err != nil {
		syscall.CloseHandle(h)
	}
	return fd, err
}

// adoptSys returns an fd that owns h, if that is the connected end of a pipe that
// can be used asynchronously, for that kind and in the directions; if not, h
// stays as it was.
func adoptSys(h syscall.Handle, kind transport, d direction) (*fd, error) {
	typ, err := syscall.GetFileType(h)
	if err != nil {
		return nil, os.NewSyscallError("GetFileType", err)
	}
	if typ != syscall.FILE_TYPE_PIPE {
		return nil, &ruleError{"the handle is not that of a pipe", errors.ErrUnsupported}
	}
	info, err := localInfo(h)
	if err != nil {
		return nil, err
	}
	const synchronous = 0x10 | 0x20 // FILE_SYNCHRONOUS_IO_ALERT, _NONALERT
	mode, err := fileMode(h)
	if err != nil {
		return nil, err
	}
	server := info.end == pipeServerEnd
	ends := [...]Direction{ClientToServer, ServerToClient, Duplex}[min(info.configuration, pipeDuplex)].ends(server)
	switch {
	case mode&synchronous != 0:
		return nil, &ruleError{"the pipe was not opened for overlapped I/O", errors.ErrUnsupported}
	case ends&d != d:
		return nil, errDirection(ends)
	case info.state != pipeConnected && info.state != pipeClosing:
		return nil, os.NewSyscallError("NtQueryInformationFile", errPipeNotConnected)
	}
	reads, err := readMode(h)
	switch {
	case err != nil:
		return nil, err
	case reads != kind.native():
		return nil, &ruleError{"the pipe is not read as that kind of connection does", errors.ErrUnsupported}
	}
	far, err := isFar(h)
	if err != nil {
		return nil, err
	}
	f := newFD(h, reads, ends, server)
	f.remote = far || server // whose client may be anywhere
	return f, nil
}

// ---------------------------------------------------------------------------
// Children

// A token is what finds an end in the child: its handle and, as far as the system
// does not tell it of that, what this process knows.
type token struct {
	handle  syscall.Handle
	backlog int  // of a listener; 0 for every other end
	remote  bool // the other end is, or may be, on another machine
}

const (
	tokenSeparator = ":"
	tokenRemote    = ":remote"
)

// String writes the handle, ":" and the backlog of a listener, and ":remote".
func (t token) String() string {
	text := strconv.FormatUint(uint64(t.handle), 10)
	if t.backlog != 0 {
		text += tokenSeparator + strconv.Itoa(t.backlog)
	}
	if t.remote {
		text += tokenRemote
	}
	return text
}

// parseToken returns the zero token for what String does not write.
func parseToken(text string) (t token) {
	rest, remote := strings.CutSuffix(text, tokenRemote)
	handle, backlog, _ := strings.Cut(rest, tokenSeparator)
	h, _ := strconv.ParseUint(handle, 10, 32)
	n, _ := strconv.ParseUint(backlog, 10, 8)
	t = token{syscall.Handle(h), int(n), remote}
	if h == 0 || n > instancesMax || t.String() != text {
		return token{}
	}
	return t
}

func validToken(text string) bool { return parseToken(text) != token{} }

// keepFromChildren makes an inherited handle one that children do not inherit. It
// can fail only for what is no handle, and that is refused when it is asked for.
func keepFromChildren(text string) {
	syscall.SetHandleInformation(parseToken(text).handle, syscall.HANDLE_FLAG_INHERIT, 0)
}

// give adds the handle of the token to those that cmd's process inherits.
func (t token) give(cmd *exec.Cmd) (string, error) {
	err := syscall.SetHandleInformation(t.handle, syscall.HANDLE_FLAG_INHERIT, syscall.HANDLE_FLAG_INHERIT)
	if err != nil {
		return "", os.NewSyscallError("SetHandleInformation", err)
	}
	var attr syscall.SysProcAttr // a copy: other commands may share the caller's
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	given := attr.AdditionalInheritedHandles
	attr.AdditionalInheritedHandles = append(given[:len(given):len(given)], t.handle)
	cmd.SysProcAttr = &attr
	return t.String(), nil
}

// bequeath adds the handle to those that cmd's process inherits. A handle that
// was used may belong to the completion port of this process, for good.
func (f *fd) bequeath(cmd *exec.Cmd) (text string, err error) {
	if f.used.Load() {
		return "", &ruleError{"this end was used in this process", errors.ErrUnsupported}
	}
	err = f.control("", func(h syscall.Handle) error {
		text, err = token{handle: h, remote: f.remote}.give(cmd)
		return err
	})
	return text, err
}

func inheritedStream(text string) (*fd, error) {
	return inheritedFD(text, streams, reading|writing)
}

func inheritedMessages(text string) (*fd, error) {
	return inheritedFD(text, messages, reading|writing)
}

func inheritedPipe(text string) (*fd, error) { return inheritedFD(text, streams, 0) }

func inheritedFD(text string, kind transport, d direction) (*fd, error) {
	t := parseToken(text)
	if t.backlog != 0 {
		return nil, errNotThatEnd
	}
	f, err := adoptSys(t.handle, kind, d)
	if err == nil {
		f.remote = t.remote
	}
	return f, err
}

// errNotThatEnd refuses a handle that is not of the end that the variable says.
var errNotThatEnd = &ruleError{"the handle is not that of such an end", errors.ErrUnsupported}

// bequeath gives the child the instance that keeps the name. The child makes and
// arms others: on the listener's own, operations of this process are under way.
func (l *listener) bequeath(cmd *exec.Cmd) (text string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return "", net.ErrClosed
	case l.keeper == 0:
		return "", l.unkept
	}
	return token{l.keeper, l.backlog, l.spec.remote}.give(cmd)
}

func inheritedListener(text string) (*Listener, error) {
	t := parseToken(text)
	l, err := adoptListener(t.handle, t.backlog, t.remote)
	if err != nil {
		return nil, err
	}
	heir := &Listener{server{sys: l, addr: Name(l.spec.target[len(localPrefix):])}}
	heir.setRules(false, nil)
	return heir, nil
}

// adoptListener returns a listener whose instances are of the pipe of the keeper,
// which it owns; if it cannot, keeper stays as it was.
func adoptListener(keeper syscall.Handle, backlog int, remote bool) (*listener, error) {
	typ, err := syscall.GetFileType(keeper)
	if err != nil {
		return nil, os.NewSyscallError("GetFileType", err)
	}
	if typ != syscall.FILE_TYPE_PIPE || backlog == 0 {
		return nil, errNotThatEnd
	}
	info, err := localInfo(keeper)
	if err != nil {
		return nil, err
	}
	if info.end != pipeServerEnd || info.configuration != pipeDuplex || info.state != pipeClosing {
		return nil, errNotThatEnd
	}
	name, err := pipeName(keeper)
	if err != nil {
		return nil, err
	}
	security, err := securityOf(keeper)
	if err != nil {
		return nil, err
	}
	p, err := newPipeSpec(localPrefix+name, PipeConfig{
		Security: security, AcceptRemote: remote,
		ReadBuffer: int(info.inQuota), WriteBuffer: int(info.outQuota),
	})
	if err != nil {
		return nil, err
	}
	s, err := newInstances(p, backlog, 0)
	if err != nil {
		return nil, err
	}
	l, err := s.listen(false)
	if err != nil {
		return nil, err
	}
	s.keeper = keeper
	return l, nil
}

// ---------------------------------------------------------------------------
// Handles: the one way to system calls that may block
//
// Every read and write is an overlapped operation, and there are two ways to wait
// for its end. In its own thread, on an event: that is fast, as nobody has to wake
// a thread to look at a completion port and then another to run the goroutine,
// but it holds the thread. Or parked, as an os.File, which hands the handle to
// the runtime's completion port: that holds no thread, and one that waits long
// should do so.
//
// A read waits in its thread for a short time, if that paid lately, and is then
// cancelled, which loses nothing, and parks. A write cannot change from the one to
// the other, for when it is cancelled it is not known what the peer has read of
// it. Where no read has parked yet it waits in its thread until it is done, as
// long as few do so at once.
//
// The handle's value must not go to somebody else while a call uses it, so each
// operation counts as a user of the fd, and Close closes it after the last one.
// It becomes an os.File no sooner than it parks: once it belongs to the
// completion port of a process, it cannot be used asynchronously by another.

// An fd is an overlapped handle of one end of a pipe.
type fd struct {
	users // calls that use sys; the last one after Close tells Close

	sys    syscall.Handle
	kind   transport  // what it reads
	ends   direction  // what the pipe lets this end do
	server bool       // this is the server's end
	remote bool       // the other end is, or may be, on another machine
	made   time.Time  // when it was known to be connected
	place  *instances // where Close gives a place back; nil: there is no limit
	r, w   half

	dropped runtime.Cleanup // gives the place back if nobody calls Close

	spin atomic.Int64 // the most nanoseconds that a read waits in its thread; less than 0 is spinDefault
	used atomic.Bool  // something was read or written, or was to be

	mu      sync.Mutex      // guards what follows, and the end of each half; keeps Close and SetDeadline apart
	idle    chan struct{}   // made by Close; closed when it is the last user
	file    *os.File        // owns sys since the first park; nil before
	parks   bool            // file can park: sys belongs to no other completion port
	cleanup runtime.Cleanup // closes sys if nobody does; stopped when file takes over
}

// A half is one direction of an fd and the operation that is under way in it.
type half struct {
	mu     sync.Mutex // one operation at a time; guards one, sitOut and lost
	one    [1]byte    // for reads that must not be empty
	sitOut int        // reads that do not wait in their thread
	lost   int        // how many it had to sit out last

	held atomic.Bool // an empty message was read that is the next one's to read; changed under mu

	deadline time.Time // guarded by fd.mu
	slot     *slot     // of the operation that waits in its thread; guarded by fd.mu
}

// newFD takes ownership of h. If the fd is dropped without Close, the garbage
// collector closes it, as it does for os and net.
func newFD(h syscall.Handle, kind transport, ends direction, server bool) *fd {
	f := &fd{sys: h, kind: kind, ends: ends, server: server, made: time.Now()}
	f.spin.Store(-1)
	f.cleanup = runtime.AddCleanup(f, func(h syscall.Handle) { syscall.CloseHandle(h) }, h)
	return f
}

// unuse ends what use began. The last user tells Close.
func (f *fd) unuse() {
	if f.left() {
		close(f.idle)
	}
}

// close gives the place among the instances back, wakes whoever waits, and
// returns when the handle is gone.
func (f *fd) close() error {
	f.mu.Lock()
	if f.closing() {
		f.mu.Unlock()
		return net.ErrClosed
	}
	f.idle = make(chan struct{})
	f.shut()
	f.r.wake()
	f.w.wake()
	if f.parks {
		f.file.SetDeadline(time.Unix(1, 0)) // in the past: ends every wait
	}
	f.mu.Unlock()
	if f.place != nil {
		f.dropped.Stop()
		f.place.giveBack()
	}
	f.unuse()
	for gone := false; !gone; {
		select {
		case <-f.idle:
			gone = true
		case <-time.After(cancelPause): // Flush has nothing that could be woken
			syscall.CancelIoEx(f.sys, nil)
		}
	}
	f.cleanup.Stop()
	if f.file != nil { // nobody else is left to change it
		return callError("CloseHandle", f.file.Close())
	}
	return os.NewSyscallError("CloseHandle", syscall.CloseHandle(f.sys))
}

// cancelPause is the time between attempts to cancel a call that may not have
// begun.
const cancelPause = time.Millisecond

// enter begins an operation on a half, leave ends it.
func (f *fd) enter(d direction) (*half, error) {
	if f.ends&d == 0 {
		return nil, errDirection(f.ends)
	}
	h := &f.r
	if d == writing {
		h = &f.w
	}
	h.mu.Lock()
	if err := f.use(); err != nil {
		h.mu.Unlock()
		return nil, err
	}
	if !f.used.Load() {
		f.used.Store(true)
	}
	raceRelease()
	return h, nil
}

func (f *fd) leave(h *half) {
	raceAcquire()
	f.unuse()
	h.mu.Unlock()
}

// errDirection refuses what the direction of the pipe does not allow.
func errDirection(ends direction) error {
	if ends == reading {
		return &ruleError{"this end of a one-way pipe can only be read", errors.ErrUnsupported}
	}
	return &ruleError{"this end of a one-way pipe can only be written", errors.ErrUnsupported}
}

// control makes a call on the handle that does not block. Without a name for the
// error, call itself says which one it was.
func (f *fd) control(name string, call func(syscall.Handle) error) error {
	if err := f.use(); err != nil {
		return err
	}
	defer f.unuse()
	err := call(f.sys)
	if name == "" {
		return err
	}
	return callError(name, err)
}

// join makes the handle an os.File, if it is not yet, and reports whether that
// can park. The caller is a user.
func (f *fd) join() (file *os.File, parks bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		f.cleanup.Stop()
		f.file = os.NewFile(uintptr(f.sys), "pipe")
		f.parks = f.file.SetReadDeadline(f.r.deadline) == nil && f.file.SetWriteDeadline(f.w.deadline) == nil
		if f.parks && f.closing() {
			f.file.SetDeadline(time.Unix(1, 0)) // Close came before
		}
	}
	return f.file, f.parks
}

// receive makes one ReadFile. more says that there is more of the message; n is 0,
// without an error, if an empty write was read. With no room in p it waits for
// something to read and takes nothing of it, but for an empty message.
func (f *fd) receive(h *half, p []byte) (n int, more bool, err error) {
	if h.held.Load() {
		h.held.Store(false)
		return 0, false, nil
	}
	return f.receivePart(h, p, false)
}

// receiveRest is receive of the rest of a message, which is there. A deadline does
// not end it, or what was read of the message before would be lost.
func (f *fd) receiveRest(h *half, p []byte) (n int, more bool, err error) {
	return f.receivePart(h, p, true)
}

func (f *fd) receivePart(h *half, p []byte, rest bool) (n int, more bool, err error) {
	p = p[:min(len(p), ioMax)]
	for {
		if rest {
			n, err = f.readRest(h, p)
		} else {
			n, err = f.readFile(h, p)
		}
		switch err {
		case nil:
			return n, false, nil
		case syscall.ERROR_MORE_DATA: // n is not reliable: Wine leaves it 0
			return len(p), true, nil
		case syscall.ERROR_OPERATION_ABORTED: // by somebody else who has the handle
		default:
			return n, false, readError("ReadFile", err)
		}
	}
}

// readRest makes a ReadFile of what is there.
func (f *fd) readRest(h *half, p []byte) (int, error) {
	s, err := takeSlot(true)
	if err != nil {
		return 0, err
	}
	return f.inThread(h, s, patient, p, syscall.ReadFile)
}

// readFile makes a ReadFile and waits for its end in the way that suits.
func (f *fd) readFile(h *half, p []byte) (int, error) {
	if limit := f.spinLimit(h); limit > 0 {
		if s, _ := takeSlot(false); s != nil { // without one, it parks
			n, err := f.inThread(h, s, limit, p, syscall.ReadFile)
			if err != errInVain {
				return n, err
			}
		}
	}
	file, parks := f.join()
	if !parks {
		s, err := takeSlot(true)
		if err != nil {
			return 0, err
		}
		return f.inThread(h, s, forever, p, syscall.ReadFile)
	}

	// A read of an empty message and the end of the stream look alike to
	// os.File. What is in the queue of a peer that is gone does not change any
	// more: if there is something, the read gets it. If the peer is still there
	// after the read, that was a message.
	certain := false
	if f.kind == messages {
		info, err := localInfo(f.sys)
		if err == nil && info.state == pipeClosing {
			_, _, _, err = peekMessage(f.sys, nil)
			certain = err == nil
		}
		if err != nil {
			return 0, errnoOf(err)
		}
	}
	n, err := file.Read(p)
	if err == io.EOF && !certain {
		_, _, _, err = peekMessage(f.sys, nil)
	} else if err == io.EOF {
		err = nil
	}
	return n, f.whyEnded(err)
}

// whyEnded says why an operation of os.File ended: Close wakes those that wait by
// a deadline in the past, or cancels them.
func (f *fd) whyEnded(err error) error {
	err = errnoOf(err)
	if (err == os.ErrDeadlineExceeded || err == syscall.ERROR_OPERATION_ABORTED) && f.closing() {
		return net.ErrClosed
	}
	return err
}

// transmit makes a WriteFile, and for a stream of bytes too long for one more of
// them.
func (f *fd) transmit(h *half, p []byte) (n int, err error) {
	for {
		m, err := f.writeFile(h, p[n:min(len(p), n+ioMax)])
		n += m
		if err != nil || n >= len(p) {
			return n, writeError("WriteFile", err)
		}
	}
}

// writeFile makes a WriteFile and waits for its end in the way that suits: parked
// if a read of this end has parked before. For the race detector no os.File is
// written, which if it is read at the same time races with itself.
func (f *fd) writeFile(h *half, p []byte) (int, error) {
	f.mu.Lock()
	parks := f.parks
	f.mu.Unlock()
	var s *slot
	var err error
	if !parks || raceBuild() {
		s, err = takeSlot(raceBuild())
	}
	if s == nil && err == nil {
		file, parks := f.join()
		if parks {
			n, err := file.Write(p)
			return n, f.whyEnded(err)
		}
		s, err = takeSlot(true)
	}
	if err != nil {
		return 0, err
	}
	return f.inThread(h, s, forever, p, syscall.WriteFile)
}

// setDeadline sets the deadlines of one or both directions.
func (f *fd) setDeadline(t time.Time, d direction) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing() {
		return net.ErrClosed // or the wake-up of Close would be undone
	}
	if d&reading != 0 {
		f.r.deadline = t
		f.r.wake()
	}
	if d&writing != 0 {
		f.w.deadline = t
		f.w.wake()
	}
	switch {
	case !f.parks:
		return nil
	case d == reading:
		return callError("", f.file.SetReadDeadline(t))
	case d == writing:
		return callError("", f.file.SetWriteDeadline(t))
	}
	return callError("", f.file.SetDeadline(t))
}

// A rawConn is an fd as a syscall.RawConn. Windows has no readiness to wait for:
// Read and Write call the function once, in the order of reads and writes.
type rawConn struct{ f *fd }

func (f *fd) rawConn() (syscall.RawConn, error) { return rawConn{f}, nil }

func (c rawConn) Control(fn func(fd uintptr)) error {
	return c.f.control("", func(h syscall.Handle) error { fn(uintptr(h)); return nil })
}

func (c rawConn) Read(fn func(fd uintptr) bool) error  { return c.once(reading, fn) }
func (c rawConn) Write(fn func(fd uintptr) bool) error { return c.once(writing, fn) }

func (c rawConn) once(d direction, fn func(fd uintptr) bool) error {
	h, err := c.f.enter(d)
	if err != nil {
		return err
	}
	defer c.f.leave(h)
	if !fn(uintptr(c.f.sys)) {
		return errors.ErrUnsupported
	}
	return nil
}

// ---------------------------------------------------------------------------
// Waiting in the thread

// How long a read waits in its thread before it parks, if SetSpin does not say
// otherwise. A wait in vain costs the calls to cancel the read and to begin it
// again, so a half that waited in vain does not wait at its next reads, twice as
// many as the time before.
const (
	spinDefault = 2 * time.Millisecond
	sitOutMax   = 1024
)

// What is no limit: of an operation that does not park, and of one that does not
// end at the deadline either.
const (
	forever time.Duration = -1
	patient time.Duration = -2
)

// errInVain ends an operation that took longer than its limit.
var errInVain = errors.New("waited in vain")

func (f *fd) setSpin(d time.Duration) { f.spin.Store(int64(d)) }

// spinLimit returns how long the next read should wait in its thread.
func (f *fd) spinLimit(h *half) time.Duration {
	if h.sitOut > 0 {
		h.sitOut--
		return 0
	}
	if limit := time.Duration(f.spin.Load()); limit >= 0 {
		return limit
	}
	return spinDefault
}

// gauge learns from how a wait of limited time ended.
func (h *half) gauge(err error) {
	if err == errInVain {
		h.lost = min(2*h.lost+1, sitOutMax)
		h.sitOut = h.lost
	} else {
		h.lost /= 2
	}
}

// wake makes the operation that waits in its thread see whether it should go on.
// The caller holds fd.mu.
func (h *half) wake() {
	if h.slot != nil {
		setEvent(h.slot.event)
	}
}

// A slot is what an operation needs that its own thread waits for. The kernel
// uses overlapped and the buffers until the operation has ended.
type slot struct {
	overlapped syscall.Overlapped
	event      syscall.Handle // auto-reset: it has ended, or there may be a reason to end it
	buffers    [2]*byte       // keeps what is read into or written where it is: in the heap, alive
	done       uint32         // how many bytes were transferred, if the operation ended at once
	next       *slot          // in the list of free slots
}

// slotsMax is how many operations wait in their threads at once, but for those
// that cannot wait otherwise.
const slotsMax = 32

// slots are the slots of the process. They stay for its life, but for those made
// beyond slotsMax.
var slots struct {
	mu   sync.Mutex // guards the rest
	free *slot      // a list
	made int
}

// takeSlot returns a slot that nobody uses. If there are too many it returns none,
// unless the caller must have one.
func takeSlot(must bool) (*slot, error) {
	slots.mu.Lock()
	defer slots.mu.Unlock()
	if s := slots.free; s != nil {
		slots.free, s.next = s.next, nil
		return s, nil
	}
	if slots.made >= slotsMax && !must {
		return nil, nil
	}
	event, err := createEvent()
	if err != nil {
		return nil, err
	}
	slots.made++
	return &slot{event: event}, nil
}

func giveSlot(s *slot) {
	s.buffers = [2]*byte{}
	slots.mu.Lock()
	defer slots.mu.Unlock()
	if slots.made > slotsMax {
		slots.made--
		syscall.CloseHandle(s.event)
		return
	}
	slots.free, s.next = s, slots.free
}

// inThread makes the call with the slot, which it gives back, waits for its end
// within the limit, and returns how many bytes it transferred.
func (f *fd) inThread(h *half, s *slot, limit time.Duration, p []byte,
	call func(h syscall.Handle, p []byte, done *uint32, o *syscall.Overlapped) error) (int, error) {
	defer giveSlot(s)
	// What must not begin is not begun. A limit counts from then on.
	if _, err := f.mayWait(context.Background(), h, time.Time{}, min(limit, forever)); err != nil {
		return 0, err
	}
	s.begin()
	s.buffers[0] = unsafe.SliceData(p)
	err := call(f.sys, p, &s.done, &s.overlapped)
	if err != syscall.ERROR_IO_PENDING {
		return int(s.done), err
	}
	n, err := f.await(context.Background(), h, s, limit)
	if limit > 0 {
		h.gauge(err)
	}
	return n, err
}

// begin prepares the slot for an operation.
func (s *slot) begin() {
	s.done = 0
	s.overlapped = syscall.Overlapped{
		Internal: statusPending, // not every call sets it at once
		HEvent:   s.event | keepFromPort,
	}
}

// statusPending is where the kernel puts the result of an operation that is under
// way: STATUS_PENDING of ntstatus.h.
const statusPending = 0x103

// ended reports whether the kernel is done with an operation that did not end at
// once.
func ended(o *syscall.Overlapped) bool { return atomic.LoadUintptr(&o.Internal) != statusPending }

// await waits for the end of the operation in the slot, and cancels it when it
// should not go on. It returns when it has ended, in any case.
func (f *fd) await(ctx context.Context, h *half, s *slot, limit time.Duration) (int, error) {
	f.mu.Lock()
	h.slot = s
	f.mu.Unlock()
	begun := time.Now()
	var why error
	for !ended(&s.overlapped) {
		var wait uint32 = syscall.INFINITE
		if why == nil {
			if wait, why = f.mayWait(ctx, h, begun, limit); why != nil {
				wait = syscall.INFINITE
				// If there is nothing to cancel, it has ended or is about to.
				syscall.CancelIoEx(f.sys, &s.overlapped)
			}
		}
		waitFor(s.event, wait)
	}
	f.mu.Lock()
	h.slot = nil
	f.mu.Unlock()
	var n uint32
	err := overlappedResult(f.sys, &s.overlapped, &n)
	if err == syscall.ERROR_OPERATION_ABORTED {
		if why == nil { // Close may have cancelled everything
			_, why = f.mayWait(ctx, h, begun, limit)
		}
		if why != nil {
			err = why
		}
	}
	return int(n), err
}

// mayWait returns how many milliseconds an operation may wait on, or why it may
// not.
func (f *fd) mayWait(ctx context.Context, h *half, begun time.Time, limit time.Duration) (wait uint32, why error) {
	f.mu.Lock()
	until := h.deadline
	f.mu.Unlock()
	if limit == patient {
		until = time.Time{}
	}
	switch {
	case f.closing():
		return 0, net.ErrClosed
	case ctx.Err() != nil:
		return 0, contextError(ctx, nil)
	case !until.IsZero() && !time.Now().Before(until):
		return 0, os.ErrDeadlineExceeded
	}
	if limit > 0 {
		end := begun.Add(limit)
		if !time.Now().Before(end) {
			return 0, errInVain
		}
		if until.IsZero() || end.Before(until) {
			until = end
		}
	}
	return milliseconds(until), nil
}

// milliseconds returns how long to wait until t, which is none if zero.
func milliseconds(t time.Time) uint32 {
	if t.IsZero() {
		return syscall.INFINITE
	}
	return uint32(min(max(time.Until(t), 0)/time.Millisecond+1, 1<<30))
}

// ---------------------------------------------------------------------------
// Operations on handles

func (f *fd) read(p []byte) (int, error) {
	h, err := f.enter(reading)
	if err != nil {
		return 0, err
	}
	defer f.leave(h)
	return f.readStream(h, p)
}

// readStream reads at least one byte, wherever messages begin and end.
func (f *fd) readStream(h *half, p []byte) (n int, err error) {
	for len(p) > 0 && n == 0 && err == nil {
		n, _, err = f.receive(h, p)
	}
	return n, err
}

func (f *fd) write(p []byte) (int, error) {
	h, err := f.enter(writing)
	if err != nil {
		return 0, err
	}
	defer f.leave(h)
	if len(p) == 0 { // nothing to a stream, but something to a pipe
		return 0, nil
	}
	return f.transmit(h, p)
}

// readBuffers reads into the first buffer; what is there already goes on into
// the next ones.
func (f *fd) readBuffers(bufs [][]byte) (total int64, err error) {
	h, err := f.enter(reading)
	if err != nil {
		return 0, err
	}
	defer f.leave(h)
	for _, p := range bufs {
		if len(p) == 0 {
			continue
		}
		if total > 0 {
			if _, there, err := f.peek(nil); err != nil || there == 0 {
				break // the next read tells
			}
		}
		n, err := f.readStream(h, p)
		total += int64(n)
		if err != nil && total == 0 {
			return 0, err
		}
		if n < len(p) {
			break
		}
	}
	return total, nil
}

func (f *fd) writeBuffers(bufs *net.Buffers) (total int64, err error) {
	h, err := f.enter(writing)
	if err != nil {
		return 0, err
	}
	defer f.leave(h)
	for len(*bufs) > 0 {
		if p := (*bufs)[0]; len(p) > 0 {
			n, err := f.transmit(h, p)
			total += int64(n)
			if err != nil {
				(*bufs)[0] = p[n:]
				return total, err
			}
		}
		(*bufs)[0] = nil
		*bufs = (*bufs)[1:]
	}
	return total, nil
}

// send writes one message.
func (f *fd) send(p []byte) error {
	h, err := f.enter(writing)
	if err != nil {
		return err
	}
	defer f.leave(h)
	if f.kind != messages {
		return errNoMessages
	}
	if len(p) > ioMax {
		return errMsgTooLong
	}
	_, err = f.transmit(h, p)
	return err
}

// errNoMessages refuses operations on messages where there are only bytes.
var errNoMessages = &ruleError{"this end of the pipe does not read messages", errors.ErrUnsupported}

// readMessage reads one message or the part of it that fits into p.
func (f *fd) readMessage(p []byte) (n int, more bool, err error) {
	h, err := f.enter(reading)
	if err != nil {
		return 0, false, err
	}
	defer f.leave(h)
	switch {
	case f.kind != messages:
		return 0, false, errNoMessages
	case len(p) == 0:
		return 0, false, configError("the buffer", "empty", "one of at least one byte")
	}
	return f.receive(h, p)
}

// recv reads one message into p, and drops what does not fit.
func (f *fd) recv(p []byte) (int, error) {
	h, err := f.enter(reading)
	if err != nil {
		return 0, err
	}
	defer f.leave(h)
	into := p
	if len(p) == 0 {
		into = h.one[:]
	}
	n, more, err := f.receive(h, into)
	if more || n > len(p) {
		if more {
			err = f.drop(h)
		}
		if err == nil {
			err = errMsgDropped
		}
	}
	return min(n, len(p)), err
}

// errMsgTooLong refuses to send more than goes in one call.
var errMsgTooLong = &ruleError{"the message is longer than 1 GiB", ErrMsgTooLong}

// errMsgDropped says that the rest of a message is lost.
var errMsgDropped = &ruleError{"the message is longer than the buffer", ErrMsgTooLong}

// drop reads the rest of a message.
func (f *fd) drop(h *half) error {
	rest := make([]byte, 64<<10)
	for {
		if _, more, err := f.receiveRest(h, rest); err != nil || !more {
			return err
		}
	}
}

// recvAppend reads one message of any length to the end of dst.
func (f *fd) recvAppend(dst []byte) ([]byte, error) {
	h, err := f.enter(reading)
	if err != nil {
		return dst, err
	}
	defer f.leave(h)
	p := grow(dst, 1)
	n, more, err := f.receive(h, p[len(p):cap(p)])
	for p = p[:len(p)+n]; more && err == nil; p = p[:len(p)+n] {
		var left int
		if _, left, err = f.peek(nil); err == nil {
			p = grow(p, max(left, 1))
			n, more, err = f.receiveRest(h, p[len(p):cap(p)])
		}
		if err != nil {
			n = 0
		}
	}
	if err != nil {
		return dst, err
	}
	return p, nil
}

// grow returns p with room for n bytes more.
func grow(p []byte, n int) []byte {
	if cap(p)-len(p) >= n {
		return p
	}
	return append(make([]byte, 0, len(p)+max(n, 512)), p...)
}

// peek looks at what can be read, without waiting.
func (f *fd) peek(p []byte) (n, size int, err error) {
	if f.ends&reading == 0 {
		return 0, 0, errDirection(f.ends)
	}
	if f.r.held.Load() {
		return 0, 0, nil
	}
	err = f.control("", func(h syscall.Handle) (err error) {
		var avail, left int
		n, avail, left, err = peekMessage(h, p)
		if size = avail; f.kind == messages {
			size = n + left
		}
		return err
	})
	return n, size, readError("PeekNamedPipe", err)
}

// transact makes a TransactNamedPipe.
func (f *fd) transact(ctx context.Context, request, reply []byte) (int, error) {
	w, err := f.enter(writing)
	if err != nil {
		return 0, err
	}
	defer f.leave(w)
	r, err := f.enter(reading)
	if err != nil {
		return 0, err
	}
	defer f.leave(r)
	switch {
	case f.kind != messages:
		return 0, errNoMessages
	case len(request) > ioMax || len(reply) > ioMax:
		return 0, errMsgTooLong
	}
	s, err := takeSlot(true)
	if err != nil {
		return 0, err
	}
	defer giveSlot(s)
	if _, err := f.mayWait(ctx, r, time.Time{}, forever); err != nil {
		return 0, err
	}
	s.begin()
	s.buffers = [2]*byte{unsafe.SliceData(request), unsafe.SliceData(reply)}
	n := 0
	err = transactNamedPipe(f.sys, request, reply, &s.done, &s.overlapped)
	if err == syscall.ERROR_IO_PENDING {
		stop := context.AfterFunc(ctx, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			r.wake() // or the next operation, if this is late, which looks and goes on
		})
		n, err = f.await(ctx, r, s, forever)
		stop()
	} else {
		n = int(s.done)
	}
	if err == syscall.ERROR_MORE_DATA {
		if err = f.drop(r); err == nil {
			err = errMsgDropped
		}
		return len(reply), err
	}
	return n, writeError("TransactNamedPipe", err)
}

// flush makes a FlushFileBuffers, which holds its thread and has nothing to wake
// it by. It is cancelled again and again, since it may not have begun yet, when
// ctx ends, and by Close. A read that is cancelled along with it is made again.
func (f *fd) flush(ctx context.Context) error {
	if f.ends&writing == 0 {
		return nil
	}
	h, err := f.enter(writing)
	if err != nil {
		return err
	}
	defer f.leave(h)
	if ctx.Err() != nil {
		return contextError(ctx, nil)
	}
	returned, cancelled := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		for {
			syscall.CancelIoEx(f.sys, nil)
			select {
			case <-returned:
				return
			case <-time.After(cancelPause):
			}
		}
	})
	err = syscall.FlushFileBuffers(f.sys)
	close(returned)
	if !stop() {
		<-cancelled // it uses the handle no more
	}
	switch {
	case isGone(err):
		return nil
	case err == syscall.ERROR_OPERATION_ABORTED && f.closing():
		return net.ErrClosed
	case err == syscall.ERROR_OPERATION_ABORTED && ctx.Err() != nil:
		return contextError(ctx, nil)
	}
	return callError("FlushFileBuffers", err)
}

func (f *fd) closeRead() error  { return errors.ErrUnsupported }
func (f *fd) closeWrite() error { return errors.ErrUnsupported }

func (f *fd) setBuffer(direction, int) error { return errors.ErrUnsupported }

func (f *fd) spliceFrom(io.Reader) (int64, bool, error) { return 0, false, nil }
func (f *fd) spliceTo(io.Writer) (int64, bool, error)   { return 0, false, nil }

// peer tells of the process at the other end what is known for certain. Its
// number and session are recorded by the kernel when it opens or makes the pipe.
//
// The user of a server is the owner of the pipe. The user of a client is that of
// the token that the kernel took from it when it opened the pipe. A client that
// did not let the server see it (Anonymous), or whose token follows what it
// sends and that has sent nothing yet, is known by its process; see peerProcess.
func (f *fd) peer() (p Peer, err error) {
	pid, session := procServerProcessID, procServerSessionID
	if f.server {
		pid, session = procClientProcessID, procClientSessionID
	}
	err = f.control("", func(h syscall.Handle) error {
		if f.onOtherMachine(h) {
			return nil
		}
		n, err := pipeNumber(pid, h)
		if err != nil {
			return os.NewSyscallError(pid.Name, err)
		}
		p.pid, p.facts = int(n), knowsPID
		p.system.session, err = pipeNumber(session, h)
		p.system.knowsSession = err == nil
		return nil
	})
	if err != nil {
		return Peer{}, err
	}
	var trusted bool
	if f.server {
		p.user, trusted, err = f.clientUser()
	} else {
		p.user, trusted, err = f.owner()
	}
	if p.facts == 0 && err != nil {
		return Peer{}, err
	}
	p.system.trusted = trusted && err == nil && p.facts&knowsPID != 0
	return p, nil
}

// onOtherMachine reports whether the other end is, or may be, on another machine.
func (f *fd) onOtherMachine(h syscall.Handle) bool {
	return f.remote && (!f.server || !clientIsLocal(h))
}

// owner returns the owner of the pipe, and whether it is to be trusted.
func (f *fd) owner() (owner string, trusted bool, err error) {
	me, err := currentUser()
	if err != nil {
		return "", false, err
	}
	err = f.control("", func(h syscall.Handle) error {
		sd, err := securityOf(h)
		if err == nil {
			owner = sd.Owner()
		}
		return err
	})
	return owner, owner == me || owner == sidSystem || owner == sidAdministrators, err
}

// clientUser returns the user of the client, and whether it is to be trusted. It is
// not asked of the client's process: until the server accepts, the number of one that
// has ended can go to another.
func (f *fd) clientUser() (user string, trusted bool, err error) {
	me, err := currentUser()
	if err != nil {
		return "", false, err
	}
	if e := f.impersonate(func() {
		var token syscall.Token
		if token, err = threadToken(); err == nil {
			user, err = userOf(token)
			trusted = err == nil && (user == me || user == sidSystem || isAdministrator(token))
			token.Close()
		}
	}); e != nil {
		err = e
	}
	return user, trusted, err
}

func (f *fd) peerProcess(access uint32) (syscall.Handle, error) {
	process, _, err := f.openPeer(access)
	return process, err
}

// openPeer opens the process at the other end. One that began after this end
// was connected is another, with a number that was used again.
func (f *fd) openPeer(access uint32) (process syscall.Handle, pid uint32, err error) {
	const queryLimitedInformation = 0x1000 // winnt.h: PROCESS_QUERY_LIMITED_INFORMATION
	question := procServerProcessID
	if f.server {
		question = procClientProcessID
	}
	err = f.control("", func(h syscall.Handle) error {
		if f.onOtherMachine(h) {
			return errOtherMachine
		}
		if pid, err = pipeNumber(question, h); err != nil {
			return os.NewSyscallError(question.Name, err)
		}
		process, err = syscall.OpenProcess(access|queryLimitedInformation, false, pid)
		return os.NewSyscallError("OpenProcess", err)
	})
	if err != nil {
		return 0, 0, err
	}
	var created, exited, kernel, user syscall.Filetime
	if err = syscall.GetProcessTimes(process, &created, &exited, &kernel, &user); err != nil {
		err = os.NewSyscallError("GetProcessTimes", err)
	} else if time.Unix(0, created.Nanoseconds()).After(f.made.Add(clockTick)) {
		err = &ruleError{what: "the process of the peer has ended"}
	}
	if err != nil {
		syscall.CloseHandle(process)
		return 0, 0, err
	}
	return process, pid, nil
}

// errOtherMachine refuses what can be done with a process of this machine only.
var errOtherMachine = &ruleError{"the peer is on another machine", errors.ErrUnsupported}

// clockTick is the longest step of the clock that time.Now reads; processes are
// born by a finer one.
const clockTick = 16 * time.Millisecond

// impersonate runs f in the name of the client: see PipeConn.Impersonate. The
// thread that could not take its own identity back ends with the goroutine,
// which does not unlock it.
func (f *fd) impersonate(run func()) error {
	if !f.server {
		return errNotServer
	}
	var err error
	var panicked any
	returned, done := false, make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = f.control("ImpersonateNamedPipeClient", impersonateNamedPipeClient); err != nil {
			runtime.UnlockOSThread() // it did not become anybody else
			return
		}
		defer func() {
			panicked = recover()
			if err = revertToSelf(); err == nil {
				runtime.UnlockOSThread()
			}
		}()
		run()
		returned = true
	}()
	<-done
	switch {
	case panicked != nil:
		panic(panicked)
	case err == nil && !returned:
		runtime.Goexit() // as f did, in the test of a caller for one
	}
	return err
}

// dupFile joins first, or the duplicate would take this end's place at the
// completion port.
func (f *fd) dupFile(name string) (*os.File, error) {
	var d syscall.Handle
	err := f.control("", func(h syscall.Handle) (err error) {
		f.used.Store(true)
		f.join()
		d, err = duplicate(h)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(d), name), nil
}

func (f *fd) localAddr() Addr  { return Addr{} }
func (f *fd) remoteAddr() Addr { return Addr{} }

// ---------------------------------------------------------------------------
// Files over a connection
//
// A handle does not travel through a pipe. The sender duplicates it into a process
// that the receiver can take it from, if possible the receiver itself, and says so
// in a record, written by one WriteFile, which is one message where there are
// messages:
//
//	 0  8 bytes  "ipcfiles"
//	 8  4 bytes  1, the version
//	12  4 bytes  n, the number of files, 1 to 253
//	16  4 bytes  the id of the process that holds the handles
//	20  4 bytes  the count of the seals, random, 2^29 to 2^30-1
//	24  8n bytes of each file its handle and that of its seal, in that process
//
// The seal of a file is a semaphore of that count, whose maximum is 2^30 and a
// quarter of the handle of the file. The numbers have their least significant byte
// first; 32 bits of a handle are significant in every process, but for the lowest
// two. The receiver takes the handles away from the process that holds them
// (DUPLICATE_CLOSE_SOURCE), and closes the seals.
//
// The bytes prove nothing. A hostile peer could name handles that this process has
// of its own, to make it use or close them, and so could anybody whose data an
// honest peer passes on. Therefore a file counts only if its seal is where the
// record says: a semaphore such as no program has otherwise. Who can put it there,
// into this process or one that this process may take handles from, has the right
// to duplicate handles there (PROCESS_DUP_HANDLE), and could use and close them
// anyway; the system gives that right to no other user but SYSTEM and
// administrators, to no sandbox, and to no process of lower integrity. Who was only
// told of a seal, as the peer of a process that holds files for it is, can name no
// other handle by it.

const (
	recordMark    = "ipcfiles"
	recordVersion = 1
	recordHead    = 24
	recordMax     = recordHead + 8*maxFiles

	sealCount = 1 << 29 // the least
	sealLimit = 1 << 30 // the least, and more than any count

	processDupHandle = 0x40 // winnt.h: PROCESS_DUP_HANDLE
)

// A record is what the other side has to know of the handles.
type record struct {
	pid   uint32 // of the process that holds them
	count uint32 // of the seals
	files []sealedFile

	holder syscall.Handle // that process, opened; 0 before
}

// A sealedFile is the handle of a file and that of the seal that is of it alone.
type sealedFile struct{ file, seal uint32 }

// limit returns the maximum of the seal.
func (f sealedFile) limit() uint32 { return sealLimit | f.file>>2 }

// release closes the holder, which if it is this process is not a real handle.
func (r *record) release() {
	if r.holder != currentProcess {
		syscall.CloseHandle(r.holder)
	}
}

func (r *record) bytes() []byte {
	words := []uint32{recordVersion, uint32(len(r.files)), r.pid, r.count}
	for _, f := range r.files {
		words = append(words, f.file, f.seal)
	}
	p := append(make([]byte, 0, recordHead+8*len(r.files)), recordMark...)
	for _, word := range words {
		p = append(p, byte(word), byte(word>>8), byte(word>>16), byte(word>>24))
	}
	return p
}

// parseRecord returns the record at the head of p and its length, or none if that
// is not a record, or not all of it.
func parseRecord(p []byte) (r *record, size int, err error) {
	if len(p) < recordHead || string(p[:len(recordMark)]) != recordMark {
		return nil, 0, nil
	}
	if version := wordAt(p[8:]); version != recordVersion {
		return nil, 0, &ruleError{"the peer sends files in version " + strconv.FormatUint(uint64(version), 10) +
			" of the record, this is version " + strconv.Itoa(recordVersion), errors.ErrUnsupported}
	}
	n := wordAt(p[12:])
	r = &record{pid: wordAt(p[16:]), count: wordAt(p[20:])}
	if n < 1 || n > maxFiles || r.count < sealCount || r.count >= sealLimit {
		return nil, 0, nil
	}
	if size = recordHead + 8*int(n); size > len(p) {
		return nil, 0, nil
	}
	for at := recordHead; at < size; at += 8 {
		r.files = append(r.files, sealedFile{wordAt(p[at:]), wordAt(p[at+4:])})
	}
	return r, size, nil
}

// sendFiles sends the files and the data behind them. Of the zero byte that files
// travel with on Unix there is no need.
func (f *fd) sendFiles(files []*os.File, data []byte) error {
	h, err := f.enter(writing)
	if err != nil {
		return err
	}
	defer f.leave(h)
	if len(data) == len(zeroByte) {
		data = nil
	}
	return whileOpen(files, make([]syscall.Handle, 0, len(files)), func(handles []syscall.Handle) error {
		return f.sendHandles(h, handles, data)
	})
}

// sendHandles sends the handles and the data behind them.
func (f *fd) sendHandles(h *half, handles []syscall.Handle, data []byte) error {
	r, err := f.deposit(handles)
	if err != nil {
		return err
	}
	defer r.release()
	if _, err := f.transmit(h, append(r.bytes(), data...)); err != nil {
		r.remove()
		return err
	}
	return nil
}

// deposit duplicates the handles into the process that opened the other end: the
// receiver, or the one that gave the receiver its end. If that is gone, or this
// process may not open it, this process holds the duplicates itself, for the
// receiver may be able to open this one.
func (f *fd) deposit(handles []syscall.Handle) (*record, error) {
	if f.onOtherMachine(f.sys) {
		return nil, errOtherMachine
	}
	holder, pid, denied := f.openPeer(processDupHandle)
	r := &record{pid: pid, holder: holder}
	// While an end lives, so does whoever opened it, or it was handed on. So now
	// the process is the right one, or nobody finds the seal where it looks.
	info, err := localInfo(f.sys)
	if err == nil && info.state != pipeConnected {
		err = writeError("WriteFile", errNoData)
	}
	if denied == nil {
		if err == nil && r.put(handles) == nil {
			return r, nil
		}
		r.release()
	}
	if err != nil {
		return nil, err
	}
	r = &record{pid: uint32(os.Getpid()), holder: currentProcess}
	return r, r.put(handles)
}

// put duplicates the handles, and their seals, into the holder, all or none.
func (r *record) put(handles []syscall.Handle) error {
	var random [4]byte
	if err := randomBytes(random[:]); err != nil {
		return err
	}
	r.count = sealCount | wordAt(random[:])>>3
	for _, h := range handles {
		if err := r.add(h); err != nil {
			r.remove()
			return err
		}
	}
	return nil
}

// add duplicates one handle, and its seal, into the holder.
func (r *record) add(h syscall.Handle) error {
	there, err := duplicateHandle(currentProcess, h, r.holder, syscall.DUPLICATE_SAME_ACCESS)
	if err != nil {
		return err
	}
	f := sealedFile{file: uint32(there)}
	seal, err := createSemaphore(r.count, f.limit())
	if err == nil {
		seal, err = moveHandle(currentProcess, seal, r.holder)
	}
	if err != nil {
		closeIn(r.holder, there)
		return err
	}
	f.seal = uint32(seal)
	r.files = append(r.files, f)
	return nil
}

// remove closes what put has put into the holder, of which nobody knows.
func (r *record) remove() {
	for _, f := range r.files {
		closeIn(r.holder, syscall.Handle(f.file))
		closeIn(r.holder, syscall.Handle(f.seal))
	}
}

// recvFiles receives a record and nothing behind it. Data is left for the next read.
func (f *fd) recvFiles() ([]*os.File, error) {
	_, handles, err := f.takeFiles(nil)
	return filesOf(handles), err
}

// recvRights receives some data, and the files that it comes behind.
func (f *fd) recvRights(p []byte) (int, []*os.File, error) {
	n, handles, err := f.takeFiles(p)
	if err == ErrNoFiles {
		n, err = f.read(p)
	}
	return n, filesOf(handles), err
}

// filesOf returns the files of the handles. The connection is not locked meanwhile,
// for os.NewFile may have to wait: see Conn.RecvFiles.
func filesOf(handles []syscall.Handle) (files []*os.File) {
	for _, h := range handles {
		files = append(files, os.NewFile(uintptr(h), "received"))
	}
	return files
}

// takeFiles receives a record, and data of that length behind it, and takes the
// handles. What is something else is left where it is, and so is a record until it
// is known that the handles can be taken.
func (f *fd) takeFiles(data []byte) (n int, handles []syscall.Handle, err error) {
	h, err := f.enter(reading)
	if err != nil {
		return 0, nil, err
	}
	defer f.leave(h)
	r, size, err := f.nextRecord(h, len(data))
	if err != nil {
		return 0, nil, err
	}
	if err := r.open(); err != nil {
		return 0, nil, &classified{&classified{err, ErrUntrusted}, ErrNoFiles}
	}
	defer r.release()
	p := make([]byte, size+len(data))
	for n, _, err = f.receive(h, p); err == nil && n < len(p); {
		var m int
		m, _, err = f.receiveRest(h, p[n:])
		n += m
	}
	if err != nil {
		return 0, nil, err
	}
	if handles, err = r.take(); err != nil {
		err = &classified{err, ErrUntrusted}
	}
	return copy(data, p[size:]), handles, err
}

// nextRecord waits until there is something to read, and returns the record and its
// length if it is one, with so many bytes behind it. It reads nothing but an empty
// message, which it holds for the next read.
func (f *fd) nextRecord(h *half, behind int) (r *record, size int, err error) {
	p := make([]byte, recordMax+behind)
	pauses := patience{ctx: context.Background()}
	defer pauses.stop()
	for woken := false; !h.held.Load(); woken = true {
		n, _, left, err := peekMessage(f.sys, p)
		if err != nil {
			return nil, 0, readError("PeekNamedPipe", err)
		}
		if n > 0 {
			r, size, err := parseRecord(p[:n])
			if err == nil && (r == nil || n < size+behind || f.kind == messages && n+left != size+behind) {
				err = ErrNoFiles
			}
			return r, size, err
		}
		if woken { // by an empty write to a stream, which may go on waking
			pauses.pause()
		}
		_, more, err := f.receive(h, nil)
		if err != nil {
			return nil, 0, err
		}
		h.held.Store(f.kind == messages && !more)
	}
	return nil, 0, ErrNoFiles
}

// open opens the holder, if the seals are there.
func (r *record) open() (err error) {
	r.holder = currentProcess
	if int(r.pid) != os.Getpid() {
		if r.holder, err = syscall.OpenProcess(processDupHandle, false, r.pid); err != nil {
			return os.NewSyscallError("OpenProcess", err)
		}
	}
	for _, f := range r.files {
		if err = r.verify(f); err != nil {
			r.release()
			return err
		}
	}
	return nil
}

// verify looks for the seal of a file.
func (r *record) verify(f sealedFile) error {
	seal, err := duplicateHandle(r.holder, syscall.Handle(f.seal), currentProcess, syscall.DUPLICATE_SAME_ACCESS)
	if err != nil {
		return err
	}
	count, limit, err := semaphoreOf(seal)
	if err == nil && (count != r.count || limit != f.limit()) {
		err = &ruleError{what: "the peer tells of files that it has not sent"}
	}
	syscall.CloseHandle(seal)
	return err
}

// taking is held from the last look at the seal of a file until that is taken, so
// that of a record that was sent twice, and of a file that stands in it twice, only
// one counts: what has the number of a handle that was taken is something else.
var taking sync.Mutex

// take takes the handles away from the holder, all or none, and closes the seals.
func (r *record) take() (handles []syscall.Handle, err error) {
	taking.Lock()
	defer taking.Unlock()
	for _, f := range r.files {
		if e := r.verify(f); e != nil {
			err = e
			continue
		}
		closeIn(r.holder, syscall.Handle(f.seal))
		h, e := moveHandle(r.holder, syscall.Handle(f.file), currentProcess)
		if e != nil {
			err = e
			continue
		}
		handles = append(handles, h)
	}
	if err != nil {
		for _, h := range handles {
			syscall.CloseHandle(h)
		}
		return nil, err
	}
	return handles, nil
}

// ---------------------------------------------------------------------------
// Errors

// winerror.h: what package syscall lacks.
const (
	errPipeLocal        syscall.Errno = 229 // ERROR_PIPE_LOCAL
	errBadPipe          syscall.Errno = 230 // ERROR_BAD_PIPE
	errPipeBusy         syscall.Errno = 231 // ERROR_PIPE_BUSY
	errNoData           syscall.Errno = 232 // ERROR_NO_DATA
	errPipeNotConnected syscall.Errno = 233 // ERROR_PIPE_NOT_CONNECTED
	errPipeConnected    syscall.Errno = 535 // ERROR_PIPE_CONNECTED
)

// readError is the callError of a read: nothing more comes from a peer that is
// gone.
func readError(call string, err error) error {
	if err = errnoOf(err); isGone(err) {
		return io.EOF
	}
	return callError(call, err)
}

// writeError is the callError of a write: a peer that is gone matches EPIPE.
func writeError(call string, err error) error {
	if err = errnoOf(err); isGone(err) {
		return &classified{os.NewSyscallError(call, err), syscall.EPIPE}
	}
	return callError(call, err)
}

// isGone reports whether the error is one of those by which Windows says that the
// other end was closed or disconnected.
func isGone(err error) bool {
	return err == syscall.ERROR_BROKEN_PIPE || err == errNoData || err == errPipeNotConnected || err == errBadPipe
}

// errnoOf returns the errno in err, or what else os.File means by it.
func errnoOf(err error) error {
	switch e := err.(type) {
	case *classified:
		return errnoOf(e.err)
	case *os.SyscallError:
		return e.Err
	case *fs.PathError:
		if e.Err == os.ErrClosed {
			return net.ErrClosed
		}
		return e.Err
	}
	return err
}

// ---------------------------------------------------------------------------
// System calls

// Package syscall loads these libraries from the folder of the system alone, so that
// none that lies beside the program takes their place.
var (
	kernel32 = syscall.NewLazyDLL("kernel32.dll")
	advapi32 = syscall.NewLazyDLL("advapi32.dll")
	ntdll    = syscall.NewLazyDLL("ntdll.dll")

	procCreateEvent             = kernel32.NewProc("CreateEventW")
	procCreateSemaphore         = kernel32.NewProc("CreateSemaphoreW")
	procMapViewOfFileEx         = kernel32.NewProc("MapViewOfFileEx")
	procSetEvent                = kernel32.NewProc("SetEvent")
	procGetOverlappedResult     = kernel32.NewProc("GetOverlappedResult")
	procConnectNamedPipe        = kernel32.NewProc("ConnectNamedPipe")
	procDisconnectNamedPipe     = kernel32.NewProc("DisconnectNamedPipe")
	procPeekNamedPipe           = kernel32.NewProc("PeekNamedPipe")
	procTransactNamedPipe       = kernel32.NewProc("TransactNamedPipe")
	procVirtualAlloc            = kernel32.NewProc("VirtualAlloc")
	procVirtualFree             = kernel32.NewProc("VirtualFree")
	procWaitNamedPipe           = kernel32.NewProc("WaitNamedPipeW")
	procSetNamedPipeHandleState = kernel32.NewProc("SetNamedPipeHandleState")
	procClientComputerName      = kernel32.NewProc("GetNamedPipeClientComputerNameW")
	procClientProcessID         = kernel32.NewProc("GetNamedPipeClientProcessId")
	procClientSessionID         = kernel32.NewProc("GetNamedPipeClientSessionId")
	procServerProcessID         = kernel32.NewProc("GetNamedPipeServerProcessId")
	procServerSessionID         = kernel32.NewProc("GetNamedPipeServerSessionId")

	procCheckTokenMembership       = advapi32.NewProc("CheckTokenMembership")
	procGetKernelObjectSecurity    = advapi32.NewProc("GetKernelObjectSecurity")
	procImpersonateNamedPipeClient = advapi32.NewProc("ImpersonateNamedPipeClient")
	procOpenThreadToken            = advapi32.NewProc("OpenThreadToken")
	procRtlGenRandom               = advapi32.NewProc("SystemFunction036") // as ntsecapi.h says
	procRevertToSelf               = advapi32.NewProc("RevertToSelf")
	procStringToSecurityDescriptor = advapi32.NewProc("ConvertStringSecurityDescriptorToSecurityDescriptorW")
	procSecurityDescriptorToString = advapi32.NewProc("ConvertSecurityDescriptorToStringSecurityDescriptorW")
	procNtCreateNamedPipeFile      = ntdll.NewProc("NtCreateNamedPipeFile")
	procNtQueryInformationFile     = ntdll.NewProc("NtQueryInformationFile")
	procNtQueryObject              = ntdll.NewProc("NtQueryObject")
	procNtQuerySection             = ntdll.NewProc("NtQuerySection")
	procNtQuerySemaphore           = ntdll.NewProc("NtQuerySemaphore")
	procNtQueryVolumeInformation   = ntdll.NewProc("NtQueryVolumeInformationFile")
	procRtlNtStatusToDosError      = ntdll.NewProc("RtlNtStatusToDosError")
)

// The pseudo handles of processthreadsapi.h.
const (
	currentProcess      = ^syscall.Handle(0)     // GetCurrentProcess() is -1
	currentThread       = ^syscall.Handle(0) - 1 // GetCurrentThread() is -2
	currentProcessToken = ^syscall.Token(0) - 3  // GetCurrentProcessToken() is -4
)

// failure returns the error of a call that returns 0 when it fails.
func failure(result uintptr, errno syscall.Errno) error {
	switch {
	case result != 0:
		return nil
	case errno == 0:
		return syscall.EINVAL
	}
	return errno
}

// ntError returns the Windows error of a native call's status.
func ntError(status uintptr) error {
	if int32(status) >= 0 {
		return nil
	}
	errno, _, _ := syscall.SyscallN(procRtlNtStatusToDosError.Addr(), status)
	return syscall.Errno(errno)
}

// createEvent makes an auto-reset event.
func createEvent() (syscall.Handle, error) {
	h, _, errno := syscall.SyscallN(procCreateEvent.Addr(), 0, 0, 0, 0)
	return syscall.Handle(h), os.NewSyscallError("CreateEvent", failure(h, errno))
}

// setEvent cannot fail for an event, and the callers have one.
func setEvent(event syscall.Handle) { syscall.SyscallN(procSetEvent.Addr(), uintptr(event)) }

// waitFor waits for an event. A wait that fails, for which there is no reason, is
// one that ended early: who waits examines everything again.
func waitFor(event syscall.Handle, milliseconds uint32) {
	syscall.WaitForSingleObject(event, milliseconds)
}

// keepFromPort, in the event of an OVERLAPPED, keeps the end of the operation
// from the completion port that the handle belongs to (GetQueuedCompletionStatus).
const keepFromPort = 1

func overlappedResult(h syscall.Handle, o *syscall.Overlapped, n *uint32) error {
	var none uint32
	if n == nil {
		n = &none
	}
	r, _, errno := syscall.SyscallN(procGetOverlappedResult.Addr(),
		uintptr(h), uintptr(unsafe.Pointer(o)), uintptr(unsafe.Pointer(n)), 0)
	return failure(r, errno)
}

// create makes one instance: the first of a pipe that does not exist yet, or one
// more of a pipe that does. That a pipe exists is ERROR_ACCESS_DENIED, and so is
// much else; it may also be gone by the time it is looked for, which is to be tried
// again, though not for ever.
func (p *pipeSpec) create(first bool) (syscall.Handle, error) {
	const attempts = 100
	for n := 1; ; n++ {
		h, err := p.createInstance(first)
		switch {
		case err == nil:
			return h, nil
		case first && (err == syscall.ERROR_ALREADY_EXISTS || err == syscall.ERROR_ACCESS_DENIED && pipeExists(p.target)):
			return 0, &classified{os.NewSyscallError("NtCreateNamedPipeFile", err), ErrAddrInUse}
		case !first || err != syscall.ERROR_ACCESS_DENIED || n == attempts:
			return 0, os.NewSyscallError("NtCreateNamedPipeFile", err)
		}
	}
}

// createInstance makes one attempt. CreateNamedPipe would do for the first instance,
// but for one more it would as well make a new pipe, if the name was free.
func (p *pipeSpec) createInstance(first bool) (syscall.Handle, error) {
	const (
		// winnt.h, wdm.h, ntifs.h
		objCaseInsensitive = 0x40
		objInherit         = 0x2
		fileOpen           = 1
		fileCreate         = 2
		fileWriteThrough   = 2
		filePipeMessage    = 1 // FILE_PIPE_MESSAGE_TYPE and FILE_PIPE_MESSAGE_MODE
		filePipeRejectFar  = 2 // FILE_PIPE_REJECT_REMOTE_CLIENTS
		unlimited          = 0xffffffff
	)
	path, err := syscall.UTF16FromString(`\??\pipe\` + p.target[len(localPrefix):])
	if err != nil {
		return 0, err
	}
	name := unicodeString{uint16(2 * (len(path) - 1)), uint16(2 * len(path)), &path[0]}
	attributes := objectAttributes{name: &name, attributes: objCaseInsensitive, security: &p.security.raw[0]}
	attributes.length = uint32(unsafe.Sizeof(attributes))
	if p.inherit {
		attributes.attributes |= objInherit
	}
	disposition, options, typ, mode := uintptr(fileOpen), uintptr(0), uintptr(0), uintptr(0)
	if first {
		disposition = fileCreate
	}
	if p.through {
		options = fileWriteThrough
	}
	if p.kind == messages {
		typ, mode = filePipeMessage, filePipeMessage
	}
	if !p.remote {
		typ |= filePipeRejectFar
	}
	rights, share := uint32(syscall.SYNCHRONIZE), uintptr(0)
	if p.ends&reading != 0 {
		rights |= syscall.GENERIC_READ | syscall.FILE_WRITE_ATTRIBUTES
		share |= syscall.FILE_SHARE_WRITE
	}
	if p.ends&writing != 0 {
		rights |= syscall.GENERIC_WRITE | fileReadAttributes
		share |= syscall.FILE_SHARE_READ
	}
	var h syscall.Handle
	var status ioStatus
	r, _, _ := syscall.SyscallN(procNtCreateNamedPipeFile.Addr(),
		uintptr(unsafe.Pointer(&h)), uintptr(rights), uintptr(unsafe.Pointer(&attributes)),
		uintptr(unsafe.Pointer(&status)), share, disposition, options, typ, mode, 0,
		unlimited, uintptr(p.in), uintptr(p.out), uintptr(unsafe.Pointer(&p.wait)))
	return h, ntError(r)
}

// ntdef.h: UNICODE_STRING; lengths in bytes.
type unicodeString struct {
	length, capacity uint16
	buffer           *uint16
}

// ntdef.h: OBJECT_ATTRIBUTES.
type objectAttributes struct {
	length     uint32
	root       syscall.Handle
	name       *unicodeString
	attributes uint32
	security   *byte
	quality    uintptr
}

// wdm.h: IO_STATUS_BLOCK.
type ioStatus struct{ status, information uintptr }

// fileReadAttributes is FILE_READ_ATTRIBUTES of winnt.h, which a pipe of any
// direction lets clients have.
const fileReadAttributes = 0x80

// openPipe opens a client's end.
func openPipe(target string, rights, flags uint32) (syscall.Handle, error) {
	path, err := syscall.UTF16PtrFromString(target)
	if err != nil {
		return 0, err
	}
	h, err := syscall.CreateFile(path, rights, 0, nil, syscall.OPEN_EXISTING, syscall.FILE_FLAG_OVERLAPPED|flags, 0)
	return h, os.NewSyscallError("CreateFile", err)
}

// pipeExists reports whether there is a pipe, without using up an instance.
func pipeExists(target string) bool {
	path, err := syscall.UTF16PtrFromString(target)
	if err != nil {
		return false
	}
	const shortest = 1 // millisecond
	r, _, errno := syscall.SyscallN(procWaitNamedPipe.Addr(), uintptr(unsafe.Pointer(path)), shortest)
	return r != 0 || errno != syscall.ERROR_FILE_NOT_FOUND
}

func connectNamedPipe(h syscall.Handle, o *syscall.Overlapped) error {
	r, _, errno := syscall.SyscallN(procConnectNamedPipe.Addr(), uintptr(h), uintptr(unsafe.Pointer(o)))
	return failure(r, errno)
}

func disconnectNamedPipe(h syscall.Handle) error {
	r, _, errno := syscall.SyscallN(procDisconnectNamedPipe.Addr(), uintptr(h))
	return failure(r, errno)
}

// peekMessage returns how much it copied, how much there is to read, and how
// much of the message at the head was not copied.
func peekMessage(h syscall.Handle, p []byte) (n, avail, left int, err error) {
	var read, total, rest uint32
	p = p[:min(len(p), ioMax)]
	r, _, errno := syscall.SyscallN(procPeekNamedPipe.Addr(), uintptr(h),
		uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		uintptr(unsafe.Pointer(&read)), uintptr(unsafe.Pointer(&total)), uintptr(unsafe.Pointer(&rest)))
	return int(read), int(total), int(rest), failure(r, errno)
}

func transactNamedPipe(h syscall.Handle, request, reply []byte, done *uint32, o *syscall.Overlapped) error {
	r, _, errno := syscall.SyscallN(procTransactNamedPipe.Addr(), uintptr(h),
		uintptr(unsafe.Pointer(unsafe.SliceData(request))), uintptr(len(request)),
		uintptr(unsafe.Pointer(unsafe.SliceData(reply))), uintptr(len(reply)),
		uintptr(unsafe.Pointer(done)), uintptr(unsafe.Pointer(o)))
	return failure(r, errno)
}

func setMessageMode(h syscall.Handle) error {
	mode := uint32(2) // PIPE_READMODE_MESSAGE
	r, _, errno := syscall.SyscallN(procSetNamedPipeHandleState.Addr(), uintptr(h), uintptr(unsafe.Pointer(&mode)), 0, 0)
	return failure(r, errno)
}

// pipeNumber asks one of the questions about a pipe whose answer is a number.
func pipeNumber(question *syscall.LazyProc, h syscall.Handle) (n uint32, err error) {
	r, _, errno := syscall.SyscallN(question.Addr(), uintptr(h), uintptr(unsafe.Pointer(&n)))
	return n, failure(r, errno)
}

// clientIsLocal reports whether the client of a server's end is on this machine.
func clientIsLocal(h syscall.Handle) bool {
	if procClientComputerName.Find() != nil {
		return false
	}
	var name [256]uint16
	r, _, errno := syscall.SyscallN(procClientComputerName.Addr(), uintptr(h), uintptr(unsafe.Pointer(&name)), unsafe.Sizeof(name))
	return r == 0 && errno == errPipeLocal
}

// ntifs.h: FILE_PIPE_LOCAL_INFORMATION.
type pipeInfo struct {
	typ, configuration, limit, count      uint32
	inQuota, readable, outQuota, writable uint32
	state, end                            uint32
}

// ntifs.h: FILE_PIPE_CONNECTED_STATE, and CLOSING when the other end is gone;
// FILE_PIPE_FULL_DUPLEX; FILE_PIPE_SERVER_END.
const (
	pipeConnected = 3
	pipeClosing   = 4
	pipeDuplex    = 2
	pipeServerEnd = 1
)

func localInfo(h syscall.Handle) (info pipeInfo, err error) {
	const filePipeLocalInformation = 24
	err = queryFile(h, filePipeLocalInformation, unsafe.Pointer(&info), unsafe.Sizeof(info))
	return info, err
}

// pipeName returns the name of the pipe of a handle, without the folder of pipes.
func pipeName(h syscall.Handle) (string, error) {
	const fileNameInformation = 9
	var info struct {
		length uint32 // in bytes
		name   [pathMax + 1]uint16
	}
	err := queryFile(h, fileNameInformation, unsafe.Pointer(&info), unsafe.Sizeof(info))
	if err != nil {
		return "", err
	}
	name := syscall.UTF16ToString(info.name[:min(int(info.length/2), len(info.name))])
	return strings.TrimPrefix(name, `\`), nil
}

// readMode returns what the end reads. One whose reads and writes do not wait
// (PIPE_NOWAIT) is refused: they look like the end of the stream, and like success.
func readMode(h syscall.Handle) (transport, error) {
	const (
		filePipeInformation = 23
		messageMode         = 1 // FILE_PIPE_MESSAGE_MODE
		completeOperation   = 1 // FILE_PIPE_COMPLETE_OPERATION
	)
	var info struct{ read, completion uint32 }
	err := queryFile(h, filePipeInformation, unsafe.Pointer(&info), unsafe.Sizeof(info))
	switch {
	case err != nil:
		return streams, err
	case info.completion == completeOperation:
		return streams, &ruleError{"the reads and writes of the pipe do not wait", errors.ErrUnsupported}
	case info.read == messageMode:
		return messages, nil
	}
	return streams, nil
}

// fileMode returns the options that the handle was opened with.
func fileMode(h syscall.Handle) (mode uint32, err error) {
	const fileModeInformation = 16
	err = queryFile(h, fileModeInformation, unsafe.Pointer(&mode), unsafe.Sizeof(mode))
	return mode, err
}

// isFar reports whether the handle is that of a file of another machine.
func isFar(h syscall.Handle) (bool, error) {
	const (
		fileFsDeviceInformation = 4    // wdm.h
		fileRemoteDevice        = 0x10 // FILE_REMOTE_DEVICE
	)
	var info struct{ typ, characteristics uint32 }
	var status ioStatus
	r, _, _ := syscall.SyscallN(procNtQueryVolumeInformation.Addr(), uintptr(h), uintptr(unsafe.Pointer(&status)),
		uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), fileFsDeviceInformation)
	return info.characteristics&fileRemoteDevice != 0, os.NewSyscallError("NtQueryVolumeInformationFile", ntError(r))
}

func queryFile(h syscall.Handle, class uintptr, info unsafe.Pointer, size uintptr) error {
	var status ioStatus
	r, _, _ := syscall.SyscallN(procNtQueryInformationFile.Addr(), uintptr(h),
		uintptr(unsafe.Pointer(&status)), uintptr(info), size, class)
	return os.NewSyscallError("NtQueryInformationFile", ntError(r))
}

// duplicate returns another handle of this process.
func duplicate(h syscall.Handle) (syscall.Handle, error) {
	return duplicateHandle(currentProcess, h, currentProcess, syscall.DUPLICATE_SAME_ACCESS)
}

// duplicateHandle duplicates a handle of one process into another, whose children
// do not inherit it.
func duplicateHandle(from, h, to syscall.Handle, options uint32) (d syscall.Handle, err error) {
	err = syscall.DuplicateHandle(from, h, to, &d, 0, false, options)
	return d, os.NewSyscallError("DuplicateHandle", err)
}

// moveHandle is duplicateHandle that closes h, whether it fails or not.
func moveHandle(from, h, to syscall.Handle) (syscall.Handle, error) {
	return duplicateHandle(from, h, to, syscall.DUPLICATE_SAME_ACCESS|syscall.DUPLICATE_CLOSE_SOURCE)
}

// closeIn closes a handle of a process. It fails only if that has ended, which
// closed it.
func closeIn(process, h syscall.Handle) {
	syscall.DuplicateHandle(process, h, 0, nil, 0, false, syscall.DUPLICATE_CLOSE_SOURCE)
}

func createSemaphore(count, limit uint32) (syscall.Handle, error) {
	h, _, errno := syscall.SyscallN(procCreateSemaphore.Addr(), 0, uintptr(count), uintptr(limit), 0)
	return syscall.Handle(h), os.NewSyscallError("CreateSemaphore", failure(h, errno))
}

// semaphoreOf returns the count and the maximum of a semaphore.
func semaphoreOf(h syscall.Handle) (count, limit uint32, err error) {
	const semaphoreBasicInformation = 0
	var info struct{ count, limit uint32 } // SEMAPHORE_BASIC_INFORMATION
	r, _, _ := syscall.SyscallN(procNtQuerySemaphore.Addr(), uintptr(h), semaphoreBasicInformation,
		uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), 0)
	return info.count, info.limit, os.NewSyscallError("NtQuerySemaphore", ntError(r))
}

// randomBytes fills p from the system's generator for secrets.
func randomBytes(p []byte) error {
	r, _, errno := syscall.SyscallN(procRtlGenRandom.Addr(), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return os.NewSyscallError("RtlGenRandom", failure(r&0xff, errno)) // a BOOLEAN is one byte
}

func impersonateNamedPipeClient(h syscall.Handle) error {
	r, _, errno := syscall.SyscallN(procImpersonateNamedPipeClient.Addr(), uintptr(h))
	return failure(r, errno)
}

func revertToSelf() error {
	r, _, errno := syscall.SyscallN(procRevertToSelf.Addr())
	return os.NewSyscallError("RevertToSelf", failure(r, errno))
}

// threadToken returns the token that this thread impersonates. It is opened with
// the rights of the process, since a client's may not suffice.
func threadToken() (token syscall.Token, err error) {
	r, _, errno := syscall.SyscallN(procOpenThreadToken.Addr(), uintptr(currentThread), syscall.TOKEN_QUERY, 1,
		uintptr(unsafe.Pointer(&token)))
	return token, os.NewSyscallError("OpenThreadToken", failure(r, errno))
}

// isAdministrator reports whether the user that a thread's token stands for may act
// as an administrator: one that the system does not answer for may not.
func isAdministrator(token syscall.Token) bool {
	sid, err := syscall.StringToSid(sidAdministrators)
	if err != nil {
		return false
	}
	var member int32
	r, _, _ := syscall.SyscallN(procCheckTokenMembership.Addr(), uintptr(token),
		uintptr(unsafe.Pointer(sid)), uintptr(unsafe.Pointer(&member)))
	return r != 0 && member != 0
}

// winnt.h: SECURITY_INFORMATION.
const (
	ownerGroupAndDACL = 1 | 2 | 4
	saclAndLabel      = 8 | 0x10
)

// securityOf reads the security descriptor of a handle that has READ_CONTROL.
func securityOf(h syscall.Handle) (*SecurityDescriptor, error) {
	raw := make([]byte, 512)
	for {
		var needed uint32
		r, _, errno := syscall.SyscallN(procGetKernelObjectSecurity.Addr(), uintptr(h), ownerGroupAndDACL,
			uintptr(unsafe.Pointer(&raw[0])), uintptr(len(raw)), uintptr(unsafe.Pointer(&needed)))
		switch err := failure(r, errno); {
		case err == nil:
			return &SecurityDescriptor{raw[:min(int(needed), len(raw))]}, nil
		case err != syscall.ERROR_INSUFFICIENT_BUFFER || int(needed) <= len(raw):
			return nil, os.NewSyscallError("GetKernelObjectSecurity", err)
		}
		raw = make([]byte, needed)
	}
}

const sddlRevision = 1 // sddl.h: SDDL_REVISION_1

func parseSDDL(sddl string) ([]byte, error) {
	text, err := syscall.UTF16PtrFromString(sddl)
	if err != nil {
		return nil, err
	}
	var sd *byte
	var size uint32
	r, _, errno := syscall.SyscallN(procStringToSecurityDescriptor.Addr(), uintptr(unsafe.Pointer(text)), sddlRevision,
		uintptr(unsafe.Pointer(&sd)), uintptr(unsafe.Pointer(&size)))
	if err := failure(r, errno); err != nil {
		return nil, os.NewSyscallError("ConvertStringSecurityDescriptorToSecurityDescriptor", err)
	}
	raw := append([]byte(nil), unsafe.Slice(sd, size)...)
	return raw, freeLocal(unsafe.Pointer(sd))
}

func formatSDDL(raw []byte) string {
	if len(raw) == 0 {
		return ""
	}
	var text *uint16
	var units uint32
	r, _, errno := syscall.SyscallN(procSecurityDescriptorToString.Addr(), uintptr(unsafe.Pointer(&raw[0])), sddlRevision,
		ownerGroupAndDACL|saclAndLabel, uintptr(unsafe.Pointer(&text)), uintptr(unsafe.Pointer(&units)))
	if failure(r, errno) != nil {
		return ""
	}
	defer freeLocal(unsafe.Pointer(text))
	return syscall.UTF16ToString(unsafe.Slice(text, units))
}

// freeLocal gives back what the system allocated for the caller.
func freeLocal(p unsafe.Pointer) error {
	_, err := syscall.LocalFree(syscall.Handle(p))
	return os.NewSyscallError("LocalFree", err)
}

// ---------------------------------------------------------------------------
// Shared memory

// winnt.h
const (
	sectionQuery    = 0x1        // SECTION_QUERY
	sectionMapWrite = 0x2        // SECTION_MAP_WRITE
	sectionMapRead  = 0x4        // SECTION_MAP_READ
	secFile         = 0x00800000 // SEC_FILE
	secImage        = 0x01000000 // SEC_IMAGE
	secReserve      = 0x04000000 // SEC_RESERVE
	secCommit       = 0x08000000 // SEC_COMMIT
	secLargePages   = 0x80000000 // SEC_LARGE_PAGES
)

// newMemory makes a section without a name and without a file, all of it committed, and a
// handle of it for reading alone.
func newMemory(size int) (memoryFiles, error) {
	h, err := syscall.CreateFileMapping(syscall.InvalidHandle, nil, syscall.PAGE_READWRITE, uint32(uint64(size)>>32), uint32(size), nil)
	if err != nil {
		return memoryFiles{}, os.NewSyscallError("CreateFileMapping", err)
	}
	object := os.NewFile(uintptr(h), "memory")
	readOnly, err := openReadOnly(object)
	if err != nil {
		object.Close()
		return memoryFiles{}, err
	}
	return memoryFiles{object, readOnly}, nil
}

// sealMemory has nothing to do: a section never shrinks, and a peer gets a handle for reading
// alone.
func sealMemory(*os.File, bool) error { return nil }

// checkMemory refuses every handle that is not that of a section of committed memory. Behind
// a section with a file, reading can fail, and in one that is only reserved, it does.
func checkMemory(f *os.File) (memoryInfo, error) {
	const (
		sectionBasicInformation = 0 // ntifs.h
		objectBasicInformation  = 0
	)
	var section struct { // SECTION_BASIC_INFORMATION
		base       uintptr
		attributes uint32
		size       int64
	}
	var object struct { // OBJECT_BASIC_INFORMATION
		attributes, access, handles, pointers uint32
		_                                     [10]uint32
	}
	err := withFile(f, func(sys uintptr) error {
		r, _, _ := syscall.SyscallN(procNtQuerySection.Addr(), sys, sectionBasicInformation,
			uintptr(unsafe.Pointer(&section)), unsafe.Sizeof(section), 0)
		if err := ntError(r); err != nil {
			return os.NewSyscallError("NtQuerySection", err)
		}
		r, _, _ = syscall.SyscallN(procNtQueryObject.Addr(), sys, objectBasicInformation,
			uintptr(unsafe.Pointer(&object)), unsafe.Sizeof(object), 0)
		return os.NewSyscallError("NtQueryObject", ntError(r))
	})
	if err != nil {
		return memoryInfo{}, err
	}
	if section.attributes&(secCommit|secReserve|secFile|secImage|secLargePages) != secCommit {
		return memoryInfo{}, &ruleError{what: "the section is not of the ordinary kind of memory"}
	}
	return memoryInfo{size: section.size, writable: object.access&sectionMapWrite != 0}, nil
}

// mapMemory maps the first size bytes of a section, and the last of them, as many as again
// says, a second time behind that.
func mapMemory(f *os.File, size, again int, write bool) (mem []byte, err error) {
	access := uint32(syscall.FILE_MAP_READ)
	if write {
		access |= syscall.FILE_MAP_WRITE
	}
	err = withFile(f, func(sys uintptr) error {
		var at uintptr
		if again == 0 {
			at, err = syscall.MapViewOfFile(syscall.Handle(sys), access, 0, 0, uintptr(size))
		} else {
			at, err = mapTwice(sys, size, again, access)
		}
		if err != nil {
			return os.NewSyscallError("MapViewOfFile", err)
		}
		mem = unsafe.Slice(*(**byte)(unsafe.Pointer(&at)), size+again) // no memory of Go's
		return nil
	})
	return mem, err
}

// mapTwice looks for room for both views, gives it back and maps them there. Another thread
// may have taken it in between, which the system says; then it looks again.
func mapTwice(section uintptr, size, again int, access uint32) (at uintptr, err error) {
	const (
		memReserve   = 0x2000 // MEM_RESERVE of winnt.h
		memRelease   = 0x8000 // MEM_RELEASE
		pageNoAccess = 0x1    // PAGE_NOACCESS
		attempts     = 8
	)
	for range attempts {
		var errno syscall.Errno
		at, _, errno = syscall.SyscallN(procVirtualAlloc.Addr(), 0, uintptr(size+again), memReserve, pageNoAccess)
		if err = failure(at, errno); err != nil {
			return 0, err
		}
		syscall.SyscallN(procVirtualFree.Addr(), at, 0, memRelease)
		if err = mapAt(section, access, 0, size, at); err != nil {
			continue
		}
		if err = mapAt(section, access, size-again, again, at+uintptr(size)); err == nil {
			return at, nil
		}
		syscall.UnmapViewOfFile(at)
	}
	return 0, err
}

func mapAt(section uintptr, access uint32, offset, size int, at uintptr) error {
	r, _, errno := syscall.SyscallN(procMapViewOfFileEx.Addr(), section, uintptr(access),
		uintptr(uint64(offset)>>32), uintptr(uint32(offset)), uintptr(size), at)
	return failure(r, errno)
}

// unmapMemory ends what mapMemory returned.
func unmapMemory(mem []byte, again int) error {
	at := uintptr(unsafe.Pointer(&mem[0]))
	err := syscall.UnmapViewOfFile(at)
	if again > 0 {
		if e := syscall.UnmapViewOfFile(at + uintptr(len(mem)-again)); err == nil {
			err = e
		}
	}
	return os.NewSyscallError("UnmapViewOfFile", err)
}

// vacateMemory leaves the mapping where it is: nothing takes the place of a view in one step.
func vacateMemory([]byte) {}

// openReadOnly returns another handle of a section, for reading alone.
func openReadOnly(f *os.File) (ro *os.File, err error) {
	err = withFile(f, func(sys uintptr) error {
		var h syscall.Handle
		err := syscall.DuplicateHandle(currentProcess, syscall.Handle(sys), currentProcess, &h, sectionQuery|sectionMapRead, false, 0)
		if err == nil {
			ro = os.NewFile(uintptr(h), "memory")
		}
		return os.NewSyscallError("DuplicateHandle", err)
	})
	return ro, err
}

// duplicateFile duplicates the handle of a section.
func duplicateFile(f *os.File) (d *os.File, err error) {
	err = withFile(f, func(sys uintptr) error {
		h, err := duplicate(syscall.Handle(sys))
		if err == nil {
			d = os.NewFile(uintptr(h), "memory")
		}
		return err
	})
	return d, err
}

// A farBell is the peer's end of a doorbell, on its way: a handle that has joined no
// completion port.
type farBell syscall.Handle

func (b farBell) close() { syscall.CloseHandle(syscall.Handle(b)) }

// newBell makes a doorbell: a pipe that nobody else can open.
func newBell() (*fd, farBell, error) {
	near, far, err := pair(streams)
	if err != nil {
		return nil, 0, err
	}
	h, err := duplicate(far.sys)
	far.close()
	if err != nil {
		near.close()
		return nil, 0, err
	}
	return near, farBell(h), nil
}

// ringBell writes one byte. It does not wait: a write that cannot end at once is cancelled,
// for a pipe that is full has enough of them.
func ringBell(f *fd) error {
	h, err := f.enter(writing)
	if err != nil {
		return err
	}
	defer f.leave(h)
	s, err := takeSlot(true)
	if err != nil {
		return err
	}
	_, err = f.inThread(h, s, time.Nanosecond, zeroByte[:], syscall.WriteFile)
	if err == errInVain || err == os.ErrDeadlineExceeded {
		return nil
	}
	return err
}

// sendHello sends the hello with the memory and the far end of the doorbell.
func sendHello(f *fd, memory *os.File, bell farBell, hello []byte) error {
	h, err := f.enter(writing)
	if err != nil {
		return err
	}
	defer f.leave(h)
	return withFile(memory, func(sys uintptr) error {
		return f.sendHandles(h, []syscall.Handle{syscall.Handle(sys), syscall.Handle(bell)}, hello)
	})
}

// A received is what came with a hello: a handle that has joined no completion port yet,
// unlike an os.File of a pipe.
type received syscall.Handle

func (r received) close() { syscall.CloseHandle(syscall.Handle(r)) }

// memory returns a file of the handle, which it owns from then on.
func (r received) memory() *os.File { return os.NewFile(uintptr(r), "memory") }

// doorbell returns the end of a doorbell, over a duplicate of r.
func (r received) doorbell() (*fd, error) {
	h, err := duplicate(syscall.Handle(r))
	if err != nil {
		return nil, err
	}
	f, err := adoptSys(h, streams, reading|writing)
	if err != nil {
		syscall.CloseHandle(h)
	}
	return f, err
}

// recvHello receives some of a hello and what came with it.
func recvHello(f *fd, p []byte) (n int, with []received, err error) {
	n, handles, err := f.takeFiles(p)
	if err == ErrNoFiles {
		n, err = f.read(p)
	}
	for _, h := range handles {
		with = append(with, received(h))
	}
	return n, with, err
}
