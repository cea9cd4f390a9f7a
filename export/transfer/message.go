package transfer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"sidus/export/stream"
	"sidus/image"
	"sidus/image/store"
)

// The versions of the protocol that this package speaks.
const (
	minVersion = 1
	maxVersion = 1
)

// The kinds of messages. Each side ignores fields that it does not know; what
// must be understood raises the version.
const (
	msgHello     = "hello"     // both: hello
	msgInventory = "inventory" // asked for without a body; answered with image.Inventory
	msgSnapshot  = "snapshot"  // offer; answered with offerReply; then resume and data, or nothing; answered with stored
	msgResume    = "resume"    // resume: from which unit on the data begins
	msgDrop      = "drop"      // drop; answered with done
	msgState     = "state"     // state, and data: catalog and secrets; answered with done
	msgDone      = "done"      // that was done
	msgError     = "error"     // remoteError: that was not done
	msgBye       = "bye"       // the sender has no more to ask
)

// Mode says what a sender wants.
type Mode string

// The modes.
const (
	Send      Mode = "send"      // a snapshot, for a server that writes itself
	Replicate Mode = "replicate" // everything, for a replica
)

type hello struct {
	Min     int    `json:"min"` // versions of the protocol
	Max     int    `json:"max"`
	Program string `json:"program"`
	Host    string `json:"host"`
	Mode    Mode   `json:"mode,omitempty"` // of a sender
	// Kinds are the native kinds of streams that a receiver takes.
	Kinds []stream.Kind `json:"kinds,omitempty"`
	Site  string        `json:"site"`
	Epoch int64         `json:"epoch"`
	Role  image.Role    `json:"role"`
	// Can names what it can do that older ones cannot.
	Can []string `json:"can,omitempty"`
	// Channels is where a sender's channels point: a replica that does not
	// have that yet is not ready.
	Channels map[string]store.SnapshotID `json:"channels,omitempty"`
}

// What hello.Can names.
const (
	takesRecipes = "recipes" // a receiver: kept recipes in the state
	keepsAlive   = "alive"   // takes frames that say nothing; a sender sends some when it has nothing to say
	answersAlive = "answers" // a receiver: sends such frames while it works, to senders that take them
)

func (h hello) can(what string) bool { return slices.Contains(h.Can, what) }

// version returns the newest version that both speak.
func version(a, b hello) (int, error) {
	v := min(a.Max, b.Max)
	if v < max(a.Min, b.Min) {
		return 0, fmt.Errorf("%w: %s (%s) speaks %d to %d, %s (%s) %d to %d; update the older one",
			ErrVersion, a.Host, a.Program, a.Min, a.Max, b.Host, b.Program, b.Min, b.Max)
	}
	return v, nil
}

type offer struct {
	Manifest stream.Manifest `json:"manifest"`
	Tree     string          `json:"tree,omitempty"` // list it under this name
}

type offerReply struct {
	Have  bool     `json:"have,omitempty"`  // it is there already
	Units []string `json:"units,omitempty"` // sums of what is there of the stream, in hexadecimal digits
}

type resume struct {
	From int `json:"from"` // units that are not sent
}

type stored struct {
	Ref string `json:"ref"` // tree@number at the receiver
}

type drop struct {
	Snapshots []store.SnapshotID `json:"snapshots"`
	Trees     []string           `json:"trees"` // IDs
	// Booted tells when each machine, by its MAC address, last booted from the
	// sender.
	Booted map[string]time.Time `json:"booted,omitempty"`
}

type state struct {
	AsOf   time.Time `json:"as_of"`
	SHA256 string    `json:"sha256"` // of the data
	// Properties are those of image.Manager.PropertiesOfTrees.
	Properties map[string]map[string]string `json:"properties,omitempty"`
	// Recipes says that the kept recipes are in the data.
	Recipes bool `json:"recipes,omitempty"`
}

// RemoteError is what the other side said.
type RemoteError struct {
	Host  string `json:"host"`
	Code  string `json:"code"`
	Text  string `json:"text"`
	Epoch int64  `json:"epoch,omitempty"` // with codeSuperseded: that of the other side
}

func (e *RemoteError) Error() string { return fmt.Sprintf("%s says: %s", e.Host, e.Text) }

// The codes of errors. Others are allowed, and mean a failure.
const (
	codeFailed     = "failed"
	codeExists     = "exists"
	codeInUse      = "in-use"
	codeNotFound   = "not-found"
	codeNoSpace    = "no-space"
	codeBase       = "base-unusable"
	codeKind       = "kind"
	codeDamaged    = "damaged"
	codeVersion    = "version"
	codeSuperseded = "superseded"
	codeBehind     = "behind"
	codeToken      = "token"
)

var codes = []struct {
	code string
	err  error
}{
	{codeBase, store.ErrBaseUnusable}, {codeNoSpace, store.ErrNoSpace}, {codeKind, stream.ErrKind}, {codeDamaged, stream.ErrDamaged},
	{codeVersion, ErrVersion}, {codeSuperseded, ErrSuperseded}, {codeBehind, image.ErrBehind}, {codeToken, ErrToken},
	{codeExists, store.ErrExists}, {codeInUse, store.ErrInUse}, {codeNotFound, store.ErrNotFound},
}

// ErrSuperseded is returned to a primary whose site has a later one.
var ErrSuperseded = errors.New("another server took over from this one")

// ErrToken is returned to a sender whose token is wrong.
var ErrToken = errors.New("the token is wrong")

// Unwrap makes errors.Is find the sentinel error that a code stands for.
func (e *RemoteError) Unwrap() error {
	for _, c := range codes {
		if c.code == e.Code {
			return c.err
		}
	}
	return nil
}

func remote(err error) *RemoteError {
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return &RemoteError{Host: hostname(), Code: c.code, Text: err.Error()}
		}
	}
	return &RemoteError{Host: hostname(), Code: codeFailed, Text: err.Error()}
}

// ManifestOf describes a snapshot in a stream, but for what depends on how it
// is sent: kind, base and size.
func ManifestOf(s image.Snapshot, program string) stream.Manifest {
	return stream.Manifest{
		Format: stream.Version, Tree: s.Tree, TreeID: s.TreeID, Number: s.Number, Snapshot: s.ID, Parent: s.Parent, Name: s.Name,
		Phase: s.Phase, Key: s.Key, Recipe: s.Recipe, Message: s.Message, Author: s.Author, Created: s.Created, Complete: s.Complete,
		Program: program,
	}
}

// SnapshotOf is the inverse of ManifestOf.
func SnapshotOf(m stream.Manifest) image.Snapshot {
	return image.Snapshot{
		ID: m.Snapshot, TreeID: m.TreeID, Tree: m.Tree, Number: m.Number, Parent: m.Parent, Name: m.Name, Phase: m.Phase, Key: m.Key,
		Recipe: m.Recipe, Message: m.Message, Author: m.Author, Created: m.Created, Complete: m.Complete,
	}
}
