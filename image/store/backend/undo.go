// Package backend has what the stores on btrfs, ZFS and LVM have in common
// beside their contract: how they take back what failed, wait for programs and
// speak of space.
package backend

import "github.com/sirupsen/logrus"

// Undo takes back the steps of an operation that fails. Its own failures are
// logged, so that the first error is the one that is returned.
type Undo struct {
	Log   logrus.FieldLogger
	steps []func() error
}

// Add says how the step that was just done is taken back.
func (u *Undo) Add(step func() error) { u.steps = append(u.steps, step) }

// Keep forgets all but the first n steps.
func (u *Undo) Keep(n int) { u.steps = u.steps[:n] }

// Unwind takes everything back, the last step first, unless *failure is nil.
// It is meant to be deferred.
func (u *Undo) Unwind(failure *error) {
	if *failure == nil {
		return
	}
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i](); err != nil {
			u.Log.WithError(err).Warn("a step that failed could not be taken back")
		}
	}
}
