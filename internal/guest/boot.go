package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Task is what the guest does once it is up.
type Task string

const (
	// TaskFsyncWriter writes numbered files, fsyncs each and prints "SYNCED n", until Count files are there or Stop is called;
	// then it reads them all back from the disk and prints "GUEST-VERIFIED n".
	TaskFsyncWriter Task = "fsync-writer"
	// TaskIdle waits for Stop.
	TaskIdle Task = "idle"
	// TaskScript runs BootOptions.Script with the guest's shell; an exit code other than 0 is a GUEST-ERROR.
	TaskScript Task = "script"

	// taskSmoke prints "GUEST-SMOKE ok" from the initramfs and powers off, with no disk.
	taskSmoke Task = "smoke"
)

// Every task prints "GUEST-READY task=… kernel=…" when it begins; then come its own markers and a "GUEST-ERROR …" line for all
// that goes wrong, then fstrim, then "GUEST-DONE", then the guest unmounts its disk and powers off.

// Accel names a QEMU accelerator.
type Accel string

const (
	KVM Accel = "kvm" // the processor's own virtualization
	TCG Accel = "tcg" // emulation: slow, and works everywhere
)

// BootOptions says how to run an image. Only Image and one of NBDURI and Disk have no default.
type BootOptions struct {
	Image          *Image
	NBDURI         string        // of the root disk: nbd+unix:///EXPORT?socket=PATH (see UnixURI) or nbd://HOST:PORT/EXPORT; its node is called root0
	Disk           []string      // in place of NBDURI: QEMU's arguments for the root disk, -object, -blockdev and -device of virtio-blk
	MemMiB         int           // default 256 MiB for Busybox, 512 MiB for Debian
	CPUs           int           // default 1
	Accel          Accel         // default TCG; DetectAccel finds the best
	ReconnectDelay time.Duration // with NBDURI, how long I/O waits for a lost NBD server before it fails; whole seconds, default 30 s
	Task           Task          // default TaskIdle, or TaskScript if Script is set
	Count          int           // files that TaskFsyncWriter writes; 0 means until Stop
	Pause          time.Duration // between two files; default none
	Script         string        // for TaskScript, which it implies
	Append         string        // added at the end of the kernel command line
}

// withDefaults fills in defaults and refuses what cannot run.
func (o BootOptions) withDefaults() (BootOptions, error) {
	if o.Image == nil {
		return o, errors.New("no image")
	}
	if o.MemMiB == 0 {
		o.MemMiB = 256
		if o.Image.Kind == Debian {
			o.MemMiB = 512
		}
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.Accel == "" {
		o.Accel = TCG
	}
	if o.ReconnectDelay == 0 {
		o.ReconnectDelay = 30 * time.Second
	}
	if o.Script != "" && o.Task == "" {
		o.Task = TaskScript
	}
	if o.Task == "" {
		o.Task = TaskIdle
	}
	if (o.Script != "") != (o.Task == TaskScript) {
		return o, fmt.Errorf("task %q with a script of %d bytes", o.Task, len(o.Script))
	}
	if o.MemMiB < 0 || o.CPUs < 0 || o.Count < 0 || o.Pause < 0 || o.ReconnectDelay < time.Second {
		return o, errors.New("a negative amount, or a reconnect delay under a second")
	}
	return o, nil
}

// kernelCommandLine returns what the guest's kernel and scripts/task.sh read.
func (o BootOptions) kernelCommandLine() string {
	words := []string{"console=ttyS0", "reboot=t", "panic=-1", "quiet", "hv.task=" + string(o.Task)}
	if o.Image.Kind == Debian {
		words = append(words, "systemd.show_status=0", "net.ifnames=0")
	}
	if o.Count > 0 {
		words = append(words, "hv.count="+strconv.Itoa(o.Count))
	}
	if o.Pause > 0 {
		words = append(words, "hv.pause="+strconv.FormatFloat(o.Pause.Seconds(), 'f', -1, 64))
	}
	if o.Append != "" {
		words = append(words, o.Append)
	}
	return strings.Join(words, " ")
}

// qemuArgs returns QEMU's command line. The machine is q35 with nothing by default, the kernel starts by PVH.
func (o BootOptions) qemuArgs(initramfs, qmpSocket string) ([]string, error) {
	args := accelArgs(o.Accel)
	args = append(args, "-machine", "q35", "-m", strconv.Itoa(o.MemMiB), "-smp", strconv.Itoa(o.CPUs),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "stdio,id=serial0,signal=off", "-serial", "chardev:serial0",
		"-kernel", o.Image.Kernel, "-initrd", initramfs, "-append", o.kernelCommandLine())
	if qmpSocket != "" {
		args = append(args, "-chardev", "socket,id=qmp0,server=on,wait=off,path="+escapeComma(qmpSocket), "-mon", "chardev=qmp0,mode=control")
	}
	if o.NBDURI == "" {
		return append(args, o.Disk...), nil
	}
	disk, err := o.blockDevice()
	if err != nil {
		return nil, err
	}
	return append(args, "-blockdev", disk, "-device", "virtio-blk-pci,drive=root0,serial=hv-root"), nil
}

// blockDevice describes the root disk in QEMU's JSON form, in which no character of a path needs an escape.
func (o BootOptions) blockDevice() (string, error) {
	server, export, err := parseNBDURI(o.NBDURI)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]any{
		"driver": "nbd", "node-name": "root0", "server": server, "export": export,
		"discard": "unmap", "detect-zeroes": "unmap", "reconnect-delay": int(o.ReconnectDelay.Seconds()),
	})
	return string(body), err
}

// accelArgs selects accelerator and processor: the host's own under KVM, QEMU's plain default under TCG.
func accelArgs(accel Accel) []string {
	if accel == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi,tb-size=256"}
}

// escapeComma doubles the commas of a value in QEMU's key=value syntax.
func escapeComma(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// Boot starts the guest and returns at once; WaitMarker tells when it is up. When ctx ends, its qemu is killed.
// The caller must call Wait, which also removes the machine's temporary folder.
func Boot(ctx context.Context, options BootOptions) (*Machine, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("boot guest: %w", err)
	}
	if (options.NBDURI == "") == (len(options.Disk) == 0) {
		return nil, errors.New("boot guest: want an NBD URI, or QEMU's arguments for a disk")
	}
	// Short, because a unix socket's path has room for 107 bytes only.
	dir, err := os.MkdirTemp("", "hvg")
	if err != nil {
		return nil, fmt.Errorf("boot guest: %w", err)
	}
	machine, err := bootIn(ctx, dir, options)
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("boot guest: %w", err)
	}
	return machine, nil
}

// bootIn starts the guest with its socket and its own initramfs in dir.
func bootIn(ctx context.Context, dir string, options BootOptions) (*Machine, error) {
	initramfs := options.Image.Initramfs
	if options.Script != "" {
		initramfs = filepath.Join(dir, "initramfs.gz")
		if err := appendScript(initramfs, options.Image.Initramfs, options.Script); err != nil {
			return nil, fmt.Errorf("add script: %w", err)
		}
	}
	qmpSocket := filepath.Join(dir, "qmp.sock")
	args, err := options.qemuArgs(initramfs, qmpSocket)
	if err != nil {
		return nil, err
	}
	return startMachine(ctx, dir, qmpSocket, args)
}

// appendScript writes to path the base initramfs and, after it, an archive with the script.
func appendScript(path, base, body string) error {
	source, err := os.Open(base)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.Create(path)
	if err != nil {
		return err
	}
	defer target.Close()
	size, err := io.Copy(target, source)
	if err != nil {
		return err
	}
	// The kernel looks for the next archive at a multiple of four bytes.
	if _, err := target.Write(make([]byte, -size&(cpioAlignment-1))); err != nil {
		return err
	}
	if err := writeScriptArchive(target, body); err != nil {
		return err
	}
	return target.Close()
}
