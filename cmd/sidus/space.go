package main

import (
	"context"
	"errors"
	"time"

	"sidus/image/store"
)

// guardEvery is how often long work looks whether the store is about to be
// full.
const guardEvery = 200 * time.Millisecond

// guardSpace runs work that writes into a tree, and stops it before it fills
// the store or the disk below it. The error then wraps store.ErrNoSpace.
func guardSpace(ctx context.Context, s *site, work func(ctx context.Context) error) error {
	ctx, stop := store.GuardSpace(ctx, s.store, guardEvery)
	defer stop()
	err := work(ctx)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, store.ErrNoSpace) {
		return cause // that the work was cut is no news
	}
	return err
}
