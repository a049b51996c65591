// Package tests has the tests of the package ipc that are not of one call: what it does beside package net, and whether
// the flags in its source are those of each system.
package tests
