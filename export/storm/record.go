package storm

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"time"

	"sidus/export/internal/xdr"
)

// Source says what to record.
type Source struct {
	// Interface is the network interface on which to listen, on the server, on
	// the machine or between them. The recording must begin before the boot.
	Interface string
	// Capture, if Interface is "", is a capture file in pcap format.
	Capture io.Reader
	// Client is the machine that boots. The zero value is the one that makes
	// the first NFS call.
	Client netip.Addr
	// Idle, with Interface, is after how long without a call the boot is taken
	// to be over. 0 is 30 s.
	Idle time.Duration
	// Progress is called now and then. It may be nil.
	Progress func(client netip.Addr, calls int, bytes uint64)
}

// ErrNothing is returned by Record if there was no NFS call.
var ErrNothing = errors.New("no call of NFS version 3 by TCP was seen in a connection whose beginning was seen, too")

// Record records the NFS calls of a boot. It ends when the boot is over (Idle),
// when the capture ends, or when ctx ends, which is no error.
func Record(ctx context.Context, s Source) (*Recording, error) {
	if s.Idle <= 0 {
		s.Idle = 30 * time.Second
	}
	r := newRecorder(s.Client)
	each := func(p packet) error {
		segment, ok, err := parseTCP(p)
		if err != nil || !ok {
			return err
		}
		return r.add(segment)
	}
	var err error
	if s.Interface != "" {
		shown := time.Time{}
		err = listen(ctx, s.Interface, func() bool {
			if now := time.Now(); s.Progress != nil && now.Sub(shown) > time.Second {
				shown = now
				s.Progress(r.client, len(r.calls), r.bytes)
			}
			return r.last.IsZero() || time.Since(r.last) < s.Idle
		}, each)
	} else {
		err = readPcap(s.Capture, each)
	}
	if err != nil {
		return nil, err
	}
	return r.finish()
}

// recorder makes a recording from TCP segments.
type recorder struct {
	client   netip.Addr
	flows    map[flowKey]*flow
	mounted  bool
	last     time.Time // of the last call or reply
	first    time.Time
	lastCall int // whose reply came last, -1: none
	bytes    uint64

	handles  map[string]int // handle → object
	givers   map[int]int    // object → the call that gave its handle
	names    map[child]int
	listings map[int]uint64 // of directories that are being read
	begun    map[int]int    // directory → the call that began to read it
	objects  []Object
	calls    []recordedCall
	leftOut  int
}

type recordedCall struct {
	Call
	replied time.Time
	done    bool
	goesOn  int // the call that began to read the directory which this one goes on to read, -1: none
}

type child struct {
	parent int
	name   string
}

type flowKey struct{ client, server netip.AddrPort }

// flow is a TCP connection.
type flow struct {
	ignored  bool
	halves   [2]half // from the client, to the client
	requests map[uint32]request
}

// request is a call whose reply is awaited.
type request struct {
	program, proc uint32
	call          int // in calls, -1 if it is not recorded
}

func newRecorder(client netip.Addr) *recorder {
	return &recorder{
		client: client, flows: map[flowKey]*flow{}, lastCall: -1,
		handles: map[string]int{}, givers: map[int]int{}, names: map[child]int{}, listings: map[int]uint64{}, begun: map[int]int{},
		objects: []Object{{}},
	}
}

// add takes a segment.
func (r *recorder) add(s segment) error {
	key, side := flowKey{s.src, s.dst}, 0
	if s.syn && !s.ack {
		r.flows[key] = &flow{requests: map[uint32]request{}}
	}
	f := r.flows[key]
	if f == nil {
		key, side = flowKey{s.dst, s.src}, 1
		if f = r.flows[key]; f == nil {
			return nil
		}
	}
	if f.ignored || r.client.IsValid() && key.client.Addr() != r.client {
		return nil
	}
	err := f.halves[side].add(s, func(at time.Time, record []byte) error {
		if side == 0 {
			return r.request(f, key, at, record)
		}
		r.reply(f, at, record)
		return nil
	})
	if errors.Is(err, errNoRPC) {
		*f = flow{ignored: true}
		return nil
	}
	return err
}

// request takes a call (RFC 5531, section 9).
func (r *recorder) request(f *flow, key flowKey, at time.Time, record []byte) error {
	d := xdr.Decoder{Data: record}
	xid, kind, rpc, program, vers, proc := d.Uint32(), d.Uint32(), d.Uint32(), d.Uint32(), d.Uint32(), d.Uint32()
	if d.Bad || kind != 0 || rpc != 2 {
		return errNoRPC
	}
	if vers != version || program != nfsProgram && program != mountProgram {
		return nil
	}
	if !r.client.IsValid() {
		r.client = key.client.Addr()
	}
	if _, ok := f.requests[xid]; ok {
		return nil // sent again
	}
	flavor, body := d.Uint32(), d.Opaque(400)
	d.Uint32()
	d.Opaque(400)
	q := request{program: program, proc: proc, call: -1}
	if program == nfsProgram {
		c := recordedCall{goesOn: -1}
		if flavor == 1 { // AUTH_SYS
			cred := xdr.Decoder{Data: body}
			cred.Uint32()
			cred.Opaque(255)
			c.UID, c.GID = cred.Uint32(), cred.Uint32()
		}
		switch {
		case r.arguments(&c, proc, &d) && !d.Bad:
			q.call = len(r.calls)
			c.After, c.Think = r.lastCall, 0
			if c.After >= 0 {
				c.Think = max(0, at.Sub(r.calls[c.After].replied))
			} else if r.first.IsZero() {
				r.first = at
			} else {
				c.Think = max(0, at.Sub(r.first))
			}
			r.calls = append(r.calls, c)
		case proc != procNull:
			r.leftOut++
		}
	}
	r.last = at
	f.requests[xid] = q
	return nil
}

// arguments takes the arguments of a call that can be made again.
func (r *recorder) arguments(c *recordedCall, proc uint32, d *xdr.Decoder) bool {
	name, ok := nameByProc[proc]
	if !ok || proc == procNull {
		return false
	}
	c.Proc = name
	handle := d.Opaque(maxHandle)
	if c.Object, ok = r.handles[string(handle)]; !ok {
		// Without a mount that was seen, the first call is for the root.
		if d.Bad || r.mounted || len(r.handles) > 0 {
			return false
		}
		r.handles[string(handle)] = 0
	}
	c.Needs = -1
	if giver, ok := r.givers[c.Object]; ok {
		c.Needs = giver
	}
	switch proc {
	case procLookup:
		c.Name = FileName(d.Opaque(maxName))
	case procAccess:
		c.Bits = d.Uint32()
	case procRead:
		c.Offset, c.Count = d.Uint64(), d.Uint32()
	case procReaddir, procReaddirplus:
		cookie := d.Uint64()
		d.Uint64() // verifier
		c.Count = d.Uint32()
		if proc == procReaddirplus {
			c.Count = d.Uint32()
		}
		if begun, ok := r.begun[c.Object]; cookie != 0 && ok {
			c.goesOn = begun
		} else {
			r.begun[c.Object] = len(r.calls)
		}
	}
	return true
}

// reply takes a reply.
func (r *recorder) reply(f *flow, at time.Time, record []byte) {
	d := xdr.Decoder{Data: record}
	q, ok := f.requests[d.Uint32()]
	if !ok {
		return
	}
	delete(f.requests, be.Uint32(record))
	kind, denied := d.Uint32(), d.Uint32()
	d.Uint32() // the verifier's flavor
	d.Opaque(400)
	accepted := d.Uint32()
	if d.Bad || kind != 1 || denied != 0 || accepted != 0 {
		if q.call >= 0 {
			r.leftOut++
		}
		return
	}
	r.last = at
	if q.program == mountProgram {
		if q.proc == mountProcMnt && d.Uint32() == 0 && !r.mounted {
			if handle := d.Opaque(maxHandle); !d.Bad {
				r.mounted = true
				r.handles[string(handle)] = 0
			}
		}
		return
	}
	if q.call < 0 {
		return
	}
	c := &r.calls[q.call]
	c.Status = d.Uint32()
	r.results(q.call, c, &d)
	if d.Bad {
		r.leftOut++
		return
	}
	c.done, c.replied = true, at
	r.lastCall = q.call
}

// results takes the results of a call.
func (r *recorder) results(number int, c *recordedCall, d *xdr.Decoder) {
	if c.Status != 0 {
		return
	}
	o := &r.objects[c.Object]
	switch procByName[c.Proc] {
	case procGetattr:
		o.setAttr(d)
	case procFsinfo, procFsstat, procPathconf:
		o.setPostOp(d)
	case procLookup:
		handle := d.Opaque(maxHandle)
		var attr Object
		attr.setPostOp(d)
		if !d.Bad {
			c.Gives = r.give(number, c.Object, c.Name, handle, attr)
		}
	case procAccess:
		o.setPostOp(d)
		c.Grant = d.Uint32() & accessReading
	case procReadlink:
		o.setPostOp(d)
		o.Target = FileName(d.Opaque(maxPath))
	case procRead:
		o.setPostOp(d)
		c.Length = d.Uint32()
		d.Bool()
		data := d.Opaque(maxRecord)
		if uint32(len(data)) != c.Length {
			d.Fail()
		}
		c.CRC = crc32.Checksum(data, castagnoli)
		r.bytes += uint64(len(data))
	case procReaddir, procReaddirplus:
		plus := procByName[c.Proc] == procReaddirplus
		o.setPostOp(d)
		d.Uint64() // verifier
		if c.goesOn < 0 {
			r.listings[c.Object] = 0
		}
		sum, whole := r.listings[c.Object]
		eof := entries(d, plus, func(e *entry) {
			sum += listing(e.name)
			if e.handle != nil && string(e.name) != "." && string(e.name) != ".." {
				r.give(number, c.Object, FileName(e.name), e.handle, e.attr)
			}
		})
		if whole {
			r.listings[c.Object] = sum
			if eof {
				r.objects[c.Object].Listing = sum
			}
		}
	}
}

// give notes the handle of an object.
func (r *recorder) give(call, parent int, name FileName, handle []byte, attr Object) int {
	if known, ok := r.handles[string(handle)]; ok {
		attr.keepPlace(&r.objects[known])
		return known
	}
	if name == "." || name == ".." {
		return 0
	}
	key := child{parent, string(name)}
	object, ok := r.names[key]
	if !ok {
		object = len(r.objects)
		r.objects = append(r.objects, Object{Parent: parent, Name: name})
		r.names[key] = object
		r.givers[object] = call
	}
	r.handles[string(handle)] = object
	attr.keepPlace(&r.objects[object])
	return object
}

// keepPlace gives an object these attributes, if there are any.
func (o Object) keepPlace(dst *Object) {
	if o.Type != 0 {
		o.Parent, o.Name, o.Target, o.Listing = dst.Parent, dst.Name, dst.Target, dst.Listing
		*dst = o
	}
}

// finish makes the recording: of the calls that were answered. To read a
// directory is one call in it, since servers divide the reply as they like.
func (r *recorder) finish() (*Recording, error) {
	for key, f := range r.flows {
		if key.client.Addr() != r.client || f.ignored || len(f.requests) == 0 && len(f.halves[0].held) == 0 {
			continue
		}
		if len(f.halves[0].held)+len(f.halves[1].held) > 0 {
			return nil, fmt.Errorf("%w: of the connection from %s to %s", ErrLost, key.client, key.server)
		}
	}
	result := &Recording{Made: r.first.UTC().Truncate(time.Second), LeftOut: r.leftOut, Objects: r.objects}
	moved := make([]int, len(r.calls))
	for i, c := range r.calls {
		moved[i] = -1
		if c.goesOn >= 0 {
			moved[i] = moved[c.goesOn]
			continue
		}
		if !c.done {
			continue
		}
		if c.After >= 0 {
			c.After = moved[c.After]
		}
		if c.Needs >= 0 {
			c.Needs = moved[c.Needs]
		}
		moved[i] = len(result.Calls)
		result.Calls = append(result.Calls, c.Call)
	}
	if len(result.Calls) == 0 {
		return nil, ErrNothing
	}
	return result, result.validate()
}
