// Package history holds the history of volumes under continuous data protection: every change of a volume, copied out of the log before the log lets it go.
//
// It owns the directory history/ of a store: for each volume a row of files (docs/format/history.md), each a row of frames that are chained by checksums, compressed where that pays, and encrypted when the
// store is. A file that is full is sealed with an index, so that an open reads its end alone, and a question about a time reads indexes and no payload.
//
//	+--------+-------+-------+- - -+-------+--------+
//	| header | frame | frame |     | index | footer |
//	+--------+-------+-------+- - -+-------+--------+
//
//	frame: header (64) | what each record did (meta) | payload of the writes
//
// A file that was thinned has what records did in its index alone, and payload by blocks: versions of a block lie in one frame, as far as it has room, so that the codec finds in the newer one what the older one has, and what is equal is there once. An order in the index
// says where the payload of each sector lies (layout). A frame never needs another one.
//
// It never looks into the log, knows nothing of maps, and starts no goroutine. A position (Stream.Append) names a sector by file and offset in what the file's records wrote; positions grow with the order
// of records, as those of the log do, and have their highest bit set, so that an overlay can point at either.
//
// Durability: a record is durable when Stream.Sync has returned. What was not synced may be lost from the end; recovery ends a file at its first frame that is not whole. A record that was split over frames counts
// as there only when all of it is: Stream.LastSeq is the last such one.
//
// Thinning (Stream.Thin) replaces a file that has grown old by one of the same id that has fewer records: only after a point (Kind.Point) of such a file are the records before it a state that the volume had. The new file is durable before
// it takes the name, files of a day that will not be thinned any more become one (join.go), and a file that somebody reads (Stream.Pin) is not replaced.
//
// A sealed file may have a sidecar with parity (Set.Guard), which takes it as bytes. It names the checksums of the file's header and footer, and is removed, durably, before the file is replaced. A read that meets damage goes on through it; Set.Mend replaces the file by a copy with the bytes that were sealed. When that is done, and
// within which budget, is for the owner to say.
//
// A file that grows fast is gathered 1 MiB at a time and written around the page cache (batch). Readers see of it what is written.
//
// Few files are open at a time (handles): there may be more than a process can have open.
//
// Locks: Stream.thinning, held by one who thins over the whole, before Stream.mu; Stream.mu, held by one appender at a time over its write, before Set.mu, file.mu, guard.mu and handles.mu, which are held for instructions only.
package history
