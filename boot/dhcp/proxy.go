package dhcp

import (
	"context"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"sidus/boot/pxe"
)

// The vendor options of PXE 2.1 (RFC 4578 leaves option 43 to them).
const (
	pxeDiscoveryControl = 6
	pxeBootItem         = 71
	pxeEnd              = 255
	// pxeUseFile in the discovery control: load the file named in this very
	// offer, look for no boot server.
	pxeUseFile = 8
)

// proxy answers a machine on port 67 that gets its address elsewhere: its
// DISCOVER only, if it is firmware or iPXE, with an offer of no address.
func (e *engine) proxy(ctx context.Context, q query) *answer {
	if q.MessageType() != dhcpv4.MessageTypeDiscover {
		return nil
	}
	file, ok := q.bootFile()
	if !ok {
		return nil
	}
	r := e.reply(q, dhcpv4.MessageTypeOffer)
	e.class(q, r)
	switch {
	case q.firmware.Arch == pxe.ArchBIOS || q.firmware.IPXE || q.firmware.HTTP:
		e.tell(q, r, file)
		if !q.firmware.HTTP {
			r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation,
				[]byte{pxeDiscoveryControl, 1, pxeUseFile, pxeEnd}))
		}
	default:
		// Some UEFI firmware passes over offers with a discovery control; all
		// of it, offered neither that nor a file, asks on port 4011.
		r.ServerIPAddr = e.self.AsSlice()
	}
	e.stats.offers.Add(1)
	e.log.info("dhcp: offered %s to %s, which gets its address elsewhere", file, q.ClientHWAddr)
	e.step(ctx, q, addrOf(q.ClientIPAddr))
	return e.send(q, r)
}

// bootServer answers a machine that has an address on port 4011.
func (e *engine) bootServer(ctx context.Context, q query) *answer {
	t := q.MessageType()
	if t != dhcpv4.MessageTypeRequest && t != dhcpv4.MessageTypeInform {
		return nil
	}
	file, ok := q.bootFile()
	if !ok {
		return nil
	}
	r := e.reply(q, dhcpv4.MessageTypeAck)
	e.class(q, r)
	e.tell(q, r, file)
	r.ClientIPAddr = q.ClientIPAddr
	// A client that was told of boot servers wants its choice confirmed.
	vendor := dhcpv4.Options{}
	if vendor.FromBytes(q.Options.Get(dhcpv4.OptionVendorSpecificInformation)) == nil {
		if item := vendor[pxeBootItem]; len(item) == 4 {
			r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation,
				append(append([]byte{pxeBootItem, 4}, item...), pxeEnd)))
		}
	}
	e.stats.acks.Add(1)
	e.log.info("dhcp: told %s to load %s", q.ClientHWAddr, file)
	e.step(ctx, q, addrOf(q.ClientIPAddr))
	if q.from.Addr().IsUnspecified() {
		return e.send(q, r)
	}
	return &answer{packet: r, to: q.from}
}

// class says in r that a PXE or HTTP boot server answers.
func (e *engine) class(q query, r *dhcpv4.DHCPv4) {
	class := classPXE
	if q.firmware.HTTP {
		class = classHTTP
	}
	r.UpdateOption(dhcpv4.OptClassIdentifier(class))
}
