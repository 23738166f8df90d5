// Package nbd serves block devices over the Network Block Device protocol (fixed newstyle handshake; simple replies,
// structured replies or extended headers).
//
// It owns the protocol and nothing else: what an export is, it learns from [Exports]; what bytes it holds, from [Device]. It never logs,
// never stores and never opens a socket: the caller hands it listeners, and noteworthy events come back through [Events].
//
// # The life of a request
//
// One goroutine per connection reads the socket. While a client is idle that goroutine owns no buffer: it takes a lease (an input and an
// output buffer) when bytes are there and gives it back when the input has run dry.
//
//	socket ─read─> input buffer ─┬─ WRITE ──> batch of slices into the input buffer ─> Device.TryWrite ─┬─> output buffer ─write─> socket
//	                             ├─ READ ───> Device.TryReadAt, straight into the output buffer ────────┘
//	                             └─ FLUSH, TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS, FUA, and whatever answered ErrWouldBlock
//	                                        └─> worker goroutine with a buffer of its own ─> reply queue ─write─> socket
//
// All complete WRITE requests that lie in the input buffer reach the device as one batch; all replies of one pass leave in one system
// call. A batch is applied before any other command behind it is served. NBD promises no order between requests in flight, and none is
// kept between workers and reader.
//
// A client that has one request in flight at a time, for a while, has all of them served by the reader itself; if it flushes after each write, a device that can is told
// to flush when the write is replied (lockstep.go), and the reader waits for the next request in the kernel for a moment (stay.go).
//
// A long READ is answered in pieces by one worker, with the memory of one piece, where the framing of replies allows it (pieces.go).
//
// FLUSH is handed to the device after it was read; by then every command that had been replied has returned from the device, which is
// what the protocol asks for.
//
// # Memory
//
// Everything that a client can make the server hold is bounded: leases and worker buffers come out of one budget of bytes for the whole
// server (Options.InFlightBytes), requests at a worker out of a budget for each connection (Options.MaxSlow), connections out of
// Options.MaxConnections. When the leases are spent a connection gets a small one; when the buffers are spent its reader does by itself, one at a time, what
// fits in its lease. So requests of 4 KiB go on whatever other clients hold, and only long ones wait, and with them their client. A client that stops
// reading its replies, or stops in the middle of a request, blocks its own connection; when others wait for the memory it holds, it is dropped after
// Options.StallTimeout.
//
// Deadlock is kept out by order: a lease is taken before worker memory, never the other way round; who waits for worker memory holds no
// socket lock; and a worker needs no memory to finish.
//
// # TLS
//
// A door (Door) may offer or demand STARTTLS, with certificates (crypto/tls) or pre-shared keys (internal/tlspsk). From then on the connection reads and writes that; the socket below stays what deadlines are set on
// and what is closed. Nothing that was agreed on in plain text is kept.
//
// # Goroutines and locks
//
// Server.Serve accepts; one reader per connection; at most Options.MaxSlow workers per connection, which their reader waits for before the
// export is released. Server.Close waits for all readers. Locks, in order: sender.writing (held over a socket write), sender.mu, Server.mu;
// the latter two are never held over I/O or a call into a Device.
package nbd
