// Package segment reads and writes segments: append-only files of at most 64 MiB that hold frames of compressed chunks, a directory and
// a footer. It is the only encoder of those bytes; docs/format/segment.md and docs/format/frame.md describe them for other readers.
//
//	+--------+-------+-------+- - -+-------+-----------+- - - - -+--------+
//	| header | frame | frame |     | frame | directory | zeroes  | footer |
//	| 4 KiB  |       |       |     |       |           |         | 256 B  |
//	+--------+-------+-------+- - -+-------+-----------+- - - - -+--------+
//
//	frame = header 64 B | chunk table 48 B each | payload
//
// An open segment ends behind its last frame and is read by frame offset; a sealed one also tells what it holds. Frames describe themselves, so
// what a crash left of an open segment can be scanned, and sealed afterwards (Reseal); the zeroes cover bytes that were never committed.
//
// Every structure has a magic, a version and a CRC32C of its own, and every length is checked against its bound before anything is allocated. A CRC finds
// damage of the device. That the bytes are those of the right chunk is for the caller to check, with the hash that the chunk table and the caller's
// row give; that the file is the right one, with CheckHeader.
//
// Nothing here knows where a segment lives: a Writer gets a Sink, readers an io.ReaderAt. No goroutines are started. Encoder, Decoder and Writer belong to one
// goroutine each.
package segment
