package trial

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"syscall"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Accel says what runs the guest's code.
type Accel string

const (
	KVM Accel = "kvm" // the processor itself
	TCG Accel = "tcg" // an emulation, ten times slower and more
)

// Buses are the ways in which a machine can have its disks, and what QEMU calls a disk there.
var buses = map[string]string{"virtio": "virtio-blk-pci", "sata": "ide-hd", "scsi": "scsi-hd"}

// Options say how to boot. Only Disks has no default.
type Options struct {
	// Disks are QEMU's ends of connections to NBD servers, whose default export is the disk. The first is booted from. Run closes them. At most MaxDisks.
	Disks []*os.File
	// Expect is what a line of the console has to match, without its end. Default: Login, unless Agent is set.
	Expect *regexp.Regexp
	// Agent wants that qemu-guest-agent answers; with Expect too, both. With neither, one of Login and the agent suffices.
	Agent bool
	// Timeout is how long all of it may take. Default 5 minutes.
	Timeout time.Duration
	// MemoryBytes of the machine, in whole MiB. Default 512 MiB.
	MemoryBytes uint64
	// CPUs of the machine. Default 1.
	CPUs int
	// Accel is KVM or TCG. Default TCG; BestAccel finds the best.
	Accel Accel
	// Bus is how the machine has its disks: virtio, sata or scsi. Default virtio.
	Bus string
	// Firmware is a file, such as that of OVMF for disks that boot by UEFI. Default: QEMU's BIOS.
	Firmware string
	// Args are further arguments of QEMU, at the end.
	Args []string
	// Program is QEMU. Default: that of this machine, as FindProgram finds it.
	Program string
	// User is whom QEMU runs as. Default: who runs this process.
	User *syscall.Credential
	// Scratch is the folder for what the guest writes, where User has to be able to make a file. Default $TMPDIR, else /var/tmp.
	Scratch string
	// ScratchBytes is how much the guest may write, to each of its disks; beyond that its writes fail. Default 16 GiB.
	ScratchBytes uint64
	// Console gets what the guest says, as it comes, stripped. Nothing is written to it after Run has returned; its errors are ignored.
	Console io.Writer

	plain bool // disks are plain files that QEMU shall open, not connections
}

// Bounds and defaults of Options.
const (
	MaxDisks       = 16
	DefaultTimeout = 5 * time.Minute
	DefaultMemory  = 512 << 20 // bytes
	minMemory      = 1 << 20   // bytes
	minScratch     = 1 << 20   // bytes
	DefaultScratch = 16 << 30  // bytes
	maxCPUs        = 255
)

// Login matches what guests say that have come up: a getty asks who is there, or systemd has reached what it boots for.
var Login = regexp.MustCompile(`^\S+ login:|Reached target .*(?i:multi-user|graphical)`)

// Check reports what makes no sense in options, as block.ErrInvalid, but that there are no disks yet.
func (o Options) Check() error {
	_, err := o.withDefaults()
	return err
}

func (o Options) withDefaults() (Options, error) {
	bad := func(format string, args ...any) (Options, error) {
		return o, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), block.ErrInvalid)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = DefaultMemory
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.Bus == "" {
		o.Bus = "virtio"
	}
	if o.Scratch == "" {
		if o.Scratch = os.Getenv("TMPDIR"); o.Scratch == "" {
			o.Scratch = "/var/tmp"
		}
	}
	if o.ScratchBytes == 0 {
		o.ScratchBytes = DefaultScratch
	}
	switch {
	case o.Timeout < 0:
		return bad("a timeout of %v", o.Timeout)
	case o.MemoryBytes < minMemory || o.MemoryBytes%(1<<20) != 0:
		return bad("%d B of memory: want whole MiB", o.MemoryBytes)
	case o.ScratchBytes < minScratch:
		return bad("%d B for what the guest writes: want %d at least", o.ScratchBytes, minScratch)
	case o.CPUs < 0 || o.CPUs > maxCPUs:
		return bad("%d processors: want 1 to %d", o.CPUs, maxCPUs)
	case buses[o.Bus] == "":
		return bad("bus %q: want virtio, sata or scsi", o.Bus)
	case o.Accel != "" && o.Accel != KVM && o.Accel != TCG:
		return bad("accelerator %q: want kvm or tcg", o.Accel)
	}
	if o.Accel == "" {
		o.Accel = TCG
	}
	if o.Program == "" {
		program, err := FindProgram()
		if err != nil {
			return o, err
		}
		o.Program = program
	}
	return o, nil
}
