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

// freshFolder is the folder of the names that Listen makes.
const freshFolder = appFolder

// network is what Addr.Network says: local sockets are named pipes here.
const network = "pipe"

const nulInNames = false // a Name is the name of a pipe

const (
	framedHere   = false // a pipe of message type keeps messages apart
	sharesMemory = true  // a section cannot shrink
)

// ---------------------------------------------------------------------------
// What only Windows has

// A SysListenConfig holds the options of a listener that only Windows has.
type SysListenConfig struct {
	// AcceptRemote admits clients on other machines, as far as the security
	// descriptor does. Without it the system rejects them
	// (PIPE_REJECT_REMOTE_CLIENTS).
	AcceptRemote bool

	// Security, if set, says who may connect, instead of
	// [ListenConfig.Access]. It must allow this process [ServerRights].
	Security *SecurityDescriptor

	// ReadBuffer and WriteBuffer are how many bytes may be on their way from and to a
	// client before its Write, or that of this end, waits. 0 is 64 KiB.
	ReadBuffer, WriteBuffer int
}

// resolveGroup returns the SID of a group that is given by SID or by the name of its
// account. A user, a computer and a domain are no groups.
func resolveGroup(group string) (string, error) {
	if strings.HasPrefix(group, "S-") {
		sid, err := syscall.StringToSid(group)
		if err != nil {
			return "", configError("Group", strconv.Quote(group), "a SID or the name of an account")
		}
		text, err := sid.String()
		return text, os.NewSyscallError("ConvertSidToStringSid", err)
	}
	sid, _, kind, err := syscall.LookupSID("", group)
	if err != nil {
		return "", &classified{os.NewSyscallError("LookupAccountName", err), os.ErrNotExist}
	}
	switch kind {
	case syscall.SidTypeGroup, syscall.SidTypeAlias, syscall.SidTypeWellKnownGroup:
		text, err := sid.String()
		return text, os.NewSyscallError("ConvertSidToStringSid", err)
	}
	return "", configError("Group", strconv.Quote(group), "the account of a group")
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

	// Delegation lets the server do so on other machines too.
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
	const securitySQOSPresent = 0x100000 // winbase.h: SECURITY_SQOS_PRESENT
	return securitySQOSPresent | [...]uint32{1, 0, 2, 3}[l]<<16
}

// nameOf is the String of a type whose constants count up from 0.
func nameOf(typ string, value uint8, names ...string) string {
	if int(value) < len(names) {
		return names[value]
	}
	return typ + "(" + strconv.Itoa(int(value)) + ")"
}

// SessionID returns the Remote Desktop session of the peer's process, and whether it is
// known. It is not known for a peer on another machine.
func (p Peer) SessionID() (uint32, bool) { return p.system.session, p.system.knowsSession }

// PeerProcess opens the process at the other end, as OpenProcess does, with the access
// rights and PROCESS_QUERY_LIMITED_INFORMATION. The caller closes the handle. Unlike the
// process id, the handle stays that of this process when it ends. A process that was
// started after the Dial or the Accept of this end, and so has the process id of the peer
// but is not the peer, is refused. The error matches [os.ErrPermission] if this process
// may not open that one, and [errors.ErrUnsupported] for a peer on another machine.
func (c *endpoint) PeerProcess(access uint32) (syscall.Handle, error) {
	process, err := c.end().openPeer(access)
	return process, c.failed("peer", err)
}

// ShareHandle duplicates the handle h of this process into the other process, with the
// same rights, and returns its value there. The caller tells that process the value, by
// any means. process must have been opened with PROCESS_DUP_HANDLE (0x40). If the value
// never arrives, the handle stays open in that process until it ends.
//
// The handle of a Conn or a pipe end that was used already, in this process, can be
// shared, but not read or written asynchronously there: share unused ones. Who gets the
// handle of a file that this process uses asynchronously, before or afterwards, can end this
// process: the operations of others on the file are reported to the runtime too.
func ShareHandle(h, process syscall.Handle) (syscall.Handle, error) {
	there, err := duplicateHandle(currentProcess, h, process, syscall.DUPLICATE_SAME_ACCESS)
	if err != nil {
		return 0, opError("share", Addr{}, Addr{}, err)
	}
	return there, nil
}

// ---------------------------------------------------------------------------
// Security descriptors

// A SecurityDescriptor says who owns a pipe and who may do what with it. It is a
// self-relative SECURITY_DESCRIPTOR, and does not change. It is made by [ParseSDDL] or
// [NewSecurityDescriptor], or read from a pipe. The zero value is empty, and no pipe can
// have it.
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

// The users that every Windows has, as SIDs (winnt.h).
const (
	sidEveryone       = "S-1-1-0"      // SECURITY_WORLD_SID_AUTHORITY, SECURITY_WORLD_RID
	sidSystem         = "S-1-5-18"     // SECURITY_NT_AUTHORITY, SECURITY_LOCAL_SYSTEM_RID
	sidAdministrators = "S-1-5-32-544" // SECURITY_BUILTIN_DOMAIN_RID, DOMAIN_ALIAS_RID_ADMINS
	sidCreatorOwner   = "S-1-3-0"      // SECURITY_CREATOR_SID_AUTHORITY, SECURITY_CREATOR_OWNER_RID
	sidOwnerRights    = "S-1-3-4"      // SECURITY_CREATOR_OWNER_RIGHTS_RID
	sidAllServices    = "S-1-5-80-0"   // SECURITY_SERVICE_ID_BASE_RID, SECURITY_SERVICE_ID_GROUP_RID
)

// The beginnings of SIDs (winnt.h).
const (
	sidsOfLogons       = "S-1-5-5-"  // SECURITY_LOGON_IDS_RID
	sidsOfServices     = "S-1-5-80-" // SECURITY_SERVICE_ID_BASE_RID
	sidsOfPackages     = "S-1-15-2-" // SECURITY_APP_PACKAGE_BASE_RID
	sidsOfCapabilities = "S-1-15-3-" // SECURITY_CAPABILITY_BASE_RID
)

// An AccessEntry allows or denies a user or group some rights.
type AccessEntry struct {
	SID  string // of the user or group: "S-1-5-18", or as SDDL abbreviates it, "SY"
	Mask uint32 // the rights, an ACCESS_MASK of winnt.h: [ClientRights], say
	Deny bool   // they are denied, not allowed
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

// NewSecurityDescriptor returns a security descriptor that this user owns, with a
// protected DACL of the entries: it inherits nothing, and what is not allowed is denied.
// An entry that denies must come before those that allow what it denies.
func NewSecurityDescriptor(entries ...AccessEntry) (*SecurityDescriptor, error) {
	user, err := currentUser()
	if err != nil {
		return nil, opError("security", Addr{}, Addr{}, err)
	}
	var sddl strings.Builder
	sddl.WriteString("O:" + user + "D:P")
	for _, e := range entries {
		if strings.ContainsAny(e.SID, ";()") { // it would be more than a SID in the text
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
// [ClientRights]. In an AppContainer the package has [ServerRights] too, and in a
// process with a restricted token its logon session and its service, as far as the
// token is restricted to them: without that, the process could not use its own pipe.
func (a Access) SecurityDescriptor() (*SecurityDescriptor, error) {
	err := a.validate()
	var owners []string
	if err == nil {
		owners, err = ownSIDs()
	}
	if err != nil {
		return nil, opError("security", Addr{}, Addr{}, err)
	}
	var entries []AccessEntry
	for _, sid := range owners {
		entries = append(entries, AccessEntry{sid, ServerRights, false})
	}
	entries = append(entries, AccessEntry{sidSystem, ClientRights, false}, AccessEntry{sidAdministrators, ClientRights, false})
	if a == Everyone {
		entries = append(entries, AccessEntry{sidEveryone, ClientRights, false})
	}
	return NewSecurityDescriptor(entries...)
}

// String returns the descriptor in the language that [ParseSDDL] reads, with all parts
// that it has. It is empty if the system cannot convert it.
func (sd *SecurityDescriptor) String() string { return formatSDDL(sd.raw) }

// Owner returns the SID of the owner, or "" if the descriptor has none.
func (sd *SecurityDescriptor) Owner() string { return sidAt(sd.raw, sd.word(4)) }

// Group returns the SID of the primary group, or "" if the descriptor has none.
func (sd *SecurityDescriptor) Group() string { return sidAt(sd.raw, sd.word(8)) }

// DACL returns the entries of the DACL that allow and deny, in their order;
// other kinds of entries are left out. ok is false if there is no DACL, which
// allows everybody everything; a DACL without entries allows nobody anything.
func (sd *SecurityDescriptor) DACL() (entries []AccessEntry, ok bool) {
	all, ok := sd.entries(sd.word(16))
	for _, e := range all {
		if e.kind <= 1 { // winnt.h: ACCESS_ALLOWED_ACE_TYPE is 0, ACCESS_DENIED_ACE_TYPE 1
			entries = append(entries, AccessEntry{e.sid, e.mask, e.kind == 1})
		}
	}
	return entries, ok
}

// servedBy returns what the descriptor of a pipe of the owner allows others: to serve the pipe
// too. "" is nothing. The descriptor belongs to the pipe, and whoever it allows to can add an
// instance, or give himself the right to. Nothing in the descriptor shows that.
func (sd *SecurityDescriptor) servedBy(owner string, own []string) string {
	const ( // winnt.h
		writeDAC   = 0x40000 // WRITE_DAC
		writeOwner = 0x80000 // WRITE_OWNER
		serving    = syscall.FILE_APPEND_DATA | writeDAC | writeOwner | syscall.GENERIC_WRITE | syscall.GENERIC_ALL

		allows         = 0  // ACCESS_ALLOWED_ACE_TYPE
		allowsCompound = 4  // ACCESS_ALLOWED_COMPOUND_ACE_TYPE: its SID is elsewhere, and so it is with objects
		allowsObject   = 5  // ACCESS_ALLOWED_OBJECT_ACE_TYPE
		allowsIf       = 9  // ACCESS_ALLOWED_CALLBACK_ACE_TYPE
		allowsObjectIf = 11 // ACCESS_ALLOWED_CALLBACK_OBJECT_ACE_TYPE
	)
	entries, ok := sd.entries(sd.word(16))
	if !ok {
		return "the pipe has no DACL, so everybody can serve it"
	}
	for _, e := range entries {
		who := ""
		switch e.kind {
		case allows, allowsIf:
			who = e.sid
		case allowsCompound, allowsObject, allowsObjectIf:
		default:
			continue
		}
		if e.mask&serving != 0 && !mayServe(who, owner, own) {
			return "an entry of kind " + strconv.Itoa(int(e.kind)) + " lets " + strconv.Quote(who) +
				" serve the pipe: its mask is 0x" + strconv.FormatUint(uint64(e.mask), 16)
		}
	}
	return ""
}

// mayServe reports whether a pipe that a trusted owner has may also be served by who has the
// SID. own is ownSIDs. A package or a capability counts only beside an entry for the user. A logon session and
// a service, if this user allows them something, are the user's own: see accessSIDs.
func mayServe(sid, owner string, own []string) bool {
	switch sid {
	case owner, sidSystem, sidAdministrators, sidCreatorOwner, sidOwnerRights:
		return true
	case sidAllServices:
		return false
	}
	for _, s := range own {
		if sid == s {
			return true
		}
	}
	return strings.HasPrefix(sid, sidsOfPackages) || strings.HasPrefix(sid, sidsOfCapabilities) ||
		owner == own[0] && (strings.HasPrefix(sid, sidsOfLogons) || strings.HasPrefix(sid, sidsOfServices))
}

// aclHeader is the size of an ACL (winnt.h) before its entries: revision, reserved, size in
// bytes, count, reserved.
const aclHeader = 8

// An aclEntry is an entry of an ACL that has a mask and a SID, as most kinds have.
type aclEntry struct {
	kind byte
	mask uint32
	sid  string
}

// entries returns the entries of the ACL at an offset. ok is false if there is none, as at
// the offset 0.
func (sd *SecurityDescriptor) entries(offset uint32) (entries []aclEntry, ok bool) {
	if offset == 0 || uint64(offset)+aclHeader > uint64(len(sd.raw)) {
		return nil, false
	}
	at := int(offset)
	count := int(sd.raw[at+4]) | int(sd.raw[at+5])<<8
	for at += aclHeader; count > 0 && at+8 <= len(sd.raw); count-- {
		entries = append(entries, aclEntry{sd.raw[at], sd.word(at + 4), sidAt(sd.raw, uint32(at+8))})
		at += int(sd.raw[at+2]) | int(sd.raw[at+3])<<8
	}
	return entries, true
}

// word returns the 32 bits at an offset. The words at 4, 8, 12 and 16 of a
// SECURITY_DESCRIPTOR_RELATIVE (winnt.h) are the offsets of owner, group, SACL and DACL; 0
// is one that is not there.
func (sd *SecurityDescriptor) word(at int) uint32 {
	if at+4 > len(sd.raw) {
		return 0
	}
	return getWord(sd.raw[at:])
}

// sidAt returns the SID (winnt.h) at an offset as text, or "" if there is none.
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
		text += "-" + strconv.FormatUint(uint64(getWord(sid[8+4*i:])), 10)
	}
	return text
}

// currentUser returns the SID of the user that this process runs as, even if a thread
// impersonates another user. It does not open the token of the process, which that user
// might not be allowed to.
var currentUser = sync.OnceValues(func() (string, error) { return userOf(currentProcessToken) })

// ownSIDs returns the SIDs that a descriptor must allow for this process to have
// access: its user first. The kernel checks an AppContainer a second time, against
// its package, and a restricted token against its restricting SIDs.
var ownSIDs = sync.OnceValues(func() ([]string, error) {
	user, err := currentUser()
	if err != nil {
		return nil, err
	}
	// A system that cannot answer has no such tokens.
	packages, _ := tokenSIDs(currentProcessToken, tokenAppContainerSid)
	restricting, _ := tokenSIDs(currentProcessToken, tokenRestrictedSids)
	return accessSIDs(user, packages, restricting), nil
})

// accessSIDs returns the user, the package, and those restricting SIDs that stand for
// this process alone: a logon session, a service. A SID that stands for many users, such
// as Everyone, would let them in.
func accessSIDs(user string, packages, restricting []string) []string {
	sids := append([]string{user}, packages...)
	for _, sid := range restricting {
		if strings.HasPrefix(sid, sidsOfLogons) || strings.HasPrefix(sid, sidsOfServices) && sid != sidAllServices {
			sids = append(sids, sid)
		}
	}
	return sids
}

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

// appFolder is the folder of pipes in which an AppContainer may make pipes. For every
// other process it is a part of the name.
const appFolder = `LOCAL\`

// guarded reports whether the kernel itself enforces an Access: the DACL of a
// pipe does.
func guarded(string) bool { return true }

// squattable reports whether any user may have taken the address: every user can make a
// pipe of any name that is free.
func squattable(Addr) bool { return true }

// pipeOf returns the name of a pipe in one spelling, by which it is told from others.
func pipeOf(target string) string { return strings.ToLower(target) }

// userAddr returns a name with the SID of the process's user in it, even if a thread
// impersonates another user. The SID and the name have no backslash, so the parts cannot
// be taken for each other.
func userAddr(name string) (Addr, error) {
	user, err := currentUser()
	if err != nil {
		return Addr{}, err
	}
	inContainer, err := isAppContainer(currentProcessToken)
	if err != nil {
		return Addr{}, err
	}
	folder := ""
	if inContainer { // it has no other folder of pipes
		folder = appFolder
	}
	return Name(folder + `ipc\` + user + `\` + name), nil
}

// isAppContainer reports whether the token is that of a process in an AppContainer.
func isAppContainer(token syscall.Token) (bool, error) {
	const tokenIsAppContainer = 29 // winnt.h: TOKEN_INFORMATION_CLASS
	var answer, size uint32
	err := syscall.GetTokenInformation(token, tokenIsAppContainer, (*byte)(unsafe.Pointer(&answer)), uint32(unsafe.Sizeof(answer)), &size)
	return answer != 0, os.NewSyscallError("GetTokenInformation", err)
}

// ---------------------------------------------------------------------------
// Listeners

// A listener is the server of a pipe.
type listener struct {
	*instances
	cleanup runtime.Cleanup // closes the instances if nobody does
}

func listen(target string, kind connKind, lc *ListenConfig) (*listener, error) {
	c := PipeConfig{Access: lc.Access, Backlog: lc.Backlog, Messages: kind.native() == messages}
	if s := lc.Sys; s != nil {
		c.AcceptRemote, c.Security, c.ReadBuffer, c.WriteBuffer = s.AcceptRemote, s.Security, s.ReadBuffer, s.WriteBuffer
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	if err := c.admitGroup(lc.Group); err != nil {
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
	return s.claimAndListen()
}

// admitGroup adds the group of the SID, if any, to those that Access admits.
func (c *PipeConfig) admitGroup(sid string) error {
	if sid == "" {
		return nil
	}
	if c.Security != nil {
		return configError("Group", strconv.Quote(sid), "empty where Sys.Security is set")
	}
	sd, err := c.Access.SecurityDescriptor()
	if err != nil {
		return err
	}
	entries, _ := sd.DACL()
	c.Security, err = NewSecurityDescriptor(append(entries, AccessEntry{SID: sid, Mask: ClientRights})...)
	return err
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
	if c.MaxInstances > 0 {
		s.reserveErr = &ruleError{"a pipe with MaxInstances has no instance to hand on", errors.ErrUnsupported}
		return s.listen(true)
	}
	return s.claimAndListen()
}

// claimAndListen makes the pipe, with an instance that can be given to a child.
func (s *instances) claimAndListen() (*listener, error) {
	if err := s.claim(); err != nil {
		s.close()
		return nil, err
	}
	return s.listen(false)
}

func (l *listener) close() error {
	l.cleanup.Stop()
	return l.instances.close()
}

func (l *listener) closing() bool { return l.closed.Load() }

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
// All of these operations signal one event, which says no more than "look again". One
// goroutine waits for it, in a thread, from Listen to Close (watch). It wakes the
// Accepts, which wait without a thread. It also clears the instances whose client has
// left, even while nobody accepts, when no other instance listens. The kernel does not
// tell when a client leaves; so while every instance has a client, watch looks now and
// then.
//
// No signal is lost: watch examines all instances after every wait, and the kernel
// writes the result of an operation before it signals the event. But a ConnectNamedPipe
// that begins resets the event, which another one may just have signalled. So each one
// that has begun is followed by a signal of ours.
//
// A client can hold up every call on its pipe that looks at more than the OVERLAPPED: while it
// writes from a page that a slow file system has to bring, npfs.sys holds the lock of the pipe.
// So no such call is made with mu held, or by Accept or Close themselves. A goroutine asks about
// each client that Accept takes (ask), and about those that watch asks about (look). A client
// that does not let it answer is not ready, and Accept goes on to the next one.
//
// The kernel writes to the OVERLAPPED of an operation until that is done. An
// instance is therefore reachable as long as its operation is under way: from
// instances, which watch keeps alive; and close waits for the end of each
// operation.

// instances are the instances of a pipe that listen for a client.
type instances struct {
	spec        *pipeSpec
	backlog     int            // how many are armed
	limit       int            // how many may exist, connected ones included; 0 is no limit
	event       syscall.Handle // auto-reset: an operation ended, or close wants watch to end
	reservation syscall.Handle // an instance that nobody can connect to, for Inherit; 0 if there is none
	reserveErr  error          // why there is no reservation
	watched     chan struct{}  // closed when watch has ended; nil before it begins
	ends        *closers       // closes its pipes: clients that hold theirs delay no others but this listener's

	waits             // mu is never held while waiting; it guards what follows too
	armed []*instance // the first was armed first
	out   int         // connections handed out and not closed; counted if there is a limit
	made  string      // the security descriptor of the pipe that this process made; kept if there is a limit

	guests    []*guest // the clients that Accept has taken and not returned
	accepts   int      // how many Accepts have begun
	accepting int      // how many of them have not ended
	asksWho   bool     // the latest one admits clients by who they are
}

// A guest is a client that was taken from its instance, and that is asked who it is.
type guest struct {
	fd       *fd
	asksWho  bool  // and who it is is asked, not its process alone
	met      bool  // what is asked is known; ask sets it, and nobody else uses it meanwhile
	answered bool  // it is there, and is known
	asked    int   // instances.accepts when it was asked
	since    int64 // when it was asked, on the clock of now
}

// guestsMax is how many clients a listener asks about at once. Each may hold a thread for as
// long as it likes.
const guestsMax = 64

// guestGrace is how long Accept waits for the answer about a client before it takes the next
// one. Clients are to be returned in the order in which they came.
const guestGrace = 10 * time.Millisecond

// newInstances makes no instances yet: listen does.
func newInstances(p *pipeSpec, backlog, limit int) (s *instances, err error) {
	s = &instances{spec: p, limit: limit, backlog: min(backlog, instancesMax), ends: &closers{}}
	if s.backlog == 0 {
		s.backlog = 4
	}
	if limit > 0 {
		s.backlog = min(s.backlog, limit)
	}
	s.event, err = createEvent()
	return s, err
}

// claim makes the pipe, and keeps its name with an instance that no client can use. A
// client can connect to a new instance until the instance has had a client. Nobody else
// knows of the pipe yet, so this process connects as that client, and leaves. If a real
// client is faster, its instance is one like any other, and claim tries the next.
func (s *instances) claim() error {
	for first := true; len(s.armed) < instancesMax; first = false {
		h, err := s.spec.create(first)
		if err != nil {
			return err
		}
		client, err := openPipe(s.spec.target, fileReadAttributes, Anonymous.flags())
		if err == nil {
			s.reservation = h
			return os.NewSyscallError("CloseHandle", syscall.CloseHandle(client))
		}
		s.arm(h)
		if errnoOf(err) != errPipeBusy { // SysListenConfig.Security does not let this user in
			s.reserveErr = err
			return nil
		}
	}
	s.reserveErr = os.NewSyscallError("CreateFile", errPipeBusy)
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
	s.watched = make(chan struct{})
	go s.watch()
	l := &listener{instances: s}
	l.cleanup = runtime.AddCleanup(l, func(s *instances) { s.close() }, s)
	return l, nil
}

// An instance is one that listens, or has a client that was not accepted yet.
type instance struct {
	overlapped syscall.Overlapped // the kernel's while pending
	sys        syscall.Handle
	pending    bool
	err        error  // result of ConnectNamedPipe, once it is not pending
	looking    bool   // look asks whether its client has left
	guest      *guest // its client, which Accept has taken meanwhile
}

// lookMin and lookMax bound the time between two looks of watch for clients that have left,
// while no instance listens. The time doubles with every look. lookMax is as long as the
// longest pause of a client that dials.
const (
	lookMin = 2 * time.Millisecond
	lookMax = 64 * time.Millisecond
)

// watch serves the instances until close.
func (s *instances) watch() {
	defer close(s.watched)
	look := lookMin
	for {
		s.mu.Lock()
		if s.closed.Load() {
			s.mu.Unlock()
			return
		}
		listening, ready := s.refreshAll()
		if ready != nil {
			s.signal()
		}
		onlyGuests := s.haveAllPlaces()
		if onlyGuests {
			s.askAgain(0)
		}
		s.mu.Unlock()
		wait := uint32(syscall.INFINITE)
		if !onlyGuests && (listening > 0 || ready == nil) {
			look = lookMin
		} else {
			wait = milliseconds(now() + int64(look))
			look = min(2*look, lookMax)
		}
		waitFor(s.event, wait)
	}
}

// refreshAll settles all instances. It returns how many listen and the first that is ready.
// Clients are asked whether they left only if no instance listens; otherwise there is room for
// others. The caller holds mu.
func (s *instances) refreshAll() (listening int, ready *instance) {
	for _, in := range s.armed {
		if !s.refresh(in) {
			listening++
		} else if ready == nil {
			ready = in
		}
	}
	if listening == 0 {
		for _, in := range s.armed {
			if in.err == nil && !in.looking {
				in.looking = true
				go s.look(in)
			}
		}
	}
	return listening, ready
}

// look has watch re-arm an instance whose client has left. Such a client holds nothing up any more.
func (s *instances) look(in *instance) {
	left := deserted(in.sys, s.spec.ends)
	s.mu.Lock()
	in.looking = false
	g := in.guest
	in.guest = nil // or the instance would keep the connection from the garbage collector
	switch {
	case g != nil:
		s.mu.Unlock()
		s.ask(g)
		return
	case s.closed.Load():
		leftToThis := s.armed == nil // otherwise close comes to the instance later
		s.mu.Unlock()
		if leftToThis {
			syscall.CloseHandle(in.sys)
		}
		return
	case left:
		in.err = errNoData // so that refresh re-arms it
		setEvent(s.event)
	}
	s.signal()
	s.mu.Unlock()
}

// refresh re-arms an instance whose client left before it listened, or whose wait was
// cancelled, and reports whether the instance is ready: it has a client, or an error for
// Accept. The client may have left. The caller holds mu.
func (s *instances) refresh(in *instance) (ready bool) {
	ready, err := in.outcome()
	switch err {
	case errNoData: // the client came and left
		if in.err = disconnectNamedPipe(in.sys); in.err != nil {
			return true
		}
	case syscall.ERROR_OPERATION_ABORTED: // the thread that began it has ended
	default:
		return ready
	}
	in.arm(s.event)
	ready, _ = in.outcome()
	return ready
}

// accept waits for a client.
func (s *instances) accept(asksWho bool) (*fd, error) {
	l := limits{deadlines: reading}
	turn := s.beginAccept(asksWho)
	defer s.endAccept()
	var more *time.Timer
	for {
		changed := s.changes()
		if _, err := s.endOfWait(l); err != nil {
			return nil, err
		}
		fd, asking, err := s.take(turn)
		if fd != nil || err != nil {
			return fd, err
		}
		if asking && more == nil {
			more = time.AfterFunc(guestGrace, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.signal()
			})
			defer more.Stop()
		} else if asking {
			more.Reset(guestGrace)
		}
		if _, err := s.pause(l, changed, nil); err != nil {
			return nil, err
		}
	}
}

// beginAccept counts an Accept, until endAccept. The number says which answers are new enough.
func (s *instances) beginAccept(asksWho bool) (turn int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asksWho = asksWho
	s.accepts++
	s.accepting++
	return s.accepts
}

func (s *instances) endAccept() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepting--
	if s.haveAllPlaces() {
		setEvent(s.event) // watch looks after them now
	}
}

// haveAllPlaces reports whether clients that were taken have all the places of a limit, while nobody
// accepts. One that leaves must give its place back. The caller holds mu.
func (s *instances) haveAllPlaces() bool {
	return s.limit > 0 && len(s.armed) == 0 && s.accepting == 0 && len(s.guests) > 0
}

// askAgain asks about the clients that have answered, unless the answer is for an Accept from that one on;
// 0 is for all. It returns how many it asks about. The caller holds mu.
func (s *instances) askAgain(turn int) (n int) {
	for _, g := range s.guests {
		if g.answered && (turn == 0 || g.asked < turn) {
			s.begin(g)
			go s.ask(g)
			n++
		}
	}
	return n
}

// take returns the connection of a client that is there, if there is one. A client that no
// Accept waited for when it was asked is asked again, as it may have left since. asking says
// that a client was asked just now.
func (s *instances) take(turn int) (f *fd, asking bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return nil, false, net.ErrClosed
	}
	// Only with a limit can instances be missing.
	for s.limit > 0 && len(s.armed) < s.backlog && len(s.armed)+s.out < s.limit {
		if err := s.addMissing(); err != nil {
			return nil, false, err
		}
	}
	for _, g := range s.guests {
		switch {
		case !g.answered || g.asked < turn:
		case s.asksWho && !g.asksWho: // SetAccess came after it was asked
			g.asksWho, g.met = true, false
			s.begin(g)
			go s.ask(g)
		default:
			s.leave(g)
			return g.fd, false, nil
		}
	}
	s.askAgain(turn)
	young := 0
	for _, g := range s.guests {
		if now()-g.since < int64(guestGrace) {
			young++
		}
	}
	if young >= s.accepting || len(s.guests) >= guestsMax {
		return nil, young > 0, nil
	}
	for _, in := range s.armed {
		if !s.refresh(in) {
			continue
		}
		switch in.err {
		case nil:
			return nil, true, s.invite(in)
		case errNoData, syscall.ERROR_OPERATION_ABORTED: // it was armed again and ended again: watch looks at it
			setEvent(s.event)
		default:
			return nil, false, s.replace(in, os.NewSyscallError("ConnectNamedPipe", in.err))
		}
	}
	return nil, young > 0, nil
}

// invite takes the client of an instance from it, and asks about the client. If the instance
// cannot be replaced, the client stays where it is, for the next Accept. invite wakes watch,
// since there may be another client, for another Accept: add does that too. The caller holds mu.
func (s *instances) invite(in *instance) error {
	if s.limit == 0 || len(s.armed)+s.out < s.limit {
		if err := s.add(false); err != nil {
			return err
		}
	} else {
		setEvent(s.event)
	}
	s.remove(in)
	f := unarmedFD(in.sys, s.spec.kind, s.spec.ends, true)
	f.by = s.ends
	f.remote = s.spec.remote
	f.pipe = s.spec.pipe
	if s.limit > 0 {
		s.out++
		f.quota = s
	}
	f.armCleanup()
	g := &guest{fd: f, asksWho: s.asksWho}
	s.guests = append(s.guests, g)
	s.begin(g)
	if in.looking { // the goroutine that looks goes on with it
		in.guest = g
	} else {
		go s.ask(g)
	}
	return nil
}

// begin notes that the guest is being asked. The caller holds mu.
func (s *instances) begin(g *guest) { g.answered, g.asked, g.since = false, s.accepts, now() }

// leave takes the guest off the list. The caller holds mu.
func (s *instances) leave(g *guest) {
	for i, other := range s.guests {
		if other == g {
			copy(s.guests[i:], s.guests[i+1:])
			s.guests[len(s.guests)-1] = nil // or it would keep the connection from the garbage collector
			s.guests = s.guests[:len(s.guests)-1]
			return
		}
	}
}

// ask asks whether the client is there, and who it is. One that has left is closed, and gives
// its place back. While ask goes on, nobody else uses the connection.
func (s *instances) ask(g *guest) {
	left := deserted(g.fd.sys, s.spec.ends)
	if !left && !g.met {
		if g.asksWho {
			g.fd.meet()
		} else {
			g.fd.notePeer()
		}
		g.met = true
	}
	s.mu.Lock()
	left = left || s.closed.Load()
	if g.answered = !left; left {
		s.leave(g)
	}
	s.signal()
	s.mu.Unlock()
	if left {
		g.fd.closeLater()
	}
}

// replace puts a new instance in the place of one that cannot be used any more.
func (s *instances) replace(in *instance, why error) error {
	if err := s.add(false); err != nil {
		return why
	}
	s.remove(in)
	s.ends.add(func() { syscall.CloseHandle(in.sys) }) // it may have a client
	return nil
}

// giveBack arms an instance for the connection that is about to be closed, while its
// handle still keeps the name.
func (s *instances) giveBack() { s.countOut(true) }

// forget is giveBack for a connection that was dropped without Close. Its handle is
// gone; if no instance is armed either, Accept makes the pipe again.
func (s *instances) forget() { s.countOut(false) }

// countOut counts a connection that is not out any more, and arms an instance for it if the
// pipe is certain to be this one: kept says that the connection still keeps the name.
func (s *instances) countOut(kept bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out--
	if s.closed.Load() {
		return
	}
	if len(s.armed) < s.backlog && (kept || len(s.armed) > 0) {
		s.add(false) // an error comes again, and is reported, in the Accept that this wakes
	}
	s.signal()
	setEvent(s.event)
}

// add makes one more instance and arms it. Only the first one takes the name. For another
// one this process has an instance already, so the pipe of that name is its own.
func (s *instances) add(first bool) error {
	h, err := s.spec.create(first)
	if err == nil && first && s.limit > 0 {
		s.made, err = securityText(h)
	}
	return s.armNew(h, err)
}

// addMissing makes one more instance for an Accept and arms it. If none is armed, the
// connections that are out keep the name. But they may have been dropped without Close, and
// not be counted out yet. Then the pipe of that name may be one that somebody else has made
// since, with an access list of his own. He cannot give it the owner of this one.
func (s *instances) addMissing() error {
	if len(s.armed) > 0 || s.out == 0 {
		return s.add(len(s.armed) == 0)
	}
	h, err := s.spec.create(false)
	if err == nil {
		var found string
		if found, err = securityText(h); err == nil && found != s.made {
			err = errPipeOfAnother
		}
	}
	return s.armNew(h, err)
}

// armNew arms a new instance, or closes it if there is an error.
func (s *instances) armNew(h syscall.Handle, err error) error {
	if err == nil {
		s.arm(h)
	} else if h != 0 {
		syscall.CloseHandle(h)
	}
	return err
}

// securityText returns the owner, the group and the DACL of a handle, to be compared.
func securityText(h syscall.Handle) (string, error) {
	sd, err := securityOf(h)
	if err != nil {
		return "", err
	}
	return string(sd.raw), nil
}

var errPipeOfAnother = &ruleError{"somebody else has made a pipe of that name, when all connections of this one were gone", ErrAddrInUse}

func (s *instances) arm(h syscall.Handle) {
	in := &instance{sys: h}
	s.armed = append(s.armed, in)
	in.arm(s.event)
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
func (in *instance) arm(event syscall.Handle) {
	in.overlapped = syscall.Overlapped{Internal: statusPending, HEvent: event}
	err := connectNamedPipe(in.sys, &in.overlapped)
	setEvent(event)
	in.pending = err == syscall.ERROR_IO_PENDING
	// The client came first, and may have left since. deserted tells whether it wrote
	// anything.
	if in.err = err; err == errPipeConnected || err == errNoData {
		in.err = nil
	}
}

// listens reports whether the wait that arm began has not ended.
func (in *instance) listens() bool { return in.pending && !completed(&in.overlapped) }

// outcome reports whether the wait that arm began has ended, and with which error.
func (in *instance) outcome() (done bool, err error) {
	if in.listens() {
		return false, nil
	}
	if in.pending {
		in.pending = false
		in.err = overlappedResult(in.sys, &in.overlapped, nil)
	}
	return true, in.err
}

func (s *instances) setDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return net.ErrClosed
	}
	s.setExpiry(t, reading)
	return nil
}

// close stops listening, and returns when no operation is under way any more.
func (s *instances) close() error {
	s.mu.Lock()
	if s.closed.Load() {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.closed.Store(true)
	s.signal()
	s.mu.Unlock()
	if s.watched != nil {
		setEvent(s.event)
		<-s.watched // nobody else waits for the event, and nobody changes armed any more
	}
	for _, in := range s.armed {
		if in.pending {
			// If there is nothing to cancel, it has ended or is about to.
			syscall.CancelIoEx(in.sys, &in.overlapped)
			for !completed(&in.overlapped) {
				waitFor(s.event, syscall.INFINITE)
			}
		}
	}
	s.mu.Lock()
	var unused, ends []syscall.Handle
	for _, in := range s.armed {
		switch _, err := in.outcome(); {
		case in.looking: // look closes it
		case err == syscall.ERROR_OPERATION_ABORTED: // it had no client, who could hold the close up
			unused = append(unused, in.sys)
		default:
			ends = append(ends, in.sys)
		}
	}
	s.armed = nil
	var known []*fd // ask closes the others
	for _, g := range s.guests {
		if g.answered {
			known = append(known, g.fd)
		}
	}
	s.guests = nil
	s.mu.Unlock()
	for _, f := range known {
		f.closeLater()
	}
	if s.reservation != 0 {
		unused = append(unused, s.reservation)
	}
	var err error
	for _, h := range unused {
		if e := syscall.CloseHandle(h); err == nil {
			err = e
		}
	}
	s.ends.do(len(ends), closeGrace, func(i int) { syscall.CloseHandle(ends[i]) })
	s.mu.Lock() // giveBack may signal the event
	defer s.mu.Unlock()
	if e := syscall.CloseHandle(s.event); err == nil {
		err = e
	}
	return os.NewSyscallError("CloseHandle", err)
}

// control makes a call, which must not block, with a handle of one of the
// instances. It is a duplicate, so that the call may do with the listener whatever
// it likes, Close included.
func (s *instances) control(call func(syscall.Handle) error) error {
	h, err := s.anyInstance()
	if err != nil {
		return err
	}
	defer syscall.CloseHandle(h)
	return call(h)
}

// anyInstance returns a duplicate of the handle of an instance.
func (s *instances) anyInstance() (syscall.Handle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	if len(s.armed) == 0 {
		return 0, &ruleError{"all instances of the pipe are connected", errors.ErrUnsupported}
	}
	h, err := duplicate(s.armed[0].sys)
	if err == nil && s.spec.inherit { // the duplicate is to be like the instance's own handle
		err = syscall.SetHandleInformation(h, syscall.HANDLE_FLAG_INHERIT, syscall.HANDLE_FLAG_INHERIT)
		if err = os.NewSyscallError("SetHandleInformation", err); err != nil {
			syscall.CloseHandle(h)
		}
	}
	return h, err
}

// deserted reports whether the client of an instance has left, and left nothing to read.
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
	target       string
	pipe         string   // pipeOf the target
	path         []uint16 // of the target, as the native call takes it, with a zero at its end
	kind         connKind
	ends         direction // of the server
	remote       bool      // clients may be on other machines
	inherit      bool
	writeThrough bool
	in, out      uint32 // quotas in bytes
	wait         int64  // in 100 ns; negative is relative to now
	security     *SecurityDescriptor
}

func newPipeSpec(target string, c PipeConfig) (*pipeSpec, error) {
	if isRemote(target) {
		return nil, &ruleError{what: `a pipe can be served on this machine only: write \\.\pipe\name`, is: errors.ErrUnsupported}
	}
	path, err := syscall.UTF16FromString(`\??\pipe\` + target[len(localPrefix):])
	if err != nil {
		return nil, err
	}
	p := &pipeSpec{
		target:       target,
		pipe:         pipeOf(target),
		path:         path,
		ends:         c.Direction.ends(true),
		remote:       c.AcceptRemote,
		inherit:      c.Inheritable,
		writeThrough: c.WriteThrough,
		in:           bufferSize(c.ReadBuffer),
		out:          bufferSize(c.WriteBuffer),
		wait:         -max(int64(c.DefaultWait/100), 1), // 0 is refused
		security:     c.Security,
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
		if p.security, err = c.Access.SecurityDescriptor(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// bufferSize returns the size of a buffer, or the default.
func bufferSize(n int) uint32 {
	if n == 0 {
		return 64 << 10
	}
	return uint32(n)
}

// ---------------------------------------------------------------------------
// Connections

// connect makes one attempt to open the pipe. If the attempt has to wait for another
// machine, p ends it too.
func connect(p *retryTimer, target string, kind connKind, s *SysDialer) (*fd, error) {
	if s == nil {
		s = &SysDialer{}
	}
	if s.Impersonation > Delegation {
		return nil, configError("Impersonation", s.Impersonation.String(), "Identification, Anonymous, Impersonation or Delegation")
	}
	if err := s.direction.validate(); err != nil {
		return nil, err
	}
	f, err := openClient(p, target, kind, s.direction, s.Impersonation.flags())
	if err != nil {
		return nil, err
	}
	if err := f.introduce(p); err != nil {
		f.closeLater()
		return nil, err
	}
	return f, nil
}

// introduce prepares a client's end, and asks who the server is. A server can hold that up for
// as long as it likes, so another goroutine does it, which is left behind when p has ended and
// the grace is over: the server would take a client that gives up sooner for one that is there.
func (f *fd) introduce(p *retryTimer) error {
	if err := p.await(introductions); err != nil {
		return err
	}
	var err error
	done := make(chan struct{})
	go func() {
		if err = f.prepare(); err == nil {
			f.meet()
		}
		close(done)
		introductions <- struct{}{}
	}()
	if ended := p.await(done); ended != nil && !closedSoon(done, introductionGrace) {
		return ended
	}
	return err
}

// introductionGrace is how long a Dial may outlast its time for a pipe that it has. On a busy machine
// the calls of an introduction take many times as long as elsewhere.
const introductionGrace = time.Second

// introductions bounds how many servers are asked at once who they are. Each may hold a thread
// for as long as it likes.
var introductions = newSemaphore(inquiriesMax)

// openClient opens a client's end, which is to be prepared.
func openClient(p *retryTimer, target string, kind connKind, d Direction, flags uint32) (f *fd, err error) {
	ends := d.ends(false)
	readsMessages := kind.native() == messages && ends&reading != 0
	open := func() (syscall.Handle, error) { return openPipe(target, rightsOf(ends, readsMessages), flags) }
	var h syscall.Handle
	if isRemote(target) {
		h, err = openRemote(p, open)
	} else {
		h, err = open()
	}
	if err != nil {
		return nil, err
	}
	f = newFD(h, kind.native(), ends, false)
	f.remote = isRemote(target)
	f.pipe = pipeOf(target)
	return f, nil
}

// prepare sets what a client's end reads, and finds out what it sends.
func (f *fd) prepare() error {
	err := f.control("", func(h syscall.Handle) error { f.sends = sentBy(h); return nil })
	if err == nil && f.kind == messages && f.ends&reading != 0 { // a client's end always begins with bytes
		err = f.control("SetNamedPipeHandleState", setMessageMode)
	}
	return err
}

// openRemote makes a call that opens a pipe of another machine. The call may take as long as
// the network likes, until p ends it. It is made in the caller's thread, which may
// impersonate somebody.
func openRemote(p *retryTimer, open func() (syscall.Handle, error)) (h syscall.Handle, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	call, err := newThreadCall()
	if err != nil {
		return 0, err
	}
	var expiry <-chan time.Time
	if !p.deadline.IsZero() {
		timer := time.NewTimer(time.Until(p.deadline))
		defer timer.Stop()
		expiry = timer.C
	}
	ended := make(chan error, 1)
	go func() {
		why := error(&timeoutError{})
		select {
		case <-call.done:
		case <-p.ctx.Done():
			why = contextError(p.ctx, nil)
		case <-expiry:
		}
		ended <- call.end(why)
	}()
	call.run(func() (err error) {
		h, err = open()
		return err
	})
	return h, <-ended
}

// rightsOf returns the rights on a pipe that a client asks for. They are no more than it
// needs: the open is refused if the pipe does not grant all of them. READ_CONTROL is for
// reading the owner. The default descriptor of a pipe grants everybody FILE_GENERIC_READ
// alone, which has all that a reader of bytes asks for. FILE_CREATE_PIPE_INSTANCE is
// never among them.
func rightsOf(ends direction, readsMessages bool) uint32 {
	const ( // winnt.h
		fileReadData        = 0x1   // FILE_READ_DATA
		fileWriteData       = 0x2   // FILE_WRITE_DATA
		fileWriteAttributes = 0x100 // FILE_WRITE_ATTRIBUTES
	)
	rights := uint32(syscall.SYNCHRONIZE | readControl | fileReadAttributes)
	if ends&reading != 0 {
		rights |= fileReadData
	}
	if ends&writing != 0 {
		rights |= fileWriteData
	}
	if readsMessages { // SetNamedPipeHandleState
		rights |= fileWriteAttributes
	}
	return rights
}

// judge returns what the failure of connect means.
func judge(_ string, err error) verdict {
	switch errnoOf(err) {
	case errPipeBusy:
		return busy
	case syscall.ERROR_FILE_NOT_FOUND:
		return absent
	}
	return final
}

// trusted reports whether the peer is this process's user, SYSTEM or an administrator.
// For a server the owner of the pipe counts, which a user cannot forge, unless others may
// serve the pipe too; for a client its token. Both count on this machine alone, where these SIDs mean something.
func (p Peer) trusted() bool { return p.system.trusted }

// peerSystem is what a Peer holds beyond the portable facts.
type peerSystem struct {
	session      uint32
	knowsSession bool
	trusted      bool // see Peer.trusted
}

// pair returns the server's and the client's end of a new pipe. Nobody else can open the
// client's end: the pipe belongs to this user and has a single instance, which has its
// client when pair returns.
func pair(kind connKind) (a, b *fd, err error) { return pairOf(Duplex, kind) }

// pairOf makes a pair. The token by which the server knows the client follows what the
// client sends (SECURITY_CONTEXT_TRACKING). The client's end may be given to a child with
// other rights than this process, and then the server knows the child by what the child
// sends.
func pairOf(d Direction, kind connKind) (server, client *fd, err error) {
	const securityContextTracking = 0x40000 // winbase.h: SECURITY_CONTEXT_TRACKING
	server, client, err = newEnds(d, kind, Identification.flags()|securityContextTracking)
	if err != nil {
		return nil, nil, err
	}
	server.dynamic, client.dynamic = true, true
	return server, client, nil
}

// newEnds returns the ends of a new pipe that has one instance and belongs to this user. The
// flags say what the client's end lets the server's know of who writes.
func newEnds(d Direction, kind connKind, flags uint32) (server, client *fd, err error) {
	p, err := newPipeSpec(localPrefix+appFolder+freshName(), PipeConfig{Direction: d, Messages: kind.native() == messages})
	if err != nil {
		return nil, nil, err
	}
	h, err := p.create(true)
	if err != nil {
		return nil, nil, err
	}
	server = newFD(h, p.kind, p.ends, true)
	server.pipe = p.pipe
	client, err = openClient(nil, p.target, kind, d, flags)
	if err == nil {
		if err = client.prepare(); err != nil {
			client.close()
		}
	}
	if err != nil {
		server.close()
		return nil, nil, err
	}
	return server, client, nil
}

// adoptConn returns a connection over a duplicate of f.
func adoptConn(f *os.File, kind connKind) (*fd, error) {
	return adopt(f, kind, reading|writing)
}

// adopt returns an fd over a duplicate of f.
func adopt(f *os.File, kind connKind, d direction) (*fd, error) {
	var h syscall.Handle
	err := withFile(f, func(sys uintptr) (err error) {
		h, err = duplicate(syscall.Handle(sys))
		return err
	})
	if err != nil {
		return nil, err
	}
	return adoptOrClose(h, kind, d)
}

// adoptOrClose is adoptSys for a handle that may have come from a peer, and closes h if that
// fails. What a parent gave its child at the start comes by adoptSys itself: the parent is
// trusted, and the child's end is to park.
func adoptOrClose(h syscall.Handle, kind connKind, d direction) (*fd, error) {
	f, err := adoptSys(h, kind, d)
	if err != nil {
		syscall.CloseHandle(h)
		return nil, err
	}
	f.adopted = true
	return f, nil
}

// adoptSys returns an fd that owns h, if that is the connected end of a pipe that
// can be used asynchronously, for that kind and in the directions; if not, h
// stays as it was.
func adoptSys(h syscall.Handle, kind connKind, d direction) (*fd, error) {
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
	const synchronous = 0x10 | 0x20 // wdm.h: FILE_SYNCHRONOUS_IO_ALERT, FILE_SYNCHRONOUS_IO_NONALERT
	mode, err := fileMode(h)
	if err != nil {
		return nil, err
	}
	server := info.end == pipeServerEnd
	ends := pipeDirection(info).ends(server)
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
	remote, err := isRemotePath(h)
	if err != nil {
		return nil, err
	}
	f := newFD(h, reads, ends, server)
	f.sends = info.carries()
	f.remote = remote || server // the client of a server may be anywhere
	if name, err := pipeName(h); err == nil && !remote {
		f.pipe = pipeOf(localPrefix + name)
	} // otherwise the peer is gone, and so is the name
	f.notePeer()
	return f, nil
}

// ---------------------------------------------------------------------------
// Pipes and named pipes

// pipe returns the ends of an unnamed pipe.
func pipe() (r, w *fd, err error) { return pairOf(ClientToServer, streams) }

// adoptPipe returns the end of a pipe over a duplicate of f.
func adoptPipe(f *os.File, d direction) (*fd, error) { return adopt(f, streams, d) }

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

// pipeDirection returns the way in which a pipe carries data: ntifs.h,
// FILE_PIPE_INBOUND (0), OUTBOUND (1) and FULL_DUPLEX.
func pipeDirection(info pipeInfo) Direction {
	return [...]Direction{ClientToServer, ServerToClient, Duplex}[min(info.configuration, pipeDuplex)]
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

	// Check, if set, is called for each client that the security descriptor admits: see
	// [ListenConfig.Check].
	Check func(Peer) error

	// Refused, if set, is called for each client that Check refused: see
	// [ListenConfig.Refused].
	Refused func(Peer, error)

	// Backlog is how many clients may wait for Accept: the number of instances that are
	// ready for a client at once, at most 254. 0 is 4.
	Backlog int

	// MaxInstances is how many instances the pipe has at most, 1 to 254, both armed and
	// connected; 0 is no limit. A client beyond it waits, in Dial, until a connection is
	// closed on this side. The listener does the counting itself: the limit of
	// CreateNamedPipe counts connections that only the client still holds. So the
	// listener can make the new instance before the old one goes, and the name is never
	// free.
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

	// ReadBuffer and WriteBuffer are how many bytes may be on their way from and to a
	// client before its Write, or that of this end, waits. 0 is 64 KiB.
	ReadBuffer, WriteBuffer int

	// Spin is the longest time that each wait of an accepted connection keeps its thread
	// before it parks: see [ListenConfig.Spin].
	Spin time.Duration

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

// instancesMax is the highest limit that CreateNamedPipe takes for instances: winbase.h has
// PIPE_UNLIMITED_INSTANCES as 255.
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
			l := &PipeListener{server{addr: addr, spin: c.Spin}}
			l.setRules(false, c.Check)
			l.refusals = tellRefusals(c.Refused)
			if l.listener, err = listenPipe(target, c); err == nil {
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

// AcceptPipe waits for a client and returns its connection, with its type: see
// [Listener.AcceptConn].
func (l *PipeListener) AcceptPipe() (*PipeConn, error) {
	fd, err := serverOf(l).accept()
	if err != nil {
		return nil, err
	}
	return newPipeConn(endpoint{fd: fd, local: l.addr}), nil
}

// Conns returns an iterator over the clients, which ends at Close: see
// [Listener.Conns].
func (l *PipeListener) Conns() iter.Seq2[*PipeConn, error] { return untilClosed(l.AcceptPipe) }

// SetAccess sets which clients Accept returns from now on: see [Listener.SetAccess].
func (l *PipeListener) SetAccess(access Access, check func(Peer) error) error {
	return serverOf(l).setAccess(access, check)
}

// Close stops listening: see [Listener.Close].
func (l *PipeListener) Close() error { return serverOf(l).close() }

// SetDeadline sets the time after which Accept fails: see [Listener.SetDeadline].
func (l *PipeListener) SetDeadline(t time.Time) error { return serverOf(l).setDeadline(t) }

// SyscallConn gives access to the descriptor or handle: see [Listener.SyscallConn].
func (l *PipeListener) SyscallConn() (syscall.RawConn, error) { return serverOf(l).rawConn() }

// SecurityDescriptor reads the owner, group and DACL of the pipe back
// (GetKernelObjectSecurity), from an instance that listens: while
// [PipeConfig.MaxInstances] are connected, the error matches
// [errors.ErrUnsupported].
func (l *PipeListener) SecurityDescriptor() (*SecurityDescriptor, error) {
	var sd *SecurityDescriptor
	s := serverOf(l)
	err := s.end().control(func(h syscall.Handle) (err error) {
		sd, err = securityOf(h)
		return err
	})
	return sd, s.failed("security", err)
}

// A PipeDialer holds the options of a client of a named pipe. The zero value is
// for a duplex pipe of this user that is read as bytes.
type PipeDialer struct {
	// Timeout and Deadline bound how long DialPipe may take: see [Dialer.Timeout]
	// and [Dialer.Deadline].
	Timeout  time.Duration
	Deadline time.Time

	// Direction is the direction of the pipe. With another one the server refuses: the
	// error matches [os.ErrPermission].
	Direction Direction

	// Messages reads messages (PIPE_READMODE_MESSAGE): see
	// [PipeConn.ReadMessage]. The pipe must be of message type. Without it its
	// messages are read as a stream.
	Messages bool

	// Access says who may be the server: see [Dialer.Access].
	Access Access

	// Check, if set, is called for a server that Access accepts: see [Dialer.Check].
	Check func(Peer) error

	// Wait keeps trying until the pipe exists: see [Dialer.Wait].
	Wait bool

	// Spin is the longest time that each wait of the connection keeps its thread before
	// it parks: see [Dialer.Spin].
	Spin time.Duration

	// Impersonation says what the server may do in this process's name; the zero
	// value is [Identification].
	Impersonation ImpersonationLevel
}

// portable returns the Dialer of the pipe as a local socket.
func (d *PipeDialer) portable() *Dialer {
	return &Dialer{
		Timeout:  d.Timeout,
		Deadline: d.Deadline,
		Wait:     d.Wait,
		Access:   d.Access,
		Check:    d.Check,
		Spin:     d.Spin,
		Sys:      &SysDialer{Impersonation: d.Impersonation, direction: d.Direction},
	}
}

// DialPipe opens the named pipe \\.\pipe\x or \\host\pipe\x, as CreateFile does. It
// waits while the pipe is there but has no free instance, and gives up when ctx or the
// time of d ends: see [Dialer.DialContext].
func DialPipe(ctx context.Context, path string, d PipeDialer) (*PipeConn, error) {
	addr, kind := Path(path), streams
	if d.Messages {
		kind = messages
	}
	fd, err := d.portable().reach(ctx, addr, kind)
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
type PipeConn struct{ endpoint }

func newPipeConn(e endpoint) *PipeConn { return &PipeConn{e} }

// A PipeConn has the same fields as a Conn, and so can be converted to one. It does not
// embed a Conn: users could replace that, and its methods would not be among those that
// the documentation of PipeConn shows.

// Read reads bytes: see [Conn.Read]. From a pipe of message type it reads the contents of
// the messages, without their boundaries.
func (c *PipeConn) Read(p []byte) (int, error) { return (*Conn)(c).Read(p) }

// Write writes all of p: see [Conn.Write]. To a pipe of message type that is one
// message, if p is not empty.
func (c *PipeConn) Write(p []byte) (int, error) { return (*Conn)(c).Write(p) }

// ReadBuffers reads into the buffers in turn: see [Conn.ReadBuffers].
func (c *PipeConn) ReadBuffers(bufs [][]byte) (int64, error) { return (*Conn)(c).ReadBuffers(bufs) }

// WriteBuffers writes the buffers in turn: see [Conn.WriteBuffers]. To a pipe of message
// type each one that is not empty is a message.
func (c *PipeConn) WriteBuffers(bufs *net.Buffers) (int64, error) {
	return (*Conn)(c).WriteBuffers(bufs)
}

// ReadFrom copies from r to the pipe until r ends, for [io.Copy].
func (c *PipeConn) ReadFrom(r io.Reader) (int64, error) { return (*Conn)(c).ReadFrom(r) }

// WriteTo copies from the pipe to w until the peer closes, for [io.Copy].
func (c *PipeConn) WriteTo(w io.Writer) (int64, error) { return (*Conn)(c).WriteTo(w) }

// CloseRead returns an error that matches [errors.ErrUnsupported]: pipes have no half
// close.
func (c *PipeConn) CloseRead() error { return (*Conn)(c).CloseRead() }

// CloseWrite returns an error that matches [errors.ErrUnsupported]: pipes have no half
// close.
func (c *PipeConn) CloseWrite() error { return (*Conn)(c).CloseWrite() }

// SendFiles gives the peer the open files: see [Conn.SendFiles].
func (c *PipeConn) SendFiles(files ...*os.File) error { return (*Conn)(c).SendFiles(files...) }

// RecvFiles receives the files of one SendFiles: see [Conn.RecvFiles].
func (c *PipeConn) RecvFiles(max int) ([]*os.File, error) { return (*Conn)(c).RecvFiles(max) }

// ReadMessage reads one message, or as much of it as fits into p, which must not be
// empty; more says that there is a rest, which the next read gets. It waits until there
// is a message. For an empty message it returns 0, false and no error. [io.EOF] means
// that the peer has closed its end. In one case the system does not tell the two apart:
// for an empty message that arrives while ReadMessage waits, and that the peer's Close
// follows at once, ReadMessage may return io.EOF.
//
// An end that reads bytes has no messages: the error matches
// [errors.ErrUnsupported]. See ReadFile.
func (c *PipeConn) ReadMessage(p []byte) (n int, more bool, err error) {
	n, more, err = c.end().readMessage(p)
	return n, more, c.failed("read", err)
}

// WriteMessage writes p as one message, which may be empty. The error matches
// [ErrMsgTooLong] above 1 GiB, and [errors.ErrUnsupported] on an end that reads
// bytes. If the deadline, or another holder of the handle, ends a WriteMessage of which
// the peer may have read a part, no message can follow: later writes fail with an error
// that matches [syscall.EPIPE]. See WriteFile.
func (c *PipeConn) WriteMessage(p []byte) error { return c.failed("write", c.end().send(p)) }

// PeekMessage copies data that is there to read into p, without waiting and without
// taking it. It returns how much it copied, and as size the length of the whole next
// message, or in a stream of bytes of all data that is there. Both are 0 when there is
// nothing, or an empty message. If a RecvFiles ended at its deadline before it had its
// files, the data that came with them is there to read. If a message arrives while a receive
// waits for one, and the receive reads it in parts, the rest of it may be shown as a message.
// So may the rest that a ReadMessage has left. [io.EOF] means that the peer has closed its end
// and all was read. See PeekNamedPipe.
func (c *PipeConn) PeekMessage(p []byte) (n, size int, err error) {
	n, size, err = c.end().peek(p)
	return n, size, c.failed("peek", err)
}

// Transact writes the request as one message and reads the reply into reply, as
// one operation that holds an operating-system thread while it waits
// (TransactNamedPipe). It returns the length of the reply. If the reply does not fit,
// reply is filled, the rest is dropped, and the error matches [ErrMsgTooLong]. The pipe
// must be duplex, this end must read messages, and nothing may be unread on it.
//
// Transact waits for reads and writes that are under way, and others go on meanwhile. It
// ends with ctx, and at the first of the two deadlines. The peer may have the request all
// the same; then its reply is left for the next read.
func (c *PipeConn) Transact(ctx context.Context, request, reply []byte) (int, error) {
	n, err := c.end().transact(ctx, request, reply)
	return n, c.failed("transact", err)
}

// Flush waits until the peer has read everything that was written, or is gone. It ends
// with ctx, at the write deadline, and with Close. It holds an operating-system thread
// while it waits, and writes wait for it. On an end that cannot be written it does
// nothing. See FlushFileBuffers.
func (c *PipeConn) Flush(ctx context.Context) error {
	return c.failed("flush", c.end().flush(ctx))
}

// Disconnect ends the connection from the server's side. Both ends lose what they have
// not read, and this end can only be closed then. The client reads io.EOF with this
// package, ERROR_PIPE_NOT_CONNECTED with others. On the client's end the error matches
// [errors.ErrUnsupported]. See DisconnectNamedPipe.
func (c *PipeConn) Disconnect() error {
	if !c.end().server {
		return c.failed("disconnect", errNotServer)
	}
	return c.failed("disconnect", c.end().control("DisconnectNamedPipe", disconnectNamedPipe))
}

// errNotServer refuses at a client's end what only a server's end can do.
var errNotServer = &ruleError{"this is the client's end of the pipe", errors.ErrUnsupported}

// Impersonate runs f with the identity and rights of the client, as far as its
// [ImpersonationLevel] lets the server have them, and returns f's error. f runs in a
// goroutine of its own on a thread of its own, and goroutines that it starts do not
// impersonate anybody. The thread takes its own identity back when f returns, panics or
// ends its goroutine. If that fails, Impersonate returns an error and the thread is not
// used again. On the client's end the error matches [errors.ErrUnsupported]. See
// ImpersonateNamedPipeClient.
//
// A client that does not use this package and did not ask for static tracking can be
// impersonated only after something that it sent was read.
func (c *PipeConn) Impersonate(f func() error) error {
	var result error
	if err := c.end().impersonate(func() { result = f() }); err != nil {
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
	err = c.end().control(question.Name, func(h syscall.Handle) (err error) {
		answer, err = pipeNumber(question, h)
		return err
	})
	return answer, c.failed("peer", err)
}

// SecurityDescriptor reads the owner, group and DACL of the pipe back:
// GetKernelObjectSecurity.
func (c *PipeConn) SecurityDescriptor() (*SecurityDescriptor, error) {
	var sd *SecurityDescriptor
	err := c.end().control("", func(h syscall.Handle) (err error) {
		sd, err = securityOf(h)
		return err
	})
	return sd, c.failed("security", err)
}

// ---------------------------------------------------------------------------
// Children

// bequeath adds the handle to those that cmd's process inherits. A handle that
// was used may belong to the completion port of this process, for good.
func (f *fd) bequeath(cmd *exec.Cmd) (token string, err error) {
	if f.used.Load() {
		return "", &ruleError{"this end was used in this process", errors.ErrUnsupported}
	}
	err = f.control("", func(h syscall.Handle) error {
		token, err = endToken{handle: h, remote: f.remote, pair: f.dynamic}.give(cmd)
		return err
	})
	return token, err
}

// give adds the handle of the token to those that cmd's process inherits.
func (t endToken) give(cmd *exec.Cmd) (_ string, err error) {
	if t.id, err = pipeIdentity(t.handle); err != nil {
		return "", err
	}
	err = syscall.SetHandleInformation(t.handle, syscall.HANDLE_FLAG_INHERIT, syscall.HANDLE_FLAG_INHERIT)
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

const (
	tokenIdentity  = "@"
	tokenSeparator = ":"
	tokenInherit   = ":inheritable"
	tokenRemote    = ":remote"
	tokenPair      = ":pair"
)

// An endToken describes an end to the child: its handle, and what this process knows of it
// that the system does not tell the child.
type endToken struct {
	handle  syscall.Handle
	id      uint64 // of the pipe and the end, see pipeIdentity; 0 if it is not known
	backlog int    // of a listener; 0 for every other end
	remote  bool   // the other end is, or may be, on another machine
	inherit bool   // PipeConfig.Inheritable
	pair    bool   // it is of a Pair: see fd.dynamic
}

// String writes the handle, "@" and the identity, ":" and the backlog of a listener,
// ":inheritable", ":remote" and ":pair".
func (t endToken) String() string {
	text := strconv.FormatUint(uint64(t.handle), 10)
	if t.id != 0 {
		text += tokenIdentity + strconv.FormatUint(t.id, 16)
	}
	if t.backlog != 0 {
		text += tokenSeparator + strconv.Itoa(t.backlog)
	}
	if t.inherit {
		text += tokenInherit
	}
	if t.remote {
		text += tokenRemote
	}
	if t.pair {
		text += tokenPair
	}
	return text
}

// parseToken reads what String writes. For any other text it returns the zero endToken.
func parseToken(token string) (t endToken) {
	rest, pair := strings.CutSuffix(token, tokenPair)
	rest, remote := strings.CutSuffix(rest, tokenRemote)
	rest, inherit := strings.CutSuffix(rest, tokenInherit)
	rest, backlog, _ := strings.Cut(rest, tokenSeparator)
	handle, id, _ := strings.Cut(rest, tokenIdentity)
	h, _ := strconv.ParseUint(handle, 10, 32)
	n, _ := strconv.ParseUint(backlog, 10, 8)
	i, _ := strconv.ParseUint(id, 16, 64)
	t = endToken{syscall.Handle(h), i, int(n), remote, inherit, pair}
	if h == 0 || n > instancesMax || t.String() != token {
		return endToken{}
	}
	return t
}

// pipeIdentity returns a number that tells the ends of pipes apart: a hash (FNV-1a, 64
// bits) of the name of the pipe and the side. It is 0 for an end whose peer is gone, if
// the kernel has forgotten the name of its pipe. From such an end it may still be
// possible to read.
func pipeIdentity(h syscall.Handle) (uint64, error) {
	typ, err := syscall.GetFileType(h)
	if err != nil {
		return 0, os.NewSyscallError("GetFileType", err)
	}
	if typ != syscall.FILE_TYPE_PIPE {
		return 0, errOtherFile
	}
	info, err := localInfo(h)
	if err != nil {
		return 0, err
	}
	name, err := pipeName(h)
	switch {
	case errnoOf(err) == errPipeNotConnected && info.state == pipeClosing:
		return 0, nil
	case err != nil:
		return 0, err
	}
	const offset, prime = 14695981039346656037, 1099511628211
	id := uint64(offset)
	for i := range len(name) {
		id = (id ^ uint64(name[i])) * prime
	}
	return max((id^uint64(info.end))*prime, 1), nil
}

// tokenDescriptors returns the handle that a token names, or nil if it is not valid.
func tokenDescriptors(token string) []uintptr {
	t := parseToken(token)
	if t == (endToken{}) {
		return nil
	}
	return []uintptr{uintptr(t.handle)}
}

// whatWasPassed checks, when the program starts, that the handle came from the parent:
// handles that this process opened are not inheritable. It makes no call that could wait
// for the file behind a handle. The file is checked when the end is asked for: see
// whatIsThere.
func whatWasPassed(token string) (string, error) {
	flags, err := handleFlags(parseToken(token).handle)
	if err == nil && flags&syscall.HANDLE_FLAG_INHERIT == 0 {
		err = errOtherFile
	}
	return "", err
}

// whatIsThere checks that the handle is still open, and is that of the parent's end.
func whatIsThere(token string) (string, error) {
	t := parseToken(token)
	if _, err := handleFlags(t.handle); err != nil {
		return "", err
	}
	if t.id == 0 {
		return "", nil
	}
	id, err := pipeIdentity(t.handle)
	if err == nil && id != t.id && id != 0 {
		err = errOtherFile
	}
	return "", err
}

// keepFromChildren makes an inherited handle one that children do not inherit. It can
// fail only if there is no such handle, and that is found out when the end is asked for.
func keepFromChildren(token string) {
	syscall.SetHandleInformation(parseToken(token).handle, syscall.HANDLE_FLAG_INHERIT, 0)
}

// inheritedFD returns the connection, or the end of a pipe, of a valid token.
func inheritedFD(token string, kind connKind, d direction) (*fd, error) {
	t := parseToken(token)
	if t.backlog != 0 {
		return nil, errNotThatEnd
	}
	f, err := adoptSys(t.handle, kind, d)
	if err == nil {
		f.remote, f.dynamic, f.handedOn = t.remote, t.pair, true
	}
	return f, err
}

// errNotThatEnd refuses a handle that is not that of the end in the variable.
var errNotThatEnd = &ruleError{"the handle is not that of such an end", errors.ErrUnsupported}

// inheritedListener returns the listener for such connections, on a duplex pipe.
func inheritedListener(token string, kind connKind) (*listener, error) {
	t := parseToken(token)
	c, err := t.config()
	if err != nil {
		return nil, err
	}
	if c.Direction != Duplex || c.Messages != (kind.native() == messages) {
		return nil, errNotThatEnd
	}
	return t.listen(c)
}

// config returns the configuration of a pipe, as its reservation tells it. Any other
// handle is refused.
func (t endToken) config() (c PipeConfig, err error) {
	typ, err := syscall.GetFileType(t.handle)
	if err != nil {
		return c, os.NewSyscallError("GetFileType", err)
	}
	if typ != syscall.FILE_TYPE_PIPE || t.backlog == 0 {
		return c, errNotThatEnd
	}
	info, err := localInfo(t.handle)
	if err != nil {
		return c, err
	}
	if info.end != pipeServerEnd || info.state != pipeClosing {
		return c, errNotThatEnd
	}
	mode, err := fileMode(t.handle)
	if err != nil {
		return c, err
	}
	security, err := securityOf(t.handle)
	if err != nil {
		return c, err
	}
	reads, err := readMode(t.handle) // the server of a pipe for messages reads messages
	if err != nil {
		return c, err
	}
	const fileWriteThrough = 2 // wdm.h: FILE_WRITE_THROUGH
	return PipeConfig{
		Direction:    pipeDirection(info),
		Messages:     reads == messages,
		Security:     security,
		Backlog:      t.backlog,
		AcceptRemote: t.remote,
		WriteThrough: mode&fileWriteThrough != 0,
		Inheritable:  t.inherit,
		ReadBuffer:   int(info.inQuota),
		WriteBuffer:  int(info.outQuota),
	}, nil
}

// listen returns a listener for the pipe of the reservation, which the listener then
// owns. If it fails, the reservation stays as it was.
func (t endToken) listen(c PipeConfig) (*listener, error) {
	name, err := pipeName(t.handle)
	if err != nil {
		return nil, err
	}
	p, err := newPipeSpec(localPrefix+name, c)
	if err != nil {
		return nil, err
	}
	s, err := newInstances(p, c.Backlog, 0)
	if err != nil {
		return nil, err
	}
	l, err := s.listen(false)
	if err != nil {
		return nil, err
	}
	s.reservation = t.handle
	return l, nil
}

// adopted makes l the server of a pipe that another process made.
func (l *server) adopted(sys *listener) {
	l.listener, l.addr = sys, Name(sys.spec.target[len(localPrefix):])
	l.setRules(false, nil)
}

// bequeath gives the child the reservation, which keeps the name. The child makes and
// arms instances of its own: on those of this listener, operations of this process are
// under way.
func (l *listener) bequeath(cmd *exec.Cmd) (token string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed.Load():
		return "", net.ErrClosed
	case l.reservation == 0:
		return "", l.reserveErr
	}
	return endToken{handle: l.reservation, backlog: l.backlog, remote: l.spec.remote, inherit: l.spec.inherit}.give(cmd)
}

// InheritedPipeListener returns the inherited listener of a named pipe: see
// [InheritedListener]. It has the direction, type, buffers and security descriptor of
// the parent's.
func InheritedPipeListener(name string) (*PipeListener, error) {
	sys, err := adoptInherited(name, kindPipeListener, func(token string) (*listener, error) {
		t := parseToken(token)
		c, err := t.config()
		if err != nil {
			return nil, err
		}
		return t.listen(c)
	})
	if err != nil {
		return nil, err
	}
	l := new(PipeListener)
	l.adopted(sys)
	l.addr = Path(sys.spec.target)
	return l, nil
}

func (l *PipeListener) kindOfEnd() endKind { return kindOf(l, kindPipeListener) }
func (c *PipeConn) kindOfEnd() endKind     { return kindOf(c, kindConn) }

// ---------------------------------------------------------------------------
// The one way to system calls that may block
//
// Every read and write is an overlapped operation, and there are two ways to wait for its
// end. A goroutine can wait in its own thread, on an event. That is fast: no thread has
// to be woken to look at a completion port, and no other to run the goroutine. But it
// holds the thread. Or the goroutine parks in an os.File, which hands the handle to the
// runtime's completion port. That holds no thread, and is for waits that take long.
//
// A read waits in its thread for a short time, if that paid lately. Then it is cancelled,
// which loses nothing on this machine, and parks. A read from another machine parks at
// once: its answer may be on the way when it is cancelled. A write cannot change from one
// way to the other: when it is cancelled, it is not known how much of it the peer has
// read. If no read has parked yet, a write waits in its thread until it is done, as long
// as few do so at once. The write of a message does so at any time: if its deadline ends
// it, it has to be known whether it had begun, and an os.File does not tell (writeAll).
//
// While a call uses the handle, its value must not go to another object. So each
// operation counts as a user of the fd, and the last user after Close closes it. The
// handle becomes an os.File no sooner than it parks: once it belongs to the completion
// port of a process, it cannot be used asynchronously by another.
//
// An operation is cancelled by its OVERLAPPED alone. CancelIoEx without one would also
// cancel the operations of this process on other handles of the same file object, such as
// the one that File returned. The Close of an os.File does that all the same, and every
// holder of a handle may. So if an operation was cancelled for no reason of this end, and
// took nothing (a read, a flush), it is made again.

// An fd is an overlapped handle of one end of a pipe.
type fd struct {
	refs // calls that use sys; the last one after Close closes it

	sys      syscall.Handle
	kind     connKind                // what it reads
	sends    connKind                // what its writes are in the pipe; a client that reads bytes may yet send messages
	ends     direction               // what the pipe lets this end do
	server   bool                    // this is the server's end
	remote   bool                    // the other end is, or may be, on another machine
	pipe     string                  // the name of the pipe in lower case; the kernel may forget it when the peer is gone
	dynamic  bool                    // of a Pair: the client is known by what it sent last; see pairOf
	handedOn bool                    // another process opened or made this end
	adopted  bool                    // its file may be shared with others, so it does not join: see newSharedFile
	peerBorn int64                   // when the process at the other end was created; 0: not known
	met      atomic.Pointer[meeting] // the answer to the next question who the peer is; nil: the system is asked
	quota    *instances              // where Close gives a place back; nil: there is no limit
	by       *closers                // closes it, if no files are looked for in it
	r        readSide
	w        writeSide

	spin atomic.Int64 // SetSpin, in nanoseconds
	used atomic.Bool  // something was read or written, or was to be

	waits                   // mu guards what follows too; it keeps Close and SetDeadline apart
	gone    chan struct{}   // made by Close; closed when sys is
	goneErr error           // the error of that; set before gone is closed
	file    *os.File        // owns sys since the first park; nil before
	canPark atomic.Bool     // file is there, for good, and can park: sys belongs to no other completion port
	cleanup runtime.Cleanup // closes sys, or file, if nobody does, and gives the place back: see armCleanup
}

// begin sets how long waits of a connection that was accepted or dialed keep their thread.
func (f *fd) begin(spin time.Duration) { f.setSpin(spin) }

// A readSide is the state of the reads of an fd.
type readSide struct {
	turn    semaphore // held by the read under way: see acquire
	backoff backoff   // guarded by turn

	// rest is the length of what is left at the head of the pipe of a message of which a
	// part was read, or 0. The next nextPart reads it without waiting. If a receive fails
	// in the middle of a message, the next one of any kind drops the rest first (useTurn).
	// turn guards it.
	rest uint32

	// The fields below hold what is to be read next. A change needs both turn and taking;
	// to read these fields, either is enough. After the last user has left, dispose may
	// use them without a lock.

	// taking is held by a read while it takes something from the pipe that it may not
	// return, and while it changes these fields, but never while it waits, except for the
	// answer of another machine. So PeekMessage, which does not wait for its turn, finds
	// data either in the pipe or here.
	taking sync.Mutex

	// awaiting says that RecvFiles or RecvWithFiles waits, and may take an empty message
	// in that way. taking guards it. settled is signalled when the wait ends, and by peek.
	awaiting bool
	settled  sync.Cond

	// arriving has the files, and their data, that the last RecvFiles or RecvWithFiles
	// has taken and could not return in time; nil is none.
	arriving *arrival

	// unread has the data that a receive has read and not returned: data that RecvFiles or
	// RecvWithFiles found to be no record, or that came with one, or a message that was
	// read in the place of a rest. It is a message if kind is messages,
	// otherwise bytes. nil is nothing, an empty slice an empty message.
	unread []byte

	// next says what this end expects to read next, for drain. A receive changes it with
	// turn; expect changes it without, hence the atomic.
	next atomic.Uint32 // a sequel

	// place is where in a handshake the next byte is, while hellosFollow. turn guards it.
	place helloPlace
}

// A writeSide is the state of the writes of an fd.
type writeSide struct {
	turn semaphore // held by the write under way: see acquire
	torn error     // why nothing can be sent any more; guarded by turn
}

// An op is one overlapped call and its buffers.
type op struct {
	start func(h syscall.Handle, p, q []byte, done *uint32, o *syscall.Overlapped) error
	p, q  []byte
}

// newFD takes ownership of h. It assumes that this end sends what it reads (messages or
// bytes); openClient and adoptSys correct that. If the fd is dropped without Close, the
// garbage collector closes it, as it does for os and net.
func newFD(h syscall.Handle, kind connKind, ends direction, server bool) *fd {
	f := unarmedFD(h, kind, ends, server)
	f.armCleanup()
	return f
}

// unarmedFD is newFD without the cleanup, for a caller that says more of it before armCleanup.
func unarmedFD(h syscall.Handle, kind connKind, ends direction, server bool) *fd {
	f := &fd{sys: h, kind: kind, sends: kind, ends: ends, server: server, by: &ordinaryEnds}
	f.r.turn, f.w.turn = newSemaphore(1), newSemaphore(1)
	f.r.settled.L = &f.r.taking
	return f
}

// A dropped is what is left of an fd that nobody has any more.
type dropped struct {
	by    *closers
	sys   syscall.Handle
	file  *os.File
	quota *instances
}

// armCleanup has the handle closed, and then the place given back, when the fd is dropped without Close.
// The peer could hold that up, and with it all other cleanups and finalizers, so closers do it.
func (f *fd) armCleanup() {
	f.cleanup.Stop()
	f.cleanup = runtime.AddCleanup(f, func(d dropped) {
		d.by.add(func() {
			closeEnd(d.sys, d.file)
			if d.quota != nil {
				d.quota.forget()
			}
		})
	}, dropped{f.by, f.sys, f.file, f.quota})
}

// closeEnd closes a handle, which the file owns if there is one.
func closeEnd(h syscall.Handle, file *os.File) error {
	if file != nil {
		return errnoOf(file.Close())
	}
	return syscall.CloseHandle(h)
}

// noFD and noListener are closed: see endpoint.end.
var (
	noFD       = closedFD()
	noListener = closedListener()
)

func closedFD() *fd {
	f := &fd{}
	f.closed.Store(true)
	f.increfAndClose()
	return f
}

func closedListener() *listener {
	l := &listener{instances: &instances{}}
	l.closed.Store(true)
	return l
}

// acquire begins an operation in one direction, as soon as the one before it has
// ended; release ends it. Deadline, context and Close end the wait for that too.
func (f *fd) acquire(l limits, d direction) error {
	if f.ends&d == 0 {
		return errDirection(f.ends)
	}
	if err := f.receive(l, f.turn(d)); err != nil {
		return err
	}
	return f.useTurn(d)
}

// acquireBoth begins an operation in both directions. While it waits for one of them it
// has neither, so that reads go on while it waits for a write, and writes while it waits
// for a read.
func (f *fd) acquireBoth(l limits) error {
	if f.ends != reading|writing {
		return errDirection(f.ends)
	}
	for first, second := writing, reading; ; first, second = second, first {
		if err := f.acquire(l, first); err != nil {
			return err
		}
		select {
		case <-f.turn(second):
			err := f.useTurn(second)
			if err != nil {
				f.release(first)
			}
			return err
		default:
		}
		f.release(first)
	}
}

// useTurn counts the caller, who has the turn in the direction, as a user.
func (f *fd) useTurn(d direction) error {
	if err := f.incref(); err != nil {
		f.turn(d) <- struct{}{}
		return err
	}
	if !f.used.Load() {
		f.used.Store(true)
	}
	if d == reading && f.r.next.Load() == filesFollow {
		f.expect(dataFollows) // unless this receive is for files: see takeFiles
	}
	raceRelease()
	if d == reading && f.r.rest > 0 {
		if err := f.dropRest(); err != nil {
			f.release(d)
			return err
		}
	}
	return nil
}

func (f *fd) release(d direction) {
	raceAcquire()
	f.decref()
	f.turn(d) <- struct{}{}
}

func (f *fd) turn(d direction) semaphore {
	if d == writing {
		return f.w.turn
	}
	return f.r.turn
}

// errDirection refuses what the direction of the pipe does not allow.
func errDirection(ends direction) error {
	if ends == reading {
		return &ruleError{"this end of a one-way pipe can only be read", errors.ErrUnsupported}
	}
	return &ruleError{"this end of a one-way pipe can only be written", errors.ErrUnsupported}
}

// run makes one overlapped call and returns how many bytes it transferred. A read or a
// write without a budget waits in the thread or parks: see runRead and runWrite. Any
// other call waits in the thread alone, and no longer than its budget, if it has one. All
// limits apply throughout. The caller has acquired the direction.
func (f *fd) run(l limits, op op, d direction) (int, error) {
	switch {
	case d == reading && l.budget == 0:
		return f.runRead(l, op)
	case d == writing && l.budget == 0:
		return f.runWrite(l, op)
	}
	s, err := slots.take(true)
	if err != nil {
		return 0, err
	}
	return f.runInThread(l, s, op)
}

// runRead waits in the thread if that paid lately, then parks.
func (f *fd) runRead(l limits, op op) (int, error) {
	if n, err := f.runBriefly(l, op); err != errOverBudget {
		return n, err
	}
	return f.runParked(l, op)
}

// runBriefly waits in the thread, if that paid lately. The error is errOverBudget if the
// read should park.
func (f *fd) runBriefly(l limits, op op) (int, error) {
	l.budget = f.spinBudget()
	if l.budget <= 0 {
		return 0, errOverBudget
	}
	s, _ := slots.take(false)
	if s == nil { // without a slot the read parks
		return 0, errOverBudget
	}
	n, err := f.runInThread(l, s, op)
	if err == errOverBudget {
		f.r.backoff.lost()
	} else {
		f.r.backoff.won()
	}
	return n, err
}

// runParked waits without a thread, if this handle can.
func (f *fd) runParked(l limits, op op) (int, error) {
	if file, canPark := f.join(); canPark {
		return f.readParked(file, op.p)
	}
	s, err := slots.take(true)
	if err != nil {
		return 0, err
	}
	return f.runInThread(l, s, op)
}

// readParked reads as an os.File, to which an empty message and the end of the stream
// look alike. If the peer is gone before the read, its queue does not change any more: if
// there is something, the read gets it. If the peer is still there after the read, the
// read got an empty message.
func (f *fd) readParked(file *os.File, p []byte) (int, error) {
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

// runWrite parks if a read of this end has parked before, and otherwise waits in the
// thread. The write of a message waits in the thread as long as there is a slot, since an
// os.File does not tell whether a write that its deadline ended had begun. In a build with
// -race no write goes to an os.File, because a read of the same os.File at the same time
// is a race there.
func (f *fd) runWrite(l limits, op op) (int, error) {
	var s *slot
	var err error
	if !f.canPark.Load() || raceBuild || l.withdrawn {
		s, err = slots.take(raceBuild)
	}
	if s == nil && err == nil {
		file, canPark := f.join()
		if canPark {
			if _, err := f.endOfWait(l); err != nil {
				return 0, err // it has not begun
			}
			n, err := file.Write(op.p)
			if err = f.whyEnded(err); err == os.ErrDeadlineExceeded && l.withdrawn {
				err = errWithdrawn // or it never began: os does not tell
			}
			return n, err
		}
		s, err = slots.take(true)
	}
	if err != nil {
		return 0, err
	}
	return f.runInThread(l, s, op)
}

// whyEnded returns the reason why an operation of os.File ended. Close wakes those that
// wait by a deadline in the past, which must not be taken for their own deadline.
func (f *fd) whyEnded(err error) error {
	err = errnoOf(err)
	if (err == os.ErrDeadlineExceeded || err == syscall.ERROR_OPERATION_ABORTED) && f.closing() {
		return net.ErrClosed
	}
	return err
}

// errOverBudget ends an operation that took longer than its thread may wait.
var errOverBudget = errors.New("over budget")

// atOnce is the budget of a read that does not wait: it takes what is there. If there is
// nothing, the error is errOverBudget.
const atOnce time.Duration = 1

// runInThread makes the call with the slot, which it gives back, and waits for its end in
// the thread. When the limits end the wait, it cancels the call. In any case it returns
// only when the kernel has ended the call. A read that does not wait ignores the limits:
// it follows one that has waited, and nothing must come in between.
func (f *fd) runInThread(l limits, s *slot, op op) (int, error) {
	defer slots.give(s)
	if _, err := f.endOfWait(l); err != nil && l.budget != atOnce {
		return 0, err
	}
	s.begin(op)
	err := op.start(f.sys, op.p, op.q, &s.done, &s.overlapped)
	if err != syscall.ERROR_IO_PENDING {
		return int(s.done), err
	}
	why := f.waitInThread(l, s)
	var n uint32
	err = overlappedResult(f.sys, &s.overlapped, &n)
	switch {
	case err != syscall.ERROR_OPERATION_ABORTED || why == nil:
		return int(n), err
	case l.withdrawn && why == os.ErrDeadlineExceeded:
		return int(n), errWithdrawn
	}
	return int(n), why
}

// ---------------------------------------------------------------------------
// The time that a read waits in its thread

// threadWait is how long a read waits in its thread before it parks, if SetSpin does
// not say otherwise. If nothing comes in that time, the read costs the calls to cancel
// it and to begin it again, so a backoff makes such reads rare.
const threadWait = 2 * time.Millisecond

// spinBudget returns how long the next read should wait in its thread.
func (f *fd) spinBudget() time.Duration {
	switch limit := time.Duration(f.spin.Load()); {
	case f.remote || limit < 0:
		return 0
	case f.r.backoff.skip > 0:
		f.r.backoff.skipped()
		return 0
	case limit > 0:
		return limit
	}
	return threadWait
}

// leaveCPU does nothing: a read that waits here stays in the kernel, and does not spin.
func leaveCPU() {}

// yieldCPU is nil for the same reason.
var yieldCPU func()

// A slot has what an operation needs for which its own thread waits. The kernel uses
// overlapped and the buffers until the operation has ended, so they are in the heap and
// reachable until then.
type slot struct {
	overlapped syscall.Overlapped
	event      syscall.Handle // auto-reset: the operation has ended, or the limits have changed
	buffers    [2]*byte       // keeps the buffers of the operation in the heap and reachable
	done       uint32         // how many bytes were transferred, if the operation ended at once
	next       *slot          // in the list of free slots
}

// slotsMax is how many operations of the process, reads and writes together, wait in their
// threads at once. Those that have no other way to wait do so even beyond it.
const slotsMax = 32

// slots has the slots of the process that are free. It bounds how many threads wait for
// reads and writes.
var slots slotPool

// A slotPool keeps slots for their next use. A slot stays for the life of the process,
// except for one that was made beyond slotsMax.
type slotPool struct {
	mu   sync.Mutex // guards the rest
	free *slot      // a list
	made int
}

// take returns a slot that nobody uses. If there are too many it returns none, unless the
// caller must have one.
func (p *slotPool) take(must bool) (*slot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.free; s != nil {
		p.free, s.next = s.next, nil
		return s, nil
	}
	if p.made >= slotsMax && !must {
		return nil, nil
	}
	event, err := createEvent()
	if err != nil {
		return nil, err
	}
	p.made++
	return &slot{event: event}, nil
}

// give takes a slot back.
func (p *slotPool) give(s *slot) {
	s.buffers = [2]*byte{}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made > slotsMax {
		p.made--
		syscall.CloseHandle(s.event)
		return
	}
	p.free, s.next = s, p.free
}

// begin prepares the slot for an operation.
func (s *slot) begin(op op) {
	s.done = 0
	s.buffers = [2]*byte{unsafe.SliceData(op.p), unsafe.SliceData(op.q)}
	s.overlapped = syscall.Overlapped{
		Internal: statusPending, // not every call sets it at once
		HEvent:   s.event | keepFromPort,
	}
}

// statusPending stands in the place of the result while an operation is under way:
// STATUS_PENDING of ntstatus.h.
const statusPending = 0x103

// completed reports whether the kernel is done with an operation that did not end at
// once. The kernel writes the field, hence the atomic.
func completed(o *syscall.Overlapped) bool { return atomic.LoadUintptr(&o.Internal) != statusPending }

// ---------------------------------------------------------------------------
// Closing

// closeLater marks the fd closed and wakes the calls that wait on it. It gives the place
// among the instances back before the handle goes.
func (f *fd) closeLater() error {
	f.mu.Lock()
	if f.closed.Load() {
		f.mu.Unlock()
		return net.ErrClosed
	}
	f.closed.Store(true)
	f.gone = make(chan struct{})
	f.increfAndClose()
	f.signal()
	if f.canPark.Load() {
		f.file.SetDeadline(time.Unix(1, 0)) // in the past: ends every wait
	}
	f.mu.Unlock()
	if f.quota != nil {
		f.quota.giveBack()
	}
	f.decref()
	return nil
}

// awaitGone waits until the handle is closed, no longer than the grace.
func (f *fd) awaitGone(grace time.Duration) error {
	runtime.Gosched() // most are closed after it: then this takes no timer, which can wake a thread
	if !closedSoon(f.gone, grace) {
		return nil
	}
	return os.NewSyscallError("CloseHandle", f.goneErr)
}

// dispose closes the handle, which nobody uses any more. While the other end is written from a
// page that a slow file system has to bring, npfs.sys holds the lock of the pipe, so a look at
// it, and the close of it, may take as long as the peer likes. So another goroutine does that.
func (f *fd) dispose() {
	if f.r.arriving != nil {
		f.r.arriving.abandon(0)
	}
	f.cleanup.Stop()
	if f.r.next.Load() == dataFollows {
		f.by.add(func() { f.closeHandle(nil) })
	} else {
		pipeEnds.add(func() { f.closeHandle(f.drain()) })
	}
}

// ordinaryEnds closes the pipes in which no files are looked for, but for those of listeners. The
// doorbells of shared memory and the pipes that are looked through do not delay them.
var ordinaryEnds closers

// closeHandle closes the handle of the pipe, and those that drain has taken.
func (f *fd) closeHandle(taken []syscall.Handle) {
	f.goneErr = closeEnd(f.sys, f.file) // nobody else is left to change the file
	discard(taken...)                   // with Close waiting: most are closed when it returns
	close(f.gone)
}

// closeReceived closes a file that a peer chose.
func closeReceived(f *os.File) { f.Close() }

// descriptorLimit is no limit: a process can have 16 million handles.
func descriptorLimit() int64 { return 1<<63 - 1 }

// discard closes handles that a peer chose, on another goroutine: see discardFiles.
func discard(handles ...syscall.Handle) { discardWithin(closeGrace, handles...) }

// discardWithin is discard for a caller that waits no longer than the grace.
func discardWithin(grace time.Duration, handles ...syscall.Handle) {
	disposeElsewhere(len(handles), grace, func(i int) { syscall.CloseHandle(handles[i]) })
}

// ---------------------------------------------------------------------------
// Waiting
//
// Every wait of this file can end for one of three reasons besides its own: Close, a
// deadline, or a context. There are three ways to wait. A goroutine waits for a channel
// (pause): for its turn in a direction, for a client, for a flush. A thread waits for a
// kernel event (fd.runInThread): for the end of an overlapped operation. The type waits
// has the reasons for these two. A read or write that parks waits in an os.File, which
// knows nothing of them: closeLater and setDeadline pass them on, as deadlines of the
// os.File. No call with a context waits in that way.
//
// A system call that cannot be overlapped runs in a thread, and is cancelled there: see
// threadCall.

// waits is the state that the waits of a connection or a listener share.
type waits struct {
	mu sync.Mutex // guards what follows, and more in the types that embed it

	// These are changed by the holder of mu; waits look at them without.
	closed      atomic.Bool
	readExpiry  atomic.Int64 // the deadline of reads and of Accept on the clock of now; 0: none
	writeExpiry atomic.Int64

	changed  chan struct{} // closed at the next change; nil if nobody waits for that
	inThread [2]*slot      // the operations that a thread waits for: reading, writing
}

// limits say what ends a wait early, besides Close.
type limits struct {
	ctx       context.Context // nil: none
	deadlines direction       // which deadlines count
	budget    time.Duration   // how long a thread may wait; 0: no limit
	withdrawn bool            // a write that its deadline has cancelled is errWithdrawn, one that never began is not
}

// changes returns a channel that is closed at the next change that may end a wait: a
// deadline that comes sooner, Close, or another reason to call signal. The caller calls
// it before it looks at the state, or it misses a change in between.
func (w *waits) changes() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	return w.changed
}

// signal wakes all waits, which look at the state again. The caller holds mu.
func (w *waits) signal() {
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
	for _, s := range w.inThread {
		if s != nil {
			setEvent(s.event)
		}
	}
}

// setExpiry sets the deadlines of one or both directions. It wakes the waits only if one
// comes sooner: at a later one they look at the state again at the deadline that they
// have seen. The caller holds mu.
func (w *waits) setExpiry(t time.Time, d direction) {
	expiry := int64(0)
	if !t.IsZero() {
		expiry = expiryAt(t, time.Now())
	}
	sooner := false
	set := func(e *atomic.Int64) {
		before := e.Swap(expiry)
		sooner = sooner || expiry != 0 && (before == 0 || expiry < before)
	}
	if d&reading != 0 {
		set(&w.readExpiry)
	}
	if d&writing != 0 {
		set(&w.writeExpiry)
	}
	if sooner {
		w.signal()
	}
}

// endOfWait returns the time at which the wait ends, on the clock of now, or 0 for never.
// If it is to end now, it returns the reason.
func (w *waits) endOfWait(l limits) (until int64, why error) {
	if l.deadlines&reading != 0 {
		until = w.readExpiry.Load()
	}
	if l.deadlines&writing != 0 {
		if e := w.writeExpiry.Load(); e != 0 && (until == 0 || e < until) {
			until = e
		}
	}
	switch {
	case w.closed.Load():
		why = net.ErrClosed
	case l.ctx != nil && l.ctx.Err() != nil:
		why = contextError(l.ctx, nil)
	case until != 0 && now() >= until:
		why = os.ErrDeadlineExceeded
	}
	return until, why
}

// pause parks the goroutine until it receives from ready, or changed is closed, or
// the limits end the wait.
func (w *waits) pause(l limits, changed, ready <-chan struct{}) (received bool, err error) {
	until, err := w.endOfWait(l)
	if err != nil {
		return false, err
	}
	var expiry <-chan time.Time
	if until != 0 {
		timer := time.NewTimer(time.Duration(until - now()))
		defer timer.Stop()
		expiry = timer.C
	}
	var cancelled <-chan struct{}
	if l.ctx != nil {
		cancelled = l.ctx.Done()
	}
	select {
	case <-ready:
		return true, nil
	case <-changed:
	case <-expiry:
	case <-cancelled:
	}
	return false, nil
}

// receive waits until it receives from ready, or the limits end that.
func (w *waits) receive(l limits, ready <-chan struct{}) error {
	for {
		select {
		case <-ready:
			return nil
		default:
		}
		changed := w.changes()
		if received, err := w.pause(l, changed, ready); received || err != nil {
			return err
		}
	}
}

// milliseconds returns how long to wait until a time on the clock of now, or INFINITE if
// that is 0.
func milliseconds(until int64) uint32 {
	if until == 0 {
		return syscall.INFINITE
	}
	return uint32(min(max(until-now(), 0)/int64(time.Millisecond)+1, 1<<30))
}

// waitInThread returns when the operation in the slot has ended, and why it was
// cancelled, if it was.
func (f *fd) waitInThread(l limits, s *slot) (why error) {
	f.setInThread(l, s)
	defer f.setInThread(l, nil)
	if l.ctx != nil && l.ctx.Done() != nil {
		stop := context.AfterFunc(l.ctx, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.signal()
		})
		defer stop()
	}
	var end int64 // of the budget
	if l.budget > 0 {
		end = now() + int64(l.budget)
	}
	for !completed(&s.overlapped) {
		var wait uint32 = syscall.INFINITE
		if why == nil {
			if wait, why = f.mayWait(l, end); why != nil {
				wait = syscall.INFINITE
				// If there is nothing to cancel, it has ended or is about to.
				syscall.CancelIoEx(f.sys, &s.overlapped)
			}
		}
		waitFor(s.event, wait)
	}
	return why
}

// mayWait returns how many more milliseconds the thread may wait, or why it may not.
func (f *fd) mayWait(l limits, end int64) (wait uint32, why error) {
	if l.budget == atOnce {
		return 0, errOverBudget
	}
	until, why := f.endOfWait(l)
	switch {
	case why != nil:
		return 0, why
	case end != 0 && now() >= end:
		return 0, errOverBudget
	case end != 0 && (until == 0 || end < until):
		until = end
	}
	return milliseconds(until), nil
}

// setInThread sets the operation that signal wakes; nil for none.
func (f *fd) setInThread(l limits, s *slot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.deadlines&reading != 0 {
		f.inThread[0] = s
	}
	if l.deadlines&writing != 0 {
		f.inThread[1] = s
	}
}

// join makes an os.File of the handle, if it is not one yet, and reports whether that can
// park. The caller is a user. An adopted end does not join, and waits in a thread. Nothing
// tells whether its handle once came from a peer. It seldom loses by that: an os.File has
// brought it, which in most cases had joined already, and there is only one place at a port.
func (f *fd) join() (file *os.File, canPark bool) {
	switch {
	case f.canPark.Load():
		return f.file, true
	case f.adopted:
		return nil, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		f.file = os.NewFile(uintptr(f.sys), "pipe")
		f.armCleanup()
		canPark := f.file.SetReadDeadline(timeOf(f.readExpiry.Load())) == nil && f.file.SetWriteDeadline(timeOf(f.writeExpiry.Load())) == nil
		if canPark && f.closed.Load() {
			f.file.SetDeadline(time.Unix(1, 0)) // Close came before
		}
		f.canPark.Store(canPark)
	}
	return f.file, f.canPark.Load()
}

// setDeadline sets the deadlines of one or both directions.
func (f *fd) setDeadline(t time.Time, d direction) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed.Load() {
		return net.ErrClosed // or the wake-up of Close would be undone
	}
	f.setExpiry(t, d)
	switch {
	case !f.canPark.Load():
		return nil
	case d == reading:
		return callError("", f.file.SetReadDeadline(t))
	case d == writing:
		return callError("", f.file.SetWriteDeadline(t))
	}
	return callError("", f.file.SetDeadline(t))
}

// A threadCall is a system call that is under way in a thread and not overlapped.
type threadCall struct {
	thread chan syscall.Handle // of the call, while it may be cancelled
	done   chan struct{}       // closed when the call has returned
	err    error               // of the call, once it has
}

// newThreadCall prepares a call in this thread, to which the goroutine is locked.
func newThreadCall() (*threadCall, error) {
	thread, err := duplicate(currentThread)
	if err != nil {
		return nil, err
	}
	c := &threadCall{thread: make(chan syscall.Handle, 1), done: make(chan struct{})}
	c.thread <- thread
	return c, nil
}

// run makes the call.
func (c *threadCall) run(call func() error) {
	c.err = call()
	// Once the thread is out of the channel, nobody cancels what it does next.
	syscall.CloseHandle(<-c.thread)
	close(c.done)
}

// startCall begins the call in another thread.
func startCall(call func() error) (c *threadCall, err error) {
	started := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		c, err = newThreadCall()
		running := c
		close(started)
		if running != nil {
			running.run(call)
		}
	}()
	<-started
	return c, err
}

// end cancels the call (CancelSynchronousIo), and nothing else, and waits until it has
// returned. It cancels again and again, as the call may not have begun. It returns why if
// the cancelling has ended the call, otherwise the error of the call.
func (c *threadCall) end(why error) error {
	pauses := retryTimer{ctx: context.Background()}
	defer pauses.stop()
	for ; ; pauses.pause() {
		c.cancel()
		select {
		case <-c.done:
			if errnoOf(c.err) == syscall.ERROR_OPERATION_ABORTED {
				return why
			}
			return c.err
		default:
		}
	}
}

// cancel cancels the call, if it has begun and not ended.
func (c *threadCall) cancel() {
	select {
	case thread := <-c.thread:
		cancelSynchronousIO(thread)
		c.thread <- thread
	default: // it is ending
	}
}

// A rawConn is an fd as a syscall.RawConn. Windows has no readiness to wait for:
// Read and Write call the function once, in the order of reads and writes.
type rawConn struct{ f *fd }

func (f *fd) rawConn() (syscall.RawConn, error) { return rawConn{f}, nil }

func (c rawConn) Control(fn func(fd uintptr)) error {
	return c.f.control("", func(h syscall.Handle) error { fn(uintptr(h)); return nil })
}

func (c rawConn) Read(fn func(fd uintptr) bool) error  { return c.callOnce(reading, fn) }
func (c rawConn) Write(fn func(fd uintptr) bool) error { return c.callOnce(writing, fn) }

func (c rawConn) callOnce(d direction, fn func(fd uintptr) bool) error {
	if err := c.f.acquire(limits{deadlines: d}, d); err != nil {
		return err
	}
	defer c.f.release(d)
	if !fn(uintptr(c.f.sys)) {
		return errors.ErrUnsupported
	}
	return nil
}

// ---------------------------------------------------------------------------
// Bytes

func (f *fd) read(p []byte) (int, error) {
	l := limits{deadlines: reading}
	if err := f.acquire(l, reading); err != nil {
		return 0, err
	}
	defer f.release(reading)
	return f.readStream(l, p)
}

// readStream reads at least one byte, wherever messages begin and end.
func (f *fd) readStream(l limits, p []byte) (n int, err error) {
	f.giveUpArriving()
	for len(p) > 0 && n == 0 && err == nil {
		if f.r.unread != nil {
			if _, err = f.endOfWait(l); err == nil {
				n, _ = f.takeUnread(p)
			}
			continue
		}
		n, _, err = f.readPart(l, p)
	}
	f.follow(p[:n])
	return n, err
}

// takeUnread moves the unread data to p, and reports whether there is more of it.
func (f *fd) takeUnread(p []byte) (n int, more bool) {
	f.r.taking.Lock()
	defer f.r.taking.Unlock()
	n = copy(p, f.r.unread)
	if n == len(f.r.unread) {
		f.r.unread = nil
		return n, false
	}
	f.r.unread = f.r.unread[n:]
	return n, true
}

// readPart makes one ReadFile. more says that there is more of the message. n is 0,
// without an error, if an empty message, or an empty write to a stream, was read. If p is
// empty it waits for something to read, and takes nothing of it but an empty message.
func (f *fd) readPart(l limits, p []byte) (n int, more bool, err error) {
	p = oneCall(p)
	for {
		n, err = f.run(l, op{start: readFile, p: p}, reading)
		switch err {
		case syscall.ERROR_OPERATION_ABORTED: // by another holder of the handle
		case syscall.ERROR_MORE_DATA: // n is not reliable: Wine leaves it 0
			return len(p), true, nil
		case errOverBudget:
			return 0, false, err
		default:
			return n, false, readError("ReadFile", err)
		}
	}
}

func (f *fd) write(p []byte) (int, error) {
	if err := f.acquire(limits{deadlines: writing}, writing); err != nil {
		return 0, err
	}
	defer f.release(writing)
	if len(p) == 0 { // it does nothing to a stream, but something to a pipe
		return 0, nil
	}
	return f.writeAll(p, false)
}

// writeAll writes p by one WriteFile. For a stream of bytes that is too long for one it
// makes several.
//
// On a pipe of messages it notices when a message is cut off. If a WriteFile that pends
// is cancelled, it takes back what was not read of its message, and the kernel does not
// tell how much that is. A reader that takes messages in parts may have a part, and would
// take the next message for the rest. In that case the message was at the head of the
// pipe, and everything before it was read. So if the pipe is empty after a cancelled
// write, nothing may follow: the end of the stream tells the reader that the message is
// cut off. With whole it treats p as such a message on a stream too, and n is at least 1 if
// it may be cut off.
func (f *fd) writeAll(p []byte, whole bool) (n int, err error) {
	if f.w.torn != nil {
		return 0, f.w.torn
	}
	message := whole || f.sends == messages
	l := limits{deadlines: writing, withdrawn: message}
	for {
		m, err := f.run(l, op{start: writeFile, p: oneCall(p[n:])}, writing)
		n += m
		withdrawn := err == errWithdrawn
		if withdrawn {
			err = os.ErrDeadlineExceeded
		}
		// Another holder of the handle may have cancelled it too.
		if withdrawn || message && err == syscall.ERROR_OPERATION_ABORTED {
			if f.outboundIsEmpty() {
				f.w.torn = cutOff(err)
				if whole {
					n = max(n, 1)
				}
			}
		}
		if err != nil || n >= len(p) {
			return n, writeError("WriteFile", err)
		}
	}
}

// readBuffers reads into the first buffer. Data that is there already goes into the next
// ones too.
func (f *fd) readBuffers(bufs [][]byte) (total int64, err error) {
	l := limits{deadlines: reading}
	if err := f.acquire(l, reading); err != nil {
		return 0, err
	}
	defer f.release(reading)
	for _, p := range bufs {
		if len(p) == 0 {
			continue
		}
		if total > 0 {
			if _, there, err := f.peek(nil); err != nil || there == 0 {
				break // the next read tells
			}
		}
		n, err := 0, error(nil)
		if total == 0 || f.r.unread != nil {
			n, err = f.readStream(l, p)
		} else { // the peer may have taken back what was there
			n, _, err = f.readAtOnce(p)
			f.follow(p[:n])
		}
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
	if err := f.acquire(limits{deadlines: writing}, writing); err != nil {
		return 0, err
	}
	defer f.release(writing)
	for len(*bufs) > 0 {
		if p := (*bufs)[0]; len(p) > 0 {
			n, err := f.writeAll(p, false)
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

// peek looks at what can be read, without waiting for the peer. If there is a message
// while RecvFiles waits for one, that wait is about to end. RecvFiles may have taken an
// empty message that came before this one, and puts it back. So peek looks again after
// that. But the peer may also have taken the message back, and then the wait does not end. So
// peek looks again from time to time too, until there is no message, or the grace is over.
func (f *fd) peek(p []byte) (n, size int, err error) {
	if f.ends&reading == 0 {
		return 0, 0, errDirection(f.ends)
	}
	f.r.taking.Lock()
	defer f.r.taking.Unlock()
	for end := now() + int64(closeGrace); ; {
		n, size, err = f.head(p)
		if !f.r.awaiting || f.kind != messages || size == 0 || now() >= end {
			return n, size, err
		}
		again := time.AfterFunc(2*time.Millisecond, func() {
			f.r.taking.Lock()
			defer f.r.taking.Unlock()
			f.r.settled.Broadcast()
		})
		f.r.settled.Wait()
		again.Stop()
	}
}

// head looks at what is to be read next. The caller holds taking.
func (f *fd) head(p []byte) (n, size int, err error) {
	unread := f.r.unread
	if f.r.arriving != nil { // see giveUpArriving
		unread = f.r.arriving.next(f.kind)
	}
	if unread != nil {
		n = copy(p, unread)
		size = len(unread)
		if f.kind == messages {
			return n, size, nil
		}
		p = p[n:]
	}
	err = f.control("", func(h syscall.Handle) (err error) {
		more, avail, left, err := peekMessage(h, p)
		n += more
		if size += avail; f.kind == messages {
			size = more + left
		}
		return err
	})
	if unread != nil && peerGone(err) {
		err = nil
	}
	return n, size, readError("PeekNamedPipe", err)
}

func (f *fd) spliceFrom(io.Reader) (int64, bool, error) { return 0, false, nil }
func (f *fd) spliceTo(io.Writer) (int64, bool, error)   { return 0, false, nil }

func readFile(h syscall.Handle, p, _ []byte, done *uint32, o *syscall.Overlapped) error {
	return syscall.ReadFile(h, p, done, o)
}

func writeFile(h syscall.Handle, p, _ []byte, done *uint32, o *syscall.Overlapped) error {
	return syscall.WriteFile(h, p, done, o)
}

// ---------------------------------------------------------------------------
// Messages
//
// The kernel keeps messages apart. A ReadFile takes one whole, or as much of it as there is
// room for. The rest is there to be read at once, but it may be withdrawn by its sender: a
// WriteFile that pends can be cancelled, which takes back what was not read of the message.
// Then the next data in the pipe is another message.
//
// So nobody waits for a rest. Recv, which makes no room, since the sender chooses how long a
// message is, drops the rest at once. RecvAppend makes the room, and reads the rest at once.
// The length of the rest is known (PeekNamedPipe). If nothing is there, or what is read has
// another length, the rest was withdrawn, and the receive begins again with the next message.
// Another message of the same length cannot be told from the rest. The sender does its part:
// see writeAll.

// send writes one message.
func (f *fd) send(p []byte) error {
	if err := f.acquire(limits{deadlines: writing}, writing); err != nil {
		return err
	}
	defer f.release(writing)
	switch {
	case f.kind != messages:
		return errNoMessages
	case len(p) > ioMax:
		return errMsgTooLong
	}
	_, err := f.writeAll(p, false)
	return err
}

// outboundIsEmpty reports whether the peer has read all that was written, or whether that
// cannot be known. It makes a flush, which ends at once in these cases. A flush that
// pends is cancelled.
func (f *fd) outboundIsEmpty() bool {
	return f.flushFile(limits{budget: atOnce}) != errOverBudget
}

// sendRights sends one message, or in a stream some data, with the files. It returns how
// much of p was sent.
func (f *fd) sendRights(p []byte, files []*os.File) (sent int, err error) {
	switch {
	case len(files) > 0:
	case f.kind == messages:
		return 0, f.send(p)
	default:
		return f.write(p)
	}
	l := limits{deadlines: writing}
	if err := f.acquire(l, writing); err != nil {
		return 0, err
	}
	defer f.release(writing)
	if len(p) > ioMax-recordMax {
		return 0, errMsgTooLong
	}
	handles, release, err := holdFiles[syscall.Handle](files)
	if err != nil {
		return 0, err
	}
	defer release()
	if _, err := f.endOfWait(l); err != nil {
		return 0, err
	}
	return f.sendHandles(handles, p, false)
}

// recv receives one message into p. It drops the rest of a longer one at once, since that may
// be withdrawn later: then what comes next is another message.
func (f *fd) recv(p []byte) (int, error) {
	l := limits{deadlines: reading}
	if err := f.acquire(l, reading); err != nil {
		return 0, err
	}
	defer f.release(reading)
	for {
		in, err := f.newReader(l)
		if err != nil {
			return 0, err
		}
		n, err := in.recv(f, p)
		if in.skip {
			f.dropRest() // what this leaves, the next receive drops
		}
		if err != errWithdrawn {
			return n, err
		}
	}
}

// recvAppend receives one message and appends it to dst.
func (f *fd) recvAppend(dst []byte) ([]byte, error) {
	l := limits{deadlines: reading}
	if err := f.acquire(l, reading); err != nil {
		return dst, err
	}
	defer f.release(reading)
	for {
		in, err := f.newReader(l)
		if err != nil {
			return dst, err
		}
		p, err := in.recvAppend(f, dst)
		if err != errWithdrawn {
			return p, err
		}
	}
}

// newReader returns the messageReader of one receive, which follows at once. It outlives none:
// no part of a message is kept, since its rest is dropped. It has the message that an earlier
// receive has read and not returned, if there is one.
func (f *fd) newReader(l limits) (in messageReader, err error) {
	if f.kind != messages {
		return in, errNoMessages
	}
	f.giveUpArriving()
	if f.r.unread == nil {
		return in, nil
	}
	if _, err := f.endOfWait(l); err != nil {
		return in, err
	}
	f.r.taking.Lock()
	defer f.r.taking.Unlock()
	in.ahead, in.whole = f.r.unread, true
	f.r.unread = nil
	return in, nil
}

// nextPart and nextRoom are the messageSource that an fd is for such a reader. With
// errWithdrawn no rest is left, but there may be an unread message.
func (f *fd) nextPart(p []byte) (n int, ends bool, err error) {
	if f.r.rest == 0 {
		n, more, err := f.readPart(limits{deadlines: reading}, p)
		if err == nil && more {
			err = f.findRest()
		}
		return n, !more, err
	}
	f.r.taking.Lock()
	defer f.r.taking.Unlock()
	n, another, err := f.readRest(p)
	if err == nil && another {
		if f.r.unread, err = f.wholeMessage(p[:n]); err == nil {
			err = errWithdrawn
		}
		return 0, false, err
	}
	return n, f.r.rest == 0, err
}

// findRest sets rest after a part of a message was read.
func (f *fd) findRest() (err error) {
	_, _, f.r.rest, err = peekLengths(f.sys, nil)
	if err = readError("PeekNamedPipe", err); err == nil && f.r.rest == 0 || err == io.EOF {
		return errWithdrawn
	}
	return err
}

// readRest reads at least a part of the rest of a message. If another message has taken its
// place, it reads of that one, and rest is what is left of that. The caller holds taking.
func (f *fd) readRest(p []byte) (n int, another bool, err error) {
	before := f.r.rest
	n, more, err := f.readAtOnce(p)
	if err != nil && err != errWithdrawn {
		return 0, false, err
	}
	f.r.rest = 0
	if more {
		err = f.findRest()
	}
	return n, uint32(n)+f.r.rest != before, err
}

// readAtOnce is readPart for what was seen at the head of the pipe. It does not wait: if
// nothing is there any more, the error is errWithdrawn.
func (f *fd) readAtOnce(p []byte) (n int, more bool, err error) {
	l := limits{budget: atOnce}
	if f.remote {
		// The answer of another machine takes its time, and may be lost with a read that
		// is cancelled. So such a read waits, once it is known that something is there.
		_, there, _, err := peekMessage(f.sys, nil)
		if err == nil && there == 0 || readError("PeekNamedPipe", err) == io.EOF {
			return 0, false, errWithdrawn
		}
		l = limits{deadlines: reading}
	}
	n, more, err = f.readPart(l, p)
	if err == errOverBudget || err == io.EOF {
		return 0, false, errWithdrawn
	}
	return n, more, err
}

// wholeMessage reads the rest of a message of which part was read, and returns all of it. If
// another message has taken the place of the rest, it returns that one instead. A peer that
// withdraws messages again and again does not keep it busy for long. The caller holds taking.
func (f *fd) wholeMessage(part []byte) ([]byte, error) {
	for attempts := 1; f.r.rest > 0; attempts++ {
		switch {
		case attempts > 10:
			return nil, errWithdrawsAll
		case int64(f.r.rest) > int64(ioMax-len(part)):
			return nil, errMsgTooLong
		}
		message := make([]byte, len(part)+int(f.r.rest))
		have := copy(message, part)
		n, another, err := f.readRest(message[have:])
		if err != nil {
			return nil, err
		}
		if !another {
			return message, nil
		}
		part = message[have : have+n]
	}
	return append([]byte{}, part...), nil // not nil, which would be no message
}

// errWithdrawsAll ends a receive that never gets a message whole.
var errWithdrawsAll = &ruleError{what: "the peer withdraws one message after the other"}

func (f *fd) nextRoom(have int, spare []byte) (int, error) { return f.roomUpTo(ioMax, have, spare) }

// roomUpTo is nextRoom for messages of at most limit bytes. This package sends none that is
// longer. It does not wait: a message that is there tells its length, so that one ReadFile
// takes it, and one that comes later goes into what room there is.
func (f *fd) roomUpTo(limit, have int, spare []byte) (int, error) {
	length := f.r.rest
	if have == 0 {
		_, _, length, _ = peekLengths(f.sys, nil) // the read tells of the error
	}
	switch tooLong := int64(length) > int64(limit-have); {
	case have > 0 && tooLong:
		f.dropRest()
		return 0, errMsgTooLong
	case have > 0:
		return int(length), nil
	case tooLong: // so its beginning is enough
		length = 0
	}
	if length == 0 && len(spare) == 0 {
		return roomAtLeast, nil
	}
	return max(int(length), len(spare)), nil
}

// dropRest drops the rest of a message of which a part was read, if it is still there. If
// another message has taken its place, that one is unread. It reads no more than the rest is
// long, and waits only for the answers of another machine.
func (f *fd) dropRest() error {
	p := make([]byte, min(max(f.r.rest, 1<<10), 64<<10))
	for f.r.rest > 0 {
		if f.closing() {
			return net.ErrClosed
		}
		if _, _, err := f.nextPart(p); err != nil && err != errWithdrawn {
			return err
		}
	}
	return nil
}

// readMessage reads one message or the part of it that fits into p.
func (f *fd) readMessage(p []byte) (n int, more bool, err error) {
	l := limits{deadlines: reading}
	if err := f.acquire(l, reading); err != nil {
		return 0, false, err
	}
	defer f.release(reading)
	switch {
	case f.kind != messages:
		return 0, false, errNoMessages
	case len(p) == 0:
		return 0, false, configError("the buffer", "empty", "one of at least one byte")
	}
	f.giveUpArriving()
	if f.r.unread != nil {
		if _, err := f.endOfWait(l); err != nil {
			return 0, false, err
		}
		n, more = f.takeUnread(p)
		return n, more, nil
	}
	return f.readPart(l, p)
}

// errNoMessages refuses operations on messages where there are only bytes.
var errNoMessages = &ruleError{"this end of the pipe does not read messages", errors.ErrUnsupported}

// errMsgTooLong refuses to send, and to receive by RecvAppend, more than goes in one call.
var errMsgTooLong = &ruleError{"the message is longer than 1 GiB", ErrMsgTooLong}

// transact makes a TransactNamedPipe, which pends until the reply is there.
func (f *fd) transact(ctx context.Context, request, reply []byte) (int, error) {
	l := limits{ctx: ctx, deadlines: reading | writing}
	if err := f.acquireBoth(l); err != nil {
		return 0, err
	}
	defer f.release(writing)
	defer f.release(reading)
	switch {
	case f.kind != messages:
		return 0, errNoMessages
	case len(request) > ioMax || len(reply) > ioMax:
		return 0, errMsgTooLong
	case f.w.torn != nil:
		return 0, f.w.torn
	case f.r.unread != nil, f.r.arriving != nil: // as the system says it of a pipe that is not empty
		return 0, os.NewSyscallError("TransactNamedPipe", errPipeBusy)
	}
	n, err := f.run(l, op{transactNamedPipe, request, reply}, reading|writing)
	if err == syscall.ERROR_MORE_DATA {
		if f.findRest() == nil {
			f.dropRest() // what this leaves, the next receive drops
		}
		return len(reply), ErrMsgTooLong
	}
	return n, writeError("TransactNamedPipe", err)
}

// flush waits until the peer has read everything.
func (f *fd) flush(ctx context.Context) error {
	if f.ends&writing == 0 {
		return nil
	}
	l := limits{ctx: ctx, deadlines: writing}
	if err := f.acquire(l, writing); err != nil {
		return err
	}
	defer f.release(writing)
	if _, err := f.endOfWait(l); err != nil {
		return err
	}
	switch err := f.flushFile(l); {
	case peerGone(err):
		return nil
	default:
		return callError("FlushFileBuffers", err)
	}
}

// flushFile makes a FlushFileBuffers, in a thread of its own, since that is never
// overlapped, and waits for its end parked.
func (f *fd) flushFile(l limits) error {
	for {
		call, err := startCall(func() error { return syscall.FlushFileBuffers(f.sys) })
		if err != nil {
			return err
		}
		why := error(errOverBudget)
		if l.budget != atOnce {
			why = f.receive(l, call.done)
		}
		if why != nil {
			return call.end(why)
		}
		if call.err != syscall.ERROR_OPERATION_ABORTED { // by another holder of the handle
			return call.err
		}
	}
}

// ---------------------------------------------------------------------------
// Files over a connection
//
// A handle does not travel through a pipe. The sender duplicates it into a process,
// the holder, and tells the receiver in a record, which is written by one WriteFile
// and is one message where there are messages:
//
//	 0  8 bytes  "ipcfiles"
//	 8  4 bytes  2, the version
//	12  4 bytes  n, the number of files, 1 to 253
//	16  4 bytes  the id of the holder's process
//	20 16 bytes  random; see below
//	36 4n bytes  the handles, in the holder
//	             the data that the files came with; of SendFiles a zero byte
//
// The numbers have their least significant byte first; 32 bits of a handle are
// significant in every process. The receiver takes the handles away from the holder
// (DUPLICATE_CLOSE_SOURCE).
//
// # What is believed
//
// Everything in the record may be a guess: handles are small multiples of 4. A receiver
// that believed a guess would take a handle away from itself or from a process that the
// sender has no rights to. So it believes a record only if the sender could have done all
// of that by itself: if the sender has the right to duplicate handles into and out of the
// holder (PROCESS_DUP_HANDLE). It asks the kernel, which decides as it would for
// OpenProcess: AccessCheck of the sender's token against the security descriptor of the
// holder, with its mandatory label. Nothing in the record, and nothing among the handles
// of any process, is a proof.
//
// The record does not tell who the sender is either:
//
//   - A server takes the client's token from the pipe (ImpersonateNamedPipeClient).
//     The level Identification is enough. A client that does not show its token
//     (Anonymous) is not believed. A client's own process is believed as a holder even
//     where the client may not open it, as with a restricted token: the kernel gives every
//     process all rights to itself.
//     That the process id is still that of the client is checked by the time of
//     creation of the process and its token (checkPeer, isTokenOf).
//   - A client knows the owner of the pipe, and that nobody else may serve it (servedBy).
//     The token of the server's process is checked as a client's is, if it can be read. If
//     not, SYSTEM and Administrators are believed: only a process that acts for them can own
//     anything in their name. If this user is the owner, the server may yet be a sandbox of
//     the user. So it must be the process that made the pipe whose token may not be read,
//     and the label of the pipe decides (checkLabel). Any other owner is not believed.
//   - If this very process opened the other end, the token tells nothing: it is this
//     process's own. For files that this process sent to itself there is the list of
//     staged files, in memory that nobody else can write. The random bytes say which
//     entry is meant. A child that was given the second end of a Pair is known by dynamic
//     tracking: see pairOf. A child that was given another end is believed only for
//     handles that a child of this process holds (checkChild), and never for a handle of
//     this process. Children that got such ends could name each other's handles, so they
//     must trust each other; SECURITY.md says so.
//
// # Case by case
//
//   - Two processes of one user at one level: either may open the other, so either
//     way is believed.
//   - A server of SYSTEM, or elevated, and a client of the user: the server puts its
//     handles into the client, and the client believes the owner. The client cannot
//     open the server; it holds its own handles, and the server takes them out of
//     the client. A client that names {the server, some handle} has no
//     PROCESS_DUP_HANDLE on the server, and is refused.
//   - A client of low integrity: AccessCheck refuses it every process above it, for
//     PROCESS_DUP_HANDLE is a write right of processes, and the label of a process
//     says that nobody below it may write. It holds its own.
//   - An AppContainer: its token passes only where its package SID is granted the
//     right, which the descriptor of an ordinary process does not do. It holds its
//     own; the user's other processes may open it.
//   - A restricted token: AccessCheck makes the second check, against the restricting
//     SIDs. It holds its own.
//   - Two ordinary users: neither may open the other. SendFiles fails, and says so.
//
// # The sender
//
// The sender makes the checks that the receiver will make, and takes the first of two ways
// that the receiver will believe. The first is to put the handles into the process that
// opened the other end, where they outlive this process. The second is to hold the
// duplicates itself, until the receiver takes them. A process that was given its end by
// another one takes the second way, unless that is the second end of a Pair. The other end
// may have been handed on to a process with other rights, of which nothing can be known.
// What comes from an end that was handed on counts as sent by the process that handed it on.

const (
	recordMark    = "ipcfiles"
	recordVersion = 2
	recordHead    = 36
	recordMax     = recordHead + 4*maxFiles

	// winnt.h
	processDupHandle               = 0x40    // PROCESS_DUP_HANDLE
	processQueryLimitedInformation = 0x1000  // PROCESS_QUERY_LIMITED_INFORMATION
	readControl                    = 0x20000 // READ_CONTROL
)

// A record is what the receiver has to know of the handles.
type record struct {
	pid   uint32   // of the holder
	id    [16]byte // random
	files []uint32 // the handles
}

func (r *record) bytes() []byte {
	p := append(make([]byte, 0, recordHead+4*len(r.files)), recordMark...)
	for _, word := range []uint32{recordVersion, uint32(len(r.files)), r.pid} {
		p = appendWord(p, word)
	}
	p = append(p, r.id[:]...)
	for _, file := range r.files {
		p = appendWord(p, file)
	}
	return p
}

func appendWord(p []byte, word uint32) []byte {
	return append(p, byte(word), byte(word>>8), byte(word>>16), byte(word>>24))
}

// parseRecord returns the record at the head of p and its length. It returns no record if
// p does not begin with a whole one.
func parseRecord(p []byte) (r *record, size int, err error) {
	if len(p) < recordHead || string(p[:len(recordMark)]) != recordMark {
		return nil, 0, nil
	}
	if version := getWord(p[8:]); version != recordVersion {
		return nil, 0, &ruleError{"the peer sends files in version " + strconv.FormatUint(uint64(version), 10) +
			" of the record, this is version " + strconv.Itoa(recordVersion), errors.ErrUnsupported}
	}
	n := getWord(p[12:])
	if n < 1 || n > maxFiles {
		return nil, 0, nil
	}
	if size = recordHead + 4*int(n); size > len(p) {
		return nil, 0, nil
	}
	r = &record{pid: getWord(p[16:]), id: [16]byte(p[20:36])}
	for at := recordHead; at < size; at += 4 {
		r.files = append(r.files, getWord(p[at:]))
	}
	return r, size, nil
}

// A staging is a record to be sent, and the process that holds its handles.
type staging struct {
	record
	holder syscall.Handle // currentProcess, or opened
}

// release closes the handle of the holder, unless the holder is this process: then it is
// not a real handle.
func (s *staging) release() {
	if s.holder != currentProcess {
		syscall.CloseHandle(s.holder)
	}
}

// sendHandles sends the handles, and p behind their record. It returns how much of p was
// sent, or with whole, how much of the record and p: see writeAll. The caller has acquired
// the direction.
func (f *fd) sendHandles(handles []syscall.Handle, p []byte, whole bool) (sent int, err error) {
	s, err := f.stage(handles)
	if err != nil {
		return 0, err
	}
	defer s.release()
	record := s.bytes()
	n, err := f.writeAll(append(record, p...), whole)
	if err != nil {
		s.remove()
	}
	if whole {
		return n, err
	}
	return max(n-len(record), 0), err
}

// stage duplicates the handles into the holder that the receiver will believe.
func (f *fd) stage(handles []syscall.Handle) (*staging, error) {
	s := &staging{}
	if err := randomBytes(s.id[:]); err != nil {
		return nil, err
	}
	maker, err := f.makerOfPeer()
	if err != nil {
		return nil, err
	}
	self := uint32(os.Getpid())
	s.pid, s.holder = self, currentProcess
	if maker != self {
		if s.pid, s.holder, err = f.chooseHolder(maker); err != nil {
			return nil, err
		}
	}
	// While an end lives, the process that opened it lives too, or has handed it on. So
	// the process that chooseHolder opened by its id is the right one.
	info, err := localInfo(f.sys)
	if err == nil && info.state != pipeConnected {
		err = errNoData
	}
	if err = writeError("WriteFile", err); err == nil {
		err = s.put(handles)
	}
	if err != nil {
		s.remove()
		s.release()
		return nil, err
	}
	if maker == self {
		f.rememberStaged(&s.record)
	}
	return s, nil
}

// chooseHolder returns the process into which handles for the peer are to be
// duplicated. Its handle is the caller's to close, unless it is currentProcess.
func (f *fd) chooseHolder(maker uint32) (pid uint32, holder syscall.Handle, err error) {
	process, err := f.openPeer(processDupHandle | readControl)
	unknown := f.handedOn && (f.server || !f.dynamic) // the peer knows the process that handed this end on, not this one
	if err == nil {
		if f.peerBelieves(process) && !unknown {
			return maker, process, nil
		}
		syscall.CloseHandle(process)
	}
	if unknown || f.peerTakesFromUs() {
		return uint32(os.Getpid()), currentProcess, nil
	}
	if err == nil {
		err = os.NewSyscallError("AccessCheck", syscall.ERROR_ACCESS_DENIED)
	}
	return 0, 0, &classified{&ruleError{"no files can be passed: neither process may open the other for " +
		"PROCESS_DUP_HANDLE: " + err.Error(), os.ErrPermission}, errors.ErrUnsupported}
}

// peerBelieves predicts whether the peer believes handles that this process has
// put into the peer's own.
func (f *fd) peerBelieves(process syscall.Handle) bool {
	return f.ownerIsTrustedByPeer() && mayOpen(currentProcessToken, process)
}

// peerTakesFromUs predicts whether the peer may take handles out of this process.
// A server knows that of its client. A client knows only who owns the pipe. It believes
// that a server of this user, of SYSTEM or of administrators may.
func (f *fd) peerTakesFromUs() bool {
	if !f.server {
		_, trusted, _, err := f.owner()
		return trusted && err == nil
	}
	token, err := f.clientToken()
	if err != nil {
		return false
	}
	defer token.Close()
	return f.ownerIsTrustedByPeer() && mayOpen(token, currentProcess)
}

// ownerIsTrustedByPeer reports whether the peer believes the owner of the pipe. A server
// does not ask who owns its pipe.
func (f *fd) ownerIsTrustedByPeer() bool {
	if !f.server {
		return true
	}
	owner, _, doubt, err := f.owner()
	if err != nil || doubt != "" {
		return false
	}
	client, _, err := f.clientUser()
	return owner == sidSystem || owner == sidAdministrators || err == nil && owner == client
}

// put duplicates the handles into the holder.
func (s *staging) put(handles []syscall.Handle) error {
	for _, h := range handles {
		there, err := duplicateHandle(currentProcess, h, s.holder, syscall.DUPLICATE_SAME_ACCESS)
		if err != nil {
			return err
		}
		s.files = append(s.files, uint32(there))
	}
	return nil
}

// remove closes the handles that put has put into the holder. Nobody else has closed or
// taken them, or their numbers could stand for other handles by now: the write of their
// record has failed, so no receiver has read that to its end.
func (s *staging) remove() {
	if s.holder == currentProcess {
		staged.mu.Lock()
		for _, file := range s.files {
			delete(staged.files, file)
		}
		staged.mu.Unlock()
	}
	for _, file := range s.files { // which may take long, so it is done without the lock
		closeIn(s.holder, syscall.Handle(file))
	}
}

// staged has the files that this process has sent to an end that it has opened itself, and
// in most cases still has. By it this process recognizes the records that it sent itself: see
// takeStaged.
var staged stagedTable

// A stagedTable keeps files by handle; there are not many handles. When another process has
// taken a handle away, its entry is replaced when the number is used again.
type stagedTable struct {
	mu    sync.Mutex // guards files
	files map[uint32]stagedFile
}

// A stagedFile says in which record a file was sent, on which end of which pipe.
type stagedFile struct {
	id     [16]byte
	pipe   string
	server bool
}

func (f *fd) rememberStaged(r *record) {
	staged.mu.Lock()
	defer staged.mu.Unlock()
	if staged.files == nil {
		staged.files = make(map[uint32]stagedFile)
	}
	for _, file := range r.files {
		staged.files[file] = stagedFile{r.id, f.pipe, f.server}
	}
}

// takeStaged takes the handles of a record that this process has sent to itself, on the
// other end of this pipe. No other record can name them: only a holder of the other end
// can write to this one, and it cannot read there what this process wrote.
func (f *fd) takeStaged(r *record) (handles []syscall.Handle, ok bool) {
	staged.mu.Lock()
	defer staged.mu.Unlock()
	want := stagedFile{r.id, f.pipe, !f.server}
	for _, file := range r.files {
		if staged.files[file] != want {
			return nil, false
		}
	}
	for _, file := range r.files {
		if _, once := staged.files[file]; once { // a file that the record names twice counts once
			delete(staged.files, file)
			handles = append(handles, syscall.Handle(file))
		}
	}
	return handles, len(handles) == len(r.files)
}

// theRest as the number of bytes behind a record means all that its message has.
const theRest = -1

// recvFiles receives a record and the zero byte that files travel with. Other data is
// left for the next read.
func (f *fd) recvFiles(limit int) ([]*os.File, error) {
	behind := len(zeroByte)
	if f.kind == messages {
		behind = theRest
	}
	_, files, err := f.takeFiles(behind, limit, true)
	return files, err
}

// recvWithFiles receives one message into p and the files that came with it.
func (f *fd) recvWithFiles(p []byte, limit int) (int, []*os.File, error) {
	data, files, err := f.takeFiles(theRest, limit, false)
	switch {
	case errors.Is(err, ErrNoFiles): // also a record that is not believed: it is a message
		n, err := f.recv(p)
		return n, nil, err
	case err == nil && len(data) > len(p):
		discardFiles(files)
		files, err = nil, ErrMsgTooLong
	}
	return copy(p, data), files, err
}

// recvRights receives some data, and at most limit files that come with it.
func (f *fd) recvRights(p []byte, limit int) (int, []*os.File, error) {
	data, files, err := f.takeFiles(len(p), limit, false)
	if err == ErrNoFiles { // not a record that is not believed: the caller is to know of that
		n, err := f.read(p)
		return n, nil, err
	}
	return copy(p, data), files, err
}

// takeFiles receives a record, the given number of bytes behind it, and the files. If there
// are more files than limit, or the files are gone, it returns the data with the error. Data
// that is no record, or a record that is not believed, is kept for the next read. With
// alone, data other than the single zero byte is also kept for the next read.
func (f *fd) takeFiles(behind, limit int, alone bool) (data []byte, files []*os.File, err error) {
	l := limits{deadlines: reading}
	if err := f.acquire(l, reading); err != nil {
		return nil, nil, err
	}
	defer f.release(reading)
	f.expect(filesFollow)
	if f.r.arriving == nil {
		if data, err := f.beginArrival(l, behind, alone); err != nil {
			return data, nil, err
		}
	}
	a := f.r.arriving
	if err = checkReceived(a.count, limit); err == nil {
		if err = f.awaitFiles(l, a); err != nil {
			return nil, nil, err // the next call gets them
		}
		err = a.err
	}
	f.r.taking.Lock()
	f.r.arriving = nil
	f.keepData(a.behind, alone)
	f.r.taking.Unlock()
	if err != nil {
		a.abandon(closeGrace)
		return a.behind, nil, err
	}
	return a.behind, a.files, nil
}

// beginArrival receives a record and takes its handles. With an error, data is all that
// is left of what the peer sent.
func (f *fd) beginArrival(l limits, behind int, alone bool) (data []byte, err error) {
	f.r.taking.Lock()
	defer f.r.taking.Unlock()
	handles, data, err := f.takeHandles(l, behind)
	switch {
	case err == nil:
		f.r.arriving = newArrival(handles, data)
	case data != nil:
		f.keepData(data, alone)
	}
	return data, err
}

// awaitFiles waits until the files of the arrival are there.
func (f *fd) awaitFiles(l limits, a *arrival) error {
	if a.wrapping == nil {
		if err := f.receive(l, inquiries); err != nil {
			return err
		}
		a.wrap(receivedFile)
	}
	return f.receive(l, a.wrapping.done)
}

// keepData keeps the data behind a record for the next read, if alone is set and the data is
// something other than the single zero byte. The caller holds taking.
func (f *fd) keepData(data []byte, alone bool) {
	if alone && string(data) != string(zeroByte[:]) {
		f.r.unread = data
	}
}

// giveUpArriving is for a read that follows a RecvFiles which ended before it had its
// files. It closes the files, which nobody asked for; the data that came with them is to
// be read next.
func (f *fd) giveUpArriving() {
	a := f.r.arriving
	if a == nil {
		return
	}
	f.r.taking.Lock()
	f.r.arriving, f.r.unread = nil, a.next(f.kind)
	f.r.taking.Unlock()
	a.abandon(0)
}

// takeHandles reads a record, checks it, and takes its handles. rest is the data behind
// the record. With an error rest is nil, except with errTaken: then it is all that is
// left of what the peer sent. The caller holds taking, which is released while this
// waits.
func (f *fd) takeHandles(l limits, behind int) (handles []syscall.Handle, rest []byte, err error) {
	text, err := f.readRecord(l, behind)
	if err != nil {
		return nil, nil, err
	}
	r, size, err := parseRecord(text)
	if err == nil && (r == nil || behind != theRest && len(text) != size+behind) {
		err = ErrNoFiles
	}
	if err == nil {
		handles, err = f.collect(r)
	}
	if err == nil || errors.Is(err, errTaken) {
		return handles, text[size:], err
	}
	f.r.unread = text
	return nil, nil, err
}

// readRecord waits until there is something to read. If that looks like a record with the
// given number of bytes behind it, it reads and returns all of it, or what has taken its
// place meanwhile. An empty message it returns as such. It reads nothing else: then the error
// is ErrNoFiles.
//
// A record comes by one WriteFile, so all of it is there or nothing. It is read at once,
// whatever the deadline. If it was withdrawn meanwhile, the wait begins again. With the budget
// atOnce there is no wait: then the error is errWithdrawn.
func (f *fd) readRecord(l limits, behind int) ([]byte, error) {
	if unread := f.r.unread; unread != nil {
		if _, err := f.endOfWait(l); err != nil {
			return nil, err
		}
		f.r.unread = nil
		return unread, nil
	}
	pauses := retryTimer{ctx: context.Background()}
	defer pauses.stop()
	for woken := false; ; woken = true {
		if _, err := f.endOfWait(l); err != nil {
			return nil, err
		}
		size, err := f.recordAtHead(behind)
		if err != nil {
			return nil, err
		}
		if size > 0 {
			if text, err := f.readCandidate(size); err != errWithdrawn {
				return text, err
			}
			continue
		}
		if l.budget == atOnce {
			return nil, errWithdrawn
		}
		if woken { // by an empty write to a stream, and more of them may follow
			f.pauseUnlocked(&pauses)
		}
		more, err := f.awaitSomething(l)
		if err != nil {
			return nil, err
		}
		if f.kind == messages && !more {
			return []byte{}, nil
		}
	}
}

// recordAtHead looks at the head of the pipe, and takes nothing. If that looks like a record
// with the given number of bytes behind it, it returns the length of both together. If
// nothing is there, or an empty message, it returns 0. Otherwise the error is ErrNoFiles, or
// says which version of the record the peer sends.
func (f *fd) recordAtHead(behind int) (size int, err error) {
	var head [recordMax]byte
	n, there, left, err := peekMessage(f.sys, head[:])
	if err != nil {
		return 0, readError("PeekNamedPipe", err)
	}
	if n == 0 {
		return 0, nil
	}
	if f.kind == messages {
		there = n + left
	}
	r, size, err := parseRecord(head[:n])
	if err != nil {
		return 0, err
	}
	if size += behind; behind == theRest {
		size = there
	}
	if r == nil || there < size || size > ioMax || f.kind == messages && there != size {
		return 0, ErrNoFiles
	}
	return size, nil
}

// pauseUnlocked pauses, with taking released meanwhile. The caller holds taking.
func (f *fd) pauseUnlocked(pauses *retryTimer) {
	f.r.taking.Unlock()
	defer f.r.taking.Lock()
	pauses.pause()
}

// awaitSomething waits until there is something to read, and reports whether that is
// more than an empty message, which it takes.
func (f *fd) awaitSomething(l limits) (more bool, err error) {
	f.r.awaiting = true
	f.r.taking.Unlock()
	_, more, err = f.readPart(l, nil)
	f.r.taking.Lock()
	f.r.awaiting = false
	f.r.settled.Broadcast()
	return more, err
}

// readCandidate reads size bytes, or the message that has taken the place of the one of
// that size. It does not wait.
func (f *fd) readCandidate(size int) ([]byte, error) {
	text := make([]byte, size)
	n, more, err := f.readAtOnce(text)
	if err == nil && more {
		err = f.findRest()
	}
	if err != nil || !more {
		return text[:n], err
	}
	return f.wholeMessage(text)
}

// errTaken says that this end has tried to take the handles, so the next read does not
// get the record.
var errTaken = &ruleError{what: "the files are gone"}

// collect takes the handles of a record, if it is to be believed.
func (f *fd) collect(r *record) ([]syscall.Handle, error) {
	self := uint32(os.Getpid())
	maker, err := f.makerOfPeer()
	if err != nil {
		return nil, untrusted(err)
	}
	if r.pid == self && maker == self {
		if handles, ok := f.takeStaged(r); ok {
			return handles, nil
		}
	}
	unknown := maker == self && !(f.server && f.dynamic) // the token would be this process's own
	if unknown && r.pid == self {
		return nil, untrusted(errForged)
	}
	holder := currentProcess
	if r.pid != self {
		const access = processDupHandle | readControl | processQueryLimitedInformation
		if holder, err = syscall.OpenProcess(access, false, r.pid); err != nil {
			return nil, untrusted(os.NewSyscallError("OpenProcess", err))
		}
		defer syscall.CloseHandle(holder)
	}
	if unknown {
		err = checkChild(holder)
	} else {
		err = f.checkSender(holder, r.pid == maker)
	}
	if err != nil {
		return nil, untrusted(err)
	}
	return takeFrom(holder, r.files)
}

// untrusted is the error of a record that is not believed, and therefore is data.
func untrusted(err error) error { return &classified{&classified{err, ErrUntrusted}, ErrNoFiles} }

// errForged refuses handles that the sender could not have put there.
var errForged = &ruleError{what: "the peer tells of files that it has not sent"}

// takeFrom takes the handles away from the holder, all or none. The close of those in the
// holder can take as long as the file likes that a peer chose, so the caller does not wait for
// that longer than the grace. Until then nobody else closes them.
func takeFrom(holder syscall.Handle, files []uint32) (handles []syscall.Handle, err error) {
	keep, err := duplicate(holder)
	if err != nil {
		return nil, &classified{&classified{err, ErrUntrusted}, errTaken}
	}
	for _, file := range files {
		h, e := duplicateHandle(holder, syscall.Handle(file), currentProcess, syscall.DUPLICATE_SAME_ACCESS)
		if e != nil {
			err = e
			continue
		}
		handles = append(handles, h)
	}
	disposeElsewhere(1, closeGrace, func(int) {
		for _, file := range files {
			closeIn(keep, syscall.Handle(file))
		}
		syscall.CloseHandle(keep)
	})
	if err != nil {
		discard(handles...)
		return nil, &classified{&classified{err, ErrUntrusted}, errTaken}
	}
	return handles, nil
}

// checkSender returns nil if the sender could have put handles into the holder by itself,
// otherwise the reason why not. own says that the holder has the process id of
// the sender.
func (f *fd) checkSender(holder syscall.Handle, own bool) error {
	if !f.server {
		return f.checkServer(holder)
	}
	token, err := f.clientToken()
	if err != nil {
		return err
	}
	defer token.Close()
	if mayOpen(token, holder) || own && f.checkPeer(holder) == nil && isTokenOf(token, holder) {
		return nil
	}
	return errForged
}

// checkServer is checkSender where the sender is the server.
func (f *fd) checkServer(holder syscall.Handle) error {
	owner, trusted, _, err := f.owner()
	switch {
	case err != nil:
		return err
	case !trusted:
		return errForged
	}
	token, err := f.serverToken()
	switch {
	case err == nil:
		defer token.Close()
		if mayOpen(token, holder) {
			return nil
		}
	case owner == sidSystem || owner == sidAdministrators:
		return nil
	case err == errTokenHidden:
		return f.checkLabel()
	}
	return errForged
}

// checkChild is checkSender where this process gave the other end away: the holder must
// be a child of this process.
func checkChild(holder syscall.Handle) error {
	parent, err := parentOf(holder)
	if err != nil {
		return err
	}
	born, err := createdAt(holder)
	if err != nil {
		return err
	}
	self, err := createdAt(currentProcess)
	if err != nil {
		return err
	}
	if parent != uint32(os.Getpid()) || born < self { // born earlier: a child of an earlier process with this id
		return errForged
	}
	return nil
}

// checkLabel is checkServer for a server of this user whose token cannot be read. An ordinary
// process cannot read the token of an elevated one, but believes it: that may do everything
// to it anyway. A sandbox is recognized by the label that its pipe got from the kernel. An
// elevated process can read every token of its user, unless it is kept from that, so it
// believes no such server.
func (f *fd) checkLabel() error {
	own, err := integrityOf(currentProcessToken)
	if err != nil {
		return err
	}
	var label uint32
	err = f.control("", func(h syscall.Handle) (err error) {
		label, err = labelOf(h)
		return err
	})
	if err == nil && (own > integrityMedium || label < own) {
		err = errForged
	}
	return err
}

// An arrival has the files that were taken and are not yet files of os.
type arrival struct {
	handles  []syscall.Handle // until wrap
	count    int              // of the files
	behind   []byte           // the data behind the record
	wrapping *inquiry         // makes files; nil before wrap
	files    []*os.File
	err      error           // why a file is missing
	cleanup  runtime.Cleanup // closes the handles if nobody does; stopped when wrap takes over
}

func newArrival(handles []syscall.Handle, behind []byte) *arrival {
	a := &arrival{handles: handles, count: len(handles), behind: behind}
	a.cleanup = runtime.AddCleanup(a, func(handles []syscall.Handle) { go discard(handles...) }, handles)
	return a
}

// next returns what a plain read gets instead of the files: the data behind the record. On a
// pipe of messages that may be an empty message. nil is nothing.
func (a *arrival) next(kind connKind) []byte {
	switch {
	case len(a.behind) > 0:
		return a.behind
	case kind == messages:
		return []byte{}
	}
	return nil
}

// wrap makes files of the handles. os.NewFile asks the kernel of which kind each is. The
// caller has an element of inquiries.
func (a *arrival) wrap(open func(syscall.Handle) (*os.File, error)) {
	a.cleanup.Stop()
	handles := a.handles
	a.wrapping = inquire(func() {
		for _, h := range handles {
			if f, err := open(h); err == nil {
				a.files = append(a.files, f)
			} else {
				a.err = err
			}
		}
	}, func() {
		disposal.do(len(a.files), 0, func(i int) { a.files[i].Close() })
	})
}

// abandon closes the files, which nobody will ask for: now, or when wrap is done
// with them. It waits for that no longer than the grace.
func (a *arrival) abandon(grace time.Duration) {
	if a.wrapping == nil {
		a.cleanup.Stop()
		discardWithin(grace, a.handles...)
		return
	}
	a.wrapping.abandon()
}

// receivedFile returns a handle that a peer chose as an os.File.
func receivedFile(h syscall.Handle) (*os.File, error) { return newSharedFile(h, "received") }

// newSharedFile returns a handle as an os.File that waits by events, or closes it. Others may
// have handles of the same file, and the place at a completion port belongs to the file. If
// that joined the port of the runtime, every operation that they make on it would be reported
// there, with a pointer of their choice. The runtime takes that for one of its own operations,
// and the process ends.
//
// So the file joins a port that nobody waits at, or has one already, and os.NewFile finds the
// place taken. Since Windows 8.1 others can leave a port in the name of the file
// (FileReplaceCompletionInformation). If they did so between the two calls, the file has
// joined the runtime, and is refused. Who wins that race can still end this process.
func newSharedFile(h syscall.Handle, name string) (*os.File, error) {
	port, err := completionPort(syscall.InvalidHandle, 0)
	if err != nil {
		syscall.CloseHandle(h)
		return nil, err
	}
	completionPort(h, port) // fails if the file is not overlapped, or has a port
	syscall.CloseHandle(port)
	f := os.NewFile(uintptr(h), name)
	if f.SetDeadline(time.Time{}) == nil {
		f.Fd() // takes the file from the port of the runtime, if no operation is under way
		f.Close()
		return nil, errJoined
	}
	return f, nil
}

// errJoined refuses a file whose sender could end this process.
var errJoined = &classified{&ruleError{what: "the sender of the file has taken it from its completion port"}, ErrUntrusted}

// An inquiry asks the kernel what handles are that a peer chose, in another goroutine. For
// a file that is not overlapped, the kernel does not answer while any process waits in a
// read of it. A call of this package must not wait for that longer than its deadline.
type inquiry struct {
	done chan struct{} // closed when the answer is there
	gone atomic.Bool   // nobody wants it any more
	drop func()        // closes what came of it, without waiting; may be called twice
}

// inquire begins an inquiry. The caller has an element of inquiries.
func inquire(ask, drop func()) *inquiry {
	q := &inquiry{done: make(chan struct{}), drop: drop}
	go func() {
		ask()
		close(q.done)
		if q.gone.Load() {
			drop()
		}
		inquiries <- struct{}{}
	}()
	return q
}

// abandon drops the answer: now, or when it is there.
func (q *inquiry) abandon() {
	q.gone.Store(true)
	select {
	case <-q.done:
		q.drop()
	default:
	}
}

// inquiriesMax is how many inquiries may be under way. Each may hold a thread for as
// long as another process likes. Each connection has one at a time, but those of closed
// connections go on. A Go program has 10000 threads at most. When there are too many,
// RecvFiles, and the handshake of shared memory, wait for their turn, as long as their
// deadline lets them.
const inquiriesMax = 256

// inquiries bounds how many inquiries are under way in this process.
var inquiries = newSemaphore(inquiriesMax)

// A record that nobody reads names handles that the peer may have put into this process. They
// would stay open until it ends, so Close takes them out of the pipe (drain). But a record is
// believed because of its sender, and a sender may pass on the bytes of a stranger. So Close
// takes no record from where this end would have read data: only from where its next receive
// would have looked for one, and by the same checks. These places are:
//
//   - what follows a RecvFiles or RecvWithFiles, until this end reads anything else;
//   - in the handshake of a SharedConn, what follows a hello and its early data. The bytes of
//     strangers are in the early data, whose length the hello tells;
//   - beside a SharedConn in memory, where nothing but files is sent.
//
// What follows data is left alone, and so is what another handle of this end may still read.

// expect notes what this end expects to read next.
func (f *fd) expect(next sequel) { f.r.next.Store(next) }

// A helloPlace is a place in a handshake.
type helloPlace struct {
	hello [helloSize]byte
	got   int // bytes of hello that were read
	early int // bytes of early data to be read before the next hello

	hellos, received int // hellos with early data, and all their early data
}

// follow notes that p was read, if a handshake is under way. The caller has the turn.
func (f *fd) follow(p []byte) {
	at := &f.r.place
	for len(p) > 0 && f.r.next.Load() == hellosFollow {
		if at.early > 0 {
			n := min(at.early, len(p))
			at.early, p = at.early-n, p[n:]
			continue
		}
		n := copy(at.hello[at.got:], p)
		if at.got, p = at.got+n, p[n:]; at.got < helloSize {
			continue
		}
		at.got = 0
		what, size, err := parseHello(at.hello[:])
		at.hellos++
		// There are no more of them than takeHello takes.
		if err != nil || what&helloEarly == 0 || at.hellos > earlyTimes+2 || int64(size) > int64(earlyMax-at.received) ||
			string(at.hello[:len(helloMark)]) != helloMark {
			f.expect(dataFollows) // unless useMemory says otherwise
			return
		}
		at.early = int(size)
		at.received += at.early
	}
}

// mayHaveFiles reports whether drain may find something. No call uses the fd any more.
func (f *fd) mayHaveFiles() bool {
	next := f.r.next.Load()
	return (next == filesFollow || next == hellosFollow) && f.r.unread == nil && f.r.rest == 0 && f.ends&reading != 0
}

// drain takes the handles of those records that this end would have looked for, and that
// nobody has read. It waits for no peer, and takes no more than is there when it begins, and
// than the buffer of a pipe usually holds: the length of what a peer is about to write counts
// as there, and is the peer's choice. No call uses the fd any more.
//
// It reads a record together with what was written behind it. So the write of the peer
// succeeds, and the peer does not take the handles back, whose numbers may be those of others
// by then: see staging.remove.
func (f *fd) drain() (taken []syscall.Handle) {
	if !f.mayHaveFiles() || f.onOtherMachine(f.sys) || !isOnlyHandle(f.sys) {
		return nil
	}
	_, left, _, err := peekMessage(f.sys, nil)
	left = min(left, drainAll)
	// A closed fd lets nobody in, so another one reads. It owns nothing.
	in := &fd{sys: f.sys, kind: f.kind, sends: f.sends, ends: f.ends, server: f.server,
		pipe: f.pipe, dynamic: f.dynamic, handedOn: f.handedOn, peerBorn: f.peerBorn}
	in.r.settled.L = &in.r.taking
	in.r.place = f.r.place
	in.expect(f.r.next.Load())
	for err == nil && left > 0 && in.mayHaveFiles() {
		var n int
		var handles []syscall.Handle
		n, handles, err = in.drainOne()
		left -= max(n, 1)
		taken = append(taken, handles...)
	}
	return taken
}

// drainMax is how long a message may be that drain reads. A longer one hardly fits the buffer
// of a pipe. So its write has not ended, and the sender takes the handles back. When drain has
// read drainAll, it begins no other message.
const (
	drainMax = 1 << 20
	drainAll = 64 << 10
)

// drainOne reads a record, or a part of a hello or of early data, and returns how many bytes
// that were.
func (f *fd) drainOne() (n int, handles []syscall.Handle, err error) {
	behind, at := len(zeroByte), &f.r.place
	switch {
	case f.r.next.Load() == hellosFollow:
		behind = helloSize - at.got
	case f.kind == messages:
		behind = theRest
	}
	if at.early == 0 {
		size, err := f.recordAtHead(behind)
		if err == nil && size > drainMax {
			return 0, nil, errMsgTooLong
		}
		var rest []byte
		f.r.taking.Lock()
		handles, rest, err = f.takeHandles(limits{budget: atOnce}, behind)
		f.r.taking.Unlock()
		if err == nil || errors.Is(err, errTaken) {
			f.follow(rest)
			return size, handles, nil
		}
		if err != ErrNoFiles || f.r.next.Load() != hellosFollow {
			return 0, nil, err
		}
		if !f.mayHaveFiles() {
			return 0, nil, nil // it was read, and is no record
		}
	}
	part := behind
	if at.early > 0 {
		part = at.early
	}
	p := make([]byte, part)
	n, _, err = f.readAtOnce(p)
	f.follow(p[:n])
	return n, nil, err
}

// ---------------------------------------------------------------------------
// Operations that do not block

func (f *fd) closeRead() error  { return errors.ErrUnsupported }
func (f *fd) closeWrite() error { return errors.ErrUnsupported }

func (f *fd) setBuffer(direction, int) error { return errors.ErrUnsupported }

// maxMessage returns the longest message that send takes.
func (f *fd) maxMessage() (int, error) {
	if err := f.incref(); err != nil {
		return 0, err
	}
	f.decref()
	return ioMax, nil
}

// dupFile joins first. Otherwise the duplicate would take this end's place at the
// completion port.
func (f *fd) dupFile(name string) (*os.File, error) {
	var d syscall.Handle
	err := f.control("", func(h syscall.Handle) (err error) {
		f.used.Store(true)
		f.join()
		d, err = duplicate(h)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case f.adopted:
		return newSharedFile(d, name)
	}
	return os.NewFile(uintptr(d), name), nil
}

// localAddr and remoteAddr return the path of the pipe, which is all the address that
// its ends have.
func (f *fd) localAddr() Addr  { return f.pipePath() }
func (f *fd) remoteAddr() Addr { return f.pipePath() }

func (f *fd) pipePath() Addr {
	if f.remote && !f.server {
		return unnamed // of another machine, which the handle does not tell
	}
	addr := unnamed
	f.control("", func(h syscall.Handle) error {
		name, err := pipeName(h)
		if err == nil {
			addr = Path(localPrefix + name)
		}
		return err
	})
	return addr
}

// control makes a call on the handle that does not block. If name is empty, the error of
// call names the system call itself.
func (f *fd) control(name string, call func(syscall.Handle) error) error {
	if err := f.incref(); err != nil {
		return err
	}
	defer f.decref()
	err := call(f.sys)
	if name == "" {
		return err
	}
	return callError(name, err)
}

// ---------------------------------------------------------------------------
// The process of the peer

// peer returns what is known for certain of the process at the other end. The kernel
// records its process id and session when it opens or makes the pipe.
//
// The user of a server is the owner of the pipe. The user of a client is that of
// the token that the kernel took from it when it opened the pipe. A client that
// did not let the server see it (Anonymous), or whose token follows what it
// sends and that has sent nothing yet, is known by its process; see openPeer and checkPeer.
func (f *fd) peer() (p Peer, err error) {
	if met := f.met.Swap(nil); met != nil && !f.closing() {
		return met.peer, met.err
	}
	switch pid, err := f.makerOfPeer(); {
	case err == nil:
		p.pid, p.facts = int(pid), knowsPID
		p.system.session, err = f.sessionOfPeer()
		p.system.knowsSession = err == nil
	case err != errOtherMachine:
		return Peer{}, err
	}
	var trusted bool
	switch {
	case f.server && f.dynamic && p.pid == os.Getpid(): // before it has sent something
		p.user, err = currentUser()
		trusted = true
	case f.server:
		p.user, trusted, err = f.clientUser()
	default:
		p.user, trusted, p.doubt, err = f.owner()
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

// owner returns the owner of the pipe, and whether it is to be trusted. doubt says why it is
// not although the owner would be: others may serve the pipe too.
func (f *fd) owner() (owner string, trusted bool, doubt string, err error) {
	own, err := ownSIDs()
	if err != nil {
		return "", false, "", err
	}
	err = f.control("", func(h syscall.Handle) error {
		sd, err := securityOf(h)
		if err != nil {
			return err
		}
		owner = sd.Owner()
		if trusted = owner == own[0] || owner == sidSystem || owner == sidAdministrators; trusted {
			doubt = sd.servedBy(owner, own)
		}
		return nil
	})
	return owner, trusted && doubt == "", doubt, err
}

// clientUser returns the user of the client, and whether it is to be trusted. It does not
// ask the client's process: until the server accepts, that process may end, and its id may
// go to another.
func (f *fd) clientUser() (user string, trusted bool, err error) {
	me, err := currentUser()
	if err != nil {
		return "", false, err
	}
	token, err := f.clientToken()
	if err != nil {
		return "", false, err
	}
	defer token.Close()
	user, err = userOf(token)
	trusted = err == nil && (user == me || user == sidSystem || isAdministrator(token))
	return user, trusted, err
}

// waitPeer waits for the end of the peer's process. OpenProcess returns
// ERROR_INVALID_PARAMETER for an id that no process has any more.
func (f *fd) waitPeer(ctx context.Context) error {
	if err := contextError(ctx, nil); err != nil {
		return err
	}
	process, err := f.openPeer(syscall.SYNCHRONIZE)
	switch {
	case err == errProcessEnded, errnoOf(err) == errInvalidParameter:
		return nil
	case err != nil:
		return err
	}
	defer syscall.CloseHandle(process)
	return awaitSignal(ctx, process)
}

// awaitSignal waits until the object is signalled (a process is when it ends), or ctx
// ends. The system's thread pool waits, so that no thread of a goroutine does. When
// awaitSignal returns, the pool does not use the handle any more.
func awaitSignal(ctx context.Context, object syscall.Handle) error {
	id, signalled := poolWaits.add()
	defer poolWaits.remove(id)
	wait, err := registerWait(object, id)
	if err != nil {
		return err
	}
	select {
	case <-signalled:
		err = nil
	case <-ctx.Done():
		err = contextError(ctx, nil)
	}
	if e := unregisterWait(wait); e != nil {
		return e
	}
	return err
}

// poolWaits are the waits of the thread pool that are under way. A callback knows only
// the id of its wait, so one that comes late finds nothing.
var poolWaits waitTable

type waitTable struct {
	mu    sync.Mutex // guards what follows
	last  uintptr
	waits map[uintptr]chan struct{}
}

func (t *waitTable) add() (id uintptr, signalled <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waits == nil {
		t.waits = map[uintptr]chan struct{}{}
	}
	t.last++
	c := make(chan struct{}, 1)
	t.waits[t.last] = c
	return t.last, c
}

func (t *waitTable) remove(id uintptr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waits, id)
}

func (t *waitTable) signal(id uintptr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case t.waits[id] <- struct{}{}:
	default: // it was removed, or told before
	}
}

// poolCallback returns the WAITORTIMERCALLBACK of all waits: a program may only make so
// many (syscall.NewCallback).
var poolCallback = sync.OnceValue(func() uintptr {
	return syscall.NewCallback(func(id, timedOut uintptr) uintptr {
		poolWaits.signal(id)
		return 0
	})
})

// makerOfPeer returns the id of the process that opened or made the other end.
func (f *fd) makerOfPeer() (pid uint32, err error) {
	question := procServerProcessID
	if f.server {
		question = procClientProcessID
	}
	err = f.control("", func(h syscall.Handle) error {
		if f.onOtherMachine(h) {
			return errOtherMachine
		}
		pid, err = pipeNumber(question, h)
		return os.NewSyscallError(question.Name, err)
	})
	return pid, err
}

// sessionOfPeer returns the session of that process.
func (f *fd) sessionOfPeer() (session uint32, err error) {
	question := procServerSessionID
	if f.server {
		question = procClientSessionID
	}
	err = f.control(question.Name, func(h syscall.Handle) (err error) {
		session, err = pipeNumber(question, h)
		return err
	})
	return session, err
}

// A meeting is an answer of peer.
type meeting struct {
	peer Peer
	err  error
}

// meet asks who the peer of a new connection is, so that the first peer does not have to: that is
// asked by Accept or Dial, which the peer must not hold up. A later one may know more.
func (f *fd) meet() {
	f.notePeer()
	p, err := f.peer()
	f.met.Store(&meeting{p, err})
}

// notePeer notes when the process at the other end was created, while the
// connection is new. That tells it from a later process with the same id. The clock may be
// set back, but the time of one process stays the same.
func (f *fd) notePeer() {
	pid, err := f.makerOfPeer()
	if err != nil || pid == uint32(os.Getpid()) {
		return
	}
	process, err := syscall.OpenProcess(processQueryLimitedInformation, false, pid)
	if err != nil {
		return // openPeer will not be allowed to either
	}
	f.peerBorn, _ = createdAt(process)
	syscall.CloseHandle(process)
}

// openPeer opens the process at the other end. If that has ended, its id may be that of
// another process: then openPeer fails.
func (f *fd) openPeer(access uint32) (process syscall.Handle, err error) {
	pid, err := f.makerOfPeer()
	if err != nil {
		return 0, err
	}
	process, err = syscall.OpenProcess(access|processQueryLimitedInformation, false, pid)
	if err != nil {
		return 0, os.NewSyscallError("OpenProcess", err)
	}
	if pid != uint32(os.Getpid()) {
		if err := f.checkPeer(process); err != nil {
			syscall.CloseHandle(process)
			return 0, err
		}
	}
	return process, nil
}

// errPeerNotSeen says that nothing tells whether the process is that of the peer.
var errPeerNotSeen = &ruleError{"the process of the peer could not be opened when it connected", os.ErrPermission}

// checkPeer returns nil if the process, which has the process id of the peer, is that of the
// peer, otherwise the reason why not.
func (f *fd) checkPeer(process syscall.Handle) error {
	created, err := createdAt(process)
	switch {
	case err != nil:
		return err
	case f.peerBorn == 0:
		return errPeerNotSeen
	case created != f.peerBorn:
		return errProcessEnded
	}
	return nil
}

// errOtherMachine refuses what can be done with a process of this machine only.
var errOtherMachine = &ruleError{"the peer is on another machine", errors.ErrUnsupported}

// clientToken returns the client's token, as far as it lets the server see it.
func (f *fd) clientToken() (token syscall.Token, err error) {
	if e := f.impersonate(func() { token, err = threadToken() }); e != nil {
		if token != 0 {
			token.Close()
		}
		return 0, e
	}
	return token, err
}

// serverToken returns the token of the server's process, to be asked about. The error is
// errTokenHidden if that is the process that was there when this end connected, and its token
// may not be read.
func (f *fd) serverToken() (syscall.Token, error) {
	process, err := f.openPeer(0)
	if err != nil {
		return 0, err
	}
	defer syscall.CloseHandle(process)
	token, err := tokenOf(process)
	if errnoOf(err) == syscall.ERROR_ACCESS_DENIED {
		err = errTokenHidden
	}
	return token, err
}

var errTokenHidden = &ruleError{"the token of the server may not be read", os.ErrPermission}

// impersonate runs f in the name of the client: see PipeConn.Impersonate. A thread that
// could not take its own identity back ends with the goroutine, which does not unlock it.
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

// ---------------------------------------------------------------------------
// Errors

// winerror.h: what package syscall lacks.
const (
	errInvalidParameter syscall.Errno = 87  // ERROR_INVALID_PARAMETER
	errPipeLocal        syscall.Errno = 229 // ERROR_PIPE_LOCAL
	errBadPipe          syscall.Errno = 230 // ERROR_BAD_PIPE
	errPipeBusy         syscall.Errno = 231 // ERROR_PIPE_BUSY
	errNoData           syscall.Errno = 232 // ERROR_NO_DATA
	errPipeNotConnected syscall.Errno = 233 // ERROR_PIPE_NOT_CONNECTED
	errPipeConnected    syscall.Errno = 535 // ERROR_PIPE_CONNECTED
)

// readError is the callError of a read. The errors of a peer that is gone become io.EOF.
func readError(call string, err error) error {
	if err = errnoOf(err); peerGone(err) {
		return io.EOF
	}
	return callError(call, err)
}

// writeError is the callError of a write: a peer that is gone matches EPIPE.
func writeError(call string, err error) error {
	if err = errnoOf(err); peerGone(err) {
		return &classified{os.NewSyscallError(call, err), syscall.EPIPE}
	}
	return callError(call, err)
}

// peerGone reports whether the error is one of those by which Windows says that the
// other end was closed or disconnected.
func peerGone(err error) bool {
	return err == syscall.ERROR_BROKEN_PIPE || err == errNoData || err == errPipeNotConnected || err == errBadPipe
}

// errnoOf returns the errno in err, or net.ErrClosed for a closed os.File.
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
	procGetHandleInformation    = kernel32.NewProc("GetHandleInformation")
	procCreateIoCompletionPort  = kernel32.NewProc("CreateIoCompletionPort")
	procCancelSynchronousIo     = kernel32.NewProc("CancelSynchronousIo")
	procMapViewOfFileEx         = kernel32.NewProc("MapViewOfFileEx")
	procSetEvent                = kernel32.NewProc("SetEvent")
	procGetOverlappedResult     = kernel32.NewProc("GetOverlappedResult")
	procConnectNamedPipe        = kernel32.NewProc("ConnectNamedPipe")
	procDisconnectNamedPipe     = kernel32.NewProc("DisconnectNamedPipe")
	procPeekNamedPipe           = kernel32.NewProc("PeekNamedPipe")
	procTransactNamedPipe       = kernel32.NewProc("TransactNamedPipe")
	procRegisterWait            = kernel32.NewProc("RegisterWaitForSingleObject")
	procUnregisterWait          = kernel32.NewProc("UnregisterWaitEx")
	procVirtualAlloc            = kernel32.NewProc("VirtualAlloc")
	procVirtualFree             = kernel32.NewProc("VirtualFree")
	procWaitNamedPipe           = kernel32.NewProc("WaitNamedPipeW")
	procSetNamedPipeHandleState = kernel32.NewProc("SetNamedPipeHandleState")
	procClientComputerName      = kernel32.NewProc("GetNamedPipeClientComputerNameW")
	procClientProcessID         = kernel32.NewProc("GetNamedPipeClientProcessId")
	procClientSessionID         = kernel32.NewProc("GetNamedPipeClientSessionId")
	procServerProcessID         = kernel32.NewProc("GetNamedPipeServerProcessId")
	procServerSessionID         = kernel32.NewProc("GetNamedPipeServerSessionId")

	procAccessCheck                = advapi32.NewProc("AccessCheck")
	procDuplicateToken             = advapi32.NewProc("DuplicateToken")
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
	procNtQueryInformationProcess  = ntdll.NewProc("NtQueryInformationProcess")
	procNtQueryObject              = ntdll.NewProc("NtQueryObject")
	procNtQuerySection             = ntdll.NewProc("NtQuerySection")
	procNtQueryVolumeInformation   = ntdll.NewProc("NtQueryVolumeInformationFile")
	procRtlNtStatusToDosError      = ntdll.NewProc("RtlNtStatusToDosError")
)

// The pseudo handles of processthreadsapi.h.
const (
	currentProcess      = ^syscall.Handle(0)     // GetCurrentProcess() is -1
	currentThread       = ^syscall.Handle(0) - 1 // GetCurrentThread() is -2
	currentProcessToken = ^syscall.Token(0) - 3  // GetCurrentProcessToken() is -4
)

// failure returns the error of a call that returns 0 when it fails. Errors that are usual
// are returned as constants, which costs no allocation.
func failure(result uintptr, errno syscall.Errno) error {
	if result != 0 {
		return nil
	}
	switch errno {
	case 0:
		return syscall.EINVAL
	case syscall.ERROR_IO_PENDING: // every call that waits
		return syscall.ERROR_IO_PENDING
	case syscall.ERROR_OPERATION_ABORTED: // every wait that was cancelled
		return syscall.ERROR_OPERATION_ABORTED
	case errPipeConnected: // every client that came first
		return errPipeConnected
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

// waitFor waits for an event. There is no reason for it to fail. If it does, it ends
// early, and the caller examines everything again.
func waitFor(event syscall.Handle, milliseconds uint32) {
	syscall.WaitForSingleObject(event, milliseconds)
}

// registerWait has the thread pool call poolCallback with the id, once, when the object
// is signalled.
func registerWait(object syscall.Handle, id uintptr) (wait syscall.Handle, err error) {
	const executeOnlyOnce = 8 // winnt.h: WT_EXECUTEONLYONCE
	r, _, errno := syscall.SyscallN(procRegisterWait.Addr(), uintptr(unsafe.Pointer(&wait)), uintptr(object),
		poolCallback(), id, syscall.INFINITE, executeOnlyOnce)
	return wait, os.NewSyscallError("RegisterWaitForSingleObject", failure(r, errno))
}

// unregisterWait returns when the callback does not run any more. That is at once, as the
// callback does not wait.
func unregisterWait(wait syscall.Handle) error {
	r, _, errno := syscall.SyscallN(procUnregisterWait.Addr(), uintptr(wait), uintptr(syscall.InvalidHandle))
	return os.NewSyscallError("UnregisterWaitEx", failure(r, errno))
}

// completionPort makes a file join a port, or makes a port if h is no file and port is 0.
func completionPort(h, port syscall.Handle) (syscall.Handle, error) {
	r, _, errno := syscall.SyscallN(procCreateIoCompletionPort.Addr(), uintptr(h), uintptr(port), 0, 0)
	return syscall.Handle(r), os.NewSyscallError("CreateIoCompletionPort", failure(r, errno))
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

// create makes one instance: the first of a pipe that does not exist yet, or one more of
// a pipe that does. If a pipe exists, the error is ERROR_ACCESS_DENIED, but so are many
// others. So create looks for the pipe. That may be gone by then; then create tries
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

// createInstance makes one attempt. CreateNamedPipe would do for the first instance. But
// asked for one more, it would make a new pipe if the name is free.
func (p *pipeSpec) createInstance(first bool) (syscall.Handle, error) {
	const (
		// ntdef.h
		objCaseInsensitive = 0x40 // OBJ_CASE_INSENSITIVE
		objInherit         = 0x2  // OBJ_INHERIT

		// wdm.h
		fileOpen         = 1 // FILE_OPEN
		fileCreate       = 2 // FILE_CREATE
		fileWriteThrough = 2 // FILE_WRITE_THROUGH

		// ntifs.h
		filePipeMessage      = 1 // FILE_PIPE_MESSAGE_TYPE and FILE_PIPE_MESSAGE_MODE
		filePipeRejectRemote = 2 // FILE_PIPE_REJECT_REMOTE_CLIENTS

		unlimited = 0xffffffff // as many instances as one likes; CreateNamedPipe passes it for PIPE_UNLIMITED_INSTANCES
	)
	name := unicodeString{uint16(2 * (len(p.path) - 1)), uint16(2 * len(p.path)), &p.path[0]}
	attributes := objectAttributes{name: &name, attributes: objCaseInsensitive, security: &p.security.raw[0]}
	attributes.length = uint32(unsafe.Sizeof(attributes))
	if p.inherit {
		attributes.attributes |= objInherit
	}
	disposition, options, typ, mode := uintptr(fileOpen), uintptr(0), uintptr(0), uintptr(0)
	if first {
		disposition = fileCreate
	}
	if p.writeThrough {
		options = fileWriteThrough
	}
	if p.kind == messages {
		typ, mode = filePipeMessage, filePipeMessage
	}
	if !p.remote {
		typ |= filePipeRejectRemote
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
// much of the message at the head was not copied. See lengthOf.
func peekMessage(h syscall.Handle, p []byte) (n, avail, left int, err error) {
	read, total, rest, err := peekLengths(h, p)
	return lengthOf(read), lengthOf(total), lengthOf(rest), err
}

// peekLengths is peekMessage with the lengths as the system tells them.
func peekLengths(h syscall.Handle, p []byte) (n, avail, left uint32, err error) {
	p = oneCall(p)
	r, _, errno := syscall.SyscallN(procPeekNamedPipe.Addr(), uintptr(h),
		uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		uintptr(unsafe.Pointer(&n)), uintptr(unsafe.Pointer(&avail)), uintptr(unsafe.Pointer(&left)))
	return n, avail, left, failure(r, errno)
}

// oneCall returns as much of p, from its start, as one call takes.
func oneCall(p []byte) []byte { return p[:min(len(p), ioMax)] }

// lengthOf converts a length that the peer chose. It returns at most ioMax+1, so that
// the sum with what was copied fits a 32-bit int.
func lengthOf(n uint32) int { return int(min(n, ioMax+1)) }

func transactNamedPipe(h syscall.Handle, request, reply []byte, done *uint32, o *syscall.Overlapped) error {
	r, _, errno := syscall.SyscallN(procTransactNamedPipe.Addr(), uintptr(h),
		uintptr(unsafe.Pointer(unsafe.SliceData(request))), uintptr(len(request)),
		uintptr(unsafe.Pointer(unsafe.SliceData(reply))), uintptr(len(reply)),
		uintptr(unsafe.Pointer(done)), uintptr(unsafe.Pointer(o)))
	return failure(r, errno)
}

func setMessageMode(h syscall.Handle) error {
	mode := uint32(2) // winbase.h: PIPE_READMODE_MESSAGE
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
		return true // Windows has it since Vista. Wine does not, and has no clients on other machines
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
	const filePipeLocalInformation = 24 // wdm.h: FILE_INFORMATION_CLASS
	err = queryFile(h, filePipeLocalInformation, unsafe.Pointer(&info), unsafe.Sizeof(info))
	return info, err
}

// carries returns whether the pipe keeps messages or bytes (its type), which may differ from
// how an end reads it.
func (info pipeInfo) carries() connKind {
	const messageType = 1 // ntifs.h: FILE_PIPE_MESSAGE_TYPE
	if info.typ&messageType != 0 {
		return messages
	}
	return streams
}

// sentBy returns whether the writes of an end are messages or bytes in the pipe. If the
// kernel does not tell, it returns messages, which is the safe answer: a message that is cut
// off must be noticed.
func sentBy(h syscall.Handle) connKind {
	info, err := localInfo(h)
	if err != nil {
		return messages
	}
	return info.carries()
}

// pipeName returns the name of the pipe of a handle, without the folder of pipes.
func pipeName(h syscall.Handle) (string, error) {
	const fileNameInformation = 9 // wdm.h: FILE_INFORMATION_CLASS
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

// readMode returns what the end reads. An end whose reads and writes do not wait
// (PIPE_NOWAIT) is refused: such a read looks like the end of the stream, and such a
// write like success.
func readMode(h syscall.Handle) (connKind, error) {
	const (
		filePipeInformation = 23 // wdm.h: FILE_INFORMATION_CLASS
		messageMode         = 1  // ntifs.h: FILE_PIPE_MESSAGE_MODE
		completeOperation   = 1  // ntifs.h: FILE_PIPE_COMPLETE_OPERATION
	)
	var info struct{ read, completion uint32 } // ntifs.h: FILE_PIPE_INFORMATION
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
	const fileModeInformation = 16 // wdm.h: FILE_INFORMATION_CLASS
	err = queryFile(h, fileModeInformation, unsafe.Pointer(&mode), unsafe.Sizeof(mode))
	return mode, err
}

// handleFlags returns the flags of an open handle, such as HANDLE_FLAG_INHERIT.
func handleFlags(h syscall.Handle) (flags uint32, err error) {
	r, _, errno := syscall.SyscallN(procGetHandleInformation.Addr(), uintptr(h), uintptr(unsafe.Pointer(&flags)))
	return flags, os.NewSyscallError("GetHandleInformation", failure(r, errno))
}

// isRemotePath reports whether the handle is that of a file of another machine.
func isRemotePath(h syscall.Handle) (bool, error) {
	const (
		fileFsDeviceInformation = 4    // wdm.h: FS_INFORMATION_CLASS
		fileRemoteDevice        = 0x10 // wdm.h: FILE_REMOTE_DEVICE
	)
	var info struct{ typ, characteristics uint32 } // wdm.h: FILE_FS_DEVICE_INFORMATION
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

// isOnlyHandle reports whether no other handle of the same object is open, in any process.
func isOnlyHandle(h syscall.Handle) bool {
	_, handles, err := objectInfo(h)
	return err == nil && handles == 1
}

// objectInfo returns the rights that a handle gives, and how many handles of the same object
// are open in all processes.
func objectInfo(h syscall.Handle) (access, handles uint32, err error) {
	const objectBasicInformation = 0 // winternl.h: OBJECT_INFORMATION_CLASS
	var info struct {                // winternl.h: PUBLIC_OBJECT_BASIC_INFORMATION
		attributes, access, handles, pointers uint32
		_                                     [10]uint32
	}
	r, _, _ := syscall.SyscallN(procNtQueryObject.Addr(), uintptr(h), objectBasicInformation,
		uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), 0)
	return info.access, info.handles, os.NewSyscallError("NtQueryObject", ntError(r))
}

// duplicateHandle duplicates a handle of one process into another, whose children
// do not inherit it.
func duplicateHandle(from, h, to syscall.Handle, options uint32) (d syscall.Handle, err error) {
	err = syscall.DuplicateHandle(from, h, to, &d, 0, false, options)
	return d, os.NewSyscallError("DuplicateHandle", err)
}

// closeIn closes a handle of a process, if that has not ended, or closed it itself. The
// caller knows that the handle is still the one that it means: see staging.remove.
func closeIn(process, h syscall.Handle) {
	// The handle could go nowhere, but Wine then leaves it open in another process.
	d, err := duplicateHandle(process, h, currentProcess, syscall.DUPLICATE_SAME_ACCESS|syscall.DUPLICATE_CLOSE_SOURCE)
	if err == nil {
		syscall.CloseHandle(d)
	}
}

// cancelSynchronousIO cancels what the thread waits for in a call that is not
// overlapped, if it does.
func cancelSynchronousIO(thread syscall.Handle) {
	syscall.SyscallN(procCancelSynchronousIo.Addr(), uintptr(thread))
}

// parentOf returns the id of the process that started the process. Another process may have
// that id by now.
func parentOf(process syscall.Handle) (uint32, error) {
	const processBasicInformation = 0 // winternl.h: PROCESSINFOCLASS
	var info [6]uintptr               // winternl.h: PROCESS_BASIC_INFORMATION; the last one is InheritedFromUniqueProcessId
	r, _, _ := syscall.SyscallN(procNtQueryInformationProcess.Addr(), uintptr(process), processBasicInformation,
		uintptr(unsafe.Pointer(&info)), unsafe.Sizeof(info), 0)
	return uint32(info[5]), os.NewSyscallError("NtQueryInformationProcess", ntError(r))
}

// createdAt returns when the process was created, which is never 0.
func createdAt(process syscall.Handle) (int64, error) {
	var created, exited, kernel, user syscall.Filetime
	if err := syscall.GetProcessTimes(process, &created, &exited, &kernel, &user); err != nil {
		return 0, os.NewSyscallError("GetProcessTimes", err)
	}
	return created.Nanoseconds(), nil
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

// isAdministrator reports whether the user that a thread's token stands for may act as an
// administrator. If the system does not answer, it returns false.
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
	ownerGroupAndDACL = 1 | 2 | 4     // OWNER_, GROUP_, DACL_SECURITY_INFORMATION
	labelOnly         = 0x10          // LABEL_SECURITY_INFORMATION
	saclAndLabel      = 8 | labelOnly // SACL_SECURITY_INFORMATION is 8
)

// securityOf reads the security descriptor of a handle that has READ_CONTROL.
func securityOf(h syscall.Handle) (*SecurityDescriptor, error) {
	return readSecurity(h, ownerGroupAndDACL)
}

// readSecurity reads parts of a security descriptor.
func readSecurity(h syscall.Handle, parts uintptr) (*SecurityDescriptor, error) {
	raw := make([]byte, 512)
	for {
		var needed uint32
		r, _, errno := syscall.SyscallN(procGetKernelObjectSecurity.Addr(), uintptr(h), parts,
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

// mayOpen reports whether the kernel would let a process with the token open the other
// process for PROCESS_DUP_HANDLE. That must have been opened with READ_CONTROL. mayOpen
// asks for the label along with the rest, so that the integrity levels count too.
func mayOpen(token syscall.Token, process syscall.Handle) bool {
	sd, err := readSecurity(process, ownerGroupAndDACL|labelOnly)
	if err != nil {
		return false
	}
	if token == currentProcessToken { // AccessCheck takes no primary token
		if token, err = tokenOf(currentProcess); err != nil {
			return false
		}
		defer token.Close()
	}
	// GENERIC_MAPPING of processes: read, write, execute, all (ReactOS
	// ntoskrnl/ps/psmgr.c: PspProcessMapping). It says that PROCESS_DUP_HANDLE is a
	// right to write, which the label of a process denies those below it.
	mapping := [4]uint32{0x20410, 0x20bea, 0x121001, 0x1fffff}
	privileges := [64]uint32{} // PRIVILEGE_SET, which stays empty for this right
	size := uint32(unsafe.Sizeof(privileges))
	var granted uint32
	var ok int32
	r, _, _ := syscall.SyscallN(procAccessCheck.Addr(), uintptr(unsafe.Pointer(&sd.raw[0])), uintptr(token), processDupHandle,
		uintptr(unsafe.Pointer(&mapping)), uintptr(unsafe.Pointer(&privileges)), uintptr(unsafe.Pointer(&size)),
		uintptr(unsafe.Pointer(&granted)), uintptr(unsafe.Pointer(&ok)))
	return r != 0 && ok != 0
}

// tokenOf returns the token of a process, to be asked about (SecurityIdentification).
func tokenOf(process syscall.Handle) (syscall.Token, error) {
	var primary, token syscall.Token
	if err := syscall.OpenProcessToken(process, syscall.TOKEN_QUERY|syscall.TOKEN_DUPLICATE, &primary); err != nil {
		return 0, os.NewSyscallError("OpenProcessToken", err)
	}
	defer primary.Close()
	const securityIdentification = 1 // winnt.h: SECURITY_IMPERSONATION_LEVEL
	r, _, errno := syscall.SyscallN(procDuplicateToken.Addr(), uintptr(primary), securityIdentification, uintptr(unsafe.Pointer(&token)))
	return token, os.NewSyscallError("DuplicateToken", failure(r, errno))
}

// isTokenOf reports whether the token was taken from the process, or from one that
// has the very same rights: a copy keeps the ModifiedId, which changes with every
// change of groups, privileges or restrictions.
func isTokenOf(token syscall.Token, process syscall.Handle) bool {
	var primary syscall.Token
	if syscall.OpenProcessToken(process, syscall.TOKEN_QUERY, &primary) != nil {
		return false
	}
	defer primary.Close()
	a, errA := modifiedID(token)
	b, errB := modifiedID(primary)
	return errA == nil && errB == nil && a == b
}

// modifiedID returns TOKEN_STATISTICS.ModifiedId of winnt.h.
func modifiedID(token syscall.Token) ([2]uint32, error) {
	var statistics [14]uint32
	n := uint32(unsafe.Sizeof(statistics))
	err := syscall.GetTokenInformation(token, syscall.TokenStatistics, (*byte)(unsafe.Pointer(&statistics)), n, &n)
	return [2]uint32{statistics[12], statistics[13]}, os.NewSyscallError("GetTokenInformation", err)
}

// integrityMedium is SECURITY_MANDATORY_MEDIUM_RID of winnt.h, the level of an object
// without a label.
const integrityMedium = 0x2000

// integrityOf returns the integrity level of a token.
func integrityOf(token syscall.Token) (uint32, error) {
	sids, err := tokenSIDs(token, syscall.TokenIntegrityLevel)
	if err != nil {
		return 0, err
	}
	if len(sids) == 0 {
		return 0, &ruleError{what: "the token has no integrity level"}
	}
	return integrityLevel(sids[0]), nil
}

// integrityLevel returns the number at the end of the SID of a level.
func integrityLevel(sid string) uint32 {
	n, _ := strconv.ParseUint(sid[strings.LastIndexByte(sid, '-')+1:], 10, 32)
	return uint32(n)
}

// labelOf returns the integrity level of the label of a handle.
func labelOf(h syscall.Handle) (uint32, error) {
	sd, err := readSecurity(h, labelOnly)
	if err != nil {
		return 0, err
	}
	const labelACE = 0x11 // winnt.h: SYSTEM_MANDATORY_LABEL_ACE_TYPE
	entries, _ := sd.entries(sd.word(12))
	for _, e := range entries {
		if e.kind == labelACE {
			return integrityLevel(e.sid), nil
		}
	}
	return integrityMedium, nil
}

// tokenSIDs returns the SIDs in the answer to a question about a token: one, or
// those of a TOKEN_GROUPS. There may be none.
func tokenSIDs(token syscall.Token, question uint32) (sids []string, err error) {
	size := uint32(256)
	for {
		info := make([]uintptr, (size+7)/uint32(unsafe.Sizeof(uintptr(0)))) // aligned for pointers
		err := syscall.GetTokenInformation(token, question, (*byte)(unsafe.Pointer(&info[0])), size, &size)
		if err == syscall.ERROR_INSUFFICIENT_BUFFER {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("GetTokenInformation", err)
		}
		groups := unsafe.Slice((*syscall.SIDAndAttributes)(unsafe.Pointer(&info[0])), 1)
		if question == tokenRestrictedSids {
			list := (*tokenGroups)(unsafe.Pointer(&info[0]))
			groups = unsafe.Slice(&list.first, min(int(list.count), (len(info)-1)/2))
		}
		for _, g := range groups {
			if g.Sid == nil {
				continue
			}
			sid, err := g.Sid.String()
			if err != nil {
				return nil, os.NewSyscallError("ConvertSidToStringSid", err)
			}
			sids = append(sids, sid)
		}
		runtime.KeepAlive(info)
		return sids, nil
	}
}

// winnt.h: TOKEN_INFORMATION_CLASS, TOKEN_GROUPS. A TOKEN_APPCONTAINER_INFORMATION
// is one pointer to a SID, which is nil outside an AppContainer.
const (
	tokenRestrictedSids  = 11
	tokenAppContainerSid = 31
)

type tokenGroups struct {
	count uint32
	first syscall.SIDAndAttributes
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

// winnt.h.
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
	// Nobody may have more rights than a handle gives. Without an access list, who has a
	// handle for reading could duplicate it with the right to write. The owner could give
	// himself that right (WRITE_DAC), as every process of this user is the owner, but for the
	// entry for OWNER RIGHTS, which says all that an owner may do: READ_CONTROL.
	sd, err := parseSDDL("D:P(A;;RC;;;OW)")
	if err != nil {
		return memoryFiles{}, err
	}
	sa := syscall.SecurityAttributes{SecurityDescriptor: uintptr(unsafe.Pointer(&sd[0]))}
	sa.Length = uint32(unsafe.Sizeof(sa))
	h, err := syscall.CreateFileMapping(syscall.InvalidHandle, &sa, syscall.PAGE_READWRITE, uint32(uint64(size)>>32), uint32(size), nil)
	runtime.KeepAlive(sd) // sa has its address as a number
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

func sysMemory(sys uintptr) (memoryInfo, error) { return sectionInfo(syscall.Handle(sys)) }

// sectionInfo refuses every handle that is not that of a section of committed memory. A
// read of a section with a file behind it can fail, and a read of one that is only
// reserved does. The kernel refuses another kind of object without asking it anything.
func sectionInfo(h syscall.Handle) (memoryInfo, error) {
	const sectionBasicInformation = 0 // SECTION_INFORMATION_CLASS: no header of Windows has it
	var section struct {              // SECTION_BASIC_INFORMATION, as Microsoft describes NtQuerySection
		base       uintptr
		attributes uint32
		size       int64
	}
	r, _, _ := syscall.SyscallN(procNtQuerySection.Addr(), uintptr(h), sectionBasicInformation,
		uintptr(unsafe.Pointer(&section)), unsafe.Sizeof(section), 0)
	if err := ntError(r); err != nil {
		return memoryInfo{}, os.NewSyscallError("NtQuerySection", err)
	}
	access, _, err := objectInfo(h)
	if err != nil {
		return memoryInfo{}, err
	}
	if section.attributes&(secCommit|secReserve|secFile|secImage|secLargePages) != secCommit {
		return memoryInfo{}, &ruleError{what: "the section is not of the ordinary kind of memory"}
	}
	return memoryInfo{size: section.size, writable: access&sectionMapWrite != 0}, nil
}

// mapMemory maps the first size bytes of a section. If repeat > 0, the last repeat bytes of
// the object are mapped once more, directly behind.
func mapMemory(f *os.File, size, repeat int, write bool) (mem []byte, err error) {
	access := uint32(syscall.FILE_MAP_READ)
	if write {
		access |= syscall.FILE_MAP_WRITE
	}
	err = withFile(f, func(sys uintptr) error {
		var at uintptr
		if repeat == 0 {
			at, err = syscall.MapViewOfFile(syscall.Handle(sys), access, 0, 0, uintptr(size))
		} else {
			at, err = mapTwice(sys, size, repeat, access)
		}
		if err != nil {
			return os.NewSyscallError("MapViewOfFile", err)
		}
		mem = unsafe.Slice(*(**byte)(unsafe.Pointer(&at)), size+repeat) // no memory of Go's
		return nil
	})
	return mem, err
}

// mapTwice reserves address space for both views, frees it, and maps them there. If
// another thread has taken it in between, the system says so, and mapTwice tries again.
func mapTwice(section uintptr, size, repeat int, access uint32) (at uintptr, err error) {
	const (
		memReserve   = 0x2000 // MEM_RESERVE of winnt.h
		memRelease   = 0x8000 // MEM_RELEASE
		pageNoAccess = 0x1    // PAGE_NOACCESS
		attempts     = 8
	)
	for range attempts {
		var errno syscall.Errno
		at, _, errno = syscall.SyscallN(procVirtualAlloc.Addr(), 0, uintptr(size+repeat), memReserve, pageNoAccess)
		if err = failure(at, errno); err != nil {
			return 0, err
		}
		syscall.SyscallN(procVirtualFree.Addr(), at, 0, memRelease)
		if err = mapAt(section, access, 0, size, at); err != nil {
			continue
		}
		if err = mapAt(section, access, size-repeat, repeat, at+uintptr(size)); err == nil {
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

// unmapMemory unmaps what mapMemory returned for the same repeat.
func unmapMemory(mem []byte, repeat int) error {
	at := uintptr(unsafe.Pointer(&mem[0]))
	err := syscall.UnmapViewOfFile(at)
	if repeat > 0 {
		if e := syscall.UnmapViewOfFile(at + uintptr(len(mem)-repeat)); err == nil {
			err = e
		}
	}
	return os.NewSyscallError("UnmapViewOfFile", err)
}

// vacateMemory leaves the mapping as it is: no call replaces a view in one step.
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

func duplicateSys(sys uintptr) (uintptr, error) {
	h, err := duplicate(syscall.Handle(sys))
	return uintptr(h), err
}

// A farBell is the peer's end of a doorbell, before it is sent: a handle that has joined
// no completion port.
type farBell syscall.Handle

func (b farBell) close() { syscall.CloseHandle(syscall.Handle(b)) }

// newBell makes a doorbell: a pipe that nobody else can open, from the server's end, which is
// the far one, to the client's. Who rings must not have the client's end, because the kernel
// may take the token of whoever writes there, and give it to who has the server's end. That
// is for the one who opened the client's end to choose, and no handle tells (ReactOS
// drivers/filesystems/npfs/secursup.c: NpGetClientSecurityContext). What is written at the
// server's end goes with no token. The near end is anonymous to who has the far one.
func newBell() (*fd, farBell, error) {
	far, near, err := newEnds(ServerToClient, streams, Anonymous.flags())
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

// A bellRoom gets the bytes of a doorbell. The kernel has it while a wait is parked.
type bellRoom [64]byte

// awaitBell waits until the bell is rung, and takes some of its bytes.
func awaitBell(f *fd, room *bellRoom) error {
	_, err := f.read(room[:])
	return err
}

// ringBell writes one byte. It does not wait: a write that cannot end at once is
// cancelled, since a pipe that is full holds enough of them. io.EOF means that the other end is
// closed.
func ringBell(f *fd) error {
	l := limits{deadlines: writing}
	if err := f.acquire(l, writing); err != nil {
		return err
	}
	defer f.release(writing)
	l.budget = atOnce
	_, err := f.run(l, op{start: writeFile, p: zeroByte[:]}, writing)
	switch {
	case err == errOverBudget:
		return nil
	case peerGone(err):
		return io.EOF
	}
	return callError("WriteFile", err)
}

// sendPlainHello sends a hello without files, and the early data behind it.
func sendPlainHello(f *fd, p []byte) (sent int, err error) {
	if err := f.acquire(limits{deadlines: writing}, writing); err != nil {
		return 0, err
	}
	defer f.release(writing)
	return f.writeAll(p, true)
}

// sendHello sends the hello with the memory and the far ends of the doorbells.
func sendHello(f *fd, memory *os.File, far []farBell, hello []byte) (sent int, err error) {
	if err := f.acquire(limits{deadlines: writing}, writing); err != nil {
		return 0, err
	}
	defer f.release(writing)
	err = withFile(memory, func(sys uintptr) (err error) {
		handles := []syscall.Handle{syscall.Handle(sys)}
		for _, bell := range far {
			handles = append(handles, syscall.Handle(bell))
		}
		sent, err = f.sendHandles(handles, hello, true)
		return err
	})
	return sent, err
}

// A helloFile is a handle that came with a hello. It has joined no completion port yet,
// unlike an os.File of a pipe.
type helloFile struct {
	sys  syscall.Handle
	from *arrival     // closes sys if the connection is dropped without Close
	bell *bellInquiry // begun by doorbell, and its answer not taken; nil: none
}

// A bellInquiry asks whether a handle is the end of a doorbell.
type bellInquiry struct {
	*inquiry
	fd  *fd
	err error
}

// askBell begins to ask whether h is the end of a doorbell. The caller has an element of
// inquiries.
func askBell(h syscall.Handle, adopt func(syscall.Handle) (*fd, error)) *bellInquiry {
	q := &bellInquiry{}
	h, err := duplicate(h) // the inquiry may outlive h
	q.inquiry = inquire(func() {
		if q.err = err; err == nil {
			q.fd, q.err = adopt(h)
		}
	}, func() {
		if q.fd != nil {
			q.fd.closeLater()
		}
	})
	return q
}

func discardHelloFiles(with []helloFile) {
	handles := make([]syscall.Handle, len(with))
	for i, r := range with {
		handles[i] = r.sys
		r.from.cleanup.Stop()
		if r.bell != nil {
			r.bell.abandon()
		}
	}
	discard(handles...)
}

// memory returns a file over a duplicate of r, if that is memory. Nothing else is made a
// file of, since os.NewFile would ask what it is: see inquiry.
func (r *helloFile) memory() (*os.File, memoryInfo, error) {
	info, err := sectionInfo(r.sys)
	if err != nil {
		return nil, memoryInfo{}, err
	}
	h, err := duplicate(r.sys)
	if err != nil {
		return nil, memoryInfo{}, err
	}
	return os.NewFile(uintptr(h), "memory"), info, nil
}

// doorbell returns the far end of a doorbell, over a duplicate of r. r came over f. doorbell
// waits until the read deadline of f; after a timeout the next call continues the same
// inquiry.
func (r *helloFile) doorbell(f *fd) (*fd, error) {
	l := limits{deadlines: reading}
	if r.bell == nil {
		if err := f.receive(l, inquiries); err != nil {
			return nil, err
		}
		r.bell = askBell(r.sys, adoptBell)
	}
	if err := f.receive(l, r.bell.done); err != nil {
		return nil, err
	}
	q := r.bell
	r.bell = nil
	return q.fd, q.err
}

// adoptBell returns the far end of a doorbell that owns h, or closes h. A client's end is
// refused: see newBell. So is what another machine has, since a ring must end at once, and
// that machine could say that it is a server's end. The client of a server's end may be
// anywhere: the kernel of this machine takes what is written for it.
func adoptBell(h syscall.Handle) (*fd, error) {
	remote, err := isRemotePath(h)
	if err == nil && remote {
		err = errOtherMachine
	}
	if err != nil {
		syscall.CloseHandle(h)
		return nil, err
	}
	f, err := adoptOrClose(h, streams, writing)
	if err != nil {
		return nil, err
	}
	if !f.server {
		f.closeLater()
		return nil, errBellOfClient
	}
	return f, nil
}

// errBellOfClient refuses a doorbell by which the peer could get the token of this process.
var errBellOfClient = &ruleError{what: "the doorbell is the client's end of a pipe"}

// recvHello receives some of a hello and what came with it.
func recvHello(f *fd, p []byte) (n int, with []helloFile, err error) {
	n, with, err = f.recvRecord(p)
	if err == ErrNoFiles {
		n, err = f.read(p)
	}
	return n, with, err
}

// recvRecord receives a record, and as many bytes behind it as p holds.
func (f *fd) recvRecord(p []byte) (n int, with []helloFile, err error) {
	l := limits{deadlines: reading}
	if err := f.acquire(l, reading); err != nil {
		return 0, nil, err
	}
	defer f.release(reading)
	f.giveUpArriving()
	f.r.taking.Lock()
	defer f.r.taking.Unlock()
	handles, data, err := f.takeHandles(l, len(p))
	if len(handles) > 0 {
		from := newArrival(handles, nil)
		for _, h := range handles {
			with = append(with, helloFile{sys: h, from: from})
		}
	}
	f.follow(data)
	return copy(p, data), with, err
}
