//go:build unix

// FIFOs.
package ipc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

func init() {
	roles["mkfifo"] = childMakesFIFOs
	roles["openfifo"] = childOpensFIFO
}

// ---------------------------------------------------------------------------
// Making FIFOs

func TestMkfifoModeIsExact(t *testing.T) {
	underEachUmask(t, func(t *testing.T, dir string, start func(role string) *child) {
		makeFIFO(t, dir) // or skip
		start("mkfifo").end()
		must(t, os.Remove(dir+"/fifo"))
	})
}

// childMakesFIFOs sets its umask and makes FIFOs of every mode.
func childMakesFIFOs(_ *parent, args []string) error {
	mask := sure(strconv.ParseUint(args[0], 8, 32))
	syscall.Umask(int(mask))
	for _, dir := range args[1:] {
		for perm := fs.FileMode(0); perm <= 0o777; perm += 0o13 {
			path := dir + "/made"
			if err := ipc.Mkfifo(path, perm); err != nil {
				return err
			}
			st, err := os.Lstat(path)
			if err != nil {
				return err
			}
			if want := fs.ModeNamedPipe | perm; st.Mode() != want {
				return fmt.Errorf("the mode of the FIFO is %v, want %v", st.Mode(), want)
			}
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	if now := syscall.Umask(0); now != int(mask) {
		return fmt.Errorf("the umask became %o", now)
	}
	return nil
}

func TestMkfifoTouchesNothingThatIsThere(t *testing.T) {
	story(t)
	dir := tempDir(t)
	fifo := makeFIFO(t, dir)
	file, link := dir+"/file", dir+"/link"
	must(t, os.WriteFile(file, []byte("content"), 0o640))
	must(t, os.Symlink(dir+"/nothing", link))
	defer os.Remove(file)
	defer os.Remove(link)
	for _, path := range []string{fifo, file, link, dir} {
		before, err := os.Lstat(path)
		must(t, err)
		err = ipc.Mkfifo(path, 0o666)
		matches(t, err, fs.ErrExist)
		isPipeError(t, err, "mkfifo")
		if err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("%q does not name %s", err, path)
		}
		after, err := os.Lstat(path)
		must(t, err)
		if !os.SameFile(before, after) || after.Mode() != before.Mode() || after.Size() != before.Size() {
			t.Errorf("%s was %v and is %v", path, before, after)
		}
	}
	isGone(t, dir+"/nothing")
}

func TestMkfifoRefusesWhatCannotBe(t *testing.T) {
	story(t)
	dir := tempDir(t)
	makeFIFO(t, dir) // or skip
	for path, target := range map[string]error{
		dir + "/missing/fifo":                  fs.ErrNotExist,
		dir + "/fifo/fifo":                     syscall.ENOTDIR,
		"":                                     nil,
		"fi\x00fo":                             nil,
		dir + "/new/":                          nil,
		dir + "/" + strings.Repeat("n", 256):   ipc.ErrNameTooLong,
		"/" + strings.Repeat("folder/", 10000): ipc.ErrNameTooLong,
	} {
		err := ipc.Mkfifo(path, 0o600)
		if err == nil {
			t.Errorf("a FIFO at %.30q is made", path)
		}
		isPipeError(t, err, "mkfifo")
		if target != nil {
			matches(t, err, target)
		}
	}
	for _, perm := range []fs.FileMode{fs.ModeSetuid | 0o600, fs.ModeSticky | 0o600, 0o1000, fs.ModeNamedPipe | 0o600} {
		err := ipc.Mkfifo(dir+"/new", perm)
		if err == nil || !strings.Contains(err.Error(), "perm") {
			t.Errorf("mode %v: %v", perm, err)
		}
		isPipeError(t, err, "mkfifo")
	}
	if names := namesIn(t, dir); len(names) != 1 {
		t.Errorf("there are %q", names)
	}
}

// ---------------------------------------------------------------------------
// Opening FIFOs

// A waiting is how the ends of a FIFO wait for each other.
type waiting bool

const (
	polled  waiting = false // as on this system
	napping waiting = true  // as on systems whose poller does not serve FIFOs
)

// overEachWaiting tells a story over each way of waiting.
func overEachWaiting(t *testing.T, tell func(t *testing.T, w waiting, path string)) {
	t.Run("Polled", func(t *testing.T) { story(t); tell(t, polled, makeFIFO(t, tempDir(t))) })
	t.Run("Napping", func(t *testing.T) { story(t); tell(t, napping, makeFIFO(t, tempDir(t))) })
}

func (w waiting) openReader(ctx context.Context, path string) (*ipc.PipeReader, error) {
	r, err := ipc.OpenFIFOReader(ctx, path)
	if err == nil && w == napping {
		r.Nap()
	}
	return r, err
}

func (w waiting) openWriter(ctx context.Context, path string) (*ipc.PipeWriter, error) {
	p, err := ipc.OpenFIFOWriter(ctx, path)
	if err == nil && w == napping {
		p.Nap()
	}
	return p, err
}

// open opens both ends. The writer says something, without which FreeBSD does not
// tell the reader of it.
func (w waiting) open(t *testing.T, path string) (*ipc.PipeReader, *ipc.PipeWriter) {
	t.Helper()
	opened := make(chan *ipc.PipeWriter, 1)
	opening := begin(func() error {
		p, err := w.openWriter(t.Context(), path)
		opened <- p
		if err == nil {
			_, err = p.Write([]byte("."))
		}
		return err
	})
	r, err := w.openReader(t.Context(), path)
	must(t, errors.Join(err, <-opening))
	p := <-opened
	t.Cleanup(func() { r.Close(); p.Close() })
	expect(t, r, ".")
	return r, p
}

func TestFIFOCarriesWhatIsWritten(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		r, p := w.open(t, path)
		send(t, p, "one")
		send(t, p, "two")
		expect(t, r, "onet")
		expect(t, r, "wo")
		reading := begin(func() error { _, err := io.ReadFull(r, make([]byte, 5)); return err })
		awaitParked(t, "(*PipeReader).Read", 1)
		send(t, p, "three")
		must(t, <-reading)
		send(t, p, "four")
		must(t, p.Close())
		expect(t, r, "four")
		expectEOF(t, r)
	})
}

func TestFIFOThatIsFullLosesNothing(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		r, p := w.open(t, path)
		data := pattern(2<<20 + 99)
		writing := begin(func() error {
			if n, err := p.Write(data); n != len(data) || err != nil {
				return fmt.Errorf("wrote %d, %w", n, err)
			}
			return p.Close()
		})
		awaitParked(t, "(*PipeWriter).Write", 1) // it is full
		got, err := io.ReadAll(struct{ io.Reader }{r})
		must(t, err)
		must(t, <-writing)
		if !bytes.Equal(got, data) {
			t.Errorf("of %d bytes %d arrive, or others", len(data), len(got))
		}
	})
}

func TestFIFOReaderWaitsForAWriter(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		opening := begin(func() error {
			r, err := w.openReader(t.Context(), path)
			if err != nil {
				return err
			}
			got, err := io.ReadAll(r)
			if string(got) != "late but here" {
				err = fmt.Errorf("read %q, %w", got, err)
			}
			return errors.Join(err, r.Close())
		})
		awaitParked(t, "OpenFIFOReader", 1)
		p, err := w.openWriter(t.Context(), path)
		must(t, err)
		send(t, p, "late but here")
		must(t, p.Close())
		must(t, <-opening)
	})
}

func TestFIFOWriterWaitsForAReader(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		opening := begin(func() error {
			p, err := w.openWriter(t.Context(), path)
			if err != nil {
				return err
			}
			_, err = io.WriteString(p, "early")
			return errors.Join(err, p.Close())
		})
		awaitParked(t, "OpenFIFOWriter", 1)
		r, err := w.openReader(t.Context(), path)
		must(t, err)
		defer r.Close()
		must(t, <-opening)
		expect(t, r, "early")
		expectEOF(t, r)
	})
}

func TestFIFOReaderNoticesASilentWriter(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		opened := make(chan *ipc.PipeReader, 1)
		opening := begin(func() error {
			r, err := w.openReader(t.Context(), path)
			opened <- r
			return err
		})
		awaitParked(t, "OpenFIFOReader", 1)
		p, err := w.openWriter(t.Context(), path)
		must(t, err)
		must(t, <-opening) // nothing was written yet
		r := <-opened
		send(t, p, "at last")
		expect(t, r, "at last")
		must(t, p.Close())
		expectEOF(t, r)
		must(t, r.Close())
	})
}

// Two processes open a FIFO each way in the same order, as they must: the one that
// reads the first FIFO waits for its writer, who goes on to wait for his.
func TestFIFOReaderAndWriterDoNotWaitForEachOther(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, one string) {
		other := makeFIFO(t, tempDir(t))
		type ends struct {
			r *ipc.PipeReader
			w *ipc.PipeWriter
		}
		sides := [2]chan ends{make(chan ends, 1), make(chan ends, 1)}
		first := begin(func() error {
			r, err := w.openReader(t.Context(), one)
			if err != nil {
				return err
			}
			p, err := w.openWriter(t.Context(), other)
			sides[0] <- ends{r, p}
			return err
		})
		second := begin(func() error {
			p, err := w.openWriter(t.Context(), one)
			if err != nil {
				return err
			}
			r, err := w.openReader(t.Context(), other)
			sides[1] <- ends{r, p}
			return err
		})
		must(t, errors.Join(<-first, <-second))
		a, b := <-sides[0], <-sides[1]
		send(t, b.w, "to a")
		expect(t, a.r, "to a")
		send(t, a.w, "to b")
		expect(t, b.r, "to b")
		must(t, errors.Join(a.w.Close(), b.w.Close()))
		expectEOF(t, a.r)
		expectEOF(t, b.r)
		must(t, errors.Join(a.r.Close(), b.r.Close()))
	})
}

// openers open one side of a FIFO where the other side is missing.
var openers = map[string]func(ctx context.Context, path string) (io.Closer, error){
	"OpenFIFOReader": func(ctx context.Context, path string) (io.Closer, error) {
		r, err := ipc.OpenFIFOReader(ctx, path)
		if err != nil {
			return nil, err
		}
		return r, nil
	},
	"OpenFIFOWriter": func(ctx context.Context, path string) (io.Closer, error) {
		w, err := ipc.OpenFIFOWriter(ctx, path)
		if err != nil {
			return nil, err
		}
		return w, nil
	},
}

func TestOpenFIFOEndsWithTheContext(t *testing.T) {
	for name, open := range openers {
		t.Run(name, func(t *testing.T) {
			story(t)
			path := makeFIFO(t, tempDir(t))
			refused := func(err error) {
				t.Helper()
				isPipeError(t, err, "open")
				if err != nil && !strings.Contains(err.Error(), path) {
					t.Errorf("%q does not name the FIFO", err)
				}
			}

			ctx, cancel := context.WithCancel(t.Context())
			opening := begin(func() error { _, err := open(ctx, path); return err })
			awaitParked(t, name, 1)
			cancel()
			err := <-opening
			matches(t, err, context.Canceled)
			refused(err)
			_, err = open(ctx, path) // canceled before
			matches(t, err, context.Canceled)

			begun := time.Now()
			ctx, cancel = context.WithDeadline(t.Context(), begun.Add(brief))
			defer cancel()
			_, err = open(ctx, path)
			timedOut(t, err)
			matches(t, err, context.DeadlineExceeded)
			refused(err)
			if waited := time.Since(begun); waited < brief {
				t.Errorf("it gave up after %v, before %v", waited, brief)
			}
			_, err = open(ctx, path) // too late from the start
			timedOut(t, err)
		})
	}
}

func TestOpenFIFOContextHasNoSayAfterwards(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		ctx, cancel := context.WithCancel(t.Context())
		reader := make(chan *ipc.PipeReader, 1)
		opening := begin(func() error {
			r, err := w.openReader(ctx, path)
			reader <- r
			return err
		})
		p, err := w.openWriter(ctx, path)
		must(t, err)
		defer p.Close()
		send(t, p, "open")
		must(t, <-opening)
		r := <-reader
		defer r.Close()
		cancel()
		expect(t, r, "open")
		send(t, p, "still")
		expect(t, r, "still")
	})
}

func TestOpenFIFORefusesWhatIsNoFIFO(t *testing.T) {
	story(t)
	dir := openDir(t)
	fifo := makeFIFO(t, dir)
	file := dir + "/file"
	must(t, os.WriteFile(file, []byte("content"), 0o600))
	must(t, os.Symlink(fifo, dir+"/link"))
	must(t, os.Symlink(dir+"/nothing", dir+"/dangling"))
	listen(t, ipc.Path(dir+"/socket"))
	defer func() {
		for _, name := range []string{"file", "link", "dangling"} {
			must(t, os.Remove(dir+"/"+name))
		}
	}()
	// The other side is there, so that nothing but the refusal ends the call.
	both, err := os.OpenFile(fifo, os.O_RDWR, 0)
	must(t, err)
	defer both.Close()
	_, err = both.Write([]byte("x"))
	must(t, err)
	for name, open := range openers {
		for _, path := range []string{
			dir, file, dir + "/link", dir + "/dangling", dir + "/socket", "/dev/null",
			dir + "/nothing", dir + "/missing/fifo", "", "a\x00b", fifo + "/", strings.Repeat("/folder", 1000),
		} {
			end, err := open(t.Context(), path)
			if err == nil {
				t.Errorf("%s takes %.50q", name, path)
				end.Close()
			}
			isPipeError(t, err, "open")
		}
		_, err := open(t.Context(), dir+"/nothing")
		matches(t, err, fs.ErrNotExist)
	}
	if content, err := os.ReadFile(file); string(content) != "content" || err != nil {
		t.Errorf("the file now holds %q, %v", content, err)
	}
}

func TestFIFOInALinkedFolderIsOpened(t *testing.T) {
	story(t)
	dir := tempDir(t)
	fifo := makeFIFO(t, dir)
	link := t.TempDir() + "/link"
	must(t, os.Symlink(dir, link))
	both, err := os.OpenFile(fifo, os.O_RDWR, 0)
	must(t, err)
	defer both.Close()
	p, err := ipc.OpenFIFOWriter(t.Context(), link+"/fifo")
	must(t, err)
	defer p.Close()
	send(t, p, "by a detour")
	expect(t, both, "by a detour")
}

func TestOpenFIFOWriterNoticesThatItIsGone(t *testing.T) {
	story(t)
	path := makeFIFO(t, tempDir(t))
	opening := begin(func() error { _, err := ipc.OpenFIFOWriter(t.Context(), path); return err })
	awaitParked(t, "OpenFIFOWriter", 1)
	must(t, os.Remove(path))
	matches(t, <-opening, fs.ErrNotExist)
}

func TestFIFOOfAnotherUserIsRefused(t *testing.T) {
	story(t)
	needsRoot(t)
	path := makeFIFO(t, openDir(t))
	for _, side := range []string{"reader", "writer"} {
		c := startStranger(t, "openfifo", side, path)
		c.mustSay("permission denied")
		c.end()
	}
}

// childOpensFIFO opens one side of a FIFO and says how that went.
func childOpensFIFO(p *parent, args []string) error {
	var err error
	if args[0] == "reader" {
		_, err = ipc.OpenFIFOReader(context.Background(), args[1])
	} else {
		_, err = ipc.OpenFIFOWriter(context.Background(), args[1])
	}
	if errors.Is(err, os.ErrPermission) {
		p.say("permission denied")
		return nil
	}
	p.say("%v", err)
	return nil
}

func TestFIFOEndsWithItsLastWriter(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		r, first := w.open(t, path)
		second, err := w.openWriter(t.Context(), path)
		must(t, err)
		send(t, first, "of the first")
		must(t, first.Close())
		expect(t, r, "of the first")
		must(t, r.SetReadDeadline(time.Now().Add(brief)))
		_, err = r.Read(make([]byte, 1))
		timedOut(t, err) // the second could still write
		must(t, r.SetReadDeadline(time.Time{}))
		send(t, second, "of the second")
		expect(t, r, "of the second")
		reading := beginRead(r)
		awaitParked(t, "(*PipeReader).Read", 1)
		must(t, second.Close())
		if err := <-reading; err != io.EOF {
			t.Errorf("read ends with %v, want io.EOF", err)
		}
		expectEOF(t, r)

		third, err := w.openWriter(t.Context(), path) // and may come again
		must(t, err)
		send(t, third, "of the third")
		expect(t, r, "of the third")
		must(t, third.Close())
		expectEOF(t, r)
	})
}

func TestFIFOWithoutReader(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		r, p := w.open(t, path)
		writing := begin(func() error { _, err := p.Write(make([]byte, tooMuch)); return err })
		awaitParked(t, "(*PipeWriter).Write", 1)
		must(t, r.Close())
		matches(t, <-writing, syscall.EPIPE)
		_, err := p.Write([]byte("more"))
		matches(t, err, syscall.EPIPE)
		isPipeError(t, err, "write")
		if !strings.Contains(err.Error(), path) {
			t.Errorf("%q does not name the FIFO", err)
		}
	})
}

func TestFIFODeadlineAndCloseEndWaits(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		r, p := w.open(t, path)
		begun := time.Now()
		must(t, r.SetReadDeadline(begun.Add(brief)))
		_, err := r.Read(make([]byte, 1))
		timedOut(t, err)
		must(t, p.SetWriteDeadline(begun.Add(2*brief)))
		n, err := p.Write(make([]byte, tooMuch))
		timedOut(t, err)
		if waited := time.Since(begun); waited < 2*brief {
			t.Errorf("write gave up after %v, before %v", waited, 2*brief)
		}
		must(t, errors.Join(r.SetReadDeadline(time.Time{}), p.SetWriteDeadline(time.Time{})))
		if got, err := io.CopyN(io.Discard, struct{ io.Reader }{r}, int64(n)); got != int64(n) || err != nil {
			t.Errorf("of %d bytes %d arrive, %v", n, got, err)
		}

		reading := beginRead(r)
		awaitParked(t, "(*PipeReader).Read", 1)
		must(t, r.SetReadDeadline(time.Now().Add(-time.Second))) // ends one that waits already
		timedOut(t, <-reading)
		must(t, r.SetReadDeadline(time.Time{}))

		reading = beginRead(r)
		awaitParked(t, "(*PipeReader).Read", 1)
		must(t, r.Close())
		matches(t, <-reading, net.ErrClosed)
		matches(t, r.Close(), net.ErrClosed)

		other, err := os.OpenFile(path, os.O_RDWR, 0) // nobody reads it
		must(t, err)
		defer other.Close()
		writing := begin(func() error { _, err := p.Write(make([]byte, tooMuch)); return err })
		awaitParked(t, "(*PipeWriter).Write", 1)
		must(t, p.Close())
		matches(t, <-writing, net.ErrClosed)
	})
}

// What was in the FIFO before the reader came is delivered in whole by every way
// of reading.
func TestFIFOReaderKeepsWhatItSawWhenOpened(t *testing.T) {
	for way, read := range map[string]func(r *ipc.PipeReader) ([]byte, error){
		"Read": func(r *ipc.PipeReader) ([]byte, error) {
			return io.ReadAll(struct{ io.Reader }{r})
		},
		"WriteTo": func(r *ipc.PipeReader) ([]byte, error) {
			var got bytes.Buffer
			n, err := r.WriteTo(&got)
			if n != int64(got.Len()) {
				err = fmt.Errorf("copied %d of %d, %w", n, got.Len(), err)
			}
			return got.Bytes(), err
		},
		"Splice": func(r *ipc.PipeReader) ([]byte, error) {
			end, w, err := ipc.Pipe()
			if err != nil {
				return nil, err
			}
			defer end.Close()
			n, err := r.WriteTo(w)
			w.Close()
			got, e := io.ReadAll(end)
			if n != int64(len(got)) {
				err = fmt.Errorf("copied %d of %d, %w", n, len(got), err)
			}
			return got, errors.Join(err, e)
		},
		"ReadFrom": func(r *ipc.PipeReader) ([]byte, error) {
			a, b, err := ipc.Pair()
			if err != nil {
				return nil, err
			}
			defer b.Close()
			n, err := a.ReadFrom(&io.LimitedReader{R: r, N: 100})
			a.Close()
			got, e := io.ReadAll(b)
			if n != int64(len(got)) {
				err = fmt.Errorf("copied %d of %d, %w", n, len(got), err)
			}
			return got, errors.Join(err, e)
		},
	} {
		t.Run(way, func(t *testing.T) {
			overEachWaiting(t, func(t *testing.T, w waiting, path string) {
				both, err := os.OpenFile(path, os.O_RDWR, 0)
				must(t, err)
				_, err = both.Write([]byte("written before"))
				must(t, err)
				r, err := w.openReader(t.Context(), path)
				must(t, err)
				defer r.Close()
				must(t, both.Close())
				got, err := read(r)
				if string(got) != "written before" || err != nil {
					t.Errorf("read %q, %v", got, err)
				}
			})
		})
	}
}

func TestOpenFIFOLeavesNothing(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		round := func() {
			r, p := w.open(t, path)
			must(t, p.Close())
			expectEOF(t, r)
			must(t, r.Close())
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			for _, open := range openers {
				_, err := open(ctx, path)
				timedOut(t, err)
			}
			_, err := ipc.OpenFIFOReader(t.Context(), path+"/none")
			matches(t, err, syscall.ENOTDIR)
		}
		round()
		before := openDescriptors()
		for range 50 {
			round()
		}
		must(t, noMoreDescriptors(before))
	})
}

// ---------------------------------------------------------------------------
// FIFOs and other programs

// A program that is not this one, started with the FIFO as its $0.
func shell(t *testing.T, script, path string) (cmd *exec.Cmd, out *bytes.Buffer) {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("there is no shell")
	}
	out = new(bytes.Buffer)
	cmd = exec.Command(sh, "-c", script, path)
	cmd.Stdout, cmd.Stderr = out, out
	must(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return cmd, out
}

func TestFIFOWriterIsAShell(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		for _, shellFirst := range []bool{true, false} {
			var cmd *exec.Cmd
			var out *bytes.Buffer
			if shellFirst {
				cmd, out = shell(t, `echo hello > "$0"`, path)
			}
			var got []byte
			reading := begin(func() error {
				r, err := w.openReader(t.Context(), path)
				if err != nil {
					return err
				}
				defer r.Close()
				got, err = io.ReadAll(r)
				return err
			})
			if !shellFirst {
				awaitParked(t, "OpenFIFOReader", 1)
				cmd, out = shell(t, `echo hello > "$0"`, path)
			}
			must(t, <-reading)
			if string(got) != "hello\n" {
				t.Errorf("read %q", got)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("the shell: %v: %s", err, out)
			}
		}
	})
}

func TestFIFOWritersAreManyShells(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		cmd, out := shell(t, `for i in 1 2 3 4 5; do echo "$i" > "$0"; done`, path)
		r, err := w.openReader(t.Context(), path)
		must(t, err)
		defer r.Close()
		must(t, r.SetReadDeadline(time.Now().Add(soon)))
		var got []byte
		for p := make([]byte, 100); string(got) != "1\n2\n3\n4\n5\n"; {
			n, err := r.Read(p)
			got = append(got, p[:n]...)
			if err == io.EOF { // between one echo and the next
				time.Sleep(time.Millisecond)
				continue
			}
			if err != nil {
				t.Fatalf("after %q: %v", got, err)
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the shell: %v: %s", err, out)
		}
	})
}

func TestFIFOReaderIsCat(t *testing.T) {
	if _, err := exec.LookPath("cat"); err != nil {
		t.Skip("there is no cat")
	}
	data := bytes.Repeat([]byte("all of it\n"), 30<<10)
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		for _, catFirst := range []bool{true, false} {
			var cmd *exec.Cmd
			var out *bytes.Buffer
			if catFirst {
				cmd, out = shell(t, `cat "$0"`, path)
			}
			writing := begin(func() error {
				p, err := w.openWriter(t.Context(), path)
				if err != nil {
					return err
				}
				_, err = p.Write(data)
				return errors.Join(err, p.Close())
			})
			if !catFirst {
				awaitParked(t, "OpenFIFOWriter", 1)
				cmd, out = shell(t, `cat "$0"`, path)
			}
			must(t, <-writing)
			must(t, cmd.Wait())
			if !bytes.Equal(out.Bytes(), data) {
				t.Errorf("of %d bytes cat reads %d, or others", len(data), out.Len())
			}
		}
	})
}

// ---------------------------------------------------------------------------
// Descriptors of pipes

func TestPipeDescriptorsAreCloseOnExec(t *testing.T) {
	story(t)
	before := descriptors()
	r, w := pipe(t)
	f, err := r.File()
	kept(t, f, err)
	adopted, err := ipc.FileReader(f)
	kept(t, adopted, err)
	polled.open(t, makeFIFO(t, tempDir(t)))
	send(t, w, "joined the poller or not")
	if n := areCloseOnExec(t, before); n < 6 {
		t.Fatalf("only %d new descriptors", n)
	}
}

func TestPipeThatWasDroppedIsCollected(t *testing.T) {
	areCollected(t, func() {
		r, w, err := ipc.Pipe()
		must(t, err)
		must(t, r.SetReadDeadline(time.Now().Add(time.Hour))) // one that joined the poller, one that did not
		_, _ = r, w
	})
}

func TestFileReaderAndWriterAdoptBlockingPipes(t *testing.T) {
	story(t)
	var p [2]int
	must(t, syscall.Pipe(p[:])) // blocking, as C programs make it
	rf, wf := os.NewFile(uintptr(p[0]), "read end"), os.NewFile(uintptr(p[1]), "write end")
	defer rf.Close()
	defer wf.Close()
	if !blocks(t, rf) || !blocks(t, wf) {
		t.Fatal("the pipe does not block: nothing is tested")
	}
	// FreeBSD's are two-way.
	if err := adopters["FileWriter"](rf); err != nil && !blocks(t, rf) {
		t.Error("a file that was refused does not block any more")
	}
	if err := adopters["FileReader"](wf); err != nil && !blocks(t, wf) {
		t.Error("a file that was refused does not block any more")
	}
	r, err := ipc.FileReader(rf)
	must(t, err)
	defer r.Close()
	w, err := ipc.FileWriter(wf)
	must(t, err)
	defer w.Close()
	isStillOpen(t, "the read end", rf)
	isStillOpen(t, "the write end", wf)
	must(t, errors.Join(rf.Close(), wf.Close()))
	must(t, r.SetReadDeadline(time.Now().Add(brief)))
	_, err = r.Read(make([]byte, 1))
	timedOut(t, err)
	must(t, r.SetReadDeadline(time.Time{}))
	reading := begin(func() error { _, err := io.ReadFull(r, make([]byte, 4)); return err })
	awaitParked(t, "(*PipeReader).Read", 1)
	send(t, w, "here")
	must(t, <-reading)
	must(t, w.Close())
	expectEOF(t, r)
}

func TestFileReaderAndWriterAdoptOtherPipes(t *testing.T) {
	story(t)
	r, w := osPipe(t)
	fifo, err := os.OpenFile(makeFIFO(t, tempDir(t)), os.O_RDWR, 0)
	must(t, err)
	for _, files := range [][2]*os.File{{r, w}, {fifo, fifo}} {
		ar, err := ipc.FileReader(files[0])
		must(t, err)
		aw, err := ipc.FileWriter(files[1])
		must(t, err)
		send(t, aw, "adopted")
		expect(t, ar, "adopted")
		send(t, files[1], "the owner's") // both are the same end
		expect(t, ar, "the owner's")
		send(t, aw, "adopted")
		expect(t, files[0], "adopted")
		must(t, errors.Join(ar.Close(), aw.Close()))
		for _, f := range files {
			isStillOpen(t, "the owner's file", f)
		}
	}
	must(t, fifo.Close())
}

func TestFileReaderAndWriterRefuseSocketsAndDevices(t *testing.T) {
	story(t)
	c, _ := pair(t)
	socket, err := c.File()
	must(t, err)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(t, err)
	dir, err := os.Open("/")
	must(t, err)
	for _, f := range []*os.File{socket, null, dir} {
		before := blocks(t, f)
		for op, adopt := range adopters {
			err := adopt(f)
			if err == nil {
				t.Errorf("%s adopts %s", op, f.Name())
			}
			isPipeError(t, err, "file")
			matches(t, err, errors.ErrUnsupported)
			isStillOpen(t, f.Name(), f)
			if blocks(t, f) != before {
				t.Error("a file that was refused has another mode")
			}
		}
		must(t, f.Close())
	}
}

func TestPipeSyscallConnWaits(t *testing.T) {
	story(t)
	r, w := pipe(t)
	raw, err := r.SyscallConn()
	must(t, err)
	data := pattern(100 << 10)
	writing := begin(func() error {
		_, err := w.Write(data)
		return errors.Join(err, w.Close())
	})
	var got []byte
	must(t, raw.Read(func(fd uintptr) bool {
		p := make([]byte, 1<<20)
		for {
			n, err := syscall.Read(int(fd), p)
			if err == syscall.EAGAIN {
				return false
			}
			if n <= 0 {
				return true
			}
			got = append(got, p[:n]...)
		}
	}))
	must(t, <-writing)
	if !bytes.Equal(got, data) {
		t.Errorf("of %d bytes %d arrive, or others", len(data), len(got))
	}
}

// ---------------------------------------------------------------------------
// A reader that outlives its writers

func TestFIFOThatIsKeptOpenOutlivesItsWriters(t *testing.T) {
	story(t)
	path := makeFIFO(t, tempDir(t))
	r, err := ipc.FIFOConfig{KeepOpen: true}.OpenReader(t.Context(), path) // without a writer
	must(t, err)
	defer r.Close()
	must(t, r.SetReadDeadline(time.Now().Add(brief)))
	_, err = r.Read(make([]byte, 1))
	timedOut(t, err)
	must(t, r.SetReadDeadline(time.Time{}))
	for i := range 5 {
		line := fmt.Sprintln("line", i)
		w, err := ipc.OpenFIFOWriter(t.Context(), path)
		must(t, err)
		reading := begin(func() error { expect(t, r, line); return nil })
		send(t, w, line)
		must(t, w.Close())
		must(t, <-reading)
	}
	must(t, r.SetReadDeadline(time.Now().Add(brief)))
	_, err = r.Read(make([]byte, 1)) // they are all gone, and it is no end
	timedOut(t, err)
	must(t, r.SetReadDeadline(time.Time{}))
	waiting := beginRead(r)
	must(t, r.Close())
	matches(t, <-waiting, net.ErrClosed)

	// With it, its own writing end is gone: a writer finds no reader.
	ctx, cancel := context.WithTimeout(t.Context(), brief)
	defer cancel()
	_, err = ipc.OpenFIFOWriter(ctx, path)
	timedOut(t, err)
	ctx, cancel = context.WithTimeout(t.Context(), brief) // and a reader no writer
	defer cancel()
	_, err = ipc.OpenFIFOReader(ctx, path)
	timedOut(t, err)
	runtime.KeepAlive(r)
}

func TestFIFOThatIsKeptOpenServesAShell(t *testing.T) {
	story(t)
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("there is no shell")
	}
	path := makeFIFO(t, openDir(t))
	r, err := ipc.FIFOConfig{KeepOpen: true}.OpenReader(t.Context(), path)
	must(t, err)
	defer r.Close()
	for _, word := range []string{"reload", "stop"} {
		cmd := exec.Command(shell, "-c", `echo "$1" >"$2"`, shell, word, path)
		must(t, cmd.Start())
		expect(t, r, word+"\n")
		must(t, cmd.Wait())
	}
}

func TestFIFOThatIsKeptOpenIsAFIFO(t *testing.T) {
	story(t)
	dir := tempDir(t)
	path := makeFIFO(t, dir)
	link, file := dir+"/link", dir+"/file"
	must(t, os.Symlink(path, link))
	defer os.Remove(link)
	must(t, os.WriteFile(file, nil, 0o600))
	defer os.Remove(file)
	kept := ipc.FIFOConfig{KeepOpen: true}
	for _, wrong := range []string{link, file, dir, dir + "/nothing"} {
		if r, err := kept.OpenReader(t.Context(), wrong); err == nil {
			r.Close()
			t.Errorf("%s is opened", wrong)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := kept.OpenReader(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}
