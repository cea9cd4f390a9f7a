package main

import (
	"context"
	"errors"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/image/store"
)

// guardEvery is how often long work looks whether the store is about to be
// full.
const guardEvery = 200 * time.Millisecond

// guardSpace runs work that writes into a tree, and stops it before it fills
// the store or the disk below it. The error then wraps store.ErrNoSpace.
func guardSpace(ctx context.Context, s store.Store, work func(ctx context.Context) error) error {
	ctx, stop := store.GuardSpace(ctx, s, guardEvery)
	defer stop()
	err := work(ctx)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, store.ErrNoSpace) {
		return cause // that the work was cut is no news
	}
	return err
}

// guardSpaceInside is guardSpace for what may make a full store emptier: there
// the work may go on as long as it writes little.
func guardSpaceInside(ctx context.Context, s store.Store, work func(ctx context.Context) error) error {
	usage, err := s.Usage(ctx)
	if err != nil || usage.Available > 0 {
		return guardSpace(ctx, s, work)
	}
	logrus.Warn("the store, or the disk below it, is full: only remove things now")
	return guardSpace(ctx, lenient{s, usage.Used + littleMore}, work)
}

// littleMore is what may be written into a full store, in bytes.
const littleMore = 64 << 20

// lenient is a store that is not full before so many bytes are used.
type lenient struct {
	store.Store
	limit int64
}

func (l lenient) Usage(ctx context.Context) (store.Usage, error) {
	usage, err := l.Store.Usage(ctx)
	usage.Available = max(0, l.limit-usage.Used)
	return usage, err
}
