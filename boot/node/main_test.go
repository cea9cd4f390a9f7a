package node

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"go.uber.org/goleak"

	"sidus/image/catalog"
	"sidus/image/store"
)

func TestMain(m *testing.M) {
	if os.Getenv("SIDUS_TEST_CHILD") != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

// clock is a clock that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock {
	return &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// site is a catalog with a registry, a clock and a log.
type site struct {
	*Registry
	t     testing.TB
	path  string
	cat   *catalog.Catalog
	clock *clock
	log   *logtest.Hook
}

var (
	by       = By{Actor: catalog.Actor{User: "alice", Command: "sidus test"}, Message: "because"}
	serverIP = netip.MustParseAddr("10.0.0.1")
	mac1     = MAC{0x52, 0x54, 0, 0, 0, 1}
	mac2     = MAC{0x52, 0x54, 0, 0, 0, 2}
	client1  = netip.MustParseAddr("10.0.0.101")
	client2  = netip.MustParseAddr("10.0.0.102")
)

func id(n int) store.SnapshotID { return store.SnapshotID(fmt.Sprintf("%032x", 0xabc0+n)) }

// newSite makes a catalog with network lab (10.0.0.0/24) and the complete
// snapshots debian@1 to debian@3; debian@4 is a step of a build. Channel
// default points to debian@1.
func newSite(t testing.TB) *site {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sidus.db")
	cat, err := catalog.Create(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, path: path, clock: newClock()}
	s.use(cat)
	t.Cleanup(func() { _ = s.cat.Close() })
	s.sql(`INSERT INTO tree (id, name, head, created) VALUES ('t1', 'debian', 'v1', 0)`)
	for n := 1; n <= 4; n++ {
		s.sql(`INSERT INTO snapshot (id, tree, number, complete, author, created) VALUES (?, 't1', ?, ?, 'alice', 0)`, string(id(n)), n, n != 4)
	}
	s.promote("default", id(1))
	s.network("lab", NetworkChange{Subnet: ptr(netip.MustParsePrefix("10.0.0.0/24"))})
	return s
}

func (s *site) use(cat *catalog.Catalog) {
	logger, hook := logtest.NewNullLogger()
	logger.SetLevel(logrus.DebugLevel)
	s.cat, s.log = cat, hook
	s.Registry = New(cat, s.options(logger))
}

func (s *site) options(log logrus.FieldLogger) Options {
	return Options{
		Now: s.clock.Now, Log: log, SiteKey: [32]byte{1, 2, 3},
		LocalAddrs: func() ([]netip.Addr, error) { return []netip.Addr{serverIP}, nil },
	}
}

// restart does what a new process does.
func (s *site) restart() {
	s.t.Helper()
	if err := s.cat.Close(); err != nil {
		s.t.Fatal(err)
	}
	cat, err := catalog.Open(s.t.Context(), s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.use(cat)
}

func (s *site) sql(query string, args ...any) {
	s.t.Helper()
	err := s.cat.Update(context.Background(), func(tx *sql.Tx) error {
		_, err := tx.Exec(query, args...)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// promote moves a channel as package image does.
func (s *site) promote(channel string, snapshot store.SnapshotID) {
	s.t.Helper()
	if err := promote(s.cat, s.clock.Now(), channel, snapshot, "promote"); err != nil {
		s.t.Fatal(err)
	}
}

func promote(cat *catalog.Catalog, now time.Time, channel string, snapshot store.SnapshotID, action string) error {
	return cat.Update(context.Background(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO channel (name, snapshot, changed) VALUES (?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET snapshot = excluded.snapshot`, channel, string(snapshot), catalog.Millis(now))
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO channel_history (channel, snapshot, action, actor, at) VALUES (?, ?, ?, 'alice', ?)`,
			channel, string(snapshot), action, catalog.Millis(now))
		return err
	})
}

func (s *site) network(name string, change NetworkChange) Network {
	s.t.Helper()
	n, err := s.AddNetwork(s.t.Context(), by, name, change)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *site) boot(mac MAC, client netip.Addr) Boot {
	s.t.Helper()
	b, err := s.Boot(s.t.Context(), mac, client, "ipxe")
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func ptr[T any](v T) *T { return &v }
