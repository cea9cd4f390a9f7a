package lvm

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"sidus/image/store"
)

// wantFull fails the test unless err says that there is no space, and names a
// command that helps.
func wantFull(t *testing.T, what, word string, err error) {
	t.Helper()
	if !errors.Is(err, store.ErrNoSpace) || !strings.Contains(err.Error(), word) {
		t.Errorf("%s: got %v, want ErrNoSpace with %q", what, err, word)
	}
}

// extend runs the command that a refusal names.
func extend(t *testing.T, err error) {
	t.Helper()
	command := regexp.MustCompile(`lvextend [^;:]+`).FindString(fmt.Sprint(err))
	if command == "" {
		t.Fatalf("no command is named: %v", err)
	}
	must(t, "sh", "-c", command)
}

// TestLimits: what limits a store is told from the numbers.
func TestLimits(t *testing.T) {
	s := &Store{place: place{group: "vg", pool: "pool", opts: Options{ThinPool: "vg/pool"}}, chunk: 64 << 10}
	status := poolStatus{metadataUsed: 10, metadataSize: 1000, dataUsed: 1, dataSize: 32768, mode: "rw"}
	if u, err := s.usageOf(status); err != nil || u.Available <= 0 || u.Used != 64<<10 || u.Size != 2<<30 {
		t.Errorf("%+v, %v", u, err)
	}
	status.metadataUsed = 901
	if u, _ := s.usageOf(status); u.Available != 0 || !strings.Contains(u.Full, "lvextend --poolmetadatasize +256M vg/pool") {
		t.Errorf("%+v", u)
	}
	// LVM refuses at 75 % of 2 MiB, 87.5 % of 32 MiB and 99.6 % of 1 GiB.
	for size, want := range map[int64][2]int64{512: {352, 384}, 8192: {6656, 7168}, 262144: {235929, 254279}} {
		if got := [2]int64{metadataLimit(size, maxMetadata), metadataLimit(size, maxMetadataSnapshot)}; got != want {
			t.Errorf("of %d blocks %v may be used, not %v", size, got, want)
		}
	}
	name, _ := lvOfVolume(store.NewVolumeID())
	wantFull(t, "the volume group's metadata", "--metadatasize 64m", s.checkGroup(name, row{"vg_mda_free": "1000", "vg_mda_size": "520192"}, groupReserve))
	if err := s.checkGroup(name, row{"vg_mda_free": "100000", "vg_mda_size": "520192"}, groupReserve); err != nil {
		t.Error(err)
	}
}

// TestFullPool fills the data of a thin pool. Work is refused before it is full,
// what was done can be kept, and what the refusal names makes room.
func TestFullPool(t *testing.T) {
	o := poolOf(t, "512m", "32m")
	ctx := t.Context()
	s := open(t, o)
	v := made(t, s, Ext4)
	big := store.NewVolumeID()
	if err := s.createVolume(ctx, big, Ext4, 4<<30); err != nil {
		t.Fatal(err)
	}
	m, err := s.MountVolume(ctx, big)
	if err != nil {
		t.Fatal(err)
	}
	for {
		u, err := s.Usage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if u.Available == 0 {
			break
		}
		chunk := min(u.Available, 256<<20) >> 20
		must(t, "dd", "if=/dev/zero", "of="+filepath.Join(m.Path(), "noise"), "bs=1M", "oflag=append", "conv=notrunc,fsync", "count="+strconv.FormatInt(chunk+1, 10))
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	wantFull(t, "CreateVolume", "lvextend -L", s.CreateVolume(ctx, store.NewVolumeID()))
	id := taken(t, s, v) // what was done can be kept
	wantFull(t, "Clone", "lvextend -L", s.Clone(ctx, id, store.NewVolumeID()))
	full := s.Resize(ctx, v, 1<<30)
	wantFull(t, "Resize", "lvextend -L", full)
	extend(t, full)
	if err := s.Clone(ctx, id, store.NewVolumeID()); err != nil {
		t.Errorf("after the pool was extended: %v", err)
	}
	if err := s.DestroyVolume(ctx, big); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Usage(ctx); err != nil || u.Used > 256<<20 {
		t.Errorf("what was destroyed is not given back: %+v, %v", u, err)
	}
}

// TestFullGroup fills the metadata of a volume group, with tags: a thousand
// volumes would do the same.
func TestFullGroup(t *testing.T) {
	small := &group{metadata: "128k"}
	t.Cleanup(func() {
		if err := small.destroy(); err != nil {
			t.Error(err)
		}
	})
	o := poolIn(t, small, "512m", "32m")
	ctx := t.Context()
	s := open(t, o)
	vg, _, _ := splitThinPool(o.ThinPool)
	v := made(t, s, Ext4)
	id := taken(t, s, v)
	var tags []string
	t.Cleanup(func() { must(t, "vgchange", append(tags, vg)...) })
	fill := func(left int) {
		t.Helper()
		for {
			free, err := strconv.Atoi(must(t, "vgs", "--noheadings", "--units", "b", "--nosuffix", "-o", "vg_mda_free", vg))
			if err != nil {
				t.Fatal(err)
			}
			if free < left {
				return
			}
			args := []string{vg}
			for range 1 + (free-left)/1000 {
				tag := strings.Repeat(rand.Text(), 40)[:1000]
				args = append(args, "--addtag", tag)
				tags = append(tags, "--deltag", tag)
			}
			must(t, "vgchange", args...)
		}
	}
	fill(groupReserve)
	again, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	wantFull(t, "CreateVolume", "--metadatasize 64m", again.CreateVolume(ctx, store.NewVolumeID()))
	wantFull(t, "Clone", "--metadatasize 64m", again.Clone(ctx, id, store.NewVolumeID()))
	taken(t, again, v)
	fill(groupReserveSnapshot)
	wantFull(t, "Snapshot", "--metadatasize 64m", again.Snapshot(ctx, v, store.NewSnapshotID()))
	if err := again.DestroySnapshot(ctx, id); err != nil {
		t.Errorf("destroy something then: %v", err)
	}
}

// TestFullMetadata fills the metadata of a thin pool: snapshots of a volume that
// is written to in many places copy it. Work is refused before, and what the
// refusal names makes room.
func TestFullMetadata(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: the metadata of a thin pool is NOT filled: -short")
	}
	o := poolOf(t, "1g", "2m")
	ctx := t.Context()
	s := open(t, o)
	v := store.NewVolumeID()
	if err := s.createVolume(ctx, v, Ext4, 2<<30); err != nil {
		t.Fatal(err)
	}
	m, err := s.MountVolume(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	const chunks = 8000
	file := filepath.Join(m.Path(), "file")
	must(t, "fallocate", "-l", strconv.Itoa(chunks*64<<10), file)
	write := func(step int64) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for at := int64(0); at < chunks; at += step {
			if _, err := f.WriteAt(make([]byte, 4096), at*64<<10); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	var id store.SnapshotID
	for n := 0; ; n++ {
		u, err := s.Usage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if u.Available == 0 {
			t.Logf("full after %d snapshots: %+v", n, u)
			break
		}
		if n == 40 {
			t.Fatalf("it does not fill: %+v", u)
		}
		id = taken(t, s, v)
		write(100)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	full := s.CreateVolume(ctx, store.NewVolumeID())
	wantFull(t, "CreateVolume", "lvextend --poolmetadatasize", full)
	taken(t, s, v)
	wantFull(t, "Clone", "lvextend --poolmetadatasize", s.Clone(ctx, id, store.NewVolumeID()))
	extend(t, full)
	if err := s.Clone(ctx, id, store.NewVolumeID()); err != nil {
		t.Errorf("after the metadata was extended: %v", err)
	}
}
