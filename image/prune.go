package image

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Prune is a file, or a folder with its files, of the state folder that is not
// needed any more.
type Prune struct {
	Path  string    `json:"path"` // absolute
	Kind  PruneKind `json:"kind"`
	Bytes int64     `json:"bytes"`
}

// PruneKind says what a Prune is.
type PruneKind string

// The kinds of what is pruned.
const (
	PruneIndex   PruneKind = "index"   // the index of a snapshot that is gone
	PruneLog     PruneKind = "log"     // the logs of an old build
	PrunePackage PruneKind = "package" // a downloaded package
)

// pruneAfter is the age from which a half-written index is left over: nobody
// builds one for that long.
const pruneAfter = 24 * time.Hour

// planPrune finds what Collect would remove of caches and logs.
func (m *Manager) planPrune(ctx context.Context, options GCOptions) ([]Prune, error) {
	list, err := m.pruneIndexes(ctx, options.Now)
	if err != nil {
		return nil, err
	}
	logs, err := m.pruneLogs(options.Logs)
	if err != nil {
		return nil, err
	}
	list = append(list, logs...)
	if !options.Packages {
		return list, nil
	}
	packages, err := m.prunePackages()
	return append(list, packages...), err
}

func (m *Manager) pruneIndexes(ctx context.Context, now time.Time) ([]Prune, error) {
	known, err := m.knowledge(ctx)
	if err != nil {
		return nil, err
	}
	folder := filepath.Dir(m.layout.Index(""))
	entries, err := readDir(folder)
	if err != nil {
		return nil, err
	}
	var list []Prune
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue // gone meanwhile, or nothing of ours
		}
		id, isIndex := strings.CutSuffix(entry.Name(), ".index")
		isIndex = isIndex && !strings.HasPrefix(id, ".")
		orphan := isIndex && known.named[id] == "" && !known.intended[id]
		halfWritten := !isIndex && strings.HasPrefix(id, ".") && now.Sub(info.ModTime()) > pruneAfter
		if orphan || halfWritten {
			list = append(list, Prune{filepath.Join(folder, entry.Name()), PruneIndex, info.Size()})
		}
	}
	return list, nil
}

// pruneLogs finds the logs of all builds but the newest keep.
func (m *Manager) pruneLogs(keep int) ([]Prune, error) {
	if keep < 0 {
		return nil, nil
	}
	entries, err := readDir(m.layout.Logs())
	if err != nil {
		return nil, err
	}
	type log struct {
		path string
		at   time.Time
	}
	var logs []log
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil {
			logs = append(logs, log{filepath.Join(m.layout.Logs(), entry.Name()), info.ModTime()})
		}
	}
	slices.SortFunc(logs, func(a, b log) int { return cmp.Or(b.at.Compare(a.at), cmp.Compare(b.path, a.path)) })
	var list []Prune
	for _, l := range logs[min(keep, len(logs)):] {
		list = append(list, Prune{l.path, PruneLog, sizeBelow(l.path)})
	}
	return list, nil
}

func (m *Manager) prunePackages() ([]Prune, error) {
	folder := filepath.Join(m.layout.Cache(), "packages")
	entries, err := readDir(folder)
	if err != nil {
		return nil, err
	}
	var list []Prune
	for _, entry := range entries {
		path := filepath.Join(folder, entry.Name())
		list = append(list, Prune{path, PrunePackage, sizeBelow(path)})
	}
	return list, nil
}

// readDir lists a folder; one that is missing is empty.
func readDir(folder string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

// sizeBelow adds up the sizes of the files below path, in bytes. What vanishes
// meanwhile counts nothing.
func sizeBelow(path string) (sum int64) {
	_ = filepath.WalkDir(path, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return nil
	})
	return sum
}

// prune removes what planPrune found.
func (m *Manager) prune(ctx context.Context, list []Prune) (files int, bytes int64, err error) {
	var errs []error
	for _, p := range list {
		if ctx.Err() != nil {
			return files, bytes, errors.Join(append(errs, ctx.Err())...)
		}
		if err := os.RemoveAll(p.Path); err != nil {
			errs = append(errs, err)
			continue
		}
		files++
		bytes += p.Bytes
	}
	return files, bytes, errors.Join(errs...)
}
