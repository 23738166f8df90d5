package journal

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

var update = flag.Bool("journal.update", false, "write the golden files anew; only for a new version of the format")

// counter is a source of salts that a reader of the golden bytes can predict: 0, 1, 2, …
type counter byte

func (c *counter) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(*c)
		*c++
	}
	return len(p), nil
}

// goldenRecords are the records of the golden files: six in the first, which is sealed, two in the second, which is not.
func goldenRecords() [][]Record {
	text := func(s string, n int) []byte { return bytes.Repeat([]byte(s), n/len(s)+1)[:n] }
	return [][]Record{
		{
			{Kind: Write, Flags: 0x0102, Volume: 7, MapEpoch: 3, Off: 1 << 30, Len: 4096, Payload: [][]byte{text("golden ", 4096)}},
			{Kind: Write, Volume: 8, Off: 8192, Len: 8192, Payload: [][]byte{text("two sectors ", 5000), text("in two pieces ", 3192)}},
			{Kind: Trim, Volume: 7, MapEpoch: 3, Off: 0, Len: 2 << 40},
			{Kind: Zero, Flags: 1, Volume: 8, Off: 512, Len: 1024},
			{Kind: 16, Volume: 7, Off: 1, Len: 2, Payload: [][]byte{[]byte("a control record")}},
			{Kind: 255, Flags: 0xffff, Volume: 1<<64 - 1, MapEpoch: 1<<32 - 1, Off: 1<<64 - 1, Len: 1<<64 - 1},
		}, {
			{Kind: 17, Volume: 9, Payload: [][]byte{[]byte("x")}},
			{Kind: Write, Volume: 9, Off: 4096, Len: 4096, Payload: [][]byte{make([]byte, 4096)}},
		},
	}
}

// writeGolden writes the golden log: two runs, one closed, one not. It returns the two files and their records.
func writeGolden(t *testing.T) (files [2][]byte, all []entry) {
	mem := vfs.NewCrashableMem()
	now := time.Unix(1_750_000_000, 0)
	salts := new(counter)
	for i, recs := range goldenRecords() {
		opts := plainOptions(mem, "log", uint64(i+1))
		opts.FileSize = MinFileSize
		opts.OwnerEpoch = 5
		opts.salts = salts
		opts.Now = func() time.Time { return now }
		l, _ := openAll(t, opts)
		waitPrepared(l) // so that salts are drawn in order
		if err := l.Append(recs); err != nil {
			t.Fatal(err)
		}
		for i := range recs {
			all = append(all, remember(&recs[i]))
		}
		if err := l.Sync(context.Background()); err != nil {
			t.Fatal(err)
		}
		name := "log/" + fileName(l.NextPos().File())
		if i == 0 {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		} else {
			defer l.Close()
		}
		files[i] = contentOf(t, mem, name)
		now = now.Add(time.Hour)
	}
	return files, all
}

func contentOf(t *testing.T, fsys vfs.FS, name string) []byte {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, st.Size())
	if err := vfs.ReadFull(f, p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestGolden checks that the bytes of version 1 are written as ever, and that files written long ago are read.
func TestGolden(t *testing.T) {
	files, all := writeGolden(t)
	names := [2]string{"sealed.log", "unsealed.log"}
	for i, name := range names {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, files[i], 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(files[i], want) {
			at := 0
			for at < min(len(want), len(files[i])) && want[at] == files[i][at] {
				at++
			}
			t.Errorf("%s: %d bytes are written, differing from the %d golden ones at %d", name, len(files[i]), len(want), at)
		}
		for _, verify := range []bool{true, false} {
			part := all[:6]
			if i == 1 {
				part = all[6:]
			}
			n := 0
			info, err := ReadFile(vfs.Default, path, nil, verify, func(r *Replayed) error {
				n++
				return part[n-1].check(r)
			})
			if err != nil || n != len(part) || (info.Footer != nil) != (i == 0) || info.Header.OwnerEpoch != 5 {
				t.Errorf("%s: %d records, %+v, %v", name, n, info, err)
			}
		}
	}
}

// TestGoldenStream checks the bytes of records of streams, whose payload begins at the border of a page, between others.
func TestGoldenStream(t *testing.T) {
	mem := vfs.NewCrashableMem()
	opts := plainOptions(mem, "log", 1)
	opts.FileSize, opts.salts = 2*MinFileSize, new(counter)
	opts.Now = func() time.Time { return time.Unix(1_750_000_000, 0) }
	l, _ := openAll(t, opts)
	text := func(s string, n int) []byte { return bytes.Repeat([]byte(s), n/len(s)+1)[:n] }
	var all []entry
	for _, rec := range []Record{
		{Kind: Write, Volume: 7, Off: 4096, Len: 4096, Payload: [][]byte{text("small ", 4096)}},
		{Kind: Write, Flags: FlagStream, Volume: 7, MapEpoch: 3, Off: 1 << 30, Len: 8192, Payload: [][]byte{text("stream ", 8192)}},
		{Kind: Trim, Volume: 7, MapEpoch: 3, Off: 0, Len: 2 << 40},
		{Kind: Write, Flags: FlagStream | 1, Volume: 8, Off: 0, Len: 4096, Payload: [][]byte{text("more ", 4096)}},
	} {
		recs := []Record{rec}
		if err := l.Append(recs); err != nil {
			t.Fatal(err)
		}
		all = append(all, remember(&recs[0]))
	}
	name := "log/" + fileName(l.NextPos().File())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got, path := contentOf(t, mem, name), filepath.Join("testdata", "stream.log")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("other bytes are written than the golden ones")
	}
	for _, verify := range []bool{true, false} {
		n := 0
		if _, err := ReadFile(vfs.Default, path, nil, verify, func(r *Replayed) error {
			n++
			return all[n-1].check(r)
		}); err != nil || n != len(all) {
			t.Errorf("%d records, %v", n, err)
		}
	}
	// A kind that does not fit its flag is no record: the log ends before it.
	i := bytes.Index(want, []byte{0x48, 0x4e, 0x4c, 0x52, alignedWrite})
	if i < 0 {
		t.Fatal("no record of kind 4")
	}
	if want[i+7]&0x80 == 0 {
		t.Errorf("kind 4 without its flag: %x", want[i:i+8])
	}
}
