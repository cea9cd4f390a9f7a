package build

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sidus/image/build/sandbox"
)

const aptConfigPath = "/run/sidus/apt.conf"

// aptConfig holds for every apt in a sandbox; it is never in the tree. A
// mirror that does not answer is given up within a minute, configuration files
// are taken as the recipe left them, no cache of lists is written, and
// packages stay in the cache of the host.
const aptConfig = `APT::Get::Assume-Yes "true";
APT::Update::Error-Mode "any";
APT::Color "false";
APT::Keep-Downloaded-Packages "true";
Binary::apt::APT::Keep-Downloaded-Packages "true";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
Acquire::Languages "none";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dpkg::Use-Pty "false";
DPkg::Lock::Timeout "60";
DPkg::Options { "--force-confdef"; "--force-confold"; };
`

// install is a packages phase.
func (r *phaseRun) install(ctx context.Context, p *Packages) error {
	if err := r.needApt(); err != nil {
		return err
	}
	if err := checkMirrors(ctx, r.treeSources()); err != nil {
		return err
	}
	if err := r.inTree(ctx, sandbox.Options{Args: []string{"apt-get", "update"}}); err != nil {
		return err
	}
	args := []string{"apt-get", "install", "--yes"}
	for option, wanted := range map[string]bool{"recommends": p.Recommends, "suggests": p.Suggests} {
		value := "false"
		if wanted {
			value = "true"
		}
		args = append(args, "--option=APT::Install-"+map[string]string{"recommends": "Recommends", "suggests": "Suggests"}[option]+"="+value)
	}
	slices.Sort(args[3:])
	// The initrd is made once, by the boot phase.
	return r.inTree(ctx, sandbox.Options{Args: append(append(args, "--"), p.Install...), Env: []string{"INITRD=No"}})
}

// purge is a purge phase.
func (r *phaseRun) purge(ctx context.Context) error {
	if err := r.needApt(); err != nil {
		return err
	}
	args := []string{"apt-get", "purge", "--yes", "--allow-remove-essential"}
	if r.phase.Purge.Autoremove {
		args = append(args, "--autoremove")
	}
	return r.inTree(ctx, sandbox.Options{Args: append(append(args, "--"), r.phase.Purge.Packages...), Env: []string{"INITRD=No"}})
}

func (r *phaseRun) needApt() error {
	tree, err := openTree(r.root)
	if err != nil {
		return err
	}
	defer tree.close()
	if !tree.exists("usr/bin/apt-get") {
		return errors.New("the tree has no apt: choose a variant of base that has it, for example minbase")
	}
	return nil
}

// treeSources are the lines of the tree's own apt sources.
func (r *phaseRun) treeSources() []string {
	root, err := os.OpenRoot(r.root)
	if err != nil {
		return nil
	}
	defer root.Close()
	var lines []string
	names := []string{"etc/apt/sources.list"}
	if folder, err := root.Open("etc/apt/sources.list.d"); err == nil {
		entries, _ := folder.ReadDir(-1)
		folder.Close()
		for _, e := range entries {
			names = append(names, "etc/apt/sources.list.d/"+e.Name())
		}
	}
	for _, name := range names {
		text, err := root.ReadFile(name)
		if err != nil {
			continue
		}
		var found []aptSource
		switch filepath.Ext(name) {
		case ".list":
			found = parseList(string(text))
		case ".sources":
			found = parseDeb822(string(text))
		}
		for _, s := range found {
			if !strings.HasPrefix(s.uri, "http") {
				continue // a path in the tree, not on the host
			}
			lines = append(lines, "deb "+s.uri+" "+s.suite+" -")
		}
	}
	return lines
}
