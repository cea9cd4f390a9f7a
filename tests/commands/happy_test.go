package commands

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// want checks that a command succeeds and prints the words.
func (s *site) want(words []string, args ...string) string {
	s.t.Helper()
	out := s.ok(args...)
	for _, word := range words {
		if !strings.Contains(out, word) {
			s.t.Errorf("sidus %s does not print %q:\n%s", strings.Join(args, " "), word, out)
		}
	}
	return out
}

type snapshotJSON struct {
	ID       string `json:"id"`
	Tree     string `json:"tree"`
	Number   int    `json:"number"`
	Name     string `json:"name"`
	Phase    string `json:"phase"`
	Complete bool   `json:"complete"`
	Author   string `json:"author"`
	Message  string `json:"message"`
}

type listingJSON struct {
	Trees []struct {
		ID        string        `json:"id"`
		Name      string        `json:"name"`
		Head      string        `json:"head"`
		Snapshots int           `json:"snapshots"`
		Latest    *snapshotJSON `json:"latest"`
		Channels  []string      `json:"channels"`
	} `json:"trees"`
	Usage struct {
		Size, Used, Available int64
	} `json:"usage"`
}

type channelJSON struct {
	Name     string       `json:"name"`
	Snapshot snapshotJSON `json:"snapshot"`
	Keep     int          `json:"keep"`
}

type eventJSON struct {
	Actor   string `json:"actor"`
	Action  string `json:"action"`
	Text    string `json:"text"`
	Message string `json:"message"`
}

// TestLifeOfATree goes through the commands as the manual does, once with
// text and once with JSON.
func TestLifeOfATree(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := smallTree(t)

	s.want([]string{"TREE", "store:", "can be written"}, "list")
	s.want([]string{"state folder", "next: "}, "init")

	s.want([]string{"imported deb@1"}, "import", "deb", "--dir", dir, "--message", "from the old server")
	archive := filepath.Join(t.TempDir(), "tree.tar.zst")
	if out, err := exec.Command("tar", "-C", dir, "--zstd", "-cf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	var first snapshotJSON
	s.json(&first, "import", "--tar", archive, "tarred")
	if first.Tree != "tarred" || first.Number != 1 || !first.Complete || len(first.ID) != 32 {
		t.Errorf("import --json: %+v", first)
	}
	plain := s.command("import", "piped", "--tar", "-")
	input := exec.Command("tar", "-C", dir, "-cf", "-", ".")
	pipe, err := input.StdoutPipe()
	must(t, err)
	must(t, input.Start())
	plain.Stdin = pipe
	if r := s.runCmd(plain); r.status != 0 {
		t.Errorf("import --tar -: %s", r.stderr)
	}
	must(t, input.Wait())

	s.ok("exec", "deb", "--", "/bin/sh", "-c", "echo second > /etc/marker")
	s.want([]string{"tree        deb", "starts from deb@1", "/etc/marker"}, "show", "deb")
	s.want([]string{"took deb@2"}, "snapshot", "deb", "before-upgrade", "-m", "the reason")
	s.want([]string{"snapshot    deb@2", "before-upgrade", "the reason", "complete    yes", "parent      deb@1"}, "show", "deb@before-upgrade")
	var shown struct {
		Snapshot snapshotJSON `json:"snapshot"`
		NeededBy []any        `json:"needed_by"`
	}
	s.json(&shown, "show", "deb@latest")
	if shown.Snapshot.Number != 2 || shown.NeededBy == nil {
		t.Errorf("show --json: %+v", shown)
	}
	s.want([]string{"deb@2"}, "show", shown.Snapshot.ID[:8])

	s.want([]string{"gpu starts from deb@2"}, "branch", "deb@2", "gpu")
	s.want([]string{"ML starts from deb@1"}, "clone", "deb@1", "ML")
	s.want([]string{"ML is now ml"}, "rename", "ML", "ml")
	s.want([]string{"first"}, "exec", "ml", "--", "/bin/busybox", "cat", "/etc/marker")
	s.want([]string{"second"}, "exec", "gpu", "--", "/bin/busybox", "cat", "/etc/marker")

	s.want([]string{"channel default points to deb@1"}, "promote", "deb@1")
	s.want([]string{"points to deb@2", "before it was deb@1"}, "promote", "deb@latest", "--message", "new MPI")
	s.want([]string{"still points to deb@2"}, "promote", "deb@2")
	s.want([]string{"channel canary points to deb@2"}, "promote", "deb@2", "-c", "canary", "--json=false")
}

// TestEverythingPrintsJSON asks every command that prints for JSON.
func TestEverythingPrintsJSON(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := smallTree(t)
	recipe := writeRecipe(t, "built", "phases:\n  - run: {script: 'exit 0', shell: /bin/sh}\n")
	for _, args := range [][]string{
		{"init"}, {"import", "deb", "--dir", dir}, {"snapshot", "deb", "named"}, {"snapshot", "deb"}, {"branch", "deb@1", "other"},
		{"rename", "other", "another"}, {"rollback", "deb@1"}, {"list"}, {"show", "deb"}, {"show", "deb@1"}, {"log"}, {"log", "deb"},
		{"log", "deb", "--events"}, {"promote", "deb@1"}, {"promote", "deb@2"}, {"channel", "list"}, {"channel", "history", "default"},
		{"channel", "rollback", "default"}, {"channel", "set", "default", "--keep", "3"}, {"promote", "deb@1", "-c", "gone"},
		{"channel", "delete", "gone", "--yes"}, {"network", "add", "lab", "--subnet", "10.99.0.0/24"}, {"network", "set", "lab", "--lease", "1h"},
		{"network", "list"}, {"node", "add", "52:54:00:00:00:01", "--name", "n1"}, {"node", "set", "n1", "--args", "quiet"}, {"node", "list"},
		{"node", "show", "n1"}, {"status"}, {"build", recipe, "--plan"}, {"check"}, {"check", "--repair"}, {"node", "delete", "n1", "--yes"}, {"network", "delete", "lab", "--yes"},
		{"delete", "another", "--yes"}, {"delete", "deb@3", "--yes"},
	} {
		var value any
		s.json(&value, args...)
		if value == nil {
			t.Errorf("sidus %s --json prints null", strings.Join(args, " "))
		}
	}
	s.sound()
	var failure struct {
		Error  string `json:"error"`
		Status int    `json:"exit_status"`
	}
	for status, args := range map[int][]string{2: {"--json", "frob"}, 3: {"show", "nobody", "--json"}, 4: {"import", "deb", "--dir", dir, "--json"}} {
		r := s.run(args...)
		decode(t, args, r.stderr, &failure)
		if r.status != status || failure.Status != status || failure.Error == "" || r.stdout != "" {
			t.Errorf("sidus %v: status %d, %+v, printed %q", args, r.status, failure, r.stdout)
		}
	}
}

func TestRollbackAndChannels(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	for _, text := range []string{"second", "third"} {
		s.ok("exec", "deb", "--", "/bin/sh", "-c", "echo "+text+" > /etc/marker")
		s.ok("snapshot", "deb")
	}
	s.ok("promote", "deb@1")
	s.ok("promote", "deb@2")
	s.ok("promote", "deb@3")

	// A head that nobody has kept is saved first.
	s.ok("exec", "deb", "--", "/bin/sh", "-c", "echo unsaved > /etc/marker")
	s.want([]string{"the head of deb is now deb@1", "saved as deb@4", "channel default still points to deb@3"}, "rollback", "deb@1")
	s.want([]string{"first"}, "exec", "deb", "--", "/bin/busybox", "cat", "/etc/marker")
	// So is one that somebody may have written to: nobody looks whether he has.
	s.want([]string{"now deb@4", "saved as deb@5"}, "rollback", "deb@4")
	s.want([]string{"unsaved"}, "exec", "deb", "--", "/bin/busybox", "cat", "/etc/marker")

	s.want([]string{"points to deb@2, before it was deb@3"}, "channel", "rollback", "default", "-m", "3 a.m.")
	s.want([]string{"points to deb@1, before it was deb@2"}, "channel", "rollback", "default")
	s.fails(3, []string{"never pointed to anything else", "--to"}, "channel", "rollback", "default")
	s.fails(2, []string{"deb@4", "complete", "sidus snapshot deb"}, "channel", "rollback", "default", "--to", "deb@4")
	s.want([]string{"took deb@6"}, "snapshot", "deb")
	s.want([]string{"points to deb@6"}, "channel", "rollback", "default", "--to", "deb@6")
	s.want([]string{"3 a.m.", "rollback", ">"}, "channel", "history", "default")
	s.fails(3, []string{"nobody"}, "channel", "rollback", "nobody")

	// Who needs a snapshot is said.
	s.fails(4, []string{"deb@6", "channel default"}, "delete", "deb@6", "--yes")
	s.fails(4, []string{"needed", "default"}, "delete", "deb", "--yes")
	s.ok("branch", "deb@2", "gpu")
	s.ok("exec", "gpu", "--", "/bin/sh", "-c", "echo spoilt > /etc/marker")
	s.want([]string{"the head of gpu is now deb@2", "saved as gpu@1"}, "rollback", "gpu@base")
	s.want([]string{"second"}, "exec", "gpu", "--", "/bin/busybox", "cat", "/etc/marker")
	s.ok("channel", "delete", "default", "--yes")
	s.ok("delete", "deb@1", "--yes")
	s.fails(4, []string{"gpu"}, "delete", "deb@2", "--yes")
	s.ok("delete", "--yes", "gpu")
	s.ok("delete", "deb@2", "-y")
	s.fails(3, []string{"deb@2", "deleted"}, "promote", "deb@2")
	s.ok("delete", "deb", "--yes")
	s.fails(3, []string{"deb"}, "show", "deb")
	s.ok("import", "new", "--dir", smallTree(t))
	s.ok("promote", "new@1")
	for _, args := range [][]string{{}, {"--keep", "-1"}, {"--keep", "1001"}} {
		s.fails(2, []string{"--keep"}, append([]string{"channel", "set", "default"}, args...)...)
	}
	s.ok("channel", "delete", "default", "--yes")
	s.ok("delete", "new", "--yes")
	s.sound()
	var l listingJSON
	s.json(&l, "list")
	if len(l.Trees) != 0 {
		t.Errorf("trees are left: %+v", l.Trees)
	}
	for _, folder := range []string{"volumes", "snapshots"} {
		if entries, err := os.ReadDir(filepath.Join(s.root(), folder)); err == nil && len(entries) > 0 {
			t.Errorf("%s holds %v", folder, entries)
		}
	}
}

func TestWhoDidWhatAndWhy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.env = []string{"SUDO_USER=alice"}
	s.ok("import", "deb", "--dir", smallTree(t), "--message", "moved over")
	s.env = []string{"SUDO_USER=bob"}
	s.ok("snapshot", "deb", "-m", "gcc 13 added")
	s.ok("promote", "deb@2", "--message=new compiler")
	s.env = nil
	s.ok("promote", "deb@1", "-m", "back")

	var events []eventJSON
	s.json(&events, "log")
	want := []eventJSON{
		{"root", "promote", "deb@1", "back"}, {"bob", "promote", "deb@2", "new compiler"}, {"bob", "snapshot", "deb@2", "gcc 13 added"},
		{"alice", "snapshot", "deb@1", "moved over"}, {"alice", "import", "imported deb", "moved over"}, {"root", "init", "made the store", ""},
	}
	if len(events) != len(want) {
		t.Fatalf("the history has %d entries: %+v", len(events), events)
	}
	for i, w := range want {
		if e := events[i]; e.Actor != w.Actor || e.Action != w.Action || e.Message != w.Message || !strings.Contains(e.Text, w.Text) {
			t.Errorf("event %d: %+v instead of %+v", i, e, w)
		}
	}
	s.want([]string{"alice", "moved over", "bob", "gcc 13 added"}, "log", "deb")
	s.want([]string{"bob: promoted deb@2 on channel default (new compiler)"}, "log", "--limit", "2")
	var history []struct {
		Actor   string `json:"actor"`
		Message string `json:"message"`
	}
	s.json(&history, "channel", "history", "default")
	if len(history) != 2 || history[0].Actor != "root" || history[1].Actor != "bob" || history[1].Message != "new compiler" {
		t.Errorf("channel history: %+v", history)
	}
}

// TestExecStatus: exec ends as its program does.
func TestExecStatus(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	for status, script := range map[int]string{0: "exit 0", 1: "exit 1", 7: "exit 7", 130: "exit 130", 255: "exit 255", 137: "kill -9 $$", 143: "kill $$"} {
		if r := s.run("exec", "deb", "--", "/bin/sh", "-c", script); r.status != status {
			t.Errorf("exec %q: status %d instead of %d: %s", script, r.status, status, r.stderr)
		}
	}
	// Options of the program are its own, also those that sidus knows.
	if out := s.ok("exec", "deb", "--", "/bin/busybox", "echo", "--json", "--yes", "-h", "--", "--state", "/x"); out != "--json --yes -h -- --state /x\n" {
		t.Errorf("exec echo: %q", out)
	}
	cmd := s.command("exec", "deb", "--", "/bin/busybox", "wc", "-c")
	cmd.Stdin = strings.NewReader("12345")
	if r := s.runCmd(cmd); strings.TrimSpace(r.stdout) != "5" {
		t.Errorf("exec wc: %+v", r)
	}
	s.fails(2, []string{"usage: sidus exec TREE"}, "exec", "deb")
	s.fails(3, []string{"nobody"}, "exec", "nobody", "--", "/bin/true")
	if r := s.run("exec", "deb", "--", "/bin/nothing"); r.status == 0 || !strings.Contains(r.stderr, "/bin/nothing") {
		t.Errorf("exec of what is not there: %+v", r)
	}
	cmd = s.command("shell", "deb")
	cmd.Stdin = strings.NewReader("echo made by hand > /etc/byhand\nexit 3\n")
	if r := s.runCmd(cmd); r.status != 3 {
		t.Errorf("shell: %+v", r)
	}
	s.want([]string{"/etc/byhand"}, "show", "deb")
}

// TestOptionsAnywhere: options stand before or after the arguments.
func TestOptionsAnywhere(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	bare := func(args ...string) result {
		cmd := s.command(args...)
		cmd.Env = slices.DeleteFunc(cmd.Env, func(v string) bool { return strings.HasPrefix(v, "SIDUS_STATE=") })
		return s.runCmd(cmd)
	}
	for _, args := range [][]string{
		{"snapshot", "deb", "--state", s.dir, "--message", "m"},
		{"snapshot", "--state", s.dir, "--message", "m", "deb"},
		{"snapshot", "--state=" + s.dir, "deb", "-m", "m"},
		{"snapshot", "-state", s.dir, "deb", "-m=m"},
		{"--state", s.dir, "snapshot", "deb", "--message", "m"},
		{"--message", "m", "snapshot", "--state", s.dir, "--", "deb"},
		{"snapshot", "--json", "deb", "--state", s.dir, "-m", "m", "--"},
	} {
		if r := bare(args...); r.status != 0 {
			t.Errorf("sidus %v: %+v", args, r)
		}
	}
	var log []snapshotJSON
	s.json(&log, "log", "deb")
	if len(log) != 8 {
		t.Fatalf("%d snapshots", len(log))
	}
	for _, snapshot := range log[:7] {
		if snapshot.Message != "m" {
			t.Errorf("deb@%d has the message %q", snapshot.Number, snapshot.Message)
		}
	}
	// After -- nothing is an option.
	s.fails(2, []string{`"--yes"`}, "snapshot", "--", "deb", "--yes")
	s.fails(2, []string{`"-x"`, "tree name"}, "show", "--", "-x")
}

func TestConfirmation(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	s.ok("promote", "deb@1", "-c", "c")
	s.ok("snapshot", "deb")
	s.ok("network", "add", "lab", "--subnet", "10.99.0.0/24")
	s.ok("node", "add", "52:54:00:00:00:01", "--name", "n1")
	for _, args := range [][]string{
		{"delete", "deb"}, {"delete", "deb@2"}, {"channel", "delete", "c"}, {"node", "delete", "n1"}, {"network", "delete", "lab"},
	} {
		s.fails(2, []string{"--yes"}, args...)
		cmd := s.command(args...)
		cmd.Stdin = strings.NewReader("y\n") // a pipe is no terminal
		s.wantFailure(s.runCmd(cmd), 2, []string{"--yes"}, args...)
	}
	s.ok("channel", "delete", "c", "--yes")
	for _, args := range [][]string{{"delete", "deb@1"}, {"delete", "deb"}, {"node", "delete", "n1"}, {"network", "delete", "lab"}} {
		s.ok(append(args, "-y")...)
	}
}

// TestHelp: the help of every command has the exit status and an example, and
// needs neither root nor a store.
func TestHelp(t *testing.T) {
	t.Parallel()
	s := bareSite(t, filepath.Join(t.TempDir(), "state"))
	listed := s.want([]string{"COMMANDS:", "sidus init"}, "--help")
	if bare := s.ok(); bare != listed {
		t.Errorf("`sidus` alone prints something else than its help:\n%s", bare)
	}
	tested := 0
	for _, name := range commandsIn(listed) {
		for _, below := range append([]string{""}, commandsIn(s.ok(name, "-h"))...) {
			args := strings.Fields(name + " " + below)
			for _, option := range []string{"-h", "--help"} {
				out := s.want([]string{"sidus " + strings.Join(args, " "), "USAGE:"}, append(args, option)...)
				if strings.Contains(out, "help, h ") {
					t.Errorf("sidus %s %s lists a command `help`", strings.Join(args, " "), option)
				}
				if len(commandsIn(out)) > 0 {
					continue // its commands say the rest
				}
				for _, word := range []string{"EXIT STATUS:", "EXAMPLES:"} {
					if !strings.Contains(out, word) {
						t.Errorf("sidus %s %s does not say %q:\n%s", strings.Join(args, " "), option, word, out)
					}
				}
				tested++
			}
		}
	}
	if tested < 60 {
		t.Errorf("the help of %d commands was found", tested/2)
	}
	// However it is asked for.
	want := s.ok("replicate", "add", "--help")
	for _, args := range [][]string{{"replicate", "add", "second", "ssh://second", "--help"}, {"replicate", "-h", "add", "--nonsense"}, {"help", "replicate", "add"}} {
		if got := s.ok(args...); got != want {
			t.Errorf("sidus %s prints\n%s", strings.Join(args, " "), got)
		}
	}
	if got := s.ok("help"); got != listed {
		t.Errorf("sidus help prints\n%s", got)
	}
	if r := s.run("help", "replikate"); r.status != 2 || !strings.Contains(r.stderr, `did you mean "replicate"`) {
		t.Errorf("help of what there is not: %+v", r)
	}
	if _, err := os.Stat(s.dir); err == nil {
		t.Error("--help has made the state folder")
	}
	s.want([]string{"sidus version"}, "--version")
}

// commandsIn are the commands that a help text lists.
func commandsIn(help string) (names []string) {
	_, list, _ := strings.Cut(help, "\nCOMMANDS:\n")
	for line := range strings.Lines(list) {
		if strings.TrimSpace(line) == "" {
			break
		}
		names = append(names, strings.TrimSuffix(strings.Fields(line)[0], ","))
	}
	return names
}

func TestUnknownCommandsAndOptions(t *testing.T) {
	t.Parallel()
	s := bareSite(t, filepath.Join(t.TempDir(), "state"))
	for _, c := range []struct {
		words []string
		args  []string
	}{
		{[]string{`no command "frob"`, "--help"}, []string{"frob"}},
		{[]string{`no command "prmote"`, "promote"}, []string{"prmote", "deb@1"}},
		{[]string{`no command "channel frob"`}, []string{"channel", "frob"}},
		{[]string{`no command "node lst"`, "list"}, []string{"node", "lst"}},
		{[]string{"-frob", "--help"}, []string{"list", "--frob"}},
		{[]string{"-frob", "--help"}, []string{"delete", "deb", "--frob"}},
		{[]string{"-frob"}, []string{"channel", "list", "--frob=1"}},
		{[]string{"-frob"}, []string{"--frob"}},
		{[]string{"wants a value"}, []string{"list", "--state"}},
		{[]string{"usage: sidus branch TREE@SNAP NEW"}, []string{"branch", "deb@1"}},
		{[]string{"usage: sidus rename TREE NEW"}, []string{"rename", "a", "b", "c"}},
		{[]string{"takes no arguments"}, []string{"list", "deb"}},
		{[]string{"limit"}, []string{"log", "--limit", "many"}},
		{[]string{"size"}, []string{"init", "--size", "plenty"}},
		{[]string{"backend"}, []string{"init", "--backend", "floppy"}},
		{[]string{"SIZE plenty"}, []string{"resize", "deb", "plenty"}},
	} {
		s.fails(2, c.words, c.args...)
	}
	if _, err := os.Stat(s.dir); err == nil {
		t.Error("a wrong command line has made the state folder")
	}
}

// writeRecipe writes a recipe for a tree with the small tree's shell beside it.
func writeRecipe(t testing.TB, tree, text string) string {
	t.Helper()
	dir := t.TempDir()
	copyFile(t, "/bin/busybox", filepath.Join(dir, "busybox"), 0o755)
	path := filepath.Join(dir, "recipe.yaml")
	must(t, os.WriteFile(path, []byte("tree: "+tree+"\n"+text), 0o644))
	return path
}

// busyboxPhases is the beginning of a recipe that needs no mirror.
const busyboxPhases = `phases:
  - name: shell
    files:
      - {to: /bin/busybox, from: busybox}
      - {to: /bin/sh, link: busybox}
      - {to: /etc/motd, content: "hello\n"}
`

func TestBuildTwice(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	recipe := writeRecipe(t, "small", busyboxPhases+"  - name: site\n    run: |\n      echo built > /etc/marker\n      date > /etc/when\n")
	s.want([]string{"run", "shell", "site"}, "build", recipe, "--plan")
	s.fails(3, []string{"small"}, "show", "small")
	s.want([]string{"built small@2", "sidus promote small@2"}, "build", recipe, "--message", "first")
	s.want([]string{"small@2*", "small@1 ", "site", "shell"}, "log", "small")

	s.want([]string{"nothing to do: small@2"}, "build", recipe)
	s.fails(2, []string{"small@1", "complete", "phase shell"}, "promote", "small@1")
	s.want([]string{"points to small@2"}, "promote", "small@latest")

	// What no recipe made is not overwritten.
	s.ok("exec", "small", "--", "/bin/sh", "-c", "echo mine > /etc/mine")
	must(t, os.WriteFile(filepath.Join(filepath.Dir(recipe), "recipe.yaml"), []byte("tree: small\n"+busyboxPhases+"  - name: site\n    run: echo anew > /etc/marker\n"), 0o644))
	r := s.run("build", recipe)
	if r.status != 4 || !strings.Contains(r.stderr, "/etc/mine") || !strings.Contains(r.stderr, "--discard") {
		t.Errorf("a build over changes of a user: %+v", r)
	}
	s.want([]string{"mine"}, "exec", "small", "--", "/bin/busybox", "cat", "/etc/mine")
	s.want([]string{"saved as small@3", "built small@4"}, "build", recipe, "--discard")
	s.want([]string{"built small@"}, "build", recipe, "--rebuild", "site")
	s.sound()
}

func TestTwoTakeTurns(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	s.env = []string{"SUDO_USER=carol"}
	worker := s.command("exec", "deb", "--", "/bin/sh", "-c", "echo ready; read line; echo done > /etc/carol")
	stdin, err := worker.StdinPipe()
	must(t, err)
	stdout, err := worker.StdoutPipe()
	must(t, err)
	must(t, worker.Start())
	if _, err := stdout.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	s.env = nil
	since := time.Now().Format("2006-01-02")
	for _, args := range [][]string{
		{"snapshot", "deb"}, {"rollback", "deb@1"}, {"exec", "deb", "--", "/bin/true"}, {"shell", "deb"}, {"delete", "deb", "--yes"},
		{"build", writeRecipe(t, "deb", busyboxPhases)},
	} {
		s.fails(4, []string{"carol", "sidus exec deb", "since " + since, "--wait"}, args...)
	}
	s.ok("branch", "deb@1", "other") // reads a snapshot only
	s.ok("list")

	waiter := s.command("snapshot", "deb", "--wait")
	waits, err := waiter.StderrPipe()
	must(t, err)
	must(t, waiter.Start())
	told := make([]byte, 4096)
	n, err := waits.Read(told)
	must(t, err)
	if text := string(told[:n]); !strings.Contains(text, "carol") || !strings.Contains(text, "waiting") {
		t.Errorf("--wait says %q", text)
	}
	must(t, stdin.Close()) // the end of the line is the end of the work
	if err := worker.Wait(); err != nil {
		t.Errorf("the first: %v", err)
	}
	if err := waiter.Wait(); err != nil {
		t.Errorf("the second: %v", err)
	}
	s.ok("branch", "deb@2", "after")
	if out := s.ok("exec", "after", "--", "/bin/busybox", "cat", "/etc/carol"); out != "done\n" {
		t.Errorf("the one who waited took a snapshot too early: %q", out)
	}
}

// TestPromotionsAtTheSameTime: none is lost, and the history is a chain.
func TestPromotionsAtTheSameTime(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.ok("import", "deb", "--dir", smallTree(t))
	const n = 8
	for range n {
		s.ok("snapshot", "deb")
	}
	results := make(chan result, n)
	for i := range n {
		go func() { results <- s.run("promote", "deb@"+string(rune('2'+i)), "-m", "one of many") }()
	}
	for range n {
		if r := <-results; r.status != 0 {
			t.Errorf("promote: %+v", r)
		}
	}
	var history []struct {
		Snapshot string `json:"snapshot"`
		Previous string `json:"previous"`
		Ref      string `json:"ref"`
	}
	s.json(&history, "channel", "history", "default")
	seen := map[string]bool{}
	for i, move := range history {
		seen[move.Ref] = true
		if i+1 < len(history) && move.Previous != history[i+1].Snapshot {
			t.Errorf("move %d came after %s, but says %s", i, history[i+1].Snapshot, move.Previous)
		}
	}
	if len(history) != n || len(seen) != n {
		t.Errorf("the history has %d moves, %d snapshots", len(history), len(seen))
	}
	var channels []channelJSON
	s.json(&channels, "channel", "list")
	if len(channels) != 1 || channels[0].Snapshot.ID != history[0].Snapshot {
		t.Errorf("the channel is not where its history ends: %+v", channels)
	}
	s.sound()
}
