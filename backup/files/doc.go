// Package files packs files and folders into an archive that can be backed up like a disk, and unpacks it: the configuration of hosts and guests beside their volumes.
//
// The archive is a tar (POSIX.1-2001, pax). The same files in the same state make the same bytes, so that they are stored once. What is unpacked comes from a repository, and may be hostile: nothing is ever written outside the folder it is unpacked into.
package files

// Kind is that of the source of such a backup, in manifests.
const Kind = "files"
