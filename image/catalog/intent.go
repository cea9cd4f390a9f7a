package catalog

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"sidus/image/store"
)

// Intent is what a process is about to do to the store. It is on record
// before the store is touched and removed in the transaction that makes the
// result visible, so that whoever finds one whose process is dead knows what
// may be left over.
type Intent struct {
	ID        int64
	Action    string             // snapshot, branch, rollback, delete, …
	Volumes   []store.VolumeID   // volumes that are made or destroyed
	Snapshots []store.SnapshotID // snapshots that are made or destroyed
	Uses      []store.SnapshotID // snapshots that must stay meanwhile
	Actor     Actor
	Process   Process
	At        time.Time
}

// Process names one process for ever: a PID alone is used again.
type Process struct {
	PID     int
	Started int64  // clock ticks since boot, proc(5) stat field 22
	Boot    string // the machine's boot_id
}

// CurrentProcess is the process that calls it.
func CurrentProcess() Process {
	started, _ := startTime(os.Getpid())
	return Process{PID: os.Getpid(), Started: started, Boot: bootID()}
}

// Alive tells whether the process still runs.
func (p Process) Alive() bool {
	if p.Boot != bootID() {
		return false
	}
	started, err := startTime(p.PID)
	return err == nil && started == p.Started
}

var bootID = sync.OnceValue(func() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
})

func startTime(pid int) (int64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses and may hold
	// anything; field 3 is the state, 22 the start time.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields)+2)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseInt(fields[19], 10, 64)
}

// Begin records an intent of this process and returns its ID.
func Begin(tx *sql.Tx, intent Intent) (int64, error) {
	process := CurrentProcess()
	result, err := tx.Exec(`INSERT INTO intent (action, volumes, snapshots, uses, actor, command, pid, started, boot, at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		intent.Action, jsonList(intent.Volumes), jsonList(intent.Snapshots), jsonList(intent.Uses),
		intent.Actor.User, intent.Actor.Command, process.PID, process.Started, process.Boot, Millis(time.Now()))
	if err != nil {
		return 0, fmt.Errorf("catalog: record what is about to be done: %w", err)
	}
	return result.LastInsertId()
}

// SetUses replaces the snapshots that must stay while an intent is there.
func SetUses(tx *sql.Tx, id int64, uses []store.SnapshotID) error {
	if _, err := tx.Exec(`UPDATE intent SET uses = ? WHERE id = ?`, jsonList(uses), id); err != nil {
		return fmt.Errorf("catalog: change the intent %d: %w", id, err)
	}
	return nil
}

// End removes an intent.
func End(tx *sql.Tx, id int64) error {
	if _, err := tx.Exec(`DELETE FROM intent WHERE id = ?`, id); err != nil {
		return fmt.Errorf("catalog: end the intent %d: %w", id, err)
	}
	return nil
}

// Abandon gives up an intent: whoever finds it cleans up, as if its process were
// dead.
func Abandon(tx *sql.Tx, id int64) error {
	if _, err := tx.Exec(`UPDATE intent SET pid = 0, boot = '' WHERE id = ?`, id); err != nil {
		return fmt.Errorf("catalog: give up the intent %d: %w", id, err)
	}
	return nil
}

// Inherit makes the intent of a dead process one of this process, so that
// nobody else cleans up what it names. mine is false if it has ended, or is that
// of a live process.
func Inherit(tx *sql.Tx, id int64) (mine bool, err error) {
	var of Process
	err = tx.QueryRow(`SELECT pid, started, boot FROM intent WHERE id = ?`, id).Scan(&of.PID, &of.Started, &of.Boot)
	if errors.Is(err, sql.ErrNoRows) || err == nil && of.Alive() {
		return false, nil
	}
	if err == nil {
		process := CurrentProcess()
		_, err = tx.Exec(`UPDATE intent SET pid = ?, started = ?, boot = ? WHERE id = ?`, process.PID, process.Started, process.Boot, id)
	}
	if err != nil {
		return false, fmt.Errorf("catalog: take over the intent %d: %w", id, err)
	}
	return true, nil
}

// Intents returns all that is on record, the oldest first.
func Intents(tx *sql.Tx) ([]Intent, error) {
	rows, err := tx.Query(`SELECT id, action, volumes, snapshots, uses, actor, command, pid, started, boot, at FROM intent ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("catalog: read the intents: %w", err)
	}
	defer rows.Close()
	var intents []Intent
	for rows.Next() {
		var i Intent
		var volumes, snapshots, uses []byte
		var at int64
		err := rows.Scan(&i.ID, &i.Action, &volumes, &snapshots, &uses, &i.Actor.User, &i.Actor.Command,
			&i.Process.PID, &i.Process.Started, &i.Process.Boot, &at)
		if err != nil {
			return nil, fmt.Errorf("catalog: read the intents: %w", err)
		}
		i.At = Time(at)
		for _, field := range []struct {
			text []byte
			list any
		}{{volumes, &i.Volumes}, {snapshots, &i.Snapshots}, {uses, &i.Uses}} {
			if err := json.Unmarshal(field.text, field.list); err != nil {
				return nil, fmt.Errorf("catalog: intent %d: %w", i.ID, err)
			}
		}
		intents = append(intents, i)
	}
	return intents, rows.Err()
}

func jsonList[T ~string](list []T) string {
	if list == nil {
		list = []T{}
	}
	text, err := json.Marshal(list)
	if err != nil {
		panic(err) // a list of strings is always encodable
	}
	return string(text)
}
