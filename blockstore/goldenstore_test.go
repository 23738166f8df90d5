package blockstore

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/klauspost/compress/zstd"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/check"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// A golden store is a whole data directory of a release, packed, with a list of what is in it. CI opens every one of them for ever.
//
// For a new release: go test ./blockstore -run TestMakeGoldenStores -golden.stores 0.3
var goldenStores = flag.String("golden.stores", "", "make the golden stores of this release")

const (
	goldenStoresDir  = "testdata/stores"
	goldenStoreList  = "GOLDEN.json" // in the archive, not part of the store
	goldenStoreBytes = 320 << 10     // most that one may take, packed
)

// goldenStore is the list of a golden store.
type goldenStore struct {
	Release string
	Devices []goldenDevice
}

// goldenDevice is a volume, or a snapshot of it.
type goldenDevice struct {
	Volume, Snapshot string
	Chunking, Mode   string
	SizeBytes        uint64
	SHA256           string // of all its bytes
}

func goldenStoreOptions(dir string) Options {
	return Options{Dir: dir, FS: vfs.Default, LogCapBytes: 64 << 20, LogFileBytes: 1 << 20, MemoryBytes: 64 << 20, ReserveBytes: 1, Parity: erasure.Shape{Data: 4, Parity: 2}}
}

// TestGoldenStores opens the store of every release, reads it back to the byte, uses it, and reads it back once more. The second reader finds nothing wrong before and after.
func TestGoldenStores(t *testing.T) {
	t.Parallel() // it waits for the disk
	skipEncrypted(t)
	packed, err := filepath.Glob(filepath.Join(goldenStoresDir, "*.tar.zst"))
	if err != nil || len(packed) == 0 {
		t.Fatalf("no golden stores: %v", err)
	}
	for _, path := range packed {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".tar.zst"), func(t *testing.T) {
			if info, err := os.Stat(path); err != nil || info.Size() > goldenStoreBytes {
				t.Errorf("%s is above %d bytes: %v", path, goldenStoreBytes, err)
			}
			dir := t.TempDir()
			list := unpackGoldenStore(t, path, dir)
			checkWhole(t, dir, "as it was packed")
			opts := testOptions(t, vfs.Default, dir)
			opts.LogFileBytes, opts.Parity = 1<<20, erasure.Shape{Data: 4, Parity: 2}
			if strings.Contains(path, "encrypted") {
				opts.Keys = fixedKeys()
			}
			s := openTest(t, opts)
			list.verify(t, s)
			useGoldenStore(t, s)
			list.verify(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			checkWhole(t, dir, "after it was used")
			if _, err := Upgrade(context.Background(), vfs.Default, dir, false, nil); err != nil {
				t.Fatal(err)
			}
			// Its metadata is gone: checkpoints, segments and log of that release must do.
			if err := os.RemoveAll(filepath.Join(dir, metaDir)); err != nil {
				t.Fatal(err)
			}
			s = openTest(t, opts)
			list.verify(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			checkWhole(t, dir, "after its metadata was made anew")
		})
	}
}

func checkWhole(t *testing.T, dir, when string) {
	t.Helper()
	rep, err := check.Run(t.Context(), dir, check.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !rep.OK() {
		var text strings.Builder
		_ = rep.WriteText(&text)
		t.Errorf("store check, %s: %s", when, text.String())
	}
}

// verify compares every volume and snapshot with the list. Volumes that are not in it are the test's own.
func (g *goldenStore) verify(t *testing.T, s *Store) {
	t.Helper()
	for _, want := range g.Devices {
		if got := describeDevice(t, s, want.Volume, want.Snapshot); got != want {
			t.Errorf("release %s: got %+v, want %+v", g.Release, got, want)
		}
	}
}

func describeDevice(t *testing.T, s *Store, volume, snapshot string) goldenDevice {
	t.Helper()
	info, err := s.Volume(volume)
	if err != nil {
		t.Fatal(err)
	}
	d := deviceTest(t, s, volume, snapshot)
	defer d.Close()
	g := goldenDevice{Volume: volume, Snapshot: snapshot, Chunking: info.Chunking.String(), Mode: info.Mode.String(), SizeBytes: d.Size()}
	sum, buf := sha256.New(), make([]byte, 1<<20)
	for off := uint64(0); off < g.SizeBytes; off += uint64(len(buf)) {
		p := buf[:min(uint64(len(buf)), g.SizeBytes-off)]
		if _, err := d.ReadAt(t.Context(), p, off, nil); err != nil {
			t.Fatal(err)
		}
		sum.Write(p)
	}
	g.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return g
}

// useGoldenStore does with an old store what a daemon does: writes, snapshots, clones, deletes, settles, scrubs.
func useGoldenStore(t *testing.T, s *Store) {
	t.Helper()
	ctx := t.Context()
	if _, err := s.Clone(ctx, "plain", "", "mine"); err != nil {
		t.Fatal(err)
	}
	d := deviceTest(t, s, "mine", "")
	writeTest(t, d, 4096, guestData(rand.New(rand.NewPCG(7, 7)), 300_000))
	if _, err := s.CreateSnapshot(ctx, "mine", "s"); err != nil {
		t.Fatal(err)
	}
	if err := d.Trim(ctx, block.Range{Off: 0, Len: d.Size()}, false); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
	if err := s.DeleteSnapshot(ctx, "mine", "s"); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteVolume(ctx, "mine"); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
	if _, err := s.Explain(ctx, "", nil, nil); err != nil {
		t.Error(err)
	}
}

// unpackGoldenStore unpacks an archive into dir and returns its list.
func unpackGoldenStore(t *testing.T, path, dir string) *goldenStore {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	list := &goldenStore{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if !filepath.IsLocal(h.Name) || h.Size > 64<<20 {
			t.Fatalf("%s holds %q of %d bytes", path, h.Name, h.Size)
		}
		to := filepath.Join(dir, h.Name)
		switch {
		case h.Typeflag == tar.TypeDir:
			err = os.MkdirAll(to, 0o700)
		case h.Name == goldenStoreList:
			err = json.NewDecoder(r).Decode(list)
		default:
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(to, b, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestMakeGoldenStores makes the golden stores of a release: one that was closed, and one that was copied as a killed daemon leaves it, with data that is in the log alone; and the same of an encrypted store.
func TestMakeGoldenStores(t *testing.T) {
	if *goldenStores == "" {
		t.Skip("makes files: only with -golden.stores RELEASE")
	}
	makeGoldenStores(t, *goldenStores, Keys{})
	makeGoldenStores(t, *goldenStores+"-encrypted", fixedKeys())
}

func makeGoldenStores(t *testing.T, name string, keys Keys) {
	t.Helper()
	dir := t.TempDir()
	open := func() *Store {
		t.Helper()
		opts := goldenStoreOptions(dir)
		opts.Keys = keys
		s, err := Open(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	f := goldenFiller{t: t, rng: rand.New(rand.NewPCG(20, 26)), s: open()}
	f.first()
	if err := f.s.Close(); err != nil {
		t.Fatal(err)
	}
	f.s = open() // which seals the segment of the first run
	f.second()
	s, list := f.s, f.list()
	list.Release = *goldenStores
	packGoldenStore(t, dir, list, name+"-killed")
	settleTest(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	packGoldenStore(t, dir, list, name+"-closed")
}

// goldenFiller makes one of everything: both ways to cut, both write modes, snapshots, a clone of a deleted one, overwrites that leave pieces, trims, zeroes, duplicates, parity, and data in the log.
type goldenFiller struct {
	t   *testing.T
	rng *rand.Rand
	s   *Store
}

// text compresses well, so that the archive stays small, and repeats nowhere.
func (f *goldenFiller) text(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d:%x ", i, f.rng.Uint32()&0xfff)
	}
	return b.Bytes()[:n]
}

func (f *goldenFiller) volume(name string, size uint64, c Chunking, m WriteMode) *Device {
	f.t.Helper()
	if _, err := f.s.CreateVolume(f.t.Context(), VolumeSpec{Name: name, SizeBytes: size, Chunking: c, Mode: m}); err != nil {
		f.t.Fatal(err)
	}
	return deviceTest(f.t, f.s, name, "")
}

func (f *goldenFiller) snapshot(volume, name string) {
	f.t.Helper()
	if _, err := f.s.CreateSnapshot(f.t.Context(), volume, name); err != nil {
		f.t.Fatal(err)
	}
}

// first is what an earlier run of the daemon left.
func (f *goldenFiller) first() {
	plain := f.volume("plain", 40<<20, Chunking{}, ModeWriteback)
	data := f.text(48 << 10)
	writeTest(f.t, plain, 0, data)
	writeTest(f.t, plain, 20<<20, data) // found again
	f.snapshot("plain", "first")
	settleTest(f.t, f.s)
}

// second is what the run did that ends here.
func (f *goldenFiller) second() {
	t, s, ctx := f.t, f.s, f.t.Context()
	plain := deviceTest(t, s, "plain", "")
	writeTest(t, plain, 8192, f.text(4096)) // leaves pieces
	if err := plain.Trim(ctx, block.Range{Off: 20<<20 + 16<<10, Len: 8 << 10}, false); err != nil {
		t.Fatal(err)
	}
	if err := plain.Zero(ctx, block.Range{Off: 32 << 10, Len: 12 << 10}, false, false); err != nil {
		t.Fatal(err)
	}
	fixed := f.volume("fixed", 1<<20+512, Chunking{FixedBytes: 64 << 10}, ModeDurable)
	writeTest(t, fixed, 512, f.text(30_000))
	f.snapshot("plain", "gone")
	settleTest(t, s)
	if _, err := s.Clone(ctx, "plain", "gone", "clone"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteSnapshot(ctx, "plain", "gone"); err != nil {
		t.Fatal(err)
	}
	writeTest(t, deviceTest(t, s, "clone", ""), 100, f.text(2000))
	settleTest(t, s)
	for s.Stats().UnguardedBytes > 0 || s.Stats().GuardedBytes == 0 {
		select {
		case <-ctx.Done():
			t.Fatal("no parity comes")
		case <-time.After(10 * time.Millisecond):
		}
	}
	writeTest(t, plain, 24<<20, f.text(9000)) // is in the log alone
	f.snapshot("fixed", "s")
	writeTest(t, fixed, 256<<10, f.text(5000))
	if err := plain.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

func (f *goldenFiller) list() *goldenStore {
	list := &goldenStore{}
	for _, d := range [][2]string{{"plain", ""}, {"plain", "first"}, {"fixed", ""}, {"fixed", "s"}, {"clone", ""}} {
		list.Devices = append(list.Devices, describeDevice(f.t, f.s, d[0], d[1]))
	}
	return list
}

// packGoldenStore packs a data directory and its list.
func packGoldenStore(t *testing.T, dir string, list *goldenStore, name string) {
	t.Helper()
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	add := func(h *tar.Header, b []byte) {
		t.Helper()
		h.Format = tar.FormatUSTAR
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	add(&tar.Header{Typeflag: tar.TypeReg, Name: goldenStoreList, Mode: 0o600, Size: int64(len(b))}, b)
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		switch {
		case err != nil || rel == ".":
			return err
		case e.IsDir():
			add(&tar.Header{Typeflag: tar.TypeDir, Name: rel + "/", Mode: 0o700}, nil)
			return nil
		}
		b, err := os.ReadFile(path)
		if err == nil {
			add(&tar.Header{Typeflag: tar.TypeReg, Name: rel, Mode: 0o600, Size: int64(len(b))}, b)
		}
		return err
	})
	if err := errors.Join(err, w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	if packed.Len() > goldenStoreBytes {
		t.Errorf("%s takes %d bytes, above %d", name, packed.Len(), goldenStoreBytes)
	}
	t.Logf("%s: %d bytes", name, packed.Len())
	if err := os.MkdirAll(goldenStoresDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(goldenStoresDir, name+".tar.zst"), packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
