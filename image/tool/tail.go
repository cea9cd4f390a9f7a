package tool

import (
	"bytes"
	"strings"
)

// tailSize is how much of standard error an Error keeps, in bytes.
const tailSize = 4 << 10

// tailBuffer keeps the last tailSize bytes written to it. os/exec writes from
// one goroutine, and Wait returns after it has ended, so that it needs no lock.
type tailBuffer struct {
	kept []byte
	cut  bool
}

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p...)
	if over := len(b.kept) - tailSize; over > 0 {
		b.kept = append(b.kept[:0], b.kept[over:]...)
		b.cut = true
	}
	return len(p), nil
}

// String returns the kept text without blanks at its ends; a first line that
// was cut is left out.
func (b *tailBuffer) String() string {
	kept := b.kept
	if b.cut {
		if i := bytes.IndexByte(kept, '\n'); i >= 0 {
			kept = kept[i+1:]
		}
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(kept), "\uFFFD"))
}
