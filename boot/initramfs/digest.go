package initramfs

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"sync"
)

// Digest changes when what Install writes does: it is the SHA-256, in
// hexadecimal digits, of all that is embedded.
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
	return hex.EncodeToString(sum.Sum(nil))
})
