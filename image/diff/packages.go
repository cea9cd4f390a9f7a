package diff

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// PackageKind says what became of a package.
type PackageKind string

// The kinds of changes of packages.
const (
	PackageAdded      PackageKind = "added"
	PackageRemoved    PackageKind = "removed"
	PackageUpgraded   PackageKind = "upgraded"
	PackageDowngraded PackageKind = "downgraded"
)

// PackageChange is a package that differs.
type PackageChange struct {
	Name         string      `json:"name"`
	Architecture string      `json:"architecture"`
	Kind         PackageKind `json:"kind"`
	Old          string      `json:"old,omitempty"` // version; "" if it was added
	New          string      `json:"new,omitempty"` // version; "" if it was removed
}

const statusFile = "var/lib/dpkg/status"

// Packages compares what dpkg has installed in two trees, sorted by name and
// architecture. A tree without dpkg has no packages.
func Packages(oldRoot, newRoot string) ([]PackageChange, error) {
	old, err := installed(oldRoot)
	if err != nil {
		return nil, err
	}
	now, err := installed(newRoot)
	if err != nil {
		return nil, err
	}
	var changes []PackageChange
	for key, version := range old {
		change := PackageChange{Name: key.name, Architecture: key.architecture, Old: version, New: now[key]}
		switch order := CompareVersions(change.Old, change.New); {
		case change.New == "":
			change.Kind = PackageRemoved
		case order < 0:
			change.Kind = PackageUpgraded
		case order > 0:
			change.Kind = PackageDowngraded
		case change.Old == change.New:
			continue
		default: // two spellings of one version
			change.Kind = PackageUpgraded
		}
		changes = append(changes, change)
	}
	for key, version := range now {
		if _, ok := old[key]; !ok {
			changes = append(changes, PackageChange{Name: key.name, Architecture: key.architecture, Kind: PackageAdded, New: version})
		}
	}
	slices.SortFunc(changes, func(a, b PackageChange) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Architecture, b.Architecture)
	})
	return changes, nil
}

type packageKey struct{ name, architecture string }

func installed(root string) (map[packageKey]string, error) {
	top, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	file, err := top.Open(statusFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer file.Close()
	packages, err := parseStatus(file)
	if err != nil {
		return nil, fmt.Errorf("%s/%s: %w", root, statusFile, err)
	}
	return packages, nil
}

// parseStatus reads dpkg's list, see deb-control(5): paragraphs of fields. What
// is unpacked counts as installed, what only left its configuration does not.
func parseStatus(r io.Reader) (map[packageKey]string, error) {
	packages := map[packageKey]string{}
	fields := map[string]string{}
	end := func() {
		state := strings.Fields(fields["status"])
		there := len(state) == 3 && state[2] != "not-installed" && state[2] != "config-files"
		if there && fields["package"] != "" {
			packages[packageKey{fields["package"], fields["architecture"]}] = fields["version"]
		}
		clear(fields)
	}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		text := strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(text) == "" {
			end()
		} else if text[0] != ' ' && text[0] != '\t' {
			name, value, _ := strings.Cut(text, ":")
			switch name = strings.ToLower(name); name {
			case "package", "status", "version", "architecture":
				fields[name] = strings.TrimSpace(value)
			}
		}
		if err != nil {
			end()
			return packages, nil
		}
	}
}

// CompareVersions compares two versions of Debian packages as deb-version(7)
// says: negative if a is the older one.
func CompareVersions(a, b string) int {
	epochA, upstreamA, revisionA := splitVersion(a)
	epochB, upstreamB, revisionB := splitVersion(b)
	for _, pair := range [][2]string{{epochA, epochB}, {upstreamA, upstreamB}, {revisionA, revisionB}} {
		if c := compareParts(pair[0], pair[1]); c != 0 {
			return c
		}
	}
	return 0
}

func splitVersion(v string) (epoch, upstream, revision string) {
	epoch = "0"
	if before, after, ok := strings.Cut(v, ":"); ok {
		epoch, v = before, after
	}
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		return epoch, v[:i], v[i+1:]
	}
	return epoch, v, ""
}

// compareParts compares parts that are no digits and parts that are, by turns.
func compareParts(a, b string) int {
	digit := func(s string, i int) bool { return i < len(s) && s[i] >= '0' && s[i] <= '9' }
	for i, j := 0, 0; i < len(a) || j < len(b); {
		for i < len(a) && !digit(a, i) || j < len(b) && !digit(b, j) {
			if x, y := weight(a, i), weight(b, j); x != y {
				return x - y
			}
			i, j = i+1, j+1
		}
		for i < len(a) && a[i] == '0' {
			i++
		}
		for j < len(b) && b[j] == '0' {
			j++
		}
		first := 0
		for ; digit(a, i) && digit(b, j); i, j = i+1, j+1 {
			if first == 0 {
				first = int(a[i]) - int(b[j])
			}
		}
		switch {
		case digit(a, i):
			return 1
		case digit(b, j):
			return -1
		case first != 0:
			return first
		}
	}
	return 0
}

// weight orders what is no digit: "~" before the end, the end before letters,
// letters before the rest.
func weight(s string, i int) int {
	if i >= len(s) {
		return 0
	}
	switch c := s[i]; {
	case c == '~':
		return -1
	case c >= '0' && c <= '9':
		return 0
	case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
		return int(c)
	default:
		return int(c) + 256
	}
}
