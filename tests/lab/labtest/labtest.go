// Package labtest has what the tests with machines share.
package labtest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"sidus/tests/lab"
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

// Program returns the file of the sidus that is tested: SIDUS_BIN, or what
// `make build` made. Tests run in tests/NAME.
func Program() (string, error) {
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

// Cache is the folder of what is costly to make and outlives a run:
// SIDUS_TEST_CACHE, or /var/cache/sidus-tests.
func Cache(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("SIDUS_TEST_CACHE")
	if dir == "" {
		dir = "/var/cache/sidus-tests"
	}
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
	path = filepath.Join(Cache(t), name+"-"+planned.Phases[len(planned.Phases)-1].Key[:16]+".stream")
	if _, err := os.Stat(path); err == nil {
		return path, false
	}
	build(path)
	others, _ := filepath.Glob(filepath.Join(Cache(t), name+"-*.stream")) // the pattern is valid
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
