// Http is a notice board that is served over a local socket: net/http on both
// sides, and every note is signed with who the system says has posted it.
//
//	http -serve ADDR             be the server, until SIGINT or SIGTERM
//	http ADDR /notes             read the notes
//	http ADDR '/notes?after=3'   wait for one after the third
//	http -d TEXT ADDR /notes     post one
//	http ADDR /whoami            ask the server who it thinks this is
//
// ADDR is a path or "@name". Flags go before it. Where local sockets are Unix
// domain sockets, any other HTTP client that knows them will do:
//
//	curl --unix-socket /tmp/notes.sock http://localhost/notes
//	curl --abstract-unix-socket notes -d 'Lunch!' http://localhost/notes    # @notes on Linux
//
// The server admits this user and root; with -everyone, any local user. A signal
// makes it stop gracefully: requests under way are answered, those that wait for
// a note are told, and new ones find nobody.
//
// The exit status is 0, 1 after a failure (also if the server's answer is one),
// or 2 after wrong usage. Errors are told on the standard error, each in one line.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/interprocess-go/ipc"
)

func main() {
	var serveAt ipc.Addr
	flag.TextVar(&serveAt, "serve", ipc.Addr{}, "be the server, at `address`")
	text := flag.String("d", "", "post `text`, instead of getting what is there")
	everyone := flag.Bool("everyone", false, "let any user connect, or be the server, not this user alone")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	access := ipc.OwnerOnly
	if *everyone {
		access = ipc.Everyone
	}

	var err error
	switch serving := serveAt != (ipc.Addr{}); {
	case serving && flag.NArg() == 0 && *text == "":
		err = serve(ctx, serveAt, access)
	case !serving && flag.NArg() == 2:
		var addr ipc.Addr
		if addr, err = ipc.ParseAddr(flag.Arg(0)); err == nil {
			err = request(ctx, os.Stdout, addr, access, flag.Arg(1), *text)
		}
	default:
		fmt.Fprintln(os.Stderr, "usage: http -serve ADDR, or http [-d TEXT] ADDR /PATH")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "http:", strings.ReplaceAll(err.Error(), "\n", `\n`))
		os.Exit(1)
	}
}

// ---------------------------------------------------------------------------
// The server

const (
	headerTime = 10 * time.Second // in which a client has to say what it wants
	finishTime = 10 * time.Second // in which requests have to come to an end at last
)

// serve serves a new board at addr until ctx ends.
func serve(ctx context.Context, addr ipc.Addr, access ipc.Access) error {
	l, err := ipc.ListenConfig{Access: access}.Listen(addr)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           newBoard(ctx.Done()),
		ReadHeaderTimeout: headerTime,
		// Asked once for a connection, and known to each of its requests.
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			peer, err := conn.(*ipc.Conn).Peer()
			if err != nil {
				return ctx // the system does not tell
			}
			return context.WithValue(ctx, peerKey{}, peer)
		},
	}

	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		finish, cancel := context.WithTimeout(context.Background(), finishTime)
		defer cancel()
		err := server.Shutdown(finish)
		if err != nil {
			err = errors.Join(fmt.Errorf("requests were cut off: %w", err), server.Close())
		}
		stopped <- err
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(err, server.Close())
	}
	return <-stopped
}

// peerKey is the key of the context of a request under which the ipc.Peer is
// found that made it.
type peerKey struct{}

// author says who makes the request. The client has no say in it.
func author(r *http.Request) string {
	peer, _ := r.Context().Value(peerKey{}).(ipc.Peer)
	name := cmp.Or(peer.UserID(), "unknown")
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	if pid, ok := peer.PID(); ok {
		return fmt.Sprintf("pid %d, user %s", pid, name)
	}
	return "user " + name
}

// A board holds the notes.
type board struct {
	http.ServeMux
	closing <-chan struct{} // closed when nobody shall wait any more

	mu    sync.Mutex    // guards what follows
	notes []string      // as they are read
	added chan struct{} // closed, and made anew, when there is one more
}

func newBoard(closing <-chan struct{}) *board {
	b := &board{closing: closing, added: make(chan struct{})}
	b.HandleFunc("GET /notes", b.read)
	b.HandleFunc("POST /notes", b.post)
	b.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, author(r)) })
	return b
}

// read answers with the notes after the given one; with all if none is given.
func (b *board) read(w http.ResponseWriter, r *http.Request) {
	after, wait := 0, r.FormValue("after") != ""
	if wait {
		var err error
		if after, err = strconv.Atoi(r.FormValue("after")); err != nil || after < 0 {
			http.Error(w, "after is not the number of a note", http.StatusBadRequest)
			return
		}
	}
	notes, added := b.after(after)
	for wait && len(notes) == 0 {
		select {
		case <-added:
			notes, added = b.after(after)
		case <-r.Context().Done(): // the client is gone
			return
		case <-b.closing:
			http.Error(w, "the server is shutting down", http.StatusServiceUnavailable)
			return
		}
	}
	for _, note := range notes {
		fmt.Fprintln(w, note)
	}
}

// after returns the notes after the first n, and what is closed when there is
// one more.
func (b *board) after(n int) (notes []string, added <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.notes[min(n, len(b.notes)):], b.added
}

const maxNote = 1 << 10 // bytes

// post adds a note, and answers with it.
func (b *board) post(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxNote))
	text := strings.TrimSpace(string(body))
	switch tooLong := new(http.MaxBytesError); {
	case errors.As(err, &tooLong):
		http.Error(w, fmt.Sprintf("a note has at most %d bytes", maxNote), http.StatusRequestEntityTooLarge)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case text == "" || strings.ContainsFunc(text, unicode.IsControl): // which would be obeyed by a terminal
		http.Error(w, "a note is one line of text", http.StatusBadRequest)
	default:
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintln(w, b.add(author(r), text))
	}
}

func (b *board) add(author, text string) (note string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	note = fmt.Sprintf("%d (%s) %s", len(b.notes)+1, author, text)
	b.notes = append(b.notes, note)
	close(b.added)
	b.added = make(chan struct{})
	return note
}

// ---------------------------------------------------------------------------
// The client

// newClient returns an HTTP client whose every request goes to the server at
// addr, whatever the host in its URL.
func newClient(addr ipc.Addr, access ipc.Access) *http.Client {
	dialer := ipc.Dialer{Access: access}
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, addr)
		},
	}}
}

// request asks the server at addr for the path, or posts the text there, and
// writes the answer to out.
func request(ctx context.Context, out io.Writer, addr ipc.Addr, access ipc.Access, path, text string) error {
	if !strings.HasPrefix(path, "/") {
		return fmt.Errorf("%q does not begin with a slash", path)
	}
	method := http.MethodGet
	if text != "" {
		method = http.MethodPost
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, strings.NewReader(text))
	if err != nil {
		return err
	}
	client := newClient(addr, access)
	defer client.CloseIdleConnections()
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 400 {
		reason, err := io.ReadAll(answer.Body)
		return errors.Join(fmt.Errorf("%s: %s", answer.Status, bytes.TrimSpace(reason)), err)
	}
	_, err = io.Copy(out, answer.Body)
	return err
}
