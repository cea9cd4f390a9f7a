package commands

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// program is the binary under test.
var program string

// helperVariable makes this test program do something else than test, see
// helpers.
const helperVariable = "SIDUS_COMMANDS_HELPER"

// helpers are what this program can be for its own tests.
var helpers = map[string]func() int{}

func TestMain(m *testing.M) {
	if helper := helpers[os.Getenv(helperVariable)]; helper != nil {
		os.Exit(helper())
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "SKIPPED: the tests of the commands mount file systems: they need root")
		if os.Getenv("CI") == "true" {
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "sidus-commands-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = os.Chmod(dir, 0o755) // users without rights run the binary, too
	status := 1
	if program, err = findBinary(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		status = m.Run()
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// findBinary takes SIDUS_BIN, or builds a program into dir: one that lies
// around may be of yesterday.
func findBinary(dir string) (string, error) {
	if path := os.Getenv("SIDUS_BIN"); path != "" {
		return filepath.Abs(path)
	}
	if _, err := os.Stat("../../boot/initramfs/files/sidus-agent"); errors.Is(err, os.ErrNotExist) {
		if err := goBuild("../../boot/initramfs/files/sidus-agent", "sidus/cmd/sidus-agent"); err != nil {
			return "", err
		}
	}
	path := filepath.Join(dir, "sidus")
	return path, goBuild(path, "sidus/cmd/sidus")
}

func goBuild(out, name string) error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", out, name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", name, err, text)
	}
	return nil
}
