//go:build unix || windows

package ipc

import (
	"testing"
	"time"
)

// spinsOf counts the spins in so many waits; won tells which of them succeed.
func spinsOf(p *spinPolicy, b *backoff, waits int, won func(wait int) bool) (spins int) {
	for i := range waits {
		if !p.allows(b) {
			p.skipped(b)
			continue
		}
		spins++
		p.begin()
		p.end(b, won(i))
	}
	return spins
}

func always(int) bool { return true }
func never(int) bool  { return false }

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
	if n := spinsOf(&p, &b, freeLosses, never); n != freeLosses {
		t.Errorf("%d spins in the first %d waits", n, freeLosses)
	}
	b = backoff{}
	p = spinPolicy{}
	if n := spinsOf(&p, &b, 10000, func(i int) bool { return i%50 != 0 }); n != 10000 {
		t.Errorf("%d spins in 10000 waits of which one in fifty is long", n)
	}
}

func TestBackoffNewDirectionGoesByWhatOthersLearned(t *testing.T) {
	var p spinPolicy
	for range 5 {
		spinsOf(&p, &backoff{}, youngWaits, never)
	}
	if p.allows(&backoff{}) {
		t.Error("a new direction spins where all others failed")
	}
	if b := (backoff{waits: youngWaits}); !p.allows(&b) {
		t.Error("a direction with a history of its own goes by that of others")
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
		case !p.allows(b):
			p.skipped(b)
			parked[i%2] = true
			continue
		case answer < limit:
			won++
		default:
			lost++
		}
		p.begin()
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
	p.begin()
	p.end(&b, true)
	if at += int64(leaveMin); !p.shouldLeave(at) {
		t.Error("it does not leave soon after a spin that succeeded")
	}
}
