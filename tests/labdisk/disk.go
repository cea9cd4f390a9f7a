package labdisk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/sirupsen/logrus"

	"sidus/image/build"
)

// CacheEnv is the environment variable with the folder that keeps built
// disks; DefaultCache is used if it is not set.
const (
	CacheEnv     = "SIDUS_TEST_CACHE"
	DefaultCache = "/var/cache/sidus-tests"
)

// retryLock is how often a disk that someone else makes is asked for.
const retryLock = time.Second

// The machine's system.
const (
	suite    = "bookworm"
	diskSize = "8G" // virtual: the file is sparse
	// Part of the hash: to be counted up when this file makes another disk of
	// the same inputs.
	format = "1"
)

// files is what the disk is made from, the packages aside.
//
//go:embed files
var files embed.FS

// ErrCannotBuild is wrapped if the disk is missing and this machine cannot
// make it: a program is missing, or the caller is not root.
var ErrCannotBuild = errors.New("the machine's disk is missing and cannot be made here")

// A Disk is a machine's disk, and what it boots with. The files belong to the
// cache and must not be changed.
type Disk struct {
	Image   string // ext4, raw, without a partition table
	Kernel  string
	Initrd  string
	Version string // of the kernel
}

// CommandLine is the kernel's, for a machine whose first virtio disk is the
// Image and whose first serial port is the console. Page table isolation and
// the like make an emulated machine several times slower at system calls; and
// where it is slow, the kernel finds that its timer does not tick, and stops.
const CommandLine = "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 systemd.show_status=0 mitigations=off audit=0 nowatchdog no_timer_check"

// CacheDir is the folder of what is costly to make and outlives a run, such as
// built disks. It may be missing.
func CacheDir() string {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return dir
	}
	return DefaultCache
}

// key is the hash of the disk's inputs.
func key() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "format %s, suite %s, size %s\n", format, suite, diskSize)
	err := fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %d\n", name, len(text))
		h.Write(text)
		return nil
	})
	return hex.EncodeToString(h.Sum(nil))[:16], err
}

// Cached is the disk, if it has been made, else nil.
func Cached() (*Disk, error) {
	k, err := key()
	if err != nil {
		return nil, err
	}
	return open(filepath.Join(CacheDir(), "lab-"+k))
}

func open(dir string) (*Disk, error) {
	version, err := os.ReadFile(filepath.Join(dir, "version"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return &Disk{
		Image:   filepath.Join(dir, "disk.img"),
		Kernel:  filepath.Join(dir, "vmlinuz"),
		Initrd:  filepath.Join(dir, "initrd.img"),
		Version: strings.TrimSpace(string(version)),
	}, nil
}

// Ensure returns the disk and makes it first if it is missing; progress gets
// the words of the programs that do so. Only one process makes it; others
// wait. A build that is cut leaves nothing that would be taken for a disk.
//
// The error wraps ErrCannotBuild if it is missing and cannot be made here.
func Ensure(ctx context.Context, progress io.Writer, log logrus.FieldLogger) (*Disk, error) {
	k, err := key()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(CacheDir(), "lab-"+k)
	if disk, err := open(dir); disk != nil || err != nil {
		return disk, err
	}
	if err := buildable(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(CacheDir(), 0o755); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCannotBuild, err)
	}
	lock := flock.New(filepath.Join(CacheDir(), "lab.lock"))
	if taken, err := lock.TryLock(); err != nil {
		return nil, err
	} else if !taken {
		log.Info("waiting for the process that makes the machine's disk")
		if _, err := lock.TryLockContext(ctx, retryLock); err != nil {
			return nil, err
		}
	}
	defer lock.Close()
	if disk, err := open(dir); disk != nil || err != nil {
		return disk, err // made while we waited
	}
	// With the lock held, a work folder belongs to a build that was cut.
	leftover, _ := filepath.Glob(filepath.Join(CacheDir(), "work-*"))
	for _, name := range leftover {
		if err := os.RemoveAll(name); err != nil {
			return nil, err
		}
	}
	work, err := os.MkdirTemp(CacheDir(), "work-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	log.WithField("folder", dir).Info("making the machine's disk; this takes some minutes")
	if err := makeDisk(ctx, work, progress); err != nil {
		return nil, err
	}
	if err := os.Rename(filepath.Join(work, "out"), dir); err != nil {
		return nil, err
	}
	removeOthers(dir)
	return open(dir)
}

// buildable says why the disk cannot be made here, if so.
func buildable() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it needs root", ErrCannotBuild)
	}
	for _, name := range []string{"mmdebstrap", "mke2fs"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: %s is not installed", ErrCannotBuild, name)
		}
	}
	return nil
}

// removeOthers deletes the disks of older inputs, except the one before: two
// checkouts may take turns.
func removeOthers(dir string) {
	names, _ := filepath.Glob(filepath.Join(CacheDir(), "lab-*"))
	names = slices.DeleteFunc(names, func(n string) bool { return n == dir })
	when := func(name string) int64 {
		if info, err := os.Stat(name); err == nil {
			return info.ModTime().UnixNano()
		}
		return 0
	}
	slices.SortFunc(names, func(a, b string) int { return int(when(b) - when(a)) })
	for i, name := range names {
		if i > 0 {
			_ = os.RemoveAll(name)
		}
	}
}

// packages are the names in files/packages.
func packages() (string, error) {
	text, err := files.ReadFile("files/packages")
	if err != nil {
		return "", err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			names = append(names, line)
		}
	}
	return strings.Join(names, ","), nil
}

// makeDisk makes the disk under work/out.
func makeDisk(ctx context.Context, work string, progress io.Writer) error {
	names, err := packages()
	if err != nil {
		return err
	}
	lent := filepath.Join(work, "files")
	if err := os.MkdirAll(lent, 0o755); err != nil {
		return err
	}
	entries, err := files.ReadDir("files")
	if err != nil {
		return err
	}
	for _, e := range entries {
		text, err := files.ReadFile("files/" + e.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(lent, e.Name()), text, 0o755); err != nil {
			return err
		}
	}
	root, out := filepath.Join(work, "root"), filepath.Join(work, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	mirrors := build.MachineMirrors("/etc/apt")
	args := []string{
		"--mode=root", "--format=directory", "--variant=minbase",
		"--components=main,contrib", "--include=" + names,
		`--aptopt=Acquire::Retries "3"`, `--aptopt=Acquire::Languages "none"`,
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		fmt.Sprintf(`--customize-hook=%s/customize.sh "$1" %s`, lent, lent),
		suite, root,
		"deb " + mirrors.Archive + " " + suite + " main contrib",
	}
	if mirrors.Updates != "" {
		args = append(args, "deb "+mirrors.Updates+" "+suite+"-updates main contrib")
	}
	if mirrors.Security != "" {
		args = append(args, "deb "+mirrors.Security+" "+suite+"-security main contrib")
	}
	if err := program(ctx, progress, "mmdebstrap", args...); err != nil {
		return err
	}
	kernels, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if len(kernels) != 1 {
		return fmt.Errorf("the tree has %d kernels, not one", len(kernels))
	}
	version := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	for from, to := range map[string]string{
		"boot/vmlinuz-" + version:    "vmlinuz",
		"boot/initrd.img-" + version: "initrd.img",
	} {
		if err := copyFile(filepath.Join(root, from), filepath.Join(out, to)); err != nil {
			return err
		}
	}
	image := filepath.Join(out, "disk.img")
	if err := program(ctx, progress, "mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0",
		"-L", "sidus-lab", "-d", root, image, diskSize); err != nil {
		return err
	}
	if err := program(ctx, progress, "sync", "-f", image); err != nil {
		return err
	}
	// The last file: with it the folder is whole.
	return os.WriteFile(filepath.Join(out, "version"), []byte(version+"\n"), 0o644)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}

// program runs a program and its children as a group that ends with ctx.
func program(ctx context.Context, progress io.Writer, name string, args ...string) error {
	var said tail
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout = io.MultiWriter(progress, &said)
	cmd.Stderr = cmd.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", name, context.Cause(ctx))
		}
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(said.text))
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	const most = 4000
	t.text = append(t.text, p...)
	if n := len(t.text); n > most {
		t.text = append(t.text[:0], t.text[n-most:]...)
	}
	return len(p), nil
}
