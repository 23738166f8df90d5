// Package control opens every part of hvd, owns its life, and offers what can be done with a store as use cases: volumes, snapshots,
// attachments, tokens, streams of volume data.
//
// It owns DIR/control (attachments, limits, quotas, groups, restores, replications, schedules and tokens, docs/format/control.md) and the NBD sockets. It checks names and sizes, keeps two
// operations on one volume apart, and refuses what would pull a volume away under a client. It moves no block itself: NBD requests go
// from package nbd straight to the engine's device, streams through control/transfer.
//
// Package api puts GraphQL and the streams in front of it. Who may call what is decided there; every caller of this package may do
// everything.
//
// Names with a leading dot are its own: ".import-…" is a volume that is still being filled, ".export-…" a snapshot that a running export
// reads, ".clone-…" one that the engine makes to clone a volume as it is, ".restore-…" the marks of a volume that is restored while it is used (package live), ".point-…" a state that a replication has on both sides (package replica). What a crash leaves of them is deleted at the next start.
//
// Goroutines: one per NBD socket, one per volume, or group of volumes, that is replicated to another hvd, one more for each volume that it sends, and of a group one for each of the four that are sent at once, one for the schedules of snapshots, one that looks at what alarms are about, one for a running settle, and one for a running survey. Close ends all of them and waits for imports and exports.
//
// Locks: reservations of names (reserve.go) are held over a whole operation and are not a mutex. Control.mu and Tokens.mu guard tables and
// are never held over I/O or a call into the engine; Control.saving and Tokens.saving order the writers of one small file each, and are
// taken before them. scheduler.running is held while schedules run, and is taken before names are reserved. An attachment's own mu is held while its device opens or closes, and no other is taken under it.
package control
