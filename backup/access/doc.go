// Package access decides what a client may do with a backup repository that a host keeps for it: which objects it may make, read and delete, and which nobody may delete yet.
//
// It goes by the kinds of objects that docs/format/repository.md names, and by nothing in them. The rights are those of docs/format/repository-host.md. It does no I/O, keeps no state and starts no goroutine.
package access
