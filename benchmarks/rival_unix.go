//go:build unix

package main

import (
	"net"
	"os"
	"path/filepath"
)

// rival is what programs use for local sockets.
var rival = contender{
	name:   "net",
	listen: func(address string) (net.Listener, error) { return net.Listen("unix", address) },
	dial:   func(address string) (net.Conn, error) { return net.Dial("unix", address) },
}

func freshAddress(name string) string { return filepath.Join(os.TempDir(), unique(name)) }
