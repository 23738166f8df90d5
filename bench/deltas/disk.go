package main

import (
	"bytes"
	"os"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
	"github.com/hyper-nixos/hyper-nixos/dedup/similar"
)

// chunk is one that is stored.
type chunk struct {
	file   *os.File // where it was seen first
	off    int64
	n      int
	hash   block.Hash
	place  uint64 // the first block of the volume that it was at
	sketch similar.Sketch
	base   int // of a delta: what it refers to; -1: none
}

// volume is a guest's disk over the days.
type volume struct {
	chunks []chunk
	known  map[block.Hash]int
	at     []int32 // which chunk is at each block, plus one; of the day before the one that is being read
	next   []int32
	cutter *cdc.Cutter
	hasher *dedup.Hasher
	plain  int64 // what the chunks of the day that is being looked at take in frames
	raw    int64 // bytes that are not zero, of all days
}

func newVolume() (*volume, error) {
	cutter, err := cdc.NewCutter(cdc.Default())
	if err != nil {
		return nil, err
	}
	key, err := dedup.DomainKeyFromBytes(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		return nil, err
	}
	return &volume{known: map[block.Hash]int{}, cutter: cutter, hasher: dedup.NewHasher(key)}, nil
}

// day reads a disk and returns the chunks that are new on it, in the order of places. Before it, at tells of the day before.
func (v *volume) day(path string) (fresh []int, err error) {
	f, err := os.Open(path) // stays open: chunks are read from it
	if err != nil {
		return nil, err
	}
	v.next = v.next[:0]
	buf := make([]byte, block.RegionSize)
	var lens []uint32
	for off := int64(0); ; off += block.RegionSize {
		n, rerr := f.ReadAt(buf, off)
		if n == 0 {
			break
		}
		region := buf[:n]
		v.next = append(v.next, make([]int32, (n+block.Size-1)/block.Size)...)
		// Only runs of blocks that are not zero are cut, as destage does with what was written.
		for at := 0; at < n; {
			if zero(region[at:min(n, at+block.Size)]) {
				at += block.Size
				continue
			}
			end := at
			for end < n && !zero(region[end:min(n, end+block.Size)]) {
				end += block.Size
			}
			end = min(end, n)
			v.raw += int64(end - at)
			lens = v.cutter.Cut(lens[:0], region[at:end], uint64(off)+uint64(at))
			for _, l := range lens {
				p := region[at : at+int(l)]
				id, isNew := v.add(f, off+int64(at), p)
				if isNew {
					fresh = append(fresh, id)
				}
				for b := (off + int64(at)) / block.Size; b*block.Size < off+int64(at)+int64(l); b++ {
					if v.next[b] == 0 {
						v.next[b] = int32(id) + 1
					}
				}
				at += int(l)
			}
		}
		if rerr != nil {
			break
		}
	}
	return fresh, nil
}

// turn makes the day that was read the day before.
func (v *volume) turn() { v.at, v.next = v.next, v.at }

func (v *volume) add(f *os.File, off int64, p []byte) (id int, isNew bool) {
	h := v.hasher.Sum(p)
	if id, ok := v.known[h]; ok {
		return id, false
	}
	id = len(v.chunks)
	v.known[h] = id
	v.chunks = append(v.chunks, chunk{file: f, off: off, n: len(p), hash: h, place: uint64(off) / block.Size, sketch: similar.Of(p), base: -1})
	return id, true
}

// read returns the bytes of a chunk.
func (v *volume) read(id int) ([]byte, error) {
	c := &v.chunks[id]
	p := make([]byte, c.n)
	_, err := c.file.ReadAt(p, c.off)
	return p, err
}

var zeroes [block.Size]byte

func zero(p []byte) bool { return bytes.Equal(p, zeroes[:len(p)]) }
