package node

import (
	"context"
	"database/sql"
	"fmt"

	"sidus/boot/protocol"
	"sidus/image/catalog"
	"sidus/image/store"
)

// UserKind says how a snapshot is used.
type UserKind string

// The kinds of users.
const (
	UserPin     UserKind = "pin"     // a node is pinned to it
	UserSession UserKind = "session" // a live session boots or runs it
	UserUpdate  UserKind = "update"  // a live session takes it, or has taken it, by a live update
)

// User is a node that needs a snapshot.
type User struct {
	Kind     UserKind         `json:"kind"`
	Snapshot store.SnapshotID `json:"snapshot"`
	MAC      MAC              `json:"mac"`
	Node     string           `json:"node"` // its name, or hardware address
	// Session is set for UserSession and UserUpdate.
	Session protocol.SessionID `json:"session,omitempty"`
	// Text is a sentence for people.
	Text string `json:"text"`
}

// UsersOf says which nodes need a snapshot: those that are pinned to it, and
// those whose session has not ended.
func (r *Registry) UsersOf(ctx context.Context, id store.SnapshotID) ([]User, error) {
	var users []User
	err := r.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		users, err = UsersOf(tx, id)
		return err
	})
	return users, err
}

// SnapshotsInUse is UsersOf for every snapshot that a node needs.
func (r *Registry) SnapshotsInUse(ctx context.Context) (map[store.SnapshotID][]User, error) {
	inUse := map[store.SnapshotID][]User{}
	err := r.catalog.View(ctx, func(tx *sql.Tx) error {
		users, err := usersOf(tx, "")
		for _, user := range users {
			inUse[user.Snapshot] = append(inUse[user.Snapshot], user)
		}
		return err
	})
	return inUse, err
}

// UsersOf says which nodes need a snapshot, as Registry.UsersOf does, in the
// transaction in which the snapshot is to be deleted: no node can begin to
// need it in between.
func UsersOf(tx *sql.Tx, id store.SnapshotID) ([]User, error) { return usersOf(tx, id) }

// usersOf returns the users of all snapshots if id is "".
func usersOf(tx *sql.Tx, id store.SnapshotID) ([]User, error) {
	var users []User
	nodes, err := collect(tx, scanNode, `SELECT `+nodeColumns+` FROM node WHERE pin <> '' AND (? = '' OR pin = ?) ORDER BY name, mac`,
		string(id), string(id))
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		users = append(users, User{
			Kind: UserPin, Snapshot: n.Pin, MAC: n.MAC, Node: n.Label(),
			Text: fmt.Sprintf("node %s is pinned to it", n.Label()),
		})
	}
	sessions, err := collect(tx, scanSession, selectSession+` WHERE s.ended IS NULL AND (? = '' OR s.snapshot = ?) ORDER BY d.name, s.mac, s.opened`,
		string(id), string(id))
	if err != nil {
		return nil, err
	}
	for _, s := range sessions {
		verb := "boots"
		if s.running() {
			verb = "runs"
		}
		users = append(users, User{
			Kind: UserSession, Snapshot: s.Snapshot.ID, MAC: s.MAC, Node: s.Label(), Session: s.ID,
			Text: fmt.Sprintf("node %s %s it since %s, last heard %s", s.Label(), verb, stamp(s.Opened), stamp(s.Heard)),
		})
	}
	updates, err := collect(tx, scanUpdateUser, `SELECT u.snapshot, u.session, s.mac, COALESCE(d.name, ''), MIN(u.ordered), s.heard
		FROM live_update u JOIN session s ON s.id = u.session LEFT JOIN node d ON d.mac = s.mac
		WHERE u.held = 1 AND s.ended IS NULL AND (? = '' OR u.snapshot = ?) GROUP BY u.session, u.snapshot
		ORDER BY d.name, s.mac, u.id`, string(id), string(id))
	return append(users, updates...), err
}

func scanUpdateUser(rows *sql.Rows) (User, error) {
	user := User{Kind: UserUpdate}
	var mac, name string
	var ordered, heard int64
	if err := rows.Scan(&user.Snapshot, &user.Session, &mac, &name, &ordered, &heard); err != nil {
		return user, err
	}
	var err error
	if user.MAC, err = ParseMAC(mac); err != nil {
		return user, err
	}
	user.Node = Node{MAC: user.MAC, Name: name}.Label()
	user.Text = fmt.Sprintf("node %s has it by a live update ordered at %s, last heard %s",
		user.Node, stamp(catalog.Time(ordered)), stamp(catalog.Time(heard)))
	return user, nil
}
