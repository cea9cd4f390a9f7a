package stream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"sidus/image/store"
)

// Version is the version of the format that this package writes. It reads this
// one and all before it.
const Version = 1

// Kind says what the payload of a stream is.
type Kind string

// The kinds of payloads.
const (
	Portable Kind = "portable" // a pax archive
	Btrfs    Kind = "btrfs"    // btrfs-send(8)
	ZFS      Kind = "zfs"      // zfs-send(8)
	LVM      Kind = "lvm"      // the used or changed blocks of a thin volume
)

// Native tells whether only a backend of the same kind takes the payload.
func (k Kind) Native() bool { return k != Portable }

// Manifest says what a stream holds. The receiver keeps the snapshot under the
// same ID.
type Manifest struct {
	// Format is the version of the format; an export sets it to Version.
	Format int `json:"format"`
	// Kind is that of the payload.
	Kind Kind `json:"kind"`
	// Base is the snapshot that the receiver must hold, since the payload is
	// the difference to it; empty if the payload is a whole tree.
	Base store.SnapshotID `json:"base,omitempty"`

	// Tree and Number are the name and number at the sender.
	Tree   string `json:"tree"`
	Number int    `json:"number"`
	// TreeID names the tree among servers; empty if it is not to be kept.
	TreeID string `json:"tree_id,omitempty"`

	Snapshot store.SnapshotID `json:"snapshot"`
	Parent   store.SnapshotID `json:"parent,omitempty"`
	Name     string           `json:"name,omitempty"`
	Phase    string           `json:"phase,omitempty"`
	Key      string           `json:"key,omitempty"`
	Recipe   string           `json:"recipe,omitempty"`
	Message  string           `json:"message,omitempty"`
	Author   string           `json:"author,omitempty"`
	Created  time.Time        `json:"created"`
	Complete bool             `json:"complete"`

	// Size is the length of the payload in bytes as far as it was known when
	// the stream began: a guess for progress bars; 0 if unknown.
	Size int64 `json:"size,omitempty"`
	// Program is the sender, for the log: "sidus 1.2".
	Program string `json:"program,omitempty"`
}

// maxManifest is the longest manifest that is written and read, in bytes.
const maxManifest = 1 << 20

// Validate checks a manifest. The error wraps ErrManifest, or ErrVersion.
func (m *Manifest) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrManifest, fmt.Sprintf(format, args...))
	}
	switch {
	case m.Format > Version:
		return fmt.Errorf("%w: version %d of the format; this Sidus reads up to %d: update it", ErrVersion, m.Format, Version)
	case m.Format < 1:
		return bad("version %d of the format", m.Format)
	case m.Kind == "":
		return bad("it names no kind")
	case m.Number < 0:
		return bad("number %d", m.Number)
	case m.Size < 0:
		return bad("size %d", m.Size)
	case m.Base != "" && !m.Kind.Native():
		return bad("a %s stream is a whole tree and has no base", m.Kind)
	case m.Base != "" && m.Base == m.Snapshot:
		return bad("the base is the snapshot itself")
	}
	if err := m.Snapshot.Validate(); err != nil {
		return bad("%v", err)
	}
	for _, id := range []store.SnapshotID{m.Base, m.Parent} {
		if id != "" && id.Validate() != nil {
			return bad("%v", id.Validate())
		}
	}
	// These are shown on terminals and kept in the catalog. Messages may have
	// several lines.
	for _, field := range []struct{ name, text, allowed string }{
		{"kind", string(m.Kind), ""}, {"tree", m.Tree, ""}, {"tree ID", m.TreeID, ""}, {"name", m.Name, ""}, {"phase", m.Phase, ""},
		{"key", m.Key, ""}, {"recipe", m.Recipe, "\n\t"}, {"message", m.Message, "\n\t"}, {"author", m.Author, ""},
		{"program", m.Program, ""},
	} {
		odd := func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune(field.allowed, r) }
		if !utf8.ValidString(field.text) || strings.ContainsFunc(field.text, odd) {
			return bad("the %s %q has bytes that are no text", field.name, field.text)
		}
	}
	return nil
}

// encode writes a manifest that Validate accepts.
func (m *Manifest) encode() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(m)
	if err == nil && len(text) > maxManifest {
		err = fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrManifest, len(text), maxManifest)
	}
	return text, err
}

// decodeManifest reads a manifest. Fields that are not known are passed over:
// what a reader must understand raises the version.
func decodeManifest(text []byte) (m Manifest, err error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&m); err != nil {
		// A newer one may differ in more than its fields' values.
		var version struct {
			Format int `json:"format"`
		}
		if json.Unmarshal(text, &version) == nil && version.Format > Version {
			return Manifest{}, (&Manifest{Format: version.Format}).Validate()
		}
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if decoder.More() {
		return Manifest{}, fmt.Errorf("%w: something follows it", ErrManifest)
	}
	if err := m.Validate(); err != nil {
		return Manifest{}, err
	}
	return m, nil
}
