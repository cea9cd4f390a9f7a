package build

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// substitute replaces ${name} by the variable's value and $${ by ${. What a
// value holds is not looked at again.
func substitute(text string, vars map[string]string) (string, error) {
	if !strings.Contains(text, "${") {
		return text, nil
	}
	var out strings.Builder
	for {
		before, after, found := strings.Cut(text, "${")
		if !found {
			out.WriteString(text)
			return out.String(), nil
		}
		if escaped, ok := strings.CutSuffix(before, "$"); ok {
			out.WriteString(escaped + "${")
			text = after
			continue
		}
		out.WriteString(before)
		name, rest, closed := strings.Cut(after, "}")
		value, known := vars[name]
		switch {
		case !closed:
			return "", fmt.Errorf("%q has no closing brace (write $${ for a plain ${)", clip("${"+after))
		case !known:
			hint := ""
			if near := nearest(name, slices.Sorted(maps.Keys(vars))); near != "" {
				hint = fmt.Sprintf("; did you mean ${%s}?", near)
			}
			return "", fmt.Errorf("unknown variable ${%s}%s (write $${%s} to leave it to the shell)", clip(name), hint, clip(name))
		}
		out.WriteString(value)
		text = rest
	}
}
