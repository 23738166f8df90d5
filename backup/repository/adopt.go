package repository

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// maxAdopted is how many chunks bound a run of adopted packs, its memory and what a reader takes: one pack has no more.
const maxAdopted = 1 << 20

// Adopt compares the packs that the index knows with those that are there. It reads the directories of packs that no run lists: a writer died before it stored one, or the run is lost. What
// they hold need not be stored again. It returns how many there were. What a prune has marked is left to it. A pack that cannot be read is told to bad, which may be nil, and is of no use to
// anybody. Packs that are lost, or cut off, are told too; writers do not rely on them after that, so what they held is stored anew by the backups that have it.
func (r *Repository) Adopt(ctx context.Context, bad func(key string, err error)) (int, error) {
	known := r.index.all() // whatever these say was there when they were read
	whole := make([]bool, len(known))
	count, err := r.adopt(ctx, bad, func(o backend.Object) {
		if number, ok := r.index.number(packName(o.Key)); ok && int(number) < len(known) {
			whole[number] = o.SizeBytes == int64(known[number].size)
		}
	})
	if err != nil {
		return count, err
	}
	first, lost := "", 0
	for number := range known {
		if whole[number] {
			continue
		}
		if r.index.lose(uint32(number)); known[number].marked { // a prune has deleted it
			continue
		}
		if lost++; lost == 1 {
			first = packKey(known[number].name)
		}
	}
	if lost == 0 {
		return count, nil
	}
	r.index.setIncomplete()
	if bad != nil {
		bad(first, fmt.Errorf("the index lists %d packs that are lost or cut off, this is one; backups store anew what they held, and `repo verify` says which backups need it: %w", lost, block.ErrNotFound))
	}
	return count, nil
}

func (x *Index) setIncomplete() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.mu.incomplete = true
}

// Incomplete reports whether Adopt has missed packs. Then what a backup in the repository needs may not be there, and who makes another one must look for each chunk.
func (x *Index) Incomplete() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.mu.incomplete
}

// adopt is Adopt without a look for what is lost. there is told each pack that is there.
func (r *Repository) adopt(ctx context.Context, bad func(key string, err error), there func(backend.Object)) (int, error) {
	var adopted []runPack
	count, chunks := 0, 0
	store := func() (err error) {
		if len(adopted) > 0 && elapsed(r.index.loaded()) < freshness { // later a prune may have deleted what a run would list
			_, err = r.storeRun(ctx, adopted)
		}
		adopted, chunks = nil, 0
		return err
	}
	err := r.backend.List(ctx, packPrefix, func(o backend.Object) error {
		there(o)
		name := packName(o.Key)
		id, err := hex.DecodeString(name)
		if err != nil || len(id) != len(block.Hash{}) || r.index.knows(name) || r.index.isMarked(name) {
			return nil
		}
		p := runPack{name: block.Hash(id)}
		if p.size, p.first, p.frames, err = r.readDirectory(ctx, o.Key, o.SizeBytes); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if bad != nil {
				bad(o.Key, err)
			}
			return nil
		}
		r.index.add(name, p.size, p.frames)
		adopted = append(adopted, p)
		count++
		for i := range p.frames {
			chunks += len(p.frames[i].Chunks)
		}
		if len(adopted) < packsPerMerged && chunks < maxAdopted {
			return nil
		}
		return store()
	})
	if err == nil {
		err = store()
	}
	return count, err
}

// readDirectory reads what a pack holds. A writer's keys suffice.
func (r *Repository) readDirectory(ctx context.Context, key string, size int64) (uint32, uint32, []pack.Frame, error) {
	fail := func(err error) (uint32, uint32, []pack.Frame, error) {
		return 0, 0, nil, fmt.Errorf("%s: %w", key, err)
	}
	if size < pack.TrailerSize || size > pack.MaxSize {
		return fail(&block.CorruptError{Source: "pack", Want: "a size", Got: fmt.Sprintf("%d B", size)})
	}
	tail := make([]byte, pack.TrailerSize)
	if err := r.backend.ReadAt(ctx, key, tail, size-pack.TrailerSize); err != nil {
		return fail(err)
	}
	t, err := pack.DecodeTrailer(tail, size)
	if err != nil {
		return fail(err)
	}
	h, err := r.readHeader(ctx, key, size)
	if err != nil {
		return fail(err)
	}
	sealed := make([]byte, t.DirectoryLen)
	if err := r.backend.ReadAt(ctx, key, sealed, size-pack.TrailerSize-int64(len(sealed))); err != nil {
		return fail(err)
	}
	frames, err := pack.OpenDirectory(r.keys, h, t, sealed)
	if err != nil {
		return fail(err)
	}
	return uint32(size), uint32(h.Size()), frames, nil
}

func (r *Repository) readHeader(ctx context.Context, key string, size int64) (*pack.Header, error) {
	head := make([]byte, min(size, pack.HeaderSize))
	if err := r.backend.ReadAt(ctx, key, head, 0); err != nil {
		return nil, err
	}
	return pack.DecodeHeader(head, r.keys.Repository)
}
