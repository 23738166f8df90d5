package nbd

import "sync/atomic"

// Stats are a server's counters since it was made.
type Stats struct {
	Connections int    // open now, those in handshake included
	Accepted    uint64 // connections ever accepted
	Refused     uint64 // closed on arrival because there were too many
	Evicted     uint64 // dropped because they stalled while memory was short

	Read, Write, Flush, Trim, Cache, WriteZeroes, BlockStatus CommandStats

	Invalid      uint64 // requests refused without asking the device
	WriteBatches uint64 // calls of Device.TryWrite and Device.Write
	Slow         uint64 // requests and batches that went to a worker
}

// CommandStats count the requests of one command that reached the device.
type CommandStats struct {
	Requests uint64
	Bytes    uint64
	Errors   uint64
}

// tally collects counts where they arise, without atomics; it is added to the server's counters once per pass.
type tally struct {
	requests, bytes, errors [commandCount]uint64
	invalid, batches, slow  uint64
	dirty                   bool
}

// count notes n requests of one command with size bytes in all, failed or not.
func (t *tally) count(cmd Command, n int, size uint64, failed bool) {
	t.dirty = true
	t.requests[cmd] += uint64(n)
	t.bytes[cmd] += size
	if failed {
		t.errors[cmd] += uint64(n)
	}
}

func (t *tally) countInvalid() {
	t.dirty = true
	t.invalid++
}

func (t *tally) countSlow() {
	t.dirty = true
	t.slow++
}

// counters are the server's sums.
type counters struct {
	accepted, refused, evicted atomic.Uint64
	requests, bytes, errors    [commandCount]atomic.Uint64
	invalid, batches, slow     atomic.Uint64
}

// add moves t into the sums and clears it.
func (c *counters) add(t *tally) {
	if !t.dirty {
		return
	}
	for i := range commandCount {
		addNonZero(&c.requests[i], t.requests[i])
		addNonZero(&c.bytes[i], t.bytes[i])
		addNonZero(&c.errors[i], t.errors[i])
	}
	addNonZero(&c.invalid, t.invalid)
	addNonZero(&c.batches, t.batches)
	addNonZero(&c.slow, t.slow)
	*t = tally{}
}

// addNonZero spares the bus the locked additions of nothing, which are most of them.
func addNonZero(c *atomic.Uint64, n uint64) {
	if n != 0 {
		c.Add(n)
	}
}

// count notes one request.
func (c *counters) count(cmd Command, size uint64, failed bool) {
	c.requests[cmd].Add(1)
	c.bytes[cmd].Add(size)
	if failed {
		c.errors[cmd].Add(1)
	}
}

func (c *counters) command(cmd Command) CommandStats {
	return CommandStats{Requests: c.requests[cmd].Load(), Bytes: c.bytes[cmd].Load(), Errors: c.errors[cmd].Load()}
}

// Stats returns the counters. They are read one by one and need not agree to the last request.
func (s *Server) Stats() Stats {
	c := &s.counters
	s.mu.Lock()
	open := len(s.mu.conns)
	s.mu.Unlock()
	return Stats{
		Connections: open, Accepted: c.accepted.Load(), Refused: c.refused.Load(), Evicted: c.evicted.Load(),
		Read: c.command(CmdRead), Write: c.command(CmdWrite), Flush: c.command(CmdFlush), Trim: c.command(CmdTrim),
		Cache: c.command(CmdCache), WriteZeroes: c.command(CmdWriteZeroes), BlockStatus: c.command(CmdBlockStatus),
		Invalid: c.invalid.Load(), WriteBatches: c.batches.Load(), Slow: c.slow.Load(),
	}
}
