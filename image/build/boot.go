package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"sidus/image/build/sandbox"
)

const (
	bootEntryPath = "usr/lib/sidus/boot.json"
	driversPath   = "usr/share/initramfs-tools/modules.d/sidus"
	compressPath  = "etc/initramfs-tools/conf.d/sidus-compress"
)

// bootEntry is what a tree says about how it is booted (package
// boot/protocol reads it).
type bootEntry struct {
	Protocol int    `json:"protocol"`
	Kernel   string `json:"kernel"`
	Initrd   string `json:"initrd"`
	CmdLine  string `json:"cmdline,omitempty"`
}

// boot is a boot phase: kernel, hook and agent, initrd, boot entry.
func (r *phaseRun) boot(ctx context.Context) error {
	b := r.phase.Boot
	if b.Kernel != KernelInstalled {
		if err := r.install(ctx, &Packages{Install: []string{b.Kernel}}); err != nil {
			return err
		}
	}
	version, err := newestKernel(r.root)
	if err != nil {
		return err
	}
	tree, err := openTree(r.root)
	if err != nil {
		return err
	}
	defer tree.close()
	r.say("installing hook and agent")
	if err := r.b.o.Boot.Install(r.root, BootOptions{Modules: b.Modules}); err != nil {
		return err
	}
	root := ownership{mode: 0o644}
	if len(b.Drivers) > 0 {
		if err := tree.put(driversPath, strings.NewReader(strings.Join(b.Drivers, "\n")+"\n"), root); err != nil {
			return err
		}
	}
	if b.Pack != "" {
		if err := tree.put(compressPath, strings.NewReader("COMPRESS="+b.Pack+"\n"), root); err != nil {
			return err
		}
	}
	initrd := "boot/initrd.img-" + version
	if err := tree.remove(initrd); err != nil {
		return err
	}
	if err := r.inTree(ctx, sandbox.Options{Args: []string{"update-initramfs", "-c", "-k", version}}); err != nil {
		return err
	}
	if !tree.exists(initrd) {
		return fmt.Errorf("update-initramfs made no /%s", initrd)
	}
	if err := r.b.o.Boot.Prepare(r.root); err != nil {
		return err
	}
	text, err := json.MarshalIndent(bootEntry{1, "/boot/vmlinuz-" + version, "/" + initrd, b.Cmdline}, "", "  ")
	if err != nil {
		return err
	}
	return tree.put(bootEntryPath, strings.NewReader(string(text)+"\n"), root)
}

// newestKernel is the highest version of the kernels in the tree's /boot.
func newestKernel(rootPath string) (string, error) {
	root, err := os.OpenRoot(rootPath)
	if err != nil {
		return "", err
	}
	defer root.Close()
	newest := ""
	if folder, err := root.Open("boot"); err == nil {
		entries, _ := folder.ReadDir(-1)
		folder.Close()
		for _, e := range entries {
			version, ok := strings.CutPrefix(e.Name(), "vmlinuz-")
			if ok && e.Type().IsRegular() && (newest == "" || laterVersion(version, newest)) {
				newest = version
			}
		}
	}
	if newest == "" {
		return "", errors.New("the tree has no kernel in /boot: name its package in the boot phase, for example \"kernel: linux-image-amd64\"")
	}
	return newest, nil
}

// laterVersion compares versions: runs of digits as numbers, the rest as
// text.
func laterVersion(a, b string) bool {
	for a != "" && b != "" {
		var x, y string
		x, a = versionPart(a)
		y, b = versionPart(b)
		if x == y {
			continue
		}
		if isDigit(x[0]) && isDigit(y[0]) {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(x) != len(y) {
				return len(x) > len(y)
			}
			if x == y {
				continue
			}
		}
		return x > y
	}
	return len(a) > len(b)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// versionPart cuts off the longest start that is all digits or has none.
func versionPart(text string) (part, rest string) {
	i := 1
	for i < len(text) && isDigit(text[i]) == isDigit(text[0]) {
		i++
	}
	return text[:i], text[i:]
}
