package build

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// A kept recipe is a tar archive: below files/ the recipe's files and what they
// copy, each under the absolute path that it had; recipe.json is the last.

// MaxKept bounds a kept recipe, in bytes.
const MaxKept = 16 << 20

// ErrTooLarge is wrapped by the error of Pack for a recipe that copies more
// than MaxKept.
var ErrTooLarge = errors.New("the recipe and the files that it copies are too large to be kept")

const (
	keptVersion = 1
	keptLast    = "recipe.json"
	keptFiles   = "files"
)

// kept is the text of recipe.json. Fields that are not known are passed over:
// what a reader must understand raises the version.
type kept struct {
	Version int               `json:"version"`
	File    string            `json:"file"` // as it was given
	Dir     string            `json:"dir"`  // what that is relative to
	Set     map[string]string `json:"set,omitempty"`
}

// place says where the files of a recipe lie, which has its own names for
// them.
type place struct {
	root string // the folder that a kept recipe is unpacked in; "": it is none
	dir  string // the absolute path that names are relative to
}

// here is the place of recipes that are files of this machine.
func here() place {
	dir, err := os.Getwd()
	if err == nil {
		// "..", which the kernel takes for the folder above the real one, must
		// be the same when it is taken away from the path's text.
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		dir = "/" // it is gone, and no file can be found from it
	}
	return place{dir: dir}
}

// path is where a file of the recipe lies.
func (p place) path(name string) string {
	if p.root == "" {
		return name
	}
	return filepath.Join(p.root, p.absolute(name))
}

// absolute is the path of a file on the machine that the recipe is from.
func (p place) absolute(name string) string {
	if !filepath.IsAbs(name) {
		name = filepath.Join(p.dir, name)
	}
	return filepath.Clean(name)
}

// Pack returns the recipe as it can be kept: its files, the files that it
// copies and the values that were given to it. What it takes from elsewhere,
// packages and keyrings of the system, is not in it. The error wraps
// ErrTooLarge if that is more than MaxKept. The same recipe gives the same
// bytes.
func (r *Recipe) Pack(ctx context.Context) ([]byte, error) {
	a := &keptArchive{at: r.at, there: map[string]tar.Header{}}
	a.out = tar.NewWriter(&a.buffer)
	for _, p := range r.chain {
		if err := a.addOwn(p.source.file, tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}, p.text); err != nil {
			return nil, err
		}
	}
	for i := range r.Phases {
		if err := a.addPhase(ctx, &r.Phases[i]); err != nil {
			return nil, err
		}
	}
	last, err := json.Marshal(kept{Version: keptVersion, File: r.File, Dir: r.at.dir, Set: r.set})
	if err == nil {
		err = a.add(keptLast, tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}, last)
	}
	return a.buffer.Bytes(), errors.Join(err, a.out.Close())
}

// keptArchive is a kept recipe in the making.
type keptArchive struct {
	at     place
	buffer bytes.Buffer
	out    *tar.Writer
	there  map[string]tar.Header
}

// addPhase adds what a phase copies.
func (a *keptArchive) addPhase(ctx context.Context, p *Phase) error {
	if p.Kind == KindBase && p.Base.beside {
		text, err := readBounded(os.Open, p.Base.keyring)
		if err != nil {
			return fmt.Errorf("keyring: %w", err)
		}
		return a.addOwn(p.Base.Keyring, tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}, text)
	}
	if p.Kind != KindFiles {
		return nil
	}
	root, err := os.OpenRoot(p.dir())
	if err != nil {
		return err
	}
	defer root.Close()
	for _, e := range p.Files.Entries {
		if e.From == "" {
			continue
		}
		err := walkFrom(root, e.From, func(name string, info fs.FileInfo) (err error) {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			own := filepath.Join(filepath.Dir(p.File), name)
			header := tar.Header{Typeflag: tar.TypeReg, Mode: int64(treeMode(info).Perm())}
			var text []byte
			switch {
			case info.IsDir():
				header.Typeflag = tar.TypeDir
			case info.Mode()&fs.ModeSymlink != 0:
				header.Typeflag = tar.TypeSymlink
				header.Linkname, err = root.Readlink(name)
			default:
				text, err = readBounded(root.Open, name)
			}
			if err != nil {
				return err
			}
			return a.addOwn(own, header, text)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// readBounded reads a file of at most MaxKept bytes.
func readBounded(open func(string) (*os.File, error), name string) ([]byte, error) {
	file, err := open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, MaxKept+1))
	if err == nil && len(text) > MaxKept {
		err = tooLarge(name)
	}
	return text, err
}

func tooLarge(name string) error {
	return fmt.Errorf("%w: with %s they have more than %d MiB", ErrTooLarge, name, MaxKept>>20)
}

// addOwn adds a file by the name that the recipe has for it, unless it is
// there already.
func (a *keptArchive) addOwn(name string, header tar.Header, text []byte) error {
	stored := path.Join(keptFiles, filepath.ToSlash(a.at.absolute(name)))
	if old, ok := a.there[stored]; ok {
		if old.Typeflag != header.Typeflag || old.Linkname != header.Linkname {
			return fmt.Errorf("%s is a link and is also copied as what it leads to", name)
		}
		return nil
	}
	a.there[stored] = header
	return a.add(stored, header, text)
}

func (a *keptArchive) add(name string, header tar.Header, text []byte) error {
	if a.buffer.Len()+len(text) > MaxKept {
		return tooLarge(name)
	}
	header.Name, header.Size, header.Format = name, int64(len(text)), tar.FormatPAX
	if err := a.out.WriteHeader(&header); err != nil {
		return err
	}
	_, err := a.out.Write(text)
	return err
}

// LoadKept reads a recipe that Pack packed, as Load does. It is unpacked into
// the empty folder dir, which must stay as long as the recipe is used. set wins
// over the values that the recipe was kept with.
func LoadKept(r io.Reader, dir string, set map[string]string) (*Recipe, error) {
	k, err := unpackKept(r, dir)
	if err != nil {
		return nil, fmt.Errorf("the kept recipe: %w", err)
	}
	values := maps.Clone(k.Set)
	if values == nil {
		values = map[string]string{}
	}
	maps.Copy(values, set)
	return load(k.File, place{root: filepath.Join(dir, keptFiles), dir: k.Dir}, values)
}

func unpackKept(r io.Reader, dir string) (k kept, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return k, err
	}
	defer root.Close()
	in := tar.NewReader(r)
	for {
		header, err := in.Next()
		if err != nil { // also if it ends before its last file
			return k, fmt.Errorf("%w: %w", errDamaged, err)
		}
		if header.Name == keptLast {
			break
		}
		if err := unpackEntry(root, header, in); err != nil {
			return k, err
		}
	}
	if err := json.NewDecoder(in).Decode(&k); err != nil || k.Version < 1 || k.File == "" || !filepath.IsAbs(k.Dir) {
		return k, errors.Join(errDamaged, err)
	}
	if k.Version > keptVersion {
		return k, errors.New("it was written by a newer version of sidus")
	}
	return k, nil
}

var errDamaged = errors.New("it is damaged")

func unpackEntry(root *os.Root, header *tar.Header, r io.Reader) error {
	name := path.Clean(header.Name)
	if !strings.HasPrefix(name, keptFiles+"/") {
		return fmt.Errorf("%w: it holds %.80q", errDamaged, header.Name)
	}
	if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o700)
	case tar.TypeSymlink:
		return root.Symlink(header.Linkname, name)
	case tar.TypeReg:
		file, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600|fs.FileMode(header.Mode&0o111))
		if err != nil {
			return err
		}
		_, err = io.Copy(file, r)
		return errors.Join(err, file.Close())
	}
	return fmt.Errorf("%w: it holds %.80q", errDamaged, header.Name)
}
