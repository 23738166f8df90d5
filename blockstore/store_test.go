package blockstore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// testOptions are small enough that a few megabytes of writes fill every structure.
func testOptions(t testing.TB, fs vfs.FS, dir string) Options {
	return Options{
		Keys: testKeys(),
		Dir:  dir, FS: fs, LogCapBytes: 64 << 20, LogFileBytes: 4 << 20, MemoryBytes: 96 << 20, ReserveBytes: 1,
		Events: Events{
			Corruption:      func(err error) { t.Errorf("corruption event: %v", err) },
			BackgroundError: func(task string, err error) { t.Errorf("background %s: %v", task, err) },
		},
	}
}

func openTest(t testing.TB, opts Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, block.ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

func createTest(t testing.TB, s *Store, name string, size uint64) *Device {
	t.Helper()
	if _, err := s.CreateVolume(context.Background(), VolumeSpec{Name: name, SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
	return deviceTest(t, s, name, "")
}

func deviceTest(t testing.TB, s *Store, name, snapshot string) *Device {
	t.Helper()
	d, err := s.OpenDevice(name, snapshot)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// guestData is about half compressible, as guests' data is.
func guestData(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for at := 0; at < n; at += 512 {
		end := min(n, at+512)
		half := (end - at) / 2
		for i := at; i < at+half; i++ {
			p[i] = byte(rng.Uint32())
		}
	}
	return p
}

func writeTest(t testing.TB, d *Device, off uint64, p []byte) {
	t.Helper()
	if err := d.Write(context.Background(), []block.Write{{Off: off, Data: p}}, false); err != nil {
		t.Fatal(err)
	}
}

func expect(t testing.TB, d *Device, off uint64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := d.ReadAt(context.Background(), got, off, nil); err != nil {
		t.Fatal(err)
	}
	if i := firstDiff(got, want); i >= 0 {
		t.Fatalf("byte %d is %02x, want %02x", off+uint64(i), got[i], want[i])
	}
}

func firstDiff(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func settleTest(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Settle(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
}

func TestWriteSettleReopenRead(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	s := openTest(t, opts)
	d := createTest(t, s, "a", 64<<20)
	data := guestData(rand.New(rand.NewPCG(1, 2)), 20<<20)
	for off := 0; off < len(data); off += 1 << 20 {
		writeTest(t, d, uint64(off), data[off:off+1<<20])
	}
	expect(t, d, 0, data)
	settleTest(t, s)
	expect(t, d, 0, data)
	st := s.Stats()
	if st.UndestagedBytes != 0 || st.NonZeroBytes != uint64(len(data)) || st.UniqueBytes != uint64(len(data)) {
		t.Fatalf("undestaged %d, non-zero %d, unique %d, want 0, %d, %d", st.UndestagedBytes, st.NonZeroBytes, st.UniqueBytes, len(data), len(data))
	}
	if st.StoredBytes > st.UniqueBytes*7/10 {
		t.Fatalf("stored %d of %d unique bytes that are half zeroes", st.StoredBytes, st.UniqueBytes)
	}
	// The tail stays in the log over a restart.
	writeTest(t, d, 5000, data[100:9000])
	copy(data[5000:], append([]byte(nil), data[100:9000]...))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	expect(t, deviceTest(t, s, "a", ""), 0, data)
}

func TestIdenticalVolumesShareChunks(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	data := guestData(rand.New(rand.NewPCG(3, 4)), 16<<20)
	for _, name := range []string{"a", "b"} {
		writeTest(t, createTest(t, s, name, 32<<20), 0, data)
		settleTest(t, s)
	}
	st := s.Stats()
	if st.UniqueBytes != uint64(len(data)) || st.SharedBytes != st.UniqueBytes || st.NonZeroBytes != 2*st.UniqueBytes {
		t.Fatalf("unique %d, shared %d, non-zero %d of two copies of %d bytes", st.UniqueBytes, st.SharedBytes, st.NonZeroBytes, len(data))
	}
	if err := s.DeleteVolume(context.Background(), "a"); !errors.Is(err, block.ErrInUse) {
		t.Fatalf("delete of an open volume: %v", err)
	}
}

func TestSnapshotCloneRollback(t *testing.T) {
	ctx := context.Background()
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "a", 8<<20)
	rng := rand.New(rand.NewPCG(5, 6))
	one, two := guestData(rng, 8<<20), guestData(rng, 1<<20)
	writeTest(t, d, 0, one)
	if _, err := s.CreateSnapshot(ctx, "a", "s1"); err != nil {
		t.Fatal(err)
	}
	writeTest(t, d, 1<<20, two)
	expect(t, deviceTest(t, s, "a", "s1"), 0, one)
	if _, err := s.Clone(ctx, "a", "s1", "c"); err != nil {
		t.Fatal(err)
	}
	c := deviceTest(t, s, "c", "")
	expect(t, c, 0, one)
	writeTest(t, c, 0, two)
	settleTest(t, s)
	expect(t, d, 1<<20, two)
	expect(t, c, 0, append(append([]byte(nil), two...), one[1<<20:]...))
	expect(t, deviceTest(t, s, "a", "s1"), 0, one)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestKeyFileIsPrivate(t *testing.T) {
	skipEncrypted(t)
	opts := testOptions(t, vfs.Default, t.TempDir())
	openTest(t, opts)
	info, err := os.Stat(filepath.Join(opts.Dir, "domain.key"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Fatalf("domain.key has mode %v, want 0600", info.Mode())
	}
}

func TestSnapshotFreesWhatItHoldsAlone(t *testing.T) {
	ctx := context.Background()
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "a", 32<<20)
	rng := rand.New(rand.NewPCG(8, 8))
	writeTest(t, d, 0, guestData(rng, 16<<20))
	if _, err := s.CreateSnapshot(ctx, "a", "s1"); err != nil {
		t.Fatal(err)
	}
	if frees, err := s.SnapshotFrees(ctx, "a", "s1"); err != nil || frees != 0 {
		t.Fatalf("a snapshot that equals the volume frees %d, %v", frees, err)
	}
	writeTest(t, d, 0, guestData(rng, 16<<20))
	settleTest(t, s)
	before := s.Stats().UniqueBytes
	frees, err := s.SnapshotFrees(ctx, "a", "s1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteSnapshot(ctx, "a", "s1"); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
	if got := before - s.Stats().UniqueBytes; got != frees || frees != 16<<20 {
		t.Fatalf("dry run said %d B, the deletion freed %d B, want both %d", frees, got, 16<<20)
	}
}

// TestStatsCountSyncs flushes a few times: each is a group commit that the figures show.
func TestStatsCountSyncs(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", 1<<20)
	before := s.Stats().Syncs
	for k := range 3 {
		writeTest(t, d, uint64(k)*block.Size, make([]byte, block.Size))
		if err := d.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Stats().Syncs - before; got < 3 {
		t.Errorf("%d syncs after three flushes", got)
	}
}
