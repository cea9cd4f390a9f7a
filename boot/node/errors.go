package node

import (
	"errors"
	"fmt"
	"strings"

	"sidus/image/store"
)

// ErrInvalid is wrapped by the errors of values that are refused. Errors for
// what is missing, there already or in use wrap store.ErrNotFound,
// store.ErrExists and store.ErrInUse.
var ErrInvalid = errors.New("not valid")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// InUseError says who uses what was to be deleted or changed. It wraps
// store.ErrInUse.
type InUseError struct {
	What  string   // "network lab", "node n1"
	Users []string // a sentence each
}

func (e *InUseError) Error() string {
	lines := []string{e.What + " is in use:"}
	for i, user := range e.Users {
		if i == 10 {
			lines = append(lines, fmt.Sprintf("  and %d more", len(e.Users)-i))
			break
		}
		lines = append(lines, "  "+user)
	}
	return strings.Join(lines, "\n")
}

func (e *InUseError) Unwrap() error { return store.ErrInUse }
