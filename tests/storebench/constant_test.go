package storebench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sidus/image"
	"sidus/image/catalog"
	"sidus/image/store"
)

// The files of the two trees that are compared.
const (
	few  = 50
	many = 5000
)

// BenchmarkConstant measures branch, snapshot and rollback on a tree of few
// files and on one of a hundred times as many, by turns. Each begins with a
// head in which one file was written.
func BenchmarkConstant(b *testing.B) {
	m := newManager(b, newStore(b))
	trees := [2]*tree{newTree(b, m, "few", few), newTree(b, m, "many", many)}
	for _, c := range []struct {
		name string
		do   func(b *testing.B, t *tree) (undo func() error)
	}{
		{"Branch", func(b *testing.B, t *tree) func() error {
			made, err := m.Branch(b.Context(), t.base, "branch")
			if err != nil {
				b.Fatal(err)
			}
			return func() error { return m.DeleteTree(b.Context(), made.Name, false) }
		}},
		{"Snapshot", func(b *testing.B, t *tree) func() error {
			s, err := m.Snapshot(b.Context(), t.name, nil, false, image.SnapshotOptions{})
			if err != nil {
				b.Fatal(err)
			}
			return func() error {
				_, err := m.Rollback(b.Context(), t.name, t.base, false)
				return errors.Join(err, m.DeleteSnapshot(b.Context(), s.ID))
			}
		}},
		{"Rollback", func(b *testing.B, t *tree) func() error {
			report, err := m.Rollback(b.Context(), t.name, t.base, false)
			if err != nil {
				b.Fatal(err)
			}
			if report.Saved == nil {
				b.Fatal("what was written was not saved")
			}
			return func() error { return m.DeleteSnapshot(b.Context(), report.Saved.ID) }
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var took [2][]time.Duration
			for b.Loop() {
				for i, t := range trees {
					t.write(b, m, "changed", 1)
					begin := time.Now()
					undo := c.do(b, t)
					took[i] = append(took[i], time.Since(begin))
					if err := undo(); err != nil {
						b.Fatal(err)
					}
				}
			}
			small, large := median(took[0]), median(took[1])
			b.ReportMetric(small.Seconds()*1e3, "ms-few-files")
			b.ReportMetric(large.Seconds()*1e3, "ms-100-times-as-many")
			b.ReportMetric(large.Seconds()/small.Seconds(), "ratio")
		})
	}
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

func newManager(b *testing.B, s store.Store) *image.Manager {
	b.Helper()
	layout := image.Layout{Dir: b.TempDir()}
	if err := layout.Make(); err != nil {
		b.Fatal(err)
	}
	c, err := catalog.Create(b.Context(), layout.Catalog())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	})
	return image.New(image.Options{Layout: layout, Catalog: c, Store: s, Actor: catalog.Actor{User: "bench", Command: "bench"}})
}

// tree is one tree of a Manager.
type tree struct {
	name string
	base store.SnapshotID
}

// newTree makes a tree with a snapshot of so many files.
func newTree(b *testing.B, m *image.Manager, name string, files int) *tree {
	b.Helper()
	if _, err := m.CreateTree(b.Context(), name); err != nil {
		b.Fatal(err)
	}
	t := &tree{name: name}
	t.write(b, m, "file", files)
	s, err := m.Snapshot(b.Context(), name, nil, false, image.SnapshotOptions{})
	if err != nil {
		b.Fatal(err)
	}
	t.base = s.ID
	return t
}

// write writes files into the head.
func (t *tree) write(b *testing.B, m *image.Manager, prefix string, files int) {
	b.Helper()
	lock, err := m.LockHead(b.Context(), t.name, false)
	if err != nil {
		b.Fatal(err)
	}
	mount, err := m.MountHead(b.Context(), lock)
	if err != nil {
		b.Fatal(err)
	}
	for n := range files {
		dir := filepath.Join(mount.Path(), fmt.Sprint(n/100))
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, fmt.Sprint(prefix, n)), []byte(time.Now().String()), 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(mount.Unmount(b.Context()), lock.Release()); err != nil {
		b.Fatal(err)
	}
}
