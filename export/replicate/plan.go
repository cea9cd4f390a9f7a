package replicate

import (
	"cmp"
	"slices"
	"strings"

	"sidus/image/store"
)

// Options say what is wanted. The zero value wants everything.
type Options struct {
	// Wanted tells which snapshots are sent; nil means all. What a channel
	// points to is sent in any case.
	Wanted func(Snapshot) bool
	// Whole sends each snapshot as a whole, for receivers with another backend.
	Whole bool
}

// IncrementalPath plans how receiver gets what sender holds. The error is of
// type Conflicts.
func IncrementalPath(sender, receiver Site, o Options) (Plan, error) {
	p := planner{
		options: o, sender: sender, receiver: receiver,
		here: map[store.SnapshotID]Snapshot{}, there: map[store.SnapshotID]Snapshot{},
		names: map[string]string{}, sent: map[store.SnapshotID]bool{}, state: map[store.SnapshotID]int{},
	}
	p.read()
	p.compare()
	if len(p.conflicts) == 0 {
		p.plan()
	}
	if len(p.conflicts) > 0 {
		return Plan{}, p.conflicts
	}
	return p.result, nil
}

type planner struct {
	options          Options
	sender, receiver Site
	here, there      map[store.SnapshotID]Snapshot // of sender and receiver, deleted ones included
	names            map[string]string             // names of trees by ID; the sender's word counts
	sent             map[store.SnapshotID]bool     // by the steps so far
	state            map[store.SnapshotID]int      // of the walk along parents: 1 begun, 2 done
	result           Plan
	conflicts        Conflicts
}

func (p *planner) conflict(err error) { p.conflicts = append(p.conflicts, err) }

// byAge sorts by tree and number.
func (p *planner) byAge(snapshots []Snapshot) {
	slices.SortFunc(snapshots, func(a, b Snapshot) int {
		return cmp.Or(strings.Compare(p.names[a.Tree], p.names[b.Tree]), strings.Compare(a.Tree, b.Tree), a.Number-b.Number, strings.Compare(string(a.ID), string(b.ID)))
	})
}

func (p *planner) read() {
	for _, side := range []struct {
		site *Site
		into map[store.SnapshotID]Snapshot
	}{{&p.receiver, p.there}, {&p.sender, p.here}} {
		for _, tree := range side.site.Trees {
			p.names[tree.ID] = tree.Name
		}
		side.site.Snapshots = slices.Clone(side.site.Snapshots)
		for _, s := range side.site.Snapshots {
			if _, twice := side.into[s.ID]; twice {
				p.conflict(&BadLineage{s.ID})
			}
			side.into[s.ID] = s
		}
	}
	p.byAge(p.sender.Snapshots)
	p.byAge(p.receiver.Snapshots)
}

// compare looks for what makes a plan impossible.
func (p *planner) compare() {
	only := map[string][]Snapshot{}
	for _, s := range p.receiver.Snapshots {
		if _, known := p.here[s.ID]; !known && !s.Deleted {
			only[s.Tree] = append(only[s.Tree], s)
		}
	}
	diverged := map[string]bool{}
	for _, s := range p.receiver.Snapshots {
		if diverged[s.Tree] || len(only[s.Tree]) == 0 {
			continue
		}
		diverged[s.Tree] = true
		conflict := &Divergence{Tree: p.names[s.Tree], Common: p.common(only[s.Tree][0]), Oldest: only[s.Tree][0].Number}
		for _, s := range only[s.Tree] {
			conflict.Only = append(conflict.Only, s.ID)
		}
		p.conflict(conflict)
	}
	trees := map[string]string{}
	for _, tree := range p.sender.Trees {
		trees[tree.Name] = tree.ID
	}
	for _, tree := range p.receiver.Trees {
		// A tree that the sender knows under another name is renamed.
		known := slices.ContainsFunc(p.sender.Trees, func(t Tree) bool { return t.ID == tree.ID })
		if id, taken := trees[tree.Name]; taken && id != tree.ID && !known {
			p.conflict(&NameTaken{tree.Name, id, tree.ID})
		}
	}
	for _, channel := range p.receiver.Channels {
		if _, known := p.here[channel.Snapshot]; !known && channel.Snapshot != "" {
			p.conflict(&ChannelDivergence{channel.Name, channel.Snapshot})
		}
	}
}

// common returns the nearest ancestor of a snapshot of the receiver that the
// sender knows.
func (p *planner) common(s Snapshot) store.SnapshotID {
	for range p.there {
		if _, known := p.here[s.Parent]; known || s.Parent == "" {
			return s.Parent
		}
		s = p.there[s.Parent]
	}
	return ""
}

func (p *planner) plan() {
	wanted := map[store.SnapshotID]bool{}
	for _, channel := range p.sender.Channels {
		if s, ok := p.here[channel.Snapshot]; !ok || s.Deleted {
			p.conflict(&BadTarget{channel.Name, channel.Snapshot})
		}
		wanted[channel.Snapshot] = true
	}
	for _, s := range p.sender.Snapshots {
		if !s.Deleted && (p.options.Wanted == nil || p.options.Wanted(s)) {
			wanted[s.ID] = true
		}
	}
	for _, s := range p.sender.Snapshots {
		p.visit(s, wanted)
	}
	p.moves()
	for _, s := range p.receiver.Snapshots {
		if known := p.here[s.ID]; known.Deleted && !s.Deleted {
			p.result.Gone = append(p.result.Gone, s.ID)
		}
	}
}

// held tells whether the receiver has a snapshot when the steps so far are
// done, and whether it is one to build on.
func (p *planner) held(id store.SnapshotID) (held, base bool) {
	if p.sent[id] {
		return true, !p.options.Whole
	}
	s, ok := p.there[id]
	held = ok && !s.Deleted && !s.Lost
	return held, held && !s.NoBase && !p.options.Whole
}

// visit plans the sending of a snapshot after that of its ancestors. The stack
// is as deep as a lineage is long: it is a list and not the program's.
func (p *planner) visit(s Snapshot, wanted map[store.SnapshotID]bool) {
	var lineage []Snapshot
	for p.state[s.ID] == 0 {
		p.state[s.ID] = 1
		lineage = append(lineage, s)
		parent, ok := p.here[s.Parent]
		if s.Parent == "" || !ok {
			break
		}
		if p.state[parent.ID] == 1 {
			p.conflict(&BadLineage{parent.ID})
			return
		}
		s = parent
	}
	for _, s := range slices.Backward(lineage) {
		p.state[s.ID] = 2
		if held, _ := p.held(s.ID); held || s.Deleted || !wanted[s.ID] {
			continue
		}
		if s.Lost {
			p.result.Lost = append(p.result.Lost, s.ID)
			continue
		}
		p.result.Steps = append(p.result.Steps, Send{s.ID, p.base(s)})
		p.sent[s.ID] = true
	}
}

// base returns the nearest ancestor that both sides have.
func (p *planner) base(s Snapshot) store.SnapshotID {
	for range p.here {
		ancestor, ok := p.here[s.Parent]
		if !ok || s.Parent == "" {
			return ""
		}
		if _, base := p.held(ancestor.ID); base && !ancestor.Deleted && !ancestor.Lost && !ancestor.NoBase {
			return ancestor.ID
		}
		s = ancestor
	}
	return ""
}

// moves plans what becomes of the receiver's channels.
func (p *planner) moves() {
	points := map[string]store.SnapshotID{}
	for _, channel := range p.receiver.Channels {
		points[channel.Name] = channel.Snapshot
	}
	var moves []Move
	for _, channel := range p.sender.Channels {
		if to, there := points[channel.Name]; (!there || to != channel.Snapshot) && !slices.Contains(p.result.Lost, channel.Snapshot) {
			moves = append(moves, Move{channel.Name, channel.Snapshot})
		}
		delete(points, channel.Name)
	}
	for name := range points {
		moves = append(moves, Move{name, ""})
	}
	slices.SortFunc(moves, func(a, b Move) int { return strings.Compare(a.Channel, b.Channel) })
	for _, move := range moves {
		p.result.Steps = append(p.result.Steps, move)
	}
}
