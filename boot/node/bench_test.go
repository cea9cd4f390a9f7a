package node

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"sidus/boot/protocol"
)

// BenchmarkBoot is one machine's boot configuration, with 100,000 sessions of
// 500 nodes on record.
func BenchmarkBoot(b *testing.B) {
	s := benchSite(b)
	for i := 0; b.Loop(); i++ {
		s.clock.Add(time.Second)
		if _, err := s.Boot(b.Context(), MAC{2, 0, 0, 0, byte(i / 250 % 2), byte(i % 250)}, client1, "ipxe"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHeard is a batch of signs of life of 500 clients, half of which
// have no live session.
func BenchmarkHeard(b *testing.B) {
	s := benchSite(b)
	var signs []Sign
	for i := range 500 {
		signs = append(signs, Sign{Client: netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i % 250)}), Snapshot: id(1), At: s.clock.Now()})
	}
	for b.Loop() {
		if err := s.Heard(b.Context(), signs); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStatus is the state of 500 nodes.
func BenchmarkStatus(b *testing.B) {
	s := benchSite(b)
	for b.Loop() {
		if list, err := s.Status(b.Context()); err != nil || len(list) < 500 {
			b.Fatal(len(list), err)
		}
	}
}

func benchSite(b *testing.B) *site {
	s := newSite(b)
	if _, err := s.SetNetwork(b.Context(), by, "lab", NetworkChange{Subnet: ptr(netip.MustParsePrefix("10.0.0.0/16"))}); err != nil {
		b.Fatal(err)
	}
	for i := range 500 {
		if _, err := s.AddNode(b.Context(), by, MAC{2, 0, 0, 0, byte(i / 250), byte(i % 250)}, NodeChange{Name: ptr(fmt.Sprintf("n%d", i))}); err != nil {
			b.Fatal(err)
		}
	}
	// One node in two has a live session.
	s.sql(`WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99999)
		INSERT INTO session (id, mac, network, snapshot, address, opened, step, step_at, heard, heard_clock, ended, end_reason)
		SELECT printf('%032x', i), printf('02:00:00:00:%02x:%02x', i % 500 / 250, i % 250), 'lab', ?, printf('10.0.%d.%d', i % 500 / 250, i % 250),
		i, ?, i, i, 0, CASE WHEN i >= 99500 AND i % 2 = 0 THEN NULL ELSE i + 1 END, 'booted again' FROM n`, string(id(1)), string(protocol.StepUp))
	return s
}
