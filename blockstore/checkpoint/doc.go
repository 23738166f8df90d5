// Package checkpoint is the format in which metadata rows are kept a second time, in segments, so that the loss of the database is recovery and not loss
// (docs/format/checkpoint.md).
//
// A full checkpoint holds all rows of one moment, a delta what changed between two moments. Each is a run of parts; a part is the raw bytes of one chunk of a frame of a
// segment of class metadata, so the frame's checksums and the chunk's keyed hash cover it. Parts of a delta may lie between the parts of a full.
//
//	part = header 64 B | row | row | …
//	row  = length of key u16 | length of value u32, or "deleted" | key | value
//
// Nothing here touches a file or starts a goroutine: Builder makes parts, Decode reads one, Choose finds the parts to read, in order.
package checkpoint
