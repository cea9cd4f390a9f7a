package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// mountPoints are the files and folders that a sandbox mounts over. Those
// that a tree lacks are made before and removed after; an empty file without
// permissions marks ours, so that one which was left over (kill -9) is
// removed the next time and does no harm until then.
type mountPoints struct {
	root   *os.Root
	made   []string
	resolv bool // etc/resolv.conf can be mounted over
	policy bool // usr/sbin/policy-rc.d can be mounted over
}

var pointFolders = []string{"proc", "sys", "dev", "run", "tmp"}

func makeMountPoints(root string) (*mountPoints, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	p := &mountPoints{root: r}
	for _, name := range pointFolders {
		if _, err := r.Lstat(name); err == nil {
			continue
		}
		if err := r.Mkdir(name, 0o755); err != nil {
			p.remove()
			return nil, fmt.Errorf("mount point /%s: %w", name, err)
		}
		p.made = append(p.made, name)
	}
	p.resolv = p.file("etc", "resolv.conf")
	p.policy = p.file("usr/sbin", "policy-rc.d")
	return p, nil
}

// file makes dir/name if it is missing. It says whether it is there.
func (p *mountPoints) file(dir, name string) bool {
	if info, err := p.root.Stat(dir); err != nil || !info.IsDir() {
		return false
	}
	name = dir + "/" + name
	info, err := p.root.Lstat(name)
	if err == nil {
		if isMark(info) {
			p.made = append(p.made, name)
		}
		return !info.IsDir()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	f, err := p.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		return false
	}
	f.Close()
	p.made = append(p.made, name)
	return true
}

func isMark(info fs.FileInfo) bool {
	return info.Mode() == 0 && info.Size() == 0 // a regular file, permissions 0000
}

// remove takes away what was made, unless the program put something there.
func (p *mountPoints) remove() {
	for i := len(p.made) - 1; i >= 0; i-- {
		name := p.made[i]
		info, err := p.root.Lstat(name)
		if err != nil || !info.IsDir() && !isMark(info) {
			continue
		}
		_ = p.root.Remove(name) // a folder that is not empty stays
	}
	p.root.Close()
}
