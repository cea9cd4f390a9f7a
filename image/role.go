package image

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
)

// Role is what a server is to its site.
type Role string

// The roles. Only a primary takes changes.
const (
	Primary    Role = "primary"
	Replica    Role = "replica"    // it follows a primary
	Superseded Role = "superseded" // it was the primary, and another took over
)

// Site is what a server knows of the site that it belongs to.
type Site struct {
	ID    string    `json:"id"`    // the same on the primary and its replicas
	Epoch int64     `json:"epoch"` // one more with each takeover
	Role  Role      `json:"role"`
	Since time.Time `json:"since"`            // when it got the role
	Host  string    `json:"source,omitempty"` // whom it follows, or who took over
	AsOf  time.Time `json:"as_of,omitzero"`   // of a replica: the moment at the primary that it holds
	// Announced is where the channels are to point when the transfer under
	// way is done. A replica whose channels point elsewhere lags.
	Announced map[string]store.SnapshotID `json:"announced,omitempty"`
}

// ReadOnlyError is returned for a change of a server that is no primary. It
// wraps store.ErrInUse.
type ReadOnlyError struct{ Site Site }

func (e *ReadOnlyError) Error() string {
	if e.Site.Role == Superseded {
		return fmt.Sprintf("this server takes no changes since %s: %s took over from it; make changes there, and let `sidus demote` make a replica of this server",
			e.Site.Since.Format("2006-01-02 15:04:05"), orUnknown(e.Site.Host))
	}
	return fmt.Sprintf("this server is a replica and takes no changes: make them on the primary (%s), or let `sidus takeover` make this server the primary",
		orUnknown(e.Site.Host))
}

func (e *ReadOnlyError) Unwrap() error { return store.ErrInUse }

func orUnknown(host string) string {
	if host == "" {
		return "another server"
	}
	return host
}

func querySite(tx *sql.Tx) (s Site, err error) {
	var since, asOf int64
	var announced []byte
	err = tx.QueryRow(`SELECT id, epoch, role, since, source, as_of, announced FROM site`).Scan(&s.ID, &s.Epoch, &s.Role, &since, &s.Host, &asOf, &announced)
	if err != nil {
		return s, fmt.Errorf("catalog: the role of this server: %w", err)
	}
	s.Since, s.AsOf = catalog.Time(since), catalog.Time(asOf)
	if err := json.Unmarshal(announced, &s.Announced); err != nil {
		return s, fmt.Errorf("catalog: the channels that were announced: %w", err)
	}
	return s, nil
}

// refuseReplica returns a *ReadOnlyError if the server is no primary.
func refuseReplica(tx *sql.Tx) error {
	s, err := querySite(tx)
	if err == nil && s.Role != Primary {
		err = &ReadOnlyError{s}
	}
	return err
}

// Site tells what this server is.
func (m *Manager) Site(ctx context.Context) (s Site, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		s, err = querySite(tx)
		return err
	})
	return s, err
}

// Writable returns nil on a primary, else a *ReadOnlyError.
func (m *Manager) Writable(ctx context.Context) error { return m.catalog.View(ctx, refuseReplica) }

// Takeover makes a replica the primary of its site. Whoever was it learns of
// that by the higher epoch as soon as the two talk. On a primary it does
// nothing, and changed is false. The error is a *ReadOnlyError on a server that
// another has taken over from.
func (m *Manager) Takeover(ctx context.Context) (s Site, changed bool, err error) {
	err = m.catalog.Update(ctx, func(tx *sql.Tx) error {
		if s, err = querySite(tx); err != nil || s.Role == Primary {
			return err
		}
		if s.Role == Superseded {
			return &ReadOnlyError{s}
		}
		changed = true
		s.Epoch, s.Role, s.Since, s.Announced = s.Epoch+1, Primary, time.Now(), nil
		if err := putRole(tx, s); err != nil {
			return err
		}
		return m.record(tx, "takeover", s.ID, "took over from %s (epoch %d), with the catalog as of %s", orUnknown(s.Host), s.Epoch, s.AsOf.Format(time.DateTime))
	})
	if err == nil && changed {
		m.keepCatalog(ctx)
	}
	return s, changed, err
}

// Demote makes a server, whatever it is, a replica of its site. On a replica it
// does nothing, and changed is false.
func (m *Manager) Demote(ctx context.Context) (s Site, changed bool, err error) {
	err = m.catalog.Update(ctx, func(tx *sql.Tx) error {
		if s, err = querySite(tx); err != nil || s.Role == Replica {
			return err
		}
		changed = true
		s.Role, s.Since, s.AsOf, s.Announced = Replica, time.Now(), time.Time{}, nil
		if err := putRole(tx, s); err != nil {
			return err
		}
		return m.record(tx, "demote", s.ID, "made this server a replica")
	})
	if err == nil && changed {
		m.keepCatalog(ctx)
	}
	return s, changed, err
}

// Supersede notes that host is the primary of this site, in a later epoch: a
// server that was told of an epoch never claims it for itself.
func (m *Manager) Supersede(ctx context.Context, host string, epoch int64) error {
	return m.catalog.Update(ctx, func(tx *sql.Tx) error {
		s, err := querySite(tx)
		if err != nil || s.Role == Replica || epoch <= s.Epoch {
			return err
		}
		s.Epoch, s.Host = epoch, host
		if s.Role == Superseded {
			return putRole(tx, s)
		}
		s.Role, s.Since = Superseded, time.Now()
		if err := putRole(tx, s); err != nil {
			return err
		}
		return m.record(tx, "superseded", s.ID, "%s took over from this server (epoch %d)", orUnknown(host), epoch)
	})
}

// ErrOtherSite is returned by Follow: the server belongs to another site.
var ErrOtherSite = errors.New("this server belongs to another site")

// Follow lets a primary at host, of the site and epoch given, bring this server
// its state. A server with nothing in its catalog becomes a replica of that
// site. The error wraps ErrOtherSite if there is something, and is a
// *ReadOnlyError on a server that was superseded; Follow does not look at
// epochs otherwise, see Supersede.
func (m *Manager) Follow(ctx context.Context, site string, epoch int64, host string, announced map[string]store.SnapshotID) error {
	return m.catalog.Update(ctx, func(tx *sql.Tx) error {
		s, err := querySite(tx)
		if err != nil {
			return err
		}
		switch {
		case s.Role == Superseded:
			return &ReadOnlyError{s}
		case s.Role == Primary && s.ID == site:
			return fmt.Errorf("this server is a primary of the same site (epoch %d): %w; `sidus demote` makes it a replica", s.Epoch, store.ErrInUse)
		case s.ID != site:
			used, err := used(tx)
			if err != nil {
				return err
			}
			if used != "" {
				return fmt.Errorf("%w: it has %s of its own; replicate to an empty one (`sidus init` with another --state makes one)", ErrOtherSite, used)
			}
			s.ID, s.Role, s.Since, s.AsOf = site, Replica, time.Now(), time.Time{}
			if err := m.record(tx, "replica", site, "became a replica of %s", orUnknown(host)); err != nil {
				return err
			}
		}
		s.Epoch, s.Host, s.Announced = epoch, host, announced
		return putRole(tx, s)
	})
}

// used names what a catalog holds; "" if it is empty.
func used(tx *sql.Tx) (string, error) {
	for _, table := range []string{"tree", "channel", "network", "node"} {
		where := ""
		if table == "tree" {
			where = ` WHERE deleted IS NULL`
		}
		var n int
		if err := tx.QueryRow(`SELECT COUNT(*) FROM ` + table + where).Scan(&n); err != nil {
			return "", err
		}
		if n > 0 {
			return table + "s", nil
		}
	}
	return "", nil
}

func putRole(tx *sql.Tx, s Site) error {
	if s.Announced == nil {
		s.Announced = map[string]store.SnapshotID{}
	}
	announced, err := json.Marshal(s.Announced)
	if err != nil {
		return err
	}
	asOf := int64(0)
	if !s.AsOf.IsZero() {
		asOf = catalog.Millis(s.AsOf)
	}
	_, err = tx.Exec(`UPDATE site SET id = ?, epoch = ?, role = ?, since = ?, source = ?, as_of = ?, announced = ?`,
		s.ID, s.Epoch, s.Role, catalog.Millis(s.Since), s.Host, asOf, string(announced))
	return err
}

// Lag names the channels that do not point yet to what the primary announced.
func (m *Manager) Lag(ctx context.Context) (behind []string, err error) {
	err = m.catalog.View(ctx, func(tx *sql.Tx) error {
		s, err := querySite(tx)
		if err != nil || s.Role != Replica {
			return err
		}
		if s.AsOf.IsZero() {
			behind = append(behind, "no transfer has come to its end yet")
		}
		points := map[string]store.SnapshotID{}
		if err := eachRow(tx, func(name, id string) { points[name] = store.SnapshotID(id) }, `SELECT name, snapshot FROM channel`); err != nil {
			return err
		}
		if len(s.Announced) > 0 && !maps.Equal(points, s.Announced) {
			for name, id := range s.Announced {
				if points[name] != id {
					behind = append(behind, "channel "+name)
				}
			}
			for name := range points {
				if s.Announced[name] == "" {
					behind = append(behind, "channel "+name)
				}
			}
		}
		return nil
	})
	return behind, err
}

// checkRole refuses what comes from a primary unless this is a replica, and
// everything else unless this is a primary.
func checkRole(tx *sql.Tx, replicated bool) error {
	if !replicated {
		return refuseReplica(tx)
	}
	s, err := querySite(tx)
	if err == nil && s.Role != Replica {
		err = fmt.Errorf("this server is the primary since %s: %w: it takes nothing more from %s",
			s.Since.Format("2006-01-02 15:04:05"), store.ErrInUse, orUnknown(s.Host))
	}
	return err
}
