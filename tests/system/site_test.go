package system

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	recipe  = "testdata/client.yaml"
	channel = "default"
)

// site is what a host serves: commands of sidus work on it.
type site struct{ host host }

// snapshot is one version of the tree of the tests.
type snapshot struct {
	version string // what stands in its file, initrd and command line
	id      string
	ref     string // tree@number
}

// must runs a command of sidus that has to succeed and returns what it prints.
func (s *site) must(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	r, err := s.host.sidus(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return r.stdout
}

// refused runs a command of sidus that has to end with the status, and returns
// what it says.
func (s *site) refused(ctx context.Context, t *testing.T, status int, args ...string) string {
	t.Helper()
	r, err := s.host.sidus(ctx, args...)
	if r.status != status {
		t.Fatalf("sidus %s ends with status %d, not %d: %v", strings.Join(args, " "), r.status, status, err)
	}
	return r.stderr
}

// fetch runs a command of sidus with --json and reads what it prints into v.
func (s *site) fetch(ctx context.Context, t *testing.T, v any, args ...string) {
	t.Helper()
	text := s.must(ctx, t, append(args, "--json")...)
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("sidus %s --json: %v: %s", strings.Join(args, " "), err, text)
	}
}

// build builds a version of the tree.
func (s *site) build(ctx context.Context, t *testing.T, version string) snapshot {
	t.Helper()
	begun := time.Now()
	s.must(ctx, t, "build", s.host.recipe(), "--set", "version="+version)
	times.note("build version "+version+" of the tree", time.Since(begun))
	var shown struct {
		Snapshot struct {
			ID, Tree string
			Number   int
			Complete bool
		}
	}
	s.fetch(ctx, t, &shown, "show", "client@latest")
	if !shown.Snapshot.Complete {
		t.Fatalf("a build ended with a snapshot that is not complete: %+v", shown)
	}
	return snapshot{version: version, id: shown.Snapshot.ID, ref: fmt.Sprintf("%s@%d", shown.Snapshot.Tree, shown.Snapshot.Number)}
}

// node is what `status` and `node list` say of a machine.
type node struct {
	MAC        string
	Name       string
	Registered bool
	Network    string
}

type status struct {
	Node    node
	Session *struct {
		ID       string
		Snapshot struct {
			ID string
		}
		Channel     string
		Address     string
		Step        string
		FailedUnits []string `json:"failed_units"`
	}
	Reboot struct {
		Snapshot struct {
			ID string
		}
		Change string
		Text   string
	}
}

// status is what `status` says of the machine with that hardware address.
func (s *site) status(ctx context.Context, t *testing.T, mac string) status {
	t.Helper()
	var all []status
	s.fetch(ctx, t, &all, "status")
	for _, one := range all {
		if one.Node.MAC == mac {
			return one
		}
	}
	t.Fatalf("status does not know %s: %+v", mac, all)
	return status{}
}

// tail is the last n lines of text.
func tail(text string, n int) string {
	lines := strings.SplitAfter(strings.ReplaceAll(text, "\r", ""), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
