//go:build !linux

// Command sharedmem runs on Linux alone.
package main

func main() {}
