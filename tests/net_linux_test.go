package tests

import (
	"net"

	"github.com/interprocess-go/ipc"
)

// Rows in which both ends refuse files, so that a read needs no room for them.
func init() {
	contenders = append(contenders, contender{
		name: "ipc without files",
		listen: func(_, path string) (net.Listener, error) {
			l, err := ipc.Listen(ipc.Path(path))
			return refusingListener{l}, err
		},
		dial: func(_, path string) (net.Conn, error) { return refusing(ipc.Dial(ipc.Path(path))) },
	})
	workloads = append(workloads,
		workload{name: "files refused, stream 4 KiB", limit: "stream", size: 4 << 10, unit: "MB/s", ours: "ipc without files", serve: drain, client: streaming},
		workload{name: "files refused, 8 busy", size: 64, unit: "exchanges/s", ours: "ipc without files", busy: 8, serve: echo, client: manyBusy},
		workload{name: "files refused, 100 busy, 10000 idle", size: 64, unit: "exchanges/s", ours: "ipc without files", busy: 100, idle: 10000, serve: echo, client: manyBusy},
	)
}

type refusingListener struct{ *ipc.Listener }

func (l refusingListener) Accept() (net.Conn, error) { return refusing(l.AcceptConn()) }

// refusing returns the connection once it refuses files.
func refusing(c *ipc.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	if err := c.RefuseFiles(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
