package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"sidus/boot/protocol"
	"sidus/image/tool"
)

// A Reporter reports to the server for as long as it runs.
type Reporter struct {
	// Send sends one report: protocol.Client.Report.
	Send func(context.Context, protocol.Report) (protocol.Reply, error)
	// Address is the node's address on the card it booted with.
	Address string
	// Done is a file that is made when the server knows that the node is up: an
	// agent that is started anew does not say so again. "" means none.
	Done string
	// FailedUnits names the systemd units that have failed; nil means to ask
	// systemctl.
	FailedUnits func(context.Context) ([]string, error)
	// Log is told of trouble; nil means logrus' standard logger.
	Log logrus.FieldLogger
	// Ready is called once, when the Reporter is at work; nil is fine.
	Ready func()
}

const (
	firstRetry = 2 * time.Second
	lastRetry  = 5 * time.Minute
	// What a server may ask for.
	shortestHeartbeat = 10 * time.Second
	longestHeartbeat  = 24 * time.Hour
	// Where the server cannot or will not say.
	heartbeat = time.Hour
)

// Run reports that the node is up, and then sends a heartbeat each time that
// the server asked for, until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	log := r.Log
	if log == nil {
		log = logrus.StandardLogger()
	}
	if r.Ready != nil {
		r.Ready()
	}
	event := protocol.EventUp
	if _, err := os.Stat(r.Done); r.Done != "" && err == nil {
		event = protocol.EventHeartbeat
	}
	retry := firstRetry
	said := false
	for {
		reply, err := r.Send(ctx, r.report(ctx, log, event))
		var wait time.Duration
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			if event == protocol.EventUp || said {
				log.WithField("event", string(event)).Info("the server knows that this node runs")
			}
			if event == protocol.EventUp && r.Done != "" {
				if err := os.WriteFile(r.Done, nil, 0o644); err != nil {
					log.WithError(err).Warn("this node may be reported as up once more")
				}
			}
			event, retry, said = protocol.EventHeartbeat, firstRetry, false
			wait = jitter(min(max(time.Duration(reply.HeartbeatSeconds)*time.Second, shortestHeartbeat), longestHeartbeat))
		case errors.Is(err, protocol.ErrUnknownSession), errors.Is(err, protocol.ErrTooNew), errors.Is(err, protocol.ErrMalformed):
			// Saying it again will not help; another server, or time, may.
			wait = jitter(heartbeat)
			log.WithError(err).WithField("next", wait.Round(time.Second).String()).Error("the server does not take this node's report")
		default:
			wait = jitter(retry)
			retry = min(2*retry, lastRetry)
			if !said {
				log.WithError(err).Warn("the server cannot be reached; trying again until it can")
			}
			said = true
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

func (r *Reporter) report(ctx context.Context, log logrus.FieldLogger, event protocol.Event) protocol.Report {
	report := protocol.Report{Event: event, Address: r.Address, FailedUnits: []string{}}
	if up, err := Uptime(); err == nil {
		report.UptimeSeconds = float64(up.Milliseconds()) / 1000
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		report.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	failed := r.FailedUnits
	if failed == nil {
		failed = FailedUnits
	}
	units, err := failed(ctx)
	if err != nil && ctx.Err() == nil {
		log.WithError(err).Warn("the failed units cannot be named")
	}
	report.FailedUnits = append(report.FailedUnits, units...)
	return report
}

// Outcome reports, once, what became of an order.
func (r *Reporter) Outcome(ctx context.Context, outcome protocol.Outcome) error {
	log := r.Log
	if log == nil {
		log = logrus.StandardLogger()
	}
	event := protocol.EventUpdated
	if outcome.Reason != "" {
		event = protocol.EventUpdateFailed
	}
	report := r.report(ctx, log, event)
	report.Outcome = &outcome
	_, err := r.Send(ctx, report)
	return err
}

// FailedUnits asks systemctl which units have failed.
func FailedUnits(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := tool.Output(ctx, tool.Options{}, "systemctl", "list-units", "--failed", "--plain", "--no-legend", "--full", "--no-pager")
	if err != nil {
		return nil, err
	}
	return parseUnits(string(out)), nil
}

// parseUnits takes the first word of each line.
func parseUnits(table string) []string {
	var units []string
	for line := range strings.Lines(table) {
		if words := strings.Fields(line); len(words) > 0 {
			units = append(units, words[0])
		}
	}
	return units
}

// jitter shortens d by up to a fifth: machines that booted together need not
// report together.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/5+1))
}
