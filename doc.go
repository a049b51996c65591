// Package ipc connects the processes of one machine: local sockets, messages,
// unnamed pipes, FIFOs and named pipes, with files passed over connections and
// the identity of the other end. The interface is the same on every system; what
// one system has of its own exists on that system alone, so that using it
// elsewhere does not compile.
//
// # Which one to take
//
//   - A server and its clients: [Listen] and [Dial], a stream of bytes in both
//     directions ([Conn], a [net.Conn]).
//   - The same with message boundaries: [ListenMsg] and [DialMsg] ([MsgConn]).
//   - A parent and a child: [Pair], [MsgPair] or [Pipe], and [Inherit], which gives
//     the child its end under a name.
//   - Two processes that exchange small messages all the time, or large blocks that
//     should not be copied: [ListenShared] and [DialShared], or [Conn.Share]
//     ([SharedConn], a [net.Conn] through shared memory).
//   - A shell and a program on Unix: [Mkfifo], [OpenFIFOReader], [OpenFIFOWriter],
//     and [FIFOConfig] for a reader that outlives its writers.
//   - A service of systemd: [Activated] and its kin for what it passes, [Notify] for
//     what it is to know.
//   - A program that speaks to Windows named pipes in all their variety:
//     ListenPipe and DialPipe, on Windows.
//
// # Addresses
//
// An [Addr] is a [Path] or a [Name], or read from text by [ParseAddr]:
//
//	            Linux, Android           Windows                     every other Unix
//	Path(p)     the path                 \\.\pipe\x, \\host\pipe\x   the path
//	Name(n)     the abstract socket n    \\.\pipe\n                  /tmp/n
//
// [UserAddr] returns one that belongs to this user alone.
//
// Abstract names are apart for streams and for messages: a [Listener] and a
// [MsgListener] may have the same one, on Linux alone.
//
// This does not change within a major version, and nothing is added to what is
// sent, so the other end need not use this package. The one exception says so:
// messages where the system has none of its own, see [MsgConn.Native].
//
// # Who may connect
//
// [ListenConfig.Access] admits this process's user and root, or everyone;
// [ListenConfig.Group] admits the members of a group besides. It is
// in force before the first client can connect: by the mode of the socket file,
// by the access list of the pipe, and for an abstract name, which has neither, by
// the credentials of each client. For a listener that another process made,
// [Listener.SetAccess] says so. A client that dials a [Name] makes sure in turn
// that the server is this user or root, for anyone can take a free name. Both
// sides may have a further say in Check, and [Conn.Peer] tells who it is.
//
// A socket file left behind by a crash is replaced, and nothing else is, unless
// [ListenConfig.Takeover] says so. What decides is an flock(2) on a sibling of the
// socket, path + ".lock", which a listener holds while it lives. Where there is no
// flock, it is whether a process still has the socket.
//
// # Closing
//
// Close never waits for the peer and never discards what was written: the peer
// reads that and then gets [io.EOF]. Writes to a peer that has closed match
// [syscall.EPIPE]. The error of a second Close matches [net.ErrClosed].
//
// # Errors
//
// Every error but io.EOF is a [*net.OpError], as in package net, with an
// [*os.SyscallError] and a [syscall.Errno] in it where a system call failed; those
// of a [syscall.RawConn] are bare. On every system [errors.Is] knows
// [os.ErrDeadlineExceeded], [net.ErrClosed], [os.ErrPermission], [ErrAddrInUse],
// [ErrNoListener], [ErrNameTooLong], [ErrUntrusted], [ErrMsgTooLong], [ErrNoFiles] and
// [errors.ErrUnsupported].
//
// The zero value of a connection, a listener or a pipe end is not open: its methods
// return an error that matches [syscall.EINVAL], as in package net.
//
// # Waiting
//
// Every call that waits parks its goroutine and holds no thread. Windows makes
// exceptions: each listener holds one, a read for up to 2 milliseconds, up to 32
// writes of a process hold one each, and so does each Transact and Flush of a
// PipeConn and whatever waits at a handle that another process has used. On Linux a wait may first try
// again for some microseconds: see [Conn.SetSpin].
//
// A wait ends with a deadline or a context, and with Close from another goroutine.
// A Dial waits while the server has no room, however long that takes, and fails at
// once when there is no server, unless [Dialer.Wait] is set.
//
// # Files
//
// [Conn.SendFiles] and [Conn.RecvFiles] pass open files over a connection: on Unix
// as SCM_RIGHTS with one zero byte. On Windows handles are duplicated from one
// process into the other and announced by a short record, which is believed only if
// its sender has the right to duplicate handles there (PROCESS_DUP_HANDLE).
//
// # Shared memory
//
// A [SharedConn] is a [net.Conn] whose bytes go through rings in shared memory: one for
// each direction, which one end alone writes. While both ends are awake no system call is
// made; an end that waits parks its goroutine, as everywhere. [SharedConn.Reserve] and
// [SharedConn.Peek] give access to the ring itself, so that nothing is copied. A [Memory] is
// memory to be shared by other means: it is passed to another process by
// [Conn.SendFiles].
//
// Take it for connections that last and carry much: small requests and answers, streams of
// small writes, large blocks in place. A socket is better for connections that are short,
// since setting up the memory costs several times what a connection costs; for very many
// connections, each of which needs three descriptors and some pages of memory at either
// end; and it is as good for bulk data of 64 KiB and more on machines that are busy.
//
// The peer is not trusted: whatever it does to its memory, the other end reads and writes
// nothing outside of the rings, and its calls end by their deadlines. What the peer has
// written it can still change while it is looked at in place. Where the system or the peer has
// no memory that is safe to share, the connection goes through the socket:
// [SharedConn.InMemory] tells.
//
// # Systems
//
//	                    Linux          Windows        macOS            FreeBSD        other Unix
//	local sockets       AF_UNIX        named pipes    AF_UNIX          AF_UNIX        AF_UNIX
//	half close          yes            no             yes              yes            yes
//	messages            SEQPACKET      message mode   framed           SEQPACKET      SEQPACKET (1)
//	files               SCM_RIGHTS     handles        SCM_RIGHTS       SCM_RIGHTS     SCM_RIGHTS
//	peer's process id   yes            yes            yes              yes (13)       (2)
//	peer's user         uid            SID            uid              uid            uid (3)
//	outlives the pid    pidfd          handle         audit token      -              -
//	end of the process  pidfd          handle         kqueue           kqueue         (5)
//	shared memory       memfd, seals   section        shm_open         shm_open2 (13) through the socket
//	unnamed pipes       pipe           named pipe     pipe             pipe           pipe
//	FIFOs               yes            no             yes              yes            yes (4)
//
// (1) framed on AIX, illumos and Solaris. (2) not on DragonFly, AIX and Solaris.
// (3) not on AIX and Solaris, where nobody's identity is known; so Dial to a Name
// needs [Everyone] there. (4) AIX, illumos and Solaris have no Mkfifo here. (5) kqueue
// on NetBSD and OpenBSD, by the number on illumos, not on the others: [Conn.WaitPeer].
//
// The package is documented on every system, but can be used on Unix and Windows
// alone: elsewhere there is nothing but this comment.
//
// # Speed
//
// No read, write, send or receive allocates, whether it waits or not. A round trip
// is bound by waking the thread at the other end, so on Linux a wait that is likely
// to be short spins instead, which costs less CPU time than it saves; what it may
// cost at most is with [Conn.SetSpin]. A connection that needs not park is not
// registered with the poller at all. [io.Copy] between connections and pipes is left
// to the kernel on Linux (splice(2)), and [Conn.WriteBuffers] writes many buffers in
// one call.
package ipc
