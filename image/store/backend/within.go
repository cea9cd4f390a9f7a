package backend

import (
	"context"
	"time"
)

// Within calls do and waits for it, but not longer than limit and not longer
// than ctx. What hangs in the kernel cannot be killed: it is left behind, and the
// caller goes on, with the error late if it was the limit.
func Within(ctx context.Context, limit time.Duration, late error, do func(ctx context.Context) error) error {
	limited, cancel := context.WithTimeoutCause(ctx, limit, late)
	done := make(chan error, 1)
	go func() {
		defer cancel()
		done <- do(limited)
	}()
	select {
	case err := <-done:
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	case <-limited.Done():
	}
	// A program that can be killed has a moment to end.
	grace := time.NewTimer(time.Second)
	defer grace.Stop()
	select {
	case err := <-done:
		if err != nil && limited.Err() != nil {
			return context.Cause(limited)
		}
		return err
	case <-grace.C:
		return context.Cause(limited)
	}
}
