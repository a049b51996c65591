//go:build !linux

package main

import "errors"

// confine has no measure here that the standard library could take. The systems
// have theirs: unveil(2) on OpenBSD, cap_enter(2) on FreeBSD, the App Sandbox on
// macOS, and on Windows a restricted token, which the parent gives the child with
// syscall.SysProcAttr.Token. (Such a child had better dial its parent: it may not
// take files out of the process that made both ends, see ipc.Conn.SendFiles.)
func confine() error { return errors.New("this program knows no way to confine itself here") }
