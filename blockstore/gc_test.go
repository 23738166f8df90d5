package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// auditedWorld is an open store with several sealed segments of a volume "a", some of them dropped, whose files wait for an audit.
type auditedWorld struct {
	*race
	d    *Device
	data []byte
}

func newAuditedWorld(t *testing.T) *auditedWorld {
	w := &auditedWorld{race: newRace(t, 0)}
	rng := rand.New(rand.NewPCG(3, 4))
	w.data = guestData(rng, 24<<19)
	w.d = createTest(t, w.s, "a", 24<<19)
	for i := range 3 { // a segment each
		writeTest(t, w.d, uint64(i)*8<<19, w.data[i*8<<19:(i+1)*8<<19])
		w.check(w.settle())
		w.check(w.s.Close())
		w.open()
		w.d = deviceTest(t, w.s, "a", "")
	}
	return w
}

// unproven is how many files wait for an audit.
func unproven(s *Store) int { return len(s.checkpoints.files.unproven()) }

// drop overwrites the part of a segment, which is dropped then; its file waits.
func (w *auditedWorld) drop(part int) {
	w.t.Helper()
	fresh := guestData(rand.New(rand.NewPCG(9, uint64(part))), 8<<19)
	copy(w.data[part*8<<19:], fresh)
	writeTest(w.t, w.d, uint64(part)*8<<19, fresh)
	before := unproven(w.s)
	defer w.s.hurry()()
	waitFor(w.t, "a segment is dropped", func() bool { w.s.destager.kick(); return unproven(w.s) > before })
}

// someChunk returns the row of a chunk that lives in a segment.
func someChunk(t *testing.T, s *Store) (block.ChunkID, chunkRow) {
	t.Helper()
	it, err := s.db.NewIter(tableBounds(keyChunk))
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	if !it.First() {
		t.Fatal("no chunks")
	}
	id := block.ChunkID(binary.BigEndian.Uint64(it.Key()[1:]))
	row, err := decodeChunkRow(id, it.Value())
	if err != nil {
		t.Fatal(err)
	}
	return id, row
}

// TestAuditFailsClosed spoils what an audit looks at: it says what is wrong, and no file goes that may be needed, though every counter says that nothing lives in it.
func TestAuditFailsClosed(t *testing.T) {
	ctx := context.Background()
	spoiled := map[string]struct {
		spoil func(t *testing.T, s *Store) error
		want  func(r *AuditReport) bool
		keeps bool // all files
	}{
		"a chunk without a row": {func(t *testing.T, s *Store) error {
			id, _ := someChunk(t, s)
			return s.db.Delete(key64(keyChunk, uint64(id)), pebble.Sync)
		}, func(r *AuditReport) bool { return r.Missing == 1 && r.WrongReferences && r.WrongSegments == 1 }, true},
		"a chunk in a segment without a row": {func(t *testing.T, s *Store) error {
			id, row := someChunk(t, s)
			row.Segment = block.SegmentID(s.c.NextSegment + 7)
			return s.db.Set(key64(keyChunk, uint64(id)), row.encode(nil), pebble.Sync)
		}, func(r *AuditReport) bool { return r.Missing == 1 && !r.WrongReferences && r.WrongSegments == 1 }, false},
		"a count of references that is too low": {func(t *testing.T, s *Store) error {
			it, err := s.db.NewIter(tableBounds(keyRef))
			if err != nil || !it.First() {
				return errors.Join(err, it.Close(), errors.New("no chunk has two references"))
			}
			return errors.Join(s.db.Delete(slices.Clone(it.Key()), pebble.Sync), it.Close())
		}, func(r *AuditReport) bool { return r.Missing == 0 && r.WrongReferences }, true},
		"a chunk that nothing reaches": {func(t *testing.T, s *Store) error {
			_, row := someChunk(t, s)
			return s.db.Set(key64(keyChunk, s.c.NextChunk), row.encode(nil), pebble.Sync)
		}, func(r *AuditReport) bool { return r.Unreachable == 1 && r.UnreachableBytes > 0 && r.WrongReferences }, true},
		"a page that cannot be read": {func(t *testing.T, s *Store) error {
			it, err := s.db.NewIter(tableBounds(keyPage))
			if err != nil || !it.First() {
				return errors.Join(err, it.Close(), errors.New("no pages"))
			}
			return errors.Join(s.db.Delete(slices.Clone(it.Key()), pebble.Sync), it.Close())
		}, func(r *AuditReport) bool { return r.Error != "" }, true},
	}
	for name, c := range spoiled {
		t.Run(name, func(t *testing.T) {
			w := newAuditedWorld(t)
			writeTest(t, w.d, 2*8<<19, w.data[:1<<19]) // chunks with two references
			copy(w.data[2*8<<19:], w.data[:1<<19])
			w.drop(1)
			w.s.meta.Lock()
			w.s.c.NextChunk++ // for one that nothing reaches
			w.check(c.spoil(t, w.s))
			w.s.meta.Unlock()
			before := unproven(w.s)
			r, err := w.s.Audit(ctx, nil)
			if !c.want(&r) || !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrNotFound) || r.Passed() {
				t.Errorf("%+v, %v", r, err)
			}
			if c.keeps && (r.FilesProven > 0 || r.FilesKept == 0) || !c.keeps && (r.FilesProven == 0 || r.FilesKept > 0) {
				t.Errorf("%d files may go, %d stay", r.FilesProven, r.FilesKept)
			}
			w.check(w.s.checkpoints.delta())
			if now := unproven(w.s); c.keeps != (now == before) {
				t.Errorf("%d files wait, %d did", now, before)
			}
			if st := w.s.GC(); st.Audit == nil || st.Audit.Passed() || st.Audits == 0 {
				t.Errorf("%+v", st)
			}
			if !w.s.collector.failed() || c.keeps && w.s.collector.mayFree() {
				t.Error("another audit by itself is taken for a help")
			}
			w.problems = crashProblems{}
		})
	}
}

// TestAuditKeepsWhatHoldsTheMissing: of the files that wait, the one stays that holds the chunk that is missing, and the others go. Naive: one lost chunk, and a store never gives back anything again.
func TestAuditKeepsWhatHoldsTheMissing(t *testing.T) {
	w := newAuditedWorld(t)
	w.drop(0)
	// The row of a chunk of the second segment goes, and then, as its counter says that nothing lives there, the segment.
	var victim segmentRow
	for _, r := range w.s.segments.all() {
		if r.LiveChunks > 0 && r.State == segmentSealed && !isMetadata(&r) && (victim.ID == 0 || r.ID < victim.ID) {
			victim = r
		}
	}
	m := w.s.beginMeta()
	row, err := m.segment(victim.ID)
	w.check(err)
	row.LiveChunks, row.LiveRaw = 0, 0
	w.check(m.commit())
	w.check(w.s.dropSegment(victim.ID))
	before := unproven(w.s)
	r, err := w.s.Audit(context.Background(), nil)
	if !errors.Is(err, block.ErrCorrupt) || r.Missing != uint64(victim.LiveChunks) || r.WrongReferences || r.FilesKept != 1 || int(r.FilesProven) != before-1 || before < 2 {
		t.Fatalf("%d files: %+v, %v", before, r, err)
	}
	w.check(w.s.checkpoints.delta())
	if _, err := w.mem.Stat(path.Join("data/store/segments", fmt.Sprintf("%02x", uint8(victim.ID)), victim.Placement[0].Key)); err != nil || unproven(w.s) != 1 {
		t.Errorf("the file that is needed: %v; %d files wait", err, unproven(w.s))
	}
	w.problems = crashProblems{}
}

// TestVictimThatFails: a segment that cannot be read is put off, and others are emptied meanwhile; when it can be read again, it goes, too. Naive: it is chosen again for ever.
func TestVictimThatFails(t *testing.T) {
	mem := newCrashMem(t)
	var bad atomic.Pointer[string]
	var tries atomic.Int32
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if p := bad.Load(); p != nil && op.Kind == errorfs.OpFileReadAt && strings.HasSuffix(op.Path, *p) {
			tries.Add(1)
			return syscall.EIO
		}
		return nil
	}))
	opts := testOptions(t, fs, "data/store")
	opts.Events.BackgroundError, opts.Events.Corruption = nil, nil
	s := openTest(t, opts)
	data := guestData(rand.New(rand.NewPCG(6, 1)), 32<<20)
	d := createTest(t, s, "a", 32<<20)
	for i := range 2 {
		writeTest(t, d, uint64(i)*16<<20, data[i*16<<20:(i+1)*16<<20])
		settleTest(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openTest(t, opts)
		d = deviceTest(t, s, "a", "")
	}
	var segs []segmentRow
	for _, r := range s.segments.all() {
		if !isMetadata(&r) {
			segs = append(segs, r)
		}
	}
	slices.SortFunc(segs, func(a, b segmentRow) int { return int(a.ID) - int(b.ID) })
	if len(segs) != 2 {
		t.Fatalf("%d segments", len(segs))
	}
	bad.Store(&segs[0].Placement[0].Key)
	for i := range 2 { // a fifth stays
		r := block.Range{Off: uint64(i)*16<<20 + 3<<20, Len: 13 << 20}
		if err := d.Trim(context.Background(), r, false); err != nil {
			t.Fatal(err)
		}
		clear(data[r.Off:r.End()])
	}
	settleTest(t, s)
	st := s.GC()
	if _, there := s.segments.get(segs[1].ID); there || len(st.PutOff) != 1 || st.PutOff[0].Segment != segs[0].ID || !strings.Contains(st.PutOff[0].Reason, "input/output error") {
		t.Fatalf("the sound segment is there: %v; %+v", there, st)
	}
	settleTest(t, s)
	if n := s.GC().PutOff[0].Tries; n != 1 {
		t.Errorf("it was tried %d times within its rest", n)
	}
	bad.Store(nil)
	s.collector.mu.Lock()
	for _, p := range s.collector.mu.putOff {
		p.until = p.until.Add(-putOffFirst)
	}
	s.collector.mu.Unlock()
	settleTest(t, s)
	if _, there := s.segments.get(segs[0].ID); there || len(s.GC().PutOff) != 0 {
		t.Errorf("a segment that can be read again is there: %v, %+v", there, s.GC())
	}
	expect(t, d, 0, data)
}

// TestPausedGC: a pause outlives a restart, and nothing is given back before it ends.
func TestPausedGC(t *testing.T) {
	w := newAuditedWorld(t)
	st, err := w.s.PauseGC()
	w.check(err)
	if st.State != GCPaused {
		t.Errorf("%+v", st)
	}
	w.check(w.d.Trim(context.Background(), block.Range{Len: 24 << 19}, false))
	clear(w.data)
	if err := w.settle(); !errors.Is(err, block.ErrInUse) || !strings.Contains(err.Error(), "gc resume") {
		t.Errorf("settle: %v", err)
	}
	w.check(w.s.Close())
	w.open()
	if st := w.s.GC(); st.State != GCPaused || st.HeldUnusedBytes == 0 || st.SegmentsFreed != 0 || st.Victims == 0 {
		t.Errorf("after a restart: %+v", st)
	}
	if _, err := w.s.ResumeGC(); err != nil {
		t.Fatal(err)
	}
	w.check(w.settle())
	if st := w.s.GC(); st.State != GCIdle || st.WaitingFiles != 0 || st.SegmentsFreed == 0 || st.FreedBytes == 0 || st.HeldUnusedBytes > 1<<20 {
		t.Errorf("after it was resumed: %+v", st)
	}
	expect(t, deviceTest(t, w.s, "a", ""), 0, w.data)
}

// TestVictimByCostAndBenefit: of two segments with the same dead part the older one is emptied first, and what survives lies apart from what is written, and is as old as it was.
func TestVictimByCostAndBenefit(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	row := func(id, born block.SegmentID, live uint64) *segmentRow {
		return &segmentRow{ID: id, Born: born, State: segmentSealed, Size: 50 << 20, TotalRaw: 100 << 20, LiveRaw: live << 20, TotalChunks: 100, LiveChunks: uint32(live)}
	}
	choose := func(rows ...*segmentRow) block.SegmentID {
		s.segments.mu.Lock()
		clear(s.segments.rows)
		for _, r := range rows {
			s.segments.rows[r.ID] = r
		}
		s.segments.mu.Unlock()
		v, _ := s.victim()
		return v.ID
	}
	s.worker.s.cancel() // only choices are tested
	s.running.Wait()
	n := *s.counted.Load()
	n.NextSegment = 100
	s.counted.Store(&n)
	if got := choose(row(10, 0, 30), row(90, 0, 30)); got != 10 {
		t.Errorf("of an old and a young one with as much in them: %d", got)
	}
	if got := choose(row(10, 0, 35), row(95, 0, 20)); got != 10 {
		t.Errorf("of an old one and a young one with less in it: %d", got)
	}
	if got := choose(row(10, 0, 30), row(90, 5, 30)); got != 90 {
		t.Errorf("of one with old data and one filled with older: %d", got)
	}
	if got := choose(row(1, 0, 60)); got != 1 {
		t.Errorf("a cold one of which 40 %% are dead: %d", got)
	}
	if got := choose(row(99, 0, 60), row(98, 0, 100), row(97, 0, 100), row(96, 0, 100)); got != 0 {
		t.Errorf("a young one of which 40 %% are dead: %d", got)
	}
	if got := choose(row(10, 0, 5), row(50, 0, 0)); got != 50 {
		t.Errorf("of an empty one and another: %d", got)
	}
	s.dueFirst.segment.Store(95)
	if got := choose(row(10, 0, 35), row(95, 0, 20), row(99, 0, 1)); got != 95 {
		t.Errorf("of what a settle waits for: %d", got)
	}
}

// TestSurvivorsLieApart: what survives goes into a segment of its own, with its age, and its neighbours beside it.
func TestSurvivorsLieApart(t *testing.T) {
	w := newAuditedWorld(t)
	old := block.SegmentID(0)
	for _, r := range w.s.segments.all() {
		if !isMetadata(&r) && (old == 0 || r.ID < old) {
			old = r.ID
		}
	}
	w.check(w.d.Trim(context.Background(), block.Range{Off: 1 << 20, Len: 3 << 20}, false))
	clear(w.data[1<<20 : 4<<20])
	fresh := guestData(rand.New(rand.NewPCG(8, 8)), 1<<20)
	copy(w.data[5<<20:], fresh)
	writeTest(t, w.d, 5<<20, fresh)
	w.check(w.settle())
	if _, there := w.s.segments.get(old); there {
		t.Fatal("three quarters of a segment are dead, and it is there")
	}
	survivors := 0
	for _, r := range w.s.segments.all() {
		if r.Born == 0 {
			continue
		}
		if survivors++; r.Born < old || r.Born > old+5 || r.Born >= r.ID || r.ID == w.s.packer.id {
			t.Errorf("survivors of %d: %+v", old, r)
		}
	}
	if survivors != 1 {
		t.Errorf("%d segments of survivors", survivors)
	}
	expect(t, w.d, 0, w.data)
}

// TestOpenSegmentIsGivenBack: a settle gives back what is dead in the segment that is being filled, too.
func TestOpenSegmentIsGivenBack(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "a", 16<<20)
	writeTest(t, d, 0, guestData(rand.New(rand.NewPCG(1, 2)), 12<<20))
	settleTest(t, s)
	if err := d.Trim(context.Background(), block.Range{Len: 16 << 20}, false); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
	if st := s.Stats(); st.HeldUnusedBytes > 1<<20 || st.StoredBytes > 1<<20 {
		t.Errorf("a volume that was trimmed holds %d B, and %d B for nothing", st.StoredBytes, st.HeldUnusedBytes)
	}
}

// TestAuditBesideEverything audits again and again while clients write, trim, clone, snapshot and delete: it never finds anything, as its moment is one between two batches.
func TestAuditBesideEverything(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	ctx, stop := context.WithCancel(context.Background())
	var busy sync.WaitGroup
	for i := range 2 {
		name := fmt.Sprintf("busy%d", i)
		d := createTest(t, s, name, 32<<20)
		rng := rand.New(rand.NewPCG(2, uint64(i)))
		busy.Go(func() { keepBusy(ctx, t, s, d, name, rng) })
	}
	seen := uint64(0)
	for i, begun := 0, time.Now(); i < 30 || seen == 0 && time.Since(begun) < time.Minute; i++ { // audits of next to nothing may be over before anything has gone down
		r, err := s.Audit(ctx, nil)
		if err != nil || !r.Passed() || r.Unreachable+r.WrongSegments != 0 {
			t.Fatalf("%d: %+v, %v", i, r, err)
		}
		seen = max(seen, r.Chunks)
		if i%10 == 9 {
			if err := s.CollectGarbage(ctx, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop()
	busy.Wait()
	if seen == 0 {
		t.Error("there was nothing to audit")
	}
}

// TestMarksEndWithRepair: when a segment is whole again, its chunks are as good as others, and it can be given back. Naive: the marks stay for ever, and each chunk is stored again.
func TestMarksEndWithRepair(t *testing.T) {
	mem := newCrashMem(t)
	opts, _ := keptOptions(t, mem, "data/store")
	opts.Events.Corruption, opts.Events.BackgroundError = nil, nil
	s := openTest(t, opts)
	data := guestData(rand.New(rand.NewPCG(1, 3)), 6<<20)
	d := createTest(t, s, "a", 32<<20)
	writeTest(t, d, 0, data)
	settleTest(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	guardedTest(t, s)
	id, row := someChunk(t, s)
	s.damaged.note(id)
	s.damaged.keep(row.Segment)
	if _, err := s.stepDamaged(context.Background()); err != nil {
		t.Fatal(err)
	}
	if now, err := s.chunks.row(id); err != nil || now.Flags&chunkDamaged == 0 {
		t.Fatalf("%+v, %v", now, err)
	}
	if _, err := s.StartScrub(false); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the scrub", func() bool { return s.Scrub().State == ScrubDone })
	if now, err := s.chunks.row(id); err != nil || now.Flags != 0 || s.damaged.has(id) || s.damaged.keeps(row.Segment) {
		t.Errorf("after a scrub that found nothing: %+v, %v; known %v, kept %v", now, err, s.damaged.has(id), s.damaged.keeps(row.Segment))
	}
	unique := s.Stats().UniqueBytes
	writeTest(t, deviceTest(t, s, "a", ""), 16<<20, data)
	settleTest(t, s)
	if now := s.Stats().UniqueBytes; now > unique+unique/20 {
		t.Errorf("the same data again: %d B are unique, %d B were", now, unique)
	}
}

// FuzzCollectRecord decodes what may lie in the file of garbage collection.
func FuzzCollectRecord(f *testing.F) {
	f.Add((&collectRecord{Paused: true}).encode())
	f.Add((&collectRecord{Audits: 3, Last: AuditReport{Chunks: 5, Missing: 1, WrongReferences: true}}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeCollect(b, "gc")
		if err != nil {
			return
		}
		if again := r.encode(); r.Last.Error == "" && string(again) != string(b) {
			t.Fatalf("%x is read as %+v, and written as %x", b, r, again)
		}
	})
}
