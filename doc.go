// Package ipc connects processes on one machine.
package ipc
