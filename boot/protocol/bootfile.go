package protocol

import (
	"fmt"
	"net/url"
	"strings"

	"sidus/image/store"
)

// BootFile names one of the two files that a boot loader fetches.
type BootFile string

// The files that a boot loader fetches.
const (
	Kernel BootFile = "kernel"
	Initrd BootFile = "initrd"
)

// Step is the step that a boot has reached when f is asked for.
func (f BootFile) Step() Step {
	if f == Initrd {
		return StepInitrd
	}
	return StepKernel
}

// BootFileURL is the address of f of a snapshot under base, for example
// "http://10.0.0.1:8080". The session is carried along, so that the server
// can tell whose boot it is.
func BootFileURL(base string, snapshot store.SnapshotID, f BootFile, session SessionID) string {
	u := strings.TrimSuffix(base, "/") + "/v1/boot/" + string(snapshot) + "/" + string(f)
	if session != "" {
		u += "?session=" + url.QueryEscape(string(session))
	}
	return u
}

// BootFilePath is the name of f of a snapshot on the TFTP server.
func BootFilePath(snapshot store.SnapshotID, f BootFile) string {
	return "boot/" + string(snapshot) + "/" + string(f)
}

// ParseBootFilePath is the inverse of BootFilePath. The error wraps
// ErrMalformed.
func ParseBootFilePath(path string) (store.SnapshotID, BootFile, error) {
	rest, ok := strings.CutPrefix(path, "boot/")
	id, file, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return "", "", fmt.Errorf("%.80q: %w: it is not boot/<snapshot>/<file>", path, ErrMalformed)
	}
	snapshot, f, err := ParseBootFile(id, file)
	if err != nil {
		return "", "", err
	}
	return snapshot, f, nil
}

// ParseBootFile checks the two parts of a boot file's address. The error
// wraps ErrMalformed.
func ParseBootFile(snapshot, file string) (store.SnapshotID, BootFile, error) {
	id, err := store.ParseSnapshotID(snapshot)
	if err != nil {
		return "", "", fmt.Errorf("snapshot %.40q: %w: it has 32 lowercase hexadecimal digits", snapshot, ErrMalformed)
	}
	if f := BootFile(file); f == Kernel || f == Initrd {
		return id, f, nil
	}
	return "", "", fmt.Errorf("boot file %.40q: %w: it is %q or %q", file, ErrMalformed, Kernel, Initrd)
}

// ReportURL is where the agent of a session reports to.
func ReportURL(base string, session SessionID) string {
	return strings.TrimSuffix(base, "/") + "/v1/sessions/" + string(session) + "/report"
}
