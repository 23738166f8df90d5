// Package idset is an exact set of dense numbers, such as chunk ids, in two levels: a table of pages, and of each page that has a member its bits.
//
// It owns its memory and nothing else, and is never shared: one goroutine uses a Set. A set of ids that were given one after the other takes a bit for each, 8 MiB for 64 Mi chunks, which is a TiB of chunks of
// 16 KiB; where whole pages of 32,768 ids have no member they take 8 bytes.
package idset
