package storm

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
	"unicode/utf8"
)

// Recording is the NFS calls of a boot. docs/boot-recording.md describes the
// file that holds one.
type Recording struct {
	Made    time.Time
	LeftOut int      // calls that were seen but are not in Calls: they would write, or use handles of unknown origin
	Objects []Object // Objects[0] is the root; parents stand before their children
	Calls   []Call   // in the order in which they were sent
}

// Object is a file, directory or other inode that the boot came across.
type Object struct {
	Parent int      `json:"parent"` // of the root: 0
	Name   FileName `json:"name"`
	// Attributes as RFC 1813 numbers them; Type 0 if none were seen.
	Type  uint32 `json:"type,omitempty"`
	Mode  uint32 `json:"mode,omitempty"`
	Links uint32 `json:"links,omitempty"`
	UID   uint32 `json:"uid,omitempty"`
	GID   uint32 `json:"gid,omitempty"`
	Size  uint64 `json:"size,omitempty"`
	Major uint32 `json:"major,omitempty"`
	Minor uint32 `json:"minor,omitempty"`
	// Modification time: seconds and nanoseconds.
	Sec  uint32 `json:"sec,omitempty"`
	Nsec uint32 `json:"nsec,omitempty"`
	// Target is what a symlink that was read points to.
	Target FileName `json:"target,omitempty"`
	// Listing is the digest of the names in a directory that was read to its
	// end (see listing), or 0.
	Listing uint64 `json:"listing,omitempty"`
}

// Call is one NFS call and its reply.
type Call struct {
	Proc   string   `json:"proc"` // such as LOOKUP
	Object int      `json:"object"`
	Name   FileName `json:"name,omitempty"`   // LOOKUP
	Gives  int      `json:"gives,omitempty"`  // LOOKUP: the object found, 0 if none
	Offset uint64   `json:"offset,omitempty"` // READ
	Count  uint32   `json:"count,omitempty"`  // READ; READDIR and READDIRPLUS: how much a reply may hold
	Bits   uint32   `json:"bits,omitempty"`   // ACCESS: what was asked
	Status uint32   `json:"status,omitempty"`
	// Length and CRC tell what READ returned: bytes, and their CRC-32C.
	Length uint32 `json:"length,omitempty"`
	CRC    uint32 `json:"crc,omitempty"`
	Grant  uint32 `json:"grant,omitempty"` // ACCESS: what was granted
	UID    uint32 `json:"uid,omitempty"`
	GID    uint32 `json:"gid,omitempty"`

	// After is the call whose reply came last before this call was sent, -1 if
	// none had come; Needs is the call whose reply gave the handle, -1 if that
	// is the mount. Think is how long after the reply to After this was sent.
	After int           `json:"after"`
	Needs int           `json:"needs"`
	Think time.Duration `json:"think"` // nanoseconds
}

// FileName is a name of arbitrary bytes. In JSON it is a string if it is
// UTF-8, else {"base64": …}.
type FileName string

type rawName struct {
	Base64 []byte `json:"base64"`
}

// MarshalJSON implements json.Marshaler.
func (n FileName) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(n)) {
		return json.Marshal(string(n))
	}
	return json.Marshal(rawName{[]byte(n)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *FileName) UnmarshalJSON(text []byte) error {
	if bytes.HasPrefix(text, []byte("{")) {
		var raw rawName
		err := json.Unmarshal(text, &raw)
		*n = FileName(raw.Base64)
		return err
	}
	return json.Unmarshal(text, (*string)(n))
}

// Bytes is how many bytes of file data the boot read.
func (r *Recording) Bytes() (n uint64) {
	for i := range r.Calls {
		n += uint64(r.Calls[i].Length)
	}
	return n
}

// Thinking is the length of the longest chain of waiting: what a boot takes
// if the server and the network take no time.
func (r *Recording) Thinking() time.Duration {
	at := make([]time.Duration, len(r.Calls))
	var last time.Duration
	for i, c := range r.Calls {
		for _, j := range [2]int{c.After, c.Needs} {
			if j >= 0 {
				at[i] = max(at[i], at[j])
			}
		}
		at[i] += c.Think
		last = max(last, at[i])
	}
	return last
}

// path returns the path of an object below the root, "." for the root.
func (r *Recording) path(object int) string {
	path := ""
	for ; object > 0; object = r.Objects[object].Parent {
		path = filepath.Join(string(r.Objects[object].Name), path)
	}
	return filepath.Clean(path)
}

const (
	formatName    = "sidus boot recording"
	formatVersion = 1
	// maxItems bounds objects and calls of a recording that is read.
	maxItems = 4 << 20
)

type header struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Made    time.Time `json:"made"`
	LeftOut int       `json:"left_out"`
	Objects int       `json:"objects"`
	Calls   int       `json:"calls"`
}

// Write writes a recording.
func (r *Recording) Write(w io.Writer) error {
	z, _ := gzip.NewWriterLevel(w, gzip.BestCompression) // the level is valid
	encoder := json.NewEncoder(z)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(header{formatName, formatVersion, r.Made, r.LeftOut, len(r.Objects), len(r.Calls)})
	for i := range r.Objects {
		err = errors.Join(err, encoder.Encode(&r.Objects[i]))
	}
	for i := range r.Calls {
		err = errors.Join(err, encoder.Encode(&r.Calls[i]))
	}
	return errors.Join(err, z.Close())
}

// WriteFile writes a recording to a file, which shows only when it is complete.
func (r *Recording) WriteFile(path string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	out := bufio.NewWriter(f)
	if err = errors.Join(r.Write(out), out.Flush(), f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// ErrFormat is wrapped by the errors of Read for what is no recording.
var ErrFormat = errors.New("not a boot recording")

// Read reads a recording.
func Read(in io.Reader) (*Recording, error) {
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	decoder := json.NewDecoder(z)
	var h header
	if err := decoder.Decode(&h); err != nil || h.Format != formatName {
		return nil, fmt.Errorf("%w: it has another header: %w", ErrFormat, err)
	}
	if h.Version != formatVersion {
		return nil, fmt.Errorf("%w of version %d, but of %d", ErrFormat, formatVersion, h.Version)
	}
	if h.Objects < 1 || h.Objects > maxItems || h.Calls < 1 || h.Calls > maxItems {
		return nil, fmt.Errorf("%w: %d objects and %d calls", ErrFormat, h.Objects, h.Calls)
	}
	r := &Recording{Made: h.Made, LeftOut: h.LeftOut}
	for i := range h.Objects {
		var o Object
		if err := decoder.Decode(&o); err != nil {
			return nil, fmt.Errorf("%w: object %d: %w", ErrFormat, i, err)
		}
		r.Objects = append(r.Objects, o)
	}
	for i := range h.Calls {
		var c Call
		if err := decoder.Decode(&c); err != nil {
			return nil, fmt.Errorf("%w: call %d: %w", ErrFormat, i, err)
		}
		r.Calls = append(r.Calls, c)
	}
	return r, r.validate()
}

// ReadFile reads the recording in a file.
func ReadFile(path string) (*Recording, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	r, err := Read(bufio.NewReader(f))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// validate makes sure that what refers to something does.
func (r *Recording) validate() error {
	for i, o := range r.Objects {
		if o.Parent < 0 || o.Parent >= max(i, 1) {
			return fmt.Errorf("%w: object %d: parent %d", ErrFormat, i, o.Parent)
		}
		if i > 0 && (o.Name == "" || o.Name == "." || o.Name == ".." || len(o.Name) > 255 || bytes.ContainsAny([]byte(o.Name), "/\x00")) {
			return fmt.Errorf("%w: object %d is named %q", ErrFormat, i, string(o.Name))
		}
	}
	for i, c := range r.Calls {
		if _, ok := procByName[c.Proc]; !ok || c.Object < 0 || c.Object >= len(r.Objects) || c.Gives < 0 || c.Gives >= len(r.Objects) ||
			c.After < -1 || c.After >= i || c.Needs < -1 || c.Needs >= i || c.Think < 0 || len(c.Name) > 255 || c.Count > 1<<24 {
			return fmt.Errorf("%w: call %d: %+v", ErrFormat, i, c)
		}
	}
	return nil
}
