package repository

import (
	"context"
	"errors"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// EachChunk reads all packs that the index knows and calls visit with the bytes of each chunk, which are valid until it returns and are not compared with the chunk's id; what it returns ends the call. A pack or frame that
// cannot be read is told to bad and passed over. progress is told bytes of packs. It takes the memory of one pack, and needs an owner's keys.
func (r *Repository) EachChunk(ctx context.Context, visit func(raw []byte) error, bad func(key string, err error), progress func(done, total uint64)) error {
	packs := r.Packs()
	done, total := uint64(0), uint64(0)
	for i := range packs {
		total += uint64(packs[i].SizeBytes)
	}
	for _, p := range packs {
		err := r.chunksOf(ctx, p, visit, bad)
		switch {
		case err == nil:
		case ctx.Err() == nil && (errors.Is(err, block.ErrNotFound) || errors.Is(err, block.ErrCorrupt)):
			bad(packKey(p.Name), err)
		default:
			return err
		}
		done += uint64(p.SizeBytes)
		progress(done, total)
	}
	return nil
}

// chunksOf is EachChunk for one pack. Errors of visit must be neither block.ErrNotFound nor block.ErrCorrupt.
func (r *Repository) chunksOf(ctx context.Context, p PackData, visit func(raw []byte) error, bad func(key string, err error)) error {
	b := make([]byte, min(p.SizeBytes, pack.MaxSize))
	if err := r.backend.ReadAt(ctx, packKey(p.Name), b, 0); err != nil {
		return err
	}
	frames, err := r.directoryOf(b)
	if err != nil {
		return err
	}
	h, err := pack.DecodeHeader(b[:min(len(b), pack.HeaderSize)], r.keys.Repository)
	if err != nil {
		return err
	}
	reader, err := pack.NewReader(r.keys, h)
	if err != nil {
		return err
	}
	for i := range frames {
		f := &frames[i]
		raw, err := reader.Open(f, i, b[f.Off:f.Off+f.Len])
		if err != nil {
			bad(packKey(p.Name), fmt.Errorf("frame %d at %d: %w", i, f.Off, err))
			continue
		}
		for j := range f.Chunks {
			n := f.Chunks[j].Raw
			if err := visit(raw[:n]); err != nil {
				return err
			}
			raw = raw[n:]
		}
	}
	return nil
}
