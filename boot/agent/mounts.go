package agent

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// superOptions are those of the file system that is mounted, as mount(2) takes
// them.
func superOptions(m mountinfo.Info) string { return unescape(m.VFSOptions) }

// device is the device of what is mounted: major:minor.
func device(m mountinfo.Info) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// unescape undoes the octal escapes that mountinfo leaves: space, tab, newline
// and backslash.
func unescape(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}

// at is the topmost mount at a point.
func at(mounts []*mountinfo.Info, point string) (mountinfo.Info, bool) {
	for _, m := range slices.Backward(mounts) {
		if m.Mountpoint == point {
			return *m, true
		}
	}
	return mountinfo.Info{}, false
}

// below are the points of the mounts that are seen in a directory, which may
// be one itself; not those in them.
func below(mounts []*mountinfo.Info, dir string) []string {
	base, ok := at(mounts, dir)
	if !ok {
		base, _ = at(mounts, "/")
	}
	var points []string
	for _, m := range mounts {
		if m.Parent == base.ID && strings.HasPrefix(m.Mountpoint, dir+"/") && !slices.Contains(points, m.Mountpoint) {
			points = append(points, m.Mountpoint)
		}
	}
	return points
}
