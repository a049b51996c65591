package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// confine gives up what a checksum does not need: files and, if it is there, root.
// Each measure is taken even if another one fails.
func confine() error {
	var err error
	if os.Geteuid() == 0 {
		err = errors.Join(emptyRoot(), becomeNobody())
	}
	return errors.Join(err, forbidFiles())
}

// emptyRoot moves the process into a root folder that is removed already, so that
// nothing will ever be in it.
func emptyRoot() error {
	dir, err := os.MkdirTemp("", "fdpass")
	if err != nil {
		return err
	}
	err = os.Chdir(dir)
	if err = errors.Join(err, os.Remove(dir)); err != nil {
		return err
	}
	return os.NewSyscallError("chroot", syscall.Chroot("."))
}

// becomeNobody gives up root, without which a root folder can be left again.
func becomeNobody() error {
	const nobody = 65534 // the user that the kernel shows for one it cannot
	return errors.Join(
		os.NewSyscallError("setgroups", syscall.Setgroups(nil)),
		os.NewSyscallError("setgid", syscall.Setgid(nobody)),
		os.NewSyscallError("setuid", syscall.Setuid(nobody)))
}

// forbidFiles forbids the process all access to files by name, for good: see
// landlock(7). Files that are open stay so, and whoever passes one passes the
// access to it. It takes no privilege, but Linux 5.13, and a program without cgo,
// whose threads Go can reach.
func forbidFiles() error {
	// asm-generic/unistd.h; the same everywhere but on MIPS, which has nothing there.
	const createRuleset, restrictSelf = 444, 446
	const noNewPrivs = 38 // PR_SET_NO_NEW_PRIVS of linux/prctl.h

	// linux/landlock.h: asked for its version, the kernel says how many of the
	// rights it knows.
	abi, _, errno := syscall.Syscall(createRuleset, 0, 0, 1)
	if errno != 0 {
		return fmt.Errorf("no Landlock: %w", errno)
	}
	rights := [...]int{13, 14, 15, 15, 16}[min(abi, 5)-1]
	handled := uint64(1)<<rights - 1 // and no rule that allows any of it
	rules, _, errno := syscall.Syscall(createRuleset, uintptr(unsafe.Pointer(&handled)), unsafe.Sizeof(handled), 0)
	if errno != 0 {
		return os.NewSyscallError("landlock_create_ruleset", errno)
	}
	defer syscall.Close(int(rules))
	if _, _, errno := syscall.AllThreadsSyscall6(syscall.SYS_PRCTL, noNewPrivs, 1, 0, 0, 0, 0); errno == syscall.ENOTSUP {
		return errors.New("no Landlock: the program is built with cgo")
	} else if errno != 0 {
		return os.NewSyscallError("prctl", errno)
	}
	if _, _, errno := syscall.AllThreadsSyscall(restrictSelf, rules, 0, 0); errno != 0 {
		return os.NewSyscallError("landlock_restrict_self", errno)
	}
	return nil
}
