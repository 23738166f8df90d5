package check

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// foundPart is a part whose frame and hash were good.
type foundPart struct {
	part    // without rows
	id      uint64
	hash    [16]byte
	segment uint64
	path    string
	at, n   uint32 // of the frame
}

// checkpoint is a complete one.
type checkpoint []foundPart

func (c checkpoint) bytes() (n uint64) {
	for i := range c {
		n += uint64(c[i].n)
	}
	return n
}

func (c checkpoint) pointer() pointer { return pointer{c[0].segment, uint64(c[0].at), c[0].Number} }

// addPart notes a frame of a segment of checkpoints.
func (c *segmentCheck) addPart(at uint32, fr *frame, raw []byte) {
	r := c.r
	if !r.expect(len(fr.Chunks) == 1, c.unit, int64(at)+8, "one chunk, a part of a checkpoint", len(fr.Chunks)) {
		return
	}
	p, err := parsePart(raw)
	if err != nil {
		f := asFault(err)
		r.fail(c.unit, int64(at), fmt.Sprintf("a part of a checkpoint with, at %d, %s", f.off, f.want), f.got)
		return
	}
	ch := &fr.Chunks[0]
	r.expect((p.Part == 0) == (ch.ID == p.Number) && ch.ID >= p.Number, c.unit, int64(at)+96, fmt.Sprintf("part %d of checkpoint %x", p.Part, p.Number), fmt.Sprintf("chunk id %x", ch.ID))
	r.expect(ch.ID>>32 <= r.super.BootEpoch, c.unit, int64(at)+96, fmt.Sprintf("an id of a boot epoch up to %d", r.super.BootEpoch), fmt.Sprintf("%x", ch.ID))
	p.rows = nil
	r.parts = append(r.parts, foundPart{part: *p, id: ch.ID, hash: [16]byte(ch.Hash[:16]), segment: c.row.ID, path: c.unit, at: at, n: fr.Size})
}

// complete puts parts together, by number of the checkpoint.
func (r *run) complete() map[uint64]checkpoint {
	slices.SortFunc(r.parts, func(a, b foundPart) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Part, b.Part))
	})
	all := map[uint64]checkpoint{}
	for rest := r.parts; len(rest) > 0; {
		n, rows, whole := 0, uint64(0), true
		for ; n < len(rest) && rest[n].Number == rest[0].Number; n++ {
			p := &rest[n]
			whole = whole && p.Part == uint32(n) && p.RowsBefore == rows && p.Kind == rest[0].Kind && p.Base == rest[0].Base && (n == 0 || !rest[n-1].Last && p.Previous == rest[n-1].hash)
			rows += uint64(p.RowCount)
		}
		if whole && rest[n-1].Last {
			all[rest[0].Number] = checkpoint(rest[:n])
		}
		rest = rest[n:]
	}
	return all
}

// checkCheckpoints checks that what is journaled can be read, and that it is what the rows are.
func (r *run) checkCheckpoints() error {
	const u = "M|j"
	b, err := r.meta.get([]byte("Mj"))
	if err == errNoRow {
		for i, p := range r.super.Checkpoints {
			r.expect(p == [3]uint64{}, superName(int(r.super.Generation%2)), int64(136+24*i), "no checkpoint, as there is no row M|j", fmt.Sprint(p))
		}
		r.expect(len(r.parts) == 0, u, 0, "a row, as there are checkpoints", "none")
		return nil
	}
	if err != nil {
		return err
	}
	j, err := parseJournalRow(b)
	if err != nil {
		r.noteErr(u, err)
		return nil
	}
	if r.sealed() && r.ring == nil {
		return nil
	}
	all := r.complete()
	full, last := all[j.Full.Number], all[j.Number]
	if !r.expect(full != nil && full[0].Kind == kindFull, u, 64, "a complete full checkpoint", fmt.Sprintf("number %x", j.Full.Number)) ||
		!r.expect(last != nil, u, 8, "a complete checkpoint", fmt.Sprintf("number %x", j.Number)) {
		return nil
	}
	r.expect(j.Full == full.pointer(), u, 48, fmt.Sprint(full.pointer()), j.Full)
	r.expect(j.Last == last.pointer(), u, 72, fmt.Sprint(last.pointer()), j.Last)
	r.checkPointers(j)
	way := []checkpoint{}
	deltas := uint64(0)
	for c := last; c[0].Number > j.Full.Number; {
		way = append(way, c)
		deltas += c.bytes()
		if c[0].Base <= j.Full.Number {
			break
		}
		if c = all[c[0].Base]; !r.expect(c != nil, u, 8, "a complete checkpoint that it builds upon", fmt.Sprintf("none, of %x", way[len(way)-1][0].Base)) {
			return nil
		}
	}
	r.expect(j.FullBytes == full.bytes(), u, 96, fmt.Sprintf("%d B", full.bytes()), j.FullBytes)
	r.expect(j.DeltaBytes == deltas, u, 104, fmt.Sprintf("%d B", deltas), j.DeltaBytes)
	r.rep.Totals.Deltas, r.rep.Totals.CheckpointBytes = len(way), full.bytes()+deltas
	return r.compareState(j, full, way)
}

// checkPointers compares the superblock with what is journaled. It may be older, unless the store was closed in order.
func (r *run) checkPointers(j *journalRow) {
	u := superName(int(r.super.Generation % 2))
	for i, want := range []pointer{j.Full, j.Last} {
		p := r.super.Checkpoints[i]
		got := pointer{p[0], p[1], p[2]}
		r.expect(got == want || !r.rep.Clean && got.Number < want.Number && (got.Number > 0 || got == pointer{}), u, int64(136+24*i), fmt.Sprintf("%v, or an older one", want), got)
	}
}

// partBytes reads the frame of a part again. Of a segment that lies in shards the last one is kept, as parts lie one behind the other.
func (r *run) partBytes(p *foundPart) ([]byte, error) {
	path := p.path
	if !filepath.IsAbs(path) {
		path = filepath.Join(r.dir, path)
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && len(r.opts.Disks) > 0 {
		if s := r.segments[p.segment]; s != nil && r.assembled.segment != p.segment {
			b, err := r.fromShards(s.row, s.row.Copies[0])
			if err != nil {
				return nil, err
			}
			r.assembled.segment, r.assembled.b = p.segment, b
		}
		if b := r.assembled.b; int(p.at)+int(p.n) <= len(b) {
			return b[p.at:][:p.n], nil
		}
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b := make([]byte, p.n)
	_, err = file.ReadAt(b, int64(p.at))
	return b, err
}

// readPart reads a part again.
func (r *run) readPart(p *foundPart, dec *frameReader) (*part, error) {
	b, err := r.partBytes(p)
	if err != nil {
		return nil, err
	}
	fr, err := parseFrame(b)
	if err != nil {
		return nil, err
	}
	if r.sealed() {
		row := r.segments[p.segment].row
		if err := r.ring.openFrame(fr, row.ID, row.Generation, uint32(p.at)); err != nil {
			return nil, err
		}
	}
	raw, err := dec.decode(fr)
	if err != nil {
		return nil, err
	}
	return parsePart(slices.Clone(raw))
}
