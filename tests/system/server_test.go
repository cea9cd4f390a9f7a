package system

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"sidus/tests/lab"
)

// server is `sidus serve`. It may be killed and started again.
type server struct {
	host host

	mu      sync.Mutex
	past    string // what the killed ones said
	process *lab.Process
}

// networks is how many networks of the catalog the lab has addresses in.
const networks = 3

// start starts the server and waits until it answers in all networks.
func (s *server) start(ctx context.Context, options ...string) error {
	limit := time.Minute * s.host.patience()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the server is not ready within %v", limit))
	defer cancel()
	process, err := s.host.serve(options...)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.process = process
	s.mu.Unlock()
	at := 0
	for range networks {
		if _, at, err = process.Output.WaitFor(ctx, at, regexp.MustCompile(`dhcp: answering`)); err != nil {
			return err
		}
	}
	return nil
}

// kill is kill -9.
func (s *server) kill(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.host.kill(s.process); err != nil {
		t.Error(err)
	}
	s.past += s.process.Output.String() + "---- killed ----\n"
	s.process = nil
}

// stop is SIGTERM.
func (s *server) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second*s.host.patience())
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.host.stop(ctx, s.process)
}

// log is what the server has said so far, the killed ones included.
func (s *server) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return s.past
	}
	return s.past + s.process.Output.String()
}

// wait waits until the log shows something at or behind offset from that
// matches pattern; it returns the line and the offset behind it.
func (s *server) wait(ctx context.Context, from int, pattern string) (line string, end int, err error) {
	re := regexp.MustCompile(`(?m)^.*` + pattern + `.*$`)
	// The log goes on in another process when the server is killed, so there
	// is no one transcript to wait on.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		log := s.log()
		// A line is complete when its end is there.
		whole := max(from, strings.LastIndexByte(log, '\n')+1)
		if found := re.FindStringIndex(log[from:whole]); found != nil {
			return log[from+found[0] : from+found[1]], from + found[1], nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", 0, fmt.Errorf("waiting for %q in the server's log: %w", pattern, context.Cause(ctx))
		}
	}
}

// step is the pattern of the line that says that the boot of a machine has
// reached a step.
func step(name, mac string) string { return fmt.Sprintf(`msg="boot: %s".* mac="%s"`, name, mac) }
