package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"sidus/image/store"
	"sidus/image/store/memstore"
)

func TestGuardSpace(t *testing.T) {
	s := memstore.New(t.TempDir())
	guarded, stop := store.GuardSpace(t.Context(), s, time.Millisecond)
	if guarded.Err() != nil {
		t.Fatal("stopped while there is space")
	}
	// A store that cannot be read for a moment is no reason to stop.
	s.FailOn("Usage", store.ErrUnavailable)
	s.SetUsage(store.Usage{Size: 10, Used: 9, Full: "extend it"})
	s.FailOn("Usage", nil)
	<-guarded.Done()
	if err := context.Cause(guarded); !errors.Is(err, store.ErrNoSpace) || !strings.Contains(err.Error(), "extend it") {
		t.Errorf("the cause is %v", err)
	}
	stop()

	s.SetUsage(memstore.DefaultUsage)
	guarded, stop = store.GuardSpace(t.Context(), s, time.Hour)
	stop()
	stop() // may be called twice
	if err := context.Cause(guarded); err == nil || errors.Is(err, store.ErrNoSpace) {
		t.Errorf("after stop the cause is %v", err)
	}
}

func TestValidateKeptName(t *testing.T) {
	for _, name := range []string{"a", "0", "catalog.db", "a-b_c.d", strings.Repeat("a", 64)} {
		if err := store.ValidateKeptName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", "-", ".a", "_a", "a/b", "A", "é", "a b", "a\n", strings.Repeat("a", 65)} {
		if err := store.ValidateKeptName(name); !errors.Is(err, store.ErrBadName) {
			t.Errorf("%q: got %v", name, err)
		}
	}
}
