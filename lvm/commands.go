package lvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"sidus/image/store"
	"sidus/image/store/backend"
	"sidus/image/tool"
)

// within is backend.Within with the time limit of a command.
func (o Options) within(ctx context.Context, what string, do func(ctx context.Context) error) error {
	late := fmt.Errorf("%s: %w: nothing heard in %v: is a device suspended or gone? (dmsetup info; lvs): %w", what, ErrTimeout, o.Timeout, store.ErrUnavailable)
	return backend.Within(ctx, o.Timeout, late, do)
}

// run runs a program.
func (o Options) run(ctx context.Context, name string, args ...string) error {
	_, err := o.output(ctx, name, args...)
	return err
}

// output is run that returns what the program says.
func (o Options) output(ctx context.Context, name string, args ...string) (out []byte, err error) {
	err = o.read(ctx, func(r io.Reader) (err error) {
		out, err = io.ReadAll(r)
		return err
	}, name, args...)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// read runs a program while parse reads what it says. What parse has made of it
// counts only if there is no error.
func (o Options) read(ctx context.Context, parse func(io.Reader) error, name string, args ...string) error {
	env := []string{"LVM_SUPPRESS_FD_WARNINGS=1"}
	if !udevRuns() {
		// Else LVM and dmsetup wait for a daemon to make the device nodes.
		env = append(env, "DM_DISABLE_UDEV=1")
	}
	said, out := io.Pipe()
	parsed := make(chan error, 1)
	go func() {
		err := parse(said)
		_ = said.CloseWithError(err) // the program need not go on; nil: io.ErrClosedPipe
		parsed <- err
	}()
	err := o.within(ctx, tool.CommandLine(append([]string{name}, args[:min(1, len(args))]...)), func(ctx context.Context) error {
		return tool.Run(ctx, tool.Options{Log: o.Log, Env: env, Stdout: out}, name, args...)
	})
	_ = out.CloseWithError(err)
	parseErr := <-parsed
	if err != nil && parseErr != nil && !errors.Is(parseErr, err) {
		return parseErr // and the program could not say the rest
	}
	if err == nil {
		err = parseErr
	}
	return err
}

// udevRuns tells whether udevd does, as libudev does it.
func udevRuns() bool {
	_, err := os.Stat("/run/udev/control")
	return err == nil
}

// lvm runs one of LVM's commands on the devices of the store.
func (p *place) lvm(ctx context.Context, command string, args ...string) ([]byte, error) {
	return p.opts.output(ctx, "lvm", append([]string{command, "--config", p.config()}, args...)...)
}

// config is LVM configuration for each command: times as seconds since 1970, no
// dmeventd, and no file in /etc/lvm/archive for each snapshot that is taken,
// which for thirty days would keep all of the volume group's metadata each. The
// copy in /etc/lvm/backup stays, but for a volume group in a loop file, of which
// LVM alone cannot know. A pool that is made there fails writes when it is full:
// by default they hang for a minute. (lvcreate 2.03.16 refuses --errorwhenfull.)
// Where the store has a device of its own, LVM looks at no other.
func (p *place) config() string {
	config := `report { time_format="%s" } log { silent=0 } `
	if p.opts.File != "" {
		config += `activation { monitoring=0 error_when_full=1 } backup { archive=0 backup=0 }`
	} else {
		config += `activation { monitoring=0 } backup { archive=0 }`
	}
	if p.device != "" {
		filter := fmt.Sprintf(`["a|^%s$|","r|.*|"]`, p.device)
		config += fmt.Sprintf(` devices { use_devicesfile=0 filter=%s global_filter=%s }`, filter, filter)
	}
	return config
}

// report runs lvs or vgs and returns its rows.
func (p *place) report(ctx context.Context, command, columns, object string) ([]row, error) {
	out, err := p.lvm(ctx, command, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", columns, object)
	if err != nil {
		return nil, err
	}
	return parseReport(out)
}

// full is a logical volume as LVM's commands name it.
func (p *place) full(name lv) string { return p.group + "/" + string(name) }

// node is the device node of a logical volume while it is active.
func (p *place) node(name lv) string {
	return filepath.Join("/dev/mapper", mapperName(p.group, string(name)))
}

// activate makes the device of a logical volume.
func (p *place) activate(ctx context.Context, name lv, more ...string) error {
	args := append([]string{"--activate", "y", "--ignoreactivationskip"}, more...)
	_, err := p.lvm(ctx, "lvchange", append(args, p.full(name))...)
	return classify(name, name, err)
}

// deactivate takes the device of a logical volume away, if there is one. The
// device mapper's tool does it five times as fast as LVM, which has nothing to
// do with a thin volume that is put out of use: what is active is what has a
// device.
func (p *place) deactivate(ctx context.Context, name lv) error {
	if _, err := os.Lstat(p.node(name)); os.IsNotExist(err) {
		return nil
	}
	err := p.opts.run(ctx, "dmsetup", "remove", "--retry", mapperName(p.group, string(name)))
	if err != nil {
		return classify(name, name, err)
	}
	if !udevRuns() {
		// LVM has made it where udev did not.
		_ = os.Remove(filepath.Join("/dev", p.group, string(name)))
	}
	return nil
}

// remove removes a logical volume of the pool. ErrNotFound if it is missing or
// in another pool.
func (p *place) remove(ctx context.Context, name lv) error {
	out, err := p.lvm(ctx, "lvremove", "--yes", "--select", fmt.Sprintf(`pool_lv="%s"`, p.pool), p.full(name))
	if err == nil && !strings.Contains(string(out), string(name)) {
		return fmt.Errorf("%v: %w", name, store.ErrNotFound) // not selected, so not removed
	}
	return classify(name, name, err)
}
