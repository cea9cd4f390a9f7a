package node

import (
	"slices"
	"strconv"
	"strings"
)

// nfsOption says which values an option of nfs(5) may have for a root: a
// number between min and max, one of words, or none at all.
type nfsOption struct {
	min, max int
	words    []string
}

var nfsOptions = map[string]nfsOption{
	"rsize":        {min: 4096, max: 1 << 20},
	"timeo":        {min: 1, max: 6000}, // tenths of a second
	"retrans":      {min: 1, max: 100},
	"actimeo":      {max: 1 << 24}, // seconds
	"acregmin":     {max: 1 << 24},
	"acregmax":     {max: 1 << 24},
	"acdirmin":     {max: 1 << 24},
	"acdirmax":     {max: 1 << 24},
	"nconnect":     {min: 1, max: 16},
	"lookupcache":  {words: []string{"all", "none", "pos", "positive"}},
	"ac":           {},
	"noac":         {},
	"cto":          {},
	"nocto":        {},
	"hard":         {},
	"rdirplus":     {},
	"nordirplus":   {},
	"sharecache":   {},
	"nosharecache": {},
	"resvport":     {},
	"noresvport":   {},
	"atime":        {},
	"noatime":      {},
	"nodiratime":   {},
	"relatime":     {},
	"norelatime":   {},
}

// Why an option that mount(8) would take is refused.
var nfsRefused = map[string]string{
	"soft":    "a root that gives up after a time breaks running programs while the server is away; hard waits",
	"softerr": "a root that gives up after a time breaks running programs while the server is away; hard waits",
	"rw":      "a snapshot never changes; nodes write into the overlay",
	"wsize":   "nothing is written through the mount",
	"sync":    "nothing is written through the mount",
	"async":   "nothing is written through the mount",
	"lock":    "there is no lock server; the root is mounted with nolock",
	"udp":     "NFS is served over TCP only",
	"nosuid":  "sudo and its like would not work in the root",
	"nodev":   "device files of the root would not work",
	"noexec":  "nothing in the root could be run",
	"bg":      "the boot cannot go on without its root",
	"fsc":     "the initial RAM file system has no cachefilesd",
	"intr":    "kernels have ignored it since 2.6.25",
	"nointr":  "kernels have ignored it since 2.6.25",
}

// Options that the boot sets itself.
var nfsOurs = []string{"ro", "vers", "nfsvers", "v3", "v4", "proto", "tcp", "port", "mountproto", "mountport", "mountvers",
	"mounthost", "mountaddr", "addr", "clientaddr", "nolock", "minorversion", "sec"}

// CheckNFSOptions checks mount options for the root of nodes. The error wraps
// ErrInvalid and says what is wrong with which option.
func CheckNFSOptions(options []string) error {
	seen := map[string]bool{}
	for _, o := range options {
		key, value, hasValue := strings.Cut(o, "=")
		if seen[key] {
			return invalid("NFS option %.60q is given twice", key)
		}
		seen[key] = true
		if reason, ok := nfsRefused[key]; ok {
			return invalid("NFS option %s: %s", key, reason)
		}
		if slices.Contains(nfsOurs, key) {
			return invalid("NFS option %s is set by Sidus itself", key)
		}
		known, ok := nfsOptions[key]
		if !ok {
			return invalid("NFS option %.60q is not known; there is %s", key, knownNFSOptions())
		}
		if err := known.check(key, value, hasValue); err != nil {
			return err
		}
	}
	return nil
}

func (o nfsOption) check(key, value string, hasValue bool) error {
	switch {
	case o.words != nil:
		if !slices.Contains(o.words, value) {
			return invalid("NFS option %s=%.60s: it is one of %s", key, value, strings.Join(o.words, ", "))
		}
	case o.max > 0:
		n, err := strconv.Atoi(value)
		if err != nil || n < o.min || n > o.max || strconv.Itoa(n) != value {
			return invalid("NFS option %s=%.60s: it is a number from %d to %d", key, value, o.min, o.max)
		}
	case hasValue:
		return invalid("NFS option %s has no value", key)
	}
	return nil
}

func knownNFSOptions() string {
	var names []string
	for name := range nfsOptions {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
