// Package blockstore is the storage engine: volumes over one ordered log, copy-on-write maps and deduplicated segments.
//
// It owns the data directory's superblock, log, segments and metadata, and everything that changes them. It never speaks NBD or GraphQL, and it knows where a
// segment lives only through package tiers.
//
// The way of a write: Volume.Write → admission (space.go) → journal.Append → overlay → reply. Later, in the background: destage.go picks regions, cut.go cuts and hashes
// them, pack.go decides and packs frames into segments, commit.go changes the maps in one batch, and the overlay slots are dropped.
// The way of a read: overlay layers, newest first (read.go), then the map's root, then chunk row and frame (chunks.go).
//
// Lock order: Store.ops (one control operation at a time) → Volume.mu → Store.tree → Store.dirty. Store.meta (one writer of metadata) is taken before Store.tree and
// Store.dirty and never while a Volume.mu is held. No device I/O happens under Volume.mu but the log append, nor under tree or dirty.
//
// Goroutines: destager, background worker (jobs, reclaim), and the log's own; Close ends all of them.
package blockstore
