package initramfs

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Digest changes when what Install and Prepare do changes: it is the SHA-256,
// in hexadecimal digits, of all that is embedded and of the lists of names.
var Digest = sync.OnceValue(func() string {
	sum := sha256.New()
	err := fs.WalkDir(files, "files", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		file := sha256.Sum256(content)
		sum.Write([]byte(name))
		sum.Write([]byte{0})
		sum.Write(file[:])
		return nil
	})
	if err != nil {
		panic(err) // the files are part of this program
	}
	for _, list := range [][]string{masked, cronJobs, identity} {
		sum.Write([]byte(strings.Join(list, "\x00")))
	}
	units := slices.Sorted(maps.Keys(wantedBy))
	for _, unit := range units {
		sum.Write([]byte(unit + "\x00" + strings.Join(wantedBy[unit], "\x00")))
	}
	return hex.EncodeToString(sum.Sum(nil))
})
