package zfs

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sidus/image/store"
)

// Remnants implements store.Collector: file systems of destroyed volumes of which
// the store knows no snapshot any more, destroyed snapshots, and holds of
// processes that were killed.
func (s *Store) Remnants(ctx context.Context) ([]store.Remnant, error) {
	l, err := s.left(ctx)
	if err != nil {
		return nil, err
	}
	return l.remnants(), nil
}

func (l leftovers) remnants() (all []store.Remnant) {
	for _, h := range l.holds {
		if h.stale() {
			all = append(all, store.Remnant{What: fmt.Sprintf("the hold %s on the snapshot %s, which a sender left that was killed", h.Tag, h.Dataset)})
		}
	}
	for _, fs := range l.fileSystems {
		if !fs.remnant() {
			for _, snap := range fs.snapshots {
				if snap.deferred {
					all = append(all, store.Remnant{What: "the destroyed snapshot " + snap.name, Reason: l.why(snap), Bytes: snap.used})
				}
			}
			continue
		}
		all = append(all, store.Remnant{What: "the destroyed volume " + fs.name, Reason: l.whyAll(fs), Bytes: fs.used})
	}
	return all
}

// Collect implements store.Collector. It is what ends the work of an operation
// that was cut, or of somebody who destroyed a snapshot by hand.
func (s *Store) Collect(ctx context.Context) error {
	l, err := s.left(ctx)
	if err != nil {
		return err
	}
	if _, err := s.releaseStale(ctx, l.holds); err != nil {
		return err
	}
	for _, fs := range l.fileSystems {
		if fs.remnant() && l.whyAll(fs) == "" {
			s.collect(ctx, dataset(fs.name))
		}
	}
	return ctx.Err()
}

// leftFileSystem is a file system beneath the parent, as Remnants looks at it.
type leftFileSystem struct {
	name      string
	used      int64 // bytes, its snapshots included
	retired   bool
	children  []string // file systems that others made in it
	snapshots []leftSnapshot
}

type leftSnapshot struct {
	name     string
	used     int64  // bytes that it alone has
	own      bool   // it is a snapshot of the store that was not destroyed
	deferred bool   // it was destroyed
	clones   string // names, with commas
}

// remnant tells whether nothing in it belongs to the store any more.
func (fs leftFileSystem) remnant() bool {
	return fs.retired && !slices.ContainsFunc(fs.snapshots, func(s leftSnapshot) bool { return s.own })
}

// leftovers is all of the store as Remnants looks at it.
type leftovers struct {
	fileSystems []leftFileSystem
	holds       []Hold
}

// why tells what keeps a snapshot that is not the store's any more; "" if it
// goes by itself when stale holds are released.
func (l leftovers) why(snap leftSnapshot) string {
	var reasons []string
	if !snap.deferred {
		reasons = append(reasons, fmt.Sprintf("others made the snapshot %s (zfs destroy %s)", snap.name, snap.name))
	}
	if snap.clones != "" {
		clones := strings.Split(snap.clones, ",")
		const told = 3
		if len(clones) > told { // how many zfs says, its buffer limits
			clones = append(clones[:told], "and others")
		}
		reasons = append(reasons, fmt.Sprintf("what was cloned from it needs %s: %s", snap.name, strings.Join(clones, ", ")))
	}
	var stay []Hold
	for _, h := range l.holds {
		if h.Dataset == snap.name && !h.stale() {
			stay = append(stay, h)
		}
	}
	if len(stay) > 0 {
		reasons = append(reasons, fmt.Sprintf("others hold %s (%s)", snap.name, releases(stay)))
	}
	return strings.Join(reasons, "; ")
}

// whyAll tells what keeps a file system of which why is asked for each snapshot.
func (l leftovers) whyAll(fs leftFileSystem) string {
	var reasons []string
	for _, child := range fs.children {
		reasons = append(reasons, "others made "+child+" in it")
	}
	for _, snap := range fs.snapshots {
		if why := l.why(snap); why != "" {
			reasons = append(reasons, why)
		}
	}
	return strings.Join(reasons, "; ")
}

// releases are the commands that end holds of others.
func releases(holds []Hold) string {
	commands := make([]string, len(holds))
	for i, h := range holds {
		commands[i] = fmt.Sprintf("zfs release %s %s", h.Tag, h.Dataset)
	}
	return strings.Join(commands, ", ")
}

const leftColumns = "name,used,defer_destroy,userrefs,clones," + propRetired + "," + propSnapshot

func (s *Store) left(ctx context.Context) (leftovers, error) {
	out, err := s.opts.output(ctx, "zfs", "list", "-Hp", "-r", "-d", "2", "-t", "filesystem,snapshot", "-o", leftColumns, s.parent)
	if err != nil {
		return leftovers{}, s.parentError(ctx, err)
	}
	l, held, err := parseLeft(s.parent, out)
	if err != nil {
		return leftovers{}, err
	}
	l.holds, err = s.holdsOf(ctx, held...)
	return l, err
}

// parseLeft reads `zfs list -Hp -o leftColumns` of all beneath the parent, and
// returns which snapshots are held, too.
func parseLeft(parent string, text []byte) (l leftovers, held []string, err error) {
	at := make(map[string]int)
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	// File systems first: a list that is sorted otherwise is read, too.
	for _, snapshots := range []bool{false, true} {
		for _, line := range lines {
			f := strings.Split(line, "\t")
			if len(f) != 7 {
				return l, nil, fmt.Errorf("what zfs list says cannot be read: %q", line)
			}
			name, deferred, refs, clones, retired, id := f[0], f[2], f[3], f[4], f[5], f[6]
			fs, _, isSnapshot := strings.Cut(name, "@")
			if isSnapshot != snapshots || strings.HasPrefix(fs, parent+"/"+receivingPrefix) {
				continue
			}
			used, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return l, nil, fmt.Errorf("what zfs list says cannot be read: %q: %w", line, err)
			}
			n, known := at[fs]
			switch _, _, direct := splitName(parent, name); {
			case isSnapshot && known:
				// One that somebody has renamed is the store's nevertheless.
				own := deferred != "on" && store.SnapshotID(id).Validate() == nil
				if clones == "-" {
					clones = ""
				}
				l.fileSystems[n].snapshots = append(l.fileSystems[n].snapshots, leftSnapshot{name: name, used: used, own: own, deferred: deferred == "on", clones: clones})
				if isHeld(refs) {
					held = append(held, name)
				}
			case isSnapshot:
			case direct:
				at[fs] = len(l.fileSystems)
				l.fileSystems = append(l.fileSystems, leftFileSystem{name: fs, used: used, retired: retired != "-"})
			default:
				if n, ok := at[fs[:max(0, strings.LastIndexByte(fs, '/'))]]; ok {
					l.fileSystems[n].children = append(l.fileSystems[n].children, fs)
				}
			}
		}
	}
	return l, held, nil
}
