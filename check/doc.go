// Package check reads a closed store and says whether it is whole: the second reader of every format, written from docs/format/.
//
// It shares no decoder with the engine, so that a mistake in one of the two shows as a difference between them. It imports package block for nouns, Pebble, BLAKE3 and the
// decompressors, and nothing else of this project; a test keeps it so.
//
// It never writes: every file is opened for reading, and Pebble gets a file system that refuses to change anything. It takes the store's lock shared, so it refuses a
// store that a daemon has open, and a daemon refuses a store that is being checked. The lock belongs to the process (POSIX record locks): do not call this package from
// the process that has the store open.
//
// Of a store that is encrypted it checks checksums, and with Options.Unwrap also what they are over: the tag of each frame, log record and sector, and what they hold.
//
// What is checked, in this order:
//
//	superblocks   both copies, their generations, the id of the domain key
//	metadata      every row by itself: version, length, reserved bytes, checksum where there is one
//	tree          volumes and nodes form a forest; bounds, births, names
//	log           every file from the watermark on: header, each record, each payload, index, footer, and that the files follow one another
//	segments      header, each frame, each chunk's keyed hash, directory, footer, and that rows and files agree
//	chunks        each row against the frame it points at; each hint against its row
//	maps          each page and node that a root, a deadlist or a job holds, exactly once; deadlists against what the maps really dropped
//	references    each count against the insertions that are alive
//	counters      next ids, totals
//	parity        each sidecar's heads, sums and parity, computed anew from its segment
//	checkpoints   what is journaled can be read, and rows without a marker are as it says
//	scrub         the record of the last scrub
//	gc            the record of garbage collection
//
// Memory. A bit for each page, node and chunk id, four bytes for each chunk, 64 MiB for a segment, the block cache, and for one node at a time an entry of a few words for
// each extent and page that it dropped and its ancestor has. About 1 GiB for 100 million chunks.
//
// Findings are bounded by Options.MaxFindings; the rest is counted. Everything runs in the caller's goroutine.
package check
