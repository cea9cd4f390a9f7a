// Package commands tests the program sidus as a user meets it: the real binary
// on a real store, no virtual machine. What it prints and with which status it
// ends, what is left when it is killed at any instant, what it says to bad
// input, and how it does with a large tree.
//
// The tests need root. SIDUS_BIN names the binary; without it one is built.
// SIDUS_LONG_TESTS=1 kills commands at every step, not at a sample.
package commands
