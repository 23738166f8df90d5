package synth

import (
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// tree is the map: region r has page firstID+r, and nodes follow level by level.
type tree struct {
	spec    Spec
	birth   block.Epoch // of everything in it
	firstID uint64
	extent  func(i uint64) extentmap.Extent // extent i of the map, without a place and a birth
}

// levels returns how many pages (level 0) and nodes each level has, up to the root.
func (t *tree) levels() []uint64 {
	counts := []uint64{t.spec.Regions}
	for n := t.spec.Regions; n > 1; {
		n = (n + extentmap.Fanout - 1) / extentmap.Fanout
		counts = append(counts, n)
	}
	return counts
}

// id returns that of page or node n of a level.
func (t *tree) id(level int, n uint64) uint64 {
	first := t.firstID
	for _, count := range t.levels()[:level] {
		first += count
	}
	return first + n
}

func (t *tree) root() extentmap.Root {
	top := len(t.levels()) - 1
	return extentmap.Root{ID: t.id(top, 0), Level: uint8(top), Birth: t.birth}
}

func (t *tree) lastID() uint64 { return t.root().ID }

// mapped is how many bytes the extents have.
func (t *tree) mapped() uint64 {
	if t.spec.Kind == New {
		return t.spec.extents() * uint64(t.spec.ChunkBytes)
	}
	sum := uint64(0)
	for i := range t.spec.extents() {
		sum += uint64(t.extent(i).Len)
	}
	return sum
}

// pages writes a page for each region.
func (t *tree) pages(out *table) error {
	extents := make([]extentmap.Extent, t.spec.ExtentsPerRegion)
	slot := t.spec.slot()
	for region := range t.spec.Regions {
		for i := range extents {
			e := t.extent(region*uint64(len(extents)) + uint64(i))
			e.Off, e.Birth = region*block.RegionSize+uint64(i)*slot, t.birth
			extents[i] = e
		}
		id := t.id(0, region)
		if err := out.set(extentmap.PageKey(id), extentmap.EncodePage(id, region, t.birth, extents)); err != nil {
			return err
		}
	}
	return nil
}

// nodes writes what lies above the pages.
func (t *tree) nodes(out *table) error {
	counts := t.levels()
	span := uint64(1)
	for level := 1; level < len(counts); level++ {
		span *= extentmap.Fanout
		for n := range counts[level] {
			s := extentmap.Subtree{ID: t.id(level, n), Level: uint8(level), Region: n * span, Birth: t.birth}
			row := extentmap.EncodeNode(s, func(i int) (uint64, block.Epoch) {
				child := n*extentmap.Fanout + uint64(i)
				if child >= counts[level-1] {
					return 0, 0
				}
				return t.id(level-1, child), t.birth
			})
			if err := out.set(extentmap.NodeKey(s.ID), row); err != nil {
				return err
			}
		}
	}
	return nil
}
