package erasure

import (
	"context"
	"fmt"
	"io"

	"github.com/klauspost/reedsolomon"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Coder holds the tables and buffers of one shape. It belongs to one goroutine at a time.
type Coder struct {
	shape  Shape
	rs     reedsolomon.Encoder
	data   []byte   // the columns of a group, shard after shard, data and parity
	shards [][]byte // parts of data
	stripe [][]byte
	head   []byte
}

// NewCoder returns a coder, which takes its memory with the first group.
func NewCoder(s Shape) (*Coder, error) {
	if s.None() {
		return nil, fmt.Errorf("code without parity: %w", block.ErrInvalid)
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	// One goroutine: this is work in the background, and guests have the other core.
	rs, err := reedsolomon.New(s.Data, s.Parity, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, fmt.Errorf("make parity coder %v: %w", s, err)
	}
	return &Coder{shape: s, rs: rs}, nil
}

// Shape returns the shape that the coder was made for.
func (c *Coder) Shape() Shape { return c.shape }

// group lays out the buffer for n stripes.
func (c *Coder) group(n int) {
	total := c.shape.Data + c.shape.Parity
	if c.data == nil {
		c.data = make([]byte, total*groupStripes*ColumnSize)
		c.shards, c.stripe = make([][]byte, total), make([][]byte, total)
	}
	for i := range c.shards {
		c.shards[i] = c.data[i*n*ColumnSize : (i+1)*n*ColumnSize]
	}
}

// Encode writes the sidecar of a segment to dst. sums are those of its columns, as Sums returned them for bytes that the caller found good: a column that reads
// otherwise now is a *block.CorruptError, and what was written then is worth nothing.
func (c *Coder) Encode(ctx context.Context, src io.ReaderAt, id Identity, sums []uint32, dst io.Writer, pace Pace) error {
	l := newLayout(c.shape, id.SizeBytes)
	if id.SizeBytes < 1 || id.SizeBytes > maxSize || len(sums) != l.columns {
		return fmt.Errorf("parity of %d B with checksums of %d columns: %w", id.SizeBytes, len(sums), block.ErrInvalid)
	}
	for g := range l.groups {
		if err := pace.wait(ctx, l.stripesOf(g)*(l.k+l.m)*ColumnSize); err != nil {
			return err
		}
		if err := c.encodeGroup(&l, src, id, sums, g, dst); err != nil {
			return err
		}
	}
	return nil
}

func (c *Coder) encodeGroup(l *layout, src io.ReaderAt, id Identity, sums []uint32, g int, dst io.Writer) error {
	n := l.stripesOf(g)
	c.group(n)
	h := head{id: id, shape: c.shape, group: g, sums: make([]uint32, n*(l.k+l.m))}
	for i := range l.k {
		first := l.column(g*groupStripes, i)
		l.readColumns(src, c.shards[i], first, func(int) {})
		for t := range min(n, max(0, l.columns-first)) {
			got := sumOf(c.shards[i][t*ColumnSize:][:ColumnSize])
			if want := sums[first+t]; got != want {
				return &block.CorruptError{Source: fmt.Sprintf("segment %016x.%08x", uint64(id.Segment), id.Generation), Offset: int64(first+t) * ColumnSize,
					Want: fmt.Sprintf("crc %08x, as it was read before", want), Got: fmt.Sprintf("%08x", got)}
			}
			h.sums[i*n+t] = got
		}
	}
	if err := c.rs.Encode(c.shards); err != nil {
		return fmt.Errorf("encode parity: %w", err)
	}
	for j := l.k; j < l.k+l.m; j++ {
		for t := range n {
			h.sums[j*n+t] = sumOf(c.shards[j][t*ColumnSize:][:ColumnSize])
		}
	}
	c.head = h.append(c.head[:0])
	for _, b := range append([][]byte{c.head}, append(c.shards[l.k:l.k+l.m:l.k+l.m], c.head)...) {
		if _, err := dst.Write(b); err != nil {
			return err
		}
	}
	return nil
}
