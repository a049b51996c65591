//go:build unix || windows

package kit

import (
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/interprocess-go/ipc"
)

// A Carrier is a connection that files travel over.
type Carrier interface {
	SendFiles(files ...*os.File) error
	RecvFiles(max int) ([]*os.File, error)
	Close() error
	SetDeadline(t time.Time) error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	SyscallConn() (syscall.RawConn, error)
}

// OverEachCarrier tells a story over each kind of connection, however it is made.
func OverEachCarrier(t *testing.T, tell func(t *testing.T, a, b Carrier)) {
	t.Run("Stream", func(t *testing.T) {
		OverEachConn(t, func(t *testing.T, a, b *ipc.Conn) { tell(t, a, b) })
	})
	t.Run("Messages", func(t *testing.T) {
		OverEachMsgConn(t, func(t *testing.T, a, b *ipc.MsgConn) { tell(t, a, b) })
	})
}

// OverEachPair tells a story over a pair of each kind.
func OverEachPair(t *testing.T, tell func(t *testing.T, a, b Carrier)) {
	t.Run("Stream", func(t *testing.T) {
		Story(t)
		a, b := Pair(t)
		tell(t, a, b)
	})
	t.Run("Messages", func(t *testing.T) {
		Story(t)
		a, b := MsgPair(t)
		tell(t, a, b)
	})
}

// Say sends the text over a carrier.
func Say(t *testing.T, c Carrier, text string) { t.Helper(); Send(t, EndOf(c), text) }

// Hear receives the text over a carrier.
func Hear(t *testing.T, c Carrier, text string) { t.Helper(); Expect(t, EndOf(c), text) }

// HearEOF fails the test unless the carrier is at its end.
func HearEOF(t *testing.T, c Carrier) { t.Helper(); ExpectEOF(t, EndOf(c)) }

// EndOf returns the carrier as an end.
func EndOf(c Carrier) End {
	if m, ok := c.(*ipc.MsgConn); ok {
		return MsgEnd{m}
	}
	return c.(*ipc.Conn)
}

// TextFile returns an open file that nobody else can open, with the text in it.
func TextFile(t *testing.T, text string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	Must(t, os.WriteFile(path, []byte(text), 0o600))
	f, err := os.Open(path)
	Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// SendFiles sends the files.
func SendFiles(t *testing.T, c Carrier, files ...*os.File) {
	t.Helper()
	Must(t, c.SendFiles(files...))
}

// RecvFiles receives exactly n files.
func RecvFiles(t *testing.T, c Carrier, n int) []*os.File {
	t.Helper()
	files, err := c.RecvFiles(n)
	Must(t, err)
	for _, f := range files {
		t.Cleanup(func() { f.Close() })
	}
	if len(files) != n {
		t.Fatalf("%d files arrive, want %d", len(files), n)
	}
	return files
}

// Holds checks what there is to read in the file, from where it stands.
func Holds(t *testing.T, f *os.File, text string) {
	t.Helper()
	if got, err := io.ReadAll(f); string(got) != text || err != nil {
		t.Errorf("the file holds %q, %v; want %q", got, err, text)
	}
}

// Cards returns n open files that tell their places in the order.
func Cards(t *testing.T, n int) []*os.File {
	t.Helper()
	var deck []byte
	for i := range n {
		deck = binary.BigEndian.AppendUint32(deck, uint32(i))
	}
	path := filepath.Join(t.TempDir(), "deck")
	Must(t, os.WriteFile(path, deck, 0o600))
	files := make([]*os.File, n)
	for i := range files {
		f, err := os.Open(path)
		Must(t, err)
		t.Cleanup(func() { f.Close() })
		_, err = f.Seek(int64(4*i), io.SeekStart)
		Must(t, err)
		files[i] = f
	}
	return files
}

// Card returns the place of a card. It leaves the position alone, which is that
// of all who have the file.
func Card(f *os.File) (int, error) {
	oneCard.Lock()
	defer oneCard.Unlock()
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	var place [4]byte
	_, err = f.ReadAt(place[:], at)
	return int(binary.BigEndian.Uint32(place[:])), err
}

// oneCard is held while a card is looked at: on Windows ReadAt moves the position
// and puts it back.
var oneCard sync.Mutex

// FilesStillPass proves that files still travel from a to b.
func FilesStillPass(t *testing.T, a, b Carrier) {
	t.Helper()
	SendFiles(t, a, TextFile(t, "exchanged"))
	Holds(t, RecvFiles(t, b, 1)[0], "exchanged")
}
