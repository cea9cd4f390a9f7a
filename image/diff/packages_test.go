package diff

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sidus/image/tool"
)

func treeWith(t *testing.T, status string) string {
	t.Helper()
	root := t.TempDir()
	path := filepath.Join(root, statusFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(status), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

func paragraph(name, architecture, version, state string) string {
	return "Package: " + name + "\nStatus: install ok " + state + "\nArchitecture: " + architecture +
		"\nDescription: text\n with: colons\n .\n Version: 9\nVersion: " + version + "\n\n"
}

func TestPackages(t *testing.T) {
	old := treeWith(t, paragraph("bash", "amd64", "5.2-1", "installed")+paragraph("gone", "all", "1", "installed")+
		paragraph("purged", "all", "1", "config-files")+paragraph("libc6", "amd64", "2.36-9", "installed")+paragraph("libc6", "i386", "2.36-9", "installed")+
		paragraph("same", "all", "1:2~rc1-3", "installed")+paragraph("down", "all", "2", "installed"))
	now := treeWith(t, paragraph("bash", "amd64", "5.2-2", "installed")+paragraph("libc6", "amd64", "2.36-10", "installed")+
		paragraph("libc6", "i386", "2.36-9", "installed")+paragraph("half", "amd64", "3", "half-configured")+
		paragraph("same", "all", "1:2~rc1-3", "installed")+strings.TrimSpace(paragraph("down", "all", "2~beta", "installed")))
	got, err := Packages(old, now)
	if err != nil {
		t.Fatal(err)
	}
	want := []PackageChange{
		{"bash", "amd64", PackageUpgraded, "5.2-1", "5.2-2"},
		{"down", "all", PackageDowngraded, "2", "2~beta"},
		{"gone", "all", PackageRemoved, "1", ""},
		{"half", "amd64", PackageAdded, "", "3"},
		{"libc6", "amd64", PackageUpgraded, "2.36-9", "2.36-10"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	empty := t.TempDir()
	if got, err := Packages(empty, empty); err != nil || len(got) > 0 {
		t.Errorf("no dpkg: %v, %v", got, err)
	}
}

// A tree's own links lead nowhere outside.
func TestPackagesStayInside(t *testing.T) {
	outside := treeWith(t, paragraph("secret", "all", "1", "installed"))
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, "var/lib/dpkg"), filepath.Join(root, "var/lib/dpkg")); err != nil {
		t.Fatal(err)
	}
	if got, err := Packages(t.TempDir(), root); err == nil {
		t.Errorf("got %v", got)
	}
}

// dpkg itself says which version is older.
func TestCompareVersions(t *testing.T) {
	versions := []string{"0", "1", "1.0", "1.0-0", "1.0-1", "1:0.5", "2:0", "1.0~rc1", "1.0~rc1~git", "1.0~", "1.0a", "1.0+dfsg", "1.0+dfsg-1+deb12u3",
		"1.0-1~bpo12+1", "1.00", "01.0", "1.10", "1.9", "1.2.3", "1.2-3-4", "9.99999999999999999999999", "9.100000000000000000000000", "1.0a1", "1.0a01", "5.2.15-2+b7"}
	for _, a := range versions {
		for _, b := range versions {
			got := CompareVersions(a, b)
			for operator, want := range map[string]bool{"lt": got < 0, "eq": got == 0, "gt": got > 0} {
				err := tool.Run(t.Context(), tool.Options{}, "dpkg", "--compare-versions", a, operator, b)
				if (err == nil) != want {
					t.Errorf("%s %s %s: dpkg says %v, %d was said here", a, operator, b, err == nil, got)
				}
			}
		}
	}
}

func FuzzStatus(f *testing.F) {
	f.Add(paragraph("bash", "amd64", "5.2-1", "installed"), "1.0~rc1", "1:2-3")
	f.Fuzz(func(t *testing.T, status, a, b string) {
		if _, err := parseStatus(strings.NewReader(status)); err != nil {
			t.Error(err)
		}
		if x, y := CompareVersions(a, b), CompareVersions(b, a); (x < 0) != (y > 0) || (x == 0) != (y == 0) {
			t.Errorf("%q and %q: %d, %d", a, b, x, y)
		}
	})
}
