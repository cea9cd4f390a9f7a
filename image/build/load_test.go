package build

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// invalid has for each file of testdata/invalid what must be said of it.
var invalid = map[string]string{
	"bad-flag":          `:2:44: recommends is true or false, not the text "maybe"`,
	"bad-mirror":        `:4:15: mirror: "deb.debian.org" is neither a URL`,
	"bad-name":          `:2:11: name: "../x" is not a valid value`,
	"bad-tool":          `did you mean "debootstrap"?`,
	"bad-tree":          `:1:7: tree: "a/b" is not a valid value`,
	"bad-variant":       `:2:52: variant: "apt" is not known`,
	"base-second":       `:3:5: a base phase begins a tree`,
	"binary":            `not YAML`,
	"boot-key":          `did you mean "kernel"?`,
	"cycle":             `:2:5: the alias *a stands inside of what it stands for`,
	"cycle-deep":        `stands inside of what it stands for`,
	"empty":             `the recipe is empty`,
	"file-dots":         `is not an absolute path in the tree`,
	"file-from-outside": `:3:24: from: "../../etc/shadow" is not a path beside the recipe`,
	"file-mode":         `:3:36: mode (octal, for example 0644): "rwx" is not a valid value`,
	"file-owner":        `:3:37: owner: "a:b" is not a valid value`,
	"file-relative":     `:3:14: to: "etc/x" is not an absolute path in the tree`,
	"file-two-sources":  `:3:9: an entry of files has exactly one of`,
	"files-mapping":     `:2:12: files is a list, not a mapping`,
	"from-base":         `from-base.yaml:3:5: a base phase begins a tree`,
	"from-folder":       `:1:7: from: testdata: not a file`,
	"from-list":         `:1:7: from is text, not a list`,
	"from-missing":      `:1:7: from: testdata/invalid/nowhere.yaml: no such file or directory`,
	"from-self":         `:1:7: from: testdata/invalid/from-self.yaml starts from itself in the end`,
	"laughs":            `unfolds to more than 50000 values`,
	"list":              `:1:1: a recipe is a mapping`,
	"merge":             `:3:5: unknown key "<<"`,
	"minus-package":     `:3:7: packages: "nano-" would remove a package`,
	"no-kind":           `:2:5: a phase says what it does`,
	"no-phases":         `the recipe has no phases`,
	"no-suite":          `:2:11: base needs a suite`,
	"not-yaml":          `not YAML`,
	"null":              `the recipe is empty`,
	"only-comment":      `the recipe is empty`,
	"open-var":          `has no closing brace`,
	"option-as-package": `:2:16: packages: "--download-only" is not a valid value`,
	"option-as-suite":   `:2:19: suite: "--help" is not a valid value`,
	"packages-empty":    `:2:15: packages: nothing to install`,
	"packages-type":     `:2:25: packages is a list, not a mapping`,
	"phases-mapping":    `:2:3: phases is a list, not a mapping`,
	"run-empty":         `:2:10: the script is empty`,
	"run-list":          `:2:10: script is text, not a list`,
	"same-name":         `:3:5: a second phase is named "x"`,
	"scalar":            `:1:1: a recipe is a mapping with the keys "tree", "from", "vars", "phases", not the text "hello"`,
	"shell-var":         `:2:10: script: unknown variable ${HOME} (write $${HOME} to leave it to the shell)`,
	"tab":               `:2: not YAML`,
	"tree-dash":         `:1:7: tree: "-x" is not a valid value`,
	"tree-long":         `:1:7: tree: `,
	"twice":             `:4:1: "tree" is given twice (first in line 1)`,
	"two-documents":     `:2:1: a second document begins here`,
	"two-kinds":         `:2:5: a phase has one kind, not both "packages" and "run"`,
	"unknown-base-key":  `:4:7: unknown key "miror" in base; did you mean "mirror"?`,
	"unknown-far":       `:2:5: unknown key "frobnicate" in a phase; the keys are "name", "base"`,
	"unknown-kind":      `:2:5: unknown key "pacakges" in a phase; did you mean "packages"?`,
	"unknown-top":       `:2:1: unknown key "phase" in the recipe; did you mean "phases"?`,
	"unknown-var":       `:4:27: content: unknown variable ${domian}; did you mean ${domain}?`,
	"var-list":          `:2:6: variable a is text, not a list`,
	"var-missing":       `:2:3: variable "a" has no default: give it a value with --set a=…`,
	"var-name":          `:1:8: "a-b" is no name of a variable`,
}

func TestInvalidRecipesAreRefused(t *testing.T) {
	files, err := filepath.Glob("testdata/invalid/*.yaml")
	if err != nil || len(files) != len(invalid) {
		t.Errorf("%d files, %d expectations (%v)", len(files), len(invalid), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			_, err := Load(file, nil)
			if err == nil {
				t.Fatal("accepted")
			}
			var mistake *RecipeError
			if !errors.As(err, &mistake) {
				t.Errorf("not a RecipeError: %v", err)
			}
			want, ok := invalid[name]
			if !ok || !strings.Contains(err.Error(), want) {
				t.Errorf("got  %s\nwant %s", err, want)
			}
			if !strings.HasPrefix(err.Error(), "testdata/") || strings.Contains(err.Error(), "\n") || len(err.Error()) > 300 {
				t.Errorf("not one clear message: %q", err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestOddFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.yaml")
	if err := os.WriteFile(large, []byte("phases:\n"+strings.Repeat("  - run: hello\n", MaxRecipeBytes/14)), 0o644); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		large:                         "larger than 1048576 bytes",
		dir:                           "not a file",
		"/dev/zero":                   "not a file",
		filepath.Join(dir, "nothing"): "no such file or directory",
	} {
		if _, err := Load(file, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
}

func TestFromCycleOfTwo(t *testing.T) {
	dir := t.TempDir()
	for name, other := range map[string]string{"a.yaml": "b.yaml", "b.yaml": "a.yaml"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("from: "+other+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Load(filepath.Join(dir, "a.yaml"), nil)
	if err == nil || !strings.Contains(err.Error(), "b.yaml:1:7: from: ") || !strings.Contains(err.Error(), "starts from itself in the end") {
		t.Error(err)
	}
}

func TestSetOfUnknownVariable(t *testing.T) {
	file := writeRecipe(t, "vars: {domain: x}\nphases:\n  - run: x\n")
	for name, want := range map[string]string{
		"domian": `no variable "domian" to set; did you mean "domain"?`,
		"zzzzzz": `no variable "zzzzzz" to set; the recipe has "domain"`,
	} {
		if _, err := Load(file, map[string]string{name: "y"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSampleRecipes(t *testing.T) {
	set := map[string]map[string]string{"cluster-node.yaml": {"domain": "cluster.example.org"}}
	files, err := filepath.Glob("../../recipes/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		r, err := Load(file, set[filepath.Base(file)])
		if err != nil {
			t.Error(err)
			continue
		}
		// What it copies is there.
		if _, err := gather(t.Context(), r, "", openDigests("")); err != nil {
			t.Error(err)
		}
		if r.Phases[0].Kind != KindBase {
			t.Errorf("%s begins with %s", file, r.Phases[0].Kind)
		}
	}
}

func TestVariablesAndDefaults(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return name
	}
	write("base.yaml", `
vars: {suite: bookworm, extra: vim, yes: no}
phases:
  - base: {suite: "${suite}", architecture: amd64}
  - packages: {install: "${extra} less", recommends: "${yes}"}
`)
	file := write("top.yaml", `
tree: top
from: base.yaml
vars: {extra: "emacs nano", text: "a: [b]"}
phases:
  - packages: [git]
  - files:
      - {to: //etc//x/, content: "${text} $${HOME} $$${text} $5 $", mode: 0600}
  - {name: last, run: {script: "echo $HOME", shell: bash, network: no, env: {A: "${suite}"}}}
  - boot:
`)
	r, err := Load(file, map[string]string{"suite": "trixie"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range r.Phases {
		names = append(names, p.Name)
	}
	content := "a: [b] ${HOME} $${text} $5 $"
	for what, pair := range map[string][2]any{
		"tree":    {r.Tree, "top"},
		"names":   {fmt.Sprint(names), "[base packages packages-2 files last boot]"},
		"suite":   {r.Phases[0].Base.Suite, "trixie"},
		"install": {fmt.Sprint(r.Phases[1].Packages.Install), "[emacs nano less]"},
		"flag":    {r.Phases[1].Packages.Recommends, false},
		"to":      {r.Phases[3].Files.Entries[0].To, "/etc/x"},
		"mode":    {r.Phases[3].Files.Entries[0].Mode, "0600"},
		"content": {*r.Phases[3].Files.Entries[0].Content, content},
		"offline": {r.Phases[4].Run.Offline, true},
		"env":     {r.Phases[4].Run.Env["A"], "trixie"},
		"kernel":  {r.Phases[5].Boot.Kernel, KernelInstalled},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %q, want %q", what, pair[0], pair[1])
		}
	}
}

func FuzzRecipe(f *testing.F) {
	files, _ := filepath.Glob("testdata/invalid/*.yaml")
	samples, _ := filepath.Glob("../../recipes/*.yaml")
	for _, name := range append(files, samples...) {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p := parsed{source: source{file: "fuzz.yaml"}}
		root, err := p.source.parse(text)
		if err == nil {
			p.top, err = p.source.fields(root, "the recipe", topKeys)
		}
		var r *Recipe
		if err == nil {
			r, err = assemble("fuzz.yaml", place{}, []parsed{p}, nil)
		}
		if err != nil {
			var mistake *RecipeError
			if !errors.As(err, &mistake) {
				t.Fatalf("not a RecipeError: %v", err)
			}
			return
		}
		names := make(map[string]bool)
		for i := range r.Phases {
			if r.Phases[i].step() == nil || names[r.Phases[i].Name] {
				t.Fatalf("phase %d: %+v", i, r.Phases[i])
			}
			names[r.Phases[i].Name] = true
		}
	})
}
