package nfs

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"
)

// statKey says under what a call is counted.
type statKey struct {
	proc   uint32 // NFS procedure plus 1, or 0 for a call of another program
	failed bool
	bytes  int // of the reply
}

// The latency histogram has a bucket for each power of two of microseconds:
// bucket i counts calls of less than 2^i µs, the last one all others.
const latencyBuckets = 24

// procStats counts the calls of one procedure.
type procStats struct {
	calls, errors, bytes, nanoseconds atomic.Uint64
	latency                           [latencyBuckets]atomic.Uint64
}

// statShards spreads what connections count over cache lines.
const statShards = 8

// stats counts what a server does.
type stats struct {
	accepted atomic.Uint64
	refused  atomic.Uint64
	shards   [statShards]struct {
		procs [procCount + 1]procStats
		_     [64]byte
	}
}

// snapshotStats counts the calls for one snapshot.
type snapshotStats struct {
	calls  [procCount + 1]atomic.Uint64
	errors atomic.Uint64
	bytes  atomic.Uint64
}

var epoch = time.Now()

// now returns a monotonic time in nanoseconds.
func (*stats) now() int64 { return int64(time.Since(epoch)) }

// wall returns the time in Unix milliseconds.
func (*stats) wall() int64 { return time.Now().UnixMilli() }

// counter gathers what a connection counts until the end of a batch.
type counter struct{ calls, errors, bytes uint64 }

// note counts a call that a connection has answered itself.
func (c *conn) note(k *call, nanoseconds int64) { c.count.add(c, k, nanoseconds) }

func (n *counter) add(c *conn, k *call, nanoseconds int64) {
	shard := int(c.peer.Port()) % statShards
	p := &c.s.stats.shards[shard].procs[k.stat.proc]
	p.calls.Add(1)
	p.bytes.Add(uint64(k.stat.bytes))
	p.nanoseconds.Add(uint64(nanoseconds))
	p.latency[min(bits.Len64(uint64(nanoseconds)/1000), latencyBuckets-1)].Add(1)
	n.calls++
	n.bytes += uint64(k.stat.bytes)
	if k.stat.failed {
		p.errors.Add(1)
		n.errors++
	}
	if s := k.cur; s != nil && k.stat.proc > 1 {
		s.stats.calls[k.stat.proc].Add(1)
		s.stats.bytes.Add(uint64(k.stat.bytes))
		if k.stat.failed {
			s.stats.errors.Add(1)
		}
	}
}

// flush adds what was gathered to the client's counters.
func (n *counter) flush(c *conn) {
	if n.calls == 0 {
		return
	}
	c.client.calls.Add(n.calls)
	c.client.bytes.Add(n.bytes)
	if n.errors > 0 {
		c.client.errors.Add(n.errors)
	}
	*n = counter{}
}

// procName names a procedure by its statKey.proc.
func procName(proc int) string {
	if proc == 0 {
		return "OTHER"
	}
	return procNames[proc-1]
}

// WriteMetrics writes the server's counters in the text format of Prometheus.
func (s *Server) WriteMetrics(out io.Writer) error {
	s.start()
	w := bufio.NewWriter(out)
	head := func(name, kind, help string) {
		_, _ = fmt.Fprintf(w, "# HELP sidus_nfs_%s %s\n# TYPE sidus_nfs_%s %s\n", name, help, name, kind)
	}
	var sums [procCount + 1]struct {
		calls, errors, bytes, nanoseconds uint64
		latency                           [latencyBuckets]uint64
	}
	for i := range s.stats.shards {
		for p := range sums {
			from, to := &s.stats.shards[i].procs[p], &sums[p]
			to.calls += from.calls.Load()
			to.errors += from.errors.Load()
			to.bytes += from.bytes.Load()
			to.nanoseconds += from.nanoseconds.Load()
			for b := range to.latency {
				to.latency[b] += from.latency[b].Load()
			}
		}
	}
	head("calls_total", "counter", "Calls answered, by procedure; OTHER are those of other programs and malformed ones.")
	for p := range sums {
		_, _ = fmt.Fprintf(w, "sidus_nfs_calls_total{procedure=%q} %d\n", procName(p), sums[p].calls)
	}
	head("errors_total", "counter", "Calls answered with an NFS error, by procedure.")
	for p := range sums {
		_, _ = fmt.Fprintf(w, "sidus_nfs_errors_total{procedure=%q} %d\n", procName(p), sums[p].errors)
	}
	head("reply_bytes_total", "counter", "Bytes of replies, by procedure.")
	for p := range sums {
		_, _ = fmt.Fprintf(w, "sidus_nfs_reply_bytes_total{procedure=%q} %d\n", procName(p), sums[p].bytes)
	}
	head("latency_seconds", "histogram", "Time from taking a call up to its reply, by procedure.")
	for p := range sums {
		if sums[p].calls == 0 {
			continue
		}
		total := uint64(0)
		for b, n := range sums[p].latency {
			total += n
			if b < latencyBuckets-1 {
				_, _ = fmt.Fprintf(w, "sidus_nfs_latency_seconds_bucket{procedure=%q,le=\"%g\"} %d\n", procName(p),
					float64(uint64(1)<<b)/1e6, total)
			}
		}
		_, _ = fmt.Fprintf(w, "sidus_nfs_latency_seconds_bucket{procedure=%q,le=\"+Inf\"} %d\n", procName(p), total)
		_, _ = fmt.Fprintf(w, "sidus_nfs_latency_seconds_sum{procedure=%q} %g\n", procName(p), float64(sums[p].nanoseconds)/1e9)
		_, _ = fmt.Fprintf(w, "sidus_nfs_latency_seconds_count{procedure=%q} %d\n", procName(p), total)
	}
	snaps := s.snapshots.list()
	slices.SortFunc(snaps, func(a, b *snapshot) int { return cmp.Compare(a.name, b.name) })
	head("snapshot_calls_total", "counter", "Calls for an open snapshot, by procedure.")
	for _, snap := range snaps {
		for p := range snap.stats.calls {
			if n := snap.stats.calls[p].Load(); n > 0 {
				_, _ = fmt.Fprintf(w, "sidus_nfs_snapshot_calls_total{snapshot=%q,procedure=%q} %d\n", snap.name, procName(p), n)
			}
		}
	}
	head("snapshot_errors_total", "counter", "Calls for an open snapshot that were answered with an NFS error.")
	for _, snap := range snaps {
		_, _ = fmt.Fprintf(w, "sidus_nfs_snapshot_errors_total{snapshot=%q} %d\n", snap.name, snap.stats.errors.Load())
	}
	head("snapshot_reply_bytes_total", "counter", "Bytes of replies for an open snapshot.")
	for _, snap := range snaps {
		_, _ = fmt.Fprintf(w, "sidus_nfs_snapshot_reply_bytes_total{snapshot=%q} %d\n", snap.name, snap.stats.bytes.Load())
	}
	for _, snap := range snaps {
		snap.release()
	}
	clients := s.clients.list()
	slices.SortFunc(clients, func(a, b *client) int { return a.addr.Compare(b.addr) })
	for _, c := range []struct {
		name, help string
		value      func(*client) *atomic.Uint64
	}{
		{"client_calls_total", "Calls answered, by client.", func(c *client) *atomic.Uint64 { return &c.calls }},
		{"client_errors_total", "Calls answered with an NFS error, by client.", func(c *client) *atomic.Uint64 { return &c.errors }},
		{"client_reply_bytes_total", "Bytes of replies, by client.", func(c *client) *atomic.Uint64 { return &c.bytes }},
	} {
		head(c.name, "counter", c.help)
		for _, p := range clients {
			_, _ = fmt.Fprintf(w, "sidus_nfs_%s{client=%q} %d\n", c.name, p.addr, c.value(p).Load())
		}
	}
	head("connections", "gauge", "Open connections.")
	_, _ = fmt.Fprintf(w, "sidus_nfs_connections %d\n", s.clients.conns.Load())
	head("connections_accepted_total", "counter", "Connections served.")
	_, _ = fmt.Fprintf(w, "sidus_nfs_connections_accepted_total %d\n", s.stats.accepted.Load())
	head("connections_refused_total", "counter", "Connections refused.")
	_, _ = fmt.Fprintf(w, "sidus_nfs_connections_refused_total %d\n", s.stats.refused.Load())
	head("open_files", "gauge", "Files kept open.")
	_, _ = fmt.Fprintf(w, "sidus_nfs_open_files %d\n", s.files.len())
	head("disk_reads", "gauge", "Reads that wait for a disk.")
	_, _ = fmt.Fprintf(w, "sidus_nfs_disk_reads %d\n", len(s.disk))
	return w.Flush()
}
