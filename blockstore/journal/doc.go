// Package journal is the one ordered log of a store: every change of every volume is appended to it before it is acknowledged.
//
// It owns the files in its directory, the order of records (sequence number, time, position), their durability and their recovery. It knows
// nothing of volumes: the payload of control records is opaque, and whoever opens the log says from where to replay.
//
// A log is a row of files of fixed size, each holding
//
//	+--------+--------+--------+- - - -+---------+-------+- - - -+--------+
//	| header | record | record |       | zeroes… | index |       | footer |
//	+--------+--------+--------+- - - -+---------+-------+- - - -+--------+
//	0        4096                                 page            capacity − 4096
//
//	record: header (96) | descriptor of each 4 KiB sector (20) … | payload
//
// docs/format/log.md has the bytes. Each record carries a chain value that continues from the record before; the chain of a file is seeded
// with its random salt, and its header repeats where the file before it ended. The first link that does not hold ends the log. Index and
// footer are written when a file is full and all its records are synced: recovery then reads the index instead of the records.
//
// Durability. Append returns when write(2) has returned: records survive the death of the process. Sync, a group commit, makes them survive
// a power loss, of which what is left is always a prefix. A sync or write that fails ends the log for good (ErrFailed), as the state of the
// device is unknown then.
//
// Goroutines, all ended by Close: one syncs by time and amount, one prepares the next file and recycles released ones, one seals full
// files. Lock order: appender before group before state; state is held for instructions only, and only the appender is held over a write
// (see appender).
//
// Events aside, errors wrap ErrFailed or a sentinel of package block.
package journal
