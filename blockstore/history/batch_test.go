package history

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// surge appends so many full frames, of writes that compress by half, and of others between them, so that frames have any length.
func surge(t *testing.T, st *Stream, rng *rand.Rand, seq uint64, frames int) (all []wrote) {
	t.Helper()
	for range frames {
		for left := FrameRaw; left > 0; {
			n := min(left, (1+rng.IntN(8))*sectorSize)
			left -= n
			seq++
			r := wrote{Record: Record{Kind: Write, Seq: seq, Time: int64(seq), Off: uint64(rng.IntN(1000)) * sectorSize, Len: uint64(n)}, data: make([]byte, n)}
			for i := 0; i < n/(1+rng.IntN(3)); i++ {
				r.data[i] = byte(rng.Uint32())
			}
			err := st.AppendRead(&r.Record, func(p []byte) error { copy(p, r.data); return nil })
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
		}
		if rng.IntN(3) == 0 {
			all = append(all, fill(t, st, rng, seq, 1)...)
			seq = all[len(all)-1].Seq
		}
	}
	return all
}

func onBoth(t *testing.T, test func(t *testing.T, fs vfs.FS, dir string, keys *keyring.Ring)) {
	for _, disk := range []bool{false, true} {
		for _, encrypted := range []bool{false, true} {
			t.Run(fmt.Sprintf("disk=%v encrypted=%v", disk, encrypted), func(t *testing.T) {
				var keys *keyring.Ring
				if encrypted {
					keys = testKeys(t, block.UUID{1})
				}
				if disk {
					test(t, vfs.Default, t.TempDir(), keys)
					return
				}
				test(t, vfs.NewCrashableMem(), "history", keys)
			})
		}
	}
}

func openIn(t *testing.T, fs vfs.FS, dir string, keys *keyring.Ring) *Set {
	t.Helper()
	s, bad, err := Open(Options{FS: fs, Dir: dir, StoreID: block.UUID{1}, Keys: keys})
	if err != nil || len(bad) > 0 {
		t.Fatal(err, bad)
	}
	return s
}

// What is gathered and written around the page cache is the same file: after each sync all is there, what is not synced is seen by nobody in parts, and the next open reads it.
func TestBatch(t *testing.T) {
	onBoth(t, func(t *testing.T, fs vfs.FS, dir string, keys *keyring.Ring) {
		s, rng := openIn(t, fs, dir, keys), rand.New(rand.NewPCG(5, 5))
		st, err := s.Create(testVolume)
		must(t, err)
		var all []wrote
		last, batched, hidden := uint64(0), 0, 0
		for i := range 6 {
			all = append(all, surge(t, st, rng, last, 3+i*7)...)
			last = all[len(all)-1].Seq
			f := st.open()
			if f.batch != nil {
				batched++
			}
			// What readers see before the sync is a row of whole records, each of which can be read.
			seen := 0
			must(t, st.Each(0, ^uint64(0), func(r *Record) error {
				w := &all[seen]
				if seen++; r.Seq != w.Seq || r.Kind != Write {
					return nil
				}
				got := make([]byte, r.Len)
				if err := s.ReadAt(got, r.Pos, r.Sums); err != nil {
					return err
				}
				if !bytes.Equal(got, w.data) {
					return fmt.Errorf("record %d is another", r.Seq)
				}
				return nil
			}))
			if seen < len(all) {
				hidden++
			}
			must(t, st.Sync())
			if f.batch != nil {
				t.Error("a batch is left after a sync")
			}
			compare(t, s, st, all)
			if i == 3 {
				must(t, st.Roll())
				compare(t, s, st, all)
			}
		}
		if batched < 4 || hidden == 0 {
			t.Errorf("%d batches, %d that hid something", batched, hidden)
		}
		must(t, s.Close())
		s = openIn(t, fs, dir, keys)
		compare(t, s, s.Stream(testVolume), all)
		must(t, s.Close())
	})
}

// A death of the process or of the power at any time between two syncs leaves what was synced, and of the rest a row of whole records.
func TestBatchPowerLoss(t *testing.T) {
	for seed := range uint64(12) {
		fs, rng := vfs.NewCrashableMem(), rand.New(rand.NewPCG(seed, 6))
		s := openSet(t, fs, nil)
		st, err := s.Create(testVolume)
		must(t, err)
		all := surge(t, st, rng, 0, 12+rng.IntN(20))
		must(t, st.Sync())
		synced := all[len(all)-1].Seq
		all = append(all, surge(t, st, rng, synced, rng.IntN(40))...)
		left := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[seed%3], RNG: rng})
		again := openSet(t, left, nil)
		got := again.Stream(testVolume)
		if got.LastSeq() < synced {
			t.Fatalf("seed %d: record %d was synced, the last is %d", seed, synced, got.LastSeq())
		}
		n := 0
		for n < len(all) && all[n].Seq <= got.LastSeq() {
			n++
		}
		compare(t, again, got, all[:n])
		must(t, again.Close())
	}
}

// fullFS fails the writes that come after so many, as a disk does that is full.
type fullFS struct {
	vfs.FS
	left atomic.Int64 // writes
}

type fullFile struct {
	vfs.File
	fs *fullFS
}

func (s *fullFS) Create(name string, c pebblevfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, c)
	if err != nil {
		return nil, err
	}
	return &fullFile{f, s}, nil
}

func (f *fullFile) WriteAt(p []byte, off int64) (int, error) {
	if f.fs.left.Add(-1) < 0 {
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, syscall.ENOSPC
	}
	return f.File.WriteAt(p, off)
}

// A write that fails in the midst of a batch takes with it what was not written, and no more: what is left is a row of whole records, now and after an open, and history goes on in another file.
func TestBatchFails(t *testing.T) {
	for most := range int64(40) {
		fs, rng := &fullFS{FS: vfs.NewCrashableMem()}, rand.New(rand.NewPCG(uint64(most), 7))
		fs.left.Store(1 << 40)
		s := openSet(t, fs, nil)
		st, err := s.Create(testVolume)
		must(t, err)
		all := surge(t, st, rng, 0, 10)
		must(t, st.Sync())
		synced := st.LastSeq()
		fs.left.Store(most)
		seq := synced
		for err = nil; err == nil; {
			seq++
			r := wrote{Record: Record{Kind: Write, Seq: seq, Time: int64(seq), Len: FrameRaw}, data: make([]byte, FrameRaw)}
			for i := range r.data[:FrameRaw/2] {
				r.data[i] = byte(rng.Uint32())
			}
			r.Payload = r.data
			if err = st.Append(&r.Record); err == nil {
				all = append(all, r)
			}
		}
		if !errors.Is(err, block.ErrNoSpace) {
			t.Fatal(err)
		}
		fs.left.Store(1 << 40)
		st.Abandon()
		last := st.LastSeq()
		if last < synced || last >= seq {
			t.Fatalf("%d writes: the last record is %d of %d, %d were synced", most, last, seq, synced)
		}
		n := 0
		for n < len(all) && all[n].Seq <= last {
			n++
		}
		all = all[:n]
		compare(t, s, st, all)
		all = append(all, surge(t, st, rng, seq, 20)...)
		must(t, st.Sync())
		compare(t, s, st, all)
		must(t, s.Close())
		s = openSet(t, fs.FS, nil)
		compare(t, s, s.Stream(testVolume), all)
		must(t, s.Close())
	}
}

// No more than batchesMost files have a batch, and who gets none goes on as ever.
func TestBatchesBounded(t *testing.T) {
	fs, rng := vfs.NewCrashableMem(), rand.New(rand.NewPCG(9, 9))
	s := openSet(t, fs, nil)
	var streams []*Stream
	wrote := map[*Stream][]wrote{}
	for v := range batchesMost + 2 {
		st, err := s.Create(block.VolumeID(v + 1))
		must(t, err)
		streams = append(streams, st)
		wrote[st] = surge(t, st, rng, 0, 12)
	}
	n := 0
	for _, st := range streams {
		if st.open().batch != nil {
			n++
		}
	}
	if n != batchesMost {
		t.Errorf("%d batches, want %d", n, batchesMost)
	}
	for _, st := range streams {
		must(t, st.Sync())
		compare(t, s, st, wrote[st])
	}
	if b := &s.handles.batches; b.out != 0 || len(b.free) > 1 {
		t.Errorf("%d buffers out, %d kept", b.out, len(b.free))
	}
	must(t, s.Remove(1))
	must(t, s.Close())
}

// What a process leaves that is killed in the midst of batches, on a real file system, is what was synced and a row of whole records.
func TestBatchKilled(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	dir := t.TempDir()
	s := openIn(t, vfs.Default, dir, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	all := surge(t, st, rng, 0, 20)
	must(t, st.Sync())
	synced := st.LastSeq()
	for try := range 6 {
		all = append(all, surge(t, st, rng, all[len(all)-1].Seq, 12+rng.IntN(20))...)
		left := t.TempDir()
		must(t, os.CopyFS(left, os.DirFS(dir)))
		again := openIn(t, vfs.Default, left, nil)
		got := again.Stream(testVolume)
		n := 0
		for n < len(all) && all[n].Seq <= got.LastSeq() {
			n++
		}
		if got.LastSeq() < synced || st.open().batch == nil || n == len(all) {
			t.Errorf("try %d: the last of %d records is %d, %d were synced", try, len(all), got.LastSeq(), synced)
		}
		compare(t, again, got, all[:n])
		must(t, again.Close())
		synced = got.LastSeq()
	}
	must(t, st.Sync())
	compare(t, s, st, all)
	must(t, s.Close())
}
