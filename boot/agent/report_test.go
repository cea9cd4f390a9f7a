package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"

	"sidus/boot/protocol"
)

// sent is one report that a Reporter sent.
type sent struct {
	at    time.Duration
	event protocol.Event
}

func report(t *testing.T, done string, d time.Duration, answer func(n int) (protocol.Reply, error)) []sent {
	t.Helper()
	log, _ := logtest.NewNullLogger()
	var reports []sent
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		r := Reporter{
			Address:     "10.0.0.7",
			Done:        done,
			Log:         log,
			FailedUnits: func(context.Context) ([]string, error) { return []string{"x.service"}, nil },
			Send: func(_ context.Context, r protocol.Report) (protocol.Reply, error) {
				r.Protocol = protocol.Version
				if err := r.Validate(); err != nil {
					t.Error(err)
				}
				if r.Address != "10.0.0.7" || r.Kernel == "" || r.UptimeSeconds == 0 || !slices.Equal(r.FailedUnits, []string{"x.service"}) {
					t.Errorf("report: %+v", r)
				}
				reports = append(reports, sent{time.Since(start), r.Event})
				return answer(len(reports) - 1)
			},
		}
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	return reports
}

func TestReporter(t *testing.T) {
	done := filepath.Join(t.TempDir(), "done")
	reports := report(t, done, 10*time.Hour, func(int) (protocol.Reply, error) {
		return protocol.Reply{Protocol: 1, HeartbeatSeconds: 3600}, nil
	})
	if len(reports) < 10 || len(reports) > 13 || reports[0] != (sent{0, protocol.EventUp}) {
		t.Fatalf("in ten hours: %v", reports)
	}
	for i, r := range reports[1:] {
		if gap := r.at - reports[i].at; r.event != protocol.EventHeartbeat || gap < 48*time.Minute || gap > time.Hour {
			t.Errorf("report %d: %s after %v", i+1, r.event, gap)
		}
	}
	// An agent that was started anew.
	if again := report(t, done, time.Minute, func(int) (protocol.Reply, error) { return protocol.Reply{}, errors.New("away") }); again[0].event != protocol.EventHeartbeat {
		t.Errorf("the second agent says %v", again)
	}
}

func TestReporterRetries(t *testing.T) {
	reports := report(t, "", time.Hour, func(n int) (protocol.Reply, error) {
		if n < 12 {
			return protocol.Reply{}, errors.New("connection refused")
		}
		return protocol.Reply{Protocol: 1, HeartbeatSeconds: 600}, nil
	})
	for i, r := range reports[:13] {
		if r.event != protocol.EventUp {
			t.Errorf("report %d says %s", i, r.event)
		}
		if i > 0 && r.at-reports[i-1].at > 5*time.Minute {
			t.Errorf("report %d comes after %v", i, r.at-reports[i-1].at)
		}
	}
	if reports[4].at > time.Minute {
		t.Errorf("the first attempts take until %v", reports[4].at)
	}
	if last := reports[len(reports)-1]; last.event != protocol.EventHeartbeat {
		t.Errorf("the last report says %s", last.event)
	}
}

func TestReporterIsRefused(t *testing.T) {
	for _, refusal := range []error{protocol.ErrUnknownSession, protocol.ErrTooNew, protocol.ErrMalformed} {
		reports := report(t, "", 3*time.Hour, func(int) (protocol.Reply, error) {
			return protocol.Reply{}, fmt.Errorf("report: %w", refusal)
		})
		if len(reports) < 3 || len(reports) > 5 {
			t.Errorf("%v: %d reports in three hours", refusal, len(reports))
		}
	}
	// A server's word is kept within limits.
	if reports := report(t, "", time.Minute, func(int) (protocol.Reply, error) {
		return protocol.Reply{Protocol: 1, HeartbeatSeconds: 1}, nil
	}); len(reports) > 9 {
		t.Errorf("a server that wants a heartbeat each second gets %d in a minute", len(reports))
	}
}

func TestParseUnits(t *testing.T) {
	table := "a.service loaded failed failed A thing\nb@\\x2d.mount loaded failed failed /b\n\n"
	if units := parseUnits(table); !slices.Equal(units, []string{"a.service", `b@\x2d.mount`}) {
		t.Errorf("units: %q", units)
	}
}

func TestFacts(t *testing.T) {
	const good = "PROTOCOL=1\nDEVICE=ens3\nMAC=52:54:00:00:01:02\nADDRESS=10.77.0.114\nLEASE_SECONDS=120\nLEASE_UPTIME=17\nGATEWAY=\nNEW=x\n"
	f, err := parseFacts(strings.NewReader(good))
	if err != nil || f.Device != "ens3" || f.Address.String() != "10.77.0.114" || f.Lease != 2*time.Minute || f.LeaseUptime != 17*time.Second {
		t.Errorf("facts: %+v, %v", f, err)
	}
	for old, bad := range map[string]string{
		"DEVICE=ens3": "DEVICE=", "MAC=52": "MAC=", "10.77.0.114": "fe80::1", "=120": "=-1", "=17": "=x", "PROTOCOL=1": "PROTOCOL",
	} {
		if f, err := parseFacts(strings.NewReader(strings.Replace(good, old, bad, 1))); err == nil {
			t.Errorf("%s is taken: %+v", bad, f)
		}
	}
}

func FuzzFacts(f *testing.F) {
	f.Add("DEVICE=ens3\nMAC=52:54:00:00:01:02\nADDRESS=10.77.0.114\nLEASE_SECONDS=120\nLEASE_UPTIME=17\n")
	f.Fuzz(func(t *testing.T, text string) { _, _ = parseFacts(strings.NewReader(text)) })
}
