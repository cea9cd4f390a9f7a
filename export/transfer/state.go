package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"

	"sidus/image"
	"sidus/image/catalog"
	"sidus/image/store/keptfiles"
)

// State is packed as a tar archive, compressed by zstd: the catalog as
// sidus.db, and the files below secrets/ and recipes/.
const (
	catalogName   = "sidus.db"
	secretsFolder = "secrets/"
	recipesFolder = "recipes/"
)

// packState writes the copy of a catalog, the secrets of a state folder but for
// those of this server alone, and the recipes that are kept there to a file. It
// returns the SHA-256 of it.
func packState(copied string, layout image.Layout, recipes bool, to io.Writer) (sum string, err error) {
	hash := sha256.New()
	z, err := zstd.NewWriter(io.MultiWriter(to, hash), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return "", err
	}
	out := tar.NewWriter(z)
	if err := packFile(out, copied, catalogName); err != nil {
		return "", err
	}
	err = filepath.WalkDir(layout.Secrets(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == layout.TransferSecrets() {
			return fs.SkipDir
		}
		if !entry.Type().IsRegular() || strings.HasPrefix(entry.Name(), ".") {
			return nil
		}
		name, err := filepath.Rel(layout.Dir, path)
		if err != nil {
			return err
		}
		return packFile(out, path, name)
	})
	if err == nil && recipes {
		err = packRecipes(out, layout)
	}
	if err = errors.Join(err, out.Close(), z.Close()); err != nil {
		return "", fmt.Errorf("pack the catalog and the secrets: %w", err)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func packRecipes(out *tar.Writer, layout image.Layout) error {
	paths, err := layout.RecipeFiles()
	if err != nil {
		return err
	}
	for _, path := range paths {
		err := packFile(out, path, recipesFolder+filepath.Base(path))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // its tree was deleted a moment ago
			return err
		}
	}
	return nil
}

func packFile(out *tar.Writer, path, name string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: info.Size(), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err = io.Copy(out, file)
	return err
}

// maxState bounds what unpackState writes, in bytes.
const maxState = 8 << 30

// unpackState unpacks into an empty folder. What is there may be used only if
// it returns nil.
func unpackState(r io.Reader, dir, sum string) error {
	hash := sha256.New()
	tee := io.TeeReader(r, hash)
	z, err := zstd.NewReader(tee, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	in := tar.NewReader(io.LimitReader(z, maxState))
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("the catalog that arrives: %w", err)
		}
		if !filepath.IsLocal(header.Name) || header.Typeflag != tar.TypeReg || header.Name != catalogName && !strings.HasPrefix(header.Name, secretsFolder) && !strings.HasPrefix(header.Name, recipesFolder) {
			return fmt.Errorf("%w: the state holds %.80q", ErrProtocol, header.Name)
		}
		if err := writeSecret(filepath.Join(dir, header.Name), in); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, z); err != nil {
		return fmt.Errorf("the catalog that arrives: %w", err)
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return err
	}
	if hex.EncodeToString(hash.Sum(nil)) != sum {
		return fmt.Errorf("%w: the catalog that arrived is not what was sent", ErrCut)
	}
	return nil
}

// writeSecret writes a new file that only its owner reads, durably.
func writeSecret(path string, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, r)
	return errors.Join(err, file.Sync(), file.Close())
}

// openCopy opens a copy of a catalog and brings it up to date. The error wraps
// catalog.ErrNewer if a newer Sidus has written it.
func openCopy(ctx context.Context, path string) (*catalog.Catalog, error) {
	c, err := catalog.Open(ctx, path)
	if errors.Is(err, catalog.ErrNewer) {
		return nil, fmt.Errorf("%w: %w: update sidus on %s first", ErrVersion, err, hostname())
	}
	if err != nil {
		return nil, err
	}
	err = c.View(ctx, func(tx *sql.Tx) error {
		var verdict string
		if err := tx.QueryRow(`PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
			return err
		}
		if verdict != "ok" {
			return fmt.Errorf("the copy of the catalog is damaged: %s", verdict)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// installSecrets makes the secrets of a replica those of its primary, file by
// file.
func installSecrets(from, to image.Layout) error {
	theirs := map[string]bool{}
	err := filepath.WalkDir(from.Secrets(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(from.Secrets(), path)
		if err != nil {
			return err
		}
		theirs[name] = true
		return installSecret(path, filepath.Join(to.Secrets(), name))
	})
	if err == nil && !theirs[filepath.Base(to.SiteKey())] {
		err = errors.New("the primary has no site key: without it running nodes would lose their root")
	}
	if err != nil {
		return fmt.Errorf("take over the secrets: %w", err)
	}
	return filepath.WalkDir(to.Secrets(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == to.TransferSecrets() {
			return fs.SkipDir
		}
		name, err := filepath.Rel(to.Secrets(), path)
		if err != nil || !entry.Type().IsRegular() || theirs[name] {
			return err
		}
		return os.Remove(path)
	})
}

// installSecret replaces one file, unless it is the same. It is the old or the
// new one at any instant.
func installSecret(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(to); err == nil && string(old) == string(text) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	return keptfiles.Write(filepath.Dir(to), filepath.Base(to), bytes.NewReader(text))
}
