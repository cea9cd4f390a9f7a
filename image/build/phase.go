package build

import (
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// phase decodes one entry of phases: a mapping of its kind and, if wanted,
// its name.
func (s *source) phase(n *yaml.Node) (*Phase, error) {
	fields, err := s.fields(n, "a phase", append([]string{"name"}, kinds...))
	if err != nil {
		return nil, err
	}
	p := &Phase{File: s.file, Line: n.Line, at: s.at}
	if f, ok := fields["name"]; ok {
		if p.Name, err = s.word(f.value, "name", phaseNameForm); err != nil {
			return nil, err
		}
	}
	var body *yaml.Node
	for _, k := range kinds {
		f, ok := fields[k]
		if !ok {
			continue
		}
		if body != nil {
			return nil, s.errorf(f.key, "a phase has one kind, not both %q and %q: begin the second with a dash of its own", p.Kind, k)
		}
		p.Kind, body = Kind(k), f.value
	}
	if body == nil {
		return nil, s.errorf(n, "a phase says what it does with one of the keys %s", quoteAll(kinds))
	}
	switch p.Kind {
	case KindBase:
		p.Base, err = s.base(body)
	case KindPackages:
		p.Packages, err = s.packages(body)
	case KindPurge:
		p.Purge, err = s.purge(body)
	case KindFiles:
		p.Files, err = s.files(body)
	case KindRun:
		p.Run, err = s.run(body)
	case KindBoot:
		p.Boot, err = s.boot(body)
	}
	return p, err
}

var variants = map[string][]string{
	"mmdebstrap":  {"extract", "custom", "essential", "apt", "required", "minbase", "buildd", "important", "debootstrap", "standard"},
	"debootstrap": {"minbase", "buildd", "important", "fakechroot"},
}

func (s *source) base(n *yaml.Node) (*Base, error) {
	fields, err := s.fields(n, "base", []string{"tool", "suite", "mirror", "components", "variant", "architecture", "include", "exclude", "keyring", "slim"})
	if err != nil {
		return nil, err
	}
	b := &Base{Tool: "mmdebstrap", Components: []string{"main"}, Variant: "minbase", Architecture: architecture()}
	suite, ok := fields["suite"]
	if !ok {
		return nil, s.errorf(n, "base needs a suite, for example \"suite: bookworm\"")
	}
	if b.Suite, err = s.word(suite.value, "suite", wordForm); err != nil {
		return nil, err
	}
	if f, ok := fields["tool"]; ok {
		if b.Tool, err = s.choice(f.value, "tool", "mmdebstrap", "debootstrap"); err != nil {
			return nil, err
		}
	}
	if f, ok := fields["mirror"]; ok {
		if b.Mirrors, err = s.mirrors(f.value); err != nil {
			return nil, err
		}
		if b.Tool == "debootstrap" && (len(b.Mirrors) > 1 || strings.Contains(b.Mirrors[0], " ")) {
			return nil, s.errorf(f.value, "debootstrap takes one mirror, a URL")
		}
	}
	if f, ok := fields["components"]; ok {
		if b.Components, err = s.list(f.value, "components", wordForm); err != nil {
			return nil, err
		}
		if len(b.Components) == 0 {
			return nil, s.errorf(f.value, "components is empty")
		}
	}
	if f, ok := fields["variant"]; ok {
		if b.Variant, err = s.choice(f.value, "variant", variants[b.Tool]...); err != nil {
			return nil, err
		}
	}
	if f, ok := fields["architecture"]; ok {
		if b.Architecture, err = s.word(f.value, "architecture", wordForm); err != nil {
			return nil, err
		}
	}
	if f, ok := fields["include"]; ok {
		if b.Include, err = s.packageList(f.value, "include"); err != nil {
			return nil, err
		}
	}
	if f, ok := fields["exclude"]; ok {
		if b.Exclude, err = s.packageList(f.value, "exclude"); err != nil {
			return nil, err
		}
	}
	if f, ok := fields["keyring"]; ok {
		if b.Keyring, err = s.text(f.value, "keyring"); err != nil {
			return nil, err
		}
		if b.keyring = b.Keyring; !filepath.IsAbs(b.Keyring) {
			b.Keyring = filepath.Join(filepath.Dir(s.file), b.Keyring)
			b.keyring, b.beside = s.at.path(b.Keyring), true
		}
	}
	if f, ok := fields["slim"]; ok {
		if b.Slim, err = s.flag(f.value, "slim"); err != nil {
			return nil, err
		}
		if b.Slim && b.Tool == "debootstrap" {
			return nil, s.errorf(f.value, "slim needs mmdebstrap")
		}
	}
	return b, nil
}

// mirrors is one URL, or a list of URLs and whole sources.list lines.
func (s *source) mirrors(n *yaml.Node) ([]string, error) {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	var out []string
	for _, item := range items {
		value, err := s.text(item, "mirror")
		if err != nil {
			return nil, err
		}
		value = strings.Join(strings.Fields(value), " ")
		url := value
		if rest, ok := strings.CutPrefix(value, "deb "); ok {
			url = strings.TrimSpace(rest)
			if strings.HasPrefix(url, "[") {
				_, url, _ = strings.Cut(url, "] ")
			}
		}
		scheme, rest, found := strings.Cut(url, ":")
		if !found || !slices.Contains([]string{"http", "https", "file", "copy", "mirror"}, scheme) || strings.Trim(rest, "/") == "" {
			return nil, s.errorf(item, "mirror: %q is neither a URL (http, https, file, copy) nor a line of sources.list", clip(value))
		}
		if url == value && strings.Contains(value, " ") {
			return nil, s.errorf(item, "mirror: %q holds blanks; a line of sources.list begins with deb", clip(value))
		}
		out = append(out, value)
	}
	if len(out) == 0 {
		return nil, s.errorf(n, "mirror is empty; leave it out to use the machine's own")
	}
	return out, nil
}

func (s *source) packageList(n *yaml.Node, what string) ([]string, error) {
	list, err := s.list(n, what, packageForm)
	for _, name := range list {
		if strings.HasSuffix(name, "-") {
			return nil, s.errorf(n, "%s: %q would remove a package; that is what purge is for", what, name)
		}
	}
	return list, err
}

func (s *source) packages(n *yaml.Node) (*Packages, error) {
	p := &Packages{}
	install := field{value: n}
	if n.Kind == yaml.MappingNode {
		fields, err := s.fields(n, "packages", []string{"install", "recommends", "suggests"})
		if err != nil {
			return nil, err
		}
		var ok bool
		if install, ok = fields["install"]; !ok {
			return nil, s.errorf(n, "packages needs the list install")
		}
		if f, ok := fields["recommends"]; ok {
			if p.Recommends, err = s.flag(f.value, "recommends"); err != nil {
				return nil, err
			}
		}
		if f, ok := fields["suggests"]; ok {
			if p.Suggests, err = s.flag(f.value, "suggests"); err != nil {
				return nil, err
			}
		}
	}
	var err error
	if p.Install, err = s.packageList(install.value, "packages"); err != nil {
		return nil, err
	}
	if len(p.Install) == 0 {
		return nil, s.errorf(install.value, "packages: nothing to install")
	}
	return p, nil
}

func (s *source) purge(n *yaml.Node) (*Purge, error) {
	p := &Purge{Autoremove: true}
	list := field{value: n}
	if n.Kind == yaml.MappingNode {
		fields, err := s.fields(n, "purge", []string{"packages", "autoremove"})
		if err != nil {
			return nil, err
		}
		var ok bool
		if list, ok = fields["packages"]; !ok {
			return nil, s.errorf(n, "purge needs the list packages")
		}
		if f, ok := fields["autoremove"]; ok {
			if p.Autoremove, err = s.flag(f.value, "autoremove"); err != nil {
				return nil, err
			}
		}
	}
	var err error
	if p.Packages, err = s.packageList(list.value, "purge"); err != nil {
		return nil, err
	}
	if len(p.Packages) == 0 {
		return nil, s.errorf(list.value, "purge: nothing to remove")
	}
	return p, nil
}

func (s *source) files(n *yaml.Node) (*Files, error) {
	if n.Kind != yaml.SequenceNode {
		return nil, s.errorf(n, "files is a list, not %s", kindOf(n))
	}
	if len(n.Content) == 0 {
		return nil, s.errorf(n, "files is empty")
	}
	f := &Files{}
	for _, item := range n.Content {
		entry, err := s.file1(item)
		if err != nil {
			return nil, err
		}
		f.Entries = append(f.Entries, *entry)
	}
	return f, nil
}

func (s *source) file1(n *yaml.Node) (*File, error) {
	fields, err := s.fields(n, "an entry of files", []string{"to", "from", "content", "link", "mode", "owner", "group", "template"})
	if err != nil {
		return nil, err
	}
	e := &File{line: n.Line}
	to, ok := fields["to"]
	if !ok {
		return nil, s.errorf(n, "an entry of files needs \"to\", the path in the tree")
	}
	if e.To, err = s.text(to.value, "to"); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(e.To, "/") || slices.Contains(strings.Split(e.To, "/"), "..") {
		return nil, s.errorf(to.value, "to: %q is not an absolute path in the tree", clip(e.To))
	}
	e.To = path.Clean(e.To)
	given := 0
	if f, ok := fields["from"]; ok {
		given++
		if e.From, err = s.text(f.value, "from"); err != nil {
			return nil, err
		}
		if !filepath.IsLocal(e.From) {
			return nil, s.errorf(f.value, "from: %q is not a path beside the recipe", clip(e.From))
		}
		e.From = filepath.Clean(e.From)
	}
	if f, ok := fields["content"]; ok {
		given++
		text := ""
		if !isNull(f.value) {
			if text, err = s.text(f.value, "content"); err != nil {
				return nil, err
			}
		}
		e.Content = &text
	}
	if f, ok := fields["link"]; ok {
		given++
		if e.Link, err = s.text(f.value, "link"); err != nil {
			return nil, err
		}
		if e.Link == "" || fields["mode"].key != nil {
			return nil, s.errorf(f.value, "link is the target of a symbolic link, which has no mode")
		}
	}
	if given != 1 {
		return nil, s.errorf(n, "an entry of files has exactly one of \"from\", \"content\" and \"link\"")
	}
	if e.To == "/" && e.From == "" {
		return nil, s.errorf(to.value, "to: a file cannot take the place of the tree's root")
	}
	if f, ok := fields["mode"]; ok {
		if e.Mode, err = s.word(f.value, "mode (octal, for example 0644)", modeForm); err != nil {
			return nil, err
		}
	}
	for key, target := range map[string]*string{"owner": &e.Owner, "group": &e.Group} {
		if f, ok := fields[key]; ok {
			if *target, err = s.word(f.value, key, ownerForm); err != nil {
				return nil, err
			}
		}
	}
	if f, ok := fields["template"]; ok {
		if e.Template, err = s.flag(f.value, "template"); err != nil {
			return nil, err
		}
		if e.Template && e.From == "" {
			return nil, s.errorf(f.value, "template is for entries with \"from\"; variables in content are always replaced")
		}
	}
	return e, nil
}

func (s *source) run(n *yaml.Node) (*Run, error) {
	r := &Run{}
	script := field{value: n}
	if n.Kind == yaml.MappingNode {
		fields, err := s.fields(n, "run", []string{"script", "shell", "env", "network"})
		if err != nil {
			return nil, err
		}
		var ok bool
		if script, ok = fields["script"]; !ok {
			return nil, s.errorf(n, "run needs a script")
		}
		if f, ok := fields["shell"]; ok {
			if r.Shell, err = s.text(f.value, "shell"); err != nil {
				return nil, err
			}
			if r.Shell = strings.Join(strings.Fields(r.Shell), " "); r.Shell == "" {
				return nil, s.errorf(f.value, "shell is empty")
			}
		}
		if f, ok := fields["network"]; ok {
			network, err := s.flag(f.value, "network")
			if err != nil {
				return nil, err
			}
			r.Offline = !network
		}
		if f, ok := fields["env"]; ok {
			env, err := s.fields(f.value, "env", nil)
			if err != nil {
				return nil, err
			}
			r.Env = make(map[string]string, len(env))
			for name, v := range env {
				if !varNameForm.MatchString(name) {
					return nil, s.errorf(v.key, "env: %q is no name of a variable", clip(name))
				}
				if r.Env[name], err = s.text(v.value, name); err != nil {
					return nil, err
				}
			}
		}
	}
	var err error
	if r.Script, err = s.text(script.value, "script"); err != nil {
		return nil, err
	}
	if strings.TrimSpace(r.Script) == "" {
		return nil, s.errorf(script.value, "the script is empty")
	}
	return r, nil
}

func (s *source) boot(n *yaml.Node) (*Boot, error) {
	b := &Boot{Kernel: KernelInstalled}
	if isNull(n) {
		return b, nil
	}
	fields, err := s.fields(n, "boot", []string{"kernel", "cmdline", "initramfs"})
	if err != nil {
		return nil, err
	}
	if f, ok := fields["kernel"]; ok {
		if b.Kernel, err = s.word(f.value, "kernel", packageForm); err != nil {
			return nil, err
		}
	}
	if f, ok := fields["cmdline"]; ok {
		if b.Cmdline, err = s.text(f.value, "cmdline"); err != nil {
			return nil, err
		}
		b.Cmdline = strings.Join(strings.Fields(b.Cmdline), " ")
	}
	f, ok := fields["initramfs"]
	if !ok {
		return b, nil
	}
	options, err := s.fields(f.value, "initramfs", []string{"modules", "drivers", "compress"})
	if err != nil {
		return nil, err
	}
	if f, ok := options["modules"]; ok {
		if b.Modules, err = s.choice(f.value, "modules", "most", "netboot", "dep", "list"); err != nil {
			return nil, err
		}
	}
	if f, ok := options["drivers"]; ok {
		if b.Drivers, err = s.list(f.value, "drivers", driverForm); err != nil {
			return nil, err
		}
	}
	if f, ok := options["compress"]; ok {
		if b.Pack, err = s.choice(f.value, "compress", "zstd", "gzip", "xz", "lz4", "lzma", "bzip2", "lzop"); err != nil {
			return nil, err
		}
	}
	return b, nil
}
