package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// What is in a pack, runs say; who has a writer's keys can make runs that lie about the packs of others. When two differ, the directory of the pack itself decides: the pack's name is the
// hash of its bytes, so nobody can change it.

// listingSeed makes sums that nobody outside of this process can foresee.
var listingSeed = maphash.MakeSeed()

// listingSum is a sum of what a run says of a pack.
func listingSum(size uint32, frames []pack.Frame) uint64 {
	var h maphash.Hash
	h.SetSeed(listingSeed)
	var b [12]byte
	number := func(numbers ...uint32) {
		for i, n := range numbers {
			binary.LittleEndian.PutUint32(b[4*i:], n)
		}
		_, _ = h.Write(b[:4*len(numbers)]) // it never fails
	}
	number(size, uint32(len(frames)))
	for i := range frames {
		f := &frames[i]
		number(f.Off, f.Len, uint32(len(f.Chunks)))
		for j := range f.Chunks {
			_, _ = h.Write(f.Chunks[j].ID[:])
			number(f.Chunks[j].Raw)
		}
	}
	return h.Sum64()
}

// resolve asks the packs themselves about which runs differ. One that does not say stays disputed.
func (r *Repository) resolve(ctx context.Context) error {
	for number, info := range r.index.all() {
		if !info.disputed || info.gone {
			continue
		}
		if _, err := r.straighten(ctx, uint32(number)); errors.Is(err, block.ErrNotFound) {
			continue // a prune has deleted it
		} else if err != nil && (ctx.Err() != nil || !errors.Is(err, block.ErrCorrupt)) {
			return fmt.Errorf("pack %s, of which runs say different things: %w", info.name, err)
		}
	}
	return nil
}

// straighten takes the word of a pack's own directory for what is in it, and reports whether that was not known.
func (r *Repository) straighten(ctx context.Context, number uint32) (changed bool, err error) {
	key := packKey(r.index.pack(number).name)
	o, err := r.backend.Stat(ctx, key)
	if err != nil {
		return false, err
	}
	size, _, frames, err := r.readDirectory(ctx, key, o.SizeBytes)
	if err != nil {
		return false, err
	}
	return r.index.correct(number, size, frames), nil
}

// correct notes what is in a pack, and reports whether that was not known.
func (x *Index) correct(number, size uint32, frames []pack.Frame) (changed bool) {
	listing := listingSum(size, frames)
	x.mu.Lock()
	defer x.mu.Unlock()
	info := &x.mu.packs[number]
	kept := withoutChunks(frames)
	changed = !slices.EqualFunc(kept, info.frames, func(a, b pack.Frame) bool { return a.Off == b.Off && a.Len == b.Len && a.Raw == b.Raw })
	info.frames, info.size, info.listing, info.disputed = kept, size, listing, false
	for i := range frames {
		off := uint32(0)
		for _, c := range frames[i].Chunks {
			changed = x.putLocked(shortID(c.ID[:16]), place{pack: number, frame: uint32(i), off: off, raw: c.Raw}) || changed
			off += c.Raw
		}
	}
	return changed
}

// sharing returns the packs that hold a chunk which lies elsewhere too, as far as that is known; all reports that it is not.
func (x *Index) sharing() (packs map[uint32]bool, all bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	packs = make(map[uint32]bool)
	for _, places := range x.mu.spares {
		for _, p := range places {
			packs[p.pack] = true
		}
	}
	for number := range x.mu.packs {
		if x.mu.packs[number].disputed {
			packs[uint32(number)] = true
		}
	}
	return packs, x.mu.lost
}
