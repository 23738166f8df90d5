// Package dedup decides what a chunk is: its identity, and whether its bytes are worth storing or compressing at all.
//
// It owns no state beyond a hasher's scratch and does no I/O. Identity is BLAKE3-256 keyed with the store's domain key, so that equal
// bytes have equal ids inside one domain and ids tell nothing outside it. Where chunks are cut is decided by package dedup/cdc.
//
// Nothing here is shared between goroutines: a Hasher belongs to one, and the functions are pure.
package dedup
