package build

import (
	"bytes"
	"fmt"
	"strings"

	"sidus/image/store"
)

// Snapshot is what a plan knows of a snapshot.
type Snapshot struct {
	ID       store.SnapshotID `json:"id"`
	Ref      string           `json:"ref"` // for people: debian@14
	Phase    string           `json:"phase,omitempty"`
	Key      string           `json:"key,omitempty"`
	Complete bool             `json:"complete"`
	Own      bool             `json:"own"` // it is one of the tree that is built
}

// Known is what exists when a plan is made.
type Known struct {
	// Base is the snapshot that the tree's head starts from; "" if none.
	Base store.SnapshotID
	// ByKey has for each key the snapshot to use: a complete one of the tree
	// itself rather than another, then the newest.
	ByKey map[string]Snapshot
	// Before has for each phase of the tree, by name, what its newest
	// snapshot was made of, and its key. It is used for reasons only.
	Before map[string]Past
}

// Past is how a phase was made the last time.
type Past struct {
	Key    string
	Parent string
	Inputs *Inputs // nil if it is not known any more
}

// Plan says what a build does. It begins from the last cached phase.
type Plan struct {
	Phases []PlannedPhase `json:"phases"`
	// From is the snapshot that the first phase to run begins from; its ID is
	// "" if that is an empty folder.
	From Snapshot `json:"from,omitzero"`
	// Final is the last phase's snapshot if every phase is cached.
	Final Snapshot `json:"final,omitzero"`
	// Seal is set if every phase is cached, and the tree has no complete
	// snapshot of that content yet: one is taken, nothing is run.
	Seal bool `json:"seal"`
	// Move is set if every phase is cached, and the head starts from another
	// snapshot.
	Move bool `json:"move"`
}

// PlannedPhase is one phase of a plan.
type PlannedPhase struct {
	Name   string   `json:"name"`
	Kind   Kind     `json:"kind"`
	Key    string   `json:"key"`
	Run    bool     `json:"run"`
	Reason string   `json:"reason"`          // why it runs, or which snapshot it is
	Cached Snapshot `json:"cached,omitzero"` // the zero value if it runs, or if only a later one is there
}

// Runs is the number of phases that run.
func (p *Plan) Runs() int {
	n := 0
	for _, phase := range p.Phases {
		if phase.Run {
			n++
		}
	}
	return n
}

// UpToDate says that there is nothing to do.
func (p *Plan) UpToDate() bool { return p.Runs() == 0 && !p.Seal && !p.Move }

// String is the plan for people, a line a phase.
func (p *Plan) String() string {
	var b strings.Builder
	for i, phase := range p.Phases {
		what := "cached"
		if phase.Run {
			what = "run"
		}
		fmt.Fprintf(&b, "%d/%d  %-6s  %-16s  %s\n", i+1, len(p.Phases), what, phase.Name, phase.Reason)
	}
	return b.String()
}

// NewPlan compares phases with what exists. It is pure. rebuild names the
// first phase that runs whatever exists; "" names none.
func NewPlan(r *Recipe, inputs []Inputs, known Known, rebuild string) (*Plan, error) {
	plan := &Plan{Phases: make([]PlannedPhase, len(r.Phases))}
	forced := len(r.Phases)
	parent := ""
	last := -1 // the last phase that need not run
	for i, p := range r.Phases {
		key := inputs[i].Key(parent)
		plan.Phases[i] = PlannedPhase{Name: p.Name, Kind: p.Kind, Key: key}
		if p.Name == rebuild {
			forced = i
		}
		if s, ok := known.ByKey[key]; ok && i < forced {
			plan.Phases[i].Cached = s
			last = i
		}
		parent = key
	}
	if rebuild != "" && forced == len(r.Phases) {
		names := make([]string, len(r.Phases))
		for i, p := range r.Phases {
			names[i] = p.Name
		}
		if near := nearest(rebuild, names); near != "" {
			return nil, fmt.Errorf("%s has no phase %q to rebuild; did you mean %q?", r.File, clip(rebuild), near)
		}
		return nil, fmt.Errorf("%s has no phase %q to rebuild; it has %s", r.File, clip(rebuild), quoteAll(names))
	}
	parent = ""
	for i := range plan.Phases {
		p := &plan.Phases[i]
		switch {
		case i <= last && p.Cached.ID != "":
			p.Reason = p.Cached.Ref
		case i <= last:
			p.Reason = "a later phase is there"
		default:
			p.Run = true
			p.Reason = reason(p, inputs[i], parent, known, rebuild, i > last+1)
		}
		parent = p.Key
	}
	if last >= 0 {
		plan.From = plan.Phases[last].Cached
	}
	if last == len(plan.Phases)-1 {
		plan.Final = plan.From
		plan.Seal = !plan.Final.Complete || !plan.Final.Own
		plan.Move = !plan.Seal && known.Base != plan.Final.ID
	}
	return plan, nil
}

// reason says why a phase runs.
func reason(p *PlannedPhase, now Inputs, parent string, known Known, rebuild string, after bool) string {
	if p.Name == rebuild {
		return "--rebuild"
	}
	past, ok := known.Before[p.Name]
	switch {
	case !ok:
		return "never built"
	case past.Key == p.Key && after:
		return "parent runs again"
	case past.Key == p.Key:
		return "its snapshot is gone"
	case past.Inputs == nil && past.Parent != parent && past.Parent != "":
		return "parent changed"
	case past.Inputs == nil:
		return "the recipe or a file of it changed"
	}
	var reasons []string
	if past.Inputs.Format != now.Format {
		reasons = append(reasons, "this version of Sidus builds differently")
	}
	if past.Inputs.Kind != now.Kind || !bytes.Equal(past.Inputs.Step, now.Step) {
		reasons = append(reasons, "recipe text of phase "+p.Name+" changed")
	}
	if text := changedFiles(past.Inputs.Files, now.Files); text != "" {
		reasons = append(reasons, text)
	}
	if past.Inputs.Boot != now.Boot {
		reasons = append(reasons, "the initramfs hook or the agent changed")
	}
	if past.Parent != parent {
		reasons = append(reasons, "parent changed")
	}
	return strings.Join(reasons, ", ")
}

// changedFiles names the first file that differs, and counts the others.
func changedFiles(before, now []FileInput) string {
	old := make(map[string]FileInput, len(before))
	for _, f := range before {
		old[f.Path] = f
	}
	var found []string
	for _, f := range now {
		was, ok := old[f.Path]
		switch {
		case !ok:
			found = append(found, "file "+f.Path+" is new")
		case was != f:
			found = append(found, "file "+f.Path+" changed")
		}
		delete(old, f.Path)
	}
	for _, f := range before {
		if _, gone := old[f.Path]; gone {
			found = append(found, "file "+f.Path+" is gone")
		}
	}
	switch len(found) {
	case 0:
		return ""
	case 1:
		return found[0]
	}
	return fmt.Sprintf("%s (and %d more)", found[0], len(found)-1)
}
