//go:build unix || windows

// What users do not see: the model of waiting, spins, the reading of messages, the words of shared memory. What the other
// tests ask of the package is here too.
package ipc

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/rand"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// SentMemory reports whether c has sent its memory to the peer.
func SentMemory(c *SharedConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hello == nil || c.hello.last.Load()
}

// UsesMemory reports whether the connection goes through shared memory already.
func UsesMemory(c *SharedConn) bool { return c.mode.Load() == inMemory }

// frameMessages decides how the message connections made from now on keep their
// boundaries, and returns how they did before.
func frameMessages(on bool) (before bool) {
	before, framesMessages = framesMessages, on
	return before
}

// FrameMax is the longest message that goes into a frame.
const FrameMax = frameMax

// ---------------------------------------------------------------------------
// Messages

// A scriptedSource gives out messages in parts, fails in between, and ends, as it is
// told. It is a messageSource, and the model of what a messageReader should make of it.
type scriptedSource struct {
	t     *testing.T
	next  func(n int) int // a number below n
	left  [][]byte        // messages to come; of the first one what was not given yet
	drops bool            // it drops what does not fit, as a kernel does that keeps messages apart
	fails bool            // the next call fails, as a deadline makes it
	parts int             // how many parts of the first message were given

	withdraws bool // a sender may take back the rest of a message
	most      int  // it makes no room for the rest of a message that is longer
}

var errScripted = os.ErrDeadlineExceeded

func (s *scriptedSource) interrupts() bool {
	fails := s.fails
	s.fails = s.next(4) == 0
	return fails
}

func (s *scriptedSource) nextPart(p []byte) (n int, ends bool, err error) {
	if len(p) == 0 {
		s.t.Fatal("a part is to be received into nothing")
	}
	if s.interrupts() {
		return 0, false, errScripted
	}
	if len(s.left) == 0 {
		return 0, false, io.EOF
	}
	m := s.left[0]
	if s.withdraws && s.parts > 0 && s.next(8) == 0 {
		s.toNext()
		return 0, false, errWithdrawn
	}
	if s.drops {
		s.left = s.left[1:]
		if n = copy(p, m); n < len(m) {
			err = ErrMsgTooLong
		}
		return n, true, err
	}
	n = min(len(p), len(m))
	if n > 1 {
		n = 1 + s.next(n)
	}
	copy(p, m[:n])
	s.left[0] = m[n:]
	s.parts++
	if n == len(m) {
		s.toNext()
		return n, true, nil
	}
	return n, false, nil
}

func (s *scriptedSource) toNext() { s.left, s.parts = s.left[1:], 0 }

func (s *scriptedSource) nextRoom(have int, spare []byte) (int, error) {
	switch {
	case s.interrupts():
		return 0, errScripted
	case len(s.left) == 0 && s.drops:
		return 0, nil
	case len(s.left) == 0:
		return 0, io.EOF
	case s.drops:
		return len(s.left[0]), nil
	case have > 0 && len(s.left[0]) > s.most-have:
		s.toNext()
		return 0, &ruleError{"the message is too long", ErrMsgTooLong}
	}
	return s.next(20), nil
}

// FuzzMessageReader receives scripted messages by any calls, in any order, and
// compares what comes with the messages.
func FuzzMessageReader(f *testing.F) {
	for seed := range int64(50) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed int64) {
		for range 20 {
			seed++
			receivesAsSent(t, rand.New(rand.NewSource(seed)).Intn)
		}
	})
}

func receivesAsSent(t *testing.T, next func(n int) int) {
	src := &scriptedSource{t: t, next: next, drops: next(2) == 0, withdraws: next(2) == 0, most: next(40)}
	var want [][]byte
	for i := range next(8) {
		m := bytes.Repeat([]byte{'a' + byte(i)}, next(30))
		want = append(want, m)
		src.left = append(src.left, m)
	}
	var r messageReader
	if len(want) > 0 && next(3) == 0 { // one that was received too early
		r.keep(want[0], true)
		src.left = src.left[1:]
	}
	for {
		p := make([]byte, next(35))
		var got []byte
		var err error
		if next(2) == 0 {
			var n int
			n, err = r.recv(src, p)
			got = p[:n]
			if n > len(p) {
				t.Fatalf("%d bytes in room of %d", n, len(p))
			}
		} else {
			dst := []byte("dst")[:3:3]
			got, err = r.recvAppend(src, dst)
			if !bytes.HasPrefix(got, dst) {
				t.Fatalf("%q does not begin with what was there", got)
			}
			if got = got[3:]; err != nil && len(got) > 0 {
				t.Fatalf("%q comes with %v", got, err)
			}
			p = nil
		}
		switch {
		case errors.Is(err, errScripted):
			continue // nothing is lost
		case len(want) == 0:
			if err != io.EOF || len(got) > 0 {
				t.Fatalf("after the last message %q comes, %v", got, err)
			}
			return
		case err == errWithdrawn:
			if !src.withdraws || len(got) > 0 {
				t.Fatalf("%q of %q comes, %v", got, want[0], err)
			}
		case p == nil && errors.Is(err, ErrMsgTooLong):
			if src.drops || len(want[0]) <= src.most {
				t.Fatalf("there is no room for %q", want[0])
			}
		case err == ErrMsgTooLong:
			if len(want[0]) <= len(p) || !bytes.Equal(got, want[0][:len(p)]) {
				t.Fatalf("%q of %q in room of %d is too long", got, want[0], len(p))
			}
		case err != nil:
			t.Fatalf("%v in the place of %q", err, want[0])
		case !bytes.Equal(got, want[0]):
			t.Fatalf("%q comes in the place of %q", got, want[0])
		}
		want = want[1:]
	}
}

// TestMessageReaderEndWithinAMessage has the source end in the middle of a message,
// wherever its reader stands.
func TestMessageReaderEndWithinAMessage(t *testing.T) {
	for _, first := range []func(r *messageReader, src *halfSource) error{
		func(r *messageReader, src *halfSource) error { _, err := r.recv(src, make([]byte, 10)); return err },
		func(r *messageReader, src *halfSource) error { _, err := r.recvAppend(src, nil); return err },
		func(r *messageReader, src *halfSource) error { // the rest is to be skipped
			if _, err := r.recv(src, make([]byte, 1)); err != ErrMsgTooLong {
				return err
			}
			_, err := r.recv(src, make([]byte, 10))
			return err
		},
	} {
		var r messageReader
		src := &halfSource{left: []byte("half")}
		if err := first(&r, src); err != io.ErrUnexpectedEOF {
			t.Errorf("the end within a message is %v", err)
		}
		if _, err := r.recv(src, make([]byte, 10)); err != io.ErrUnexpectedEOF {
			t.Errorf("then %v", err)
		}
	}
}

// A part of a message may be empty: it was sent as files alone, or had no more.
func TestMessageReaderPassesOverEmptyParts(t *testing.T) {
	for _, first := range []func(r *messageReader, src *pausingSource) (string, error){
		func(r *messageReader, src *pausingSource) (string, error) {
			p := make([]byte, 10)
			n, err := r.recv(src, p)
			return string(p[:n]), err
		},
		func(r *messageReader, src *pausingSource) (string, error) {
			p, err := r.recvAppend(src, nil)
			return string(p), err
		},
		func(r *messageReader, src *pausingSource) (string, error) {
			src.left = "skipped.whole."
			if _, err := r.recv(src, make([]byte, 1)); err != ErrMsgTooLong {
				return "", err
			}
			p, err := r.recvAppend(src, nil)
			return string(p), err
		},
	} {
		var r messageReader
		src := &pausingSource{left: "whole."}
		if m, err := first(&r, src); m != "whole." || err != nil {
			t.Errorf("%q is received, %v", m, err)
		}
		if _, err := r.recv(src, make([]byte, 10)); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
	}
}

// A pausingSource has messages that end with a full stop, a byte at a time, and an empty
// part before each byte.
type pausingSource struct {
	left string
	turn int
}

func (s *pausingSource) nextPart(p []byte) (int, bool, error) {
	if s.turn++; s.left != "" && s.turn%2 == 1 {
		return 0, false, nil
	}
	if s.left == "" {
		return 0, false, io.EOF
	}
	p[0], s.left = s.left[0], s.left[1:]
	return 1, p[0] == '.', nil
}

func (s *pausingSource) nextRoom(int, []byte) (int, error) { return 4, nil }

// A halfSource has a part of a message, a byte at a time, and then ends.
type halfSource struct{ left []byte }

func (s *halfSource) nextPart(p []byte) (int, bool, error) {
	if len(s.left) == 0 {
		return 0, false, io.EOF
	}
	p[0], s.left = s.left[0], s.left[1:]
	return 1, false, nil
}

func (s *halfSource) nextRoom(int, []byte) (int, error) { return 4, nil }

// ---------------------------------------------------------------------------
// Text from outside

// FuzzTarget looks up what addresses of any text are to the system, without asking
// it. What a target must be like on this system is known to checkTarget.
func FuzzTarget(f *testing.F) {
	for _, s := range targetSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, a := range []Addr{Path(text), Name(text)} {
			target, err := a.resolve()
			if errno := syscall.Errno(0); errors.As(err, &errno) {
				t.Fatalf("%q asks the system: %v", a, err)
			}
			if err == nil {
				checkTarget(t, a, text, target)
			} else if target != "" {
				t.Fatalf("%q is %q, with %v", a, target, err)
			}
		}
	})
}

// FuzzInheritedEnvironment reads what anybody may have put into the environment.
func FuzzInheritedEnvironment(f *testing.F) {
	for _, s := range []string{
		"", "a,conn,3", "a,conn,3;b,reader,4", "a,conn,3;a,conn,4", "a,conn,3;", ";", ",", ",,", "a,,3", "a,conn,",
		"a,conn,2", "a,conn,03", "a,conn,+3", "a,conn,-3", "a,conn,3,4", "a,conn,99999999999999999999", "a b,conn,3",
		"a-b_c.D9,listener,1048576", "a,conn,1048577", "a;conn;3", "ü,conn,3", "a,conn,3\n", "a,conn,0x3", "a,msgconn,18446744073709551615",
		"a,conn,3@c000.8.1f;b,reader,4@1000.d.20", "a,conn,3@", "a,conn,3@x", "a,conn,3@1;b,conn,3@2",
		"l,listener,3@c000.8.1:4@8000.1.2:5@1000.d.3:6@1000.d.3:1:2:remove:2f61", "l,listener,3:4:5:5:1:2:keep:2f61",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, list string) {
		ends, err := parseInherited(list)
		if err != nil {
			if ends != nil {
				t.Fatalf("%q gives %d ends and the error %v", list, len(ends), err)
			}
			if !strings.Contains(err.Error(), inheritVar) {
				t.Fatalf("%q: %v does not say where", list, err)
			}
			return
		}
		if list == "" && len(ends) != 0 || list != "" && len(ends) != 1+strings.Count(list, ";") {
			t.Fatalf("%q gives %d ends", list, len(ends))
		}
		var entries []string
		for _, name := range slices.Sorted(maps.Keys(ends)) {
			end := ends[name]
			if !validEndName(name) || tokenDescriptors(end.token) == nil {
				t.Fatalf("%q gives %q: %+v", list, name, end)
			}
			entries = append(entries, name+","+string(end.kind)+","+end.token)
		}
		if given := strings.Split(list, ";"); list != "" { // nothing is added, nothing lost
			slices.Sort(given)
			slices.Sort(entries)
			if !slices.Equal(given, entries) {
				t.Fatalf("%q is read as %q", given, entries)
			}
		}
	})
}

// ---------------------------------------------------------------------------
// Spins

// spinsOf counts the spins in so many waits; won tells which of them succeed.
func spinsOf(p *spinPolicy, b *backoff, waits int, won func(wait int) bool) (spins int) {
	for i := range waits {
		if !p.spins.allows(b) {
			p.spins.skipped(b)
			continue
		}
		spins++
		p.begin(0)
		p.end(b, won(i))
	}
	return spins
}

// neverYield keeps the waits of a test from yielding, so that the spins can be counted.
func neverYield(t *testing.T) { yieldBy(t, nil) }

// yieldBy has the waits of a test call that function when they yield.
func yieldBy(t *testing.T, yield func()) {
	before := spinning.yield
	spinning.yield = yield
	spinning.yields.young.Store(0)
	t.Cleanup(func() { spinning.yield = before })
}

func always(int) bool { return true }

func never(int) bool { return false }

func TestBackoffSpinsThatFailBecomeRare(t *testing.T) {
	var p spinPolicy
	var b backoff
	if n := spinsOf(&p, &b, 100*skipMax, never); n > 120 || n < 100 {
		t.Errorf("%d spins in %d waits", n, 100*skipMax)
	}
	if n := spinsOf(&p, &b, 2*skipMax, always); n < skipMax {
		t.Errorf("%d spins in %d waits that are short again", n, 2*skipMax)
	}
}

func TestBackoffFewLossesCostNothing(t *testing.T) {
	var p spinPolicy
	var b backoff
	const free = debtMax / lossWeight
	if n := spinsOf(&p, &b, free, never); n != free {
		t.Errorf("%d spins in the first %d waits", n, free)
	}
	b = backoff{}
	p = spinPolicy{}
	if n := spinsOf(&p, &b, 10000, func(i int) bool { return i%50 != 0 }); n != 10000 {
		t.Errorf("%d spins in 10000 waits of which one in fifty is long", n)
	}
}

// Half of the spins succeed where two ends have one CPU and the system takes it from the
// spinner. What they save is far less than what the others cost.
func TestBackoffStopsWhereSpinsFailOften(t *testing.T) {
	const waits = 100000
	for every, most := range map[int]int{2: waits / 100, 4: waits / 20} {
		var p spinPolicy
		var b backoff
		spin := 0
		n := spinsOf(&p, &b, waits, func(int) bool { spin++; return spin%every != 0 })
		if n > most {
			t.Errorf("%d spins in %d waits, though one in %d fails", n, waits, every)
		}
	}
	for _, every := range []int{10, 20} {
		var p spinPolicy
		var b backoff
		spin := 0
		n := spinsOf(&p, &b, waits, func(int) bool { spin++; return spin%every != 0 })
		if n != waits {
			t.Errorf("%d spins in %d waits, though only one in %d fails", n, waits, every)
		}
	}
}

func TestBackoffNewDirectionGoesByWhatOthersLearned(t *testing.T) {
	var p spinPolicy
	for range 5 {
		spinsOf(&p, &backoff{}, youngWaits, never)
	}
	if p.spins.allows(&backoff{}) {
		t.Error("a new direction spins where all others failed")
	}
	if b := (backoff{waits: youngWaits}); !p.spins.allows(&b) {
		t.Error("a direction with a history of its own goes by that of others")
	}
}

// The waits that new directions do not spin are shared by all of them. One that has grown up
// goes by its own spins soon.
func TestBackoffDirectionDoesNotServeTheSkipOfOthersAlone(t *testing.T) {
	var p spinPolicy
	for range 3000 {
		spinsOf(&p, &backoff{}, youngWaits, never)
	}
	var b backoff
	const waits = 1000
	if n := spinsOf(&p, &b, waits, always); n < waits*95/100 {
		t.Errorf("%d spins in %d waits that are short", n, waits)
	}
}

// Where spins are likely to fail, hardly any is made, until it turns out that they do not.
func TestBackoffDoubtedSpinsAreRareUntilOneSucceeds(t *testing.T) {
	var p spinPolicy
	p.spins.doubt()
	for range 10 {
		if n := spinsOf(&p, new(backoff), skipDoubted, never); n > 1 {
			t.Errorf("%d spins in the first %d waits", n, skipDoubted)
		}
	}
	p = spinPolicy{}
	p.spins.doubt()
	var b backoff
	const waits = 10 * skipDoubted
	if n := spinsOf(&p, &b, waits, always); n < waits-skipDoubted {
		t.Errorf("%d spins in %d waits that are short", n, waits)
	}
	for range skipDoubted {
		p.spins.skipped(new(backoff))
	}
	p.spins.tried(new(backoff), true)
	if !p.spins.allows(new(backoff)) {
		t.Error("a new direction does not spin where others succeeded")
	}
}

// A success of one direction is enough for all that come after it.
func TestBackoffOneSuccessEndsHesitation(t *testing.T) {
	for what, begin := range map[string]func(*experience){"hesitates": (*experience).hesitate, "doubts": (*experience).doubt} {
		var p spinPolicy
		begin(&p.spins)
		if p.spins.allows(new(backoff)) {
			t.Errorf("a process that %s spins at once", what)
		}
		var b backoff
		if spinsOf(&p, &b, 2*skipDoubted, always) == 0 || !p.spins.allows(new(backoff)) {
			t.Errorf("a process that %s still does after spins that succeeded", what)
		}
		for range 100 {
			spinsOf(&p, new(backoff), youngWaits, never)
		}
		if spinsOf(&p, &b, 10, always); p.spins.allows(new(backoff)) {
			t.Error("a success of one direction ends what others have learned since")
		}
	}
}

func TestBackoffAsksForLongerAndLongerRuns(t *testing.T) {
	var b backoff
	for run := range longerRuns + 2 {
		for want := longRunOfWins << min(run, longerRuns); want > 0; want-- {
			if b.longRun() {
				t.Fatalf("run %d is long %d spins early", run, want)
			}
			b.won()
		}
		if !b.longRun() || b.longRun() {
			t.Fatalf("run %d is not reported once", run)
		}
	}
	b.wins = longRunOfWins<<longerRuns - 1
	if b.lost(); b.wins != 0 {
		t.Error("a run goes on after a spin that failed")
	}
}

// aCrowd has so many directions wait in turn, on CPUs of which each ends a wait after each
// gap. Before each of those waits the first direction waits that many times more.
func aCrowd(directions, more, cpus int, gap time.Duration) (c *crowd, clock func() int64) {
	c = new(crowd)
	all := make([]turnout, directions)
	var at int64
	clock = func() int64 { return at }
	for i := range 2*crowdShare*directions + 10*crowdRound*cpus {
		for n := range more + 1 {
			t := &all[0]
			if n == more {
				t = &all[i%directions]
			}
			at += int64(gap) / int64(cpus)
			c.add(t, uint32(cpus), clock)
		}
	}
	return c, clock
}

func TestCrowdIsMoreThanTwoForEachCPU(t *testing.T) {
	const gap, rest = 20 * time.Microsecond, 3 * spinDefault
	tooMany := func(directions, more, cpus int, gap time.Duration) bool {
		c, _ := aCrowd(directions, more, cpus, gap)
		return c.isNow()
	}
	for _, cpus := range []int{1, 2, 4, 64} {
		for _, n := range []int{1, 2, cpus, 2 * cpus} {
			if tooMany(n, 0, cpus, gap) {
				t.Errorf("%d directions are too many for %d CPUs", n, cpus)
			}
		}
		for _, n := range []int{2*cpus + 1, 10 * cpus, 1000 * cpus} {
			if !tooMany(n, 0, cpus, gap) {
				t.Errorf("%d directions are not too many for %d CPUs", n, cpus)
			}
			if tooMany(n, 0, cpus, rest) {
				t.Errorf("%d directions that are idle most of the time are too many for %d CPUs", n, cpus)
			}
		}
	}
	if tooMany(100, 20, 2, gap) {
		t.Error("one direction that waits most of the time shares its CPUs with too many")
	}
	if !tooMany(100, 1, 2, gap) {
		t.Error("one direction that waits half of the time does not share its CPUs with too many")
	}
}

// A direction has the waits of its share in each round, the last of the round included.
func TestCrowdCountsNoDirectionTwiceInARound(t *testing.T) {
	c := new(crowd)
	all := make([]turnout, 4)
	for i := range 10 * 2 * crowdRound {
		if c.add(&all[i/crowdShare%4], 2, func() int64 { return 0 }); c.left.Load() > 0 {
			t.Fatalf("two directions for each CPU are too many after %d waits", i+1)
		}
	}
}

// Connections that are made one after the other, for a few exchanges each, are as many
// directions as there are in a crowd.
func TestCrowdIsNotMadeOfShortConnections(t *testing.T) {
	for _, exchanges := range []int{1, 2, 5, 12, crowdRound, 5 * crowdRound} {
		c := new(crowd)
		for range 10 * 2 * crowdRound {
			var short turnout
			for range exchanges {
				if c.add(&short, 2, func() int64 { return 0 }); c.left.Load() > 0 {
					t.Fatalf("connections for %d exchanges each are too many", exchanges)
				}
			}
		}
	}
}

// Many connections at a time are a crowd, though each of them is for a few exchanges.
func TestCrowdOfShortConnections(t *testing.T) {
	for _, exchanges := range []int{5, 8, 20} {
		c := new(crowd)
		all := make([]turnout, 100)
		found := 0
		for i := range 100 * exchanges * len(all) {
			one := &all[i%len(all)]
			if i/len(all)%exchanges == i%len(all)%exchanges { // they do not all end at a time
				*one = turnout{}
			}
			if c.add(one, 2, func() int64 { return 0 }); c.left.Load() > 0 {
				found++
			}
		}
		if found < 90*exchanges*len(all) {
			t.Errorf("connections for %d exchanges each are too many in %d of %d waits", exchanges, found, 100*exchanges*len(all))
		}
	}
}

// A crowd that made a pause is there when it comes back. One that does not come back is
// forgotten.
func TestCrowdIsForgottenWhenItHasGone(t *testing.T) {
	const round = 2 * crowdRound
	var at int64
	clock := func() int64 { return at }
	c, all := new(crowd), make([]turnout, 100)
	for pauses := range 5 {
		for i := range 20 * round {
			at += int64(10 * time.Microsecond)
			if c.add(&all[i%len(all)], 2, clock); pauses > 0 && !c.isNow() {
				t.Fatalf("after a pause the crowd is no more after %d waits", i+1)
			}
		}
		at += int64(time.Hour)
	}
	for _, cpus := range []int{2, 64} {
		c, was := aCrowd(10*cpus, 0, cpus, 20*time.Microsecond)
		at := was()
		clock := func() int64 { return at }
		if !c.isNow() {
			t.Fatalf("there is no crowd on %d CPUs", cpus)
		}
		waits := 0
		for alone := new(turnout); c.isNow(); waits++ {
			at += int64(time.Millisecond)
			c.add(alone, uint32(cpus), clock)
		}
		if waits > 3*crowdLook {
			t.Errorf("on %d CPUs the crowd is still there after %d waits of one direction", cpus, waits)
		}
	}
}

// A round in which few waited does not end a crowd, many such rounds do.
func TestCrowdStaysForSomeRounds(t *testing.T) {
	c, clock := aCrowd(100, 0, 2, 20*time.Microsecond)
	waits := 0
	for few := new(turnout); c.isNow(); waits++ {
		c.add(few, 2, clock)
	}
	if rounds := waits / (2 * crowdRound); rounds < crowdStays-1 || rounds > crowdStays+1 {
		t.Errorf("the crowd is there for %d rounds more, want about %d", rounds, crowdStays)
	}
}

// Those that wait at once are a crowd before any of their waits has ended. One that has waited
// for long is no part of it.
func TestCrowdIsFoundAsItParks(t *testing.T) {
	const at = 10 * crowdTime // long after any round began
	for _, cpus := range []int32{1, 2, 4, 64} {
		few := int(crowdParked * max(cpus, 2))
		c := new(crowd)
		for range few {
			c.begins(at, cpus)
		}
		if c.isNow() {
			t.Errorf("%d directions that have parked are too many for %d CPUs", few, cpus)
		}
		if c.begins(at, cpus); !c.isNow() {
			t.Errorf("%d directions that have parked are not too many for %d CPUs", few+1, cpus)
		}
		var alone turnout
		for range crowdRound * cpus { // what was before it does not make this round a long one
			c.add(&alone, uint32(cpus), func() int64 { return at })
		}
		if c.left.Load() < crowdStays-1 {
			t.Errorf("for %d CPUs the crowd is there for %d rounds", cpus, c.left.Load())
		}
		c = new(crowd)
		for i := range int64(10 * few) {
			if c.begins(at+i*2*int64(crowdWindow)/int64(few), cpus); c.isNow() {
				t.Fatalf("directions of which %d park in two windows are too many for %d CPUs", few, cpus)
			}
		}
		c = new(crowd)
		for range 10 * few {
			if c.ends(c.begins(at, cpus)); c.isNow() {
				t.Fatalf("directions of which one is parked at a time are too many for %d CPUs", cpus)
			}
		}
	}
}

// A wait that ends after its window is not taken from what later ones count.
func TestCrowdForgetsThoseThatAreIdle(t *testing.T) {
	const window = int64(crowdWindow)
	c := new(crowd)
	parked := func() int32 { return c.parked[0].Load() + c.parked[1].Load() }
	var idle []uint16
	for range 5 {
		idle = append(idle, c.begins(window, 64))
	}
	next := c.begins(2*window, 64)
	if n := parked(); n != 6 {
		t.Errorf("in the next window %d are counted, want 6", n)
	}
	if c.ends(idle[0]); parked() != 5 {
		t.Errorf("after one has ended %d are counted, want 5", parked())
	}
	last := c.begins(3*window, 64)
	for _, s := range idle[1:] {
		c.ends(s)
	}
	if n := parked(); n != 2 {
		t.Errorf("when idle ones have ended %d are counted, want 2", n)
	}
	c.ends(c.begins(window, 64)) // it began earlier, and spun before it parked
	if c.ends(next); parked() != 1 {
		t.Errorf("%d are counted, want 1", parked())
	}
	if c.ends(last); parked() != 0 {
		t.Errorf("when all have ended %d are counted", parked())
	}
	c.begins(4*window, 64)
	c.begins(5*window, 64)
	for _, later := range []int64{9 * window, int64(8 * 24 * time.Hour), int64(1000 * 24 * time.Hour)} {
		if c.begins(later, 64); parked() != 1 {
			t.Errorf("after %v %d are counted, want 1", time.Duration(later), parked())
		}
	}
}

// TestSpinPolicyFindsACrowd has many directions wait, and then few.
func TestSpinPolicyFindsACrowd(t *testing.T) {
	cpus := runtime.GOMAXPROCS(0)
	at := int64(time.Hour)
	p := spinPolicy{clock: func() int64 { return at }}
	wait := func(directions int, gap time.Duration) bool {
		all := make([]turnout, directions)
		for i := range (crowdStays + 4) * crowdRound * cpus {
			at += int64(gap) / int64(cpus)
			p.count(&all[i%directions])
		}
		return p.crowd.isNow()
	}
	p.count(new(turnout))
	if n := int(p.cpus.Load()); n != cpus {
		t.Errorf("%d goroutines run at a time, want %d", n, cpus)
	}
	p.cpus.Store(int32(cpus + 1)) // as if GOMAXPROCS had become less since
	if !wait(20*cpus, spinDefault/5) {
		t.Error("many directions are no crowd")
	}
	if n := int(p.cpus.Load()); n != cpus {
		t.Errorf("after some rounds %d goroutines run at a time, want %d", n, cpus)
	}
	if wait(20*cpus, 3*spinDefault) {
		t.Error("many directions that are idle most of the time are a crowd")
	}
	if !wait(20*cpus, spinDefault/5) {
		t.Error("many directions are no crowd again")
	}
	if wait(cpus, spinDefault/5) {
		t.Error("few directions are a crowd")
	}
}

// Spinners leave one CPU free, but one may spin in any case.
func TestSpinPolicyLeavesACPUFree(t *testing.T) {
	for _, c := range []struct{ cpus, spinners int32 }{{0, 1}, {1, 1}, {2, 1}, {3, 2}, {8, 7}} {
		p := spinPolicy{clock: now}
		p.ask() // the first of them measures
		p.cpus.Store(c.cpus)
		for range c.spinners {
			if !p.begin(0) {
				t.Errorf("of %d CPUs %d have spinners, want %d", c.cpus, p.spinners.Load(), c.spinners)
			}
		}
		if p.begin(0) {
			t.Errorf("of %d CPUs more than %d have spinners", c.cpus, c.spinners)
		}
	}
}

// A peer that makes pauses is not spun for, one that is slow now and then is.
func TestSpinNotForAPeerThatMakesPauses(t *testing.T) {
	const limit, waits = int64(spinDefault), 10000
	for what, c := range map[string]struct {
		isLong func(n int) bool
		most   int // failed spins
		least  int // waits that spin
	}{
		"always":       {func(int) bool { return true }, longWaits + waits/(longTrial-longWaits), 10},
		"now and then": {func(n int) bool { return n%50 == 49 }, waits / 50, waits * 9 / 10},
		"for a while":  {func(n int) bool { return n/1000%2 == 1 }, 5*longWaits + waits/2/(longTrial-longWaits), waits/2 - 5*longTrial},
	} {
		p := spinPolicy{clock: func() int64 { return 0 }}
		var b backoff
		spins, failed := 0, 0
		for n := range waits {
			long, may := c.isLong(n), p.spins.allows(&b)
			if may {
				spins++
			}
			switch {
			case may && long:
				failed++
				p.spins.tried(&b, false)
				b.wasLong()
			case may:
				p.spins.tried(&b, true)
				b.took(limit, limit)
			case long:
				p.spins.skipped(&b)
				b.took(2*int64(parkedMax), limit)
			default:
				p.spins.skipped(&b)
				b.took(int64(parkedMax), limit)
			}
		}
		if failed > c.most || spins < c.least {
			t.Errorf("where the peer makes pauses %s, %d of %d waits spin, want at least %d, and %d in vain, want at most %d", what, spins, waits, c.least, failed, c.most)
		}
	}
}

// To park takes time, so a wait that is a bit longer than a spin may take tells nothing.
func TestSpinWaitsThatTellNothing(t *testing.T) {
	const limit = int64(spinDefault)
	var b backoff
	for range 3 * longWaits {
		b.took(int64(parkedMax), limit)
	}
	if b.expectsLong() {
		t.Error("a peer that has to be woken is taken for one that makes pauses")
	}
	for range longWaits {
		b.took(int64(parkedMax)+1, limit)
	}
	if b.took(limit+1, limit); !b.expectsLong() {
		t.Error("a wait that is longer than a spin ends the pauses")
	}
	if b.took(limit, limit); b.expectsLong() {
		t.Error("a wait that is no longer than a spin does not end the pauses")
	}
}

// Two long waits may be chance, so soon after them a wait tries again. The next ones take longer.
func TestSpinAfterLongWaitsTriesAgain(t *testing.T) {
	var b backoff
	var without []int
	for n := 0; len(without) < 4; n++ {
		if b.wasLong(); !b.expectsLong() {
			without = append(without, n)
			n = -1
		}
	}
	if want := []int{0, longFirst, longTrial - longWaits - 1, longTrial - longWaits - 1}; !slices.Equal(without, want) {
		t.Errorf("between spins in vain so many waits do not spin: %d, want %d", without, want)
	}
}

func TestSpinCountsItsOwnTime(t *testing.T) {
	const limit = int64(spinDefault)
	var s spin
	s.begin(1000, limit)
	if s.over(1000 + limit - int64(attemptMax)) { // somebody else had the CPU
		t.Error("a spin pays for the time of others")
	}
	at := 1000 + limit
	for n := int64(0); !s.over(at); n += 1000 {
		at += 1000
		if n > limit {
			t.Fatal("a spin does not end")
		}
	}
}

// coupled has two ends wait for each other in turn, and returns how many of the
// waits were spins that succeeded, and how many spins failed. An end that parked
// answers after the time of a wake-up; every fiftieth wait takes a millisecond.
func coupled(waits int, wakeUp, limit time.Duration) (won, lost int) {
	var p spinPolicy
	ends := [2]backoff{{waits: youngWaits}, {waits: youngWaits}}
	parked := [2]bool{}
	for i := range waits {
		b, peer := &ends[i%2], (i+1)%2
		answer := 2 * time.Microsecond
		if parked[peer] {
			answer = wakeUp
		}
		if i%50 == 49 {
			answer = time.Millisecond
		}
		switch {
		case !p.spins.allows(b):
			p.spins.skipped(b)
			b.took(int64(answer+wakeUp), int64(limit))
			parked[i%2] = true
			continue
		case answer < limit:
			won++
			b.took(int64(answer), int64(limit))
		default:
			lost++
			b.wasLong()
		}
		p.begin(0)
		p.end(b, answer < limit)
		parked[i%2] = answer >= limit
	}
	return won, lost
}

func TestBackoffTwoEndsRecoverFromLongWaits(t *testing.T) {
	const waits = 100000
	if won, lost := coupled(waits, 20*time.Microsecond, spinDefault); won < waits*97/100 {
		t.Errorf("%d of %d waits are won, %d lost", won, waits, lost)
	}
	if _, lost := coupled(waits, 2*spinDefault, spinDefault); lost > waits/100 {
		t.Errorf("%d of %d waits spin where an answer takes longer than a spin", lost, waits)
	}
}

// A yield that succeeds says nothing about the CPU that is right for spins.
func TestYieldsDoNotChangeHowOftenTheCPUIsLeft(t *testing.T) {
	var p spinPolicy
	p.leaveGap.Store(int64(leaveMax))
	if p.hasYielded(new(yielder), true, 0, 0); p.leaveGap.Load() != int64(leaveMax) {
		t.Error("after a yield that succeeded a spin that fails leaves its CPU soon")
	}
}

// A lost time slice of one short connection does not keep the thousands after it from yielding.
func TestYieldsOfNewDirectionsGoOnAfterALostTimeSlice(t *testing.T) {
	p := spinPolicy{yield: func() {}}
	p.hasYielded(new(yielder), true, 0, int64(5*time.Millisecond))
	if !p.mayYield(new(yielder)) {
		t.Error("a new direction does not yield after another has lost one time slice")
	}
}

func TestYieldsOfAWaitEndInTime(t *testing.T) {
	const limit = int64(time.Second)
	for n, want := range []bool{true, true, true, true, false} {
		if got := moreYields(n, 0, limit); got != want {
			t.Errorf("after %d yields there is one more: %t", n, got)
		}
	}
	if moreYields(1, int64(spinDefault), limit) || moreYields(1, 100, 100) {
		t.Error("there is one more yield after the longest time")
	}
}

// A goroutine that never parks lets others run before the scheduler preempts it, and no more often. The
// policy takes it that two run at a time, so that this does not come of the turns for one.
func TestSpinPolicyLetsOthersRunInTime(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	p := spinPolicy{clock: now}
	p.begin(0) // measures
	p.stop()
	p.cpus.Store(2)
	var turns int
	var over atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ; !over.Load(); turns++ {
			runtime.Gosched()
		}
	}()
	const step, spins = turnTime / 20, 500
	for i := range spins {
		p.begin(int64(i+1) * int64(step))
		p.stop()
	}
	over.Store(true)
	<-ended
	if want := spins / 20; turns < want-1 || turns > 3*want {
		t.Errorf("in %v of spins others ran %d times, want about %d", spins*step, turns, want)
	}
}

// Where one goroutine runs at a time, one whose spins succeed lets the others run.
func TestSpinPolicyLetsOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	p := spinPolicy{clock: now}
	for range 100 {
		p.begin(0)
		p.stop()
	}
	for what, wait := range map[string]func(){
		"spins":  func() { p.begin(0); p.end(new(backoff), true) },
		"yields": func() { p.hasYielded(new(yielder), true, 0, 0) },
	} {
		before := p.asked.Load()
		others := make(chan uint32, 1)
		go func() { others <- p.asked.Load() }()
		for len(others) == 0 && p.asked.Load()-before < 10*turnAfter {
			wait()
		}
		if len(others) == 0 {
			t.Errorf("no other goroutine has run during %d %s", p.asked.Load()-before, what)
		}
	}
}

// A busyEnd is one of two processes that exchange messages over many connections on one CPU, where
// one goroutine of each runs at a time.
type busyEnd struct {
	p       *spinPolicy
	y       []yielder
	t       []turnout
	ready   []int // connections of which the poller has a message, in its order
	yielded int   // the connection whose wait has yielded, -1 for none
	waits   int
	yields  int
}

func newBusyEnd(connections int, clock func() int64) *busyEnd {
	e := &busyEnd{p: &spinPolicy{clock: clock, yield: func() {}}, yielded: -1}
	e.y, e.t = make([]yielder, connections), make([]turnout, connections)
	for i := range e.y {
		e.y[i].waits = youngWaits
	}
	return e
}

// run goes on until the end gives the CPU up. answer is called for each message that it answers.
func (e *busyEnd) run(answer func(connection int)) {
	for {
		c := e.yielded
		if e.yielded = -1; c >= 0 {
			at := slices.Index(e.ready, c)
			e.p.hasYielded(&e.y[c], at >= 0, 0, 4000)
			if at < 0 {
				continue // it parks
			}
			e.ready = slices.Delete(e.ready, at, at+1)
		} else {
			if len(e.ready) == 0 {
				return // it sleeps
			}
			c, e.ready = e.ready[0], e.ready[1:]
			e.y[c].hasParked(15000)
		}
		e.waits++
		e.p.count(&e.t[c])
		answer(c)
		if !e.p.crowded() && e.p.mayYield(&e.y[c]) {
			e.yields++
			e.yielded = c
			return
		}
	}
}

// On one CPU a yield takes the time of other goroutines that the poller has ready. So it does not
// pay where there are some, and none of them waits for long.
func TestYieldsOnOneCPUOfManyConnections(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const exchanges = 50000
	for _, connections := range []int{1, 2, 3, 4, 8, 20, 100} {
		var at int64
		var ends [2]*busyEnd
		for i := range ends {
			ends[i] = newBusyEnd(connections, func() int64 { return at })
		}
		for c := range connections {
			ends[0].ready = append(ends[0].ready, c)
		}
		latest := make([]int, connections)
		longest, done := 0, 0
		for i := 0; done < exchanges; i = 1 - i {
			if done < exchanges/2 {
				longest, ends[0].waits, ends[0].yields = 0, 0, 0
			}
			ends[i].run(func(c int) {
				at += 1500
				ends[1-i].ready = append(ends[1-i].ready, c)
				if i == 0 {
					done++
					longest, latest[c] = max(longest, done-latest[c]), done
				}
			})
		}
		share := float64(ends[0].yields) / float64(ends[0].waits)
		if connections == 1 && share < 0.98 {
			t.Errorf("with one connection %.2f of the waits yield", share)
		}
		if connections > 2 && share > 0.05 {
			t.Errorf("with %d connections %.2f of the waits yield", connections, share)
		}
		if longest > 2*turnAfter*connections {
			t.Errorf("with %d connections one waits for %d exchanges of others", connections, longest)
		}
	}
}

// Where sockets have stopped exchanging messages, shared memory, whose waits are not counted, does
// not give way to them for ever.
func TestYieldsGiveWayToWhoWaitsNow(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var at int64
	p := spinPolicy{clock: func() int64 { return at }}
	var two [2]turnout
	for i := range 4 * crowdRound {
		p.count(&two[i%2])
	}
	if n := p.yieldsUntilPark(); n != turnAfter {
		t.Errorf("of two directions one yields %d times in a row, want %d", n, turnAfter)
	}
	at += crowdTime
	if n := p.yieldsUntilPark(); n != yieldsAlone {
		t.Errorf("some time after it yields %d times in a row, want %d", n, yieldsAlone)
	}
}

// yielding has so many waits yield, if the policy lets them, and park otherwise. how tells what
// comes of the nth yield, and how long it takes. It returns how many yielded, how long all
// waits took, and how much of that was lost to others.
func yielding(y *yielder, waits int, parked time.Duration, how func(n int) (won bool, took time.Duration)) (yields int, total, lost time.Duration) {
	p := spinPolicy{yield: func() {}}
	for range waits {
		if !p.mayYield(y) {
			total += parked
			y.hasParked(int64(parked))
			continue
		}
		won, took := how(yields)
		yields++
		total += took
		if took >= time.Millisecond {
			lost += took
		}
		if p.hasYielded(y, won, 0, int64(took)); !won {
			total += parked
		}
	}
	return yields, total, lost
}

func TestYieldsGoOnWhileTheyPay(t *testing.T) {
	const waits, us = 10 * yieldsInARow, time.Microsecond
	for what, c := range map[string]struct {
		parked      time.Duration
		how         func(n int) (won bool, took time.Duration)
		least, most int
	}{
		"shorter":        {13 * us, func(int) (bool, time.Duration) { return true, 4 * us }, waits * 99 / 100, waits - 5},
		"as long":        {105 * us, func(n int) (bool, time.Duration) { return true, 100*us + time.Duration(n%3)*10*us }, waits * 99 / 100, waits - 5},
		"longer":         {15 * us, func(int) (bool, time.Duration) { return true, 25 * us }, 8, waits / 100},
		"in vain":        {13 * us, func(int) (bool, time.Duration) { return false, us }, 8, waits / 100},
		"in vain, often": {13 * us, func(n int) (bool, time.Duration) { return n%4 != 0, 4 * us }, 8, waits / 20},
		"mostly shorter": {13 * us, func(n int) (bool, time.Duration) { return true, 4*us + time.Duration(n%50/49)*300*us }, waits * 95 / 100, waits},
		"mostly longer":  {13 * us, func(n int) (bool, time.Duration) { return true, 17*us - time.Duration(n%2)*2*us }, 8, waits / 100},
	} {
		if n, _, _ := yielding(new(yielder), waits, c.parked, c.how); n < c.least || n > c.most {
			t.Errorf("%s than a wait that parks: %d of %d waits yield, want %d to %d", what, n, waits, c.least, c.most)
		}
	}
}

// Where somebody else computes on the CPU, a yield takes a time slice now and then. What is
// lost by that is never much more than what the other yields gain.
func TestYieldsLoseFewTimeSlices(t *testing.T) {
	const slice, parked, waits = 3 * time.Millisecond, 30 * time.Microsecond, 200000
	for _, every := range []int{1, 2, 10, 100, 1000, 5000} {
		y := new(yielder)
		for range 100 { // before, it was idle most of the time
			y.hasParked(int64(time.Second))
		}
		yields, total, lost := yielding(y, waits, parked, func(n int) (bool, time.Duration) {
			if n%every == every-1 {
				return true, slice
			}
			return true, 5 * time.Microsecond
		})
		if most := waits * parked * 103 / 100; total > most {
			t.Errorf("where one yield in %d loses a time slice, all waits take %v, and %v if they park; %v are lost in %d yields", every, total, waits*parked, lost, yields)
		}
		if every >= 1000 && yields < waits*9/10 {
			t.Errorf("where one yield in %d loses a time slice, which the others make up for, %d of %d waits yield", every, yields, waits)
		}
	}
}

// After waits that had to park, a few yields find out whether they pay by now, whatever was lost
// before.
func TestYieldsAreTriedAfresh(t *testing.T) {
	const us = int64(time.Microsecond)
	for _, took := range []int64{25 * us, int64(5 * time.Millisecond)} {
		p := spinPolicy{yield: func() {}}
		y := yielder{backoff: backoff{waits: youngWaits}}
		park := func() {
			for !p.mayYield(&y) {
				y.hasParked(15 * us)
			}
		}
		for y.skip == 0 {
			park()
			p.hasYielded(&y, true, 0, took)
		}
		for range debtMax / lossWeight / 2 {
			park()
			p.hasYielded(&y, false, 0, us)
			if y.skip > 0 {
				t.Fatalf("after yields of %v the first that fails ends the trial", time.Duration(took))
			}
		}
		for range 100 {
			park()
			if p.hasYielded(&y, true, 0, 5*us); y.skip > 0 || y.debt > debtMax {
				t.Fatalf("after yields of %v one of 5 µs counts as a loss", time.Duration(took))
			}
		}
	}
}

// Two ends on one CPU gain if both yield: an end that yields gets the CPU late from a peer that
// parks. Neither must keep the other from trying again.
func TestYieldsOfTwoEndsBegin(t *testing.T) {
	var p spinPolicy
	p.yield = func() {}
	ends := [2]yielder{}
	for i := range ends {
		ends[i].waits = youngWaits
	}
	yielded := [2]bool{}
	both := 0
	const waits = 40 * skipMax
	for i := range waits {
		y, peer := &ends[i%2], (i+1)%2
		length := 15 * time.Microsecond // both park
		begins := p.mayYield(y)
		switch {
		case begins && yielded[peer]:
			length = 4 * time.Microsecond
		case begins:
			length = 25 * time.Microsecond
		case yielded[peer]:
			length = 17 * time.Microsecond
		}
		if begins {
			p.hasYielded(y, true, 0, int64(length))
		} else {
			y.hasParked(int64(length))
		}
		if yielded[i%2] = begins; begins && yielded[peer] {
			both++
		}
	}
	if both < waits*9/10 {
		t.Errorf("in %d of %d waits both ends yield", both, waits)
	}
}

func TestMeanTimeFollowsTimesAndPassesOverAFew(t *testing.T) {
	var m meanTime
	if m.get() != 0 {
		t.Fatal("there is a mean of nothing")
	}
	for _, want := range []time.Duration{time.Microsecond, 5 * time.Microsecond, 3 * time.Millisecond, 20 * time.Microsecond} {
		for range 60 {
			m.add(int64(want))
		}
		if got := time.Duration(m.get()); got < want*7/8 || got > want*9/8+time.Microsecond/2 {
			t.Errorf("the mean of many times %v is %v", want, got)
		}
	}
	before := m.get()
	if m.add(int64(time.Second)); m.get() > before*3/2 {
		t.Errorf("one long time turns a mean of %v into %v", time.Duration(before), time.Duration(m.get()))
	}
	for range 100 {
		m.add(int64(time.Hour))
	}
	if got := time.Duration(m.get()); got < 8*time.Millisecond {
		t.Errorf("the mean of long times is %v", got)
	}
	if m.add(0); m.get() == 0 {
		t.Error("a mean has become none")
	}
	m = 0
	m.add(100)
	for range 100 {
		m.add(20000)
	}
	if m.get() < 15000 {
		t.Errorf("after one short time the mean of times of 20 µs is %d ns", m.get())
	}
}

func TestSpinPolicyLeavesTheCPUEverMoreRarely(t *testing.T) {
	var p spinPolicy
	leaves := 0
	at := int64(time.Hour)
	for range 10 * int(time.Second/leaveMin) {
		if p.shouldLeave(at) {
			leaves++
		}
		at += int64(leaveMin)
	}
	if leaves < 40 || leaves > 80 {
		t.Errorf("it leaves %d times in 10 s in which that never helps", leaves)
	}
	var b backoff
	p.begin(0)
	p.end(&b, true)
	if at += int64(leaveMin); !p.shouldLeave(at) {
		t.Error("it does not leave soon after a spin that succeeded")
	}
}

// The least of some calls is what one takes, and it is measured once.
func TestSpinPolicyTimesCalls(t *testing.T) {
	var at int64
	calls, takes := 0, []int64{int64(time.Millisecond), dearCall, dearCall - 1, dearCall}
	p := spinPolicy{clock: func() int64 { return at }}
	p.call = func() { at += takes[calls/8%len(takes)]; calls++ }
	if p.dearCalls() {
		t.Error("calls are dear before they were timed")
	}
	p.timeCalls()
	if p.dearCalls() || p.callTime.Load() != dearCall-1 {
		t.Errorf("a call takes %d ns, want %d", p.callTime.Load(), dearCall-1)
	}
	timed := calls
	if p.timeCalls(); calls != timed {
		t.Error("calls are timed twice")
	}
	p.callTime.Store(0)
	takes = []int64{dearCall}
	if p.timeCalls(); !p.dearCalls() {
		t.Errorf("calls that take %d ns are not dear", p.callTime.Load())
	}
}

// A yield that returns at once tells that nobody waits for the CPU. After one that lost a time
// slice there is none for a while.
func TestSpinPolicyGivesWay(t *testing.T) {
	var at, takes int64
	yields := 0
	p := spinPolicy{clock: func() int64 { return at }, yield: func() { yields++; at += takes }}
	for _, c := range []struct {
		takes  time.Duration
		wanted bool
	}{{switchTime - 1, false}, {switchTime, true}, {sliceLost - 1, true}, {0, false}, {sliceLost, false}} {
		takes = int64(c.takes)
		if got := p.giveWay(at); got != c.wanted {
			t.Errorf("in a yield of %v others have run: %t", c.takes, got)
		}
	}
	before := yields
	for at += (keepShare - 1) * int64(sliceLost); at < p.keepTill.Load(); at += 1000 {
		if p.giveWay(at) {
			t.Fatal("without a yield, others have run")
		}
	}
	if yields != before {
		t.Errorf("%d yields soon after one that lost a time slice", yields-before)
	}
	if p.giveWay(at); yields == before {
		t.Error("no yield ever after one that lost a time slice")
	}
	takes = int64(time.Hour) // as if the process had been stopped
	p.giveWay(p.keepTill.Load())
	if pause := time.Duration(p.keepTill.Load() - at); pause > keepShare*sliceMost {
		t.Errorf("no yield for %v after one of %v", pause, time.Duration(takes))
	}
	if p.yield = nil; p.giveWay(at) {
		t.Error("where nobody can yield, others have run")
	}
}

// leaveBy has the waits of a test call that function when they leave their CPU, as soon as they
// may.
func leaveBy(t *testing.T, leave func()) {
	before, left, gap := spinning.leave, spinning.leftAt.Load(), spinning.leaveGap.Load()
	spinning.leave = leave
	spinning.leftAt.Store(0)
	t.Cleanup(func() {
		spinning.leave = before
		spinning.leftAt.Store(left)
		spinning.leaveGap.Store(gap)
	})
}

// ---------------------------------------------------------------------------
// Shared memory

// sharedPair returns two connected ends, which are closed when the test ends. They do nothing
// for each other, unlike those of SharedPair.
func sharedPair(t *testing.T) (a, b *SharedConn) {
	t.Helper()
	a, b, err := SharedPair()
	if err != nil {
		t.Fatal(err)
	}
	a.twins.part()
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// halfShared returns an end that is to share memory, and its peer, which speaks for itself.
// Both are closed when the test ends.
func halfShared(t *testing.T, passive bool) (c *SharedConn, peer *Conn) {
	t.Helper()
	peer, y, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := ShareConfig{}.complete()
	c = newSharedConn(y.endpoint, cfg, passive)
	t.Cleanup(func() { c.Close(); peer.Close() })
	return c, peer
}

// sharedInMemory returns two ends that have set their memory up, or skips the test.
func sharedInMemory(t *testing.T) (a, b *SharedConn) {
	t.Helper()
	dog := time.AfterFunc(5*time.Minute, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { dog.Stop() })
	a, b = sharedPair(t)
	done := make(chan error, 1)
	go func() { _, err := a.Write(make([]byte, earlyMax+1)); done <- err }()
	if _, err := io.ReadFull(b, make([]byte, earlyMax+1)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !UsesMemory(a) {
		t.Skip("this system has no memory that can be shared safely")
	}
	return a, b
}

// ---------------------------------------------------------------------------
// Hostile peers

// hostile is what a peer can do to the words that it writes. None may panic, make the
// other end touch what is not in the ring, or keep it from ending by its deadline.
var hostile = map[string]func(p *controlPage, random *rand.Rand){
	"scribbles everywhere": func(p *controlPage, random *rand.Rand) {
		for _, word := range [...]*atomic.Uint32{&p.head, &p.tail, &p.rwait, &p.wwait} {
			word.Store(random.Uint32())
		}
		p.wclosed.Store(random.Uint32() & 1)
		p.rclosed.Store(random.Uint32() & 1)
	},
	"head jumps":          func(p *controlPage, random *rand.Rand) { p.head.Store(random.Uint32()) },
	"head goes back":      func(p *controlPage, random *rand.Rand) { p.head.Add(^uint32(0)) },
	"head is too far":     func(p *controlPage, random *rand.Rand) { p.head.Add(bufferDefault + 1) },
	"tail jumps":          func(p *controlPage, random *rand.Rand) { p.tail.Store(random.Uint32()) },
	"tail goes back":      func(p *controlPage, random *rand.Rand) { p.tail.Add(^uint32(0)) },
	"tail passes head":    func(p *controlPage, random *rand.Rand) { p.tail.Add(1) },
	"always asks to ring": func(p *controlPage, random *rand.Rand) { p.rwait.Add(2); p.wwait.Add(2); p.rwait.Or(1); p.wwait.Or(1) },
	"closes and opens": func(p *controlPage, random *rand.Rand) {
		p.wclosed.Store(random.Uint32())
		p.rclosed.Store(random.Uint32())
	},
}

func TestSharedHostileControlPage(t *testing.T) {
	t.Parallel()
	for name, attack := range hostile {
		t.Run(name, func(t *testing.T) {
			rounds := 200
			if testing.Short() {
				rounds = 20
			}
			a, b := sharedInMemory(t)
			for round := range rounds {
				if round%20 == 19 {
					a.Close()
					b.Close()
					a, b = sharedInMemory(t)
				}
				random := rand.New(rand.NewSource(int64(round)))
				useWhile(t, a, func() { attack(b.ownMem.control(), random) })
			}
		})
	}
}

// useWhile uses the connection in every way while somebody attacks it.
func useWhile(t *testing.T, c *SharedConn, attack func()) {
	t.Helper()
	c.SetDeadline(time.Now().Add(3 * time.Millisecond))
	var busy sync.WaitGroup
	check := func(err error) {
		if err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.EPROTO) {
			t.Errorf("unexpected: %v", err)
		}
	}
	busy.Go(func() {
		buf := make([]byte, 100<<10)
		for range 5 {
			n, err := c.Read(buf)
			if n < 0 || n > len(buf) {
				t.Errorf("%d bytes are read", n)
			}
			check(err)
			p, err := c.Peek(0)
			if len(p) > bufferDefault {
				t.Errorf("%d bytes are there", len(p))
			}
			bytes.Count(p, []byte{0}) // all of them can be read
			check(err)
			if err == nil {
				check(c.Discard(len(p)))
			}
		}
	})
	busy.Go(func() {
		buf := make([]byte, 100<<10)
		for range 5 {
			_, err := c.Write(buf)
			check(err)
			p, err := c.Reserve(30 << 10)
			check(err)
			if err == nil {
				clear(p)
				check(c.Commit(len(p)))
			}
		}
	})
	quit := make(chan struct{})
	var attacker sync.WaitGroup
	attacker.Go(func() {
		for {
			select {
			case <-quit:
				return
			default:
				attack()
				runtime.Gosched()
			}
		}
	})
	busy.Wait()
	close(quit)
	attacker.Wait()
}

// An index that cannot be is noticed, and everything ends.
func TestSharedImpossibleIndexEndsTheConnection(t *testing.T) {
	for name, damage := range map[string]func(p *controlPage){
		"head": func(p *controlPage) { p.head.Add(bufferDefault + 1) },
		"tail": func(p *controlPage) { p.tail.Add(1 << 20) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := sharedInMemory(t)
			waiting := make(chan error, 1)
			go func() { // waits for what the damage is not about
				if name == "head" {
					_, err := a.Write(make([]byte, 1<<20))
					waiting <- err
				} else {
					_, err := a.Read(make([]byte, 1))
					waiting <- err
				}
			}()
			waitForEpoch(t, a)
			damage(b.ownMem.control())
			if name == "head" {
				_, err := a.Read(make([]byte, 1))
				isProtocolError(t, err)
			} else {
				_, err := a.Write(make([]byte, 1<<20))
				isProtocolError(t, err)
			}
			isProtocolError(t, <-waiting)
			_, err := b.Write([]byte("x")) // the peer learns of the end
			if !errors.Is(err, syscall.EPIPE) {
				t.Errorf("the peer's write: %v", err)
			}
		})
	}
}

// An index that goes back is found out before what is on loan is given back: else there would
// be more in the ring than its size.
func TestSharedIndexThatGoesBackBehindALoan(t *testing.T) {
	t.Run("Peek", func(t *testing.T) {
		a, b := sharedInMemory(t)
		a.SetDeadline(time.Now().Add(20 * time.Second))
		b.Write(make([]byte, 10))
		if p, err := a.Peek(4); len(p) != 4 || err != nil {
			t.Fatal(len(p), err)
		}
		b.ownMem.control().head.Add(^uint32(9))
		_, err := a.Peek(100)
		isProtocolError(t, err)
		a.Discard(4)
		p, err := a.Peek(0)
		isProtocolError(t, err)
		if len(p) > 0 {
			t.Errorf("%d bytes are there", len(p))
		}
	})
	t.Run("Reserve", func(t *testing.T) {
		a, b := sharedInMemory(t)
		a.SetDeadline(time.Now().Add(20 * time.Second))
		a.Write(make([]byte, 100))
		if _, err := io.ReadFull(b, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		// So that it knows of this much room and no more.
		for range 2 {
			if _, err := a.Reserve(bufferDefault / 2); err != nil {
				t.Fatal(err)
			}
			if err := a.Commit(bufferDefault/2 - 100); err != nil {
				t.Fatal(err)
			}
			if _, err := a.Reserve(1); err != nil {
				t.Fatal(err)
			}
		}
		b.ownMem.control().tail.Add(^uint32(49))
		_, err := a.Reserve(bufferDefault / 2)
		isProtocolError(t, err)
	})
}

// What Peek returns with an error is nobody's to give back.
func TestSharedPeekToTheEndLeavesNothingMapped(t *testing.T) {
	for _, n := range []int{0, 100} { // as many as there are, and more
		a, b := sharedInMemory(t)
		b.Write(make([]byte, 10))
		b.CloseWrite()
		p, err := a.Peek(n)
		if n == 0 {
			if len(p) != 10 || err != nil {
				t.Fatal(len(p), err)
			}
			a.Discard(10)
			p, err = a.Peek(0)
		}
		if want := min(n, 10); len(p) != want || err != io.EOF {
			t.Errorf("Peek: %d bytes, %v; want %d, EOF", len(p), err, want)
		}
		a.Close()
		if a.peerMem != nil || a.ownMem != nil {
			t.Errorf("Peek(%d): memory stays mapped after Close", n)
		}
	}
}

// sharedMappedOnce is sharedInMemory in a process that has mapped so many rings that it maps
// each further one only once.
func sharedMappedOnce(t *testing.T) (a, b *SharedConn) {
	t.Helper()
	defer mapMore(limitTwice.rings, 0)()
	return sharedInMemory(t)
}

// mapMore counts so many rings more, or so much more space, until the function that it returns is
// called.
func mapMore(rings int, space int64) (undo func()) {
	add := func(sign int) {
		ringsMapped.mu.Lock()
		defer ringsMapped.mu.Unlock()
		ringsMapped.rings += sign * rings
		ringsMapped.space += int64(sign) * space
	}
	add(1)
	return func() { add(-1) }
}

// mappedNow returns how many rings are mapped, and the space that they take.
func mappedNow() (rings int, space int64) {
	ringsMapped.mu.Lock()
	defer ringsMapped.mu.Unlock()
	return ringsMapped.rings, ringsMapped.space
}

// What Reserve has lent may move out of the ring. Then the ring is no longer on loan.
func TestSharedLoanThatMovesLeavesNothingMapped(t *testing.T) {
	a, b := sharedMappedOnce(t)
	go io.Copy(io.Discard, b)
	for at := 0; at < bufferDefault-20; at = int(a.out.head % bufferDefault) {
		if _, err := a.Write(make([]byte, min(1000, bufferDefault-20-at))); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{10, 1000} {
		if _, err := a.Reserve(n); err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	a.Commit(0)
	if a.ownMem != nil {
		t.Error("the memory stays mapped after Close")
	}
}

// A peer may hold up the system call of a half. Close does not wait for that half, and the
// memory goes when it is free.
func TestSharedConnCloseLeavesAHalfThatIsHeld(t *testing.T) {
	for _, half := range []string{"r", "w"} {
		a, _ := sharedInMemory(t)
		held := &a.r.mu
		if half == "w" {
			held = &a.w.mu
		}
		if _, err := a.Reserve(10); err != nil {
			t.Fatal(err)
		}
		a.Commit(0)
		held.Lock()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if a.mapped() != 2 {
			t.Errorf("%s: the memory was unmapped while a call had it", half)
		}
		held.Unlock()
		for a.mapped() != 0 { // until the watchdog
			runtime.Gosched()
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: then a read: %v", half, err)
		}
	}
}

// A loan that is given back while another half is held goes with the rest of the memory.
func TestSharedLoanOutlivesACloseThatLeavesAHalf(t *testing.T) {
	a, _ := sharedInMemory(t)
	p, err := a.Reserve(10)
	if err != nil {
		t.Fatal(err)
	}
	a.r.mu.Lock()
	a.Close()
	copy(p, "still there")
	a.Commit(0)
	if a.mapped() != 2 {
		t.Error("the end of the loan unmaps what the other half has")
	}
	a.r.mu.Unlock()
	for a.mapped() != 0 { // until the watchdog
		runtime.Gosched()
	}
}

// mapped returns how many of the two memory objects are mapped.
func (c *SharedConn) mapped() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range [...]*mapping{c.ownMem, c.peerMem} {
		if m != nil {
			n++
		}
	}
	return n
}

// A process that has mapped very many rings, or very large ones, maps no more of them. First it maps
// them once.
func TestSharedConnUsesTheSocketWhereManyRingsAreMapped(t *testing.T) {
	if !sharesMemory {
		t.Skip("no memory is shared here")
	}
	dog := time.AfterFunc(5*time.Minute, func() { panic(t.Name() + " hangs") })
	defer dog.Stop()
	before, spaceBefore := mappedNow()
	for name, more := range map[string]struct {
		ringLimit
		inMemory, once bool
	}{
		"none":      {inMemory: true},
		"many":      {ringLimit{limitTwice.rings, 0}, true, true},
		"too many":  {ringLimit{limitOwn.rings, 0}, false, false},
		"large":     {ringLimit{0, limitTwice.space}, true, true},
		"too large": {ringLimit{0, limitOwn.space}, false, false},
	} {
		undo := mapMore(more.rings, more.space)
		a, b, err := SharedPair()
		if err != nil {
			t.Fatal(err)
		}
		a.SetDeadline(time.Now().Add(20 * time.Second))
		b.SetDeadline(time.Now().Add(20 * time.Second))
		wrote := make(chan error, 1)
		go func() { _, err := a.Write(make([]byte, 2*earlyMax)); wrote <- err }()
		if _, err := io.ReadFull(b, make([]byte, 2*earlyMax)); err != nil {
			t.Error(err)
		}
		if err := <-wrote; err != nil {
			t.Error(err)
		}
		for _, c := range [...]*SharedConn{a, b} {
			if UsesMemory(c) != more.inMemory {
				t.Errorf("%s: in memory: %v", name, UsesMemory(c))
			} else if more.once && c.ownMem.again+c.peerMem.again != 0 {
				t.Errorf("%s: mapped again: %d bytes and %d", name, c.ownMem.again, c.peerMem.again)
			}
		}
		a.Close()
		b.Close()
		undo()
	}
	if n, space := mappedNow(); n > before || space > spaceBefore {
		t.Errorf("%d rings with %d bytes are counted before, %d with %d after", before, spaceBefore, n, space)
	}
}

// A server that has no addresses left for the memory of a client serves it through the socket.
func TestSharedConnWhereTheAddressesEnd(t *testing.T) {
	if !sharesMemory {
		t.Skip("no memory is shared here")
	}
	server, peer := halfShared(t, true)
	cfg, _ := ShareConfig{}.complete()
	client := newSharedConn(peer.endpoint, cfg, false)
	defer client.Close()
	server.SetDeadline(time.Now().Add(20 * time.Second))
	client.SetDeadline(time.Now().Add(20 * time.Second))
	const size = earlyMax + 1000
	wrote := make(chan error, 1)
	go func() { _, err := client.Write(make([]byte, size)); wrote <- err }()
	for !SentMemory(client) {
		runtime.Gosched()
	}
	_, space := mappedNow()
	defer mapMore(0, limitPeers.space-space)()
	if _, err := io.ReadFull(server, make([]byte, size)); err != nil {
		t.Error(err)
	}
	if err := <-wrote; err != nil || UsesMemory(server) || UsesMemory(client) {
		t.Errorf("in memory: %v and %v, %v", UsesMemory(server), UsesMemory(client), err)
	}
}

// CloseRead wakes a write of the peer that is parked since the ring is full.
func TestSharedCloseReadWakesThePeersWrite(t *testing.T) {
	a, b := sharedInMemory(t)
	a.SetSpin(-1)
	a.SetDeadline(time.Now().Add(20 * time.Second))
	wrote := make(chan error, 1)
	go func() { _, err := a.Write(make([]byte, 2*bufferDefault)); wrote <- err }()
	for a.ownMem.control().wwait.Load()&1 == 0 {
		runtime.Gosched()
	}
	if err := b.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; !errors.Is(err, syscall.EPIPE) {
		t.Error(err)
	}
}

// A failure that comes after Close, while what Reserve returned is in use, tells nobody.
func TestSharedFailureAfterCloseIsHarmless(t *testing.T) {
	a, _ := sharedInMemory(t)
	if _, err := a.Reserve(10); err != nil {
		t.Fatal(err)
	}
	a.Close()
	a.fail(protocolError("by RecvFiles, which holds no half"))
}

// A failure ends every wait, also one that spins.
func TestSharedFailureEndsASpin(t *testing.T) {
	a, b := sharedInMemory(t)
	a.SetDeadline(time.Now().Add(20 * time.Second))
	a.SetSpin(time.Hour)
	asked := spinning.asked.Load()
	read := make(chan error, 1)
	go func() { _, err := a.Read(make([]byte, 1)); read <- err }()
	for spinning.asked.Load() == asked && a.ownMem.control().rwait.Load()&1 == 0 { // it parks if another spins
		runtime.Gosched()
	}
	b.ownMem.control().tail.Add(1 << 20)
	_, err := a.Write(make([]byte, 2*bufferDefault))
	isProtocolError(t, err)
	isProtocolError(t, <-read)
}

func TestSharedCommitFailsWithTheConnection(t *testing.T) {
	a, b := sharedInMemory(t)
	if _, err := a.Reserve(10); err != nil {
		t.Fatal(err)
	}
	b.ownMem.control().head.Add(1 << 24)
	_, err := a.Read(make([]byte, 1))
	isProtocolError(t, err)
	isProtocolError(t, a.Commit(10))
}

// A write that has waited in vain takes the room that there is after all: the peer does not
// ring for so little.
func TestSharedWriteTakesTheRoomThatNobodyTellsOf(t *testing.T) {
	a, b := sharedInMemory(t)
	a.SetSpin(-1)
	wrote := make(chan int, 1)
	go func() { n, _ := a.Write(make([]byte, bufferDefault+100)); wrote <- n }()
	waitForEpoch(t, a)
	if _, err := io.ReadFull(b, make([]byte, 50)); err != nil {
		t.Fatal(err)
	}
	a.SetWriteDeadline(time.Unix(1, 0))
	if n := <-wrote; n != bufferDefault+50 {
		t.Errorf("%d bytes are written, want %d", n, bufferDefault+50)
	}
}

// Nobody reads the socket of a connection in memory but for files.
func TestSharedRecvFilesRefusesWhatIsBesideTheRing(t *testing.T) {
	a, b := sharedInMemory(t)
	a.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := b.base.fd.write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_, err := a.RecvFiles(1)
	isProtocolError(t, err)
	_, err = a.Read(make([]byte, 1))
	isProtocolError(t, err)
}

// A call that finds bytes, or room, each time it looks ends all the same as one that waits.
func TestSharedCallThatNeedNotWaitEnds(t *testing.T) {
	for name, end := range map[string]func(c *SharedConn){
		"deadline": func(c *SharedConn) { c.SetDeadline(time.Unix(1, 0)) },
		"shut":     func(c *SharedConn) { c.r.shut.Store(true); c.w.shut.Store(true) },
		"closed":   func(c *SharedConn) { c.closed.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := sharedInMemory(t)
			if _, err := a.Write(make([]byte, 4*copyMax)); err != nil {
				t.Fatal(err)
			}
			avail, err := b.awaitData(1)
			if err != nil {
				t.Fatal(err)
			}
			end(a)
			end(b)
			if n := b.readRing(make([]byte, 4*copyMax), avail); n != copyMax {
				t.Errorf("%d bytes are read", n)
			}
			if n, err := a.writeRing(make([]byte, 4*copyMax)); n > copyMax || err == nil {
				t.Errorf("%d bytes are written, %v", n, err)
			}
			a.closed.Store(false)
			b.closed.Store(false)
		})
	}
}

// waitForEpoch waits until a half of the connection is parked.
func waitForEpoch(t *testing.T, c *SharedConn) {
	t.Helper()
	p := c.ownMem.control()
	for end := time.Now().Add(20 * time.Second); (p.rwait.Load()|p.wwait.Load())&1 == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody parks")
		}
	}
}

func isProtocolError(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, syscall.EPROTO) {
		t.Errorf("error is %v, not that the peer broke the protocol", err)
	}
}

// Doorbells beyond what was asked for cost time, and nothing else.
func TestSharedSurplusDoorbells(t *testing.T) {
	a, b := sharedInMemory(t)
	quit, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-quit:
				return
			default:
				ringBell(b.r.far)
				ringBell(b.w.far)
			}
		}
	}()
	a.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	a.SetReadDeadline(time.Time{})
	converse(t, a, b, 200)
	reading := make(chan error, 1)
	go func() { _, err := a.Read(make([]byte, 1)); reading <- err }()
	waitForEpoch(t, a)
	a.Close()
	if err := <-reading; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	close(quit)
	<-stopped
}

// A peer that never takes its doorbells does not hold up who rings them.
func TestSharedDoorbellsThatNobodyTakes(t *testing.T) {
	a, b := sharedInMemory(t)
	page := b.ownMem.control()
	buf := make([]byte, 1)
	end := time.Now().Add(20 * time.Second) // a slow machine rings less often
	for i := uint32(0); i < 20000 && time.Now().Before(end); i++ {
		page.rwait.Store(2*i + 1)
		page.tail.Store(a.out.head) // it reads everything at once
		if _, err := a.Write(buf); err != nil {
			t.Fatal(err)
		}
	}
	if a.out.head == 0 {
		t.Error("nothing was written")
	}
}

// converse makes n round trips.
func converse(t *testing.T, a, b *SharedConn, n int) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, 10)
		for range n {
			if _, err := io.ReadFull(b, buf); err != nil {
				done <- err
				return
			}
			if _, err := b.Write(buf); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	buf := make([]byte, 10)
	for i := range n {
		buf[0] = byte(i)
		if _, err := a.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(a, buf); err != nil {
			t.Fatal(err)
		}
		if buf[0] != byte(i) {
			t.Fatalf("%d comes back as %d", byte(i), buf[0])
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// ---------------------------------------------------------------------------
// Wrapping

// skipAhead makes both ends believe that so many bytes went each way, and so many waits.
func skipAhead(a, b *SharedConn, bytes, epochs uint32) {
	for _, ends := range [...][2]*SharedConn{{a, b}, {b, a}} {
		c, peer := ends[0], ends[1]
		c.out.head, c.out.tail = c.out.head+bytes, c.out.head+bytes
		peer.in.tail, peer.in.head = c.out.head, c.out.head
		c.ownMem.control().head.Store(c.out.head)
		peer.ownMem.control().tail.Store(peer.in.tail)
		for _, h := range [...]*sharedHalf{&c.r, &c.w} {
			h.epoch = epochs &^ 1
			h.word.Store(h.epoch)
		}
	}
}

// The indices wrap at 2^32, and so do the epochs.
func TestSharedIndicesAndEpochsWrap(t *testing.T) {
	for _, ends := range []func(*testing.T) (a, b *SharedConn){sharedInMemory, sharedMappedOnce} {
		a, b := ends(t)
		a.SetSpin(-1)
		b.SetSpin(-1)
		skipAhead(a, b, 1<<32-1-3*bufferDefault, 1<<32-20)
		const total = 10 * bufferDefault
		done := make(chan error, 1)
		go func() {
			for i := 0; i < total; {
				n := min(1+i*7%50000, total-i)
				p := make([]byte, n)
				for j := range p {
					p[j] = byte((i + j) * 13 >> 3)
				}
				if _, err := a.Write(p); err != nil {
					done <- err
					return
				}
				i += n
			}
			done <- nil
		}()
		buf := make([]byte, 70000)
		for i := 0; i < total; {
			n, err := b.Read(buf[:1+i*11%len(buf)])
			if err != nil {
				t.Fatal(err)
			}
			for j, v := range buf[:n] {
				if v != byte((i+j)*13>>3) {
					t.Fatalf("byte %d is %d", i+j, v)
				}
			}
			i += n
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		converse(t, a, b, 50)
		if b.in.tail > bufferDefault*20 || b.r.epoch > 1<<31 && a.r.epoch > 1<<31 {
			t.Errorf("nothing has wrapped: %d bytes, epochs %d and %d", b.in.tail, a.r.epoch, b.r.epoch)
		}
	}
}

// Where the ring cannot be mapped twice in a row, what goes around its end is copied.
func TestSharedRingMappedOnce(t *testing.T) {
	a, b := sharedMappedOnce(t)
	if a.ownMem.again != 0 {
		t.Fatal("mapped twice")
	}
	for n := range 100 {
		size := bufferDefault/2 - n*13
		p, err := a.Reserve(size)
		if err != nil {
			t.Fatal(err)
		}
		for i := range p {
			p[i] = byte(i + n)
		}
		if err := a.Commit(size); err != nil {
			t.Fatal(err)
		}
		q, err := b.Peek(size)
		if err != nil {
			t.Fatal(err)
		}
		for i := range q {
			if q[i] != byte(i+n) {
				t.Fatalf("round %d: byte %d is %d", n, i, q[i])
			}
		}
		if err := b.Discard(size); err != nil {
			t.Fatal(err)
		}
	}
}

// ---------------------------------------------------------------------------
// The two faults

// A late doorbell: the writer is held up between its index and its look at the epoch. By
// then the reader has taken the bytes and is parked again, for the next ones. The doorbell
// that it then gets in vain must not count as that of its wait.
func TestSharedLateDoorbell(t *testing.T) {
	a, b := sharedInMemory(t)
	b.SetSpin(-1)
	got := make(chan byte)
	go func() {
		buf := make([]byte, 1)
		for {
			if _, err := b.Read(buf); err != nil {
				close(got)
				return
			}
			got <- buf[0]
		}
	}()
	for i := range byte(50) {
		// Write, in steps.
		a.out.put([]byte{i}, 1)
		a.out.head++
		a.out.own.head.Store(a.out.head)
		ringBell(a.w.far) // so that the reader sees it, parked or not
		if v := <-got; v != i {
			t.Fatalf("read %d, want %d", v, i)
		}
		waitForEpoch(t, b)
		a.wakePeer(&a.w, a.out.peer.rwait.Load(), &a.out.woken) // late

		// The next one must ring again.
		if _, err := a.Write([]byte{i + 100}); err != nil {
			t.Fatal(err)
		}
		select {
		case v := <-got:
			if v != i+100 {
				t.Fatalf("read %d, want %d", v, i+100)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the reader was not woken")
		}
		waitForEpoch(t, b)
	}
	a.Close()
	for range got {
	}
}

// Both halves of one end are parked, and each gets its own doorbells.
func TestSharedBothHalvesParked(t *testing.T) {
	a, b := sharedInMemory(t)
	for _, c := range [...]*SharedConn{a, b} {
		c.SetSpin(-1)
	}
	for range 30 {
		wrote, read := make(chan error, 1), make(chan error, 1)
		go func() { _, err := a.Write(make([]byte, 2*bufferDefault)); wrote <- err }()
		go func() { _, err := io.ReadFull(a, make([]byte, 100)); read <- err }()
		p := a.ownMem.control()
		for p.rwait.Load()&1 == 0 || p.wwait.Load()&1 == 0 {
			time.Sleep(100 * time.Microsecond)
		}
		if _, err := b.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b, make([]byte, 2*bufferDefault)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(<-wrote, <-read); err != nil {
			t.Fatal(err)
		}
	}
}

// ---------------------------------------------------------------------------
// Hellos

// The reading of a hello never panics, and believes no size that cannot be.
func FuzzSharedHello(f *testing.F) {
	for _, ring := range [...]int{0, ringMin, bufferDefault, ringMax} {
		for what := range byte(2 * helloReadShut) {
			hello := helloOf(what, ring)
			f.Add(hello[:])
		}
	}
	f.Add(make([]byte, helloSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < helloSize {
			return
		}
		what, ring, err := parseHello(b[:helloSize])
		if err == nil && (what == helloMemory || what&helloEarly == 0 && ring != 0) && (ring < ringMin || ring > ringMax || ring&(ring-1) != 0) {
			t.Fatalf("a ring of %d bytes", ring)
		}
	})
}

// FuzzSharedControlPage gives the reader and the writer control pages of any content, which
// change between any two steps.
func FuzzSharedControlPage(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17})
	f.Add(bytes.Repeat([]byte{0xff, 0, 0x80}, 50))
	f.Add(bytes.Repeat([]byte{1, 0, 0, 0, 2, 3, 0, 1}, 20))
	f.Fuzz(func(t *testing.T, script []byte) {
		const size = 256
		next := func() byte {
			if len(script) == 0 {
				return 0
			}
			v := script[0]
			script = script[1:]
			return v
		}
		word := func() uint32 {
			v := uint32(next())
			if v&1 != 0 { // a distance that is nearly possible, or anything
				return v >> 1 * 3
			}
			return v | uint32(next())<<8 | uint32(next())<<16 | uint32(next())<<24
		}
		var own, peer controlPage
		in := ringReader{own: &own, peer: &peer, data: make([]byte, 2*size), size: size}
		out := ringWriter{own: &own, peer: &peer, data: make([]byte, 2*size), size: size}
		if next()&1 != 0 {
			in.data, out.data = in.data[:size], out.data[:size]
		}
		start := word()
		in.tail, in.head, out.head, out.tail = start, start, start, start
		peer.head.Store(start)
		peer.tail.Store(start)
		buf := make([]byte, 2*size)
		for len(script) > 0 {
			peer.head.Store(in.tail + word())
			peer.tail.Store(out.head - word())
			peer.rwait.Store(word())
			peer.wwait.Store(word())
			need := word() % (size / 2)
			in.ready(need)
			out.ready(need)
			if avail, err := in.available(need); err == nil {
				if avail > size {
					t.Fatalf("%d bytes are available", avail)
				}
				if p, whole := in.span(avail); whole && uint32(len(p)) != avail {
					t.Fatalf("%d bytes in one piece, not %d", len(p), avail)
				}
				in.consume(in.take(buf[:next()], avail))
			}
			if room, err := out.room(need); err == nil {
				if room > size {
					t.Fatalf("there is room for %d bytes", room)
				}
				out.span(room)
				out.publish(out.put(buf[:next()], room))
			}
		}
	})
}

// A peer's hello that is none, or comes with the wrong things, ends the connection and
// leaves nothing behind.
func TestSharedHelloWithWrongFiles(t *testing.T) {
	hello := func(ring int) []byte {
		what := byte(helloMemory)
		if ring == 0 {
			what = 0
		}
		b := helloOf(what, ring)
		return b[:]
	}
	null := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	memory := func(size int) *os.File {
		m, err := NewMemory(size)
		if err != nil {
			t.Skip(err)
		}
		defer m.Close()
		f, err := m.File()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	other := hello(ringMin)
	other[8], other[11] = other[11], other[8]
	flags := hello(ringMin)
	flags[12] = 3
	odd := hello(ringMin)
	odd[16] = 1
	newer := helloOf(helloEarly, 0)
	newer[len(helloMark)]++
	for name, peer := range map[string]struct {
		hello []byte
		files []*os.File
	}{
		"no files":          {hello(ringMin), nil},
		"two files":         {hello(ringMin), []*os.File{memory(controlSize + ringMin), null()}},
		"no memory":         {hello(ringMin), []*os.File{null(), null(), null()}},
		"no doorbell":       {hello(ringMin), []*os.File{memory(controlSize + ringMin), null(), null()}},
		"memory too small":  {hello(ringMin), []*os.File{memory(controlSize + ringMin - 1<<12), null(), null()}},
		"memory too large":  {hello(ringMin), []*os.File{memory(controlSize + 2*ringMin), null(), null()}},
		"control page only": {hello(ringMin), []*os.File{memory(4096), null(), null()}},
		"four files":        {hello(ringMin), []*os.File{null(), null(), null(), null()}},
		"files and no use":  {hello(0), []*os.File{null(), null(), null()}},
		"odd size":          {odd, []*os.File{null(), null(), null()}},
		"unknown flags":     {flags, nil},
		"another order":     {other, nil},
		"another version":   {newer[:], nil},
	} {
		for _, passive := range []bool{false, true} {
			c, x := halfShared(t, passive)
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			var err error
			if len(peer.files) > 0 {
				err = x.fd.sendWithFiles(peer.hello, peer.files)
			} else {
				_, err = x.Write(peer.hello)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Read(make([]byte, 1))
			if !errors.Is(err, syscall.EPROTO) {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := c.Write(make([]byte, 1)); err == nil {
				t.Errorf("%s: a write goes somewhere", name)
			}
			c.Close()
			x.Close()
		}
		discardFiles(peer.files)
	}
}

// A peer that sends more early data than there may be, or something else that makes no sense,
// ends the connection.
func TestSharedHostileEarlyData(t *testing.T) {
	hello := func(what byte, size int) string { b := helloOf(what, size); return string(b[:]) }
	for name, said := range map[string]string{
		"too much at once":     hello(helloEarly, earlyMax+1) + strings.Repeat("x", earlyMax+1),
		"a size that is huge":  hello(helloEarly, -1),
		"too much in all":      strings.Repeat(hello(helloEarly, 1000)+strings.Repeat("x", 1000), 5),
		"nothing again":        strings.Repeat(hello(helloEarly, 0), 1000),
		"asks again":           strings.Repeat(hello(helloEarly|helloAsk, 0), 1000),
		"no hello behind data": hello(helloEarly, 1) + "xGET / HTTP/1.1\r\n",
	} {
		for _, passive := range []bool{false, true} {
			c, x := halfShared(t, passive)
			c.SetDeadline(time.Now().Add(time.Minute))
			go func() { io.WriteString(x, said) }()
			go io.Copy(io.Discard, struct{ io.Reader }{x})
			if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.EPROTO) {
				t.Errorf("%s: %v", name, err)
			}
			if len(c.ahead) > earlyMax {
				t.Errorf("%s: %d bytes are kept", name, len(c.ahead))
			}
			if _, err := c.Write(make([]byte, 1)); !errors.Is(err, syscall.EPROTO) {
				t.Errorf("%s: %v", name, err)
			}
			c.Close()
			x.Close()
		}
	}
}

// Early data that is received while a call that sends ends the handshake is not kept: from then on reads
// look at what was read ahead without the lock.
func TestSharedEarlyDataAfterTheHandshakeHasFailed(t *testing.T) {
	c, x := halfShared(t, true)
	if _, err := x.Write(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	hs := c.hello
	hs.due = 10
	c.mu.Lock()
	c.settle(hs, protocolError("in this test"))
	c.mu.Unlock()
	c.base.fd.setDeadline(time.Time{}, reading|writing)
	if err := c.receiveEarly(hs); err != nil || hs.due != 0 {
		t.Fatalf("%d bytes are missing, %v", hs.due, err)
	}
	if len(c.ahead) != 0 {
		t.Errorf("%d bytes are kept", len(c.ahead))
	}
	_, err := c.Read(make([]byte, 1))
	isProtocolError(t, err)
}

// A peer that has no memory to share says so, and the connection goes through the socket.
func TestSharedPeerWithoutMemory(t *testing.T) {
	for _, passive := range []bool{false, true} {
		c, x := halfShared(t, passive)
		hello := helloOf(0, 0)
		if _, err := x.Write(append(hello[:], "text"...)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := io.ReadFull(c, buf[:4]); err != nil || string(buf[:n]) != "text" {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		if c.InMemory() {
			t.Error("in memory with a peer that has none")
		}
		if _, err := c.Write([]byte("answer")); err != nil {
			t.Error(err)
		}
		n, files, err := x.fd.recvRights(buf[:helloSize], maxFiles)
		if !passive { // it has asked for nothing but the peer's hello
			if what, size, err := parseHello(buf[:n]); err != nil || what != helloEarly || size != 0 {
				t.Errorf("the first hello is %q, %v", buf[:n], err)
			}
			n, files, err = x.fd.recvRights(buf[:helloSize], maxFiles)
		}
		if err != nil || n != helloSize || string(buf[:len(helloMark)]) != helloMark {
			t.Errorf("the hello is %q, %v", buf[:n], err)
		}
		if len(files) > 0 {
			t.Error("memory was sent to a peer that cannot use it")
		}
		discardFiles(files)
		if n, err := io.ReadFull(x, buf[:6]); err != nil || string(buf[:n]) != "answer" {
			t.Errorf("the answer is %q, %v", buf[:n], err)
		}
		c.Close()
		x.Close()
	}
}

// Close brings a peer that is parked to look, also if somebody else has a duplicate of its
// doorbell, so that it does not end.
func TestSharedCloseRings(t *testing.T) {
	a, b := sharedInMemory(t)
	b.SetSpin(-1)
	for _, bell := range [...]*fd{a.r.far, a.w.far} {
		f, err := bell.dupFile("duplicate")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	read, wrote := make(chan error, 1), make(chan error, 1)
	go func() { _, err := b.Read(make([]byte, 1)); read <- err }()
	go func() { _, err := b.Write(make([]byte, 2*bufferDefault)); wrote <- err }()
	p := b.ownMem.control()
	for p.rwait.Load()&1 == 0 || p.wwait.Load()&1 == 0 {
		time.Sleep(100 * time.Microsecond)
	}
	a.Close()
	if err := <-read; err != io.EOF {
		t.Errorf("read: %v", err)
	}
	if err := <-wrote; !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write: %v", err)
	}
}

// A half whose spins are in vain soon spins no more, and one that loses a few of a hundred goes on.
func TestSharedSpinBacksOff(t *testing.T) {
	limit := int64(spinShared)
	for _, asleep := range []bool{false, true} {
		var s sharedSpin
		spins := 0
		for range 10000 {
			spun := s.budget(limit, 4*limit, asleep)
			if spun > 0 {
				spins++
			}
			if spun > 4*limit {
				t.Fatalf("a spin of %d ns", spun)
			}
			s.outcome(spun, false, asleep, int64(spinSharedShort)/2)
		}
		if spins > 200 {
			t.Errorf("%d of 10000 waits spin in vain", spins)
		}
	}
	var s sharedSpin
	skipped := 0
	for i := range 10000 {
		spun := s.budget(limit, 4*limit, false)
		if spun == 0 {
			skipped++
		}
		s.outcome(spun, spun > 0 && i%50 != 0, false, limit)
	}
	if skipped > 0 {
		t.Errorf("%d of 10000 waits do not spin, though 98 of 100 spins are enough", skipped)
	}
}

// All connections together lose no more than a part of the time that passes, and what was
// left over from before, unless their spins save time.
func TestSharedSpinLosesNoMoreThanItsShare(t *testing.T) {
	var account lossAccount
	const loss, step, most = int64(spinShared), int64(10 * time.Microsecond), int64(spinSharedAhead)
	at := int64(1)
	lost := func(during time.Duration) (sum int64) {
		for end := at + int64(during); at < end; at += step {
			if account.mayLose(at) {
				account.add(-loss)
				sum += loss
			}
		}
		return sum
	}
	if account.mayLose(at) {
		t.Error("a spin may fail before any time has passed")
	}
	share := int64(time.Second / spinSharedShare)
	if n := lost(time.Second); n < share*9/10 || n > share+loss {
		t.Errorf("they lose %v in a second, want about %v", time.Duration(n), time.Duration(share))
	}
	if at += int64(time.Hour); !account.mayLose(at) || account.balance.Load() != most {
		t.Errorf("after an hour they may lose %v, want %v", time.Duration(account.balance.Load()), time.Duration(most))
	}
	if n := lost(time.Millisecond); n < most || n > most+2*loss {
		t.Errorf("they lose %v in the first millisecond after it, want about %v", time.Duration(n), time.Duration(most))
	}
	if account.mayLose(at) {
		t.Error("they may lose more than that")
	}
	if account.add(loss + 1); !account.mayLose(at) {
		t.Error("what spins have saved may not be lost again")
	}
}

// The waits of a connection draw on the account of all: a spin that fails costs what it took,
// and one that is enough brings something in.
func TestSharedSpinIsOnTheAccountOfAll(t *testing.T) {
	neverYield(t)
	a, b := sharedInMemory(t)
	defer spinning.losses.balance.Store(int64(spinSharedAhead))
	defer spinning.losses.refilled.Store(now())
	spinning.losses.refilled.Store(now() + int64(time.Hour)) // nothing more comes with the time
	fail := func() {
		t.Helper()
		a.r.spins = [2]sharedSpin{}
		a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	asked := spinning.asked.Load()
	spinning.losses.balance.Store(-1)
	if fail(); spinning.asked.Load() != asked || spinning.losses.balance.Load() != -1 {
		t.Error("a wait spins though all together have lost too much")
	}
	spinning.losses.balance.Store(int64(spinSharedAhead))
	for spinning.asked.Load() == asked { // on a slow machine the deadline may pass first
		fail()
	}
	if left := spinning.losses.balance.Load(); left >= int64(spinSharedAhead) {
		t.Errorf("after a spin that failed they may still lose %v", time.Duration(left))
	}
	a.r.spins = [2]sharedSpin{}
	a.SetReadDeadline(time.Time{})
	a.SetSpin(time.Hour)
	spinning.losses.balance.Store(1)
	go func() {
		for spinning.spinners.Load() == 0 {
			runtime.Gosched()
		}
		b.Write([]byte("x"))
	}()
	if _, err := a.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if left, want := spinning.losses.balance.Load(), 1+int64(spinSharedGain); left != want {
		t.Errorf("after a spin that was enough they may lose %v, want %v", time.Duration(left), time.Duration(want))
	}
}

// callsTake has a system call take so long, as far as waits go by it.
func callsTake(t *testing.T, ns int64) {
	before := spinning.callTime.Swap(ns)
	t.Cleanup(func() { spinning.callTime.Store(before) })
}

// No wait spins for longer than SetSpin says, also if a peer that is asleep needs longer.
// Without SetSpin a wait for such a peer may spin for longer than others.
func TestSharedSpinKeepsToItsLimit(t *testing.T) {
	a, _ := sharedPair(t)
	s := sharedSpin{cost: int64(time.Second)} // what the peer has needed lately
	for _, call := range []int64{dearCall - 1, dearCall} {
		callsTake(t, call)
		limit := spinShared
		if call >= dearCall {
			limit *= 2
		}
		for set, want := range map[time.Duration][2]time.Duration{
			0:                     {limit, spinSharedAsleep},
			-1:                    {0, 0},
			time.Microsecond:      {time.Microsecond, time.Microsecond},
			10 * time.Millisecond: {10 * time.Millisecond, 10 * time.Millisecond},
		} {
			a.SetSpin(set)
			limit, most := a.spinLimits()
			if awake, asleep := s.budget(limit, most, false), s.budget(limit, most, true); awake != int64(want[0]) || asleep != int64(want[1]) {
				t.Errorf("where a call takes %d ns and after SetSpin(%v), a wait spins for %v, for a peer that is asleep %v; want %v",
					call, set, time.Duration(awake), time.Duration(asleep), want)
			}
		}
	}
}

func TestSharedWaitThatParksTimesCalls(t *testing.T) {
	a, _ := sharedInMemory(t)
	timesCallsIfItParks(t, a)
}

// timesCallsIfItParks checks that a wait that parks finds out what a system call takes, where waits
// may spin.
func timesCallsIfItParks(t *testing.T, c interface {
	net.Conn
	SetSpin(time.Duration)
}) {
	t.Helper()
	callsTake(t, 0)
	for _, limit := range []time.Duration{-1, time.Nanosecond} {
		c.SetSpin(limit)
		for wait := time.Millisecond; spinning.callTime.Load() == 0 && wait < time.Second; wait *= 4 { // a slow machine may not park in time
			c.SetReadDeadline(time.Now().Add(wait))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
		if took := spinning.callTime.Load(); (took != 0) != (limit > 0) {
			t.Errorf("with SetSpin(%v) a call takes %d ns", limit, took)
		}
	}
}

// Share keeps the limit of the connection, unless it is given another.
func TestSharedConnKeepsTheSpinOfItsConn(t *testing.T) {
	for _, test := range []struct{ conn, share, want time.Duration }{
		{0, 0, 0}, {-1, 0, -1}, {time.Millisecond, 0, time.Millisecond}, {-1, time.Second, time.Second}, {time.Second, -1, -1},
	} {
		x, y, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		x.SetSpin(test.conn)
		c, err := x.Share(ShareConfig{Spin: test.share})
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Duration(c.spin.Load()); got != test.want || c.base.fd.spin.Load() != int64(test.want) {
			t.Errorf("SetSpin(%v), Spin %v: the limit is %v, want %v", test.conn, test.share, got, test.want)
		}
		c.Close()
		y.Close()
	}
}

// A peer that breaks the protocol ends calls that wait for files, too.
func TestSharedFailureEndsRecvFiles(t *testing.T) {
	a, b := sharedInMemory(t)
	got := make(chan error, 1)
	go func() { _, err := a.RecvFiles(1); got <- err }()
	b.out.own.head.Store(b.out.head + 1<<31)
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.EPROTO) {
		t.Errorf("Read returns %v", err)
	}
	if err := <-got; !errors.Is(err, syscall.EPROTO) {
		t.Errorf("RecvFiles returns %v", err)
	}
}

// Both ends shut their reading half while one of them has said that it has no memory.
func TestSharedCloseReadOfBothWithoutMemory(t *testing.T) {
	a, b := sharedPair(t)
	hs := a.hello
	if err := a.withPen(&a.w, hs, func() error { return a.sendWord(hs, 0, &hs.last) }); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.CloseRead(), a.CloseRead()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*SharedConn{a, b} {
		if c == b && runtime.GOOS == "windows" {
			continue // a pipe cannot tell it before Close
		}
		c.SetWriteDeadline(time.Now().Add(time.Minute))
		if n, err := c.Write(make([]byte, 1<<20)); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("%d bytes are written, %v", n, err)
		}
	}
}

// Files go the way of the bytes where there is no memory.
func TestSharedFilesHeedHalvesThatAreShut(t *testing.T) {
	a, b := sharedPair(t)
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // before the handshake is over, and after
		if _, err := b.RecvFiles(1); !errors.Is(err, io.EOF) {
			t.Errorf("RecvFiles behind the end returns %v", err)
		}
		if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("Read returns %d, %v", n, err)
		}
	}
	if _, err := b.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := a.SendFiles(f); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("SendFiles after CloseWrite returns %v", err)
	}
}

// Close comes at any moment of the handshake that two calls make; for the race detector.
func TestSharedCloseDuringTheHandshake(t *testing.T) {
	for i := range 50 {
		a, b := sharedPair(t)
		var calls sync.WaitGroup
		for _, c := range []*SharedConn{a, b} {
			calls.Go(func() { c.RecvFiles(1) })
		}
		time.Sleep(time.Duration(20*i) * time.Microsecond)
		a.Close()
		b.Close()
		calls.Wait()
	}
}

// To yield to a peer that parks gains nothing: it is tried now and then.
func TestSharedWaitYieldsToAPeerThatIsAwake(t *testing.T) {
	var h sharedHalf
	yields := 0
	for range 10 * yieldToSleeper {
		if !h.mayYield(false) {
			t.Fatal("a wait for a peer that is awake must not yield")
		}
		if h.mayYield(true) {
			yields++
		}
	}
	if yields != 10 {
		t.Errorf("%d of %d waits for a parked peer may yield", yields, 10*yieldToSleeper)
	}
}

// A wait that does not spin yields, if SetSpin does not exclude that.
func TestSharedWaitYields(t *testing.T) {
	a, b := sharedInMemory(t)
	yields := 0
	yieldBy(t, func() {
		if yields++; yields == 1 {
			b.Write([]byte("x"))
		}
	})
	var p [1]byte
	a.r.spins[0].skip, a.r.spins[1].skip = spinSharedMax, spinSharedMax
	epoch := a.r.epoch
	if n, err := a.Read(p[:]); n != 1 || err != nil || yields != 1 {
		t.Errorf("Read = %d, %v after %d yields", n, err, yields)
	}
	if a.r.epoch != epoch {
		t.Error("the wait has parked")
	}
	a.SetSpin(-1)
	a.r.yields = yielder{}
	a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := a.Read(p[:]); !errors.Is(err, os.ErrDeadlineExceeded) || yields != 1 || a.r.yields != (yielder{}) {
		t.Errorf("Read = %v after %d yields, though SetSpin(-1) excludes them", err, yields-1)
	}
}

// By default a wait for much yields and does not spin, unless nobody can yield, the process has one CPU, or so
// many have gained nothing by that.
func TestSharedWaitForMuchYields(t *testing.T) {
	a, b := sharedInMemory(t)
	defer func(one bool) { oneCPU = one }(oneCPU)
	for _, c := range []struct {
		what        string
		heard, said int
		change      func()
		spins       bool
	}{
		{"little", streamMin - 1, 0, nil, true},
		{"an answer to little", streamMin, 1, nil, true},
		{"a stream", streamMin, 0, nil, false},
		{"a stream, and a deadline", 0, 0, nil, false},
		{"an answer in bulk", bulkMin / 2, bulkMin / 2, nil, false},
		{"a stream, where nobody yields", streamMin, 0, func() { spinning.yield = nil }, true},
		{"a stream on one CPU", streamMin, 0, func() { oneCPU = true }, true},
		{"a stream after SetSpin", streamMin, 0, func() { a.SetSpin(time.Minute) }, true},
		{"a stream whose ends stay apart", streamMin, 0, func() { a.r.apart = parksForMuch }, true},
	} {
		oneCPU = false
		a.SetSpin(0)
		a.SetReadDeadline(time.Time{})
		yieldBy(t, func() {})
		for _, pass := range []struct {
			from, to *SharedConn
			n        int
		}{{b, a, c.heard}, {a, b, c.said}} {
			if _, err := pass.from.Write(make([]byte, pass.n)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(pass.to, make([]byte, pass.n)); err != nil {
				t.Fatal(err)
			}
		}
		a.r.apart = 0
		if c.change != nil {
			c.change()
		}
		spun := false
		asked := spinning.asked.Load()
		for limit := time.Millisecond; !spun && limit < 100*time.Millisecond; limit *= 2 { // a slow machine may not wait in time
			spinning.losses.balance.Store(int64(spinSharedAhead))
			a.r.spins, a.r.yields = [2]sharedSpin{}, yielder{}
			a.SetReadDeadline(time.Now().Add(limit))
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			spun = spinning.asked.Load() != asked
		}
		if spun != c.spins {
			t.Errorf("a wait after %s spins: %t", c.what, spun)
		}
	}
}

// After so many waits for much that gained nothing by yields, others spin, and then it is tried again.
func TestSharedWaitsForMuchSpinInTheEnd(t *testing.T) {
	var h sharedHalf
	for range 3 {
		h.apart = 0
		for i := 1; i < parksForMuch+spinsForMuch; i++ {
			if got := h.yieldsForMuch(); got != (i <= parksForMuch) {
				t.Fatalf("wait %d yields: %t", i, got)
			}
		}
		if !h.yieldsForMuch() {
			t.Fatal("no wait yields any more")
		}
	}
}

// It is remembered how long a wait takes that parks at once.
func TestSharedWaitThatParksIsMeasured(t *testing.T) {
	a, b := sharedInMemory(t)
	neverYield(t)
	var p [1]byte
	fastest := time.Hour
	for range 100 { // a slow machine takes long for some
		a.r.spins[0].skip, a.r.spins[1].skip = spinSharedMax, spinSharedMax
		go func() {
			for !a.r.parked.Load() {
				runtime.Gosched()
			}
			b.Write([]byte("x"))
		}()
		begun, epoch := time.Now(), a.r.epoch
		if _, err := a.Read(p[:]); err != nil {
			t.Fatal(err)
		}
		if a.r.yields.parked != 0 {
			return
		}
		if a.r.epoch-epoch <= 2 { // the byte came before it parked
			continue
		}
		fastest = min(fastest, time.Since(begun))
	}
	if fastest > parkedMax {
		t.Skipf("the fastest of them took %v here", fastest)
	}
	t.Error("no wait that parked is remembered")
}

// A wait for an answer whose spin was in vain leaves its CPU, which the peer may be waiting
// for, and does so ever more rarely until a spin succeeds. A wait in a stream does not.
func TestSharedSpinLeavesItsCPU(t *testing.T) {
	a, b := sharedInMemory(t)
	times := 0
	leaveBy(t, func() { times++ })
	var p [1]byte
	wait := func(written int) {
		t.Helper()
		spinning.losses.balance.Store(int64(spinSharedAhead))
		a.r.spins, a.r.apart = [2]sharedSpin{}, parksForMuch
		spinning.leftAt.Store(0)
		b.ownMem.control().rwait.Store(1) // as if it were parked
		if _, err := a.Write(make([]byte, written)); err != nil {
			t.Fatal(err)
		}
		// On a slow machine a short deadline may pass before there is a wait.
		asked := spinning.asked.Load()
		for limit := time.Millisecond; spinning.asked.Load() == asked; limit *= 2 {
			a.SetReadDeadline(time.Now().Add(limit))
			if _, err := a.Read(p[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
	}
	wait(1) // what was written before counts, too
	times = 0
	spinning.leaveGap.Store(0)
	for _, written := range [...]int{0, bulkMin} {
		if wait(written); times != 0 {
			t.Errorf("it left its CPU after writing %d bytes", written)
		}
	}
	if wait(bulkMin - 1); times != 1 {
		t.Fatalf("it left its CPU %d times", times)
	}
	spinning.leaveGap.Store(int64(time.Hour) * 1000000)
	if wait(64); times != 1 {
		t.Error("it left its CPU again at once")
	}
	b.ownMem.control().rwait.Store(0)
	a.SetReadDeadline(time.Time{})
	a.SetSpin(time.Hour)
	spinning.losses.balance.Store(int64(spinSharedAhead))
	a.r.spins = [2]sharedSpin{}
	go func() {
		for spinning.spinners.Load() == 0 {
			runtime.Gosched()
		}
		b.Write([]byte("x"))
	}()
	if _, err := a.Read(p[:]); err != nil {
		t.Fatal(err)
	}
	if gap := spinning.leaveGap.Load(); gap != 0 {
		t.Errorf("after a success the next time is %v away", time.Duration(gap))
	}
}

// A server's write that waits to hear of the client goes on when its read has heard of it, though
// that waits on: a client that reads first says hello and no more.
func TestSharedServerSpeaksFirst(t *testing.T) {
	dog := time.AfterFunc(time.Minute, func() { panic(t.Name() + " hangs") })
	defer dog.Stop()
	for range 200 {
		x, y, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		cfg, _ := ShareConfig{}.complete()
		client, server := newSharedConn(x.endpoint, cfg, false), newSharedConn(y.endpoint, cfg, true)
		go server.Read(make([]byte, 1))
		go server.Write([]byte("220 welcome"))
		if n, err := client.Read(make([]byte, 100)); n != len("220 welcome") || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		server.Close()
		client.Close()
	}
}

// What a hello has said of both halves is not said again by the socket, which may have no
// half-close.
func TestSharedConnTellsOnceThatHalvesAreShut(t *testing.T) {
	c, y := halfShared(t, false)
	c.r.shut.Store(true)
	c.w.shut.Store(true)
	for _, h := range [...]*sharedHalf{&c.r, &c.w} {
		if done, err := c.tellShut(h, false); !done || err != nil {
			t.Errorf("%t, %v", done, err)
		}
	}
	if _, err := c.base.fd.write([]byte("x")); err != nil {
		t.Errorf("the socket: %v", err)
	}
	var b [helloSize + 2]byte
	n, err := io.ReadAtLeast(y, b[:], helloSize+1)
	if what, _, e := parseHello(b[:helloSize]); n != helloSize+1 || what != helloReadShut|helloWriteShut {
		t.Errorf("%d bytes, %v, which say %d, %v", n, err, what, e)
	}
}

// A handshake that is over leaves nothing, whichever of the calls that take part is the last.
func TestSharedHandshakeLeavesNothing(t *testing.T) {
	for _, last := range []string{"turn", "pen"} {
		c, y := halfShared(t, false)
		hs := c.hello
		hs.turn <- struct{}{}
		hs.pen <- struct{}{}
		if err := c.sendMemory(hs); err != nil {
			t.Skip(err)
		}
		own := hs.own
		c.mu.Lock()
		c.settle(hs, protocolError("it is made up"))
		c.mu.Unlock()
		first, second := hs.turn, hs.pen
		if last == "turn" {
			first, second = second, first
		}
		hs.giveBack(first)
		hs.giveBack(second)
		if own.mem != nil || hs.own != nil || hs.bells != (doorbells{}) {
			t.Errorf("the last had the %s: the memory stays", last)
		}
		c.Close()
		y.Close()
	}
}

// Close does not wait for calls that take part in the handshake. What they have is released when
// they are done.
func TestSharedConnCloseLeavesTheHandshakeAlone(t *testing.T) {
	dog := time.AfterFunc(time.Minute, func() { panic(t.Name() + " hangs") })
	defer dog.Stop()
	c, _ := halfShared(t, false)
	hs := c.hello
	hs.turn <- struct{}{}
	hs.pen <- struct{}{}
	err := c.sendMemory(hs)
	own := hs.own
	c.Close()
	if err != nil {
		t.Skip(err)
	}
	if own.mem == nil {
		t.Error("the memory was unmapped while a call had it")
	}
	hs.giveBack(hs.pen)
	hs.giveBack(hs.turn)
	if own.mem != nil || hs.own != nil || hs.bells != (doorbells{}) {
		t.Error("the memory stays")
	}
}

// A peer that uses the memory already finds there that this end is closed, though its answer
// was never received.
func TestSharedConnCloseInTheHandshakeIsToldInMemory(t *testing.T) {
	c, y := halfShared(t, false)
	hs := c.hello
	hs.pen <- struct{}{}
	if err := c.sendMemory(hs); err != nil {
		t.Skip(err)
	}
	hs.giveBack(hs.pen)
	var b [helloSize]byte
	n, files, err := recvHello(y.fd, b[:])
	if n != helloSize || len(files) != helloFiles || err != nil {
		t.Fatalf("%d bytes and %d files, %v", n, len(files), err)
	}
	defer discardHelloFiles(files)
	theirs, err := mapPeer(&files[0], c.cfg.Buffer)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.unmap()
	c.Close()
	if p := theirs.control(); p.wclosed.Load() != 1 || p.rclosed.Load() != 1 {
		t.Errorf("the end of writes is %d, of reads %d", p.wclosed.Load(), p.rclosed.Load())
	}
}

// A call that waits in the socket ends when the handshake fails in another one, and a deadline
// that is set later changes nothing.
func TestSharedHandshakeFailureEndsWhatWaits(t *testing.T) {
	c, y := halfShared(t, false)
	dog := time.AfterFunc(time.Minute, func() { panic(t.Name() + " hangs") })
	defer dog.Stop()
	read := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 1)); read <- err }()
	if _, err := io.ReadFull(y, make([]byte, helloSize)); err != nil { // the read has the turn
		t.Fatal(err)
	}
	c.mu.Lock()
	c.settle(c.hello, protocolError("it is made up"))
	c.mu.Unlock()
	c.SetDeadline(time.Now().Add(time.Hour))
	if err := <-read; !errors.Is(err, syscall.EPROTO) {
		t.Errorf("read: %v", err)
	}
}

// ---------------------------------------------------------------------------
// Model

// A model of the waiting of a SharedConn: two ends, two directions, and every order in
// which the four halves can take their steps. A step is one access to a word that the other
// end sees, or one operation on a doorbell; what a half does between two steps nobody sees.
// The model looks for a state in which some half waits and nobody can take a step any more:
// a lost wake-up. Conformance tests do not find those.
//
// The steps are those of awaitData, awaitRoom, park, publish, consume and wakePeer.

// modelFaults are mends that are taken out of the model, which must then fail.
type modelFaults struct {
	lateDoorbell  bool // a doorbell taken in vain does not begin a new epoch
	oneDescriptor bool // the two halves of an end share a doorbell
	looksFirst    bool // a half looks before it makes its epoch odd, and not after
	neverAgain    bool // the writer rings for an odd epoch only if it rang for no odd one before
}

// A modelState is the state of everything. Halves 0 and 1 write, 2 and 3 read what 0 and 1
// write; half 0 and 3 are those of one end, 1 and 2 those of the other.
type modelState struct {
	head, tail [2]uint8 // of each direction
	left       [4]uint8 // what each half has still to write or to read
	at         [4]uint8 // where each half is in its steps
	epoch      [4]uint8 // the words of the control pages
	loaded     [4]uint8 // the epoch of the other half, as loaded
	woken      [4]uint8 // the epoch in which it was woken last
	bell       [4]uint8 // doorbells that were not taken
}

const modelRing = 2 // units that fit a ring

// The two directions have nothing in common unless they share a doorbell, so one is enough
// where they do not.
var (
	oneDirection   = modelState{left: [4]uint8{0: 5, 2: 5}}
	bothDirections = modelState{left: [4]uint8{3, 3, 3, 3}}
)

// The steps of a half.
const (
	stepLook    = iota // is there room, or are there bytes?
	stepIndex          // write or read one unit, and store the index
	stepEpoch          // load the epoch of the other half
	stepRing           // ring
	stepOdd            // begin to wait
	stepRecheck        // look once more
	stepTake           // wait for the doorbell, and take what there is
	stepAgain          // begin a new epoch
	stepEven           // the wait is over
)

// other is the half at the other end of the same direction.
func other(half int) int { return half ^ 2 }

// bellOf is the doorbell that a half waits on.
func (f modelFaults) bellOf(half int) int {
	if f.oneDescriptor && half >= 2 {
		return half ^ 3 // that of the writing half of the same end
	}
	return half
}

// ready reports whether the half has something to do.
func (s *modelState) ready(half int) bool {
	used := s.head[half&1] - s.tail[half&1]
	if half < 2 {
		return used < modelRing
	}
	return used > 0
}

// step takes the next step of a half, and reports whether it can.
func (f modelFaults) step(s *modelState, half int) bool {
	d := half & 1
	switch s.at[half] {
	case stepLook:
		switch {
		case s.left[half] == 0:
			return false // done
		case s.ready(half):
			s.at[half] = stepIndex
		default:
			s.at[half] = stepOdd
		}
	case stepIndex:
		if half < 2 {
			s.head[d]++
		} else {
			s.tail[d]++
		}
		s.left[half]--
		s.at[half] = stepEpoch
	case stepEpoch:
		s.loaded[half] = s.epoch[other(half)]
		s.at[half] = stepRing
	case stepRing:
		f.wake(s, half)
		s.at[half] = stepLook
	case stepOdd:
		s.epoch[half]++
		s.at[half] = stepRecheck
		if f.looksFirst {
			s.at[half] = stepTake
		}
	case stepRecheck:
		s.at[half] = stepTake
		if s.ready(half) {
			s.at[half] = stepEven
		}
	case stepTake:
		bell := f.bellOf(half)
		if s.bell[bell] == 0 {
			return false // parked
		}
		s.bell[bell] = 0
		s.at[half] = stepAgain
	case stepAgain:
		if !f.lateDoorbell {
			s.epoch[half] += 2
		}
		s.at[half] = stepRecheck
	case stepEven:
		s.epoch[half]++
		s.at[half] = stepLook
	}
	return true
}

// wake wakes the other half if it waits and was not woken in this epoch. A reader does so
// when half of the ring is free.
func (f modelFaults) wake(s *modelState, half int) {
	d := half & 1
	e := s.loaded[half]
	switch {
	case e&1 == 0:
		if !f.neverAgain {
			s.woken[half] = 0
		}
	case half >= 2 && s.head[d]-s.tail[d] > modelRing/2, e == s.woken[half], f.neverAgain && s.woken[half] != 0:
	default:
		s.woken[half] = e
		s.bell[f.bellOf(other(half))]++
	}
}

// explore visits every state that can be reached from the first one, and returns how many
// there are and one in which a wake-up was lost, if there is one.
func (f modelFaults) explore(first modelState) (states int, lost *modelState) {
	seen := map[modelState]bool{first: true}
	for todo := []modelState{first}; len(todo) > 0; {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		moved := false
		for half := range 4 {
			next := s
			if !f.step(&next, half) {
				continue
			}
			moved = true
			if !seen[next] {
				seen[next] = true
				todo = append(todo, next)
			}
		}
		if !moved && s.left != [4]uint8{} {
			return len(seen), &s
		}
	}
	return len(seen), nil
}

func TestSharedProtocolModel(t *testing.T) {
	states, lost := modelFaults{}.explore(oneDirection)
	if lost != nil {
		t.Errorf("a wake-up is lost: %+v", *lost)
	}
	t.Logf("%d states", states)
	for name, c := range map[string]struct {
		fault modelFaults
		first modelState
	}{
		"a late doorbell counts":         {modelFaults{lateDoorbell: true}, oneDirection},
		"looks before it says so":        {modelFaults{looksFirst: true}, oneDirection},
		"rings once, whatever the epoch": {modelFaults{neverAgain: true}, oneDirection},
		"two halves, one descriptor":     {modelFaults{oneDescriptor: true}, bothDirections},
	} {
		states, lost := c.fault.explore(c.first)
		if lost == nil {
			t.Errorf("%s: the model does not find that a wake-up is lost", name)
			continue
		}
		t.Logf("%s: lost after %d states: %+v", name, states, *lost)
	}
}

// A receive that closes files of the peer may hold the turn for as long as the peer likes.
func TestMsgConnCloseDoesNotWaitForAReceiveThatClosesFiles(t *testing.T) {
	a, b, err := pair(streams)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	f := &framing{fd: b, files: []*os.File{file}}
	f.receiving.Lock()
	if err := f.close(); err != nil {
		t.Error(err)
	}
	f.receiving.Unlock()
	untilFileCloses(file)
}

// untilFileCloses waits until the file is closed. It asks by no Read: on Windows, if one begins while Close does,
// that may wait for ever (readWriteLock of internal/poll fails with half of the lock taken).
func untilFileCloses(f *os.File) {
	for withFile(f, func(uintptr) error { return nil }) == nil {
		runtime.Gosched()
	}
}

// keepAllAsleep gives the closers as many calls as they make at once, and returns when all are under way.
// They end when wake is called.
func keepAllAsleep(c *closers) (wake func()) {
	asleep, begun := make(chan struct{}), make(chan struct{})
	for range closersMax {
		c.add(func() { begun <- struct{}{}; <-asleep })
	}
	for range closersMax {
		<-begun
	}
	return func() { close(asleep) }
}
