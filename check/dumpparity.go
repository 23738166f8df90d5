package check

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// ParityDump is a sidecar, of a segment or of a file of history, which may have several parts: its heads, and which parity columns pass their checksum.
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

// maxParityFile is the length of the longest sidecar: as much parity as data, and heads, for each part of a file of history of 4 GiB at most.
const maxParityFile = 64 * (segMaxSize + 2*parityHead*(segMaxSize/parityColumn/2/parityStripes+1))

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
	any := anyParityHead(b)
	if any == nil {
		d.Error = "no head that can be read"
		return d, nil
	}
	p := newParityShape(int(any.Data), int(any.Parity), int64(any.Size))
	base := 0
	if any.Segment>>63 == 1 { // of a file of history: all parts but the last one are full
		full := newParityShape(int(any.Data), int(any.Parity), historyPart)
		for n := full.at(full.groups); len(b)-base > n; base += n {
			d.readPart(&full, base, b[base:base+n])
		}
		if last := anyParityHead(b[base:]); last != nil {
			p = newParityShape(int(last.Data), int(last.Parity), int64(last.Size))
		}
	}
	if want := base + p.at(p.groups); want != len(b) {
		d.Error = fmt.Sprintf("want %d B, got %d B", want, len(b))
	}
	d.readPart(&p, base, b[base:])
	return d, nil
}

// readPart reads one sidecar, which begins at base of the file.
func (d *ParityDump) readPart(p *parityShape, base int, b []byte) {
	var err error
	for g := range p.groups {
		for _, off := range []int{p.at(g), p.at(g+1) - parityHead} {
			h := ParityHeadDump{Offset: int64(base + off)}
			if off+parityHead > len(b) {
				h.Error = "behind the end of the file"
			} else if h.Head, err = parseParityHead(b[off : off+parityHead]); err != nil {
				h.Head, h.Error = nil, err.Error()
			} else {
				h.Damaged = damagedParity(p, g, h.Head, b)
			}
			d.Heads = append(d.Heads, h)
		}
	}
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
			if x.Segment>>63 == 1 {
				fmt.Fprintf(&b, ": %d+%d of history file %08x with header %08x and footer %08x, store %s", x.Data, x.Parity, x.Segment>>32&(1<<31-1), x.Generation, x.FooterCRC, x.Store)
				break
			}
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
		case h.Head.Segment>>63 == 1:
			fmt.Fprintf(&b, "  %10d  part %d, group %d, %d stripes\n", h.Offset, uint32(h.Head.Segment), h.Head.Group, h.Head.Here)
		default:
			fmt.Fprintf(&b, "  %10d  group %d, %d stripes\n", h.Offset, h.Head.Group, h.Head.Here)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
