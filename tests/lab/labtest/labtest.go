// Package labtest has what the tests with machines share.
package labtest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"sidus/tests/lab"
	"sidus/tests/labdisk"
)

// New makes a lab that is closed when the test ends. What then goes wrong fails
// the test.
func New(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	l, err := lab.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Program returns the file of the sidus that is tested, see FindProgram.
func Program(t *testing.T) string {
	t.Helper()
	name, err := FindProgram()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// FindProgram returns the file of the sidus that is tested: SIDUS_BIN, or what
// `make build` made. Tests run in tests/NAME.
func FindProgram() (string, error) {
	name := os.Getenv("SIDUS_BIN")
	if name == "" {
		name = "../../bin/sidus"
	}
	name, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(name); err != nil {
		return "", fmt.Errorf("%w: `make build` makes it, and SIDUS_BIN names another", err)
	}
	return name, nil
}

// Cache makes labdisk.CacheDir and returns it.
func Cache(t *testing.T) string {
	t.Helper()
	dir := labdisk.CacheDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TreeStream returns a file in Cache with a stream of a tree, under the key of
// the last phase of its recipe; plan is what `sidus build RECIPE --plan --json`
// says. Where there is none, build builds the tree and writes the file, and
// those of other keys are removed; built tells of that.
func TreeStream(t *testing.T, name, plan string, build func(path string)) (path string, built bool) {
	t.Helper()
	var planned struct{ Phases []struct{ Key string } }
	if err := json.Unmarshal([]byte(plan), &planned); err != nil || len(planned.Phases) == 0 {
		t.Fatalf("the plan cannot be read: %v: %s", err, plan)
	}
	cache := Cache(t)
	path = filepath.Join(cache, name+"-"+planned.Phases[len(planned.Phases)-1].Key[:16]+".stream")
	if _, err := os.Stat(path); err == nil {
		return path, false
	}
	build(path)
	others, _ := filepath.Glob(filepath.Join(cache, name+"-*.stream")) // the pattern is valid
	for _, other := range others {
		if other == path {
			continue
		}
		if err := os.Remove(other); err != nil {
			t.Error(err)
		}
	}
	return path, true
}
