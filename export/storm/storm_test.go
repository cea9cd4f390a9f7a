package storm

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sidus/export/nfs"
	"sidus/image/index"
	"sidus/image/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// boot is the recording of a boot in a virtual machine.
func boot(t *testing.T) *Recording {
	t.Helper()
	r, err := ReadFile("../../tests/bench/boot.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("this test must run as root")
		}
		t.Skip("SKIPPED: needs root")
	}
}

// directory serves one tree.
type directory struct{ root, index string }

const snapshotID = store.SnapshotID("00112233445566778899aabbccddeeff")

func (d directory) Open(ctx context.Context, _ store.SnapshotID) (*nfs.Snapshot, error) {
	x, err := index.Open(d.index)
	return &nfs.Snapshot{Index: x, Root: d.root}, err
}

func (directory) Channel(context.Context, string) (store.SnapshotID, error) { return snapshotID, nil }
func (directory) Exports(context.Context) ([]nfs.Export, error)             { return nil, nil }

// serve serves a tree and returns where.
func serve(t *testing.T, root string) Target {
	t.Helper()
	d := directory{root, filepath.Join(t.TempDir(), "index")}
	if _, err := index.Build(context.Background(), root, d.index, index.Options{}); err != nil {
		t.Fatal(err)
	}
	s := &nfs.Server{Key: make([]byte, nfs.KeySize), Source: d}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		<-done
	})
	port := l.Addr().(*net.TCPAddr).Port
	return Target{Host: "127.0.0.1", Path: "/channel/default", NFSPort: port, MountPort: port}
}

// skeleton makes the tree of the recorded boot.
func skeleton(t *testing.T) (*Recording, string) {
	t.Helper()
	needRoot(t)
	root := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := Skeleton(boot(t), root)
	if err != nil {
		t.Fatal(err)
	}
	return r, root
}

func TestRecordingFile(t *testing.T) {
	r := boot(t)
	r.Objects[5].Name = "odd\xff\nname"
	path := filepath.Join(t.TempDir(), "recording")
	if err := r.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	again, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r, again) {
		t.Error("it is not what was written")
	}
	if r.Bytes() < 40<<20 || r.Thinking() < time.Minute {
		t.Errorf("%d bytes, %s of thinking", r.Bytes(), r.Thinking())
	}
	for name, breakIt := range map[string]func(r *Recording){
		"parent":    func(r *Recording) { r.Objects[3].Parent = 3 },
		"name":      func(r *Recording) { r.Objects[3].Name = "a/b" },
		"dots":      func(r *Recording) { r.Objects[3].Name = ".." },
		"procedure": func(r *Recording) { r.Calls[3].Proc = "REMOVE" },
		"object":    func(r *Recording) { r.Calls[3].Object = len(r.Objects) },
		"circle":    func(r *Recording) { r.Calls[3].After = 3 },
	} {
		bad := boot(t)
		breakIt(bad)
		var file bytes.Buffer
		if err := bad.Write(&file); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(&file); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStorm(t *testing.T) {
	r, root := skeleton(t)
	result, err := Run(context.Background(), r, Options{Target: serve(t, root), Nodes: 20, NoThinking: true})
	if err != nil {
		t.Fatal(err)
	}
	if result.Errors != 0 || result.Booted != 20 || result.Calls != uint64(20*len(r.Calls)) || result.Bytes != 20*r.Bytes() || result.ExtraLookups != 0 {
		t.Errorf("%+v", result)
	}
	if result.P50 > result.P99 || result.P99 > result.Max || result.Max > result.Elapsed || result.P50 == 0 {
		t.Errorf("%+v", result)
	}
	t.Logf("%+v", result)
}

// TestThinking checks that a storm takes the time that was thought.
func TestThinking(t *testing.T) {
	r, root := skeleton(t)
	factor := 0.5 / r.Thinking().Seconds()
	result, err := Run(context.Background(), r, Options{Target: serve(t, root), Nodes: 2, Think: factor})
	if err != nil || result.Errors != 0 {
		t.Fatal(err, result)
	}
	if result.P50 < 400*time.Millisecond { // short times are left out
		t.Errorf("%+v", result)
	}
}

// TestWrongAnswers changes the tree in ways that a storm must notice.
func TestWrongAnswers(t *testing.T) {
	r, root := skeleton(t)
	read, found := "", ""
	for _, c := range r.Calls {
		path := filepath.Join(root, r.path(c.Object))
		if c.Proc == "READ" && c.Length > 100 && c.Offset == 0 && read == "" {
			read = path
		}
		if c.Proc == "LOOKUP" && c.Gives > 0 && r.Objects[c.Gives].Type == typeDirectory && r.Objects[c.Gives].Mode == 0o755 {
			found = filepath.Join(root, r.path(c.Gives))
		}
	}
	change := func(path string, work func() error) {
		info, err := os.Stat(path)
		if err == nil {
			err = work()
		}
		if err == nil {
			err = os.Chtimes(path, info.ModTime(), info.ModTime())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	change(read, func() error {
		f, err := os.OpenFile(read, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte("x"), 99)
		}
		return errors.Join(err, f.Close())
	})
	change(found, func() error { return os.Chmod(found, 0o751) })
	target := serve(t, root)
	result, err := Run(context.Background(), r, Options{Target: target, NoThinking: true})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(result.Examples, "\n")
	if result.Errors < 2 || result.Booted != 1 || !strings.Contains(text, "other data") || !strings.Contains(text, "mode 751") {
		t.Errorf("%d errors:\n%s", result.Errors, text)
	}
	// The data that one node reads is right for the others if it is learnt.
	if err := os.Chmod(found, 0o755); err != nil {
		t.Fatal(err)
	}
	result, err = Run(context.Background(), r, Options{Target: serve(t, root), NoThinking: true, Learn: true, Nodes: 3})
	if err != nil || result.Errors != 0 {
		t.Error(err, result)
	}
	target.Path = "/nowhere"
	result, err = Run(context.Background(), r, Options{Target: target, Nodes: 2})
	if err != nil || result.Booted != 0 || result.Errors != 2 || !strings.Contains(result.Examples[0], "the server refuses") {
		t.Error(err, result)
	}
}

// TestRecord records a storm of one node on the loopback interface, and
// compares the recording with the one that was replayed.
func TestRecord(t *testing.T) {
	r, root := skeleton(t)
	target := serve(t, root)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type recorded struct {
		r   *Recording
		err error
	}
	done, listens := make(chan recorded, 1), make(chan struct{}, 1)
	go func() {
		r, err := Record(ctx, Source{Interface: "lo", Client: netip.MustParseAddr("127.1.0.0"), Idle: time.Second,
			Progress: func(netip.Addr, int, uint64) {
				select {
				case listens <- struct{}{}:
				default:
				}
			}})
		done <- recorded{r, err}
	}()
	<-listens
	result, err := Run(ctx, r, Options{Target: target, NoThinking: true})
	if err != nil || result.Errors != 0 {
		t.Fatal(err, result)
	}
	again := <-done
	if again.err != nil {
		t.Fatal(again.err)
	}
	if len(again.r.Calls) != len(r.Calls) || again.r.Bytes() != r.Bytes() || again.r.LeftOut != 0 {
		t.Fatalf("%d calls and %d bytes, %d left out", len(again.r.Calls), again.r.Bytes(), again.r.LeftOut)
	}
	result, err = Run(ctx, again.r, Options{Target: target, NoThinking: true, Nodes: 3})
	if err != nil || result.Errors != 0 {
		t.Error(err, result)
	}
}
