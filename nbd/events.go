package nbd

import "net"

// Events is told what happens. Each func may be nil, is called from the server's own goroutines, at once for several connections, and must
// return quickly. Nothing is reported per successful request.
type Events struct {
	// Connected: a client has finished the handshake and may send requests.
	Connected func(Peer)
	// Disconnected: a client for which Connected was reported is gone and its export released. err is nil if it said NBD_CMD_DISC or
	// closed between two requests, and when the server drained it.
	Disconnected func(p Peer, err error)
	// HandshakeFailed: a client went away, or was sent away, without reaching an export. A client that only asked (LIST, INFO, ABORT)
	// is not reported.
	HandshakeFailed func(addr net.Addr, err error)
	// Refused: a connection was closed on arrival because MaxConnections was reached.
	Refused func(addr net.Addr)
	// RequestFailed: the device returned an error for a request that was valid.
	RequestFailed func(p Peer, f Failure)
	// Evicted: a stalled client was dropped because others waited for the memory it held.
	Evicted func(Peer)
	// AcceptFailed: accept(2) failed and will be tried again.
	AcceptFailed func(error)
}

// Peer is a client in transmission.
type Peer struct {
	Addr   net.Addr
	Export string // the export's own name, also when the client asked for the default
	// Encrypted reports TLS, and Identity is what the client proved to be (Client.Identity).
	Encrypted bool
	Identity  string
}

// Failure is a request that its device could not do.
type Failure struct {
	Command Command
	Off     uint64 // bytes
	Len     uint64 // bytes
	Told    string // what the client is told, in few constant words
	Err     error  // what the device returned
}
