package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// keyFormat is part of every key. It is raised when the same recipe must give
// another tree, so that everything is built anew.
const keyFormat = 1

// Inputs is all that decides what a phase makes, but for its parent.
type Inputs struct {
	Format int             `json:"format"`
	Kind   Kind            `json:"kind"`
	Step   json.RawMessage `json:"step"` // canonical text
	Files  []FileInput     `json:"files,omitempty"`
	Boot   string          `json:"boot,omitempty"` // digest of the initramfs hook and the agent
}

// FileInput is one file that a phase copies.
type FileInput struct {
	Path   string `json:"path"` // as the recipe says it, with what is below
	Mode   uint32 `json:"mode"` // type and permissions as they will be in the tree
	Digest string `json:"digest,omitempty"`
	Link   string `json:"link,omitempty"`
}

// Key is the phase's name for the cache: 64 hexadecimal digits. parent is the
// key of the phase before it, "" for the first.
func (in Inputs) Key(parent string) string {
	text, err := json.Marshal(struct {
		Parent string `json:"parent"`
		Inputs
	}{parent, in})
	if err != nil {
		panic(err) // strings, numbers and valid JSON only
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// gather collects the inputs of every phase. It reads the files that the
// recipe copies, unless digests knows them.
func gather(ctx context.Context, r *Recipe, bootDigest string, digests *digestCache) ([]Inputs, error) {
	all := make([]Inputs, len(r.Phases))
	for i := range r.Phases {
		p := &r.Phases[i]
		step, err := json.Marshal(p.step())
		if err != nil {
			return nil, err
		}
		all[i] = Inputs{Format: keyFormat, Kind: p.Kind, Step: step}
		switch p.Kind {
		case KindBoot:
			all[i].Boot = bootDigest
		case KindBase:
			if p.Base.Keyring != "" {
				digest, err := digests.file(nil, p.Base.keyring)
				if err != nil {
					return nil, &RecipeError{File: p.File, Line: p.Line, Text: "keyring: " + underlying(err)}
				}
				all[i].Files = []FileInput{{Path: "keyring", Digest: digest}}
			}
		case KindFiles:
			for _, e := range p.Files.Entries {
				if e.From == "" {
					continue
				}
				files, err := gatherFrom(ctx, p, e, digests)
				if err != nil {
					return nil, err
				}
				all[i].Files = append(all[i].Files, files...)
			}
		}
	}
	return all, nil
}

// gatherFrom lists what one entry of a files phase copies.
func gatherFrom(ctx context.Context, p *Phase, e File, digests *digestCache) ([]FileInput, error) {
	fail := func(err error) error {
		return &RecipeError{File: p.File, Line: e.line, Text: fmt.Sprintf("from: %s: %s", e.From, underlying(err))}
	}
	root, err := os.OpenRoot(p.dir())
	if err != nil {
		return nil, fail(err)
	}
	defer root.Close()
	var list []FileInput
	err = walkFrom(root, e.From, func(name string, info fs.FileInfo) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := FileInput{Path: name, Mode: uint32(treeMode(info))}
		switch {
		case info.Mode().IsRegular():
			if f.Digest, err = digests.file(root, name); err != nil {
				return err
			}
			if e.Template {
				// The variables that it uses are part of what it becomes.
				text, err := readTemplate(root, name, p.Vars)
				if err != nil {
					return err
				}
				sum := sha256.Sum256(text)
				f.Digest = hex.EncodeToString(sum[:])
			}
		case info.Mode()&fs.ModeSymlink != 0:
			if f.Link, err = root.Readlink(name); err != nil {
				return err
			}
		}
		list = append(list, f)
		return nil
	})
	if err != nil {
		return nil, fail(err)
	}
	return list, nil
}

// walkFrom visits from and all that is below it, a folder before what it
// holds, names in order. Only files, folders and symbolic links are allowed;
// from itself may be a link to one inside of root.
func walkFrom(root *os.Root, from string, visit func(name string, info fs.FileInfo) error) error {
	info, err := root.Stat(from)
	if err != nil {
		return err
	}
	var walk func(name string, info fs.FileInfo) error
	walk = func(name string, info fs.FileInfo) error {
		if t := info.Mode().Type(); t != 0 && t != fs.ModeDir && t != fs.ModeSymlink {
			return fmt.Errorf("%s is neither a file nor a folder nor a symbolic link", name)
		}
		if err := visit(name, info); err != nil || !info.IsDir() {
			return err
		}
		folder, err := root.Open(name)
		if err != nil {
			return err
		}
		entries, err := folder.ReadDir(-1)
		folder.Close()
		if err != nil {
			return err
		}
		slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
		for _, entry := range entries {
			below := path.Join(filepath.ToSlash(name), entry.Name())
			info, err := root.Lstat(below)
			if err != nil {
				return err
			}
			if err := walk(below, info); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(from, info)
}

// treeMode is the mode that a file gets in the tree: who may execute it is
// taken over, the rest does not depend on the umask of who checked it out.
func treeMode(info fs.FileInfo) fs.FileMode {
	switch {
	case info.IsDir():
		return fs.ModeDir | 0o755
	case info.Mode()&fs.ModeSymlink != 0:
		return fs.ModeSymlink | 0o777
	case info.Mode()&0o111 != 0:
		return 0o755
	}
	return 0o644
}

// maxTemplate bounds what is read into memory for a template.
const maxTemplate = 16 << 20

func readTemplate(root *os.Root, name string, vars map[string]string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTemplate+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxTemplate {
		return nil, fmt.Errorf("%s: larger than %d bytes: not a template", name, maxTemplate)
	}
	out, err := substitute(string(text), vars)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return []byte(out), nil
}
