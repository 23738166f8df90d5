// Package repository keeps chunks and manifests in a place that a backend names. docs/format/repository.md has its bytes.
//
//	config                      what it is: version, id, how to cut
//	keys/ID                     key slots
//	packs/xx/NAME               chunks
//	index/NAME                  runs that list packs and what is in them
//	manifests/NAME              backups, each the last object that its backup stores
//
// The name of a pack or run is the hash of its bytes. Nothing is ever changed, so writers need no locks: two that store the same chunk store it twice. A backup exists when
// its manifest does, and all that a manifest refers to is durable before. What a writer that died has stored is found by the next one, by the directories of packs that no
// run lists, and need not be stored again.
//
// A Writer compresses and seals in goroutines of its own, which Close and Flush wait for. Lock order: Writer.mu, Writer.pending, Index.mu.
package repository
