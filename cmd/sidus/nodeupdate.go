package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"sidus/boot/node"
	"sidus/boot/protocol"
	"sidus/image"
	"sidus/image/diff"
)

const (
	updateWait  = 2 * time.Minute        // for the nodes' answers
	updateEvery = 100 * time.Millisecond // between two looks for them
)

func nodeUpdateCommand() *cli.Command {
	return &cli.Command{
		Name: "update", Usage: "give running nodes the programs of a newer snapshot, without a reboot", ArgsUsage: "NODE...",
		Description: describe("Each node takes what it would boot now: it mounts that snapshot beside the one that it runs and stacks its\n"+
			"/usr over the running /usr. What is started from then on is new; what runs keeps the files that it has.\n"+
			"/etc, /var and the kernel change at the next boot: what that will be is listed. An order that a node has\n"+
			"not answered in time stands, and it takes it when it can.",
			"sidus node update n1 n2", "sidus node update --channel default", "sidus node update --group gpu --timeout 10m", "sidus node update --all --json"),
		Flags: changes(
			&cli.StringFlag{Name: "channel", Usage: "all nodes that follow the channel `NAME`"},
			&cli.StringFlag{Name: "group", Usage: "all nodes of the group `NAME`"},
			&cli.BoolFlag{Name: "all", Usage: "all nodes"},
			&cli.DurationFlag{Name: "timeout", Value: updateWait, Usage: "wait for the nodes' answers for at most `TIME`"},
		),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			selection := node.Selection{Nodes: c.Args().Slice(), Channel: c.String("channel"), Group: c.String("group"), All: c.Bool("all")}
			ways := 0
			for _, given := range []bool{len(selection.Nodes) > 0, selection.Channel != "", selection.Group != "", selection.All} {
				if given {
					ways++
				}
			}
			if ways != 1 {
				return usagef("say which nodes: NODE..., --channel, --group or --all, one of them; `--help` explains it")
			}
			return updateNodes(ctx, c, s, selection)
		}),
	}
}

// nodeUpdated is what came of one node's live update.
type nodeUpdated struct {
	node.Ordered
	Seconds float64 `json:"seconds"` // from the order to the answer
	Failed  bool    `json:"failed"`
	line    string
}

func updateNodes(ctx context.Context, c *cli.Context, s *site, selection node.Selection) error {
	ordered, err := s.registry().OrderUpdates(ctx, s.by(), selection)
	if err != nil {
		return err
	}
	show := func(n *nodeUpdated) {
		if !c.Bool("json") {
			fmt.Fprintf(c.App.Writer, "%s: %s\n", n.Node.Label(), n.line)
		}
	}
	results := make([]*nodeUpdated, len(ordered))
	waiting := map[int64]*nodeUpdated{}
	for i, o := range ordered {
		n := &nodeUpdated{Ordered: o, line: o.Text}
		results[i] = n
		switch o.Answer {
		case node.AnswerOrdered:
			waiting[o.Update.Order] = n
			continue
		case node.AnswerOff:
			// Of many nodes some are always off, and boot the new one anyway.
			n.Failed = len(selection.Nodes) > 0
		case node.AnswerOld, node.AnswerNothing:
			n.Failed = true
		}
		show(n)
	}
	if err := awaitUpdates(ctx, c.Duration("timeout"), s.registry(), waiting, show); err != nil {
		return err
	}
	later := nextBoots(ctx, s.manager, results)
	failed := 0
	for _, n := range results {
		if n.Failed {
			failed++
		}
	}
	if err := print(c, map[string]any{"nodes": results, "next_boot": later}, func(w io.Writer) {
		for _, l := range later {
			l.print(w)
		}
	}); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d nodes were not updated", failed, len(results))
	}
	return nil
}

// awaitUpdates waits until all orders are answered, and shows each as it is.
func awaitUpdates(ctx context.Context, limit time.Duration, registry *node.Registry, waiting map[int64]*nodeUpdated, show func(*nodeUpdated)) error {
	end := time.Now().Add(limit)
	all := len(waiting)
	progress, finish := nodeProgress(all)
	defer finish()
	for len(waiting) > 0 {
		orders := make([]int64, 0, len(waiting))
		for order := range waiting {
			orders = append(orders, order)
		}
		updates, err := registry.Updates(ctx, orders)
		if err != nil {
			return err
		}
		late := time.Now().After(end)
		for _, u := range updates {
			n := waiting[u.Order]
			switch {
			case u.State == node.UpdateDone:
				n.line = fmt.Sprintf("runs %s, before it was %s", n.To, n.From)
			case u.State == node.UpdateFailed:
				n.Failed, n.line = true, "failed: "+u.Reason
			case u.SessionEnded:
				n.Failed, n.line = true, "it was booted meanwhile; `sidus status` shows what it runs"
			case late && u.State == node.UpdateTaken:
				n.Failed, n.line = true, "it works on it and has not answered yet"
			case late:
				n.Failed, n.line = true, "it has not asked for orders yet: is it on, and does `sidus serve` run? It takes this one when it can"
			default:
				continue
			}
			n.Update = &u
			if !u.Answered.IsZero() {
				n.Seconds = u.Answered.Sub(u.Ordered).Seconds()
				n.line += fmt.Sprintf(" (%.1f s)", n.Seconds)
			}
			for _, note := range u.Notes {
				n.line += "\n    " + note
			}
			delete(waiting, u.Order)
			finish()
			show(n)
		}
		progress(all - len(waiting))
		if len(waiting) == 0 {
			break
		}
		select {
		case <-time.After(updateEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// nodeProgress shows on a terminal how many nodes have answered.
func nodeProgress(all int) (update func(done int), finish func()) {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return func(int) {}, func() {}
	}
	return func(done int) { fmt.Fprintf(os.Stderr, "\r\x1b[K%d of %d nodes have answered", done, all) },
		func() { fmt.Fprint(os.Stderr, "\r\x1b[K") }
}

// nextBoot is what a live update leaves to the next boot.
type nextBoot struct {
	Booted node.Ref `json:"booted"`
	To     node.Ref `json:"to"`
	// Etc is what differs below /etc.
	Etc []diff.Change `json:"etc"`
	// Kernel is the kernel of the next boot, if it is another one.
	Kernel string `json:"kernel,omitempty"`
	// Trouble says why this is not known.
	Trouble string `json:"trouble,omitempty"`
}

// nextBoots compares what updated nodes have booted with what they run now.
func nextBoots(ctx context.Context, m *image.Manager, results []*nodeUpdated) []nextBoot {
	list := []nextBoot{}
	known := map[[2]node.Ref]bool{}
	for _, n := range results {
		pair := [2]node.Ref{n.Booted, n.To}
		if n.Failed || n.Answer != node.AnswerOrdered || known[pair] || n.Booted.ID == n.To.ID {
			continue
		}
		known[pair] = true
		next := nextBoot{Booted: n.Booted, To: n.To, Etc: []diff.Change{}}
		if err := next.compare(ctx, m); err != nil {
			next.Trouble = err.Error()
		}
		list = append(list, next)
	}
	return list
}

func (n *nextBoot) compare(ctx context.Context, m *image.Manager) (err error) {
	var roots [2]string
	var entries [2]protocol.BootEntry
	for i, ref := range []node.Ref{n.Booted, n.To} {
		mount, err := m.MountSnapshot(ctx, ref.ID)
		if err != nil {
			return err
		}
		defer mount.Unmount(context.WithoutCancel(ctx))
		roots[i] = mount.Path()
		if entries[i], err = protocol.ReadBootEntry(roots[i]); err != nil {
			return err
		}
	}
	if entries[0].Kernel != entries[1].Kernel {
		n.Kernel = entries[1].Kernel
	}
	etc, err := diff.Files(ctx, filepath.Join(roots[0], "etc"), filepath.Join(roots[1], "etc"), diff.Options{})
	if err != nil {
		return err
	}
	for _, change := range etc {
		change.Path = "/etc" + change.Path
		if change.Path != "/etc/ld.so.cache" { // the node has made it anew
			n.Etc = append(n.Etc, change)
		}
	}
	return nil
}

// shownPaths is how many paths of /etc are listed for people.
const shownPaths = 10

func (n *nextBoot) print(w io.Writer) {
	fmt.Fprintf(w, "\n/etc, /var and the kernel stay those of %s until the next boot.", n.Booted)
	switch {
	case n.Trouble != "":
		fmt.Fprintf(w, " What that will change is not known: %s\n", n.Trouble)
		return
	case len(n.Etc) == 0 && n.Kernel == "":
		fmt.Fprintf(w, " /etc and the kernel of %s are the same.\n", n.To)
		return
	}
	fmt.Fprintf(w, " What will change with %s:\n", n.To)
	if n.Kernel != "" {
		fmt.Fprintf(w, "    the kernel: %s\n", strings.TrimPrefix(n.Kernel, "/boot/"))
	}
	for i, change := range n.Etc {
		if i == shownPaths {
			fmt.Fprintf(w, "    and %d more in /etc (--json lists them)\n", len(n.Etc)-i)
			break
		}
		fmt.Fprintf(w, "    %s\n", change.Path)
	}
}
