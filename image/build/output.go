package build

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
)

// tailLines is how much of a failed phase's output is shown.
const tailLines = 20

// output takes what a phase says: the log has all of it, the person who waits
// sees what is being done, and a failure shows the end.
type output struct {
	log      *os.File // may be nil
	activity func(string)

	mu      sync.Mutex
	partial []byte
	tail    []string
	noSpace bool
	mirror  string // the first complaint about a mirror
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.log != nil {
		// A log that cannot be written must not fail the phase.
		_, _ = o.log.Write(p)
	}
	o.partial = append(o.partial, p...)
	for {
		i := bytes.IndexAny(o.partial, "\r\n")
		if i < 0 {
			break
		}
		o.line(string(o.partial[:i]))
		o.partial = o.partial[i+1:]
	}
	if len(o.partial) > 16<<10 {
		o.line(string(o.partial))
		o.partial = nil
	}
	return len(p), nil
}

var (
	noSpaceWords = regexp.MustCompile(`(?i)no space left on device|don't have enough free space|disk quota exceeded|cannot allocate space`)
	mirrorWords  = regexp.MustCompile(`^(E|W|Err:\d+):? .*(Failed to fetch|Could not connect|Could not resolve|Unable to connect|Connection failed|Connection timed out|does not have a Release file)`)
)

func (o *output) line(text string) {
	text = strings.TrimRight(printable(text), " ")
	if text == "" {
		return
	}
	if noSpaceWords.MatchString(text) {
		o.noSpace = true
	}
	if o.mirror == "" && mirrorWords.MatchString(text) {
		o.mirror = strings.TrimPrefix(text, "E: ")
	}
	if len(o.tail) == tailLines {
		o.tail = append(o.tail[:0], o.tail[1:]...)
	}
	o.tail = append(o.tail, clipTo(text, 300))
	if a := activityOf(text); a != "" && o.activity != nil {
		o.activity(a)
	}
}

// end takes the last line that has no end.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.partial) > 0 {
		o.line(string(o.partial))
		o.partial = nil
	}
}

// note writes a line of Sidus' own.
func (o *output) note(text string) {
	_, _ = io.WriteString(o, time.Now().Format("15:04:05 ")+text+"\n")
}

// printable drops what would move a terminal's cursor.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, text)
}

func clipTo(text string, n int) string {
	if runes := []rune(text); len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return text
}

var activities = []struct {
	form *regexp.Regexp
	text string // $1 is the package
}{
	{regexp.MustCompile(`^Get:\d+ \S+ \S+ \S+ (\S+) \S+ \S+ \[`), "downloading $1"},
	{regexp.MustCompile(`^Selecting previously unselected package ([^\s:]+?)[.:]`), "selecting $1"},
	{regexp.MustCompile(`^Unpacking ([^\s:]+)`), "unpacking $1"},
	{regexp.MustCompile(`^Setting up ([^\s:]+)`), "setting up $1"},
	{regexp.MustCompile(`^Processing triggers for ([^\s:]+)`), "triggers of $1"},
	{regexp.MustCompile(`^(?:Removing|Purging configuration files for) ([^\s:]+)`), "removing $1"},
	{regexp.MustCompile(`^update-initramfs: (Generating .*)`), "$1"},
	{regexp.MustCompile(`^I: (?:Retrieving|Validating|Extracting|Unpacking|Configuring) ([^\s.]+)`), "$0"},
	{regexp.MustCompile(`^I: (running apt-get update|downloading packages|extracting archives|installing [a-z ]+ packages|cleaning package lists).*`), "$1"},
	{regexp.MustCompile(`^(?:Hit|Get):\d+ (\S+) (\S+) InRelease`), "package lists of $1 $2"},
	{regexp.MustCompile(`^Reading package lists`), "reading package lists"},
}

// activityOf recognises what apt, dpkg, mmdebstrap and debootstrap are doing.
func activityOf(line string) string {
	for _, a := range activities {
		if m := a.form.FindStringSubmatchIndex(line); m != nil {
			return clipTo(string(a.form.ExpandString(nil, a.text, line, m)), 80)
		}
	}
	return ""
}
