package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// destageTest brings everything down without waiting for anything else.
func destageTest(t testing.TB, s *Store) {
	t.Helper()
	defer s.hurry()()
	for until := time.Now().Add(2 * time.Minute); s.undestaged() > 0; time.Sleep(time.Millisecond) {
		if s.destager.kick(); time.Now().After(until) {
			t.Fatal("data stays in the log")
		}
	}
}

// hintCount counts the hints of the index and sees that each names a chunk with its hash.
func hintCount(t testing.TB, s *Store) (n int) {
	t.Helper()
	s.meta.Lock()
	defer s.meta.Unlock()
	it, err := s.index.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyHint}, UpperBound: []byte{keyHint + 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		id := block.ChunkID(binary.LittleEndian.Uint64(it.Value()))
		if row, err := s.chunks.row(id); err != nil || row.Hash != [16]byte(it.Key()[1:]) {
			t.Fatalf("hint %x names chunk %d with %x: %v", it.Key()[1:], id, row.Hash, err)
		}
		n++
	}
	return n
}

func chunkCount(s *Store) (n int) { return int(s.liveChunkCount()) }

// indexLab is a store with a volume of data that has a place in the index.
type indexLab struct {
	t    *testing.T
	opts Options
	s    *Store
	data []byte
}

func newIndexLab(t *testing.T) *indexLab {
	l := &indexLab{t: t, opts: testOptions(t, vfs.Default, t.TempDir()), data: guestData(rand.New(rand.NewPCG(21, 22)), 8<<20)}
	l.s = openTest(t, l.opts)
	writeTest(t, createTest(t, l.s, "a", 16<<20), 0, l.data)
	settleTest(t, l.s)
	return l
}

// reopen closes the store, has something done to its folder and opens it again.
func (l *indexLab) reopen(harm func(dir string) error) {
	l.t.Helper()
	if err := errors.Join(l.s.Close(), harm(filepath.Join(l.opts.Dir, indexDir))); err != nil {
		l.t.Fatal(err)
	}
	l.s = openTest(l.t, l.opts)
}

// mustBeOnce sees that the data of all volumes is as it was and stored once.
func (l *indexLab) mustBeOnce(unique uint64, volumes ...string) {
	l.t.Helper()
	for _, v := range volumes {
		expect(l.t, deviceTest(l.t, l.s, v, ""), 0, l.data)
	}
	const cutOtherwise = 256 << 10 // where one batch of destage ends and the next begins
	if got := l.s.Stats().UniqueBytes; got > unique+cutOtherwise {
		l.t.Errorf("%d B unique, want %d", got, unique)
	}
	if i := l.s.Index(); !i.Whole() || i.Unmatched != 0 {
		l.t.Errorf("the index is %+v", i)
	}
	if hints, chunks := hintCount(l.t, l.s), chunkCount(l.s); hints != chunks {
		l.t.Errorf("%d hints of %d chunks", hints, chunks)
	}
}

// TestIndexLost loses the index in several ways. Everything reads as before, what is written meanwhile is stored, and in the end each chunk is there once and known by its hash.
func TestIndexLost(t *testing.T) {
	foreign := newIndexLab(t)
	if err := foreign.s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, harm := range map[string]func(dir string) error{
		"gone":   os.RemoveAll,
		"a file": func(dir string) error { return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, []byte("x"), 0o600)) },
		"foreign": func(dir string) error {
			return errors.Join(os.RemoveAll(dir), os.Rename(filepath.Join(foreign.opts.Dir, indexDir), dir))
		},
		"damaged": func(dir string) error {
			tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
			for _, f := range tables {
				b, rerr := os.ReadFile(f)
				for i := 100; i < len(b)-100; i += 97 {
					b[i] ^= 0x55
				}
				err = errors.Join(err, rerr, os.WriteFile(f, b, 0o600))
			}
			if len(tables) == 0 {
				err = errors.Join(err, errors.New("no tables"))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newIndexLab(t)
			unique := l.s.Stats().UniqueBytes
			var told RecoveryInfo
			l.opts.Events.Recovered = func(i RecoveryInfo) { told = i }
			l.opts.Events.BackgroundError = nil // which says that the index is made anew
			l.opts.Events.Corruption = nil
			l.reopen(harm)
			if name != "damaged" && told.Unindexed == 0 {
				t.Error("the start does not say that the index is lost")
			}
			l.s.indexer.hold.Store(true)
			expect(t, deviceTest(t, l.s, "a", ""), 0, l.data)
			writeTest(t, createTest(t, l.s, "b", 16<<20), 0, l.data)
			destageTest(t, l.s)
			expect(t, deviceTest(t, l.s, "b", ""), 0, l.data)
			l.s.indexer.hold.Store(false)
			settleTest(t, l.s)
			settleTest(t, l.s)
			l.mustBeOnce(unique, "a", "b")
		})
	}
}

// TestStoreUnmatched: when there is no time to look for chunks they are stored a second time, counted, and joined later, also across a restart.
func TestStoreUnmatched(t *testing.T) {
	l := newIndexLab(t)
	unique := l.s.Stats().UniqueBytes
	for _, restart := range []bool{false, true} {
		name := map[bool]string{false: "b", true: "c"}[restart]
		l.s.indexer.hold.Store(true)
		l.s.indexer.blind.Store(true)
		writeTest(t, createTest(t, l.s, name, 16<<20), 0, l.data)
		destageTest(t, l.s)
		i := l.s.Index()
		if i.Whole() || i.Unmatched == 0 || l.s.Stats().UniqueBytes < unique+unique/2 {
			t.Errorf("unmatched chunks are not there: %+v", i)
		}
		if restart {
			l.reopen(func(string) error { return nil })
		}
		l.s.indexer.blind.Store(false)
		l.s.indexer.hold.Store(false)
		settleTest(t, l.s)
		settleTest(t, l.s)
		l.mustBeOnce(unique, "a", name)
		if i := l.s.Index(); i.Joined == 0 || i.JoinedRaw < unique/2 {
			t.Errorf("joined: %+v", i)
		}
		if r, err := l.s.Audit(context.Background(), nil); err != nil || !r.Passed() || r.Unreachable+r.WrongSegments != 0 {
			t.Errorf("an audit of what was joined: %+v, %v", r, err)
		}
	}
}

// TestUnmatchedInSnapshot: what a snapshot holds twice stays until it is gone, and then goes.
func TestUnmatchedInSnapshot(t *testing.T) {
	l := newIndexLab(t)
	unique := l.s.Stats().UniqueBytes
	l.s.indexer.hold.Store(true)
	l.s.indexer.blind.Store(true)
	writeTest(t, createTest(t, l.s, "b", 16<<20), 0, l.data)
	if _, err := l.s.CreateSnapshot(context.Background(), "b", "s"); err != nil {
		t.Fatal(err)
	}
	destageTest(t, l.s)
	l.s.indexer.blind.Store(false)
	l.s.indexer.hold.Store(false)
	settleTest(t, l.s)
	expect(t, deviceTest(t, l.s, "b", "s"), 0, l.data)
	if i := l.s.Index(); i.Doubles == 0 {
		t.Errorf("a snapshot holds doubles, but: %+v", i)
	}
	if err := l.s.DeleteSnapshot(context.Background(), "b", "s"); err != nil {
		t.Log(err) // its device is open until the end of the test
		l.reopen(func(string) error { return nil })
		if err := l.s.DeleteSnapshot(context.Background(), "b", "s"); err != nil {
			t.Fatal(err)
		}
	}
	settleTest(t, l.s) // purges the node
	settleTest(t, l.s)
	settleTest(t, l.s)
	l.mustBeOnce(unique, "a", "b")
}

// TestRebuildIndex makes the index anew under a running store.
func TestRebuildIndex(t *testing.T) {
	l := newIndexLab(t)
	unique := l.s.Stats().UniqueBytes
	for range 3 {
		if err := l.s.RebuildIndex(); err != nil {
			t.Fatal(err)
		}
		writeTest(t, deviceTest(t, l.s, "a", ""), 0, l.data)
	}
	settleTest(t, l.s)
	settleTest(t, l.s)
	l.mustBeOnce(unique, "a")
}

// TestOldHints opens a store of an earlier version, whose hints lie in the metadata: they go, and the index is made.
func TestOldHints(t *testing.T) {
	l := newIndexLab(t)
	unique := l.s.Stats().UniqueBytes
	b := l.s.db.NewBatch()
	for i := range uint64(1000) {
		_ = b.Set(binary.BigEndian.AppendUint64(bytes.Repeat([]byte{keyHint}, 9), i), make([]byte, 8), nil)
	}
	if err := b.Commit(pebble.Sync); err != nil {
		t.Fatal(err)
	}
	l.reopen(os.RemoveAll)
	if err := l.s.scanRows(keyHint, func(_, _ []byte) error { return errors.New("a hint in the metadata") }); err != nil {
		t.Error(err)
	}
	settleTest(t, l.s)
	l.mustBeOnce(unique, "a")
}

// TestIndexAfterCrash: the index has no log. After a power loss it lacks what was not in a table, and gets it again.
func TestIndexAfterCrash(t *testing.T) {
	r := newRace(t, 0)
	data := guestData(rand.New(rand.NewPCG(23, 24)), 8<<20)
	writeTest(t, createTest(t, r.s, "a", 16<<20), 0, data)
	settleTest(t, r.s)
	mem := r.mem.CrashClone(vfs.CrashCloneCfg{})
	var info RecoveryInfo
	opts := r.options(mem)
	opts.Events = Events{Recovered: func(i RecoveryInfo) { info = i }}
	s := openTest(t, opts)
	if info.Unindexed == 0 {
		t.Error("the crash lost nothing of the index: the test shows nothing")
	}
	settleTest(t, s)
	if hints, chunks := hintCount(t, s), chunkCount(s); hints != chunks {
		t.Errorf("%d hints of %d chunks", hints, chunks)
	}
}

// FuzzIndexState: no bytes are taken for a state that would be written otherwise.
func FuzzIndexState(f *testing.F) {
	st := indexState{StoreID: goldenUUID, Through: 1, Unmatched: 2, Doubles: 3, Joined: 4, JoinedRaw: 5}
	f.Add(st.encode())
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if st, err := decodeIndexState(b); err == nil && !bytes.Equal(st.encode(), b) {
			t.Fatalf("%x decodes to %+v", b, st)
		}
	})
}

// TestChunkAverage cuts volumes to other averages than the store's: each keeps its own across a restart, finds its own data again, and pays for its chunks.
func TestChunkAverage(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	s := openTest(t, opts)
	data := guestData(rand.New(rand.NewPCG(31, 32)), 8<<20)
	chunks := map[uint32]int{}
	for _, average := range []uint32{4 << 10, 64 << 10, 16 << 10} {
		before, unique := chunkCount(s), s.Stats().UniqueBytes
		for _, copy := range []string{"a", "b"} {
			name := copy + Chunking{AverageBytes: average}.String()[4:]
			if _, err := s.CreateVolume(context.Background(), VolumeSpec{Name: name, SizeBytes: 16 << 20, Chunking: Chunking{AverageBytes: average}}); err != nil {
				t.Fatal(err)
			}
			writeTest(t, deviceTest(t, s, name, ""), 0, data)
			settleTest(t, s)
			expect(t, deviceTest(t, s, name, ""), 0, data)
		}
		chunks[average] = chunkCount(s) - before
		if got := s.Stats().UniqueBytes - unique; got > uint64(len(data))*5/4 {
			t.Errorf("average %d: %d B unique of %d written twice", average, got, len(data))
		}
	}
	if chunks[4<<10] < 2*chunks[16<<10] || chunks[16<<10] < 2*chunks[64<<10] {
		t.Errorf("chunks by average: %v", chunks)
	}
	for _, bad := range []Chunking{{AverageBytes: 5000}, {AverageBytes: 1 << 31}, {AverageBytes: 4096, FixedBytes: 4096}} {
		if _, err := s.CreateVolume(context.Background(), VolumeSpec{Name: "bad", SizeBytes: 1 << 20, Chunking: bad}); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	for name, want := range map[string]string{"a4KiB": "cdc:4KiB", "b64KiB": "cdc:64KiB", "a16KiB": "cdc"} {
		v, err := s.Volume(name)
		if err != nil || v.Chunking.String() != want {
			t.Errorf("%s: %v, %v", name, v.Chunking, err)
		}
		expect(t, deviceTest(t, s, name, ""), 0, data)
	}
}
