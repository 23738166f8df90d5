// Package machine packs what a machine is beside its volumes: its definition, the variables of its firmware, the state of its TPM, small media such as a seed of cloud-init, and what its volumes are called. docs/format/machine.md has its bytes.
//
// The archive is a tar (POSIX.1-2001, pax), as of package files, which unpacks it too. The same machine makes the same bytes, so that they are stored once. What is read comes from a repository, and may be hostile: it is bounded, and read into memory.
package machine

// Kind is that of the source of such a backup, in manifests.
const Kind = "machine"
