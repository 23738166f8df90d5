package blockstore

import (
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

// What to do with a region whose blocks have come to the log's old end: heat decides (docs/architecture.md). To move a block to the log's new end costs about a tenth of what
// cutting, hashing, packing and mapping it costs. If the blocks of a region are rewritten x times, at random, while the log goes round once, the part e^(-x) of them is alive
// when it comes to the old end: keeping the region costs that many moves a round, taking it down costs the other blocks' destage. So keeping pays from about x = 0.1 on, and
// the more the larger x is; what limits it is the room that kept blocks take from the log, which makes its rounds shorter for all (Rosenblum, Ousterhout 1991).
const (
	// keepFrom is the least x of a region that stays. It lies above what pays, since a region that stays is not reduced.
	keepFrom = 0.3
	// keepPart is how much of the log, and of the memory for overlays, kept regions may take, in parts of 1000. At 650, and x alike everywhere, the work for a write is about
	// least: with more of the log kept it goes round so fast that moving costs what destage did.
	keepPart = 650
	// keepSwap is how much hotter than the coldest kept region another one must be to take its place. Both have to be handled then.
	keepSwap = 1.5
	// keepMark is the fill of the log, in parts of 1000, below which regions that are being rewritten are left alone: the longer they lie, the more of their blocks die. Measured at a
	// cap of 3 GiB with 2 GiB of it rewritten at random: 64,000 writes/s at 650, 88,000 at 820.
	keepMark = 820
	// keepHard is the fill above which nothing is kept: the log must be emptied for good.
	keepHard = 940
	// quietAfter is how long nothing must have been written to a region until it counts as cold, whatever it was before.
	quietAfter = 5 * time.Second
	// judgeAfter is how much must have been logged, as a part of the cap, before a region's x is measured again.
	judgeAfter = 16
)

// verdict says what becomes of a region.
type verdict uint8

const (
	goDown verdict = iota // it is destaged
	stay                  // its old blocks move to the log's new end
	wait                  // nothing yet
)

// hotSet remembers which regions have come to the log's old end and how fast they are being rewritten. It belongs to the destager's goroutine.
type hotSet struct {
	s     *Store
	quiet time.Duration // after which a region that nobody writes to is cold
	known map[regionKey]*heat
	kept  int64       // blocks of the kept ones, as they were when they were looked at last
	tidy  journal.Pos // end of the log when stale ones were forgotten last
}

func newHotSet(s *Store) hotSet {
	return hotSet{s: s, quiet: s.opts.quietAfter, known: make(map[regionKey]*heat)}
}

type regionKey struct {
	node   nodeID
	region uint64
}

// heat is what is known of one region.
type heat struct {
	x       float64     // times its blocks are rewritten while the log goes round
	writes  uint32      // RegionInfo.Writes when x was measured
	had     int         // RegionInfo.Blocks then
	pos     journal.Pos // end of the log then
	seen    uint32      // RegionInfo.Writes at the last look
	changed time.Time   // when a look last found it written to
	kept    bool
	blocks  int64 // if kept: its part of hotSet.kept
}

// hotSetMost bounds what is remembered, in regions; some 100 B each.
const hotSetMost = 1 << 16

// logBytes turns a position into bytes logged before it.
func (s *Store) logBytes(p journal.Pos) int64 {
	return int64(p.File())*s.opts.LogFileBytes + int64(uint32(p))
}

// judge says what becomes of a region of a head. old is the position where the log's old end ends: what lies behind it has time.
func (k *hotSet) judge(c candidate, old, end journal.Pos, now time.Time) verdict {
	if c.info.Zeroed || c.info.Zeros > 0 || c.info.Blocks == 0 {
		return goDown
	}
	h := k.look(c, end, now)
	fill := k.s.space.fill.Load()
	switch {
	case now.Sub(h.changed) >= k.quiet, h.x < keepFrom && k.s.destager.ageOf(journal.Pos(c.info.OldestPos), now) >= k.s.opts.DestageAfter:
		return goDown
	case c.streamed() && fill >= fillDestage, k.s.destager.over && k.s.afterStream(&c):
		return goDown
	case c.info.OldestPos >= uint64(old), fill < keepMark && fill >= fillDestage:
		return wait
	case h.x >= keepFrom && fill < keepHard && k.admit(h, int64(c.info.Blocks)):
		return stay
	}
	return goDown
}

// streamed reports whether all of a region was written, and each block as often: a stream went over it, or several did, and more of it probably comes. To wait for rewrites would leave cores idle until the log is
// full, and the stream waiting from then on.
func (c *candidate) streamed() bool {
	return c.info.Blocks == block.BlocksPerRegion && c.info.Writes%block.BlocksPerRegion == 0
}

// look brings what is known of a region up to date.
func (k *hotSet) look(c candidate, end journal.Pos, now time.Time) *heat {
	key := regionKey{c.n.id, c.info.Region}
	round := float64(k.s.opts.LogCapBytes)
	h := k.known[key]
	if h == nil {
		if len(k.known) >= hotSetMost {
			k.forgetSome(end)
		}
		h = &heat{changed: now, seen: c.info.Writes, writes: c.info.Writes, had: c.info.Blocks, pos: end}
		k.known[key] = h
		if k.s.destager.ageOf(journal.Pos(c.info.NewestPos), now) >= k.quiet {
			h.changed = now.Add(-k.quiet)
		}
		// Of w writes to random blocks of a region y times its size, b = (1-e^(-y))·w/y blocks are alive. For small y, y is 2(w/b-1), and for large y, w/b.
		again := float64(c.info.Writes)/float64(c.info.Blocks) - 1
		h.x = (again + min(1, again)) * round / float64(max(1, k.s.logBytes(end)-k.s.logBytes(journal.Pos(c.info.OldestPos))))
		return h
	}
	if c.info.Writes != h.seen {
		h.seen, h.changed = c.info.Writes, now
	}
	if passed := k.s.logBytes(end) - k.s.logBytes(h.pos); passed >= k.s.opts.LogCapBytes/judgeAfter {
		// A region that was trimmed meanwhile counts from 0 again: the difference is negative then, and says nothing.
		again := float64(int32(c.info.Writes-h.writes)) - float64(max(0, c.info.Blocks-h.had)) // and not for the first time
		x := max(0, again) / float64(c.info.Blocks) * round / float64(passed)
		h.x, h.writes, h.had, h.pos = (h.x+x)/2, c.info.Writes, c.info.Blocks, end
	}
	return h
}

// admit reports whether a region may stay, and books it then: one that did before, if it is no burden, or one for which there is room, or that is so much hotter than another
// that it gets the other's.
func (k *hotSet) admit(h *heat, blocks int64) bool {
	most := k.s.keepable()
	k.unkeep(h)
	if k.kept+blocks > most {
		coldest := k.coldest()
		if coldest == nil || h.x < coldest.x*keepSwap || k.kept-coldest.blocks+blocks > most {
			return false
		}
		k.unkeep(coldest)
	}
	h.kept, h.blocks = true, blocks
	k.kept += blocks
	return true
}

func (k *hotSet) unkeep(h *heat) {
	k.kept -= h.blocks
	h.kept, h.blocks = false, 0
}

func (k *hotSet) coldest() (c *heat) {
	for _, h := range k.known {
		if h.kept && (c == nil || h.x < c.x) {
			c = h
		}
	}
	return c
}

// cool takes a region that could not stay for a cold one: the next round takes it down.
func (k *hotSet) cool(c candidate) {
	if h := k.known[regionKey{c.n.id, c.info.Region}]; h != nil {
		k.unkeep(h)
		h.changed = h.changed.Add(-k.quiet)
		h.x = 0
	}
}

// gone forgets a region that goes down.
func (k *hotSet) gone(c candidate) {
	key := regionKey{c.n.id, c.info.Region}
	if h := k.known[key]; h != nil {
		k.unkeep(h)
		delete(k.known, key)
	}
}

// goRound forgets what is stale once in a round of the log: nobody else takes the room from a kept region that never comes to the old end again.
func (k *hotSet) goRound(end journal.Pos) {
	if k.s.logBytes(end)-k.s.logBytes(k.tidy) > k.s.opts.LogCapBytes {
		k.tidy = end
		k.forgetStale(end)
	}
}

// forgetStale forgets what nobody has looked at while the log went round: regions that were trimmed, or whose volume is gone.
func (k *hotSet) forgetStale(end journal.Pos) {
	for key, h := range k.known {
		if k.s.logBytes(end)-k.s.logBytes(h.pos) > k.s.opts.LogCapBytes {
			k.unkeep(h)
			delete(k.known, key)
		}
	}
}

// forgetSome makes room for what is known of one more region. If all are fresh it forgets all: then no region's heat is worth much.
func (k *hotSet) forgetSome(end journal.Pos) {
	k.forgetStale(end)
	if len(k.known) >= hotSetMost {
		clear(k.known)
		k.kept = 0
	}
}

// keepable is how many blocks may stay in the log for good.
func (s *Store) keepable() int64 {
	return min(s.opts.LogCapBytes/blockInLog, s.plan.overlay/slotMemory) * keepPart / 1000
}

// blockInLog is what a block takes in the log, in bytes: with its record's header and its line in the file's index.
const blockInLog = 4096 + 160
