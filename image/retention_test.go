package image

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sidus/image/store"
)

// parseHistory reads a history of snapshots, one a word, the oldest first:
//
//	[TREE:]NUMBER[c][n][!][x][<PARENT]-AGE
//
// c: complete, n: it has a name, !: somebody needs it, x: it is lost, <PARENT:
// the tree and number that it was made from, AGE in days. A word in parentheses was
// deleted: it only has a parent.
func parseHistory(t *testing.T, now time.Time, text string) RetentionInput {
	t.Helper()
	in := RetentionInput{Now: now, Needs: map[store.SnapshotID][]Need{}, Parents: map[store.SnapshotID]store.SnapshotID{}, Lost: map[store.SnapshotID]bool{}}
	for word := range strings.FieldsSeq(text) {
		word, deleted := strings.CutPrefix(word, "(")
		word = strings.TrimSuffix(word, ")")
		tree := "t"
		if before, after, ok := strings.Cut(word, ":"); ok {
			tree, word = before, after
		}
		word, age, _ := strings.Cut(word, "-")
		word, parent, _ := strings.Cut(word, "<")
		digits := strings.TrimRight(word, "cn!x")
		number, err := strconv.Atoi(digits)
		if err != nil {
			t.Fatalf("%q: %v", word, err)
		}
		days, _ := strconv.Atoi(age)
		s := Snapshot{ID: store.SnapshotID(tree + digits), TreeID: tree, Tree: tree, Number: number, Created: now.Add(-time.Duration(days) * 24 * time.Hour)}
		flags := word[len(digits):]
		s.Complete = strings.Contains(flags, "c")
		if strings.Contains(flags, "n") {
			s.Name = "named"
		}
		in.Lost[s.ID] = strings.Contains(flags, "x")
		if strings.Contains(flags, "!") {
			in.Needs[s.ID] = []Need{{s.ID, s.Ref(), "session", "n1", "node n1 runs " + s.Ref()}}
		}
		if parent != "" {
			if parent[0] >= '0' && parent[0] <= '9' {
				parent = tree + parent
			}
			in.Parents[s.ID] = store.SnapshotID(parent)
		}
		if !deleted {
			in.Snapshots = append(in.Snapshots, s)
		}
	}
	return in
}

func TestPlanRetention(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for _, test := range []struct {
		name    string
		history string
		rules   Retention
		tree    string
		goes    string
	}{
		{"nothing", "", Retention{}, "", ""},
		{"the newest complete one stays", "1c-900 2c-800", Retention{}, "", "t1"},
		{"the last n", "1c-9 2c-8 3c-7 4c-6", Retention{Keep: 2}, "", "t1 t2"},
		{"n counts in each tree", "1c-9 2c-8 u:1c-9 u:2c-8 u:3c-1", Retention{Keep: 2}, "", "u1"},
		{"by age", "1c-31 2c-30 3c-29 4c-1", Retention{KeepWithin: 30 * day}, "", "t1"},
		{"either rule keeps", "1c-50 2c-40 3c-20 4c-10", Retention{Keep: 3, KeepWithin: 15 * day}, "", "t1"},
		{"what is needed stays", "1c!-900 2c-800 3!-700 4c-1", Retention{Keep: 1}, "", "t2"},
		{"what is needed counts for n", "1c-9 2c!-8 3c-7", Retention{Keep: 2}, "", "t1"},
		{"a name keeps", "1cn-900 2c-800 3c-1", Retention{Keep: 1}, "", "t2"},
		{"unless it may go", "1cn-900 2c-800 3c-1", Retention{Keep: 1, Named: true}, "", "t1 t2"},
		{"steps of the newest build stay", "1-9 2<1-9 3c<2-9 4<1-8 5c<4-8", Retention{Keep: 2}, "", "t2"},
		{"also through what was made by hand", "1-9 2<1-9 3c<2-9 4c<3-8 5c<4-7", Retention{}, "", "t3 t4"},
		{"and through what was deleted", "1-9 (2<1) 3c<2-9 4c<3-8", Retention{Keep: 1}, "", "t3"},
		{"steps do not count for n", "1c-9 2-8 3c<2-8", Retention{Keep: 2}, "", ""},
		{"steps do not stay for their age", "1-1 2c<1-1 3-0 4c<3-0", Retention{KeepWithin: 30 * day}, "", "t1"},
		{"a build that has not ended goes on", "1-9 2c<1-9 3-0 4<3-0", Retention{Keep: 1}, "", ""},
		{"an older one that failed does not", "1-9 2<1-9 3-8 4c<3-8", Retention{Keep: 1}, "", "t1 t2"},
		{"the cache lies in another tree", "u:1-9 u:2c<1-9 u:3-8 u:4c<3-8 5c<u1-7", Retention{Keep: 1}, "", "u2"},
		{"parents that go round", "1<2-9 2<1-9 3c<2-9", Retention{Keep: 1}, "", ""},
		{"one tree only", "1c-9 2c-8 u:1c-9 u:2c-8", Retention{Keep: 1}, "u", "u1"},
		{"what is lost is no newest one", "1c-9 2c-8 3cx-7", Retention{}, "", "t1"},
		{"nor counts for n", "1c-9 2c-8 3cx-7 4cx-6", Retention{Keep: 2}, "", ""},
		{"its steps stay with the newest", "1-9 2<1-9 3c<2-8 4x<1-7 5cx<4-7", Retention{}, "", ""},
		{"a clock that went back", "1c-9 2c--5", Retention{KeepWithin: day}, "", "t1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := parseHistory(t, now, test.history)
			in.Rules = test.rules
			if test.tree != "" {
				in.Eligible = func(s Snapshot) bool { return s.Tree == test.tree }
			}
			var goes []string
			for _, v := range PlanRetention(in) {
				if len(v.Reasons) == 0 || slices.Contains(v.Reasons, "") {
					t.Errorf("%s: no reason", v.Snapshot.ID)
				}
				if v.Goes {
					goes = append(goes, string(v.Snapshot.ID))
				}
			}
			if got := strings.Join(goes, " "); got != test.goes {
				t.Errorf("goes: %q, want %q", got, test.goes)
			}
		})
	}
}

func TestRetentionSaysWhy(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	in := parseHistory(t, now, "1-99 2c<1-99 3cn-98 4c!-97 5c-50 6-3 7c<6-3 8-0")
	in.Rules = Retention{Keep: 2, KeepWithin: 30 * 24 * time.Hour}
	want := []string{
		"goes: it is a step of an older build of t, and no build uses it any more",
		"goes: 4 complete snapshots of t are newer, and it is older than 30 days",
		"it has a name, named",
		"node n1 runs t@4",
		"it is one of the newest 2 complete snapshots of t",
		"it is a step of t@7, the cache of the next build",
		"it is the newest complete snapshot of t; it is younger than 30 days",
		"it is the newest step of a build that has not ended, which goes on from it",
	}
	for i, v := range PlanRetention(in) {
		got := strings.Join(v.Reasons, "; ")
		if v.Goes {
			got = "goes: " + got
		}
		if got != want[i] {
			t.Errorf("%s: %s\nwant %s", v.Snapshot.Ref(), got, want[i])
		}
	}
}

func TestDays(t *testing.T) {
	for d, want := range map[time.Duration]string{24 * time.Hour: "1 day", 48 * time.Hour: "2 days", 36 * time.Hour: "36h0m0s", 0: "0s"} {
		if got := Days(d); got != want {
			t.Errorf("Days(%d) = %q, want %q", d, got, want)
		}
	}
}

// A plan of many snapshots takes no time to speak of.
func BenchmarkPlanRetention(b *testing.B) {
	now := time.Now()
	in := RetentionInput{Now: now, Rules: Retention{Keep: 10}, Parents: map[store.SnapshotID]store.SnapshotID{}}
	for i := range 10000 {
		s := Snapshot{ID: store.SnapshotID(fmt.Sprint(i)), TreeID: fmt.Sprint(i % 20), Number: i, Complete: i%5 == 0, Created: now}
		in.Parents[s.ID] = store.SnapshotID(fmt.Sprint(i - 20))
		in.Snapshots = append(in.Snapshots, s)
	}
	for b.Loop() {
		PlanRetention(in)
	}
}
