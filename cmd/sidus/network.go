package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sidus/boot/node"
)

func networkCommand() *cli.Command {
	return &cli.Command{
		Name:  "network",
		Usage: "the subnets that are served: add, list, set, delete",
		Description: "Only machines in a network that was added are answered. DHCP is `proxy` unless told otherwise:\n" +
			"another server hands out the addresses, and Sidus adds what to boot.",
		Subcommands: []*cli.Command{networkAddCommand(), networkListCommand(), networkSetCommand(), networkDeleteCommand()},
	}
}

func networkFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "subnet", Usage: "the subnet `PREFIX`, such as 10.0.0.0/24"},
		&cli.StringFlag{Name: "range", Usage: "the addresses `FIRST-LAST` that are given to machines without a fixed one"},
		&cli.StringFlag{Name: "router", Usage: "the router's `ADDRESS`"},
		&cli.StringFlag{Name: "dns", Usage: "the DNS servers: `ADDRESS,ADDRESS`"},
		&cli.StringFlag{Name: "domain", Usage: "the DNS domain `NAME`"},
		&cli.DurationFlag{Name: "lease", Usage: "how long an address is leased: `TIME`, such as 12h"},
		&cli.StringFlag{Name: "mode", Usage: "DHCP `MODE`: proxy (another server gives addresses), full, or off"},
		&cli.StringFlag{Name: "channel", Usage: "what machines boot that nobody told otherwise: `NAME`; '' is nothing"},
		&cli.StringFlag{Name: "args", Usage: "kernel arguments for all machines: `WORDS`"},
		&cli.StringFlag{Name: "nfs-options", Usage: "more mount options of the root: `OPTION,OPTION`"},
	}
}

// networkChange reads the options that were given; ” takes a thing away.
func networkChange(c *cli.Context) (change node.NetworkChange, err error) {
	if c.IsSet("subnet") {
		subnet, err := netip.ParsePrefix(c.String("subnet"))
		if err != nil {
			return change, usagef("--subnet %q: it is written like 10.0.0.0/24", c.String("subnet"))
		}
		change.Subnet = &subnet
	}
	if c.IsSet("range") {
		addresses, err := node.ParseRange(c.String("range"))
		if err != nil {
			return change, usagef("--range: %v", err)
		}
		change.Range = &addresses
	}
	if c.IsSet("router") {
		if change.Router, err = addressOption(c, "router"); err != nil {
			return change, err
		}
	}
	if c.IsSet("dns") {
		servers := []netip.Addr{}
		for _, text := range listOption(c, "dns") {
			server, err := netip.ParseAddr(text)
			if err != nil {
				return change, usagef("--dns %q: it is no address", text)
			}
			servers = append(servers, server)
		}
		change.DNS = &servers
	}
	change.Domain = textOption(c, "domain")
	if c.IsSet("lease") {
		lease := c.Duration("lease")
		change.Lease = &lease
	}
	if text := textOption(c, "mode"); text != nil {
		mode := node.Mode(*text)
		change.Mode = &mode
	}
	change.Channel = textOption(c, "channel")
	change.Args = textOption(c, "args")
	if c.IsSet("nfs-options") {
		options := listOption(c, "nfs-options")
		change.NFSOptions = &options
	}
	change.Force = c.Bool("force")
	return change, nil
}

func textOption(c *cli.Context, name string) *string {
	if !c.IsSet(name) {
		return nil
	}
	value := c.String(name)
	return &value
}

func listOption(c *cli.Context, name string) []string {
	list := []string{}
	for part := range strings.SplitSeq(c.String(name), ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list
}

func addressOption(c *cli.Context, name string) (*netip.Addr, error) {
	var address netip.Addr
	if text := c.String(name); text != "" {
		var err error
		if address, err = netip.ParseAddr(text); err != nil {
			return nil, usagef("--%s %q: it is no address", name, text)
		}
	}
	return &address, nil
}

// registry opens what keeps networks and nodes.
func (s *site) registry() *node.Registry { return node.New(s.catalog, node.Options{}) }

func (s *site) by() node.By { return node.By{Actor: s.actor, Message: s.message} }

func networkAddCommand() *cli.Command {
	return &cli.Command{
		Name: "add", Usage: "serve a subnet", ArgsUsage: "NAME",
		Description: describe("Adds a network. In mode full, Sidus gives addresses out of --range; in mode proxy another server does;\n"+
			"in mode off Sidus is silent, and another server names it as its next server.",
			"sidus network add lab --subnet 10.0.0.0/24",
			"sidus network add cluster --subnet 10.1.0.0/16 --mode full --range 10.1.1.1-10.1.9.254 --router 10.1.0.1 --dns 10.1.0.1"),
		Flags: changes(networkFlags()...),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			change, err := networkChange(c)
			if err != nil {
				return err
			}
			network, err := s.registry().AddNetwork(ctx, s.by(), args[0], change)
			if err != nil {
				return err
			}
			warnOfMissingChannel(ctx, s, change.Channel)
			return print(c, network, func(w io.Writer) { fmt.Fprintln(w, networkSentence(network)) })
		}),
	}
}

func networkSetCommand() *cli.Command {
	return &cli.Command{
		Name: "set", Usage: "change a network", ArgsUsage: "NAME",
		Description: describe("Changes what is given; a server that runs follows at once. '' takes a thing away.",
			"sidus network set lab --lease 24h --dns 10.0.0.2,10.0.0.3", "sidus network set lab --channel ''"),
		Flags: changes(append(networkFlags(), &cli.BoolFlag{Name: "force", Usage: "change the subnet although machines run in it"})...),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			change, err := networkChange(c)
			if err != nil {
				return err
			}
			network, err := s.registry().SetNetwork(ctx, s.by(), args[0], change)
			if err != nil {
				return err
			}
			warnOfMissingChannel(ctx, s, change.Channel)
			return print(c, network, func(w io.Writer) { fmt.Fprintln(w, networkSentence(network)) })
		}),
	}
}

func networkSentence(n node.Network) string {
	what := "boots nothing unless told"
	if n.Channel != "" {
		what = "boots channel " + n.Channel
	}
	return fmt.Sprintf("network %s: %s, DHCP %s, %s", n.Name, n.Subnet, n.Mode, what)
}

func networkListCommand() *cli.Command {
	return &cli.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "the networks",
		Description: describe("Lists the networks that are served.", "sidus network list"),
		Flags:       reads(),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if _, err := want(c); err != nil {
				return err
			}
			networks, err := s.registry().Networks(ctx)
			if err != nil {
				return err
			}
			if networks == nil {
				networks = []node.Network{}
			}
			return print(c, networks, func(w io.Writer) {
				var rows [][]string
				for _, n := range networks {
					var dns []string
					for _, server := range n.DNS {
						dns = append(dns, server.String())
					}
					router := "-"
					if n.Router.IsValid() {
						router = n.Router.String()
					}
					rows = append(rows, []string{n.Name, n.Subnet.String(), string(n.Mode), dash(n.Range.String()), router,
						dash(strings.Join(dns, ",")), dash(n.Domain), (time.Duration(n.LeaseSeconds) * time.Second).String(), dash(n.Channel)})
				}
				table(w, []string{"NETWORK", "SUBNET", "DHCP", "RANGE", "ROUTER", "DNS", "DOMAIN", "LEASE", "CHANNEL"}, rows)
			})
		}),
	}
}

func networkDeleteCommand() *cli.Command {
	return &cli.Command{
		Name: "delete", Aliases: []string{"rm"}, Usage: "serve a subnet no more", ArgsUsage: "NAME",
		Description: describe("Refused while machines run in it or have fixed addresses in it.", "sidus network delete lab --yes"),
		Flags:       changes(yesFlag(), &cli.BoolFlag{Name: "force", Usage: "also if machines run in it"}),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			network, err := s.registry().Network(ctx, args[0])
			if err != nil {
				return err
			}
			if err := confirm(c, "stop serving "+network.Name+" ("+network.Subnet.String()+")"); err != nil {
				return err
			}
			if err := s.registry().DeleteNetwork(ctx, s.by(), args[0], c.Bool("force")); err != nil {
				return err
			}
			return print(c, map[string]string{"deleted": args[0]}, func(w io.Writer) { fmt.Fprintf(w, "deleted the network %s\n", args[0]) })
		}),
	}
}
