package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// Unpack unpacks a backup into the empty folder dir. What is there may be used
// only if it returns nil: then all of the backup is right. The error wraps
// ErrForeign, ErrNewer or ErrDamaged, or is that of r or of the file system.
func Unpack(ctx context.Context, r io.Reader, dir string) (m Manifest, err error) {
	input := &reader{ctx: ctx, r: bufio.NewReader(r)}
	head, _ := input.r.Peek(4)
	if !bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) { // RFC 8878, 3.1.1
		if input.err != nil {
			return m, input.err
		}
		return m, ErrForeign
	}
	plain, err := zstd.NewReader(input, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return m, err
	}
	defer plain.Close()
	if m, err = unpack(plain, dir); input.err != nil {
		return m, input.err // what r said, and not what came of it
	}
	return m, err
}

// reader remembers why reading failed.
type reader struct {
	ctx context.Context
	r   *bufio.Reader
	err error
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		r.err = err
		return 0, err
	}
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

func unpack(plain io.Reader, dir string) (m Manifest, err error) {
	in := tar.NewReader(plain)
	header, err := in.Next()
	if err != nil || header.Name != manifestName || header.Size > maxManifest {
		return m, ErrForeign
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return m, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if m, err = decodeManifest(text); errors.Is(err, ErrNewer) {
		// Unless it is damage that looks like that: the compressed stream has a
		// digest at its end.
		if _, damage := io.Copy(io.Discard, plain); damage != nil {
			err = fmt.Errorf("%w: %w", ErrDamaged, damage)
		}
	}
	if err != nil {
		return m, err
	}
	for _, f := range m.Files {
		header, err := in.Next()
		if err != nil {
			return m, fmt.Errorf("%w: before %s: %w", ErrDamaged, f.Path, err)
		}
		if header.Name != f.Path || header.Size != f.Size || header.Typeflag != tar.TypeReg {
			return m, fmt.Errorf("%w: there is %.80q instead of %s", ErrDamaged, header.Name, f.Path)
		}
		if err := unpackFile(in, f, filepath.Join(dir, f.Path)); err != nil {
			return m, err
		}
	}
	if _, err := in.Next(); !errors.Is(err, io.EOF) {
		return m, fmt.Errorf("%w: something follows its last file", ErrDamaged)
	}
	// The compressed stream must end well, too.
	if n, err := io.Copy(io.Discard, plain); err != nil || n > 0 {
		return m, fmt.Errorf("%w: its end is not as it was written", ErrDamaged)
	}
	return m, nil
}

func unpackFile(in io.Reader, f File, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	hash := sha256.New()
	source := &reader{ctx: context.Background(), r: bufio.NewReader(in)}
	if _, err := io.Copy(io.MultiWriter(file, hash), source); err != nil {
		if source.err != nil {
			return fmt.Errorf("%w: %s: %w", ErrDamaged, f.Path, err)
		}
		return err
	}
	if hex.EncodeToString(hash.Sum(nil)) != f.SHA256 {
		return fmt.Errorf("%w: %s is not what was written", ErrDamaged, f.Path)
	}
	return errors.Join(file.Sync(), file.Close())
}
