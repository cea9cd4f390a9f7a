// Package transfer brings snapshots, and what else a site is, from one Sidus to
// another: by ssh, or by TLS with a token. docs/replication.md describes the
// protocol.
//
// Two programs talk over one full-duplex stream of bytes: a sender, who asks,
// and a receiver (Receiver.Serve), who answers. The sender learns what the
// receiver holds (Client.Inventory), lets the planner of export/replicate decide,
// sends snapshots in the stream format of export/stream, and last the catalog
// and the secrets, which the receiver takes over in one transaction.
//
// What was cut goes on: finished snapshots are never sent again, and of one
// that is not, the parts that have arrived and come out of the sender the same
// are left out.
package transfer
