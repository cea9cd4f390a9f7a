package store

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// VolumeID names a volume: 128 random bits as 32 lowercase hexadecimal digits.
type VolumeID string

// SnapshotID names a snapshot: 128 random bits as 32 lowercase hexadecimal
// digits. It is the same on every server that holds the snapshot.
type SnapshotID string

// NewVolumeID makes a VolumeID that nothing has yet.
func NewVolumeID() VolumeID { return VolumeID(newID()) }

// NewSnapshotID makes a SnapshotID that nothing has yet.
func NewSnapshotID() SnapshotID { return SnapshotID(newID()) }

// ParseVolumeID checks that text is a VolumeID. The error wraps ErrBadName.
func ParseVolumeID(text string) (VolumeID, error) {
	return VolumeID(text), checkID("volume", text)
}

// ParseSnapshotID checks that text is a SnapshotID. The error wraps
// ErrBadName.
func ParseSnapshotID(text string) (SnapshotID, error) {
	return SnapshotID(text), checkID("snapshot", text)
}

// Validate returns an error that wraps ErrBadName if v is no VolumeID.
func (v VolumeID) Validate() error { return checkID("volume", string(v)) }

// Validate returns an error that wraps ErrBadName if s is no SnapshotID.
func (s SnapshotID) Validate() error { return checkID("snapshot", string(s)) }

// Bytes returns the 128 bits of a valid SnapshotID.
func (s SnapshotID) Bytes() [16]byte {
	var raw [16]byte
	_, _ = hex.Decode(raw[:], []byte(s))
	return raw
}

// SnapshotIDFromBytes is the inverse of SnapshotID.Bytes.
func SnapshotIDFromBytes(raw [16]byte) SnapshotID {
	return SnapshotID(hex.EncodeToString(raw[:]))
}

func newID() string {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails, see crypto/rand
	return hex.EncodeToString(raw[:])
}

func checkID(what, text string) error {
	if len(text) != 32 {
		return fmt.Errorf("%s ID %q: %w: it has 32 hexadecimal digits", what, text, ErrBadName)
	}
	for i := range len(text) {
		c := text[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("%s ID %q: %w: it has 32 lowercase hexadecimal digits", what, text, ErrBadName)
		}
	}
	return nil
}
