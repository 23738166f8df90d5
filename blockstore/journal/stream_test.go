package journal

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// streamRecord makes a long write that is part of a stream.
func streamRecord(rng *rand.Rand, volume block.VolumeID, sectors int) Record {
	p := fill(sectors*sectorSize, rng.Uint64())
	cut := rng.IntN(len(p))
	return Record{Kind: Write, Flags: FlagStream, Volume: volume, Off: uint64(rng.IntN(1<<20)) * sectorSize, Len: uint64(len(p)), Payload: [][]byte{p[:cut], p[cut:]}}
}

// TestStreamsBesideSmallWrites has writers of streams and of single blocks append at once to a log on a disk, reads each record as soon as it is appended and again at the end, and opens the log anew after
// it was closed and after it was left as a process leaves it that is killed.
func TestStreamsBesideSmallWrites(t *testing.T) {
	for _, clean := range []bool{true, false} {
		dir := t.TempDir()
		opts := testOptions(vfs.Default, dir, 1)
		opts.FileSize, opts.CapBytes, opts.StreamBytes, opts.SyncBytes = 4<<20, 1<<30, 1<<30, 8<<20
		l, _ := openAll(t, opts)
		var mu sync.Mutex
		all := map[uint64]entry{}
		var writers sync.WaitGroup
		for w := range 6 {
			writers.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(w), 5))
				for range 40 {
					recs := []Record{streamRecord(rng, block.VolumeID(w+1), 1+rng.IntN(200))}
					if w >= 4 { // small ones, which begin and end in the middle of pages
						recs = []Record{randomRecord(rng)}
						recs[0].Flags &^= FlagStream
					}
					if err := l.Append(recs); err != nil {
						t.Error(err)
						return
					}
					e := remember(&recs[0])
					if err := readBack(l, &e); err != nil {
						t.Error(err)
					}
					if long := e.Flags&FlagStream != 0; long && e.Pos.Offset()%pageSize != 0 {
						t.Errorf("the payload of a stream begins at %v", e.Pos)
					}
					mu.Lock()
					all[e.Seq] = e
					mu.Unlock()
				}
			})
		}
		writers.Wait()
		if l.app.bypass.off.Load() {
			t.Log("the file system of the temporary directory has no O_DIRECT: only the page cache was tested")
		}
		if clean {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		} else {
			abandon(t, l)
		}
		opts.BootEpoch = 2
		again, got := openAll(t, opts)
		if len(got) != len(all) {
			t.Fatalf("clean %v: replayed %d records of %d", clean, len(got), len(all))
		}
		stream := int64(0)
		for _, r := range got {
			e := all[r.Seq]
			rec := r.Replayed
			rec.Payload = r.data
			if err := e.check(&rec); err != nil {
				t.Fatal(err)
			}
			if err := readBack(again, &e); err != nil {
				t.Fatal(err)
			}
			if e.Flags&FlagStream != 0 && e.Kind == Write {
				stream += recordSize + int64(len(e.Sums))*descSize + int64(e.Len)
			}
		}
		ends := int64(0) // of files, where no record of a stream had room
		for _, f := range again.st.live {
			ends += f.closedStream() - f.stream
		}
		// Each payload begins at the border of a page.
		if u := again.Usage(); u.Stream < stream+ends || u.Stream > stream+ends+int64(len(got))*pageSize || u.Charged != u.Live-u.Stream || ends > u.Live/4 {
			t.Fatalf("clean %v: %d bytes of streams are counted, %d are there, and %d ends of files: %+v", clean, u.Stream, stream, ends, u)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStreamRoom fills a log to its cap and beyond it with a stream: what has no room of its own counts like all else, and the room is there again when the files have gone, also for who opens the log anew.
func TestStreamRoom(t *testing.T) {
	dir := t.TempDir()
	opts := testOptions(vfs.Default, dir, 1)
	opts.FileSize, opts.CapBytes, opts.StreamBytes = 1<<20, 4<<20, 8<<20
	l, _ := openAll(t, opts)
	rng := rand.New(rand.NewPCG(3, 3))
	until := func(l *Log, make func() Record) (n int) {
		t.Helper()
		for {
			recs := []Record{make()}
			err := l.Append(recs)
			if errors.Is(err, block.ErrNoSpace) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	small := func() Record {
		return Record{Kind: Write, Volume: 1, Len: sectorSize, Payload: [][]byte{fill(sectorSize, rng.Uint64())}}
	}
	long := func() Record { return streamRecord(rng, 2, 8) }
	for l.StreamRoom() > 512<<10 {
		if err := l.Append([]Record{long()}); err != nil {
			t.Fatal(err)
		}
	}
	first := until(l, small)
	if first < 600 {
		t.Fatalf("%d small records fit beside a stream with room of its own into a cap for 1,000", first)
	}
	room := l.StreamRoom()
	if n := until(l, long); int64(n) > room/(8*sectorSize)+1 {
		t.Fatalf("%d records of a stream fit into a log that is full, where %d B were left for streams", n, room)
	}
	full := l.Usage()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	opts.BootEpoch, opts.CapBytes = 2, opts.CapBytes+(1<<20) // an open begins a file
	l, _ = openAll(t, opts)
	if u := l.Usage(); u.Stream < full.Stream || u.Stream > full.Stream+opts.FileSize {
		t.Fatalf("%d bytes of streams after an open, %d before", u.Stream, full.Stream)
	}
	releaseAll(t, l)
	waitRetired(t, l)
	if u := l.Usage(); u.Stream != 0 || l.StreamRoom() != opts.StreamBytes {
		t.Fatalf("released, and still: %+v", u)
	}
	for l.StreamRoom() > 512<<10 {
		if err := l.Append([]Record{long()}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRetainedStreams opens a log that keeps files from before its replay: their streams count too.
func TestRetainedStreams(t *testing.T) {
	dir := t.TempDir()
	opts := testOptions(vfs.Default, dir, 1)
	opts.FileSize, opts.CapBytes, opts.StreamBytes = 1<<20, 16<<20, 16<<20
	l, _ := openAll(t, opts)
	rng := rand.New(rand.NewPCG(4, 4))
	for l.NextPos().File() < 5 {
		if err := l.Append([]Record{streamRecord(rng, 2, 64)}); err != nil {
			t.Fatal(err)
		}
	}
	from, want := l.NextPos(), l.Usage().Stream+opts.FileSize-l.app.active.end // the rest of the last file counts once it is closed
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	opts.BootEpoch, opts.RetainFrom = 2, makePos(1, 0)
	l, _, err := tryOpen(opts, makePos(from.File(), 0))
	if err != nil {
		t.Fatal(err)
	}
	if u := l.Usage(); u.Stream != want || u.Files < 6 {
		t.Fatalf("%d bytes of streams are retained, want %d: %+v", u.Stream, want, u)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestStreamAfterClose ends a log under writers of streams: each is told, and none waits for ever.
func TestStreamAfterClose(t *testing.T) {
	opts := testOptions(vfs.Default, t.TempDir(), 1)
	opts.FileSize, opts.CapBytes, opts.StreamBytes = 4<<20, 1<<30, 1<<30
	l, _ := openAll(t, opts)
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 9))
			for {
				if err := l.Append([]Record{streamRecord(rng, 1, 64)}); err != nil {
					if !errors.Is(err, block.ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	for l.Usage().Appended < 16<<20 {
		if t.Failed() {
			break
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	writers.Wait()
}

// TestSparesOfStreams releases what a stream has filled: the files stay for the next one, until somebody needs the room.
func TestSparesOfStreams(t *testing.T) {
	dir := t.TempDir()
	opts := testOptions(vfs.Default, dir, 1)
	opts.FileSize, opts.CapBytes, opts.StreamBytes = 1<<20, 16<<20, 32<<20
	l, _ := openAll(t, opts)
	defer l.Close()
	rng := rand.New(rand.NewPCG(6, 6))
	for l.NextPos().File() < 24 {
		if err := l.Append([]Record{streamRecord(rng, 2, 64)}); err != nil {
			t.Fatal(err)
		}
	}
	releaseAll(t, l)
	waitRetired(t, l)
	if u := l.Usage(); u.Spare < 20 || u.Spare > 4+24+1 {
		t.Fatalf("%d spare files: %+v", u.Spare, u)
	}
	l.KeepSpares(false)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		names, err := filepath.Glob(filepath.Join(dir, "*"+fileSuffix))
		if err != nil {
			t.Fatal(err)
		}
		if len(names) <= maxSpares+2 { // the active one, and the one prepared
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d files stay: %+v", len(names), l.Usage())
		}
	}
}
