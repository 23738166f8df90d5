package stripe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
	"github.com/hyper-nixos/hyper-nixos/tiers/tierstest"
)

var testStore = block.UUID{7, 7, 7}

var dirs = []string{"d0", "d1", "d2", "d3"}

func shape(k, m int) erasure.Shape { return erasure.Shape{Data: k, Parity: m} }

func openOver(t testing.TB, fs vfs.FS, s erasure.Shape, over ...string) *Backend {
	t.Helper()
	b, err := Open(Options{FS: fs, StoreID: testStore, Dirs: over, Shape: s})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBackend(t *testing.T) {
	systems := map[tiers.Backend]*vfs.MemFS{}
	tierstest.Suite{
		New: func(t *testing.T) tiers.Backend {
			fs := vfs.NewCrashableMem()
			b := openOver(t, fs, shape(3, 1), dirs...)
			systems[b] = fs
			return b
		},
		Crash: func(t *testing.T, b tiers.Backend) tiers.Backend {
			return openOver(t, systems[b].CrashClone(pebblevfs.CrashCloneCfg{}), shape(3, 1), dirs...)
		},
	}.Run(t)
}

// bytesOf is n bytes that depend on seed.
func bytesOf(seed uint64, n int) []byte {
	p := make([]byte, n+8)
	rng := rand.New(rand.NewPCG(seed, 9))
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
	return p[:n]
}

// put writes a segment whole.
func put(t testing.TB, b *Backend, key string, data []byte) {
	t.Helper()
	w, err := b.Create(key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Sync(), w.Close()); err != nil {
		t.Fatal(err)
	}
}

// cut stripes a segment.
func cut(b *Backend, key string) error {
	r, err := b.Open(key)
	if err != nil {
		return err
	}
	defer r.Close()
	size, err := r.Size()
	if err != nil {
		return err
	}
	sums, err := erasure.Sums(context.Background(), r, size, nil, func([]byte) {})
	if err != nil {
		return err
	}
	var tail [4]byte
	if err := full(r)(tail[:], size-4); err != nil {
		return err
	}
	id := erasure.Identity{StoreID: testStore, SizeBytes: size, FooterCRC: binary.LittleEndian.Uint32(tail[:])}
	return b.Stripe(context.Background(), key, r, id, sums, nil)
}

func compare(b *Backend, key string, data []byte) error {
	r, err := b.Open(key)
	if err != nil {
		return err
	}
	defer r.Close()
	got := make([]byte, len(data))
	if err := full(r)(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return errors.New("other bytes")
	}
	rng := rand.New(rand.NewPCG(uint64(len(data)), 1))
	for range 50 {
		off := rng.IntN(len(data))
		p := make([]byte, rng.IntN(len(data)-off)+1)
		if n, err := r.ReadAt(p, int64(off)); n != len(p) || !bytes.Equal(p, data[off:off+len(p)]) {
			return fmt.Errorf("%d B at %d: other bytes, or %w", len(p), off, err)
		}
	}
	if n, err := r.ReadAt(make([]byte, 10), int64(len(data))-3); n != 3 || err != io.EOF {
		return fmt.Errorf("read over the end: %d, %w", n, err)
	}
	return nil
}

// TestAnyDirectoriesMayBeLost stripes segments of many sizes, loses as many directories as the shape allows, and reads; fills others in their place, and loses the rest.
func TestAnyDirectoriesMayBeLost(t *testing.T) {
	for _, c := range []struct {
		shape erasure.Shape
		lost  []string
	}{{shape(3, 1), []string{"d1"}}, {shape(2, 2), []string{"d0", "d3"}}, {shape(1, 1), []string{"d1"}}, {shape(1, 2), []string{"d0", "d2"}}, {shape(2, 1), []string{"d0"}}} {
		t.Run(fmt.Sprintf("%d+%d", c.shape.Data, c.shape.Parity), func(t *testing.T) {
			over := dirs[:c.shape.Data+c.shape.Parity]
			mem := vfs.NewCrashableMem()
			b := openOver(t, mem, c.shape, over...)
			data := map[string][]byte{}
			for i, size := range []int{4, 100, 4096, 4097, 12288, 100_000, 3 << 20, 5<<20 + 123} {
				key := tiers.SegmentKey(block.SegmentID(i+1), 1)
				data[key] = bytesOf(uint64(i), size)
				put(t, b, key, data[key])
				if size%5 == 1 {
					continue // stays whole
				}
				if b.Need(key) != ToStripe {
					t.Fatalf("a whole segment needs %v", b.Need(key))
				}
				if err := cut(b, key); err != nil {
					t.Fatal(err)
				}
				if b.Need(key) != Nothing {
					t.Fatalf("a striped segment needs %v", b.Need(key))
				}
			}
			check := func() {
				t.Helper()
				for key, want := range data {
					if err := compare(b, key, want); err != nil {
						t.Fatalf("%s: %v", key, err)
					}
				}
			}
			check()
			for _, dir := range c.lost {
				if err := mem.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
			check() // while it runs
			b = openOver(t, mem, c.shape, over...)
			check()
			if b.Missed() != len(c.lost) {
				t.Fatalf("%d directories are missed", b.Missed())
			}
			if missing, _ := b.Lacking(); missing == 0 {
				t.Fatal("nothing is missing")
			}
			for i, dir := range c.lost {
				to := dir
				if i == 1 {
					to = "new"
					over = append([]string{}, over...)
				}
				if err := b.ReplaceDir(dir, to, nil); err != nil {
					t.Fatal(err)
				}
				for j := range over {
					if over[j] == dir {
						over[j] = to
					}
				}
			}
			mendAll(t, b, data)
			check()
			for key := range data {
				if b.Need(key) == ToStripe {
					if err := cut(b, key); err != nil {
						t.Fatal(err)
					}
				}
			}
			// Now others may go.
			n := 0
			for _, dir := range over {
				if dir != "new" && dir != c.lost[0] && n < len(c.lost) {
					n++
					if err := mem.RemoveAll(dir); err != nil {
						t.Fatal(err)
					}
				}
			}
			b = openOver(t, mem, c.shape, over...)
			check()
		})
	}
}

func mendAll(t *testing.T, b *Backend, data map[string][]byte) {
	t.Helper()
	for key := range data {
		if b.Need(key) != ToMend {
			continue
		}
		rep, err := b.Check(context.Background(), key, true, nil)
		if err != nil || !rep.Mended {
			t.Fatalf("%s: %+v, %v", key, rep, err)
		}
	}
	if missing, _ := b.Lacking(); missing > 0 {
		t.Fatalf("%d segments are still damaged", missing)
	}
}

// TestDamageIsMended flips bits and cuts shards short: reads give the right bytes, Check finds every damaged column and mends it; beyond reach is an error and never wrong bytes.
func TestDamageIsMended(t *testing.T) {
	mem := vfs.NewCrashableMem()
	b := openOver(t, mem, shape(2, 2), dirs...)
	key := tiers.SegmentKey(5, 1)
	data := bytesOf(5, 900_000)
	put(t, b, key, data)
	if err := cut(b, key); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	paths := shardPaths(t, b, key)
	for round := range 60 {
		// Damage in two of four shards, anywhere in them, heads and checksums included.
		for _, i := range rng.Perm(4)[:2] {
			f, err := vfs.OpenUpdate(mem, paths[i])
			if err != nil {
				t.Fatal(err)
			}
			st, _ := f.Stat()
			for range 1 + rng.IntN(5) {
				off := rng.Int64N(st.Size())
				if rng.IntN(8) == 0 {
					off = rng.Int64N(4096)
				}
				var one [1]byte
				if _, err := f.ReadAt(one[:], off); err != nil {
					t.Fatal(err)
				}
				one[0] ^= 1 << rng.IntN(8)
				if _, err := f.WriteAt(one[:], off); err != nil {
					t.Fatal(err)
				}
			}
			f.Close()
		}
		if err := compare(b, key, data); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		rep, err := b.Check(context.Background(), key, true, nil)
		if err != nil || !rep.Damaged() || !rep.Mended {
			t.Fatalf("round %d: %+v, %v", round, rep, err)
		}
		if rep, err := b.Check(context.Background(), key, true, nil); err != nil || rep.Damaged() {
			t.Fatalf("round %d, mended: %+v, %v", round, rep, err)
		}
	}
	for _, path := range paths[:3] { // one too many
		f, err := vfs.OpenUpdate(mem, path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 4096), newLen(b, key).columnOff(3)); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	r, err := b.Open(key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.ReadAt(make([]byte, 4096), 3*4096); !errors.Is(err, block.ErrCorrupt) {
		t.Fatalf("beyond reach: %v", err)
	}
	p := make([]byte, 4096)
	if _, err := r.ReadAt(p, 0); err != nil || !bytes.Equal(p, data[:4096]) {
		t.Fatalf("beside it: %v", err)
	}
}

func newLen(b *Backend, key string) *layout {
	e, _ := b.lookup(key)
	l := newLayout(e.sets[0].shape, e.sets[0].size)
	return &l
}

func shardPaths(t *testing.T, b *Backend, key string) (paths []string) {
	t.Helper()
	e, _ := b.lookup(key)
	for i, k := range e.sets[0].shards {
		paths = append(paths, b.o.FS.PathJoin(b.folderOf(k, key), e.sets[0].name(key, i)))
	}
	return paths
}

// TestShapeChanges goes through shapes and back to whole segments in one directory.
func TestShapeChanges(t *testing.T) {
	mem := vfs.NewCrashableMem()
	data := map[string][]byte{}
	b := openOver(t, mem, erasure.Shape{}, "d0")
	for i := range 4 {
		key := tiers.SegmentKey(block.SegmentID(i+1), 1)
		data[key] = bytesOf(uint64(i), 300_000+i)
		put(t, b, key, data[key])
	}
	for _, s := range []erasure.Shape{shape(3, 1), shape(2, 2), shape(1, 1), shape(2, 1), {}} {
		b = openOver(t, mem, s, dirs...)
		for key, want := range data {
			if b.Need(key) != ToStripe {
				t.Fatalf("%v: %s needs %v", s, key, b.Need(key))
			}
			if err := compare(b, key, want); err != nil {
				t.Fatal(err)
			}
			if err := cut(b, key); err != nil {
				t.Fatal(err)
			}
			if err := compare(b, key, want); err != nil {
				t.Fatal(err)
			}
			if b.Need(key) != Nothing {
				t.Fatalf("%v: %s needs %v", s, key, b.Need(key))
			}
		}
	}
	b = openOver(t, mem, erasure.Shape{}, "d0")
	for key, want := range data {
		if err := compare(b, key, want); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range dirs[1:] {
		if err := b.folders(&disk{path: dir}, func(folder, name string) error { return fmt.Errorf("%s/%s is left", folder, name) }); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStaleWholeCopyIsNotRead takes a directory away while a segment grows, and brings it back with what it had.
func TestStaleWholeCopyIsNotRead(t *testing.T) {
	mem := vfs.NewCrashableMem()
	gone := false
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if gone && strings.HasPrefix(op.Path, "d1") {
			return errors.New("the disk is gone")
		}
		return nil
	}))
	b := openOver(t, fs, shape(3, 1), dirs...)
	key := tiers.SegmentKey(1, 1) // begins in d1, then d2
	data := bytesOf(1, 200_000)
	w, err := b.Create(key)
	if err != nil {
		t.Fatal(err)
	}
	half := len(data) / 2
	if _, err := w.Write(data[:half]); err != nil {
		t.Fatal(err)
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	gone = true
	if _, err := w.Write(data[half:]); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Sync(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if d := b.Dirs()[1]; d.State != "failed" {
		t.Fatalf("%+v", d)
	}
	if err := compare(b, key, data); err != nil {
		t.Fatal(err)
	}
	gone = false
	b = openOver(t, fs, shape(3, 1), dirs...)
	if err := compare(b, key, data); err != nil {
		t.Fatal(err)
	}
	if d := b.Dirs()[1]; d.State != "in sync" {
		t.Fatalf("%+v", d)
	}
	if err := cut(b, key); err != nil {
		t.Fatal(err)
	}
	if err := compare(b, key, data); err != nil {
		t.Fatal(err)
	}
}

// TestPowerLossWithALostDirectory cuts the power before each operation of writing, striping, cutting anew and mending a segment, loses a directory with it, and reads what was synced.
func TestPowerLossWithALostDirectory(t *testing.T) {
	mem := vfs.NewCrashableMem()
	rng := rand.New(rand.NewPCG(4, 4))
	var synced map[string][]byte
	now, ops := shape(3, 1), 0
	one := map[erasure.Shape]int{shape(3, 1): 1, shape(2, 2): 1} // while the shape changes either may count
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead || op.Kind == errorfs.OpFileClose || synced == nil {
			return nil
		}
		ops++
		clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[rng.IntN(3)], RNG: rng})
		for _, i := range rng.Perm(4)[:one[now]] {
			if err := clone.RemoveAll(dirs[i]); err != nil {
				t.Error(err)
			}
		}
		b, err := Open(Options{FS: clone, StoreID: testStore, Dirs: dirs, Shape: now})
		if err != nil {
			t.Errorf("before operation %d (%v %s): %v", ops, op.Kind, op.Path, err)
			return nil
		}
		for key, want := range synced {
			if err := compare(b, key, want); err != nil {
				t.Errorf("before operation %d (%v %s): %s: %v", ops, op.Kind, op.Path, key, err)
			}
		}
		return nil
	}))
	b := openOver(t, fs, now, dirs...)
	done := map[string][]byte{}
	for i := range 3 {
		key, data := tiers.SegmentKey(block.SegmentID(i+1), 1), bytesOf(uint64(i), 60_000*(i+1)+i)
		put(t, b, key, data)
		done[key] = data
		synced = done
	}
	for key := range done {
		if err := cut(b, key); err != nil {
			t.Fatal(err)
		}
	}
	now = shape(2, 2)
	b = openOver(t, fs, now, dirs...)
	for key := range done {
		if err := cut(b, key); err != nil {
			t.Fatal(err)
		}
	}
	for key := range done {
		for _, path := range shardPaths(t, b, key)[:1] {
			f, err := vfs.OpenUpdate(mem, path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("damage"), 9000); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		if rep, err := b.Check(context.Background(), key, true, nil); err != nil || !rep.Mended {
			t.Fatal(rep, err)
		}
	}
	if ops < 60 {
		t.Fatalf("only %d operations", ops)
	}
}

// TestFullDirectoryWhileMending lets a directory be full: what was there stays, and mending goes on when there is room.
func TestFullDirectoryWhileMending(t *testing.T) {
	mem := vfs.NewCrashableMem()
	fullNow := false
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if fullNow && strings.HasPrefix(op.Path, "d2") && (op.Kind == errorfs.OpFileWriteAt || op.Kind == errorfs.OpFileWrite) {
			return block.ErrNoSpace
		}
		return nil
	}))
	b := openOver(t, fs, shape(3, 1), dirs...)
	key, data := tiers.SegmentKey(2, 1), bytesOf(2, 400_000)
	put(t, b, key, data)
	if err := cut(b, key); err != nil {
		t.Fatal(err)
	}
	for i, path := range shardPaths(t, b, key) {
		if strings.HasPrefix(path, "d2") {
			if err := mem.Remove(path); err != nil {
				t.Fatal(i, err)
			}
		}
	}
	fullNow = true
	if rep, err := b.Check(context.Background(), key, true, nil); !errors.Is(err, block.ErrNoSpace) || rep.Mended {
		t.Fatal(rep, err)
	}
	if err := compare(b, key, data); err != nil {
		t.Fatal(err)
	}
	fullNow = false
	if rep, err := b.Check(context.Background(), key, true, nil); err != nil || !rep.Mended {
		t.Fatal(rep, err)
	}
	if err := compare(b, key, data); err != nil {
		t.Fatal(err)
	}
}

func TestShardNames(t *testing.T) {
	n := shardName{tiers.SegmentKey(0x1234, 7), shape(16, 2), 17, 64 << 20}
	if got, ok := parseShardName(n.String()); !ok || got != n {
		t.Fatal(got, ok)
	}
	for _, bad := range []string{"", "x", n.String() + "x", strings.Replace(n.String(), ".17.", ".18.", 1), strings.Replace(n.String(), "16+2", "016+2", 1), strings.Replace(n.String(), "04000000", "04000001", 1)} {
		if _, ok := parseShardName(bad); ok {
			t.Errorf("%q passes for a shard", bad)
		}
	}
}
