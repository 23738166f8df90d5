package blockstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// diskOptions are those of a store on four disks, of which any may be lost. What background work reports is expected where disks are lost.
func diskOptions(t testing.TB, root string, shape erasure.Shape) Options {
	opts := testOptions(t, nil, filepath.Join(root, "a"))
	opts.Stripe, opts.KeepBytesPerSecond, opts.LogCopies = shape, 1<<40, 3
	for _, d := range []string{"b", "c", "d"} {
		opts.Disks = append(opts.Disks, filepath.Join(root, d))
	}
	opts.Events.BackgroundError = func(task string, err error) { t.Logf("background %s: %v", task, err) }
	opts.Events.Disk = func(dir, state string, err error) { t.Logf("disk %s: %s %v", dir, state, err) }
	return opts
}

func awaitHealthy(t testing.TB, s *Store) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("%+v", s.Redundancy())
		}
	}()
	waitFor(t, "redundancy of everything", func() bool {
		s.keeper.kick()
		r := s.Redundancy()
		return !r.Degraded() && r.SegmentsWaiting == 0
	})
}

// fillDisks writes what is flushed, and a part of it destaged and striped, and returns what the volume holds.
func fillDisks(t testing.TB, s *Store) (*Device, []byte) {
	t.Helper()
	d := createTest(t, s, "a", 64<<20)
	data := guestData(rand.New(rand.NewPCG(3, 3)), 24<<20)
	for off := 0; off < len(data); off += 1 << 20 {
		writeTest(t, d, uint64(off), data[off:off+1<<20])
	}
	settleTest(t, s)
	fresh := guestData(rand.New(rand.NewPCG(4, 4)), 2<<20)
	copy(data[5<<20:], fresh)
	writeTest(t, d, 5<<20, fresh) // in the log alone
	if err := d.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	return d, data
}

// TestEachDiskMayBeLost loses each disk in turn while the store runs and before it starts, the data directory included, and replaces it.
func TestEachDiskMayBeLost(t *testing.T) {
	t.Parallel() // it waits for the keeper
	root := t.TempDir()
	opts := diskOptions(t, root, erasure.Shape{Data: 3, Parity: 1})
	s := openTest(t, opts)
	_, data := fillDisks(t, s)
	for i, lost := range []string{"c", "b", "a", "d"} {
		path := filepath.Join(root, lost)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if i == 1 { // one that is lost while nobody looks
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
		s = openTest(t, opts)
		if i != 1 {
			awaitHealthy(t, s) // what was open is sealed and striped now
			if lost != "a" {
				waitFor(t, "the disk is gone, whatever the store makes there meanwhile", func() bool { return os.RemoveAll(path) == nil })
			}
		}
		d := deviceTest(t, s, "a", "")
		expect(t, d, 0, data)
		more := guestData(rand.New(rand.NewPCG(uint64(i), 5)), 1<<20)
		copy(data[uint64(i)<<20:], more)
		writeTest(t, d, uint64(i)<<20, more)
		if err := d.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil && lost != "a" {
			t.Fatal(err)
		}
		if lost == "a" {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(context.Background(), opts); !errors.Is(err, block.ErrNotFound) || !strings.Contains(err.Error(), "restore-data-dir") {
				t.Fatalf("open without the data directory: %v", err)
			}
			again := opts
			again.RestoreDataDir = true
			s = openTest(t, again)
		} else {
			s = openTest(t, opts)
			if r := s.Redundancy(); !r.Degraded() {
				t.Fatalf("without %s: %+v", lost, r)
			}
			expect(t, deviceTest(t, s, "a", ""), 0, data)
			if err := s.ReplaceDisk(path, path); err != nil {
				t.Fatal(err)
			}
		}
		expect(t, deviceTest(t, s, "a", ""), 0, data)
		awaitHealthy(t, s)
		if st := scrubTest(t, s, true); st.Damaged > 0 {
			t.Fatalf("after %s was replaced: %+v", lost, st)
		}
	}
	if r := s.Redundancy(); r.Degraded() {
		t.Fatalf("%+v", r)
	}
}

// TestDamageOnDisksIsMended damages shards and copies of the log on all disks, one at each place: reads give what was written, a scrub mends all.
func TestDamageOnDisksIsMended(t *testing.T) {
	root := t.TempDir()
	opts := diskOptions(t, root, erasure.Shape{Data: 2, Parity: 2})
	s := openTest(t, opts)
	_, data := fillDisks(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	awaitHealthy(t, s)
	shards, err := filepath.Glob(filepath.Join(root, "*", "segments", "*", "*.shard"))
	if err != nil || len(shards) < 8 {
		t.Fatal(shards, err)
	}
	seen := map[string]int{}
	for _, path := range shards {
		segment, _, _ := strings.Cut(filepath.Base(path), ".2+2.")
		if seen[segment]++; seen[segment] > 2 {
			continue
		}
		change(t, path, 8192, func(b []byte) { b[17%len(b)] ^= 4 })
	}
	d := deviceTest(t, s, "a", "")
	expect(t, d, 0, data)
	st := scrubTest(t, s, false)
	if st.Damaged != st.Mended {
		t.Fatalf("%+v", st)
	}
	if got := s.Stats(); got.DamageFound == 0 || got.DamageLost > 0 || got.DamageFound != got.DamageMended {
		t.Fatalf("%+v", got)
	}
	if st := scrubTest(t, s, true); st.Damaged > 0 {
		t.Fatalf("a second scrub finds %+v", st)
	}
	expect(t, d, 0, data)
}

// TestShapesOfAStore takes a store from one disk to stripes, to others, and back to one disk.
func TestShapesOfAStore(t *testing.T) {
	root := t.TempDir()
	opts := diskOptions(t, root, erasure.Shape{})
	opts.Disks, opts.LogCopies, opts.Parity = nil, 0, erasure.Default
	s := openTest(t, opts)
	_, data := fillDisks(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	guardedTest(t, s)
	for _, shape := range []erasure.Shape{{Data: 3, Parity: 1}, {Data: 2, Parity: 1}, {Data: 1, Parity: 1}, {}} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		several := diskOptions(t, root, shape)
		several.LogCopies, several.Parity = 0, erasure.Default
		s = openTest(t, several)
		expect(t, deviceTest(t, s, "a", ""), 0, data)
		awaitHealthy(t, s)
		waitFor(t, "no sidecars beside shards", func() bool {
			all, _ := filepath.Glob(filepath.Join(root, "a", "segments", "*", "*.par"))
			return shape.None() || len(all) == 0
		})
		expect(t, deviceTest(t, s, "a", ""), 0, data)
	}
	guardedTest(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	expect(t, deviceTest(t, s, "a", ""), 0, data)
}

// TestStaleDiskComesBack lets a disk vanish while the store runs and come back as it was, after much was written and deleted without it.
func TestStaleDiskComesBack(t *testing.T) {
	root := t.TempDir()
	opts := diskOptions(t, root, erasure.Shape{Data: 3, Parity: 1})
	s := openTest(t, opts)
	d, data := fillDisks(t, s)
	away := filepath.Join(root, "c")
	if err := os.Rename(away, away+"-away"); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		more := guestData(rand.New(rand.NewPCG(uint64(i), 6)), 8<<20)
		copy(data[uint64(i)*8<<20:], more)
		for off := 0; off < len(more); off += 1 << 20 {
			writeTest(t, d, uint64(i)*8<<20+uint64(off), more[off:off+1<<20])
		}
		settleTest(t, s)
	}
	if err := d.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	expect(t, d, 0, data)
	if r := s.Redundancy(); !r.Degraded() {
		t.Fatalf("%+v", r)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away+"-away", away); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	expect(t, deviceTest(t, s, "a", ""), 0, data)
	awaitHealthy(t, s)
	if st := scrubTest(t, s, true); st.Damaged > 0 {
		t.Fatalf("%+v", st)
	}
	expect(t, deviceTest(t, s, "a", ""), 0, data)
}

// TestVanishedDiskIsTakenBack lets a disk vanish and come back while the store runs. It is taken back without anybody's word, what it has is kept, what it lacks is made, what was deleted meanwhile counts for nothing, and an empty
// directory in its place is left alone.
func TestVanishedDiskIsTakenBack(t *testing.T) {
	t.Parallel() // it waits for the keeper, which leaves alone for a while what failed
	root := t.TempDir()
	opts := diskOptions(t, root, erasure.Shape{Data: 3, Parity: 1})
	s := openTest(t, opts)
	_, data := fillDisks(t, s)
	gone := createTest(t, s, "gone", 32<<20)
	writeTest(t, gone, 0, guestData(rand.New(rand.NewPCG(8, 8)), 16<<20))
	settleTest(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts) // what was open is sealed
	d := deviceTest(t, s, "a", "")
	awaitHealthy(t, s)
	away := filepath.Join(root, "c")
	if err := os.Rename(away, away+"-away"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the loss to be noticed", func() bool { s.keeper.kick(); r := s.Redundancy(); return r.Degraded() })
	if err := os.MkdirAll(filepath.Join(away, "segments"), 0o700); err != nil { // as a mount point is
		t.Fatal(err)
	}
	if err := s.DeleteVolume(context.Background(), "gone"); err != nil {
		t.Fatal(err)
	}
	more := guestData(rand.New(rand.NewPCG(6, 6)), 8<<20)
	copy(data[8<<20:], more)
	writeTest(t, d, 8<<20, more)
	settleTest(t, s)
	for range 3 {
		s.keeper.kick()
	}
	if r := s.Redundancy(); !r.Degraded() {
		t.Fatalf("an empty directory is taken for the disk: %+v", r)
	}
	if err := os.RemoveAll(away); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away+"-away", away); err != nil {
		t.Fatal(err)
	}
	shards, err := filepath.Glob(filepath.Join(away, "segments", "*", "*.shard"))
	if err != nil || len(shards) == 0 {
		t.Fatal(shards, err)
	}
	was := map[string]os.FileInfo{}
	for _, path := range shards {
		if was[path], err = os.Stat(path); err != nil {
			t.Fatal(err)
		}
	}
	awaitHealthy(t, s)
	kept := 0
	for path, info := range was {
		now, err := os.Stat(path)
		if err == nil && (!os.SameFile(info, now) || !now.ModTime().Equal(info.ModTime())) {
			t.Errorf("%s was made anew", path)
		}
		if err == nil {
			kept++
		}
	}
	if kept == 0 {
		t.Error("no shard was kept")
	}
	if st := scrubTest(t, s, true); st.Damaged > 0 {
		t.Fatalf("%+v", st)
	}
	expect(t, d, 0, data)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	awaitHealthy(t, s)
	expect(t, deviceTest(t, s, "a", ""), 0, data)
}

// TestSecondCopiesStayOffAMountPoint: where the last disk is not mounted, second copies go to another one, and not into the empty directory.
func TestSecondCopiesStayOffAMountPoint(t *testing.T) {
	root := t.TempDir()
	opts := diskOptions(t, root, erasure.Shape{Data: 2, Parity: 1})
	s := openTest(t, opts)
	if got := s.secondDir(); got != filepath.Join(root, "d") {
		t.Errorf("with all disks they go to %s", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	last := filepath.Join(root, "d")
	if err := errors.Join(os.Rename(last, last+"-away"), os.Mkdir(last, 0o700)); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	if got := s.secondDir(); got != filepath.Join(root, "c") {
		t.Errorf("without the last disk they go to %s", got)
	}
}

// TestFailingDiskIsNotTakenBack: a disk that fell out and was never gone stays out until somebody says otherwise.
func TestFailingDiskIsNotTakenBack(t *testing.T) {
	t.Parallel() // it waits
	root := t.TempDir()
	opts := diskOptions(t, root, erasure.Shape{Data: 3, Parity: 1})
	s := openTest(t, opts)
	fillDisks(t, s)
	disk := filepath.Join(root, "c")
	label := filepath.Join(disk, "segments", "members")
	old, err := os.ReadFile(label)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts) // whose labels are newer
	awaitHealthy(t, s)
	if err := os.WriteFile(label, old, 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the directory to fall out", func() bool {
		s.keeper.kick()
		out, back := s.stripes.Returned(filepath.Join(disk, "segments"))
		return out && back
	})
	for end := time.Now().Add(2 * keeperTick); time.Now().Before(end); time.Sleep(keeperTick / 20) { // a rule that is broken shows at the first or second look
		if r := s.Redundancy(); !r.Degraded() {
			t.Fatalf("%+v", r)
		}
	}
	if err := s.ReplaceDisk(disk, disk); err != nil {
		t.Fatal(err)
	}
	awaitHealthy(t, s)
}

// TestStripedSegmentsAreGivenBack: when all that lives in striped segments is gone, an audit lets their shards go from every disk, and nothing else does.
func TestStripedSegmentsAreGivenBack(t *testing.T) {
	root := t.TempDir()
	opts := diskOptions(t, root, erasure.Shape{Data: 3, Parity: 1})
	s := openTest(t, opts)
	fillDisks(t, s)
	settleTest(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts) // what was open is sealed
	awaitHealthy(t, s)
	sealed := map[string]bool{}
	for _, r := range s.segments.all() {
		if r.State == segmentSealed && !isMetadata(&r) {
			sealed[filepath.Base(r.Placement[0].Key)] = true
		}
	}
	left := func() (n int) {
		files, err := filepath.Glob(filepath.Join(root, "*", "segments", "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			for key := range sealed {
				if strings.HasPrefix(filepath.Base(f), strings.TrimSuffix(key, filepath.Ext(key))) {
					n++
				}
			}
		}
		return n
	}
	if n := left(); len(sealed) == 0 || n < 4*len(sealed) {
		t.Fatalf("%d segments are sealed, in %d files", len(sealed), n)
	}
	if err := s.DeleteVolume(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
	if n := left(); n > 0 {
		t.Errorf("%d files are left of %d segments in which nothing lives", n, len(sealed))
	}
	if st := s.GC(); st.WaitingFiles > 0 || st.SegmentsFreed < uint64(len(sealed)) || st.Audit == nil || st.Audit.FilesProven == 0 {
		t.Errorf("%+v", st)
	}
	awaitHealthy(t, s)
}
