package lab

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"sync"
)

// A Transcript collects what a machine's console or a process says, in a file
// and in memory, and lets one wait for words in it.
type Transcript struct {
	mu     sync.Mutex
	file   *os.File
	text   []byte
	ended  bool
	change chan struct{} // closed and replaced at each change
}

func newTranscript(path string) (*Transcript, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &Transcript{file: f, change: make(chan struct{})}, nil
}

// Write appends to the transcript.
func (t *Transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if t.file != nil {
		_, _ = t.file.Write(p)
	}
	close(t.change)
	t.change = make(chan struct{})
	return len(p), nil
}

// end marks that nothing more will come.
func (t *Transcript) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	t.ended = true
	_ = t.file.Close()
	t.file = nil
	close(t.change)
	t.change = make(chan struct{})
}

// String is all that was said so far.
func (t *Transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// Len is the number of bytes so far: where what comes next will begin.
func (t *Transcript) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.text)
}

// WaitFor waits until something at or behind offset from matches re, within one
// line or within what came at once. It returns the submatches and the offset
// behind the match. If ctx ends, or nothing more can come, the error shows the
// end of the transcript.
func (t *Transcript) WaitFor(ctx context.Context, from int, re *regexp.Regexp) ([]string, int, error) {
	at := from
	for {
		t.mu.Lock()
		text, ended, change := t.text, t.ended, t.change
		t.mu.Unlock()
		if at < len(text) {
			if m := re.FindSubmatchIndex(text[at:]); m != nil {
				found := make([]string, len(m)/2)
				for i := range found {
					if m[2*i] >= 0 {
						found[i] = string(text[at+m[2*i] : at+m[2*i+1]])
					}
				}
				return found, at + m[1], nil
			}
			// Only the last line can still become a match.
			for i := len(text) - 1; i > at; i-- {
				if text[i] == '\n' {
					at = i
					break
				}
			}
		}
		if ended {
			return nil, 0, fmt.Errorf("it ended, and %q was never said; its last words:\n%s", re, tail(text))
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("waiting for %q: %w; the last words:\n%s", re, context.Cause(ctx), tail(text))
		}
	}
}

func tail(text []byte) []byte {
	const most = 3000
	if len(text) > most {
		return text[len(text)-most:]
	}
	return text
}
