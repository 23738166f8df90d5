package history

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	hvfs "github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// sectorFS is a file system on a device that can lose sectors, and fill up.
type sectorFS struct {
	vfs.FS
	mu   sync.Mutex
	bad  map[string]map[int64]bool // by path, offsets of sectors that cannot be read
	full bool
}

type sectorFile struct {
	vfs.File
	fs   *sectorFS
	path string // that it was opened by: a file that is renamed lies in other sectors
}

func newSectorFS(fs vfs.FS) *sectorFS { return &sectorFS{FS: fs, bad: map[string]map[int64]bool{}} }

// lose makes the sector at an offset unreadable.
func (s *sectorFS) lose(path string, off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad[path] == nil {
		s.bad[path] = map[int64]bool{}
	}
	s.bad[path][off/sectorSize*sectorSize] = true
}

func (s *sectorFS) fill(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
}

func (s *sectorFS) forget(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.bad, path)
}

func (s *sectorFS) wrap(f vfs.File, path string, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &sectorFile{f, s, path}, nil
}

func (s *sectorFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, category)
	return s.wrap(f, name, err)
}

func (s *sectorFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := s.FS.Open(name, opts...)
	return s.wrap(f, name, err)
}

func (s *sectorFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := s.FS.OpenReadWrite(name, category, opts...)
	return s.wrap(f, name, err)
}

func (s *sectorFS) Rename(from, to string) error {
	s.forget(to)
	return s.FS.Rename(from, to)
}

func (s *sectorFS) Remove(name string) error {
	s.forget(name)
	return s.FS.Remove(name)
}

func (f *sectorFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	for at := range f.fs.bad[f.path] {
		if at < off+int64(len(p)) && off < at+sectorSize {
			n := int(max(0, at-off))
			n, err := f.File.ReadAt(p[:n], off)
			return n, errors.Join(err, syscall.EIO)
		}
	}
	return f.File.ReadAt(p, off)
}

func (f *sectorFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	full := f.fs.full
	f.fs.mu.Unlock()
	if full {
		return 0, syscall.ENOSPC
	}
	return f.File.WriteAt(p, off)
}

// flip changes bytes of a file where it lies.
func flip(t *testing.T, fs vfs.FS, path string, off int64, n int) {
	t.Helper()
	f, err := hvfs.OpenUpdate(fs, path)
	must(t, err)
	b := make([]byte, n)
	must(t, hvfs.ReadFull(f, b, off))
	for i := range b {
		b[i] ^= 0x5a
	}
	_, err = f.WriteAt(b, off)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

func work(step func(ParityStep)) *Work {
	return &Work{Coder: erasure.NewCoder, Step: step}
}

// guardAll makes all sidecars that are missing.
func guardAll(t *testing.T, s *Set) (n int) {
	t.Helper()
	for {
		of, found := s.Lacks(erasure.Default)
		if !found {
			return n
		}
		_, err := s.Guard(context.Background(), of.FileKey, erasure.Default, work(nil))
		must(t, err)
		n++
	}
}

// mendAll looks at all files, mends them, and says how many were damaged.
func mendAll(t *testing.T, s *Set) (damaged int) {
	t.Helper()
	for _, of := range s.Sealed() {
		d, err := s.Check(context.Background(), of.FileKey, work(nil))
		must(t, err)
		if d.Whole() {
			continue
		}
		damaged++
		if d, err = s.Mend(context.Background(), of.FileKey, work(nil)); err != nil || !d.Mended || d.Unsound != nil {
			t.Fatalf("%s: %+v, %v", of.Path, d, err)
		}
	}
	guardAll(t, s)
	return damaged
}

// sealedStream makes a stream with some sealed files, and returns their bytes by path.
func sealedStream(t *testing.T, fs vfs.FS, keys *keyring.Ring, rng *rand.Rand, files int) (*Set, []wrote, map[string][]byte) {
	t.Helper()
	s := openSet(t, fs, keys)
	st, err := s.Create(testVolume)
	must(t, err)
	var all []wrote
	for i := range files {
		last := uint64(0)
		if len(all) > 0 {
			last = all[len(all)-1].Seq
		}
		all = append(all, fill(t, st, rng, last, 1+i*i*30)...)
		must(t, st.Roll())
	}
	if n := guardAll(t, s); n != files {
		t.Fatalf("%d of %d files got a sidecar", n, files)
	}
	was := map[string][]byte{}
	for _, of := range s.Sealed() {
		if of.Sidecar != SidecarSize(erasure.Default, of.Bytes) {
			t.Fatalf("a sidecar of %d B for %d B", of.Sidecar, of.Bytes)
		}
		was[of.Path] = readAll(t, fs, of.Path)
	}
	return s, all, was
}

// spoil damages each file as far as parity reaches: one to two columns of a stripe, flipped or lost.
func spoil(t *testing.T, fs *sectorFS, rng *rand.Rand, was map[string][]byte) {
	t.Helper()
	for path, b := range was {
		columns := (len(b) + sectorSize - 1) / sectorSize
		stripes := (columns + 15) / 16
		for range 1 + rng.IntN(3) {
			stripe := rng.IntN(stripes)
			for range 2 {
				off := int64(min(columns-1, rng.IntN(16)*stripes+stripe)) * sectorSize
				if rng.IntN(2) == 0 {
					fs.lose(path, off)
				} else {
					off += int64(rng.IntN(sectorSize))
					flip(t, fs.FS, path, min(off, int64(len(b)-8)), 1+rng.IntN(8))
				}
			}
			if rng.IntN(2) == 0 { // more than one stripe may hit one twice
				break
			}
		}
	}
}

// reachable reports whether no stripe has more than two columns that differ from what was, or are lost.
func reachable(t *testing.T, fs *sectorFS, was map[string][]byte) bool {
	t.Helper()
	for path, b := range was {
		now, hit := readAll(t, fs.FS, path), map[int]int{}
		columns := (len(b) + sectorSize - 1) / sectorSize
		stripes := (columns + 15) / 16
		for c := range columns {
			end := min(len(b), (c+1)*sectorSize)
			if fs.bad[path][int64(c)*sectorSize] || !bytes.Equal(now[c*sectorSize:end], b[c*sectorSize:end]) {
				if hit[c%stripes]++; hit[c%stripes] > 2 {
					return false
				}
			}
		}
	}
	return true
}
