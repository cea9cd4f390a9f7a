package lvm

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sidus/image/store"
	"sidus/image/tool"
)

func TestSplitThinPool(t *testing.T) {
	for text, good := range map[string]bool{
		"vg/pool": true, "vg-1/pool_a.b+c": true, "0/1": true,
		"": false, "vg": false, "/": false, "vg/": false, "/pool": false, "-vg/pool": false, "vg/-pool": false,
		"../pool": false, "vg/..": false, "vg/a b": false, "vg/a/b": false, "vg/é": false, "vg/a\n": false, "vg/" + strings.Repeat("a", 65): false,
	} {
		_, _, err := splitThinPool(text)
		if good != (err == nil) || err != nil && !errors.Is(err, store.ErrBadName) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestNames(t *testing.T) {
	if got := mapperName("my-vg", "sidus.v.1"); got != "my--vg-sidus.v.1" {
		t.Error(got)
	}
	id := strings.Repeat("a", 32)
	for point, want := range map[string]lv{"kept": keptLV, "volume-" + id: volumePrefix + lv(id), "snapshot-" + id: snapshotPrefix + lv(id)} {
		if got, ok := lvOfPoint(point); got != want || !ok {
			t.Errorf("%s: %s, %v", point, got, ok)
		}
	}
	for _, bad := range []string{"", "volume-", "volume-x", "snapshot-" + id + "a", id} {
		if got, ok := lvOfPoint(bad); ok {
			t.Errorf("%s: %s", bad, got)
		}
	}
}

func TestParseReport(t *testing.T) {
	id := strings.Repeat("a", 32)
	rows, err := parseReport([]byte(`{"report":[{"lv":[
		{"lv_name":"sidus.v.` + id + `","lv_tags":"","pool_lv":"pool","lv_time":"1700000000"},
		{"lv_name":"sidus.s.` + id + `","lv_tags":"a,sidus.new","pool_lv":"pool","lv_time":"1700000001"},
		{"lv_name":"sidus.v.` + id + `","lv_tags":"","pool_lv":"other","lv_time":"1700000000"},
		{"lv_name":"sidus.v.short","lv_tags":"","pool_lv":"pool","lv_time":"1700000000"},
		{"lv_name":"sidus.kept","lv_tags":"","pool_lv":"pool","lv_time":"1700000000"}]}]}`))
	if err != nil || len(rows) != 5 {
		t.Fatalf("%v, %v", rows, err)
	}
	items, err := itemsOf(rows, "pool")
	if err != nil || len(items) != 2 || items[0].Volume != store.VolumeID(id) || items[0].Partial || items[1].Snapshot != store.SnapshotID(id) || !items[1].Partial || items[1].Created.Unix() != 1700000001 {
		t.Errorf("%+v, %v", items, err)
	}
	if _, err := parseReport([]byte("no")); err == nil {
		t.Error("words are taken for a report")
	}
	if _, err := (row{"x": "many"}).number("x"); err == nil {
		t.Error("a word is taken for a number")
	}
	if n, err := (row{"x": " 512.00"}).number("x"); n != 512 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestParsePool(t *testing.T) {
	got, err := parsePoolStatus("0 4194304 thin-pool 5 120/2048 300/32768 - rw discard_passdown error_if_no_space - 1024 \n")
	if want := (poolStatus{120, 2048, 300, 32768, false, "rw", false}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = parsePoolStatus("0 4194304 thin-pool 5 120/2048 300/32768 77 ro no_discard_passdown queue_if_no_space needs_check 1024")
	if err != nil || got.mode != "ro" || !got.needsCheck || !got.held {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err = parsePoolStatus("0 4194304 thin-pool Fail"); err != nil || got.mode != "failed" {
		t.Errorf("%+v, %v", got, err)
	}
	if chunk, err := parseChunk("0 4194304 thin-pool 253:0 253:1 128 0 1 skip_block_zeroing"); chunk != 65536 || err != nil {
		t.Errorf("%d, %v", chunk, err)
	}
	for _, bad := range []string{"", "0 1 linear 253:0 0", "0 1 thin-pool", "0 1 thin-pool 5 x/y 1/2 - rw"} {
		if _, err := parsePoolStatus(bad); err == nil {
			t.Errorf("%q is a status", bad)
		}
		if _, err := parseChunk(bad); err == nil {
			t.Errorf("%q is a table", bad)
		}
	}
}

func TestClassify(t *testing.T) {
	for text, want := range map[string]error{
		`Failed to find logical volume "vg/it"`:                                                            store.ErrNotFound,
		`Failed to find logical volume "vg/other"`:                                                         nil,
		`Logical Volume "it" already exists in volume group "vg"`:                                          store.ErrExists,
		`Logical volume vg/it in use.`:                                                                     store.ErrInUse,
		`Logical volume vg/it contains a filesystem in use.`:                                               store.ErrInUse,
		"Volume group \"vg\" not found\nCannot process volume group vg":                                    store.ErrUnavailable,
		`Cannot access VG vg with system ID other with local system ID here.`:                              store.ErrUnavailable,
		`VG vg metadata on /dev/loop0 (4096 bytes) too large for circular buffer (4096 bytes with 0 used)`: store.ErrNoSpace,
		`Volume group "vg" has insufficient free space (0 extents): 1 required.`:                           store.ErrNoSpace,
	} {
		err := classify("it", "it", &tool.Error{Args: []string{"lvm"}, Err: errors.New("exit status 5"), Stderr: text})
		for _, class := range []error{store.ErrNotFound, store.ErrExists, store.ErrInUse, store.ErrNoSpace, store.ErrUnavailable} {
			if errors.Is(err, class) != (class == want) {
				t.Errorf("%q: got %v, want %v", text, err, want)
			}
		}
	}
}

func TestExplainPool(t *testing.T) {
	s := &Store{place: place{group: "vg", pool: "pool", opts: Options{ThinPool: "vg/pool", Timeout: time.Minute}}}
	said := func(text string) error {
		return &tool.Error{Args: []string{"lvm", "lvs"}, Stderr: text, Err: errors.New("exit status 5")}
	}
	for _, c := range []struct {
		err, want error
		word      string
	}{
		{fmt.Errorf("lvm: %w (on Debian: apt install lvm2)", tool.ErrNotInstalled), tool.ErrNotInstalled, "apt install lvm2"},
		{said("/dev/mapper/control: open failed: No such file or directory\n  Failure to communicate with kernel device-mapper driver."), ErrNoKernelSupport, "modprobe"},
		{said(`Failed to find logical volume "vg/pool"`), store.ErrNotFound, "lvcreate --type thin-pool"},
		{said(`Volume group "vg" not found`), store.ErrNotFound, "vgs"},
		{said(`Volume group vg is exported`), store.ErrUnavailable, "vgimport vg"},
	} {
		err := s.explainPool(t.Context(), c.err)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%v: %v", c.err, err)
		}
		if c.want != store.ErrNotFound && errors.Is(err, store.ErrNotFound) {
			t.Errorf("%v: it is not that a store is missing: %v", c.err, err)
		}
	}
}
