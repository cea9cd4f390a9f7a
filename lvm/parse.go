package lvm

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// row is a line of a report; LVM writes every value as a string.
type row map[string]string

// number is a value that is a number; zero if it is empty.
func (r row) number(column string) (int64, error) {
	text := strings.TrimSpace(r[column])
	if text == "" {
		return 0, nil
	}
	whole, _, _ := strings.Cut(text, ".")
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("what LVM says of %s cannot be read: %q", column, text)
	}
	return n, nil
}

// has tells whether a column with a list has a word.
func (r row) has(column, word string) bool {
	return slices.Contains(strings.Split(r[column], ","), word)
}

// parseReport reads what "--reportformat json" yields: one report with one
// kind of rows.
func parseReport(text []byte) ([]row, error) {
	var out struct {
		Report []map[string][]row `json:"report"`
	}
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("what LVM says cannot be read: %w", err)
	}
	var rows []row
	for _, report := range out.Report {
		for _, some := range report {
			rows = append(rows, some...)
		}
	}
	return rows, nil
}

// poolStatus is the state of a thin pool, see
// Documentation/admin-guide/device-mapper/thin-provisioning.rst in Linux.
type poolStatus struct {
	metadataUsed, metadataSize int64 // blocks of 4 KiB
	dataUsed, dataSize         int64 // chunks
	held                       bool  // a metadata snapshot is reserved
	mode                       string
	needsCheck                 bool
}

// parsePoolStatus reads `dmsetup status` of a thin pool.
func parsePoolStatus(text string) (s poolStatus, err error) {
	f := strings.Fields(text)
	bad := fmt.Errorf("what dmsetup says of the thin pool cannot be read: %q", strings.TrimSpace(text))
	if len(f) < 4 || f[2] != "thin-pool" {
		return s, bad
	}
	if f[3] == "Fail" || f[3] == "Error" {
		s.mode = "failed"
		return s, nil
	}
	if len(f) < 8 {
		return s, bad
	}
	for n, pair := range []struct{ used, size *int64 }{{&s.metadataUsed, &s.metadataSize}, {&s.dataUsed, &s.dataSize}} {
		used, size, _ := strings.Cut(f[4+n], "/")
		var err1, err2 error
		*pair.used, err1 = strconv.ParseInt(used, 10, 64)
		*pair.size, err2 = strconv.ParseInt(size, 10, 64)
		if err1 != nil || err2 != nil {
			return s, bad
		}
	}
	s.held = f[6] != "-"
	s.mode = f[7]
	s.needsCheck = slices.Contains(f[8:], "needs_check")
	return s, nil
}

// parseChunk reads the size of a chunk, in bytes, from `dmsetup table` of a thin
// pool.
func parseChunk(text string) (int64, error) {
	f := strings.Fields(text)
	if len(f) < 6 || f[2] != "thin-pool" {
		return 0, fmt.Errorf("what dmsetup says of the thin pool cannot be read: %q", strings.TrimSpace(text))
	}
	sectors, err := strconv.ParseInt(f[5], 10, 64)
	if err != nil || sectors <= 0 {
		return 0, fmt.Errorf("what dmsetup says of the thin pool cannot be read: %q", strings.TrimSpace(text))
	}
	return sectors * 512, nil
}
