package labdisk

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
)

// Lines between which a suite's output stands.
const (
	beginMark  = "sidus-lab: begin "
	endMark    = "sidus-lab: end "
	statusMark = "sidus-lab: exit status "
)

// result is what a test in the machine came to, and what it said.
type result struct {
	name, verdict, text string
}

// reader reads what comes out of the machine.
type reader struct {
	pending string // the line that is not complete, then what belongs to no suite
	suites  [][]result
	codes   []string // the exit codes of suites that have ended
	text    strings.Builder
	inside  bool
	status  string
	line    string
	// progress, if not nil, gets a line for each test that has ended.
	progress io.Writer
}

var (
	verdict = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP|BENCH): (\S+)`)
	// measured is the line of a benchmark.
	measured = regexp.MustCompile(`^(Benchmark\S+)\s+\d+\s`)
)

// Write implements io.Writer.
func (r *reader) Write(p []byte) (int, error) {
	r.line += string(p)
	for {
		line, rest, ok := strings.Cut(r.line, "\n")
		if !ok {
			return len(p), nil
		}
		r.line = rest
		r.take(strings.TrimSuffix(line, "\r"))
	}
}

func (r *reader) take(line string) {
	switch {
	case strings.HasPrefix(line, beginMark):
		r.suites = append(r.suites, nil)
		r.inside = true
		r.text.Reset()
	case strings.HasPrefix(line, endMark):
		_, code, _ := strings.Cut(strings.TrimPrefix(line, endMark), " ")
		r.codes = append(r.codes, code)
		r.inside = false
		r.pending = r.text.String()
	case strings.HasPrefix(line, statusMark):
		r.status = strings.TrimPrefix(line, statusMark)
	default:
		fmt.Fprintln(&r.text, line)
		r.pending = r.text.String()
		m := verdict.FindStringSubmatch(line)
		if found := measured.FindStringSubmatch(line); found != nil {
			m = []string{line, "PASS", found[1]}
		}
		if m == nil || !r.inside {
			return
		}
		if r.progress != nil {
			fmt.Fprintln(r.progress, "sidus-lab:", line)
		}
		n := len(r.suites) - 1
		r.suites[n] = append(r.suites[n], result{name: m[2], verdict: m[1], text: r.text.String()})
		r.text.Reset()
	}
}

// report makes a subtest of each test in the machine.
func (r *reader) report(t *testing.T, suites []Suite) {
	for n, s := range suites {
		t.Run(s.Package, func(t *testing.T) {
			if n >= len(r.suites) {
				t.Fatal("it was not run: the machine ended before")
			}
			for _, one := range r.suites[n] {
				t.Run(one.name, func(t *testing.T) {
					t.Log(strings.TrimSpace(one.text))
					switch one.verdict {
					case "FAIL":
						t.Fail()
					case "SKIP":
						t.SkipNow()
					}
				})
			}
			switch {
			case n >= len(r.codes):
				t.Errorf("it did not end; its last words:\n%s", last(r.pending, 8000))
			case r.codes[n] != "0":
				t.Errorf("exit status %s; its last words:\n%s", r.codes[n], last(r.pending, 8000))
			case len(r.suites[n]) == 0:
				t.Error("it has no tests")
			}
		})
	}
}
