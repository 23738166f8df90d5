// Package wire is an NBD client for benches, for what fio cannot do: stay idle, trim, write between snapshots, write only what has changed. It shares no code with the server.
//
// A Conn has one request under way at a time and takes simple replies. It starts no goroutine; whoever opened it closes it.
package wire
