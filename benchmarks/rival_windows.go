package main

import (
	"net"
	"syscall"

	"github.com/Microsoft/go-winio"
)

// rival is the Go library for named pipes that is used most.
var rival = contender{
	name: "go-winio",
	listen: func(address string) (net.Listener, error) {
		l, err := winio.ListenPipe(address, &winio.PipeConfig{InputBufferSize: 64 << 10, OutputBufferSize: 64 << 10})
		if err == nil {
			holdFirstInstance(address)
		}
		return l, err
	},
	dial: func(address string) (net.Conn, error) { return winio.DialPipe(address, nil) },
}

// holdFirstInstance connects to the first instance of go-winio's listener, which
// it never serves. Windows lets nobody in there, and the call fails; Wine does,
// and would connect a client that waits for ever. The handle is never closed, or
// the next client would be let in.
func holdFirstInstance(address string) {
	path, err := syscall.UTF16PtrFromString(address)
	if err != nil {
		return
	}
	syscall.CreateFile(path, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil, syscall.OPEN_EXISTING, 0, 0)
}

func freshAddress(name string) string { return `\\.\pipe\` + unique(name) }
