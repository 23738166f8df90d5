package repository

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// PruneOptions say how to prune.
type PruneOptions struct {
	// Grace is how old a mark must be before its packs are deleted, and a pack before it is marked; at least MinGrace.
	Grace time.Duration
	// Alone takes the user's word that nobody else uses the repository: there is no grace.
	Alone bool
	// RepackBytes bounds the data that is copied out of packs that are mostly dead, in bytes before compression.
	RepackBytes uint64
	// DryRun changes nothing.
	DryRun bool
	// Damaged goes on although backups are damaged, or a run of the index is: what is lost stays lost, and what only a lost page led to counts as not needed.
	Damaged bool
	// Reachable calls visit with each chunk that a backup needs, any number of times. It returns what visit does, but may go on after block.ErrCorrupt, which is a chunk that is lost.
	Reachable func(ctx context.Context, visit func(block.Hash) error) error
	// Warn is told what could not be read and is left as it is.
	Warn func(key string, err error)
	// Progress is told how far a phase of what follows Reachable is, in bytes; it may be nil.
	Progress func(phase string, done, total uint64)
}

// Phases of a prune, for Progress.
const (
	PhaseCheck  = "checking what stays" // before packs go whose chunks lie elsewhere too
	PhaseDelete = "deleting"
	PhaseCopy   = "copying what is alive"
)

func (o *PruneOptions) tell(phase string, done, total uint64) {
	if o.Progress != nil {
		o.Progress(phase, done, total)
	}
}

func (o *PruneOptions) warn(key string, err error) {
	if o.Warn != nil {
		o.Warn(key, err)
	}
}

// Pruned is what a prune did, or with DryRun would do.
type Pruned struct {
	Packs         int       `json:"packs"` // in the index
	PackBytes     uint64    `json:"packBytes"`
	LiveBytes     uint64    `json:"liveBytes"`     // of chunks that backups need, before compression
	MarkedPacks   int       `json:"markedPacks"`   // by this prune
	MarkedBytes   uint64    `json:"markedBytes"`   // of these
	RepackedPacks int       `json:"repackedPacks"` // of the marked ones, those whose chunks were copied
	RepackedBytes uint64    `json:"repackedBytes"` // that were copied, before compression
	DeletedPacks  int       `json:"deletedPacks"`
	DeletedBytes  uint64    `json:"deletedBytes"`
	WaitingPacks  int       `json:"waitingPacks"` // marked earlier, and not deleted yet
	WaitingBytes  uint64    `json:"waitingBytes"`
	DeletableAt   time.Time `json:"deletableAt,omitzero"` // when the first of those that wait, or were marked now, may be deleted: a grace later, and when the backend holds it no more
	YoungPacks    int       `json:"youngPacks"`           // that no backup needs, and that may belong to one under way
	LockedPacks   int       `json:"lockedPacks"`          // that no backup needs, or only a part of, and that cannot be deleted yet
	LockedBytes   uint64    `json:"lockedBytes"`
	UnlockedAt    time.Time `json:"unlockedAt,omitzero"` // when the first of those locks ends
	LockedObjects int       `json:"lockedObjects"`       // others that were to be deleted, and turned out to be locked
	DryRun        bool      `json:"dryRun"`
}

// prunePack is what a prune knows of a pack.
type prunePack struct {
	created time.Time // zero: the object is not there
	size    int64
	live    uint64 // bytes of chunks that backups need and that lie nowhere better
}

// pruning is one prune.
type pruning struct {
	r     *Repository
	o     PruneOptions
	began time.Time     // before anything was read
	now   time.Time     // by the clock of the backend, no later than the truth
	keep  time.Duration // how long the backend holds packs, whoever deletes them
	out   Pruned

	marks   []mark
	since   map[block.Hash]time.Time // when a pack was marked first
	runs    map[string][]uint32      // packs of each run
	badRuns []string                 // that cannot be read, with Damaged
	packs   []prunePack              // by number in the index
	strays  map[block.Hash]prunePack // objects that the index does not know

	locker backend.Locker           // nil: nothing can be locked there
	until  map[block.Hash]time.Time // locks of packs that were asked for; zero: none
}

// Prune deletes packs that were marked a grace ago and that no backup needs, copies what is alive out of packs that are mostly dead, and marks packs that nobody needs any more.
// Backups and other prunes may run meanwhile; docs/format/repository.md says why that is safe. After an error or a crash, and after each step, everything that backups need is
// there; the next prune goes on. It reads the index itself, and r must not be used for anything else meanwhile. It needs an owner's keys.
func (r *Repository) Prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	if o.Alone {
		o.Grace = 0
	} else if o.Grace < MinGrace {
		return Pruned{}, fmt.Errorf("a grace of %v, at least %v: %w", o.Grace, MinGrace, block.ErrInvalid)
	}
	if !r.keys.CanRead() {
		return Pruned{}, seal.ErrReadKey
	}
	p := &pruning{r: r, o: o, began: time.Now(), out: Pruned{DryRun: o.DryRun}}
	if err := p.look(ctx); err != nil {
		return p.out, err
	}
	if err := p.deleteMarked(ctx); err != nil {
		return p.out, err
	}
	dead, err := p.dead(ctx)
	if err != nil {
		return p.out, err
	}
	moved, err := p.repack(ctx)
	if err != nil {
		return p.out, err
	}
	p.count(dead, moved)
	p.countLocked()
	if o.DryRun {
		return p.out, nil
	}
	return p.out, r.storeMark(ctx, append(dead, moved...))
}

// look reads what there is, in the order that the protocol asks for: marks, runs, packs, backups.
func (p *pruning) look(ctx context.Context) (err error) {
	r := p.r
	r.index = newIndex()
	if err := p.findLocker(ctx); err != nil {
		return err
	}
	if p.now, err = p.clock(ctx); err != nil {
		return err
	}
	if keeper, ok := r.backend.(backend.Keeper); ok {
		if p.keep, err = keeper.Keep(ctx); err != nil {
			return err
		}
	}
	if p.marks, err = r.loadMarks(ctx, p.o.Warn); err != nil {
		return err
	}
	if err := r.index.unreadableMark(); err != nil && !p.o.Alone {
		return err
	}
	p.since = make(map[block.Hash]time.Time)
	for _, m := range p.marks {
		for _, name := range m.packs {
			if t, ok := p.since[name]; !ok || m.created.Before(t) {
				p.since[name] = m.created
			}
		}
	}
	if err := p.readRuns(ctx); err != nil {
		return err
	}
	if err := r.resolve(ctx); err != nil {
		return err
	}
	if !p.o.DryRun {
		if _, err := r.adopt(ctx, p.o.Warn, func(backend.Object) {}); err != nil {
			return err
		}
	}
	if err := p.listPacks(ctx); err != nil {
		return err
	}
	var found []runPack
	if p.o.Damaged {
		if found, err = p.askStrays(ctx); err != nil {
			return err
		}
	}
	if err := p.o.Reachable(ctx, p.reach); err != nil {
		return err
	}
	if len(r.index.all()) != len(p.packs) { // a reader missed a pack and has read the index again
		return errChanged
	}
	return p.listFound(ctx, found)
}

var errChanged = errors.New("another prune has moved meanwhile what backups need, so nothing is pruned; run this one again later")

// clock returns what time it is for the backend: its Created times are compared with that. What crashed prunes left is removed.
func (p *pruning) clock(ctx context.Context) (time.Time, error) {
	if p.o.DryRun {
		return time.Now(), nil
	}
	b := p.r.backend
	key := probePrefix + nameOf([]byte(rand.Text()))[:32]
	if err := b.Create(ctx, key, nil); err != nil {
		return time.Time{}, err
	}
	o, err := b.Stat(ctx, key)
	if err != nil {
		return time.Time{}, err
	}
	err = b.List(ctx, probePrefix, func(old backend.Object) error {
		if old.Key == key || o.Created.Sub(old.Created) > 24*time.Hour {
			return ignoreRefused(b.Delete(ctx, old.Key)) // a bucket may lock all that is stored in it
		}
		return nil
	})
	return o.Created, err
}

func ignoreMissing(err error) error {
	if errors.Is(err, block.ErrNotFound) {
		return nil
	}
	return err
}

func (p *pruning) listPacks(ctx context.Context) error {
	p.packs, p.strays = make([]prunePack, len(p.r.index.all())), make(map[block.Hash]prunePack)
	return p.r.backend.List(ctx, packPrefix, func(o backend.Object) error {
		name, found := packName(o.Key), prunePack{created: o.Created, size: o.SizeBytes}
		if number, ok := p.r.index.number(name); ok {
			p.packs[number] = found
		} else if id, err := hex.DecodeString(name); err == nil && len(id) == len(block.Hash{}) {
			p.strays[block.Hash(id)] = found
		}
		return nil
	})
}

// number returns the number of a pack.
func (x *Index) number(name string) (number uint32, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	number, ok = x.mu.byName[name]
	return number, ok
}

// reach notes that a backup needs a chunk. If it is not there nothing may be deleted, but with Damaged: what is known of the repository may not be all of it.
func (p *pruning) reach(id block.Hash) error {
	at, first, ok := p.r.index.reach(id)
	if ok && int(at.pack) >= len(p.packs) {
		return errChanged
	}
	if first && !p.whole(at.pack) {
		at = p.wholePlace(id, at)
	}
	if first {
		p.packs[at.pack].live += uint64(at.raw)
		p.out.LiveBytes += uint64(at.raw)
	}
	if !ok || !p.whole(at.pack) {
		return fmt.Errorf("chunk %v is in no pack that is there whole: %w", id, block.ErrCorrupt)
	}
	return nil
}

// wholePlace has a chunk that a backup needs count as lying in a pack that is there whole, if it lies in one; else it stays where it is.
func (p *pruning) wholePlace(id block.Hash, at place) place {
	others := slices.DeleteFunc(p.r.index.allPlaces(id), func(a place) bool { return int(a.pack) >= len(p.packs) || !p.whole(a.pack) })
	if len(others) == 0 {
		return at
	}
	best := slices.MinFunc(others, func(a, b place) int { return cmp.Compare(p.rank(a), p.rank(b)) })
	p.r.index.move(id, best)
	return best
}

// whole reports whether a pack is there, with all its bytes.
func (p *pruning) whole(number uint32) bool {
	return !p.packs[number].created.IsZero() && p.packs[number].size == int64(p.r.index.pack(number).size)
}

// reach sets the bit of a chunk and reports whether this is the first time.
func (x *Index) reach(id block.Hash) (at place, first, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	short := shortID(id[:16])
	if at, ok = x.mu.places[short]; !ok {
		return at, false, false
	}
	if first = at.raw&reached == 0; first {
		at.raw |= reached
		x.mu.places[short] = at
	}
	at.raw = at.length()
	return at, first, true
}

// fresh returns an error when what was read is too old to delete anything by.
func (p *pruning) fresh() error {
	if elapsed(p.began) < freshness {
		return nil
	}
	return fmt.Errorf("the prune has taken longer than %v, so what it knows is too old to delete anything by; run it again, it goes on", freshness)
}

// expired reports whether something of that time is a grace old. Alone all is: a place may tell times of listings finer than the one that now is from.
func (p *pruning) expired(t time.Time) bool { return p.o.Alone || p.now.Sub(t) >= p.o.Grace }

// dead returns the packs without a mark that nobody needs, and that are old enough not to belong to a backup under way.
func (p *pruning) dead(ctx context.Context) (dead []block.Hash, err error) {
	if p.o.DryRun {
		if dead, err = p.unlocked(ctx, p.unneeded(nil)); err != nil {
			return nil, err
		}
	}
	for judged := make(map[block.Hash]bool); !p.o.DryRun; { // what turns out to claim falsely may be dead then
		more := p.unneeded(judged)
		if len(more) == 0 {
			break
		}
		for _, name := range more {
			judged[name] = true
		}
		if more, err = p.unlocked(ctx, more); err != nil { // until its lock ends, backups may rely on a pack
			return nil, err
		}
		if more, err = p.surviving(ctx, more, PhaseCheck); err != nil {
			return nil, err
		}
		dead = append(dead, more...)
	}
	dead = slices.DeleteFunc(dead, func(name block.Hash) bool { return p.object(name).live > 0 })
	for _, name := range dead {
		p.out.MarkedBytes += uint64(p.object(name).size)
	}
	return dead, nil
}

// unneeded returns the packs without a mark, and not of judged, that no backup needs, but for young ones, which it counts.
func (p *pruning) unneeded(judged map[block.Hash]bool) (names []block.Hash) {
	p.out.YoungPacks = 0
	add := func(name block.Hash, k prunePack) {
		switch _, isMarked := p.since[name]; {
		case isMarked || judged[name] || k.created.IsZero() || k.live > 0:
		case !p.expired(k.created):
			p.out.YoungPacks++
		default:
			names = append(names, name)
		}
	}
	for number, info := range p.r.index.all()[:len(p.packs)] {
		add(info.hash(), p.packs[number])
	}
	for name, k := range p.strays {
		add(name, k)
	}
	return names
}

func (p *packInfo) hash() (h block.Hash) {
	_, _ = hex.Decode(h[:], []byte(p.name)) // names come from hashes
	return h
}

// raw is how many bytes the chunks of a pack have.
func (p *packInfo) raw() (n uint64) {
	for i := range p.frames {
		n += uint64(p.frames[i].Raw)
	}
	return n
}

// movable returns the packs whose live chunks are to be copied: first those that are marked, which cannot be deleted before, then those that are mostly dead, the deadest first. Copying what is in a locked one would give back nothing.
func (p *pruning) movable(ctx context.Context) (numbers []uint32, err error) {
	all := p.r.index.all()
	share := make(map[uint32]float64)
	for number := range all {
		k := &p.packs[number]
		if k.live == 0 || !p.whole(uint32(number)) {
			continue
		}
		live := float64(k.live) / float64(all[number].raw())
		if all[number].marked {
			live = 0
		} else if live >= 0.5 || !p.expired(k.created) {
			continue
		}
		share[uint32(number)] = live
		numbers = append(numbers, uint32(number))
	}
	var asked []block.Hash
	for _, number := range numbers {
		if !all[number].marked {
			asked = append(asked, all[number].hash())
		}
	}
	if _, err := p.unlocked(ctx, asked); err != nil {
		return nil, err
	}
	numbers = slices.DeleteFunc(numbers, func(n uint32) bool { return !all[n].marked && p.isLocked(all[n].hash()) })
	slices.SortFunc(numbers, func(a, b uint32) int { return cmp.Or(cmp.Compare(share[a], share[b]), cmp.Compare(a, b)) })
	budget := p.o.RepackBytes
	for i, number := range numbers {
		if p.packs[number].live > budget {
			return numbers[:i], nil
		}
		budget -= p.packs[number].live
	}
	return numbers, nil
}

// repack copies what is alive out of packs that are mostly dead, and returns those that are to be marked. One that cannot be read stays.
func (p *pruning) repack(ctx context.Context) (moved []block.Hash, err error) {
	numbers, err := p.movable(ctx)
	if err != nil || len(numbers) == 0 {
		return nil, err
	}
	all := p.r.index.all()
	var w *Writer
	if !p.o.DryRun {
		if w, err = p.r.newWriter(ctx); err != nil {
			return nil, err
		}
	}
	d := p.r.NewReader(0)
	total := uint64(0)
	for _, number := range numbers {
		total += p.packs[number].live
	}
	for _, number := range numbers {
		p.o.tell(PhaseCopy, p.out.RepackedBytes, total)
		info := &all[number]
		if w != nil {
			if err := p.copyLive(ctx, d, w, number, info); err != nil {
				if ctx.Err() != nil || w.ctx.Err() != nil {
					_, closeErr := w.Close()
					return nil, errors.Join(err, closeErr)
				}
				p.o.warn(packKey(info.name), err)
				continue
			}
		}
		p.out.RepackedPacks++
		p.out.RepackedBytes += p.packs[number].live
		if !info.marked {
			moved = append(moved, info.hash())
			p.out.MarkedBytes += uint64(info.size)
		}
	}
	if w != nil {
		_, err = w.Close()
	}
	return moved, err
}

// copyLive copies the live chunks of a pack.
func (p *pruning) copyLive(ctx context.Context, d *Reader, w *Writer, number uint32, info *packInfo) error {
	_, _, frames, err := p.r.readDirectory(ctx, packKey(info.name), int64(info.size))
	if err != nil {
		return err
	}
	for i := range frames {
		off := uint32(0)
		for _, c := range frames[i].Chunks {
			at := place{pack: number, frame: uint32(i), off: off, raw: c.Raw}
			off += c.Raw
			if !p.r.index.livesAt(c.ID, at) {
				continue
			}
			chunk, err := d.at(ctx, c.ID, at)
			if errors.Is(err, block.ErrCorrupt) {
				chunk, err = d.Chunk(ctx, c.ID) // from another place, if there is one
			}
			if err != nil {
				return err
			}
			if err := w.copy(c.ID, chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// livesAt reports whether a backup needs a chunk and finds it there.
func (x *Index) livesAt(id block.Hash, at place) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	p, ok := x.mu.places[shortID(id[:16])]
	return ok && p.raw&reached != 0 && p.pack == at.pack && p.frame == at.frame && p.off == at.off
}

// count fills in what is marked now and what waits.
func (p *pruning) count(dead, moved []block.Hash) {
	p.out.MarkedPacks = len(dead) + len(moved)
	for number, info := range p.r.index.all()[:len(p.packs)] { // without those that it wrote
		if p.packs[number].created.IsZero() {
			continue
		}
		p.out.Packs++
		p.out.PackBytes += uint64(info.size)
	}
	first := time.Time{}
	waits := func(name block.Hash, k *prunePack, marked time.Time) {
		at := marked.Add(p.o.Grace)
		for _, held := range []time.Time{k.created.Add(p.keep), p.until[name]} {
			if held.After(at) {
				at = held
			}
		}
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	for _, name := range slices.Concat(dead, moved) {
		if k := p.object(name); k != nil {
			waits(name, k, p.now)
		}
	}
	for name, t := range p.since {
		k := p.object(name)
		if k == nil || k.created.IsZero() {
			continue
		}
		p.out.WaitingPacks++
		p.out.WaitingBytes += uint64(k.size)
		waits(name, k, t)
	}
	if !first.IsZero() {
		p.out.DeletableAt = first.UTC().Truncate(time.Second)
	}
}

// object returns what is known of a pack, nil if it was neither in the index nor there.
func (p *pruning) object(name block.Hash) *prunePack {
	if number, ok := p.r.index.number(name.String()); ok && int(number) < len(p.packs) {
		return &p.packs[number]
	}
	if k, ok := p.strays[name]; ok {
		return &k
	}
	return nil
}
