// Package guest builds and boots a real Linux machine, for the demo and for the end-to-end tests.
//
// Prepare obtains a Debian kernel and userland through the system's ordinary apt, installs nothing, and leaves in a cache
// folder a vmlinux, an initramfs and a raw ext4 root disk. Boot runs them under qemu-system-x86_64 with the root disk on
// an NBD export. What the guest does is chosen on its kernel command line (hv.task=…); what it did is told by marker lines
// on its serial console, and proved afterwards by CheckFiles, which reads the exported disk with e2fsprogs.
//
// The package owns the cache folder, the programs it starts and a temporary folder per machine. It never writes the disk of
// an Image (callers copy or import it), never needs root for the busybox guest, and never leaves a qemu behind once the
// context of Boot ends.
//
// A Machine has two goroutines, both ended before Wait returns: one reads the serial console, one waits for qemu.
package guest
