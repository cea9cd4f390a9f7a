package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/term"
)

// byteProgress shows how far a stream has come, with its rate and the time that
// is left: one line that is redrawn on a terminal, one line every ten seconds
// elsewhere.
type byteProgress struct {
	verb          string
	terminal      bool
	every         time.Duration
	started, last time.Time
	shown         bool
}

func newByteProgress(verb string) *byteProgress {
	p := &byteProgress{verb: verb, terminal: term.IsTerminal(int(os.Stderr.Fd())), every: 10 * time.Second, started: time.Now()}
	if p.terminal {
		p.every = 100 * time.Millisecond
	} else {
		p.last = p.started
	}
	return p
}

// update tells what was done. done and total are of the payload, uncompressed;
// a total of 0 is not known.
func (p *byteProgress) update(done, total, compressed int64) {
	now := time.Now()
	if now.Sub(p.last) < p.every {
		return
	}
	p.last, p.shown = now, true
	line := progressLine(p.verb, done, total, compressed, now.Sub(p.started))
	if p.terminal {
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s", line)
	} else {
		fmt.Fprintln(os.Stderr, line)
	}
}

// finish takes the line away.
func (p *byteProgress) finish() {
	if p.terminal && p.shown {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	p.shown = false
}

func progressLine(verb string, done, total, compressed int64, elapsed time.Duration) string {
	rate := float64(done) / max(elapsed.Seconds(), 0.001)
	sizes := fmt.Sprintf("%s (%s compressed), %s/s", humanize.IBytes(uint64(done)), humanize.IBytes(uint64(compressed)), humanize.IBytes(uint64(rate)))
	// The total is a guess: past it there is nothing to say of the rest.
	if total <= 0 || done > total {
		return fmt.Sprintf("%s: %s, %s", verb, sizes, elapsed.Round(time.Second))
	}
	const width = 30
	filled := int(float64(done) / float64(total) * width)
	left := "?"
	if rate > 0 {
		left = time.Duration(float64(total-done) / rate * float64(time.Second)).Round(time.Second).String()
	}
	return fmt.Sprintf("%s: [%s%s] %d %% of about %s, %s, %s left", verb, strings.Repeat("#", filled), strings.Repeat(".", width-filled),
		done*100/total, humanize.IBytes(uint64(total)), sizes, left)
}
