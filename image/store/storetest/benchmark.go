package storetest

import (
	"testing"

	"sidus/image/store"
)

// Benchmark measures the operations whose cost must not depend on what a tree
// holds, on a tree of 2,000 files.
func Benchmark(b *testing.B, factory Factory) {
	prepare := func(b *testing.B) (store.Store, store.VolumeID, store.SnapshotID) {
		s := factory(b).Store
		v := create(b, s)
		change(b, s, v, Many("many", 2000))
		return s, v, snapshot(b, s, v)
	}
	b.Run("CreateVolume", func(b *testing.B) {
		s := factory(b).Store
		for b.Loop() {
			create(b, s)
		}
	})
	b.Run("Snapshot", func(b *testing.B) {
		s, v, _ := prepare(b)
		for b.Loop() {
			snapshot(b, s, v)
		}
	})
	b.Run("Clone", func(b *testing.B) {
		s, _, id := prepare(b)
		for b.Loop() {
			clone(b, s, id)
		}
	})
	b.Run("MountSnapshot", func(b *testing.B) {
		s, _, id := prepare(b)
		for b.Loop() {
			unmount(b, mounted(b, s, store.Item{Kind: store.KindSnapshot, Snapshot: id}))
		}
	})
	b.Run("CloneAndDestroy", func(b *testing.B) {
		s, _, id := prepare(b)
		for b.Loop() {
			if err := s.DestroyVolume(b.Context(), clone(b, s, id)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("List", func(b *testing.B) {
		s, v, _ := prepare(b)
		for range 100 {
			snapshot(b, s, v)
		}
		for b.Loop() {
			if _, err := s.List(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Usage", func(b *testing.B) {
		s := factory(b).Store
		for b.Loop() {
			if _, err := s.Usage(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
