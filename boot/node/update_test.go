package node

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"sidus/boot/protocol"
	"sidus/image/store"
)

// up boots mac to the end; its agent asks for orders.
func (s *site) up(mac MAC) Session {
	s.t.Helper()
	b := s.boot(mac, client1)
	s.tell(b.Session, protocol.Report{Event: protocol.EventUp})
	if orders, err := s.takeOrders(s.t.Context(), b.Session.ID, 0); err != nil || len(orders) > 0 {
		s.t.Fatalf("orders: %v, %v", orders, err)
	}
	return b.Session
}

func (s *site) tell(session Session, r protocol.Report) {
	s.t.Helper()
	r.Protocol = protocol.Version
	if _, err := s.Report(s.t.Context(), session.ID, client1, r); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) orderUpdate(selection Selection) []Ordered {
	s.t.Helper()
	list, err := s.OrderUpdates(s.t.Context(), by, selection)
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

func (s *site) users(n int) []UserKind {
	s.t.Helper()
	users, err := s.UsersOf(s.t.Context(), id(n))
	if err != nil {
		s.t.Fatal(err)
	}
	var kinds []UserKind
	for _, u := range users {
		kinds = append(kinds, u.Kind)
	}
	return kinds
}

func (s *site) state(mac MAC) Status {
	s.t.Helper()
	status, err := s.StatusOf(s.t.Context(), mac.String())
	if err != nil {
		s.t.Fatal(err)
	}
	return status
}

func TestLiveUpdate(t *testing.T) {
	s := newSite(t)
	session := s.up(mac1)
	all := Selection{All: true}
	if got := s.orderUpdate(all); len(got) != 1 || got[0].Answer != AnswerCurrent {
		t.Fatalf("a node that runs what its channel names: %+v", got)
	}

	s.promote("default", id(2))
	got := s.orderUpdate(all)
	if got[0].Answer != AnswerOrdered || got[0].From.ID != id(1) || got[0].To.ID != id(2) || got[0].Update.State != UpdateOrdered {
		t.Fatalf("%+v", got[0])
	}
	order := got[0].Update.Order
	if again := s.orderUpdate(all); again[0].Update.Order != order {
		t.Errorf("the same order is given twice: %+v", again[0])
	}
	// The snapshot is held before the node has heard of it.
	if got := s.users(2); !slices.Equal(got, []UserKind{UserUpdate}) {
		t.Errorf("users of an ordered snapshot: %v", got)
	}
	for range 2 { // an answer that is lost is given again
		orders, err := s.takeOrders(t.Context(), session.ID, 0)
		if want := []protocol.Order{{Number: order, Action: protocol.ActionUpdate, Snapshot: id(2)}}; err != nil || !slices.Equal(orders, want) {
			t.Fatalf("orders: %+v, %v", orders, err)
		}
	}
	if orders, _ := s.takeOrders(t.Context(), session.ID, order); len(orders) > 0 {
		t.Errorf("orders after the last one: %+v", orders)
	}
	s.tell(session, protocol.Report{Event: protocol.EventUpdated, Outcome: &protocol.Outcome{Order: order, Snapshot: id(2), Notes: []string{"a note"}}})
	status := s.state(mac1)
	if u := status.Session.Updates; len(u) != 1 || u[0].State != UpdateDone || !u[0].Held || u[0].Answered.IsZero() || u[0].Notes[0] != "a note" {
		t.Errorf("after the report: %+v", u)
	}
	if status.Session.Runs().ID != id(2) || status.Session.Snapshot.ID != id(1) || status.Reboot.Change != ChangeOther {
		t.Errorf("status: runs %s, reboot %+v", status.Session.Runs(), status.Reboot)
	}
	if got := s.orderUpdate(all); got[0].Answer != AnswerCurrent {
		t.Errorf("a second time: %+v", got[0])
	}
	// NFS calls for the new snapshot are signs of life of the session.
	s.clock.Add(time.Hour)
	if err := s.Heard(t.Context(), []Sign{{Client: client1, Snapshot: id(2), At: s.clock.Now()}}); err != nil {
		t.Fatal(err)
	}
	if heard := s.state(mac1).Session.Heard; !heard.Equal(s.clock.Now()) {
		t.Errorf("heard %s", heard)
	}

	// A second update on top of the first: all three are held.
	s.promote("default", id(3))
	order = s.orderUpdate(all)[0].Update.Order
	if _, err := s.takeOrders(t.Context(), session.ID, 0); err != nil {
		t.Fatal(err)
	}
	s.tell(session, protocol.Report{Event: protocol.EventUpdated, Outcome: &protocol.Outcome{Order: order, Snapshot: id(3)}})
	inUse, err := s.SnapshotsInUse(t.Context())
	if err != nil || len(inUse) != 3 {
		t.Errorf("in use: %+v, %v", inUse, err)
	}
	// A boot ends the session, and with it all that it held.
	s.clock.Add(time.Hour)
	s.boot(mac1, client1)
	for n, want := range map[int]int{1: 0, 2: 0, 3: 1} {
		if got := s.users(n); len(got) != want {
			t.Errorf("users of debian@%d after a reboot: %v", n, got)
		}
	}
	if _, err := s.takeOrders(t.Context(), session.ID, 0); !errors.Is(err, protocol.ErrUnknownSession) {
		t.Errorf("orders of a session that has ended: %v", err)
	}
}

func TestLiveUpdateFails(t *testing.T) {
	s := newSite(t)
	session := s.up(mac1)
	s.promote("default", id(2))
	for _, held := range []bool{false, true} {
		order := s.orderUpdate(Selection{Nodes: []string{mac1.String()}})[0].Update.Order
		if _, err := s.takeOrders(t.Context(), session.ID, 0); err != nil {
			t.Fatal(err)
		}
		outcome := protocol.Outcome{Order: order, Snapshot: id(2), Reason: "no room", Held: held}
		s.tell(session, protocol.Report{Event: protocol.EventUpdateFailed, Outcome: &outcome})
		if got := s.users(2); len(got) != map[bool]int{false: 0, true: 1}[held] {
			t.Errorf("held %v: users %v", held, got)
		}
		// What is said later of an answered order does not count.
		s.tell(session, protocol.Report{Event: protocol.EventUpdated, Outcome: &protocol.Outcome{Order: order, Snapshot: id(2)}})
		updates, err := s.Updates(t.Context(), []int64{order, 999})
		if err != nil || len(updates) != 1 || updates[0].State != UpdateFailed || updates[0].Reason != "no room" {
			t.Errorf("%+v, %v", updates, err)
		}
	}
	if s.state(mac1).Session.Runs().ID != id(1) {
		t.Error("a failed update counts")
	}
}

func TestOrderUpdatesWhom(t *testing.T) {
	s := newSite(t)
	for i, name := range []string{"n1", "n2", "old", "off"} {
		if _, err := s.AddNode(t.Context(), by, MAC{0x52, 0x54, 0, 0, 1, byte(i)}, NodeChange{Name: &name, Group: ptr("racks")}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.SetNode(t.Context(), by, "n2", NodeChange{Channel: ptr("gpu"), Group: ptr("")}); err != nil {
		t.Fatal(err)
	}
	s.promote("gpu", id(1))
	s.up(MAC{0x52, 0x54, 0, 0, 1, 0})
	s.up(MAC{0x52, 0x54, 0, 0, 1, 1})
	old := s.boot(MAC{0x52, 0x54, 0, 0, 1, 2}, client2)
	if got := s.orderUpdate(Selection{Nodes: []string{"old"}})[0]; got.Answer != AnswerOff {
		t.Errorf("a node that boots: %+v", got)
	}
	s.tell(old.Session, protocol.Report{Event: protocol.EventUp})
	s.promote("default", id(2))
	s.promote("gpu", id(3))
	for _, c := range []struct {
		selection Selection
		want      string
	}{
		{Selection{Nodes: []string{"n1", "N1", "n2"}}, "n1:ordered n2:ordered "},
		{Selection{Channel: "gpu"}, "n2:ordered "},
		{Selection{Group: "racks"}, "n1:ordered off:off old:old "},
		{Selection{All: true}, "n1:ordered n2:ordered off:off old:old "},
	} {
		got := ""
		for _, o := range s.orderUpdate(c.selection) {
			got += fmt.Sprintf("%s:%s ", o.Node.Label(), o.Answer)
		}
		if got != c.want {
			t.Errorf("%+v: %s instead of %s", c.selection, got, c.want)
		}
	}
	for _, c := range []struct {
		selection Selection
		err       error
	}{
		{Selection{}, ErrInvalid}, {Selection{All: true, Group: "racks"}, ErrInvalid},
		{Selection{Nodes: []string{"nobody"}}, store.ErrNotFound},
		{Selection{Group: "none"}, store.ErrNotFound}, {Selection{Channel: "none"}, store.ErrNotFound},
	} {
		if _, err := s.OrderUpdates(t.Context(), by, c.selection); !errors.Is(err, c.err) {
			t.Errorf("%+v: %v", c.selection, err)
		}
	}
	// An order that was not taken gives way to a later one, and is not held.
	s.promote("default", id(3))
	first := s.state(MAC{0x52, 0x54, 0, 0, 1, 0}).Session.Updates[0]
	second := s.orderUpdate(Selection{Nodes: []string{"n1"}})[0].Update
	updates, err := s.Updates(t.Context(), []int64{first.Order, second.Order})
	if err != nil || updates[0].State != UpdateFailed || updates[0].Held || updates[1].State != UpdateOrdered {
		t.Errorf("%+v, %v", updates, err)
	}
}

// TestOrdersWake has many agents wait, and orders come for some of them.
func TestOrdersWake(t *testing.T) {
	const agents = 100
	s := newSite(t)
	sessions := make([]Session, agents)
	for i := range sessions {
		sessions[i] = s.up(MAC{0x52, 0x54, 0, 0, 2, byte(i)})
	}
	orders := NewOrders(s.Registry)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() { _ = orders.Run(ctx) })
	answers := make(chan MAC, agents)
	for _, session := range sessions {
		group.Go(func() {
			got, err := orders.Orders(ctx, session.ID, 0)
			if err != nil {
				t.Error(err)
			}
			if len(got) > 0 {
				answers <- session.MAC
			}
		})
	}
	s.promote("default", id(2))
	s.orderUpdate(Selection{Nodes: []string{sessions[7].MAC.String()}})
	select {
	case mac := <-answers:
		if mac != sessions[7].MAC {
			t.Errorf("%s was woken", mac)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nobody was woken")
	}
	begun := time.Now()
	s.orderUpdate(Selection{All: true})
	for range agents - 1 {
		select {
		case <-answers:
		case <-time.After(30 * time.Second):
			t.Fatal("not all were woken")
		}
	}
	t.Logf("%d agents had their orders after %s", agents-1, time.Since(begun).Round(time.Millisecond))
	if _, err := orders.Orders(ctx, protocol.NewSessionID(), 0); !errors.Is(err, protocol.ErrUnknownSession) {
		t.Errorf("an unknown session: %v", err)
	}
	var open int
	err := s.cat.View(t.Context(), func(tx *sql.Tx) error {
		return tx.QueryRow(`SELECT COUNT(*) FROM live_update WHERE state = 'ordered'`).Scan(&open)
	})
	if err != nil || open > 0 {
		t.Errorf("%d orders are not noted as taken, %v", open, err)
	}
}
