package storm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options say how a storm is made.
type Options struct {
	Target Target
	// Nodes is how many virtual nodes boot, at most MaxNodes. 0 is 1.
	Nodes int
	// NoThinking makes each call as soon as what it waits for is answered;
	// else Think is a factor for the recorded times of thinking, 0 is 1.
	NoThinking bool
	Think      float64
	// Learn checks that all nodes read the same data as the one that was
	// answered first, and not that it is the data of the recording.
	Learn bool
	// Timeout is how long a boot may take. 0 is 10 minutes.
	Timeout time.Duration
	// Progress is called about once a second. It may be nil.
	Progress func(p Progress)
}

// MaxNodes bounds a storm: ports below 1024 are few.
const MaxNodes = 500

// Progress is how far a storm is.
type Progress struct {
	Elapsed      time.Duration
	Booted       int    // nodes that are done
	Failed       int    // nodes that have given up
	Calls, Bytes uint64 // so far
}

// Result is what a storm has measured. Times are those of the nodes that
// booted, from the common start to the reply to the last call; connecting and
// mounting is a part of it.
type Result struct {
	Nodes          int           `json:"nodes"`
	Booted         int           `json:"booted"`
	Elapsed        time.Duration `json:"elapsed_ns"`
	BootsPerSecond float64       `json:"boots_per_second"`
	P50            time.Duration `json:"p50_ns"`
	P99            time.Duration `json:"p99_ns"`
	Max            time.Duration `json:"max_ns"`
	Calls          uint64        `json:"calls"`
	CallsPerSecond float64       `json:"calls_per_second"`
	ExtraLookups   uint64        `json:"extra_lookups"` // for handles that this server gave later than the recorded one
	Bytes          uint64        `json:"bytes"`         // of file data
	BytesPerSecond float64       `json:"bytes_per_second"`
	Thinking       time.Duration `json:"thinking_ns"` // what a boot takes at least
	// Errors counts answers that were wrong, and nodes that gave up.
	Errors uint64 `json:"errors"`
	// Examples are some of the errors, each once.
	Examples []string `json:"examples,omitempty"`
}

// collector gathers what the nodes find.
type collector struct {
	calls, bytes, extra, errors atomic.Uint64

	mu       sync.Mutex
	examples []string
	seen     map[string]bool
	took     []time.Duration
	failed   int
}

const maxExamples = 10

func (c *collector) wrong(text string) {
	c.errors.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.examples) < maxExamples && !c.seen[text] {
		c.seen[text] = true
		c.examples = append(c.examples, text)
	}
}

// Run makes a storm. Answers that are wrong are no error of Run: the result
// counts them.
func Run(ctx context.Context, r *Recording, o Options) (*Result, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	if o.Nodes == 0 {
		o.Nodes = 1
	}
	if o.Nodes < 1 || o.Nodes > MaxNodes {
		return nil, fmt.Errorf("%d nodes: a storm has 1 to %d", o.Nodes, MaxNodes)
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Minute
	}
	p := newPlan(r)
	p.target, p.learn, p.dialer = o.Target, o.Learn, newDialer()
	p.think = o.Think
	if o.Think == 0 {
		p.think = 1
	}
	if o.NoThinking {
		p.think = 0
	}
	if p.think < 0 {
		return nil, fmt.Errorf("a factor of %g for the times of thinking", p.think)
	}
	if p.learn {
		p.learnt = make([]learnt, len(r.Calls))
	}
	c := &collector{seen: map[string]bool{}}
	p.result = c
	nfs, mountAt, err := o.Target.resolve(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()

	start := make(chan struct{})
	var began time.Time
	var all sync.WaitGroup
	for i := range o.Nodes {
		all.Go(func() {
			n := &node{plan: p, number: i}
			err := n.boot(ctx, net.TCPAddrFromAddrPort(nfs), net.TCPAddrFromAddrPort(mountAt), start)
			took := time.Since(began)
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				err = errors.Join(fmt.Errorf("a node did not boot within %s", o.Timeout), err)
			}
			if err != nil {
				c.wrong(err.Error())
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if err != nil {
				c.failed++
			} else {
				c.took = append(c.took, took)
			}
		})
	}
	began = time.Now()
	close(start)
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for waiting := true; waiting; {
		select {
		case <-tick.C:
			if o.Progress != nil {
				c.mu.Lock()
				booted, failed := len(c.took), c.failed
				c.mu.Unlock()
				o.Progress(Progress{time.Since(began), booted, failed, c.calls.Load(), c.bytes.Load()})
			}
		case <-done:
			waiting = false
		}
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	return c.summary(o.Nodes, time.Since(began), time.Duration(float64(r.Thinking())*p.think)), nil
}

func (c *collector) summary(nodes int, elapsed, thinking time.Duration) *Result {
	slices.Sort(c.took)
	s := &Result{
		Nodes: nodes, Booted: len(c.took), Elapsed: elapsed,
		Calls: c.calls.Load(), ExtraLookups: c.extra.Load(), Bytes: c.bytes.Load(),
		Thinking: thinking, Errors: c.errors.Load(), Examples: c.examples,
	}
	seconds := elapsed.Seconds()
	s.CallsPerSecond, s.BytesPerSecond = float64(s.Calls)/seconds, float64(s.Bytes)/seconds
	if n := len(c.took); n > 0 {
		s.BootsPerSecond = float64(n) / seconds
		s.P50, s.P99, s.Max = c.took[(n-1)/2], c.took[(n*99+99)/100-1], c.took[n-1]
	}
	return s
}
