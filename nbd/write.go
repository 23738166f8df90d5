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
	// maxDrained is the longest payload of a refused WRITE that is read and thrown away, in bytes. Beyond it the client is cut off.
	maxDrained = 256 << 20
)

// write answers a WRITE of which rest is what has been read after its header.
func (c *conn) write(q *request, rest []byte) (more bool, err error) {
	size := int(q.len)
	if why := q.check(c.dev, c.structured); why != accepted {
		return true, c.refuseWrite(q, why)
	}
	if len(rest) < size {
		if size >= longWrite {
			return true, c.writeLong(q)
		}
		return false, nil
	}
	c.r += requestSize + size
	if size == 0 {
		c.tally.count(CmdWrite, 1, 0, false)
		return true, c.reply(q.cookie, accepted)
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

// refuseWrite reads the payload of a WRITE that may not be done, and says why.
func (c *conn) refuseWrite(q *request, why refusal) error {
	if q.len > maxDrained {
		return errAbsurd
	}
	c.tally.countInvalid()
	c.r += requestSize
	if err := c.discard(int(q.len)); err != nil {
		return err
	}
	return c.reply(q.cookie, why)
}

// writeLong reads a payload into a buffer of its own and writes it.
func (c *conn) writeLong(q *request) error {
	if err := c.settle(); err != nil {
		return err
	}
	buf, err := c.borrow(int(q.len))
	if err != nil {
		return err
	}
	c.r += requestSize
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
	if errors.Is(err, block.ErrWouldBlock) || err != nil && len(c.ls.batch) > 1 {
		return c.startWrite(buf)
	}
	why := accepted
	if err != nil {
		w := c.ls.batch[0]
		why = c.failed(CmdWrite, w.Off, uint32(len(w.Data)), err)
	}
	if buf != nil {
		c.giveBack(buf)
	}
	return c.endBatch(why)
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
	for _, cookie := range c.ls.cookies {
		if err := c.reply(cookie, why); err != nil {
			return err
		}
	}
	return nil
}
