// Package synth makes large stores in seconds, for tests and benchmarks: it writes the rows of a map of millions of extents into the metadata of a store that was closed in
// order, as docs/format/meta.md, page.md and references.md say. What the engine makes of such a store is the engine's own work from there on.
//
// There are two kinds of map. One refers to new chunks that exist as rows only (New): ids, hashes by a seeded generator, and a plausible place in segments, for which there
// are no files. All of the engine works on it but reads of that data, and moves of it. The other one refers to chunks that the store has already (Shared), many times each:
// every byte can be read, and store check finds nothing.
//
// The rows are written as sorted tables that Pebble takes in, prefix by prefix, so the cost is that of writing them: about a million extents a second.
//
// Nothing but tests and benchmarks imports it. It starts a goroutine for each prefix and waits for them.
package synth
