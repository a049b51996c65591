// Package kit has the words that the tests of this module are told in. Only tests import it.
//
// Every test begins with Story, which ends the process with all stacks if the test hangs, and fails it if it leaves a
// goroutine or a descriptor behind. Addresses come from PathAddr and NameAddr, which fail the test if a file is left.
// Child processes are the test's own program: see StartChild. TestMain of a package that uses the kit is RunTests.
package kit
