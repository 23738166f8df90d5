// Package tiers knows where segments live, and nobody else does.
//
// A Backend is one place for segments: a directory, later an object store. A Set names several of them and reads a segment wherever its placement
// list says it is. Moving a segment changes that list, which the engine keeps in its metadata, and nothing else.
//
// A Set owns the open handles. It never looks into a segment, keeps no placement and starts no goroutine. It may be used by any number of goroutines; its one lock is
// never held during I/O. Conformance of backends is tested by package tiers/tierstest.
package tiers
