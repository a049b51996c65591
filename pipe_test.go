//go:build unix || windows

// Unnamed pipes, the adoption of files that are pipes, and copying between ends of every kind. What a pipe has in
// common with connections is told of it in conn_test.go.
package ipc_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
	"github.com/interprocess-go/ipc/internal/kit"
)

// ---------------------------------------------------------------------------
// Reading, writing, closing

func TestPipeCarriesWhatIsWritten(t *testing.T) {
	kit.Story(t)
	r, w := kit.Pipe(t)
	kit.Send(t, w, "one")
	kit.Send(t, w, "two")
	kit.Expect(t, r, "onet")
	kit.Expect(t, r, "wo")
	kit.Send(t, w, "three")
	kit.Must(t, w.Close())
	kit.Expect(t, r, "three") // what was written before Close is not lost
	kit.ExpectEOF(t, r)
	kit.ExpectEOF(t, r)
}

func TestPipeCarriesMuch(t *testing.T) {
	data := kit.Pattern(8<<20 + 321)
	for _, step := range []int{777, 64 << 10, len(data)} {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			kit.Story(t)
			r, w := kit.Pipe(t)
			writing := kit.Begin(func() error {
				for rest := data; len(rest) > 0; {
					p := rest[:min(step, len(rest))]
					if n, err := w.Write(p); n != len(p) || err != nil {
						return fmt.Errorf("wrote %d of %d: %w", n, len(p), err)
					}
					rest = rest[len(p):]
				}
				return w.Close()
			})
			var got []byte
			for p := make([]byte, step+1); ; {
				n, err := r.Read(p)
				got = append(got, p[:n]...)
				if err == io.EOF {
					break
				}
				kit.Must(t, err)
				if n == 0 {
					t.Fatal("a read of nothing that is not the end")
				}
			}
			kit.Must(t, <-writing)
			if !bytes.Equal(got, data) {
				t.Errorf("%d bytes arrive of %d, or others", len(got), len(data))
			}
		})
	}
}

func TestPipeWithoutReader(t *testing.T) {
	kit.Story(t)
	r, w := kit.Pipe(t)
	kit.Must(t, r.Close())
	for range 3 {
		n, err := w.Write([]byte("nobody reads this"))
		kit.Matches(t, err, syscall.EPIPE)
		kit.IsPipeError(t, err, "write")
		if n != 0 {
			t.Errorf("wrote %d bytes", n)
		}
	}
}

func TestPipeNothingWorksAfterClose(t *testing.T) {
	kit.Story(t)
	r, w := kit.Pipe(t)
	kit.Send(t, w, "unread")
	rawR, err := r.SyscallConn()
	kit.Must(t, err)
	rawW, err := w.SyscallConn()
	kit.Must(t, err)
	kit.Must(t, r.Close())
	kit.Must(t, w.Close())
	kit.SaysClosed(t, map[string]func() error{
		"Read":             func() error { _, err := r.Read(make([]byte, 1)); return err },
		"WriteTo":          func() error { _, err := r.WriteTo(io.Discard); return err },
		"SetReadDeadline":  func() error { return r.SetReadDeadline(time.Now()) },
		"reader's File":    func() error { _, err := r.File(); return err },
		"reader's Close":   r.Close,
		"reader's Control": func() error { return rawR.Control(func(uintptr) {}) },
		"Write":            func() error { _, err := w.Write(make([]byte, 1)); return err },
		"ReadFrom":         func() error { _, err := w.ReadFrom(strings.NewReader("more")); return err },
		"SetWriteDeadline": func() error { return w.SetWriteDeadline(time.Time{}) },
		"writer's File":    func() error { _, err := w.File(); return err },
		"writer's Close":   w.Close,
		"writer's Control": func() error { return rawW.Control(func(uintptr) {}) },
	})
}

func TestPipeLeavesNothingAfterManyRounds(t *testing.T) {
	kit.Story(t)
	kit.LeavesNothing(t, 1000, func() {
		r, w, err := ipc.Pipe()
		kit.Must(t, err)
		reading := kit.Begin(func() error { _, err := io.ReadFull(r, make([]byte, 4)); return err })
		kit.Must(t, w.SetWriteDeadline(time.Now().Add(time.Hour)))
		kit.Send(t, w, "ping")
		kit.Must(t, <-reading)
		f, err := w.File()
		kit.Must(t, err)
		kit.Must(t, w.Close())
		kit.Must(t, f.Close())
		kit.ExpectEOF(t, r)
		kit.Must(t, r.Close())
	})
}

// ---------------------------------------------------------------------------
// Files

func TestPipeFileIsADuplicate(t *testing.T) {
	kit.Story(t)
	r, w := kit.Pipe(t)
	rf, err := r.File()
	kit.Must(t, err)
	wf, err := w.File()
	kit.Must(t, err)
	kit.Must(t, r.Close())
	kit.Must(t, w.Close())
	r2, err := ipc.FileReader(rf)
	kit.Must(t, err)
	defer r2.Close()
	w2, err := ipc.FileWriter(wf)
	kit.Must(t, err)
	defer w2.Close()
	kit.Must(t, rf.Close())
	kit.Must(t, wf.Close())
	kit.Send(t, w2, "by duplicates")
	kit.Expect(t, r2, "by duplicates")

	kit.Must(t, r2.SetReadDeadline(time.Now().Add(kit.Brief)))
	_, err = r2.Read(make([]byte, 1))
	kit.TimedOut(t, err)
	kit.Must(t, r2.SetReadDeadline(time.Time{}))
	reading := kit.BeginRead(r2)
	kit.AwaitParked(t, "(*PipeReader).Read", 1)
	kit.Must(t, w2.Close()) // the last of the writers
	if err := <-reading; err != io.EOF {
		t.Errorf("read ends with %v, want io.EOF", err)
	}
	kit.Must(t, r2.Close())
}

func TestPipeSyscallConnReachesTheEnd(t *testing.T) {
	kit.Story(t)
	r, w := kit.Pipe(t)
	rawR, err := r.SyscallConn()
	kit.Must(t, err)
	rawW, err := w.SyscallConn()
	kit.Must(t, err)
	var a, b uintptr
	kit.Must(t, rawR.Control(func(sys uintptr) { a = sys }))
	kit.Must(t, rawW.Control(func(sys uintptr) { b = sys }))
	if a == b || a == 0 || b == 0 {
		t.Errorf("the descriptors are %d and %d", a, b)
	}
	kit.Send(t, w, "as before")
	kit.Expect(t, r, "as before")
}

// isStillOpen checks that the file was left with its owner.
func isStillOpen(t *testing.T, what string, f *os.File) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(uintptr) {})
	}
	if err == nil {
		_, err = f.Stat()
	}
	if err != nil {
		t.Errorf("%s is gone: %v", what, err)
	}
}

func TestFileReaderAndWriterRefuseWhatIsNoPipe(t *testing.T) {
	kit.Story(t)
	file, err := os.Create(kit.TempDir(t) + "/file")
	kit.Must(t, err)
	defer os.Remove(file.Name())
	defer file.Close()
	for what, f := range map[string]*os.File{"a file": file, "nil": nil} {
		for op, adopt := range adopters {
			err := adopt(f)
			kit.IsPipeError(t, err, "file")
			if err == nil {
				t.Errorf("%s adopts %s", op, what)
			} else if f != nil {
				kit.Matches(t, err, errors.ErrUnsupported)
				isStillOpen(t, what, f)
			}
		}
	}
	kit.Must(t, file.Close())
	for op, adopt := range adopters {
		if adopt(file) == nil {
			t.Errorf("%s adopts a closed file", op)
		}
	}
}

// adopters adopt a file and, should that succeed, close what came of it.
var adopters = map[string]func(*os.File) error{
	"FileReader": func(f *os.File) error {
		r, err := ipc.FileReader(f)
		if err == nil {
			r.Close()
		}
		return err
	},
	"FileWriter": func(f *os.File) error {
		w, err := ipc.FileWriter(f)
		if err == nil {
			w.Close()
		}
		return err
	},
}

func TestFileReaderAndWriterRefuseTheOtherDirection(t *testing.T) {
	if runtime.GOOS == "freebsd" {
		t.Skip("pipes are two-way here")
	}
	kit.Story(t)
	r, w := kit.Pipe(t)
	rf, err := r.File()
	kit.Must(t, err)
	defer rf.Close()
	wf, err := w.File()
	kit.Must(t, err)
	defer wf.Close()
	for op, f := range map[string]*os.File{"FileWriter": rf, "FileReader": wf} {
		err := adopters[op](f)
		if err == nil {
			t.Errorf("%s adopts the other end", op)
		}
		kit.IsPipeError(t, err, "file")
		isStillOpen(t, "the end", f)
	}
	kit.Send(t, w, "as before")
	kit.Expect(t, r, "as before")
}

// ---------------------------------------------------------------------------
// Copying: what comes out is what went in, whatever the two ends are and
// whichever way the system takes between them.

// inverted changes what it reads: a copy that goes around its Read shows.
type inverted struct{ io.Reader }

func (r inverted) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	invert(p[:n])
	return n, err
}

// inverting changes what is written to it: a copy that goes around its Write
// shows.
type inverting struct{ io.WriteCloser }

func (w inverting) Write(p []byte) (int, error) {
	q := bytes.Clone(p)
	invert(q)
	return w.WriteCloser.Write(q)
}

func invert(p []byte) {
	for i := range p {
		p[i] ^= 0xff
	}
}

// tcpPair returns the ends of a TCP connection over the loopback.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l, err = net.Listen("tcp", "[::1]:0")
	}
	if err != nil {
		t.Skipf("there is no loopback: %v", err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	accepting := kit.Begin(func() error {
		c, err := l.Accept()
		accepted <- c
		return err
	})
	dialed, err := net.DialTimeout("tcp", l.Addr().String(), kit.Soon)
	if err != nil {
		l.Close()
		<-accepting
		t.Skipf("the loopback leads nowhere: %v", err)
	}
	kit.Must(t, <-accepting)
	a, b = dialed.(*net.TCPConn), (<-accepted).(*net.TCPConn)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// unixPair returns the ends of a connection of package net.
func unixPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("package net adopts no socket here")
	}
	c, d := kit.Pair(t)
	foreign := func(c *ipc.Conn) *net.UnixConn {
		f, err := c.File()
		kit.Must(t, err)
		conn, err := net.FileConn(f)
		kit.Must(t, errors.Join(err, f.Close(), c.Close()))
		t.Cleanup(func() { conn.Close() })
		return conn.(*net.UnixConn)
	}
	return foreign(c), foreign(d)
}

// A source makes a reader of the data. One of its own is what this package
// copies from by other means than Read.
type source struct {
	name string
	own  bool
	open func(t *testing.T, data []byte) io.Reader
}

// feed writes the data to w and closes it.
func feed(t *testing.T, w io.WriteCloser, data []byte) {
	t.Helper()
	feeding := kit.Begin(func() error {
		_, err := w.Write(data)
		return errors.Join(err, w.Close())
	})
	t.Cleanup(func() {
		if !t.Failed() && !t.Skipped() { // or it may wait for ever
			kit.Must(t, <-feeding)
		}
	})
}

// keptBack is behind the limit of a limited source, and must stay there.
const keptBack = "kept back"

func keepsBack(t *testing.T, r io.Reader) {
	t.Helper()
	t.Cleanup(func() {
		if !t.Failed() && !t.Skipped() {
			kit.Expect(t, r, keptBack)
			kit.ExpectEOF(t, r)
		}
	})
}

var sources = []source{
	{"Conn", true, func(t *testing.T, data []byte) io.Reader {
		a, b := kit.Pair(t)
		feed(t, b, data)
		return a
	}},
	{"PipeReader", true, func(t *testing.T, data []byte) io.Reader {
		r, w := kit.Pipe(t)
		feed(t, w, data)
		return r
	}},
	{"TCPConn", false, func(t *testing.T, data []byte) io.Reader {
		a, b := tcpPair(t)
		feed(t, b, data)
		return a
	}},
	{"UnixConn", false, func(t *testing.T, data []byte) io.Reader {
		a, b := unixPair(t)
		feed(t, b, data)
		return a
	}},
	{"OSPipe", false, func(t *testing.T, data []byte) io.Reader {
		r, w := kit.OsPipe(t)
		feed(t, w, data)
		return r
	}},
	{"File", false, func(t *testing.T, data []byte) io.Reader {
		f, err := os.CreateTemp(kit.TempDir(t), "")
		kit.Must(t, err)
		t.Cleanup(func() { f.Close(); os.Remove(f.Name()) })
		_, err = f.Write(append([]byte("skipped"), data...))
		kit.Must(t, err)
		_, err = f.Seek(int64(len("skipped")), io.SeekStart)
		kit.Must(t, err)
		return f
	}},
	{"BytesReader", false, func(t *testing.T, data []byte) io.Reader { return bytes.NewReader(data) }},
	{"LimitedConn", false, func(t *testing.T, data []byte) io.Reader {
		a, b := kit.Pair(t)
		feed(t, b, append(bytes.Clone(data), keptBack...))
		keepsBack(t, a)
		return io.LimitReader(a, int64(len(data)))
	}},
	{"LimitedPipe", false, func(t *testing.T, data []byte) io.Reader {
		r, w := kit.Pipe(t)
		feed(t, w, append(bytes.Clone(data), keptBack...))
		keepsBack(t, r)
		return io.LimitReader(r, int64(len(data)))
	}},
	{"TwiceLimitedConn", false, func(t *testing.T, data []byte) io.Reader {
		a, b := kit.Pair(t)
		feed(t, b, append(bytes.Clone(data), keptBack...))
		keepsBack(t, a)
		return io.LimitReader(io.LimitReader(a, int64(len(data))), int64(len(data)+3))
	}},
	{"WrappedConn", false, func(t *testing.T, data []byte) io.Reader {
		a, b := kit.Pair(t)
		data = bytes.Clone(data)
		invert(data)
		feed(t, b, data)
		return inverted{a}
	}},
}

// A sink makes a writer, and tells what arrived there when it was closed.
type sink struct {
	name string
	own  bool
	open func(t *testing.T) (w io.WriteCloser, arrived func() []byte)
}

// collect reads r to its end.
func collect(t *testing.T, r io.Reader) (arrived func() []byte) {
	t.Helper()
	var got bytes.Buffer
	draining := kit.Begin(func() error {
		_, err := got.ReadFrom(struct{ io.Reader }{r})
		return err
	})
	return func() []byte {
		kit.Must(t, <-draining)
		return got.Bytes()
	}
}

var sinks = []sink{
	{"Conn", true, func(t *testing.T) (io.WriteCloser, func() []byte) {
		a, b := kit.Pair(t)
		return a, collect(t, b)
	}},
	{"PipeWriter", true, func(t *testing.T) (io.WriteCloser, func() []byte) {
		r, w := kit.Pipe(t)
		return w, collect(t, r)
	}},
	{"TCPConn", false, func(t *testing.T) (io.WriteCloser, func() []byte) {
		a, b := tcpPair(t)
		return a, collect(t, b)
	}},
	{"UnixConn", false, func(t *testing.T) (io.WriteCloser, func() []byte) {
		a, b := unixPair(t)
		return a, collect(t, b)
	}},
	{"OSPipe", false, func(t *testing.T) (io.WriteCloser, func() []byte) {
		r, w := kit.OsPipe(t)
		return w, collect(t, r)
	}},
	{"File", false, func(t *testing.T) (io.WriteCloser, func() []byte) {
		name := kit.TempDir(t) + "/sink"
		kit.Must(t, os.WriteFile(name, []byte("kept, "), 0o600))
		t.Cleanup(func() { os.Remove(name) })
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
		kit.Must(t, err)
		t.Cleanup(func() { f.Close() })
		return f, func() []byte {
			got, err := os.ReadFile(name)
			kit.Must(t, err)
			got, kept := bytes.CutPrefix(got, []byte("kept, "))
			if !kept {
				t.Error("the copy is not behind what was in the file")
			}
			return got
		}
	}},
	{"WrappedConn", false, func(t *testing.T) (io.WriteCloser, func() []byte) {
		a, b := kit.Pair(t)
		arrived := collect(t, b)
		return inverting{a}, func() []byte {
			got := arrived()
			invert(got)
			return got
		}
	}},
}

func TestCopyIsExact(t *testing.T) {
	kit.Together(t)
	data := kit.Pattern(700<<10 + 123)
	for _, from := range sources {
		for _, to := range sinks {
			if !from.own && !to.own && !strings.Contains(from.name, "Limited") && from.name != "WrappedConn" && to.name != "WrappedConn" {
				continue // package io and net alone
			}
			for way, copying := range map[string]func(w io.Writer, r io.Reader) (int64, error){
				"Copy": io.Copy,
				"WriteTo": func(w io.Writer, r io.Reader) (int64, error) {
					return r.(io.WriterTo).WriteTo(w)
				},
				"ReadFrom": func(w io.Writer, r io.Reader) (int64, error) {
					return w.(io.ReaderFrom).ReadFrom(r)
				},
			} {
				if way == "WriteTo" && !from.own || way == "ReadFrom" && !to.own {
					continue
				}
				t.Run(from.name+"To"+to.name+"By"+way, func(t *testing.T) {
					kit.Story(t)
					for _, data := range [][]byte{data, data[:1], nil} {
						src := from.open(t, data)
						dst, arrived := to.open(t)
						n, err := copying(dst, src)
						if n != int64(len(data)) || err != nil {
							t.Errorf("copied %d of %d, %v", n, len(data), err)
						}
						kit.Must(t, dst.Close())
						if got := arrived(); !bytes.Equal(got, data) {
							t.Errorf("of %d bytes %d arrive, or others", len(data), len(got))
						}
					}
				})
			}
		}
	}
}

// The types that a copy knows, each inside one that does more.
type (
	wrappedConn  struct{ *ipc.Conn }
	wrappedPipe  struct{ *ipc.PipeReader }
	wrappedTCP   struct{ *net.TCPConn }
	wrappedFile  struct{ *os.File }
	wrappingConn struct{ *ipc.Conn }
	wrappingPipe struct{ *ipc.PipeWriter }
	wrappingTCP  struct{ *net.TCPConn }
)

func (w wrappedConn) Read(p []byte) (int, error) { return inverted{w.Conn}.Read(p) }

func (w wrappedPipe) Read(p []byte) (int, error) { return inverted{w.PipeReader}.Read(p) }

func (w wrappedTCP) Read(p []byte) (int, error) { return inverted{w.TCPConn}.Read(p) }

func (w wrappedFile) Read(p []byte) (int, error) { return inverted{w.File}.Read(p) }

func (w wrappingConn) Write(p []byte) (int, error) { return inverting{w.Conn}.Write(p) }

func (w wrappingPipe) Write(p []byte) (int, error) { return inverting{w.PipeWriter}.Write(p) }

func (w wrappingTCP) Write(p []byte) (int, error) { return inverting{w.TCPConn}.Write(p) }

func TestCopyGoesThroughTheReadOfAWrapper(t *testing.T) {
	data := kit.Pattern(100 << 10)
	invertedData := bytes.Clone(data)
	invert(invertedData)
	wrap := map[string]func(io.Reader) io.Reader{
		"Conn":       func(r io.Reader) io.Reader { return wrappedConn{r.(*ipc.Conn)} },
		"PipeReader": func(r io.Reader) io.Reader { return wrappedPipe{r.(*ipc.PipeReader)} },
		"TCPConn":    func(r io.Reader) io.Reader { return wrappedTCP{r.(*net.TCPConn)} },
		"File":       func(r io.Reader) io.Reader { return wrappedFile{r.(*os.File)} },
	}
	for _, from := range sources {
		for _, to := range sinks {
			if wrap[from.name] == nil || !to.own {
				continue
			}
			t.Run(from.name+"To"+to.name, func(t *testing.T) {
				kit.Story(t)
				for _, limited := range []bool{false, true} {
					src := wrap[from.name](from.open(t, invertedData))
					if limited {
						src = io.LimitReader(src, kit.TooMuch)
					}
					dst, arrived := to.open(t)
					n, err := dst.(io.ReaderFrom).ReadFrom(src)
					if n != int64(len(data)) || err != nil {
						t.Errorf("copied %d of %d, %v", n, len(data), err)
					}
					kit.Must(t, dst.Close())
					if !bytes.Equal(arrived(), data) {
						t.Error("the copy goes around the wrapper's Read")
					}
				}
			})
		}
	}
}

func TestCopyGoesThroughTheWriteOfAWrapper(t *testing.T) {
	data := kit.Pattern(100 << 10)
	invertedData := bytes.Clone(data)
	invert(invertedData)
	wrap := map[string]func(io.Writer) io.Writer{
		"Conn":       func(w io.Writer) io.Writer { return wrappingConn{w.(*ipc.Conn)} },
		"PipeWriter": func(w io.Writer) io.Writer { return wrappingPipe{w.(*ipc.PipeWriter)} },
		"TCPConn":    func(w io.Writer) io.Writer { return wrappingTCP{w.(*net.TCPConn)} },
	}
	for _, from := range sources {
		for _, to := range sinks {
			if wrap[to.name] == nil || !from.own {
				continue
			}
			t.Run(from.name+"To"+to.name, func(t *testing.T) {
				kit.Story(t)
				src := from.open(t, data)
				dst, arrived := to.open(t)
				n, err := src.(io.WriterTo).WriteTo(wrap[to.name](dst))
				if n != int64(len(data)) || err != nil {
					t.Errorf("copied %d of %d, %v", n, len(data), err)
				}
				kit.Must(t, dst.Close())
				if !bytes.Equal(arrived(), invertedData) {
					t.Error("the copy goes around the wrapper's Write")
				}
			})
		}
	}
}

func TestCopyOfALimitedReaderKnowsWhatWasCopied(t *testing.T) {
	for _, to := range sinks {
		if !to.own {
			continue
		}
		t.Run(to.name, func(t *testing.T) {
			kit.Story(t)
			a, b := kit.Pair(t)
			kit.Send(t, b, "abcdefghij")
			dst, arrived := to.open(t)
			l := &io.LimitedReader{R: a, N: 4}
			if n, err := dst.(io.ReaderFrom).ReadFrom(l); n != 4 || err != nil || l.N != 0 {
				t.Errorf("copied %d, %v, and %d are left to copy", n, err, l.N)
			}
			if n, err := dst.(io.ReaderFrom).ReadFrom(l); n != 0 || err != nil {
				t.Errorf("beyond the limit: %d, %v", n, err)
			}
			kit.Must(t, b.Close())
			l.N = 100
			if n, err := dst.(io.ReaderFrom).ReadFrom(l); n != 6 || err != nil || l.N != 94 {
				t.Errorf("copied %d, %v, and %d are left to copy", n, err, l.N)
			}
			l.N = -1
			if n, err := dst.(io.ReaderFrom).ReadFrom(l); n != 0 || err != nil {
				t.Errorf("with a negative limit: %d, %v", n, err)
			}
			kit.Must(t, dst.Close())
			if got := arrived(); string(got) != "abcdefghij" {
				t.Errorf("%q arrives", got)
			}
		})
	}
}

// A stretch is a copy under way: from is written to, to is read from, and the
// copy goes between the two inner ends.
type stretch struct {
	in  io.WriteCloser // what is written here
	src interface {
		io.ReadCloser
		SetReadDeadline(time.Time) error
	}
	dst interface {
		io.WriteCloser
		SetWriteDeadline(time.Time) error
	}
	out io.ReadCloser // arrives here
}

// overEachStretch tells a story over each pair of kinds of ends, and over each
// of the two methods that copy.
func overEachStretch(t *testing.T, tell func(t *testing.T, s stretch, copying func() (int64, error))) {
	for _, from := range []string{"Conn", "Pipe"} {
		for _, to := range []string{"Conn", "Pipe"} {
			for _, way := range []string{"WriteTo", "ReadFrom"} {
				t.Run(from+"To"+to+"By"+way, func(t *testing.T) {
					kit.Story(t)
					var s stretch
					if from == "Conn" {
						a, b := kit.Pair(t)
						s.in, s.src = a, b
					} else {
						r, w := kit.Pipe(t)
						s.in, s.src = w, r
					}
					if to == "Conn" {
						a, b := kit.Pair(t)
						s.dst, s.out = a, b
					} else {
						r, w := kit.Pipe(t)
						s.dst, s.out = w, r
					}
					tell(t, s, func() (int64, error) {
						if way == "WriteTo" {
							return s.src.(io.WriterTo).WriteTo(s.dst)
						}
						return s.dst.(io.ReaderFrom).ReadFrom(s.src)
					})
				})
			}
		}
	}
}

// flood writes to w until that fails.
func flood(w io.Writer) <-chan error {
	return kit.Begin(func() error {
		for p := make([]byte, 10<<10); ; {
			if _, err := w.Write(p); err != nil {
				return err
			}
		}
	})
}

// parkedCopying waits until the copy of a stretch waits for something.
func parkedCopying(t *testing.T) {
	t.Helper()
	kit.Eventually(t, "the copy waits", func() bool {
		for g := range strings.SplitSeq(kit.Stacks(), "\n\n") {
			state, frames, _ := strings.Cut(g, "\n")
			copying := strings.Contains(frames, "/ipc.copyOut(") || strings.Contains(frames, "/ipc.copyIn(")
			awake := strings.Contains(state, "[runn") || runtime.GOOS != "windows" && strings.Contains(state, "[syscall")
			if copying && !awake {
				return true
			}
		}
		return false
	})
}

func TestCopyEndsWithItsSource(t *testing.T) {
	overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
		done := kit.Begin(func() error {
			n, err := copying()
			if err == nil && n != 10 {
				err = fmt.Errorf("copied %d of 10", n)
			}
			return err
		})
		kit.Send(t, s.in, "first")
		kit.Expect(t, s.out, "first") // at once, not at the end
		parkedCopying(t)
		kit.Send(t, s.in, "after")
		kit.Expect(t, s.out, "after")
		kit.Must(t, s.in.Close())
		kit.Must(t, <-done)
		kit.Must(t, s.dst.Close())
		kit.ExpectEOF(t, s.out)
	})
}

// The copy towards the client must not wait for the read of the client that the
// other copy is in.
func TestCopyOfAProxyWhoseServerSpeaksFirst(t *testing.T) {
	for way, copying := range map[string]func(dst, src *ipc.Conn) (int64, error){
		"WriteTo":  func(dst, src *ipc.Conn) (int64, error) { return src.WriteTo(dst) },
		"ReadFrom": func(dst, src *ipc.Conn) (int64, error) { return dst.ReadFrom(src) },
	} {
		t.Run(way, func(t *testing.T) {
			kit.Story(t)
			client, inner := kit.Pair(t)
			outer, server := kit.Pair(t)
			up := kit.Begin(func() error { _, err := copying(outer, inner); return err })
			parkedCopying(t)
			down := kit.Begin(func() error { _, err := copying(inner, outer); return err })
			kit.Send(t, server, "welcome")
			kit.Must(t, client.SetReadDeadline(time.Now().Add(kit.Soon))) // or a copy that waits shows as a hang
			kit.Expect(t, client, "welcome")
			kit.Send(t, client, "thanks")
			kit.Expect(t, server, "thanks")
			kit.Must(t, server.Close())
			kit.Must(t, <-down)
			kit.Must(t, client.Close())
			kit.Must(t, <-up)
		})
	}
}

func TestCopyEndsWhenNobodyReadsTheSink(t *testing.T) {
	overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
		done := kit.Begin(func() error { _, err := copying(); return err })
		flooding := flood(s.in)
		kit.Expect(t, s.out, string(make([]byte, 300<<10)))
		kit.Must(t, s.out.Close())
		kit.Matches(t, <-done, syscall.EPIPE)
		kit.Must(t, s.src.Close())
		kit.Matches(t, <-flooding, syscall.EPIPE)
	})
}

func TestCopyEndsWhenItsSourceIsClosed(t *testing.T) {
	overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
		done := kit.Begin(func() error { _, err := copying(); return err })
		kit.Send(t, s.in, "first")
		kit.Expect(t, s.out, "first")
		parkedCopying(t)
		kit.Must(t, s.src.Close())
		kit.Matches(t, <-done, net.ErrClosed)
		kit.Send(t, s.dst, "and more") // is not of the copy's business
		kit.Expect(t, s.out, "and more")
	})
}

func TestCopyEndsWhenItsSinkIsClosed(t *testing.T) {
	t.Run("WhileItWaitsForTheSource", func(t *testing.T) {
		overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
			done := kit.Begin(func() error { _, err := copying(); return err })
			kit.Send(t, s.in, "first")
			kit.Expect(t, s.out, "first")
			parkedCopying(t)
			kit.Must(t, s.dst.Close())
			kit.ExpectEOF(t, s.out)
			kit.Send(t, s.in, "lost") // a copy may not learn of it before
			kit.Matches(t, <-done, net.ErrClosed)
		})
	})
	t.Run("WhileItWaitsForTheSink", func(t *testing.T) {
		overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
			flooding := flood(s.in)
			done := kit.Begin(func() error { _, err := copying(); return err })
			kit.Expect(t, s.out, string(make([]byte, 100<<10)))
			parkedCopying(t)
			kit.Must(t, s.dst.Close())
			kit.Matches(t, <-done, net.ErrClosed)
			kit.Must(t, s.src.Close())
			kit.Matches(t, <-flooding, syscall.EPIPE)
		})
	})
}

func TestCopyEndsAtTheReadDeadline(t *testing.T) {
	overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
		for range 2 {
			done := kit.Begin(func() error {
				n, err := copying()
				if n != 5 {
					err = fmt.Errorf("copied %d of 5: %w", n, err)
				}
				return err
			})
			kit.Send(t, s.in, "first")
			kit.Expect(t, s.out, "first")
			parkedCopying(t)
			kit.Must(t, s.src.SetReadDeadline(time.Now().Add(kit.Brief)))
			kit.TimedOut(t, <-done)
			kit.Must(t, s.src.SetReadDeadline(time.Time{})) // and nothing was lost
		}
	})
}

func TestCopyEndsAtTheWriteDeadline(t *testing.T) {
	overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
		flooding := flood(s.in)
		done := kit.Begin(func() error { _, err := copying(); return err })
		kit.Expect(t, s.out, string(make([]byte, 100<<10)))
		parkedCopying(t)
		kit.Must(t, s.dst.SetWriteDeadline(time.Now().Add(kit.Brief)))
		kit.TimedOut(t, <-done)
		kit.Must(t, s.src.Close())
		kit.Matches(t, <-flooding, syscall.EPIPE)
	})
}

// A copy that never has to wait must notice a deadline all the same.
func TestCopyThatNeverWaitsEndsAtTheDeadline(t *testing.T) {
	for what, set := range map[string]func(s stretch, t time.Time) error{
		"Read":  func(s stretch, t time.Time) error { return s.src.SetReadDeadline(t) },
		"Write": func(s stretch, t time.Time) error { return s.dst.SetWriteDeadline(t) },
	} {
		t.Run(what, func(t *testing.T) {
			overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
				kit.Send(t, s.in, "there is data, and room for it")
				kit.Must(t, set(s, time.Now().Add(-time.Hour)))
				kit.Must(t, s.in.Close()) // or a copy that errs would wait
				n, err := copying()
				kit.TimedOut(t, err)
				if n != 0 {
					t.Errorf("copied %d bytes", n)
				}
			})
		})
	}
}

func TestCopyDoesNotComeBetweenTheBytesOfAWrite(t *testing.T) {
	overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
		const size, writes = 300 << 10, 10
		flooding := flood(s.in) // with zeros
		done := kit.Begin(func() error { _, err := copying(); return err })
		writing := kit.Begin(func() error {
			for range writes {
				if _, err := s.dst.Write(bytes.Repeat([]byte{1}, size)); err != nil {
					return err
				}
			}
			return nil
		})
		run, ones := 0, 0
		for p := make([]byte, 4<<10); ones < size*writes; {
			n, err := s.out.Read(p)
			kit.Must(t, err)
			for _, b := range p[:n] {
				if b == 1 {
					run++
					ones++
				} else if run%size != 0 {
					t.Fatalf("the copy comes between byte %d and the next of a write", run)
				} else {
					run = 0
				}
			}
		}
		kit.Must(t, <-writing)
		kit.Must(t, s.src.Close())
		discarding := kit.Begin(func() error { _, err := io.Copy(io.Discard, s.out); return err })
		kit.Matches(t, <-done, net.ErrClosed)
		kit.Matches(t, <-flooding, syscall.EPIPE)
		kit.Must(t, s.dst.Close())
		kit.Must(t, <-discarding)
	})
}

func TestCopyLeavesNothingAfterManyRounds(t *testing.T) {
	overEachStretch(t, func(t *testing.T, s stretch, copying func() (int64, error)) {
		kit.LeavesNothing(t, 20, func() {
			kit.Send(t, s.in, "data")
			for copied := int64(0); copied < 4; {
				kit.Must(t, s.src.SetReadDeadline(time.Now().Add(time.Millisecond)))
				n, err := copying()
				kit.TimedOut(t, err)
				copied += n
			}
			kit.Expect(t, s.out, "data")
		})
	})
}

// Both errors of an end that was closed here: package os has the one, net the other.
func TestPipeThatIsClosedIsSoToOsAndNet(t *testing.T) {
	kit.Story(t)
	r, w := kit.Pipe(t)
	raw := map[string]syscall.RawConn{}
	for what, end := range map[string]syscall.Conn{"reader": r, "writer": w} {
		c, err := end.SyscallConn()
		kit.Must(t, err)
		raw[what] = c
	}
	kit.Must(t, errors.Join(r.Close(), w.Close()))
	calls := map[string]func() error{
		"Read":             func() error { _, err := r.Read(make([]byte, 1)); return err },
		"Read of nothing":  func() error { _, err := r.Read(nil); return err },
		"WriteTo":          func() error { _, err := r.WriteTo(io.Discard); return err },
		"SetReadDeadline":  func() error { return r.SetReadDeadline(time.Time{}) },
		"reader's Close":   r.Close,
		"reader's File":    func() error { _, err := r.File(); return err },
		"reader's Inherit": func() error { return ipc.Inherit(new(exec.Cmd), "x", r) },
		"Write":            func() error { _, err := w.Write([]byte("x")); return err },
		"ReadFrom":         func() error { _, err := w.ReadFrom(strings.NewReader("x")); return err },
		"SetWriteDeadline": func() error { return w.SetWriteDeadline(time.Time{}) },
		"writer's Close":   w.Close,
		"writer's File":    func() error { _, err := w.File(); return err },
		"writer's Inherit": func() error { return ipc.Inherit(new(exec.Cmd), "x", w) },
	}
	for what, c := range raw {
		calls[what+"'s Control"] = func() error { return c.Control(func(uintptr) {}) }
		calls[what+"'s raw Read"] = func() error { return c.Read(func(uintptr) bool { return true }) }
		calls[what+"'s raw Write"] = func() error { return c.Write(func(uintptr) bool { return true }) }
	}
	for what, call := range calls {
		err := call()
		if runtime.GOOS == "windows" && errors.Is(err, errors.ErrUnsupported) {
			continue // the direction that a one-way pipe has not
		}
		if !errors.Is(err, net.ErrClosed) || !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s of a closed end gives %v", what, err)
		}
	}

	// Those that wait at the time too.
	r, w = kit.Pipe(t)
	reading := kit.BeginRead(r)
	kit.AwaitParked(t, "(*PipeReader).Read", 1)
	kit.Must(t, r.Close())
	kit.Matches(t, <-reading, net.ErrClosed, os.ErrClosed)
	r, w = kit.Pipe(t)
	writing := kit.Begin(func() error { _, err := w.Write(make([]byte, kit.TooMuch)); return err })
	kit.AwaitParked(t, "(*PipeWriter).Write", 1)
	kit.Must(t, w.Close())
	kit.Matches(t, <-writing, net.ErrClosed, os.ErrClosed)
	kit.Must(t, r.Close())
}
