package blockstore

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// TestHistoryCrash cuts power, or ends the process, at random moments of a run with history. What is found must have every moment that the log found has, byte for byte.
func TestHistoryCrash(t *testing.T) {
	for _, seed := range crashSeeds(t, 3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("repeat: go test ./blockstore -run 'TestHistoryCrash/%d' -crash.seed=%d", seed, seed)
			runHistoryCrash(t, seed)
		})
	}
}

func runHistoryCrash(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 6))
	mem := historyMem()
	m := &historyModel{t: t, rng: rng, opts: testOptions(t, mem, "store")}
	m.opts.LogFileBytes, m.opts.DestageAfter = 256<<10, 5*time.Millisecond
	m.opts.historyRootBytes = 1 << 20
	m.opts.Events.HistoryGap = func(volume string, cause error) { t.Errorf("a gap in the history of %s: %v", volume, cause) }
	m.s = openTest(t, m.opts)
	m.create()
	v := m.vols[0]
	for round := range 12 {
		for range 3 + rng.IntN(12) {
			switch rng.IntN(8) {
			case 0:
				m.discard(v)
			case 1:
				d := deviceTest(t, m.s, v.name, "")
				m.check(d.Flush(context.Background()))
				m.check(d.Close())
			case 2:
				m.attachOf(v, 0)
			default:
				m.write(v)
			}
			m.note(v)
		}
		percent := []int{0, 50, 100}[rng.IntN(3)]
		asked := uint64(0) // what was durable before the cut must be there after it
		if percent < 100 {
			asked, _ = m.s.log.Durable()
		} else {
			asked, _ = m.s.log.Last()
		}
		left := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
		setUsage(left)
		m.judge(left, v, asked, fmt.Sprintf("round %d, %d %% of what was not synced", round, percent))
		if rng.IntN(4) == 0 {
			settleTest(t, m.s)
		}
	}
}

// historyMem is a disk in memory with much room.
func historyMem() *vfs.MemFS {
	mem := vfs.NewCrashableMem()
	setUsage(mem)
	return mem
}

// judge opens what a crash has left.
func (m *historyModel) judge(left vfs.FS, v *historyVolume, durable uint64, what string) {
	m.t.Helper()
	opts := m.opts
	opts.FS = left
	s, err := Open(context.Background(), opts)
	if err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
	defer func() { m.check(s.Close()) }()
	last, _ := s.log.Last()
	if last < durable {
		m.t.Fatalf("%s: the log ends with record %d, durable was %d", what, last, durable)
	}
	tried := 0
	for i, x := range v.moments {
		if x.seq > last || x.seq < v.floor || i+1 < len(v.moments) && v.moments[i+1].seq == x.seq || m.rng.IntN(3) > 0 {
			continue
		}
		tried++
		d, err := s.OpenPoint(context.Background(), v.name, Moment{Seq: x.seq})
		if err != nil {
			m.t.Fatalf("%s: record %d of %d: %v", what, x.seq, last, err)
		}
		m.same(d, x, what)
		m.check(d.Close())
	}
	if tried == 0 && len(v.moments) > 20 {
		m.t.Logf("%s: no moment tried of %d", what, len(v.moments))
	}
}

// attachOf opens the last moment of a volume, or one of so many before.
func (m *historyModel) attachOf(v *historyVolume, before int) {
	x := v.moments[max(0, len(v.moments)-1-before)]
	d, err := m.s.OpenPoint(context.Background(), v.name, Moment{Seq: x.seq})
	m.check(err)
	m.same(d, x, v.name)
	m.check(d.Close())
}

// A disk that does not take history makes a gap and no failed write; when it takes it again, history goes on, and what lies before the gap cannot be had.
func TestHistoryGap(t *testing.T) {
	var gaps int
	mem := historyMem()
	opts := testOptions(t, mem, "store")
	opts.LogFileBytes = 256 << 10
	opts.Events.HistoryGap = func(string, error) { gaps++ }
	s := openTest(t, opts)
	d := createTest(t, s, "a", 1<<20)
	ctx := context.Background()
	if err := s.SetHistory(ctx, "a", HistoryPolicy{Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 3))
	writeTest(t, d, 0, guestData(rng, 64<<10))
	before, _ := s.log.Last()
	p, err := s.OpenPoint(ctx, "a", Moment{Seq: before})
	if err != nil {
		t.Fatal(err)
	}
	vh, err := s.historyOf("a")
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	if _, err := p.ReadAt(ctx, want, 0, nil); err != nil {
		t.Fatal(err)
	}
	s.historian.work.Lock()
	s.historian.gap(vh, errors.New("a test says so"))
	s.historian.work.Unlock()
	for range 20 {
		writeTest(t, d, 0, guestData(rng, 512<<10))
	}
	settleTest(t, s)
	s.historian.work.Lock()
	if err := errors.Join(s.historian.resume(vh), s.historian.expire(vh)); err != nil {
		t.Fatal(err)
	}
	s.historian.work.Unlock()
	got := make([]byte, 1<<20)
	if _, err := p.ReadAt(ctx, got, 0, nil); err != nil || crc32.ChecksumIEEE(got) != crc32.ChecksumIEEE(want) {
		t.Fatalf("a moment that was open before the gap: %v", err)
	}
	if err := s.SetHistory(ctx, "a", HistoryPolicy{}); !errors.Is(err, block.ErrInUse) {
		t.Fatalf("end a history that somebody reads: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenPoint(ctx, "a", Moment{Seq: before}); !errors.Is(err, block.ErrNotFound) {
		t.Fatalf("a moment before the gap: %v", err)
	}
	data := guestData(rng, 64<<10)
	writeTest(t, d, 0, data)
	after, _ := s.log.Last()
	if p, err = s.OpenPoint(ctx, "a", Moment{Seq: after}); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.ReadAt(ctx, got[:len(data)], 0, nil); err != nil || string(got[:len(data)]) != string(data) {
		t.Fatalf("a moment after the gap: %v", err)
	}
	if i, err := s.History("a"); err != nil || i.Gaps != 1 || gaps != 1 || i.LastGap != "a test says so" {
		t.Fatalf("%+v, %d events: %v", i, gaps, err)
	}
}
