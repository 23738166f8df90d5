package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// diffModel is what the states of two volumes, one of which is a clone, hold.
type diffModel struct {
	t      *testing.T
	s      *Store
	rng    *rand.Rand
	names  []string // of volumes
	states map[StateName][]byte
}

// Random histories of snapshots, rollbacks, clones, resizes and settles: whatever differs between any two states is told, in order, with a kind that is true.
func TestDiff(t *testing.T) {
	t.Parallel() // it waits for the disk
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := &diffModel{t: t, rng: rand.New(rand.NewPCG(seed, 17)), states: map[StateName][]byte{}}
			m.s = openTest(t, testOptions(t, vfs.Default, t.TempDir()))
			m.check(createTest(t, m.s, "v", block.RegionSize+77*512).Close())
			m.names, m.states[StateName{"v", ""}] = []string{"v"}, make([]byte, block.RegionSize+77*512)
			for step := range 40 {
				m.step(step)
				if step%5 == 4 {
					m.verify()
				}
			}
			m.check(m.s.Settle(t.Context(), nil))
			m.verify()
		})
	}
}

func (m *diffModel) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *diffModel) step(n int) {
	ctx, v := m.t.Context(), m.names[m.rng.IntN(len(m.names))]
	now := StateName{v, ""}
	snaps := m.snapshots(v)
	switch k := m.rng.IntN(12); {
	case k < 6:
		m.write(now)
	case k < 8:
		name := StateName{v, fmt.Sprint("s", n)}
		_, err := m.s.CreateSnapshot(ctx, v, name.Snapshot)
		m.check(err)
		m.states[name] = bytes.Clone(m.states[now])
	case k < 9 && len(snaps) > 0:
		gone := snaps[m.rng.IntN(len(snaps))]
		m.check(m.s.DeleteSnapshot(ctx, v, gone.Snapshot))
		delete(m.states, gone)
	case k < 10 && len(snaps) > 0:
		to := snaps[m.rng.IntN(len(snaps))]
		m.check(m.s.Rollback(ctx, v, to.Snapshot))
		m.states[now] = bytes.Clone(m.states[to])
	case k < 11 && len(m.names) < 2:
		_, err := m.s.Clone(ctx, v, "", "c")
		m.check(err)
		m.names, m.states[StateName{"c", ""}] = append(m.names, "c"), bytes.Clone(m.states[now])
	case k < 11:
		size := block.RegionSize/2 + m.rng.IntN(block.RegionSize/512)*512
		m.check(m.s.ResizeVolume(ctx, v, uint64(size)))
		m.states[now] = append(m.states[now], make([]byte, max(0, size-len(m.states[now])))...)[:size:size]
	default:
		m.check(m.s.Settle(ctx, nil))
	}
}

func (m *diffModel) snapshots(volume string) (all []StateName) {
	infos, err := m.s.Snapshots(volume)
	m.check(err)
	for _, i := range infos {
		all = append(all, StateName{volume, i.Name})
	}
	return all
}

func (m *diffModel) write(to StateName) {
	d, data := deviceTest(m.t, m.s, to.Volume, ""), m.states[to]
	defer d.Close()
	for range 1 + m.rng.IntN(20) {
		off := m.rng.IntN(len(data)/512) * 512
		n := min(512*(1+m.rng.IntN(400)), len(data)-off)
		r := block.Range{Off: uint64(off), Len: uint64(n)}
		switch m.rng.IntN(5) {
		case 0:
			m.check(d.Trim(m.t.Context(), r, false))
			first, last := wholeBlocks(r.Off, r.Len, d.Size())
			if last > first {
				clear(data[first*block.Size : min(last*block.Size, uint64(len(data)))])
			}
		case 1:
			m.check(d.Zero(m.t.Context(), r, false, false))
			clear(data[off : off+n])
		default:
			p := guestData(m.rng, n)
			writeTest(m.t, d, r.Off, p)
			copy(data[off:], p)
		}
	}
}

func (m *diffModel) verify() {
	for from := range m.states {
		for to := range m.states {
			m.compare(from, to)
		}
	}
}

func (m *diffModel) compare(from, to StateName) {
	then, now := m.states[from], m.states[to]
	then = append(bytes.Clone(then), make([]byte, max(0, len(now)-len(then)))...)
	at, told := 0, 0
	same := func(end int) {
		if i := firstDiff(then[at:end], now[at:end]); i >= 0 {
			m.t.Fatalf("%v to %v: byte %d differs and is not told", from, to, at+i)
		}
	}
	m.check(m.s.Diff(m.t.Context(), from, to, func(c Change) bool {
		off, end := int(c.Off), int(c.Off+c.Len)
		if off < at || end > len(now) || c.Len == 0 || c.Off%512 != 0 || c.Len%512 != 0 {
			m.t.Fatalf("%v to %v: %+v behind %d of %d", from, to, c, at, len(now))
		}
		same(off)
		if c.Kind != ChangeData && len(bytes.Trim(now[off:end], "\x00")) > 0 {
			m.t.Fatalf("%v to %v: %+v has data", from, to, c)
		}
		at, told = end, told+end-off
		return true
	}))
	same(len(now))
	if from == to && told > 0 {
		m.t.Fatalf("%v differs from itself in %d bytes", from, told)
	}
}

// What is told is what was written, to the byte, whether it is still in the log or not; and a volume of 4 EiB is not walked through.
func TestDiffCostsTheChange(t *testing.T) {
	ctx := context.Background()
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", 4<<60)
	rng := rand.New(rand.NewPCG(1, 2))
	spots := []uint64{0, 5 << 40, 4<<60 - 1<<20}
	for _, off := range spots {
		writeTest(t, d, off, guestData(rng, 1<<20))
	}
	settleTest(t, s)
	if _, err := s.CreateSnapshot(ctx, "v", "a"); err != nil {
		t.Fatal(err)
	}
	writeTest(t, d, spots[1]+64<<10, guestData(rng, 8192))
	if err := d.Zero(ctx, block.Range{Off: spots[2] + 512<<10, Len: 64 << 10}, false, false); err != nil {
		t.Fatal(err)
	}
	want := []Change{{spots[1] + 64<<10, 8192, ChangeData}, {spots[2] + 512<<10, 64 << 10, ChangeZero}}
	for _, where := range []string{"in the log", "destaged"} {
		var got []Change
		w := differ{s: s, emit: func(c Change) bool { got = append(got, c); return true }}
		if err := w.between(ctx, StateName{"v", "a"}, StateName{"v", ""}); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) || w.windows != 2 {
			t.Errorf("%s: %v in %d windows, want %v", where, got, w.windows, want)
		}
		settleTest(t, s)
		want[1].Kind = ChangeHole
	}
	n := 0
	if err := s.Diff(ctx, StateName{"v", "a"}, StateName{"v", ""}, func(Change) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d ranges were told to who wanted one: %v", n, err)
	}
	createTest(t, s, "other", 1<<20)
	if err := s.Diff(ctx, StateName{"v", "a"}, StateName{"other", ""}, nil); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("differences of strangers: %v", err)
	}
	if err := s.Diff(ctx, StateName{"v", "nope"}, StateName{"v", ""}, nil); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("differences from nothing: %v", err)
	}
	if err := s.DeleteSnapshot(ctx, "v", "a"); err != nil {
		t.Errorf("a Diff left its snapshot in use: %v", err)
	}
}
