// Package hypervisor reads and changes definitions of machines: libvirt's domain XML (https://libvirt.org/formatdomain.html). It knows where a disk is read from, not what a volume is.
//
// A definition is changed by replacing the few places that must differ, byte for byte: whatever else is in it, of other namespaces, of versions to come, stays as it was written. Definitions come from libvirt and from backups; the latter may be hostile, so
// sizes are bounded, and what is wrong is block.ErrCorrupt.
//
// Definitions may hold passwords, of graphics for one: nothing here puts them into errors.
package hypervisor
