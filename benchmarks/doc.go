//go:build unix || windows

// Command benchmarks compares package ipc with what programs use in its place,
// and prints a table in Markdown: package net on Unix, go-winio on Windows.
//
//	go run . -rounds 7
//	go run . -conditions
//
// On Linux with a C compiler it also compares with the program of the folder limit: what
// two processes can reach without a runtime in between. -conditions (Unix) measures only
// what waits, and does so on a quiet machine, on a loaded one, on one CPU, with
// GOMAXPROCS=1 and with slow system calls, as far as the machine can.
//
// Client and server are two processes. Each round measures both sides one right
// after the other, so that a busy machine is busy for both; of all ratios less is
// better. Compare figures of one run only. ./picture draws the table.
package main
