// Sidus-agent runs on the machines that boot from Sidus, as the services
// sidus-lease (it keeps the address that the root file system hangs on) and
// sidus-agent (it reports to the server).
//
//	sidus-agent lease    keep the lease; never returns
//	sidus-agent report   report that the node is up, then send heartbeats, and
//	                     carry out live updates that the server orders
//	sidus-agent version  print the version of the protocol that it speaks
//
// It reads the kernel's command line and /run/sidus/boot.env. The exit status
// is 0 after SIGTERM, 1 if it cannot work, and 2 if it was called wrongly.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"sidus/boot/agent"
	"sidus/boot/protocol"
)

func main() {
	log := logrus.New()
	log.SetFormatter(journalFormat{})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	what := ""
	if len(os.Args) == 2 {
		what = os.Args[1]
	}
	var err error
	switch what {
	case "lease":
		err = keepLease(ctx, log)
	case "report":
		err = report(ctx, log)
	case "version":
		fmt.Printf("protocol %d\n", protocol.Version)
	default:
		fmt.Fprintln(os.Stderr, "usage: sidus-agent lease|report|version")
		os.Exit(2)
	}
	if err != nil {
		log.Error(err)
		os.Exit(1)
	}
}

func keepLease(ctx context.Context, log *logrus.Logger) error {
	facts, err := agent.ReadFacts(agent.FactsFile)
	if err != nil {
		return fmt.Errorf("the lease cannot be kept: %w", err)
	}
	return (&agent.Keeper{Facts: facts, Log: log, Ready: ready(log)}).Run(ctx)
}

func report(ctx context.Context, log *logrus.Logger) error {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	base, session, err := agent.Server(string(line))
	if err != nil {
		return fmt.Errorf("no server to report to: %w", err)
	}
	client := protocol.Client{Base: base, Session: session}
	r := agent.Reporter{
		Send: client.Report,
		Done: "/run/sidus/reported",
		Log:  log,
	}
	if facts, err := agent.ReadFacts(agent.FactsFile); err != nil {
		log.WithError(err).Warn("the node's address is not reported")
	} else {
		r.Address = facts.Address.String()
	}
	r.Ready = ready(log)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.Run(ctx) })
	obeyer := agent.Obeyer{Ask: client.Orders, Update: (&agent.Updater{Log: log}).Update, Report: r.Outcome, Log: log}
	group.Go(func() error { return obeyer.Run(ctx) })
	return group.Wait()
}

func ready(log *logrus.Logger) func() {
	return func() {
		if err := agent.Notify("READY=1"); err != nil {
			log.WithError(err).Warn("systemd cannot be told that the service is ready")
		}
	}
}
