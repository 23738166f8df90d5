package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// docs/format/parity.md
const (
	parityColumn  = 4096
	parityHead    = 4096
	parityStripes = 32 // of a group
	paritySums    = 124
	parityShards  = 31
)

// parityShape is the layout of a sidecar.
type parityShape struct {
	k, m, columns, stripes, groups int
}

func newParityShape(k, m int, size int64) parityShape {
	p := parityShape{k: k, m: m, columns: int((size + parityColumn - 1) / parityColumn)}
	p.stripes = (p.columns + k - 1) / k
	p.groups = (p.stripes + parityStripes - 1) / parityStripes
	return p
}

func parityShapeOK(k, m int) bool { return k >= 2 && 1 <= m && m <= 8 && m <= k && k+m <= parityShards }

// at is where group g begins.
func (p *parityShape) at(g int) int {
	return g*2*parityHead + min(g*parityStripes, p.stripes)*p.m*parityColumn
}

func (p *parityShape) in(g int) int { return min(parityStripes, p.stripes-g*parityStripes) }

// parityHeadPart is a head of a group.
type parityHeadPart struct {
	Data       uint8      `json:"data"`
	Parity     uint8      `json:"parity"`
	Here       uint8      `json:"stripesOfGroup"`
	StoreID    block.UUID `json:"-"`
	Store      string     `json:"store"`
	Segment    uint64     `json:"segment"`
	Generation uint32     `json:"generation"`
	FooterCRC  uint32     `json:"footerCrc"`
	Size       uint64     `json:"size"`
	Stripes    uint32     `json:"stripes"`
	Group      uint32     `json:"group"`
	sums       []uint32
}

func parseParityHead(b []byte) (*parityHeadPart, error) {
	f := &fields{b: b}
	f.rule(len(b) == parityHead, 0, "a head of 4096 B", "%d B", len(b))
	f.magic("HNPARITY")
	if f.err == nil {
		f.err = checkSum(parityHead-4, crc(b[:parityHead-4]), binary.LittleEndian.Uint32(b[parityHead-4:]))
	}
	f.version(4)
	h := &parityHeadPart{Data: f.u8(), Parity: f.u8(), Here: f.u8()}
	f.reserved(1)
	h.StoreID = block.UUID(f.take(16))
	h.Store = h.StoreID.String()
	h.Segment, h.Generation, h.FooterCRC, h.Size, h.Stripes, h.Group = f.u64(), f.u32(), f.u32(), f.u64(), f.u32(), f.u32()
	f.reserved(60)
	k, m := int(h.Data), int(h.Parity)
	f.rule(parityShapeOK(k, m), 12, "a valid shape", "%d+%d", k, m)
	f.rule(1 <= h.Size && h.Size <= segMaxSize, 48, "a segment of at most 64 MiB", "%d B", h.Size)
	if f.err != nil {
		return h, f.err
	}
	p := newParityShape(k, m, int64(h.Size))
	f.rule(int64(h.Stripes) == int64(p.stripes) && int64(h.Group) < int64(p.groups), 56, fmt.Sprintf("%d stripes, a group below %d", p.stripes, p.groups), "%d, %d", h.Stripes, h.Group)
	if f.err != nil {
		return h, f.err
	}
	n := p.in(int(h.Group))
	f.rule(int(h.Here) == n, 14, fmt.Sprint(n, " stripes"), "%d", h.Here)
	for range n * (k + m) {
		h.sums = append(h.sums, f.u32())
	}
	f.reserved(parityHead - 4 - paritySums - 4*n*(k+m))
	f.take(4)
	return h, f.end()
}

func parityPath(key string) string { return segmentPath(strings.TrimSuffix(key, ".seg") + ".par") }

// checkParity compares a sidecar with the segment, which lies in b, and with its row.
func (r *run) checkParity(row *segmentRow, p placement, b []byte) error {
	path := parityPath(p.Key)
	k, m := int(row.ParityData), int(row.Parity)
	if k == 0 {
		return nil
	}
	r.expect(row.State == segmentSealed, unit64(tableSegment, row.ID), 48, "no parity of an open segment", fmt.Sprintf("%d+%d", k, m))
	r.expect(r.super.Incompat&superParity != 0, unit64(tableSegment, row.ID), 48, "no parity without the feature in the superblock", fmt.Sprintf("%d+%d", k, m))
	if !parityShapeOK(k, m) {
		return nil // the row's reader said so
	}
	par, err := os.ReadFile(filepath.Join(r.dir, path))
	if errors.Is(err, fs.ErrNotExist) {
		r.fail(path, 0, fmt.Sprintf("a sidecar %d+%d, as %s says", k, m, unit64(tableSegment, row.ID)), "no file")
		return nil
	}
	if err != nil {
		return err
	}
	shape := newParityShape(k, m, int64(row.Size))
	if want := shape.at(shape.groups); !r.expect(len(par) == want, path, int64(min(len(par), want)), fmt.Sprintf("%d B of a sidecar %d+%d", want, k, m), fmt.Sprintf("%d B", len(par))) || uint64(len(b)) != row.Size {
		return nil
	}
	if r.field == nil {
		r.field = newGalois()
	}
	of := parityOf{path: path, segment: uint64(row.ID), generation: row.Generation, footer: binary.LittleEndian.Uint32(b[len(b)-4:])}
	generator := r.field.generator(k, m)
	for g := range shape.groups {
		r.checkParityGroup(&of, &shape, generator, g, b, par)
	}
	return nil
}

// parityOf says what a sidecar must name, and where it lies.
type parityOf struct {
	path       string
	base       int // of the sidecar in the file
	segment    uint64
	generation uint32
	footer     uint32
}

func (o *parityOf) text(store block.UUID, p *parityShape, size, g int) string {
	return fmt.Sprintf("group %d of segment %d.%d, %d B, footer %08x, %d+%d, store %v", g, o.segment, o.generation, size, o.footer, p.k, p.m, store)
}

// checkParityGroup holds a group of a sidecar, which is in par, against what it was made of, in b.
func (r *run) checkParityGroup(of *parityOf, p *parityShape, generator [][]byte, g int, b, par []byte) {
	path := of.path
	at, end := p.at(g), p.at(g+1)
	var good *parityHeadPart
	for _, off := range []int{at, end - parityHead} {
		h, err := parseParityHead(par[off : off+parityHead])
		if err != nil {
			f := asFault(err)
			r.fail(path, int64(of.base+off)+f.off, f.want, f.got)
			continue
		}
		want := of.text(r.super.StoreID, p, len(b), g)
		got := fmt.Sprintf("group %d of segment %d.%d, %d B, footer %08x, %d+%d, store %v", h.Group, h.Segment, h.Generation, h.Size, h.FooterCRC, h.Data, h.Parity, h.StoreID)
		if r.expect(got == want, path, int64(of.base+off), want, got) {
			good = h
		}
	}
	if good == nil {
		return
	}
	first, second := par[at:at+parityHead], par[end-parityHead:end]
	r.expect(string(first) == string(second), path, int64(of.base+end-parityHead), "a head equal to that before the group", "another one")
	n := p.in(g)
	column := func(c int) []byte {
		col := make([]byte, parityColumn)
		if c < p.columns {
			copy(col, b[c*parityColumn:min(len(b), (c+1)*parityColumn)])
		}
		return col
	}
	for t := range n {
		coded := make([][]byte, p.m)
		for j := range coded {
			coded[j] = make([]byte, parityColumn)
		}
		for i := range p.k {
			c := i*p.stripes + g*parityStripes + t
			data, want := column(c), uint32(0)
			if c < p.columns {
				want = crc(data)
			}
			off := int64(of.base + at + paritySums + 4*(i*n+t))
			r.expect(good.sums[i*n+t] == want, path, off, fmt.Sprintf("crc %08x of the column at %d of the segment", want, c*parityColumn), fmt.Sprintf("%08x", good.sums[i*n+t]))
			for j := range coded {
				r.field.add(coded[j], data, generator[j][i])
			}
		}
		for j := range coded {
			off := at + parityHead + (j*n+t)*parityColumn
			got := par[off : off+parityColumn]
			r.expect(string(got) == string(coded[j]), path, int64(of.base+off), "the parity of its stripe", "other bytes")
			sum := good.sums[(p.k+j)*n+t]
			r.expect(sum == crc(got), path, int64(of.base+at+paritySums+4*((p.k+j)*n+t)), fmt.Sprintf("crc %08x of the column at %d", crc(got), off), fmt.Sprintf("%08x", sum))
		}
	}
}

// superParity is the incompat feature: rows of segments may name a sidecar.
const superParity = 1 << 0
