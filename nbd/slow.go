package nbd

import (
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// task is a request, or a batch of writes, on its way through a worker goroutine and the reply queue.
type task struct {
	c       *conn
	q       request // for a batch only cmd and flags count
	buf     *buffer // data to read into, or that batch lies in; nil if there is none
	batch   []Write
	cookies []uint64
	holes   []block.Range
	status  []metaContext // to report on, for BLOCK_STATUS
	reply   []byte        // encoded reply, in small or in buf
	small   []byte        // memory for replies without data

	enlisted bool // counted among the commands at workers
}

var tasks = sync.Pool{New: func() any { return new(task) }}

// borrow takes a buffer with room for n bytes and the headers of a reply, for a request that long. It waits while this connection or the server holds too much, or
// until a device that is held to a rate allows so long a request, and then sends first what there is to reply.
func (c *conn) borrow(n int, write bool) (*buffer, error) {
	if b := c.tryBorrow(n); b != nil {
		return b, nil
	}
	if err := c.flush(); err != nil {
		return nil, err
	}
	class := bufferClass(n)
	if err := c.share.Acquire(c.ctx, classSize(class)); err != nil {
		return nil, err
	}
	b, err := c.waitBuffer(class, n, write)
	if err != nil {
		c.share.Release(classSize(class))
	}
	return b, err
}

// waitBuffer is borrow behind the connection's own share.
func (c *conn) waitBuffer(class, n int, write bool) (*buffer, error) {
	m := c.srv.memory
	if !c.limited() {
		return m.waitBuffer(c.ctx, class, c.tenant)
	}
	if classSize(class) <= mediumBuffer {
		return m.waitShare(c.ctx, class, c.tenant)
	}
	if err := m.wait(c.ctx, c.tenant.turn, 1); err != nil {
		return nil, err
	}
	err := c.paced.AwaitRate(c.ctx, write, int64(n))
	var b *buffer
	if err == nil {
		b, err = m.waitBuffer(c.ctx, class, c.tenant)
	}
	if err != nil {
		c.tenant.turn.Release(1)
		return nil, err
	}
	b.turn = c.tenant
	return b, nil
}

// limited reports whether requests may have to wait for a rate.
func (c *conn) limited() bool { return c.paced != nil && c.paced.Limited() }

// tryBorrow is borrow that returns nil instead of waiting.
func (c *conn) tryBorrow(n int) *buffer {
	class := bufferClass(n)
	limited := c.limited()
	if limited && classSize(class) > mediumBuffer || !c.share.TryAcquire(classSize(class)) {
		return nil
	}
	b := c.srv.memory.tryShare(class, c.tenant)
	if b == nil && !limited {
		b = c.srv.memory.tryRest(class)
	}
	if b == nil {
		c.share.Release(classSize(class))
	}
	return b
}

// giveBack returns a buffer that borrow lent.
func (c *conn) giveBack(b *buffer) {
	size := classSize(b.class)
	c.srv.memory.returnBuffer(b)
	c.share.Release(size)
}

// startRead has a worker read into buf, which it consumes.
func (c *conn) startRead(q *request, buf *buffer) error {
	t := c.newTask(q)
	t.buf = buf
	return c.start(t)
}

// startCommand has a worker do a command without payload.
func (c *conn) startCommand(q *request) error {
	switch {
	case q.len == 0 && q.cmd != CmdFlush:
		c.tally.count(q.cmd, 1, 0, false)
		return c.reply(q.cookie, q.off, accepted)
	case c.alone():
		return c.commandAlone(q)
	case !c.srv.memory.enlist(c.tenant):
		if err := c.flush(); err != nil {
			return err
		}
		return c.commandAlone(q)
	}
	t := c.newTask(q)
	t.enlisted = true
	return c.start(t)
}

// startWrite has a worker apply the collected batch. Its payload is in buf, which it consumes, or else is copied; if there is no memory for that,
// or the client has nothing else to do, no worker is needed.
func (c *conn) startWrite(buf *buffer) error {
	if buf == nil {
		if c.alone() {
			return c.writeAlone()
		}
		if buf = c.copyBatch(); buf == nil {
			return c.writeAlone()
		}
	}
	t := c.newTask(&request{cmd: CmdWrite})
	if c.batchFUA {
		t.q.flags = cmdFlagFUA
	}
	t.buf = buf
	t.batch = append(t.batch, c.ls.batch...)
	t.cookies = append(t.cookies, c.ls.cookies...)
	c.ls.clearBatch()
	return c.start(t)
}

// copyBatch moves the payload of the batch out of the input buffer. It returns nil if there is no memory for it.
func (c *conn) copyBatch() *buffer {
	size := 0
	for _, w := range c.ls.batch {
		size += len(w.Data)
	}
	buf := c.tryBorrow(size)
	if buf == nil {
		return nil
	}
	n := 0
	for i := range c.ls.batch {
		w := &c.ls.batch[i]
		m := copy(buf.b[n:], w.Data)
		w.Data = buf.b[n : n+m : n+m]
		n += m
	}
	return buf
}

func (c *conn) newTask(q *request) *task {
	t := tasks.Get().(*task)
	t.c, t.q = c, *q
	return t
}

// start gives t to a worker. It waits while the connection has as many tasks as it may have, and then sends first what there is to reply.
func (c *conn) start(t *task) error {
	c.tally.countSlow()
	c.workers.Add(1)
	c.unanswered.Add(1)
	select {
	case c.slots <- struct{}{}:
	default:
		if err := c.flush(); err != nil {
			c.slots <- struct{}{}
			t.free()
			return err
		}
		c.slots <- struct{}{}
	}
	c.srv.crew.Go(t)
	return nil
}

// run does the work and queues the reply.
func (t *task) run() {
	switch t.q.cmd {
	case CmdRead:
		if t.q.inPieces(t.c.framing) {
			t.runPieces()
		} else {
			t.runRead()
		}
	case CmdWrite:
		t.runWrite()
	case CmdBlockStatus:
		t.runStatus()
	default:
		err := t.c.command(&t.q)
		t.answer(t.q.cookie, t.q.off, t.q.len, err)
		t.reply = t.small
	}
	t.c.sender.push(t)
}

// command does a command without payload.
func (c *conn) command(q *request) error {
	ctx := c.ctx
	r := block.Range{Off: q.off, Len: q.len}
	switch q.cmd {
	case CmdTrim:
		return c.dev.Trim(ctx, r, q.fua())
	case CmdWriteZeroes:
		return c.dev.Zero(ctx, r, q.flags&cmdFlagNoHole != 0, q.fua())
	case CmdCache:
		return c.dev.Prefetch(ctx, r)
	}
	return c.dev.Flush(ctx)
}

func (t *task) runRead() {
	c := t.c
	header := c.framing.dataHeader()
	p := t.buf.b[:header+int(t.q.len)]
	var err error
	if t.holes, err = c.dev.ReadAt(c.ctx, p[header:], t.q.off, t.holes[:0]); err != nil {
		t.answer(t.q.cookie, t.q.off, t.q.len, err)
		t.reply = t.small
		return
	}
	c.srv.counters.count(CmdRead, t.q.len, false)
	t.reply = p[:encodeRead(p, &t.q, c.framing, t.holes)]
}

// runWrite applies the batch; if that fails, each write alone, so that one bad write does not fail its neighbours.
func (t *task) runWrite() {
	c := t.c
	err := c.dev.Write(c.ctx, t.batch, t.q.fua())
	c.srv.counters.batches.Add(1)
	for i, w := range t.batch {
		if err != nil && len(t.batch) > 1 {
			t.answer(t.cookies[i], w.Off, uint64(len(w.Data)), c.dev.Write(c.ctx, t.batch[i:i+1], t.q.fua()))
			continue
		}
		t.answer(t.cookies[i], w.Off, uint64(len(w.Data)), err)
	}
	t.reply = t.small
}

// answer counts one request and appends its reply, which has no data.
func (t *task) answer(cookie, off, length uint64, err error) {
	why := accepted
	if err != nil {
		why = t.c.failed(t.q.cmd, off, length, err)
	}
	t.c.srv.counters.count(t.q.cmd, length, err != nil)
	t.small = t.c.framing.appendReply(t.small, t.q.cmd == CmdRead, cookie, off, why)
}

// free ends a task whose reply is written or can no longer be.
func (t *task) free() {
	c := t.c
	if t.buf != nil {
		c.giveBack(t.buf)
	}
	if t.enlisted {
		c.srv.memory.discharge(c.tenant)
	}
	clear(t.batch)
	*t = task{batch: t.batch[:0], cookies: t.cookies[:0], holes: t.holes[:0], small: t.small[:0]}
	tasks.Put(t)
	<-c.slots
	c.workers.Done()
}
