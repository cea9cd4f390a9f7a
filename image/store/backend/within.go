package backend

import (
	"context"
	"errors"
	"time"
)

// Within calls do and waits for it, but not longer than limit and not longer
// than ctx. What hangs in the kernel cannot be killed: it is left behind, and the
// caller goes on, with the error late if it was the limit. Where do says that it
// was stopped (its error wraps the context's cause or error), the error is why;
// what it fails with for a reason of its own is returned as it is, also if the
// time was over by then.
func Within(ctx context.Context, limit time.Duration, late error, do func(ctx context.Context) error) error {
	limited, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- do(limited) }()
	select {
	case err := <-done:
		return why(limited, err)
	case <-limited.Done():
	}
	// A program that can be killed has a moment to end.
	grace := time.NewTimer(time.Second)
	defer grace.Stop()
	select {
	case err := <-done:
		return why(limited, err)
	case <-grace.C:
		return context.Cause(limited)
	}
}

// why puts the reason for which ctx ended in the place of an error that tells
// no more than that it did.
func why(ctx context.Context, err error) error {
	if ctx.Err() == nil || !errors.Is(err, ctx.Err()) && !errors.Is(err, context.Cause(ctx)) {
		return err
	}
	return context.Cause(ctx)
}
