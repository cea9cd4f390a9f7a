package protocol

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
)

// MaxReport is the number of bytes that a report may have.
const MaxReport = 64 << 10

const (
	maxUnits    = 500
	maxUnitName = 256
)

// Event says why an agent reports.
type Event string

// The events that an agent reports.
const (
	EventUp        Event = "up"        // the system has come up
	EventHeartbeat Event = "heartbeat" // it still runs
	// The outcome of an order. Only a server that gives orders is told.
	EventUpdated      Event = "updated"
	EventUpdateFailed Event = "update-failed"
)

var events = []Event{EventUp, EventHeartbeat, EventUpdated, EventUpdateFailed}

// Report is what an agent tells the server.
type Report struct {
	Protocol int   `json:"protocol"`
	Event    Event `json:"event"`
	// FailedUnits names the systemd units that have failed, at most 500.
	FailedUnits []string `json:"failed_units"`
	// UptimeSeconds is the time since the kernel started.
	UptimeSeconds float64 `json:"uptime_seconds"`
	// Kernel is the release of the running kernel, as of uname(2).
	Kernel string `json:"kernel"`
	// Address is the IP address that the node has on the card it booted with.
	Address string `json:"address"`
	// Outcome goes with EventUpdated and EventUpdateFailed.
	Outcome *Outcome `json:"outcome,omitempty"`
}

// Reply is what the server answers to a report.
type Reply struct {
	Protocol int `json:"protocol"`
	// HeartbeatSeconds is the time until the next heartbeat.
	HeartbeatSeconds int `json:"heartbeat_seconds"`
}

// Validate checks the form of r. The error wraps ErrMalformed, or ErrTooNew.
func (r Report) Validate() error {
	switch {
	case r.Protocol > Version:
		return fmt.Errorf("report: %w", ErrTooNew)
	case r.Protocol < 1:
		return fmt.Errorf("report: %w: protocol %d", ErrMalformed, r.Protocol)
	case !slices.Contains(events, r.Event):
		return fmt.Errorf("report: %w: event %.40q", ErrMalformed, r.Event)
	case !(r.UptimeSeconds >= 0 && r.UptimeSeconds < 1e10): // NaN fails too
		return fmt.Errorf("report: %w: uptime_seconds is %v", ErrMalformed, r.UptimeSeconds)
	case len(r.Kernel) > 128 || hasControl(r.Kernel):
		return fmt.Errorf("report: %w: kernel %.40q", ErrMalformed, r.Kernel)
	case len(r.FailedUnits) > maxUnits:
		return fmt.Errorf("report: %w: %d failed units", ErrMalformed, len(r.FailedUnits))
	}
	if withOutcome := r.Event == EventUpdated || r.Event == EventUpdateFailed; withOutcome != (r.Outcome != nil) {
		return fmt.Errorf("report: %w: event %s, and an outcome of an order: %v", ErrMalformed, r.Event, r.Outcome != nil)
	}
	if r.Outcome != nil {
		if err := r.Outcome.validate(r.Event); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	for _, u := range r.FailedUnits {
		if u == "" || len(u) > maxUnitName || hasControl(u) {
			return fmt.Errorf("report: %w: failed unit %.40q", ErrMalformed, u)
		}
	}
	if r.Address != "" {
		if _, err := netip.ParseAddr(r.Address); err != nil {
			return fmt.Errorf("report: %w: address %.40q", ErrMalformed, r.Address)
		}
	}
	return nil
}

// DecodeReport reads a report. Unknown keys are refused. The error wraps
// ErrTooLarge, ErrTooNew or ErrMalformed, or is the reader's own.
func DecodeReport(from io.Reader) (Report, error) {
	data, err := readLimited("report", from)
	if err != nil {
		return Report{}, err
	}
	if err := checkVersion("report", data); err != nil {
		return Report{}, err
	}
	var r Report
	if err := decodeStrict(data, &r); err != nil {
		return Report{}, fmt.Errorf("report: %w: %v", ErrMalformed, err)
	}
	if err := r.Validate(); err != nil {
		return Report{}, err
	}
	return r, nil
}

// DecodeReply reads the answer to a report. Unknown keys are let pass: the
// server may be newer than the agent. The error wraps ErrTooLarge or
// ErrMalformed, or is the reader's own.
func DecodeReply(from io.Reader) (Reply, error) {
	data, err := readLimited("reply", from)
	if err != nil {
		return Reply{}, err
	}
	var r Reply
	if err := json.Unmarshal(data, &r); err != nil {
		return Reply{}, fmt.Errorf("reply: %w: %v", ErrMalformed, err)
	}
	if r.Protocol < 1 || r.HeartbeatSeconds < 1 {
		return Reply{}, fmt.Errorf("reply: %w: protocol %d, heartbeat_seconds %d", ErrMalformed, r.Protocol, r.HeartbeatSeconds)
	}
	return r, nil
}

func readLimited(what string, from io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(from, MaxReport+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if len(data) > MaxReport {
		return nil, fmt.Errorf("%s: %w: over %d bytes", what, ErrTooLarge, MaxReport)
	}
	return data, nil
}
