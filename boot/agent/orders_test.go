package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/sys/mountinfo"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"sidus/boot/protocol"
)

func TestObeyer(t *testing.T) {
	const snapshot = "00112233445566778899aabbccddeeff"
	order := func(n int64) protocol.Order {
		return protocol.Order{Number: n, Action: protocol.ActionUpdate, Snapshot: snapshot}
	}
	script := []struct {
		orders []protocol.Order
		err    error
	}{
		{err: errors.New("connection refused")},
		{orders: []protocol.Order{order(3), order(5)}},
		{orders: []protocol.Order{order(5), order(8)}}, // one again
		{},
		{err: fmt.Errorf("gone: %w", protocol.ErrUnknownSession)},
	}
	synctest.Test(t, func(t *testing.T) {
		log, _ := logtest.NewNullLogger()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var asked, done []int64
		var reported []string
		refuse := 2 // the first reports do not get through
		start := time.Now()
		var last time.Duration
		o := Obeyer{
			Log: log,
			Ask: func(_ context.Context, after int64) ([]protocol.Order, error) {
				asked = append(asked, after)
				last = time.Since(start)
				s := script[min(len(asked)-1, len(script)-1)]
				return s.orders, s.err
			},
			Update: func(_ context.Context, order protocol.Order) protocol.Outcome {
				done = append(done, order.Number)
				outcome := protocol.Outcome{Order: order.Number, Snapshot: order.Snapshot}
				if order.Number == 5 {
					outcome.Reason = "no room"
				}
				return outcome
			},
			Report: func(_ context.Context, o protocol.Outcome) error {
				if refuse > 0 {
					refuse--
					return errors.New("connection refused")
				}
				reported = append(reported, fmt.Sprintf("%d:%s", o.Order, o.Reason))
				return nil
			},
		}
		if err := o.Run(ctx); err != nil {
			t.Error(err)
		}
		if !slices.Equal(done, []int64{3, 5, 8}) || !slices.Equal(reported, []string{"3:", "5:no room", "8:"}) {
			t.Errorf("carried out %v, reported %v", done, reported)
		}
		if !slices.Equal(asked[:5], []int64{0, 0, 5, 8, 8}) {
			t.Errorf("asked for orders after %v", asked)
		}
		// A server that gives none is left in peace.
		if len(asked) > 16 || last < 40*time.Minute {
			t.Errorf("asked %d times in an hour, the last time after %s", len(asked), last)
		}
	})
}

const booted = `21 1 0:25 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/run/sidus/ro,upperdir=/run/sidus/rw/upper,workdir=/run/sidus/rw/work
24 21 0:23 / /run rw - tmpfs tmpfs rw
25 24 0:24 / /run/sidus/ro ro,noatime - nfs 10.77.0.1:/snapshot/00000000000000000000000000000001 ro,vers=3,rsize=1048576,namlen=255,hard,nocto,nolock,proto=tcp,port=2049,mountaddr=10.77.0.1,mountport=2049,local_lock=all,addr=10.77.0.1
30 21 0:30 / /usr/local rw - tmpfs tmpfs rw
31 30 0:31 / /usr/local/a\040b rw - tmpfs tmpfs rw
`

const stacked = booted + `40 21 0:40 / /usr rw shared:9 - overlay overlay rw,lowerdir=/run/sidus/rw/upper/usr:/run/sidus/updates/00000000000000000000000000000002/usr,upperdir=/run/sidus/rw/updates/3/upper,workdir=/run/sidus/rw/updates/3/work
41 40 0:30 / /usr/local rw - tmpfs tmpfs rw
`

func TestMounts(t *testing.T) {
	before, err := mountinfo.GetMountsFromReader(strings.NewReader(booted), nil)
	if err != nil {
		t.Fatal(err)
	}
	after, err := mountinfo.GetMountsFromReader(strings.NewReader(stacked), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := runs(before); got != "00000000000000000000000000000001" {
		t.Errorf("runs %s", got)
	}
	if got := runs(after); got != "00000000000000000000000000000002" {
		t.Errorf("runs %s after an update", got)
	}
	if got := below(before, "/usr"); !slices.Equal(got, []string{"/usr/local"}) {
		t.Errorf("below /usr: %q", got)
	}
	if got := below(before, "/usr/local"); !slices.Equal(got, []string{"/usr/local/a b"}) {
		t.Errorf("below /usr/local: %q", got)
	}
	if got := below(after, "/usr"); !slices.Equal(got, []string{"/usr/local"}) {
		t.Errorf("below /usr after an update: %q", got)
	}
	root, _ := at(before, rootLayer)
	if got, want := nfsOptions(superOptions(root)), "vers=3,rsize=1048576,hard,nocto,nolock,proto=tcp,port=2049,mountaddr=10.77.0.1,mountport=2049,local_lock=all,addr=10.77.0.1"; got != want {
		t.Errorf("NFS options %s", got)
	}
}
