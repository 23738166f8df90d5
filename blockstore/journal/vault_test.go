package journal

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// sealedOptions is testOptions for an encrypted log.
func sealedOptions(fsys vfs.FS, boot uint64) Options {
	opts := testOptions(fsys, "log", boot)
	opts.Keys = testRing()
	return opts
}

// marked makes a record whose payload can be found.
func marked(volume uint64, kind Kind, text string) Record {
	p := bytes.Repeat([]byte(text), sectorSize/len(text)+1)[:sectorSize]
	return Record{Kind: kind, Volume: block.VolumeID(volume), Off: 8192, Len: sectorSize, Payload: [][]byte{p}}
}

// crashed returns a log with two writes and a control record that was not closed, and what was appended.
func crashed(t *testing.T) (*vfs.MemFS, []Record) {
	t.Helper()
	mem := vfs.NewCrashableMem()
	l, _ := openAll(t, sealedOptions(mem, 1))
	recs := []Record{marked(1, Write, "first plain text "), marked(2, Write, "second plain text "), marked(2, FirstControl, "third plain text ")}
	if err := l.Append(recs); err != nil {
		t.Fatal(err)
	}
	if err := l.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return clone, recs
}

func bytesOf(t *testing.T, mem *vfs.MemFS, name string) []byte {
	t.Helper()
	f, err := mem.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func overwrite(t *testing.T, mem *vfs.MemFS, name string, b []byte, off int64) {
	t.Helper()
	f, err := vfs.OpenUpdate(mem, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(vfs.WriteVec(f, [][]byte{b}, off), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestEncryptedRoundTrip(t *testing.T) {
	mem, recs := crashed(t)
	for boot := uint64(2); boot < 4; boot++ { // once record by record, once by the index
		l, got := openAll(t, sealedOptions(mem, boot))
		if len(got) != 3 || !bytes.Equal(got[2].data, recs[2].Payload[0]) {
			t.Fatalf("boot %d: replayed %d records, or another control payload", boot, len(got))
		}
		p := make([]byte, sectorSize)
		pin := l.Pin()
		for i, read := range []func([]byte, Pos, []uint32) error{l.ReadAt, l.ReadMapped} {
			if err := read(p, got[i].Pos, got[i].Sums); err != nil || !bytes.Equal(p, recs[i].Payload[0]) {
				t.Fatalf("boot %d, record %d: %v, or other bytes", boot, i, err)
			}
		}
		if err := l.ReadScattered([]Piece{{p, got[1].Pos, got[1].Sums}}); err != nil || !bytes.Equal(p, recs[1].Payload[0]) {
			t.Fatalf("boot %d, scattered: %v, or other bytes", boot, err)
		}
		pin.Release()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(string(bytesOf(t, mem, "log/00000001.log")), "plain text") {
		t.Error("the file has plain text")
	}
}

func TestEncryptedLogNeedsItsKey(t *testing.T) {
	mem, _ := crashed(t)
	other, err := keyring.New(testStore)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		keys *keyring.Ring
		want error
	}{{nil, keyring.ErrNoKey}, {other, errForged}} {
		opts := sealedOptions(mem, 2)
		opts.Keys = c.keys
		if _, _, err := tryOpen(opts, 0); !errors.Is(err, c.want) {
			t.Errorf("got %v, want %v", err, c.want)
		}
	}
	plain := vfs.NewCrashableMem()
	opts := sealedOptions(plain, 1)
	opts.Keys = nil
	l, _ := openAll(t, opts)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tryOpen(sealedOptions(plain, 2), 0); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("a file in plain text among encrypted ones: %v", err)
	}
}

// A thief who may write knows every checksum: what was changed with them in order is not the end of the log, but an error.
func TestForgedRecords(t *testing.T) {
	const name = "log/00000001.log"
	forge := func(b []byte, at int64, change func(head, descs []byte)) {
		seed := le.Uint32(b[coreSize-4:])
		head, descs := b[at:at+recordSize], b[at+recordSize:at+recordSize+descSize]
		change(head, descs)
		le.PutUint32(head[88:], crc32.Update(seed, castagnoli, head[:88]))
		le.PutUint32(head[92:], chainOf(seed, head, descs))
	}
	for what, change := range map[string]func(head, descs []byte){
		"another volume":         func(head, _ []byte) { le.PutUint64(head[24:], 2) },
		"another offset":         func(head, _ []byte) { le.PutUint64(head[32:], 0) },
		"the tag of a sector":    func(_, descs []byte) { descs[5] ^= 1 },
		"the tag of the record":  func(head, _ []byte) { head[72] ^= 1 },
		"another map epoch":      func(head, _ []byte) { le.PutUint32(head[56:], 1) },
		"the flag of moved data": func(head, _ []byte) { head[6] = 1 },
	} {
		mem, _ := crashed(t)
		b := bytesOf(t, mem, name)
		forge(b, pageSize, change)
		overwrite(t, mem, name, b[pageSize:pageSize+recordSize+descSize], pageSize)
		if _, _, err := tryOpen(sealedOptions(mem, 2), 0); !errors.Is(err, errForged) {
			t.Errorf("%s: got %v, want %v", what, err, errForged)
		}
	}
}

// Sectors that changed places, with sums and chain in order, are noticed when they are read, whatever recovery sees of them.
func TestSwappedSectors(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, _ := openAll(t, sealedOptions(mem, 1))
	recs := []Record{marked(1, Write, "one"), marked(1, Write, "other")}
	if err := errors.Join(l.Append(recs), l.Sync(t.Context())); err != nil {
		t.Fatal(err)
	}
	b := bytesOf(t, mem, "log/00000001.log")
	at, from := recs[0].Pos.Offset(), recs[1].Pos.Offset()
	overwrite(t, mem, "log/00000001.log", b[from:from+sectorSize], at)
	pin := l.Pin()
	if err := l.ReadAt(make([]byte, sectorSize), recs[0].Pos, recs[1].Sums); !errors.Is(err, errForged) {
		t.Errorf("got %v, want %v", err, errForged)
	}
	pin.Release()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// An offset of a file is sealed once: after a write that failed for want of space the log goes on in another file.
func TestEncryptedLogNeverSealsAnOffsetTwice(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, _ := openAll(t, sealedOptions(mem, 1))
	rec := []Record{marked(1, Write, "x")}
	if err := l.Append(rec); err != nil {
		t.Fatal(err)
	}
	l.app.active.spent = true // as writeBatch leaves it
	first := rec[0].Pos
	if err := l.Append(rec); err != nil || rec[0].Pos.File() == first.File() {
		t.Fatalf("appended at %v after %v: %v", rec[0].Pos, first, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, got := openAll(t, sealedOptions(mem, 2))
	defer l.Close()
	if len(got) != 2 {
		t.Errorf("%d records", len(got))
	}
}
