package build

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

var topKeys = []string{"tree", "from", "vars", "phases"}

// Load reads the recipe in file and those that it starts from. set gives
// values to variables that the recipe declares. Mistakes come back as
// *RecipeError.
func Load(file string, set map[string]string) (*Recipe, error) {
	return load(file, here(), set)
}

func load(file string, at place, set map[string]string) (*Recipe, error) {
	files, err := loadChain(file, at)
	if err != nil {
		return nil, err
	}
	return assemble(file, at, files, set)
}

// parsed is one file of a chain of recipes.
type parsed struct {
	source source
	text   []byte
	top    map[string]field
}

// loadChain reads file and what it starts from, the latter first.
func loadChain(file string, at place) ([]parsed, error) {
	var (
		chain []parsed
		infos []os.FileInfo
		from  *yaml.Node
		user  source
	)
	fail := func(err error) error {
		if from == nil {
			return err
		}
		if e, ok := err.(*RecipeError); ok && e.Line == 0 {
			return user.errorf(from, "from: %v", err)
		}
		return err
	}
	for {
		info, err := os.Stat(at.path(file))
		if err == nil {
			for _, seen := range infos {
				if os.SameFile(seen, info) {
					return nil, user.errorf(from, "from: %s starts from itself in the end", file)
				}
			}
			infos = append(infos, info)
		}
		if len(infos) > MaxFrom {
			return nil, user.errorf(from, "more than %d recipes start from one another", MaxFrom)
		}
		text, err := readFile(file, at)
		if err != nil {
			return nil, fail(err)
		}
		p := parsed{source: source{file: file, at: at}, text: text}
		root, err := p.source.parse(text)
		if err != nil {
			return nil, fail(err)
		}
		if p.top, err = p.source.fields(root, "the recipe", topKeys); err != nil {
			return nil, err
		}
		chain = append(chain, p)
		next, ok := p.top["from"]
		if !ok {
			slices.Reverse(chain)
			return chain, nil
		}
		name, err := p.source.text(next.value, "from")
		if err != nil {
			return nil, err
		}
		if name == "" {
			return nil, p.source.errorf(next.value, "from is the name of a recipe, not empty")
		}
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(file), name)
		}
		from, user, file = next.value, p.source, name
	}
}

// assemble decodes the files of a chain into one recipe.
func assemble(file string, at place, chain []parsed, set map[string]string) (*Recipe, error) {
	r := &Recipe{File: file, Vars: make(map[string]string), at: at, set: set, chain: chain}
	missing := make(map[string]error)
	for i := range chain {
		if err := chain[i].declare(r.Vars, missing); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if _, known := r.Vars[name]; !known {
			declared := slices.Sorted(maps.Keys(r.Vars))
			if near := nearest(name, declared); near != "" {
				return nil, &RecipeError{File: file, Text: fmt.Sprintf("no variable %q to set; did you mean %q?", clip(name), near)}
			}
			return nil, &RecipeError{File: file, Text: fmt.Sprintf("no variable %q to set; the recipe has %s", clip(name), orNone(declared))}
		}
		r.Vars[name] = set[name]
		delete(missing, name)
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		return nil, missing[name]
	}
	names := make(map[string]bool)
	for i := range chain {
		p := &chain[i]
		p.source.vars = r.Vars
		if tree, ok := p.top["tree"]; ok {
			var err error
			if r.Tree, err = p.source.word(tree.value, "tree", treeNameForm); err != nil {
				return nil, err
			}
		}
		if err := p.phases(r, names); err != nil {
			return nil, err
		}
	}
	if len(r.Phases) == 0 {
		return nil, &RecipeError{File: file, Text: "the recipe has no phases"}
	}
	return r, nil
}

func orNone(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return quoteAll(words)
}

// declare adds the variables of one file. One without a value must be set.
func (p *parsed) declare(vars map[string]string, missing map[string]error) error {
	f, ok := p.top["vars"]
	if !ok || isNull(f.value) {
		return nil
	}
	declared, err := p.source.fields(f.value, "vars", nil)
	if err != nil {
		return err
	}
	for name, v := range declared {
		if !varNameForm.MatchString(name) {
			return p.source.errorf(v.key, "%q is no name of a variable: letters, digits and _", clip(name))
		}
		if isNull(v.value) {
			vars[name] = ""
			missing[name] = p.source.errorf(v.key, "variable %q has no default: give it a value with --set %s=…", name, name)
			continue
		}
		if vars[name], err = p.source.text(v.value, "variable "+name); err != nil {
			return err
		}
		delete(missing, name)
	}
	return nil
}

// phases appends the phases of one file to the recipe.
func (p *parsed) phases(r *Recipe, names map[string]bool) error {
	f, ok := p.top["phases"]
	if !ok {
		return nil
	}
	if f.value.Kind != yaml.SequenceNode {
		return p.source.errorf(f.value, "phases is a list, not %s", kindOf(f.value))
	}
	for _, n := range f.value.Content {
		phase, err := p.source.phase(n)
		if err != nil {
			return err
		}
		if phase.Kind == KindBase && len(r.Phases) > 0 {
			return p.source.errorf(n, "a base phase begins a tree: it can only be the first phase")
		}
		if len(r.Phases) == MaxPhases {
			return p.source.errorf(n, "more than %d phases", MaxPhases)
		}
		if phase.Name == "" {
			phase.Name = string(phase.Kind)
			for i := 2; names[phase.Name]; i++ {
				phase.Name = fmt.Sprintf("%s-%d", phase.Kind, i)
			}
		}
		if names[phase.Name] {
			return p.source.errorf(n, "a second phase is named %q", phase.Name)
		}
		names[phase.Name] = true
		phase.Vars = r.Vars
		r.Phases = append(r.Phases, *phase)
	}
	return nil
}
