package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// shortID is enough of an id to find a chunk by: ids are keyed, so nobody outside can make two that share it. What is found is compared with the whole id.
type shortID [16]byte

// place is where a chunk lies. It has no pointers: there are millions.
type place struct {
	pack  uint32 // of Index.packs
	frame uint32 // of the pack
	off   uint32 // in the frame, bytes
	raw   uint32 // bytes; with reached set
}

// reached is a bit of place.raw: the prune that is under way has met the chunk in a backup.
const reached = 1 << 31

func (p *place) length() uint32 { return p.raw &^ reached }

// packInfo is a pack that the index knows.
type packInfo struct {
	name   string
	size   uint32 // bytes
	marked bool   // a prune will delete it: it may be read, and nothing new may rely on it
	gone   bool   // it was not there any more
	frames []pack.Frame

	listing  uint64 // sum of what was listed of it
	disputed bool   // runs say different things of it, and it was not asked itself yet
}

// Index knows which chunks the repository has. Its methods may be called at once.
type Index struct {
	mu struct {
		sync.RWMutex
		packs      []packInfo
		byName     map[string]uint32
		runs       map[string][]uint32 // packs of each run, by its key
		places     map[shortID]place
		spares     map[shortID][]place // other places of the same chunks
		spare      int                 // how many those are
		lost       bool                // there were more
		raw        uint64              // of all chunks, each once
		marked     map[string]bool     // packs of marks, known or not
		unreadable error               // why a mark cannot be read
		incomplete bool                // packs that are listed were lost, or cut off
		asOf       time.Time           // when the listing of marks began that marked is from
	}
}

func newIndex() *Index {
	x := new(Index)
	x.mu.byName, x.mu.places, x.mu.marked = make(map[string]uint32), make(map[shortID]place), make(map[string]bool)
	x.mu.spares, x.mu.runs = make(map[shortID][]place), make(map[string][]uint32)
	return x
}

// Has reports whether a chunk is stored, be it in a pack that a prune will delete.
func (x *Index) Has(id block.Hash) bool {
	_, ok := x.find(id)
	return ok
}

// Length returns how many bytes a chunk has, if it is stored, as the index has it.
func (x *Index) Length(id block.Hash) (length uint32, ok bool) {
	p, ok := x.find(id)
	return p.raw, ok
}

func (x *Index) find(id block.Hash) (place, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	short := shortID(id[:16])
	p, ok := x.mu.places[short]
	if ok && x.mu.packs[p.pack].gone {
		ok = false
		for _, spare := range x.mu.spares[short] {
			if !x.mu.packs[spare.pack].gone {
				p, ok = spare, true
				break
			}
		}
	}
	p.raw = p.length()
	return p, ok
}

// lasting returns a pack that a chunk lies in, if there is one to rely on.
func (x *Index) lasting(id block.Hash) (number uint32, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	short := shortID(id[:16])
	p, ok := x.mu.places[short]
	if !ok || x.lastsLocked(p.pack) {
		return p.pack, ok
	}
	for _, spare := range x.mu.spares[short] {
		if x.lastsLocked(spare.pack) {
			return spare.pack, true
		}
	}
	return p.pack, false
}

func (x *Index) lastsLocked(number uint32) bool {
	p := &x.mu.packs[number]
	return !p.marked && !p.gone
}

// add takes a pack in and returns its number. The chunks of frames are forgotten: only where frames lie is needed. A chunk that is known already stays where it is, unless this
// pack is better. Of a pack that is known, frames that were not listed then are left out: who made one of the runs is wrong about it, and which says its own directory (resolve).
func (x *Index) add(name string, size uint32, frames []pack.Frame) uint32 {
	listing := listingSum(size, frames)
	x.mu.Lock()
	defer x.mu.Unlock()
	number, known := x.mu.byName[name]
	if !known {
		number = uint32(len(x.mu.packs))
		x.mu.byName[name] = number
		x.mu.packs = append(x.mu.packs, packInfo{name: name, size: size, marked: x.mu.marked[name], frames: withoutChunks(frames), listing: listing})
	} else if p := &x.mu.packs[number]; p.listing != listing {
		p.disputed = true
	}
	for i := range min(len(frames), len(x.mu.packs[number].frames)) {
		off := uint32(0)
		for _, c := range frames[i].Chunks {
			short := shortID(c.ID[:16])
			here := place{pack: number, frame: uint32(i), off: off, raw: c.Raw}
			old, there := x.mu.places[short]
			switch {
			case !there:
				x.mu.places[short] = here
				x.mu.raw += uint64(c.Raw)
			case x.betterLocked(number, old.pack):
				x.mu.places[short] = here
				x.spareLocked(short, old)
			default:
				x.spareLocked(short, here)
			}
			off += c.Raw
		}
	}
	return number
}

// withoutChunks is what is kept of frames: where they lie.
func withoutChunks(frames []pack.Frame) []pack.Frame {
	kept := make([]pack.Frame, len(frames))
	for i := range frames {
		kept[i] = pack.Frame{Off: frames[i].Off, Len: frames[i].Len, Raw: frames[i].Raw}
	}
	return kept
}

// betterLocked reports whether a chunk is rather to be had from pack a than from b: one that will last, else one that is there still.
func (x *Index) betterLocked(a, b uint32) bool {
	return x.lastsLocked(a) && !x.lastsLocked(b) || !x.mu.packs[a].gone && x.mu.packs[b].gone
}

// mark notes packs of a mark, and when the listing began that it is from.
func (x *Index) mark(packs []block.Hash, asOf time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.mu.asOf = asOf
	for i := range packs {
		name := packs[i].String()
		x.mu.marked[name] = true
		if number, ok := x.mu.byName[name]; ok {
			x.mu.packs[number].marked = true
		}
	}
}

// lose notes that a pack is not there any more.
func (x *Index) lose(number uint32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.mu.packs[number].gone = true
}

// isMarked reports whether a pack is named by a mark.
func (x *Index) isMarked(name string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.mu.marked[name]
}

func (x *Index) knows(name string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, ok := x.mu.byName[name]
	return ok
}

func (x *Index) pack(number uint32) packInfo {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.mu.packs[number]
}

// all returns the packs that are known, by their numbers.
func (x *Index) all() []packInfo {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.mu.packs)
}

// Stats are sizes of what the index knows.
type Stats struct {
	Packs     int    `json:"packs"`
	Chunks    int    `json:"chunks"`
	RawBytes  uint64 `json:"rawBytes"`  // of all chunks
	PackBytes uint64 `json:"packBytes"` // of all packs
}

// Stats returns sizes.
func (x *Index) Stats() Stats {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := Stats{Packs: len(x.mu.packs), Chunks: len(x.mu.places), RawBytes: x.mu.raw}
	for i := range x.mu.packs {
		s.PackBytes += uint64(x.mu.packs[i].size)
	}
	return s
}

// A run: what an index object holds. These constants are part of the repository format and should not be changed.
const (
	runHeader  = 64
	runVersion = 1
	maxRun     = 256 << 20
	maxRunRaw  = 1 << 30
	packEntry  = 32 + 4 + 4
)

var (
	runMagic   = [8]byte{'H', 'V', 'I', 'N', 'D', 'X', '1', 0}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// runPack is a pack as a run lists it.
type runPack struct {
	name   block.Hash
	size   uint32
	first  uint32 // offset of the first frame
	frames []pack.Frame
}

// encodeRun returns the object of a run.
func encodeRun(keys *seal.Keys, packs []runPack) ([]byte, error) {
	plain := binary.LittleEndian.AppendUint32(nil, uint32(len(packs)))
	for i := range packs {
		p := &packs[i]
		plain = append(plain, p.name[:]...)
		plain = binary.LittleEndian.AppendUint32(plain, p.size)
		plain = binary.LittleEndian.AppendUint32(plain, p.first)
		plain = pack.AppendDirectory(plain, p.frames)
	}
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	packed := e.EncodeAll(plain, nil)
	salt := seal.NewSalt()
	b := make([]byte, runHeader, runHeader+len(packed)+seal.Overhead)
	copy(b, runMagic[:])
	binary.LittleEndian.PutUint16(b[8:], runVersion)
	copy(b[12:28], keys.Repository[:])
	copy(b[28:60], salt[:])
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return keys.Index.Box(seal.PurposeIndex, salt, keys.Repository).Seal(b, packed, 0), nil
}

// decodeRun returns the packs of a run.
func decodeRun(keys *seal.Keys, b []byte) ([]runPack, error) {
	corrupt := func(at int, want, got string) error {
		return &block.CorruptError{Source: "index run", Offset: int64(at), Want: want, Got: got}
	}
	if len(b) < runHeader+seal.Overhead || [8]byte(b[:8]) != runMagic {
		return nil, corrupt(0, "the magic of a run", "other bytes")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != runVersion {
		return nil, fmt.Errorf("index run of version %d: %w", v, block.ErrVersion)
	}
	if sum := crc32.Checksum(b[:60], castagnoli); sum != binary.LittleEndian.Uint32(b[60:]) || b[10] != 0 || b[11] != 0 {
		return nil, corrupt(60, "the sum of the header", fmt.Sprintf("%08x", sum))
	}
	if repository := block.UUID(b[12:28]); repository != keys.Repository {
		return nil, corrupt(12, "repository "+keys.Repository.String(), repository.String())
	}
	packed, err := keys.Index.Box(seal.PurposeIndex, seal.Salt(b[28:60]), keys.Repository).Open(nil, b[runHeader:], 0)
	if err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRunRaw))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	plain, err := d.DecodeAll(packed, nil)
	if err != nil || len(plain) < 4 {
		return nil, corrupt(runHeader, "zstd", fmt.Sprint(err))
	}
	n := binary.LittleEndian.Uint32(plain)
	plain = plain[4:]
	if int64(n) > int64(len(plain)/packEntry) {
		return nil, corrupt(runHeader, "a number of packs", fmt.Sprint(n))
	}
	packs := make([]runPack, n)
	for i := range packs {
		p := &packs[i]
		if len(plain) < packEntry {
			return nil, corrupt(len(b), "one more pack", "the end")
		}
		p.name, p.size, p.first = block.Hash(plain[:32]), binary.LittleEndian.Uint32(plain[32:]), binary.LittleEndian.Uint32(plain[36:])
		if p.size > pack.MaxSize || p.first > pack.HeaderSize {
			return nil, corrupt(len(b), "the size of a pack", fmt.Sprint(p.size))
		}
		if p.frames, plain, err = pack.DecodeDirectory(plain[packEntry:], int(p.first)); err != nil {
			return nil, err
		}
	}
	if len(plain) != 0 {
		return nil, corrupt(len(b), "the end", fmt.Sprintf("%d B more", len(plain)))
	}
	return packs, nil
}

// LoadIndex reads the marks of prunes, and then all runs: in this order, a pack that is neither marked nor gone lasts for MinGrace at least. What is damaged is left out and told
// to bad, which may be nil: then it is the error. What is known already stays.
func (r *Repository) LoadIndex(ctx context.Context, bad func(key string, err error)) error {
	if _, err := r.loadMarks(ctx, bad); err != nil {
		return err
	}
	r.index.forgetRuns()
	err := r.loadRuns(ctx, bad, func(key string, packs []runPack) {
		for i := range packs {
			r.index.add(packs[i].name.String(), packs[i].size, packs[i].frames)
		}
		r.index.listed(key, packs)
	})
	if err != nil {
		return err
	}
	return r.resolve(ctx)
}

// maxListings bounds how often the runs are listed because some were replaced meanwhile.
const maxListings = 20

// loadRuns calls visit with each run. One that goes after it was listed was replaced by another, which that listing may have missed: then they are listed once more.
func (r *Repository) loadRuns(ctx context.Context, bad func(key string, err error), visit func(key string, packs []runPack)) error {
	seen := make(map[string]bool)
	for range maxListings {
		replaced := false
		err := r.backend.List(ctx, indexPrefix, func(o backend.Object) error {
			if seen[o.Key] {
				return nil
			}
			packs, err := r.readRun(ctx, o.Key)
			if errors.Is(err, block.ErrNotFound) {
				replaced = true
				return nil
			}
			seen[o.Key] = true
			if err != nil {
				return tell(ctx, bad, o.Key, err)
			}
			visit(o.Key, packs)
			return nil
		})
		if err != nil || !replaced {
			return err
		}
	}
	return fmt.Errorf("the index of the repository in %s changes all the time; try again later", r.backend.Location())
}

func (r *Repository) readRun(ctx context.Context, key string) ([]runPack, error) {
	b, err := r.read(ctx, key, maxRun)
	if err != nil {
		return nil, err
	}
	return decodeRun(r.keys, b)
}

// tell hands an error about an object to bad and returns nil, or returns it if there is no bad, or the context is at its end.
func tell(ctx context.Context, bad func(key string, err error), key string, err error) error {
	err = fmt.Errorf("%s: %w", key, err)
	if bad == nil || ctx.Err() != nil {
		return err
	}
	bad(key, err)
	return nil
}

// Index returns what is known of the chunks.
func (r *Repository) Index() *Index { return r.index }

// packKey is the key of the object of a pack.
func packKey(name string) string { return packPrefix + name[:2] + "/" + name }
