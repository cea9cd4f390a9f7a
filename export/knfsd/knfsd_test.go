package knfsd

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sidus/export/storm"
	"sidus/image/store"
	"sidus/tests/labdisk"
)

const testID = store.SnapshotID("00112233445566778899aabbccddeeff")

func TestOptions(t *testing.T) {
	want := "ro,secure,no_root_squash,no_subtree_check,fsid=00112233-4455-6677-8899-aabbccddeeff"
	if got := options(testID); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestDifference(t *testing.T) {
	a, b, c := netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("10.0.2.0/24")
	add, remove := difference([]netip.Prefix{a, b}, []netip.Prefix{b, c, c})
	if !reflect.DeepEqual(add, []netip.Prefix{c}) || !reflect.DeepEqual(remove, []netip.Prefix{a}) {
		t.Error(add, remove)
	}
}

func TestParseEtab(t *testing.T) {
	text := "/srv\t*(ro,sync,wdelay)\n/run/sidus/nfsd/snapshot/x\t10.0.0.0/24(ro,fsid=1)\n/with\\040space\t*(ro)\nodd\n"
	want := []exported{{"/srv", "*"}, {"/run/sidus/nfsd/snapshot/x", "10.0.0.0/24"}}
	if got := parseEtab(text); !reflect.DeepEqual(got, want) {
		t.Error(got)
	}
}

// TestKernel exports a tree by the NFS server of the kernel, in a virtual
// machine that has one.
func TestKernel(t *testing.T) {
	if os.Getenv("SIDUS_LAB") == "" {
		if os.Getenv("SIDUS_LAB_TESTS") == "" {
			t.Skip("SKIPPED: the kernel's NFS server was NOT tested: `make lab-test` does it in a machine of its own")
		}
		labdisk.Run(t, labdisk.Suite{
			Package: "sidus/export/knfsd", Args: []string{"-test.run=^TestKernel$"}, Timeout: 5 * time.Minute,
			Setup: "mkdir -p /run/rpcbind /srv/own; ip link set lo up; rpcbind -w; mount -t nfsd nfsd /proc/fs/nfsd 2>/dev/null; mkdir -p /run/rpc_pipefs; " +
				"exportfs -o ro,fsid=1,no_subtree_check 127.0.0.0/8:/srv/own; rpc.nfsd --no-nfs-version 4 2; rpc.mountd",
		})
		return
	}
	ctx := context.Background()
	tree := t.TempDir()
	text := strings.Repeat("what the snapshot holds\n", 1000)
	if err := os.WriteFile(filepath.Join(tree, "file"), []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: "/run/sidus-test/nfsd"}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	local := netip.MustParsePrefix("127.0.0.0/8")
	if err := s.Export(ctx, testID, tree, []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}); err != nil {
		t.Fatal(err)
	}
	if result := replay(t, s); result.Errors == 0 {
		t.Error("a client that is not named may mount")
	}
	if err := s.Export(ctx, testID, tree, []netip.Prefix{local}); err != nil {
		t.Fatal(err)
	}
	if result := replay(t, s); result.Errors != 0 {
		t.Error(result.Examples)
	}
	// Another process takes over what a killed one left.
	again := &Server{Dir: s.Dir}
	if err := again.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if result := replay(t, again); result.Errors != 0 {
		t.Error("who runs from it has lost it:", result.Examples)
	}
	if have := again.Exported(); len(have) != 1 || have[0] != testID {
		t.Error("taken over:", have)
	}
	if err := again.Export(ctx, testID, tree, []netip.Prefix{local}); err != nil {
		t.Fatal(err)
	}
	if result := replay(t, again); result.Errors != 0 {
		t.Error(result.Examples)
	}
	if err := again.Close(ctx); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("exportfs", "-v").CombinedOutput()
	if err != nil || strings.Contains(string(out), "sidus-test") || !strings.Contains(string(out), "/srv/own") {
		t.Errorf("%v: exported afterwards:\n%s", err, out)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), "sidus-test") {
		t.Errorf("%v: mounted afterwards:\n%s", err, mounts)
	}
}

// replay looks the file up and reads it over NFS.
func replay(t *testing.T, s *Server) *storm.Result {
	t.Helper()
	r := &storm.Recording{
		Objects: []storm.Object{{}, {Name: "file", Type: 1, Mode: 0o640, Links: 1, Size: 24000}},
		Calls: []storm.Call{
			{Proc: "LOOKUP", Name: "file", Gives: 1, After: -1, Needs: -1},
			{Proc: "READ", Object: 1, Count: 65536, Length: 24000, Needs: 0, After: 0},
		},
	}
	info, err := os.Stat(s.Path(testID) + "/file")
	if err == nil {
		r.Objects[1].Sec, r.Objects[1].Nsec = uint32(info.ModTime().Unix()), uint32(info.ModTime().Nanosecond())
	}
	result, err := storm.Run(context.Background(), r, storm.Options{
		Target: storm.Target{Host: "127.0.0.1", Path: s.Path(testID)}, Nodes: 3, NoThinking: true, Learn: true, Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	return result
}
