// Package marks holds sets of dense ids, as those of chunks, in exact two-level bitmaps within a bound of memory.
//
// The first level is a table of leaves, the second a bit for each of 32,768 ids; a leaf without ids is not there. So a set of ids without gaps takes a bit for each, and 1 TiB
// in chunks of 16 KiB takes 8 MiB. Ids are never given twice, so after years they have gaps, and a set of a few ids far apart would take a leaf for each. A set therefore
// has a bound: when its leaves are used up it gives the highest one up and covers only the ids below from then on (End). Whoever wants all goes over the ids again from
// there; what a set covers is always exact.
//
// A set belongs to one goroutine. It starts none, and touches no disk.
package marks
