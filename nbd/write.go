package nbd

import (
	"errors"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	// maxBatch bounds the writes of one batch. More gain nothing and would let tiny writes hold up their replies.
	maxBatch = 256
	// longWrite is the payload in bytes from which a WRITE that is not yet there as a whole is read into a buffer of its own instead of
	// waiting for its rest in the input buffer.
	longWrite = leaseInput / 4
	// fillAfterLong bounds the read that follows a long write, in bytes: another one probably comes, and what of it lies in the input buffer
	// must be copied.
	fillAfterLong = 4 << 10
	// maxDrained is the longest payload of a refused request that is read and thrown away, in bytes. Beyond it the client is cut off.
	maxDrained = 256 << 20
)

// write answers a WRITE of which rest is what has been read after its header.
func (c *conn) write(q *request, rest []byte) (more bool, err error) {
	if why := q.check(c.dev, c.framing, false); why != accepted {
		return true, c.refusePayload(q, why)
	}
	size := int(q.len)
	if len(rest) < size {
		return c.writeUnread(q)
	}
	c.r += c.framing.requestSize() + size
	c.saw(CmdWrite)
	if size == 0 {
		c.tally.count(CmdWrite, 1, 0, false)
		return true, c.reply(q.cookie, q.off, accepted)
	}
	if len(c.ls.batch) == maxBatch || c.batchFUA != q.fua() {
		if err := c.applyBatch(); err != nil {
			return false, err
		}
	}
	c.batchFUA = q.fua()
	c.ls.batch = append(c.ls.batch, Write{Off: q.off, Data: rest[:size:size]})
	c.ls.cookies = append(c.ls.cookies, q.cookie)
	return true, nil
}

// writeUnread begins a WRITE that is not yet there as a whole. A long one is read into a buffer of its own, if there is one; otherwise
// its rest is waited for in the input buffer, if it fits there.
func (c *conn) writeUnread(q *request) (more bool, err error) {
	fits := c.framing.requestSize()+int(q.len) <= len(c.ls.in)
	if fits && q.len < longWrite {
		return false, nil
	}
	if err := c.settle(); err != nil {
		return false, err
	}
	buf := c.tryBorrow(int(q.len))
	if buf == nil && fits {
		return false, nil
	}
	return true, c.writeLong(q, buf)
}

// refusePayload reads the payload of a request that may not be done, and says why. An extended header may announce so much that the
// protocol has the client cut off.
func (c *conn) refusePayload(q *request, why refusal) error {
	if q.len > maxDrained || c.framing == extendedHeaders && q.len > MaxPayload {
		return errAbsurd
	}
	c.tally.countInvalid()
	c.r += c.framing.requestSize()
	if err := c.discard(int(q.len)); err != nil {
		return err
	}
	return c.reply(q.cookie, q.off, why)
}

// writeLong reads a payload into buf, which it consumes and waits for if it is nil, and writes it. Nothing may be unsettled.
func (c *conn) writeLong(q *request, buf *buffer) error {
	if buf == nil {
		var err error
		if buf, err = c.borrow(int(q.len), true); err != nil {
			return err
		}
	}
	c.r += c.framing.requestSize()
	c.saw(CmdWrite)
	data := buf.b[:q.len]
	if err := c.readFull(data); err != nil {
		c.giveBack(buf)
		return err
	}
	c.fillMax = fillAfterLong
	c.batchFUA = q.fua()
	c.ls.batch = append(c.ls.batch, Write{Off: q.off, Data: data})
	c.ls.cookies = append(c.ls.cookies, q.cookie)
	return c.applyBatchIn(buf)
}

// applyBatch hands the collected writes to the device and appends their replies.
func (c *conn) applyBatch() error {
	if c.ls == nil || len(c.ls.batch) == 0 {
		return nil
	}
	return c.applyBatchIn(nil)
}

// applyBatchIn is applyBatch for payload that lies in buf, which it consumes, or in the input buffer if buf is nil. A batch that has to wait
// goes to a worker; so does a batch of several that failed, to find out which of them did.
func (c *conn) applyBatchIn(buf *buffer) error {
	err := block.ErrWouldBlock
	if !c.batchFUA {
		err = c.dev.TryWrite(c.ls.batch, false)
	}
	if errors.Is(err, ErrLongWait) {
		c.step.crowded()
	}
	if errors.Is(err, block.ErrWouldBlock) || err != nil && len(c.ls.batch) > 1 {
		return c.startWrite(buf)
	}
	why := accepted
	if err != nil {
		w := c.ls.batch[0]
		why = c.failed(CmdWrite, w.Off, uint64(len(w.Data)), err)
	}
	if buf != nil {
		c.giveBack(buf)
	}
	return c.endBatch(why)
}

// writeAlone applies the collected batch when there is no memory to have it wait elsewhere. If that fails, it tries each write alone, so that one bad
// write does not fail its neighbours.
func (c *conn) writeAlone() error {
	if err := c.flush(); err != nil {
		return err
	}
	if !c.alone() {
		c.tally.countSlow()
	}
	defer c.ls.clearBatch()
	c.busy.Store(true)
	defer c.busy.Store(false)
	all := c.dev.Write(c.ctx, c.ls.batch, c.batchFUA)
	c.lookBehind()
	c.tally.batches++
	for i, w := range c.ls.batch {
		err := all
		if all != nil && len(c.ls.batch) > 1 {
			err = c.dev.Write(c.ctx, c.ls.batch[i:i+1], c.batchFUA)
		}
		why := accepted
		if err != nil {
			why = c.failed(CmdWrite, w.Off, uint64(len(w.Data)), err)
		}
		c.tally.count(CmdWrite, 1, uint64(len(w.Data)), err != nil)
		if err := c.reply(c.ls.cookies[i], w.Off, why); err != nil {
			return err
		}
	}
	return nil
}

// endBatch counts the writes of the batch, which the device has done or refused, and appends their replies.
func (c *conn) endBatch(why refusal) error {
	size := uint64(0)
	for _, w := range c.ls.batch {
		size += uint64(len(w.Data))
	}
	c.tally.count(CmdWrite, len(c.ls.batch), size, why != accepted)
	c.tally.batches++
	defer c.ls.clearBatch()
	for i, cookie := range c.ls.cookies {
		if err := c.reply(cookie, c.ls.batch[i].Off, why); err != nil {
			return err
		}
	}
	return nil
}
