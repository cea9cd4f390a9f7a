package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMachineMirrors(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  Mirrors
	}{
		"nothing": {nil, defaultMirrors},
		"one-line style": {map[string]string{
			"sources.list": "# comment\ndeb-src http://a/debian bookworm main\ndeb [arch=amd64 signed-by=/k] http://a/debian/ bookworm main contrib # own\ndeb http://b/debian bookworm-updates main\ndeb http://c/debian-security bookworm-security main\n",
		}, Mirrors{"http://a/debian", "http://b/debian", "http://c/debian-security"}},
		"deb822 style": {map[string]string{
			"sources.list.d/debian.sources": "Types: deb deb-src\n# comment\nURIs: http://a/debian\nSuites: trixie trixie-updates\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n\nTypes: deb\nURIs: http://c/debian-security\nSuites: trixie-security\nComponents: main\n",
		}, Mirrors{"http://a/debian", "http://a/debian", "http://c/debian-security"}},
		"third parties and what is off": {map[string]string{
			"sources.list.d/a.list":       "deb https://packages.example/apt cloud-bookworm main\n",
			"sources.list.d/b.sources":    "Types: deb\nURIs: https://deb.example/node\nSuites: nodistro\nComponents: main\n",
			"sources.list.d/c.sources":    "Enabled: no\nTypes: deb\nURIs: http://off/debian\nSuites: bookworm\nComponents: main\n",
			"sources.list.d/d.list.save":  "deb http://saved/debian bookworm main\n",
			"sources.list.d/ubuntu.list":  "deb http://u/ubuntu noble main universe\ndeb http://u/ubuntu noble-security main\n",
			"sources.list.d/z.list":       "deb http://later/debian sid main\n",
			"sources.list.d/no-main.list": "deb http://contrib/debian bookworm contrib\n",
		}, Mirrors{Archive: "http://u/ubuntu", Security: "http://u/ubuntu"}},
		"before bullseye": {map[string]string{
			"sources.list": "deb http://a/debian buster main\ndeb http://c/debian-security buster/updates main\n",
		}, Mirrors{Archive: "http://a/debian", Security: "http://c/debian-security"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range c.files {
				file = filepath.Join(dir, file)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := MachineMirrors(dir); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestSourceLines(t *testing.T) {
	machine := Mirrors{"http://a/debian", "http://a/debian", "http://s/debian-security"}
	for want, b := range map[string]*Base{
		"deb http://a/debian bookworm main|deb http://a/debian bookworm-updates main|deb http://s/debian-security bookworm-security main": {Suite: "bookworm", Components: []string{"main"}},
		"deb http://a/debian sid main contrib":                              {Suite: "sid", Components: []string{"main", "contrib"}},
		"deb http://x/debian bookworm main|deb [trusted=yes] http://y/z ./": {Suite: "bookworm", Components: []string{"main"}, Mirrors: []string{"http://x/debian", "deb [trusted=yes] http://y/z ./"}},
	} {
		if got := strings.Join(sourceLines(b, machine), "|"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func FuzzSources(f *testing.F) {
	f.Add("deb [a=b] http://x/ y z # c\nTypes: deb\nURIs: a\nSuites: b\n c\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range append(parseList(text), parseDeb822(text)...) {
			if s.uri == "" || s.suite == "" {
				t.Errorf("%+v", s)
			}
		}
	})
}

// A file that is known by its inode is not read again, and one that changed is.
func TestDigestCache(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	file := filepath.Join(dir, "f")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	digest := func(d *digestCache) string {
		t.Helper()
		sum, err := d.file(nil, file)
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	write("one")
	d := openDigests(cache)
	fresh := digest(d)
	if len(d.known) != 0 {
		t.Error("a file that was written a moment ago is taken as settled")
	}
	for id := time.Now().Add(3 * time.Second); time.Now().Before(id); {
		time.Sleep(100 * time.Millisecond) // only the clock makes it settled
	}
	if digest(d) != fresh || len(d.known) != 1 {
		t.Error("a settled file is not remembered")
	}
	d.save()
	again := openDigests(cache)
	for id := range again.known {
		again.known[id] = "remembered"
	}
	if digest(again) != "remembered" {
		t.Error("the file was read again")
	}
	write("two")
	if sum := digest(again); sum == fresh || sum == "remembered" {
		t.Error("a changed file has the old digest")
	}
}

func TestVersions(t *testing.T) {
	for _, pair := range [][2]string{
		{"6.1.0-10-amd64", "6.1.0-9-amd64"}, {"6.10.1", "6.9.12"}, {"6.1.0-56-cloud-amd64", "6.1.0-50-cloud-amd64"},
		{"6.1.0-56-cloud-amd64", "6.1.0-56-amd64"}, {"7.0", "6.99"}, {"6.1.1", "6.1"},
	} {
		if !laterVersion(pair[0], pair[1]) || laterVersion(pair[1], pair[0]) {
			t.Errorf("%s should be later than %s", pair[0], pair[1])
		}
	}
	if laterVersion("6.1", "6.1") {
		t.Error("6.1 is not later than itself")
	}
}
