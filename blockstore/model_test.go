package blockstore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

var (
	modelSeed  = flag.Uint64("model.seed", 0, "seed of the model test; 0 takes one from the clock")
	modelSteps = flag.Int("model.steps", 60, "steps of each model run")
)

// model is a store beside what it should hold.
type model struct {
	t    *testing.T
	rng  *rand.Rand
	opts Options
	s    *Store
	vols []*modelVolume
	next int
}

type modelVolume struct {
	name  string
	data  *modelBytes
	snaps map[string]*modelBytes
}

const modelMaxSize = 40 << 20

// TestModel runs random operations against byte slices: four clients write at once while snapshots, destage, reclaim and reopens go on.
func TestModel(t *testing.T) {
	t.Parallel() // it waits for the disk
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for k := range uint64(3) {
		t.Run(fmt.Sprint(seed+k), func(t *testing.T) {
			t.Logf("repeat: go test ./blockstore -run 'TestModel/%d' -model.seed %d -model.steps %d", seed+k, seed+k, *modelSteps)
			t.Parallel()
			runModel(t, seed+k)
		})
	}
}

func runModel(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 99))
	m := &model{t: t, rng: rng, opts: testOptions(t, vfs.Default, t.TempDir())}
	m.opts.DestageAfter = time.Duration(1+rng.IntN(200)) * time.Millisecond
	m.opts.fullAfterBytes, m.opts.metadataSegmentBytes = int64(1+rng.IntN(200))<<10, int64(16+rng.IntN(500))<<10
	m.opts.checkpointPartBytes = (1 + rng.IntN(64)) << 10
	m.opts.MemoryBytes = int64(32+rng.IntN(128)) << 20
	m.opts.auditBytes = int64(1+rng.IntN(3)) << 12
	if rng.IntN(2) == 0 {
		m.opts.StreamBytes, m.opts.streamWrite, m.opts.streamFrom = int64(rng.IntN(64))<<20, 4<<rng.IntN(8)<<10, 1
	}
	m.opts.smallParts = rng.IntN(2) == 0
	m.s = openTest(t, m.opts)
	m.create()
	for range *modelSteps {
		m.step()
		if t.Failed() {
			return
		}
	}
	m.verifyAll()
	settleTest(t, m.s)
	m.verifyAll()
	m.audit()
	m.reopen()
	m.verifyAll()
	m.deleteAll()
}

func (m *model) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) pick() *modelVolume { return m.vols[m.rng.IntN(len(m.vols))] }

func (m *model) name() string { m.next++; return fmt.Sprintf("n%d", m.next) }

func (m *model) create() {
	v := &modelVolume{name: m.name(), snaps: map[string]*modelBytes{}}
	v.data = newModelBytes((1 + m.rng.IntN(modelMaxSize/512)) * 512)
	spec := VolumeSpec{Name: v.name, SizeBytes: uint64(v.data.len())}
	if m.rng.IntN(3) == 0 {
		spec.Chunking.FixedBytes = 64 << 10
	}
	if m.rng.IntN(5) == 0 {
		spec.Mode = ModeDurable
	}
	_, err := m.s.CreateVolume(context.Background(), spec)
	m.check(err)
	m.vols = append(m.vols, v)
}

func (m *model) step() {
	ctx := context.Background()
	v := m.pick()
	k := m.rng.IntN(100)
	m.t.Logf("step %d on %s (%d B, %d snapshots)", k, v.name, v.data.len(), len(v.snaps))
	switch {
	case k < 55:
		m.write(v)
	case k < 63:
		name := m.name()
		_, err := m.s.CreateSnapshot(ctx, v.name, name)
		m.check(err)
		v.snaps[name] = v.data.clone()
	case k < 68:
		for name := range v.snaps {
			m.check(m.s.DeleteSnapshot(ctx, v.name, name))
			delete(v.snaps, name)
			break
		}
	case k < 73 && len(m.vols) < 6:
		c := &modelVolume{name: m.name(), snaps: map[string]*modelBytes{}, data: v.data.clone()}
		from := ""
		for name, data := range v.snaps {
			from, c.data = name, data.clone()
			break
		}
		_, err := m.s.Clone(ctx, v.name, from, c.name)
		m.check(err)
		m.vols = append(m.vols, c)
	case k < 77:
		for name, data := range v.snaps {
			m.check(m.s.Rollback(ctx, v.name, name))
			v.data = data.clone()
			break
		}
	case k < 81:
		m.resize(v)
	case k < 84 && len(m.vols) > 1:
		m.delete(v)
	case k < 86 && len(m.vols) < 6:
		m.create()
	case k < 88:
		settleTest(m.t, m.s)
		m.audit()
		m.auditOnline(true)
	case k < 89:
		m.auditOnline(false)
		m.collect()
		m.s.indexer.blind.Store(!m.s.indexer.blind.Load()) // from here on, or from here on not, nothing is looked for
	case k < 90:
		m.check(m.s.RebuildIndex())
	case k < 94:
		m.reopen()
	default:
		m.verify(v)
	}
}

// write lets four clients write, trim, zero and read at once, each in its own part of the volume, at any alignment of a sector.
func (m *model) write(v *modelVolume) {
	d := deviceTest(m.t, m.s, v.name, "")
	defer d.Close()
	const clients = 4
	var wg sync.WaitGroup
	for c := range clients {
		lo := v.data.len() / 512 * c / clients * 512
		hi := v.data.len() / 512 * (c + 1) / clients * 512
		seed := m.rng.Uint64()
		wg.Go(func() { m.client(d, v.data, lo, hi, rand.New(rand.NewPCG(seed, uint64(c)))) })
	}
	wg.Wait()
}

func (m *model) client(d *Device, data *modelBytes, lo, hi int, rng *rand.Rand) {
	ctx := context.Background()
	fail := func(err error) bool {
		if err != nil {
			m.t.Errorf("client: %v", err)
		}
		return err != nil
	}
	for range 3 + rng.IntN(12) {
		if hi-lo < block.SectorSize {
			return
		}
		off, n := clientRange(rng, lo, hi)
		r := block.Range{Off: uint64(off), Len: uint64(n)}
		switch k := rng.IntN(20); {
		case k == 0:
			if fail(d.Zero(ctx, r, false, rng.IntN(2) == 0)) {
				return
			}
			data.clear(off, off+n)
		case k == 1:
			if fail(d.Trim(ctx, r, false)) {
				return
			}
			first, last := wholeBlocks(r.Off, r.Len, d.Size())
			if last > first {
				data.clear(int(first*block.Size), int(min(last*block.Size, uint64(data.len()))))
			}
		case k == 2:
			if fail(d.Flush(ctx)) {
				return
			}
		case k < 6:
			got := make([]byte, n)
			if _, err := d.ReadAt(ctx, got, r.Off, nil); fail(err) {
				return
			}
			want := data.read(off, n)
			if i := firstDiff(got, want); i >= 0 {
				m.t.Errorf("client read at %d: byte %d is %02x, want %02x", off, off+i, got[i], want[i])
				return
			}
		default:
			p := modelData(rng, n)
			batch := []block.Write{{Off: r.Off, Data: p}}
			err := d.TryWrite(batch, false)
			if errors.Is(err, block.ErrWouldBlock) {
				err = d.Write(ctx, batch, rng.IntN(10) == 0)
			}
			if fail(err) {
				return
			}
			data.write(off, p)
		}
	}
}

// clientRange picks a range in [lo, hi): small and aligned, odd, or large.
func clientRange(rng *rand.Rand, lo, hi int) (off, n int) {
	switch rng.IntN(4) {
	case 0:
		n = (1 + rng.IntN(20)) * 512
	case 1:
		n = 4096 * (1 + rng.IntN(4))
	case 2:
		n = 512 * (1 + rng.IntN(8000))
	default:
		n = 4096
	}
	n = min(n, hi-lo)
	off = lo + rng.IntN((hi-lo-n)/512+1)*512
	if aligned := off &^ 4095; rng.IntN(3) > 0 && aligned >= lo {
		off = aligned
	}
	return off, n
}

// modelData is random, or one of a few contents, so that chunks meet again.
func modelData(rng *rand.Rand, n int) []byte {
	switch rng.IntN(4) {
	case 0:
		return make([]byte, n)
	case 1:
		return guestData(rand.New(rand.NewPCG(7, uint64(rng.IntN(3)))), n)
	}
	return guestData(rng, n)
}

func (m *model) resize(v *modelVolume) {
	size := (1 + m.rng.IntN(modelMaxSize/512)) * 512
	m.check(m.s.ResizeVolume(context.Background(), v.name, uint64(size)))
	v.data.resize(size)
}

func (m *model) delete(v *modelVolume) {
	m.check(m.s.DeleteVolume(context.Background(), v.name))
	for i := range m.vols {
		if m.vols[i] == v {
			m.vols = append(m.vols[:i], m.vols[i+1:]...)
			return
		}
	}
}

// auditOnline lets the engine's own audit, which runs beside everything else, find nothing; in small bitmaps, for several passes.
func (m *model) auditOnline(settled bool) {
	m.s.meta.Lock()
	m.s.c.NextChunk += 40_000 // ids have gaps after years
	m.s.meta.Unlock()
	r, err := m.s.Audit(context.Background(), nil)
	m.check(err)
	if !r.Passed() || r.Unreachable != 0 || r.WrongSegments != 0 || r.FilesKept != 0 {
		m.t.Fatalf("audit: %+v", r)
	}
	if st := m.s.Stats(); settled && (r.Chunks == 0) != (st.UniqueBytes == 0) {
		m.t.Fatalf("audit: %d chunks, %d B of them", r.Chunks, st.UniqueBytes)
	}
}

// collect pauses garbage collection, which a settle says, and collects.
func (m *model) collect() {
	ctx := context.Background()
	if m.rng.IntN(2) == 0 {
		_, err := m.s.PauseGC()
		m.check(err)
		if m.rng.IntN(2) == 0 {
			m.reopen()
		}
		if err := m.s.CollectGarbage(ctx, nil); !errors.Is(err, block.ErrInUse) {
			m.t.Fatalf("collecting while that is paused: %v", err)
		}
		_, err = m.s.ResumeGC()
		m.check(err)
	}
	m.check(m.s.CollectGarbage(ctx, nil))
	if st := m.s.GC(); st.WaitingFiles > 0 || len(st.PutOff) > 0 {
		m.t.Fatalf("after collecting: %+v", st)
	}
}

func (m *model) reopen() {
	m.check(m.s.Close())
	if m.rng.IntN(3) == 0 {
		m.t.Log("the metadata is lost")
		m.check(loseMeta(vfs.Default, m.opts.Dir))
	}
	if m.rng.IntN(4) == 0 {
		m.t.Log("the index is lost")
		m.check(os.RemoveAll(filepath.Join(m.opts.Dir, indexDir)))
	}
	m.opts.LogCapBytes = int64(64+m.rng.IntN(64)) << 20
	m.s = openTest(m.t, m.opts)
}

func (m *model) verifyAll() {
	for _, v := range m.vols {
		m.verify(v)
	}
}

func (m *model) verify(v *modelVolume) {
	m.verifyDevice(v.name, "", v.data)
	for name, data := range v.snaps {
		m.verifyDevice(v.name, name, data)
	}
}

func (m *model) verifyDevice(volume, snapshot string, want *modelBytes) {
	d := deviceTest(m.t, m.s, volume, snapshot)
	defer d.Close()
	if d.Size() != uint64(want.len()) {
		m.t.Fatalf("%s@%s has %d bytes, want %d", volume, snapshot, d.Size(), want.len())
	}
	if at := want.differs(m.t, d); at >= 0 {
		m.t.Fatalf("%s@%s holds other bytes than were written, from %d on", volume, snapshot, at)
	}
}

// deleteAll removes every volume and sees that nothing is left.
func (m *model) deleteAll() {
	for len(m.vols) > 0 {
		m.delete(m.vols[m.rng.IntN(len(m.vols))])
	}
	settleTest(m.t, m.s)
	m.audit()
	st := m.s.Stats()
	if st.UniqueBytes != 0 || st.SharedBytes != 0 || st.NonZeroBytes != 0 || len(m.s.nodes) != 0 {
		m.t.Fatalf("after deleting everything: unique %d, shared %d, non-zero %d bytes, %d nodes", st.UniqueBytes, st.SharedBytes, st.NonZeroBytes, len(m.s.nodes))
	}
}
