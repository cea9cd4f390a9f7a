package image

import (
	"context"
	"fmt"

	"github.com/dustin/go-humanize"

	"sidus/image/store"
)

// remnants lists what is left in the store of what was destroyed there, and of
// processes that were killed; nothing if the store has no such thing.
func (m *Manager) remnants(ctx context.Context) (list []store.Remnant, err error) {
	if collector, ok := m.store.(store.Collector); ok {
		list, err = collector.Remnants(ctx)
	}
	if list == nil {
		list = []store.Remnant{} // as JSON has it
	}
	return list, err
}

// collectRemnants removes those that nothing needs any more.
func (m *Manager) collectRemnants(ctx context.Context) error {
	collector, ok := m.store.(store.Collector)
	if !ok {
		return nil
	}
	return collector.Collect(ctx)
}

// checkRemnants tells what is left. What a process that changes the store now
// is about to remove is no finding.
func (m *Manager) checkRemnants(ctx context.Context, known knowledge) ([]Finding, error) {
	remnants, err := m.remnants(ctx)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, r := range remnants {
		if r.Reason != "" {
			findings = append(findings, Finding{Kind: FindingRetired, Text: fmt.Sprintf("%s still takes %s: %s", r.What, humanize.IBytes(uint64(r.Bytes)), r.Reason)})
			continue
		}
		if known.anyBusy() {
			continue
		}
		findings = append(findings, Finding{
			Kind:   FindingLeftover,
			Text:   fmt.Sprintf("nothing needs %s (%s)", r.What, humanize.IBytes(uint64(r.Bytes))),
			Repair: "removed " + r.What,
			repair: m.collectRemnants, // all at once: they depend on each other
		})
	}
	return findings, nil
}

// anyBusy tells whether a live process changes the store.
func (k knowledge) anyBusy() bool {
	for _, busy := range k.busy {
		if busy {
			return true
		}
	}
	return false
}
