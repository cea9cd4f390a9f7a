package build

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidus/image/store"
)

var update = flag.Bool("update", false, "write the golden files anew")

const planRecipe = `
tree: t
phases:
  - base: {suite: bookworm, architecture: amd64}
  - packages: [vim]
  - name: site
    files:
      - {to: /etc/site, from: site}
`

// planCase builds a recipe on paper and plans it again after a change.
type planCase struct {
	name    string
	recipe  string // "": planRecipe
	rebuild string
	change  func(t *testing.T, dir string, k *Known, keys []string)
	want    string // a line a phase: run or cached, and the reason
	from    string
	seal    bool
	move    bool
}

func TestPlan(t *testing.T) {
	cases := []planCase{
		{name: "nothing is there", change: func(_ *testing.T, _ string, k *Known, _ []string) { *k = Known{} },
			want: "run never built\nrun never built\nrun never built"},
		{name: "nothing changed", want: "cached t@1\ncached t@2\ncached t@3", from: "t@3"},
		{name: "comments and layout", recipe: "# new\ntree: t\nphases:\n- base:\n    architecture: amd64\n    suite: \"bookworm\"\n- {packages: {install: vim}, name: packages}\n- name: site\n  files: [{from: site, to: /etc/site}]\n",
			want: "cached t@1\ncached t@2\ncached t@3", from: "t@3"},
		{name: "text of the second phase", recipe: strings.Replace(planRecipe, "[vim]", "[vim, less]", 1),
			want: "cached t@1\nrun recipe text of phase packages changed\nrun parent changed", from: "t@1"},
		{name: "text of the first phase", recipe: strings.Replace(planRecipe, "bookworm", "trixie", 1),
			want: "run recipe text of phase base changed\nrun parent changed\nrun parent changed"},
		{name: "a new phase", recipe: strings.Replace(planRecipe, "  - name: site", "  - run: echo hello\n  - name: site", 1),
			want: "cached t@1\ncached t@2\nrun never built\nrun parent changed", from: "t@2"},
		{name: "a file", change: func(t *testing.T, dir string, _ *Known, _ []string) {
			if err := os.WriteFile(filepath.Join(dir, "site/a"), []byte("other"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, want: "cached t@1\ncached t@2\nrun file site/a changed", from: "t@2"},
		{name: "a mode", change: func(t *testing.T, dir string, _ *Known, _ []string) {
			if err := os.Chmod(filepath.Join(dir, "site/a"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, want: "cached t@1\ncached t@2\nrun file site/a changed", from: "t@2"},
		{name: "group permissions are nothing", change: func(t *testing.T, dir string, _ *Known, _ []string) {
			if err := os.Chmod(filepath.Join(dir, "site/a"), 0o660); err != nil {
				t.Fatal(err)
			}
		}, want: "cached t@1\ncached t@2\ncached t@3", from: "t@3"},
		{name: "two more files", change: func(t *testing.T, dir string, _ *Known, _ []string) {
			for _, name := range []string{"b", "c"} {
				if err := os.WriteFile(filepath.Join(dir, "site", name), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}, want: "cached t@1\ncached t@2\nrun file site/b is new (and 1 more)", from: "t@2"},
		{name: "rebuild", rebuild: "packages", want: "cached t@1\nrun --rebuild\nrun parent runs again", from: "t@1"},
		{name: "rebuild all", rebuild: "base", want: "run --rebuild\nrun parent runs again\nrun parent runs again"},
		{name: "a step was deleted", change: func(_ *testing.T, _ string, k *Known, keys []string) { delete(k.ByKey, keys[0]) },
			want: "cached a later phase is there\ncached t@2\ncached t@3", from: "t@3"},
		{name: "the end was deleted", change: func(_ *testing.T, _ string, k *Known, keys []string) { delete(k.ByKey, keys[2]) },
			want: "cached t@1\ncached t@2\nrun its snapshot is gone", from: "t@2"},
		{name: "inputs are forgotten", recipe: strings.Replace(planRecipe, "[vim]", "[vim, less]", 1), change: func(_ *testing.T, _ string, k *Known, _ []string) {
			for phase, p := range k.Before {
				p.Inputs, p.Parent = nil, ""
				k.Before[phase] = p
			}
		}, want: "cached t@1\nrun the recipe or a file of it changed\nrun the recipe or a file of it changed", from: "t@1"},
		{name: "not complete yet", change: func(_ *testing.T, _ string, k *Known, keys []string) {
			s := k.ByKey[keys[2]]
			s.Complete = false
			k.ByKey[keys[2]] = s
		}, want: "cached t@1\ncached t@2\ncached t@3", from: "t@3", seal: true},
		{name: "of another tree", change: func(_ *testing.T, _ string, k *Known, keys []string) {
			s := k.ByKey[keys[2]]
			s.Own = false
			k.ByKey[keys[2]] = s
		}, want: "cached t@1\ncached t@2\ncached t@3", from: "t@3", seal: true},
		{name: "the head is elsewhere", change: func(_ *testing.T, _ string, k *Known, keys []string) { k.Base = k.ByKey[keys[0]].ID },
			want: "cached t@1\ncached t@2\ncached t@3", from: "t@3", move: true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t) })
	}
}

func (c planCase) run(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "recipe.yaml")
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	load := func(text string) (*Recipe, []Inputs) {
		t.Helper()
		write("recipe.yaml", text)
		r := mustLoad(t, file, nil)
		inputs, err := gather(t.Context(), r, "boot", openDigests(""))
		if err != nil {
			t.Fatal(err)
		}
		return r, inputs
	}
	write("site/a", "a")
	r, inputs := load(planRecipe)
	known := Known{ByKey: make(map[string]Snapshot), Before: make(map[string]Past)}
	var keys []string
	parent := ""
	for i := range inputs {
		key := inputs[i].Key(parent)
		known.Base = store.SnapshotID(fmt.Sprintf("%032d", i+1))
		known.ByKey[key] = Snapshot{ID: known.Base, Ref: fmt.Sprintf("t@%d", i+1), Key: key, Own: true, Complete: i == 2}
		known.Before[r.Phases[i].Name] = Past{Key: key, Parent: parent, Inputs: &inputs[i]}
		keys = append(keys, key)
		parent = key
	}
	if c.change != nil {
		c.change(t, dir, &known, keys)
	}
	text := c.recipe
	if text == "" {
		text = planRecipe
	}
	r, inputs = load(text)
	plan, err := NewPlan(r, inputs, known, c.rebuild)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range plan.Phases {
		what := "cached"
		if p.Run {
			what = "run"
		}
		got = append(got, what+" "+p.Reason)
	}
	if text := strings.Join(got, "\n"); text != c.want {
		t.Errorf("got\n%s\nwant\n%s", text, c.want)
	}
	if plan.From.Ref != c.from || plan.Seal != c.seal || plan.Move != c.move {
		t.Errorf("from %q, seal %v, move %v", plan.From.Ref, plan.Seal, plan.Move)
	}
}

func TestRebuildOfAnUnknownPhase(t *testing.T) {
	r := mustLoad(t, writeRecipe(t, "phases:\n  - packages: [vim]\n"), nil)
	inputs, err := gather(t.Context(), r, "", openDigests(""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewPlan(r, inputs, Known{}, "pakages"); err == nil || !strings.Contains(err.Error(), `did you mean "packages"?`) {
		t.Error(err)
	}
}

// TestKeysAreStable fails when the keys of all trees change, and everything
// that people have built would be built anew. If that must be, raise
// keyFormat and run with -update.
func TestKeysAreStable(t *testing.T) {
	r := mustLoad(t, "testdata/keys.yaml", map[string]string{"name": "value"})
	inputs, err := gather(t.Context(), r, "digest-of-hook-and-agent", openDigests(""))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	parent := ""
	for i := range inputs {
		parent = inputs[i].Key(parent)
		fmt.Fprintf(&got, "%s %s\n", parent, r.Phases[i].Name)
	}
	const golden = "testdata/keys.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}

func TestEveryInputChangesTheKey(t *testing.T) {
	text, err := os.ReadFile("testdata/keys.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := copyFolder("testdata/keys", filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	last := func(text string) string {
		t.Helper()
		file := filepath.Join(dir, "recipe.yaml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		inputs, err := gather(t.Context(), mustLoad(t, file, nil), "", openDigests(""))
		if err != nil {
			t.Fatal(err)
		}
		key := ""
		for _, in := range inputs {
			key = in.Key(key)
		}
		return key
	}
	seen := map[string]string{last(string(text)): "the original"}
	for old, changed := range map[string]string{
		"suite: bookworm": "suite: trixie", "variant: apt": "variant: minbase", "[main, contrib]": "[main]",
		"slim: yes": "slim: no", "architecture: amd64": "architecture: arm64", "include: [eatmydata]": "include: []", "exclude: [nano]": "exclude: []", "http://mirror.example/debian": "http://other.example/debian",
		"recommends: yes": "recommends: no", "suggests: yes": "suggests: no", "install: [vim": "install: [emacs",
		"autoremove: no": "autoremove: yes", "mode: \"0600\"": "mode: \"0601\"", "owner: daemon": "owner: bin", "group: mail": "group: bin",
		"link: /dev/null": "link: /dev/zero", "content: \"${name}\"": "content: other", "name: default": "name: another",
		"shell: bash": "shell: dash", "network: no": "network: yes", "echo hello": "echo hullo", "A: b": "A: c",
		"kernel: linux-image-amd64": "kernel: installed", "cmdline: quiet": "cmdline: debug", "modules: most": "modules: dep",
		"drivers: [e1000]": "drivers: [e1000e]", "compress: zstd": "compress: xz",
	} {
		if !strings.Contains(string(text), old) {
			t.Errorf("%q is not in the recipe", old)
			continue
		}
		key := last(strings.Replace(string(text), old, changed, 1))
		if other, double := seen[key]; double {
			t.Errorf("%q has the same key as %s", changed, other)
		}
		seen[key] = changed
	}
}
