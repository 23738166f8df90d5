// Package replica is what two hvd say to each other when one keeps a copy of the other's volume: the names of targets, the messages, the stream of what has changed (docs/format/replica.md), and a client,
// which comes under TLS with certificates on both sides.
//
// It opens no volume and keeps no state. Who may do what, which point a stream begins from and what becomes of it is decided by package control; the server is in package api.
//
// Goroutines: one while Client.Send runs, which has ended when it returns.
//
// A stream, all integers little-endian; a header of 32 bytes, then frames, each a header of 32 bytes and its payload:
//
//	| magic "HVREPLIC" | version u32 | 0 u32 | size of the volume u64 | 0 u32 | crc32c u32 |
//	| kind u32 | payload u32 | offset u64 | length u64 | crc32c of the payload u32 | crc32c u32 |
//
// Frames are in the order of their offsets and do not overlap. What is in no frame is as in the point that the stream begins from.
package replica
