package nbd

import "golang.org/x/sys/unix"

// How often in a row a client must have done a thing before the server counts on it. A client with two requests in flight now and then looks for a while as if it had one.
const (
	aloneAfter   = 64
	flushedAfter = 8
)

// lockstep watches whether a client has one request at a time in flight, as a database has that waits for each of its commits. Its reader need not stay free for
// other requests, since none will come before the reply: so it does by itself what otherwise a worker would, and no goroutine has to be woken. If such a client also
// flushes after each write, the reader has the device flush as soon as the write is replied, while the client still learns of that and asks for it.
//
// A guess that is wrong costs one flush that nobody asked for, or has a request wait for the one before it; then the client is watched anew. Measured for writes of 4 KiB
// and a flush of each: docs/rfc/0013-log-io.md.
type lockstep struct {
	single  int // requests in a row that were alone: nothing before them was unanswered, and nothing came behind them before their reply
	flushed int // such writes in a row that were followed by a flush

	requests int     // of this pass
	last     Command // of them
	wrote    bool    // the pass before was one such write, replied
	ahead    bool    // … and the device has flushed it unasked
	stayIn   int     // requests until the reader may stay in the kernel again (stay.go)
	spinIn   int     // … until it may spin before
}

// crowded notes that the client has several requests in flight.
func (l *lockstep) crowded() { l.single, l.flushed = 0, 0 }

// saw notes a request, which is there as a whole or about to be read.
func (c *conn) saw(cmd Command) {
	l := &c.step
	if l.requests++; l.requests > 1 || c.unanswered.Load() > 0 {
		l.crowded()
	}
	l.last = cmd
	l.stayIn = max(0, l.stayIn-1)
	l.spinIn = max(0, l.spinIn-1)
}

// alone reports whether the request that was seen last is the only one, of a client that leaves it at that.
func (c *conn) alone() bool {
	return c.step.single == aloneAfter && c.step.requests == 1 && c.r == c.w
}

// commandAlone has the reader do a command without payload.
func (c *conn) commandAlone(q *request) error {
	c.busy.Store(true)
	err := c.command(q)
	c.busy.Store(false)
	c.tally.count(q.cmd, 1, q.len, err != nil)
	why := accepted
	if err != nil {
		why = c.failed(q.cmd, q.off, q.len, err)
	}
	c.lookBehind()
	return c.reply(q.cookie, q.off, why)
}

// lookBehind finds out whether the client has sent more while the reader was busy with its only request, which is not yet replied.
func (c *conn) lookBehind() {
	if c.raw == nil || c.step.ahead && c.step.last == CmdFlush {
		return // such a client is never alone, or there was nothing to be busy with
	}
	c.unread = 0
	if err := c.raw.Control(c.count); err != nil || c.unread > 0 {
		c.step.crowded()
	}
}

// countUnread is called by the runtime with the socket's descriptor.
func (c *conn) countUnread(fd uintptr) { c.unread, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }

// endPass concludes from the requests of a pass, each of which is replied or at a worker, what the client will do next, and flushes ahead.
func (c *conn) endPass() {
	l := &c.step
	if l.requests == 0 {
		return // the first part of a request
	}
	if c.raw == nil || c.w > c.r {
		l.crowded()
	} else if l.requests == 1 {
		l.single = min(l.single+1, aloneAfter)
	}
	if l.wrote && l.last == CmdFlush && l.requests == 1 {
		l.flushed = min(l.flushed+1, flushedAfter)
	} else if l.wrote {
		l.flushed = 0
	}
	l.wrote = l.last == CmdWrite && l.requests == 1 && c.unanswered.Load() == 0
	l.requests = 0
	l.ahead = l.wrote && l.flushed == flushedAfter && l.single == aloneAfter && c.ahead != nil
	if l.ahead {
		c.ahead.FlushAhead(c.ctx)
	}
}
