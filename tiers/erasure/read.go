package erasure

import (
	"context"
	"hash/crc32"
	"io"
)

// Pace is asked before each piece of work and waits as long as the budget demands; an error ends the work. Nil does not wait.
type Pace func(ctx context.Context, bytes int) error

// Wait waits as long as the budget demands, for whoever works beside this package.
func (p Pace) Wait(ctx context.Context, bytes int) error { return p.wait(ctx, bytes) }

func (p Pace) wait(ctx context.Context, bytes int) error {
	if err := ctx.Err(); err != nil || p == nil {
		return err
	}
	return p(ctx, bytes)
}

// sumOf is the checksum of a column, which is as long as ColumnSize: zeroes fill up what the file lacks.
func sumOf(column []byte) uint32 { return crc32.Checksum(column, castagnoli) }

// Passes reports whether bytes of the segment at off, a whole column or the rest of it, fit the checksum of that column.
func (s *Sidecar) Passes(b []byte, off int64) bool {
	col := int(off / ColumnSize)
	if off%ColumnSize != 0 || col >= s.l.columns || len(b) != s.l.columnLen(col) {
		return false
	}
	p := make([]byte, ColumnSize)
	copy(p, b)
	want, known := s.sum(col%s.l.stripes, col/s.l.stripes)
	return known && sumOf(p) == want
}

// readColumns fills buf with the columns from c on. What the file has no more of is zeroes. failed is called with each column that cannot be read, which is zeroes then: an error
// of the device is damage like any other, and costs no more than the columns it hits.
func (l *layout) readColumns(src io.ReaderAt, buf []byte, c int, failed func(c int)) {
	end := min(int64(c)*ColumnSize+int64(len(buf)), l.size)
	have := int(max(0, end-int64(c)*ColumnSize))
	clear(buf[have:])
	if n, _ := src.ReadAt(buf[:have], int64(c)*ColumnSize); n == have {
		return
	}
	for at := 0; at < have; at, c = at+ColumnSize, c+1 {
		p := buf[at:min(at+ColumnSize, have)]
		if n, _ := src.ReadAt(p, int64(c)*ColumnSize); n < len(p) {
			clear(p)
			failed(c)
		}
	}
}

// sumWindow is how many columns are read at once when a file is read from front to back.
const sumWindow = 64

// Sums reads a segment from front to back and returns the checksums of its columns. each is called with all bytes, in order. What cannot be read is an error.
func Sums(ctx context.Context, src io.ReaderAt, size int64, pace Pace, each func(b []byte)) ([]uint32, error) {
	var sums []uint32
	buf := make([]byte, sumWindow*ColumnSize)
	for at := int64(0); at < size; at += int64(len(buf)) {
		n := int(min(int64(len(buf)), size-at))
		if err := pace.wait(ctx, n); err != nil {
			return nil, err
		}
		if got, err := src.ReadAt(buf[:n], at); got < n {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		each(buf[:n])
		whole := (n + ColumnSize - 1) / ColumnSize * ColumnSize
		clear(buf[n:whole])
		for c := 0; c < whole; c += ColumnSize {
			sums = append(sums, sumOf(buf[c:c+ColumnSize]))
		}
	}
	return sums, nil
}
