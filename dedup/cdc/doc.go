// Package cdc cuts a run of bytes into chunks, by content or at fixed offsets.
//
// It owns the cut parameters, the gear table and the algorithm, which together decide where identical data is found again. They are therefore part of
// the disk format: for one TableVersion the cut points of given bytes never change (docs/rfc/0001-chunker.md, and the golden test). A better algorithm
// gets a new TableVersion beside the old one.
//
// It does no I/O, keeps no bytes and starts no goroutine. A Cutter is immutable, so any number of goroutines may use one.
package cdc
