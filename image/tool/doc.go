// Package tool runs programs: the one place where Sidus starts a process.
//
// Every program gets the C locale, so that what it says can be understood, and
// a process group of its own, so that a cancelled context ends its children
// too. What it wrote last to its standard error is in the error. The time that
// it took is logged at debug level.
package tool
