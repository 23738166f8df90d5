package stripe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

var update = flag.Bool("update", false, "write the golden bytes anew")

// goldenSegment is bytes that a formula gives: 5 columns, the last one short.
func goldenSegment() []byte {
	b := make([]byte, 4*columnSize+1000)
	for i := range b {
		b[i] = byte(i*i>>7 + 3*i)
	}
	return b
}

// TestGolden keeps the bytes of shards as they were, and reads those that are kept with one of them missing.
func TestGolden(t *testing.T) {
	mem := vfs.NewCrashableMem()
	b := openOver(t, mem, shape(2, 1), dirs[:3]...)
	key := tiers.SegmentKey(3, 2)
	put(t, b, key, goldenSegment())
	if err := cut(b, key); err != nil {
		t.Fatal(err)
	}
	paths := shardPaths(t, b, key)
	for i, path := range paths {
		got := readAll(t, mem, path)
		name := fmt.Sprintf("testdata/shard-2+1.%02d", i)
		if *update {
			if err := os.WriteFile(name, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("shard %d is not written as it was", i)
		}
	}
	if err := mem.Remove(paths[0]); err != nil {
		t.Fatal(err)
	}
	if err := compare(b, key, goldenSegment()); err != nil {
		t.Fatal(err)
	}
}

func readAll(t *testing.T, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
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

// Fields that are wrong under a right checksum. Offsets are those of docs/format/shard.md.
func TestHostileHeads(t *testing.T) {
	golden, err := os.ReadFile("testdata/shard-2+1.00")
	if err != nil {
		t.Fatal(err)
	}
	mem := vfs.NewCrashableMem()
	b := openOver(t, mem, shape(2, 1), dirs[:3]...)
	key := tiers.SegmentKey(3, 2)
	put(t, b, key, goldenSegment())
	if err := cut(b, key); err != nil {
		t.Fatal(err)
	}
	path := shardPaths(t, b, key)[0]
	for name, change := range map[string]func(h []byte){
		"version":    func(h []byte) { h[8] = 2 },
		"no data":    func(h []byte) { h[12] = 0 },
		"no parity":  func(h []byte) { h[13] = 0 },
		"9 parity":   func(h []byte) { h[13] = 9 },
		"32 shards":  func(h []byte) { h[12] = 31 },
		"number":     func(h []byte) { h[14] = 3 },
		"another":    func(h []byte) { h[14] = 1 },
		"reserved":   func(h []byte) { h[15] = 1 },
		"store":      func(h []byte) { h[16]++ },
		"segment":    func(h []byte) { h[32]++ },
		"generation": func(h []byte) { h[40]++ },
		"no size":    func(h []byte) { clear(h[48:56]) },
		"size":       func(h []byte) { h[48]++ },
		"2^63":       func(h []byte) { h[55] = 0x80 },
		"reserved 2": func(h []byte) { h[4000] = 1 },
	} {
		bad := append([]byte(nil), golden...)
		change(bad[:headSize])
		binary.LittleEndian.PutUint32(bad[headSize-4:], crc32.Checksum(bad[:headSize-4], castagnoli))
		f, err := vfs.Create(mem, path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(bad); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := compare(b, key, goldenSegment()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if rep, err := b.Check(context.Background(), key, false, nil); err != nil || rep.Missing != 1 {
			t.Errorf("%s: %+v, %v", name, rep, err)
		}
	}
	if _, err := parseHead(nil); !errors.Is(err, block.ErrCorrupt) {
		t.Error(err)
	}
}
