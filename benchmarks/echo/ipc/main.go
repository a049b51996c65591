// Command ipc is an echo server at the path that it is given, to see how large a
// program with package ipc is. The one beside it is the same with package net.
package main

import (
	"io"
	"os"

	"github.com/interprocess-go/ipc"
)

func main() {
	l, err := ipc.Listen(ipc.Path(os.Args[1]))
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			println(err.Error())
			os.Exit(1)
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}
