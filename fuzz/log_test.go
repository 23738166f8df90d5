package fuzz

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// Places in the format of the log, from docs/format/log.md.
const (
	logPage    = 4096
	logCore    = 508 // offset of the checksum of header and footer
	logRecord  = 96
	logMaxFile = 1 << 20 // larger files are refused by the fuzz target, not by the log
)

// goldenLogs returns the golden files of the log.
func goldenLogs(f *testing.F) (files [][]byte) {
	f.Helper()
	paths, err := filepath.Glob("../blockstore/journal/testdata/*.log")
	if err != nil || len(paths) == 0 {
		f.Fatalf("golden log files: %v, %v", paths, err)
	}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		files = append(files, data)
	}
	return files
}

// allowed fails the test on an error that does not say what is wrong with the bytes.
func allowed(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
		t.Fatalf("error without a sentinel: %v", err)
	}
}

// FuzzLogRecord decodes record headers, with their checksum mended so that the checks behind it are reached.
func FuzzLogRecord(f *testing.F) {
	table := crc32.MakeTable(crc32.Castagnoli)
	for _, file := range goldenLogs(f) {
		f.Add(file[logPage:logPage+logRecord], binary.LittleEndian.Uint32(file[logCore:]))
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint32) {
		_, err := journal.ParseRecordHeader(b, seed)
		allowed(t, err)
		if len(b) < logRecord {
			return
		}
		b = append([]byte(nil), b...)
		binary.LittleEndian.PutUint32(b[88:], crc32.Update(seed, table, b[:88]))
		h, err := journal.ParseRecordHeader(b, seed)
		allowed(t, err)
		if err == nil && (h.PayloadLen > journal.MaxWrite || h.Sectors > journal.MaxWrite/block.Size || h.Kind == journal.Write && uint64(h.PayloadLen) != h.Len) {
			t.Fatalf("header out of bounds is accepted: %+v", h)
		}
	})
}

// FuzzLogFile reads whole files, as they are and with the checksums of header, index and footer mended: first as a tool does, then as
// recovery does.
func FuzzLogFile(f *testing.F) {
	for _, file := range goldenLogs(f) {
		f.Add(file, false)
		f.Add(file, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, mend bool) {
		if len(data) < logPage || len(data) > logMaxFile {
			return
		}
		data = append([]byte(nil), data...)
		if mend {
			mendLog(data)
		}
		if capacity := binary.LittleEndian.Uint64(data[120:]); capacity > logMaxFile {
			return // a file in memory grows byte by byte
		}
		mem := vfs.NewCrashableMem()
		if err := mem.MkdirAll("log", 0o700); err != nil {
			t.Fatal(err)
		}
		const name = "log/00000001.log"
		file, err := vfs.Create(mem, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		for _, verify := range []bool{false, true} {
			_, err := journal.ReadFile(mem, name, nil, verify, func(r *journal.Replayed) error { return inBounds(t, r) })
			allowed(t, err)
		}
		recoverLog(t, mem, data)
	})
}

// recoverLog opens a log whose only file is given.
func recoverLog(t *testing.T, mem vfs.FS, data []byte) {
	opts := journal.Options{
		FS: mem, Dir: "log", StoreID: block.UUID(data[16:32]), BootEpoch: 1<<64 - 1, OwnerEpoch: 1<<64 - 1,
		FileSize: journal.MinFileSize, SyncEvery: -1, AcceptLoss: data[len(data)-1]&1 == 1,
	}
	l, err := journal.Open(opts, 0, func(r *journal.Replayed) error { return inBounds(t, r) })
	if errors.Is(err, block.ErrInvalid) {
		return // the greatest of all boot epochs
	}
	allowed(t, err)
	if err == nil {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// inBounds checks what a replayed record promises.
func inBounds(t *testing.T, r *journal.Replayed) error {
	if r.Kind == journal.Write && (r.Len > journal.MaxWrite || uint64(len(r.Sums)) != r.Len/block.Size) || len(r.Payload) > journal.MaxControl {
		t.Fatalf("record out of bounds: %+v", r)
	}
	return nil
}

// mendLog makes the checksums of header, index and footer fit what they cover.
func mendLog(data []byte) {
	le, table := binary.LittleEndian, crc32.MakeTable(crc32.Castagnoli)
	seed := crc32.Checksum(data[:logCore], table)
	le.PutUint32(data[logCore:], seed)
	capacity := le.Uint64(data[120:])
	if capacity > uint64(len(data)) || capacity < 2*logPage {
		return
	}
	footer := data[capacity-logPage : capacity]
	off, n := le.Uint64(footer[72:]), le.Uint64(footer[80:])
	if off <= uint64(len(data)) && n <= uint64(len(data))-off {
		le.PutUint32(footer[92:], crc32.Update(seed, table, data[off:off+n]))
	}
	le.PutUint32(footer[logCore:], crc32.Update(seed, table, footer[:logCore]))
}
