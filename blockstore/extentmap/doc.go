// Package extentmap is the copy-on-write map of a volume: which chunk holds which bytes.
//
// A volume is cut in regions of block.RegionSize (16 MiB). A page lists the extents of one region, a node holds up to 256 children, and a Root names the top of the
// tree. Pages and nodes are immutable values in Pebble; an Update writes new ones and a new Root, so an old Root stays readable until its owner frees it.
//
//	Root ──► node (level 2) ──► node (level 1) ──► page (level 0) ──► extents of region r
//	          256 children       256 children
//
// A large page of which an update changes little is kept in parts: its row lists them, and each is a row of up to 64 extents that later states share until they touch it. So what
// a state costs goes with what it changed (openpage.go says when). To readers such a page is a page like others.
//
// The package owns the bytes of pages and nodes (docs/format/page.md), of reference counts, deadlist rows and jobs (docs/format/references.md). It does not own the
// policy: an Update says what was born and what was killed, and the engine applies the birth rule. It starts no goroutine and never syncs; durability is that of
// the batch it was given.
//
// Births. Every extent, page and node carries the epoch of the layer that brought it. A page is at least as young as its extents and a node at least as young as its
// children, so a subtree that was born at or before an epoch holds nothing newer, and walks skip it without reading it.
//
// References are counted per insertion of an extent, never per copy of a page. Extents that continue one another are never merged: each keeps its own insertion,
// so the counts stay exact; a region that has fallen to pieces is cut again by the engine (Page.Fragments says so).
//
// Concurrency. A Map and a Cache may be used by any number of goroutines. An Update, Refs and Deadlist belong to one goroutine, the one that owns the batch.
package extentmap
