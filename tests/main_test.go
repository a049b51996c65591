//go:build unix || windows

package tests

import (
	"testing"

	"github.com/interprocess-go/ipc/internal/kit"
)

// otherSide makes this process the other side of a comparison, if it was started as that. Where there are comparisons
// their file sets it.
var otherSide = func() {}

func TestMain(m *testing.M) {
	otherSide()
	kit.RunTests(m)
}
