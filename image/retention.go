package image

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"sidus/image/store"
)

// Retention are the rules that say which snapshots stay although nobody needs
// them. What is needed stays in any case, and so does the newest complete
// snapshot of each tree.
type Retention struct {
	Keep       int           // the newest N complete snapshots of each tree stay
	KeepWithin time.Duration // complete snapshots that are younger stay; 0: age does not count
	Named      bool          // snapshots with a name of their own may go like others; else they stay
}

// RetentionInput is what a plan is made from.
type RetentionInput struct {
	Now       time.Time
	Rules     Retention
	Snapshots []Snapshot                            // all that are there, of all trees
	Needs     map[store.SnapshotID][]Need           // who needs them
	Parents   map[store.SnapshotID]store.SnapshotID // of all snapshots, deleted ones too
	Lost      map[store.SnapshotID]bool             // the store has lost them: they stay, and are no reason for others to go
	Eligible  func(Snapshot) bool                   // what may go at all; nil: everything
}

// Verdict is what is to become of one snapshot, and why.
type Verdict struct {
	Snapshot Snapshot `json:"snapshot"`
	Goes     bool     `json:"goes"`
	Reasons  []string `json:"reasons"` // sentences for people; at least one
}

// PlanRetention says of each snapshot that is eligible whether it goes, and
// why: by tree, the oldest first. It looks at nothing but its input.
func PlanRetention(in RetentionInput) []Verdict {
	trees := map[string][]Snapshot{} // the newest first
	for _, s := range in.Snapshots {
		if !in.Lost[s.ID] {
			trees[s.TreeID] = append(trees[s.TreeID], s)
		}
	}
	rank := map[store.SnapshotID]int{}       // 1: the newest complete one of its tree
	cache := map[store.SnapshotID]Snapshot{} // what a step is the cache of
	for _, list := range trees {
		slices.SortFunc(list, func(a, b Snapshot) int { return cmp.Compare(b.Number, a.Number) })
		n := 0
		for _, s := range list {
			if s.Complete {
				n++
				rank[s.ID] = n
			}
			// A build that has not ended, or failed, goes on from its steps.
			if s.Complete && n == 1 || s.ID == list[0].ID {
				markCache(cache, in.Parents, s)
			}
		}
	}
	var plan []Verdict
	for _, s := range in.Snapshots {
		if in.Eligible != nil && !in.Eligible(s) {
			continue
		}
		v := Verdict{Snapshot: s}
		if v.Reasons = stays(in, s, rank[s.ID], cache); len(v.Reasons) == 0 {
			v.Goes = true
			v.Reasons = []string{goes(in, s, rank[s.ID])}
		}
		plan = append(plan, v)
	}
	slices.SortFunc(plan, func(a, b Verdict) int {
		return cmp.Or(cmp.Compare(a.Snapshot.Tree, b.Snapshot.Tree), cmp.Compare(a.Snapshot.Number, b.Snapshot.Number))
	})
	return plan
}

// markCache notes for s and all that it was built from that they are the cache
// of s.
func markCache(cache map[store.SnapshotID]Snapshot, parents map[store.SnapshotID]store.SnapshotID, s Snapshot) {
	seen := map[store.SnapshotID]bool{}
	for id := s.ID; id != "" && !seen[id]; id = parents[id] {
		seen[id] = true
		if old, marked := cache[id]; !marked || id == s.ID || old.Created.Before(s.Created) {
			cache[id] = s
		}
	}
}

// stays says why a snapshot stays: nothing if it goes.
func stays(in RetentionInput, s Snapshot, rank int, cache map[store.SnapshotID]Snapshot) (reasons []string) {
	if in.Lost[s.ID] {
		reasons = append(reasons, "the store has lost it; `sidus check` names the way out")
	}
	for _, need := range in.Needs[s.ID] {
		reasons = append(reasons, need.Text)
	}
	if s.Name != "" && !in.Rules.Named {
		reasons = append(reasons, fmt.Sprintf("it has a name, %s", s.Name))
	}
	if !s.Complete {
		if of, ok := cache[s.ID]; ok && of.ID == s.ID {
			reasons = append(reasons, "it is the newest step of a build that has not ended, which goes on from it")
		} else if ok {
			reasons = append(reasons, fmt.Sprintf("it is a step of %s, the cache of the next build", of.Ref()))
		}
		return reasons
	}
	switch {
	case rank == 0: // it is lost
	case rank == 1:
		reasons = append(reasons, "it is the newest complete snapshot of "+s.Tree)
	case rank <= in.Rules.Keep:
		reasons = append(reasons, fmt.Sprintf("it is one of the newest %d complete snapshots of %s", in.Rules.Keep, s.Tree))
	}
	if in.Rules.KeepWithin > 0 && in.Now.Sub(s.Created) <= in.Rules.KeepWithin {
		reasons = append(reasons, fmt.Sprintf("it is younger than %s", Days(in.Rules.KeepWithin)))
	}
	return reasons
}

// goes says why a snapshot goes.
func goes(in RetentionInput, s Snapshot, rank int) string {
	if !s.Complete {
		return "it is a step of an older build of " + s.Tree + ", and no build uses it any more"
	}
	reason := fmt.Sprintf("%d complete snapshots of %s are newer", rank-1, s.Tree)
	if rank == 2 {
		reason = "a complete snapshot of " + s.Tree + " is newer"
	}
	if in.Rules.KeepWithin > 0 {
		reason += fmt.Sprintf(", and it is older than %s", Days(in.Rules.KeepWithin))
	}
	return reason
}

// Days is a duration as people say it: in days, if it is whole days.
func Days(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d == day:
		return "1 day"
	case d != 0 && d%day == 0:
		return fmt.Sprintf("%d days", d/day)
	}
	return d.String()
}
