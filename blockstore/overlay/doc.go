// Package overlay holds one layer of a volume in memory: which blocks lie in the log and are not yet destaged, and where.
//
// A Layer maps 4 KiB blocks to slots {log position, crc32c, kind}. It owns only memory, counted exactly by a Budget that all layers of a
// store share. It does no I/O, starts no goroutine, never waits for anything but a short mutex, and never refuses a publish: admission is
// its caller's business.
//
// # Shape
//
//	layer ── ranges: sorted list of Tombstone, whole 4 GiB groups        (copy on write, read without a lock)
//	      └─ shard[32], by region number
//	           └─ region 16 MiB   {zeroed at, oldest, newest, counts, 64-bit map of leaves}   64 B
//	                └─ leaf 256 KiB    {64-bit map of blocks, zero base?}                     16 B
//	                     └─ slot 4 KiB      {position, crc32c, kind}                          16 B
//
// Leaves and slots are packed: only what exists takes room, found by the rank of its bit. Packed arrays grow through size classes that
// are cut from 4 KiB slabs without pointers, so the collector has nothing to scan; empty slabs are given back.
//
// # Newer wins
//
// Publishes may come in another order than the log's. Each slot, leaf base, region tombstone and range tombstone carries its position and
// a thing is visible only if it is newer than all that covers it. Leaf bases and region tombstones remove what they cover at once. A range
// tombstone is one list entry whatever it covers; the memory of what it hides is swept in small steps: by PublishZero for a start, by any
// publish to such a region, and to the end by OldestPos, OldestRegions and DropTombstone.
//
// # What the caller must keep
//
// Three rules that a layer cannot check:
//
//   - Late publishes. A record that was appended but is not yet published must not be overtaken by a drop: if block b was written at P and
//     then at Q, and Q is destaged and dropped before P is published, then P would come to life. So maxPos of SnapshotRegion, and the
//     tombstones that are applied, must be at or below a position up to which every publish has returned. (Read the durable position, then
//     take the volume's lock exclusively once, empty; writers hold it shared across append and publish.)
//   - Release of the log. OldestPos knows only what is visible. A slot that was overwritten by a record that is not durable yet is no
//     longer counted, but a power loss needs it. So: take OldestPos, sync the log up to its end of that moment, then release.
//   - Range tombstones first. The order is: commit the detach of the range (alone or with pages of its regions in one batch), publish the
//     root, DropTombstone, and only then DropRegion of regions inside. DropRegion refuses while the tombstone is still there, because
//     blocks without a slot would read as zero instead of from their new page.
//
// # Locks
//
// Layer.ranges.mu (publishers and droppers of range tombstones) before one shard's mutex. Never two shards at once. A lookup is a
// consistent view of each region; a publish that crosses regions becomes visible region by region.
package overlay
