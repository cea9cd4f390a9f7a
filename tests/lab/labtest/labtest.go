// Package labtest has what the tests with machines share.
package labtest

import (
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
