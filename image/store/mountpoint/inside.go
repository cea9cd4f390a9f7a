package mountpoint

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// mount is a line of /proc/self/mountinfo, see proc_pid_mountinfo(5).
type mount struct {
	id, parent string
	device     string // major:minor
	path       string
}

func readMounts() ([]mount, error) {
	file, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return parseMounts(file)
}

func parseMounts(r io.Reader) ([]mount, error) {
	var mounts []mount
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 {
			return nil, fmt.Errorf("mountinfo: a line that cannot be read: %q", lines.Text())
		}
		mounts = append(mounts, mount{id: fields[0], parent: fields[1], device: fields[2], path: unescape(fields[4])})
	}
	return mounts, lines.Err()
}

// unescape undoes the octal escapes (\040 for a blank) of mountinfo.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// Inside returns where something is mounted inside a thing: also inside
// another mount of the same file system, such as a bind mount of a part of it.
// Nothing if the thing is not mounted.
func (t *Table) Inside(name string) ([]string, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	return inside(mounts, t.Path(name)), nil
}

func inside(mounts []mount, folder string) []string {
	device := ""
	for _, m := range mounts {
		if m.path == folder {
			device = m.device // of several on one folder, the last is seen
		}
	}
	if device == "" {
		return nil
	}
	on := make(map[string]bool)
	for _, m := range mounts {
		if m.device == device {
			on[m.id] = true
		}
	}
	var found []string
	for _, m := range mounts {
		if on[m.parent] && m.device != device {
			found = append(found, m.path)
		}
	}
	return found
}
