package labdisk

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// FreshEnv, set to "1", has suites run although they have passed with the same
// programs on the same disk.
const FreshEnv = "SIDUS_TEST_FRESH"

// passedFile is the file that says that the suite in a folder has passed on the
// disk: its name is the hash of the test program, its data, arguments and
// environment, and of the disk. It is to these tests what the go command's
// cache of test results is to others: a machine that is emulated takes minutes
// for what has not changed.
func passedFile(folder string) (string, error) {
	h := sha256.New()
	disk, err := key()
	if err != nil {
		return "", err
	}
	fmt.Fprintln(h, disk)
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %d %v\n", name, info.Size(), info.Mode())
		_, err = io.Copy(h, file)
		return err
	})
	return filepath.Join(CacheDir(), "passed", hex.EncodeToString(h.Sum(nil))[:32]), err
}

// passed tells whether that was noted, and when.
func passed(file string) (when time.Time, ok bool) {
	if os.Getenv(FreshEnv) == "1" {
		return when, false
	}
	info, err := os.Stat(file)
	if err != nil {
		return when, false
	}
	return info.ModTime(), true
}

// notePassed notes it.
func notePassed(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, nil, 0o644)
}
