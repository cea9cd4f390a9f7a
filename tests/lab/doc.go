// Package lab builds small networks with real virtual machines in them, for
// tests of the whole system and for the demo.
//
// A Lab is a network namespace of its own, named sidus-<random>, with
// bridges, and with whatever is started in it: servers as processes
// (Lab.Start), servers inside the calling program (Lab.Listen,
// Lab.ListenPacket), and QEMU machines (Lab.Boot), which are plugged into the
// bridges with tap devices. The namespace itself has an address on each
// bridge: what listens in the lab listens there. Nothing of it reaches the
// networks of the host, and any number of labs may stand beside each other
// with the same addresses and names.
//
//	l, err := lab.New(lab.Options{})
//	...
//	defer l.Close()
//	_, err = l.AddBridge("lan", netip.MustParsePrefix("10.77.0.1/24"))
//	server, err := l.Start("sidus", "serve", "--listen", "10.77.0.1", ...)
//	reports, err := l.Reports("10.77.0.1:8081")
//	machine, err := l.Boot(lab.MachineOptions{Name: "node1", NICs: []lab.NIC{{Bridge: "lan"}}})
//	_, err = reports.Wait(ctx, func(r lab.Report) bool { return strings.Contains(string(r.Body), `"up"`) })
//
// A lab needs root, iproute2 (ip) and /dev/net/tun, and for machines
// qemu-system-x86_64 with the iPXE card ROMs (ipxe-qemu).
//
// Whatever happens, nothing is left over. Lab.Close ends every process,
// waits for them, and deletes the namespace. If the program that uses the lab
// ends without Close (a panic, SIGINT, SIGKILL), the kernel kills the
// processes it started, since each has the parent death signal SIGKILL, and a
// small shell that waits for the program's end deletes the namespace.
package lab
