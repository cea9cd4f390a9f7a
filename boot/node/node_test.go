package node

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"sidus/boot/dhcp"
	"sidus/boot/protocol"
	"sidus/image/store"
)

func TestNodeIsKept(t *testing.T) {
	s := newSite(t)
	want, err := s.AddNode(t.Context(), by, mac1, NodeChange{
		Name: ptr("Node-1"), Channel: ptr("gpu"), Address: ptr(client1), Args: ptr("quiet"),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.restart()
	for _, who := range []string{"node-1", "NODE-1", "52:54:00:00:00:01", "5254.0000.0001"} {
		got, err := s.Node(t.Context(), who)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", who, got, err, want)
		}
	}
	if _, err := s.Node(t.Context(), ""); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
}

func TestNodeIsRefused(t *testing.T) {
	s := newSite(t)
	if _, err := s.SetNetwork(t.Context(), by, "lab", NetworkChange{Router: ptr(addr("10.0.0.2")), DNS: ptr([]netip.Addr{addr("10.0.0.3")})}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddNode(t.Context(), by, mac2, NodeChange{Name: ptr("taken"), Address: ptr(addr("10.0.0.60"))}); err != nil {
		t.Fatal(err)
	}
	err := s.PutLease(t.Context(), dhcp.Lease{Network: "lab", MAC: mac2.HardwareAddr(), Address: addr("10.0.0.70"), State: dhcp.Bound, Expires: s.clock.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mac    MAC
		change NodeChange
		class  error
		text   string
	}{
		{MAC{}, NodeChange{}, ErrInvalid, "no card"},
		{MAC{1}, NodeChange{}, ErrInvalid, "group address"},
		{mac2, NodeChange{}, store.ErrExists, "it is taken"},
		{mac1, NodeChange{Name: ptr("TAKEN")}, store.ErrExists, mac2.String()},
		{mac1, NodeChange{Name: ptr("a b")}, ErrInvalid, "letters"},
		{mac1, NodeChange{Name: ptr("-x")}, ErrInvalid, "label"},
		{mac1, NodeChange{Name: ptr("../x")}, ErrInvalid, "label"},
		{mac1, NodeChange{Name: ptr("a\x00b")}, ErrInvalid, "letters"},
		{mac1, NodeChange{Name: ptr(strings.Repeat("x", 300))}, ErrInvalid, "1 to 64"},
		{mac1, NodeChange{Name: ptr("525400000009")}, ErrInvalid, "hardware address"},
		{mac1, NodeChange{Channel: ptr("a/b")}, ErrInvalid, "channel"},
		{mac1, NodeChange{Channel: ptr("gpu"), Pin: ptr(id(1))}, ErrInvalid, "both"},
		{mac1, NodeChange{Pin: ptr(id(9))}, store.ErrNotFound, "pin"},
		{mac1, NodeChange{Pin: ptr(store.SnapshotID("debian@1"))}, ErrInvalid, "pin"},
		{mac1, NodeChange{Pin: ptr(id(4))}, ErrInvalid, "debian@4 is a step of a build"},
		{mac1, NodeChange{Args: ptr("a\x1b[2Jb")}, ErrInvalid, "control"},
		{mac1, NodeChange{Args: ptr(`a="b`)}, ErrInvalid, "quote"},
		{mac1, NodeChange{Address: ptr(addr("192.168.0.1"))}, ErrInvalid, "none of the networks"},
		{mac1, NodeChange{Address: ptr(addr("fd00::1"))}, ErrInvalid, "none of the networks"},
		{mac1, NodeChange{Address: ptr(addr("10.0.0.0"))}, ErrInvalid, "subnet itself"},
		{mac1, NodeChange{Address: ptr(addr("10.0.0.255"))}, ErrInvalid, "broadcast"},
		{mac1, NodeChange{Address: ptr(serverIP)}, ErrInvalid, "this server's"},
		{mac1, NodeChange{Address: ptr(addr("10.0.0.2"))}, ErrInvalid, "router"},
		{mac1, NodeChange{Address: ptr(addr("10.0.0.3"))}, ErrInvalid, "DNS"},
		{mac1, NodeChange{Address: ptr(addr("10.0.0.60"))}, store.ErrExists, "node taken"},
		{mac1, NodeChange{Address: ptr(addr("10.0.0.70"))}, store.ErrInUse, "leased to " + mac2.String()},
	} {
		_, err := s.AddNode(t.Context(), by, c.mac, c.change)
		if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s %+v: %v; want %v with %q", c.mac, c.change, err, c.class, c.text)
		}
	}
	s.sql(`UPDATE snapshot SET deleted = 1 WHERE id = ?`, string(id(2)))
	if _, err := s.AddNode(t.Context(), by, mac1, NodeChange{Pin: ptr(id(2))}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a pin to a deleted snapshot: %v", err)
	}
	if list, err := s.Nodes(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("after refusals: %v, %v", list, err)
	}
}

func TestUnknownBecomesKnown(t *testing.T) {
	s := newSite(t)
	s.boot(mac1, client1)
	n, err := s.Node(t.Context(), mac1.String())
	if err != nil || n.Registered || n.Network != "lab" || !n.LastSeen.Equal(s.clock.Now()) {
		t.Fatalf("%+v, %v", n, err)
	}
	if _, err := s.SetNode(t.Context(), by, mac1.String(), NodeChange{Name: ptr("x")}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("set of an unknown machine: %v", err)
	}
	if n, err = s.AddNode(t.Context(), by, mac1, NodeChange{Name: ptr("n1")}); err != nil || !n.Registered || n.FirstSeen.IsZero() {
		t.Fatalf("%+v, %v", n, err)
	}
	if list := s.sessions(); len(list) != 1 || list[0].Name != "n1" {
		t.Errorf("sessions: %+v", list)
	}
}

func TestNodeChanges(t *testing.T) {
	s := newSite(t)
	if _, err := s.AddNode(t.Context(), by, mac1, NodeChange{Name: ptr("n1"), Pin: ptr(id(2))}); err != nil {
		t.Fatal(err)
	}
	n, err := s.SetNode(t.Context(), by, "n1", NodeChange{Channel: ptr("gpu")})
	if err != nil || n.Pin != "" || n.Channel != "gpu" {
		t.Errorf("a channel after a pin: %+v, %v", n, err)
	}
	if n, err = s.SetNode(t.Context(), by, "n1", NodeChange{Pin: ptr(id(3))}); err != nil || n.Channel != "gpu" || n.Pin != id(3) {
		t.Errorf("a pin after a channel: %+v, %v", n, err)
	}
	if _, err = s.SetNode(t.Context(), by, "n1", NodeChange{Pin: ptr(id(3))}); err != nil {
		t.Error(err)
	}
	// The pinned snapshot keeps serving what may be changed beside it.
	if _, err = s.SetNode(t.Context(), by, "n1", NodeChange{Args: ptr("quiet")}); err != nil {
		t.Error(err)
	}
	events, err := s.cat.Events(t.Context(), mac1.String(), 0)
	if err != nil || len(events) != 4 || events[2].Text != "changed node n1 (52:54:00:00:00:01): channel none → gpu, pin debian@2 → none" ||
		events[3].Action != "node-add" || events[0].Message != "because" {
		t.Errorf("%+v, %v", events, err)
	}
}

func TestDeleteNode(t *testing.T) {
	s := newSite(t)
	if _, err := s.AddNode(t.Context(), by, mac1, NodeChange{Name: ptr("n1")}); err != nil {
		t.Fatal(err)
	}
	b := s.boot(mac1, client1)
	if err := s.DeleteNode(t.Context(), by, "n1", false); !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "n1 at 10.0.0.101 booted debian@1") {
		t.Errorf("a node that runs: %v", err)
	}
	if err := s.DeleteNode(t.Context(), by, "n1", true); err != nil {
		t.Fatal(err)
	}
	s.clock.Add(time.Minute)
	if err := s.report(b.Session.ID, protocol.EventHeartbeat); !errors.Is(err, protocol.ErrUnknownSession) {
		t.Errorf("a report of a deleted node: %v", err)
	}
	if users, err := s.UsersOf(t.Context(), id(1)); err != nil || len(users) != 0 {
		t.Errorf("users: %v, %v", users, err)
	}
	if err := s.DeleteNode(t.Context(), by, "n1", true); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("twice: %v", err)
	}
}

func TestUsersOf(t *testing.T) {
	s := newSite(t)
	if _, err := s.AddNode(t.Context(), by, mac1, NodeChange{Name: ptr("n1"), Pin: ptr(id(2))}); err != nil {
		t.Fatal(err)
	}
	b := s.boot(mac1, client1)
	s.boot(mac2, client2)
	s.step(protocol.StepRoot, b.Session.ID)
	users, err := s.UsersOf(t.Context(), id(2))
	if err != nil || len(users) != 2 || users[0].Kind != UserPin || users[0].Text != "node n1 is pinned to it" ||
		users[1].Session != b.Session.ID || !strings.HasPrefix(users[1].Text, "node n1 runs it since 2026-03-01") {
		t.Errorf("%+v, %v", users, err)
	}
	all, err := s.SnapshotsInUse(t.Context())
	if err != nil || len(all) != 2 || len(all[id(2)]) != 2 || len(all[id(1)]) != 1 || !strings.Contains(all[id(1)][0].Text, "boots it") {
		t.Errorf("%+v, %v", all, err)
	}
}
