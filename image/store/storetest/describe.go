package storetest

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"sort"
	"strconv"
	"strings"

	"sidus/image/tool"
)

// Fields chooses what Describe tells of each file.
type Fields uint

// What can be told of a file. Its path, type, mode and link target always are.
const (
	Owner     Fields = 1 << iota // uid and gid
	Times                        // modification time in nanoseconds
	Content                      // size and SHA-256 of plain files
	HardLinks                    // the number of links, and which names are one file
	Devices                      // device numbers
	Xattrs                       // extended attributes of all namespaces, ACLs among them
	ACLs                         // access control lists as getfacl tells them
	Blocks                       // blocks in use: tells sparse files from full ones

	// AllFields is all that a snapshot must keep. Blocks are not in it: where
	// data lies is the file system's affair, and may change when it is written
	// back.
	AllFields = Owner | Times | Content | HardLinks | Devices | Xattrs | ACLs
	// NFSFields is what NFS version 3 carries to a client.
	NFSFields = Owner | Times | Content | HardLinks | Devices
)

// Describe tells everything about the tree at root in sorted text, one line per
// file, so that two descriptions can be compared, or one kept. It says what
// find, stat, getfattr, getfacl and sha256sum say. Paths are relative to root
// ("." is root itself) and quoted as in Go, since names are bytes. The sizes
// and link counts of folders are left out: they differ between file systems.
func Describe(ctx context.Context, root string, fields Fields) (string, error) {
	d := describer{ctx: ctx, root: root, lines: map[string]*strings.Builder{}}
	steps := []struct {
		when Fields
		do   func(Fields) error
	}{
		{0, d.find},
		{Content, d.sums},
		{Devices, d.devices},
		{Xattrs, d.xattrs},
		{ACLs, d.acls},
	}
	for _, step := range steps {
		if step.when != 0 && fields&step.when == 0 {
			continue
		}
		if err := step.do(fields); err != nil {
			return "", fmt.Errorf("describe %s: %w", root, err)
		}
	}
	var text strings.Builder
	for _, name := range d.names {
		text.WriteString(strconv.Quote(name))
		text.WriteString(d.lines[name].String())
		text.WriteByte('\n')
	}
	return text.String(), nil
}

type describer struct {
	ctx   context.Context
	root  string
	names []string // sorted bytewise
	lines map[string]*strings.Builder
	plain []string // the plain files among names
	nodes []string // the device nodes among names
}

// clean turns what a tool printed for a path into a relative path.
func clean(name string) string { return path.Clean(name) }

func (d *describer) tell(name, format string, args ...any) {
	if line := d.lines[name]; line != nil {
		fmt.Fprintf(line, format, args...)
	}
}

func (d *describer) find(fields Fields) error {
	const columns = 10
	out, err := tool.Output(d.ctx, tool.Options{Dir: d.root}, "find", ".", "-printf",
		`%p\0%y\0%m\0%U:%G\0%T@\0%s\0%n\0%i\0%b\0%l\0`)
	if err != nil {
		return err
	}
	cells := bytes.Split(bytes.TrimSuffix(out, []byte{0}), []byte{0})
	if len(cells)%columns != 0 {
		return fmt.Errorf("find printed %d cells", len(cells))
	}
	sort.Sort(rows{cells, columns})
	firsts := map[string]string{} // inode → first name
	for i := 0; i < len(cells); i += columns {
		cell := func(n int) string { return string(cells[i+n]) }
		name, kind := clean(cell(0)), cell(1)
		d.names = append(d.names, name)
		d.lines[name] = &strings.Builder{}
		d.tell(name, " %s", kind)
		if kind != "l" { // the mode of a link means nothing
			d.tell(name, " mode=%s", cell(2))
		}
		if fields&Owner != 0 {
			d.tell(name, " owner=%s", cell(3))
		}
		if fields&Times != 0 {
			d.tell(name, " time=%s", cell(4))
		}
		if kind == "f" && fields&Content != 0 {
			d.tell(name, " size=%s", cell(5))
		}
		if kind == "f" && fields&Blocks != 0 {
			d.tell(name, " blocks=%s", cell(8))
		}
		if kind == "l" {
			d.tell(name, " target=%q", cell(9))
		}
		if kind != "d" && fields&HardLinks != 0 {
			d.tell(name, " links=%s", cell(6))
			if cell(6) != "1" {
				if firsts[cell(7)] == "" {
					firsts[cell(7)] = name
				}
				d.tell(name, " same=%q", firsts[cell(7)])
			}
		}
		switch kind {
		case "f":
			d.plain = append(d.plain, name)
		case "b", "c":
			d.nodes = append(d.nodes, name)
		}
	}
	return nil
}

// rows sorts cells by the first of each row.
type rows struct {
	cells [][]byte
	width int
}

func (r rows) Len() int           { return len(r.cells) / r.width }
func (r rows) Less(i, j int) bool { return bytes.Compare(r.cells[i*r.width], r.cells[j*r.width]) < 0 }
func (r rows) Swap(i, j int) {
	for k := range r.width {
		r.cells[i*r.width+k], r.cells[j*r.width+k] = r.cells[j*r.width+k], r.cells[i*r.width+k]
	}
}

// list makes standard input for xargs -0.
func list(names []string) *strings.Reader {
	var text strings.Builder
	for _, name := range names {
		text.WriteString("./" + name + "\x00")
	}
	return strings.NewReader(text.String())
}

func (d *describer) sums(Fields) error {
	if len(d.plain) == 0 {
		return nil
	}
	out, err := tool.Output(d.ctx, tool.Options{Dir: d.root, Stdin: list(d.plain)}, "xargs", "-0", "-r", "sha256sum", "--zero", "--")
	if err != nil {
		return err
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		sum, name, ok := strings.Cut(line, "  ")
		if ok {
			d.tell(clean(name), " sha256=%s", sum)
		}
	}
	return nil
}

func (d *describer) devices(Fields) error {
	if len(d.nodes) == 0 {
		return nil
	}
	out, err := tool.Output(d.ctx, tool.Options{Dir: d.root, Stdin: list(d.nodes)}, "xargs", "-0", "-r", "stat", `--printf=%t:%T %n\0`, "--")
	if err != nil {
		return err
	}
	for line := range strings.SplitSeq(string(out), "\x00") {
		if number, name, ok := strings.Cut(line, " "); ok {
			d.tell(clean(name), " device=%s", number)
		}
	}
	return nil
}

func (d *describer) xattrs(Fields) error {
	out, err := tool.Output(d.ctx, tool.Options{Dir: d.root}, "getfattr", "--recursive", "--physical", "--no-dereference", "--dump", "--match=-", "--encoding=hex", "--", ".")
	if err != nil {
		return err
	}
	return blocks(string(out), func(name string, lines []string) {
		sort.Strings(lines)
		for _, line := range lines {
			d.tell(name, " %s", line)
		}
	})
}

func (d *describer) acls(Fields) error {
	out, err := tool.Output(d.ctx, tool.Options{Dir: d.root}, "getfacl", "--recursive", "--physical", "--numeric", "--skip-base", "--", ".")
	if err != nil {
		return err
	}
	return blocks(string(out), func(name string, lines []string) {
		var rules []string
		for _, line := range lines {
			if !strings.HasPrefix(line, "#") {
				rules = append(rules, line)
			}
		}
		d.tell(name, " acl=%s", strings.Join(rules, ","))
	})
}

// blocks reads what getfattr and getfacl print: blocks of lines, with an empty
// line after each and the file's name in the first.
func blocks(text string, each func(name string, lines []string)) error {
	for block := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if block == "" {
			continue
		}
		lines := strings.Split(block, "\n")
		name, ok := strings.CutPrefix(lines[0], "# file: ")
		if !ok {
			return fmt.Errorf("a block without a file name: %q", lines[0])
		}
		each(clean(unquote(name)), lines[1:])
	}
	return nil
}

// unquote undoes the octal escapes of getfattr and getfacl.
func unquote(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		if s[i] == '\\' && i+1 < len(s) && s[i+1] == '\\' {
			i++
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// Diff tells in which lines two descriptions differ, "-" before those of want
// only and "+" before those of got only. It is empty if they are the same.
func Diff(want, got string) string {
	if want == got {
		return ""
	}
	count := map[string]int{}
	for line := range strings.Lines(want) {
		count[line]++
	}
	var diff strings.Builder
	for line := range strings.Lines(got) {
		if count[line]--; count[line] < 0 {
			diff.WriteString("+ " + line)
		}
	}
	for line := range strings.Lines(want) {
		if count[line] > 0 {
			count[line]--
			diff.WriteString("- " + line)
		}
	}
	if diff.Len() == 0 {
		return "the lines are the same, their order is not\n"
	}
	return diff.String()
}
