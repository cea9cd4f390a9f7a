package portmap

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"sidus/export/internal/xdr"
)

// The numbers of ONC RPC (RFC 5531), the port mapper and rpcbind (RFC 1833).
const (
	program = 100000

	procNull        = 0
	procSet         = 1
	procUnset       = 2
	procGetport     = 3 // in versions 3 and 4: GETADDR
	procDump        = 4
	procCallit      = 5
	procGettime     = 6 // from version 3 on
	procGetversaddr = 9 // from version 4 on

	maxAuth   = 400
	maxString = 1024

	success      = 0
	progUnavail  = 1
	progMismatch = 2
	procUnavail  = 3
	garbageArgs  = 4
)

// answer returns the reply to a call, or nil if there is none. local is the
// address at which the client reached the server.
func answer(mappings []Mapping, message []byte, local netip.Addr) []byte {
	d := xdr.Decoder{Data: message}
	xid, kind, rpc := d.Uint32(), d.Uint32(), d.Uint32()
	prog, vers, proc := d.Uint32(), d.Uint32(), d.Uint32()
	if d.Bad || kind != 0 {
		return nil
	}
	if rpc != 2 { // MSG_DENIED, RPC_MISMATCH
		return xdr.AppendUint32(nil, xid, 1, 1, 0, 2, 2)
	}
	for range 2 { // credentials and verifier
		d.Uint32()
		d.Opaque(maxAuth)
	}
	if d.Bad { // MSG_DENIED, AUTH_ERROR, AUTH_BADCRED
		return xdr.AppendUint32(nil, xid, 1, 1, 1, 1)
	}
	accepted := func(status uint32) []byte { return xdr.AppendUint32(nil, xid, 1, 0, 0, 0, status) }
	switch {
	case prog != program:
		return accepted(progUnavail)
	case vers < 2 || vers > 4:
		return xdr.AppendUint32(accepted(progMismatch), 2, 4)
	}
	out := accepted(success)
	var known bool
	if vers == 2 {
		if proc == procCallit {
			return nil // RFC 1833, section 3.2: no reply unless the call was made
		}
		out, known = answerV2(mappings, proc, &d, out)
	} else {
		out, known = answerRPCB(mappings, vers, proc, &d, out, local)
	}
	switch {
	case !known:
		return accepted(procUnavail)
	case d.Bad:
		return accepted(garbageArgs)
	}
	return out
}

// answerV2 answers a call of the port mapper.
func answerV2(mappings []Mapping, proc uint32, d *xdr.Decoder, out []byte) ([]byte, bool) {
	switch proc {
	case procNull:
	case procSet, procUnset, procGetport:
		m := Mapping{Program: d.Uint32(), Version: d.Uint32(), Protocol: d.Uint32()}
		d.Uint32()
		if proc != procGetport {
			return xdr.AppendUint32(out, 0), true // FALSE: not done
		}
		found := find(mappings, m)
		return xdr.AppendUint32(out, uint32(found.Port)), true
	case procDump:
		for _, m := range mappings {
			out = xdr.AppendUint32(out, 1, m.Program, m.Version, m.Protocol, uint32(m.Port))
		}
		return xdr.AppendUint32(out, 0), true
	default:
		return out, false
	}
	return out, true
}

// answerRPCB answers a call of rpcbind, version 3 or 4.
func answerRPCB(mappings []Mapping, vers, proc uint32, d *xdr.Decoder, out []byte, local netip.Addr) ([]byte, bool) {
	switch {
	case proc == procNull:
	case proc == procSet || proc == procUnset || proc == procGetport || vers == 4 && proc == procGetversaddr:
		m := Mapping{Program: d.Uint32(), Version: d.Uint32(), Protocol: TCP}
		netid := string(d.Opaque(maxString))
		d.Opaque(maxString) // address, owner
		d.Opaque(maxString)
		if proc == procSet || proc == procUnset {
			return xdr.AppendUint32(out, 0), true
		}
		if strings.HasPrefix(netid, "udp") {
			m.Protocol = UDP
		}
		found := find(mappings, m)
		text := ""
		if found.Port != 0 && (proc == procGetport || found.Version == m.Version) {
			text = universal(local, found.Port)
		}
		return xdr.AppendOpaque(out, []byte(text)), true
	case proc == procDump:
		for _, m := range mappings {
			out = xdr.AppendUint32(out, 1, m.Program, m.Version)
			out = xdr.AppendOpaque(out, []byte(m.netid()))
			out = xdr.AppendOpaque(out, []byte(universal(local, m.Port)))
			out = xdr.AppendOpaque(out, []byte("sidus"))
		}
		return xdr.AppendUint32(out, 0), true
	case proc == procGettime:
		return binary.BigEndian.AppendUint32(out, uint32(time.Now().Unix())), true
	default:
		return out, false
	}
	return out, true
}

// find returns the mapping of a program. If there is none of the version
// asked for, another is returned: the program itself then tells which
// versions it has (RFC 1833, section 3.2 leaves this open; rpcbind does so).
func find(mappings []Mapping, want Mapping) Mapping {
	var other Mapping
	for _, m := range mappings {
		if m.Program == want.Program && m.Protocol == want.Protocol {
			if m.Version == want.Version {
				return m
			}
			other = m
		}
	}
	return other
}
