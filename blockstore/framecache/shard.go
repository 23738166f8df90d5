package framecache

import (
	"encoding/binary"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// chunkSize is the length of an encoded Chunk in front of a frame's bytes.
const chunkSize = 40

// shard is a part of the cache with its own memory and queues. mu guards all but the counters.
type shard struct {
	counters
	mu sync.Mutex

	pages
	index   map[Key]uint32 // place in entries
	entries []entry
	unused  []uint32 // places in entries
	small   queue
	main    queue
	ghosts  ghosts
	puts    uint32 // so far
	copies  uint32 // so far
	offers  uint32 // frames that came, kept or not
	reuse   uint32 // how many of the frames in the small queue are asked for, of reuseAll; a mean in which later ones count more
	grace   uint32 // puts within which uses of a frame are one
	closed  bool
}

// entry is a frame that is here. It holds no pointer.
type entry struct {
	key      Key
	verified uint64
	first    uint32 // page
	last     uint32 // page
	count    uint32 // pages
	chunks   uint32
	next     uint32 // in its queue
	puts     uint32 // of the shard at the last use that counted
	copies   uint32 // likewise
	uses     uint8  // up to maxUses
	touched  bool   // asked for at all since it was put in
	inMain   bool
}

const (
	reuseAll  = 1 << 16
	reuseStep = 64
	// reuseLow is one in sixteen: a copy into the cache costs about that part of reading a frame again.
	reuseLow = reuseAll / 16
)

// maxUses is where counting ends: two bits, as the paper has it.
const maxUses = 3

func (s *shard) init(budget int64) {
	s.pages.init(int(budget / (pageSize + pageOverhead)))
	s.index = make(map[Key]uint32)
	s.entries = make([]entry, 1) // 0 is nobody
	s.reuse = reuseAll
	// As many ghosts as frames of the usual size fit.
	s.ghosts.init(s.total / (16 << 10 / pageSize))
	s.grace = uint32(max(1, s.total/(16<<10/pageSize)/80))
}

func (s *shard) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	clear(s.index)
	s.small, s.main = queue{}, queue{}
	return s.pages.close()
}

// copy is Cache.Copy.
func (s *shard) copy(k Key, want Chunk, at uint32, p []byte) Result {
	i, ok := s.index[k]
	if !ok {
		return Miss
	}
	e := &s.entries[i]
	s.use(e)
	n, off, _, ok := s.find(e, want)
	switch {
	case !ok || uint64(at)+uint64(len(p)) > uint64(want.Len):
		return Stranger
	case n >= 64 || e.verified&(1<<n) == 0:
		return Unverified
	}
	s.read(e.first, off+at, p)
	return Hit
}

// use counts a use, unless it belongs together with the last one: there were hardly any new frames since, nor so many uses of others that this one is anything but hot.
func (s *shard) use(e *entry) {
	s.copies++
	if !e.touched {
		e.touched = true
		s.reuse += (reuseAll - s.reuse) / reuseStep
	}
	if e.uses < maxUses && (s.puts-e.puts >= s.grace || s.copies-e.copies >= 8*uint32(len(s.index))) {
		e.uses++
		e.puts, e.copies = s.puts, s.copies
	}
}

// find returns which chunk of a frame is wanted, where its bytes begin among what the frame takes in pages, and its whole hash.
func (s *shard) find(e *entry, want Chunk) (i int, off uint32, hash block.Hash, ok bool) {
	var b [chunkSize]byte
	le := binary.LittleEndian
	lo, hi := 0, int(e.chunks)
	for lo < hi {
		mid := (lo + hi) / 2
		s.read(e.first, uint32(mid)*chunkSize, b[:])
		switch off := le.Uint32(b[32:]); {
		case off < want.Off:
			lo = mid + 1
		case off > want.Off:
			hi = mid
		default:
			ok = [16]byte(b[:16]) == want.Hash && le.Uint32(b[36:]) == want.Len
			return mid, e.chunks*chunkSize + want.Off, block.Hash(b[:32]), ok
		}
	}
	return 0, 0, block.Hash{}, false
}

// put is Cache.Put; h is the hash of k. A frame that is not expected again is only remembered.
func (s *shard) put(k Key, h uint64, f Frame) {
	if s.closed {
		return
	}
	if i, ok := s.index[k]; ok {
		s.entries[i].verified |= f.Verified
		return
	}
	back := s.ghosts.take(h)
	s.offers++
	if !back && (f.Passing || s.free < s.total/16 && s.reuse < reuseLow && s.offers%8 != 0) {
		s.ghosts.add(h)
		return
	}
	size := len(f.Chunks)*chunkSize + len(f.Raw)
	need := (size + pageSize - 1) / pageSize
	if need > s.total/8 {
		return
	}
	for s.free < need {
		s.evict()
	}
	s.puts++
	e := entry{key: k, verified: f.Verified, count: uint32(need), chunks: uint32(len(f.Chunks)), puts: s.puts, copies: s.copies}
	e.first, e.last = s.take(need)
	w := pageWriter{pages: &s.pages, page: e.first}
	var b [chunkSize]byte
	le := binary.LittleEndian
	for i := range f.Chunks {
		c := &f.Chunks[i]
		copy(b[:], c.Hash[:])
		le.PutUint32(b[32:], c.RawOff)
		le.PutUint32(b[36:], c.RawLen)
		w.write(b[:])
	}
	w.write(f.Raw)

	e.inMain = back
	i := uint32(len(s.entries))
	if n := len(s.unused); n > 0 {
		i, s.unused = s.unused[n-1], s.unused[:n-1]
		s.entries[i] = e
	} else {
		s.entries = append(s.entries, e)
	}
	s.index[k] = i
	s.queueOf(&e).push(s.entries, i)
}

func (s *shard) queueOf(e *entry) *queue {
	if e.inMain {
		return &s.main
	}
	return &s.small
}

// evict moves on by one frame: one leaves, or goes from one place in the queues to another.
func (s *shard) evict() {
	if s.small.pages > s.total/10 || s.main.pages == 0 {
		i := s.small.pop(s.entries)
		e := &s.entries[i]
		if e.uses > 0 {
			e.uses, e.inMain = 0, true
			s.main.push(s.entries, i)
			return
		}
		if !e.touched {
			s.reuse -= s.reuse / reuseStep
		}
		s.ghosts.add(e.key.hash())
		s.drop(i)
		return
	}
	i := s.main.pop(s.entries)
	if e := &s.entries[i]; e.uses > 0 {
		e.uses--
		s.main.push(s.entries, i)
		return
	}
	s.drop(i)
}

// drop forgets a frame that is in no queue.
func (s *shard) drop(i uint32) {
	e := &s.entries[i]
	s.give(e.first, e.last, int(e.count))
	delete(s.index, e.key)
	*e = entry{}
	s.unused = append(s.unused, i)
}
