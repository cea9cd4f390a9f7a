package mountpoint

import "github.com/moby/sys/mountinfo"

// Inside returns where something is mounted inside a thing: also inside
// another mount of the same file system, such as a bind mount of a part of it.
// Nothing if the thing is not mounted.
func (t *Table) Inside(name string) ([]string, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	return inside(mounts, t.Path(name)), nil
}

func inside(mounts []*mountinfo.Info, folder string) []string {
	var there *mountinfo.Info
	for _, m := range mounts {
		if m.Mountpoint == folder {
			there = m // of several on one folder, the last is seen
		}
	}
	if there == nil {
		return nil
	}
	of := func(m *mountinfo.Info) bool { return m.Major == there.Major && m.Minor == there.Minor }
	on := make(map[int]bool)
	for _, m := range mounts {
		if of(m) {
			on[m.ID] = true
		}
	}
	var found []string
	for _, m := range mounts {
		if on[m.Parent] && !of(m) {
			found = append(found, m.Mountpoint)
		}
	}
	return found
}
