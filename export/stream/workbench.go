package stream

import (
	"sync"
	"weak"

	"github.com/klauspost/compress/zstd"
)

// workbench is the memory that a Writer works with.
type workbench struct {
	level    Level
	workers  int
	jobs     []*job
	encoders []*zstd.Encoder // one a worker
}

// idle is the workbench of a writer that has ended, for the next one: whoever
// sends many snapshots does not ask the system for 150 MB each time. The garbage
// collector may have it at any time.
var idle struct {
	sync.Mutex
	bench weak.Pointer[workbench]
}

// takeWorkbench returns a workbench that nobody else uses.
func takeWorkbench(level Level, workers int) (*workbench, error) {
	idle.Lock()
	b := idle.bench.Value()
	idle.bench = weak.Pointer[workbench]{}
	idle.Unlock()
	if b != nil && b.level == level && b.workers == workers {
		return b, nil
	}
	b = &workbench{level: level, workers: workers}
	// One chunk is filled and one is written while the others are compressed.
	for range workers + 2 {
		b.jobs = append(b.jobs, &job{done: make(chan struct{}, 1)})
	}
	for range workers {
		encoder, err := level.newEncoder()
		if err != nil {
			return nil, err
		}
		b.encoders = append(b.encoders, encoder)
	}
	return b, nil
}

// giveBack leaves a workbench to the next writer.
func (b *workbench) giveBack() {
	idle.Lock()
	idle.bench = weak.Make(b)
	idle.Unlock()
}
