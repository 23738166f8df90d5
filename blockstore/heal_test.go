package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/internal/crashtest"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// beyondParity damages a segment under an open store by more than parity reaches, has that found, and returns the lost chunks.
func beyondParity(t *testing.T, s *Store, opts Options) []LostChunk {
	t.Helper()
	var path string
	var row segmentRow
	for _, r := range s.segments.all() {
		if r.State == segmentSealed && !isMetadata(&r) && r.Size > row.Size {
			row = r
			path = filepath.Join(opts.Dir, "segments", fmt.Sprintf("%02x", uint8(r.ID)), r.Placement[0].Key)
		}
	}
	columns := (int(row.Size) + 4095) / 4096
	stripes := (columns + 15) / 16
	for i := range 3 {
		change(t, path, int64((i*4*stripes+7)*4096), func(b []byte) { b[9] ^= 0xff })
	}
	if n := scrubTest(t, s, false); n.Damaged != 1 || n.Mended != 0 {
		t.Fatalf("scrub: %+v", n)
	}
	lost, more, err := s.LostChunks(context.Background(), 0)
	if err != nil || more || len(lost) == 0 {
		t.Fatalf("%d chunks are lost, more: %v, %v", len(lost), more, err)
	}
	return lost
}

// unreadable counts the blocks that cannot be read, and wants all others to be right.
func unreadable(t *testing.T, d *Device, data []byte) (n int) {
	t.Helper()
	buf := make([]byte, 4096)
	for off := 0; off < len(data); off += len(buf) {
		_, err := d.ReadAt(context.Background(), buf, uint64(off), nil)
		switch {
		case errors.Is(err, block.ErrCorrupt):
			n++
		case err != nil:
			t.Fatal(err)
		case !bytes.Equal(buf, data[off:off+len(buf)]):
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	return n
}

// lostStore is a store with a volume a and a snapshot of it, of which chunks are lost.
func lostStore(t *testing.T, opts Options) (*Store, *Device, *Device, []byte, []LostChunk) {
	t.Helper()
	opts.Events.Corruption = func(error) {}
	s, d, data := sealedStore(t, opts, 24)
	if _, err := s.CreateSnapshot(context.Background(), "a", "snap"); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
	lost := beyondParity(t, s, opts)
	snap := deviceTest(t, s, "a", "snap")
	if unreadable(t, d, data) == 0 || unreadable(t, snap, data) == 0 {
		t.Fatal("everything can be read")
	}
	return s, d, snap, data, lost
}

// Bytes that somebody has of lost chunks are taken if they are those, and volume and snapshot are whole right after, and after a restart. Anything else is refused.
func TestHeal(t *testing.T) {
	opts, _ := keptOptions(t, vfs.Default, t.TempDir())
	opts.Events.Corruption = func(error) {}
	s, d, snap, data, lost := lostStore(t, opts)
	ctx := context.Background()
	var right, wrong []ChunkBytes
	for _, c := range lost {
		if len(c.Places) != 2 {
			t.Fatalf("%+v has not the places of a volume and its snapshot", c)
		}
		raw := bytes.Clone(data[c.Places[0].Offset:][:c.Length])
		right = append(right, ChunkBytes{c.ID, raw}, ChunkBytes{c.ID, raw})
		bad := bytes.Clone(raw)
		bad[len(bad)/2] ^= 1
		wrong = append(wrong, ChunkBytes{c.ID, bad}, ChunkBytes{c.ID, raw[:len(raw)-1]}, ChunkBytes{c.ID, nil}, ChunkBytes{c.ID + 1<<40, raw}, ChunkBytes{lost[0].ID - 1, raw})
	}
	before := s.Stats()
	if healed, err := s.Heal(ctx, wrong); err != nil || len(healed) != 0 {
		t.Fatalf("of wrong bytes %d chunks were taken, %v", len(healed), err)
	}
	if n := unreadable(t, d, data); n == 0 {
		t.Fatal("wrong bytes have changed what can be read")
	}
	healed, err := s.Heal(ctx, right)
	if err != nil || len(healed) != len(lost) {
		t.Fatalf("%d of %d chunks are healed, %v", len(healed), len(lost), err)
	}
	expect(t, d, 0, data)
	expect(t, snap, 0, data)
	if again, err := s.Heal(ctx, right); err != nil || len(again) != 0 {
		t.Errorf("chunks that are whole are healed: %v, %v", again, err)
	}
	if err := s.Repair(ctx); err != nil {
		t.Fatal(err)
	}
	for _, x := range s.Damages() {
		if !x.Mended {
			t.Errorf("what is left is %v", &x)
		}
	}
	if after := s.Stats(); after.UniqueBytes != before.UniqueBytes {
		t.Errorf("unique bytes were %d and are %d", before.UniqueBytes, after.UniqueBytes)
	}
	if left, _, err := s.LostChunks(ctx, 0); err != nil || len(left) != 0 {
		t.Errorf("%d chunks are lost still, %v", len(left), err)
	}
	report, err := s.Audit(ctx, nil)
	if err != nil || report.WrongSegments != 0 || report.Missing != 0 {
		t.Errorf("the audit finds %+v, %v", report, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	expect(t, deviceTest(t, s, "a", ""), 0, data)
	expect(t, deviceTest(t, s, "a", "snap"), 0, data)
}

// What is written again heals snapshots, too, by a repair: while it is in the log alone, and when it is a chunk of its own.
func TestHealOfItself(t *testing.T) {
	for _, settled := range []bool{false, true} {
		t.Run(map[bool]string{false: "log", true: "twin"}[settled], func(t *testing.T) {
			opts, _ := keptOptions(t, vfs.Default, t.TempDir())
			opts.DestageAfter = time.Hour
			s, d, snap, data, lost := lostStore(t, opts)
			for _, c := range lost {
				begin := c.Places[0].Offset / 4096 * 4096
				end := min(uint64(len(data)), (c.Places[0].Offset+uint64(c.Length)+4095)/4096*4096)
				writeTest(t, d, begin, make([]byte, end-begin)) // other bytes before
				writeTest(t, d, begin, data[begin:end])
			}
			if settled {
				// Cut where the lost chunks were: from the beginning of the volume on.
				writeTest(t, d, 0, data)
				settleTest(t, s)
			}
			if n := unreadable(t, snap, data); n == 0 {
				t.Fatal("the snapshot was whole before the repair")
			}
			if err := s.Repair(context.Background()); err != nil {
				t.Fatal(err)
			}
			expect(t, snap, 0, data)
			expect(t, d, 0, data)
		})
	}
}

// What a history keeps of the writes that brought a chunk heals it when the log has let go of them.
func TestHealFromHistory(t *testing.T) {
	opts, _ := keptOptions(t, vfs.Default, t.TempDir())
	opts.Events.Corruption = func(error) {}
	s := openTest(t, opts)
	d := createTest(t, s, "a", 16<<20)
	if err := s.SetHistory(context.Background(), "a", HistoryPolicy{Window: time.Hour, BudgetBytes: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 12<<20)
	rng := rand.New(rand.NewPCG(8, 8))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	for off := 0; off < len(data); off += 1 << 20 {
		writeTest(t, d, uint64(off), data[off:off+1<<20])
	}
	settleTest(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	guardedTest(t, s)
	d = deviceTest(t, s, "a", "")
	beyondParity(t, s, opts)
	if unreadable(t, d, data) == 0 {
		t.Fatal("everything can be read")
	}
	for _, f := range s.log.LiveFiles() { // else the log would do
		durable, _ := s.log.Durable()
		err := s.log.Records(f.ID, 0, durable, func(r *journal.Replayed) error {
			if r.Kind == journal.Write {
				return errors.New("the log has a write still")
			}
			return nil
		})
		if err != nil {
			t.Logf("log file %d: %v", f.ID, err)
		}
	}
	if err := s.Repair(context.Background()); err != nil {
		t.Fatal(err)
	}
	expect(t, d, 0, data)
}

// healFrom hands in what data has at the places of lost chunks, and returns how many were healed of how many.
func healFrom(s *Store, data []byte) (healed, lost int, err error) {
	all, _, err := s.LostChunks(context.Background(), 0)
	if err != nil {
		return 0, 0, err
	}
	for _, c := range all {
		for _, p := range c.Places {
			if p.Offset+uint64(c.Length) > uint64(len(data)) {
				continue
			}
			ids, err := s.Heal(context.Background(), []ChunkBytes{{c.ID, bytes.Clone(data[p.Offset:][:c.Length])}})
			if err != nil {
				return healed, len(all), err
			}
			if healed += len(ids); len(ids) > 0 {
				break
			}
		}
	}
	return healed, len(all), nil
}

// A segment is lost together with the metadata, so that maps alone say what was in it: what they know of hashes suffices to take it back.
func TestHealLostSegment(t *testing.T) {
	w := newDamagedWorld(t)
	mem := w.left(true)
	w.check(mem.Remove(w.file(0)))
	s, info, _ := w.start(mem)
	if info.Rebuilt == nil || s.c.Lost == 0 || len(w.readAll(s, "a", "s")) == 0 {
		t.Fatalf("nothing is lost: %+v", info.Rebuilt)
	}
	if healed, _, err := healFrom(s, make([]byte, len(w.data))); err != nil || healed != 0 {
		t.Fatalf("of zeroes %d chunks were taken, %v", healed, err)
	}
	healed, lost, err := healFrom(s, w.data)
	if err != nil || healed == 0 || healed != lost || s.c.Lost != 0 {
		t.Fatalf("%d of %d chunks are healed, %d lost still, %v", healed, lost, s.c.Lost, err)
	}
	whole := func() {
		t.Helper()
		for _, x := range [][2]string{{"a", ""}, {"a", "s"}, {"c", ""}} {
			if gone := w.readAll(s, x[0], x[1]); len(gone) > 0 {
				t.Errorf("%s@%s has lost %v", x[0], x[1], gone)
			}
		}
		(&model{t: t, s: s}).audit()
	}
	whole()
	settleSoon(t, s)
	w.check(s.Close())
	s, _, _ = w.start(mem)
	whole()
}

// TestPowerLossOfAHeal cuts the power before each file operation of a heal, and opens what is left: what is read is right or EIO, and another heal makes all of it whole.
func TestPowerLossOfAHeal(t *testing.T) {
	for _, seed := range crashSeeds(t, 1) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { healPowerLoss(t, seed) })
	}
}

func healPowerLoss(t *testing.T, seed uint64) {
	mem := newCrashMem(t)
	var problems crashProblems
	options := func(fs vfs.FS) Options {
		opts := crashOptions(fs, "data/store", &problems)
		opts.KeepBytesPerSecond = 1 << 40
		opts.Events.Corruption = func(error) {}
		return opts
	}
	s := openTest(t, options(mem))
	data := guestData(rand.New(rand.NewPCG(seed, 3)), 3<<20)
	writeTest(t, createTest(t, s, "a", 8<<20), 0, data)
	settleTest(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, options(mem)) // which seals the segment
	if err := errors.Join(spoilSealed(mem, s, seed), s.Close()); err != nil {
		t.Fatal(err)
	}
	c := newCutter(mem, seed)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	s = openTest(t, options(c.fs()))
	c.begin(ctx, 1, func() crashtest.Mark { return crashtest.Mark{} })
	done := make(chan error, 1)
	go func() {
		defer stop()
		done <- findAndHeal(s, data)
	}()
	cuts := 0
	for ended := false; !ended; {
		select {
		case k := <-c.cuts:
			cuts++
			if err := judgeHeal(k, options(k.mem), data); err != nil {
				t.Errorf("cut %d, %s: %v", cuts, k.what, err)
				stop()
			}
		case <-ctx.Done():
			ended = true
		}
	}
	if err := errors.Join(<-done, s.Close(), problems.get()); err != nil {
		t.Error(err)
	}
	t.Logf("%d cuts among %d file operations", cuts, c.ops)
	if cuts < 5 {
		t.Errorf("only %d cuts", cuts)
	}
}

// findAndHeal scrubs, and heals what that finds.
func findAndHeal(s *Store, data []byte) error {
	if _, err := s.StartScrub(false); err != nil && !errors.Is(err, block.ErrInUse) {
		return err
	}
	if !keeperReaches(s, func() bool { return s.Scrub().State == ScrubDone }) {
		return errors.New("the scrub does not end")
	}
	healed, lost, err := healFrom(s, data)
	if err == nil && healed != lost {
		err = fmt.Errorf("%d of %d chunks are healed", healed, lost)
	}
	return err
}

func judgeHeal(k *cut, opts Options, data []byte) error {
	setUsage(k.mem)
	s, err := Open(context.Background(), opts)
	if err != nil {
		return err
	}
	read := func(mayFail bool) error {
		got := make([]byte, 4096)
		for off := 0; off < len(data); off += len(got) {
			err := crashTarget{s}.ReadAt("a", "", got, uint64(off))
			if mayFail && errors.Is(err, block.ErrCorrupt) {
				continue
			}
			if err == nil && firstDiff(got, data[off:off+len(got)]) >= 0 {
				err = errors.New("wrong bytes")
			}
			if err != nil {
				return fmt.Errorf("at %d: %w", off, err)
			}
		}
		return nil
	}
	if err = read(true); err == nil {
		err = findAndHeal(s, data)
	}
	if err == nil {
		err = read(false)
	}
	if r, e := s.Audit(context.Background(), nil); err == nil && (e != nil || r.Unreachable+r.WrongSegments > 0) {
		err = fmt.Errorf("audit: %+v, %w", r, e)
	}
	return errors.Join(err, s.Close())
}
