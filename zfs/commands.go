package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	gozfs "github.com/mistifyio/go-zfs/v3"

	"sidus/image/store"
	"sidus/image/store/backend"
	"sidus/image/tool"
)

// within is backend.Within with the time limit of a command.
func (o Options) within(ctx context.Context, what string, do func(ctx context.Context) error) error {
	return backend.Within(ctx, o.Timeout, o.hangs(what), do)
}

// call is within for what this process itself asks the kernel: it cannot end before
// that does. So it is not asked where it is known not to answer.
func (s *Store) call(ctx context.Context, what string, do func() error) error {
	if err := s.suspended(what); err != nil {
		return err
	}
	return s.opts.within(ctx, what, func(context.Context) error { return do() })
}

// suspended returns an error if the kernel says that the disks of the pool do not
// answer. See spa_stats.c; only since OpenZFS 0.8.
func (s *Store) suspended(what string) error {
	pool, _, _ := cutPool(s.parent)
	state, err := os.ReadFile("/proc/spl/kstat/zfs/" + pool + "/state")
	if err != nil || strings.TrimSpace(string(state)) != "SUSPENDED" {
		return nil
	}
	return fmt.Errorf("%s: %w: the pool %s is suspended: its disks do not answer (zpool status -x says which; when they are back: zpool clear %s)",
		what, store.ErrUnavailable, pool, pool)
}

// hangs is the error of a program that says nothing for too long.
func (o Options) hangs(what string) error {
	return fmt.Errorf("%s: %w: nothing heard in %v: is the pool suspended? (zpool status -x; zpool clear when its disks are back): %w", what, ErrTimeout, o.Timeout, store.ErrUnavailable)
}

// run runs zfs or zpool.
func (o Options) run(ctx context.Context, name string, args ...string) error {
	_, err := o.output(ctx, name, args...)
	return err
}

// output is run that returns what the program says.
func (o Options) output(ctx context.Context, name string, args ...string) ([]byte, error) {
	var out []byte
	err := o.within(ctx, tool.CommandLine(append([]string{name}, args[:min(1, len(args))]...)), func(ctx context.Context) error {
		text, err := tool.Output(ctx, tool.Options{Log: o.Log}, name, args...)
		if err == nil {
			out = text
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// library calls something of package go-zfs, which knows no context.
func (o Options) library(ctx context.Context, what string, do func() error) error {
	if _, err := tool.Look("zfs"); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	begin := time.Now()
	err := o.within(ctx, what, func(context.Context) error { return do() })
	o.Log.WithField("duration", time.Since(begin).Round(time.Microsecond)).WithField("command", what).Debug("ran a program")
	return err
}

// destroy is "zfs destroy"; a snapshot that has clones is only marked.
func (o Options) destroy(ctx context.Context, d dataset) error {
	flags := gozfs.DestroyDefault
	if d.fileSystem() != d {
		flags = gozfs.DestroyDeferDeletion
	}
	return o.library(ctx, "zfs destroy "+string(d), func() error {
		return (&gozfs.Dataset{Name: string(d)}).Destroy(flags)
	})
}

// rollback takes a file system back to its last snapshot.
func (o Options) rollback(ctx context.Context, last dataset) error {
	return o.library(ctx, "zfs rollback "+string(last), func() error {
		return (&gozfs.Dataset{Name: string(last), Type: gozfs.DatasetSnapshot}).Rollback(false)
	})
}

// set is "zfs set".
func (o Options) set(ctx context.Context, d dataset, property, value string) error {
	return o.library(ctx, "zfs set "+property+" "+string(d), func() error {
		return (&gozfs.Dataset{Name: string(d)}).SetProperty(property, value)
	})
}

// pool asks for the state of the pool that a dataset is in.
func (o Options) pool(ctx context.Context, name string) (pool *gozfs.Zpool, err error) {
	found := make(chan *gozfs.Zpool, 1)
	err = o.library(ctx, "zpool get "+name, func() error {
		p, err := gozfs.GetZpool(name)
		found <- p
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-found, nil
}

// properties asks for properties of one dataset.
func (o Options) properties(ctx context.Context, d dataset, names string) (map[string]property, error) {
	out, err := o.output(ctx, "zfs", "get", "-Hp", "-o", "property,value,source", names, string(d))
	if err != nil {
		return nil, err
	}
	return parseProperties(out)
}

// names lists file systems and snapshots beneath a dataset, and nothing else
// of them, which is many times as fast as with properties.
func (o Options) names(ctx context.Context, d dataset, depth string, types string) ([]string, error) {
	out, err := o.output(ctx, "zfs", "list", "-H", "-r", "-d", depth, "-t", types, "-o", "name", "-s", "name", string(d))
	if err != nil {
		return nil, err
	}
	return parseNames(out), nil
}

var errNoSuchProperty = errors.New("zfs did not say")
