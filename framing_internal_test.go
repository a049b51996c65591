//go:build unix || windows

package ipc

// FramedHere is whether this system keeps no boundaries of messages.
const FramedHere = framedHere

// FrameMessages decides how the message connections made from now on keep their
// boundaries, and returns how they did before. The tests tell every story about
// messages over frames too, whatever the system.
func FrameMessages(on bool) (before bool) {
	before, framesMessages = framesMessages, on
	return before
}

// FrameMax is the longest message that goes into a frame.
const FrameMax = frameMax
