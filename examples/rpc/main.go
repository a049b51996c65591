// Rpc is a store of values and counters that processes of one machine share: a
// service of net/rpc, as JSON, over a local socket.
//
//	rpc -serve ADDR            be the server, until SIGINT or SIGTERM
//	rpc ADDR set KEY VALUE
//	rpc ADDR get KEY
//	rpc ADDR add KEY NUMBER    add to a counter, and tell the sum
//	rpc ADDR delete KEY
//	rpc ADDR list [PREFIX]     the keys that begin so, and their values
//	rpc ADDR wait KEY          get the value, when there is one
//
// ADDR is a path or "@name". What is served is the library's JSON-RPC, so clients
// may be written in anything:
//
//	$ echo '{"method": "Store.Add", "params": [{"Key": "jobs", "Number": 2}], "id": 1}' | socat - UNIX:/tmp/store.sock
//	{"id":1,"result":2,"error":null}
//
// The calls of a connection are served at the same time: one that waits does not
// hold up the others. A wait ends when its client hangs up, and when the server
// shuts down, which answers every call that has reached it.
//
// The exit status is 0, 1 after a failure, or 2 after wrong usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"math"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/interprocess-go/ipc"
)

func main() {
	var serveAt ipc.Addr
	flag.TextVar(&serveAt, "serve", ipc.Addr{}, "be the server, at `address`")
	flag.Parse()
	log.SetFlags(0)
	log.SetPrefix("rpc: ")

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if serveAt == (ipc.Addr{}) {
		err = ask(ctx, os.Stdout, flag.Args())
	} else if err = errUsage; flag.NArg() == 0 {
		err = serve(ctx, serveAt)
	}
	switch {
	case errors.Is(err, errUsage):
		log.Print(err)
		os.Exit(2)
	case err != nil:
		log.Fatal(err)
	}
}

var errUsage = errors.New("usage: rpc -serve ADDR, or rpc ADDR COMMAND [ARGUMENT ...]")

// ---------------------------------------------------------------------------
// The service

// A store holds the values of all clients.
type store struct {
	mu      sync.Mutex // guards what follows
	values  map[string]string
	changed chan struct{} // closed, and made anew, when a value is set
}

// A session is what the calls of one connection are made on: its exported methods
// are the service.
type session struct {
	*store
	ending <-chan struct{} // closed when no call shall wait any more
}

// An Entry is a key and its value.
type Entry struct{ Key, Value string }

// An Increment is what is added to a counter.
type Increment struct {
	Key    string
	Number int64
}

func (s session) Set(entry Entry, _ *struct{}) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(entry)
	return nil
}

// set is called with mu held.
func (s *store) set(entry Entry) {
	s.values[entry.Key] = entry.Value
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s session) Get(key string, value *string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ok bool
	if *value, ok = s.values[key]; !ok {
		return fmt.Errorf("no value for %q", key)
	}
	return nil
}

func (s session) Add(inc Increment, sum *int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var before int64
	if value, ok := s.values[inc.Key]; ok {
		var err error
		if before, err = strconv.ParseInt(value, 10, 64); err != nil {
			return fmt.Errorf("%q is not a counter", inc.Key)
		}
	}
	if inc.Number > 0 && before > math.MaxInt64-inc.Number || inc.Number < 0 && before < math.MinInt64-inc.Number {
		return fmt.Errorf("%q cannot count that far", inc.Key)
	}
	*sum = before + inc.Number
	s.set(Entry{inc.Key, strconv.FormatInt(*sum, 10)})
	return nil
}

func (s session) Delete(key string, _ *struct{}) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.values, key)
	return nil
}

func (s session) List(prefix string, entries *[]Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(s.values)) {
		if strings.HasPrefix(key, prefix) {
			*entries = append(*entries, Entry{key, s.values[key]})
		}
	}
	return nil
}

func (s session) Wait(key string, value *string) error {
	for {
		s.mu.Lock()
		found, ok := s.values[key]
		changed := s.changed
		s.mu.Unlock()
		if ok {
			*value = found
			return nil
		}
		select {
		case <-changed:
		case <-s.ending:
			return errors.New("the wait is over, the connection is ending")
		}
	}
}

// ---------------------------------------------------------------------------
// The server

// finishTime is in which clients have to take the last answers.
const finishTime = 10 * time.Second

// longAgo is the deadline that ends a read at once.
var longAgo = time.Unix(1, 0)

// serve serves a new store at addr until ctx ends.
func serve(ctx context.Context, addr ipc.Addr) error {
	l, err := ipc.Listen(addr)
	if err != nil {
		return err
	}
	closed := make(chan error, 1)
	context.AfterFunc(ctx, func() { closed <- l.Close() })

	s := &store{values: map[string]string{}, changed: make(chan struct{})}
	var clients sync.WaitGroup
	for conn, err := range l.Conns() {
		if err != nil {
			log.Print(err) // descriptors have run out; the client waits
			time.Sleep(10 * time.Millisecond)
			continue
		}
		clients.Go(func() { s.serveConn(ctx, conn) })
	}
	clients.Wait()
	return <-closed
}

// serveConn serves one client until it hangs up or ctx ends. It closes the
// connection, with all calls answered.
func (s *store) serveConn(ctx context.Context, conn *ipc.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() {
		conn.SetReadDeadline(longAgo) // no more calls
		conn.SetWriteDeadline(time.Now().Add(finishTime))
	})
	// A server of its own, so that the methods know which connection they serve.
	server := rpc.NewServer()
	if err := server.RegisterName("Store", session{s, ctx.Done()}); err != nil {
		log.Print(err)
		conn.Close()
		return
	}
	server.ServeCodec(jsonrpc.NewServerCodec(watched{conn, cancel}))
}

// watched is a connection that reports when nothing more can be read from it.
// ServeCodec would wait for the calls under way before it tells.
type watched struct {
	io.ReadWriteCloser
	ended func()
}

func (w watched) Read(p []byte) (int, error) {
	n, err := w.ReadWriteCloser.Read(p)
	if err != nil {
		w.ended()
	}
	return n, err
}

// ---------------------------------------------------------------------------
// The client

// A client calls a server. Its methods may be called concurrently.
type client struct{ *rpc.Client }

func dial(ctx context.Context, addr ipc.Addr) (client, error) {
	conn, err := ipc.Dialer{}.DialContext(ctx, addr)
	if err != nil {
		return client{}, err
	}
	return client{jsonrpc.NewClient(conn)}, nil
}

// call has the server call the method of the session. When ctx ends it returns,
// and leaves the call to the server.
func (c client) call(ctx context.Context, method string, args, reply any) error {
	call := c.Go("Store."+method, args, reply, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		return call.Error
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask has the server at the address words[0] carry out the command of the rest,
// and writes the result to out.
func ask(ctx context.Context, out io.Writer, words []string) error {
	if len(words) < 2 {
		return errUsage
	}
	method, args, reply, err := parse(words[1], words[2:])
	if err != nil {
		return err
	}
	addr, err := ipc.ParseAddr(words[0])
	if err != nil {
		return err
	}
	c, err := dial(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.call(ctx, method, args, reply); err != nil {
		return err
	}
	switch reply := reply.(type) {
	case *string:
		_, err = fmt.Fprintln(out, *reply)
	case *int64:
		_, err = fmt.Fprintln(out, *reply)
	case *[]Entry:
		for _, entry := range *reply {
			_, err = fmt.Fprintf(out, "%s\t%s\n", entry.Key, entry.Value)
		}
	}
	return err
}

// parse returns the method that a command stands for, its arguments, and the
// place for its reply.
func parse(command string, words []string) (method string, args, reply any, err error) {
	switch n := len(words); {
	case command == "set" && n == 2:
		return "Set", Entry{words[0], words[1]}, new(struct{}), nil
	case command == "get" && n == 1:
		return "Get", words[0], new(string), nil
	case command == "wait" && n == 1:
		return "Wait", words[0], new(string), nil
	case command == "add" && n == 2:
		number, err := strconv.ParseInt(words[1], 10, 64)
		if err != nil {
			err = fmt.Errorf("%w: %w", errUsage, err)
		}
		return "Add", Increment{words[0], number}, new(int64), err
	case command == "delete" && n == 1:
		return "Delete", words[0], new(struct{}), nil
	case command == "list" && n <= 1:
		return "List", strings.Join(words, ""), new([]Entry), nil
	}
	return "", nil, nil, fmt.Errorf("%w: %q is no command of %d arguments", errUsage, command, len(words))
}
