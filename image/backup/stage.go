package backup

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sidus/image"
	"sidus/image/catalog"
	"sidus/image/scratch"
	"sidus/image/store"
)

// Stage is a state in the making: a folder beside the state that it replaces,
// which nothing looks at. Install puts it in place, Discard removes it.
type Stage struct {
	Layout image.Layout // of what is staged
	target image.Layout
	folder *scratch.Folder

	before func(path string) error // called before each move; an error fails it. nil means no call
}

// NewStage makes a stage for the state folder target, which may be missing.
func NewStage(target image.Layout) (*Stage, error) {
	if err := os.MkdirAll(target.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	folder, err := target.MakeScratch("restore")
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	return &Stage{Layout: image.Layout{Dir: folder.Path()}, target: target, folder: folder}, nil
}

// Discard removes the stage. After Install it removes nothing of the state.
func (s *Stage) Discard() error { return s.folder.Remove() }

// TakeCatalog stages a copy of a catalog, such as the one that is kept in the
// store. ErrDamaged if it is empty, which SQLite would take for a new one.
func (s *Stage) TakeCatalog(r io.Reader) error {
	file, err := os.OpenFile(s.Layout.Catalog(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(file, r)
	if err == nil && n == 0 {
		err = fmt.Errorf("%w: the copy of the catalog is empty", ErrDamaged)
	}
	return errors.Join(err, file.Sync(), file.Close())
}

// Prepare checks the staged catalog, brings its schema up to date and forgets
// what processes were doing when the copy was taken: what they made since
// belongs to the newer catalog and must not be taken for left over. Any head may
// have been written to since. change
// runs in the same transaction; it may be nil.
func (s *Stage) Prepare(ctx context.Context, change func(tx *sql.Tx) error) (err error) {
	cat, err := catalog.Open(ctx, s.Layout.Catalog())
	if errors.Is(err, catalog.ErrNewer) {
		return fmt.Errorf("%w: %w", ErrNewer, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer func() { err = errors.Join(err, cat.Close()) }()
	return cat.Update(ctx, func(tx *sql.Tx) error {
		var verdict string
		if err := tx.QueryRow(`PRAGMA quick_check(1)`).Scan(&verdict); err != nil || verdict != "ok" {
			return fmt.Errorf("%w: the catalog: %s", ErrDamaged, errors.Join(errors.New(verdict), err))
		}
		if _, err := tx.Exec(`DELETE FROM intent; UPDATE tree SET touched = TRUE`); err != nil {
			return fmt.Errorf("%w: the catalog: %w", ErrDamaged, err)
		}
		if change == nil {
			return nil
		}
		return change(tx)
	})
}

// Occupied tells whether there is a state in the folder that Install would
// replace.
func Occupied(layout image.Layout) bool {
	for _, path := range []string{layout.Catalog(), layout.SiteKey()} {
		if _, err := os.Lstat(path); err == nil {
			return true
		}
	}
	return false
}

// Install puts what is staged in place of what is there, which is kept aside
// in a folder whose path is returned ("" if there was nothing). What is not
// staged stays. The catalog leaves first and arrives last, so that a state that
// is half-way replaced is no state for any command. It is refused, with an
// error that wraps store.ErrInUse, while a process has the catalog open.
func (s *Stage) Install(now time.Time) (aside string, err error) {
	if users := usersOf(s.target.Catalog()); len(users) > 0 {
		return "", fmt.Errorf("the state in %s: %w by %s: stop it first", s.target.Dir, store.ErrInUse, strings.Join(users, ", "))
	}
	arrive, err := names(s.Layout.Dir)
	if err != nil {
		return "", err
	}
	slices.SortFunc(arrive, catalogLast)
	leave, err := s.replaced(arrive)
	if err != nil {
		return "", err
	}
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, back := range slices.Backward(undo) {
			err = errors.Join(err, back())
		}
	}()
	move := func(from, to string) error {
		if s.before != nil {
			if err := s.before(to); err != nil {
				return err
			}
		}
		if err := os.Rename(from, to); err != nil {
			return err
		}
		undo = append(undo, func() error { return os.Rename(to, from) })
		return nil
	}
	folder := ""
	if len(leave) > 0 {
		if folder, err = makeAside(s.target.Dir, now); err != nil {
			return "", err
		}
		undo = append(undo, func() error { return os.Remove(folder) })
	}
	for _, name := range leave {
		if err := move(filepath.Join(s.target.Dir, name), filepath.Join(folder, name)); err != nil {
			return "", err
		}
	}
	for i, name := range arrive {
		if i == len(arrive)-1 {
			// All else is durable before the catalog makes it count.
			if err := syncDir(s.target.Dir); err != nil {
				return "", err
			}
		}
		if err := move(filepath.Join(s.Layout.Dir, name), filepath.Join(s.target.Dir, name)); err != nil {
			return "", err
		}
	}
	if err := syncDir(s.target.Dir); err != nil {
		return "", err
	}
	return folder, nil
}

// makeAside makes a folder for what is replaced.
func makeAside(dir string, now time.Time) (path string, err error) {
	name := filepath.Join(dir, asidePrefix+now.Format("20060102-150405"))
	for n := 1; ; n++ {
		path = name
		if n > 1 {
			path += fmt.Sprintf(".%d", n)
		}
		if err := os.Mkdir(path, 0o700); !errors.Is(err, fs.ErrExist) {
			return path, err
		}
	}
}

// replaced lists what has to leave for what arrives, the catalog first.
func (s *Stage) replaced(arrive []string) ([]string, error) {
	there, err := names(s.target.Dir)
	if err != nil {
		return nil, err
	}
	there = slices.DeleteFunc(there, func(name string) bool {
		return !slices.Contains(arrive, name) && !strings.HasPrefix(name, catalogName)
	})
	slices.SortFunc(there, catalogLast)
	slices.Reverse(there)
	return there, nil
}

// catalogLast orders names so that the catalog's are last.
func catalogLast(a, b string) int {
	rank := func(name string) int {
		switch {
		case name == catalogName:
			return 2
		case strings.HasPrefix(name, catalogName):
			return 1
		}
		return 0
	}
	return rank(a) - rank(b)
}

func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	list := make([]string, len(entries))
	for i, entry := range entries {
		list[i] = entry.Name()
	}
	return list, nil
}

// usersOf names the processes that have a file open, as proc(5) shows them.
func usersOf(path string) (users []string) {
	want, err := os.Stat(path)
	if err != nil {
		return nil
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range processes {
		pid, _ := strconv.Atoi(filepath.Base(process))
		handles, _ := filepath.Glob(process + "/fd/*")
		if slices.ContainsFunc(handles, func(handle string) bool {
			info, err := os.Stat(handle)
			return err == nil && os.SameFile(info, want)
		}) {
			words, _ := os.ReadFile(process + "/cmdline")
			users = append(users, fmt.Sprintf("process %d (`%s`)", pid, strings.TrimSpace(strings.ReplaceAll(string(words), "\x00", " "))))
		}
	}
	return users
}
