package fuzz

import (
	"bytes"
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/checkpoint"
)

// FuzzCheckpointPart decodes any bytes as a part of a checkpoint. What is accepted encodes to the same bytes; what is not is a named error.
func FuzzCheckpointPart(f *testing.F) {
	var b checkpoint.Builder
	b.Reset(checkpoint.Header{Kind: checkpoint.Full, Number: 1<<32 | 1})
	b.Set([]byte("Mc"), make([]byte, 120))
	b.Set([]byte("V12345678"), []byte("volume"))
	f.Add(bytes.Clone(b.Bytes(true)))
	b.Reset(checkpoint.Header{Kind: checkpoint.Delta, Number: 9, Base: 4, Part: 1, RowsBefore: 2, Previous: [16]byte{1}})
	b.Delete([]byte("C12345678"))
	b.Set([]byte("L12345678"), make([]byte, 64))
	f.Add(bytes.Clone(b.Bytes(false)))
	f.Add([]byte("HNCKPART"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := checkpoint.Decode(data)
		if err != nil {
			if !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
				t.Fatalf("unnamed error: %v", err)
			}
			return
		}
		var again checkpoint.Builder
		again.Reset(p.Header)
		var live checkpoint.LiveSet
		for r := p.Each(); r.Next(); {
			if r.Deleted {
				again.Delete(r.Key)
				continue
			}
			again.Set(r.Key, r.Value)
			if r.Key[0] == 'L' {
				live.SetRow(r.Key, r.Value)
			}
		}
		if got := again.Bytes(p.Last); !bytes.Equal(got, data) {
			t.Fatalf("encodes as\n%x, was\n%x", got, data)
		}
	})
}
