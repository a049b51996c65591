//go:build unix

// Pipes and FIFOs as Unix has them: names in the file system, other programs, descriptors.
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
	"github.com/interprocess-go/ipc/internal/kit"
)

func init() {
	kit.Roles["mkfifo"] = childMakesFIFOs
	kit.Roles["openfifo"] = childOpensFIFO
}

// ---------------------------------------------------------------------------
// Making FIFOs

func TestMkfifoModeIsExact(t *testing.T) {
	underEachUmask(t, func(t *testing.T, dir string, start func(role string) *kit.Child) {
		kit.MakeFIFO(t, dir) // or skip
		start("mkfifo").End()
		kit.Must(t, os.Remove(dir+"/fifo"))
	})
}

// childMakesFIFOs sets its umask and makes FIFOs of every mode.
func childMakesFIFOs(_ *kit.Parent, args []string) error {
	mask := kit.Sure(strconv.ParseUint(args[0], 8, 32))
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
	kit.Story(t)
	dir := kit.TempDir(t)
	fifo := kit.MakeFIFO(t, dir)
	file, link := dir+"/file", dir+"/link"
	kit.Must(t, os.WriteFile(file, []byte("content"), 0o640))
	kit.Must(t, os.Symlink(dir+"/nothing", link))
	defer os.Remove(file)
	defer os.Remove(link)
	for _, path := range []string{fifo, file, link, dir} {
		before, err := os.Lstat(path)
		kit.Must(t, err)
		err = ipc.Mkfifo(path, 0o666)
		kit.Matches(t, err, fs.ErrExist)
		kit.IsPipeError(t, err, "mkfifo")
		if err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("%q does not name %s", err, path)
		}
		after, err := os.Lstat(path)
		kit.Must(t, err)
		if !os.SameFile(before, after) || after.Mode() != before.Mode() || after.Size() != before.Size() {
			t.Errorf("%s was %v and is %v", path, before, after)
		}
	}
	kit.IsGone(t, dir+"/nothing")
}

func TestMkfifoRefusesWhatCannotBe(t *testing.T) {
	kit.Story(t)
	dir := kit.TempDir(t)
	kit.MakeFIFO(t, dir) // or skip
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
		kit.IsPipeError(t, err, "mkfifo")
		if target != nil {
			kit.Matches(t, err, target)
		}
	}
	for _, perm := range []fs.FileMode{fs.ModeSetuid | 0o600, fs.ModeSticky | 0o600, 0o1000, fs.ModeNamedPipe | 0o600} {
		err := ipc.Mkfifo(dir+"/new", perm)
		if err == nil || !strings.Contains(err.Error(), "perm") {
			t.Errorf("mode %v: %v", perm, err)
		}
		kit.IsPipeError(t, err, "mkfifo")
	}
	if names := kit.NamesIn(t, dir); len(names) != 1 {
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
	t.Run("Polled", func(t *testing.T) { kit.Story(t); tell(t, polled, kit.MakeFIFO(t, kit.TempDir(t))) })
	t.Run("Napping", func(t *testing.T) { kit.Story(t); tell(t, napping, kit.MakeFIFO(t, kit.TempDir(t))) })
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
	opening := kit.Begin(func() error {
		p, err := w.openWriter(t.Context(), path)
		opened <- p
		if err == nil {
			_, err = p.Write([]byte("."))
		}
		return err
	})
	r, err := w.openReader(t.Context(), path)
	kit.Must(t, errors.Join(err, <-opening))
	p := <-opened
	t.Cleanup(func() { r.Close(); p.Close() })
	kit.Expect(t, r, ".")
	return r, p
}

func TestFIFOCarriesWhatIsWritten(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		r, p := w.open(t, path)
		kit.Send(t, p, "one")
		kit.Send(t, p, "two")
		kit.Expect(t, r, "onet")
		kit.Expect(t, r, "wo")
		reading := kit.Begin(func() error { _, err := io.ReadFull(r, make([]byte, 5)); return err })
		kit.AwaitParked(t, "(*PipeReader).Read", 1)
		kit.Send(t, p, "three")
		kit.Must(t, <-reading)
		kit.Send(t, p, "four")
		kit.Must(t, p.Close())
		kit.Expect(t, r, "four")
		kit.ExpectEOF(t, r)
	})
}

func TestFIFOThatIsFullLosesNothing(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		r, p := w.open(t, path)
		data := kit.Pattern(2<<20 + 99)
		writing := kit.Begin(func() error {
			if n, err := p.Write(data); n != len(data) || err != nil {
				return fmt.Errorf("wrote %d, %w", n, err)
			}
			return p.Close()
		})
		kit.AwaitParked(t, "(*PipeWriter).Write", 1) // it is full
		got, err := io.ReadAll(struct{ io.Reader }{r})
		kit.Must(t, err)
		kit.Must(t, <-writing)
		if !bytes.Equal(got, data) {
			t.Errorf("of %d bytes %d arrive, or others", len(data), len(got))
		}
	})
}

func TestFIFOReaderWaitsForAWriter(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		opening := kit.Begin(func() error {
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
		kit.AwaitParked(t, "OpenFIFOReader", 1)
		p, err := w.openWriter(t.Context(), path)
		kit.Must(t, err)
		kit.Send(t, p, "late but here")
		kit.Must(t, p.Close())
		kit.Must(t, <-opening)
	})
}

func TestFIFOWriterWaitsForAReader(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		opening := kit.Begin(func() error {
			p, err := w.openWriter(t.Context(), path)
			if err != nil {
				return err
			}
			_, err = io.WriteString(p, "early")
			return errors.Join(err, p.Close())
		})
		kit.AwaitParked(t, "OpenFIFOWriter", 1)
		r, err := w.openReader(t.Context(), path)
		kit.Must(t, err)
		defer r.Close()
		kit.Must(t, <-opening)
		kit.Expect(t, r, "early")
		kit.ExpectEOF(t, r)
	})
}

func TestFIFOReaderNoticesASilentWriter(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		opened := make(chan *ipc.PipeReader, 1)
		opening := kit.Begin(func() error {
			r, err := w.openReader(t.Context(), path)
			opened <- r
			return err
		})
		kit.AwaitParked(t, "OpenFIFOReader", 1)
		p, err := w.openWriter(t.Context(), path)
		kit.Must(t, err)
		kit.Must(t, <-opening) // nothing was written yet
		r := <-opened
		kit.Send(t, p, "at last")
		kit.Expect(t, r, "at last")
		kit.Must(t, p.Close())
		kit.ExpectEOF(t, r)
		kit.Must(t, r.Close())
	})
}

// Two processes open a FIFO each way in the same order, as they must: the one that
// reads the first FIFO waits for its writer, who goes on to wait for his.
func TestFIFOReaderAndWriterDoNotWaitForEachOther(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, one string) {
		other := kit.MakeFIFO(t, kit.TempDir(t))
		type ends struct {
			r *ipc.PipeReader
			w *ipc.PipeWriter
		}
		sides := [2]chan ends{make(chan ends, 1), make(chan ends, 1)}
		first := kit.Begin(func() error {
			r, err := w.openReader(t.Context(), one)
			if err != nil {
				return err
			}
			p, err := w.openWriter(t.Context(), other)
			sides[0] <- ends{r, p}
			return err
		})
		second := kit.Begin(func() error {
			p, err := w.openWriter(t.Context(), one)
			if err != nil {
				return err
			}
			r, err := w.openReader(t.Context(), other)
			sides[1] <- ends{r, p}
			return err
		})
		kit.Must(t, errors.Join(<-first, <-second))
		a, b := <-sides[0], <-sides[1]
		kit.Send(t, b.w, "to a")
		kit.Expect(t, a.r, "to a")
		kit.Send(t, a.w, "to b")
		kit.Expect(t, b.r, "to b")
		kit.Must(t, errors.Join(a.w.Close(), b.w.Close()))
		kit.ExpectEOF(t, a.r)
		kit.ExpectEOF(t, b.r)
		kit.Must(t, errors.Join(a.r.Close(), b.r.Close()))
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
			kit.Story(t)
			path := kit.MakeFIFO(t, kit.TempDir(t))
			refused := func(err error) {
				t.Helper()
				kit.IsPipeError(t, err, "open")
				if err != nil && !strings.Contains(err.Error(), path) {
					t.Errorf("%q does not name the FIFO", err)
				}
			}

			ctx, cancel := context.WithCancel(t.Context())
			opening := kit.Begin(func() error { _, err := open(ctx, path); return err })
			kit.AwaitParked(t, name, 1)
			cancel()
			err := <-opening
			kit.Matches(t, err, context.Canceled)
			refused(err)
			_, err = open(ctx, path) // canceled before
			kit.Matches(t, err, context.Canceled)

			begun := time.Now()
			ctx, cancel = context.WithDeadline(t.Context(), begun.Add(kit.Brief))
			defer cancel()
			_, err = open(ctx, path)
			kit.TimedOut(t, err)
			kit.Matches(t, err, context.DeadlineExceeded)
			refused(err)
			if waited := time.Since(begun); waited < kit.Brief {
				t.Errorf("it gave up after %v, before %v", waited, kit.Brief)
			}
			_, err = open(ctx, path) // too late from the start
			kit.TimedOut(t, err)
		})
	}
}

func TestOpenFIFOContextHasNoSayAfterwards(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		ctx, cancel := context.WithCancel(t.Context())
		reader := make(chan *ipc.PipeReader, 1)
		opening := kit.Begin(func() error {
			r, err := w.openReader(ctx, path)
			reader <- r
			return err
		})
		p, err := w.openWriter(ctx, path)
		kit.Must(t, err)
		defer p.Close()
		kit.Send(t, p, "open")
		kit.Must(t, <-opening)
		r := <-reader
		defer r.Close()
		cancel()
		kit.Expect(t, r, "open")
		kit.Send(t, p, "still")
		kit.Expect(t, r, "still")
	})
}

func TestOpenFIFORefusesWhatIsNoFIFO(t *testing.T) {
	kit.Story(t)
	dir := kit.OpenDir(t)
	fifo := kit.MakeFIFO(t, dir)
	file := dir + "/file"
	kit.Must(t, os.WriteFile(file, []byte("content"), 0o600))
	kit.Must(t, os.Symlink(fifo, dir+"/link"))
	kit.Must(t, os.Symlink(dir+"/nothing", dir+"/dangling"))
	kit.Listen(t, ipc.Path(dir+"/socket"))
	defer func() {
		for _, name := range []string{"file", "link", "dangling"} {
			kit.Must(t, os.Remove(dir+"/"+name))
		}
	}()
	// The other side is there, so that nothing but the refusal ends the call.
	both, err := os.OpenFile(fifo, os.O_RDWR, 0)
	kit.Must(t, err)
	defer both.Close()
	_, err = both.Write([]byte("x"))
	kit.Must(t, err)
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
			kit.IsPipeError(t, err, "open")
		}
		_, err := open(t.Context(), dir+"/nothing")
		kit.Matches(t, err, fs.ErrNotExist)
	}
	if content, err := os.ReadFile(file); string(content) != "content" || err != nil {
		t.Errorf("the file now holds %q, %v", content, err)
	}
}

func TestFIFOInALinkedFolderIsOpened(t *testing.T) {
	kit.Story(t)
	dir := kit.TempDir(t)
	fifo := kit.MakeFIFO(t, dir)
	link := t.TempDir() + "/link"
	kit.Must(t, os.Symlink(dir, link))
	both, err := os.OpenFile(fifo, os.O_RDWR, 0)
	kit.Must(t, err)
	defer both.Close()
	p, err := ipc.OpenFIFOWriter(t.Context(), link+"/fifo")
	kit.Must(t, err)
	defer p.Close()
	kit.Send(t, p, "by a detour")
	kit.Expect(t, both, "by a detour")
}

func TestOpenFIFOWriterNoticesThatItIsGone(t *testing.T) {
	kit.Story(t)
	path := kit.MakeFIFO(t, kit.TempDir(t))
	opening := kit.Begin(func() error { _, err := ipc.OpenFIFOWriter(t.Context(), path); return err })
	kit.AwaitParked(t, "OpenFIFOWriter", 1)
	kit.Must(t, os.Remove(path))
	kit.Matches(t, <-opening, fs.ErrNotExist)
}

func TestFIFOOfAnotherUserIsRefused(t *testing.T) {
	kit.Story(t)
	kit.NeedsRoot(t)
	path := kit.MakeFIFO(t, kit.OpenDir(t))
	for _, side := range []string{"reader", "writer"} {
		c := kit.StartStranger(t, "openfifo", side, path)
		c.MustSay("permission denied")
		c.End()
	}
}

// childOpensFIFO opens one side of a FIFO and says how that went.
func childOpensFIFO(p *kit.Parent, args []string) error {
	var err error
	if args[0] == "reader" {
		_, err = ipc.OpenFIFOReader(context.Background(), args[1])
	} else {
		_, err = ipc.OpenFIFOWriter(context.Background(), args[1])
	}
	if errors.Is(err, os.ErrPermission) {
		p.Say("permission denied")
		return nil
	}
	p.Say("%v", err)
	return nil
}

func TestFIFOEndsWithItsLastWriter(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		r, first := w.open(t, path)
		second, err := w.openWriter(t.Context(), path)
		kit.Must(t, err)
		kit.Send(t, first, "of the first")
		kit.Must(t, first.Close())
		kit.Expect(t, r, "of the first")
		kit.Must(t, r.SetReadDeadline(time.Now().Add(kit.Brief)))
		_, err = r.Read(make([]byte, 1))
		kit.TimedOut(t, err) // the second could still write
		kit.Must(t, r.SetReadDeadline(time.Time{}))
		kit.Send(t, second, "of the second")
		kit.Expect(t, r, "of the second")
		reading := kit.BeginRead(r)
		kit.AwaitParked(t, "(*PipeReader).Read", 1)
		kit.Must(t, second.Close())
		if err := <-reading; err != io.EOF {
			t.Errorf("read ends with %v, want io.EOF", err)
		}
		kit.ExpectEOF(t, r)

		third, err := w.openWriter(t.Context(), path) // and may come again
		kit.Must(t, err)
		kit.Send(t, third, "of the third")
		kit.Expect(t, r, "of the third")
		kit.Must(t, third.Close())
		kit.ExpectEOF(t, r)
	})
}

func TestFIFOWithoutReader(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		r, p := w.open(t, path)
		writing := kit.Begin(func() error { _, err := p.Write(make([]byte, kit.TooMuch)); return err })
		kit.AwaitParked(t, "(*PipeWriter).Write", 1)
		kit.Must(t, r.Close())
		kit.Matches(t, <-writing, syscall.EPIPE)
		_, err := p.Write([]byte("more"))
		kit.Matches(t, err, syscall.EPIPE)
		kit.IsPipeError(t, err, "write")
		if !strings.Contains(err.Error(), path) {
			t.Errorf("%q does not name the FIFO", err)
		}
	})
}

func TestFIFODeadlineAndCloseEndWaits(t *testing.T) {
	overEachWaiting(t, func(t *testing.T, w waiting, path string) {
		r, p := w.open(t, path)
		begun := time.Now()
		kit.Must(t, r.SetReadDeadline(begun.Add(kit.Brief)))
		_, err := r.Read(make([]byte, 1))
		kit.TimedOut(t, err)
		kit.Must(t, p.SetWriteDeadline(begun.Add(2*kit.Brief)))
		n, err := p.Write(make([]byte, kit.TooMuch))
		kit.TimedOut(t, err)
		if waited := time.Since(begun); waited < 2*kit.Brief {
			t.Errorf("write gave up after %v, before %v", waited, 2*kit.Brief)
		}
		kit.Must(t, errors.Join(r.SetReadDeadline(time.Time{}), p.SetWriteDeadline(time.Time{})))
		if got, err := io.CopyN(io.Discard, struct{ io.Reader }{r}, int64(n)); got != int64(n) || err != nil {
			t.Errorf("of %d bytes %d arrive, %v", n, got, err)
		}

		reading := kit.BeginRead(r)
		kit.AwaitParked(t, "(*PipeReader).Read", 1)
		kit.Must(t, r.SetReadDeadline(time.Now().Add(-time.Second))) // ends one that waits already
		kit.TimedOut(t, <-reading)
		kit.Must(t, r.SetReadDeadline(time.Time{}))

		reading = kit.BeginRead(r)
		kit.AwaitParked(t, "(*PipeReader).Read", 1)
		kit.Must(t, r.Close())
		kit.Matches(t, <-reading, net.ErrClosed)
		kit.Matches(t, r.Close(), net.ErrClosed)

		other, err := os.OpenFile(path, os.O_RDWR, 0) // nobody reads it
		kit.Must(t, err)
		defer other.Close()
		writing := kit.Begin(func() error { _, err := p.Write(make([]byte, kit.TooMuch)); return err })
		kit.AwaitParked(t, "(*PipeWriter).Write", 1)
		kit.Must(t, p.Close())
		kit.Matches(t, <-writing, net.ErrClosed)
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
				kit.Must(t, err)
				_, err = both.Write([]byte("written before"))
				kit.Must(t, err)
				r, err := w.openReader(t.Context(), path)
				kit.Must(t, err)
				defer r.Close()
				kit.Must(t, both.Close())
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
			kit.Must(t, p.Close())
			kit.ExpectEOF(t, r)
			kit.Must(t, r.Close())
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			for _, open := range openers {
				_, err := open(ctx, path)
				kit.TimedOut(t, err)
			}
			_, err := ipc.OpenFIFOReader(t.Context(), path+"/none")
			kit.Matches(t, err, syscall.ENOTDIR)
		}
		round()
		before := kit.OpenDescriptors()
		for range 50 {
			round()
		}
		kit.Must(t, kit.NoMoreDescriptors(before))
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
	kit.Must(t, cmd.Start())
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
			reading := kit.Begin(func() error {
				r, err := w.openReader(t.Context(), path)
				if err != nil {
					return err
				}
				defer r.Close()
				got, err = io.ReadAll(r)
				return err
			})
			if !shellFirst {
				kit.AwaitParked(t, "OpenFIFOReader", 1)
				cmd, out = shell(t, `echo hello > "$0"`, path)
			}
			kit.Must(t, <-reading)
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
		kit.Must(t, err)
		defer r.Close()
		kit.Must(t, r.SetReadDeadline(time.Now().Add(kit.Soon)))
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
			writing := kit.Begin(func() error {
				p, err := w.openWriter(t.Context(), path)
				if err != nil {
					return err
				}
				_, err = p.Write(data)
				return errors.Join(err, p.Close())
			})
			if !catFirst {
				kit.AwaitParked(t, "OpenFIFOWriter", 1)
				cmd, out = shell(t, `cat "$0"`, path)
			}
			kit.Must(t, <-writing)
			kit.Must(t, cmd.Wait())
			if !bytes.Equal(out.Bytes(), data) {
				t.Errorf("of %d bytes cat reads %d, or others", len(data), out.Len())
			}
		}
	})
}

// ---------------------------------------------------------------------------
// Descriptors of pipes

func TestPipeDescriptorsAreCloseOnExec(t *testing.T) {
	kit.Story(t)
	before := kit.Descriptors()
	r, w := kit.Pipe(t)
	f, err := r.File()
	kit.Kept(t, f, err)
	adopted, err := ipc.FileReader(f)
	kit.Kept(t, adopted, err)
	polled.open(t, kit.MakeFIFO(t, kit.TempDir(t)))
	kit.Send(t, w, "joined the poller or not")
	if n := kit.AreCloseOnExec(t, before); n < 6 {
		t.Fatalf("only %d new descriptors", n)
	}
}

func TestPipeThatWasDroppedIsCollected(t *testing.T) {
	kit.AreCollected(t, func() {
		r, w, err := ipc.Pipe()
		kit.Must(t, err)
		kit.Must(t, r.SetReadDeadline(time.Now().Add(time.Hour))) // one that joined the poller, one that did not
		_, _ = r, w
	})
}

func TestFileReaderAndWriterAdoptBlockingPipes(t *testing.T) {
	kit.Story(t)
	var p [2]int
	kit.Must(t, syscall.Pipe(p[:])) // blocking, as C programs make it
	rf, wf := os.NewFile(uintptr(p[0]), "read end"), os.NewFile(uintptr(p[1]), "write end")
	defer rf.Close()
	defer wf.Close()
	if !kit.Blocks(t, rf) || !kit.Blocks(t, wf) {
		t.Fatal("the pipe does not block: nothing is tested")
	}
	// FreeBSD's are two-way.
	if err := adopters["FileWriter"](rf); err != nil && !kit.Blocks(t, rf) {
		t.Error("a file that was refused does not block any more")
	}
	if err := adopters["FileReader"](wf); err != nil && !kit.Blocks(t, wf) {
		t.Error("a file that was refused does not block any more")
	}
	r, err := ipc.FileReader(rf)
	kit.Must(t, err)
	defer r.Close()
	w, err := ipc.FileWriter(wf)
	kit.Must(t, err)
	defer w.Close()
	isStillOpen(t, "the read end", rf)
	isStillOpen(t, "the write end", wf)
	kit.Must(t, errors.Join(rf.Close(), wf.Close()))
	kit.Must(t, r.SetReadDeadline(time.Now().Add(kit.Brief)))
	_, err = r.Read(make([]byte, 1))
	kit.TimedOut(t, err)
	kit.Must(t, r.SetReadDeadline(time.Time{}))
	reading := kit.Begin(func() error { _, err := io.ReadFull(r, make([]byte, 4)); return err })
	kit.AwaitParked(t, "(*PipeReader).Read", 1)
	kit.Send(t, w, "here")
	kit.Must(t, <-reading)
	kit.Must(t, w.Close())
	kit.ExpectEOF(t, r)
}

func TestFileReaderAndWriterAdoptOtherPipes(t *testing.T) {
	kit.Story(t)
	r, w := kit.OsPipe(t)
	fifo, err := os.OpenFile(kit.MakeFIFO(t, kit.TempDir(t)), os.O_RDWR, 0)
	kit.Must(t, err)
	for _, files := range [][2]*os.File{{r, w}, {fifo, fifo}} {
		ar, err := ipc.FileReader(files[0])
		kit.Must(t, err)
		aw, err := ipc.FileWriter(files[1])
		kit.Must(t, err)
		kit.Send(t, aw, "adopted")
		kit.Expect(t, ar, "adopted")
		kit.Send(t, files[1], "the owner's") // both are the same end
		kit.Expect(t, ar, "the owner's")
		kit.Send(t, aw, "adopted")
		kit.Expect(t, files[0], "adopted")
		kit.Must(t, errors.Join(ar.Close(), aw.Close()))
		for _, f := range files {
			isStillOpen(t, "the owner's file", f)
		}
	}
	kit.Must(t, fifo.Close())
}

func TestFileReaderAndWriterRefuseSocketsAndDevices(t *testing.T) {
	kit.Story(t)
	c, _ := kit.Pair(t)
	socket, err := c.File()
	kit.Must(t, err)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	kit.Must(t, err)
	dir, err := os.Open("/")
	kit.Must(t, err)
	for _, f := range []*os.File{socket, null, dir} {
		before := kit.Blocks(t, f)
		for op, adopt := range adopters {
			err := adopt(f)
			if err == nil {
				t.Errorf("%s adopts %s", op, f.Name())
			}
			kit.IsPipeError(t, err, "file")
			kit.Matches(t, err, errors.ErrUnsupported)
			isStillOpen(t, f.Name(), f)
			if kit.Blocks(t, f) != before {
				t.Error("a file that was refused has another mode")
			}
		}
		kit.Must(t, f.Close())
	}
}

func TestPipeSyscallConnWaits(t *testing.T) {
	kit.Story(t)
	r, w := kit.Pipe(t)
	raw, err := r.SyscallConn()
	kit.Must(t, err)
	data := kit.Pattern(100 << 10)
	writing := kit.Begin(func() error {
		_, err := w.Write(data)
		return errors.Join(err, w.Close())
	})
	var got []byte
	kit.Must(t, raw.Read(func(fd uintptr) bool {
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
	kit.Must(t, <-writing)
	if !bytes.Equal(got, data) {
		t.Errorf("of %d bytes %d arrive, or others", len(data), len(got))
	}
}

// ---------------------------------------------------------------------------
// A reader that outlives its writers

func TestFIFOThatIsKeptOpenOutlivesItsWriters(t *testing.T) {
	kit.Story(t)
	path := kit.MakeFIFO(t, kit.TempDir(t))
	r, err := ipc.FIFOConfig{KeepOpen: true}.OpenReader(t.Context(), path) // without a writer
	kit.Must(t, err)
	defer r.Close()
	kit.Must(t, r.SetReadDeadline(time.Now().Add(kit.Brief)))
	_, err = r.Read(make([]byte, 1))
	kit.TimedOut(t, err)
	kit.Must(t, r.SetReadDeadline(time.Time{}))
	for i := range 5 {
		line := fmt.Sprintln("line", i)
		w, err := ipc.OpenFIFOWriter(t.Context(), path)
		kit.Must(t, err)
		reading := kit.Begin(func() error { kit.Expect(t, r, line); return nil })
		kit.Send(t, w, line)
		kit.Must(t, w.Close())
		kit.Must(t, <-reading)
	}
	kit.Must(t, r.SetReadDeadline(time.Now().Add(kit.Brief)))
	_, err = r.Read(make([]byte, 1)) // they are all gone, and it is no end
	kit.TimedOut(t, err)
	kit.Must(t, r.SetReadDeadline(time.Time{}))
	waiting := kit.BeginRead(r)
	kit.Must(t, r.Close())
	kit.Matches(t, <-waiting, net.ErrClosed)

	// With it, its own writing end is gone: a writer finds no reader.
	ctx, cancel := context.WithTimeout(t.Context(), kit.Brief)
	defer cancel()
	_, err = ipc.OpenFIFOWriter(ctx, path)
	kit.TimedOut(t, err)
	ctx, cancel = context.WithTimeout(t.Context(), kit.Brief) // and a reader no writer
	defer cancel()
	_, err = ipc.OpenFIFOReader(ctx, path)
	kit.TimedOut(t, err)
	runtime.KeepAlive(r)
}

func TestFIFOThatIsKeptOpenServesAShell(t *testing.T) {
	kit.Story(t)
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("there is no shell")
	}
	path := kit.MakeFIFO(t, kit.OpenDir(t))
	r, err := ipc.FIFOConfig{KeepOpen: true}.OpenReader(t.Context(), path)
	kit.Must(t, err)
	defer r.Close()
	for _, word := range []string{"reload", "stop"} {
		cmd := exec.Command(shell, "-c", `echo "$1" >"$2"`, shell, word, path)
		kit.Must(t, cmd.Start())
		kit.Expect(t, r, word+"\n")
		kit.Must(t, cmd.Wait())
	}
}

func TestFIFOThatIsKeptOpenIsAFIFO(t *testing.T) {
	kit.Story(t)
	dir := kit.TempDir(t)
	path := kit.MakeFIFO(t, dir)
	link, file := dir+"/link", dir+"/file"
	kit.Must(t, os.Symlink(path, link))
	defer os.Remove(link)
	kit.Must(t, os.WriteFile(file, nil, 0o600))
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
