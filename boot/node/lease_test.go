package node

import (
	"errors"
	"net"
	"reflect"
	"testing"
	"time"

	"sidus/boot/dhcp"
	"sidus/boot/http"
	"sidus/boot/pxe"
	"sidus/image/store"
)

// What the front end asks is answered here.
var (
	_ dhcp.LeaseStore = (*Registry)(nil)
	_ dhcp.Directory  = (*Directory)(nil)
	_ http.Reporter   = (*Registry)(nil)
	_ pxe.Booter      = (*Booter)(nil)
	_ pxe.Stepper     = (*Follower)(nil)
)

func TestLeases(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	lease := dhcp.Lease{
		Network: "lab", MAC: mac1.HardwareAddr(), Address: client1, Hostname: "n1", State: dhcp.Bound, Expires: s.clock.Now().Add(time.Hour),
	}
	if err := s.PutLease(ctx, lease); err != nil {
		t.Fatal(err)
	}
	s.restart()
	list, err := s.Leases(ctx, "lab")
	if err != nil || len(list) != 1 || !list[0].Expires.Equal(lease.Expires) {
		t.Fatalf("%+v, %v", list, err)
	}
	list[0].Expires = lease.Expires
	if !reflect.DeepEqual(list[0], lease) {
		t.Errorf("%+v, want %+v", list[0], lease)
	}
	other := lease
	other.MAC = mac2.HardwareAddr()
	if err := s.PutLease(ctx, other); !errors.Is(err, store.ErrInUse) {
		t.Errorf("an address that another machine holds: %v", err)
	}
	other.Network = "elsewhere"
	if err := s.PutLease(ctx, other); err != nil {
		t.Errorf("the same address in another network: %v", err)
	}
	other.Network = "lab"
	lease.Expires = s.clock.Now().Add(2 * time.Hour)
	if err := s.PutLease(ctx, lease); err != nil {
		t.Errorf("renewal: %v", err)
	}
	s.clock.Add(2 * time.Hour)
	other.Expires = s.clock.Now().Add(time.Hour)
	if err := s.PutLease(ctx, other); err != nil {
		t.Errorf("after the lease had expired: %v", err)
	}
	other.State = dhcp.Released
	if err := s.PutLease(ctx, other); err != nil {
		t.Errorf("release: %v", err)
	}
	lease.Expires = other.Expires
	if err := s.PutLease(ctx, lease); err != nil {
		t.Errorf("after it was given back: %v", err)
	}
	if list, err = s.Leases(ctx, "lab"); err != nil || len(list) != 1 || list[0].MAC.String() != mac1.String() {
		t.Errorf("%+v, %v", list, err)
	}
	for _, bad := range []dhcp.Lease{{MAC: mac1.HardwareAddr()}, {MAC: net.HardwareAddr{1, 2}, Address: client1}, {Address: client1}} {
		if err := s.PutLease(ctx, bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
