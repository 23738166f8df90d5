package nbd

import (
	"errors"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// minHole is the shortest hole that gets a chunk of its own, in bytes. At this length the chunk of the hole and the header of the data behind
// it take no more room than the zeroes would, so a reply can be encoded in place.
const minHole = holeChunkSize + dataHeaderSize + 4

// read answers a READ: from memory at once, otherwise by a worker.
func (c *conn) read(q *request) error {
	if q.len == 0 {
		c.tally.count(CmdRead, 1, 0, false)
		return c.replyTo(true, q.cookie, accepted)
	}
	room := c.readHeader() + int(q.len)
	if room > leaseOutput {
		return c.readLong(q)
	}
	if room > leaseOutput-c.o {
		if err := c.flush(); err != nil {
			return err
		}
	}
	n, err := c.tryRead(q, c.ls.out[c.o:c.o+room])
	switch {
	case err == nil:
		c.o += n
		return nil
	case !errors.Is(err, block.ErrWouldBlock):
		return c.readFailed(q, err)
	}
	buf, err := c.borrow(int(q.len))
	if err != nil {
		return err
	}
	return c.startRead(q, buf)
}

// readLong answers a READ that does not fit in the output buffer.
func (c *conn) readLong(q *request) error {
	buf, err := c.borrow(int(q.len))
	if err != nil {
		return err
	}
	n, err := c.tryRead(q, buf.b[:c.readHeader()+int(q.len)])
	switch {
	case err == nil:
		err = c.flushWith(buf.b[:n])
	case errors.Is(err, block.ErrWouldBlock):
		return c.startRead(q, buf)
	default:
		err = c.readFailed(q, err)
	}
	c.giveBack(buf)
	return err
}

// tryRead reads into p behind the header and returns the length of the encoded reply.
func (c *conn) tryRead(q *request, p []byte) (int, error) {
	holes, err := c.dev.TryReadAt(p[c.readHeader():], q.off, c.ls.holes[:0])
	c.ls.holes = holes[:0]
	if err != nil {
		return 0, err
	}
	c.tally.count(CmdRead, 1, uint64(q.len), false)
	return encodeRead(p, q, c.structured, holes), nil
}

// readFailed answers a READ that the device could not do.
func (c *conn) readFailed(q *request, err error) error {
	c.tally.count(CmdRead, 1, uint64(q.len), true)
	return c.reply(q.cookie, c.failed(CmdRead, q.off, q.len, err))
}

// readHeader returns the bytes that go before the data of a reply to READ.
func (c *conn) readHeader() int {
	if c.structured {
		return dataHeaderSize
	}
	return simpleReplySize
}

// encodeRead makes p, which holds the data of q behind room for a header, a reply in place, and returns its length.
func encodeRead(p []byte, q *request, structured bool, holes []block.Range) int {
	if !structured {
		putSimpleReply(p, q.cookie, errnoOK)
		return len(p)
	}
	if q.flags&cmdFlagDF != 0 && (len(holes) != 1 || holes[0].Len != uint64(q.len)) {
		holes = nil
	}
	e := readEncoder{p: p, q: q}
	for _, h := range holes {
		if h.Len >= minHole {
			e.data(h.Off)
			e.hole(h)
		}
	}
	e.data(q.off + uint64(q.len))
	return e.n
}

// readEncoder turns a buffer of data into chunks from front to back. What it writes never overtakes what it has yet to read: the first
// header has room in front of the data, and each later one takes the place of a hole.
type readEncoder struct {
	p    []byte
	q    *request
	n    int    // encoded bytes
	done uint64 // bytes of the request that are encoded
}

// data encodes the bytes up to the absolute offset end, if there are any.
func (e *readEncoder) data(end uint64) {
	from, size := e.done, end-e.q.off-e.done
	if size == 0 {
		return
	}
	e.done += size
	copy(e.p[e.n+dataHeaderSize:], e.p[dataHeaderSize+from:dataHeaderSize+from+size])
	putChunkHeader(e.p[e.n:], e.flags(), replyTypeOffsetData, e.q.cookie, 8+int(size))
	be.PutUint64(e.p[e.n+chunkHeaderSize:], e.q.off+from)
	e.n += dataHeaderSize + int(size)
}

// hole encodes a hole that begins where the encoded bytes end.
func (e *readEncoder) hole(h block.Range) {
	e.done += h.Len
	putChunkHeader(e.p[e.n:], e.flags(), replyTypeOffsetHole, e.q.cookie, holeChunkSize-chunkHeaderSize)
	be.PutUint64(e.p[e.n+chunkHeaderSize:], h.Off)
	be.PutUint32(e.p[e.n+chunkHeaderSize+8:], uint32(h.Len))
	e.n += holeChunkSize
}

func (e *readEncoder) flags() uint16 {
	if e.done == uint64(e.q.len) {
		return replyFlagDone
	}
	return 0
}
