package blockstore

import (
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// Streams are long runs of large writes: an installation, a copy of a disk, a dump. They have room of their own beside the log's cap, so they are acknowledged at the pace of the device and not at that of
// hashing and compression, and destage leaves the cores to them while they last (docs/rfc/0028).
const (
	// streamWrite is the least length of a write that can be part of a stream, in bytes.
	streamWrite = 256 << 10
	// streamFrom is how much a volume must be given in such writes, without a rest of streamRest, before it is taken for a stream: what is smaller goes through the page cache, since it may well be read
	// again soon, and fits the log.
	streamFrom = 128 << 20
	streamRest = time.Second
	// streamShare is the part of the file system that streams may take in the log at most.
	streamShare = 16
	// streamOver is how long no stream may have been written to anything until destage takes for granted that none is under way.
	streamOver = 500 * time.Millisecond
	// streamPart is how much of the streams' room may be taken while one is under way, in parts of 1000, before destage works beside it.
	streamPart = 750
)

// streamGauge knows whether a volume is being streamed to. It needs no more precision than its races give it.
type streamGauge struct {
	bytes atomic.Int64 // since the last rest
	last  atomic.Int64 // when a large write came, in ns since 1970
}

// wrote notes a batch whose longest write had so many bytes.
func (g *streamGauge) wrote(o *Options, longest int, bytes int64) {
	if longest < o.streamWrite {
		return
	}
	now := time.Now().UnixNano()
	if now-g.last.Swap(now) >= int64(streamRest) {
		g.bytes.Store(0)
	}
	g.bytes.Add(bytes)
}

// streams reports whether a batch of so many bytes goes on with a stream for which there is room. For small writers it is one load.
func (v *Volume) streams(batch []block.Write, bytes int64) bool {
	o, g := &v.s.opts, &v.stream
	return g.bytes.Load() >= o.streamFrom && longestWrite(batch) >= o.streamWrite && v.s.log.StreamRoom() >= bytes && time.Now().UnixNano()-g.last.Load() < int64(streamRest)
}

// longestWrite is the length of the longest write of a batch.
func longestWrite(batch []block.Write) (n int) {
	for i := range batch {
		n = max(n, len(batch[i].Data))
	}
	return n
}

// streamDue reports whether destage shall take down what streams have left in the log.
func (s *Store) streamDue(u journal.Usage) bool {
	if u.Stream == 0 {
		return false
	}
	return time.Now().UnixNano()-s.streamed.Load() >= int64(streamOver) || u.Stream >= s.opts.StreamBytes*streamPart/1000
}

// boundStreams keeps the streams' room within what the file system can spare.
func (s *Store) boundStreams() {
	usage, err := s.diskUsage()
	if err != nil {
		usage.TotalBytes = 0
	}
	s.opts.StreamBytes = min(s.opts.StreamBytes, int64(usage.TotalBytes/streamShare))
}

// streamSlot is what a block takes in an overlay where a stream went, in bytes.
const streamSlot = 16

// streamSlots is how much of the overlays belongs to streams that have room of their own in the log.
func streamSlots(u journal.Usage) int64 { return (u.Live - u.Charged) / block.Size * streamSlot }

const (
	// fetchGap is how far apart in the log pieces may lie that are asked for together, in bytes.
	fetchGap = 64 << 10
	// fetchAlone is how many blocks that lie elsewhere are asked for by themselves, at most; more begin a range of their own.
	fetchAlone = 8
)

// fetchPieces asks the kernel for what is left of streams between blocks that were rewritten since. The page cache does not have it, and it is read piece by piece: each would wait for the device. The slots of a
// region come by block; what a stream wrote there lies in that order in the log, and what came later lies anywhere. The caller holds a pin of the log.
func (s *Store) fetchPieces(slots []overlay.Slot) {
	var from, end journal.Pos
	for len(slots) > 0 {
		first, n := slots[0], runLen(slots)
		slots = slots[n:]
		pos := journal.Pos(first.Pos)
		if first.Kind != overlay.Data || n*block.Size >= journal.AroundLeast || !s.log.Streamed(pos) {
			continue
		}
		stop := pos + journal.Pos(n)*block.Size
		switch {
		case pos >= from && pos <= end+fetchGap && pos.File() == from.File():
			end = max(end, stop)
			continue
		case end > from && n < fetchAlone:
			s.log.Prefetch(pos, int64(n)*block.Size)
			continue
		case end > from:
			s.log.Prefetch(from, int64(end-from))
		}
		from, end = pos, stop
	}
	if end > from {
		s.log.Prefetch(from, int64(end-from))
	}
}

// streamedTo notes how far the log went when a stream was written to last.
func (s *Store) streamedTo(end journal.Pos) {
	for {
		old := s.streamEnd.Load()
		if old >= uint64(end) || s.streamEnd.CompareAndSwap(old, uint64(end)) {
			return
		}
	}
}

// afterStream reports whether a region has something of a stream, or lies in front of one that is still there: what is left of it frees no room of the log's cap when it is rewritten, and holds the files behind it.
func (s *Store) afterStream(c *candidate) bool {
	return c.info.OldestPos < s.streamEnd.Load() && (c.streamed() || s.log.Streamed(journal.Pos(c.info.OldestPos)))
}

// mayStream reports whether the log may have records of streams. The first makes older programs refuse the store.
func (s *Store) mayStream() bool {
	if s.streaming.Load() {
		return true
	}
	now := time.Now().UnixNano()
	if now < s.streamRetry.Load() {
		return false
	}
	if err := s.needFeature(incompatStreams); err != nil {
		s.streamRetry.Store(now + int64(time.Minute))
		s.report("streams", err)
		return false
	}
	s.streaming.Store(true)
	return true
}
