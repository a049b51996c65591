//go:build unix || windows

package ipc

import "testing"

// A model of the waiting of a SharedConn: two ends, two directions, and every order in
// which the four halves can take their steps. A step is one access to a word that the other
// end sees, or one operation on a doorbell; what a half does between two steps nobody sees.
// The model looks for a state in which some half waits and nobody can take a step any more:
// a lost wake-up. Conformance tests do not find those.
//
// The steps are those of awaitData, awaitRoom, park, publish, consume and ring.

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
	rung       [4]uint8 // the epoch that was rung last
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
		f.ring(s, half)
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

// ring rings the other half if it waits and was not rung in this epoch. A reader does so
// when half of the ring is free.
func (f modelFaults) ring(s *modelState, half int) {
	d := half & 1
	e := s.loaded[half]
	switch {
	case e&1 == 0:
		if !f.neverAgain {
			s.rung[half] = 0
		}
	case half >= 2 && s.head[d]-s.tail[d] > modelRing/2, e == s.rung[half], f.neverAgain && s.rung[half] != 0:
	default:
		s.rung[half] = e
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
