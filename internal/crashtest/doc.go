// Package crashtest judges what a store shows after a crash.
//
// Clients run random operations against a store, each on volumes of its own and one operation at a time, so the log order of each client is known; between clients it is
// known by the times of issue and reply. Every 512-byte sector that a client writes carries a token that names the operation, so each sector of a recovered store tells who
// wrote it, and a torn one is seen at once.
//
// The Recorder notes issue and reply of every operation, flushes included. The Verifier takes the Image of a recovered store and decides whether it is legal:
//
//   - Each client's volumes, snapshots and sizes together are the state after some first part of its operations. An operation that the log takes as several records may
//     be there in part, as whole records.
//   - After the death of a process that part holds every operation that was replied to.
//   - After a power loss it holds every operation that was replied to before the last completed flush was issued. And it is a prefix across clients: where an operation is
//     there, all that were replied to before it was issued are there too.
//
// The package knows no store: tests give it a Target to run operations on and a Source to read back. It starts no goroutine.
package crashtest
