package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Verification says what to verify.
type Verification struct {
	// DataPercent is how many of 100 packs are read and checked to the last byte, chosen at random; 0 none.
	DataPercent int
	// Problem is told what is wrong, by one goroutine at a time.
	Problem func(what string, err error)
	// Progress is told bytes of packs, done and in all; it may be nil.
	Progress func(done, total uint64)
}

// Verified is what a verification looked at.
type Verified struct {
	Backups   int    `json:"backups"`
	Locked    int    `json:"lockedBackups"` // of these, whose locks and those of what they need were looked at
	Chunks    int    `json:"chunks"`        // references of backups
	Packs     int    `json:"packs"`         // that were read
	DataBytes uint64 `json:"dataBytes"`     // of these
	Problems  int    `json:"problems"`
}

// Verify checks that each backup's pages are there and that the index knows each chunk of theirs, that each pack of the index is there, that all that a locked backup needs is locked as long, and packs themselves as v says. What is
// wrong goes to v.Problem; the error is for what kept it from looking. The index must be loaded.
func Verify(ctx context.Context, r *repository.Repository, v Verification) (Verified, error) {
	var out Verified
	var mu sync.Mutex
	problem := func(what string, err error) {
		mu.Lock()
		defer mu.Unlock()
		out.Problems++
		v.Problem(what, err)
	}
	if err := r.CheckPacks(ctx, problem); err != nil {
		return out, err
	}
	manifests, err := r.Manifests(ctx, func(name string, err error) { problem("backup "+name, err) })
	if err != nil {
		return out, err
	}
	d := r.NewReader(0)
	var locks unlocked
	if locks.locks, err = r.FindLocks(ctx, manifests); err != nil && !errors.Is(err, fs.ErrPermission) {
		return out, err
	}
	need := func(id block.Hash) {
		r.Index().Need(id)
		locks.need(ctx, id)
	}
	for _, m := range manifests {
		out.Backups++
		if locks.begin(m); !locks.until.IsZero() {
			out.Locked++
		}
		missing, first := 0, uint64(0)
		var wrong error // the first extent that is not in its chunk
		err := walkTree(ctx, d, m, need, func(n uint64, extents []extent) error {
			for _, e := range extents {
				if e.id == (block.Hash{}) {
					continue
				}
				out.Chunks++
				need(e.id)
				length, ok := r.Index().Length(e.id)
				if !ok {
					if missing++; missing == 1 {
						first = n
					}
				} else if length != e.of && wrong == nil {
					wrong = fmt.Errorf("in the 16 MiB at %d: %w", n*RegionSize, treeError("page", 0, fmt.Sprintf("a chunk of %d B", length), fmt.Sprint(e.of)))
				}
			}
			return ctx.Err()
		})
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		if missing > 0 {
			problem("backup "+m.Name, fmt.Errorf("%d of its chunks, the first in the 16 MiB at %d: %w", missing, first*RegionSize, block.ErrNotFound))
		}
		if err = errors.Join(wrong, err); err != nil {
			problem("backup "+m.Name, err)
		}
		wrong, err = locks.end(ctx, m)
		if err != nil {
			return out, err
		}
		if wrong != nil {
			problem("backup "+m.Name, wrong)
		}
	}
	return out, readPacks(ctx, r, v, &out, &mu, problem)
}

func readPacks(ctx context.Context, r *repository.Repository, v Verification, out *Verified, mu *sync.Mutex, problem func(string, error)) error {
	packs, replaced := r.Packs(), r.Replaced()
	rand.Shuffle(len(packs), func(i, j int) { packs[i], packs[j] = packs[j], packs[i] })
	packs = packs[:(len(packs)*v.DataPercent+99)/100]
	total := uint64(0)
	for i := range packs {
		total += uint64(packs[i].SizeBytes)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, p := range packs {
		g.Go(func() error {
			err := r.VerifyPack(ctx, p)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			gone := p.Marked && errors.Is(err, block.ErrNotFound) // a prune may have deleted it meanwhile
			if err != nil && !gone && !replaced[p.Name] {
				problem("pack "+p.Name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			out.Packs++
			out.DataBytes += uint64(p.SizeBytes)
			if v.Progress != nil {
				v.Progress(out.DataBytes, total)
			}
			return nil
		})
	}
	return g.Wait()
}
