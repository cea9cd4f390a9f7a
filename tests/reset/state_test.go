package reset

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// state is what the catalog says and the store holds, by the names of trees
// without the number of the round: the digest of the tree's head and those of
// its snapshots. They are read without Sidus. "channels" is where they point.
// Trees of earlier rounds are left out.
func (s *site) state(round int) map[string]string {
	s.Helper()
	type tree struct{ Name, Head string }
	type snapshot struct{ ID, Tree string }
	var list struct{ Trees []tree }
	// What gc would do with each snapshot: the oldest of a tree comes first.
	var gc struct {
		Plan struct{ Snapshots []struct{ Snapshot snapshot } }
	}
	var channels []struct {
		Name     string
		Snapshot snapshot
	}
	s.decode("(sidus list --json; sidus gc --dry-run --json; sidus channel list --json) 2>/run/stderr", &list, &gc, &channels)
	ours := func(name string) bool {
		_, number, of := strings.Cut(name, "-")
		return !of || number == fmt.Sprint(round)
	}
	var ids []string
	for _, t := range list.Trees {
		if ours(t.Name) {
			ids = append(ids, t.Head)
		}
	}
	for _, v := range gc.Plan.Snapshots {
		if ours(v.Snapshot.Tree) {
			ids = append(ids, v.Snapshot.ID)
		}
	}
	digest := map[string]string{}
	for line := range strings.Lines(s.do("sh /lab/digests " + strings.Join(ids, " "))) {
		if id, sum, ok := strings.Cut(line, " "); ok {
			digest[id] = sum[:8]
		}
	}
	state := map[string]string{}
	for _, t := range list.Trees {
		if !ours(t.Name) {
			continue
		}
		held := []string{}
		for _, v := range gc.Plan.Snapshots {
			if v.Snapshot.Tree == t.Name {
				held = append(held, digest[v.Snapshot.ID])
			}
		}
		state[strings.TrimSuffix(t.Name, fmt.Sprintf("-%d", round))] = fmt.Sprint(digest[t.Head], held)
	}
	for _, id := range ids {
		if digest[id] == "" {
			s.Errorf("the store does not hold %s, which the catalog names", id)
		}
	}
	for _, c := range channels {
		state["channels"] += c.Name + " " + digest[c.Snapshot.ID] + "\n"
	}
	return state
}

// decode decodes the JSON values that a command line prints.
func (s *site) decode(line string, into ...any) {
	s.Helper()
	out := s.do(line)
	decoder := json.NewDecoder(strings.NewReader(out))
	for _, value := range into {
		if err := decoder.Decode(value); err != nil {
			s.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	if _, err := decoder.Token(); err != io.EOF {
		s.Fatalf("%s: there is more:\n%s", line, out)
	}
}

// export is the digest of what Sidus itself reads of the snapshots that are
// always there.
func (s *site) export() string {
	s.Helper()
	return s.do("for t in deb@1 deb@2 parts@1; do sidus export $t --portable -o - 2>/run/stderr | zstd -dcq | md5sum; done")
}

// steps is how many steps each command of the last round had.
func (s *site) steps() map[string]int {
	s.Helper()
	steps := map[string]int{}
	for line := range strings.Lines(s.do("cd /run/round; for d in *; do echo $d $(wc -l <$d/steps); done")) {
		var name string
		var n int
		if _, err := fmt.Sscanf(line, "%s %d", &name, &n); err != nil || n == 0 {
			s.Fatalf("a command without steps: %s, %v", line, err)
		}
		steps[name] = n
	}
	return steps
}

// union are the keys of both.
func union(a, b map[string]string) map[string]bool {
	keys := map[string]bool{}
	for _, m := range []map[string]string{a, b} {
		for name := range m {
			keys[name] = true
		}
	}
	return keys
}
