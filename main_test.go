//go:build unix || windows

// The tests see the package as its users do, and hold on every system that it supports; what only one system has is in
// the files that are named after it. A story that holds for streams, for messages and for pipes is told once: see
// overEachEnd and kit.OverEachServer. Tests of what users do not see are in the files internal*_test.go. The folder tests
// has what is not of one call: stress, traces, hostile peers, inheritance and comparisons.
//
// The words that the stories are told in are those of internal/kit.
package ipc_test

import (
	"testing"

	"github.com/interprocess-go/ipc/internal/kit"
)

func TestMain(m *testing.M) { kit.RunTests(m) }
