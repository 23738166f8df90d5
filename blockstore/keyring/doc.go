// Package keyring keeps the keys of a store that is encrypted at rest: what is in its file `keys`, and what is derived from that.
//
// A ring holds the domain key, which makes the identity of chunks, and master keys, each with an id. What is written is sealed under keys derived from the newest; what was written before a rotation stays under
// the older one whose id it names, which the ring keeps. The ring is wrapped, whole, once for each of its age recipients: X25519 or the post-quantum hybrid. Any of their identities opens it.
//
//	hyper-nixos keys 1 crc32c\n
//	{"store": …, "slots": [{"recipient": …, "label": …, "added": …, "sealed": …} …], "mac": …}
//
// docs/format/keys.md has the bytes. The package reads and writes no file, starts no goroutine and holds no lock. A Ring is not changed after it was shared.
package keyring
