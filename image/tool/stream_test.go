package tool

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestStream(t *testing.T) {
	start := func(ctx context.Context, idle time.Duration, script string) *Stream {
		t.Helper()
		s, err := Start(ctx, Options{}, idle, "sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	var failed *Error

	s := start(t.Context(), 0, "yes | head -c 3000000")
	if text, err := io.ReadAll(s); err != nil || len(text) != 3000000 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}

	s = start(t.Context(), time.Minute, "echo half; echo why >&2; exit 3")
	text, err := io.ReadAll(s)
	if string(text) != "half\n" || !errors.As(err, &failed) || failed.ExitCode != 3 || !strings.Contains(err.Error(), "why") {
		t.Errorf("one that fails: %q, %v", text, err)
	}
	if again := s.Close(); again != err {
		t.Errorf("close says %v, not %v", again, err)
	}

	s = start(t.Context(), 0, "yes")
	if _, err := io.ReadFull(s, make([]byte, 100)); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("one that is closed in the middle: %v", err)
	}

	s = start(t.Context(), time.Minute, "echo begun; exec sleep 1000")
	if _, err := io.ReadFull(s, make([]byte, 6)); err != nil {
		t.Error(err)
	}
	s.idle = 50 * time.Millisecond // not earlier: a busy machine takes its time to start a program
	if text, err := io.ReadAll(s); len(text) != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one that stands still: %q, %v", text, err)
	}
	if err := s.Close(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("close of one that stands still: %v", err)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	s = start(ctx, 0, "echo begun; exec sleep 1000")
	if _, err := io.ReadFull(s, make([]byte, 6)); err != nil {
		t.Error(err)
	}
	why := errors.New("enough")
	cancel(why)
	if _, err := io.ReadAll(s); !errors.Is(err, why) {
		t.Errorf("one that is cancelled: %v", err)
	}
	if err := s.Close(); !errors.Is(err, why) {
		t.Errorf("close of one that is cancelled: %v", err)
	}
}
