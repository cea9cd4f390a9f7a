package system

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// file is what testdata/walk says of one file.
type file struct {
	kind, mode, owner, time, size, links, inode, target, digest, device string
}

// parseWalk reads the cells that testdata/walk prints.
func parseWalk(text []byte) (map[string]*file, error) {
	files := map[string]*file{}
	cells := bytes.Split(bytes.TrimSuffix(text, []byte{0}), []byte{0})
	for i := 0; i < len(cells); i++ {
		cell := string(cells[i])
		switch tag, rest, _ := strings.Cut(cell, " "); tag {
		case "F":
			if i+9 >= len(cells) {
				return nil, fmt.Errorf("the walk ends in the middle of a file")
			}
			c := func(n int) string { return string(cells[i+n]) }
			files[path.Clean(c(1))] = &file{kind: c(2), mode: c(3), owner: c(4), time: c(5), size: c(6), links: c(7), inode: c(8), target: c(9)}
			i += 9
		case "S", "D":
			value, name, ok := strings.Cut(rest, "  ")
			f := files[path.Clean(name)]
			if !ok || f == nil {
				return nil, fmt.Errorf("the walk tells %q of a file that find did not find", cell)
			}
			if tag == "S" {
				f.digest = value
			} else {
				f.device = value
			}
		default:
			return nil, fmt.Errorf("the walk says %q", cell)
		}
	}
	return files, nil
}

// describe tells all of a walk that NFS carries in sorted lines, one per file.
// Of folders, sizes are file systems' own affair; NFS clients see the link
// counts that POSIX has always had.
func describe(files map[string]*file) string {
	folders := map[string]int{}
	firsts := map[string]string{} // inode → first name
	names := slices.Sorted(maps.Keys(files))
	for _, name := range names {
		if f := files[name]; f.kind == "d" {
			folders[path.Dir(name)]++
		} else if firsts[f.inode] == "" {
			firsts[f.inode] = name
		}
	}
	folders["."]-- // it is its own parent
	var text strings.Builder
	for _, name := range names {
		f := files[name]
		fmt.Fprintf(&text, "%q %s mode=%s owner=%s time=%s", name, f.kind, f.mode, f.owner, f.time)
		if f.kind == "d" {
			fmt.Fprintf(&text, " folders=%d", folders[name])
		} else {
			fmt.Fprintf(&text, " links=%s same=%q size=%s", f.links, firsts[f.inode], f.size)
		}
		fmt.Fprintf(&text, " target=%q device=%s sha256=%s\n", f.target, f.device, f.digest)
	}
	return text.String()
}

// walkStore walks a snapshot where the store has it mounted.
func (w *world) walkStore(ctx context.Context, t *testing.T, s snapshot) map[string]*file {
	t.Helper()
	r, err := w.host.walk(ctx, s.id)
	if err != nil {
		t.Fatal(err)
	}
	files, err := parseWalk([]byte(r.stdout))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// checkFolderLinks checks that each folder's link count is 2 and one for each
// folder in it, as canonical attributes are.
func checkFolderLinks(t *testing.T, files map[string]*file) {
	t.Helper()
	want := map[string]int{}
	for name, f := range files {
		if f.kind == "d" {
			want[name] += 2
			want[path.Dir(name)]++
		}
	}
	want["."]--
	for name, links := range want {
		if got := files[name].links; got != strconv.Itoa(links) {
			t.Errorf("the folder %q has %s links, not %d", name, got, links)
		}
	}
}
