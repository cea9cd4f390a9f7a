package storebench

import (
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"sidus/export/stream"
	"sidus/image/store"
	"sidus/image/tool"
)

// TestSend writes what "zfs send" says of the tree of BenchmarkExport to the
// file SIDUS_BENCH_SENT.
func TestSend(t *testing.T) {
	to := os.Getenv("SIDUS_BENCH_SENT")
	if to == "" || kind() != "zfs" {
		t.Skip("it is a part of TestInLab")
	}
	s := newStore(t)
	root := mountOf(t, s, benchSnapshot(t, s))
	// Not straight to the file: ZFS cannot write to a port.
	if err := tool.Run(t.Context(), tool.Options{}, "bash", "-o", "pipefail", "-c", `zfs send "$(findmnt -n -o SOURCE "$0")" | cat >"$1"`, root, to); err != nil {
		t.Fatal(err)
	}
}

// compareSent compares, on this machine, the export of what "zfs send" said
// elsewhere with the pipeline. What sends it costs next to nothing, on either
// side.
func compareSent(t *testing.T, file string) {
	source := func() stream.Source {
		r, err := tool.Start(t.Context(), tool.Options{}, time.Minute, "cat", file)
		if err != nil {
			t.Fatal(err)
		}
		return stream.Source{Manifest: stream.Manifest{Kind: "zfs", Snapshot: store.NewSnapshotID()}, Native: r}
	}
	rounds := 0
	next := func() bool { rounds++; return rounds <= 10 }
	metrics := comparison{"zfs", source, `cat "$0" | zstd -T0`, file}.run(t, next)
	for _, metric := range slices.Sorted(maps.Keys(metrics)) {
		t.Logf("%8.3f %s", metrics[metric], metric)
	}
}
