package index

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkBuild builds the index of SIDUS_BENCH_TREE, or of /usr/include.
func BenchmarkBuild(b *testing.B) {
	root := os.Getenv("SIDUS_BENCH_TREE")
	if root == "" {
		root = "/usr/include"
	}
	dst := filepath.Join(b.TempDir(), "index")
	for b.Loop() {
		if _, err := Build(context.Background(), root, dst, Options{}); err != nil {
			b.Fatal(err)
		}
	}
	x, err := Open(dst)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(x.Len()), "inodes")
	b.ReportMetric(float64(len(x.data))/float64(x.Len()), "bytes/inode")
	_ = x.Close()
}

// BenchmarkFind looks up the last name of the root directory.
func BenchmarkFind(b *testing.B) {
	root := b.TempDir()
	for i := range 1000 {
		if err := os.WriteFile(filepath.Join(root, string(rune('a'+i%26))+filepath.Base(root)+string(rune('a'+i/26))), nil, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	dst := filepath.Join(b.TempDir(), "index")
	if _, err := Build(context.Background(), root, dst, Options{}); err != nil {
		b.Fatal(err)
	}
	x, err := Open(dst)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	var a Attr
	x.Attr(Root, &a)
	name, _ := x.Entries(&a).At(x.Entries(&a).Len() - 1)
	b.ReportAllocs()
	for b.Loop() {
		x.Attr(Root, &a)
		entries := x.Entries(&a)
		if entries.Find(name) == 0 {
			b.Fatal("not found")
		}
	}
}
