package fuzz

import (
	"bytes"
	"context"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// FuzzParity: no bytes of a sidecar make its reader panic, allocate what no segment needs, or give out other bytes than those that its checksums name.
func FuzzParity(f *testing.F) {
	segment := bytes.Repeat([]byte("a sealed segment "), 2000)
	id := erasure.Identity{StoreID: block.UUID{1}, Segment: 2, Generation: 3, SizeBytes: int64(len(segment)), FooterCRC: 4}
	sidecar := paritySidecar(f, segment, id)
	f.Add(sidecar, uint16(0))
	f.Add(sidecar[:len(sidecar)-5000], uint16(9000))
	f.Fuzz(func(t *testing.T, b []byte, at uint16) {
		readParity(t, segment, id, b, int(at)%len(segment))
		readParity(t, segment, id, withHeadChecksums(b), int(at)%len(segment))
	})
}

func paritySidecar(tb testing.TB, segment []byte, id erasure.Identity) []byte {
	tb.Helper()
	c, err := erasure.NewCoder(erasure.Shape{Data: 3, Parity: 2})
	if err != nil {
		tb.Fatal(err)
	}
	r := bytes.NewReader(segment)
	sums, err := erasure.Sums(context.Background(), r, id.SizeBytes, nil, func([]byte) {})
	if err != nil {
		tb.Fatal(err)
	}
	var out bytes.Buffer
	if err := c.Encode(context.Background(), r, id, sums, &out, nil); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// readParity opens a sidecar and reads around a column that was lost.
func readParity(t *testing.T, segment []byte, id erasure.Identity, b []byte, at int) {
	s, err := erasure.Open(bytes.NewReader(b), int64(len(b)), id)
	if err != nil {
		if !refusal(err) {
			t.Fatalf("open: %v", err)
		}
		return
	}
	damaged := bytes.Clone(segment)
	damaged[at] ^= 0x55
	src := bytes.NewReader(damaged)
	if _, err := s.Verify(context.Background(), src, nil); err != nil {
		t.Fatalf("verify: %v", err)
	}
	p := make([]byte, 1)
	if n, err := s.ReadAt(src, p, int64(at)); err != nil && !refusal(err) {
		t.Fatalf("read: %v", err)
	} else if err == nil && n == 0 && p[0] != damaged[at] {
		t.Fatal("a byte that was not mended is not what was read")
	}
	c, err := erasure.NewCoder(s.Shape())
	if err != nil {
		t.Fatal(err)
	}
	copied := &parityCopy{b: make([]byte, id.SizeBytes)}
	if _, err := s.Mend(context.Background(), src, copied, c, nil); err != nil {
		t.Fatalf("mend: %v", err)
	}
}

type parityCopy struct{ b []byte }

func (c *parityCopy) WriteAt(p []byte, off int64) (int, error) { return copy(c.b[off:], p), nil }

// withHeadChecksums returns a copy of b in which what may be a head has the right checksum.
func withHeadChecksums(b []byte) []byte {
	b = bytes.Clone(b)
	for at := 0; at+4096 <= len(b); at += 4096 {
		if string(b[at:at+8]) == "HNPARITY" {
			putCRC(b[at+4092:], b[at:at+4092])
		}
	}
	return b
}
