package main

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// Whatever pieces a stream has, over the ends of regions too, regions have its bytes, and nothing of what was in the buffer before; and a stream that is cut anywhere is an error.
func TestVolumeStream(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 7))
		size := []int{1, 511, 4096, backup.RegionSize, backup.RegionSize + 1, 2*backup.RegionSize + 12345, 3*backup.RegionSize - 1}[seed%7]
		want := make([]byte, size)
		var stream bytes.Buffer
		w, err := transfer.NewWriter(&stream, uint64(size))
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < size; {
			n := min(size-at, 1+rng.IntN(1<<(4+rng.IntN(22))))
			if rng.IntN(2) == 0 {
				w.Hole(uint64(n))
			} else {
				n = min(n, transfer.MaxPayload)
				p := want[at : at+n]
				if rng.IntN(8) > 0 { // else zeroes are told as data
					for i := range p {
						p[i] = byte(at + i*7 + 1)
					}
				}
				if err := w.Data(p); err != nil {
					t.Fatal(err)
				}
			}
			at += n
		}
		if err := w.End(); err != nil {
			t.Fatal(err)
		}
		if err := readRegions(stream.Bytes(), want); err != nil {
			t.Fatalf("seed %d, %d B: %v", seed, size, err)
		}
		for range 3 {
			if cut := rng.IntN(stream.Len()); readRegions(stream.Bytes()[:cut], want) == nil {
				t.Errorf("seed %d: a stream that is cut at %d of %d B is taken", seed, cut, stream.Len())
			}
		}
	}
}

func readRegions(stream, want []byte) error {
	r, err := transfer.NewReader(bytes.NewReader(stream))
	if err != nil {
		return err
	}
	v := &volumeStream{stream: r}
	buffer := bytes.Repeat([]byte{0xee}, backup.RegionSize)
	for off := 0; off < len(want); off += backup.RegionSize {
		part := want[off:min(len(want), off+backup.RegionSize)]
		p := buffer[:len(part)]
		zero, err := v.Region(context.Background(), p, uint64(off))
		if err != nil {
			return err
		}
		if zero {
			p = make([]byte, len(part))
		}
		if !bytes.Equal(p, part) {
			return errors.New("other bytes")
		}
	}
	return nil
}
