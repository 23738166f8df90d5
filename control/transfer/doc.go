// Package transfer moves the content of a volume through a byte stream, with its holes: what import, export and, later, copies between
// stores speak. It knows a device and a stream, but no HTTP and no volume.
//
// The stream (docs/format/transfer.md), integers little-endian:
//
//	header  32 B | magic "HVSTREAM" | version u32 | flags u32 = 0 | size u64, or 2^64-1 | reserved u32 = 0 | crc32c u32 of the 28 bytes before |
//	frame   32 B | kind u32 | payload u32 | offset u64 | length u64 | crc32c of payload u32 | crc32c u32 of the 28 bytes before | then the payload
//
//	kind 1 data    payload = length, at most 4 MiB
//	kind 2 hole    payload = 0; length bytes that read as zeroes
//	kind 3 end     payload = 0; offset = the size of the content; length = 0
//	kind 4 failed  payload = a message of at most 4 KiB; offset = how far the sender came; length = 0
//
// Frames ascend and touch: each begins where the one before ended. So a stream that was cut, at any byte, is seen to be cut.
// These constants are part of the wire format and should not be changed.
package transfer
