package zfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"sidus/image/store"
	"sidus/image/tool"
)

func TestValidateDataset(t *testing.T) {
	for name, good := range map[string]bool{
		"tank": true, "tank/sidus": true, "tank/a/b.c_d-e:f": true, "T1/0": true,
		"": false, "/": false, "tank/": false, "/tank": false, "tank//x": false, "tank/..": false, "tank/.": false,
		"1tank": false, "tank@snap": false, "tank/a#b": false, "tank/a b": false, "-x": false, "tank/-x": false,
		"tank/%": false, "tank/\n": false, "tank/é": false, "tank/" + strings.Repeat("a", 200): false,
	} {
		err := ValidateDataset(name)
		if good != (err == nil) || err != nil && !errors.Is(err, store.ErrBadName) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestParseList(t *testing.T) {
	v, s, foreign := strings.Repeat("a", 32), strings.Repeat("b", 32), strings.Repeat("c", 32)
	text := strings.Join([]string{
		"tank/x\t100\t-\t-\t-\t-",
		"tank/x@" + s + "\t100\toff\t-\t-\t" + s, // of the parent
		"tank/x/kept\t101\t-\t-\t-\t-",
		"tank/x/" + v + "\t102\t-\t" + v + "\t-\t-",
		"tank/x/" + v + "@" + s + "\t103\toff\t" + v + "\t-\t" + s,
		"tank/x/" + v + "@" + foreign + "\t103\toff\t" + v + "\t-\t-", // has no property
		"tank/x/" + v + "@daily\t104\toff\t" + v + "\t-\t-",
		"tank/x/" + v + "@mine\t104\toff\t" + v + "\t-\t" + foreign[:31] + "9",                 // was renamed
		"tank/x/" + v + "@" + foreign[:31] + "d\t104\ton\t" + v + "\t-\t" + foreign[:31] + "d", // waits for its clones
		"tank/x/" + foreign + "\t105\t-\t-\t-\t-",
		"tank/x/" + foreign[:31] + "e\t106\t-\t" + foreign[:31] + "e\ton\t-",
		"tank/x/moved\t107\t-\t" + foreign[:31] + "f\t-\t-",
		"tank/x/" + v + "/deep\t108\t-\t" + v + "\t-\t-",
		"tank/xy/" + v + "\t109\t-\t" + v + "\t-\t-",
		"tank/x/receiving-" + foreign + "\t110\t-\t" + v + "\ton\t-",
		"tank/x/receiving-" + foreign + "@" + foreign + "\t110\toff\t" + v + "\ton\t" + foreign, // counts for nothing yet
		"tank/x/receiving-it\t110\t-\t-\t-\t-",
	}, "\n") + "\n"
	all, err := parseList("tank/x", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range all {
		if l.item.Partial {
			l.renamed = "partial"
		}
		got = append(got, string(l.item.Kind)+" "+string(l.item.Volume)+string(l.item.Snapshot)+" "+l.renamed)
		if l.item.Created.Unix() < 100 {
			t.Errorf("%+v", l)
		}
	}
	want := "volume " + v + " \nsnapshot " + s + " \nsnapshot " + foreign[:31] + "9 tank/x/" + v + "@mine\nvolume " + foreign[:31] + "f tank/x/moved\nsnapshot " + foreign + " partial"
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	for _, bad := range []string{"a\tb\n", "tank/x/" + v + "\tsoon\t-\t" + v + "\t-\t-\n"} {
		if _, err := parseList("tank/x", []byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestParseLeft: of what was destroyed it is told what keeps it.
func TestParseLeft(t *testing.T) {
	id := func(c string) string { return strings.Repeat(c, 32) }
	const x = "tank/x/"
	line := func(name, deferred, refs, clones, retired, snapshot string) string {
		return strings.Join([]string{name, "7", deferred, refs, clones, retired, snapshot}, "\t") + "\n"
	}
	text := line("tank/x", "-", "-", "-", "-", "-") + line(x+"kept", "-", "-", "-", "-", "-") +
		// A head with a snapshot, one that was destroyed and is needed, and one of another tool.
		line(x+id("a"), "-", "-", "-", "-", "-") + line(x+id("a")+"@"+id("1"), "off", "0", "", "-", id("1")) +
		line(x+id("a")+"@"+id("2"), "on", "0", x+id("b")+","+x+id("c"), "-", id("2")) + line(x+id("a")+"@daily", "off", "0", "", "-", "-") +
		// Retired, and its snapshot still counts; one that somebody has renamed does, too.
		line(x+id("b"), "-", "-", "-", "on", "-") + line(x+id("b")+"@"+id("3"), "off", "0", "-", "on", id("3")) +
		line(x+id("c"), "-", "-", "-", "on", "-") + line(x+id("c")+"@mine", "off", "0", "-", "on", id("4")) +
		// Remnants: nothing is left, another tool keeps it, a clone does, a dead sender seems to, somebody holds it, somebody made a child.
		line(x+id("d"), "-", "-", "-", "on", "-") +
		line(x+id("e"), "-", "-", "-", "on", "-") + line(x+id("e")+"@daily", "off", "0", "", "on", "-") +
		line(x+id("f"), "-", "-", "-", "on", "-") + line(x+id("f")+"@"+id("5"), "on", "0", x+id("b"), "on", id("5")) +
		line(x+id("0"), "-", "-", "-", "on", "-") + line(x+id("0")+"@"+id("6"), "on", "1", "", "on", id("6")) +
		line(x+id("9"), "-", "-", "-", "on", "-") + line(x+id("9")+"@"+id("7"), "on", "1", "", "on", id("7")) +
		line(x+id("8"), "-", "-", "-", "on", "-") + line(x+id("8")+"/child", "-", "-", "-", "on", "-") +
		line(x+"receiving-"+id("f"), "-", "-", "-", "on", "-") + line(x+"receiving-"+id("f")+"@"+id("f"), "off", "0", "", "on", id("f"))
	l, held, err := parseLeft("tank/x", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{x + id("0") + "@" + id("6"), x + id("9") + "@" + id("7")}; !slices.Equal(held, want) {
		t.Errorf("held are %v", held)
	}
	l.holds = []Hold{{Dataset: held[0], Tag: holdPrefix + "dead"}, {Dataset: held[1], Tag: "backup"}}
	var got []string
	for _, r := range l.remnants() {
		got = append(got, strings.NewReplacer(id("a"), "A", id("b"), "B", id("c"), "C", id("d"), "D", id("e"), "E", id("f"), "F", id("0"), "O", id("9"), "N",
			id("8"), "M", id("2"), "2", id("5"), "5", id("6"), "6", id("7"), "7").Replace(fmt.Sprintf("%s %d: %s", r.What, r.Bytes, r.Reason)))
	}
	want := []string{
		"the hold sidus:send-dead on the snapshot tank/x/O@6, which a sender left that was killed 0: ",
		"the destroyed snapshot tank/x/A@2 7: what was cloned from it needs tank/x/A@2: tank/x/B, tank/x/C",
		"the destroyed volume tank/x/D 7: ",
		"the destroyed volume tank/x/E 7: others made the snapshot tank/x/E@daily (zfs destroy tank/x/E@daily)",
		"the destroyed volume tank/x/F 7: what was cloned from it needs tank/x/F@5: tank/x/B",
		"the destroyed volume tank/x/O 7: ",
		"the destroyed volume tank/x/N 7: others hold tank/x/N@7 (zfs release backup tank/x/N@7)",
		"the destroyed volume tank/x/M 7: others made tank/x/M/child in it",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, bad := range []string{"a\tb\n", line(x+id("a"), "-", "-", "-", "-", "-") + "tank/x\tmuch\t-\t-\t-\t-\t-\n"} {
		if _, _, err := parseLeft("tank/x", []byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestParseProperties(t *testing.T) {
	got, err := parseProperties([]byte("quota\t1048576\tlocal\natime\toff\tinherited from tank\nsidus:volume\ta b\treceived\n"))
	if err != nil || got["quota"].own() != "1048576" || got["atime"].own() != "" || got["sidus:volume"].own() != "a b" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseProperties([]byte("one\ttwo\n")); err == nil {
		t.Error("a line of two fields is taken")
	}
}

func TestClassify(t *testing.T) {
	for text, want := range map[string]error{
		"cannot open 'tank/x': dataset does not exist":                                            store.ErrNotFound,
		"cannot open 'tank/other': dataset does not exist":                                        nil,
		"could not find any snapshots to destroy; check snapshot names.":                          store.ErrNotFound,
		"cannot create 'tank/x': dataset already exists":                                          store.ErrExists,
		"cannot create snapshot 'tank/x': dataset already exists":                                 store.ErrExists,
		"cannot create 'tank/x': out of space":                                                    store.ErrNoSpace,
		"cannot create 'tank/x': parent does not exist":                                           store.ErrUnavailable,
		"cannot destroy 'tank/x': dataset is busy":                                                store.ErrInUse,
		"cannot destroy 'tank/y': dataset is busy":                                                nil,
		"cannot destroy 'tank/x': filesystem has children\nuse '-r' to destroy":                   errNeeded,
		"cannot open 'tank': no such pool":                                                        store.ErrUnavailable,
		"cannot open 'tank': pool I/O is currently suspended":                                     store.ErrUnavailable,
		"cannot set property for 'tank/x': pool is read-only":                                     store.ErrUnavailable,
		"The ZFS modules are not loaded.\nTry running '/sbin/modprobe zfs' as root to load them.": ErrNoKernelSupport,
	} {
		err := classify("it", "tank/x", &tool.Error{Args: []string{"zfs"}, Err: errors.New("exit status 1"), Stderr: text})
		if want != nil && !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", text, err, want)
		}
		for _, class := range []error{store.ErrNotFound, store.ErrExists, store.ErrInUse, store.ErrNoSpace, errNeeded} {
			if class != want && errors.Is(err, class) {
				t.Errorf("%q: got %v", text, err)
			}
		}
		if !strings.Contains(err.Error(), strings.SplitN(text, "\n", 2)[0]) {
			t.Errorf("the words are lost: %v", err)
		}
	}
	if err := classify("it", "tank/x", context.Canceled); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
