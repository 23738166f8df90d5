package backup

import (
	"bytes"
	"context"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// filler is what may have what a backup has lost.
type filler struct {
	by      *MendedBy
	chunk   func(ctx context.Context, id block.Hash) (raw []byte, ok bool, err error) // by its id; may be nil. raw is valid until the next call
	content RangeSource                                                               // what the content may be; may be nil
	related bool                                                                      // it is of the same source: worth to read GiB for a lost directory
	list    *RepairedBackup                                                           // where lost ranges are listed; may be nil
	close   func() error                                                              // when it has been asked; may be nil

	failed int   // ranges of content that could not be read
	first  error // why not the first
}

// maxFailures is after how many failed reads a content is not asked any more.
const maxFailures = 100

// maxFillGap is how far apart, in bytes, two lost chunks may be that are read as one.
const maxFillGap = 64 << 10

// read fills p with what the content has at off. false: it has nothing there, or cannot be read.
func (f *filler) read(ctx context.Context, p []byte, off uint64) (bool, error) {
	if size := f.content.Size(); off > size || uint64(len(p)) > size-off || f.failed >= maxFailures {
		return false, nil
	}
	err := f.content.ReadRange(ctx, p, off)
	if err == nil {
		return true, nil
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if f.failed++; f.first == nil {
		f.first = fmt.Errorf("read %d B at %d: %w", len(p), off, err)
	}
	return false, nil
}

// has reports whether the repository has a chunk, or will have.
func (p *repair) has(id block.Hash) bool { return p.mended[id] || p.r.Index().Has(id) }

// put takes a chunk that was found and whose bytes have its id.
func (p *repair) put(m *repository.Manifest, f *filler, id block.Hash, raw []byte) error {
	if p.mended[id] {
		return nil
	}
	p.mended[id] = true
	f.by.Chunks++
	f.by.Bytes += uint64(len(raw))
	p.noteDamaged(m).MendedBytes += uint64(len(raw))
	if p.w == nil {
		return nil
	}
	return p.w.Replace(id, raw)
}

// node returns a page or directory, if it is to be had.
func (p *repair) node(ctx context.Context, m *repository.Manifest, f *filler, id block.Hash) ([]byte, bool, error) {
	if b, ok := p.nodes[id]; ok {
		return b, true, nil
	}
	if p.r.Index().Has(id) {
		b, err := p.reader.Chunk(ctx, id)
		if err == nil || !isDamage(ctx, err) {
			return b, err == nil, err
		}
	}
	if f.chunk == nil {
		return nil, false, nil
	}
	raw, ok, err := f.chunk(ctx, id)
	if err != nil || !ok || p.hasher.Sum(raw) != id {
		return nil, false, err
	}
	return p.putNode(m, f, id, raw)
}

// putNode is put for a page or directory, which is kept.
func (p *repair) putNode(m *repository.Manifest, f *filler, id block.Hash, raw []byte) ([]byte, bool, error) {
	b := bytes.Clone(raw)
	p.nodes[id] = b
	return b, true, p.put(m, f, id, b)
}

// lose notes that a range of a backup is lost, as far as is known yet.
func (p *repair) lose(m *repository.Manifest, f *filler, id block.Hash, off, length uint64) {
	p.lostIDs[id] = m
	p.noteDamaged(m)
	if f.list != nil {
		f.list.add(off, length)
	}
}

// backup walks over a backup, takes what the filler has of what is lost, and reports whether something stays lost.
func (p *repair) backup(ctx context.Context, m *repository.Manifest, f *filler) (holes bool, err error) {
	total, err := directories(m)
	if err != nil {
		p.lose(m, f, block.Hash{}, 0, m.SizeBytes) // its manifest says impossible things
		return true, nil
	}
	for i, id := range m.Root {
		if id == (block.Hash{}) || p.whole[id] {
			continue
		}
		missing, err := p.directory(ctx, m, f, i, id, total)
		if err != nil {
			return false, err
		}
		if !missing {
			p.whole[id] = true
		}
		holes = holes || missing
	}
	return holes, nil
}

// directory walks over directory i of a backup.
func (p *repair) directory(ctx context.Context, m *repository.Manifest, f *filler, i int, id block.Hash, total uint64) (holes bool, err error) {
	first := uint64(i) * pagesPerDirectory
	n := int(min(pagesPerDirectory, total-first))
	var pages []block.Hash
	b, ok, err := p.node(ctx, m, f, id)
	if err != nil {
		return false, err
	}
	if ok {
		pages, err = decodeDirectory(b, n)
		ok = err == nil
	}
	if !ok && f.content != nil && f.related {
		if pages, ok, err = p.directoryOfContent(ctx, m, f, id, first, n); err != nil {
			return false, err
		}
	}
	if !ok {
		p.lose(m, f, id, first*RegionSize, min(m.SizeBytes, (first+uint64(n))*RegionSize)-first*RegionSize)
		return true, nil
	}
	for j, page := range pages {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if page == (block.Hash{}) || p.whole[page] {
			continue
		}
		missing, err := p.page(ctx, m, f, first+uint64(j), page)
		if err != nil {
			return false, err
		}
		if !missing {
			p.whole[page] = true
		}
		holes = holes || missing
	}
	return holes, nil
}

// directoryOfContent makes a lost directory anew, if all regions of the content are what they were.
func (p *repair) directoryOfContent(ctx context.Context, m *repository.Manifest, f *filler, id block.Hash, first uint64, n int) ([]block.Hash, bool, error) {
	pages := make([]block.Hash, n)
	buffer := make([]byte, RegionSize)
	for j := range pages {
		data := buffer[:regionLength(m.SizeBytes, first+uint64(j))]
		ok, err := f.read(ctx, data, (first+uint64(j))*RegionSize)
		if err != nil || !ok {
			return nil, false, err
		}
		if dedup.IsZero(data) {
			continue
		}
		var extents []extent
		extents, p.lengths = cutRegion(p.cutter, p.hasher, data, p.lengths)
		pages[j] = p.hasher.Sum(encodePage(extents))
	}
	b := encodeDirectory(pages)
	if p.hasher.Sum(b) != id {
		return nil, false, nil
	}
	_, ok, err := p.putNode(m, f, id, b)
	return pages, ok, err
}

// page walks over region n of a backup.
func (p *repair) page(ctx context.Context, m *repository.Manifest, f *filler, n uint64, id block.Hash) (holes bool, err error) {
	off, length := n*RegionSize, regionLength(m.SizeBytes, n)
	var extents []extent
	b, ok, err := p.node(ctx, m, f, id)
	if err != nil {
		return false, err
	}
	if ok {
		extents, err = decodePage(b, length)
		ok = err == nil
	}
	if !ok && f.content != nil {
		if extents, ok, err = p.pageOfContent(ctx, m, f, id, off, length); err != nil {
			return false, err
		}
	}
	if !ok {
		p.lose(m, f, id, off, uint64(length))
		return true, nil
	}
	missing, err := p.fromChunks(ctx, m, f, off, extents)
	if err == nil && len(missing) > 0 && f.content != nil {
		missing, err = p.fromContent(ctx, m, f, missing)
	}
	if err != nil {
		return false, err
	}
	for _, x := range missing {
		p.lose(m, f, x.id, x.off, uint64(x.length))
	}
	return len(missing) > 0, nil
}

// pageOfContent makes a lost page anew, if the region of the content is what it was, and takes what it consists of.
func (p *repair) pageOfContent(ctx context.Context, m *repository.Manifest, f *filler, id block.Hash, off uint64, length int) ([]extent, bool, error) {
	data := make([]byte, length)
	ok, err := f.read(ctx, data, off)
	if err != nil || !ok {
		return nil, false, err
	}
	var extents []extent
	extents, p.lengths = cutRegion(p.cutter, p.hasher, data, p.lengths)
	b := encodePage(extents)
	if p.hasher.Sum(b) != id {
		return nil, false, nil
	}
	if _, _, err := p.putNode(m, f, id, b); err != nil {
		return nil, false, err
	}
	for _, e := range extents {
		if !e.isZero() && !p.has(e.id) {
			if err := p.put(m, f, e.id, data[:e.length]); err != nil {
				return nil, false, err
			}
		}
		data = data[e.length:]
	}
	return extents, true, nil
}

// missingChunk is a chunk that is not there, and where a backup has it.
type missingChunk struct {
	extent
	off uint64 // in the content
}

// fromChunks returns the chunks of a region at off that are not there, after the filler was asked for them by their ids.
func (p *repair) fromChunks(ctx context.Context, m *repository.Manifest, f *filler, off uint64, extents []extent) (missing []missingChunk, err error) {
	for _, e := range extents {
		x := missingChunk{e, off}
		if off += uint64(e.length); e.id == (block.Hash{}) || p.has(e.id) {
			continue
		}
		if f.chunk != nil {
			raw, ok, err := f.chunk(ctx, e.id)
			if err != nil {
				return nil, err
			}
			if ok && len(raw) == int(e.of) && p.hasher.Sum(raw) == e.id {
				if err := p.put(m, f, e.id, raw); err != nil {
					return nil, err
				}
				continue
			}
		}
		missing = append(missing, x)
	}
	return missing, nil
}

// fromContent takes missing chunks from where the content has them, if they are still what they were, and returns those that are not. Chunks that are near each other are read at once.
func (p *repair) fromContent(ctx context.Context, m *repository.Manifest, f *filler, missing []missingChunk) (left []missingChunk, err error) {
	for len(missing) > 0 {
		begin, end, n := missing[0].off, missing[0].off+uint64(missing[0].length), 1
		for ; n < len(missing) && missing[n].off <= end+maxFillGap; n++ {
			end = missing[n].off + uint64(missing[n].length)
		}
		run := missing[:n]
		missing = missing[n:]
		data := make([]byte, end-begin)
		ok, err := f.read(ctx, data, begin)
		if err != nil {
			return nil, err
		}
		for _, x := range run {
			raw := data[x.off-begin:][:x.length]
			if !ok || x.sliced() || p.hasher.Sum(raw) != x.id {
				left = append(left, x)
			} else if err := p.put(m, f, x.id, raw); err != nil {
				return nil, err
			}
		}
	}
	return left, nil
}
