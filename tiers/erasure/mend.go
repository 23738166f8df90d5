package erasure

import (
	"context"
	"fmt"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Mended says what Mend did.
type Mended struct {
	Columns []int // data columns that were reconstructed
	Lost    []int // that were copied as they are, damaged, or as zeroes where they cannot be read
}

// Mend writes a copy of the segment to dst in which every damaged column that parity reaches is as it was when the sidecar was made. Columns of a group without heads are
// copied as they are. The copy has the length of the original whatever the length of src. The coder has the shape of the sidecar.
func (s *Sidecar) Mend(ctx context.Context, src io.ReaderAt, dst io.WriterAt, c *Coder, pace Pace) (Mended, error) {
	var m Mended
	if c.shape != s.shape {
		return m, fmt.Errorf("mend %v with a coder for %v: %w", s.shape, c.shape, block.ErrInvalid)
	}
	l := &s.l
	for g := range l.groups {
		n := l.stripesOf(g)
		if err := pace.wait(ctx, n*(2*l.k+l.m)*ColumnSize); err != nil {
			return m, err
		}
		c.group(n)
		bad := s.loadGroup(c, src, g)
		for t := range n {
			if err := s.mendStripe(c, bad, g, t, n, &m); err != nil {
				return m, err
			}
		}
		for i := range l.k {
			first := l.column(g*groupStripes, i)
			off := int64(first) * ColumnSize
			if have := min(int64(n*ColumnSize), l.size-off); have > 0 {
				if _, err := dst.WriteAt(c.shards[i][:have], off); err != nil {
					return m, err
				}
			}
		}
	}
	return m, nil
}

// loadGroup reads all columns of a group and returns, by shard and stripe, which do not pass their checksum.
func (s *Sidecar) loadGroup(c *Coder, src io.ReaderAt, g int) [][groupStripes]bool {
	l, n := &s.l, s.l.stripesOf(g)
	bad := make([][groupStripes]bool, l.k+l.m)
	for i := range l.k {
		first := l.column(g*groupStripes, i)
		l.readColumns(src, c.shards[i], first, func(col int) { bad[i][col-first] = true })
		for t := range min(n, max(0, l.columns-first)) {
			want, known := s.sum(g*groupStripes+t, i)
			bad[i][t] = known && (bad[i][t] || sumOf(c.shards[i][t*ColumnSize:][:ColumnSize]) != want)
		}
	}
	for j := range l.m {
		bad[l.k+j] = s.readParity(c.shards[l.k+j], g, j)
	}
	return bad
}

// mendStripe reconstructs what is damaged of the data of stripe t of a group.
func (s *Sidecar) mendStripe(c *Coder, bad [][groupStripes]bool, g, t, n int, m *Mended) error {
	l := &s.l
	var missing []int
	damaged := 0
	for i := range c.stripe {
		c.stripe[i] = c.shards[i][t*ColumnSize:][:ColumnSize:ColumnSize]
		if bad[i][t] {
			damaged++
			if i < l.k {
				missing = append(missing, i)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	columns := make([]int, len(missing))
	for x, i := range missing {
		columns[x] = l.column(g*groupStripes+t, i)
	}
	if damaged > l.m {
		m.Lost = append(m.Lost, columns...)
		return nil
	}
	// What stands there is kept until the new bytes have proved right.
	for i := range c.stripe {
		if bad[i][t] {
			c.stripe[i] = nil
		}
	}
	if err := c.rs.ReconstructData(c.stripe); err != nil {
		return fmt.Errorf("reconstruct stripe %d: %w", g*groupStripes+t, err)
	}
	for _, i := range missing {
		if want, _ := s.sum(g*groupStripes+t, i); sumOf(c.stripe[i]) != want {
			m.Lost = append(m.Lost, columns...)
			return nil
		}
	}
	for _, i := range missing {
		copy(c.shards[i][t*ColumnSize:][:ColumnSize], c.stripe[i])
	}
	m.Columns = append(m.Columns, columns...)
	return nil
}

// ReadAt fills p with the bytes of the segment at off, whatever is damaged of src, or fails with block.ErrCorrupt where parity does not reach. It returns how many columns it
// had to reconstruct. Each costs a read of its whole stripe.
func (s *Sidecar) ReadAt(src io.ReaderAt, p []byte, off int64) (mended int, err error) {
	l := &s.l
	if off < 0 || off+int64(len(p)) > l.size {
		return 0, fmt.Errorf("read %d B at %d of %d B by parity: %w", len(p), off, l.size, block.ErrInvalid)
	}
	var c *Coder
	buf := make([]byte, ColumnSize)
	for at := 0; at < len(p); {
		col := int((off + int64(at)) / ColumnSize)
		inner := int((off + int64(at)) % ColumnSize)
		failed := false
		l.readColumns(src, buf, col, func(int) { failed = true })
		want, known := s.sum(col%l.stripes, col/l.stripes)
		switch {
		case !known:
			return mended, s.lost(col, "a checksum of the column", "damaged heads")
		case failed || sumOf(buf) != want:
			if c == nil {
				if c, err = NewCoder(s.shape); err != nil {
					return mended, err
				}
			}
			if err := s.column(c, src, buf, col); err != nil {
				return mended, err
			}
			mended++
		}
		at += copy(p[at:], buf[inner:])
	}
	return mended, nil
}

// column reconstructs one data column into buf.
func (s *Sidecar) column(c *Coder, src io.ReaderAt, buf []byte, col int) error {
	l := &s.l
	t, shard := col%l.stripes, col/l.stripes
	stripe := make([][]byte, l.k+l.m)
	missing := 0
	for i := range stripe {
		p := make([]byte, ColumnSize)
		failed := false
		if i < l.k {
			l.readColumns(src, p, l.column(t, i), func(int) { failed = true })
		} else if n, _ := s.r.ReadAt(p, l.parityOff(t, i-l.k)); n < ColumnSize {
			failed = true
		}
		want, _ := s.sum(t, i)
		if i < l.k && l.column(t, i) >= l.columns {
			want = zeroSum
		}
		if failed || sumOf(p) != want {
			missing++
			continue
		}
		stripe[i] = p
	}
	if missing > l.m {
		return s.lost(col, fmt.Sprintf("at most %d damaged columns in the stripe", l.m), fmt.Sprint(missing))
	}
	if stripe[shard] == nil {
		if err := c.rs.ReconstructData(stripe); err != nil {
			return fmt.Errorf("reconstruct stripe %d: %w", t, err)
		}
	}
	if want, _ := s.sum(t, shard); sumOf(stripe[shard]) != want {
		return s.lost(col, fmt.Sprintf("crc %08x of the reconstructed column", want), fmt.Sprintf("%08x", sumOf(stripe[shard])))
	}
	copy(buf, stripe[shard])
	return nil
}

// zeroSum is the checksum of a column that the segment does not have.
var zeroSum = sumOf(make([]byte, ColumnSize))

func (s *Sidecar) lost(col int, want, got string) error {
	return &block.CorruptError{Source: fmt.Sprintf("segment %016x.%08x, beyond parity", uint64(s.id.Segment), s.id.Generation), Offset: int64(col) * ColumnSize, Want: want, Got: got}
}
