package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// copyFiles is a files phase.
func copyFiles(ctx context.Context, p *Phase, root string, say func(string)) error {
	tree, err := openTree(root)
	if err != nil {
		return err
	}
	defer tree.close()
	for _, e := range p.Files.Entries {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		say(e.To)
		if err := copyEntry(ctx, p, e, tree); err != nil {
			return fmt.Errorf("%s:%d: %w", p.File, e.line, err)
		}
	}
	return nil
}

func copyEntry(ctx context.Context, p *Phase, e File, tree *inTree) error {
	var o ownership
	var err error
	if o.uid, err = tree.id("etc/passwd", e.Owner); err != nil {
		return fmt.Errorf("owner: %w", err)
	}
	if o.gid, err = tree.id("etc/group", e.Group); err != nil {
		return fmt.Errorf("group: %w", err)
	}
	if e.Mode != "" {
		mode, err := strconv.ParseUint(e.Mode, 8, 12)
		if err != nil {
			return fmt.Errorf("mode: %w", err)
		}
		o.mode = uint32(mode)
	}
	switch {
	case e.Content != nil:
		if e.Mode == "" {
			o.mode = 0o644
		}
		return tree.put(e.To, strings.NewReader(*e.Content), o)
	case e.Link != "":
		return tree.link(e.To, e.Link, o)
	}
	return copyFrom(ctx, p, e, tree, o)
}

// copyFrom copies a file or a folder from beside the recipe. Folders that are
// in the tree already keep their owner and mode.
func copyFrom(ctx context.Context, p *Phase, e File, tree *inTree, o ownership) error {
	source, err := os.OpenRoot(p.dir())
	if err != nil {
		return err
	}
	defer source.Close()
	return walkFrom(source, e.From, func(name string, info fs.FileInfo) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		below, err := filepath.Rel(e.From, name)
		if err != nil {
			return err
		}
		target := path.Join(e.To, filepath.ToSlash(below))
		switch {
		case info.IsDir():
			fd, err := tree.folder(target)
			if err == nil {
				_ = os.NewFile(uintptr(fd), target).Close()
			}
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := source.Readlink(name)
			if err != nil {
				return err
			}
			return tree.link(target, to, o)
		}
		own := o
		if e.Mode == "" {
			own.mode = uint32(treeMode(info).Perm())
		}
		if e.Template {
			text, err := readTemplate(source, name, p.Vars)
			if err != nil {
				return err
			}
			return tree.put(target, bytes.NewReader(text), own)
		}
		f, err := source.Open(name)
		if err != nil {
			return err
		}
		return errors.Join(tree.put(target, f, own), f.Close())
	})
}
