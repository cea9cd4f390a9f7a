package lvm

import "github.com/sirupsen/logrus"

// undoStack takes back the steps of an operation that fails. Its own failures
// are logged, so that the first error is the one that is returned.
type undoStack struct {
	log   logrus.FieldLogger
	steps []func() error
}

func (u *undoStack) add(step func() error) { u.steps = append(u.steps, step) }

// unwind takes everything back, the last step first, unless *failure is nil.
// It is meant to be deferred.
func (u *undoStack) unwind(failure *error) {
	if *failure == nil {
		return
	}
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i](); err != nil {
			u.log.WithError(err).Warn("a step that failed could not be taken back")
		}
	}
}
