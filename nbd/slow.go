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
	reply   []byte // encoded reply, in small or in buf
	small   []byte // memory for replies without data
}

var tasks = sync.Pool{New: func() any { return new(task) }}

// borrow takes a buffer with room for n bytes and the headers of a reply. It waits while this connection or the server holds too much, and
// then sends first what there is to reply.
func (c *conn) borrow(n int) (*buffer, error) {
	class := bufferClass(n)
	if c.share.TryAcquire(classSize(class)) {
		if b := c.srv.memory.tryBuffer(class); b != nil {
			return b, nil
		}
		c.share.Release(classSize(class))
	}
	if err := c.flush(); err != nil {
		return nil, err
	}
	if err := c.share.Acquire(c.ctx, classSize(class)); err != nil {
		return nil, err
	}
	b, err := c.srv.memory.waitBuffer(c.ctx, class)
	if err != nil {
		c.share.Release(classSize(class))
	}
	return b, err
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
	if q.len == 0 && q.cmd != CmdFlush {
		c.tally.count(q.cmd, 1, 0, false)
		return c.reply(q.cookie, accepted)
	}
	return c.start(c.newTask(q))
}

// startWrite has a worker apply the collected batch. Its payload is in buf, which it consumes, or else is copied.
func (c *conn) startWrite(buf *buffer) error {
	if buf == nil {
		var err error
		if buf, err = c.copyBatch(); err != nil {
			return err
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

// copyBatch moves the payload of the batch out of the input buffer.
func (c *conn) copyBatch() (*buffer, error) {
	size := 0
	for _, w := range c.ls.batch {
		size += len(w.Data)
	}
	buf, err := c.borrow(size)
	if err != nil {
		return nil, err
	}
	n := 0
	for i := range c.ls.batch {
		w := &c.ls.batch[i]
		m := copy(buf.b[n:], w.Data)
		w.Data = buf.b[n : n+m : n+m]
		n += m
	}
	return buf, nil
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
	go t.run()
	return nil
}

// run does the work and queues the reply.
func (t *task) run() {
	switch t.q.cmd {
	case CmdRead:
		t.runRead()
	case CmdWrite:
		t.runWrite()
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
	r := block.Range{Off: q.off, Len: uint64(q.len)}
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
	header := c.readHeader()
	p := t.buf.b[:header+int(t.q.len)]
	var err error
	if t.holes, err = c.dev.ReadAt(c.ctx, p[header:], t.q.off, t.holes[:0]); err != nil {
		t.answer(t.q.cookie, t.q.off, t.q.len, err)
		t.reply = t.small
		return
	}
	c.srv.counters.count(CmdRead, uint64(t.q.len), false)
	t.reply = p[:encodeRead(p, &t.q, c.structured, t.holes)]
}

// runWrite applies the batch; if that fails, each write alone, so that one bad write does not fail its neighbours.
func (t *task) runWrite() {
	c := t.c
	err := c.dev.Write(c.ctx, t.batch, t.q.fua())
	c.srv.counters.batches.Add(1)
	for i, w := range t.batch {
		if err != nil && len(t.batch) > 1 {
			t.answer(t.cookies[i], w.Off, uint32(len(w.Data)), c.dev.Write(c.ctx, t.batch[i:i+1], t.q.fua()))
			continue
		}
		t.answer(t.cookies[i], w.Off, uint32(len(w.Data)), err)
	}
	t.reply = t.small
}

// answer counts one request and appends its reply, which has no data.
func (t *task) answer(cookie, off uint64, length uint32, err error) {
	why := accepted
	if err != nil {
		why = t.c.failed(t.q.cmd, off, length, err)
	}
	t.c.srv.counters.count(t.q.cmd, uint64(length), err != nil)
	t.small = appendReply(t.small, t.q.cmd == CmdRead, t.c.structured, cookie, why)
}

// free ends a task whose reply is written or can no longer be.
func (t *task) free() {
	c := t.c
	if t.buf != nil {
		c.giveBack(t.buf)
	}
	clear(t.batch)
	*t = task{batch: t.batch[:0], cookies: t.cookies[:0], holes: t.holes[:0], small: t.small[:0]}
	tasks.Put(t)
	<-c.slots
	c.workers.Done()
}
