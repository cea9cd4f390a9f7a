package replicate

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"sidus/image/store"
)

// site reads the language of these tests: words with blanks between them.
//
//	a1        snapshot 1 of tree a; its parent is the one before it, if any
//	b1<a2     the same with a parent named; b1< has none
//	a1-       its deletion is on record
//	a1~       it is no base for differences
//	a1!       it is lost
//	a1#5      it has the number 5
//	dev=a2    channel dev points to a2
//	a:web     tree a is called web; by default it is called a
func site(t testing.TB, text string) (s Site) {
	t.Helper()
	trees, last := map[string]string{}, map[string]string{}
	for word := range strings.FieldsSeq(text) {
		if name, id, ok := strings.Cut(word, "="); ok {
			s.Channels = append(s.Channels, Channel{name, store.SnapshotID(id)})
			continue
		}
		if id, name, ok := strings.Cut(word, ":"); ok {
			trees[id] = name
			continue
		}
		var snapshot Snapshot
		if rest, ok := strings.CutSuffix(word, "-"); ok {
			word, snapshot.Deleted = rest, true
		}
		if rest, ok := strings.CutSuffix(word, "~"); ok {
			word, snapshot.NoBase = rest, true
		}
		if rest, ok := strings.CutSuffix(word, "!"); ok {
			word, snapshot.Lost = rest, true
		}
		word, number, numbered := strings.Cut(word, "#")
		id, parent, named := strings.Cut(word, "<")
		tree := id[:1]
		if !named {
			parent = last[tree]
		}
		last[tree] = id
		if !numbered {
			number = id[1:]
		}
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		snapshot.ID, snapshot.Parent, snapshot.Tree, snapshot.Number = store.SnapshotID(id), store.SnapshotID(parent), tree, n
		s.Snapshots = append(s.Snapshots, snapshot)
		if trees[tree] == "" {
			trees[tree] = tree
		}
	}
	for id, name := range trees {
		s.Trees = append(s.Trees, Tree{id, name})
	}
	return s
}

func text(p Plan) string {
	var words []string
	for _, step := range p.Steps {
		switch step := step.(type) {
		case Send:
			if step.Base == "" {
				words = append(words, string(step.Snapshot))
			} else {
				words = append(words, string(step.Base+">"+step.Snapshot))
			}
		case Move:
			words = append(words, step.Channel+"="+string(step.Snapshot))
		}
	}
	for _, id := range p.Gone {
		words = append(words, "gone:"+string(id))
	}
	for _, id := range p.Lost {
		words = append(words, "lost:"+string(id))
	}
	return strings.Join(words, " ")
}

func TestIncrementalPath(t *testing.T) {
	for _, c := range []struct{ name, sender, receiver, want string }{
		{"nothing", "", "", ""},
		{"first time", "a1 a2 a3 default=a3", "", "a1 a1>a2 a2>a3 default=a3"},
		{"nothing to do", "a1 a2 default=a2", "a1 a2 default=a2", ""},
		{"one more", "a1 a2 a3 default=a3", "a1 a2 default=a2", "a2>a3 default=a3"},
		{"a pointer only", "a1 a2 default=a1", "a1 a2 default=a2", "default=a1"},
		{"cut in the middle", "a1 a2 a3 default=a3", "a1", "a1>a2 a2>a3 default=a3"},
		{"order of listing", "a3<a2 a1< a2<a1", "", "a1 a1>a2 a2>a3"},
		{"branch", "a1 a2 b1<a1 b2", "a1", "a1>a2 a1>b1 b1>b2"},
		{"branch before its origin's name", "b1 b2 a1<b1 a2", "", "b1 b1>a1 a1>a2 b1>b2"},
		{"branch of a branch", "a1 b1<a1 c1<b1", "a1 b1<a1", "b1>c1"},
		{"no parent", "a1 b1<", "a1", "b1"},
		{"gap at the sender", "a1 a2- a3", "a1", "a1>a3"},
		{"gap at the receiver", "a1 a2 a3", "a1 a2- ", "a1>a2 a2>a3"},
		{"gap that the receiver has", "a1 a2- a3", "a1 a2", "a1>a3 gone:a2"},
		{"all ancestors are gone", "a1- a2- a3", "a1 a2", "a3 gone:a1 gone:a2"},
		{"no base at the receiver", "a1 a2 a3", "a1 a2~", "a1>a3"},
		{"no base at all", "a1 a2", "a1~", "a2"},
		{"no base at the sender", "a1~ a2", "a1", "a2"},
		{"parent that nobody knows", "a2<a1 a3", "", "a2 a2>a3"},
		{"removed channel", "a1 default=a1", "a1 default=a1 canary=a1", "canary="},
		{"channels in order", "a1 b=a1 c=a1 a=a1", "a1", "a=a1 b=a1 c=a1"},
		{"channel to an older one", "a1 a2 a3 default=a1", "", "a1 a1>a2 a2>a3 default=a1"},
		{"tree renamed at the sender", "a:new a1 a2", "a:old a1", "a1>a2"},
		{"names exchanged", "a:x b:y a1 b1", "a:y b:x a1 b1", ""},
		{"deleted at both", "a1- a2", "a1- a2", ""},
		{"deleted at the receiver only", "a1 a2", "a1- a2", "a1"},
		{"numbers exchanged", "a1#2 a2#1 a3", "a1 a2", "a2>a3"},
		{"lost at the sender", "a1 a2! a3", "a1", "a1>a3 lost:a2"},
		{"lost at the sender only", "a1 a2! a3 default=a2", "a1 a2", "a1>a3 default=a2"},
		{"lost at the receiver", "a1 a2 a3", "a1 a2!", "a1>a2 a2>a3"},
		{"lost at both", "a1 a2! a3", "a1 a2! a3", "lost:a2"},
		{"lost target", "a1 a2! default=a2 b=a1", "default=a1 a1", "b=a1 lost:a2"},
		{"lost at the receiver and deleted at the sender", "a1 a2- a3", "a1 a2! a3", "gone:a2"},
	} {
		p, err := IncrementalPath(site(t, c.sender), site(t, c.receiver), Options{})
		if err != nil || text(p) != c.want {
			t.Errorf("%s: got %q, want %q, %v", c.name, text(p), c.want, err)
		}
	}
}

func TestOptions(t *testing.T) {
	even := func(s Snapshot) bool { return s.Number%2 == 0 }
	for _, c := range []struct {
		sender, receiver string
		o                Options
		want             string
	}{
		{"a1 a2 a3 a4", "", Options{Wanted: even}, "a2 a2>a4"},
		{"a1 a2 a3 a4 default=a3", "", Options{Wanted: even}, "a2 a2>a3 a3>a4 default=a3"},
		{"a1 a2 a3", "a1", Options{Whole: true}, "a2 a3"},
	} {
		p, err := IncrementalPath(site(t, c.sender), site(t, c.receiver), c.o)
		if err != nil || text(p) != c.want {
			t.Errorf("%s to %s: got %q, want %q, %v", c.sender, c.receiver, text(p), c.want, err)
		}
	}
}

func TestConflicts(t *testing.T) {
	for _, c := range []struct{ name, sender, receiver, want string }{
		{"written to", "a1 a2", "a1 x2<a1", "divergence x: x2 since a1"},
		{"both went on", "a1 a2 a3", "a1 a2 a4#3 a5#4", "divergence a: a4 a5 since a2"},
		{"never the same", "a1", "b1 b2", "divergence b: b1 b2 since "},
		{"unknown and deleted", "a1 a2", "a1 a9-", ""},
		{"name", "a:web a1", "a:web b:web", "name web: a b"},
		{"channel", "a1", "a1 z9<- default=z9", "channel default: z9"},
		{"lost target", "a1 default=a9", "", "target default: a9"},
		{"deleted target", "a1 a2- default=a2", "", "target default: a2"},
		{"cycle", "a1<a3 a2 a3", "", "lineage a1"},
		{"twice", "a1 a1<", "", "lineage a1"},
		{"its own parent", "a1<a1", "", "lineage a1"},
		{"several", "a1 dev=a9", "b1 default=b1", "divergence b: b1 since ; channel default: b1"},
	} {
		_, err := IncrementalPath(site(t, c.sender), site(t, c.receiver), Options{})
		if got := tell(err); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
		if err != nil {
			t.Logf("%s: %v", c.name, err)
		}
	}
}

func tell(err error) string {
	var words []string
	var all Conflicts
	errors.As(err, &all)
	for _, conflict := range all {
		switch c := conflict.(type) {
		case *Divergence:
			words = append(words, fmt.Sprintf("divergence %s: %s since %s", c.Tree, strings.Trim(fmt.Sprint(c.Only), "[]"), c.Common))
		case *NameTaken:
			words = append(words, fmt.Sprintf("name %s: %s %s", c.Name, c.Sender, c.Receiver))
		case *ChannelDivergence:
			words = append(words, fmt.Sprintf("channel %s: %s", c.Channel, c.Snapshot))
		case *BadTarget:
			words = append(words, fmt.Sprintf("target %s: %s", c.Channel, c.Snapshot))
		case *BadLineage:
			words = append(words, fmt.Sprintf("lineage %s", c.Snapshot))
		default:
			words = append(words, conflict.Error())
		}
	}
	return strings.Join(words, "; ")
}

// Whatever the two hold: each step builds on what is there by then, channels
// come last, nothing is sent twice, and after any number of steps a new plan
// leads to the same end.
func TestPlansHold(t *testing.T) {
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 5))
		var sender, receiver Site
		for n := range 1 + random.IntN(12) {
			s := Snapshot{ID: store.SnapshotID(fmt.Sprintf("s%02d", n)), Tree: string(rune('a' + random.IntN(3))), Number: n}
			if n > 0 && random.IntN(5) > 0 {
				s.Parent = sender.Snapshots[random.IntN(n)].ID
			}
			s.Deleted = random.IntN(5) == 0
			sender.Snapshots = append(sender.Snapshots, s)
			if random.IntN(3) == 0 {
				s.Deleted, s.NoBase = random.IntN(6) == 0, random.IntN(6) == 0
				receiver.Snapshots = append(receiver.Snapshots, s)
			}
			if !sender.Snapshots[n].Deleted && random.IntN(4) == 0 {
				sender.Channels = append(sender.Channels, Channel{fmt.Sprintf("c%d", n), s.ID})
			}
		}
		random.Shuffle(len(sender.Snapshots), func(i, j int) {
			sender.Snapshots[i], sender.Snapshots[j] = sender.Snapshots[j], sender.Snapshots[i]
		})
		for round := 0; ; round++ {
			plan, err := IncrementalPath(sender, receiver, Options{})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if len(plan.Steps) == 0 {
				break
			}
			if round > 40 {
				t.Fatalf("seed %d: there is no end", seed)
			}
			carryOut(t, seed, &receiver, sender, plan, 1+random.IntN(len(plan.Steps)))
		}
		for _, s := range sender.Snapshots {
			if !s.Deleted && !has(receiver, s.ID) {
				t.Fatalf("seed %d: %s was not sent", seed, s.ID)
			}
		}
	}
}

func has(s Site, id store.SnapshotID) bool {
	for _, snapshot := range s.Snapshots {
		if snapshot.ID == id && !snapshot.Deleted {
			return true
		}
	}
	return false
}

// carryOut does the first steps of a plan.
func carryOut(t *testing.T, seed uint64, receiver *Site, sender Site, plan Plan, steps int) {
	moved := false
	for _, step := range plan.Steps[:steps] {
		switch step := step.(type) {
		case Send:
			if moved || has(*receiver, step.Snapshot) || !has(sender, step.Snapshot) {
				t.Fatalf("seed %d: %s makes no sense in %s", seed, step.Snapshot, text(plan))
			}
			if step.Base != "" && (!has(*receiver, step.Base) || !has(sender, step.Base)) {
				t.Fatalf("seed %d: %s has no base in %s", seed, step.Snapshot, text(plan))
			}
			for i, s := range receiver.Snapshots {
				if s.ID == step.Snapshot {
					receiver.Snapshots = append(receiver.Snapshots[:i:i], receiver.Snapshots[i+1:]...)
					break
				}
			}
			for _, s := range sender.Snapshots {
				if s.ID == step.Snapshot {
					receiver.Snapshots = append(receiver.Snapshots, s)
				}
			}
		case Move:
			moved = true
			if !has(*receiver, step.Snapshot) {
				t.Fatalf("seed %d: %s points to nothing in %s", seed, step.Channel, text(plan))
			}
			receiver.Channels = append(receiver.Channels, Channel{step.Channel, step.Snapshot})
		}
	}
}
