package blockstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// explainTest makes volumes of 64 KiB chunks whose every byte is known: a has data twice, zeroes, a snapshot and what was overwritten since; b has some of a's data and its own; c is a clone of a's snapshot.
func explainTest(t *testing.T) *Store {
	const unit = 64 << 10
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	fixed := func(name string) *Device {
		t.Helper()
		if _, err := s.CreateVolume(context.Background(), VolumeSpec{Name: name, SizeBytes: 8 << 20, Chunking: Chunking{FixedBytes: unit}}); err != nil {
			t.Fatal(err)
		}
		return deviceTest(t, s, name, "")
	}
	data := guestData(rand.New(rand.NewPCG(4, 4)), 40*unit)
	part := func(from, n int) []byte { return data[from*unit : (from+n)*unit] }
	a := fixed("a")
	writeTest(t, a, 0, part(0, 16))
	writeTest(t, a, 20*unit, part(0, 4))                                                                       // inside: 4 chunks
	if err := a.Zero(context.Background(), block.Range{Off: 30 * unit, Len: unit}, false, false); err != nil { // no extent, as nothing was there
		t.Fatal(err)
	}
	settleTest(t, s)
	if _, err := s.CreateSnapshot(context.Background(), "a", "monday"); err != nil {
		t.Fatal(err)
	}
	writeTest(t, a, 8*unit, part(20, 2))             // the snapshot alone has chunks 8 and 9 now, with the clone
	writeTest(t, a, 4*unit+4096, part(24, 1)[:4096]) // leaves two pieces of chunk 4
	b := fixed("b")
	writeTest(t, b, unit, part(0, 2)) // across: 2 chunks
	writeTest(t, b, 10*unit, part(30, 3))
	if _, err := s.Clone(context.Background(), "a", "monday", "c"); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
	return s
}

// Every byte of a known store is under the right heading, of all volumes and of each.
func TestExplainNamesEveryByte(t *testing.T) {
	s := explainTest(t)
	const unit = 64 << 10
	get := func(volume string) *Explanation {
		t.Helper()
		e, err := s.Explain(context.Background(), volume, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if e.SizeBytes != e.UnwrittenBytes+e.ZeroBytes+e.DamagedBytes+e.DataBytes || e.DataBytes != e.DedupInsideBytes+e.DedupAcrossBytes+e.ClonedBytes+e.FirstBytes || e.SampledOneIn != 1 {
			t.Errorf("%q does not add up: %+v", volume, e)
		}
		return e
	}
	want := func(what string, got, units, bytes uint64) {
		t.Helper()
		if got != units*unit+bytes {
			t.Errorf("%s: %d, want %d chunks of 64 KiB and %d B", what, got, units, bytes)
		}
	}
	a := get("a")
	want("a: data", a.DataBytes, 20, 0)
	want("a: inside", a.DedupInsideBytes, 4, 0)
	want("a: unwritten", a.UnwrittenBytes, 128-20, 0)
	// All but chunks 20 and 21 and the 4 KiB are in the clone; nothing of a's came by cloning. Of its data 4 KiB less than 14 chunks lie in these.
	want("a: across", a.DedupAcrossBytes, 13, 64<<10-4096)
	want("a: unique", a.Unique.RawBytes, 2, 4096)
	want("a: shared", a.Shared.RawBytes, 14, 0)
	want("a: only its snapshot", a.Snapshots.RawBytes, 0, 0)
	want("a: its snapshot and others", a.Elsewhere.RawBytes, 2, 0)
	want("a: dead in chunks that it needs", a.PartlyDeadBytes, 0, 4096) // that 4 KiB replaced
	b := get("b")
	want("b: data", b.DataBytes, 5, 0)
	want("b: across", b.DedupAcrossBytes, 2, 0)
	want("b: unique", b.Unique.RawBytes, 3, 0)
	want("b: dead in chunks that it needs", b.PartlyDeadBytes, 0, 0)
	c := get("c")
	want("c: cloned", c.ClonedBytes, 16, 0)
	want("c: inside", c.DedupInsideBytes, 4, 0)
	want("c: unique", c.Unique.RawBytes, 0, 0)

	all := get("")
	want("all: data", all.DataBytes, 45, 0)
	want("all: inside", all.DedupInsideBytes, 8, 0)
	want("all: across", all.DedupAcrossBytes, 2, 0)
	// Of the clone's 16 chunks, 8 and 9 are in no other head, but in a's snapshot: the clone is the first that has them now.
	want("all: cloned", all.ClonedBytes, 14, 0)
	want("all: shared", all.Shared.RawBytes, 16, 0)
	want("all: unique", all.Unique.RawBytes, 2+3, 4096)
	want("all: waiting", all.Waiting.RawBytes, 0, 0)
	st := s.Stats()
	if sum := all.Unique.RawBytes + all.Shared.RawBytes + all.Snapshots.RawBytes + all.Elsewhere.RawBytes + all.Waiting.RawBytes; sum != st.UniqueBytes {
		t.Errorf("chunks of %d B are under a heading, the store has %d B", sum, st.UniqueBytes)
	}
	stored := all.Unique.StoredBytes + all.Shared.StoredBytes + all.Snapshots.StoredBytes + all.Elsewhere.StoredBytes + all.Waiting.StoredBytes
	if off := int64(stored) - int64(st.StoredBytes); off > 0 || off < -64 { // divisions round down
		t.Errorf("%d B are stored by the headings, %d by the counters", stored, st.StoredBytes)
	}
	if len(all.PerVolume) != 3 || all.PerVolume[1].Name != "b" || all.PerVolume[1].OwnBytes != 3*unit || all.PerVolume[0].SharedBytes+all.PerVolume[0].OwnBytes+all.PerVolume[0].DedupInsideBytes != 20*unit {
		t.Errorf("table of volumes: %+v", all.PerVolume)
	}
}

// What only snapshots hold, and what waits after a delete, is told apart from what volumes need.
func TestExplainSnapshotsHold(t *testing.T) {
	s := explainTest(t)
	d := deviceTest(t, s, "b", "")
	if _, err := s.CreateSnapshot(context.Background(), "b", "old"); err != nil {
		t.Fatal(err)
	}
	if err := d.Trim(context.Background(), block.Range{Off: 0, Len: 8 << 20}, false); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
	e, err := s.Explain(context.Background(), "b", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e.DataBytes != 0 || e.Snapshots.RawBytes != 3*64<<10 || e.Elsewhere.RawBytes != 2*64<<10 || e.Unique.RawBytes != 0 || e.Snapshots.StoredBytes == 0 {
		t.Errorf("after a trim of all: %+v", e)
	}
}

// Beyond the memory of exact sets one chunk in some stands for all: the sums still hold, and the parts are near.
func TestExplainSamples(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", 16<<20)
	data := guestData(rand.New(rand.NewPCG(5, 5)), 8<<20)
	writeTest(t, d, 0, data)
	writeTest(t, d, 8<<20, data)
	settleTest(t, s)
	exact, err := s.Explain(context.Background(), "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.opts.explainShift = 2
	v, err := s.Explain(context.Background(), "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v.SampledOneIn != 4 || v.DataBytes != exact.DataBytes || v.DataBytes != v.DedupInsideBytes+v.DedupAcrossBytes+v.ClonedBytes+v.FirstBytes {
		t.Fatalf("sampled: %+v", v)
	}
	near := func(what string, got, want uint64) {
		if got < want*8/10 || got > want*12/10 {
			t.Errorf("%s: %d of a sample, %d of all", what, got, want)
		}
	}
	near("inside", v.DedupInsideBytes, exact.DedupInsideBytes)
	near("unique", v.Unique.RawBytes, exact.Unique.RawBytes)
}

// A survey ends with its context, and of what is not there it says so.
func TestExplainEnds(t *testing.T) {
	s := explainTest(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Explain(ctx, "", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := s.Explain(context.Background(), "nobody", nil, nil); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("no such volume: %v", err)
	}
	last := ExplainProgress{}
	if _, err := s.Explain(context.Background(), "", nil, func(p ExplainProgress) { last = p }); err != nil || last.DoneBytes == 0 || last.DoneBytes > last.TotalBytes {
		t.Errorf("progress ended at %+v, %v", last, err)
	}
}
