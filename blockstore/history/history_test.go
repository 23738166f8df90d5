package history

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

var update = flag.Bool("update", false, "write golden files anew")

const testVolume = block.VolumeID(7)

func testKeys(t *testing.T, store block.UUID) *keyring.Ring {
	t.Helper()
	keys, err := keyring.New(store)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func openSet(t *testing.T, fs vfs.FS, keys *keyring.Ring) *Set {
	t.Helper()
	s, bad, err := Open(Options{FS: fs, Dir: "history", StoreID: block.UUID{1}, Keys: keys})
	if err != nil || len(bad) > 0 {
		t.Fatal(err, bad)
	}
	return s
}

// wrote is a record as a test appended it.
type wrote struct {
	Record
	data []byte
}

// fill appends records of every kind.
func fill(t *testing.T, st *Stream, rng *rand.Rand, seq uint64, n int) (all []wrote) {
	t.Helper()
	kinds := []Kind{Write, Write, Write, Write, Trim, Zero, Resize, Snapshot, Rollback, Barrier, Mark}
	for range n {
		seq += 1 + uint64(rng.IntN(5))
		r := wrote{Record: Record{Kind: kinds[rng.IntN(len(kinds))], Seq: seq, Time: int64(seq) * 1000, MapEpoch: rng.Uint32N(3), Off: uint64(rng.IntN(1000)) * sectorSize, Len: uint64(1+rng.IntN(5)) * sectorSize}}
		switch {
		case r.Kind == Write:
			r.data = make([]byte, r.Len)
			for i := range r.data {
				if r.data[i] = byte(i); rng.IntN(2) == 0 {
					r.data[i] = byte(rng.Uint32())
				}
			}
			r.Payload = r.data
		case r.Kind == Resize:
			r.Size = uint64(rng.IntN(1 << 30))
		case r.Kind.labelled():
			r.Label = fmt.Sprint("label ", seq)
		}
		if err := st.Append(&r.Record); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// compare walks a stream and checks every record, and reads every payload.
func compare(t *testing.T, s *Set, st *Stream, want []wrote) {
	t.Helper()
	last := uint64(0)
	err := st.Each(0, ^uint64(0), func(r *Record) error {
		if len(want) == 0 {
			t.Fatalf("one record too many: %+v", r)
		}
		w := want[0]
		want = want[1:]
		if r.Kind != w.Kind || r.Seq != w.Seq || r.Time != w.Time || r.MapEpoch != w.MapEpoch || r.Off != w.Off || r.Len != w.Len || r.Size != w.Size || r.Label != w.Label {
			t.Fatalf("got %+v, want %+v", r, w.Record)
		}
		if !r.Kind.Point() {
			if r.Pos <= last || !InHistory(r.Pos) {
				t.Fatalf("position %x after %x", r.Pos, last)
			}
			last = r.Pos
		}
		if r.Kind != Write {
			return nil
		}
		got := make([]byte, r.Len)
		if err := s.ReadAt(got, r.Pos, r.Sums); err != nil {
			return err
		}
		if !bytes.Equal(got, w.data) {
			t.Fatalf("payload of record %d is another", r.Seq)
		}
		return nil
	})
	if err != nil || len(want) > 0 {
		t.Fatalf("%d records are missing: %v", len(want), err)
	}
}

// What was appended is there, in order, over frames, files and opens, encrypted or not.
func TestRoundTrip(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprint("encrypted=", encrypted), func(t *testing.T) {
			fs, rng := vfs.NewCrashableMem(), rand.New(rand.NewPCG(1, 1))
			var keys *keyring.Ring
			if encrypted {
				keys = testKeys(t, block.UUID{1})
			}
			s := openSet(t, fs, keys)
			st, err := s.Create(testVolume)
			if err != nil {
				t.Fatal(err)
			}
			var all []wrote
			last := uint64(0)
			for range 4 {
				for range 3 {
					all = append(all, fill(t, st, rng, last, 150)...)
					last = all[len(all)-1].Seq
					if err := st.Sync(); err != nil {
						t.Fatal(err)
					}
					compare(t, s, st, all)
					if rng.IntN(2) == 0 {
						if err := st.Roll(); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = openSet(t, fs, keys)
				if st = s.Stream(testVolume); st.LastSeq() != last {
					t.Fatalf("last is %d, want %d", st.LastSeq(), last)
				}
				compare(t, s, st, all)
			}
			if encrypted {
				if _, bad, err := Open(Options{FS: fs, Dir: "history", StoreID: block.UUID{1}}); err != nil || !errors.Is(bad[testVolume], keyring.ErrNoKey) {
					t.Errorf("without a key: %v, %v", bad, err)
				}
			}
		})
	}
}

// What was synced survives a power loss; of the rest there is a prefix, and never half a record.
func TestPowerLoss(t *testing.T) {
	for seed := range uint64(20) {
		fs, rng := vfs.NewCrashableMem(), rand.New(rand.NewPCG(seed, 2))
		s := openSet(t, fs, nil)
		st, err := s.Create(testVolume)
		if err != nil {
			t.Fatal(err)
		}
		all := fill(t, st, rng, 0, 60)
		if err := st.Sync(); err != nil {
			t.Fatal(err)
		}
		synced := all[len(all)-1].Seq
		all = append(all, fill(t, st, rng, synced, 100)...)
		left := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		again := openSet(t, left, nil)
		got := again.Stream(testVolume)
		last := got.LastSeq()
		if last < synced {
			t.Fatalf("seed %d: record %d was synced, the last is %d", seed, synced, last)
		}
		n := 0
		for n < len(all) && all[n].Seq <= last {
			n++
		}
		compare(t, again, got, all[:n])
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A record that was split is there with its last part only; what was left of it comes again, whole.
func TestParts(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	if err != nil {
		t.Fatal(err)
	}
	part := func(st *Stream, off uint64, more bool) {
		t.Helper()
		if err := st.Append(&Record{Kind: Write, Seq: 5, Time: 5, Off: off, Len: FrameRaw, Payload: bytes.Repeat([]byte{byte(off >> 17)}, FrameRaw), Part: more}); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Append(&Record{Kind: Trim, Seq: 3, Time: 3, Len: sectorSize}); err != nil {
		t.Fatal(err)
	}
	part(st, 0, true)
	part(st, FrameRaw, true)
	if err := st.Sync(); err != nil {
		t.Fatal(err)
	}
	if st.LastSeq() != 3 {
		t.Errorf("half a record: the last is %d", st.LastSeq())
	}
	again := openSet(t, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))}), nil)
	st = again.Stream(testVolume)
	if st.LastSeq() != 3 {
		t.Errorf("half a record after a death: the last is %d", st.LastSeq())
	}
	part(st, 0, true)
	part(st, FrameRaw, false)
	if err := st.Sync(); err != nil {
		t.Fatal(err)
	}
	if st.LastSeq() != 5 {
		t.Errorf("the whole record: the last is %d", st.LastSeq())
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// Files go from the oldest on, but not one that somebody reads, and not the one that is being filled.
func TestExpire(t *testing.T) {
	fs, rng := vfs.NewCrashableMem(), rand.New(rand.NewPCG(3, 3))
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	if err != nil {
		t.Fatal(err)
	}
	var ends []uint64
	last := uint64(0)
	for range 3 {
		all := fill(t, st, rng, last, 50)
		last = all[len(all)-1].Seq
		ends = append(ends, last)
		if err := st.Roll(); err != nil {
			t.Fatal(err)
		}
	}
	release := st.Pin(ends[0]+1, ends[1])
	if freed, err := st.Expire(last); err != nil || freed == 0 {
		t.Fatalf("the first file: %d, %v", freed, err)
	}
	if freed, err := st.Expire(last); err != nil || freed != 0 {
		t.Fatalf("files that somebody reads: %d, %v", freed, err)
	}
	if err := s.Remove(testVolume); !errors.Is(err, block.ErrInUse) {
		t.Fatalf("remove what somebody reads: %v", err)
	}
	release()
	release()
	if _, err := st.Expire(ends[1]); err != nil {
		t.Fatal(err)
	}
	first := last
	if err := st.Each(0, last, func(r *Record) error { first = min(first, r.Seq); return nil }); err != nil || first <= ends[1] {
		t.Fatalf("the first record is %d, want one above %d: %v", first, ends[1], err)
	}
	fill(t, st, rng, last, 10)
	if freed, err := st.Expire(last + 1000); err != nil || freed == 0 || st.Bytes() == 0 {
		t.Fatalf("all but what is being filled: %d, %d left, %v", freed, st.Bytes(), err)
	}
	if err := s.Remove(testVolume); err != nil {
		t.Fatal(err)
	}
	if names, err := fs.List("history"); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

// Whatever byte of a sealed file is changed, what is read is an error or as it was.
func TestDamage(t *testing.T) {
	fs, rng := vfs.NewCrashableMem(), rand.New(rand.NewPCG(4, 4))
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	if err != nil {
		t.Fatal(err)
	}
	all := fill(t, st, rng, 0, 12)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := "history/0000000000000007/00000001.hist"
	whole := readAll(t, fs, path)
	for at := 0; at < len(whole); at += 1 + rng.IntN(40) {
		bad := bytes.Clone(whole)
		bad[at] ^= 1 << rng.IntN(8)
		damaged := vfs.NewCrashableMem()
		writeAll(t, damaged, path, bad)
		again, faults, err := Open(Options{FS: damaged, Dir: "history", StoreID: block.UUID{1}})
		if err != nil {
			t.Fatal(err)
		}
		if faults[testVolume] != nil {
			continue
		}
		left := all
		err = again.Stream(testVolume).Each(0, ^uint64(0), func(r *Record) error {
			w := left[0]
			left = left[1:]
			if r.Seq != w.Seq || r.Kind != w.Kind || r.Off != w.Off || r.Len != w.Len {
				t.Fatalf("byte %d changed: record %+v instead of %+v", at, r, w.Record)
			}
			got := make([]byte, r.Len)
			if r.Kind == Write && again.ReadAt(got, r.Pos, r.Sums) == nil && !bytes.Equal(got, w.data) {
				t.Fatalf("byte %d changed: wrong payload", at)
			}
			return nil
		})
		_ = err // damage that was found
		again.Stream(testVolume).closeFiles()
	}
}

func readAll(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, info.Size())
	if err := vfs.ReadFull(f, b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func writeAll(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	if err := fs.MkdirAll(fs.PathDir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := vfs.Create(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// The golden file stays readable for ever.
func TestGolden(t *testing.T) {
	const golden = "testdata/history.golden"
	if *update {
		fs := vfs.NewCrashableMem()
		s := openSet(t, fs, nil)
		st, err := s.Create(testVolume)
		if err != nil {
			t.Fatal(err)
		}
		fill(t, st, rand.New(rand.NewPCG(9, 9)), 100, 8)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, readAll(t, fs, "history/0000000000000007/00000001.hist"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	fs := vfs.NewCrashableMem()
	writeAll(t, fs, "history/0000000000000007/00000001.hist", bytes.Clone(b)) // a file system in memory may spoil what it is given, under the race detector
	s := openSet(t, fs, nil)
	other := openSet(t, vfs.NewCrashableMem(), nil) // what must be in it comes from the same seed
	st, err := other.Create(testVolume)
	if err != nil {
		t.Fatal(err)
	}
	want := fill(t, st, rand.New(rand.NewPCG(9, 9)), 100, 8)
	compare(t, s, s.Stream(testVolume), want)
	if h, _, err := ParseHeader(b[:headerSize]); err != nil || h.Volume != testVolume || h.ID != 1 || time.Unix(0, h.Created).Year() < 2020 {
		t.Errorf("%+v, %v", h, err)
	}
}
