package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	gozfs "github.com/mistifyio/go-zfs/v3"
	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
	"sidus/image/tool"
)

// spaceCheck is how often the space that is left is looked at while a stream is
// received.
const spaceCheck = time.Second

// Receive implements store.NativeReceiver by zfs-receive(8).
//
// Each snapshot is received into a file system of its own, a difference into a
// clone of its base: so any base will do, on whatever branch it lies. Until all
// is there the file system has a name that List shows as a partial snapshot, and
// nothing in it counts, whatever properties the stream brings. Then the snapshot
// gets its ID, and the file system, in one transaction, the name of a volume:
// a retired one, which goes with its snapshot. It is read-only and never
// mounted itself.
//
// The stream's first record tells the GUIDs of the snapshot and of its base. They
// are checked before anything is made.
func (s *Store) Receive(ctx context.Context, kind string, r io.Reader, snap, base store.SnapshotID) error {
	return s.receive(ctx, kind, r, snap, base, false)
}

func (s *Store) receive(ctx context.Context, kind string, r io.Reader, snap, base store.SnapshotID, keep bool) (err error) {
	if kind != sendKind {
		return fmt.Errorf("snapshot %s: a %q stream: %w", snap, kind, store.ErrUnsupported)
	}
	partial, err := s.partial(snap)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("snapshot %s: receive", snap)
	origin, baseGUID, release, err := s.receiveBase(ctx, base)
	if err != nil {
		return err
	}
	defer release()
	if err := s.begin(ctx, partial); err != nil {
		return err
	}
	lock, err := s.lockWork("receive-" + string(snap))
	if err != nil {
		return err
	}
	defer lock.release()
	left, err := s.leftOf(ctx, snap, partial)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	h, first, err := readHeader(r)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	switch {
	case h.from == baseGUID:
	case base == "":
		return fmt.Errorf("%s: %w: the stream is a difference, and no base is named", what, store.ErrBaseUnusable)
	default:
		return fmt.Errorf("%s: %w: the stream starts from the snapshot with GUID %d, and the base %s has %d", what, store.ErrBaseUnusable, h.from, base, baseGUID)
	}
	if err := s.prepare(ctx, partial, left, h, keep); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	undo := backend.Undo{Log: s.opts.Log}
	defer func() {
		if keep && err != nil && s.resumable(context.WithoutCancel(ctx), partial) {
			return
		}
		undo.Unwind(&err)
	}()
	undo.Add(func() error {
		err := s.destroyPartial(context.WithoutCancel(ctx), partial)
		if errors.Is(err, store.ErrNotFound) {
			return nil // zfs has taken it back itself
		}
		return err
	})
	if err := s.opts.step("receive"); err != nil {
		return err
	}
	volume := store.NewVolumeID()
	args := []string{"receive", "-u"}
	if keep {
		args = append(args, "-s")
	}
	if !h.resuming {
		args = append(args, "-o", "readonly=on", "-o", "mountpoint=legacy", "-o", propVolume+"="+string(volume), "-o", propRetired+"=on")
		if origin != "" {
			args = append(args, "-o", "origin="+string(origin))
		}
	}
	target, err := partial.snapshot(snap)
	if err != nil {
		return err
	}
	if err := s.feed(ctx, what, append(args, string(target)), io.MultiReader(bytes.NewReader(first), r)); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if volume, err = s.checkReceived(ctx, target, h); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return s.name(ctx, target, snap, volume)
}

// receiveBase finds the base of a difference and keeps it until release.
func (s *Store) receiveBase(ctx context.Context, base store.SnapshotID) (origin dataset, guid uint64, release func(), err error) {
	release = func() {}
	if base == "" {
		return "", 0, release, nil
	}
	held := &sender{store: s}
	origin, found, err := s.use(ctx, held, base)
	if err != nil {
		held.release()
		return "", 0, release, fmt.Errorf("base: %w", err)
	}
	if guid, err = strconv.ParseUint(found["guid"].value, 10, 64); err != nil {
		held.release()
		return "", 0, release, fmt.Errorf("base %v: %w its GUID", origin, errNoSuchProperty)
	}
	return origin, guid, held.release, nil
}

// leftOf tells whether a receive that was cut has left something of a snapshot.
// ErrExists if all of the snapshot is there.
func (s *Store) leftOf(ctx context.Context, snap store.SnapshotID, partial dataset) (bool, error) {
	names, err := s.opts.names(ctx, dataset(s.parent), "2", "filesystem,snapshot")
	if err != nil {
		return false, s.parentError(ctx, err)
	}
	if len(s.learn(names, snap)) > 0 {
		if _, _, err := s.find(ctx, snap); err == nil {
			return false, store.ErrExists
		} else if !errors.Is(err, store.ErrNotFound) {
			return false, err
		}
	}
	return slices.Contains(names, string(partial)), nil
}

// prepare removes what a receive that was cut has left, unless the stream is the
// rest of it.
func (s *Store) prepare(ctx context.Context, partial dataset, left bool, h header, keep bool) error {
	if h.resuming {
		if !keep || !left || !s.resumable(ctx, partial) {
			return fmt.Errorf("the stream is the rest of one, and there is no beginning of it here: %w", store.ErrNotFound)
		}
		return nil
	}
	if !left {
		return nil
	}
	if err := s.destroyPartial(ctx, partial); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return nil
}

// feed runs zfs receive until it has ended well and r has said io.EOF.
func (s *Store) feed(ctx context.Context, what string, args []string, r io.Reader) error {
	ctx, stop := store.GuardSpace(ctx, s, spaceCheck)
	defer stop()
	reader, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer reader.Close()
	defer writer.Close()
	if _, err := unix.FcntlInt(reader.Fd(), unix.F_SETPIPE_SZ, tool.PipeSize); err != nil {
		s.opts.Log.WithError(err).Debug("the pipe keeps its size")
	}
	ended := make(chan error, 1)
	go func() { ended <- tool.Run(ctx, tool.Options{Stdin: reader, Log: s.opts.Log}, "zfs", args...) }()
	copied := make(chan copying, 1)
	go func() {
		c := copyInto(writer, r, s.opts.Timeout)
		// The end of the input: a program that misses something says so.
		_ = writer.Close()
		copied <- c
	}()
	var c copying
	var failed error
	select {
	case failed = <-ended:
		// What zfs did not want is in the pipe, or waits for room in it.
		left, _ := unix.IoctlGetInt(int(reader.Fd()), unix.TIOCINQ)
		_ = reader.Close()
		if failed != nil {
			_ = writer.Close()
			// r may have nothing for a long time: it is not waited for.
			select {
			case c = <-copied:
			case <-time.After(time.Second):
			}
			break
		}
		if c = <-copied; left > 0 || errors.Is(c.write, unix.EPIPE) {
			return fmt.Errorf("%s: something follows the end of the stream", what)
		}
	case c = <-copied:
		limit := time.NewTimer(s.opts.Timeout)
		defer limit.Stop()
		select {
		case failed = <-ended:
			left, _ := unix.IoctlGetInt(int(reader.Fd()), unix.TIOCINQ)
			if failed == nil && left > 0 {
				return fmt.Errorf("%s: something follows the end of the stream", what)
			}
		case <-limit.C:
			return s.opts.hangs(what + ": zfs receive")
		}
	}
	switch {
	case c.read != nil:
		return fmt.Errorf("%s: %w", what, c.read)
	case errors.Is(c.write, os.ErrDeadlineExceeded):
		return s.opts.hangs(what + ": zfs receive")
	}
	return receiveError(what, failed)
}

// copying is how a copy ended.
type copying struct{ read, write error }

// copyInto copies all of r into a pipe whose other end reads within the limit.
func copyInto(w *os.File, r io.Reader, limit time.Duration) copying {
	buffer := make([]byte, 256<<10)
	for {
		n, err := r.Read(buffer)
		if n > 0 {
			_ = w.SetWriteDeadline(time.Now().Add(limit))
			if _, err := w.Write(buffer[:n]); err != nil {
				return copying{write: err}
			}
		}
		if errors.Is(err, io.EOF) {
			return copying{}
		} else if err != nil {
			return copying{read: err}
		}
	}
}

// receiveError turns what zfs receive says into classes of errors.
func receiveError(what string, err error) error {
	text := said(err)
	has := func(parts ...string) bool {
		for _, part := range parts {
			if strings.Contains(text, part) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return nil
	case has("does not match incremental source", "local origin for clone"):
		return fmt.Errorf("%s: %w: %w", what, store.ErrBaseUnusable, err)
	case has("unsupported feature", "must be upgraded"):
		return fmt.Errorf("%s: %w: the pool or the kernel module is older than the sender's (zpool upgrade): %w", what, store.ErrUnsupported, err)
	case has("out of space", "quota exceeded"):
		return fmt.Errorf("%s: %w: %w", what, store.ErrNoSpace, err)
	}
	return classify(what, "", err)
}

// checkReceived makes sure that one whole snapshot came, the one that the header
// announced, and returns the volume that its file system becomes.
func (s *Store) checkReceived(ctx context.Context, target dataset, h header) (store.VolumeID, error) {
	fs := target.fileSystem()
	out, err := s.opts.output(ctx, "zfs", "list", "-Hp", "-r", "-t", "all", "-o", "name,guid,"+propVolume, string(fs))
	if err != nil {
		return "", classify(fs, fs, err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != 2 {
		return "", fmt.Errorf("the stream made %d datasets and snapshots instead of one of each", len(lines))
	}
	f := strings.Split(lines[1], "\t")
	if len(f) != 3 || f[0] != string(target) || f[1] != strconv.FormatUint(h.to, 10) {
		return "", fmt.Errorf("it brought %q instead of the snapshot with GUID %d", lines[1], h.to)
	}
	return store.ParseVolumeID(f[2])
}

// name makes the snapshot show.
func (s *Store) name(ctx context.Context, target dataset, snap store.SnapshotID, volume store.VolumeID) error {
	if err := s.opts.step("mark"); err != nil {
		return err
	}
	if err := classify(target, target, s.opts.set(ctx, target, propSnapshot, string(snap))); err != nil {
		return err
	}
	if err := s.opts.step("name"); err != nil {
		return err
	}
	d, err := s.volume(volume)
	if err != nil {
		return err
	}
	fs := target.fileSystem()
	return classify(fs, fs, s.opts.run(ctx, "zfs", "rename", "-u", string(fs), string(d)))
}

// destroyPartial removes what a receive made. ErrNotFound if there is nothing.
// The caller has the lock of the receive.
func (s *Store) destroyPartial(ctx context.Context, partial dataset) error {
	found, err := s.opts.properties(ctx, partial, "origin")
	if err != nil {
		return classify(partial, partial, err)
	}
	if err := s.opts.step("destroy what was received"); err != nil {
		return err
	}
	err = s.opts.library(ctx, "zfs destroy -r "+string(partial), func() error {
		return (&gozfs.Dataset{Name: string(partial)}).Destroy(gozfs.DestroyRecursive)
	})
	if err != nil {
		return classify(partial, partial, err)
	}
	s.collect(ctx, dataset(found["origin"].value))
	return nil
}
