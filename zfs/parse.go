package zfs

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"sidus/image/store"
)

// property is the value of a property and where it comes from: "local",
// "received", "default", "-", "inherited from …".
type property struct {
	value  string
	source string
}

// own returns the value if it was set on the dataset itself.
func (p property) own() string {
	if p.source != "local" && p.source != "received" {
		return ""
	}
	return p.value
}

// parseProperties reads `zfs get -Hp -o property,value,source`.
func parseProperties(text []byte) (map[string]property, error) {
	all := make(map[string]property)
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) != 3 {
			return nil, fmt.Errorf("what zfs get says cannot be read: %q", line)
		}
		all[fields[0]] = property{value: fields[1], source: fields[2]}
	}
	return all, nil
}

func parseNames(text []byte) []string { return strings.Fields(string(text)) }

// listColumns are what parseList reads.
const listColumns = "name,creation,defer_destroy," + propVolume + "," + propRetired + "," + propSnapshot

// listed is a line of `zfs list`.
type listed struct {
	item    store.Item
	name    string // of the dataset
	renamed string // what someone has renamed it to; then name is the one that it should have
}

// parseList reads `zfs list -Hp -o listColumns` of all beneath the parent and
// returns what belongs to the store. A snapshot shows the user properties of its
// file system, and a file system those of its parent: a name counts.
func parseList(parent string, text []byte) ([]listed, error) {
	var all []listed
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 6 {
			return nil, fmt.Errorf("what zfs list says cannot be read: %q", line)
		}
		name, creation, deferred, volume, retired, snapshot := f[0], f[1], f[2], f[3], f[4], f[5]
		fs, snap, ok := splitName(parent, name)
		if !ok {
			continue
		}
		seconds, err := strconv.ParseInt(creation, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("what zfs list says cannot be read: %q: %w", line, err)
		}
		made := time.Unix(seconds, 0)
		received, receiving := strings.CutPrefix(fs, receivingPrefix)
		switch {
		case receiving:
			if id := store.SnapshotID(received); snap == "" && id.Validate() == nil {
				all = append(all, listed{item: store.Item{Kind: store.KindSnapshot, Snapshot: id, Created: made, Partial: true}, name: name})
			}
		case snap != "":
			id := store.SnapshotID(snapshot)
			if deferred == "on" || id.Validate() != nil {
				break
			}
			l := listed{item: store.Item{Kind: store.KindSnapshot, Snapshot: id, Created: made}, name: name}
			if snap != snapshot {
				l.name, l.renamed = parent+"/"+fs+"@"+snapshot, name
			}
			all = append(all, l)
		case retired != "-" || store.VolumeID(volume).Validate() != nil:
		default:
			l := listed{item: store.Item{Kind: store.KindVolume, Volume: store.VolumeID(volume), Created: made}, name: name}
			if fs != volume {
				l.name, l.renamed = parent+"/"+volume, name
			}
			all = append(all, l)
		}
	}
	return all, nil
}
