package check

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// docs/format/page.md
const (
	partRefSize = 24
	// superParts is the incompat feature: maps may have pages that are kept in parts.
	superParts = 1 << 5
)

// pagePart is what a page that is kept in parts says of one of them. Start is in the region.
type pagePart struct {
	ID    uint64 `json:"id"`
	Birth uint64 `json:"birth"`
	Start uint32 `json:"start"`
	Count uint32 `json:"extents"`
}

// isDirectory reports whether a row is that of a page that is kept in parts.
func isDirectory(b []byte) bool { return len(b) >= 4 && string(b[:4]) == "HvPd" }

// isPart reports whether a row is a part of a page.
func isPart(b []byte) bool { return len(b) >= 4 && string(b[:4]) == "HvPp" }

// parsePageList decodes the row of a page that is kept in parts, without these.
func parsePageList(id uint64, b []byte) (*page, error) {
	f := &fields{b: b}
	p, count := f.pageHead("HvPd", id, partRefSize)
	if f.err != nil {
		return nil, f.err
	}
	extents, next := uint64(0), uint64(0)
	p.Parts = make([]pagePart, count)
	for i := range p.Parts {
		x, at := &p.Parts[i], f.at
		x.ID, x.Birth, x.Start, x.Count = f.u64(), f.u64(), f.u32(), f.u32()
		extents += uint64(x.Count)
		f.rule(x.ID > 0 && x.ID != id, at, "the id of a part", "%d", x.ID)
		f.rule(1 <= x.Birth && x.Birth <= p.Birth, at+8, fmt.Sprint("a birth from 1 to ", p.Birth), "%d", x.Birth)
		f.rule(uint64(x.Start) >= next && x.Start < block.RegionSize, at+16, fmt.Sprint("an offset in the region of at least ", next), "%d", x.Start)
		f.rule(x.Count > 0 && extents <= maxExtents, at+20, "1 to 65536 extents in all", "%d, %d in all", x.Count, extents)
		next = uint64(x.Start) + 1
	}
	return p, f.end()
}

// parsePageRow decodes any row of the table of pages.
func parsePageRow(id uint64, b []byte) (*page, error) {
	switch {
	case isDirectory(b):
		return parsePageList(id, b)
	case isPart(b):
		return parseExtents("HvPp", id, b)
	}
	return parsePage(id, b)
}

// loadParts reads the parts of a page and puts their extents together. One that is missing, damaged or another one is a finding, once, and false.
func (r *run) loadParts(p *page, holder string) (whole bool, err error) {
	r.expect(r.super.Incompat&superParts != 0, unit64(tablePage, p.ID), 0, "no page in parts without the feature in the superblock", "one")
	for i, x := range p.Parts {
		end := uint64(block.RegionSize)
		if i+1 < len(p.Parts) {
			end = uint64(p.Parts[i+1].Start)
		}
		part, err := r.loadPart(x, p.Region, end, holder)
		if err != nil || part == nil {
			return false, err
		}
		p.Extents = append(p.Extents, part.Extents...)
	}
	return true, nil
}

func (r *run) loadPart(x pagePart, region, end uint64, holder string) (*page, error) {
	u := unit64(tablePage, x.ID)
	b, err := r.meta.get(key64(tablePage, x.ID))
	if errors.Is(err, errNoRow) {
		r.broken(u, holder, "a part of a page", "no row")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := parseExtents("HvPp", x.ID, b)
	if err != nil {
		r.brokenErr(u, holder, err)
		return nil, nil
	}
	last := p.Extents[len(p.Extents)-1]
	if p.Birth != x.Birth || p.Region != region || len(p.Extents) != int(x.Count) || p.Extents[0].Off != x.Start || uint64(last.Off)+uint64(last.Len) > end {
		r.broken(u, holder, fmt.Sprintf("birth %d, region %d, %d extents from %d up to %d, as its page says", x.Birth, region, x.Count, x.Start, end),
			fmt.Sprintf("%d, %d, %d from %d up to %d", p.Birth, p.Region, len(p.Extents), p.Extents[0].Off, last.Off+last.Len))
		return nil, nil
	}
	return p, nil
}

// unitOf names the row that extent i of a page lies in, and its offset there.
func (p *page) unitOf(i int) (unit string, at int64) {
	id := p.ID
	for _, x := range p.Parts {
		id = x.ID
		if i < int(x.Count) {
			break
		}
		i -= int(x.Count)
	}
	return unit64(tablePage, id), int64(pageHeader + i*extentSize)
}

// hasPart reports whether a page has a part. Parts of one id are the same.
func (p *page) hasPart(id uint64) bool {
	return slices.ContainsFunc(p.Parts, func(x pagePart) bool { return x.ID == id })
}

// partSet is the ids of a page's parts.
func (p *page) partSet() map[uint64]bool {
	set := make(map[uint64]bool, len(p.Parts))
	for _, x := range p.Parts {
		set[x.ID] = true
	}
	return set
}
