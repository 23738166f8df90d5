// Package libvirt speaks to a libvirtd, or virtqemud, of this host: what domains it has, how they are defined, and, through the qemu-guest-agent whose channel it keeps to itself, whether their guests are at rest.
//
// It connects to unix sockets only. Calls end with their context: the connection is cut then, as the protocol has no way to take a call back, and the next one makes a new connection. What libvirtd sends is bounded.
//
// Definitions are asked for with what is secret in them where the caller says so; nothing of them is in errors or logs.
//
// A connection has the goroutines of github.com/digitalocean/go-libvirt, which end with it.
package libvirt
