package repository

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// MendOptions say how a repository is looked at that is to be mended.
type MendOptions struct {
	// Quick reads only packs whose size is not what the index says; others are taken to hold what it says. Else every pack is read to the last byte.
	Quick bool
	// Warn is told what is damaged; it may be nil.
	Warn func(key string, err error)
	// Progress is told bytes of packs that were read, and of all to read; it may be nil. It is called by one goroutine at a time.
	Progress func(done, total uint64)
}

// What a DamagedPack suffers from.
const (
	PackMissing    = "missing"    // the index lists it, and it is not there
	PackDamaged    = "damaged"    // some of its bytes are other ones, or it is cut off
	PackUnreadable = "unreadable" // neither it nor the index says what is in it
)

// DamagedPack is a pack that is not what it was.
type DamagedPack struct {
	Name    string `json:"name"`
	Problem string `json:"problem"` // PackMissing, PackDamaged or PackUnreadable
	Marked  bool   `json:"marked"`  // a prune will delete it anyway
	Error   string `json:"error"`
}

// Mending is the repair of the objects of one repository: what of them is damaged, what can be had of damaged packs, and how it is made good. It belongs to one goroutine.
//
// Nothing is ever changed in place: what a repair gains goes into new packs, by a Writer, and Finish marks the damaged ones, which a prune deletes a grace later. So whatever
// stops a repair, the repository is no worse than before.
type Mending struct {
	DamagedRuns []string      // keys of runs that cannot be read
	Damaged     []DamagedPack // in order of their names
	Unlisted    []string      // packs that no run lists and that are whole
	Packs       int           // that were looked at

	r      *Repository
	o      MendOptions
	began  time.Time
	listed map[string]uint32 // sizes of the packs that runs list
	there  map[string]int64  // sizes of the packs that are there
	found  []runPack         // whole ones that no run lists

	mu struct { // of the goroutines that read packs
		sync.Mutex
		done, total uint64
		silent      map[string]error // damaged packs that do not say themselves what is in them
	}
	broken  []brokenPack
	salvage map[block.Hash]salvaged

	lastKey frameKey // of the frame that was opened last
	lastRaw []byte
}

// brokenPack is a pack of which something can be read still.
type brokenPack struct {
	name   string
	frames []pack.Frame // without chunks
	reader *pack.Reader // nil if nothing of it can be read
}

// salvaged says where in a broken pack a chunk is whole.
type salvaged struct{ pack, frame, off, raw uint32 }

// located is a chunk of a pack.
type located struct {
	id              block.Hash
	frame, off, raw uint32
}

// Mend looks at all objects but the backups, in the order of the protocol: marks, runs, packs. From then on the index of the repository knows only what can be read, and r must not be used
// for anything else until the Mending is done with. What keeps it from looking, or from writing later, is the error: ErrUnreadableMark, seal.ErrReadKey, or one of the place.
func (r *Repository) Mend(ctx context.Context, o MendOptions) (*Mending, error) {
	if !r.keys.CanRead() {
		return nil, seal.ErrReadKey
	}
	m := &Mending{r: r, o: o, began: time.Now(), listed: make(map[string]uint32), there: make(map[string]int64), salvage: make(map[block.Hash]salvaged)}
	m.mu.silent = make(map[string]error)
	r.index = newIndex()
	if _, err := r.loadMarks(ctx, m.warn); err != nil {
		return nil, err
	}
	if err := r.index.unreadableMark(); err != nil {
		return nil, err
	}
	if err := m.listRuns(ctx); err != nil {
		return nil, err
	}
	err := r.backend.List(ctx, packPrefix, func(o backend.Object) error {
		if name := packName(o.Key); len(name) == 2*len(block.Hash{}) {
			m.there[name] = o.SizeBytes
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := m.look(ctx); err != nil {
		return nil, err
	}
	slices.SortFunc(m.Damaged, func(a, b DamagedPack) int { return cmpString(a.Name, b.Name) })
	slices.Sort(m.Unlisted)
	if len(m.Damaged)+len(m.DamagedRuns) > 0 {
		r.index.setIncomplete()
	}
	return m, nil
}

func cmpString(a, b string) int { return slices.Compare([]byte(a), []byte(b)) }

func (m *Mending) warn(key string, err error) {
	if m.o.Warn != nil {
		m.o.Warn(key, err)
	}
}

// eachRun calls visit with the runs that can be read. What is damaged of others is told to bad; any other error is one.
func (m *Mending) eachRun(ctx context.Context, bad func(key string, err error), visit func(packs []runPack)) error {
	var failed error
	err := m.r.loadRuns(ctx, func(key string, err error) {
		if !m.r.damagedObject(ctx, key, err) {
			failed = errors.Join(failed, err)
		} else if bad != nil {
			bad(key, err)
		}
	}, func(_ string, packs []runPack) { visit(packs) })
	return errors.Join(err, failed)
}

// damagedObject reports whether a run or manifest that cannot be read is damaged. One of another version is, too, if its name does not say that these are its bytes.
func (r *Repository) damagedObject(ctx context.Context, key string, err error) bool {
	if !errors.Is(err, block.ErrVersion) {
		return errors.Is(err, block.ErrCorrupt)
	}
	b, err := r.read(ctx, key, maxRun)
	if err != nil {
		return errors.Is(err, block.ErrCorrupt)
	}
	name := key[strings.LastIndexAny(key, "/-")+1:]
	return !strings.HasPrefix(nameOf(b), name)
}

// DamagedManifest reports whether a backup's manifest, which cannot be read for that reason, is damaged or gone, and not another program's.
func (r *Repository) DamagedManifest(ctx context.Context, name string, err error) bool {
	return errors.Is(err, block.ErrInvalid) || errors.Is(err, block.ErrNotFound) || r.damagedObject(ctx, manifestPrefix+name, err)
}

func (m *Mending) listRuns(ctx context.Context) error {
	return m.eachRun(ctx, func(key string, err error) {
		m.DamagedRuns = append(m.DamagedRuns, key)
		m.warn(key, err)
	}, func(packs []runPack) {
		for i := range packs {
			m.listed[packs[i].name.String()] = packs[i].size
		}
	})
}

// look compares the packs that are listed with those that are there, and reads those that it has to.
func (m *Mending) look(ctx context.Context) error {
	trusted := make(map[string]bool)
	for name, size := range m.listed {
		if got, ok := m.there[name]; !ok {
			m.missing(name)
		} else if m.o.Quick && got == int64(size) {
			trusted[name] = true
		}
	}
	var toRead []string
	for name, size := range m.there {
		if !trusted[name] {
			toRead = append(toRead, name)
			m.mu.total += uint64(size)
		}
	}
	slices.Sort(toRead)
	m.Packs = len(m.there)
	g, reading := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, name := range toRead {
		g.Go(func() error { return m.read(reading, name) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(trusted) > 0 {
		err := m.eachRun(ctx, nil, func(packs []runPack) {
			for i := range packs {
				if trusted[packs[i].name.String()] {
					m.r.index.add(packs[i].name.String(), packs[i].size, packs[i].frames)
				}
			}
		})
		if err == nil {
			err = m.r.resolve(ctx)
		}
		if err != nil {
			return err
		}
	}
	return m.askRuns(ctx)
}

// missing notes that a pack is not there. One that a prune has marked, it has deleted.
func (m *Mending) missing(name string) {
	m.r.index.exclude(name, m.listed[name])
	if m.r.index.isMarked(name) {
		return
	}
	err := fmt.Errorf("a pack that the index lists: %w", block.ErrNotFound)
	m.damage(name, PackMissing, err)
}

// damage notes a damaged pack. Readers of packs hold mu.
func (m *Mending) damage(name, problem string, err error) {
	m.Damaged = append(m.Damaged, DamagedPack{Name: name, Problem: problem, Marked: m.r.index.isMarked(name), Error: err.Error()})
	m.warn(packKey(name), err)
}

// read reads a pack whole. What is whole goes into the index; of what is not, its good chunks are kept in mind.
func (m *Mending) read(ctx context.Context, name string) error {
	size := m.there[name]
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.mu.done += uint64(size); m.o.Progress != nil {
			m.o.Progress(m.mu.done, m.mu.total)
		}
	}()
	b, err := m.bytes(ctx, name)
	if errors.Is(err, block.ErrNotFound) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if _, listed := m.listed[name]; listed {
			m.missing(name)
		}
		return nil
	}
	if err != nil {
		return err
	}
	sum := blake3.Sum256(b)
	frames, dirErr := m.r.correctDirectoryOf(b)
	var good *openedPack
	if dirErr == nil {
		good, err = m.r.openPack(b, frames, true)
	}
	if got := hex.EncodeToString(sum[:]); got != name {
		err = errors.Join(&block.CorruptError{Source: "pack", Want: "bytes with the hash " + name, Got: got}, err)
	}
	err = errors.Join(err, dirErr)
	m.mu.Lock()
	defer m.mu.Unlock()
	_, listed := m.listed[name]
	switch {
	case dirErr != nil:
		m.mu.silent[name] = err
	case err != nil:
		m.damage(name, PackDamaged, err)
		m.breakPack(name, frames, good)
	case !listed && m.r.index.isMarked(name): // to be deleted: what is needed of it is copied
		m.breakPack(name, frames, good)
	default:
		m.r.index.add(name, uint32(size), frames)
		if !listed {
			id, _ := hex.DecodeString(name) // it is the hash of its bytes
			m.found = append(m.found, runPack{name: block.Hash(id), size: uint32(size), first: frames[0].Off, frames: frames})
			m.Unlisted = append(m.Unlisted, name)
		}
	}
	return nil
}

// bytes returns a pack, as far as it may be one.
func (m *Mending) bytes(ctx context.Context, name string) ([]byte, error) {
	b := make([]byte, min(m.there[name], pack.MaxSize))
	err := m.r.backend.ReadAt(ctx, packKey(name), b, 0)
	if err != nil && !errors.Is(err, block.ErrNotFound) {
		err = fmt.Errorf("%s: %w", packKey(name), err)
	}
	return b, err
}

// breakPack keeps in mind what is whole of a pack, and keeps the index from ever relying on it.
func (m *Mending) breakPack(name string, frames []pack.Frame, opened *openedPack) {
	m.r.index.exclude(name, uint32(min(m.there[name], pack.MaxSize)))
	if opened == nil {
		return
	}
	number := uint32(len(m.broken))
	m.broken = append(m.broken, brokenPack{name, withoutChunks(frames), opened.reader})
	for _, c := range opened.good {
		m.salvage[c.id] = salvaged{number, c.frame, c.off, c.raw}
	}
}

// askRuns looks up in the runs what is in the damaged packs that do not say it themselves.
func (m *Mending) askRuns(ctx context.Context) error {
	silent := m.mu.silent
	if len(silent) == 0 {
		return nil
	}
	known := make(map[string]bool)
	var failed error
	err := m.eachRun(ctx, nil, func(packs []runPack) {
		for i := range packs {
			name := packs[i].name.String()
			if silent[name] == nil || failed != nil {
				continue
			}
			b, err := m.bytes(ctx, name)
			if errors.Is(err, block.ErrNotFound) {
				continue
			}
			if err != nil {
				failed = err
				return
			}
			good, _ := m.r.openPack(b, packs[i].frames, true) // that it is damaged is known
			m.breakPack(name, packs[i].frames, good)
			known[name] = true
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	for name, err := range silent {
		if known[name] {
			m.damage(name, PackDamaged, err)
		} else {
			m.damage(name, PackUnreadable, err)
		}
	}
	return nil
}

// exclude makes a pack one that the index never relies on, whatever runs say that are read later.
func (x *Index) exclude(name string, size uint32) {
	x.lose(x.add(name, size, nil))
}

// directoryOf returns what a pack says is in it.
func (r *Repository) directoryOf(b []byte) ([]pack.Frame, error) {
	h, err := pack.DecodeHeader(b[:min(len(b), pack.HeaderSize)], r.keys.Repository)
	if err != nil {
		return nil, err
	}
	end := len(b) - pack.TrailerSize
	t, err := pack.DecodeTrailer(b[max(0, end):], int64(len(b)))
	if err != nil {
		return nil, err
	}
	return pack.OpenDirectory(r.keys, h, t, b[end-int(t.DirectoryLen):end])
}

// correctDirectoryOf is directoryOf for a pack in which single bits may be wrong.
func (r *Repository) correctDirectoryOf(b []byte) ([]pack.Frame, error) {
	frames, err := r.directoryOf(b)
	if err == nil || len(b) < pack.TrailerSize {
		return frames, err
	}
	h, err := pack.CorrectHeader(b[:min(len(b), pack.HeaderSize)], r.keys.Repository)
	if err != nil {
		return nil, err
	}
	end := len(b) - pack.TrailerSize
	t, err := pack.CorrectTrailer(b[end:], int64(len(b)))
	if err != nil {
		return nil, err
	}
	return pack.CorrectDirectory(r.keys, h, t, b[end-int(t.DirectoryLen):end])
}

// openedPack is what is whole of a pack.
type openedPack struct {
	reader *pack.Reader
	good   []located
}

// openPack opens all frames of a pack, or of what is left of it, and returns the chunks that are what their ids say; the error is what is wrong with the others. With correct, frames and a header in which a few bits are wrong
// are read as what they were. Without, the bytes are overwritten. It needs an owner's keys.
func (r *Repository) openPack(b []byte, frames []pack.Frame, correct bool) (opened *openedPack, err error) {
	decode := pack.DecodeHeader
	if correct {
		decode = pack.CorrectHeader
	}
	h, err := decode(b[:min(len(b), pack.HeaderSize)], r.keys.Repository)
	if err != nil {
		return nil, err
	}
	opened = new(openedPack)
	if opened.reader, err = pack.NewReader(r.keys, h); err != nil {
		return nil, err
	}
	hasher := dedup.NewHasher(r.keys.Domain)
	for i := range frames {
		f := &frames[i]
		var raw []byte
		var frameErr error
		if end := uint64(f.Off) + uint64(f.Len); end > uint64(len(b)) {
			frameErr = &block.CorruptError{Source: "pack", Offset: int64(f.Off), Want: fmt.Sprintf("%d B of a frame", f.Len), Got: fmt.Sprintf("the end at %d", len(b))}
		} else if correct {
			raw, frameErr = openOrCorrect(opened.reader, f, i, b[f.Off:end])
		} else {
			raw, frameErr = opened.reader.Open(f, i, b[f.Off:end])
		}
		if frameErr != nil {
			err = errors.Join(err, fmt.Errorf("frame %d at %d: %w", i, f.Off, frameErr))
			continue
		}
		off := uint32(0)
		for j := range f.Chunks {
			c := &f.Chunks[j]
			if bad := pack.Verify(hasher, c.ID, raw[off:off+c.Raw]); bad != nil {
				err = errors.Join(err, fmt.Errorf("frame %d at %d: %w", i, f.Off, bad))
			} else {
				opened.good = append(opened.good, located{c.ID, uint32(i), off, c.Raw})
			}
			off += c.Raw
		}
	}
	return opened, err
}

// openOrCorrect opens a frame, also one in which some bytes of one place are wrong. sealed is not changed.
func openOrCorrect(reader *pack.Reader, f *pack.Frame, number int, sealed []byte) ([]byte, error) {
	raw, err := reader.Open(f, number, append([]byte(nil), sealed...))
	if errors.Is(err, block.ErrCorrupt) {
		if corrected, correctErr := reader.Correct(f, number, sealed); correctErr == nil {
			return corrected, nil
		}
	}
	return raw, err
}
