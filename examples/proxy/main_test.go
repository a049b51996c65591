package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// beProgram makes the test binary run the program instead of the tests, so
// that there are processes to test without a toolchain at hand.
const beProgram = "PROXY_BE_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience is when the watchdog ends a test.
const patience = time.Minute

// A process is a run of the program.
type process struct {
	*exec.Cmd
	t    *testing.T
	from place         // where it takes connections
	said *bufio.Reader // its standard error
}

// program runs the program.
func program(t *testing.T, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	// IPC_TEST_EXEC is the emulator that runs the binaries of this architecture.
	argv := append(strings.Fields(os.Getenv("IPC_TEST_EXEC")), self)
	argv = append(argv, args...)
	ctx, cancel := context.WithTimeout(context.Background(), patience) // the watchdog
	t.Cleanup(cancel)
	p := &process{Cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), t: t}
	p.Env = append(os.Environ(), beProgram+"=1", "GORACE=atexit_sleep_ms=0")
	r, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.said = bufio.NewReader(r)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			p.Process.Kill()
			p.Wait()
		}
	})
	return p
}

// proxied runs the program between the two places, and returns when it listens.
func proxied(t *testing.T, from, to place, flags ...string) *process {
	t.Helper()
	p := program(t, append([]string{"-from", from.String(), "-to", to.String(), "-every", "100ms"}, flags...)...)
	at := p.says(`^proxy: from (.*) to `)
	if err := p.from.UnmarshalText([]byte(at[1])); err != nil {
		t.Fatal(err)
	}
	return p
}

// says waits until the program says that, and returns what matches.
func (p *process) says(pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	for all := ""; ; {
		line, err := p.said.ReadString('\n')
		if err != nil {
			p.t.Fatalf("it ends without saying %q: %v:\n%s", pattern, err, all)
		}
		if match := re.FindStringSubmatch(strings.TrimSpace(line)); match != nil {
			return match
		}
		all += line
	}
}

// ends waits for the process, and returns what it says until then.
func (p *process) ends(status int) string {
	p.t.Helper()
	rest, err := io.ReadAll(p.said)
	if err != nil {
		p.t.Fatal(err)
	}
	p.Wait()
	if got := p.ProcessState.ExitCode(); got != status {
		p.t.Fatalf("it ends with status %d (%v), want %d: %s", got, p.ProcessState, status, rest)
	}
	if path := p.from.local.String(); path != "" && path[0] != '@' {
		if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
			p.t.Errorf("left behind: %v, %v", left, err)
		}
	}
	return string(rest)
}

// signal signals the process.
func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// needsSignals skips the test where there are none.
func needsSignals(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be interrupted from outside here")
	}
}

// local returns a local address that nothing else uses.
func local(t *testing.T) place {
	t.Helper()
	if runtime.GOOS == "windows" {
		return place{local: ipc.Name(fmt.Sprintf("proxy-%d-%d", os.Getpid(), number.Add(1)))}
	}
	return place{local: ipc.Path(filepath.Join(t.TempDir(), "socket"))}
}

var number atomic.Int64

// tcp returns a TCP address of this machine, where one can be connected to.
func tcp(t *testing.T) place {
	t.Helper()
	var failed error
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", host)
		if err == nil {
			var conn net.Conn
			if conn, err = net.DialTimeout("tcp", l.Addr().String(), patience); err == nil {
				conn.Close()
			}
			l.Close()
		}
		if err == nil {
			return place{tcp: host}
		}
		failed = errors.Join(failed, err)
	}
	t.Skipf("there is no TCP within this machine: %v", failed)
	return place{}
}

// forKinds runs the test with every kind of places to proxy between.
func forKinds(t *testing.T, test func(t *testing.T, from, to place)) {
	kinds := map[string]func(*testing.T) place{"tcp": tcp, "local": local}
	for from, place1 := range kinds {
		for to, place2 := range kinds {
			t.Run(from+" to "+to, func(t *testing.T) { test(t, place1(t), place2(t)) })
		}
	}
}

// server makes the test a server at the place, and returns it with its port.
func server(t *testing.T, at place, serve func(stream)) place {
	t.Helper()
	dog := time.AfterFunc(2*patience, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { dog.Stop() })
	l, at, err := at.listen(ipc.OwnerOnly)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(patience))
			all.Go(func() {
				defer conn.Close()
				serve(conn.(stream))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return at
}

// echo serves what it is sent.
func echo(conn stream) { io.Copy(conn, conn) }

func (p *process) dial() stream {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := p.from.dial(ctx, ipc.OwnerOnly)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// random returns n bytes that no other call returns.
func random(n int) []byte {
	data := make([]byte, n)
	rand.New(rand.NewSource(number.Add(1))).Read(data)
	return data
}

// converse sends the data to an echo server, in pieces, and checks that it comes
// back.
func converse(conn stream, data []byte, pieces int) error {
	sent := make(chan error, 1)
	go func() {
		for i := range pieces {
			if _, err := conn.Write(data[len(data)*i/pieces : len(data)*(i+1)/pieces]); err != nil {
				sent <- err
				return
			}
			runtime.Gosched()
		}
		sent <- nil
	}()
	got := make([]byte, len(data))
	if n, err := io.ReadFull(conn, got); err != nil {
		return fmt.Errorf("%d of %d bytes come back: %w", n, len(data), err)
	}
	if !bytes.Equal(got, data) {
		return errors.New("other bytes come back")
	}
	return <-sent
}

func TestBytesPassBothWays(t *testing.T) {
	forKinds(t, func(t *testing.T, from, to place) {
		p := proxied(t, from, server(t, to, echo))
		data := random(8 << 20)
		conn := p.dial()
		if err := converse(conn, data, 100); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		p.says(fmt.Sprintf(`^proxy: connection 1: .+: %d bytes there, %[1]d back, \S+s$`, len(data)))
	})
}

func TestManyConnectionsAtOnce(t *testing.T) {
	forKinds(t, func(t *testing.T, from, to place) {
		const clients = 20
		p := proxied(t, from, server(t, to, echo))
		var all sync.WaitGroup
		for range clients {
			conn := p.dial()
			all.Go(func() {
				defer conn.Close()
				if err := converse(conn, random(100_000), 3); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for range clients {
			p.says(`^proxy: connection \d+: .+: 100000 bytes there, 100000 back, \S+s$`)
		}
	})
}

// What has passed is counted by interruption, here as often as can be.
func TestCountingLosesNothing(t *testing.T) {
	forKinds(t, func(t *testing.T, from, to place) {
		p := proxied(t, from, server(t, to, echo), "-every", "1ms")
		go io.Copy(io.Discard, p.said)
		for range 2 {
			if err := converse(p.dial(), random(2<<20), 1000); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestTellsWhatHasPassed(t *testing.T) {
	p := proxied(t, local(t), server(t, local(t), echo), "-every", "50ms")
	conn := p.dial()
	if err := converse(conn, random(3_000_000), 1); err != nil {
		t.Fatal(err)
	}
	p.says(`^proxy: 1 open; there 3 MB, \d\S* k?M?B/s; back 3 MB, \d\S* k?M?B/s$`)
	p.says(`^proxy: 1 open; there 3 MB, 0 B/s; back 3 MB, 0 B/s$`)
	conn.Close()
	peer := regexp.QuoteMeta(fmt.Sprint("pid ", os.Getpid()))
	if runtime.GOOS != "linux" {
		peer = ".+" // not every system tells
	}
	p.says(`^proxy: connection 1: ` + peer + `.*: 3000000 bytes there, 3000000 back, `)
}

func TestBytesStayInTheKernel(t *testing.T) {
	if runtime.GOOS != "linux" || os.Getenv("IPC_TEST_EXEC") != "" {
		t.Skip("only Linux can do it, and tells how many bytes a process has read")
	}
	const amount = 16 << 20
	forKinds(t, func(t *testing.T, from, to place) {
		p := proxied(t, from, server(t, to, echo))
		read := func() (n int) {
			io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.Process.Pid))
			if err != nil {
				t.Skipf("it is not told how many bytes a process has read: %v", err)
			}
			if _, err := fmt.Sscanf(string(io), "rchar: %d", &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		conn, before := p.dial(), read()
		if err := converse(conn, random(amount), 1); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		p.says(`^proxy: connection 1: `)
		if n := read() - before; n > amount/100 {
			t.Errorf("of %d bytes each way it has read %d itself", amount, n)
		}
	})
}

func TestHalfCloseIsPassedOn(t *testing.T) {
	forKinds(t, func(t *testing.T, from, to place) {
		if runtime.GOOS == "windows" && (from.tcp == "" || to.tcp == "") {
			t.Skip("pipes have no half close")
		}
		question, answer := random(300_000), random(200_000)
		to = server(t, to, func(conn stream) {
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, question) {
				t.Errorf("the server reads %d bytes, %v", len(got), err)
			}
			conn.Write(answer)
		})
		p := proxied(t, from, to)
		conn := p.dial()
		conn.Write(question)
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, answer) {
			t.Errorf("the client reads %d bytes, %v", len(got), err)
		}
		p.says(`^proxy: connection 1: .+: 300000 bytes there, 200000 back, \S+s$`)
	})
}

func TestEndThatCannotBePassedOnIsFollowedBySilence(t *testing.T) {
	if runtime.GOOS != "windows" {
		t.Skip("local sockets have a half close here")
	}
	ended := make(chan error, 1)
	to := server(t, local(t), func(conn stream) {
		io.ReadFull(conn, make([]byte, 8))
		io.WriteString(conn, "an answer")
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	})
	p := proxied(t, tcp(t), to, "-every", "100ms")
	conn := p.dial()
	io.WriteString(conn, "question")
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "an answer" {
		t.Errorf("the client reads %q, %v", got, err)
	}
	if err := <-ended; err != io.EOF {
		t.Errorf("the server reads %v", err)
	}
	p.says(`^proxy: connection 1: .+: 8 bytes there, 9 back, \S+s$`)
}

func TestServerThatLeavesEndsTheConnection(t *testing.T) {
	forKinds(t, func(t *testing.T, from, to place) {
		p := proxied(t, from, server(t, to, func(conn stream) { io.WriteString(conn, "goodbye") }))
		conn := p.dial()
		if got, err := io.ReadAll(conn); err != nil || string(got) != "goodbye" {
			t.Errorf("the client reads %q, %v", got, err)
		}
		conn.Close()
		p.says(`^proxy: connection 1: .+: 0 bytes there, 7 back, \S+s$`)
	})
}

func TestClientThatGoesOnSendingIsStopped(t *testing.T) {
	forKinds(t, func(t *testing.T, from, to place) {
		p := proxied(t, from, server(t, to, func(stream) {}))
		conn := p.dial()
		for data := make([]byte, 64<<10); ; {
			if _, err := conn.Write(data); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			} else if err != nil {
				break
			}
		}
		conn.Close()
		p.says(`^proxy: connection 1: .+: \d+ bytes there, 0 back, \S+s`)
	})
}

func TestResetIsPassedOn(t *testing.T) {
	read := make(chan error, 1)
	to := server(t, tcp(t), func(conn stream) {
		io.WriteString(conn, "x")
		_, err := io.Copy(io.Discard, conn)
		read <- err
	})
	p := proxied(t, tcp(t), to)
	conn := p.dial()
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	reset(conn)
	if err := <-read; err == nil {
		t.Error("the server takes it for the end")
	}
	p.says(`^proxy: connection 1: .+: 0 bytes there, 1 back, \S+s: `)
}

func TestWithoutServerTheClientIsSentAway(t *testing.T) {
	forKinds(t, func(t *testing.T, from, to place) {
		// A port that nobody else takes before the program has its own.
		l, to, err := to.listen(ipc.OwnerOnly)
		if err != nil {
			t.Fatal(err)
		}
		p := proxied(t, from, to)
		l.Close()
		if conn, err := p.from.dial(t.Context(), ipc.OwnerOnly); err == nil {
			conn.SetDeadline(time.Now().Add(patience))
			if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the client reads %d bytes, %v", n, err)
			}
			conn.Close()
		} else if !errors.Is(err, syscall.ECONNRESET) { // it was sent away fast
			t.Fatal(err)
		}
		p.says(`^proxy: connection 1: .+: dial `)

		server(t, to, echo) // comes late
		if err := converse(p.dial(), random(1000), 1); err != nil {
			t.Error(err)
		}
	})
}

func TestInterruptLetsConnectionsFinish(t *testing.T) {
	needsSignals(t)
	forKinds(t, func(t *testing.T, from, to place) {
		p := proxied(t, from, server(t, to, echo))
		conn := p.dial()
		if err := converse(conn, random(10), 1); err != nil {
			t.Fatal(err)
		}
		p.signal(os.Interrupt)
		p.says(`^proxy: stopping; 1 open`)
		if late, err := p.from.dial(t.Context(), ipc.OwnerOnly); err == nil {
			late.Close()
			t.Error("it takes one more connection")
		}
		if err := converse(conn, random(100_000), 1); err != nil {
			t.Error(err)
		}
		conn.Close()
		p.ends(0)
	})
}

func TestIdleProxyEndsAtOnce(t *testing.T) {
	needsSignals(t)
	p := proxied(t, local(t), local(t))
	p.signal(syscall.SIGTERM)
	if said := p.ends(0); said != "" {
		t.Errorf("it says %q", said)
	}
}

func TestConnectionsThatDoNotFinishAreCutOff(t *testing.T) {
	needsSignals(t)
	forKinds(t, func(t *testing.T, from, to place) {
		p := proxied(t, from, server(t, to, echo), "-grace", "10ms")
		conn := p.dial()
		if err := converse(conn, random(10), 1); err != nil {
			t.Fatal(err)
		}
		p.signal(syscall.SIGTERM)
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the client reads %v", err)
		}
		if said := p.ends(1); !strings.Contains(said, ": 10 bytes there, 10 back, ") || !strings.HasSuffix(said, "proxy: connections were cut off\n") {
			t.Errorf("it says %q", said)
		}
	})
}

func TestSecondSignalEndsItAtOnce(t *testing.T) {
	needsSignals(t)
	p := proxied(t, local(t), server(t, local(t), echo), "-grace", "1h")
	if err := converse(p.dial(), random(10), 1); err != nil {
		t.Fatal(err)
	}
	p.signal(os.Interrupt)
	p.says(`^proxy: stopping`)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for { // until the signal is not caught any more
			if err := p.Process.Signal(os.Interrupt); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	p.ends(-1)
	<-ended
	if how := p.ProcessState.String(); how != "signal: interrupt" {
		t.Errorf("it ends by %s", how)
	}
}

func TestWrongUsageAndFailuresAreTold(t *testing.T) {
	at := local(t)
	p := proxied(t, at, local(t))
	for status, runs := range map[int][][]string{
		1: {{"-from", at.String(), "-to", "@x"}}, // in use
		2: {
			{},
			{"-from", "@x"},
			{"-to", "@x"},
			{"-from", "@x", "-to", "@y", "@z"},
			{"-from", "@x", "-to", "@y", "-grace", "-1s"},
		},
	} {
		for _, args := range runs {
			if said := program(t, args...).ends(status); !strings.HasPrefix(said, "proxy: ") || strings.Count(said, "\n") != 1 {
				t.Errorf("%q says %q", args, said)
			}
		}
	}
	if said := program(t, "-from", "tcp:nowhere", "-to", "@x").ends(2); !strings.Contains(said, "missing port") {
		t.Errorf("of a place without a port it says %q", said)
	}
	if err := p.Process.Signal(syscall.Signal(0)); err != nil && runtime.GOOS != "windows" {
		t.Errorf("the first one is gone: %v", err)
	}
}

func TestSizesAreForPeople(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1: "1 B", 999: "999 B", 1000: "1 kB", 1234: "1.23 kB", 999_400: "999 kB", 999_500: "1 MB",
		123_456_789: "123 MB", 5_000_000_000: "5 GB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d bytes are %q, want %q", n, got, want)
		}
	}
}
