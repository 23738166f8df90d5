package check

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// ParityDump is a sidecar: its heads, and which parity columns pass their checksum.
type ParityDump struct {
	File  string           `json:"file"`
	Size  int64            `json:"size"`
	Error string           `json:"error,omitempty"`
	Heads []ParityHeadDump `json:"heads"`
}

// ParityHeadDump is one head. There are two for each group.
type ParityHeadDump struct {
	Offset  int64           `json:"offset"`
	Error   string          `json:"error,omitempty"`
	Head    *parityHeadPart `json:"head,omitempty"`
	Damaged []int           `json:"damagedParity,omitempty"` // parity columns of the group, in the order of the file, that fail the sums of this head
}

// maxParityFile is the length of the longest sidecar: as much parity as data, and heads.
const maxParityFile = segMaxSize + 2*parityHead*(segMaxSize/parityColumn/2/parityStripes+1)

// DumpParity reads the sidecar in a file. It needs no store: where heads are damaged, others tell where the groups lie.
func DumpParity(path string) (*ParityDump, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("dump parity: %w", err)
	}
	d := &ParityDump{File: path, Size: st.Size(), Heads: []ParityHeadDump{}}
	if st.Size() > maxParityFile {
		return nil, fmt.Errorf("dump parity: %s has %d B, a sidecar at most %d", path, st.Size(), maxParityFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("dump parity: %w", err)
	}
	var any *parityHeadPart
	for at := 0; at+parityHead <= len(b) && any == nil; at += parityHead {
		if h, err := parseParityHead(b[at : at+parityHead]); err == nil {
			any = h
		}
	}
	if any == nil {
		d.Error = "no head that can be read"
		return d, nil
	}
	p := newParityShape(int(any.Data), int(any.Parity), int64(any.Size))
	if want := p.at(p.groups); want != len(b) {
		d.Error = fmt.Sprintf("want %d B, got %d B", want, len(b))
	}
	for g := range p.groups {
		for _, off := range []int{p.at(g), p.at(g+1) - parityHead} {
			h := ParityHeadDump{Offset: int64(off)}
			if off+parityHead > len(b) {
				h.Error = "behind the end of the file"
			} else if h.Head, err = parseParityHead(b[off : off+parityHead]); err != nil {
				h.Head, h.Error = nil, err.Error()
			} else {
				h.Damaged = damagedParity(&p, g, h.Head, b)
			}
			d.Heads = append(d.Heads, h)
		}
	}
	return d, nil
}

func damagedParity(p *parityShape, g int, h *parityHeadPart, b []byte) (bad []int) {
	n := p.in(g)
	for i := range p.m * n {
		off := p.at(g) + parityHead + i*parityColumn
		if int(h.Group) != g || len(h.sums) != n*(p.k+p.m) || off+parityColumn > len(b) || crc(b[off:off+parityColumn]) != h.sums[p.k*n+i] {
			bad = append(bad, i)
		}
	}
	return bad
}

// WriteText writes a line for the sidecar and one for each head.
func (d *ParityDump) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "parity %s, %d B", d.File, d.Size)
	for _, h := range d.Heads {
		if h.Head != nil {
			x := h.Head
			fmt.Fprintf(&b, ": %d+%d of segment %d generation %d, %d B, footer %08x, store %s", x.Data, x.Parity, x.Segment, x.Generation, x.Size, x.FooterCRC, x.Store)
			break
		}
	}
	fmt.Fprintln(&b)
	if d.Error != "" {
		fmt.Fprintf(&b, "  %s\n", d.Error)
	}
	for _, h := range d.Heads {
		switch {
		case h.Head == nil:
			fmt.Fprintf(&b, "  %10d  %s\n", h.Offset, h.Error)
		case len(h.Damaged) > 0:
			fmt.Fprintf(&b, "  %10d  group %d, %d stripes, damaged parity columns %v\n", h.Offset, h.Head.Group, h.Head.Here, h.Damaged)
		default:
			fmt.Fprintf(&b, "  %10d  group %d, %d stripes\n", h.Offset, h.Head.Group, h.Head.Here)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
