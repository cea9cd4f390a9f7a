package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"sidus/boot/protocol"
	"sidus/image/store"
	"sidus/image/tool"
)

// Where the boot script of package boot/initramfs has mounted the layers of
// the root, and where live updates keep theirs.
const (
	rootLayer   = "/run/sidus/ro"         // the snapshot that was booted
	writeLayer  = "/run/sidus/rw/upper"   // what the node wrote since
	updateRoot  = "/run/sidus/updates"    // snapshots that were taken since: <ID>
	updateWrite = "/run/sidus/rw/updates" // what the node wrote into each of them: <order>/upper
)

// overlayOptions are those of the root.
const overlayOptions = ",index=off,metacopy=off,redirect_dir=off,xino=off,nfs_export=off"

const (
	ldconfigTime = 2 * time.Minute
	reloadTime   = 2 * time.Minute
	readAhead    = "512" // KiB, as the boot script sets it
)

// An Updater stacks the /usr of other snapshots over the running one. What
// runs keeps its files; what is started from then on is new. Only /usr
// changes: /etc and /var stay those of the snapshot that was booted, and so
// does the kernel.
type Updater struct {
	// Log is told what is done; nil means logrus' standard logger.
	Log logrus.FieldLogger

	// For tests: how a snapshot is mounted; nil means mountNFS.
	mount func(source, dir, options string) error
}

// Update carries out an order. If it fails, the node is as it was before, or
// the outcome says that it may use the snapshot all the same.
func (u *Updater) Update(ctx context.Context, order protocol.Order) protocol.Outcome {
	outcome := protocol.Outcome{Order: order.Number, Snapshot: order.Snapshot}
	s := &stacking{ctx: ctx, order: order, log: u.Log, mount: u.mount}
	if s.mount == nil {
		s.mount = mountNFS
	}
	if s.log == nil {
		s.log = logrus.StandardLogger()
	}
	err := s.run()
	defer s.close()
	outcome.Notes = s.notes
	if err == nil {
		return outcome
	}
	outcome.Reason, outcome.Held = err.Error(), s.stays
	for _, undo := range slices.Backward(s.undo) {
		if err := undo(); err != nil {
			outcome.Reason += "; and this could not be undone: " + err.Error()
			outcome.Held = true
		}
	}
	return outcome
}

// stacking is one live update.
type stacking struct {
	ctx    context.Context
	order  protocol.Order
	log    logrus.FieldLogger
	mount  func(source, dir, options string) error
	mounts []*mountinfo.Info // before it
	undo   []func() error
	notes  []string
	stays  bool       // the snapshot is in use whatever happens
	hidden []*os.File // mounts below the old /usr that the new one has, too
}

func (s *stacking) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// staging is where the new /usr is put together, out of everyone's sight.
func (s *stacking) staging() string {
	return filepath.Join(updateRoot, "usr-"+strconv.FormatInt(s.order.Number, 10))
}

func (s *stacking) run() (err error) {
	if err := checkPlace(); err != nil {
		return err
	}
	if s.mounts, err = mountinfo.GetMounts(nil); err != nil {
		return err
	}
	if runs(s.mounts) == s.order.Snapshot {
		// This order was carried out before, or there is nothing to do.
		s.stays = true
		return s.settle()
	}
	if err := s.privateFolder(); err != nil {
		return err
	}
	layer, err := s.snapshot()
	if err != nil {
		return err
	}
	if err := s.check(layer); err != nil {
		return err
	}
	if err := s.stack(layer); err != nil {
		return err
	}
	if err := s.carry(); err != nil {
		return err
	}
	if err := s.show(); err != nil {
		return err
	}
	return s.settle()
}

// checkPlace makes sure that all processes will see what is mounted here, and
// that /usr is where all programs and libraries are.
func checkPlace() error {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	first, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil {
		return err
	}
	if own != first {
		return errors.New("the agent runs in a mount namespace of its own: nobody else would see the update; its unit must not have settings like PrivateTmp=")
	}
	for _, name := range []string{"/bin", "/lib", "/sbin"} {
		info, err := os.Lstat(name)
		if err == nil && info.Mode()&fs.ModeSymlink == 0 {
			return fmt.Errorf("%s is a folder of its own, not a link into /usr: such a tree cannot be updated live", name)
		}
	}
	return nil
}

// runs is the snapshot whose /usr is seen now, "" if that is not known.
func runs(mounts []*mountinfo.Info) store.SnapshotID {
	layer := rootLayer
	if m, ok := at(mounts, "/usr"); ok {
		for option := range strings.SplitSeq(superOptions(m), ",") {
			if lower, ok := strings.CutPrefix(option, "lowerdir="); ok {
				all := strings.Split(lower, ":")
				layer = strings.TrimSuffix(all[len(all)-1], "/usr")
			}
		}
	}
	if layer == rootLayer {
		m, _ := at(mounts, rootLayer)
		return store.SnapshotID(m.Source[strings.LastIndexByte(m.Source, '/')+1:])
	}
	return store.SnapshotID(filepath.Base(layer))
}

// privateFolder makes updateRoot a mount whose mounts no other namespace
// gets to see: only what is put on /usr in the end is for all.
func (s *stacking) privateFolder() error {
	for _, dir := range []string{updateRoot, updateWrite} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if _, ok := at(s.mounts, updateRoot); !ok {
		if err := unix.Mount(updateRoot, updateRoot, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", updateRoot, err)
		}
	}
	if err := unix.Mount("", updateRoot, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", updateRoot, err)
	}
	return nil
}

// snapshot mounts the new snapshot as the root's was mounted, and returns
// where it is.
func (s *stacking) snapshot() (string, error) {
	root, ok := at(s.mounts, rootLayer)
	if !ok || !strings.Contains(root.Source, "/") {
		return "", fmt.Errorf("%s is no NFS mount: this node was not booted by Sidus", rootLayer)
	}
	cut := strings.LastIndexByte(root.Source, '/')
	if store.SnapshotID(root.Source[cut+1:]) == s.order.Snapshot {
		return rootLayer, nil // back to the snapshot that was booted
	}
	source, dir := root.Source[:cut+1]+string(s.order.Snapshot), filepath.Join(updateRoot, string(s.order.Snapshot))
	if _, ok := at(s.mounts, dir); ok {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	s.undo = append(s.undo, func() error { return remove(dir) })
	if err := s.mount(source, dir, nfsOptions(superOptions(root))); err != nil {
		return "", fmt.Errorf("mount %s: %w", source, err)
	}
	s.undo = append(s.undo, func() error { return unmount(dir) })
	if mounts, err := mountinfo.GetMounts(nil); err == nil {
		m, _ := at(mounts, dir)
		if err := os.WriteFile("/sys/class/bdi/"+device(m)+"/read_ahead_kb", []byte(readAhead), 0); err != nil {
			s.log.WithError(err).Debug("live update: the read-ahead stays as it is")
		}
	}
	return dir, nil
}

func mountNFS(source, dir, options string) error {
	return unix.Mount(source, dir, "nfs", unix.MS_RDONLY|unix.MS_NOATIME, options)
}

// nfsOptions are options of an NFS mount as mount(2) takes them, made of those
// that the kernel shows of another one.
func nfsOptions(shown string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(shown, ","), func(option string) bool {
		name, _, _ := strings.Cut(option, "=")
		// The server says how long names are; read-only is a flag.
		return name == "namlen" || name == "ro" || name == "rw"
	}), ",")
}

var osReleaseLine = regexp.MustCompile(`(?m)^(ID|VERSION_ID)="?([^"\n]*)"?$`)

// release is the distribution and its major version.
func release(usr string) (string, error) {
	data, err := os.ReadFile(filepath.Join(usr, "lib/os-release"))
	if err != nil {
		return "", err
	}
	words := map[string]string{}
	for _, m := range osReleaseLine.FindAllStringSubmatch(string(data), -1) {
		words[m[1]] = m[2]
	}
	major, _, _ := strings.Cut(words["VERSION_ID"], ".")
	return strings.TrimSpace(words["ID"] + " " + major), nil
}

// check refuses a snapshot that cannot run with the /etc of this one.
func (s *stacking) check(layer string) error {
	for _, name := range []string{"usr/bin", "usr/lib"} {
		if info, err := os.Stat(filepath.Join(layer, name)); err != nil || !info.IsDir() {
			return fmt.Errorf("the snapshot has no folder /%s", name)
		}
	}
	now, err := release("/usr")
	if err != nil {
		return nil // such a tree says nothing of itself
	}
	next, err := release(filepath.Join(layer, "usr"))
	if err != nil {
		return fmt.Errorf("the snapshot does not say what it is: %w", err)
	}
	if now != next {
		return fmt.Errorf("this node runs %s and the snapshot is %s: another release needs a reboot", now, next)
	}
	return nil
}

// stack mounts, at staging, the new /usr: a fresh layer for what will be
// written, below it what the node has written into /usr so far, below that
// the snapshot's.
func (s *stacking) stack(layer string) error {
	dir := filepath.Join(updateWrite, strconv.FormatInt(s.order.Number, 10))
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	// An agent that was ended in the middle has left something.
	if err := unmount(s.staging()); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	s.undo = append(s.undo, func() error { return os.RemoveAll(dir) })
	info, err := os.Stat(filepath.Join(layer, "usr"))
	if err != nil {
		return err
	}
	for _, d := range []string{upper, work, s.staging()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	s.undo = append(s.undo, func() error { return remove(s.staging()) })
	if err := os.Chmod(upper, info.Mode().Perm()); err != nil {
		return err
	}
	written, err := s.written()
	if err != nil {
		return err
	}
	lower := strings.Join(append(written, filepath.Join(layer, "usr")), ":")
	options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work + overlayOptions
	if len(options) >= os.Getpagesize() {
		return errors.New("too many live updates since this node was booted: reboot it")
	}
	if err := unix.Mount("overlay", s.staging(), "overlay", unix.MS_NOATIME, options); err != nil {
		return fmt.Errorf("mount the overlay of the new /usr: %w", err)
	}
	s.undo = append(s.undo, func() error { return unmount(s.staging()) })
	return nil
}

// written are the layers with what the node has written into /usr, the newest
// first.
func (s *stacking) written() ([]string, error) {
	var layers []string
	if m, ok := at(s.mounts, "/usr"); ok {
		if m.FSType != "overlay" {
			return nil, errors.New("something else is mounted at /usr")
		}
		for option := range strings.SplitSeq(superOptions(m), ",") {
			if upper, ok := strings.CutPrefix(option, "upperdir="); ok {
				layers = append([]string{upper}, layers...)
			}
			if lower, ok := strings.CutPrefix(option, "lowerdir="); ok {
				all := strings.Split(lower, ":")
				layers = append(layers, all[:len(all)-1]...)
			}
		}
	} else {
		layers = []string{writeLayer + "/usr"}
	}
	var kept []string
	for _, layer := range layers {
		files, err := countFiles(layer)
		if err != nil {
			return nil, err
		}
		if files == 0 {
			continue // folders alone, at most with the attributes of the old ones
		}
		kept = append(kept, layer)
		s.note("what this node wrote into /usr itself stays on top of the new one (files: %d, below %s)", files, layer)
	}
	return kept, nil
}

// countFiles counts what is no folder; a folder that is not there has none.
// A folder that hides those below it counts too.
func countFiles(dir string) (n int, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !entry.IsDir() || opaque(path) {
			n++
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return n, err
}

func opaque(dir string) bool {
	var value [1]byte
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

// carry mounts below the new /usr what is mounted below the old one, and the
// modules of the running kernel if the snapshot has them no more.
func (s *stacking) carry() error {
	points := below(s.mounts, "/usr")
	hidden := slices.Clone(points)
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	kernel := unix.ByteSliceToString(name.Release[:])
	modules := "/usr/lib/modules/" + kernel
	_, newErr := os.Stat(filepath.Join(s.staging(), modules[len("/usr"):], "modules.dep"))
	_, oldErr := os.Stat(modules + "/modules.dep")
	if newErr != nil && oldErr == nil && !slices.Contains(points, modules) {
		points = append(points, modules)
		s.note("the running kernel %s keeps its modules, which the snapshot has no more", kernel)
	}
	for _, point := range points {
		target := filepath.Join(s.staging(), point[len("/usr"):])
		info, err := os.Stat(point)
		if err != nil {
			return err
		}
		if slices.Contains(hidden, point) {
			fd, err := unix.Open(point, unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return &fs.PathError{Op: "open", Path: point, Err: err}
			}
			s.hidden = append(s.hidden, os.NewFile(uintptr(fd), point))
		}
		if info.IsDir() {
			err = os.MkdirAll(target, 0o755)
		} else if _, statErr := os.Stat(target); statErr != nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(target), 0o755), os.WriteFile(target, nil, 0o644))
		}
		if err != nil {
			return err
		}
		if err := unix.Mount(point, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("carry the mount %s along: %w", point, err)
		}
		// What happens on the old one is nothing to the new one.
		if err := unix.Mount("", target, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("carry the mount %s along: %w", point, err)
		}
	}
	return nil
}

func (s *stacking) close() {
	for _, file := range s.hidden {
		_ = file.Close()
	}
}

// show puts the new /usr over the old one, for all mount namespaces that get
// what is mounted in the first one.
func (s *stacking) show() error {
	if err := unix.Mount(s.staging(), "/usr", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("put the new /usr over the running one: %w", err)
	}
	s.undo = append(s.undo, func() error {
		if err := unix.Unmount("/usr", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount the new /usr: %w", err)
		}
		return s.libraries()
	})
	return nil
}

// settle does what a new /usr needs, and takes the staging away.
func (s *stacking) settle() error {
	if err := s.libraries(); err != nil {
		return err
	}
	if err := run(s.ctx, reloadTime, "systemctl", "daemon-reload"); err != nil {
		s.note("systemd did not read its units again (`systemctl daemon-reload` does): %v", err)
	}
	// Nobody gets at these any more, and the end of the system would stumble
	// over them. Who uses one keeps it.
	for _, file := range s.hidden {
		if err := unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), unix.MNT_DETACH); err != nil {
			s.log.WithError(err).WithField("mount", file.Name()).Warn("live update: a mount that is hidden now stays")
		}
	}
	if err := unmount(s.staging()); err != nil {
		s.log.WithError(err).Warn("live update: the staging mount stays")
	} else if err := remove(s.staging()); err != nil {
		s.log.WithError(err).Warn("live update: the staging folder stays")
	}
	return nil
}

// libraries writes the dynamic linker's cache anew. It is in /etc, and so the
// node's own.
func (s *stacking) libraries() error {
	if _, err := os.Stat("/usr/sbin/ldconfig"); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := run(s.ctx, ldconfigTime, "/usr/sbin/ldconfig"); err != nil {
		return fmt.Errorf("the programs of the snapshot do not run with this node: %w", err)
	}
	return nil
}

func run(ctx context.Context, limit time.Duration, name string, args ...string) error {
	// The agent may be stopped by the update itself; what it has begun it ends.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	return tool.Run(ctx, tool.Options{}, name, args...)
}

// unmount takes away what is mounted at a point, if anything is.
func unmount(point string) error {
	err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", point, err)
	}
	return nil
}

// remove removes an empty folder, if it is there. It never reaches into what
// is mounted there.
func remove(dir string) error {
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}
