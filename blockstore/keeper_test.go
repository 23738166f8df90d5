package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// damages gathers what a store reports.
type damages struct {
	mu  sync.Mutex
	all []Damage
}

func (d *damages) add(x Damage) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = append(d.all, x)
}

// keptOptions are testOptions with parity and a budget that no test waits for. Corruption is expected where it cannot be mended.
func keptOptions(t testing.TB, fs vfs.FS, dir string) (Options, *damages) {
	opts, d := testOptions(t, fs, dir), &damages{}
	opts.Parity, opts.KeepBytesPerSecond = erasure.Default, 1<<40
	opts.Events.Damage = d.add
	return opts, d
}

// waitFor polls until a condition holds.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not in time", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// guardedTest waits until every sealed segment has a sidecar.
func guardedTest(t testing.TB, s *Store) {
	t.Helper()
	s.keeper.kick()
	waitFor(t, "sidecars of all sealed segments", func() bool {
		s.keeper.kick()
		st := s.Stats()
		return st.UnguardedBytes == 0 && st.GuardedBytes > 0
	})
}

// sealedStore returns a store with sealed segments, their sidecars, and the content of volume a.
func sealedStore(t testing.TB, opts Options, mib int) (*Store, *Device, []byte) {
	t.Helper()
	s := openTest(t, opts)
	d := createTest(t, s, "a", uint64(mib+16)<<20)
	rng := rand.New(rand.NewPCG(7, 7))
	data := make([]byte, mib<<20)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	for off := 0; off < len(data); off += 1 << 20 {
		writeTest(t, d, uint64(off), data[off:off+1<<20])
	}
	settleTest(t, s)
	// What is open now is sealed by the next start.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	guardedTest(t, s)
	return s, deviceTest(t, s, "a", ""), data
}

func segmentFiles(t testing.TB, dir, suffix string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "segments", "*", "*"+suffix))
	if err != nil || len(all) == 0 {
		t.Fatalf("files %s: %v, %v", suffix, all, err)
	}
	return all
}

// change overwrites a part of a file in place, as a device that forgets does.
func change(t testing.TB, path string, off int64, f func(b []byte)) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b := make([]byte, 1)
	if st, err := file.Stat(); err == nil && st.Size()-off >= 4096 {
		b = make([]byte, 4096)
	}
	if _, err := file.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	f(b)
	if _, err := file.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func scrubTest(t testing.TB, s *Store, findOnly bool) ScrubStatus {
	t.Helper()
	if _, err := s.StartScrub(findOnly); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the scrub", func() bool { return s.Scrub().State == ScrubDone })
	return s.Scrub()
}

func TestSidecarsFollowTheirSegments(t *testing.T) {
	opts, _ := keptOptions(t, vfs.Default, t.TempDir())
	s, _, data := sealedStore(t, opts, 24)
	st := s.Stats()
	if st.ParityBytes < st.GuardedBytes/8 || st.ParityBytes > st.GuardedBytes/6 {
		t.Errorf("%d B of parity for %d B", st.ParityBytes, st.GuardedBytes)
	}
	total := int64(0)
	for _, path := range segmentFiles(t, opts.Dir, ".par") {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		total += fi.Size()
	}
	if uint64(total) != st.ParityBytes {
		t.Errorf("%d B of sidecars, %d by the rows", total, st.ParityBytes)
	}
	// Another shape, and none at all.
	for _, shape := range []erasure.Shape{{Data: 4, Parity: 3}, {}} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		opts.Parity = shape
		s = openTest(t, opts)
		waitFor(t, "sidecars of the shape "+shape.String(), func() bool {
			for _, r := range s.segments.all() {
				if r.State == segmentSealed && r.Parity != shape {
					return false
				}
			}
			return true
		})
		if shape.None() {
			waitFor(t, "the end of the sidecars", func() bool {
				left, _ := filepath.Glob(filepath.Join(opts.Dir, "segments", "*", "*.par"))
				return len(left) == 0
			})
		} else if n := scrubTest(t, s, false); n.Damaged != 0 {
			t.Errorf("%v: %+v", shape, n)
		}
		expect(t, deviceTest(t, s, "a", ""), 0, data)
	}
	// What goes takes its sidecar along.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	opts.Parity = erasure.Default
	s = openTest(t, opts)
	guardedTest(t, s)
	if err := s.DeleteVolume(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
	settleTest(t, s)
	live := map[string]bool{}
	for _, r := range s.segments.all() {
		live[r.Placement[0].Key[:25]] = true
	}
	left, _ := filepath.Glob(filepath.Join(opts.Dir, "segments", "*", "*.par"))
	for _, path := range left {
		if !live[filepath.Base(path)[:25]] {
			t.Errorf("%s outlived its segment", path)
		}
	}
}

// TestInlineRepair damages frames under an open store: readers get the right bytes at once, and the segments are mended without a restart.
func TestInlineRepair(t *testing.T) {
	opts, found := keptOptions(t, vfs.Default, t.TempDir())
	opts.MemoryBytes = 64 << 20
	s, d, data := sealedStore(t, opts, 24)
	good := map[string][]byte{}
	rng := rand.New(rand.NewPCG(8, 8))
	for _, path := range segmentFiles(t, opts.Dir, ".seg") {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		good[path] = b
		if len(b) < 1<<20 {
			continue
		}
		stripe := rng.IntN(len(b) / 16 / 4096)
		change(t, path, int64(stripe*4096), func(b []byte) { clear(b) }) // with luck the header of the segment
		change(t, path, int64((stripe+5)*4096+len(b)/2&^4095), func(b []byte) { b[rng.IntN(len(b))] ^= 1 })
	}
	expect(t, d, 0, data)
	s.keeper.kick()
	waitFor(t, "repair", func() bool { return !s.keeper.repairing() })
	expect(t, d, 0, data)
	scrubTest(t, s, false)
	for path, want := range good {
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s is not as it was sealed: %v", path, err)
		}
	}
	st := s.Stats()
	if st.InlineRepairs == 0 || st.DamageMended == 0 || st.DamageLost != 0 || st.Corruptions != 0 || len(found.all) == 0 {
		t.Errorf("inline %d, mended %d, lost %d, corruptions %d, events %d", st.InlineRepairs, st.DamageMended, st.DamageLost, st.Corruptions, len(found.all))
	}
}

// TestScatteredDamage is 1,000 flips of single bytes and 200 lost sectors over sealed segments: all are found, and all within reach are mended.
func TestScatteredDamage(t *testing.T) {
	t.Parallel() // it waits for the disk
	opts, _ := keptOptions(t, vfs.Default, t.TempDir())
	opts.LogCapBytes = 256 << 20
	var mu sync.Mutex
	var corrupt []error
	opts.Events.Corruption = func(err error) { mu.Lock(); corrupt = append(corrupt, err); mu.Unlock() }
	mib := 192
	if testing.Short() {
		mib = 48
	}
	s, d, data := sealedStore(t, opts, mib)
	rng := rand.New(rand.NewPCG(9, 9))
	files := segmentFiles(t, opts.Dir, ".seg")
	good, hit := map[string][]byte{}, map[string]map[int64]bool{}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		good[path], hit[path] = b, map[int64]bool{}
	}
	// A file is hit in proportion to its length.
	place := func() (string, int64) {
		total := 0
		for _, path := range files {
			total += len(good[path])
		}
		at := rng.IntN(total)
		for _, path := range files {
			if at < len(good[path]) {
				return path, int64(at)
			}
			at -= len(good[path])
		}
		panic("no place")
	}
	for range 1000 {
		path, at := place()
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		b := []byte{0}
		_, err1 := file.ReadAt(b, at)
		b[0] ^= byte(1 + rng.IntN(255))
		_, err2 := file.WriteAt(b, at)
		if err := errors.Join(err1, err2, file.Close()); err != nil {
			t.Fatal(err)
		}
		hit[path][at/4096] = true
	}
	for range 200 {
		path, at := place()
		change(t, path, at&^4095, func(b []byte) { clear(b) })
		hit[path][at/4096] = true
	}
	damaged, beyond := uint64(0), map[string]bool{}
	for path, columns := range hit {
		now, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		n := (len(now) + 4095) / 4096
		stripes := int64((n + 15) / 16)
		per := map[int64]int{}
		for c := range columns {
			lo, hi := c*4096, min(int64(len(now)), (c+1)*4096)
			if !bytes.Equal(now[lo:hi], good[path][lo:hi]) { // two flips of one byte may undo each other, and a sector may have been zeroes
				damaged++
				per[c%stripes]++
			}
		}
		for _, k := range per {
			if k > 2 {
				beyond[path] = true
			}
		}
	}
	scrubTest(t, s, false)
	st := s.Stats()
	if st.DamageFound != damaged {
		t.Errorf("found %d damaged columns of %d", st.DamageFound, damaged)
	}
	t.Logf("%d columns damaged in %d segments, found %d, mended %d, lost %d; %d segments hit beyond reach", damaged, len(files), st.DamageFound, st.DamageMended, st.DamageLost, len(beyond))
	for path, want := range good {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if beyond[path] == bytes.Equal(b, want) {
			t.Errorf("%s: beyond reach %v, but mended %v", path, beyond[path], !beyond[path])
		}
	}
	// Nothing wrong is ever given out.
	buf, lost := make([]byte, 4096), 0
	for off := 0; off < len(data); off += len(buf) {
		if _, err := d.ReadAt(context.Background(), buf, uint64(off), nil); err != nil {
			lost++
		} else if !bytes.Equal(buf, data[off:off+len(buf)]) {
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	if (lost > 0) != (len(beyond) > 0 && len(corrupt) > 0) && len(beyond) == 0 {
		t.Errorf("%d blocks cannot be read, %d segments are beyond reach", lost, len(beyond))
	}
}

// TestBeyondReach damages more columns of a stripe than parity has: exactly what needs them is EIO, the places are listed, everything else reads.
func TestBeyondReach(t *testing.T) {
	opts, found := keptOptions(t, vfs.Default, t.TempDir())
	opts.Events.Corruption = func(error) {}
	s, d, data := sealedStore(t, opts, 24)
	if _, err := s.CreateSnapshot(context.Background(), "a", "snap"); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
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
	if n := scrubTest(t, s, true); n.Damaged != 1 || n.Mended != 0 {
		t.Errorf("a scrub that only looks: %+v", n)
	}
	if n := scrubTest(t, s, false); n.Damaged != 1 || n.Mended != 0 {
		t.Errorf("scrub: %+v", n)
	}
	last := found.all[len(found.all)-1]
	if last.Mended || last.Lost != 3 || last.Chunks == 0 || len(last.Places) == 0 {
		t.Fatalf("%+v", last)
	}
	listed := map[uint64]bool{}
	both := map[string]bool{}
	for _, p := range last.Places {
		both[p.Snapshot] = true
		for off := p.Offset / 4096; off <= (p.Offset+p.Length-1)/4096; off++ {
			listed[off] = true
		}
	}
	if !both[""] || !both["snap"] {
		t.Errorf("places of volume and snapshot: %v", last.Places)
	}
	buf, failed := make([]byte, 4096), 0
	for off := 0; off < len(data); off += len(buf) {
		_, err := d.ReadAt(context.Background(), buf, uint64(off), nil)
		if (err != nil) != listed[uint64(off/4096)] {
			t.Fatalf("block at %d: listed %v, %v", off, listed[uint64(off/4096)], err)
		}
		if err != nil {
			failed++
		} else if !bytes.Equal(buf, data[off:off+len(buf)]) {
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	t.Logf("%d blocks cannot be read, %d places", failed, len(last.Places))
	// The same content again is stored anew, and heals.
	writeTest(t, d, 0, data)
	settleTest(t, s)
	expect(t, d, 0, data)
}

// TestScrubGoesOn cuts a scrub short by a restart, a pause and a cancel.
func TestScrubGoesOn(t *testing.T) {
	opts, _ := keptOptions(t, vfs.Default, t.TempDir())
	s, _, _ := sealedStore(t, opts, 24)
	if _, err := s.PauseScrub(); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("pause of nothing: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	opts.KeepBytesPerSecond = 8 << 20 // the second segment, of 24 MiB, takes seconds
	s = openTest(t, opts)
	if _, err := s.StartScrub(false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.StartScrub(false); !errors.Is(err, block.ErrInUse) {
		t.Errorf("a second scrub: %v", err)
	}
	waitFor(t, "a first segment", func() bool { return s.Scrub().SegmentsDone > 0 })
	paused, err := s.PauseScrub()
	if err != nil || paused.State != ScrubPaused {
		t.Fatalf("%+v, %v", paused, err)
	}
	if err := s.Close(); err != nil { // waits for the segment that it is at
		t.Fatal(err)
	}
	before := s.Scrub()
	opts.KeepBytesPerSecond = 1 << 40
	s = openTest(t, opts)
	waitFor(t, "the record of the scrub", func() bool { return s.Scrub().State == ScrubPaused })
	if now := s.Scrub(); now.Run != before.Run || now.SegmentsDone != before.SegmentsDone {
		t.Errorf("%+v after %+v", now, before)
	}
	sealed := uint64(0)
	for _, r := range s.segments.all() {
		if r.State == segmentSealed && r.Placement[0].VerifiedAt < before.StartedAt.UnixNano() {
			sealed++
		}
	}
	if _, err := s.ResumeScrub(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end", func() bool { return s.Scrub().State == ScrubDone })
	if now := s.Scrub(); now.SegmentsDone != before.SegmentsDone+sealed || now.Damaged != 0 {
		t.Errorf("%+v: want %d segments and those done before, %d", now, sealed, before.SegmentsDone)
	}
	if n, err := s.StartScrub(false); err != nil || n.Run != before.Run+1 {
		t.Errorf("%+v, %v", n, err)
	}
	if n, err := s.CancelScrub(); err != nil && s.Scrub().State != ScrubDone || err == nil && n.State != ScrubCancelled {
		t.Errorf("%+v, %v", n, err)
	}
}
