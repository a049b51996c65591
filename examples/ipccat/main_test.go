package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// beProgram makes the test binary run ipccat instead of the tests, so that
// there are processes to test without a toolchain at hand.
const beProgram = "IPCCAT_BE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// ---------------------------------------------------------------------------
// Tools

// patience is when the watchdog ends a test.
const patience = time.Minute

// A process is a program that a test runs.
type process struct {
	*exec.Cmd
	t        *testing.T
	out, err bytes.Buffer
}

// program prepares the run of a program that is not part of this repository.
func program(t *testing.T, in io.Reader, name string, args ...string) *process {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed: %v", name, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience) // the watchdog
	p := &process{Cmd: exec.CommandContext(ctx, path, args...), t: t}
	p.WaitDelay = time.Second
	p.Stdin, p.Stdout, p.Stderr = in, &p.out, &p.err
	t.Cleanup(func() {
		cancel()
		if p.Process != nil && p.ProcessState == nil {
			p.Wait()
		}
	})
	return p
}

// ipccat prepares a run of ipccat. Without an input it has an empty one.
func ipccat(t *testing.T, in io.Reader, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	// IPC_TEST_EXEC is the emulator that runs the binaries of this architecture.
	argv := append(strings.Fields(os.Getenv("IPC_TEST_EXEC")), self)
	argv = append(argv, args...)
	p := program(t, in, argv[0], argv[1:]...)
	p.Env = append(os.Environ(), beProgram+"=1", "GORACE=atexit_sleep_ms=0")
	return p
}

func (p *process) start() *process {
	p.t.Helper()
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
	return p
}

// ends waits until the process has ended, and checks how: with this status, and
// a complaint in one line if that is not 0.
func (p *process) ends(status int) {
	p.t.Helper()
	p.Wait()
	if got := p.ProcessState.ExitCode(); got != status {
		p.t.Fatalf("%s ended with status %d (%v), want %d: %s", p.Args, got, p.ProcessState, status, &p.err)
	}
	if status != 0 && strings.Count(p.err.String(), "\n") != 1 {
		p.t.Fatalf("%s: want one line of complaint, got %q", p.Args, &p.err)
	}
}

// put checks what a process has put out.
func (p *process) put(want []byte) {
	p.t.Helper()
	if got := p.out.Bytes(); !bytes.Equal(got, want) {
		p.t.Fatalf("%s put out %d bytes, want %d, the first %d are right: %s",
			p.Args, len(got), len(want), samePrefix(got, want), &p.err)
	}
}

func samePrefix(a, b []byte) (n int) {
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// openInput gives the process an input that does not end by itself.
func (p *process) openInput() io.WriteCloser {
	p.t.Helper()
	w, err := p.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { w.Close() })
	return w
}

// output has the test read the output while the process runs.
func (p *process) output() io.Reader {
	p.t.Helper()
	p.Stdout = nil
	r, err := p.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// address returns an address that nothing else uses: a socket file in a folder
// of its own, where there are such files.
func address(t *testing.T) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		return freshName()
	}
	// Not t.TempDir: the other programs take no path longer than sun_path.
	dir, err := os.MkdirTemp("", "ipccat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func freshName() string {
	return fmt.Sprintf("@ipccat-%d-%d-%d", os.Getpid(), time.Now().UnixNano(), names.Add(1))
}

var names atomic.Int64

// nothingLeft checks that the server at addr has removed its files.
func nothingLeft(t *testing.T, addr string) {
	t.Helper()
	if strings.HasPrefix(addr, "@") {
		return
	}
	left, err := os.ReadDir(filepath.Dir(addr))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func parsed(t *testing.T, addr string) ipc.Addr {
	t.Helper()
	a, err := ipc.ParseAddr(addr)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// dial connects the test itself to a server that starts.
func dial(t *testing.T, addr string) *ipc.Conn {
	t.Helper()
	conn, err := ipc.Dialer{Wait: true, Timeout: patience}.Dial(parsed(t, addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// listen makes the test itself a server.
func listen(t *testing.T, addr string) *ipc.Listener {
	t.Helper()
	l, err := ipc.Listen(parsed(t, addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	l.SetDeadline(time.Now().Add(patience))
	return l
}

func accept(t *testing.T, l *ipc.Listener) *ipc.Conn {
	t.Helper()
	conn, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

func write(t *testing.T, w io.Writer, p []byte) {
	t.Helper()
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
}

// readFull checks that want comes next.
func readFull(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, want %q: %v", got[:n], want, err)
	}
}

// readAll checks that all of want comes, and then the end.
func readAll(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes, want %d, the first %d are right: %v", len(got), len(want), samePrefix(got, want), err)
	}
}

// until waits until something has happened.
func until(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for giveUp := time.Now().Add(patience); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(giveUp) {
			t.Fatalf("it did not happen that %s", what)
		}
	}
}

// random returns n bytes that no other call returns.
func random(n int) []byte {
	p := make([]byte, n)
	rand.New(rand.NewSource(time.Now().UnixNano() + names.Add(1))).Read(p)
	return p
}

func needHalfClose(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("pipes have no half close")
	}
}

func needSocketFile(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("there are no socket files on Windows")
	}
}

// ---------------------------------------------------------------------------
// Two ipccats

func TestMuchDataPassesBothWaysAtOnce(t *testing.T) {
	addr := address(t)
	up, down := random(8<<20+1), random(8<<20+3)
	server := ipccat(t, bytes.NewReader(down), "-l", addr).start()
	client := ipccat(t, bytes.NewReader(up), "-wait", addr).start()
	client.ends(0)
	server.ends(0)
	client.put(down)
	server.put(up)
	nothingLeft(t, addr)
}

func TestDownloadWithoutInputIsComplete(t *testing.T) {
	addr := address(t)
	data := random(8 << 20)
	server := ipccat(t, bytes.NewReader(data), "-l", addr).start()
	client := ipccat(t, nil, "-wait", addr).start()
	client.ends(0)
	server.ends(0)
	client.put(data)
	server.put(nil)
}

func TestUploadToServerWithoutInputIsComplete(t *testing.T) {
	addr := address(t)
	data := random(8 << 20)
	server := ipccat(t, nil, "-l", addr).start()
	client := ipccat(t, bytes.NewReader(data), "-wait", addr).start()
	client.ends(0)
	server.ends(0)
	client.put(nil)
	server.put(data)
}

func TestNameIsAnAddressToo(t *testing.T) {
	addr := freshName()
	server := ipccat(t, nil, "-l", addr).start()
	client := ipccat(t, strings.NewReader("by name\n"), "-wait", addr).start()
	client.ends(0)
	server.ends(0)
	server.put([]byte("by name\n"))
}

// ---------------------------------------------------------------------------
// How a conversation ends

func TestEndOfInputIsPassedOnAndAnswerReceived(t *testing.T) {
	needHalfClose(t)
	addr := address(t)
	l := listen(t, addr)
	client := ipccat(t, strings.NewReader("question"), addr).start()
	conn := accept(t, l)
	readAll(t, conn, []byte("question"))
	write(t, conn, []byte("answer"))
	conn.Close()
	client.ends(0)
	client.put([]byte("answer"))
}

func TestPeersHalfCloseDoesNotEndUpload(t *testing.T) {
	needHalfClose(t)
	addr := address(t)
	l := listen(t, addr)
	client := ipccat(t, nil, addr)
	in := client.openInput()
	client.start()
	conn := accept(t, l)
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	// Several times as long as the client takes to see whether the peer is gone.
	for range 8 {
		write(t, in, []byte("x"))
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	data := random(4 << 20)
	go func() {
		in.Write(data)
		in.Close()
	}()
	readAll(t, conn, data)
	client.ends(0)
}

func TestServerKeepsTheTailOfAClientThatLeft(t *testing.T) {
	addr := address(t)
	server := ipccat(t, nil, "-l", addr)
	server.openInput() // which does not keep the server either
	server.start()
	data := random(1 << 20)
	conn := dial(t, addr)
	write(t, conn, data)
	conn.Close()
	server.ends(0)
	server.put(data)
}

func TestClientEndsWhenServerLeavesThoughInputGoesOn(t *testing.T) {
	addr := address(t)
	l := listen(t, addr)
	client := ipccat(t, nil, addr)
	client.openInput()
	client.start()
	conn := accept(t, l)
	write(t, conn, []byte("farewell"))
	conn.Close()
	client.ends(0)
	client.put([]byte("farewell"))
}

func TestClientEndsWhenServerLeavesAfterHalfClose(t *testing.T) {
	needHalfClose(t)
	addr := address(t)
	l := listen(t, addr)
	client := ipccat(t, nil, addr)
	in := client.openInput()
	client.start()
	conn := accept(t, l)
	conn.CloseWrite()
	write(t, in, []byte("x"))
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	client.ends(0)
}

func TestUploadThatNobodyReadsToItsEndFails(t *testing.T) {
	addr := address(t)
	l := listen(t, addr)
	client := ipccat(t, bytes.NewReader(random(16<<20)), addr).start()
	conn := accept(t, l)
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	client.ends(1)
}

// tellsPeer reports whether CloseRead is told to the peer here, whose writes then fail.
func tellsPeer(t *testing.T) bool {
	a, b, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	if err := a.CloseRead(); err != nil {
		t.Fatal(err)
	}
	_, err = b.Write([]byte("x"))
	return err != nil
}

func TestAnswerToUnwantedRequestIsReceived(t *testing.T) {
	needHalfClose(t)
	addr := address(t)
	l := listen(t, addr)
	client := ipccat(t, nil, addr)
	in := client.openInput()
	client.start()
	conn := accept(t, l)
	if err := conn.CloseRead(); err != nil {
		t.Fatal(err)
	}
	write(t, in, []byte("a request that the client cannot send"))
	answer := random(16 << 20)
	write(t, conn, answer)
	conn.Close()
	if tellsPeer(t) {
		client.ends(1) // for not everything was sent
	} else {
		in.Close()
		client.Wait() // with 0 or 1: the peer may have left before the request was sent
	}
	client.put(answer)
}

func TestQuitsWhenPeerIsSilent(t *testing.T) {
	addr := address(t)
	l := listen(t, addr)
	client := ipccat(t, strings.NewReader("question"), "-q", "3s", addr).start()
	conn := accept(t, l)
	if _, err := io.ReadFull(conn, make([]byte, len("question"))); err != nil {
		t.Fatal(err)
	}
	// An answer that takes longer than the time of -q, but is never silent so long.
	var answer []byte
	for range 35 {
		time.Sleep(100 * time.Millisecond)
		word := random(10)
		write(t, conn, word)
		answer = append(answer, word...)
	}
	client.ends(0)
	client.put(answer)
}

func TestBrokenOutputIsAnErrorAndLeavesNoSocketFile(t *testing.T) {
	for _, mode := range [][]string{{"-l"}, {"-l", "-k"}} {
		t.Run(strings.Join(mode, " "), func(t *testing.T) {
			addr := address(t)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			server := ipccat(t, nil, append(mode, addr)...)
			server.Stdout = w
			server.start()
			w.Close()
			conn := dial(t, addr)
			write(t, conn, []byte("nobody reads this\n"))
			server.ends(1)
			nothingLeft(t, addr)
		})
	}
}

// ---------------------------------------------------------------------------
// Servers

func TestServerOfOneClientRefusesTheSecond(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a pipe is busy, not gone, until its last connection is closed: the second client waits")
	}
	addr := address(t)
	server := ipccat(t, nil, "-l", addr)
	server.openInput()
	out := server.output()
	server.start()
	conn := dial(t, addr)
	write(t, conn, []byte("served"))
	readFull(t, out, "served") // so the server is past its listener
	if second, err := ipc.Dial(parsed(t, addr)); !errors.Is(err, ipc.ErrNoListener) {
		t.Errorf("the second client got %v, %v", second, err)
	}
	nothingLeft(t, addr)
	conn.Close()
	server.ends(0)
}

func TestIdleClientDoesNotHoldUpOthers(t *testing.T) {
	addr := address(t)
	server := ipccat(t, nil, "-l", "-k", addr)
	out := server.output()
	server.start()
	idle := dial(t, addr)
	for range 3 {
		conn := dial(t, addr)
		write(t, conn, []byte("a line\n and its end"))
		conn.Close()
		readFull(t, out, "a line\n and its end")
	}
	write(t, idle, []byte("idle no more\n"))
	readFull(t, out, "idle no more\n")
}

func TestLinesOfManyClientsDoNotMix(t *testing.T) {
	addr := address(t)
	server := ipccat(t, nil, "-l", "-k", addr)
	out := server.output()
	server.start()
	const clients, rounds = 8, 200
	var want []string
	failed := make(chan error, clients)
	for i := range clients {
		conn := dial(t, addr)
		line := fmt.Sprintf("client %d: %s\n", i, strings.Repeat("text ", 10*i))
		for range rounds {
			want = append(want, line)
		}
		go func() { // each line in two writes
			for range rounds {
				for _, part := range []string{line[:5], line[5:]} {
					if _, err := io.WriteString(conn, part); err != nil {
						failed <- err
						return
					}
				}
			}
			failed <- conn.Close()
		}()
	}
	got := make([]byte, len(strings.Join(want, "")))
	if _, err := io.ReadFull(out, got); err != nil {
		t.Fatal(err)
	}
	for range clients {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	lines := slices.Sorted(strings.Lines(string(got)))
	slices.Sort(want)
	if !slices.Equal(lines, want) {
		t.Error("not the lines that were sent")
	}
}

func TestSignalEndsServerAndRemovesSocketFile(t *testing.T) {
	needSocketFile(t)
	for _, test := range []struct {
		mode   string
		signal os.Signal
		status int
	}{
		{"-k=false", os.Interrupt, 1}, // it has not done what it was to do
		{"-k=false", syscall.SIGTERM, 1},
		{"-k", os.Interrupt, 0}, // there is no other end
		{"-k", syscall.SIGTERM, 0},
	} {
		t.Run(fmt.Sprint(test.mode, " ", test.signal), func(t *testing.T) {
			addr := address(t)
			server := ipccat(t, nil, "-l", test.mode, addr).start()
			until(t, "the socket file appeared", func() bool {
				_, err := os.Lstat(addr)
				return err == nil
			})
			server.Process.Signal(test.signal)
			server.ends(test.status)
			nothingLeft(t, addr)
		})
	}
}

func TestSignalEndsServerWithClients(t *testing.T) {
	needSocketFile(t)
	addr := address(t)
	server := ipccat(t, nil, "-l", "-k", addr)
	out := server.output()
	server.start()
	conn := dial(t, addr)
	write(t, conn, []byte("here\n"))
	readFull(t, out, "here\n")
	server.Process.Signal(syscall.SIGTERM)
	server.ends(0)
	nothingLeft(t, addr)
	readAll(t, conn, nil)
}

func TestServerStopsWaitingAtTimeout(t *testing.T) {
	addr := address(t)
	server := ipccat(t, nil, "-l", "-timeout", "50ms", addr).start()
	server.ends(1)
	nothingLeft(t, addr)
}

func TestEveryoneOpensTheSocketFile(t *testing.T) {
	needSocketFile(t)
	for mode, perm := range map[string]fs.FileMode{"-everyone=false": 0o600, "-everyone": 0o666} {
		addr := address(t)
		ipccat(t, nil, "-l", "-k", mode, addr).start()
		dial(t, addr)
		if info, err := os.Lstat(addr); err != nil || info.Mode().Perm() != perm {
			t.Errorf("%s: %v, %v, want permissions %v", mode, info.Mode(), err, perm)
		}
	}
}

func TestPeerSaysWhoIsThere(t *testing.T) {
	addr := address(t)
	server := ipccat(t, nil, "-l", "-peer", addr).start()
	conn := dial(t, addr)
	peer, err := conn.Peer()
	if err != nil {
		t.Skipf("the system does not tell: %v", err)
	}
	write(t, conn, []byte("it is me")) // on Windows nobody accepts one who left without a word
	conn.Close()
	server.ends(0)
	server.put([]byte("it is me"))
	complaint := server.err.String()
	if !strings.HasPrefix(complaint, "ipccat: the client is ") || strings.Count(complaint, "\n") != 1 {
		t.Errorf("the server says %q", complaint)
	}
	if _, ok := peer.PID(); ok && !strings.Contains(complaint, fmt.Sprintf("pid %d ", os.Getpid())) {
		t.Errorf("the server says %q, this is process %d", complaint, os.Getpid())
	}

	l := listen(t, addr)
	client := ipccat(t, nil, "-peer", addr).start()
	accept(t, l).Close()
	client.ends(0)
	if want := fmt.Sprintf("ipccat: the server is %v\n", peerOfThisProcess(t)); client.err.String() != want {
		t.Errorf("the client says %q, want %q", &client.err, want)
	}
}

func peerOfThisProcess(t *testing.T) ipc.Peer {
	t.Helper()
	a, b, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	p, err := a.Peer()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ---------------------------------------------------------------------------
// Clients and usage

func TestClientWithoutServerFails(t *testing.T) {
	ipccat(t, nil, address(t)).start().ends(1)
	ipccat(t, nil, address(t)+"\na second line").start().ends(1)
}

func TestWaitFindsServerThatStartsLater(t *testing.T) {
	addr := address(t)
	client := ipccat(t, nil, "-wait", "-timeout", "1m", addr).start()
	// Without -wait the client would have failed by then.
	ipccat(t, nil, addr).start().ends(1)
	conn := accept(t, listen(t, addr))
	write(t, conn, []byte("welcome"))
	conn.Close()
	client.ends(0)
	client.put([]byte("welcome"))
}

func TestWaitEndsAtTimeout(t *testing.T) {
	ipccat(t, nil, "-wait", "-timeout", "50ms", address(t)).start().ends(1)
}

func TestLiveServerIsNotDisplaced(t *testing.T) {
	addr := address(t)
	l := listen(t, addr)
	ipccat(t, nil, "-l", addr).start().ends(1)
	dial(t, addr)
	accept(t, l)
}

func TestWrongUsageIsStatusTwo(t *testing.T) {
	for _, args := range [][]string{
		{},
		{""},
		{"@"},
		{"-no-such-flag", "@x"},
		{"@x", "-wait"},
		{"-k", "@x"},
		{"-l", "-wait", "@x"},
		{"-l", "-k", "-q", "1s", "@x"},
		{"-timeout", "-1s", "@x"},
		{"-timeout", "soon", "@x"},
	} {
		ipccat(t, nil, args...).start().ends(2)
	}
}

func TestHelpIsNoError(t *testing.T) {
	p := ipccat(t, nil, "-h").start()
	p.ends(0)
	if !strings.HasPrefix(p.out.String(), "usage: ipccat ") || p.err.Len() > 0 {
		t.Errorf("put out %q, complained %q", &p.out, &p.err)
	}
}

// ---------------------------------------------------------------------------
// Other programs

func TestCurlGetsCannedResponse(t *testing.T) {
	needSocketFile(t)
	addr := address(t)
	body := bytes.Repeat([]byte("line of a page\n"), 10_000)
	response := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
	server := ipccat(t, strings.NewReader(response), "-l", addr).start()
	var curl *process
	until(t, "curl found the server", func() bool {
		curl = program(t, nil, "curl", "--silent", "--show-error", "--unix-socket", addr, "http://localhost/page").start()
		curl.Wait()
		return curl.ProcessState.ExitCode() != 7 // CURLE_COULDNT_CONNECT
	})
	curl.ends(0)
	curl.put(body)
	server.ends(0)
	if !strings.HasPrefix(server.out.String(), "GET /page HTTP/1.1\r\n") {
		t.Errorf("the request was %q", &server.out)
	}
}

// interoperate has ipccat and another program send each other data at once. One
// of them is the server; the other must wait for it to start.
func interoperate(t *testing.T, addr string, serve bool, other func(in io.Reader) *process) {
	t.Helper()
	ours, theirs := random(3<<20+1), random(3<<20+5)
	args := []string{"-wait", addr}
	if serve {
		args = []string{"-l", addr}
	}
	them := other(bytes.NewReader(theirs)) // skips the test if there is no such program
	us := ipccat(t, bytes.NewReader(ours), args...).start()
	them.start()
	us.ends(0)
	them.ends(0)
	us.put(theirs)
	them.put(ours)
}

func TestSocatOnTheOtherEnd(t *testing.T) {
	needSocketFile(t)
	// -t: how long socat stays when one direction has ended.
	const retry = ",retry=6000,interval=0.01"
	t.Run("UNIX-CONNECT", func(t *testing.T) {
		addr := address(t)
		interoperate(t, addr, true, func(in io.Reader) *process {
			return program(t, in, "socat", "-t", "30", "-", "UNIX-CONNECT:"+addr+retry)
		})
		nothingLeft(t, addr)
	})
	t.Run("UNIX-LISTEN", func(t *testing.T) {
		addr := address(t)
		interoperate(t, addr, false, func(in io.Reader) *process {
			return program(t, in, "socat", "-t", "30", "UNIX-LISTEN:"+addr, "-")
		})
	})
	t.Run("ABSTRACT-CONNECT", func(t *testing.T) {
		name := abstractName(t)
		interoperate(t, name, true, func(in io.Reader) *process {
			return program(t, in, "socat", "-t", "30", "-", "ABSTRACT-CONNECT:"+name[1:]+retry)
		})
	})
	t.Run("ABSTRACT-LISTEN", func(t *testing.T) {
		name := abstractName(t)
		interoperate(t, name, false, func(in io.Reader) *process {
			return program(t, in, "socat", "-t", "30", "ABSTRACT-LISTEN:"+name[1:], "-")
		})
	})
}

func abstractName(t *testing.T) string {
	t.Helper()
	if runtime.GOOS != "linux" && runtime.GOOS != "android" {
		t.Skip("abstract names are Linux's")
	}
	return freshName()
}

// pythonCat sends its input and its end, and puts out what it receives.
const pythonCat = `
import socket, sys, threading, time
role, address = sys.argv[1:]
if address[0] == "@":
    address = "\0" + address[1:]
s = socket.socket(socket.AF_UNIX)
if role == "listen":
    s.bind(address)
    s.listen()
    s, _ = s.accept()
else:
    while True:
        try:
            s.connect(address)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.01)
def send():
    s.sendall(sys.stdin.buffer.read())
    s.shutdown(socket.SHUT_WR)
t = threading.Thread(target=send)
t.start()
while data := s.recv(65536):
    sys.stdout.buffer.write(data)
t.join()
`

func TestPythonOnTheOtherEnd(t *testing.T) {
	needSocketFile(t)
	for _, role := range []string{"connect", "listen"} {
		t.Run(role+" path", func(t *testing.T) {
			addr := address(t)
			interoperate(t, addr, role == "connect", func(in io.Reader) *process {
				return program(t, in, "python3", "-c", pythonCat, role, addr)
			})
		})
		t.Run(role+" name", func(t *testing.T) {
			name := abstractName(t)
			interoperate(t, name, role == "connect", func(in io.Reader) *process {
				return program(t, in, "python3", "-c", pythonCat, role, name)
			})
		})
	}
}
