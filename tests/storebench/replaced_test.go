package storebench

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"sidus/export/stream"
	"sidus/image/store"
	"sidus/image/tool"
)

// differenceLimit is what a difference may take, besides 1 MB, of what its files
// take by themselves.
const differenceLimit = 1.3

// BenchmarkReplaced replaces one of a hundred files, and compares the stream
// that brings them to another server with what the files take by themselves,
// compressed.
func BenchmarkReplaced(b *testing.B) {
	s := newStore(b)
	base := benchSnapshot(b, s)
	head, id := store.NewVolumeID(), store.NewSnapshotID()
	if err := s.Clone(b.Context(), base, head); err != nil {
		b.Fatal(err)
	}
	m, err := s.MountVolume(b.Context(), head)
	if err != nil {
		b.Fatal(err)
	}
	replaced, err := replaceFiles(m.Path())
	if err := errors.Join(err, m.Unmount(b.Context()), s.Snapshot(b.Context(), head, id), s.DestroyVolume(b.Context(), head)); err != nil {
		b.Fatal(err)
	}
	alone := filepath.Join(b.TempDir(), "alone")
	if err := tool.Run(b.Context(), tool.Options{Dir: mountOf(b, s, id)}, "bash",
		append([]string{"-o", "pipefail", "-c", `tar -c -- "$@" | zstd -q -T0 -o "$0"`, alone}, replaced...)...); err != nil {
		b.Fatal(err)
	}
	info, err := os.Stat(alone)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		r, err := s.Send(b.Context(), id, base)
		if err != nil {
			b.Fatal(err)
		}
		source := stream.Source{Manifest: stream.Manifest{Kind: stream.Kind(s.SendKind()), Snapshot: id, Base: base}, Native: r}
		out, err := os.Create(filepath.Join(b.TempDir(), "out"))
		if err != nil {
			b.Fatal(err)
		}
		result, err := stream.Export(b.Context(), out, source, stream.WriterOptions{})
		if err := errors.Join(err, out.Close()); err != nil {
			b.Fatal(err)
		}
		const megabyte = 1e6
		b.ReportMetric(float64(len(replaced)), "files-replaced")
		b.ReportMetric(float64(info.Size())/1e3, "kB-alone")
		b.ReportMetric(float64(result.Stream)/1e3, "kB-moved")
		above := max(0, float64(result.Stream)-megabyte) / float64(info.Size())
		b.ReportMetric(above, "ratio-above-1MB")
		if above > differenceLimit {
			b.Errorf("the difference is 1 MB and %.2f times as large as the files that were replaced, more than %v", above, differenceLimit)
		}
	}
}

// replaceFiles replaces one of a hundred files of a tree by another one of the
// same size, which compresses as well, and returns their names.
func replaceFiles(root string) (replaced []string, err error) {
	files := 0
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		if files++; files%100 != 0 {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := range text {
			text[i] ^= 0x55
		}
		if err := errors.Join(os.WriteFile(path+".new", text, 0o644), os.Rename(path+".new", path)); err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		replaced = append(replaced, name)
		return err
	})
	return replaced, err
}
