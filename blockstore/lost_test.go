package blockstore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// damagedWorld is a store of two segments of data, closed, with a volume "a", a snapshot "a@s" and a clone "c" of it, which all hold the same.
type damagedWorld struct {
	*race
	data []byte
	segs []segmentRow // of data, oldest first
}

func newDamagedWorld(t *testing.T) *damagedWorld {
	w := &damagedWorld{race: newRace(t, 0)}
	d := createTest(t, w.s, "a", 40<<19)
	rng := rand.New(rand.NewPCG(11, 12))
	w.data = guestData(rng, 40<<19)
	writeTest(t, d, 0, w.data[:24<<19])
	w.check(w.settle())
	w.check(w.s.Close())
	w.open() // which seals the segment
	d = deviceTest(t, w.s, "a", "")
	writeTest(t, d, 24<<19, w.data[24<<19:])
	_, err := w.s.CreateSnapshot(context.Background(), "a", "s")
	w.check(err)
	_, err = w.s.Clone(context.Background(), "a", "s", "c")
	w.check(err)
	w.check(w.settle())
	w.check(w.s.Close())
	for _, row := range w.s.segments.all() {
		if !isMetadata(&row) && row.LiveChunks > 0 {
			w.segs = append(w.segs, row)
		}
	}
	slices.SortFunc(w.segs, func(a, b segmentRow) int { return int(a.ID) - int(b.ID) })
	if len(w.segs) != 2 {
		t.Fatalf("%d segments of data", len(w.segs))
	}
	return w
}

func (w *damagedWorld) file(i int) string {
	key := w.segs[i].Placement[0].Key
	return path.Join("data/store/segments", key[14:16], key)
}

// start opens what is left and counts the reports of damage.
func (w *damagedWorld) start(mem *vfs.MemFS) (s *Store, info RecoveryInfo, reports *atomic.Int64) {
	w.t.Helper()
	reports = new(atomic.Int64)
	opts := w.options(mem)
	opts.Events = Events{Corruption: func(error) { reports.Add(1) }, Recovered: func(i RecoveryInfo) { info = i }}
	return openTest(w.t, opts), info, reports
}

// readAll reads block by block: each is as it was or ErrCorrupt. It returns the blocks that are not to be had.
func (w *damagedWorld) readAll(s *Store, volume, snapshot string) (gone []block.Range) {
	w.t.Helper()
	d, err := s.OpenDevice(volume, snapshot)
	w.check(err)
	defer d.Close()
	p := make([]byte, block.Size)
	for off := uint64(0); off < uint64(len(w.data)); off += block.Size {
		_, err := d.ReadAt(context.Background(), p, off, nil)
		switch {
		case errors.Is(err, block.ErrCorrupt):
			if k := len(gone); k > 0 && gone[k-1].End() == off {
				gone[k-1].Len += block.Size
			} else {
				gone = append(gone, block.Range{Off: off, Len: block.Size})
			}
		case err != nil:
			w.t.Fatalf("read %s@%s at %d: %v", volume, snapshot, off, err)
		case !bytes.Equal(p, w.data[off:off+block.Size]):
			w.t.Fatalf("%s@%s at %d has other bytes", volume, snapshot, off)
		}
	}
	return gone
}

// settleSoon settles, and fails if that takes for ever.
func settleSoon(t *testing.T, s *Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	if err := s.Settle(ctx, nil); err != nil {
		t.Fatal(err)
	}
}

// TestLostSegment loses a segment of data together with the metadata: its blocks give EIO, everything else is there, writes heal what they are over, and the segment that
// comes back heals the rest.
func TestLostSegment(t *testing.T) {
	w := newDamagedWorld(t)
	for what, damage := range map[string]func(fs *vfs.MemFS, p string) error{
		"gone": func(fs *vfs.MemFS, p string) error { return fs.Remove(p) },
		"header": func(fs *vfs.MemFS, p string) error {
			return rewriteFile(fs, p, func(b []byte) []byte { b[20] ^= 1; return b })
		},
		"cut": cutHalf,
		"middle and footer": func(fs *vfs.MemFS, p string) error {
			return rewriteFile(fs, p, func(b []byte) []byte { clear(b[len(b)/3 : len(b)/3+8192]); clear(b[len(b)-256:]); return b })
		},
	} {
		t.Run(what, func(t *testing.T) {
			mem := w.left(true)
			whole, err := readSmallFile(mem, w.file(0), 64<<20)
			w.check(err)
			w.check(damage(mem, w.file(0)))
			s, info, reports := w.start(mem)
			if info.Rebuilt == nil || info.Rebuilt.Lost.Chunks == 0 || reports.Load() == 0 || s.c.Lost != info.Rebuilt.Lost.Chunks {
				t.Fatalf("%+v, %d reports, %d lost", info.Rebuilt, reports.Load(), s.c.Lost)
			}
			gone := w.readAll(s, "a", "")
			lost := uint64(0)
			for _, g := range gone {
				lost += g.Len
			}
			if lost == 0 || lost > 24<<19 {
				t.Fatalf("%d bytes are lost", lost)
			}
			if other := w.readAll(s, "a", "s"); !slices.Equal(other, gone) {
				t.Errorf("the snapshot has lost %v, the volume %v", other, gone)
			}
			// The report names every block that is lost, of all who have it.
			for _, x := range []struct{ volume, snapshot string }{{"a", ""}, {"a", "s"}, {"c", ""}} {
				for _, g := range gone {
					ok := info.Rebuilt.Lost.More
					for _, r := range info.Rebuilt.Lost.Ranges {
						ok = ok || r.Volume == x.volume && r.Snapshot == x.snapshot && r.Off < g.End() && r.End() > g.Off
					}
					if !ok {
						t.Errorf("%v of %v is lost; the report says %s", g, x, &info.Rebuilt.Lost)
					}
				}
			}
			(&model{t: t, s: s}).audit()
			settleSoon(t, s)
			w.check(s.Close())
			if _, err := mem.Stat(w.file(0)); what != "gone" && err != nil {
				t.Errorf("the damaged segment is gone: %v", err)
			}

			s, info, reports = w.start(mem) // it is still known
			if info.Rebuilt != nil || reports.Load() == 0 {
				t.Errorf("%+v, %d reports", info.Rebuilt, reports.Load())
			}
			d := deviceTest(t, s, "a", "")
			g := gone[0]
			writeTest(t, d, g.Off, w.data[g.Off:g.End()])
			settleSoon(t, s)
			if now := w.readAll(s, "a", ""); !slices.Equal(now, gone[1:]) {
				t.Errorf("%v was written over, lost are %v of %v", g, now, gone)
			}
			if still := w.readAll(s, "c", ""); !slices.Equal(still, gone) {
				t.Errorf("the clone has lost %v of %v", still, gone)
			}
			w.check(s.Close())

			w.check(loseMeta(mem, "data/store")) // once more, of checkpoints that know of the loss
			s, info, _ = w.start(mem)
			if info.Rebuilt == nil || info.Rebuilt.Lost.Chunks == 0 {
				t.Errorf("%+v", info.Rebuilt)
			}
			if now := w.readAll(s, "a", ""); !slices.Equal(now, gone[1:]) {
				t.Errorf("after another loss of the metadata: %v of %v", now, gone)
			}
			w.check(s.Close())

			w.check(loseMeta(mem, "data/store")) // and now the segment comes back
			w.check(mem.MkdirAll(path.Dir(w.file(0)), 0o700))
			w.check(putFile(mem, w.file(0), whole))
			s, info, reports = w.start(mem)
			if info.Rebuilt == nil || info.Rebuilt.Lost.Chunks != 0 || reports.Load() != 0 {
				t.Errorf("%+v, %d reports", info.Rebuilt, reports.Load())
			}
			for _, x := range []struct{ volume, snapshot string }{{"a", ""}, {"a", "s"}, {"c", ""}} {
				if now := w.readAll(s, x.volume, x.snapshot); len(now) > 0 {
					t.Errorf("the segment is back, but %v lacks %v", x, now)
				}
			}
			(&model{t: t, s: s}).audit()
		})
	}
}

// TestHealedLoss writes over all that was lost, in volume, snapshot and clone: then nothing reminds of it.
func TestHealedLoss(t *testing.T) {
	w := newDamagedWorld(t)
	mem := w.left(true)
	w.check(mem.Remove(w.file(0)))
	s, _, _ := w.start(mem)
	ctx := context.Background()
	w.check(s.DeleteVolume(ctx, "c"))
	w.check(s.DeleteSnapshot(ctx, "a", "s"))
	writeTest(t, deviceTest(t, s, "a", ""), 0, w.data)
	settleSoon(t, s)
	if gone := w.readAll(s, "a", ""); len(gone) > 0 || s.c.Lost != 0 {
		t.Fatalf("%v, %d lost", gone, s.c.Lost)
	}
	(&model{t: t, s: s}).audit()
	w.check(s.Close())
	_, _, reports := w.start(mem)
	if n := reports.Load(); n != 0 {
		t.Errorf("%d reports", n)
	}
}

// TestAllSegmentsMissing: when none of the data is there, that is more likely a file system that was not mounted.
func TestAllSegmentsMissing(t *testing.T) {
	w := newDamagedWorld(t)
	mem := w.left(true)
	w.check(errors.Join(mem.Remove(w.file(0)), mem.Remove(w.file(1))))
	_, err := Open(context.Background(), w.options(mem))
	if !errors.Is(err, block.ErrCorrupt) || !strings.Contains(err.Error(), "segments") {
		t.Fatal(err)
	}
}

// TestDamagedFrame flips a byte of a frame, with the metadata whole. The blocks give EIO, the same bytes written again heal them though their hint names the damaged chunk,
// a region is cut anew around them, and the segment's other chunks can move.
func TestDamagedFrame(t *testing.T) {
	w := newDamagedWorld(t)
	mem := w.left(false)
	w.check(rewriteFile(mem, w.file(0), func(b []byte) []byte { b[len(b)/2] ^= 1; return b }))
	s, _, reports := w.start(mem)
	gone := w.readAll(s, "a", "")
	if len(gone) != 1 || reports.Load() == 0 {
		t.Fatalf("lost %v, %d reports", gone, reports.Load())
	}
	g := gone[0]
	s.worker.kick()
	for began := time.Now(); len(s.damaged.unmarked()) > 0; sleep(context.Background(), time.Millisecond) {
		if time.Since(began) > 2*time.Minute {
			t.Fatal("the chunk is not marked")
		}
	}
	// Much of the region is overwritten, so that it is cut anew.
	d := deviceTest(t, s, "a", "")
	for off := uint64(0); off < 24<<19; off += 64 << 10 {
		if r := (block.Range{Off: off, Len: 32 << 10}); r.End() <= g.Off || r.Off >= g.End() {
			writeTest(t, d, off, w.data[off:off+32<<10])
		}
	}
	settleSoon(t, s)
	if now := w.readAll(s, "a", ""); !slices.Equal(now, gone) {
		t.Errorf("after other writes: %v of %v", now, gone)
	}
	w.check(s.Close())
	s, _, _ = w.start(mem) // the mark outlives the process
	d = deviceTest(t, s, "a", "")
	writeTest(t, d, g.Off, w.data[g.Off:g.End()])
	settleSoon(t, s)
	if now := w.readAll(s, "a", ""); len(now) > 0 {
		t.Errorf("written again, but lost is %v", now)
	}
	if now := w.readAll(s, "a", "s"); !slices.Equal(now, gone) {
		t.Errorf("the snapshot has lost %v of %v", now, gone)
	}
	// All but a part with the damage goes: the segment is worth rewriting, and keeps what cannot be moved.
	ctx := context.Background()
	w.check(s.DeleteVolume(ctx, "c"))
	writeTest(t, d, g.Off, bytes.Repeat([]byte{7}, int(g.Len)))
	w.check(d.Trim(ctx, block.Range{Off: 0, Len: g.Off / (1 << 20) * (1 << 20)}, false))
	w.check(s.DeleteSnapshot(ctx, "a", "s"))
	settleSoon(t, s)
	(&model{t: t, s: s}).audit()
}

// TestKeptSegment rewrites a segment of which a frame is damaged that is still needed.
func TestKeptSegment(t *testing.T) {
	w := newDamagedWorld(t)
	mem := w.left(false)
	w.check(rewriteFile(mem, w.file(0), func(b []byte) []byte { b[len(b)/2] ^= 1; return b }))
	s, _, _ := w.start(mem)
	gone := w.readAll(s, "a", "")
	ctx := context.Background()
	d := deviceTest(t, s, "a", "")
	w.check(s.DeleteVolume(ctx, "c"))
	w.check(s.DeleteSnapshot(ctx, "a", "s"))
	for _, r := range []block.Range{{Off: 0, Len: gone[0].Off - 1<<20}, {Off: gone[0].End() + 1<<20, Len: 24<<19 - gone[0].End() - 1<<20}} {
		r.Off, r.Len = r.Off/block.Size*block.Size, r.Len/block.Size*block.Size
		w.check(d.Trim(ctx, r, false))
		clear(w.data[r.Off:r.End()])
	}
	settleSoon(t, s)
	if now := w.readAll(s, "a", ""); !slices.Equal(now, gone) {
		t.Errorf("lost %v of %v", now, gone)
	}
	row, ok := s.segments.get(w.segs[0].ID)
	if !ok || !s.damaged.keeps(row.ID) || row.LiveRaw > 256<<10 {
		t.Errorf("the segment is there: %v, kept: %v, %d B live", ok, s.damaged.keeps(row.ID), row.LiveRaw)
	}
	(&model{t: t, s: s}).audit()
}
