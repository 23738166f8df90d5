// Package remote keeps the objects of a repository at another hvd, which is their host: the names of such places, the messages (docs/format/repository-host.md), and a backend that is a client. The host itself is package backup/host.
//
// It is HTTP/1.1 under TLS 1.3 with certificates on both sides. An object is one PUT that the host carries out only if there is none under the key. What may be mended by another try is tried again, as with object storage; a PUT whose answer
// was lost and which is refused the next time is compared with what is there by its hash, as who may append may not read. A host is believed nothing that a reader goes by: answers are bounded and must be what was asked for.
//
// The package starts no goroutine that outlives a call but those of the connections, which Close ends.
package remote
