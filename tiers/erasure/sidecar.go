package erasure

import (
	"fmt"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Sidecar is an open sidecar of one segment: where its parity is, and the checksums of all columns. All methods may be called at once, each call with a Coder of its own.
type Sidecar struct {
	r     io.ReaderAt
	id    Identity
	shape Shape
	l     layout
	sums  [][]uint32 // by group, as in its head; nil where both heads are damaged
	// DamagedHeads counts the heads that cannot be used. There are two for each group.
	DamagedHeads int
}

// searchHeads bounds the heads that are tried to learn the shape of a sidecar whose first and last head are damaged.
const searchHeads = 4096

// Open reads the heads of a sidecar of size bytes. One of which no head can be used is block.ErrCorrupt; so is one that belongs to something else than want says, and
// its error says to what. A footer checksum of 0 in want accepts any: that of a segment whose footer is damaged is not known, and Identity tells it then.
func Open(r io.ReaderAt, size int64, want Identity) (*Sidecar, error) {
	first, err := firstHead(r, size)
	if err != nil {
		return nil, err
	}
	got := first.id
	if want.FooterCRC == 0 {
		got.FooterCRC = 0
	}
	if got != want {
		return nil, &block.CorruptError{Source: "parity", Want: "that of " + want.String(), Got: "that of " + first.id.String()}
	}
	s := &Sidecar{r: r, id: first.id, shape: first.shape, l: newLayout(first.shape, first.id.SizeBytes)}
	s.sums = make([][]uint32, s.l.groups)
	buf := make([]byte, headSize)
	for g := range s.sums {
		for _, off := range s.l.headOffs(g) {
			h, err := readHead(r, buf, off)
			if err != nil || h.id != s.id || h.shape != s.shape || h.group != g {
				s.DamagedHeads++
				continue
			}
			s.sums[g] = h.sums
		}
	}
	return s, nil
}

// Identify reads what a sidecar of size bytes says that it belongs to, and its shape, for a caller that has nothing else to go by. One of which no head can be used is block.ErrCorrupt.
func Identify(r io.ReaderAt, size int64) (Identity, Shape, error) {
	h, err := firstHead(r, size)
	if err != nil {
		return Identity{}, Shape{}, err
	}
	return h.id, h.shape, nil
}

// String names the segment as messages do.
func (id *Identity) String() string {
	return fmt.Sprintf("segment %016x.%08x of %d B and footer %08x, store %v", uint64(id.Segment), id.Generation, id.SizeBytes, id.FooterCRC, id.StoreID)
}

// Identity returns what the sidecar belongs to.
func (s *Sidecar) Identity() Identity { return s.id }

// Shape returns the shape it was made with.
func (s *Sidecar) Shape() Shape { return s.shape }

func readHead(r io.ReaderAt, buf []byte, off int64) (*head, error) {
	if n, err := r.ReadAt(buf, off); n < headSize {
		return nil, &block.CorruptError{Source: "parity head", Offset: off, Want: "4096 B", Got: fmt.Sprintf("%d B: %v", n, err)}
	}
	return parseHead(buf)
}

// firstHead finds a head that can be used: mostly the first, else the last, else any, as all lie on multiples of 4 KiB.
func firstHead(r io.ReaderAt, size int64) (*head, error) {
	buf := make([]byte, headSize)
	h, err := readHead(r, buf, 0)
	if err == nil {
		return h, nil
	}
	if size >= headSize && size%ColumnSize == 0 {
		if h, e := readHead(r, buf, size-headSize); e == nil {
			return h, nil
		}
	}
	for i := range int64(searchHeads) {
		if i*ColumnSize >= size {
			break
		}
		if h, e := readHead(r, buf, i*ColumnSize); e == nil {
			return h, nil
		}
	}
	return nil, fmt.Errorf("parity without a head that can be used; the first: %w", err)
}

// sum returns the checksum of shard i of stripe t; known is false where both heads of the group are damaged.
func (s *Sidecar) sum(t, i int) (sum uint32, known bool) {
	g := t / groupStripes
	if s.sums[g] == nil {
		return 0, false
	}
	return s.sums[g][i*s.l.stripesOf(g)+t%groupStripes], true
}
