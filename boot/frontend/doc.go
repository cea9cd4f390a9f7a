// Package frontend is what `sidus serve` runs: DHCP, TFTP, HTTP and NFS
// together, joined to the catalog and the store.
//
// Each server is a package of its own and asks, for each request, what it has
// to answer; so a promotion, a new node or a changed network counts from the
// next request on, and nothing is ever restarted. The servers listen on the
// addresses of one interface, or on every address of this machine that lies in
// a network of the catalog; nobody else is answered.
//
// Once it runs, the process keeps three capabilities: to read the files of all
// users (CAP_DAC_READ_SEARCH), to bind ports below 1024, and to send ARP.
package frontend
