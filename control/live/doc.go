// Package live serves a volume whose content is still coming, as from a backup: a Restore knows what of it has come, has a puller fetch what a guest reads before that, and puts what comes
// only where nothing has been written meanwhile. It knows devices and a stream (control/transfer), and neither HTTP nor a repository.
//
// It owns no volume and no file. The caller opens the devices, and keeps what a restart has to know: the volumes' names, and how far the content has been reached.
//
// # What has come
//
// A block of 4 KiB has come when one of these holds, and never stops having come:
//
//	it lies before `reached`: what the puller has not sent before that is zeroes
//	any byte of it is not zero: it was pulled, or a guest wrote it
//	its mark is set: it reads as zeroes, or may, although it is not as the backup has it
//
// Marks are needed because the engine keeps no difference between a block that was never written and one that was written with zeroes. They are bits in a second volume of the same engine, whose
// one ordered log keeps them before the writes, trims and zeroes that they are for, across the death of the process and of the machine, and makes them durable with the same flush. A mark is
// written only for what zeroes: whole blocks of zeroes, parts of blocks, trims, and holes that the puller told of out of order.
//
// What has come is always looked up before the engine is asked: then zeroes that it reads are there for good reason.
//
// Goroutines: Pull runs one beside its caller's. Locks: a claim on ranges (claims.go) is held over the engine's writes, marks.turn is taken under it; Restore.mu, marks.mu and claims.mu guard tables and are never held over I/O.
package live
