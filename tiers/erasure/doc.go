// Package erasure makes parity sidecars of sealed segments, finds damage with them and mends it. It owns the bytes of a sidecar (docs/format/parity.md) and nothing else: where
// segments and sidecars live, and when one is made, is for its callers to say.
//
// A segment is cut into columns of 4 KiB, and these into k data shards, each a contiguous run of the file. One column of each shard makes a stripe, which gets m parity columns
// (Reed-Solomon). So what is lost in one place, up to m shards of it, hits each stripe m times at most; and what is lost here and there hits most stripes once.
//
//	segment   | shard 0: columns 0 … S-1 | shard 1: S … 2S-1 |  …  | shard k-1 |
//	stripe s      column s                   column S+s               column (k-1)S+s     and m parity columns
//
//	sidecar   | group 0 | group 1 | … |      a group is up to 32 stripes:
//	          +------+----------------------------------+------+
//	          | head | parity columns, shard after shard | head |     the same head twice
//	          +------+----------------------------------+------+
//
// Reed-Solomon mends what is known to be lost, and cannot say what is: each head holds a CRC32C of every column of its group, data and parity. A head names the segment it belongs
// to, so that one of another store, generation or footer is never used; and each group stands alone, so that a sidecar that is damaged or cut short still helps with the rest.
//
// What was reconstructed is compared with its checksum before anybody sees it: damage beyond reach is an error, never wrong data. No goroutines are started; memory is
// bounded by the k+m columns of a group (Coder, about 2.3 MiB at 16+2), and by 4 bytes for each column of an open sidecar.
package erasure
