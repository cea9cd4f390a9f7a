package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
)

// mount is a line of /proc/self/mountinfo, see proc(5).
type mount struct {
	id     string
	parent string // its id
	device string // major:minor
	point  string
	fs     string
	source string
	super  string // options of the file system, as mount(2) takes them
}

func readMounts() ([]mount, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(data)
}

// parseMounts returns the mounts in their order: of those at one point, the
// last one counts.
func parseMounts(data []byte) ([]mount, error) {
	var list []mount
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20) // an overlay's options may be long
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		head, tail := strings.Split(before, " "), strings.Split(after, " ")
		if !ok || len(head) < 6 || len(tail) < 3 {
			return nil, fmt.Errorf("/proc/self/mountinfo: the line %.200q is not understood", lines.Text())
		}
		list = append(list, mount{id: head[0], parent: head[1], device: head[2], point: unescape(head[4]), fs: tail[0], source: unescape(tail[1]), super: unescape(tail[2])})
	}
	return list, lines.Err()
}

// unescape undoes the octal escapes of mountinfo: space, tab, newline and
// backslash.
func unescape(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}

// at is the topmost mount at a point.
func at(mounts []mount, point string) (mount, bool) {
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].point == point {
			return mounts[i], true
		}
	}
	return mount{}, false
}

// below are the points of the mounts that are seen in a directory, which may
// be one itself; not those in them.
func below(mounts []mount, dir string) []string {
	base, ok := at(mounts, dir)
	if !ok {
		base, _ = at(mounts, "/")
	}
	var points []string
	for _, m := range mounts {
		if m.parent == base.id && strings.HasPrefix(m.point, dir+"/") && !slices.Contains(points, m.point) {
			points = append(points, m.point)
		}
	}
	return points
}
