package lvm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

const (
	// groupPrefix begins the name of a volume group in a loop file; eight
	// random hexadecimal digits follow, since a machine's volume groups share
	// one space of names.
	groupPrefix = "sidus_"
	ownPool     = "pool"
	// groupMetadata is the size of the volume group's metadata: by default it
	// has room for about a thousand volumes.
	groupMetadata = "64m"
)

// makeFile makes the loop file with a volume group and a thin pool in it, and
// tells whether it did. Nothing is there under the file's name until all is
// done.
func (o Options) makeFile(ctx context.Context) (made bool, err error) {
	if _, err := os.Lstat(o.File); err == nil {
		return false, nil
	}
	undo := backend.Undo{Log: o.Log}
	defer func() { undo.Unwind(&err) }()
	file, err := backend.BeginFile(backend.FileOptions{Path: o.File, Size: o.Size, MinSize: MinSize, DiskReserve: o.DiskReserve, Step: o.step}, &undo)
	if errors.Is(err, store.ErrExists) { // another process was faster
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer file.Close()
	if err := o.step("attach loop device"); err != nil {
		return false, err
	}
	device, err := o.attachLoop(ctx, file.Path())
	if err != nil {
		return false, err
	}
	var random [4]byte
	_, _ = rand.Read(random[:])
	p := &place{opts: o, device: device, pool: ownPool, group: groupPrefix + hex.EncodeToString(random[:])}
	clean := context.WithoutCancel(ctx)
	undo.Add(func() error { return o.run(clean, "losetup", "--detach", device) })
	undo.Add(func() error {
		_, err := p.lvm(clean, "vgchange", "--activate", "n", p.group)
		if err != nil && strings.Contains(err.Error(), "not found") {
			return nil
		}
		return err
	})
	for _, c := range []struct {
		step string
		args []string
	}{
		{"create physical volume", []string{"pvcreate", "--yes", "--metadatasize", groupMetadata, device}},
		// Nobody activates it but Sidus.
		{"create volume group", []string{"vgcreate", "--setautoactivation", "n", p.group, device}},
		// No zeroing: a file system reads nothing that it has not written. The
		// metadata could be extended, but what is sparse costs nothing.
		{"create thin pool", []string{"lvcreate", "--yes", "--type", "thin-pool", "--name", ownPool, "--extents", "100%FREE", "--chunksize", "64k",
			"--poolmetadatasize", fmt.Sprintf("%dk", max(16<<10, o.Size>>19)), "--zero", "n", "--discards", "passdown",
			"--monitor", "n", "--addtag", tagStore + layoutVersion, p.group}},
	} {
		if err := o.step(c.step); err != nil {
			return false, err
		}
		if _, err := p.lvm(ctx, c.args[0], c.args[1:]...); err != nil {
			return false, classify(o.File, "", err)
		}
	}
	if err := o.step("name file"); err != nil {
		return false, err
	}
	if err := file.Name(); err != nil {
		return false, err
	}
	// The pool is active, and holds the device: it goes away with it.
	if err := o.run(clean, "losetup", "--detach", device); err != nil {
		o.Log.WithError(err).Warn("the loop device stays behind")
	}
	return true, nil
}

// removeFile takes back makeFile.
func (o Options) removeFile(ctx context.Context) error {
	p, err := o.attach(ctx)
	if err != nil {
		return err
	}
	if err := p.deactivateGroup(ctx); err != nil {
		return err
	}
	return os.Remove(o.File)
}

// attachLoop gives a file a loop device. Direct I/O keeps the data from being
// cached twice; where the disk beneath cannot do it, it is done without.
func (o Options) attachLoop(ctx context.Context, file string) (device string, err error) {
	for _, direct := range []string{"--direct-io=on", "--direct-io=off"} {
		var out []byte
		if out, err = o.output(ctx, "losetup", "--find", "--show", direct, file); err == nil {
			return strings.TrimSpace(string(out)), nil
		}
		// losetup may have attached the file and failed after that.
		if device, listErr := o.loopOf(ctx, file); listErr == nil && device != "" {
			return device, nil
		}
	}
	if _, statErr := os.Stat("/dev/loop-control"); statErr != nil {
		return "", fmt.Errorf("%s: this kernel has no loop devices (modprobe loop): %w", file, err)
	}
	return "", fmt.Errorf("%s: %w", file, err)
}

// loopOf returns the loop device of a file, or nothing.
func (o Options) loopOf(ctx context.Context, file string) (string, error) {
	out, err := o.output(ctx, "losetup", "--list", "--noheadings", "--output", "NAME", "--associated", file)
	if err != nil {
		return "", err
	}
	names := strings.Fields(string(out))
	if len(names) == 0 {
		return "", nil
	}
	if len(names) > 1 {
		return "", fmt.Errorf("%s: %w: it has several loop devices (%s), which would destroy it: detach all but the one that is in use (losetup --detach)", file, store.ErrInUse, strings.Join(names, ", "))
	}
	return names[0], nil
}

// attach gives the file its loop device, unless it has one, and activates the
// pool in it.
func (o Options) attach(ctx context.Context) (*place, error) {
	file, err := os.Open(o.File)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; `sidus init` makes a store", o.File, store.ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	defer file.Close()
	// Of several processes one attaches it.
	if err := backend.Flock(file, unix.LOCK_EX); err != nil {
		return nil, &os.PathError{Op: "flock", Path: o.File, Err: err}
	}
	device, err := o.loopOf(ctx, o.File)
	if err != nil {
		return nil, err
	}
	mine := device == ""
	if mine {
		if err := o.step("attach loop device"); err != nil {
			return nil, err
		}
		if device, err = o.attachLoop(ctx, o.File); err != nil {
			return nil, err
		}
		// It goes away with the last who has it open: the pool, or nobody.
		defer func() {
			if err := o.run(context.WithoutCancel(ctx), "losetup", "--detach", device); err != nil {
				o.Log.WithError(err).Warn("the loop device stays behind")
			}
		}()
	}
	p := &place{opts: o, device: device, pool: ownPool}
	rows, err := p.report(ctx, "pvs", "vg_name", device)
	if err != nil || len(rows) == 0 || !strings.HasPrefix(rows[0]["vg_name"], groupPrefix) {
		if err == nil {
			err = errors.New("it has no volume group that Sidus made")
		}
		return nil, fmt.Errorf("%s: %w: %w", o.File, ErrNotAStore, err)
	}
	p.group = rows[0]["vg_name"]
	if _, _, err := splitThinPool(p.group + "/" + p.pool); err != nil {
		return nil, fmt.Errorf("%s: %w", o.File, err)
	}
	if mine {
		if err := o.step("activate pool"); err != nil {
			return nil, err
		}
		if _, err := p.lvm(ctx, "lvchange", "--activate", "y", p.group+"/"+p.pool); err != nil {
			return nil, classify(o.File, ownPool, err)
		}
	}
	return p, nil
}

// deactivateGroup takes the devices of a volume group in a loop file away; the
// loop device goes with them.
func (p *place) deactivateGroup(ctx context.Context) error {
	if err := p.opts.step("deactivate"); err != nil {
		return err
	}
	_, err := p.lvm(ctx, "vgchange", "--activate", "n", p.group)
	return classify(p.opts.place(), "", err)
}
