package vfs

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// TestDirectWriter writes runs of buffers of all lengths and alignments around the page cache, in the middle of a file and one behind the other, and compares what the file holds.
func TestDirectWriter(t *testing.T) {
	f, err := Create(Default, filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 64 << 20
	if err := Preallocate(f, size); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDirect(f)
	if errors.Is(err, ErrNotDirect) {
		t.Skip("the file system of the temporary directory has no O_DIRECT")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	w := NewDirectWriter()
	defer w.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	data := AlignedBuffer(8 << 20)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	want := make([]byte, size)
	var tail [directBlock]byte
	off := int64(rng.IntN(100_000))
	begun := off % directBlock // nothing is there yet: zeroes
	for off < size-(6<<20) {
		var bufs [][]byte
		at := off
		for range 1 + rng.IntN(6) {
			n := []int{0, 1, 95, 512, 4096, 5216, rng.IntN(20_000), rng.IntN(3 << 20)}[rng.IntN(8)]
			from := rng.IntN(len(data) - n)
			if rng.IntN(2) == 0 { // aligned
				from &^= directBlock - 1
				n &^= directBlock - 1
			}
			if int(at)+n > size-directBlock {
				break
			}
			bufs = append(bufs, data[from:from+n])
			at += int64(copy(want[at:], data[from:from+n]))
		}
		if err := w.WriteVec(d, tail[:begun], bufs, off, tail[:]); err != nil {
			t.Fatal(err)
		}
		off, begun = at, at%directBlock
		if !bytes.Equal(tail[:begun], want[at-begun:at]) {
			t.Fatalf("the block that was begun at %d is not told right", at-begun)
		}
		if rng.IntN(4) == 0 { // somebody writes through the page cache between
			p := data[:rng.IntN(9000)]
			if err := WriteVec(f, [][]byte{p}, off); err != nil {
				t.Fatal(err)
			}
			off += int64(copy(want[off:], p))
			begun = off % directBlock
			copy(tail[:], want[off-begun:off])
		}
	}
	got := make([]byte, size)
	if err := ReadFull(f, got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:off], want[:off]) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		t.Fatalf("the file differs from %d on", i)
	}
	if err := w.WriteVec(d, nil, [][]byte{data[:10]}, 5, tail[:]); err == nil {
		t.Fatal("a write in the middle of a block without what lies before it was taken")
	}
}
