package storetest

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDescribeSeesEverything changes one thing at a time: the description must
// change with it.
func TestDescribeSeesEverything(t *testing.T) {
	RequireRoot(t)
	for name, change := range map[string]Applier{
		"content": File("etc/shadow", "root:!:::::::\n", 0o640),
		"content of the same size and time": Apply(File("etc/passwd", "toor:x:0:0::/root:/bin/sh\n", 0o644),
			Chtime("etc/passwd", time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC))),
		"a nanosecond":         Chtime("big", time.Date(2040, 1, 1, 0, 0, 0, 999999998, time.UTC)),
		"time of a link":       Chtime("link", time.Unix(5, 5)),
		"time of the root":     Chtime(".", time.Unix(5, 5)),
		"owner":                Chown("empty", 5, 0),
		"group":                Chown("empty", 0, 5),
		"owner of a link":      Chown("dangling", 5, 0),
		"mode":                 Chmod("empty", 0o645),
		"set-uid":              Chmod("su", 0o755),
		"sticky":               Chmod("tmp", 0o777),
		"hard link broken":     Apply(Remove("passwd"), File("passwd", "root:x:0:0::/root:/bin/sh\n", 0o644)),
		"one link less":        Remove("passwd"),
		"target":               Apply(Remove("dangling"), Symlink("/nowhere/at/alL", "dangling")),
		"device number":        Apply(Remove("null"), Node("null", unix.S_IFCHR|0o666, 1, 5)),
		"block, not character": Apply(Remove("null"), Node("null", unix.S_IFBLK|0o666, 1, 3)),
		"fifo, not socket":     Apply(Remove("socket"), Node("socket", unix.S_IFIFO|0o755, 0, 0)),
		"user attribute":       Xattr("etc/passwd", "user.note", "another"),
		"attribute of a link":  Xattr("link", "trusted.of.link", "L"),
		"empty attribute":      func(root string) error { return unix.Removexattr(filepath.Join(root, "big"), "user.empty") },
		"trusted attribute":    Xattr("etc/passwd", "trusted.overlay.opaque", "n"),
		"capability":           Capability("ping", "cap_net_raw=p"),
		"ACL":                  ACL("etc/shadow", "u:33:rw-"),
		"default ACL":          ACL("spool", "d:u:33:r-x"),
		"odd name":             Rename("blank and\nnewline\\back\tslash\"quote'", "blank and newline"),
		"name that is no text": Rename("latin-\xe9\xff\xfe", "latin-\xe9\xff\xff"),
		"a file more":          File("more", "", 0o644),
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := AllMetadata()(root); err != nil {
				t.Fatal(err)
			}
			before, err := Describe(t.Context(), root, AllFields)
			if err != nil {
				t.Fatal(err)
			}
			if err := change(root); err != nil {
				t.Fatal(err)
			}
			after, err := Describe(t.Context(), root, AllFields)
			if err != nil {
				t.Fatal(err)
			}
			if Diff(before, after) == "" {
				t.Error("it does not show")
			}
		})
	}
}

func TestDescribeTwoCopies(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, root := range []string{a, b} {
		if err := Apply(Dir("d", 0o755), File("d/f", "f", 0o644), Link("d/f", "d/g"), Symlink("f", "d/l"))(root); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"d/f", "d/l", "d", "."} {
			if err := Chtime(name, time.Unix(1, 2))(root); err != nil {
				t.Fatal(err)
			}
		}
	}
	one, err := Describe(t.Context(), a, AllFields)
	if err != nil {
		t.Fatal(err)
	}
	two, err := Describe(t.Context(), b, AllFields)
	if err != nil {
		t.Fatal(err)
	}
	if diff := Diff(one, two); diff != "" {
		t.Errorf("two equal trees differ:\n%s", diff)
	}
	short, err := Describe(t.Context(), a, 0)
	if err != nil || short != "\".\" d mode=755\n\"d\" d mode=755\n\"d/f\" f mode=644\n\"d/g\" f mode=644\n\"d/l\" l target=\"f\"\n" {
		t.Errorf("without fields: %q, %v", short, err)
	}
	if _, err := Describe(t.Context(), filepath.Join(a, "missing"), AllFields); err == nil {
		t.Error("a missing folder was described")
	}
}

func TestDiff(t *testing.T) {
	for _, c := range []struct{ want, got, diff string }{
		{"a\nb\n", "a\nb\n", ""},
		{"a\nb\n", "a\nc\n", "+ c\n- b\n"},
		{"a\n", "a\na\n", "+ a\n"},
		{"", "a\n", "+ a\n"},
	} {
		if got := Diff(c.want, c.got); got != c.diff {
			t.Errorf("Diff(%q, %q) = %q, want %q", c.want, c.got, got, c.diff)
		}
	}
	if Diff("a\nb\n", "b\na\n") == "" {
		t.Error("another order is no difference")
	}
}

func TestUnquote(t *testing.T) {
	for in, want := range map[string]string{`plain`: "plain", `a\012b`: "a\nb", `a\134b`: `a\b`, `a\\b`: `a\b`, `\377`: "\xff", `end\`: `end\`, `\9`: `\9`} {
		if got := unquote(in); got != want {
			t.Errorf("unquote(%q) = %q, want %q", in, got, want)
		}
	}
}
