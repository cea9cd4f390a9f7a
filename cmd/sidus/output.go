package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// print prints v as JSON if --json is given, else what text writes.
func print(c *cli.Context, v any, text func(w io.Writer)) error {
	if c.Bool("json") {
		encoder := json.NewEncoder(c.App.Writer)
		encoder.SetIndent("", "  ")
		return encoder.Encode(v)
	}
	out := bufio.NewWriter(c.App.Writer)
	text(out)
	return out.Flush()
}

// table writes rows under a heading, in columns.
func table(w io.Writer, heading []string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(heading, "\t"))
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	_ = t.Flush() // the buffer below reports the error
}

// when is a time as people read it.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// ago is how long something was ago.
func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// confirm asks before something is destroyed. Without a terminal to ask on,
// --yes is wanted.
func confirm(c *cli.Context, what string) error {
	if c.Bool("yes") {
		return nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return usagef("this would %s: give --yes to do it", what)
	}
	fmt.Fprintf(os.Stderr, "This will %s. Go on? [y/N] ", what)
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return usagef("nothing was done")
}

// fileProgress shows how many files a long copy has done: one line that is
// redrawn on a terminal, one line every ten seconds elsewhere.
func fileProgress(verb string) (update func(done, total int64), finish func()) {
	started, last := time.Now(), time.Time{}
	terminal := term.IsTerminal(int(os.Stderr.Fd()))
	every := 10 * time.Second
	if terminal {
		every = 100 * time.Millisecond
	}
	shown := false
	update = func(done, total int64) {
		now := time.Now()
		if now.Sub(last) < every || (!terminal && now.Sub(started) < every) {
			return
		}
		last, shown = now, true
		line := fmt.Sprintf("%s: %d files, %s", verb, done, now.Sub(started).Round(time.Second))
		if total > 0 {
			const width = 30
			filled := int(min(done, total) * width / total)
			line = fmt.Sprintf("%s: [%s%s] %d of %d files, %s", verb, strings.Repeat("#", filled), strings.Repeat(".", width-filled),
				min(done, total), total, now.Sub(started).Round(time.Second))
		}
		if terminal {
			fmt.Fprintf(os.Stderr, "\r\x1b[K%s", line)
		} else {
			fmt.Fprintln(os.Stderr, line)
		}
	}
	finish = func() {
		if terminal && shown {
			fmt.Fprint(os.Stderr, "\r\x1b[K")
		}
	}
	return update, finish
}
