package stripe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// Need is what is to be done for a sealed segment.
type Need int

// What a segment can need.
const (
	Nothing  Need = iota
	ToStripe      // it is not cut as it shall be
	ToMend        // shards are missing or damaged
)

// Need says what a sealed segment needs and can be given with the directories that are there.
func (b *Backend) Need(key string) Need {
	b.mu.Lock()
	dirty := b.mu.dirty[key]
	b.mu.Unlock()
	e, there := b.lookup(key)
	if !there || e.open {
		return Nothing
	}
	if b.o.Shape.None() {
		if len(e.sets) > 0 {
			return ToStripe
		}
		return Nothing
	}
	enough := len(b.turn(key)) >= b.o.Shape.Data+b.o.Shape.Parity
	mine := -1
	for i, s := range e.sets {
		if s.shape == b.o.Shape {
			mine = i
		}
	}
	switch {
	case mine < 0 || len(e.whole) > 0 || len(e.sets) > 1:
		if enough {
			return ToStripe
		}
	case dirty, e.sets[mine].present() < len(e.sets[mine].shards) && enough:
		return ToMend
	}
	return Nothing
}

// copies counts the whole copies in directories that are in sync.
func (e *entry) copies() (n int) {
	for _, k := range e.whole {
		if k.in.Load() {
			n++
		}
	}
	return n
}

// HealOpen gives each segment that is being written as many copies again as there shall be, where directories fell out. It reports whether there was one to heal.
func (b *Backend) HealOpen() (did bool, err error) {
	b.mu.Lock()
	short := map[string]*writer{}
	for key, e := range b.mu.entries {
		if e.open && e.writer != nil && e.copies() <= b.o.Shape.Parity {
			short[key] = e.writer
		}
	}
	b.mu.Unlock()
	var errs []error
	for key, w := range short {
		for _, k := range b.turn(key) {
			e, _ := b.lookup(key)
			if e.copies() > b.o.Shape.Parity || slices.Contains(e.whole, k) {
				continue
			}
			if err := w.copyTo(k); err != nil {
				errs = append(errs, err)
				break
			}
			did = true
		}
	}
	return did, errors.Join(errs...)
}

// Lacking counts the sealed segments that have less than they shall have: those with missing shards, and those that are not striped yet.
func (b *Backend) Lacking() (missing, waiting int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, e := range b.mu.entries {
		cut, whole := b.judge(key, e)
		switch {
		case !cut:
			waiting++
		case !whole:
			missing++
		}
	}
	return missing, waiting
}

// Whole reports whether a segment is cut as it shall be and lacks nothing.
func (b *Backend) Whole(key string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.mu.entries[key]
	if e == nil {
		return true
	}
	cut, whole := b.judge(key, e)
	return cut && whole
}

// judge says whether a segment is cut as it shall be, as far as it is sealed, and whether it has all its shards. mu is held.
func (b *Backend) judge(key string, e *entry) (cut, whole bool) {
	switch {
	case e.open:
		return true, e.copies() > b.o.Shape.Parity
	case b.o.Shape.None() && len(e.sets) == 0:
		return true, true
	case len(e.whole) == 0 && len(e.sets) == 1 && e.sets[0].shape == b.o.Shape:
		return true, e.sets[0].present() == len(e.sets[0].shards) && !b.mu.dirty[key]
	}
	return false, false
}

// Striped reports whether a segment lies in shards and nothing else.
func (b *Backend) Striped(key string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.mu.entries[key]
	return e != nil && len(e.whole) == 0 && len(e.sets) > 0
}

// OpenCopy opens one of the whole copies of a segment. One that is not there is block.ErrNotFound.
func (b *Backend) OpenCopy(key string, i int) (tiers.Reader, error) {
	e, _ := b.lookup(key)
	if i >= len(e.whole) {
		return nil, fmt.Errorf("copy %d of segment %s: %w", i, key, block.ErrNotFound)
	}
	if !e.whole[i].in.Load() {
		return nil, fmt.Errorf("copy in %s: %w", e.whole[i].path, ErrTooFew)
	}
	return e.whole[i].b.Open(key)
}

// Stripe cuts a sealed segment as it shall be, and removes what it was before once the shards are durable and were read back. src gives the bytes, whose columns have the checksums sums, and which the caller found good.
// A crash leaves what was, or both. A segment that is deleted meanwhile leaves nothing.
func (b *Backend) Stripe(ctx context.Context, key string, src io.ReaderAt, id erasure.Identity, sums []uint32, pace erasure.Pace) error {
	if b.o.Shape.None() {
		return b.unstripe(ctx, key, src, id, sums, pace)
	}
	was, there := b.lookup(key)
	if !there || was.open {
		return fmt.Errorf("stripe segment %s: %w", key, block.ErrNotFound)
	}
	var mine *shardSet
	for _, s := range was.sets {
		if s.shape == b.o.Shape && s.size == id.SizeBytes {
			mine = s
		}
	}
	if mine == nil || mine.present() < len(mine.shards) {
		e := encoder{b: b, key: key, set: &shardSet{shape: b.o.Shape, size: id.SizeBytes}, code: b.code, footer: id.FooterCRC}
		for _, k := range b.turn(key) {
			if len(e.set.shards) < b.o.Shape.Data+b.o.Shape.Parity {
				e.set.shards = append(e.set.shards, k)
			}
		}
		if len(e.set.shards) < b.o.Shape.Data+b.o.Shape.Parity {
			return fmt.Errorf("stripe segment %s over %d directories: %w", key, len(e.set.shards), ErrTooFew)
		}
		if err := e.run(ctx, src, sums, pace, nil); err != nil {
			return err
		}
		if mine != nil { // some of its shards lay elsewhere
			for i := range mine.shards {
				if mine.shards[i] == e.set.shards[i] {
					mine.shards[i] = nil
				}
			}
			_ = b.removeSet(key, mine)
		}
		mine = e.set
	}
	return b.supersede(key, &was, mine)
}

// supersede makes shards the only thing that a segment is.
func (b *Backend) supersede(key string, was *entry, set *shardSet) error {
	b.mu.Lock()
	e := b.mu.entries[key]
	if e == nil {
		b.mu.Unlock()
		return b.removeSet(key, set) // it was deleted meanwhile
	}
	e.whole, e.sets = nil, []*shardSet{set}
	e.changed++
	delete(b.mu.dirty, key)
	b.mu.Unlock()
	var errs []error
	for _, k := range was.whole {
		if k.in.Load() {
			errs = append(errs, k.b.Delete(key))
		}
	}
	for _, s := range was.sets {
		if s.shape != set.shape || s.size != set.size {
			errs = append(errs, b.removeSet(key, s))
		}
	}
	return errors.Join(errs...)
}

// unstripe makes a segment whole again, in the first directory.
func (b *Backend) unstripe(ctx context.Context, key string, src io.ReaderAt, id erasure.Identity, sums []uint32, pace erasure.Pace) error {
	was, there := b.lookup(key)
	home := b.disks()[0]
	if !there || !home.in.Load() {
		return fmt.Errorf("make segment %s whole: %w", key, ErrTooFew)
	}
	if !slices.Contains(was.whole, home) {
		file, err := home.b.Replace(key)
		if err != nil {
			return err
		}
		defer file.Discard()
		buf := make([]byte, readWindow*columnSize)
		for at := int64(0); at < id.SizeBytes; at += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), id.SizeBytes-at)]
			if err := pace.Wait(ctx, 2*len(p)); err != nil {
				return err
			}
			if err := full(src)(p, at); err != nil {
				return err
			}
			if _, err := file.WriteAt(p, at); err != nil {
				return err
			}
		}
		again, err := erasure.Sums(ctx, file, id.SizeBytes, pace, func([]byte) {})
		if err != nil {
			return err
		}
		if !slices.Equal(again, sums) {
			return &block.CorruptError{Source: "segment " + key, Want: "what was written", Got: "other bytes when it was read back"}
		}
		if err := file.Commit(); err != nil {
			return err
		}
	}
	b.mu.Lock()
	e := b.mu.entries[key]
	if e == nil {
		b.mu.Unlock()
		return home.b.Delete(key)
	}
	e.whole, e.sets = []*disk{home}, nil
	e.changed++
	b.mu.Unlock()
	var errs []error
	for _, k := range was.whole {
		if k != home && k.in.Load() {
			errs = append(errs, k.b.Delete(key))
		}
	}
	for _, s := range was.sets {
		errs = append(errs, b.removeSet(key, s))
	}
	return errors.Join(errs...)
}

// encoder makes shards of a segment.
type encoder struct {
	b      *Backend
	key    string
	set    *shardSet
	code   *erasure.Code
	footer uint32
}

// encodeStripes is how many stripes are encoded at a time.
const encodeStripes = 32

// run writes the shards, or those of them that only names, reads them back, and gives them their names. sums are those of the segment's columns; nil takes what src says.
func (e *encoder) run(ctx context.Context, src io.ReaderAt, sums []uint32, pace erasure.Pace, only []int) (err error) {
	l := newLayout(e.set.shape, e.set.size)
	if only == nil {
		for i := range e.set.shards {
			only = append(only, i)
		}
	}
	files := make([]vfs.File, l.total())
	paths := make([]string, l.total())
	defer func() {
		for i, f := range files {
			if f != nil {
				err = errors.Join(err, f.Close())
			}
			if err != nil && paths[i] != "" {
				_ = e.b.o.FS.Remove(paths[i] + ".tmp")
			}
		}
	}()
	for _, i := range only {
		k := e.set.shards[i]
		if err := e.b.o.FS.MkdirAll(e.b.folderOf(k, e.key), 0o700); err != nil {
			return err
		}
		paths[i] = e.b.o.FS.PathJoin(e.b.folderOf(k, e.key), e.set.name(e.key, i))
		if files[i], err = vfs.Create(e.b.o.FS, paths[i]+".tmp"); err != nil {
			return fmt.Errorf("make a shard in %s: %w", k.path, err)
		}
	}
	shardSums, err := e.columns(ctx, &l, src, sums, pace, files)
	if err != nil {
		return err
	}
	for _, i := range only {
		if err := e.finish(&l, i, files[i], shardSums[i]); err != nil {
			return fmt.Errorf("make a shard in %s: %w", e.set.shards[i].path, err)
		}
	}
	for _, i := range only {
		if err := e.name(paths[i], e.set.shards[i]); err != nil {
			return fmt.Errorf("make a shard in %s: %w", e.set.shards[i].path, err)
		}
		paths[i] = "" // it has its name
	}
	return nil
}

// columns writes the columns of all shards that have a file, and returns the checksums of all.
func (e *encoder) columns(ctx context.Context, l *layout, src io.ReaderAt, sums []uint32, pace erasure.Pace, files []vfs.File) ([][]uint32, error) {
	buf := make([]byte, l.total()*encodeStripes*columnSize)
	shards := make([][]byte, l.total())
	out := make([][]uint32, l.total())
	for t := 0; t < l.stripes; t += encodeStripes {
		n := min(encodeStripes, l.stripes-t)
		if err := pace.Wait(ctx, n*l.total()*columnSize); err != nil {
			return nil, err
		}
		for i := range shards {
			shards[i] = buf[i*n*columnSize : (i+1)*n*columnSize]
		}
		for i := range l.shape.Data {
			if err := e.load(l, src, sums, shards[i], i, t, n); err != nil {
				return nil, err
			}
		}
		if err := e.code.Encode(shards); err != nil {
			return nil, err
		}
		for i := range shards {
			for c := range n {
				out[i] = append(out[i], crc32.Checksum(shards[i][c*columnSize:(c+1)*columnSize], castagnoli))
			}
			if files[i] == nil {
				continue
			}
			if err := vfs.WriteVec(files[i], [][]byte{shards[i]}, l.columnOff(t)); err != nil {
				return nil, fmt.Errorf("write a shard in %s: %w", e.set.shards[i].path, err)
			}
		}
	}
	return out, nil
}

// load fills p with n columns of data shard i from t on. What the segment has no more of is zeroes.
func (e *encoder) load(l *layout, src io.ReaderAt, sums []uint32, p []byte, i, t, n int) error {
	first := i*l.stripes + t
	off := int64(first) * columnSize
	have := max(0, min(int64(len(p)), l.size-off))
	clear(p[have:])
	if err := full(src)(p[:have], off); err != nil && have > 0 {
		return err
	}
	for c := range min(n, max(0, l.columns-first)) {
		if sums == nil {
			break
		}
		if got := crc32.Checksum(p[c*columnSize:(c+1)*columnSize], castagnoli); got != sums[first+c] {
			return &block.CorruptError{Source: "segment " + e.key, Offset: off + int64(c)*columnSize, Want: fmt.Sprintf("crc %08x, as it was read before", sums[first+c]), Got: fmt.Sprintf("%08x", got)}
		}
	}
	return nil
}

// finish writes head and checksums of a shard, makes it durable and reads it back.
func (e *encoder) finish(l *layout, i int, f vfs.File, sums []uint32) error {
	id, generation, _ := tiers.ParseSegmentKey(e.key)
	h := head{shape: l.shape, index: i, storeID: e.b.o.StoreID, segment: id, generation: generation, footer: e.footer, size: l.size}
	if err := vfs.WriteVec(f, [][]byte{h.append(nil), sumsOf(sums)}, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	_ = vfs.Uncache(f)
	if bad, err := verify(l, f); bad > 0 || err != nil {
		return errors.Join(err, &block.CorruptError{Source: "a new shard", Want: "what was written", Got: fmt.Sprintf("%d damaged columns when it was read back", bad)})
	}
	return nil
}

func (e *encoder) name(path string, k *disk) error {
	if err := e.b.o.FS.Rename(path+".tmp", path); err != nil {
		return err
	}
	if err := vfs.SyncDir(e.b.o.FS, e.b.folderOf(k, e.key)); err != nil {
		return err
	}
	return vfs.SyncDir(e.b.o.FS, k.path)
}

// verify counts the columns of a shard that cannot be read or fail their checksum. A page of checksums that fails its own counts for all its columns.
func verify(l *layout, f io.ReaderAt) (bad int, err error) {
	page := make([]byte, headSize)
	buf := make([]byte, readWindow*columnSize)
	for t := 0; t < l.stripes; t += readWindow {
		n := min(readWindow, l.stripes-t)
		p := buf[:n*columnSize]
		readErr := full(f)(p, l.columnOff(t))
		for c := range n {
			column := p[c*columnSize : (c+1)*columnSize]
			if readErr != nil && full(f)(column, l.columnOff(t+c)) != nil {
				bad++
				continue
			}
			sum, err := l.readSum(full(f), page, t+c)
			if err != nil || crc32.Checksum(column, castagnoli) != sum {
				bad++
			}
		}
	}
	return bad, nil
}

// Report is what Check found.
type Report struct {
	Columns int // damaged columns of shards that are there
	Missing int // shards that are not there, or whose head is not right
	Mended  bool
}

// Damaged reports whether anything was found.
func (r *Report) Damaged() bool { return r.Columns+r.Missing > 0 }

// Check reads every shard of a segment, and makes those anew that are missing or damaged, if it shall and there are directories for them. A segment without shards has nothing to check.
func (b *Backend) Check(ctx context.Context, key string, mend bool, pace erasure.Pace) (rep Report, err error) {
	e, there := b.lookup(key)
	if !there || len(e.whole) > 0 || len(e.sets) != 1 {
		return rep, nil
	}
	set := e.sets[0]
	l := newLayout(set.shape, set.size)
	var bad []int
	footer, known := uint32(0), false
	for i := range set.shards {
		f, err := b.openShard(key, set, i)
		if err != nil {
			if k := set.shards[i]; k != nil {
				b.suspect(k, err)
			}
			rep.Missing++
			bad = append(bad, i)
			continue
		}
		if err := pace.Wait(ctx, int(l.shardSize())); err != nil {
			return rep, errors.Join(err, f.Close())
		}
		_ = vfs.Uncache(f)
		n, _ := verify(&l, f)
		if h, err := readHead(f); err == nil {
			footer, known = h.footer, true
		}
		if n > 0 {
			rep.Columns += n
			bad = append(bad, i)
		}
		if err := f.Close(); err != nil {
			return rep, err
		}
	}
	if len(bad) > 0 && mend && known {
		rep.Mended, err = b.remake(ctx, key, set, bad, footer, pace)
	}
	if len(bad) == 0 || mend && err == nil {
		// What could not be mended for want of a directory is known to be missing; what reads meet in future they say anew.
		b.mu.Lock()
		delete(b.mu.dirty, key)
		b.mu.Unlock()
	}
	return rep, err
}

// remake makes shards anew from the others, each in the directory where it was, or else in one that has no shard of the segment.
func (b *Backend) remake(ctx context.Context, key string, set *shardSet, bad []int, footer uint32, pace erasure.Pace) (bool, error) {
	r, err := b.openSet(key, set)
	if err != nil {
		return false, err
	}
	defer r.Close()
	// The footer that the shards were made for is that of the bytes.
	var tail [4]byte
	if err := full(r)(tail[:], set.size-4); err != nil {
		return false, err
	}
	if got := binary.LittleEndian.Uint32(tail[:]); got != footer {
		return false, &block.CorruptError{Source: "segment " + key, Offset: set.size - 4, Want: fmt.Sprintf("footer %08x", footer), Got: fmt.Sprintf("%08x", got)}
	}
	next := &shardSet{set.shape, set.size, slices.Clone(set.shards)}
	for _, i := range bad {
		if k := next.shards[i]; k != nil && k.in.Load() {
			continue
		}
		next.shards[i] = nil
		for _, k := range b.turn(key) {
			if !slices.Contains(next.shards, k) {
				next.shards[i] = k
				break
			}
		}
	}
	made := slices.DeleteFunc(slices.Clone(bad), func(i int) bool { return next.shards[i] == nil })
	if len(made) == 0 {
		return false, nil
	}
	e := encoder{b: b, key: key, set: next, code: r.code, footer: footer}
	if err := e.run(ctx, r, nil, pace, made); err != nil {
		return false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.mu.entries[key]
	if now == nil {
		return false, b.removeSet(key, next)
	}
	if len(now.sets) == 1 {
		now.sets[0] = next
	}
	now.changed++
	return len(made) == len(bad), nil
}
