package node

import (
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/image/catalog"
)

// Options are the options of a Registry.
type Options struct {
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log gets one line for each step of a boot; nil discards them.
	Log logrus.FieldLogger
	// SiteKey is the site's key, from which machine-ids are derived. A
	// registry that boots nothing can do with the zero value.
	SiteKey [32]byte
	// LocalAddrs returns the addresses of this server, which are never given
	// to nodes; nil means those of this machine's interfaces.
	LocalAddrs func() ([]netip.Addr, error)
}

// Registry keeps networks, nodes, sessions and leases in a catalog. Its
// methods may be called from several goroutines, and several processes may
// use the same catalog.
type Registry struct {
	catalog    *catalog.Catalog
	now        func() time.Time
	log        logrus.FieldLogger
	siteKey    [32]byte
	localAddrs func() ([]netip.Addr, error)

	mu     sync.Mutex
	ticked time.Time // when this process last advanced the served clock; zero if never
}

// New makes a Registry that keeps what it knows in cat.
func New(cat *catalog.Catalog, o Options) *Registry {
	r := &Registry{catalog: cat, now: o.Now, log: o.Log, siteKey: o.SiteKey, localAddrs: o.LocalAddrs}
	if r.now == nil {
		r.now = time.Now
	}
	if r.log == nil {
		discard := logrus.New()
		discard.SetOutput(io.Discard)
		r.log = discard
	}
	if r.localAddrs == nil {
		r.localAddrs = interfaceAddrs
	}
	return r
}

// By says who changes something, with which command, and why.
type By struct {
	catalog.Actor
	Message string // the user's --message
}

func interfaceAddrs() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of this machine: %w", err)
	}
	var addrs []netip.Addr
	for _, a := range list {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			addrs = append(addrs, prefix.Addr().Unmap())
		}
	}
	return addrs, nil
}

// text is the column that keeps an address: "" for none.
func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().String()
}

func parseAddr(text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	return netip.ParseAddr(text)
}

func millisOrNull(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return catalog.Millis(t)
}

func nullTime(v sql.NullInt64) time.Time { return catalog.Time(v.Int64) }

// collect reads all rows before the caller asks the next thing of the same
// transaction.
func collect[T any](tx *sql.Tx, scan func(*sql.Rows) (T, error), query string, args ...any) ([]T, error) {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return nil, fmt.Errorf("catalog: %w", err)
	}
	defer rows.Close()
	var list []T
	for rows.Next() {
		item, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("catalog: %w", err)
		}
		list = append(list, item)
	}
	return list, rows.Err()
}

// one reads at most one row and reports whether there was one.
func one[T any](tx *sql.Tx, scan func(*sql.Rows) (T, error), query string, args ...any) (T, bool, error) {
	list, err := collect(tx, scan, query+" LIMIT 1", args...)
	if err != nil || len(list) == 0 {
		var none T
		return none, false, err
	}
	return list[0], true, nil
}

func write(tx *sql.Tx, query string, args ...any) error {
	if _, err := tx.Exec(query, args...); err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	return nil
}
