// Package guestagent freezes and thaws the file systems of a guest through its qemu-guest-agent, so that a snapshot finds them at rest, and asks it whether the guest is up (the protocol is that of QEMU's docs/interop/qemu-ga-ref).
//
// An agent is reached at a unix socket that QEMU has made for its channel. One client at a time: libvirt keeps the channels of its domains to itself.
package guestagent
