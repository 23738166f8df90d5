// Package framecache keeps decoded frames under a byte budget, so that a chunk that is read again costs one copy.
//
// It owns the memory of those frames and nothing else: it reads no device, checks no checksum and starts no goroutine. What is put in must have passed its checks; a chunk
// whose hash was not checked yet is not given out before Verified says that it was.
//
// # Admission
//
// S3-FIFO (Yang, Zhang, Qiu, Yue, Vigfusson: "FIFO queues are all you need for cache eviction", SOSP 2023): a new frame enters a small queue, a tenth of the memory, and
// goes into the main queue only if it was asked for again while it was there, or came back soon after it had left, which a ghost table without bytes tells. So a scan passes through the
// tenth and leaves what is hot alone. When hardly any frame of the small queue is asked for again, as with reads all over a large volume, most new frames are not kept at all: to copy each of them
// into memory that no CPU cache holds costs more than what comes of it. One in eight goes on telling whether that is still so. Reads of one frame that follow each other closely are one use: a sequential reader of 4 KiB asks for a frame of 16 KiB four times.
//
// # Memory
//
// Frames lie in pages of 2 KiB outside the heap, cut from one mapping for each shard: the collector has nothing to scan, and does not let the heap grow by as much again for them. Memory
// that was never used is not there. A frame's pages need not be neighbours; each names the next.
//
//	frame ── {hash, offset, length} for each chunk, 40 B ── raw bytes of all chunks
//
// # Locks
//
// One mutex for each shard, held over a copy and never over anything that waits.
package framecache
