package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"sidus/image/build/sandbox"
)

// slimExcludes are the files that dpkg leaves out of a slim tree, now and in
// every later phase.
var slimExcludes = []string{
	"path-exclude=/usr/share/man/*",
	"path-exclude=/usr/share/doc/*",
	"path-include=/usr/share/doc/*/copyright",
	"path-exclude=/usr/share/info/*",
	"path-exclude=/usr/share/locale/*",
	"path-include=/usr/share/locale/locale.alias",
	"path-exclude=/usr/share/lintian/*",
	"path-exclude=/usr/share/bug/*",
}

// base is a base phase: mmdebstrap or debootstrap, on the host's root and in
// namespaces, fill the empty workspace.
func (r *phaseRun) base(ctx context.Context) error {
	base := r.phase.Base
	if _, err := exec.LookPath(base.Tool); err != nil {
		return fmt.Errorf("%s is not installed on this machine: apt-get install %s", base.Tool, base.Tool)
	}
	mirrors := r.b.o.Mirrors
	if mirrors == nil {
		m := MachineMirrors("/etc/apt")
		mirrors = &m
	}
	lines := sourceLines(base, *mirrors)
	if err := checkMirrors(ctx, lines); err != nil {
		return err
	}
	tree, err := openTree(r.root)
	if err != nil {
		return err
	}
	defer tree.close()
	o := sandbox.Options{Stdout: r.out, Stderr: r.out, NoSync: true}
	for target, source := range map[string]string{
		"var/cache/apt/archives": r.packages.archives(),
		"var/lib/apt/lists":      r.packages.lists(),
	} {
		fd, err := tree.folder(target)
		if err != nil {
			return err
		}
		if err := os.NewFile(uintptr(fd), target).Close(); err != nil {
			return err
		}
		o.Binds = append(o.Binds, sandbox.Bind{Source: source, Target: r.root + "/" + target})
	}
	if base.Tool == "debootstrap" {
		o.Args = debootstrapArgs(base, r.root, lines)
	} else {
		o.Args = mmdebstrapArgs(base, r.root, lines)
	}
	if err := r.packages.lend(); err != nil {
		return err
	}
	r.out.note("$ " + clipTo(strings.Join(o.Args, " "), 4000))
	if err := sandbox.Run(ctx, o); err != nil {
		var ended *sandbox.ExitError
		if errors.As(err, &ended) {
			return fmt.Errorf("%s: %w", base.Tool, err)
		}
		return err
	}
	if err := r.packages.keep(); err != nil {
		return err
	}
	return finishBase(tree, base, lines)
}

func mmdebstrapArgs(b *Base, root string, lines []string) []string {
	args := []string{
		"mmdebstrap", "--mode=root", "--format=directory",
		"--variant=" + b.Variant,
		"--architectures=" + b.Architecture,
		"--components=" + strings.Join(b.Components, ","),
		// The folders of the package cache are there already; what lies in
		// them stays for the next phase and the next build.
		"--skip=check/empty,essential/unlink,cleanup/apt/cache,cleanup/apt/lists",
		`--aptopt=Acquire::Retries "2"`,
		`--aptopt=Acquire::http::Timeout "20"`,
		`--aptopt=Acquire::https::Timeout "20"`,
		`--aptopt=Acquire::Languages "none"`,
		`--aptopt=APT::Keep-Downloaded-Packages "true"`,
		`--aptopt=Binary::apt::APT::Keep-Downloaded-Packages "true"`,
		`--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap`,
	}
	if len(b.Include) > 0 {
		args = append(args, "--include="+strings.Join(b.Include, ","))
	}
	if b.Keyring != "" {
		args = append(args, "--keyring="+b.keyring)
	}
	if len(b.Exclude) > 0 {
		// mmdebstrap has no option for it; apt does not choose what has a
		// negative priority.
		const name = `"$1"/etc/apt/preferences.d/99sidus-exclude`
		args = append(args,
			`--setup-hook=mkdir -p "$1"/etc/apt/preferences.d && printf 'Package: %s\nPin: release *\nPin-Priority: -1\n' '`+
				strings.Join(b.Exclude, " ")+`' > `+name,
			`--customize-hook=rm -f `+name)
	}
	if b.Slim {
		for _, line := range slimExcludes {
			args = append(args, "--dpkgopt="+line)
		}
	}
	args = append(args, b.Suite, root)
	return append(args, lines...)
}

func debootstrapArgs(b *Base, root string, lines []string) []string {
	args := []string{"debootstrap", "--arch=" + b.Architecture, "--components=" + strings.Join(b.Components, ",")}
	if b.Variant != "important" {
		args = append(args, "--variant="+b.Variant)
	}
	if len(b.Include) > 0 {
		args = append(args, "--include="+strings.Join(b.Include, ","))
	}
	if len(b.Exclude) > 0 {
		args = append(args, "--exclude="+strings.Join(b.Exclude, ","))
	}
	if b.Keyring != "" {
		args = append(args, "--keyring="+b.keyring)
	}
	return append(args, b.Suite, root, parseList(lines[0])[0].uri)
}

// finishBase takes away what the tools leave of the host, and writes the
// tree's own apt sources.
func finishBase(tree *inTree, b *Base, lines []string) error {
	for _, name := range []string{"resolv.conf", "hostname"} {
		ours, err := os.ReadFile("/etc/" + name)
		if err != nil {
			continue
		}
		f, err := tree.open("etc/" + name)
		if err != nil {
			continue
		}
		theirs := make([]byte, len(ours)+1)
		n, _ := f.Read(theirs)
		f.Close()
		if bytes.Equal(theirs[:n], ours) {
			if err := tree.remove("etc/" + name); err != nil {
				return err
			}
		}
	}
	if b.Tool == "debootstrap" && tree.isFolder("etc/apt") {
		text := strings.Join(lines, "\n") + "\n"
		if err := tree.put("etc/apt/sources.list", strings.NewReader(text), ownership{mode: 0o644}); err != nil {
			return err
		}
	}
	for _, name := range []string{"pkgcache.bin", "srcpkgcache.bin"} {
		if err := tree.remove("var/cache/apt/" + name); err != nil {
			return err
		}
	}
	return nil
}
