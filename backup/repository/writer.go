package repository

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// packsPerRun is after how many packs a writer stores a run of its index. If it dies, what came after the last one is found by the directories.
const packsPerRun = 32

// frameSlack is how many bytes more than pack.FrameRaw a frame has, mostly: it is full with the chunk that reaches that.
const frameSlack = 128 << 10

// Writer stores chunks. Add may be called at once; frames have the chunks in the order of the calls.
type Writer struct {
	r       *Repository
	session *seal.Session
	tasks   *errgroup.Group
	ctx     context.Context // of the writer's goroutines

	frames  chan *frameJob     // to compress
	ordered chan *frameJob     // the same in order, to pack
	packs   chan *pack.Builder // to store: the next is filled meanwhile
	buffers sync.Pool          // *[]byte of frames

	mu struct {
		sync.Mutex
		open   *frameJob
		closed bool
	}
	pending struct {
		sync.Mutex                     // comes after mu: who holds mu may wait for the goroutine that needs this one
		ids        map[block.Hash]bool // handed in and not in the index yet
		relied     map[uint32]bool     // packs of the index with chunks that were handed in
	}
	counts WriterStats // of the storing goroutine until Close
	asOf   time.Time   // what is relied on was in no mark then
	since  func(time.Time) time.Duration
}

// WriterStats say what a writer stored.
type WriterStats struct {
	Chunks      int    `json:"chunks"`
	RawBytes    uint64 `json:"rawBytes"`
	StoredBytes uint64 `json:"storedBytes"` // of packs and runs
	Packs       int    `json:"packs"`
}

// frameJob is a frame on its way.
type frameJob struct {
	chunks     []pack.Chunk
	raw        []byte
	compressed chan []byte
}

// NewWriter begins a session. Its goroutines end with Close. ErrUnreadableMark if a mark could not be read with the index.
func (r *Repository) NewWriter(ctx context.Context) (*Writer, error) {
	if err := r.index.unreadableMark(); err != nil {
		return nil, err
	}
	return r.newWriter(ctx)
}

func (r *Repository) newWriter(ctx context.Context) (*Writer, error) {
	session, err := r.keys.NewSession()
	if err != nil {
		return nil, err
	}
	w := &Writer{r: r, session: session, frames: make(chan *frameJob), ordered: make(chan *frameJob, runtime.GOMAXPROCS(0)), packs: make(chan *pack.Builder)}
	w.pending.ids, w.pending.relied = make(map[block.Hash]bool), make(map[uint32]bool)
	w.asOf, w.since = r.index.loaded(), elapsed
	w.tasks, w.ctx = errgroup.WithContext(ctx)
	for range runtime.GOMAXPROCS(0) {
		w.tasks.Go(func() error {
			for f := range w.frames {
				f.compressed <- pack.Compress(w.buffer(0), f.raw)
				w.putBack(f.raw)
				f.raw = nil
			}
			return nil
		})
	}
	w.tasks.Go(w.packAll)
	w.tasks.Go(w.storeAll)
	return w, nil
}

// Add stores a chunk unless the repository has it, or will have, and reports whether it was new. It keeps no byte of raw. It waits while too much is on its way.
func (w *Writer) Add(id block.Hash, raw []byte) (isNew bool, err error) {
	if len(raw) == 0 || len(raw) > pack.MaxChunk {
		return false, fmt.Errorf("chunk of %d B: %w", len(raw), block.ErrInvalid)
	}
	if w.Has(id) {
		return false, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.closed {
		return false, fmt.Errorf("writer of the repository: %w", block.ErrClosed)
	}
	if !w.claim(id) {
		return false, nil
	}
	return true, w.putLocked(id, raw)
}

// copy stores a chunk once more, in another pack than it lies in.
func (w *Writer) copy(id block.Hash, raw []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending.Lock()
	w.pending.ids[id] = true
	w.pending.Unlock()
	return w.putLocked(id, raw)
}

// putLocked appends a chunk to the open frame. w.mu is held.
func (w *Writer) putLocked(id block.Hash, raw []byte) error {
	if f := w.mu.open; f != nil && len(f.raw)+len(raw) > pack.MaxFrameRaw {
		if err := w.sendLocked(); err != nil {
			return err
		}
	}
	if w.mu.open == nil {
		w.mu.open = &frameJob{raw: w.buffer(len(raw)), compressed: make(chan []byte, 1)}
	}
	f := w.mu.open
	f.raw = append(f.raw, raw...)
	f.chunks = append(f.chunks, pack.Chunk{ID: id, Raw: uint32(len(raw))})
	if len(f.raw) >= pack.FrameRaw {
		return w.sendLocked()
	}
	return nil
}

// buffer returns memory for a frame, raw or compressed: for a chunk of that many bytes behind a full one.
func (w *Writer) buffer(length int) []byte {
	if b, ok := w.buffers.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, pack.FrameRaw+max(length, frameSlack))
}

// putBack gives memory back that buffer returned.
func (w *Writer) putBack(b []byte) {
	if cap(b) <= pack.FrameRaw+2*frameSlack {
		w.buffers.Put(&b)
	}
}

// Has reports whether the repository has a chunk in a pack that lasts. Who asks relies on it: Commit sees to it that it still does.
func (w *Writer) Has(id block.Hash) bool {
	number, ok := w.r.index.lasting(id)
	if ok {
		w.pending.Lock()
		w.pending.relied[number] = true
		w.pending.Unlock()
	}
	return ok
}

// claim reports whether a chunk is neither stored nor on its way, and notes that it is now.
func (w *Writer) claim(id block.Hash) bool {
	w.pending.Lock()
	defer w.pending.Unlock()
	if w.pending.ids[id] {
		return false
	}
	if number, ok := w.r.index.lasting(id); ok {
		w.pending.relied[number] = true
		return false
	}
	w.pending.ids[id] = true
	return true
}

// sendLocked hands the open frame on. w.mu is held: the order of frames is that of the calls.
func (w *Writer) sendLocked() error {
	f := w.mu.open
	if f == nil {
		return nil
	}
	w.mu.open = nil
	for _, to := range []chan *frameJob{w.ordered, w.frames} {
		select {
		case to <- f:
		case <-w.ctx.Done():
			return w.failure()
		}
	}
	return nil
}

// failure is why the goroutines have ended.
func (w *Writer) failure() error {
	return fmt.Errorf("the writer has failed: %w", context.Cause(w.ctx))
}

// Close stores what is on its way and ends the session. Without an error everything that was added is durable, and others will find it. After one the writer is of no use.
func (w *Writer) Close() (WriterStats, error) {
	w.mu.Lock()
	var err error
	if !w.mu.closed {
		w.mu.closed = true
		err = w.sendLocked()
		close(w.frames)
		close(w.ordered)
	}
	w.mu.Unlock()
	if failed := w.tasks.Wait(); failed != nil {
		err = failed
	}
	return w.counts, err
}

// packAll puts frames into packs, in order.
func (w *Writer) packAll() error {
	defer close(w.packs)
	var p *pack.Builder
	store := func() error {
		select {
		case w.packs <- p:
			p = nil
			return nil
		case <-w.ctx.Done():
			return context.Cause(w.ctx)
		}
	}
	for f := range w.ordered {
		var compressed []byte
		select {
		case compressed = <-f.compressed:
		case <-w.ctx.Done():
			return context.Cause(w.ctx)
		}
		if p == nil {
			p = pack.NewBuilder(w.r.keys, w.session)
		}
		if err := p.Add(f.chunks, compressed); err != nil {
			return err
		}
		w.putBack(compressed)
		if p.Full() {
			if err := store(); err != nil {
				return err
			}
		}
	}
	if p != nil {
		return store()
	}
	return nil
}

// storeAll stores packs, in order, and runs that list them.
func (w *Writer) storeAll() error {
	var run []runPack
	for p := range w.packs {
		done, err := w.storePack(p)
		if err != nil {
			return err
		}
		if run = append(run, done); len(run) >= packsPerRun {
			if err, run = w.storeRun(run), nil; err != nil {
				return err
			}
		}
	}
	if err := w.ctx.Err(); err != nil || len(run) == 0 { // what is not listed yet is found by the directories
		return context.Cause(w.ctx)
	}
	return w.storeRun(run)
}

func (w *Writer) storePack(p *pack.Builder) (runPack, error) {
	whole, frames := p.Finish()
	name := nameOf(whole)
	if err := w.r.create(w.ctx, packKey(name), whole); err != nil {
		return runPack{}, err
	}
	number := w.r.index.add(name, uint32(len(whole)), frames)
	w.pending.Lock()
	w.pending.relied[number] = true
	for i := range frames {
		w.counts.RawBytes += uint64(frames[i].Raw)
		w.counts.Chunks += len(frames[i].Chunks)
		for _, c := range frames[i].Chunks {
			delete(w.pending.ids, c.ID)
		}
	}
	w.pending.Unlock()
	w.counts.StoredBytes += uint64(len(whole))
	w.counts.Packs++
	id, err := hex.DecodeString(name)
	if err != nil {
		return runPack{}, err
	}
	return runPack{name: block.Hash(id), size: uint32(len(whole)), first: frames[0].Off, frames: frames}, nil
}

// storeRun stores a run, unless it would list what a prune has deleted meanwhile.
func (w *Writer) storeRun(packs []runPack) error {
	if err := w.renew(w.ctx); err != nil {
		return err
	}
	n, err := w.r.storeRun(w.ctx, packs)
	w.counts.StoredBytes += uint64(n)
	return err
}

// storeRun stores a run and returns its bytes.
func (r *Repository) storeRun(ctx context.Context, packs []runPack) (int, error) {
	b, err := encodeRun(r.keys, packs)
	if err != nil {
		return 0, err
	}
	key := indexPrefix + nameOf(b)
	if err := r.create(ctx, key, b); err != nil {
		return len(b), err
	}
	r.index.listed(key, packs)
	return len(b), nil
}

// create stores an object whose name is the hash of its bytes: if it is there, it is the same.
func (r *Repository) create(ctx context.Context, key string, b []byte) error {
	err := r.backend.Create(ctx, key, b)
	if errors.Is(err, block.ErrExists) {
		return nil
	}
	return err
}
