//go:build unix || windows

package kit

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// These are how long a test waits, and how much it writes.
const (
	Patience = 60 * time.Second // for a whole test, and for a child's life
	Soon     = 20 * time.Second // for a condition that is about to hold
	Brief    = 30 * time.Millisecond

	TooMuch = 16 << 20 // more than any connection holds
)

// RunTests is TestMain of a package that tells stories: it runs the tests, or plays the role of a child.
func RunTests(m *testing.M) {
	if role := os.Getenv(ChildRole); role != "" {
		os.Exit(childMain(role, os.Args[1:]))
	}
	code := m.Run()
	if code == 0 && anyTogether {
		if err := nothingLeft(atFirst.goroutines, atFirst.descriptors); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// CountDescriptors returns how many descriptors or handles the process has. A
// system's file sets it; where it is nil they are not counted.
var CountDescriptors func() int

// OpenDescriptors returns how many descriptors or handles are open, or 0 where they are not counted.
func OpenDescriptors() int {
	if CountDescriptors == nil {
		return 0
	}
	return CountDescriptors()
}

// Story begins a test.
func Story(t *testing.T) {
	t.Helper()
	LongStory(t, Patience)
}

// LongStory is Story for a test that does many things that may each take long, such
// as starting processes.
func LongStory(t *testing.T, patience time.Duration) {
	t.Helper()
	WarmUp()
	dog := time.AfterFunc(patience, func() {
		panic(t.Name() + " hangs\n\n" + Stacks())
	})
	t.Cleanup(func() { dog.Stop() })
	top, _, _ := strings.Cut(t.Name(), "/")
	if _, ok := sideBySide.Load(top); ok {
		return
	}
	goroutines, descriptors := runtime.NumGoroutine(), OpenDescriptors()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		if err := nothingLeft(goroutines, descriptors); err != nil {
			t.Error(err)
		}
	})
}

// Together begins a test that owns all that it touches: it runs beside others that do,
// after all that do not. What they leave behind is looked for when all have ended: see
// RunTests. It is not for a test that looks at or changes what the whole process has, as
// AwaitParked, LeavesNothing and Framed do.
func Together(t *testing.T) {
	t.Helper()
	sideBySide.Store(t.Name(), true)
	if !anyTogether { // before any of them goes on
		anyTogether = true
		WarmUp()
		atFirst.goroutines, atFirst.descriptors = runtime.NumGoroutine(), OpenDescriptors()
	}
	t.Parallel()
}

var (
	sideBySide  sync.Map // the names of those tests
	anyTogether bool
	atFirst     struct{ goroutines, descriptors int } // when the first of them began
)

// nothingLeft waits until there are no more goroutines and descriptors than that.
func nothingLeft(goroutines, descriptors int) error {
	if !HoldsSoon(func() bool { return runtime.NumGoroutine() <= goroutines }) {
		return fmt.Errorf("%d goroutines at the start, %d at the end\n\n%s", goroutines, runtime.NumGoroutine(), Stacks())
	}
	return NoMoreDescriptors(descriptors)
}

// WarmUp lets the runtime open the descriptors and begin the goroutines that it keeps for good.
var WarmUp = sync.OnceFunc(func() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt)
	signal.Stop(signals)
	if a, b, err := ipc.Pair(); err == nil {
		a.SetReadDeadline(time.Now().Add(time.Millisecond))
		a.Read(make([]byte, 1))
		a.Close()
		b.Close()
	}
})

// NeedsLinux skips a test of what only Linux does, or of what is not known of other systems.
func NeedsLinux(t *testing.T, why string) {
	t.Helper()
	if runtime.GOOS != "linux" && runtime.GOOS != "android" {
		t.Skip("needs Linux: " + why)
	}
}

// NotEmulated skips the test under an emulator, which cannot be started by another user
// or in another namespace.
func NotEmulated(t *testing.T) {
	t.Helper()
	if os.Getenv("IPC_TEST_EXEC") != "" {
		t.Skip("the emulator cannot be started by another user or in another namespace")
	}
}

// Stacks returns the stacks of all goroutines.
func Stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// HoldsSoon waits for the condition, and reports whether it came to hold.
func HoldsSoon(condition func() bool) bool {
	for end := time.Now().Add(Soon); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// Eventually waits for the condition, and fails the test if it does not come to hold.
func Eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	if !HoldsSoon(condition) {
		t.Fatalf("still not so: %s\n\n%s", what, Stacks())
	}
}

// AwaitParked returns when n goroutines wait, at rest, inside a function of the
// package, named as in a stack trace: "(*Conn).Read".
func AwaitParked(t *testing.T, function string, n int) {
	t.Helper()
	Eventually(t, fmt.Sprintf("%d goroutines wait in %s", n, function), func() bool {
		parked := 0
		for g := range strings.SplitSeq(Stacks(), "\n\n") {
			state, frames, _ := strings.Cut(g, "\n")
			awake := strings.Contains(state, "[runn") || // running, runnable
				runtime.GOOS != "windows" && strings.Contains(state, "[syscall")
			if !awake && strings.Contains(frames, "/ipc."+function+"(") {
				parked++
			}
		}
		return parked >= n
	})
}

// UnderRace reports whether the race detector is at work: it allocates.
func UnderRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// Begin runs f in a goroutine; the channel delivers its error once.
func Begin(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// BeginRead waits in a goroutine for something to read.
func BeginRead(r io.Reader) <-chan error {
	return Begin(func() error { _, err := r.Read(make([]byte, 1)); return err })
}

// Later makes an end in a goroutine, because that may have to wait; the function
// that it returns waits for it.
func Later[C io.Closer](t *testing.T, do func() (C, error)) (await func() C) {
	var c C
	done := Begin(func() (err error) { c, err = do(); return err })
	return func() C {
		t.Helper()
		err := <-done
		return Kept(t, c, err)
	}
}

// Kept returns an end that the test has made, which is closed when the test ends.
func Kept[C io.Closer](t *testing.T, c C, err error) C {
	t.Helper()
	Must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// Repeatedly does f in a goroutine, over and over until it is stopped or fails.
func Repeatedly(f func() error) (stop func() error) {
	quit := make(chan struct{})
	done := Begin(func() error {
		for {
			select {
			case <-quit:
				return nil
			default:
			}
			if err := f(); err != nil {
				return err
			}
		}
	})
	return func() error { close(quit); return <-done }
}

// LeavesNothing fails the test if a thing done many times leaves something behind.
func LeavesNothing(t *testing.T, rounds int, round func()) {
	t.Helper()
	round()
	goroutines, descriptors := runtime.NumGoroutine(), OpenDescriptors()
	end := time.Now().Add(Patience / 2) // a slow machine makes fewer rounds
	for n := 0; n < rounds && time.Now().Before(end); n++ {
		round()
	}
	Eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
	Must(t, NoMoreDescriptors(descriptors))
}

// NoMoreDescriptors waits until no more are open than before: those that are thrown away may
// be closed a little later, on another goroutine.
func NoMoreDescriptors(before int) error {
	if !HoldsSoon(func() bool { return OpenDescriptors() <= before }) {
		return fmt.Errorf("%d descriptors became %d", before, OpenDescriptors())
	}
	return nil
}
