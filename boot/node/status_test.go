package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sidus/boot/protocol"
)

func TestStatus(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	s.promote("gpu", id(1))
	if _, err := s.AddNode(ctx, by, mac1, NodeChange{Name: ptr("n1")}); err != nil {
		t.Fatal(err)
	}
	expect := func(what string, change Change, text string) {
		t.Helper()
		status, err := s.StatusOf(ctx, "n1")
		if err != nil || status.Reboot.Change != change || !strings.Contains(status.Reboot.Text, text) {
			t.Errorf("%s: %s %q, %v; want %s %q", what, status.Reboot.Change, status.Reboot.Text, err, change, text)
		}
	}
	set := func(change NodeChange) {
		t.Helper()
		if _, err := s.SetNode(ctx, by, "n1", change); err != nil {
			t.Fatal(err)
		}
	}
	expect("never booted", ChangeStart, "would boot debian@1 (channel default)")
	b := s.boot(mac1, client1)
	if err := s.report(b.Session.ID, protocol.EventUp, "x.service"); err != nil {
		t.Fatal(err)
	}
	expect("just booted", ChangeNone, "would change nothing")
	set(NodeChange{Channel: ptr("gpu")})
	expect("another channel, the same snapshot", ChangeNone, "would change nothing")
	s.promote("gpu", id(2))
	expect("another channel", ChangeOther, "would boot debian@2, because the node follows channel gpu now")
	set(NodeChange{Channel: ptr("")})
	s.promote("default", id(2))
	expect("promoted", ChangeOther, "would boot debian@2, because channel default was promoted at")
	if err := promote(s.cat, s.clock.Now(), "default", id(3), "rollback"); err != nil {
		t.Fatal(err)
	}
	expect("rolled back", ChangeOther, "would boot debian@3, because channel default was rolled back at")
	set(NodeChange{Pin: ptr(id(2))})
	expect("pinned", ChangeOther, "would boot debian@2, because the node was pinned to it")
	set(NodeChange{Pin: ptr(id(1))})
	expect("pinned to what it runs", ChangeNone, "would change nothing")
	set(NodeChange{Channel: ptr("nope")})
	expect("missing channel", ChangeNothing, "would boot nothing: channel nope does not exist")
	set(NodeChange{Channel: ptr("")})
	if _, err := s.SetNetwork(ctx, by, "lab", NetworkChange{Channel: ptr("")}); err != nil {
		t.Fatal(err)
	}
	expect("no channel", ChangeNothing, "network lab has no default channel")
	if err := s.DeleteNetwork(ctx, by, "lab", true); err != nil {
		t.Fatal(err)
	}
	expect("not served", ChangeNothing, "no network that is served")

	text, err := json.Marshal(func() []Status { l, _ := s.Status(ctx); return l }())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"mac":"52:54:00:00:00:01"`, `"tree":"debian","number":1`, `"step":"up"`, `"failed_units":["x.service"]`, `"change":"nothing"`, `"reason":"network-not-served"`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
}

func TestSortStatus(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	for i, snapshot := range []int{2, 1, 0, 3} {
		mac := MAC{2, 0, 0, 0, 0, byte(i)}
		change := NodeChange{Name: ptr(fmt.Sprintf("n%d", i))}
		if snapshot > 0 {
			change.Pin = ptr(id(snapshot))
		}
		if _, err := s.AddNode(ctx, by, mac, change); err != nil {
			t.Fatal(err)
		}
		if snapshot > 0 {
			b := s.boot(mac, netip.AddrFrom4([4]byte{10, 0, 0, byte(100 + i)}))
			if i == 1 {
				s.step(protocol.StepRoot, b.Session.ID)
			}
			s.clock.Add(time.Second)
		}
	}
	s.promote("other", id(2))
	if _, err := s.SetNode(ctx, by, "n3", NodeChange{Channel: ptr("other")}); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[SortKey]string{
		SortName: "n0 n1 n2 n3", SortSnapshot: "n1 n0 n3 n2", SortSince: "n3 n1 n0 n2", SortHeard: "n0 n1 n3 n2",
		SortStep: "n0 n3 n1 n2", SortChange: "n3 n2 n0 n1",
	} {
		list, err := s.Status(ctx)
		if err == nil {
			err = SortStatus(list, key)
		}
		var names []string
		for _, status := range list {
			names = append(names, status.Node.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", key, got, err, want)
		}
	}
	if err := SortStatus(nil, "x"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}
