// Package http serves by HTTP what machines fetch and say while they boot and
// run: kernel and initrd, iPXE scripts, boot loaders for firmware that boots
// by HTTP, and the reports of the agents.
//
//	GET  /v1/boot/<snapshot>/kernel, …/initrd      ranges, HEAD, an ETag that is the snapshot's ID
//	GET  /v1/ipxe/<mac>                            the script of one machine; opens its session
//	GET  /v1/ipxe                                  a script that goes on to the former
//	GET  /v1/loader/<name>                         a boot loader
//	POST /v1/sessions/<session>/report             the agent's report, see boot/protocol
//	GET  /healthz                                  200 while the server can work
//	GET  /metrics                                  figures in Prometheus' text form
package http
