// Package portmap tells clients on which ports programs listen: the port
// mapper, version 2 (RFC 1833, section 3), and the questions of rpcbind,
// versions 3 and 4, that clients ask (section 2), by UDP and TCP on port 111.
//
// Announce takes port 111 if it is free. If a port mapper runs on the machine
// already, the programs are registered there instead; nothing that somebody
// else has registered is replaced.
//
// The server tells only what its own process offers. Nobody can register with
// it, and it forwards no calls (CALLIT).
package portmap
