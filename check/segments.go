package check

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// segmentState is a segment's row and what was found of it.
type segmentState struct {
	row        *segmentRow
	liveRaw    uint64 // of chunk rows that name the segment
	liveChunks uint32
}

// segmentCheck is one segment file being checked.
type segmentCheck struct {
	r      *run
	row    *segmentRow
	unit   string
	b      []byte // the whole file
	dec    *frameReader
	dir    []dirFrame
	footer *segFooter

	frames, chunks uint32
	raw            uint64
	codecs         uint8
}

// checkSegments reads every segment, each frame and chunk of it.
func (r *run) checkSegments() error {
	dec, err := newFrameReader(r.domain)
	if err != nil {
		return err
	}
	defer dec.close()
	var buf []byte
	for _, id := range slices.Sorted(maps.Keys(r.segments)) {
		row := r.segments[id].row
		r.expect(id <= r.tree.counters.Segment, unit64(tableSegment, id), 8, fmt.Sprintf("an id up to %d", r.tree.counters.Segment), id)
		for _, p := range row.Copies {
			if p.Tier != localTier {
				r.fail(unit64(tableSegment, id), 68, "tier "+localTier+", the only one of this version", p.Tier)
				continue
			}
			if buf, err = r.checkSegment(row, p, dec, buf); err != nil {
				return err
			}
		}
	}
	return r.checkStrangers()
}

// checkSegment reads one copy of a segment into buf, which it returns for the next.
func (r *run) checkSegment(row *segmentRow, p placement, dec *frameReader, buf []byte) ([]byte, error) {
	path := segmentPath(p.Key)
	if err := r.progress(path); err != nil {
		return buf, err
	}
	b, unit, err := r.wholeCopies(row, p, buf)
	path = unit
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = r.fromShards(row, p); err == nil && b == nil {
			return buf, nil // what is missing was said
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		r.fail(path, 0, "a file for "+unit64(tableSegment, row.ID), "none")
		return buf, nil
	}
	var f *fault
	if errors.As(err, &f) {
		r.noteErr(path, err)
		return buf, nil
	}
	if err != nil {
		return buf, err
	}
	r.rep.Totals.Segments++
	r.rep.Totals.SegmentBytes += int64(len(b))
	c := segmentCheck{r: r, row: row, unit: path, b: b, dec: dec}
	if err := c.run(); err != nil {
		return b, err
	}
	return b, r.checkParity(row, p, b)
}

// readSegment reads a file of at most 64 MiB into buf or a larger one.
func readSegment(path string, buf []byte) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return buf, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return buf, err
	}
	if st.Size() > segMaxSize {
		return buf, faultf(segMaxSize, "the end of the file", "%d B", st.Size())
	}
	if int64(cap(buf)) < st.Size() {
		buf = make([]byte, st.Size())
	}
	buf = buf[:st.Size()]
	_, err = io.ReadFull(file, buf)
	return buf, err
}

func (c *segmentCheck) run() error {
	r, row, size := c.r, c.row, uint64(len(c.b))
	if !r.expect(size >= row.Size, c.unit, int64(size), fmt.Sprintf("%d B, as %s says", row.Size, unit64(tableSegment, row.ID)), fmt.Sprintf("%d B", size)) && size < segHeaderSize {
		return nil
	}
	h, err := parseSegHeader(c.b[:segHeaderSize])
	if err != nil {
		r.noteErr(c.unit, err)
	} else {
		c.identity(0, h.StoreID, h.ID, h.Generation, h.Class, 16)
		r.expect((h.KeyID != 0) == r.sealed(), c.unit, 44, "a key id if, and only if, the store is encrypted", h.KeyID)
		r.expect(h.DomainID == r.super.DomainID, c.unit, 80, fmt.Sprintf("domain %x", r.super.DomainID), fmt.Sprintf("%x", h.DomainID))
	}
	end := min(row.Size, size)
	if row.State == segmentSealed {
		r.expect(size == row.Size, c.unit, int64(row.Size), fmt.Sprintf("%d B of a sealed segment", row.Size), fmt.Sprintf("%d B", size))
		if end = c.readFooter(size); end == 0 {
			end = size
		}
	} else if size > row.Size && r.rep.Clean {
		r.warn(c.unit, int64(row.Size), "the end of an open segment", fmt.Sprintf("%d B more, which the next start drops", size-row.Size))
	}
	if err := c.scan(uint32(end)); err != nil {
		return err
	}
	c.compareTotals()
	return nil
}

// identity compares what header or footer say the file is with what its row says. The store id lies at off.
func (c *segmentCheck) identity(base int64, store block.UUID, id uint64, generation uint32, class uint8, off int64) {
	r := c.r
	r.expect(store == r.super.StoreID, c.unit, base+off, "store "+r.super.StoreID.String(), store)
	r.expect(id == c.row.ID, c.unit, base+off+16, fmt.Sprint("segment ", c.row.ID), id)
	r.expect(generation == c.row.Generation, c.unit, base+off+24, fmt.Sprint("generation ", c.row.Generation), generation)
	r.expect(class == c.row.Class, c.unit, base+12, fmt.Sprint("class ", c.row.Class), class)
}

// readFooter reads footer and directory and returns where the frames end; 0 if that is not known.
func (c *segmentCheck) readFooter(size uint64) uint64 {
	r := c.r
	if size < segHeaderSize+segFooterSize {
		r.fail(c.unit, 0, "room for header and footer", fmt.Sprintf("%d B", size))
		return 0
	}
	base := int64(size) - segFooterSize
	t, err := parseSegFooter(c.b[base:], int64(size))
	if err != nil {
		r.noteErr(c.unit, err)
		return 0
	}
	c.footer = t
	c.identity(base, t.StoreID, t.ID, t.Generation, t.Class, 16)
	dirEnd := uint64(t.DirOff) + uint64(t.DirLen)
	dir := c.b[t.DirOff:dirEnd]
	r.expect(crc(dir) == t.DirCRC, c.unit, int64(t.DirOff), fmt.Sprintf("a directory of crc %08x", t.DirCRC), fmt.Sprintf("%08x", crc(dir)))
	r.expect(crc(c.b[:t.DirOff]) == t.DataCRC, c.unit, base+88, fmt.Sprintf("crc %08x of header and frames", crc(c.b[:t.DirOff])), fmt.Sprintf("%08x", t.DataCRC))
	r.expect(allZero(c.b[dirEnd:base]), c.unit, int64(dirEnd), "zeroes between directory and footer", "other bytes")
	r.expect(t.StoredBytes == uint64(t.DirOff)-segHeaderSize, c.unit, base+72, fmt.Sprintf("%d B of frames", uint64(t.DirOff)-segHeaderSize), t.StoredBytes)
	r.expect(t.SealEpoch <= r.tree.counters.AppliedSeq, c.unit, base+80, fmt.Sprintf("a record up to %d", r.tree.counters.AppliedSeq), t.SealEpoch)
	if c.dir, err = parseDirectory(dir, int64(t.DirOff)); err != nil {
		r.noteErr(c.unit, err)
	}
	return uint64(t.DirOff)
}

// scan reads the frames up to end. Behind a frame whose length is not known it goes on at the next one that the directory names.
func (c *segmentCheck) scan(end uint32) error {
	r := c.r
	for at := uint32(segHeaderSize); at < end; {
		fr, err := parseFrame(c.b[at:end])
		if err != nil {
			f := asFault(err)
			r.fail(c.unit, int64(at)+f.off, f.want, f.got)
			next := c.after(at, fr)
			if next == 0 {
				r.fail(c.unit, int64(at), "a frame", fmt.Sprintf("a damaged one; the %d B behind it were not read", end-at))
				return nil
			}
			c.frames++
			at = next
			continue
		}
		if err := c.frame(at, fr); err != nil {
			return err
		}
		at += fr.Size
	}
	return nil
}

// after returns where the frame behind a damaged one begins, or 0.
func (c *segmentCheck) after(at uint32, fr *frame) uint32 {
	for i := range c.dir {
		if c.dir[i].Off > at {
			return c.dir[i].Off
		}
	}
	if fr.Size > 0 {
		return at + fr.Size
	}
	return 0
}

// frame checks one frame and compares its chunks with their rows.
func (c *segmentCheck) frame(at uint32, fr *frame) error {
	r := c.r
	i := int(c.frames)
	c.frames++
	c.chunks += uint32(len(fr.Chunks))
	c.raw += uint64(fr.RawLen)
	c.codecs |= 1 << fr.Codec
	r.rep.Totals.Frames++
	r.rep.Totals.StoredChunks += uint64(len(fr.Chunks))
	if c.footer != nil {
		err := error(faultf(0, "a directory entry", "none"))
		if i < len(c.dir) {
			err = c.dir[i].compare(at, fr)
		}
		if err != nil {
			f := asFault(err)
			r.fail(c.unit, int64(at), "a directory with "+f.want, f.got)
		}
	}
	if !r.expect((fr.KeyID != 0) == r.sealed(), c.unit, int64(at)+28, "a key id if, and only if, the store is encrypted", fr.KeyID) {
		return nil
	}
	if r.sealed() && r.ring == nil {
		return c.sealedFrame(at, fr)
	}
	if r.sealed() {
		if err := r.ring.openFrame(fr, c.row.ID, c.row.Generation, at); err != nil {
			f := asFault(err)
			r.fail(c.unit, int64(at)+f.off, f.want, f.got)
			return c.sealedFrame(at, fr)
		}
	}
	raw, err := c.dec.decode(fr)
	if err != nil {
		f := asFault(err)
		r.fail(c.unit, int64(at)+f.off, f.want, f.got)
		return nil
	}
	for i := range fr.Chunks {
		ch := &fr.Chunks[i]
		if c.dec.hash != nil {
			if got := c.dec.sum(raw[ch.RawOff : ch.RawOff+ch.RawLen]); got != ch.Hash {
				n := r.fail(c.unit, int64(at), fmt.Sprintf("chunk %d with hash %x", ch.ID, ch.Hash), fmt.Sprintf("%x", got))
				if c.row.Class == classMeta {
					continue
				}
				r.bad[ch.ID] = n
			}
		}
		if c.row.Class == classMeta {
			c.addPart(at, fr, raw)
			continue
		}
		if err := r.matchChunk(c.row.ID, at, fr, ch); err != nil {
			return err
		}
	}
	return nil
}

// compareTotals compares what was found with footer and row.
func (c *segmentCheck) compareTotals() {
	r, u := c.r, unit64(tableSegment, c.row.ID)
	r.expect(c.chunks == c.row.TotalChunks, u, 40, fmt.Sprintf("%d chunks, as in its frames", c.chunks), c.row.TotalChunks)
	r.expect(c.raw == c.row.TotalRaw, u, 24, fmt.Sprintf("%d B raw, as in its frames", c.raw), c.row.TotalRaw)
	if t := c.footer; t != nil {
		base := int64(len(c.b)) - segFooterSize
		r.expect(t.Frames == c.frames && t.Chunks == c.chunks, c.unit, base+44, fmt.Sprintf("%d frames, %d chunks", c.frames, c.chunks), fmt.Sprint(t.Frames, ", ", t.Chunks))
		r.expect(t.RawBytes == c.raw, c.unit, base+64, fmt.Sprintf("%d B raw", c.raw), t.RawBytes)
		r.expect(t.Codecs == c.codecs, c.unit, base+13, fmt.Sprintf("codecs %02x", c.codecs), fmt.Sprintf("%02x", t.Codecs))
	}
}

// checkStrangers finds segment files without a row. The next start removes them.
func (r *run) checkStrangers() error {
	known := map[string]bool{}
	for _, s := range r.segments {
		for _, p := range s.row.Copies {
			if p.Tier == localTier {
				known[segmentPath(p.Key)] = true
				if s.row.ParityData != 0 {
					known[parityPath(p.Key)] = true
				}
			}
		}
	}
	for _, root := range r.roots() {
		if err := r.strangersIn(root, known); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) strangersIn(disk string, known map[string]bool) error {
	root := filepath.Join(disk, "segments")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(disk, path)
		if r.super.Incompat&superDisks != 0 && (rel == filepath.Join("segments", "members") || known[shardOwner(rel)]) {
			return err
		}
		if err == nil && !known[rel] && strings.HasSuffix(rel, ".par") {
			r.warn(rel, 0, "a segment's row that names this sidecar", "none; it is made again, or removed, while hvd runs")
		} else if err == nil && !known[rel] {
			r.warn(rel, 0, "a row of this segment", "none; the next start removes it if it has the name of a segment")
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		r.fail("segments", 0, "a directory", "none")
		return nil
	}
	return err
}
