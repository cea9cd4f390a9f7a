//go:build linux && amd64

package commands

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// samples is how many steps of each command are tried in a normal run.
const samples = 8

// cutCase is a command that is killed at its steps.
type cutCase struct {
	name string
	args []string
	// prepare brings the site into the state before the command, whatever
	// state it is in.
	prepare func(s *site)
	// between tells whether a state that is neither that before nor that
	// after is right, too; nil: none is.
	between func(state string) bool
	// again are the statuses with which the command may end when it is given
	// once more after all of it was done; none: 0.
	again []int
}

// deb@1 has the marker first, deb@2 second. Work is done on the tree w.
var cutCases = []cutCase{
	{name: "import", args: []string{"import", "w", "--dir", "IMPORT"}, prepare: without("w"), again: []int{4}},
	{name: "snapshot", args: []string{"snapshot", "w", "-m", "kept"}, prepare: func(s *site) { s.freshBranch("changed") }},
	{name: "branch", args: []string{"branch", "deb@1", "w"}, prepare: without("w"), again: []int{4}},
	{name: "rollback", args: []string{"rollback", "w@1"}, prepare: func(s *site) { s.freshBranch("third"); s.ok("snapshot", "w"); s.setMarker("w", "changed") }},
	{name: "delete snapshot", args: []string{"delete", "w@1", "--yes"}, prepare: func(s *site) { s.freshBranch("third"); s.ok("snapshot", "w"); s.ok("snapshot", "w") }, again: []int{3}},
	{name: "delete tree", args: []string{"delete", "w", "--yes"}, prepare: func(s *site) { s.freshBranch("third"); s.ok("snapshot", "w") }, again: []int{3}},
	{name: "rename", args: []string{"rename", "w", "v"}, prepare: func(s *site) { without("v")(s); s.freshBranch("third") }, again: []int{3}},
	{name: "promote", args: []string{"promote", "deb@2"}, prepare: func(s *site) {
		s.ok("promote", "deb@1")
		files, _ := filepath.Glob(filepath.Join(s.dir, "cache/index/*.index"))
		for _, file := range files {
			must(s.t, os.Remove(file)) // it is built anew
		}
	}},
	{name: "channel rollback", args: []string{"channel", "rollback", "default"}, again: []int{3}, prepare: func(s *site) {
		s.run("channel", "delete", "default", "--yes")
		s.ok("promote", "deb@1")
		s.ok("promote", "deb@2")
	}, between: nil},
	{name: "build", args: []string{"build", "RECIPE"}, prepare: without("small"), between: func(state string) bool {
		// The tree is made first, and each phase leaves its snapshot.
		return slices.Contains([]string{"small: - []", "small: - [-]", "small: - [- built]"}, lineOf(state, "small"))
	}},
	{name: "exec", args: []string{"exec", "w", "--", "/bin/sh", "-c", "echo changed > /etc/marker"}, prepare: func(s *site) { s.freshBranch("third") },
		between: func(state string) bool { return lineOf(state, "w") == "w:  []" }}, // the shell has opened the file
	{name: "gc", args: []string{"gc", "--tree", "w", "--keep", "1", "--yes"}, prepare: func(s *site) {
		s.freshBranch("third")
		for range 3 {
			s.ok("snapshot", "w")
		}
	}},
	{name: "takeover", args: []string{"takeover", "--yes"}, prepare: func(s *site) { s.ok("demote", "--yes") }},
	{name: "demote", args: []string{"demote", "--yes"}, prepare: func(s *site) { s.ok("takeover", "--yes") }},
	{name: "node add", args: []string{"node", "add", "52:54:00:00:00:01", "--name", "n1"}, prepare: func(s *site) { s.run("node", "delete", "n1", "--yes") }, again: []int{4}},
}

func lineOf(state, tree string) string {
	for line := range strings.Lines(state) {
		if strings.HasPrefix(line, tree+":") {
			return strings.TrimSuffix(line, "\n")
		}
	}
	return ""
}

// without makes sure that a tree is not there.
func without(tree string) func(s *site) {
	return func(s *site) {
		if r := s.run("delete", tree, "--yes"); r.status != 0 && r.status != 3 {
			s.t.Fatalf("delete %s: %s", tree, r.stderr)
		}
	}
}

// freshBranch makes w, without snapshots, from deb@2, with a marker.
func (s *site) freshBranch(marker string) {
	without("w")(s)
	s.ok("branch", "deb@2", "w")
	s.setMarker("w", marker)
}

// setMarker writes the marker of a tree's head.
func (s *site) setMarker(tree, text string) {
	var l listingJSON
	s.json(&l, "list")
	for _, t := range l.Trees {
		if t.Name == tree {
			must(s.t, os.WriteFile(filepath.Join(s.root(), "volumes", t.Head, "etc/marker"), []byte(text+"\n"), 0o644))
		}
	}
}

// state is what the catalog says and the store holds, without what differs
// each time: the markers of each tree's head and snapshots, the channels, the
// nodes.
func (s *site) state() string {
	s.t.Helper()
	marker := func(kind, id string) string {
		text, err := os.ReadFile(filepath.Join(s.root(), kind, id, "etc/marker"))
		if err != nil {
			if _, err := os.Stat(filepath.Join(s.root(), kind, id)); err != nil {
				s.t.Errorf("the store does not hold what the catalog names: %v", err)
			}
			return "-"
		}
		return strings.TrimSpace(string(text))
	}
	var b strings.Builder
	var l listingJSON
	s.json(&l, "list")
	held := map[string]int{"volumes": len(l.Trees)}
	for _, tree := range l.Trees {
		var snapshots []snapshotJSON
		s.json(&snapshots, "log", tree.Name)
		var markers []string
		for _, snapshot := range slices.Backward(snapshots) {
			markers = append(markers, marker("snapshots", snapshot.ID))
		}
		held["snapshots"] += len(snapshots)
		fmt.Fprintf(&b, "%s: %s %v\n", tree.Name, marker("volumes", tree.Head), markers)
	}
	var channels []channelJSON
	s.json(&channels, "channel", "list")
	for _, c := range channels {
		fmt.Fprintf(&b, "channel %s: %s\n", c.Name, marker("snapshots", c.Snapshot.ID))
	}
	var nodes []struct{ Name string }
	s.json(&nodes, "node", "list")
	fmt.Fprintf(&b, "nodes: %v\n", nodes)
	var ready struct{ Role string }
	args := []string{"ready", "--json"}
	decode(s.t, args, s.run(args...).stdout, &ready) // it may fail, and says the role
	fmt.Fprintf(&b, "role: %s\n", ready.Role)
	for kind, want := range held {
		if entries, err := os.ReadDir(filepath.Join(s.root(), kind)); err != nil || len(entries) != want {
			s.t.Errorf("the store holds %d %s instead of %d (%v)", len(entries), kind, want, err)
		}
	}
	return b.String()
}

// TestKilledAnywhere kills each changing command at its steps. Whatever the
// step: check says that all is well or what was left, check --repair mends it,
// the site is as before or as after, and the command can be given again.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	for _, c := range cutCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			dir := smallTree(t)
			s.ok("import", "deb", "--dir", dir)
			s.setMarker("deb", "second")
			s.ok("snapshot", "deb")
			recipe := writeRecipe(t, "small", busyboxPhases+"  - name: site\n    run: echo built > /etc/marker\n")
			args := slices.Clone(c.args)
			for i := range args {
				args[i] = strings.NewReplacer("IMPORT", dir, "RECIPE", recipe).Replace(args[i])
			}
			s.killEverywhere(c, args)
		})
	}
}

// points are the steps to try of all that a command takes.
func points(t *testing.T, all int) (list []int) {
	stride, first := 1, 1
	if os.Getenv("SIDUS_LONG_TESTS") != "1" {
		stride = max(1, all/samples)
		first = 1 + rand.IntN(stride)
	}
	for n := first; n <= all; n += stride {
		list = append(list, n)
	}
	t.Logf("%d steps; killed at %d, every %d", all, first, stride)
	return list
}

func (s *site) killEverywhere(c cutCase, args []string) {
	t := s.t.(*testing.T)
	each := os.Getenv("SIDUS_LONG_TESTS") == "1"
	c.prepare(s)
	before := s.state()
	whole, r := s.cut(0, each, args...)
	if r.status != 0 {
		t.Fatalf("it fails although nothing kills it: %+v", r)
	}
	after := s.state()
	if before == after {
		t.Fatalf("it changes nothing:\n%s", after)
	}
	begun := time.Now()
	list := points(t, whole.calls)
	for _, n := range list {
		c.prepare(s)
		if state := s.state(); state != before {
			t.Fatalf("the site could not be prepared:\n%s\ninstead of\n%s", state, before)
		}
		cut, r := s.cut(n, each, args...)
		name := fmt.Sprintf("killed at step %d (%s)", n, cut.killed)
		if cut.killed == "" {
			if r.status != 0 {
				t.Errorf("not killed at step %d, and failed: %+v", n, r)
			}
			continue
		}
		s.waitAlone()
		s.mended(name)
		state := s.state()
		switch {
		case state == before, state == after, c.between != nil && c.between(state):
		default:
			t.Errorf("%s: the site is neither as before nor as after:\n%s\nbefore:\n%s\nafter:\n%s", name, state, before, after)
			continue
		}
		r = s.run(args...)
		allowed := []int{0}
		if state == after {
			allowed = append(allowed, c.again...)
		}
		if !slices.Contains(allowed, r.status) {
			t.Errorf("%s: done again: status %d, %s", name, r.status, r.stderr)
		}
		if state != after {
			if now := s.state(); now != after {
				t.Errorf("%s: done again, it is not as after:\n%s\ninstead of\n%s", name, now, after)
			}
		}
		s.sound()
		if t.Failed() {
			t.Fatalf("%s: that is enough", name)
		}
	}
	t.Logf("%d kills in %s", len(list), time.Since(begun).Round(time.Millisecond))
}

// mended checks that check finds at most what a cut operation leaves, and that
// --repair mends it.
func (s *site) mended(name string) {
	s.t.Helper()
	if r := s.run("check"); r.status != 0 && r.status != 6 {
		s.t.Errorf("%s: check: status %d: %s%s", name, r.status, r.stdout, r.stderr)
	}
	if r := s.run("check", "--repair"); r.status != 0 {
		s.t.Errorf("%s: check --repair: status %d: %s%s", name, r.status, r.stdout, r.stderr)
	}
	if r := s.run("check"); r.status != 0 {
		s.t.Errorf("%s: check after --repair: status %d: %s%s", name, r.status, r.stdout, r.stderr)
	}
	if mounts := s.mounts(); len(mounts) > 1 {
		s.t.Errorf("%s: mounted: %v", name, mounts)
	}
	if devices := strings.Fields(s.loops()); len(devices) > 1 {
		s.t.Errorf("%s: loop devices: %v", name, devices)
	}
	s.noScratch()
}

// TestInitKilledAnywhere kills init at its steps. Given again it makes a site
// that works.
func TestInitKilledAnywhere(t *testing.T) {
	t.Parallel()
	each := os.Getenv("SIDUS_LONG_TESTS") == "1"
	args := []string{"init", "--size", "300M"}
	first := bareSite(t, filepath.Join(t.TempDir(), "state"))
	whole, r := first.cut(0, each, args...)
	if r.status != 0 {
		t.Fatalf("init: %+v", r)
	}
	for _, n := range points(t, whole.calls) {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := bareSite(t, filepath.Join(t.TempDir(), "state"))
			cut, _ := s.cut(n, each, args...)
			name := fmt.Sprintf("killed at step %d (%s)", n, cut.killed)
			s.waitAlone()
			if r := s.run("list"); r.status != 0 && !strings.Contains(r.stderr, "sidus init") {
				t.Errorf("%s: list does not say what to do: %s", name, r.stderr)
			}
			if r := s.run(args...); r.status != 0 {
				t.Fatalf("%s: init again: %+v", name, r)
			}
			if info, err := os.Stat(filepath.Join(s.dir, "secrets/site.key")); err != nil || info.Size() != 32 || info.Mode() != 0o600 {
				t.Errorf("%s: the site's key: %v, %v", name, info, err)
			}
			s.ok("import", "deb", "--dir", smallTree(t))
			s.mended(name)
			s.sound()
		})
	}
}
