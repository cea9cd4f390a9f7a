package image

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"sidus/image/store"
)

// ErrIncomplete is returned where a complete snapshot is asked for.
var ErrIncomplete = errors.New("not a complete snapshot")

// Need says who needs a snapshot, so that it cannot be deleted.
type Need struct {
	Snapshot store.SnapshotID `json:"snapshot"`
	Ref      string           `json:"ref"`
	Kind     string           `json:"kind"` // channel, history, branch, head, pin, session, hold, operation
	Who      string           `json:"who"`  // the channel, tree or node
	Text     string           `json:"text"` // a sentence for people
}

// NeededError is returned when something cannot be deleted since others need
// it. It wraps store.ErrInUse.
type NeededError struct {
	What  string
	Needs []Need
}

func (e *NeededError) Error() string {
	lines := make([]string, 0, len(e.Needs)+1)
	lines = append(lines, e.What+" is needed and stays:")
	for i, need := range e.Needs {
		if i == 10 {
			lines = append(lines, fmt.Sprintf("  and %d more", len(e.Needs)-i))
			break
		}
		lines = append(lines, "  "+need.Text)
	}
	return strings.Join(lines, "\n")
}

func (e *NeededError) Unwrap() error { return store.ErrInUse }

// LockedError is returned when another process writes to a head.
type LockedError struct {
	Tree   string
	Holder LockHolder
}

// LockHolder says who works on a head, with which command, since when.
type LockHolder struct {
	User    string    `json:"user"`
	Command string    `json:"command"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
}

func (e *LockedError) Error() string {
	if e.Holder.PID == 0 {
		return fmt.Sprintf("the head of %s is being written to by another process; --wait waits for it", e.Tree)
	}
	return fmt.Sprintf("%s works on the head of %s with `%s` (process %d) since %s; --wait waits for it",
		e.Holder.User, e.Tree, e.Holder.Command, e.Holder.PID, e.Holder.Since.Format("2006-01-02 15:04:05"))
}

func (e *LockedError) Unwrap() error { return store.ErrInUse }
