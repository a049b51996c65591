// Package ipc connects the processes of one machine: local sockets, messages,
// unnamed pipes, FIFOs, named pipes and shared memory, with files passed over
// connections and the identity of the other end.
//
// The interface is the same on every system. A feature that one system alone has
// exists on that system alone: a program that uses it does not compile elsewhere.
//
// # Which one to take
//
//   - A server and its clients: [Listen] and [Dial]. A [Conn] is a [net.Conn], a
//     stream of bytes in both directions.
//   - The same with message boundaries: [ListenMsg] and [DialMsg] ([MsgConn]).
//   - A parent and a child: [Pair], [MsgPair] or [Pipe], and [Inherit], which gives
//     the child its end under a name. The child takes it with [InheritedConn] and
//     the functions like it.
//   - Two processes that exchange small messages all the time, or large blocks that
//     should not be copied: [ListenShared], [DialShared] and [SharedPair]
//     ([SharedConn], a [net.Conn] through shared memory).
//   - A program or an agent that runs once for each user: [UserAddr].
//   - A service of systemd: [Activated], [ActivatedMsg] and [ActivatedFiles] take
//     what the service manager passes, [Notify] reports to it.
//   - A shell and a program, on Unix: [Mkfifo], [OpenFIFOReader], [OpenFIFOWriter],
//     and [FIFOConfig] for a reader whose writers come and go.
//   - A program that needs all of Windows named pipes: ListenPipe and DialPipe, on
//     Windows.
//
// # Addresses
//
// An [Addr] is a [Path] or a [Name]. [ParseAddr] reads one from text, where a name
// has an '@' before it.
//
//	            Linux, Android           Windows                     every other Unix
//	Path(p)     the path                 \\.\pipe\x, \\host\pipe\x   the path
//	Name(n)     the abstract socket n    \\.\pipe\n                  /tmp/n
//
// The mapping does not change within a major version. Nothing is added to what is
// sent, so the other end need not use this package. There are two exceptions:
// messages where the system has none of its own ([MsgConn.Native]), and shared
// memory.
//
// [UserAddr] returns an address that belongs to this user alone.
//
// On Linux alone a [Listener] and a [MsgListener] may have the same abstract name.
//
// # Who may connect
//
// [ListenConfig.Access] admits this process's user and root, or everyone.
// [ListenConfig.Group] admits the members of a group besides. Both are in force
// before the first client can connect:
//
//   - a socket file has its mode, and its group;
//   - a pipe has its access list;
//   - an abstract name has neither, so the credentials of each client are checked
//     before Accept returns it.
//
// [ListenConfig.Check] may refuse further clients, and [ListenConfig.Refused] is
// called for each client that was refused. [Listener.SetAccess] sets the rules of a
// listener that another process made.
//
// Any user can take a name that is free. So a client that dials a [Name] checks that
// the server runs as this user or root: see [Dialer.Access] and [Dialer.Check].
//
// # Who is at the other end
//
// [Conn.Peer] tells the process, user and groups of the other end, as the kernel
// recorded them: see [Peer]. [Conn.WaitPeer] waits until that process has ended. A
// process id can be used again; PeerPidfd (Linux), PeerProcess (Windows) and
// PeerAuditToken (macOS) stay with the process.
//
// # Socket files
//
// [Listen] replaces a socket file that a crash left behind, and nothing else,
// unless [ListenConfig.Takeover] says so. Close removes the socket file if it is
// still the listener's own. While it lives, a listener holds an flock(2) on the file
// path + ".lock" beside it, so that of many starters exactly one gets the path. Where
// there is no flock, a connection attempt alone tells whether a process has the socket.
//
// # Waiting
//
// Every call that waits parks its goroutine and holds no thread. On Linux it may
// first try again for some microseconds, or let other threads run: see [Conn.SetSpin].
// On Windows some calls hold a thread while they wait:
//
//   - a listener, one for each;
//   - a read, for up to 2 milliseconds, before it parks;
//   - a write; reads and writes hold up to 32 threads of a process;
//   - Transact and Flush of a PipeConn, and a Send that timed out, while it finds out
//     whether the peer has read all;
//   - a Dial to another machine;
//   - a Dial, and what Accept asks about a client, while the other end keeps its pipe busy;
//   - any call on an end that [FileConn] or its kin have made, or on a handle that another
//     process has used.
//
// A deadline, a context, and Close from another goroutine end a wait, but for
// [Conn.WaitPeer], which only its context ends. A Dial waits
// while the server has no room, however long that takes. It fails at once when there
// is no server, unless [Dialer.Wait] is set.
//
// # Closing
//
// Close does not wait for the peer and does not discard what was written: the peer
// reads that and then gets [io.EOF]. Writes to a peer that has closed match
// [syscall.EPIPE]. The error of a second Close matches [net.ErrClosed].
//
// # Errors
//
// Every error but io.EOF is a [*net.OpError], as in package net. Where a system call
// failed it holds an [*os.SyscallError] with a [syscall.Errno]. The errors of a
// [syscall.RawConn] are not wrapped, nor those of the caller's own reader or writer
// (ReadFrom, WriteTo) and functions. On every system [errors.Is] knows
// [os.ErrDeadlineExceeded], [net.ErrClosed], [os.ErrPermission], [ErrAddrInUse],
// [ErrNoListener], [ErrNameTooLong], [ErrUntrusted], [ErrMsgTooLong], [ErrNoFiles]
// and [errors.ErrUnsupported].
//
// The zero value of a connection, a listener or a pipe end is not open: its methods
// return an error that matches [syscall.EINVAL], as in package net. So do those methods of
// a nil listener that return an error.
//
// # Files
//
// [Conn.SendFiles] and [Conn.RecvFiles] pass open files over a connection.
// [MsgConn.SendWithFiles] and [MsgConn.RecvWithFiles] pass a message and files
// together. On Unix the descriptors travel as SCM_RIGHTS, so the other end may be any
// program. On Windows the handles are duplicated from one process into the other,
// and both ends need this package.
//
// # Children and other programs
//
// [Inherit] gives a child its end under a name, in the variable IPC_INHERIT of its
// environment. When a program starts, this package reads that variable, removes it,
// and keeps the descriptors in it from the program's own children.
//
// File returns a duplicate of an end. On Unix it is nonblocking. BlockingFile gives
// an end away in blocking mode, for programs in other languages.
//
// # Shared memory
//
// A [SharedConn] is a [net.Conn] whose bytes go through rings in shared memory, one
// for each direction. Small requests and answers between two ends that are awake
// take no system call. An end that waits for longer parks its goroutine.
// [SharedConn.Reserve] and [SharedConn.Peek] give access to the ring itself, so that
// nothing is copied. [Conn.Share] turns a connection into one. A [Memory] is memory
// that is shared by other means: it is passed by [Conn.SendFiles].
//
// Shared memory is for connections that last and carry much:
//
//   - small requests and answers;
//   - streams of small writes;
//   - large blocks that both ends use in place.
//
// A socket is better for
//
//   - connections that carry a little more than 4 KiB and end: setting up the memory
//     costs more than they do; connections that carry less do not set it up;
//   - very many connections that are all in use: each end needs five descriptors, four
//     mappings and some pages of memory, and beyond 15000 in a process they go through
//     the socket anyway;
//   - bulk data of 64 KiB and more on a busy machine: a socket is as good there.
//
// The peer is not trusted. Whatever the peer does to its memory, this end reads and
// writes nothing outside of the rings, and its calls end by their deadlines. But the
// peer can change what it has written while this end looks at it in place. Where the
// system or the peer has no memory that is safe to share, the connection goes through
// the socket: [SharedConn.InMemory] tells.
//
// # Systems
//
//	                    Linux          Windows        macOS            FreeBSD        other Unix
//	local sockets       AF_UNIX        named pipes    AF_UNIX          AF_UNIX        AF_UNIX
//	half close          yes            no             yes              yes            yes
//	messages            SEQPACKET      message mode   framed           SEQPACKET      SEQPACKET (1)
//	files               SCM_RIGHTS     handles        SCM_RIGHTS       SCM_RIGHTS     SCM_RIGHTS
//	peer's process id   yes            yes            yes              yes, from 13   yes (2)
//	peer's user         uid            SID            uid              uid            uid (3)
//	outlives the pid    pidfd (4)      handle         audit token (5)  -              -
//	end of the process  pidfd          handle         kqueue           kqueue         (6)
//	shared memory       memfd, seals   section        shm_open         shm_open2 (7)  through the socket
//	unnamed pipes       pipe           named pipe     pipe             pipe           pipe
//	FIFOs               yes            no             yes              yes            yes (8)
//	activation, Notify  yes            no             yes              yes            yes
//	spins by default    yes            no (9)         no (9)           no (9)         no (9)
//
// Linux includes Android, and macOS includes iOS.
//
//	(1) framed on AIX, illumos and Solaris
//	(2) not on DragonFly, AIX and Solaris
//	(3) not on AIX and Solaris. The peer's user is never known there, so a Dial to
//	    a Name needs Everyone
//	(4) Linux 6.5 and later
//	(5) macOS 11 and later
//	(6) kqueue on NetBSD and OpenBSD; by its number on illumos; not on DragonFly, AIX
//	    and Solaris: see [Conn.WaitPeer]
//	(7) FreeBSD 13 and later; before that, through the socket
//	(8) AIX, illumos and Solaris have no Mkfifo here
//	(9) but a [SharedConn] does
//
// The package can be used on Unix and Windows. On other systems it has nothing but
// this comment.
//
// # Speed
//
// No read, write, send or receive allocates, whether it waits or not, except the
// first wait that parks in each direction, and one after many that did not park. [io.Copy]
// between connections and pipes is left to the kernel on Linux (splice(2)).
// [Conn.WriteBuffers] writes many buffers in one call.
//
// Most of the time of a round trip is spent on waking the thread at the other end.
// So on Linux a wait that is likely to be short spins: [Conn.SetSpin] tells what that
// may cost. One that does not spin may let the other threads of its CPU run first. A
// connection that never parks is not registered with the poller.
package ipc
