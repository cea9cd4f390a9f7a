package main

import (
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// makeTree makes a tree that is like that of a small Debian: 11,000 files in
// 1,300 directories, most of them small, some 400 MB, and symlinks. It is the
// same each time.
func makeTree(root string) error {
	random := rand.New(rand.NewPCG(7, 7))
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	for d := range 1260 {
		dir := filepath.Join(root, fmt.Sprintf("part%d", d%60), fmt.Sprintf("folder%d", d/60))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for f := range 9 {
			size := int(math.Exp(7.9 + 2.2*random.NormFloat64()))
			if err := writeFile(filepath.Join(dir, fmt.Sprintf("file%d", f)), data, min(size, 16<<20)); err != nil {
				return err
			}
		}
		if err := os.Symlink("file3", filepath.Join(dir, "link")); err != nil {
			return err
		}
	}
	for f := range 6 {
		if err := writeFile(filepath.Join(root, fmt.Sprintf("large%d", f)), data, 16<<20); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(path string, data []byte, size int) error {
	f, err := os.Create(path)
	for ; size > 0 && err == nil; size -= len(data) {
		_, err = f.Write(data[:min(size, len(data))])
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// dropCaches takes the files of a tree out of the page cache.
func dropCaches(root string) error {
	unix.Sync() // dirty pages stay
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}
