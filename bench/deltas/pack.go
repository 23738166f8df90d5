package main

import (
	"github.com/klauspost/compress/zstd"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup/similar"
)

const (
	frameRaw  = 1 << 20
	batchRaw  = 32 << 20
	entrySize = 48 // of a chunk in a frame's table, as stored
	frameHead = 64
	least     = 4  // features in common, as dedup/similar wants
	keepPart  = 75 // a delta is kept if it takes at most so much of what the chunk takes otherwise, in percent
)

// arrange puts those that are like an earlier one of their batch right behind it, as blockstore/coolorder.go does.
func (v *volume) arrange(ids []int) (order []int) {
	for len(ids) > 0 {
		n, raw := 0, 0
		for ; n < len(ids) && raw < batchRaw; n++ {
			raw += v.chunks[ids[n]].n
		}
		batch := ids[:n]
		ids = ids[n:]
		var t similar.Table
		first, behind := make([]int, n), make([][]int, n)
		for i, id := range batch {
			first[i] = i
			if k, ok := t.Find(&v.chunks[id].sketch, -1); ok {
				first[i] = first[k]
				behind[first[k]] = append(behind[first[k]], id)
			}
			t.Add(&v.chunks[id].sketch)
		}
		for i, id := range batch {
			if first[i] == i {
				order = append(append(order, id), behind[i]...)
			}
		}
	}
	return order
}

// frames returns what chunks take in frames of a mebibyte, and the share of each in it, by its length.
func (v *volume) frames(ids []int, share map[int]int) (stored int64, err error) {
	enc := segment.NewEncoder()
	var part []segment.Chunk
	var of []int
	raw := 0
	flush := func() error {
		if len(part) == 0 {
			return nil
		}
		b, err := segment.EncodeFrame(nil, part, segment.Zstd, enc)
		if err != nil {
			return err
		}
		stored += int64(len(b))
		for i, id := range of {
			share[id] = entrySize + (len(b)-len(part)*entrySize)*len(part[i].Raw)/raw
		}
		part, of, raw = part[:0], of[:0], 0
		return nil
	}
	for _, id := range ids {
		p, err := v.read(id)
		if err != nil {
			return 0, err
		}
		if !segment.FrameTakes(frameRaw, raw, len(p)) || len(part) == segment.MaxFrameChunks {
			if err := flush(); err != nil {
				return 0, err
			}
		}
		part, of, raw = append(part, segment.Chunk{ID: block.ChunkID(id + 1), Hash: v.chunks[id].hash, Raw: p}), append(of, id), raw+len(p)
	}
	return stored, flush()
}

// delta is how long the chunk is, encoded with others as the dictionary; 0 if it does not shrink.
func delta(p, dict []byte) (int, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true),
		zstd.WithWindowSize(2<<20), zstd.WithLowerEncoderMem(true), zstd.WithEncoderDictRaw(1, dict))
	if err != nil {
		return 0, err
	}
	defer z.Close()
	return len(z.EncodeAll(p, nil)), nil
}
