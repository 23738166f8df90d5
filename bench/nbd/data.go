package main

import (
	"compress/flate"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// dataCheck is what fio's data is like: a store that removes copies must not be given any.
type dataCheck struct {
	UniqueShare     float64 `json:"uniqueShare"`     // of blocks of 4 KiB, in two runs with different seeds together
	CompressedShare float64 `json:"compressedShare"` // size after deflate at its fastest level, per block
}

// leastUnique is the share of blocks without a copy below which all figures are void.
const leastUnique = 0.95

// checkData has fio write the same way into files, and looks at them.
func (b *bench) checkData(ctx context.Context) (c dataCheck, err error) {
	const size, blockSize = 32 << 20, 4096
	path := filepath.Join(b.dir, "data")
	defer os.Remove(path)
	seen := map[[sha256.Size]byte]int{}
	blocks, deflated := 0, int64(0)
	for _, shape := range []string{"--rw=write --bs=1m", "--rw=randwrite --bs=4k"} {
		args := append([]string{"--name=data", "--ioengine=psync", "--filename=" + path, fmt.Sprintf("--randseed=%d", b.nextSeed()), fmt.Sprintf("--size=%d", size)}, dataArgs...)
		if _, err := b.fio(ctx, append(args, fields(shape)...)); err != nil {
			return c, err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return c, err
		}
		counter := &countingWriter{}
		for ; len(content) >= blockSize; content = content[blockSize:] {
			seen[sha256.Sum256(content[:blockSize])]++
			if blocks++; blocks%16 == 0 {
				w, err := flate.NewWriter(counter, flate.BestSpeed)
				if err != nil {
					return c, err
				}
				if _, err := w.Write(content[:blockSize]); err != nil {
					return c, err
				}
				if err := w.Close(); err != nil {
					return c, err
				}
			}
		}
		deflated += counter.n
	}
	c.UniqueShare = float64(len(seen)) / float64(blocks)
	c.CompressedShare = float64(deflated) / float64(blocks/16*blockSize)
	return c, nil
}

type countingWriter struct{ n int64 }

var _ io.Writer = (*countingWriter)(nil)

func (w *countingWriter) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	return len(p), nil
}
