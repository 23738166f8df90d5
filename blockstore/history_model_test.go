package blockstore

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

var historySteps = flag.Int("history.steps", 150, "steps of each run of the model test of history")

// historyModel is a store with volumes under history, beside what each was after every step.
type historyModel struct {
	t    *testing.T
	rng  *rand.Rand
	opts Options
	s    *Store
	vols []*historyVolume
	next int
}

// historyVolume remembers what a volume was at each moment.
type historyVolume struct {
	name    string
	data    []byte
	moments []historyMoment
	snaps   map[string][]byte
	floor   uint64 // nothing up to there can be had: the model's own bound
}

type historyMoment struct {
	seq  uint64
	at   time.Time
	data []byte // compressed
	sum  uint32
}

// TestHistoryModel compares moments of volumes with byte slices, over random histories: writes, zeroes, trims, flushes, snapshots, clones, rollbacks, resizes, deletes, restarts, deaths, destage and expiry.
func TestHistoryModel(t *testing.T) {
	t.Parallel() // it waits for the disk
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for k := range uint64(2) {
		t.Run(fmt.Sprint(seed+k), func(t *testing.T) {
			t.Logf("repeat: go test ./blockstore -run 'TestHistoryModel/%d' -model.seed %d -history.steps %d", seed+k, seed+k, *historySteps)
			t.Parallel()
			runHistoryModel(t, seed+k)
		})
	}
}

func runHistoryModel(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 5))
	m := &historyModel{t: t, rng: rng, opts: testOptions(t, vfs.Default, t.TempDir())}
	m.opts.LogFileBytes = int64(256<<10) << rng.IntN(3)
	m.opts.DestageAfter = time.Duration(1+rng.IntN(100)) * time.Millisecond
	m.opts.historyRootBytes = int64(1+rng.IntN(8)) << 20
	m.opts.Events.HistoryGap = func(volume string, cause error) { t.Errorf("a gap in the history of %s: %v", volume, cause) }
	m.s = openTest(t, m.opts)
	m.create()
	m.create()
	for range *historySteps {
		m.step()
		if t.Failed() {
			return
		}
	}
	for range 20 {
		m.attach(m.vols[rng.IntN(len(m.vols))])
	}
	m.reopen()
	for range 20 {
		m.attach(m.vols[rng.IntN(len(m.vols))])
	}
	settleTest(t, m.s)
	m.audit()
}

func (m *historyModel) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *historyModel) name() string { m.next++; return fmt.Sprintf("h%d", m.next) }

func (m *historyModel) create() {
	ctx := context.Background()
	v := &historyVolume{name: m.name(), snaps: map[string][]byte{}, data: make([]byte, (200+m.rng.IntN(1000))*512)}
	_, err := m.s.CreateVolume(ctx, VolumeSpec{Name: v.name, SizeBytes: uint64(len(v.data))})
	m.check(err)
	m.write(v)
	m.check(m.s.SetHistory(ctx, v.name, HistoryPolicy{Window: time.Hour}))
	v.floor, _ = m.s.log.Last()
	m.vols = append(m.vols, v)
	m.note(v)
}

// note remembers what a volume is now.
func (m *historyModel) note(v *historyVolume) {
	seq, _ := m.s.log.Last()
	v.moments = append(v.moments, historyMoment{seq: seq, at: time.Now(), data: s2.Encode(nil, v.data), sum: crc32.ChecksumIEEE(v.data)})
}

func (m *historyModel) step() {
	ctx := context.Background()
	v := m.vols[m.rng.IntN(len(m.vols))]
	k := m.rng.IntN(100)
	m.t.Logf("step %d on %s (%d B)", k, v.name, len(v.data))
	switch {
	case k < 45:
		for range 1 + m.rng.IntN(20) {
			m.write(v)
			m.note(v)
		}
		return
	case k < 52:
		m.discard(v)
	case k < 56:
		d := deviceTest(m.t, m.s, v.name, "")
		m.check(d.Flush(ctx))
		m.check(d.Close())
	case k < 60:
		name := m.name()
		_, err := m.s.CreateSnapshot(ctx, v.name, name)
		m.check(err)
		v.snaps[name] = bytes.Clone(v.data)
	case k < 63:
		m.rollback(v)
	case k < 66:
		m.resize(v)
	case k < 68:
		name := m.name()
		_, err := m.s.Clone(ctx, v.name, "", name)
		m.check(err)
		m.equal(name, v.data)
		m.check(m.s.DeleteVolume(ctx, name))
	case k < 69 && len(m.vols) > 1:
		m.check(m.s.DeleteVolume(ctx, v.name))
		m.vols = deleteOne(m.vols, v)
		_, err := m.s.OpenPoint(ctx, v.name, Moment{Seq: v.moments[0].seq})
		if !errors.Is(err, block.ErrNotFound) {
			m.t.Fatalf("a moment of a deleted volume: %v", err)
		}
		return
	case k < 71 && len(m.vols) < 4:
		m.create()
		return
	case k < 76:
		settleTest(m.t, m.s)
	case k < 79:
		m.reopen()
	case k < 82: // the oldest goes
		vh, err := m.s.historyOf(v.name)
		m.check(err)
		m.s.historian.work.Lock()
		if roots := m.s.historian.rootsOf(vh.v); len(roots) > 1 {
			m.check(m.s.historian.letGo(vh, roots[1].closed))
			v.floor = max(v.floor, roots[1].closed)
		}
		m.s.historian.work.Unlock()
	default:
		m.attach(v)
		return
	}
	m.note(v)
}

func deleteOne(all []*historyVolume, v *historyVolume) (left []*historyVolume) {
	for _, o := range all {
		if o != v {
			left = append(left, o)
		}
	}
	return left
}

func (m *historyModel) write(v *historyVolume) {
	d := deviceTest(m.t, m.s, v.name, "")
	defer d.Close()
	off := m.rng.IntN(len(v.data)/512) * 512
	n := min(len(v.data)-off, (1+m.rng.IntN(300))*512)
	if m.rng.IntN(3) > 0 { // whole blocks
		off &^= block.Size - 1
		n = min(len(v.data)-off, (n+block.Size-1)&^(block.Size-1))
	}
	data := guestData(m.rng, n)
	m.check(d.Write(context.Background(), []block.Write{{Off: uint64(off), Data: data}}, m.rng.IntN(10) == 0))
	copy(v.data[off:], data)
}

func (m *historyModel) discard(v *historyVolume) {
	d := deviceTest(m.t, m.s, v.name, "")
	defer d.Close()
	off := m.rng.IntN(len(v.data)/512) * 512
	n := min(len(v.data)-off, (1+m.rng.IntN(300))*512)
	r := block.Range{Off: uint64(off), Len: uint64(n)}
	if m.rng.IntN(2) == 0 {
		m.check(d.Zero(context.Background(), r, false, false))
		clear(v.data[off : off+n])
		return
	}
	m.check(d.Trim(context.Background(), r, false))
	first, last := wholeBlocks(r.Off, r.Len, uint64(len(v.data)))
	if first < last {
		clear(v.data[first*block.Size : min(last*block.Size, uint64(len(v.data)))])
	}
}

func (m *historyModel) rollback(v *historyVolume) {
	for name, data := range v.snaps {
		m.check(m.s.Rollback(context.Background(), v.name, name))
		v.data = bytes.Clone(data)
		// Between a rollback and the root that follows it lies no write; a moment there cannot be had.
		return
	}
}

func (m *historyModel) resize(v *historyVolume) {
	size := (100 + m.rng.IntN(1200)) * 512
	m.check(m.s.ResizeVolume(context.Background(), v.name, uint64(size)))
	old := v.data
	v.data = make([]byte, size)
	copy(v.data, old)
}

// attach compares a random moment of a volume, by number or by time.
func (m *historyModel) attach(v *historyVolume) {
	var can []historyMoment
	for i, x := range v.moments {
		if x.seq >= v.floor && (i+1 == len(v.moments) || v.moments[i+1].seq > x.seq) {
			can = append(can, x)
		}
	}
	if len(can) == 0 {
		return
	}
	x := can[m.rng.IntN(len(can))]
	by := Moment{Seq: x.seq}
	if m.rng.IntN(3) == 0 {
		by = Moment{At: x.at}
	}
	d, err := m.s.OpenPoint(context.Background(), v.name, by)
	if err != nil {
		m.t.Fatalf("volume %s at %+v: %v", v.name, by, err)
	}
	defer d.Close()
	m.same(d, x, fmt.Sprintf("%s at %+v", v.name, by))
	if m.rng.IntN(4) == 0 {
		name := m.name()
		_, err := m.s.RestorePoint(context.Background(), d, name, nil)
		m.check(err)
		want, err := s2.Decode(nil, x.data)
		m.check(err)
		m.equal(name, want)
		m.check(m.s.DeleteVolume(context.Background(), name))
	}
	if m.rng.IntN(3) == 0 { // and again, when much has gone on
		for range 5 {
			m.write(v)
			m.note(v)
		}
		settleTest(m.t, m.s)
		m.same(d, x, fmt.Sprintf("%s at %+v after a settle", v.name, by))
	}
}

// same compares a device of a moment with what the volume was.
func (m *historyModel) same(d *Device, x historyMoment, what string) {
	m.t.Helper()
	want, err := s2.Decode(nil, x.data)
	m.check(err)
	if d.Size() != uint64(len(want)) {
		m.t.Fatalf("%s (record %d) has %d B, want %d", what, x.seq, d.Size(), len(want))
	}
	got := make([]byte, len(want))
	_, err = d.ReadAt(context.Background(), got, 0, nil)
	m.check(err)
	if !bytes.Equal(got, want) {
		at := 0
		for got[at] == want[at] {
			at++
		}
		m.t.Fatalf("%s (record %d) differs from byte %d on", what, x.seq, at)
	}
	if err := d.Write(context.Background(), []block.Write{{Data: want[:512]}}, false); !errors.Is(err, block.ErrReadOnly) {
		m.t.Fatalf("%s takes writes: %v", what, err)
	}
}

func (m *historyModel) equal(name string, want []byte) {
	m.t.Helper()
	d := deviceTest(m.t, m.s, name, "")
	defer d.Close()
	got := make([]byte, len(want))
	_, err := d.ReadAt(context.Background(), got, 0, nil)
	m.check(err)
	if !bytes.Equal(got, want) {
		m.t.Fatalf("volume %s is not what it was", name)
	}
}

func (m *historyModel) reopen() {
	m.check(m.s.Close())
	m.s = openTest(m.t, m.opts)
	for _, v := range m.vols {
		m.equal(v.name, v.data)
	}
}

func (m *historyModel) audit() {
	r, err := m.s.Audit(context.Background(), nil)
	m.check(err)
	if r.Missing > 0 || r.WrongReferences {
		m.t.Fatalf("audit: %+v", r)
	}
}
