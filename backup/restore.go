package backup

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// walk calls visit with each region of a backup that is not all zero, in order of the content, with the extents of its page.
func walk(ctx context.Context, d *repository.Reader, m *repository.Manifest, visit func(n uint64, extents []extent) error) error {
	return walkTree(ctx, d, m, func(block.Hash) {}, visit)
}

// walkTree is walk that tells the ids of directories and pages, too, before it reads them.
func walkTree(ctx context.Context, d *repository.Reader, m *repository.Manifest, node func(id block.Hash), visit func(n uint64, extents []extent) error) error {
	total, err := directories(m)
	if err != nil {
		return err
	}
	for i, id := range m.Root {
		if id == (block.Hash{}) {
			continue
		}
		node(id)
		pages, err := readDirectory(ctx, d, i, id, total)
		if err != nil {
			return err
		}
		for j, page := range pages {
			if page == (block.Hash{}) {
				continue
			}
			node(page)
			n := uint64(i)*pagesPerDirectory + uint64(j)
			extents, err := readPage(ctx, d, m.SizeBytes, n, page)
			if err != nil {
				return err
			}
			if err := visit(n, extents); err != nil {
				return err
			}
		}
	}
	return nil
}

// directories returns how many regions a backup has, if its manifest lists directories for as many.
func directories(m *repository.Manifest) (total uint64, err error) {
	total = regions(m.SizeBytes)
	if want := (total + pagesPerDirectory - 1) / pagesPerDirectory; m.SizeBytes > MaxContent || uint64(len(m.Root)) != want {
		return 0, treeError("manifest", 0, fmt.Sprintf("%d directories for %d B", want, m.SizeBytes), fmt.Sprint(len(m.Root)))
	}
	return total, nil
}

// readDirectory returns the pages of directory i of a backup with that many regions.
func readDirectory(ctx context.Context, d *repository.Reader, i int, id block.Hash, total uint64) ([]block.Hash, error) {
	b, err := d.Chunk(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("directory %d: %w", i, err)
	}
	return decodeDirectory(b, int(min(pagesPerDirectory, total-uint64(i)*pagesPerDirectory)))
}

// readPage returns the extents of region n of content of that size.
func readPage(ctx context.Context, d *repository.Reader, size, n uint64, id block.Hash) ([]extent, error) {
	b, err := d.Chunk(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("page at %d: %w", n*RegionSize, err)
	}
	return decodePage(b, regionLength(size, n))
}

// Restore writes the content of a backup to a target that reads as zeroes; what is zero is not written. Several goroutines write, each another range. Every byte is checked
// before it is written. progress may be nil; it is called by one goroutine at a time with bytes of the content that are done.
func Restore(ctx context.Context, r *repository.Repository, m *repository.Manifest, to io.WriterAt, progress func(done uint64)) error {
	d := r.NewReader(0)
	g, ctx := errgroup.WithContext(ctx)
	type job struct {
		n       uint64
		extents []extent
	}
	jobs := make(chan job)
	g.Go(func() error {
		defer close(jobs)
		return walk(ctx, d, m, func(n uint64, extents []extent) error {
			select {
			case jobs <- job{n, extents}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	var told sync.Mutex
	done := uint64(0)
	workers := runtime.GOMAXPROCS(0)
	frames := max(1, min(restoreFrames, repository.DefaultReaderBytes/restoreFrame/workers)) // else what one loads would push out what another one has yet to use
	for range workers {
		g.Go(func() error {
			buffer := make([]byte, RegionSize)
			for j := range jobs {
				if err := restoreRegion(ctx, d, j.n*RegionSize, j.extents, buffer, frames, to); err != nil {
					return err
				}
				told.Lock()
				if done = max(done, min(m.SizeBytes, (j.n+1)*RegionSize)); progress != nil {
					progress(done)
				}
				told.Unlock()
			}
			return nil
		})
	}
	return g.Wait()
}

const (
	restoreAhead   = 4 << 20                         // bytes of content whose frames are read at once,
	restoreFrames  = 16                              // but no more than so many frames, which share the memory of a Reader with those of other regions: fewer where many are restored at once,
	restoreFrame   = pack.FrameRaw + pack.FrameRaw/4 // bytes that are enough for nearly every frame,
	restoreFetches = 4                               // and so many of them at a time: one alone waits for the disk, or for the other end of the world
)

// loadAhead brings the frames of the first extents into memory, as far as they can be had, that many at most, and returns of how many extents.
func loadAhead(ctx context.Context, d *repository.Reader, extents []extent, frames int) (n int) {
	var ids []block.Hash
	for bytes := 0; n < len(extents) && bytes < restoreAhead; n++ {
		if e := &extents[n]; !e.isZero() {
			ids = append(ids, e.id)
			bytes += int(e.length)
		}
	}
	some := d.OnePerFrame(ids)
	var g errgroup.Group
	g.SetLimit(restoreFetches)
	for _, id := range some[:min(len(some), frames)] {
		g.Go(func() error { d.Load(ctx, id); return nil })
	}
	_ = g.Wait() // who reads the chunks learns what is wrong
	return n
}

// restoreRegion puts the chunks of a region together and writes what is not zero, in long pieces.
func restoreRegion(ctx context.Context, d *repository.Reader, off uint64, extents []extent, buffer []byte, frames int, to io.WriterAt) error {
	pieces := buffer[:0]
	start := off
	flush := func() error {
		if len(pieces) == 0 {
			return nil
		}
		_, err := to.WriteAt(pieces, int64(start))
		pieces = buffer[:0]
		return err
	}
	loaded := 0 // extents whose frames were asked for
	for i := range extents {
		e := &extents[i]
		if i == loaded {
			loaded += loadAhead(ctx, d, extents[i:], frames)
		}
		if e.isZero() {
			if err := flush(); err != nil {
				return err
			}
			off += uint64(e.length)
			start = off
			continue
		}
		chunk, err := d.Chunk(ctx, e.id)
		if err != nil {
			return fmt.Errorf("content at %d: %w", off, err)
		}
		part, err := e.bytes(chunk)
		if err != nil {
			return fmt.Errorf("content at %d: %w", off, err)
		}
		pieces = append(pieces, part...)
		off += uint64(e.length)
	}
	return flush()
}
