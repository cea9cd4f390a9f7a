package build

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"sidus/image/spell"
)

// source is one recipe file while it is decoded.
type source struct {
	file string
	at   place
	vars map[string]string // nil: nothing is replaced yet
}

func (s *source) errorf(n *yaml.Node, format string, args ...any) error {
	e := &RecipeError{File: s.file, Text: fmt.Sprintf(format, args...)}
	if n != nil {
		e.Line, e.Column = n.Line, n.Column
	}
	return e
}

// readFile reads a recipe, a regular file of bounded size.
func readFile(name string, at place) ([]byte, error) {
	info, err := os.Stat(at.path(name))
	if err != nil {
		return nil, &RecipeError{File: name, Text: underlying(err)}
	}
	if !info.Mode().IsRegular() {
		return nil, &RecipeError{File: name, Text: "not a file"}
	}
	f, err := os.Open(at.path(name))
	if err != nil {
		return nil, &RecipeError{File: name, Text: underlying(err)}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxRecipeBytes+1))
	if err != nil {
		return nil, &RecipeError{File: name, Text: underlying(err)}
	}
	return text, nil
}

func underlying(err error) string {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err.Error()
	}
	return err.Error()
}

var yamlPlace = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// parse returns the one mapping that a recipe is, with every alias replaced
// by what it stands for.
func (s *source) parse(text []byte) (*yaml.Node, error) {
	if len(text) > MaxRecipeBytes {
		return nil, s.errorf(nil, "larger than %d bytes: not a recipe", MaxRecipeBytes)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, s.errorf(nil, "the recipe is empty")
		}
		return nil, s.notYAML(err)
	}
	var second yaml.Node
	switch err := decoder.Decode(&second); {
	case err == nil:
		return nil, s.errorf(&second, "a second document begins here: a recipe is one")
	case !errors.Is(err, io.EOF):
		return nil, s.notYAML(err)
	}
	if len(document.Content) != 1 || isNull(document.Content[0]) {
		return nil, s.errorf(nil, "the recipe is empty")
	}
	budget := MaxNodes
	root, err := s.expand(document.Content[0], nil, &budget)
	if err != nil {
		return nil, err
	}
	if root.Kind != yaml.MappingNode {
		return nil, s.errorf(root, "a recipe is a mapping with the keys %s, not %s", quoteAll(topKeys), kindOf(root))
	}
	return root, nil
}

func (s *source) notYAML(err error) error {
	e := &RecipeError{File: s.file}
	place := yamlPlace.FindStringSubmatch(err.Error())
	text := err.Error()
	if place != nil {
		text = text[len(place[0]):]
		e.Line, _ = strconv.Atoi(place[1])
	}
	e.Text = "not YAML: " + text
	return e
}

// expand copies a node with its aliases replaced. A budget bounds what short
// files can unfold to.
func (s *source) expand(n *yaml.Node, open []*yaml.Node, budget *int) (*yaml.Node, error) {
	if *budget--; *budget < 0 {
		return nil, s.errorf(n, "the recipe unfolds to more than %d values", MaxNodes)
	}
	if len(open) > 100 {
		return nil, s.errorf(n, "nested more than 100 deep")
	}
	if n.Kind == yaml.AliasNode {
		if slices.Contains(open, n.Alias) {
			return nil, s.errorf(n, "the alias *%s stands inside of what it stands for", n.Value)
		}
		return s.expand(n.Alias, open, budget)
	}
	c := *n
	c.Anchor, c.Content = "", nil
	open = append(slices.Clip(open), n)
	for _, child := range n.Content {
		e, err := s.expand(child, open, budget)
		if err != nil {
			return nil, err
		}
		c.Content = append(c.Content, e)
	}
	return &c, nil
}

// field is one value of a mapping, with its key for messages.
type field struct {
	key, value *yaml.Node
}

// fields takes a mapping apart. Keys that are not in valid are refused with
// the nearest one that is.
func (s *source) fields(n *yaml.Node, what string, valid []string) (map[string]field, error) {
	if n.Kind != yaml.MappingNode {
		return nil, s.errorf(n, "%s is a mapping with the keys %s, not %s", what, quoteAll(valid), kindOf(n))
	}
	found := make(map[string]field, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode {
			return nil, s.errorf(k, "a key of %s is text, not %s", what, kindOf(k))
		}
		if first, double := found[k.Value]; double {
			return nil, s.errorf(k, "%q is given twice (first in line %d)", k.Value, first.key.Line)
		}
		if valid != nil && !slices.Contains(valid, k.Value) {
			if near := nearest(k.Value, valid); near != "" {
				return nil, s.errorf(k, "unknown key %q in %s; did you mean %q?", k.Value, what, near)
			}
			return nil, s.errorf(k, "unknown key %q in %s; the keys are %s", k.Value, what, quoteAll(valid))
		}
		found[k.Value] = field{k, n.Content[i+1]}
	}
	return found, nil
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// text is the value of a scalar as it was written, variables replaced.
func (s *source) text(n *yaml.Node, what string) (string, error) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		return "", s.errorf(n, "%s is text, not %s", what, kindOf(n))
	}
	if n.ShortTag() == "!!binary" {
		return "", s.errorf(n, "%s is text, not binary data", what)
	}
	if s.vars == nil {
		return n.Value, nil
	}
	value, err := substitute(n.Value, s.vars)
	if err != nil {
		return "", s.errorf(n, "%s: %v", what, err)
	}
	if strings.ContainsRune(value, 0) {
		return "", s.errorf(n, "%s holds a NUL byte", what)
	}
	return value, nil
}

// word is a text of a given form.
func (s *source) word(n *yaml.Node, what string, form *regexp.Regexp) (string, error) {
	value, err := s.text(n, what)
	if err != nil {
		return "", err
	}
	if !form.MatchString(value) {
		return "", s.errorf(n, "%s: %q is not a valid value", what, clip(value))
	}
	return value, nil
}

// choice is one of a few words.
func (s *source) choice(n *yaml.Node, what string, valid ...string) (string, error) {
	value, err := s.text(n, what)
	if err != nil {
		return "", err
	}
	if !slices.Contains(valid, value) {
		if near := nearest(value, valid); near != "" {
			return "", s.errorf(n, "%s: %q is not known; did you mean %q?", what, clip(value), near)
		}
		return "", s.errorf(n, "%s: %q is not known; it is one of %s", what, clip(value), quoteAll(valid))
	}
	return value, nil
}

// flag is true or false, also written yes, no, on, off.
func (s *source) flag(n *yaml.Node, what string) (bool, error) {
	value := ""
	if n.Kind == yaml.ScalarNode {
		var err error
		if value, err = s.text(n, what); err != nil {
			return false, err
		}
	}
	switch strings.ToLower(value) {
	case "true", "yes", "on":
		return true, nil
	case "false", "no", "off":
		return false, nil
	}
	return false, s.errorf(n, "%s is true or false, not %s", what, kindOf(n))
}

// list is a sequence of words; a single text is taken apart at its blanks.
func (s *source) list(n *yaml.Node, what string, form *regexp.Regexp) ([]string, error) {
	var words []string
	add := func(n *yaml.Node, value string) error {
		for word := range strings.FieldsSeq(value) {
			if !form.MatchString(word) {
				return s.errorf(n, "%s: %q is not a valid value", what, clip(word))
			}
			if !slices.Contains(words, word) {
				words = append(words, word)
			}
		}
		return nil
	}
	if n.Kind == yaml.ScalarNode && !isNull(n) {
		value, err := s.text(n, what)
		if err != nil {
			return nil, err
		}
		return words, add(n, value)
	}
	if n.Kind != yaml.SequenceNode {
		return nil, s.errorf(n, "%s is a list, not %s", what, kindOf(n))
	}
	for _, item := range n.Content {
		value, err := s.text(item, "an entry of "+what)
		if err != nil {
			return nil, err
		}
		if err := add(item, value); err != nil {
			return nil, err
		}
	}
	return words, nil
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if isNull(n) {
			return "nothing"
		}
		switch n.ShortTag() {
		case "!!bool", "!!int", "!!float":
			return n.Value
		}
		return fmt.Sprintf("the text %q", clip(n.Value))
	}
	return "something else"
}

func clip(text string) string {
	if runes := []rune(text); len(runes) > 60 {
		return string(runes[:57]) + "…"
	}
	return text
}

func quoteAll(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = strconv.Quote(w)
	}
	return strings.Join(quoted, ", ")
}

// nearest is the word of valid that differs from word in the fewest letters,
// or "" if none is near.
func nearest(word string, valid []string) string {
	if len(word) > 40 {
		return ""
	}
	best, bestDistance := "", max(2, len(word)/3)+1
	for _, v := range valid {
		if d := spell.Distance(word, v); d < bestDistance {
			best, bestDistance = v, d
		}
	}
	return best
}
