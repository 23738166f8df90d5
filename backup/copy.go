package backup

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// Copying says what to copy.
type Copying struct {
	Backups  []*repository.Manifest // of the repository to copy from
	DryRun   bool                   // only say what there is to do
	Locked   time.Time              // the copies, and all that they need, are locked until then; zero: they are not. In whole seconds
	Progress func(Progress)         // over all backups; may be nil; it is called by one goroutine
}

// Copied is a backup that was copied, or with DryRun would be.
type Copied struct {
	From        string `json:"from"`         // its name where it was
	To          string `json:"to,omitempty"` // its name where it is now; none with DryRun, or after an error
	Source      string `json:"source"`
	SizeBytes   uint64 `json:"sizeBytes"`
	NonZero     uint64 `json:"nonZeroBytes"`
	NewBytes    uint64 `json:"newBytes"`
	StoredBytes uint64 `json:"storedBytes"`
	Present     bool   `json:"present"` // it was there already
	Error       string `json:"error,omitempty"`
}

// Copy copies backups into another repository, the oldest first, each of which exists there when its manifest is stored, the last of its objects. What is there already is not stored
// again, and a backup that was copied before is left out. Ids are keyed, so those of the other repository are made anew, from the bytes; but what a backup has in common with one of the
// same source that is in both is not even read. Content is cut anew only if the two repositories cut differently. A backup that cannot be read is passed over, and is the error in the
// end. Both indexes must be loaded, and both keys be an owner's.
func Copy(ctx context.Context, from, to *repository.Repository, c Copying) (all []Copied, err error) {
	if from.ID() == to.ID() {
		return nil, fmt.Errorf("both are repository %s: %w", from.ID(), block.ErrInvalid)
	}
	if !c.Locked.IsZero() {
		if err := to.CanLock(ctx); err != nil {
			return nil, err
		}
	}
	pairs, err := findPairs(ctx, from, to)
	if err != nil {
		return nil, err
	}
	at := Progress{}
	var wanted []*repository.Manifest
	for _, m := range c.Backups {
		one := Copied{From: m.Name, Source: m.Source.Name, SizeBytes: m.SizeBytes, NonZero: m.NonZero}
		if there := pairs.present[from.Identity(m)]; there != nil {
			one.Present, one.To = true, there.Name
		} else {
			wanted = append(wanted, m)
			at.TotalBytes += m.SizeBytes
		}
		all = append(all, one)
	}
	if c.DryRun {
		return all, nil
	}
	slices.SortStableFunc(wanted, func(a, b *repository.Manifest) int { return a.Time.Compare(b.Time) })
	var failed error
	for _, m := range wanted {
		one := &all[slices.IndexFunc(all, func(x Copied) bool { return x.From == m.Name })]
		begun := at
		copied, err := copyBackup(ctx, from, to, m, c.Locked, pairs.nearest(m), func(done, added uint64, locked, toLock int) {
			at.DoneBytes, at.NewBytes, at.Locked, at.ToLock = begun.DoneBytes+done, begun.NewBytes+added, locked, toLock
			if c.Progress != nil {
				c.Progress(at)
			}
		})
		if err != nil {
			err = fmt.Errorf("copy %s: %w", m.Name, err)
			one.Error = err.Error()
			failed = errors.Join(failed, err)
			if source := (*sourceError)(nil); ctx.Err() != nil || !errors.As(err, &source) {
				return all, failed
			}
			continue
		}
		one.To, one.NewBytes, one.StoredBytes = copied.Name, copied.NewBytes, copied.StoredBytes
		pairs.list = append(pairs.list, pair{m, copied})
	}
	return all, failed
}

// sourceError is a failure of the repository that is copied from.
type sourceError struct{ error }

func (e *sourceError) Unwrap() error { return e.error }

// pair is a backup that is in both repositories.
type pair struct{ from, to *repository.Manifest }

// pairs are all of them.
type pairs struct {
	list    []pair
	present map[repository.Identity]*repository.Manifest // what the repository has that is copied to
}

func findPairs(ctx context.Context, from, to *repository.Repository) (*pairs, error) {
	leaveOut := func(string, error) {}
	there, err := to.Manifests(ctx, leaveOut)
	if err != nil {
		return nil, fmt.Errorf("backups in %s: %w", to.Location(), err)
	}
	here, err := from.Manifests(ctx, leaveOut)
	if err != nil {
		return nil, fmt.Errorf("backups in %s: %w", from.Location(), err)
	}
	p := &pairs{present: make(map[repository.Identity]*repository.Manifest)}
	for _, m := range there {
		p.present[to.Identity(m)] = m
	}
	for _, m := range here {
		if other := p.present[from.Identity(m)]; other != nil && other.SizeBytes == m.SizeBytes {
			p.list = append(p.list, pair{m, other})
		}
	}
	return p, nil
}

// nearest returns the backup of the same source that is in both repositories and was made at the nearest time, nil if there is none.
func (p *pairs) nearest(m *repository.Manifest) (best *pair) {
	apart := func(q *pair) time.Duration { return q.from.Time.Sub(m.Time).Abs() }
	for i := range p.list {
		if q := &p.list[i]; q.from.Source == m.Source && (best == nil || apart(q) <= apart(best)) {
			best = q
		}
	}
	return best
}

// copyRun copies one backup.
type copyRun struct {
	from, to *repository.Repository
	m        *repository.Manifest
	w        *repository.Writer
	reader   *repository.Reader // of from
	tree     *treeCache         // of m
	recut    bool

	before, after *treeCache // of a backup that is in both; nil for none

	out      tree
	shares   bool // a page with the backup that is in both
	newBytes uint64
	progress func(done, added uint64)
}

// copyReaderBytes is the memory for what is read of the repository that is copied to: pages only.
const copyReaderBytes = 16 << 20

func copyBackup(ctx context.Context, from, to *repository.Repository, m *repository.Manifest, locked time.Time, base *pair, progress func(done, added uint64, locked, toLock int)) (*repository.Manifest, error) {
	if _, err := directories(m); err != nil {
		return nil, &sourceError{err}
	}
	w, err := to.NewWriter(ctx)
	if err != nil {
		return nil, err
	}
	reader := from.NewReader(0)
	run := &copyRun{
		from: from, to: to, m: m, w: w, reader: reader, tree: newTreeCache(reader, m), recut: from.Config().Cut != to.Config().Cut,
		out: tree{w: w, hasher: dedup.NewHasher(to.Keys().Domain)}, progress: func(done, added uint64) { progress(done, added, 0, 0) },
	}
	if base != nil {
		run.before, run.after = newTreeCache(reader, base.from), newTreeCache(to.NewReader(copyReaderBytes), base.to)
	}
	err = run.all(ctx)
	stored, err := finish(ctx, w, err)
	if err != nil {
		return nil, err
	}
	copied := *m
	copied.NewBytes, copied.StoredBytes, copied.Root = run.newBytes, stored.StoredBytes, run.out.root
	copied.Frozen, copied.Parent = nil, "" // of the other repository
	copied.LockedUntil, copied.PacksLockedUntil, copied.LockProof = locked, time.Time{}, nil
	if err := to.SetOrigin(&copied, from.Identity(m)); err != nil {
		return nil, err
	}
	var shared *repository.Manifest
	if run.shares {
		shared = base.to
	}
	if err := lock(ctx, to, w, &copied, run.shares, shared, func(p Progress) { progress(p.DoneBytes, p.NewBytes, p.Locked, p.ToLock) }); err != nil {
		return nil, err
	}
	return &copied, commitBased(ctx, to, w, &copied, shared, repository.ErrMarked)
}

// copyRegion is a region on its way.
type copyRegion struct {
	n       uint64
	buffer  []byte
	ready   chan struct{} // closed when the rest is there
	zero    bool
	page    block.Hash // of the other repository, if a backup there has the region already
	extents []copyExtent
}

// copyExtent is an extent of the copy. Data is nil if the other repository has the chunk.
type copyExtent struct {
	extent
	data []byte
}

// all reads regions, several at once, and stores them in order.
func (run *copyRun) all(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	free := make(chan []byte, workers+2)
	for range cap(free) {
		free <- nil // made when it is needed
	}
	toRead, toStore := make(chan *copyRegion), make(chan *copyRegion, cap(free))
	g.Go(func() error {
		defer close(toRead)
		defer close(toStore)
		for n := range regions(run.m.SizeBytes) {
			region := &copyRegion{n: n, ready: make(chan struct{})}
			select {
			case region.buffer = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			for _, to := range []chan<- *copyRegion{toStore, toRead} {
				select {
				case to <- region:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error { return run.readAll(ctx, toRead) })
	}
	g.Go(func() error {
		for region := range toStore {
			select {
			case <-region.ready:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := run.store(region); err != nil {
				return err
			}
			free <- region.buffer // there is room: it came from there
			run.progress(min(run.m.SizeBytes, (region.n+1)*RegionSize), run.newBytes)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return run.out.finish()
	})
	return g.Wait()
}

// regionCopier is what one goroutine reads regions with.
type regionCopier struct {
	*copyRun
	hasher *dedup.Hasher
	cutter *cdc.Cutter
}

func (run *copyRun) readAll(ctx context.Context, toRead <-chan *copyRegion) error {
	cutter, err := cdc.NewCutter(run.to.Config().Cut)
	if err != nil {
		return err
	}
	c := &regionCopier{run, dedup.NewHasher(run.to.Keys().Domain), cutter}
	for region := range toRead {
		if err := c.read(ctx, region); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &sourceError{err}
		}
		close(region.ready)
	}
	return nil
}

// read finds out what a region of the copy consists of, and reads what the other repository does not have.
func (c *regionCopier) read(ctx context.Context, region *copyRegion) error {
	id, err := c.tree.id(ctx, region.n)
	if err != nil {
		return err
	}
	if region.zero = id == (block.Hash{}); region.zero {
		return nil
	}
	if region.page = c.samePage(ctx, region.n, id); region.page != (block.Hash{}) {
		return nil
	}
	g, err := c.tree.page(ctx, region.n)
	if err != nil {
		return err
	}
	if region.buffer == nil {
		region.buffer = make([]byte, RegionSize)
	}
	if c.recut {
		return c.cutAnew(ctx, region, g)
	}
	known := c.known(ctx, region.n)
	off := 0
	for i := range g.extents {
		e := &g.extents[i]
		if e.isZero() {
			region.extents = append(region.extents, copyExtent{extent: *e})
			continue
		}
		if there, ok := known.of(e); ok && c.w.Has(there.id) {
			region.extents = append(region.extents, copyExtent{extent: there})
			continue
		}
		p := region.buffer[off : off+int(e.length)] // a slice becomes a chunk: nobody there needs the rest
		off += len(p)
		if err := c.fill(ctx, p, e); err != nil {
			return err
		}
		region.extents = append(region.extents, copyExtent{wholeChunk(c.hasher.Sum(p), e.length), p})
	}
	return nil
}

// fill reads what an extent has.
func (c *regionCopier) fill(ctx context.Context, p []byte, e *extent) error {
	chunk, err := c.reader.Chunk(ctx, e.id)
	if err != nil {
		return err
	}
	b, err := e.bytes(chunk)
	copy(p, b)
	return err
}

// cutAnew reads a region whole and cuts it as the other repository does.
func (c *regionCopier) cutAnew(ctx context.Context, region *copyRegion, g *page) error {
	data := region.buffer[:regionLength(c.m.SizeBytes, region.n)]
	off := 0
	for i := range g.extents {
		e := &g.extents[i]
		p := data[off : off+int(e.length)]
		off += len(p)
		if e.isZero() {
			clear(p)
		} else if err := c.fill(ctx, p, e); err != nil {
			return err
		}
	}
	for _, n := range c.cutter.Cut(nil, data, 0) {
		p := data[:n]
		data = data[n:]
		last := len(region.extents) - 1
		switch zero := dedup.IsZero(p); {
		case zero && last >= 0 && region.extents[last].isZero():
			region.extents[last].length += n
		case zero:
			region.extents = append(region.extents, copyExtent{extent: zeroes(n)})
		default:
			region.extents = append(region.extents, copyExtent{wholeChunk(c.hasher.Sum(p), n), p})
		}
	}
	return nil
}

// samePage returns the page of region n of the other repository if the region is the same in a backup that both have; else zero. It is not read: while that backup is there, all that it
// needs is, unless packs were lost.
func (c *regionCopier) samePage(ctx context.Context, n uint64, id block.Hash) (none block.Hash) {
	if c.before == nil || n >= c.before.total || c.to.Index().Incomplete() {
		return none
	}
	if old, err := c.before.id(ctx, n); err != nil || old != id {
		return none
	}
	page, err := c.after.id(ctx, n)
	if err != nil {
		return none
	}
	return page
}

// knownExtents are what extents of this repository are in the other.
type knownExtents struct {
	extents map[extent]extent
	chunks  map[block.Hash]block.Hash // that are whole in both; nil where nothing there may be sliced
}

// of returns what an extent is there.
func (k *knownExtents) of(e *extent) (extent, bool) {
	if there, ok := k.extents[*e]; ok {
		return there, true
	}
	id, ok := k.chunks[e.id]
	there := *e
	there.id = id
	return there, ok
}

// known returns what region n of a backup that both repositories have is in the other.
func (c *regionCopier) known(ctx context.Context, n uint64) (known knownExtents) {
	if c.before == nil || n >= c.before.total {
		return known
	}
	before, err := c.before.page(ctx, n)
	if err != nil {
		return known
	}
	after, err := c.after.page(ctx, n)
	if err != nil || len(before.extents) != len(after.extents) {
		return known
	}
	extents, chunks := make(map[extent]extent, len(before.extents)), make(map[block.Hash]block.Hash)
	for i := range before.extents {
		old, now := &before.extents[i], &after.extents[i]
		if old.length != now.length {
			return known
		}
		if old.isZero() || now.isZero() {
			continue
		}
		if extents[*old] = *now; old.at == now.at && old.of == now.of {
			chunks[old.id] = now.id
		}
	}
	if known.extents = extents; c.to.Config().Has(repository.Slices) {
		known.chunks = chunks
	}
	return known
}

// store stores what a region consists of, in order.
func (run *copyRun) store(region *copyRegion) error {
	if region.zero || region.page != (block.Hash{}) {
		run.shares = run.shares || !region.zero
		return run.out.page(region.page)
	}
	added, _, err := run.out.store(region.extents)
	run.newBytes += added
	return err
}
