package nbd

import (
	"bufio"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// maxReply is the room that a reply without data may take, in bytes.
const maxReply = maxChunkHeader + 4 + 2 + 64

// appendReply appends a reply without data: a chunk where the client must or may as well get one, else a simple reply.
func (f framing) appendReply(dst []byte, read bool, cookie, off uint64, why refusal) []byte {
	if f == simpleReplies || f == structuredReplies && !read && why == accepted {
		dst = append(dst, make([]byte, simpleReplySize)...)
		putSimpleReply(dst[len(dst)-simpleReplySize:], cookie, why.errno)
		return dst
	}
	kind, size := replyTypeNone, 0
	if why != accepted {
		kind, size = replyTypeError, 4+2+len(why.text)
	}
	header := f.chunkHeader()
	dst = append(dst, make([]byte, header)...)
	f.putChunk(dst[len(dst)-header:], replyFlagDone, kind, cookie, off, size)
	if why != accepted {
		dst = be.AppendUint32(dst, uint32(why.errno))
		dst = be.AppendUint16(dst, uint16(len(why.text)))
		dst = append(dst, why.text...)
	}
	return dst
}

// replyTo appends a reply without data to the output buffer.
func (c *conn) replyTo(read bool, cookie, off uint64, why refusal) error {
	if len(c.ls.out)-c.o < maxReply {
		if err := c.flush(); err != nil {
			return err
		}
	}
	c.o = len(c.framing.appendReply(c.ls.out[:c.o], read, cookie, off, why))
	return nil
}

// reply answers a command other than READ.
func (c *conn) reply(cookie, off uint64, why refusal) error {
	return c.replyTo(false, cookie, off, why)
}

// flush sends the output buffer.
func (c *conn) flush() error {
	if c.o == 0 {
		return nil
	}
	return c.flushWith(nil)
}

// flushWith sends the output buffer and then more.
func (c *conn) flushWith(more []byte) error {
	err := c.sender.send(c.ls.out[:c.o], more)
	c.o = 0
	return err
}

// sender writes replies of the reader and of workers to the socket. Who finds the socket busy leaves its task in the queue, which is
// written by whoever has the socket, with one system call.
type sender struct {
	c       *conn
	writing sync.Mutex    // held over a write; guards vec, backing, sent
	joined  *bufio.Writer // over TLS, where each write is a record; nil until needed
	backing net.Buffers
	vec     net.Buffers
	sent    []*task

	queued atomic.Int32 // len(mu.queue), to look without the lock
	mu     struct {
		sync.Mutex
		queue []*task // at most one for each slot
	}
}

// send writes the replies of the reader, and those that are queued.
func (s *sender) send(a, b []byte) error {
	s.writing.Lock()
	err := s.writeLocked(a, b)
	s.writing.Unlock()
	s.help()
	return err
}

// push queues the reply of a worker and sees to it that somebody writes it.
func (s *sender) push(t *task) {
	s.mu.Lock()
	s.mu.queue = append(s.mu.queue, t)
	s.queued.Add(1)
	s.mu.Unlock()
	s.help()
}

// help writes the queue unless somebody else has the socket: that one looks again after letting go of it, so nothing is left behind.
func (s *sender) help() {
	for s.queued.Load() > 0 && s.writing.TryLock() {
		_ = s.writeLocked(nil, nil) // an error has cut the client off, so its reader learns of it
		s.writing.Unlock()
	}
}

// maxVector bounds one write to a unix socket, in bytes; over a network it is progress. So a slow client shows that it moves (conn.writeStall).
const maxVector = 1 << 20

// writeLocked writes a, b and the queue, and frees the tasks. An error cuts the client off.
func (s *sender) writeLocked(a, b []byte) error {
	if s.queued.Load() > 0 {
		s.mu.Lock()
		s.sent, s.mu.queue = s.mu.queue, s.sent[:0]
		s.queued.Store(0)
		s.mu.Unlock()
		s.c.unanswered.Add(-int32(len(s.sent)))
	}
	s.backing = s.backing[:0]
	size, err := 0, error(nil)
	add := func(p []byte) {
		if len(p) == 0 || err != nil {
			return
		}
		if size += len(p); size > s.c.vector {
			err = s.writeVector()
			size = len(p)
		}
		s.backing = append(s.backing, p)
	}
	add(a)
	add(b)
	for _, t := range s.sent {
		add(t.reply)
	}
	if err == nil {
		err = s.writeVector()
	}
	if err != nil {
		s.c.kill()
	}
	for i, t := range s.sent {
		s.sent[i] = nil
		t.free()
	}
	s.sent = s.sent[:0]
	return err
}

// writeVector writes and empties backing.
func (s *sender) writeVector() error {
	if len(s.backing) == 0 {
		return nil
	}
	nc := s.c.stream
	var err error
	s.c.writeStall.Store(time.Now().UnixNano())
	switch {
	case len(s.backing) > 1 && s.c.encrypted != nil:
		err = s.join()
	case len(s.backing) > 1:
		s.vec = s.backing
		_, err = s.vec.WriteTo(nc)
	default:
		for p := s.backing[0]; len(p) > 0 && err == nil; {
			n := min(len(p), s.c.vector)
			s.c.writeStall.Store(time.Now().UnixNano())
			_, err = nc.Write(p[:n])
			p = p[n:]
		}
	}
	s.c.writeStall.Store(0)
	clear(s.backing)
	s.backing = s.backing[:0]
	return err
}

// maxRecord is the plain text of a full TLS record, in bytes.
const maxRecord = 16 << 10

// join writes backing in records as full as they get: each is sealed and sent alone.
func (s *sender) join() error {
	if s.joined == nil {
		s.joined = bufio.NewWriterSize(s.c.encrypted, maxRecord)
	}
	for _, p := range s.backing {
		if _, err := s.joined.Write(p); err != nil {
			return err
		}
	}
	return s.joined.Flush()
}
