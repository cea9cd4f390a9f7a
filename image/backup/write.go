package backup

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"sidus/image"
	"sidus/image/catalog"
	"sidus/image/scratch"
)

// Write writes a backup of a state folder whose catalog is open. Other
// processes may work meanwhile: the catalog is that of one moment.
func Write(ctx context.Context, w io.Writer, layout image.Layout, cat *catalog.Catalog, program string) (m Manifest, err error) {
	folder, err := layout.MakeScratch("backup")
	if err != nil {
		return m, fmt.Errorf("backup: %w", err)
	}
	defer func() { err = errors.Join(err, folder.Remove()) }()
	work := folder.Path()
	copied := filepath.Join(work, catalogName)
	if err := cat.CopyTo(ctx, copied); err != nil {
		return m, err
	}
	host, _ := os.Hostname() // for people only
	m = Manifest{Kind: kind, Format: Format, Created: time.Now(), Program: program, Host: host, State: layout.Dir}
	sources := map[string]string{catalogName: copied}
	paths, err := list(layout.Dir)
	if err != nil {
		return m, fmt.Errorf("backup: %w", err)
	}
	paths, err = hold(layout.Dir, paths, work, sources)
	if err != nil {
		return m, fmt.Errorf("backup: %w", err)
	}
	for _, path := range append([]string{catalogName}, paths...) {
		size, sum, err := digest(sources[path])
		if err != nil {
			return m, fmt.Errorf("backup: %w", err)
		}
		m.Files = append(m.Files, File{Path: path, Size: size, SHA256: sum})
	}
	if err := archive(ctx, w, m, sources); err != nil {
		return m, fmt.Errorf("backup: %w", err)
	}
	return m, nil
}

// list finds the regular files that belong into a backup, beside the catalog.
func list(dir string) (paths []string, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil || relative == "." {
			return err
		}
		if excluded(relative) || strings.HasPrefix(entry.Name(), ".") { // not whole yet
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if entry.Type().IsRegular() {
			paths = append(paths, relative)
		}
		return nil
	})
	return paths, err
}

// hold gives each file that is there a second name in the folder work, by which
// it stays as it is when another takes its place. It fills in sources, and
// returns the files that have not gone meanwhile.
func hold(dir string, paths []string, work string, sources map[string]string) (there []string, err error) {
	for i, path := range paths {
		from, held := filepath.Join(dir, path), filepath.Join(work, strconv.Itoa(i))
		err := os.Link(from, held)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EPERM), errors.Is(err, unix.EMLINK):
			held = from // it lies on another file system, or on one without links
		case err != nil:
			return nil, err
		}
		sources[path] = held
		there = append(there, path)
	}
	return there, nil
}

func digest(path string) (size int64, sum string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer file.Close()
	hash := sha256.New()
	size, err = io.Copy(hash, file)
	return size, hex.EncodeToString(hash.Sum(nil)), err
}

func archive(ctx context.Context, w io.Writer, m Manifest, sources map[string]string) error {
	compressed, err := zstd.NewWriter(w, zstd.WithEncoderCRC(true), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	defer compressed.Close() // a second call does nothing
	out := tar.NewWriter(compressed)
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := add(out, manifestName, m.Created, int64(len(text))); err != nil {
		return err
	}
	if _, err := out.Write(text); err != nil {
		return err
	}
	for _, f := range m.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := addFile(out, m, f, sources[f.Path]); err != nil {
			return err
		}
	}
	return errors.Join(out.Close(), compressed.Close())
}

func add(out *tar.Writer, name string, at time.Time, size int64) error {
	return out.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: at.Truncate(time.Second), Typeflag: tar.TypeReg, Format: tar.FormatPAX})
}

// addFile fails if the file has changed since it was measured.
func addFile(out *tar.Writer, m Manifest, f File, source string) error {
	file, err := os.Open(source)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := add(out, f.Path, m.Created, f.Size); err != nil {
		return err
	}
	hash := sha256.New()
	if _, err := io.Copy(out, io.TeeReader(file, hash)); err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	if hex.EncodeToString(hash.Sum(nil)) != f.SHA256 {
		return fmt.Errorf("%s changes while it is read; try again", source)
	}
	return nil
}

// WriteFile is Write to a file that only its owner can read. The file appears
// whole, or not at all. If one is there, the error wraps fs.ErrExist, unless
// replace is set.
func WriteFile(ctx context.Context, path string, replace bool, layout image.Layout, cat *catalog.Catalog, program string) (m Manifest, err error) {
	file, err := scratch.NewFile(path, replace)
	if err != nil {
		return m, fmt.Errorf("backup: %w", err)
	}
	defer file.Discard()
	if m, err = Write(ctx, file, layout, cat, program); err != nil {
		return m, err
	}
	if err := file.Keep(); err != nil {
		return m, fmt.Errorf("backup: %w", err)
	}
	return m, nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
