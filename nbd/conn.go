package nbd

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// conn is one client. Its fields belong to the reader goroutine unless said otherwise; while the client is idle it owns no buffer.
type conn struct {
	srv     *Server
	nc      net.Conn // the socket; anyone may set its deadlines and close it
	exports Exports
	tls     *TLS            // nil if the door has none
	forced  bool            // TLS is required of this client
	ctx     context.Context // ends when the client is gone or cut off
	cancel  context.CancelFunc
	done    chan struct{} // closed when the export is released and the connection forgotten

	// What the handshake agreed on.
	stream     net.Conn   // what is read and written: nc, or encrypted
	encrypted  secureConn // nil in plain text
	proved     Client     // what TLS proved of the client
	noZeroes   bool
	framing    framing
	contexts   []metaContext // selected for metaExport; nil if none
	metaExport string        // name as the client gave it
	dev        Device
	ahead      AheadFlusher // dev, if it can
	paced      Paced        // likewise
	release    func()
	entered    bool   // guarded by srv.mu until serve begins
	exportName string // likewise
	identity   string // likewise; see Client.Identity
	tenantName string // whose share of the memory counts

	// Input and output of the reader (input.go, reply.go).
	raw      syscall.RawConn // nil if nc has none
	readable func(fd uintptr) bool
	got      int
	gotErr   error
	fillMax  int   // bytes to read at most next time, 0 for no bound
	partial  int64 // when the part of a request came that is at the head of the input, Unix ns; 0 if there is none
	head     [maxRequestSize]byte
	ls       *lease
	r, w     int // unread input is ls.in[r:w]
	o        int // unsent output is ls.out[:o]
	batchFUA bool
	tally    tally
	step     lockstep
	count    func(fd uintptr) // countUnread, if raw is not nil
	unread   int              // bytes that it found
	poll     [1]unix.PollFd
	pollFor  unix.Timespec

	// Work that is elsewhere (slow.go).
	slots      chan struct{}       // one for each task not yet replied
	share      *semaphore.Weighted // this connection's bytes of buffers
	tenant     *tenant             // its volume's part in the server's
	workers    sync.WaitGroup
	unanswered atomic.Int32 // tasks whose reply is not on its way
	sender     sender
	vector     int // bytes that the sender writes at once

	// Set by anyone.
	draining   atomic.Bool
	evicted    atomic.Bool
	goodbye    atomic.Bool  // the client disconnects as it should
	busy       atomic.Bool  // the reader does a request by itself
	readStall  atomic.Int64 // when the reader began to wait for the rest of a request, Unix ns; 0 if it does not
	writeStall atomic.Int64 // when the write that is under way began, Unix ns; 0 if none is
}

// Why a connection ended, where it is not an error of the socket.
var (
	errDisconnect = errors.New("nbd: client said goodbye")
	errBadMagic   = errors.New("nbd: request with a wrong magic number")
	errAbsurd     = errors.New("nbd: payload too long to be drained")
)

func newConn(s *Server, nc net.Conn, d Door) *conn {
	c := &conn{srv: s, nc: nc, stream: nc, exports: d.Exports, tls: d.TLS, done: make(chan struct{})}
	c.forced = d.TLS != nil && d.TLS.requiredOf(nc.RemoteAddr())
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.vector = progress
	if _, local := nc.(*net.UnixConn); local {
		c.vector = maxVector
	}
	c.sender.c = c
	return c
}

// run serves the client to its end and releases what it held.
func (c *conn) run() {
	defer c.kill()
	err := c.handshake()
	if c.dev != nil {
		defer c.release()
	}
	if err != nil || c.dev == nil {
		if f := c.srv.opts.Events.HandshakeFailed; f != nil && err != nil && !c.draining.Load() {
			f(c.nc.RemoteAddr(), err)
		}
		return
	}
	c.beginTransmission()
	defer c.srv.memory.dismiss(c.tenantName)
	if f := c.srv.opts.Events.Connected; f != nil {
		f(c.peer())
	}
	err = c.finish(c.serve())
	if f := c.srv.opts.Events.Disconnected; f != nil {
		f(c.peer(), err)
	}
}

// beginTransmission makes what only a client in transmission needs.
func (c *conn) beginTransmission() {
	if sc, ok := c.stream.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
			c.readable, c.count = c.readReady, c.countUnread
		}
	}
	c.ahead, _ = c.dev.(AheadFlusher)
	c.paced, _ = c.dev.(Paced)
	c.slots = make(chan struct{}, c.srv.opts.MaxSlow)
	c.tenant = c.srv.memory.admit(c.tenantName)
	c.share = semaphore.NewWeighted(maxBufferSize)
}

// serve reads and answers requests until the client or the server ends it.
func (c *conn) serve() error {
	for {
		if err := c.fill(); err != nil {
			return err
		}
		for {
			more, err := c.next()
			if err != nil {
				if endsOrderly(err) {
					_ = c.settle() // the connection ends either way
				}
				return err
			}
			if !more {
				break
			}
		}
		if err := c.settle(); err != nil {
			return err
		}
		c.endPass()
	}
}

// next answers the request at the head of the input; more is false if it is not there as a whole.
func (c *conn) next() (more bool, err error) {
	header := c.framing.requestSize()
	in := c.ls.in[c.r:c.w]
	if len(in) < header {
		return false, nil
	}
	q, ok := parseRequest(in, c.framing)
	if !ok {
		return false, errBadMagic
	}
	if q.payload {
		return c.payload(&q, in[header:])
	}
	c.r += header
	if q.cmd == CmdDisc {
		return false, errDisconnect
	}
	c.saw(q.cmd)
	if err := c.applyBatch(); err != nil {
		return false, err
	}
	if why := q.check(c.dev, c.framing, len(c.contexts) > 0); why != accepted {
		c.tally.countInvalid()
		return true, c.reply(q.cookie, q.off, why)
	}
	switch q.cmd {
	case CmdRead:
		return true, c.read(&q)
	case CmdBlockStatus:
		return true, c.startStatus(&q, c.contexts)
	}
	return true, c.startCommand(&q)
}

// payload answers a request that has a payload, of which rest is what has been read.
func (c *conn) payload(q *request, rest []byte) (more bool, err error) {
	switch q.cmd {
	case CmdWrite:
		return c.write(q, rest)
	case CmdDisc:
		return false, errDisconnect
	}
	if err := c.applyBatch(); err != nil {
		return false, err
	}
	if q.cmd == CmdBlockStatus {
		return c.filteredStatus(q, rest)
	}
	return true, c.refusePayload(q, refuseFlags)
}

// settle applies the writes that were collected and sends the replies that were.
func (c *conn) settle() error {
	if c.ls == nil {
		return nil
	}
	if err := c.applyBatch(); err != nil {
		return err
	}
	c.srv.counters.add(&c.tally)
	return c.flush()
}

// finish waits for the workers, whose replies are still sent if the client may be there to read them, and says goodbye. It returns err
// unless that is an orderly end.
func (c *conn) finish(err error) error {
	c.srv.counters.add(&c.tally)
	c.dropLease()
	if errors.Is(err, errDisconnect) {
		c.goodbye.Store(true)
	}
	drained := c.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded)
	orderly := drained || errors.Is(err, io.EOF) || errors.Is(err, errDisconnect)
	if !orderly && !endsOrderly(err) {
		c.kill()
	}
	c.workers.Wait()
	if c.encrypted != nil && (orderly || endsOrderly(err)) {
		_ = c.encrypted.CloseWrite() // TLS is told before the socket closes; a client that does not listen delays it by 5 s at most
	}
	if drained {
		c.linger()
	}
	if orderly {
		return nil
	}
	return err
}

// endsOrderly reports whether err ends the connection because of what the client said, so that it can still read replies.
func endsOrderly(err error) bool {
	return errors.Is(err, errDisconnect) || errors.Is(err, errBadMagic) || errors.Is(err, errAbsurd)
}

// Bounds on linger.
const (
	lingerTime  = time.Second
	lingerBytes = 64 << 20
)

// linger closes the connection for writing and throws away what the client has sent meanwhile: a socket closed with unread input is reset,
// and a reset may destroy replies on their way.
func (c *conn) linger() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	if c.nc.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, c.nc, lingerBytes)
	}
}

// drain asks the reader to stop reading and to finish what it has. It may be called by anyone.
func (c *conn) drain() {
	c.draining.Store(true)
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// kill cuts the client off. It may be called by anyone and more than once.
func (c *conn) kill() {
	c.cancel()
	_ = c.nc.Close()
}

// peer describes the client to events.
func (c *conn) peer() Peer {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	return Peer{Addr: c.nc.RemoteAddr(), Export: c.exportName, Encrypted: c.encrypted != nil, Identity: c.identity}
}

// stalledSince reports whether the client has left the server waiting since before a time, in Unix ns.
func (c *conn) stalledSince(before int64) bool {
	r, w := c.readStall.Load(), c.writeStall.Load()
	return r != 0 && r < before || w != 0 && w < before
}

// failed reports a device's error and chooses the answer. A request that was given up because its client has gone is no error of the device.
func (c *conn) failed(cmd Command, off, length uint64, err error) refusal {
	why := refusalOf(err)
	if f := c.srv.opts.Events.RequestFailed; f != nil && !errors.Is(err, context.Canceled) {
		f(c.peer(), Failure{Command: cmd, Off: off, Len: length, Told: why.text, Err: err})
	}
	return why
}
