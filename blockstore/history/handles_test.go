package history

import (
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	hvfs "github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// countingFS counts the files that are open.
type countingFS struct {
	vfs.FS
	open, most atomic.Int64
}

type countedFile struct {
	vfs.File
	fs *countingFS
}

func (f countedFile) Close() error {
	f.fs.open.Add(-1)
	return f.File.Close()
}

func (c *countingFS) count(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	n := c.open.Add(1)
	for old := c.most.Load(); n > old && !c.most.CompareAndSwap(old, n); old = c.most.Load() {
	}
	return countedFile{f, c}, nil
}

func (c *countingFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return c.count(c.FS.Create(name, category))
}

func (c *countingFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	return c.count(c.FS.Open(name, opts...))
}

func (c *countingFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return c.count(c.FS.OpenReadWrite(name, category, opts...))
}

// However many files there are, few are open at once, and none is left open.
func TestHandles(t *testing.T) {
	fs, rng := &countingFS{FS: hvfs.NewCrashableMem()}, rand.New(rand.NewPCG(6, 6))
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	if err != nil {
		t.Fatal(err)
	}
	var all []wrote
	last := uint64(0)
	for range 4 * maxIdle {
		all = append(all, fill(t, st, rng, last, 3)...)
		last = all[len(all)-1].Seq
		if err := st.Roll(); err != nil {
			t.Fatal(err)
		}
	}
	const readers = 4
	for range 2 {
		var running sync.WaitGroup
		release := st.Pin(0, ^uint64(0))
		for range readers {
			running.Go(func() { compare(t, s, st, all) })
		}
		running.Wait()
		release()
		for _, f := range st.files {
			if f.mu.frames != nil {
				t.Fatal("what readers had is kept when nobody reads any more")
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if n := fs.open.Load(); n != 0 {
			t.Errorf("%d files are open after Close", n)
		}
		s = openSet(t, fs, nil)
		st = s.Stream(testVolume)
	}
	if n := fs.most.Load(); n > maxIdle+readers+2 {
		t.Errorf("%d files of %d were open at once", n, len(st.files))
	}
	if freed, err := st.Expire(last); err != nil || freed == 0 {
		t.Errorf("freed %d B: %v", freed, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := fs.open.Load(); n != 0 {
		t.Errorf("%d files are open at the end", n)
	}
}

// A file of nothing but small records is sealed before its index is longer than a reader takes.
func TestIndexInBounds(t *testing.T) {
	s := openSet(t, hvfs.NewCrashableMem(), nil)
	st, err := s.Create(testVolume)
	if err != nil {
		t.Fatal(err)
	}
	const marks = 520_000
	label := strings.Repeat("x", MaxLabel)
	for i := range uint64(marks) {
		if err := st.Append(&Record{Kind: Mark, Seq: i + 1, Time: int64(i), Label: label}); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Roll(); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := st.Each(0, ^uint64(0), func(*Record) error { n++; return nil }); err != nil || n != marks {
		t.Errorf("%d of %d records: %v", n, marks, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
