package protocol

import "errors"

// The classes of failures. The functions of this package wrap them; callers
// test with errors.Is.
var (
	// ErrMalformed: a text or message is not of the form that it must have.
	ErrMalformed = errors.New("malformed")
	// ErrTooNew: the other side speaks a newer protocol than this one.
	ErrTooNew = errors.New("speaks a newer protocol than this server")
	// ErrTooLarge: a message is longer than any true one.
	ErrTooLarge = errors.New("too large")
	// ErrUnknownSession: the server knows no such session.
	ErrUnknownSession = errors.New("unknown session")
	// ErrNoBootEntry: a tree has no kernel with an initrd.
	ErrNoBootEntry = errors.New("nothing to boot in this tree")
)
