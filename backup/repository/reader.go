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

// Reader reads chunks, and keeps the frames that were read last. Its methods may be called at once. It needs an owner's keys.
type Reader struct {
	r       *Repository
	hashers sync.Pool
	max     int

	mu struct {
		sync.Mutex
		packs  map[uint32]*pack.Reader
		frames map[frameKey]*list.Element // of order
		order  *list.List                 // of *frameEntry, the last used in front
		bytes  int
	}
}

type frameKey struct{ pack, frame uint32 }

// frameEntry is a frame that is there or being read.
type frameEntry struct {
	key   frameKey
	ready chan struct{} // closed when raw and err are there
	raw   []byte
	err   error
}

// NewReader returns a reader that keeps at most max bytes of frames; 0 is DefaultReaderBytes.
func (r *Repository) NewReader(max int) *Reader {
	if max <= 0 {
		max = DefaultReaderBytes
	}
	d := &Reader{r: r, max: max}
	d.hashers.New = func() any { return dedup.NewHasher(r.keys.Domain) }
	d.mu.packs, d.mu.frames, d.mu.order = make(map[uint32]*pack.Reader), make(map[frameKey]*list.Element), list.New()
	return d
}

// Chunk returns the bytes of a chunk, which must not be changed. One that the index does not know is block.ErrNotFound; bytes that are not what the id says are block.ErrCorrupt.
// If a prune has deleted the pack meanwhile, it has copied the chunk to another before.
func (d *Reader) Chunk(ctx context.Context, id block.Hash) ([]byte, error) {
	p, ok := d.r.index.find(id)
	if !ok {
		return nil, fmt.Errorf("chunk %v in the index of the repository: %w", id, block.ErrNotFound)
	}
	raw, err := d.frame(ctx, frameKey{p.pack, p.frame})
	if errors.Is(err, block.ErrNotFound) {
		d.r.index.lose(p.pack)
		if loadErr := d.r.LoadIndex(ctx, func(string, error) {}); loadErr != nil {
			return nil, errors.Join(err, loadErr)
		}
		if p, ok = d.r.index.find(id); ok {
			raw, err = d.frame(ctx, frameKey{p.pack, p.frame})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read chunk %v: %w", id, err)
	}
	if uint64(p.off)+uint64(p.raw) > uint64(len(raw)) {
		return nil, &block.CorruptError{Source: "chunk " + id.String(), Offset: int64(p.off), Want: fmt.Sprintf("%d B", p.raw), Got: fmt.Sprintf("a frame of %d B", len(raw))}
	}
	chunk := raw[p.off : p.off+p.raw : p.off+p.raw]
	h := d.hashers.Get().(*dedup.Hasher)
	defer d.hashers.Put(h)
	return chunk, pack.Verify(h, id, chunk)
}

// frame returns a frame, which is read once however many ask for it.
func (d *Reader) frame(ctx context.Context, key frameKey) ([]byte, error) {
	d.mu.Lock()
	if e, ok := d.mu.frames[key]; ok {
		d.mu.order.MoveToFront(e)
		d.mu.Unlock()
		f := e.Value.(*frameEntry)
		select {
		case <-f.ready:
			return f.raw, f.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f := &frameEntry{key: key, ready: make(chan struct{})}
	d.mu.frames[key] = d.mu.order.PushFront(f)
	d.mu.Unlock()
	f.raw, f.err = d.readFrame(ctx, key)
	close(f.ready)
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.err != nil {
		d.dropLocked(d.mu.frames[key])
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
	return f.raw, nil
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
	f := &info.frames[key.frame]
	sealed := make([]byte, f.Len)
	if err := d.r.backend.ReadAt(ctx, packKey(info.name), sealed, int64(f.Off)); err != nil {
		return nil, err
	}
	raw, err := reader.Open(f, int(key.frame), sealed)
	if err != nil {
		return nil, fmt.Errorf("pack %s, frame %d at %d: %w", info.name, key.frame, f.Off, err)
	}
	return raw, nil
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
	d.mu.packs[number] = reader
	return reader, nil
}
