package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Secret is a file that should not be in a tree: whoever may mount the tree
// can read it.
type Secret struct {
	Path string `json:"path"` // absolute in the tree
	What string `json:"what"` // what is secret in it
}

// SecretsError is returned when a tree with secrets in it would be promoted.
type SecretsError struct {
	Snapshot Snapshot
	Secrets  []Secret
}

func (e *SecretsError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s holds what should be secret, and every machine that may boot it can read it:\n", e.Snapshot.Ref())
	for _, s := range e.Secrets {
		fmt.Fprintf(&b, "  %s: %s\n", s.Path, s.What)
	}
	fmt.Fprintf(&b, "take it out of the tree, or allow it: --allow-secret PATH for one (patterns are allowed), --allow-secret '*' for all")
	return b.String()
}

// keyFolders are searched for private keys and keytabs. Below /usr, apart from
// /usr/local, keys are test data of packages that everybody has.
var keyFolders = []string{"etc", "root", "home", "srv", "opt", "usr/local", "var/lib", "var/spool", "var/www"}

// maxKeyFile is the size of the largest file that is looked into for a
// private key, in bytes.
const maxKeyFile = 64 << 10

// FindSecrets lists the files below root that hold known secrets: password
// hashes, the munge key, SSH host keys, Kerberos keytabs, private keys. What
// matches one of the patterns of allowed (path.Match, on the absolute path; *
// alone matches all) is left out.
func FindSecrets(ctx context.Context, root string, allowed []string) ([]Secret, error) {
	for _, pattern := range allowed {
		if _, err := path.Match(pattern, "/"); err != nil {
			return nil, fmt.Errorf("--allow-secret %q: %w", pattern, err)
		}
	}
	// A tree's symbolic links must not lead out of it.
	tree, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	f := secretFinder{tree: tree, allowed: allowed}
	for _, name := range []string{"etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-", "etc/passwd", "etc/passwd-"} {
		if err := f.passwords(name); err != nil {
			return nil, err
		}
	}
	for _, folder := range keyFolders {
		// A symbolic link leads to another of these folders, or out of the tree.
		if info, err := tree.Lstat(folder); err != nil || !info.IsDir() {
			continue
		}
		err := fs.WalkDir(tree.FS(), folder, func(name string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case ctx.Err() != nil:
				return ctx.Err()
			case !entry.Type().IsRegular():
				return nil
			}
			return f.key(name, entry)
		})
		if err != nil {
			return nil, fmt.Errorf("look for secrets: %w", err)
		}
	}
	return f.found, nil
}

type secretFinder struct {
	tree    *os.Root
	allowed []string
	found   []Secret
}

func (f *secretFinder) add(name, what string) {
	name = "/" + name
	for _, pattern := range f.allowed {
		if ok, _ := path.Match(pattern, name); ok || pattern == "*" {
			return
		}
	}
	f.found = append(f.found, Secret{Path: name, What: what})
}

// passwords looks for password hashes in a file like shadow(5) or passwd(5).
func (f *secretFinder) passwords(name string) error {
	text, err := f.tree.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for secrets: %w", err)
	}
	var users []string
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(line, ":", 3)
		if len(fields) < 3 {
			continue
		}
		// crypt(5): a hash begins with $ or _, or has 13 characters. A lock
		// (!) may stand before it: it is still a hash.
		hash := strings.TrimLeft(fields[1], "!")
		if strings.HasPrefix(hash, "$") || strings.HasPrefix(hash, "_") || len(hash) >= 13 {
			users = append(users, fields[0])
		}
	}
	if len(users) > 0 {
		f.add(name, "password hash of "+strings.Join(users, ", "))
	}
	return nil
}

// key looks at a file that may be a key.
func (f *secretFinder) key(name string, entry fs.DirEntry) error {
	base := path.Base(name)
	switch {
	case name == "etc/munge/munge.key":
		f.add(name, "munge key")
		return nil
	case strings.HasSuffix(base, ".keytab"):
		f.add(name, "Kerberos keytab")
		return nil
	}
	info, err := entry.Info()
	if err != nil {
		return err
	}
	if info.Size() < 64 || info.Size() > maxKeyFile {
		return nil
	}
	isPrivate, err := f.holdsPrivateKey(name)
	if err != nil || !isPrivate {
		return err
	}
	if strings.HasPrefix(name, "etc/ssh/ssh_host_") {
		f.add(name, "SSH host key")
	} else {
		f.add(name, "private key")
	}
	return nil
}

// holdsPrivateKey looks for the first line of a private key in PEM (RFC 7468)
// or OpenSSH's form, which may stand below certificates.
func (f *secretFinder) holdsPrivateKey(name string) (bool, error) {
	file, err := f.tree.Open(name)
	if err != nil {
		return false, fmt.Errorf("look for secrets: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxKeyFile))
	if err != nil {
		return false, fmt.Errorf("look for secrets: %w", err)
	}
	for rest := text; ; {
		at := bytes.Index(rest, []byte("-----BEGIN "))
		if at < 0 {
			return false, nil
		}
		atLineStart := at == 0 || rest[at-1] == '\n'
		rest = rest[at+len("-----BEGIN "):]
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		if atLineStart && bytes.HasSuffix(bytes.TrimRight(line, "\r "), []byte("PRIVATE KEY-----")) {
			return true, nil
		}
	}
}
