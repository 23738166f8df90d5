package erasure

import (
	"context"
	"io"
)

// Damage is what is wrong with a segment and its sidecar.
type Damage struct {
	Columns       []int // data columns that do not pass their checksum, ascending
	Lost          []int // those of them that parity cannot mend
	ParityColumns int   // parity columns that do not pass
	Heads         int   // heads that cannot be used
	Unguarded     int   // data columns whose checksum is lost with both heads of their group
}

// Sidecar reports whether the sidecar itself is damaged.
func (d *Damage) Sidecar() bool { return d.ParityColumns+d.Heads > 0 }

// Verify reads the segment and the sidecar from front to back and says which columns are damaged. An error is one of the pace or the end of ctx.
func (s *Sidecar) Verify(ctx context.Context, src io.ReaderAt, pace Pace) (Damage, error) {
	d := Damage{Heads: s.DamagedHeads}
	v := verifier{s: s, bad: make([]uint8, s.l.stripes)}
	if err := v.data(ctx, src, pace, &d); err != nil {
		return d, err
	}
	if err := v.parity(ctx, pace, &d); err != nil {
		return d, err
	}
	for _, c := range d.Columns {
		if int(v.bad[c%s.l.stripes]) > s.l.m {
			d.Lost = append(d.Lost, c)
		}
	}
	return d, nil
}

// verifier counts the damaged columns of each stripe.
type verifier struct {
	s   *Sidecar
	bad []uint8
	buf []byte
}

func (v *verifier) data(ctx context.Context, src io.ReaderAt, pace Pace, d *Damage) error {
	l := &v.s.l
	v.buf = make([]byte, sumWindow*ColumnSize)
	for first := 0; first < l.columns; first += sumWindow {
		n := min(sumWindow, l.columns-first)
		buf := v.buf[:n*ColumnSize]
		if err := pace.wait(ctx, len(buf)); err != nil {
			return err
		}
		var failed [sumWindow]bool
		l.readColumns(src, buf, first, func(c int) { failed[c-first] = true })
		for i := range n {
			c := first + i
			want, known := v.s.sum(c%l.stripes, c/l.stripes)
			switch {
			case !known:
				d.Unguarded++
			case failed[i] || sumOf(buf[i*ColumnSize:][:ColumnSize]) != want:
				d.Columns = append(d.Columns, c)
				v.bad[c%l.stripes]++
			}
		}
	}
	return nil
}

func (v *verifier) parity(ctx context.Context, pace Pace, d *Damage) error {
	l := &v.s.l
	for g := range l.groups {
		n := l.stripesOf(g)
		for j := range l.m {
			if err := pace.wait(ctx, n*ColumnSize); err != nil {
				return err
			}
			buf := v.buf[:n*ColumnSize]
			bad := v.s.readParity(buf, g, j)
			for t := range n {
				if bad[t] {
					d.ParityColumns++
					v.bad[g*groupStripes+t]++
				}
			}
		}
	}
	return nil
}

// readParity fills buf with parity shard j of group g and says which of its columns do not pass. Of a group without heads none does.
func (s *Sidecar) readParity(buf []byte, g, j int) (bad [groupStripes]bool) {
	n := s.l.stripesOf(g)
	off := s.l.parityOff(g*groupStripes, j)
	got, _ := s.r.ReadAt(buf[:n*ColumnSize], off)
	for t := range n {
		p := buf[t*ColumnSize:][:ColumnSize]
		if got < (t+1)*ColumnSize {
			if k, _ := s.r.ReadAt(p, off+int64(t)*ColumnSize); k < ColumnSize {
				bad[t] = true
				continue
			}
		}
		want, known := s.sum(g*groupStripes+t, s.l.k+j)
		bad[t] = !known || sumOf(p) != want
	}
	return bad
}
