package trial

import (
	"fmt"
	"strconv"
)

// firstFD is the number that the first file has which is handed to a program.
const firstFD = 3

// args returns QEMU's arguments. Its files are the disks, the serial console and the agent's channel, in that order.
func (o Options) args() []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "std", // some loaders want a screen
		"-machine", "q35,graphics=off", // the BIOS, and loaders that call it, write to the serial console, too
		"-nic", "none", "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-m", strconv.FormatUint(o.MemoryBytes>>20, 10), "-smp", strconv.Itoa(o.CPUs),
		"-device", "virtio-rng-pci", // or a guest without a network waits for chance
	}
	if o.Accel == KVM {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		args = append(args, "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max")
	}
	if o.Firmware != "" {
		args = append(args, "-bios", o.Firmware)
	}
	if o.Bus == "scsi" {
		args = append(args, "-device", "virtio-scsi-pci,id=scsi0")
	}
	for i := range o.Disks {
		at := fmt.Sprintf("file.driver=nbd,file.server.type=fd,file.server.str=%d", firstFD+i)
		if o.plain {
			at = fmt.Sprintf("file.driver=file,file.filename=/dev/fdset/%d", i)
			args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", firstFD+i, i))
		}
		args = append(args,
			"-drive", fmt.Sprintf("if=none,id=disk%d,driver=raw,%s,snapshot=on,discard=unmap,werror=report,rerror=report", i, at),
			"-device", fmt.Sprintf("%s,drive=disk%d,bootindex=%d", buses[o.Bus], i, i+1))
	}
	serial := firstFD + len(o.Disks)
	args = append(args,
		"-chardev", fmt.Sprintf("socket,id=serial0,fd=%d", serial), "-serial", "chardev:serial0",
		"-chardev", fmt.Sprintf("socket,id=agent0,fd=%d", serial+1), "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent0,name=org.qemu.guest_agent.0")
	return append(args, o.Args...)
}
