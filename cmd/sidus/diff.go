package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sidus/image"
	"sidus/image/diff"
	"sidus/image/store"
)

func diffCommand() *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "what differs between two trees: packages and files",
		ArgsUsage: "TREE[@SNAP] TREE[@SNAP]",
		Description: describe("Compares two snapshots, or heads (TREE without @SNAP), also of trees that share no history: packages\n"+
			"that were added (+), removed (-), upgraded or downgraded (~), and files with what of them changed: content,\n"+
			"owner, mode, links, extended attributes. Content is compared byte by byte; times prove nothing. The exit\n"+
			"status is 0 whether or not something differs.",
			"sidus diff debian@12 debian@13", "sidus diff debian@base debian --packages", "sidus diff debian gpu --json"),
		Flags: reads(
			&cli.BoolFlag{Name: "packages", Usage: "only packages"},
			&cli.BoolFlag{Name: "files", Usage: "only files"},
			&cli.BoolFlag{Name: "times", Usage: "also tell where only the time of modification differs"},
			waitFlag(),
		),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			report, err := compare(ctx, c, s, args[0], args[1])
			if err != nil {
				return err
			}
			return print(c, report, func(w io.Writer) { printDifference(w, report) })
		}),
	}
}

// difference is what diff found. Packages or Files is nil if it was not asked
// for.
type difference struct {
	Old      string               `json:"old"`
	New      string               `json:"new"`
	Packages []diff.PackageChange `json:"packages"`
	Files    []diff.Change        `json:"files"`
}

// commonMargin is how long before the common ancestor's time on record a file
// must have been left alone for not being read: a snapshot is on record only
// a moment after it was taken.
const commonMargin = time.Minute

func compare(ctx context.Context, c *cli.Context, s *site, oldName, newName string) (d difference, err error) {
	// Two who wait for the heads of two trees take them in the same order.
	first, second := oldName, newName
	if newName < oldName {
		first, second = second, first
	}
	before, err := openSide(ctx, s, first, nil, c.Bool("wait"))
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, before.close()) }()
	after, err := openSide(ctx, s, second, before, c.Bool("wait"))
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, after.close()) }()
	if first != oldName {
		before, after = after, before
	}
	d = difference{Old: before.name, New: after.name}
	both := c.Bool("packages") == c.Bool("files")
	if both || c.Bool("packages") {
		if d.Packages, err = diff.Packages(before.mount.Path(), after.mount.Path()); err != nil {
			return d, err
		}
		d.Packages = append([]diff.PackageChange{}, d.Packages...)
	}
	if both || c.Bool("files") {
		options := diff.Options{Times: c.Bool("times")}
		common, found, err := s.manager.CommonAncestor(ctx, before.base, after.base)
		if err != nil {
			return d, err
		}
		if found {
			options.Common = common.Created.Add(-commonMargin)
		}
		if d.Files, err = diff.Files(ctx, before.mount.Path(), after.mount.Path(), options); err != nil {
			return d, err
		}
		d.Files = append([]diff.Change{}, d.Files...)
	}
	return d, nil
}

// side is one of two trees that are compared: mounted, and locked if it is a
// head.
type side struct {
	name  string
	base  store.SnapshotID // what it is or started from; "" if nothing
	mount store.Mount
	lock  *image.HeadLock
}

// openSide opens what a name stands for. other is the side that is open
// already; nil if none is.
func openSide(ctx context.Context, s *site, name string, other *side, wait bool) (_ *side, err error) {
	if strings.Contains(name, "@") {
		snapshot, err := s.manager.Resolve(ctx, name)
		if err != nil {
			return nil, err
		}
		mount, err := s.manager.MountSnapshot(ctx, snapshot.ID)
		return &side{name: snapshot.Ref(), base: snapshot.ID, mount: mount}, err
	}
	tree, err := s.manager.Tree(ctx, name)
	if err != nil {
		return nil, err
	}
	x := &side{name: tree.Name, base: tree.Base}
	lock := (*image.HeadLock)(nil)
	if other != nil && other.lock != nil && other.lock.TreeID == tree.ID {
		lock = other.lock // a head compared with itself
	} else {
		// A head must not change while it is read.
		if lock, err = s.manager.LockHead(ctx, name, wait); err != nil {
			return nil, err
		}
		x.lock = lock
	}
	if x.mount, err = s.manager.MountHeadToRead(ctx, lock); err != nil {
		return nil, errors.Join(err, x.close())
	}
	return x, nil
}

func (x *side) close() (err error) {
	if x.mount != nil {
		err = x.mount.Unmount(context.Background())
	}
	if x.lock != nil {
		err = errors.Join(err, x.lock.Release())
	}
	return err
}

var (
	packageSigns = map[diff.PackageKind]string{diff.PackageAdded: "+", diff.PackageRemoved: "-", diff.PackageUpgraded: "~", diff.PackageDowngraded: "~"}
	fileSigns    = map[diff.Kind]string{diff.Added: "+", diff.Removed: "-", diff.Changed: "~"}
)

func printDifference(w io.Writer, d difference) {
	if d.Packages != nil {
		count := map[diff.PackageKind]int{}
		for _, p := range d.Packages {
			count[p.Kind]++
		}
		fmt.Fprintf(w, "packages, %s to %s: %d added, %d removed, %d upgraded, %d downgraded\n", d.Old, d.New,
			count[diff.PackageAdded], count[diff.PackageRemoved], count[diff.PackageUpgraded], count[diff.PackageDowngraded])
		for _, p := range d.Packages {
			fmt.Fprintf(w, "  %s %s:%s %s\n", packageSigns[p.Kind], plain(p.Name), plain(p.Architecture), plain(versions(p)))
		}
	}
	if d.Files != nil {
		count := map[diff.Kind]int{}
		for _, f := range d.Files {
			count[f.Kind]++
		}
		fmt.Fprintf(w, "files, %s to %s: %d added, %d removed, %d changed\n", d.Old, d.New, count[diff.Added], count[diff.Removed], count[diff.Changed])
		for _, f := range d.Files {
			fmt.Fprintf(w, "  %s %s", fileSigns[f.Kind], plain(f.Path))
			if what := aspects(f); what != "" {
				fmt.Fprintf(w, "  (%s)", what)
			}
			fmt.Fprintln(w)
		}
	}
}

func versions(p diff.PackageChange) string {
	switch p.Kind {
	case diff.PackageAdded:
		return p.New
	case diff.PackageRemoved:
		return p.Old
	case diff.PackageDowngraded:
		return p.Old + " → " + p.New + " (downgraded)"
	}
	return p.Old + " → " + p.New
}

// aspects says what of a file changed.
func aspects(f diff.Change) string {
	var list []string
	for _, aspect := range f.Aspects {
		text := string(aspect)
		if f.Old != nil && f.New != nil {
			switch aspect {
			case diff.Type:
				text = fmt.Sprintf("type %s → %s", fileType(f.Old.Mode), fileType(f.New.Mode))
			case diff.Mode:
				text = fmt.Sprintf("mode %04o → %04o", f.Old.Mode&0o7777, f.New.Mode&0o7777)
			case diff.Owner:
				text = fmt.Sprintf("owner %d:%d → %d:%d", f.Old.UID, f.Old.GID, f.New.UID, f.New.GID)
			case diff.Target:
				text = fmt.Sprintf("target %s → %s", plain(f.Old.Target), plain(f.New.Target))
			}
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}

// fileType names the type of inode(7).
func fileType(mode uint32) string {
	name, ok := map[uint32]string{
		0o140000: "socket", 0o120000: "symbolic link", 0o100000: "file", 0o060000: "block device",
		0o040000: "directory", 0o020000: "character device", 0o010000: "FIFO",
	}[mode&0o170000]
	if !ok {
		return strconv.FormatUint(uint64(mode), 8)
	}
	return name
}

// plain makes a name from a tree fit for a terminal.
func plain(text string) string {
	quoted := strconv.Quote(text)
	if quoted == `"`+text+`"` {
		return text
	}
	for _, r := range text {
		if r == '\\' || r == '"' {
			continue
		}
		if !strconv.IsPrint(r) || r == '\uFFFD' {
			return quoted
		}
	}
	return text
}
