package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"sidus/image/store"
)

// helperPath tells the test binary that it is the second process of a test.
const helperPath = "SIDUS_CATALOG_TEST_PATH"

func TestMain(m *testing.M) {
	if path := os.Getenv(helperPath); path != "" {
		os.Exit(count(path))
	}
	os.Exit(m.Run())
}

const counts = 100

// count adds one to a number in the catalog, counts times.
func count(path string) int {
	c, err := Open(context.Background(), path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for range counts {
		err := c.Update(context.Background(), func(tx *sql.Tx) error {
			text, _, err := Meta(tx, "count")
			if err != nil {
				return err
			}
			n, _ := strconv.Atoi(text)
			return SetMeta(tx, "count", strconv.Itoa(n+1))
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if err := c.Close(); err != nil {
		return 1
	}
	return 0
}

func create(t *testing.T) *Catalog {
	t.Helper()
	c, err := Create(t.Context(), filepath.Join(t.TempDir(), "sidus.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestNoUpdateOfTwoProcessesIsLost(t *testing.T) {
	c := create(t)
	var processes []*exec.Cmd
	for range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), helperPath+"="+c.Path())
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		processes = append(processes, cmd)
	}
	for _, cmd := range processes {
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	err := c.View(t.Context(), func(tx *sql.Tx) error {
		text, _, err := Meta(tx, "count")
		if want := strconv.Itoa(len(processes) * counts); text != want {
			t.Errorf("the processes counted to %s, want %s", text, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	c := create(t)
	broken := errors.New("broken on purpose")
	err := c.Update(t.Context(), func(tx *sql.Tx) error {
		if err := SetMeta(tx, "key", "value"); err != nil {
			return err
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	err = c.View(t.Context(), func(tx *sql.Tx) error {
		if _, found, err := Meta(tx, "key"); found || err != nil {
			t.Errorf("half of a failed update is there (%v)", err)
		}
		if err := SetMeta(tx, "key", "value"); err == nil {
			t.Error("a view can write")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpen(t *testing.T) {
	if _, err := Open(t.Context(), filepath.Join(t.TempDir(), "none.db")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no catalog: %v", err)
	}
	c := create(t)
	if _, err := Create(t.Context(), c.Path()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second Create: %v", err)
	}
	if info, err := os.Stat(c.Path()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	garbage := filepath.Join(t.TempDir(), "garbage.db")
	if err := os.WriteFile(garbage, []byte("this is no database, but it is long enough to be looked at as one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), garbage); err == nil {
		t.Error("garbage is opened as a catalog")
	}
	if _, err := c.write.Exec(`PRAGMA user_version = 99`); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), c.Path()); !errors.Is(err, ErrNewer) {
		t.Errorf("a catalog from the future: %v", err)
	}
}

func TestIntentsTellTheDeadFromTheLiving(t *testing.T) {
	c := create(t)
	volume, snapshot, used := store.NewVolumeID(), store.NewSnapshotID(), store.NewSnapshotID()
	var id int64
	err := c.Update(t.Context(), func(tx *sql.Tx) (err error) {
		id, err = Begin(tx, Intent{Action: "branch", Volumes: []store.VolumeID{volume}, Snapshots: []store.SnapshotID{snapshot},
			Uses: []store.SnapshotID{used}, Actor: Actor{User: "ada", Command: "sidus branch"}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	read := func() []Intent {
		t.Helper()
		var intents []Intent
		if err := c.View(t.Context(), func(tx *sql.Tx) (err error) { intents, err = Intents(tx); return err }); err != nil {
			t.Fatal(err)
		}
		return intents
	}
	intents := read()
	if len(intents) != 1 || intents[0].Volumes[0] != volume || intents[0].Snapshots[0] != snapshot || intents[0].Uses[0] != used || intents[0].Actor.User != "ada" {
		t.Fatalf("what was recorded: %+v", intents)
	}
	if !intents[0].Process.Alive() {
		t.Error("this process is taken for dead")
	}
	ended := exec.Command("true")
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	started, err := startTime(ended.Process.Pid)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	dead := Process{PID: ended.Process.Pid, Started: started, Boot: bootID()}
	if err := ended.Wait(); err != nil {
		t.Fatal(err)
	}
	for name, process := range map[string]Process{
		"one that has ended":               dead,
		"another with the same PID":        {PID: os.Getpid(), Started: 1, Boot: bootID()},
		"the same before the last restart": {PID: os.Getpid(), Started: CurrentProcess().Started, Boot: "another"},
	} {
		if process.Alive() {
			t.Errorf("%s is taken for alive", name)
		}
	}
	if err := c.Update(t.Context(), func(tx *sql.Tx) error { return End(tx, id) }); err != nil {
		t.Fatal(err)
	}
	if left := read(); len(left) != 0 {
		t.Errorf("an ended intent is still there: %+v", left)
	}
}

func TestActorBehindSudo(t *testing.T) {
	t.Setenv("SUDO_USER", "ada")
	want := "ada"
	if os.Getuid() != 0 {
		want = os.Getenv("USER") // SUDO_USER of an ordinary user proves nothing
	}
	if got := CurrentActor(); got.User != want && os.Getuid() == 0 {
		t.Errorf("the actor is %q, want %q", got.User, want)
	}
}
