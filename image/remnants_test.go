package image

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"sidus/image/catalog"
	"sidus/image/store"
	"sidus/image/store/memstore"
)

// collector is a store in which something is left.
type collector struct {
	*memstore.Store
	left      []store.Remnant
	collected int
	fails     error
}

func (c *collector) Remnants(context.Context) ([]store.Remnant, error) { return c.left, nil }

func (c *collector) Collect(context.Context) error {
	if c.fails != nil {
		return c.fails
	}
	c.collected++
	var stay []store.Remnant
	for _, r := range c.left {
		if r.Reason != "" {
			stay = append(stay, r)
		}
	}
	c.left = stay
	return nil
}

// TestRemnants: what is left in the store is told by check and by the plan of
// gc, and what nothing needs is removed by both.
func TestRemnants(t *testing.T) {
	b := newBench(t)
	c := &collector{Store: b.store}
	b.Manager.store = c
	ctx := t.Context()
	_, list := b.tree("debian", 1)
	waits := store.Remnant{What: "the destroyed volume a", Reason: "others made the snapshot a@daily", Bytes: 2048}
	idle := store.Remnant{What: "the hold sidus:send-x"}
	leave := func() { c.left = []store.Remnant{waits, idle} }
	leave()
	check := func(want ...string) []Finding {
		t.Helper()
		findings, err := b.Check(ctx)
		b.must(err)
		if len(findings) != len(want)/2 {
			t.Fatalf("check finds %+v", findings)
		}
		for i, f := range findings {
			if f.Kind != want[2*i] || !strings.Contains(f.Text, want[2*i+1]) {
				t.Errorf("check finds %s: %s", f.Kind, f.Text)
			}
		}
		return findings
	}
	const told = "the destroyed volume a still takes 2.0 KiB: others made the snapshot a@daily"
	findings := check(FindingRetired, told, FindingLeftover, idle.What)
	c.fails = errors.New("the pool is read-only")
	if _, err := b.Repair(ctx, findings); !errors.Is(err, c.fails) {
		t.Errorf("a repair that fails: %v", err)
	}
	c.fails = nil
	if done, err := b.Repair(ctx, findings); err != nil || len(done) != 1 || !strings.Contains(done[0], idle.What) {
		t.Errorf("repaired: %q, %v", done, err)
	}
	check(FindingRetired, told)

	keep := GCOptions{Rules: Retention{Keep: 9}, Logs: -1}
	if plan := b.plan(keep); !plan.Empty() || len(plan.Remnants) != 1 {
		t.Errorf("what has to stay is a plan: %+v", plan)
	}
	leave()
	if plan := b.plan(keep); plan.Empty() || len(plan.Remnants) != 2 {
		t.Errorf("the plan is %+v", plan)
	}
	report := b.collect(keep)
	if len(report.Remnants) != 1 || report.Remnants[0] != waits || len(c.left) != 1 {
		t.Errorf("%+v, left: %v", report, c.left)
	}

	// A process that is alive may be about to remove it itself.
	leave()
	var intent int64
	b.must(b.catalog.Update(ctx, func(tx *sql.Tx) (err error) {
		intent, err = catalog.Begin(tx, catalog.Intent{Action: "gc", Snapshots: []store.SnapshotID{list[0].ID}, Actor: b.actor})
		return err
	}))
	check(FindingRunning, "gc", FindingRetired, told)
	b.endIntent(ctx, intent)
	check(FindingRetired, told, FindingLeftover, idle.What)
}
