package check

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// SegmentDump is a segment: its row, and what its file says.
type SegmentDump struct {
	ID        uint64      `json:"id"`
	Row       *segmentRow `json:"row,omitempty"`
	File      string      `json:"file"`
	Size      int         `json:"size"`
	DeadBytes uint64      `json:"deadBytes"` // what of the file holds no live chunk, by raw length
	Error     string      `json:"error,omitempty"`
	Footer    *segFooter  `json:"footer,omitempty"`
	Frames    []FrameDump `json:"frames,omitempty"`
}

// FrameDump is a frame of a segment.
type FrameDump struct {
	Offset uint32      `json:"offset"`
	Size   uint32      `json:"size"`
	Codec  uint8       `json:"codec"`
	Raw    uint32      `json:"raw"`
	Error  string      `json:"error,omitempty"`
	Chunks []ChunkDump `json:"chunks,omitempty"`
}

// ChunkDump is a chunk in a frame.
type ChunkDump struct {
	ID   uint64 `json:"id"`
	Raw  uint32 `json:"raw"`
	Hash string `json:"hash"`
}

// withMeta runs f with the lock held and the metadata open.
func withMeta(dir, what string, f func(r *run) error) error {
	unlock, err := lockShared(dir)
	if err == nil {
		defer unlock()
		var m *meta
		if m, err = openMeta(dir, 16<<20); err == nil {
			defer m.close()
			err = f(&run{dir: dir, meta: m, rep: &Report{}, segments: map[uint64]*segmentState{}, brokenMaps: map[string]bool{}})
		}
	}
	if err != nil {
		return fmt.Errorf("dump %s of %s: %w", what, dir, err)
	}
	return nil
}

// DumpSegments reads the rows of all segments; with id not 0 that one alone, with the frames of its file.
func DumpSegments(dir string, id uint64) (all []*SegmentDump, err error) {
	err = withMeta(dir, "segments", func(r *run) error {
		all = []*SegmentDump{}
		err := r.meta.table(tableSegment, func(key, value []byte) error {
			n := keyField(key, 0)
			if id != 0 && n != id {
				return nil
			}
			row, err := parseSegmentRow(n, value)
			d := &SegmentDump{ID: n, Row: row}
			if err != nil {
				d.Error = err.Error()
			}
			if row.TotalRaw > 0 && row.LiveRaw < row.TotalRaw {
				d.DeadBytes = uint64(float64(row.Size) * float64(row.TotalRaw-row.LiveRaw) / float64(row.TotalRaw))
			}
			for _, p := range row.Copies {
				if p.Tier == localTier {
					d.File = segmentPath(p.Key)
				}
			}
			if id != 0 && d.File != "" {
				d.readFrames(dir)
			}
			all = append(all, d)
			return nil
		})
		if err == nil && id != 0 && len(all) == 0 {
			err = fmt.Errorf("segment %d: %w", id, block.ErrNotFound)
		}
		return err
	})
	return all, err
}

// readFrames reads the frames of the file, without decoding their payload.
func (d *SegmentDump) readFrames(dir string) {
	b, err := readSegment(filepath.Join(dir, d.File), nil)
	if err != nil {
		d.Error = err.Error()
		return
	}
	d.Size = len(b)
	end := min(int(d.Row.Size), len(b))
	if d.Row.State == segmentSealed && len(b) >= segHeaderSize+segFooterSize {
		t, err := parseSegFooter(b[len(b)-segFooterSize:], int64(len(b)))
		if err != nil {
			d.Error = err.Error()
		} else {
			d.Footer, end = t, int(t.DirOff)
		}
	}
	for at := segHeaderSize; at < end; {
		fr, err := parseFrame(b[at:end])
		f := FrameDump{Offset: uint32(at), Size: fr.Size, Codec: fr.Codec, Raw: fr.RawLen}
		if err != nil {
			f.Error = err.Error()
		}
		for _, c := range fr.Chunks {
			f.Chunks = append(f.Chunks, ChunkDump{ID: c.ID, Raw: c.RawLen, Hash: fmt.Sprintf("%x", c.Hash)})
		}
		d.Frames = append(d.Frames, f)
		if fr.Size == 0 {
			return
		}
		at += int(fr.Size)
	}
}

// WriteText writes a line for the segment, one for each frame and one for each chunk.
func (d *SegmentDump) WriteText(w io.Writer) error {
	var b strings.Builder
	state := map[uint8]string{segmentOpen: "open", segmentSealed: "sealed"}[d.Row.State]
	fmt.Fprintf(&b, "segment %d generation %d: %s, %d B, %d of %d chunks live, %d of %d B raw live, %d B dead, %s\n", d.ID, d.Row.Generation, state, d.Row.Size, d.Row.LiveChunks, d.Row.TotalChunks, d.Row.LiveRaw, d.Row.TotalRaw, d.DeadBytes, d.File)
	if d.Error != "" {
		fmt.Fprintf(&b, "  %s\n", d.Error)
	}
	for _, f := range d.Frames {
		fmt.Fprintf(&b, "  %10d+%d  codec %d, %d B raw%s\n", f.Offset, f.Size, f.Codec, f.Raw, behind(f.Error))
		for _, c := range f.Chunks {
			fmt.Fprintf(&b, "              chunk %d  %d B  %s\n", c.ID, c.Raw, c.Hash)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// PageDump is a region page or a radix node.
type PageDump struct {
	Page *page       `json:"page,omitempty"`
	Held *RegionHeld `json:"held,omitempty"` // of a page
	Node *RadixDump  `json:"node,omitempty"`
}

// RegionHeld is what the extents of a region hold, before compression.
type RegionHeld struct {
	Fragments       int    `json:"fragments"` // extents of chunks
	Chunks          int    `json:"chunks"`    // different ones
	ChunkBytes      uint64 `json:"chunkBytes"`
	ReferencedBytes uint64 `json:"referencedBytes"` // of them, by this region
	DeadBytes       uint64 `json:"deadBytes"`       // the rest: no extent of this region refers to it
	Missing         int    `json:"missing"`         // chunks without a row
}

// heldBy sums up what a page holds.
func (r *run) heldBy(p *page) (*RegionHeld, error) {
	h := &RegionHeld{}
	parts := map[uint64][][2]uint64{} // of each chunk, from and to
	for _, x := range p.Extents {
		if x.Kind == kindChunk {
			h.Fragments++
			parts[x.Chunk] = append(parts[x.Chunk], [2]uint64{uint64(x.ChunkOff), uint64(x.ChunkOff) + uint64(x.Len)})
		}
	}
	for id, all := range parts {
		b, err := r.meta.get(key64(tableChunk, id))
		if errors.Is(err, errNoRow) {
			h.Missing++
			continue
		}
		if err != nil {
			return nil, err
		}
		row, err := parseChunkRow(b)
		if err != nil {
			return nil, err
		}
		h.Chunks++
		h.ChunkBytes += uint64(row.RawLen)
		slices.SortFunc(all, func(a, b [2]uint64) int { return cmp.Compare(a[0], b[0]) })
		end := uint64(0)
		for _, part := range all {
			if part[1] > end {
				h.ReferencedBytes += part[1] - max(part[0], end)
				end = part[1]
			}
		}
	}
	h.DeadBytes = h.ChunkBytes - min(h.ChunkBytes, h.ReferencedBytes)
	return h, nil
}

// RadixDump is a radix node.
type RadixDump struct {
	ID       uint64       `json:"id"`
	Level    uint8        `json:"level"`
	Birth    uint64       `json:"birth"`
	Region   uint64       `json:"region"`
	Children []RadixChild `json:"children"`
}

// RadixChild is a child that exists.
type RadixChild struct {
	Index int `json:"index"`
	ref
}

// DumpPage reads the page, part of a page, or radix node with an id. Of a page that is kept in parts it has the list of these.
func DumpPage(dir string, id uint64) (*PageDump, error) {
	d := &PageDump{}
	err := withMeta(dir, fmt.Sprint("page ", id), func(r *run) error {
		b, err := r.meta.get(key64(tablePage, id))
		if err == nil {
			if d.Page, err = parsePageRow(id, b); err == nil && len(d.Page.Parts) == 0 {
				d.Held, err = r.heldBy(d.Page)
			}
			return err
		}
		if !errors.Is(err, errNoRow) {
			return err
		}
		if b, err = r.meta.get(key64(tableRadix, id)); errors.Is(err, errNoRow) {
			return block.ErrNotFound
		} else if err != nil {
			return err
		}
		n, err := parseRadix(id, b)
		if err != nil {
			return err
		}
		d.Node = &RadixDump{ID: n.ID, Level: n.Level, Birth: n.Birth, Region: n.Region}
		for i, c := range n.Children {
			if c.ID != 0 {
				d.Node.Children = append(d.Node.Children, RadixChild{i, c})
			}
		}
		return nil
	})
	return d, err
}

// WriteText writes a line for the page or node and one for each extent or child.
func (d *PageDump) WriteText(w io.Writer) error {
	var b strings.Builder
	if p := d.Page; p != nil {
		fmt.Fprintf(&b, "page %d: region %d (%d B), birth %d, ", p.ID, p.Region, p.Region<<regionBits, p.Birth)
		if len(p.Parts) > 0 {
			fmt.Fprintf(&b, "kept in %d parts\n", len(p.Parts))
		} else {
			fmt.Fprintf(&b, "%d extents\n", len(p.Extents))
		}
		for _, x := range p.Parts {
			fmt.Fprintf(&b, "  part %d: %d extents from %d on, birth %d\n", x.ID, x.Count, x.Start, x.Birth)
		}
		names := [...]string{"?", "zero", "chunk", "external", "damaged"}
		for _, x := range p.Extents {
			fmt.Fprintf(&b, "  %8d+%-8d %-8s", x.Off, x.Len, names[x.Kind])
			if x.Kind == kindChunk || x.Kind == kindExternal {
				fmt.Fprintf(&b, " %d at %d", x.Chunk, x.ChunkOff)
			}
			fmt.Fprintf(&b, "  birth %d\n", x.Birth)
		}
	}
	if h := d.Held; h != nil {
		fmt.Fprintf(&b, "  %d fragments of %d chunks: %d B, %d B of them referenced here, %d B dead, %d chunks missing\n", h.Fragments, h.Chunks, h.ChunkBytes, h.ReferencedBytes, h.DeadBytes, h.Missing)
	}
	if n := d.Node; n != nil {
		fmt.Fprintf(&b, "node %d: level %d, from region %d, birth %d, %d children\n", n.ID, n.Level, n.Region, n.Birth, len(n.Children))
		for _, c := range n.Children {
			fmt.Fprintf(&b, "  %3d  id %d  birth %d\n", c.Index, c.ID, c.Birth)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// VolumesDump is the forest of volumes and nodes, with the counters of the store.
type VolumesDump struct {
	Counters counterRow     `json:"counters"`
	Volumes  []*volumeRow   `json:"volumes"`
	Nodes    []*nodeRow     `json:"nodes"`
	Deadlist map[uint64]int `json:"deadlistRows"` // by node
	Jobs     map[uint64]int `json:"jobs"`         // by node
	Touched  map[uint64]int `json:"touchedRows"`  // by volume: rows of granules, for bitmaps
}

// DumpVolumes reads the rows of all volumes and nodes; with a name only those of that volume.
func DumpVolumes(dir, name string) (*VolumesDump, error) {
	d := &VolumesDump{Volumes: []*volumeRow{}, Nodes: []*nodeRow{}, Deadlist: map[uint64]int{}, Jobs: map[uint64]int{}, Touched: map[uint64]int{}}
	err := withMeta(dir, "volumes", func(r *run) error {
		if err := errors.Join(r.readCounters(), r.readTree()); err != nil {
			return err
		}
		d.Counters = r.tree.counters
		for _, id := range slices.Sorted(maps.Keys(r.tree.volumes)) {
			if v := r.tree.volumes[id]; name == "" || v.Name == name {
				d.Volumes = append(d.Volumes, v)
			}
		}
		if name != "" && len(d.Volumes) == 0 {
			return fmt.Errorf("volume %q: %w", name, block.ErrNotFound)
		}
		for _, n := range r.tree.order {
			if name == "" || n.Volume == d.Volumes[0].ID {
				d.Nodes = append(d.Nodes, &n.nodeRow)
				d.Jobs[n.ID] += len(n.jobs)
			}
		}
		err := r.meta.table(tableDead, func(key, _ []byte) error {
			d.Deadlist[keyField(key, 1)]++
			return nil
		})
		return errors.Join(err, r.meta.table(tableTouched, func(key, _ []byte) error {
			d.Touched[keyField(key, 0)]++
			return nil
		}))
	})
	return d, err
}

// WriteText writes the counters, a line for each volume and one for each of its nodes, and at last the nodes of volumes that are gone.
func (d *VolumesDump) WriteText(w io.Writer) error {
	var b strings.Builder
	c := d.Counters
	fmt.Fprintf(&b, "applied seq %d, watermark %08x:%d, last chunk %d, page %d, segment %d, row %d, next volume %d, unique %d B, shared %d B\n",
		c.AppliedSeq, c.Watermark>>32, uint32(c.Watermark), c.Chunk, c.Page, c.Segment, c.Row, c.NextVolume, c.Unique, c.Shared)
	known := map[uint64]bool{}
	for _, v := range d.Volumes {
		known[v.ID] = true
		fmt.Fprintf(&b, "volume %d %q: %d B, mode %d, map epoch %d, head %d, cut %s, %s\n", v.ID, v.Name, v.Size, v.Mode, v.MapEpoch, v.Head, v.Cut, v.UUID)
		for _, m := range v.Bitmaps {
			fmt.Fprintf(&b, "  bitmap %d %q: epoch %d, least size %d B, all %t, %d rows of granules for the volume\n", m.ID, m.Name, m.Epoch, m.Size, m.All, d.Touched[v.ID])
		}
		d.writeNodes(&b, func(n *nodeRow) bool { return n.Volume == v.ID })
	}
	d.writeNodes(&b, func(n *nodeRow) bool { return !known[n.Volume] })
	_, err := io.WriteString(w, b.String())
	return err
}

func (d *VolumesDump) writeNodes(b *strings.Builder, want func(n *nodeRow) bool) {
	for _, n := range d.Nodes {
		if want(n) {
			fmt.Fprintf(b, "  node %d of volume %d: parent %d, bound %d, %s, root %d level %d birth %d, closed %d, %d B mapped, %d deadlist rows, %d jobs%s\n",
				n.ID, n.Volume, n.Parent, n.Bound, n.flagNames(), n.Root.ID, n.Root.Level, n.Root.Birth, n.Closed, n.Mapped, d.Deadlist[n.ID], d.Jobs[n.ID], behind(n.Name))
		}
	}
}

func (n *nodeRow) flagNames() string {
	var set []string
	for i, name := range []string{"closed", "started", "resolved", "deleted", "purging"} {
		if n.is(1 << i) {
			set = append(set, name)
		}
	}
	return cmp.Or(strings.Join(set, "+"), "new")
}

// behind sets a text that is there off from what stands before it.
func behind(text string) string {
	if text == "" {
		return ""
	}
	return " " + text
}
