package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// nonZero counts the bytes of the 4 KiB blocks of an image that hold anything but zeroes.
func nonZero(ctx context.Context, path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var count uint64
	zero, buffer := make([]byte, block.Size), make([]byte, 1<<20)
	for ctx.Err() == nil {
		n, err := io.ReadFull(f, buffer)
		for at := 0; at < n; at += block.Size {
			if one := buffer[at:min(n, at+block.Size)]; !bytes.Equal(one, zero[:len(one)]) {
				count += uint64(len(one))
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return count, nil
		}
		if err != nil {
			return 0, fmt.Errorf("count data of %s: %w", path, err)
		}
	}
	return 0, ctx.Err()
}
