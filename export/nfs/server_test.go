package nfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"sidus/image/index"
	"sidus/image/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testKey is the site key of the tests: 0, 1, … 31.
var testKey = func() []byte {
	key := make([]byte, KeySize)
	for i := range key {
		key[i] = byte(i)
	}
	return key
}()

// testID is the snapshot that the tests serve.
const testID = store.SnapshotID("00112233445566778899aabbccddeeff")

// testSource serves directories.
type testSource struct {
	mu     sync.Mutex
	roots  map[store.SnapshotID]string
	errs   map[store.SnapshotID]error
	dir    string
	opened int
	closed int
	delay  chan struct{} // Open waits until it is closed
}

// set makes Open fail for a snapshot, or serve a directory.
func (s *testSource) set(id store.SnapshotID, root string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roots[id], s.errs[id] = root, err
}

func (s *testSource) Open(ctx context.Context, id store.SnapshotID) (*Snapshot, error) {
	s.mu.Lock()
	root, err, delay := s.roots[id], s.errs[id], s.delay
	s.mu.Unlock()
	if delay != nil {
		<-delay
	}
	if err != nil {
		return nil, err
	}
	if root == "" {
		return nil, fmt.Errorf("snapshot %s: %w", id, store.ErrNotFound)
	}
	path := filepath.Join(s.dir, string(id))
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if _, err := index.Build(ctx, root, path, index.Options{}); err != nil {
			return nil, err
		}
	}
	x, err := index.Open(path)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.opened++
	s.mu.Unlock()
	return &Snapshot{Index: x, Root: root, Close: func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.closed++
		return nil
	}}, nil
}

func (s *testSource) Channel(_ context.Context, name string) (store.SnapshotID, error) {
	if name != "default" {
		return "", fmt.Errorf("channel %q: %w", name, store.ErrNotFound)
	}
	return testID, nil
}

func (s *testSource) Exports(context.Context) ([]Export, error) {
	return []Export{{Path: "/channel/default"}, {Path: "/snapshot/" + string(testID), Groups: []string{"10.0.0.0/24", "node7"}}}, nil
}

// testServer is a server on loopback.
type testServer struct {
	*Server
	source *testSource
	addr   string
	log    *lockedBuffer
}

func anyone(netip.AddrPort) bool { return true }

// serveTree serves root as testID until the test ends.
func serveTree(t testing.TB, root string, change ...func(*Server)) *testServer {
	t.Helper()
	s := &testServer{
		source: &testSource{roots: map[store.SnapshotID]string{testID: root}, errs: map[store.SnapshotID]error{}, dir: t.TempDir()},
		log:    &lockedBuffer{},
	}
	logger := logrus.New()
	logger.SetOutput(s.log)
	s.Server = &Server{Key: testKey, Source: s.source, Allow: anyone, Logger: logger}
	for _, f := range change {
		f(s.Server)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-done; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		if s.source.opened != s.source.closed {
			t.Errorf("%d snapshots opened, %d closed", s.source.opened, s.source.closed)
		}
	})
	return s
}

// lockedBuffer holds a log that is read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("this test must run as root")
		}
		t.Skip("SKIPPED: needs root")
	}
}

// run runs a program and returns what it prints.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v: %s%s", name, args, err, out, stderr.String())
	}
	return string(out)
}

// makeTree makes a tree with everything that a file system can hold.
func makeTree(t testing.TB) string {
	t.Helper()
	needRoot(t)
	root := filepath.Join(t.TempDir(), "tree")
	run(t, "bash", "-c", `
set -e
umask 022
mkdir -p "$1" && cd "$1"
mkdir -p a a/x usr/bin sticky many private 'with space' "$(printf 'name\nwith\377bytes')"
echo one > a/b; echo y > a/x/y; ln a/b hard; printf abc > three
ln -s /etc/passwd link
mknod null c 1 3; mknod blk b 259 70000; mkfifo fifo
python3 -c 'import socket; s=socket.socket(socket.AF_UNIX); s.bind("sock")'
echo su > usr/bin/su; chmod 4755 usr/bin/su; chmod 2755 usr/bin; chmod 1777 sticky
echo secret > private/shadow; chmod 640 private/shadow; chown 0:42 private/shadow; chmod 711 private
echo run > private/prog; chmod 711 private/prog; chown 5:5 private/prog
echo own > private/own; chmod 000 private/own; chown 1000:1000 private/own
echo acl > acl; chmod 600 acl; setfacl -m u:1234:rw,u:33:-,g:55:r acl
chown 1000:1001 three; chown -h 12:13 link
head -c 3000000 /dev/urandom > big; head -c 100001 /dev/urandom > odd
truncate -s 5G sparse; echo tail >> sparse
(cd many; seq -f 'file-%05g' 3000 | xargs touch)
: > "$(head -c 255 /dev/zero | tr '\0' n)"; : > empty
touch -d '2001-02-03 04:05:06.123456789' three a
`, "make", root)
	return root
}
