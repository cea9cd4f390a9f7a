package node

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"

	"sidus/boot/dhcp"
	"sidus/image/catalog"
	"sidus/image/store"
)

// Leases returns every lease of a network. It implements dhcp.LeaseStore.
func (r *Registry) Leases(ctx context.Context, network string) ([]dhcp.Lease, error) {
	var list []dhcp.Lease
	err := r.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		list, err = collect(tx, scanLease, `SELECT network, mac, address, hostname, state, expires FROM lease WHERE network = ? ORDER BY address`, network)
		return err
	})
	return list, err
}

// PutLease records l in the place of whatever there is of its network and
// address, durably. It implements dhcp.LeaseStore.
//
// An address that another machine holds is not given away: the error wraps
// store.ErrInUse then, whichever process gave it to that machine. It wraps
// ErrInvalid if no machine can have the hardware address.
func (r *Registry) PutLease(ctx context.Context, l dhcp.Lease) error {
	mac, err := MACOf(l.MAC)
	if err != nil {
		return err
	}
	if !l.Address.IsValid() {
		return fmt.Errorf("lease of %s: %w: it has no address", mac, ErrInvalid)
	}
	address := addrText(l.Address)
	return r.catalog.Update(ctx, func(tx *sql.Tx) error {
		var holder string
		var expires int64
		err := tx.QueryRow(`SELECT mac, expires FROM lease WHERE network = ? AND address = ? AND mac <> ? AND state = ? AND expires > ?`,
			l.Network, address, mac.String(), string(dhcp.Bound), catalog.Millis(r.now())).Scan(&holder, &expires)
		switch {
		case err == nil:
			return fmt.Errorf("lease of %s to %s: %w: %s has it until %s", address, mac, store.ErrInUse, holder, stamp(catalog.Time(expires)))
		case err != sql.ErrNoRows:
			return fmt.Errorf("catalog: %w", err)
		}
		return write(tx, `INSERT INTO lease (network, mac, address, hostname, state, expires) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (network, address) DO UPDATE SET mac = excluded.mac, hostname = excluded.hostname,
			state = excluded.state, expires = excluded.expires`,
			l.Network, mac.String(), address, l.Hostname, string(l.State), catalog.Millis(l.Expires))
	})
}

func scanLease(rows *sql.Rows) (dhcp.Lease, error) {
	var l dhcp.Lease
	var text, address string
	var expires int64
	if err := rows.Scan(&l.Network, &text, &address, &l.Hostname, &l.State, &expires); err != nil {
		return l, err
	}
	mac, err := ParseMAC(text)
	if err != nil {
		return l, err
	}
	l.MAC, l.Expires = mac.HardwareAddr(), catalog.Time(expires)
	if l.Address, err = netip.ParseAddr(address); err != nil {
		return l, fmt.Errorf("lease of %s: %w", text, err)
	}
	return l, nil
}
