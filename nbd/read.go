package nbd

import (
	"errors"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// minHole is the shortest hole that gets a chunk of its own, in bytes. At this length the chunk of the hole and the header of the data behind
// it take no more room than the zeroes would, so a reply can be encoded in place.
func (f framing) minHole() uint64 { return uint64(f.chunkHeader() + holePayload + f.dataHeader() + 4) }

// read answers a READ: from memory at once, otherwise by a worker.
func (c *conn) read(q *request) error {
	if q.len == 0 {
		c.tally.count(CmdRead, 1, 0, false)
		return c.replyTo(true, q.cookie, q.off, accepted)
	}
	room := c.framing.dataHeader() + int(q.len)
	switch {
	case q.inPieces(c.framing):
		return c.startPieces(q)
	case room > len(c.ls.out):
		return c.readLong(q)
	}
	if room > len(c.ls.out)-c.o {
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
	case errors.Is(err, ErrLongWait):
		c.step.crowded()
	}
	if !c.alone() {
		if buf := c.tryBorrow(int(q.len)); buf != nil {
			return c.startRead(q, buf)
		}
		c.tally.countSlow()
	}
	return c.readAlone(q, room)
}

// readAlone answers a READ that has to wait for a device when there is no memory to have it wait elsewhere, or no need to. What follows it waits too.
func (c *conn) readAlone(q *request, room int) error {
	if err := c.flush(); err != nil {
		return err
	}
	p := c.ls.out[:room]
	c.busy.Store(true)
	defer c.busy.Store(false)
	holes, err := c.dev.ReadAt(c.ctx, p[c.framing.dataHeader():], q.off, c.ls.holes[:0])
	c.ls.holes = holes[:0]
	c.lookBehind()
	if err != nil {
		return c.readFailed(q, err)
	}
	c.tally.count(CmdRead, 1, q.len, false)
	c.o = encodeRead(p, q, c.framing, holes)
	return nil
}

// readLong answers a READ that does not fit in the output buffer.
func (c *conn) readLong(q *request) error {
	buf, err := c.borrow(int(q.len), false)
	if err != nil {
		return err
	}
	n, err := c.tryRead(q, buf.b[:c.framing.dataHeader()+int(q.len)])
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
	holes, err := c.dev.TryReadAt(p[c.framing.dataHeader():], q.off, c.ls.holes[:0])
	c.ls.holes = holes[:0]
	if err != nil {
		return 0, err
	}
	c.tally.count(CmdRead, 1, q.len, false)
	return encodeRead(p, q, c.framing, holes), nil
}

// readFailed answers a READ that the device could not do.
func (c *conn) readFailed(q *request, err error) error {
	c.tally.count(CmdRead, 1, q.len, true)
	return c.replyTo(true, q.cookie, q.off, c.failed(CmdRead, q.off, q.len, err))
}

// encodeRead makes p, which holds the data of q behind room for a header, a reply in place, and returns its length.
func encodeRead(p []byte, q *request, f framing, holes []block.Range) int {
	if f == simpleReplies {
		putSimpleReply(p, q.cookie, errnoOK)
		return len(p)
	}
	if q.flags&cmdFlagDF != 0 && (len(holes) != 1 || holes[0].Len != q.len) {
		holes = nil
	}
	return encodePiece(p, q, block.Range{Off: q.off, Len: q.len}, f, holes)
}

// encodePiece is encodeRead for a part of what q wants. The reply ends with the piece at q's end.
func encodePiece(p []byte, q *request, piece block.Range, f framing, holes []block.Range) int {
	e := readEncoder{p: p, q: q, f: f, header: f.dataHeader(), from: piece.Off, next: piece.Off}
	for _, h := range holes {
		if h.Len >= f.minHole() {
			e.data(h.Off)
			e.hole(h)
		}
	}
	e.data(piece.End())
	return e.n
}

// readEncoder turns a buffer of data into chunks from front to back. What it writes never overtakes what it has yet to read: the first
// header has room in front of the data, and each later one takes the place of a hole.
type readEncoder struct {
	p      []byte
	q      *request
	f      framing
	header int    // f.dataHeader()
	n      int    // encoded bytes
	from   uint64 // where the data in p begins on the device
	next   uint64 // where what is not yet encoded begins there
}

// data encodes the bytes up to the absolute offset end, if there are any.
func (e *readEncoder) data(end uint64) {
	off, size := e.next, end-e.next
	if size == 0 {
		return
	}
	e.next = end
	if at := uint64(e.header) + off - e.from; at != uint64(e.n+e.header) {
		copy(e.p[e.n+e.header:], e.p[at:at+size])
	}
	e.f.putChunk(e.p[e.n:], e.flags(), replyTypeOffsetData, e.q.cookie, e.q.off, offsetSize+int(size))
	be.PutUint64(e.p[e.n+e.header-offsetSize:], off)
	e.n += e.header + int(size)
}

// hole encodes a hole that begins where the encoded bytes end.
func (e *readEncoder) hole(h block.Range) {
	e.next = h.End()
	e.f.putChunk(e.p[e.n:], e.flags(), replyTypeOffsetHole, e.q.cookie, e.q.off, holePayload)
	e.n += e.f.chunkHeader()
	be.PutUint64(e.p[e.n:], h.Off)
	be.PutUint32(e.p[e.n+offsetSize:], uint32(h.Len))
	e.n += holePayload
}

func (e *readEncoder) flags() uint16 {
	if e.next == e.q.off+e.q.len {
		return replyFlagDone
	}
	return 0
}
