package repository

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// DefaultReaderBytes is the memory of a Reader for decoded frames if nothing else is said.
const DefaultReaderBytes = 64 << 20

// maxPackReaders bounds the packs whose headers a Reader remembers; each takes a KiB or so.
const maxPackReaders = 8192

// Reader reads chunks, and keeps the frames that were read last. Its methods may be called at once. It needs an owner's keys.
type Reader struct {
	r       *Repository
	hashers sync.Pool
	max     int

	mu struct {
		sync.Mutex
		packs    map[uint32]*pack.Reader
		straight map[uint32]bool            // packs whose directories were read
		frames   map[frameKey]*list.Element // of order
		order    *list.List                 // of *frameEntry, the last used in front
		bytes    int
	}
}

type frameKey struct{ pack, frame uint32 }

// frameEntry is a frame that is there or being read.
type frameEntry struct {
	key   frameKey
	ready chan struct{} // closed when raw and err are there
	raw   []byte
	err   error

	checked map[uint32]checkedChunk // by offset: what is known to be right; guarded by Reader.mu
}

// checkedChunk is a chunk of a frame that is what its id says.
type checkedChunk struct {
	id  block.Hash
	raw uint32 // bytes
}

// NewReader returns a reader that keeps at most max bytes of frames; 0 is DefaultReaderBytes.
func (r *Repository) NewReader(max int) *Reader {
	if max <= 0 {
		max = DefaultReaderBytes
	}
	d := &Reader{r: r, max: max}
	d.hashers.New = func() any { return dedup.NewHasher(r.keys.Domain) }
	d.mu.packs, d.mu.straight, d.mu.frames, d.mu.order = make(map[uint32]*pack.Reader), make(map[uint32]bool), make(map[frameKey]*list.Element), list.New()
	return d
}

// ErrLost means that no pack that is there has a chunk which a backup needs. It comes with block.ErrNotFound.
var ErrLost = errors.New("data of a backup is lost")

// Chunk returns the bytes of a chunk, which must not be changed. One that the index does not know, or whose packs are gone, is ErrLost; bytes that are not what the id says are
// block.ErrCorrupt, if no other place of the chunk has better ones. If a prune has deleted the pack meanwhile, it has copied the chunk to another before.
func (d *Reader) Chunk(ctx context.Context, id block.Hash) ([]byte, error) {
	chunk, err := d.fromAny(ctx, id)
	if errors.Is(err, errPackGone) {
		if loadErr := d.r.LoadIndex(ctx, func(string, error) {}); loadErr != nil {
			return nil, errors.Join(err, loadErr)
		}
		chunk, err = d.fromAny(ctx, id)
	}
	if errors.Is(err, block.ErrNotFound) {
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	return chunk, err
}

// errPackGone means that the index lists a pack that is not there.
var errPackGone = fmt.Errorf("the pack is gone: %w", block.ErrNotFound)

// fromAny reads a chunk from the first of its places that has it.
func (d *Reader) fromAny(ctx context.Context, id block.Hash) ([]byte, error) {
	places := d.r.index.allPlaces(id)
	if len(places) == 0 {
		return nil, fmt.Errorf("chunk %v in the index of the repository: %w", id, block.ErrNotFound)
	}
	var all error
	for i := 0; i < len(places); i++ {
		p := places[i]
		chunk, err := d.at(ctx, id, p)
		if err == nil {
			if errors.Is(all, block.ErrCorrupt) {
				d.r.index.prefer(id, p)
			}
			return chunk, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		switch {
		case errors.Is(err, block.ErrNotFound):
			d.r.index.lose(p.pack)
			err = fmt.Errorf("%w: %w", errPackGone, err)
		case errors.Is(err, block.ErrCorrupt) && d.straighten(ctx, p.pack):
			places, i = d.r.index.allPlaces(id), -1
			continue
		}
		all = errors.Join(all, err)
	}
	return nil, fmt.Errorf("read chunk %v: %w", id, all)
}

// straighten reads the directory of a pack that was not what the index says, once, and reports whether that says something else: then a run lied about it.
func (d *Reader) straighten(ctx context.Context, number uint32) bool {
	d.mu.Lock()
	again := d.mu.straight[number]
	d.mu.straight[number] = true
	d.mu.Unlock()
	if again {
		return false
	}
	changed, err := d.r.straighten(ctx, number)
	if ctx.Err() != nil { // who asked has given up: the next one finds out
		d.mu.Lock()
		delete(d.mu.straight, number)
		d.mu.Unlock()
	}
	return err == nil && changed
}

// at reads a chunk from one of its places.
func (d *Reader) at(ctx context.Context, id block.Hash, p place) ([]byte, error) {
	f, err := d.frame(ctx, frameKey{p.pack, p.frame})
	if err != nil {
		return nil, err
	}
	return d.cut(id, p, f)
}

// cut returns a chunk of a frame, if it is what its id says, which is found out once.
func (d *Reader) cut(id block.Hash, p place, f *frameEntry) ([]byte, error) {
	raw := f.raw
	where := func(err error) error {
		info := d.r.index.pack(p.pack)
		off := uint32(0)
		if int(p.frame) < len(info.frames) {
			off = info.frames[p.frame].Off
		}
		return fmt.Errorf("pack %s, frame %d at %d: %w", info.name, p.frame, off, err)
	}
	if uint64(p.off)+uint64(p.raw) > uint64(len(raw)) {
		return nil, where(&block.CorruptError{Source: "chunk " + id.String(), Offset: int64(p.off), Want: fmt.Sprintf("%d B", p.raw), Got: fmt.Sprintf("a frame of %d B", len(raw))})
	}
	chunk := raw[p.off : p.off+p.raw : p.off+p.raw]
	d.mu.Lock()
	known := f.checked[p.off] == checkedChunk{id, p.raw}
	d.mu.Unlock()
	if known {
		return chunk, nil
	}
	h := d.hashers.Get().(*dedup.Hasher)
	defer d.hashers.Put(h)
	if err := pack.Verify(h, id, chunk); err != nil {
		return nil, where(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.checked == nil {
		f.checked = make(map[uint32]checkedChunk)
	}
	f.checked[p.off] = checkedChunk{id, p.raw}
	return chunk, nil
}

// Cached is Chunk for a caller that must not wait: it reports false when the chunk's frame is not in memory, or its bytes are not what the id says.
func (d *Reader) Cached(id block.Hash) ([]byte, bool) {
	p, ok := d.r.index.find(id)
	if !ok {
		return nil, false
	}
	d.mu.Lock()
	e, ok := d.mu.frames[frameKey{p.pack, p.frame}]
	if ok {
		d.mu.order.MoveToFront(e)
	}
	d.mu.Unlock()
	if !ok {
		return nil, false
	}
	f := e.Value.(*frameEntry)
	if !isReady(f) || f.err != nil {
		return nil, false
	}
	chunk, err := d.cut(id, p, f)
	return chunk, err == nil
}

// Load brings a chunk's frame into memory, if it can be had: whoever reads the chunk learns why not.
func (d *Reader) Load(ctx context.Context, id block.Hash) {
	if p, ok := d.r.index.find(id); ok {
		_, _ = d.frame(ctx, frameKey{p.pack, p.frame})
	}
}

// OnePerFrame returns one of the chunks of each frame that they lie in, in order: to load these brings all into memory. What the index does not know is left out.
func (d *Reader) OnePerFrame(ids []block.Hash) (some []block.Hash) {
	seen := make(map[frameKey]bool)
	for _, id := range ids {
		if p, ok := d.r.index.find(id); ok && !seen[frameKey{p.pack, p.frame}] {
			seen[frameKey{p.pack, p.frame}] = true
			some = append(some, id)
		}
	}
	return some
}

// frame returns a frame, which is read once however many ask for it. Who began to read it and gives up is followed by another.
func (d *Reader) frame(ctx context.Context, key frameKey) (*frameEntry, error) {
	for {
		f, mine := d.entry(key)
		if mine {
			return d.fill(ctx, f)
		}
		select {
		case <-f.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if !errors.Is(f.err, context.Canceled) && !errors.Is(f.err, context.DeadlineExceeded) || ctx.Err() != nil {
			return f, f.err
		}
	}
}

// entry returns the entry of a frame, and whether it was made just now, for the caller to fill.
func (d *Reader) entry(key frameKey) (f *frameEntry, mine bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.mu.frames[key]; ok {
		d.mu.order.MoveToFront(e)
		return e.Value.(*frameEntry), false
	}
	f = &frameEntry{key: key, ready: make(chan struct{})}
	d.mu.frames[key] = d.mu.order.PushFront(f)
	return f, true
}

// fill reads a frame, and makes room for it.
func (d *Reader) fill(ctx context.Context, f *frameEntry) (*frameEntry, error) {
	f.raw, f.err = d.readFrame(ctx, f.key)
	d.mu.Lock()
	defer d.mu.Unlock()
	defer close(f.ready)
	if f.err != nil {
		d.dropLocked(d.mu.frames[f.key])
		return nil, f.err
	}
	d.mu.bytes += len(f.raw)
	for e := d.mu.order.Back(); e != nil && d.mu.bytes > d.max; {
		before := e.Prev()
		if old := e.Value.(*frameEntry); old != f && isReady(old) {
			d.mu.bytes -= len(old.raw)
			d.dropLocked(e)
		}
		e = before
	}
	return f, nil
}

func isReady(f *frameEntry) bool {
	select {
	case <-f.ready:
		return true
	default:
		return false
	}
}

func (d *Reader) dropLocked(e *list.Element) {
	delete(d.mu.frames, e.Value.(*frameEntry).key)
	d.mu.order.Remove(e)
}

func (d *Reader) readFrame(ctx context.Context, key frameKey) ([]byte, error) {
	info := d.r.index.pack(key.pack)
	reader, err := d.packReader(ctx, key.pack, &info)
	if err != nil {
		return nil, err
	}
	if int(key.frame) >= len(info.frames) {
		return nil, &block.CorruptError{Source: "pack " + info.name, Want: fmt.Sprintf("%d frames", len(info.frames)), Got: fmt.Sprintf("a chunk in frame %d", key.frame)}
	}
	f := &info.frames[key.frame]
	sealed, free := sealedBuffer(int(f.Len))
	defer free()
	if err := d.r.backend.ReadAt(ctx, packKey(info.name), sealed, int64(f.Off)); err != nil {
		return nil, err
	}
	raw, err := reader.Open(f, int(key.frame), sealed)
	if err != nil {
		return nil, fmt.Errorf("pack %s, frame %d at %d: %w", info.name, key.frame, f.Off, err)
	}
	return raw, nil
}

// sealedBuffers keep buffers for sealed frames: to make and clear one for each would cost more than to decompress the frame.
var sealedBuffers = sync.Pool{New: func() any { b := make([]byte, sealedSize); return &b }}

// sealedSize is enough for nearly every frame, bytes.
const sealedSize = pack.FrameRaw + pack.FrameRaw/8

// sealedBuffer returns n bytes, whatever is in them, and what gives them back.
func sealedBuffer(n int) (b []byte, free func()) {
	if n > sealedSize {
		return make([]byte, n), func() {}
	}
	kept := sealedBuffers.Get().(*[]byte)
	return (*kept)[:n], func() { sealedBuffers.Put(kept) }
}

// packReader returns what opens the frames of a pack: its header is read once.
func (d *Reader) packReader(ctx context.Context, number uint32, info *packInfo) (*pack.Reader, error) {
	d.mu.Lock()
	reader := d.mu.packs[number]
	d.mu.Unlock()
	if reader != nil {
		return reader, nil
	}
	h, err := d.r.readHeader(ctx, packKey(info.name), int64(info.size))
	if err == nil {
		reader, err = pack.NewReader(d.r.keys, h)
	}
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", info.name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.mu.packs) >= maxPackReaders {
		clear(d.mu.packs)
	}
	d.mu.packs[number] = reader
	return reader, nil
}
