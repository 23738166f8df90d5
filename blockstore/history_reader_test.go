package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// historyWriter writes megabytes that do not compress to one volume with the least budget, and knows what each left.
type historyWriter struct {
	t    *testing.T
	s    *Store
	d    *Device
	p    []byte // what is written, but for its beginning
	seqs []uint64
	ends [][]byte
}

func newHistoryWriter(t *testing.T) *historyWriter {
	t.Helper()
	opts := testOptions(t, historyMem(), "store")
	opts.LogCapBytes, opts.LogFileBytes = 128<<20, 4<<20
	opts.Events.HistoryGap = func(volume string, cause error) { t.Errorf("a gap in the history of %s: %v", volume, cause) }
	w := &historyWriter{t: t, s: openTest(t, opts), p: make([]byte, 1<<20)}
	rng := rand.New(rand.NewPCG(4, 4))
	for i := 0; i < len(w.p); i += 8 {
		binary.LittleEndian.PutUint64(w.p[i:], rng.Uint64())
	}
	w.d = createTest(t, w.s, "a", 16<<20)
	if err := w.s.SetHistory(context.Background(), "a", HistoryPolicy{Window: time.Hour, BudgetBytes: MinHistoryBudget}); err != nil {
		t.Fatal(err)
	}
	return w
}

// write writes so many megabytes.
func (w *historyWriter) write(n int) {
	w.t.Helper()
	for range n {
		i := len(w.seqs)
		binary.LittleEndian.PutUint64(w.p, uint64(i))
		writeTest(w.t, w.d, uint64(i%16)<<20, w.p)
		seq, _ := w.s.log.Last()
		w.seqs, w.ends = append(w.seqs, seq), append(w.ends, bytes.Clone(w.p[:16]))
		if i%4 == 3 { // how far roots are apart must not depend on who is faster: what an open moment keeps goes by them
			w.step()
		}
	}
	for range 3 { // what is full is copied, and what would go has had its chance
		w.step()
	}
}

func (w *historyWriter) step() {
	w.t.Helper()
	if err := w.s.historian.step(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

// same compares the bytes that write i left.
func (w *historyWriter) same(d *Device, i int) {
	w.t.Helper()
	got := make([]byte, 16)
	if _, err := d.ReadAt(context.Background(), got, uint64(i%16)<<20, nil); err != nil || !bytes.Equal(got, w.ends[i]) {
		w.t.Errorf("moment %d has other bytes: %v", i, err)
	}
}

func (w *historyWriter) open(i int) *Device {
	w.t.Helper()
	d, err := w.s.OpenPoint(context.Background(), "a", Moment{Seq: w.seqs[i]})
	if err != nil {
		w.t.Fatalf("moment %d of %d: %v", i, len(w.seqs), err)
	}
	w.same(d, i)
	return d
}

// opens tries moments from one on to the last.
func (w *historyWriter) opens(first int) {
	w.t.Helper()
	for i := first; i < len(w.seqs); i += 5 {
		if err := w.open(i).Close(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// A moment that is open keeps what it needs itself, and no more: over the budget, older history goes. Nothing newer than it goes in vain.
func TestHistoryBudgetWithReader(t *testing.T) {
	w := newHistoryWriter(t)
	w.write(48)
	p := w.open(40)
	w.write(48)
	w.opens(44)
	waitFor(t, "the oldest to go while a moment is open that is not the oldest", func() bool {
		w.s.historian.kick()
		i, err := w.s.History("a")
		return err == nil && i.Bytes <= MinHistoryBudget+MinHistoryBudget/historyRootMost+4<<20 && i.FirstSeq > w.seqs[8] // its root lies up to half of the budget before it
	})
	w.same(p, 40)
	w.write(16) // by now what the open moment needs is the oldest that is there
	w.opens(44)
	w.same(p, 40)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the moment to go after it was closed", func() bool {
		w.s.historian.kick()
		i, err := w.s.History("a")
		return err == nil && i.Bytes <= MinHistoryBudget && i.FirstSeq > w.seqs[40]
	})
}

// A volume cannot be deleted while a moment of it is being opened.
func TestDeleteVolumeDuringOpenPoint(t *testing.T) {
	opts := testOptions(t, historyMem(), "store")
	var s *Store
	deleted := fmt.Errorf("not tried")
	opts.atMoment = func(m moment) {
		if m == afterTakeRoot {
			deleted = s.DeleteVolume(context.Background(), "a")
		}
	}
	s = openTest(t, opts)
	d := createTest(t, s, "a", 1<<20)
	ctx := context.Background()
	if err := s.SetHistory(ctx, "a", HistoryPolicy{Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	writeTest(t, d, 0, []byte("something"))
	seq, _ := s.log.Last()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := s.OpenPoint(ctx, "a", Moment{Seq: seq})
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(deleted, block.ErrInUse) {
		t.Errorf("delete a volume while a moment of it is opened: %v", deleted)
	}
	got := make([]byte, 9)
	if _, err := p.ReadAt(ctx, got, 0, nil); err != nil || string(got) != "something" {
		t.Errorf("%q, %v", got, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteVolume(ctx, "a"); err != nil {
		t.Errorf("delete it when nobody uses it any more: %v", err)
	}
}

// A snapshot of several volumes at once, as schedules take them, is a point in the history of each.
func TestHistoryPointsOfSnapshotSets(t *testing.T) {
	s := openTest(t, testOptions(t, historyMem(), "store"))
	ctx := context.Background()
	var names []StateName
	for _, name := range []string{"a", "b", "c"} {
		d := createTest(t, s, name, 1<<20)
		defer d.Close()
		if err := s.SetHistory(ctx, name, HistoryPolicy{Window: time.Hour}); err != nil {
			t.Fatal(err)
		}
		writeTest(t, d, 0, []byte(name+" before"))
		names = append(names, StateName{Volume: name, Snapshot: "auto-" + name})
	}
	if _, err := s.CreateSnapshots(ctx, names, true); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		d := deviceTest(t, s, name, "")
		writeTest(t, d, 0, []byte(name+" behind"))
		points, err := s.HistoryPoints(ctx, name, PointQuery{Limit: 10, Labelled: true})
		if err != nil || len(points) != 1 || points[0].Kind != "snapshot" || points[0].Label != "auto-"+name {
			t.Errorf("points of %s: %+v, %v", name, points, err)
		}
		p, err := s.OpenPoint(ctx, name, Moment{Label: "auto-" + name})
		if err != nil {
			t.Error(err)
			continue
		}
		got := make([]byte, 8)
		if _, err := p.ReadAt(ctx, got, 0, nil); err != nil || string(got) != name+" before" {
			t.Errorf("%q, %v", got, err)
		}
		if err := errors.Join(p.Close(), d.Close()); err != nil {
			t.Error(err)
		}
	}
}

// A moment that is open can be opened again after a restart, whatever its age, while history is held in between; then it goes with its last reader.
func TestHistoryMomentOverRestart(t *testing.T) {
	var ahead atomic.Int64
	mem := historyMem()
	opts := testOptions(t, mem, "store")
	opts.HoldHistory = true
	opts.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	s := openTest(t, opts)
	s.HoldHistory(false)
	ctx := context.Background()
	d := createTest(t, s, "a", 1<<20)
	if err := s.SetHistory(ctx, "a", HistoryPolicy{Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	was := []byte("as it was")
	writeTest(t, d, 0, was)
	seq, _ := s.log.Last()
	p, err := s.OpenPoint(ctx, "a", Moment{Seq: seq})
	if err != nil {
		t.Fatal(err)
	}
	hours := func(s *Store, d *Device) {
		for range 3 {
			writeTest(t, d, 0, []byte("something else"))
			ahead.Add(int64(5 * time.Hour))
			for range 2 {
				if err := s.historian.step(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	hours(s, d)
	reopened := func(from *Store, d, p *Device) (*Store, *Device, *Device) {
		from.HoldHistory(true)
		if err := errors.Join(d.Close(), p.Close()); err != nil {
			t.Fatal(err)
		}
		if err := from.historian.step(ctx); err != nil {
			t.Fatal(err)
		}
		if err := from.Close(); err != nil {
			t.Fatal(err)
		}
		s := openTest(t, opts)
		if err := s.historian.step(ctx); err != nil {
			t.Fatal(err)
		}
		p, err := s.OpenPoint(ctx, "a", Moment{Seq: seq})
		if err != nil {
			t.Fatal(err)
		}
		s.HoldHistory(false)
		return s, deviceTest(t, s, "a", ""), p
	}
	for range 2 {
		s, d, p = reopened(s, d, p)
		hours(s, d)
		got := make([]byte, len(was))
		if _, err := p.ReadAt(ctx, got, 0, nil); err != nil || !bytes.Equal(got, was) {
			t.Errorf("%q, %v", got, err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the moment to go", func() bool {
		s.historian.kick()
		i, err := s.History("a")
		return err == nil && i.FirstSeq > seq
	})
}
