package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

func TestUndoKeepsTheFirstError(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	first := errors.New("first")
	var order []int
	work := func(keep int, failure error) (err error) {
		order = nil
		undo := Undo{Log: log}
		defer func() { undo.Unwind(&err) }()
		undo.Add(func() error { order = append(order, 1); return nil })
		undo.Add(func() error { order = append(order, 2); return errors.New("second") })
		undo.Keep(keep)
		return failure
	}
	if err := work(2, first); err != first || len(order) != 2 || order[0] != 2 {
		t.Errorf("got %v, in the order %v", err, order)
	}
	if err := work(1, first); err != first || len(order) != 1 || order[0] != 1 {
		t.Errorf("after the second was forgotten: %v, in the order %v", err, order)
	}
	if err := work(2, nil); err != nil || len(order) != 0 {
		t.Errorf("what went well was taken back: %v, %v", err, order)
	}
}

func TestWithin(t *testing.T) {
	late, failed := errors.New("late"), errors.New("failed")
	ctx := t.Context()
	if err := Within(ctx, time.Minute, late, func(context.Context) error { return failed }); err != failed {
		t.Errorf("in time: %v", err)
	}
	if err := Within(ctx, time.Millisecond, late, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }); err != late {
		t.Errorf("one that can be stopped: %v", err)
	}
	hang := make(chan struct{})
	defer close(hang)
	if err := Within(ctx, time.Millisecond, late, func(context.Context) error { <-hang; return nil }); err != late {
		t.Errorf("one that cannot: %v", err)
	}
	cancelled, cancel := context.WithCancelCause(ctx)
	why := errors.New("why")
	cancel(why)
	stopped := func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("stopped: %w", context.Cause(ctx)) }
	if err := Within(cancelled, time.Minute, late, stopped); err != why {
		t.Errorf("cancelled: %v", err)
	}
	if err := Within(cancelled, time.Minute, late, func(context.Context) error { return failed }); err != failed {
		t.Errorf("one that fails when it is cancelled, and not for that: %v", err)
	}
	if err := Within(ctx, time.Millisecond, late, func(ctx context.Context) error { <-ctx.Done(); return failed }); err != failed {
		t.Errorf("one that fails at the last moment: %v", err)
	}
	if err := Within(ctx, 20*time.Millisecond, late, func(ctx context.Context) error { <-ctx.Done(); return nil }); err != nil {
		t.Errorf("done at the last moment: %v", err)
	}
}

func TestHuman(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 40 << 30: "40.0 GiB", 3 << 40: "3.0 TiB", 1 << 60: "1024.0 PiB",
	} {
		if got := Human(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// TestWithinIsNotCancelledByItsEnd: whether the end of the work or that of its
// context is noticed first is chance.
func TestWithinIsNotCancelledByItsEnd(t *testing.T) {
	late, failed := errors.New("late"), errors.New("failed")
	for n := range 20000 {
		if err := Within(t.Context(), time.Minute, late, func(context.Context) error { return failed }); err != failed {
			t.Fatalf("call %d: %v", n, err)
		}
	}
}
