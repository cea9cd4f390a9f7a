package image

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/tool"
)

// Progress is told how far a long work has come: how many of total files (0:
// the total is not known) are done. It may be nil.
type Progress func(done, total int64)

// FillFromDirectory returns a Fill that copies a directory with all that a
// file can have: owners, modes, times, links, extended attributes, ACLs, holes.
// Other file systems that are mounted below it are left out.
func FillFromDirectory(source string, progress Progress) (Fill, error) {
	source, err := filepath.Abs(source)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(source)
	if err != nil {
		return nil, fmt.Errorf("--dir: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("--dir %s: %w: it is not a directory; --tar takes an archive", source, store.ErrBadName)
	}
	return func(ctx context.Context, root string, room func(int64) error) error {
		total, bytes, err := measure(ctx, source)
		if err != nil {
			return err
		}
		if err := room(bytes); err != nil {
			return err
		}
		lines := &lineCounter{total: total, progress: progress}
		err = tool.Run(ctx, tool.Options{Stdout: lines}, "cp", "-a", "-x", "-v", "--sparse=auto", "--", source+"/.", root)
		if err != nil {
			return fmt.Errorf("copy %s: %w", source, err)
		}
		return nil
	}, nil
}

// measure tells how many files a directory holds, and how much space they take,
// in bytes, without what is mounted below it.
func measure(ctx context.Context, root string) (files, bytes int64, err error) {
	var top unix.Stat_t
	if err := unix.Stat(root, &top); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: root, Err: err}
	}
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err != nil {
			return ctx.Err() // what cannot be read is cp's to report
		}
		if path != root && st.Dev != top.Dev {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return ctx.Err()
		}
		files++
		bytes += st.Blocks * 512 / max(1, int64(st.Nlink)) // as many times as it has names
		return ctx.Err()
	})
	return files, bytes, err
}

// FillFromTar returns a Fill that unpacks an archive of tar(1), compressed with
// gzip, bzip2, xz, zstd or not at all. The path "-" is standard input.
func FillFromTar(path string, progress Progress) (Fill, error) {
	file := os.Stdin
	if path != "-" {
		opened, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("--tar: %w", err)
		}
		if info, err := opened.Stat(); err != nil || info.IsDir() {
			opened.Close()
			return nil, fmt.Errorf("--tar %s: %w: it is a directory; --dir takes one", path, store.ErrBadName)
		}
		file = opened
	}
	return func(ctx context.Context, root string, room func(int64) error) error {
		defer file.Close()
		size := int64(0) // of a pipe nobody knows it
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
		stoppable, stop := whileContext(ctx, file)
		defer stop()
		input := bufio.NewReaderSize(stoppable, 1<<20)
		lines := &lineCounter{progress: progress}
		args := compression(input)
		if len(args) > 0 {
			size *= usualRatio
		}
		if err := room(size); err != nil {
			return err
		}
		args = append(args, "-x", "-v", "-p", "-f", "-", "-C", root,
			"--numeric-owner", "--same-owner", "--acls", "--xattrs", "--xattrs-include=*", "--delay-directory-restore")
		if err := tool.Run(ctx, tool.Options{Stdin: input, Stdout: lines}, "tar", args...); err != nil {
			return fmt.Errorf("unpack %s: %w", path, err)
		}
		if lines.done == 0 {
			return fmt.Errorf("unpack %s: %w: the archive is empty", path, store.ErrBadName)
		}
		return nil
	}, nil
}

// usualRatio is how many times as large as its compressed archive a system is,
// rather too few than too many.
const usualRatio = 3

// whileContext returns what reads from r until ctx ends: a pipe that nobody
// writes to would be waited for, whatever the user says. A read that is under
// way then goes on in the background.
func whileContext(ctx context.Context, r io.Reader) (reader io.Reader, stop func()) {
	out, in := io.Pipe()
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{in}, struct{ io.Reader }{r}, make([]byte, 1<<20))
		_ = in.CloseWithError(err)
	}()
	unwatch := context.AfterFunc(ctx, func() { _ = out.CloseWithError(context.Cause(ctx)) })
	return out, func() {
		unwatch()
		_ = out.Close()
	}
}

// compression looks at the first bytes for tar's option: tar itself cannot
// find it out from a pipe.
func compression(r *bufio.Reader) []string {
	head, _ := r.Peek(6) // a shorter archive is tar's to refuse
	for _, c := range []struct {
		magic  string
		option string
	}{{"\x1f\x8b", "--gzip"}, {"BZh", "--bzip2"}, {"\xfd7zXZ\x00", "--xz"}, {"\x28\xb5\x2f\xfd", "--zstd"}} {
		if bytes.HasPrefix(head, []byte(c.magic)) {
			return []string{c.option}
		}
	}
	return nil
}

// lineCounter counts the lines that a program prints, one a file.
type lineCounter struct {
	done, total int64
	progress    Progress
}

func (l *lineCounter) Write(p []byte) (int, error) {
	l.done += int64(bytes.Count(p, []byte("\n")))
	if l.progress != nil {
		l.progress(l.done, l.total)
	}
	return len(p), nil
}
