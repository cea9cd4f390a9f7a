package dhcp

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
)

// logEvery is the least time between two lines of one kind of trouble.
const logEvery = 10 * time.Second

// rateLog logs trouble of each kind once in a while: whoever can send packets
// must not be able to fill the disk.
type rateLog struct {
	to  logrus.FieldLogger
	now func() time.Time

	mu    sync.Mutex
	kinds map[string]*logKind
}

type logKind struct {
	last   time.Time
	hidden int
}

func newRateLog(to logrus.FieldLogger, now func() time.Time) *rateLog {
	return &rateLog{to: to, now: now, kinds: map[string]*logKind{}}
}

func (l *rateLog) info(format string, args ...any) { l.to.Infof(format, args...) }

func (l *rateLog) warn(kind, format string, args ...any) {
	if log, ok := l.pass(kind); ok {
		log.Warnf(format, args...)
	}
}

func (l *rateLog) error(kind string, err error, format string, args ...any) {
	if log, ok := l.pass(kind); ok {
		log.WithError(err).Errorf(format, args...)
	}
}

func (l *rateLog) pass(kind string) (logrus.FieldLogger, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[kind]
	if k == nil {
		k = &logKind{}
		l.kinds[kind] = k
	}
	now := l.now()
	if !k.last.IsZero() && now.Sub(k.last) < logEvery {
		k.hidden++
		return nil, false
	}
	log := l.to
	if k.hidden > 0 {
		log = log.WithField("hidden", k.hidden)
	}
	k.last, k.hidden = now, 0
	return log, true
}

// Stats counts packets since the server began.
type Stats struct {
	Received  int64 // packets of any kind
	Malformed int64 // dropped because they could not be understood
	Overload  int64 // dropped because too many were waiting
	Ignored   int64 // understood, and none of this server's business
	Answered  int64
	Offers    int64
	Acks      int64
	Naks      int64
	Conflicts int64 // addresses that turned out to be used by somebody else
}

type counters struct {
	received, malformed, overload, ignored, answered, offers, acks, naks, conflicts atomic.Int64
}

func (c *counters) read() Stats {
	return Stats{
		Received: c.received.Load(), Malformed: c.malformed.Load(), Overload: c.overload.Load(),
		Ignored: c.ignored.Load(), Answered: c.answered.Load(), Offers: c.offers.Load(),
		Acks: c.acks.Load(), Naks: c.naks.Load(), Conflicts: c.conflicts.Load(),
	}
}
