package checkpoint

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Place says where the frame of a part lies.
type Place struct {
	Segment block.SegmentID
	Offset  uint32 // of the frame
	Len     uint32 // of the frame, stored
}

// Found is a part that was read and whose hash was checked.
type Found struct {
	Header
	Place Place
	Hash  [16]byte // first half
}

// Checkpoint is one that is complete.
type Checkpoint struct {
	Kind   Kind
	Number uint64
	Base   uint64
	Rows   uint64
	Bytes  uint64 // stored
	Parts  []Found
}

// Collect puts parts together and returns the checkpoints that are complete, the newest first. What is not complete is what a crash left.
func Collect(parts []Found) []Checkpoint {
	slices.SortFunc(parts, func(a, b Found) int {
		return cmp.Or(-cmp.Compare(a.Number, b.Number), cmp.Compare(a.Part, b.Part))
	})
	var all []Checkpoint
	for len(parts) > 0 {
		n := 1
		for n < len(parts) && parts[n].Number == parts[0].Number {
			n++
		}
		if c, ok := assemble(parts[:n]); ok {
			all = append(all, c)
		}
		parts = parts[n:]
	}
	return all
}

// assemble checks that parts of one number, in order, form a checkpoint.
func assemble(parts []Found) (Checkpoint, bool) {
	c := Checkpoint{Kind: parts[0].Kind, Number: parts[0].Number, Base: parts[0].Base}
	for i := range parts {
		p := &parts[i]
		if p.Kind != c.Kind || p.Base != c.Base || p.Part != uint32(i) || p.RowsBefore != c.Rows || p.Last != (i == len(parts)-1) || i > 0 && p.Previous != parts[i-1].Hash {
			return c, false
		}
		c.Rows += uint64(p.Rows)
		c.Bytes += uint64(p.Place.Len)
	}
	c.Parts = parts
	return c, true
}

// Choose returns what must be read, in this order, to have the newest state: a full checkpoint and the deltas after it. all is what Collect returned; the state must be that
// of checkpoint atLeast or a later one. It tries the newest full one first. Without a way it returns block.ErrCorrupt.
func Choose(all []Checkpoint, atLeast uint64) ([]Checkpoint, error) {
	byNumber := map[uint64]*Checkpoint{}
	var tip *Checkpoint // newest delta
	for i := range all {
		byNumber[all[i].Number] = &all[i]
		if tip == nil && all[i].Kind == Delta {
			tip = &all[i]
		}
	}
	err := fmt.Errorf("no complete checkpoint: %w", block.ErrCorrupt)
	for i := range all {
		if all[i].Kind != Full {
			continue
		}
		way, missing := path(&all[i], tip, byNumber)
		newest := way[len(way)-1].Number
		switch {
		case missing != 0:
			err = fmt.Errorf("checkpoint %x, which %x builds upon, is missing or damaged: %w", missing, tip.Number, block.ErrCorrupt)
		case newest < atLeast:
			err = fmt.Errorf("checkpoint %x is missing or damaged, the newest is %x: %w", atLeast, newest, block.ErrCorrupt)
		default:
			return way, nil
		}
	}
	return nil, err
}

// path goes back from the newest delta by bases until one was taken before full began: that delta holds all changes since. A complete delta that is not on the path was
// never counted: the next one began again at the same base. missing is the base that there is not.
func path(full, tip *Checkpoint, byNumber map[uint64]*Checkpoint) (way []Checkpoint, missing uint64) {
	for d := tip; d != nil && d.Number > full.Number; {
		way = append(way, *d)
		if d.Base <= full.Number {
			break
		}
		base := byNumber[d.Base]
		if base == nil || base.Kind == Full {
			return append(way, *full), d.Base
		}
		d = base
	}
	way = append(way, *full)
	slices.Reverse(way)
	return way, 0
}
