package scratch

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

const helperVariable = "SIDUS_SCRATCH_TEST_PARENT"

// TestMain is also a process that makes a folder, says so and waits.
func TestMain(m *testing.M) {
	if parent := os.Getenv(helperVariable); parent != "" {
		if _, err := Make(parent, "other"); err != nil {
			os.Exit(1)
		}
		os.Stdout.WriteString("made\n")
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func left(t *testing.T, parent string) []string {
	t.Helper()
	paths, err := Left(parent)
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// TestOfTheDeadOnly kills a process that has a folder: only then, and only that
// one, is left over.
func TestOfTheDeadOnly(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "scratch")
	if l := left(t, parent); len(l) > 0 {
		t.Errorf("in a folder that is not there %v is left", l)
	}
	mine, err := Make(parent, "mine")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperVariable+"="+parent)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	theirs, err := filepath.Glob(filepath.Join(parent, "other-*"))
	if err != nil || len(theirs) != 1 {
		t.Fatalf("%v, %v", theirs, err)
	}
	if err := os.WriteFile(filepath.Join(theirs[0], "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l := left(t, parent); len(l) > 0 {
		t.Errorf("%v is in use, and counts as left over", l)
	}
	if err := RemoveLeft(theirs[0]); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(theirs[0]); err != nil {
		t.Errorf("a folder in use was removed: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	stray := filepath.Join(parent, "stray")
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l := left(t, parent); !slices.Equal(l, []string{theirs[0], stray}) {
		t.Errorf("left over is %v", l)
	}
	if err := Sweep(parent); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 || entries[0].Name() != filepath.Base(mine.Path()) {
		t.Errorf("after the sweep there is %v, %v", entries, err)
	}
	if err := mine.Remove(); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 0 {
		t.Errorf("in the end there is %v, %v", entries, err)
	}
}

// TestMakersBesideSweepers: a folder that was handed out is never swept.
func TestMakersBesideSweepers(t *testing.T) {
	parent := t.TempDir()
	stop := make(chan struct{})
	var sweepers, makers sync.WaitGroup
	for range 2 {
		sweepers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := Sweep(parent); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 4 {
		makers.Go(func() {
			for range 200 {
				f, err := Make(parent, "x")
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(filepath.Join(f.Path(), "file"), nil, 0o600); err != nil {
					t.Errorf("a folder in use is gone: %v", err)
				}
				if err := f.Remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	makers.Wait()
	close(stop)
	sweepers.Wait()
}
