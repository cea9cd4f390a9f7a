package node

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"sidus/boot/protocol"
)

// The bounds of lease times. Machines that load a large image must not lose
// their address meanwhile, and firmware renews nothing.
const (
	MinLease = 2 * time.Minute
	MaxLease = 365 * 24 * time.Hour
)

const (
	maxArgs = 1000 // bytes; a kernel command line is sure to take 2,047 in all
	maxDNS  = 8
)

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._+-]{0,63}$`)

// validate checks a network against itself, the others, and the addresses of
// this server. The error wraps ErrInvalid.
func (n Network) validate(others []Network, local []netip.Addr) error {
	if !namePattern.MatchString(n.Name) {
		return fmt.Errorf("network name %.80q: %w: it has 1 to 64 letters, digits and . _ + -, and begins with a letter or digit", n.Name, ErrInvalid)
	}
	for _, check := range []func() error{
		n.validateSubnet,
		func() error { return n.validateOverlap(others) },
		n.validateRouter,
		n.validateDNS,
		func() error { return n.validateRange(local) },
		n.validateMode,
		n.validateLease,
		n.validateTexts,
	} {
		if err := check(); err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	return nil
}

func (n Network) validateSubnet() error {
	s := n.Subnet
	switch {
	case !s.IsValid():
		return invalid("it needs a subnet, like 10.0.0.0/24")
	case !s.Addr().Is4():
		return invalid("subnet %s: it is not IPv4, the only version that PXE is served for", s)
	case s.Masked() != s:
		return invalid("subnet %s: bits are set beyond the prefix; is %s meant?", s, s.Masked())
	case s.Bits() < 8 || s.Bits() > 30:
		return invalid("subnet %s: prefixes from /8 to /30 can be served", s)
	case s.Addr().IsMulticast() || s.Addr().As4()[0] == 0 || s.Addr().As4()[0] >= 224:
		return invalid("subnet %s: machines have no such addresses", s)
	}
	return nil
}

func (n Network) validateOverlap(others []Network) error {
	for _, other := range others {
		if n.Subnet.Overlaps(other.Subnet) {
			return invalid("subnet %s overlaps with %s of network %s", n.Subnet, other.Subnet, other.Name)
		}
	}
	return nil
}

// checkHost checks that a machine in the subnet can have a.
func (n Network) checkHost(a netip.Addr) error {
	switch {
	case !a.Is4() || !n.Subnet.Contains(a):
		return invalid("%s is not in the subnet %s", a, n.Subnet)
	case a == n.Subnet.Addr():
		return invalid("%s is the address of the subnet itself", a)
	case a == broadcast(n.Subnet):
		return invalid("%s is the broadcast address of %s", a, n.Subnet)
	}
	return nil
}

func (n Network) validateRouter() error {
	if !n.Router.IsValid() {
		return nil
	}
	if err := n.checkHost(n.Router); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	return nil
}

func (n Network) validateDNS() error {
	if len(n.DNS) > maxDNS {
		return invalid("%d DNS servers are given, at most %d are told to machines", len(n.DNS), maxDNS)
	}
	seen := map[netip.Addr]bool{}
	for _, a := range n.DNS {
		switch {
		case !a.Is4() || a.IsUnspecified() || a.IsMulticast():
			return invalid("DNS server %s: it is not the IPv4 address of a machine", a)
		case seen[a]:
			return invalid("DNS server %s is given twice", a)
		}
		seen[a] = true
	}
	return nil
}

func (n Network) validateRange(local []netip.Addr) error {
	r := n.Range
	if r.IsZero() {
		return nil
	}
	if !r.First.IsValid() || !r.Last.IsValid() {
		return invalid("range: it has a first and a last address")
	}
	for _, a := range []netip.Addr{r.First, r.Last} {
		if err := n.checkHost(a); err != nil {
			return fmt.Errorf("range: %w", err)
		}
	}
	if r.Last.Less(r.First) {
		return invalid("range %s: the last address is before the first", r)
	}
	if r.Contains(n.Router) {
		return invalid("range %s holds the router %s, which would be given to a node", r, n.Router)
	}
	for _, a := range n.DNS {
		if r.Contains(a) {
			return invalid("range %s holds the DNS server %s, which would be given to a node", r, a)
		}
	}
	for _, a := range local {
		if r.Contains(a.Unmap()) {
			return invalid("range %s holds %s, an address of this server, which would be given to a node", r, a.Unmap())
		}
	}
	return nil
}

func (n Network) validateMode() error {
	switch n.Mode {
	case ModeProxy, ModeOff:
	case ModeFull:
		if n.Range.IsZero() {
			return invalid("mode full gives addresses and needs a range, like 10.0.0.100-10.0.0.200")
		}
	default:
		return invalid("mode %.40q: there is proxy (another DHCP server gives the addresses), full and off", n.Mode)
	}
	return nil
}

func (n Network) validateLease() error {
	switch lease := n.Lease(); {
	case lease < MinLease:
		return invalid("lease time %s: it is at least %s, so that no machine loses its address while it boots", lease, MinLease)
	case lease > MaxLease:
		return invalid("lease time %s: it is at most %s", lease, MaxLease)
	}
	return nil
}

func (n Network) validateTexts() error {
	if n.Domain != "" {
		if err := protocol.CheckHostname(n.Domain); err != nil {
			return invalid("domain: %v", err)
		}
	}
	if err := checkChannel(n.Channel); err != nil {
		return err
	}
	if err := checkArgs(n.Args); err != nil {
		return err
	}
	return CheckNFSOptions(n.NFSOptions)
}

func checkChannel(name string) error {
	if name != "" && !namePattern.MatchString(name) {
		return invalid("channel %.80q: a channel's name has 1 to 64 letters, digits and . _ + -, and begins with a letter or digit", name)
	}
	return nil
}

func checkArgs(args string) error {
	if len(args) > maxArgs {
		return invalid("the kernel arguments have %d bytes, at most %d are sure to reach the kernel", len(args), maxArgs)
	}
	if err := protocol.CheckExtra(args); err != nil {
		return invalid("kernel arguments: %v", err)
	}
	return nil
}

func broadcast(subnet netip.Prefix) netip.Addr {
	first := subnet.Addr().As4()
	last := binary.BigEndian.Uint32(first[:]) | (1<<(32-subnet.Bits()) - 1)
	var raw [4]byte
	binary.BigEndian.PutUint32(raw[:], last)
	return netip.AddrFrom4(raw)
}
