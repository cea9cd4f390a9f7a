package main

import (
	"regexp"
	"strings"
)

func compile(pattern string) *regexp.Regexp { return regexp.MustCompile(pattern) }

// indent sets each line of text off from what stands around it.
func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("    " + strings.TrimRight(line, "\r\n") + "\n")
	}
	return b.String()
}

// tail is the last n lines of text.
func tail(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
