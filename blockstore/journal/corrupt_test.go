package journal

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// syncedRecords writes n records, each synced before the next, to a log on fsys: writes, and a control record in the middle.
func syncedRecords(t *testing.T, fsys vfs.FS, n int) (*Log, []entry) {
	t.Helper()
	opts := testOptions(fsys, "log", 1)
	opts.FileSize = MinFileSize
	l, _ := openAll(t, opts)
	var all []entry
	for i := range n {
		rec := []Record{{Kind: Write, Volume: 3, MapEpoch: 9, Flags: 5, Off: 8192, Len: sectorSize, Payload: [][]byte{fill(sectorSize, uint64(i))}}}
		if i == n/2 {
			rec[0] = Record{Kind: FirstControl, Volume: 3, Off: 1, Len: 2, Payload: [][]byte{fill(100, uint64(i))}}
		}
		if err := l.Append(rec); err != nil {
			t.Fatal(err)
		}
		if err := l.Sync(context.Background()); err != nil {
			t.Fatal(err)
		}
		all = append(all, remember(&rec[0]))
	}
	return l, all
}

// flip inverts one bit of a file.
func flip(t *testing.T, fsys vfs.FS, name string, off int64) {
	t.Helper()
	f, err := vfs.OpenUpdate(fsys, name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if err := vfs.ReadFull(f, b[:], off); err != nil {
		t.Fatalf("flip at %d: %v", off, err)
	}
	b[0] ^= 1 << (off % 8)
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// TestEveryByteOfAnUnsealedFile flips a bit in each byte of an unsealed file in turn. All that a later record proves to have been synced
// must be missed.
func TestEveryByteOfAnUnsealedFile(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, all := syncedRecords(t, mem, 4)
	defer l.Close()
	end, last := l.NextPos().Offset(), all[3].Pos.Offset()-recordSize-descSize
	for off := int64(0); off < end; off++ {
		inHeaders := off < coreSize
		for _, e := range all {
			d := e.Pos.Offset() - off
			inHeaders = inHeaders || d > 0 && d <= recordSize+descSize
		}
		if !inHeaders && off%509 != 0 {
			continue
		}
		clone := mem.CrashClone(vfs.CrashCloneCfg{})
		flip(t, clone, "log/00000001.log", off)
		l, got, err := tryOpen(testOptions(clone, "log", 2), 0)
		if off < last {
			if !errors.Is(err, block.ErrCorrupt) {
				t.Fatalf("byte %d: open gives %d records and %v", off, len(got), err)
			}
			continue
		}
		// Nothing was written after the last record, so its loss cannot be proved; but it must not be replayed.
		if err != nil || len(got) != 3 {
			t.Fatalf("byte %d of the last record: open gives %d records and %v", off, len(got), err)
		}
		comparePrefix(t, got, all)
		l.Close()
	}
}

// TestEveryByteOfASeal flips a bit in each byte of index and footer. The records are found by reading them, and the tools complain.
func TestEveryByteOfASeal(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, all := syncedRecords(t, mem, 4)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	const name = "log/00000001.log"
	info, err := ReadFile(mem, name, testKeys(), true, func(*Replayed) error { return nil })
	if err != nil || info.Footer == nil || info.Records != 4 {
		t.Fatalf("%+v, %v", info, err)
	}
	var offs []int64
	for i := range info.Footer.IndexLen {
		offs = append(offs, info.Footer.IndexOff+i)
	}
	for i := range int64(coreSize) {
		offs = append(offs, info.Header.Capacity-pageSize+i)
	}
	offs = append(offs, info.Header.Capacity-1)
	for _, off := range offs {
		clone := mem.CrashClone(vfs.CrashCloneCfg{})
		flip(t, clone, name, off)
		bad, err := ReadFile(clone, name, testKeys(), true, func(*Replayed) error { return nil })
		if err == nil && bad.Footer != nil {
			t.Fatalf("byte %d: the seal is accepted", off)
		}
		var sum Recovery
		opts := testOptions(clone, "log", 2)
		opts.Events.Recovered = func(r Recovery) { sum = r }
		l, got := openAll(t, opts)
		if len(got) != 4 || sum.Scanned != 1 {
			t.Fatalf("byte %d: %d records, %d files scanned", off, len(got), sum.Scanned)
		}
		comparePrefix(t, got, all)
		l.Close()
	}
}

// TestEveryByteOfASealedRecord flips bits in the data of a sealed file, which recovery does not read: reads and the tools do.
func TestEveryByteOfASealedRecord(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, all := syncedRecords(t, mem, 4)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	end := all[3].Pos.Offset() + sectorSize
	for off := int64(pageSize); off < end; off += 31 {
		clone := mem.CrashClone(vfs.CrashCloneCfg{})
		flip(t, clone, "log/00000001.log", off)
		if _, err := ReadFile(clone, "log/00000001.log", testKeys(), true, func(*Replayed) error { return nil }); !errors.Is(err, block.ErrCorrupt) {
			t.Fatalf("byte %d: verify gives %v", off, err)
		}
		l, got, err := tryOpen(testOptions(clone, "log", 2), 0)
		if control := all[2].Pos.Offset(); off >= control && off < control+100 {
			if !errors.Is(err, block.ErrCorrupt) {
				t.Fatalf("byte %d of a control payload: open gives %v", off, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("byte %d: %v", off, err)
		}
		for i := range got {
			got[i].data = all[i].data
			hit := got[i].Kind == Write && off >= got[i].Pos.Offset() && off < got[i].Pos.Offset()+sectorSize
			if err := readBack(l, &got[i]); errors.Is(err, block.ErrCorrupt) != hit {
				t.Fatalf("byte %d, record %d: read gives %v", off, i, err)
			}
		}
		l.Close()
	}
}

// TestDamageIsNotATornTail damages a synced record in a file that a later file follows.
func TestDamageIsNotATornTail(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, all := syncedRecords(t, mem, 12) // three files
	defer l.Close()
	if all[11].Pos.File() < 3 {
		t.Fatal("not enough files")
	}
	waitSealed(l)
	for _, damage := range []func(fsys vfs.FS){
		func(fsys vfs.FS) { // record and footer of the first file
			flip(t, fsys, "log/00000001.log", all[2].Pos.Offset()+50)
			flip(t, fsys, "log/00000001.log", MinFileSize-pageSize+20)
		},
		func(fsys vfs.FS) { flip(t, fsys, "log/00000002.log", 40) }, // header
		func(fsys vfs.FS) { remove(t, fsys, "log/00000002.log") },
		func(fsys vfs.FS) { remove(t, fsys, "log/00000001.log") },
	} {
		clone := mem.CrashClone(vfs.CrashCloneCfg{})
		damage(clone)
		opts := testOptions(clone, "log", 2)
		_, got, err := tryOpen(opts, 0)
		if !errors.Is(err, block.ErrCorrupt) {
			t.Fatalf("open gives %d records and %v", len(got), err)
		}
		opts.AcceptLoss, opts.MinSeq = true, 100
		var sum Recovery
		opts.Events.Recovered = func(r Recovery) { sum = r }
		l, _, err := tryOpen(opts, 0)
		if err != nil || !errors.Is(sum.Lost, block.ErrCorrupt) {
			t.Fatalf("accepting the loss: %v, lost %v", err, sum.Lost)
		}
		rec := Record{Kind: Trim}
		if err := l.AppendControl(&rec); err != nil || rec.Seq < 100 {
			t.Fatalf("append after a loss: seq %d, %v", rec.Seq, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func remove(t *testing.T, fsys vfs.FS, name string) {
	t.Helper()
	if err := fsys.Remove(name); err != nil {
		t.Fatal(err)
	}
}

// TestForeignFiles opens logs that are not ours to write.
func TestForeignFiles(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Options)
		want   error
	}{
		{"other store", func(o *Options) { o.StoreID[0] ^= 1 }, block.ErrCorrupt},
		{"newer owner", func(o *Options) { o.OwnerEpoch = 0 }, block.ErrInUse},
		{"boot epoch not bumped", func(o *Options) { o.BootEpoch = 1 }, block.ErrInvalid},
	} {
		mem := vfs.NewCrashableMem()
		l, _ := syncedRecords(t, mem, 2)
		l.Close()
		opts := testOptions(mem, "log", 2)
		c.change(&opts)
		if _, _, err := tryOpen(opts, 0); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestNewerVersion opens files of a version to come: they must be refused, not taken for damage and removed.
func TestNewerVersion(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, _ := syncedRecords(t, mem, 2)
	l.Close()
	f, err := vfs.OpenUpdate(mem, "log/00000001.log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, pageSize)
	if err := vfs.ReadFull(f, page, 0); err != nil {
		t.Fatal(err)
	}
	le.PutUint32(page[8:], formatVersion+1)
	le.PutUint32(page[coreSize-4:], checksum(page[:coreSize-4]))
	if _, err := f.WriteAt(page, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tryOpen(testOptions(mem, "log", 2), 0); !errors.Is(err, block.ErrVersion) {
		t.Fatal(err)
	}
	if _, err := mem.Stat("log/00000001.log"); err != nil {
		t.Fatal(fmt.Errorf("file of a newer version: %w", err))
	}
}
