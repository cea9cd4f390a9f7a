package node

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/boot/protocol"
	"sidus/image/catalog"
)

// Boot is what a machine boots: all that its configuration is rendered from,
// but the addresses of the servers and the snapshot's boot entry.
type Boot struct {
	Session Session
	// Again is set if the session had been opened before, see Again.
	Again   bool
	Network Network
	// Node is the machine, known or not.
	Node Node
	// Args are the kernel arguments of network and node.
	Args string
	// MachineID is the node's machine-id(5).
	MachineID string
}

// NothingError says that there is nothing to boot for a machine, and why.
type NothingError struct {
	MAC    MAC
	Client netip.Addr
	Choice Choice
}

func (e *NothingError) Error() string {
	return fmt.Sprintf("nothing to boot for %s at %s: %s", e.MAC, orUnknown(e.Client), e.Choice.Sentence())
}

func orUnknown(a netip.Addr) string {
	if !a.IsValid() {
		return "an unknown address"
	}
	return a.String()
}

// Boot says what a machine boots, and opens its session: this chooses the
// snapshot. client is the machine's address, loader the boot loader that
// asks. The error is a *NothingError if there is nothing, wraps ErrInvalid if
// no machine can have mac, or is the catalog's.
func (r *Registry) Boot(ctx context.Context, mac MAC, client netip.Addr, loader string) (Boot, error) {
	if err := mac.check(); err != nil {
		return Boot{}, err
	}
	client = client.Unmap()
	var boot Boot
	var nothing *NothingError
	var ended []Session
	err := r.catalog.Update(ctx, func(tx *sql.Tx) error {
		boot, nothing, ended = Boot{}, nil, nil
		// Millis, so that what is returned is what is read back later.
		now := catalog.Time(catalog.Millis(r.now()))
		all, err := networks(tx)
		if err != nil {
			return err
		}
		network, served := networkOf(all, client)
		if !served {
			nothing = &NothingError{MAC: mac, Client: client, Choice: Choice{Reason: ReasonNotServed}}
			return nil
		}
		if boot.Node, err = seen(tx, mac, network.Name, now); err != nil {
			return err
		}
		boot.Network = network
		live, err := liveSessions(tx, mac)
		if err != nil {
			return err
		}
		clock, err := r.servedNow(tx, now)
		if err != nil {
			return err
		}
		if len(live) > 0 && asksAgain(live[0], now) {
			boot.Session, boot.Again = live[0], true
			boot.Session.Address, boot.Session.Loader, boot.Session.Network = client, loader, network.Name
			boot.Session.heardNow(now, clock)
			return writeSession(tx, boot.Session)
		}
		ended = live
		if err := endSessions(tx, live, now, endBooted); err != nil {
			return err
		}
		choice, err := choose(tx, boot.Node, network)
		if err != nil {
			return err
		}
		if choice.Reason != "" {
			nothing = &NothingError{MAC: mac, Client: client, Choice: choice}
			return nil
		}
		boot.Session = Session{
			ID: protocol.NewSessionID(), MAC: mac, Name: boot.Node.Name, Network: network.Name, Snapshot: choice.Snapshot,
			Channel: choice.Channel, Address: client, Loader: loader, Opened: now, Step: protocol.StepConfig, StepAt: now,
			Heard: now, heardClock: clock, FailedUnits: []string{},
		}
		return writeSession(tx, boot.Session)
	})
	if err != nil {
		return Boot{}, err
	}
	for _, s := range ended {
		r.logSession(s).WithField("reason", string(endBooted)).Info("session ended")
	}
	if nothing != nil {
		r.log.WithFields(logrus.Fields{"mac": mac.String(), "address": orUnknown(client), "reason": string(nothing.Choice.Reason)}).
			Warn("nothing to boot: " + nothing.Choice.Sentence())
		return Boot{}, nothing
	}
	entry := r.logSession(boot.Session).WithField("loader", loader)
	if boot.Again {
		entry.Info("boot: config again")
	} else {
		entry.WithField("channel", boot.Session.Channel).Info("boot: config")
	}
	boot.Args = strings.TrimSpace(boot.Network.Args + " " + boot.Node.Args)
	boot.MachineID = MachineID(r.siteKey, mac)
	return boot, nil
}

// asksAgain tells whether a machine that asks at now is still in the boot
// that s was opened for. Once its root was mounted it cannot be.
func asksAgain(s Session, now time.Time) bool {
	// A clock that was set back a little is no reason to forget a boot.
	return now.Sub(s.Opened).Abs() < Again && !s.running()
}

// logSession is the beginning of each log line about a session.
func (r *Registry) logSession(s Session) logrus.FieldLogger {
	return r.log.WithFields(logrus.Fields{
		"mac": s.MAC.String(), "node": s.Name, "address": addrText(s.Address),
		"snapshot": s.Snapshot.String(), "snapshot_id": s.Snapshot.Short(), "session": string(s.ID[:8]),
	})
}
