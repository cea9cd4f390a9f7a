package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"sidus/export/stream"
	"sidus/image"
)

// spoolAge is how long the parts of a stream that was cut are kept.
const spoolAge = 7 * 24 * time.Hour

const spoolSuffix = ".stream"

// spoolLook is after how many bytes the space that is left is looked at.
const spoolLook = 4 << 20

// roomFor tells whether there is room for n bytes more beside a file, and for
// others: the catalog lies on the same disk.
func roomFor(file *os.File, n int64) bool {
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &s); err != nil {
		return true // writing will tell
	}
	reserve := min(1<<30, int64(s.Blocks)*s.Bsize/20)
	return int64(s.Bavail)*s.Bsize-n >= reserve
}

// spool is the file in which the parts of a stream lie until all of it is
// here. Who sends the same stream again sends only the rest.
type spool struct {
	path  string
	file  *os.File // nil: nothing is kept, since the disk is full
	units []stream.Unit
	log   logrus.FieldLogger
	room  int64 // bytes that there is room for, without another look
}

// openSpool looks for what has arrived of a stream, and removes what has become
// too old.
func openSpool(layout image.Layout, m stream.Manifest, log logrus.FieldLogger) (*spool, error) {
	dir := layout.Incoming()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && strings.HasSuffix(entry.Name(), spoolSuffix) && time.Since(info.ModTime()) > spoolAge {
			_ = os.Remove(filepath.Join(dir, entry.Name()))
		}
	}
	name := fmt.Sprintf("%s-%s", m.Snapshot, m.Kind)
	if m.Base != "" {
		name += "-" + string(m.Base)
	}
	s := &spool{path: filepath.Join(dir, name+spoolSuffix), log: log}
	if s.file, err = os.OpenFile(s.path, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	if s.units, err = stream.Units(s.file); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

// resume yields the first units of what is here, and then data, which is kept.
func (s *spool) resume(from int, data io.Reader) (io.Reader, error) {
	end := int64(0)
	if from > 0 {
		end = s.units[from-1].End
		s.log.Infof("goes on at part %d, after %d bytes that are here already", from, end)
	}
	if err := s.file.Truncate(end); err != nil {
		return nil, err
	}
	if _, err := s.file.Seek(end, io.SeekStart); err != nil {
		return nil, err
	}
	return io.MultiReader(io.NewSectionReader(s.file, 0, end), &keeper{s, data}), nil
}

// keeper writes into the spool what it reads.
type keeper struct {
	s *spool
	r io.Reader
}

func (k *keeper) Read(p []byte) (int, error) {
	n, err := k.r.Read(p)
	if n > 0 && k.s.file != nil {
		if writeErr := k.s.keep(p[:n]); writeErr != nil {
			// The transfer goes on; only a cut costs more now.
			k.s.log.WithError(writeErr).Warn("what arrives is not kept: if the transfer is cut, this snapshot begins anew")
			k.s.remove()
		}
	}
	return n, err
}

func (s *spool) keep(p []byte) error {
	if s.room < int64(len(p)) {
		if !roomFor(s.file, spoolLook+int64(len(p))) {
			return unix.ENOSPC
		}
		s.room = spoolLook + int64(len(p))
	}
	s.room -= int64(len(p))
	_, err := s.file.Write(p)
	return err
}

// failed removes what would not help another time: after a cut, or the end of
// this process, it does.
func (s *spool) failed(err error) {
	for _, helps := range []error{ErrCut, stream.ErrDamaged, stream.ErrTruncated, context.Canceled} {
		if errors.Is(err, helps) {
			return
		}
	}
	s.remove()
}

func (s *spool) remove() {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.WithError(err).Warn("the parts of a stream stay")
	}
	s.close()
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close() // it is a cache
		s.file = nil
	}
}
