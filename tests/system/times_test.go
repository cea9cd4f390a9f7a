package system

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// times are the times that are shown as they are noted, and together at the end.
var times table

// table is lines of what was measured.
type table struct {
	mu    sync.Mutex
	lines []string
}

func (b *table) note(what string, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	line := timeLine(what, took)
	b.lines = append(b.lines, line)
	fmt.Println(line)
}

func timeLine(what string, took time.Duration) string {
	return fmt.Sprintf("%8.1f s  %s", took.Seconds(), what)
}

func (b *table) text(what, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, what+":")
	for line := range strings.Lines(text) {
		b.lines = append(b.lines, "    "+strings.TrimRight(line, "\n"))
	}
}

func TestMain(m *testing.M) {
	begun := time.Now()
	status := m.Run()
	if len(times.lines) > 0 {
		fmt.Println("\nWhat took how long:\n" + strings.Join(times.lines, "\n") + "\n" + timeLine("in all", time.Since(begun)) + "\n")
	}
	os.Exit(status)
}
