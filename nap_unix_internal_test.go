//go:build unix

package ipc

// Nap makes the waits of the end those of a system whose poller does not serve
// FIFOs, so that they are tested on every system. It comes before the first use.
func (e *pipeEnd) Nap() {
	e.end().mu.Lock()
	defer e.end().mu.Unlock()
	e.end().pollsByTimer = true
}
