package erasure

import (
	"bytes"
	"encoding/binary"
	"flag"
	"hash/crc32"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write the golden bytes anew")

// goldenSegment is bytes that a formula gives: 5 columns, the last one short.
func goldenSegment() []byte {
	b := make([]byte, 4*ColumnSize+1000)
	for i := range b {
		b[i] = byte(i*i>>7 + 3*i)
	}
	return b
}

// TestGolden keeps the bytes of a sidecar as they were.
func TestGolden(t *testing.T) {
	id, got := encode(t, goldenSegment(), Shape{2, 1})
	const name = "testdata/parity-2+1"
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
		t.Error("a sidecar is not written as it was")
	}
	repair(t, &file{b: goldenSegment()[:3*ColumnSize]}, want, id, goldenSegment())
}

// Fields that are wrong under a right checksum: a writer's bug, or an attacker. Offsets are those of docs/format/parity.md.
func TestHostileHeads(t *testing.T) {
	_, sidecar := encode(t, goldenSegment(), Shape{2, 1})
	le := binary.LittleEndian
	for name, change := range map[string]func(b []byte){
		"version":        func(b []byte) { b[8] = 2 },
		"no data":        func(b []byte) { b[12] = 0 },
		"1+1":            func(b []byte) { b[12] = 1 },
		"2+3":            func(b []byte) { b[13] = 3 },
		"32 shards":      func(b []byte) { b[12] = 31 },
		"stripes here":   func(b []byte) { b[14]++ },
		"reserved":       func(b []byte) { b[15] = 1 },
		"no size":        func(b []byte) { le.PutUint64(b[48:], 0) },
		"size":           func(b []byte) { le.PutUint64(b[48:], 1<<63) },
		"larger":         func(b []byte) { le.PutUint64(b[48:], 64<<20+1) },
		"stripes":        func(b []byte) { le.PutUint32(b[56:], 1<<32-1) },
		"group":          func(b []byte) { le.PutUint32(b[60:], 1) },
		"group 2^32-1":   func(b []byte) { le.PutUint32(b[60:], 1<<32-1) },
		"key id":         func(b []byte) { b[64] = 1 },
		"reserved end":   func(b []byte) { b[123] = 1 },
		"behind sums":    func(b []byte) { b[124+4*9] = 1 },
		"before the crc": func(b []byte) { b[4091] = 1 },
		"missing column": func(b []byte) { b[124+4*5] = 1 }, // column 5 of 5
	} {
		b := bytes.Clone(sidecar[:headSize])
		if _, err := parseHead(b); err != nil {
			t.Fatal(err)
		}
		change(b)
		le.PutUint32(b[4092:], crc32.Checksum(b[:4092], castagnoli))
		if _, err := parseHead(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for at := range headSize {
		b := bytes.Clone(sidecar[:headSize])
		b[at] ^= 0x20
		if _, err := parseHead(b); err == nil {
			t.Errorf("a flip at %d goes unseen", at)
		}
	}
}
