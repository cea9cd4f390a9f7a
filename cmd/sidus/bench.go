package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"sidus/export/storm"
)

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "measure how many machines an NFS server can boot",
		Subcommands: []*cli.Command{
			benchRecordCommand(), benchStormCommand(), benchTreeCommand(),
		},
	}
}

func benchRecordCommand() *cli.Command {
	return &cli.Command{
		Name:  "record",
		Usage: "record the NFS calls of a boot",
		Description: describe("Listens on a network interface while a machine boots from any NFSv3 server, and writes which calls it made,\n"+
			"what each waited for, and how long the machine thought. Start it before the machine boots; it ends when the\n"+
			"machine has made no call for some time (--idle), or when it is interrupted. Neither server nor machine is\n"+
			"changed. A capture that was made elsewhere (`tcpdump -s 0 -w FILE tcp`) does as well: --capture.",
			"sidus bench record --interface eth1 -o boot.jsonl.gz", "sidus bench record --interface eth1 --client 10.0.0.17 -o boot.jsonl.gz",
			"sidus bench record --capture boot.pcap -o boot.jsonl.gz"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "interface", Aliases: []string{"i"}, Usage: "listen on the network interface `IF`"},
			&cli.StringFlag{Name: "capture", Usage: "read the packets from a `FILE` in pcap format; - is the standard input"},
			&cli.StringFlag{Name: "client", Usage: "record the machine with the `ADDRESS`; else the first that makes a call"},
			&cli.DurationFlag{Name: "idle", Value: 30 * time.Second, Usage: "the boot is over when no call was made for the `TIME`"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write the recording to the `FILE`", Required: true},
			jsonFlag(),
		},
		Action: benchRecord,
	}
}

func benchRecord(c *cli.Context) (err error) {
	if _, err := want(c); err != nil {
		return err
	}
	source := storm.Source{Interface: c.String("interface"), Idle: c.Duration("idle")}
	if (source.Interface == "") == (c.String("capture") == "") {
		return usagef("give either --interface or --capture")
	}
	if text := c.String("client"); text != "" {
		if source.Client, err = netip.ParseAddr(text); err != nil {
			return usagef("--client %q: it is no address", text)
		}
	}
	switch path := c.String("capture"); path {
	case "":
	case "-":
		source.Capture = os.Stdin
	default:
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		source.Capture = file
	}
	show, finish := statusLine()
	source.Progress = func(client netip.Addr, calls int, bytes uint64) {
		if calls == 0 {
			show("waiting for a machine that boots")
			return
		}
		show(fmt.Sprintf("%s: %d calls, %s", client, calls, megabytes(bytes)))
	}
	recording, err := storm.Record(c.Context, source)
	finish()
	if err != nil {
		return err
	}
	if err := recording.WriteFile(c.String("output")); err != nil {
		return err
	}
	v := struct {
		File     string        `json:"file"`
		Calls    int           `json:"calls"`
		Objects  int           `json:"objects"`
		Bytes    uint64        `json:"bytes"`
		Thinking time.Duration `json:"thinking_ns"`
		LeftOut  int           `json:"left_out"`
	}{c.String("output"), len(recording.Calls), len(recording.Objects), recording.Bytes(), recording.Thinking(), recording.LeftOut}
	return print(c, v, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %d calls for %d files and directories, %s read, %s of thinking\n", v.File, v.Calls, v.Objects, megabytes(v.Bytes), v.Thinking.Round(time.Millisecond))
		if v.LeftOut > 0 {
			fmt.Fprintf(w, "%d calls are left out: they would write, or the recording began too late to know of what they are\n", v.LeftOut)
		}
	})
}

func benchStormCommand() *cli.Command {
	return &cli.Command{
		Name:      "storm",
		Usage:     "let many virtual nodes boot from an NFS server at once",
		ArgsUsage: "RECORDING HOST:/PATH",
		Description: describe("Virtual nodes that start together make the NFS calls of a recorded boot, each on a connection of its own, and\n"+
			"check what they are answered: attributes, names, and every byte. Any NFSv3 server that has the tree which was\n"+
			"recorded can be measured. As root the nodes use ports below 1024, without which most servers refuse them. The\n"+
			"exit status is 0 only if every node booted and every answer was right.\n\n"+
			"Run it on another machine than the server: it needs as much of the processor as a fast server does.",
			"sidus bench storm boot.jsonl.gz 10.0.0.1:/channel/default --nodes 300",
			"sidus bench storm boot.jsonl.gz 10.0.0.1:/channel/default --nfs-port 2049 --mount-port 2049 --think 0 --json"),
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "nodes", Aliases: []string{"n"}, Value: 100, Usage: fmt.Sprintf("`N` virtual nodes, at most %d", storm.MaxNodes)},
			&cli.Float64Flag{Name: "think", Value: 1, Usage: "multiply the times of thinking by `F`; 0: make each call as soon as it can be made"},
			&cli.BoolFlag{Name: "learn", Usage: "the first node that reads says what is right: for a tree whose files have other data"},
			&cli.DurationFlag{Name: "timeout", Value: 10 * time.Minute, Usage: "a node that has not booted after the `TIME` is an error"},
			&cli.IntFlag{Name: "nfs-port", Usage: "the TCP port `N` of NFS; else the server's port mapper is asked"},
			&cli.IntFlag{Name: "mount-port", Usage: "the TCP port `N` of MOUNT; else that of --nfs-port, or the port mapper is asked"},
			jsonFlag(),
		},
		Action: benchStorm,
	}
}

func benchStorm(c *cli.Context) error {
	args, err := want(c)
	if err != nil {
		return err
	}
	target, err := storm.ParseTarget(args[1])
	if err != nil {
		return usagef("%s", err)
	}
	target.NFSPort, target.MountPort = c.Int("nfs-port"), c.Int("mount-port")
	if target.MountPort == 0 {
		target.MountPort = target.NFSPort
	}
	for name, port := range map[string]int{"nfs-port": target.NFSPort, "mount-port": target.MountPort} {
		if port < 0 || port > 65535 {
			return usagef("--%s %d: a port is 1 to 65535", name, port)
		}
	}
	o := storm.Options{
		Target: target, Nodes: c.Int("nodes"), Think: c.Float64("think"), NoThinking: c.Float64("think") == 0,
		Learn: c.Bool("learn"), Timeout: c.Duration("timeout"),
	}
	if o.Nodes < 1 || o.Nodes > storm.MaxNodes {
		return usagef("--nodes %d: it is 1 to %d", o.Nodes, storm.MaxNodes)
	}
	if o.Think < 0 {
		return usagef("--think %g: it cannot be less than 0", o.Think)
	}
	recording, err := storm.ReadFile(args[0])
	if err != nil {
		return err
	}
	show, finish := statusLine()
	o.Progress = func(p storm.Progress) {
		show(fmt.Sprintf("%s: %d of %d booted, %d failed, %d calls, %s", p.Elapsed.Round(time.Second), p.Booted, o.Nodes, p.Failed, p.Calls, megabytes(p.Bytes)))
	}
	result, err := storm.Run(c.Context, recording, o)
	finish()
	if err != nil {
		return err
	}
	if err := print(c, result, func(w io.Writer) { stormText(w, result) }); err != nil {
		return err
	}
	if result.Errors > 0 {
		return fmt.Errorf("%d errors; %d of %d nodes booted", result.Errors, result.Booted, result.Nodes)
	}
	return nil
}

func stormText(w io.Writer, r *storm.Result) {
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
	table(w, []string{"NODES", "BOOTED", "BOOTS/S", "P50", "P99", "MAX", "CALLS/S", "MB/S", "READ", "ERRORS"}, [][]string{{
		fmt.Sprint(r.Nodes), fmt.Sprint(r.Booted), fmt.Sprintf("%.2f", r.BootsPerSecond), seconds(r.P50), seconds(r.P99), seconds(r.Max),
		fmt.Sprintf("%.0f", r.CallsPerSecond), fmt.Sprintf("%.0f", r.BytesPerSecond/1e6), megabytes(r.Bytes), fmt.Sprint(r.Errors),
	}})
	fmt.Fprintf(w, "with a server and a network that take no time, a boot would take %s\n", seconds(r.Thinking))
	for _, text := range r.Examples {
		fmt.Fprintf(w, "error: %s\n", text)
	}
}

func benchTreeCommand() *cli.Command {
	return &cli.Command{
		Name:      "tree",
		Usage:     "make a tree for a recorded boot",
		ArgsUsage: "RECORDING DIR NEW-RECORDING",
		Description: describe("Makes, in an empty folder, the files and directories that the boot came across, with their sizes and\n"+
			"attributes and with made-up data, and writes the recording for that tree: so that a storm can be made without\n"+
			"the tree that was booted.",
			"sidus bench tree boot.jsonl.gz /srv/skeleton skeleton.jsonl.gz && sidus import skeleton --dir /srv/skeleton"),
		Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			args, err := want(c)
			if err == nil {
				err = requireRoot()
			}
			if err != nil {
				return err
			}
			recording, err := storm.ReadFile(args[0])
			if err != nil {
				return err
			}
			if err := os.MkdirAll(args[1], 0o755); err != nil {
				return err
			}
			made, err := storm.Skeleton(recording, args[1])
			if err == nil {
				err = made.WriteFile(args[2])
			}
			if err != nil {
				return err
			}
			v := map[string]any{"dir": args[1], "recording": args[2], "objects": len(made.Objects)}
			return print(c, v, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %d files and directories; %s is the boot of it\n", args[1], len(made.Objects), args[2])
			})
		},
	}
}

func megabytes(n uint64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// statusLine shows how far something is: one line that is redrawn on a
// terminal, one line every ten seconds elsewhere.
func statusLine() (show func(line string), finish func()) {
	terminal := term.IsTerminal(int(os.Stderr.Fd()))
	last, shown := time.Now(), false
	show = func(line string) {
		switch now := time.Now(); {
		case terminal:
			shown = true
			fmt.Fprintf(os.Stderr, "\r\x1b[K%s", line)
		case now.Sub(last) >= 10*time.Second:
			last = now
			fmt.Fprintln(os.Stderr, line)
		}
	}
	finish = func() {
		if shown {
			fmt.Fprint(os.Stderr, "\r\x1b[K")
		}
	}
	return show, finish
}
