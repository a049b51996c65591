// Package tests has the tests of package ipc that are not of one call. They use what a user of the package can use:
//
//   - stress*: everything at once, at random;
//   - trace*: which system calls are made;
//   - hostile*: what a peer does must stop nothing;
//   - inherit*, activation*: what one process hands to another;
//   - bench*, net*: what an operation costs, alone and beside package net;
//   - flags*: whether the flags in the source are those of each system;
//   - seam*: whether the list of what a system must have is complete, and whether the files of
//     Unix and Windows have their sections in one order.
//
// The words that they are told in are those of internal/kit.
package tests
