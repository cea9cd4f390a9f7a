package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidus/image"
	"sidus/image/catalog"
	"sidus/image/store"
	"sidus/image/store/memstore"
)

// treePhase is a first phase that copies a small system (busybox) into the
// tree, from the folder "system" beside the recipe.
const treePhase = `tree: test
vars: {who: world}
phases:
  - name: system
    files: [{to: /, from: system}]
`

// tinyRecipe writes a recipe whose first phase is treePhase.
func tinyRecipe(t *testing.T, phases string) string {
	t.Helper()
	needRoot(t)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("this test needs the package busybox-static:", err)
	}
	dir := t.TempDir()
	system := filepath.Join(dir, "system")
	for _, name := range []string{"bin", "etc", "usr/sbin", "proc", "sys", "dev", "run", "tmp"} {
		if err := os.MkdirAll(filepath.Join(system, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(system, "bin/busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "dd", "sleep", "echo", "touch", "id", "mkdir", "seq", "ip", "ls"} {
		if err := os.Symlink("busybox", filepath.Join(system, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"system/etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/:/bin/sh\n",
		"system/etc/group":  "root:x:0:\nwww:x:55:\n",
		"motd":              "Hello ${who}, $${HOME} stays.\n",
		"recipe.yaml":       treePhase + phases,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "recipe.yaml")
}

func testOptions(t *testing.T) (Options, *recorder) {
	events := &recorder{}
	return Options{CacheDir: t.TempDir(), LogDir: t.TempDir(), Progress: events}, events
}

func mustBuild(t *testing.T, o Options, head Head, r Request) Result {
	t.Helper()
	result, err := New(o).Build(t.Context(), head, r)
	if err != nil {
		t.Fatalf("%v\n%s", err, logOf(t, o.LogDir))
	}
	return result
}

func TestBuild(t *testing.T) {
	file := tinyRecipe(t, `
  - name: site
    files:
      - {to: /etc/motd, from: motd, template: true, owner: web, group: www, mode: "2640"}
      - {to: /usr/lib/made/deep/file, content: "x\n"}
      - {to: /etc/none, link: /dev/null}
  - run: |
      echo "$(cat /etc/motd)" "$DEBIAN_FRONTEND" > /result
      id -u >> /result
  - name: offline
    run: {script: "ip -o link | cat > /links", network: no, shell: sh}
`)
	o, events := testOptions(t)
	head := newFolderHead(t)
	recipe := mustLoad(t, file, nil)
	result := mustBuild(t, o, head, Request{Recipe: recipe, Message: "first"})
	if result.UpToDate || result.Snapshot.Ref != "test@4" || !result.Snapshot.Complete || head.base != result.Snapshot.ID {
		t.Errorf("result: %+v", result)
	}
	for i, s := range head.list {
		if s.Complete != (i == 3) || s.o.Message != "first" || s.o.Recipe != file || len(s.Key) != 64 {
			t.Errorf("snapshot %d: %+v", i, s)
		}
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(head.head, name))
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	if got := read("result"); got != "Hello world, ${HOME} stays. noninteractive\n0\n" {
		t.Errorf("the script saw %q", got)
	}
	if got := strings.Count(read("links"), "\n"); got != 1 {
		t.Errorf("%d cards without a network: %s", got, read("links"))
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(head.head, "etc/motd"), &st); err != nil || st.Uid != 33 || st.Gid != 55 || st.Mode != syscall.S_IFREG|0o2640 {
		t.Errorf("motd: %d:%d %o %v", st.Uid, st.Gid, st.Mode, err)
	}
	if to, err := os.Readlink(filepath.Join(head.head, "etc/none")); to != "/dev/null" {
		t.Error(to, err)
	}
	if _, err := os.Lstat(filepath.Join(head.head, "etc/resolv.conf")); err == nil {
		t.Error("resolv.conf was left in the tree")
	}
	var kinds []string
	for _, e := range events.events {
		if e.Type != EventActivity {
			kinds = append(kinds, string(e.Type))
		}
	}
	if got := strings.Join(kinds, " "); got != "plan phase phase-end phase phase-end phase phase-end phase phase-end done" {
		t.Error("events:", got)
	}

	works := head.works
	result = mustBuild(t, o, head, Request{Recipe: mustLoad(t, file, nil)})
	if !result.UpToDate || head.works != works {
		t.Errorf("the second build: %+v", result)
	}
	result = mustBuild(t, o, head, Request{Recipe: mustLoad(t, file, map[string]string{"who": "all"})})
	if result.Plan.Runs() != 3 || !strings.HasPrefix(read("result"), "Hello all") {
		t.Errorf("another value:\n%s%s", result.Plan, read("result"))
	}
	if result.Plan.Phases[1].Reason != "file motd changed" {
		t.Errorf("reason: %s", result.Plan.Phases[1].Reason)
	}
	result = mustBuild(t, o, head, Request{Recipe: mustLoad(t, file, nil)})
	if result.Plan.Runs() != 0 || !result.Plan.Move || result.Snapshot.Ref != "test@4" || !strings.HasPrefix(read("result"), "Hello world") {
		t.Errorf("back again: %s: %s", result.Snapshot.Ref, read("result"))
	}
	entries, _ := os.ReadDir(filepath.Join(o.CacheDir, "work"))
	if len(entries) != 0 {
		t.Error("work folders were left:", entries)
	}
}

func TestAFailingPhase(t *testing.T) {
	file := tinyRecipe(t, `
  - {name: good, run: "echo good > /good"}
  - {name: bad, run: "seq 100; sleep 1000 & echo bad > /bad; exit 3"}
  - {name: never, run: "echo never"}
`)
	o, _ := testOptions(t)
	head := newFolderHead(t)
	recipe := mustLoad(t, file, nil)
	_, err := New(o).Build(t.Context(), head, Request{Recipe: recipe})
	var failed *PhaseError
	if !errors.As(err, &failed) {
		t.Fatal(err)
	}
	if failed.Phase != "bad" || len(failed.Tail) != tailLines || failed.Tail[tailLines-1] != "100" || failed.Tail[0] != "81" {
		t.Errorf("phase %q, tail %q", failed.Phase, failed.Tail)
	}
	if !strings.Contains(err.Error(), "phase bad: sh: exit status 3\n") || !strings.HasSuffix(err.Error(), "\nThe whole log: "+failed.Log) {
		t.Error(err)
	}
	if text, _ := os.ReadFile(failed.Log); !bytes.Contains(text, []byte("\n1\n2\n3\n")) {
		t.Errorf("the log: %s", text)
	}
	if head.head != "" || head.base != "" || len(head.list) != 2 {
		t.Errorf("head %q, base %q, %d snapshots", head.head, head.base, len(head.list))
	}
	plan, err := New(o).Plan(t.Context(), head, Request{Recipe: recipe})
	if err != nil || plan.Runs() != 2 || plan.From.Ref != "test@2" {
		t.Errorf("the next plan: %v\n%s", err, plan)
	}
}

func TestCancelInAPhase(t *testing.T) {
	file := tinyRecipe(t, `
  - {name: slow, run: "trap '' TERM INT; echo half > /half; echo Setting up something; sleep 1000"}
`)
	o, _ := testOptions(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	o.Progress = progressFunc(func(e Event) {
		if e.Type == EventActivity && e.Text == "setting up something" {
			cancel(errTest)
		}
	})
	head := newFolderHead(t)
	_, err := New(o).Build(ctx, head, Request{Recipe: mustLoad(t, file, nil)})
	if !errors.Is(err, errTest) || len(head.list) != 1 || head.head != "" {
		t.Errorf("%v; %d snapshots, head %q", err, len(head.list), head.head)
	}
}

type progressFunc func(Event)

func (f progressFunc) Event(e Event) { f(e) }

func TestAFullStore(t *testing.T) {
	phases := map[string]string{
		"a program": `
  - {name: full, run: "dd if=/dev/zero of=/big bs=65536 count=1000"}
`,
		"copied files": `
  - name: full
    files: [{to: /a, from: system}, {to: /b, from: system}, {to: /c, from: system}, {to: /d, from: system}, {to: /e, from: system}]
`,
	}
	for name, text := range phases {
		t.Run(name, func(t *testing.T) {
			file := tinyRecipe(t, text)
			head := newFolderHead(t)
			// Snapshots of this head are copies, so the small file system is
			// for workspaces alone.
			small := filepath.Join(head.dir, "work-1")
			if err := os.Mkdir(small, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", small, "tmpfs", 0, "mode=0755,size=6m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
			o, _ := testOptions(t)
			_, err := New(o).Build(t.Context(), &smallHead{head, small}, Request{Recipe: mustLoad(t, file, nil)})
			var failed *PhaseError
			if !errors.Is(err, store.ErrNoSpace) || !errors.As(err, &failed) || failed.Phase != "full" || len(head.list) != 1 {
				t.Errorf("%v; %d snapshots", err, len(head.list))
			}
		})
	}
}

// smallHead hands out a workspace on a small file system.
type smallHead struct {
	*folderHead
	dir string
}

func (h *smallHead) Work(context.Context, store.SnapshotID) (Workspace, error) {
	h.open++
	return &smallWork{folderWork{h: h.folderHead, dir: h.dir}}, nil
}

type smallWork struct{ folderWork }

func (w *smallWork) Discard(context.Context) error { w.h.open--; return nil }

func TestAChangedHeadIsNotOverwritten(t *testing.T) {
	file := tinyRecipe(t, "")
	o, _ := testOptions(t)
	head := newFolderHead(t)
	mustBuild(t, o, head, Request{Recipe: mustLoad(t, file, nil)})
	if err := os.WriteFile(filepath.Join(head.head, "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	head.changes = []string{"+ /mine"}
	// Nothing has to be done, so nothing is lost.
	if result := mustBuild(t, o, head, Request{Recipe: mustLoad(t, file, nil)}); !result.UpToDate {
		t.Errorf("%+v", result)
	}
	_, err := New(o).Build(t.Context(), head, Request{Recipe: mustLoad(t, file, nil), Rebuild: "system"})
	if !errors.Is(err, ErrHeadChanged) || !strings.Contains(err.Error(), "\n  + /mine\n") || !strings.Contains(err.Error(), "--discard") {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(head.head, "mine")); err != nil {
		t.Error(err)
	}
	result := mustBuild(t, o, head, Request{Recipe: mustLoad(t, file, nil), Rebuild: "system", Discard: true})
	saved := head.find(result.Saved.ID)
	if saved == nil {
		t.Fatalf("%+v", result)
	}
	if _, err := os.Stat(filepath.Join(saved.dir, "mine")); err != nil {
		t.Error("the old head is not in the log:", err)
	}
	if _, err := os.Stat(filepath.Join(head.head, "mine")); err == nil {
		t.Error("the new head has what was discarded")
	}
}

// The real manager, on a store of folders.
func TestBuildOfAManagersTree(t *testing.T) {
	file := tinyRecipe(t, `
  - {name: a, run: "echo a > /a"}
  - {name: b, run: "[ ! -e /fail ] && echo b > /b"}
`)
	layout := image.Layout{Dir: t.TempDir()}
	if err := layout.Make(); err != nil {
		t.Fatal(err)
	}
	cat, err := catalog.Create(t.Context(), layout.Catalog())
	if err != nil {
		t.Fatal(err)
	}
	defer cat.Close()
	fake := memstore.New(t.TempDir())
	m := image.New(image.Options{Layout: layout, Catalog: cat, Store: fake, Actor: catalog.Actor{User: "ada", Command: "test"}})
	tree := func(name string) *ManagerHead {
		t.Helper()
		if _, err := m.CreateTree(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		lock, err := m.LockHead(t.Context(), name, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = lock.Release() })
		return &ManagerHead{Manager: m, Tree: name, Lock: lock}
	}
	o, _ := testOptions(t)
	one := tree("one")
	recipe := mustLoad(t, file, nil)
	result := mustBuild(t, o, one, Request{Recipe: recipe})
	if result.Snapshot.Ref != "one@3" || !result.Snapshot.Complete || !result.Snapshot.Own {
		t.Errorf("%+v", result.Snapshot)
	}
	if result = mustBuild(t, o, one, Request{Recipe: recipe}); !result.UpToDate {
		t.Errorf("not up to date:\n%s", result.Plan)
	}
	// A second tree takes over what the first has, and gets a complete
	// snapshot of its own.
	two := tree("two")
	result = mustBuild(t, o, two, Request{Recipe: recipe})
	if result.Plan.Runs() != 0 || !result.Plan.Seal || result.Snapshot.Ref != "two@1" {
		t.Errorf("%s\n%s", result.Snapshot.Ref, result.Plan)
	}
	if result = mustBuild(t, o, two, Request{Recipe: recipe}); !result.UpToDate {
		t.Errorf("not up to date:\n%s", result.Plan)
	}
	if mounts := fake.Mounts(); mounts != 0 {
		t.Errorf("%d mounts are left", mounts)
	}
	findings, err := m.Check(t.Context())
	if err != nil || len(findings) != 0 {
		t.Errorf("check: %v %v", findings, err)
	}
}

func TestLinksOfATreeDoNotLeadOut(t *testing.T) {
	needRoot(t)
	outside := t.TempDir()
	root := t.TempDir()
	tree, err := openTree(root)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	if err := os.WriteFile(filepath.Join(outside, "passwd"), []byte("secret:x:77:77::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"abs": outside, "up": "../../../../../../../.." + outside, "etc": outside} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"/abs/file", "/up/file"} {
		if err := tree.put(name, strings.NewReader("x"), ownership{}); err == nil || !strings.Contains(err.Error(), "leads nowhere") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Where the tree has a folder of that name, it is that one.
	if err := os.MkdirAll(filepath.Join(root, outside), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/abs/file", "/up/file"} {
		if err := tree.put(name, strings.NewReader("x"), ownership{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(root, outside, "file")); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Error("written outside of the tree:", entries)
	}
	if _, err := tree.id("etc/passwd", "secret"); err == nil {
		t.Error("a file outside of the tree was read")
	}
}

func TestMirrorThatIsDown(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Fatal("this test needs mmdebstrap")
	}
	defer func(old time.Duration) { mirrorTimeout = old }(mirrorTimeout)
	mirrorTimeout = 500 * time.Millisecond
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	empty := httptest.NewServer(http.NotFoundHandler())
	defer empty.Close()
	for mirror, want := range map[string]string{
		"http://" + silent.Addr().String() + "/debian": "nothing heard in 500ms",
		"http://" + closed.Addr().String() + "/debian": "connection refused",
		empty.URL + "/debian":                          "has no suite bookworm (404 Not Found)",
		"http://mirror.invalid/debian":                 "no such host",
		"file:///nowhere/debian":                       "has no suite bookworm",
	} {
		o, _ := testOptions(t)
		began := time.Now()
		recipe := mustLoad(t, writeRecipe(t, "phases:\n  - base: {suite: bookworm, mirror: \""+mirror+"\"}\n"), nil)
		_, err := New(o).Build(t.Context(), newFolderHead(t), Request{Recipe: recipe})
		if !errors.Is(err, ErrMirror) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), strings.TrimPrefix(mirror, "file:")) {
			t.Errorf("%s: %v", mirror, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: told after %v", mirror, took)
		}
	}
}

func TestProgressLines(t *testing.T) {
	plan := &Plan{Phases: []PlannedPhase{{Name: "base", Kind: KindBase, Run: true, Reason: "never built"}}}
	events := []Event{
		{Type: EventPlan, Plan: plan, Total: 1},
		{Type: EventPhase, Phase: "base", Index: 1, Total: 1, Text: "never built"},
		{Type: EventActivity, Phase: "base", Index: 1, Total: 1, Text: "unpacking dash"},
		{Type: EventPhaseEnd, Phase: "base", Index: 1, Total: 1, Elapsed: 64 * time.Second, Snapshot: "t@1"},
		{Type: EventDone, Snapshot: "t@1", Elapsed: 65 * time.Second},
	}
	var lines, screenText, objects bytes.Buffer
	s := newScreen(&screenText, func() int { return 40 })
	for _, e := range events {
		(&plain{out: &lines, said: time.Now()}).Event(e)
		s.Event(e)
		JSON{Out: &objects}.Event(e)
	}
	s.close()
	s.close()
	if want := "1/1  run     base              never built\n[1/1] base: never built\n[1/1] base: done in 1m04s, t@1\n"; lines.String() != want {
		t.Errorf("plain: %q", lines.String())
	}
	if !strings.Contains(screenText.String(), "\r\x1b[K[1/1] base") || !strings.Contains(screenText.String(), "1m04s  t@1\n") {
		t.Errorf("screen: %q", screenText.String())
	}
	decoder := json.NewDecoder(&objects)
	for i := range events {
		var e Event
		if err := decoder.Decode(&e); err != nil || e.Type != events[i].Type {
			t.Errorf("object %d: %+v, %v", i, e, err)
		}
	}
}

func TestActivities(t *testing.T) {
	for line, want := range map[string]string{
		"Get:5 http://deb.debian.org/debian bookworm/main amd64 zstd amd64 1.5.4+dfsg2-5 [677 kB]": "downloading zstd",
		"Unpacking libc6:amd64 (2.36-9+deb12u10) over (2.36-9) ...":                                "unpacking libc6",
		"Selecting previously unselected package busybox.":                                         "selecting busybox",
		"Setting up openssh-server (1:9.2p1-2) ...":                                                "setting up openssh-server",
		"Processing triggers for man-db (2.11.2-2) ...":                                            "triggers of man-db",
		"I: installing essential packages...":                                                      "installing essential packages",
		"Hit:1 http://deb.debian.org/debian bookworm InRelease":                                    "package lists of http://deb.debian.org/debian bookworm",
		"something else": "",
	} {
		if got := activityOf(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
