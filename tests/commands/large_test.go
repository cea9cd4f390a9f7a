package commands

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a large tree may cost.
const (
	largeFiles = 200_000
	instant    = time.Second     // branch, snapshot
	growth     = 1 << 20         // bytes of the file system for each of them
	indexSlack = 5 * time.Second // beside reading the metadata
	memory     = 250             // MB of anonymous memory of serve
)

// writeLargeTree writes an archive of largeFiles files, 48 in a folder, as a
// system has many, and returns how many entries it has.
func writeLargeTree(w io.Writer) (files int, err error) {
	archive := tar.NewWriter(w)
	text := make([]byte, 64)
	add := func(header tar.Header, content []byte) {
		header.ModTime, header.Size = time.Unix(1_700_000_000, 0), int64(len(content))
		if err == nil {
			err = archive.WriteHeader(&header)
		}
		if err == nil {
			_, err = archive.Write(content)
		}
		files++
	}
	for i := 0; files < largeFiles; i++ {
		folder := fmt.Sprintf("package-%d/", i)
		add(tar.Header{Typeflag: tar.TypeDir, Name: folder, Mode: 0o755}, nil)
		for j := range 48 {
			name := fmt.Sprintf("%ssome-file-of-package.%d", folder, j)
			if j%8 == 7 {
				add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: "some-file-of-package.0"}, nil)
			} else {
				add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, text[:j])
			}
		}
	}
	return files, errors.Join(err, archive.Close())
}

// used is what the store's file system uses after all is written, in bytes.
func (s *site) used() int64 {
	s.t.Helper()
	root := s.root()
	dir, err := os.Open(root)
	must(s.t, err)
	defer dir.Close()
	var st unix.Statfs_t
	must(s.t, unix.Syncfs(int(dir.Fd())))
	must(s.t, unix.Statfs(root, &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// TestLargeTree measures what is done to a tree of 200,000 files against what
// it may cost.
func TestLargeTree(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: a large tree takes a minute")
	}
	w := newWire(t)
	s := w.site
	read, write, err := os.Pipe()
	must(t, err)
	files := 0
	written := make(chan error, 1)
	go func() {
		var err error
		files, err = writeLargeTree(write)
		written <- errors.Join(err, write.Close())
	}()
	begun := time.Now()
	load := s.command("import", "large", "--tar", "-")
	load.Stdin = read
	if r := s.runCmd(load); r.status != 0 {
		t.Fatalf("import: %+v", r)
	}
	must(t, errors.Join(<-written, read.Close()))
	t.Logf("%d files imported in %s", files, round(time.Since(begun)))

	used := s.used()
	for _, args := range [][]string{{"branch", "large@1", "gpu"}, {"snapshot", "gpu"}, {"snapshot", "large"}, {"branch", "large@2", "gpu2"}} {
		begun := time.Now()
		s.ok(args...)
		took, now := time.Since(begun), s.used()
		t.Logf("%s: %s, %d KiB more are used", args[0], round(took), (now-used)>>10)
		if took > instant {
			t.Errorf("%v took %s, it may take %s", args, took, instant)
		}
		if now-used > growth {
			t.Errorf("%v took %d bytes, it may take %d", args, now-used, growth)
		}
		used = now
	}

	// The index costs what reading the metadata costs, and 5 s. Mounting the
	// store anew drops what the kernel knows of it.
	drop := func() {
		t.Helper()
		s.ok("unmount")
		s.ok("list")
	}
	drop()
	var snapshots []snapshotJSON
	s.json(&snapshots, "log", "large")
	begun = time.Now()
	out, err := exec.Command("find", filepath.Join(s.root(), "snapshots", snapshots[0].ID), "-printf", "%i %s %m %U %T@\n").Output()
	reading := time.Since(begun)
	must(t, err)
	if n := countLines(out); n != files+1 { // with the root
		t.Fatalf("find sees %d files instead of %d", n, files)
	}
	drop()
	begun = time.Now()
	s.ok("promote", "large@2")
	took := time.Since(begun)
	t.Logf("find: %s; promote with its index: %s", round(reading), round(took))
	if took > reading+indexSlack {
		t.Errorf("promote took %s, reading the metadata %s", took, reading)
	}
	begun = time.Now()
	s.ok("promote", "large@2", "--channel", "canary")
	if took := time.Since(begun); took > reading+indexSlack {
		t.Errorf("a second promotion took %s", took)
	}

	p := w.served()
	c, root := w.mountNFS("/channel/default")
	begun = time.Now()
	walked, err := c.walk(root)
	took = time.Since(begun)
	if err != nil || walked != files {
		t.Errorf("a client walks %d files instead of %d, %v", walked, files, err)
	}
	mb := anonymous(t, p.Pid())
	t.Logf("a client walked all of it in %s (%.0f files/s); serve has %d MB of anonymous memory", round(took), float64(walked)/took.Seconds(), mb)
	if mb >= memory {
		t.Errorf("serve has %d MB of anonymous memory, it may have %d", mb, memory)
	}
	// Without an index, the server makes it itself: then, too, memory is bounded.
	s.ok("snapshot", "large")
	var newest struct {
		Snapshot snapshotJSON `json:"snapshot"`
	}
	s.json(&newest, "show", "large@latest")
	d, root := w.mountNFS("/snapshot/" + newest.Snapshot.ID)
	if n, err := d.walk(root); err != nil || n != walked {
		t.Errorf("a snapshot without an index: %d files, %v", n, err)
	}
	mb = anonymous(t, p.Pid())
	t.Logf("after it made an index itself: %d MB", mb)
	if mb >= memory {
		t.Errorf("serve has %d MB of anonymous memory after it made an index, it may have %d", mb, memory)
	}
	w.stopped(p)
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

func countLines(text []byte) (n int) {
	for _, c := range text {
		if c == '\n' {
			n++
		}
	}
	return n
}
