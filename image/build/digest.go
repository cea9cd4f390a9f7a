package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"sidus/image/scratch"
)

// digestCache remembers the SHA-256 of files by what stat says of them, so
// that a build that has nothing to do does not read large files again.
type digestCache struct {
	path    string
	known   map[string]string
	changed bool
}

// openDigests reads the cache in a folder; "" or an unreadable one is empty.
func openDigests(folder string) *digestCache {
	c := &digestCache{known: make(map[string]string)}
	if folder == "" {
		return c
	}
	c.path = filepath.Join(folder, "digests.json")
	if text, err := os.ReadFile(c.path); err == nil && json.Unmarshal(text, &c.known) != nil {
		c.known = make(map[string]string)
	}
	return c
}

// file returns the digest of a file, by its name in root or, if root is nil,
// by its path.
func (c *digestCache) file(root *os.Root, name string) (string, error) {
	var f *os.File
	var err error
	if root == nil {
		f, err = os.Open(name)
	} else {
		f, err = root.Open(name)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a file", name)
	}
	id := ""
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		id = fmt.Sprintf("%d:%d:%d:%d:%d", s.Dev, s.Ino, s.Size, s.Mtim.Nano(), s.Ctim.Nano())
		if digest, ok := c.known[id]; ok {
			return digest, nil
		}
		// A file that was written a moment ago may change again without
		// another time in its inode.
		if time.Since(time.Unix(s.Ctim.Unix())) < 2*time.Second {
			id = ""
		}
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	digest := hex.EncodeToString(h.Sum(nil))
	if id != "" {
		if len(c.known) >= 100_000 {
			clear(c.known)
		}
		c.known[id] = digest
		c.changed = true
	}
	return digest, nil
}

// save writes what was learned. It is a cache: a failure costs time only.
func (c *digestCache) save() {
	if !c.changed || c.path == "" {
		return
	}
	if text, err := json.Marshal(c.known); err == nil {
		_ = writeAtomic(c.path, text)
	}
}

// writeAtomic writes a file of a cache: whole or not at all.
func writeAtomic(name string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := scratch.NewFile(name, true)
	if err != nil {
		return err
	}
	defer f.Discard()
	if _, err := f.Write(text); err != nil {
		return err
	}
	return f.Keep()
}
