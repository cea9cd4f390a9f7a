package main

import (
	"fmt"
	"strings"
)

// targets are what was to be reached, and how much of it was not.
type targets struct {
	count  int
	missed []string
}

// judge notes whether a target was reached, and returns the word for the table.
func (t *targets) judge(met bool, what string, args ...any) string {
	t.count++
	if met {
		return "ok"
	}
	t.missed = append(t.missed, fmt.Sprintf(what, args...))
	return "MISSED"
}

// summary prints how it went. It fails if a target was missed.
func (t *targets) summary() error {
	if len(t.missed) == 0 {
		fmt.Printf("\nall %d targets are reached\n", t.count)
		return nil
	}
	fmt.Printf("\nMISSED, of %d targets:\n  %s\n", t.count, strings.Join(t.missed, "\n  "))
	fmt.Println("The load shares the processors with the servers: where other programs work, too, the ratio of CPU time tells more.")
	return fmt.Errorf("%d of %d targets were missed", len(t.missed), t.count)
}
