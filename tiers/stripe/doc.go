// Package stripe is a tier of several directories, on different disks: what one of them loses the others have.
//
// A segment that is being written lies in m+1 directories, whole. When it is sealed, whoever keeps the store asks for Stripe: it is cut into k data shards and m parity shards (Reed-Solomon), each a file of its own
// in a directory of its own, and the whole copies go. So m directories may be lost at any time, at the cost of m/k. Nobody above knows which of both a segment is.
//
//	DIR i/xx/IIIIIIIIIIIIIIII.GGGGGGGG.seg                  whole
//	DIR j/xx/IIIIIIIIIIIIIIII.GGGGGGGG.K+M.JJ.SSSSSSSS.shard shard JJ of K+M of a segment of SSSSSSSS bytes
//
// A shard has a checksum for each of its columns of 4 KiB (docs/format/shard.md). Reads check them, and reconstruct what is damaged or missing from any k of the others, before anybody sees it; Check finds and mends damage
// and makes missing shards anew. What a segment holds never changes, so a directory that comes back after a while has shards that are right or are nobody's, but may have a whole copy that others have appended to meanwhile: labels
// (package membership) tell that it was away, and its whole copies go.
package stripe
