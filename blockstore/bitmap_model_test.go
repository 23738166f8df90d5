package blockstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const bitmapModelMax = 44 << 20

// bitmapModel is a volume with bitmaps beside what they should tell.
type bitmapModel struct {
	t       *testing.T
	rng     *rand.Rand
	mem     *vfs.MemFS
	opts    Options
	s       *Store
	data    *modelBytes
	snaps   map[string]*modelSnap
	bitmaps map[string]*modelBitmap
	next    int
}

type modelSnap struct {
	data    *modelBytes
	bitmaps map[string]uint64 // that began before it, with the record that they began with
}

// modelBitmap is what a bitmap should tell: at least what is in must, at most what is in may.
type modelBitmap struct {
	epoch     uint64
	before    *modelBytes // what the volume held when it began
	must, may []bool      // granules
	all       bool
	least     int // size of the volume, bytes
}

// TestBitmapModel lets writes, trims, zeroes, snapshots, rollbacks, resizes, settles, collections, deaths and power losses meet bitmaps that come, begin anew and go. A bitmap never misses a byte that is not what it was, and never tells of a granule
// that nobody wrote to.
func TestBitmapModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for k := range uint64(2) {
		t.Run(fmt.Sprint(seed+k), func(t *testing.T) {
			t.Logf("repeat: go test ./blockstore -run 'TestBitmapModel/%d' -model.seed %d -model.steps %d", seed+k, seed+k, *modelSteps)
			m := &bitmapModel{t: t, rng: rand.New(rand.NewPCG(seed+k, 64)), mem: newCrashMem(t), snaps: map[string]*modelSnap{}, bitmaps: map[string]*modelBitmap{}}
			m.run(2 * *modelSteps)
		})
	}
}

func (m *bitmapModel) run(steps int) {
	m.opts = testOptions(m.t, m.mem, "data")
	m.opts.DestageAfter = time.Duration(1+m.rng.IntN(300)) * time.Millisecond
	m.opts.fullAfterBytes = int64(1+m.rng.IntN(200)) << 10
	m.open()
	m.t.Cleanup(func() { _ = m.s.Close() }) // of a test that failed
	m.data = newModelBytes(33<<20 + 512*m.rng.IntN(1000))
	_, err := m.s.CreateVolume(context.Background(), VolumeSpec{Name: "v", SizeBytes: uint64(m.data.len())})
	m.check(err)
	for range steps {
		m.step()
		if m.t.Failed() {
			return
		}
	}
	m.verify()
	settleTest(m.t, m.s)
	m.verify()
	m.check(m.s.Close())
	m.open()
	m.verify()
	for name := range m.bitmaps {
		m.check(m.s.RemoveBitmap(context.Background(), "v", name))
	}
	settleTest(m.t, m.s)
	if n := touchedRows(m.t, m.s); n != 0 {
		m.t.Errorf("%d rows of granules are left without a bitmap", n)
	}
	if st := m.s.Stats(); st.Snapshots != len(m.snaps) {
		m.t.Errorf("%d snapshots, want %d", st.Snapshots, len(m.snaps))
	}
	m.check(m.s.Close())
}

// touchedRows counts the rows of granules.
func touchedRows(t *testing.T, s *Store) (n int) {
	t.Helper()
	if err := s.scanRows(keyTouched, func(key, value []byte) error {
		n++
		_, err := decodeTouched(key, value)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func (m *bitmapModel) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *bitmapModel) step() {
	ctx, k := context.Background(), m.rng.IntN(100)
	m.t.Logf("step %d (%d B, %d snapshots, %d bitmaps)", k, m.data.len(), len(m.snaps), len(m.bitmaps))
	switch {
	case k < 50:
		m.writes(1 + m.rng.IntN(12))
	case k < 56 && len(m.bitmaps) < 5:
		name := m.name("b")
		info, err := m.s.AddBitmap(ctx, "v", name)
		m.check(err)
		m.begin(name, info)
	case k < 60:
		for name := range m.bitmaps {
			info, err := m.s.ClearBitmap(ctx, "v", name)
			m.check(err)
			m.begin(name, info)
			break
		}
	case k < 62:
		for name := range m.bitmaps {
			m.check(m.s.RemoveBitmap(ctx, "v", name))
			delete(m.bitmaps, name)
			break
		}
	case k < 68:
		name := m.name("s")
		_, err := m.s.CreateSnapshot(ctx, "v", name)
		m.check(err)
		snap := &modelSnap{data: m.data.clone(), bitmaps: map[string]uint64{}}
		for name, b := range m.bitmaps {
			snap.bitmaps[name] = b.epoch
		}
		m.snaps[name] = snap
	case k < 72:
		for name := range m.snaps {
			m.check(m.s.DeleteSnapshot(ctx, "v", name))
			delete(m.snaps, name)
			break
		}
	case k < 74:
		for name, snap := range m.snaps {
			m.check(m.s.Rollback(ctx, "v", name))
			m.data = snap.data.clone()
			for _, b := range m.bitmaps {
				b.all = true
			}
			break
		}
	case k < 77:
		m.resize()
	case k < 80:
		m.hot()
	case k < 84:
		settleTest(m.t, m.s)
		if m.rng.IntN(2) == 0 {
			m.check(m.s.SettleCold(ctx, nil))
			m.check(m.s.CollectGarbage(ctx, nil))
		}
	case k < 88:
		m.die()
	case k < 91:
		m.losePower()
	default:
		m.verify()
	}
}

func (m *bitmapModel) name(kind string) string { m.next++; return fmt.Sprint(kind, m.next) }

// begin notes that a bitmap began.
func (m *bitmapModel) begin(name string, info BitmapInfo) {
	n := bitmapModelMax / BitmapGranule
	m.bitmaps[name] = &modelBitmap{epoch: uint64(info.Epoch), before: m.data.clone(), must: make([]bool, n), may: make([]bool, n), least: m.data.len()}
}

// touch notes that a range was written to, all of it for certain or only perhaps.
func (m *bitmapModel) touch(off, n int, certain bool) {
	if n <= 0 {
		return
	}
	for _, b := range m.bitmaps {
		for g := off / BitmapGranule; g <= (off+n-1)/BitmapGranule; g++ {
			b.may[g] = true
			b.must[g] = b.must[g] || certain
		}
	}
}

// writes changes the volume in some places.
func (m *bitmapModel) writes(count int) {
	ctx, d := context.Background(), deviceTest(m.t, m.s, "v", "")
	defer d.Close()
	for range count {
		off, n := clientRange(m.rng, 0, m.data.len())
		r := block.Range{Off: uint64(off), Len: uint64(n)}
		switch k := m.rng.IntN(8); k {
		case 0:
			m.check(d.Zero(ctx, r, false, false))
			m.data.clear(off, off+n)
			m.touch(off, n, true)
		case 1:
			m.check(d.Trim(ctx, r, false))
			m.touch(off, n, false)
			if first, last := wholeBlocks(r.Off, r.Len, d.Size()); last > first {
				end := min(last*block.Size, uint64(m.data.len()))
				m.data.clear(int(first*block.Size), int(end))
				m.touch(int(first*block.Size), int(end-first*block.Size), true)
			}
		default:
			p := modelData(m.rng, n)
			if k == 2 {
				p = m.data.read(off, n) // what is there already counts, too
			}
			writeTest(m.t, d, r.Off, p)
			m.data.write(off, p)
			m.touch(off, n, true)
		}
	}
	if m.rng.IntN(3) == 0 {
		m.check(d.Flush(ctx))
	}
}

// hot writes a few places so often that the log goes round, and blocks that stay hot are logged again.
func (m *bitmapModel) hot() {
	d := deviceTest(m.t, m.s, "v", "")
	defer d.Close()
	const n = 1 << 20
	at := m.rng.IntN(m.data.len()/n) * n
	for range 40 {
		p := guestData(m.rng, n)
		writeTest(m.t, d, uint64(at), p)
		m.data.write(at, p)
	}
	m.touch(at, n, true)
}

func (m *bitmapModel) resize() {
	size := 20<<20 + m.rng.IntN((bitmapModelMax-20<<20)/512)*512
	m.check(m.s.ResizeVolume(context.Background(), "v", uint64(size)))
	if old := m.data.len(); size <= old {
		m.touch(size, old-size, false)
	}
	m.data.resize(size)
	for _, b := range m.bitmaps {
		b.least = min(b.least, size)
	}
}

// die goes on with what a process that is killed leaves, perhaps without its metadata.
func (m *bitmapModel) die() { m.crash(100) }

// losePower goes on with what a power loss leaves: all that was flushed, and of the rest some.
func (m *bitmapModel) losePower() {
	d := deviceTest(m.t, m.s, "v", "")
	m.check(d.Flush(context.Background()))
	m.check(d.Close())
	if m.rng.IntN(2) == 0 {
		settleTest(m.t, m.s)
	}
	m.writes(6)
	m.crash(m.rng.IntN(100))
	// Which of the last writes are there is anybody's guess; what is there must be told.
	d = deviceTest(m.t, m.s, "v", "")
	defer d.Close()
	m.data = modelOf(m.t, d)
	for _, b := range m.bitmaps {
		clear(b.must)
	}
}

func (m *bitmapModel) crash(unsyncedPercent int) {
	left := m.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsyncedPercent, RNG: m.rng})
	m.check(m.s.Close())
	setUsage(left)
	m.mem, m.opts.FS = left, left
	if m.rng.IntN(3) == 0 {
		m.t.Log("the metadata is lost")
		m.check(loseMeta(left, m.opts.Dir))
	}
	m.open()
}

// open opens the store. What it replaces is not kept: each death leaves a file system in memory.
func (m *bitmapModel) open() {
	s, err := Open(context.Background(), m.opts)
	m.check(err)
	m.s = s
}

// verify compares all that bitmaps tell of the volume and its snapshots.
func (m *bitmapModel) verify() {
	m.verifyDevice("", m.data, func(string, *modelBitmap) bool { return true })
	for name, snap := range m.snaps {
		m.verifyDevice(name, snap.data, func(of string, b *modelBitmap) bool { return snap.bitmaps[of] == b.epoch })
	}
	infos, err := m.s.Bitmaps("v")
	m.check(err)
	if len(infos) != len(m.bitmaps) {
		m.t.Fatalf("%d bitmaps, want %d", len(infos), len(m.bitmaps))
	}
	for _, info := range infos {
		if b := m.bitmaps[info.Name]; b == nil || b.all != info.All || uint64(info.Epoch) != b.epoch {
			m.t.Fatalf("bitmap %+v, want %+v", info, b)
		}
	}
}

func (m *bitmapModel) verifyDevice(snapshot string, now *modelBytes, told func(name string, b *modelBitmap) bool) {
	d := deviceTest(m.t, m.s, "v", snapshot)
	defer d.Close()
	if d.Size() != uint64(now.len()) {
		m.t.Fatalf("v@%s has %d B, want %d", snapshot, d.Size(), now.len())
	}
	if at := now.differs(m.t, d); at >= 0 {
		m.t.Fatalf("v@%s holds other bytes than were written, from %d on", snapshot, at)
	}
	bases := d.ChangeBases()
	for name, b := range m.bitmaps {
		if want := told(name, b); slices.Contains(bases, name) != want {
			m.t.Fatalf("v@%s tells of %v; of %s: %t, want %t", snapshot, bases, name, !want, want)
		} else if want {
			m.verifyBitmap(d, "v@"+snapshot+" since "+name, name, now, b, snapshot == "")
		}
	}
}

func (m *bitmapModel) verifyBitmap(d *Device, what, name string, now *modelBytes, b *modelBitmap, head bool) {
	at := uint64(0)
	m.check(d.Changes(context.Background(), name, block.Range{Len: d.Size()}, func(n uint64, changed bool) bool {
		for off := at; off < at+n; {
			g := off / BitmapGranule
			end := min((g+1)*BitmapGranule, at+n)
			grown := end > uint64(b.least)
			switch {
			case !changed && (b.all || head && (grown || b.must[g])):
				m.t.Fatalf("%s: %d+%d is told to be as it was; it was written to, the volume was rolled back (%t), or grew (%t)", what, off, end-off, b.all, grown)
			case !changed && !b.before.same(now, int(off), int(end)):
				m.t.Fatalf("%s: %d+%d is told to be as it was and is not", what, off, end-off)
			case changed && !b.all && !grown && !b.may[g]:
				m.t.Fatalf("%s: %d+%d is told to have changed, and nobody wrote there", what, off, end-off)
			}
			off = end
		}
		at += n
		return true
	}))
	if at != d.Size() {
		m.t.Fatalf("%s: told up to %d of %d", what, at, d.Size())
	}
}
