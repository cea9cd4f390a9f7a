package labdisk

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// RunCommandLine makes a machine run the file "run" of its second disk and
// power off. What it says comes out of the virtio-serial port PortName; the
// last line is "sidus-lab: exit status <n>".
const (
	RunCommandLine = CommandLine + " sidus.lab=run"
	PortName       = "sidus.lab"
)

// OutputPort is the device in the machine of [Run] that takes a suite's Output.
const (
	OutputPort = "/dev/virtio-ports/" + outputName
	outputName = "sidus.output"
)

// AccelEnv is the environment variable with QEMU's accelerator, where it is
// known to work: "kvm". Without it the machine is emulated.
const AccelEnv = "SIDUS_TEST_ACCEL"

// QEMUArgs are QEMU's arguments for a machine with this disk and a second one:
// the processor, the kernel, the disks, and a port whose output goes to the character device
// with the ID port. What the machine writes to the disks is kept in temporary
// files and thrown away.
func (d *Disk) QEMUArgs(data, port string) []string {
	drive := func(file string) string {
		return "file=" + value(file) + ",format=raw,if=virtio,snapshot=on,cache=unsafe"
	}
	return []string{
		"-cpu", processor(),
		"-kernel", d.Kernel, "-initrd", d.Initrd,
		"-drive", drive(d.Image), "-drive", drive(data),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=" + port + ",name=" + PortName,
	}
}

// value is a value of one of QEMU's options, in which a comma is written twice.
func value(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// processor is QEMU's model of the processor. Emulated, the newest one has the
// kernel do what only pays in hardware (five levels of page tables, large
// vector registers at each switch of tasks): it takes twice the time of this
// old one to boot and to start programs.
func processor() string {
	if accel := os.Getenv(AccelEnv); accel != "" && !strings.HasPrefix(accel, "tcg") {
		return "max"
	}
	return "Nehalem"
}

// boot runs a machine until it is off; out gets what comes out of its port, and
// the file output what is written to its OutputPort.
func boot(ctx context.Context, disk *Disk, data, work, output string, out io.Writer) error {
	accel := os.Getenv(AccelEnv)
	if accel == "" {
		accel = "tcg,thread=multi"
	}
	args := append([]string{
		"-name", "sidus-labdisk", "-accel", accel, "-machine", "q35", "-smp", "2", "-m", "3072",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-device", "virtio-rng-pci",
		"-chardev", "file,id=console,path=" + filepath.Join(work, "console"), "-serial", "chardev:console",
		// Not "stdio": with its standard input at the end, QEMU takes the port for
		// disconnected, and the guest's writes block.
		"-chardev", "file,id=port,path=/proc/self/fd/1", "-chardev", "file,id=output,path=" + value(output),
		"-append", RunCommandLine + " panic=-1",
	}, disk.QEMUArgs(data, "port")...)
	args = append(args, "-device", "virtserialport,chardev=output,name="+outputName)
	cmd := exec.Command("qemu-system-x86_64", args...)
	// Without TMPDIR the temporary files would outlive a QEMU that is killed.
	cmd.Env = append(os.Environ(), "TMPDIR="+work)
	cmd.Stdout = out
	var said tail
	cmd.Stderr = &said
	// It dies with this program, however that ends. The signal follows the
	// thread that started it, which therefore stays.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	ended := make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("qemu: %w: %s", err, said.text)
		}
		return nil
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-ended
		return context.Cause(ctx)
	}
}
