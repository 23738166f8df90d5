package nbd

import (
	"errors"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// A reply to BLOCK_STATUS has one chunk for each context with a list of extents. The server decides how long it gets: it joins neighbours of one
// status, and cuts the list where the client asked for one extent only, where the request is covered, or where the reply is full. A client
// goes on from where the list ends.
const (
	// maxExtents bounds the extents of one reply, over all its contexts.
	maxExtents = 16000
	// maxCompactExtent is the longest extent that compact headers can tell, in bytes: as much of 32 bits as is a multiple of any minimum
	// block size.
	maxCompactExtent = 1<<32 - 64<<10
	// maxStatusFilter bounds the payload of a BLOCK_STATUS that is looked at, in bytes.
	maxStatusFilter = statusPayloadHead + 4*maxContexts
)

// errNoStatus is a device's fault: it reported success and told nothing.
var errNoStatus = errors.New("device told no status")

// extentSize returns the bytes of one extent on the wire.
func (f framing) extentSize() int {
	if f == extendedHeaders {
		return 16
	}
	return 8
}

// statusHeader returns the bytes that go before the extents of a chunk: its header, the context's id, and their number in an extended one.
func (f framing) statusHeader() int {
	if f == extendedHeaders {
		return f.chunkHeader() + 8
	}
	return f.chunkHeader() + 4
}

// statusRoom returns the bytes that a reply to q may take with so many contexts. No extent is expected to be shorter than a sector.
func (f framing) statusRoom(q *request, contexts int) int {
	extents := maxExtents / contexts
	if n := q.len/block.SectorSize + 2; n < uint64(extents) {
		extents = int(n)
	}
	if q.flags&cmdFlagReqOne != 0 {
		extents = 1
	}
	return contexts * (f.statusHeader() + extents*f.extentSize())
}

// startStatus has a worker report on some of the connection's contexts.
func (c *conn) startStatus(q *request, contexts []metaContext) error {
	buf := c.tryBorrow(c.framing.statusRoom(q, len(contexts)))
	if buf == nil {
		return c.statusAlone(q, contexts)
	}
	t := c.newTask(q)
	t.buf, t.status = buf, contexts
	return c.start(t)
}

// statusAlone reports when there is no memory to have it done elsewhere: as much as the output buffer holds.
func (c *conn) statusAlone(q *request, contexts []metaContext) error {
	if err := c.flush(); err != nil {
		return err
	}
	c.tally.countSlow()
	room := min(len(c.ls.out), c.framing.statusRoom(q, len(contexts)))
	kept := *q // a pointer that the encoder keeps would put the header of every request on the heap
	n, err := c.encodeStatus(c.ls.out[:room], &kept, contexts)
	c.tally.count(CmdBlockStatus, 1, q.len, err != nil)
	if err != nil {
		return c.reply(q.cookie, q.off, c.failed(CmdBlockStatus, q.off, q.len, err))
	}
	c.o = n
	return nil
}

// filteredStatus answers a BLOCK_STATUS whose payload says how long a range is meant and which contexts are wanted. It is short, so it is waited
// for in the input buffer.
func (c *conn) filteredStatus(q *request, rest []byte) (more bool, err error) {
	if q.len > maxStatusFilter || q.len < statusPayloadHead || len(c.contexts) == 0 {
		return true, c.refusePayload(q, refuseFilter)
	}
	if uint64(len(rest)) < q.len {
		return false, nil
	}
	filter := rest[:q.len]
	c.r += c.framing.requestSize() + len(filter)
	contexts, ok := c.filterContexts(filter[statusPayloadHead:])
	q.len = be.Uint64(filter)
	why := refuseFilter
	if ok {
		why = q.check(c.dev, c.framing, true)
	}
	if why != accepted {
		c.tally.countInvalid()
		return true, c.reply(q.cookie, q.off, why)
	}
	return true, c.startStatus(q, contexts)
}

// filterContexts returns the contexts with the ids in p. None, a strange one, or one twice is an error.
func (c *conn) filterContexts(p []byte) (contexts []metaContext, ok bool) {
	if len(p) == 0 || len(p)%4 != 0 {
		return nil, false
	}
	for ; len(p) > 0; p = p[4:] {
		hasID := func(m metaContext) bool { return m.id == be.Uint32(p) }
		at := slices.IndexFunc(c.contexts, hasID)
		if at < 0 || slices.ContainsFunc(contexts, hasID) {
			return nil, false
		}
		contexts = append(contexts, c.contexts[at])
	}
	return contexts, true
}

// runStatus asks the device about each context.
func (t *task) runStatus() {
	c := t.c
	n, err := c.encodeStatus(t.buf.b[:c.framing.statusRoom(&t.q, len(t.status))], &t.q, t.status)
	if err != nil {
		t.answer(t.q.cookie, t.q.off, t.q.len, err)
		t.reply = t.small
		return
	}
	c.srv.counters.count(CmdBlockStatus, t.q.len, false)
	t.reply = t.buf.b[:n]
}

// encodeStatus writes the reply to q into p, whose length bounds it, and returns the length it took. An error in one context is an error of all: the
// client is told nothing of the others.
func (c *conn) encodeStatus(p []byte, q *request, contexts []metaContext) (int, error) {
	reporter, ok := c.dev.(StatusReporter)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	each := len(p) / len(contexts)
	n := 0
	for i, m := range contexts {
		e := newStatusEncoder(p[n:n+each], q, c.framing, c.dev.Size())
		if err := reporter.BlockStatus(c.ctx, m.name, block.Range{Off: q.off, Len: q.len}, e.emit); err != nil {
			return 0, err
		}
		flags := uint16(0)
		if i == len(contexts)-1 {
			flags = replyFlagDone
		}
		size, err := e.finish(flags, m.id)
		if err != nil {
			return 0, err
		}
		n += size
	}
	return n, nil
}

// statusEncoder writes the chunk of one context. It holds one extent back, which may yet be joined by the next.
type statusEncoder struct {
	p       []byte
	q       *request
	f       framing
	n       int    // encoded bytes
	one     bool   // the client wants one extent within its request
	told    uint64 // bytes told, the extent held back included
	most    uint64 // bytes that may be told at most
	length  uint64 // of the extent held back; 0 if there is none
	status  uint32 // likewise
	decided bool   // nothing more is taken
}

// newStatusEncoder starts a chunk in p, which has room for one extent at least. size is the device's.
func newStatusEncoder(p []byte, q *request, f framing, size uint64) *statusEncoder {
	e := &statusEncoder{p: p, q: q, f: f, n: f.statusHeader(), one: q.flags&cmdFlagReqOne != 0, most: max(size, q.off) - q.off}
	if e.one {
		e.most = min(e.most, q.len)
	}
	return e
}

// emit takes the next run of bytes. It is what StatusReporter.BlockStatus calls.
func (e *statusEncoder) emit(length uint64, status uint32) (more bool) {
	length = min(length, e.most-e.told)
	if e.decided || length == 0 {
		return !e.decided && e.told < e.most
	}
	if e.length > 0 && status != e.status {
		if e.one || !e.put() {
			e.decided = true
			return false
		}
	}
	e.length += length
	e.status = status
	e.told += length
	if e.f != extendedHeaders && e.length >= maxCompactExtent {
		e.length = maxCompactExtent
		e.decided = true
	}
	if e.told >= e.q.len {
		e.decided = true
	}
	return !e.decided
}

// put encodes the extent held back. It reports whether there is room for another.
func (e *statusEncoder) put() bool {
	if e.f == extendedHeaders {
		be.PutUint64(e.p[e.n:], e.length)
		be.PutUint64(e.p[e.n+8:], uint64(e.status))
	} else {
		be.PutUint32(e.p[e.n:], uint32(e.length))
		be.PutUint32(e.p[e.n+4:], e.status)
	}
	e.n += e.f.extentSize()
	e.length = 0
	return e.n+e.f.extentSize() <= len(e.p)
}

// finish encodes what is held back and the header, and returns the length of the chunk.
func (e *statusEncoder) finish(flags uint16, id uint32) (int, error) {
	if e.length > 0 {
		e.put()
	}
	header := e.f.statusHeader()
	extents := (e.n - header) / e.f.extentSize()
	if extents == 0 {
		return 0, errNoStatus
	}
	kind := replyTypeStatus
	body := e.f.chunkHeader()
	if e.f == extendedHeaders {
		kind = replyTypeStatusExt
		be.PutUint32(e.p[body+4:], uint32(extents))
	}
	e.f.putChunk(e.p, flags, kind, e.q.cookie, e.q.off, e.n-body)
	be.PutUint32(e.p[body:], id)
	return e.n, nil
}
