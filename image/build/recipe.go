package build

import (
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
)

// Limits of a recipe. They are far above what a person writes and keep a
// hostile file from eating the machine.
const (
	MaxRecipeBytes = 1 << 20 // of one file
	MaxNodes       = 50_000  // of one file, aliases expanded
	MaxPhases      = 200     // of a recipe and all that it starts from
	MaxFrom        = 16      // recipes that start from one another
)

// Kind says what a phase does.
type Kind string

// The kinds of phases.
const (
	KindBase     Kind = "base"
	KindPackages Kind = "packages"
	KindPurge    Kind = "purge"
	KindFiles    Kind = "files"
	KindRun      Kind = "run"
	KindBoot     Kind = "boot"
)

var kinds = []string{string(KindBase), string(KindPackages), string(KindPurge), string(KindFiles), string(KindRun), string(KindBoot)}

// Recipe is a checked recipe: every variable replaced, every default filled
// in, the phases of the recipes that it starts from first.
type Recipe struct {
	File   string // as given to Load
	Tree   string // default name of the tree; "" if the recipe names none
	Vars   map[string]string
	Phases []Phase

	at    place
	set   map[string]string // the values that were given to Load
	chain []parsed
}

// Phase is one step of a recipe. Exactly one of the pointers is set, as Kind
// says.
type Phase struct {
	Name string // unique in the recipe
	Kind Kind
	File string // the recipe that it stands in
	Line int    // where it begins
	Vars map[string]string

	at place

	Base     *Base
	Packages *Packages
	Purge    *Purge
	Files    *Files
	Run      *Run
	Boot     *Boot
}

// dir is the folder that the phase's files are relative to.
func (p *Phase) dir() string { return p.at.path(filepath.Dir(p.File)) }

// step is the part that the kind says.
func (p *Phase) step() any {
	switch p.Kind {
	case KindBase:
		return p.Base
	case KindPackages:
		return p.Packages
	case KindPurge:
		return p.Purge
	case KindFiles:
		return p.Files
	case KindRun:
		return p.Run
	default:
		return p.Boot
	}
}

// The JSON form of the following types is the canonical text of a phase: it
// goes into the keys. A new field must be omitted from it when it is empty,
// or every tree is built anew.

// Base makes a Debian (or Ubuntu) system in an empty folder.
type Base struct {
	Tool         string   `json:"tool"`  // mmdebstrap or debootstrap
	Suite        string   `json:"suite"` // bookworm, trixie, sid, …
	Mirrors      []string `json:"mirrors,omitempty"`
	Components   []string `json:"components"`
	Variant      string   `json:"variant"`
	Architecture string   `json:"architecture"`
	Include      []string `json:"include,omitempty"`
	Exclude      []string `json:"exclude,omitempty"`
	Keyring      string   `json:"keyring,omitempty"`
	Slim         bool     `json:"slim,omitempty"` // no manuals, documentation, translations

	keyring string // where it lies; Keyring says how it is named
	beside  bool   // the recipe names it relative to itself
}

// Packages installs packages.
type Packages struct {
	Install    []string `json:"install"`
	Recommends bool     `json:"recommends,omitempty"`
	Suggests   bool     `json:"suggests,omitempty"`
}

// Purge removes packages and their configuration.
type Purge struct {
	Packages   []string `json:"packages"`
	Autoremove bool     `json:"autoremove,omitempty"`
}

// Files copies files into the tree.
type Files struct {
	Entries []File `json:"entries"`
}

// File is one entry of a files phase. One of From, Content and Link is set.
type File struct {
	To       string  `json:"to"`
	From     string  `json:"from,omitempty"` // beside the recipe; a file or a folder
	Content  *string `json:"content,omitempty"`
	Link     string  `json:"link,omitempty"` // target of a symbolic link
	Mode     string  `json:"mode,omitempty"` // octal; of files
	Owner    string  `json:"owner,omitempty"`
	Group    string  `json:"group,omitempty"`
	Template bool    `json:"template,omitempty"` // variables in From are replaced
	line     int
}

// Run runs a script in the tree.
type Run struct {
	Script  string            `json:"script"`
	Shell   string            `json:"shell,omitempty"` // command line; "" is sh -e
	Env     map[string]string `json:"env,omitempty"`
	Offline bool              `json:"offline,omitempty"` // network: false
}

// Boot makes the tree boot as a Sidus node.
type Boot struct {
	Kernel  string   `json:"kernel"` // a package, or KernelInstalled
	Cmdline string   `json:"cmdline,omitempty"`
	Modules string   `json:"modules,omitempty"`  // initramfs-tools' MODULES: most, netboot, dep, list
	Drivers []string `json:"drivers,omitempty"`  // modules that the initrd must have
	Pack    string   `json:"compress,omitempty"` // initramfs-tools' COMPRESS
}

// KernelInstalled as Boot.Kernel takes the kernel that an earlier phase
// installed.
const KernelInstalled = "installed"

// RecipeError is a mistake in a recipe, at a place of its file.
type RecipeError struct {
	File         string
	Line, Column int // from 1; 0 if the mistake has no place
	Text         string
}

func (e *RecipeError) Error() string {
	switch {
	case e.Line == 0:
		return e.File + ": " + e.Text
	case e.Column == 0:
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Text)
}

var (
	treeNameForm  = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	phaseNameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	varNameForm   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
	wordForm      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+~_/-]*$`) // suites, components, variants, shells
	packageForm   = regexp.MustCompile(`^[a-z0-9][A-Za-z0-9.+:~=/_-]*$`)
	modeForm      = regexp.MustCompile(`^0?[0-7]{3,4}$`)
	ownerForm     = regexp.MustCompile(`^([a-z_][a-z0-9_-]{0,31}|[0-9]{1,10})$`)
	driverForm    = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
)

// architecture is Debian's name of the machine's architecture.
func architecture() string {
	switch runtime.GOARCH {
	case "386":
		return "i386"
	case "arm":
		return "armhf"
	case "ppc64le":
		return "ppc64el"
	}
	return runtime.GOARCH
}
