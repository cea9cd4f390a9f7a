package nfs

import "runtime/debug"

// deferredCall is a call that is answered by a goroutine of its own, since it
// has to wait for a disk or for a snapshot.
type deferredCall struct {
	call
	worker worker
	record []byte
	began  int64
}

// deferCall hands a call over. If too many of this connection are waiting, it
// waits for one of them.
func (c *conn) deferCall(record []byte) error {
	if c.slots == nil {
		c.slots = make(chan struct{}, c.s.limits.WaitingPerConnection)
	}
	select {
	case c.slots <- struct{}{}:
	default:
		// Nothing that is answered may be held back meanwhile.
		if err := c.flushKeep(); err != nil {
			return err
		}
		c.worker.pause()
		c.slots <- struct{}{}
		c.worker.resume()
	}
	d := c.s.calls.Get().(*deferredCall)
	d.s, d.conn, d.wait = c.s, c, true
	d.worker.turns, d.worker.client = &c.s.turns, c.client
	d.record = append(d.record[:0], record...)
	d.began = c.s.stats.now()
	c.deferred.Add(1)
	go c.runDeferred(d)
	return nil
}

func (c *conn) runDeferred(d *deferredCall) {
	debug.SetPanicOnFault(true)
	c.client.work <- struct{}{}
	defer func() {
		if p := recover(); p != nil {
			c.s.log.WithField("client", c.peer).Errorf("fault while answering: %v\n%s", p, debug.Stack())
			_ = c.tcp.Close()
		}
		d.worker.pause()
		d.release()
		if cap(d.out) > 2*largeRead {
			d.out = nil
		}
		d.conn, d.worker.client = nil, nil
		c.s.calls.Put(d)
		<-c.client.work
		<-c.slots
		c.deferred.Done()
	}()
	k := &d.call
	k.out = k.out[:0]
	var err error
	switch k.run(d.record) {
	case streamed:
		k.stat.bytes = len(k.out) + k.length
		err = c.stream(k, &d.worker)
	case answered:
		k.stat.bytes = len(k.out)
		c.lockWrite(&d.worker)
		err = c.write(k.out, nil, 0, 0)
		c.mu.Unlock()
	}
	if err != nil {
		c.logEnd(err)
	}
	var count counter
	count.add(c, k, c.s.stats.now()-d.began)
	count.flush(c)
	if k.cur != nil {
		c.client.clock(k.cur.id).Store(c.s.stats.wall())
	}
}
