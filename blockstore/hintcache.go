package blockstore

import (
	"encoding/binary"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// hintCache keeps hints that were made or found lately: data that is doubled is often doubled soon. An entry may be wrong in every way; whoever follows it compares the chunk's
// row with the whole hash. It is used only by the holder of Store.meta.
type hintCache struct{ sets []hintSet }

// hintSet holds hints whose hashes begin alike, the one that was last put or found first.
type hintSet [hintWays]hintEntry

type hintEntry struct {
	hash uint64        // its bytes 8 to 16
	id   block.ChunkID // 0: empty
}

const (
	hintWays     = 4
	hintSetBytes = hintWays * 16
)

func newHintCache(bytes int64) *hintCache {
	return &hintCache{make([]hintSet, max(1, bytes/hintSetBytes))}
}

func (c *hintCache) set(hash *[16]byte) (*hintSet, uint64) {
	n := binary.LittleEndian.Uint64(hash[:8]) % uint64(len(c.sets))
	return &c.sets[n], binary.LittleEndian.Uint64(hash[8:])
}

// find returns the chunk that a hash may be known under.
func (c *hintCache) find(hash *[16]byte) (block.ChunkID, bool) {
	set, key := c.set(hash)
	for i, e := range set {
		if e.id != 0 && e.hash == key {
			copy(set[1:i+1], set[:i])
			set[0] = e
			return e.id, true
		}
	}
	return 0, false
}

// put keeps a hint, in place of an older one of the same hash.
func (c *hintCache) put(hash *[16]byte, id block.ChunkID) {
	set, key := c.set(hash)
	last := hintWays - 1
	for i, e := range set {
		if e.id != 0 && e.hash == key {
			last = i
			break
		}
	}
	copy(set[1:last+1], set[:last])
	set[0] = hintEntry{key, id}
}

// drop forgets a hint to a chunk that is gone, unless a newer one has its place.
func (c *hintCache) drop(hash *[16]byte, id block.ChunkID) {
	set, key := c.set(hash)
	for i, e := range set {
		if e.id == id && e.hash == key {
			copy(set[i:], set[i+1:])
			set[hintWays-1] = hintEntry{}
			return
		}
	}
}
