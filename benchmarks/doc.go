//go:build unix || windows

// Command benchmarks compares package ipc with what programs use in its place,
// and prints a table in Markdown: package net on Unix, go-winio on Windows.
//
//	go run . -rounds 7
//
// Client and server are two processes. Each round measures both sides one right
// after the other, so that a busy machine is busy for both; of all ratios less is
// better. Compare figures of one run only. ./picture draws the table.
package main
