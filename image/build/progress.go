package build

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// EventType says what happened.
type EventType string

// The events of a build, in order: one plan; for each phase that runs one
// phase, activities, one phase-end; at last done or failed.
const (
	EventPlan     EventType = "plan"
	EventPhase    EventType = "phase"
	EventActivity EventType = "activity"
	EventPhaseEnd EventType = "phase-end"
	EventDone     EventType = "done"
	EventFailed   EventType = "failed"
)

// Event is one thing that happened in a build.
type Event struct {
	Type     EventType     `json:"event"`
	Phase    string        `json:"phase,omitempty"`
	Kind     Kind          `json:"kind,omitempty"`
	Index    int           `json:"index,omitempty"` // from 1
	Total    int           `json:"total,omitempty"`
	Text     string        `json:"text,omitempty"` // why it runs; what is being done; the error
	Elapsed  time.Duration `json:"elapsed_ns,omitempty"`
	Snapshot string        `json:"snapshot,omitempty"`
	UpToDate bool          `json:"up_to_date,omitempty"`
	Plan     *Plan         `json:"plan,omitempty"`
}

// Progress is told what happens. Events come from one goroutine at a time.
type Progress interface {
	Event(e Event)
}

// Quiet is a Progress that says nothing.
type Quiet struct{}

// Event implements Progress.
func (Quiet) Event(Event) {}

// NewProgress returns a Progress for a person: one line that is redrawn if
// out is a terminal, otherwise plain lines. How the build ended is left to the
// caller to say. close ends it; a second call does nothing.
func NewProgress(out *os.File) (p Progress, close func()) {
	if term.IsTerminal(int(out.Fd())) && os.Getenv("TERM") != "dumb" {
		screen := newScreen(out, func() int {
			width, _, err := term.GetSize(int(out.Fd()))
			if err != nil || width < 20 {
				return 80
			}
			return width
		})
		return screen, screen.close
	}
	return &plain{out: out}, func() {}
}

// JSON is a Progress that writes an object a line.
type JSON struct{ Out io.Writer }

// Event implements Progress.
func (j JSON) Event(e Event) {
	line := struct {
		Time time.Time `json:"time"`
		Event
	}{Time: time.Now().UTC(), Event: e}
	if text, err := json.Marshal(line); err == nil {
		_, _ = j.Out.Write(append(text, '\n'))
	}
}

// activityEvery is how often plain lines say what is being done.
const activityEvery = 10 * time.Second

// plain writes lines.
type plain struct {
	out   io.Writer
	began time.Time
	said  time.Time
}

func (p *plain) Event(e Event) {
	switch e.Type {
	case EventPlan:
		if !e.Plan.UpToDate() {
			_, _ = io.WriteString(p.out, e.Plan.String())
		}
	case EventPhase:
		p.began, p.said = time.Now(), time.Now()
		fmt.Fprintf(p.out, "[%d/%d] %s: %s\n", e.Index, e.Total, e.Phase, e.Text)
	case EventActivity:
		if time.Since(p.said) >= activityEvery {
			p.said = time.Now()
			fmt.Fprintf(p.out, "[%d/%d] %s: %s, %s\n", e.Index, e.Total, e.Phase, clock(time.Since(p.began)), e.Text)
		}
	case EventPhaseEnd:
		fmt.Fprintf(p.out, "[%d/%d] %s: done in %s, %s\n", e.Index, e.Total, e.Phase, clock(e.Elapsed), e.Snapshot)
	}
}

// clock writes a duration for people: 3.2s, 1m04s.
func clock(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	if d < time.Minute {
		return fmt.Sprintf("%ds", int(d.Seconds()))
	}
	return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
}

// screen redraws one line on a terminal.
type screen struct {
	out   io.Writer
	width func() int

	mu    sync.Mutex
	now   Event
	began time.Time
	drawn bool

	closeOnce sync.Once
	stop      chan struct{}
	done      sync.WaitGroup
}

func newScreen(out io.Writer, width func() int) *screen {
	s := &screen{out: out, width: width, stop: make(chan struct{})}
	s.done.Add(1)
	go func() {
		defer s.done.Done()
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
				s.mu.Lock()
				s.draw()
				s.mu.Unlock()
			}
		}
	}()
	return s
}

func (s *screen) close() {
	s.closeOnce.Do(func() { close(s.stop) })
	s.done.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
}

func (s *screen) Event(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e.Type {
	case EventPlan:
		if !e.Plan.UpToDate() {
			_, _ = io.WriteString(s.out, e.Plan.String())
		}
	case EventPhase:
		s.now, s.began = e, time.Now()
		s.now.Text = ""
		s.draw()
	case EventActivity:
		s.now.Text = e.Text // drawn by the clock: apt says hundreds of things a second
	case EventPhaseEnd:
		s.erase()
		s.now = Event{}
		fmt.Fprintf(s.out, "[%d/%d] %-16s %8s  %s\n", e.Index, e.Total, e.Phase, clock(e.Elapsed), e.Snapshot)
	case EventDone, EventFailed:
		s.erase()
		s.now = Event{}
	}
}

func (s *screen) draw() {
	if s.now.Type == "" {
		return
	}
	line := fmt.Sprintf("[%d/%d] %-16s %8s  %s", s.now.Index, s.now.Total, s.now.Phase, clock(time.Since(s.began)), s.now.Text)
	_, _ = io.WriteString(s.out, "\r\x1b[K"+clipTo(line, s.width()-1))
	s.drawn = true
}

func (s *screen) erase() {
	if s.drawn {
		_, _ = io.WriteString(s.out, "\r\x1b[K")
		s.drawn = false
	}
}
