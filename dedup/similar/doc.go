// Package similar finds chunks that are much alike without being equal, such as two versions of a database page or of a log, so that they can be compressed together.
//
// A Sketch is twelve features of a chunk: for each of twelve linear transforms of a rolling hash, the largest value that a sample of the chunk's positions reaches. The share of
// features that two chunks have in common estimates how much of their content they share (Broder, "On the resemblance and containment of documents", 1997). Positions are sampled
// by content, one in 128, before they are transformed, as Odess does it (Zou, Deng, Xia, Shilane, Tan, Zhang, Wang: "Odess: Speeding up Resemblance Detection for Redundancy Elimination by
// Fast Content-Defined Sampling", ICDE 2021): that is what makes a sketch cost no more than a cut. Four features make a super-feature, as in Finesse (Zhang, Xia, Feng, Jiang, Hua, Wang:
// "Finesse: Fine-Grained Feature Locality based Fast Resemblance Detection for Post-Deduplication Delta Compression", FAST 2019): two chunks with one of three in common are very likely alike, and
// a table can be asked for that.
//
// It holds no state, does no I/O and starts no goroutine. Nothing of it is on any disk, so it may change.
package similar
