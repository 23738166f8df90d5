package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Over its budget the oldest history goes first, told and counted, and what is newer stays; writes do not notice.
func TestHistoryBudget(t *testing.T) {
	var told atomic.Int64
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.LogCapBytes, opts.LogFileBytes = 128<<20, 8<<20
	opts.Events.HistoryDropped = func(string, int64) { told.Add(1) }
	opts.Events.HistoryGap = func(volume string, cause error) { t.Errorf("a gap in the history of %s: %v", volume, cause) }
	s := openTest(t, opts)
	ctx := context.Background()
	d := createTest(t, s, "a", 64<<20)
	if err := s.SetHistory(ctx, "a", HistoryPolicy{Window: time.Hour, BudgetBytes: MinHistoryBudget}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(8, 8))
	noise := make([]byte, 1<<20)
	var seqs []uint64
	var marks []byte
	for i := range 320 {
		for k := range noise {
			if k%8 == 0 {
				v := rng.Uint64()
				for j := range 8 {
					noise[k+j] = byte(v >> (8 * j))
				}
			}
		}
		noise[0] = byte(i)
		writeTest(t, d, uint64(i%64)<<20, noise)
		seq, _ := s.log.Last()
		seqs, marks = append(seqs, seq), append(marks, byte(i))
	}
	waitFor(t, "history within its budget", func() bool {
		s.historian.kick()
		i, err := s.History("a")
		return err == nil && i.Bytes <= MinHistoryBudget && i.FirstSeq > seqs[0]
	})
	if told.Load() == 0 || s.Stats().HistoryDropped == 0 || s.Stats().HistoryBytes == 0 {
		t.Errorf("%d events, %+v", told.Load(), s.Stats().HistoryDropped)
	}
	if _, err := s.OpenPoint(ctx, "a", Moment{Seq: seqs[0]}); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("the oldest moment: %v", err)
	}
	for i := len(seqs) - 1; i > 0; i-- {
		info, err := s.History("a")
		if err != nil {
			t.Fatal(err)
		}
		if seqs[i] < info.FirstSeq {
			if i > len(seqs)-8 {
				t.Errorf("only %d of %d moments are left", len(seqs)-i, len(seqs))
			}
			break
		}
		p, err := s.OpenPoint(ctx, "a", Moment{Seq: seqs[i]})
		if err != nil {
			t.Fatalf("moment %d of %d: %v", i, len(seqs), err)
		}
		var b [1]byte
		if _, err := p.ReadAt(ctx, b[:], uint64(i%64)<<20, nil); err != nil || b[0] != marks[i] {
			t.Errorf("moment %d has %d, want %d: %v", i, b[0], marks[i], err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What is older than the window goes, but not what the oldest moment of the window stands on, nor what is open.
func TestHistoryWindow(t *testing.T) {
	var ahead atomic.Int64
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	s := openTest(t, opts)
	ctx := context.Background()
	d := createTest(t, s, "a", 1<<20)
	if err := s.SetHistory(ctx, "a", HistoryPolicy{Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(9, 9))
	type written struct {
		seq  uint64
		data []byte
	}
	var all []written
	newest := func() uint64 {
		roots := s.historian.rootsOf(d.v)
		return roots[len(roots)-1].closed
	}
	for i := range 12 { // every 16 minutes for three hours
		data := guestData(rng, 64<<10)
		writeTest(t, d, 0, data)
		seq, _ := s.log.Last()
		all = append(all, written{seq, data})
		ahead.Add(int64(16 * time.Minute))
		waitFor(t, fmt.Sprintf("the root after write %d", i), func() bool { s.historian.kick(); return newest() > seq })
	}
	waitFor(t, "the oldest to go", func() bool {
		s.historian.kick()
		i, err := s.History("a")
		return err == nil && i.FirstSeq > all[3].seq
	})
	if _, err := s.OpenPoint(ctx, "a", Moment{Seq: all[0].seq}); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("a moment before the window: %v", err)
	}
	p, err := s.OpenPoint(ctx, "a", Moment{At: opts.Now().Add(-50 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteVolume(ctx, "a"); !errors.Is(err, block.ErrInUse) {
		t.Errorf("delete a volume of which a moment is open: %v", err)
	}
	ahead.Add(int64(5 * time.Hour))
	writeTest(t, d, 0, guestData(rng, 64<<10))
	seq, _, _ := p.Moment()
	var want []byte
	for _, w := range all {
		if w.seq <= seq {
			want = w.data
		}
	}
	settleTest(t, s)
	time.Sleep(2 * historyTick) // what would go has had its chance
	got := make([]byte, len(want))
	if _, err := p.ReadAt(ctx, got, 0, nil); err != nil || string(got) != string(want) {
		t.Errorf("a moment that is open and too old: %v", err)
	}
	if err := errors.Join(p.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteVolume(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the files of a deleted volume to go", func() bool { s.historian.kick(); return s.Stats().HistoryBytes == 0 && len(s.historian.all()) == 0 })
}

// Points come in pages, and a label finds the newest of its name.
func TestHistoryPoints(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	ctx := context.Background()
	d := createTest(t, s, "a", 1<<20)
	if err := s.SetHistory(ctx, "a", HistoryPolicy{Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	var last Point
	for i := range 25 {
		writeTest(t, d, 0, []byte{byte(i), 511: 0})
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		var err error
		if last, err = s.MarkHistory(ctx, "a", fmt.Sprint("mark ", i%5)); err != nil {
			t.Fatal(err)
		}
	}
	seen, marks := map[uint64]int{}, 0
	for after := uint64(0); ; {
		page, err := s.HistoryPoints(ctx, "a", PointQuery{After: after, Limit: 7})
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, p := range page {
			seen[p.Seq]++
			if p.Kind == "mark" {
				marks++
			}
		}
		after = page[len(page)-1].Seq
	}
	if len(seen) != 25 || marks != 25 {
		t.Errorf("%d moments with %d marks, want 25", len(seen), marks)
	}
	page, err := s.HistoryPoints(ctx, "a", PointQuery{Limit: 1000, Labelled: true})
	if err != nil || len(page) != 25 || page[24].Seq != last.Seq || page[24].Label != "mark 4" {
		t.Errorf("%d labelled points, the last is %+v: %v", len(page), page[len(page)-1], err)
	}
	p, err := s.OpenPoint(ctx, "a", Moment{Label: "mark 3"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var b [1]byte
	if _, err := p.ReadAt(ctx, b[:], 0, nil); err != nil || b[0] != 23 {
		t.Errorf("the newest mark 3 has %d, want 23: %v", b[0], err)
	}
	for _, bad := range []PointQuery{{}, {Limit: MaxPoints + 1}} {
		if _, err := s.HistoryPoints(ctx, "a", bad); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, bad := range []HistoryPolicy{{Window: time.Millisecond}, {Window: 2 * MaxHistoryWindow}, {Window: time.Hour, BudgetBytes: 1}} {
		if err := s.SetHistory(ctx, "a", bad); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
