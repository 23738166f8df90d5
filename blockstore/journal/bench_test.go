package journal

import (
	"context"
	"fmt"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// benchLog opens a log of full-size files on the disk under the temporary directory.
func benchLog(b *testing.B) *Log {
	opts := testOptions(vfs.Default, b.TempDir(), 1)
	opts.FileSize, opts.CapBytes, opts.SyncBytes = defaultFileSize, 1<<40, defaultSyncBytes
	l, _ := openAll(b, opts)
	b.Cleanup(func() { l.Close() })
	return l
}

// batchOf makes n records of 4 KiB.
func batchOf(n int) []Record {
	recs := make([]Record, n)
	for i := range recs {
		recs[i] = Record{Kind: Write, Volume: 1, Off: uint64(i) * sectorSize, Len: sectorSize, Payload: [][]byte{fill(sectorSize, uint64(i))}}
	}
	return recs
}

// recycle fills and releases files until the active one is recycled and spares are left.
func recycle(b *testing.B, l *Log) {
	recs := batchOf(32)
	for _, file := range []uint32{maxSpares + 3, maxSpares + 5} { // the second round passes the file that was prepared before the release
		for l.NextPos().File() < file {
			if err := l.Append(recs); err != nil {
				b.Fatal(err)
			}
		}
		releaseAll(b, l)
		waitRetired(b, l)
	}
}

// releaseAll syncs and releases all but the active file.
func releaseAll(b testing.TB, l *Log) {
	if err := l.Sync(context.Background()); err != nil {
		b.Fatal(err)
	}
	waitSealed(l)
	if err := l.ReleaseBefore(l.NextPos()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkAppend writes batches of 4 KiB records, into new files or recycled ones, with or without a sync after each batch.
func BenchmarkAppend(b *testing.B) {
	for _, recycled := range []bool{false, true} {
		for _, syncs := range []bool{false, true} {
			for _, n := range []int{1, 8, 32} {
				b.Run(fmt.Sprintf("recycled=%v/sync=%v/batch=%d", recycled, syncs, n), func(b *testing.B) {
					benchAppend(b, n, recycled, syncs)
				})
			}
		}
	}
}

func benchAppend(b *testing.B, n int, recycled, syncs bool) {
	l := benchLog(b)
	if recycled {
		recycle(b, l)
	}
	recs := batchOf(n)
	file := l.NextPos().File()
	b.SetBytes(int64(n) * sectorSize)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := l.Append(recs); err != nil {
			b.Fatal(err)
		}
		if syncs {
			if err := l.Sync(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
		if now := l.NextPos().File(); recycled && now > file+1 {
			file = now
			_, pos := l.Durable()
			if err := l.ReleaseBefore(pos); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkSync measures a group commit shared by many appenders.
func BenchmarkSync(b *testing.B) {
	l := benchLog(b)
	b.SetParallelism(16)
	b.SetBytes(sectorSize)
	b.RunParallel(func(pb *testing.PB) {
		recs := batchOf(1)
		for pb.Next() {
			if err := l.Append(recs); err != nil {
				b.Error(err)
			}
			if err := l.Sync(context.Background()); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkPin measures what each read pays to keep files from being recycled.
func BenchmarkPin(b *testing.B) {
	l, _ := openAll(b, testOptions(vfs.NewCrashableMem(), "log", 1))
	defer l.Close()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l.Pin().Release()
		}
	})
}

// BenchmarkRead reads single sectors that the kernel has in memory.
func BenchmarkRead(b *testing.B) {
	for name, read := range map[string]func(*Log, []byte, Pos, []uint32) error{"wait": (*Log).ReadAt, "try": (*Log).TryReadAt} {
		b.Run(name, func(b *testing.B) {
			l := benchLog(b)
			recs := batchOf(512)
			if err := l.Append(recs); err != nil {
				b.Fatal(err)
			}
			p := make([]byte, sectorSize)
			b.SetBytes(sectorSize)
			b.ReportAllocs()
			for i := range b.N {
				r := &recs[i*37%len(recs)]
				pin := l.Pin()
				if err := read(l, p, r.Pos, r.Sums); err != nil {
					b.Fatal(err)
				}
				pin.Release()
			}
		})
	}
}

// BenchmarkReplay decodes the indexes of sealed files of 4 KiB records. Bytes are those of the records, not of the index.
func BenchmarkReplay(b *testing.B) {
	f := &logFile{header: FileHeader{ID: 1, FirstSeq: 1, Capacity: defaultFileSize}}
	f.start()
	r := f.room()
	rec := Record{Kind: Write, Volume: 1, Len: sectorSize, Payload: [][]byte{fill(sectorSize, 1)}}
	if err := rec.prepare(); err != nil {
		b.Fatal(err)
	}
	for i := 0; r.take(&rec); i++ {
		h := RecordHeader{Kind: Write, Volume: 1, Off: uint64(i*7919%(1<<19)) * sectorSize, Len: sectorSize, Time: 1e18 + int64(i)*5000, PayloadLen: sectorSize, Sectors: 1}
		f.add(&h, rec.Sums)
	}
	ft := f.footer(0)
	index := f.index
	lend := new(entries)
	count := uint64(0)
	b.SetBytes(int64(f.records) * sectorSize)
	b.ReportMetric(float64(len(index))/float64(f.records), "index-bytes/record")
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := replaySealed(f, &ft, index, 0, lend, func(r *Replayed) error { count += uint64(len(r.Sums)); return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(count), "ns/record")
}

// BenchmarkOpen opens a log of a gigabyte of 4 KiB records, sealed.
func BenchmarkOpen(b *testing.B) {
	opts := testOptions(vfs.Default, b.TempDir(), 1)
	opts.FileSize, opts.CapBytes = defaultFileSize, 1<<40
	l, _ := openAll(b, opts)
	recs := batchOf(32)
	for l.Usage().Appended < 1<<30 {
		if err := l.Append(recs); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(1 << 30)
	b.ResetTimer()
	for i := range b.N {
		opts.BootEpoch = uint64(i + 2)
		n := 0
		l, err := Open(opts, 0, func(r *Replayed) error { n += len(r.Sums); return nil })
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if n < 1<<30/(sectorSize+200) {
			b.Fatal(n)
		}
		l.Close()
		b.StartTimer()
	}
}

// BenchmarkStream appends records of 1 MiB to a log that syncs itself and goes round every 4 GiB, through the page cache and around it.
func BenchmarkStream(b *testing.B) {
	for _, way := range []struct {
		name  string
		flags uint16
	}{{"cache", 0}, {"around", FlagStream}} {
		b.Run(way.name, func(b *testing.B) {
			opts := testOptions(vfs.Default, b.TempDir(), 1)
			opts.FileSize, opts.CapBytes, opts.StreamBytes, opts.SyncBytes = defaultFileSize, 16<<30, 1<<40, defaultSyncBytes
			l, _ := openAll(b, opts)
			defer l.Close()
			data := fill(1<<20, 1)
			rec := []Record{{Kind: Write, Volume: 1, Len: 1 << 20, Flags: way.flags, Payload: [][]byte{data}}}
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if err := l.Append(rec); err != nil {
					b.Fatal(err)
				}
				if n%4096 == 4095 {
					_, pos := l.Durable()
					if err := l.ReleaseBefore(pos); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
