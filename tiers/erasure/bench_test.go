package erasure

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"
)

const benchSize = 64 << 20

// BenchmarkEncode makes the sidecar of a full segment, its checksums included. Bytes are those of the segment.
func BenchmarkEncode(b *testing.B) {
	segment := &file{b: randomBytes(rand.New(rand.NewPCG(1, 7)), benchSize)}
	id := testID
	id.SizeBytes = benchSize
	c, err := NewCoder(Default)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(benchSize)
	for b.Loop() {
		sums, err := Sums(context.Background(), segment, benchSize, nil, func([]byte) {})
		if err == nil {
			err = c.Encode(context.Background(), segment, id, sums, io.Discard, nil)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerify checks all columns of a segment and its sidecar.
func BenchmarkVerify(b *testing.B) {
	segment := randomBytes(rand.New(rand.NewPCG(1, 7)), benchSize)
	s := openBench(b, segment)
	b.SetBytes(benchSize)
	for b.Loop() {
		if d, err := s.Verify(context.Background(), &file{b: segment}, nil); err != nil || len(d.Columns) > 0 {
			b.Fatal(d, err)
		}
	}
}

// BenchmarkMend writes a repaired copy of a segment of which two whole shards are lost.
func BenchmarkMend(b *testing.B) {
	segment := randomBytes(rand.New(rand.NewPCG(1, 7)), benchSize)
	s := openBench(b, segment)
	clear(segment[benchSize/4:][:benchSize/8])
	c, err := NewCoder(Default)
	if err != nil {
		b.Fatal(err)
	}
	copied := &file{b: make([]byte, benchSize)}
	b.SetBytes(benchSize)
	for b.Loop() {
		if m, err := s.Mend(context.Background(), &file{b: segment}, copied, c, nil); err != nil || len(m.Lost) > 0 {
			b.Fatal(err)
		}
	}
}

func openBench(b *testing.B, segment []byte) *Sidecar {
	id, sidecar := encode(b, segment, Default)
	s, err := Open(bytes.NewReader(sidecar), int64(len(sidecar)), id)
	if err != nil {
		b.Fatal(err)
	}
	return s
}
