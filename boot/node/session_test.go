package node

import (
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
	"sidus/image/store"
)

func (s *site) step(step protocol.Step, session protocol.SessionID) {
	s.t.Helper()
	if err := s.Step(s.t.Context(), pxe.Progress{Step: step, Session: session}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) report(session protocol.SessionID, event protocol.Event, failed ...string) error {
	_, err := s.Report(s.t.Context(), session, client1, protocol.Report{
		Protocol: 1, Event: event, FailedUnits: failed, Kernel: "6.1.0-40-amd64", Address: client1.String(),
	})
	return err
}

// sessions returns the sessions of mac1, the newest first.
func (s *site) sessions() []Session {
	s.t.Helper()
	list, err := s.Sessions(s.t.Context(), mac1.String(), 0)
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// serveFor lets d pass while the server serves, as if Tick had been called
// all the time.
func (s *site) serveFor(d time.Duration) {
	s.t.Helper()
	s.clock.Add(d)
	s.sql(`UPDATE meta SET value = value + ? WHERE key = 'served_seconds'`, int64((d-maxTick)/time.Second))
	s.sql(`UPDATE meta SET value = value + ? WHERE key = 'served_at'`, int64((d-maxTick)/time.Millisecond))
	if err := s.Tick(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func TestBootChooses(t *testing.T) {
	s := newSite(t)
	s.network("strict", NetworkChange{Subnet: ptr(netip.MustParsePrefix("10.1.0.0/24")), Channel: ptr("")})
	s.promote("gpu", id(2))
	strict := netip.MustParseAddr("10.1.0.9")
	for i, c := range []struct {
		name   string
		node   *NodeChange
		client netip.Addr
		want   store.SnapshotID
		reason Reason
		text   string
	}{
		{"unknown machine", nil, client1, id(1), "", ""},
		{"unknown machine, network boots nothing", nil, strict, "", ReasonUnknown, "network strict boots nothing for unknown machines"},
		{"not served", nil, netip.MustParseAddr("192.168.7.7"), "", ReasonNotServed, "no network that is served"},
		{"no address", nil, netip.Addr{}, "", ReasonNotServed, "no network that is served"},
		{"known, no channel", &NodeChange{}, client1, id(1), "", ""},
		{"known, no channel at all", &NodeChange{}, strict, "", ReasonNoChannel, "neither channel nor pin"},
		{"channel", &NodeChange{Channel: ptr("gpu")}, client1, id(2), "", ""},
		{"channel in a strict network", &NodeChange{Channel: ptr("gpu")}, strict, id(2), "", ""},
		{"missing channel", &NodeChange{Channel: ptr("nope")}, client1, "", ReasonChannelMissing, "channel nope does not exist"},
		{"pin", &NodeChange{Pin: ptr(id(3))}, client1, id(3), "", ""},
		{"pin set before channel", &NodeChange{Channel: ptr("")}, client1, id(1), "", ""},
		{"address in IPv6 form", nil, netip.AddrFrom16(client1.As16()), id(1), "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			mac := MAC{0x52, 0x54, 0, 1, 0, byte(i)}
			if c.node != nil {
				if _, err := s.AddNode(t.Context(), by, mac, *c.node); err != nil {
					t.Fatal(err)
				}
			}
			b, err := s.Boot(t.Context(), mac, c.client, "ipxe")
			if c.reason == "" {
				if err != nil || b.Session.Snapshot.ID != c.want {
					t.Fatalf("Boot = %s, %v; want %s", b.Session.Snapshot, err, c.want)
				}
				return
			}
			nothing, ok := errors.AsType[*NothingError](err)
			if !ok || nothing.Choice.Reason != c.reason || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("Boot: %v; want reason %s with %q", err, c.reason, c.text)
			}
		})
	}
	if _, err := s.Boot(t.Context(), MAC{}, client1, "ipxe"); !errors.Is(err, ErrInvalid) {
		t.Errorf("Boot of a card that cannot be: %v", err)
	}
	s.sql(`UPDATE snapshot SET deleted = 1 WHERE id = ?`, string(id(2)))
	_, err := s.Boot(t.Context(), MAC{2, 2}, client1, "ipxe")
	if err != nil {
		t.Fatal(err)
	}
	s.clock.Add(time.Hour)
	_, err = s.Boot(t.Context(), MAC{0x52, 0x54, 0, 1, 0, 6}, client1, "ipxe")
	if nothing, ok := errors.AsType[*NothingError](err); !ok || nothing.Choice.Reason != ReasonSnapshotGone {
		t.Errorf("Boot of a deleted snapshot: %v", err)
	}
}

func TestBootTellsAll(t *testing.T) {
	s := newSite(t)
	if _, err := s.SetNetwork(t.Context(), by, "lab", NetworkChange{Args: ptr("console=ttyS0"), NFSOptions: ptr([]string{"nconnect=4"})}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddNode(t.Context(), by, mac1, NodeChange{Name: ptr("N1"), Args: ptr("quiet")}); err != nil {
		t.Fatal(err)
	}
	b := s.boot(mac1, client1)
	if b.Args != "console=ttyS0 quiet" || b.Node.Name != "n1" || b.Session.Snapshot.String() != "debian@1" || b.Again ||
		b.MachineID != MachineID([32]byte{1, 2, 3}, mac1) || len(b.Network.NFSOptions) != 1 || b.Session.Channel != "default" {
		t.Errorf("Boot = %+v", b)
	}
}

// The same node asking again within two minutes gets the same session, with
// the same snapshot, whatever is promoted and whether the server restarts.
func TestAgain(t *testing.T) {
	s := newSite(t)
	first := s.boot(mac1, client1)
	for i, step := range []protocol.Step{protocol.StepConfig, protocol.StepKernel, protocol.StepInitrd} {
		s.promote("default", id(2+i%2))
		s.step(step, first.Session.ID)
		s.clock.Add(30 * time.Second)
		if i == 1 {
			s.restart()
		}
		b := s.boot(mac1, client2) // DHCP may have given another address
		if !b.Again || b.Session.ID != first.Session.ID || b.Session.Snapshot.ID != id(1) || b.Session.Step != step {
			t.Fatalf("after %s: %+v; want session %s", step, b, first.Session.ID)
		}
	}
	s.clock.Add(29 * time.Second) // 1:59 after the opening
	if b := s.boot(mac1, client1); b.Session.ID != first.Session.ID {
		t.Fatal("another session within two minutes")
	}
	s.clock.Add(time.Second)
	second := s.boot(mac1, client1)
	if second.Again || second.Session.ID == first.Session.ID || second.Session.Snapshot.ID != id(2) {
		t.Fatalf("after two minutes: %+v", second)
	}
	list := s.sessions()
	if len(list) != 2 || !list[0].Live() || list[1].Live() || list[1].EndReason != endBooted {
		t.Fatalf("sessions: %+v", list)
	}
}

// A node that had its root and asks again was booted again, however fast.
func TestFastReboot(t *testing.T) {
	s := newSite(t)
	first := s.boot(mac1, client1)
	s.step(protocol.StepRoot, first.Session.ID)
	s.promote("default", id(2))
	s.clock.Add(10 * time.Second)
	second := s.boot(mac1, client1)
	if second.Again || second.Session.Snapshot.ID != id(2) {
		t.Fatalf("a reboot 10 s after the root was mounted: %+v", second)
	}
}

func TestClockSetBack(t *testing.T) {
	s := newSite(t)
	first := s.boot(mac1, client1)
	s.clock.Add(-time.Minute)
	if b := s.boot(mac1, client1); b.Session.ID != first.Session.ID {
		t.Error("a clock that was set back a minute made another session")
	}
	s.clock.Add(-24 * time.Hour)
	if b := s.boot(mac1, client1); b.Session.ID == first.Session.ID {
		t.Error("a session of a day to come was used again")
	}
}

// Random walks against the rule told in a few lines.
func TestAgainRandomly(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newSite(t)
			random := rand.New(rand.NewPCG(seed, 1))
			type state struct {
				id       protocol.SessionID
				opened   time.Time
				snapshot store.SnapshotID
				root     bool
			}
			macs, now := []MAC{mac1, mac2}, map[MAC]*state{}
			head := id(1)
			for range 150 {
				mac := macs[random.IntN(2)]
				switch random.IntN(6) {
				case 0:
					head = id(1 + random.IntN(3))
					s.promote("default", head)
				case 1:
					s.clock.Add(time.Duration(random.IntN(100)) * time.Second)
				case 2:
					if random.IntN(4) == 0 {
						s.restart()
					}
				case 3:
					if m := now[mac]; m != nil {
						step := protocol.Steps()[1+random.IntN(5)]
						s.step(step, m.id)
						m.root = m.root || !step.Before(protocol.StepRoot)
					}
				default:
					b := s.boot(mac, client1)
					m := now[mac]
					again := m != nil && s.clock.Now().Sub(m.opened) < 2*time.Minute && !m.root
					if b.Again != again {
						t.Fatalf("again is %v, want %v", b.Again, again)
					}
					if again && (b.Session.ID != m.id || b.Session.Snapshot.ID != m.snapshot) {
						t.Fatalf("session %s of %s, want %s of %s", b.Session.ID, b.Session.Snapshot.ID, m.id, m.snapshot)
					}
					if !again {
						if b.Session.Snapshot.ID != head {
							t.Fatalf("a new session boots %s, the channel points to %s", b.Session.Snapshot.ID, head)
						}
						now[mac] = &state{b.Session.ID, s.clock.Now(), head, false}
					}
				}
			}
			live := map[MAC]int{}
			for _, mac := range macs {
				list, err := s.Sessions(t.Context(), mac.String(), 0)
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					t.Fatal(err)
				}
				for _, session := range list {
					if session.Live() {
						live[mac]++
					}
				}
				if live[mac] > 1 {
					t.Errorf("%s has %d live sessions", mac, live[mac])
				}
			}
		})
	}
}

func TestStepsGoForward(t *testing.T) {
	s := newSite(t)
	if _, err := s.AddNode(t.Context(), by, mac1, NodeChange{Name: ptr("n1")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Step(t.Context(), pxe.Progress{Step: protocol.StepDHCP, MAC: mac1.HardwareAddr(), Client: client1}); err != nil {
		t.Fatal(err)
	}
	b := s.boot(mac1, client1)
	ctx := t.Context()
	progress := func(step protocol.Step, p pxe.Progress) {
		t.Helper()
		p.Step = step
		if err := s.Step(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	bySession := pxe.Progress{Session: b.Session.ID, Snapshot: id(1), Client: client1}
	progress(protocol.StepKernel, bySession)
	progress(protocol.StepKernel, bySession)
	progress(protocol.StepInitrd, pxe.Progress{Client: client1, Snapshot: id(1)}) // TFTP knows no session
	progress(protocol.StepKernel, bySession)
	progress(protocol.StepRoot, pxe.Progress{Client: client2, Snapshot: id(1)})                  // somebody else
	progress(protocol.StepRoot, pxe.Progress{Client: client1, Snapshot: id(2)})                  // another snapshot
	progress(protocol.StepRoot, pxe.Progress{Session: b.Session.ID, Snapshot: id(2)})            // not this session's
	progress(protocol.StepRoot, pxe.Progress{Session: protocol.NewSessionID(), Client: client1}) // no such session
	if got := s.sessions()[0].Step; got != protocol.StepInitrd {
		t.Fatalf("step %s, want initrd", got)
	}
	progress(protocol.StepRoot, pxe.Progress{Client: client1, Snapshot: id(1)})
	if err := s.report(b.Session.ID, protocol.EventUp, "x.service"); err != nil {
		t.Fatal(err)
	}
	progress(protocol.StepRoot, bySession)
	session := s.sessions()[0]
	if session.Step != protocol.StepUp || session.UpAt.IsZero() || session.FailedUnits[0] != "x.service" || session.Kernel != "6.1.0-40-amd64" {
		t.Errorf("session: %+v", session)
	}
	var lines []string
	for _, e := range s.log.AllEntries() {
		if !strings.HasPrefix(e.Message, "boot: ") {
			continue
		}
		lines = append(lines, strings.TrimPrefix(e.Message, "boot: "))
		if e.Data["mac"] != mac1.String() || e.Data["node"] != "n1" || e.Data["address"] != client1.String() {
			t.Errorf("%s: %v", e.Message, e.Data)
		}
		if e.Message != "boot: dhcp" && (e.Data["snapshot"] != "debian@1" || e.Data["snapshot_id"] != string(id(1))[:8]) {
			t.Errorf("%s: %v", e.Message, e.Data)
		}
	}
	if got := strings.Join(lines, " "); got != "dhcp config kernel initrd root up" {
		t.Errorf("log lines: %s", got)
	}
}

func TestSilence(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	for range 2 {
		if err := s.Tick(ctx); err != nil {
			t.Fatal(err)
		}
		s.clock.Add(time.Minute)
	}
	b := s.boot(mac1, client1)
	s.step(protocol.StepRoot, b.Session.ID)
	s.serveFor(20 * 24 * time.Hour)

	// The server is down for two months: that does not count.
	s.restart()
	s.clock.Add(60 * 24 * time.Hour)
	if err := s.Tick(ctx); err != nil {
		t.Fatal(err)
	}
	s.serveFor(9 * 24 * time.Hour)
	if !s.sessions()[0].Live() {
		t.Fatal("ended after 29 served days")
	}
	sign := []Sign{{Client: client1, Snapshot: id(1), At: s.clock.Now()}, {Client: client2, Snapshot: id(1), At: s.clock.Now()}}
	if err := s.Heard(ctx, sign); err != nil {
		t.Fatal(err)
	}
	s.serveFor(29 * 24 * time.Hour)
	if !s.sessions()[0].Live() {
		t.Fatal("ended 29 days after an NFS call")
	}
	if err := s.report(b.Session.ID, protocol.EventHeartbeat); err != nil {
		t.Fatal(err)
	}
	s.serveFor(30*24*time.Hour - maxTick)
	if !s.sessions()[0].Live() {
		t.Fatal("ended before 30 days after a heartbeat")
	}
	s.serveFor(maxTick)
	if got := s.sessions()[0]; got.Live() || got.EndReason != endSilent {
		t.Fatalf("after 30 silent days: %+v", got)
	}
	// It was only away from the wire.
	s.clock.Add(time.Hour)
	if err := s.report(b.Session.ID, protocol.EventHeartbeat); err != nil {
		t.Fatal(err)
	}
	if !s.sessions()[0].Live() {
		t.Error("not opened again")
	}
}

func TestServedClockOfTwoProcesses(t *testing.T) {
	s := newSite(t)
	other := New(s.cat, s.options(nil))
	for i := range 121 {
		if err := s.Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.clock.Add(30*time.Second + 333*time.Millisecond)
		if err := other.Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i < 120 {
			s.clock.Add(30 * time.Second)
		}
	}
	var seconds string

	if err := s.cat.View(t.Context(), func(tx *sql.Tx) error {
		return tx.QueryRow(`SELECT value FROM meta WHERE key = 'served_seconds'`).Scan(&seconds)
	}); err != nil {
		t.Fatal(err)
	}
	// 120 rounds of 60.333 s and a half, and no second of them twice.
	if seconds != "7270" && seconds != "7269" {
		t.Errorf("two processes counted %s s, want 7270", seconds)
	}
}

// Whoever asks for the configuration of a running node ends its session; the
// node's next sign of life opens it again.
func TestForgedBoot(t *testing.T) {
	for _, sign := range []string{"heartbeat", "NFS"} {
		t.Run(sign, func(t *testing.T) {
			s := newSite(t)
			b := s.boot(mac1, client1)
			if err := s.report(b.Session.ID, protocol.EventUp); err != nil {
				t.Fatal(err)
			}
			s.promote("default", id(2))
			s.clock.Add(time.Hour)
			forged := s.boot(mac1, client2)
			s.clock.Add(time.Minute)
			if sign == "NFS" {
				if err := s.Heard(t.Context(), []Sign{{Client: client1, Snapshot: id(1), At: s.clock.Now()}}); err != nil {
					t.Fatal(err)
				}
			} else if err := s.report(b.Session.ID, protocol.EventHeartbeat); err != nil {
				t.Fatal(err)
			}
			status, err := s.StatusOf(t.Context(), mac1.String())
			if err != nil || status.Session == nil || status.Session.ID != b.Session.ID || status.Reboot.Change != ChangeOther {
				t.Fatalf("status: %+v, %v", status, err)
			}
			if users, err := s.UsersOf(t.Context(), id(1)); err != nil || len(users) != 1 {
				t.Fatalf("users: %v, %v", users, err)
			}
			// Now it is booted for real: one session is left, and what the old
			// one says late does not count any more.
			s.step(protocol.StepRoot, forged.Session.ID)
			if err := s.report(b.Session.ID, protocol.EventHeartbeat); !errors.Is(err, protocol.ErrUnknownSession) {
				t.Errorf("a heartbeat of a former boot: %v", err)
			}
			live := 0
			for _, session := range s.sessions() {
				if session.Live() {
					live++
				}
			}
			if live != 1 {
				t.Errorf("%d live sessions", live)
			}
		})
	}
}

func TestReportUnknown(t *testing.T) {
	s := newSite(t)
	if err := s.report(protocol.NewSessionID(), protocol.EventUp); !errors.Is(err, protocol.ErrUnknownSession) {
		t.Errorf("unknown session: %v", err)
	}
	b := s.boot(mac1, client1)
	_, err := s.Report(t.Context(), b.Session.ID, client1, protocol.Report{Protocol: 1, Event: "nonsense"})
	if !errors.Is(err, protocol.ErrMalformed) {
		t.Errorf("malformed: %v", err)
	}
	reply, err := s.Report(t.Context(), b.Session.ID, client1, protocol.Report{Protocol: 1, Event: protocol.EventHeartbeat})
	if err != nil || reply.HeartbeatSeconds != 3600 {
		t.Errorf("reply %+v, %v", reply, err)
	}
	if got := s.sessions()[0]; got.Step != protocol.StepUp || got.Address != client1 {
		t.Errorf("after a heartbeat: %+v", got)
	}
}

func TestUnknownMachinesAreBounded(t *testing.T) {
	s := newSite(t)
	if _, err := s.AddNode(t.Context(), by, mac1, NodeChange{}); err != nil {
		t.Fatal(err)
	}
	for i := range maxUnknown + 20 {
		s.clock.Add(time.Millisecond)
		mac := MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
		if err := s.Step(t.Context(), pxe.Progress{Step: protocol.StepDHCP, MAC: mac.HardwareAddr()}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.Nodes(t.Context())
	if err != nil || len(list) != maxUnknown+1 {
		t.Fatalf("%d nodes, %v", len(list), err)
	}
	if !list[0].Registered || list[1].MAC != (MAC{2, 0, 0, 0, 0, 20}) {
		t.Errorf("the first are %v and %v", list[0], list[1])
	}
}
