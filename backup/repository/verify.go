package repository

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// CheckPacks compares the packs that the index knows with the objects that are there: each must be, with its size. What is wrong is told to bad. It reads no pack.
func (r *Repository) CheckPacks(ctx context.Context, bad func(key string, err error)) error {
	there := make(map[string]int64)
	err := r.backend.List(ctx, packPrefix, func(o backend.Object) error {
		there[packName(o.Key)] = o.SizeBytes
		return nil
	})
	if err != nil {
		return err
	}
	for number, p := range r.index.all() {
		size, ok := there[p.name]
		switch {
		case !ok && p.marked: // a prune has deleted it; who needs a chunk of it will miss that
			r.index.lose(uint32(number))
		case !ok:
			r.index.lose(uint32(number))
			bad(packKey(p.name), fmt.Errorf("a pack that the index lists: %w", block.ErrNotFound))
		case size != int64(p.size) && p.marked: // a repair has marked it: what is needed of it is elsewhere, or will be missed
			r.index.lose(uint32(number))
		case size != int64(p.size):
			bad(packKey(p.name), &block.CorruptError{Source: "pack", Want: fmt.Sprintf("%d B", p.size), Got: fmt.Sprint(size)})
		}
	}
	return nil
}

// PackData is one pack for VerifyPack.
type PackData struct {
	Name      string
	SizeBytes int64
	Marked    bool // a prune will delete it
}

// Packs returns all packs that the index knows and that were not found missing.
func (r *Repository) Packs() []PackData {
	all := r.index.all()
	packs := make([]PackData, 0, len(all))
	for i := range all {
		if p := &all[i]; !p.gone {
			packs = append(packs, PackData{p.name, int64(p.size), p.marked})
		}
	}
	return packs
}

// Need notes that a backup needs a chunk, for Replaced.
func (x *Index) Need(id block.Hash) { x.reach(id) }

// Replaced returns the packs that are marked and hold nothing that a backup needs, by what Need was told, but has in no pack that lasts: whatever is wrong with these harms nobody.
func (r *Repository) Replaced() map[string]bool {
	x := r.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	replaced := make(map[string]bool)
	for i := range x.mu.packs {
		if x.mu.packs[i].marked {
			replaced[x.mu.packs[i].name] = true
		}
	}
	for _, p := range x.mu.places {
		if p.raw&reached != 0 && x.mu.packs[p.pack].marked {
			delete(replaced, x.mu.packs[p.pack].name)
		}
	}
	return replaced
}

// VerifyPack reads a whole pack and checks everything: its name is the hash of its bytes, each frame opens, and each chunk is what its id says. It needs an owner's keys.
func (r *Repository) VerifyPack(ctx context.Context, p PackData) error {
	key := packKey(p.Name)
	if p.SizeBytes > pack.MaxSize {
		return fmt.Errorf("%s: %w", key, &block.CorruptError{Source: "pack", Want: fmt.Sprintf("at most %d B", pack.MaxSize), Got: fmt.Sprint(p.SizeBytes)})
	}
	b := make([]byte, p.SizeBytes)
	if err := r.backend.ReadAt(ctx, key, b, 0); err != nil {
		return err
	}
	if err := r.verifyPack(p.Name, b); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

func (r *Repository) verifyPack(name string, b []byte) error {
	if sum := blake3.Sum256(b); hex.EncodeToString(sum[:]) != name {
		return &block.CorruptError{Source: "pack", Want: "bytes with the hash " + name, Got: hex.EncodeToString(sum[:])}
	}
	frames, err := r.directoryOf(b)
	if err != nil {
		return err
	}
	_, err = r.openPack(b, frames, false)
	return err
}
