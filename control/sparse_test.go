package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

// holed is a device with data in some blocks. It says so in pieces, and not of all at once.
type holed struct {
	Device
	data []byte
	has  []bool
	rng  *rand.Rand
}

// Size implements Device.
func (h *holed) Size() uint64 { return uint64(len(h.data)) }

// ReadAt implements Device.
func (h *holed) ReadAt(_ context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	if off > h.Size() || uint64(len(p)) > h.Size()-off {
		return holes, block.ErrOutOfRange
	}
	copy(p, h.data[off:])
	return holes, nil
}

// Depths implements Device.
func (h *holed) Depths(_ context.Context, r block.Range, emit func(n uint64, depth uint32) bool) error {
	for at := r.Off; at < r.End(); {
		n := min(r.End(), (at/block.Size+1)*block.Size) - at
		depth := uint32(0)
		if h.has[at/block.Size] {
			depth = 2
		}
		if !emit(n, depth) || h.rng.IntN(10) == 0 {
			return nil
		}
		at += n
	}
	return nil
}

// Whatever ranges are asked for, unsorted, over one another and at odd places: the stream has the bytes of each, one after the other, and no holes where data is.
func TestSparseParts(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 3))
		h := &holed{data: make([]byte, 3<<20+5000), rng: rand.New(rand.NewPCG(seed, 4))}
		h.has = make([]bool, len(h.data)/block.Size+1)
		for at, has := 0, false; at < len(h.data); has = !has {
			n := block.Size * (1 + rng.IntN(1<<rng.IntN(8)))
			for i := at; i < min(len(h.data), at+n) && has; i++ {
				h.data[i], h.has[i/block.Size] = byte(i*3+i>>9), true
			}
			at += n
		}
		var parts []block.Range
		var want []byte
		for range 1 + rng.IntN(200) {
			off := rng.IntN(len(h.data))
			n := min(len(h.data)-off, 1+rng.IntN(1<<rng.IntN(18)))
			parts = append(parts, block.Range{Off: uint64(off), Len: uint64(n)})
			want = append(want, h.data[off:off+n]...)
		}
		source, err := newSparse(t.Context(), h, parts)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := send(t.Context(), source, &out); err != nil {
			t.Fatal(err)
		}
		stream, err := transfer.NewReader(&out)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 0, len(want))
		for {
			piece, err := stream.Next(func(n int) []byte { return make([]byte, n) })
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if piece.Data == nil {
				piece.Data = make([]byte, piece.Length)
			}
			got = append(got, piece.Data...)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("seed %d: %d ranges of %d B: other bytes", seed, len(parts), len(want))
		}
	}
}
