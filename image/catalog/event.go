package catalog

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// Event is one line of the history.
type Event struct {
	At      time.Time `json:"at"`
	Actor   string    `json:"actor"`
	Command string    `json:"command"`
	Action  string    `json:"action"`  // promote, snapshot, delete, node-set, …
	Object  string    `json:"object"`  // ID or name of what it was done to
	Text    string    `json:"text"`    // one line for people
	Message string    `json:"message"` // the user's --message
}

// Record adds to the history that actor did action to object.
func Record(tx *sql.Tx, actor Actor, action, object, text, message string) error {
	_, err := tx.Exec(`INSERT INTO event (at, actor, command, action, object, text, message) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		Millis(time.Now()), actor.User, actor.Command, action, object, text, message)
	if err != nil {
		return fmt.Errorf("catalog: record the %s of %s: %w", action, object, err)
	}
	return nil
}

// Events returns the newest limit events, newest first; those of object only
// if it is not empty. A limit of 0 is none.
func (c *Catalog) Events(ctx context.Context, object string, limit int) ([]Event, error) {
	if limit == 0 {
		limit = -1
	}
	var events []Event
	err := c.View(ctx, func(tx *sql.Tx) error {
		rows, err := tx.Query(`SELECT at, actor, command, action, object, text, message FROM event
			WHERE ? = '' OR object = ? ORDER BY id DESC LIMIT ?`, object, object, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var e Event
			var at int64
			if err := rows.Scan(&at, &e.Actor, &e.Command, &e.Action, &e.Object, &e.Text, &e.Message); err != nil {
				return err
			}
			e.At = Time(at)
			events = append(events, e)
		}
		return rows.Err()
	})
	return events, err
}
