package stripe

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// Open implements tiers.Backend. The reader keeps to what the segment was when it was opened.
func (b *Backend) Open(key string) (tiers.Reader, error) {
	if _, ok := tiers.ParseParityKey(key); ok {
		for _, k := range b.disks() {
			if k.in.Load() {
				return k.b.Open(key)
			}
		}
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	for range 2 {
		e, there := b.lookup(key)
		if !there {
			break
		}
		r, err := b.openWhole(key, &e)
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, block.ErrNotFound) {
			return nil, err
		}
		if s := best(e.sets); s != nil {
			r, err := b.openSet(key, s)
			if err != nil {
				return nil, err // and not a nil *setReader in an interface
			}
			return r, nil
		}
	}
	return nil, fmt.Errorf("segment %s: %w", key, block.ErrNotFound)
}

// best returns the shards that can be read with the fewest missing.
func best(sets []*shardSet) (found *shardSet) {
	for _, s := range sets {
		if n := s.present(); n >= s.shape.Data && (found == nil || len(s.shards)-n < len(found.shards)-found.present()) {
			found = s
		}
	}
	if found == nil && len(sets) > 0 {
		return sets[0] // it says what is missing
	}
	return found
}

// wholeReader reads a segment of which there are whole copies.
type wholeReader struct {
	b     *Backend
	key   string
	first tiers.Reader
	from  *disk
	more  []*disk
}

func (b *Backend) openWhole(key string, e *entry) (*wholeReader, error) {
	err := fmt.Errorf("segment %s: %w", key, block.ErrNotFound)
	for i, k := range e.whole {
		if !k.in.Load() {
			continue
		}
		f, e2 := k.b.Open(key)
		if e2 == nil {
			return &wholeReader{b, key, f, k, e.whole[i+1:]}, nil
		}
		b.suspect(k, e2)
		if !errors.Is(e2, block.ErrNotFound) {
			err = errors.Join(e2, err)
		}
	}
	return nil, err
}

// ReadAt implements io.ReaderAt. Where one copy fails another one answers.
func (r *wholeReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.first.ReadAt(p, off)
	if n == len(p) || errors.Is(err, io.EOF) {
		return n, err
	}
	r.b.suspect(r.from, err)
	for i := range r.more {
		if r.ReadCopy(i+1, p, off) == nil {
			return len(p), nil
		}
	}
	return n, err
}

// Copies is how many copies ReadCopy knows.
func (r *wholeReader) Copies() int { return 1 + len(r.more) }

// ReadCopy fills p from one of the copies, for whoever knows that another one is damaged.
func (r *wholeReader) ReadCopy(i int, p []byte, off int64) error {
	if i == 0 {
		return full(r.first)(p, off)
	}
	k := r.more[i-1]
	if !k.in.Load() {
		return fmt.Errorf("copy in %s: %w", k.path, block.ErrNotFound)
	}
	f, err := k.b.Open(r.key)
	if err != nil {
		return err
	}
	defer f.Close()
	return full(f)(p, off)
}

func (r *wholeReader) TryReadAt(p []byte, off int64) error { return r.first.TryReadAt(p, off) }
func (r *wholeReader) Size() (int64, error)                { return r.first.Size() }
func (r *wholeReader) Close() error                        { return r.first.Close() }

// Prefetch implements tiers.Prefetcher.
func (r *wholeReader) Prefetch(off, n int64) {
	if p, ok := r.first.(tiers.Prefetcher); ok {
		p.Prefetch(off, n)
	}
}

// Uncache asks the kernel to forget what it holds of the segment.
func (r *wholeReader) Uncache() error {
	if u, ok := r.first.(interface{ Uncache() error }); ok {
		return u.Uncache()
	}
	return nil
}

// setReader reads a segment that was cut into shards.
type setReader struct {
	b    *Backend
	key  string
	set  *shardSet
	l    layout
	code *erasure.Code

	mu    sync.Mutex
	files []*shardFile // by index; opened when first asked for
}

// shardFile is an open shard, or why there is none.
type shardFile struct {
	f   vfs.File
	k   *disk
	err error
}

func (b *Backend) openSet(key string, s *shardSet) (*setReader, error) {
	if n := s.present(); n < s.shape.Data {
		return nil, &block.CorruptError{Source: "segment " + key, Want: fmt.Sprintf("%d of %d shards", s.shape.Data, len(s.shards)), Got: fmt.Sprint(n)}
	}
	code := b.code
	if code == nil || code.Shape() != s.shape {
		var err error
		if code, err = erasure.NewCode(s.shape); err != nil {
			return nil, err
		}
	}
	return &setReader{b: b, key: key, set: s, l: newLayout(s.shape, s.size), code: code, files: make([]*shardFile, len(s.shards))}, nil
}

// Size implements tiers.Reader.
func (r *setReader) Size() (int64, error) { return r.set.size, nil }

// Close implements tiers.Reader.
func (r *setReader) Close() error {
	var errs []error
	for _, f := range r.files {
		if f != nil && f.f != nil {
			errs = append(errs, f.f.Close())
		}
	}
	return errors.Join(errs...)
}

// shard opens a shard, whose head must say that it is the right one.
func (r *setReader) shard(i int) *shardFile {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.files[i] == nil {
		f := &shardFile{k: r.set.shards[i]}
		f.f, f.err = r.b.openShard(r.key, r.set, i)
		r.files[i] = f
		if f.err != nil && f.k != nil && f.k.in.Load() {
			r.b.note(r.key)
			r.b.suspect(f.k, f.err)
		}
	}
	return r.files[i]
}

func (b *Backend) openShard(key string, s *shardSet, i int) (vfs.File, error) {
	k := s.shards[i]
	if k == nil || !k.in.Load() {
		return nil, fmt.Errorf("shard %d of segment %s: %w", i, key, block.ErrNotFound)
	}
	f, err := b.o.FS.Open(b.o.FS.PathJoin(b.folderOf(k, key), s.name(key, i)))
	if err != nil {
		return nil, err
	}
	if err := b.checkHead(f, key, s, i); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("shard %d of segment %s in %s: %w", i, key, k.path, err)
	}
	return f, nil
}

// checkHead reads the head of a shard and compares it with what the name says.
func (b *Backend) checkHead(f io.ReaderAt, key string, s *shardSet, i int) error {
	h, err := readHead(f)
	if err != nil {
		return err
	}
	id, generation, _ := tiers.ParseSegmentKey(key)
	want := head{shape: s.shape, index: i, storeID: b.o.StoreID, segment: id, generation: generation, footer: h.footer, size: s.size}
	if h != want {
		return &block.CorruptError{Source: "head of a shard", Want: fmt.Sprintf("%+v", want), Got: fmt.Sprintf("%+v", h)}
	}
	return nil
}

func readHead(f io.ReaderAt) (head, error) {
	buf := make([]byte, headSize)
	if err := full(f)(buf, 0); err != nil {
		return head{}, err
	}
	return parseHead(buf)
}

// note remembers that a segment is damaged.
func (b *Backend) note(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.entries[key] != nil {
		b.mu.dirty[key] = true
	}
}

// readWindow is how many columns are read at once.
const readWindow = 64

var windows = sync.Pool{New: func() any { b := make([]byte, (readWindow+1)*columnSize); return &b }}

// ReadAt implements io.ReaderAt.
func (r *setReader) ReadAt(p []byte, off int64) (int, error) {
	return r.read(p, off, r.column, func(f vfs.File, p []byte, off int64) error { return full(f)(p, off) })
}

// TryReadAt implements tiers.Reader.
func (r *setReader) TryReadAt(p []byte, off int64) error {
	n, err := r.read(p, off, func([]byte, int, int) error { return block.ErrWouldBlock }, vfs.TryRead)
	if err == nil && n < len(p) || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// read fills p with what lies at off, run by run of columns of one shard. mend gives a column that cannot be read or fails its checksum.
func (r *setReader) read(p []byte, off int64, mend func(buf []byte, i, t int) error, readAt func(vfs.File, []byte, int64) error) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, block.ErrInvalid)
	}
	if off >= r.l.size {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), r.l.size-off))
	window := windows.Get().(*[]byte)
	defer windows.Put(window)
	for done := 0; done < want; {
		at := off + int64(done)
		i, t := r.l.place(int(at / columnSize))
		inner := int(at % columnSize)
		n := min((inner+want-done+columnSize-1)/columnSize, r.l.stripes-t, readWindow)
		buf := (*window)[:n*columnSize]
		page := (*window)[readWindow*columnSize:]
		if err := r.run(buf, page, i, t, mend, readAt); err != nil {
			return done, err
		}
		done += copy(p[done:want], buf[inner:])
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// run fills buf with the columns of shard i from t on.
func (r *setReader) run(buf, page []byte, i, t int, mend func(buf []byte, i, t int) error, readAt func(vfs.File, []byte, int64) error) error {
	s := r.shard(i)
	from := func(p []byte, off int64) error { return readAt(s.f, p, off) }
	err := s.err
	if err == nil {
		err = from(buf, r.l.columnOff(t))
	}
	if errors.Is(err, block.ErrWouldBlock) {
		return err
	}
	loaded := -1
	for c := 0; c*columnSize < len(buf); c++ {
		column := buf[c*columnSize : (c+1)*columnSize]
		good := err == nil
		if good && (t+c)/sumsPerPage != loaded {
			loaded = (t + c) / sumsPerPage
			_, e := r.l.readSum(from, page, t+c)
			if errors.Is(e, block.ErrWouldBlock) {
				return e
			}
			if e != nil {
				loaded, good = -1, false
			}
		}
		if good && crc32.Checksum(column, castagnoli) == le.Uint32(page[4*((t+c)%sumsPerPage):]) {
			continue
		}
		if err := mend(column, i, t+c); err != nil {
			return err
		}
	}
	return nil
}

// column reconstructs one column into buf, from as many of the others as it takes.
func (r *setReader) column(buf []byte, i, t int) error {
	if s := r.shard(i); s.err == nil {
		r.b.note(r.key) // and not one that is known to be missing
	}
	shards := make([][]byte, r.l.total())
	page := make([]byte, headSize)
	have := 0
	for j := range shards {
		if have == r.l.shape.Data {
			break
		}
		s := r.shard(j)
		if s.err != nil {
			continue
		}
		p := make([]byte, columnSize)
		if full(s.f)(p, r.l.columnOff(t)) != nil {
			continue
		}
		sum, err := r.l.readSum(full(s.f), page, t)
		if err != nil || crc32.Checksum(p, castagnoli) != sum {
			continue
		}
		shards[j] = p
		have++
	}
	if have < r.l.shape.Data {
		return &block.CorruptError{Source: "segment " + r.key + ", beyond its shards", Offset: int64(i*r.l.stripes+t) * columnSize, Want: fmt.Sprintf("%d good shards", r.l.shape.Data), Got: fmt.Sprint(have)}
	}
	if shards[i] == nil {
		if err := r.code.Reconstruct(shards); err != nil {
			return err
		}
		r.b.counts.reconstructed.Add(1)
	}
	copy(buf, shards[i])
	return nil
}

// Prefetch implements tiers.Prefetcher.
func (r *setReader) Prefetch(off, n int64) {
	for n > 0 && off >= 0 && off < r.l.size {
		i, t := r.l.place(int(off / columnSize))
		run := min(n, int64(r.l.stripes-t)*columnSize)
		if s := r.shard(i); s.err == nil {
			vfs.Prefetch(s.f, r.l.columnOff(t), run)
		}
		off, n = off+run, n-run
	}
}

// Uncache asks the kernel to forget what it holds of the shards.
func (r *setReader) Uncache() error {
	var errs []error
	for i := range r.files {
		if s := r.shard(i); s.err == nil {
			errs = append(errs, vfs.Uncache(s.f))
		}
	}
	return errors.Join(errs...)
}
