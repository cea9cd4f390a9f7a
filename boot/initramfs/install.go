package initramfs

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// The agent (cmd/sidus-agent) is built before this package, by the Makefile,
// to files/sidus-agent. Without it all but Install works.
//
//go:embed all:files
var files embed.FS

// AgentPath is where the agent lies in a tree.
const AgentPath = "/usr/lib/sidus/sidus-agent"

// ErrNoAgent is returned by Install if this program was built without the
// agent.
var ErrNoAgent = errors.New("this sidus was built without the agent: build it with make")

// Options says how to install. The zero value is good.
type Options struct {
	// Modules is initramfs-tools' MODULES= setting; "" means "netboot": what a
	// machine needs until its root is there, which is the network. "most" adds
	// the drivers of all disks, which makes the initrd larger by a third.
	Modules string
	// Agent is the agent's program, statically linked; nil means the one that
	// was built into this program.
	Agent []byte
}

// Agent is the agent that was built into this program. The error wraps
// ErrNoAgent if there is none.
func Agent() ([]byte, error) {
	agent, err := files.ReadFile("files/sidus-agent")
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(agent) == 0 {
		return nil, ErrNoAgent
	}
	return agent, err
}

const (
	toolsDir = "usr/share/initramfs-tools"
	unitsDir = "usr/lib/systemd/system"
)

// wantedBy names, for each unit, those that start it.
var wantedBy = map[string][]string{
	"sidus-lease.service":    {"sysinit.target"},
	"sidus-agent.service":    {"multi-user.target"},
	"sidus-ssh-keys.service": {"ssh.service", "sshd.service", "ssh.socket"},
}

// Install writes the hook, the boot script, the agent and its units into the
// tree at root, which may be "/" inside a chroot. Nothing outside of root is
// written, whatever links are in the tree. What an earlier version wrote is
// replaced. The error wraps ErrNoAgent if there is no agent to install, and
// says which package is missing if the tree has no initramfs-tools, busybox or
// systemd.
func Install(root string, opts Options) error {
	if err := install(root, opts); err != nil {
		return fmt.Errorf("make %s bootable: %w", root, err)
	}
	return nil
}

func install(root string, opts Options) error {
	agent := opts.Agent
	if agent == nil {
		var err error
		if agent, err = Agent(); err != nil {
			return err
		}
	}
	modules := opts.Modules
	if modules == "" {
		modules = "netboot"
	}
	tree, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer tree.Close()
	for file, pkg := range map[string]string{
		"usr/sbin/mkinitramfs":    "initramfs-tools",
		"usr/lib/systemd/systemd": "systemd",
		"usr/bin/busybox":         "busybox",
	} {
		_, err := tree.Stat(file)
		if err != nil && file == "usr/bin/busybox" {
			_, err = tree.Stat("bin/busybox") // a tree with unmerged /usr
		}
		if err != nil {
			return fmt.Errorf("the tree has no /%s: add the package %s", file, pkg)
		}
	}

	w := writer{tree: tree}
	w.copy("hook", toolsDir+"/hooks/sidus", 0o755)
	w.copy("script", toolsDir+"/scripts/sidus", 0o644)
	w.write(toolsDir+"/conf.d/sidus", bytes.ReplaceAll(w.read("initramfs.conf"), []byte("@MODULES@"), []byte(modules)), 0o644)
	w.write(AgentPath[1:], agent, 0o755)
	for unit, by := range wantedBy {
		w.copy("units/"+unit, unitsDir+"/"+unit, 0o644)
		for _, other := range by {
			w.link("../"+unit, unitsDir+"/"+other+".wants/"+unit)
		}
	}
	for _, layer := range []string{"ro", "rw", "updates", "updates-"} { // updates-: all below it
		w.copy("units/keep-mounted.conf", unitsDir+"/run-sidus-"+layer+".mount.d/sidus.conf", 0o644)
	}
	return w.err
}

// writer writes files into a tree until the first error.
type writer struct {
	tree *os.Root
	err  error
}

func (w *writer) read(name string) []byte {
	data, err := files.ReadFile("files/" + name)
	if err != nil && w.err == nil {
		w.err = err
	}
	return data
}

func (w *writer) copy(name, target string, mode fs.FileMode) { w.write(target, w.read(name), mode) }

// write replaces target, which is a path without a leading slash. A program
// that runs from the old file keeps it.
func (w *writer) write(target string, data []byte, mode fs.FileMode) {
	w.replace(target, func(temporary string) error {
		if err := w.tree.WriteFile(temporary, data, mode); err != nil {
			return err
		}
		return w.tree.Chmod(temporary, mode) // whatever the umask is
	})
}

// link makes target a symbolic link to what.
func (w *writer) link(what, target string) {
	w.replace(target, func(temporary string) error { return w.tree.Symlink(what, temporary) })
}

func (w *writer) replace(target string, create func(temporary string) error) {
	if w.err != nil {
		return
	}
	temporary := path.Join(path.Dir(target), "."+path.Base(target)+".sidus-new")
	w.err = func() error {
		if err := w.tree.MkdirAll(path.Dir(target), 0o755); err != nil {
			return err
		}
		if err := w.tree.RemoveAll(temporary); err != nil {
			return err
		}
		if err := create(temporary); err != nil {
			return errors.Join(err, w.tree.RemoveAll(temporary))
		}
		if err := w.tree.Rename(temporary, target); err != nil {
			return errors.Join(err, w.tree.RemoveAll(temporary))
		}
		return nil
	}()
}

// lines splits a file into its lines, without the newlines.
func lines(data []byte) []string {
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}
