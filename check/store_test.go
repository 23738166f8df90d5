package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// lab is a real store that a test works on.
type lab struct {
	t    testing.TB
	dir  string
	s    *blockstore.Store
	rng  *rand.Rand
	keys blockstore.Keys
	pool [][]byte // runs of data that are written again and again, so that chunks are shared
}

func options(t testing.TB, dir string) blockstore.Options {
	return blockstore.Options{
		Dir: dir, LogCapBytes: 64 << 20, LogFileBytes: 1 << 20, MemoryBytes: 64 << 20, ReserveBytes: 1, Workers: 2,
		Events: blockstore.Events{
			Corruption:      func(err error) { t.Errorf("corruption event: %v", err) },
			BackgroundError: func(task string, err error) { t.Errorf("background %s: %v", task, err) },
		},
	}
}

func newLab(t testing.TB, seed uint64) *lab { return newSealedLab(t, seed, blockstore.Keys{}) }

// newSealedLab is a store that is encrypted, if there are keys.
func newSealedLab(t testing.TB, seed uint64, keys blockstore.Keys) *lab {
	l := &lab{t: t, keys: keys, dir: filepath.Join(t.TempDir(), "store"), rng: rand.New(rand.NewPCG(seed, 7))}
	for range 6 {
		p := make([]byte, 256<<10)
		for at := 0; at < len(p); at += 512 {
			for i := range 256 {
				p[at+i] = byte(l.rng.Uint32())
			}
		}
		l.pool = append(l.pool, p)
	}
	l.open()
	t.Cleanup(func() {
		if l.s != nil {
			l.close()
		}
	})
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) open() {
	l.t.Helper()
	opts := options(l.t, l.dir)
	opts.Keys = l.keys
	s, err := blockstore.Open(context.Background(), opts)
	l.must(err)
	l.s = s
}

func (l *lab) close() {
	l.t.Helper()
	s := l.s
	l.s = nil
	l.must(s.Close())
}

// settle gives up after a while, so that a background task that fails for ever ends the test and shows its error.
func (l *lab) settle() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	l.must(l.s.Settle(ctx, nil))
}

func (l *lab) create(name string, size uint64) {
	l.t.Helper()
	_, err := l.s.CreateVolume(context.Background(), blockstore.VolumeSpec{Name: name, SizeBytes: size})
	l.must(err)
}

// with runs f with an open volume.
func (l *lab) with(name string, f func(d *blockstore.Device)) {
	l.t.Helper()
	d, err := l.s.OpenDevice(name, "")
	l.must(err)
	f(d)
	l.must(d.Close())
}

func (l *lab) write(name string, off uint64, p []byte) {
	l.t.Helper()
	l.with(name, func(d *blockstore.Device) {
		l.must(d.Write(context.Background(), []block.Write{{Off: off, Data: p}}, false))
	})
}

func (l *lab) trim(name string, off, n uint64) {
	l.t.Helper()
	l.with(name, func(d *blockstore.Device) {
		l.must(d.Trim(context.Background(), block.Range{Off: off, Len: n}, false))
	})
}

func (l *lab) flush(name string) {
	l.t.Helper()
	l.with(name, func(d *blockstore.Device) { l.must(d.Flush(context.Background())) })
}

func (l *lab) snapshot(name, snap string) {
	l.t.Helper()
	_, err := l.s.CreateSnapshot(context.Background(), name, snap)
	l.must(err)
}

func (l *lab) bitmap(volume, name string) {
	l.t.Helper()
	_, err := l.s.AddBitmap(context.Background(), volume, name)
	l.must(err)
}

func (l *lab) clone(name, snap, to string) {
	l.t.Helper()
	_, err := l.s.Clone(context.Background(), name, snap, to)
	l.must(err)
}

// data is a piece of the pool, or fresh bytes.
func (l *lab) data(n int) []byte {
	if l.rng.IntN(3) == 0 {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(l.rng.Uint32()) & 0x3f
		}
		return p
	}
	p := l.pool[l.rng.IntN(len(l.pool))]
	at := l.rng.IntN(len(p)-n+1) &^ 4095
	return p[at : at+n]
}

// check runs a check of a directory and fails the test unless it is clean.
func mustBeClean(t testing.TB, dir, when string) Report {
	t.Helper()
	rep, err := Run(context.Background(), dir, Options{})
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	if rep.Errors+rep.Warnings > 0 {
		for i := range rep.Findings {
			if i == 25 {
				break
			}
			t.Log(rep.Findings[i].String())
		}
		t.Fatalf("%s: %d errors, %d warnings", when, rep.Errors, rep.Warnings)
	}
	return rep
}

// copyStore copies a data directory, sparse files included, while it may be in use: a file that vanishes meanwhile is left out.
func copyStore(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// random does one seeded operation on the store and returns what it was.
func (l *lab) random(step int) string {
	ctx := context.Background()
	vols := l.s.Volumes()
	name := func() string { return vols[l.rng.IntN(len(vols))].Name }
	if len(vols) == 0 {
		l.create(fmt.Sprintf("v%d", step), 64<<20)
		return "create"
	}
	v := name()
	snaps, err := l.s.Snapshots(v)
	l.must(err)
	size := uint64(0)
	for _, i := range vols {
		if i.Name == v {
			size = i.SizeBytes
		}
	}
	off := l.rng.Uint64N(size/block.Size) * block.Size
	switch k := l.rng.IntN(20); {
	case k < 8:
		n := int(min(size-off, uint64(1+l.rng.IntN(40))*block.Size))
		l.write(v, off, l.data(n))
		return fmt.Sprintf("write %s %d+%d", v, off, n)
	case k == 8:
		n := min(size-off, l.rng.Uint64N(40<<20))
		l.trim(v, off, n)
		return fmt.Sprintf("trim %s %d+%d", v, off, n)
	case k < 12:
		l.snapshot(v, fmt.Sprintf("s%d", step))
		return fmt.Sprintf("snapshot %s@s%d", v, step)
	case k < 14 && len(snaps) > 0:
		s := snaps[l.rng.IntN(len(snaps))].Name
		l.must(l.s.DeleteSnapshot(ctx, v, s))
		return fmt.Sprintf("delete %s@%s", v, s)
	case k == 14 && len(vols) < 6:
		s := ""
		if len(snaps) > 0 {
			s = snaps[l.rng.IntN(len(snaps))].Name
		}
		l.clone(v, s, fmt.Sprintf("c%d", step))
		return fmt.Sprintf("clone %s@%s to c%d", v, s, step)
	case k == 15 && len(vols) > 2:
		l.must(l.s.DeleteVolume(ctx, v))
		return "delete " + v
	case k == 16 && len(snaps) > 0:
		s := snaps[l.rng.IntN(len(snaps))].Name
		l.must(l.s.Rollback(ctx, v, s))
		return fmt.Sprintf("rollback %s to %s", v, s)
	case k == 17:
		to := (1 + l.rng.Uint64N(20)) * 8 << 20
		l.must(l.s.ResizeVolume(ctx, v, to))
		return fmt.Sprintf("resize %s to %d", v, to)
	case k == 18:
		l.settle()
		return "settle"
	}
	n := 300
	l.write(v, min(off+77, size-uint64(n)), l.data(n))
	return fmt.Sprintf("write %s %d+%d", v, off+77, n)
}
