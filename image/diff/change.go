package diff

// Kind says what became of a path.
type Kind string

// The kinds of changes.
const (
	Added   Kind = "added"
	Removed Kind = "removed"
	Changed Kind = "changed"
)

// Aspect is one thing about a file that changed.
type Aspect string

// The aspects of a file, in the order in which they are told.
const (
	Type       Aspect = "type" // the others are not compared then
	Content    Aspect = "content"
	Target     Aspect = "target" // of a symbolic link
	Device     Aspect = "device" // the device's number
	Mode       Aspect = "mode"
	Owner      Aspect = "owner" // or group
	ACL        Aspect = "acl"
	Capability Aspect = "capability"
	Xattr      Aspect = "xattr" // other extended attributes
	Links      Aspect = "links" // which names are one file
	Time       Aspect = "time"  // of modification; told if Options.Times is set
)

// File is what is told of a file on one side.
type File struct {
	Mode   uint32 `json:"mode"` // type and permissions as in inode(7)
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   int64  `json:"size"`             // bytes
	Target string `json:"target,omitempty"` // of a symbolic link
}

// Change is a path that differs.
type Change struct {
	Path    string   `json:"path"` // from "/" on; arbitrary bytes
	Kind    Kind     `json:"kind"`
	Aspects []Aspect `json:"aspects,omitempty"` // of what changed
	Old     *File    `json:"old,omitempty"`     // nil if it was added
	New     *File    `json:"new,omitempty"`     // nil if it was removed
}
